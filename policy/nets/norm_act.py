"""Group norm, activation and FiLM in one pass over the features, for training on a CPU.

In PyTorch these are a dozen passes each way, which take a small U-Net longer than its
convolutions; here they are one C++ function each way (norm_act.cpp), compiled when first needed.

Shape legend: `L` positions, `B` samples, `C` channels.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from policy.nets.compiled import load

SOURCE = Path(__file__).with_suffix(".cpp")
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class FiLMs:
    """Scale and shift of features, side by side, as the sum of two.

    Args:
        position: [L, B, 2 C].
        sample: [B, 2 C].
    """

    position: Tensor
    sample: Tensor


def norm_act(
    y: Tensor,
    bias: Tensor,
    norm: nn.GroupNorm,
    *,
    is_mish: bool,
    films: FiLMs | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Activated group norm [L, B, C] of y + bias, scaled and shifted, plus a residual.

    Args:
        y: [L, B, C] float32 on the CPU; a norm's group is some channels of all positions.
        bias: [C].
        norm: of C channels, with weights.
        is_mish: whether the activation is Mish, not SiLU.
        films: if there are any.
        residual: [L, B, C] that is added in the end, if there is one.
    """
    position, sample = (None, None) if films is None else (films.position, films.sample)
    settings = (norm.num_groups, norm.eps, is_mish)
    return _NormAct.apply(  # pyright: ignore[reportReturnType]
        y, bias, norm.weight, norm.bias, position, sample, residual, settings
    )


def prepare() -> None:
    """Compile, so that nothing is left to fail later.

    Raises:
        policy.nets.compiled.CompileError: there is no C++ compiler that works.
    """
    _library()


class _Shape(ctypes.Structure):
    _fields_ = [(name, NUMBER) for name in ("length", "batch", "channels", "groups")]


class _Inputs(ctypes.Structure):
    _fields_ = [
        (name, POINTER)
        for name in ("y", "bias", "gamma", "beta", "film_position", "film_sample", "residual")
    ]


@cache
def _library() -> ctypes.CDLL:
    library = load(SOURCE)
    begin = (_Shape, ctypes.POINTER(_Inputs), NUMBER)
    library.norm_act_forward.argtypes = [*begin, ctypes.c_double, *[POINTER] * 3, NUMBER]
    library.norm_act_backward.argtypes = [*begin, *[POINTER] * 7, NUMBER]
    library.norm_act_forward.restype = library.norm_act_backward.restype = None
    return library


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        position: Tensor | None,
        sample: Tensor | None,
        residual: Tensor | None,
        settings: tuple[int, float, bool],
    ) -> Tensor:
        inputs = [
            None if x is None else x.contiguous()
            for x in (y, bias, gamma, beta, position, sample, residual)
        ]
        assert all(x is None or x.dtype == torch.float32 for x in inputs)
        length, batch, channels = y.shape
        n_groups, eps, is_mish = settings
        out, statistics = y.new_empty(y.shape), y.new_empty(2, batch, channels)
        _library().norm_act_forward(
            _Shape(length, batch, channels, n_groups),
            ctypes.byref(_Inputs(*map(_at, inputs))),
            int(is_mish),
            eps,
            out.data_ptr(),
            statistics[0].data_ptr(),
            statistics[1].data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(statistics, *inputs[:6])  # pyright: ignore[reportArgumentType]
        ctx.settings = settings  # pyright: ignore[reportAttributeAccessIssue]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        statistics, *inputs = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        n_groups, _, is_mish = ctx.settings  # pyright: ignore[reportAttributeAccessIssue]
        y, position, sample = inputs[0], inputs[4], inputs[5]
        length, batch, channels = y.shape
        d_out, dy = d_out.contiguous(), torch.empty_like(y)
        d_position = None if position is None else torch.empty_like(position)
        d_sample = None if sample is None else torch.empty_like(sample)
        n_threads = torch.get_num_threads()
        sums = y.new_zeros(n_threads, 3, channels)
        _library().norm_act_backward(
            _Shape(length, batch, channels, n_groups),
            ctypes.byref(_Inputs(*map(_at, inputs), None)),
            int(is_mish),
            statistics[0].data_ptr(),
            statistics[1].data_ptr(),
            d_out.data_ptr(),
            dy.data_ptr(),
            _at(d_position),
            _at(d_sample),
            sums.data_ptr(),
            n_threads,
        )
        d_gamma, d_beta, d_bias = sums.sum(dim=0)
        d_residual = d_out if ctx.needs_input_grad[6] else None  # pyright: ignore
        return dy, d_bias, d_gamma, d_beta, d_position, d_sample, d_residual, None
