"""What models with continuous latents share: sizes, draws, the weight of the KL in training."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Generator, Tensor

from triptych.models.base import ApproximateDensity
from triptych.models.observation import Observation
from triptych.spaces import PointSpace, Space

MAX_DRAWN = 256  # Items that a decoder draws at once: memory does not grow with the number asked for.


def latents_of(n_latents: int | None, space: Space) -> int:
    """Size of z, chosen by the data if it is None."""
    if n_latents is not None:
        return n_latents
    return max(2, space.dim) if isinstance(space, PointSpace) else 16 if space.n_dims < 256 else 64


def bounded_log_var(log_var: Tensor) -> Tensor:
    """Log-variances softly bounded, so that an outlier cannot overflow exp() early in training."""
    return 8 * torch.tanh(log_var / 8)


def reparameterised(mu: Tensor, log_var: Tensor, generator: Generator | None = None) -> Tensor:
    """A draw from N(mu, diag exp log_var) through which gradients flow; of the shape of mu."""
    noise = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + (0.5 * log_var).exp() * noise


def kl_to_minimise(kl: Tensor, beta: float, free_bits: float, kl_warmup: float, progress: float) -> Tensor:
    """The KL as it enters the training loss, nats per item: a scalar.

    Arguments:
        kl: KL(q || p) of each part of z, nats, (N, parts).
        beta: Its weight.
        free_bits: Nats of each part, on average over the batch, that cost nothing.
        kl_warmup: Share of the training over which the weight rises from 0.
        progress: Share of the training that is done.
    Source:
        Free bits: Kingma et al. 2016, arXiv:1606.04934, eq. 15.
    """
    weight = beta * min(1.0, progress / kl_warmup) if kl_warmup > 0 else beta
    return weight * kl.mean(0).clamp_min(free_bits).sum()


class GaussianLatents(ApproximateDensity):
    """A density whose z is standard normal under the model, and whose decoder says p(x|z) through an `Observation`.

    A final class sets `observation`.
    """

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

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), MAX_DRAWN):
            z = torch.randn((min(MAX_DRAWN, n - start), self.n_latents), generator=generator, device=self.device)
            own = None if labels is None else labels[start : start + MAX_DRAWN]
            parts.append(self.draw_given(z, own, generator=generator))
        return torch.cat(parts)
