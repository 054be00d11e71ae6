"""Play an episode to draw it: where things went, and the moment the policy was most undecided.

At every few steps many chunks are sampled for the same observation. Where a task can be done in
several ways they differ most just before the policy commits itself to one.

Shape legend: `S` samples, `To Tp Ta` observed, predicted and executed steps, `Da` action size.
"""

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from data.types import Contract
from envs.wrappers import ObservationHistory
from policy.agent import Agent
from policy.scene import Fan, Rollout, Sketch, scene_shapes, spread

STRIDE = 4  # steps from one sampled moment to the next


def can_sketch(contract: Contract) -> bool:
    """Whether actions can be drawn as places: absolute, x and y being their first elements."""
    return contract.action.kind == "absolute" and contract.action.size >= 2


def sketch(
    agent: Agent,
    make_env: Callable[..., gym.Env],
    *,
    seed: int,
    samples: int = 32,
    action_horizon: int | None = None,
) -> Sketch:
    """Play the episode of one start.

    Args:
        agent: whose chunks are executed.
        make_env: makes the environment.
        seed: of the start and of the policy's noise; the sampled chunks have seeds 0..samples-1.
        samples: S, chunks sampled at a moment.
        action_horizon: Ta; None: as trained.
    """
    n_executed = agent.horizons.action if action_horizon is None else action_horizon
    env = ObservationHistory(make_env(), agent.horizons.obs)
    try:
        observation, _ = env.reset(seed=seed)
        shapes = scene_shapes(env)
        streams = agent.start([seed])
        seen, actions, fans = [_newest(observation)], [], []
        chunk = np.empty(0)
        is_over, is_success, mode = False, False, 0
        while not is_over:
            tick = len(actions)
            if tick % STRIDE == 0:
                fans.append(Fan(seed, tick, _sample(agent, observation, samples), shapes))
            if tick % n_executed == 0:
                if tick > 0:
                    agent.shift(streams, n_executed)
                chunk = agent.chunk(streams, _repeat(observation, 1))[0]
            actions.append(chunk[tick % n_executed])
            observation, _, terminated, truncated, facts = env.step(actions[-1])
            seen.append(_newest(observation))
            is_over = terminated or truncated
            is_success |= bool(facts.get("is_success", False))
            mode = int(facts.get("mode", 0))
        modes = env.metadata.get("modes", ())
    finally:
        env.close()
    rollout = Rollout(
        seed=seed,
        observation={name: np.stack([each[name] for each in seen]) for name in seen[0]},
        action=np.stack(actions),
        success=is_success,
        mode=modes[mode] if modes else "",
    )
    return Sketch(rollout, shapes, max(fans, key=lambda fan: spread(fan.chunks[..., :2])))


def _sample(agent: Agent, observation: dict[str, np.ndarray], samples: int) -> np.ndarray:
    """Chunks [S, Tp, Da] of new streams that all see the same."""
    return agent.chunk(agent.start(range(samples)), _repeat(observation, samples))


def _repeat(observation: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    return {name: np.repeat(values[None], n, axis=0) for name, values in observation.items()}


def _newest(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[-1] for name, values in observation.items()}
