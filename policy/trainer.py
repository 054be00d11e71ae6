"""One optimiser step, and the state that makes a run resumable bit for bit.

Everything random is a function of (seed, step) alone: the order of windows of an epoch and the
noise of a step come from generators seeded anew, so there is no generator state to save, and a run
that was killed and resumed does what an uninterrupted one does.
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
from policy.model import DiffusionPolicy
from policy.state_tree import State

# (field name -> features [B, To, F], generator) -> features that are trained on
Augment = Callable[[Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]
# Streams of random numbers that must not coincide.
ORDER, NOISE, VALIDATION, LAYERS, GOALS = range(5)


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
        seed: int,
        autocast: bool,
    ):
        """A trainer at step 0.

        Args:
            policy: raw weights, on the training device.
            optimizer: over the policy's parameters.
            ema: moving average of the policy, whose weights are evaluated.
            loss: of chunks.
            augment: of observations in training.
            symmetry: of the task, used in training.
            crop: of pictures, used in training.
            draws: noisy chunks of each window in a step, with one encoding of the observation.
            seed: of the run.
            autocast: whether networks run in bfloat16.

        Raises:
            ValueError: `draws` is not positive.
        """
        if draws < 1:
            raise ValueError(f"draws is {draws}, it must be at least 1")
        self.policy, self.optimizer, self.ema = policy, optimizer, ema
        self.loss, self.augment, self.symmetry, self.crop = loss, augment, symmetry, crop
        self.draws = draws
        self.seed, self.autocast = seed, autocast
        self.device = next(policy.parameters()).device
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.step_count = 0
        # Sum of losses since the last metrics line, kept on the device so that no step waits.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def step(self, batch: Batch, rate_scale: float) -> None:
        """One optimiser step at a fraction of the configured learning rates."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_scale
        generator = seeded(self.seed, purpose=NOISE, count=self.step_count, device=self.device)
        if self.symmetry is not None:
            batch = self.symmetry(batch, generator)
        # Layers with chance of their own (dropout, routing) draw from torch's global generator.
        torch.manual_seed(hashed(self.seed, purpose=LAYERS, count=self.step_count))
        loss = self._loss(
            self.policy,
            batch,
            generator,
            augment=self._augmented,
            draws=self.draws,
            penalty=self.policy.penalty,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step_count += 1
        self.ema.update(self.policy)
        self.loss_sum += loss.detach()

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
        """Mean loss of the last `n_steps` steps, which are those since this was last asked."""
        mean = float(self.loss_sum) / n_steps
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
            loss = self._loss(model, batch, generator, augment=FeatureNoise(0.0))
            total += float(loss) * len(indices)
        return total / n_windows

    def _loss(
        self,
        policy: DiffusionPolicy,
        batch: Batch,
        generator: torch.Generator,
        *,
        augment: Augment,
        draws: int = 1,
        penalty: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        features = augment(policy.features(batch.observation), generator)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.loss(
                policy,
                policy.chunk(batch.action, batch.observation).repeat_interleave(draws, dim=0),
                policy.encoder(features).repeat_interleave(draws, dim=0),
                is_pad=batch.is_pad.repeat_interleave(draws, dim=0),
                preconditioning=policy.preconditioning,
                generator=generator,
                penalty=penalty,
            )

    def state(self) -> State:
        """All that `load_state` needs to go on bit for bit."""
        return {
            "policy": dict(self.policy.state_dict()),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
            "loss_sum": self.loss_sum,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `state`."""
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = int(state["step_count"])
        self.loss_sum = state["loss_sum"].to(self.device)
