# pyright: reportAttributeAccessIssue=false
"""The arm: a UR5e's kinematics, an expert that keeps within limits, and what counts as success."""

import gymnasium
import mujoco
import numpy as np
import pytest
import yaml

from data.types import Contract
from envs.arm.env import AT_TARGET, CONTROL_DT, HIGH, LOW, TARGET
from envs.arm.expert import (
    HOME,
    JOINTS,
    MAX_ACCELERATION,
    MAX_JERK,
    MAX_VELOCITY,
    Expert,
    duration,
    minimum_jerk,
    reach,
)
from policy.entry import CONFIGS

ID = "envs.arm:cadence/Arm-v0"
# Denavit-Hartenberg parameters of a UR5e, as its maker publishes them: a, d [m], alpha [rad].
UR5E = (
    (0.0, 0.1625, np.pi / 2),
    (-0.425, 0.0, 0.0),
    (-0.3922, 0.0, 0.0),
    (0.0, 0.1333, np.pi / 2),
    (0.0, 0.0997, -np.pi / 2),
    (0.0, 0.0996, 0.0),
)


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(ID)
    yield env
    env.close()


def flange(joints):
    """Position and direction of the flange by the maker's parameters."""
    frame = np.eye(4)
    for angle, (a, d, alpha) in zip(joints, UR5E, strict=True):
        c, s, ca, sa = np.cos(angle), np.sin(angle), np.cos(alpha), np.sin(alpha)
        link = [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d]]
        frame = frame @ np.array([*link, [0, 0, 0, 1]])
    return frame[:3, 3], frame[:3, 2]


def tool(model, joints):
    """Position and direction of the model's tool."""
    data = mujoco.MjData(model)
    data.qpos[:] = joints
    mujoco.mj_kinematics(model, data)
    return data.site("tool").xpos.copy(), data.site("tool").xmat.reshape(3, 3)[:, 1].copy()


def play(env, policy, seed):
    """Info of the last step, the actions and the joints seen, of one episode."""
    observation, _ = env.reset(seed=seed)
    actions, joints = [], []
    while True:
        joints.append(observation["joints"])
        actions.append(policy(observation))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        assert reward == float(info["is_success"])
        assert terminated == info["is_success"]
        if terminated or truncated:
            return info, np.array(actions), np.array(joints)


def make_expert(env):
    return env.unwrapped.experts()["expert"](np.random.default_rng(0))


def test_kinematics_are_those_of_a_ur5e(env):
    rng = np.random.default_rng(0)
    for joints in [np.zeros(6), HOME, *rng.uniform(-3, 3, (10, 6))]:
        np.testing.assert_allclose(tool(env.unwrapped.model, joints), flange(joints), atol=1e-9)


def test_joints_are_named_in_the_order_of_the_actions(env):
    model = env.unwrapped.model
    assert [model.joint(i).name for i in range(model.nq)] == list(JOINTS)
    assert [model.actuator(i).name for i in range(model.nu)] == list(JOINTS)
    assert Contract.from_json(env.metadata["contract"]).action.unit == "rad"


def test_expert_succeeds_in_about_a_second_and_a_half_within_limits(env):
    # Of positions rounded to float32, differences of second order are off by 4e-7 / dt^2.
    rounding = 4e-7 / CONTROL_DT**2
    steps, successes = [], []
    for seed in range(60):
        info, actions, joints = play(env, make_expert(env), seed)
        successes.append(info["is_success"])
        steps.append(len(actions))
        way = np.concatenate([joints[:1], actions])
        velocity = np.diff(way, axis=0) / CONTROL_DT
        acceleration = np.diff(velocity, axis=0, prepend=0) / CONTROL_DT
        assert np.abs(velocity).max() <= MAX_VELOCITY + 1e-3
        assert np.abs(acceleration).max() <= MAX_ACCELERATION + 2 * rounding
        jerk = np.diff(acceleration, axis=0, prepend=0) / CONTROL_DT
        assert np.abs(jerk).max() <= MAX_JERK + 4 * rounding / CONTROL_DT
        assert ((actions > LOW) & (actions < HIGH)).all()
    assert np.mean(successes) >= 0.98
    assert 1.0 <= np.mean(steps) * CONTROL_DT <= 2.0


