"""Are the settings of a verb of the kind its defaults have, and in the range that makes sense."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Kinds of the settings whose default may be null, which does not tell.
OPTIONAL = {
    "steps": int,
    "env_steps": int,
    "minutes": float,
    "threads": int,
    "action_horizon": int,
    "n_tuned": int,
    "max_kl": float,
    "clip": float,
    "realtime": int,
}
# Limits; everything else is judged where it is used.
LOWEST = {
    "seed": 0,
    "num_envs": 1,
    "rows": 1,
    "videos": 0,
    "warmup_steps": 0,
    "seconds": 0,
    "critic_warmup": 0,
    "rate_warmup": 0,
    "rate_end": 0,
}
LARGEST = {
    "seed": 2**62,
    "batch_size": 2**16,  # beyond this a step exhausts the memory before anything can say so
    "rows": 2**16,
    "num_envs": 2**12,
}


def check_settings(cfg: DictConfig, defaults: DictConfig) -> None:
    """Raise ValueError, naming the setting, where one is of another kind than its default.

    Args:
        cfg: composed configuration of a verb.
        defaults: the verb's own YAML; what it does not name is not looked at.
    """
    _check(
        OmegaConf.to_container(cfg, resolve=False),
        OmegaConf.to_container(defaults, resolve=False),
        prefix="",
    )


def _check(values: Any, defaults: Any, *, prefix: str) -> None:
    assert isinstance(values, Mapping)
    assert isinstance(defaults, Mapping)
    for key, default in defaults.items():
        if key == "defaults" or key not in values:
            continue
        name, value = f"{prefix}{key}", values[key]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} is {value!r}, it must be settings: {name}.KEY=VALUE")
            _check(value, default, prefix=f"{name}.")
        elif not (isinstance(value, str) and value.startswith(("${", "???"))):
            _check_value(name, str(key), value, default)


def _check_value(name: str, key: str, value: object, default: object) -> None:
    kind = OPTIONAL.get(key, type(default))
    if value is None and (key in OPTIONAL or default is None):
        return
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, it must be true or false")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} is {value!r}, it must be a whole number")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} is {value!r}, it must be a number")
    if isinstance(value, int | float):
        if key in LOWEST and not value >= LOWEST[key]:
            raise ValueError(f"{name} is {value}, it must be at least {LOWEST[key]}")
        if key in LARGEST and value > LARGEST[key]:
            raise ValueError(f"{name} is {value}, it must be at most {LARGEST[key]}")
