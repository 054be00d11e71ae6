"""Let the agents of one policy compute in another way, and share what takes long to make.

Shape legend: `B` rows (of streams).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy.agent import Agent
from policy.candidates import Subject, lowering
from policy.control.engine import Call, Error, UnavailableError, compared
from policy.control.program import Narrowed
from policy.flat import Form, StartForm, TickForm
from policy.parity import Example, error_of_start, examples_of, starts_of
from policy.tick import StartCall

SLOW = ("compile", "aot")  # to make: seconds to minutes
MOST_SLOW = 2  # compiled ticks, of different programs
N_EXAMPLES = 3  # that are compared, of each agent but the first


class Makers:
    """Makes candidates of the agents of one policy; equal programs are made once.

    Args:
        lead: one of the agents.
        weights: of the network's matrices.
        tolerance: largest error of what is made, as a share of an action's range.
        cache: folder of packages.
    """

    def __init__(self, lead: Agent, *, weights: str, tolerance: float, cache: Path):
        self._weights, self._tolerance, self._cache = weights, tolerance, cache
        self._lower = lowering(lead.tick, weights)
        self._narrowed: Narrowed = {}
        self._made: dict[tuple[str, str], Call] = {}  # by name and digest of the program

    def examples(self, agent: Agent, n: int) -> list[Example]:
        """Ticks of an agent.

        Raises:
            UnavailableError: the sampler's calls are not always the same.
        """
        try:
            return examples_of(agent.tick, rows=agent.rows, n=n)
        except ValueError as error:
            raise UnavailableError(str(error)) from error

    def subject(self, agent: Agent, examples: Sequence[Example]) -> Subject:
        """An agent's tick."""
        form = TickForm(agent.tick)
        return self._subject(agent, form, [form.inputs(example) for example in examples])

    def _subject(self, agent: Agent, form: Form, inputs: Sequence[Sequence[Tensor]]) -> Subject:
        return Subject(
            agent.tick,
            form,
            inputs,
            weights=self._weights,
            lowered=self._lower,
            narrowed=self._narrowed,
        )

    def make(self, name: str, subject: Subject) -> Call:
        """A candidate; see `policy.candidates`."""
        key = name, subject.digest(name)
        if key not in self._made:
            self._made[key] = subject.make(name, self._cache)
        return self._made[key]

    def _is_made(self, name: str, subject: Subject) -> bool:
        return (name, subject.digest(name)) in self._made

    def equip(
        self, agent: Agent, names: Sequence[str], error: Error, notes: list[str]
    ) -> tuple[str, float]:
        """Let another agent use a candidate, or the quick one where that is compiled often already.

        Args:
            agent: another one than the first.
            names: of candidates; the first that can be made is taken, else it stays eager.
            error: of a tick's results.
            notes: what cannot be done is added.

        Returns:
            What it uses, and the error of that.
        """
        sampler = type(agent.sampler).__name__
        try:
            subject = self.subject(agent, self.examples(agent, N_EXAMPLES))
        except UnavailableError as reason:
            notes.append(f"eager for the sampler {sampler}: {reason}")
            return "eager", 0.0
        for name in names:
            try:
                taken = self._not_too_often(name, subject)
                # What is equal to another agent's was compared there.
                is_new = not self._is_made(taken, subject)
                worst = self._compare(taken, subject, error) if is_new else 0.0
                call = self.make(taken, subject)
            except UnavailableError as reason:
                notes.append(f"not {name} for the sampler {sampler}: {reason}")
                continue
            start, off = self.start(agent, taken, notes)
            agent.use(TickForm(agent.tick).back(call, subject.examples[0]), start)
            return taken, max(worst, off)
        return "eager", 0.0

    def _not_too_often(self, name: str, subject: Subject) -> str:
        """A candidate's name, or that of one that is soon made."""
        n_made = len([key for key in self._made if key[0] == name])
        is_too_often = name in SLOW and n_made >= MOST_SLOW and not self._is_made(name, subject)
        return _quick(subject.device) if is_too_often else name

    def start(self, agent: Agent, name: str, notes: list[str]) -> tuple[StartCall | None, float]:
        """What begins an agent's streams as the candidate computes its ticks, and its error.

        Where that is done in no time, or cannot be done, it stays as it is written: None.
        """
        if agent.sampler.start_nfe == 0:
            return None, 0.0
        name = _quick(agent.device) if name in SLOW else name
        form = StartForm(agent.tick)
        starts = starts_of(agent.tick, rows=agent.rows, n=N_EXAMPLES)
        subject = self._subject(agent, form, [form.inputs(example) for example in starts])
        try:
            is_known = self._is_made(name, subject)
            worst = 0.0 if is_known else self._compare(name, subject, error_of_start)
            call = self.make(name, subject)
        except UnavailableError as reason:
            notes.append(f"streams begin as the network is written: not {name}, {reason}")
            return None, 0.0
        return form.back(call, subject.examples[0]), worst

    def _compare(self, name: str, subject: Subject, error: Error) -> float:
        """The largest error of a candidate; UnavailableError where it is over the tolerance."""
        plain = subject.plain()
        return compared(
            self.make(name, subject),
            subject.examples,
            [plain(*given) for given in subject.examples],
            error=error,
            tolerance=self._tolerance,
        )


def _quick(device: torch.device) -> str:
    """The candidate that is soon made."""
    return "cuda_graph" if device.type == "cuda" else "fused"
