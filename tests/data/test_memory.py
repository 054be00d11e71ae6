"""Free memory: the least of what machine, control groups and process limits leave."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.memory import cgroup_folders, free_memory, may_map

CPU = torch.device("cpu")
GB = 10**9


@pytest.fixture
def proc(tmp_path) -> Path:
    """A kernel's view of a machine with 8 GiB free and a process of 1 GiB."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    proc = tmp_path / "proc"
    (proc / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 8388608 kB\nHuge: 0\n")
    (proc / "self" / "status").write_text("Name:\tx\nVmSize:\t1048576 kB\nVmData:\t524288 kB\n")
    return proc


def cgroup(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_without_limits_it_is_what_the_machine_has(proc):
    free = free_memory(CPU, proc=proc)
    assert free.n_bytes == 8 * 1024**3
    assert free.limit == "free on this machine"


def test_a_cgroup_of_version_2_limits_and_its_page_cache_is_not_used(proc, tmp_path):
    mount = tmp_path / "sys"
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    (proc / "self" / "mountinfo").write_text(f"30 20 0:1 / {mount} rw - cgroup2 cgroup2 rw\n")
    cgroup(mount / "outer" / "inner", {"memory.max": "max\n", "memory.current": "5\n"})
    stat = "anon 900000000\ninactive_file 300000000\nactive_file 100000000\n"
    limits = {"memory.max": "2000000000\n", "memory.current": "1400000000\n", "memory.stat": stat}
    cgroup(mount / "outer", limits)
    free = free_memory(CPU, proc=proc)
    assert free.n_bytes == 2 * GB - (1.4 * GB - 0.4 * GB)
    assert str(mount / "outer") in free.limit


def test_a_cgroup_of_version_1_limits(proc, tmp_path):
    mount = tmp_path / "memory"
    (proc / "self" / "cgroup").write_text("3:cpu:/\n2:memory:/box\n1:name=systemd:/\n")
    (proc / "self" / "mountinfo").write_text(
        f"30 20 0:1 / {mount} rw,relatime - cgroup cgroup rw,memory\n"
        f"31 20 0:1 / {tmp_path} rw - cgroup cgroup rw,cpu\n"
    )
    files = {"memory.limit_in_bytes": str(GB), "memory.usage_in_bytes": str(GB // 2)}
    stat = "inactive_file 7\ntotal_inactive_file 100000000\ntotal_active_file 0\n"
    cgroup(mount / "box", {**files, "memory.stat": stat})
    unlimited = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "1"}
    cgroup(mount, unlimited)
    assert free_memory(CPU, proc=proc).n_bytes == GB // 2 + GB // 10
    assert list(cgroup_folders(proc)) == [mount / "box", mount]


def test_in_a_container_the_mount_shows_a_part_of_the_tree(proc, tmp_path):
    mount = tmp_path / "sys"
    (proc / "self" / "cgroup").write_text("0::/docker/abc/job\n")
    (proc / "self" / "mountinfo").write_text(f"30 20 0:1 /docker/abc {mount} rw - cgroup2 x rw\n")
    cgroup(mount / "job", {"memory.max": str(GB), "memory.current": "0"})
    assert free_memory(CPU, proc=proc).n_bytes == GB
    (proc / "self" / "cgroup").write_text("0::/elsewhere\n")  # Its folder is not to be seen.
    assert list(cgroup_folders(proc)) == [mount]


def test_a_group_that_is_over_its_limit_has_nothing_left(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("0::/\n")
    (proc / "self" / "mountinfo").write_text(f"30 20 0:1 / {tmp_path} rw - cgroup2 x rw\n")
    cgroup(tmp_path, {"memory.max": "1000", "memory.current": "2000"})
    assert free_memory(CPU, proc=proc).n_bytes == 0


@pytest.mark.parametrize(
    ("limit", "used", "name"),
    [("RLIMIT_AS", 1024**3, "ulimit -v"), ("RLIMIT_DATA", 1024**3 // 2, "ulimit -d")],
)
def test_limits_of_the_process_count(proc, limit, used, name):
    # In a process of its own, since a limit cannot be raised again by everybody.
    source = (
        "import resource, torch\n"
        "from pathlib import Path\n"
        "from data.memory import free_memory\n"
        f"resource.setrlimit(resource.{limit}, (6 * 1024**3, 6 * 1024**3))\n"
        f"print(free_memory(torch.device('cpu'), proc=Path({str(proc)!r})))\n"
    )
    shown = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert f"n_bytes={6 * 1024**3 - used}, limit='left by {name}'" in shown.stdout, shown.stderr


def test_maps_count_for_the_address_space_alone(proc, monkeypatch):
    assert may_map(10**15, proc=proc)
    assert may_map(10**15)
    limit = 3 * 1024**3
    monkeypatch.setattr(resource, "getrlimit", lambda number: (limit, limit))
    assert may_map(1024**3 - 1, proc=proc)  # Half of what the process of 1 GiB has left.
    assert not may_map(1024**3, proc=proc)


def test_free_memory_of_this_machine_is_a_sensible_number():
    assert 10**7 < free_memory(CPU).n_bytes < 10**14
