# pyright: reportAttributeAccessIssue=false
"""pick_place and pillar: experts succeed, shortcuts do not, and the two ways do not mix."""

import gymnasium
import numpy as np
import pytest

from envs.pick_place.expert import SPEED, Expert

PICK_PLACE = "envs.pick_place:cadence/PickPlace-v0"
PILLAR = "envs.pillar:cadence/Pillar-v0"
SIDES = {"left": 1, "right": 2}


def play(env, policy, seed):
    """Info of the last step, and the actions, of one episode."""
    observation, _ = env.reset(seed=seed)
    actions = []
    while True:
        actions.append(policy(observation))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        assert reward == float(info["is_success"])
        if terminated or truncated:
            return info, np.array(actions)


def expert(env, name):
    return env.unwrapped.experts()[name](np.random.default_rng(0))


@pytest.mark.parametrize(
    ("id", "name"), [(PICK_PLACE, "expert"), (PILLAR, "left"), (PILLAR, "right")]
)
def test_expert_succeeds_within_50_steps(id, name):
    env = gymnasium.make(id)
    results = [play(env, expert(env, name), seed) for seed in range(40)]
    assert np.mean([info["is_success"] for info, _ in results]) >= 0.98
    assert max(len(actions) for _, actions in results) <= 50
    if name in SIDES:
        assert {info["mode"] for info, _ in results} == {SIDES[name]}


@pytest.mark.parametrize("id", [PICK_PLACE, PILLAR])
def test_random_actions_never_succeed(id):
    env = gymnasium.make(id)
    env.action_space.seed(0)
    assert not any(
        play(env, lambda _: env.action_space.sample(), s)[0]["is_success"] for s in range(10)
    )


@pytest.mark.parametrize(
    ("id", "name"), [(PICK_PLACE, "expert"), (PILLAR, "left"), (PILLAR, "right")]
)
def test_gripper_that_never_closes_never_succeeds(id, name):
    env = gymnasium.make(id)
    closing = expert(env, name)

    def never_closing(observation):
        action = closing(observation)
        action[3] = 1.0
        return action

    assert not any(play(env, never_closing, seed)[0]["is_success"] for seed in range(10))


def test_holding_the_cube_over_the_target_is_no_success():
    """The gripper has to let go."""
    env = gymnasium.make(PICK_PLACE)
    releasing = expert(env, "expert")

    def never_releasing(observation):
        action = releasing(observation)
        is_held = observation["gripper"][3] < 0.046
        action[3] = 0.0 if is_held else action[3]
        return action

    assert not any(play(env, never_releasing, seed)[0]["is_success"] for seed in range(5))


def test_cube_that_starts_on_the_target_has_to_stay():
    env = gymnasium.make(PICK_PLACE).unwrapped
    env.reset(seed=0)
    env.data.joint("cube").qpos[:2] = env.data.mocap_pos[0, :2]
    hold = np.array([-0.2, 0.0, 0.15, 1.0])
    terminated = [env.step(hold)[2] for _ in range(10)]
    assert terminated == [False] * 9 + [True]


def test_action_beyond_the_limits_is_clipped():
    env = gymnasium.make(PILLAR).unwrapped
    env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(np.array([-9.0, 0.0, 9.0, 1.0]))
    np.testing.assert_allclose(observation["gripper"][:3], [-0.3, 0.0, 0.2], atol=2e-3)


@pytest.mark.parametrize(("opening", "gap"), [(0.51, 0.08), (0.49, 0.0)])
def test_opening_is_discrete(opening, gap):
    env = gymnasium.make(PICK_PLACE)
    env.reset(seed=0)
    for _ in range(8):
        observation, *_ = env.step(np.array([-0.2, 0.0, 0.15, opening]))
    np.testing.assert_allclose(observation["gripper"][3], gap, atol=2e-3)


def test_expert_moves_at_limited_speed():
    env = gymnasium.make(PILLAR)
    observation, _ = env.reset(seed=0)
    policy = expert(env, "left")
    for _ in range(25):
        action = policy(observation)
        assert np.linalg.norm(action[:3] - observation["gripper"][:3]) <= SPEED + 1e-6
        observation, *_ = env.step(action)


def test_expert_picks_up_what_was_dropped():
    env = gymnasium.make(PICK_PLACE)
    policy, steps = Expert(), 0

    def clumsy(observation):
        nonlocal steps
        steps += 1
        action = policy(observation)
        if 14 <= steps < 18:
            action[3] = 1.0
        return action

    info, actions = play(env, clumsy, 0)
    assert info["is_success"]
    assert len(actions) > 40


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_start_alike_and_their_mean_hits_the_pillar(seed):
    env = gymnasium.make(PILLAR)
    starts = [env.reset(seed=seed)[0] for _ in SIDES]
    for name in starts[0]:
        np.testing.assert_array_equal(starts[0][name], starts[1][name])
    left, right = (play(env, expert(env, side), seed)[1] for side in SIDES)
    n = min(len(left), len(right))
    assert np.abs(left[:n, 1] - right[:n, 1]).max() > 0.2
    env.reset(seed=seed)
    for action in (left[:n] + right[:n]) / 2:
        *_, terminated, _, info = env.step(action)
        if terminated:
            break
    assert terminated
    assert not info["is_success"]
    assert info["mode"] == 0


def test_carrying_over_the_pillar_is_impossible():
    env = gymnasium.make(PILLAR)
    env.reset(seed=0)
    for x in np.linspace(-0.2, 0.2, 20):
        *_, terminated, _, info = env.step(np.array([x, 0.0, 0.2, 1.0]))
        if terminated:
            break
    assert terminated
    assert not info["is_success"]


def test_the_cube_can_be_displaced():
    env = gymnasium.make(PILLAR)
    before, _ = env.reset(seed=3)
    env.get_wrapper_attr("displace")()
    after, *_ = env.step(np.append(before["gripper"][:3], 1.0))
    moved = after["cube"] - before["cube"]
    assert abs(moved[1]) == pytest.approx(0.04, abs=0.002)
    assert np.abs(moved[[0, 2]]).max() < 0.002


@pytest.mark.parametrize("id", [PICK_PLACE, PILLAR, "envs.four_pads:cadence/FourPads-v0"])
def test_s3_pose_is_the_action_that_keeps_the_gripper_there(id):
    env = gymnasium.make(id)
    env.reset(seed=4)
    for opening in (1.0, 0.0):
        for _ in range(20):
            observation, *_ = env.step(np.array([-0.1, 0.05, 0.15, opening]))
        pose = env.unwrapped.pose(observation)
        np.testing.assert_array_equal(pose[:3], observation["gripper"][:3])
        assert pose[3] == opening
        before = observation["gripper"]
        for _ in range(10):
            observation, *_ = env.step(pose)
        np.testing.assert_allclose(observation["gripper"], before, atol=2e-3)


def test_s3_pose_holds_the_cube_that_is_held():
    env = gymnasium.make(PICK_PLACE)
    observation, _ = env.reset(seed=0)
    policy = expert(env, "expert")
    while observation["cube"][2] < 0.08:
        observation, *_ = env.step(policy(observation))
    height = observation["cube"][2]
    for _ in range(10):
        observation, *_ = env.step(env.unwrapped.pose(observation))
    assert observation["cube"][2] == pytest.approx(height, abs=0.02)
