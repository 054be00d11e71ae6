"""Fine-tune a checkpoint with reward: play, learn from it, keep the best.

    cadence finetune checkpoint=outputs/train/latest env=pillar minutes=10
    cadence finetune recipe=push_t_human checkpoint=outputs/train/latest
    cadence finetune resume=outputs/finetune/latest
    torchrun --nproc_per_node 2 -m policy.finetune checkpoint=outputs/train/latest env=pillar
    cadence evaluate checkpoint=outputs/finetune/latest env=pillar sampler=fitted sampler.n_steps=5

Plays chunks in `num_envs` environments, with the noise of the denoising chain as exploration, and
updates the network after every `chunks` of each. Evaluates without that noise from starts of its
own, keeps the best policy, goes back to it where success collapses, and gives up (exit status 3)
where it collapses time and again. Of several processes each has its own environments.

Writes checkpoints (the best policy), training/ (what `resume=` goes on from), metrics.jsonl,
timing.jsonl and learning.png. Ctrl-C keeps all of it. On the CPU a resumed run equals an
uninterrupted one bit for bit, if its end is given in env_steps.
"""

import os
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.types import Horizons
from envs.vector import MakeEnv, make_vec
from policy.agent import Agent, NotFiniteError
from policy.build import check_targets, chunk_space
from policy.checkpoint import CheckpointError, LoadedCheckpoint, load, load_trainer
from policy.diffusion.step import ancestral
from policy.entry import entry, out_dir, pick_device, plain, use_threads
from policy.evaluate import check_env, summarise
from policy.finetune_figure import draw_learning
from policy.finetune_state import FINETUNE, TRAINING, Policies, config_of, save_policy
from policy.guard import Guard, Verdict
from policy.interruption import Interruption
from policy.metrics import MetricsWriter
from policy.play import Episode, play
from policy.progress import progress_bar
from policy.rl.chain import Kernel
from policy.rl.ranks import Ranks, join
from policy.rl.rollout import Rollout, Tally, collect, encode
from policy.rl.slots import Slots
from policy.rl.update import Learner
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.state_tree import State
from policy.tasks import maker, tasks_of
from policy.train import refuse_occupied, refuse_settings_beside_resume
from policy.types import ChunkSpace

COLLAPSED = 3  # exit status
# What the configuration of a run to be resumed may build.
TUNING_MODULES = (
    "policy.rl.",
    "policy.nets.",
    "policy.guard",
    "torch.optim.",
    "envs.",
    "gymnasium",
)


