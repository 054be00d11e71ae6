"""Several tasks on one command: collected, learned, evaluated; the policy is told which it is."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from data.record import contract_of
from data.store import EpisodeStore
from data.types import ContractError
from policy import collect, controls, evaluate, train
from policy.checkpoint import load
from policy.entry import compose_config
from policy.evaluate import task_table
from policy.tasks import maker, tasks_of

needs_metaworld = pytest.mark.skipif(
    not importlib.util.find_spec("metaworld"),
    reason="needs the extra: pip install -e '.[metaworld]'",
)
pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")
NAMES = ["reach-v3", "drawer-close-v3"]
TOLD = ["env=metaworld", f"env.tasks=[{','.join(NAMES)}]"]
SMALL = ["net.channels=[8,16]", "batch_size=8", "steps=2", "precision=fp32", "device=cpu"]


@pytest.mark.parametrize(
    ("task", "listed", "expected"),
    [
        (None, None, [None]),
        ("a", None, ["a"]),
        (None, ["a", "b"], ["a", "b"]),
        ("b", ["a", "b"], ["b"]),
        (["b"], ["a", "b"], ["b"]),
    ],
)
def test_tasks_are_those_asked_for_or_else_those_of_the_environment(task, listed, expected):
    cfg = OmegaConf.create({"task": task, "env": {"tasks": listed}})
    assert tasks_of(cfg) == expected


def test_an_empty_list_of_tasks_is_refused():
    with pytest.raises(ValueError, match="names no task"):
        tasks_of(OmegaConf.create({"task": [], "env": {}}))


def test_an_environment_of_one_task_cannot_be_told_another():
    with pytest.raises(ValueError, match="leave out task=other"):
        maker(compose_config("evaluate", ["env=pillar"]), "other")


def test_a_setting_that_an_environment_lacks_is_named():
    make = maker(compose_config("evaluate", ["env=four_pads_goal", "+env.any_pads=true"]), None)
    with pytest.raises(ValueError, match=r"FourPadsGoal-v0 does not take .* any_pad, any_pads"):
        make()


@pytest.fixture(scope="module", params=["joint", "task"])
def pillars(tmp_path_factory, request):
    """An untrained policy of two tasks at the pillar, by a mixture of a store of each."""
    folder = tmp_path_factory.mktemp("pillars")
    env = maker(compose_config("evaluate", ["env=pillar"]), None)()
    contract = contract_of(env)
    env.close()
    rng, paths = np.random.default_rng(0), []
    for name in ("quick", "slow"):
        store = EpisodeStore.create(folder / name, replace(contract, task=name))
        for _ in range(2):
            store.append(
                {
                    key: rng.uniform(-0.2, 0.2, (20, *field.shape)).astype(field.dtype)
                    for key, field in contract.fields.items()
                }
            )
        paths.append(str(store.path))
    mixed = ["store=mixture", f"store.paths=[{','.join(paths)}]", "threads=1"]
    mixed.append(f"store.statistics={request.param}")
    return train.run(compose_config("train", [*mixed, *SMALL, f"out={folder / 'run'}"]))


def test_any_environment_can_be_told_its_task(pillars, tmp_path):
    few = ["episodes=1", "videos=0", "sampler=ddim_3", f"checkpoint={pillars}", f"out={tmp_path}"]
    told = ["env=told", "env@env.env=pillar", "env.tasks=[quick,slow]"]
    results = evaluate.run(compose_config("evaluate", [*told, *few, "task=slow"]))
    assert list(results["tasks"]) == ["slow"]
    message = r"needs the field 'task'.*env\.tasks=\[quick,slow\].*env=told env@env\.env=ENV"
    with pytest.raises(ContractError, match=message):
        evaluate.run(compose_config("evaluate", ["env=pillar", *few]))


def test_the_table_has_a_line_for_each_task():
    each = {"success": 0.5, "success_interval": (0.25, 0.75), "mean_length": 12.4}
    lines = task_table({"a": each, "longer": each}).splitlines()
    assert lines[0] == "a       success 0.500 [0.250, 0.750]  steps 12"
    assert lines[1].startswith("longer  success")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A store of both tasks."""
    out = tmp_path_factory.mktemp("together")
    return collect.run(compose_config("collect", [*TOLD, "starts=2", f"out={out}"]))


@needs_metaworld
def test_all_tasks_of_the_environment_are_recorded_and_told(together):
    store = EpisodeStore.open(together)
    assert [entry["task"] for entry in store.episode_metadata] == [NAMES[0]] * 2 + [NAMES[1]] * 2
    assert store.contract.task == ", ".join(NAMES)
    assert store.read("task", episodes=[1]).tolist()[0] == [1, 0]
    assert store.read("task", episodes=[2]).tolist()[0] == [0, 1]


@needs_metaworld
def test_a_policy_of_a_mixture_is_evaluated_on_all_its_tasks(together, tmp_path, capsys):
    paths = []
    for name in NAMES:
        overrides = ["env=metaworld", f"task={name}", "starts=2", f"out={tmp_path / name}"]
        paths.append(collect.run(compose_config("collect", overrides)))
    mixed = ["store=mixture", f"store.paths=[{','.join(map(str, paths))}]", "store.weights=[1,2]"]
    out = train.run(compose_config("train", [*mixed, *SMALL, f"out={tmp_path / 'run'}"]))
    contract = load(out).contract
    assert contract.observation == EpisodeStore.open(together).contract.observation

    settings = [f"checkpoint={out}", "episodes=1", "videos=0", "sampler.grid.n_steps=1"]
    where = f"out={tmp_path / 'results'}"
    results = evaluate.run(compose_config("evaluate", [*TOLD, *settings, where]))
    assert results["complete"]
    assert list(results["tasks"]) == NAMES
    assert [episode["task"] for episode in results["episodes"]] == NAMES
    successes = [each["success"] for each in results["tasks"].values()]
    assert results["success"] == sum(successes) / 2
    printed = capsys.readouterr().out
    assert "[2/2] drawer-close-v3" in printed
    assert "\nreach-v3         success" in printed

    swapped = ["env=metaworld", f"env.tasks=[{','.join(NAMES[::-1])}]", *settings]
    with pytest.raises(ValueError, match=r"task\.frame is 'reach-v3, drawer-close-v3' in check"):
        evaluate.run(compose_config("evaluate", swapped))


@needs_metaworld
def test_an_interruption_keeps_the_tasks_before_it(together, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train.run(compose_config("train", [f"store.path={together}", *SMALL, f"out={out}"]))
    play = controls.play
    played = []

    def interrupted(*arguments, **options):
        played.append(1)
        if len(played) == 2:
            raise KeyboardInterrupt
        return play(*arguments, **options)

    monkeypatch.setattr(controls, "play", interrupted)
    overrides = [*TOLD, f"checkpoint={out}", "episodes=1", f"out={tmp_path}"]
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(compose_config("evaluate", [*overrides, "sampler.grid.n_steps=1"]))
    text = (tmp_path / "results.json").read_text()
    assert '"complete": false' in text
    assert "drawer-close-v3" not in text.split('"episodes"')[-1]
