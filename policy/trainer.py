"""One optimiser step, and the state that makes a run resumable bit for bit.

Everything random is a function of (seed, step) alone: the order of windows of an epoch and the
noise of a step come from generators seeded anew, so there is no generator state to save, and a run
that was killed and resumed does what an uninterrupted one does.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from data.augment import FeatureNoise, Mirror
from data.dataset import WindowDataset
from data.types import Batch
from policy.diffusion.loss import DenoisingLoss
from policy.ema import EMA
from policy.model import DiffusionPolicy
from policy.state_tree import State

# Streams of random numbers that must not coincide.
ORDER, NOISE, VALIDATION, LAYERS = range(4)


def hashed(seed: int, *, purpose: int, count: int) -> int:
    """A seed for the `count`-th use of one purpose in a run; for the arguments see `seeded`."""
    # A hash, because the CPU's generator takes in the low 32 bits of a seed only.
    key = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little")


def seeded(seed: int, *, purpose: int, count: int, device: torch.device | str) -> torch.Generator:
    """A generator for the `count`-th use of one purpose in a run.

    Args:
        seed: of the run.
        purpose: ORDER, NOISE, VALIDATION or LAYERS.
        count: step or epoch.
        device: of the generator.
    """
    return torch.Generator(device).manual_seed(hashed(seed, purpose=purpose, count=count))


class WindowOrder:
    """Windows of each step: an epoch visits all in a new order and drops the last short batch.

    The permutation of the present epoch is kept; it follows from the seed and the epoch alone.

    Args:
        n_windows: size of the data set.
        batch_size: windows of one step.
        seed: of the run.

    Raises:
        ValueError: there are fewer windows than a batch needs.
    """

    def __init__(self, n_windows: int, batch_size: int, *, seed: int):
        if not 1 <= batch_size <= n_windows:
            raise ValueError(
                f"batch_size is {batch_size}, the data set has {n_windows} windows: "
                f"give 1..{n_windows}, or collect more demonstrations"
            )
        self.n_windows, self.batch_size, self.seed = n_windows, batch_size, seed
        self.steps_per_epoch = n_windows // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Windows [batch_size] of an optimiser step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = seeded(self.seed, purpose=ORDER, count=epoch, device="cpu")
            self._epoch, self._order = epoch, torch.randperm(self.n_windows, generator=generator)
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
            seed: of the run.
            autocast: whether networks run in bfloat16.
        """
        self.policy, self.optimizer, self.ema = policy, optimizer, ema
        self.loss, self.augment, self.symmetry = loss, augment, symmetry
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
            self.policy, batch, generator, augment=self.augment, penalty=self.policy.penalty
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step_count += 1
        self.ema.update(self.policy)
        self.loss_sum += loss.detach()

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
            loss = self._loss(model, dataset.batch(indices), generator, augment=FeatureNoise(0.0))
            total += float(loss) * len(indices)
        return total / n_windows

    def _loss(
        self,
        policy: DiffusionPolicy,
        batch: Batch,
        generator: torch.Generator,
        *,
        augment: FeatureNoise,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        features = augment(policy.features(batch.observation), generator)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.loss(
                policy,
                policy.chunk(batch.action),
                policy.encoder(features),
                is_pad=batch.is_pad,
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
