"""Episodes of an agent in many environments side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv

from policy.agent import Agent
from policy.progress import progress_bar


@dataclass
class Episode:
    """What became of one start.

    Args:
        seed: of the start and of the policy's noise.
        score: best reward of a step.
        success: whether the task was ever done.
        length: executed steps.
        mode: way taken, where a task has several; 0 is none.
    """

    seed: int
    score: float = -np.inf
    success: bool = False
    length: int = 0
    mode: int = 0

    def account(self, infos: dict[str, np.ndarray], slot: int) -> None:
        """Add what an environment's last chunk brought."""
        self.length += int(infos["n_executed"][slot])
        self.score = max(self.score, float(infos["max_reward"][slot]))
        self.success |= bool(infos["is_success"][slot])
        if "mode" in infos:
            self.mode = int(infos["mode"][slot])


def play(
    agent: Agent,
    envs: VectorEnv,
    seeds: Sequence[int],
    *,
    action_horizon: int,
    finished: list[Episode],
) -> None:
    """Play one episode per seed, filling each slot of `envs` anew as its episode ends.

    Args:
        agent: whose chunks are executed.
        envs: of `make_vec`, at the level of chunks; not more than there are seeds.
        seeds: one per episode.
        action_horizon: Ta, executed actions per chunk.
        finished: gets each episode as it ends, so that an interruption loses none.
    """
    assert envs.num_envs <= len(seeds)
    queue = list(seeds)
    running: dict[int, Episode] = {}  # slot -> its episode; a slot without one idles
    streams = agent.start(seeds[: envs.num_envs])
    ended = list(range(envs.num_envs))
    observation: dict[str, np.ndarray] = {}
    with progress_bar(total=len(seeds), unit="episode") as bar:
        while queue or running:
            for slot in ended[: len(queue)]:
                running[slot] = Episode(queue.pop(0))
                agent.restart(streams, slot, running[slot].seed)
            observation = _reset(envs, observation, {s: running[s] for s in ended if s in running})
            chunk = agent.chunk(streams, observation, sorted(running))
            observation, _, terminated, truncated, infos = envs.step(chunk[:, :action_horizon])
            agent.shift(streams, action_horizon)
            for slot, episode in running.items():
                episode.account(infos, slot)
            ended = [slot for slot in sorted(running) if terminated[slot] or truncated[slot]]
            finished += [running.pop(slot) for slot in ended]
            n_successes = sum(episode.success for episode in finished)
            bar.set_postfix_str(f"{n_successes} of {len(finished)} succeeded", refresh=False)
            bar.update(len(ended))


def _reset(
    envs: VectorEnv, observation: dict[str, np.ndarray], fresh: dict[int, Episode]
) -> dict[str, np.ndarray]:
    """Start the episodes of some slots; the others go on."""
    if not fresh:
        return observation
    mask = np.isin(np.arange(envs.num_envs), list(fresh))
    seeds = [fresh[slot].seed if slot in fresh else None for slot in range(envs.num_envs)]
    # Gymnasium's stubs forget that a vector env takes one seed per copy.
    observation, _ = envs.reset(seed=seeds, options={"reset_mask": mask})  # pyright: ignore
    return observation
