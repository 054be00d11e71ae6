"""How soon executed actions answer a sudden change of the scene.

Two episodes with the same start and the same noise go on side by side; in one of them an object is
displaced at some tick. The wanted answer is that of a reference which, from this tick on, takes
over both episodes and draws a new chunk at every step. The share of it that the agent's own pair of
episodes shows, `k` ticks after the change could first be seen, is the answer: 0 before an agent has
noticed, about 1 once it acts as the reference does. The change comes at every phase of a plan alike
where the episodes are a multiple of the executed actions; those beyond are spread over the plan.

Differences of a pair, not of single episodes, are compared, so that what an agent does anyway
cancels; and the reference's pair moves by the reference's answer, so that following one's own
earlier answer does not count as an answer. The reference is random: two halves of its samples are
taken, whose product has no bias by their noise. Discrete elements are left out.

Shape legend: `N` episodes, `S` samples, `K` ticks after the change, `Da` action size.
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
    """Answers to a change, weighed by how much they were wanted.

    Args:
        answered: [N, K] executed difference along the wanted one.
        wanted: [N, K] square of the wanted difference.
    """

    answered: np.ndarray
    wanted: np.ndarray

    def curve(self) -> list[float | None]:
        """Share of the wanted answer at 0, 1, ... ticks; None where none was wanted."""
        sums = zip(self.answered.sum(axis=0), self.wanted.sum(axis=0), strict=True)
        return [float(did / ought) if ought > 0 else None for did, ought in sums]

    def interval(
        self, tick: int, *, resamples: int = 2000, seed: int = 0
    ) -> tuple[float, float] | None:
        """95 % bootstrap interval over episodes of the share at a tick."""
        n = len(self.wanted)
        index = np.random.default_rng(seed).integers(0, n, (resamples, n))
        wanted = self.wanted[index, tick].sum(axis=1)
        if (wanted <= 0).any():
            return None
        low, high = np.quantile(self.answered[index, tick].sum(axis=1) / wanted, [0.025, 0.975])
        return float(low), float(high)

    def delay(self, share: float = 0.5) -> int | None:
        """Ticks until so much of the wanted answer is executed; None if later than measured."""
        curve = self.curve()
        return next((k for k, value in enumerate(curve) if value and value >= share), None)


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
    first_tick: int,
    n_ticks: int,
    samples: int,
) -> Reaction:
    """Displace an object once in each episode and follow the answer.

    Args:
        agent: whose chunks are executed.
        reference: draws a chunk at every step; says what an answer ought to be.
        make_env: of an environment with `displace`.
        seeds: one per episode.
        first_tick: earliest tick at which a change is seen, at least 1.
        n_ticks: K.
        samples: S, even: episodes of the reference that are averaged.
    """
    n = len(seeds)
    changes = first_tick + _phases(n, agent.horizons.action)
    copies = np.repeat(np.asarray(seeds), samples)
    pairs = {
        name: (_Episodes(who, make_env, some, own), _Episodes(who, make_env, some, own))
        for name, who, some, own in (
            ("agent", agent, np.asarray(seeds), np.asarray(seeds)),
            # A noise of its own for every copy of an episode.
            ("reference", reference, copies, seeds[0] + np.arange(len(copies))),
        )
    }
    did = np.zeros((n, n_ticks, agent.contract.action.size))
    ought = np.zeros((n, samples, n_ticks, agent.contract.action.size))
    counts = np.zeros((n, n_ticks), dtype=bool)
    try:
        for tick in range(changes.max() + n_ticks):
            calm, moved = pairs["agent"]
            actions = [calm.actions(), moved.actions()]
            leads = [np.repeat(each, samples, axis=0) for each in actions]
            has_changed = np.repeat(tick >= changes, samples)[:, None]
            own = [episodes.actions() for episodes in pairs["reference"]]
            taken = [np.where(has_changed, o, lead) for o, lead in zip(own, leads, strict=True)]
            due = np.flatnonzero((changes <= tick) & (tick < changes + n_ticks))
            k = tick - changes[due]
            running = [e.is_running.reshape(n, -1).all(axis=1) for p in pairs.values() for e in p]
            counts[due, k] = np.all(running, axis=0)[due]
            did[due, k] = _scaled_difference(agent, *actions, seen=calm.seen())[due]
            answers = _scaled_difference(agent, *taken, seen=pairs["reference"][0].seen())
            ought[due, :, k] = answers.reshape(n, samples, -1)[due]
            # Displaced during this step, so that the next observation is the first to show it.
            moved.displace(np.flatnonzero(changes == tick + 1))
            pairs["reference"][1].displace(np.flatnonzero(np.repeat(changes == tick + 1, samples)))
            for episodes, each in zip(
                (calm, moved, *pairs["reference"]), actions + taken, strict=True
            ):
                episodes.step(each)
    finally:
        for pair in pairs.values():
            for episodes in pair:
                episodes.close()
    return _compared(did, ought, counts, agent.contract.action.discrete)


def _phases(n: int, n_phases: int) -> np.ndarray:
    """A phase for each of `n` episodes: all alike, and those left over at even distances."""
    rest = n % n_phases
    spread = (2 * np.arange(rest) + 1) * n_phases // (2 * max(1, rest))
    return np.concatenate([np.arange(n - rest) % n_phases, spread])


def _compared(
    did: np.ndarray, ought: np.ndarray, counts: np.ndarray, discrete: Sequence[int]
) -> Reaction:
    """Shares of differences [N, K, Da] by an agent and [N, S, K, Da] by the reference.

    Args:
        did: executed by the agent.
        ought: executed by the reference.
        counts: [N, K] bool, whether all episodes were still running.
        discrete: elements that are left out.
    """
    kept = [i for i in range(did.shape[-1]) if i not in discrete]
    half = ought.shape[1] // 2
    one, other = ought[:, :half].mean(axis=1)[..., kept], ought[:, half:].mean(axis=1)[..., kept]
    wanted = (one * other).sum(axis=-1)
    answered = (did[..., kept] * (one + other) / 2).sum(axis=-1)
    return Reaction(answered * counts, wanted * counts)


class _Episodes:
    """Episodes of an agent in step.

    Args:
        agent: that plans.
        make_env: makes the environments.
        seeds: of the starts.
        noise: seeds of the agent's noise.
    """

    def __init__(self, agent: Agent, make_env: MakeEnv, seeds: np.ndarray, noise: np.ndarray):
        self._agent, self._streams = agent, agent.start(noise.tolist())
        self._executor = Executor(agent.horizons, agent.inference_delay)
        self._envs: list[gym.Env] = [
            ObservationHistory(make_env(), agent.horizons.obs) for _ in seeds
        ]
        pairs = zip(self._envs, seeds.tolist(), strict=True)
        self._seen = [env.reset(seed=seed)[0] for env, seed in pairs]
        for slot in range(len(seeds)):
            self._executor.restart(slot)
        self.is_running = np.ones(len(seeds), dtype=bool)
        self._tick, self._plan = 0, np.empty(0)

    def actions(self) -> np.ndarray:
        """The action of each episode [N, Da] for the present tick."""
        n = self._agent.horizons.action
        if self._tick % n == 0:
            if self._tick:
                self._agent.shift(self._streams, n)
            self._plan = self._executor.actions(self._agent.chunk(self._streams, self.seen()))
        return self._plan[:, self._tick % n]

    def seen(self) -> dict[str, np.ndarray]:
        """Field name -> [N, To, ...] of the present tick."""
        return {name: np.stack([one[name] for one in self._seen]) for name in self._seen[0]}

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


def _scaled_difference(
    agent: Agent, calm: np.ndarray, moved: np.ndarray, *, seen: Mapping[str, np.ndarray]
) -> np.ndarray:
    """How far actions [n, Da] lie from calm ones, in the scale of what the calm ones answer."""
    told = {name: torch.from_numpy(values) for name, values in agent.policy.told(seen).items()}

    def scaled(actions: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(actions.astype(agent.contract.action.dtype)).to(agent.device)
        return agent.policy.chunk(values, told).cpu().numpy()

    return scaled(moved) - scaled(calm)
