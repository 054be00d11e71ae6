"""Packages of compiled programs: which are kept, without the compiler."""

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
