"""Parts that several models are built from: scaling of data, residual blocks, perceptrons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.spaces import ImageSpace, PointSpace, Space


class Scale(nn.Module):
    """Turns data into what a network reads, centred and of unit size.

    Integer images become floats in -1 .. 1 (palette images: one channel a colour, since the levels have no order);
    points are standardised with the centre and scale of their space.
    """

    center: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, PointSpace):
            self.register_buffer("center", torch.tensor(space.center or (0.0,) * space.dim), persistent=False)

    @property
    def n_channels(self) -> int:
        """Channels (images) or coordinates (points) of the result."""
        if isinstance(self.space, PointSpace):
            return self.space.dim
        return self.space.channels * n_inputs(self.space)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) or points (N, dim), in data units -> float32, (N, n_channels, ...)."""
        if isinstance(self.space, PointSpace):
            return (x.float() - self.center) / self.space.scale
        return as_channels(level_features(x, self.space))

    def inverse(self, y: Tensor) -> Tensor:
        """The datum nearest to a network's float output: the inverse of `forward`, images rounded and clamped."""
        if isinstance(self.space, PointSpace):
            return y.float() * self.space.scale + self.center
        if self.space.palette:
            return as_levels(y.argmax(1, keepdim=True), self.space)
        return as_levels((y.float() + 1) * ((self.space.levels - 1) / 2), self.space)


def level_features(x: Tensor, space: ImageSpace, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels, integers, (...), to what a network reads of each, (..., n_inputs), see `n_inputs`.

    Palette colours become indicator vectors, since they have no order; other levels are scaled to [-1, 1].
    """
    if space.palette is not None:
        return F.one_hot(x.long(), space.levels).to(dtype)
    return (x.to(dtype) * (2 / (space.levels - 1)) - 1).unsqueeze(-1)


def n_inputs(space: ImageSpace) -> int:
    """Features of a sub-pixel: one, or one a colour of a palette."""
    return space.levels if space.palette is not None else 1


def as_channels(features: Tensor) -> Tensor:
    """Features of each sub-pixel, (N, C, H, W, F), as features of a site, group by group, (N, C * F, H, W)."""
    return features.movedim(-1, 2).flatten(1, 2)


def with_condition(h: Tensor, condition: Tensor | None) -> Tensor:
    """Features, (N, F, ...), and beside them those of a condition, (N, n_condition), the same at every site.

    Returns:
        (N, F + n_condition, ...); h itself where the condition is None.
    """
    if condition is None:
        return h
    condition = condition.reshape(*condition.shape, *(1,) * (h.ndim - 2)).expand(-1, -1, *h.shape[2:])
    return torch.cat([h, condition.to(h.dtype)], dim=1)


def as_levels(x: Tensor, space: ImageSpace) -> Tensor:
    """Rounds and clamps to the levels of a space, in the integer dtype that images are stored in."""
    return x.round().clamp(0, space.levels - 1).to(torch.uint8 if space.levels <= 256 else torch.int32)


def pyramid(height: int, width: int, smallest: int = 4) -> list[tuple[int, int]]:
    """Image sizes from the full one, halved (rounding up) until no side is above `smallest`."""
    sizes = [(height, width)]
    while max(sizes[-1]) > smallest:
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


def pyramid_widths(hidden: int, n_sizes: int) -> list[int]:
    """Channels at each size of a pyramid: `hidden` at full size, doubled at each smaller one, four-fold at most."""
    return [hidden * min(2**i, 4) for i in range(n_sizes)]


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), the second convolution starting at zero so that a deep stack starts as identity.

    Arguments:
        channels: In and out.
        dropout: Share of channels dropped between the convolutions.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.dropout = parallel.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same."""
        h = self.conv1(F.silu(x))
        return x + self.conv2(self.dropout(F.silu(h)))


def mlp(n_in: int, hidden: int, n_layers: int, n_out: int, dropout: float = 0.0) -> nn.Sequential:
    """A perceptron with `n_layers` hidden layers of SiLU units, each zeroed with probability `dropout` in training."""
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(n_in if i == 0 else hidden, hidden), nn.SiLU()]
        layers += [parallel.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(hidden if n_layers else n_in, n_out))
