"""A residual MLP over the whole chunk at once: the cheapest network for states and short chunks.

A step of training takes a CPU about a fifth of what a U-Net of as many weights takes. It knows
nothing of time: neighbouring actions are as foreign to it as distant ones.

Source: Ren et al. 2024, DPPO, arXiv:2409.00588, the residual MLP of its state-based policies.

Differences from the paper:

1. Each action has its own noise level, and the embeddings of all of them come in side by side.
2. Features are normalised before each block, and the last layer starts at zero, as in the U-Net.
3. With `feed_forward` a block has a layer of another kind, such as the experts of `experts`. To it
   the chunk is one token, and the levels of all actions, embedded together, are that token's level:
   experts are chosen for the chunk as a whole.
4. With `film` the condition and the levels scale and shift the features of every block, as in the
   U-Net, besides coming in with the chunk.
5. With `layers_see_cond` that embedding tells the condition too, so that experts are chosen by the
   goal or the task as well: the option that MoDE (arXiv:2412.12953) leaves off by default.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `E` noise
embedding size, `D` size of the layers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from policy.nets.noise_embed import NoiseEmbed

# A block at given noise levels: features [B, D] -> features [B, D]. Some take `film` besides.
BoundBlock = Callable[..., Tensor]


class Block(nn.Module):
    """Features [B, D] and what two layers add to them."""

    def __init__(self, size: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, expansion * size)
        self.down = nn.Linear(expansion * size, size)

    def forward(self, h: Tensor, levels: Tensor, film: Tensor | None = None) -> Tensor:
        """Features [B, D] from features [B, D]; `levels` is not looked at.

        Args:
            h: [B, D] features.
            levels: of another kind of block.
            film: [B, 2 D] what is added to a scale of 1 and to a shift of 0, or none.
        """
        seen = self.norm(h)
        if film is not None:
            scale, shift = film.chunk(2, dim=-1)
            seen = torch.addcmul(seen + shift, seen, scale)
        return h + self.down(nn.functional.silu(self.up(seen)))

    def at(self, levels: Tensor) -> BoundBlock:
        """The block at any levels; may be called with `film`."""
        return partial(self, levels=levels)

    def penalty(self, levels: Tensor) -> Tensor:
        """0, a scalar."""
        return levels.new_zeros(())


class LevelBlock(nn.Module):
    """Features [B, D] and what a layer that is told the noise levels adds to them."""

    def __init__(self, size: int, feed_forward: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.feed_forward = feed_forward

    def forward(self, h: Tensor, levels: Tensor) -> Tensor:
        """Features [B, D] from features [B, D], at embedded levels [B, 1, D]."""
        return h + self.feed_forward(self.norm(h)[:, None], levels)[:, 0]

    def at(self, levels: Tensor) -> BoundBlock:
        """The block at embedded levels [1, 1, D], the same in all samples."""
        at = getattr(self.feed_forward, "at", None)
        if at is None:
            return lambda h: self(h, levels.expand(len(h), -1, -1))
        layer = at(levels[0])
        return lambda h: h + layer(self.norm(h)[:, None])[:, 0]

    def penalty(self, levels: Tensor) -> Tensor:
        """That of the layer at embedded levels [B, 1, D], a scalar; 0 for a layer without."""
        penalty = getattr(self.feed_forward, "penalty", None)
        return levels.new_zeros(()) if penalty is None else penalty(levels)


class ResidualMLP(nn.Module):
    """Raw prediction of a chunk from a noisy chunk, its noise levels and a condition."""

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        size: int = 256,
        n_blocks: int = 4,
        expansion: int = 2,
        noise_embed_size: int = 16,
        feed_forward: Callable[..., nn.Module] | None = None,
        layers_see_levels: bool = True,
        layers_see_cond: bool = False,
        film: bool = False,
    ):
        """A residual MLP.

        Args:
            action_size: Da.
            cond_size: C, size of the encoded observation.
            pred_horizon: Tp.
            size: D.
            n_blocks: number of blocks.
            expansion: the two layers of a block have that many times D between them.
            noise_embed_size: E, of each action's level.
            feed_forward: built once per block with `size=D` in place of its two layers, with which
                `expansion` goes, and called with features and embedded levels, both [B, 1, D]. It
                may have `at` and `penalty`, as in a `Transformer`.
            layers_see_levels: whether they are told the levels; false for layers that do not look.
            layers_see_cond: whether the condition is added to these embedded levels. Then nothing
                of the layers can be computed before the observation is there.
            film: whether condition and levels scale and shift the features of every block, where
                it has its own two layers.

        Raises:
            ValueError: a size is no whole number, or not positive; there is no layer that could
                see the condition; or `film` is asked of blocks with layers of another kind.
        """
        super().__init__()
        sizes = {"size": size, "n_blocks": n_blocks, "expansion": expansion}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")
        is_told = layers_see_levels and feed_forward is not None
        if layers_see_cond and not is_told:
            raise ValueError(
                "layers_see_cond is true, but the blocks' own layers look at features only: give a "
                "feed_forward with experts (net=moe_mlp), or set layers_see_cond to false"
            )
        if film and feed_forward is not None:
            raise ValueError(
                "film is true, but the blocks have a feed_forward, which nothing scales: set film "
                "to false, or leave out feed_forward"
            )
        self.pred_horizon, self.layers_see_cond = pred_horizon, layers_see_cond
        self.noise_embed = NoiseEmbed(noise_embed_size)
        n_inputs = pred_horizon * (action_size + noise_embed_size) + cond_size
        self.first = nn.Linear(n_inputs, size)
        self.blocks = nn.ModuleList(
            Block(size, expansion)
            if feed_forward is None
            else LevelBlock(size, feed_forward(size=size))
            for _ in range(n_blocks)
        )
        self.chunk_level = (
            nn.Identity()  # Which nobody looks at.
            if not is_told
            else nn.Linear(pred_horizon * noise_embed_size, size)
        )
        self.chunk_cond = nn.Linear(cond_size, size) if layers_see_cond else None
        self.film_cond = self.film_noise = None
        if film:
            n_films = 2 * size * n_blocks
            self.film_cond = nn.Linear(cond_size, n_films)
            self.film_noise = nn.Linear(pred_horizon * noise_embed_size, n_films, bias=False)
            for weights in (*self.film_cond.parameters(), self.film_noise.weight):
                nn.init.zeros_(weights)
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, pred_horizon * action_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction of a chunk.

        Args:
            x: [B, Tp, Da] scaled noisy chunk.
            c_noise: [B, Tp] noise level of each action, on a scale of about a hundred.
            cond: [B, C] encoded observation.

        Returns:
            [B, Tp, Da].
        """
        noise = self.noise_embed(c_noise)
        films = self._films_of_levels(noise)
        return self._predict(x, cond, noise, self._bound(noise, cond), films)

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x [B, Tp, Da], cond [B, C]) at given levels; their part is computed once.

        Args:
            c_noise: [Tp], the same in all samples.
        """
        noise = self.noise_embed(c_noise[None])
        if self.chunk_cond is not None:
            return lambda x, cond: self._predict(x, cond, noise, self._bound(noise, cond), None)
        levels, films = self._levels(noise), self._films_of_levels(noise)
        blocks = [block.at(levels) for block in self._blocks()]
        return partial(self._predict, noise=noise, blocks=blocks, films_of_levels=films)

    def penalty(self, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Sum of the penalties of the blocks' layers, a scalar.

        Args:
            c_noise: [B, Tp] noise level of each action.
            cond: [B, C] encoded observation.
        """
        levels = self.embed_levels(c_noise, cond)
        return sum((block.penalty(levels) for block in self._blocks()), c_noise.new_zeros(()))

    def embed_levels(self, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Embeddings [B, 1, D] of a chunk's levels, as the blocks are told them.

        Args:
            c_noise: [B, Tp], or [B, 1] for one level of all actions.
            cond: [B, C] encoded observation; only needed where the layers see it.

        Raises:
            ValueError: the condition is needed and not there.
        """
        return self._levels(self.noise_embed(c_noise.expand(-1, self.pred_horizon)), cond)

    def _levels(self, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Embeddings [B, 1, D] of levels that are embedded one by one [B or 1, Tp, E]."""
        levels = self.chunk_level(noise.flatten(1))
        if self.chunk_cond is not None:
            if cond is None:
                raise ValueError("cond is None, but the layers see the condition: give cond [B, C]")
            levels = levels + self.chunk_cond(cond)
        return levels[:, None]

    def _blocks(self) -> list[Block | LevelBlock]:
        return [block for block in self.blocks if isinstance(block, Block | LevelBlock)]

    def _bound(self, noise: Tensor, cond: Tensor) -> list[BoundBlock]:
        """The blocks at levels embedded one by one [B or 1, Tp, E], none of it beforehand."""
        levels = self._levels(noise, cond)
        return [partial(block, levels=levels) for block in self._blocks()]

    def _films_of_levels(self, noise: Tensor) -> Tensor | None:
        """The levels' part [B or 1, 2 D per block] of all scales and shifts; None without."""
        if self.film_noise is None:
            return None
        return self.film_noise(nn.functional.silu(noise.flatten(1)))

    def _predict(
        self,
        x: Tensor,
        cond: Tensor,
        noise: Tensor,
        blocks: Sequence[BoundBlock],
        films_of_levels: Tensor | None,
    ) -> Tensor:
        """Raw prediction [B, Tp, Da], from embeddings [B or 1, Tp, E] of the levels."""
        noise = noise.flatten(1).expand(len(x), -1)
        h = self.first(torch.cat([x.flatten(1), noise, cond], dim=-1))
        if films_of_levels is None or self.film_cond is None:
            for block in blocks:
                h = block(h)
        else:
            films = films_of_levels + self.film_cond(nn.functional.silu(cond))
            for block, film in zip(blocks, films.chunk(len(blocks), dim=-1), strict=True):
                h = block(h, film=film)
        return self.out(self.norm(h)).view_as(x)
