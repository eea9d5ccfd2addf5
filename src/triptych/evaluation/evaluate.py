"""Measures models side by side: one table, in which every value says what it is and how sure it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from triptych.data.dataset import Dataset, Split, level_dtype
from triptych.errors import InputError
from triptych.evaluation.features import ClassifierFeatures, Coordinates, FeatureExtractor, RandomConvFeatures
from triptych.evaluation.latents import describe, latent_report
from triptych.evaluation.likelihood import (
    describe_non_finite,
    evaluate_likelihood,
    evaluation_mode,
    read_batch,
    summarise,
)
from triptych.evaluation.neighbours import FeatureSearch, Neighbours, show_neighbours
from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.evaluation.sharpness import (
    gradient_energy,
    has_sharpness,
    radial_power,
    relative_sharpness,
    spectral_distance,
    spectrum,
)
from triptych.evaluation.two_sample import (
    Z_95,
    bootstrap_error,
    frechet_distance,
    gaussian_statistics,
    kernel_distance,
    neighbour_radii,
    precision_recall,
    wilson_interval,
)
from triptych.models.base import (
    ApproximateDensity,
    GenerativeModel,
    ImplicitDensity,
    LatentModel,
    Likelihood,
    TractableDensity,
)
from triptych.spaces import ImageSpace, PointSpace, Space

Progress = Callable[[str], None]

N_SHOWN = 16
"""Reconstructions and samples with neighbours, for people to look at."""
SAMPLE_BATCH = 256
"""Most items drawn at once."""
K_NEIGHBOURS = 3
"""Neighbours that a ball of precision and recall reaches to (Kynkäänniemi et al. 2019 use 3)."""
N_RESAMPLES = 100
"""Of the bootstrap behind the intervals of the Fréchet distance and of sharpness."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns."""

    table: Table
    """Models in the order given, then references that give the numbers meaning."""
    samples: dict[str, np.ndarray]
    """By model: the draws behind the table, (n, *space.shape), in random order of their labels."""
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]]
    """By model with an encoder: held-out items and their reconstructions, (M, *space.shape) each."""
    neighbours: dict[str, Neighbours]
    """By model: some samples beside their nearest training items; under 'held-out' the same of held-out items."""
    neighbours_in_features: dict[str, Neighbours]
    """The same by distances in the first extractor's features, for images."""
    notes: tuple[str, ...]
    """What a reader must know to read the table rightly, a sentence each."""


