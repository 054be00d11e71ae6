# pyright: reportArgumentType=false
"""make_vec: the same results for one env and for many, ours and foreign."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from envs.mujoco_vector import MujocoVectorEnv
from envs.vector import make_vec
from envs.wrappers import ChunkExecution, ObservationHistory

MAKE = functools.partial(gym.make, "envs.pillar:cadence/Pillar-v0")
SHORT = functools.partial(MAKE, max_episode_steps=10)


class Foreign(gym.Wrapper):
    """Hides nothing, but makes the env go through Gymnasium's vector classes."""


def foreign(make_env=MAKE):
    return Foreign(make_env())


def vec(make_env, num_envs, **kwargs) -> VectorEnv:
    return make_vec(make_env, num_envs, horizons_obs=2, horizons_action=4, **kwargs)


def random_actions(n_chunks, seed):
    """Actions [n_chunks, Ta, Da] near the table, where things are hit."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-0.3, -0.1, 0.01, 0], [-0.04, 0.1, 0.1, 1], (n_chunks, 4, 4))


def rollouts(make_env, seeds, num_envs, n_chunks=8, **kwargs):
    """For each seed the sequence of everything a step returns, `num_envs` at a time."""
    envs = vec(make_env, num_envs, **kwargs)
    results = []
    for first in range(0, len(seeds), num_envs):
        batch = seeds[first : first + num_envs]
        observation, _ = envs.reset(seed=batch)
        actions = np.stack([random_actions(n_chunks, seed) for seed in batch], 1)
        steps = [(observation, {})]
        for chunk in actions:
            observation, reward, terminated, truncated, infos = envs.step(chunk)
            outcome = {"reward": reward, "terminated": terminated, "truncated": truncated}
            steps.append((observation, {**outcome, **infos}))
        for i in range(len(batch)):
            results.append([{k: v[i] for d in step for k, v in d.items()} for step in steps])
    envs.close()
    return results


def assert_equal(a, b):
    assert len(a) == len(b)
    for steps_a, steps_b in zip(a, b, strict=True):
        for x, y in zip(steps_a, steps_b, strict=True):
            assert x.keys() == y.keys()
            for name in x:
                np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@pytest.fixture(scope="module")
def reference():
    """Eight seeds with the single env and its wrappers, one at a time."""
    results = []
    for seed in range(8):
        env = ChunkExecution(ObservationHistory(MAKE(), 2), 4)
        steps = [env.reset(seed=seed)[0]]
        for chunk in random_actions(8, seed):
            observation, reward, terminated, truncated, info = env.step(chunk)
            outcome = {"reward": reward, "terminated": terminated, "truncated": truncated}
            steps.append({**observation, **outcome, **info})
        results.append(steps)
    return results


def test_reference_has_collisions(reference):
    ends = [steps[-1]["terminated"] for steps in reference]
    assert any(ends)
    assert not all(ends)


@pytest.mark.parametrize(("num_envs", "nthread"), [(1, 1), (8, 1), (4, 2), (8, 3)])
def test_batch_equals_single_env_bit_for_bit(reference, num_envs, nthread):
    assert_equal(rollouts(MAKE, list(range(8)), num_envs, nthread=nthread), reference)


def test_gymnasium_vector_equals_single_env_bit_for_bit(reference):
    assert_equal(rollouts(foreign, list(range(4)), 2), reference[:4])


def test_processes_equal_single_env_bit_for_bit(reference):
    assert_equal(rollouts(foreign, [0, 1], 2, n_chunks=8, asynchronous=True), reference[:2])


def test_ours_is_batched_and_others_are_not():
    assert isinstance(vec(MAKE, 2), MujocoVectorEnv)
    assert not isinstance(vec(foreign, 2), MujocoVectorEnv)


@pytest.mark.parametrize("make_env", [SHORT, functools.partial(foreign, SHORT)])
def test_time_limit_truncates_within_a_chunk_and_then_nothing_happens(make_env):
    envs = vec(make_env, 3)
    envs.reset(seed=0)
    hold = np.broadcast_to([-0.2, 0.0, 0.15, 1.0], (3, 4, 4))
    executed = []
    for _ in range(4):
        observation, _, terminated, truncated, infos = envs.step(hold)
        executed.append(infos["n_executed"].tolist())
        assert not terminated.any()
    assert executed == [[4] * 3, [4] * 3, [2] * 3, [0] * 3]
    assert truncated.all()
    assert (infos["max_reward"] == -np.inf).all()
    assert observation["cube"].shape == (3, 2, 3)


@pytest.mark.parametrize("make_env", [SHORT, functools.partial(foreign, SHORT)])
def test_reset_of_some_leaves_the_others_alone(make_env):
    envs = vec(make_env, 3)
    first, _ = envs.reset(seed=[1, 2, 3])
    for _ in range(3):
        before, *_ = envs.step(np.broadcast_to([-0.1, 0.0, 0.15, 1.0], (3, 4, 4)))
    mask = np.array([False, True, False])
    after, _ = envs.reset(seed=[None, 2, None], options={"reset_mask": mask})
    for name in after:
        np.testing.assert_array_equal(after[name][~mask], before[name][~mask])
        np.testing.assert_array_equal(after[name][mask], first[name][mask])
    infos = envs.step(np.broadcast_to([-0.1, 0.0, 0.15, 1.0], (3, 4, 4)))[-1]
    assert infos["n_executed"].tolist() == [0, 4, 0]


def test_observations_share_no_memory():
    envs = vec(MAKE, 2)
    first, _ = envs.reset(seed=0)
    kept = first["gripper"].copy()
    second, *_ = envs.step(np.broadcast_to([0.1, 0.0, 0.15, 1.0], (2, 4, 4)))
    np.testing.assert_array_equal(first["gripper"], kept)
    assert not np.shares_memory(first["gripper"], second["gripper"])


def test_spaces_and_metadata():
    envs = vec(MAKE, 2)
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    assert envs.action_space.shape == (2, 4, 4)
    assert envs.metadata["modes"] == ("none", "left", "right")
    assert envs.metadata["contract"]["control_dt"] == 0.1


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match="num_envs is 0"):
        vec(MAKE, 0)
    with pytest.raises(ValueError, match="horizons_obs is 0"):
        make_vec(MAKE, 1, horizons_obs=0, horizons_action=1)
    envs = vec(MAKE, 2)
    with pytest.raises(ValueError, match="1 seeds for 2 envs"):
        envs.reset(seed=[1])
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.zeros(2, bool)})
    with pytest.raises(ValueError, match="speed"):
        envs.reset(options={"speed": 1})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions \(2, 4, 3\)"):
        envs.step(np.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        envs.step(np.full((2, 4, 4), np.nan))
