"""Stores: what goes in comes out, only whole episodes are seen, and every complaint is made."""

import errno
import json
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr
import zarr.storage._local as zarr_local

from data import shard_files
from data.codec import CHUNK_BYTES, CHUNK_STEPS
from data.layout import Source
from data.store import EpisodeStore, StoreError
from data.types import Contract, ContractError, Field

PUSH_T = Path(__file__).resolve().parents[2] / "../shared/data/pusht_cchi_v7_replay.zarr"
CONTRACT = Contract(
    observation={"state": Field((3,), unit="m"), "camera": Field((4, 4, 3), dtype="uint8")},
    action=Field((2,), unit="m"),
    control_dt=0.1,
    task="reach",
)


def episode(index: int, length: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(length, 3)).astype(np.float32),
        "camera": rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8),
        "action": np.full((length, 2), index, np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


def filled(path: Path, n_episodes: int = 3) -> EpisodeStore:
    store = EpisodeStore.create(path, CONTRACT)
    for index in range(n_episodes):
        store.append(episode(index, 4 + index), seed=index, expert="left", success=np.True_)
    return store


def foreign(
    path: Path, replace: dict[str, np.ndarray] | None = None, *, zarr_format: Literal[2, 3] = 2
) -> Path:
    """A store without a contract, as published by others, episodes of 2 and 4 steps."""
    arrays = {
        "data/state": np.arange(18, dtype=np.float64).reshape(6, 3),
        "data/camera": np.full((6, 4, 4, 3), 255, np.float32),
        "data/action": np.ones((6, 2), np.float32),
        "data/unused": np.zeros(6, np.int64),
        "meta/episode_ends": np.array([2, 6]),
        **(replace or {}),
    }
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for key, values in arrays.items():
        group.create_array(key, data=values, chunks=(4, *values.shape[1:]))
    return path


def test_episodes_come_back_as_they_went_in(path):
    filled(path)
    store = EpisodeStore.open(path)
    assert store.contract == CONTRACT
    assert store.episode_ends.tolist() == [4, 9, 15]
    assert store.episode_ends.dtype == np.int64
    assert (store.n_episodes, store.n_steps) == (3, 15)
    for name in CONTRACT.fields:
        expected = np.concatenate([episode(i, 4 + i)[name] for i in range(3)])
        np.testing.assert_array_equal(store.read(name), expected)
        assert store.read(name).dtype == CONTRACT.fields[name].dtype
        np.testing.assert_array_equal(store.array(name)[:], expected)
        np.testing.assert_array_equal(
            store.read(name, episodes=[2, 0]), expected[[*range(4), *range(9, 15)]]
        )
        rows = np.array([0, 7, 14])
        np.testing.assert_array_equal(store.read_rows(name, rows), expected[rows])
    assert store.episode_metadata[1] == {"seed": 1, "expert": "left", "success": True}


def test_a_store_is_written_as_zarr_3_with_its_contract(path):
    filled(path)
    root = json.loads((path / "zarr.json").read_text())
    assert root["zarr_format"] == 3
    assert Contract.from_json(root["attributes"]["contract"]) == CONTRACT
    assert zarr.open_array(path / "meta/episode_ends", mode="r").shape == (3,)


def test_appending_goes_on_after_opening_again(path):
    filled(path)
    EpisodeStore.open(path, mode="a").append(episode(9))
    assert EpisodeStore.open(path).episode_ends.tolist() == [4, 9, 15, 20]


def test_an_episode_longer_than_a_chunk(path):
    store = EpisodeStore.create(path, CONTRACT)
    length = 4096 * 2 + 100  # State and action have the largest chunks, of 4096 rows.
    assert CHUNK_STEPS == 4096 < CHUNK_BYTES // 12
    for index in range(2):
        store.append(episode(index, length))
    np.testing.assert_array_equal(store.read("state")[length:], episode(1, length)["state"])
    np.testing.assert_array_equal(store.read("camera")[:length], episode(0, length)["camera"])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_foreign_store_is_read_in_the_contracts_dtypes(path, zarr_format):
    store = EpisodeStore.open(foreign(path, zarr_format=zarr_format), contract=CONTRACT)
    assert store.episode_ends.tolist() == [2, 6]
    assert store.read("state").dtype == np.float32
    assert store.read("state")[5].tolist() == [15, 16, 17]
    assert store.read("camera").dtype == np.uint8
    assert store.read("camera").min() == 255
    assert store.episode_metadata == [{}, {}]


def test_the_digest_depends_on_the_numbers_and_not_on_how_they_are_stored(tmp_path):
    stores = [foreign(tmp_path / "2"), foreign(tmp_path / "3", zarr_format=3)]
    digests = {EpisodeStore.open(store, contract=CONTRACT).digest() for store in stores}
    assert len(digests) == 1
    changed = np.ones((6, 2), np.float32)
    changed[5, 1] = 2
    for replace in ({"data/action": changed}, {"meta/episode_ends": np.array([3, 6])}):
        other = foreign(tmp_path / "other", replace)
        digests.add(EpisodeStore.open(other, contract=CONTRACT).digest())
    assert len(digests) == 3


SOURCED = Contract({"x": Field((2,)), "view": Field((4, 4, 3), "uint8")}, Field((2,)), 0.1)
SOURCES = {"x": Source("state", [2, 0]), "view": Source("camera")}


def test_a_field_may_be_some_elements_of_an_array_of_another_name(path):
    store = EpisodeStore.open(foreign(path), contract=SOURCED, sources=SOURCES)
    assert store.read("x").dtype == np.float32
    assert store.read("x", episodes=[1]).tolist() == [[8, 6], [11, 9], [14, 12], [17, 15]]
    assert store.read_rows("x", np.array([0, 5])).tolist() == [[2, 0], [17, 15]]
    assert store.read("view").shape == (6, 4, 4, 3)
    other = np.arange(18, dtype=np.float64).reshape(6, 3)
    other[0, 1] = np.nan  # which is not among the elements
    path = foreign(path.with_name("other"), {"data/state": other})
    assert store.digest() == EpisodeStore.open(path, contract=SOURCED, sources=SOURCES).digest()


def test_the_identity_tells_sources_apart(path):
    foreign(path)
    sources = [SOURCES, {**SOURCES, "x": Source("state", [0, 2])}]
    stores = [EpisodeStore.open(path, contract=SOURCED, sources=given) for given in sources]
    assert stores[0].identity() != stores[1].identity()
    again = EpisodeStore.open(path, contract=SOURCED, sources=SOURCES)
    assert again.identity() == stores[0].identity()


def test_a_store_of_ours_keeps_its_fields_under_their_names(path):
    store = EpisodeStore.create(path, SOURCED)
    values = {"x": np.ones((3, 2)), "view": np.zeros((3, 4, 4, 3), np.uint8)}
    store.append({**values, "action": np.zeros((3, 2))})
    again = EpisodeStore.open(path, contract=SOURCED, sources=SOURCES)
    assert again.read("x").tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"x": Source("pose", [0, 1])}, r"lacks the array data/pose; it has \['action', 'camera'"),
        ({"x": Source("state", [0, 3])}, r"elements \[0, 3\] are wanted of state.* shape \(3,\)"),
        ({"x": Source("camera", [0, 1])}, r"of camera, of which a step has shape \(4, 4, 3\)"),
        ({"x": Source("state", [0])}, r"a step of x has shape \(1,\), the contract says \(2,\)"),
        ({"y": Source("state")}, r"the fields \['y'\], the contract has \['action', 'view', 'x'\]"),
    ],
)
def test_impossible_sources_are_refused(path, sources, message):
    with pytest.raises(StoreError, match=message):
        EpisodeStore.open(foreign(path), contract=SOURCED, sources={**SOURCES, **sources})


