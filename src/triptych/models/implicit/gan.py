"""The generative adversarial network.

References:
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
    Which Training Methods for GANs do actually Converge?, Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.models.base import Batch, ImplicitDensity, Loss, Phase
from triptych.nn.blocks import Scale, mlp, pyramid, pyramid_widths
from triptych.nn.options import check_counts, check_not_negative
from triptych.objectives.adversarial import discriminator_loss, non_saturating_generator_loss, r1_penalty
from triptych.spaces import ImageSpace, PointSpace, Space

FINEST_NOISE = 1 / 8  # Width of the dequantisation noise at most, where data runs from -1 to 1.


class GAN(ImplicitDensity):
    """The non-saturating game, held stable by a zero-centred gradient penalty on real data (R1).

    Images that are integers can be told from a network's floats by their values alone. So the discriminator sees both
    with the same uniform noise, one level wide (an eighth of the range at most); the generator's best answer is then
    an integer image.

    Arguments:
        space: What one datum is.
        n_classes: Classes that both players are conditioned on.
        n_latents: Size of z.
        hidden: Channels of the convolutions at half the image's size (doubled at smaller ones, four-fold at most), or
            units a layer (points).
        gamma: Weight of the R1 penalty.
        critic_steps: Discriminator steps, a fresh batch each, to one generator step.
    Raises:
        InputError: If an option is out of range.
    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1 with the non-saturating loss of section 3; R1 after
        Mescheder et al. 2018, arXiv:1801.04406; class conditioning by a projection in the discriminator (Miyato &
        Koyama 2018, arXiv:1802.05637). Differs: residual convolutions without normalisation.
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_latents: int | None = None,
        hidden: int | None = None,
        gamma: float | None = None,
        critic_steps: int = 1,
    ) -> None:
        super().__init__(space, n_classes)
        is_point = isinstance(space, PointSpace)
        self.n_latents = n_latents if n_latents is not None else 8 * space.n_dims if is_point else 64
        self.hidden = hidden = hidden if hidden is not None else 128 if is_point else 32 if space.n_dims < 256 else 16
        # Chosen by short trainings on the digits (0.02 to 3: below 0.3 some runs collapsed) and on MNIST (1 to 10).
        self.gamma = gamma if gamma is not None else 0.1 if is_point else 1.0
        check_counts(n_latents=self.n_latents, hidden=hidden, critic_steps=critic_steps)
        check_not_negative(gamma=self.gamma)
        self.critic_steps = critic_steps
        self.scale = Scale(space)
        if isinstance(space, PointSpace):
            self.generator: nn.Module = mlp(self.n_latents + n_classes, hidden, 3, space.dim)
            self.discriminator: nn.Module = mlp(space.dim, hidden, 3, hidden)
            n_features = hidden
        else:
            # Half the full size and below; an image of 4x4 or less has no smaller one.
            sizes = pyramid(space.height, space.width)[1:] or [((space.height + 1) // 2, (space.width + 1) // 2)]
            widths = pyramid_widths(hidden, len(sizes))
            n_channels = self.scale.n_channels
            self.generator = _Generator(space, n_channels, self.n_latents + n_classes, sizes, widths)
            self.discriminator = _Discriminator(n_channels, sizes, widths)
            n_features = widths[-1]
        self.verdict = nn.Linear(n_features, 1)
        self.class_verdict = nn.Embedding(n_classes, n_features) if n_classes else None

    def judge(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """The discriminator's logits of D(y) for scaled data y, (N, n_channels, ...) -> (N,)."""
        features = self.discriminator(y)
        logits = self.verdict(features).squeeze(1)
        if self.class_verdict is not None:
            logits = logits + (self.class_verdict(labels) * features).sum(1)
        return logits

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data G(z), floats, (N, n_channels, ...): what the discriminator judges, before rounding."""
        code = self.condition(labels)
        if code is not None:
            z = torch.cat([z, code], dim=1)
        return self.generator(z)

    def _blur_levels(self, y: Tensor, generator: Generator | None) -> Tensor:
        """Adds the noise that hides which values are integers, to real and generated images alike."""
        if isinstance(self.space, PointSpace):
            return y
        width = min(2 / (self.space.levels - 1), FINEST_NOISE)
        return y + width * (torch.rand(y.shape, generator=generator, device=y.device) - 0.5)

    def _draw_latents(self, n: int, generator: Generator | None) -> Tensor:
        return torch.randn((n, self.n_latents), generator=generator, device=self.device)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale.inverse(self.fake(z, self.check_labels(len(z), labels, draw=False)))

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), 256):  # In chunks: memory does not grow with n.
            z = self._draw_latents(min(256, n - start), generator)
            parts.append(self.generate(z, None if labels is None else labels[start : start + 256]))
        return torch.cat(parts)

    def phases(self) -> tuple[Phase, ...]:
        judge = [self.discriminator, self.verdict, *([self.class_verdict] if self.class_verdict else [])]
        rate, betas = 3e-3 if isinstance(self.space, PointSpace) else 2e-3, (0.0, 0.99)
        judges = tuple(p for module in judge for p in module.parameters())
        return (
            Phase("discriminator", judges, self.critic_steps, learning_rate=rate, betas=betas, clip_norm=0),
            Phase("generator", tuple(self.generator.parameters()), learning_rate=rate, betas=betas, clip_norm=0),
        )

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        if phase == "generator":
            fake = self.fake(self._draw_latents(len(batch.x), generator), labels)
            logits = self.judge(self._blur_levels(fake, generator), labels)
            loss = non_saturating_generator_loss(logits)
            return Loss(loss, {"non_saturating_nats": loss.detach()})
        real = self._blur_levels(self.scale(batch.x), generator).requires_grad_(self.gamma > 0)
        with torch.no_grad():
            fake = self._blur_levels(self.fake(self._draw_latents(len(real), generator), labels), generator)
        real_logits, fake_logits = self.judge(real, labels), self.judge(fake, labels)
        game = discriminator_loss(real_logits, fake_logits)
        penalty = r1_penalty(real_logits, real) if self.gamma > 0 else torch.zeros_like(game)
        terms = {
            "game_nats": game,
            "r1": penalty,
            "logit_real": real_logits.mean(),
            "logit_fake": fake_logits.mean(),
        }
        return Loss(game + 0.5 * self.gamma * penalty, {name: value.detach() for name, value in terms.items()})


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
