"""A recorded function of tensors, made smaller, and run again without Python's part in it.

What does not depend on the inputs is computed once, equal operations are done once, choices whose
outcome is known are made, and what nobody needs is left out: the results stay the same bit for bit.

A network's matrices may be held in 16 bits (`with_weights`): that halves the memory that is read
per call and changes results within the dtype's rounding.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from policy.control.recorder import Recording, _getitem, _memory, _place, _tensors, record

aten = torch.ops.aten

# Faster ways to the same kernels, where the arguments mean the same.
PLAIN: Mapping[Any, Callable] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.where.self: torch.where,
    aten.cat.default: torch.cat,
    aten.addmm.default: torch.addmm,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.silu.default: torch.nn.functional.silu,
    _getitem: operator.getitem,
}

# Operators with a matrix of weights -> the places of input, weight and bias among the arguments.
MATRICES: Mapping[Any, tuple[int, int, int | None]] = {
    aten.addmm.default: (1, 2, 0),
    aten.mm.default: (0, 1, None),
    aten.bmm.default: (0, 1, None),
    aten.convolution.default: (0, 1, 2),
}


class Program(nn.Module):
    """Operations over tensors, and their constants.

    Args:
        graph: with placeholders for the inputs, then for the constants.
        constants: in that order.
        n_inputs: how many inputs there are.
    """

    def __init__(self, graph: fx.Graph, constants: Sequence[Tensor], n_inputs: int):
        super().__init__()
        self.n_inputs, self.n_constants = n_inputs, len(constants)
        for i, constant in enumerate(constants):
            self.register_buffer(f"constant_{i}", constant)
        self.body = fx.GraphModule({}, graph)

    @property
    def constants(self) -> list[Tensor]:
        """Of the placeholders after those of the inputs, in order."""
        return [self.get_buffer(f"constant_{i}") for i in range(self.n_constants)]

    @property
    def operations(self) -> list[Any]:
        """What is called, in order."""
        return [node.target for node in self.body.graph.nodes if node.op == "call_function"]

    def uses(self, i: int) -> bool:
        """Whether any result depends on the i-th input."""
        return bool([n for n in self.body.graph.nodes if n.op == "placeholder"][i].users)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results for other inputs of the recorded shapes and dtypes."""
        return self.body(*inputs, *self.constants)

    def quick(self, plain: Mapping[Any, Callable] = PLAIN) -> Callable[..., tuple[Tensor, ...]]:
        """The same as a function that loses the least time between two operations.

        Args:
            plain: operator -> function that does the same.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.body.graph, {}))
        for node in graph.nodes:
            if node.op == "call_function":
                node.target = {**PLAIN, **plain}.get(node.target, node.target)
        run, constants = fx.GraphModule({}, graph).forward, self.constants

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return run(*inputs, *constants)

        return call


def program_of(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Program:
    """The program of a function, as small as it can be without changing a result.

    Args:
        function: of as many tensors, to a sequence of tensors.
        inputs: examples.

    Raises:
        RecordError: it cannot be recorded (`policy.control.recorder.record`).
    """
    recording = record(function, inputs)
    _drop_what_does_nothing(recording)
    _merge_equals(recording)
    _fold(recording)
    _choose(recording)
    _merge_equals(recording)
    _drop_unused(recording)
    return _program(recording, len(inputs))


# Place of a constant, dtype -> the constant, whose place is taken as long as it is kept, and its
# form in that dtype.
Narrowed = dict[tuple, tuple[Tensor, Tensor]]


def with_weights(program: Program, dtype: torch.dtype, known: Narrowed | None = None) -> Program:
    """A program whose constant matrices are of another dtype, as are the products with them.

    Sums of products and all that lies between two matrices stay as they were.

    Args:
        program: in fp32.
        dtype: torch.bfloat16 or torch.float16.
        known: weights of other programs, which share them; those of this one are added.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.body.graph, {}))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    held = dict(zip(placeholders[program.n_inputs :], program.constants, strict=True))
    matrices = {node for node, value in held.items() if value.dtype == torch.float32}
    narrowed: set[fx.Node] = set()  # products
    known = {} if known is None else known
    for node in list(graph.nodes):
        places = MATRICES.get(node.target)
        if places is None or node.args[places[1]] not in matrices:
            continue
        narrowed.add(node)
        wanted, args = node.meta.get("dtype", torch.float32), list(node.args)
        for place in places:
            if place is None or not isinstance(args[place], fx.Node):
                continue
            if args[place] in matrices:
                held[args[place]] = _narrow(held[args[place]], dtype, known)
                continue
            with graph.inserting_before(node):
                args[place] = graph.call_function(
                    aten._to_copy.default, (args[place],), {"dtype": dtype}
                )
        node.args = tuple(args)
        with graph.inserting_after(node):
            back = graph.call_function(aten._to_copy.default, (node,), {"dtype": wanted})
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
    _keep_others_wide(graph, held, matrices, narrowed)
    return Program(graph, list(held.values()), program.n_inputs)


