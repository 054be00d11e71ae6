"""A transformer over the actions of a chunk, with the noise level given per action.

Sources: Chi et al. 2023, Diffusion Policy, arXiv:2303.04137, transformer-based variant
(`conditioning="memory"`, `cond_in="memory"`, the defaults); Peebles and Xie 2023, DiT,
arXiv:2212.09748 (`conditioning="adaln"`); Reuss et al. 2024, MoDE, arXiv:2412.12953
(`conditioning="attention"`, with `cond_in="prefix"` and a causal sequence).

    conditioning   the noise level of an action enters                       more weights in a block
    memory         as a token of the memory that this action alone sees      those of its attention
    adaln          as shift, scale and gate of every sublayer, together      6 D^2, and 3 D^2 more
                   with the condition                                        with a memory
    attention      added to what self-attention looks at                     none

    cond_in        the tokens of the condition are
    memory         a memory, which actions attend to after each other
    prefix         the first tokens of the sequence itself

Differences from the papers:

1. Where Diffusion Policy has one token for the level of the chunk, first in the memory, each action
   has one here, which the others do not see. One level for all actions gives exactly the network
   of the paper, with the same weights; and an action's level reaches another action only through
   self-attention, that is with `is_causal` only those after it.
2. The actions of Diffusion Policy begin with the first observed step, and its causal mask hides
   later observations from earlier actions. Here the first action is the one for now: all
   observations are past, and all actions see them.
3. The memory's MLP has SiLU in place of Mish (see `noise_embed`).
4. The condition of adaLN is the mean of its tokens. The linear layer of adaLN acts on the sum of
   activated level and condition, so that what is due to the levels can be computed once (`at`).
5. Tokens of the condition have no noise. In a sequence they have a learned embedding in place of a
   level's, the same at every level of the actions; MoDE gives them the level of the chunk.
6. MoDE has a further token for the level of the chunk; with a level for each action there is none.
7. The last layer starts at zero, as in the U-Net: the untrained network predicts nothing. Other
   linear layers start as in Diffusion Policy (see `initialise`), but for the noise embedding, which
   Diffusion Policy lacks and which starts as in the U-Net: as small as theirs it would be lost
   beside normalised tokens.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `K` tokens
of the condition, `S` tokens of the sequence (Tp, or K + Tp with a prefix), `M` tokens of the
memory, `D` token size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.nets.attention import (
    INIT_STD,
    NORMS,
    AdaLN,
    Block,
    FeedForward,
    GELUFeedForward,
    Modulations,
    check_whole,
    initialise,
)
from policy.nets.noise_embed import NoiseEmbed, sinusoids

CONDITIONINGS = ("memory", "adaln", "attention")
CONDITION_PLACES = ("memory", "prefix")


@dataclass(frozen=True)
class Levels:
    """What depends on the noise levels alone.

    Args:
        noise: [B or 1, S, D] embedding of each token's level.
        adaln: modulations of all blocks from the tokens of the condition, or None.
        feed_forwards: that of each block, at these levels.
        channels: bool [B or 1, S, D], what blocks see and change of a token; None for everything.
    """

    noise: Tensor
    adaln: Callable[[Tensor], Modulations] | None
    feed_forwards: Sequence[FeedForward]
    channels: Tensor | None


class Transformer(nn.Module):
    """Raw prediction of a chunk from a noisy chunk, its noise levels and a condition."""

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        size: int = 256,
        n_layers: int = 8,
        n_heads: int = 4,
        conditioning: str = "memory",
        cond_in: str = "memory",
        cond_tokens: int = 1,
        is_causal: bool = True,
        norm: str = "layer",
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        feed_forward: Callable[..., nn.Module] | None = None,
        channel_mask: Callable[..., nn.Module] | None = None,
    ):
        """A transformer.

        Args:
            action_size: Da.
            cond_size: C, size of the encoded observation.
            pred_horizon: Tp.
            size: D, even and a multiple of `n_heads`.
            n_layers: number of blocks.
            n_heads: heads of each attention.
            conditioning: how noise levels enter, "memory", "adaln" or "attention"; see above.
            cond_in: where the tokens of the condition are, "memory" or "prefix"; see above.
            cond_tokens: K, the number of equal parts of the condition, each a token; divides C.
                With a `StateEncoder` without MLP and K = To a token is an observed step.
            is_causal: whether a token sees only itself and those before it in the sequence.
            norm: of the tokens, "layer" or "rms". RMS norm is the faster one only where it is
                fused; on a CPU a layer norm takes a third of its time.
            qk_norm: whether attention normalises queries and keys.
            attention_dropout: of attention weights and outputs, in training.
            feed_forward: built once per block with `size=D` and called with tokens and the
                embeddings of their levels, both [B, S, D]; None for `GELUFeedForward`. It may have
                `at(noise [S, D]) -> f(h)` and `penalty(noise [B, S, D]) -> scalar`, which make
                those of the network.
            channel_mask: built with `size=D` and called with levels [B, Tp], gives bool [B, Tp, D]:
                the channels of a token that its level lets blocks see and change, such as a
                `ChannelMask`; None for all of them.

        Raises:
            ValueError: a size does not fit the others, or there is no such choice; the message
                says which would do.
        """
        super().__init__()
        _check(conditioning=(conditioning, CONDITIONINGS), cond_in=(cond_in, CONDITION_PLACES))
        _check(norm=(norm, tuple(NORMS)))
        check_whole(size=size, n_layers=n_layers, cond_tokens=cond_tokens)
        _check_cond_tokens(cond_size, cond_tokens)
        if size < 4 or size % 2:
            raise ValueError(f"size is {size}, it must be even and at least 4")

        self.size, self.conditioning, self.is_causal = size, conditioning, is_causal
        self.cond_tokens = cond_tokens
        self.is_prefixed = cond_in == "prefix"
        n_prefix = cond_tokens if self.is_prefixed else 0
        n_memory = (conditioning == "memory") + cond_tokens - n_prefix  # As one token sees it.
        length = n_prefix + pred_horizon

        self.action_embed = nn.Linear(action_size, size)
        self.cond_embed = nn.Linear(cond_size // cond_tokens, size)
        self.positions = nn.Parameter(torch.empty(length, size))
        # In place of the level's embedding, for tokens that have no level.
        self.no_level = nn.Parameter(torch.empty(n_prefix, size)) if n_prefix else None
        self.memory_positions = nn.Parameter(torch.empty(n_memory, size)) if n_memory else None
        self.memory_mlp = (
            nn.Sequential(nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))
            if n_memory
            else None
        )
        for part in list(self.children()):
            initialise(part)
        self.noise_embed = NoiseEmbed(size) if conditioning != "memory" else None
        for positions in (self.positions, self.no_level, self.memory_positions):
            if positions is not None:
                nn.init.normal_(positions, std=INIT_STD)

        n_sublayers = 3 if n_memory else 2
        self.plain: Modulations = [[None] * n_sublayers] * n_layers  # Without adaLN.
        self.adaln = AdaLN(size, n_layers, n_sublayers) if conditioning == "adaln" else None
        self.blocks = nn.ModuleList(
            Block(
                size,
                n_heads=n_heads,
                feed_forward=(feed_forward or GELUFeedForward)(size=size),
                has_memory=n_memory > 0,
                is_modulated=conditioning == "adaln",
                norm=norm,
                qk_norm=qk_norm,
                dropout=attention_dropout,
            )
            for _ in range(n_layers)
        )
        self.channel_mask = None if channel_mask is None else channel_mask(size=size)
        self.norm = NORMS[norm](size)
        self.out = nn.Linear(size, action_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        mask = None
        if conditioning == "memory":
            # A token sees its own level, then all tokens of the condition that are in the memory.
            everywhere = torch.ones(length, n_memory - 1, dtype=torch.bool)
            mask = torch.cat([torch.eye(length, dtype=torch.bool), everywhere], dim=1)
        self.register_buffer("memory_mask", mask, persistent=False)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction of a chunk.

        Args:
            x: [B, Tp, Da] scaled noisy chunk.
            c_noise: [B, Tp] noise level of each action, on a scale of about a hundred.
            cond: [B, C] encoded observation.

        Returns:
            [B, Tp, Da].
        """
        noise = self.embed_levels(c_noise)
        adaln = None if self.adaln is None else partial(self.adaln, noise)
        layers = [_bind(layer, noise) for layer in self._feed_forwards()]
        return self._predict(x, cond, Levels(noise, adaln, layers, self._channels(c_noise)))

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x [B, Tp, Da], cond [B, C]) at given levels; their part is computed once.

        Args:
            c_noise: [Tp], the same in all samples.
        """
        noise = self.embed_levels(c_noise[None])
        adaln = None if self.adaln is None else self.adaln.at(noise)
        layers = [_at(layer, noise) for layer in self._feed_forwards()]
        levels = Levels(noise, adaln, layers, self._channels(c_noise[None]))
        return partial(self._predict, levels=levels)

    def penalty(self, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Sum of the penalties of the feed-forward layers that have one, a scalar.

        Args:
            c_noise: [B, Tp] noise level of each action.
            cond: [B, C], not looked at.
        """
        noise = self.embed_levels(c_noise)
        penalties = [getattr(layer, "penalty", None) for layer in self._feed_forwards()]
        return sum((penalty(noise) for penalty in penalties if penalty), c_noise.new_zeros(()))

    def _feed_forwards(self) -> list[nn.Module]:
        return [block.feed_forward for block in self.blocks if isinstance(block, Block)]

    def embed_levels(self, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Embeddings [B, S, D] of the levels [B, Tp], after those of a prefix.

        The condition is not looked at.
        """
        if self.noise_embed is not None:
            noise = self.noise_embed(c_noise)
        else:
            noise = self._memory_tokens(sinusoids(c_noise, self.size), slice(0, 1))
        if self.no_level is None:
            return noise
        return torch.cat([self.no_level.expand(len(noise), -1, -1), noise], dim=1)

    def _channels(self, c_noise: Tensor) -> Tensor | None:
        """Those that serve levels [B, Tp], [B, S, D]; all of them in a prefix."""
        if self.channel_mask is None:
            return None
        n_prefix = 0 if self.no_level is None else len(self.no_level)
        return F.pad(self.channel_mask(c_noise), (0, 0, n_prefix, 0), value=True)

    def _predict(self, x: Tensor, cond: Tensor, levels: Levels) -> Tensor:
        """Raw prediction [B, Tp, Da]."""
        cond = self.cond_embed(cond.unflatten(-1, (self.cond_tokens, -1)))  # [B, K, D]
        h = self.action_embed(x)
        h = (torch.cat([cond, h], dim=1) if self.is_prefixed else h) + self.positions
        modulations = self.plain if levels.adaln is None else levels.adaln(cond)
        memory, channels = self._memory(cond, levels.noise), levels.channels
        for block, modulation, feed_forward in zip(
            self.blocks, modulations, levels.feed_forwards, strict=True
        ):
            run = partial(
                block,
                feed_forward=feed_forward,
                modulations=modulation,
                noise=levels.noise if self.conditioning == "attention" else None,
                memory=memory,
                memory_mask=self.memory_mask,
                is_causal=self.is_causal,
            )
            h = run(h) if channels is None else torch.where(channels, run(h * channels), h)
        return self.out(self.norm(h[:, -x.shape[1] :]))

    def _memory(self, cond: Tensor, noise: Tensor) -> Tensor | None:
        """Memory [B, M, D] of the levels' tokens, then the condition's [B, K, D]; as configured."""
        tokens = []
        if self.conditioning == "memory":
            tokens.append(noise.expand(len(cond), -1, -1))
        if not self.is_prefixed:
            tokens.append(self._memory_tokens(cond, slice(-self.cond_tokens, None)))
        return torch.cat(tokens, dim=1) if tokens else None

    def _memory_tokens(self, tokens: Tensor, positions: slice) -> Tensor:
        assert self.memory_mlp is not None
        assert self.memory_positions is not None
        return self.memory_mlp(tokens + self.memory_positions[positions])


def _bind(feed_forward: nn.Module, noise: Tensor) -> FeedForward:
    """A feed-forward layer with the embeddings [B, S, D] of this batch."""
    return lambda h: feed_forward(h, noise)


def _at(feed_forward: nn.Module, noise: Tensor) -> FeedForward:
    """A feed-forward layer at given embeddings [1, S, D]."""
    at = getattr(feed_forward, "at", None)
    if at is not None:
        return at(noise[0])
    return lambda h: feed_forward(h, noise.expand(len(h), -1, -1))


def _check(**choices: tuple[str, Sequence[str]]) -> None:
    """Raise ValueError unless each name is one of its choices."""
    for option, (name, known) in choices.items():
        if name not in known:
            raise ValueError(f"{option} is {name!r}, choose one of {', '.join(known)}")


def _check_cond_tokens(cond_size: int, cond_tokens: int) -> None:
    """Raise ValueError unless the condition divides into its tokens."""
    if cond_size % cond_tokens:
        fitting = [str(n) for n in range(1, min(cond_size, 16) + 1) if cond_size % n == 0]
        raise ValueError(
            f"cond_size is {cond_size}, which does not divide into cond_tokens {cond_tokens} equal "
            f"parts: set net.cond_tokens to one of {', '.join(fitting)}, or give the encoder "
            f"another output size"
        )
