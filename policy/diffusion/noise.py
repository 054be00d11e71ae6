"""Noise from a generator for a batch, one per stream, or a tape; and seeds that tell its use."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from policy.types import Generator


class Tape:
    """Noise that was drawn before it is asked for; or, empty, a note of what is asked for.

    With a tape for a generator, a sampler call is a function of tensors alone, which can be
    compiled or captured.

    Args:
        noise: handed out in this order. None: zeros are handed out.
        device: of the zeros.

    Attributes:
        shapes: that were asked for, in order.
    """

    def __init__(
        self, noise: Sequence[Tensor] | None = None, *, device: torch.device | str = "cpu"
    ):
        self._noise = None if noise is None else list(noise)
        self.device = noise[0].device if noise else torch.device(device)
        self.shapes: list[tuple[int, ...]] = []

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next noise.

        Raises:
            ValueError: there is none left, or it has another shape.
        """
        self.shapes.append(shape)
        if self._noise is None:
            return torch.zeros(shape, device=self.device)
        drawn = len(self.shapes)
        if drawn > len(self._noise):
            raise ValueError(
                f"noise is drawn a {drawn}. time, {len(self._noise)} were drawn beforehand: a "
                f"sampler has to draw the same in every call"
            )
        noise = self._noise[drawn - 1]
        if tuple(noise.shape) != shape:
            raise ValueError(
                f"noise of shape {shape} is drawn, {tuple(noise.shape)} was drawn beforehand: a "
                f"sampler has to draw the same in every call"
            )
        return noise

    def check_end(self) -> None:
        """Raise ValueError where noise was given that was not drawn."""
        if self._noise is not None and len(self.shapes) != len(self._noise):
            raise ValueError(
                f"noise was drawn {len(self.shapes)} times, {len(self._noise)} were drawn "
                f"beforehand: a sampler has to draw the same in every call"
            )


def device_of(generator: Generator) -> torch.device:
    """The device that noise of a generator is made on."""
    return generator[0].device if isinstance(generator, Sequence) else generator.device


def randn(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal noise of a shape [B, ...], on the generator's device.

    Args:
        shape: the first entry counts streams.
        generator: one for all streams, or one per stream: then the noise of a stream is a function
            of its own generator alone, whichever streams share its batch; or a tape.

    Raises:
        ValueError: the number of generators is not the number of streams, or the tape holds other
            noise.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    if not isinstance(generator, Sequence):
        return generator.draw(tuple(shape))
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} streams: give one per stream")
    if len(generator) == 1:  # The same numbers with less ado.
        return torch.randn(tuple(shape), generator=generator[0], device=generator[0].device)
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device) for g in generator]
    return torch.stack(rows)


def gumbel(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard Gumbel noise of a shape [B, ...]: the largest of scores + noise is a softmax draw.

    Args: as of `randn`.
    """
    uniform = torch.special.ndtr(randn(shape, generator))
    return -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()


def hashed(seed: int, *, purpose: int, count: int) -> int:
    """A seed for the `count`-th use of one purpose in a run; for the arguments see `seeded`."""
    # A hash, because the CPU's generator takes in the low 32 bits of a seed only.
    key = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little")


def seeded(seed: int, *, purpose: int, count: int, device: torch.device | str) -> torch.Generator:
    """A generator for the `count`-th use of one purpose in a run.

    Args:
        seed: of the run.
        purpose: number of a stream of random numbers that must not coincide with others.
        count: of the use, such as a step or epoch.
        device: of the generator.
    """
    return torch.Generator(device).manual_seed(hashed(seed, purpose=purpose, count=count))
