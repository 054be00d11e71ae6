"""A training run: what it is made of, and how it is saved."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor

from data.dataset import WindowDataset
from data.demonstrations import Demonstrations
from data.mixture import split, visits_of
from data.normalize import Normalizer
from data.types import Horizons
from policy.budget import Budget
from policy.build import assemble, check_training
from policy.checkpoint_save import save
from policy.entry import pick_device, plain, use_threads
from policy.fingerprint import fingerprint
from policy.precision import pick_precision
from policy.ranks import Ranks
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

    @property
    def place(self) -> Path:
        """Where the checkpoint of this step is, or would be."""
        return self.out / "checkpoints" / f"step_{self.trainer.step_count:08d}"

    def save_unless_saved(self) -> Path:
        """Folder of the checkpoint of this step, written if it is not there.

        Raises:
            ValueError: the weights are not finite.
        """
        # The first process may be about to write it, so that the others ask that one.
        if self.trainer.ranks.agree(float(self.place.exists())):
            return self.place
        return self.save()

    @property
    def is_first_rank(self) -> bool:
        """Whether this process validates, writes and speaks for all."""
        return self.trainer.ranks.rank == 0

    def save(self) -> Path:
        """Write a checkpoint and let older ones go; all processes have to ask, the first writes.

        Raises:
            ValueError: the weights are not finite; the older ones stay.
        """
        if not self.trainer.is_finite():
            raise ValueError(
                f"the weights are not finite at step {self.trainer.step_count} and are not saved: "
                f"lower optimizer.lr; earlier checkpoints are in the run's folder"
            )
        policy, state = self.trainer.policy, self.trainer.state()
        if not self.is_first_rank:
            return self.place
        return save(
            self.out,
            step=self.trainer.step_count,
            policy=self.trainer.ema.module,
            contract=policy.contract,
            horizons=policy.horizons,
            config=plain(self.cfg),
            trainer=state,
            seconds=self.seconds,
            store_digest=self.store_digest,
            versions=fingerprint(),
            keep=self.cfg.keep,
        )


def prepare(
    cfg: DictConfig,
    store: Demonstrations,
    out: Path,
    ranks: Ranks | None = None,
    *,
    is_resumed: bool = False,
) -> Run:
    """Everything at step 0.

    Args:
        cfg: of the run; what is chosen by measurement is written into it.
        store: to learn from.
        out: folder of the run.
        ranks: this process among others; None: it is alone.
        is_resumed: whether the state of an earlier run is going to be loaded.

    Raises:
        StoreError: the store cannot be learned from.
        ValueError: a setting is impossible.
    """
    for name in ("batch_size", "log_every", "validate_every", "save_every", "keep"):
        if cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]}, it must be at least 1")
    ranks = Ranks() if ranks is None else ranks
    check_parts(cfg.batch_size, cfg.get("accumulate", 1), ranks.size)
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
        accumulate=cfg.get("accumulate", 1),
        ranks=ranks,
        seed=cfg.seed,
        autocast=False,
    )
    form = cfg.get("form", "plain")  # So were runs of older programs.
    choice = pick_precision(
        cfg.precision, form, trainer, dataset, cfg.batch_size, is_resumed=is_resumed
    )
    with open_dict(cfg):
        cfg.precision, cfg.form = choice.precision, choice.form
    print(f"device: {device}, precision: {choice.precision}, form: {choice.form} ({choice.why})")
    digest = store.digest(notes=dataset.reading.cache)
    return Run(cfg, out, store, dataset, holdout, trainer, digest)


def check_parts(batch_size: int, accumulate: int, n_ranks: int) -> None:
    """Raise ValueError unless a batch can be shared out among processes and their parts."""
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}, it must be at least 1")
    n_parts = accumulate * n_ranks
    if batch_size % n_parts:
        below = batch_size // n_parts * n_parts
        nearest = " or ".join(str(size) for size in (below, below + n_parts) if size)
        raise ValueError(
            f"batch_size is {batch_size}, but it is shared out among {n_ranks} processes with "
            f"{accumulate} parts each (accumulate), which takes a multiple of {n_parts}: give "
            f"batch_size={nearest}"
        )


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
