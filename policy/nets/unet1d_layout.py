"""What unet1d_cpu.cpp is told of a layer and of a network, and where features and FiLMs lie.

Shape legend: `L` positions.
"""

import ctypes
from dataclasses import dataclass


def _fields(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names.split()]


class Layer(ctypes.Structure):
    """Mirrors `Layer` in unet1d_cpu.cpp, where the fields are explained."""

    _fields_ = _fields(
        "input input_stride step taps input_channels "
        "out out_stride length channels padded_channels unit "
        "weights scale bias group gamma beta activation film film_stride film_of_positions "
        "residual residual_stride residual_channels skip_weights skip_scale skip_bias "
        "border border_stride halo rows"
    )


class Network(ctypes.Structure):
    """Mirrors `Network` in unet1d_cpu.cpp, less its layers, which follow it."""

    _fields_ = [
        *_fields("n_layers format action_size length input input_stride halo output output_stride"),
        *_fields("scratch film_shared film_of_positions"),
        ("epsilon", ctypes.c_double),
    ]


@dataclass(frozen=True)
class View:
    """Where features lie in the scratch.

    Args:
        offset: of the first position's first channel, in floats.
        stride: from position to position, in floats.
        length: L.
        parts: channels; several parts, each padded to panels, for features side by side.
    """

    offset: int
    stride: int
    length: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class FiLMColumns:
    """Where a FiLM is among those of its level; its scale comes first, then its shift.

    Args:
        level: of the U-Net.
        first: column among those of its level.
    """

    level: int
    first: int
