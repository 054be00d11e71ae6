"""Order of the windows and random streams of a training run."""

import pytest
import torch

from policy.trainer import NOISE, ORDER, WindowOrder, seeded


def test_an_epoch_visits_each_window_at_most_once():
    order = WindowOrder(10, 3, seed=0)
    assert order.steps_per_epoch == 3
    visited = torch.cat([order.indices(step) for step in range(3)])
    assert len(visited.unique()) == 9
    assert 0 <= int(visited.min()) <= int(visited.max()) < 10


def test_the_order_follows_from_seed_and_step_alone():
    straight = WindowOrder(100, 8, seed=3)
    expected = [straight.indices(step) for step in range(40)]
    resumed = WindowOrder(100, 8, seed=3)
    assert all(torch.equal(resumed.indices(step), expected[step]) for step in (39, 2, 15, 16))
    other = WindowOrder(100, 8, seed=4)
    assert not torch.equal(other.indices(0), expected[0])


def test_epochs_differ():
    order = WindowOrder(100, 100, seed=0)
    assert not torch.equal(order.indices(0), order.indices(1))
    assert torch.equal(order.indices(0).sort().values, torch.arange(100))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_an_impossible_batch_size_names_the_limit(batch_size):
    with pytest.raises(ValueError, match="10 windows"):
        WindowOrder(10, batch_size, seed=0)


def test_random_streams_are_all_different():
    def draw(seed: int, purpose: int, count: int) -> float:
        generator = seeded(seed, purpose=purpose, count=count, device="cpu")
        return float(torch.rand((), generator=generator))

    draws = {draw(s, p, c) for s in range(4) for p in (ORDER, NOISE) for c in range(50)}
    assert len(draws) == 4 * 2 * 50
