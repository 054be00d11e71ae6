"""Sequential sampling: every chunk from fresh noise, all actions at one level, down a grid to 0.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.schedule import check_grid
from policy.sampling.carry import check_carry, check_executed, nothing_known
from policy.sampling.descent import Descent
from policy.types import Carry, ChunkSpace, Denoiser, Generator


class Sequential:
    """A sampler that denoises each chunk from the grid's first level to 0."""

    start_nfe = 0

    def __init__(self, *, space: ChunkSpace, grid: Tensor, descent: Descent):
        """A sampler.

        Args:
            space: of the chunks.
            grid: [K + 1] decreasing levels ending in 0, such as `policy.diffusion.schedule.karras`.
            descent: from level to level.

        Raises:
            ValueError: the grid does not decrease to 0, or has a level that was not trained.
        """
        check_grid(grid)
        space.check_start(float(grid[0]), name="the grid")
        space.check_end(float(grid[-2]), setting="grid.sigma_min")
        # Plain numbers: a step then needs no transfer to the device.
        self.space, self.sigmas, self.descent = space, tuple(grid.tolist()), descent

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.descent.nfe(len(self.sigmas) - 1)

    @property
    def levels(self) -> list[float]:
        """Noise level of each denoiser call, the same for all actions."""
        return self.descent.calls(self.sigmas)

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: nothing is known of them yet."""
        return nothing_known(cond, self.space)

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The same carry: the next chunk does not depend on it."""
        check_executed(carry, n_executed)
        return carry

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and a carry that holds them.

        Args:
            denoiser: predicts the clean chunk.
            cond: [B, C] encoded observation.
            carry: of `start` or the last call; not used.
            generator: of all noise.
        """
        check_carry(carry, cond, self.space)
        x, sigma = sample(self.sigmas, self.descent, self.space, denoiser, cond, generator)
        return x, Carry(x=x, sigma=sigma)


def sample(
    sigmas: tuple[float, ...],
    descent: Descent,
    space: ChunkSpace,
    denoiser: Denoiser,
    cond: Tensor,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Chunks [B, Tp, Da] from fresh noise, and their level [B, Tp], which is 0.

    Args:
        sigmas: decreasing levels ending in 0.
        descent: from level to level.
        space: of the chunks.
        denoiser: predicts the clean chunk.
        cond: [B, C] encoded observation.
        generator: of all noise.
    """
    shape = (len(cond), *space.shape)
    x = sigmas[0] * randn(shape, generator)
    levels = [x.new_full(shape[:2], sigma) for sigma in sigmas]
    x, _ = descent(denoiser, cond, x, levels, noise=lambda: randn(shape, generator))
    return x, levels[-1]


def fitted(*, space: ChunkSpace, n_steps: int, descent: Descent) -> Sequential:
    """A sequential sampler over the grid of `n_steps` steps that was fitted to the denoiser.

    Args:
        space: of the chunks, with fitted grids.
        n_steps: of the grid.
        descent: from level to level.

    Raises:
        ValueError: there is no such grid.
    """
    if n_steps not in space.grids:
        raise ValueError(
            f"there is no fitted grid of {n_steps} steps, there are {sorted(space.grids)}: make "
            f"one with cadence fit checkpoint=... store.path=... n_steps=[{n_steps}]"
        )
    return Sequential(space=space, grid=space.grids[n_steps], descent=descent)
