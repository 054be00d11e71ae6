"""Say what is wrong with a store, a checkpoint or this machine, and how to mend it.

    cadence doctor outputs/collect/latest/store.zarr
    cadence doctor PATH/pusht_cchi_v7_replay.zarr store=push_t_human
    cadence doctor TRAIN.zarr against=[VALIDATION.zarr]      # do they share episodes or starts?
    cadence doctor STORE.zarr json=true                      # for programs, with all episodes
    cadence doctor outputs/train/latest
    cadence doctor

A store is asked whether it can be read, and then for what spoils training: lengths, gaps and jitter
of time, numbers that are not finite, beyond their limits, cut off or constant, actions that jump or
do nothing, copies of episodes, pictures that are late or frozen, idle stretches, units, rotations
and discrete elements that are none. Each finding has a code (data/doctor.py lists them), what was
found, in which episodes, and the fix. Exit status: 0 nothing wrong, 1 warnings only, 2 errors.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from data.checks.finding import Finding
from data.dataset import split_episodes
from data.doctor import Look, examine_store
from data.store import EpisodeStore
from data.wording import counted
from envs.rendering import RenderingError, choose_backend, probe
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.checkpoint_doctor import examine_checkpoint
from policy.durable import write_text
from policy.entry import entry
from policy.fingerprint import fingerprint
from policy.progress import progress_bar

FREE_DISK_GB = 2.0  # a training run with its checkpoints stays below this


def examine_machine(say: Callable[[str], object] = print) -> list[Finding]:
    """What of this machine would get in the way of training or evaluation.

    Args:
        say: is told what is there.
    """
    findings = []
    try:
        backend = choose_backend()
        is_set = bool(os.environ.get("MUJOCO_GL")) and platform.system() == "Linux"
        failure = probe(backend) if is_set else ""  # otherwise it was probed by the choice
        if failure:
            raise RenderingError(f"MUJOCO_GL={backend} does not work ({failure}): leave it unset")
        say(f"rendering: {backend}")
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
    say(f"cuda: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
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


def examine_demonstrations(cfg: DictConfig, path: Path) -> list[Finding]:
    """What is wrong with a store of demonstrations.

    Raises:
        ValueError: `against` is no list of stores, one of them cannot be read, or `holdout` is out
            of range.
    """
    given = cfg.store.get("contract")
    contract = None if given is None else instantiate(given)
    sources = instantiate(cfg.store.get("sources"), _convert_="all")
    others = list(cfg.against) if isinstance(cfg.against, ListConfig) else [cfg.against]
    if not all(isinstance(other, str) for other in others):
        raise ValueError(f"against is {cfg.against}, it must be a store or [stores]")
    if not 0 <= cfg.holdout < 1:
        raise ValueError(f"holdout is {cfg.holdout}, it must be in [0, 1)")

    def is_held_out(n_episodes: int) -> np.ndarray:
        chosen = np.zeros(n_episodes, bool)
        chosen[split_episodes(n_episodes, cfg.holdout, seed=cfg.seed)[1]] = True
        return chosen

    look = Look(
        is_held_out=is_held_out,
        against=[EpisodeStore.open(o, contract=contract, sources=sources) for o in others],
        pictures=cfg.pictures,
    )
    with progress_bar(unit="step") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return examine_store(path, contract, sources=sources, look=look, progress=progress)


def run(cfg: DictConfig) -> int:
    """Print the findings; returns the exit status."""
    findings = examine(cfg)
    if cfg.out is not None:
        text = json.dumps(to_json(cfg.path, findings), indent=2, allow_nan=False)
        write_text(Path(str(cfg.out)), text + "\n")
    if cfg.json:
        print(json.dumps(to_json(cfg.path, findings), indent=2, allow_nan=False))
        return status_of(findings)
    return report(findings)


def examine(cfg: DictConfig) -> list[Finding]:
    """What is wrong with what `path` is, or with this machine."""
    if cfg.path is None:
        say = (lambda _: None) if cfg.json else print
        for name, version in fingerprint().items():
            say(f"{name}: {version}")
        return examine_machine(say)
    path = Path(str(cfg.path))
    if not is_checkpoint(path):
        return examine_demonstrations(cfg, path)
    findings = examine_checkpoint(path)
    if not any(finding.severity == "error" for finding in findings):
        findings += examine_policy(path)
    return findings


def to_json(path: str | None, findings: Sequence[Finding]) -> dict:
    """Findings as JSON.

    Args:
        path: of what was examined; None: this machine.
        findings: of it.
    """
    n_errors = sum(finding.severity == "error" for finding in findings)
    return {
        "path": path,
        "errors": n_errors,
        "warnings": len(findings) - n_errors,
        "findings": [finding.to_json() for finding in findings],
    }


def report(findings: list[Finding]) -> int:
    """Print findings; 0 for none, 1 for warnings only, 2 for errors."""
    for finding in findings:
        print(f"{finding.code} {finding.severity}: {finding.message}")
        print(f"     fix: {finding.fix}")
    n_errors = sum(finding.severity == "error" for finding in findings)
    print(f"{counted(n_errors, 'error')}, {counted(len(findings) - n_errors, 'warning')}")
    return status_of(findings)


def status_of(findings: Sequence[Finding]) -> int:
    """Exit status: 0 for no findings, 1 for warnings only, 2 for errors."""
    is_broken = any(finding.severity == "error" for finding in findings)
    return 2 if is_broken else 1 if findings else 0


def main() -> None:
    """Entry point."""
    entry("doctor", run, positional="path")


if __name__ == "__main__":
    main()
