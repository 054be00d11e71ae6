"""HDF5 of strangers: links and arrays elsewhere are not followed, whatever they are called."""

import builtins
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.importers import hdf5
from data.importers.hdf5 import child, dataset, leaves, open_hdf5, rows, spec_of, subgroup
from data.importers.importer import ImporterError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An array of 10 rows, in a group, and one of another file that nobody may see."""
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["numbers"] = np.arange(10.0)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("group/numbers", data=np.arange(10.0), chunks=(4,))
    return tmp_path / "a.hdf5"


def refused(path: Path, name: str = "numbers") -> str:
    with open_hdf5(path) as file, pytest.raises(ImporterError) as error:
        dataset(file, name, path=path)
    return str(error.value)


def test_rows_come_as_they_are(path):
    with open_hdf5(path) as file:
        array = dataset(subgroup(file, "group", path=path), "numbers", path=path)
        assert spec_of(array, path=path)[0] == 10
        assert rows(array, 2, 5, path=path).tolist() == [2, 3, 4]


def test_links_are_named_and_not_followed(path):
    with h5py.File(path, "a") as file:
        file["out"] = h5py.ExternalLink("secret.hdf5", "/numbers")
        file["soft"] = h5py.SoftLink("/group/numbers")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["group/again"] = h5py.ExternalLink("secret.hdf5", "/")
    assert "/out is a link to /numbers in the file 'secret.hdf5', which is not" in refused(
        path, "out"
    )
    assert "is a link to /group/numbers, which is not followed" in refused(path, "soft")
    assert "is a link to /nowhere" in refused(path, "dangling")
    with open_hdf5(path) as file, pytest.raises(ImporterError, match="/group/again is a link"):
        leaves(subgroup(file, "group", path=path), path=path)


def test_numbers_that_lie_in_other_files_are_not_read(path):
    (path.parent / "raw").write_bytes(np.arange(10.0).tobytes())
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource("secret.hdf5", "numbers", (10,))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (10,), "f8", external=[(str(path.parent / "raw"), 0, 80)])
    assert "is virtual" in refused(path, "virtual")
    assert "keeps its numbers in" in refused(path, "external")


def test_parts_that_were_never_written_do_not_read_as_zeros(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("whole", (10,), "f8")
        chunked = file.create_dataset("chunked", (10,), "f8", chunks=(4,), maxshape=(None,))
        chunked[:4] = 1
        file.create_dataset("bomb", (10**15,), "f8", chunks=(8,), compression="gzip")
        file.create_dataset("large", (10**6, 10**6), "f4", chunks=(10**5, 10**4))
        file.create_dataset("empty", (0, 3), "f8", chunks=(4, 3), maxshape=(None, 3))
        file["compact"] = 1.0
    assert "was never written" in refused(path, "whole")
    assert "has 1 of 3 chunks where they belong" in refused(path, "chunked")
    assert "has 0 of 125000000000000 chunks" in refused(path, "bomb")
    assert "has chunks of 4.0 GB" in refused(path, "large")
    with open_hdf5(path) as file:
        assert spec_of(dataset(file, "empty", path=path), path=path)[0] == 0
        with pytest.raises(ImporterError, match="is a single number"):
            spec_of(dataset(file, "compact", path=path), path=path)


def test_chunks_that_share_a_place_are_damaged(path, monkeypatch):
    class Chunk:
        def __init__(self, offset):
            self.chunk_offset, self.byte_offset, self.size = (offset,), 100, 32

    with open_hdf5(path) as file:
        array = dataset(subgroup(file, "group", path=path), "numbers", path=path)

        class Faked:
            shape, chunks = array.shape, array.chunks

            class id:
                @staticmethod
                def chunk_iter(note):
                    for offset in (0, 4, 8):
                        note(Chunk(offset))

                @staticmethod
                def read_direct_chunk(place):
                    return 0, bytes(32)

        with pytest.raises(ImporterError, match="chunks in the same place"):
            hdf5._check_chunks(Faked, "it")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.array(["a", "b"], dtype=h5py.string_dtype()), "dtype object"),
        (np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]), "only real numbers"),
        (np.zeros(3, ">f8"), "foreign byte order"),
    ],
)
def test_dtypes_that_are_no_numbers(path, values, complaint):
    with h5py.File(path, "a") as file:
        file["odd"] = values
    with open_hdf5(path) as file, pytest.raises(ImporterError, match=complaint):
        spec_of(dataset(file, "odd", path=path), path=path)


def test_numbers_laid_out_as_those_of_no_machine_are_refused(path):
    """A bit of the exponents' bias flipped: the library would read every number doubled."""
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(126)
    plain = {"half": "f2", "single": "f4", "double": "f8", "byte": "u1", "long": "i8", "flag": "?"}
    with h5py.File(path, "a") as file:
        h5py.h5d.create(file.id, b"odd", odd, h5py.h5s.create_simple((3,))).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.ones(3)
        )
        for name, dtype in plain.items():
            file[name] = np.ones(3, dtype)
    with open_hdf5(path) as file:
        for name, dtype in plain.items():
            assert rows(dataset(file, name, path=path), 0, 3, path=path).dtype == dtype
        with pytest.raises(ImporterError, match=r"/odd holds numbers laid out as those of no mach"):
            dataset(file, "odd", path=path)


