"""Where memory runs out, a file is not called damaged: whoever fetches it again has the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from data import edits, layout
from data.importers import archive, diffusion_policy, minari


class _Large:
    ndim, shape, name, store_path = 1, (3,), "large", "somewhere"

    def __getitem__(self, key):
        raise MemoryError

    def open(self, member):
        raise MemoryError


LARGE: Any = _Large()  # a group, an array, or an archive, of which nothing can be read


def too_large(*args, **kwargs):
    raise MemoryError


def read_zarr():
    with diffusion_policy._zarr_faults(Path("somewhere")):
        too_large()


@pytest.mark.parametrize(
    "read",
    [
        lambda: layout.stored_array("somewhere", LARGE, "data/state"),
        lambda: edits.read_edits("somewhere", LARGE, "0" * 64, n_episodes=1),
        lambda: archive.NpzArray.of(Path("somewhere"), LARGE, "state.npy"),
        read_zarr,
    ],
)
def test_of_what_is_read(read):
    with pytest.raises(MemoryError):
        read()


def test_of_a_group(monkeypatch, tmp_path):
    monkeypatch.setattr(zarr, "open_group", too_large)
    with pytest.raises(MemoryError):
        layout.open_group(tmp_path, "r")


def test_of_a_picture(monkeypatch):
    image = pytest.importorskip(
        "PIL.Image", reason="pictures need the extra: pip install -e '.[import]'"
    )
    monkeypatch.setattr(image, "open", too_large)
    with pytest.raises(MemoryError):
        minari._decoded(np.zeros(3, np.uint8), (2, 2, 3), "somewhere")


def test_of_numbers_whose_size_may_be_wrong():
    with pytest.raises(layout.StoreError, match="needs more memory than there is"):
        layout.stored_numbers("somewhere", LARGE, 3)