def _narrow(constant: Tensor, dtype: torch.dtype, known: Narrowed) -> Tensor:
    key = (_place(constant), dtype)
    if key not in known:
        known[key] = (constant, constant.to(dtype))
    return known[key][1]


def _keep_others_wide(
    graph: fx.Graph,
    held: dict[fx.Node, Tensor],
    matrices: set[fx.Node],
    narrowed: set[fx.Node],
) -> None:
    """Widen a narrowed constant again where something else than a narrowed product takes it."""
    for constant in matrices:
        if held[constant].dtype == torch.float32:
            continue
        for user in list(constant.users):
            if user in narrowed:
                continue
            with graph.inserting_before(user):
                wide = graph.call_function(
                    aten._to_copy.default, (constant,), {"dtype": torch.float32}
                )
            user.replace_input_with(constant, wide)


def _drop_what_does_nothing(recording: Recording) -> None:
    """Leave out views of a whole tensor."""
    for node in list(recording.graph.nodes):
        value = recording.values.get(node)
        if node.op != "call_function" or node in recording.mutated or not isinstance(value, Tensor):
            continue
        for given in node.all_input_nodes:
            held = recording.values[given]
            if isinstance(held, Tensor) and _place(held) == _place(value):
                node.replace_all_uses_with(given)
                break


def _fold(recording: Recording) -> None:
    """Make constants of what does not depend on the inputs."""
    graph = recording.graph
    # Views of what was there before, such as a transposed weight, need no memory of their own.
    before = {_memory(constant) for constant in recording.constants.values()}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    last = placeholders[-1]
    for node in list(graph.nodes):
        value = recording.values.get(node)
        if node.op != "call_function" or node in recording.varying | recording.mutated:
            continue
        if not isinstance(value, Tensor):
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"folded_{len(recording.constants)}")
        kept = value if _memory(value) in before else value.clone()
        recording.constants[last] = recording.values[last] = kept
        node.replace_all_uses_with(last)


def _choose(recording: Recording) -> None:
    """Take the branch of a choice that is the same whatever the inputs are."""
    for node in list(recording.graph.nodes):
        if node.target is not aten.where.self or node in recording.mutated:
            continue
        condition = recording.constants.get(node.args[0])
        if condition is None:
            continue
        for branch, is_taken in ((node.args[1], condition), (node.args[2], ~condition)):
            if branch in recording.mutated:  # It may hold something else by the time of its use.
                continue
            taken, value = recording.values[branch], recording.values[node]
            if is_taken.all() and taken.shape == value.shape and taken.dtype == value.dtype:
                node.replace_all_uses_with(branch)
                break


def _merge_equals(recording: Recording) -> None:
    """Do once what is done several times with the same arguments."""
    known: dict[Any, fx.Node] = {}
    constants: dict[Any, fx.Node] = {}
    for node in list(recording.graph.nodes):
        if node in recording.constants:
            key: Any = _content(recording.constants[node])
            first = constants.setdefault(key, node)
        elif node.op == "call_function" and node not in recording.mutated:
            if any(given in recording.mutated for given in node.all_input_nodes):
                continue
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
            first = known.setdefault(key, node)
        else:
            continue
        if first is not node:
            node.replace_all_uses_with(first)


def _content(constant: Tensor) -> Any:
    """Equal for constants that are the same; large ones only if they are one and the same."""
    if constant.numel() > 4096:
        return id(constant)
    values = constant.detach().cpu().contiguous().flatten().view(torch.uint8)
    return (
        constant.dtype,
        tuple(constant.shape),
        constant.stride(),
        str(constant.device),
        values.numpy().tobytes(),
    )


def _hashable(value: Any) -> Any:
    """An argument as something that can be looked up; 1, 1.0 and True are not the same."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(entry) for entry in value)
    if isinstance(value, Mapping):
        return tuple((name, _hashable(entry)) for name, entry in sorted(value.items()))
    return (type(value), repr(value) if isinstance(value, float) else value)


def _drop_unused(recording: Recording) -> None:
    for node in reversed(list(recording.graph.nodes)):
        is_input = node.op == "placeholder" and node not in recording.constants
        if node.op == "output" or is_input or node.users or node in recording.mutated:
            continue
        recording.graph.erase_node(node)
        recording.constants.pop(node, None)


def _program(recording: Recording, n_inputs: int) -> Program:
    placeholders = [node for node in recording.graph.nodes if node.op == "placeholder"]
    constants = [recording.constants[node] for node in placeholders[n_inputs:]]
    for node in recording.graph.nodes:
        tensors = _tensors(recording.values.get(node))
        if tensors:
            node.meta["dtype"] = tensors[0].dtype
    return Program(recording.graph, constants, n_inputs)
