"""Rotations from one representation into another, by way of matrices.

A network learns a rotation best as six numbers, the first two columns of its matrix (Zhou et al.,
"On the Continuity of Rotation Representations in Neural Networks", 2019, section 4.2.2): unlike
angles, rotation vectors and quaternions these never jump where the rotation does not.

    axis_angle        3  unit axis times angle [rad]
    quaternion_wxyz   4  unit quaternion, real part first (MuJoCo, Isaac)
    quaternion_xyzw   4  unit quaternion, real part last (ROS, scipy, robosuite)
    euler_XYZ         3  angles [rad] about the axes named, in any order: capital letters about the
                         axes that move along (intrinsic), small ones about the fixed axes
    matrix            9  R[0,0], R[0,1], ... row by row
    rotation_6d       6  R[0,0], R[1,0], R[2,0], R[0,1], R[1,1], R[2,1]: the first column, then the
                         second
    rotation_6d_rows  6  R[0,0], R[0,1], R[0,2], R[1,0], R[1,1], R[1,2]: as pytorch3d and Diffusion
                         Policy have it; the columns of the inverse rotation

Shape legend: `...` any leading dimensions.
"""

import re

import numpy as np

SIZES = {
    "axis_angle": 3,
    "quaternion_wxyz": 4,
    "quaternion_xyzw": 4,
    "matrix": 9,
    "rotation_6d": 6,
    "rotation_6d_rows": 6,
}
EULER = re.compile(r"euler_([xyz]{3}|[XYZ]{3})")
ANGULAR = ("axis_angle", "euler")  # what is measured in radians
TOLERANCE = 1e-2  # by which a stored quaternion or matrix may miss being of unit length


class RotationError(ValueError):
    """Numbers that are no rotation, or a representation that does not exist."""


def size_of(representation: str) -> int:
    """Number of elements of a representation.

    Raises:
        RotationError: there is no such representation.
    """
    if representation in SIZES:
        return SIZES[representation]
    match = EULER.fullmatch(representation)
    letters = match[1].lower() if match else ""
    if not letters or letters[0] == letters[1] or letters[1] == letters[2]:
        raise RotationError(
            f"rotation is {representation!r}, choose one of {', '.join(SIZES)}, or euler_XYZ with "
            f"the axes in their order (euler_xyz: about fixed axes)"
        )
    return 3


def is_angular(representation: str) -> bool:
    """Whether the elements of a representation are angles."""
    return representation.startswith(ANGULAR)


def to_6d(values: np.ndarray, representation: str) -> np.ndarray:
    """[..., 6] the first two columns of the matrices of rotations.

    Args:
        values: [..., size_of(representation)].
        representation: of the values.

    Raises:
        RotationError: no such representation, or a value is no rotation.
    """
    return from_matrix(to_matrix(values, representation), "rotation_6d")


def from_6d(values: np.ndarray, representation: str) -> np.ndarray:
    """[..., size_of(representation)] rotations given by the first two columns of their matrices.

    The columns are made orthonormal first (Gram-Schmidt), so a network's output may be given.

    Args:
        values: [..., 6].
        representation: of the result.

    Raises:
        RotationError: no such representation, or the columns are parallel.
    """
    return from_matrix(to_matrix(values, "rotation_6d"), representation)


