"""The seams: denoiser, sampler and its carry, action chunk, robot.

Everybody speaks one noise coordinate, `x = x0 + sigma * eps`, with one sigma per action.

Shape legend: `B` batch (of streams), `Tp` predicted steps, `Da` action size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from data.types import Contract, Horizons, Observation

# How far a level may lie beside the trained ones, of itself: float32 and six printed digits round.
ROUNDING = 1e-5


class NoiseSource(Protocol):
    """Noise that somebody else draws, such as `policy.diffusion.noise.Tape`."""

    @property
    def device(self) -> torch.device:
        """Where the noise is."""
        ...

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of a shape."""
        ...


# One generator for a whole batch, or one per stream so that a stream's noise does not depend on
# which others share its batch; or noise that was drawn before.
Generator = torch.Generator | Sequence[torch.Generator] | NoiseSource


class Denoiser(Protocol):
    """Predicts the clean chunk from a noisy one."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] from x [B, Tp, Da], sigma [B, Tp] >= 0 and the encoded observation.

        Rows with sigma == 0 are clean: they condition the others and come back untouched.
        """
        ...


@dataclass(frozen=True)
class ChunkSpace:
    """What a sampler is told of the chunks that it is to draw.

    Args:
        horizons: predicted steps, and how many of them are executed before the next chunk.
        action_size: Da.
        inference_delay: control steps from an observation to the first action of its chunk.
        discrete: elements of an action that take a few values only, such as a gripper.
        sigma_min: lowest level that the denoiser was trained at; clean actions aside.
        sigma_max: highest level that the denoiser was trained at.
        grids: number of steps -> grid of noise levels fitted to the denoiser.
        anchors: [M, Tp, Da] typical chunks in the network's scale, if there are any.
    """

    horizons: Horizons
    action_size: int
    inference_delay: int = 0
    discrete: tuple[int, ...] = ()
    sigma_min: float = 0.0
    sigma_max: float = float("inf")
    grids: Mapping[int, Tensor] = field(default_factory=dict)
    anchors: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[Tp, Da] of a chunk."""
        return self.horizons.pred, self.action_size

    @property
    def n_decided(self) -> int:
        """Actions at a chunk's begin that are past, or executed while the chunk is computed."""
        return self.horizons.past + self.inference_delay

    def __post_init__(self):
        longest = self.horizons.future - self.horizons.action
        if not 0 <= self.inference_delay <= longest:
            raise ValueError(
                f"inference_delay is {self.inference_delay}, with {self.horizons.action} of "
                f"{self.horizons.future} actions executed it must be in 0..{longest}"
            )
        unknown = [i for i in self.discrete if i not in range(self.action_size)]
        if unknown:
            raise ValueError(
                f"discrete holds {unknown}, an action has {self.action_size} elements: "
                f"give 0 to {self.action_size - 1}"
            )

    def check_start(self, sigma: float, *, name: str) -> None:
        """Raise ValueError where sampling would start at a level that was not trained."""
        lowest, highest = self.sigma_min * (1 - ROUNDING), self.sigma_max * (1 + ROUNDING)
        if not lowest <= sigma <= highest:
            raise ValueError(
                f"{name} starts at sigma {sigma:g}, the denoiser was trained at "
                f"{self.sigma_min:g} to {self.sigma_max:g}: choose a level within"
            )

    def check_end(self, sigma: float, *, setting: str) -> None:
        """Raise ValueError where the last level before 0 is lower than any that was trained."""
        if not sigma >= self.sigma_min * (1 - ROUNDING):
            raise ValueError(
                f"the last level before 0 is sigma {sigma:g}, the denoiser was trained at "
                f"{self.sigma_min:g} to {self.sigma_max:g}: give {setting}={self.sigma_min:g} or "
                f"more"
            )


