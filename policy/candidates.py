"""The ways to compute a tick that `cadence serve`, `run` and `evaluate` can choose from.

* eager: as it is written, operation by operation.
* recorded: the network as it is written, without Python's part between its operations
  (`policy.control.program`).
* fused: the same of the network's form that is fast for few rows, where it has one (`lowered`).
* compile: by torch.compile; on CUDA captured besides.
* aot: by AOTInductor, with the weights frozen into a package that later starts load.
* cuda_graph: as recorded, captured as one CUDA graph.

What begins a stream is computed in the same ways.

Shape legend: `B` rows (of streams).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from policy.compilers import compiled, digest, packaged
from policy.control.cuda_graph import Captured, Cuda, GraphDevice
from policy.control.engine import Call, UnavailableError
from policy.control.program import Narrowed, Program, program_of, with_weights
from policy.flat import Form
from policy.tick import Tick, with_net

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Subject:
    """One function of a tick, as a function of tensors, and the programs that it becomes.

    Args:
        tick: as it is written.
        form: which function.
        examples: inputs of it, at least one.
        weights: of the network's matrices: "fp32", "bf16", "fp16" or "int8".
        lowered: tick -> the same with its network lowered; None where the network has no such form.
        narrowed: weights of 16 bits, which all ticks of a network share; None: only this one does.
    """

    def __init__(
        self,
        tick: Tick,
        form: Form,
        examples: Sequence[Sequence[Tensor]],
        *,
        weights: str,
        lowered: Callable[[Tick], Tick] | None,
        narrowed: Narrowed | None = None,
    ):
        self.tick, self.form, self.examples, self.weights = tick, form, examples, weights
        self._lowered = lowered
        self._narrowed: Narrowed = {} if narrowed is None else narrowed
        self.device = next(tick.policy.parameters()).device

    def make(self, name: str, folder: Path) -> Call:
        """A candidate.

        Args:
            name: of it.
            folder: of packages.

        Raises:
            UnavailableError: it cannot be made.
        """
        makers: Mapping[str, Callable[[], Call]] = {
            "recorded": self.recorded,
            "fused": self.fused,
            "compile": self.compiled,
            "aot": partial(self.aot, folder),
            "cuda_graph": self.cuda_graph,
        }
        return makers[name]()

    def digest(self, name: str) -> str:
        """Equal for functions that a candidate computes in the same way; for errors see `make`."""
        program = self.fused_program if name == "fused" else self.program
        return digest(program, self.examples[0])

    def plain(self) -> Call:
        """The function as it is written, of observations on the host."""
        return self._from_host(self.form.of(self.tick))

    @cached_property
    def plain_program(self) -> Program:
        """The network as it is written.

        Raises:
            UnavailableError: the tick cannot be recorded.
        """
        return self._record(self.form.of(self.tick))

    @cached_property
    def program(self) -> Program:
        """The network as it is written, in the dtype of the weights.

        Raises:
            UnavailableError: the tick cannot be recorded, or there is no such dtype.
        """
        return self._narrow(self.plain_program)

    def _narrow(self, program: Program) -> Program:
        """A program with its matrices in the dtype of the weights."""
        if self.weights == "fp32":
            return program
        if self.weights not in DTYPES:
            raise UnavailableError(
                f"engine.weights={self.weights} needs a network with a form of its own for it (a "
                f"U-Net on the CPU, by engine=fused), not {type(self.tick.policy.net).__name__} as "
                f"it is written, on {self.device}: give engine.weights=bf16 or fp32"
            )
        return with_weights(program, DTYPES[self.weights], self._narrowed)

    @cached_property
    def _lowered_tick(self) -> Tick | None:
        if self._lowered is None or self.device.type != "cpu":
            return None
        try:
            return self._lowered(self.tick)
        except (RuntimeError, ValueError) as error:  # No compiler, or no such weights.
            raise UnavailableError(str(error)) from error

    @cached_property
    def fused_program(self) -> Program:
        """The lowered network where there is one, else `program`; for errors see there."""
        tick = self._lowered_tick
        return self.program if tick is None else self._record(self.form.of(tick))

    def _record(self, call: Call) -> Program:
        try:
            program = program_of(call, self._on_device(self.examples[0]))
        except Exception as error:  # RecordError, or whatever a network does when it is watched.
            reason = str(error) or type(error).__name__
            raise UnavailableError(
                f"this sampler and network cannot be recorded ({reason})"
            ) from error
        # Single numbers may have been on the host; a graph could not fetch them there.
        return program.to(self.device)

    def recorded(self) -> Call:
        """The candidate "recorded"; for errors see `program`."""
        return self._quick(self.tick, self.program, self._narrow)

    def fused(self) -> Call:
        """The candidate "fused"; for errors see `program`."""
        tick = self._lowered_tick
        if tick is None:
            return self.recorded()
        return self._quick(tick, self.fused_program, lambda program: program)

    def _quick(self, tick: Tick, program: Program, narrow: Callable[[Program], Program]) -> Call:
        """A tick's program as a function, and one for each of the levels that it usually meets."""
        # Operators of the network -> functions that do the same with less ado.
        plain, at = getattr(tick.policy.net, "operators", {}), self.form.sigma_at
        call = program.quick(plain)
        if self.device.type != "cpu" or at is None or not program.uses(at):
            return self._from_host(call)
        # What depends on the levels alone is most of what is left beside the network, and they are
        # the same from tick to tick while as many actions are executed.
        known = {}
        other = _bytes(self.examples[-1][at])  # By these the program for any levels is compared.
        for example in self.examples[:-1]:
            key = _bytes(example[at])
            if key != other and key not in known:
                known[key] = narrow(self._at_sigma(tick, example[at], at)).quick(plain)
        return _BySigma(call, known, at)

    def _at_sigma(self, tick: Tick, sigma: Tensor, at: int) -> Program:
        """The program of a tick whose carry has certain levels."""
        call, sigma = self.form.of(tick), sigma.clone()

        def at_sigma(*inputs: Tensor) -> Sequence[Tensor]:
            return call(*inputs[:at], sigma, *inputs[at + 1 :])

        return self._record(at_sigma)

    def compiled(self) -> Call:
        """The candidate "compile"; for errors see `program`."""
        call = compiled(self.program, self._on_device(self.examples[0]))
        return self._from_host(call) if self.device.type == "cpu" else self._captured(call)

    def aot(self, folder: Path) -> Call:
        """The candidate "aot"; for errors see `program`.

        Args:
            folder: of the packages, which later starts take up.
        """
        return self._from_host(packaged(self.program, self._on_device(self.examples[0]), folder))

    def cuda_graph(self, device: GraphDevice | None = None) -> Call:
        """The candidate "cuda_graph"; for errors see `program`.

        Args:
            device: captures; None: the policy's.
        """
        if device is None and self.device.type != "cuda":
            raise UnavailableError(
                f"device={self.device} has no CUDA graphs: give device=cuda, or engine=fused"
            )
        return self._captured(self.program.quick(), device)

    def _captured(self, call: Call, device: GraphDevice | None = None) -> Call:
        n_waited = self.form.n_waited
        return Captured(call, self.examples[0], device or Cuda(self.device), n_waited=n_waited)

    def _on_device(self, example: Sequence[Tensor]) -> list[Tensor]:
        """Inputs with observations on the device."""
        return [given.to(self.device) for given in example]

    def _from_host(self, call: Call) -> Call:
        """A call that takes observations to the device first."""
        if self.device.type == "cpu":
            return call
        return lambda *inputs: call(*self._on_device(inputs))


def _bytes(values: Tensor) -> bytes:
    return values.numpy().tobytes()


class _BySigma:
    """A call that goes by another one where that knows the levels.

    Args:
        call: for any levels.
        known: what they hold -> call for them.
        at: their place among the inputs.
    """

    def __init__(self, call: Call, known: Mapping[bytes, Call], at: int):
        self._call, self._known, self._at = call, known, at

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        return self._known.get(_bytes(inputs[self._at]), self._call)(*inputs)


def lowering(tick: Tick, weights: str) -> Callable[[Tick], Tick] | None:
    """What lowers a tick's network, made once for all ticks of a policy; None: it has no such form.

    Args:
        tick: one of them.
        weights: of the network.
    """
    if not hasattr(tick.policy.net, "lowered"):
        return None
    made: list[Tick] = []

    def lowered_tick(other: Tick) -> Tick:
        if not made:
            made.append(with_net(tick, weights))
        return Tick(made[0].policy, other.sampler, goal_weight=other.goal_weight)

    return lowered_tick
