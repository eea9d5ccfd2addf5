"""The variational autoencoder.

References:
    Auto-Encoding Variational Bayes, Kingma & Welling 2014, arXiv:1312.6114.
    Stochastic Backpropagation and Approximate Inference in Deep Generative Models, Rezende et al. 2014,
    arXiv:1401.4082.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from triptych.models.base import Batch, Loss, Phase
from triptych.models.latents import (
    GaussianLatents,
    bound_loss,
    bounded_log_var,
    kl_to_minimise,
    latents_of,
    reparameterised,
)
from triptych.models.observation import LikelihoodName, observation_of
from triptych.nn.encoders import Decoder, Encoder, NetworkName, hidden_of, network_of
from triptych.nn.options import check_counts, check_dropout, check_not_negative
from triptych.objectives.elbo import gaussian_kl, gaussian_log_prob, standard_normal_log_prob
from triptych.spaces import ImageSpace, PointSpace, Space


class VAE(GaussianLatents):
    r"""A diagonal Gaussian q(z|x), a standard normal prior, and a decoder with a true likelihood of the data.

    Integer images get an exact discrete likelihood, points a Gaussian with learned scales.

    Arguments:
        space: What one datum is.
        n_classes: Classes that encoder and decoder are conditioned on.
        n_latents: Size of z.
        network: 'linear' (with Gaussian likelihood and points it is probabilistic PCA), 'mlp', 'convolutional' (ReLU)
            or 'residual'; 'auto' takes residual convolutions for images, a perceptron for points.
        hidden: Channels of the convolutions at full size (doubled at smaller ones, four-fold at most), or units a layer
            of a perceptron.
        n_blocks: Convolutions or residual blocks at each image size; a perceptron has one hidden layer more.
        beta: Weight of the KL in the training loss; 1 is the bound. Bounds that are reported always use 1.
        kl_warmup: Share of the training over which that weight rises from 0 to beta.
        free_bits: Nats of each latent, on average over a batch, that cost nothing in training.
        dropout: Share of channels (units) dropped while training.
        likelihood: 'bernoulli', 'categorical', 'logistic' or 'gaussian'. 'auto' takes the Bernoulli for two levels, the
            softmax for up to 32 levels of one channel and for palettes, else a mixture of discretised logistics; for
            points the Gaussian.
        n_mixtures: Logistics of a site.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Kingma & Welling 2014, arXiv:1312.6114; beta: Higgins et al. 2017; warm-up: Bowman et al. 2016,
        arXiv:1511.06349, section 3.1; free bits: Kingma et al. 2016, arXiv:1606.04934, eq. 15. Differs: residual
        convolutions; decoders with a discrete likelihood at any number of levels.
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_latents: int | None = None,
        network: NetworkName = "auto",
        hidden: int | None = None,
        n_blocks: int = 1,
        beta: float = 1.0,
        kl_warmup: float = 0.0,
        free_bits: float = 0.0,
        dropout: float = 0.0,
        likelihood: LikelihoodName = "auto",
        n_mixtures: int = 3,
    ) -> None:
        super().__init__(space, n_classes)
        n_latents = latents_of(n_latents, space)
        network = network_of(network, space)
        hidden = hidden_of(hidden, network, space)
        check_counts(n_latents=n_latents, hidden=hidden, n_blocks=n_blocks, n_mixtures=n_mixtures)
        check_not_negative(beta=beta, kl_warmup=kl_warmup, free_bits=free_bits)
        check_dropout(dropout)
        self.observation = observation_of(space, likelihood, n_mixtures)
        self.n_latents, self.network, self.hidden, self.n_blocks = n_latents, network, hidden, n_blocks
        self.beta, self.kl_warmup, self.free_bits = beta, kl_warmup, free_bits
        self.dropout, self.likelihood, self.n_mixtures = dropout, likelihood, n_mixtures
        self.encoder = Encoder(space, network, n_classes, hidden, n_blocks, dropout, 2 * n_latents)
        n_outputs = self.observation.n_outputs
        self.decoder = Decoder(space, network, n_latents, n_classes, hidden, n_blocks, dropout, n_outputs)

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), float32, (N, n_latents) each."""
        mu, log_var = self.encoder(x, self.condition(labels)).float().chunk(2, dim=1)
        return mu, bounded_log_var(log_var)

    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(z, self.condition(labels))

    def _posterior(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """`posterior` of checked data, and checked labels."""
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        return *self.posterior(x.to(self.device), labels), labels

    def _bound_terms(
        self, x: Tensor, n_samples: int, labels: Tensor | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)] by n_samples draws, nats, (N,), and KL(q(z|x) || p(z)) of each latent, (N, n_latents)."""
        mu, log_var, labels = self._posterior(x, labels)
        draws = (reparameterised(mu, log_var, generator) for _ in range(n_samples))
        reconstruction = torch.stack([self.log_likelihood(x, z, labels) for z in draws]).mean(0)
        return reconstruction, gaussian_kl(mu, log_var)

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The bound of the contract, with the KL in closed form (arXiv:1312.6114, eq. 10)."""
        reconstruction, kl = self._bound_terms(x, n_samples, labels, generator)
        return reconstruction - kl.sum(1)

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        mu, log_var, _ = self._posterior(x, labels)
        return gaussian_kl(mu, log_var)

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        mu, log_var, labels = self._posterior(x, labels)
        weights = []
        for _ in range(n_samples):
            z = reparameterised(mu, log_var, generator)
            log_ratio = standard_normal_log_prob(z) - gaussian_log_prob(z, mu, log_var)
            weights.append(self.log_likelihood(x, z, labels) + log_ratio)
        return torch.stack(weights)  # (n_samples, N)

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        mu, log_var, _ = self._posterior(x, labels)
        return reparameterised(mu, log_var, generator) if sample else mu

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("bound", tuple(self.parameters()), learning_rate=2e-3, clip_ratio=2.0),)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        reconstruction, kl = self._bound_terms(batch.x, 1, labels, generator)
        weighted_kl = kl_to_minimise(kl, self.beta, self.free_bits, self.kl_warmup, batch.progress)
        return bound_loss(self.space, reconstruction, kl, weighted_kl)
