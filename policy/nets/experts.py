"""A mixture of experts as the feed-forward layer of a transformer, routed by the noise level alone.

Source: Reuss et al. 2024, Mixture-of-Denoising-Experts (MoDE), arXiv:2412.12953, section 4. The
shared expert is that of their ablation; the diffusion prior of Switch-DiT is in `expert_usage`.

In training a token's experts are drawn without replacement with the router's probabilities; else
they are the most probable ones. The logits of the chosen ones give their weights, which sum to 1.

Since routing needs the noise levels only, `at` does it before the denoising loop. What remains is
the chosen experts side by side, one layer of k times the hidden features, made of strided views of
the weights: no grid of levels costs memory. It saves the router and the sorting of tokens; the
multiply-adds of the experts, most of the layer, are those of k experts either way. Tokens of one
choice are computed together, so that a prefix, which has no level, may ask for experts of its own.

A network may tell the router more by adding it to the embeddings of the levels, as the MLP does
with the condition (`layers_see_cond`); it then does without `at`.

Differences from the paper:

1. The level is that of a token: in one chunk the experts may differ from action to action.
2. Experts are drawn by adding Gumbel noise to the logits, which gives the distribution of a
   multinomial draw without replacement (Kool et al. 2019, arXiv:1903.06059) without asking the
   device whether the probabilities are valid.
3. The load balancing penalty takes the full softmax, as the paper's equation 9, not the weights of
   the chosen experts, and is divided by k: it is 1 where the load is balanced.
4. The published cache holds copies of the experts for each level, found by the mean of the
   embedding; here levels are bound once by `at`, and nothing is copied.

With `top_k` 1 the weight of the expert is 1 whatever the logits are, so that only the penalties
teach the router.

Shape legend: `B` batch, `S` tokens of a sequence, `M` tokens of all samples, `D` token size, `N`
experts, `k` chosen ones, `H` hidden features of an expert.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.nets.attention import (
    INIT_STD,
    SwiGLUFeedForward,
    check_dropout,
    check_whole,
    hidden_size,
    initialise,
)


class Experts(nn.Module):
    """SwiGLU layers of which each token uses a few, as its noise level says."""

    def __init__(
        self,
        *,
        size: int,
        n_experts: int = 4,
        top_k: int = 2,
        expansion: float = 4.0,
        dropout: float = 0.0,
        balance: float = 0.01,
        z_loss: float = 0.0,
        shared: bool = False,
    ):
        """A mixture of experts.

        Args:
            size: D.
            n_experts: N.
            top_k: k, experts of a token, in 1..N.
            expansion: hidden features of an expert per feature of a token.
            dropout: of the hidden features, in training.
            balance: weight of the penalty on unequal load.
            z_loss: weight of the penalty on large logits.
            shared: whether there is one expert more, which every token uses with weight 1.

        Raises:
            ValueError: there are not `top_k` experts to choose, or a number is out of range.
        """
        super().__init__()
        check_whole(n_experts=n_experts)
        check_dropout(dropout=dropout)
        for name, weight in {"balance": balance, "z_loss": z_loss}.items():
            if not (isinstance(weight, int | float) and 0 <= weight < float("inf")):
                raise ValueError(f"{name} is {weight!r}, it must be a number of at least 0")
        if type(top_k) is not int or not 1 <= top_k <= n_experts:
            raise ValueError(
                f"top_k is {top_k!r} and n_experts is {n_experts}: a token uses at least one "
                f"expert and at most all of them, set top_k to 1..{n_experts} or change n_experts"
            )
        hidden = hidden_size(expansion, size)
        self.top_k, self.dropout, self.balance, self.z_loss = top_k, dropout, balance, z_loss
        self.up = nn.Parameter(torch.empty(n_experts, 2 * hidden, size))  # Values, then gates.
        self.down = nn.Parameter(torch.empty(n_experts, hidden, size))
        nn.init.normal_(self.up, std=INIT_STD)
        nn.init.normal_(self.down, std=INIT_STD)
        self.router = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, n_experts)
        )
        initialise(self.router)
        self.shared = (
            SwiGLUFeedForward(size=size, expansion=expansion, dropout=dropout) if shared else None
        )

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        """Tokens [B, S, D] from tokens and the embeddings [B, S, D] of their levels."""
        experts, weights = self._choose(self.logits(noise), is_drawn=self.training)
        mix = mix_sorted if can_sort(h, self.down) else mix_all
        out = mix(
            h.flatten(0, 1),
            self.up,
            self.down,
            experts=experts.flatten(0, 1),
            weights=weights.flatten(0, 1),
            dropout=self.dropout if self.training else 0.0,
        ).view_as(h)
        return out if self.shared is None else out + self.shared(h, noise)

    def at(self, noise: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer for tokens of given levels in evaluation: f(h [B, S, D]) -> [B, S, D].

        Which experts are used is asked of the device here, and not again when f is called.

        Args:
            noise: [S, D] embeddings of the levels, the same in all samples.
        """
        experts, weights = self._choose(self.logits(noise), is_drawn=False)
        experts, order = experts.sort(dim=-1)
        weights = weights.gather(-1, order)
        choices, group = experts.unique(dim=0, return_inverse=True)
        rows = [(group == i).nonzero()[:, 0] for i in range(len(choices))]
        fused = [
            Fused(self.up, self.down, choice, weights[tokens])
            for choice, tokens in zip(choices.tolist(), rows, strict=True)
        ]
        back = torch.cat(rows).argsort()

        def mix(h: Tensor) -> Tensor:
            if len(fused) == 1:
                out = fused[0](h)
            else:
                parts = [f(h[:, tokens]) for f, tokens in zip(fused, rows, strict=True)]
                out = torch.cat(parts, dim=1)[:, back]
            return out if self.shared is None else out + self.shared(h, noise)

        return mix

    def penalty(self, noise: Tensor) -> Tensor:
        """Weighted penalties of unequal load and of large logits, a scalar; 0 in evaluation.

        The load is unequal by N / k times the sum over the experts of mean probability times share
        of the tokens that draw it: 1 where all are alike, N / k where k take all. The draw is not
        that of `forward`, but has the same distribution.

        Args:
            noise: [B, S, D] embeddings of the levels of the batch.
        """
        if not self.training or self.balance == self.z_loss == 0:
            return noise.new_zeros(())
        logits = self.logits(noise).flatten(0, -2)
        experts, _ = self._choose(logits, is_drawn=True)
        fractions = torch.zeros_like(logits).scatter(1, experts, 1.0).mean(dim=0)  # Sum to k.
        mean_probabilities = logits.softmax(dim=-1).mean(dim=0)
        load = logits.shape[-1] / self.top_k * (mean_probabilities * fractions).sum()
        return self.balance * load + self.z_loss * logits.logsumexp(dim=-1).square().mean()

    def logits(self, noise: Tensor) -> Tensor:
        """Of the experts [..., N], for embeddings [..., D] of levels; in full precision."""
        logits = self.router(noise)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _choose(self, logits: Tensor, *, is_drawn: bool) -> tuple[Tensor, Tensor]:
        """Experts [..., k] and their weights, from logits [..., N]."""
        scores = logits
        if is_drawn:
            scores = logits - torch.empty_like(logits).exponential_().log()  # Gumbel noise.
        experts = scores.topk(self.top_k, dim=-1).indices
        return experts, logits.gather(-1, experts).softmax(dim=-1)


