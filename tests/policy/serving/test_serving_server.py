"""A server and its peers on real sockets of this computer."""

import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from serving_fakes import (
    CONTRACT,
    HORIZONS,
    PATIENCE,
    TOKEN,
    FakePlanner,
    chunk_in_the_end,
    get,
    history,
    metric,
    peer,
    request,
    serving,
    wait_until,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from data.types import Contract, Field, Horizons
from policy.serving.client import RemotePlanner
from policy.serving.connection import MAX_CONTROL_FRAMES, SLICE
from policy.serving.errors import (
    Code,
    ConnectionLostError,
    DeadlineError,
    ServerError,
    ServingError,
    WireError,
)
from policy.serving.messages import Answer, Ask, Failure, Hello, Release, Report, Welcome
from policy.serving.seldom import Seldom
from policy.serving.wire import decode, encode
from policy.types import Request

BACKWARDS = {name: CONTRACT.observation[name] for name in ("grip", "state")}


def refusal(server, contract: Contract = CONTRACT, **arguments) -> ServerError:
    with pytest.raises(ServerError) as error:
        RemotePlanner(server.address, contract, connect_seconds=0, **arguments)
    return error.value


def with_field(name: str, **changes) -> Contract:
    if name == "action":
        return replace(CONTRACT, action=replace(CONTRACT.action, **changes))
    fields = {**CONTRACT.observation, name: replace(CONTRACT.observation[name], **changes)}
    return replace(CONTRACT, observation=fields)


def test_a_remote_planner_plans_as_the_planner_does():
    planner = FakePlanner()
    with serving(planner) as server, RemotePlanner(server.address, CONTRACT) as remote:
        assert remote.horizons == HORIZONS
        assert remote.contract == replace(CONTRACT, horizons=HORIZONS)
        assert remote.welcome.nfe == 3
        for tick in (0, 4, 9):
            chunk = remote(Request(history(tick / 3), tick, epoch=5, seed=2**40, delay=2))
            assert chunk.tick0 == tick
            assert chunk.actions[:, 1].tolist() == list(range(tick, tick + 8))
            assert chunk.actions.dtype == np.float32
    assert [(r.tick, r.seed, r.delay) for r in planner.requests] == [
        (tick, 2**40, 2) for tick in (0, 4, 9)
    ]
    for asked, tick in zip(planner.requests, (0, 4, 9), strict=True):
        for name, sent in history(tick / 3).items():
            assert asked.history[name].tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    ("contract", "found"),
    [
        (with_field("state", unit="mm"), "state.unit"),
        (with_field("state", dtype="float64"), "state.dtype"),
        (with_field("state", shape=(4,)), "state.shape"),
        (with_field("action", kind="delta"), "action.kind"),
        (with_field("action", unit="rad"), "action.unit"),
        (
            replace(CONTRACT, observation=BACKWARDS),
            "order is",
        ),
        (replace(CONTRACT, observation={"state": CONTRACT.observation["state"]}), "'grip'"),
        (replace(CONTRACT, control_dt=0.05), "control_dt"),
        (replace(CONTRACT, horizons=replace(HORIZONS, action=8)), "horizons"),
        (replace(CONTRACT, horizons=replace(HORIZONS, obs=1)), "horizons"),
        (replace(CONTRACT, statistics="digest-b"), "statistics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_s7_t7_what_means_other_numbers_is_refused_at_the_handshake(contract, found):
    planner = FakePlanner()
    with serving(planner, name="the arm's policy") as server:
        error = refusal(server, contract, name="left robot")
        assert error.code is Code.MISMATCH
        for text in (found, "the arm's policy", "left robot"):
            assert text in str(error)
        # The lease is free for one that fits.
        RemotePlanner(server.address, CONTRACT).close()
    assert planner.requests == []


def test_s7_the_client_checks_what_the_server_says_too():
    """A server that does not check is no reason to believe it."""
    lie = replace(CONTRACT, horizons=HORIZONS, control_dt=0.2)

    class Careless(FakePlanner):
        contract = lie

    with serving(Careless()) as server:
        with connect(server.address, proxy=None) as connection:
            connection.send(encode(Hello(contract=lie)))
            connection.recv(PATIENCE)
        assert refusal(server).code is Code.MISMATCH


def test_a_robot_may_observe_more_than_is_needed_and_it_is_not_sent():
    fields = {"camera": Field(shape=(2,)), **CONTRACT.observation}
    planner = FakePlanner()
    with serving(planner) as server:
        contract = replace(CONTRACT, observation=fields)
        with RemotePlanner(server.address, contract) as remote:
            more = {"camera": np.zeros((2, 2)), **{n: history()[n] for n in BACKWARDS}}
            remote(Request(more, 0))
    assert list(planner.requests[0].history) == ["state", "grip"]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": np.zeros((1, 3), np.float32)},
        {"state": np.zeros((2, 4), np.float32)},
        {"state": np.zeros((2, 3), np.float64)},
        {"more": np.zeros((2, 3), np.float32)},
    ],
    ids=["steps", "shape", "dtype", "field"],
)
def test_an_observation_that_is_not_the_contract_s_is_refused_by_both_sides(changes):
    planner = FakePlanner()
    wrong = {**history(), **changes}
    with serving(planner) as server:
        with peer(server) as raw:
            raw.send(Ask(1, Request(wrong, 0), 1.0))
            failure = raw.receive()
            assert isinstance(failure, Failure)
            assert (failure.code, failure.id) == (Code.BAD_OBSERVATION, 1)
            raw.send(Release())
        if "more" not in changes:
            with (
                RemotePlanner(server.address, CONTRACT) as remote,
                pytest.raises(WireError, match="state"),
            ):
                remote(Request(wrong, 0))
    assert planner.requests == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_s1_an_observation_that_is_not_finite_costs_a_plan_and_not_the_run(value):
    planner = FakePlanner()
    with serving(planner) as server, RemotePlanner(server.address, CONTRACT) as remote:
        with pytest.raises(ServingError, match="'state'"):
            remote(request(0, value=value))
        assert remote(request(1)).tick0 == 1
    assert [asked.tick for asked in planner.requests] == [1]


def test_r2_ready_and_welcome_come_after_the_warm_up():
    may_end, planner = threading.Event(), FakePlanner()
    with serving(planner, warm_up=lambda: may_end.wait(PATIENCE), wait_ready=False) as server:
        assert get(server, "/health") == (200, "alive\n")
        assert get(server, "/ready") == (503, "the planner is warming up\n")
        assert refusal(server).code is Code.NOT_READY
        # A client that is told to be patient is served as soon as that is possible.
        threading.Timer(0.2, may_end.set).start()
        with RemotePlanner(server.address, CONTRACT, connect_seconds=PATIENCE) as remote:
            assert get(server, "/ready") == (200, "ready\n")
            remote(request())


def test_r5_a_second_client_is_refused_and_told_for_how_long():
    with serving(lease_seconds=600.0) as server, peer(server):
        error = refusal(server)
        assert error.code is Code.LEASE_HELD
        assert "600.0 s" in str(error) or "599." in str(error)


def test_r5_a_lease_that_is_released_can_be_taken_and_its_old_holder_is_refused():
    planner = FakePlanner()
    with serving(planner, lease_seconds=600.0) as server, peer(server) as first:
        first.ask(0)
        assert isinstance(first.receive(), Answer)
        first.send(Release())
        first.ask(1)  # Nobody wanted it: it is the first one's again.
        assert isinstance(first.receive(), Answer)
        first.send(Release())
        wait_until(lambda: metric(server, "cadence_lease_seconds_left") == 0)
        with peer(server) as second:
            first.ask(2)
            failure = first.receive()
            assert isinstance(failure, Failure)
            assert failure.code is Code.LEASE_LOST
            second.ask(0)
            assert isinstance(second.receive(), Answer)
    assert [asked.tick for asked in planner.requests] == [0, 1, 0]


def test_r5_a_chunk_that_was_asked_for_before_the_lease_was_lost_is_not_sent():
    planner = FakePlanner()
    with serving(planner, lease_seconds=0.2) as server, peer(server) as first:
        planner.gate.clear()
        number = first.ask(0)
        planner.wait_entered()
        wait_until(lambda: metric(server, "cadence_lease_seconds_left") == 0)
        with peer(server):
            planner.gate.set()
            failure = first.receive()
            assert isinstance(failure, Failure)
            assert (failure.code, failure.id) == (Code.LEASE_LOST, number)


def test_r6_a_new_epoch_drops_the_chunk_that_was_on_its_way():
    planner = FakePlanner()
    with serving(planner) as server, peer(server) as client:
        planner.gate.clear()
        client.ask(7, epoch=0)
        planner.wait_entered()
        client.ask(0, epoch=1)
        wait_until(lambda: metric(server, "cadence_requests_total") == 2)
        planner.gate.set()
        old, new = client.receive(), client.receive()
        assert isinstance(old, Failure)
        assert (old.code, old.id) == (Code.STALE, 1)
        assert isinstance(new, Answer)
        assert (new.epoch, new.id, new.tick0) == (1, 2, 0)
        # What is over stays over.
        for epoch, tick in ((0, 8), (1, -0)):
            client.ask(tick, epoch=epoch)
        assert isinstance(client.receive(), Failure)
        assert isinstance(client.receive(), Answer)
    assert [asked.epoch for asked in planner.requests] == [1, 2, 2]


def test_r6_a_client_that_comes_back_begins_a_new_stream():
    planner = FakePlanner()
    with serving(planner, lease_seconds=600.0) as server, peer(server, greet=False) as first:
        welcome = first.hello()
        assert isinstance(welcome, Welcome)
        first.ask(3)
        first.receive()
        # Its connection seems broken to the client, but not to the server.
        with peer(server, lease=welcome.lease) as again:
            again.ask(4)
            assert isinstance(again.receive(), Answer)
            first.ask(5)
            failure = first.receive()
            assert isinstance(failure, Failure)
            assert failure.code is Code.LEASE_LOST
        assert refusal(server).code is Code.LEASE_HELD
    assert [asked.epoch for asked in planner.requests] == [1, 2]


def test_r7_the_deadline_crosses_the_wire():
    planner = FakePlanner()
    with serving(planner) as server, peer(server) as client:
        planner.gate.clear()
        client.ask(0)
        planner.wait_entered()
        client.ask(1, deadline=0.05)
        # Answered while the planner is still busy, which it may be for ever.
        failure = client.receive()
        assert isinstance(failure, Failure)
        assert (failure.code, failure.id) == (Code.EXPIRED, 2)
        assert metric(server, "cadence_expired_total") == 1
        planner.gate.set()
        assert isinstance(client.receive(), Answer)
    assert [asked.tick for asked in planner.requests] == [0]


def test_r7_requests_that_nobody_waits_for_are_dropped_and_counted():
    planner = FakePlanner()
    with serving(planner) as server, peer(server) as client:
        planner.gate.clear()
        client.ask(0)
        planner.wait_entered()
        for tick in range(1, 21):
            client.ask(tick)
        wait_until(lambda: metric(server, "cadence_dropped_total") == 19)
        planner.gate.set()
        codes = [m.code for m in (client.receive() for _ in range(19)) if isinstance(m, Failure)]
        assert codes == [Code.SUPERSEDED] * 19
        last = [client.receive(), client.receive()]
        assert [answer.tick0 for answer in last if isinstance(answer, Answer)] == [0, 20]


def test_r7_the_client_waits_no_longer_than_its_deadline_and_drops_what_comes_late():
    planner = FakePlanner()
    with (
        serving(planner) as server,
        RemotePlanner(server.address, CONTRACT, deadline=0.2) as remote,
    ):
        planner.gate.clear()
        with pytest.raises(DeadlineError, match=r"0\.2 s"):
            remote(request(0))
        planner.gate.set()
        assert chunk_in_the_end(remote, request(5)).tick0 == 5


def test_r8_health_and_readiness_answer_while_the_planner_is_busy():
    planner = FakePlanner()
    with serving(planner) as server, peer(server) as client:
        planner.gate.clear()
        client.ask(0)
        planner.wait_entered()
        assert get(server, "/health") == (200, "alive\n")
        assert get(server, "/ready") == (200, "ready\n")
        assert metric(server, "cadence_answers_total") == 0  # It is busy still.
        planner.gate.set()
        assert isinstance(client.receive(), Answer)


def test_r8_a_planner_that_hangs_is_not_ready_until_it_returns(monkeypatch):
    planner = FakePlanner()
    with serving(planner, lease_seconds=0.1) as server, peer(server) as client:
        planner.gate.clear()
        client.ask(0)
        planner.wait_entered()
        monkeypatch.setattr("policy.serving.engine.MOST_BUSY", 0.0)
        wait_until(lambda: get(server, "/ready")[0] == 503)
        assert "at one request for" in get(server, "/ready")[1]
        assert get(server, "/health")[0] == 200
        assert refusal(server).code is Code.NOT_READY
        planner.gate.set()
        assert isinstance(client.receive(), Answer)
        wait_until(lambda: get(server, "/ready") == (200, "ready\n"))


def test_r9_silent_and_stuck_peers_are_cut_off_and_stall_nobody():
    with serving(handshake_seconds=0.5, ping_seconds=0.5, send_seconds=0.5) as server:
        address = ("127.0.0.1", server.port)
        silent = [socket.create_connection(address) for _ in range(20)]
        # Half a handshake, and a frame that does not end, from a peer that answers no ping.
        half = socket.create_connection(address)
        half.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        stuck = websocket_by_hand(server.port)
        stuck.sendall(masked(encode(Hello(role="watch"))))
        stuck.sendall(bytes([0x82, 0xFE, 0x40, 0x00]) + bytes(100))  # 100 of 16384 bytes.
        with RemotePlanner(server.address, CONTRACT, deadline=PATIENCE) as remote:
            for tick in range(20):
                assert remote(request(tick)).tick0 == tick
            for peer_socket in (*silent, half, stuck):
                assert is_closed_in_the_end(peer_socket)
            assert remote(request(20)).tick0 == 20


def test_r9_a_peer_that_sends_pings_and_reads_nothing_does_not_fill_the_memory():
    with serving(ping_seconds=PATIENCE) as server:
        ping = bytes([0x89, 0xFD]) + bytes(4) + bytes(125)
        # All that is sent and not refused lies somewhere: in buffers of the system, or in ours.
        assert sent_until_stuck(websocket_by_hand(server.port), ping * 500) < 64 * 2**20


PING, PONG, BINARY, CONTINUATION = 0x89, 0x8A, 0x82, 0x00


@pytest.mark.parametrize(
    ("first", "opcode"),
    [(b"", PING), (b"", PONG), (b"", BINARY), (b"\x02\x80" + bytes(4), CONTINUATION)],
    ids=["pings", "pongs", "messages", "fragments"],
)
def test_r9_a_peer_that_sends_empty_frames_without_end_is_cut_off(first, opcode, caplog):
    frames = first + (bytes([opcode, 0x80]) + bytes(4)) * 5000
    with (
        serving(token=TOKEN) as server,
        RemotePlanner(server.address, CONTRACT, token=TOKEN, deadline=PATIENCE) as remote,
    ):
        remote(request(0))
        with ThreadPoolExecutor() as pool:
            floods = [websocket_by_hand(server.port) for _ in range(3)]
            sending = [pool.submit(sent_until_stuck, raw, frames) for raw in floods]
            tick = 1
            while not all(flood.done() for flood in sending):
                assert remote(request(tick)).tick0 == tick
                tick += 1
        # What lies in the buffers of the system, and no more, was sent before the end.
        assert all(flood.result() < 64 * 2**20 for flood in sending)
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        wait_until(lambda: "cadence_aborted_total 3\n" in get(server, "/metrics", **authorized)[1])
        assert remote(request(tick)).tick0 == tick
        assert get(server, "/health")[0] == 200
    lines = [record for record in caplog.records if "socket.send()" in record.getMessage()]
    assert len(lines) < 3 * SLICE / 6  # The least frame has 6 bytes.


def test_r9_a_peer_may_ping_so_often_in_a_second_and_no_more_often():
    with serving() as server, peer(server) as client:
        for _ in range(MAX_CONTROL_FRAMES):
            assert client.connection.ping().wait(PATIENCE)
        time.sleep(1.1)  # Another second begins.
        assert client.connection.ping().wait(PATIENCE)
        client.ask(0)
        assert isinstance(client.receive(), Answer)
        assert metric(server, "cadence_aborted_total") == 0
        # So few that they are there at once.
        raw = websocket_by_hand(server.port)
        raw.sendall((bytes([PONG, 0x80]) + bytes(4)) * (MAX_CONTROL_FRAMES + 1))
        wait_until(lambda: metric(server, "cadence_aborted_total") == 1)
        raw.close()


def test_r9_peers_that_do_not_say_who_they_are_keep_nobody_out(monkeypatch):
    monkeypatch.setattr("policy.serving.server.MAX_STRANGERS", 4)
    with (
        serving(token=TOKEN, max_connections=2, handshake_seconds=600.0) as server,
        ExitStack() as stack,
    ):
        opened = [websocket_by_hand(server.port) for _ in range(4)]
        strangers = [stack.enter_context(raw) for raw in opened]
        with peer(server, token=TOKEN) as admitted:
            assert is_closed_in_the_end(strangers[0])  # The oldest made room.
            address = ("127.0.0.1", server.port)
            silent = [socket.create_connection(address) for _ in range(20)]
            strangers += [stack.enter_context(raw) for raw in silent]
            for stranger in strangers[1:20]:
                assert is_closed_in_the_end(stranger)
            # The one that was admitted is older than all of them, and stays.
            admitted.ask(0)
            assert isinstance(admitted.receive(), Answer)
            assert get(server, "/health")[0] == 200


def test_r9_those_who_waited_together_for_the_last_place_do_not_all_get_it():
    watcher = {"role": "watch", "contract": None}
    with (
        serving(max_connections=1) as server,
        peer(server, greet=False) as first,
        peer(server, greet=False) as second,
    ):
        assert isinstance(first.hello(**watcher), Welcome)
        failure = second.hello(**watcher)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.text.split(",")[0]) == (
            Code.NOT_READY,
            "too many connections",
        )


