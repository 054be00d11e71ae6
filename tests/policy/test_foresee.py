"""`cadence foresee`: a model learned from a store says what the store's world will do."""

import math
import shutil
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data.normalize import Normalizer
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import foresee
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.controls import AsyncLoop
from policy.entry import compose_config
from policy.foresee import Differences, Episodes, check_recorded, read_episodes, scale_of
from policy.foresight import FILE, Foresight, dynamics_for, load_foresight
from policy.planning import AgentPlanner
from policy.run_planner import planner_of
from policy.serving.client import RemotePlanner
from policy.tasks import maker
from policy.train import prepare
from policy.types import Request
from tests.policy.serving.serving_fakes import FakePlanner, serving

CONTRACT = Contract(
    {
        "place": Field(shape=(2,), unit="m"),
        "turn": Field(shape=(1,), unit="rad", angles=(0,)),
        "still": Field(shape=(1,), unit="m"),
    },
    Field(shape=(2,), unit="m"),
    control_dt=0.1,
)


def world(place, turn, actions):
    """The place goes half of the way to each action; the turn grows by its first element."""
    places, turns = [place], [turn]
    for action in actions:
        places.append(places[-1] + 0.5 * (action - places[-1]))
        turns.append(math.remainder(turns[-1] + action[0], 2 * math.pi))
    return np.array(places, np.float32), np.array(turns, np.float32)[:, None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    with EpisodeStore.create(folder / "store.zarr", CONTRACT) as store:
        for _ in range(20):
            actions = rng.uniform(-1, 1, (30, 2)).astype(np.float32)
            places, turns = world(rng.uniform(-1, 1, 2), rng.uniform(-3, 3), actions[:-1])
            store.append(
                {
                    "place": places,
                    "turn": turns,
                    "still": np.ones((30, 1), np.float32),
                    "action": actions,
                }
            )
        settings = ["net.channels=[8,16]", "precision=fp32", "batch_size=8", "threads=1"]
        cfg = compose_config("train", [f"store.path={store.path}", "device=cpu", *settings])
        prepare(cfg, store, folder / "run").save()
    return folder


def config(folder, *overrides):
    return compose_config(
        "foresee",
        [
            f"checkpoint={folder / 'run'}",
            f"store.path={folder / 'store.zarr'}",
            "steps=600",
            "batch_size=64",
            "size=32",
            "n_blocks=1",
            "lr=1e-2",
            "holdout=0.2",
            *overrides,
        ],
    )


def test_it_foresees_what_the_world_does(checkpoint, capsys):
    foresee.run(config(checkpoint))
    told = capsys.readouterr().out
    assert "16 episodes to learn from, 4 to judge by" in told
    assert "8 ticks" in told
    assert "do not use it" not in told
    loaded = load(checkpoint / "run")
    normalizer = prepared_normalizer(checkpoint)
    foresight = load_foresight(loaded.path, loaded.contract, normalizer)
    rng = np.random.default_rng(1)
    off, changed = [], []
    for _ in range(20):
        decided = rng.uniform(-1, 1, (5, 2))
        place, turn = rng.uniform(-0.5, 0.5, 2), rng.uniform(-3, 3)
        places, turns = world(place, turn, decided[1:])
        foreseen = foresight(
            {
                "place": places[:1],
                "turn": turns[:1],
                "still": np.ones((1, 1), np.float32),
            },
            decided,
        )
        off.append(foreseen["place"][0] - places[-1])
        changed.append(places[0] - places[-1])
        assert foreseen["still"].item() == 1.0
        assert -math.pi <= foreseen["turn"].item() <= math.pi
    # Much nearer to the truth than what was seen: that is what it is for.
    assert np.square(off).mean() < 0.1**2 * np.square(changed).mean()


def prepared_normalizer(folder):
    return from_checkpoint(load(folder / "run")).normalizer


def test_a_second_one_replaces_the_first_and_touches_nothing_else(checkpoint, capsys):
    path = load(checkpoint / "run").path
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    foresee.run(config(checkpoint, "steps=2"))
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert "replaced" in capsys.readouterr().out
    assert {name for name in after if after[name] != before.get(name)} == {FILE}


def test_a_model_that_went_astray_replaces_nothing(checkpoint):
    path = load(checkpoint / "run").path
    foresee.run(config(checkpoint, "steps=2"))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(ValueError, match="not finite after learning, nothing was written"):
        foresee.run(config(checkpoint, "steps=30", "lr=1e30"))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_whole_numbers_are_learned_as_well():
    rng = np.random.default_rng(0)
    action = rng.integers(-3, 4, (200, 1))
    count = np.cumsum(action, axis=0) - action  # The action is added in the next tick.
    field = Field(shape=(1,), normalization="identity")
    whole = Field(shape=(1,), dtype="int64")
    contract = Contract({"count": whole}, field, control_dt=0.1)

    class Store:
        def lengths_of(self, episodes):
            return np.full(len(episodes), 20)

        def read(self, key, *, episodes):
            return {"count": count, "action": action.astype(np.float32)}[key]

    episodes = read_episodes(Store(), contract, range(10))  # pyright: ignore
    differences = Differences(contract)
    scale = scale_of(episodes, differences)
    torch.manual_seed(0)
    normalizer = Normalizer.fit(contract, {"count": count, "action": action.astype(np.float32)})
    net = dynamics_for(contract, normalizer, size=16, n_blocks=1)
    foresight = Foresight(contract, normalizer, net, scale)
    cfg = OmegaConf.create({"n_ahead": 1, "steps": 300, "batch_size": 32, "lr": 1e-2})
    generator = torch.Generator().manual_seed(0)
    foresee.fit(net, foresight, episodes, differences, scale, cfg, generator)
    # By far better than that nothing changes, which is where the network begins.
    assert foresee.shares(foresight, episodes, differences, scale)[1] < 0.3
    assert foresight({"count": np.array([[5]])}, np.array([[0.0], [2.0]]))["count"] == [[7]]


def test_a_model_that_learned_nothing_is_not_recommended(checkpoint, capsys):
    foresee.run(config(checkpoint, "steps=1", "lr=1e-12", "holdout=0"))
    told = capsys.readouterr().out
    assert "1 ticks 100.0 %" in told
    assert "do not use it" in told


def two_episodes():
    return read_two(np.arange(5.0), np.arange(5.0))


def read_two(place, action, lengths=(3, 2)):
    contract = Contract({"place": Field(shape=(1,))}, Field(shape=(1,)), control_dt=0.1)

    class Store:
        def lengths_of(self, episodes):
            return np.array(lengths)[list(episodes)]

        def read(self, key, *, episodes):
            values = {"place": place, "action": action}[key]
            return np.asarray(values, np.float32)[:, None]

    return contract, read_episodes(Store(), contract, range(len(lengths)))  # pyright: ignore


def test_the_action_before_stays_within_its_episode():
    _, episodes = two_episodes()
    assert episodes.before[:, 0].tolist() == [0, 0, 1, 3, 3]
    assert episodes.left.tolist() == [2, 1, 0, 1, 0]
    assert episodes.starts(1).tolist() == [0, 1, 3]
    assert episodes.starts(2).tolist() == [0]


def test_the_scale_is_the_root_mean_square_change():
    contract, episodes = read_two([0, 1, 4, 7, 7], np.zeros(5))
    # Changes are 1, 3 and, in the second episode, 0.
    scale = scale_of(episodes, Differences(contract))
    assert scale.tolist() == pytest.approx([math.sqrt(10 / 3)])


@pytest.mark.parametrize(
    ("place", "lengths", "told"),
    [
        (np.arange(3.0), (1, 1, 1), "no episode has two steps"),
        (np.ones(5), (3, 2), "no observation ever changes"),
    ],
)
def test_where_there_is_nothing_to_foresee_it_says_so(place, lengths, told):
    contract, episodes = read_two(place, np.zeros(len(place)), lengths)
    with pytest.raises(ValueError, match=told):
        scale_of(episodes, Differences(contract))


def test_angles_differ_by_the_shorter_way_round():
    differences = Differences(CONTRACT)
    a = {"place": torch.zeros(1, 2), "turn": torch.tensor([[3.0]]), "still": torch.zeros(1, 1)}
    b = {"place": torch.ones(1, 2), "turn": torch.tensor([[-3.0]]), "still": torch.zeros(1, 1)}
    assert differences(a, b)[0].tolist() == pytest.approx([-1, -1, 6 - 2 * math.pi, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps=0", "steps is 0"),
        ("lr=0", "lr is 0"),
        ("lr=inf", "lr is inf"),
        ("n_ahead=30", "no episode has so many"),
        ("holdout=1", "holdout_fraction is 1"),
    ],
)
def test_impossible_settings_are_refused(checkpoint, override, told):
    with pytest.raises(ValueError, match=told):
        foresee.run(config(checkpoint, override))


def test_a_goal_that_no_step_recorded_is_refused():
    with pytest.raises(ValueError, match=r"looks at 'goal', which the store does not have"):
        check_recorded(
            replace(CONTRACT, observation={**CONTRACT.observation, "goal": Field((2,))}), CONTRACT
        )


def test_a_seam_that_waits_has_nothing_to_foresee():
    overrides = ["env=pillar", "checkpoint=x", "seam=wait", "seam.foresight=true"]
    cfg = compose_config("run", overrides)
    with pytest.raises(ValueError, match="nothing would be foreseen"), planner_of(cfg, CONTRACT):
        pass
    with pytest.raises(ValueError, match="nothing would be foreseen"):
        AsyncLoop(compose_config("evaluate", [*overrides, "control=async"]))


def test_pictures_are_refused_before_anything_is_read(checkpoint, monkeypatch):
    class Seeing:
        contract = Contract({"view": Field((8, 8, 3), "uint8")}, Field((2,)), control_dt=0.1)

        def to(self, device):
            return self

        def eval(self):
            return self

    def fail(*_):
        raise AssertionError("the store is opened")

    monkeypatch.setattr(foresee, "from_checkpoint", lambda loaded: Seeing())
    monkeypatch.setattr(foresee, "instantiate", fail)
    with pytest.raises(ValueError, match="'view' is a picture"):
        foresee.run(config(checkpoint))


def test_late_control_with_foresight_plays_in_the_simulator(pillar_checkpoint, tmp_path):
    settings = ["env=pick_place", "+env.max_episode_steps=20", "episodes=1", "control=async"]
    settings += ["delay=2", "seam=foresee", "action_horizon=4", "sampler.grid.n_steps=1"]
    plain = compose_config("evaluate", [f"checkpoint={pillar_checkpoint}", *settings])
    with pytest.raises(ValueError, match="cadence foresee"):
        AsyncLoop(plain)
    run = tmp_path / "run"
    shutil.copytree(pillar_checkpoint, run, symlinks=True)
    store = pillar_checkpoint.parent / "store.zarr"
    foresee.run(compose_config("foresee", [f"checkpoint={run}", f"store.path={store}", "steps=5"]))
    cfg = compose_config("evaluate", [f"checkpoint={run}", *settings])
    loop = AsyncLoop(cfg)
    episodes = loop.measure(maker(cfg, None))
    assert [episode.length for episode in episodes] == [20]
    assert loop.log.delays_in_ticks[2] > 0


def test_a_served_policy_foresees_as_one_in_this_process(pillar_checkpoint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pillar_checkpoint, run, symlinks=True)
    store = pillar_checkpoint.parent / "store.zarr"
    foresee.run(compose_config("foresee", [f"checkpoint={run}", f"store.path={store}", "steps=5"]))
    # With a carry, so that both streams must have moved on by the same ticks.
    sampler = instantiate(
        compose_config("evaluate", ["checkpoint=x", "env=pillar", "sampler=rti"]).sampler
    )
    here, there = (
        AgentPlanner.load(run, sampler, action_horizon=4, foresight=True) for _ in range(2)
    )
    rng, contract = np.random.default_rng(0), here.contract

    def request(tick, delay, is_decided=True):
        history = {
            name: rng.uniform(-0.1, 0.1, (here.horizons.obs, *field.shape)).astype(field.dtype)
            for name, field in contract.observation.items()
        }
        decided = rng.uniform(-0.1, 0.1, (1 + delay, contract.action.size)) if is_decided else None
        return Request(history, tick, delay=delay, decided=decided)

    asked = [(0, 0, False), (4, 2), (8, 3), (12, 2, False), (16, 0), (17, 6), (20, 0)]
    with (
        serving(cast(FakePlanner, there), warm_up=there.warm_up) as server,
        RemotePlanner(server.address, contract, deadline=20.0) as remote,
    ):
        for sent in (request(*each) for each in asked):
            chunk = here(sent)
            assert chunk.actions.tolist() == remote(sent).actions.tolist()
            if sent.decided is not None:
                decided = sent.decided[1:].astype(np.float32)
                assert chunk.actions[: sent.delay].tolist() == decided.tolist()


def test_a_served_policy_brings_its_own_foresight():
    cfg = compose_config("run", ["env=pillar", "policy=ws://127.0.0.1:1", "seam=foresee"])
    with pytest.raises(ValueError, match="give foresight=true"), planner_of(cfg, CONTRACT):
        pass


def test_episodes_go_to_a_device_whole():
    _, episodes = two_episodes()
    moved = episodes.to(torch.device("cpu"))
    assert isinstance(moved, Episodes)
    assert moved.at(torch.tensor([4]))["place"].tolist() == [[4.0]]
