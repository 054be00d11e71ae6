"""Messages as frames: what a message must hold, checked entry by entry.

Whatever is wrong is a `WireError`, and nothing else is ever raised.
"""

import math
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import NoReturn, get_args

import numpy as np

from data.types import Contract, ContractError
from policy.serving.errors import MAX_TEXT, Code, WireError, shortened
from policy.serving.frame import DTYPES, MAX_FRAME, Buffer, Frame, decode_frame, encode_frame
from policy.serving.messages import (
    Answer,
    Ask,
    Failure,
    Hello,
    Message,
    Release,
    Report,
    Role,
    Welcome,
)
from policy.types import Request

MAX_COUNT = 2**53  # Ticks, epochs and ids: what JSON holds exactly everywhere.
MAX_SEED = 2**63 - 1
MAX_TOKEN = 1024
MAX_DEADLINE = 60.0  # s
MAX_VALUES = 64
MAX_LIST = 1024
DECIDED = "action"  # Name of the decided actions' array; no observation can be called that.


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    ASK = 3
    ANSWER = 4
    FAILURE = 5
    REPORT = 6
    RELEASE = 7


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        WireError: the message holds what cannot be sent.
    """
    arrays: Mapping[str, np.ndarray] = {}
    body: dict[str, object]
    match message:
        case Hello():
            kind = Kind.HELLO
            contract = message.contract.to_json() if message.contract else None
            body = {
                "role": message.role,
                "contract": contract,
                "token": message.token,
                "lease": message.lease,
                "client": message.client,
            }
        case Welcome():
            kind = Kind.WELCOME
            body = {
                "contract": message.contract.to_json(),
                "lease": message.lease,
                "lease_seconds": message.lease_seconds,
                "nfe": message.nfe,
                "server": message.server,
            }
        case Ask():
            kind, arrays = Kind.ASK, dict(message.request.history)
            if message.request.decided is not None:
                arrays[DECIDED] = message.request.decided
            body = {"id": message.id, "deadline": message.deadline}
            for name in ("tick", "epoch", "seed", "delay", "is_urgent"):
                body[name] = int(getattr(message.request, name))
        case Answer():
            kind, arrays = Kind.ANSWER, {"actions": message.actions}
            body = {
                "id": message.id,
                "epoch": message.epoch,
                "tick0": message.tick0,
                "seconds": message.seconds,
            }
        case Failure():
            kind = Kind.FAILURE
            body = {"code": message.code, "text": shortened(message.text), "id": message.id}
        case Report():
            kind = Kind.REPORT
            body = {"values": dict(message.values)}
        case Release():
            kind, body = Kind.RELEASE, {}
    if isinstance(message, Ask | Report):
        # What the server would cut the connection for is not sent.
        _READERS[kind](_Body(body), arrays)
    _check_finite(arrays)
    return encode_frame(Frame(kind, body, arrays))


def decode(buffer: Buffer | str) -> Message:
    """The message in a frame.

    Args:
        buffer: as it came; a text is refused.

    Raises:
        WireError: the bytes are no frame, the frame is no message, or a number in an array is not
            finite.
    """
    if isinstance(buffer, str):
        raise WireError(Code.BAD_FRAME, "a text came, messages are binary frames")
    frame = decode_frame(buffer)
    read = _READERS.get(frame.kind)
    if read is None:
        _refuse(f"there is no message of kind {frame.kind}, they are 1 to {len(Kind)}")
    body = _Body(frame.body)
    message = read(body, frame.arrays)
    body.check_all_taken()
    if frame.arrays and not isinstance(message, Ask | Answer):
        _refuse(f"a message of kind {frame.kind} has no arrays, {len(frame.arrays)} came")
    _check_finite(frame.arrays)
    return message


class _Body:
    """The JSON values of a message; each is taken once, with its type and range checked."""

    def __init__(self, values: Mapping[str, object]):
        self._left = dict(values)

    def take(self, name: str) -> object:
        if name not in self._left:
            _refuse(f"the message lacks {name!r}")
        return self._left.pop(name)

    def integer(self, name: str, *, highest: int = MAX_COUNT) -> int:
        value = self.take(name)
        # A bool is an int for Python.
        if type(value) is not int or not 0 <= value <= highest:
            _refuse(f"{name} must be a whole number, 0 to {highest}")
        return value

    def number(self, name: str, *, highest: float = math.inf) -> float:
        value = self.take(name)
        if type(value) not in (int, float) or not 0 <= value <= highest:  # type: ignore[operator]
            _refuse(f"{name} must be a number, 0 to {highest:g}")
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str, *, longest: int = MAX_TEXT) -> str:
        value = self.take(name)
        if not isinstance(value, str) or len(value) > longest:
            _refuse(f"{name} must be a text of at most {longest} characters")
        return value

    def check_all_taken(self) -> None:
        if self._left:
            _refuse(f"the message has entries that nobody knows: {sorted(self._left)}")


def _hello(body: _Body, arrays: Mapping[str, np.ndarray]) -> Hello:
    role, contract = body.text("role"), body.take("contract")
    if role not in get_args(Role):
        _refuse(f"the role is {role!r}, it must be one of {', '.join(get_args(Role))}")
    if (contract is None) != (role == "watch"):
        _refuse("a client that controls must tell its contract, one that watches has none")
    return Hello(
        role="watch" if role == "watch" else "control",
        contract=None if contract is None else _contract(contract),
        token=body.text("token", longest=MAX_TOKEN),
        lease=body.text("lease"),
        client=body.text("client"),
    )


def _welcome(body: _Body, arrays: Mapping[str, np.ndarray]) -> Welcome:
    return Welcome(
        contract=_contract(body.take("contract")),
        lease=body.text("lease"),
        lease_seconds=body.number("lease_seconds"),
        nfe=body.integer("nfe"),
        server=body.text("server"),
    )


def _ask(body: _Body, arrays: Mapping[str, np.ndarray]) -> Ask:
    request = Request(
        {name: array for name, array in arrays.items() if name != DECIDED},
        body.integer("tick"),
        epoch=body.integer("epoch"),
        seed=body.integer("seed", highest=MAX_SEED),
        delay=body.integer("delay"),
        is_urgent=bool(body.integer("is_urgent", highest=1)),
        decided=arrays.get(DECIDED),
    )
    return Ask(body.integer("id"), request, body.number("deadline", highest=MAX_DEADLINE))


def _answer(body: _Body, arrays: Mapping[str, np.ndarray]) -> Answer:
    if set(arrays) != {"actions"} or arrays["actions"].ndim != 2:
        _refuse("an answer must have one array, the actions [n, Da]")
    return Answer(
        id=body.integer("id"),
        epoch=body.integer("epoch"),
        tick0=body.integer("tick0"),
        actions=arrays["actions"],
        seconds=body.number("seconds"),
    )


def _failure(body: _Body, arrays: Mapping[str, np.ndarray]) -> Failure:
    code = body.text("code")
    if code not in set(Code):
        _refuse(f"there is no code {code!r}")
    value = body.take("id")
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
        _refuse(f"id must be null or a whole number, 0 to {MAX_COUNT}")
    return Failure(Code(code), body.text("text"), value)


def _report(body: _Body, arrays: Mapping[str, np.ndarray]) -> Report:
    values = body.take("values")
    if not isinstance(values, dict) or len(values) > MAX_VALUES:
        _refuse(f"a report must be an object of at most {MAX_VALUES} values")
    for name, value in values.items():
        if not _is_value(value):
            _refuse(
                f"{name!r} in a report must be a number, a text of at most {MAX_TEXT} characters "
                f"or a list of at most {MAX_LIST} numbers"
            )
    return Report(values)


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_LIST and all(type(item) in (int, float) for item in value)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return value is None or isinstance(value, int | float)


def _release(body: _Body, arrays: Mapping[str, np.ndarray]) -> Release:
    return Release()


_READERS: Mapping[int, Callable[[_Body, Mapping[str, np.ndarray]], Message]] = {
    Kind.HELLO: _hello,
    Kind.WELCOME: _welcome,
    Kind.ASK: _ask,
    Kind.ANSWER: _answer,
    Kind.FAILURE: _failure,
    Kind.REPORT: _report,
    Kind.RELEASE: _release,
}


def _contract(entry: object) -> Contract:
    """A contract from a peer; its types and shapes are looked at before anything uses them."""
    if not isinstance(entry, dict) or not isinstance(entry.get("observation"), dict):
        _refuse("the contract must be an object that holds observation, action and control_dt")
    for name, field_entry in [*entry["observation"].items(), ("action", entry.get("action"))]:
        if not isinstance(field_entry, dict):
            _refuse(f"the contract's {name!r} must be an object")
        dtype, shape = field_entry.get("dtype", "float32"), field_entry.get("shape")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            _refuse(f"the contract's {name!r} is of {dtype!r}, give one of {', '.join(DTYPES)}")
        if (
            not isinstance(shape, list)
            or any(type(n) is not int or n < 0 for n in shape)
            or math.prod(n or 1 for n in shape) > MAX_FRAME
        ):
            _refuse(f"the contract's {name!r} has the shape {shape}, which no frame can hold")
    try:
        return Contract.from_json(entry)
    # A field that is of another kind than it should be fails in whatever looks at it first.
    except (ContractError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise WireError(Code.BAD_MESSAGE, f"the contract is not valid: {error}") from error


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WireError(
                Code.NOT_FINITE, f"{name!r} holds a number that is NaN or infinite: look there"
            )


def _refuse(text: str) -> NoReturn:
    raise WireError(Code.BAD_MESSAGE, text)
