"""What is wrong with a store, each finding with a code and what to do about it.

S001 error    not a readable zarr group          S016 warning  jitter, or another rate
S002 error    no contract, or a broken one       S017 warning  an element that is cut off
S003 error    episode ends missing or wrong      S018 warning  numbers beyond the limits
S004 error    a missing array                    S019 warning  jumps between two steps
S005 error    shape, dtype or length is wrong    S020 warning  copies of episodes
S006 error    a number that cannot be used       S021 warning  episodes that begin as others
S007 error    zero episodes                      S022 warning  training data in validation
S008 warning  very short episodes                S023 warning  pictures and state misaligned
S009 warning  an element that never changes      S024 warning  frozen pictures
S010 warning  steps of an unfinished episode     S025 warning  idle stretches
S011 error    written by a newer program         S026 warning  a unit that looks wrong
S012 error    episode metadata is not JSON       S027 warning  discrete that is not
S013 warning  episodes of an unusual length      S028 warning  a rotation that is none
S014 warning  time that does not advance         S029 warning  actions without effect
S015 warning  gaps in time

The store is read twice and pictures once, some episodes at a time, so memory does not grow with it
but for some numbers an episode. What counts as much or little is relative to the store itself, and
set so that a sound recording of a scripted expert has no findings. See `data.checks`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr

from data.checks.duplicates import Against, Duplicates
from data.checks.effect import Effect, Foretelling
from data.checks.episode import Check, Episode
from data.checks.finding import Finding, some
from data.checks.idle import Idle
from data.checks.jumps import Jumps
from data.checks.lengths import Lengths
from data.checks.limits import Limits, Saturation
from data.checks.meaning import Meaning
from data.checks.pictures import Pictures
from data.checks.reading import Reader
from data.checks.rotations import Rotations
from data.checks.scales import Scales
from data.checks.times import Times
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
from data.wording import counted

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
Progress = Callable[[int, int], object]  # steps looked at, of how many


@dataclass(frozen=True)
class Look:
    """What else to look at than the store itself.

    Args:
        is_held_out: of a number of episodes, which ones training would validate on, as bool [n].
        against: other stores that must not hold the same episodes.
        pictures: whether pictures are looked at; they take the most time.
    """

    is_held_out: Callable[[int], np.ndarray] = lambda n: np.zeros(n, bool)
    against: Sequence[EpisodeStore] = ()
    pictures: bool = True


def examine_store(
    path: str | Path,
    contract: Contract | None = None,
    *,
    sources: Mapping[str, Source] | None = None,
    look: Look | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Everything that is wrong with a store; an empty list is a healthy one.

    Args:
        path: folder of the store.
        contract: meaning of the numbers, for a store without a contract of its own.
        sources: where such a store keeps fields whose arrays have other names.
        look: what else to look at.
        progress: called after every episode.
    """
    path = Path(path)
    findings = _examine_layout(path, contract, sources)
    if any(finding.severity == "error" for finding in findings):
        return findings
    store = EpisodeStore.open(path, contract=contract, sources=sources)
    metadata = _try(findings, "S012", lambda: store.episode_metadata)
    if metadata is None:
        metadata = [{}] * store.n_episodes
    return findings + _examine_numbers(store, metadata, look or Look(), progress)


def _examine_layout(
    path: Path, contract: Contract | None, sources: Mapping[str, Source] | None
) -> list[Finding]:
    """Whether the store can be read at all: arrays, shapes, ends, contract."""
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
    if not len(ends):
        findings.append(Finding("S007", "error", "the store has zero episodes", "record some"))
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
                f"data/{name} has {counted(array.shape[0] - n_steps, 'step')} after the last whole "
                "episode",
                "nothing is lost: the next recording overwrites them",
            )
        )


def _examine_numbers(
    store: EpisodeStore, metadata: Sequence[Mapping], look: Look, progress: Progress | None
) -> list[Finding]:
    """Both passes over the episodes."""
    path, contract = store.path, store.contract
    reader = Reader(store, metadata)
    n_passes = 2 * store.n_steps
    scales, foretelling = Scales(contract), Foretelling(contract)
    names = [name for name in reader.names if name in contract.fields]
    duplicates = Duplicates(
        path,
        names,
        reader.episode,
        look.is_held_out(store.n_episodes),
        ranges=lambda: {name: scale.range for name, scale in scales.of.items()},
    )
    first: list[Check] = [
        Lengths(path),
        Times(path, contract),
        Limits(path, contract),
        duplicates,
        Rotations(path, contract),
        *(_against(store, other) for other in look.against),
    ]
    done = 0
    for episode in reader.episodes():
        scales.see(episode)
        foretelling.see(episode)
        for check in first:
            check.see(episode)
        done += episode.length
        if progress is not None:
            progress(done, n_passes)
    second: list[Check] = [
        Meaning(contract, scales),
        Saturation(contract, scales),
        Jumps(path, contract, scales),
        Pictures(path, contract, scales),
        Idle(path, contract, scales),
        Effect(path, contract, scales, foretelling),
    ]
    done = store.n_steps
    for episode in _with_motion(reader) if look.pictures else reader.episodes():
        for check in second:
            check.see(episode)
        done += episode.length
        if progress is not None:
            progress(done, n_passes)
    found = [*_unusable(reader), *scales.findings()]
    for check in (*first, *second):
        found += check.findings()
    return sorted(found, key=lambda finding: (finding.severity, finding.code))


def _with_motion(reader: Reader) -> Iterator[Episode]:
    for episode in reader.episodes():
        yield replace(episode, motion=reader.motion(episode.index))


def _against(store: EpisodeStore, other: EpisodeStore) -> Against:
    shared = [
        name
        for name, meaning in store.contract.fields.items()
        if not meaning.is_image
        and name in other.contract.fields
        and other.contract.fields[name].size == meaning.size
    ]
    theirs = Reader(other, other.episode_metadata, shared).episodes()
    return Against(store.path, other.path, shared, theirs)


def _unusable(reader: Reader) -> list[Finding]:
    """S006: what could not be read."""
    found = []
    for name, message in reader.complaints.first.items():
        episodes = sorted(set(reader.complaints.episodes[name]))
        found.append(
            Finding(
                "S006",
                "error",
                f"{message}; episodes concerned: {some(episodes)}",
                "train without these episodes or record them again",
                tuple(episodes),
            )
        )
    return found


def _try(findings: list[Finding], code: str, look: Callable[[], Result]) -> Result | None:
    """What `look` returns, or None and a finding where it raises."""
    try:
        return look()
    except (StoreError, ContractError) as error:
        findings.append(Finding(code, "error", str(error), FIXES[code]))
        return None
