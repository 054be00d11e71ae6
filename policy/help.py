"""What `cadence <verb> --help` prints, and what a mistyped setting may have meant."""

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

PARTS = "Parts (files configs/<part>/<choice>.yaml; <part>=<choice> --help says what each can do):"


def help_text(
    verb: str,
    run: Callable[[DictConfig], object],
    overrides: Sequence[str] = (),
    *,
    configs: Path,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What `cadence <verb> --help` prints: the verb's docstring, its parts and its settings.

    Args:
        verb: name of the verb.
        run: its work, in whose file the docstring is.
        overrides: that were given beside --help; the settings of parts chosen there follow.
        configs: folder of the configuration.
        choices: part -> its choices, of parts whose folder holds those of other verbs too.
    """
    module = sys.modules[run.__module__]
    # The file itself, because its comments say what the settings mean.
    text = (configs / f"{verb}.yaml").read_text()
    settings = [block for block in text.split("\n\n") if not block.startswith("defaults:")]
    parts = _parts(configs, verb, choices or {})
    return "\n".join(
        [
            (module.__doc__ or "").strip(),
            "",
            *([PARTS, ""] if parts else []),
            *(f"  {line}" for line in parts),
            *([""] if parts else []),
            "Settings and their defaults (??? must be given; change one with key=value):",
            "",
            *(f"  {line}".rstrip() for line in "\n\n".join(settings).strip().splitlines()),
            *_chosen_parts(configs, verb, overrides),
        ]
    )


def _groups(configs: Path, verb: str) -> dict[str, str | None]:
    """Config groups of a verb -> what is chosen by default."""
    raw = OmegaConf.to_container(OmegaConf.load(configs / f"{verb}.yaml"))
    assert isinstance(raw, dict)
    return {
        str(group).removeprefix("optional "): default
        for item in raw.get("defaults", [])
        if isinstance(item, dict)
        for group, default in item.items()
    }


def _parts(configs: Path, verb: str, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each config group of a verb: its choices and the default."""
    lines = []
    for name, default in _groups(configs, verb).items():
        known = choices.get(name) or sorted(p.stem for p in (configs / name).glob("*.yaml"))
        lines.append(f"{name}={'|'.join(known)}  ({default or 'none'})")
    return lines


def _chosen_parts(configs: Path, verb: str, overrides: Sequence[str]) -> list[str]:
    """The files of the parts that are chosen, without what the verb fills in itself."""
    lines = []
    for override in overrides:
        group, _, choice = override.partition("=")
        file = configs / group / f"{choice}.yaml"
        if (
            group not in _groups(configs, verb)
            or not re.fullmatch(r"\w+", choice)
            or not file.is_file()
        ):
            continue
        text = file.read_text().splitlines()
        own = [line for line in text if not re.match(r"_(target|convert)_:|\w+: \$\{", line)]
        lines += ["", f"Settings of {override} (change one with {group}.key=value):", ""]
        lines += [f"  {line}".rstrip() for line in own]
    return lines


def suggestion(verb: str, error: Exception, *, configs: Path) -> str:
    """The settings that a mistyped one may have meant, of an error; "" where it is another."""
    mistyped = re.search(r"Could not override '([^']*)'", str(error))
    if mistyped is None:
        return ""
    known = OmegaConf.load(configs / f"{verb}.yaml")
    near = difflib.get_close_matches(mistyped[1], [str(key) for key in known if key != "defaults"])
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"\n{meant}cadence {verb} --help lists the settings"
