# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
"""What every MuJoCo task of ours keeps to; a new file in configs/env is tested unedited."""

import warnings
from functools import partial
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from data.types import Contract
from envs.mujoco_env import MujocoEnv

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "env").glob("*.yaml"))
N_STEPS = 40
NAMED = {  # kind -> their number in a model
    "body": "nbody",
    "joint": "njnt",
    "geom": "ngeom",
    "site": "nsite",
    "camera": "ncam",
    "light": "nlight",
    "actuator": "nu",
    "sensor": "nsensor",
}


def our_tasks():
    """Those of the configs that make an env of this project by its registered id."""
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text())
        if config["_target_"] == "gymnasium.make" and str(config.get("id", "")).startswith("envs."):
            yield pytest.param(partial(gymnasium.make, config["id"]), id=path.stem)


@pytest.fixture(params=list(our_tasks()))
def make_env(request):
    return request.param


@pytest.fixture
def env(make_env):
    env = make_env()
    yield env
    env.close()


def random_rollout(env, seed, n_steps=N_STEPS):
    """Observations, rewards and flags of uniformly random actions."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    steps = [(observation, 0.0, False, False)]
    while len(steps) <= n_steps and not any(steps[-1][2:]):
        steps.append(env.step(env.action_space.sample())[:4])
    return steps


def test_is_registered_with_a_version_and_a_time_limit(env):
    assert isinstance(env.unwrapped, MujocoEnv)
    assert env.spec.id.startswith("cadence/")
    assert env.spec.id.endswith("-v0")
    assert env.spec.max_episode_steps


def test_gymnasium_accepts_it(make_env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", ".*For Box action spaces, we recommend"
        )  # ours are metric
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is")  # unbounded
        check_env(make_env(disable_env_checker=True).unwrapped, skip_render_check=True)


def test_every_element_has_a_name(env):
    model = env.unwrapped.model
    for kind, count in NAMED.items():
        names = [getattr(model, kind)(i).name for i in range(getattr(model, count))]
        assert all(names), f"{kind} without a name: {names}"


def test_contract_is_readable_and_agrees_with_the_spaces(env):
    contract = Contract.from_json(env.metadata["contract"])
    assert contract.task
    assert contract.control_dt == pytest.approx(
        env.unwrapped.n_substeps * env.unwrapped.model.opt.timestep
    )
    assert contract.observation.keys() == env.observation_space.spaces.keys()
    for name, field in contract.observation.items():
        space = env.observation_space[name]
        assert (space.shape, space.dtype) == (field.shape, np.dtype(field.dtype))
    assert contract.action.shape == env.action_space.shape
    np.testing.assert_allclose(env.action_space.low, contract.action.low)
    np.testing.assert_allclose(env.action_space.high, contract.action.high)


def test_observations_are_in_the_space_and_rewards_are_finite(env):
    for observation, reward, terminated, truncated in random_rollout(env, 0):
        assert env.observation_space.contains(observation)
        assert isinstance(reward, float)
        assert np.isfinite(reward)
        assert isinstance(terminated, bool)
        assert isinstance(truncated, bool)


def test_same_seed_same_trajectory(make_env):
    first, second = random_rollout(make_env(), 7), random_rollout(make_env(), 7)
    assert len(first) == len(second)
    for (a, *outcome_a), (b, *outcome_b) in zip(first, second, strict=True):
        assert outcome_a == outcome_b
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_start_does_not_depend_on_what_was_before(env):
    fresh, _ = env.reset(seed=3)
    random_rollout(env, 4)
    again, _ = env.reset(seed=3)
    for name in fresh:
        np.testing.assert_array_equal(fresh[name], again[name])


def test_observations_share_no_memory(env):
    first, _ = env.reset(seed=0)
    kept = {name: value.copy() for name, value in first.items()}
    second, *_ = env.step(env.action_space.sample())
    for name in first:
        assert not np.shares_memory(first[name], second[name])
        np.testing.assert_array_equal(first[name], kept[name])


def test_start_varies_between_seeds(env):
    starts = [env.reset(seed=seed)[0] for seed in range(20)]
    spread = np.concatenate([np.ptp([s[name] for s in starts], 0).ravel() for name in starts[0]])
    # Some elements may start alike (a height, an open gripper), but most do not.
    assert np.mean(spread > 1e-3) > 0.5
    assert (spread > 0.02).sum() >= 4


def test_no_observed_element_is_constant(env):
    observations = [step[0] for seed in range(12) for step in random_rollout(env, seed)]
    for name in observations[0]:
        spread = np.ptp([o[name] for o in observations], 0)
        assert (spread > 0).all(), f"{name} {spread}"


def test_time_limit_truncates_and_does_not_terminate(make_env):
    env = make_env(max_episode_steps=3)
    ends = []
    for seed in range(10):
        steps = random_rollout(env, seed)
        assert [truncated for *_, truncated in steps] == [k == 3 for k in range(len(steps))]
        ends.append(steps[-1][2:])
    assert (False, True) in ends
    env.close()


def test_info_tells_success_and_mode(env):
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    assert isinstance(info["is_success"], bool)
    modes = env.metadata.get("modes")
    assert ("mode" in info) == (modes is not None)
    if modes:
        assert modes[0] == "none"
        assert 0 <= info["mode"] < len(modes)


def test_physics_stays_sane(env):
    """No warning of MuJoCo: a diverged simulation resets itself silently otherwise."""
    random_rollout(env, 1, 60)
    warning = mujoco.mjtWarning.mjWARN_BADQACC.value
    assert env.unwrapped.data.warning[warning].number == 0
    assert np.isfinite(env.unwrapped.data.qpos).all()


def test_docstring_has_the_sections_of_gymnasium(env):
    text = type(env.unwrapped).__doc__ or ""
    for section in (
        "Description",
        "Action Space",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
        "Version History",
    ):
        assert f"## {section}" in text, section