def test_r9_more_connections_than_allowed_are_refused():
    with serving(max_connections=2) as server, peer(server):
        with peer(server, role="watch", contract=None):
            with pytest.raises(ConnectionLostError, match="too many"):
                RemotePlanner(server.address, CONTRACT, connect_seconds=0)
            assert get(server, "/health")[0] == 200
        wait_until(lambda: metric(server, "cadence_connections") == 1)
        with peer(server, role="watch", contract=None):
            pass


def test_r9_one_that_asks_and_never_reads_is_cut_off():
    with serving(send_seconds=0.5, ping_seconds=PATIENCE) as server:
        raw = websocket_by_hand(server.port)
        raw.sendall(masked(encode(Hello(contract=CONTRACT))))
        # Each is refused by itself, and the answers pile up.
        asks = masked(encode(Ask(1, Request({"state": np.zeros(1)}, 0), 60.0))) * 100
        # A busy computer takes long to read them; in the end it cuts the connection.
        assert sent_until_stuck(raw, asks, seconds=PATIENCE) < 64 * 2**20
        wait_until(lambda: metric(server, "cadence_aborted_total") == 1)


def test_r9_a_reconnect_storm_leaves_nothing_behind():
    with serving() as server:
        for _ in range(50):
            with peer(server, role="watch", contract=None):
                pass
        wait_until(lambda: metric(server, "cadence_connections") == 0)
        assert metric(server, "cadence_handshakes_total") == 50


