"""Checkpoints: safetensors and readable JSON, written whole or not at all.

    <run>/checkpoints/step_00012000/checkpoint.json     what it is: contract, config, versions, ...
                                    policy.safetensors  averaged (EMA) weights and statistics
                                    trainer.safetensors what training needs to go on ...
                                    trainer.json        ... and its part that is not tensors
    <run>/checkpoints/last          link to the newest

A checkpoint is written beside its place, flushed to the disk and renamed, so that a folder with its
name is complete whatever interrupts the program. Sizes and SHA-256 of its files are checked before
anything is used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load as tensors_of
from torch import Tensor

from data.types import CONTRACT_VERSION, Contract, Horizons
from policy.state_tree import State, unflatten

FORMAT_VERSION = 1
META = "checkpoint.json"
POLICY = "policy.safetensors"
TRAINER, TRAINER_META = "trainer.safetensors", "trainer.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be written or used.

    Args:
        problem: what is wrong, with file and value.
        code: see `policy.checkpoint_doctor`.
        fix: what to do.
    """

    def __init__(self, problem: str, *, code: str = "C002", fix: str = ""):
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.problem, self.code, self.fix = problem, code, fix


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint whose policy part is in memory.

    Args:
        path: its folder.
        step: optimiser steps taken.
        seconds: of training so far.
        weights: which weights `policy_state` holds, "ema" or "tuned".
        policy_state: state dict of the policy.
        contract: of the policy, with horizons and digest of the statistics.
        config: resolved configuration of the run.
        versions: of the programs that wrote it.
        store_digest: of the demonstrations.
        files: file name -> size [bytes] and sha256.
    """

    path: Path
    step: int
    seconds: float
    weights: str
    policy_state: dict[str, Tensor]
    contract: Contract
    config: dict
    versions: dict[str, str]
    store_digest: str
    files: dict[str, dict]

    @property
    def horizons(self) -> Horizons:
        """Steps seen, predicted and executed."""
        assert self.contract.horizons is not None
        return self.contract.horizons

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.path.parent.parent


def fingerprint_of(content: bytes) -> dict[str, int | str]:
    """Size and SHA-256 of a file's content."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def added_to(folder: Path, files: Mapping[str, object]) -> dict[str, dict[str, int | str]]:
    """Fingerprints of what was added to a checkpoint after training (`cadence fit`, `foresee`).

    Args:
        folder: of the checkpoint.
        files: those that the checkpoint names itself.
    """
    found = sorted(file for file in folder.glob("*.safetensors") if file.name not in files)
    return {file.name: fingerprint_of(file.read_bytes()) for file in found}


def resolve(path: Path | str) -> Path:
    """Folder of the checkpoint that a path means.

    Args:
        path: of a run, of its `checkpoints` (both mean the newest), or of one checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(str(path))
    if path.is_file():
        path = path.parent
    path = path.resolve()
    if (path / META).exists() or (path.name.startswith("step_") and path.is_dir()):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    last = folder / "last"
    if last.is_dir():
        return last.resolve()
    steps = sorted(folder.glob("step_*"))
    if not steps:
        raise CheckpointError(
            f"there is no checkpoint in {path}",
            code="C001",
            fix="give the folder of a training run, such as outputs/train/latest",
        )
    return steps[-1]


def load(path: Path | str) -> LoadedCheckpoint:
    """A checkpoint, checked, with its policy part in memory.

    Args:
        path: of a run, of its `checkpoints`, or of one checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged or of a newer program.
    """
    folder = resolve(path)
    meta = _read_meta(folder)
    try:
        loaded = LoadedCheckpoint(
            path=folder,
            step=int(meta["step"]),
            seconds=float(meta["seconds"]),
            weights=str(meta["weights"]),
            policy_state={},
            contract=_read_contract(meta["contract"], folder),
            config=dict(meta["config"]),
            versions=dict(meta["versions"]),
            store_digest=str(meta["store_digest"]),
            files={name: dict(meta["files"][name]) for name in (POLICY, TRAINER, TRAINER_META)},
        )
    except KeyError as error:
        raise _broken_meta(folder, f"lacks the entry {error}") from error
    except (TypeError, ValueError) as error:
        raise _broken_meta(folder, f"has a wrong entry ({error})") from error
    if loaded.contract.horizons is None:
        raise _broken_meta(folder, "lacks the horizons of its contract")
    return replace(loaded, policy_state=_read_tensors(loaded, POLICY))


def load_trainer(loaded: LoadedCheckpoint) -> State:
    """The nested state that training goes on from.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tensors = _read_tensors(loaded, TRAINER)
    rest = json.loads(_read_file(loaded, TRAINER_META))
    return unflatten(tensors, rest)


def _read_contract(entry: dict, folder: Path) -> Contract:
    version = entry.get("version") if isinstance(entry, dict) else None
    if isinstance(version, int) and version > CONTRACT_VERSION:
        raise _newer(f"the contract in {folder}", version, CONTRACT_VERSION)
    return Contract.from_json(entry)


def _newer(what: str, version: int, known: int) -> CheckpointError:
    return CheckpointError(
        f"{what} has format version {version}, this program reads up to {known}",
        code="C005",
        fix="upgrade cadence",
    )


def _broken_meta(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{folder / META} {problem}", code="C002", fix=_another(folder))


def _another(folder: Path) -> str:
    """What to do when a checkpoint is damaged: name the others of its run."""
    others = sorted(p.name for p in folder.parent.glob("step_*") if p != folder)
    if others:
        return f"use {folder.parent / others[-1]}, or restore the file from a copy"
    return "restore the file from a copy, or train again"


def _read_meta(folder: Path) -> dict:
    file = folder / META
    if not file.is_file():
        raise CheckpointError(f"{file} is missing", code="C003", fix=_another(folder))
    try:
        meta = json.loads(file.read_bytes())
    except ValueError as error:
        raise _broken_meta(folder, f"is not JSON ({error})") from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(version, int):
        raise _broken_meta(folder, "lacks a format_version")
    if version > FORMAT_VERSION:
        raise _newer(str(folder), version, FORMAT_VERSION)
    return meta


def _read_file(loaded: LoadedCheckpoint, name: str) -> bytes:
    """Content of a file that is as it was written."""
    file, expected = loaded.path / name, loaded.files[name]
    if not file.is_file():
        raise CheckpointError(f"{file} is missing", code="C003", fix=_another(loaded.path))
    content = file.read_bytes()
    for entry, found in fingerprint_of(content).items():
        if found != expected.get(entry):
            raise CheckpointError(
                f"{file} is damaged: its {entry} is {found}, written was {expected.get(entry)}",
                code="C004",
                fix=_another(loaded.path),
            )
    return content


def _read_tensors(loaded: LoadedCheckpoint, name: str) -> dict[str, Tensor]:
    return tensors_of(_read_file(loaded, name))
