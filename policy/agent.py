"""A policy with a sampler, for many streams of control at once.

A stream's chunks are a function of its seed and its observations alone: its noise comes from a
generator of its own, and the network always runs on the same number of rows (`rows`, short groups
are filled up), because matrix kernels round differently for different batch sizes. So a result
does not depend on how many streams run beside it.

Shape legend: `N` streams, `To Tp` observed and predicted steps, `Da` action size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
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
        carry: the sampler's, one row per stream.
        generators: one per stream.
    """

    carry: Carry
    generators: list[torch.Generator]


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
            rows: batch size of every network call.
        """
        self.policy = policy.to(device).eval()
        self.sampler = sampler
        self.device = torch.device(device)
        self.rows = rows

    @classmethod
    def load(
        cls,
        path: Path | str,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        rows: int = 16,
    ) -> Self:
        """The agent of a checkpoint.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or newer than this program.
        """
        return cls(build_policy(load(path)), sampler, device=device, rows=rows)

    @property
    def contract(self) -> Contract:
        """Meaning of the observations and actions."""
        return self.policy.contract

    @property
    def horizons(self) -> Horizons:
        """Observed, predicted and executed steps."""
        return self.policy.horizons

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.sampler.nfe

    def start(self, seeds: Sequence[int]) -> Streams:
        """New streams, one per seed."""
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        return Streams(self.sampler.start(len(seeds), generators), generators)

    def restart(self, streams: Streams, slot: int, seed: int) -> None:
        """Begin a new stream in a slot."""
        fresh = self.start([seed])
        streams.generators[slot] = fresh.generators[0]
        streams.carry = _put(streams.carry, fresh.carry, [slot])

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
        n = len(streams.generators)
        slots = range(n) if slots is None else slots
        shape = (n, self.horizons.pred, *self.contract.action.shape)
        actions = np.zeros(shape, dtype=self.contract.action.dtype)
        for first in range(0, len(slots), self.rows):
            group = list(slots[first : first + self.rows])
            actions[group] = self._group(streams, observation, group)
        return actions

    def _group(
        self, streams: Streams, observation: Mapping[str, np.ndarray], group: list[int]
    ) -> np.ndarray:
        """Chunks of at most `rows` streams; the rows that are missing repeat the last one."""
        n_filled = self.rows - len(group)
        index = group + [group[-1]] * n_filled
        spare = torch.Generator(self.device).manual_seed(0)
        generators = [streams.generators[slot] for slot in group] + [spare] * n_filled
        rows = {k: torch.from_numpy(v[index]).to(self.device) for k, v in observation.items()}
        cond = self.policy.encode(rows)
        x0, carry = self.sampler(self.policy, cond, _take(streams.carry, index), generators)
        streams.carry = _put(streams.carry, _take(carry, range(len(group))), group)
        return self.policy.actions(x0[: len(group)]).cpu().numpy()


def _take(carry: Carry, index: Sequence[int]) -> Carry:
    """The rows of a carry at `index`."""
    return carry.replace(**{f.name: getattr(carry, f.name)[list(index)] for f in fields(carry)})


def _put(carry: Carry, rows: Carry, index: Sequence[int]) -> Carry:
    """A carry whose rows at `index` are replaced."""

    def scatter(old: Tensor, new: Tensor) -> Tensor:
        out = old.clone()
        out[list(index)] = new
        return out

    return carry.replace(
        **{f.name: scatter(getattr(carry, f.name), getattr(rows, f.name)) for f in fields(carry)}
    )
