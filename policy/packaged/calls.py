"""The calls of a policy as modules of a list of tensors, ready to be traced.

Shape legend: `To Tp` observed and predicted steps, `Da` action size, `C` condition size; one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from policy.agent import Agent
from policy.diffusion.noise import Tape
from policy.model import DiffusionPolicy
from policy.packaged.manifest import (
    NOISE,
    OBSERVATION,
    PackageError,
    TensorSpec,
    start_name,
    tick_name,
)
from policy.sampling.carry import UNKNOWN, moved
from policy.types import Carry


@dataclass(frozen=True)
class Call:
    """A function of tensors that becomes a graph.

    Args:
        name: of the graph.
        module: takes and gives tensors in order.
        example: inputs that it may be called with.
        inputs: what they are.
        outputs: what comes back.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class OfTensors(nn.Module):
    """A function as a module, which is how it is traced; `parts` are the modules it uses."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *parts: nn.Module):
        super().__init__()
        self._function, self._parts = function, nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function gives."""
        return self._function(*tensors)


def tick_calls(agents: Sequence[Agent]) -> list[Call]:
    """The ticks of one policy, and the starts of samplers that begin a stream by a chunk.

    Args:
        agents: with one row; `agents[d]` is for d decided actions.

    Raises:
        PackageError: a sampler's calls differ from each other.
    """
    calls = []
    for delay, agent in enumerate(agents):
        assert (agent.rows, agent.inference_delay) == (1, delay)
        calls.append(_tick_call(agent, tick_name(delay)))
        if not _starts_with_nothing(agent):
            calls.append(_start_call(agent, start_name(delay)))
    return calls


def part_calls(policy: DiffusionPolicy) -> list[Call]:
    """Encoder, one denoiser call, and un-normalisation, for samplers of somebody else.

    Args:
        policy: frozen, on its device.
    """
    contract, horizons = policy.contract, policy.horizons
    names, example = _observed(policy)

    def encode(*observed: Tensor) -> tuple[Tensor]:
        return (policy.encode(dict(zip(names, observed, strict=True))),)

    def denoise(x: Tensor, sigma: Tensor, cond: Tensor) -> tuple[Tensor]:
        return (policy(x, sigma, cond),)

    teller = [name for name in names if name == contract.scaled_per]

    def decode(x0_hat: Tensor, *told: Tensor) -> tuple[Tensor]:
        seen = dict(zip(teller, told, strict=True)) or None
        return (policy.actions(x0_hat, seen)[:, horizons.past :],)

    fields = [OBSERVATION + name for name in names]
    told = [OBSERVATION + name for name in teller]
    cond = encode(*example)[0]
    x, sigma = _carry(policy)
    return [
        _call("encoder", OfTensors(encode, policy), example, fields, ["cond"]),
        _call(
            "denoiser",
            OfTensors(denoise, policy),
            (x, torch.ones_like(sigma), cond),
            ["x", "sigma", "cond"],
            ["x0_hat"],
        ),
        _call(
            "decoder",
            OfTensors(decode, policy),
            (x, *(example[names.index(name)] for name in teller)),
            ["x0_hat", *told],
            ["actions"],
        ),
    ]


def zeros_of(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Zeros, field name -> [1, To, ...]; a field that tells a task names the first."""
    device, steps = next(policy.parameters()).device, policy.horizons.obs
    seen = {}
    for name, field in policy.contract.observation.items():
        values = torch.from_numpy(np.zeros((1, steps, *field.shape), field.dtype))
        if name == policy.contract.scaled_per:
            values[..., 0] = 1
        seen[name] = values.to(device)
    return seen


def shift_of(agent: Agent) -> str:
    """How a sampler's carry moves on, "keep" or "move".

    Raises:
        PackageError: in a way of its own.
    """
    shape = (1, *agent.sampler.space.shape)
    x = torch.arange(float(shape[1] * shape[2]), device=agent.device).reshape(shape)
    carry, steps = Carry(x, x[..., 0] + 1), (0, 1, agent.horizons.action)
    shifted = [agent.sampler.shift(carry, n) for n in steps]
    if all(map(_are_equal, shifted, [carry] * len(steps))):
        return "keep"
    if all(map(_are_equal, shifted, [moved(carry, n) for n in steps])):
        return "move"
    raise PackageError(
        f"the sampler {type(agent.sampler).__name__} moves its carry in a way of its own, which a "
        f"package cannot: use another sampler"
    )


def _tick_call(agent: Agent, name: str) -> Call:
    tick, (names, example) = agent.tick, _observed(agent.policy)
    try:
        shapes = tick.draws(1).noise
    except ValueError as error:
        raise PackageError(f"the sampler cannot be exported: {error}") from error
    n = len(names)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        seen = dict(zip(names, given[:n], strict=True))
        return tick(seen, given[n], given[n + 1], list(given[n + 2 :]))

    noise = [torch.zeros(shape, device=agent.device) for shape in shapes]
    return _call(
        name,
        OfTensors(call, tick),
        (*example, *_carry(agent.policy), *noise),
        [*(OBSERVATION + field for field in names), "x", "sigma", *_numbered(noise)],
        ["actions", "x_next", "sigma_next", "fault"],
    )


def _start_call(agent: Agent, name: str) -> Call:
    tick, (names, example) = agent.tick, _observed(agent.policy)
    n = len(names)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        return tick.starting(dict(zip(names, given[:n], strict=True)), list(given[n:]))

    noise = [torch.zeros(shape, device=agent.device) for shape in tick.start_draws(1).noise]
    return _call(
        name,
        OfTensors(call, tick),
        (*example, *noise),
        [*(OBSERVATION + field for field in names), *_numbered(noise)],
        ["x", "sigma", "fault"],
    )


def _call(
    name: str,
    module: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Call:
    """A call whose outputs are described by what the example gives."""
    module = module.eval()
    with torch.no_grad():
        made = module(*example)
    return Call(name, module, tuple(example), _specs(inputs, example), _specs(outputs, made))


def _specs(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    )


def _numbered(noise: Sequence[Tensor]) -> list[str]:
    return [f"{NOISE}{i}" for i in range(len(noise))]


def _observed(policy: DiffusionPolicy) -> tuple[list[str], tuple[Tensor, ...]]:
    """Names of the fields, and an example of each [1, To, ...]."""
    seen = zeros_of(policy)
    return list(seen), tuple(seen.values())


def _carry(policy: DiffusionPolicy) -> tuple[Tensor, Tensor]:
    """The carry x [1, Tp, Da] and sigma [1, Tp] of a stream of which nothing is known."""
    shape = (1, policy.horizons.pred, policy.contract.action.size)
    x = torch.zeros(shape, device=next(policy.parameters()).device)
    return x, x.new_full(shape[:2], UNKNOWN)


def _starts_with_nothing(agent: Agent) -> bool:
    """Whether a stream begins with a carry that says nothing, which needs no graph."""
    if agent.sampler.start_nfe:
        return False
    tape = Tape(device=agent.device)
    with torch.no_grad():
        carry, _ = agent.tick.start(zeros_of(agent.policy), tape)
    is_unknown = bool((carry.sigma == UNKNOWN).all()) and not bool(carry.x.any())
    return is_unknown and not tape.shapes


def _are_equal(one: Carry, other: Carry) -> bool:
    return torch.equal(one.x, other.x) and torch.equal(one.sigma, other.sigma)
