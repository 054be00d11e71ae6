"""Forms of a training step: the same gradients up to rounding, found in less time.

- "plain": PyTorch as it is; the reference.
- "fast": the network's own form for training (`training_form()`), where it has one.
- "compiled": encoder and network by `torch.compile`; takes minutes before the first step.
- "graph": forward and backward captured once in a CUDA graph and replayed.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from policy.lesson import Lesson
from policy.model import DiffusionPolicy

FORMS = ("plain", "fast", "compiled", "graph")
WARM_UP = 3  # calls before a capture, in which libraries set themselves up

# Adds the gradients of a lesson to those of the parameters; returns its loss.
Learn = Callable[[Lesson], Tensor]


def learner(policy: DiffusionPolicy, form: str) -> DiffusionPolicy:
    """A policy of the same parameters, in the form that learns.

    Raises:
        ValueError: there is no such form, or not of this network or on this device.
        policy.nets.compiled.CompileError: the form needs a C++ compiler and there is none.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, choose one of auto, {', '.join(FORMS)}")
    device = next(policy.parameters()).device
    if form == "fast":
        make = getattr(policy.net, "training_form", None)
        if make is None or device.type != "cpu":
            raise ValueError(
                f"form=fast is for networks that have it, on the CPU: "
                f"{type(policy.net).__name__} on {device.type} has none, give form=plain or auto"
            )
        return _with(policy, net=make())
    if form == "compiled":
        # Not the policy as a whole, which looks at names and shapes of what it is given.
        return _with(
            policy,
            encoder=_compiled(policy.encoder),
            net=_compiled(policy.net),
        )
    if form == "graph" and device.type != "cuda":
        raise ValueError(f"form=graph is a CUDA graph, the device is {device.type}: give form=auto")
    return policy


def _compiled(part: nn.Module) -> nn.Module:
    """A part that is compiled in its first call, of the same parameters."""
    compiled = torch.compile(part, dynamic=False)
    assert isinstance(compiled, nn.Module)
    return compiled


def _with(policy: DiffusionPolicy, **parts: nn.Module) -> DiffusionPolicy:
    """A policy with some parts replaced; the others are the same modules, not copies."""
    other = copy.copy(policy)
    other._modules = {**policy._modules, **parts}
    return other


class Captured:
    """Forward and backward of one lesson as a CUDA graph, which lessons of its shapes go through.

    Gradients are added in place: between steps they have to be set to zero, and never to None.

    Args:
        learn: adds gradients; called a few times, whose gradients are set to zero.
        example: a lesson on the device.
        parameters: whose gradients they are.

    Raises:
        ValueError: the step cannot be captured, such as one that waits for the device.
    """

    def __init__(self, learn: Learn, example: Lesson, parameters: Sequence[nn.Parameter]):
        self._lesson = _map(example, torch.clone)
        try:
            self._capture(learn)
        except RuntimeError as error:
            raise ValueError(
                f"form=graph cannot be had: the step cannot be captured ({error}); give form=plain"
            ) from error
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _capture(self, learn: Learn) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                learn(self._lesson)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = learn(self._lesson)

    def __call__(self, lesson: Lesson) -> Tensor:
        """Add the gradients of a lesson; returns its loss, valid until the next call."""
        for place, value in zip(_tensors(self._lesson), _tensors(lesson), strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._loss


def _map(lesson: Lesson, change: Callable[[Tensor], Tensor]) -> Lesson:
    """A lesson with all of its tensors changed."""
    n = lesson.noised
    noised = replace(
        n,
        x0=change(n.x0),
        x=change(n.x),
        sigma=change(n.sigma),
        weight=change(n.weight),
        count=change(n.count),
    )
    features = {name: change(values) for name, values in lesson.features.items()}
    return Lesson(features, noised, lesson.draws)


def _tensors(lesson: Lesson) -> list[Tensor]:
    """All tensors of a lesson, in an order of their own."""
    tensors: list[Tensor] = []
    _map(lesson, lambda value: tensors.append(value) or value)
    return tensors
