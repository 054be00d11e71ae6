"""A policy with goals from store to robot: what it is taught, told, and does without being told."""

from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from data.record import contract_of
from data.store import EpisodeStore
from data.types import Contract, ContractError
from policy import fit, train
from policy.agent import Agent
from policy.build import chunk_space, from_checkpoint
from policy.checkpoint import load
from policy.entry import compose_config, compose_part
from policy.evaluate import check_env
from policy.sampler_fit import load_fit
from policy.train import prepare
from policy.trainer import Trainer
from policy.types import ChunkSpace

SMALL = [
    "net.size=16",
    "net.n_blocks=1",
    "precision=fp32",
    "batch_size=8",
    "device=cpu",
    "threads=1",
]
N = 5  # streams


def make_env(name: str) -> gymnasium.Env:
    return gymnasium.make(f"envs.four_pads:cadence/{name}-v0")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    env = make_env("FourPads")
    contract = contract_of(env)
    env.close()
    store = EpisodeStore.create(tmp_path_factory.mktemp("play") / "store.zarr", contract)
    rng = np.random.default_rng(0)
    for _ in range(3):
        store.append(
            {
                name: rng.uniform(-0.2, 0.2, (20, *field.shape)).astype(field.dtype)
                for name, field in contract.fields.items()
            }
        )
    return store


def config(store: EpisodeStore, *more: str):
    return compose_config("train", ["experiment=play", f"store.path={store.path}", *SMALL, *more])


def perturb(net: torch.nn.Module) -> None:
    """Let an untrained network look at everything."""
    generator = torch.Generator().manual_seed(0)
    for weights in net.parameters():
        weights.data += 0.1 * torch.randn(weights.shape, generator=generator)


@pytest.fixture(scope="module")
def checkpoint(store, tmp_path_factory) -> Path:
    """Weights that look at everything, untrained."""
    out = tmp_path_factory.mktemp("run") / "run"
    run = prepare(config(store), store, out)
    perturb(run.trainer.ema.module)
    run.save()
    return out


def make_agent(checkpoint, **settings) -> Agent:
    sampler = instantiate(compose_part("sampler", "ddim_8", {"grid": {"n_steps": 3}}))
    return Agent.load(checkpoint, sampler, rows=8, **settings)


