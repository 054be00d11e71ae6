"""The U-Net in the form in which a CPU trains it fastest: the same function of the same parameters.

`UNet1d.training_form()` makes it. Features lie [L, B, C], so that a convolution is products of
matrices [B, C] (short_conv.py) and a FiLM per position needs no transposition; what follows a
convolution is one pass over its result (norm_act.py).

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` channels or condition size,
`E` noise embedding size, `L` positions at one level of the U-Net.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.nets.norm_act import FiLMs, norm_act, prepare
from policy.nets.short_conv import short_conv
from policy.nets.unet1d import ResidualBlock, ResidualPair, UNet1d


class TrainingUNet1d(nn.Module):
    """A U-Net's other form, which holds the U-Net and nothing else.

    Args:
        net: whose parameters learn.

    Raises:
        ValueError: the network is not in fp32 on the CPU.
        policy.nets.compiled.CompileError: there is no C++ compiler that works.
    """

    def __init__(self, net: UNet1d):
        super().__init__()
        weight = net.out.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError(
                f"the network is {weight.dtype} on {weight.device}: the form for training is for "
                f"torch.float32 on the CPU"
            )
        prepare()
        self.net = net
        self._is_mish = isinstance(net.activate, nn.Mish)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da]; for the arguments see `UNet1d`."""
        # A reduced precision that is asked for outside is not for what is done in C++.
        with torch.autocast("cpu", enabled=False):
            return self._in_fp32(x.float(), c_noise.float(), cond.float())

    def _in_fp32(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        net = self.net
        noise = [net.noise_embed(c_noise.t())]  # [L, B, E] of each level
        for _ in net.downsample:
            noise.append(noise[-1].unflatten(0, (-1, 2)).mean(dim=1))
        noise = [net.activate(level) for level in noise]
        cond = net.activate(cond)
        pairs = net.pairs()
        n_down = len(net.down)
        h, skips = x.transpose(0, 1), []
        for index, (pair, level) in enumerate(pairs):
            if index > n_down:
                h = torch.cat([h, skips.pop()], dim=-1)
            h = self._pair(pair, h, noise[level], cond)
            if index < n_down:
                skips.append(h)
            if index < n_down - 1:
                h = _downsampled(h, net.downsample[index])
            if index > n_down:
                h = _upsampled(h, net.upsample[index - n_down - 1])
        h = self._block(net.last, h)
        return F.linear(h, net.out.weight.flatten(1), net.out.bias).transpose(0, 1)

    def _pair(self, pair: ResidualPair, h: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        for block in (pair.first, pair.second):
            h = self._residual(block, h, noise, cond)
        return h

    def _residual(self, block: ResidualBlock, h: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        films = FiLMs(F.linear(noise, block.film.noise.weight), block.film.cond(cond))
        residual = h
        if isinstance(block.skip, nn.Conv1d):
            residual = F.linear(h, block.skip.weight.flatten(1), block.skip.bias)
        h = self._block(block.first, h, films=films)
        return self._block(block.second, h, residual=residual)

    def _block(
        self,
        block: nn.Sequential,
        h: Tensor,
        *,
        films: FiLMs | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        conv, norm = block[0], block[1]
        assert isinstance(conv, nn.Conv1d)
        assert isinstance(norm, nn.GroupNorm)
        assert conv.bias is not None
        y = short_conv(h, conv.weight)
        return norm_act(y, conv.bias, norm, is_mish=self._is_mish, films=films, residual=residual)


def _taps(h: Tensor, *, n_taps: int, before: int, stride: int = 1) -> list[Tensor]:
    """What each tap of a convolution sees: positions of h, and zeros beyond its ends."""
    length = len(h)
    padded = F.pad(h, (0, 0, 0, 0, before, before))
    return [padded[tap : tap + length : stride] for tap in range(n_taps)]


def _downsampled(h: Tensor, conv: nn.Module) -> Tensor:
    """Every second position of a convolution with three taps."""
    assert isinstance(conv, nn.Conv1d)
    taps = torch.cat(_taps(h, n_taps=3, before=1, stride=2), dim=-1)
    return F.linear(taps, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def _upsampled(h: Tensor, conv: nn.Module) -> Tensor:
    """Twice the positions, by a transposed convolution with four taps and a stride of two."""
    assert isinstance(conv, nn.ConvTranspose1d)
    assert conv.bias is not None
    before, here, after = _taps(h, n_taps=3, before=1)
    weight = conv.weight  # [C, O, 4]; even positions see taps 3 and 1, odd ones 2 and 0
    even = torch.cat([before, here], dim=-1) @ torch.cat([weight[..., 3], weight[..., 1]])
    odd = torch.cat([here, after], dim=-1) @ torch.cat([weight[..., 2], weight[..., 0]])
    return torch.stack([even, odd], dim=1).flatten(0, 1) + conv.bias
