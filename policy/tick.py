"""The tick: one sampler call as a function of tensors, from an observation to actions.

Encoder, all denoiser calls, un-normalisation, and the level at which a prediction first was no
number. Nothing waits for the device and nothing branches on a value, so it can be traced, compiled,
exported, or captured as one graph; `policy.control.engine` chooses.

Shape legend: `B` rows (of streams), `To Tp` observed and predicted steps, `Da` action size, `C`
condition size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policy.diffusion.noise import Tape, randn
from policy.guidance.cfg import classifier_free
from policy.model import DiffusionPolicy
from policy.replay import Replay, denoisers_at
from policy.sampling.carry import UNKNOWN
from policy.types import Carry, Denoiser, Generator, Sampler
from policy.witness import Witness

# Actions [B, Tp - past, *action] in physical units, the carry's x [B, Tp, Da] and sigma [B, Tp],
# and for each row the level of its first prediction that was not finite, [B], 0 for none.
Ticked = tuple[Tensor, Tensor, Tensor, Tensor]

# (observation, x, sigma, noise): as of `Tick.forward`.
TickCall = Callable[[dict[str, Tensor], Tensor, Tensor, list[Tensor]], Ticked]

# The carry's x and sigma of new streams, and the fault of each row, as above.
Started = tuple[Tensor, Tensor, Tensor]

# (observation, noise): as of `Tick.starting`.
StartCall = Callable[[dict[str, Tensor], list[Tensor]], Started]


@dataclass(frozen=True)
class Draws:
    """What a tick asks for besides its inputs.

    Args:
        noise: shape of each noise, in order.
        n_calls: denoiser calls.
    """

    noise: tuple[tuple[int, ...], ...]
    n_calls: int


class Tick(nn.Module):
    """A policy's actions by a sampler, for as many streams as there are rows."""

    def __init__(self, policy: DiffusionPolicy, sampler: Sampler, *, goal_weight: float = 1.0):
        """A tick.

        Args:
            policy: frozen, in evaluation mode, on its device.
            sampler: how chunks are drawn.
            goal_weight: 1 looks at the goal, 0 does not; others guide by the difference, and their
                calls have twice the rows.
        """
        super().__init__()
        self.policy, self.sampler, self.goal_weight = policy, sampler, goal_weight
        # Of each call, where its level is known.
        self.denoisers = denoisers_at(policy, getattr(sampler, "levels", []))

    def forward(
        self, observation: dict[str, Tensor], x: Tensor, sigma: Tensor, noise: list[Tensor]
    ) -> Ticked:
        """Actions, the carry, and where a prediction was not finite.

        Args:
            observation: field name -> [B, To, ...] in physical units.
            x: [B, Tp, Da] of the carry.
            sigma: [B, Tp] of the carry.
            noise: standard normal, of the shapes that `draws` names.

        Raises:
            ValueError: the noise is not what the sampler draws.
        """
        tape = Tape(noise, device=x.device)
        ticked = self.drawing(observation, Carry(x, sigma), tape)
        tape.check_end()
        return ticked

    def drawing(
        self, observation: Mapping[str, Tensor], carry: Carry, generator: Generator
    ) -> Ticked:
        """The same with noise that is drawn as it is needed; for the arguments see `forward`."""
        denoiser, cond = self._conditioned(observation)
        witness = Witness(denoiser, len(cond))
        x0, carry = self.sampler(witness, cond, carry, generator)
        actions = self.policy.actions(x0, observation)[:, self.sampler.space.horizons.past :]
        return actions, carry.x, carry.sigma, witness.fault()

    def start(
        self, observation: Mapping[str, Tensor], generator: Generator
    ) -> tuple[Carry, Tensor]:
        """The carry of new streams, and where a prediction was not finite [B].

        Args:
            observation: what they see at first.
            generator: of all noise.
        """
        denoiser, cond = self._conditioned(observation)
        witness = Witness(denoiser, len(cond))
        return self.sampler.start(witness, cond, generator), witness.fault()

    def starting(self, observation: dict[str, Tensor], noise: list[Tensor]) -> Started:
        """The same with noise that was drawn before.

        Args:
            observation: field name -> [B, To, ...] in physical units.
            noise: standard normal, of the shapes that `start_draws` names.

        Raises:
            ValueError: the noise is not what the sampler draws.
        """
        tape = Tape(noise, device=self._device)
        carry, fault = self.start(observation, tape)
        tape.check_end()
        return carry.x, carry.sigma, fault

    def start_draws(self, rows: int) -> Draws:
        """What every start of so many rows asks for, found out as in `draws`."""

        def start(denoiser: Denoiser, tape: Tape) -> None:
            self.sampler.start(denoiser, torch.zeros(rows, 1, device=self._device), tape)

        return self._counted(start)

    def draws(self, rows: int) -> Draws:
        """What every call of so many rows asks for, found out with a denoiser that predicts 0.

        Args:
            rows: B.

        Raises:
            ValueError: it depends on the carry, or the denoiser calls are not as many as the
                sampler says.
        """
        space = self.sampler.space
        x = torch.zeros(rows, *space.shape, device=self._device)
        levels = (UNKNOWN, 0.0, space.sigma_min or 1.0)
        found = {self._draws_from(Carry(x, x.new_full(x.shape[:2], level))) for level in levels}
        draws, *others = sorted(found, key=lambda draws: (draws.n_calls, draws.noise))
        if others:
            raise ValueError(
                f"the sampler makes {draws.n_calls} denoiser calls and draws {len(draws.noise)} "
                f"times for one carry, {others[-1].n_calls} and {len(others[-1].noise)} times for "
                f"another: only a sampler whose calls are always the same can be captured, so use "
                f"engine=eager"
            )
        if draws.n_calls != self.sampler.nfe:
            raise ValueError(
                f"the sampler makes {draws.n_calls} denoiser calls and says that they are "
                f"{self.sampler.nfe} (nfe): correct the sampler, or use engine=eager"
            )
        return draws

    def _draws_from(self, carry: Carry) -> Draws:
        cond = carry.x.new_zeros(len(carry.x), 1)
        return self._counted(lambda denoiser, tape: self.sampler(denoiser, cond, carry, tape))

    @torch.no_grad()
    def _counted(self, run: Callable[[Denoiser, Tape], object]) -> Draws:
        """What `run` asks a denoiser and a tape for."""
        tape, n_calls = Tape(device=self._device), 0

        def nothing(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return 0 * x

        run(nothing, tape)
        return Draws(tuple(tape.shapes), n_calls)

    @property
    def _device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def _conditioned(self, observation: Mapping[str, Tensor]) -> tuple[Denoiser, Tensor]:
        """Denoiser of one sampler call, and condition [B, C], by which the goal counts as set."""
        cond = self.policy.encode(observation)
        denoiser = Replay(self.denoisers) if self.denoisers else self.policy
        if self.goal_weight == 1:
            return denoiser, cond
        null_cond = self.policy.without_goal(cond)
        if self.goal_weight == 0:
            return denoiser, null_cond
        return classifier_free(denoiser, null_cond=null_cond, weight=self.goal_weight), cond


def lowered(policy: DiffusionPolicy, weights: str) -> DiffusionPolicy:
    """A policy whose network is a frozen copy that is fast for few rows.

    Args:
        policy: frozen; its other parts are shared.
        weights: of the copy, such as "fp32", "bf16" or "int8".

    Raises:
        ValueError: the network has no such form.
    """
    make = getattr(policy.net, "lowered", None)
    if make is None:
        raise ValueError(
            f"weights={weights} needs a network with lowered(weights), {type(policy.net).__name__} "
            f"has none: use weights=fp32, or a U-Net (net=unet1d_small)"
        )
    return DiffusionPolicy(
        policy.encoder,
        make(weights),
        policy.preconditioning,
        policy.normalizer,
        policy.contract,
        policy.horizons,
    )


def with_net(tick: Tick, weights: str) -> Tick:
    """The tick of the same policy with a lowered network; for the rest see `lowered`."""
    return Tick(lowered(tick.policy, weights), tick.sampler, goal_weight=tick.goal_weight)


def noise_of(draws: Sequence[tuple[int, ...]], generator: Generator) -> list[Tensor]:
    """Noise of the given shapes, drawn in order."""
    return [randn(shape, generator) for shape in draws]
