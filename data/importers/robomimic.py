"""robomimic's HDF5: `data/demo_N` with `actions` and `obs/NAME`, `mask/NAME` lists of demos.

What the file says is taken from it: the control rate, and whether actions are absolute or deltas
(`control_delta` of robosuite's controllers before 1.5, `input_type` since). `actions_abs`, which
robomimic computes from deltas, is absolute: take.action=actions_abs. What it does not say (units,
rotations, and the kind of actions of other simulators) is asked for.

Shape legend: `L` steps of an episode.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.importers.arrays import ArraySpec, Selection, plain
from data.importers.hdf5 import attribute, dataset, names, open_hdf5, rows, spec_of, subgroup
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract

if TYPE_CHECKING:
    import h5py

MAX_DEMOS = 10**7  # that a mask may name; more is no list, but made to fill the memory
ACTIONS = ("actions", "actions_abs")
COPIED = ("operator", "seed", "ep_meta", "success")  # attributes of a demo worth keeping


class Robomimic:
    """A robomimic file, opened for reading.

    Args:
        path: of the .hdf5 file.
        fields: field name -> entries of `Field` that the user tells.
        take: which of the observations become fields, and of what the action is made.
        control_dt: time between two steps [s]; None: as the file says.
        task: in words; "" is the name of the environment.
        mask: name of a list of the file, such as "train"; None: all demos.

    Raises:
        ImporterError: the file cannot be read.
        ContractError: something must be told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Mapping[str, object] | Sequence[str] | None = None,
        control_dt: float | None = None,
        task: str = "",
        mask: str | None = None,
    ):
        self.path = Path(path)
        with open_hdf5(self.path) as file:
            group = subgroup(file, "data", path=self.path)
            self._masks = self._read_masks(file)
            self._demos = _in_order(names(group, path=self.path))
            if not self._demos:
                raise ImporterError(f"{self.path}: data holds no demonstrations")
            total = attribute(group, "total", path=self.path)
            if mask is not None:
                self._demos = self._masked(mask)
                total = None
            self._check_total(group, total)
            said = _environment(self.path, attribute(group, "env_args", path=self.path))
            arrays = self._arrays(subgroup(group, self._demos[0], path=self.path))
        chosen = take.get("action") if isinstance(take, Mapping) else None
        chosen = chosen.get("key") if isinstance(chosen, Mapping) else chosen
        is_absolute = chosen == "actions_abs"
        self._selection = Selection.of(
            self.path,
            arrays,
            take=take if take else [name for name in arrays if name not in ACTIONS],
            told=fields,
            control_dt=said.control_dt if control_dt is None else control_dt,
            task=task or said.task,
            said={"action": {"kind": "absolute"} if is_absolute else said.action},
            action="actions",
        )

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of demonstrations."""
        return len(self._demos)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Demonstrations from number `first` on, in the order of their numbers."""
        with open_hdf5(self.path) as file:
            group = subgroup(file, "data", path=self.path)
            for name in self._demos[first:]:
                yield self._episode(subgroup(group, name, path=self.path), name)

    def _episode(self, demo: "h5py.Group", name: str) -> ImportedEpisode:
        arrays = {key: self._array(demo, key) for key in self._selection.keys}
        lengths = {key: spec_of(array, path=self.path)[0] for key, array in arrays.items()}
        n_steps, said = max(lengths.values()), attribute(demo, "num_samples", path=self.path)
        where = f"{self.path}: {name}"
        if said is not None and plain(said) != n_steps:
            raise ImporterError(f"{where} says it has {plain(said)} steps, it has {n_steps}")
        self._selection.check_size(n_steps, where=where)
        fields = self._selection.episode(
            lambda key: rows(arrays[key], 0, lengths[key], path=self.path), where=where
        )
        return ImportedEpisode(fields, self._metadata(demo, name, n_steps))

    def _metadata(self, demo: "h5py.Group", name: str, n_steps: int) -> dict[str, object]:
        metadata: dict[str, object] = {"name": name}
        if masks := sorted(mask for mask, demos in self._masks.items() if name in demos):
            metadata["masks"] = masks
        for key in COPIED:
            value = plain(attribute(demo, key, path=self.path))
            if value is not None:
                metadata[key] = value
        if "rewards" in names(demo, path=self.path):
            # robosuite's sparse reward is 1 where the task is accomplished.
            array = dataset(demo, "rewards", path=self.path)
            length, spec = spec_of(array, path=self.path)
            if length == n_steps and spec.shape == ():
                rewards = rows(array, 0, length, path=self.path)
                if np.isin(rewards, (0, 1)).all():
                    metadata.setdefault("success", bool(rewards.any()))
        return metadata

    def _array(self, demo: "h5py.Group", key: str) -> "h5py.Dataset":
        if key in ACTIONS:
            return dataset(demo, key, path=self.path)
        return dataset(subgroup(demo, "obs", path=self.path), key, path=self.path)

    def _arrays(self, demo: "h5py.Group") -> dict[str, ArraySpec]:
        """Name -> array of the first demonstration, which all others must resemble."""
        if "obs" not in names(demo, path=self.path):
            raise ImporterError(
                f"{self.path} holds no observations: make them with robomimic's "
                f"dataset_states_to_obs.py first"
            )
        observed = names(subgroup(demo, "obs", path=self.path), path=self.path)
        acted = [name for name in ACTIONS if name in names(demo, path=self.path)]
        return {
            name: spec_of(self._array(demo, name), path=self.path)[1]
            for name in [*observed, *acted]
        }

    def _read_masks(self, file: "h5py.File") -> dict[str, set[str]]:
        """Name of a mask -> names of its demos."""
        if "mask" not in names(file, path=self.path):
            return {}
        group, masks = subgroup(file, "mask", path=self.path), {}
        for name in names(group, path=self.path):
            array = dataset(group, name, path=self.path)
            if array.size is None or array.size > MAX_DEMOS:
                raise ImporterError(
                    f"{self.path}: mask/{name} has the shape {array.shape}, no list"
                )
            try:
                masks[name] = {_text(entry) for entry in np.asarray(array).reshape(-1)}
            except (OSError, RuntimeError, ValueError, TypeError) as error:
                raise ImporterError(f"{self.path}: mask/{name} is damaged ({error})") from error
        return masks

    def _masked(self, mask: str) -> list[str]:
        if mask not in self._masks:
            raise ImporterError(
                f"{self.path} has no mask {mask!r}, it has {', '.join(sorted(self._masks)) or '-'}"
            )
        if unknown := sorted(self._masks[mask] - set(self._demos)):
            raise ImporterError(f"{self.path}: mask/{mask} names {unknown[0]!r}, which is missing")
        if not self._masks[mask]:
            raise ImporterError(f"{self.path}: mask/{mask} is empty")
        return [demo for demo in self._demos if demo in self._masks[mask]]

    def _check_total(self, group: "h5py.Group", total: object) -> None:
        """Raise ImporterError where the file says another number of steps than its demos."""
        said = [
            plain(attribute(subgroup(group, demo, path=self.path), "num_samples", path=self.path))
            for demo in self._demos
        ]
        counts = [n for n in said if isinstance(n, int)]
        if total is not None and len(counts) == len(said) and sum(counts) != plain(total):
            raise ImporterError(
                f"{self.path} says it has {plain(total)} steps, its demonstrations say "
                f"{sum(counts)}: some are missing; fetch the file again"
            )


