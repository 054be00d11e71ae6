"""The verb: its results in other verbs, exact resumption, collapse, refusals."""

import json
import shutil
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import policy.finetune as verb
import policy.finetune_loop as finetune_loop
from data.record import contract_of
from data.store import EpisodeStore
from data.types import ContractError
from envs.gymnasium_adapter import make
from policy.agent import NotFiniteError
from policy.build import from_checkpoint
from policy.checkpoint import CheckpointError, load, load_trainer
from policy.checkpoint_save import save
from policy.entry import compose_config
from policy.evaluate import run as evaluate
from policy.finetune import COLLAPSED, check_resumable
from policy.finetune_evaluation import Evaluation, Measured
from policy.finetune_run import Run
from policy.finetune_state import TRAINING
from policy.metrics import read_metrics
from policy.nets.by_level import ByLevel
from policy.ranks import Ranks
from policy.rl.update import Learner
from policy.train import prepare
from policy.train import run as train

SETTINGS = (
    "env=gymnasium",
    "env.id=Pendulum-v1",
    "+env.max_episode_steps=20",
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


@pytest.fixture
def drawn():
    """For a test that looks at the figure, or at what becomes of it."""


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Other runs have no figure, which takes longer than they do."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(verb, "draw_learning", lambda out, *, measure: None)


def configured(checkpoint, out, *more):
    return compose_config("finetune", [f"checkpoint={checkpoint}", f"out={out}", *SETTINGS, *more])


def weights(folder):
    return from_checkpoint(load(folder)).state_dict()


def test_its_result_is_a_checkpoint_like_any_other(checkpoint, tmp_path, drawn):
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

    plain = finetune_loop.iterate

    def iterate(run, *rest):
        if run.iteration == 5:  # One past what was saved last.
            raise Killed
        return plain(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_loop, "iterate", iterate)
        with pytest.raises(Killed):
            verb.run(configured(checkpoint, part))
    verb.run(compose_config("finetune", [f"resume={part}"]))
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

    def measured(evaluation, policy):
        return Measured(next(successes), (0.0, 1.0), 0.0, 0.0, (0.0, 0.0))

    monkeypatch.setattr(Evaluation, "__call__", measured)
    settings = ["optimizer.lr=0.1", "effort.max_kl=null", "env_steps=7200"]
    assert verb.run(configured(checkpoint, out, *settings)) == COLLAPSED
    message = capsys.readouterr()
    assert message.out.count("back to the best policy, of iteration 0") == 3
    assert "collapsed 3 times" in message.err
    for name, value in weights(checkpoint).items():
        assert torch.equal(value, weights(out)[name])


def test_what_gave_up_is_not_resumed(checkpoint, tmp_path, monkeypatch):
    out, successes = tmp_path / "tuned", iter([0.9, 0.5])

    def measured(evaluation, policy):
        return Measured(next(successes), (0.0, 1.0), 0.0, 0.0, (0.0, 0.0))

    monkeypatch.setattr(Evaluation, "__call__", measured)
    assert verb.run(configured(checkpoint, out, "guard.max_rollbacks=0")) == COLLAPSED
    with pytest.raises(ValueError, match=r"gave up after 1 collapses.*checkpoint="):
        verb.run(compose_config("finetune", [f"resume={out}"]))


def test_the_rate_warms_up_after_the_critic_and_falls_to_its_end(checkpoint, tmp_path, monkeypatch):
    rates = watch_rates(monkeypatch)
    settings = ["critic_warmup=2", "rate_warmup=2", "rate_end=0.5", "optimizer.lr=1e-4"]
    # A clock that stands at the end of the minutes has no part in the rate.
    monkeypatch.setattr(Run, "progress", lambda run: run.env_steps / run.cfg.env_steps)
    verb.run(configured(checkpoint, tmp_path / "run", *settings, "minutes=1e-9"))
    # Of six iterations two are the critic's; then half the rate, then a cosine from 1 to 0.5.
    scales = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    shares = [0.5 + 0.5 * (1 + np.cos(np.pi * done / 6)) / 2 for done in range(6)]
    expected = [1e-4 * scale * share for scale, share in zip(scales, shares, strict=True)]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert [learns for _, learns in rates] == [False] * 2 + [True] * 4


def watch_rates(monkeypatch):
    """A list that gets, of each update to come, the actor's rate and whether it learns."""
    rates, update = [], Learner.update

    def watched(self, rollout, *, iteration, with_actor=True):
        rates.append((self.actor.optimizer.param_groups[0]["lr"], with_actor))
        return update(self, rollout, iteration=iteration, with_actor=with_actor)

    monkeypatch.setattr(Learner, "update", watched)
    return rates


def test_after_a_collapse_the_critic_warms_up_again(checkpoint, tmp_path, monkeypatch):
    rates, successes = watch_rates(monkeypatch), iter([0.9, 0.5, 0.9, 0.9])

    def measured(evaluation, policy):
        return Measured(next(successes), (0.0, 1.0), 0.0, 0.0, (0.0, 0.0))

    monkeypatch.setattr(Evaluation, "__call__", measured)
    out = tmp_path / "run"
    verb.run(configured(checkpoint, out, "critic_warmup=1"))  # It collapses after two updates.
    assert [learns for _, learns in rates] == [False, True, False, True, True, True]
    assert load_trainer(load(out / TRAINING))["since"] == 2


def test_a_run_of_an_older_program_has_a_constant_rate(checkpoint, tmp_path):
    this = verb.start(configured(checkpoint, tmp_path / "run", "rate_warmup=1"), Ranks())
    del this.cfg.rate_end
    this.iteration, this.env_steps = 5, 60
    finetune_loop.set_rate(this)
    assert this.learner.actor.optimizer.param_groups[0]["lr"] == this.cfg.optimizer.lr
    this.slots.envs.close()


def test_a_run_without_an_update_of_the_policy_says_so(checkpoint, tmp_path, capsys):
    assert verb.run(configured(checkpoint, tmp_path / "run", "critic_warmup=1000")) == 0
    assert "critic_warmup=1000, the run had 6 iterations" in capsys.readouterr().out


def test_what_is_refused_can_be_started_again_in_its_folder(checkpoint, tmp_path, drawn):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"had a reward.*reward\.total=1"):
        verb.run(configured(checkpoint, out, "reward.success=1", "reward.total=0"))
    assert verb.run(configured(checkpoint, out)) == 0


