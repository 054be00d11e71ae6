# pyright: reportAttributeAccessIssue=false
"""The base class: step ratio, seeded reset, bad actions, and pictures on request."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import envs.rendering
from envs.mujoco_env import box, substeps
from envs.pick_place import PickPlace
from envs.rendering import HELP, RenderingError, probe

HOLD = np.array([-0.2, 0.0, 0.15, 1.0])


def test_substeps_is_the_ratio():
    assert substeps(0.1, 0.004) == 25


@pytest.mark.parametrize("physics_dt", [0.003, 0.07, 0.3])
def test_control_step_that_is_no_multiple_names_both_numbers(physics_dt):
    with pytest.raises(ValueError, match=rf"0\.1 s .* {physics_dt} s"):
        substeps(0.1, physics_dt)
    with pytest.raises(ValueError, match="not a multiple"):
        PickPlace(physics_dt=physics_dt)


def test_box_follows_the_contract_field():
    space = box({"shape": (2,), "low": (0, -1), "high": (1, 2)})
    assert space.dtype == np.float32
    np.testing.assert_array_equal(space.high, [1, 2])
    assert not box({"shape": (3,)}).is_bounded()
    image = box({"shape": (8, 8, 3), "dtype": "uint8"})
    assert image.dtype == np.uint8
    assert image.high.max() == 255


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 4)), np.array([0, 0, np.nan, 0])])
def test_bad_action_is_refused_and_changes_nothing(action):
    env = PickPlace()
    env.reset(seed=0)
    before = env.data.qpos.copy()
    with pytest.raises(ValueError, match="the action"):
        env.step(action)
    np.testing.assert_array_equal(env.data.qpos, before)


def test_unknown_reset_option_and_render_mode_are_refused():
    with pytest.raises(ValueError, match="speed"):
        PickPlace().reset(options={"speed": 1})
    with pytest.raises(ValueError, match="human"):
        PickPlace(render_mode="human")


def test_reset_without_seed_continues_the_generator():
    env = PickPlace()
    first, _ = env.reset(seed=5)
    second, _ = env.reset()
    again, _ = env.reset(seed=5)
    third, _ = env.reset()
    np.testing.assert_array_equal(first["cube"], again["cube"])
    np.testing.assert_array_equal(second["cube"], third["cube"])
    assert (first["cube"] != second["cube"]).any()


def test_observation_belongs_to_the_present_state():
    """Without the extra kinematics mj_step leaves positions one physics step behind."""
    env = PickPlace()
    env.reset(seed=0)
    observation, *_ = env.step(HOLD + np.array([0.05, 0, 0, 0]))
    x = env.data.joint("x").qpos[0]
    assert abs(env.data.joint("x").qvel[0]) > 0.01
    np.testing.assert_allclose(observation["gripper"][0], x, atol=1e-7)


def test_importing_and_stepping_needs_no_opengl():
    code = (
        "import sys, gymnasium; env = gymnasium.make('envs.pick_place:cadence/PickPlace-v0');"
        "env.reset(seed=0); env.step(env.action_space.sample());"
        "assert not any(name.startswith(('OpenGL', 'mujoco.egl')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_probe_tells_why_a_backend_does_not_work():
    assert "no_such_backend" in probe("no_such_backend")
    assert "within 0.01 s" in probe("egl", timeout=0.01)


def test_no_backend_fails_with_the_fix(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(envs.rendering.platform, "system", lambda: "Linux")
    monkeypatch.setattr(envs.rendering, "probe", lambda backend: f"no {backend} here")
    with pytest.raises(RenderingError, match="libosmesa6") as error:
        envs.rendering.choose_backend.__wrapped__()
    assert "no egl here" in str(error.value)
    assert "no osmesa here" in str(error.value)
    assert "libegl1 libegl-mesa0 libgl1-mesa-dri libgl1" in HELP


def test_backend_set_by_the_user_is_obeyed(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(envs.rendering, "probe", lambda backend: pytest.fail("nothing to probe"))
    assert envs.rendering.choose_backend.__wrapped__() == "osmesa"


def test_backend_of_the_user_that_does_not_work_fails_with_the_fix(monkeypatch):
    def broken(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(envs.rendering, "choose_backend", lambda: "osmesa")
    monkeypatch.setattr(envs.rendering.importlib, "import_module", broken)
    env = PickPlace(render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(RenderingError, match=r"'osmesa' \(no mujoco\.osmesa\): leave MUJOCO_GL"):
        env.render()


def test_first_backend_that_works_is_chosen(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(envs.rendering.platform, "system", lambda: "Linux")
    monkeypatch.setattr(envs.rendering, "probe", lambda name: "" if name == "osmesa" else "broken")
    assert envs.rendering.choose_backend.__wrapped__() == "osmesa"


def _env_that_can_render(**kwargs) -> gymnasium.Env:
    env = gymnasium.make("envs.pillar:cadence/Pillar-v0", render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    try:
        env.render()
    except RenderingError as error:
        pytest.skip(str(error))
    return env


def test_picture_shows_the_state():
    env = _env_that_can_render(width=96, height=64)
    before = env.render()
    assert isinstance(before, np.ndarray)
    assert before.shape == (64, 96, 3)
    assert before.dtype == np.uint8
    assert before.std() > 10
    env.step(np.array([-0.2, 0.2, 0.15, 1.0]))
    after = env.render()
    assert isinstance(after, np.ndarray)
    assert (after != before).any()
    env.close()
    env.close()


def test_too_large_picture_names_the_limit():
    env = _env_that_can_render(width=32, height=32)
    env.unwrapped._width, env.unwrapped._renderer = 2000, None
    with pytest.raises(ValueError, match=r"2000 x 32 px .* 1280 x 1280 px"):
        env.render()


def test_no_picture_without_a_render_mode():
    env = PickPlace()
    env.reset(seed=0)
    assert env.render() is None


def test_a_backend_that_cannot_be_loaded_does_not_keep_a_task_from_running():
    code = "from envs.pick_place import PickPlace; PickPlace().reset(seed=0)"
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
