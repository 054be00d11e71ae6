"""The benchmarks of reading run; how fast is not for a test to say."""

import numpy as np
import pytest
import torch
import zarr

from data import large_bench
from data.bench import measure_gather
from data.read_bench import as_ours, main, measure_reading, original_rate
from data.store import EpisodeStore


def original(path):
    """Pictures and actions as Diffusion Policy lays them out."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3)).astype(np.float32)
    group.create_array("data/img", data=images, chunks=(16, 8, 8, 3))
    group.create_array("data/action", data=rng.normal(size=(60, 2)))
    group.create_array("meta/episode_ends", data=np.array([25, 60]))
    return images


def test_pictures_of_the_original_are_those_of_our_store(tmp_path):
    images = original(tmp_path / "original.zarr")
    store = as_ours(tmp_path / "original.zarr", "img", tmp_path / "ours.zarr")
    np.testing.assert_array_equal(store.read("img"), images.astype(np.uint8))
    assert store.episode_ends.tolist() == [25, 60]


def test_every_place_is_measured_and_the_threads_are_restored(tmp_path):
    original(tmp_path / "original.zarr")
    store = as_ours(tmp_path / "original.zarr", "img", tmp_path / "ours.zarr")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    rates = measure_reading(store, tmp_path / "cache", seconds=0.01)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(n_threads)
    assert min(rates.memory, rates.cache, rates.store) > 0
    assert original_rate(tmp_path / "original.zarr", "img", seconds=0.01) > 0


def test_the_command_prints_all_in_one_table(tmp_path, monkeypatch, capsys):
    original(tmp_path / "original.zarr")
    monkeypatch.setattr(
        "sys.argv", ["read_bench", str(tmp_path / "original.zarr"), "--seconds", "0.01"]
    )
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["the", "memory", "cache", "store"]


def test_the_benchmark_of_all_parts_has_every_place(tmp_path):
    rates = measure_gather(seconds=0.01, n_images=200)
    assert min(rates.image, rates.image_cached, rates.image_stored) > 0


def test_the_pictures_of_the_large_store_show_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(large_bench, "EPISODE", 30)
    large_bench.make_store(tmp_path / "large.zarr", 50)
    store = EpisodeStore.open(tmp_path / "large.zarr")
    assert store.n_steps == 60
    frames, places = store.read("camera"), store.read("place").astype(int)
    for frame, (row, column) in zip(frames, places, strict=True):
        square = frame[row : row + large_bench.SQUARE, column : column + large_bench.SQUARE]
        assert (square == square[0, 0]).all()
        assert (square[0, 0] >= 128).all()
        assert (frame >= 128).any(axis=-1).sum() == large_bench.SQUARE**2
    np.testing.assert_array_equal(store.read("action")[:29], store.read("place")[1:30])


def test_a_folder_that_is_no_control_group_is_not_taken_for_one(tmp_path):
    assert large_bench._limited_cgroup(tmp_path / "group", 10**9) is None
    assert not (tmp_path / "group").exists()
    assert large_bench._limited_cgroup(tmp_path / "file" / "group", 10**9) is None


@pytest.mark.parametrize(
    ("limit", "peak"),
    [("memory.limit_in_bytes", "memory.max_usage_in_bytes"), ("memory.max", "memory.peak")],
)
def test_a_control_group_is_limited_by_its_version(tmp_path, limit, peak):
    (tmp_path / limit).touch()
    assert large_bench._limited_cgroup(tmp_path, 10**9) == tmp_path / peak
    assert (tmp_path / limit).read_text() == "1000000000"


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"training ended with 1: [^$]*missing.zarr does not"):
        large_bench.train(
            tmp_path / "missing.zarr", tmp_path / "out", n_steps=8, settings=["threads=1"]
        )
