"""What every verb shares: composing its Hydra configuration, output folder, clear errors.

Hydra is used through its compose API, so a verb runs from any folder, writes only where it says,
and an error is one line that names the mend (`--traceback` shows the rest).
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policy.control.loop import OverrunError
from policy.durable import point
from policy.help import help_text, suggestion
from policy.settings import check_settings
from policy.types import PlannerError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

FLAGS = ("-h", "--help", "--traceback")
PATHS = (
    "src",
    "path",
    "store.path",
    "checkpoint",
    "out",
    "png",
    "against",
    "save",
    "data.store",
)  # may hold what Hydra's grammar minds


def compose_config(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of `verb` with `overrides` of the form "key=value" applied.

    Raises:
        HydraException: an override is mistyped or names something that does not exist.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=f"cadence_{verb}"):
        return compose(verb, overrides=list(overrides))


def compose_part(
    group: str, choice: str, settings: Mapping[str, object] | None = None
) -> DictConfig:
    """The configuration of one choice of a part, with some (nested) settings changed.

    Args:
        group: kind of part, such as "sampler".
        choice: name of its file.
        settings: that differ from the file's.

    Raises:
        HydraException: there is no such choice.
        OmegaConfBaseException: there is no such setting.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=f"cadence_{group}"):
        part = compose(f"{group}/{choice}")[group]
    changed = OmegaConf.merge(part, dict(settings or {}))
    assert isinstance(changed, DictConfig)
    return changed


def urgent_of(cfg: DictConfig) -> Any:
    """What makes the sampler of urgent requests, as `urgent` names it; None for none."""
    return None if cfg.urgent is None else instantiate(compose_part("sampler", str(cfg.urgent)))


def entry(
    verb: str,
    run: Callable[[DictConfig], object],
    *,
    positional: str | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Run a verb on the command line's overrides.

    Args:
        verb: name of the verb and of its configuration.
        run: the work, given the composed configuration; an int is taken as exit status.
        positional: setting that a bare argument (one without "=") is meant for.
        choices: part -> what --help lists of it, where its folder holds those of other verbs too.
    """
    arguments = sys.argv[1:]
    overrides = [a for a in arguments if a not in FLAGS]
    if positional:
        bare = [a for a in overrides if "=" not in a]
        if len(bare) > 1:
            print(
                f"cadence {verb}: error: give one {positional}, not {len(bare)}: {' '.join(bare)}",
                file=sys.stderr,
            )
            sys.exit(2)
        overrides = [a if "=" in a else f"{positional}={_quoted(a)}" for a in overrides]
    overrides = [_with_plain_path(a) for a in overrides]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if "-h" in arguments or "--help" in arguments:
            status = print(help_text(verb, run, overrides, configs=CONFIGS, choices=choices))
        else:
            status = run(_resolved(verb, overrides))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\ncadence {verb}: interrupted", file=sys.stderr)
        sys.exit(130)
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
        KeyError,
        OSError,
        ImportError,
        PlannerError,
        OverrunError,
    ) as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + 13)  # as of a program that SIGPIPE ends
        if "--traceback" in arguments:
            raise
        hint = suggestion(verb, e, configs=CONFIGS)
        print(f"cadence {verb}: error: {_message(e)}{hint}", file=sys.stderr)
        is_usage = isinstance(e, HydraException | OmegaConfBaseException)
        sys.exit(2 if is_usage and not isinstance(e, InstantiationException) else 1)
    sys.exit(status if isinstance(status, int) else 0)


def _nobody_reads() -> bool:
    """Whether what is printed has no reader any more, as after `| head`; if so it goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _quoted(text: str) -> str:
    """A string as a Hydra override takes it literally."""
    if re.search(r"[^\w./~-]", text) is None:
        return text
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _with_plain_path(override: str) -> str:
    """An override whose path, if it is one, is taken literally; quoted ones and lists stay."""
    key, _, value = override.partition("=")
    if key not in PATHS or value.startswith(("'", '"', "[", "{")):
        return override
    return f"{key}={_quoted(value)}"


def _interrupt(signum: int, frame: object) -> None:
    """Let SIGTERM end a run as Ctrl-C does, with a usable checkpoint."""
    raise KeyboardInterrupt


def _resolved(verb: str, overrides: Sequence[str]) -> DictConfig:
    cfg = compose_config(verb, overrides)
    missing = sorted(OmegaConf.missing_keys(cfg))
    is_resumed = cfg.get("resume") is not None  # takes its settings from the interrupted run
    if missing and not is_resumed:
        raise ValueError(f"please give {', '.join(f'{key}=...' for key in missing)}")
    defaults = OmegaConf.load(CONFIGS / f"{verb}.yaml")
    assert isinstance(defaults, DictConfig)
    check_settings(cfg, defaults)
    return cfg


def _message(error: Exception) -> str:
    """The innermost message: Hydra wraps what a constructor raised."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _message(error.__cause__)  # pyright: ignore[reportArgumentType]
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror and not error.filename:
        return error.strerror
    text = str(error) or type(error).__name__
    return text.split("\nConfig search path:")[0]  # Hydra's own folders help nobody here.


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain dicts and lists, for JSON."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def out_dir(cfg: DictConfig, verb: str) -> Path:
    """The folder that a verb writes to, made and printed.

    `out=DIR` where given, else a fresh `outputs/<verb>/<date>_<time>`, and `latest` points to it.
    """
    if cfg.out is not None:
        out = Path(str(cfg.out))
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"out={out} cannot be made a folder ({error.strerror}): choose another place"
            ) from error
    else:
        out = _fresh(Path("outputs") / verb)
    print(f"out: {out}")
    return out


def _fresh(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        out = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            continue
        point(parent / "latest", out.name)
        return out
    raise OSError(f"no free folder name {parent / stamp}")


def pick_device(name: str) -> torch.device:
    """The device for `device=auto|cpu|cuda|cuda:N`.

    Raises:
        ValueError: the device does not exist on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device={name} cannot be used here ({e}); use device=cpu") from e
    return device


def use_threads(n_threads: int | None) -> None:
    """How many threads the network's operations may use on the CPU; None leaves torch's choice.

    A network of a few million weights controls fastest on one: its operations are too short to
    share, and threads that wait for each other suffer from every other load of the machine.
    """
    if n_threads is None:
        return
    if n_threads < 1:
        raise ValueError(f"threads is {n_threads}, it must be at least 1, or null for all cores")
    torch.set_num_threads(n_threads)
