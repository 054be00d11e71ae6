"""Say what is wrong with a store, a checkpoint or this machine, and how to mend it.

    cadence doctor outputs/collect/latest/store.zarr
    cadence doctor PATH/pusht_cchi_v7_replay.zarr store=push_t_human
    cadence doctor outputs/train/latest
    cadence doctor

Each finding has a code, what was found and the fix. Exit status: 0 nothing wrong, 1 warnings only,
2 errors.
"""

import shutil
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.doctor import Finding, examine_store
from envs.rendering import RenderingError, choose_backend
from policy.checkpoint_doctor import examine_checkpoint
from policy.entry import entry
from policy.fingerprint import fingerprint

FREE_DISK_GB = 2.0  # a training run with its checkpoints stays below this


def examine_machine() -> list[Finding]:
    """What of this machine would get in the way of training or evaluation."""
    findings = []
    try:
        backend = choose_backend()
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
    path = Path(cfg.path)
    if is_checkpoint(path):
        return report(examine_checkpoint(path))
    given = cfg.store.get("contract")
    contract = None if given is None else instantiate(given)
    return report(examine_store(path, contract))


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
