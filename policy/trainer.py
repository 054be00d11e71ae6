"""One optimiser step, and the state that makes a run resumable bit for bit.

Everything random is a function of (seed, step) alone: the order of windows of an epoch and the
noise of a step come from generators seeded anew, so there is no generator state to save, and a run
that was killed and resumed does what an uninterrupted one does.

A batch may be learned in parts, one after another (`accumulate`) or by several processes (`ranks`):
its noise is that of the whole batch and its loss the mean over it, so that the step is the same up
to rounding. What layers draw by themselves (dropout) differs from part to part.

Nothing in a step waits for the device.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from data.augment import FeatureNoise, Mirror, RandomCrop
from data.dataset import WindowDataset
from data.types import Batch
from policy.diffusion.loss import DenoisingLoss
from policy.diffusion.noise import hashed, seeded
from policy.ema import EMA
from policy.forms import Captured, Learn, learner
from policy.lesson import Lesson
from policy.model import DiffusionPolicy
from policy.ranks import Ranks
from policy.state_tree import State
from policy.stopwatch import NoStopwatch, Stopwatch

# Streams of random numbers that must not coincide.
N_PURPOSES = 5
ORDER, NOISE, VALIDATION, LAYERS, GOALS = range(N_PURPOSES)


class WindowOrder:
    """Windows of each step: an epoch visits all in a new order and drops the last short batch.

    The permutation of the present epoch is kept; it follows from the seed and the epoch alone.

    Args:
        n_windows: of an epoch.
        batch_size: windows of one step.
        seed: of the run.
        visits: epoch -> [n_windows] the windows that it visits; None: 0 .. n_windows - 1.

    Raises:
        ValueError: there are fewer windows than a batch needs.
    """

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        *,
        seed: int,
        visits: Callable[[int], Tensor] | None = None,
    ):
        if not 1 <= batch_size <= n_windows:
            raise ValueError(
                f"batch_size is {batch_size}, the data set has {n_windows} windows: "
                f"give 1..{n_windows}, or collect more demonstrations"
            )
        self.n_windows, self.batch_size, self.seed = n_windows, batch_size, seed
        self.visits = visits
        self.steps_per_epoch = n_windows // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Windows [batch_size] of an optimiser step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = seeded(self.seed, purpose=ORDER, count=epoch, device="cpu")
            order = torch.randperm(self.n_windows, generator=generator)
            self._epoch = epoch
            self._order = order if self.visits is None else self.visits(epoch)[order]
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


class Trainer:
    """A policy in training: raw weights, their average, and the optimiser."""

    def __init__(
        self,
        policy: DiffusionPolicy,
        optimizer: torch.optim.Optimizer,
        *,
        ema: EMA,
        loss: DenoisingLoss,
        augment: FeatureNoise,
        symmetry: Mirror | None = None,
        crop: RandomCrop | None = None,
        draws: int = 1,
        accumulate: int = 1,
        ranks: Ranks | None = None,
        seed: int,
        autocast: bool,
    ):
        """A trainer at step 0, whose form is "plain".

        Args:
            policy: raw weights, on the training device.
            optimizer: over the policy's parameters.
            ema: moving average of the policy, whose weights are evaluated.
            loss: of chunks.
            augment: of observations in training.
            symmetry: of the task, used in training.
            crop: of pictures, used in training.
            draws: noisy chunks of each window in a step, with one encoding of the observation.
            accumulate: parts of a batch (of a process) that are learned one after another.
            ranks: this process among others, which learn the other parts.
            seed: of the run.
            autocast: whether networks run in bfloat16.

        Raises:
            ValueError: `draws` or `accumulate` is not positive.
        """
        for name, value in (("draws", draws), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        self.policy, self.optimizer, self.ema = policy, optimizer, ema
        self.loss, self.augment, self.symmetry, self.crop = loss, augment, symmetry, crop
        self.draws, self.accumulate = draws, accumulate
        self.ranks = Ranks() if ranks is None else ranks
        self.seed, self.autocast = seed, autocast
        self.device = next(policy.parameters()).device
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.step_count = 0
        # Sum of losses since the last metrics line, kept on the device so that no step waits.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.watch: Stopwatch = NoStopwatch()
        self.use("plain")

    def use(self, form: str, *, autocast: bool | None = None) -> None:
        """Learn in a form (`policy.forms`) from now on, and in a precision where one is given.

        Raises:
            ValueError: there is no such form here.
            policy.nets.compiled.CompileError: it needs a C++ compiler and there is none.
        """
        self._learner, self.form = learner(self.policy, form), form
        self.autocast = self.autocast if autocast is None else autocast
        self._captured: Learn | None = None

    def step(self, batch: Batch, rate_scale: float) -> None:
        """One optimiser step at a fraction of the configured learning rates.

        Args:
            batch: all of it, in every process.
            rate_scale: of the rates.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_scale
        with self.watch.part("noise"):
            lesson = self._lesson(batch)
        n_parts = self.accumulate * self.ranks.size
        first = self.ranks.rank * self.accumulate
        with self.watch.part("optimiser"):
            # A captured graph adds to gradients where they are.
            self.optimizer.zero_grad(set_to_none=self._captured is None)
        for number in range(first, first + self.accumulate):
            # Layers with chance of their own (dropout, routing) draw from torch's global generator.
            purpose = LAYERS + N_PURPOSES * number
            self._seed_layers(hashed(self.seed, purpose=purpose, count=self.step_count))
            self.loss_sum += self._learn(lesson.part(number, n_parts))
        with self.watch.part("ranks"):
            self.ranks.sum_gradients(self.policy)
        with self.watch.part("optimiser"):
            self.optimizer.step()
        self.step_count += 1
        with self.watch.part("average"):
            self.ema.update(self.policy)

    def _seed_layers(self, seed: int) -> None:
        """What `torch.manual_seed` does, less the kinds of devices that are not trained on."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def _lesson(self, batch: Batch) -> Lesson:
        generator = seeded(self.seed, purpose=NOISE, count=self.step_count, device=self.device)
        if self.symmetry is not None:
            batch = self.symmetry(batch, generator)
        return Lesson.of(
            self.policy, self.loss, batch, generator, augment=self._augmented, draws=self.draws
        )

    def _learn(self, part: Lesson) -> Tensor:
        """Add the gradients of a part; returns its loss."""
        if self.form != "graph":
            return self._forward_and_backward(part)
        with self.watch.part("forward and backward"):
            if self._captured is None:
                parameters = list(self.policy.parameters())
                self._captured = Captured(self._forward_and_backward, part, parameters)
            return self._captured(part)

    def _forward_and_backward(self, part: Lesson) -> Tensor:
        with self.watch.part("forward"):
            loss = part.loss(self._learner, with_penalty=True, autocast=self.autocast)
        with self.watch.part("backward"):
            loss.backward()
        return loss.detach()

    def _augmented(
        self, features: Mapping[str, Tensor], generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Features as they are trained on."""
        features = self.augment(features, generator)
        return features if self.crop is None else self.crop(features, generator)

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(p.isfinite().all()) for p in self.policy.parameters())

    def mean_loss(self, n_steps: int) -> float:
        """Mean loss of the last `n_steps` steps, which are those since this was last asked.

        All processes have to ask.
        """
        mean = float(self.ranks.sum(self.loss_sum)) / n_steps
        self.loss_sum.zero_()
        return mean

    @torch.no_grad()
    def validate(self, dataset: WindowDataset, *, batch_size: int) -> float:
        """Loss of the averaged weights on held-out windows, with the same noise every time."""
        total, n_windows = 0.0, len(dataset)
        model = self.ema.module
        for number, indices in enumerate(torch.arange(n_windows).split(batch_size)):
            generator = seeded(self.seed, purpose=VALIDATION, count=number, device=self.device)
            batch = dataset.batch(indices, generator)
            lesson = Lesson.of(model, self.loss, batch, generator, augment=FeatureNoise(0.0))
            total += float(lesson.loss(model, autocast=self.autocast)) * len(indices)
        return total / n_windows

    def state(self) -> State:
        """All that `load_state` needs to go on bit for bit; all processes have to ask."""
        return {
            "policy": dict(self.policy.state_dict()),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
            "loss_sum": self.ranks.sum(self.loss_sum),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `state`."""
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = int(state["step_count"])
        # The sum over all processes, which one of them carries on.
        self.loss_sum = state["loss_sum"].to(self.device) * (self.ranks.rank == 0)
