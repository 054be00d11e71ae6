"""What was fitted to a checkpoint for its samplers: grids of noise levels, anchors.

    <checkpoint>/sampling.safetensors    grid_4 [5], grid_8 [9], ..., anchors [M, Tp, Da]

Made by `cadence fit`, after training and apart from it, so the checkpoint's other files stay as
they were written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from policy.checkpoint import CheckpointError
from policy.diffusion.schedule import check_grid
from policy.durable import write_bytes

FILE = "sampling.safetensors"
GRID, ANCHORS = "grid_", "anchors"


@dataclass(frozen=True)
class SamplerFit:
    """What samplers may start from.

    Args:
        grids: number of steps -> [steps + 1] decreasing levels ending in 0.
        anchors: [M, Tp, Da] centres of the training chunks in the network's scale.
    """

    grids: Mapping[int, Tensor] = field(default_factory=dict)
    anchors: Tensor | None = None


def save_fit(folder: Path, fit: SamplerFit) -> Path:
    """Write what was fitted into a checkpoint's folder; returns the file."""
    tensors = {f"{GRID}{n}": grid for n, grid in fit.grids.items()}
    if fit.anchors is not None:
        tensors[ANCHORS] = fit.anchors
    write_bytes(folder / FILE, save({k: v.contiguous() for k, v in tensors.items()}))
    return folder / FILE


def load_fit(folder: Path, *, chunk_shape: tuple[int, int] | None = None) -> SamplerFit:
    """What was fitted to the checkpoint in a folder; empty where nothing was.

    Args:
        folder: of the checkpoint.
        chunk_shape: Tp, Da that anchors must have; None: any.

    Raises:
        CheckpointError: the file is damaged, or a tensor is none that samplers can start from.
    """
    file = folder / FILE
    if not file.is_file():
        return SamplerFit()
    try:
        tensors = load(file.read_bytes())
        grids = {
            int(name.removeprefix(GRID)): tensor
            for name, tensor in tensors.items()
            if name.startswith(GRID)
        }
        for n, grid in grids.items():
            _check_grid(n, grid)
        if ANCHORS in tensors:
            _check_anchors(tensors[ANCHORS], chunk_shape)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error})", code="C004", fix="run cadence fit again"
        ) from error
    return SamplerFit(grids, tensors.get(ANCHORS))


def _check_grid(n_steps: int, grid: Tensor) -> None:
    """Raise ValueError where a tensor is no grid [n_steps + 1] of float32."""
    name = f"{GRID}{n_steps}"
    _check_kind(name, grid)
    if n_steps < 1 or grid.shape != (n_steps + 1,):
        raise ValueError(f"{name} has shape {list(grid.shape)}, it must have [{n_steps + 1}]")
    try:
        check_grid(grid)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_anchors(anchors: Tensor, chunk_shape: tuple[int, int] | None) -> None:
    """Raise ValueError where a tensor is no anchors [M, Tp, Da] of float32."""
    _check_kind(ANCHORS, anchors)
    wanted = "[M, Tp, Da]" if chunk_shape is None else "[M, {}, {}]".format(*chunk_shape)
    is_of_chunks = chunk_shape is None or anchors.shape[1:] == chunk_shape
    if anchors.ndim != 3 or not anchors.numel() or not is_of_chunks:
        raise ValueError(
            f"{ANCHORS} has shape {list(anchors.shape)}, it must have {wanted}, none of them 0"
        )


def _check_kind(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is of {tensor.dtype}, it must be of torch.float32")
    broken = tensor[~tensor.isfinite()]
    if len(broken):
        raise ValueError(f"{name} holds {len(broken)} numbers such as {broken[0]}, not finite")
