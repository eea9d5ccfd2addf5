"""What models with continuous latents share: sizes, draws, what is made of z, the loss of a bound."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Generator, Tensor

from triptych import parallel
from triptych.models.base import ApproximateDensity, Loss
from triptych.models.observation import Observation
from triptych.spaces import PointSpace, Space

MAX_DRAWN = 256  # Items that a decoder draws at once: memory does not grow with the number asked for.


def latents_of(n_latents: int | None, space: Space) -> int:
    """Size of z, chosen by the data if it is None."""
    if n_latents is not None:
        return n_latents
    return max(2, space.dim) if isinstance(space, PointSpace) else 16 if space.n_dims < 256 else 64


def softly_bounded(x: Tensor, bound: float) -> Tensor:
    """x itself where it is small, and never beyond the bound."""
    return bound * torch.tanh(x / bound)


def bounded_log_var(log_var: Tensor) -> Tensor:
    """Log-variances softly bounded, so that an outlier cannot overflow exp() early in training."""
    return softly_bounded(log_var, 8.0)


def reparameterised(mu: Tensor, log_var: Tensor, generator: Generator | None = None, dim: int = 0) -> Tensor:
    """A draw from N(mu, diag exp log_var) through which gradients flow; of the shape of mu, with its items in dim."""
    noise = parallel.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype, dim=dim)
    return mu + (0.5 * log_var).exp() * noise


def kl_to_minimise(kl: Tensor, beta: float, free_bits: float, kl_warmup: float, progress: float) -> Tensor:
    """The KL as it enters the training loss, nats per item: a scalar.

    Arguments:
        kl: KL(q || p) of each part of z, nats, (N, parts).
        beta: Its weight.
        free_bits: Nats of each part, on average over the whole batch, that cost nothing.
        kl_warmup: Share of the training over which the weight rises from 0.
        progress: Share of the training that is done.
    Source:
        Free bits: Kingma et al. 2016, arXiv:1606.04934, eq. 15.
    """
    weight = beta * min(1.0, progress / kl_warmup) if kl_warmup > 0 else beta
    average = kl.mean(0)
    if free_bits > 0:
        average = parallel.mean(average).clamp_min(free_bits)
    return weight * average.sum()


def bound_loss(space: Space, reconstruction: Tensor, kl: Tensor, weighted_kl: Tensor) -> Loss:
    """Minus a bound, for each dimension of the data: the loss of a VAE's phase, and its terms.

    Arguments:
        reconstruction: E_q[log p(x|z)], nats, (N,).
        kl: KL(q || p) of each part of z, nats, (N, parts).
        weighted_kl: What `kl_to_minimise` makes of it, nats, a scalar.
    """
    unit = "nats_per_point" if isinstance(space, PointSpace) else "nats_per_image"
    terms = {
        f"bound_{unit}": (kl.sum(1) - reconstruction).mean(),
        f"reconstruction_{unit}": -reconstruction.mean(),
        f"kl_{unit}": kl.sum(1).mean(),
    }
    total = (weighted_kl - reconstruction.mean()) / space.n_dims
    return Loss.of(total, terms)


class DecodedDensity(ApproximateDensity):
    """A density whose decoder says p(x|z) through an `Observation`, which a final class sets."""

    observation: Observation

    @abstractmethod
    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `observation` reads, given z, (N, n_latents), and checked labels: (N, n_outputs, H, W) for images,
        (N, n_outputs) for points."""

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.observation.log_prob(self.decoder_output(z, labels), x.to(z.device))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.check_labels(len(z), labels, draw=False)
        return self.observation.mean(self.decoder_output(z, labels))

    def draw_given(self, z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(len(z), labels, draw=False)
        return self.observation.draw(self.decoder_output(z, labels), generator)


class GaussianLatents(DecodedDensity):
    """A decoded density whose z is standard normal under the model."""

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), MAX_DRAWN):
            z = torch.randn((min(MAX_DRAWN, n - start), self.n_latents), generator=generator, device=self.device)
            own = None if labels is None else labels[start : start + MAX_DRAWN]
            parts.append(self.draw_given(z, own, generator=generator))
        return torch.cat(parts)
