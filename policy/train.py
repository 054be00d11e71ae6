"""Train a diffusion policy on a store of demonstrations.

    cadence train store.path=outputs/collect/latest/store.zarr minutes=5
    cadence train store=mixture 'store.paths=[a/store.zarr,b/store.zarr]' 'store.weights=[3,1]'
    cadence train experiment=push_t_human store.path=PATH/pusht_cchi_v7_replay.zarr
    cadence train resume=outputs/train/latest
    torchrun --nproc_per_node 2 -m policy.train store.path=PATH threads=1
    cadence train store.path=PATH steps=200 profile=true

Ends after `steps` or `minutes`, whichever comes first. Writes metrics.jsonl, timing.jsonl (what
depends on the machine) and checkpoints. Ctrl-C leaves a usable checkpoint, and `resume=` goes on
from it: on the CPU a resumed run equals an uninterrupted one bit for bit, if its end is given in
steps, and as many processes go on. Evaluated and validated are always the averaged weights.

Several processes learn one batch together, and as one process would: each takes its share of the
windows, and the first one writes. `accumulate=` does the same one part after another, for batches
that do not fit the memory.

Demonstrations are read from the fastest place that holds them, which is printed: the device's or
the host's memory, a decoded cache on a disk, or the store itself (`reading.place=`). It changes
nothing but the speed.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.location import location
from policy.budget import Budget, learning_rate_scale
from policy.build import TRAINING_MODULES, check_targets
from policy.checkpoint import CheckpointError, load, load_trainer
from policy.entry import entry, out_dir
from policy.interruption import ECHO, Interruption
from policy.progress import progress_bar
from policy.ranks import Ranks, join
from policy.train_log import Log
from policy.train_run import Run, asked, prepare, window_order


def fit(run: Run) -> bool:
    """Train until the budget is spent or Ctrl-C; returns whether it was spent."""
    cfg, trainer = run.cfg, run.trainer
    budget = Budget(cfg.steps, cfg.minutes)
    order = window_order(cfg, run.dataset)
    start = time.monotonic() - run.seconds
    with (
        Log(run) as log,
        Interruption(echo=ECHO if trainer.ranks.size > 1 else 0.0) as interruption,
        run.dataset.batches(asked(run, order)) as batches,
        progress_bar(
            unit="step", initial=trainer.step_count, is_hidden=not run.is_first_rank
        ) as bar,
    ):
        trainer.watch = log.watch
        while (progress := budget.progress(trainer.step_count, run.seconds)) < 1:
            if trainer.ranks.any(interruption.requested):
                return False
            scale = learning_rate_scale(trainer.step_count, progress, warmup_steps=cfg.warmup_steps)
            with log.watch.part("data"):
                batch = next(batches)
            trainer.step(batch, scale)
            run.seconds = trainer.ranks.agree(time.monotonic() - start)
            bar.update()
            spent = budget.progress(trainer.step_count, run.seconds)
            is_last = spent >= 1
            if trainer.step_count % cfg.log_every == 0:
                with log.watch.part("log"):
                    loss = log.loss()
                epoch = trainer.step_count / order.steps_per_epoch
                bar.total = round(trainer.step_count / spent)
                bar.set_postfix_str(f"loss {loss:.4f}, epoch {epoch:.1f}", refresh=False)
            if trainer.step_count % cfg.validate_every == 0 or is_last:
                with log.watch.part("validation"):
                    log.validate()
            if trainer.step_count % cfg.save_every == 0 and not is_last:
                with log.watch.part("save"):
                    run.save()
            log.count()
    return True


def resume(path: Path, ranks: Ranks | None = None) -> Run:
    """The run that left a checkpoint, at that checkpoint.

    Args:
        path: of the run or the checkpoint.
        ranks: this process among others; None: it is alone.

    Raises:
        CheckpointError: there is none, or it is damaged, or tuned by reward.
        ValueError: the demonstrations are not those it was trained on.
    """
    loaded = load(path)
    if loaded.weights == "tuned":
        raise CheckpointError(
            f"{path} was tuned by reward, which training cannot go on from",
            fix=f"go on with cadence finetune resume={path}, or tune it again with "
            f"cadence finetune checkpoint={path}",
        )
    cfg = OmegaConf.create(loaded.config)
    assert isinstance(cfg, DictConfig)
    check_targets(cfg, TRAINING_MODULES)
    run = prepare(cfg, instantiate(cfg.store), loaded.run_dir, ranks, is_resumed=True)
    if run.store_digest != loaded.store_digest:
        raise ValueError(
            f"the store {run.store.path} is not the one of {path}: its content changed since; "
            f"train anew, or bring the old store back"
        )
    run.trainer.load_state(load_trainer(loaded))
    run.seconds = loaded.seconds
    print(f"resuming {loaded.run_dir} at step {run.trainer.step_count}")
    return run


def _is_occupied(out: Path) -> bool:
    """Whether a folder holds checkpoints; an empty folder is what a full disk left."""
    folder = out / "checkpoints"
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def refuse_occupied(cfg: DictConfig, *, verb: str = "training") -> None:
    """Raise ValueError where the run's folder holds another run, which would be lost."""
    if cfg.out is not None and _is_occupied(Path(str(cfg.out))):
        raise ValueError(
            f"out={cfg.out} holds a {verb} run already: go on with it by resume={cfg.out}, "
            f"or choose another folder"
        )