@dataclass
class Run:
    """A fine-tuning run."""

    cfg: DictConfig
    out: Path
    loaded: LoadedCheckpoint
    policies: Policies
    space: ChunkSpace
    kernel: Kernel
    make_env: MakeEnv
    slots: Slots
    learner: Learner
    guard: Guard
    ranks: Ranks
    iteration: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    best: State | None = None  # to go back to

    @property
    def is_first_rank(self) -> bool:
        """Whether this process evaluates, writes and speaks for all."""
        return self.ranks.rank == 0

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 1 at the end."""
        by_steps = 0.0 if self.cfg.env_steps is None else self.env_steps / self.cfg.env_steps
        by_time = 0.0 if self.cfg.minutes is None else self.seconds / (60 * self.cfg.minutes)
        return self.ranks.agree(max(by_steps, by_time))

    def decided(self) -> range:
        """Steps of the chain that are decisions in this iteration.

        Raises:
            ValueError: none of them has noise.
        """
        decided = instantiate(self.cfg.decided)(self.iteration, self.kernel.n_steps)
        drawn = [step for step in decided if self.kernel.has_noise(step)]
        if not drawn:
            raise ValueError(
                f"none of the steps {list(decided)} of the chain has noise: raise "
                f"chain.explore_std, or let more steps learn (decided)"
            )
        return range(drawn[0], drawn[-1] + 1)

    def set_rates(self) -> None:
        """The actor's learning rate: warmed up, and lower after each collapse."""
        warmup = min(1.0, (self.iteration + 1) / max(1, self.cfg.rate_warmup))
        for group in self.learner.actor_optimizer.param_groups:
            group["lr"] = self.cfg.optimizer.lr * warmup * self.guard.rate_scale

    def state(self) -> State:
        """All that `load_state` needs to go on."""
        learner = self.learner
        return {
            "net": self.policies.tuned.net.state_dict(),
            "critic": None if learner.critic is None else learner.critic.state_dict(),
            "actor_optimizer": learner.actor_optimizer.state_dict(),
            "critic_optimizer": (
                None if learner.critic_optimizer is None else learner.critic_optimizer.state_dict()
            ),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "best": self.guard.best,
            "n_rollbacks": self.guard.n_rollbacks,
        }

    def load_weights(self, state: State) -> None:
        """Networks and optimisers as they were at a state of `state`."""
        learner = self.learner
        self.policies.tuned.net.load_state_dict(state["net"])
        learner.actor_optimizer.load_state_dict(state["actor_optimizer"])
        if learner.critic is not None and learner.critic_optimizer is not None:
            learner.critic.load_state_dict(state["critic"])
            learner.critic_optimizer.load_state_dict(state["critic_optimizer"])

    def load_state(self, state: State) -> None:
        """Go on from a state of `state`."""
        self.load_weights(state)
        self.iteration, self.env_steps = int(state["iteration"]), int(state["env_steps"])
        self.guard.best, self.guard.n_rollbacks = float(state["best"]), int(state["n_rollbacks"])

    def save(self, folder: Path) -> Path | None:
        """Write a checkpoint into a folder; only the first rank does."""
        if not self.is_first_rank:
            return None
        policy = self.policies.combined(self.decided().start, self.kernel)
        return save_policy(
            folder,
            policy,
            self.loaded,
            config=config_of(self.loaded, plain(self.cfg), policy),
            kernel=self.kernel,
            step=self.iteration,
            seconds=self.seconds,
            trainer=self.state(),
        )

    def evaluate(self) -> dict | None:
        """Success and score from the starts of evaluation; None on other ranks than the first.

        Raises:
            NotFiniteError: the policy predicted something that is not a number.
        """
        if not self.is_first_rank:
            return None
        cfg = self.cfg.evaluation
        policy = self.policies.combined(self.decided().start, self.kernel)
        descent = Descent(partial(ancestral, eta=0.0), clip=self.kernel.clip)
        sampler = Sequential(
            space=self.space, grid=torch.tensor(self.kernel.sigmas), descent=descent
        )
        agent = Agent(policy, sampler, device=self.slots_device, rows=cfg.rows)
        episodes: list[Episode] = []
        envs = vectorised(self.cfg, self.make_env, self.space.horizons, cfg.num_envs)
        try:
            seeds = range(cfg.seed, cfg.seed + cfg.episodes)
            play(agent, envs, seeds, finished=episodes)
        finally:
            envs.close()
        return summarise(episodes)

    @property
    def slots_device(self) -> torch.device:
        """Where the networks are."""
        return next(self.policies.tuned.parameters()).device


def vectorised(cfg: DictConfig, make_env: MakeEnv, horizons: Horizons, num_envs: int) -> VectorEnv:
    """Environments at the level of chunks."""
    return make_vec(
        make_env,
        num_envs,
        horizons_obs=horizons.obs,
        horizons_action=horizons.action,
        asynchronous=cfg.asynchronous,
    )


