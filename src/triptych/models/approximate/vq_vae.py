"""The VQ-VAE: an autoencoder through a grid of symbols, and an autoregressive prior of the grids.

References:
    Neural Discrete Representation Learning, van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937.
    Jukebox: A Generative Model for Music, Dhariwal et al. 2020, arXiv:2005.00341 (restarts of unused codes).
    Robust Training of Vector Quantized Bottleneck Models, Łańcucki et al. 2020, arXiv:2005.08520 (the same).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Batch, Loss, Phase
from triptych.models.latents import MAX_DRAWN, DecodedDensity
from triptych.models.observation import LikelihoodName, observation_of
from triptych.models.registry import create_model, model_class
from triptych.nn.blocks import ResidualBlock, Scale, pyramid_widths, with_condition
from triptych.nn.encoders import hidden_of
from triptych.nn.options import check_counts, check_dropout, check_not_negative
from triptych.spaces import ImageSpace

MAX_SIDE = 8  # Of the grid of codes, where n_halvings is None and three halvings reach it.
MAX_CODES = 65536  # The most levels of an image, which a grid of codes is to its prior.


class VQVAE(DecodedDensity):
    r"""q(z|x) a point mass on a grid of codebook entries, a decoder with a true likelihood, a learned prior of grids.

    The encoder gives a vector at each site of a small grid, and each vector is replaced by the nearest of `n_codes`
    codebook entries; the decoder's gradient passes to the encoder as if nothing had been replaced. The entries follow
    the vectors that choose them by moving averages. When the codes have settled, any autoregressive model learns the
    grids of the training images. Until then the prior is uniform.

    The bound has no noise: q puts all its mass on codes(x), so log p(x) >= log p(x | codes(x)) + log p(codes(x)), and
    the importance-weighted bound is the same for any number of draws.

    Arguments:
        space: Images.
        n_classes: Classes that encoder, decoder and prior are conditioned on; 0 for none.
        n_codes: Entries of the codebook, at least 2; None for 8 for images of fewer than 256 sub-pixels, else 128.
        code_dim: Features of an entry.
        n_halvings: How often the encoder halves the image to the grid of codes; None for until no side is above 8,
            but once at least and three times at most.
        hidden: Channels at full size (doubled at smaller ones, four-fold at most); None for 32 of images of fewer than
            256 sub-pixels, else 16.
        n_blocks: Residual blocks at each image size, in encoder and decoder.
        dropout: Share of channels dropped in the residual blocks while encoder and decoder are trained.
        commitment: Weight of the squared distance of a vector from its entry, per feature, against nats per sub-pixel.
        codebook_decay: Decay of the moving averages that the codebook consists of, a training step.
        restart_share: A code that is used less than this share of the average is moved to a vector of the batch; 0 for
            no restarts.
        prior: The prior's model, any autoregressive one.
        likelihood: 'bernoulli', 'categorical' or 'logistic'. 'auto' takes the Bernoulli for two levels, the softmax
            for up to 32 levels of one channel and for palettes, else a mixture of discretised logistics.
        n_mixtures: Logistics of a site.
    Raises:
        InputError: If an option is out of range or does not fit the space, or the prior is not autoregressive.
    Source:
        van den Oord et al. 2017, arXiv:1711.00937, eq. 1 to 3, and appendix A.1 for the codebook; restarts as in
        Dhariwal et al. 2020, arXiv:2005.00341, section 3.1. Differs: a discrete likelihood of the pixels, so that the
        bound is one; the codebook starts from vectors of the first batch; nearest-neighbour upsampling instead of
        transposed convolutions; classes in encoder and decoder too.
    """

    has_normal_prior = False
    space: ImageSpace
    codebook: Tensor
    code_counts: Tensor
    code_sums: Tensor
    prior_has_begun: Tensor

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        n_codes: int | None = None,
        code_dim: int = 16,
        n_halvings: int | None = None,
        hidden: int | None = None,
        n_blocks: int = 1,
        dropout: float = 0.1,
        commitment: float = 0.25,
        codebook_decay: float = 0.99,
        restart_share: float = 0.1,
        prior: str = "gated_pixel_cnn",
        likelihood: LikelihoodName = "auto",
        n_mixtures: int = 3,
    ) -> None:
        super().__init__(space, n_classes)
        if n_halvings is None:
            n_halvings = min(3, max(1, math.ceil(math.log2(max(space.height, space.width) / MAX_SIDE))))
        if n_codes is None:
            n_codes = 8 if space.n_dims < 256 else 128
        hidden = hidden_of(hidden, "residual", space)
        if not 2 <= n_codes <= MAX_CODES:
            raise InputError(f"n_codes is {n_codes}; it must be between 2 and {MAX_CODES}.")
        check_counts(code_dim=code_dim, hidden=hidden, n_blocks=n_blocks, n_mixtures=n_mixtures)
        check_dropout(dropout)
        check_not_negative(n_halvings=n_halvings, commitment=commitment)
        for option, value in {"codebook_decay": codebook_decay, "restart_share": restart_share}.items():
            if not 0 <= value < 1:
                raise InputError(f"{option} is {value}; it must be at least 0 and less than 1.")
        self.n_codes, self.code_dim, self.n_halvings = n_codes, code_dim, n_halvings
        self.hidden, self.n_blocks, self.dropout = hidden, n_blocks, dropout
        self.commitment, self.codebook_decay, self.restart_share = commitment, codebook_decay, restart_share
        self.prior, self.likelihood, self.n_mixtures = prior, likelihood, n_mixtures

        self.observation = observation_of(space, likelihood, n_mixtures)
        self.scale = Scale(space)
        sizes = [(space.height, space.width)]
        for _ in range(n_halvings):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        n_inputs, n_outputs = self.scale.n_channels + n_classes, self.observation.n_outputs
        widths = pyramid_widths(hidden, len(sizes))
        self.encoder = _encoder(n_inputs, widths, n_blocks, dropout, code_dim)
        self.decoder = _decoder(code_dim + n_classes, widths, n_blocks, dropout, n_outputs, sizes)
        self.code_space = _code_space(*sizes[-1], n_codes)
        self.n_latents = code_dim * self.code_space.n_dims
        self.code_density = _prior_of(prior, self.code_space, n_classes)
        """p(codes), used from the prior's stage on."""

        self.register_buffer("codebook", torch.randn(n_codes, code_dim))
        self.register_buffer("code_counts", torch.zeros(n_codes))
        self.register_buffer("code_sums", torch.zeros(n_codes, code_dim))
        self.register_buffer("prior_has_begun", torch.tensor(False))

    # ---- the code

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The encoder's vectors for checked data, before any is replaced, float32, (N, code_dim, h, w)."""
        return self.encoder(with_condition(self.scale(x.to(self.device)), self.condition(labels))).float()

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of vectors and their entries: (N, code_dim, h, w) -> int64, (N, 1, h, w), and (N, code_dim, h, w).

        Gradients pass from the entries to the vectors unchanged, the straight-through estimator (arXiv:1711.00937,
        section 3.2); the codebook has none.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            vectors = features.detach().float().movedim(1, -1)  # (N, h, w, D)
            distances = self.codebook.square().sum(1) - 2 * (
                vectors @ self.codebook.T
            )  # less |vector|^2, which is equal
            codes = distances.argmin(-1)  # (N, h, w)
        # Exactly the entry, where features + (entry - features) would be rounded.
        return codes.unsqueeze(1), self.entries(codes) + (features - features.detach())

    def entries(self, codes: Tensor) -> Tensor:
        """Codes, integers, (N, h, w), to their codebook entries, float32, (N, code_dim, h, w)."""
        return F.embedding(codes.long(), self.codebook).movedim(-1, 1)

    def decoded(self, entries: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `observation` reads, (N, n_outputs, H, W), for entries, (N, code_dim, h, w)."""
        return self.decoder(with_condition(entries, self.condition(labels)))

    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """As of the contract; the gradient with respect to z is the straight-through one."""
        return self.decoded(self.nearest(z.unflatten(1, (self.code_dim, *self.code_space.shape[1:])))[1], labels)

    def codes(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The symbols of images, int64, 0 .. n_codes-1, (N, 1, h, w).

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W).
            labels: int64, (N,); required by a class-conditional model.
        Raises:
            InputError: If x or labels do not fit the model.
        """
        return self.nearest(self._features(x, labels)[0])[0]

    def _features(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`features` of data that is checked first, and checked labels."""
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        return self.features(x, labels), labels

    # ---- the contract

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        """The encoder's vectors, before they are replaced by their entries, float32, (N, n_latents)."""
        return self._features(x, labels)[0].flatten(1)

    def log_prior(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(codes), uniform until the prior's stage begins: (N, 1, h, w) -> nats, float32, (N,)."""
        if self.prior_has_begun:
            return self.code_density.log_prob(codes, labels)
        return torch.full((len(codes),), -self.code_space.n_dims * math.log(self.n_codes), device=codes.device)

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """log p(x | codes(x)) + log p(codes(x)), without noise: n_samples and generator change nothing."""
        features, labels = self._features(x, labels)
        codes, entries = self.nearest(features)
        log_likelihood = self.observation.log_prob(self.decoded(entries, labels), x.to(self.device))
        return log_likelihood + self.log_prior(codes, labels)

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return self.elbo(x, labels=labels).expand(n_samples, -1)

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """-log p(codes(x)), the codes' cost as one part, nats, (N, 1)."""
        return -self.log_prior(self.codes(x, labels), self.check_labels(len(x), labels, draw=False)).unsqueeze(1)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        if self.prior_has_begun:
            codes = self.code_density.sample(n, labels=labels, generator=generator)
        else:
            shape = (n, *self.code_space.shape)
            codes = torch.randint(self.n_codes, shape, generator=generator, device=self.device)
        parts = []
        for i in torch.arange(n, device=self.device).split(MAX_DRAWN):
            outputs = self.decoded(self.entries(codes[i, 0]), None if labels is None else labels[i])
            parts.append(self.observation.draw(outputs, generator))
        return torch.cat(parts)

    # ---- training

    def phases(self) -> tuple[Phase, ...]:
        (own,) = self.code_density.phases()
        autoencoder = (*self.encoder.parameters(), *self.decoder.parameters())
        return (
            Phase("autoencoder", autoencoder, learning_rate=2e-3, clip_ratio=2.0, stage=0, stage_share=2.0),
            dataclasses.replace(own, name="prior", stage=1, stage_share=1.0),
        )

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        """As of the contract. In training mode the autoencoder's phase moves the codebook too."""
        labels = batch.labels if self.n_classes else None
        if phase == "prior":
            if self.training:
                self.prior_has_begun.fill_(True)
            codes = self._settled_codes(batch.x, labels)
            nats_per_image = -self.code_density.log_prob(codes, labels).mean()
            return Loss(nats_per_image / self.code_space.n_dims, {"codes_nats_per_image": nats_per_image.detach()})
        features, labels = self._features(batch.x, labels)
        codes, entries = self.nearest(features)
        log_likelihood = self.observation.log_prob(self.decoded(entries, labels), batch.x.to(self.device))
        distance = (features - entries.detach()).square().mean()
        counts = parallel.total(torch.bincount(codes.flatten(), minlength=self.n_codes).float())
        if self.training:
            self._update_codebook(features.detach(), codes, generator)
        shares = counts / counts.sum()
        terms = {
            "reconstruction_nats_per_image": -log_likelihood.mean(),
            "squared_distance": distance,
            "codes_used": (counts > 0).float().mean(),
            "perplexity": torch.special.entr(shares).sum().exp(),
        }
        total = self.commitment * distance - log_likelihood.mean() / self.space.n_dims
        return Loss.of(total, terms)

    @torch.no_grad()
    def _settled_codes(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """`codes` without dropout whatever the mode: what the prior learns are the codes that scores are of."""
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            return self.codes(x, labels)
        finally:
            self.encoder.train(was_training)

    @torch.no_grad()
    def _update_codebook(self, features: Tensor, codes: Tensor, generator: Generator | None) -> None:
        """Moves the entries towards the vectors that chose them, and those that hardly any chose into the batch.

        Counts and sums start from zero, and an entry is their quotient: so entries move quickly at first.

        Arguments:
            features: (N, code_dim, h, w).
            codes: (N, 1, h, w).
        Source:
            van den Oord et al. 2017, arXiv:1711.00937, appendix A.1. Restarts: Dhariwal et al. 2020,
            arXiv:2005.00341, section 3.1. Differs: a restarted code counts as used as often as the average, so that it
            has time to find its vectors.
        """
        vectors = features.movedim(1, -1).flatten(0, 2)  # (M, D)
        with torch.autocast(vectors.device.type, enabled=False):
            chosen = F.one_hot(codes.flatten(), self.n_codes).to(vectors.dtype)  # (M, K)
            self.code_counts.lerp_(parallel.total(chosen.sum(0)), 1 - self.codebook_decay)
            self.code_sums.lerp_(parallel.total(chosen.T @ vectors), 1 - self.codebook_decay)
        if self.restart_share:
            average = self.code_counts.mean()
            unused = self.code_counts < self.restart_share * average
            drawn = self._drawn(vectors, generator)
            self.code_counts.copy_(torch.where(unused, average, self.code_counts))
            self.code_sums.copy_(torch.where(unused.unsqueeze(1), average * drawn, self.code_sums))
        # Without restarts a code may never have been used; below some count the quotient is of rounding errors.
        known = self.code_counts.unsqueeze(1) > 1e-6
        self.codebook.copy_(torch.where(known, self.code_sums / self.code_counts.unsqueeze(1), self.codebook))

    def _drawn(self, vectors: Tensor, generator: Generator | None) -> Tensor:
        """Vectors of the whole batch at random, one for each code, (K, D), from this process's, (M, D)."""
        process, n_processes = parallel.process()
        order = torch.randperm(len(vectors) * n_processes, generator=generator, device=vectors.device)
        place = order[torch.arange(self.n_codes, device=order.device) % len(order)] - process * len(vectors)
        is_own = ((place >= 0) & (place < len(vectors))).unsqueeze(1)
        return parallel.total(torch.where(is_own, vectors[place.clamp(0, len(vectors) - 1)], 0))


def _code_space(height: int, width: int, n_codes: int) -> ImageSpace:
    """Grids of codes as images of one channel; a palette says that the symbols have no order."""
    return ImageSpace(1, height, width, n_codes, tuple((0, code // 256, code % 256) for code in range(n_codes)))


def _prior_of(prior: str, space: ImageSpace, n_classes: int) -> AutoregressiveDensity:
    fits = issubclass(model_class(prior), AutoregressiveDensity)
    model = create_model(prior, space, n_classes=n_classes) if fits else None
    if not isinstance(model, AutoregressiveDensity):
        raise InputError(f"prior is {prior!r}, which is not autoregressive; give one such as 'gated_pixel_cnn'.")
    return model


def _encoder(n_inputs: int, widths: list[int], n_blocks: int, dropout: float, n_outputs: int) -> nn.Sequential:
    """(N, n_inputs, H, W) -> (N, n_outputs, h, w): one size for each width, each half of the one before."""
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        before = nn.Conv2d(widths[i - 1], width, 3, 2, 1) if i else nn.Conv2d(n_inputs, width, 3, padding=1)
        layers += [before, *(ResidualBlock(width, dropout) for _ in range(n_blocks))]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[-1], n_outputs, 1))


def _decoder(
    n_inputs: int, widths: list[int], n_blocks: int, dropout: float, n_outputs: int, sizes: list[tuple[int, int]]
) -> nn.Sequential:
    """(N, n_inputs, h, w) -> (N, n_outputs, H, W): the encoder run backwards. Widths and sizes from the largest on."""
    layers: list[nn.Module] = []
    for i, width in reversed(list(enumerate(widths))):
        is_first = i + 1 == len(widths)
        layers += [] if is_first else [nn.Upsample(sizes[i])]
        layers += [nn.Conv2d(n_inputs if is_first else widths[i + 1], width, 3, padding=1)]
        layers += [ResidualBlock(width, dropout) for _ in range(n_blocks)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[0], n_outputs, 1))
