"""`cadence view`: what it reads, whom it answers, and what it writes."""

import http.client
import io
import json
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import imageio.v2 as imageio
import numpy as np
import pytest

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import view, view_source
from policy.entry import compose_config
from policy.view_run import read_chunks, read_run
from policy.view_server import Site, ViewServer
from policy.view_source import Episodes, plain, store_in

CONTRACT = Contract(
    {
        "state": Field((2,), unit=("m", "rad")),
        "camera": Field((8, 12, 3), dtype="uint8"),
        "depth": Field((4, 4, 1), dtype="uint8"),
    },
    Field((1,)),
    0.1,
    task="look",
)


def fields(length: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.normal(size=(length, 2)),
        "camera": rng.integers(0, 256, (length, 8, 12, 3)).astype(np.uint8),
        "depth": rng.integers(0, 256, (length, 4, 4, 1)).astype(np.uint8),
        "action": rng.normal(size=(length, 1)),
    }


def make_store(path: Path, n: int = 3, **metadata: object) -> Path:
    store = EpisodeStore.create(path, CONTRACT)
    for index in range(n):
        store.append(fields(10 + index, index), success=index % 2 == 0, **metadata)
    store.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "store.zarr")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store.zarr")


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(imageio.imread(io.BytesIO(content)))


def test_episodes_are_read_as_they_were_written(path):
    episodes = Episodes(EpisodeStore.open(path))
    about = episodes.about()
    assert (about["n_episodes"], about["n_steps"], about["task"]) == (3, 33, "look")
    assert [field["name"] for field in about["fields"]] == ["state", "action"]
    assert about["fields"][0]["units"] == ["m", "rad"]
    assert [camera["name"] for camera in about["cameras"]] == ["camera", "depth"]
    assert [e["length"] for e in episodes.episodes(0, 10)] == [10, 11, 12]
    assert [e["index"] for e in episodes.episodes(1, 1)] == [1]
    assert episodes.episodes(3, 5) == []
    was = fields(11, 1)
    numbers = np.concatenate([was["state"], was["action"]], axis=1).astype(np.float32)
    assert np.array_equal(episodes.numbers(1), numbers)
    assert np.array_equal(pixels(episodes.picture(1, 4, 0)), was["camera"][4])
    gray = pixels(episodes.picture(1, 4, 1))
    assert np.array_equal(gray, np.repeat(was["depth"][4], 3, axis=-1))
    assert np.array_equal(pixels(episodes.strip(1, 0)), np.concatenate(was["camera"], axis=1))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_pictures_are_right_whether_chunks_are_kept_or_not(path, monkeypatch, limit):
    monkeypatch.setattr(view_source, "MOST_BLOCK_BYTES", limit)
    monkeypatch.setattr(view_source, "N_BLOCKS", 1)
    episodes = Episodes(EpisodeStore.open(path))
    for episode, step in ((2, 11), (0, 0), (1, 10), (2, 0), (0, 9)):
        was = fields(10 + episode, episode)["camera"][step]
        assert np.array_equal(pixels(episodes.picture(episode, step, 0)), was)


def test_a_long_strip_has_few_small_pictures(tmp_path):
    contract = Contract({"camera": Field((200, 100, 4), dtype="uint8")}, Field((1,)), 0.1)
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    camera = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 200, 100, 4), "u1")
    store.append({"camera": camera, "action": np.zeros((100, 1))})
    strip = pixels(Episodes(store).strip(0, 0))
    assert strip.shape == (50, 24 * 25, 3)
    first_columns = strip[0, ::25, 0].astype(int)
    assert (first_columns[0], first_columns[-1]) == (0, 99)
    assert set(np.diff(first_columns).tolist()) <= {4, 5}


def test_what_is_not_there_is_an_index_error(path):
    episodes = Episodes(EpisodeStore.open(path))
    for ask in (
        lambda: episodes.numbers(3),
        lambda: episodes.numbers(-1),
        lambda: episodes.picture(0, 10, 0),
        lambda: episodes.picture(0, 0, 2),
        lambda: episodes.strip(0, 5),
        lambda: episodes.chunks(9),
    ):
        with pytest.raises(IndexError):
            ask()


