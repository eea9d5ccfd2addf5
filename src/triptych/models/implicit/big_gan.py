"""BigGAN: residual networks with class-conditional batch normalisation and self-attention.

References:
    Large Scale GAN Training for High Fidelity Natural Image Synthesis, Brock, Donahue & Simonyan 2019,
        arXiv:1809.11096.
    Self-Attention Generative Adversarial Networks, Zhang, Goodfellow, Metaxas & Odena 2019, arXiv:1805.08318.
    cGANs with Projection Discriminator, Miyato & Koyama 2018, arXiv:1802.05637.
    Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, arXiv:1802.05957.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.models.adversarial import AdversarialModel, Rules, Verdict
from triptych.nn.adversarial import normalise_spectrally, orthogonality_penalty, squash, weighted_layers
from triptych.nn.augment import AugmentName, augmentation_of
from triptych.nn.blocks import pyramid, pyramid_widths
from triptych.nn.options import check_counts, check_not_negative
from triptych.spaces import ImageSpace

EMBEDDED = 32
"""Features of the class embedding that all levels of the generator share."""


class BigGAN(AdversarialModel):
    """Residual convolutions, spectral normalisation in both players, hinge loss.

    The latent is split: the first part makes the smallest image, and each block's batch normalisation takes its gains
    and biases from a part of its own and from an embedding of the class that all blocks share. Samples can be drawn
    with `truncation`, which trades variety for typicality; the orthogonal regularisation makes the generator fit for
    it.

    Arguments:
        space: Images.
        n_classes: Classes that both players are conditioned on; the discriminator by a projection.
        orthogonal: Weight of the orthogonal regularisation of the generator, beta.
        critic_steps: Discriminator steps, a fresh batch each, to one generator step.
        n_latents: Size of z. By default 20 for each part.
        hidden: Channels at the image's size (doubled at smaller ones, four-fold at most).
        augment: Changes to what the discriminator sees: 'diff' (colour, translation, cutout), 'adaptive' (the same,
            as often as keeps the discriminator from being too sure of real images) or 'none'.
        discriminator_rate, generator_rate: Learning rates of Adam, if --learning-rate does not set both.
    Raises:
        InputError: If an option is out of range, or the space is not of images.
    Source:
        Brock, Donahue & Simonyan 2019, arXiv:1809.11096, appendices B and C. Differs: sizes follow the image's, with
        attention at half of it; few channels, batches as the training has them, and learning rates of 1e-3 instead of
        2e-4 and 5e-5, with which 260 steps on the digits had learnt nothing; resampling to odd sizes; `squash` instead
        of tanh; no bias of the logits, to which the hinge loss is blind within its margins; the noise that
        hides which images are integers.
    """

    space: ImageSpace

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        orthogonal: float = 1e-4,
        critic_steps: int = 2,
        n_latents: int | None = None,
        hidden: int | None = None,
        augment: AugmentName = "none",
        discriminator_rate: float = 1e-3,
        generator_rate: float = 1e-3,
    ) -> None:
        super().__init__(space, n_classes)
        sizes = pyramid(space.height, space.width)
        sizes = sizes if len(sizes) > 1 else 2 * sizes  # an image of 4x4 or less has one block, too
        n_latents = 20 * len(sizes) if n_latents is None else n_latents
        if hidden is None:
            hidden = 32 if space.n_dims < 256 else 16
        check_counts(n_latents=n_latents, hidden=hidden)
        check_not_negative(orthogonal=orthogonal)
        if n_latents < len(sizes):
            raise InputError(f"n_latents is {n_latents}; it must be at least {len(sizes)}, one for each size.")
        self.rules = Rules(
            objective="hinge",
            critic_steps=critic_steps,
            penalty="none",
            gamma=0,
            discriminator_rate=discriminator_rate,
            generator_rate=generator_rate,
            betas=(0.0, 0.999),
        )
        self.orthogonal, self.critic_steps, self.augment = orthogonal, critic_steps, augment
        self.n_latents, self.hidden = n_latents, hidden
        self.discriminator_rate, self.generator_rate = discriminator_rate, generator_rate
        self.augmentation = augmentation_of(augment, space)

        widths = pyramid_widths(hidden, len(sizes))
        self.generator = _Generator(n_latents, n_classes, self.scale.n_channels, sizes, widths)
        self.discriminator = _Discriminator(n_classes, self.scale.n_channels, sizes, widths)
        layers = weighted_layers(self.generator, self.discriminator)
        for layer in layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
        # The embedding is an input of the generator, not one of its maps.
        normalise_spectrally(layer for layer in layers if layer is not self.generator.embedding)

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.generator(z, labels)

    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        return Verdict(self.discriminator(y, labels))

    def generator_penalty(self) -> dict[str, Tensor]:
        if self.orthogonal == 0:
            return {}
        layers = [layer for layer in weighted_layers(self.generator) if layer is not self.generator.embedding]
        return {"orthogonal": self.orthogonal * orthogonality_penalty(layers)}

    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        return self.discriminator.parameters(), self.generator.parameters()


class _ConditionalNorm(nn.Module):
    """Batch normalisation whose gains and biases are linear in a condition.

    Source:
        Brock, Donahue & Simonyan 2019, arXiv:1809.11096, appendix B; de Vries et al. 2017, arXiv:1707.00683.
    """

    def __init__(self, width: int, n_condition: int) -> None:
        super().__init__()
        self.norm = parallel.BatchNorm2d(width, affine=False)
        self.gain = nn.Linear(n_condition, width, bias=False)
        self.bias = nn.Linear(n_condition, width, bias=False)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Features (N, width, H, W), condition (N, n_condition)."""
        return (1 + self.gain(condition))[:, :, None, None] * self.norm(h) + self.bias(condition)[:, :, None, None]


