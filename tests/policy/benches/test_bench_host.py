"""The machine: what is told of it, and when it is busy."""

import os

import pytest
import torch

from policy.benches.host import busy_line, describe, load_average, threads

CPU = torch.device("cpu")


def test_the_processor_is_read_from_the_system(tmp_path):
    file = tmp_path / "cpuinfo"
    lines = ["processor : 0", "cpu family : 6", "model : 207", "model name : A (R) CPU @ 2 GHz", ""]
    file.write_text("\n".join(lines * 2))
    assert describe(CPU, file)["processor"] == "A (R) CPU @ 2 GHz, cpu family 6, model 207"


def test_a_system_that_does_not_tell_is_described_nonetheless(tmp_path):
    found = describe(CPU, tmp_path / "none")
    assert found["processor"]
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("load", "cpus", "is_busy"), [(0.4, 2, False), (0.6, 2, True), (3, 16, False)]
)
def test_a_busy_machine_is_told(load, cpus, is_busy):
    line = busy_line(load, cpus)
    assert (line is not None) == is_busy
    assert line is None or f"{load:.2f} on {cpus} CPUs" in line


def test_a_system_without_a_load_has_none(monkeypatch):
    def none():
        raise OSError("there is none")

    monkeypatch.setattr(os, "getloadavg", none)
    assert load_average() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2, 3))
    assert load_average() == 1.5


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with threads(before + 1) as n:
        assert n == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None) as n:
        assert n == before
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
