"""The networks of the adversarial game: from a latent to scaled data, and from scaled data to features.

References:
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks, Radford, Metz &
        Chintala 2016, arXiv:1511.06434.
    Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, arXiv:1802.05957.
    Large Scale GAN Training for High Fidelity Natural Image Synthesis, Brock, Donahue & Simonyan 2019,
        arXiv:1809.11096.
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains, Tancik et al. 2020,
        arXiv:2006.10739.
    PacGAN: The power of two samples in generative adversarial networks, Lin et al. 2018, arXiv:1712.04086.
    DeLiGAN: Generative Adversarial Networks for Diverse and Limited Data, Gurumurthy, Sarvadevabhatla & Babu 2017,
        arXiv:1706.02071.
    Disconnected Manifold Learning for Generative Adversarial Networks, Khayatkhoei, Elgammal & Singh 2018,
        arXiv:1806.00880.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from triptych import parallel
from triptych.errors import InputError
from triptych.nn.blocks import mlp, pyramid, pyramid_widths
from triptych.spaces import ImageSpace, PointSpace, Space

PlayerName = Literal["auto", "mlp", "residual", "dcgan"]

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
"""Layers whose weight is a matrix, or is read as one."""


def player_of(network: PlayerName, space: Space) -> PlayerName:
    """The network that 'auto' stands for: a perceptron for points, DCGAN's convolutions for images.

    Images of fewer than 256 sub-pixels have residual ones: on the digits they come nearer to the data in a minute, and
    DCGAN is past its best after twenty seconds.

    Raises:
        InputError: If points are to be convolved.
    """
    if isinstance(space, PointSpace) and network not in ("auto", "mlp"):
        raise InputError(f"network is {network!r}, which is for images; points have 'mlp'.")
    if network == "auto":
        return "mlp" if isinstance(space, PointSpace) else "residual" if space.n_dims < 256 else "dcgan"
    return network


def generator_network(
    network: PlayerName, space: Space, n_in: int, n_channels: int, hidden: int, n_means: int = 1
) -> nn.Module:
    """A network from (N, n_in) to scaled data, (N, n_channels, ...).

    Arguments:
        network: Not 'auto'. 'mlp' has three hidden layers.
        n_channels: Channels of scaled images, or coordinates of points.
        hidden: Channels of the convolutions at half the image's size (doubled at smaller ones, four-fold at most), or
            units a layer.
        n_means: Of `MeansGenerator`, for points; 1 for the perceptron alone.
    """
    if isinstance(space, PointSpace):
        return mlp(n_in, hidden, 3, n_channels) if n_means == 1 else MeansGenerator(n_in, hidden, n_channels, n_means)
    if network == "mlp":
        return _PerceptronGenerator(space, n_in, n_channels, hidden)
    sizes = _sizes(space)
    widths = pyramid_widths(hidden, len(sizes))
    if network == "dcgan":
        return _TransposedGenerator(space, n_channels, n_in, sizes, widths)
    return _Generator(space, n_channels, n_in, sizes, widths)


def discriminator_network(
    network: PlayerName, space: Space, n_channels: int, hidden: int, *, batch_norm: bool = True
) -> tuple[nn.Module, int]:
    """A network from scaled data, (N, n_channels, ...), to features, (N, n_features), and n_features.

    Arguments:
        As of `generator_network`; n_channels counts those of a condition too.
        batch_norm: Whether 'dcgan' has its batch normalisation, as no other network has.
    """
    if isinstance(space, PointSpace) or network == "mlp":
        n_sites = 1 if isinstance(space, PointSpace) else space.height * space.width
        return nn.Sequential(nn.Flatten(), mlp(n_channels * n_sites, hidden, 2, hidden), nn.SiLU()), hidden
    sizes = _sizes(space)
    widths = pyramid_widths(hidden, len(sizes))
    if network == "dcgan":
        return _StridedDiscriminator(n_channels, widths, batch_norm), widths[-1] * math.prod(sizes[-1])
    return _Discriminator(n_channels, sizes, widths), widths[-1]


def weighted_layers(*networks: nn.Module) -> list[nn.Module]:
    """All layers of some networks that have a weight matrix."""
    return [layer for network in networks for layer in network.modules() if isinstance(layer, WEIGHTED)]


def normalise_spectrally(layers: Iterable[nn.Module]) -> None:
    """Divides the weight of each layer by its largest singular value, found by a step of power iteration at each use.

    Source:
        Miyato et al. 2018, arXiv:1802.05957, section 2 and algorithm 1.
    """
    for layer in layers:
        parametrizations.spectral_norm(layer)


def orthogonality_penalty(layers: Iterable[nn.Module]) -> Tensor:
    """Squared products of different rows of each layer's weight, summed; scalar, 0 where all rows are orthogonal.

    Of spectrally normalised weights it takes those that are learnt, before they are divided.

    Source:
        Brock, Donahue & Simonyan 2019, arXiv:1809.11096, eq. 3, without beta. Differs: the products are those of a
        layer's outputs, as in the authors' code, also where it has more outputs than inputs.
    """
    weights = (learnt_weight(layer).flatten(1) for layer in layers)
    return torch.stack([2 * (rows @ rows.T).square().triu(1).sum() for rows in weights]).sum()


def learnt_weight(layer: nn.Module) -> Tensor:
    """A layer's weight before its spectral normalisation, if it has one."""
    is_normalised = parametrize.is_parametrized(layer, "weight")
    return layer.get_parameter("parametrizations.weight.original" if is_normalised else "weight")


