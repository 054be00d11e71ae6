"""Say what is wrong with a store, a checkpoint or this machine, and how to mend it.

    cadence doctor outputs/collect/latest/store.zarr
    cadence doctor PATH/pusht_cchi_v7_replay.zarr store=push_t_human
    cadence doctor outputs/train/latest
    cadence doctor

Each finding has a code, what was found and the fix. Exit status: 0 nothing wrong, 1 warnings only,
2 errors.
"""

import os
import platform
import shutil
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.doctor import Finding, examine_store
from envs.rendering import RenderingError, choose_backend, probe
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.checkpoint_doctor import examine_checkpoint
from policy.entry import entry
from policy.fingerprint import fingerprint

FREE_DISK_GB = 2.0  # a training run with its checkpoints stays below this


def examine_machine() -> list[Finding]:
    """What of this machine would get in the way of training or evaluation."""
    findings = []
    try:
        backend = choose_backend()
        is_set = bool(os.environ.get("MUJOCO_GL")) and platform.system() == "Linux"
        failure = probe(backend) if is_set else ""  # otherwise it was probed by the choice
        if failure:
            raise RenderingError(f"MUJOCO_GL={backend} does not work ({failure}): leave it unset")
        print(f"rendering: {backend}")
    except RenderingError as error:
        findings.append(Finding("M001", "warning", f"no rendering: {error}", "see the message"))
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < FREE_DISK_GB:
        findings.append(
            Finding(
                "M002",
                "warning",
                f"{free:.1f} GB of disk are free, runs need up to {FREE_DISK_GB} GB",
                "make room, or write elsewhere with out=DIR",
            )
        )
    print(f"cuda: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    return findings


def examine_policy(path: Path) -> list[Finding]:
    """Whether a policy can be built from a checkpoint whose files are whole."""
    try:
        from_checkpoint(load(path))
    except Exception as error:  # The configuration may be a stranger's and raise anything.
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        problem = f"no policy can be built from it: {cause or error}"
        fix = "restore the checkpoint from a copy, or train again; do not trust an altered one"
        return [Finding("C009", "error", problem, fix)]
    return []


def is_checkpoint(path: Path) -> bool:
    """Whether a path is meant as a checkpoint: it, or what it holds, looks like one."""
    marks = ("checkpoint.json", "policy.safetensors", "checkpoints")
    return any((path / mark).exists() for mark in marks) or path.name.startswith("step_")


def run(cfg: DictConfig) -> int:
    """Print the findings; returns the exit status."""
    if cfg.path is None:
        for name, version in fingerprint().items():
            print(f"{name}: {version}")
        return report(examine_machine())
    path = Path(str(cfg.path))
    if is_checkpoint(path):
        findings = examine_checkpoint(path)
        if not any(finding.severity == "error" for finding in findings):
            findings += examine_policy(path)
        return report(findings)
    given = cfg.store.get("contract")
    contract = None if given is None else instantiate(given)
    sources = instantiate(cfg.store.get("sources"), _convert_="all")
    return report(examine_store(path, contract, sources=sources))


def report(findings: list[Finding]) -> int:
    """Print findings; 0 for none, 1 for warnings only, 2 for errors."""
    for finding in findings:
        print(f"{finding.code} {finding.severity}: {finding.message}")
        print(f"     fix: {finding.fix}")
    n_errors = sum(finding.severity == "error" for finding in findings)
    print(f"{n_errors} errors, {len(findings) - n_errors} warnings")
    return 2 if n_errors else 1 if findings else 0


def main() -> None:
    """Entry point."""
    entry("doctor", run, positional="path")


if __name__ == "__main__":
    main()