class Fused:
    """Experts that tokens share, side by side as one layer.

    Two entries of a tensor are always a strided view of it, so that experts are taken in pairs.
    """

    def __init__(self, up: Tensor, down: Tensor, experts: Sequence[int], weights: Tensor):
        """A layer.

        Args:
            up: [N, 2 H, D] values and gates of all experts.
            down: [N, H, D] of all experts.
            experts: k ascending indices.
            weights: [S, k] of each expert for each token.
        """
        pairs = [experts[i : i + 2] for i in range(0, len(experts), 2)]
        views = [slice(p[0], p[-1] + 1, max(1, p[-1] - p[0])) for p in pairs]
        self.parts = [(up[view].mT, down[view]) for view in views]
        self.weights = weights.mT[:, None, :, None].split(2)

    def __call__(self, h: Tensor) -> Tensor:
        """Tokens [B, S, D] from tokens."""
        outs = []
        for (up, down), weights in zip(self.parts, self.weights, strict=True):
            tokens = h.flatten(0, 1).expand(len(up), -1, -1)  # [2, B S, D]
            out = torch.bmm(swiglu(torch.bmm(tokens, up)), down)
            outs.append((weights * out.unflatten(1, h.shape[:2])).sum(dim=0))
        return torch.stack(outs).sum(dim=0) if len(outs) > 1 else outs[0]


def mix_all(
    h: Tensor, up: Tensor, down: Tensor, *, experts: Tensor, weights: Tensor, dropout: float = 0.0
) -> Tensor:
    """Tokens [M, D] from tokens, by a layer of all experts in which those not chosen weigh nothing.

    N / k times the multiply-adds of `mix_sorted`, but only two matrix products.

    Args:
        h: [M, D].
        up: [N, 2 H, D] values and gates.
        down: [N, H, D].
        experts: [M, k] chosen ones.
        weights: [M, k] of the chosen ones.
        dropout: of the hidden features.
    """
    n_experts = len(up)
    weight = weights.new_zeros(len(h), n_experts).scatter(1, experts, weights)
    hidden = swiglu(F.linear(h, up.flatten(0, 1)).unflatten(-1, (n_experts, -1)))
    hidden = F.dropout(hidden * weight[..., None], dropout)
    return hidden.flatten(1) @ down.flatten(0, 1)


def mix_sorted(
    h: Tensor, up: Tensor, down: Tensor, *, experts: Tensor, weights: Tensor, dropout: float = 0.0
) -> Tensor:
    """What `mix_all` gives, each token being seen by its own experts only."""
    top_k = experts.shape[1]
    expert, order = experts.flatten().sort()
    ends = torch.searchsorted(expert, torch.arange(1, len(up) + 1, device=h.device)).int()
    tokens = order // top_k  # Of each of the M k pairs of token and expert, expert by expert.
    hidden = F.dropout(swiglu(F.grouped_mm(h[tokens], up.mT, offs=ends)), dropout)
    out = F.grouped_mm(hidden, down, offs=ends) * weights.flatten()[order][:, None]
    return torch.zeros_like(h).index_add(0, tokens, out.to(h.dtype))


def can_sort(h: Tensor, down: Tensor) -> bool:
    """Whether `mix_sorted` is there for tokens [..., D] and experts with weights [N, H, D].

    Only newer releases of torch have its product, for sizes that are multiples of 16 bytes, in
    single precision and less, and not while they compile; on a GPU it may wait for the host.
    """
    return (
        hasattr(F, "grouped_mm")
        and h.device.type == "cpu"
        and h.dtype != torch.float64
        and not any(size % 8 for size in down.shape[1:])
        and not torch.compiler.is_compiling()
    )


def swiglu(h: Tensor) -> Tensor:
    """Values [..., H] under their gates, from both [..., 2 H] side by side."""
    value, gate = h.chunk(2, dim=-1)
    return value * F.silu(gate)
