"""Episodes that are copies of each other, or begin as one; within a store and between two.

Copies are found by their hashes, pictures left out, so little is kept of each episode; those with
a little noise by `data.checks.near_copies`. What begins alike is found by the hash of the first
steps and then compared number by number.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.checks.episode import Episode
from data.checks.finding import Finding, deletion, some, warning
from data.checks.near_copies import NEAR, NearCopies
from data.wording import agree, counted

PREFIX = 16  # steps whose equality makes two episodes worth comparing
COMMON = 0.5  # of the shorter episode that two copies have in common at least
MOST_PAIRS = 1000  # that are compared; more begin alike by design
DIFFERENT = 0.3  # share of different starts from which on an equal start means something

Read = Callable[[int], Episode]


@dataclass(frozen=True)
class Marks:
    """What tells an episode from others.

    Args:
        whole: hash of all its numbers.
        prefix: hash of the first steps; None where nothing moves in them, or it is too short.
        start: hash of the first observation.
        origin: task and seed, None where they are not told.
    """

    whole: bytes
    prefix: bytes | None
    start: bytes
    origin: tuple[str, int] | None


def marks_of(episode: Episode, names: Sequence[str]) -> Marks:
    """The marks of an episode by the given fields."""
    fields = {name: episode.fields[name] for name in sorted(names)}
    first = [values[:PREFIX] for values in fields.values()]
    moves = any((values != values[:1]).any() for values in first)
    seed = episode.metadata.get("seed")
    is_told = isinstance(seed, int) and not isinstance(seed, bool)
    observed = [values[:1] for name, values in fields.items() if name != "action"]
    return Marks(
        whole=_hash(fields.values()),
        prefix=_hash(first) if moves and episode.length > PREFIX else None,
        start=_hash(observed),
        origin=(str(episode.metadata.get("task", "")), int(str(seed))) if is_told else None,
    )


def _hash(arrays: Iterable[np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for values in arrays:
        digest.update(f"{values.shape}".encode())
        digest.update(np.ascontiguousarray(values, "<f8").data)
    return digest.digest()


class Duplicates:
    """S020 copies, S021 episodes that begin as another one, S022 copies on both sides of a split.

    Args:
        path: of the store.
        names: of the fields that are compared.
        read: reads an episode again.
        is_held_out: [n_episodes] bool, the episodes that training would validate on.
        ranges: field name -> [D] range of each element over the store; asked for at the end.
    """

    def __init__(
        self,
        path: object,
        names: Sequence[str],
        read: Read,
        is_held_out: np.ndarray,
        *,
        ranges: Callable[[], Mapping[str, np.ndarray]],
    ):
        self._path, self._names, self._read = path, names, read
        self._near = NearCopies(names, ranges)
        self._is_held_out = is_held_out
        self._first_whole: dict[bytes, int] = {}
        self._first_prefix: dict[bytes, int] = {}
        self._copies: list[tuple[int, int]] = []
        self._alike: list[tuple[int, int]] = []
        self._split: dict[int, str] = {}  # as `cadence edit do=split` and importers write it

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        if isinstance(part := episode.metadata.get("split"), str):
            self._split[episode.index] = part
        marks = marks_of(episode, self._names)
        first = self._first_whole.setdefault(marks.whole, episode.index)
        if first != episode.index:
            self._copies.append((first, episode.index))
            return
        self._near.see(episode)
        if marks.prefix is not None:
            earlier = self._first_prefix.setdefault(marks.prefix, episode.index)
            if earlier != episode.index:
                self._alike.append((earlier, episode.index))

    def findings(self) -> list[Finding]:
        """What was seen twice."""
        begin = [pair for pair in self._alike[:MOST_PAIRS] if self._common(*pair) >= COMMON]
        near = self._near.pairs(self._read)
        begin = [pair for pair in begin if pair not in near]
        return [
            *self._same(),
            *self._nearly_same(near),
            *self._begun(begin),
            *self._leaks([*near, *begin]),
        ]

    def _common(self, earlier: int, later: int) -> float:
        """Share of the shorter episode over which two are equal from the start."""
        a, b = self._read(earlier).fields, self._read(later).fields
        n = min(len(a["action"]), len(b["action"]))
        is_same = np.ones(n, bool)
        for name in self._names:
            is_same &= (a[name][:n] == b[name][:n]).all(axis=1)
        return (n if is_same.all() else int(np.argmin(is_same))) / n

    def _same(self) -> list[Finding]:
        if not self._copies:
            return []
        later = [pair[1] for pair in self._copies]
        pairs = some([f"{b} is {a}" for a, b in self._copies])
        message = (
            f"{counted(len(later), 'episode')} {agree(len(later), 'is a copy', 'are copies')} of "
            f"earlier ones, number by number: {pairs}"
        )
        return [warning("S020", message, deletion(self._path, later), later)]

    def _nearly_same(self, pairs: list[tuple[int, int]]) -> list[Finding]:
        if not pairs:
            return []
        later = [pair[1] for pair in pairs]
        message = (
            f"{counted(len(later), 'episode')} {agree(len(later), 'is a copy', 'are copies')} of "
            f"earlier ones, but for noise of less than {NEAR:.2%} of each element's range: "
            f"{some([f'{b} is {a}' for a, b in pairs])}"
        )
        return [warning("S020", message, deletion(self._path, later), later)]

    def _begun(self, pairs: list[tuple[int, int]]) -> list[Finding]:
        if not pairs:
            return []
        later = [pair[1] for pair in pairs]
        beginning = some([f"{b} begins as {a}" for a, b in pairs])
        message = (
            f"{counted(len(later), 'episode')} {agree(len(later), 'equals', 'equal')} earlier ones "
            f"for half of the steps or more, and not after that: {beginning}"
        )
        fix = "is one an unfinished recording of the other? leave out: "
        return [warning("S021", message, fix + deletion(self._path, later), later)]

    def _leaks(self, pairs: list[tuple[int, int]]) -> list[Finding]:
        crossing = [(a, b) for a, b in [*self._copies, *pairs] if self._is_parted(a, b)]
        if not crossing:
            return []
        concerned = [episode for pair in crossing for episode in pair]
        message = (
            f"copies lie on both sides of the split into training and validation: "
            f"{some([f'{a} and {b}' for a, b in crossing])}; the validation loss is too good"
        )
        later = [b for _, b in crossing]
        return [warning("S022", message, deletion(self._path, later), concerned)]

    def _is_parted(self, a: int, b: int) -> bool:
        """Whether one trains and the other judges, by their labels or else by training's split."""
        if a in self._split and b in self._split:
            return self._split[a] != self._split[b]
        return bool(self._is_held_out[a] != self._is_held_out[b])


