"""The U-Net in the form in which a CPU trains it fastest: the same function of the same parameters.

`UNet1d.training_form()` makes it. Forward and backward are one C++ function each, which takes parts
of the batch through the whole network (unet1d_training.cpp).

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `E` noise
embedding size.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from policy.nets.compiled import load
from policy.nets.large_pages import zeros
from policy.nets.noise_embed import sinusoids
from policy.nets.unet1d import UNet1d
from policy.nets.unet1d_tape import INPUTS, Tape
from policy.nets.unet1d_values import NUMBER, POINTER

SOURCE = Path(__file__).with_suffix(".cpp")
CHUNK = 128  # samples that a thread takes at a time: as many as its cache holds features of


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
        # Looking through the modules takes as long as some layers.
        self._weights = list(net.parameters())
        self._programs: dict[tuple[str, ...], _Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes programs of its own."""
        return {**self.__dict__, "_programs": {}}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da]; for the arguments see `UNet1d`."""
        # A reduced precision that is asked for outside is not for what is done in C++.
        with torch.autocast("cpu", enabled=False):
            noise = sinusoids(c_noise.float(), self.net.noise_embed.size)
            inputs = (x.float(), noise, cond.float()[:, None])
            named = zip(INPUTS, inputs, strict=True)
            wanted = tuple(name for name, values in named if values.requires_grad)
            if wanted not in self._programs:
                self._programs[wanted] = _Program(self.net, wanted)
            program = self._programs[wanted]
            program.check(inputs, self._weights)
            return cast(Tensor, _Call.apply(program, *inputs, *self._weights))


def prepare() -> None:
    """Compile, so that nothing is left to fail later.

    Raises:
        policy.nets.compiled.CompileError: there is no C++ compiler that works.
    """
    _library()


class _TapeStruct(ctypes.Structure):  # as in training/tape.h
    _fields_ = [
        *((name, POINTER) for name in ("ops", "values", "parameters", "grads_at")),
        *((name, NUMBER) for name in ("n_ops", "n_grads", "batch", "chunks", "threads")),
        *((name, NUMBER) for name in ("floats", "scratch")),
        ("epsilon", ctypes.c_double),
        *((name, POINTER) for name in ("packed", "arena", "workspace")),
    ]


class _Outside(ctypes.Structure):  # as in unet1d_training.cpp
    _fields_ = [("value", NUMBER), ("data", POINTER)]


@cache
def _library() -> ctypes.CDLL:
    library = load(SOURCE)
    tape, outsides = ctypes.POINTER(_TapeStruct), ctypes.POINTER(_Outside)
    library.training_forward.argtypes = [tape, outsides, NUMBER, _Outside]
    library.training_backward.argtypes = [tape, _Outside, outsides, NUMBER, POINTER]
    library.training_forward.restype = library.training_backward.restype = None
    library.training_panel.restype = NUMBER
    return library


class _Program:
    """The tape of a network, and what C++ needs with it in every call.

    Args:
        net: whose parameters it is about.
        wanted: names of the inputs whose gradients are asked for.
    """

    def __init__(self, net: UNet1d, wanted: tuple[str, ...]):
        self.tape = Tape(net, panel=_library().training_panel(), input_grads=wanted)
        self.wanted = wanted
        parameters = list(net.parameters())
        self._sizes = [parameter.numel() for parameter in parameters]
        self._shapes = [parameter.shape for parameter in parameters]
        self.n_grads = sum(self._sizes)
        starts = [sum(self._sizes[:number]) for number in range(len(parameters))]
        self._structs = {
            "ops": self.tape.op_structs(),
            "values": self.tape.value_structs(),
            "grads_at": (NUMBER * len(starts))(*starts),
        }
        self._epsilon = net.last[1].eps
        self._spare: list[Tensor] = []

    def check(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Raise ValueError unless these are what C++ takes them for."""
        for name, tensor in zip(INPUTS, inputs, strict=True):
            value = self.tape.inputs[name]
            wanted = (len(inputs[0]), value.length, value.channels)
            if tuple(tensor.shape) != wanted or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name} is {list(tensor.shape)} on {tensor.device}, the form for training "
                    f"needs {list(wanted)} on the CPU"
                )
        assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)

    def outside(self, tensors: dict[str, Tensor]) -> Any:
        """Inputs, or their gradients, as C++ is told of them."""
        numbers = {name: self.tape.number(value) for name, value in self.tape.inputs.items()}
        structs = [_Outside(numbers[name], tensor.data_ptr()) for name, tensor in tensors.items()]
        return (_Outside * len(structs))(*structs)

    def output(self, tensor: Tensor) -> _Outside:
        """The output, or its gradient, as C++ is told of it."""
        return _Outside(self.tape.number(self.tape.output), tensor.data_ptr())

    def split(self, grads: Tensor) -> list[Tensor]:
        """Gradients of the parameters [n_grads], one by one."""
        parts = grads.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def memory(self, parameters: list[Tensor], batch: int) -> "_Memory":
        """What a call works in."""
        threads = max(min(torch.get_num_threads(), batch), 1)
        chunks = max(math.ceil(batch / CHUNK / threads), 1) * threads
        per_sample, beside = self.tape.scratch_floats()
        scratch = per_sample * (math.ceil(batch / chunks) + 1) + beside
        sizes = (self.tape.packed_floats, self.tape.floats * batch, scratch * threads)
        floats = self._spare.pop() if self._spare else torch.empty(0)
        if len(floats) != sum(sizes):
            floats = zeros(4 * sum(sizes)).view(torch.float32)
        pointers = (POINTER * len(parameters))(*(p.data_ptr() for p in parameters))
        structs = {**self._structs, "parameters": pointers}
        places = zip(("packed", "arena", "workspace"), floats.split(sizes), strict=True)
        struct = _TapeStruct(
            **{name: ctypes.cast(struct, POINTER) for name, struct in structs.items()},
            **{name: place.data_ptr() for name, place in places},
            n_ops=len(structs["ops"]),
            n_grads=self.n_grads,
            batch=batch,
            chunks=chunks,
            threads=threads,
            floats=self.tape.floats,
            scratch=scratch,
            epsilon=self._epsilon,
        )
        return _Memory(struct, floats, self._spare, kept=(structs, parameters))


