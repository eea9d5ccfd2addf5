"""The variational autoencoder.

References:
    Auto-Encoding Variational Bayes, Kingma & Welling 2014, arXiv:1312.6114.
    Stochastic Backpropagation and Approximate Inference in Deep Generative Models, Rezende et al. 2014,
    arXiv:1401.4082.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.errors import InputError
from triptych.models.base import ApproximateDensity, Batch, Loss, Phase
from triptych.nn.blocks import ResidualBlock, Scale, as_levels, mlp, pyramid, pyramid_widths
from triptych.nn.options import check_counts, check_dropout, check_not_negative
from triptych.objectives import pixel_likelihoods
from triptych.objectives.elbo import gaussian_kl, gaussian_log_prob, standard_normal_log_prob
from triptych.spaces import ImageSpace, PointSpace, Space


class VAE(ApproximateDensity):
    r"""A diagonal Gaussian q(z|x), a standard normal prior, and a decoder with a true likelihood of the data.

    Integer images get an exact discrete likelihood: a softmax for each sub-pixel (up to 32 levels, and palettes), or
    a mixture of discretised logistics with learned scales. Points get a Gaussian with learned scales.

    Arguments:
        space: What one datum is.
        n_classes: Classes that encoder and decoder are conditioned on.
        n_latents: Size of z.
        hidden: Channels of the convolutions at full size (doubled at smaller ones, four-fold at most), or units a layer
            (points).
        n_blocks: Residual blocks at each image size, or hidden layers (points).
        beta: Weight of the KL in the training loss; 1 is the bound. Bounds that are reported always use 1.
        dropout: Share of channels dropped in the residual blocks while training.
        likelihood: 'auto' takes the softmax up to 32 levels and for palettes, the logistics for other images, and the
            Gaussian for points, which alone can have it.
        n_mixtures: Logistics a sub-pixel.
    Raises:
        InputError: If an option is out of range.
    Source:
        Kingma & Welling 2014, arXiv:1312.6114. Differs: residual convolutions; decoders with a discrete likelihood at
        any number of levels (the discretised logistic of Salimans et al. 2017, arXiv:1701.05517).
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_latents: int | None = None,
        hidden: int | None = None,
        n_blocks: int = 1,
        beta: float = 1.0,
        dropout: float = 0.0,
        likelihood: Literal["auto", "categorical", "logistic", "gaussian"] = "auto",
        n_mixtures: int = 3,
    ) -> None:
        super().__init__(space, n_classes)
        if n_latents is None:
            n_latents = max(2, space.dim) if isinstance(space, PointSpace) else 16 if space.n_dims < 256 else 64
        if hidden is None:  # Wider layers at full size would take over a second a step at 28x28 on two cores.
            hidden = 128 if isinstance(space, PointSpace) else 32 if space.n_dims < 256 else 16
        check_counts(n_latents=n_latents, hidden=hidden, n_blocks=n_blocks, n_mixtures=n_mixtures)
        check_not_negative(beta=beta)
        check_dropout(dropout)
        if likelihood == "auto":
            few = isinstance(space, ImageSpace) and (space.levels <= 32 or space.palette is not None)
            likelihood = "gaussian" if isinstance(space, PointSpace) else "categorical" if few else "logistic"
        if (likelihood == "gaussian") != isinstance(space, PointSpace):
            raise InputError(f"Option likelihood of vae is {likelihood!r}, which does not fit {space}; leave it out.")
        if likelihood == "logistic" and isinstance(space, ImageSpace) and space.palette is not None:
            raise InputError("Option likelihood of vae is 'logistic', but the colours of a palette have no order.")
        self.n_latents, self.hidden, self.n_blocks, self.beta = n_latents, hidden, n_blocks, beta
        self.dropout, self.likelihood, self.n_mixtures = dropout, likelihood, n_mixtures
        self.scale = Scale(space)
        if isinstance(space, PointSpace):
            self.encoder: nn.Module = mlp(space.dim + n_classes, hidden, n_blocks + 1, 2 * n_latents)
            self.decoder: nn.Module = mlp(n_latents + n_classes, hidden, n_blocks + 1, 2 * space.dim)
        else:
            n_parameters = space.levels if likelihood == "categorical" else 3 * n_mixtures
            self.encoder = _Encoder(space, self.scale.n_channels + n_classes, hidden, n_blocks, dropout, 2 * n_latents)
            self.decoder = _Decoder(space, n_latents + n_classes, hidden, n_blocks, dropout, n_parameters)

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), float32, (N, n_latents) each."""
        h = self.scale(x)
        code = self.condition(labels)  # (N, n_classes)
        if code is not None:
            code = code.reshape(*code.shape, *(1,) * (h.ndim - 2)).expand(-1, -1, *h.shape[2:])
            h = torch.cat([h, code], dim=1)
        mu, log_var = self.encoder(h).float().chunk(2, dim=1)
        # Softly bounded, so that an outlier cannot overflow exp() early in training.
        return mu, 8 * torch.tanh(log_var / 8)

    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw parameters of p(x|z): (N, C, K, H, W) for images, (N, 2 dim) for points."""
        code = self.condition(labels)
        return self.decoder(z if code is None else torch.cat([z, code], dim=1))

    def _log_prob_given(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, (N,), from the decoder's output."""
        if isinstance(self.space, PointSpace):
            mu, log_var = self._gaussian(output)
            # The Jacobian of the standardisation brings the density back to data units.
            return gaussian_log_prob(self.scale(x), mu, log_var) - self.space.dim * math.log(self.space.scale)
        if self.likelihood == "categorical":
            return pixel_likelihoods.categorical_log_prob(output, x)
        return pixel_likelihoods.logistic_mixture_log_prob(output, x, self.space.levels)

    def _gaussian(self, output: Tensor) -> tuple[Tensor, Tensor]:
        # A floor of 1e-3 of the data's scale: without one, a point the decoder hits exactly has unbounded density.
        mu, log_var = output.float().chunk(2, dim=1)
        return mu, log_var.clamp(-13.8, 8.0)

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The bound of the contract, with the KL in closed form (arXiv:1312.6114, eq. 10)."""
        reconstruction, kl = self._bound_terms(x, n_samples, labels, generator)
        return reconstruction - kl

    def _draws(
        self, x: Tensor, n_samples: int, labels: Tensor | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Mean and log-variance of q(z|x), and draws of z from it, each with log p(x|z) in nats, (N,)."""
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        mu, log_var = self.posterior(x, labels)
        draws = []
        for _ in range(n_samples):
            z = mu + (0.5 * log_var).exp() * torch.randn(mu.shape, generator=generator, device=mu.device)
            draws.append((z, self._log_prob_given(self.decoder_output(z, labels), x)))
        return mu, log_var, draws

    def _bound_terms(
        self, x: Tensor, n_samples: int, labels: Tensor | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)] by n_samples draws, and KL(q(z|x) || p(z)), nats, (N,) each."""
        mu, log_var, draws = self._draws(x, n_samples, labels, generator)
        return torch.stack([log_p for _, log_p in draws]).mean(0), gaussian_kl(mu, log_var).sum(1)

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        mu, log_var, draws = self._draws(x, n_samples, labels, generator)
        weights = [log_p + standard_normal_log_prob(z) - gaussian_log_prob(z, mu, log_var) for z, log_p in draws]
        return torch.stack(weights)  # (n_samples, N)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.space.check(x)
        return self.posterior(x, self.check_labels(len(x), labels, draw=False))[0]

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self.decoder_output(z, self.check_labels(len(z), labels, draw=False))
        if isinstance(self.space, PointSpace):
            return self.scale.inverse(self._gaussian(output)[0])
        if self.space.palette:  # Colours have no mean: the most probable one.
            return as_levels(output.argmax(2), self.space)
        if self.likelihood == "categorical":
            return as_levels(pixel_likelihoods.categorical_mean(output), self.space)
        return as_levels(pixel_likelihoods.logistic_mixture_mean(output, self.space.levels), self.space)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), 256):  # In chunks: memory does not grow with n.
            chunk = None if labels is None else labels[start : start + 256]
            z = torch.randn((min(256, n - start), self.n_latents), generator=generator, device=self.device)
            output = self.decoder_output(z, chunk)
            if isinstance(self.space, PointSpace):
                mu, log_var = self._gaussian(output)
                noise = torch.randn(mu.shape, generator=generator, device=mu.device)
                parts.append(self.scale.inverse(mu + (0.5 * log_var).exp() * noise))
            elif self.likelihood == "categorical":
                parts.append(as_levels(pixel_likelihoods.categorical_sample(output, generator), self.space))
            else:
                draw = pixel_likelihoods.logistic_mixture_sample(output, self.space.levels, generator)
                parts.append(as_levels(draw, self.space))
        return torch.cat(parts)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("bound", tuple(self.parameters()), learning_rate=2e-3),)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        reconstruction, kl = self._bound_terms(batch.x, 1, labels, generator)
        total = (self.beta * kl - reconstruction).mean() / self.space.n_dims
        unit = "nats_per_point" if isinstance(self.space, PointSpace) else "nats_per_image"
        terms = {
            f"bound_{unit}": (kl - reconstruction).mean(),
            f"reconstruction_{unit}": -reconstruction.mean(),
            f"kl_{unit}": kl.mean(),
        }
        return Loss(total, {name: value.detach() for name, value in terms.items()})


class _Encoder(nn.Module):
    """Residual convolutions at each size of the pyramid, strided convolutions between, one linear layer at the end."""

    def __init__(self, space: ImageSpace, n_in: int, hidden: int, n_blocks: int, dropout: float, n_out: int) -> None:
        super().__init__()
        sizes = pyramid(space.height, space.width)
        widths = pyramid_widths(hidden, len(sizes))
        layers: list[nn.Module] = [nn.Conv2d(n_in, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += [ResidualBlock(width, dropout) for _ in range(n_blocks)]
        self.features = nn.Sequential(*layers, nn.SiLU(), nn.Flatten())
        self.out = nn.Linear(widths[-1] * math.prod(sizes[-1]), n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class _Decoder(nn.Module):
    """The encoder run backwards: nearest-neighbour upsampling instead of strides, likelihood parameters at the end."""

    def __init__(
        self, space: ImageSpace, n_in: int, hidden: int, n_blocks: int, dropout: float, n_parameters: int
    ) -> None:
        super().__init__()
        self.sizes = pyramid(space.height, space.width)[::-1]
        widths = pyramid_widths(hidden, len(self.sizes))[::-1]
        self.n_colours = space.channels
        self.input = nn.Linear(n_in, widths[0] * math.prod(self.sizes[0]))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i - 1], width, 3, padding=1) if i > 0 else nn.Identity(),
                *(ResidualBlock(width, dropout) for _ in range(n_blocks)),
            )
            for i, width in enumerate(widths)
        )
        self.out = nn.Conv2d(widths[-1], space.channels * n_parameters, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.input(z).unflatten(1, (-1, *self.sizes[0]))
        for size, block in zip(self.sizes, self.blocks, strict=True):
            h = block(F.interpolate(h, size) if h.shape[2:] != size else h)
        out = self.out(F.silu(h))  # (N, C * n_parameters, H, W)
        return out.unflatten(1, (self.n_colours, -1))
