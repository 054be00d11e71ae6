"""The tape of a U-Net for unet1d_training.cpp: its operations, in the order of a call.

Shape legend: `C` channels or condition size, `E` noise embedding size, `L` positions.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from policy.nets.unet1d import ResidualBlock, ResidualPair, UNet1d
from policy.nets.unet1d_values import FOREVER, Life, OpStruct, Value, ValueStruct, placed

INPUTS = ("x", "noise", "cond")
# As in training/tape.h.
LINEAR, TOOM_COOK, NORM, ACTIVATE, HALVE = range(5)  # kinds of operations
NOTHING, SET, ADD = range(3)  # what is done with a gradient; nothing is the default
TAPS, POINTS, TILE = 5, 8, 4  # of Toom-Cook
FEWEST_POSITIONS = 3  # for which it takes fewer products
MOST_PADDING = 4  # channels with padding for each without, up to which it does
FILMS = ("scale", "sample_scale", "sample_shift", "shift")
LINE = 16  # floats that are loaded together


@dataclass
class Step:
    """An operation with the values that it is about; `numbers` are further fields of its struct."""

    kind: int
    into: Value
    out: Value
    numbers: dict[str, int] = field(default_factory=dict)
    others: dict[str, Value] = field(default_factory=dict)


class Tape:
    """The operations of a U-Net.

    Args:
        net: whose parameters they are about.
        panel: channels that lie side by side.
        input_grads: names of the inputs whose gradients are asked for.
    """

    def __init__(self, net: UNet1d, *, panel: int, input_grads: Sequence[str]):
        self._panel, self._input_grads = panel, input_grads
        self._numbers = {id(p): number for number, p in enumerate(net.parameters())}
        self._is_mish = int(isinstance(net.activate, nn.Mish))
        self._steps: list[Step] = []
        self._values: list[Value] = []
        self.packed_floats = 0
        self._write(net)
        self._place()

    # Writing.

    def _write(self, net: UNet1d) -> None:
        n_levels, length = len(net.down), net.pred_horizon
        size = net.noise_embed.size
        film = net.pairs()[0][0].first.film
        x = self._value(length, net.out.out_channels)
        noise, cond = self._value(length, size), self._value(1, film.cond.in_features)
        self.inputs = {"x": x, "noise": noise, "cond": cond}

        first, _, second = net.noise_embed.mlp
        hidden = self._activated(self._linear(first, noise))
        levels = [self._linear(second, hidden)]
        for _ in net.downsample:
            levels.append(self._halved(levels[-1]))
        levels = [self._activated(level) for level in levels]
        cond = self._activated(cond)

        # Each level but the first has its skip connection in the upper half of a concatenation.
        beside = [
            self._value(length >> level, _size(net.down[level]), parts=2)
            for level in range(1, n_levels)
        ]
        h = x
        for index, (pair, level) in enumerate(net.pairs()):
            is_down, is_up = index < n_levels, index > n_levels
            out = None
            if level and not is_up:
                out = self._part(beside[level - 1], 1 if is_down else 0)
            if is_up:
                h = beside[level - 1]
            h = self._pair(pair, h, levels[level], cond, out=out)
            if is_down and level < n_levels - 1:
                h = self._linear(net.downsample[level], h)
            if is_up:
                out = self._part(beside[level - 2], 0) if level > 1 else None
                h = self._linear(net.upsample[index - n_levels - 1], h, out=out)
        h = self._block(net.last, h, {})
        self.output = self._linear(net.out, h)

    def _pair(
        self, pair: ResidualPair, h: Value, noise: Value, cond: Value, *, out: Value | None
    ) -> Value:
        h = self._residual(pair.first, h, noise, cond, out=None)
        return self._residual(pair.second, h, noise, cond, out=out)

    def _residual(
        self, block: ResidualBlock, h: Value, noise: Value, cond: Value, *, out: Value | None
    ) -> Value:
        size, residual = _size(block), h
        out = out or self._value(h.length, size)
        if isinstance(block.skip, nn.Conv1d):
            residual = self._linear(block.skip, h)
            residual.grad_of = out
        films: dict[str, Value] = {}
        after = self._value(h.length, size)
        for row, name in ((0, "scale"), (size, "shift")):
            films[name] = self._linear(block.film.noise, noise, first=row, size=size)
            films[f"sample_{name}"] = self._linear(block.film.cond, cond, first=row, size=size)
        films["shift"].grad_of = after
        h = self._block(block.first, h, films, out=after)
        return self._block(block.second, h, {"residual": residual}, out=out)

    def _block(
        self, block: nn.Sequential, h: Value, others: dict[str, Value], out: Value | None = None
    ) -> Value:
        conv, norm = block[0], block[1]
        assert isinstance(norm, nn.GroupNorm)
        y = self._linear(conv, h)
        statistics = self._value(2, y.channels)
        numbers = {
            "gamma": self._number(norm.weight),
            "beta": self._number(norm.bias),
            "groups": norm.num_groups,
            "packed_gamma": self._packed(y, 1),
            "packed_beta": self._packed(y, 1),
        }
        others = {**others, "statistics": statistics}
        return self._step(NORM, y, out or self._value(y.length, y.channels), numbers, others)

    def _linear(
        self,
        layer: nn.Module,
        h: Value,
        *,
        first: int = 0,
        size: int | None = None,
        out: Value | None = None,
    ) -> Value:
        """A linear layer or a convolution; `first` and `size` are rows of its weights."""
        numbers, length = self._weights(layer, first), h.length
        if isinstance(layer, nn.ConvTranspose1d):
            length *= layer.stride[0]
        elif isinstance(layer, nn.Conv1d):
            length //= layer.stride[0]
        out = out or self._value(length, size or _out_size(layer))
        is_toom = (
            numbers["taps"] == TAPS
            and numbers["step"] == 1
            and length >= FEWEST_POSITIONS
            and self._panels(h) * self._panel <= MOST_PADDING * h.channels * h.parts
        )
        n_blocks = POINTS if is_toom else numbers["taps"]
        n_blocks *= self._panels(h) * self._panels(out)
        for name in ("packed", "packed_back"):
            numbers[name] = self._packed_floats(n_blocks * self._panel**2)
        numbers["packed_bias"] = self._packed(out, 1)
        return self._step(TOOM_COOK if is_toom else LINEAR, h, out, numbers, {})

    def _weights(self, layer: nn.Module, first: int) -> dict[str, int]:
        """Fields of a layer's weights and geometry."""
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        numbers = {"taps": 1, "step": 1, "before": 0, "is_transposed": 0}
        out_stride, in_stride = weight[0].numel(), math.prod(weight.shape[2:])
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            numbers["taps"], numbers["step"] = layer.kernel_size[0], layer.stride[0]
            assert isinstance(layer.padding[0], int)
            numbers["before"] = layer.padding[0]
        if isinstance(layer, nn.ConvTranspose1d):
            out_stride, in_stride = in_stride, out_stride
            numbers["is_transposed"] = 1
        return {
            **numbers,
            "weight": self._number(weight),
            "weight_at": first * out_stride,
            "out_stride": out_stride,
            "in_stride": in_stride,
            "bias": self._number(bias),
            "bias_at": first,
        }

    def _activated(self, h: Value) -> Value:
        return self._step(ACTIVATE, h, self._value(h.length, h.channels), {}, {})

    def _halved(self, h: Value) -> Value:
        return self._step(HALVE, h, self._value(h.length // 2, h.channels), {}, {})

    def _step(
        self, kind: int, h: Value, out: Value, numbers: dict[str, int], others: dict[str, Value]
    ) -> Value:
        self._steps.append(Step(kind, h, out, numbers, others))
        return out

    def _value(self, length: int, channels: int, *, parts: int = 1) -> Value:
        self._values.append(Value(length, channels, parts))
        return self._values[-1]

    def _part(self, whole: Value, part: int) -> Value:
        self._values.append(Value(whole.length, whole.channels, whole=whole, part=part))
        return self._values[-1]

    def _panels(self, value: Value) -> int:
        return value.parts * math.ceil(value.channels / self._panel)

    def _floats(self, value: Value) -> int:
        return value.length * self._panels(value) * self._panel

    def _number(self, parameter: Tensor | None) -> int:
        return -1 if parameter is None else self._numbers[id(parameter)]

    def _packed(self, value: Value, rows: int) -> int:
        return self._packed_floats(rows * self._panels(value) * self._panel)

    def _packed_floats(self, size: int) -> int:
        at = self.packed_floats
        self.packed_floats += math.ceil(size / LINE) * LINE
        return at

    # Placing.

    def _place(self) -> None:
        """Decide what becomes of each gradient and where everything lies."""
        self._writes: list[dict[str, int]] = [{} for _ in self._steps]
        data, grads = self._lives_of_data(), self._lives_of_grads()
        places, self.floats = placed(
            [(("data", value), self._floats(value), life) for value, life in data.items()]
            + [(("grad", value), self._floats(value), life) for value, life in grads.items()]
        )
        self._at = {value: places["data", value] for value in data}
        self._grad_at = {value: places["grad", value] for value in grads}

    def _lives_of_data(self) -> dict[Value, Life]:
        """When values are needed; operations are at the times 1, 2, ... n."""
        lives = {value: Life(0, 0) for value in self.inputs.values()}
        for time, step in enumerate(self._steps, 1):
            for value in (step.into, step.out, *step.others.values()):
                lives.setdefault(value.root, Life()).use(time)
            for value in self._kept(step):  # There may be more than one way back.
                lives[value.root].end = FOREVER
        lives[self.output].use(len(self._steps) + 1)
        return lives

    def _lives_of_grads(self) -> dict[Value, Life]:
        """When gradients are needed; the first that is written to a place sets it, others add."""
        n = len(self._steps)
        lives = {self.output: Life(n + 1, n + 1)}
        unwanted = self._unwanted()
        for number in reversed(range(n)):
            step, time = self._steps[number], 2 * n + 1 - number
            lives.setdefault(step.out.grad.root, Life()).use(time)
            told = {"d_in": step.into}
            if step.kind == NORM:
                for name in FILMS:
                    film = step.others.get(name)
                    if film is not None and film.grad_of is None:
                        lives.setdefault(film, Life()).use(time)
                residual = step.others.get("residual")
                if residual is not None and residual.grad_of is None:
                    told["d_residual"] = residual
            for name, value in told.items():
                if value not in unwanted:
                    self._writes[number][name] = ADD if value.root in lives else SET
                    lives.setdefault(value.root, Life()).use(time)
        for name in self._input_grads:
            lives[self.inputs[name]].use(2 * n + 2)
        return lives

    def _unwanted(self) -> set[Value]:
        """Values without a gradient: inputs, unless asked for, and what is made of them alone."""
        values = {v for name, v in self.inputs.items() if name not in self._input_grads}
        return values | {s.out for s in self._steps if s.kind == ACTIVATE and s.into in values}

    def _kept(self, step: Step) -> list[Value]:
        """What an operation needs on its way back."""
        if step.kind == HALVE:
            return []
        names = ("scale", "sample_scale", "statistics")
        return [step.into, *(step.others[name] for name in names if name in step.others)]

    # What C++ is given.

    def value_structs(self) -> ctypes.Array[ValueStruct]:
        """All values."""
        structs = []
        for value in self._values:
            grad = value.grad
            at = self._at[value.root] + value.part * self._floats(value)
            grad_at = self._grad_at.get(grad.root, 0) + grad.part * self._floats(grad)
            shape = (value.length, self._panels(value), value.parts, value.channels)
            structs.append(ValueStruct(at, grad_at, *shape))
        return (ValueStruct * len(structs))(*structs)

    def op_structs(self) -> ctypes.Array[OpStruct]:
        """All operations in order."""
        number = {value: index for index, value in enumerate(self._values)}
        missing = dict.fromkeys(("bias", *FILMS, "residual"), -1)
        structs = []
        for step, writes in zip(self._steps, self._writes, strict=True):
            others = {name: number[value] for name, value in step.others.items()}
            fields = {**missing, "is_mish": self._is_mish, **step.numbers, **others, **writes}
            structs.append(
                OpStruct(kind=step.kind, in_=number[step.into], out=number[step.out], **fields)
            )
        return (OpStruct * len(structs))(*structs)

    def number(self, value: Value) -> int:
        """By which C++ knows a value."""
        return self._values.index(value)

    def scratch_floats(self) -> tuple[int, int]:
        """Floats that an operation needs for itself: of each sample, and beside that."""
        per_sample = beside = 0
        for step in self._steps:
            if step.kind != TOOM_COOK:
                continue
            panels = (self._panels(step.into), self._panels(step.out))
            tiles = math.ceil(step.into.length / TILE)
            per_sample = max(per_sample, POINTS * tiles * self._panel * sum(panels))
            beside = max(beside, POINTS * math.prod(panels) * self._panel**2)
        return per_sample, beside


def _size(part: nn.Module) -> int:
    """Output channels of a pair or a block."""
    block = part.second if isinstance(part, ResidualPair) else part
    assert isinstance(block, ResidualBlock)
    return block.second[0].out_channels  # pyright: ignore


def _out_size(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # pyright: ignore
