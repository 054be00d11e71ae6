"""Copies with noise are found among many episodes, whatever else these have in common."""

from collections.abc import Callable

import numpy as np
import pytest

from data.checks.episode import Episode
from data.checks.near_copies import NEAR, NearCopies

N, LENGTH = 400, 50
Fields = dict[str, np.ndarray]


def walks(n: int) -> list[Fields]:
    rng = np.random.default_rng(0)
    return [
        {
            "state": np.cumsum(rng.normal(size=(LENGTH, 3)), axis=0),
            "action": rng.uniform(-1, 1, (LENGTH, 2)),
        }
        for _ in range(n)
    ]


def noisy(episode: Fields, ranges: Fields, size: float, seed: int) -> Fields:
    """An episode, each number of it as much as `size` of the range away."""
    rng = np.random.default_rng(seed)
    return {
        key: values + size * ranges[key] * rng.choice([-1, 1], values.shape)
        for key, values in episode.items()
    }


def ranges_of(episodes: list[Fields]) -> Fields:
    return {
        key: np.ptp(np.concatenate([each[key] for each in episodes]), axis=0) for key in episodes[0]
    }


def pairs(episodes: list[Fields]) -> list[tuple[int, int]]:
    ranges = ranges_of(episodes)
    near = NearCopies(list(ranges), lambda: ranges)
    read: Callable[[int], Episode] = lambda index: Episode(index, episodes[index], {})  # noqa: E731
    for index in range(len(episodes)):
        near.see(read(index))
    return near.pairs(read)


def test_copies_are_found_among_many_of_one_length():
    episodes = walks(N)
    ranges = ranges_of(episodes)
    episodes += [noisy(episodes[i], ranges, 0.9 * NEAR, i) for i in range(0, N, 4)]
    assert pairs(episodes) == [(i, N + i // 4) for i in range(0, N, 4)]


@pytest.mark.parametrize("constant", [0.0, 1e6, -1e12])
def test_what_all_have_in_common_hides_no_copy(constant):
    episodes = walks(N)
    for each in episodes:
        each["pose"] = np.full((LENGTH, 1), constant)
        each["state"][0] = 0
    episodes.append(noisy(episodes[7], ranges_of(episodes), 0.5 * NEAR, 0))
    assert pairs(episodes) == [(7, N)]


def test_of_several_copies_each_later_one_is_told_once():
    episodes = walks(20)
    ranges = ranges_of(episodes)
    episodes += [noisy(episodes[3], ranges, 0.3 * NEAR, seed) for seed in range(4)]
    found = pairs(episodes)
    assert [later for _, later in found] == [20, 21, 22, 23]
    assert all(earlier in (3, 20, 21, 22) for earlier, _ in found)


def test_what_is_farther_is_no_copy():
    episodes = walks(N)
    ranges = ranges_of(episodes)
    assert pairs([*episodes, noisy(episodes[0], ranges, 1.1 * NEAR, 0)]) == []
    assert pairs(episodes) == []
