"""Which experts serve which noise levels: as it is, and as a prior would have it.

Source of the prior: Park et al. 2024, Switch Diffusion Transformer (Switch-DiT), arXiv:2403.09176,
whose sliding window over levels is that of Park et al. 2024, Denoising Task Routing,
arXiv:2310.07138: levels close to each other share experts, those far apart do not, and the more the
experts a token uses, the more of them serve all levels.

Differences from the paper:

1. As there, the experts of all layers have places in one order, and a window of `L k` of the `L N`
   slides over it from the lowest to the highest level. There a matching of the observed use with
   the prior decides who has which place; here places are dealt out in turn, to the first expert of
   each layer, then to the second of each, so that a window holds just k experts of each layer.
   Experts of a layer are alike at the start, so that only the order of the layers is a choice.
2. The window moves steadily over `c_noise`, with EDM the logarithm of sigma; in the paper it moves
   with the fourth power of the time step.

Shape legend: `B` batch, `Tp` actions of a chunk, `n` levels, `L` layers, `N` experts, `k` chosen
ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from policy.nets.experts import Experts
from policy.nets.level_range import LevelRange
from policy.nets.transformer import Transformer


def usage(net: nn.Module, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
    """Probabilities [L, n, N] with which the layers' routers give actions of a level the experts.

    Args:
        net: one with `Experts` in its blocks and `embed_levels(c_noise [n, 1], cond) -> [n, S, D]`,
            the actions' last, such as a `Transformer`; or a network around one.
        c_noise: [n] levels.
        cond: [n or 1, C] encoded observations; only needed where the routers see them.

    Raises:
        ValueError: there are no experts, they cannot be asked, or they need the condition.
    """
    layers = [module for module in net.modules() if isinstance(module, Experts)]
    if not layers:
        raise ValueError(
            f"the {type(net).__name__} has no experts whose use could be asked for: "
            f"take a net with experts (net=moe_small)"
        )
    embeds = filter(None, (getattr(module, "embed_levels", None) for module in net.modules()))
    embed = next(embeds, None)
    if embed is None:
        raise ValueError(
            f"the {type(net).__name__} has experts, but no embed_levels(c_noise, cond) by which "
            f"they could be asked for their use: take net=moe_small or net=moe_mlp"
        )
    noise = embed(c_noise[:, None], cond)[:, -1]  # [n, D]
    return torch.stack([layer.logits(noise).softmax(dim=-1) for layer in layers])


def prior(position: Tensor, *, n_layers: int, n_experts: int, top_k: int) -> Tensor:
    """Wished probabilities [L, n, N], 1 / k for the k experts of a layer that serve a level.

    Args:
        position: [n] of the levels between the lowest, 0, and the highest, 1.
        n_layers: L.
        n_experts: N.
        top_k: k.
    """
    width = n_layers * top_k
    start = (position * (n_layers * n_experts - width)).round()[:, None]
    place = torch.arange(n_layers * n_experts, device=position.device)  # n_layers * expert + layer
    is_inside = (place >= start) & (place < start + width)
    return is_inside.unflatten(-1, (n_experts, n_layers)).permute(2, 0, 1) / top_k


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence [...] of distributions [..., N], in 0..ln 2."""

    def entropy(r: Tensor) -> Tensor:
        return torch.special.entr(r).sum(dim=-1)

    p = p.clamp(min=torch.finfo(p.dtype).tiny)  # Finite gradients where a router is certain.
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


class DiffusionPrior(nn.Module):
    """A network that is drawn to a prior over its experts in training, and else unchanged."""

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        net: Callable[..., nn.Module],
        weight: float = 0.1,
        lowest: float = -46.0,
        highest: float = 30.0,
    ):
        """A network with a prior.

        Args:
            action_size: Da.
            cond_size: C.
            pred_horizon: Tp.
            net: builds the network from these sizes.
            weight: of the divergence from the prior.
            lowest: level at which the window begins to move, in units of c_noise.
            highest: level at which it ends.

        Raises:
            ValueError: the levels are not in order, or there is no `Transformer` with experts.
        """
        super().__init__()
        self.levels = LevelRange(lowest, highest)
        inner = net(action_size=action_size, cond_size=cond_size, pred_horizon=pred_horizon)
        layers = [module for module in inner.modules() if isinstance(module, Experts)]
        if not layers:
            raise ValueError(
                f"the {type(inner).__name__} has no experts that a prior could be over: set "
                f"net.net.feed_forward to policy.nets.experts.Experts"
            )
        if not isinstance(inner, Transformer):
            raise ValueError(
                f"the {type(inner).__name__} is no transformer, which a prior over experts needs: "
                f"set net.net to policy.nets.transformer.Transformer"
            )
        self.net, self.weight = inner, weight
        self.top_k = layers[0].top_k

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da] of the network."""
        return self.net(x, c_noise, cond)

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x, cond) at levels [Tp]."""
        return self.net.at(c_noise)

    def check_levels(self, lowest: float, highest: float) -> None:
        """Raise ValueError unless the window moves over the levels that are trained.

        Args:
            lowest: of the trained ones, in units of c_noise.
            highest: of them.
        """
        self.levels.check(lowest, highest, option="net")

    def penalty(self, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Divergence of the experts' use from the prior, and the network's own penalty, a scalar.

        Args:
            c_noise: [B, Tp] levels of the batch.
            cond: [B, C] encoded observations.
        """
        own = self.net.penalty(c_noise, cond)
        if not self.training:
            return own
        levels = c_noise.flatten()
        used = usage(self.net, levels)
        n_layers, _, n_experts = used.shape
        position = self.levels.position(levels)
        wished = prior(position, n_layers=n_layers, n_experts=n_experts, top_k=self.top_k)
        return own + self.weight * divergence(used, wished.to(used.dtype)).mean()
