"""Fine-tune a checkpoint with reward: play, learn from it, keep the best.

    cadence finetune checkpoint=outputs/train/latest env=pillar minutes=10
    cadence finetune recipe=push_t_human checkpoint=outputs/train/latest
    cadence finetune resume=outputs/finetune/latest
    torchrun --nproc_per_node 2 -m policy.finetune checkpoint=CHECKPOINT env=pillar out=DIR
    cadence evaluate checkpoint=outputs/finetune/latest env=pillar sampler=fitted sampler.n_steps=5

Plays chunks in `num_envs` environments, with the noise of the denoising chain as exploration, and
updates the network after every `chunks` of each. Evaluates without that noise from starts of its
own, keeps the best policy, goes back to it where success collapses, and gives up (exit status 3)
where it collapses time and again. Of several processes each has its own environments.

Writes checkpoints (the best policy), training/ (what `resume=` goes on from), metrics.jsonl,
timing.jsonl and learning.png. Ctrl-C keeps all of it. On the CPU a run that was killed goes on from
where it was last saved, and equals an uninterrupted one bit for bit, if env_steps is given and
reached before minutes; after Ctrl-C it goes on at once, with new episodes.
"""

import os
import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from policy.build import check_targets
from policy.checkpoint import CheckpointError, load, load_trainer
from policy.entry import entry, out_dir
from policy.finetune_figure import draw_learning
from policy.finetune_loop import fit
from policy.finetune_run import Run, prepare
from policy.finetune_state import FINETUNE, TRAINING
from policy.guard import Verdict
from policy.ranks import Ranks, join
from policy.train import refuse_occupied, refuse_settings_beside_resume

COLLAPSED = 3  # exit status
# What the configuration of a run to be resumed may build.
TUNING_MODULES = (
    "policy.rl.",
    "policy.nets.",
    "policy.guard",
    "torch.optim.",
)


def run(cfg: DictConfig) -> int:
    """Fine-tune as configured; returns the exit status."""
    ranks = join()
    if ranks.rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # The first rank speaks.
    this = start(cfg, ranks) if cfg.resume is None else resume(Path(str(cfg.resume)), ranks)
    print(
        f"chain: {this.kernel.n_steps} calls per {this.space.horizons.action} actions, steps "
        f"{list(this.decided())} learn; {this.slots.n * ranks.size} environments"
    )
    try:
        verdict = fit(this)
    except KeyboardInterrupt:
        print(f"go on with: cadence finetune resume={this.out}")
        raise
    except ValueError:
        if this.iteration == 0 and this.is_first_rank:
            discard(this.out)
        raise
    finally:
        this.slots.envs.close()
        if this.is_first_rank:
            draw_learning(this.out, measure=this.evaluation.measure)
    conclude(this)
    ranks.leave()
    if verdict is Verdict.GIVE_UP:
        print(
            f"cadence finetune: error: {this.evaluation.measure} collapsed "
            f"{this.guard.n_rollbacks} times: lower optimizer.lr, effort.max_kl or "
            f"chain.explore_std; the best policy is kept",
            file=sys.stderr,
        )
        return COLLAPSED
    return 0


def discard(out: Path) -> None:
    """Remove what a run wrote before it was refused, so that it can be started again there."""
    for folder in ("checkpoints", TRAINING):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("metrics.jsonl", "timing.jsonl"):
        (out / file).unlink(missing_ok=True)


def start(cfg: DictConfig, ranks: Ranks) -> Run:
    """A new run, with its folder, which a refused one does not leave.

    Raises:
        ValueError: a setting is impossible.
    """
    if ranks.size > 1 and cfg.out is None:
        raise ValueError("with several processes give out=DIR, which all of them write to")
    refuse_occupied(cfg, verb="fine-tuning")
    this = prepare(cfg.copy(), Path(), ranks)
    try:
        check_resumable(this.cfg)
    except CheckpointError:
        print("note: this run cannot be resumed, for its environment is not of cadence")
    this.out = out_dir(cfg, "finetune")
    return this


