"""Trunks that turn a picture into a feature vector: a small CNN, ResNet-18, spatial softmax.

A trunk is built with `image_shape=` (height, width, channels), has a `feature_size` F, and maps
pictures [N, H, W, C] with values in -1..1 to features [N, F].

Sources: Levine et al. 2016, arXiv:1504.00702 (spatial softmax); He et al. 2016, arXiv:1512.03385
(ResNet-18); Chi et al. 2023, Diffusion Policy, arXiv:2303.04137 (both, with group normalisation).

Differences from the papers:

1. Group normalisation throughout, in groups of `GROUP_SIZE` channels: a batch norm's running
   statistics lag behind the averaged weights that are evaluated.
2. Values come in as -1..1 and stay so. There are no pretrained weights, hence no statistics of
   ImageNet that would have to be applied in the right place.
3. The small CNN keeps a quarter of the resolution up to its spatial softmax, where ResNet-18 is at
   a thirty-second: a keypoint is placed within a fraction of a pixel.
4. Both trunks also give the mean of their last maps, which tells whether a thing is there at all.
5. Keypoints start sharp, and the features are normalised. With the usual initial weights a softmax
   over a picture is flat, so every keypoint lies in its middle, whatever the picture shows: what
   differs between two pictures is a thousandth, and training begins by finding that out.

Shape legend: `N` pictures, `H W` height and width, `C` channels, `K` keypoints, `F` features.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

GROUP_SIZE = 16  # channels
SHARPNESS = 20.0  # of untrained keypoints, against the usual initial weights


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation of groups of 16 channels, of all where there are fewer.

    Raises:
        ValueError: the channels do not make whole groups.
    """
    if channels > GROUP_SIZE and channels % GROUP_SIZE:
        raise ValueError(
            f"a layer has {channels} channels, a group norm needs a multiple of {GROUP_SIZE}, or "
            f"fewer: take {channels // GROUP_SIZE * GROUP_SIZE}"
        )
    return nn.GroupNorm(max(1, channels // GROUP_SIZE), channels)


class SpatialSoftmax(nn.Module):
    """Where each of K learned features is: the mean position under a softmax over the picture."""

    def __init__(self, channels: int, n_keypoints: int):
        super().__init__()
        if n_keypoints < 1:
            raise ValueError(f"n_keypoints is {n_keypoints}, give at least 1")
        self.score = nn.Conv2d(channels, n_keypoints, 1)
        with torch.no_grad():
            self.score.weight.mul_(SHARPNESS)
        self.feature_size = 2 * n_keypoints

    def forward(self, h: Tensor) -> Tensor:
        """Positions [N, 2 K], all x then all y, in -1..1, from maps [N, C, H, W]."""
        # A position in bfloat16 would be coarser than a pixel.
        with torch.autocast(h.device.type, enabled=False):
            return expected_position(self.score(h.float()))


def expected_position(scores: Tensor) -> Tensor:
    """Mean positions [N, 2 K], all x then all y, under the softmax of scores [N, K, H, W]."""
    height, width = scores.shape[-2:]
    p = scores.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = p.sum(dim=2) @ pixel_centers(width, like=scores)
    y = p.sum(dim=3) @ pixel_centers(height, like=scores)
    return torch.cat([x, y], dim=1)


def pixel_centers(n: int, *, like: Tensor) -> Tensor:
    """[n] centers of n pixels side by side that fill -1..1."""
    return (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1


class Head(nn.Module):
    """Features of maps [N, C, H, W]: K keypoints, and the mean of each channel; normalised."""

    def __init__(self, channels: int, n_keypoints: int):
        super().__init__()
        self.keypoints = SpatialSoftmax(channels, n_keypoints)
        self.feature_size = self.keypoints.feature_size + channels
        self.norm = nn.LayerNorm(self.feature_size)

    def forward(self, h: Tensor) -> Tensor:
        """Features [N, 2 K + C] from maps [N, C, H, W]."""
        return self.norm(torch.cat([self.keypoints(h), h.float().mean(dim=(2, 3))], dim=1))


def channels_first(images: Tensor) -> Tensor:
    """[N, C, H, W] from [N, H, W, C], copied: faster here than strided on a CPU, mostly in bf16."""
    return images.permute(0, 3, 1, 2).contiguous()


class SmallCNN(nn.Module):
    """A few convolutions and a spatial softmax: trains on a CPU."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        channels: Sequence[int] = (16, 32, 64, 64),
        strides: Sequence[int] = (2, 2, 1, 1),
        n_keypoints: int = 32,
    ):
        """A trunk.

        Args:
            image_shape: height, width, channels.
            channels: of each convolution; the first has a kernel of 5, the others of 3.
            strides: of each convolution.
            n_keypoints: K, of the spatial softmax.

        Raises:
            ValueError: there is no convolution, or not one stride for each, or the picture is
                smaller than they need, or the channels do not make whole groups.
        """
        super().__init__()
        if not channels or len(channels) != len(strides):
            raise ValueError(
                f"channels has {len(channels)} entries and strides {len(strides)}: give one of "
                f"each per convolution, at least one"
            )
        check_size(image_shape, strides)
        sizes = pairwise([image_shape[2], *channels])
        self.layers = nn.Sequential()
        for number, ((size_in, size_out), stride) in enumerate(zip(sizes, strides, strict=True)):
            kernel = 5 if number == 0 else 3
            self.layers.append(
                nn.Conv2d(size_in, size_out, kernel, stride, kernel // 2, bias=False)
            )
            self.layers.append(group_norm(size_out))
            self.layers.append(nn.SiLU())
        self.head = Head(channels[-1], n_keypoints)
        self.feature_size = self.head.feature_size

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, F] from pictures [N, H, W, C] in -1..1."""
        return self.head(self.layers(channels_first(images)))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip connection, the first with a stride."""

    def __init__(self, size_in: int, size_out: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(size_in, size_out, 3, stride, 1, bias=False),
            group_norm(size_out),
            nn.ReLU(),
            nn.Conv2d(size_out, size_out, 3, 1, 1, bias=False),
            group_norm(size_out),
        )
        self.skip = (
            nn.Identity()
            if size_in == size_out and stride == 1
            else nn.Sequential(
                nn.Conv2d(size_in, size_out, 1, stride, bias=False), group_norm(size_out)
            )
        )

    def forward(self, h: Tensor) -> Tensor:
        """Maps [N, C_out, H / stride, W / stride] from maps [N, C_in, H, W]."""
        return (self.layers(h) + self.skip(h)).relu()


class ResNet18(nn.Module):
    """ResNet-18 without its classifier, with group norms and a spatial softmax."""

    def __init__(self, *, image_shape: tuple[int, int, int], n_keypoints: int = 32):
        """A trunk.

        Args:
            image_shape: height, width, channels.
            n_keypoints: K, of the spatial softmax.

        Raises:
            ValueError: the picture is smaller than 32 x 32.
        """
        super().__init__()
        check_size(image_shape, [2] * 5)
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[2], 64, 7, 2, 3, bias=False),
            group_norm(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stages = nn.Sequential()
        for size_in, size_out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            self.stages.append(ResidualBlock(size_in, size_out, stride))
            self.stages.append(ResidualBlock(size_out, size_out, 1))
        self.head = Head(512, n_keypoints)
        self.feature_size = self.head.feature_size

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, F] from pictures [N, H, W, C] in -1..1."""
        return self.head(self.stages(self.stem(channels_first(images))))


def check_size(image_shape: tuple[int, int, int], strides: Sequence[int]) -> None:
    """Raise ValueError where a picture is smaller than what one last pixel stands for."""
    stride = 1
    for factor in strides:
        if factor < 1:
            raise ValueError(f"strides are {list(strides)}, each must be at least 1")
        stride *= factor
    height, width, _ = image_shape
    if min(height, width) < stride:
        raise ValueError(
            f"pictures are {height} x {width} px, this network needs at least {stride} x {stride}: "
            f"record larger ones, or take a network with smaller strides (encoder=small_cnn)"
        )