def test_a_collapse_in_evaluation_is_undone(checkpoint, tmp_path, monkeypatch, capsys):
    plain, calls = Evaluation.__call__, []

    def measured(evaluation, policy):
        calls.append(policy)
        if len(calls) == 2:
            raise NotFiniteError("a prediction is not finite")
        return plain(evaluation, policy)

    monkeypatch.setattr(Evaluation, "__call__", measured)
    assert verb.run(configured(checkpoint, tmp_path / "tuned")) == 0
    assert "a prediction is not finite; back to the best policy" in capsys.readouterr().out


def test_a_checkpoint_that_predicts_no_numbers_is_refused(checkpoint, tmp_path, monkeypatch):
    def measured(evaluation, policy):
        raise NotFiniteError("a prediction is not finite")

    monkeypatch.setattr(Evaluation, "__call__", measured)
    with pytest.raises(NotFiniteError):
        verb.run(configured(checkpoint, tmp_path / "tuned"))


def test_without_success_the_return_tells_the_best(checkpoint, tmp_path, monkeypatch, drawn):
    out, totals = tmp_path / "tuned", iter([-100.0, -90.0, -80.0, -99.9])

    def measured(evaluation, policy):
        return Measured(0.0, (0.0, 1.0), 0.0, next(totals), (-100.0, -80.0))

    monkeypatch.setattr(Evaluation, "__call__", measured)
    assert verb.run(configured(checkpoint, out, "evaluation.measure=return")) == 0
    assert load(out).step == 4
    assert (out / "learning.png").exists()


@pytest.mark.parametrize("found_on", [True, False])
def test_what_one_process_finds_no_number_all_undo(found_on, checkpoint, tmp_path, monkeypatch):
    """Neither of two processes may go on alone: it would wait for the other for ever."""
    this = verb.start(configured(checkpoint, tmp_path / "tuned"), Ranks())
    this.ranks = OneFails()
    if found_on:
        with torch.no_grad():
            next(this.policies.tuned.net.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="no numbers"):
        finetune_loop.play_chunks(this)
    this.slots.envs.close()


class OneFails(Ranks):
    """As if another process had set every flag."""

    def any(self, flag):
        return True


def test_a_rollout_without_a_number_is_refused(checkpoint, tmp_path, monkeypatch):
    this = verb.start(configured(checkpoint, tmp_path / "tuned"), Ranks())
    plain = this.slots.step
    nothing = np.zeros(this.slots.n, bool)
    monkeypatch.setattr(this.slots, "step", lambda a: replace(plain(a), is_valid=nothing))
    with pytest.raises(ValueError, match=r"all 12 chunks of iteration 0"):
        finetune_loop.play_chunks(this)
    this.slots.envs.close()


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