@dataclass(frozen=True)
class Carry:
    """What a sampler keeps of each stream between two calls.

    Args:
        x: [B, Tp, Da] chunk, noisy by `sigma`.
        sigma: [B, Tp] noise level of each action; infinite where nothing is known of it.
    """

    x: Tensor
    sigma: Tensor

    def replace(self, **changes: Tensor) -> Self:
        """A copy with some entries changed."""
        return replace(self, **changes)


# (denoiser, target [B, Tp, Da], is_known [B, Tp, Da]) -> denoiser guided towards the target.
Towards = Callable[[Denoiser, Tensor, Tensor], Denoiser]


class Sampler(Protocol):
    """Turns a denoiser into chunks of actions, for a batch of streams at once.

    A sampler calls the denoiser with `B` rows, or with `n * B` rows in which the stream varies
    fastest.

    A sampler whose calls are always at the same levels may say so: `levels`, one number per call,
    for all actions of all streams. What depends on them alone is then computed beforehand.
    """

    space: ChunkSpace

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk; a constant, so that a call can be captured as one graph."""
        ...

    @property
    def start_nfe(self) -> int:
        """Denoiser calls of `start`."""
        ...

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams, from what they observe at first: cond [B, C]."""
        ...

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """Carry after `n_executed` actions were executed."""
        ...

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and the carry."""
        ...


@dataclass(frozen=True)
class ActionChunk:
    """A plan: actions for consecutive control ticks, in physical units.

    Args:
        actions: [Tp, Da].
        tick0: control tick that `actions[0]` is meant for.
        contract: meaning of the numbers.
    """

    actions: np.ndarray
    tick0: int
    contract: Contract


@dataclass(frozen=True)
class Request:
    """What a planner is asked for: a chunk whose first action is for control tick `tick`.

    Args:
        history: field name -> [To, ...], the last one seen at `tick`.
        tick: control tick of the newest observation.
        epoch: counts the resets of the loop; the first request of a new one starts a new stream,
            and a chunk of an older one is dropped.
        seed: of the noise of the epoch's stream.
        delay: control ticks, from `tick` on, whose actions are decided already: what the last
            chunk says of them is executed, whatever the new one says.
        is_urgent: whether chunks were late time and again, so that a coarser one that comes sooner
            is better.
        decided: [1 + delay, Da] what was commanded last, and the actions that are decided for
            `tick` and the ticks after it; None where nothing was commanded in the tick before, or
            where the plan ends before.
    """

    history: Mapping[str, np.ndarray]
    tick: int
    epoch: int = 0
    seed: int = 0
    delay: int = 0
    is_urgent: bool = False
    decided: np.ndarray | None = None


class PlannerError(RuntimeError):
    """A planner has no chunk this time; it may be asked again."""


class Planner(Protocol):
    """Plans from what was seen; called by one thread, one request at a time.

    What it remembers between two requests of an epoch (noise, the last chunk) is its own matter.
    """

    contract: Contract
    horizons: Horizons

    def __call__(self, request: Request) -> ActionChunk:
        """A chunk whose first action is for `request.tick`.

        Raises:
            PlannerError: there is none this time (a lost connection, a deadline).
        """
        ...


class Robot(Protocol):
    """A robot, or something that behaves like one. Times are seconds on the control clock.

    Neither `read` nor `command` waits for anything: they are called within a control tick.
    """

    contract: Contract
    limits: tuple[np.ndarray, np.ndarray]  # lowest and highest action [Da]
    is_real: bool  # whether it can do harm; then it is moved within known limits only

    def read(self) -> Observation:
        """The newest observation, stamped with the time it was captured."""
        ...

    def pose(self) -> np.ndarray | None:
        """Where it is [Da], as the absolute action that would keep it there; None if unknown."""
        ...

    def command(self, action: np.ndarray, tick: int) -> None:
        """Send one action [Da] for control tick `tick`."""
        ...

    def stop(self) -> None:
        """Hold still. May be called at any time, any number of times."""
        ...