class Against:
    """S022 episodes that another store has as well: copies, seeds of the same task, starts."""

    def __init__(
        self, path: object, other: object, names: Sequence[str], theirs: Iterable[Episode]
    ):
        self._path, self._other, self._names = path, other, names
        self._whole: dict[bytes, int] = {}
        self._start: dict[bytes, int] = {}
        self._origin: dict[tuple[str, int], int] = {}
        n_theirs = 0
        for episode in theirs:
            n_theirs += 1
            marks = marks_of(episode, names)
            self._whole.setdefault(marks.whole, episode.index)
            self._start.setdefault(marks.start, episode.index)
            if marks.origin is not None:
                self._origin.setdefault(marks.origin, episode.index)
        if len(self._start) < DIFFERENT * n_theirs:  # They begin alike anyway, at a home pose.
            self._start = {}
        self._pairs: dict[str, list[tuple[int, int]]] = {"copies": [], "seeds": [], "starts": []}

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        marks = marks_of(episode, self._names)
        if marks.whole in self._whole:
            self._pairs["copies"].append((episode.index, self._whole[marks.whole]))
        elif marks.origin is not None and marks.origin in self._origin:
            self._pairs["seeds"].append((episode.index, self._origin[marks.origin]))
        elif marks.start in self._start:
            self._pairs["starts"].append((episode.index, self._start[marks.start]))

    def findings(self) -> list[Finding]:
        """What both stores have."""
        found = []
        for what, one, many in (
            ("copies", "is a copy, number by number,", "are copies, number by number,"),
            ("seeds", "is of the task and seed", "are of the task and seed"),
            ("starts", "begins with an observation", "begin with an observation"),
        ):
            pairs = self._pairs[what]
            if not pairs:
                continue
            mine = [a for a, _ in pairs]
            message = (
                f"{counted(len(mine), 'episode')} {agree(len(mine), one, many)} of episodes of "
                f"{self._other}: "
                f"{some([f'{a} as {b} there' for a, b in pairs])}"
            )
            fix = "where one is to judge what the other taught, leave out: "
            found.append(warning("S022", message, fix + deletion(self._path, mine), mine))
        return found