def resume(path: Path, ranks: Ranks) -> Run:
    """The run in a folder, or that a checkpoint in it belongs to, where it was last saved.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ValueError: it has given up, or the checkpoint that it was tuned from has changed, or it was
            of another number of processes.
    """
    folder = load(path).run_dir
    out = folder.parent if folder.name == TRAINING else folder
    saved = load(out / TRAINING if (out / TRAINING).is_dir() else out)
    if FINETUNE not in saved.config:
        raise CheckpointError(
            f"{path} is no fine-tuning run", fix=f"go on with cadence train resume={path}"
        )
    cfg = OmegaConf.create(saved.config[FINETUNE])
    assert isinstance(cfg, DictConfig)
    check_resumable(cfg)
    run = prepare(cfg, out, ranks)
    state = load_trainer(saved)
    if state["base"] != run.base:
        raise ValueError(
            f"{cfg.checkpoint} is not what {path} was tuned from, it has changed since: start a "
            f"new run with checkpoint={out}, or bring the old one back"
        )
    if state["n_ranks"] != ranks.size:
        raise ValueError(
            f"{path} ran in {state['n_ranks']} processes, not {ranks.size}: start it as it was "
            f"(torchrun --nproc_per_node), or a new run with checkpoint={out}"
        )
    run.load_state(state)
    if run.guard.has_given_up:
        raise ValueError(
            f"{path} gave up after {run.guard.n_rollbacks} collapses: start a new run from its "
            f"best policy with checkpoint={out} and a lower optimizer.lr"
        )
    run.seconds, run.best = saved.seconds, load_trainer(load(out))
    run.slots.restart(run.iteration)
    return run


def check_resumable(cfg: DictConfig) -> None:
    """Raise CheckpointError where a run's configuration would build or import what is not ours.

    It may come from a stranger. An id such as "module:Name-v0" makes Gymnasium import the module.
    """
    rest = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "env"])
    check_targets(rest, TUNING_MODULES)
    node = cfg.env
    while isinstance(node, DictConfig):
        # The environment that another one wraps is looked at by itself.
        inner = {str(name): part for name, part in node.items() if name not in ("_target_", "env")}
        check_targets(OmegaConf.create(inner), ("envs.",))
        if node.get("_target_") != "gymnasium.make":
            check_targets(OmegaConf.create({"_target_": node.get("_target_")}), ("envs.",))
        name = node.get("id", "")
        if not isinstance(name, str) or (":" in name and not name.startswith("envs.")):
            raise CheckpointError(
                f"the checkpoint wants to import the environment {name!r}, it may name those of "
                f"cadence and of Gymnasium only: do not trust this file"
            )
        node = node.get("env")


def conclude(this: Run) -> None:
    """Say what came of a run, and how to measure it."""
    measure, clip = this.evaluation.measure, this.kernel.clip
    print(f"best policy: {measure} {this.guard.best:.3f} in evaluation, {this.out}")
    if this.actor_updates() <= 0 and this.since == 0:
        print(
            f"the policy is still that of the checkpoint: its critic warmed up all the time "
            f"(critic_warmup={this.cfg.critic_warmup}, the run had {this.iteration} iterations)"
        )
    if measure == "success" and this.guard.best == 0:
        print(
            "no evaluation had a success, so the policy is still that of the checkpoint: judge it "
            "by evaluation.measure=return where the task has none"
        )
    print(
        f"measure it: cadence evaluate checkpoint={this.out} env=... sampler=fitted "
        f"sampler.n_steps={this.kernel.n_steps}"
        f"{'' if clip is None else f' sampler.descent.clip={clip:g}'}"
    )


def main() -> None:
    """Entry point."""
    refuse_settings_beside_resume(sys.argv[1:], verb="finetune")
    entry("finetune", run)


if __name__ == "__main__":
    main()
