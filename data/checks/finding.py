"""A finding: what is wrong, in which episodes, and what to do about it."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from data.wording import agree, counted

SHOWN = 10  # Numbers that a message spells out.
LISTED = 50  # Spans of episodes that a command can name and still be read.


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        code: what kind of thing, see the top of `data.doctor`.
        severity: an error keeps the store from being used, a warning does not.
        message: what and where, with the value and the limit.
        fix: what to do.
        episodes: concerned, ascending; empty where it is no matter of single episodes.
    """

    code: str
    severity: Literal["error", "warning"]
    message: str
    fix: str
    episodes: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """JSON form, with all episodes."""
        return asdict(self) | {"episodes": list(self.episodes), "n_episodes": len(self.episodes)}


def warning(code: str, message: str, fix: str, episodes: Sequence[int] = ()) -> Finding:
    """A finding that does not keep the store from being used."""
    return Finding(code, "warning", message, fix, tuple(sorted({int(e) for e in episodes})))


def some(values: Sequence | np.ndarray, limit: int = SHOWN) -> str:
    """The first few of many numbers or words."""
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + rest


def in_episodes(episodes: Sequence[int]) -> str:
    """Which episodes, in words."""
    found = sorted({int(e) for e in episodes})
    return f"in {counted(len(found), 'episode')}: {some(found)}"


def elements(indices: Sequence[int] | np.ndarray, one: str, many: str) -> str:
    """Which elements of a field do something, in words: "element 3 is", "elements 3, 4 are".

    Args:
        indices: of the elements.
        one: the verb for one of them.
        many: the verb for several.
    """
    n = len(indices)
    return f"{agree(n, 'element', 'elements')} {some(indices)} {agree(n, one, many)}"


def viewing(path: object, episode: int) -> str:
    """The command that shows an episode of a store."""
    return f"cadence view {shlex.quote(str(path))} episode={int(episode)}"


def deletion(path: object, episodes: Sequence[int]) -> str:
    """The command that leaves episodes of a store out."""
    spans: list[list[int]] = []
    for episode in sorted({int(e) for e in episodes}):
        if spans and episode == spans[-1][1] + 1:
            spans[-1][1] = episode
        else:
            spans.append([episode, episode])
    path = shlex.quote(str(path))
    if len(spans) > LISTED:
        return f"cadence edit {path} do=hide episodes=[...], those that json=true lists"
    listed = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"cadence edit {path} do=hide 'episodes=[{listed}]'"
