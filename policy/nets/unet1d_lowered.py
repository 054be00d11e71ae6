"""A U-Net frozen for calls of few samples on a CPU, where one C++ function is the whole call.

`UNet1d.lowered()` makes it. `Plan` lists its layers for unet1d_cpu.cpp, with the weights of the
convolutions as fp32, bf16 or int8; sums are fp32. Whatever does not change from call to call is
computed once: the FiLMs of noise levels and of a condition are kept by their values.

Differences from `UNet1d`: no gradients, no other device, and weights that stay as they were.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `E` noise
embedding size, `F` columns of all FiLMs together, `L` positions at one level of the U-Net.
"""

import copy
import ctypes
from collections.abc import Callable, Mapping
from functools import cache, partial, wraps
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from policy.nets.compiled import load
from policy.nets.noise_embed import NoiseEmbed
from policy.nets.unet1d import UNet1d
from policy.nets.unet1d_plan import Plan

SOURCE = Path(__file__).with_name("unet1d_cpu.cpp")
KEPT = 64  # sets of noise levels whose FiLMs are kept: more than a sampler has calls
KEPT_SAMPLES = 8  # up to so many of different levels; for more the memory is not worth it
BYTES_PER_THREAD = 2**18  # of weights; for less than that a further thread costs more than it does


def _in_fp32(films: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same without gradients, and without a reduced precision that is asked for outside."""

    @wraps(films)
    def in_fp32(module: nn.Module, some: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return films(module, some)

    return in_fp32


class LoweredUNet1d(nn.Module):
    """Raw prediction of a chunk, as of the `UNet1d` that it is made of."""

    # Operators of this file -> functions that do the same with less ado, where no gradients are.
    operators: Mapping[object, Callable[..., Tensor]]

    program: Tensor
    packed: Tensor
    constants: Tensor
    film_noise: Tensor  # [F, E]
    film_cond: Tensor  # [F, C]
    film_bias: Tensor  # [F]
    noise_embed: NoiseEmbed
    activate: nn.Module

    def __init__(self, net: UNet1d, *, weights: str = "fp32"):
        """A frozen copy of a network.

        Args:
            net: on the CPU; of other dtypes than fp32 it is converted.
            weights: of the convolutions, "fp32", "bf16" or "int8" with a scale per output channel.

        Raises:
            ValueError: there are no such weights, or the network is on another device.
            policy.nets.compiled.CompileError: there is no C++ compiler that works.
        """
        super().__init__()
        device = net.out.weight.device
        if device.type != "cpu":
            raise ValueError(f"the network is on {device}: only one on the CPU can be lowered")
        net = copy.deepcopy(net).float().requires_grad_(False)
        plan = Plan(net, weights=weights, panel=_library().panel())
        self.noise_embed, self.activate = net.noise_embed, net.activate
        self.action_size, self.pred_horizon = net.out.out_channels, net.pred_horizon
        self.cond_size = plan.film_cond.shape[1]
        self.film_columns = plan.film_columns  # of each level, F together
        self.register_buffer("program", plan.program())
        self.register_buffer("packed", plan.packing.weights())
        self.register_buffer("constants", plan.packing.constants())
        self.register_buffer("film_noise", plan.film_noise)
        self.register_buffer("film_cond", plan.film_cond)
        self.register_buffer("film_bias", plan.film_bias)
        self._noise_films: dict[bytes, Tensor] = {}
        self._cond_films: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da]; for the arguments see `UNet1d`.

        Raises:
            ValueError: shapes or dtypes are others than those of the network, or there would have
                to be gradients.
        """
        self._check(x, cond)
        if c_noise.shape != x.shape[:2]:
            raise ValueError(
                f"c_noise is {list(c_noise.shape)}, x is {list(x.shape)}: each action of x needs a "
                f"noise level, {list(x.shape[:2])}"
            )
        return self._checked(self._noise_films_of(c_noise), x, cond)

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x [B, Tp, Da], cond [B, C]) at given levels.

        Args:
            c_noise: [Tp], the same in all samples.

        Raises:
            ValueError: there are more or fewer levels than actions.
        """
        if c_noise.shape != (self.pred_horizon,):
            raise ValueError(
                f"c_noise is {list(c_noise.shape)}, the network takes [{self.pred_horizon}]"
            )
        return partial(self._call, self._noise_films_of(c_noise[None]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse another dtype or device (`to`, `half`, `cuda`): C++ would know nothing of it."""
        changed = fn(self.constants)
        if changed.dtype != torch.float32 or changed.device.type != "cpu":
            raise ValueError(
                f"a lowered network stays torch.float32 on the CPU and cannot become "
                f"{changed.dtype} on {changed.device}: use the network that it was made of"
            )
        return super()._apply(fn, recurse)

    def _call(self, noise_films: Tensor, x: Tensor, cond: Tensor) -> Tensor:
        self._check(x, cond)
        return self._checked(noise_films, x, cond)

    def _checked(self, noise_films: Tensor, x: Tensor, cond: Tensor) -> Tensor:
        parts = (self.program, self.packed, self.constants)
        if _is_watched():
            return _unet1d(x, noise_films, self._cond_films_of(cond), *parts)
        return _run(x, noise_films, self._kept_cond_films_of(cond), *parts)

    def _check(self, x: Tensor, cond: Tensor) -> None:
        batch = len(x)
        wanted = (batch, self.pred_horizon, self.action_size)
        if x.shape != wanted or cond.shape != (batch, self.cond_size):
            raise ValueError(
                f"x is {list(x.shape)} and cond {list(cond.shape)}, the network takes "
                f"[B, {self.pred_horizon}, {self.action_size}] and [B, {self.cond_size}]"
            )
        if x.dtype != torch.float32 or cond.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(
                f"x is {x.dtype} on {x.device}, cond {cond.dtype}: a lowered network takes "
                f"torch.float32 on the CPU"
            )
        if torch.is_grad_enabled() and (x.requires_grad or cond.requires_grad):
            raise ValueError(
                "a lowered network has no gradients: call it under torch.no_grad(), or use the "
                "network that it was made of where gradients are needed"
            )

    # FiLMs of the noise: [B or 1, F] where all positions share a level, else for each level of the
    # U-Net [L, F of it] one after the other.

    def _noise_films_of(self, c_noise: Tensor) -> Tensor:
        """Those of levels [B, Tp]; where they were asked for before, the ones of then."""
        c_noise = c_noise.detach().float()
        if _is_watched():
            return self._films_of_positions(c_noise)
        key = c_noise.numpy().tobytes()
        films = self._noise_films.get(key)
        if films is None:
            if (c_noise == c_noise[:1]).all():
                c_noise = c_noise[:1]
            is_shared = bool((c_noise == c_noise[:, :1]).all())
            films = self._shared_films(c_noise) if is_shared else self._films_of_positions(c_noise)
            if len(films) > KEPT_SAMPLES:
                return films
            # Another thread may do the same at the same time: both are right.
            kept = dict(list(self._noise_films.items())[-KEPT + 1 :])
            self._noise_films = {**kept, key: films}
        return films

    @_in_fp32
    def _shared_films(self, c_noise: Tensor) -> Tensor:
        noise = self.activate(self.noise_embed(c_noise[:, :1])).flatten(1)  # [B, E]
        return linear(noise, self.film_noise)

    @_in_fp32
    def _films_of_positions(self, c_noise: Tensor) -> Tensor:
        noise, films = self.noise_embed(c_noise), []
        for weight in self.film_noise.split(self.film_columns):
            films.append(linear(self.activate(noise), weight).flatten(1))
            if len(films) < len(self.film_columns):
                noise = noise.unflatten(1, (-1, 2)).mean(dim=2)
        return torch.cat(films, dim=1)

    @_in_fp32
    def _cond_films_of(self, cond: Tensor) -> Tensor:
        return linear(self.activate(cond), self.film_cond, self.film_bias)  # [B, F]

    def _kept_cond_films_of(self, cond: Tensor) -> Tensor:
        """Those of a condition [B, C], which is the same in all calls of a sample."""
        kept = self._cond_films
        if kept is None or not torch.equal(kept[0], cond):
            kept = self._cond_films = cond.clone(), self._cond_films_of(cond)
        return kept[1]


