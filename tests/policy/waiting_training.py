"""Training that waits at a point of the run until a signal comes, so that none comes too late.

    python waiting_training.py POINT STEP OVERRIDES...

POINT is "line", once the metrics of STEP are written, or "checkpoint", once that is. A process that
is not the first one goes on as it is, and waits for the first one where they meet.
"""

import sys
import time

from policy import train
from policy.interruption import Interruption
from policy.metrics import MetricsWriter
from policy.train_run import Run

LONGEST = 100.0  # [s]

point, awaited, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
signals: list[int] = []
write, save, request = MetricsWriter.write, Run.save, Interruption._request


def wait_at(step: int) -> None:
    """Wait for a signal where the run was to wait."""
    deadline = time.monotonic() + LONGEST
    while step == awaited and not signals:
        assert time.monotonic() < deadline, "no signal came"
        time.sleep(0.002)


def noted(self: Interruption, number: int, frame: object) -> None:
    signals.append(number)
    request(self, number, frame)  # pyright: ignore[reportArgumentType]


def write_and_wait(self: MetricsWriter, step: int, **values: float | int | str) -> None:
    write(self, step, **values)
    wait_at(step)


def save_and_wait(self: Run) -> object:
    saved = save(self)
    if self.is_first_rank:
        wait_at(self.trainer.step_count)
    return saved


Interruption._request = noted
if point == "line":
    MetricsWriter.write = write_and_wait
else:
    Run.save = save_and_wait  # pyright: ignore[reportAttributeAccessIssue]

if __name__ == "__main__":
    train.main()
