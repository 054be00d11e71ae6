"""One frame on the wire: a fixed header, a small JSON head, raw arrays.

    bytes   0..3   magic "CDNC"
            4      version
            5      kind of message
            6..7   zero
            8..11  length of the head
           12..15  length of the whole frame
           16..    head, UTF-8 JSON: {"body": {...}, "arrays": [[name, dtype, shape], ...]}
           then each array, little endian, in C order, at the next multiple of 8; zeros between

All integers of the header are little endian. Nothing of what a peer says is believed: lengths must
add up to the bytes that are there, and types come from a list of names. Building an array from a
type that a peer has named freely reads memory at addresses that the peer chooses ("O" is a type).

Decoding copies the arrays. Whatever is wrong is a `WireError`, and nothing else is ever raised.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from policy.serving.errors import Code, WireError

HEADER = struct.Struct("<4sBBHII")
MAGIC = b"CDNC"
VERSION = 2

MAX_FRAME = 64 * 2**20  # bytes
MAX_HEAD = 64 * 2**10  # bytes
MAX_ARRAYS = 64
MAX_DIMENSIONS = 8
MAX_NESTING = 8
MAX_NAME = 128
MAX_DIGITS = 19  # of an integer: what 64 bits hold

DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("uint8", "int32", "int64", "float32", "float64", "bool")
}

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Frame:
    """What a frame holds.

    Args:
        kind: of message, 0 to 255.
        body: JSON values.
        arrays: name -> array of a type in `DTYPES`.
    """

    kind: int
    body: Mapping[str, object]
    arrays: Mapping[str, np.ndarray]


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        WireError: an array's type cannot be sent, or the frame is too large.
    """
    specs = []
    for name, array in frame.arrays.items():
        if array.dtype.name not in DTYPES:
            _refuse(f"array {name!r} is of {array.dtype}, send one of {', '.join(DTYPES)}")
        specs.append([name, array.dtype.name, list(array.shape)])
    try:
        text = json.dumps({"body": frame.body, "arrays": specs}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WireError(Code.BAD_MESSAGE, f"a message is no JSON: {error}") from error
    head = text.encode()
    if len(head) > MAX_HEAD:
        _refuse(f"the head has {len(head)} bytes, at most {MAX_HEAD} are sent: say less")
    parts, length = [head], HEADER.size + len(head)
    for array in frame.arrays.values():
        padding = -length % 8
        raw = array.astype(DTYPES[array.dtype.name], order="C", copy=False).tobytes()
        parts += [bytes(padding), raw]
        length += padding + len(raw)
    if length > MAX_FRAME:
        _refuse(f"the frame has {length} bytes, at most {MAX_FRAME} are sent: send less")
    header = HEADER.pack(MAGIC, VERSION, frame.kind, 0, len(head), length)
    return b"".join([header, *parts])


def decode_frame(buffer: Buffer) -> Frame:
    """The frame that a buffer holds, whole and alone.

    Raises:
        WireError: with `Code.BAD_FRAME`, the buffer holds anything else.
    """
    length = len(buffer)
    if not HEADER.size <= length <= MAX_FRAME:
        _refuse(f"a frame of {length} bytes came, it must have {HEADER.size} to {MAX_FRAME}")
    magic, version, kind, zero, n_head, n_total = HEADER.unpack_from(buffer)
    if magic != MAGIC or zero:
        _refuse("these bytes are no frame of cadence: connect a cadence client to a cadence server")
    if version != VERSION:
        _refuse(f"the frame is of version {version}, this side speaks {VERSION}: use one release")
    if n_total != length:
        _refuse(f"the frame says that it has {n_total} bytes, {length} came")
    if n_head > min(MAX_HEAD, length - HEADER.size):
        _refuse(f"the head says that it has {n_head} bytes, of {length} in all (limit {MAX_HEAD})")
    end = HEADER.size + n_head
    head = _parse(bytes(buffer[HEADER.size : end]))
    if set(head) != {"body", "arrays"}:
        _refuse("the head must hold body and arrays, and nothing else")
    body, specs = head["body"], head["arrays"]
    if not isinstance(body, dict) or not isinstance(specs, list):
        _refuse("the head's body must be an object, and its arrays a list")
    return Frame(kind, body, _arrays(buffer, specs, end))


def _parse(head: bytes) -> dict[str, object]:
    """The JSON object in a head; stricter than JSON where JSON leaves things open."""
    try:
        value = json.loads(
            head.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(Code.BAD_FRAME, f"the head is no JSON: {error}") from error
    _check_nesting(value)
    if not isinstance(value, dict):
        _refuse("the head is no JSON object")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("an object in the head names a key twice")
    return found


def _integer(text: str) -> int:
    # Digits are counted first: turning many of them into a number takes quadratic time.
    if len(text) > MAX_DIGITS + text.startswith("-"):
        _refuse(f"an integer in the head has {len(text)} digits, at most {MAX_DIGITS} are read")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(f"a number in the head is {value}, it must be finite")
    return value


def _constant(text: str) -> NoReturn:
    _refuse(f"a number in the head is {text}, it must be finite")


def _check_nesting(value: object) -> None:
    """Refuse what is nested deeply, and texts that cannot be written again."""
    level = [value]
    for _ in range(MAX_NESTING):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    _refuse(f"the head is nested more than {MAX_NESTING} levels deep")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("a text in the head holds half of a surrogate pair")


def _arrays(buffer: Buffer, specs: list[object], start: int) -> dict[str, np.ndarray]:
    """The arrays that follow a head which ends at `start`; the last one ends the buffer."""
    if len(specs) > MAX_ARRAYS:
        _refuse(f"the frame has {len(specs)} arrays, at most {MAX_ARRAYS} are read")
    arrays: dict[str, np.ndarray] = {}
    for spec in specs:
        name, dtype, shape = _spec(spec)
        if name in arrays:
            _refuse(f"the frame has two arrays {name!r}")
        begin = start + -start % 8
        size = math.prod(shape) * dtype.itemsize  # Integers of Python: they do not overflow.
        if begin + size > len(buffer):
            _refuse(f"array {name!r} has {size} bytes, {max(0, len(buffer) - begin)} are left")
        if any(buffer[start:begin]):
            _refuse(f"the bytes before array {name!r} are not zero")
        raw = np.frombuffer(buffer, np.uint8, size, begin)
        if dtype.kind == "b" and size and raw.max() > 1:
            _refuse(f"array {name!r} is of bool and holds a byte of {raw.max()}")
        arrays[name] = raw.view(dtype).reshape(shape).astype(dtype.newbyteorder("="))
        start = begin + size
    if start != len(buffer):
        _refuse(f"{len(buffer) - start} bytes follow the last array")
    return arrays


def _spec(spec: object) -> tuple[str, np.dtype, tuple[int, ...]]:
    """Name, type and shape of an array."""
    if not isinstance(spec, list) or len(spec) != 3:
        _refuse("an array must be told as [name, dtype, shape]")
    name, dtype, shape = spec
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        _refuse(f"an array's name must be a text of 1 to {MAX_NAME} characters")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(f"array {name!r} is of {dtype!r}, it must be one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        _refuse(f"the shape of array {name!r} must be a list of at most {MAX_DIMENSIONS} numbers")
    # A bool is an int for Python.
    if any(type(length) is not int or length < 0 for length in shape):
        _refuse(f"the shape of array {name!r} is {shape}, all must be integers of at least 0")
    # Lengths of 0 are left out: what lies beside them is bounded, too.
    if math.prod(length or 1 for length in shape) > MAX_FRAME:
        _refuse(f"array {name!r} has the shape {shape}, which no frame can hold")
    return name, DTYPES[dtype], tuple(shape)


def _refuse(text: str) -> NoReturn:
    raise WireError(Code.BAD_FRAME, text)
