"""Networks from data to a vector and back: perceptrons, plain convolutions, residual convolutions."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.nn.blocks import ResidualBlock, Scale, mlp, pyramid, pyramid_widths, with_condition
from triptych.spaces import ImageSpace, PointSpace, Space

NetworkName = Literal["auto", "linear", "mlp", "convolutional", "residual"]


def network_of(network: NetworkName, space: Space) -> NetworkName:
    """The network that 'auto' stands for: residual convolutions for images, a perceptron for points.

    Raises:
        InputError: If points are to be convolved.
    """
    if isinstance(space, PointSpace):
        if network not in ("auto", "linear", "mlp"):
            raise InputError(f"network is {network!r}, which is for images; points have 'linear' or 'mlp'.")
        return "mlp" if network == "auto" else network
    return "residual" if network == "auto" else network


def hidden_of(hidden: int | None, network: NetworkName, space: Space) -> int:
    """Width of a network: units a layer of a perceptron, channels at full size of a convolutional one."""
    if hidden is not None:
        return hidden
    if network == "mlp":
        return 128 if isinstance(space, PointSpace) else 256
    # Wider layers at full size would take over a second a step at 28x28 on two cores.
    return 32 if space.n_dims < 256 else 16


class Encoder(nn.Module):
    """Data, and what they are conditioned on, to a vector.

    Arguments:
        network: Not 'auto'. 'convolutional' has ReLUs and `n_blocks` convolutions at each size of the pyramid,
            'residual' has as many residual blocks; both halve the image by strided convolutions, and end in one linear
            layer. 'mlp' has n_blocks + 1 hidden layers, 'linear' none.
        n_condition: Features of the condition; 0 for none.
        hidden: Units a layer, or channels at full size (doubled at smaller ones, four-fold at most).
        dropout: Share of channels dropped in the residual blocks, or of units of a perceptron, while training.
        n_out: Size of the vector.
    """

    def __init__(
        self,
        space: Space,
        network: NetworkName,
        n_condition: int,
        hidden: int,
        n_blocks: int,
        dropout: float,
        n_out: int,
    ) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.is_flat = network in ("linear", "mlp")
        if isinstance(space, PointSpace) or self.is_flat:
            n_in = self.scale.n_channels * (1 if isinstance(space, PointSpace) else space.height * space.width)
            n_layers = 0 if network == "linear" else n_blocks + 1
            self.layers = mlp(n_in + n_condition, hidden, n_layers, n_out, dropout)
            return
        sizes = pyramid(space.height, space.width)
        widths = pyramid_widths(hidden, len(sizes))
        layers: list[nn.Module] = [nn.Conv2d(self.scale.n_channels + n_condition, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += _at_one_size(network, width, n_blocks, dropout)
        last = nn.SiLU() if network == "residual" else nn.Identity()
        self.layers = nn.Sequential(*layers, last, nn.Flatten(), nn.Linear(widths[-1] * math.prod(sizes[-1]), n_out))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Data in data units, (N, *space.shape), and a condition, (N, n_condition) -> (N, n_out)."""
        return self.of_scaled(self.scale(x), condition)

    def of_scaled(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """As `forward`, of data that are scaled already, (N, n_channels, ...)."""
        return self.layers(with_condition(y.flatten(1) if self.is_flat else y, condition))


class Decoder(nn.Module):
    """The encoder run backwards: a vector, and a condition, to outputs for each site or for a point.

    Nearest-neighbour upsampling takes the place of the strides.

    Arguments:
        n_in: Size of the vector.
        n_outputs: Of each site, or of a point.
        Others as of `Encoder`.
    """

    def __init__(
        self,
        space: Space,
        network: NetworkName,
        n_in: int,
        n_condition: int,
        hidden: int,
        n_blocks: int,
        dropout: float,
        n_outputs: int,
    ) -> None:
        super().__init__()
        self.space, self.is_flat = space, network in ("linear", "mlp")
        n_in += n_condition
        if isinstance(space, PointSpace) or self.is_flat:
            n_sites = 1 if isinstance(space, PointSpace) else space.height * space.width
            n_layers = 0 if network == "linear" else n_blocks + 1
            self.layers = mlp(n_in, hidden, n_layers, n_outputs * n_sites, dropout)
            return
        self.sizes = pyramid(space.height, space.width)[::-1]
        widths = pyramid_widths(hidden, len(self.sizes))[::-1]
        self.input = nn.Linear(n_in, widths[0] * math.prod(self.sizes[0]))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i - 1], width, 3, padding=1) if i > 0 else nn.Identity(),
                *_at_one_size(network, width, n_blocks, dropout),
            )
            for i, width in enumerate(widths)
        )
        self.last = nn.SiLU() if network == "residual" else nn.Identity()
        self.out = nn.Conv2d(widths[-1], n_outputs, 1)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, n_in) and (N, n_condition) -> (N, n_outputs, H, W) for images, (N, n_outputs) for points."""
        z = with_condition(z, condition)
        if self.is_flat:
            outputs = self.layers(z)
            if isinstance(self.space, ImageSpace):
                outputs = outputs.unflatten(1, (-1, self.space.height, self.space.width))
            return outputs
        h = self.input(z).unflatten(1, (-1, *self.sizes[0]))
        for size, block in zip(self.sizes, self.blocks, strict=True):
            h = block(F.interpolate(h, size) if h.shape[2:] != size else h)
        return self.out(self.last(h))


def _at_one_size(network: NetworkName, width: int, n_blocks: int, dropout: float) -> list[nn.Module]:
    """What a convolutional network does at one size of the pyramid."""
    if network == "residual":
        return [ResidualBlock(width, dropout) for _ in range(n_blocks)]
    layers: list[nn.Module] = [nn.ReLU()]
    for _ in range(n_blocks):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        layers += [parallel.Dropout2d(dropout)] if dropout else []
    return layers
