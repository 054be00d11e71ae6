"""Planners, peers and processes that the tests of serving share."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from websockets.sync.client import ClientConnection, connect

from data.types import Contract, Field, Horizons
from policy.serving.background import in_background
from policy.serving.client import RemotePlanner
from policy.serving.errors import ServingError
from policy.serving.messages import Ask, Hello, Message, Welcome
from policy.serving.server import PolicyServer
from policy.serving.settings import ServerSettings
from policy.serving.wire import decode, encode
from policy.types import ActionChunk, Request

CONTRACT = Contract(
    {"state": Field(shape=(3,), unit="m"), "grip": Field(shape=(1,), unit="1")},
    Field(shape=(2,), unit="m"),
    control_dt=0.1,
    statistics="digest-a",
)
HORIZONS = Horizons(obs=2, pred=8, action=4)
TOKEN = "0123456789abcdef-secret"
# A machine that is busy with other things; nothing here needs so long by itself.
PATIENCE = 30.0  # s


class FakePlanner:
    """Action i of the chunk for tick k is (epoch, k + i); may be held up, or made to fail."""

    contract, horizons = CONTRACT, HORIZONS

    def __init__(self):
        self.requests: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, request: Request) -> ActionChunk:
        self.requests.append(request)
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        steps = np.arange(HORIZONS.future, dtype=np.float32)
        actions = np.stack([np.full_like(steps, request.epoch), request.tick + steps], axis=1)
        return ActionChunk(actions, request.tick, CONTRACT)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)


def history(value: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "state": np.full((HORIZONS.obs, 3), value, np.float32),
        "grip": np.full((HORIZONS.obs, 1), value, np.float32),
    }


def request(tick: int = 0, *, value: float = 0.0, epoch: int = 0, seed: int = 0) -> Request:
    return Request(history(value), tick, epoch=epoch, seed=seed)


@contextmanager
def serving(
    planner: FakePlanner | None = None,
    *,
    warm_up: Callable[[], object] = lambda: None,
    wait_ready: bool = True,
    name: str = "fake",
    **settings,
) -> Iterator[PolicyServer]:
    server = PolicyServer(
        planner or FakePlanner(), ServerSettings(**settings), warm_up=warm_up, name=name, nfe=3
    )
    with in_background(server, wait_ready=wait_ready):
        yield server


class Peer:
    """A client that says what it is told to, message by message."""

    def __init__(self, connection: ClientConnection):
        self.connection = connection
        self.n_asked = 0

    def send(self, message: Message) -> None:
        self.connection.send(encode(message))

    def receive(self) -> Message:
        return decode(self.connection.recv(PATIENCE))

    def hello(self, **changes) -> Message:
        self.send(replace(Hello(contract=CONTRACT, client="peer"), **changes))
        return self.receive()

    def ask(self, tick: int = 0, *, deadline: float = PATIENCE, **changes) -> int:
        self.n_asked += 1
        self.send(Ask(self.n_asked, request(tick, **changes), deadline))
        return self.n_asked


@contextmanager
def peer(server: PolicyServer | str, *, greet: bool = True, **changes) -> Iterator[Peer]:
    """A peer that has said hello and was welcomed, if it was to greet."""
    address = server if isinstance(server, str) else server.address
    with connect(address, proxy=None, compression=None, close_timeout=1) as connection:
        made = Peer(connection)
        if greet:
            assert isinstance(made.hello(**changes), Welcome)
        yield made


def get(server: PolicyServer | str, path: str, **headers: str) -> tuple[int, str]:
    """Status and body of a GET."""
    address = server if isinstance(server, str) else server.address
    asked = urllib.request.Request("http" + address.removeprefix("ws") + path, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server: PolicyServer, name: str) -> float:
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)


def serve_forever(port: int, hold_up: bool, told) -> None:
    """What a process runs: serve, and tell the port through a pipe; may never answer."""
    planner = FakePlanner()
    if hold_up:
        planner.gate.clear()
    with serving(planner, port=port, lease_seconds=1.0) as server:
        told.send(server.port)
        threading.Event().wait()


def control_forever(address: str, told) -> None:
    """What a process runs: ask for chunks without end, and tell of the first."""
    with RemotePlanner(address, CONTRACT, deadline=PATIENCE) as planner:
        for tick in range(10**9):
            planner(request(tick))
            if tick == 0:
                told.send("controls")


def chunk_in_the_end(planner: RemotePlanner, asked: Request) -> ActionChunk:
    """The chunk for a request, asked for until there is one."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return planner(asked)
        except ServingError:
            assert time.monotonic() < end, "no server came back"
            time.sleep(0.02)
