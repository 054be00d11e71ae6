"""Reads `info.json` of a LeRobot data set, and its other files of JSON; nothing of it is believed.

What makes a path of it stays in the data set's folder.
"""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.importers.importer import ImporterError
from data.lerobot_layout import INDEX_DTYPES, INFO, Feature, LayoutError

VERSIONS = ("v2.1", "v3.0")
OLDER = {
    "v2.0": "convert it with lerobot 0.3: python -m lerobot.datasets.v21."
    "convert_dataset_v20_to_v21 --repo-id=NAME",
    "v1": "convert it with lerobot's convert_dataset_v1_to_v2, then to v2.1",
}
MAX_FPS = 100_000.0


def read_info(root: Path) -> Mapping[str, Any]:
    """The document.

    Raises:
        ImporterError: it is missing or no JSON object.
    """
    path = root / INFO
    if not root.is_dir():
        raise ImporterError(f"{root} is not a folder: give the one that holds meta/ and data/")
    if not path.is_file():
        raise ImporterError(
            f"{root} has no {INFO}, so it is not a LeRobot data set: give the folder that holds "
            f"meta/ and data/ (download it whole first; nothing is fetched here)"
        )
    return _parsed(path, _text(path), "the file")


def read_json_lines(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a file that has one a line.

    Raises:
        ImporterError: it is missing or holds something else.
    """
    lines = [line for line in _text(path).split("\n") if line.strip()]
    return [_parsed(path, line, f"line {number + 1}") for number, line in enumerate(lines)]


def version_of(info: Mapping[str, Any]) -> str:
    """Of the layout.

    Raises:
        LayoutError: it is none that can be read.
    """
    version = info.get("codebase_version")
    if version in VERSIONS:
        return str(version)
    fix = next((fix for old, fix in OLDER.items() if str(version).startswith(old)), None)
    if fix is None:
        fix = "save it with a lerobot of 0.3 or 0.4, or upgrade cadence"
    raise LayoutError(f"its codebase_version is {version!r}, readable are v2.1 and v3.0: {fix}")


def fps_of(info: Mapping[str, Any]) -> float:
    """Steps a second.

    Raises:
        LayoutError: it is no such number.
    """
    fps: Any = info.get("fps")
    is_number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if not is_number or not 0 < fps <= MAX_FPS:  # NaN and infinity are neither.
        raise LayoutError(f"fps is {fps!r}, it must be a number above 0, at most {MAX_FPS:g}")
    return float(fps)


def features_of(info: Mapping[str, Any]) -> dict[str, Feature]:
    """Key -> feature, without the columns that count steps.

    Raises:
        LayoutError: one is not described as it must be.
    """
    entries = info.get("features")
    if not isinstance(entries, Mapping):
        raise LayoutError(f"features is {type(entries).__name__}, it must be an object")
    if missing := sorted(set(INDEX_DTYPES) - set(entries)):
        raise LayoutError(f"features lacks the columns {missing}, which every table has")
    return {
        key: Feature.from_json(key, entry)
        for key, entry in entries.items()
        if key not in INDEX_DTYPES
    }


def place_of(
    root: Path, info: Mapping[str, Any], template: str, numbers: Mapping[str, Any]
) -> Path:
    """The path that a template of `info.json` names, which stays in the folder.

    Args:
        root: the data set's folder.
        info: the document.
        template: its entry, such as data_path.
        numbers: what the template may have in braces -> its value.

    Raises:
        ImporterError: it leads elsewhere, or asks for something else.
    """
    text = info.get(template)
    fault = None
    if not isinstance(text, str):
        fault = "it must be text"
    elif (
        text.startswith(("/", "~"))
        or "\\" in text
        or ".." in Path(text).parts
        or ":" in (text.split("{")[0])
    ):
        fault = "it leads out of the data set's folder, which is not followed"
    else:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            parts, fault = [], str(error)
        for _, name, spec, conversion in parts:
            if name is not None and name not in numbers:
                fault = f"it has {{{name}}}, known are {sorted(numbers)}"
            elif conversion or not re.fullmatch(r"(0?\d?d)?", spec or ""):
                fault = f"it has the format {spec!r}, known are such as 03d"
    if fault is None:
        assert isinstance(text, str)
        try:
            return root / text.format(**numbers)
        except (ValueError, TypeError) as error:
            fault = str(error)
    raise ImporterError(f"{root / INFO}: {template} is {text!r}: {fault}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImporterError(
            f"{path} cannot be read ({error}): copy or download the data set again"
        ) from error


def _parsed(path: Path, text: str, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImporterError(
            f"{path}: {what} is not JSON ({error}): copy or download the data set again"
        ) from error
    if not isinstance(value, dict):
        raise ImporterError(f"{path}: {what} is {type(value).__name__}, it must be an object")
    return value
