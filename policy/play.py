"""Episodes of an agent in many environments side by side."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv

from data.types import Horizons
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
        total: sum of the rewards.
    """

    seed: int
    score: float = -np.inf
    success: bool = False
    length: int = 0
    mode: int = 0
    total: float = 0.0

    def account(self, rewards: np.ndarray, infos: dict[str, np.ndarray], slot: int) -> None:
        """Add what an environment's last chunk brought."""
        self.total += float(rewards[slot])
        self.length += int(infos["n_executed"][slot])
        self.score = max(self.score, float(infos["max_reward"][slot]))
        self.success |= bool(infos["is_success"][slot])
        if "mode" in infos:
            self.mode = int(infos["mode"][slot])


class Executor:
    """What is executed of consecutive chunks when each is late by `inference_delay` steps.

    chunk A   a0 a1 a2 a3 a4 a5
    chunk B               b0 b1 b2 b3 b4 b5      Ta = 4, delay 2: b0 and b1 come too late
    executed  a0 a1 a2 a3 a4 a5 b2 b3

    An episode's first chunk is waited for. A delay may exceed Ta: several chunks are on their way.

    Args:
        horizons: predicted and executed steps.
        inference_delay: steps that a chunk is late.
    """

    def __init__(self, horizons: Horizons, inference_delay: int):
        self._horizons, self._delay = horizons, inference_delay
        self._n_on_the_way = math.ceil(inference_delay / horizons.action)
        self._chunks: deque[np.ndarray] = deque(maxlen=self._n_on_the_way + 1)  # newest first
        self._ages: dict[int, int] = {}  # chunks of a slot's episode before the newest
        self._newest = np.empty(0)
        self.jumps: list[np.ndarray] = []  # each [n, Da], a new plan against the last at its begin
        self.told: list[Mapping[str, np.ndarray]] = []  # of each, what tells its scale

    def restart(self, slot: int) -> None:
        """The next chunk in a slot is its first, and in time."""
        self._ages[slot] = -1

    def actions(
        self,
        chunk: np.ndarray,
        slots: Sequence[int] | None = None,
        *,
        told: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Actions [N, Ta, Da] that are executed next.

        Args:
            chunk: [N, Tp - past, Da] new chunks.
            slots: those that are new; the others idle. Default: all.
            told: what tells the scale of the chunks (see `DiffusionPolicy.told`), field name ->
                [N, To, ...]; kept with the jumps.
        """
        n, delay = self._horizons.action, self._delay
        playing = range(len(chunk)) if slots is None else slots
        for slot in playing:
            self._ages[slot] = self._ages.get(slot, -1) + 1
        later = [slot for slot in playing if self._ages[slot] > 0]
        if later and n + delay < self._horizons.future:
            last = self._newest[later, n + delay]
            self.jumps.append(chunk[later, delay] - last)
            self.told.append({name: values[later] for name, values in (told or {}).items()})
        self._newest = chunk
        self._chunks.appendleft(chunk)
        actions = chunk[:, :n].copy()
        for slot in later:
            for step in range(n):
                # The newest chunk that has arrived by this step was asked for so many chunks ago.
                ago = min(max(0, math.ceil((delay - step) / n)), self._ages[slot])
                actions[slot, step] = self._chunks[ago][slot, ago * n + step]
        return actions


def play(
    agent: Agent,
    envs: VectorEnv,
    seeds: Sequence[int],
    *,
    finished: list[Episode],
) -> Executor:
    """Play one episode per seed, filling each slot of `envs` anew as its episode ends.

    A chunk that is late (the agent's inference delay) is executed from where it is in time, and the
    last one until then; an episode's first chunk is waited for.

    Args:
        agent: whose chunks are executed.
        envs: of `make_vec`, at the level of chunks; not more than there are seeds.
        seeds: one per episode.
        finished: gets each episode as it ends, so that an interruption loses none.

    Returns:
        What executed the chunks, with the jumps from plan to plan.
    """
    assert envs.num_envs <= len(seeds)
    queue = list(seeds)
    running: dict[int, Episode] = {}  # slot -> its episode; a slot without one idles
    streams = agent.start(seeds[: envs.num_envs])
    ended = list(range(envs.num_envs))
    observation: dict[str, np.ndarray] = {}
    executor = Executor(agent.horizons, agent.inference_delay)
    with progress_bar(total=len(seeds), unit="episode") as bar:
        while queue or running:
            for slot in ended[: len(queue)]:
                running[slot] = Episode(queue.pop(0))
                agent.restart(streams, slot, running[slot].seed)
                executor.restart(slot)
            observation = _reset(envs, observation, {s: running[s] for s in ended if s in running})
            chunk = agent.chunk(streams, observation, sorted(running))
            told = agent.policy.told(observation)
            observation, rewards, terminated, truncated, infos = envs.step(
                executor.actions(chunk, sorted(running), told=told)
            )
            agent.shift(streams, agent.horizons.action)
            for slot, episode in running.items():
                episode.account(rewards, infos, slot)
            ended = [slot for slot in sorted(running) if terminated[slot] or truncated[slot]]
            finished += [running.pop(slot) for slot in ended]
            n_successes = sum(episode.success for episode in finished)
            bar.set_postfix_str(f"{n_successes} of {len(finished)} succeeded", refresh=False)
            bar.update(len(ended))
    return executor


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
