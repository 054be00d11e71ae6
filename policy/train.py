"""Train a diffusion policy on a store of demonstrations.

    cadence train store.path=outputs/collect/latest/store.zarr minutes=5
    cadence train store=mixture 'store.paths=[a/store.zarr,b/store.zarr]' 'store.weights=[3,1]'
    cadence train experiment=push_t_human store.path=PATH/pusht_cchi_v7_replay.zarr
    cadence train resume=outputs/train/latest

Ends after `steps` or `minutes`, whichever comes first. Writes metrics.jsonl, timing.jsonl (what
depends on the machine) and checkpoints. Ctrl-C leaves a usable checkpoint, and `resume=` goes on
from it: on the CPU a resumed run equals an uninterrupted one bit for bit, if its end is given in
steps. Evaluated and validated are always the averaged weights.

Demonstrations are read from the fastest place that holds them, which is printed: the device's or
the host's memory, a decoded cache on a disk, or the store itself (`reading.place=`). It changes
nothing but the speed.
"""

import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.dataset import WindowDataset
from data.demonstrations import Demonstrations
from data.location import location
from data.mixture import split, visits_of
from data.normalize import Normalizer
from data.types import Horizons
from policy.budget import Budget, learning_rate_scale
from policy.build import TRAINING_MODULES, assemble, check_targets, check_training
from policy.checkpoint import CheckpointError, load, load_trainer
from policy.checkpoint_save import save
from policy.entry import entry, out_dir, pick_device, plain, use_threads
from policy.fingerprint import fingerprint
from policy.interruption import Interruption
from policy.metrics import MetricsWriter
from policy.precision import pick_precision
from policy.progress import progress_bar
from policy.trainer import GOALS, Trainer, WindowOrder, seeded


@dataclass
class Run:
    """A training run: what it learns from, what learns, and where it writes."""

    cfg: DictConfig
    out: Path
    store: Demonstrations
    dataset: WindowDataset
    holdout: WindowDataset | None
    trainer: Trainer
    store_digest: str
    seconds: float = 0.0  # of training, over all resumed parts

    def save_unless_saved(self) -> Path:
        """Folder of the checkpoint of this step, written if it is not there.

        Raises:
            ValueError: the weights are not finite.
        """
        place = self.out / "checkpoints" / f"step_{self.trainer.step_count:08d}"
        if place.exists():
            return place
        if not self.trainer.is_finite():
            raise ValueError(
                f"the weights are not finite at step {self.trainer.step_count} and are not saved: "
                f"lower optimizer.lr; earlier checkpoints are in {self.out}"
            )
        return self.save()

    def save(self) -> Path:
        """Write a checkpoint and let older ones go."""
        policy = self.trainer.policy
        return save(
            self.out,
            step=self.trainer.step_count,
            policy=self.trainer.ema.module,
            contract=policy.contract,
            horizons=policy.horizons,
            config=plain(self.cfg),
            trainer=self.trainer.state(),
            seconds=self.seconds,
            store_digest=self.store_digest,
            versions=fingerprint(),
            keep=self.cfg.keep,
        )


def prepare(cfg: DictConfig, store: Demonstrations, out: Path) -> Run:
    """Everything at step 0.

    Raises:
        StoreError: the store cannot be learned from.
        ValueError: a setting is impossible.
    """
    for name in ("batch_size", "log_every", "validate_every", "save_every", "keep"):
        if cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]}, it must be at least 1")
    Budget(cfg.steps, cfg.minutes)
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    horizons = Horizons(**cfg.horizons)
    learn, hold = split(store, cfg.holdout, seed=cfg.seed)
    goals = instantiate(cfg.get("goals"))  # Runs of older programs have none.
    reading = instantiate(cfg.get("reading"))  # The same goes for this.
    dataset = WindowDataset(
        store, horizons, episodes=learn, device=device, goals=goals, reading=reading
    )
    print(f"store: {store.path}: {dataset.report}")
    window_order(cfg, dataset)  # Refuses a batch that is too large.
    has_holdout = (store.lengths_of(hold) >= horizons.action).any()
    holdout = None
    if has_holdout:
        holdout = WindowDataset(
            store, horizons, episodes=hold, device=device, goals=goals, reading=reading
        )
    else:
        print("no episode is held out, so there is no validation loss")
    symmetry = instantiate(cfg.get("symmetry"))  # Runs of older programs have none.
    if symmetry is not None:
        symmetry.check(dataset.contract)
    torch.manual_seed(cfg.seed)  # of the initial weights
    normalizer = Normalizer.fit(dataset.contract, dataset.arrays())
    policy = assemble(cfg, dataset.contract, horizons, normalizer)
    check_training(policy, cfg)
    policy = policy.to(device)
    n_parameters = sum(p.numel() for p in policy.parameters())
    print(f"policy: {n_parameters / 1e6:.2f} M parameters")
    optimizer = instantiate(cfg.optimizer)(policy.parameters())
    trainer = Trainer(
        policy,
        optimizer,
        ema=instantiate(cfg.ema)(policy),
        loss=instantiate(cfg.loss),
        augment=instantiate(cfg.augment),
        symmetry=symmetry,
        crop=instantiate(cfg.get("crop")),  # The same goes for these.
        draws=cfg.get("draws", 1),
        seed=cfg.seed,
        autocast=False,
    )
    cfg.precision, why = pick_precision(cfg.precision, trainer, dataset, cfg.batch_size)
    trainer.autocast = cfg.precision == "bf16"
    print(f"device: {device}, precision: {cfg.precision} ({why})")
    return Run(cfg, out, store, dataset, holdout, trainer, store.digest())


