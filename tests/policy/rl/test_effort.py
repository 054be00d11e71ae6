"""Minibatches: which items they hold, and how often."""

import pytest
import torch

from policy.ranks import Ranks
from policy.rl.effort import Effort, minibatches


def batches_of(is_valid, *, epochs=1.0, batch_size=5, n_items=2):
    return list(
        minibatches(
            is_valid,
            Ranks(),
            n_items=n_items,
            batch_size=batch_size,
            epochs=epochs,
            seed=0,
            purpose=0,
            iteration=0,
        )
    )


def test_each_item_of_a_valid_chunk_comes_once_an_epoch():
    is_valid = torch.tensor([[True, False, True], [False, True, True]])
    batches = batches_of(is_valid, epochs=2.0)
    seen = torch.cat([batch.own for batch in batches])
    items = [2 * chunk + number for chunk in (0, 2, 4, 5) for number in (0, 1)]
    for epoch in seen.split(len(items)):
        assert sorted(epoch.tolist()) == items
    assert [batch.count for batch in batches] == [5, 5, 5, 1]


def test_without_a_valid_chunk_there_is_no_minibatch():
    assert batches_of(torch.zeros(3, 2, dtype=torch.bool)) == []


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"epochs": 0.0}, {"max_kl": -1.0}])
def test_an_effort_of_nothing_is_refused(settings):
    with pytest.raises(ValueError, match=f"effort.{next(iter(settings))}"):
        Effort(**settings)
