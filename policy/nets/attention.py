"""Blocks of a transformer: attention, dense feed-forward layers, and the pre-norm block of both.

Sources: Vaswani et al. 2017, arXiv:1706.03762 (attention); Peebles and Xie 2023, DiT,
arXiv:2212.09748, section 3.2 (adaLN-zero); Reuss et al. 2024, MoDE, arXiv:2412.12953, equation 4
(noise-conditioned attention, RMS norm of queries and keys); Shazeer 2020, arXiv:2002.05202
(SwiGLU).

Differences from the papers:

1. The noise level is that of a token, not of a sample: a scale, shift or gate of adaLN and an added
   embedding of MoDE may be another one for each action.
2. The scale of adaLN is raw and starts at 1, as in the U-Net's FiLM, in place of `1 + scale`.
3. Linear layers start from N(0, 0.02), biases from zero, as in Diffusion Policy.
4. A block of MoDE continues from the normalised tokens after attention; here the residual stream
   is never normalised, as in all other pre-norm transformers.

Shape legend: `B` batch, `S` tokens of a sequence, `M` tokens of a memory, `D` token size,
`H` heads.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}

# Shift, scale and gate of one sublayer, each [B or 1, S, D]; None for a sublayer without.
Modulation = Sequence[Tensor] | None

# Of each block in turn, of each of its sublayers.
Modulations = Sequence[Sequence[Modulation]]

# A feed-forward layer at given noise levels: [B, S, D] -> [B, S, D].
FeedForward = Callable[[Tensor], Tensor]


def check_whole(**sizes: int) -> None:
    """Raise ValueError unless each size is a whole number from 1 on."""
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")


def check_dropout(**shares: float) -> None:
    """Raise ValueError unless each dropout is a share that leaves something."""
    for name, value in shares.items():
        if not (isinstance(value, int | float) and 0 <= value < 1):
            raise ValueError(f"{name} is {value!r}, it must be a number in [0, 1)")


def hidden_size(expansion: float, size: int) -> int:
    """Hidden features of a feed-forward layer on tokens of a size.

    Raises:
        ValueError: there are none.
    """
    is_number = isinstance(expansion, int | float) and 0 < expansion < float("inf")
    if not is_number or round(expansion * size) < 1:
        raise ValueError(
            f"expansion is {expansion!r}, which leaves tokens of size {size} without a hidden "
            f"feature: give a number of at least {1 / size:g}"
        )
    return round(expansion * size)


def initialise(module: nn.Module) -> None:
    """Start the linear layers of a module from N(0, 0.02) and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=INIT_STD)
            nn.init.zeros_(part.bias)


