"""Noise from one generator for a batch or one per stream, and seeds that tell what it is for."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from policy.types import Generator


def device_of(generator: Generator) -> torch.device:
    """The device that noise of a generator is made on."""
    return generator[0].device if isinstance(generator, Sequence) else generator.device


def randn(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal noise of a shape [B, ...], on the generator's device.

    Args:
        shape: the first entry counts streams.
        generator: one for all streams, or one per stream: then the noise of a stream is a function
            of its own generator alone, whichever streams share its batch.

    Raises:
        ValueError: the number of generators is not the number of streams.
    """
    if not isinstance(generator, Sequence):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} streams: give one per stream")
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
