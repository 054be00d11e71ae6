"""Recording: what is kept, continued after Ctrl-C and SIGKILL, and read off an environment."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from data.record import contract_of, expert_generator, record, run_episode
from data.store import EpisodeStore
from data.types import Contract, ContractError, Field


class Counter(gym.Env):
    """Observes [seed, step]; ends after 4 steps; succeeds in step 2 if the action was positive."""

    metadata = {"render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, as_dict: bool = False, truncates: bool = False):
        self.state, self.as_dict, self.truncates = np.zeros(2), as_dict, truncates
        self.actions = []
        if as_dict:
            self.observation_space = spaces.Dict({"state": type(self).observation_space})

    def observation(self):
        return {"state": self.state} if self.as_dict else self.state

    def reset(self, *, seed=None, options=None):
        self.state[:] = seed, 0
        return self.observation(), {}

    def step(self, action):
        self.actions.append(action)
        self.state[1] += 1  # In place: a recorder that does not copy sees only the last step.
        is_success = self.state[1] == 2 and action[0] > 0
        is_over = bool(self.state[1] == 4)
        outcome = {"is_success": is_success, "mode": 2}
        return self.observation(), 0.0, is_over and not self.truncates, is_over, outcome


def always(value):
    return lambda rng: lambda fields: np.array([value])


def only_even_seeds(rng):
    return lambda fields: np.array([0.5 if fields["state"][0] % 2 == 0 else -0.5])


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.create(tmp_path / "store.zarr", contract_of(Counter()))


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("truncates", [False, True])
def test_an_episode_pairs_each_observation_with_the_action_it_gets(as_dict, truncates):
    contract = contract_of(Counter())
    expert = lambda fields: np.array([fields["state"][1] / 10])  # noqa: E731
    episode = run_episode(Counter(as_dict, truncates), expert, seed=7, contract=contract)
    assert episode.fields["state"].tolist() == [[7, 0], [7, 1], [7, 2], [7, 3]]
    assert episode.fields["action"][:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (episode.is_success, episode.mode) == (True, 2)


def test_only_successes_are_kept_unless_all_are_wanted(store, tmp_path):
    experts = {"even": only_even_seeds, "never": always(-1)}
    report = record(Counter(), experts, store, seeds=range(4))
    assert (report.kept, report.failed) == ({"even": 2}, {"even": 2, "never": 4})
    assert (report.n_kept, report.n_failed, report.n_total, report.n_skipped) == (2, 6, 8, 0)
    assert [(e["seed"], e["expert"], e["mode"]) for e in store.episode_metadata] == [
        (0, "even", 2),
        (2, "even", 2),
    ]
    everything = EpisodeStore.create(tmp_path / "all.zarr", store.contract)
    report = record(Counter(), experts, everything, seeds=range(4), keep="all")
    assert report.n_kept == 8
    assert [e["success"] for e in everything.episode_metadata[:3]] == [True, False, False]


def test_an_expert_stops_when_the_store_holds_enough_of_the_task(store):
    experts = {"even": only_even_seeds, "fine": always(1)}
    report = record(Counter(), experts, store, seeds=range(3), enough=2)
    assert report.kept == {"even": 2, "fine": 2}
    assert report.failed == {"even": 1}
    assert report.fewest == 2
    report = record(Counter(), experts, store, seeds=range(20), enough=3)
    assert (report.kept, report.fewest) == ({"even": 1, "fine": 1}, 3)
    assert [e["seed"] for e in store.episode_metadata] == [0, 0, 1, 2, 2, 4]


def test_starts_may_be_too_few_for_what_is_wanted(store):
    report = record(Counter(), {"even": only_even_seeds}, store, seeds=range(5), enough=9)
    assert (report.kept, report.fewest) == ({"even": 3}, 3)


def test_every_expert_starts_from_every_seed(store):
    record(Counter(), {"a": always(1), "b": always(0.5)}, store, seeds=[5, 3])
    assert [(e["seed"], e["expert"]) for e in store.episode_metadata] == [
        (5, "a"),
        (5, "b"),
        (3, "a"),
        (3, "b"),
    ]


def test_actions_outside_the_space_are_executed_and_recorded_at_its_border(store):
    env = Counter()
    report = record(env, {"wild": always(3.0)}, store, seeds=[0])
    assert report.n_clipped == 4
    assert store.read("action").tolist() == [[1]] * 4 == [a.tolist() for a in env.actions]


def test_what_is_recorded_already_is_skipped(store):
    experts = {"even": only_even_seeds, "fine": always(1)}
    record(Counter(), experts, store, seeds=range(2))
    report = record(Counter(), experts, store, seeds=range(4))
    assert report.n_skipped == 3  # Seed 1 of "even" failed and is tried again.
    assert sorted((e["seed"], e["expert"]) for e in store.episode_metadata) == [
        (0, "even"),
        (0, "fine"),
        (1, "fine"),
        (2, "even"),
        (2, "fine"),
        (3, "fine"),
    ]


def test_a_store_holds_the_same_starts_of_several_tasks(store):
    for task in ("reach", "push", "reach"):
        env = Counter()
        env.metadata = {"contract": {**store.contract.to_json(), "task": task}}
        record(env, {"fine": always(1)}, store, seeds=range(2))
    assert [(e["task"], e["seed"]) for e in store.episode_metadata] == [
        ("reach", 0),
        ("reach", 1),
        ("push", 0),
        ("push", 1),
    ]


def test_experts_draw_by_seed_and_name_only(store, tmp_path):
    def noisy(rng):
        return lambda fields: rng.uniform(0.1, 1, 1)

    record(Counter(), {"a": noisy, "b": noisy}, store, seeds=range(2))
    alone = EpisodeStore.create(tmp_path / "alone.zarr", store.contract)
    record(Counter(), {"b": noisy}, alone, seeds=[1])
    np.testing.assert_array_equal(store.read("action", episodes=[3]), alone.read("action"))
    draws = {expert_generator(s, n).integers(2**60) for s in range(3) for n in "ab"}
    assert len(draws) == 6


def test_ctrl_c_returns_with_what_is_kept(store):
    def interrupts(rng):
        def act(fields):
            if fields["state"].tolist() == [2, 3]:
                raise KeyboardInterrupt
            return np.array([1.0])

        return act

    report = record(Counter(), {"e": interrupts}, store, seeds=range(5))
    assert report.is_interrupted
    assert report.n_kept == store.n_episodes == 2
    assert record(Counter(), {"e": always(1)}, store, seeds=range(5)).n_kept == 3


def test_progress_hears_of_every_episode(store):
    heard = []
    record(Counter(), {"even": only_even_seeds}, store, seeds=range(3), progress=heard.append)
    assert [(r.n_kept, r.n_failed) for r in heard] == [(1, 0), (1, 1), (2, 1)]


def test_recorded_episodes_survive_sigkill(tmp_path):
    script = Path(__file__).with_name("kill_recording.py")
    subprocess.run([sys.executable, script, tmp_path, "--kills", "4"], check=True, timeout=120)


def test_an_environment_that_states_its_contract_is_believed():
    stated = Contract({"state": Field((2,), unit="m")}, Field((1,), unit="N"), 0.02, task="balance")
    env = Counter()
    env.metadata = {"contract": stated.to_json()}
    assert contract_of(env) == stated


def test_a_contract_is_read_off_the_spaces():
    env = Counter()
    env.observation_space = spaces.Dict(
        {
            "pose": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
            "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "count": spaces.Box(0, 9, (1,), np.int64),
        }
    )
    contract = contract_of(env)
    assert contract.control_dt == 0.05
    assert contract.action == Field((1,), low=(-1.0,), high=(1.0,))
    assert contract.observation == {
        "pose": Field((2, 3)),
        "camera": Field((8, 8, 3), dtype="uint8"),
        "count": Field((1,), dtype="int64", low=(0.0,), high=(9.0,)),
    }
    assert set(contract_of(Counter()).observation) == {"state"}


def test_what_cannot_be_recorded_is_refused(store):
    env = Counter()
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ContractError, match=r"'action' is Discrete\(3\)"):
        contract_of(env)
    env.metadata = {}
    with pytest.raises(ContractError, match="does not say its control rate"):
        contract_of(env)
    with pytest.raises(ValueError, match="keep is 'some'"):
        record(Counter(), {"a": always(1)}, store, seeds=[0], keep="some")  # pyright: ignore
    with pytest.raises(ValueError, match="no experts"):
        record(Counter(), {}, store, seeds=[0])


def test_environment_and_store_must_mean_the_same(tmp_path, store):
    env = Counter()
    env.metadata = {
        "contract": Contract({"state": Field((2,))}, Field((1,)), control_dt=0.5).to_json()
    }
    with pytest.raises(ContractError, match=r"control_dt is 0.05 s in store .* but 0.5 s in env"):
        record(env, {"a": always(1)}, store, seeds=[0])
    other = Contract({"pose": Field((2,))}, Field((1,)), 0.05)
    elsewhere = EpisodeStore.create(tmp_path / "other.zarr", other)
    with pytest.raises(ContractError, match=r"lacks \['pose'\].* gives \['state'\]"):
        record(Counter(), {"a": always(1)}, elsewhere, seeds=[0])
