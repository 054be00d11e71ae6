"""Which precision a training step is faster in, by trying."""

import copy
import time

import torch

from data.dataset import WindowDataset
from data.types import Batch
from policy.trainer import Trainer

PRECISIONS = ("auto", "fp32", "bf16")
TRIAL_STEPS = 6  # per precision; the first two warm up


def pick_precision(
    wanted: str, trainer: Trainer, dataset: WindowDataset, batch_size: int
) -> tuple[str, str]:
    """The precision of the networks, and why.

    Args:
        wanted: "fp32", "bf16", or "auto": whichever takes less time for a few steps on a copy.
        trainer: left as it is.
        dataset: to try on.
        batch_size: windows of a step.

    Raises:
        ValueError: no such precision.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"precision is {wanted!r}, choose one of {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return wanted, "as configured"
    batch = dataset.batch(torch.arange(batch_size) % len(dataset))
    fp32 = _seconds_per_step(trainer, batch, autocast=False)
    bf16 = _seconds_per_step(trainer, batch, autocast=True)
    why = f"a step takes {1e3 * fp32:.1f} ms in fp32, {1e3 * bf16:.1f} ms in bf16"
    return ("bf16" if bf16 < fp32 else "fp32"), why


def _seconds_per_step(trainer: Trainer, batch: Batch, *, autocast: bool) -> float:
    trial = copy.deepcopy(trainer)
    trial.autocast = autocast
    times = []
    for _ in range(TRIAL_STEPS):
        start = time.perf_counter()
        trial.step(batch, 0.0)
        float(trial.loss_sum)  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[2:])
