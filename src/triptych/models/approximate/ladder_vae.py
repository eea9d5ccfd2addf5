"""The hierarchical VAE: a ladder of stochastic layers, from one global latent down to maps of latents.

References:
    Ladder Variational Autoencoders, Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, arXiv:1602.02282.
    Improved Variational Inference with Inverse Autoregressive Flow, Kingma et al. 2016, arXiv:1606.04934.
    NVAE: A Deep Hierarchical Variational Autoencoder, Vahdat & Kautz 2020, arXiv:2007.03898.
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, Child 2021, arXiv:2011.10650.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych import parallel
from triptych.models.base import Batch, Loss, Phase
from triptych.models.latents import GaussianLatents, bound_loss, kl_to_minimise, reparameterised, softly_bounded
from triptych.models.observation import LikelihoodName, observation_of
from triptych.nn.blocks import ResidualBlock, Scale, pyramid, pyramid_widths, with_condition
from triptych.nn.options import check_counts, check_dropout, check_not_negative
from triptych.objectives.elbo import gaussian_kl, gaussian_log_prob, standard_normal_log_prob
from triptych.spaces import ImageSpace

# What a layer draws is what the next ones compute with, and so on down: one outlier among the means or deviations can
# grow from layer to layer beyond all numbers, and did after some thousand steps on MNIST.
MAX_MEAN = 8.0  # Of the posterior, in standard deviations of the prior.
MAX_LOG_VAR = 4.0  # Of prior and posterior, to either side: deviations within 1/7 .. 7.


class StochasticLayer(nn.Module):
    """A residual block of the way down with a map of latents in its middle.

        state = act(conv(act(h)));   z = mu(state) + sigma(state) * eps;   h + conv([state, z])

    The prior has eps ~ N(0, I). The posterior is a Gaussian of eps too, given the state and the encoder's features: it
    is relative to the prior, and its KL is that to a standard normal.

    Arguments:
        channels: Of h and of the encoder's features.
        n_maps: Channels of z.
        side: Of the kernels of its convolutions.
        depth: Blocks on the way down; each adds to h so much less.
        dropout: Share of the state's channels dropped on their way to h while training.
    """

    def __init__(self, channels: int, n_maps: int, side: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.dropout = parallel.Dropout2d(dropout)
        self.look = _conv(channels, channels, side)
        self.prior = _conv(channels, 2 * n_maps, 1)
        self.compare = _conv(2 * channels, channels, side)
        self.posterior_of = _conv(channels, 2 * n_maps, 1)
        self.write = _conv(channels + n_maps, channels, side)
        nn.init.zeros_(self.prior.weight)
        with torch.no_grad():
            self.write.weight[:, :channels] *= depth**-0.5
            # Latents that start as a whisper stay unheard: their KL is quicker to save than their message to learn.
            self.write.weight[:, channels:].normal_(0, 1 / (side * math.sqrt(n_maps)))

    def posterior(self, state: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(eps | above, x), float32, (N, n_maps, H, W) each."""
        both = self.compare(torch.cat([state, F.silu(features)], dim=1))
        mu, log_var = self.posterior_of(F.silu(both)).float().chunk(2, dim=1)
        return softly_bounded(mu, MAX_MEAN), softly_bounded(log_var, MAX_LOG_VAR)

    def forward(self, h: Tensor, choose: Choice) -> Tensor:
        """h after this layer, (N, channels, H, W), with the latents that are chosen given it and its state."""
        state = F.silu(self.look(F.silu(h)))
        mu, log_var = self.prior(state).float().chunk(2, dim=1)
        z = mu + (0.5 * softly_bounded(log_var, MAX_LOG_VAR)).exp() * choose(self, state)
        state = self.dropout(state)
        return h + self.write(torch.cat([state, z.to(state.dtype)], dim=1))


Choice = Callable[[StochasticLayer, Tensor], Tensor]
"""Of a layer's eps, float32, (N, n_maps, H, W), given the layer and its state."""


