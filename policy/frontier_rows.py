"""The rows of a suite of `cadence frontier`: which sampler, with which settings, executed how."""

import json

from omegaconf import DictConfig, OmegaConf

from policy.entry import CONFIGS

SAMPLERS = sorted(file.stem for file in (CONFIGS / "sampler").glob("*.yaml"))
ROW = {"sampler": "", "set": {}, "action": None, "delay": 0, "goal_weight": 1.0}


def read_rows(cfg: DictConfig) -> list[dict]:
    """The rows of a suite, complete but for `action`, which None leaves as trained.

    Raises:
        ValueError: there are none, or an entry of one is unknown, missing or of another kind.
    """
    rows = OmegaConf.to_container(cfg.suite.rows, resolve=True)
    assert isinstance(rows, list)
    if not rows:
        raise ValueError("the suite has no rows: give suite.rows=[{sampler: ddim_8, action: 8}]")
    for row in rows:
        if not isinstance(row, dict) or set(row) - set(ROW) or not row.get("sampler"):
            raise ValueError(f"a row is {row}: it needs a sampler, and may have {sorted(ROW)}")
        sampler = str(row["sampler"])
        if sampler not in SAMPLERS:
            raise ValueError(f"a row's sampler is {sampler!r}, there are {', '.join(SAMPLERS)}")
        whole = type(row.get("action", 1)) is int and type(row.get("delay", 0)) is int
        weight = row.get("goal_weight", 1.0)
        whole = whole and isinstance(weight, int | float)
        if not whole or not isinstance(row.get("set", {}), dict):
            raise ValueError(
                f"a row is {row}: action and delay must be whole numbers, goal_weight a number, "
                f"set must be settings such as {{n_steps: 2}}"
            )
        check_finite("a row", row)
    return [{**ROW, **row} for row in rows]


def check_finite(name: str, value: object) -> None:
    """Raise ValueError where JSON could not hold a number."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{name} is {value}: its numbers must be finite") from error


def name_of(row: dict) -> str:
    """A row in one line."""
    delay = f", {row['delay']} late" if row["delay"] else ""
    settings = " ".join(["", *_flat(row["set"])])
    goal = f", goal x {row['goal_weight']:g}" if row["goal_weight"] != 1 else ""
    return f"{row['sampler']}{settings}, {row['action']} executed{delay}{goal}"


def _flat(settings: dict, prefix: str = "") -> list[str]:
    """Nested settings as "a.b=value"."""
    flat = []
    for key, value in settings.items():
        inner = isinstance(value, dict)
        flat += _flat(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}={value}"]
    return flat
