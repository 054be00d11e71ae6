"""Archives of strangers: paths, bombs, checksums, objects."""

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.importers import archive
from data.importers.archive import NpzRows, npz_arrays, open_zip, read_npz
from data.importers.importer import ImporterError


def pack(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ImporterError) as error, open_zip(path):
        pass
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["../a", "x/../../a", "/etc/passwd", "\\a", "..\\a", "C:\\a", "a/../b"]
)
def test_paths_that_lead_out_are_refused_by_name(tmp_path, name):
    assert f"{name!r} leads out of the archive" in refused(pack(tmp_path / "a.zip", (name, b"x")))


def test_links_encrypted_and_double_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "'link' is a link" in refused(pack(tmp_path / "a.zip", (link, b"/etc/passwd")))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = pack(tmp_path / "b.zip", ("x", b"1"), ("x", b"2"))
    assert "'x' twice" in refused(path)
    path = pack(tmp_path / "c.zip", ("x", b"1"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "'x' is encrypted" in refused(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", ("zeros", bytes(5 * 10**6)))
    with open_zip(path):
        pass
    monkeypatch.setattr(archive, "MAX_RATIO", 900)
    assert "a decompression bomb, or a damaged file" in refused(path)
    with (
        pytest.raises(ImporterError, match=r"declares 0.0 GB, at most 0.0 GB are read"),
        open_zip(path, member_bytes=10**6),
    ):
        pass


def test_a_member_that_is_larger_than_it_says_is_cut_and_noticed(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(10**5))
    path = pack(tmp_path / "a.npz", ("x.npy", buffer.getvalue()))
    content = bytearray(path.read_bytes())
    size, small = ((n).to_bytes(4, "little") for n in (10**5 * 8 + 128, 1128))
    assert content.count(size) == 2  # Before the member, and in the directory at the end.
    path.write_bytes(content.replace(size, small))
    with pytest.raises(ImporterError, match=r"x.npy is damaged"):
        read_npz(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\x80\x04pickled", "it is a pickle, which could run any code"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"\x93NUMPY\x01", "it is a single numpy array"),
        (b"PK\x03\x04 cut short", "give one, or fetch the file again"),
    ],
)
def test_what_is_no_archive_is_said(tmp_path, content, words):
    (tmp_path / "a.npz").write_bytes(content)
    assert words in refused(tmp_path / "a.npz")


def test_what_is_no_file_is_said(tmp_path):
    assert "it is a folder" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "nothing.npz")


def test_arrays_come_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(3, 2), "b": np.array(True), "c": np.zeros((0, 2), "u1")}
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    found = read_npz(tmp_path / "a.npz")
    assert set(found) == set(arrays)
    np.testing.assert_array_equal(found["a"], arrays["a"])
    assert (found["b"].tolist(), found["c"].shape) == ([True], (0, 2))


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    with pytest.raises(ImporterError, match=r"x.npy has dtype object, objects are never unpickled"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.array(["text"]), "only real numbers"),
        (np.zeros(2, ">f8"), "foreign byte order"),
        (np.zeros((2, 3), order="F"), "is in Fortran order"),
        (np.zeros(2, np.complex128), "only real numbers"),
    ],
)
def test_arrays_that_cannot_be_read(tmp_path, values, complaint):
    np.savez(tmp_path / "a.npz", x=values)
    with pytest.raises(ImporterError, match=complaint):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("member", "content", "complaint"),
    [
        ("x.npy", b"no array at all", "x.npy is damaged or no numpy array"),
        ("x.npy", b"\x93NUMPY\x03\x00\x00\x00\x00\x00", "format version"),
        ("x.npy", b"\x93NUMPY\x01\x00\x05\x00{'a':", "no numpy array"),
        ("x.txt", b"hello", "'x.txt' is no array of an npz file"),
        ("deep/x.npy", b"hello", "'deep/x.npy' is no array"),
    ],
)
def test_members_that_are_no_arrays(tmp_path, member, content, complaint):
    with pytest.raises(ImporterError, match=complaint):
        read_npz(pack(tmp_path / "a.npz", (member, content)))


def test_an_archive_of_nothing(tmp_path):
    with pytest.raises(ImporterError, match="holds no arrays"):
        read_npz(pack(tmp_path / "a.npz"))


def test_arrays_too_large_for_memory_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(100), y=np.zeros(100))
    with pytest.raises(ImporterError, match="declares 1600 bytes, at most 1000 are read at once"):
        read_npz(tmp_path / "a.npz", limit=1000)


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("shape", ["(3,)", "(10**12,)", f"({10**18}, {10**18})", "(-1,)", "(1, 3)"])
def test_a_header_that_lies_about_the_size(tmp_path, shape):
    with pytest.raises(ImporterError, match=r"x\.npy"):
        read_npz(pack(tmp_path / "a.npz", ("x.npy", header(shape) + bytes(16))))


def test_every_flipped_bit_of_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(8.0))
    whole = path.read_bytes()
    start = whole.index(np.arange(8.0).tobytes())
    for byte in range(start, start + 64, 5):
        content = bytearray(whole)
        content[byte] ^= 4
        path.write_bytes(content)
        with pytest.raises(ImporterError, match=r"x.npy is damaged .*CRC"):
            read_npz(path)


def test_rows_are_read_in_order_and_damage_in_them_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(100, 3)))
    with open_zip(path) as opened:
        array = npz_arrays(path, opened)["x"]
        reader = NpzRows(opened, array)
        reader.rows(0, 2)
        np.testing.assert_array_equal(reader.rows(50, 51), np.load(path)["x"][50:51])
        monkeypatch.setattr(reader, "_stream", io.BytesIO())
        with pytest.raises(ImporterError, match=r"x.npy is damaged \(it is cut short\)"):
            reader.rows(60, 61)

        class Broken:
            def read(self, n):
                raise zipfile.BadZipFile("bad")

        monkeypatch.setattr(reader, "_stream", Broken())
        with pytest.raises(ImporterError, match=r"x.npy is damaged \(bad\)"):
            reader.rows(70, 71)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refused(path)