def test_what_was_tuned_in_part_can_be_tuned_again(checkpoint, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    verb.run(configured(checkpoint, once, "decided.n_tuned=1", "env_steps=24"))
    for settings, depth in ((["env_steps=24"], 1), (["env_steps=24", "decided.n_tuned=2"], 2)):
        out = twice / str(depth)
        verb.run(configured(once, out, *settings))
        net = from_checkpoint(load(out)).net
        for _ in range(depth):
            assert isinstance(net, ByLevel)
            net = net.low
        assert not isinstance(net, ByLevel)


def test_training_does_not_go_on_from_what_was_tuned(checkpoint, tmp_path):
    out = tmp_path / "tuned"
    verb.run(configured(checkpoint, out, "env_steps=12"))
    cfg = compose_config("train", [f"resume={out}"])
    with pytest.raises(CheckpointError, match=r"tuned by reward.*cadence finetune resume="):
        train(cfg)


def test_a_run_is_resumed_by_any_of_its_folders_but_with_its_checkpoint_only(checkpoint, tmp_path):
    base, out = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(checkpoint, base, symlinks=True)
    verb.run(configured(base, out, "env_steps=12"))
    for path in (out, out / TRAINING, load(out).path, load(out / TRAINING).path):
        this = verb.resume(path, Ranks())
        this.slots.envs.close()
        assert (this.out, this.iteration, this.env_steps) == (out, 1, 12)
    with pytest.raises(ValueError, match="ran in 1 processes, not 2"):
        verb.resume(out, Ranks(0, 2))
    # The base is trained anew, on the same demonstrations.
    other = from_checkpoint(load(base))
    with torch.no_grad():
        next(other.net.parameters()).add_(1.0)
    loaded = load(base)
    save(
        base,
        step=loaded.step,
        policy=other,
        contract=loaded.contract,
        horizons=loaded.horizons,
        config=loaded.config,
        trainer={},
        seconds=0.0,
        store_digest=loaded.store_digest,
        versions=loaded.versions,
        keep=1,
    )
    with pytest.raises(ValueError, match=r"is not what .* was tuned from"):
        verb.resume(out, Ranks())


def test_no_other_run_is_resumed(checkpoint):
    with pytest.raises(CheckpointError, match="no fine-tuning run: go on with cadence train"):
        verb.resume(checkpoint, Ranks())


def test_a_run_that_was_killed_at_once_goes_on(checkpoint, tmp_path, monkeypatch, drawn):
    out = tmp_path / "tuned"

    def iterate(run, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune_loop, "iterate", iterate)
        with pytest.raises(KeyboardInterrupt):
            verb.run(configured(checkpoint, out, "env_steps=12"))
    shutil.rmtree(out / TRAINING)  # As if it had been killed between the two.
    assert verb.run(compose_config("finetune", [f"resume={out}"])) == 0
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "success" in line] == [0, 1]


@pytest.mark.parametrize("objective", ["dppo", "grpo", "awm", "awr", "rwr", "gaussian_ppo"])
def test_every_objective_trains(checkpoint, tmp_path, objective):
    settings = [f"objective={objective}", "env_steps=24", "effort.epochs=0.5"]
    if objective == "grpo":
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
        (["optimizer.lr=0"], "optimizer.lr is 0"),
        (["chain.sigmas=[2.0,abc,0.0]"], r"chain.sigmas is .*abc"),
        (["evaluation.every=0"], "evaluation.every is 0"),
        (["evaluation.rows=0"], "evaluation.rows is 0"),
        (["evaluation.measure=score"], "measure is 'score', choose success or return"),
        ([f"evaluation.seed={2**30}"], "beyond are the starts of training"),
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


@pytest.mark.parametrize(
    "env",
    [
        {"_target_": "gymnasium.make", "id": "antigravity:Name-v0"},
        {"_target_": "envs.gymnasium_adapter.make", "id": "antigravity:Name-v0"},
        {"_target_": "gymnasium.envs.registration.load_env_creator", "name": "os:getcwd"},
        {"_target_": "gymnasium.make", "id": "Pendulum-v1", "x": {"_target_": "os.getcwd"}},
        {"_target_": "envs.tell_task.make", "env": {"_target_": "os.getcwd"}},
        {"_target_": "envs.metaworld.make", "tasks": [{"_target_": "os.getcwd"}]},
    ],
)
def test_a_strangers_run_neither_builds_nor_imports_what_is_not_ours(env):
    with pytest.raises(CheckpointError, match="wants to"):
        check_resumable(OmegaConf.create({"env": env}))


@pytest.mark.parametrize("env", ["pillar", "gym_pusht", "metaworld_10"])
def test_runs_in_our_environments_are_resumable(env):
    check_resumable(compose_config("finetune", [f"env={env}", "checkpoint=x"]))


def test_runs_in_environments_of_gymnasium_and_told_ones_are_resumable():
    plain = ["checkpoint=x", "env=gymnasium", "env.id=Hopper-v5"]
    check_resumable(compose_config("finetune", plain))
    told = ["checkpoint=x", "env=told", "env@env.env=pillar", "task=a", "env.tasks=[a,b]"]
    check_resumable(compose_config("finetune", told))