def evaluate(
    models: Mapping[str, GenerativeModel],
    dataset: Dataset,
    *,
    split: str = "test",
    n_importance: int = 64,
    n_samples: int | None = None,
    extractors: Sequence[FeatureExtractor] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """Likelihood, two-sample distances and speed of models on the whole of a held-out split.

    Arguments:
        models: By the name of their row. Each runs on the device that it is on, in evaluation mode.
        dataset: Of the space the models were built for.
        split: 'test', or 'valid' while something is still being chosen.
        n_importance: Draws K of the importance-weighted bound of approximate densities; 0 for the ELBO alone.
        n_samples: Draws of each model, at most as many as the split has items (that many when None).
        extractors: Features of the two-sample distances. By default random convolutions, and a classifier where the
            data have labels; for points their coordinates.
        seed: Of all randomness: draws, bounds, references, resampling, the classifier. The same for every model.
        device: Where the default extractors run.
        progress: Told what is being done, a short line each time.
    Raises:
        InputError: If a model is of another space, a name is that of a reference, or an argument is out of range.
    """
    if split not in ("valid", "test"):
        raise InputError(f"split is {split!r}; evaluate on 'test' or 'valid'.")
    if n_samples is not None and n_samples < 1:
        raise InputError(f"n_samples is {n_samples}; it must be at least 1.")
    space, held_out = dataset.space, dataset.splits[split]
    for name, model in models.items():
        if name in (_TRAIN, _NOISE, _TRUE, HELD_OUT):
            raise InputError(f"{name!r} names a reference row; call the model something else.")
        if not _same_shape(model.space, space):
            raise InputError(f"{name} models {model.space}; {dataset.name!r} holds {space}.")
    tell = progress or (lambda line: None)
    if extractors is None:
        extractors = _default_extractors(dataset, seed, device, tell)
    n = len(held_out) if n_samples is None else min(n_samples, len(held_out))
    held_out_items = held_out.read()[0]
    comparisons = [_Comparison(extractor, held_out_items, seed) for extractor in extractors]
    sharpness = _SharpnessComparison(space, held_out_items, seed) if has_sharpness(space) else None
    samples: dict[str, np.ndarray] = {}
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    neighbours: dict[str, Neighbours] = {}
    in_features: dict[str, Neighbours] = {}
    search = None
    if extractors and isinstance(space, ImageSpace):
        tell(f"train split: {extractors[0].key} features")
        search = FeatureSearch(extractors[0], dataset.train, seed=seed)
    notes: list[str] = []
    if any(isinstance(extractor, ClassifierFeatures) for extractor in extractors):
        notes.append(
            f"The classifier has learnt the train split, so in its features '{_TRAIN}' compares images that it knows"
            " with images that it does not: a perfect model could get a little less."
        )
    rows: list[Row] = []

    def distances(name: str, items: np.ndarray) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if not np.isfinite(items).all():
            notes.append(f"{name}: samples are not finite, so their distances are not defined.")
        for comparison in comparisons:
            tell(f"{name}: distances in {comparison.extractor.key} features")
            found |= comparison.measure(items)
        if sharpness is not None:
            tell(f"{name}: sharpness")
            found |= sharpness.measure(items)
        return found

    def look_for_copies(name: str, items: np.ndarray) -> None:
        if np.isfinite(items).all():
            tell(f"{name}: nearest training items")
            neighbours[name] = show_neighbours(items[:N_SHOWN], dataset.train, space)
            if search is not None:
                in_features[name] = search.show(items[:N_SHOWN])

    for name, model in models.items():
        with evaluation_mode(model):
            measurements = _likelihoods(name, model, held_out, n_importance, seed, notes, tell)
            samples[name], speed = _draw(name, model, held_out.labels, n, seed, tell)
            # Without a recognition network every item would be looked for by hundreds of steps.
            is_slow = isinstance(model, ImplicitDensity) and model.recognition is None
            if isinstance(model, LatentModel) and not is_slow:
                reconstructions[name] = _reconstruct(model, held_out)
            if isinstance(model, ApproximateDensity):
                notes += [f"{name}: {line}" for line in _latents(model, held_out, measurements, seed)]
        measurements |= distances(name, samples[name])
        measurements["samples_per_second"] = speed
        look_for_copies(name, samples[name])
        rows.append(Row(name, model.panel, measurements))
    rng = np.random.Generator(np.random.PCG64(seed))
    spread = np.linspace(0, len(held_out) - 1, min(N_SHOWN, len(held_out))).astype(np.int64)
    look_for_copies(HELD_OUT, held_out_items[spread])
    train = dataset.train.read(np.sort(rng.permutation(len(dataset.train))[:n]))[0]
    rows.append(Row(_TRAIN, None, distances(_TRAIN, train)))
    rows.append(Row(_NOISE, None, _noise_likelihood(space, len(held_out)) | distances(_NOISE, _noise(dataset, n, rng))))
    if dataset.log_density is not None:
        nats = torch.tensor(dataset.log_density(held_out_items))
        rows.append(Row(_TRUE, None, summarise(Likelihood(nats, "exact", "continuous"), space)))
    if any(model.n_classes for model in models.values()):
        notes.append(
            "Class-conditional models score log p(x | label) with the held-out labels, which can on average be up to "
            "log(number of classes) nats better than log p(x), and are drawn with these labels."
        )
    if len(held_out) < 2000:
        notes.append(
            f"Two-sample distances rest on {len(held_out)} held-out items: below some 2,000 they are noisy, and the "
            f"Fréchet distance and recall are biased; compare with the row '{_TRAIN}', which shares the bias."
        )
    metrics = _metrics(space, models, extractors, n_importance, split)
    return Evaluation(Table(metrics, tuple(rows)), samples, reconstructions, neighbours, in_features, tuple(notes))


HELD_OUT = "held-out"
_TRAIN, _NOISE, _TRUE = "train vs held-out", "noise", "true density"


class _Comparison:
    """Two-sample distances to one held-out set in one extractor's features, whose statistics are computed once."""

    def __init__(self, extractor: FeatureExtractor, held_out: np.ndarray, seed: int) -> None:
        self.extractor, self.seed = extractor, seed
        self.features = extractor(held_out)
        if len(held_out) > K_NEIGHBOURS:
            self.statistics = gaussian_statistics(self.features)
            self.radii = neighbour_radii(self.features, K_NEIGHBOURS)

    def measure(self, items: np.ndarray) -> dict[str, Measurement]:
        """The columns of this extractor; 'not defined' for sets of three items or fewer, or items not finite."""
        key, real = self.extractor.key, self.features
        if min(len(items), len(real)) <= K_NEIGHBOURS or not np.isfinite(items).all():
            return {metric.key: Measurement(None, n=len(items)) for metric in _distance_metrics(self.extractor, "")}
        generated = self.extractor(items)
        fd = frechet_distance(gaussian_statistics(generated), self.statistics)
        fd_error = bootstrap_error(_frechet, generated, real, n_resamples=N_RESAMPLES, seed=self.seed)
        kid, kid_error = kernel_distance(generated, real)
        found = {
            f"fd_{key}": Measurement(fd, max(0.0, fd - Z_95 * fd_error), fd + Z_95 * fd_error, len(generated)),
            f"kid_{key}": Measurement(kid, kid - Z_95 * kid_error, kid + Z_95 * kid_error, len(generated)),
        }
        if self.extractor.has_neighbourhoods:
            precision, recall = precision_recall(real, generated, K_NEIGHBOURS, real_radii=self.radii)
            found[f"precision_{key}"] = Measurement(
                precision, *wilson_interval(precision, len(generated)), len(generated)
            )
            found[f"recall_{key}"] = Measurement(recall, *wilson_interval(recall, len(real)), len(real))
        return found


class _SharpnessComparison:
    """Sharpness beside that of one held-out set, whose features are computed once."""

    def __init__(self, space: ImageSpace, held_out: np.ndarray, seed: int) -> None:
        self.space, self.seed = space, seed
        self.energies, self.powers = gradient_energy(held_out, space), radial_power(held_out, space)

    def measure(self, items: np.ndarray) -> dict[str, Measurement]:
        """Both columns; 'not defined' for sets of three items or fewer, as all distances are."""
        n, space = len(items), self.space
        if min(n, len(self.energies)) <= K_NEIGHBOURS:
            return {metric.key: Measurement(None, n=n) for metric in _sharpness_metrics("")}

        def distance(x: np.ndarray, y: np.ndarray) -> float:
            return spectral_distance(spectrum(x, space), spectrum(y, space))

        def ratio(x: np.ndarray, y: np.ndarray) -> float:
            return relative_sharpness(x, y, space)

        def measured(statistic: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> Measurement:
            value = statistic(x, y)
            half = Z_95 * bootstrap_error(statistic, x, y, n_resamples=N_RESAMPLES, seed=self.seed)
            return Measurement(value, max(0.0, value - half), value + half, n)

        return {
            "spectral_distance": measured(distance, radial_power(items, space), self.powers),
            "sharpness": measured(ratio, gradient_energy(items, space), self.energies),
        }


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(gaussian_statistics(x), gaussian_statistics(y))


def _same_shape(a: Space, b: Space) -> bool:
    """Whether items of one space can be scored by a model of the other (points: whatever their centre)."""
    if isinstance(a, ImageSpace) and isinstance(b, ImageSpace):
        return (a.shape, a.levels, a.palette) == (b.shape, b.levels, b.palette)
    return type(a) is type(b) and a.shape == b.shape


def _default_extractors(
    dataset: Dataset, seed: int, device: torch.device | str, tell: Progress
) -> tuple[FeatureExtractor, ...]:
    if isinstance(dataset.space, PointSpace):
        return (Coordinates(dataset.space),)
    random = RandomConvFeatures(dataset.space, device=device)  # seed 0 always: a yardstick must not change
    if dataset.n_classes < 2:
        return (random,)
    tell("training the classifier for features")
    return (random, ClassifierFeatures.train(dataset, seed=seed, device=device))


def _likelihoods(
    name: str, model: GenerativeModel, held_out: Split, n_importance: int, seed: int, notes: list[str], tell: Progress
) -> dict[str, Measurement]:
    """The tightest value in the likelihood columns, and the ELBO beside it where that is not the tightest."""
    tell(f"{name}: likelihood")
    likelihood = evaluate_likelihood(model, held_out, n_importance=n_importance, seed=seed)
    if likelihood is None:
        return {key: Measurement(None, n=len(held_out)) for key in _likelihood_keys(model.space)}
    found = summarise(likelihood, model.space)
    trouble = describe_non_finite(likelihood)
    if trouble is not None:
        notes.append(f"{name}: of the held-out log-likelihoods, {trouble}, and so is their mean.")
    if isinstance(model, ApproximateDensity) and n_importance > 0:
        elbo = evaluate_likelihood(model, held_out, seed=seed)
        assert elbo is not None
        unit = _likelihood_keys(model.space)[0]
        found[unit.replace("nll", "negative_elbo")] = summarise(elbo, model.space)[unit]
    return found


def _latents(
    model: ApproximateDensity, held_out: Split, measurements: Mapping[str, Measurement], seed: int
) -> list[str]:
    """What is to be known of a bound: how much the importance weights tighten it, and what the latents carry."""
    nll, *_ = _likelihood_keys(model.space)
    bound, elbo = (measurements.get(key) for key in (nll, nll.replace("nll", "negative_elbo")))
    lines = []
    if bound is not None and elbo is not None and bound.value is not None and elbo.value is not None:
        gap = elbo.value - bound.value
        lines.append(f"the ELBO is {gap:.2f} nats looser than the importance-weighted bound.")
    if model.has_normal_prior and len(held_out) > 1:
        lines += describe(latent_report(model, held_out, seed=seed))
    return lines


def _likelihood_keys(space: Space) -> tuple[str, ...]:
    return ("nll_nats_per_image", "bits_per_dim") if isinstance(space, ImageSpace) else ("nll_nats_per_point",)


@torch.no_grad()
def _draw(
    name: str, model: GenerativeModel, labels: np.ndarray | None, n: int, seed: int, tell: Progress
) -> tuple[np.ndarray, Measurement]:
    """n draws in batches, and the median speed of a full batch; fast models draw the first batch again to time it."""
    conditions = None
    if model.n_classes > 0 and labels is not None:
        # In random order: splits of class folders are sorted by class, and the first draws are what is shown.
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))[:n]
        conditions = torch.tensor(labels[order], device=model.device)

    def batch(start: int, generator: Generator) -> tuple[np.ndarray, float]:
        size = min(SAMPLE_BATCH, n - start)
        chosen = None if conditions is None else conditions[start : start + size]
        began = time.perf_counter()
        drawn = model.sample(size, labels=chosen, generator=generator).cpu().numpy()  # .cpu() waits for the device
        return drawn, time.perf_counter() - began

    generator = Generator(model.device).manual_seed(seed)
    parts, seconds = [], []
    for start in range(0, n, SAMPLE_BATCH):
        tell(f"{name}: {start} of {n} samples drawn")
        drawn, took = batch(start, generator)
        parts.append(drawn)
        if len(drawn) == min(SAMPLE_BATCH, n):
            seconds.append(took)
    while sum(seconds) < 0.5 and len(seconds) < 20:
        seconds.append(batch(0, generator)[1])
    rate = min(SAMPLE_BATCH, n) / float(np.median(seconds))
    return np.concatenate(parts), Measurement(rate, n=min(SAMPLE_BATCH, n))


