"""Examples of a tick that could happen, and how far another computation of it is off.

Shape legend: `B` rows (of streams), `To Tp` observed and predicted steps, `Da` action size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy.model import DiffusionPolicy
from policy.tick import Tick, noise_of

# A level may differ by rounding, and not by more.
SIGMA_ROUNDING = 1e-3


@dataclass(frozen=True)
class Example:
    """Inputs of one tick; for the shapes see `Tick.forward`.

    Args:
        observation: field name -> what was seen, on the host, each field in its own dtype.
        x: of the carry.
        sigma: of the carry.
        noise: of the sampler.
    """

    observation: dict[str, Tensor]
    x: Tensor
    sigma: Tensor
    noise: list[Tensor]


@dataclass(frozen=True)
class StartExample:
    """Inputs of what begins streams; for the shapes see `Tick.starting`.

    Args:
        observation: as of `Example`.
        noise: of the sampler.
    """

    observation: dict[str, Tensor]
    noise: list[Tensor]


def fields_of(policy: DiffusionPolicy) -> list[str]:
    """Names of the fields that a tick looks at."""
    told = [policy.contract.scaled_per] if policy.contract.scaled_per else []
    return list(dict.fromkeys([*policy.contract.observation, *told]))


@torch.no_grad()
def examples_of(tick: Tick, *, rows: int, n: int, seed: int = 0) -> list[Example]:
    """Ticks one after the other, from the first of new streams on.

    Between them as many actions are executed as shall be, or one more or less; before the last
    one another number, so that its levels are none of those before.

    Args:
        tick: makes the carries.
        rows: B.
        n: ticks.
        seed: of observations and noise.

    Raises:
        ValueError: the sampler's calls are not always the same.
    """
    draws = tick.draws(rows)
    device = next(tick.policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    horizon, longest = tick.sampler.space.horizons.action, tick.sampler.space.horizons.future
    usual = [min(k, longest) for k in (horizon, horizon, horizon + 1, max(1, horizon - 1))]
    odd = next(k for k in (*range(1, longest + 1), 0) if k not in usual)
    executed = [0, *(usual[i % len(usual)] for i in range(n - 2)), odd][:n]
    made, carry = [], None
    for n_executed in executed:
        observation = _observation(tick.policy, rows, rng)
        there = {name: values.to(device) for name, values in observation.items()}
        if carry is None:
            carry, _ = tick.start(there, generator)
        else:
            carry = tick.sampler.shift(carry, n_executed)
        noise = noise_of(draws.noise, generator)
        made.append(Example(observation, carry.x, carry.sigma, noise))
        if len(made) < n:
            _, x, sigma, _ = tick(there, carry.x, carry.sigma, noise)
            carry = carry.replace(x=x, sigma=sigma)
    return made


def starts_of(tick: Tick, *, rows: int, n: int, seed: int = 0) -> list[StartExample]:
    """First ticks of new streams; for the arguments see `examples_of`."""
    noise = tick.start_draws(rows).noise
    generator = torch.Generator(next(tick.policy.parameters()).device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    return [
        StartExample(_observation(tick.policy, rows, rng), noise_of(noise, generator))
        for _ in range(n)
    ]


def observation_of(
    policy: DiffusionPolicy, rng: np.random.Generator, tasks: Sequence[int]
) -> dict[str, Tensor]:
    """A random observation within the range of the statistics, [B, To, ...] on the host.

    Args:
        policy: with its statistics.
        rng: of the numbers.
        tasks: that each of the B rows is told, where tasks have scales of their own; past the last
            one, from the first.
    """
    normalizer, obs_horizon = policy.normalizer, policy.horizons.obs
    device = next(policy.parameters()).device
    teller, seen = policy.contract.scaled_per, {}
    fields = {name: policy.contract.fields[name] for name in fields_of(policy)}
    told = np.array(tasks) % fields[teller].size if teller else None
    sets = None if told is None else torch.from_numpy(told).to(device)
    for name, field in fields.items():
        shape = (len(tasks), obs_horizon, *field.shape)
        if name == teller:
            one_hot = np.eye(field.size)[told].reshape(len(tasks), 1, *field.shape)
            values = np.broadcast_to(one_hot, shape)
        elif field.is_image:
            values = rng.integers(256, size=shape)
        else:
            features = rng.uniform(-1, 1, size=(*shape[:2], normalizer.size(name)))
            scaled = torch.from_numpy(features).float().to(device)
            values = normalizer.unnormalize(name, scaled, sets).cpu().numpy()
        seen[name] = torch.from_numpy(np.array(values, dtype=field.dtype, order="C"))
    return seen


def _observation(policy: DiffusionPolicy, rows: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """The same, each row of a task of its own."""
    return observation_of(policy, rng, rng.integers(1 << 16, size=rows).tolist())


@torch.no_grad()
def action_range(policy: DiffusionPolicy, examples: Sequence[Example]) -> Tensor:
    """How far apart -1 and 1 of the network's scale are, [*action], the least of the examples.

    Args:
        policy: has the scale.
        examples: at least one; where tasks have scales of their own, their observations say which.
    """
    device = next(policy.parameters()).device
    spans = []
    for example in examples:
        seen: Mapping[str, Tensor] = {k: v.to(device) for k, v in example.observation.items()}
        one = torch.ones_like(example.x)
        span = policy.actions(one, seen) - policy.actions(-one, seen)
        spans.append(span.abs().amin(dim=(0, 1)))
    return torch.stack(spans).amin(dim=0).cpu()


def error_in(span: Tensor) -> Callable[[Sequence[Tensor], Sequence[Tensor]], float]:
    """The largest error of a tick's results, as a share of what actions range over.

    Results are actions, fault, x and sigma; for the last three see `error_of_start`.

    Args:
        span: of each element of an action, > 0.
    """

    def error(plain: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        in_actions = ((other[0].cpu() - plain[0].cpu()).abs() / span).max()
        in_carry = torch.tensor(error_of_start(plain[1:], other[1:]))
        # Not `max`, which hides what is no number.
        return float(torch.stack([in_actions, in_carry]).amax())

    return error


def error_of_start(plain: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest error of a carry, as a share of what actions range over.

    Results are fault, x and sigma. An error of x counts as one of the actions that it becomes, less
    the noise on it; other levels, or another fault, are an infinite error.
    """
    fault, x, sigma = (result.cpu() for result in plain)
    fault_other, x_other, sigma_other = (result.cpu() for result in other)
    is_close = (sigma_other - sigma).abs() <= SIGMA_ROUNDING * sigma  # not so, if no number
    if not torch.where(sigma.isfinite(), is_close, sigma_other == sigma).all():
        return float("inf")
    if not torch.equal(fault > 0, fault_other > 0):
        return float("inf")
    in_chunk = (x_other - x).abs() / (2 * (1 + sigma[..., None]))
    return float(torch.where(sigma.isfinite()[..., None], in_chunk, 0.0).max())
