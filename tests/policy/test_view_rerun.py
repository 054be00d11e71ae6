"""Files for the Rerun viewer: what is logged, with a stand-in, and with Rerun where it is there."""

import sys
from types import ModuleType

import numpy as np
import pytest

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import view
from policy.entry import compose_config
from policy.view_rerun import in_lanes, write_rerun
from policy.view_source import Chunks, Episodes

CONTRACT = Contract(
    {"arm/state": Field((2,), unit=("m", "")), "camera": Field((8, 8, 3), dtype="uint8")},
    Field((1,)),
    0.5,
)


@pytest.fixture
def store(tmp_path) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path / "s.zarr", CONTRACT)
    for index in range(2):
        steps = np.arange(6.0) + 10 * index
        camera = np.full((6, 8, 8, 3), index, np.uint8)
        state = np.stack([steps, -steps], axis=1)
        store.append({"arm/state": state, "camera": camera, "action": steps[:, None]}, seed=index)
    return store


class FakeRerun(ModuleType):
    """Has of Rerun what is called, and remembers."""

    def __init__(self):
        super().__init__("rerun")
        self.logged: list[tuple[str, object, dict]] = []
        self.sent: dict[str, tuple[list, np.ndarray]] = {}
        self.at: dict[str, dict] = {}
        self.ended: list[str] = []
        self.RecordingStream = lambda name: self
        self.SeriesLines = lambda names: ("lines", names)
        self.TextDocument = lambda text: ("text", text)
        self.EncodedImage = lambda contents, media_type: ("image", contents[:4], media_type)
        self.TimeColumn = lambda name, **values: (name, values)
        self.Scalars = type("Scalars", (), {"columns": staticmethod(lambda scalars: scalars)})

    def save(self, path: str) -> None:
        self.path = path

    def log(self, path: str, what: object, **more: object) -> None:
        self.logged.append((path, what, {**more, **{k: dict(v) for k, v in self.at.items()}}))

    def set_time(self, name: str, **value: object) -> None:
        self.at[name] = value

    def send_columns(self, path: str, indexes: list, columns: np.ndarray) -> None:
        self.sent[path] = (indexes, columns)

    def flush(self) -> None:
        self.ended.append("flush")

    def disconnect(self) -> None:
        self.ended.append("disconnect")


def test_what_is_logged(store, tmp_path, monkeypatch):
    fake = FakeRerun()
    monkeypatch.setitem(sys.modules, "rerun", fake)
    chunks = {1: Chunks([0, 2, 4], [np.full((3, 1), float(i)) for i in range(3)])}
    episodes = Episodes(store, chunks)
    done = []
    write_rerun(
        episodes,
        episodes.about(),
        episodes=[1],
        file=tmp_path / "new" / "a.rrd",
        progress=lambda: done.append(1),
    )
    assert (fake.path, done) == (str(tmp_path / "new" / "a.rrd"), [1])
    assert fake.ended == ["flush", "disconnect"]
    indexes, columns = fake.sent["episode_1/arm_state"]
    assert columns.tolist() == [[10.0 + i, -10.0 - i] for i in range(6)]
    assert indexes[0][0] == "step"
    assert indexes[0][1]["sequence"].tolist() == [0, 1, 2, 3, 4, 5]
    assert indexes[1][1]["duration"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert ("episode_1/arm_state", ("lines", ["0 [m]", "1"]), {"static": True}) in fake.logged
    pictures = [each for each in fake.logged if each[0] == "episode_1/camera"]
    assert len(pictures) == 6
    assert pictures[3][1] == ("image", b"\x89PNG", "image/png")
    assert pictures[3][2] == {"step": {"sequence": 3}, "time": {"duration": 1.5}}
    # Chunks of 3 every 2 steps overlap with the next one, and not with the one after it.
    assert fake.sent["episode_1/planned/0"][0][0][1]["sequence"].tolist() == [4, 5, 6]
    assert fake.sent["episode_1/planned/1"][0][0][1]["sequence"].tolist() == [2, 3, 4]
    assert not any(path.startswith("episode_0") for path in fake.sent)


def test_chunks_of_a_lane_do_not_overlap():
    rng = np.random.default_rng(0)
    ticks = np.sort(rng.integers(0, 100, 40)).tolist()
    chunks = Chunks(ticks, [np.zeros((int(n), 1)) for n in rng.integers(1, 12, 40)])
    ends: dict[int, int] = {}
    for lane, tick, actions in in_lanes(chunks):
        assert ends.get(lane, 0) <= tick
        ends[lane] = tick + len(actions)
    busiest = max(
        sum(t <= at < t + len(a) for t, a in zip(chunks.ticks, chunks.actions, strict=True))
        for at in range(120)
    )
    assert len(ends) == busiest


def test_without_rerun_the_extra_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    cfg = compose_config("view", [f"path={store.path}", f"out={tmp_path / 'a.rrd'}"])
    with pytest.raises(ImportError, match=r"pip install -e '\.\[rerun\]'"):
        view.run(cfg)
    assert not (tmp_path / "a.rrd").exists()


def test_a_file_that_cannot_be_written_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", FakeRerun())
    (tmp_path / "a.rrd").mkdir()
    with pytest.raises(OSError, match=r"a\.rrd"):
        view.run(compose_config("view", [f"path={store.path}", f"out={tmp_path / 'a.rrd'}"]))


def test_rerun_writes_a_file_of_its_own(store, tmp_path):
    pytest.importorskip("rerun")
    file = tmp_path / "a.rrd"
    assert view.run(compose_config("view", [f"path={store.path}", f"out={file}"])) == 0
    content = file.read_bytes()
    assert content[:3] == b"RRF"
    for name in (b"episode_0", b"episode_1"):
        assert name in content