def make_absolute(store: DictConfig) -> None:
    """Let a configured store, or several, be found from any folder."""
    if OmegaConf.is_list(store.get("paths")):
        store.paths = [_absolute(path) for path in store.paths]
    elif "path" in store:
        store.path = _absolute(store.path)


def _absolute(path: object) -> str:
    place = location(str(path))
    return place if isinstance(place, str) else str(place.absolute())


def run(cfg: DictConfig) -> Path:
    """Train as configured; returns the run's folder."""
    ranks = join()
    if ranks.rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # The first rank speaks.
    this = begin(cfg, ranks) if cfg.resume is None else resume(Path(cfg.resume), ranks)
    complete = fit(this)
    checkpoint = this.save_unless_saved()
    print(f"{'done' if complete else 'interrupted'} at step {this.trainer.step_count}")
    print(f"checkpoint (ema weights): {checkpoint}")
    if not complete:
        print(f"go on with: cadence train resume={this.out}")
    ranks.leave()
    if not complete:
        raise KeyboardInterrupt
    return this.out


def begin(cfg: DictConfig, ranks: Ranks) -> Run:
    """A new run, with its folder, which a refused one does not leave."""
    cfg = cfg.copy()
    make_absolute(cfg.store)
    if cfg.reading.cache is not None:
        cfg.reading.cache = str(Path(str(cfg.reading.cache)).absolute())
    refuse_occupied(cfg)
    this = prepare(cfg, instantiate(cfg.store), Path(), ranks)
    # Only now, so that a refused run leaves no folder and `latest` as it was.
    if this.is_first_rank:
        this.out = out_dir(cfg, "train")
    return this


def refuse_settings_beside_resume(overrides: Sequence[str], *, verb: str = "train") -> None:
    """Exit where a run is to be resumed with other settings, which it would not take."""
    settings = [o for o in overrides if not o.startswith("-")]
    resumed = [o for o in settings if o.startswith("resume=") and o != "resume=null"]
    others = [o for o in settings if not o.startswith("resume=")]
    if others and resumed:
        print(
            f"cadence {verb}: error: resume= takes the settings of the interrupted run; "
            f"leave out {' '.join(others)}, or start a new run without resume=",
            file=sys.stderr,
        )
        sys.exit(2)


def main() -> None:
    """Entry point."""
    refuse_settings_beside_resume(sys.argv[1:])
    entry("train", run)


if __name__ == "__main__":
    main()