def test_groups_and_arrays_are_told_apart(path):
    assert "is a group, it must be an array" in refused(path, "group")
    assert "/nothing is missing; there are group" in refused(path, "nothing")
    with open_hdf5(path) as file:
        group = subgroup(file, "group", path=path)
        with pytest.raises(ImporterError, match="is an array, it must be a group"):
            subgroup(group, "numbers", path=path)


def test_groups_within_groups(path):
    with h5py.File(path, "a") as file:
        file["deep/a/b"] = np.zeros(2)
        file["deep/a_b"] = np.zeros(2)
        file["loop/inside"] = np.zeros(1)
        file["loop/again"] = file["loop"]
    with open_hdf5(path) as file:
        assert set(leaves(subgroup(file, "group", path=path), path=path)) == {"numbers"}
        with pytest.raises(ImporterError, match="has the name 'a_b' twice"):
            leaves(subgroup(file, "deep", path=path), path=path)
        with pytest.raises(ImporterError, match="nested more than 8 deep"):
            leaves(subgroup(file, "loop", path=path), path=path)


def test_what_cannot_be_opened_says_why(tmp_path, path):
    def reason(file: Path) -> str:
        with pytest.raises(ImporterError) as error, open_hdf5(file):
            pass
        return str(error.value)

    assert "it does not exist" in reason(tmp_path / "nothing.hdf5")
    assert "it is a folder" in reason(tmp_path)
    (tmp_path / "empty.hdf5").touch()
    assert "it is empty" in reason(tmp_path / "empty.hdf5")
    (tmp_path / "text.hdf5").write_text("hello " * 100)
    assert "choose another format" in reason(tmp_path / "text.hdf5")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "truncated" in reason(path)


def test_a_file_that_may_not_be_read(path, monkeypatch):
    monkeypatch.setattr(hdf5.os, "access", lambda *_: False)
    path.write_bytes(b"x")
    with pytest.raises(ImporterError, match="may not be read"), open_hdf5(path):
        pass


class Damaged:
    """Whatever is asked of it, the library finds the file damaged."""

    name = "/demo_0"

    def __getattr__(self, name):
        raise OSError("bad heap")

    def __iter__(self):
        raise OSError("bad heap")

    def __getitem__(self, key):
        raise OSError("bad heap")


@pytest.mark.parametrize(
    "look",
    [
        lambda node, path: rows(node, 0, 4, path=path),
        lambda node, path: spec_of(node, path=path),
        lambda node, path: hdf5.names(node, path=path),
        lambda node, path: hdf5.attribute(node, "seed", path=path),
        lambda node, path: child(node, "x", path=path),
    ],
)
def test_whatever_the_library_raises_becomes_an_error_that_names_the_place(path, look):
    with pytest.raises(ImporterError, match=r"/demo_0.* damaged.*\(bad heap\)"):
        look(Damaged(), path)


def test_an_array_whose_storage_cannot_be_looked_at(path, monkeypatch):
    def fail(*_):
        raise RuntimeError("bad B-tree")

    monkeypatch.setattr(hdf5, "_check_chunks", fail)
    with open_hdf5(path) as file, pytest.raises(ImporterError, match=r"is damaged \(bad B-tree\)"):
        dataset(subgroup(file, "group", path=path), "numbers", path=path)


def test_without_h5py_the_mend_is_named(monkeypatch, path):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("h5py"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install"), open_hdf5(path):
        pass
