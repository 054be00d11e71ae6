"""Make agents as fast as the machine allows, and say in one line how fast that is.

A candidate that is asked for by name must be there, right and is taken; "auto" takes the fastest of
those that are made in a second or two, "best" of all. What cannot be made, or is further off than
the tolerance, is not taken, and the line says why.

Several agents of one policy (a planner has one for each number of decided actions) share its
network. What takes long to compile is compiled for few of them: others run fused. Nothing is
compiled once control has begun.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from policy.agent import Agent
from policy.candidates import DTYPES, Subject, digest, lowering
from policy.control.engine import (
    Call,
    Candidate,
    Choice,
    Error,
    Records,
    UnavailableError,
    choose,
    compared,
)
from policy.control.program import Narrowed, Program
from policy.fingerprint import device_name, fingerprint
from policy.parity import action_range, error_in, examples_of
from policy.planning import AgentPlanner

NAMES = ("auto", "best", "eager", "fused", "compile", "aot", "cuda_graph")
WEIGHTS = ("fp32", "int8", *DTYPES)
SLOW = ("compile", "aot")  # to make: seconds to minutes
MOST_SLOW = 2  # compiled ticks, of different programs
N_EXAMPLES, N_EXAMPLES_OF_OTHERS = 6, 3  # ticks that are compared


def cache_folder() -> Path:
    """Where timings and packages are kept: cadence/engine in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cadence" / "engine"


@dataclass(frozen=True)
class EngineSettings:
    """How ticks are computed.

    Args:
        name: of the candidate (`policy.candidates`), "auto" or "best".
        weights: of the network's matrices: "fp32", "bf16", "fp16" or "int8".
        tolerance: largest error of an action against plain fp32, as a share of its range.
        remeasure: whether to measure even where an earlier start did.

    Raises:
        ValueError: there is no such candidate or weights, "eager" has weights of its own, or the
            tolerance is not within 0 to 1.
    """

    name: str = "eager"
    weights: str = "fp32"
    tolerance: float = 0.01
    remeasure: bool = False
    cache: Path = field(default_factory=cache_folder)

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"engine is {self.name!r}, choose one of {', '.join(NAMES)}")
        if self.weights not in WEIGHTS:
            raise ValueError(
                f"engine.weights is {self.weights!r}, choose one of {', '.join(WEIGHTS)}"
            )
        if self.name == "eager" and self.weights != "fp32":
            raise ValueError(
                f"engine=eager computes with fp32, not {self.weights}: give engine=fused, or "
                f"another one"
            )
        is_number = isinstance(self.tolerance, int | float)
        if not is_number or not 0 < self.tolerance <= 1:
            raise ValueError(
                f"engine.tolerance is {self.tolerance}, it must be above 0 and at most 1: a share "
                f"of the range of an action"
            )

    @property
    def is_named(self) -> bool:
        """Whether one candidate was asked for."""
        return self.name not in ("auto", "best")

    def names(self, device: torch.device) -> list[str]:
        """Candidates besides the plain one, those first that are made sooner."""
        if self.is_named:
            return [self.name]
        cheap = "cuda_graph" if device.type == "cuda" else "fused"
        slow = ["compile"] if device.type == "cuda" else ["compile", "aot"]
        return [cheap, *slow] if self.name == "best" else [cheap]


def agents_of(planner: AgentPlanner) -> list[Agent]:
    """The agents of a planner whose ticks are computed here."""
    return [agent for agent in planner.all_agents if isinstance(agent, Agent)]


@torch.no_grad()  # As ticks are: a compiled one would be compiled again otherwise.
def use_engine(agents: Sequence[Agent], settings: EngineSettings) -> str:
    """Let agents compute their ticks as set, and say how.

    Args:
        agents: of one policy; the first one is measured.
        settings: what to take.

    Raises:
        ValueError: a candidate was asked for by name, and it cannot be made, or is too far off.
    """
    for agent in agents:
        agent.use(None)
    if settings.name == "eager":
        return "engine: eager, as the network is written"
    try:
        return _use(agents, settings)
    except UnavailableError as reason:
        if settings.is_named:
            raise ValueError(f"engine={settings.name} cannot be used: {reason}") from reason
        for agent in agents:
            agent.use(None)
        return f"engine: eager, as the network is written ({reason})"


def _use(agents: Sequence[Agent], settings: EngineSettings) -> str:
    """The line of `use_engine`.

    Raises:
        UnavailableError: not all agents can use a candidate.
    """
    lead = agents[0]
    _check_dtype(lead)
    makers = _Makers(lead, settings)
    subject = makers.subject(lead, N_EXAMPLES)
    error = error_in(action_range(lead.policy, subject.examples))
    names = settings.names(lead.device)
    choice = choose(
        [Candidate(name, partial(makers.make, name, subject)) for name in names],
        subject.plain(),
        [subject.inputs(example) for example in subject.examples],
        error=error,
        tolerance=settings.tolerance,
        is_named=settings.is_named,
        records=Records(settings.cache),
        key=_key(subject, settings),
        remeasure=settings.remeasure,
    )
    if choice.name == "eager":
        return _line(choice, settings, worst=0.0, n_other=0)
    lead.use(subject.as_tick(choice.call))
    worst, n_other = choice.error, 0
    for agent in agents[1:]:
        name, off = makers.equip(agent, choice.name, error)
        worst, n_other = max(worst, off), n_other + (name != choice.name)
    return _line(choice, settings, worst=worst, n_other=n_other)


