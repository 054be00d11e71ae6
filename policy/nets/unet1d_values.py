"""Values on the tape of a U-Net: where they lie, and as what unet1d_training.cpp is told of them.

A value lies in the memory of a sample from the operation that writes it to the last that reads it,
and so does its gradient on the way back; what is not needed at the same time shares its place, so
that most of it stays in the cache.

Shape legend: `C` channels, `L` positions.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

NUMBER, POINTER = ctypes.c_int64, ctypes.c_void_p
FOREVER = 1 << 40


class ValueStruct(ctypes.Structure):
    """Where a value lies, as in training/tape.h."""

    _fields_ = [
        (name, NUMBER) for name in ("at", "grad_at", "length", "panels", "parts", "channels")
    ]


class OpStruct(ctypes.Structure):
    """An operation, as in training/tape.h."""

    _fields_ = [
        (name, NUMBER)
        for name in (
            *("kind", "in_", "out", "d_in"),
            *("weight", "weight_at", "out_stride", "in_stride", "taps", "step", "before"),
            *("is_transposed", "bias", "bias_at", "packed", "packed_back", "packed_bias"),
            *("gamma", "beta", "packed_gamma", "packed_beta", "groups", "is_mish"),
            *("scale", "sample_scale", "sample_shift", "shift", "residual", "d_residual"),
            "statistics",
        )
    ]


@dataclass(eq=False)
class Value:
    """Features [L, C] of a sample, or two such values beside each other.

    Args:
        length: L.
        channels: C of each part.
        parts: how many there are.
        whole: of which this is a part, if it is one.
        part: number of this part.
        grad_of: whose gradient is that of this value too, if another's is.
    """

    length: int
    channels: int
    parts: int = 1
    whole: "Value | None" = None
    part: int = 0
    grad_of: "Value | None" = None

    @property
    def root(self) -> "Value":
        """What lies in one piece."""
        return self if self.whole is None else self.whole

    @property
    def grad(self) -> "Value":
        """Where its gradient is."""
        return self if self.grad_of is None else self.grad_of


@dataclass
class Life:
    """When something is needed, from its first use to its last."""

    begin: int = FOREVER
    end: int = -1

    def use(self, time: int) -> None:
        """Make it last to a time, or begin there."""
        self.begin, self.end = min(self.begin, time), max(self.end, time)


# What it is for ("data" or "grad" of a value), its size and when it is needed.
Wish = tuple[tuple[str, Value], int, Life]


def placed(wishes: Sequence[Wish]) -> tuple[dict[tuple[str, Value], int], int]:
    """Places for pieces of memory, the largest first, and the end of all of them."""
    done: list[tuple[int, int, Life]] = []
    places = {}
    for key, size, life in sorted(wishes, key=lambda wish: -wish[1]):
        at = 0
        for other_at, other_size, other in sorted(done, key=lambda one: one[0]):
            is_beside = other.end < life.begin or life.end < other.begin
            if not is_beside and at < other_at + other_size and other_at < at + size:
                at = other_at + other_size
        done.append((at, size, life))
        places[key] = at
    return places, max(at + size for at, size, _ in done)
