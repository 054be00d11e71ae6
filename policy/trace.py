"""Keeps what a run saw, planned and sent, tick by tick, for `cadence view` to lay one over another.

    trace.zarr                  a store: what was observed at a tick, and the action that was sent
    chunks/episode_00000.npz    ticks [n] and actions [n, Tp, Da]: each chunk as it was planned

A trace is told what was sent (`policy.control.governed`), stands between the loop and the planner,
and changes nothing. A tick that was missed has no step, so steps are ticks as long as none is
missed; the ticks themselves are in the metadata of an episode, as `ticks`, where one was. A chunk
is then laid from the step on that its first action was for.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.store import EpisodeStore
from data.types import Contract, Horizons, Observation
from policy.types import ActionChunk, Planner, Request

MOST_STEPS = 1_000_000  # of a run that are kept; a trace may not exhaust the memory


@dataclass
class TracedEpisode:
    """What is kept of an episode.

    Args:
        observations: of each tick in which something was sent, field name -> value.
        actions: that were sent.
        ticks: in which they were.
        chunks: control tick and actions [Tp, Da] of each plan.
    """

    observations: list[dict[str, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    chunks: list[tuple[int, np.ndarray]] = field(default_factory=list)


class Trace:
    """Collects a run in memory; `write` puts it on the disk.

    Args:
        contract: of the robot.
    """

    def __init__(self, contract: Contract):
        self._contract = contract
        self.episodes: list[TracedEpisode] = []
        self._n_steps = 0
        self.is_full = False

    def start(self, epoch: int) -> None:
        """Something is asked for in an episode, counted from 0: what is sent from now on is its."""
        while len(self.episodes) <= epoch:
            self.episodes.append(TracedEpisode())

    def add_sent(self, observed: Observation, action: np.ndarray, tick: int) -> None:
        """An action was sent after something was observed; nothing before the first plan."""
        if not self.episodes:
            return
        if self._n_steps >= MOST_STEPS:
            self.is_full = True
            return
        self._n_steps += 1
        episode = self.episodes[-1]
        fields = {name: np.array(observed.fields[name]) for name in self._contract.observation}
        episode.observations.append(fields)
        episode.actions.append(np.array(action))
        episode.ticks.append(tick)

    def add_chunk(self, chunk: ActionChunk, epoch: int) -> None:
        """A chunk was planned in an episode, counted from 0."""
        if not self.is_full:
            self.episodes[epoch].chunks.append((chunk.tick0, np.array(chunk.actions, np.float32)))

    def write(self, out: Path, metadata: list[dict]) -> None:
        """Write what there is; nothing where nothing was sent.

        Args:
            out: folder of the run.
            metadata: of the episodes, as far as they ended.

        Raises:
            StoreError: it cannot be written.
            OSError: it cannot be written.
        """
        kept = [(i, episode) for i, episode in enumerate(self.episodes) if episode.ticks]
        if not kept:
            return
        (out / "chunks").mkdir(parents=True, exist_ok=True)
        with EpisodeStore.create(out / "trace.zarr", self._contract) as store:
            for number, (index, episode) in enumerate(kept):
                told = dict(metadata[index]) if index < len(metadata) else {}
                if episode.ticks != list(range(len(episode.ticks))):
                    told["ticks"] = episode.ticks
                store.append(_fields_of(episode, self._contract), **told)
                ticks, actions = _chunks_of(episode, self._contract.action.size)
                file = out / "chunks" / f"episode_{number:05d}.npz"
                np.savez_compressed(file, ticks=ticks, actions=actions)


def _fields_of(episode: TracedEpisode, contract: Contract) -> dict[str, np.ndarray]:
    fields = {
        name: np.stack([each[name] for each in episode.observations])
        for name in contract.observation
    }
    return {**fields, "action": np.stack(episode.actions)}


def _chunks_of(episode: TracedEpisode, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the store that chunks begin at, [n] and [n, Tp, Da]."""
    if not episode.chunks:
        return np.zeros(0, np.int64), np.zeros((0, 0, size), np.float32)
    sent = np.array(episode.ticks)
    ticks = np.array([int(np.searchsorted(sent, tick)) for tick, _ in episode.chunks], np.int64)
    return ticks, np.stack([actions.reshape(len(actions), -1) for _, actions in episode.chunks])


class TracedPlanner:
    """A planner whose chunks are kept.

    Args:
        planner: that plans.
        trace: that keeps them.
    """

    def __init__(self, planner: Planner, trace: Trace):
        self.contract: Contract = planner.contract
        self.horizons: Horizons = planner.horizons
        self._planner, self._trace = planner, trace

    def __call__(self, request: Request) -> ActionChunk:
        """A chunk, kept."""
        self._trace.start(request.epoch)  # Before its first chunk is there, nothing is sent.
        chunk = self._planner(request)
        self._trace.add_chunk(chunk, request.epoch)
        return chunk
