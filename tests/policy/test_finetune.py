"""The verb: its results in other verbs, exact resumption, collapse, refusals."""

import json

import gymnasium
import numpy as np
import pytest
import torch

import policy.finetune as verb
from data.record import contract_of
from data.store import EpisodeStore
from data.types import ContractError
from envs.gymnasium_adapter import make
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.entry import compose_config
from policy.evaluate import run as evaluate
from policy.finetune import COLLAPSED
from policy.metrics import read_metrics
from policy.nets.by_level import ByLevel
from policy.train import prepare

SETTINGS = (
    "env=gymnasium",
    "env.id=Pendulum-v1",
    "reward.total=0.01",
    "reward.success=0",
    "chain.sigmas=[2.0,0.5,0.1,0.0]",
    "num_envs=2",
    "chunks=6",
    "critic_warmup=1",
    "effort.batch_size=16",
    "evaluation.every=2",
    "evaluation.episodes=1",
    "save_every=2",
    "env_steps=72",  # Six iterations of 2 environments, 6 chunks, 1 action.
    "minutes=null",
    "threads=1",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained policy for a pendulum."""
    folder = tmp_path_factory.mktemp("pendulum")
    env = make("Pendulum-v1")
    store = EpisodeStore.create(folder / "store.zarr", contract_of(env))
    env.close()
    rng = np.random.default_rng(0)
    shapes = {name: field.shape for name, field in store.contract.fields.items()}
    store.append({k: rng.uniform(-1, 1, (20, *s)).astype("float32") for k, s in shapes.items()})
    settings = ["net=mlp", "net.size=16", "horizons.pred=4", "horizons.action=1", "horizons.obs=1"]
    settings += ["precision=fp32", "batch_size=8", "holdout=0", "threads=1", "device=cpu"]
    cfg = compose_config("train", [f"store.path={store.path}", *settings])
    prepare(cfg, store, folder / "run").save()
    return folder / "run"


def configured(checkpoint, out, *more):
    return compose_config("finetune", [f"checkpoint={checkpoint}", f"out={out}", *SETTINGS, *more])


def weights(folder):
    return from_checkpoint(load(folder)).state_dict()


def test_its_result_is_a_checkpoint_like_any_other(checkpoint, tmp_path):
    out = tmp_path / "tuned"
    assert verb.run(configured(checkpoint, out)) == 0
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "explained_variance" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "success" in line] == [0, 2, 4, 6]
    assert all({"kl", "clipped", "ratio", "entropy"} <= set(line) for line in lines if "kl" in line)
    shares = json.loads((out / "timing.jsonl").read_text().splitlines()[-1])
    assert sum(shares[k] for k in ("simulating", "denoising", "updating")) == pytest.approx(1)
    assert (out / "learning.png").exists()
    newest = weights(out / "training")
    assert any(not torch.equal(v, weights(checkpoint)[k]) for k, v in newest.items())
    settings = ["env=gymnasium", "env.id=Pendulum-v1", "sampler=fitted", "sampler.n_steps=3"]
    settings += ["episodes=1", "videos=0", f"checkpoint={out}", f"out={tmp_path / 'evaluated'}"]
    results = evaluate(compose_config("evaluate", settings))
    assert results["nfe"] == 3
    assert load(out).weights == "tuned"


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(checkpoint, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    verb.run(configured(checkpoint, whole))

    class Killed(BaseException):
        pass

    plain = verb.iterate

    def iterate(run, *rest):
        if run.iteration == 5:  # One past what was saved last.
            raise Killed
        return plain(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "iterate", iterate)
        with pytest.raises(Killed):
            verb.run(configured(checkpoint, part))
    verb.run(compose_config("finetune", ["checkpoint=x", "env=gymnasium", f"resume={part}"]))
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (whole, part)]
    for line in (line for run in lines for line in run):
        line.pop("seconds", None)  # The only thing that hangs on the machine.
    assert lines[0] == lines[1]
    for name, value in weights(whole / "training").items():
        assert torch.equal(value, weights(part / "training")[name])


def test_a_collapse_ends_at_the_best_policy_with_a_status(
    checkpoint, tmp_path, monkeypatch, capsys
):
    out, successes = tmp_path / "tuned", iter([0.9, 0.5, 0.5, 0.5])

    def measured(run):
        success = next(successes)
        return {"success": success, "success_interval": (0.0, 1.0), "score": 0.0}

    monkeypatch.setattr(verb.Run, "evaluate", measured)
    settings = ["optimizer.lr=0.1", "effort.max_kl=null", "env_steps=7200"]
    assert verb.run(configured(checkpoint, out, *settings)) == COLLAPSED
    message = capsys.readouterr()
    assert message.out.count("back to the best policy, of iteration 0") == 3
    assert "collapsed 3 times" in message.err
    for name, value in weights(checkpoint).items():
        assert torch.equal(value, weights(out)[name])


def test_numbers_that_are_none_are_a_collapse(checkpoint, tmp_path):
    settings = ["optimizer.lr=1e30", "effort.max_kl=null", "effort.max_grad_norm=1e30"]
    settings += ["env_steps=7200", "evaluation.every=1000", "save_every=1000"]
    assert verb.run(configured(checkpoint, tmp_path / "tuned", *settings)) == COLLAPSED


def test_steps_that_do_not_learn_keep_their_network(checkpoint, tmp_path):
    out = tmp_path / "tuned"
    verb.run(configured(checkpoint, out, "decided.n_tuned=1", "optimizer.lr=0.01"))
    policy = from_checkpoint(load(out / "training"))
    base = from_checkpoint(load(checkpoint))
    assert isinstance(policy.net, ByLevel)
    x, cond = torch.randn(2, 4, 1), torch.randn(2, 3)
    for sigma, is_kept in ((2.0, True), (0.5, True), (0.1, False)):
        level = torch.full((2, 4), sigma)
        kept = torch.equal(policy(x, level, cond), base(x, level, cond))
        assert kept == is_kept
        bound = policy.at(level[0])(x, level, cond)
        torch.testing.assert_close(bound, policy(x, level, cond))


@pytest.mark.parametrize("objective", ["dppo", "grpo", "awm", "awr", "rwr", "gaussian_ppo"])
def test_every_objective_trains(checkpoint, tmp_path, objective):
    settings = [f"objective={objective}", "env_steps=24", "effort.epochs=0.5"]
    if objective in ("grpo", "rwr"):
        settings.append("advantage.group_size=2")
    if objective == "gaussian_ppo":  # It brings a chain of its own, which SETTINGS replaced.
        settings.append("chain.sigmas=[2.0,0.0]")
    assert verb.run(configured(checkpoint, tmp_path / objective, *settings)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decided.n_tuned=9"], "n_tuned is 9, the chain has 3 steps"),
        (["chain.explore_std=0", "chain.eta=0"], "no step of the chain is drawn"),
        (["chain.explore_std=1e-5"], "degenerate"),
        (["chain.sigmas=[900.0,0.0]"], "trained at"),
        (["reward.total=0"], "nothing to learn from"),
        (["reward.total=0", "reward.success=1"], "none of the first"),
        (["env_steps=null"], "env_steps=... or minutes"),
        (["objective=grpo", "advantage.group_size=4"], "does not divide into groups of 4"),
    ],
)
def test_what_cannot_work_is_refused_at_once(checkpoint, tmp_path, settings, message):
    cfg = configured(checkpoint, tmp_path / "tuned", *settings)
    with pytest.raises(Exception, match=message):
        verb.run(cfg)


def test_an_environment_of_another_contract_is_refused(checkpoint):
    cfg = compose_config("finetune", [f"checkpoint={checkpoint}", "env=pillar"])
    with pytest.raises(ContractError, match=r"control_dt"):
        verb.run(cfg)


def test_an_environment_whose_rewards_are_no_numbers_is_refused(checkpoint, tmp_path):
    class Odd(gymnasium.RewardWrapper):
        def reward(self, reward):
            return float("nan")

    gymnasium.register(
        "cadence/Odd-v0",
        entry_point=lambda **_: Odd(gymnasium.make("Pendulum-v1", disable_env_checker=True)),
        disable_env_checker=True,
    )
    cfg = configured(checkpoint, tmp_path / "tuned", "env.id=cadence/Odd-v0")
    with pytest.raises(ValueError, match="rewards that are no numbers"):
        verb.run(cfg)
