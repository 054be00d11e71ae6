"""Goals in hindsight: what an episode came to is what somebody wanted a moment before.

Demonstrations without a goal, such as play, get one: a later step of the same episode, at a time
that is drawn anew for each batch. The goal is an observation field as any other from there on: it
has statistics, is in the policy's contract, and a robot has to offer it.

Source: Andrychowicz et al. 2017, Hindsight experience replay, arXiv:1707.01495 ("future"), as used
by Reuss et al. 2023, BESO, arXiv:2304.02532.

Differences from the papers: the goal's time is uniform in a range of steps ahead, not in the whole
rest of the episode: in long play, what happens much later was not yet wanted.

Shape legend: `B` windows, `G` elements of the goal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.types import Contract, ContractError, Field
from data.windows import WindowTable


@dataclass(frozen=True)
class Hindsight:
    """A goal out of a later step of an observation field.

    Args:
        source: field that the goal is read from.
        elements: indices of the elements that make the goal, in the order given; None: all.
        field: name of the goal's field.
        least_ahead: steps from now to the goal, at least; the last step of an episode if it is
            nearer.
        most_ahead: steps from now to the goal, at most; None: up to the end of the episode.

    Raises:
        ValueError: the range of steps is empty or lies in the past, an element comes twice, or a
            number is not whole.
    """

    source: str
    elements: Sequence[int] | None = None
    field: str = "goal"
    least_ahead: int = 1
    most_ahead: int | None = None

    def __post_init__(self):
        for name in ("least_ahead", "most_ahead"):
            value = getattr(self, name)
            if type(value) is not int and not (name == "most_ahead" and value is None):
                raise ValueError(f"{name} is {value!r}, it must be a whole number of steps")
        if self.least_ahead < 0:
            raise ValueError(f"least_ahead is {self.least_ahead}, it must be at least 0")
        if self.most_ahead is not None and self.most_ahead < self.least_ahead:
            raise ValueError(
                f"most_ahead is {self.most_ahead}, it must be at least least_ahead, which is "
                f"{self.least_ahead}"
            )
        if self.elements is not None:
            if isinstance(self.elements, str | int | float):
                raise ValueError(f"elements is {self.elements!r}, give a list, or null: all")
            object.__setattr__(self, "elements", tuple(self.elements))
            if any(type(element) is not int for element in self.elements):
                raise ValueError(f"elements is {self.elements}, give whole numbers, or null: all")
            if not self.elements or len(set(self.elements)) != len(self.elements):
                raise ValueError(f"elements is {self.elements}, give each one once, or null: all")

    def contract(self, contract: Contract) -> Contract:
        """The contract of demonstrations with a goal.

        Raises:
            ContractError: there is no such source, it lacks an element, or the goal's name is
                taken.
        """
        if self.source not in contract.observation:
            raise ContractError(
                f"goals.source is {self.source!r}, the store has {sorted(contract.observation)}"
            )
        if self.field in contract.fields:
            raise ContractError(
                f"goals.field is {self.field!r}, but the store has a field of that name: choose "
                f"another one, or goals=null to take the store's"
            )
        goal = _part(self.source, contract.observation[self.source], self.elements)
        return replace(contract, observation={**contract.observation, self.field: goal})

    def rows(self, windows: WindowTable, generator: torch.Generator | None) -> Tensor:
        """[B] rows of the goals, each later in its window's episode.

        Args:
            windows: of the batch.
            generator: of the times; None: torch's own.
        """
        now, last = windows.now, windows.stop - 1
        first = (now + self.least_ahead).minimum(last)
        if self.most_ahead is not None:
            last = (now + self.most_ahead).minimum(last)
        device = now.device if generator is None else generator.device
        share = torch.rand(len(now), generator=generator, device=device).to(now.device)
        n = last - first + 1
        return first + (share * n).long().minimum(n - 1)  # The product may round up to n.

    def take(self, values: Tensor) -> Tensor:
        """Goals [..., G] from steps [..., *shape] of the source."""
        return values if self.elements is None else values[..., list(self.elements)]


def _part(name: str, field: Field, elements: Sequence[int] | None) -> Field:
    """What some elements of a field mean on their own."""
    if elements is None:
        return field
    if len(field.shape) != 1 or any(not 0 <= element < field.size for element in elements):
        raise ContractError(
            f"goals.elements is {elements}, the field {name!r} has shape {field.shape}: give "
            f"elements of a vector, or null: all of it"
        )
    if field.rotation:
        raise ContractError(
            f"goals.elements is {elements}, the field {name!r} holds a rotation "
            f"({field.rotation}), which some elements alone are not: give null, all of it"
        )

    def of(values: tuple) -> tuple:
        return tuple(values[element] for element in elements)

    def places(special: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(place for place, element in enumerate(elements) if element in special)

    return replace(
        field,
        shape=(len(elements),),
        unit=field.unit if isinstance(field.unit, str) else of(field.unit),
        angles=places(field.angles),
        discrete=places(field.discrete),
        low=None if field.low is None else of(field.low),
        high=None if field.high is None else of(field.high),
    )