def test_r10_a_failure_of_the_planner_is_a_code_and_the_server_goes_on(caplog):
    planner = FakePlanner()
    with serving(planner) as server, RemotePlanner(server.address, CONTRACT) as remote:
        planner.error = RuntimeError("a detail of the inside")
        with pytest.raises(ServerError) as error:
            remote(request(0))
        assert error.value.code is Code.INTERNAL
        assert "Traceback" not in str(error.value)
        assert "detail" not in str(error.value)
        assert str(error.value).split()[-1] in caplog.text
        planner.error = None
        assert remote(request(1)).tick0 == 1
        assert get(server, "/ready")[0] == 200
        assert metric(server, 'cadence_failures_total{code="internal"}') == 1


def test_r10_bytes_that_are_no_message_end_their_connection_only():
    with serving() as server, RemotePlanner(server.address, CONTRACT) as remote:
        for garbage in (b"", b"x" * 100, "a text", encode(Release())):
            with connect(server.address, proxy=None) as connection:
                connection.send(garbage)
                failure = decode(connection.recv(PATIENCE))
                assert isinstance(failure, Failure)
                assert failure.code in (Code.BAD_FRAME, Code.UNAUTHORIZED)
                with pytest.raises(ConnectionClosed):
                    connection.recv(PATIENCE)
        assert remote(request(0)).tick0 == 0


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ä" * 30])
def test_x3_the_token_is_checked_on_every_connection(token):
    with serving(token=TOKEN) as server:
        assert refusal(server, token=token).code is Code.UNAUTHORIZED
        with peer(server, greet=False) as watcher:
            failure = watcher.hello(role="watch", contract=None, token=token)
            assert isinstance(failure, Failure)
            assert failure.code is Code.UNAUTHORIZED
        with RemotePlanner(server.address, CONTRACT, token=TOKEN) as remote:
            assert remote(request()).tick0 == 0