def prepare(cfg: DictConfig, out: Path, ranks: Ranks) -> Run:
    """Everything at iteration 0.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ContractError: the environment is not that of the checkpoint.
        ValueError: a setting is impossible.
    """
    check_budget(cfg)
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    loaded = load(cfg.checkpoint)
    torch.manual_seed(cfg.seed)  # of the critic's initial weights
    policies = Policies.of(loaded, device)
    kernel = instantiate(cfg.chain)
    space = chunk_space(loaded, action_horizon=cfg.action_horizon, device=device)
    kernel.check(space)
    tasks = tasks_of(cfg)
    if len(tasks) != 1:
        raise ValueError(f"fine-tuning takes one task at a time, task names {tasks}: choose one")
    make_env = maker(cfg, tasks[0])
    check_env(loaded.contract, make_env, checkpoint=cfg.checkpoint)
    advantage, objective = instantiate(cfg.advantage), instantiate(cfg.objective)
    slots = Slots(
        vectorised(cfg, make_env, space.horizons, cfg.num_envs),
        instantiate(cfg.reward),
        seed=cfg.seed,
        ranks=ranks,
        group_size=advantage.group_size,
    )
    net = policies.tuned.net
    critic = None
    if advantage.needs_critic:
        slots.begin()  # Only the environment knows the size of what it shows.
        n_features = encode(policies.tuned, slots.observation)[1].shape[1]
        critic = instantiate(cfg.critic)(n_features=n_features).to(device)
        slots.restart(0)
    learner = Learner(
        denoiser=policies.tuned,
        actor=net,
        critic=critic,
        actor_optimizer=instantiate(cfg.optimizer)(net.parameters()),
        critic_optimizer=critic and instantiate(cfg.critic_optimizer)(critic.parameters()),
        objective=objective,
        advantage=advantage,
        kernel=kernel,
        effort=instantiate(cfg.effort),
        ranks=ranks,
        seed=cfg.seed,
        reference=policies.base if objective.kl_weight else None,
    )
    guard = instantiate(cfg.guard)
    run = Run(cfg, out, loaded, policies, space, kernel, make_env, slots, learner, guard, ranks)
    run.decided()  # Refuses a schedule without a decision.
    return run


def check_budget(cfg: DictConfig) -> None:
    """Raise ValueError where a number of the run is impossible."""
    if cfg.env_steps is None and cfg.minutes is None:
        raise ValueError("give env_steps=... or minutes=...")
    for name in ("env_steps", "minutes", "num_envs", "chunks", "save_every"):
        if cfg[name] is not None and not cfg[name] > 0:
            raise ValueError(f"{name} is {cfg[name]}, it must be positive")
    for name in ("every", "episodes", "num_envs", "rows"):
        if cfg.evaluation[name] < 1:
            raise ValueError(f"evaluation.{name} is {cfg.evaluation[name]}, it must be at least 1")
    if cfg.evaluation.num_envs > cfg.evaluation.episodes:
        cfg.evaluation.num_envs = cfg.evaluation.episodes


def fit(run: Run) -> Verdict:
    """Train until the budget is spent, or the guard gives up, or Ctrl-C.

    Raises:
        KeyboardInterrupt: after Ctrl-C; everything is saved.
    """
    start = time.monotonic() - run.seconds
    quiet = not run.is_first_rank
    folder = run.out if run.is_first_rank else run.out / f"rank_{run.ranks.rank}"
    with (
        MetricsWriter(folder / "metrics.jsonl") as metrics,
        MetricsWriter(folder / "timing.jsonl") as timing,
        Interruption() as interruption,
        progress_bar(unit="step", initial=run.env_steps, is_hidden=quiet) as bar,
    ):
        metrics.truncate_after(run.iteration)
        timing.truncate_after(run.iteration)
        if run.iteration == 0:
            consider(run, metrics)
        while run.progress < 1:
            if run.ranks.agree(float(interruption.requested)):
                run.save(run.out / TRAINING)
                raise KeyboardInterrupt
            verdict = iterate(run, metrics, timing)
            run.seconds = time.monotonic() - start
            is_due = run.iteration % run.cfg.evaluation.every == 0 or run.progress >= 1
            if verdict is Verdict.GO_ON and is_due:
                verdict = consider(run, metrics)
            if verdict is Verdict.GIVE_UP:
                return verdict
            if run.iteration % run.cfg.save_every == 0:
                run.save(run.out / TRAINING)
                run.slots.restart(run.iteration)
            bar.total = round(run.env_steps / max(1e-9, run.progress))
            bar.update(run.env_steps - bar.n)
    run.save(run.out / TRAINING)
    return Verdict.GO_ON