def test_expert_keeps_within_the_limits_of_the_real_arm():
    limits = yaml.safe_load((CONFIGS / "robot" / "ur.yaml").read_text())["limits"]
    for name, most in (
        ("velocity", MAX_VELOCITY),
        ("acceleration", MAX_ACCELERATION),
        ("jerk", MAX_JERK),
    ):
        assert len(limits[name]) == len(JOINTS)
        assert min(limits[name]) >= most, name


def test_inverse_kinematics_reaches_every_target_with_the_tool_down(env):
    rng = np.random.default_rng(1)
    for point in rng.uniform(*TARGET, (20, 3)):
        position, direction = flange(reach(env.unwrapped.model, point))
        np.testing.assert_allclose(position, point, atol=2e-4)
        np.testing.assert_allclose(direction, [0, 0, -1], atol=2e-4)


def test_a_target_out_of_reach_is_refused(env):
    with pytest.raises(ValueError, match="cannot reach"):
        reach(env.unwrapped.model, np.array([-2.0, 0.0, 0.3]))


def test_minimum_jerk_starts_and_ends_at_rest():
    """Flash and Hogan 1985: also its velocity and acceleration are zero at both ends."""
    h = 1e-4
    for end, share in ((0.0, 0.0), (1.0, 1.0)):
        around = np.array([minimum_jerk(end + k * h) for k in (-1, 0, 1)])
        assert around[1] == pytest.approx(share, abs=1e-12)
        assert np.abs(np.diff(around)).max() < 20 * h**3  # 10 t^3 near the ends
    assert minimum_jerk(0.5) == pytest.approx(0.5)
    assert minimum_jerk(7.0) == 1.0


@pytest.mark.parametrize("longest", [0.03, 0.05, 0.1, 0.4, 1.5])
def test_duration_is_the_shortest_within_the_limits(longest):
    seconds = duration(np.array([0.0, -longest, longest / 2]))
    t = np.linspace(0, 1, 2001)
    share = np.array([minimum_jerk(time) for time in t])
    velocity = np.gradient(share, t) * longest / seconds
    acceleration = np.gradient(velocity, t) / seconds
    jerk = np.gradient(acceleration, t) / seconds
    tightness = max(
        velocity.max() / MAX_VELOCITY,
        acceleration.max() / MAX_ACCELERATION,
        np.abs(jerk).max() / MAX_JERK,
    )
    assert tightness <= 1.001
    assert tightness == pytest.approx(1, abs=0.01) or seconds == 0.5


def test_standing_still_is_no_success(env):
    info, _, joints = play(env, lambda observation: joints_of(observation), 0)
    assert not info["is_success"]
    # Gravity is compensated, so nothing sags.
    np.testing.assert_allclose(joints[-1], joints[0], atol=1e-3)


def joints_of(observation):
    return observation["joints"].astype(np.float64)


def test_passing_by_the_target_is_no_success(env):
    """The tool has to stay: here it goes on to the other side of the target."""
    for seed in range(5):
        there = make_expert(env)
        rng = np.random.default_rng(seed)
        away = rng.choice([-0.3, 0.3], 6)

        def go_past(observation, there=there, away=away):
            action = there(observation)
            position = env.unwrapped.data.site("tool").xpos
            near = np.linalg.norm(position - observation["target"]) < AT_TARGET
            return action + away if near else action

        assert not play(env, go_past, seed)[0]["is_success"]


def test_pose_is_the_action_that_keeps_the_arm_there(env):
    observation, _ = env.reset(seed=5)
    pose = env.unwrapped.pose(observation)
    for _ in range(50):
        observation, *_ = env.step(pose)
    np.testing.assert_allclose(observation["joints"], pose, atol=1e-3)


def test_experts_do_not_share_a_plan(env):
    first, second = make_expert(env), make_expert(env)
    assert isinstance(first, Expert)
    one, _ = env.reset(seed=0)
    other = {**one, "target": one["target"] + np.array([0.05, 0, 0], np.float32)}
    for _ in range(100):
        ends = first(one), second(other)
    assert np.abs(ends[0] - ends[1]).max() > 0.01
