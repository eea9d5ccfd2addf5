"""p(x) of models that have none, from what can be had of them: a generator, or nothing but samples.

Neither value is the model's own. Both say so: their kind is 'estimate'.

- `observed` puts an observation model around the generator's output: x is G(z) and noise of one fixed scale, which
  validation items choose. Then p(x) is an integral over z, which `annealed.py` estimates, with a bracket.
- `evaluate_parzen` puts a Gaussian around each of many samples, the Parzen window of the first papers on these models.

References:
    On the Quantitative Analysis of Decoder-Based Generative Models, Wu, Burda, Salakhutdinov & Grosse 2017,
    arXiv:1611.04273.
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661, section 5.
    Quickly Generating Representative Samples from an RBM-Derived Process, Breuleux, Bengio & Vincent 2011.
    A Note on the Evaluation of Generative Models, Theis, van den Oord & Bethge 2016, arXiv:1511.01844.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from triptych.data.dataset import Split
from triptych.data.parts import subset
from triptych.errors import InputError, counted
from triptych.evaluation.annealed import AnnealedSettings, LatentDensity, evaluate_annealed
from triptych.evaluation.likelihood import blocks, evaluation_mode, read_batch
from triptych.models.base import GenerativeModel, ImplicitDensity, Likelihood
from triptych.models.classical import MAX_ELEMENTS, log_normaliser, squared_distances
from triptych.models.observation import Observation
from triptych.nn.blocks import Scale, as_levels
from triptych.objectives.elbo import gaussian_log_prob
from triptych.objectives.pixel_likelihoods import logistic_log_mass
from triptych.spaces import ImageSpace, PointSpace, Space

FIRST_SIGMA, SIGMAS = 0.25, (1 / 256, 4.0)
"""Noise that the search begins with, and the least and the most, in units of scaled data."""
SIGMA_STEPS = (4, 2, 1)
"""By how many factors of 2^(1/4) the search goes to either side while that gains, one after the other."""
BANDWIDTHS_PER_DECADE = 10
PARZEN_WARNING = (
    "A Parzen window says little of the model: in many dimensions it is far below log p(x) with any number of samples,"
    " and it can rank a model above the data's own distribution (Theis et al. 2016, arXiv:1511.01844)."
)


class FixedNoise(Observation):
    r"""p(x|z) of one fixed scale around a generator's output.

    Points have a Gaussian. Images have a logistic, in the mass that it puts on each level, the edge levels taking the
    tails; so these are probabilities of integer images, as those of the other panels are. The colours of a palette have
    a Gaussian around the generator's channels, restricted to the indicator vectors: a softmax of channels / sigma^2.

    Arguments:
        space: What one datum is.
        sigma: Standard deviation of the noise, in units of scaled data: levels run from -1 to 1, and points have unit
            scale.
    Raises:
        InputError: If sigma is not positive.
    """

    def __init__(self, space: Space, sigma: float) -> None:
        if not 0 < sigma < math.inf:
            raise InputError(f"sigma is {sigma}; it must be positive and finite.")
        self.space, self.sigma = space, sigma
        self.scale = Scale(space)
        self.n_outputs = self.scale.n_channels

    @property
    def _logistic_scale(self) -> float:
        return self.sigma * math.sqrt(3) / math.pi

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        outputs = outputs.float()
        if isinstance(self.space, PointSpace):
            y = self.scale.to(x.device)(x)
            log_var = torch.full_like(y, 2 * math.log(self.sigma))
            return gaussian_log_prob(y, outputs, log_var) - self.space.dim * math.log(self.space.scale)
        if self.space.palette is not None:
            return -F.cross_entropy(outputs / self.sigma**2, x[:, 0].long(), reduction="none").flatten(1).sum(1)
        log_scale = torch.full((), math.log(self._logistic_scale), device=outputs.device)
        return logistic_log_mass(x, outputs, log_scale, self.space.levels).flatten(1).sum(1)

    def draw(self, outputs: Tensor, generator: Generator | None = None) -> Tensor:
        outputs = outputs.float()
        if isinstance(self.space, PointSpace):
            noise = torch.randn(outputs.shape, generator=generator, device=outputs.device)
            return self.mean(outputs + self.sigma * noise)
        noise = torch.rand(outputs.shape, generator=generator, device=outputs.device)
        if self.space.palette is not None:
            gumbel = -(-noise.clamp_min(1e-20).log()).log()  # The largest of logits and these is a draw of the softmax.
            return as_levels((outputs / self.sigma**2 + gumbel).argmax(1, keepdim=True), self.space)
        return self.mean(outputs + self._logistic_scale * noise.logit(1e-7))

    def mean(self, outputs: Tensor) -> Tensor:
        return self.scale.to(outputs.device).inverse(outputs)


def observed(model: ImplicitDensity, sigma: float) -> LatentDensity:
    """The density of G(z) and noise of a fixed scale: what `ais`, `bracket` and `evaluate_annealed` take.

    Arguments:
        sigma: As of `FixedNoise`.
    Raises:
        InputError: If sigma is not positive.
    Source:
        Wu et al. 2017, arXiv:1611.04273, section 2.2. Differs: logistics over the levels of images.
    """
    noise = FixedNoise(model.space, sigma)

    def log_likelihood(x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return noise.log_prob(model.fake(z, labels), x)

    def draw_given(z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return noise.draw(model.fake(z, labels), generator)

    return LatentDensity(model, log_likelihood, draw_given, "estimate")


@dataclass(frozen=True)
class ObservedLikelihood:
    """log p(x) of G(z) and noise, and how much noise."""

    likelihood: Likelihood
    """An 'estimate'; under the observation model a lower bound in expectation."""
    sigma: float
    """Standard deviation of the noise, in units of scaled data, the best of those tried."""
    tried: Mapping[float, float]
    """By sigma the mean over the validation items, nats per item."""
    n_valid: int
    """Validation items that chose."""

    def describe(self, space: Space) -> str:
        """A sentence: what the value assumes."""
        unit = "where points have unit scale" if isinstance(space, PointSpace) else "where levels run from -1 to 1"
        shape = "Gaussian"
        if isinstance(space, ImageSpace):
            shape = "softmax-of-channels" if space.palette is not None else "discretised logistic"
        return (
            f"Under {shape} noise of standard deviation {self.sigma:.3g} around the generator's output, {unit}; it was"
            f" chosen by {self.n_valid} validation items from {len(self.tried)} values."
        )


def evaluate_observed(
    model: ImplicitDensity,
    valid: Split,
    split: Split,
    *,
    sigma: float | None = None,
    settings: AnnealedSettings | None = None,
    n_valid: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> ObservedLikelihood:
    """Annealed log p(x) of every item of a split under a generator and noise whose scale validation items choose.

    The choice maximises the annealed estimate itself, with the same settings, items and seed at every scale. The search
    goes up and down from 0.25 by factors of 2, then of 2^(1/2) and 2^(1/4), as long as the mean rises.

    Arguments:
        model: On any device. Class-conditional models are given the splits' labels: log p(x | label).
        valid: Items that choose sigma; not needed where it is given.
        split: Items to score.
        sigma: The scale itself, to try no other.
        settings: Of annealing; None for the defaults. The choice costs some 9 times that of scoring n_valid items.
        n_valid: Validation items, drawn at random from more.
        seed: Of all draws.
        batch_size: Items at once.
        progress: Told what is being done, a short line each time.
    Raises:
        InputError: If there are no items, they do not fit the model, or sigma is not positive.
    Source:
        Wu et al. 2017, arXiv:1611.04273, section 5. Differs: the search.
    """
    tell = progress or (lambda line: None)
    tried: dict[float, float] = {}
    n_valid = min(n_valid, len(valid))
    if sigma is None:
        if n_valid < 1:
            raise InputError(f"{n_valid} validation items are to choose sigma; give at least 1, or sigma itself.")
        chosen = subset(valid, np.sort(np.random.default_rng(seed).permutation(len(valid))[:n_valid]))

        def score(sigma: float) -> float:
            nats = evaluate_annealed(
                observed(model, sigma), chosen, settings=settings, seed=seed, batch_size=batch_size
            ).nats
            tell(f"sigma {sigma:.3g}: {float(nats.double().mean()):.2f} nats per validation item")
            return float(nats.double().mean())

        sigma = climb(score, tried)
    likelihood = evaluate_annealed(
        observed(model, sigma), split, settings=settings, seed=seed, batch_size=batch_size, progress=progress
    )
    return ObservedLikelihood(likelihood, sigma, tried, n_valid if tried else 0)


def climb(score: Callable[[float], float], tried: dict[float, float]) -> float:
    """The number of the highest score, from FIRST_SIGMA up and down by SIGMA_STEPS.

    Arguments:
        score: Of one number; taken to have a single peak. NaN counts as the lowest.
        tried: Is filled with what was scored.
    """

    def number(place: int) -> float:
        return FIRST_SIGMA * 2 ** (place / 4)

    def value(place: int) -> float:
        sigma = number(place)
        if not SIGMAS[0] <= sigma <= SIGMAS[1]:
            return -math.inf
        if sigma not in tried:
            tried[sigma] = score(sigma)
        return -math.inf if math.isnan(tried[sigma]) else tried[sigma]

    best = 0
    for step in SIGMA_STEPS:
        for way in (step, -step):
            while value(best + way) > value(best):
                best += way
    return number(best)


def parzen_log_density(y: Tensor, centres: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """log of the mean of Gaussians N(y; c_j, h^2 I) over centres c_j, for each of several bandwidths h.

    Arguments:
        y: (N, D).
        centres: (M, D), M at least 1.
        bandwidths: Positive, in the units of y.
    Returns:
        Nats, float64, (len(bandwidths), N), in memory that does not grow with N * M.
    """
    variances = torch.tensor(bandwidths, dtype=torch.float64, device=y.device).square()
    total = torch.full((len(variances), len(y)), -math.inf, dtype=torch.float64, device=y.device)
    n_rows = max(1, min(1024, MAX_ELEMENTS // y.shape[1]))
    for rows in torch.arange(len(y), device=y.device).split(n_rows):
        for some in centres.split(max(1, MAX_ELEMENTS // max(len(rows), y.shape[1]))):
            squares = squared_distances(y[rows], some)  # (rows, centres)
            nearest = squares.amin(1, keepdim=True)
            beyond = (squares - nearest).float()  # What is left is at most 1 after exp(), and float32 is much quicker.
            for i, width in enumerate(bandwidths):
                kernels = (beyond * (-0.5 / width**2)).exp().sum(1).double().log()
                kernels = kernels - nearest.squeeze(1) * (0.5 / width**2)
                total[i, rows] = torch.logaddexp(total[i, rows], kernels)
    return total - math.log(len(centres)) - log_normaliser(variances, y.shape[1])[:, None]


@dataclass(frozen=True)
class Parzen:
    """log-density of items under Gaussians around samples of a model."""

    likelihood: Likelihood
    """An 'estimate' of a 'continuous' density, in data units (of images: levels)."""
    bandwidth: float
    """Standard deviation of the Gaussians, chosen by validation items; of images where levels run from 0 to 1, as in
    the papers, of points where these have unit scale."""
    tried: Mapping[float, float]
    """By bandwidth the mean over the validation items, nats per item, in the same units as `unit_nats`."""
    unit_nats: Tensor
    """The log-density of images whose levels run from 0 to 1, which is what papers print, or of points of unit scale;
    float32, (N,)."""
    n_samples: int
    """Samples, in all classes together."""


def evaluate_parzen(
    model: GenerativeModel,
    valid: Split,
    split: Split,
    *,
    n_samples: int = 10_000,
    n_valid: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Parzen:
    """The Parzen window: a Gaussian around each sample, of a bandwidth that validation items choose from a grid.

    It is kept because old papers have no other number; `PARZEN_WARNING` says what it is worth. The grid has ten values
    a decade, from 2 down to 0.01 (images) or 0.001, and ten more around the best.

    Arguments:
        model: Of any panel, on any device. A class-conditional one is scored as log p(x | label), with as many samples
            of each class as make n_samples.
        valid: Items that choose the bandwidth.
        split: Items to score.
        n_samples: Samples of the model.
        n_valid: Validation items, drawn at random from more.
        seed: Of the samples and of this choice.
        progress: Told what is being done, a short line each time.
    Raises:
        InputError: If there are no items or too few samples, they do not fit the model, or the space is a palette.
    Source:
        Breuleux et al. 2011; Goodfellow et al. 2014, arXiv:1406.2661, section 5. Differs: a finer grid of bandwidths.
    """
    tell = progress or (lambda line: None)
    space = model.space
    if isinstance(space, ImageSpace) and space.palette is not None:
        raise InputError("A Parzen window needs levels with an order; a palette has none.")
    if n_samples < max(1, model.n_classes) or min(n_valid, len(valid)) < 1 or len(split) < 1:
        raise InputError(
            f"n_samples is {n_samples}, and {min(n_valid, len(valid))} validation items and {len(split)} items are"
            f" given; there must be at least {max(1, model.n_classes)}, 1 and 1."
        )
    chosen = subset(valid, np.sort(np.random.default_rng(seed).permutation(len(valid))[:n_valid]))
    tell(f"drawing {counted(n_samples, 'sample')}")
    centres = _samples(model, n_samples, seed)
    tell("choosing the bandwidth")
    tried: dict[float, float] = {}
    finest = 0.01 if isinstance(space, ImageSpace) else 0.001
    step = 10 ** (1 / BANDWIDTHS_PER_DECADE)
    n_steps = math.ceil(math.log(2 / finest) / math.log(step))
    grid = [2 / step**i for i in range(n_steps + 1)]
    for _ in range(2):
        nats = _parzen(model, chosen, centres, grid)
        tried |= dict(zip(grid, nats.mean(1).tolist(), strict=True))
        best = max(tried, key=lambda width: tried[width])
        grid = [best * step ** (i / 5.5) for i in range(-5, 6) if i]
    tell("scoring")
    nats = _parzen(model, split, centres, [best])[0]
    scale = space.scale if isinstance(space, PointSpace) else float(space.levels - 1)
    in_data_units = nats - space.n_dims * math.log(scale)
    likelihood = Likelihood(in_data_units.float(), "estimate", "continuous", n_samples)
    return Parzen(likelihood, best, tried, nats.float(), n_samples)


@torch.no_grad()
def _samples(model: GenerativeModel, n: int, seed: int) -> list[Tensor]:
    """Samples of each class, or of the only one, in data units, n in all: (n_k, *space.shape) each, on the device."""
    generator = Generator(model.device).manual_seed(seed)
    n_densities = max(1, model.n_classes)
    found = []
    with evaluation_mode(model):
        for label in range(n_densities):
            own = n // n_densities + (label < n % n_densities)
            parts = []
            for block in blocks(own, model.space):
                size = block.stop - block.start
                labels = torch.full((size,), label, device=model.device) if model.n_classes else None
                parts.append(model.sample(size, labels=labels, generator=generator))
            found.append(torch.cat(parts))
    return found


def _parzen(model: GenerativeModel, split: Split, centres: Sequence[Tensor], bandwidths: Sequence[float]) -> Tensor:
    """`parzen_log_density` of items around the samples of their class, float64, (len(bandwidths), len(split)), on the
    CPU, in the units of `Parzen.unit_nats`."""
    parts = []
    for block in blocks(len(split), model.space):
        x, labels = read_batch(model, split, block)
        model.space.check(x)
        labels = model.check_labels(len(x), labels, draw=False)
        which = torch.zeros(len(x), dtype=torch.int64, device=x.device) if labels is None else labels
        nats = torch.empty((len(bandwidths), len(x)), dtype=torch.float64, device=x.device)
        for label in which.unique().tolist():
            own = (which == label).nonzero().squeeze(1)
            nats[:, own] = parzen_log_density(
                _flat(x[own], model.space), _flat(centres[label], model.space), bandwidths
            )
        parts.append(nats.cpu())
    return torch.cat(parts, 1)


def _flat(x: Tensor, space: Space) -> Tensor:
    """Data as vectors, float32, (N, n_dims): levels from 0 to 1, or points of unit scale."""
    if isinstance(space, PointSpace):
        return Scale(space).to(x.device)(x)
    return x.flatten(1).float() / (space.levels - 1)
