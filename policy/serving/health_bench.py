"""How fast is health answered while a planner works and many clients are there.

    python -m policy.serving.health_bench            # 100 clients, 10 s for each measurement
    python -m policy.serving.health_bench 100 5

One client controls and asks for a chunk all the time. The others hold a WebSocket each and ask for
/health in connections of their own, first once a second each, then again at once, which is as
much as the server can answer: what they wait then is their number divided by its rate. One more
asks ten times a second, as a supervisor does. Two planners: one that waits 200 ms a chunk (as for
a GPU), one that multiplies matrices on the CPU for as long. The clients are in a process of their
own; all share this machine's cores.
"""

import asyncio
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from websockets.asyncio.client import connect

from data.types import Contract, Field, Horizons
from policy.serving.background import in_background
from policy.serving.client import RemotePlanner
from policy.serving.messages import Hello
from policy.serving.server import PolicyServer
from policy.serving.settings import ServerSettings
from policy.serving.wire import encode
from policy.types import ActionChunk, Request

CONTRACT = Contract({"state": Field(shape=(5,))}, Field(shape=(2,)), control_dt=0.1)
HORIZONS = Horizons(obs=2, pred=16, action=8)
WORK = 0.2  # s, of a chunk
PROBE_DT = 0.1  # s, between two questions of the supervisor


class BusyPlanner:
    """Works for a while before it says nothing but zeros.

    Args:
        work: what it does.
    """

    contract, horizons = CONTRACT, HORIZONS

    def __init__(self, work: Callable[[], None]):
        self._work = work

    def __call__(self, request: Request) -> ActionChunk:
        """A chunk of zeros."""
        self._work()
        return ActionChunk(np.zeros((HORIZONS.future, 2), np.float32), request.tick, CONTRACT)


def wait() -> None:
    """What a planner does while a GPU works."""
    time.sleep(WORK)


def multiply() -> None:
    """What a planner does on the CPU: products of matrices, some large and many small."""
    end = time.perf_counter() + WORK
    large, small = torch.ones(512, 512), torch.ones(1, 64)
    weight = torch.full((64, 64), 1 / 64)
    while time.perf_counter() < end:
        large = (large @ large).clamp(max=1.0)
        for _ in range(50):
            small = torch.relu(small @ weight)


async def ask_health(port: int) -> float:
    """Seconds from opening a connection to the end of the answer."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await reader.read()
    seconds = time.perf_counter() - began
    writer.close()
    if b" 200 " not in answer:
        raise RuntimeError(f"/health answered {answer[:100]!r}")
    return seconds


async def crowd(
    port: int, *, n_clients: int, seconds: float, pause: float
) -> tuple[list[float], list[float]]:
    """Latencies [s] of clients that pause between two questions, and of a supervisor."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []
    probes: list[float] = []

    async def ask_on(index: int) -> None:
        await asyncio.sleep(pause * index / n_clients)
        async with connect(f"ws://127.0.0.1:{port}", proxy=None, compression=None) as watcher:
            await watcher.send(encode(Hello(role="watch")))
            while time.perf_counter() < end:
                latencies.append(await ask_health(port))
                await asyncio.sleep(pause)

    async def supervise() -> None:
        while time.perf_counter() < end:
            probes.append(await ask_health(port))
            await asyncio.sleep(PROBE_DT)

    await asyncio.gather(supervise(), *(ask_on(index) for index in range(n_clients)))
    return latencies, probes


def ask_from_outside(port: int, n_clients: int, seconds: float, pause: float, told) -> None:
    """What the clients' process runs."""
    told.send(asyncio.run(crowd(port, n_clients=n_clients, seconds=seconds, pause=pause)))


def measure(work: Callable[[], None], *, n_clients: int, seconds: float, pause: float) -> None:
    """Print the latencies of /health beside a planner."""
    server = PolicyServer(BusyPlanner(work), ServerSettings(), warm_up=work)
    with in_background(server), RemotePlanner(server.address, CONTRACT, deadline=60.0) as planner:
        is_over, n_chunks = threading.Event(), 0

        def control() -> None:
            nonlocal n_chunks
            history = {"state": np.zeros((HORIZONS.obs, 5), np.float32)}
            while not is_over.is_set():
                planner(Request(history, n_chunks))
                n_chunks += 1

        controls = threading.Thread(target=control)
        controls.start()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (server.port, n_clients, seconds, pause, theirs)
        clients = context.Process(target=ask_from_outside, args=arguments)
        clients.start()
        latencies, probes = ours.recv()
        clients.join()
        is_over.set()
        controls.join()
    print(f"{work.__name__}, pause {pause:g} s: {n_chunks} chunks planned meanwhile")
    for name, values in ((f"{n_clients} clients", latencies), ("supervisor", probes)):
        p50, p99, highest = 1e3 * np.quantile(values, (0.5, 0.99, 1.0))
        print(
            f"  {name:<12} {len(values):>7} answers  p50 {p50:.1f} ms  p99 {p99:.1f} ms  "
            f"max {highest:.1f} ms"
        )


def main() -> None:
    """Entry point."""
    n_clients, seconds = [*sys.argv[1:3], *("100", "10")[len(sys.argv) - 1 :]]
    torch.set_num_threads(1)
    for pause in (1.0, 0.0):
        for work in (wait, multiply):
            measure(work, n_clients=int(n_clients), seconds=float(seconds), pause=pause)


if __name__ == "__main__":
    main()
