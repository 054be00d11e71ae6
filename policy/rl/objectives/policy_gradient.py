"""Policy gradient on the steps of a chain, clipped as in PPO: DPPO, and GRPO with its advantages.

    L = -mean[ w_k min(r A, clip(r, 1 - e_k, 1 + e_k) A) ] + kl_weight KL_k,   r = p / p_old

Sources: Ren et al. 2024, DPPO, arXiv:2409.00588, equations 4.4 and 5.1, appendix C; Schulman et al.
2017, PPO, arXiv:1707.06347, equation 7; the closed form of the divergence as in Liu et al. 2025,
Flow-GRPO, arXiv:2505.05470, equation 11.

Differences from DPPO:

1. A decision is a (chunk, step) pair, and a minibatch is drawn from all pairs.
2. The ratio is that of the joint density of the counted actions. DPPO takes the mean over their
   elements: its clip of 0.01 with 28 elements is one of 0.28 here.
3. What holds the policy to the one it was tuned from is the divergence of their steps, in closed
   form, in place of a likelihood of chains that the old policy draws.
4. Log-probabilities are not clamped, which would take the gradient of the likeliest steps away.

Shape legend: `M` pairs of a minibatch, `Tp` actions of a chunk, `Da` action size, `C` condition
size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.likelihood import step_entropy, step_kl
from policy.rl.chain import Kernel
from policy.rl.objectives.objective import Items, Prepared, Terms
from policy.rl.rollout import Rollout
from policy.types import ChunkSpace, Denoiser, Generator


@dataclass(frozen=True)
class PolicyGradient:
    """The clipped surrogate over the decisions of chains.

    Args:
        clip: e of the last step.
        clip_noisiest: e of the chain's first step; in between it grows exponentially.
        gamma_denoising: weight of a step for each step that is yet to come.
        kl_weight: of the divergence from the policy that was tuned from; 0 does not compute it.

    Raises:
        ValueError: a number is out of range.
    """

    clip: float = 0.2
    clip_noisiest: float = 0.2
    gamma_denoising: float = 1.0
    kl_weight: float = 0.0
    is_signed = True

    def __post_init__(self):
        for name in ("clip", "clip_noisiest"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, it must be in 0..1")
        if not 0 < self.gamma_denoising <= 1:
            raise ValueError(
                f"objective.gamma_denoising is {self.gamma_denoising}, it must be in 0..1"
            )
        if not self.kl_weight >= 0:
            raise ValueError(f"objective.kl_weight is {self.kl_weight}, it must be at least 0")

    def check(self, space: ChunkSpace) -> None:
        """Nothing: its levels are the chain's."""

    def n_items(self, rollout: Rollout) -> int:
        """Decisions of a chunk."""
        return len(rollout.decided)

    def prepare(
        self, denoiser: Denoiser, rollout: Rollout, *, kernel: Kernel, generator: Generator
    ) -> Prepared:
        """Nothing: the "log_prob" [T, N, K] of the rollout are those before the update."""
        return {"log_prob": rollout.log_prob}

    def __call__(
        self, denoiser: Denoiser, reference: Denoiser | None, items: Items, *, kernel: Kernel
    ) -> Terms:
        """Sums over a minibatch of decisions."""
        step = items.rollout.decided[items.number]
        x, x_next = items.chunk(items.number), items.chunk(items.number + 1)
        mean, std = kernel.moments(denoiser, x, items.cond, step)
        counted = kernel.counted(items.executed, step)
        log_prob = (kernel.log_prob(x_next, mean, std, step=step) * counted).sum(dim=-1)
        log_ratio = log_prob - items.before("log_prob")
        ratio = log_ratio.exp()
        clip = self.clips(kernel.n_steps).to(ratio)[step]
        advantage = items.advantage * self.gamma_denoising ** (kernel.n_steps - 1 - step)
        clipped = torch.minimum(torch.maximum(ratio, 1 - clip), 1 + clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        loss = -surrogate
        judged = kernel.judged_std(std.detach(), step)
        metrics = {
            "kl": ratio - 1 - log_ratio,  # Schulman, "Approximating KL divergence", 2020: k3.
            "clipped": ((ratio - 1).abs() > clip).to(ratio),
            "ratio": ratio,
            "entropy": (step_entropy(judged, action_size=x.shape[-1]) * counted).sum(dim=-1),
        }
        if self.kl_weight and reference is not None:
            with torch.no_grad():
                other, _ = kernel.moments(reference, x, items.cond, step)
            divergence = (step_kl(mean, other, judged) * counted).sum(dim=-1)
            loss = loss + self.kl_weight * divergence
            metrics["kl_to_start"] = divergence
        return Terms.of(loss, metrics)

    def clips(self, n_steps: int) -> Tensor:
        """Clip range [K] of each step; exponential as in DPPO, with its rate of 3."""
        place = torch.arange(n_steps) / max(1, n_steps - 1)
        share = (torch.exp(3 * place) - 1) / (math.exp(3) - 1)
        if n_steps == 1:
            share = torch.ones(1)
        return self.clip_noisiest + (self.clip - self.clip_noisiest) * share
