"""How much memory this process may still use: the least of what each limit leaves.

A machine's free memory is not the only limit: a container has one of its own (cgroup v1 or v2,
which a process that goes beyond it does not survive), and so may a process (`ulimit -v`, `-d`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Not a system with such limits.
    resource = None

PROC = Path("/proc")
UNLIMITED = 2**60  # A limit from here on is none; cgroup v1 writes the largest multiple of a page.


@dataclass(frozen=True)
class Free:
    """Memory that can still be used.

    Args:
        n_bytes: at least 0.
        limit: what sets this limit, in words.
    """

    n_bytes: int
    limit: str


def free_memory(device: torch.device, *, proc: Path = PROC) -> Free:
    """What can still be used on a device, by the limit that leaves least.

    Args:
        device: a GPU, or the host.
        proc: where the kernel tells the state of processes.
    """
    if device.type == "cuda":
        return Free(torch.cuda.mem_get_info(device)[0], f"free on {device}")
    limits = [_machine(proc), *_cgroups(proc), *_process(proc)]
    return min(limits, key=lambda free: free.n_bytes)


def may_map(n_bytes: int, *, proc: Path = PROC) -> bool:
    """Whether a file of that size may be mapped: `ulimit -v` counts maps, other limits do not."""
    if resource is None:
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return not _is_limit(limit) or n_bytes < (limit - _used(proc, "VmSize")) // 2


def _machine(proc: Path) -> Free:
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        return Free(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of this machine")
    # Linux counts what it would give back from its caches as available.
    return Free(_kilobytes(meminfo, "MemAvailable"), "free on this machine")


def _process(proc: Path) -> Iterator[Free]:
    """What the limits of this process leave."""
    if resource is None:
        return
    for number, name, used in (
        (resource.RLIMIT_AS, "ulimit -v", "VmSize"),
        (resource.RLIMIT_DATA, "ulimit -d", "VmData"),
    ):
        limit = resource.getrlimit(number)[0]
        if _is_limit(limit):
            yield Free(max(0, limit - _used(proc, used)), f"left by {name}")


def _is_limit(limit: int) -> bool:
    assert resource is not None
    return limit != resource.RLIM_INFINITY and limit < UNLIMITED


def _cgroups(proc: Path) -> Iterator[Free]:
    """What the control groups that this process is in leave, each and its parents."""
    for folder in cgroup_folders(proc):
        for limit_file, used_file, kinds in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_inactive_file", "total_active_file"),
            ),
        ):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is None or used is None or limit >= UNLIMITED:
                continue
            # The group's share of the page cache is given back when it is needed.
            cached = sum(_stat(folder / "memory.stat", kind) for kind in kinds)
            yield Free(max(0, limit - max(0, used - cached)), f"left by the cgroup {folder}")


def cgroup_folders(proc: Path = PROC) -> Iterator[Path]:
    """The folders of the memory controller for this process, the innermost first."""
    mounts = _cgroup_mounts(proc)
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        kind = "cgroup2" if not controllers else "memory"
        if kind not in mounts or (controllers and "memory" not in controllers.split(",")):
            continue
        root, mount = mounts[kind]
        # In a container the mount shows a part of the tree only, which begins at `root`.
        inner = path[len(root) :] if root != "/" and path.startswith(root) else path
        folder = mount / inner.lstrip("/")
        folder = folder if folder.is_dir() else mount
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(mount))


def _cgroup_mounts(proc: Path) -> dict[str, tuple[str, Path]]:
    """Kind ("memory" or "cgroup2") -> what the mount shows, and where it is."""
    mounts = {}
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            mounts["cgroup2"] = root, Path(mount)
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts["memory"] = root, Path(mount)
    return mounts


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []  # There is no such limit here.


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _stat(file: Path, kind: str) -> int:
    return sum(int(line.split()[1]) for line in _lines(file) if line.split()[0] == kind)


def _used(proc: Path, name: str) -> int:
    return _kilobytes(proc / "self" / "status", name)


def _kilobytes(file: Path, name: str) -> int:
    """A line such as "VmSize:  1024 kB" in bytes; 0 where there is none."""
    lines = dict(line.split(":", 1) for line in _lines(file) if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else 0