def test_x3_wrong_tokens_do_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    began, n_peers = time.monotonic(), 30
    with serving(token=TOKEN) as server:
        for _ in range(n_peers):
            with peer(server, greet=False) as stranger:
                assert isinstance(stranger.hello(token="wrong"), Failure)
                with pytest.raises(ConnectionClosed):
                    stranger.connection.recv(PATIENCE)
    seconds = time.monotonic() - began
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("policy")]
    assert 1 <= len(lines) <= 1 + seconds
    assert "127.0.0.1" in lines[0]
    assert "unauthorized" in lines[0]


def test_what_is_seldom_logged_says_how_often_it_happened(caplog):
    now = [0.0]
    logger = logging.Logger("seldom")
    logger.parent = logging.getLogger()
    logger.addFilter(Seldom(clock=lambda: now[0]))
    for now[0] in (0.0, 0.1, 0.9, 1.0, 1.5, 2.5, 9.0):
        logger.warning("at %g", now[0])
    assert [record.getMessage() for record in caplog.records] == [
        "at 0",
        "at 1 (2 such lines were left out)",
        "at 2.5 (1 such lines were left out)",
        "at 9",
    ]


@pytest.mark.parametrize(
    "message",
    [Ask(1, request(), 1.0), Report({"a": 1.0}), Release()],
    ids=lambda m: type(m).__name__,
)
def test_x3_nothing_is_done_for_a_peer_that_has_not_said_the_token(message):
    planner = FakePlanner()
    with serving(planner, token=TOKEN) as server, peer(server, greet=False) as stranger:
        stranger.send(message)
        failure = stranger.receive()
        assert isinstance(failure, Failure)
        assert failure.code is Code.UNAUTHORIZED
        with pytest.raises(ConnectionClosed):
            stranger.connection.recv(PATIENCE)
    assert planner.requests == []