def packed(y: Tensor, size: int) -> Tensor:
    """Each `size` data as one with their channels side by side: (N, C, ...) -> (N // size, size C, ...).

    Raises:
        InputError: If there are fewer than `size`, or several processes or pieces share a batch and a share is no
            multiple of it.
    Source:
        Lin et al. 2018, arXiv:1712.04086, section 2.
    """
    if len(y) < size:
        raise InputError(f"pack is {size}, but a batch has {len(y)} items; take a larger --batch-size.")
    if len(y) % size and parallel.shares() > 1:  # what is left over is the batch's, not each share's
        raise InputError(
            f"pack is {size}, but each of the {parallel.shares()} shares of a batch has {len(y)} items; take a"
            " --batch-size that gives each a multiple."
        )
    n = len(y) // size
    return y[: n * size].reshape(n, size * y.shape[1], *y.shape[2:])


class FourierFeatures(nn.Module):
    """Points, and sines and cosines of them along fixed directions, from coarse to fine: (N, dim) -> (N, n_out).

    A perceptron learns slowly what changes fast with its input, and a mode of a density can be narrow: on the grid of
    25 Gaussians, a discriminator without them pulled samples to a few modes before it saw the others.

    Arguments:
        dim: Dimensions of a point.
        n_waves: Number of frequencies, spread evenly in their logarithm between 0.5 and 60 radians per unit.
    Source:
        Tancik et al. 2020, arXiv:2006.10739, eq. 5. Differs in the choice of frequencies.
    """

    waves: Tensor

    def __init__(self, dim: int, n_waves: int = 64) -> None:
        super().__init__()
        self.n_out = dim + 2 * n_waves
        directions = F.normalize(torch.randn(dim, n_waves), dim=0)
        frequencies = torch.logspace(math.log10(0.5), math.log10(60), n_waves)
        self.register_buffer("waves", directions * frequencies)

    def forward(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):  # Hundreds of radians need more than 8 bits.
            phases = y.float() @ self.waves
        return torch.cat([y, phases.sin(), phases.cos()], dim=1)


