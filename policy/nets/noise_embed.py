"""Embedding of the noise level of each action.

Sinusoids and a small MLP, as in Diffusion Policy (Chi et al. 2023, arXiv:2303.04137), but of one
level per action instead of one per chunk.

Differences from the paper: SiLU in place of Mish, which takes a CPU seven times longer for the
same result.

Shape legend: `B` batch, `Tp` actions of a chunk, `E` embedding size.
"""

import math

import torch
from torch import Tensor, nn


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

    def __init__(self, size: int):
        """An embedding.

        Args:
            size: E, even and at least 4.

        Raises:
            ValueError: `size` is odd or too small.
        """
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"noise_embed_size is {size}, it must be even and at least 4")
        self.size = size
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embeddings [B, Tp, E] of levels [B, Tp]."""
        return self.mlp(sinusoids(c_noise, self.size))