class Attention(nn.Module):
    """Multi-head attention of queries to a memory."""

    def __init__(self, size: int, *, n_heads: int, qk_norm: bool = False, dropout: float = 0.0):
        """An attention.

        Args:
            size: D, a multiple of `n_heads`.
            n_heads: H.
            qk_norm: whether the queries and keys of each head have a root mean square of 1 (times
                a learned weight), which bounds the logits.
            dropout: of the attention weights and of the output, in training.

        Raises:
            ValueError: the heads do not divide D, or the dropout is out of range.
        """
        super().__init__()
        check_whole(n_heads=n_heads)
        check_dropout(attention_dropout=dropout)
        if size % n_heads:
            raise ValueError(f"size is {size}, it must be a multiple of n_heads {n_heads}")
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)
        # One weight for both: logits see nothing but the product of the queries' and the keys'.
        self.qk_weight = nn.Parameter(torch.ones(size // n_heads)) if qk_norm else None
        initialise(self)

    def forward(
        self, h: Tensor, memory: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens [B, S, D].

        Args:
            h: [B, S, D], of which the queries are made.
            memory: [B, M, D], of which keys and values are made; `h` itself for self-attention.
            mask: [S, M], True where a query may look; None for everywhere.
            is_causal: a token sees itself and those before it.
        """
        query = self._heads(self.query(h))
        key, value = map(self._heads, self.key_value(memory).chunk(2, dim=-1))
        scale = query.shape[-1] ** -0.5
        if self.qk_weight is not None:
            # RMS norm of both, written as unit vectors: less work, since its factors go into scale.
            query, key = F.normalize(query, dim=-1) * self.qk_weight, F.normalize(key, dim=-1)
            scale = 1 / scale
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale
        )
        return F.dropout(self.out(out.transpose(1, 2).flatten(2)), self.dropout, self.training)

    def _heads(self, h: Tensor) -> Tensor:
        """[B, H, S, D / H] from [B, S, D]."""
        return h.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class GELUFeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, *, size: int, expansion: float = 4.0, dropout: float = 0.0):
        """A feed-forward layer.

        Args:
            size: D.
            expansion: hidden features per feature of a token.
            dropout: of the hidden features and of the output, in training.

        Raises:
            ValueError: there is no hidden feature, or the dropout is out of range.
        """
        super().__init__()
        check_dropout(dropout=dropout)
        hidden = hidden_size(expansion, size)
        self.first, self.second = nn.Linear(size, hidden), nn.Linear(hidden, size)
        self.dropout = nn.Dropout(dropout)
        initialise(self)

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        """Tokens [B, S, D] from tokens; `noise` is not looked at."""
        return self.dropout(self.second(self.dropout(F.gelu(self.first(h)))))


class SwiGLUFeedForward(nn.Module):
    """Features under a gate, then a linear layer; 3/2 of the weights of GELU at equal expansion."""

    def __init__(self, *, size: int, expansion: float = 8 / 3, dropout: float = 0.0):
        """A feed-forward layer.

        Args:
            size: D.
            expansion: hidden features per feature of a token; 8/3 has the size of GELU's 4.
            dropout: of the hidden features and of the output, in training.

        Raises:
            ValueError: there is no hidden feature, or the dropout is out of range.
        """
        super().__init__()
        check_dropout(dropout=dropout)
        hidden = hidden_size(expansion, size)
        self.first, self.second = nn.Linear(size, 2 * hidden), nn.Linear(hidden, size)
        self.dropout = nn.Dropout(dropout)
        initialise(self)

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        """Tokens [B, S, D] from tokens; `noise` is not looked at."""
        value, gate = self.first(h).chunk(2, dim=-1)
        return self.dropout(self.second(self.dropout(value * F.silu(gate))))


class AdaLN(nn.Module):
    """Shift, scale and gate of all sublayers of all blocks, from noise levels and a condition."""

    def __init__(self, size: int, n_blocks: int, n_sublayers: int):
        super().__init__()
        self.n_blocks, self.n_sublayers = n_blocks, n_sublayers
        self.linear = nn.Linear(size, n_blocks * n_sublayers * 3 * size)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():  # Shift 0, scale 1 and gate 0.
            start = torch.tensor([0.0, 1.0, 0.0]).repeat_interleave(size)
            self.linear.bias.copy_(start.repeat(n_blocks * n_sublayers))

    def forward(self, noise: Tensor, cond: Tensor) -> Modulations:
        """Modulation of each sublayer of each block.

        Args:
            noise: [B, S, D] embedding of each token's level.
            cond: [B, K, D] tokens of the condition, of which the mean counts.
        """
        return self._split(self.linear(F.silu(noise) + _pooled(cond)))

    def at(self, noise: Tensor) -> Callable[[Tensor], Modulations]:
        """The modulations as a function of cond [B, K, D] at fixed embeddings [1, S, D]."""
        of_noise, weight = self.linear(F.silu(noise)), self.linear.weight
        return lambda cond: self._split(of_noise + F.linear(_pooled(cond), weight))

    def _split(self, total: Tensor) -> Modulations:
        parts = total.chunk(3 * self.n_blocks * self.n_sublayers, dim=-1)
        triples = [parts[i : i + 3] for i in range(0, len(parts), 3)]
        n = self.n_sublayers
        return [triples[i : i + n] for i in range(0, len(triples), n)]


def _pooled(cond: Tensor) -> Tensor:
    """Activated mean [B, 1, D] of the tokens of a condition [B, K, D]."""
    return F.silu(cond.mean(dim=1, keepdim=True))


class Block(nn.Module):
    """Self-attention, attention to a memory if there is one, and a feed-forward layer, pre-norm."""

    def __init__(
        self,
        size: int,
        *,
        n_heads: int,
        feed_forward: nn.Module,
        has_memory: bool,
        is_modulated: bool,
        norm: str,
        qk_norm: bool,
        dropout: float,
    ):
        """A block.

        Args:
            size: D.
            n_heads: H.
            feed_forward: h [B, S, D], noise [B, S, D] -> [B, S, D].
            has_memory: whether there is attention to a memory.
            is_modulated: whether norms leave scale and shift to adaLN.
            norm: "layer" or "rms".
            qk_norm: see `Attention`.
            dropout: see `Attention`.
        """
        super().__init__()

        def attention() -> Attention:
            return Attention(size, n_heads=n_heads, qk_norm=qk_norm, dropout=dropout)

        self.self_attention = attention()
        self.memory_attention = attention() if has_memory else None
        self.feed_forward = feed_forward
        self.norms = nn.ModuleList(
            NORMS[norm](size, elementwise_affine=not is_modulated) for _ in range(2 + has_memory)
        )

    def forward(
        self,
        h: Tensor,
        *,
        feed_forward: FeedForward,
        modulations: Sequence[Modulation],
        noise: Tensor | None,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        """Tokens [B, S, D].

        Args:
            h: [B, S, D].
            feed_forward: the block's own, at the noise of each token.
            modulations: of each sublayer in turn, for adaLN.
            noise: [B, S, D] added to what self-attention looks at; None for nothing.
            memory: [B, M, D] where the block has attention to a memory.
            memory_mask: [S, M], see `Attention`.
            is_causal: of self-attention.
        """

        def look(u: Tensor) -> Tensor:
            u = u if noise is None else u + noise
            return self.self_attention(u, u, is_causal=is_causal)

        layers: list[Callable[[Tensor], Tensor]] = [look, feed_forward]
        if self.memory_attention is not None:
            attend = self.memory_attention
            layers.insert(1, lambda u: attend(u, memory, mask=memory_mask))
        for norm, layer, modulation in zip(self.norms, layers, modulations, strict=True):
            h = residual(h, layer, norm, modulation)
        return h


def residual(
    h: Tensor, layer: Callable[[Tensor], Tensor], norm: nn.Module, modulation: Modulation
) -> Tensor:
    """Tokens [B, S, D] plus what a layer makes of them normalised; modulated, that is adaLN.

    A gate of zero leaves the tokens as they are.
    """
    if modulation is None:
        return h + layer(norm(h))
    shift, scale, gate = modulation
    return torch.addcmul(h, gate, layer(torch.addcmul(shift, scale, norm(h))))