def test_numbers_that_json_cannot_hold_are_null():
    told = plain({"a": [float("nan"), 1.5, float("inf")], "b": {"c": True, "d": None, 1: {2, 3}}})
    assert json.loads(json.dumps(told, allow_nan=False))["a"] == [None, 1.5, None]


def test_long_metadata_is_cut(tmp_path):
    path = make_store(tmp_path / "s.zarr", n=1, timestamps=list(range(50_000)))
    (episode,) = Episodes(EpisodeStore.open(path)).episodes(0, 1)
    assert len(json.dumps(episode)) < 2_000
    assert episode["metadata"]["timestamps"].startswith("[0, 1, 2")


# ---- Server -------------------------------------------------------------------------------------


@contextmanager
def serving(path: Path, **more) -> Iterator[ViewServer]:
    episodes = Episodes(EpisodeStore.open(path))
    site = Site(episodes, episodes.about(), lambda: {"state": "none", "findings": []}, **more)
    with ViewServer(site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: ViewServer, address: str, method: str = "GET", **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, address, headers=names)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_page_and_its_parts_are_served(path):
    with serving(path) as server:
        root = urlsplit(server.url).path
        status, body, headers = ask(server, root)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"<title>Cadence</title>" in body
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert json.loads(ask(server, f"{root}about.json")[1])["n_episodes"] == 3
        listed = json.loads(ask(server, f"{root}episodes.json?first=1&n=1")[1])
        assert [each["index"] for each in listed] == [1]
        assert len(json.loads(ask(server, f"{root}episodes.json?first=x&n=-3")[1])) == 3
        numbers = ask(server, f"{root}numbers/2")[1]
        assert struct.unpack("<3f", numbers[:12])[2] == pytest.approx(
            fields(12, 2)["action"][0, 0], rel=1e-6
        )
        status, body, headers = ask(server, f"{root}frame/1/4/0")
        assert np.array_equal(pixels(body), fields(11, 1)["camera"][4])
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert json.loads(ask(server, f"{root}chunks/0")[1]) == {"ticks": [], "actions": []}
        status, body, headers = ask(server, f"{root}numbers/2", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(len(numbers)))


def test_nobody_gets_in_without_the_secret(path):
    with serving(path) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert len(server.secret) >= 32
        for address in (
            "/",
            "/about.json",
            f"/{server.secret[:-1]}/",
            f"/{server.secret}x/about.json",
            f"/{server.secret}",
            f"//{server.secret}/about.json/",
            "/%00/",
            "/%C3%A9/",
        ):
            assert ask(server, address)[0] == 404, address
    with serving(path) as other:
        assert other.secret != server.secret


def test_a_name_bent_to_this_computer_is_refused(path):
    with serving(path) as server:
        root = urlsplit(server.url).path
        for host in ("evil.example", f"evil.example:{server.server_port}", "", "127.0.0.1.evil"):
            assert ask(server, root, Host=host)[0] == 421
        assert ask(server, root, Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "address",
    [
        "numbers/99",
        "numbers/-1",
        "numbers/1.5",
        "numbers/99999999999999999999",
        "numbers/%D9%A3",
        "numbers/",
        "numbers/1/2",
        "frame/0/0",
        "frame/0/0/9",
        "strip/0/../../secret",
        "media/0",
        "media/..%2f..%2fetc%2fpasswd",
        "../../../etc/passwd",
        "view.html",
        "frame/0/0/0/0",
        "x" * 500,
    ],
)
def test_what_is_not_there_is_not_found(path, address):
    with serving(path) as server:
        assert ask(server, urlsplit(server.url).path + address)[0] == 404


def test_other_methods_and_nonsense_are_refused_and_the_server_lives(path):
    with serving(path) as server:
        root = urlsplit(server.url).path
        assert ask(server, root, "POST")[0] == 501
        for line in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.server_port)) as plug:
                plug.sendall(line)
                plug.settimeout(10)
                plug.recv(1000)
        assert ask(server, root)[0] == 200


