"""Metrics of a run: append-only JSON lines, one object a line, the training step first.

The content is a function of the run alone (no wall-clock time), so an interrupted run that resumes
writes the same file as one that was never interrupted: `truncate_after` removes what the resumed
run is going to write again. A line torn by a crash can only be the last one and is dropped.
"""

import json
import math
from pathlib import Path
from typing import Self

from policy.durable import write_text


class MetricsWriter:
    """Appends lines to a metrics file; each line reaches the operating system before `write` ends.

    Args:
        path: the JSON-lines file, made with its folders if missing, continued if there.
        tensorboard: also write event files into the folder `tensorboard` beside it.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
        ValueError: the file exists and a line other than the last is not JSON.
    """

    def __init__(self, path: str | Path, *, tensorboard: bool = False):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._events = _EventWriter(self.path.parent / "tensorboard") if tensorboard else None
        if self.path.exists():
            _rewrite(self.path, read_metrics(self.path))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, **values: float | int | str) -> None:
        """Append one line.

        Args:
            step: training steps done so far.
            values: name -> finite number or short text.

        Raises:
            ValueError: a number is not finite, which JSON cannot hold and a run should not survive.
        """
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"the metric {name!r} is {value} at step {step}: training diverged, "
                    f"lower the learning rate or look at the data with `cadence doctor`"
                )
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        if self._events:
            self._events.write(step, values)

    def truncate_after(self, step: int) -> None:
        """Drop all lines of later steps than `step`, for a run that resumes after that step."""
        self._file.close()
        kept = [entry for entry in read_metrics(self.path) if entry["step"] <= step]
        _rewrite(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        if self._events:
            self._events.truncate_after(step)

    def close(self) -> None:
        """Close the files; nothing is written afterwards."""
        self._file.close()
        if self._events:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict]:
    """All whole lines of a metrics file, in order; a torn last line is left out.

    Raises:
        ValueError: a line other than the last is not a JSON object with a step.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is not None:
            entries.append(entry)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number} is not a line of metrics: {line[:60]!r}")
    return entries


class _EventWriter:
    """Scalars as TensorBoard event files."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                "TensorBoard is not installed: pip install -e '.[tensorboard]', "
                "or leave it off, metrics.jsonl holds the same numbers"
            ) from error
        self._open = SummaryWriter
        self._folder = str(folder)
        self._writer = SummaryWriter(self._folder)

    def write(self, step: int, values: dict) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


def _line(entry: dict) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _parse(line: str) -> dict | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry else None


def _rewrite(path: Path, entries: list[dict]) -> None:
    """Replace the file in one move, so that a crash leaves the old or the new one."""
    write_text(path, "".join(_line(entry) for entry in entries))
