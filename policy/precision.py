"""Which precision and form a training step is fastest in, by trying."""

import copy
import time
from dataclasses import dataclass

import torch

from data.dataset import WindowDataset
from data.types import Batch
from policy.forms import FORMS, learner
from policy.nets.compiled import CompileError
from policy.trainer import Trainer

PRECISIONS = ("auto", "fp32", "bf16")
TRIAL_STEPS = 6  # per choice; the first two warm up


@dataclass(frozen=True)
class Choice:
    """How a training step is computed.

    Args:
        precision: of the networks, "fp32" or "bf16".
        form: one of `policy.forms`.
        why: it was chosen.
    """

    precision: str
    form: str
    why: str


def pick_precision(
    precision: str,
    form: str,
    trainer: Trainer,
    dataset: WindowDataset,
    batch_size: int,
    *,
    is_resumed: bool = False,
) -> Choice:
    """What the trainer is going to use, which it is told.

    Args:
        precision: "fp32", "bf16", or "auto": whichever takes less time for a few steps on a copy.
        form: one of `policy.forms`, or "auto": plain, or another that takes less time; it is plain
            where a precision is given, so that nothing is tried.
        trainer: of form "plain".
        dataset: to try on.
        batch_size: windows of a step.
        is_resumed: whether a run goes on, which then does so as "plain" where its form is not to be
            had, such as on another machine.

    Raises:
        ValueError: no such precision or form, or not here.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, choose one of {', '.join(PRECISIONS)}")
    if form not in ("auto", *FORMS):
        raise ValueError(f"form is {form!r}, choose one of auto, {', '.join(FORMS)}")
    if precision == "bf16" and form == "fast":
        raise ValueError("form=fast computes in fp32: give precision=fp32 or auto, or form=plain")
    if form != "auto" and (fault := _fault(form, trainer)) is not None:
        if not is_resumed:
            raise ValueError(f"form={form} cannot be had here: {fault}") from fault
        print(f"note: going on with form=plain, and not bit for bit: {fault}")
        form = "plain"
    if precision != "auto":
        choice = Choice(precision, "plain" if form == "auto" else form, "as configured")
    else:
        choice = _fastest(form, trainer, dataset.batch(torch.arange(batch_size) % len(dataset)))
    trainer.use(choice.form, autocast=choice.precision == "bf16")
    return choice


def _fault(form: str, trainer: Trainer) -> Exception | None:
    """Why a form cannot be had, if so."""
    try:
        learner(trainer.policy, form)
    except (ValueError, CompileError) as error:
        return error
    return None


def _fastest(form: str, trainer: Trainer, batch: Batch) -> Choice:
    """The choice of the shortest step."""
    tried = {}
    for candidate in _candidates(trainer) if form == "auto" else (form,):
        for precision in ("fp32",) if candidate == "fast" else ("fp32", "bf16"):
            try:
                tried[precision, candidate] = _seconds_per_step(
                    trainer, batch, form=candidate, autocast=precision == "bf16"
                )
            except ValueError as error:  # Whether a step can be captured shows when it is.
                if form != "auto" or candidate == "plain":
                    raise
                print(f"form={candidate} in {precision} is left out: {error}")
    best = min(tried, key=lambda choice: tried[choice])
    # All processes take that of the first, or their gradients would be of different functions.
    best = list(tried)[round(trainer.ranks.agree(list(tried).index(best)))]
    times = [f"{1e3 * seconds:.1f} ms in {' '.join(choice)}" for choice, seconds in tried.items()]
    precision, form = best
    return Choice(precision, form, f"a step takes {', '.join(times)}")


def _candidates(trainer: Trainer) -> list[str]:
    """Forms that are worth a try: those that are ready in seconds."""
    if trainer.device.type == "cuda":
        return ["plain", "graph"]
    if not hasattr(trainer.policy.net, "training_form"):
        return ["plain"]
    fault = _fault("fast", trainer)
    # What one process cannot have none of them tries, or they would wait for each other's steps.
    if trainer.ranks.any(fault is not None):
        print(f"form=fast is left out: {fault or 'another process cannot have it'}")
        return ["plain"]
    return ["plain", "fast"]


def _seconds_per_step(trainer: Trainer, batch: Batch, *, form: str, autocast: bool) -> float:
    trial = copy.deepcopy(trainer)
    trial.use(form, autocast=autocast)
    times = []
    for _ in range(TRIAL_STEPS):
        start = time.perf_counter()
        trial.step(batch, 0.0)
        float(trial.loss_sum)  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[2:])
