"""The planner of Gymnasium's MuJoCo tasks: what it foresees happens, and it never plans worse."""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

import os

import gymnasium
import mujoco
import numpy as np
import pytest

from envs.gymnasium_adapter import make
from envs.planned import FALL, N_KNOTS, N_PLANS, STEPS, Planned, PredictiveSampling
from envs.rendering import RenderingError

ID = "Hopper-v5"


@pytest.fixture
def task():
    env = gymnasium.make(ID).unwrapped
    env.reset(seed=3)
    yield env
    env.close()


def planner(seed: int = 0) -> PredictiveSampling:
    return PredictiveSampling(gymnasium.make(ID).unwrapped, np.random.default_rng(seed))


def state_of(task) -> tuple[np.ndarray, np.ndarray]:
    return task.data.qpos.copy(), task.data.qvel.copy()


def test_return_of_a_plan_is_what_the_task_then_pays(task):
    mine = planner()
    plan = mine.variations()[1]
    foreseen = mine.rate(plan, *state_of(task))
    paid = 0.0
    for action in plan:
        _, reward, has_fallen, _, _ = task.step(action)
        paid += float(reward)
        if has_fallen:
            paid -= FALL
            break
    assert foreseen == pytest.approx(paid, rel=1e-6)


def test_plan_is_no_worse_than_the_last_one(task):
    mine = planner()
    state = state_of(task)
    mine(*state)
    last = mine.plan.copy()
    chosen = mine(*state)
    assert mine.rate(chosen, *state) >= mine.rate(last, *state)


def test_variations_keep_the_last_plan_first_and_stay_in_range():
    mine = planner()
    mine.plan = np.full_like(mine.plan, 0.9)
    plans = mine.variations()
    assert plans.shape == (N_PLANS, *mine.plan.shape)
    np.testing.assert_array_equal(plans[0], mine.plan)
    assert plans.min() >= -1.0
    assert plans.max() == 1.0


def test_variations_are_linear_between_knots():
    mine = planner()
    steps = np.arange(mine.horizon)
    piece = np.searchsorted(np.linspace(0, mine.horizon - 1, N_KNOTS), steps, side="right")
    is_inside = (piece[:-2] == piece[2:]) & (piece[2:] < N_KNOTS)
    plan = mine.variations()[1]
    assert np.abs(plan).max() < 1.0, "cut at the border, choose another seed"
    bend = plan[:-2] - 2 * plan[1:-1] + plan[2:]
    np.testing.assert_allclose(bend[is_inside], 0.0, atol=1e-12)
    assert np.abs(bend[~is_inside]).max() > 1e-3


def test_expert_gains_more_than_random_actions():
    env = make(ID)
    random = np.random.default_rng(1)

    def play(act) -> float:
        observation, _ = env.reset(seed=5)
        total, has_ended = 0.0, False
        for _ in range(10 * STEPS):
            observation, reward, has_ended, _, _ = env.step(act(observation))
            total += float(reward)
            if has_ended:
                break
        return total

    planned = play(env.experts()["planner"](np.random.default_rng(0)))  # pyright: ignore
    drawn = play(lambda _: random.uniform(-1, 1, 3).astype(np.float32))
    env.close()
    assert planned > drawn


def test_other_environments_have_no_planner():
    assert not hasattr(make("Pendulum-v1"), "experts")


def test_where_nothing_renders_it_says_so(monkeypatch):
    def nothing():
        raise RenderingError("install one of them")

    monkeypatch.setattr("envs.planned.choose_backend", nothing)
    env = make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(RenderingError, match="install one of them"):
        env.render()
    env.close()


def test_a_backend_that_fails_is_named(monkeypatch):
    def broken(self):
        raise mujoco.FatalError("no context")

    monkeypatch.setattr("envs.planned.choose_backend", lambda: "egl")
    monkeypatch.setenv("MUJOCO_GL", "")
    env = make(ID, render_mode="rgb_array")
    monkeypatch.setattr(type(env.unwrapped), "render", broken)
    env.reset(seed=0)
    with pytest.raises(RenderingError, match="'egl' cannot draw: no context"):
        env.render()
    assert os.environ["MUJOCO_GL"] == "egl"
    env.close()


def test_its_specification_makes_it_again():
    env = make(ID)
    assert env.spec is not None
    again = env.spec.make()
    assert isinstance(again, Planned)
    assert again.metadata["contract"] == env.metadata["contract"]
    for each in (env, again):
        each.close()
