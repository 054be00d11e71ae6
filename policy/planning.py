"""An agent as a planner: one stream of control, asked for chunks by the control loop or a server.

A sampler is made for a number of decided actions (its `inference_delay`), which differs from
request to request. So there is an agent for each number, with one policy and one kind of carry
between them; all are there before the first request. Urgent requests may have a sampler of their
own, with fewer calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch

from data.types import Contract, Horizons
from policy.streams import Streams
from policy.types import ActionChunk, Request, Sampler

if TYPE_CHECKING:
    from policy.foresight import Foresight


class StreamAgent(Protocol):
    """What a planner needs of `policy.agent.Agent`, whose methods are explained there."""

    horizons: Horizons
    weights: str

    @property
    def contract(self) -> Contract:
        """Meaning of the observations and actions."""
        ...

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        ...

    @property
    def calls(self) -> str:
        """The same in words."""
        ...

    def start(self, seeds: Sequence[int]) -> Streams:
        """New streams, one per seed."""
        ...

    def renew(self, streams: Streams, slot: int) -> None:
        """Forget what a stream has planned."""
        ...

    def shift(self, streams: Streams, n_executed: int) -> None:
        """Time moved on by `n_executed` actions."""
        ...

    def chunk(self, streams: Streams, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions [N, Tp - past, Da] of each stream, from field name -> [N, To, ...]."""
        ...


