"""The state-based U-Net of Diffusion Policy as ours, by the names and shapes of its weights.

    theirs                                                 ours
    model.diffusion_step_encoder.{1,3}                     net.noise_embed.mlp.{0,2}
    model.{down,up}_modules.L.{0,1}, mid_modules.{0,1}     net.{down,up}.L, middle .{first,second}
        .blocks.{0,1}.block.{0,1}                              .{first,second}.{0,1}
        .cond_encoder.1                                        .film.{noise,cond}
        .residual_conv                                         .skip
    model.{down,up}_modules.L.2.conv                       net.{down,up}sample.L
    model.final_conv.0.block.{0,1}, final_conv.1           net.last.{0,1}, out
    normalizer.params_dict.{obs,action}.{scale,offset}     normalizer.{state,action}/{scale,center}

Their FiLM is one linear layer on [noise embedding, condition], ours the sum of one on each, so its
columns are divided. Their normaliser is `x * scale + offset`, ours `(x - center) / scale`.

Source: Chi et al. 2023, Diffusion Policy, arXiv:2303.04137, and its published checkpoints.

What has no place here: conditions by inpainting or per position (`obs_as_global_cond=False`),
images, and FiLM without a scale (`cond_predict_scale=False`).

Shape legend: `To` observed steps, `Do Da` observation and action size, `C` condition size To Do,
`E` noise embedding size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Of all group norms. The last block has as many whatever the configuration says of the others.
N_GROUPS = 8

NET = "model."
NORMALIZER = "normalizer.params_dict."
FIELDS = {"obs": "state", "action": "action"}
IGNORED_PREFIXES = ("mask_generator.",)
IGNORED_PARTS = ("_dummy_variable", "input_stats")


@dataclass(frozen=True)
class ForeignPolicy:
    """A policy in our names.

    Args:
        action_size: Da.
        obs_size: Do.
        obs_horizon: To.
        channels: of each level of the U-Net.
        kernel_size: of its convolutions.
        noise_embed_size: E.
        net: state dict of `policy.nets.unet1d.UNet1d`.
        normalizer: state dict of `data.normalize.Normalizer`, of the fields "state" and "action".
    """

    action_size: int
    obs_size: int
    obs_horizon: int
    channels: tuple[int, ...]
    kernel_size: int
    noise_embed_size: int
    net: dict[str, Tensor]
    normalizer: dict[str, Tensor]


def from_diffusion_policy(
    tensors: Mapping[str, Tensor], *, obs_horizon: int | None = None
) -> ForeignPolicy:
    """The policy that a state dict of `DiffusionUnetLowdimPolicy` holds.

    Args:
        tensors: the state dict.
        obs_horizon: To; None: by the sizes of condition and normaliser.

    Raises:
        ValueError: names are not understood or missing, the policy is of a kind that has no place
            here, or sizes contradict each other.
    """
    net = {k.removeprefix(NET): v for k, v in tensors.items() if k.startswith(NET)}
    scaling = {k: v for k, v in tensors.items() if k.startswith(NORMALIZER)}
    modules = _modules(n_levels=_n_levels(net))
    _check_names(tensors, {*(NET + name for name in _parameters(modules)), *_scalings()})
    channels = tuple(
        len(net[f"down_modules.{level}.0.blocks.0.block.0.weight"])
        for level in range(_n_levels(net))
    )
    _, size_in, kernel_size = _shape(net, "down_modules.0.0.blocks.0.block.0.weight", 3)
    action_size, _, _ = _shape(net, "final_conv.1.weight", 3)
    _, embed_size = _shape(net, "diffusion_step_encoder.1.weight", 2)
    n_film, n_features = _shape(net, "down_modules.0.0.cond_encoder.1.weight", 2)
    cond_size = n_features - embed_size
    n_action = scaling[f"{NORMALIZER}action.scale"].numel()
    if cond_size <= 0 or size_in != action_size or n_action not in (1, action_size):
        raise ValueError(
            f"the U-Net takes {size_in} and gives {action_size} channels for actions of {n_action} "
            f"elements, with a condition of {cond_size}: this policy is conditioned by inpainting, "
            f"which is not supported; give one trained with obs_as_global_cond=True"
        )
    if n_film != 2 * channels[0]:
        raise ValueError(
            f"cond_encoder gives {n_film} values for {channels[0]} channels, {2 * channels[0]} are "
            f"needed, a scale and a shift each: cond_predict_scale=False is not supported"
        )
    n_obs = scaling[f"{NORMALIZER}obs.scale"].numel()
    obs_size, obs_horizon = _observed(cond_size, n_obs, obs_horizon)
    sizes = {"obs": obs_size, "action": action_size}
    return ForeignPolicy(
        action_size=action_size,
        obs_size=obs_size,
        obs_horizon=obs_horizon,
        channels=channels,
        kernel_size=kernel_size,
        noise_embed_size=embed_size,
        net=_net(net, modules, embed_size),
        normalizer={
            name: statistic
            for theirs, ours in FIELDS.items()
            for name, statistic in _scaling(scaling, theirs, ours, sizes[theirs]).items()
        },
    )


def _n_levels(net: Mapping[str, Tensor]) -> int:
    levels = [int(name.split(".")[1]) for name in net if name.startswith("down_modules.")]
    if not levels:
        raise ValueError(
            f"no weight is named {NET}down_modules.*: this is no U-Net of Diffusion Policy"
        )
    return 1 + max(levels)


def _modules(*, n_levels: int) -> dict[str, str]:
    """Our name of each of their modules that has weights."""
    names = {
        "diffusion_step_encoder.1": "noise_embed.mlp.0",
        "diffusion_step_encoder.3": "noise_embed.mlp.2",
        "final_conv.0.block.0": "last.0",
        "final_conv.0.block.1": "last.1",
        "final_conv.1": "out",
    }
    pairs = {"mid_modules": "middle"}
    for level in range(n_levels):
        pairs[f"down_modules.{level}"] = f"down.{level}"
    for level in range(n_levels - 1):
        pairs[f"up_modules.{level}"] = f"up.{level}"
        names[f"down_modules.{level}.2.conv"] = f"downsample.{level}"
        names[f"up_modules.{level}.2.conv"] = f"upsample.{level}"
    order = ("first", "second")
    for their_pair, our_pair in pairs.items():
        for i, block in enumerate(order):
            theirs, ours = f"{their_pair}.{i}", f"{our_pair}.{block}"
            names[f"{theirs}.cond_encoder.1"] = f"{ours}.film"
            names[f"{theirs}.residual_conv"] = f"{ours}.skip"
            for j, conv in enumerate(order):
                for k in (0, 1):  # convolution, group norm
                    names[f"{theirs}.blocks.{j}.block.{k}"] = f"{ours}.{conv}.{k}"
    return names


def _parameters(modules: Mapping[str, str]) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _scalings() -> list[str]:
    return [f"{NORMALIZER}{field}.{kind}" for field in FIELDS for kind in ("scale", "offset")]


def _check_names(tensors: Mapping[str, Tensor], known: set[str]) -> None:
    """Raise ValueError unless the names are those of a policy that is understood."""
    given = {name for name in tensors if not _is_ignored(name)}
    if any(name.startswith(f"{NET}local_cond_encoder.") for name in given):
        raise ValueError(
            "the policy is conditioned per position (obs_as_local_cond=True), which is not "
            "supported; give one trained with obs_as_global_cond=True"
        )
    unknown = sorted(given - known)
    if unknown:
        raise ValueError(
            f"{len(unknown)} names are not those of a state-based U-Net policy: "
            f"{', '.join(unknown)}"
        )
    # Blocks that keep the number of channels have no residual_conv.
    missing = sorted(name for name in known - given if ".residual_conv." not in name)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing: {', '.join(missing)}")


def _is_ignored(name: str) -> bool:
    parts = name.split(".")
    return name.startswith(IGNORED_PREFIXES) or any(part in parts for part in IGNORED_PARTS)


def _shape(net: Mapping[str, Tensor], name: str, n_dimensions: int) -> tuple[int, ...]:
    shape = tuple(net[name].shape)
    if len(shape) != n_dimensions:
        raise ValueError(f"{NET}{name} has shape {shape}, it must have {n_dimensions} dimensions")
    return shape


def _observed(cond_size: int, n_scales: int, obs_horizon: int | None) -> tuple[int, int]:
    """Do and To of a condition; one scale may be meant for all elements."""
    if obs_horizon is None:
        if n_scales == 1:
            raise ValueError(
                f"the normaliser has one scale for all elements, so that a condition of "
                f"{cond_size} does not tell the observed steps: give obs_horizon="
            )
        obs_horizon = max(1, cond_size // n_scales)
    if obs_horizon < 1 or cond_size % obs_horizon:
        raise ValueError(
            f"obs_horizon is {obs_horizon}, it must divide the condition of {cond_size}"
        )
    obs_size = cond_size // obs_horizon
    if n_scales not in (1, obs_size):
        raise ValueError(
            f"a condition of {cond_size} for {obs_horizon} observed steps has {obs_size} elements "
            f"each, but the normaliser has {n_scales}"
        )
    return obs_size, obs_horizon


def _net(
    net: Mapping[str, Tensor], modules: Mapping[str, str], embed_size: int
) -> dict[str, Tensor]:
    """State dict of our network."""
    weights = {}
    for name, tensor in net.items():
        if _is_ignored(name):
            continue
        module, _, kind = name.rpartition(".")
        ours = modules[module]
        if not ours.endswith(".film"):
            weights[f"{ours}.{kind}"] = tensor.float()
        elif kind == "bias":
            weights[f"{ours}.cond.bias"] = tensor.float()
        else:
            _shape(net, name, 2)
            weights[f"{ours}.noise.weight"] = tensor[:, :embed_size].float()
            weights[f"{ours}.cond.weight"] = tensor[:, embed_size:].float()
    return weights


def _scaling(scaling: Mapping[str, Tensor], theirs: str, ours: str, size: int) -> dict[str, Tensor]:
    """Center and scale [size] of a field."""
    scale = scaling[f"{NORMALIZER}{theirs}.scale"].double().flatten()
    offset = scaling[f"{NORMALIZER}{theirs}.offset"].double().flatten()
    if len(offset) != len(scale) or not (scale > 0).all() or not torch.isfinite(offset).all():
        raise ValueError(
            f"the normaliser of {theirs!r} has scale {scale.tolist()} and offset "
            f"{offset.tolist()}: need as many of each, finite, and positive scales"
        )
    return {
        f"{ours}/center": (-offset / scale).float().expand(size).clone(),
        f"{ours}/scale": (1 / scale).float().expand(size).clone(),
    }