def _is_watched() -> bool:
    """Whether somebody compiles, exports or records the operations that are done."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


@cache
def _library() -> ctypes.CDLL:
    library = load(SOURCE)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.panel.restype = number
    library.unet1d.restype = None
    library.unet1d.argtypes = [*[pointer] * 5, number, number, *[pointer] * 2, number, number]
    return library


def _run(
    x: Tensor,
    noise_films: Tensor,
    cond_films: Tensor,
    program: Tensor,
    packed: Tensor,
    constants: Tensor,
) -> Tensor:
    """Raw prediction [B, Tp, Da], whose shapes were checked."""
    x = x.contiguous()
    out = torch.empty_like(x)
    n_films = noise_films.shape[1]
    _library().unet1d(
        program.data_ptr(),
        packed.data_ptr(),
        constants.data_ptr(),
        x.data_ptr(),
        noise_films.data_ptr(),
        n_films if len(noise_films) > 1 else 0,
        n_films == cond_films.shape[1],
        cond_films.data_ptr(),
        out.data_ptr(),
        len(x),
        min(torch.get_num_threads(), max(packed.numel() // BYTES_PER_THREAD, 1)),
    )
    return out


@torch.library.custom_op("cadence::unet1d", mutates_args=())
def _unet1d(
    x: Tensor,
    noise_films: Tensor,
    cond_films: Tensor,
    program: Tensor,
    packed: Tensor,
    constants: Tensor,
) -> Tensor:
    """`_run` as an operator for torch.compile and torch.export, which cannot look into it."""
    inputs = (noise_films.contiguous(), cond_films.contiguous())
    return _run(x, *inputs, program, packed, constants)


@_unet1d.register_fake
def _(
    x: Tensor,
    noise_films: Tensor,
    cond_films: Tensor,
    program: Tensor,
    packed: Tensor,
    constants: Tensor,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


LoweredUNet1d.operators = {torch.ops.cadence.unet1d.default: _run}