class MeansGenerator(nn.Module):
    """A generator of points that can jump: (N, n_in) -> (N, dim).

    The signs of the first log2(n_means) inputs choose one of the means, which are learnt. The point is that mean plus
    what a perceptron makes of it and of all other inputs. A perceptron alone is continuous: where the data have gaps it
    draws threads across them, and where it starts in one place it may never reach all modes.

    Arguments:
        n_in: Standard normal latents, and a condition after them.
        n_means: A power of two, at least 2.
    Source:
        A mixture of learnt Gaussians for z: Gurumurthy et al. 2017, arXiv:1706.02071, section 3; a discrete latent for
        data that are not connected: Khayatkhoei et al. 2018, arXiv:1806.00880, section 3. Differs: the means are points
        of the data's space, all equally likely, and the choice is a part of z.
    """

    def __init__(self, n_in: int, hidden: int, dim: int, n_means: int) -> None:
        super().__init__()
        self.n_signs = n_means.bit_length() - 1
        self.means = nn.Parameter(torch.randn(n_means, dim))
        self.rest = mlp(n_in - self.n_signs + dim, hidden, 3, dim)

    def forward(self, z: Tensor) -> Tensor:
        place = 2 ** torch.arange(self.n_signs, device=z.device)
        chosen = ((z[:, : self.n_signs] > 0) * place).sum(1)  # (N,)
        mean = F.embedding(chosen, self.means)
        return mean + self.rest(torch.cat([mean, z[:, self.n_signs :]], 1))


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalises by its batch, so that it draws with running statistics."""
    return any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@contextmanager
def standing_statistics(network: nn.Module) -> Iterator[None]:
    """Within, the running statistics of batch normalisation become the means over all batches that pass the network.

    The averaged weights of a training are never trained, and the running statistics that they get are another
    network's. All else of the network stays in evaluation mode, or comes into it.

    Source:
        Brock, Donahue & Simonyan 2019, arXiv:1809.11096, section 3 and appendix E.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before, momenta = network.training, [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None
    try:
        yield
    finally:
        network.train(before)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _sizes(space: ImageSpace) -> list[tuple[int, int]]:
    """Half the full size and below; an image of 4x4 or less has no smaller one."""
    return pyramid(space.height, space.width)[1:] or [((space.height + 1) // 2, (space.width + 1) // 2)]


class _PerceptronGenerator(nn.Module):
    def __init__(self, space: ImageSpace, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        self.shape = (n_out, space.height, space.width)
        self.layers = mlp(n_in, hidden, 3, math.prod(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        return squash(self.layers(z).unflatten(1, self.shape))


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
            h = block(resize(h, size))
        return squash(self.out(resize(F.leaky_relu(h, 0.2), self.full)))


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


class _TransposedGenerator(nn.Module):
    """z -> the smallest image of the pyramid -> transposed convolutions, each to the next size -> scaled image.

    Source:
        Radford et al. 2016, arXiv:1511.06434, figure 1 and section 3. Differs: sizes follow the image's; normal
        latents; `squash` instead of tanh.
    """

    def __init__(
        self, space: ImageSpace, n_out: int, n_in: int, sizes: list[tuple[int, int]], widths: list[int]
    ) -> None:
        super().__init__()
        self.sizes = [(space.height, space.width), *sizes][::-1]
        widths = widths[::-1]
        # Batch normalisation takes away what a bias adds.
        self.input = nn.Linear(n_in, widths[0] * math.prod(self.sizes[0]), bias=False)
        self.norms = nn.ModuleList(parallel.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 5, 2, 2, bias=False) for before, after in pairwise(widths)
        )
        self.out = nn.ConvTranspose2d(widths[-1], n_out, 5, 2, 2)
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        h = self.input(z).unflatten(1, (-1, *self.sizes[0]))
        for norm, layer, size in zip(self.norms, [*self.layers, self.out], self.sizes[1:], strict=True):
            h = layer(F.relu(norm(h)), size)
        return squash(h)


class _StridedDiscriminator(nn.Module):
    """Scaled image -> convolutions of stride 2 -> features, all of the smallest size.

    Source:
        As of the generator. Spectral normalisation takes the place of that by the batch: Miyato et al. 2018,
        arXiv:1802.05957, section 4.
    """

    def __init__(self, n_in: int, widths: list[int], batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 5, 2, 2, bias=i == 0 or not batch_norm)
            for i, (before, after) in enumerate(pairwise([n_in, *widths]))
        )
        norms = [parallel.BatchNorm2d(width) if batch_norm else nn.Identity() for width in widths[1:]]
        self.norms = nn.ModuleList([nn.Identity(), *norms])
        _initialise(self)

    def forward(self, y: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = F.leaky_relu(norm(layer(y)), 0.2)
        return y.flatten(1)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02^2), and the gains of batch normalisation about 1.

    Source:
        Radford et al. 2016, arXiv:1511.06434, section 4. The gains: the authors' code.
    """
    for layer in network.modules():
        if isinstance(layer, WEIGHTED):
            nn.init.normal_(layer.weight, 0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.02)


def resize(h: Tensor, size: tuple[int, int]) -> Tensor:
    return h if h.shape[2:] == size else F.interpolate(h, size, mode="bilinear", align_corners=False)


def squash(y: Tensor) -> Tensor:
    """tanh with a slope that never falls below a hundredth.

    On images with much pure black tanh alone saturates early and the generator stops learning (seen on MNIST), while a
    linear output never quite hits the black, which the discriminator sees (on the digits it cost four times the
    Fréchet distance).
    """
    return torch.tanh(y) + 0.01 * y
