"""Epochs of weighted stores: shares, and that no window is left behind."""

import pytest
import torch

from data.visits import Visits

CASES = [((6, 6), (3.0, 1.0)), ((100, 7, 31), (1.0, 1.0, 1.0)), ((1, 50), (0.5, 0.001))]


@pytest.mark.parametrize(("counts", "weights"), CASES)
def test_an_epoch_has_each_store_by_its_weight(counts, weights):
    visits = Visits.weighted(counts, weights)
    windows = visits(0)
    assert len(windows) == len(visits)
    first = 0
    for count, weight in zip(counts, weights, strict=True):
        share = ((windows >= first) & (windows < first + count)).sum() / sum(counts)
        # Rounded to whole windows, and never none.
        assert abs(share - weight / sum(weights)) <= 1 / sum(counts)
        first += count
    assert 0 <= int(windows.min()) <= int(windows.max()) < sum(counts)


@pytest.mark.parametrize(("counts", "weights"), CASES)
def test_windows_of_a_store_are_visited_equally_often_in_the_long_run(counts, weights):
    visits = Visits.weighted(counts, weights)
    visited = torch.cat([visits(epoch) for epoch in range(60)])
    times = torch.bincount(visited, minlength=sum(counts))
    for part in times.split(list(counts)):
        assert part.max() - part.min() <= 1


def test_an_epoch_is_a_function_of_its_number():
    visits = Visits(counts=(20, 9), quotas=(5, 14))
    in_order = [visits(epoch) for epoch in range(4)]
    assert torch.equal(visits(3), in_order[3])
    assert not torch.equal(in_order[0], in_order[1])


def test_a_store_that_is_visited_in_part_is_visited_all_over():
    windows = Visits(counts=(1000, 10), quotas=(50, 10))(0)[:50].sort().values
    gaps = torch.cat([windows[:1], windows.diff(), 1000 - windows[-1:]])
    assert gaps.max() <= 3 * 1000 / 50  # three times the gap of an even grid
