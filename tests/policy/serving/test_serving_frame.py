"""Frames and messages: what was sent comes back, and nothing else gets through."""

import json
import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from serving_fakes import CONTRACT, HORIZONS, history

from policy.serving.errors import MAX_TEXT, Code, WireError, shortened
from policy.serving.frame import (
    DTYPES,
    HEADER,
    MAGIC,
    MAX_ARRAYS,
    MAX_FRAME,
    MAX_HEAD,
    VERSION,
    Frame,
    decode_frame,
    encode_frame,
)
from policy.serving.fuzz import MUTATIONS, fuzz, valid_frames
from policy.serving.messages import Answer, Ask, Failure, Hello, Release, Report, Welcome
from policy.serving.wire import Kind, decode, encode
from policy.types import Request

CONTRACT_TOLD = replace(CONTRACT, horizons=HORIZONS)


def raw_frame(head: bytes, payload: bytes = b"", *, kind: int = 1, pad: bool = True) -> bytes:
    """A frame with any head, whose header tells the truth."""
    padding = bytes(-(HEADER.size + len(head)) % 8) if payload and pad else b""
    total = HEADER.size + len(head) + len(padding) + len(payload)
    return HEADER.pack(MAGIC, VERSION, kind, 0, len(head), total) + head + padding + payload


def array_frame(dtype: object, shape: object, payload: bytes = b"", name: object = "a") -> bytes:
    head = json.dumps({"body": {}, "arrays": [[name, dtype, shape]]})
    return raw_frame(head.encode(), payload)


def refused(buffer: bytes) -> str:
    with pytest.raises(WireError) as error:
        decode_frame(buffer)
    assert error.value.code is Code.BAD_FRAME
    return str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arrays_come_back_bit_for_bit(data):
    dtype = st.sampled_from(list(DTYPES))
    shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    sent = {
        f"array {i}": data.draw(arrays(data.draw(dtype), data.draw(shapes)))
        for i in range(data.draw(st.integers(0, 4)))
    }
    came = decode_frame(encode_frame(Frame(9, {"n": 1, "ä": [None, "ß"]}, sent)))
    assert (came.kind, came.body) == (9, {"n": 1, "ä": [None, "ß"]})
    assert list(came.arrays) == list(sent)
    for name, array in sent.items():
        assert came.arrays[name].dtype == array.dtype
        assert came.arrays[name].shape == array.shape
        assert came.arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("order", ["F", "strided", "big endian"])
def test_layout_in_memory_does_not_matter(order):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    sent = {
        "F": np.asfortranarray(values),
        "strided": np.repeat(values, 2, axis=1)[:, ::2],
        "big endian": values.astype(">f4"),
    }[order]
    came = decode_frame(encode_frame(Frame(1, {}, {"a": sent}))).arrays["a"]
    assert came.tolist() == values.tolist()
    assert came.dtype == np.float32
    assert came.dtype.isnative


def test_arrays_are_copies_that_start_at_multiples_of_eight():
    sent = {"a": np.ones(3, np.uint8), "b": np.full(2, 7.0)}
    buffer = bytearray(encode_frame(Frame(1, {}, sent)))
    assert len(buffer) % 8 == 0  # The last array has whole doubles.
    assert buffer[-16:] == np.full(2, 7.0, "<f8").tobytes()
    came = decode_frame(buffer).arrays
    buffer[-16:] = bytes(16)
    assert came["b"].tolist() == [7.0, 7.0]


def test_every_message_comes_back():
    messages = [
        Hello(contract=CONTRACT_TOLD, token="secret", lease="0a", client="robot"),
        Hello(role="watch"),
        Welcome(CONTRACT_TOLD, lease="0a", lease_seconds=2.5, nfe=8, server="here"),
        Failure(Code.EXPIRED, "too late", 3),
        Failure(Code.MISMATCH, "not the same"),
        Report({"a": 1.5, "b": "x", "c": None, "d": [1.0, 2.0], "e": True}),
        Release(),
    ]
    for message in messages:
        assert decode(encode(message)) == message
    told = decode(encode(messages[0]))
    assert isinstance(told, Hello)
    assert told.contract is not None
    assert list(told.contract.observation) == ["state", "grip"]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_t6_a_history_of_any_length_crosses_the_wire(length):
    sent = {"a": np.arange(length * 3.0).reshape(length, 3), "b": np.ones((length, 2), np.uint8)}
    asked = decode(encode(Ask(4, Request(sent, 9, epoch=2, seed=2**62, delay=3), 0.25)))
    assert isinstance(asked, Ask)
    assert (asked.id, asked.deadline) == (4, 0.25)
    came = asked.request
    assert (came.tick, came.epoch, came.seed, came.delay) == (9, 2, 2**62, 3)
    assert {name: array.tolist() for name, array in came.history.items()} == {
        name: array.tolist() for name, array in sent.items()
    }