class _Makers:
    """Makes candidates of the agents of one policy; equal programs are made once."""

    def __init__(self, lead: Agent, settings: EngineSettings):
        self._settings = settings
        self._lower = lowering(lead.tick, settings.weights)
        self._narrowed: Narrowed = {}
        self._made: dict[tuple[str, str], Call] = {}  # by name and digest of the program

    def subject(self, agent: Agent, n_examples: int) -> Subject:
        """An agent's tick with examples.

        Raises:
            UnavailableError: the sampler's calls are not always the same.
        """
        try:
            examples = examples_of(agent.tick, rows=agent.rows, n=n_examples)
        except ValueError as error:
            raise UnavailableError(str(error)) from error
        return Subject(
            agent.tick,
            examples,
            weights=self._settings.weights,
            lowered=self._lower,
            narrowed=self._narrowed,
        )

    def make(self, name: str, subject: Subject) -> Call:
        """A candidate; see `policy.candidates`."""
        key = self._key(name, subject)
        if key not in self._made:
            makers: Mapping[str, Callable[[], Call]] = {
                "fused": subject.fused,
                "compile": subject.compiled,
                "aot": partial(subject.aot, self._settings.cache),
                "cuda_graph": subject.cuda_graph,
            }
            self._made[key] = makers[name]()
        return self._made[key]

    def equip(self, agent: Agent, name: str, error: Error) -> tuple[str, float]:
        """Let another agent use a candidate, or fused where that is compiled too often already.

        Returns:
            What it uses, and the error of that.
        """
        n_slow = len([key for key in self._made if key[0] == name])
        subject = self.subject(agent, 1)
        if name in SLOW and n_slow >= MOST_SLOW and self._key(name, subject) not in self._made:
            name = "fused"
        is_new, worst = self._key(name, subject) not in self._made, 0.0
        if is_new:
            # What is equal to another agent's was compared there.
            rows, n = agent.rows, N_EXAMPLES_OF_OTHERS
            subject.examples = examples_of(agent.tick, rows=rows, n=n)
        call = self.make(name, subject)
        if is_new:
            inputs = [subject.inputs(example) for example in subject.examples]
            plain = subject.plain()
            worst = compared(
                call,
                inputs,
                [plain(*given) for given in inputs],
                error=error,
                tolerance=self._settings.tolerance,
            )
        agent.use(subject.as_tick(call))
        return name, worst

    def _key(self, name: str, subject: Subject) -> tuple[str, str]:
        return name, digest(subject.fused_program if name == "fused" else subject.program)


def _check_dtype(agent: Agent) -> None:
    """Raise UnavailableError where a network is not in fp32."""
    others = {p.dtype for p in agent.policy.parameters()} - {torch.float32}
    if others:
        raise UnavailableError(
            f"the checkpoint's weights are {', '.join(map(str, others))}, an engine starts from "
            f"torch.float32: use engine=eager"
        )


def _key(subject: Subject, settings: EngineSettings) -> str:
    """All that timings depend on, as a name of a file."""
    about = {
        **fingerprint(),
        "device": device_name(subject.device),
        "candidates": settings.names(subject.device),
        "weights": settings.weights,
        "program": digest(_some_program(subject)),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _some_program(subject: Subject) -> Program:
    """A program of the network and the sampler: the fused one, which is soon made."""
    try:
        return subject.fused_program
    except UnavailableError:
        return subject.plain_program


def _line(choice: Choice, settings: EngineSettings, *, worst: float, n_other: int) -> str:
    """What was chosen, in words."""
    chosen = choice.timings[choice.name]
    others = ", ".join(
        f"{name} {1e3 * timing.p50:.3g} ms"
        for name, timing in choice.timings.items()
        if name != choice.name
    )
    weights = "" if choice.name == "eager" else f", {settings.weights} weights"
    line = (
        f"engine: {choice.name}{weights}: p50 {1e3 * chosen.p50:.3g} ms, p99 "
        f"{1e3 * chosen.p99:.3g} ms"
    )
    if others:
        line += f" ({others})"
    if choice.name != "eager":
        line += (
            f", largest error {100 * worst:.2g} % of the action range, tolerance "
            f"{100 * settings.tolerance:g} %"
        )
    if n_other:
        line += f"; fused for {n_other} other numbers of decided actions"
    if choice.is_recorded:
        line += "; measured before (engine.remeasure=true measures again)"
    return "\n".join([line, *choice.notes])
