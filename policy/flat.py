"""A tick, and what begins a stream, as functions of tensors alone: what is recorded and compiled.

Their inputs are lists of tensors, the observations of a policy first, in the order of its fields;
their first results are those that are waited for.

Shape legend: `B` rows (of streams).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from policy.control.engine import Call
from policy.parity import Example, StartExample, fields_of
from policy.tick import StartCall, Started, Tick, TickCall, Ticked


class Form(Protocol):
    """How a function of a tick becomes one of tensors alone."""

    n_waited: int  # results

    @property
    def sigma_at(self) -> int | None:
        """Place of the carry's levels among the inputs, if they are there."""
        ...

    def of(self, tick: Tick) -> Call:
        """The flat function."""
        ...


class TickForm:
    """Of a tick: observations, x, sigma, noise to actions, fault, x, sigma.

    Args:
        tick: of the policy; others may have another network.
    """

    n_waited = 2

    def __init__(self, tick: Tick):
        self._tick, self.names = tick, fields_of(tick.policy)

    @property
    def sigma_at(self) -> int:
        """Place of the carry's levels among the inputs."""
        return len(self.names) + 1

    def inputs(self, example: Example) -> list[Tensor]:
        """An example as inputs, observations on the host."""
        seen = [example.observation[name] for name in self.names]
        return [*seen, example.x, example.sigma, *example.noise]

    def of(self, tick: Tick) -> Call:
        """The flat function."""
        n = len(self.names)

        def call(*inputs: Tensor) -> list[Tensor]:
            seen = dict(zip(self.names, inputs[:n], strict=True))
            actions, x, sigma, fault = tick(seen, inputs[n], inputs[n + 1], list(inputs[n + 2 :]))
            return [actions, fault, x, sigma]

        return call

    def back(self, call: Call, example: Sequence[Tensor]) -> TickCall:
        """A flat call in the form of `Tick.forward`; what it was not made for goes by the tick.

        Args:
            call: made for inputs such as the example.
            example: inputs.
        """
        observed = _observed(self.names, example)

        def ticked(
            observation: dict[str, Tensor], x: Tensor, sigma: Tensor, noise: list[Tensor]
        ) -> Ticked:
            seen = observed(observation)
            if seen is None:
                return self._tick(_moved(observation, x.device), x, sigma, noise)
            actions, fault, x, sigma = call(*_in_order([*seen, x, sigma, *noise]))
            return actions, x, sigma, fault

        return ticked


class StartForm:
    """Of what begins streams: observations, noise to fault, x, sigma.

    Args:
        tick: of the policy; others may have another network.
    """

    n_waited, sigma_at = 1, None

    def __init__(self, tick: Tick):
        self._tick, self.names = tick, fields_of(tick.policy)

    def inputs(self, example: StartExample) -> list[Tensor]:
        """An example as inputs, observations on the host."""
        return [*(example.observation[name] for name in self.names), *example.noise]

    def of(self, tick: Tick) -> Call:
        """The flat function."""
        n = len(self.names)

        def call(*inputs: Tensor) -> list[Tensor]:
            seen = dict(zip(self.names, inputs[:n], strict=True))
            x, sigma, fault = tick.starting(seen, list(inputs[n:]))
            return [fault, x, sigma]

        return call

    def back(self, call: Call, example: Sequence[Tensor]) -> StartCall:
        """A flat call in the form of `Tick.starting`; for the arguments see `TickForm.back`."""
        observed = _observed(self.names, example)

        def started(observation: dict[str, Tensor], noise: list[Tensor]) -> Started:
            seen = observed(observation)
            if seen is None:
                device = next(self._tick.policy.parameters()).device
                return self._tick.starting(_moved(observation, device), noise)
            fault, x, sigma = call(*_in_order([*seen, *noise]))
            return x, sigma, fault

        return started


def _observed(
    names: Sequence[str], example: Sequence[Tensor]
) -> Callable[[dict[str, Tensor]], list[Tensor] | None]:
    """What gives observations as a call takes them; None for those that it was not made for."""
    kinds = [(name, given.shape, given.dtype) for name, given in zip(names, example, strict=False)]

    def observed(observation: dict[str, Tensor]) -> list[Tensor] | None:
        seen = []
        for name, shape, dtype in kinds:
            given = observation.get(name)
            if given is None or given.shape != shape or not _fits(given.dtype, dtype):
                return None
            seen.append(given if given.dtype == dtype else given.to(dtype))
        return seen

    return observed


def _fits(given: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether numbers of one type mean the same in another: all fit, or both are rounded."""
    are_floats = given.is_floating_point and dtype.is_floating_point
    return given == dtype or are_floats or torch.promote_types(given, dtype) == dtype


def _moved(observation: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in observation.items()}


def _in_order(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs whose elements lie in order: compiled code takes the examples' for granted."""
    return [given.contiguous() for given in inputs]
