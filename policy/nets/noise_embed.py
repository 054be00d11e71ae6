"""Embedding of the noise level of each action, and the activations that the networks share.

Sinusoids and a small MLP, as in Diffusion Policy (Chi et al. 2023, arXiv:2303.04137), but of one
level per action instead of one per chunk.

Differences from the paper: SiLU is the default in place of Mish, which takes a CPU seven times
longer for the same result; Mish is there for weights that were trained with it.

Shape legend: `B` batch, `Tp` actions of a chunk, `E` embedding size.
"""

import math

import torch
from torch import Tensor, nn

ACTIVATIONS = {"silu": nn.SiLU, "mish": nn.Mish}


def make_activation(name: str) -> nn.Module:
    """The activation of a name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def sinusoids(c_noise: Tensor, size: int) -> Tensor:
    """Sines and cosines [..., size] of levels [...] on a scale of about a hundred.

    The frequencies are geometric from 1 to 1e-4; the first half are sines.
    """
    steps = torch.arange(size // 2, device=c_noise.device, dtype=c_noise.dtype)
    frequencies = torch.exp(-math.log(1e4) * steps / (size // 2 - 1))
    angles = c_noise[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class NoiseEmbed(nn.Module):
    """Learned features of a noise level."""

    def __init__(self, size: int, *, activation: str = "silu"):
        """An embedding.

        Args:
            size: E, even and at least 4.
            activation: of the MLP, "silu" or "mish".

        Raises:
            ValueError: `size` is odd or too small, or there is no such activation.
        """
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"noise_embed_size is {size}, it must be even and at least 4")
        self.size = size
        self.mlp = nn.Sequential(
            nn.Linear(size, 4 * size), make_activation(activation), nn.Linear(4 * size, size)
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embeddings [B, Tp, E] of levels [B, Tp]."""
        return self.mlp(sinusoids(c_noise, self.size))
