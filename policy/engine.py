"""Make agents as fast as the machine allows, and say in one line how fast that is.

A candidate that is asked for by name must be there, right and is taken; "auto" takes the fastest of
those that are made in a second or two, "best" of all. What cannot be made, or is further off than
the tolerance, is not taken, and the line says why.

What begins a stream, where that costs denoiser calls, is computed in the same way as its ticks if
it can be.

Several agents of one policy (a planner has one for each number of decided actions) share its
network. What takes long to compile is compiled for few of them: others run fused. Nothing is
compiled once control has begun.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from policy.agent import Agent
from policy.candidates import DTYPES, Subject
from policy.compilers import digest
from policy.control.engine import Candidate, Choice, Records, UnavailableError, choose
from policy.control.program import Program
from policy.equip import Makers
from policy.fingerprint import device_name, fingerprint
from policy.flat import TickForm
from policy.parity import action_range, error_in
from policy.planning import AgentPlanner

NAMES = ("auto", "best", "eager", "recorded", "fused", "compile", "aot", "cuda_graph")
WEIGHTS = ("fp32", "int8", *DTYPES)
N_EXAMPLES = 6  # ticks that are compared


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
            tolerance is not within 0 to 1, or remeasure is neither true nor false.
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
        is_number = isinstance(self.tolerance, int | float) and self.tolerance is not True
        if not is_number or not 0 < self.tolerance <= 1:
            raise ValueError(
                f"engine.tolerance is {self.tolerance}, it must be above 0 and at most 1: a share "
                f"of the range of an action"
            )
        if not isinstance(self.remeasure, bool):
            raise ValueError(f"engine.remeasure is {self.remeasure!r}, it must be true or false")

    @property
    def is_named(self) -> bool:
        """Whether one candidate was asked for."""
        return self.name not in ("auto", "best")

    def names(self, agent: Agent) -> list[str]:
        """Candidates besides the plain one, those first that are made sooner.

        Args:
            agent: whose ticks they compute.
        """
        if self.is_named:
            return [self.name]
        is_cuda = agent.device.type == "cuda"
        quick = ["cuda_graph"] if is_cuda else ["fused"]
        # Of the network as it is written, should its own form not be made.
        if not is_cuda and self.weights != "int8" and hasattr(agent.policy.net, "lowered"):
            quick.append("recorded")
        slow = ["compile"] if is_cuda else ["compile", "aot"]
        return [*quick, *slow] if self.name == "best" else quick


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
    makers = Makers(
        lead, weights=settings.weights, tolerance=settings.tolerance, cache=settings.cache
    )
    examples = makers.examples(lead, N_EXAMPLES)
    subject = makers.subject(lead, examples)
    error = error_in(action_range(lead.policy, examples))
    names = settings.names(lead)
    choice = choose(
        [Candidate(name, partial(makers.make, name, subject)) for name in names],
        subject.plain(),
        subject.examples,
        error=error,
        tolerance=settings.tolerance,
        is_named=settings.is_named,
        records=Records(settings.cache),
        key=_key(subject, settings, names),
        remeasure=settings.remeasure,
    )
    if choice.name == "eager":
        return _line(choice, settings, worst=0.0, others={})
    notes = list(choice.notes)
    start, off = makers.start(lead, choice.name, notes)
    lead.use(TickForm(lead.tick).back(choice.call, subject.examples[0]), start)
    worst, others = max(choice.error, off), Counter[str]()
    names = [choice.name] if settings.is_named else [choice.name, "recorded"]
    for agent in agents[1:]:
        name, off = makers.equip(agent, names, error, notes)
        if name == "eager" and settings.is_named:
            raise UnavailableError(notes[-1])
        worst = max(worst, off)
        others[name] += name != choice.name
    choice = replace(choice, notes=tuple(dict.fromkeys(notes)))
    return _line(choice, settings, worst=worst, others=others)


def _check_dtype(agent: Agent) -> None:
    """Raise UnavailableError where a network is not in fp32."""
    others = {p.dtype for p in agent.policy.parameters()} - {torch.float32}
    if others:
        raise UnavailableError(
            f"the checkpoint's weights are {', '.join(map(str, others))}, an engine starts from "
            f"torch.float32: use engine=eager"
        )


def _key(subject: Subject, settings: EngineSettings, names: Sequence[str]) -> str:
    """All that timings depend on, as a name of a file."""
    about = {
        **fingerprint(),
        "device": device_name(subject.device),
        "candidates": names,
        "weights": settings.weights,
        "program": digest(_some_program(subject), subject.examples[0]),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _some_program(subject: Subject) -> Program:
    """A program of the network and the sampler: the fused one, which is soon made."""
    try:
        return subject.fused_program
    except UnavailableError:
        return subject.plain_program


def _line(
    choice: Choice, settings: EngineSettings, *, worst: float, others: Mapping[str, int]
) -> str:
    """What was chosen, in words."""
    chosen = choice.timings[choice.name]
    slower = ", ".join(
        f"{name} {1e3 * timing.p50:.3g} ms"
        for name, timing in choice.timings.items()
        if name != choice.name
    )
    weights = "" if choice.name == "eager" else f", {settings.weights} weights"
    line = (
        f"engine: {choice.name}{weights}: p50 {1e3 * chosen.p50:.3g} ms, p99 "
        f"{1e3 * chosen.p99:.3g} ms"
    )
    if slower:
        line += f" ({slower})"
    if choice.name != "eager":
        line += (
            f", largest error {100 * worst:.2g} % of the action range, tolerance "
            f"{100 * settings.tolerance:g} %"
        )
    for name, n in others.items():
        if n == 0:
            continue
        line += f"; {name} for {n} further ticks (of other decided actions, or urgent)"
    if choice.is_recorded:
        line += "; measured before (engine.remeasure=true measures again)"
    return "\n".join([line, *choice.notes])