class _Memory:
    """Where a call's features are kept for its way back; another call has it after that.

    Args:
        struct: that tells C++ of it.
        floats: the memory.
        spare: where it goes when nothing needs it any more.
        kept: what the struct points to.
    """

    def __init__(self, struct: _TapeStruct, floats: Tensor, spare: list[Tensor], *, kept: Any):
        self.struct = struct
        self._floats, self._spare, self._kept = floats, spare, kept

    def __del__(self) -> None:
        self._spare.append(self._floats)


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, program: _Program, x: Tensor, noise: Tensor, cond: Tensor, *rest: Tensor
    ) -> Tensor:
        inputs: dict[str, Tensor] = dict(
            zip(INPUTS, (h.contiguous() for h in (x, noise, cond)), strict=True)
        )
        memory = program.memory([parameter.contiguous() for parameter in rest], len(x))
        out = x.new_empty(len(x), program.tape.output.length, program.tape.output.channels)
        _library().training_forward(
            memory.struct, program.outside(inputs), len(inputs), program.output(out)
        )
        ctx.program, ctx.memory = program, memory  # pyright: ignore[reportAttributeAccessIssue]
        ctx.shapes = {name: h.shape for name, h in inputs.items()}  # pyright: ignore
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        program: _Program = ctx.program  # pyright: ignore[reportAttributeAccessIssue]
        memory: _Memory = ctx.memory  # pyright: ignore[reportAttributeAccessIssue]
        shapes: dict[str, torch.Size] = ctx.shapes  # pyright: ignore[reportAttributeAccessIssue]
        d_out = d_out.contiguous()
        d_inputs = {name: d_out.new_empty(shapes[name]) for name in program.wanted}
        grads = d_out.new_empty(memory.struct.threads, program.n_grads)
        _library().training_backward(
            memory.struct,
            program.output(d_out),
            program.outside(d_inputs),
            len(d_inputs),
            grads.data_ptr(),
        )
        return None, *map(d_inputs.get, INPUTS), *program.split(grads[0])
