"""Do the two sides of a connection mean the same numbers."""

import math
from collections.abc import Mapping

import numpy as np

from data.types import Contract, ContractError
from policy.serving.errors import Code, WireError
from policy.serving.frame import DTYPES, MAX_ARRAYS, MAX_FRAME, MAX_HEAD
from policy.types import Request


def check_contracts(planner: Contract, robot: Contract, *, this: str, that: str) -> None:
    """Raise ContractError unless a robot offers what a planner needs, in the same order.

    The robot may observe more; horizons and statistics are compared where both sides have them.

    Args:
        planner: contract of the planner, with its horizons.
        robot: contract of the robot.
        this: name of the planner's side for the message.
        that: name of the robot's side.
    """
    planner.check(robot, this=this, that=that)
    needed = list(planner.observation)
    offered = [name for name in robot.observation if name in planner.observation]
    if needed != offered:
        raise ContractError(
            f"the observation's order is {needed} in {this}, but {offered} in {that}"
        )


def check_types(contract: Contract) -> None:
    """Raise ContractError where a contract has arrays that cannot be sent.

    Args:
        contract: of a planner, with its horizons.
    """
    if len(contract.fields) > MAX_ARRAYS:  # The observation, and the decided actions.
        raise ContractError(
            f"an observation has {len(contract.observation)} fields, at most {MAX_ARRAYS - 1} are "
            f"served"
        )
    for name, field in contract.fields.items():
        if np.dtype(field.dtype).name not in DTYPES:
            raise ContractError(
                f"{name}.dtype is {field.dtype}, which is not served: {', '.join(DTYPES)} are"
            )
    if largest_message(contract) > MAX_FRAME:
        raise ContractError(
            f"an observation has {largest_message(contract)} bytes, at most {MAX_FRAME} are served"
        )


def check_history(history: Mapping[str, np.ndarray], contract: Contract) -> None:
    """Raise WireError unless a history holds exactly the contract's fields, To steps of each.

    Args:
        history: field name -> [To, ...].
        contract: of the planner, with its horizons.
    """
    if list(history) != list(contract.observation):
        raise WireError(
            Code.BAD_OBSERVATION,
            f"the observation has {list(history)}, it must have {list(contract.observation)}",
        )
    assert contract.horizons is not None
    for name, field in contract.observation.items():
        shape, array = (contract.horizons.obs, *field.shape), history[name]
        if array.shape != shape or array.dtype != np.dtype(field.dtype):
            raise WireError(
                Code.BAD_OBSERVATION,
                f"{name!r} is {array.dtype} {array.shape}, it must be {field.dtype} {shape}",
            )


def check_decided(request: Request, contract: Contract) -> None:
    """Raise WireError unless decided actions, where there are some, are what it says.

    They are as many as there are ticks, and numbers that float32 holds too.

    Args:
        request: as it came.
        contract: of the planner.
    """
    decided, shape = request.decided, (1 + request.delay, contract.action.size)
    if decided is not None and (decided.shape != shape or decided.dtype != np.float64):
        raise WireError(
            Code.BAD_OBSERVATION,
            f"the decided actions are {decided.dtype} {decided.shape}, they must be float64 "
            f"{shape}: the last command, and one for each of {request.delay} ticks",
        )
    if decided is not None and (np.abs(decided) > np.finfo(np.float32).max).any():
        raise WireError(
            Code.NOT_FINITE, "a decided action is larger than float32 can hold: look there"
        )


def check_actions(actions: np.ndarray, contract: Contract) -> None:
    """Raise ContractError unless a chunk has the contract's size and type, and is finite.

    Args:
        actions: [Tp - past, Da].
        contract: of the planner, with its horizons.
    """
    assert contract.horizons is not None
    shape, dtype = (contract.horizons.future, *contract.action.shape), contract.action.dtype
    if actions.shape != shape or actions.dtype != np.dtype(dtype):
        raise ContractError(
            f"a chunk is {actions.dtype} {actions.shape}, it must be {dtype} {shape}"
        )
    if not np.isfinite(actions).all():
        raise ContractError("a chunk holds a number that is NaN or infinite, all must be finite")


def largest_message(contract: Contract) -> int:
    """Bytes of the largest message that a client of a planner can have to send."""
    assert contract.horizons is not None
    steps = sum(
        math.prod(field.shape) * np.dtype(field.dtype).itemsize + 8  # Each array may be padded.
        for field in contract.observation.values()
    )
    decided = (1 + contract.horizons.future) * contract.action.size * 8 + 8
    return contract.horizons.obs * steps + decided + MAX_HEAD + 64
