"""`cadence collect`: demonstrations of all experts, going on after an interruption, many tasks."""

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from data.record import RecordReport
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import collect
from policy.entry import compose_config


def test_each_start_is_recorded_by_each_expert_and_once(tmp_path, capsys):
    overrides = ["env=pillar", "starts=2", f"out={tmp_path}"]
    path = collect.run(compose_config("collect", overrides))
    collect.run(compose_config("collect", overrides))
    assert "there before: 4" in capsys.readouterr().out
    metadata = EpisodeStore.open(path).episode_metadata
    assert sorted((e["seed"], e["expert"]) for e in metadata) == [
        (0, "left"),
        (0, "right"),
        (1, "left"),
        (1, "right"),
    ]


def test_a_pair_begins_with_the_same_observation(tmp_path):
    overrides = ["env=pillar", "starts=1", f"out={tmp_path}"]
    store = EpisodeStore.open(collect.run(compose_config("collect", overrides)))
    for name in store.contract.observation:
        values = store.read(name)
        assert np.array_equal(values[0], values[store.episode_ends[0]])


def test_an_env_without_expert_names_the_mend(tmp_path):
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    cfg = compose_config("collect", ["env=gym_pusht", f"out={tmp_path}"])
    with pytest.raises(ValueError, match="experts"):
        collect.run(cfg)


def test_an_env_without_expert_is_refused_before_a_folder_is_made(tmp_path):
    out = tmp_path / "out"
    cfg = compose_config("collect", ["env=gymnasium", "env.id=Pendulum-v1", f"out={out}"])
    with pytest.raises(ValueError, match="has no scripted expert"):
        collect.run(cfg)
    assert not out.exists()


def test_experts_are_found_between_wrappers():
    class Knowing(gymnasium.Wrapper):
        def experts(self):
            return {"still": lambda rng: lambda fields: np.zeros(1)}

    cfg = compose_config("collect", ["env=pillar"])
    pendulum = gymnasium.make("Pendulum-v1")
    assert list(collect._experts(TimeLimit(Knowing(pendulum), 9), cfg)) == ["still"]
    with pytest.raises(ValueError, match="has no scripted expert"):
        collect._experts(TimeLimit(pendulum, 9), cfg)


@pytest.mark.parametrize(
    ("kept", "n_skipped", "keep", "is_hinted"),
    [
        ({}, 0, "success", True),
        ({}, 0, "all", False),
        ({}, 2, "success", False),
        ({"left": 1}, 0, "success", False),
    ],
)
def test_where_nothing_is_kept_the_setting_that_keeps_is_named(kept, n_skipped, keep, is_hinted):
    cfg = compose_config("collect", ["env=pillar", f"keep={keep}"])
    outcome = RecordReport(
        n_total=6, n_skipped=n_skipped, kept=kept, failed={"left": 3}, n_clipped=0, fewest=0
    )
    text = collect.describe(outcome, cfg)
    assert ("without success: 3; keep=all keeps them" in text) == is_hinted
    assert ("keep=all" in text) == is_hinted


def test_starts_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="starts is 0"):
        collect.run(compose_config("collect", ["env=pillar", "starts=0", f"out={tmp_path}"]))


def test_a_store_of_another_contract_is_refused(tmp_path):
    contract = Contract(
        observation={"state": Field(shape=(2,))}, action=Field(shape=(1,)), control_dt=0.1
    )
    EpisodeStore.create(tmp_path / "store.zarr", contract)
    with pytest.raises(ValueError, match="environment"):
        collect.run(compose_config("collect", ["env=pillar", "starts=1", f"out={tmp_path}"]))


def test_a_store_of_another_task_is_refused(tmp_path):
    collect.run(compose_config("collect", ["env=pillar", "starts=1", f"out={tmp_path}"]))
    with pytest.raises(ValueError, match="another out"):
        collect.run(compose_config("collect", ["env=pick_place", "starts=1", f"out={tmp_path}"]))
