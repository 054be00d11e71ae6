"""Memory in large pages: whoever reads all of it looks up fewer addresses.

A call of a network at batch 1 reads every weight once. In pages of 4 KiB that is tens of thousands
of look-ups, each of which stops what reads ahead; virtual machines look up twice.
"""

import contextlib
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 2**21  # bytes of a page; for less than one nothing is asked for


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Bytes one after the other [n], in large pages where the system has them.

    Args:
        parts: uint8, of one dimension.
    """
    n = sum(map(len, parts))
    return torch.cat(list(parts), out=zeros(n))


def zeros(n: int) -> Tensor:
    """[n] bytes, uint8, in large pages where the system has them."""
    if n < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):  # It is for Linux.
        return torch.zeros(n, dtype=torch.uint8)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, -(-n // LARGE) * LARGE, flags=private)
    with contextlib.suppress(OSError):  # A Linux without them.
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8, count=n)
