"""Log-likelihoods of a whole split, and what a table says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

from triptych import ranks
from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.results import Measurement
from triptych.evaluation.two_sample import Z_95
from triptych.models.base import ApproximateDensity, GenerativeModel, Likelihood, TractableDensity
from triptych.spaces import ImageSpace, Space

_MAX_SITES = 1 << 20  # pixels of all images that a model sees at once: about 256 MiB per layer of 64 channels


def blocks(n: int, space: Space, most: int = 256) -> Iterator[slice]:
    """0 .. n in blocks of `most` items, fewer where images are large: what a model sees at once in bounded memory."""
    size = min(most, max(1, _MAX_SITES // _n_sites(space)))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def read_batch(model: GenerativeModel, split: Split, index: np.ndarray | slice) -> tuple[Tensor, Tensor | None]:
    """Items of a split on the model's device, and their labels if it is class-conditional and they have some."""
    items, targets = split.read(index)
    labels = None if model.n_classes == 0 or targets is None else torch.tensor(targets, device=model.device)
    return torch.tensor(items, device=model.device), labels


@contextmanager
def evaluation_mode(model: GenerativeModel) -> Iterator[None]:
    """The model in evaluation mode, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate_likelihood(
    model: GenerativeModel, split: Split, *, n_importance: int = 0, batch_size: int = 256, seed: int = 0
) -> Likelihood | None:
    """log p of every item of a split, in its order, with what is known of it: exact, or a bound.

    Processes that are `ranks.together` share the work.

    Arguments:
        model: On any device. Class-conditional models are given the split's labels: log p(x | label).
        n_importance: Draws K of the importance-weighted bound of an approximate density; 0 for the ELBO (one draw).
        batch_size: Most items at once; fewer where images are large. An exact value does not depend on it.
        seed: Of the draws behind a bound.
    Returns:
        Nats per item on the CPU, (len(split),); None for an implicit density, which has none. Values may be NaN or
        infinite: `summarise` does not average them away, and `describe_non_finite` counts them.
    Raises:
        InputError: If the items or labels do not fit the model.
    """
    if not isinstance(model, TractableDensity | ApproximateDensity):
        return None
    if n_importance < 0 or batch_size < 1:
        raise InputError(f"n_importance is {n_importance} and batch_size {batch_size}; give at least 0 and 1.")
    every = list(blocks(len(split), model.space, batch_size))

    def scored(number: int) -> Tensor:
        x, labels = read_batch(model, split, every[number])
        if isinstance(model, TractableDensity):
            return model.log_prob(x, labels).float().cpu()
        generator = Generator(model.device).manual_seed(ranks.part_seed(seed, number))
        if n_importance == 0:
            return model.elbo(x, labels=labels, generator=generator).float().cpu()
        chunk = max(1, _MAX_SITES // (_n_sites(model.space) * len(x)))
        return streamed_iwae(model, x, n_importance, chunk=chunk, labels=labels, generator=generator).float().cpu()

    with evaluation_mode(model):
        parts = ranks.in_parts(len(every), scored)
    kind = model.kind if isinstance(model, TractableDensity) else "lower bound"
    n_samples = model.n_draws if isinstance(model, TractableDensity) else max(1, n_importance)
    return Likelihood(torch.cat(parts), kind, model.measure, n_samples)


def streamed_iwae(
    model: ApproximateDensity,
    x: Tensor,
    n_samples: int,
    *,
    chunk: int,
    labels: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """`model.iwae`, with at most `chunk` draws of each item in memory, accumulated in log space in float64.

    Returns:
        Nats per item, float64, (N,).
    Source:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, eq. 8.
    """
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    for start in range(0, n_samples, chunk):
        log_weights = model.log_weights(x, min(chunk, n_samples - start), labels=labels, generator=generator)
        total = torch.logaddexp(total, log_weights.double().logsumexp(0))
    return total - math.log(n_samples)


def summarise(likelihood: Likelihood, space: Space) -> dict[str, Measurement]:
    """Mean negative log-likelihood over items, lower is better, in the units of the space.

    One item that is NaN, or of probability zero, makes the mean NaN or infinite, without an interval.

    Returns:
        By column: `nll_nats_per_image` and `bits_per_dim`, or `nll_nats_per_point`, with the 95 % interval
        mean ± 1.96 standard errors over items.
    """
    nats = -likelihood.nats.double()
    n = len(nats)
    mean = float(nats.mean())
    finite = math.isfinite(mean)
    half = Z_95 * float(nats.std()) / math.sqrt(n) if finite and n > 1 else None

    def measured(per_nat: float) -> Measurement:
        value = mean * per_nat
        low, high = (None, None) if half is None else (value - half * per_nat, value + half * per_nat)
        return Measurement(value, low, high, n, likelihood.kind, likelihood.measure)

    if not isinstance(space, ImageSpace):
        return {"nll_nats_per_point": measured(1.0)}
    return {"nll_nats_per_image": measured(1.0), "bits_per_dim": measured(space.bits_per_dim(1.0))}


def describe_non_finite(likelihood: Likelihood) -> str | None:
    """'3 of 360 values are not finite (2 NaN, 1 infinite)', or None if all are finite."""
    nats = likelihood.nats
    n_nan, n_infinite = int(nats.isnan().sum()), int(nats.isinf().sum())
    if n_nan + n_infinite == 0:
        return None
    return f"{n_nan + n_infinite} of {len(nats)} values are not finite ({n_nan} NaN, {n_infinite} infinite)"


def _n_sites(space: Space) -> int:
    return space.height * space.width if isinstance(space, ImageSpace) else 1