class Path(NamedTuple):
    """One draw of all latents from q, top first, and what the decoder makes of it."""

    z: Tensor
    """(N, n_latents), in coordinates in which the prior is standard normal."""
    mu: Tensor
    """Means of q given the layers above, (N, n_latents)."""
    log_var: Tensor
    outputs: Tensor
    """What the observation reads, (N, n_outputs, H, W)."""


class LadderVAE(GaussianLatents):
    r"""Latents at every scale: p(z) = prod_l p(z_l | z_above), q(z|x) = prod_l q(z_l | z_above, x), both top-down.

    An encoder goes up a pyramid of image sizes to 1x1 without any draw. The decoder comes down again; at each size but
    the full one, some layers draw a map of latents, which prior and posterior predict from the same state of the way
    down. All conditionals are diagonal Gaussians, and images have an exact discrete likelihood given all latents.

    Arguments:
        space: What one datum is.
        n_classes: Classes that encoder and decoder are conditioned on.
        hidden: Channels at full size (doubled at smaller ones, four-fold at most).
        n_blocks: Residual blocks at each image size of the encoder, and at full size of the decoder.
        n_layers: Stochastic layers at each size.
        latent_channels: Channels of each map of latents.
        beta: Weight of the KL in the training loss; 1 is the bound. Bounds that are reported always use 1.
        kl_warmup: Share of the training over which that weight rises from 0 to beta.
        free_bits: Nats of each stochastic layer, on average over a batch, that cost nothing in training.
        dropout: Share of channels dropped in the residual blocks while training.
        likelihood: 'bernoulli', 'categorical' or 'logistic'. 'auto' takes the Bernoulli for two levels, the softmax for
            up to 32 levels of one channel and for palettes, else a mixture of discretised logistics.
        n_mixtures: Logistics of a site.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Prior and posterior share the way down: Sønderby et al. 2016, arXiv:1602.02282, section 2, with the layer of
        Kingma et al. 2016, arXiv:1606.04934, fig. 3; a posterior relative to the prior: Vahdat & Kautz 2020,
        arXiv:2007.03898, section 3.2; last convolutions scaled by depth^-1/2: Child 2021, arXiv:2011.10650, section 3,
        with the constants for each site of its published code. Differs: outlying gradients are shortened where Child
        skips their steps; full instead of bottleneck convolutions, as narrow nets gain little by the latter on a CPU;
        the posterior's mean is in units of the prior's deviation; the weights that read z start at unit gain, without
        which less of z was used and bounds on the digits were 3 nats worse after 1,000 steps; no latents at full size,
        which took two fifths more time there and gained nothing.
    """

    space: ImageSpace

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int = 16,
        n_blocks: int = 1,
        n_layers: int = 2,
        latent_channels: int = 8,
        beta: float = 1.0,
        kl_warmup: float = 0.2,
        free_bits: float = 0.0,
        dropout: float = 0.2,
        likelihood: LikelihoodName = "auto",
        n_mixtures: int = 3,
    ) -> None:
        super().__init__(space, n_classes)
        check_counts(
            hidden=hidden, n_blocks=n_blocks, n_layers=n_layers, latent_channels=latent_channels, n_mixtures=n_mixtures
        )
        check_not_negative(beta=beta, kl_warmup=kl_warmup, free_bits=free_bits)
        check_dropout(dropout)
        self.observation = observation_of(space, likelihood, n_mixtures)
        self.hidden, self.n_blocks, self.n_layers = hidden, n_blocks, n_layers
        self.latent_channels = latent_channels
        self.beta, self.kl_warmup, self.free_bits = beta, kl_warmup, free_bits
        self.dropout, self.likelihood, self.n_mixtures = dropout, likelihood, n_mixtures

        sizes = pyramid(space.height, space.width)
        if sizes[-1] != (1, 1):
            sizes.append((1, 1))
        widths = pyramid_widths(hidden, len(sizes))
        from_top = range(len(sizes) - 1, -1, -1)
        self.levels = [i for i in from_top if i > 0 or len(sizes) == 1 for _ in range(n_layers)]
        """Index of each stochastic layer's size, top first."""
        self.shapes = [(latent_channels, *sizes[i]) for i in self.levels]
        """Of each stochastic layer's latents."""
        self.n_latents = sum(math.prod(shape) for shape in self.shapes)

        self.scale = Scale(space)
        n_inputs = self.scale.n_channels + n_classes
        self.encoder = nn.ModuleList()
        for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            down = _Down(sizes[i - 1], size, widths[i - 1], width) if i > 0 else _conv(n_inputs, width)
            self.encoder.append(nn.Sequential(down, *(ResidualBlock(width, dropout) for _ in range(n_blocks))))
        self.top = nn.Parameter(torch.zeros(widths[-1], 1, 1))
        if n_classes:
            self.top_of_label = nn.Linear(n_classes, widths[-1], bias=False)
        depth = len(self.levels) + n_blocks
        self.way_down = nn.ModuleList()
        for i in from_top:
            if i + 1 < len(sizes):
                self.way_down.append(_Up(sizes[i + 1], sizes[i], widths[i + 1], widths[i]))
            side = 1 if sizes[i] == (1, 1) else 3
            for _ in range(self.levels.count(i)):
                self.way_down.append(StochasticLayer(widths[i], latent_channels, side, depth, dropout))
        self.way_down.extend(ResidualBlock(hidden, dropout) for _ in range(n_blocks))
        self.out = nn.Conv2d(hidden, self.observation.n_outputs, 1)

    def _features(self, x: Tensor, labels: Tensor | None) -> list[Tensor]:
        """What the encoder makes of data at each size, the full one first."""
        h = _channels_last(with_condition(self.scale(x.to(self.device)), self.condition(labels)))
        features = []
        for level in self.encoder:
            h = level(h)
            features.append(h)
        return features

    def _descend(self, n: int, labels: Tensor | None, choose: Choice) -> Tensor:
        """The way down with the latents that are chosen for each layer, for n items: (n, n_outputs, H, W)."""
        h = self.top.expand(n, -1, -1, -1)
        condition = self.condition(labels)
        if condition is not None:
            h = h + self.top_of_label(condition)[:, :, None, None]
        for step in self.way_down:
            h = step(h, choose) if isinstance(step, StochasticLayer) else step(h)
        return self.out(F.silu(h))

    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        sizes = [math.prod(shape) for shape in self.shapes]
        maps = iter([part.unflatten(1, shape) for part, shape in zip(z.split(sizes, 1), self.shapes, strict=True)])
        return self._descend(len(z), labels, lambda layer, state: next(maps))

    def _path(
        self, features: list[Tensor], labels: Tensor | None, generator: Generator | None, *, sample: bool = True
    ) -> Path:
        """One way down on which every layer draws from its posterior, or takes its mean."""
        zs, mus, log_vars = [], [], []
        seen = iter([features[i] for i in self.levels])

        def choose(layer: StochasticLayer, state: Tensor) -> Tensor:
            mu, log_var = layer.posterior(state, next(seen))
            z = reparameterised(mu, log_var, generator) if sample else mu
            zs.append(z.flatten(1))
            mus.append(mu.flatten(1))
            log_vars.append(log_var.flatten(1))
            return z

        outputs = self._descend(len(features[0]), labels, choose)
        return Path(torch.cat(zs, 1), torch.cat(mus, 1), torch.cat(log_vars, 1), outputs)

    def _encoded(self, x: Tensor, labels: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Features of data at each size, and labels, both checked."""
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        return self._features(x, labels), labels

    def _kl(self, path: Path) -> Tensor:
        """KL of each stochastic layer given the draws above it, nats, (N, layers)."""
        parts = gaussian_kl(path.mu, path.log_var).split([math.prod(shape) for shape in self.shapes], 1)
        return torch.stack([part.sum(1) for part in parts], 1)

    def _bound_terms(
        self, x: Tensor, n_samples: int, labels: Tensor | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)], nats, (N,), and the KL of each layer, (N, layers), both by n_samples draws."""
        features, labels = self._encoded(x, labels)
        x = x.to(self.device)
        reconstruction, kl = [], []
        for _ in range(n_samples):
            path = self._path(features, labels, generator)
            reconstruction.append(self.observation.log_prob(path.outputs, x))
            kl.append(self._kl(path))
        return torch.stack(reconstruction).mean(0), torch.stack(kl).mean(0)

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The bound of the contract: the KL of each layer is in closed form, given a draw of the layers above it."""
        reconstruction, kl = self._bound_terms(x, n_samples, labels, generator)
        return reconstruction - kl.sum(1)

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        features, labels = self._encoded(x, labels)
        return self._kl(self._path(features, labels, generator))

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        features, labels = self._encoded(x, labels)
        x = x.to(self.device)
        weights = []
        for _ in range(n_samples):
            path = self._path(features, labels, generator)
            # The change to z = mu + sigma * eps has the same Jacobian under p and q.
            log_ratio = standard_normal_log_prob(path.z) - gaussian_log_prob(path.z, path.mu, path.log_var)
            weights.append(self.observation.log_prob(path.outputs, x) + log_ratio)
        return torch.stack(weights)  # (n_samples, N)

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        """The latent of the contract; a mean of q given the means of the layers above, or a draw."""
        features, labels = self._encoded(x, labels)
        return self._path(features, labels, generator, sample=sample).z

    def phases(self) -> tuple[Phase, ...]:
        # On MNIST the higher rate, which suits the digits, ran away after 2,400 steps.
        rate = 4e-3 if self.space.n_dims < 256 else 2e-3
        return (Phase("bound", tuple(self.parameters()), learning_rate=rate, clip_ratio=2.0),)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        reconstruction, kl = self._bound_terms(batch.x, 1, labels, generator)
        weighted_kl = kl_to_minimise(kl, self.beta, self.free_bits, self.kl_warmup, batch.progress)
        return bound_loss(self.space, reconstruction, kl, weighted_kl)


def _conv(n_in: int, n_out: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, side, stride, padding=side // 2)


def _channels_last(x: Tensor) -> Tensor:
    """Maps as convolutions on a CPU are quickest with: the channels of a site side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


class _Down(nn.Module):
    """From one size of the pyramid to the next smaller one; to 1x1 with weights for each site."""

    def __init__(self, size: tuple[int, int], smaller: tuple[int, int], n_in: int, n_out: int) -> None:
        super().__init__()
        self.is_last = smaller == (1, 1)
        self.layer = nn.Linear(n_in * math.prod(size), n_out) if self.is_last else _conv(n_in, n_out, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, *size) -> (N, n_out, *smaller)."""
        return self.layer(x.flatten(1))[:, :, None, None] if self.is_last else self.layer(x)


class _Up(nn.Module):
    """From one size of the pyramid to the next larger one: the nearest neighbour, and a learned constant for each site;
    from 1x1 with weights for each site."""

    def __init__(self, size: tuple[int, int], larger: tuple[int, int], n_in: int, n_out: int) -> None:
        super().__init__()
        self.size, self.is_first = larger, size == (1, 1)
        if self.is_first:
            self.layer: nn.Module = nn.Linear(n_in, n_out * math.prod(larger))
        else:
            self.layer = nn.Conv2d(n_in, n_out, 1, bias=False)
            self.constant = nn.Parameter(torch.zeros(n_out, *larger))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, *size) -> (N, n_out, *larger)."""
        if self.is_first:
            return _channels_last(self.layer(x.flatten(1)).unflatten(1, (-1, *self.size)))
        h = self.layer(x)
        return F.interpolate(h, self.size) + self.constant.to(h.dtype)
