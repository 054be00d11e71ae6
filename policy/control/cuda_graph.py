"""A call captured as one CUDA graph: inputs into fixed memory, one launch, results out.

    host    pinned input  .                                   .  pinned results
    device  .             copy  encoder, all calls, scaling   copy  .
            |------------------- one graph launch ------------|

What changes between calls enters as memory that stays where it is: host inputs (observations) by a
pinned copy within the graph, device inputs (carry, noise) by a copy before it. Results that are
waited for leave by a pinned copy within the graph; the others stay on the device.

Sources: the CUDA graph notes of PyTorch's documentation (warm-up on a side stream, one private pool
per graph, no allocation whose address counts outside of it).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from policy.control.engine import Call, UnavailableError

WARM_UP = 3  # calls before the capture: libraries allocate their workspaces, kernels are tuned


class GraphDevice(Protocol):
    """What is needed of a device that captures."""

    def fixed(self, like: Tensor) -> Tensor:
        """Memory of the device that stays where it is, with what a tensor holds."""
        ...

    def pinned(self, like: Tensor) -> Tensor:
        """Memory of the host that the device copies from and to by itself."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats the function's work on the device, on the same memory.

        Raises:
            UnavailableError: the device or its driver cannot.
        """
        ...

    def wait(self) -> None:
        """Until all work that was begun is done."""
        ...


class Captured:
    """A call whose work on the device is one launch.

    Args:
        call: of tensors on the device; it neither waits nor branches on a value.
        examples: inputs of one call; those on the host enter through pinned memory.
        device: captures.
        n_waited: first results that are waited for and come to the host.

    Raises:
        UnavailableError: it cannot be captured.
    """

    def __init__(
        self, call: Call, examples: Sequence[Tensor], device: GraphDevice, *, n_waited: int
    ):
        self._device, self._n_waited = device, n_waited
        self._given = [given.device.type == "cpu" for given in examples]
        self._pinned = [
            device.pinned(given) if on_host else None
            for given, on_host in zip(examples, self._given, strict=True)
        ]
        self._inputs = [device.fixed(given) for given in examples]
        self._results: list[Tensor] = []
        self._out: list[Tensor] = []

        def work() -> None:
            for pinned, fixed in zip(self._pinned, self._inputs, strict=True):
                if pinned is not None:
                    fixed.copy_(pinned, non_blocking=True)
            # The names keep the results' memory: a graph's pool may use it again otherwise.
            self._results = list(call(*self._inputs))
            if not self._out:
                self._out = [device.pinned(result) for result in self._results[:n_waited]]
            for out, result in zip(self._out, self._results[:n_waited], strict=True):
                out.copy_(result, non_blocking=True)

        work()  # Makes the pinned memory of the results, which must not be made in a capture.
        self._replay, self._is_running = device.capture(work), False

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The results; those that are waited for on the host, the others on the device."""
        if self._is_running:  # The last call was interrupted.
            self._device.wait()
        for given, pinned, fixed in zip(inputs, self._pinned, self._inputs, strict=True):
            (fixed if pinned is None else pinned).copy_(given, non_blocking=pinned is None)
        self._is_running = True
        self._replay()
        # Copies, since the next call writes to the same memory. On the device they are made behind
        # the graph, and nobody waits for them.
        staying = [result.clone() for result in self._results[self._n_waited :]]
        self._device.wait()
        self._is_running = False
        return [*(out.clone() for out in self._out), *staying]


class Cuda:
    """CUDA graphs of one device.

    Args:
        device: such as cuda:0.
    """

    def __init__(self, device: torch.device):
        self._device = device

    def fixed(self, like: Tensor) -> Tensor:
        """A copy on the device."""
        return like.to(self._device, copy=True)

    def pinned(self, like: Tensor) -> Tensor:
        """A copy in page-locked memory of the host."""
        return torch.empty_like(like, device="cpu", pin_memory=True).copy_(like)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """The replay of a graph; see `GraphDevice.capture`."""
        try:
            with torch.cuda.device(self._device), torch.no_grad():
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UP):
                        function()
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    function()
        except RuntimeError as error:  # Of the driver, or of an operation that a graph cannot hold.
            raise UnavailableError(
                f"it cannot be captured as a CUDA graph on {self._device} "
                f"({str(error).splitlines()[0]}): use engine=compile or engine=eager"
            ) from error
        return graph.replay

    def wait(self) -> None:
        """Until the current stream is done."""
        torch.cuda.current_stream(self._device).synchronize()
