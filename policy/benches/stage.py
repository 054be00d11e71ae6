"""What takes part in a latency benchmark: ticks of one policy by each engine, and its peers.

The weights are random, so grids "fitted" to them are made up: it changes no duration.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data.types import Horizons
from policy.agent import Agent
from policy.benches import floor
from policy.benches.lineup import Row
from policy.benches.peer import INDICES, Peer
from policy.benches.rounds import Call
from policy.candidates import Subject
from policy.control.engine import Call as Compute
from policy.control.engine import compared
from policy.engine import cache_folder
from policy.flat import TickForm
from policy.model import DiffusionPolicy
from policy.parity import action_range, error_in, examples_of
from policy.tick import Tick, lowered
from policy.types import Sampler

SIGMA = 1.0  # level of the one denoiser call
EXAMPLES = 6  # of ticks that an engine is shown: start, pace, and those that are none
OBSERVATIONS = 64  # that follow each other, again and again
TOLERANCE = 0.1  # of an engine's actions: what is further off has not computed the same
SPREAD = 0.02  # of weights that start at zero, as if they were trained


@dataclass(frozen=True)
class Contestant:
    """Something that is timed.

    Args:
        name: in the table.
        kind: "chunk", or "call" for one call of the network alone.
        call: what is timed; returns when its result is on the host.
        calls: of the network.
        actions: that are executed of what it makes; None: it makes none.
        weights: what the network's weights are stored as.
        is_peer: whether others are compared with it.
        error: largest difference of its actions from those of the network as it is written, as a
            share of the actions' range; None: it is that, or was not compared.
    """

    name: str
    kind: str
    call: Call
    calls: int
    actions: int | None
    weights: str
    is_peer: bool = False
    error: float | None = None


class Stage:
    """One policy on one device, and what takes part on it.

    Args:
        policy: with random weights; those that are zero are drawn anew.
        make_sampler: (row, executed actions) -> its sampler.
        device: that networks run on.
        seed: of the observation, and of weights that are drawn.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        make_sampler: Callable[[Row, int], Sampler],
        *,
        device: torch.device,
        seed: int = 0,
    ):
        self.policy = policy.to(device).eval().requires_grad_(False)
        fill_zeros(policy.net, seed=seed)
        self.device, self._make_sampler = device, make_sampler
        self._lowered: dict[str, DiffusionPolicy] = {}  # kind of weights -> policy
        rng = np.random.default_rng(seed)
        # Many, for what is known of one that was seen before may have been kept.
        self._observations = itertools.cycle(
            {
                name: rng.normal(size=(1, policy.horizons.obs, *field.shape)).astype(field.dtype)
                for name, field in policy.contract.observation.items()
            }
            for _ in range(OBSERVATIONS)
        )

    @property
    def horizons(self) -> Horizons:
        """Steps seen, predicted and executed."""
        return self.policy.horizons

    def chunk(self, row: Row) -> Contestant:
        """A tick as the row says.

        Raises:
            ImportError, ValueError, RuntimeError, OSError: this machine or network cannot do it so.
        """
        actions = self.horizons.action if row.action is None else row.action
        sampler = self._make_sampler(row, actions)
        agent = Agent(self.policy, sampler, device=self.device, rows=1)
        error = self._equip(agent, row.engine, row.weights)
        streams = agent.start([0])

        def tick() -> None:
            agent.chunk(streams, next(self._observations))
            agent.shift(streams, actions)

        return Contestant(row.name, "chunk", tick, agent.nfe, actions, row.weights, error=error)

    def _equip(self, agent: Agent, engine: str, weights: str) -> float | None:
        """Let an agent compute its ticks by an engine; the error of that, see `Contestant`."""
        if engine == "eager":
            if weights != "fp32":
                raise ValueError(f"engine=eager has weights=fp32, not {weights}: give engine=fused")
            return None
        # Programs are made for the levels that the first ones have, at a steady pace; see there.
        examples = examples_of(agent.tick, rows=agent.rows, n=EXAMPLES)
        form = TickForm(agent.tick)
        subject = Subject(
            agent.tick,
            form,
            [form.inputs(example) for example in examples],
            weights=weights,
            lowered=self._lowering(weights),
        )
        call = subject.make(engine, cache_folder())
        agent.use(form.back(call, subject.examples[0]))
        return _error(subject, call, action_range(self.policy, examples))

    def _lowering(self, weights: str) -> Callable[[Tick], Tick] | None:
        """What lowers a tick's network; None where it has no such form."""
        if not hasattr(self.policy.net, "lowered"):
            return None
        return lambda tick: Tick(self._policy(weights), tick.sampler)

    def _policy(self, weights: str) -> DiffusionPolicy:
        """The policy with its network lowered, once for all that use it."""
        if weights not in self._lowered:
            self._lowered[weights] = lowered(self.policy, weights)
        return self._lowered[weights]

    def call(self, how: str) -> Contestant | None:
        """One call of the network alone, at a level known beforehand; None: has no such form.

        Args:
            how: engine and weights.
        """
        engine, weights = how.split()
        if engine not in ("eager", "fused"):
            return None  # What compiles, compiles whole ticks.
        policy = self._policy(weights) if engine == "fused" else self.policy
        x, sigma, conditions = self._inputs()
        denoiser = policy.at(sigma[0])

        @torch.inference_mode()
        def one() -> Tensor:
            return floor.synchronised(denoiser(x, sigma, next(conditions)))

        return Contestant(f"one call, {how}", "call", one, 1, None, weights)

    def peers(self, counts: tuple[int, ...]) -> list[Contestant]:
        """The peer's chunks of so many calls each, and one call of its network.

        Raises:
            ImportError: `diffusers` is not installed.
            ValueError: the network has no peer.
        """
        peer = Peer(self.policy, device=self.device)
        x, _, conditions = self._inputs()
        k = torch.full((1,), INDICES // 2, device=self.device)

        @torch.inference_mode()
        def one() -> Tensor:
            return floor.synchronised(peer.net(x, k, next(conditions)))

        def chunk(calls: int) -> Call:
            return lambda: peer.chunk(next(self._observations), calls=calls)

        actions = self.horizons.action
        return [
            *(
                Contestant(f"peer, {n} calls", "chunk", chunk(n), n, actions, "fp32", is_peer=True)
                for n in counts
            ),
            Contestant("one call, peer", "call", one, 1, None, "fp32", is_peer=True),
        ]

    def work(self) -> tuple[int, int]:
        """Weights read and multiply-adds of one call of the network at a level known beforehand."""
        x, sigma, conditions = self._inputs()
        denoiser, cond = self.policy.at(sigma[0]), next(conditions)

        def one() -> Tensor:
            return denoiser(x, sigma, cond)

        with torch.no_grad():
            return floor.weights_used(self.policy.net, one), floor.multiply_adds(one)

    def _inputs(self) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """A noisy chunk, its levels, and encoded observations that follow each other."""
        conditions = []
        for _ in range(OBSERVATIONS):
            observation = next(self._observations)
            rows = {k: torch.from_numpy(v).to(self.device) for k, v in observation.items()}
            with torch.no_grad():
                conditions.append(self.policy.encode(rows))
        size = self.policy.contract.action.size
        x = torch.randn(1, self.horizons.pred, size, device=self.device)
        sigma = torch.full((1, self.horizons.pred), SIGMA, device=self.device)
        return x, sigma, itertools.cycle(conditions)


@torch.no_grad()
def _error(subject: Subject, call: Compute, span: Tensor) -> float:
    """How far an engine's actions are off; UnavailableError where that is no rounding."""
    plain = subject.plain()
    return compared(
        call,
        subject.examples,
        [plain(*given) for given in subject.examples],
        error=error_in(span),
        tolerance=TOLERANCE,
    )


@torch.no_grad()
def fill_zeros(net: nn.Module, *, seed: int) -> None:
    """Draw weights that are all zero, as in layers that start so: a trained network has none."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.any():
            drawn = SPREAD * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn.to(parameter))