class AgentPlanner:
    """Plans for one stream at a time; a new epoch is a new stream.

    Args:
        agents: of one policy; `agents[d]` takes the first `d` actions of a chunk for decided. A
            request with more of them is planned as with the most that there is.
        urgent: the same for urgent requests, of the same policy and with the same kind of carry;
            None: these are planned like others.
        foresight: moves an observation on to where the decided actions lead, and the chunk is
            planned from there; None: it is planned from what was seen.

    Attributes:
        contract: of the policy, with its horizons and the digest of its statistics.
        horizons: of the policy, with the executed actions.
    """

    def __init__(
        self,
        agents: Sequence[StreamAgent],
        urgent: Sequence[StreamAgent] | None = None,
        *,
        foresight: "Foresight | None" = None,
    ):
        if not agents or urgent == []:
            raise ValueError("agents is empty: give at least the agent without decided actions")
        self._agents, self._urgent = list(agents), list(urgent or agents)
        self._foresight = foresight
        self.horizons: Horizons = agents[0].horizons
        self.contract: Contract = replace(agents[0].contract, horizons=self.horizons)
        self._streams: Streams | None = None
        self._epoch: int | None = None
        self._asked = 0  # Tick of the last request, and ...
        self._now = 0  # ... the one that its chunk was planned from.

    @classmethod
    def load(
        cls,
        path: Path | str,
        make_sampler: Callable[..., Sampler],
        *,
        action_horizon: int | None = None,
        make_urgent: Callable[..., Sampler] | None = None,
        device: torch.device | str = "cpu",
        goal_weight: float = 1.0,
        foresight: bool = False,
    ) -> Self:
        """The planner of a checkpoint.

        Args:
            path: of a training run, or of one checkpoint.
            make_sampler: makes the sampler, given its `space`.
            action_horizon: executed actions per chunk; None: as in training.
            make_urgent: makes the sampler of urgent requests; its carry is of the same kind.
            device: where the network runs.
            goal_weight: of the goal, where the policy has one.
            foresight: whether chunks are planned from where decided actions lead.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or newer than this program; or
                it has no foresight (`cadence foresee`).
            ValueError: there are not so many actions in a chunk, the sampler does not fit, or the
                policy's observations cannot be foreseen.
        """
        # What is imported here, a planner of an exported policy does without.
        from policy.agent import Agent
        from policy.build import chunk_space, from_checkpoint
        from policy.checkpoint import load
        from policy.foresight import load_foresight

        loaded = load(path)
        policy = from_checkpoint(loaded)

        def agent(make: Callable[..., Sampler], delay: int) -> Agent:
            space = chunk_space(
                loaded, action_horizon=action_horizon, inference_delay=delay, device=device
            )
            made = Agent(policy, make(space=space), device=device, rows=1, goal_weight=goal_weight)
            made.weights = loaded.weights
            return made

        def agents(make: Callable[..., Sampler]) -> list[Agent]:
            made = [agent(make, 0)]
            horizons = made[0].horizons
            for delay in range(1, horizons.future - horizons.action + 1):
                try:
                    made.append(agent(make, delay))
                except ValueError:  # The sampler needs more known actions than would be left.
                    break
            return made

        return cls(
            agents(make_sampler),
            agents(make_urgent) if make_urgent else None,
            foresight=load_foresight(loaded.path, policy.contract, policy.normalizer, device=device)
            if foresight
            else None,
        )

    @property
    def agent(self) -> StreamAgent:
        """The agent without decided actions."""
        return self._agents[0]

    @property
    def all_agents(self) -> list[StreamAgent]:
        """All agents, in the order of their decided actions; urgent ones of their own last."""
        return [*self._agents, *(a for a in self._urgent if a not in self._agents)]

    @property
    def max_delay(self) -> int:
        """Most decided actions that a chunk can begin with."""
        return min(len(self._agents), len(self._urgent)) - 1

    def warm_up(self, n: int = 3) -> None:
        """Plan for nothing with every agent, and foresee: the first calls of a network are slower.

        Args:
            n: chunks of each agent.
        """
        fields = self.contract.observation
        history = {
            name: np.zeros((self.horizons.obs, *field.shape), field.dtype)
            for name, field in fields.items()
        }
        for name, field in fields.items():
            if name == self.contract.scaled_per:  # A one-hot field has to name somebody.
                history[name].reshape(self.horizons.obs, field.size)[:, 0] = 1
        if self._foresight is not None:
            n_decided = 1 + self.horizons.future - self.horizons.action
            self._foresight(history, np.zeros((n_decided, self.contract.action.size)))
        for agent in [*self._agents, *self._urgent]:
            streams = agent.start([0])
            for _ in range(n):
                agent.chunk(streams, {name: values[None] for name, values in history.items()})
                agent.shift(streams, agent.horizons.action)

    def __call__(self, request: Request) -> ActionChunk:
        """The chunk for `request.tick`; the stream moves on by what has passed.

        Raises:
            NotFiniteError: the denoiser predicted, or the foresight saw, something that is not a
                number.
            ValueError: the request is older than the last one of its epoch.
        """
        history, decided = self._foreseen(request)
        now = request.tick + len(decided)
        agents = self._urgent if request.is_urgent else self._agents
        agent = agents[0 if len(decided) else min(request.delay, self.max_delay)]
        if self._streams is None or request.epoch != self._epoch:
            self._streams, self._epoch = agent.start([request.seed]), request.epoch
        elif request.tick < self._asked:
            raise ValueError(
                f"a request for tick {request.tick} came after one for tick {self._asked}: "
                f"ask in order, or begin a new epoch"
            )
        else:
            self._move_on(agent, self._streams, now - self._now)
        self._asked, self._now = request.tick, now
        batch = {name: np.asarray(values)[None] for name, values in history.items()}
        actions = agent.chunk(self._streams, batch)[0]
        actions = np.concatenate([decided, actions])[: len(actions)]
        return ActionChunk(actions, request.tick, self.contract)

    def _foreseen(self, request: Request) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        """What to plan from, and the actions [n, Da] that lead there from what was seen."""
        dtype, size = self.contract.action.dtype, self.contract.action.size
        if self._foresight is None or request.decided is None:
            return request.history, np.empty((0, size), dtype)
        # What comes after the end of a chunk's executed part is not decided, and not foreseen.
        longest = self.horizons.future - self.horizons.action
        decided = request.decided[: 1 + longest]
        return self._foresight(request.history, decided), decided[1:].astype(dtype)

    def _move_on(self, agent: StreamAgent, streams: Streams, passed: int) -> None:
        if 0 <= passed < self.horizons.future:
            agent.shift(streams, passed)
        else:
            # Nothing of the last plan is left; or it was foreseen from later than now, because more
            # was decided then, and its actions are not those for now.
            agent.renew(streams, 0)
            streams.ticks[0] += passed
