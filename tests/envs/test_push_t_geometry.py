"""Plane geometry of the T: closed forms, symmetries, and another implementation."""

import numpy as np
import pytest

from envs.push_t.geometry import area, clip, corners, coverage, to_block, to_world

# A T of the published proportions: bar 0.12 m x 0.03 m, stem 0.03 m x 0.09 m.
T = np.array([[[-0.06, 0.0], [0.06, 0.03]], [[-0.015, -0.09], [0.015, 0.0]]])
AREA = 0.12 * 0.03 + 0.03 * 0.09
HOME = np.zeros(3)
SQUARE = corners(np.array([[0.0, 0.0], [1.0, 1.0]]))


def test_frames_are_inverse_and_quarter_turn_is_known():
    pose = np.array([1.0, 2.0, np.pi / 2])
    np.testing.assert_allclose(to_world(np.array([3.0, 0.0]), pose), [1.0, 5.0])
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(to_block(to_world(points, pose), pose), points, atol=1e-12)


def test_area_of_known_polygons():
    assert area(SQUARE) == 1.0
    assert area(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])) == 1.0
    assert area(SQUARE[::-1]) == -1.0  # Clockwise.
    assert area(SQUARE[:2]) == 0.0
    assert area(np.empty((0, 2))) == 0.0


def test_clip_of_shifted_square():
    assert area(clip(SQUARE + np.array([0.25, 0.5]), SQUARE)) == pytest.approx(0.75 * 0.5)
    assert area(clip(SQUARE * 0.5 + 0.25, SQUARE)) == pytest.approx(0.25)  # Inside.
    assert len(clip(SQUARE + 2.0, SQUARE)) == 0  # Outside.


def test_clip_of_turned_square_is_an_octagon():
    half = to_world(SQUARE - 0.5, np.array([0.0, 0.0, np.pi / 4]))
    # Two unit squares at 45 degrees share a regular octagon of inner radius 1/2.
    assert area(clip(half, SQUARE - 0.5)) == pytest.approx(8 * 0.25 * np.tan(np.pi / 8))


def test_coverage_at_and_far_from_the_target():
    assert coverage(HOME, HOME, T) == pytest.approx(1.0)
    assert coverage(np.array([0.0, 0.0, 2 * np.pi]), HOME, T) == pytest.approx(1.0)
    assert coverage(np.array([0.5, 0.0, 0.0]), HOME, T) == 0.0


@pytest.mark.parametrize("shift", [0.001, 0.01, 0.03])
def test_coverage_of_shifted_t(shift):
    # Sideways each row loses `shift`; down the bar loses it, and the stem gains what it loses.
    expected = 1 - 0.12 * shift / AREA
    assert coverage(np.array([shift, 0.0, 0.0]), HOME, T) == pytest.approx(expected)
    assert coverage(np.array([0.0, -shift, 0.0]), HOME, T) == pytest.approx(expected)


def test_coverage_does_not_depend_on_the_frame_nor_on_the_order():
    rng = np.random.default_rng(1)
    for _ in range(20):
        near = rng.normal(0, [0.03, 0.03, 1.0])
        moved = np.array([0.4, -0.3, 0.7])
        origin = to_world(near[:2], moved)
        pose = np.array([*origin, near[2] + moved[2]])
        value = coverage(near, HOME, T)
        assert coverage(HOME, near, T) == pytest.approx(value)
        assert coverage(pose, moved, T) == pytest.approx(value)
        assert 0 <= value <= 1


def test_coverage_agrees_with_shapely():
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(2)

    def shape(pose):
        return shapely.unary_union([shapely.Polygon(to_world(corners(r), pose)) for r in T])

    for _ in range(50):
        pose = rng.normal(0, [0.03, 0.03, 1.5])
        expected = shape(pose).intersection(shape(HOME)).area / AREA
        assert coverage(pose, HOME, T) == pytest.approx(expected, abs=1e-9)
