"""Several processes that learn together: what is summed over all of them.

Each rank steps its own environments, or learns its share of a batch. Whatever is a mean over all of
them (gradients, statistics of advantages) is a sum over the ranks divided by a count over the
ranks, so that two ranks give the update of one rank with twice as much. What one rank alone notices
(numbers that are none, a wish to stop) is told to all before any of them acts on it, or the others
would wait for ever.

Shape legend: `T` chunks in a row, `N` environments of a rank.
"""

import gc
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among others.

    Args:
        rank: of this one, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on any rank."""
        return bool(self.sum(torch.tensor(int(flag))))

    def side_by_side(self, mask: Tensor) -> Tensor:
        """The masks [T, N] of all ranks as one [T, N * size]."""
        t, n = mask.shape
        everywhere = mask.new_zeros((t, n * self.size), dtype=torch.int32)
        everywhere[:, self.rank * n : (self.rank + 1) * n] = mask
        return self.sum(everywhere).bool()

    def sum_gradients(self, module: nn.Module) -> None:
        """Give every parameter the sum of its gradients over all ranks.

        One without a gradient on any rank stays so: an optimiser leaves it alone.
        """
        if self.size == 1:
            return
        learning = [p for p in module.parameters() if p.requires_grad]
        # A rank without samples in this batch has no gradients, and takes part all the same.
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        # On the host, so that nobody waits for a device.
        n_with = self.sum(torch.tensor([p.grad is not None for p in learning], dtype=torch.int32))
        totals = flat.split([p.numel() for p in learning])
        for p, total, n in zip(learning, totals, n_with.tolist(), strict=True):
            if n == 0:
                continue
            if p.grad is None:
                p.grad = total.view_as(p)
            else:  # In place, where a captured graph adds to it.
                p.grad.copy_(total.view_as(p))

    def agree(self, value: float) -> float:
        """Rank 0's number, on all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return float(tensor)

    def leave(self) -> None:
        """Wait for the others, and part; whoever goes while others listen may bring them down."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()
            # What still refers to the group would end it with the interpreter, and abort.
            gc.collect()


def join() -> Ranks:
    """This process among those that `torchrun` started; alone where it did not.

    Each process has a GPU of its own, as "cuda", where there are enough.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks()
    n_local, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if n_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % n_gpus)
    if not dist.is_initialized():
        # NCCL speaks of GPUs only, and refuses two processes on one.
        dist.init_process_group("cpu:gloo,cuda:nccl" if n_gpus >= n_local else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
