"""Who takes part in `cadence bench latency`: groups of rows that a config of `lineup` lists.

A group shares a network and a number of threads, and its rows take turns with the peers, which make
a chunk in 16 and in 8 calls, and with what measures the floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from policy.benches.floor import BYTES

PEERS = (16, 8)  # calls of a chunk
ENGINES = ("eager", "fused", "compile", "aot", "cuda_graph")


@dataclass(frozen=True)
class Row:
    """One way to make a chunk.

    Args:
        sampler: name of its config.
        set: settings of the sampler that differ from its file.
        engine: how a tick is computed, one of `ENGINES`.
        weights: what the network's weights are stored as.
        action: executed actions of a chunk; None: as `horizons.action` says.
    """

    sampler: str
    set: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "eager"
    weights: str = "fp32"
    action: int | None = None

    def __post_init__(self):
        for name, value, choices in (
            ("engine", self.engine, ENGINES),
            ("weights", self.weights, tuple(BYTES)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, choose one of {', '.join(choices)}")
        if not isinstance(self.set, Mapping):
            raise ValueError(f"set is {self.set!r}, it must be settings such as {{n_steps: 2}}")
        if self.action is not None and (type(self.action) is not int or self.action < 1):
            raise ValueError(f"action is {self.action!r}, it must be a whole number from 1 on")

    @property
    def name(self) -> str:
        """The row in a few words."""
        settings = "".join(f" {key}={value}" for key, value in flat(self.set))
        action = "" if self.action is None else f", {self.action} executed"
        return f"{self.sampler}{settings}, {self.how}{action}"

    @property
    def how(self) -> str:
        """Engine and weights."""
        return f"{self.engine} {self.weights}"


@dataclass(frozen=True)
class Group:
    """Rows that take turns.

    Args:
        net: name of its config.
        rows: ways to make a chunk, at least one, no two the same.
        threads: of the network on the CPU; None: all cores.
        peers: calls of the peers.
    """

    net: str
    rows: tuple[Row, ...]
    threads: int | None = None
    peers: tuple[int, ...] = PEERS

    def __post_init__(self):
        if not self.rows:
            raise ValueError(
                f"the group of {self.net} has no rows: give rows=[{{sampler: ddim_8}}]"
            )
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the group of {self.net} has rows that are the same: {twice}")
        for name, counts in (("threads", (self.threads,)), ("peers", self.peers)):
            if any(n is not None and (type(n) is not int or n < 1) for n in counts):
                raise ValueError(f"{name} is {counts}, give whole numbers from 1 on")


T = TypeVar("T")


def read_groups(groups: object) -> list[Group]:
    """The groups of a config, given as plain lists and dicts.

    Raises:
        ValueError: there are none, or one has an entry that is unknown, missing or impossible.
    """
    if not isinstance(groups, list) or not groups:
        raise ValueError(
            "lineup.groups is empty: give lineup.groups=[{net: unet1d_small, rows: [{sampler: "
            "ddim_8}]}]"
        )
    return [_group(entry) for entry in groups]


def _group(entry: object) -> Group:
    if not isinstance(entry, Mapping):
        return _made(Group, entry, needs="net")
    lists = {name: entry.get(name, default) for name, default in (("rows", []), ("peers", PEERS))}
    for name, given in lists.items():
        if not isinstance(given, list | tuple):
            raise ValueError(f"{name} is {given!r}, it must be a list")
    rows = tuple(_made(Row, row, needs="sampler") for row in lists["rows"])
    return _made(Group, {**entry, "rows": rows, "peers": tuple(lists["peers"])}, needs="net")


def _made(kind: type[T], entry: object, *, needs: str) -> T:
    known = list(kind.__dataclass_fields__)  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(entry, Mapping) or set(entry) - set(known) or not entry.get(needs):
        name = kind.__name__.lower()
        raise ValueError(
            f"a {name} of the line-up is {entry}: it needs {needs}, and may have {known}"
        )
    return kind(**entry)


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested settings as pairs ("a.b", value)."""
    pairs: list[tuple[str, object]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