def test_a_given_contract_may_ask_for_fewer_fields(path):
    filled(path)
    fewer = Contract({"state": CONTRACT.observation["state"]}, CONTRACT.action, 0.1)
    store = EpisodeStore.open(path, contract=fewer)
    assert set(store.contract.fields) == {"state", "action"}
    with pytest.raises(StoreError, match="no field 'camera'"):
        store.read("camera")


def test_a_given_contract_must_agree_with_the_stores(path):
    filled(path)
    other = Contract(CONTRACT.observation, CONTRACT.action, 0.2)
    with pytest.raises(ContractError, match=r"0.2 s in the given contract, but 0.1 s in store"):
        EpisodeStore.open(path, contract=other)


@pytest.mark.skipif(not PUSH_T.exists(), reason=f"the Push-T demonstrations are not at {PUSH_T}")
def test_the_published_push_t_store():
    contract = Contract(
        {"state": Field((5,), angles=(4,)), "img": Field((96, 96, 3), dtype="uint8")},
        Field((2,)),
        0.1,
    )
    store = EpisodeStore.open(PUSH_T, contract=contract)
    assert (store.n_steps, store.n_episodes) == (25650, 206)
    assert store.read("state").shape == (25650, 5)
    image = store.read("img", episodes=[0])
    assert image.shape == (161, 96, 96, 3)
    assert image.dtype == np.uint8
    assert image.max() == 255


