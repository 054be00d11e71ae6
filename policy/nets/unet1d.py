"""The 1-D U-Net of Diffusion Policy, with the noise level given per action.

Source: Chi et al. 2023, Diffusion Policy, arXiv:2303.04137, CNN-based variant: residual blocks
conditioned by FiLM on the noise level and the encoded observation.

Differences from the paper:

1. FiLM acts per action position, since each action may have its own noise level. At level l of the
   U-Net a position stands for 2**l actions and sees the mean of their embeddings, so that one
   level for all actions gives exactly the network of the paper.
2. The linear layer of a FiLM on [noise, condition] is computed as the sum of its two parts: the
   condition's once per sample, the noise's once per position. The function is the same.
3. A FiLM starts as the identity (weights 0, bias 1 for the scale, which is raw as in the paper),
   and the last layer starts at zero: the untrained network predicts nothing.
4. SiLU is the default in place of Mish: 7 times faster on a CPU, where Mish was a fifth of a
   training step. `activation="mish"` gives the network of the paper, for weights trained so.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` channels or condition size,
`E` noise embedding size, `L` positions at one level of the U-Net.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from policy.nets.noise_embed import NoiseEmbed, make_activation

# A part at given noise levels: features [B, C, L] from features [B, C_in, L] and cond [B, C].
BoundPart = Callable[[Tensor, Tensor], Tensor]


def check_divisible(pred_horizon: int, n_levels: int) -> None:
    """Raise ValueError unless a chunk can be halved at every level but the last."""
    factor = 2 ** (n_levels - 1)
    if pred_horizon < 1 or pred_horizon % factor:
        below = pred_horizon // factor * factor
        nearest = [str(length) for length in (below, below + factor) if length > 0]
        raise ValueError(
            f"pred_horizon is {pred_horizon}, but a U-Net of {n_levels} levels halves it "
            f"{n_levels - 1} times and needs a multiple of {factor}: "
            f"set horizons.pred to {' or '.join(nearest)}, or use fewer levels (channels)"
        )


class FiLM(nn.Module):
    """Scale and shift of features, predicted per position from noise level and condition."""

    def __init__(self, channels: int, *, embed_size: int, cond_size: int):
        super().__init__()
        self.noise = nn.Linear(embed_size, 2 * channels, bias=False)
        self.cond = nn.Linear(cond_size, 2 * channels)
        nn.init.zeros_(self.noise.weight)
        nn.init.zeros_(self.cond.weight)
        with torch.no_grad():
            self.cond.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, h: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """Features [B, C, L] from features, noise [B, L, E] and cond [B, C]."""
        film = self.noise(noise) + self.cond(cond)[:, None]  # [B, L, 2 C]
        scale, shift = film.transpose(1, 2).contiguous().chunk(2, dim=1)
        return torch.addcmul(shift, scale, h)

    def at(self, noise: Tensor) -> BoundPart:
        """The same at noise [1, L, E], of which the part is computed once."""
        of_noise = self.noise(noise).transpose(1, 2).contiguous()  # [1, 2 C, L]

        def film(h: Tensor, cond: Tensor) -> Tensor:
            scale, shift = (of_noise + self.cond(cond)[..., None]).chunk(2, dim=1)
            return torch.addcmul(shift, scale, h)

        return film


class ConvBlock(nn.Sequential):
    """Convolution, group norm, activation; the length stays."""

    def __init__(
        self, size_in: int, size_out: int, *, kernel_size: int, n_groups: int, activation: str
    ):
        super().__init__(
            nn.Conv1d(size_in, size_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, size_out),
            make_activation(activation),
        )


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM between them, and a skip connection."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        *,
        embed_size: int,
        cond_size: int,
        kernel_size: int,
        n_groups: int,
        activation: str,
    ):
        super().__init__()
        block = partial(
            ConvBlock, kernel_size=kernel_size, n_groups=n_groups, activation=activation
        )
        self.first = block(size_in, size_out)
        self.film = FiLM(size_out, embed_size=embed_size, cond_size=cond_size)
        self.second = block(size_out, size_out)
        self.skip = nn.Conv1d(size_in, size_out, 1) if size_in != size_out else nn.Identity()

    def forward(self, h: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """Features [B, C_out, L] from features [B, C_in, L], noise [B, L, E], cond [B, C]."""
        return self.second(self.film(self.first(h), noise, cond)) + self.skip(h)

    def at(self, noise: Tensor) -> BoundPart:
        """The same at noise [1, L, E]."""
        film = self.film.at(noise)
        return lambda h, cond: self.second(film(self.first(h), cond)) + self.skip(h)


class ResidualPair(nn.Module):
    """Two residual blocks, of which the first changes the number of channels."""

    def __init__(self, size_in: int, size_out: int, *, activation: str, **settings: int):
        super().__init__()
        self.first = ResidualBlock(size_in, size_out, activation=activation, **settings)
        self.second = ResidualBlock(size_out, size_out, activation=activation, **settings)

    def forward(self, h: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """Features [B, C_out, L] from features [B, C_in, L], noise [B, L, E], cond [B, C]."""
        return self.second(self.first(h, noise, cond), noise, cond)

    def at(self, noise: Tensor) -> BoundPart:
        """The same at noise [1, L, E]."""
        first, second = self.first.at(noise), self.second.at(noise)
        return lambda h, cond: second(first(h, cond), cond)


class UNet1d(nn.Module):
    """Raw prediction of a chunk from a noisy chunk, its noise levels and a condition."""

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        channels: Sequence[int] = (32, 64, 128),
        kernel_size: int = 5,
        n_groups: int = 8,
        noise_embed_size: int = 32,
        activation: str = "silu",
    ):
        """A U-Net.

        Args:
            action_size: Da.
            cond_size: C, size of the encoded observation.
            pred_horizon: Tp, a multiple of 2**(levels - 1).
            channels: channels of each level, one level per entry.
            kernel_size: of the convolutions, odd.
            n_groups: of the group norms; divides each of `channels`.
            noise_embed_size: E.
            activation: of all layers, "silu" or "mish".

        Raises:
            ValueError: a size does not fit the others, or there is no such activation; the message
                says which would do.
        """
        super().__init__()
        if not channels:
            raise ValueError("channels is empty: a U-Net needs at least one level")
        check_divisible(pred_horizon, len(channels))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, it must be odd to keep the length")
        if any(size % n_groups for size in channels):
            raise ValueError(
                f"channels are {list(channels)}, each must divide by n_groups {n_groups}"
            )

        pair = partial(
            ResidualPair,
            embed_size=noise_embed_size,
            cond_size=cond_size,
            kernel_size=kernel_size,
            n_groups=n_groups,
            activation=activation,
        )
        self.pred_horizon = pred_horizon
        first, deepest = channels[0], channels[-1]
        levels = list(pairwise(channels))
        self.activate = make_activation(activation)
        self.noise_embed = NoiseEmbed(noise_embed_size, activation=activation)
        self.down = nn.ModuleList([pair(action_size, first), *(pair(a, b) for a, b in levels)])
        self.downsample = nn.ModuleList(
            nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1]
        )
        self.middle = pair(deepest, deepest)
        # Each level on the way up begins with its skip connection beside it.
        self.up = nn.ModuleList(pair(2 * b, a) for a, b in reversed(levels))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in reversed(levels)
        )
        self.last = ConvBlock(
            first, first, kernel_size=kernel_size, n_groups=n_groups, activation=activation
        )
        self.out = nn.Conv1d(first, action_size, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
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
        noise = self._noise_per_level(c_noise)
        parts = [partial(_at, pair, noise[level]) for pair, level in self.pairs()]
        return self._through(parts, x, cond)

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x [B, Tp, Da], cond [B, C]) at given levels.

        What depends on the levels alone is computed once.

        Args:
            c_noise: [Tp], the same in all samples.
        """
        noise = self._noise_per_level(c_noise[None])
        parts = [pair.at(noise[level]) for pair, level in self.pairs()]
        return partial(self._through, parts)

    def lowered(self, weights: str = "fp32") -> nn.Module:
        """A frozen copy that is fast for few samples on a CPU, for calls without gradients.

        Args:
            weights: of the convolutions, "fp32", "bf16" or "int8".

        Raises:
            ValueError: there are no such weights, or the network is not on the CPU.
            policy.nets.compiled.CompileError: there is no C++ compiler that works.
        """
        from policy.nets.unet1d_lowered import LoweredUNet1d

        return LoweredUNet1d(self, weights=weights)

    def training_form(self) -> nn.Module:
        """The same function of the same parameters, in a form that a CPU trains faster.

        Raises:
            ValueError: the network is not in fp32 on the CPU.
            policy.nets.compiled.CompileError: there is no C++ compiler that works.
        """
        from policy.nets.unet1d_training import TrainingUNet1d

        return TrainingUNet1d(self)

    def pairs(self) -> list[tuple[ResidualPair, int]]:
        """All pairs in the order of a call, each with its level: 0 has all positions."""
        deepest = len(self.down) - 1
        levels = [*range(deepest + 1), deepest, *range(deepest, 0, -1)]
        pairs: list[ResidualPair] = [*self.down, self.middle, *self.up]  # pyright: ignore
        return list(zip(pairs, levels, strict=True))

    def _through(self, parts: Sequence[BoundPart], x: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da] by the pairs at their noise levels."""
        down, (middle, *up) = parts[: len(self.down)], parts[len(self.down) :]
        cond = self.activate(cond)
        h = x.transpose(1, 2)  # [B, Da, Tp]
        skips = []
        for level, pair in enumerate(down):
            h = pair(h, cond)
            skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
        h = middle(h, cond)
        for pair, upsample in zip(up, self.upsample, strict=True):
            h = upsample(pair(torch.cat([h, skips.pop()], dim=1), cond))
        return self.out(self.last(h)).transpose(1, 2)

    def _noise_per_level(self, c_noise: Tensor) -> list[Tensor]:
        """Activated noise embeddings [B, Tp / 2**l, E] of each level l."""
        levels = [self.noise_embed(c_noise)]
        for _ in self.downsample:
            levels.append(levels[-1].unflatten(1, (-1, 2)).mean(dim=2))
        return [self.activate(level) for level in levels]


def _at(pair: ResidualPair, noise: Tensor, h: Tensor, cond: Tensor) -> Tensor:
    """A pair at noise [B, L, E], of which nothing is kept for other calls."""
    return pair(h, noise, cond)
