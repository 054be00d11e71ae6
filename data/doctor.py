"""What is wrong with a store, each finding with a code and what to do about it.

S001 error    not a readable zarr group          S006 error    a number that cannot be used
S002 error    no contract, or a broken one       S007 error    zero episodes
S003 error    episode ends missing or wrong      S008 warning  very short episodes
S004 error    a missing array                    S009 warning  an element that never changes
S005 error    shape, dtype or length is wrong    S010 warning  steps of an unfinished episode
S011 error    written by a newer program         S012 error    episode metadata is not JSON
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import zarr

from data.layout import (
    Source,
    StoreError,
    check_array,
    check_version,
    committed_ends,
    open_group,
    own_contract,
    stored_array,
)
from data.store import EpisodeStore
from data.types import Contract, ContractError, Field

SHORT = 8  # steps; fewer than what a policy usually executes between two plans

FIXES = {
    "S001": "give the folder of a zarr group, the one that holds data/ and meta/",
    "S002": "name a contract: store=NAME, as configs/store/push_t_human.yaml",
    "S003": "restore meta/episode_ends from a copy, or record again",
    "S004": "record the field, or take it out of the contract",
    "S005": "correct the contract, convert the array, or restore it from a copy",
    "S011": "upgrade cadence",
    "S012": "restore meta/episode_metadata from a copy; recording cannot go on without it",
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        code: what kind of thing, see the top of this file.
        severity: an error keeps the store from being used, a warning does not.
        message: what and where, with the value and the limit.
        fix: what to do.
    """

    code: str
    severity: Literal["error", "warning"]
    message: str
    fix: str


def examine_store(
    path: str | Path,
    contract: Contract | None = None,
    *,
    sources: Mapping[str, Source] | None = None,
) -> list[Finding]:
    """Everything that is wrong with a store; an empty list is a healthy one.

    Args:
        path: folder of the store.
        contract: meaning of the numbers, for a store without a contract of its own.
        sources: where such a store keeps fields whose arrays have other names.
    """
    path = Path(path)
    findings: list[Finding] = []
    group = _try(findings, "S001", lambda: open_group(path, "r"))
    if group is None:
        return findings
    _try(findings, "S011", lambda: check_version(path, group))
    if findings:
        return findings
    chosen = _contract(findings, path, group, contract)
    is_own = "contract" in group.attrs
    ends = _try(
        findings,
        "S003",
        lambda: committed_ends(path, stored_array(path, group, "meta/episode_ends"), is_own=is_own),
    )
    if ends is None or chosen is None:
        return findings
    for name, field in chosen.fields.items():
        source = Source(name) if is_own else (sources or {}).get(name, Source(name))
        _examine_array(findings, path, group, name, field, ends=ends, is_own=is_own, source=source)
    _examine_ends(findings, ends)
    if not any(finding.severity == "error" for finding in findings):
        store = EpisodeStore.open(path, contract=contract, sources=sources)
        _try(findings, "S012", lambda: store.episode_metadata)
        _examine_numbers(findings, store)
    return findings


def _contract(
    findings: list[Finding], path: Path, group: zarr.Group, given: Contract | None
) -> Contract | None:
    def find() -> Contract:
        own = own_contract(path, group)
        if own is not None and given is not None:
            given.check(own, this="the given contract", that=f"store {path}")
        chosen = given or own
        if chosen is None:
            raise StoreError(f"{path} has no contract: give one that says what its numbers mean")
        return chosen

    return _try(findings, "S002", find)


def _examine_array(
    findings: list[Finding],
    path: Path,
    group: zarr.Group,
    name: str,
    field: Field,
    *,
    ends: np.ndarray,
    is_own: bool,
    source: Source,
) -> None:
    array = _try(findings, "S004", lambda: stored_array(path, group, f"data/{source.key}"))
    if array is None:
        return
    n_steps = int(ends[-1]) if len(ends) else 0
    _try(
        findings,
        "S005",
        lambda: check_array(array, field, name=name, n_steps=n_steps, is_own=is_own, source=source),
    )
    if is_own and array.shape[0] > n_steps:
        findings.append(
            Finding(
                "S010",
                "warning",
                f"data/{name} has {array.shape[0] - n_steps} steps after the last whole episode",
                "nothing is lost: the next recording overwrites them",
            )
        )


def _examine_ends(findings: list[Finding], ends: np.ndarray) -> None:
    if not len(ends):
        findings.append(Finding("S007", "error", "the store has zero episodes", "record some"))
        return
    lengths = np.diff(ends, prepend=0)
    short = np.flatnonzero(lengths < SHORT)
    if len(short):
        findings.append(
            Finding(
                "S008",
                "warning",
                f"{len(short)} of {len(ends)} episodes have fewer than {SHORT} steps: "
                f"{_some(short)}",
                "an episode shorter than horizons.action is left out of training",
            )
        )


def _examine_numbers(findings: list[Finding], store: EpisodeStore) -> None:
    for name, field in store.contract.fields.items():
        low, high, bad = _extent(store, name)
        if bad:
            message, episodes = bad
            findings.append(
                Finding(
                    "S006",
                    "error",
                    f"{message}; episodes concerned: {_some(np.array(episodes))}",
                    "train without these episodes or record them again",
                )
            )
        elif not field.is_image and np.any(low == high):
            constant = np.flatnonzero(low == high)
            findings.append(
                Finding(
                    "S009",
                    "warning",
                    f"{name}: the elements {_some(constant)} never change",
                    "a policy learns nothing from them; leave them out if that is not meant",
                )
            )


def _extent(
    store: EpisodeStore, name: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, list[int]] | None]:
    """Lowest and highest value of each element; the first complaint and the bad episodes."""
    low, high = np.full(1, np.inf), np.full(1, -np.inf)
    complaint, bad = "", []
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    for episode, (start, end) in enumerate(zip(starts, store.episode_ends, strict=True)):
        try:
            values = store.read_rows(name, np.arange(start, end)).reshape(end - start, -1)
        except StoreError as error:
            complaint = complaint or str(error)
            bad.append(episode)
            continue
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    return low, high, (complaint, bad) if bad else None


def _try(findings: list[Finding], code: str, look: Callable[[], Result]) -> Result | None:
    """What `look` returns, or None and a finding where it raises."""
    try:
        return look()
    except (StoreError, ContractError) as error:
        findings.append(Finding(code, "error", str(error), FIXES[code]))
        return None


def _some(values: np.ndarray, limit: int = 10) -> str:
    """The first few of many numbers."""
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + rest
