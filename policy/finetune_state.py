"""What a fine-tuning run writes: checkpoints of the best policy, and what it is resumed from.

    <run>/checkpoints/step_00000020      the best policy so far, as of `cadence train`
    <run>/training/checkpoints/step_...  the newest weights, with critic and optimisers, to resume

so that the run's folder means its best policy wherever a checkpoint is asked for.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from policy.build import from_checkpoint
from policy.checkpoint import LoadedCheckpoint
from policy.checkpoint_save import save
from policy.fingerprint import fingerprint
from policy.model import DiffusionPolicy
from policy.nets.by_level import ByLevel
from policy.rl.chain import Kernel
from policy.sampler_fit import SamplerFit, load_fit, save_fit
from policy.state_tree import State

TRAINING = "training"
FINETUNE = "finetune"  # entry of a checkpoint's configuration


@dataclass
class Policies:
    """The policy that learns, and the one that it was tuned from.

    Args:
        tuned: whose network learns; encoder and statistics stay.
        base: frozen.
    """

    tuned: DiffusionPolicy
    base: DiffusionPolicy

    @classmethod
    def of(cls, loaded: LoadedCheckpoint, device: torch.device) -> "Policies":
        """Both from one checkpoint, in evaluation mode: dropout and routing must not change."""
        base = from_checkpoint(loaded).to(device).eval().requires_grad_(False)
        tuned = deepcopy(base)
        tuned.net.requires_grad_(True)
        return cls(tuned, base)

    def combined(self, first: int, kernel: Kernel) -> DiffusionPolicy:
        """A frozen copy of what is deployed: from step `first` on the tuned network."""
        policy = deepcopy(self.tuned).requires_grad_(False)
        limit = self.limit(first, kernel)
        if limit is not None:
            policy.net = ByLevel.of(policy.net, deepcopy(self.base.net), limit=limit)
        return policy

    def limit(self, first: int, kernel: Kernel) -> float | None:
        """The level from which the network before tuning serves; None where the tuned does all.

        Half way between the steps around it, in c_noise.
        """
        if first == 0:
            return None
        sigmas = torch.tensor(
            kernel.sigmas[first - 1 : first + 1], device=next(self.tuned.parameters()).device
        )
        return float(self.tuned.preconditioning(sigmas).c_noise.mean())


def config_of(loaded: LoadedCheckpoint, finetune: Mapping[str, Any], limit: float | None) -> dict:
    """The configuration of a tuned checkpoint: that of its base, and how it was tuned.

    Args:
        loaded: the base.
        finetune: configuration of the run.
        limit: of `Policies.limit`.
    """
    config = {**loaded.config, FINETUNE: dict(finetune)}
    if limit is not None:
        config["net"] = {
            "_target_": "policy.nets.by_level.ByLevel",
            "_partial_": True,
            "low": loaded.config["net"],
            "high": loaded.config["net"],
            "limit": limit,
        }
    return config


def save_policy(
    folder: Path,
    policy: DiffusionPolicy,
    loaded: LoadedCheckpoint,
    *,
    config: Mapping,
    kernel: Kernel,
    step: int,
    seconds: float,
    trainer: State,
    keep: int = 1,
) -> Path:
    """Write a checkpoint that every verb takes; its chain's levels are a fitted grid of it.

    Args:
        folder: of the run.
        policy: to be written.
        loaded: what it was tuned from.
        config: of `config_of`.
        kernel: of the chain.
        step: iterations so far.
        seconds: of training so far.
        trainer: state to go on from.
        keep: newest checkpoints that stay.
    """
    place = save(
        folder,
        step=step,
        policy=policy,
        contract=replace(loaded.contract, horizons=None),
        horizons=policy.horizons,
        config=config,
        trainer=trainer,
        seconds=seconds,
        store_digest=loaded.store_digest,
        versions=fingerprint(),
        keep=keep,
        weights="tuned",
    )
    fit = load_fit(loaded.path)
    grid = torch.tensor(kernel.sigmas)
    save_fit(place, SamplerFit({**fit.grids, kernel.n_steps: grid}, fit.anchors))
    return place
