"""Files and folders that appear under their name only when all of them is on the disk."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def write_folder(place: Path, contents: Mapping[str, bytes]) -> None:
    """Write files to a folder, all or none; a folder that is there already is replaced.

    Whatever interrupts this leaves either no folder of that name or a complete one, and at most
    hidden folders `.<name>.*` beside it. For a moment between two renames there is none of that
    name: a kill just then leaves the replaced one as `.<name>.replaced`.

    Args:
        place: of the folder.
        contents: file name -> content.

    Raises:
        OSError: it could not be written; what was there before is as it was.
    """
    partial = place.with_name(f".{place.name}.partial")
    replaced = place.with_name(f".{place.name}.replaced")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in contents.items():
            _write_file(partial / name, content)
        flush_folder(partial)
        # A folder cannot be renamed onto another.
        shutil.rmtree(replaced, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(place, replaced)
        os.rename(partial, place)
        flush_folder(place.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced.exists() and not place.exists():
            os.rename(replaced, place)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Write a file, or leave what was there.

    Raises:
        OSError: it could not be written.
    """
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file, or leave what was there.

    Raises:
        OSError: it could not be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        _write_file(partial, content)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{file} could not be written: {error.strerror}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: Path, value: object) -> None:
    """Write a value as readable JSON and print where.

    Raises:
        OSError: it could not be written.
    """
    write_text(file, json.dumps(value, indent=1) + "\n")
    print(f"results: {file}")


def _write_file(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(link: Path, target: str) -> None:
    """Let a link point to a name beside it, in one step."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
    flush_folder(link.parent)
