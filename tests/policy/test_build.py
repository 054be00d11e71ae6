"""A checkpoint's configuration builds a policy and nothing else."""

import pytest
from omegaconf import OmegaConf

from policy.build import PARTS, POLICY_MODULES, TRAINING_MODULES, check_targets
from policy.checkpoint import CheckpointError
from policy.entry import compose_config


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "policy.train.run",
        # Through the imports of a module that is allowed.
        "policy.nets.unet1d.torch.load",
    ],
)
def test_a_foreign_target_is_refused(target):
    cfg = OmegaConf.create({"net": {"deep": [{"_target_": target}]}})
    with pytest.raises(CheckpointError, match="do not trust"):
        check_targets(cfg, TRAINING_MODULES)


def test_the_configured_parts_are_allowed():
    cfg = compose_config("train", ["store.path=none"])
    check_targets(OmegaConf.create({part: cfg[part] for part in PARTS}), POLICY_MODULES)
    check_targets(cfg, TRAINING_MODULES)
