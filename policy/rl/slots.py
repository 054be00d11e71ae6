"""Environments in which one episode follows the other, and what is known of the episodes.

A slot whose observation or reward is no number is quarantined: that chunk teaches nothing, the
episode is broken off and counted, and a new one begins.

Shape legend: `N` environments of this rank, `Ta` executed steps, `Da` action size.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv

from policy.diffusion.noise import hashed
from policy.ranks import Ranks
from policy.rl.accounting import Accounting, Played
from policy.rl.reward import ChunkReward

# Starts of training are seeded from here on, far from those that anybody evaluates on.
FIRST_SEED = 2**30
STARTS = 100  # a stream of random numbers
ATTEMPTS = 10


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk; all [N].

    Args:
        rewards: 0 where not valid.
        n_executed: steps that were executed.
        terminated: the episode ended there for good.
        truncated: the episode was cut there, and had not ended.
        is_valid: there was such a chunk, and what came of it are numbers.
    """

    rewards: np.ndarray
    n_executed: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    is_valid: np.ndarray


class Slots:
    """The environments of a rank, with their present observations.

    Attributes:
        observation: field name -> [N, To, ...] of each slot, in finite numbers.
        is_playing: [N] bool, whether there is an episode that goes on.
        accounting: of the episodes.
        n_quarantined: chunks and starts so far that held something that is no number.
        seconds: spent in the environments so far.
    """

    def __init__(
        self,
        envs: VectorEnv,
        reward: ChunkReward,
        *,
        seed: int,
        ranks: Ranks,
        group_size: int = 1,
        is_episodic: bool = False,
    ):
        """Slots in which nothing is played yet.

        Args:
            envs: of `envs.vector.make_vec`, at the level of chunks, without automatic reset.
            reward: of chunks.
            seed: of the run.
            ranks: this process among others; their starts differ.
            group_size: so many slots side by side start alike.
            is_episodic: whether a rollout is one episode in each slot.

        Raises:
            ValueError: the slots do not divide into groups.
        """
        if envs.num_envs % group_size:
            raise ValueError(
                f"num_envs is {envs.num_envs}, which does not divide into groups of {group_size}: "
                f"give a multiple"
            )
        self.envs, self.reward, self.seed = envs, reward, seed
        self.n, self.group_size, self.is_episodic = envs.num_envs, group_size, is_episodic
        self.first = ranks.rank * self.n  # number of the first slot among those of all ranks
        self.n_quarantined, self.seconds = 0, 0.0
        self.restart(0)

    def restart(self, turn: int) -> None:
        """Break off all episodes: what follows is a function of the seed and the turn alone."""
        self.turn = turn
        self.accounting = Accounting()
        self.observation: dict[str, np.ndarray] = {}
        self.episodes = [Played()] * self.n
        self.n_begun = np.zeros(self.n, int)
        self.is_playing = np.zeros(self.n, bool)
        self.is_first = np.ones(self.n, bool)
        self.last_reward = np.zeros(self.n)

    def begin(self) -> bool:
        """Begin an episode in every slot that plays none; returns whether there was one.

        Raises:
            ValueError: an environment starts with something that is no number, time and again.
        """
        if self.is_playing.all():
            return False
        for _ in range(ATTEMPTS):
            self._reset(~self.is_playing)
            if self.is_playing.all():
                return True
        raise ValueError(
            f"the environment started {ATTEMPTS} times in a row with an observation that is no "
            f"number: look at what its reset returns"
        )

    def cut(self) -> int:
        """Count the episodes that are going on as ended here; returns how many there are."""
        for slot in np.flatnonzero(self.is_playing):
            self.episodes[slot].has_ended = True
        return int(self.is_playing.sum())

    def step(self, actions: np.ndarray) -> Outcome:
        """Execute a chunk [N, Ta, Da] in every slot that plays; `observation` is what followed.

        A slot whose episode ends there plays no longer, and keeps its last observation until the
        next `begin`.
        """
        playing = self.is_playing.copy()
        before = time.perf_counter()
        observation, rewards, terminated, truncated, infos = self.envs.step(actions)
        self.seconds += time.perf_counter() - before
        rewards = self.reward(rewards, infos, previous=self.last_reward, is_first=self.is_first)
        is_finite = np.isfinite(rewards) & finite_rows(observation, self.n)
        is_valid = playing & is_finite
        self.n_quarantined += int((playing & ~is_finite).sum())
        self.observation = {
            name: _numbers(values, is_finite) for name, values in observation.items()
        }
        self.is_first = self.is_first & ~playing
        self.last_reward = np.where(is_finite, infos["last_reward"], 0.0)
        has_ended = (terminated | truncated) & is_valid
        n_executed = np.where(playing, infos["n_executed"], 0)
        self._account(playing, is_finite, rewards, n_executed, infos["is_success"], has_ended)
        self.is_playing = is_valid & ~has_ended
        return Outcome(
            rewards=np.where(is_valid, rewards, 0.0),
            n_executed=n_executed,
            terminated=terminated & is_valid,
            truncated=truncated & ~terminated & is_valid,
            is_valid=is_valid,
        )

    def _reset(self, idle: np.ndarray) -> None:
        """Begin an episode in the slots [N] that idle, where it starts with numbers."""
        seeds = [self._start_seed(slot) if idle[slot] else None for slot in range(self.n)]
        before = time.perf_counter()
        # Gymnasium's stubs forget that a vector env takes one seed per copy.
        fresh, _ = self.envs.reset(seed=seeds, options={"reset_mask": idle})  # pyright: ignore
        self.seconds += time.perf_counter() - before
        self.n_begun += idle
        self.observation = {
            name: _merged(idle, values, self.observation.get(name))
            for name, values in fresh.items()
        }
        begun = idle & finite_rows(self.observation, self.n)
        self.n_quarantined += int((idle & ~begun).sum())
        for slot in np.flatnonzero(begun):
            self.episodes[slot] = self.accounting.begin()
        self.is_first |= begun
        self.is_playing |= begun

    def _account(
        self,
        playing: np.ndarray,
        is_finite: np.ndarray,
        rewards: np.ndarray,
        n_executed: np.ndarray,
        is_success: np.ndarray,
        has_ended: np.ndarray,
    ) -> None:
        """Add a chunk, all [N], to the episodes that are playing; drop those that broke."""
        for slot in np.flatnonzero(playing):
            episode = self.episodes[slot]
            if not is_finite[slot]:
                self.accounting.drop(episode)
                continue
            episode.reward += float(rewards[slot])
            episode.length += int(n_executed[slot])
            episode.is_success |= bool(is_success[slot])
            episode.has_ended = bool(has_ended[slot])

    def _start_seed(self, slot: int) -> int:
        """Of the next episode in a slot; slots of one group start alike."""
        place = (self.first + slot) // self.group_size
        count = (self.turn << 40) | (place << 20) | int(self.n_begun[slot])
        return FIRST_SEED + hashed(self.seed, purpose=STARTS, count=count) % FIRST_SEED


def finite_rows(observation: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Whether all numbers of each of n slots are finite, [n] bool."""
    is_finite = np.ones(n, bool)
    for values in observation.values():
        if np.issubdtype(values.dtype, np.floating):
            is_finite &= np.isfinite(values.reshape(n, -1)).all(axis=1)
    return is_finite


def _merged(mask: np.ndarray, fresh: np.ndarray, old: np.ndarray | None) -> np.ndarray:
    """Fresh values [N, ...] where the mask [N] says so, old ones elsewhere."""
    if old is None:
        return fresh
    out = old.copy()
    out[mask] = fresh[mask]
    return out


def _numbers(values: np.ndarray, is_finite: np.ndarray) -> np.ndarray:
    """Values [N, ...] with 0 in the slots that are not finite."""
    if is_finite.all():
        return values
    out = values.copy()
    out[~is_finite] = 0
    return out
