"""Who can reach a server: addresses, tokens, TLS, pages in browsers; and what sources may hold."""

import ast
import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from serving_fakes import CONTRACT, PATIENCE, TOKEN, get, peer, request, serving
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from policy.serving.client import RemotePlanner
from policy.serving.endpoints import Page
from policy.serving.errors import ConnectionLostError
from policy.serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [p for name in ("data", "envs", "policy") for p in sorted((ROOT / name).rglob("*.py"))]

# Reads pickles of others, with an unpickler that knows names of tensors only and calls nothing.
READS_PICKLES = {"policy/foreign_checkpoint.py"}
# What a program tells the process that it started itself; what comes back is no pickle.
TELLS_PICKLES = {"data/importers/apart.py", "data/importers/apart_reader.py"}
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_x3_only_this_computer_is_served_by_default():
    assert ServerSettings().is_loopback
    with serving() as server:
        assert server.address.startswith("ws://127.0.0.1:")
        others = {
            str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        }
        for host in others - {"127.0.0.1"}:
            if not host.startswith("127."):
                with pytest.raises(OSError, match=r"."):
                    socket.create_connection((host, server.port), timeout=1.0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_x3_others_are_not_served_without_a_token(host):
    with pytest.raises(ValueError, match="token"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, token=TOKEN).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_loopback_addresses_need_none_and_are_reached_as_they_were_given(host):
    assert ServerSettings(host=host).is_loopback
    with serving(host=host) as server:
        with RemotePlanner(server.address, CONTRACT, connect_seconds=0) as remote:
            assert remote(request()).tick0 == 0
        assert get(server, "/health")[0] == 200
        assert get(server, "/health", Host="evil.example")[0] == 421


def test_x3_a_token_is_not_shown_and_not_short():
    assert TOKEN not in repr(ServerSettings(token=TOKEN))
    for token in ("", "short", "x" * 15, "x" * 1025, "ä" * 20, "a\n" * 10):
        with pytest.raises(ValueError, match="openssl rand"):
            ServerSettings(token=token)


@pytest.mark.parametrize(
    "settings",
    [
        {"port": -1},
        {"port": 2**16},
        {"lease_seconds": 0.0},
        {"send_seconds": float("nan")},
        {"max_connections": 0},
        {"certfile": Path("c")},
        {"keyfile": Path("k")},
        {"page": Path("/nowhere")},
        {"host": "no.such.host.invalid"},
    ],
    ids=str,
)
def test_settings_are_checked_before_anything_listens(settings):
    with pytest.raises(ValueError, match=next(iter(settings)).split("file")[0]):
        ServerSettings(**settings)


def test_a_port_that_is_taken_is_named():
    with serving() as server, pytest.raises(OSError, match=f"port={server.port}"):
        ServerSettings(port=server.port).listen()


@pytest.fixture
def certificate(tmp_path) -> tuple[Path, Path]:
    """A certificate of this computer and its key."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    try:
        command = [*make.split(), names, "-keyout", str(key), "-out", str(cert)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl that makes certificates")
    return cert, key


def test_x3_tls_keeps_out_who_does_not_trust_the_certificate(certificate):
    cert, key = certificate
    with serving(certfile=cert, keyfile=key, token=TOKEN) as server:
        assert server.address.startswith("wss://")
        with RemotePlanner(server.address, CONTRACT, token=TOKEN, cafile=cert) as remote:
            assert remote(request(3)).tick0 == 3
        with pytest.raises(ConnectionLostError, match="certificate"):
            RemotePlanner(server.address, CONTRACT, token=TOKEN, connect_seconds=0)
        plain = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(ConnectionLostError):
            RemotePlanner(plain, CONTRACT, token=TOKEN, connect_seconds=0)
    key.write_text("no key")
    with pytest.raises(ValueError, match="PEM"):
        ServerSettings(certfile=cert, keyfile=key)  # Before anything is loaded or listens.


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(certificate, tmp_path):
    cert, key = certificate
    closed = tmp_path / "closed.pem"
    command = f"openssl rsa -aes256 -passout pass:secret -in {key} -out {closed}"
    subprocess.run(command.split(), check=True, capture_output=True)
    with pytest.raises(ValueError, match=f"openssl rsa -in {closed} -out KEY2"):
        ServerSettings(certfile=cert, keyfile=closed)


def test_r9_peers_that_do_not_begin_with_tls_are_cut_off(certificate, monkeypatch):
    cert, key = certificate
    monkeypatch.setattr("policy.serving.server.TLS_SECONDS", 0.2)
    with serving(certfile=cert, keyfile=key, handshake_seconds=600.0) as server:
        with ExitStack() as stack:
            address = ("127.0.0.1", server.port)
            opened = [socket.create_connection(address, PATIENCE) for _ in range(20)]
            silent = [stack.enter_context(raw) for raw in opened]
            assert [raw.recv(1) for raw in silent] == [b""] * 20
        with RemotePlanner(server.address, CONTRACT, cafile=cert) as remote:
            assert remote(request()).tick0 == 0


def test_pages_from_elsewhere_cannot_connect(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>1</script>")

    def status(server, origin: str, host: str | None = None) -> int:
        headers = {} if host is None else {"Host": host}
        try:
            with connect(
                server.address, proxy=None, origin=Origin(origin), additional_headers=headers
            ):
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    with serving() as server:
        assert status(server, f"http://127.0.0.1:{server.port}") == 403
        assert status(server, "null") == 403
    with serving(page=page) as server:
        assert status(server, f"http://127.0.0.1:{server.port}") == 101
        for origin in (
            "http://evil.example",
            f"http://evil.example:{server.port}",
            f"https://127.0.0.1:{server.port}",
            "http://127.0.0.1:1",
            "null",
            "",
        ):
            assert status(server, origin) == 403


def test_a_name_that_was_bent_to_point_here_is_refused():
    with serving() as server:
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", ""):
            for path in ("/health", "/metrics"):
                assert get(server, path, Host=host)[0] == 421
        for host in ("localhost", f"localhost:{server.port}", "127.0.0.1:1", "[::1]:80"):
            assert get(server, "/health", Host=host)[0] == 200


def test_a_page_may_run_what_is_in_it_and_nothing_else(tmp_path):
    script, style = "let a = 1 < 2;", "p { color: red }"
    page = tmp_path / "page.html"
    page.write_text(f"<style>{style}</style><p>ä</p><script>{script}</script>")
    rules = dict(rule.split(" ", 1) for rule in Page.read(page).policy.split("; "))
    for tag, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[tag] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in Page.read(page).policy
    with serving(page=page) as server, peer(server):
        assert get(server, "/") == (200, page.read_text())
    page.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        Page.read(page)
    page.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ValueError, match="at most"):
        Page.read(page)


def dangers(source: str) -> list[str]:
    """What a source does that may run code from a file or a peer."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in RUNS_CODE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            arguments = {k.arg: k.value for k in node.keywords}
            called = ast.unparse(node.func)
            plain = arguments.get("weights_only")
            is_safe = isinstance(plain, ast.Constant) and plain.value is True
            if called == "torch.load" and not is_safe:
                found.append(ast.unparse(node))
            if called in ("eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load"):
                found.append(called)
            allowed = arguments.get("allow_pickle")
            if allowed is not None and not (
                isinstance(allowed, ast.Constant) and allowed.value is False
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_x1_nothing_that_is_read_can_run_code(path):
    name = str(path.relative_to(ROOT))
    assert dangers(path.read_text()) == (
        ["pickle"] if name in READS_PICKLES | TELLS_PICKLES else []
    )


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "import marshal, os",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "zarr.open(path, allow_pickle=flag)",
        "eval(text)",
    ],
)
def test_x1_what_can_run_code_is_found(source):
    assert dangers(source)
    assert not dangers("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")


def test_t8_importing_the_client_changes_nothing_global():
    source = """
import json, logging, signal, sys, threading, warnings
import numpy, torch

def state():
    root = logging.getLogger()
    return {
        "handlers": len(root.handlers), "level": root.level, "disabled": root.manager.disable,
        "class": logging.getLoggerClass().__name__, "raise": logging.raiseExceptions,
        "levels": sorted((n, getattr(l, "level", 0)) for n, l in root.manager.loggerDict.items()
                         if getattr(l, "level", 0)),
        "threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads(),
        "dtype": str(torch.get_default_dtype()), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "seed": torch.initial_seed(), "noise": torch.get_rng_state().sum().item(),
        "numpy": numpy.geterr(), "print": numpy.get_printoptions()["precision"],
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "running": threading.active_count(), "warnings": len(warnings.filters),
        "digits": sys.get_int_max_str_digits(), "depth": sys.getrecursionlimit(),
    }

before = state()
import policy.serving.client
print(json.dumps([before, state()]))
"""
    run = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    before, after = json.loads(run.stdout)
    assert before == after
    assert run.stderr == ""
