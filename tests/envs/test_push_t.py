"""Push-T in MuJoCo: starts, reward, walls, and the expert that plans pushes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from data.types import Contract
from envs.push_t import PushT
from envs.push_t.expert import Expert
from envs.push_t.geometry import to_world
from envs.push_t.planner import Planner


def make() -> gymnasium.Env:
    return gymnasium.make("envs.push_t:cadence/PushT-v0", disable_env_checker=True)


def put(task: PushT, block, pusher=(0.2, 0.2)):
    """Place block and pusher at rest."""
    task.data.qpos[:] = [*block, *pusher]
    task.data.qvel[:] = 0


def episode(env, seed):
    observation, _ = env.reset(seed=seed)
    act = env.unwrapped.experts()["expert"](np.random.default_rng(seed))
    actions, rewards, info = [], [], {}
    for _ in range(300):
        actions.append(act(observation))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.array(actions), np.array(rewards), info


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
def test_passes_the_checker():
    check_env(make().unwrapped, skip_render_check=True)


def test_contract_and_limit():
    env = make()
    contract = Contract.from_json(env.metadata["contract"])
    assert contract.observation["block"].angles == (2,)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300


def test_model_and_geometry_agree():
    task = PushT()
    np.testing.assert_allclose(task.target, [0, 0, np.pi / 4], atol=1e-12)
    sizes = task.rectangles[:, 1] - task.rectangles[:, 0]
    np.testing.assert_allclose(sizes, [[0.12, 0.03], [0.03, 0.09]])
    np.testing.assert_allclose(task.model.body("block").ipos, 0, atol=1e-6)  # Centre of mass.


def test_starts_vary_and_keep_apart():
    env: Any = make()
    starts = [env.reset(seed=seed)[0] for seed in range(100)]
    blocks = np.array([start["block"] for start in starts])
    pushers = np.array([start["pusher"] for start in starts])
    np.testing.assert_allclose(blocks.std(0), [0.3 / 12**0.5, 0.3 / 12**0.5, 1.81], rtol=0.15)
    assert (np.abs(pushers).max(0) > 0.18).all()
    gaps = [env.unwrapped.gap(p, b) for p, b in zip(pushers, blocks, strict=True)]
    assert min(gaps) >= 0.03 - 1e-6


def test_gap_to_the_block():
    task = PushT()
    turned = np.array([0.1, 0.0, np.pi / 2])  # The bar is at the left, its outer side at x 0.0593.
    assert task.gap(np.array([0.0, 0.0]), turned) == pytest.approx(0.1 - 0.040714)
    assert task.gap(np.array([0.1, 0.0]), turned) == 0.0


def test_block_on_target_is_success():
    task = PushT()
    task.reset(seed=0)
    put(task, task.target)
    _, reward, terminated, truncated, info = task.step(np.array([0.2, 0.2]))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


@pytest.mark.parametrize(("shift", "is_success"), [(0.002, True), (0.004, False)])
def test_reward_is_the_clipped_coverage(shift, is_success):
    task = PushT()
    task.reset(seed=0)
    # Along the bar, which is turned by 45 degrees; the T is 0.12 m high and 0.0063 m^2 large.
    put(task, task.target + shift * np.array([0.5**0.5, 0.5**0.5, 0]))
    _, reward, terminated, _, info = task.step(np.array([0.2, 0.2]))
    assert reward == pytest.approx(min(1.0, (1 - 0.12 * shift / 0.0063) / 0.95), abs=1e-6)
    assert terminated == info["is_success"] == is_success


def test_observed_angle_is_wrapped():
    task = PushT()
    task.reset(seed=0)
    put(task, (0.0, 0.0, 3.5))
    assert task.observation(task.data)["block"][2] == pytest.approx(3.5 - 2 * np.pi, abs=1e-6)


def test_pusher_reaches_its_target_and_limits_are_clipped():
    task = PushT()
    task.reset(seed=0)
    put(task, (-0.15, -0.15, 0.0))
    for _ in range(10):
        observation, *_ = task.step(np.array([9.0, 0.1]))
    np.testing.assert_allclose(observation["pusher"], [0.235, 0.1], atol=1e-3)


def test_walls_hold_the_block():
    task = PushT()
    corners = np.array([[-0.06, 0.04], [0.06, 0.04], [-0.015, -0.08], [0.015, -0.08]])
    farthest = 0.0
    for seed in range(5):
        observation, _ = task.reset(seed=seed)
        for _ in range(100):
            block, pusher = observation["block"][:2], observation["pusher"]
            observation, *_ = task.step(2 * block - pusher)  # Straight on, past the block.
            at = to_world(corners, task.block_pose(task.data))
            farthest = max(farthest, float(np.abs(at).max()))
    assert 0.245 < farthest < 0.255  # The walls are at 0.25 m and a little soft.


def test_expert_succeeds():
    env = make()
    results = [episode(env, seed) for seed in range(1000, 1008)]
    assert all(info["is_success"] for *_, info in results)


def test_expert_repeats_itself():
    env = make()
    first = episode(env, 7)
    episode(env, 8)
    np.testing.assert_array_equal(episode(env, 7)[0], first[0])


def test_random_actions_fail():
    env = make()
    env.reset(seed=0)
    env.action_space.seed(0)
    infos = [env.step(env.action_space.sample())[-1] for _ in range(300)]
    assert not any(info["is_success"] for info in infos)


def planner(task: PushT, reach: float) -> Planner:
    return Planner(
        task.model, task.rectangles, target=task.target, control_dt=0.1, reach=reach, n_samples=16
    )


def test_planned_push_improves_and_starts_beside_the_block():
    task = PushT()
    plan = planner(task, 0.235)
    pose = np.array([0.1, -0.05, 2.0])
    push = plan(np.array([-0.2, -0.2]), pose, np.random.default_rng(0))
    assert push is not None
    assert 0.018 < task.gap(push.way[-1], pose) < 0.028  # Radius, and most of the initial gap.
    steps = np.diff(push.targets, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-9)
    task.reset(seed=0)
    put(task, pose, push.way[-1])
    task.apply(task.data, push.way[-1])
    for target in push.targets:
        task.step(target)
    assert plan.error(task.block_pose(task.data)) < plan.error(pose)


def test_error_of_a_shift_is_the_shift():
    task = PushT()
    plan = planner(task, 0.235)
    moved = task.target + np.array([[0.0, 0.0, 0.0], [0.03, 0.04, 0.0]])
    np.testing.assert_allclose(plan.error(moved), [0.0, 0.05], atol=1e-12)


def test_expert_holds_still_where_nothing_can_be_pushed():
    task = PushT()
    act = Expert(planner(task, 1e-3), np.random.default_rng(0))
    pusher = np.array([0.2, 0.2], np.float32)
    action = act({"pusher": pusher, "block": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(action, pusher)


def test_s3_pose_is_the_action_that_keeps_the_pusher_there():
    env = make()
    observation, _ = env.reset(seed=2)
    pose = env.get_wrapper_attr("pose")(observation)
    np.testing.assert_array_equal(pose, observation["pusher"].astype(float))
    for _ in range(10):
        observation, *_ = env.step(pose)
    np.testing.assert_allclose(observation["pusher"], pose, atol=1e-3)
