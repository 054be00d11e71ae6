"""Export a policy as a package: chunks, or single denoiser calls, without Python's part in them.

Run by `cadence export format=aot|onnx checkpoint=RUN`; see there.
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from policy.agent import Agent
from policy.build import chunk_space, from_checkpoint
from policy.checkpoint import POLICY, LoadedCheckpoint, load
from policy.entry import out_dir, pick_device, plain, use_threads
from policy.fingerprint import fingerprint
from policy.model import DiffusionPolicy
from policy.packaged.making import Source, describe, export_parts, export_ticks
from policy.packaged.manifest import CONTENTS, PackageError


def export_policy(cfg: DictConfig) -> Path:
    """Export a checkpoint; returns the folder of the package.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        PackageError: it cannot be exported so, or the package's results differ too much.
        ValueError: a setting is out of range, or does not fit the checkpoint.
        ImportError: a program is not installed.
    """
    _check(cfg)
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    format = instantiate(cfg.format)
    format.check(device)
    loaded = load(str(cfg.checkpoint))
    policy = from_checkpoint(loaded)
    agents = _agents(cfg, loaded, policy, str(device)) if cfg.what == "tick" else []
    out = Path(str(cfg.out)) if cfg.out is not None else out_dir(cfg, "export") / "package"
    source = Source(
        checkpoint={
            "path": str(loaded.path),
            "step": loaded.step,
            "weights": loaded.weights,
            "sha256": loaded.files[POLICY]["sha256"],
            "store_digest": loaded.store_digest,
        },
        sampler=plain(cfg.sampler) if agents else {},
        versions=fingerprint(),
    )
    if agents:
        print(f"policy: {agents[0].calls}")
        made = export_ticks(
            agents, format, out, source, tolerance=cfg.tolerance, n_timed=cfg.n_timed
        )
    else:
        policy = policy.to(device).eval().requires_grad_(False)
        made = export_parts(
            policy, format, out, source, tolerance=cfg.tolerance, n_timed=cfg.n_timed
        )
    print(describe(made, out))
    return out


def _agents(
    cfg: DictConfig, loaded: LoadedCheckpoint, policy: DiffusionPolicy, device: str
) -> list[Agent]:
    """An agent for each number of decided actions."""
    make = instantiate(cfg.sampler)
    agents = []
    for delay in range(cfg.max_delay + 1):
        space = chunk_space(
            loaded, action_horizon=cfg.action_horizon, inference_delay=delay, device=device
        )
        agent = Agent(policy, make(space=space), device=device, rows=1, goal_weight=cfg.goal_weight)
        agent.weights = loaded.weights
        agents.append(agent)
    return agents


def _check(cfg: DictConfig) -> None:
    """Refuse settings that say nothing of a policy, or not enough."""
    if cfg.checkpoint is None:
        raise ValueError("please give checkpoint=...: the folder of a training run")
    if cfg.get("store") is not None:
        raise ValueError("this format is of policies: give checkpoint=..., and no store")
    if cfg.what not in CONTENTS:
        raise ValueError(f"what is {cfg.what!r}, choose one of {', '.join(CONTENTS)}")
    if cfg.what == "denoiser" and (cfg.max_delay or cfg.goal_weight != 1):
        raise PackageError(
            f"what=denoiser has no sampler, for which max_delay={cfg.max_delay} and "
            f"goal_weight={cfg.goal_weight:g} would be: leave them as they are, or use what=tick"
        )
    for name, lowest in (("max_delay", 0), ("n_timed", 1), ("tolerance", 0)):
        if not cfg[name] >= lowest:
            raise ValueError(f"{name} is {cfg[name]}, it must be at least {lowest}")
