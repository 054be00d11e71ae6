"""Weights of convolutions in the order in which unet1d_cpu.cpp reads them, as fp32, bf16 or int8.

Shape legend: `I O K` input channels, output channels and taps of a convolution.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from policy.nets.large_pages import joined

FORMATS = ("fp32", "bf16", "int8")  # in the order of the enum in unet1d_cpu.cpp
TOGETHER = {"fp32": 1, "bf16": 2, "int8": 4}  # input channels in a word of 32 bits ...
MULTIPLE = 4  # ... and what their number is padded to
ALIGNMENT = 64  # bytes: a line of the cache


class Packing:
    """Weights and constants one after the other; what is added is found again by its offset."""

    def __init__(self, *, weights: str, panel: int):
        """Nothing yet.

        Args:
            weights: "fp32", "bf16" or "int8".
            panel: output channels that are computed together.

        Raises:
            ValueError: there are no such weights.
        """
        if weights not in FORMATS:
            raise ValueError(f"weights are {weights!r}, choose one of {', '.join(FORMATS)}")
        self.format, self.panel = weights, panel
        self._weights: list[Tensor] = []
        self._constants: list[Tensor] = []
        self._n_bytes = self._n_constants = 0

    def padded(self, channels: int) -> int:
        """That many channels in whole panels."""
        return math.ceil(channels / self.panel) * self.panel

    def for_parts(self, weight: Tensor, parts: Sequence[int]) -> Tensor:
        """Weights [O, I, K] with zeros for the padding between parts of the input and after it.

        Args:
            weight: of parts side by side.
            parts: channels of each.
        """
        multiples = [self.panel] * (len(parts) - 1) + [MULTIPLE]
        pieces = [
            pad(piece, (0, 0, 0, -piece.shape[1] % multiple))
            for piece, multiple in zip(weight.split(list(parts), dim=1), multiples, strict=True)
        ]
        return torch.cat(pieces, dim=1)

    def add_weights(self, weight: Tensor) -> tuple[int, int]:
        """Offsets of packed weights, in bytes, and of their scales, in floats.

        Args:
            weight: [O, I, K] in fp32, I a multiple of MULTIPLE.
        """
        values, scale = quantised(weight, self.format)
        values = pad(values, (0, 0, 0, 0, 0, self.padded(len(values)) - len(values)))
        # [O / panel, panel, I / together, together, K]
        values = values.unflatten(0, (-1, self.panel)).unflatten(2, (-1, TOGETHER[self.format]))
        packed = values.permute(0, 4, 2, 1, 3).contiguous().flatten().view(torch.uint8)
        self._weights.append(pad(packed, (0, -len(packed) % ALIGNMENT)))
        at = self._n_bytes
        self._n_bytes += len(self._weights[-1])
        return at, self.add_constants(scale)

    def add_constants(self, values: Tensor) -> int:
        """Offset of a value per output channel, padded with zeros to whole panels."""
        self._constants.append(pad(values, (0, self.padded(len(values)) - len(values))))
        at = self._n_constants
        self._n_constants += len(self._constants[-1])
        return at

    def weights(self) -> Tensor:
        """All weights, as bytes."""
        return joined(self._weights)

    def constants(self) -> Tensor:
        """All constants, in fp32."""
        return torch.cat(self._constants)


def quantised(weight: Tensor, weights: str) -> tuple[Tensor, Tensor]:
    """Weights [O, I, K] in a format, and the scale [O] by which they count.

    Args:
        weight: in fp32.
        weights: "fp32", "bf16" (as integers of 16 bits), or "int8": symmetric, the largest of an
            output channel is 127.
    """
    one = weight.new_ones(len(weight))
    if weights == "fp32":
        return weight, one
    if weights == "bf16":
        return weight.bfloat16().view(torch.int16), one
    scale = weight.abs().amax(dim=(1, 2)) / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny)
    # What is not finite makes the scale of its channel so.
    values = (weight / safe[:, None, None]).nan_to_num().round().clamp(-127, 127)
    return values.to(torch.int8), scale * torch.where(scale.isfinite(), 1.0, torch.nan)