# Crashes.


class Killed(Exception):
    """The process ends here."""


def let_writes_fail(patch, fail_at: int, error: Exception, *, leave_part: bool = False) -> list:
    """Let the n-th file that is written fail, perhaps with half a file beside; counts them."""
    calls: list[Path] = []

    def failing(write):
        def write_or_fail(path, value, *arguments, **settings):
            calls.append(path)
            if len(calls) > fail_at:
                if leave_part:
                    content = value if isinstance(value, bytes) else value.to_bytes()
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.with_suffix(".0.partial").write_bytes(content[:3])
                raise error
            return write(path, value, *arguments, **settings)

        return write_or_fail

    # Zarr writes what describes arrays and what is about episodes, we write the shards.
    patch.setattr(zarr_local, "_put", failing(zarr_local._put))
    patch.setattr(shard_files, "replace_file", failing(shard_files.replace_file))
    return calls


def writes_of_an_append(path: Path, monkeypatch) -> int:
    """How many files one append writes."""
    store = filled(path)
    with monkeypatch.context() as patch:
        calls = let_writes_fail(patch, 1000, Killed())
        store.append(episode(7, 9))
    assert calls[-1] == path / "zarr.json"
    return len(calls)


def test_an_append_cut_at_any_write_leaves_the_finished_episodes(tmp_path, monkeypatch):
    n_writes = writes_of_an_append(tmp_path / "count", monkeypatch)
    assert n_writes >= 11  # 3 fields, metadata and ends, each a length and a chunk; the commit
    for n_done in range(n_writes):
        path = tmp_path / str(n_done)
        store = filled(path)
        with monkeypatch.context() as patch:
            let_writes_fail(patch, n_done, Killed(), leave_part=True)
            with pytest.raises(Killed):
                store.append(episode(7, 9), seed=7)
        for continued in (EpisodeStore.open(path), EpisodeStore.open(path, mode="a"), store):
            assert continued.episode_ends.tolist() == [4, 9, 15]
        # Both a shorter and a longer one may follow on the leftovers.
        EpisodeStore.open(path, mode="a").append(episode(8, 2), seed=8)
        EpisodeStore.open(path, mode="a").append(episode(9, 30), seed=9)
        after = EpisodeStore.open(path)
        assert after.episode_ends.tolist() == [4, 9, 15, 17, 47]
        assert [entry["seed"] for entry in after.episode_metadata] == [0, 1, 2, 8, 9]
        for name in CONTRACT.fields:
            parts = [episode(i, 4 + i) for i in range(3)] + [episode(8, 2), episode(9, 30)]
            expected = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(after.read(name), expected)
        assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("n_done", [0, 3, 9])
