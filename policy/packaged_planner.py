"""The planner of an exported policy, as a verb is configured."""

from omegaconf import DictConfig

from policy.entry import compose_config, plain
from policy.packaged.agent import load_package
from policy.packaged.manifest import Manifest, PackageError, read_manifest
from policy.planning import AgentPlanner


def package_planner(cfg: DictConfig, verb: str) -> AgentPlanner:
    """The planner of the package that `checkpoint` names.

    Args:
        cfg: of the verb.
        verb: its name.

    Raises:
        PackageError: the package cannot be used, or a setting asks for what was decided when it
            was exported.
        ImportError: a program that runs it is not installed.
    """
    manifest, _ = read_manifest(str(cfg.checkpoint))
    _check_decided(cfg, manifest, verb)
    if manifest.format == "aot" and cfg.threads != manifest.threads:
        print(f"threads: {manifest.threads} within the package's code, as when it was exported")
    return load_package(str(cfg.checkpoint), threads=cfg.threads)


def _check_decided(cfg: DictConfig, manifest: Manifest, verb: str) -> None:
    """Refuse settings that a package cannot follow any more."""
    defaults = compose_config(verb, ["env=pillar"] if verb == "run" else [])
    asked = {
        "action_horizon": (cfg.action_horizon, (None, manifest.horizons.action)),
        "goal_weight": (cfg.goal_weight, (1.0, manifest.goal_weight)),
        "sampler": (plain(cfg.sampler), (plain(defaults.sampler), manifest.sampler)),
        "urgent": (cfg.urgent, (None,)),
        "device": (str(cfg.device), ("auto", manifest.device)),
    }
    if "foresight" in cfg:
        asked["foresight"] = (cfg.foresight, (False,))
    if "engine" in cfg:
        asked["engine"] = (plain(cfg.engine), (plain(defaults.engine),))
    if "seam" in cfg:
        asked["seam.foresight"] = (cfg.seam.foresight, (False,))
    for name, (value, allowed) in asked.items():
        if value not in allowed:
            raise PackageError(
                f"{name} is {_short(value)}, which the package {cfg.checkpoint} cannot follow: "
                f"it was decided when it was exported; leave {name} as it is, export again, or "
                f"give the checkpoint of the training"
            )


def _short(value: object) -> str:
    return "another one" if isinstance(value, dict) else str(value)
