"""A policy from its configuration: for training, and again from a checkpoint.

A checkpoint's configuration is data that may come from a stranger, and Hydra calls whatever
`_target_` names. So only targets defined in this project's networks and noise maths are built.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from data.normalize import Normalizer
from data.types import Contract, Horizons
from policy.checkpoint import CheckpointError, LoadedCheckpoint
from policy.model import DiffusionPolicy
from policy.nets.image_encoder import ImageEncoder
from policy.sampler_fit import load_fit
from policy.types import ChunkSpace

PARTS = ("net", "encoder", "precond")
POLICY_MODULES = ("policy.nets.", "policy.diffusion.")
TRAINING_MODULES = (*POLICY_MODULES, "policy.ema", "data.", "torch.optim.")


def assemble(
    cfg: DictConfig, contract: Contract, horizons: Horizons, normalizer: Normalizer
) -> DiffusionPolicy:
    """A policy with new weights.

    Args:
        cfg: with the nodes `net`, `encoder` and `precond`.
        contract: of the demonstrations; sizes are read from it.
        horizons: of the policy.
        normalizer: fitted to the demonstrations.

    Raises:
        ValueError: a size does not fit, or the encoder cannot take a field.
    """
    feature_shapes = {
        name: field.shape if field.is_image else (normalizer.size(name),)
        for name, field in contract.observation.items()
    }
    encoder = instantiate(cfg.encoder)(feature_shapes=feature_shapes, obs_horizon=horizons.obs)
    net = instantiate(cfg.net)(
        action_size=contract.action.size,
        cond_size=encoder.cond_size,
        pred_horizon=horizons.pred,
    )
    return DiffusionPolicy(encoder, net, instantiate(cfg.precond), normalizer, contract, horizons)


def check_training(policy: DiffusionPolicy, cfg: DictConfig) -> None:
    """Raise ValueError where a policy would be trained on other than it is made for.

    A network or a part of it may have `check_levels(lowest, highest)`, which judges the trained
    range of c_noise.

    Args:
        policy: new or trained.
        cfg: of the run, with the nodes `crop` (or none) and `loss`.
    """
    size = None if cfg.get("crop") is None else cfg.crop.get("size")
    encoders = [part for part in policy.encoder.modules() if isinstance(part, ImageEncoder)]
    for name, seen in ((name, e.seen(name)[:2]) for e in encoders for name in e.cameras):
        if cfg.get("crop") is not None and seen != (size, size):
            raise ValueError(
                f"crop.size is {size}, the encoder sees {seen[0]} x {seen[1]} px of {name!r}: give "
                f"the same size as encoder.crop (or encoder.base.crop), or set crop=null"
            )
    checks = [getattr(part, "check_levels", None) for part in policy.net.modules()]
    levels = torch.tensor(trained_levels(cfg))
    if any(checks) and levels[0] > 0 and levels[1].isfinite():
        lowest, highest = policy.preconditioning(levels).c_noise.tolist()
        for check in filter(None, checks):
            check(lowest, highest)


def from_checkpoint(loaded: LoadedCheckpoint) -> DiffusionPolicy:
    """The policy of a checkpoint, with its weights and statistics.

    Raises:
        CheckpointError: the configuration lacks a part or names something that a policy is not
            made of, or weights or statistics do not fit it.
    """
    lacking = [part for part in PARTS if part not in loaded.config]
    if lacking:
        raise CheckpointError(f"the configuration in {loaded.path} lacks {lacking}")
    cfg = OmegaConf.create({part: loaded.config[part] for part in PARTS})
    check_targets(cfg, POLICY_MODULES)
    policy = assemble(cfg, loaded.contract, loaded.horizons, Normalizer(loaded.contract))
    try:
        policy.load_state_dict(loaded.policy_state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        rest = f" (and {len(lines) - 2} more lines)" if len(lines) > 2 else ""
        complaint = "".join(lines[1:2]).strip() or str(error)
        raise CheckpointError(
            f"the weights do not fit the configured network: {complaint[:200]}{rest}"
        ) from error
    if policy.normalizer.digest() != loaded.contract.statistics:
        raise CheckpointError(
            f"the statistics in {loaded.path} have digest {policy.normalizer.digest()[:12]}, its "
            f"contract names {loaded.contract.statistics[:12]}: they belong to different data"
        )
    return policy


def chunk_space(
    loaded: LoadedCheckpoint,
    *,
    action_horizon: int | None = None,
    inference_delay: int = 0,
    device: torch.device | str = "cpu",
) -> ChunkSpace:
    """What a sampler needs to know of a checkpoint.

    Args:
        loaded: the checkpoint.
        action_horizon: executed actions per chunk; None: as in training.
        inference_delay: control steps from an observation to the first action of its chunk.
        device: of the anchors.

    Raises:
        ValueError: there are not so many actions in a chunk, or the delay is too long for them.
        CheckpointError: what was fitted to the checkpoint is damaged.
    """
    horizons = loaded.horizons
    if action_horizon is not None:
        horizons = replace(horizons, action=action_horizon)
    sigma_min, sigma_max = trained_levels(loaded.config)
    action_size = loaded.contract.action.size
    fit = load_fit(loaded.path, chunk_shape=(horizons.pred, action_size))
    return ChunkSpace(
        horizons=horizons,
        action_size=action_size,
        inference_delay=inference_delay,
        discrete=tuple(loaded.contract.action.discrete),
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        grids=fit.grids,
        anchors=None if fit.anchors is None else fit.anchors.to(device),
    )


def trained_levels(config: Mapping) -> tuple[float, float]:
    """Lowest and highest noise level of the training."""
    node: object = config
    for key in ("loss", "corruption", "density"):
        node = node.get(key, {}) if isinstance(node, Mapping) else {}
    assert isinstance(node, Mapping)
    return float(node.get("sigma_min", 0.0)), float(node.get("sigma_max", "inf"))


def check_targets(cfg: DictConfig, modules: tuple[str, ...]) -> None:
    """Raise CheckpointError where a `_target_` is not defined in one of `modules` (prefixes)."""
    for target in _targets(cfg):
        # The prefix alone would let a dotted path walk through a module's own imports.
        is_named = target.startswith(modules)
        if not is_named or not str(get_object(target).__module__).startswith(modules):
            raise CheckpointError(
                f"the checkpoint wants to build {target!r}, it may build "
                f"{', '.join(prefix + '*' for prefix in modules)} only: do not trust this file"
            )


def _targets(node: object) -> Iterator[str]:
    if isinstance(node, DictConfig | Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(node, ListConfig):
        for value in node:
            yield from _targets(value)
