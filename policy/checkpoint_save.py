"""Writing checkpoints, whole or not at all; `policy.checkpoint` says what they are made of."""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from data.normalize import Normalizer
from data.types import Contract, Horizons
from policy.checkpoint import (
    FORMAT_VERSION,
    META,
    POLICY,
    TRAINER,
    TRAINER_META,
    CheckpointError,
    fingerprint_of,
)
from policy.durable import point, write_folder
from policy.state_tree import State, flatten


def save(
    run_dir: Path,
    *,
    step: int,
    policy: nn.Module,
    contract: Contract,
    horizons: Horizons,
    config: Mapping,
    trainer: State,
    seconds: float,
    store_digest: str,
    versions: Mapping[str, str],
    keep: int,
    weights: str = "ema",
) -> Path:
    """Write a checkpoint and remove older ones.

    Args:
        run_dir: folder of the run.
        step: optimiser steps taken.
        policy: with the weights and, as `normalizer`, the statistics.
        contract: of the policy.
        horizons: of the policy.
        config: resolved configuration, JSON values only.
        trainer: nested state to go on from: tensors, scalars, lists, tuples and dicts.
        seconds: of training so far.
        store_digest: of the demonstrations.
        versions: of the programs.
        keep: newest checkpoints that stay, this one included.
        weights: which ones the policy's are: "ema" averaged, "tuned" by reward.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: it could not be written; the earlier ones are as they were.
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, at least 1 checkpoint must stay")
    normalizer = policy.get_submodule("normalizer")
    assert isinstance(normalizer, Normalizer)
    trainer_tensors, trainer_rest = flatten(trainer)
    contents = {
        POLICY: _to_bytes(policy.state_dict()),
        TRAINER: _to_bytes(trainer_tensors),
        TRAINER_META: json.dumps(trainer_rest).encode(),
    }
    meta = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "seconds": seconds,
        "weights": weights,
        "contract": replace(contract, horizons=horizons, statistics=normalizer.digest()).to_json(),
        "store_digest": store_digest,
        "versions": dict(versions),
        "files": {name: fingerprint_of(content) for name, content in contents.items()},
        "config": config,
    }
    contents[META] = (json.dumps(meta, indent=2) + "\n").encode()
    folder = run_dir / "checkpoints"
    place = folder / f"step_{step:08d}"
    try:
        write_folder(place, contents)
        point(folder / "last", place.name)
    except OSError as error:
        raise _write_failure(place, error, sum(map(len, contents.values()))) from error
    _prune(folder, place, keep=keep)
    return place


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return bytes_of({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def _go_on(place: Path) -> str:
    """What to do once a checkpoint can be written again."""
    earlier = sorted(p.name for p in place.parent.glob("step_*"))
    return f"resume from {earlier[-1]}" if earlier else "start again: there is no earlier one"


def _write_failure(place: Path, error: OSError, size: int) -> CheckpointError:
    fix = f"see whether {place.parent} can be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"make room for {size / 1e6:.0f} MB, and {_go_on(place)}"
    return CheckpointError(
        f"the checkpoint {place} could not be written ({error.strerror or error})",
        code="C003",
        fix=fix,
    )


def _prune(folder: Path, newest: Path, *, keep: int) -> None:
    others = sorted((p for p in folder.glob("step_*") if p != newest), reverse=True)
    for old in (*others[keep - 1 :], *folder.glob(".step_*")):
        shutil.rmtree(old, ignore_errors=True)
