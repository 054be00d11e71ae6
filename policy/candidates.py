"""The ways to compute a tick that `cadence serve`, `run` and `evaluate` can choose from.

* eager: as it is written, operation by operation.
* fused: the network in the form that is fast for few rows, where it has one (`lowered`), and the
  rest without Python's part in it (`policy.control.program`).
* compile: by torch.compile; on CUDA captured besides.
* aot: by AOTInductor, with the weights frozen into a package that later starts load.
* cuda_graph: as fused, captured as one CUDA graph.

Shape legend: `B` rows (of streams).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from policy.control.cuda_graph import Captured, Cuda, GraphDevice
from policy.control.engine import Call, UnavailableError
from policy.control.program import Narrowed, Program, program_of, with_weights
from policy.fingerprint import device_name
from policy.parity import Example, fields_of
from policy.tick import Tick, Ticked, with_net

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
N_WAITED = 2  # results that are waited for: actions and faults


class Subject:
    """One tick, as a flat function of tensors, and the programs that it becomes.

    Args:
        tick: as it is written.
        examples: inputs of it, at least one.
        weights: of the network's matrices: "fp32", "bf16", "fp16" or "int8".
        lowered: tick -> the same with its network lowered; None where the network has no such form.
        narrowed: weights of 16 bits, which all ticks of a network share; None: only this one does.
    """

    def __init__(
        self,
        tick: Tick,
        examples: Sequence[Example],
        *,
        weights: str,
        lowered: Callable[[Tick], Tick] | None,
        narrowed: Narrowed | None = None,
    ):
        self.tick, self.examples, self.weights = tick, examples, weights
        self._lowered = lowered
        self._narrowed: Narrowed = {} if narrowed is None else narrowed
        self.names = fields_of(tick.policy)
        self.device = next(tick.policy.parameters()).device

    def inputs(self, example: Example) -> list[Tensor]:
        """An example as the inputs of a flat call, observations on the host."""
        seen = [example.observation[name] for name in self.names]
        return [*seen, example.x, example.sigma, *example.noise]

    def plain(self) -> Call:
        """The tick as it is written, of observations on the host."""
        return self._from_host(self._flat(self.tick))

    def _on_device(self, example: Example) -> list[Tensor]:
        """The same with observations on the device."""
        return [given.to(self.device) for given in self.inputs(example)]

    def _flat(self, tick: Tick) -> Call:
        """A tick as a function of `inputs`, to actions, faults, x and sigma."""
        n = len(self.names)

        def call(*inputs: Tensor) -> list[Tensor]:
            seen = dict(zip(self.names, inputs[:n], strict=True))
            actions, x, sigma, fault = tick(seen, inputs[n], inputs[n + 1], list(inputs[n + 2 :]))
            return [actions, fault, x, sigma]

        return call

    @cached_property
    def plain_program(self) -> Program:
        """The network as it is written.

        Raises:
            UnavailableError: the tick cannot be recorded.
        """
        return self._record(self._flat(self.tick))

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
                f"engine.weights={self.weights} needs a network with a form of its own for it, "
                f"which {type(self.tick.policy.net).__name__} has not on {self.device}: give "
                f"engine.weights=bf16 or fp32"
            )
        return with_weights(program, DTYPES[self.weights], self._narrowed)

    @cached_property
    def _lowered_tick(self) -> Tick | None:
        if self._lowered is None or self.device.type != "cpu" or self.weights == "fp16":
            return None
        try:
            return self._lowered(self.tick)
        except (RuntimeError, ValueError) as error:  # No compiler, or no such weights.
            raise UnavailableError(str(error)) from error

    @cached_property
    def fused_program(self) -> Program:
        """The lowered network where there is one, else `program`; for errors see there."""
        tick = self._lowered_tick
        return self.program if tick is None else self._record(self._flat(tick))

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

    def fused(self) -> Call:
        """The candidate "fused"; for errors see `program`."""
        program, tick = self.fused_program, self._lowered_tick or self.tick
        is_lowered = tick is not self.tick
        # Operators of the network -> functions that do the same with less ado.
        plain = getattr(tick.policy.net, "operators", {})
        call = program.quick(plain)
        if self.device.type != "cpu" or not program.uses(self._sigma_at):
            return self._from_host(call)
        # What depends on the levels alone is most of what is left beside the network, and they are
        # the same from tick to tick while as many actions are executed.
        known = {}
        other = _bytes(self.examples[-1].sigma)  # By these the program for any levels is compared.
        for example in self.examples[:-1]:
            key = _bytes(example.sigma)
            if key != other and key not in known:
                narrow = self._at_sigma(tick, example)
                known[key] = (narrow if is_lowered else self._narrow(narrow)).quick(plain)
        return _BySigma(call, known, self._sigma_at)

    @property
    def _sigma_at(self) -> int:
        """Place of the carry's levels among the inputs."""
        return len(self.names) + 1

    def _at_sigma(self, tick: Tick, example: Example) -> Program:
        """The program of a tick whose carry has the levels of an example."""
        call, at, sigma = self._flat(tick), self._sigma_at, example.sigma.clone()

        def at_sigma(*inputs: Tensor) -> Sequence[Tensor]:
            return call(*inputs[:at], sigma, *inputs[at + 1 :])

        return self._record(at_sigma)

    def compiled(self) -> Call:
        """The candidate "compile"; for errors see `program`."""
        program, inputs = self.program, self._on_device(self.examples[0])

        @torch.no_grad()
        def make() -> Call:
            call = torch.compile(program, fullgraph=True, dynamic=False)
            call(*inputs)  # Compiles.
            return call

        call = _built("torch.compile", make)
        return self._from_host(call) if self.device.type == "cpu" else self._captured(call)

    def aot(self, folder: Path) -> Call:
        """The candidate "aot"; for errors see `program`.

        Args:
            folder: of the packages, which later starts take up.
        """
        program, inputs = self.program, self._on_device(self.examples[0])
        # A package is made for one kind of processor, and ends the process on another.
        about = f"{digest(program)} {device_name(self.device)} {torch.get_num_threads()}"
        key = hashlib.sha256(f"{about} {torch.__version__}".encode()).hexdigest()[:32]
        path = folder / f"{key}.pt2"

        @torch.no_grad()
        def make() -> Call:
            if path.exists():
                try:
                    return torch._inductor.aoti_load_package(str(path))
                except Exception:  # It is damaged: it is made again.
                    path.unlink(missing_ok=True)
            _package(program, inputs, path)
            return torch._inductor.aoti_load_package(str(path))

        return self._from_host(_built("AOTInductor", make))

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
        inputs = self.inputs(self.examples[0])
        return Captured(call, inputs, device or Cuda(self.device), n_waited=N_WAITED)

    def _from_host(self, call: Call) -> Call:
        """A call that takes observations to the device first."""
        if self.device.type == "cpu":
            return call
        return lambda *inputs: call(*(given.to(self.device) for given in inputs))

    def as_tick(self, call: Call) -> Callable[..., Ticked]:
        """A flat call in the form of `Tick.forward`; what it was not made for goes by the tick."""
        n, names, tick, device = len(self.names), self.names, self.tick, self.device
        first = self.inputs(self.examples[0])
        kinds = [(given.shape, given.dtype) for given in first[:n]]

        def ticked(
            observation: dict[str, Tensor], x: Tensor, sigma: Tensor, noise: list[Tensor]
        ) -> Ticked:
            seen = []
            for name, (shape, dtype) in zip(names, kinds, strict=True):
                given = observation.get(name)
                is_float = given is not None and (
                    given.is_floating_point() and dtype.is_floating_point
                )
                if given is None or given.shape != shape or not (given.dtype == dtype or is_float):
                    there = {key: values.to(device) for key, values in observation.items()}
                    return tick(there, x, sigma, noise)  # It says what is wrong.
                seen.append(given if given.dtype == dtype else given.to(dtype))
            # Compiled code takes the strides of the examples for granted.
            inputs = [given.contiguous() for given in (*seen, x, sigma, *noise)]
            actions, fault, x, sigma = call(*inputs)
            return actions, x, sigma, fault

        return ticked


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


def _built(what: str, make: Callable[[], Call]) -> Call:
    """What `make` gives.

    Raises:
        UnavailableError: it raises; compilers raise whatever they like.
    """
    try:
        return make()
    except UnavailableError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnavailableError(
            f"{what} failed ({reason[:200]}): it needs a C++ compiler (g++ or clang), or Triton on "
            f"CUDA; engine=eager does without"
        ) from error


def _package(program: Program, inputs: list[Tensor], path: Path) -> None:
    """Compile a program into a package; a reader finds all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        raise UnavailableError(
            f"its package could not be written to {path.parent} ({error.strerror}): set "
            f"XDG_CACHE_HOME to a folder that can be"
        ) from error
    with place as folder:
        exported = torch.export.export(program, tuple(inputs))
        made = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / path.name),
            inductor_configs={"freezing": True},
        )
        os.replace(made, path)


def digest(program: Program) -> str:
    """SHA-256 of a program's operations and constants."""
    found = hashlib.sha256(program.body.code.encode())
    for constant in program.constants:
        values = constant.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(f"{constant.dtype} {tuple(constant.shape)}".encode())
        found.update(values.numpy().data)
    return found.hexdigest()


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
