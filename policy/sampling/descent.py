"""The one denoising loop: a noisy chunk, and the levels that it is taken through.

A sampling method is where a chunk starts and which levels follow, one per action; everything else
is the same here for all of them.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from policy.diffusion.step import Corrector, History, Noise, Solver, ancestral, no_history
from policy.types import Denoiser

T = TypeVar("T")


@dataclass(frozen=True)
class Descent:
    """How a chunk is taken from level to level.

    Args:
        solver: of one step, such as `policy.diffusion.step.dpmpp_2m`.
        corrector: `policy.diffusion.step.heun`, which costs a second call in all steps but the
            last, or none. It mends DDIM only: with noise, or from two steps, a step is no mean of
            slopes to begin with.
        clip: limit of |x0_hat| in the network's scale. Needed by networks that predict the noise,
            whose x0_hat is far off at the first levels; others are better without, where actions
            are not scaled into [-1, 1].

    Raises:
        ValueError: the limit is not positive, or there is a corrector of another solver than DDIM.
    """

    solver: Solver
    corrector: Corrector | None = None
    clip: float | None = None

    def __post_init__(self):
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, it must be positive, or null for no limit")
        if self.corrector is not None and not _is_ddim(self.solver):
            raise ValueError(
                f"the corrector mends steps of DDIM, the solver is {self.solver}: use ancestral "
                f"with eta=0, or no corrector"
            )

    def nfe(self, n_steps: int) -> int:
        """Denoiser calls of `n_steps` steps."""
        return len(self.calls(range(n_steps + 1)))

    def calls(self, levels: Sequence[T]) -> list[T]:
        """The levels at which the denoiser is called, in order; the last level is only reached."""
        first, *inner = levels[:-1]
        times = 1 if self.corrector is None else 2
        return [first, *(level for level in inner for _ in range(times))]

    def predict(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da], within the limit."""
        x0_hat = denoiser(x, sigma, cond)
        return x0_hat if self.clip is None else x0_hat.clamp(-self.clip, self.clip)

    def __call__(
        self,
        denoiser: Denoiser,
        cond: Tensor,
        x: Tensor,
        levels: Sequence[Tensor],
        *,
        noise: Noise,
        history: History | None = None,
    ) -> tuple[Tensor, History]:
        """The chunk [B, Tp, Da] at the last level, and the history of the last step.

        Args:
            denoiser: predicts the clean chunk.
            cond: [B, C] encoded observation.
            x: [B, Tp, Da] chunk at the first level.
            levels: each [B, Tp], and not above the one before it in any element.
            noise: of the steps.
            history: of the step that led to `x`, if there was one.
        """
        history = no_history(x) if history is None else history
        last = len(levels) - 2
        for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
            x0_hat = self.predict(denoiser, x, sigma, cond)
            x_next = self.solver(x, x0_hat, sigma, sigma_next, history=history, noise=noise)
            history = History(x, x0_hat, sigma)
            if self.corrector is not None and i < last:
                x0_hat_next = self.predict(denoiser, x_next, sigma_next, cond)
                x_next = self.corrector(x, x0_hat, sigma, x_next, x0_hat_next, sigma_next)
            x = x_next
        return x, history


def _is_ddim(solver: Solver) -> bool:
    """Whether a solver is `ancestral` without noise."""
    return (
        isinstance(solver, partial) and solver.func is ancestral and solver.keywords.get("eta") == 0
    )
