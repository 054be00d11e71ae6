"""What the numbers of several stores mean together, and which task each step is of."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from data.store import EpisodeStore
from data.types import Contract, ContractError, Field

TASK = "task"  # the field that tells the task, as environments have it too


def joint_contract(stores: Sequence[EpisodeStore]) -> Contract:
    """What the numbers of all stores mean; limits are those of all together.

    Raises:
        ContractError: two stores do not mean the same; both are named.
    """
    first, *others = stores
    for other in others:
        sides = (first, other), (other, first)  # Neither may have a field that the other lacks.
        for a, b in sides:
            a.contract.check(b.contract, this=f"store {a.path}", that=f"store {b.path}")
        for name, entry in product(first.contract.fields, ("normalization", "scaled_per")):
            scaled, otherwise = (
                getattr(contract.fields[name], entry)
                for contract in (first.contract, other.contract)
            )
            if scaled != otherwise:
                raise ContractError(
                    f"{name}.{entry} is {scaled!r} in store {first.path}, but {otherwise!r} in "
                    f"store {other.path}: all are scaled alike"
                )
    contracts = [store.contract for store in stores]
    joint = {
        name: _joint_field([contract.fields[name] for contract in contracts])
        for name in first.contract.fields
    }
    task = ", ".join(dict.fromkeys(contract.task for contract in contracts if contract.task))
    action = joint.pop("action")
    return replace(first.contract, observation=joint, action=action, task=task)


def _joint_field(fields: Sequence[Field]) -> Field:
    """The same field with the widest limits, none where one has none."""
    lows = [field.low for field in fields if field.low is not None]
    highs = [field.high for field in fields if field.high is not None]
    low = tuple(map(min, zip(*lows, strict=True))) if len(lows) == len(fields) else None
    high = tuple(map(max, zip(*highs, strict=True))) if len(highs) == len(fields) else None
    return replace(fields[0], low=low, high=high)


def task_field(tasks: Sequence[str]) -> Field:
    """The field that tells which of these tasks is to be done; the order is part of its meaning."""
    n = len(tasks)
    return Field(
        shape=(n,),
        unit="1",
        frame=", ".join(tasks),
        low=(0.0,) * n,
        high=(1.0,) * n,
        normalization="identity",
    )


def telling(contract: Contract, tasks: Sequence[str]) -> Contract:
    """A contract with the field that tells the task.

    Raises:
        ContractError: it has such a field already.
    """
    if TASK in contract.observation:
        raise ContractError(
            f"the stores hold a field {TASK!r} already: learn from it by tell_task=false"
        )
    return replace(contract, observation={**contract.observation, TASK: task_field(tasks)})


def scaled_per_task(contract: Contract, names: Sequence[str]) -> Contract:
    """A contract with statistics of each task, whose names are those of the episodes.

    Raises:
        ValueError: there are not several.
    """
    if len(set(names)) < 2:
        fault = f"all episodes are of the task {names[0]!r}" if names else "no task is told"
        fix = "give stores of several tasks" if names else "set tell_task=true"
        raise ValueError(f"statistics is 'task', but {fault}: {fix}, or set statistics=joint")
    fields = {
        name: field if field.is_image or name == TASK else replace(field, scaled_per=TASK)
        for name, field in contract.fields.items()
    }
    action = fields.pop("action")
    return replace(contract, observation=fields, action=action)