def test_a_damaged_store_is_said_and_not_a_crash(path):
    with serving(path) as server:
        for file in (path / "data" / "state").rglob("c/**/*"):
            if file.is_file():
                file.write_bytes(b"\xff" * file.stat().st_size)
        status, body, _ = ask(server, urlsplit(server.url).path + "numbers/0")
        assert status == 500
        assert b"damaged" in body


def test_videos_are_served_in_parts(path, tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(bytes(range(256)) * 4)
    with serving(path, media=(video,)) as server:
        address = urlsplit(server.url).path + "media/0"
        status, body, headers = ask(server, address)
        assert (status, body, headers["Content-Type"]) == (200, video.read_bytes(), "video/mp4")
        for asked, first, stop in (("10-19", 10, 20), ("1000-", 1000, 1024), ("0-9999", 0, 1024)):
            status, body, headers = ask(server, address, Range=f"bytes={asked}")
            assert (status, body) == (206, video.read_bytes()[first:stop])
            assert headers["Content-Range"] == f"bytes {first}-{stop - 1}/1024"
        for nonsense in ("bytes=2000-", "bytes=9-1", "bytes=-5", "lines=1-2"):
            assert ask(server, address, Range=nonsense)[0] == 200
        video.unlink()
        assert ask(server, address)[0] == 404


# ---- Runs ---------------------------------------------------------------------------------------


def test_the_results_of_an_evaluation_and_its_videos(tmp_path):
    results = {
        "success": 0.5,
        "success_interval": [0.1, 0.9],
        "complete": True,
        "fingerprint": {"a": 1},
        "episodes": [{"seed": 7, "success": True, "score": float("nan"), "x": 1}, "nonsense"],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "start_7.mp4").write_bytes(b"x")
    (tmp_path / "videos" / "link.mp4").symlink_to("/etc/passwd")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "name": "x"}\n{"st'
    )
    told = read_run(tmp_path).to_json()
    json.dumps(told, allow_nan=False)
    assert told["facts"] == {"success": 0.5, "success_interval": [0.1, 0.9], "complete": True}
    assert told["table"] == [{"seed": 7, "success": True, "score": None}]
    assert [each["name"] for each in told["media"]] == ["start_7.mp4"]
    assert told["curves"] == {"loss": [[1, 2], [2.0, 1.0]]}


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"episodes": 3, "timing": []}', "\xff"]
)
def test_broken_results_are_said(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    told = read_run(tmp_path)
    assert told.table == []
    assert bool(told.problems) == (text != '{"episodes": 3, "timing": []}')


def test_metrics_that_are_none_are_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("nonsense\n{}\n")
    assert "metrics.jsonl cannot be read" in read_run(tmp_path).problems[0]


def test_chunks_that_are_none_are_refused(tmp_path):
    folder = tmp_path / "chunks"
    folder.mkdir()
    file = folder / "episode_00000.npz"
    good = {"ticks": np.arange(2), "actions": np.zeros((2, 3, 1), np.float32)}
    for wrong in (
        {"ticks": np.arange(3)},
        {"ticks": np.zeros(2)},
        {"actions": np.zeros((2, 3, 4), np.float32)},
        {"actions": np.array([object()] * 2)},
    ):
        np.savez(file, **{**good, **wrong})  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"episode_00000\.npz"):
            read_chunks(tmp_path, 1, 1)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        read_chunks(tmp_path, 1, 1)
    np.savez(file, **good)  # pyright: ignore[reportArgumentType]
    assert list(read_chunks(tmp_path, 1, 5)) == [0]


# ---- The verb -----------------------------------------------------------------------------------


def view_of(*overrides: str) -> int:
    return view.run(compose_config("view", list(overrides)))


def test_a_store_is_found_in_the_folder_of_a_collection(path):
    assert store_in(path) == store_in(path.parent) == path
    assert store_in(path.parent / "nothing") is None


