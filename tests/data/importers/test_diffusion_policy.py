"""Replay buffers of Diffusion Policy: in folders and archives, the real one, and broken ones."""

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from data.importers.diffusion_policy import DiffusionPolicy
from data.importers.importer import ImporterError
from data.importers.samples import ACTION, SAMPLES, UNITS, episodes, write_diffusion_policy
from data.layout import Source
from data.store import EpisodeStore
from data.types import Contract, Field

PUSH_T = Path(__file__).resolve().parents[3] / "../shared/data/pusht_cchi_v7_replay.zarr"
TOLD = {"state": UNITS, "action": ACTION}


def opened(path: Path, **settings) -> DiffusionPolicy:
    return DiffusionPolicy(path, **{"fields": TOLD, "control_dt": 0.1} | settings)


def read(path: Path, **settings) -> list[dict[str, np.ndarray]]:
    return [episode.fields for episode in opened(path, **settings).episodes()]


def write(path: Path, replace: Mapping[str, np.ndarray | None] | None = None, **settings) -> Path:
    """Two episodes of 2 and 4 steps, with some arrays replaced or left out."""
    arrays = {
        "data/state": np.arange(12, dtype=np.float64).reshape(6, 2),
        "data/action": np.ones((6, 2), np.float32),
        "meta/episode_ends": np.array([2, 6]),
        **(replace or {}),
    }
    group = zarr.open_group(path, mode="w", zarr_format=settings.pop("zarr_format", 2))
    for key, values in arrays.items():
        if values is not None:
            chunks = (4, *values.shape[1:])
            group.create_array(key, data=values, chunks=chunks, **settings)
    return path


