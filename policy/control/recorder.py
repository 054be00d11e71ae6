"""The operations that a function of tensors consists of, noted while it runs once.

What the function computes from its inputs becomes a list of operations that can be run again, made
smaller (`policy.control.program`), compiled, or captured. Python's part in it is gone. So the
function must take the same way whatever its inputs hold: a branch on a value is an error here.
What is read past torch's operators (`Tensor.numpy`, pointers) is not seen and stays as it was,
which is why a program is compared with the function before it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Operators that look at the shape and type of a tensor and not at what it holds.
SHAPE_ONLY = {
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
}

MASKS = (torch.bool, torch.uint8)


class RecordError(RuntimeError):
    """A function cannot be recorded; the message says which operation prevents it."""


@dataclass
class Recording:
    """The operations of a function, in order.

    Args:
        graph: with a placeholder for each input and one for each constant.
        constants: placeholder -> tensor that was there before.
        values: node -> what it held.
        varying: nodes that depend on an input's value.
        mutated: nodes that share memory with something that an operation writes to.
    """

    graph: fx.Graph
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    varying: set[fx.Node] = field(default_factory=set)
    mutated: set[fx.Node] = field(default_factory=set)


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Recording:
    """The operations of one call.

    Args:
        function: of as many tensors, to a sequence of tensors.
        inputs: examples; all other inputs must have their shapes and dtypes.

    Raises:
        RecordError: the function branches on a value, draws noise, writes to a tensor that it did
            not make, or cannot be followed.
    """
    recorder = _Recorder([given.clone() for given in inputs])
    with torch.no_grad(), recorder:
        outputs = function(*recorder.inputs)
    return recorder.end(outputs)


def _memory(tensor: Tensor) -> int:
    """What tells one block of memory from another, while both are kept."""
    return tensor.untyped_storage()._cdata


def _place(tensor: Tensor) -> tuple:
    """What tells one tensor from another: autograd makes new objects of the same tensor."""
    return (
        _memory(tensor),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in an argument or a result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in _tensors(entry)]
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return []


def _named(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    arguments = func._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given = {a.name: value for a, value in zip(arguments, args, strict=False)}
    return {**dict.fromkeys(a.name for a in arguments), **defaults, **given, **kwargs}


class _Recorder(TorchDispatchMode):
    """Notes operations while it is the mode."""

    def __init__(self, inputs: list[Tensor]):
        super().__init__()
        self.inputs = inputs
        self._recording = Recording(fx.Graph())
        self._nodes: dict[tuple, fx.Node] = {}
        self._kept: list[Tensor] = []  # An address means something as long as nobody else has it.
        self._made: set[int] = set()  # memory that was allocated within the function
        self._varying = {_memory(given) for given in inputs}
        self._written: set[int] = set()
        for i, given in enumerate(inputs):
            self._keep(given, self._recording.graph.placeholder(f"input_{i}"))
            self._made.add(_memory(given))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        is_varying = any(_memory(tensor) in self._varying for tensor in given)
        named = _named(func, args, kwargs)
        self._check(func, named, is_varying)
        node_args, node_kwargs = self._noted(args), self._noted(kwargs)
        written = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(named[argument.name])
        ]
        for tensor in written:
            if _memory(tensor) not in self._made:
                raise RecordError(f"{func} writes to a tensor that the function did not make")
            self._written.add(_memory(tensor))
        result = func(*args, **kwargs)
        if func in SHAPE_ONLY:
            is_varying = False
        made = _tensors(result)
        if not made and not written:
            if is_varying:
                raise RecordError(f"{func} hands out a value, which can be branched on")
            return result
        node = self._recording.graph.call_function(func, node_args, node_kwargs)
        self._recording.values[node] = result
        if is_varying:
            self._varying |= {_memory(tensor) for tensor in (*made, *written)}
        known = {_memory(tensor) for tensor in given}
        self._made |= {_memory(tensor) for tensor in made} - known
        if isinstance(result, Tensor):
            self._keep(result, node)
        else:
            for i, part in enumerate(result if isinstance(result, list | tuple) else ()):
                if isinstance(part, Tensor):
                    getter = self._recording.graph.call_function(_getitem, (node, i))
                    self._keep(part, getter)
        return result

    def end(self, outputs: Sequence[Tensor]) -> Recording:
        """The recording of the function that gave `outputs`."""
        recording = self._recording
        recording.graph.output(tuple(self._node(output) for output in outputs))
        for node, value in recording.values.items():
            memories = {_memory(tensor) for tensor in _tensors(value)}
            if memories & self._varying:
                recording.varying.add(node)
            if memories & self._written:
                recording.mutated.add(node)
        return recording

    def _check(self, func: Any, given: dict[str, Any], is_varying: bool) -> None:
        # Attention is tagged as random, for its dropout.
        is_sure = given.get("dropout_p") == 0
        if torch.Tag.nondeterministic_seeded in func.tags and not is_sure:
            raise RecordError(f"{func} draws noise of its own")
        is_open = torch.Tag.dynamic_output_shape in func.tags
        if func is aten.index.Tensor:  # By numbers its shape is known, by a mask it is not.
            is_open = any(index.dtype in MASKS for index in _tensors(given["indices"]))
        if is_varying and is_open:
            raise RecordError(f"the shape that {func} gives depends on a value")

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self._kept.append(tensor)
        self._nodes[_place(tensor)] = node
        self._recording.values[node] = tensor

    def _noted(self, value: Any) -> Any:
        """An argument with the nodes of its tensors in their place."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, list | tuple):
            return type(value)(self._noted(entry) for entry in value)
        if isinstance(value, dict):
            return {name: self._noted(entry) for name, entry in value.items()}
        return value

    def _node(self, tensor: Tensor) -> fx.Node:
        place = _place(tensor)
        if place not in self._nodes:
            if _memory(tensor) in self._made:
                raise RecordError(f"a tensor of shape {list(tensor.shape)} cannot be followed")
            graph = self._recording.graph
            last = next(n for n in reversed(graph.nodes) if n.op == "placeholder")
            with graph.inserting_after(last):
                node = graph.placeholder(f"constant_{len(self._recording.constants)}")
            self._recording.constants[node] = tensor
            self._keep(tensor, node)
        return self._nodes[place]


def _getitem(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]