def iterate(run: Run, metrics: MetricsWriter, timing: MetricsWriter) -> Verdict:
    """One rollout and one update."""
    cfg, tuned, base = run.cfg, run.policies.tuned, run.policies.base
    run.set_rates()
    decided = run.decided()
    n_tuned = run.kernel.n_steps - decided.start
    try:
        rollout, tally = collect(
            run.slots,
            tuned,
            run.kernel,
            [base] * decided.start + [tuned] * n_tuned,
            decided,
            horizons=run.space.horizons,
            n_chunks=cfg.chunks,
            iteration=run.iteration,
        )
        check_rewarded(run, rollout)
        begin = time.perf_counter()
        learned = run.learner.update(
            rollout,
            iteration=run.iteration,
            with_actor=run.iteration >= cfg.critic_warmup or run.learner.critic is None,
        )
        updating = time.perf_counter() - begin
    except FloatingPointError as error:
        run.iteration += 1
        return undo(run, run.guard.collapse(), str(error))
    run.iteration += 1
    run.env_steps += round(float(run.ranks.sum(torch.tensor(float(tally.env_steps)))))
    seconds = tally.simulating + tally.denoising + updating
    metrics.write(run.iteration, env_steps=run.env_steps, **learned, **played(tally))
    timing.write(
        run.iteration,
        seconds=round(run.seconds + seconds, 3),
        env_steps_per_second=tally.env_steps / seconds,
        simulating=tally.simulating / seconds,
        denoising=tally.denoising / seconds,
        updating=updating / seconds,
    )
    return Verdict.GO_ON


def played(tally: Tally) -> dict[str, float]:
    """Metrics of the episodes that are reported, where there are any."""
    measured: dict[str, float] = {
        "quarantined": tally.n_quarantined,
        "episodes": len(tally.episodes),
    }
    if tally.episodes:
        measured["train_success"] = float(np.mean([e.is_success for e in tally.episodes]))
        measured["train_return"] = float(np.mean([e.reward for e in tally.episodes]))
        measured["train_length"] = float(np.mean([e.length for e in tally.episodes]))
    return measured


def check_rewarded(run: Run, rollout: Rollout) -> None:
    """Raise ValueError where there is nothing to learn from, before hours are spent."""
    is_rewarded = run.ranks.sum((rollout.rewards != 0).sum())
    if run.iteration == 0 and not is_rewarded and run.guard.best <= 0:
        raise ValueError(
            f"the first evaluation had no success, and none of the first {rollout.rewards.numel()} "
            f"chunks a reward: either the environment does not report what `reward` asks for "
            f"(try reward.total=1 or reward.progress=1), or the checkpoint never succeeds, and "
            f"has to be trained better first"
        )


def consider(run: Run, metrics: MetricsWriter) -> Verdict:
    """Evaluate, and keep the policy or go back to the best."""
    try:
        measured = run.evaluate()
    except NotFiniteError as error:
        return undo(run, run.guard.collapse(), str(error))
    success = run.ranks.agree(0.0 if measured is None else measured["success"])
    verdict = run.guard.judge(success)
    if measured is not None:
        if not np.isfinite(measured["score"]):
            raise ValueError(
                f"the best reward of an evaluated episode is {measured['score']}: the environment "
                f"gives rewards that are no numbers, mend it first"
            )
        low, high = measured["success_interval"]
        print(
            f"\n{run.env_steps} steps, {run.seconds / 60:.1f} min: success {success:.3f} "
            f"[{low:.3f}, {high:.3f}]  score {measured['score']:.3f}"
            f"{'  (best)' if verdict is Verdict.BEST else ''}"
        )
        metrics.write(
            run.iteration,
            env_steps=run.env_steps,
            success=success,
            success_low=low,
            success_high=high,
            score=measured["score"],
            seconds=round(run.seconds, 1),
        )
    if verdict is Verdict.BEST:
        run.best = deepcopy(run.state())
        run.save(run.out)
        return Verdict.GO_ON
    return undo(run, verdict, f"success fell to {success:.2f}, the best was {run.guard.best:.2f}")


