"""Normal noise from one generator for a batch, or from one generator per stream."""

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