def observations(agent: Agent, goal: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    fields = agent.contract.observation
    seen = {
        name: rng.uniform(-0.2, 0.2, (N, 2, *field.shape)).astype(np.float32)
        for name, field in fields.items()
    }
    return {**seen, "goal": np.full_like(seen["goal"], goal)}


def chunk(agent: Agent, goal: float) -> np.ndarray:
    return agent.chunk(agent.start(range(N)), observations(agent, goal))


def test_the_goal_is_in_the_contract_and_the_environment_has_to_offer_it(checkpoint):
    agent = make_agent(checkpoint)
    assert agent.contract.observation["goal"].shape == (2,)
    check_env(agent.contract, partial(make_env, "FourPadsGoal"), checkpoint="c")
    with pytest.raises(ContractError, match=r"checkpoint c needs the field 'goal'; the environ"):
        check_env(agent.contract, partial(make_env, "FourPads"), checkpoint="c")


def test_a_goal_of_another_width_names_both_sides(checkpoint):
    def wide():
        env = make_env("FourPadsGoal")
        stated = env.metadata["contract"]
        goal = {**stated["observation"]["goal"], "shape": (3,)}
        observation = {**stated["observation"], "goal": goal}
        env.unwrapped.metadata = {  # pyright: ignore[reportAttributeAccessIssue]
            **env.metadata,
            "contract": {**stated, "observation": observation},
        }
        return env

    message = r"goal.*\(2,\) in checkpoint c.*\(3,\) in the environment"
    with pytest.raises(ContractError, match=message):
        check_env(make_agent(checkpoint).contract, wide, checkpoint="c")
    agent = make_agent(checkpoint)
    seen = observations(agent, 0.1)
    wrong = {**seen, "goal": np.zeros((N, 2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"'goal' has shape \(8, 2, 3\), the policy needs \[batch"):
        agent.chunk(agent.start(range(N)), wrong)


def test_weight_0_does_not_look_at_the_goal_and_weight_1_does(checkpoint):
    free, told = make_agent(checkpoint, goal_weight=0.0), make_agent(checkpoint)
    assert np.array_equal(chunk(free, 0.1), chunk(free, -0.1))
    assert np.abs(chunk(told, 0.1) - chunk(told, -0.1)).min(axis=(1, 2)).max() > 0
    assert free.nfe == told.nfe == make_agent(checkpoint, goal_weight=2.0).nfe == 3


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_guidance_ends_in_both_of_them(checkpoint, weight):
    """D_u + w (D_c - D_u) is continuous in w; float32 allows about 1e-4."""
    exact = chunk(make_agent(checkpoint, goal_weight=weight), 0.1)
    guided = chunk(make_agent(checkpoint, goal_weight=weight + 1e-5), 0.1)
    np.testing.assert_allclose(guided, exact, atol=1e-3)
    away = chunk(make_agent(checkpoint, goal_weight=weight + 1), 0.1)
    assert np.abs(away - exact).max() > 1e-2


@pytest.mark.parametrize("sampler", ["streaming", "picard_4", "rti"])
def test_samplers_of_all_kinds_can_be_guided(checkpoint, sampler):
    loaded = load(checkpoint)
    made = instantiate(compose_part("sampler", sampler))(space=chunk_space(loaded))
    guided, free = (
        Agent(from_checkpoint(loaded), made, rows=8, goal_weight=weight) for weight in (1e-6, 0)
    )
    np.testing.assert_allclose(chunk(guided, 0.1), chunk(free, 0.1), atol=1e-3)


def test_a_policy_without_goals_has_no_weight(pillar_checkpoint):
    assert make_agent(pillar_checkpoint).goal_weight == 1
    with pytest.raises(ValueError, match=r"goal_weight is 0.0.*encoder=goal"):
        make_agent(pillar_checkpoint, goal_weight=0.0)
    policy = from_checkpoint(load(pillar_checkpoint))
    with pytest.raises(ValueError, match="no goal to leave out: its encoder, StateEncoder"):
        policy.without_goal(torch.zeros(1, 3))


def test_a_policy_that_always_saw_its_goal_has_no_weight(store):
    run = prepare(config(store, "encoder.dropout=0"), store, Path())
    policy = run.trainer.policy
    assert not policy.has_goals
    sampler = instantiate(compose_part("sampler", "ddim_3"))
    space = ChunkSpace(policy.horizons, policy.contract.action.size)
    with pytest.raises(ValueError, match=r"goal_weight is 0.*encoder\.dropout > 0"):
        Agent(policy, sampler(space=space), goal_weight=0.0)


def test_a_weight_that_is_no_number_is_refused(checkpoint):
    with pytest.raises(ValueError, match="goal_weight is nan"):
        make_agent(checkpoint, goal_weight=float("nan"))


def test_encoding_without_goal_is_that_of_any_goal_left_out(checkpoint):
    policy = from_checkpoint(load(checkpoint)).eval()
    agent = make_agent(checkpoint)
    near, far = (
        {name: torch.from_numpy(value) for name, value in observations(agent, goal).items()}
        for goal in (0.1, -0.1)
    )
    free = policy.encode(near, with_goal=False)
    assert torch.equal(free, policy.encode(far, with_goal=False))
    assert torch.equal(free, policy.without_goal(policy.encode(near)))
    assert not torch.equal(free, policy.encode(near))


def test_a_resumed_run_sees_the_goals_of_an_uninterrupted_one(store, tmp_path, monkeypatch):
    step, seen = Trainer.step, []

    def watched(self, batch, rate_scale):
        seen.append(batch.observation["goal"])
        step(self, batch, rate_scale)

    monkeypatch.setattr(Trainer, "step", watched)
    settings = ["minutes=null", "log_every=1", "warmup_steps=1"]
    train.run(config(store, *settings, "steps=4", f"out={tmp_path / 'whole'}"))
    run = prepare(config(store, *settings, "steps=2"), store, tmp_path / "part")
    run.out.mkdir()
    train.fit(run)
    run.cfg.steps = 4
    run.save()
    train.fit(train.resume(run.out))
    whole, resumed = seen[:4], seen[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_validation_is_the_same_every_time(store, tmp_path):
    run = prepare(config(store, "holdout=0.4"), store, tmp_path)
    assert run.holdout is not None
    perturb(run.trainer.ema.module)
    losses = [run.trainer.validate(run.holdout, batch_size=8) for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_sampler_is_fitted_to_a_policy_with_goals(store, checkpoint):
    small = ["n_steps=[2]", "n_reference=4", "n_windows=8", "n_anchors=2"]
    where = [f"checkpoint={checkpoint}", f"store.path={store.path}"]
    fit.run(compose_config("fit", [*where, *small]))
    assert sorted(load_fit(load(checkpoint).path).grids) == [2]


def test_a_source_that_the_store_lacks_is_refused_before_training(store, tmp_path):
    cfg = config(store, "goals.source=block")
    with pytest.raises(ContractError, match=r"'block', the store has \['cube', 'gripper'\]"):
        prepare(cfg, store, tmp_path)


def test_an_encoder_for_goals_needs_some(store, tmp_path):
    cfg = config(store, "goals=null")
    with pytest.raises(ValueError, match=r"goals is \['goal'\], the fields are \['cube', 'grip"):
        prepare(cfg, store, tmp_path)


def test_goals_are_part_of_the_contract_alone(store, checkpoint):
    """The store stays as it is, and the checkpoint's contract is the store's and the goal."""
    trained = load(checkpoint).contract
    assert isinstance(trained, Contract)
    assert list(trained.observation) == [*store.contract.observation, "goal"]
