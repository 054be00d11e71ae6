"""Meta-World: seeded starts, experts, the end of an episode, errors."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.types import Contract
from envs import metaworld

needs_package = pytest.mark.skipif(
    not importlib.util.find_spec("metaworld"),
    reason="needs the extra: pip install -e '.[metaworld]'",
)

pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")
TASKS = ("reach-v3", "pick-place-v3", "drawer-open-v3")


def episode(env, seed, steps=500):
    observation, _ = env.reset(seed=seed)
    act = env.unwrapped.experts()["expert"](np.random.default_rng(0))
    states, is_success = [observation["state"]], False
    for _ in range(steps):
        observation, _, terminated, truncated, info = env.step(act(observation))
        states.append(observation["state"])
        is_success = info["is_success"]
        if terminated or truncated:
            break
    return np.array(states), is_success


@needs_package
@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_and_ends_the_episode(task):
    env = metaworld.make(task)
    results = [episode(env, seed) for seed in range(4)]
    assert all(is_success for _, is_success in results)
    assert all(len(states) < 300 for states, _ in results)


@needs_package
@pytest.mark.parametrize("task", TASKS)
def test_episode_depends_on_the_seed_alone(task):
    used = metaworld.make(task)
    other, _ = episode(used, 1, steps=30)
    again, _ = episode(used, 2, steps=30)
    fresh, _ = episode(metaworld.make(task), 2, steps=30)
    np.testing.assert_array_equal(again, fresh)
    assert not np.array_equal(other[0], fresh[0])


@needs_package
def test_starts_and_goals_are_not_drawn_from_a_short_list():
    env = metaworld.make("pick-place-v3")
    states = np.array([env.reset(seed=seed)[0]["state"] for seed in range(80)])
    assert len(np.unique(states[:, 36:39], axis=0)) == 80  # Goals; the package stores 50.
    assert len(np.unique(states[:, 4:7], axis=0)) == 80  # Objects.


@needs_package
def test_contract_names_the_task():
    contract = Contract.from_json(metaworld.make("reach-v3").metadata["contract"])
    assert contract.task == "reach-v3"
    assert contract.control_dt == 0.0125
    assert (contract.observation["state"].size, contract.action.size) == (39, 4)
    assert len(contract.observation["state"].unit) == 39


@needs_package
def test_one_of_several_tasks_is_told_and_the_expert_minds_nothing():
    env = metaworld.make("drawer-open-v3", tasks=TASKS)
    observation, _ = env.reset(seed=0)
    assert observation["task"].tolist() == [0, 0, 1]
    contract = Contract.from_json(env.metadata["contract"])
    assert contract.observation["task"].frame == ", ".join(TASKS)
    assert contract.task == "drawer-open-v3"
    assert episode(env, 0)[1]


@needs_package
@pytest.mark.parametrize(("name", "n_tasks"), [("metaworld_10", 10), ("metaworld_50", 50)])
def test_the_named_sets_hold_tasks_that_exist(name, n_tasks):
    file = Path(__file__).resolve().parents[2] / "configs" / "env" / f"{name}.yaml"
    tasks = yaml.safe_load(file.read_text())["tasks"]
    assert len(set(tasks)) == len(tasks) == n_tasks
    assert set(tasks) <= set(metaworld.task_names())


@needs_package
def test_a_task_must_be_given():
    with pytest.raises(ValueError, match="give task=NAME, one of reach-v3, pick-place-v3"):
        metaworld.make(None, tasks=TASKS)


@needs_package
def test_episode_can_go_on_after_success_to_the_limit():
    env = metaworld.make("reach-v3", ends_at_success=False)
    states, _ = episode(env, 0, steps=600)
    assert len(states) == 501


@needs_package
def test_nothing_changes_for_other_users_of_the_package():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    before = dict(vars(ALL_V3_ENVIRONMENTS["reach-v3"]))
    metaworld.make("reach-v3").reset(seed=0)
    assert dict(vars(ALL_V3_ENVIRONMENTS["reach-v3"])) == before


@needs_package
def test_unknown_task_names_near_matches():
    with pytest.raises(ValueError, match="pick-place-v3"):
        metaworld.make("pick-plac")
    with pytest.raises(ValueError, match="reach-v3"):
        metaworld.make("reach-v3", tasks=["reach-v3", "reach-v"])
    with pytest.raises(ValueError, match="'push-v3', choose one of reach-v3, pick-place-v3"):
        metaworld.make("push-v3", tasks=TASKS)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[metaworld\]'"):
        metaworld.make("reach-v3")
