"""Several processes that learn together: what is summed over all of them.

Each rank steps its own environments. Whatever is a mean over all of them (gradients, statistics of
advantages and rewards) is a sum over the ranks divided by a count over the ranks, so that two ranks
give the update of one rank with twice the environments.
"""

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

    def sum_gradients(self, module: nn.Module) -> None:
        """Give every parameter the sum of its gradients over all ranks."""
        if self.size == 1:
            return
        learning = [p for p in module.parameters() if p.requires_grad]
        # A rank without samples in this batch has no gradients, and takes part all the same.
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        for p, total in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
            p.grad = total.view_as(p)

    def agree(self, value: float) -> float:
        """Rank 0's number, on all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return float(tensor)


def join() -> Ranks:
    """This process among those that `torchrun` started; alone where it did not."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