def pack(folder: Path, target: Path, *, prefix: str = "", how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", how) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("prefix", ["", "pusht/replay.zarr/"])
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_buffer_within_an_archive_is_read_without_unpacking(tmp_path, prefix, how):
    made = episodes()
    folder = write_diffusion_policy(tmp_path, made)
    path = pack(folder, tmp_path / "replay.zarr.zip", prefix=prefix, how=how)
    shutil.rmtree(folder)
    for found, original in zip(read(path), made, strict=True):
        for name, values in SAMPLES["diffusion_policy"].expected(original).items():
            np.testing.assert_array_equal(found[name], values)
    assert [p.name for p in tmp_path.iterdir()] == ["replay.zarr.zip"]


def test_of_several_buffers_in_an_archive_one_is_chosen(tmp_path):
    path, folder = tmp_path / "both.zip", write(tmp_path / "a.zarr")
    with zipfile.ZipFile(path, "w") as archive:
        for prefix in ("a/", "b/"):
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    with pytest.raises(ImporterError, match=r"several buffers.*root=DIR of a, b"):
        opened(path)
    assert len(read(path, root="b")) == 2
    with pytest.raises(ImporterError, match="cannot be read as zarr"):
        opened(path, root="c")


def test_zarr_3_is_read_too(tmp_path):
    found = read(write(tmp_path / "a.zarr", zarr_format=3))
    np.testing.assert_array_equal(found[1]["state"], np.arange(4, 12).reshape(4, 2))


def test_pictures_of_whole_floats_become_uint8(tmp_path):
    picture = np.full((6, 4, 4, 3), 255, np.float32)
    (first, _) = read(write(tmp_path / "a.zarr", {"data/img": picture}))
    assert (first["img"].dtype, first["img"].min()) == (np.uint8, 255)
    with pytest.raises(ImporterError, match=r"img is a picture, but not of whole numbers 0..255"):
        read(write(tmp_path / "b.zarr", {"data/img": picture / 510}))


def test_the_real_push_t_demonstrations_come_as_they_are():
    if not PUSH_T.exists():
        pytest.skip("the published data set is not on this machine")
    contract = Contract({"state": Field((5,), unit="px")}, Field((2,), unit="px"), 0.1)
    store = EpisodeStore.open(PUSH_T, contract=contract)
    told = {"state": {"unit": "px"}, "action": {**ACTION, "unit": "px"}}
    importer = opened(PUSH_T, fields=told, take=["state"])
    assert importer.n_episodes == 206
    state = np.concatenate([episode.fields["state"] for episode in importer.episodes()])
    np.testing.assert_array_equal(state, store.read("state"))
    take = {"img": "img", "agent": {"key": "state", "elements": [0, 1]}}
    told["agent"] = told.pop("state")
    pixels = Contract({"img": Field((96, 96, 3), "uint8")}, contract.action, 0.1)
    store = EpisodeStore.open(PUSH_T, contract=pixels, sources={"img": Source("img")})
    importer = opened(PUSH_T, fields=told, take=take)
    for index in (0, 205):
        found = next(iter(importer.episodes(index))).fields
        np.testing.assert_array_equal(found["img"], store.read("img", episodes=[index]))


@pytest.mark.parametrize(
    ("replace", "complaint"),
    [
        ({"data/action": None}, "has no array action; it has state"),
        ({"data/state": None}, "besides the action, nothing is taken"),
        ({"data/state": np.full((6, 2), np.nan)}, "state is not a finite number .* at step 0"),
        ({"data/state": np.full((6, 2), 1e300)}, "state does not fit float32"),
        ({"data/state": np.full((6, 2), 2**24 + 1)}, "state does not fit float32"),
        ({"data/state": np.zeros((6, 0))}, r"a step has shape \(0,\), it holds nothing"),
        ({"data/state": np.zeros((6, 2), ">f4")}, "foreign byte order"),
        ({"data/state": np.zeros((6, 2), np.complex64)}, "only real numbers"),
        ({"data/state": np.zeros((5, 2))}, "state has 5 steps, meta/episode_ends ends at 6"),
        ({"data/a b": np.zeros(6)}, "'a b' cannot be the name of a field"),
        ({"meta/episode_ends": np.array([2, 2, 6])}, r"\[1\] is 2 after 2: the ends must grow"),
        ({"meta/episode_ends": np.array([0, 6])}, r"\[0\] is 0 after 0"),
        ({"meta/episode_ends": np.array([], np.int64)}, "holds no episodes"),
        ({"meta/episode_ends": np.array([2.0, 6.0])}, "must be whole numbers in a row"),
        ({"meta/episode_ends": None}, "meta/episode_ends cannot be read as zarr"),
    ],
)
def test_arrays_that_cannot_be_imported(tmp_path, replace, complaint):
    told = {"state": UNITS, "action": ACTION, "a b": UNITS}
    present = {k.removeprefix("data/") for k in replace if replace[k] is not None} | {"state"}
    told = {name: entries for name, entries in told.items() if name in present | {"action"}}
    with pytest.raises(ImporterError, match=complaint):
        read(write(tmp_path / "a.zarr", replace), fields=told)


def test_a_bad_episode_does_not_hide_the_good_ones(tmp_path):
    state = np.ones((6, 2))
    state[1] = np.nan
    importer = opened(write(tmp_path / "a.zarr", {"data/state": state}))
    with pytest.raises(ImporterError, match=r"episode 0: state is not a finite number .* step 1"):
        next(importer.episodes())
    assert len(list(importer.episodes(1))) == 1


def edit_json(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("codec", [None, numcodecs.Zlib(), numcodecs.Blosc()])
def test_chunks_that_are_damaged_are_noticed(tmp_path, codec):
    path = write(tmp_path / "a.zarr", compressors=codec)
    chunk = path / "data/state/1.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    with pytest.raises(ImporterError, match="1"):
        read(path)
    chunk.unlink()
    with pytest.raises(ImporterError, match=r"data/state/1.0 is missing .* format.missing=zeros"):
        read(path)
    assert read(path, missing="zeros")[1]["state"].tolist() == [[4, 5], [6, 7], [0, 0], [0, 0]]
    edit_json(path / "data/state/.zarray", fill_value=7)
    with pytest.raises(ImporterError, match="is missing and would read as 7"):
        read(path, missing="zeros")


def test_a_chunk_that_is_larger_than_its_place(tmp_path):
    path = write(tmp_path / "a.zarr", compressors=numcodecs.Zlib())
    (path / "data/state/1.0").write_bytes(bytes(10_000))
    with pytest.raises(ImporterError, match=r"state/1.0 is damaged: it holds .* where 10000"):
        read(path)


def test_an_array_whose_description_is_gone_is_not_left_out_silently(tmp_path):
    path = write(tmp_path / "a.zarr")
    (path / "data/state/.zarray").unlink()
    with pytest.raises(ImporterError, match="data/state cannot be read as zarr"):
        opened(path)


@pytest.mark.parametrize(
    ("key", "entries", "complaint"),
    [
        ("data/state", {"shape": [6, 1]}, r"its chunks \(2,\): it would be cropped"),
        ("data/state", {"chunks": [2**30, 2**10]}, "chunks of .* bytes"),
        ("data/state", {"dtype": "|O", "filters": None}, "state"),
        ("data/state", {"compressor": {"id": "imagecodecs_jpeg2k"}}, "imagecodecs_jpeg2k"),
        ("meta/episode_ends", {"shape": [2**40]}, "declares 1099511627776 episodes"),
        ("meta/episode_ends", {"shape": [3]}, "the ends must grow"),
    ],
)
def test_descriptions_that_lie(tmp_path, key, entries, complaint):
    path = write(tmp_path / "a.zarr")
    edit_json(path / key / ".zarray", **entries)
    with pytest.raises(ImporterError, match=complaint):
        read(path)


def test_an_episode_too_large_for_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.zarr")
    monkeypatch.setattr("data.importers.arrays.EPISODE_BYTES", 60)
    with pytest.raises(ImporterError, match=r"episode 1 declares 0.0 GB"):
        read(path)


def test_what_is_no_replay_buffer(tmp_path):
    with pytest.raises(ImporterError, match="does not exist"):
        opened(tmp_path / "nothing")
    with pytest.raises(ImporterError, match="cannot be read as zarr"):
        opened(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ImporterError, match=r"a.zip is no zip archive .*: it is empty"):
        opened(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ImporterError, match="no replay buffer of Diffusion Policy"):
        opened(tmp_path / "b.zip")
    group = zarr.open_group(tmp_path / "c.zarr", mode="w", zarr_format=2)
    group.create_array("meta/episode_ends", data=np.array([1]))
    with pytest.raises(ImporterError, match="data is missing"):
        opened(tmp_path / "c.zarr")
    group.create_group("data/action")
    with pytest.raises(ImporterError, match="data/action must be an array"):
        opened(tmp_path / "c.zarr")
    with pytest.raises(ImporterError, match="missing is 'ones', choose refuse or zeros"):
        opened(tmp_path / "c.zarr", missing="ones")


def test_a_store_of_ours_needs_no_import(tmp_path):
    EpisodeStore.create(tmp_path / "a.zarr", Contract({"state": Field((2,))}, Field((2,)), 0.1))
    with pytest.raises(ImporterError, match=r"is a store that can be used as it is: store.path="):
        opened(tmp_path / "a.zarr")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.zarr")
    real = Path.open

    def refuse(self, *args, **kwargs):
        if self.name == "1.0":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImporterError, match="cannot be read: Permission denied"):
        read(path)


def test_a_damaged_chunk_of_an_archive_has_a_wrong_checksum(tmp_path):
    path = pack(write(tmp_path / "a.zarr", compressors=None), tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    state = np.arange(12, dtype=np.float64).tobytes()[:64]
    content[content.index(state) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImporterError, match="data/state"):
        read(path)
