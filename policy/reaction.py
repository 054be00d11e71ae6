"""How soon executed actions answer a sudden change of the scene.

Two episodes with the same start and the same noise go on side by side; in one of them an object is
displaced at some tick. How the actions ought to differ is what chunks drawn anew say, in the mean,
of the two observations. The share of that difference which the executed actions show, `k` ticks
after the change could first be seen, is the answer: 0 before a policy has noticed, 1 once it acts
on what it sees. The change comes at every phase of a plan alike.

Shape legend: `N` episodes, `S` samples, `K` ticks after the change, `Tp` predicted steps, `Da`
action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from envs.vector import MakeEnv
from envs.wrappers import ObservationHistory
from policy.agent import Agent
from policy.play import Executor


@dataclass(frozen=True)
class Reaction:
    """Answers to a change, summed over directions by how much they were wanted.

    Args:
        answered: [N, K] executed difference along the wanted one.
        wanted: [N, K] square of the wanted difference.
    """

    answered: np.ndarray
    wanted: np.ndarray

    def curve(self) -> list[float]:
        """Share of the wanted answer, 0, 1, ... ticks after the change was seen."""
        return (self.answered.sum(axis=0) / self.wanted.sum(axis=0)).tolist()

    def interval(self, tick: int, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval over episodes of the share at a tick."""
        n = len(self.wanted)
        index = np.random.default_rng(seed).integers(0, n, (resamples, n))
        shares = self.answered[index, tick].sum(axis=1) / self.wanted[index, tick].sum(axis=1)
        low, high = np.quantile(shares, [0.025, 0.975])
        return float(low), float(high)

    def delay(self, share: float = 0.5) -> int | None:
        """Ticks until so much of the wanted answer is executed; None if later than measured."""
        return next((k for k, value in enumerate(self.curve()) if value >= share), None)


def can_displace(make_env: MakeEnv) -> bool:
    """Whether an environment has `displace`, which moves an object from outside."""
    env = make_env()
    try:
        return env.has_wrapper_attr("displace")
    finally:
        env.close()


def measure_reaction(
    agent: Agent,
    reference: Agent,
    make_env: MakeEnv,
    seeds: Sequence[int],
    *,
    inference_delay: int,
    first_tick: int,
    n_ticks: int,
    samples: int,
) -> Reaction:
    """Displace an object once in each episode and follow the answer.

    Args:
        agent: whose chunks are executed.
        reference: draws chunks anew that say what an answer ought to be.
        make_env: of an environment with `displace`.
        seeds: one per episode.
        inference_delay: control steps from an observation to the first action of its chunk.
        first_tick: earliest tick at which a change is seen.
        n_ticks: K.
        samples: S, chunks that are averaged.
    """
    calm = _Episodes(agent, make_env, seeds, inference_delay)
    moved = _Episodes(agent, make_env, seeds, inference_delay)
    answered, wanted = np.zeros((2, len(seeds), n_ticks))
    changes = first_tick + np.arange(len(seeds)) % agent.horizons.action
    try:
        for tick in range(changes.max() + n_ticks):
            planned, changed = calm.actions(), moved.actions()
            due = np.flatnonzero((changes <= tick) & (tick < changes + n_ticks))
            due = due[calm.is_running[due] & moved.is_running[due]]
            if len(due):
                ought = _mean_action(reference, moved.observation(due), seeds[0], samples)
                ought -= _mean_action(reference, calm.observation(due), seeds[0], samples)
                did = _scaled(agent, changed[due]) - _scaled(agent, planned[due])
                k = tick - changes[due]
                answered[due, k] = (did * ought).sum(axis=1)
                wanted[due, k] = (ought**2).sum(axis=1)
            # Displaced during this step, so that the next observation is the first to show it.
            moved.displace(np.flatnonzero(changes == tick + 1))
            calm.step(planned)
            moved.step(changed)
    finally:
        calm.close()
        moved.close()
    return Reaction(answered, wanted)


class _Episodes:
    """Episodes of an agent in step."""

    def __init__(self, agent: Agent, make_env: MakeEnv, seeds: Sequence[int], inference_delay: int):
        self._agent, self._streams = agent, agent.start(seeds)
        self._executor = Executor(agent.horizons, inference_delay)
        self._envs: list[gym.Env] = [
            ObservationHistory(make_env(), agent.horizons.obs) for _ in seeds
        ]
        pairs = zip(self._envs, seeds, strict=True)
        self._seen = [env.reset(seed=seed)[0] for env, seed in pairs]
        for slot in range(len(seeds)):
            self._executor.restart(slot)
        self.is_running = np.ones(len(seeds), dtype=bool)
        self._tick, self._plan = 0, np.empty(0)

    def observation(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """Field name -> [n, To, ...] of some episodes."""
        return {k: np.stack([self._seen[slot][k] for slot in slots]) for k in self._seen[0]}

    def actions(self) -> np.ndarray:
        """The action of each episode [N, Da] for the present tick."""
        n = self._agent.horizons.action
        if self._tick % n == 0:
            if self._tick:
                self._agent.shift(self._streams, n)
            everything = self.observation(np.arange(len(self._seen)))
            self._plan = self._executor.actions(self._agent.chunk(self._streams, everything))
        return self._plan[:, self._tick % n]

    def displace(self, slots: np.ndarray) -> None:
        for slot in slots:
            self._envs[slot].get_wrapper_attr("displace")()

    def step(self, actions: np.ndarray) -> None:
        for slot in np.flatnonzero(self.is_running):
            seen, _, terminated, truncated, _ = self._envs[slot].step(actions[slot])
            self._seen[slot] = seen
            self.is_running[slot] = not (terminated or truncated)
        self._tick += 1

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _mean_action(
    reference: Agent, observation: Mapping[str, np.ndarray], seed: int, samples: int
) -> np.ndarray:
    """Mean first action [n, Da] of fresh chunks, scaled; the same noise each time."""
    n = len(next(iter(observation.values())))
    batch = {name: np.repeat(values, samples, axis=0) for name, values in observation.items()}
    streams = reference.start(range(seed, seed + n * samples))
    actions = _scaled(reference, reference.chunk(streams, batch)[:, 0])
    return actions.reshape(n, samples, -1).mean(axis=1)


def _scaled(agent: Agent, actions: np.ndarray) -> np.ndarray:
    """Actions [n, Da] in the network's scale."""
    return agent.policy.chunk(torch.from_numpy(actions).to(agent.device)).cpu().numpy()