def test_decided_actions_cross_the_wire_apart_from_what_was_seen():
    sent, decided = {"a": np.ones((1, 2))}, np.arange(8.0).reshape(4, 2)
    asked = decode(encode(Ask(4, Request(sent, 9, delay=3, decided=decided), 0.25)))
    assert isinstance(asked, Ask)
    assert list(asked.request.history) == ["a"]
    assert asked.request.decided is not None
    assert asked.request.decided.tolist() == decided.tolist()


def test_x2_types_that_name_memory_are_refused():
    # numpy takes all of these; reading an element of an "O" array follows a pointer of the peer's.
    for dtype in ("O", "object", "V8", "void", "<f4", "f4", "float16", "complex64", "U8", "M8[s]"):
        assert "must be one of" in refused(array_frame(dtype, [1], b"A" * 8))
    for dtype in (None, 4, ["float32"], [["a", "O"]], {"names": ["a"], "formats": ["O"]}):
        assert "must be one of" in refused(array_frame(dtype, [1], b"A" * 8))


def test_x2_what_is_refused_would_have_killed_the_process():
    crash = "import numpy as np; np.ndarray((1,), dtype='|O', buffer=b'A' * 8)[0]"
    assert subprocess.run([sys.executable, "-c", crash], check=False).returncode < 0


def test_x2_lengths_must_be_what_is_there():
    valid = array_frame("float32", [2], bytes(8))
    assert decode_frame(valid).arrays["a"].shape == (2,)
    assert "are left" in refused(array_frame("float32", [3], bytes(8)))
    assert "follow the last" in refused(array_frame("float32", [1], bytes(8)))
    assert "says that it has" in refused(valid[:-1])
    assert "says that it has" in refused(valid + b"\0")
    head = bytearray(valid)
    head[8:12] = (MAX_HEAD + 1).to_bytes(4, "little")
    assert "the head says" in refused(bytes(head))
    assert "not zero" in refused(
        raw_frame(b'{"body":{},"arrays":[["a","uint8",[1]]]}'.ljust(41), b"\1" * 8, pad=False)
    )


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [2, -3],
        [True],
        [1.0],
        ["1"],
        [None],
        5,
        None,
        [1] * 9,
        [2**63 - 1],
        [2**32, 2**32],
        [0, 2**62],
        [MAX_FRAME, MAX_FRAME, 0],
    ],
)
def test_x2_shapes_are_bounded(shape):
    assert "shape" in refused(array_frame("uint8", shape, bytes(8)))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"body":{}}',
        b'{"body":[],"arrays":[]}',
        b'{"body":{},"arrays":{}}',
        b'{"body":{},"arrays":[],"more":1}',
        b'{"body":{},"arrays":[["a","uint8"]]}',
        b'{"body":{"x":NaN},"arrays":[]}',
        b'{"body":{"x":-Infinity},"arrays":[]}',
        b'{"body":{"x":1e999},"arrays":[]}',
        b'{"body":{"x":' + b"1" * 20 + b'},"arrays":[]}',
        b'{"body":{"x":' + b"1" * 5000 + b'},"arrays":[]}',
        b'{"body":{"x":1,"x":1},"arrays":[]}',
        b'{"body":{"x":"\\ud800"},"arrays":[]}',
        b'{"body":{"\\udfff":1},"arrays":[]}',
        b'{"body":{"x":"\xed\xa0\x80"},"arrays":[]}',
        b'{"body":{"x":"\xff"},"arrays":[]}',
        b'\xef\xbb\xbf{"body":{},"arrays":[]}',
        '{"body":{},"arrays":[]}'.encode("utf-16"),
        b'{"body":{"x":' + b"[" * 20000 + b"]" * 20000 + b'},"arrays":[]}',
        b'{"body":{"x":' + b"[" * 8 + b"]" * 8 + b'},"arrays":[]}',
    ],
    ids=range(23),
)
def test_x2_a_head_that_is_not_plain_json_is_refused(head):
    refused(raw_frame(head))


