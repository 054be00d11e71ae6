"""A policy from its configuration: for training, and again from a checkpoint.

A checkpoint's configuration is data that may come from a stranger, and Hydra calls whatever
`_target_` names. So only targets defined in this project's networks and noise maths are built.
"""

from collections.abc import Iterator, Mapping

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from data.normalize import Normalizer
from data.types import Contract, Horizons
from policy.checkpoint import CheckpointError, LoadedCheckpoint
from policy.model import DiffusionPolicy

PARTS = ("net", "encoder", "precond")
MAY_BUILD = ("policy.nets.", "policy.diffusion.")


def assemble(
    cfg: DictConfig, contract: Contract, horizons: Horizons, normalizer: Normalizer
) -> DiffusionPolicy:
    """A policy with new weights.

    Args:
        cfg: with the nodes `net`, `encoder` and `precond`.
        contract: of the demonstrations; sizes are read from it.
        horizons: of the policy.
        normalizer: fitted to the demonstrations.
    """
    feature_sizes = {name: normalizer.size(name) for name in contract.observation}
    encoder = instantiate(cfg.encoder)(feature_sizes=feature_sizes, obs_horizon=horizons.obs)
    net = instantiate(cfg.net)(
        action_size=contract.action.size,
        cond_size=encoder.cond_size,
        pred_horizon=horizons.pred,
    )
    return DiffusionPolicy(encoder, net, instantiate(cfg.precond), normalizer, contract, horizons)


def from_checkpoint(loaded: LoadedCheckpoint) -> DiffusionPolicy:
    """The policy of a checkpoint, with its weights and statistics.

    Raises:
        CheckpointError: the configuration names something that a policy is not made of, or the
            weights do not fit it.
    """
    cfg = OmegaConf.create({part: loaded.config[part] for part in PARTS})
    check_targets(cfg)
    policy = assemble(cfg, loaded.contract, loaded.horizons, Normalizer(loaded.contract))
    try:
        policy.load_state_dict(loaded.policy_state)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the configured network: {error}") from error
    return policy


def check_targets(cfg: DictConfig) -> None:
    """Raise CheckpointError where a `_target_` is not one of the parts of a policy."""
    for target in _targets(cfg):
        # The prefix alone would let a dotted path walk through a module's own imports.
        allowed = target.startswith(MAY_BUILD)
        if not allowed or not str(get_object(target).__module__).startswith(MAY_BUILD):
            raise CheckpointError(
                f"the checkpoint wants to build {target!r}; a policy is made of "
                f"{' and '.join(prefix + '*' for prefix in MAY_BUILD)} only: do not trust this file"
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
