"""Give a checkpoint foresight: a model of what will be observed when a late chunk begins.

    cadence foresee checkpoint=outputs/train/latest store.path=outputs/collect/latest/store.zarr
    cadence run checkpoint=outputs/train/latest env=pillar seam=foresee
    cadence serve checkpoint=outputs/train/latest foresight=true

The model learns from a store how one observation follows from another and from the actions, states
only (no pictures). The control loop knows which actions it executes while a chunk is computed, so
the policy plans from where they lead instead of from the past (`policy.foresight`). How far off the
model is, is told for episodes that it did not learn from, as a share of what really changes.

Writes foresight.safetensors into the checkpoint's folder, whose other files stay as they are; an
earlier one is replaced. Give the store that the checkpoint was trained on, or a larger one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import huber_loss

from data.dataset import split_episodes
from data.demonstrations import Demonstrations
from data.types import Contract
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.entry import entry, pick_device, use_threads
from policy.foresight import (
    FILE,
    Foresight,
    check_foreseeable,
    dynamics_for,
    save_foresight,
    wrapped,
)
from policy.nets.dynamics import Dynamics
from policy.progress import progress_bar

SHOWN = (1, 2, 4, 8)  # Ticks after which errors are told.
STILL = 1e-9  # An element that changes by less in a tick, root mean square, never changes.


@dataclass(frozen=True)
class Episodes:
    """Steps of some episodes, end to end.

    Args:
        observation: field name -> [n_steps, ...], float32.
        action: [n_steps, Da].
        before: [n_steps, Da] the action of the step before; at an episode's begin, its own.
        left: [n_steps] how many steps of its episode come after a step.
    """

    observation: dict[str, Tensor]
    action: Tensor
    before: Tensor
    left: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return type(self)(
            {name: values.to(device) for name, values in self.observation.items()},
            self.action.to(device),
            self.before.to(device),
            self.left.to(device),
        )

    def starts(self, n_ahead: int) -> Tensor:
        """[n] steps with `n_ahead` steps after them."""
        return torch.nonzero(self.left >= n_ahead)[:, 0]

    def at(self, steps: Tensor) -> dict[str, Tensor]:
        """The observations of steps [B]."""
        return {name: values[steps] for name, values in self.observation.items()}


def read_episodes(
    store: Demonstrations, contract: Contract, episodes: Sequence[int] | np.ndarray
) -> Episodes:
    """The given episodes of a store."""
    lengths = store.lengths_of(episodes)
    ends = np.repeat(np.cumsum(lengths), lengths)
    steps = np.arange(lengths.sum())
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    action = torch.from_numpy(store.read("action", episodes=episodes)).float()
    action = action.reshape(len(action), -1)
    return Episodes(
        # As floats, whatever they are: rounded to whole numbers, nothing could be learned of them.
        {
            name: torch.from_numpy(store.read(name, episodes=episodes)).float()
            for name in contract.observation
        },
        action,
        action[torch.from_numpy(np.maximum(steps - 1, first))],
        torch.from_numpy(ends - 1 - steps),
    )


class Differences:
    """Differences between observations, as numbers.

    Args:
        contract: whose fields are compared; planar angles by the shorter way round.
    """

    def __init__(self, contract: Contract):
        self._fields = contract.observation
        sizes = [field.size for field in self._fields.values()]
        offsets = np.cumsum([0, *sizes[:-1]])
        self._angles = [
            int(offset) + angle
            for offset, field in zip(offsets, self._fields.values(), strict=True)
            for angle in field.angles
        ]

    def __call__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        """[B, n] a - b of observations, field name -> [B, ...]."""
        parts = [(a[name].float() - b[name].float()).flatten(1) for name in self._fields]
        difference = torch.cat(parts, dim=1)
        if self._angles:
            difference = difference.clone()
            difference[:, self._angles] = wrapped(difference[:, self._angles])
        return difference


def scale_of(episodes: Episodes, differences: Differences) -> Tensor:
    """[n] root mean square change in a tick; 0 for what never changes.

    Raises:
        ValueError: no episode has two steps, or nothing changes at all.
    """
    steps = episodes.starts(1)
    if not len(steps):
        raise ValueError("no episode has two steps, there is nothing to foresee")
    change = differences(episodes.at(steps + 1), episodes.at(steps))
    scale = change.double().square().mean(dim=0).sqrt().float()
    if not (scale > STILL).any():
        raise ValueError("no observation ever changes, there is nothing to foresee")
    return torch.where(scale > STILL, scale, 0.0)


def roll(
    foresight: Foresight, episodes: Episodes, steps: Tensor, n_ahead: int
) -> list[dict[str, Tensor]]:
    """Observations foreseen 1 to `n_ahead` ticks after steps [B]."""
    foreseen, before = [episodes.at(steps)], episodes.before[steps]
    for i in range(n_ahead):
        action = episodes.action[steps + i]
        foreseen.append(foresight.next(foreseen[-1], before, action))
        before = action
    return foreseen[1:]


def fit(
    net: Dynamics,
    foresight: Foresight,
    episodes: Episodes,
    differences: Differences,
    scale: Tensor,
    cfg: DictConfig,
    generator: torch.Generator,
) -> None:
    """Learn to foresee `cfg.n_ahead` ticks, each foreseen one being where the next starts."""
    starts = episodes.starts(cfg.n_ahead)
    if not len(starts):
        raise ValueError(
            f"n_ahead is {cfg.n_ahead}, no episode has so many steps after another: lower it"
        )
    unit = torch.where(scale > 0, scale, 1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, total_steps=cfg.steps)
    with progress_bar(total=cfg.steps, unit="step") as bar:
        for _ in range(cfg.steps):
            drawn = torch.randint(len(starts), (cfg.batch_size,), generator=generator)
            steps = starts[drawn.to(starts.device)]
            loss = torch.zeros((), device=scale.device)
            for i, foreseen in enumerate(roll(foresight, episodes, steps, cfg.n_ahead), start=1):
                off = differences(foreseen, episodes.at(steps + i)) / unit
                loss = loss + huber_loss(off, torch.zeros_like(off)) / cfg.n_ahead
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(1)
            if bar.n % 200 == 0:
                bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)


@torch.no_grad()
def shares(
    foresight: Foresight, episodes: Episodes, differences: Differences, scale: Tensor
) -> dict[int, float]:
    """Ticks ahead -> error as a share of what really changes, root mean squares.

    Elements are in units of `scale`, so that all that change count alike. An error of 1 is that of
    assuming that nothing changes.
    """
    found = {}
    unit = torch.where(scale > 0, scale, math.inf)
    for n_ahead in SHOWN:
        steps = episodes.starts(n_ahead)
        if not len(steps):
            break
        true, now = episodes.at(steps + n_ahead), episodes.at(steps)
        foreseen = roll(foresight, episodes, steps, n_ahead)[-1]
        off, changed = (
            (differences(a, true) / unit).square().mean().item() for a in (foreseen, now)
        )
        found[n_ahead] = math.sqrt(off / changed) if changed > 0 else 0.0
    return found


def run(cfg: DictConfig) -> Path:
    """Fit as configured; returns the file that was written."""
    check_settings(cfg)
    use_threads(cfg.threads)
    torch.manual_seed(cfg.seed)  # of the network's first weights
    device = pick_device(cfg.device)
    loaded = load(cfg.checkpoint)
    policy = from_checkpoint(loaded).to(device).eval()
    contract = policy.contract
    check_foreseeable(contract)  # Before pictures fill the memory.
    store = instantiate(cfg.store)
    check_recorded(contract, store.contract)
    contract.check(store.contract, this=f"checkpoint {cfg.checkpoint}", that=f"store {store.path}")
    learned, held = split_episodes(store.n_episodes, cfg.holdout, seed=cfg.seed)
    episodes = read_episodes(store, contract, learned).to(device)
    differences = Differences(contract)
    scale = scale_of(episodes, differences)
    net = dynamics_for(contract, policy.normalizer, size=cfg.size, n_blocks=cfg.n_blocks)
    foresight = Foresight(contract, policy.normalizer, net.to(device), scale)
    print(f"store: {store.path}: {len(learned)} episodes to learn from, {len(held)} to judge by")
    generator = torch.Generator().manual_seed(cfg.seed)
    fit(net, foresight, episodes, differences, scale, cfg, generator)
    net.eval()
    check_learned(net)
    judged = read_episodes(store, contract, held).to(device) if len(held) else episodes
    errors = shares(foresight, judged, differences, scale)
    told = ", ".join(f"{n} ticks {100 * share:.1f} %" for n, share in errors.items())
    told = told or "unknown, none has two steps"
    print(f"error, of what changes in {'held-out' if len(held) else 'these'} episodes: {told}")
    if any(share >= 1 for share in errors.values()):
        print("that is no better than to assume that nothing changes: do not use it")
    if (loaded.path / FILE).exists():
        print(f"the earlier one in {loaded.path} is replaced")
    file = save_foresight(loaded.path, net, scale, normalizer=policy.normalizer)
    print(f"foresight: {file}")
    return file


def check_recorded(contract: Contract, recorded: Contract) -> None:
    """Raise ValueError where a policy looks at what no step recorded, such as a goal."""
    made = sorted(set(contract.observation) - set(recorded.observation))
    if made:
        raise ValueError(
            f"the policy looks at {', '.join(map(repr, made))}, which the store does not have: a "
            f"goal that training took from later steps does not change with the actions, so such "
            f"a policy cannot be given foresight; use another seam (seam=none, blend, ensemble)"
        )


def check_learned(net: Dynamics) -> None:
    """Raise ValueError where learning went astray, before an earlier model is replaced."""
    if not all(weights.isfinite().all() for weights in net.parameters()):
        raise ValueError(
            "the model's weights are not finite after learning, nothing was written: lower lr, and "
            "look at the store (cadence doctor)"
        )


def check_settings(cfg: DictConfig) -> None:
    """Raise ValueError where a setting is impossible."""
    for name in ("steps", "batch_size", "n_ahead", "size", "n_blocks"):
        if type(cfg[name]) is not int or cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]!r}, it must be a whole number of at least 1")
    if not 0 < cfg.lr < math.inf:
        raise ValueError(f"lr is {cfg.lr}, it must be positive and finite")


def main() -> None:
    """Entry point."""
    entry("foresee", run)


if __name__ == "__main__":
    main()
