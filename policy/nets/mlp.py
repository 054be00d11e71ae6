"""A residual MLP over the whole chunk at once: the cheapest network for states and short chunks.

A step of training takes a CPU about a fifth of what a U-Net of as many weights takes. It knows
nothing of time: neighbouring actions are as foreign to it as distant ones.

Source: Ren et al. 2024, DPPO, arXiv:2409.00588, the residual MLP of its state-based policies.

Differences from the paper: each action has its own noise level, and the embeddings of all of them
come in side by side; normalised before each block; the last layer starts at zero, as in the U-Net.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `E` noise
embedding size, `D` size of the layers.
"""

import torch
from torch import Tensor, nn

from policy.nets.noise_embed import NoiseEmbed


class Block(nn.Module):
    """Features [B, D] and what two layers add to them."""

    def __init__(self, size: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, expansion * size)
        self.down = nn.Linear(expansion * size, size)

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, D] from features [B, D]."""
        return h + self.down(nn.functional.silu(self.up(self.norm(h))))


class ResidualMLP(nn.Module):
    """Raw prediction of a chunk from a noisy chunk, its noise levels and a condition."""

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        size: int = 256,
        n_blocks: int = 4,
        expansion: int = 2,
        noise_embed_size: int = 16,
    ):
        """A residual MLP.

        Args:
            action_size: Da.
            cond_size: C, size of the encoded observation.
            pred_horizon: Tp.
            size: D.
            n_blocks: number of blocks.
            expansion: the layer within a block has that many times D.
            noise_embed_size: E, of each action's level.

        Raises:
            ValueError: a size is no whole number, or not positive.
        """
        super().__init__()
        sizes = {"size": size, "n_blocks": n_blocks, "expansion": expansion}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")
        self.noise_embed = NoiseEmbed(noise_embed_size)
        n_inputs = pred_horizon * (action_size + noise_embed_size) + cond_size
        self.first = nn.Linear(n_inputs, size)
        self.blocks = nn.Sequential(*(Block(size, expansion) for _ in range(n_blocks)))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, pred_horizon * action_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction of a chunk.

        Args:
            x: [B, Tp, Da] scaled noisy chunk.
            c_noise: [B, Tp] noise level of each action, on a scale of about a hundred.
            cond: [B, C] encoded observation.

        Returns:
            [B, Tp, Da].
        """
        noise = self.noise_embed(c_noise)
        h = self.first(torch.cat([x.flatten(1), noise.flatten(1), cond], dim=-1))
        return self.out(self.norm(self.blocks(h))).view_as(x)
