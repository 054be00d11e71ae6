"""What a picture from above shows: shapes read off a simulation, a rollout, sampled chunks.

Works for every environment: without a MuJoCo model there are no shapes.

Shape legend: `S` samples, `T` steps, `Tp` predicted steps, `Da` action size.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

BOX = int(mujoco.mjtGeom.mjGEOM_BOX)
# Kinds of geoms that are drawn -> which of their sizes is half the height.
HALF_HEIGHT = {
    int(mujoco.mjtGeom.mjGEOM_SPHERE): 0,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): 1,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): 1,
    BOX: 2,
}
ROBOT_JOINTS = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))


@dataclass(frozen=True)
class Shape:
    """Outline of one geom from above.

    Args:
        name: of the geom.
        centre: (x, y) [m].
        half_size: (x, y) [m]; equal for a disc.
        angle: about z [rad].
        is_round: a disc, else a box.
        top: height, to draw from the bottom up [m].
        colour: in hexadecimal, "#rrggbb".
    """

    name: str
    centre: tuple[float, float]
    half_size: tuple[float, float]
    angle: float
    is_round: bool
    top: float
    colour: str


@dataclass(frozen=True)
class Rollout:
    """What was seen and commanded in one episode.

    Args:
        seed: of the start.
        observation: field name -> [T, ...].
        action: [T, Da].
        success: whether the task was done.
        mode: name of the way taken, "" where the task has none.
    """

    seed: int
    observation: Mapping[str, np.ndarray]
    action: np.ndarray
    success: bool
    mode: str = ""


@dataclass(frozen=True)
class Fan:
    """Chunks sampled at one moment, the same observation for all.

    Args:
        seed: of the start.
        tick: the moment.
        chunks: [S, Tp, Da].
        shapes: the scene at that moment.
    """

    seed: int
    tick: int
    chunks: np.ndarray
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Sketch:
    """One episode, ready to be drawn.

    Args:
        rollout: what was seen and commanded.
        shapes: the scene at the start.
        fan: chunks sampled at the most undecided moment.
    """

    rollout: Rollout
    shapes: Sequence[Shape]
    fan: Fan


def scene_shapes(env: gym.Env) -> list[Shape]:
    """What lies in the scene as it stands, the robot left out; empty without a MuJoCo model.

    The robot is what hangs on hinges and slides; everything else is fixed or moves freely.
    """
    model: Any = getattr(env.unwrapped, "model", None)
    state: Any = getattr(env.unwrapped, "data", None)
    if not isinstance(model, mujoco.MjModel) or not isinstance(state, mujoco.MjData):
        return []
    shapes = []
    for index in range(model.ngeom):
        geom = model.geom(index)
        kind = int(geom.type[0])
        if kind not in HALF_HEIGHT or _is_robot(model, int(geom.bodyid[0])):
            continue
        is_round = kind != BOX
        placed = state.geom(index)
        (x, y, z), rotation = placed.xpos, placed.xmat.reshape(3, 3)
        size = geom.size
        material = int(geom.matid[0])
        rgba = geom.rgba if material < 0 else model.mat_rgba[material]
        shapes.append(
            Shape(
                name=geom.name,
                centre=(float(x), float(y)),
                half_size=(float(size[0]), float(size[0] if is_round else size[1])),
                angle=math.atan2(rotation[1, 0], rotation[0, 0]),
                is_round=is_round,
                top=float(z + size[HALF_HEIGHT[kind]]),
                colour="#" + "".join(f"{round(255 * float(c)):02x}" for c in rgba[:3]),
            )
        )
    return sorted(shapes, key=lambda shape: shape.top)


def _is_robot(model: mujoco.MjModel, body: int) -> bool:
    while body > 0:
        joints = range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body])
        if any(int(model.jnt_type[joint]) in ROBOT_JOINTS for joint in joints):
            return True
        body = int(model.body_parentid[body])
    return False


def split_by_widest_gap(paths: np.ndarray) -> np.ndarray:
    """Which of two groups each path [S >= 2, Tp, 2] belongs to: bool [S], true further to +y.

    Paths are projected on the direction in which they differ most (first principal component);
    the widest gap between neighbours parts them.
    """
    flat = paths.reshape(len(paths), -1)
    direction = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][0]
    if direction.reshape(-1, 2)[:, 1].sum() < 0:  # The sign of a singular vector is arbitrary.
        direction = -direction
    place = flat @ direction
    order = np.sort(place)
    gap = int(np.argmax(np.diff(order)))
    return place > (order[gap] + order[gap + 1]) / 2


def spread(paths: np.ndarray) -> float:
    """Root mean square distance of paths [S, Tp, 2] from their mean path."""
    return float(np.sqrt(((paths - paths.mean(axis=0)) ** 2).sum(axis=-1).mean()))