def test_a_full_disk_is_reported_and_nothing_is_lost(path, monkeypatch, n_done):
    store = filled(path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        let_writes_fail(patch, n_done, full)
        with pytest.raises(StoreError, match=r"No space left.* 3 finished episodes are safe: free"):
            store.append(episode(7, 9))
    store.append(episode(7, 9))  # The same store goes on once there is space.
    np.testing.assert_array_equal(store.read("state", episodes=[3]), episode(7, 9)["state"])


def test_another_write_failure_names_the_disk(path, monkeypatch):
    store = filled(path)
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    let_writes_fail(monkeypatch, 0, broken)
    with pytest.raises(StoreError, match=r"Input/output error.*check the disk"):
        store.append(episode(7, 9))


def test_an_interrupted_creation_leaves_no_half_of_a_store(path, monkeypatch):
    with monkeypatch.context() as patch:
        let_writes_fail(patch, 2, Killed())
        with pytest.raises(Killed):
            EpisodeStore.create(path, CONTRACT)
    assert not path.exists()
    assert filled(path).n_episodes == 3


def test_a_creation_on_a_full_disk_is_reported(path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    let_writes_fail(monkeypatch, 2, full)
    with pytest.raises(StoreError, match="No space left"):
        EpisodeStore.create(path, CONTRACT)


# Complaints.


def test_create_does_not_overwrite(path):
    filled(path)
    with pytest.raises(StoreError, match="exists already"):
        EpisodeStore.create(path, CONTRACT)


def test_open_needs_a_zarr_group(path):
    with pytest.raises(StoreError, match="does not exist"):
        EpisodeStore.open(path)
    path.mkdir()
    with pytest.raises(StoreError, match="is not a zarr group"):
        EpisodeStore.open(path)
    (path / "zarr.json").write_text("{ half")
    with pytest.raises(StoreError, match="is not a zarr group"):
        EpisodeStore.open(path)


def test_open_needs_a_known_mode(path):
    with pytest.raises(StoreError, match="mode is 'w', choose 'r' or 'a'"):
        EpisodeStore.open(path, mode="w")  # pyright: ignore[reportArgumentType]


def test_open_needs_a_contract(path):
    with pytest.raises(StoreError, match="has no contract in its attributes"):
        EpisodeStore.open(foreign(path))
    with pytest.raises(StoreError, match="can only be read"):
        EpisodeStore.open(path, contract=CONTRACT, mode="a")


def test_a_store_of_a_newer_program_is_refused(path):
    filled(path)
    zarr.open_group(path, mode="r+").attrs["format_version"] = 99
    with pytest.raises(StoreError, match="format_version 99, this program reads up to 2"):
        EpisodeStore.open(path)


@pytest.mark.parametrize("entry", ["text", {"observation": {}}, {"version": 99}])
def test_a_broken_contract_is_refused(path, entry):
    filled(path)
    zarr.open_group(path, mode="r+").attrs["contract"] = entry
    with pytest.raises(StoreError, match="contract in the attributes is"):
        EpisodeStore.open(path)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"data/state": np.zeros((5, 3))}, "state has 5 steps, but meta/episode_ends ends at 6"),
        ({"data/state": np.zeros((7, 3))}, "state has 7 steps, but meta/episode_ends ends at 6"),
        ({"data/state": np.zeros((6, 4))}, r"shape \(4,\), the contract says \(3,\)"),
        ({"data/action": np.zeros((6, 2), np.int64)}, "dtype int64, the contract says float32"),
        ({"data/camera": np.zeros((6, 4, 4, 3), bool)}, "dtype bool, the contract says uint8"),
        ({"meta/episode_ends": np.array([6, 6])}, r"episode_ends\[1\] is 6 after 6"),
        ({"meta/episode_ends": np.array([0, 6])}, r"episode_ends\[0\] is 0 after 0"),
        ({"meta/episode_ends": np.array([2.0, 6.0])}, "episode_ends is float64"),
    ],
)
def test_open_checks_the_arrays(path, replace, message):
    with pytest.raises(StoreError, match=message):
        EpisodeStore.open(foreign(path, replace), contract=CONTRACT)


def test_a_missing_key_is_named_with_those_present(path):
    contract = Contract({"pose": Field((3,))}, CONTRACT.action, 0.1)
    with pytest.raises(StoreError, match=r"lacks the array data/pose; it has \['action', 'camera'"):
        EpisodeStore.open(foreign(path), contract=contract)
    contract = Contract({"inner": Field((3,))}, CONTRACT.action, 0.1)
    zarr.open_group(path, mode="r+").create_group("data/inner")
    with pytest.raises(StoreError, match="data/inner is a group"):
        EpisodeStore.open(path, contract=contract)


