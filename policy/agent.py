"""A policy with a sampler, for many streams of control at once.

A stream's chunks are a function of its seed and its observations alone, bit for bit. Its noise
comes from a generator of its own. And since matrix kernels round differently for another batch size
or another place in the batch, the network always runs on the same number of rows, and a stream
always has the row `seed % rows`; rows that no stream takes are filled up.

A number that is not finite is an error that names the stream, its tick and the noise level at
which it arose.

Shape legend: `N` streams, `To Tp` observed and predicted steps, `Da` action size.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data.types import Contract
from policy.build import chunk_space, from_checkpoint
from policy.checkpoint import load
from policy.model import DiffusionPolicy
from policy.streams import NotFiniteError, Streams, element_told, put, take, zeros
from policy.tick import StartCall, Tick, TickCall, noise_of
from policy.types import Carry, Sampler


class Agent:
    """Chunks of actions in physical units from observations in physical units."""

    def __init__(
        self,
        policy: DiffusionPolicy,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        rows: int = 16,
        goal_weight: float = 1.0,
    ):
        """An agent.

        Args:
            policy: the trained policy; moved to `device`, frozen and put in evaluation mode.
            sampler: how chunks are drawn.
            device: where the network runs.
            rows: batch size of every network call; results depend on it in the last bits.
            goal_weight: 1 looks at the goal, 0 does not; others guide by the difference, and their
                calls have twice the rows.

        Raises:
            ValueError: the sampler draws other chunks than the policy's, or the policy has no goal
                to weigh.
        """
        space, trained = sampler.space, (policy.horizons.pred, policy.contract.action.size)
        if space.shape != trained or space.horizons.past != policy.horizons.past:
            raise ValueError(
                f"the sampler draws chunks of {space.shape}, {space.horizons.past} in the past; "
                f"the policy's are of {trained}, {policy.horizons.past} in the past"
            )
        if rows < 1:
            raise ValueError(f"rows is {rows}, it must be at least 1")
        if goal_weight != 1 and not (policy.has_goals and math.isfinite(goal_weight)):
            raise ValueError(
                f"goal_weight is {goal_weight}, it must be 1 (any policy) or another number "
                f"(policies trained with encoder=goal and encoder.dropout > 0)"
            )
        self.policy = policy.to(device).eval().requires_grad_(False)
        self.sampler = sampler
        self.horizons, self.inference_delay = space.horizons, space.inference_delay
        self.device = torch.device(device)
        self.rows, self.goal_weight = rows, goal_weight
        self.tick = Tick(self.policy, sampler, goal_weight=goal_weight)
        self.use(None)
        self.weights = "raw"  # which weights the policy holds; a checkpoint says

    @classmethod
    def load(
        cls,
        path: Path | str,
        make_sampler: Callable[..., Sampler],
        *,
        action_horizon: int | None = None,
        inference_delay: int = 0,
        device: torch.device | str = "cpu",
        rows: int = 16,
        goal_weight: float = 1.0,
    ) -> Self:
        """The agent of a checkpoint.

        Args:
            path: of a training run, or of one checkpoint.
            make_sampler: makes the sampler, given its `space`.
            action_horizon: executed actions per chunk; None: as in training.
            inference_delay: control steps from an observation to the first action of its chunk.
            device: where the network runs.
            rows: batch size of every network call; results depend on it in the last bits.
            goal_weight: of the goal, where the policy has one.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or newer than this program.
            ValueError: there are not so many actions in a chunk, or the sampler does not fit.
        """
        loaded = load(path)
        policy = from_checkpoint(loaded)
        space = chunk_space(
            loaded,
            action_horizon=action_horizon,
            inference_delay=inference_delay,
            device=device,
        )
        sampler = make_sampler(space=space)
        agent = cls(policy, sampler, device=device, rows=rows, goal_weight=goal_weight)
        agent.weights = loaded.weights
        return agent

    @property
    def contract(self) -> Contract:
        """Meaning of the observations and actions."""
        return self.policy.contract

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.sampler.nfe

    @property
    def calls(self) -> str:
        """The denoiser calls of a chunk, and of a stream's start where it costs some."""
        start = self.sampler.start_nfe
        more = f" ({start} more at the start)" if start else ""
        return f"{self.nfe} calls per {self.horizons.action} actions{more}"

    def calls_in_all(self, lengths: Sequence[int]) -> float:
        """Denoiser calls per executed action, starts and chunks that were cut short included.

        Args:
            lengths: executed actions of each stream; at least one in all.
        """
        chunks = sum(math.ceil(length / self.horizons.action) for length in lengths)
        return (self.sampler.start_nfe * len(lengths) + self.nfe * chunks) / sum(lengths)

    def use(self, call: TickCall | None, start: StartCall | None = None) -> None:
        """Take another way to compute `tick`, such as a compiled one; None: as it is.

        Args:
            call: of the same policy and sampler, for `rows` rows; it is given observations on the
                host, and gives actions and faults there or on the device.
            start: the same of what begins streams, `Tick.starting`.

        Raises:
            ValueError: the sampler's calls are not always the same.
        """
        # Each with the noise that it takes, which is drawn beforehand.
        self._noise = () if call is None else self.tick.draws(self.rows).noise
        self._start_noise = () if start is None else self.tick.start_draws(self.rows).noise
        self._call, self._start = call, start

    def start(self, seeds: Sequence[int]) -> Streams:
        """New streams, one per seed; the sampler starts them at their first observation."""
        generators = [self._generator(seed) for seed in seeds]
        return Streams(list(seeds), generators, [0] * len(seeds), set(range(len(seeds))))

    def restart(self, streams: Streams, slot: int, seed: int) -> None:
        """Begin a new stream in a slot."""
        streams.seeds[slot], streams.generators[slot] = seed, self._generator(seed)
        streams.ticks[slot] = 0
        streams.fresh.add(slot)

    def renew(self, streams: Streams, slot: int) -> None:
        """Forget what a stream has planned: its next chunk is as one of a new stream."""
        streams.fresh.add(slot)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def shift(self, streams: Streams, n_executed: int) -> None:
        """Time moved on by `n_executed` actions.

        Raises:
            ValueError: a chunk has not so many actions.
        """
        longest = self.horizons.pred
        if not 0 <= n_executed <= longest:
            raise ValueError(
                f"{n_executed} actions were executed, a chunk has {longest}: give 0 to {longest}, "
                f"and renew() streams that stalled for longer"
            )
        if streams.carry is not None:
            streams.carry = self.sampler.shift(streams.carry, n_executed)
        streams.ticks = [tick + n_executed for tick in streams.ticks]

    @torch.no_grad()
    def chunk(
        self,
        streams: Streams,
        observation: Mapping[str, np.ndarray],
        slots: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The next chunk of each stream.

        A stream that is told another task is renewed where tasks have scales of their own.

        Args:
            streams: of `start`.
            observation: field name -> [N, To, ...].
            slots: streams that need a chunk; the others come back as zeros. Default: all.

        Returns:
            Actions [N, Tp - past, Da], the first one for now.

        Raises:
            NotFiniteError: the denoiser predicted something that is not a number.
            ValueError: tasks have scales of their own, and a stream is not told exactly one.
        """
        n = len(streams.seeds)
        shape = (n, self.horizons.future, *self.contract.action.shape)
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
        slot_of_row = [group.get(row, slots[0]) for row in range(self.rows)]
        # Streams that are the rows, as they come, need no gathering.
        is_all = slot_of_row == slots == list(range(len(streams.seeds)))
        seen = {
            name: torch.from_numpy(np.array(v, order="C") if is_all else v[slot_of_row])
            for name, v in observation.items()
        }
        self._renew_if_told_otherwise(streams, observation, slots)
        earlier = self._start_fresh(streams, seen, group)
        assert streams.carry is not None
        carry = streams.carry if is_all else take(streams.carry, slot_of_row)
        generators = self._generators(streams, group)
        if self._call is None:
            actions, x, sigma, fault = self.tick.drawing(self._there(seen), carry, generators)
        else:
            noise = noise_of(self._noise, generators)
            actions, x, sigma, fault = self._call(seen, carry.x, carry.sigma, noise)
        carry = Carry(x, sigma)
        streams.carry = carry if is_all else put(streams.carry, slots, take(carry, taken))
        made = actions.cpu().numpy()
        self._check_finite(streams, group, made, _first(earlier, fault.tolist()))
        return made if is_all else made[taken]

    def _start_fresh(
        self, streams: Streams, seen: dict[str, Tensor], group: Mapping[int, int]
    ) -> list[float]:
        """Begin the fresh streams of a group; the level of a fault in each row, 0 for none."""
        fresh = {row: slot for row, slot in group.items() if slot in streams.fresh}
        if not fresh:
            return [0.0] * self.rows
        generators = self._generators(streams, fresh)
        if self._start is None:
            started, fault = self.tick.start(self._there(seen), generators)
        else:
            x, sigma, fault = self._start(seen, noise_of(self._start_noise, generators))
            started = Carry(x, sigma)
        if streams.carry is None:
            streams.carry = zeros(started, len(streams.seeds))
        streams.carry = put(streams.carry, list(fresh.values()), take(started, list(fresh)))
        streams.fresh -= set(fresh.values())
        return fault.tolist()

    def _there(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.to(self.device) for name, values in seen.items()}

    def _renew_if_told_otherwise(
        self, streams: Streams, observation: Mapping[str, np.ndarray], slots: Sequence[int]
    ) -> None:
        """Renew streams whose scale is another now: what they have planned is in the old one."""
        for name, told in self.policy.told(observation).items():
            elements = [element_told(told[slot, -1], name=name, slot=slot) for slot in slots]
            for slot, element in zip(slots, elements, strict=True):
                if streams.told.get(slot, element) != element:
                    self.renew(streams, slot)
                streams.told[slot] = element

    def _check_finite(
        self, streams: Streams, group: dict[int, int], actions: np.ndarray, faults: list[float]
    ) -> None:
        """Raise NotFiniteError where a stream's actions, or what led to them, are no numbers."""
        for row, slot in group.items():
            if faults[row] > 0 or not np.isfinite(actions[row]).all():
                where = f"first at sigma {faults[row]:g}" if faults[row] > 0 else "in the sampler"
                raise NotFiniteError(
                    f"a prediction is not finite in the stream of seed {streams.seeds[slot]} at "
                    f"tick {streams.ticks[slot]}, {where}: check the observation and the "
                    f"checkpoint (cadence doctor)"
                )

    def _generators(self, streams: Streams, group: Mapping[int, int]) -> list[torch.Generator]:
        """A generator for each row; rows of no stream in `group` share one that nobody needs."""
        spare = self._generator(0)
        return [
            streams.generators[group[row]] if row in group else spare for row in range(self.rows)
        ]


def _first(earlier: list[float], later: list[float]) -> list[float]:
    """Of each row the first level that is positive."""
    return [a if a > 0 else b for a, b in zip(earlier, later, strict=True)]
