"""What a training run writes of itself while it learns: losses, speed, where its time goes."""

import math
from contextlib import ExitStack
from typing import Self

from policy.metrics import MetricsWriter
from policy.stopwatch import NoStopwatch, Stopwatch, table
from policy.train_run import Run

WARM_UP = 3  # steps that are left out of where the time goes
# Parts of a step that are no overhead.
WORK = ("forward", "backward", "forward and backward", "optimiser")


class Log:
    """The lines of a run; of several processes the first one writes. To be used in a `with`.

    Args:
        run: that is logged.

    Attributes:
        watch: counts where the time goes, if that is wanted (`profile`).
    """

    def __init__(self, run: Run):
        self._run, self._stack = run, ExitStack()
        is_profiled = run.cfg.get("profile", False) and run.is_first_rank
        self.watch = Stopwatch(run.trainer.device) if is_profiled else NoStopwatch()
        self._first = run.trainer.step_count + WARM_UP

    def __enter__(self) -> Self:
        run = self._run
        if run.is_first_rank:
            tensorboard = run.cfg.tensorboard
            metrics = MetricsWriter(run.out / "metrics.jsonl", tensorboard=tensorboard)
            self._metrics = self._stack.enter_context(metrics)
            self._timing = self._stack.enter_context(MetricsWriter(run.out / "timing.jsonl"))
            # A run that was killed wrote lines of steps after its last checkpoint.
            self._metrics.truncate_after(run.trainer.step_count)
            self._timing.truncate_after(run.trainer.step_count)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()
        n_steps = self._run.trainer.step_count - self._first
        if isinstance(self.watch, NoStopwatch):
            return
        if n_steps > 0:
            print(f"\n{table(self.watch.seconds(), n_steps=n_steps, work=WORK)}")
        else:
            print(f"no profile: it leaves out the first {WARM_UP} steps, and there were no more")

    def loss(self) -> float:
        """Write the mean loss since the last line; returns it. All processes have to ask.

        Raises:
            ValueError: the loss is not finite.
        """
        run, trainer, step = self._run, self._run.trainer, self._run.trainer.step_count
        loss = trainer.mean_loss(run.cfg.log_every)  # over the steps since the last line
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step}: lower optimizer.lr, or look for outliers with "
                f"cadence doctor {run.store.path}; checkpoints so far are in {run.out}"
            )
        if run.is_first_rank:
            self._metrics.write(step, loss=loss, lr=trainer.optimizer.param_groups[0]["lr"])
            seconds, rate = round(run.seconds, 3), step / run.seconds
            self._timing.write(step, seconds=seconds, steps_per_second=rate)
        return loss

    def validate(self) -> None:
        """Write the loss of the averaged weights on held-out windows, if there are any."""
        run = self._run
        if run.holdout is not None and run.is_first_rank:
            loss = run.trainer.validate(run.holdout, batch_size=run.cfg.batch_size)
            self._metrics.write(run.trainer.step_count, val_loss=loss)

    def count(self) -> None:
        """A step is over."""
        if self._run.trainer.step_count == self._first:
            self.watch.restart()
