"""Nested state, such as an optimiser's, as named tensors and a JSON value; and back, bit for bit.

Tensors go to safetensors, everything else to JSON: nothing is pickled. A tensor's place in the
JSON holds `{"$tensor": name}`; tuples and dicts with keys that JSON does not know are marked too.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Nested dicts, lists and tuples of tensors and JSON scalars.
State = dict[str, Any]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def flatten(state: object) -> tuple[dict[str, Tensor], Json]:
    """Tensors by the path of their place, and the rest.

    Raises:
        TypeError: something is neither a tensor, a scalar, a list, a tuple nor a dict.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, "", tensors)


def _flatten(state: object, path: str, tensors: dict[str, Tensor]) -> Json:
    if isinstance(state, Tensor):
        # Keys may hold a "/", so two places may have one path.
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = state.detach()
        return {"$tensor": name}
    if isinstance(state, Mapping):
        items = {key: _flatten(v, f"{path}/{key}", tensors) for key, v in state.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {"$items": [[key, value] for key, value in items.items()]}
    if isinstance(state, list | tuple):
        values: list[Json] = [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(state)]
        return {"$tuple": values} if isinstance(state, tuple) else values
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{path or 'state'} is a {type(state).__name__}, which cannot be saved")


def unflatten(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """The state that `flatten` took apart.

    Raises:
        KeyError: a tensor is missing.
    """
    if isinstance(rest, list):
        return [unflatten(tensors, value) for value in rest]
    if not isinstance(rest, dict):
        return rest
    match rest:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$tuple": list(values)}:
            return tuple(unflatten(tensors, value) for value in values)
        case {"$items": list(items)}:
            return {key: unflatten(tensors, value) for key, value in items}
    return {key: unflatten(tensors, value) for key, value in rest.items()}
