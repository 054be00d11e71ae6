"""Which episodes of a store meet conditions on what is known of them, such as `success==true`.

A condition is `key operator value`, and nothing else: no program is run. The key is one of the
episode's metadata (`setup.light` for an entry of an entry), or `episode` for its number, or `steps`
for its length. The value is JSON (`true`, `3`, `"left"`), or text as it stands. Operators::

    ==  !=             equal or not; where the key is missing, it is unequal to everything
    <   <=  >   >=     numbers, or texts by the alphabet; where the key is missing, not met
    ~                  the text holds the value, upper and lower case alike
"""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from data.snapshot import checked_episodes
from data.store import EpisodeStore

ORDERS: dict[str, Callable] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
PATTERN = re.compile(r"\s*([^\s=!<>~]+)\s*(==|!=|<=|>=|<|>|~)\s*(.*?)\s*", re.DOTALL)
MISSING = object()


@dataclass(frozen=True)
class Condition:
    """One condition on an episode.

    Args:
        key: of the metadata, or "episode" or "steps".
        operator: one of == != <= >= < > ~.
        value: compared with.
    """

    key: str
    operator: str
    value: object

    @classmethod
    def parse(cls, text: str) -> Self:
        """The condition that a text states.

        Raises:
            ValueError: it is none.
        """
        match = PATTERN.fullmatch(text)
        if match is None or not match[3]:
            raise ValueError(
                f"the condition {text!r} is not KEY OPERATOR VALUE, such as success==true, "
                f"seed<100 or operator~anna; operators are == != < <= > >= ~"
            )
        try:
            value = json.loads(match[3])
        except (ValueError, RecursionError):  # Too many brackets.
            value = match[3]
        return cls(match[1], match[2], value)

    def is_met(self, known: Mapping[str, object]) -> bool:
        """Whether what is known of an episode meets it.

        Raises:
            ValueError: the two sides have no order.
        """
        found = _entry(known, self.key)
        if self.operator in ("==", "!="):
            # JSON's true is not its 1.
            is_equal = found == self.value and isinstance(found, bool) == isinstance(
                self.value, bool
            )
            return is_equal == (self.operator == "==")
        if found is MISSING:
            return False
        if self.operator == "~":
            return str(self.value).lower() in str(found).lower()
        is_number = _is_number(found) and _is_number(self.value)
        if not is_number and not (isinstance(found, str) and isinstance(self.value, str)):
            raise ValueError(
                f"{self.key} is {found!r}, which has no order with {self.value!r}: compare by == "
                f"or !="
            )
        return ORDERS[self.operator](found, self.value)


def select(
    store: EpisodeStore,
    conditions: Sequence[str] = (),
    *,
    episodes: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """[n] int64 episodes that meet all conditions, ascending.

    Args:
        store: whose hidden episodes are left out.
        conditions: as texts; none are met by all.
        episodes: of which they are asked; None: all.

    Raises:
        StoreError: an episode that does not exist, damaged metadata.
        ValueError: a text that is no condition, or one without sense for an episode.
    """
    parsed = [Condition.parse(text) for text in conditions]
    chosen = np.arange(store.n_episodes) if episodes is None else episodes
    asked = checked_episodes(store.path, chosen, store.n_episodes)
    metadata = store.episode_metadata if parsed else []
    lengths = store.lengths_of(np.arange(store.n_episodes)).tolist()
    met = []
    for number in asked.tolist() if parsed else ():
        known = {**metadata[number], "episode": number, "steps": lengths[number]}
        try:
            met.append(all(condition.is_met(known) for condition in parsed))
        except ValueError as error:
            raise ValueError(f"episode {number} of {store.path}: {error}") from error
    return asked[np.array(met, bool)] if parsed else asked


def _entry(known: Mapping[str, object], key: str) -> object:
    """An entry by its key, or by the keys of entries in entries, with dots between."""
    if key in known:
        return known[key]
    first, _, rest = key.partition(".")
    inner = known.get(first)
    return _entry(inner, rest) if rest and isinstance(inner, Mapping) else MISSING


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