def test_x3_metrics_need_the_token_too():
    with serving(token=TOKEN) as server:
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/metrics", Authorization="Bearer wrong")[0] == 401
        assert get(server, "/metrics", Authorization=TOKEN)[0] == 401
        status, text = get(server, "/metrics", Authorization=f"Bearer {TOKEN}")
        assert status == 200
        assert TOKEN not in text


def test_x4_no_address_and_no_method_does_anything():
    with serving() as server:
        for path in ("/stop", "/kill", "/shutdown", "/../../etc/passwd", "/load?checkpoint=x", "/"):
            assert get(server, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.sendall(f"{method} /health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert b"405" in raw.recv(100)
        with RemotePlanner(server.address, CONTRACT) as remote:
            assert remote(request()).tick0 == 0


def test_x4_one_that_watches_can_only_watch():
    planner = FakePlanner()
    with serving(planner) as server:
        for message in (Ask(1, request(), 1.0), Report({"a": 1.0}), Release()):
            with peer(server, role="watch", contract=None) as watcher:
                watcher.send(message)
                failure = watcher.receive()
                assert isinstance(failure, Failure)
                assert failure.code is Code.UNAUTHORIZED
    assert planner.requests == []


def test_x5_no_observation_and_no_token_is_in_the_logs(caplog):
    caplog.set_level(logging.DEBUG)  # Also what libraries say when debugging is on.
    planner, value = FakePlanner(), 1234.5678
    with serving(planner, token=TOKEN) as server:
        with RemotePlanner(server.address, CONTRACT, token=TOKEN, name="robot 7") as remote:
            remote(request(0, value=value))
            planner.error = RuntimeError("broken")
            with pytest.raises(ServerError):
                remote(request(1, value=value))
            remote.report({"plan": [value]})
        with pytest.raises(ServerError):
            RemotePlanner(server.address, CONTRACT, token="wrong")
    assert "robot 7" in caplog.text
    # The library would log frames and headers.
    assert not [record for record in caplog.records if "websockets" in record.name]
    assert "1234.5" not in caplog.text
    assert TOKEN not in caplog.text


def test_reports_reach_those_who_watch_newest_first_also_when_they_come_later():
    with serving() as server, RemotePlanner(server.address, CONTRACT) as remote:
        with peer(server, role="watch", contract=None) as watcher:
            odd = {"bad": float("nan"), "odd": [1.0, float("inf"), 2.0]}
            remote.report({"period_ms": 100.0, "plan": [1.0, 2.0], **odd})
            report = watcher.receive()
            # Never a number that nobody measured.
            nothing = {"bad": None, "odd": None}
            assert report == Report({"period_ms": 100.0, "plan": [1.0, 2.0], **nothing})
            for n in range(100):
                remote.report({"n": float(n)})
            while report != Report({"n": 99.0}):
                report = watcher.receive()
        with peer(server, role="watch", contract=None) as late:
            assert late.receive() == Report({"n": 99.0})
        with pytest.raises(WireError):
            remote.report({"a": "x" * 1000})
        assert remote(request()).tick0 == 0


def test_a_closed_client_gives_the_lease_back_and_says_so():
    with serving(lease_seconds=600.0) as server:
        remote = RemotePlanner(server.address, CONTRACT)
        remote.close()
        remote.close()
        remote.report({"a": 1.0})
        with pytest.raises(ConnectionLostError, match="closed"):
            remote(request())
        with RemotePlanner(server.address, CONTRACT) as second:
            assert second(request()).tick0 == 0


def test_a_server_that_is_not_there_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    n_threads = threading.active_count()
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        RemotePlanner(f"ws://127.0.0.1:{port}", CONTRACT, connect_seconds=0)
    assert threading.active_count() == n_threads


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("policy.serving.link.OPEN_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"ws://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ConnectionLostError, match="cannot be reached"):
            RemotePlanner(address, CONTRACT, connect_seconds=0)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"address": "http://127.0.0.1:1"}, "ws://"),
        *[
            ({"address": address}, f"address is '{re.escape(address)}'")
            for address in (
                "ws://",
                "ws://:1",
                "ws://127.0.0.1:99999",
                "ws://127.0.0.1:0",
                "ws://127.0.0.1:abc",
                "ws://[::1",
                f"ws://{'a' * 64}:1",
                "127.0.0.1:1",
            )
        ],
        ({"deadline": 0.0}, "deadline is 0"),
        ({"deadline": 100.0}, "deadline is 100"),
        ({"connect_seconds": -1.0}, "connect_seconds is -1"),
    ],
)
def test_arguments_of_the_client_are_checked(arguments, found):
    with pytest.raises(ValueError, match=found):
        RemotePlanner(**{"address": "ws://127.0.0.1:1", "contract": CONTRACT, **arguments})


