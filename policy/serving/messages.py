"""The messages between a client and a policy server.

    client                                server
    Hello (contract, token, role)   ->
                                    <-    Welcome (contract, lease) or Failure
    Ask (request, deadline)         ->
                                    <-    Answer (actions) or Failure
    Report (how control goes)       ->
                                    <-    Report, to those who watch
    Release                         ->

A client can say nothing else: it names no file, no checkpoint and no device, and cannot stop the
server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from data.types import Contract
from policy.serving.errors import Code
from policy.types import Request

Role = Literal["control", "watch"]
# A flat record: what a page or a log shows of the control loop.
Value = str | float | bool | None | list[float]


@dataclass(frozen=True)
class Hello:
    """The first message of a client.

    Args:
        role: whether it controls a robot or only watches.
        contract: what it observes and commands; None of one that watches.
        token: the server's secret, "" where there is none.
        lease: of its last welcome, to go on after a broken connection; "" at first.
        client: its name, for the server's log.
    """

    role: Role = "control"
    contract: Contract | None = None
    token: str = field(default="", repr=False)
    lease: str = field(default="", repr=False)
    client: str = ""


@dataclass(frozen=True)
class Welcome:
    """The server's answer to a hello.

    Args:
        contract: of its planner, with the horizons.
        lease: secret that proves the lease; "" for one that watches.
        lease_seconds: the lease ends so long after the last message.
        nfe: denoiser calls per chunk; 0 where it is not known.
        server: name and release.
    """

    contract: Contract
    lease: str = field(default="", repr=False)
    lease_seconds: float = 0.0
    nfe: int = 0
    server: str = ""


@dataclass(frozen=True)
class Ask:
    """A request for a chunk.

    Args:
        id: that the answer repeats.
        request: what the planner is told.
        deadline: s from its sending; a duration, since clocks differ.
    """

    id: int
    request: Request
    deadline: float


@dataclass(frozen=True)
class Answer:
    """A chunk.

    Args:
        id: of the request.
        epoch: of the request.
        tick0: control tick that `actions[0]` is meant for.
        actions: [n, Da], physical units, finite.
        seconds: that the planner took.
    """

    id: int
    epoch: int
    tick0: int
    actions: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Something was refused.

    Args:
        code: why.
        text: in words.
        id: of the request that is refused; None where it was not one.
    """

    code: Code
    text: str
    id: int | None = None


@dataclass(frozen=True)
class Report:
    """How control goes, told by who controls, passed on to those who watch.

    Args:
        values: at most 64 of them, each a number, a short text or a list of numbers.
    """

    values: Mapping[str, Value]


@dataclass(frozen=True)
class Release:
    """The client needs the lease no more."""


Message = Hello | Welcome | Ask | Answer | Failure | Report | Release
