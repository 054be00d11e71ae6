"""Which features of a LeRobot data set become which fields, and what these mean."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.importers.arrays import check_name, told_source
from data.importers.importer import ImporterError, asked_of, told_fields
from data.importers.lerobot_meta import LeRobotMeta
from data.layout import Source, StoreError
from data.lerobot_layout import NUMBERS, Feature, field_name
from data.types import Contract, ContractError, Field

SUCCESS = "next.success"
NAMED_TASKS = 20  # more are not spelled out in the contract
Take = Mapping[str, object] | Sequence[str] | None


@dataclass(frozen=True)
class Choice:
    """What of a data set is imported.

    Args:
        contract: meaning of the fields.
        sources: field name -> feature, or elements of one.
        features: key -> feature, of those that are read.
        left_out: key of each other feature -> why.
    """

    contract: Contract
    sources: Mapping[str, Source]
    features: Mapping[str, Feature]
    left_out: Mapping[str, str]


def chosen(
    meta: LeRobotMeta,
    *,
    take: Take,
    leave_out: Sequence[str],
    told: Mapping[str, Mapping],
    control_dt: float | None,
    task: str,
) -> Choice:
    """The choice that a user makes, and the data set where it says what it holds.

    Args:
        meta: what the data set says of itself.
        take: features to take; or field name -> feature, or -> key and elements; None: all
            observations. The action is taken in any case.
        leave_out: features that are not taken.
        told: field name -> entries of `Field` that the user tells.
        control_dt: time between two steps as the user says, None to believe the data set [s].
        task: what is done as the user says, "" to believe the data set.

    Raises:
        ImporterError: there is no such feature, or it cannot be read.
        ContractError: something must be told, or contradicts the data set.
    """
    sources = _sources(meta, take, leave_out)
    features = {source.key: meta.features[source.key] for source in sources.values()}
    for feature in features.values():
        _check_readable(meta, feature)
    found = {name: _field_of(meta, source) for name, source in sources.items()}
    needed = asked_of(found)
    for name, field in _own_fields(meta, sources).items():
        found[name] = field
        needed.pop(name, None)
    try:
        fields = told_fields(found, told, needed=needed)
    except ContractError as error:
        raise ContractError(f"{error}{_named_elements(meta, sources)}") from error
    except ValueError as error:  # Such as a unit with too many entries.
        raise ContractError(f"fields: {error}") from error
    action = fields.pop("action")
    contract = Contract(
        fields,
        action,
        control_dt=_control_dt(meta, control_dt),
        task=task or _task(meta),
    )
    left_out = {key: _reason(key, leave_out) for key in meta.features if key not in features}
    return Choice(contract, sources, features, left_out)


def _sources(meta: LeRobotMeta, take: Take, leave_out: Sequence[str]) -> dict[str, Source]:
    """Field name -> where it comes from, the action last."""
    if isinstance(take, str):
        take = [take]
    by_name = {field_name(key): key for key in meta.features}
    for key in leave_out:
        _check_known(meta, key)
    if isinstance(take, Mapping):
        sources = {str(name): told_source(str(name), entry) for name, entry in take.items()}
    elif take:
        keys = [
            str(key) if key in meta.features else by_name.get(str(key), str(key)) for key in take
        ]
        sources = _named(meta, [key for key in keys if key != "action"])
    elif meta.own is not None:
        sources = {name: Source(key) for name, key in meta.own.features.items()}
    else:
        sources = _named(meta, [key for key in meta.features if key.startswith("observation.")])
    sources.setdefault("action", Source("action"))
    sources["action"] = sources.pop("action")
    sources = {name: source for name, source in sources.items() if source.key not in leave_out}
    for name, source in sources.items():
        _check_known(meta, source.key)
        if meta.own is None or name not in meta.own.features:
            check_name(name, path=meta.root)
    if "action" not in sources or len(sources) < 2:
        raise ImporterError(
            f"{meta.root} needs an action and an observation, taken are {sorted(sources)}: "
            f"choose with take.NAME=FEATURE of {', '.join(sorted(meta.features))}"
        )
    return sources


def _named(meta: LeRobotMeta, keys: Sequence[str]) -> dict[str, Source]:
    """Features under the names that follow from their keys."""
    sources: dict[str, Source] = {}
    for key in keys:
        name = field_name(key)
        if name in sources or name == "action":
            raise ImporterError(
                f"{meta.root}: the features {key!r} and "
                f"{sources[name].key if name in sources else 'action'!r} would both become "
                f"the field {name!r}: name them with take.NAME=FEATURE, or leave one out with "
                f"format.leave_out=[{key}]"
            )
        sources[name] = Source(key)
    return sources


def _check_known(meta: LeRobotMeta, key: str) -> None:
    if key not in meta.features:
        raise ImporterError(
            f"{meta.root} has no feature {key!r}; it has {', '.join(sorted(meta.features))}"
        )


def _check_readable(meta: LeRobotMeta, feature: Feature) -> None:
    """Raise ImporterError where a feature is neither numbers nor pictures."""
    leave_out = f"leave it out with format.leave_out=[{feature.key}]"
    fault = ""
    if feature.is_depth:
        fault = "is a video of distances, which is not read yet"
    elif feature.is_picture:
        n_channels = feature.picture_shape[2]
        allowed = (1, 3, 4) if feature.dtype == "image" else (3,)
        if n_channels not in allowed:
            fault = f"has pictures of {n_channels} channels, read are those of {allowed}"
    elif feature.dtype not in NUMBERS:
        fault = f"has dtype {feature.dtype!r}, which is not numbers"
    if fault:
        raise ImporterError(f"{meta.root}: feature {feature.key!r} {fault}: {leave_out}")


def _field_of(meta: LeRobotMeta, source: Source) -> Field:
    """What the data set says of a field; numbers of any kind become float32."""
    feature = meta.features[source.key]
    if feature.is_picture and source.elements is None:
        return Field(feature.picture_shape, "uint8")
    try:
        return Field(source.shape(feature.shape))
    except StoreError as error:
        raise ImporterError(f"{meta.root}: {error}") from error


def _own_fields(meta: LeRobotMeta, sources: Mapping[str, Source]) -> dict[str, Field]:
    """Fields of which an export of ours says what they mean.

    Raises:
        ImporterError: its contract and its features disagree.
    """
    if meta.own is None:
        return {}
    fields = {}
    for name, field in meta.own.contract.fields.items():
        key = meta.own.features[name]
        feature = meta.features.get(key)
        shape = None if feature is None else feature.shape
        dtype = None if feature is None else "uint8" if feature.is_picture else feature.dtype
        if (field.shape or (1,), field.dtype) != (shape, dtype):
            raise ImporterError(
                f"{meta.root}: field {name!r} is {field.dtype} {list(field.shape)} in its "
                f"contract, but feature {key!r} is {dtype} {shape}: export the data set again"
            )
        if sources.get(name) == Source(key):
            fields[name] = field
    for name, field in fields.items():  # Of a part of the fields, the teller may be missing.
        if field.scaled_per and field.scaled_per not in fields:
            fields[name] = dataclasses.replace(field, scaled_per="")
    return fields


def _named_elements(meta: LeRobotMeta, sources: Mapping[str, Source]) -> str:
    """What the data set does say of the elements, to help answering."""
    named = [
        f"{name}: {', '.join(meta.features[source.key].names)}"
        for name, source in sources.items()
        if meta.features[source.key].names and not meta.features[source.key].is_picture
    ]
    return f". Their elements are called {'; '.join(named)}" if named else ""


def _control_dt(meta: LeRobotMeta, told: float | None) -> float:
    control_dt = 1 / meta.fps if meta.own is None else meta.own.contract.control_dt
    if not math.isclose(control_dt * meta.fps, 1, rel_tol=1e-6):
        raise ImporterError(
            f"{meta.root} has fps {meta.fps:g}, but {control_dt} s a step in its contract: "
            f"export the data set again"
        )
    if told is not None and not math.isclose(told, control_dt, rel_tol=1e-6):
        raise ContractError(
            f"control_dt is {told} s, but {meta.root} has fps {meta.fps:g}, which is "
            f"{control_dt:g} s: leave the setting out"
        )
    return control_dt


def _task(meta: LeRobotMeta) -> str:
    """One text of all tasks."""
    if meta.own is not None:
        return meta.own.contract.task
    if len(meta.tasks) > NAMED_TASKS:
        return f"{len(meta.tasks)} tasks"
    return ", ".join(dict.fromkeys(meta.tasks.values()))


def _reason(key: str, leave_out: Sequence[str]) -> str:
    if key in leave_out:
        return "asked to"
    return "kept as the metadata success" if key == SUCCESS else "not taken"


def success_feature(meta: LeRobotMeta, features: Mapping[str, Feature]) -> Feature | None:
    """The column that says whether an episode succeeded, None where there is none."""
    feature = meta.features.get(SUCCESS)
    if feature is None or SUCCESS in features:
        return None
    return feature if (feature.dtype, feature.shape) == ("bool", (1,)) else None
