"""Random damage to files: bits flipped, blocks overwritten, parts missing, JSON made wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WRONG_VALUES = (None, True, "text", "", [], {}, [0], -1, 0, 1, 7, 0.5, 2**31, -(2**63), 10**30)


def corrupt(path: Path, generator: np.random.Generator) -> str:
    """Damage a file, or one or two of a folder's, in place; returns in words what was done.

    Raises:
        ValueError: the folder holds no files.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no files that could be corrupted")
    chosen = files[int(generator.integers(len(files)))]
    corruptions = [flip_bits, overwrite_block, truncate, empty, remove, extend]
    if len(files) > 1:
        corruptions.append(swap)
    if _as_json(chosen) is not None:
        corruptions += [cut_text, drop_key, replace_value, replace_value]
    do = corruptions[int(generator.integers(len(corruptions)))]
    if do is swap:
        other = files[int(generator.integers(len(files)))]
        return _swap(chosen, other, path)
    name = chosen.name if path.is_file() else chosen.relative_to(path).as_posix()
    return f"{name}: {do(chosen, generator)}"


def flip_bits(file: Path, generator: np.random.Generator) -> str:
    """Flip one to eight bits."""
    content = bytearray(file.read_bytes())
    if not content:
        return "nothing flipped, it was empty"
    where = generator.integers(len(content), size=int(generator.integers(1, 9)))
    for byte in where.tolist():
        content[byte] ^= 1 << int(generator.integers(8))
    file.write_bytes(content)
    return f"bits flipped in bytes {sorted(where.tolist())}"


def overwrite_block(file: Path, generator: np.random.Generator) -> str:
    """Fill some bytes in a row with zeros, ones or noise."""
    content = bytearray(file.read_bytes())
    start = int(generator.integers(len(content) + 1))
    stop = min(len(content), start + int(generator.integers(1, 513)))
    kind = ("zeros", "ones", "noise")[int(generator.integers(3))]
    block = {"zeros": b"\0" * (stop - start), "ones": b"\xff" * (stop - start)}
    content[start:stop] = block.get(kind) or generator.bytes(stop - start)
    file.write_bytes(content)
    return f"bytes {start}..{stop - 1} overwritten with {kind}"


def truncate(file: Path, generator: np.random.Generator) -> str:
    """Keep only the first bytes."""
    content = file.read_bytes()
    n_kept = int(generator.integers(len(content) + 1))
    file.write_bytes(content[:n_kept])
    return f"cut to {n_kept} of {len(content)} bytes"


def extend(file: Path, generator: np.random.Generator) -> str:
    """Append some bytes."""
    more = generator.bytes(int(generator.integers(1, 65)))
    file.write_bytes(file.read_bytes() + more)
    return f"{len(more)} bytes appended"


def empty(file: Path, generator: np.random.Generator) -> str:
    """Leave no bytes."""
    file.write_bytes(b"")
    return "emptied"


def remove(file: Path, generator: np.random.Generator) -> str:
    """Delete the file."""
    file.unlink()
    return "removed"


def swap(file: Path, generator: np.random.Generator) -> str:
    """Swap the file with another one of its folder, if there is one."""
    others = sorted(p for p in file.parent.iterdir() if p.is_file())
    return _swap(file, others[int(generator.integers(len(others)))], file.parent)


def _swap(file: Path, other: Path, root: Path) -> str:
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)
    return f"{file.relative_to(root)} and {other.relative_to(root)} swapped"


def cut_text(file: Path, generator: np.random.Generator) -> str:
    """Take some text out of the middle."""
    text = file.read_text()
    start = int(generator.integers(len(text)))
    stop = start + int(generator.integers(1, 40))
    file.write_text(text[:start] + text[stop:])
    return f"{text[start:stop]!r} taken out"


def drop_key(file: Path, generator: np.random.Generator) -> str:
    """Take an entry out of a JSON document."""
    document = _as_json(file)
    places = list(_places(document))
    if not places:
        return "nothing dropped, it has no entries"
    holder, key = places[int(generator.integers(len(places)))]
    del holder[key]
    file.write_text(json.dumps(document))
    return f"entry {key!r} dropped"


def replace_value(file: Path, generator: np.random.Generator) -> str:
    """Give an entry of a JSON document another type, or a number that is off, huge or negative."""
    document = _as_json(file)
    places = list(_places(document))
    if not places:
        return "nothing replaced, it has no entries"
    holder, key = places[int(generator.integers(len(places)))]
    old = holder[key]
    values = list(WRONG_VALUES)
    if isinstance(old, int | float) and not isinstance(old, bool):
        values += [old + 1, old - 1, -old, old * 2, float(old)]
    if isinstance(old, str):
        values += [old.upper(), old[::-1], old[:-1]]
    new = values[int(generator.integers(len(values)))]
    holder[key] = new
    file.write_text(json.dumps(document))
    return f"entry {key!r} {str(old)[:40]} replaced by {new!r}"


def _as_json(file: Path) -> object:
    """The document in a file, None if it is no JSON object or list."""
    if file.suffix not in (".json", ".zattrs", ".zarray", ".zgroup") and not (
        file.name.startswith(".z")
    ):
        return None
    try:
        document = json.loads(file.read_text())
    except ValueError:
        return None
    return document if isinstance(document, dict | list) else None


def _places(document: object) -> Iterator[tuple]:
    """Each entry of a document, at any depth, as what holds it and its key or index."""
    if isinstance(document, dict):
        entries = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))
    else:
        return
    for key, value in entries:
        yield document, key
        yield from _places(value)
