"""Ways round the block: shortest, never through it, none where there is none."""

import itertools

import numpy as np
import pytest

from envs.push_t.path import CORNER_GAP, is_crossed, is_inside, way_round

HOME = np.zeros(3)
BOX = np.array([[[-1.0, -1.0], [1.0, 1.0]]])
T = np.array([[[-0.08, -0.02], [0.08, 0.05]], [[-0.035, -0.11], [0.035, 0.02]]])


def length(points):
    return np.linalg.norm(np.diff(points, axis=0), axis=1).sum()


def test_free_way_is_straight():
    start, end = np.array([-2.0, 1.5]), np.array([2.0, 1.5])
    way = way_round(start, end, HOME, obstacles=BOX, limit=5.0)
    assert way is not None
    np.testing.assert_allclose(way, [end])


def test_way_round_a_box_has_the_known_length():
    start, end = np.array([-2.0, 0.0]), np.array([2.0, 0.0])
    way = way_round(start, end, HOME, obstacles=BOX, limit=5.0)
    assert way is not None
    # Along two corners of the box, each passed at CORNER_GAP.
    reach = 1 + CORNER_GAP
    assert length([start, *way]) == pytest.approx(2 * np.hypot(2 - reach, reach) + 2 * reach)


def test_walls_can_close_the_way():
    start, end = np.array([-2.0, 0.0]), np.array([2.0, 0.0])
    beside = np.array([0.0, 4.0, 0.0])  # Above the middle: one side of the box is the shorter way.
    way = way_round(start, end, beside, obstacles=5 * BOX, limit=3.0)
    assert way is None
    way = way_round(start, end, np.array([0.0, 0.5, 0.0]), obstacles=BOX, limit=1.2)
    assert way is not None
    assert all(y < 0 for _, y in way[:-1])  # Above there is a wall.


def test_way_out_of_touch_is_the_shortest():
    way = way_round(np.array([-0.9, 0.2]), np.array([-2.0, 0.2]), HOME, obstacles=BOX, limit=5.0)
    assert way is not None
    np.testing.assert_allclose(way, [[-1.0, 0.2], [-2.0, 0.2]], atol=1e-6)


def test_no_way_out_between_block_and_walls():
    inside, end = np.array([0.0, 0.0]), np.array([2.0, 0.0])
    assert way_round(inside, end, HOME, obstacles=BOX, limit=0.5) is None


def test_touching_a_side_is_not_crossing():
    assert not is_crossed(np.array([-2.0, 1.0]), np.array([2.0, 1.0]), BOX)
    assert is_crossed(np.array([-2.0, 0.99]), np.array([2.0, 0.99]), BOX)
    assert not is_crossed(np.array([-2.0, 0.0]), np.array([-1.5, 0.0]), BOX)  # Ends before it.


def test_no_way_runs_through_the_block():
    rng = np.random.default_rng(0)
    for _ in range(60):
        pose = rng.uniform([-0.1, -0.1, -np.pi], [0.1, 0.1, np.pi])
        start, end = rng.uniform(-0.22, 0.22, (2, 2))
        c, s = np.cos(pose[2]), np.sin(pose[2])
        turn = np.array([[c, -s], [s, c]])  # World to block is (p - origin) times this.
        if is_inside(np.stack([start - pose[:2], end - pose[:2]]) @ turn, T).any():
            continue
        way = way_round(start, end, pose, obstacles=T, limit=0.235)
        assert way is not None
        points = np.stack([start, *way])
        for a, b in itertools.pairwise(points):
            dense = a + np.linspace(0, 1, 100)[:, None] * (b - a)
            assert not is_inside((dense - pose[:2]) @ turn, T).any()
            assert np.abs(dense).max() <= 0.235
        np.testing.assert_allclose(points[-1], end)
