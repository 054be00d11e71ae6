"""The plan of a U-Net's call for unet1d_cpu.cpp: its layers one by one, and where features lie.

Shape legend: `C` channels or condition size, `E` noise embedding size, `F` columns of all FiLMs
together, `I O K` input channels, output channels and taps of a convolution, `L` positions.
"""

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from policy.nets.unet1d import ConvBlock, FiLM, ResidualBlock, ResidualPair, UNet1d
from policy.nets.unet1d_layout import FiLMColumns, Layer, Network, View
from policy.nets.unet1d_packing import FORMATS, MULTIPLE, Packing

# In the order of the enum in unet1d_cpu.cpp.
ACTIVATIONS = (nn.Identity, nn.SiLU, nn.Mish)


class Plan:
    """The layers of a call."""

    def __init__(self, net: UNet1d, *, weights: str, panel: int):
        """A plan.

        Args:
            net: in fp32, on the CPU.
            weights: "fp32", "bf16" or "int8".
            panel: output channels that are computed together.

        Raises:
            ValueError: there are no such weights.
        """
        self._net, self.packing = net, Packing(weights=weights, panel=panel)
        self._halo = max(_first(net.last).kernel_size[0] // 2, 1)
        self._layers: list[Layer] = []
        self._lengths = [net.pred_horizon >> level for level in range(len(net.down))]
        self._place_films()
        self._place_work()
        self._plan()

    def program(self) -> Tensor:
        """The plan as bytes."""
        layers = b"".join(bytes(layer) for layer in self._layers)
        return torch.frombuffer(bytearray(bytes(self._network) + layers), dtype=torch.uint8)

    # FiLMs: their weights are side by side, level by level, so that one product gives all of them.

    def _place_films(self) -> None:
        by_level: list[list[FiLM]] = [[] for _ in self._lengths]
        for pair, level in self._net.pairs():
            by_level[level] += [pair.first.film, pair.second.film]
        self._columns: dict[FiLM, FiLMColumns] = {}
        self.film_columns: list[int] = []
        for level, films in enumerate(by_level):
            first = 0
            for film in films:
                self._columns[film] = FiLMColumns(level, first)
                first += 2 * self.packing.padded(film.noise.out_features // 2)
            self.film_columns.append(first)
        films = [film for level in by_level for film in level]
        self.film_noise = torch.cat([self._film_rows(film.noise.weight) for film in films])
        self.film_cond = torch.cat([self._film_rows(film.cond.weight) for film in films])
        self.film_bias = torch.cat([self._film_rows(film.cond.bias) for film in films])

    def _film_rows(self, weight: Tensor) -> Tensor:
        """Rows of a FiLM's linear layer [2 C, ...], scale and shift each padded to panels."""
        halves = weight.unflatten(0, (2, -1))
        n_more = self.packing.padded(halves.shape[1]) - halves.shape[1]
        return torch.cat([halves, halves.new_zeros(2, n_more, *halves.shape[2:])], 1).flatten(0, 1)

    # Memory: three work areas that layers write in turn, and one for each skip connection.

    def _place_work(self) -> None:
        padded = self.packing.padded
        sizes = [_channels(pair) for pair, _ in self._net.pairs()[: len(self._lengths)]]
        self._n_scratch = 2 * max(map(padded, sizes))  # statistics of a norm
        # The actions are written to an area too, and may be more than there are channels.
        shapes = [*zip(self._lengths, sizes, strict=True)]
        shapes.append((self._lengths[0], self._net.out.out_channels))
        area = max((length + 2 * self._halo) * padded(size) for length, size in shapes)
        self._areas = [self._reserved(area) for _ in range(3)]

    def _reserved(self, n_floats: int) -> int:
        at = self._n_scratch
        self._n_scratch += math.ceil(n_floats / 16) * 16
        return at

    def _work(self, channels: int, length: int) -> View:
        """The area written longest ago."""
        area = self._areas.pop(0)
        self._areas.append(area)
        stride = self.packing.padded(channels)
        return View(area + self._halo * stride, stride, length, (channels,))

    def _kept(self, parts: tuple[int, ...], stride: int, length: int) -> View:
        at = self._reserved(stride * (length + 2 * self._halo))
        return View(at + self._halo * stride, stride, length, parts)

    # The network.

    def _plan(self) -> None:
        net, lengths = self._net, self._lengths
        stride = math.ceil(net.out.out_channels / MULTIPLE) * MULTIPLE
        x = h = self._kept((net.out.out_channels,), stride, lengths[0])
        beside: list[View | None] = []  # the two inputs of each level's pair on the way up
        pairs = [pair for pair, _ in net.pairs()]
        down, (middle, *up) = pairs[: len(lengths)], pairs[len(lengths) :]
        downsample = cast(list[nn.Conv1d], list(net.downsample))
        upsample = cast(list[nn.ConvTranspose1d], list(net.upsample))
        for level, pair in enumerate(down):
            channels = _channels(pair)
            both = None
            if level > 0:
                both = self._kept(
                    (channels, channels), 2 * self.packing.padded(channels), lengths[level]
                )
            beside.append(both)
            h = self._pair(pair, h, into=None if both is None else self._half(both, 1))
            if level < len(downsample):
                h = self._convolution(downsample[level], h)
        h = self._pair(middle, h, into=self._first_half(beside[-1]))
        for pair, conv in zip(up, upsample, strict=True):
            both = beside.pop()
            assert both is not None
            h = self._upsample(conv, self._pair(pair, both), self._first_half(beside[-1]))
        h = self._block(net.last, h)
        h = self._convolution(net.out, h)
        self._network = Network(
            n_layers=len(self._layers),
            format=FORMATS.index(self.packing.format),
            action_size=net.out.out_channels,
            length=lengths[0],
            input=x.offset - self._halo * x.stride,
            input_stride=x.stride,
            halo=self._halo,
            output=h.offset,
            output_stride=h.stride,
            scratch=self._n_scratch,
            film_shared=sum(self.film_columns),
            film_of_positions=sum(map(math.prod, zip(self.film_columns, lengths, strict=True))),
            epsilon=cast(nn.GroupNorm, net.last[1]).eps,
        )

    def _half(self, both: View, which: int) -> View:
        channels = both.parts[which]
        offset = both.offset + which * self.packing.padded(channels)
        return replace(both, offset=offset, parts=(channels,))

    def _first_half(self, both: View | None) -> View | None:
        return None if both is None else self._half(both, 0)

    def _pair(self, pair: ResidualPair, h: View, *, into: View | None = None) -> View:
        return self._residual(pair.second, self._residual(pair.first, h), into=into)

    def _residual(self, block: ResidualBlock, h: View, *, into: View | None = None) -> View:
        middle = self._block(block.first, h)
        columns = self._columns[block.film]
        before = self.film_columns[: columns.level]
        layer = self._layers[-1]
        layer.film = sum(before) + columns.first
        layer.film_stride = self.film_columns[columns.level]
        rows = zip(before, self._lengths[: columns.level], strict=True)
        layer.film_of_positions = sum(map(math.prod, rows)) + columns.first

        out = self._block(block.second, middle, into=into)
        layer = self._layers[-1]
        layer.residual, layer.residual_stride = h.offset, h.stride
        weight, bias = _skip(block)
        # Features side by side may have padding between them, which the output has not.
        if isinstance(block.skip, nn.Conv1d) or len(h.parts) > 1:
            weight = self.packing.for_parts(weight, h.parts)
            layer.residual_channels = weight.shape[1]
            layer.skip_weights, layer.skip_scale = self.packing.add_weights(weight)
            layer.skip_bias = self.packing.add_constants(bias)
        return out

    def _block(self, block: ConvBlock, h: View, *, into: View | None = None) -> View:
        norm, activation = cast(nn.GroupNorm, block[1]), block[2]
        out = self._convolution(_first(block), h, into=into)
        layer = self._layers[-1]
        layer.group = norm.num_channels // norm.num_groups
        # A thread's share has whole panels and whole groups.
        layer.unit = min(math.lcm(layer.group, self.packing.panel), layer.padded_channels)
        layer.gamma, layer.beta = (
            self.packing.add_constants(norm.weight),
            self.packing.add_constants(norm.bias),
        )
        layer.activation = ACTIVATIONS.index(type(activation))
        return out

    def _convolution(self, conv: nn.Conv1d, h: View, *, into: View | None = None) -> View:
        out = into or self._work(conv.out_channels, h.length // conv.stride[0])
        before, step = int(conv.padding[0]), conv.stride[0]
        self._add(h, out, conv.weight, conv.bias, first_row=-before, step=step)
        return out

    def _upsample(self, conv: nn.ConvTranspose1d, h: View, into: View | None) -> View:
        """A transposed convolution as two of two taps: for even positions and for odd ones.

        y[2 m] = w[3] x[m - 1] + w[1] x[m] and y[2 m + 1] = w[2] x[m] + w[0] x[m + 1].
        """
        out = into or self._work(conv.out_channels, 2 * h.length)
        weight = conv.weight.transpose(0, 1)  # [O, I, 4]
        for parity, taps in enumerate(([3, 1], [2, 0])):
            self._add(
                h,
                out,
                weight[..., taps],
                conv.bias,
                first_row=parity - 1,
                out_step=2,
                parity=parity,
            )
        return out

    def _add(
        self,
        h: View,
        out: View,
        weight: Tensor,
        bias: Tensor | None,
        *,
        first_row: int,
        step: int = 1,
        out_step: int = 1,
        parity: int = 0,
    ) -> None:
        """Append a layer that is a convolution alone.

        Args:
            h: its input.
            out: its output.
            weight: [O, I, K].
            bias: [O].
            first_row: of the input that the first position sees.
            step: in the input from position to position.
            out_step: the same in the output ...
            parity: ... and the first position that is written.
        """
        assert bias is not None
        padded = self.packing.padded(len(weight))
        weight = self.packing.for_parts(weight, h.parts)
        packed, scale = self.packing.add_weights(weight)
        self._layers.append(
            Layer(
                input=h.offset + first_row * h.stride,
                input_stride=h.stride,
                step=step,
                taps=weight.shape[2],
                input_channels=weight.shape[1],
                out=out.offset + parity * out.stride,
                out_stride=out_step * out.stride,
                length=out.length // out_step,
                channels=len(weight),
                padded_channels=padded,
                unit=self.packing.panel,
                weights=packed,
                scale=scale,
                bias=self.packing.add_constants(bias),
                film=-1,
                residual=-1,
                skip_weights=-1,
                border=out.offset - self._halo * out.stride,
                border_stride=out.stride,
                halo=self._halo,
                rows=out.length,
            )
        )


def _first(block: ConvBlock) -> nn.Conv1d:
    return cast(nn.Conv1d, block[0])


def _channels(pair: ResidualPair) -> int:
    return pair.first.film.noise.out_features // 2


def _skip(block: ResidualBlock) -> tuple[Tensor, Tensor]:
    """Weights [O, I, 1] and biases [O] of a block's skip connection."""
    if isinstance(block.skip, nn.Conv1d):
        assert block.skip.bias is not None
        return block.skip.weight, block.skip.bias
    like = block.film.noise.weight
    size = len(like) // 2
    return like.new_ones(size).diag()[..., None], like.new_zeros(size)
