"""What a run wrote besides episodes: results, videos, figures, curves of metrics.

The files are read as they are, and may be a stranger's: what is not of the form that is expected is
left out and said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from policy.metrics import read_metrics
from policy.view_source import Chunks, plain

MOST_BYTES = 64 * 1024**2  # of a file of results that is read
MOST_POINTS = 2000  # of a curve
MOST_EPISODES = 2000  # of a table
MEDIA = {".mp4": "video/mp4", ".png": "image/png"}
COLUMNS = (
    "task",
    "seed",
    "success",
    "score",
    "total",
    "length",
    "ticks",
    "mode",
    "clipped",
    "fault",
)


@dataclass
class RunFacts:
    """What a run's folder holds.

    Args:
        facts: name -> number or text, of the whole run.
        table: rows of the episodes, as JSON.
        curves: name -> steps and values.
        media: videos and figures, that the page may ask for by their number.
        problems: what could not be read, and why.
    """

    facts: dict[str, object] = field(default_factory=dict)
    table: list[dict] = field(default_factory=list)
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    media: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.facts or self.table or self.curves or self.media or self.problems)

    def to_json(self) -> dict:
        """As the page takes it."""
        return {
            "facts": plain(self.facts),
            "table": plain(self.table),
            "curves": plain(self.curves),
            "media": [{"name": path.name, "type": MEDIA[path.suffix]} for path in self.media],
            "problems": self.problems,
        }


def read_run(path: Path) -> RunFacts:
    """What the folder of `cadence run`, evaluate, train or finetune holds."""
    run = RunFacts()
    for name in ("results.json", "run.json"):
        if (path / name).is_file():
            _read_results(path / name, run)
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        _read_curves(metrics, run)
    for place in (path / "videos", path):
        if place.is_dir():
            found = sorted(each for each in place.iterdir() if each.suffix in MEDIA)
            # A link may lead anywhere; what the folder holds itself is shown.
            run.media += [each for each in found if each.is_file() and not each.is_symlink()]
    return run


def _read_results(file: Path, run: RunFacts) -> None:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        results = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(results, Mapping):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"{file.name} cannot be read: {error}")
        return
    for name, value in results.items():
        if isinstance(value, str | int | float) or _is_interval(value):
            run.facts[str(name)] = value
    timing = results.get("timing")
    if isinstance(timing, Mapping):
        run.facts |= {
            str(key): each for key, each in timing.items() if isinstance(each, int | float)
        }
    episodes = results.get("episodes")
    if isinstance(episodes, list):
        rows = [each for each in episodes[:MOST_EPISODES] if isinstance(each, Mapping)]
        run.table += [{c: row[c] for c in COLUMNS if c in row} for row in rows]


def _is_interval(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(each, int | float) for each in value)


def _read_curves(file: Path, run: RunFacts) -> None:
    try:
        entries = read_metrics(file)
    except (OSError, ValueError) as error:
        run.problems.append(f"{file.name} cannot be read: {error}")
        return
    for entry in entries:
        for name, value in entry.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            steps, values = run.curves.setdefault(str(name), ([], []))
            steps.append(entry["step"])
            values.append(value)
    for name, (steps, values) in run.curves.items():
        kept = np.linspace(0, len(steps) - 1, min(len(steps), MOST_POINTS)).astype(int)
        run.curves[name] = ([steps[i] for i in kept], [values[i] for i in kept])


def read_chunks(path: Path, action_size: int, n_episodes: int) -> dict[int, Chunks]:
    """What was planned in the episodes that a run traced; see `policy.trace`.

    Args:
        path: folder of the run.
        action_size: Da.
        n_episodes: that there are.

    Raises:
        ValueError: a file is not what `policy.trace` writes.
    """
    found = {}
    for index in range(n_episodes):
        file = path / "chunks" / f"episode_{index:05d}.npz"
        if not file.is_file():
            continue
        try:
            with np.load(file, allow_pickle=False) as arrays:
                ticks, actions = np.asarray(arrays["ticks"]), np.asarray(arrays["actions"])
        except Exception as error:  # A damaged archive raises whatever its parts raise.
            raise ValueError(f"{file} is damaged ({error}): delete it, or run again") from error
        is_right = (
            ticks.ndim == 1
            and ticks.dtype.kind == "i"
            and actions.ndim == 3
            and actions.dtype.kind == "f"
            and len(ticks) == len(actions)
            and actions.shape[2] == action_size
        )
        if not is_right:
            raise ValueError(f"{file} does not hold chunks of {action_size} elements: delete it")
        found[index] = Chunks(ticks.tolist(), list(actions))
    return found
