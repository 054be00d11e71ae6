"""What surrounds the capture, with a device whose replay is the work done again."""

import pytest
import torch

from policy.control.cuda_graph import Captured, Cuda
from policy.control.engine import UnavailableError


class FakeDevice:
    """Keeps count; what it captures, it runs again."""

    def __init__(self):
        self.n_pinned = self.n_waits = self.n_captured = 0
        self.is_capturing = False

    def fixed(self, like):
        assert not self.is_capturing
        return like.clone()

    def pinned(self, like):
        assert not self.is_capturing, "memory of the host must not be made in a capture"
        self.n_pinned += 1
        return torch.empty_like(like).copy_(like)

    def capture(self, function):
        self.n_captured += 1
        self.is_capturing = True
        function()
        self.is_capturing = False
        return function

    def wait(self):
        self.n_waits += 1


def test_replays_give_the_call_for_new_inputs():
    device = FakeDevice()
    captured = Captured(
        lambda a, b: [a + b, a * b, a - b], [torch.ones(2), torch.ones(2)], device, n_waited=2
    )
    for a, b in ((2.0, 3.0), (5.0, -1.0)):
        total, product, difference = captured(torch.full((2,), a), torch.full((2,), b))
        assert total.tolist() == [a + b] * 2
        assert product.tolist() == [a * b] * 2
        assert difference.tolist() == [a - b] * 2
    assert device.n_captured == 1
    assert device.n_waits == 2
    assert device.n_pinned == 4  # two inputs, two results that are waited for


def test_results_stay_as_they_were_in_later_calls():
    captured = Captured(lambda a: [2 * a, 3 * a], [torch.ones(1)], FakeDevice(), n_waited=1)
    first = captured(torch.tensor([1.0]))
    captured(torch.tensor([10.0]))
    assert [result.item() for result in first] == [2, 3]


def test_a_carry_can_be_fed_back():
    captured = Captured(lambda a: [a.sum(), a + 1], [torch.zeros(2)], FakeDevice(), n_waited=1)
    carry = torch.zeros(2)
    for n in range(3):
        total, carry = captured(carry)
        assert total.item() == 2 * n


def test_what_an_interrupted_call_left_running_is_waited_for():
    class Late(FakeDevice):
        """Reads its inputs when it is waited for, and not before."""

        replay = None

        def capture(self, function):
            replay = super().capture(function)

            def launch():
                assert self.replay is None
                self.replay = replay

            return launch

        def wait(self):
            super().wait()
            if self.n_waits == 1:
                raise KeyboardInterrupt
            assert self.replay is not None
            self.replay()
            self.replay = None

    device, seen = Late(), []
    captured = Captured(
        lambda a: [seen.append(a.item()) or a], [torch.zeros(())], device, n_waited=1
    )
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        captured(torch.tensor(1.0))
    assert captured(torch.tensor(2.0))[0] == 2
    assert seen == [1, 2]


def test_without_cuda_a_capture_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(UnavailableError, match="cannot be captured as a CUDA graph on cuda:0"):
        Cuda(torch.device("cuda:0")).capture(lambda: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_graph_of_the_gpu_gives_the_call():
    device = torch.device("cuda:0")
    weight = torch.randn(4, 4, device=device)
    captured = Captured(
        lambda seen, x: [seen @ weight + x, x + 1],
        [torch.zeros(4, 4), torch.zeros(4, 4, device=device)],
        Cuda(device),
        n_waited=1,
    )
    x = torch.zeros(4, 4, device=device)
    for _ in range(3):
        seen = torch.randn(4, 4)
        out, moved = captured(seen, x)
        torch.testing.assert_close(out, (seen.to(device) @ weight + x).cpu())
        assert torch.equal(moved, x + 1)
        x = moved
