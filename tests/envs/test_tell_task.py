"""The task as an observation field: the same field as of a mixture of stores."""

from functools import partial

import gymnasium
import numpy as np
import pytest

from data.joint_contract import TASK, task_field
from data.types import Contract, Field
from envs.tell_task import FIELD, TellTask, make

TASKS = ("a", "b", "c")


def told(task: str, tasks=TASKS) -> gymnasium.Env:
    return TellTask(gymnasium.make("envs.pillar:cadence/Pillar-v0"), task=task, tasks=tasks)


def test_each_observation_says_the_task():
    env = told("b")
    first, _ = env.reset(seed=0)
    kept = first[FIELD]
    second, *_ = env.step(env.action_space.sample())
    for observation in (first, second):
        assert env.observation_space.contains(observation)
        assert observation[FIELD].tolist() == [0, 1, 0]
    assert not np.shares_memory(kept, second[FIELD])


def test_the_rest_of_the_observation_is_unchanged():
    plain = gymnasium.make("envs.pillar:cadence/Pillar-v0")
    expected, _ = plain.reset(seed=3)
    got, _ = told("a").reset(seed=3)
    assert list(got) == [*expected, FIELD]
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


def test_the_contract_has_the_field_of_a_mixture_of_stores():
    plain = gymnasium.make("envs.pillar:cadence/Pillar-v0")
    contract = Contract.from_json(told("a").metadata["contract"])
    assert FIELD == TASK
    assert contract.observation[FIELD] == task_field(TASKS)
    assert FIELD not in plain.metadata["contract"]["observation"]
    assert isinstance(contract.observation[FIELD], Field)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="'d', choose one of a, b, c"):
        told("d")
    with pytest.raises(ValueError, match=r"\['b'\] more than once"):
        told("a", ("a", "b", "b"))
    with pytest.raises(ValueError, match="'task' of its own"):
        TellTask(told("a"), task="a", tasks=TASKS)


def test_any_environment_is_told():
    pillar = partial(gymnasium.make, "envs.pillar:cadence/Pillar-v0")
    env = make(pillar, task="c", tasks=TASKS)
    assert env.reset(seed=0)[0][FIELD].tolist() == [0, 0, 1]
    assert env.render_mode is None
    assert make(pillar, "rgb_array", task="c", tasks=TASKS).render_mode == "rgb_array"
    with pytest.raises(ValueError, match="give task=NAME, one of a, b, c"):
        make(pillar, task=None, tasks=TASKS)
    with pytest.raises(ValueError, match=r"tasks is 'a', it must be a list"):
        make(pillar, task="a", tasks="a")