def undo(run: Run, verdict: Verdict, reason: str) -> Verdict:
    """Go back to the best weights where the guard says so; returns the verdict."""
    if verdict not in (Verdict.ROLL_BACK, Verdict.GIVE_UP):
        return verdict
    assert run.best is not None
    run.load_weights(run.best)
    run.slots.restart(run.iteration)
    if run.is_first_rank:
        print(
            f"\ncollapse: {reason}; back to the best policy, of iteration {run.best['iteration']}"
        )
        if verdict is Verdict.ROLL_BACK:
            print(f"learning rate: {run.guard.rate_scale:g} of what it was configured as")
    return verdict


def resume(path: Path, ranks: Ranks) -> Run:
    """The run in a folder, where it was last saved.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ValueError: the checkpoint that it was tuned from has changed.
    """
    saved = load(path / TRAINING if (path / TRAINING).is_dir() else path)
    if FINETUNE not in saved.config:
        raise CheckpointError(
            f"{path} is no fine-tuning run", fix=f"go on with cadence train resume={path}"
        )
    cfg = OmegaConf.create(saved.config[FINETUNE])
    assert isinstance(cfg, DictConfig)
    check_targets(cfg, TUNING_MODULES)
    run = prepare(cfg, saved.run_dir.parent, ranks)
    if run.loaded.config.get("seed") is not None and run.loaded.store_digest != saved.store_digest:
        raise ValueError(f"{cfg.checkpoint} is not the checkpoint that {path} was tuned from")
    run.load_state(load_trainer(saved))
    run.seconds = saved.seconds
    run.best = load_trainer(load(run.out))
    run.slots.restart(run.iteration)
    return run


def run(cfg: DictConfig) -> int:
    """Fine-tune as configured; returns the exit status."""
    ranks = join()
    if ranks.rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # The first rank speaks.
    if cfg.resume is not None:
        this = resume(Path(str(cfg.resume)), ranks)
    else:
        cfg = cfg.copy()
        cfg.checkpoint = str(Path(str(cfg.checkpoint)).absolute())
        refuse_occupied(cfg, verb="fine-tuning")
        this = prepare(cfg, Path(), ranks)
        this.out = shared_out(cfg, ranks)
    print(
        f"chain: {this.kernel.n_steps} calls per {this.space.horizons.action} actions, steps "
        f"{list(this.decided())} learn; {this.slots.n * ranks.size} environments"
    )
    try:
        verdict = fit(this)
    finally:
        this.slots.envs.close()
        if this.is_first_rank and this.out != Path():
            draw_learning(this.out)
    best = this.out
    print(f"best policy: success {this.guard.best:.3f} in evaluation, {best}")
    print(
        f"measure it: cadence evaluate checkpoint={best} env=... sampler=fitted "
        f"sampler.n_steps={this.kernel.n_steps}"
    )
    if verdict is Verdict.GIVE_UP:
        print(
            f"cadence finetune: error: success collapsed {this.guard.n_rollbacks} times: lower "
            f"optimizer.lr, effort.max_kl or chain.explore_std; the best policy is kept",
            file=sys.stderr,
        )
        return COLLAPSED
    return 0


def shared_out(cfg: DictConfig, ranks: Ranks) -> Path:
    """The run's folder, which the first rank makes."""
    if ranks.size == 1:
        return out_dir(cfg, "finetune")
    if cfg.out is None:
        raise ValueError("with several processes give out=DIR, which all of them write to")
    return out_dir(cfg, "finetune")


def main() -> None:
    """Entry point."""
    refuse_settings_beside_resume(sys.argv[1:], verb="finetune")
    entry("finetune", run)


if __name__ == "__main__":
    main()
