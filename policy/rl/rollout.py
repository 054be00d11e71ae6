"""Chunks played in many environments, with the denoising chains that drew them.

Time-major and preallocated; an observation is encoded once per chunk.

Shape legend: `T` chunks in a row, `N` environments of this rank, `K` decisions of a chain, `Tp Da`
predicted steps and action size, `C` condition size, `F` features of the critic.
"""

import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from policy.diffusion.noise import seeded
from policy.rl.accounting import Played
from policy.rl.behaviour import Behaviour, encode
from policy.rl.slots import Outcome, Slots

CHAINS = 101  # a stream of random numbers


@dataclass(frozen=True)
class Rollout:
    """What was played.

    Args:
        cond: [T, N, C] encoded observations.
        features: [T, N, F] of the observation before each chunk.
        next_features: [T, N, F] of the one after it, before any new episode.
        x: [T, N, K + 1, Tp, Da] chunk before each decision, and the last one's result.
        log_prob: [T, N, K] of each decision.
        x_final: [T, N, Tp, Da] what came of the whole chain.
        executed: [T, N, Tp] bool, actions that were executed.
        rewards: [T, N].
        terminated: [T, N] bool.
        truncated: [T, N] bool.
        is_valid: [T, N] bool, whether there was such a chunk, and what came of it are numbers.
        decided: [K] which steps of the chain the decisions are.
    """

    cond: Tensor
    features: Tensor
    next_features: Tensor
    x: Tensor
    log_prob: Tensor
    x_final: Tensor
    executed: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    is_valid: Tensor
    decided: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """T, N."""
        return self.cond.shape[0], self.cond.shape[1]

    @property
    def is_last(self) -> Tensor:
        """Whether an episode ended with a chunk, [T, N] bool."""
        return self.terminated | self.truncated

    def put(self, t: int, **columns: Tensor) -> None:
        """Write the t-th chunk of all environments; each column [N, ...]."""
        for name, column in columns.items():
            getattr(self, name)[t] = column


@dataclass
class Tally:
    """What a rollout cost and met.

    Args:
        env_steps: executed steps.
        simulating: time in the environments [s].
        denoising: time in encoder and network [s].
        n_quarantined: chunks and starts that held something that is no number.
        n_cut: episodes that the rollout's end cut, where it is to hold whole ones.
        episodes: that ended, in the order in which they began (see `policy.rl.accounting`).
    """

    env_steps: int
    simulating: float
    denoising: float
    n_quarantined: int
    n_cut: int
    episodes: list[Played]


def collect(
    slots: Slots, behaviour: Behaviour, *, n_chunks: int, iteration: int
) -> tuple[Rollout, Tally]:
    """Play `n_chunks` chunks in each slot, episode after episode.

    Episodic slots play one episode each, of at most so many chunks.

    Args:
        slots: where it is played.
        behaviour: how chunks are drawn.
        n_chunks: T.
        iteration: of the run; with its seed it gives the noise of each slot.

    Raises:
        FloatingPointError: the policy's actions are no numbers.
    """
    begin, env_steps = time.perf_counter(), 0
    simulating, quarantined = slots.seconds, slots.n_quarantined
    generators = [
        seeded(slots.seed, purpose=CHAINS, count=(iteration << 20) | slot, device=behaviour.device)
        for slot in range(slots.first, slots.first + slots.n)
    ]
    if slots.is_episodic:
        slots.restart(iteration)
    slots.begin()
    cond, features = encode(behaviour.policy, slots.observation)
    rollout: Rollout | None = None
    for t in range(n_chunks):
        chain = behaviour.draw(cond, generators)
        outcome = slots.step(behaviour.actions(chain, slots.observation))
        env_steps += int(outcome.n_executed.sum())
        next_cond, next_features = encode(behaviour.policy, slots.observation)
        executed = behaviour.executed(outcome.n_executed)
        columns = {
            "cond": cond,
            "features": features,
            "next_features": next_features,
            "executed": executed,
            **behaviour.decisions(chain, executed),
            **_columns(outcome, behaviour.device),
        }
        if rollout is None:
            rollout = _allocate(columns, n_chunks, behaviour.steps)
        rollout.put(t, **columns)
        cond, features = next_cond, next_features
        if slots.is_episodic and not slots.is_playing.any():
            break
        if t + 1 < n_chunks and not slots.is_episodic and slots.begin():
            cond, features = encode(behaviour.policy, slots.observation)
    assert rollout is not None
    n_cut = slots.cut() if slots.is_episodic else 0
    simulating = slots.seconds - simulating
    return rollout, Tally(
        env_steps=env_steps,
        simulating=simulating,
        denoising=time.perf_counter() - begin - simulating,
        n_quarantined=slots.n_quarantined - quarantined,
        n_cut=n_cut,
        episodes=slots.accounting.report(),
    )


def _columns(outcome: Outcome, device: torch.device) -> dict[str, Tensor]:
    """What became of a chunk, as columns [N] of a `Rollout`."""
    return {
        "rewards": torch.from_numpy(outcome.rewards).float().to(device),
        "terminated": torch.from_numpy(outcome.terminated).to(device),
        "truncated": torch.from_numpy(outcome.truncated).to(device),
        "is_valid": torch.from_numpy(outcome.is_valid).to(device),
    }


def _allocate(columns: dict[str, Tensor], n_chunks: int, decided: Tensor) -> Rollout:
    """Zeros for T chunks like the first one's columns [N, ...]."""
    assert set(columns) == {field.name for field in fields(Rollout)} - {"decided"}
    zeros = {name: like.new_zeros((n_chunks, *like.shape)) for name, like in columns.items()}
    return Rollout(**zeros, decided=decided)
