"""Packages of compiled programs: which are kept, without the compiler."""

import errno
import os

import pytest
import torch

from policy import compilers
from policy.control.engine import UnavailableError
from policy.control.program import program_of


def program(factor):
    return program_of(lambda x: [factor * x], [torch.ones(2)])


@pytest.fixture
def made(monkeypatch):
    """Paths that were written, by something in the place of the compiler."""
    written = []

    def write(program, inputs, path):
        path.write_bytes(b"package")
        written.append(path)
        os.utime(path, (len(written), len(written)))

    monkeypatch.setattr(compilers, "_write", write)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: path)
    return written


def test_a_package_is_made_once(made, tmp_path):
    for _ in range(2):
        compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    assert len(made) == 1
    compilers.packaged(program(3.0), [torch.ones(2)], tmp_path)
    assert len(set(made)) == 2


def test_those_that_were_used_last_are_kept(made, monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "KEPT", 2)
    for factor in (1.5, 2.5):
        compilers.packaged(program(factor), [torch.ones(2)], tmp_path)
    compilers.packaged(program(1.5), [torch.ones(2)], tmp_path)  # Used again, and not made.
    (other := tmp_path / "timings.json").write_text("{}")
    compilers.packaged(program(3.5), [torch.ones(2)], tmp_path)
    first, second, third = made
    assert sorted(tmp_path.iterdir()) == sorted([first, third, other])
    assert not second.exists()


def test_a_package_is_for_inputs_of_one_shape(made, tmp_path):
    for n in (2, 3, 2):  # Of which an operation by elements shows nothing.
        compilers.packaged(program(2.0), [torch.ones(n)], tmp_path)
    assert len(set(made)) == len(made) == 2


def test_a_package_is_for_one_machine_its_threads_and_its_torch(made, monkeypatch, tmp_path):
    compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    for place, name in ((torch, "get_num_threads"), (compilers, "device_name")):
        monkeypatch.setattr(place, name, lambda *_: 77)
        compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.0")
    compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    assert len(set(made)) == 4


def test_programs_of_other_constants_have_other_digests():
    zeros = torch.zeros(2)
    constants = [zeros, zeros + 1, zeros.view(torch.int32), zeros.view(2, 1), torch.zeros(1)]
    given = [torch.ones(2)]
    # The operation is the same.
    programs = [program_of(lambda x, c=c: [x * c], given) for c in constants]
    assert len({each.body.code for each in programs}) == 1
    assert len({compilers.digest(each, given) for each in programs}) == len(programs)
    assert compilers.digest(program_of(lambda x: [x * zeros], given), given) == compilers.digest(
        programs[0], given
    )


def test_packages_of_a_folder_that_can_only_be_read_are_taken_up(made, monkeypatch, tmp_path):
    compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    assert compilers.packaged(program(2.0), [torch.ones(2)], tmp_path) == str(made[0])
    assert len(made) == 1


def test_a_damaged_package_is_made_again(made, monkeypatch, tmp_path):
    def load(path):
        if len(made) < 2:
            raise RuntimeError("damaged")
        return path

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    with pytest.raises(UnavailableError, match=r"AOTInductor failed \(damaged\)"):
        compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    assert len(made) == 2


def test_a_full_disk_is_not_a_compiler_that_is_missing(made, monkeypatch, tmp_path):
    def write(program, inputs, path):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("LoweringException") from error

    monkeypatch.setattr(compilers, "_write", write)
    with pytest.raises(UnavailableError, match="No space left on device") as error:
        compilers.packaged(program(2.0), [torch.ones(2)], tmp_path)
    assert "C++" not in str(error.value)