class _Attention(nn.Module):
    """x + gamma * what each site takes from all sites, pooled by 2x2; gamma starts at 0.

    Source:
        Zhang et al. 2019, arXiv:1805.08318, section 3. Differs: values have half of the channels, as in BigGAN's code,
        and like the keys they are pooled.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, half = max(1, width // 8), max(1, width // 2)
        # A bias of the keys would add the same to all products of a query.
        self.query = nn.Conv2d(width, inner, 1, bias=False)
        self.key = nn.Conv2d(width, inner, 1, bias=False)
        self.value = nn.Conv2d(width, half, 1, bias=False)
        self.expand = nn.Conv2d(half, width, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same."""
        queries = self.query(x).flatten(2)  # (N, inner, H * W)
        keys, values = (F.max_pool2d(h, 2, ceil_mode=True).flatten(2) for h in (self.key(x), self.value(x)))
        weights = (queries.transpose(1, 2) @ keys).softmax(2)  # (N, H * W, sites)
        found = (values @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])  # (N, half, H, W)
        return x + self.gamma * self.expand(found)


class _GeneratorBlock(nn.Module):
    """Up to a size: x upsampled + conv(act(norm(conv(upsampled act(norm x)))))."""

    def __init__(self, n_in: int, n_out: int, n_condition: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.norm1, self.norm2 = _ConditionalNorm(n_in, n_condition), _ConditionalNorm(n_out, n_condition)
        # The next normalisation takes away what a bias adds.
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(_upsampled(F.relu(self.norm1(x, condition)), self.size))
        # A 1x1 convolution and the repetition of sites commute.
        return _upsampled(self.shortcut(x), self.size) + self.conv2(F.relu(self.norm2(h, condition)))


class _Generator(nn.Module):
    """Parts of z and a class embedding -> smallest image -> a block for each larger size -> scaled image."""

    def __init__(
        self, n_latents: int, n_classes: int, n_out: int, sizes: list[tuple[int, int]], widths: list[int]
    ) -> None:
        super().__init__()
        sizes, widths, n_parts = sizes[::-1], widths[::-1], len(sizes)
        self.parts = [n_latents // n_parts + (i < n_latents % n_parts) for i in range(n_parts)]
        n_embedded = EMBEDDED if n_classes else 0
        self.shape = (widths[0], *sizes[0])
        self.embedding = nn.Embedding(n_classes, EMBEDDED) if n_classes else None
        self.input = nn.Linear(self.parts[0], widths[0] * sizes[0][0] * sizes[0][1])
        self.blocks = nn.ModuleList(
            _GeneratorBlock(widths[i], widths[i + 1], self.parts[i + 1] + n_embedded, sizes[i + 1])
            for i in range(n_parts - 1)
        )
        self.attention_at = max(0, n_parts - 3)
        """Index of the block after which half of the image's size is reached."""
        self.attention = _Attention(widths[self.attention_at + 1])
        self.norm = parallel.BatchNorm2d(widths[-1])
        self.out = nn.Conv2d(widths[-1], n_out, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        first, *others = z.split(self.parts, 1)
        h = self.input(first).unflatten(1, self.shape)
        for i, (block, part) in enumerate(zip(self.blocks, others, strict=True)):
            h = block(h, part if self.embedding is None else torch.cat([part, self.embedding(labels)], 1))
            if i == self.attention_at:
                h = self.attention(h)
        return squash(self.out(F.relu(self.norm(h))))


class _DiscriminatorBlock(nn.Module):
    """Down to a size: x pooled + pooled conv(act(conv(act x)))."""

    def __init__(self, n_in: int, n_out: int, size: tuple[int, int], is_first: bool) -> None:
        super().__init__()
        self.size, self.is_first = size, is_first
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.is_first else F.relu(x))))
        # A 1x1 convolution and a mean of sites commute.
        return self.shortcut(_pooled(x, self.size)) + _pooled(h, self.size)


class _Discriminator(nn.Module):
    """Scaled image -> a block for each smaller size, and one more -> features, summed over sites -> logits, by a
    projection on an embedding of the class where there are classes."""

    def __init__(self, n_classes: int, n_in: int, sizes: list[tuple[int, int]], widths: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _DiscriminatorBlock(widths[i - 1] if i else n_in, widths[i], sizes[i + 1], i == 0)
            for i in range(len(sizes) - 1)
        )
        self.attention = _Attention(widths[0])
        self.last = _DiscriminatorBlock(widths[-2], widths[-1], sizes[-1], is_first=False)
        self.verdict = nn.Linear(widths[-1], 1, bias=False)
        self.embedding = nn.Embedding(n_classes, widths[-1]) if n_classes else None

    def forward(self, y: Tensor, labels: Tensor | None) -> Tensor:
        h = self.attention(self.blocks[0](y))
        for block in self.blocks[1:]:
            h = block(h)
        features = F.relu(self.last(h)).sum((2, 3))  # (N, widths[-1])
        logits = self.verdict(features).squeeze(1)
        return logits if self.embedding is None else logits + (self.embedding(labels) * features).sum(1)


def _upsampled(h: Tensor, size: tuple[int, int]) -> Tensor:
    return h if h.shape[2:] == size else F.interpolate(h, size, mode="nearest")


def _pooled(h: Tensor, size: tuple[int, int]) -> Tensor:
    return h if h.shape[2:] == size else F.adaptive_avg_pool2d(h, size)