def test_x2_numbers_of_things_are_bounded():
    many = [[f"{i}", "uint8", [0]] for i in range(MAX_ARRAYS + 1)]
    assert "arrays" in refused(raw_frame(json.dumps({"body": {}, "arrays": many}).encode()))
    twice = json.dumps({"body": {}, "arrays": [["a", "uint8", [8]]] * 2}).encode()
    assert "two arrays" in refused(raw_frame(twice, bytes(16)))
    assert "bytes came" in refused(bytes(MAX_FRAME + 1))
    assert "byte of 2" in refused(array_frame("bool", [1], b"\2"))
    for name in ("", "x" * 129, 3, None):
        assert "name" in refused(array_frame("uint8", [1], b"\0", name=name))
    with pytest.raises(WireError, match="head has"):
        encode_frame(Frame(1, {"x": "x" * MAX_HEAD}, {}))
    with pytest.raises(WireError, match="frame has"):
        encode_frame(Frame(1, {}, {"x": np.zeros(MAX_FRAME, np.uint8)}))
    with pytest.raises(WireError, match="float16"):
        encode_frame(Frame(1, {}, {"x": np.zeros(1, np.float16)}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_x2_an_observation_that_is_not_finite_is_refused_by_name(bad, dtype):
    sent = {"good": np.zeros((2, 3), dtype), "spoilt": np.zeros((2, 3), dtype)}
    frame = encode(Ask(1, Request(sent, 0), 1.0))
    place = len(frame) - np.dtype(dtype).itemsize
    spoilt = frame[:place] + np.array(bad, np.dtype(dtype).newbyteorder("<")).tobytes()
    with pytest.raises(WireError, match="'spoilt'") as error:
        decode(spoilt)
    assert error.value.code is Code.NOT_FINITE
    sent["spoilt"][-1, -1] = bad
    with pytest.raises(WireError, match="'spoilt'"):
        encode(Ask(1, Request(sent, 0), 1.0))


def test_x2_decoder_survives_20000_malformed_frames():
    outcome = fuzz(20_000, seed=1)
    assert outcome.n_refused == 20_000
    assert outcome.growth < 64  # MiB: the largest frame; nothing is ever reserved on a peer's word.


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_x2_every_way_of_lying_is_caught_at_times(mutate):
    rng, frames, caught = np.random.default_rng(0), valid_frames(), 0
    for index in range(200):
        try:
            decode(mutate(rng, frames[index % len(frames)]))
        except WireError:
            caught += 1
    assert caught > 50


@pytest.mark.parametrize(
    "changes",
    [
        {"id": -1},
        {"id": 1.0},
        {"id": True},
        {"id": 2**53 + 1},
        {"tick": None},
        {"seed": 2**63},
        {"deadline": -0.1},
        {"deadline": 61},
        {"deadline": "1"},
        {"path": "/etc/passwd"},
    ],
    ids=str,
)
def test_entries_of_a_request_are_checked(changes):
    frame = decode_frame(encode(Ask(1, Request(history(), 0), 1.0)))
    body = {**frame.body, **changes}
    with pytest.raises(WireError) as error:
        decode(encode_frame(Frame(frame.kind, body, frame.arrays)))
    assert error.value.code is Code.BAD_MESSAGE


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("dtype", "O"),
        ("dtype", "f4,f4"),
        ("dtype", ["float32"]),
        ("shape", [-3]),
        ("shape", ["ab", 3]),
        ("shape", 3),
        ("shape", None),
        ("shape", [2**40, 2**40]),
        ("unit", ["m"]),
        ("unit", 5),
        ("angles", ["x"]),
        ("angles", 3),
        ("low", {"a": 1}),
        ("kind", []),
        ("scaled_per", 7),
        ("unknown", 1),
    ],
)
def test_entries_of_a_contract_are_checked(where, value):
    frame = decode_frame(encode(Hello(contract=CONTRACT)))
    body = json.loads(json.dumps(frame.body))
    body["contract"]["observation"]["state"][where] = value
    with pytest.raises(WireError) as error:
        decode(encode_frame(Frame(frame.kind, body, {})))
    assert error.value.code is Code.BAD_MESSAGE


def test_a_report_is_small_and_flat():
    for values in (
        {f"{i}": 1.0 for i in range(65)},
        {"a": "x" * (MAX_TEXT + 1)},
        {"a": [1.0] * 1025},
        {"a": [[1.0]]},
        {"a": {"b": 1.0}},
        {"a": ["x"]},
    ):
        with pytest.raises(WireError):
            encode(Report(values))  # pyright: ignore[reportArgumentType]


def test_a_text_and_arrays_in_the_wrong_place_are_refused():
    with pytest.raises(WireError, match="binary"):
        decode("hello")
    with pytest.raises(WireError, match="no arrays"):
        decode(encode_frame(Frame(Kind.RELEASE, {}, {"a": np.zeros(1)})))
    with pytest.raises(WireError, match="one array"):
        decode(encode_frame(Frame(Kind.ANSWER, {"id": 1}, {"a": np.zeros(1)})))
    actions = np.full((8, 2), math.nan)
    with pytest.raises(WireError, match="NaN"):
        encode(Answer(1, 0, 0, actions, seconds=0.0))


def test_x4_a_client_has_nothing_to_name_or_to_stop():
    """The whole of what can be said; who adds to it should think of what it lets a client do."""
    assert [kind.name for kind in Kind] == [
        *("HELLO", "WELCOME", "ASK", "ANSWER", "FAILURE", "REPORT", "RELEASE")
    ]
    entries = {kind: [f.name for f in fields(kind)] for kind in (Hello, Ask, Report, Release)}
    assert entries == {
        Hello: ["role", "contract", "token", "lease", "client"],
        Ask: ["id", "request", "deadline"],
        Report: ["values"],
        Release: [],
    }
    for kind in (0, *range(len(Kind) + 1, 256)):
        with pytest.raises(WireError, match="no message of kind"):
            decode(encode_frame(Frame(kind, {}, {})))


def test_texts_for_peers_are_short_and_on_one_line():
    assert shortened("a\nb\x1b[2J") == "a?b?[2J"
    assert len(shortened("x" * 10_000)) == MAX_TEXT
