"""Servers and clients in processes of their own, which are killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import pytest
from serving_fakes import (
    CONTRACT,
    PATIENCE,
    chunk_in_the_end,
    control_forever,
    request,
    serve_forever,
    serving,
)

from policy.serving.client import RemotePlanner
from policy.serving.errors import Code, ConnectionLostError, ServerError


@contextmanager
def process(target: Callable[..., None], *arguments) -> Iterator[tuple[BaseProcess, object]]:
    """A process, and the first thing that it told; killed at the end."""
    # Forked from a process that has imported everything and runs no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serving_fakes"])
    ours, theirs = context.Pipe()
    started = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    started.start()
    try:
        assert ours.poll(2 * PATIENCE), "the process did not start"
        yield started, ours.recv()
    finally:
        started.kill()
        started.join()


def kill(victim: BaseProcess) -> None:
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()


def test_s12_a_killed_server_is_noticed_at_once_and_one_that_comes_back_is_used():
    with process(serve_forever, 0, True) as (server, port):
        remote = RemotePlanner(f"ws://127.0.0.1:{port}", CONTRACT, deadline=PATIENCE)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(remote, request(0))
            time.sleep(0.1)
            assert not waiting.done()
            kill(server)
            # Long before its deadline: the connection says so.
            error = waiting.exception(timeout=PATIENCE / 2)
        assert isinstance(error, ConnectionLostError)
        remote.deadline = 0.05
        with pytest.raises(ConnectionLostError):  # Not a mere deadline: nobody is there.
            remote(request(1))
    remote.deadline = PATIENCE
    with process(serve_forever, port, False):
        chunk = chunk_in_the_end(remote, request(7))
        assert chunk.tick0 == 7
        assert chunk.actions[0].tolist() == [1.0, 7.0]  # The first stream of a new server.
        remote.close()


def test_r5_the_lease_of_a_killed_client_expires_and_another_one_takes_over():
    with serving(lease_seconds=1.0) as server:
        with process(control_forever, server.address) as (client, _):
            with pytest.raises(ServerError) as error:
                RemotePlanner(server.address, CONTRACT)
            assert error.value.code is Code.LEASE_HELD
            kill(client)
            second = taken_over(server.address)
        with second:
            assert second(request(3)).tick0 == 3


def taken_over(address: str) -> RemotePlanner:
    """A client, as soon as the lease of another one has ended."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return RemotePlanner(address, CONTRACT)
        except ServerError as error:
            if error.code is not Code.LEASE_HELD or time.monotonic() > end:
                raise
            time.sleep(0.05)
