"""What was fitted to a checkpoint for its samplers: grids of noise levels, anchors.

    <checkpoint>/sampling.safetensors    grid_4 [5], grid_8 [9], ..., anchors [M, Tp, Da]

Made by `cadence fit`, after training and apart from it, so the checkpoint's other files stay as
they were written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from policy.checkpoint import CheckpointError
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


def load_fit(folder: Path) -> SamplerFit:
    """What was fitted to the checkpoint in a folder; empty where nothing was.

    Raises:
        CheckpointError: the file is damaged.
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
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error})", code="C004", fix="run cadence fit again"
        ) from error
    return SamplerFit(grids, tensors.get(ANCHORS))