def to_matrix(values: np.ndarray, representation: str) -> np.ndarray:
    """[..., 3, 3] float64 matrices of rotations; see the top of this file.

    Raises:
        RotationError: no such representation, or a value is no rotation.
    """
    values = np.asarray(values, np.float64)
    if not values.shape or values.shape[-1] != size_of(representation):
        raise RotationError(
            f"{representation} has {size_of(representation)} elements, the values have the shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise RotationError(f"a rotation given as {representation} is not finite")
    if representation.startswith("rotation_6d"):
        columns = _orthonormal(values.reshape(*values.shape[:-1], 2, 3))
        return columns if representation.endswith("rows") else np.swapaxes(columns, -1, -2)
    flat = values.reshape(-1, values.shape[-1])
    if representation == "matrix":
        matrices = _checked(flat.reshape(-1, 3, 3))
    elif representation == "axis_angle":
        matrices = _scipy().from_rotvec(flat).as_matrix()
    elif representation.startswith("quaternion"):
        _check_unit(np.linalg.norm(flat, axis=-1), "the length of a quaternion")
        real_last = flat if representation.endswith("xyzw") else np.roll(flat, -1, axis=-1)
        matrices = _scipy().from_quat(real_last).as_matrix()
    else:
        matrices = _scipy().from_euler(representation.removeprefix("euler_"), flat).as_matrix()
    return matrices.reshape(*values.shape[:-1], 3, 3)


def from_matrix(matrix: np.ndarray, representation: str) -> np.ndarray:
    """[..., size_of(representation)] float64 of rotation matrices [..., 3, 3].

    A quaternion's real part is not negative, an angle about an axis is at most pi. Of the angles of
    a gimbal lock, where only their sum means something, the last is 0.

    Raises:
        RotationError: no such representation, or a matrix is no rotation.
    """
    size = size_of(representation)
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[-2:] != (3, 3):
        raise RotationError(f"a matrix has the shape {matrix.shape}, it must be [..., 3, 3]")
    flat = _checked(matrix.reshape(-1, 3, 3))
    if representation == "matrix":
        found = flat
    elif representation == "rotation_6d":
        found = np.swapaxes(flat[:, :, :2], 1, 2)
    elif representation == "rotation_6d_rows":
        found = flat[:, :2]
    elif representation == "axis_angle":
        found = _scipy().from_matrix(flat).as_rotvec()
    elif representation.startswith("quaternion"):
        real_last = _scipy().from_matrix(flat).as_quat(canonical=True)
        found = real_last if representation.endswith("xyzw") else np.roll(real_last, 1, axis=-1)
    else:
        found = _euler(flat, representation.removeprefix("euler_"))
    return found.reshape(*matrix.shape[:-2], size)


def _orthonormal(pairs: np.ndarray) -> np.ndarray:
    """[..., 3, 3] orthonormal right-handed triples of rows, from pairs [..., 2, 3]."""
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    first = first / _length(first)
    second = second - (first * second).sum(-1, keepdims=True) * first
    second = second / _length(second)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def _length(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if np.any(length < 1e-6):
        raise RotationError("the two vectors of a rotation_6d are zero or parallel: no rotation")
    return length


def _checked(matrices: np.ndarray) -> np.ndarray:
    """The matrices [n, 3, 3], made orthonormal, if they all but are.

    Raises:
        RotationError: one is not orthonormal, or mirrors.
    """
    if not np.isfinite(matrices).all():
        raise RotationError("a rotation matrix is not finite")
    miss = np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max(initial=0)
    if miss > TOLERANCE or np.any(np.linalg.det(matrices) < 0):
        raise RotationError(
            f"a matrix misses being a rotation by {miss:.3g} (at most {TOLERANCE} is taken), or "
            f"mirrors"
        )
    columns = np.swapaxes(matrices, 1, 2)[:, :2]
    return np.swapaxes(_orthonormal(columns), 1, 2)


def _check_unit(lengths: np.ndarray, what: str) -> None:
    miss = np.abs(lengths - 1).max(initial=0)
    if miss > TOLERANCE:
        raise RotationError(
            f"{what} misses 1 by {miss:.3g}, at most {TOLERANCE} is taken: these numbers are no "
            f"rotation"
        )


def _euler(matrices: np.ndarray, axes: str) -> np.ndarray:
    import warnings

    with warnings.catch_warnings():  # scipy warns of gimbal locks, the docstring has said it.
        warnings.simplefilter("ignore", UserWarning)
        return _scipy().from_matrix(matrices).as_euler(axes)


def _scipy() -> type:
    try:
        from scipy.spatial.transform import Rotation
    except ImportError as error:
        raise ImportError(
            "rotations other than matrix and rotation_6d need scipy: pip install "
            "-e '.[import]', or pip install scipy"
        ) from error
    return Rotation
