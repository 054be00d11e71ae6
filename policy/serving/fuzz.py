"""Does the decoder refuse whatever is malformed: no crash, no hang, no other error, no memory.

    python -m policy.serving.fuzz             # 1,000,000 malformed frames
    python -m policy.serving.fuzz 20000 7     # so many, with another seed

Frames are made from valid ones by lying in the header, in the head or in the arrays, and from
nothing. Some lies leave a frame valid (another number in an array); those are counted apart.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.types import Contract, Field, Horizons
from policy.serving.errors import Code, WireError
from policy.serving.frame import DTYPES, HEADER, MAGIC, VERSION, decode_frame
from policy.serving.messages import Answer, Ask, Failure, Hello, Release, Report, Welcome
from policy.serving.wire import decode, encode
from policy.types import Request

Mutation = Callable[[np.random.Generator, bytes], bytes]

# Values that parsers have stumbled over.
ODD_JSON = (
    "NaN",
    "-Infinity",
    "1e999",
    "1" * 5000,
    "-1",
    "1.5",
    "true",
    "null",
    '""',
    '"\\ud800"',
    '"\\u0000"',
    "[]",
    "{}",
    "[" * 3000 + "]" * 3000,
    '{"a":' * 20 + "1" + "}" * 20,
    '{"a":1,"a":2}',
    "18446744073709551616",
    "9223372036854775807",
    '"O"',
    '"V8"',
    '"object"',
    '"<f4"',
    '"datetime64[s]"',
    '"f4,f4"',
    "[-1]",
    "[0,9223372036854775807]",
    "[4294967296,4294967296]",
    "[1,1,1,1,1,1,1,1,1]",
    "[true]",
    "[[1]]",
    '{"shape":["ab",3],"dtype":"float32"}',
)


@dataclass(frozen=True)
class Outcome:
    """What became of the frames.

    Args:
        n_refused: that raised WireError.
        n_valid: that still were messages.
        slowest: s of computing, of one frame.
        growth: MiB, of the process's largest memory.
        seconds: in all.
    """

    n_refused: int
    n_valid: int
    slowest: float
    growth: float
    seconds: float


def valid_frames() -> list[bytes]:
    """One frame of each kind of message, and some with several arrays."""
    contract = Contract(
        {"state": Field(shape=(3,)), "image": Field(shape=(4, 4, 3), dtype="uint8")},
        Field(shape=(2,), unit="m", low=(0.0, 0.0), high=(1.0, 1.0)),
        control_dt=0.1,
        horizons=Horizons(2, 8, 4),
        statistics="abc",
    )
    history = {
        "state": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "image": np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3),
    }
    every_type = {name: np.ones((2, 3), name) for name in DTYPES}
    actions = np.zeros((8, 2), np.float32)
    messages = [
        Hello(contract=contract, token="secret", client="fuzz"),
        Hello(role="watch"),
        Welcome(contract, lease="0123", lease_seconds=5.0, nfe=8, server="fuzz"),
        Ask(1, Request(history, 7, epoch=1, seed=3, delay=2), 0.5),
        Ask(2, Request(every_type, 8), 0.5),
        Answer(1, 1, 7, actions, seconds=0.01),
        Failure(Code.EXPIRED, "too late", 1),
        Report({"period_ms": 100.0, "state": "active", "plan": [0.0, 1.0], "none": None}),
        Release(),
    ]
    return [encode(message) for message in messages]


def from_nothing(rng: np.random.Generator, frame: bytes) -> bytes:
    """Random bytes, in half of the cases behind a plausible header."""
    noise = rng.bytes(int(rng.integers(0, 200)))
    if rng.random() < 0.5:
        return noise
    n_head = int(rng.integers(0, len(noise) + 1))
    kind = int(rng.integers(0, 10))
    return HEADER.pack(MAGIC, VERSION, kind, 0, n_head, HEADER.size + len(noise)) + noise


def flip_bits(rng: np.random.Generator, frame: bytes) -> bytes:
    """One to eight bits are wrong."""
    broken = bytearray(frame)
    for bit in rng.integers(0, 8 * len(frame), int(rng.integers(1, 9))):
        broken[bit // 8] ^= 1 << (bit % 8)
    return bytes(broken)


def cut(rng: np.random.Generator, frame: bytes) -> bytes:
    """The end is missing; the header may know or not."""
    short = frame[: int(rng.integers(0, len(frame)))]
    return _with_length(short) if rng.random() < 0.5 else short


def extend(rng: np.random.Generator, frame: bytes) -> bytes:
    """Something follows; the header may know or not."""
    longer = frame + rng.bytes(int(rng.integers(1, 64)))
    return _with_length(longer) if rng.random() < 0.5 else longer


def lie_in_header(rng: np.random.Generator, frame: bytes) -> bytes:
    """One entry of the header is any number."""
    fields = list(HEADER.unpack_from(frame))
    which = int(rng.integers(1, 6))
    highest = (2**8, 2**8, 2**16, 2**32, 2**32)[which - 1]
    fields[which] = int(rng.integers(0, highest))
    return HEADER.pack(*fields) + frame[HEADER.size :]


def swap_value(rng: np.random.Generator, frame: bytes) -> bytes:
    """One value in the head is replaced by an odd one."""
    head, rest = _split(frame)
    value = json.loads(head)
    places = list(_places(value))
    container, key = places[int(rng.integers(len(places)))]
    container[key] = "@odd@"
    odd = ODD_JSON[int(rng.integers(len(ODD_JSON)))]
    return _joined(frame, json.dumps(value).replace('"@odd@"', odd).encode(), rest)


def rename_key(rng: np.random.Generator, frame: bytes) -> bytes:
    """One key of an object in the head is missing, new, or there twice."""
    head, rest = _split(frame)
    value = json.loads(head)
    objects = [value, *(c[k] for c, k in _places(value) if isinstance(c[k], dict))]
    target = objects[int(rng.integers(len(objects)))]
    keys = list(target)
    what = int(rng.integers(3))
    if what == 0 and keys:
        del target[keys[int(rng.integers(len(keys)))]]
    elif what == 1 or not keys:
        target["path"] = "/etc/passwd"
    else:
        target["@twice@"] = target[keys[0]]
        twice = json.dumps(value).replace("@twice@", keys[0])
        return _joined(frame, twice.encode(), rest)
    return _joined(frame, json.dumps(value).encode(), rest)


def spoil_text(rng: np.random.Generator, frame: bytes) -> bytes:
    """The head is no UTF-8, or one character of it is another."""
    head, rest = _split(frame)
    broken = bytearray(head)
    for place in rng.integers(0, len(head), int(rng.integers(1, 4))):
        broken[place] = int(rng.integers(0, 256))
    return _joined(frame, bytes(broken), rest)


MUTATIONS: tuple[Mutation, ...] = (
    from_nothing,
    flip_bits,
    cut,
    extend,
    lie_in_header,
    swap_value,
    rename_key,
    spoil_text,
)


def mutated_frames(seed: int) -> Iterator[bytes]:
    """Frames without end, each wrong in one way."""
    rng, frames = np.random.default_rng(seed), valid_frames()
    while True:
        for mutate in MUTATIONS:
            yield mutate(rng, frames[int(rng.integers(len(frames)))])


def fuzz(n_refused: int, seed: int) -> Outcome:
    """Decode frames until so many were refused.

    Raises:
        Exception: whatever else than WireError the decoder raised: a defect.
    """
    refused = valid = 0
    slowest, began, before = 0.0, time.perf_counter(), _memory()
    for frame in mutated_frames(seed):
        if refused == n_refused:
            break
        start = time.thread_time()
        for read in (decode_frame, decode):
            try:
                read(frame)
            except WireError:
                is_refused = True
            else:
                is_refused = False
        slowest = max(slowest, time.thread_time() - start)
        refused, valid = refused + is_refused, valid + (not is_refused)
    seconds = time.perf_counter() - began
    return Outcome(refused, valid, slowest, _memory() - before, seconds)


def _memory() -> float:
    """Largest memory of this process so far [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _split(frame: bytes) -> tuple[bytes, bytes]:
    """Head, and what follows it."""
    end = HEADER.size + HEADER.unpack_from(frame)[4]
    return frame[HEADER.size : end], frame[end:]


def _joined(frame: bytes, head: bytes, rest: bytes) -> bytes:
    """A frame with another head; the arrays stay where their padding puts them."""
    kind, old = frame[5], HEADER.unpack_from(frame)[4]
    arrays = rest[-(HEADER.size + old) % 8 :] if rest else b""
    padding = bytes(-(HEADER.size + len(head)) % 8) if rest else b""
    length = HEADER.size + len(head) + len(padding) + len(arrays)
    header = HEADER.pack(MAGIC, VERSION, kind, 0, len(head), length)
    return header + head + padding + arrays


def _with_length(frame: bytes) -> bytes:
    """A frame whose header tells its true length."""
    if len(frame) < HEADER.size:
        return frame
    fields = HEADER.unpack_from(frame)
    return HEADER.pack(*fields[:-1], len(frame)) + frame[HEADER.size :]


def _places(value: object) -> Iterator[tuple]:
    """All (container, key) within a JSON value."""
    keys: Sequence = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])  # pyright: ignore[reportIndexIssue]


def main() -> None:
    """Entry point."""
    arguments = [int(argument) for argument in sys.argv[1:3]]
    n, seed = [*arguments, *(1_000_000, 0)[len(arguments) :]]
    outcome = fuzz(n, seed)
    print(
        f"{outcome.n_refused:,} malformed frames refused and {outcome.n_valid:,} that stayed valid "
        f"read in {outcome.seconds:.0f} s, slowest {1e3 * outcome.slowest:.1f} ms, "
        f"memory grew by {outcome.growth:.1f} MiB"
    )


if __name__ == "__main__":
    main()