def window_order(cfg: DictConfig, dataset: WindowDataset) -> WindowOrder:
    """Which windows each step trains on."""
    visits = visits_of(dataset.store, dataset.episodes, dataset.horizons)
    n_windows = len(dataset if visits is None else visits)
    return WindowOrder(n_windows, cfg.batch_size, seed=cfg.seed, visits=visits)


def asked(run: Run, order: WindowOrder) -> Iterator[tuple[Tensor, torch.Generator]]:
    """The windows of each step from the present one on, and what their goals are drawn by."""
    for count in itertools.count(run.trainer.step_count):
        times = seeded(run.cfg.seed, purpose=GOALS, count=count, device=run.trainer.device)
        yield order.indices(count), times


def fit(run: Run) -> bool:
    """Train until the budget is spent or Ctrl-C; returns whether it was spent."""
    cfg, trainer = run.cfg, run.trainer
    budget = Budget(cfg.steps, cfg.minutes)
    order = window_order(cfg, run.dataset)
    start = time.monotonic() - run.seconds
    with (
        MetricsWriter(run.out / "metrics.jsonl", tensorboard=cfg.tensorboard) as metrics,
        MetricsWriter(run.out / "timing.jsonl") as timing,
        Interruption() as interruption,
        run.dataset.batches(asked(run, order)) as batches,
        progress_bar(unit="step", initial=trainer.step_count) as bar,
    ):
        # A run that was killed wrote lines of steps after its last checkpoint.
        metrics.truncate_after(trainer.step_count)
        timing.truncate_after(trainer.step_count)
        while (progress := budget.progress(trainer.step_count, run.seconds)) < 1:
            if interruption.requested:
                return False
            scale = learning_rate_scale(trainer.step_count, progress, warmup_steps=cfg.warmup_steps)
            trainer.step(next(batches), scale)
            run.seconds = time.monotonic() - start
            bar.update()
            spent = budget.progress(trainer.step_count, run.seconds)
            is_last = spent >= 1
            if trainer.step_count % cfg.log_every == 0:
                loss = log_loss(run, metrics, timing)
                epoch = trainer.step_count / order.steps_per_epoch
                bar.total = round(trainer.step_count / spent)
                bar.set_postfix_str(f"loss {loss:.4f}, epoch {epoch:.1f}", refresh=False)
            if run.holdout is not None and (
                trainer.step_count % cfg.validate_every == 0 or is_last
            ):
                loss = trainer.validate(run.holdout, batch_size=cfg.batch_size)
                metrics.write(trainer.step_count, val_loss=loss)
            if trainer.step_count % cfg.save_every == 0 and not is_last:
                run.save()
    return True


def log_loss(run: Run, metrics: MetricsWriter, timing: MetricsWriter) -> float:
    """Write the mean loss since the last line; returns it.

    Raises:
        ValueError: the loss is not finite.
    """
    trainer, step = run.trainer, run.trainer.step_count
    loss = trainer.mean_loss(run.cfg.log_every)  # over the steps since the last line
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} at step {step}: lower optimizer.lr, or look for outliers with "
            f"cadence doctor {run.store.path}; checkpoints so far are in {run.out}"
        )
    metrics.write(step, loss=loss, lr=trainer.optimizer.param_groups[0]["lr"])
    timing.write(step, seconds=round(run.seconds, 3), steps_per_second=step / run.seconds)
    return loss


def resume(path: Path) -> Run:
    """The run that left a checkpoint, at that checkpoint.

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
    run = prepare(cfg, instantiate(cfg.store), loaded.run_dir)
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
    if cfg.resume is not None:
        this = resume(Path(cfg.resume))
    else:
        cfg = cfg.copy()
        make_absolute(cfg.store)
        if cfg.reading.cache is not None:
            cfg.reading.cache = str(Path(str(cfg.reading.cache)).absolute())
        refuse_occupied(cfg)
        this = prepare(cfg, instantiate(cfg.store), Path())
        # Only now, so that a refused run leaves no folder and `latest` as it was.
        this.out = out_dir(cfg, "train")
    complete = fit(this)
    checkpoint = this.save_unless_saved()
    print(f"{'done' if complete else 'interrupted'} at step {this.trainer.step_count}")
    print(f"checkpoint (ema weights): {checkpoint}")
    if not complete:
        print(f"go on with: cadence train resume={this.out}")
        raise KeyboardInterrupt
    return this.out


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
