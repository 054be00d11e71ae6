"""Scenes from above: shapes as in the model, places where they belong, groups parted at the gap."""

import re
from types import SimpleNamespace
from typing import Any, cast

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from policy.scene import Fan, Rollout, Shape, scene_shapes, split_by_widest_gap, spread
from policy.topdown import View, draw_fans, moving_picture

XML = """
<mujoco>
  <asset><material name="red" rgba="1 0 0 1"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <geom name="table" type="box" pos="0 0 -.02" size=".4 .3 .02"/>
    <geom name="pillar" type="cylinder" pos=".1 .2 .15" size=".04 .15" material="red"/>
    <body name="cube" pos="-.2 .1 .02" euler="0 0 30">
      <freejoint/><geom name="cube" type="box" size=".02 .03 .02"/>
    </body>
    <body name="arm">
      <joint type="hinge" axis="0 0 1"/><geom name="link" type="box" size=".1 .1 .1"/>
      <body name="hand"><geom name="hand" type="sphere" size=".1"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def env_of(model: Any = None, state: Any = None) -> gym.Env:
    return cast(gym.Env, SimpleNamespace(unwrapped=SimpleNamespace(model=model, data=state)))


def square(x, y, *, half=0.1, top=0.1, name="square"):
    return Shape(name, (x, y), (half, half), 0.0, False, top, "#112233")


def two_groups(n_left, n_right, *, noise=0.01):
    """Paths from one place to another round either side of an obstacle; y > 0 first."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 12)
    side = np.repeat([1.0, -1.0], [n_left, n_right])[:, None]
    y = 0.2 * side * np.sin(np.pi * t) + rng.normal(0, noise, (n_left + n_right, 1)) * t
    return np.stack([np.broadcast_to(t, y.shape), y], axis=-1)


def test_shapes_are_those_of_the_model_without_robot_and_floor():
    model = mujoco.MjModel.from_xml_string(XML)  # pyright: ignore[reportAttributeAccessIssue]
    state = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.mj_forward(model, state)  # pyright: ignore[reportAttributeAccessIssue]
    table, cube, pillar = scene_shapes(env_of(model, state))
    assert (table.name, table.half_size, table.top) == ("table", (0.4, 0.3), pytest.approx(0.0))
    assert (cube.name, cube.is_round) == ("cube", False)
    assert cube.centre == pytest.approx((-0.2, 0.1))
    assert cube.angle == pytest.approx(np.pi / 6)
    assert (pillar.is_round, pillar.half_size, pillar.colour) == (True, (0.04, 0.04), "#ff0000")
    assert pillar.top == pytest.approx(0.3)


def test_env_without_a_mujoco_model_has_no_shapes():
    assert scene_shapes(env_of()) == []
    assert scene_shapes(env_of(model="not a model", state="nor a state")) == []


@pytest.mark.parametrize(("n_left", "n_right"), [(16, 16), (30, 2), (1, 9)])
def test_groups_are_parted_at_the_gap_and_true_is_left(n_left, n_right):
    group = split_by_widest_gap(two_groups(n_left, n_right))
    assert group.tolist() == [True] * n_left + [False] * n_right


def test_spread_is_the_distance_from_the_mean_path():
    paths = np.zeros((2, 5, 2))
    paths[0, :, 1], paths[1, :, 1] = 0.3, -0.3
    assert spread(paths) == pytest.approx(0.3)
    assert spread(paths[:1]) == 0.0


def test_x_points_up_and_y_to_the_left():
    view = View([], np.array([[0.0, 0.0], [2.0, 1.0]]), width=100.0)
    assert view.height == pytest.approx(200.0)
    assert view.place(np.array([2.0, 1.0])).tolist() == [0.0, 0.0]
    assert view.place(np.array([0.0, 0.0])).tolist() == pytest.approx([100.0, 200.0])


def test_view_holds_shapes_as_well_as_points():
    view = View([square(0.0, 0.0)], np.array([[0.5, 0.0]]), width=100.0)
    assert view.place(np.array([-0.1, 0.1])).tolist() == pytest.approx([0.0, view.height])
    assert view.place(np.array([0.5, -0.1])).tolist() == pytest.approx([100.0, 0.0])


def test_every_sampled_chunk_is_drawn_and_counted():
    chunks = two_groups(5, 3)
    picture = draw_fans([Fan(11, 4, chunks, [square(0.5, 0.0)]), Fan(12, 8, chunks, [])])
    assert picture.count("<polyline") == 16
    assert picture.count("<rect") == 1
    counts = re.sub(r"<[^>]*>", "", picture)
    assert "start 11, tick 4: 3 + 5 chunks" in counts
    assert "start 12, tick 8" in counts


def test_rollout_moves_through_what_was_observed():
    track = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    observation = {"gripper": np.column_stack([track, [9, 9, 9]]), "grip": np.zeros((3, 1))}
    rollout = Rollout(3, observation, np.zeros((2, 2)), success=True)
    picture = moving_picture(rollout, [], control_dt=0.1)
    # A window of 400 for an extent of 1 m: right = (1 - y) 400, down = (1 - x) 400.
    assert 'attributeName="cx" values="400.0;400.0;0.0" dur="0.30s"' in picture
    assert 'attributeName="cy" values="400.0;0.0;0.0" dur="0.30s"' in picture
    assert "grip<" not in picture


def test_rollout_without_positions_is_an_error_that_names_the_fields():
    rollout = Rollout(3, {"force": np.zeros((3, 1))}, np.zeros((2, 2)), success=True)
    with pytest.raises(ValueError, match="force"):
        moving_picture(rollout, [], control_dt=0.1)