def test_a_store_of_ours_holds_what_its_contract_says(path):
    filled(path)
    group = zarr.open_group(path, mode="r+")
    del group["data/state"]
    group.create_array("data/state", data=np.zeros((15, 3)))
    with pytest.raises(StoreError, match="dtype float64, the contract says float32"):
        EpisodeStore.open(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_reading_finds_the_first_step_that_is_not_finite(path, value):
    state = np.zeros((6, 3))
    state[3:, 1] = value
    store = EpisodeStore.open(foreign(path, {"data/state": state}), contract=CONTRACT)
    message = "data/state is not a finite number .* at step 3, in episode 1"
    with pytest.raises(StoreError, match=message):
        store.read("state")
    with pytest.raises(StoreError, match=message):
        store.digest()
    assert store.read("state", episodes=[0]).shape == (2, 3)  # It can be left out.


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_an_image_in_floats_must_hold_bytes(path, value):
    camera = np.zeros((6, 4, 4, 3), np.float32)
    camera[4, 1] = value
    store = EpisodeStore.open(foreign(path, {"data/camera": camera}), contract=CONTRACT)
    with pytest.raises(StoreError, match="does not fit the contract's dtype uint8 at step 4"):
        store.read("camera")


def test_pictures_of_0_to_1_are_refused_with_both_ranges(path):
    camera = np.linspace(0, 1, 6 * 48, dtype=np.float32).reshape(6, 4, 4, 3)
    store = EpisodeStore.open(foreign(path, {"data/camera": camera}), contract=CONTRACT)
    message = r"float32 numbers of 0..1\) does not fit the contract's dtype uint8 at step 0"
    with pytest.raises(StoreError, match=message):
        store.read("camera")


def test_a_number_too_large_for_the_contract_is_noticed(path):
    store = EpisodeStore.open(
        foreign(path, {"data/state": np.full((6, 3), 1e300)}), contract=CONTRACT
    )
    with pytest.raises(StoreError, match="does not fit the contract's dtype float32 at step 0"):
        store.read("state")


def test_a_lost_or_damaged_chunk_is_noticed(path):
    filled(path)
    chunk = path / "data/state/c/0/0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"data/state is damaged in steps 0\.\.14"):
        EpisodeStore.open(path).read("state")
    chunk.unlink()
    with pytest.raises(StoreError, match="chunk 0 is not there"):
        EpisodeStore.open(path).read("state")


def test_reading_checks_rows_and_episodes(path):
    store = filled(path)
    with pytest.raises(StoreError, match=r"episode 3 of .* which has 3"):
        store.read("state", episodes=[3, 1])
    with pytest.raises(StoreError, match=r"rows 0\.\.15 of a store of 15 steps"):
        store.read_rows("state", np.array([0, 15]))
    with pytest.raises(StoreError, match="not in ascending order"):
        store.read_rows("state", np.array([3, 1, 5]))
    repeated = store.read_rows("state", np.array([1, 1, 4]))
    np.testing.assert_array_equal(repeated, store.read("state")[[1, 1, 4]])


def test_append_needs_a_store_opened_for_it(path):
    filled(path)
    with pytest.raises(StoreError, match="open for reading"):
        EpisodeStore.open(path).append(episode(0))


def replaced(name: str, values: np.ndarray) -> dict:
    return {**episode(0), name: values}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"state": np.zeros((5, 3))}, r"fields \['state'\], the contract \['action'"),
        (replaced("more", np.zeros(5)), "'more'"),
        (replaced("state", np.zeros((5, 2))), r"state has shape \(5, 2\)"),
        (replaced("state", np.zeros(3)), r"state has shape \(3,\)"),
        (replaced("camera", np.zeros((5, 4, 4, 3))), "camera has dtype float64"),
        (replaced("action", np.zeros((6, 2))), "'action': 6"),
        (
            replaced("state", np.array([[0, 0, np.nan]] * 5)),
            "state is not a finite number that fits float32 at step 0",
        ),
        (episode(0, 0), "at least 1"),
    ],
)
def test_append_checks_the_episode(path, bad, message):
    store = filled(path)
    with pytest.raises(StoreError, match=message):
        store.append(bad)
    assert EpisodeStore.open(path).n_episodes == 3


@pytest.mark.parametrize(("dtype", "value"), [("int32", 2**40), ("float32", 1e300)])
def test_append_refuses_numbers_that_the_contract_cannot_hold(path, dtype, value):
    contract = Contract({"state": Field((1,), dtype=dtype)}, Field((1,)), 0.1)
    store = EpisodeStore.create(path, contract)
    with pytest.raises(StoreError, match=f"that fits {dtype} at step 1"):
        store.append({"state": np.array([[1], [value]]), "action": np.zeros((2, 1))})
    assert store.n_episodes == 0


def test_append_checks_the_metadata(path):
    with pytest.raises(StoreError, match="is not JSON"):
        filled(path).append(episode(0), expert=object())
