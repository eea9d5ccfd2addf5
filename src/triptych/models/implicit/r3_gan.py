"""R3GAN: a modern baseline without tricks, held by a relativistic loss and penalties on real and generated data.

References:
    The GAN is dead; long live the GAN! A Modern GAN Baseline, Huang, Gokaslan, Kuleshov & Tompkin 2024,
        arXiv:2501.05441.
    The relativistic discriminator: a key element missing from standard GAN, Jolicoeur-Martineau 2018, arXiv:1807.00734.
    Which Training Methods for GANs do actually Converge?, Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406.
    Fixup Initialization: Residual Learning Without Normalization, Zhang, Dauphin & Ma 2019, arXiv:1901.09321.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.models.adversarial import AdversarialModel, Rules, Verdict, gamma_for
from triptych.nn.augment import AugmentName, augmentation_of
from triptych.nn.blocks import pyramid
from triptych.nn.options import check_counts
from triptych.spaces import ImageSpace

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

EXPANSION = 2
"""Channels within a block to those between blocks."""
GROUP_WIDTH = 16
"""Channels of a group of the grouped convolutions, at least."""
SLOPE = 0.2
"""Of the leaky ReLU below 0."""


class R3GAN(AdversarialModel):
    """Residual networks without normalisation, the paired relativistic loss, R1 and R2.

    Arguments:
        space: Images.
        n_classes: Classes that both players are conditioned on.
        gamma: Weight of the penalties at the start; by default as of `gamma_for`. The paper has 0.05 (CIFAR-10) to 150
            (faces of 256x256).
        gamma_end: Weight at the end of the burn-in, and after it. By default a tenth of gamma, as in the paper.
        burn_in: Share of training over which gamma falls.
        n_latents: Size of z, and of the generator's class embedding.
        hidden: Channels at the image's size (doubled at smaller ones, eight-fold at most). By default 32 for images of
            fewer than 256 sub-pixels and 8 for others.
        n_blocks: Residual blocks at each size, of each player.
        augment: Changes to what the discriminator sees: 'diff' (colour, translation, cutout), 'adaptive' (the same,
            as often as keeps the discriminator from being too sure of real images) or 'none'.
        discriminator_rate, generator_rate: Learning rates of Adam, if --learning-rate does not set both.
    Raises:
        InputError: If an option is out of range, or the space is not of images.
    Source:
        Huang et al. 2024, arXiv:2501.05441, section 4, its configuration E, and the authors' code for what it leaves
        open. Differs: few channels, fewer at large sizes; sizes follow the image's; Adam's second decay stays where
        theirs ends, at 0.99; a learning rate of 1e-3 instead of 2e-4, for much shorter trainings, which falls, as the
        moving average grows, as in every training here; no augmentation unless asked for; the noise that hides which
        images are integers.
    """

    space: ImageSpace

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        gamma: float | None = None,
        gamma_end: float | None = None,
        burn_in: float = 0.25,
        n_latents: int = 64,
        hidden: int | None = None,
        n_blocks: int = 1,
        augment: AugmentName = "none",
        discriminator_rate: float = 1e-3,
        generator_rate: float = 1e-3,
    ) -> None:
        super().__init__(space, n_classes)
        if hidden is None:
            hidden = 32 if space.n_dims < 256 else 8
        gamma = gamma_for(space) if gamma is None else gamma
        gamma_end = gamma / 10 if gamma_end is None else gamma_end
        check_counts(n_latents=n_latents, hidden=hidden, n_blocks=n_blocks)
        self.rules = Rules(
            objective="relativistic",
            critic_steps=1,
            penalty="r1_r2",
            gamma=gamma,
            discriminator_rate=discriminator_rate,
            generator_rate=generator_rate,
            betas=(0.0, 0.99),
            gamma_end=gamma_end,
            burn_in=burn_in,
        )
        self.gamma, self.gamma_end, self.burn_in = gamma, gamma_end, burn_in
        self.n_latents, self.hidden, self.n_blocks, self.augment = n_latents, hidden, n_blocks, augment
        self.discriminator_rate, self.generator_rate = discriminator_rate, generator_rate
        self.augmentation = augmentation_of(augment, space)

        sizes = pyramid(space.height, space.width)
        widths = [hidden * min(2**i, 8) for i in range(len(sizes))]
        n_channels = self.scale.n_channels
        self.generator = _Generator(n_latents, n_classes, n_channels, sizes, widths, n_blocks)
        self.discriminator = _Discriminator(n_classes, n_channels, sizes, widths, n_blocks)

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.generator(z, labels)

    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        return Verdict(self.discriminator(y, labels))

    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        return self.discriminator.parameters(), self.generator.parameters()


class _Block(nn.Module):
    """x + 1x1(act(grouped 3x3(act(1x1 x)))): an inverted bottleneck, whose last convolution starts at zero.

    Arguments:
        n_branches: Residual branches of the network, by which the others are scaled.
    Source:
        Huang et al. 2024, arXiv:2501.05441, section 4; scales: Zhang et al. 2019, arXiv:1901.09321, eq. 11.
    """

    def __init__(self, width: int, n_branches: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        groups = max(n for n in range(1, max(1, inner // GROUP_WIDTH) + 1) if inner % n == 0)
        self.expand = nn.Conv2d(width, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.project = nn.Conv2d(inner, width, 1, bias=False)
        gain = math.sqrt(2 / (1 + SLOPE**2)) * n_branches ** (-1 / 4)  # -1 / (2m - 2) with m = 3 layers
        for layer in (self.expand, self.mix):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            _scaled(layer, gain)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.mix(F.leaky_relu(self.expand(x), SLOPE)), SLOPE)
        return x + self.project(h)


class _Generator(nn.Module):
    """z, and an embedding of the class -> a learnt basis of the smallest size, weighted -> blocks, upsampling between
    sizes -> scaled image."""

    def __init__(
        self,
        n_latents: int,
        n_classes: int,
        n_out: int,
        sizes: list[tuple[int, int]],
        widths: list[int],
        n_blocks: int,
    ) -> None:
        super().__init__()
        self.sizes = sizes[::-1]
        widths = widths[::-1]
        self.embedding = nn.Embedding(n_classes, n_latents) if n_classes else None
        self.input = _scaled(nn.Linear(n_latents * (2 if n_classes else 1), widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(widths[0], *self.sizes[0]))
        self.widen = nn.ModuleList(_pointwise(a, b) for a, b in pairwise(widths))
        self.blocks = _stages(widths, n_blocks)
        self.out = _scaled(nn.Conv2d(widths[-1], n_out, 1, bias=False))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        h = self.blocks[0](self.basis * self.input(z)[:, :, None, None])
        for widen, size, blocks in zip(self.widen, self.sizes[1:], self.blocks[1:], strict=True):
            h = blocks(F.interpolate(widen(h), size, mode="bilinear", align_corners=False))
        return self.out(h)


class _Discriminator(nn.Module):
    """Scaled image -> blocks, downsampling between sizes -> a learnt basis of the smallest size, one weight a feature
    -> logits, by a projection on an embedding of the class where there are classes."""

    def __init__(
        self, n_classes: int, n_in: int, sizes: list[tuple[int, int]], widths: list[int], n_blocks: int
    ) -> None:
        super().__init__()
        self.sizes = sizes
        n_features = widths[-1] if n_classes else 1
        self.input = _scaled(nn.Conv2d(n_in, widths[0], 1, bias=False))
        self.widen = nn.ModuleList(_pointwise(a, b) for a, b in pairwise(widths))
        self.blocks = _stages(widths, n_blocks)
        self.basis = nn.Parameter(torch.randn(widths[-1], *sizes[-1]) / math.sqrt(math.prod(sizes[-1])))
        self.out = _scaled(nn.Linear(widths[-1], n_features, bias=False))
        self.embedding: nn.Embedding | None = None
        if n_classes:
            self.embedding = nn.Embedding(n_classes, n_features)
            nn.init.normal_(self.embedding.weight, 0, n_features**-0.5)

    def forward(self, y: Tensor, labels: Tensor | None) -> Tensor:
        h = self.blocks[0](self.input(y))
        for widen, size, blocks in zip(self.widen, self.sizes[1:], self.blocks[1:], strict=True):
            # Not in bfloat16, for which PyTorch has no such downsampling on a CPU.
            smaller = F.interpolate(h.float(), size, mode="bilinear", align_corners=False, antialias=True)
            h = blocks(widen(smaller.to(h.dtype)))
        features = self.out((h * self.basis).sum((2, 3)))  # (N, n_features)
        return features.squeeze(1) if self.embedding is None else (features * self.embedding(labels)).sum(1)


def _stages(widths: list[int], n_blocks: int) -> nn.ModuleList:
    """The blocks of each size."""
    n_branches = len(widths) * n_blocks
    return nn.ModuleList(nn.Sequential(*(_Block(width, n_branches) for _ in range(n_blocks))) for width in widths)


def _pointwise(n_in: int, n_out: int) -> nn.Module:
    return nn.Identity() if n_in == n_out else _scaled(nn.Conv2d(n_in, n_out, 1, bias=False))


def _scaled(layer: Layer, gain: float = 1.0) -> Layer:
    """Draws a layer's weight so that outputs have gain times the inputs' root mean square."""
    nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
    return layer