def test_pictures_are_written(path, tmp_path):
    assert view_of(f"path={path}", f"png={tmp_path / 'out'}", "episode=[0,2]") == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["episode_00000.png", "episode_00002.png"]
    picture = np.asarray(imageio.imread(files[0]))
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_without_numbers_the_first_five_are_written(tmp_path):
    path = make_store(tmp_path / "s.zarr", n=7)
    view_of(f"path={path}", "as=png", f"out={tmp_path / 'out'}")
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_names_with_dollars_and_brackets_are_no_formulas(tmp_path):
    contract = Contract({"a$b$_{": Field((1,), unit="$x^")}, Field((1,)), 0.1)
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    store.append({"a$b$_{": np.zeros((5, 1)), "action": np.zeros((5, 1))})
    store.close()
    assert view_of(f"path={store.path}", f"png={tmp_path / 'out'}") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["episode=3"], r"episode is 3, there are 0\.\.2"),
        (["episode=-1"], r"episode is -1, there are 0\.\.2"),
        (["episode=[0,x]"], "episode is 'x'"),
        (["episode=[]"], "episode is \\[\\]"),
        (["episode=true"], "episode is True"),
        (["as=gif", "out=x"], "as is 'gif', choose one of html, png, rerun"),
        (["as=png"], "as=png needs out="),
        (["out=x.gif"], "does not tell the format"),
        (["png=a", "out=b"], "png=a goes alone"),
        (["png=a", "as=html"], "png=a goes alone"),
        (["out=OUT.html", "pictures=0"], "pictures is 0"),
        (["port=70000"], "port is 70000"),
    ],
)
def test_wrong_settings_are_refused(path, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        view_of(f"path={path}", "browser=false", *settings)


def test_what_cannot_be_shown_is_said(tmp_path, path, capsys):
    with pytest.raises(ValueError, match="please give a store"):
        view_of()
    with pytest.raises(ValueError, match="does not exist"):
        view_of(f"path={tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no store, and holds neither"):
        view_of(f"path={tmp_path / 'empty'}")
    (tmp_path / "empty" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is no store"):
        view_of(f"path={tmp_path / 'empty'}")
    EpisodeStore.create(tmp_path / "none.zarr", CONTRACT).close()
    with pytest.raises(ValueError, match="has no episodes"):
        view_of(f"path={tmp_path / 'none.zarr'}")
    (tmp_path / "empty" / "run.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="no episodes to write as png"):
        view_of(f"path={tmp_path / 'empty'}", f"png={tmp_path / 'x'}")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="port"):
        view_of(f"path={path}", f"port={taken.getsockname()[1]}")
    foreign = tmp_path / "foreign.zarr"
    foreign.mkdir()
    (foreign / ".zgroup").write_text('{"zarr_format": 2}')
    assert view_of(f"path={foreign}") == 1
    assert "cadence doctor" in capsys.readouterr().err


def test_it_serves_until_ctrl_c(path, monkeypatch, capsys):
    opened = []

    def serve(server: ViewServer) -> None:
        opened.append(server.site.findings())
        raise KeyboardInterrupt

    monkeypatch.setattr(ViewServer, "serve_forever", serve)
    assert view_of(f"path={path}", "browser=false", "episode=2") == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert view_of(f"path={path}", "browser=false", "doctor=false") == 0
    assert opened[0]["state"] in ("working", "ready")
    assert opened[1] == {"state": "none", "findings": []}


def test_what_the_doctor_finds_is_told_and_so_is_its_failure():
    found = view.Doctor(lambda: [{"code": "S008"}])
    assert found.told()["state"] in ("working", "ready")
    assert found.wait() == {"state": "ready", "findings": [{"code": "S008"}]}

    def broken() -> list[dict]:
        raise RuntimeError("no disk")

    failed = view.Doctor(broken).wait()
    assert (failed["state"], failed["problem"], failed["findings"]) == ("failed", "no disk", [])
