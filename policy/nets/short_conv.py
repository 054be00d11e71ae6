"""Convolutions over few positions as few matrix products, for training on a CPU.

A convolution of `L` positions with `K` taps that keeps the length is a Toeplitz matrix of matrices
applied to L vectors. Splitting it in halves,

    [T0 T1] [x0]   [T0 (x0 + x1) + (T1 - T0) x1]
    [T2 T0] [x1] = [T0 (x0 + x1) + (T2 - T0) x0],

takes three products of half the size instead of four, and each of them again (Karatsuba and Ofman
1962; of convolutions in networks, Lavin and Gray 2015, arXiv:1509.09308). Where T1 or T2 has few
taps, plain products are fewer, and are taken. In all, for certain small matrices of whole numbers,

    y = out (taps w * in x):    L = 2, K = 5: 3 products for 10, L = 4: 9 for 20, L = 8: 24 for 40.

Rounding errors are those of fp32: sums of two or four values go into each product. Of many
positions the sums take longer than the products that they save; there a convolution is a product
for each tap, of the rows that it sees, which lie in one stretch.

Shape legend: `L` positions, `B` samples, `C O` channels in and out, `K` taps, `P` products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

FEW_POSITIONS = 4  # up to which sums of positions pay, as measured


@dataclass(frozen=True)
class Products:
    """A convolution as products: `y = into_outputs (of_taps w * of_inputs x)`.

    Args:
        of_inputs: [P, L] sums of positions that go into each product.
        of_taps: [P, K] sums of taps that they are multiplied with.
        into_outputs: [L, P] sums of products that are the outputs.
    """

    of_inputs: np.ndarray
    of_taps: np.ndarray
    into_outputs: np.ndarray

    def __len__(self) -> int:
        return len(self.of_taps)


def products(n_positions: int, n_taps: int) -> Products:
    """The products of a convolution that keeps the length, with zeros beyond its ends.

    Args:
        n_positions: L.
        n_taps: K, odd.
    """
    toeplitz = np.zeros((n_positions, n_positions, n_taps))
    for row in range(n_positions):
        for column in range(n_positions):
            tap = column - row + n_taps // 2
            if 0 <= tap < n_taps:
                toeplitz[row, column, tap] = 1
    return _split(toeplitz)


def _split(toeplitz: np.ndarray) -> Products:
    """Products of a Toeplitz matrix [L, L, K] whose entries are sums of taps; the fewest."""
    n = len(toeplitz)
    if n % 2:
        return _plain(toeplitz)
    half = n // 2
    same, upper, lower = toeplitz[:half, :half], toeplitz[:half, half:], toeplitz[half:, :half]
    eye, none = np.eye(half), np.zeros((half, half))
    first, last = np.hstack([eye, none]), np.hstack([none, eye])
    four = [(same, first, first), (same, last, last), (upper, last, first), (lower, first, last)]
    three = [
        (same, first + last, first + last),
        (upper - same, last, first),
        (lower - same, first, last),
    ]
    return min(_joined(four), _joined(three), key=len)


def _joined(blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Products:
    """Products of a sum of blocks, each with what goes into it and where its result is added."""
    parts = [(_split(block), into, out) for block, into, out in blocks if block.any()]
    return Products(
        np.concatenate([p.of_inputs @ into for p, into, _ in parts]),
        np.concatenate([p.of_taps for p, _, _ in parts]),
        np.concatenate([out.T @ p.into_outputs for p, _, out in parts], axis=1),
    )


def _plain(matrix: np.ndarray) -> Products:
    """One product for each entry."""
    n = len(matrix)
    rows, columns = np.nonzero(matrix.any(axis=-1))
    return Products(np.eye(n)[columns], matrix[rows, columns], np.eye(n)[:, rows])


@cache
def _matrices(n_positions: int, n_taps: int) -> tuple[Tensor, Tensor, Tensor]:
    p = products(n_positions, n_taps)
    matrices = (p.of_inputs, p.of_taps, p.into_outputs)
    inputs, taps, outputs = (torch.from_numpy(m).float().contiguous() for m in matrices)
    return inputs, taps, outputs


def short_conv(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution [L, B, O] of x [L, B, C] that keeps the length, without a bias.

    Args:
        x: float32 on the CPU.
        weight: [O, C, K], K odd.
    """
    conv = _ByProducts if 1 < len(x) <= FEW_POSITIONS else _ByTaps
    return conv.apply(x, weight)  # pyright: ignore[reportReturnType]


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        length, batch, size_in = x.shape
        size_out, _, n_taps = weight.shape
        of_inputs, of_taps, into_outputs = _matrices(length, n_taps)
        inputs = (of_inputs @ x.reshape(length, -1)).view(-1, batch, size_in)
        weights = (of_taps @ weight.reshape(-1, n_taps).t()).view(-1, size_out, size_in)
        y = torch.bmm(inputs, weights.transpose(1, 2))
        ctx.save_for_backward(inputs, weights)
        ctx.n_taps, ctx.length = n_taps, length  # pyright: ignore[reportAttributeAccessIssue]
        return (into_outputs @ y.flatten(1)).view(length, batch, size_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        inputs, weights = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        length, n_taps = ctx.length, ctx.n_taps  # pyright: ignore[reportAttributeAccessIssue]
        of_inputs, of_taps, into_outputs = _matrices(length, n_taps)
        _, batch, size_out = dy.shape
        dy = (into_outputs.t() @ dy.reshape(length, -1)).view(-1, batch, size_out)
        d_inputs = torch.bmm(dy, weights)
        d_weights = torch.bmm(dy.transpose(1, 2), inputs)
        d_weight = d_weights.flatten(1).t() @ of_taps
        dx = of_inputs.t() @ d_inputs.flatten(1)
        size_in = inputs.shape[2]
        return dx.view(length, batch, size_in), d_weight.view(size_out, size_in, n_taps)


class _ByTaps(torch.autograd.Function):
    """A product for each tap, of the positions that it sees: one stretch of memory."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        length, batch, size_in = x.shape
        size_out, _, n_taps = weight.shape
        taps = weight.permute(2, 1, 0).contiguous()  # [K, C, O]
        rows = x.reshape(-1, size_in)
        y = rows @ taps[n_taps // 2]
        for tap, seen, told in _beside_the_middle(length, batch, n_taps):
            y[told].addmm_(rows[seen], taps[tap])
        ctx.save_for_backward(rows, taps)
        ctx.length = length  # pyright: ignore[reportAttributeAccessIssue]
        return y.view(length, batch, size_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        rows, taps = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        length = ctx.length  # pyright: ignore[reportAttributeAccessIssue]
        n_taps, size_in, size_out = taps.shape
        batch, middle = len(rows) // length, n_taps // 2
        # Taps that see nothing have no gradient.
        d_taps = torch.empty_like(taps) if length > middle else torch.zeros_like(taps)
        dy = dy.reshape(-1, size_out)
        dx = dy @ taps[middle].t()
        torch.mm(rows.t(), dy, out=d_taps[middle])
        for tap, seen, told in _beside_the_middle(length, batch, n_taps):
            dx[seen].addmm_(dy[told], taps[tap].t())
            torch.mm(rows[seen].t(), dy[told], out=d_taps[tap])
        return dx.view(length, batch, size_in), d_taps.permute(2, 1, 0)


def _beside_the_middle(length: int, batch: int, n_taps: int) -> Iterator[tuple[int, slice, slice]]:
    """Of each tap but the middle one, the rows [L * B] that it sees and those that it tells."""
    for tap in range(n_taps):
        shift = tap - n_taps // 2
        size = (length - abs(shift)) * batch
        if shift and size > 0:
            seen, told = max(shift, 0) * batch, max(-shift, 0) * batch
            yield tap, slice(seen, seen + size), slice(told, told + size)
