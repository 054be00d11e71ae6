"""Chunks played in many environments, with the denoising chains that drew them.

Time-major and preallocated; an observation is encoded once per chunk.

Shape legend: `T` chunks in a row, `N` environments of this rank, `K` decisions of a chain, `Tp Ta
Da` predicted steps, executed steps and action size, `C` condition size, `F` features of the critic.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from data.types import Horizons
from policy.diffusion.noise import seeded
from policy.model import DiffusionPolicy
from policy.rl.accounting import Played
from policy.rl.chain import Kernel
from policy.rl.slots import Slots
from policy.types import Denoiser

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
        episodes: that ended, in the order in which they began (see `policy.rl.accounting`).
    """

    env_steps: int
    simulating: float
    denoising: float
    n_quarantined: int
    episodes: list[Played]


def collect(
    slots: Slots,
    policy: DiffusionPolicy,
    kernel: Kernel,
    denoisers: Sequence[Denoiser],
    decided: range,
    *,
    horizons: Horizons,
    n_chunks: int,
    iteration: int,
) -> tuple[Rollout, Tally]:
    """Play `n_chunks` chunks in each slot, episode after episode.

    With groups each slot plays one episode, of at most so many chunks.

    Args:
        slots: where it is played.
        policy: encodes observations and scales actions; its network is not called.
        kernel: of the chains.
        denoisers: of each step of the chain.
        decided: which steps are kept, as decisions.
        horizons: predicted and executed steps.
        n_chunks: T.
        iteration: of the run; with its seed it gives the noise of each slot.

    Raises:
        FloatingPointError: the policy's actions are no numbers.
    """
    device = next(policy.parameters()).device
    span = slice(horizons.past, horizons.past + horizons.action)
    index = torch.arange(horizons.pred, device=device)
    planned = (index >= span.start) & (index < span.stop)
    steps = torch.tensor(list(decided), device=device)
    shape = horizons.pred, policy.contract.action.size
    generators = [
        seeded(slots.seed, purpose=CHAINS, count=(iteration << 20) | slot, device=device)
        for slot in range(slots.first, slots.first + slots.n)
    ]
    is_grouped = slots.group_size > 1
    if is_grouped:
        slots.restart(iteration)
    rollout: Rollout | None = None
    env_steps, simulating, quarantined = 0, 0.0, slots.n_quarantined
    begin = time.perf_counter()
    cond = features = torch.empty(0)
    for t in range(n_chunks):
        before = time.perf_counter()
        has_begun = slots.begin() if t == 0 or not is_grouped else False
        simulating += time.perf_counter() - before
        if not slots.is_playing.any():
            break
        if has_begun or t == 0:
            cond, features = encode(policy, slots.observation)
        chain = kernel.draw(denoisers, cond, shape=shape, generator=generators)
        actions = policy.actions(chain.x[:, -1])[:, span].detach().cpu().numpy()
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy's actions are no numbers")
        before = time.perf_counter()
        outcome = slots.step(actions)
        simulating += time.perf_counter() - before
        env_steps += int(outcome.n_executed.sum())
        n_executed = torch.from_numpy(outcome.n_executed).to(device)
        executed = planned & (index < span.start + n_executed[:, None])
        counted = kernel.counted(executed[:, None], steps)
        next_cond, next_features = encode(policy, slots.observation)
        columns = {
            "cond": cond,
            "features": features,
            "next_features": next_features,
            "x": chain.x[:, decided.start : decided.stop + 1],
            "log_prob": (chain.log_prob[:, decided.start : decided.stop] * counted).sum(dim=-1),
            "executed": executed,
            "rewards": torch.from_numpy(outcome.rewards).float().to(device),
            "terminated": torch.from_numpy(outcome.terminated).to(device),
            "truncated": torch.from_numpy(outcome.truncated).to(device),
            "is_valid": torch.from_numpy(outcome.is_valid).to(device),
        }
        if rollout is None:
            rollout = _allocate(columns, n_chunks, steps)
        rollout.put(t, **columns)
        cond, features = next_cond, next_features
    assert rollout is not None
    return rollout, Tally(
        env_steps=env_steps,
        simulating=simulating,
        denoising=time.perf_counter() - begin - simulating,
        n_quarantined=slots.n_quarantined - quarantined,
        episodes=slots.accounting.report(),
    )


@torch.no_grad()
def encode(policy: DiffusionPolicy, observation: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Condition [N, C] of observations, and what a critic sees of them [N, F].

    That is all that is low-dimensional, scaled; and where there are pictures the condition, too.
    """
    device = next(policy.parameters()).device
    known = policy.contract.observation
    rows = {name: torch.from_numpy(observation[name]).to(device) for name in known}
    features = policy.features(rows)
    cond = policy.encoder(features)
    seen = [values.flatten(1) for name, values in features.items() if not known[name].is_image]
    if any(field.is_image for field in known.values()):
        seen.append(cond)
    return cond, torch.cat(seen, dim=-1)


def _allocate(columns: dict[str, Tensor], n_chunks: int, decided: Tensor) -> Rollout:
    """Zeros for T chunks like the first one's columns [N, ...]."""
    assert set(columns) == {field.name for field in fields(Rollout)} - {"decided"}
    zeros = {name: like.new_zeros((n_chunks, *like.shape)) for name, like in columns.items()}
    return Rollout(**zeros, decided=decided)
