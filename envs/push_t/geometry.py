"""Plane geometry of the T: frames and coverage of the target.

A pose is (x, y, angle) [m, m, rad]. The T is two rectangles that share an edge, given in its own
frame as lower and upper corner: `rectangles` [2, 2, 2] is rectangle x (low, high) x (x, y) [m].
"""

import math

import numpy as np


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [..., 2] of the block's frame in the world's frame."""
    return points @ rotation(pose[2]).T + pose[:2]


def to_block(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [..., 2] of the world's frame in the block's frame."""
    return (points - pose[:2]) @ rotation(pose[2])


def rotation(angle: float) -> np.ndarray:
    """The matrix [2, 2] that turns a vector by an angle [rad]."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def corners(rectangle: np.ndarray) -> np.ndarray:
    """Corners [4, 2] of a rectangle [2, 2], counter-clockwise."""
    (left, bottom), (right, top) = rectangle
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


def coverage(pose: np.ndarray, target: np.ndarray, rectangles: np.ndarray) -> float:
    """Fraction 0..1 of the T at `target` that is covered by the T at `pose`."""
    covered = [to_world(corners(rectangle), pose) for rectangle in rectangles]
    wanted = [to_world(corners(rectangle), target) for rectangle in rectangles]
    shared = sum(area(clip(a, b)) for a in covered for b in wanted)
    return shared / sum(area(polygon) for polygon in wanted)


def area(polygon: np.ndarray) -> float:
    """Area of a counter-clockwise polygon [n, 2], by the shoelace formula; 0 if n < 3."""
    if len(polygon) < 3:
        return 0.0
    x, y = np.asarray(polygon).T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def clip(polygon: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The part [n, 2] of a polygon inside a convex counter-clockwise window.

    Source: Sutherland and Hodgman, "Reentrant polygon clipping", CACM 17(1), 1974.
    """
    # Plain numbers: polygons this small are faster without arrays.
    points = [(float(x), float(y)) for x, y in polygon]
    edges = [(float(x), float(y)) for x, y in window]
    for (ax, ay), (bx, by) in zip(edges, edges[1:] + edges[:1], strict=True):
        # Twice the signed area of edge and point: positive to the left, which is inside.
        side = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in points]
        kept = []
        for i, (x, y) in enumerate(points):
            (x0, y0), side0 = points[i - 1], side[i - 1]
            if (side0 < 0) != (side[i] < 0):
                t = side0 / (side0 - side[i])
                kept.append((x0 + t * (x - x0), y0 + t * (y - y0)))
            if side[i] >= 0:
                kept.append((x, y))
        points = kept
    return np.array(points).reshape(-1, 2)
