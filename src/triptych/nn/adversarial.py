"""The networks of the adversarial game: from a latent to scaled data, and from scaled data to features."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.blocks import mlp, pyramid, pyramid_widths
from triptych.spaces import ImageSpace, PointSpace, Space

PlayerName = Literal["auto", "mlp", "residual"]


def player_of(network: PlayerName, space: Space) -> PlayerName:
    """The network that 'auto' stands for: residual convolutions for images, a perceptron for points.

    Raises:
        InputError: If points are to be convolved.
    """
    if isinstance(space, PointSpace) and network not in ("auto", "mlp"):
        raise InputError(f"network is {network!r}, which is for images; points have 'mlp'.")
    if network == "auto":
        return "mlp" if isinstance(space, PointSpace) else "residual"
    return network


def generator_network(network: PlayerName, space: Space, n_in: int, n_channels: int, hidden: int) -> nn.Module:
    """A network from (N, n_in) to scaled data, (N, n_channels, ...).

    Arguments:
        network: Not 'auto'. 'mlp' has three hidden layers.
        n_channels: Channels of scaled images, or coordinates of points.
        hidden: Channels of the convolutions at half the image's size (doubled at smaller ones, four-fold at most), or
            units a layer.
    """
    if isinstance(space, PointSpace):
        return mlp(n_in, hidden, 3, n_channels)
    if network == "mlp":
        return _PerceptronGenerator(space, n_in, n_channels, hidden)
    sizes = _sizes(space)
    return _Generator(space, n_channels, n_in, sizes, pyramid_widths(hidden, len(sizes)))


def discriminator_network(network: PlayerName, space: Space, n_channels: int, hidden: int) -> tuple[nn.Module, int]:
    """A network from scaled data, (N, n_channels, ...), to features, (N, n_features), and n_features.

    Arguments:
        As of `generator_network`; n_channels counts those of a condition too.
    """
    if isinstance(space, PointSpace) or network == "mlp":
        n_sites = 1 if isinstance(space, PointSpace) else space.height * space.width
        return nn.Sequential(nn.Flatten(), mlp(n_channels * n_sites, hidden, 3, hidden)), hidden
    sizes = _sizes(space)
    widths = pyramid_widths(hidden, len(sizes))
    return _Discriminator(n_channels, sizes, widths), widths[-1]


def _sizes(space: ImageSpace) -> list[tuple[int, int]]:
    """Half the full size and below; an image of 4x4 or less has no smaller one."""
    return pyramid(space.height, space.width)[1:] or [((space.height + 1) // 2, (space.width + 1) // 2)]


class _PerceptronGenerator(nn.Module):
    def __init__(self, space: ImageSpace, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        self.shape = (n_out, space.height, space.width)
        self.layers = mlp(n_in, hidden, 3, math.prod(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        return _squash(self.layers(z).unflatten(1, self.shape))


class _Residual(nn.Module):
    """(x + conv(act(conv(act(x))))) / sqrt 2, with a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        return (self.shortcut(x) + h) * math.sqrt(0.5)


class _Generator(nn.Module):
    """z -> the smallest image of the pyramid -> a residual block a size, upsampling between -> scaled image.

    Like DCGAN (Radford et al. 2016, arXiv:1511.06434) it works at half the image's size at most: the last convolution
    makes the image.
    """

    def __init__(
        self, space: ImageSpace, n_out: int, n_in: int, sizes: list[tuple[int, int]], widths: list[int]
    ) -> None:
        super().__init__()
        self.full, self.sizes = (space.height, space.width), sizes[::-1]
        widths = widths[::-1]
        self.input = nn.Linear(n_in, widths[0] * math.prod(self.sizes[0]))
        self.blocks = nn.ModuleList(_Residual(widths[max(i - 1, 0)], widths[i]) for i in range(len(widths)))
        self.out = nn.Conv2d(widths[-1], n_out, 5, padding=2)

    def forward(self, z: Tensor) -> Tensor:
        h = self.input(z / z.square().mean(1, keepdim=True).add(1e-8).sqrt())
        h = h.unflatten(1, (-1, *self.sizes[0]))
        for size, block in zip(self.sizes, self.blocks, strict=True):
            h = block(_resize(h, size))
        return _squash(self.out(_resize(F.leaky_relu(h, 0.2), self.full)))


class _Discriminator(nn.Module):
    """Scaled image -> strided convolution -> a residual block a size, pooling between -> features, (N, widths[-1])."""

    def __init__(self, n_in: int, sizes: list[tuple[int, int]], widths: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.input = nn.Conv2d(n_in, widths[0], 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(_Residual(widths[max(i - 1, 0)], widths[i]) for i in range(len(widths)))
        self.out = nn.Linear(widths[-1] * math.prod(sizes[-1]), widths[-1])

    def forward(self, y: Tensor) -> Tensor:
        h = self.input(y)
        for size, block in zip(self.sizes, self.blocks, strict=True):
            h = block(h if h.shape[2:] == size else F.adaptive_avg_pool2d(h, size))
        return F.leaky_relu(self.out(F.leaky_relu(h, 0.2).flatten(1)), 0.2)


def _resize(h: Tensor, size: tuple[int, int]) -> Tensor:
    return h if h.shape[2:] == size else F.interpolate(h, size, mode="bilinear", align_corners=False)


def _squash(y: Tensor) -> Tensor:
    """tanh with a slope that never falls below a hundredth.

    On images with much pure black tanh alone saturates early and the generator stops learning (seen on MNIST), while a
    linear output never quite hits the black, which the discriminator sees (on the digits it cost four times the
    Fréchet distance).
    """
    return torch.tanh(y) + 0.01 * y
