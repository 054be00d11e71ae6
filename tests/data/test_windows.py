"""Windows: hand-written tables at the edges, and a slow loop over everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.types import Horizons
from data.windows import action_rows, gather, observed_rows, window_table


def rows(ends, horizons):
    table = window_table(np.array(ends), horizons)
    actions, is_pad = action_rows(table, horizons.pred, past=horizons.past)
    return observed_rows(table, horizons.obs).tolist(), actions.tolist(), is_pad.tolist(), table


def test_edges_of_one_episode():
    observed, actions, is_pad, table = rows([5], Horizons(obs=2, pred=4, action=2))
    assert observed == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert actions == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4]]
    assert is_pad == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert table.short_episodes == 0


def test_past_actions_come_first_and_repeat_the_first_before_the_episode():
    _, actions, is_pad, _ = rows([3], Horizons(obs=1, pred=4, action=1, past=2))
    assert actions == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 2]]
    assert is_pad == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_windows_do_not_leave_their_episode():
    observed, actions, is_pad, _ = rows([2, 4], Horizons(obs=3, pred=3, action=1))
    assert observed == [[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 2, 3]]
    assert actions == [[0, 1, 1], [1, 1, 1], [2, 3, 3], [3, 3, 3]]
    assert is_pad == [[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize(("length", "n_windows"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_an_episode_shorter_than_the_executed_actions_is_counted(length, n_windows):
    table = window_table(np.array([length]), Horizons(obs=1, pred=4, action=3))
    assert len(table) == n_windows
    assert table.short_episodes == int(n_windows == 0)


def test_a_short_episode_between_long_ones():
    observed, actions, _, table = rows([3, 4, 7], Horizons(obs=1, pred=2, action=2))
    assert observed == [[0], [1], [4], [5]]
    assert actions == [[0, 1], [1, 2], [4, 5], [5, 6]]
    assert table.short_episodes == 1


def test_no_episodes():
    assert len(window_table(np.array([], np.int64), Horizons(1, 1, 1))) == 0


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    to=st.integers(1, 4),
    tp=st.integers(1, 8),
    ta=st.integers(1, 8),
)
def test_against_a_loop(lengths, to, tp, ta):
    ta = min(ta, tp)
    observed, actions, is_pad, table = rows(np.cumsum(lengths), Horizons(to, tp, ta))
    expected, start = [], 0
    for length in lengths:
        for t in range(length - ta + 1):
            seen = [start + max(t - back, 0) for back in range(to - 1, -1, -1)]
            acted = [start + min(t + ahead, length - 1) for ahead in range(tp)]
            expected.append((seen, acted, [t + ahead >= length for ahead in range(tp)]))
        start += length
    assert list(zip(observed, actions, is_pad, strict=True)) == expected
    assert not any(any(pad[:ta]) for pad in is_pad)
    assert table.short_episodes == sum(length < ta for length in lengths)


def test_gather_copies_whole_steps():
    field = torch.arange(24.0).reshape(4, 3, 2)
    index = torch.tensor([[0, 3], [1, 1]])
    gathered = gather(field, index)
    assert torch.equal(gathered, field[index])
    gathered.zero_()
    assert field.sum() == 276
