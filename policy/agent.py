"""A policy with a sampler, for many streams of control at once.

A stream's chunks are a function of its seed and its observations alone, bit for bit. Its noise
comes from a generator of its own. And since matrix kernels round differently for another batch size
or another place in the batch, the network always runs on the same number of rows, and a stream
always has the row `seed % rows`; rows that no stream takes are filled up.

Shape legend: `N` streams, `To Tp` observed and predicted steps, `Da` action size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data.types import Contract, Horizons
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.model import DiffusionPolicy
from policy.types import Carry, Sampler


@dataclass
class Streams:
    """What an agent keeps of each stream.

    Args:
        seeds: one per stream.
        generators: one per stream.
        carry: the sampler's, one row per stream.
    """

    seeds: list[int]
    generators: list[torch.Generator]
    carry: Carry


class Agent:
    """Chunks of actions in physical units from observations in physical units."""

    def __init__(
        self,
        policy: DiffusionPolicy,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        rows: int = 16,
    ):
        """An agent.

        Args:
            policy: the trained policy; moved to `device` and put in evaluation mode.
            sampler: how chunks are drawn.
            device: where the network runs.
            rows: batch size of every network call; results depend on it in the last bits.
        """
        if rows < 1:
            raise ValueError(f"rows is {rows}, it must be at least 1")
        self.policy = policy.to(device).eval()
        self.sampler = sampler
        self.device = torch.device(device)
        self.rows = rows
        self.weights = "raw"  # which weights the policy holds; a checkpoint says

    @classmethod
    def load(
        cls,
        path: Path | str,
        make_sampler: Callable[..., Sampler],
        *,
        device: torch.device | str = "cpu",
        rows: int = 16,
    ) -> Self:
        """The agent of a checkpoint.

        Args:
            path: of a training run, or of one checkpoint.
            make_sampler: makes the sampler, given `pred_horizon` and `action_size`.
            device: where the network runs.
            rows: batch size of every network call; results depend on it in the last bits.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or newer than this program.
        """
        loaded = load(path)
        policy = from_checkpoint(loaded)
        sampler = make_sampler(
            pred_horizon=policy.horizons.pred, action_size=policy.contract.action.size
        )
        agent = cls(policy, sampler, device=device, rows=rows)
        agent.weights = loaded.weights
        return agent

    @property
    def contract(self) -> Contract:
        """Meaning of the observations and actions."""
        return self.policy.contract

    @property
    def horizons(self) -> Horizons:
        """Observed, predicted and executed steps."""
        return self.policy.horizons

    def horizons_with(self, action_horizon: int | None) -> Horizons:
        """The horizons with another number of executed actions; None keeps it.

        Raises:
            ValueError: there are not so many actions in a chunk.
        """
        if action_horizon is None:
            return self.horizons
        return replace(self.horizons, action=action_horizon)

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.sampler.nfe

    def start(self, seeds: Sequence[int]) -> Streams:
        """New streams, one per seed."""
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        return Streams(list(seeds), generators, self.sampler.start(len(seeds), generators))

    def restart(self, streams: Streams, slot: int, seed: int) -> None:
        """Begin a new stream in a slot."""
        fresh = self.start([seed])
        streams.seeds[slot] = seed
        streams.generators[slot] = fresh.generators[0]
        streams.carry = _put(streams.carry, [slot], fresh.carry)

    def shift(self, streams: Streams, n_executed: int) -> None:
        """Time moved on by `n_executed` actions."""
        streams.carry = self.sampler.shift(streams.carry, n_executed)

    @torch.inference_mode()
    def chunk(
        self,
        streams: Streams,
        observation: Mapping[str, np.ndarray],
        slots: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The next chunk of each stream.

        Args:
            streams: of `start`.
            observation: field name -> [N, To, ...].
            slots: streams that need a chunk; the others come back as zeros. Default: all.

        Returns:
            Actions [N, Tp, Da].
        """
        n = len(streams.seeds)
        shape = (n, self.horizons.pred, *self.contract.action.shape)
        actions = np.zeros(shape, dtype=self.contract.action.dtype)
        for group in self._groups(streams, range(n) if slots is None else slots):
            slots_of_group = list(group.values())
            actions[slots_of_group] = self._chunk_of_group(streams, observation, group)
        return actions

    def _groups(self, streams: Streams, slots: Iterable[int]) -> list[dict[int, int]]:
        """As few groups as possible, row -> slot, in which each stream has its own row."""
        groups: list[dict[int, int]] = []
        for slot in slots:
            row = streams.seeds[slot] % self.rows
            free = next((group for group in groups if row not in group), None)
            if free is None:
                groups.append({row: slot})
            else:
                free[row] = slot
        return groups

    def _chunk_of_group(
        self, streams: Streams, observation: Mapping[str, np.ndarray], group: dict[int, int]
    ) -> np.ndarray:
        """Chunks of the streams of one group, in its order."""
        taken, slots = list(group), list(group.values())
        filler = slots[0]
        slot_of_row = [group.get(row, filler) for row in range(self.rows)]
        spare = torch.Generator(self.device).manual_seed(0)
        generators = [
            streams.generators[group[row]] if row in group else spare for row in range(self.rows)
        ]
        rows = {k: torch.from_numpy(v[slot_of_row]).to(self.device) for k, v in observation.items()}
        cond = self.policy.encode(rows)
        x0, carry = self.sampler(self.policy, cond, _take(streams.carry, slot_of_row), generators)
        streams.carry = _put(streams.carry, slots, _take(carry, taken))
        return self.policy.actions(x0)[taken].cpu().numpy()


def _take(carry: Carry, index: list[int]) -> Carry:
    """The rows of a carry at `index`."""
    return carry.replace(**{f.name: getattr(carry, f.name)[index] for f in fields(carry)})


def _put(carry: Carry, index: list[int], rows: Carry) -> Carry:
    """A carry whose rows at `index` are replaced."""

    def scatter(old: Tensor, new: Tensor) -> Tensor:
        out = old.clone()
        out[index] = new
        return out

    return carry.replace(
        **{f.name: scatter(getattr(carry, f.name), getattr(rows, f.name)) for f in fields(carry)}
    )
