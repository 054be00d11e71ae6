"""Encoder of pictures and states: each camera through a network of its own, states beside them.

Frame by frame, then fused: what a frame shows does not depend on when it was seen. So a runtime may
keep the features of the To - 1 older frames, and `fuse(frames)` of kept and new ones is the
condition that a call on all of them gives.

Source: Chi et al. 2023, Diffusion Policy, arXiv:2303.04137, section III-B: one encoder per camera,
none shared; all steps side by side.

Differences from the paper:

1. The centre is cut out here, whenever a picture comes uncropped. Training cuts out elsewhere at
   random beforehand (data.augment.RandomCrop), so there is no mode to forget.
2. An MLP may follow, so that the size of the condition does not grow with cameras and steps.

Shape legend: `B` batch, `To` observed steps, `H W C` of a picture, `F` features of a frame, `C`
condition size.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Condition from the pictures and states of To steps."""

    def __init__(
        self,
        *,
        feature_shapes: Mapping[str, tuple[int, ...]],
        obs_horizon: int,
        trunk: Callable[..., nn.Module],
        crop: int | None = None,
        hidden: int | None = None,
    ):
        """An encoder.

        Args:
            feature_shapes: field name -> (H, W, C) of a picture, or (F,).
            obs_horizon: To.
            trunk: makes the network of a camera, given its `image_shape`; see `policy.nets.vision`.
            crop: height and width of the square that a network sees, in the centre unless training
                cut it out elsewhere; null: the whole picture.
            hidden: size of the two layers of an MLP, which is then also C; null for no MLP.

        Raises:
            ValueError: no field is a picture, one is smaller than `crop`, or a size is impossible.
        """
        super().__init__()
        self.crop = crop
        self.shapes = {name: tuple(shape) for name, shape in feature_shapes.items()}
        self.cameras = tuple(name for name, shape in self.shapes.items() if len(shape) == 3)
        self.states = tuple(name for name in self.shapes if name not in self.cameras)
        self._check(hidden)
        self.trunks = nn.ModuleList(trunk(image_shape=self.seen(name)) for name in self.cameras)
        self.frame_size = sum(int(trunk.feature_size) for trunk in self.trunks)  # pyright: ignore
        self.frame_size += sum(self.shapes[name][0] for name in self.states)
        size = obs_horizon * self.frame_size
        self.cond_size = size if hidden is None else hidden
        self.mlp = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        )

    def _check(self, hidden: int | None) -> None:
        if not self.cameras:
            raise ValueError(
                f"no field is a picture (height, width, channels): the fields are {self.shapes}; "
                f"use encoder=state"
            )
        for name in self.states:
            if len(self.shapes[name]) != 1:
                raise ValueError(
                    f"the field {name!r} has shape {self.shapes[name]}, an encoder takes pictures "
                    f"(height, width, channels) and states (features)"
                )
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden is {hidden}, give at least 1, or null for no MLP")
        for name in self.cameras:
            height, width, _ = self.shapes[name]
            if self.crop is not None and not 1 <= self.crop <= min(height, width):
                raise ValueError(
                    f"crop is {self.crop}, the pictures of {name!r} are {height} x {width} px: "
                    f"set it to 1..{min(height, width)}, or to null for the whole picture"
                )

    def seen(self, name: str) -> tuple[int, ...]:
        """Height, width and channels of what the network of a camera sees."""
        height, width, n_channels = self.shapes[name]
        return (self.crop or height, self.crop or width, n_channels)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Condition [B, C] from field name -> [B, To, F], of a picture [B, To, H, W, C]."""
        return self.fuse(self.frames(features))

    def frames(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features [B, T, F] of each of T frames; T is any number, such as 1 for the newest.

        Args:
            features: field name -> [B, T, F]; of a picture [B, T, H, W, C] in -1..1, whole or
                already cropped.

        Raises:
            ValueError: a picture is of another size.
        """
        parts = [
            trunk(self._cropped(name, features[name]).flatten(0, 1)).unflatten(
                0, features[name].shape[:2]
            )
            for name, trunk in zip(self.cameras, self.trunks, strict=True)
        ]
        parts += [features[name] for name in self.states]
        return torch.cat(parts, dim=-1)

    def fuse(self, frames: Tensor) -> Tensor:
        """Condition [B, C] from the features [B, To, F] of all frames, the newest last."""
        return self.mlp(frames.flatten(1))

    def _cropped(self, name: str, images: Tensor) -> Tensor:
        """The centre of pictures [B, T, H, W, C], or all of them where they are cropped already."""
        shape, seen = tuple(images.shape[-3:]), self.seen(name)
        if shape == seen:
            return images
        if shape != self.shapes[name]:
            raise ValueError(
                f"the pictures of {name!r} are {shape} (height, width, channels), the encoder was "
                f"built for {self.shapes[name]}, cropped to {seen}: give one of these sizes"
            )
        top, left = (shape[0] - seen[0]) // 2, (shape[1] - seen[1]) // 2
        return images[..., top : top + seen[0], left : left + seen[1], :]
