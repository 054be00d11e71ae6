"""The planner of a checkpoint, as a verb is configured, with its engine."""

from collections.abc import Callable

from hydra.utils import instantiate
from omegaconf import DictConfig

from policy.engine import agents_of, use_engine
from policy.entry import pick_device, urgent_of
from policy.planning import AgentPlanner


def checkpoint_planner(
    cfg: DictConfig,
    *,
    foresight: bool,
    check: Callable[[AgentPlanner], object] = lambda planner: None,
) -> AgentPlanner:
    """The planner of the training that `checkpoint` names.

    Args:
        cfg: of the verb.
        foresight: whether it foresees what will be seen where a chunk begins.
        check: raises where it does not fit, before time goes into its engine.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or newer than this program.
        ValueError: it, or its engine, cannot be used as configured.
    """
    engine, device = instantiate(cfg.engine), pick_device(cfg.device)
    planner = AgentPlanner.load(
        cfg.checkpoint,
        instantiate(cfg.sampler),
        make_urgent=urgent_of(cfg),
        action_horizon=cfg.action_horizon,
        device=device,
        goal_weight=cfg.goal_weight,
        foresight=foresight,
    )
    check(planner)
    print(f"device: {device}, {planner.agent.calls}")
    print(use_engine(agents_of(planner), engine))
    return planner
