"""The few types that everybody shares: horizons, the typed contract, batches of windows.

Shape legend: `B` batch, `To Tp Ta` observed, predicted and executed steps, `Da` action size.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

if TYPE_CHECKING:  # What only reads files imports this module too, and torch takes a second.
    from torch import Tensor

Kind = Literal["absolute", "delta", "relative"]
Normalization = Literal["limits", "gaussian", "quantiles", "identity"]

CONTRACT_VERSION = 1


class ContractError(ValueError):
    """Two sides of a hand-over do not mean the same numbers."""


@dataclass(frozen=True)
class Horizons:
    """Steps at the control rate; index `past` of a chunk is the action for "now".

    Args:
        obs: To, observations seen, the last one being "now".
        pred: Tp, actions in a chunk.
        action: Ta, actions executed before the next chunk.
        past: actions at a chunk's begin that lie before "now".
    """

    obs: int
    pred: int
    action: int
    past: int = 0

    def __post_init__(self):
        for name, steps in dataclasses.asdict(self).items():
            least = 0 if name == "past" else 1
            if steps < least:
                raise ValueError(f"horizons.{name} is {steps}, it must be at least {least}")
        if self.action > self.future:
            raise ValueError(
                f"horizons.action is {self.action}, but a chunk has only {self.future} actions "
                f"from now on (pred {self.pred}, past {self.past}): set it to at most that"
            )

    @property
    def future(self) -> int:
        """Actions in a chunk from "now" on."""
        return self.pred - self.past


@dataclass(frozen=True)
class Field:
    """What the numbers of one observation or action field mean.

    Args:
        shape: shape of one step, without time.
        dtype: numpy name; `uint8` for images, height x width x channel.
        unit: one unit, or one per element: "m", "rad", "px", "1".
        frame: frame of reference the numbers are given in, "" where there is none.
        kind: whether an action is absolute, relative to the last one (delta) or to the observation.
        rotation: representation of a rotation held by the field, such as "quaternion_wxyz", or "".
        angles: elements that are planar angles [rad]; a network sees their cosine and sine.
        discrete: elements with a discrete meaning, such as an open or closed gripper.
        low: lower limit of each element, None where unknown.
        high: upper limit of each element, None where unknown.
        normalization: how the field is scaled for a network.
        scaled_per: name of a one-hot observation field, such as "task", each of whose elements has
            statistics of its own for this field; "": one set of statistics for all steps.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str | tuple[str, ...] = ""
    frame: str = ""
    kind: Kind = "absolute"
    rotation: str = ""
    angles: tuple[int, ...] = ()
    discrete: tuple[int, ...] = ()
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    normalization: Normalization = "limits"
    scaled_per: str = ""

    def __post_init__(self):
        for name in ("shape", "angles", "discrete", "low", "high"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if not isinstance(self.unit, str):
            object.__setattr__(self, "unit", tuple(self.unit))
        np.dtype(self.dtype)
        self._check_choice("kind", self.kind, get_args(Kind))
        self._check_choice("normalization", self.normalization, get_args(Normalization))
        for name in ("angles", "discrete"):
            if any(not 0 <= index < self.size for index in getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, the field has {self.size} elements"
                )
        for name in ("low", "high"):
            limit = getattr(self, name)
            if limit is not None and len(limit) != self.size:
                raise ValueError(
                    f"{name} has {len(limit)} values, the field has {self.size} elements"
                )
        if not isinstance(self.unit, str) and len(self.unit) != self.size:
            raise ValueError(
                f"unit has {len(self.unit)} entries, the field has {self.size} elements"
            )

    @staticmethod
    def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, choose one of {', '.join(choices)}")

    @property
    def size(self) -> int:
        """Number of elements of one step."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether the field is a uint8 image, height x width x channel."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @classmethod
    def from_json(cls, entry: Mapping) -> Self:
        """A field from its JSON form; unknown entries are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(entry) - known
        if unknown:
            raise ContractError(
                f"unknown field entries {sorted(unknown)}; known are {sorted(known)}"
            )
        return cls(**entry)

    def to_json(self) -> dict:
        """JSON form, read back by `from_json`."""
        entry = dataclasses.asdict(self)
        if not self.scaled_per:  # Older programs, which do not know the entry, can read on.
            del entry["scaled_per"]
        return entry


@dataclass(frozen=True)
class Contract:
    """The meaning of every number between a store, a checkpoint and a robot.

    Written by whoever records, carried store -> checkpoint -> robot, checked at each hand-over.

    Args:
        observation: field name -> meaning.
        action: meaning of one action.
        control_dt: time between two steps [s].
        task: what is to be done, in words.
        horizons: of the policy; None in a store or a robot, which serve any.
        statistics: digest of the normalisation statistics; "" where there are none.
    """

    observation: Mapping[str, Field]
    action: Field
    control_dt: float
    task: str = ""
    horizons: Horizons | None = None
    statistics: str = ""

    def __post_init__(self):
        if not self.control_dt > 0:
            raise ContractError(f"control_dt is {self.control_dt} s, it must be positive")
        if not self.observation:
            raise ContractError("a contract needs at least one observation field")
        if "action" in self.observation:
            raise ContractError('"action" is the name of the action field, rename the observation')
        self._check_scaling()

    def _check_scaling(self) -> None:
        """Raise ContractError where a field does not say by which statistics it is scaled."""
        for name, field in self.fields.items():
            if not field.scaled_per:
                continue
            teller = self.observation.get(field.scaled_per)
            if teller is None:
                fault = f"the observation has {sorted(self.observation)}: name one of them"
            elif field.is_image:
                fault = "but an image is scaled without statistics: leave it out"
            elif field.scaled_per == name:
                fault = "which is the field itself: name another one"
            elif teller.is_image or len(teller.shape) != 1:
                fault = f"which is not one-hot, its shape is {teller.shape}: name a vector"
            elif teller.scaled_per:
                fault = f"which is scaled per {teller.scaled_per!r} itself: name that one"
            elif teller.normalization != "identity":
                fault = (
                    f"whose normalization is {teller.normalization!r}: it must be 'identity', "
                    f"being one-hot"
                )
            elif field.scaled_per != self.scaled_per:
                fault = f"but others are scaled per {self.scaled_per!r}: all need the same field"
            else:
                continue
            raise ContractError(f"{name}.scaled_per is {field.scaled_per!r}, {fault}")

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name, the action last under "action"."""
        return {**self.observation, "action": self.action}

    @property
    def scaled_per(self) -> str:
        """Name of the observation field that tells by which statistics others are scaled, or ""."""
        return next((f.scaled_per for f in self.fields.values() if f.scaled_per), "")

    def check(self, other: "Contract", *, this: str, that: str) -> None:
        """Raise ContractError, naming both sides, unless `other` offers what this one needs.

        `other` may have more observation fields; the task is free text and not compared.
        Limits and the way of scaling are properties of one side and not compared either.
        Horizons and statistics are compared where both sides have them.

        Args:
            other: the contract of the other side.
            this: name of this side for the message, such as "checkpoint outputs/train/latest".
            that: name of the other side.
        """
        if not math.isclose(self.control_dt, other.control_dt, rel_tol=1e-6):
            raise ContractError(
                f"control_dt is {self.control_dt} s in {this}, but {other.control_dt} s in {that}"
            )
        for entry in ("horizons", "statistics"):
            a, b = getattr(self, entry), getattr(other, entry)
            if a and b and a != b:
                raise ContractError(f"{entry} is {a} in {this}, but {b} in {that}")
        for name, mine in self.fields.items():
            theirs = other.fields.get(name)
            if theirs is None:
                raise ContractError(
                    f"{this} needs the field {name!r}; {that} has {sorted(other.fields)}"
                )
            for entry in (
                "shape",
                "dtype",
                "unit",
                "frame",
                "kind",
                "rotation",
                "angles",
                "discrete",
            ):
                a, b = getattr(mine, entry), getattr(theirs, entry)
                if a != b:
                    raise ContractError(f"{name}.{entry} is {a!r} in {this}, but {b!r} in {that}")

    def to_json(self) -> dict:
        """JSON form, read back by `from_json`."""
        return {
            "version": CONTRACT_VERSION,
            "control_dt": self.control_dt,
            "task": self.task,
            "horizons": dataclasses.asdict(self.horizons) if self.horizons else None,
            "statistics": self.statistics,
            "observation": {k: f.to_json() for k, f in self.observation.items()},
            "action": self.action.to_json(),
        }

    @classmethod
    def from_json(cls, entry: Mapping) -> Self:
        """A contract from its JSON form.

        Raises:
            ContractError: an entry is missing or wrong, or the version is newer than this program.
        """
        if not isinstance(entry, Mapping):
            raise ContractError(f"the contract is {entry!r}, it must be an object")
        version = entry.get("version", CONTRACT_VERSION)
        if not isinstance(version, int) or version > CONTRACT_VERSION:
            raise ContractError(
                f"the contract has version {version!r}, this program reads up to "
                f"{CONTRACT_VERSION}: upgrade cadence"
            )
        missing = {"observation", "action", "control_dt"} - set(entry)
        if missing:
            raise ContractError(f"the contract lacks {sorted(missing)}")
        try:
            return cls(
                observation={k: Field.from_json(f) for k, f in entry["observation"].items()},
                action=Field.from_json(entry["action"]),
                control_dt=float(entry["control_dt"]),
                task=entry.get("task", ""),
                horizons=Horizons(**entry["horizons"]) if entry.get("horizons") else None,
                statistics=entry.get("statistics", ""),
            )
        except ContractError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise ContractError(f"the contract has a wrong entry: {error}") from error


@dataclass(frozen=True)
class Batch:
    """Windows of demonstrations in physical units.

    Args:
        observation: field name -> [B, To, ...], the last step is "now".
        action: [B, Tp, Da], index `horizons.past` is the action taken "now".
        is_pad: [B, Tp] bool, true where the episode had not begun or had ended, and its first or
            last action is repeated.
    """

    observation: "dict[str, Tensor]"
    action: "Tensor"
    is_pad: "Tensor"


@dataclass(frozen=True)
class Observation:
    """What a robot sensed at one moment, in physical units.

    Args:
        fields: field name -> array of the field's shape.
        capture_time: when it was sensed, on the control clock [s].
    """

    fields: dict[str, np.ndarray]
    capture_time: float
