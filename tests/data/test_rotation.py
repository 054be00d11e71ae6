"""Rotations: round trips, orthonormality, continuity, and known ones written out by hand."""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rotation import (
    RotationError,
    from_6d,
    from_matrix,
    is_angular,
    size_of,
    to_6d,
    to_matrix,
)

ALL = [
    "axis_angle",
    "quaternion_wxyz",
    "quaternion_xyzw",
    "matrix",
    "rotation_6d",
    "rotation_6d_rows",
    "euler_xyz",
    "euler_ZYX",
    "euler_zxz",
]
# About z by a quarter turn: x becomes y, y becomes -x.
QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
HALF = np.sqrt(0.5)

numbers = st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)


def rodrigues(vector: np.ndarray) -> np.ndarray:
    """The matrix of a rotation vector, by Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize(
    ("representation", "values"),
    [
        ("axis_angle", [0, 0, np.pi / 2]),
        ("quaternion_wxyz", [HALF, 0, 0, HALF]),
        ("quaternion_xyzw", [0, 0, HALF, HALF]),
        ("euler_xyz", [0, 0, np.pi / 2]),
        ("euler_ZYX", [np.pi / 2, 0, 0]),
        ("matrix", QUARTER.reshape(9)),
        ("rotation_6d", [0, 1, 0, -1, 0, 0]),
        ("rotation_6d_rows", [0, -1, 0, 1, 0, 0]),
    ],
)
def test_a_quarter_turn_about_z(representation, values):
    np.testing.assert_allclose(to_matrix(np.array(values), representation), QUARTER, atol=1e-12)
    np.testing.assert_allclose(from_matrix(QUARTER, representation), values, atol=1e-12)
    np.testing.assert_allclose(
        to_6d(np.array(values), representation), [0, 1, 0, -1, 0, 0], atol=1e-12
    )


def test_capital_euler_angles_are_about_the_axes_that_move_along():
    quarter = np.pi / 2
    # About z, then about the new x, which then points along the fixed y.
    moving = to_matrix(np.array([quarter, quarter, 0]), "euler_ZXY")
    fixed = to_matrix(np.array([quarter, quarter, 0]), "euler_zxy")
    about_x = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    np.testing.assert_allclose(moving, QUARTER @ about_x, atol=1e-12)
    np.testing.assert_allclose(fixed, about_x @ QUARTER, atol=1e-12)


@settings(deadline=None)
@given(vectors)
def test_axis_angle_is_rodrigues_formula(vector):
    np.testing.assert_allclose(to_matrix(vector, "axis_angle"), rodrigues(vector), atol=1e-9)


@settings(deadline=None)
@given(vectors, st.sampled_from(ALL))
def test_every_representation_comes_back_as_the_same_rotation(vector, representation):
    matrix = rodrigues(vector)
    there = from_matrix(matrix, representation)
    assert there.shape == (size_of(representation),)
    # 1e-6: the angles of a gimbal lock are known to the root of the precision alone.
    np.testing.assert_allclose(to_matrix(there, representation), matrix, atol=1e-6)
    np.testing.assert_allclose(
        to_matrix(from_6d(to_6d(there, representation), representation), representation),
        matrix,
        atol=1e-6,
    )


@settings(deadline=None)
@given(vectors)
def test_axis_angle_comes_back_up_to_whole_turns(vector):
    back = from_6d(to_6d(vector, "axis_angle"), "axis_angle")
    angle, axis = np.linalg.norm(vector), vector / np.linalg.norm(vector)
    turns = np.array([axis * (angle + k * 2 * np.pi) for k in (-2, -1, 0, 1)])
    assert np.abs(turns - back).max(axis=1).min() < 1e-6


@settings(deadline=None)
@given(vectors, st.sampled_from(["wxyz", "xyzw"]))
def test_quaternions_come_back_up_to_sign(vector, order):
    angle = np.linalg.norm(vector)
    real, imaginary = np.cos(angle / 2), np.sin(angle / 2) * vector / angle
    parts = [[real], imaginary] if order == "wxyz" else [imaginary, [real]]
    quaternion = np.concatenate(parts)
    back = from_6d(to_6d(quaternion, f"quaternion_{order}"), f"quaternion_{order}")
    assert min(np.abs(back - quaternion).max(), np.abs(back + quaternion).max()) < 1e-6
    assert back[0 if order == "wxyz" else 3] >= 0
    np.testing.assert_allclose(
        to_6d(-quaternion, f"quaternion_{order}"),
        to_6d(quaternion, f"quaternion_{order}"),
        atol=1e-12,
    )


@settings(deadline=None)
@given(st.tuples(vectors, vectors).filter(lambda p: np.linalg.norm(np.cross(*p)) > 1e-2))
def test_any_two_vectors_become_a_rotation(pair):
    matrix = to_matrix(np.concatenate(pair), "rotation_6d")
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(matrix[:, 0], pair[0] / np.linalg.norm(pair[0]), atol=1e-12)
    assert matrix[:, 1] @ pair[1] > 0


@settings(deadline=None)
@given(vectors, vectors, st.floats(1e-6, 0.5))
def test_six_numbers_never_jump_where_the_rotation_does_not(vector, axis, angle):
    matrix = rodrigues(vector)
    turned = rodrigues(angle * axis / np.linalg.norm(axis)) @ matrix
    step = np.linalg.norm(from_matrix(turned, "rotation_6d") - from_matrix(matrix, "rotation_6d"))
    assert step <= np.sqrt(2) * angle + 1e-9  # Each of two unit columns moves by at most the angle.


def test_axis_angle_does_jump_at_half_a_turn():
    before, after = (rodrigues(np.array([0, 0, np.pi + e])) for e in (-1e-3, 1e-3))
    jump = from_matrix(before, "axis_angle") - from_matrix(after, "axis_angle")
    assert np.linalg.norm(jump) > 6


def test_leading_dimensions_stay():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 5, 3))
    six = to_6d(vectors, "axis_angle")
    assert six.shape == (2, 5, 6)
    np.testing.assert_allclose(six[1, 3], to_6d(vectors[1, 3], "axis_angle"))
    assert from_6d(six, "matrix").shape == (2, 5, 9)
    assert to_6d(np.empty((0, 3)), "axis_angle").shape == (0, 6)


def test_stored_numbers_may_miss_a_little():
    quaternion = np.array([HALF, 0, 0, HALF]) * 1.005
    np.testing.assert_allclose(to_matrix(quaternion, "quaternion_wxyz"), QUARTER, atol=1e-12)
    matrix = to_matrix((QUARTER + 1e-3).reshape(9), "matrix")
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)


def test_what_is_measured_in_radians():
    assert {name for name in ALL if is_angular(name)} == {
        "axis_angle",
        "euler_xyz",
        "euler_ZYX",
        "euler_zxz",
    }


@pytest.mark.parametrize("name", ["quaternion", "euler_xxy", "euler_xyy", "euler_xyZ", "", "6d"])
def test_a_representation_that_does_not_exist(name):
    with pytest.raises(RotationError, match="choose one of axis_angle"):
        size_of(name)


@pytest.mark.parametrize(
    ("values", "representation", "complaint"),
    [
        (np.zeros(4), "axis_angle", r"has 3 elements, the values have the shape \(4,\)"),
        (np.float64(1), "axis_angle", "has 3 elements"),
        (np.full(3, np.nan), "axis_angle", "not finite"),
        (np.zeros(4), "quaternion_wxyz", "misses 1 by 1"),
        (np.array([1, 1, 0, 0]), "quaternion_xyzw", "misses 1 by 0.414"),
        (np.zeros(6), "rotation_6d", "zero or parallel"),
        (np.array([1, 0, 0, 2, 0, 0]), "rotation_6d_rows", "zero or parallel"),
        (2 * np.eye(3).reshape(9), "matrix", "misses being a rotation by 3"),
        (np.diag([1, 1, -1]).reshape(9), "matrix", "mirrors"),
    ],
)
def test_numbers_that_are_no_rotation(values, representation, complaint):
    with pytest.raises(RotationError, match=complaint):
        to_6d(values, representation)


def test_matrices_that_are_no_rotation():
    with pytest.raises(RotationError, match="shape"):
        from_matrix(np.eye(4), "matrix")
    with pytest.raises(RotationError, match="not finite"):
        from_matrix(np.full((3, 3), np.inf), "axis_angle")


def test_without_scipy_the_mend_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install"):
        to_6d(np.zeros(3), "axis_angle")
    to_6d(np.array([1.0, 0, 0, 0, 1, 0]), "rotation_6d")