@torch.no_grad()
def _reconstruct(model: LatentModel, held_out: Split) -> tuple[np.ndarray, np.ndarray]:
    """Items spread evenly over the split (which may be sorted by class), and the decoded means of their posteriors."""
    index = np.linspace(0, len(held_out) - 1, min(N_SHOWN, len(held_out))).round().astype(np.int64)
    x, labels = read_batch(model, held_out, index)
    return x.cpu().numpy(), model.decode(model.encode(x, labels), labels).cpu().numpy()


def _noise(dataset: Dataset, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform levels, or points uniform in the bounding box of the training data."""
    space = dataset.space
    if isinstance(space, ImageSpace):
        return rng.integers(0, space.levels, size=(n, *space.shape), dtype=level_dtype(space.levels))
    points = dataset.train.read()[0]
    return rng.uniform(points.min(axis=0), points.max(axis=0), size=(n, space.dim)).astype(np.float32)


def _noise_likelihood(space: Space, n: int) -> dict[str, Measurement]:
    """What uniform levels cost: any model of images should do better."""
    if not isinstance(space, ImageSpace):
        return {}
    nats = space.n_dims * math.log(space.levels)
    values = {"nll_nats_per_image": nats, "bits_per_dim": space.bits_per_dim(nats)}
    return {key: Measurement(value, n=n, kind="exact", measure="discrete") for key, value in values.items()}


def _metrics(
    space: Space,
    models: Mapping[str, GenerativeModel],
    extractors: Sequence[FeatureExtractor],
    n_importance: int,
    split: str,
) -> tuple[Metric, ...]:
    """The columns that this evaluation has."""
    images = isinstance(space, ImageSpace)
    item = "image" if images else "point"
    likelihoods = any(isinstance(model, TractableDensity | ApproximateDensity) for model in models.values())
    approximate = any(isinstance(model, ApproximateDensity) for model in models.values())
    metrics = []
    if likelihoods or images:
        bound = (
            f"the importance-weighted bound with {n_importance} draws (Burda et al. 2016)"
            if n_importance
            else "the ELBO with one draw (Kingma & Welling 2014)"
        )
        protocol = (
            f"Mean of -log p(x) over the whole {split} split, ± 1.96 standard errors over items: exact without a sign, "
            "'<=' where only a lower bound of log p is known"
            + (f"; approximate densities: {bound}" if approximate else "")
            + f". {'Probability of the integer levels' if images else 'Density in data units'}."
        )
        metrics.append(Metric(f"nll_nats_per_{item}", "NLL", f"nats/{item}", "lower", protocol))
        if images:
            protocol = f"NLL / ({space.n_dims} sub-pixels × ln 2). " + protocol
            metrics.append(Metric("bits_per_dim", "Bits per dimension", "bits/dim", "lower", protocol))
    if approximate and n_importance > 0:
        protocol = (
            f"Mean of -ELBO over the whole {split} split, one draw of z per item, ± 1.96 standard errors over items "
            "(Kingma & Welling 2014). Looser than the NLL column's bound; the gap shows how far the encoder is from "
            "the true posterior."
        )
        metrics.append(Metric(f"negative_elbo_nats_per_{item}", "-ELBO", f"nats/{item}", "lower", protocol))
    for extractor in extractors:
        metrics += _distance_metrics(extractor, split)
    if has_sharpness(space):
        metrics += _sharpness_metrics(split)
    protocol = (
        f"Median speed of drawing one batch of up to {SAMPLE_BATCH} (n in the cell), on the device the model was on, "
        "including the copy to main memory."
    )
    metrics.append(Metric("samples_per_second", "Speed", f"{item}s/s", "higher", protocol))
    return tuple(metrics)


def _distance_metrics(extractor: FeatureExtractor, split: str) -> list[Metric]:
    key, title = extractor.key, f"({extractor.key} features)" if extractor.key != "coordinates" else "(coordinates)"
    sets = f"n samples against the whole {split} split, on {extractor.description}."
    metrics = [
        Metric(
            f"fd_{key}",
            f"FD {title}",
            "",
            "lower",
            f"Squared Fréchet distance between Gaussians fitted to features (Heusel et al. 2017): {sets} Interval: "
            f"± 1.96 standard deviations over {N_RESAMPLES} bootstrap resamples of both sets. Biased upwards at "
            "small n: compare with the reference row.",
        ),
        Metric(
            f"kid_{key}",
            f"KID {title}",
            "",
            "lower",
            f"Unbiased squared MMD with kernel (x·y/D + 1)^3 over all pairs (Bińkowski et al. 2018): {sets} "
            "Interval: ± 1.96 jackknife standard errors, on the wide side near 0.",
        ),
    ]
    if not extractor.has_neighbourhoods:
        return metrics
    return [
        *metrics,
        Metric(
            f"precision_{key}",
            f"Precision {title}",
            "",
            "higher",
            f"Share of samples within the held-out items' {K_NEIGHBOURS}-nearest-neighbour balls (Kynkäänniemi et al. "
            f"2019): {sets} Interval: Wilson 95 % over samples, with the balls as they are. Where noise scores well "
            "too, the features are blind to it.",
        ),
        Metric(
            f"recall_{key}",
            f"Recall {title}",
            "",
            "higher",
            f"Share of held-out items within the samples' {K_NEIGHBOURS}-nearest-neighbour balls (Kynkäänniemi et al. "
            f"2019): {sets} Interval: Wilson 95 % over held-out items, with the balls as they are. Compare equal "
            "n only; where noise scores well too, the features are blind to it.",
        ),
    ]


def _sharpness_metrics(split: str) -> list[Metric]:
    sets = f"n samples against the whole {split} split"
    interval = f"Interval: ± 1.96 standard deviations over {N_RESAMPLES} bootstrap resamples of both sets."
    return [
        Metric(
            "spectral_distance",
            "Spectral distance",
            "decades",
            "lower",
            "Root mean square difference of log10 power spectra over all spatial frequencies (radial means under a "
            f"Hann window, after Durall et al. 2020): {sets}. 0 is the same sharpness at every scale; blur and noise "
            f"both raise it, and so does wrong contrast. {interval} Biased upwards at small n: compare with the "
            "reference row.",
        ),
        Metric(
            "sharpness",
            "Sharpness",
            "held-out = 1",
            "neither",
            "Mean gradient energy (squared differences of neighbouring pixels, Subbarao et al. 1993) as a multiple of "
            f"that of held-out images: {sets}. Best at 1: below, samples are blurred or pale; above, noisy or harsh. "
            f"Blur and noise can balance; the spectral distance then shows both. {interval}",
        ),
    ]
