"""What a UR arm demands of the contract that it is to keep to, and of its settings."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from envs.robots.sim import action_limits

N_JOINTS = 6
MEASURED = {"joints": "rad", "velocity": "rad/s"}  # fields that the arm tells


def check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    """Raise ValueError where a setting lies outside of its lowest and highest value."""
    low, high = limits
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, it must be in {low:g}..{high:g}")


def check_positive(**settings: float) -> None:
    """Raise ValueError where one of the named settings is not positive and finite."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, it must be positive and finite")


def check_contract(entry: Mapping, constants: Mapping[str, np.ndarray], control_dt: float) -> None:
    """Raise ValueError where the arm and its constants do not offer what a contract asks for.

    Args:
        entry: the contract in its JSON form.
        constants: observation field -> its value.
        control_dt: time between two commands [s].
    """
    if entry["control_dt"] != control_dt:
        raise ValueError(
            f"control_dt is {control_dt} s, the contract has {entry['control_dt']} s: give that"
        )
    action = entry["action"]
    meaning = tuple(action["shape"]), action.get("unit"), action.get("kind", "absolute")
    if meaning != ((N_JOINTS,), "rad", "absolute"):
        raise ValueError(
            f"an action has shape, unit and kind {meaning}; a UR arm takes absolute positions of "
            f"{N_JOINTS} joints in rad"
        )
    _check_constants(entry["observation"], constants)
    for name, field in entry["observation"].items():
        if name in MEASURED:
            if field.get("unit") != MEASURED[name] or tuple(field["shape"]) != (N_JOINTS,):
                raise ValueError(
                    f"the field {name!r} has unit {field.get('unit')!r} and shape "
                    f"{tuple(field['shape'])}; a UR arm tells {N_JOINTS} numbers in "
                    f"{MEASURED[name]}"
                )
        elif name not in constants:
            raise ValueError(
                f"a UR arm does not tell {name!r}, only {', '.join(MEASURED)}: give its value in "
                f"constants.{name}"
            )
        elif constants[name].shape != tuple(field["shape"]):
            raise ValueError(
                f"constants.{name} has shape {constants[name].shape}, the contract says "
                f"{tuple(field['shape'])}"
            )


def _check_constants(fields: Mapping, constants: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a constant would stand for what is measured, or for nothing."""
    for name, value in constants.items():
        if name in MEASURED or name not in fields:
            why = "is measured by the arm" if name in MEASURED else "is no field of the contract"
            raise ValueError(
                f"constants.{name} is given, but {name!r} {why}: remove it (on the command line, "
                f"~robot.constants.{name})"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"constants.{name} is {value}: give finite numbers")


def position_limits(
    action: Mapping, limits: Mapping[str, Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper joint limits [6, rad]: the narrower ones of contract and setting.

    Args:
        action: field of the contract, in its JSON form.
        limits: `low` and `high` for each joint [rad].

    Raises:
        ValueError: one is missing, has a wrong number of elements, or low is not below high.
    """
    missing = {"low", "high"} - set(limits)
    if missing:
        raise ValueError(f"limits lacks {sorted(missing)}: give both, one for each joint in rad")
    low, high = (np.array(limits[side], float) for side in ("low", "high"))
    if not low.shape == high.shape == (N_JOINTS,) or not (low < high).all():
        raise ValueError(
            f"limits.low is {low} and limits.high is {high}: give {N_JOINTS} numbers each, in rad, "
            f"low below high"
        )
    widest_low, widest_high = action_limits(action)
    return np.maximum(low, widest_low), np.minimum(high, widest_high)
