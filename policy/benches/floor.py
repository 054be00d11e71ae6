"""The physical floor of a denoiser call: what no program of its kind can go below here.

A call at batch 1 has to read every weight once and to do every multiply-add once, but for those
that serve the noise level, which is known before. The floor is the longer of the two times, at the
rates that the machine is seen to reach in the same run: reading as many bytes as the weights are,
since what fits into a cache is read from there, and multiplying two large matrices.

Multiply-adds are those of matrix products and convolutions, without those of the zeros at the ends
of a chunk, which a program may leave out. Norms, activations and the rest are not counted. On a CPU
they are done in fp32, whatever the weights are stored as: a program that multiplied small integers
could go below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from policy.nets.large_pages import zeros

MATRIX = 1024  # rows and columns of the matrices that are multiplied
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Floor:
    """The floor of one call.

    Args:
        weight_bytes: that are read.
        multiply_adds: that are done.
        bandwidth: bytes/s of reading as many bytes.
        matrix_rate: multiply-adds/s of a large matrix product.
    """

    weight_bytes: int
    multiply_adds: int
    bandwidth: float
    matrix_rate: float

    @property
    def reading(self) -> float:
        """Time to read the weights [s]."""
        return self.weight_bytes / self.bandwidth

    @property
    def arithmetic(self) -> float:
        """Time of the multiply-adds [s]."""
        return self.multiply_adds / self.matrix_rate

    @property
    def seconds(self) -> float:
        """The longer of the two [s]."""
        return max(self.reading, self.arithmetic)

    @property
    def binds(self) -> str:
        """Which of the two it is."""
        return "reading" if self.reading >= self.arithmetic else "arithmetic"


def weights_used(net: nn.Module, call: Callable[[], object]) -> int:
    """Weights of a network that the operations of a call read; what was computed before is none.

    Of a tensor that is read in parts, as of experts that lie in one, those parts count.

    Args:
        net: the network.
        call: that calls it, or what it made.
    """
    sizes = {weight.untyped_storage().data_ptr(): weight.numel() for weight in net.parameters()}
    with _Reads() as reads:
        call()
    # Parts may overlap.
    return sum(min(size, sum(reads.seen.get(at, {}).values())) for at, size in sizes.items())


class _Reads(TorchDispatchMode):
    """Notes what operations read: storage -> place in it -> number of elements."""

    def __init__(self):
        super().__init__()
        self.seen: dict[int, dict[tuple, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_view(func):
            for given in tree_leaves((args, kwargs)):
                if isinstance(given, Tensor):
                    self._note(given)
        return func(*args, **(kwargs or {}))

    def _note(self, given: Tensor) -> None:
        axes = sorted(zip(given.stride(), given.shape, strict=True))  # Also of what is transposed.
        place = given.storage_offset(), *axes
        self.seen.setdefault(given.untyped_storage().data_ptr(), {})[place] = given.numel()


def _is_view(func: Any) -> bool:
    """Whether an operation gives other views of what it is given, and reads nothing."""
    alias = [returned.alias_info for returned in func._schema.returns]
    return any(info is not None and not info.is_write for info in alias)


def readers(n_bytes: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Calls that read as many bytes once, name -> call; which is fastest depends on the machine.

    Args:
        n_bytes: at least one row of `MATRIX` numbers is read.
        device: where they are.
    """
    rows = max(1, n_bytes // (4 * MATRIX))
    # Ones: what is multiplied must neither overflow nor become denormal, which is slow.
    flat = zeros(4 * rows * MATRIX).view(torch.float32).to(device).fill_(1)
    matrix, vector = flat.view(rows, MATRIX), torch.ones(MATRIX, device=device)
    return {
        "sum": lambda: synchronised(flat.sum()),
        "dot": lambda: synchronised(torch.dot(flat, flat)),
        "matrix times vector": lambda: synchronised(torch.mv(matrix, vector)),
    }


def bytes_read(n_bytes: int) -> int:
    """Bytes that `readers` read when asked for so many."""
    return max(1, n_bytes // (4 * MATRIX)) * 4 * MATRIX


def multiplier(device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A call that multiplies two matrices of `MATRIX` x `MATRIX`."""
    a, b = (torch.ones(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    return lambda: synchronised(a @ b)


def synchronised(result: Tensor) -> Tensor:
    """A result when it is there: calls on an accelerator return before."""
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
    return result


def multiply_adds(call: Callable[[], object]) -> int:
    """Of the matrix products and convolutions in a call, without those of padding."""
    grouped = getattr(torch.ops.aten, "_grouped_mm", None)
    mapping: Any = {torch.ops.aten.convolution: _of_convolution}
    if grouped is not None:  # The counter does not know the product of sorted tokens.
        mapping[grouped] = _of_grouped_product
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops() // 2


def _of_convolution(
    x: Any,
    weight: Any,
    bias: object,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    *_: object,
    **__: object,
) -> int:
    """Twice the multiply-adds of a convolution in which no zero of the padding is multiplied."""
    pairs = 1  # of an input and an output position that a kernel joins
    for axis, size in enumerate(x[2:]):
        signal, kernel = torch.ones(1, 1, size), torch.ones(1, 1, weight[2 + axis])
        convolve: Any = F.conv_transpose1d if transposed else F.conv1d
        joined = convolve(
            signal, kernel, stride=stride[axis], padding=padding[axis], dilation=dilation[axis]
        )
        pairs *= round(float(joined.sum()))
    # [out, in / groups, ...], or [in, out / groups, ...] if transposed: the product is the same.
    return 2 * x[0] * pairs * weight[0] * weight[1]


def _of_grouped_product(a: Any, b: Any, *_: object, out_shape: Any = None, **__: object) -> int:
    return 2 * a[0] * a[1] * b[-1]  # Each row of a with one matrix of b.
