"""Bytes in large pages are the bytes; that they are large is the system's affair."""

import mmap

import pytest
import torch

from policy.nets import large_pages
from policy.nets.large_pages import LARGE, joined

SIZES = [0, 1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 5]


def parts(n):
    numbers = torch.arange(n) % 251
    return numbers.to(torch.uint8).tensor_split(3)


@pytest.mark.parametrize("n", SIZES)
def test_what_is_joined_is_there_in_order(n):
    made = joined(parts(n))
    assert made.dtype == torch.uint8
    assert torch.equal(made, torch.cat(parts(n)))


def test_it_can_be_written_to_and_lives_as_long_as_it_is_used():
    kept = joined(parts(2 * LARGE))[LARGE:]
    kept += 1
    assert kept[0] == LARGE % 251 + 1


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no such advice")
def test_large_pages_are_asked_for_from_their_size_on(monkeypatch):
    asked = []

    class Asked(mmap.mmap):
        def madvise(self, advice, *where):
            asked.append((advice, len(self)))
            raise OSError("not here")  # What cannot be had is done without.

    monkeypatch.setattr(large_pages.mmap, "mmap", Asked)
    for n in SIZES:
        assert torch.equal(joined(parts(n)), torch.cat(parts(n)))
    sizes = [LARGE, 2 * LARGE, 4 * LARGE]
    assert asked == [(mmap.MADV_HUGEPAGE, size) for size in sizes]


def test_without_the_advice_it_is_plain_memory(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(joined(parts(LARGE + 7)), torch.cat(parts(LARGE + 7)))