class _Environment:
    """What `env_args` says of a data set."""

    def __init__(self, control_dt: float | None, action: dict[str, str], task: str):
        self.control_dt, self.action, self.task = control_dt, action, task


def _environment(path: Path, text: object) -> _Environment:
    if text is None:
        return _Environment(None, {}, "")
    try:
        entry = json.loads(_text(text))
        settings = entry.get("env_kwargs", {})
        rate = settings.get("control_freq")
        control_dt = 1 / float(rate) if rate else None
        kinds = set(_kinds(settings.get("controller_configs")))
        task = str(entry.get("env_name", ""))[:200]
    except (ValueError, AttributeError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise ImporterError(f"{path}: data's env_args cannot be read: {error}") from error
    if control_dt is not None and not 1e-6 < control_dt < 1e6:
        raise ImporterError(f"{path}: control_freq is {rate!r}, it must be a rate in Hz")
    action = {"kind": kinds.pop()} if len(kinds) == 1 else {}
    return _Environment(control_dt, action, task)


def _kinds(controllers: object) -> Iterator[str]:
    """Of each arm's controller that says it: "absolute" or "delta"."""
    if isinstance(controllers, list):
        for controller in controllers:
            yield from _kinds(controller)
    if not isinstance(controllers, dict):
        return
    if isinstance(controllers.get("control_delta"), bool):
        yield "delta" if controllers["control_delta"] else "absolute"
    elif controllers.get("input_type") in ("delta", "absolute"):
        yield controllers["input_type"]
    for part in (controllers.get("body_parts") or {}).values():
        yield from _kinds(part)


def _in_order(demos: list[str]) -> list[str]:
    """demo_2 before demo_10."""
    return sorted(demos, key=lambda name: ([int(n) for n in re.findall(r"\d{1,18}", name)], name))


def _text(entry: object) -> str:
    return entry.decode(errors="replace") if isinstance(entry, bytes) else str(entry)
