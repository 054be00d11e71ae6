"""Shortest way of the pusher round the block, on a visibility graph.

The block is two rectangles in its own frame, [n, 2, 2] as rectangle x (low, high) x (x, y) [m],
grown by the clearance that the pusher's centre keeps. A shortest way among such obstacles turns
only at their corners.
"""

import heapq
import math

import numpy as np

from envs.push_t.geometry import corners, to_block, to_world

TINY = 1e-9
CORNER_GAP = 1e-3  # m, by which a way passes a corner


def way_round(
    start: np.ndarray,
    end: np.ndarray,
    pose: np.ndarray,
    *,
    obstacles: np.ndarray,
    limit: float,
) -> list[np.ndarray] | None:
    """The points [2] of the shortest way from start to end, without start; None if there is none.

    Args:
        start: where the pusher is [m]; within an obstacle, where it touches the block, it leaves
            that by the shortest way first.
        end: [2] m.
        pose: of the block.
        obstacles: [n, 2, 2] rectangles in the block's frame, already grown.
        limit: largest |x| and |y| of the pusher [m].
    """
    inside = to_block(start, pose)
    outside = way_out(inside, obstacles, pose=pose, limit=limit)
    if outside is None:
        return None
    nodes = np.concatenate([corners(r) for r in inflated(obstacles, CORNER_GAP)])
    usable = ~is_inside(nodes, obstacles) & is_allowed(nodes, pose, limit)
    points = np.stack([outside, *nodes[usable], to_block(end, pose)])
    way = shortest_way(points, obstacles)
    if way is None:
        return None
    if outside is inside:
        way = way[1:]
    return [to_world(points[i], pose) for i in way]


def shortest_way(points: np.ndarray, obstacles: np.ndarray) -> list[int] | None:
    """Indices of the shortest way from the first to the last of the points [n, 2] (Dijkstra)."""
    last = len(points) - 1
    length, before, done = {0: 0.0}, {}, set()
    queue = [(0.0, 0)]
    while queue:
        so_far, i = heapq.heappop(queue)
        if i == last:
            way = [last]
            while way[-1] != 0:
                way.append(before[way[-1]])
            return way[::-1]
        if i in done:
            continue
        done.add(i)
        for j in range(1, last + 1):
            total = so_far + math.dist(points[i], points[j])
            if total < length.get(j, math.inf) and not is_crossed(points[i], points[j], obstacles):
                length[j], before[j] = total, i
                heapq.heappush(queue, (total, j))
    return None


def way_out(
    start: np.ndarray, obstacles: np.ndarray, *, pose: np.ndarray, limit: float
) -> np.ndarray | None:
    """The nearest point [2] outside the obstacles, `start` itself if it is; None if walled in."""
    if not is_inside(start, obstacles):
        return start
    sides = np.concatenate([_feet(start, r) for r in inflated(obstacles, TINY)])
    sides = sides[~is_inside(sides, obstacles) & is_allowed(sides, pose, limit)]
    if not len(sides):
        return None
    return sides[np.linalg.norm(sides - start, axis=1).argmin()]


def inflated(rectangles: np.ndarray, margin: float) -> np.ndarray:
    """Rectangles [n, 2, 2] grown by a margin [m] on each side."""
    return rectangles + margin * np.array([[-1.0, -1.0], [1.0, 1.0]])


def is_inside(points: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] are within any of the rectangles, bool [...]."""
    p = points[..., None, :]
    return np.asarray(((p > rectangles[:, 0]) & (p < rectangles[:, 1])).all(-1).any(-1))


def is_allowed(points: np.ndarray, pose: np.ndarray, limit: float) -> np.ndarray:
    """Whether points [..., 2] of the block's frame are within the walls, bool [...]."""
    return np.asarray((np.abs(to_world(points, pose)) <= limit).all(-1))


def is_crossed(start: np.ndarray, end: np.ndarray, rectangles: np.ndarray) -> bool:
    """Whether the segment from start [2] to end [2] runs through any of the rectangles."""
    step = end - start
    step = np.where(np.abs(step) < TINY, TINY, step)
    at = (rectangles - start) / step  # Where the segment meets the lines of the sides, 0..1.
    enters, leaves = at.min(1).max(-1), at.max(1).min(-1)
    return bool((np.maximum(enters, 0.0) + TINY < np.minimum(leaves, 1.0)).any())


def _feet(point: np.ndarray, rectangle: np.ndarray) -> np.ndarray:
    """The nearest points [4, 2] to a point inside a rectangle on its four sides."""
    (left, bottom), (right, top) = rectangle
    x, y = point
    return np.array([[left, y], [right, y], [x, bottom], [x, top]])
