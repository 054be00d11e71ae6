"""A fine-tuning run: what it is made of, and how it is saved."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from gymnasium.vector import VectorEnv
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from envs.vector import MakeEnv, make_vec
from policy.build import chunk_space
from policy.checkpoint import POLICY, LoadedCheckpoint, load
from policy.entry import pick_device, plain, use_threads
from policy.evaluate import check_env
from policy.finetune_evaluation import Evaluation
from policy.finetune_state import TRAINING, Policies, config_of, save_policy
from policy.guard import Guard
from policy.model import DiffusionPolicy
from policy.ranks import Ranks
from policy.rl.actor_update import ActorUpdate
from policy.rl.behaviour import Behaviour, encode
from policy.rl.chain import Kernel
from policy.rl.critic_update import CriticUpdate
from policy.rl.returns import Advantage
from policy.rl.slots import Slots
from policy.rl.update import Learner
from policy.state_tree import State
from policy.tasks import maker, tasks_of
from policy.types import ChunkSpace


@dataclass
class Run:
    """A fine-tuning run.

    Args:
        cfg: its configuration.
        out: its folder.
        loaded: what it tunes.
        policies: the one that learns, and the one before.
        space: of their chunks.
        kernel: of the chains.
        slots: where it plays.
        learner: what learns.
        evaluation: how good that is.
        guard: what is done about it.
        ranks: this process among others.
        iteration: rollouts so far.
        since: iteration at which the policy last began from weights that were saved.
        env_steps: executed steps so far, of all ranks.
        seconds: so far.
        best: state of the best policy.
    """

    cfg: DictConfig
    out: Path
    loaded: LoadedCheckpoint
    policies: Policies
    space: ChunkSpace
    kernel: Kernel
    slots: Slots
    learner: Learner
    evaluation: Evaluation
    guard: Guard
    ranks: Ranks
    iteration: int = 0
    since: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    best: State | None = None

    @property
    def is_first_rank(self) -> bool:
        """Whether this process evaluates, writes and speaks for all."""
        return self.ranks.rank == 0

    def progress(self) -> float:
        """Share of the budget that is spent, 1 at the end; all ranks have to ask."""
        by_steps = 0.0 if self.cfg.env_steps is None else self.env_steps / self.cfg.env_steps
        by_time = 0.0 if self.cfg.minutes is None else self.seconds / (60 * self.cfg.minutes)
        return self.ranks.agree(max(by_steps, by_time))

    def rate_progress(self) -> float:
        """Share of the budget by which the learning rate falls; all ranks have to ask.

        That of the steps where they are limited, so that no clock has a part in the weights.
        """
        if self.cfg.env_steps is not None:
            return self.env_steps / self.cfg.env_steps
        return self.progress()

    def actor_updates(self) -> int:
        """Iterations in which the actor has learned; below 0 while the critic learns alone.

        That it does at the beginning, and again after each return to the best policy, whose saved
        critic may know little.
        """
        warmup = 0 if self.learner.critic is None else self.cfg.critic_warmup
        return self.iteration - self.since - warmup

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

    def behaviour(self) -> Behaviour:
        """How it plays in this iteration."""
        decided, base, tuned = self.decided(), self.policies.base, self.policies.tuned
        n_tuned = self.kernel.n_steps - decided.start
        denoisers = [base] * decided.start + [tuned] * n_tuned
        return Behaviour(tuned, self.kernel, denoisers, decided, self.space.horizons)

    def policy(self) -> DiffusionPolicy:
        """What it would deploy by now."""
        return self.policies.combined(self.decided().start, self.kernel)

    def state(self) -> State:
        """All that `load_state` needs to go on."""
        return {
            **self.learner.state(),
            "iteration": self.iteration,
            "since": self.since,
            "env_steps": self.env_steps,
            "best": self.guard.best,
            "n_rollbacks": self.guard.n_rollbacks,
            "n_ranks": self.ranks.size,
            "base": self.base,
        }

    @property
    def base(self) -> str:
        """The weights before tuning, as a digest."""
        return str(self.loaded.files[POLICY]["sha256"])

    def load_state(self, state: State) -> None:
        """Go on from a state of `state`."""
        self.learner.load_state(state)
        self.iteration, self.env_steps = int(state["iteration"]), int(state["env_steps"])
        self.since = int(state.get("since", 0))  # Older programs did not count it.
        self.guard.best, self.guard.n_rollbacks = float(state["best"]), int(state["n_rollbacks"])

    def save_best(self) -> None:
        """Write a checkpoint of this policy, as the run's result."""
        self._save(self.out)

    def save(self) -> None:
        """Write what the run is resumed from, and start the environments anew, as that will."""
        self._save(self.out / TRAINING)
        self.slots.restart(self.iteration)

    def _save(self, folder: Path) -> None:
        """Write a checkpoint into a folder; only the first rank does."""
        if not self.is_first_rank:
            return
        limit = self.policies.limit(self.decided().start, self.kernel)
        save_policy(
            folder,
            self.policy(),
            self.loaded,
            config=config_of(self.loaded, plain(self.cfg), limit),
            kernel=self.kernel,
            step=self.iteration,
            seconds=self.seconds,
            trainer=self.state(),
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
    cfg.checkpoint = str(loaded.path)  # A run's newest may be another one when this is resumed.
    torch.manual_seed(cfg.seed)  # of the critic's initial weights
    policies = Policies.of(loaded, device)
    kernel: Kernel = instantiate(cfg.chain)
    space = chunk_space(loaded, action_horizon=cfg.action_horizon, device=device)
    kernel.check(space)
    tasks = tasks_of(cfg)
    if len(tasks) != 1:
        raise ValueError(f"fine-tuning takes one task at a time, task names {tasks}: choose one")
    make_env = maker(cfg, tasks[0])
    check_env(loaded.contract, make_env, checkpoint=cfg.checkpoint)
    make_envs = partial(vectorised, make_env, space, asynchronous=cfg.asynchronous)
    advantage: Advantage = instantiate(cfg.advantage)
    evaluation = Evaluation(
        make_envs,
        space,
        kernel,
        **{name: each for name, each in plain(cfg.evaluation).items() if name != "every"},
    )
    slots = Slots(
        make_envs(cfg.num_envs),
        instantiate(cfg.reward),
        seed=cfg.seed,
        ranks=ranks,
        group_size=advantage.group_size,
        is_episodic=advantage.is_episodic,
    )
    learner = assemble_learner(cfg, policies, kernel, space, slots, advantage, ranks)
    guard: Guard = instantiate(cfg.guard)
    run = Run(cfg, out, loaded, policies, space, kernel, slots, learner, evaluation, guard, ranks)
    run.decided()  # Refuses a schedule without a decision.
    return run


def check_budget(cfg: DictConfig) -> None:
    """Raise ValueError where a number of the run is impossible."""
    if cfg.env_steps is None and cfg.minutes is None:
        raise ValueError("give env_steps=... or minutes=...")
    for name in ("env_steps", "minutes", "num_envs", "chunks", "save_every"):
        if cfg[name] is not None and not cfg[name] > 0:
            raise ValueError(f"{name} is {cfg[name]}, it must be positive")
    if not cfg.optimizer.lr > 0:
        raise ValueError(f"optimizer.lr is {cfg.optimizer.lr}, it must be positive")
    if not 0 <= cfg.get("rate_end", 1.0) <= 1:
        raise ValueError(f"rate_end is {cfg.rate_end}, it must be in 0..1")
    if cfg.evaluation.every < 1:
        raise ValueError(f"evaluation.every is {cfg.evaluation.every}, it must be at least 1")


def vectorised(
    make_env: MakeEnv, space: ChunkSpace, num_envs: int, *, asynchronous: bool
) -> VectorEnv:
    """Environments at the level of chunks."""
    return make_vec(
        make_env,
        num_envs,
        horizons_obs=space.horizons.obs,
        horizons_action=space.horizons.action,
        asynchronous=asynchronous,
    )


def assemble_learner(
    cfg: DictConfig,
    policies: Policies,
    kernel: Kernel,
    space: ChunkSpace,
    slots: Slots,
    advantage: Advantage,
    ranks: Ranks,
) -> Learner:
    """What learns, at iteration 0."""
    objective, effort = instantiate(cfg.objective), instantiate(cfg.effort)
    objective.check(space)
    net = policies.tuned.net
    actor = ActorUpdate(
        denoiser=policies.tuned,
        module=net,
        optimizer=instantiate(cfg.optimizer)(net.parameters()),
        objective=objective,
        kernel=kernel,
        effort=effort,
        ranks=ranks,
        seed=cfg.seed,
        reference=policies.base if objective.kl_weight else None,
    )
    critic = None
    if advantage.needs_critic:
        module = new_critic(cfg, policies, slots)
        optimizer = instantiate(cfg.critic_optimizer)(module.parameters())
        critic = CriticUpdate(module, optimizer, effort, ranks, cfg.seed)
    return Learner(actor, critic, advantage, ranks)


def new_critic(cfg: DictConfig, policies: Policies, slots: Slots) -> nn.Module:
    """A critic of what the environments show, whose size only they know."""
    slots.begin()
    _, features = encode(policies.tuned, slots.observation)
    slots.restart(0)
    return instantiate(cfg.critic)(n_features=features.shape[1]).to(features.device)