def test_whatever_the_websocket_library_says_is_that_there_is_no_connection():
    with pytest.raises(ConnectionLostError, match="#part"):
        RemotePlanner("ws://127.0.0.1:1/#part", CONTRACT, connect_seconds=0)


def test_a_contract_that_cannot_be_served_is_refused():
    class Strange(FakePlanner):
        contract = replace(CONTRACT, action=Field(shape=(2,), dtype="float16"))

    class Huge(FakePlanner):
        contract = replace(CONTRACT, observation={"image": Field((5000, 5000, 3), "uint8")})

    for planner, found in ((Strange(), "float16"), (Huge(), "at most")):
        with pytest.raises(ValueError, match=found), serving(planner):
            pass


def test_the_largest_message_is_what_the_contract_needs():
    class Seeing(FakePlanner):
        contract = Contract({"image": Field((96, 96, 3), "uint8")}, Field((2,)), control_dt=0.1)
        horizons = Horizons(2, 8, 4)

    with serving(Seeing()) as server:
        image = np.full((2, 96, 96, 3), 7, np.uint8)
        with RemotePlanner(server.address, Seeing.contract) as remote:
            assert remote(Request({"image": image}, 0)).tick0 == 0
        with peer(server, greet=False) as client:
            client.send(Ask(1, Request({"image": np.zeros((6, 96, 96, 3), np.uint8)}, 0), 1.0))
            with pytest.raises(ConnectionClosed, match="1009"):  # Message too big.
                client.receive()


def websocket_by_hand(port: int) -> socket.socket:
    """A socket on which a WebSocket was opened, without a library that answers pings."""
    raw = socket.socket()
    raw.settimeout(PATIENCE)
    # Small, so that little is on its way to one that does not read.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", port))
    raw.sendall(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b"101" in raw.recv(4096)
    return raw


def masked(payload: bytes) -> bytes:
    """A binary frame as clients send them, with a mask of zeros."""
    return bytes([0x82, 0xFE]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


def sent_until_stuck(raw: socket.socket, frames: bytes, *, seconds: float = 1.0) -> int:
    """Bytes that a peer can send, again and again the same, before nobody takes more in time."""
    raw.settimeout(seconds)
    n_sent = 0
    try:
        while n_sent < 64 * 2**20:
            raw.sendall(frames)
            n_sent += len(frames)
    except (TimeoutError, ConnectionError):
        pass
    raw.close()
    return n_sent


def is_closed_in_the_end(raw: socket.socket) -> bool:
    raw.settimeout(PATIENCE)
    try:
        while raw.recv(4096):
            pass
    except ConnectionError:
        pass
    raw.close()
    return True
