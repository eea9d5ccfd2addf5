"""All that is measured of a set of samples, whoever made them, beside a held-out split and the training set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triptych import ranks
from triptych.data.dataset import Dataset, level_dtype
from triptych.evaluation.columns import (
    FEW_ITEMS,
    K_DENSITY,
    K_SUPPORT,
    N_RESAMPLES,
    discriminator_metrics,
    distance_metrics,
    memory_metrics,
    n_resamples,
    sharpness_metrics,
)
from triptych.evaluation.discriminator import LEAST_ITEMS, classifier_two_sample_test
from triptych.evaluation.features import ClassifierFeatures, FeatureExtractor
from triptych.evaluation.memorisation import Memory, TrainingNeighbours
from triptych.evaluation.neighbours import FeatureSearch, Neighbours, show_neighbours
from triptych.evaluation.results import Measurement, Metric
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
    density_coverage,
    extrapolated_frechet,
    frechet_distance,
    gaussian_statistics,
    kernel_distance,
    neighbour_radii,
    supports,
    wilson_interval,
)
from triptych.spaces import ImageSpace, Space

Progress = Callable[[str], None]

N_SHOWN = 16
"""Samples with their neighbours, for people to look at."""
BLUR = 1.0
"""Standard deviation of the blur of a reference row, in pixels; of points, a tenth of this in units of their scale."""
TRAIN, BLURRED, COPIES, NOISE = "train vs held-out", "blurred", "copies of the training set", "noise"


@dataclass(frozen=True)
class SampleResult:
    """What one set of samples comes to."""

    measurements: dict[str, Measurement]
    """By Metric.key."""
    memory: Memory | None = None
    """Whether they are copies of training items; None where nothing can be said."""
    neighbours: Neighbours | None = None
    """Some samples beside their nearest training items."""
    neighbours_in_features: Neighbours | None = None
    """The same by distances in the first extractor's features, for images."""
    recalled: np.ndarray | None = None
    """Which held-out items lie in the samples' support, bool, (N,), in the first extractor's features."""
    class_counts: np.ndarray | None = None
    """How many samples the classifier sees in each class, (n_classes,)."""


class SampleMeasures:
    """Measures sets of samples beside one held-out split, whose own statistics are computed once.

    Arguments:
        dataset: Data; the held-out items of `split` are what samples are compared with, the training split is what
            they may be copies of.
        extractors: Features of the two-sample distances. The first one's serve for memorisation, too.
        discriminator: Whether to train a discriminator for each set, which takes most of the time.
        seed: Of all randomness, the same for every set.
        device: Where discriminators train.
        tell: Told what is being done, a short line each time.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        extractors: Sequence[FeatureExtractor],
        *,
        discriminator: bool,
        seed: int,
        device: torch.device | str,
        tell: Progress,
    ) -> None:
        self.dataset, self.space, self.split = dataset, dataset.space, split
        self.extractors, self.discriminator = extractors, discriminator
        self.seed, self.device, self.tell = seed, device, tell
        self.held_out = dataset.splits[split].read()[0]
        self.few = len(self.held_out) < FEW_ITEMS
        self._comparisons = [_FeatureComparison(extractor, self.held_out, seed, self.few) for extractor in extractors]
        self._sharpness = _SharpnessComparison(self.space, self.held_out, seed) if has_sharpness(self.space) else None
        self._classifier = next((e for e in extractors if isinstance(e, ClassifierFeatures)), None)
        self._search: FeatureSearch | None = None
        self._memory: TrainingNeighbours | None = None
        if extractors:
            tell(f"train split: {extractors[0].key} features")
            self._search = FeatureSearch(extractors[0], dataset.train, seed=seed)
            self._memory = TrainingNeighbours(self._search.features, self._comparisons[0].features, seed=seed)

    def metrics(self) -> list[Metric]:
        """The columns of every set."""
        found = [m for e in self.extractors for m in distance_metrics(e, self.split, few=self.few)]
        if self._sharpness is not None:
            found += sharpness_metrics(self.split)
        if self.discriminator:
            found += discriminator_metrics(self.split)
        if self.extractors:
            found += memory_metrics(self.extractors[0].key, self.split)
        return found

    def notes(self) -> list[str]:
        """What a reader must know of these numbers, a sentence each."""
        notes = []
        if self._classifier is not None:
            notes.append(
                f"The classifier has learnt the train split, so in its features '{TRAIN}' compares images that it knows"
                " with images that it does not: a perfect model could get a little less."
            )
        n = len(self.held_out)
        if n <= K_DENSITY:
            return [*notes, f"{n} held-out items are too few to compare samples with: it takes {K_DENSITY + 1}."]
        if self.few:
            notes.append(
                f"Two-sample distances rest on {n} held-out items: below some {FEW_ITEMS:,} they are noisy, and FD and "
                f"recall are biased. Read KID and FD∞, which are not, and compare with the row '{TRAIN}', which shares "
                "the bias."
            )
        for extractor in self.extractors:
            if n <= 2 * extractor.n_features:
                notes.append(
                    f"{n} items are too few for FD in {extractor.key} features, of which there are"
                    f" {extractor.n_features}: it needs some {2 * extractor.n_features:,} at least. Read KID."
                )
        if self._search is not None and len(self._search) < len(self.dataset.train):
            notes.append(
                f"Copies were looked for among {len(self._search):,} of {len(self.dataset.train):,} train items."
            )
        return notes

    def measure(self, name: str, items: np.ndarray, *, remembered: np.ndarray | None = None) -> SampleResult:
        """All columns of one set of samples.

        Arguments:
            name: What it is called where progress is told.
            items: (n, *space.shape). Not finite, no distance is defined.
            remembered: Where memorisation is measured on other items than the distances: these.
        """
        found: dict[str, Measurement] = {}
        features: list[np.ndarray | None] = []
        recalled = None
        finite = bool(np.isfinite(items).all())
        for comparison in self._comparisons:
            self.tell(f"{name}: distances in {comparison.extractor.key} features")
            features.append(comparison.extractor(items) if finite else None)
            measured, inside = comparison.measure(features[-1], len(items))
            found |= measured
            recalled = inside if recalled is None else recalled
        if self._sharpness is not None:
            self.tell(f"{name}: sharpness")
            found |= self._sharpness.measure(items)
        if self.discriminator:
            self.tell(f"{name}: training a discriminator")
            found |= self._discriminate(items if finite else None)
        memory = near = in_features = counts = None
        if self._memory is not None:
            self.tell(f"{name}: copies of training items")
            asked = features[0] if remembered is None else self.extractors[0](remembered)
            memory = None if asked is None else self._memory.measure(asked)
            found |= _memory_measurements(memory, len(items if remembered is None else remembered))
        if finite:
            self.tell(f"{name}: nearest training items")
            near = show_neighbours(items[:N_SHOWN], self.dataset.train, self.space)
            if self._search is not None and isinstance(self.space, ImageSpace):
                in_features = self._search.show(items[:N_SHOWN])
            if self._classifier is not None:
                counts = np.bincount(self._classifier.classify(items), minlength=self.dataset.n_classes)
        return SampleResult(found, memory, near, in_features, recalled, counts)

    def references(self, n: int) -> dict[str, SampleResult]:
        """The sets that give the numbers meaning, of n items each.

        Training items, which a perfect model would equal (its memory is that of valid items, which are new); the same
        blurred; copies, which are drawn from the training set with replacement; noise.
        """
        rng = np.random.Generator(np.random.PCG64(self.seed))
        train = self.dataset.train
        chosen = train.read(np.sort(rng.permutation(len(train))[:n]))[0]
        fresh = self.dataset.splits["test" if self.split == "valid" else "valid"].read()[0]
        if n < len(fresh):  # More items would show a larger support.
            few = np.random.Generator(np.random.PCG64([self.seed, 1]))
            fresh = fresh[np.sort(few.permutation(len(fresh))[:n])]
        sets = {TRAIN: chosen, COPIES: train.read(np.sort(rng.integers(len(train), size=n)))[0]}
        if (blurred := _blurred(chosen, self.space, rng)) is not None:
            sets[BLURRED] = blurred
        sets[NOISE] = _noise(self.dataset, n, rng)
        names = [name for name in (TRAIN, BLURRED, COPIES, NOISE) if name in sets]

        def measured(place: int) -> SampleResult:
            name = names[place]
            return self.measure(name, sets[name], remembered=fresh if name == TRAIN else None)

        return dict(zip(names, ranks.in_parts(len(names), measured), strict=True))

    def show_held_out(self) -> SampleResult:
        """Held-out items, spread evenly over the split, beside their nearest training items."""
        chosen = self.held_out[
            np.linspace(0, len(self.held_out) - 1, min(N_SHOWN, len(self.held_out))).astype(np.int64)
        ]
        near = show_neighbours(chosen, self.dataset.train, self.space)
        images = self._search is not None and isinstance(self.space, ImageSpace)
        return SampleResult({}, None, near, self._search.show(chosen) if images and self._search else None)

    def _discriminate(self, items: np.ndarray | None) -> dict[str, Measurement]:
        n = 0 if items is None else len(items)
        if items is None or min(n, len(self.held_out)) < LEAST_ITEMS:
            return {metric.key: Measurement(None, n=n) for metric in discriminator_metrics("")}
        test = classifier_two_sample_test(self.held_out, items, self.space, seed=self.seed, device=self.device)
        half = (test.null_high - test.null_low) / 2
        jsd = max(0.0, test.jsd_bound)  # A divergence is not negative, whatever a discriminator comes to.
        error = test.jsd_bound - test.jsd_low
        return {
            "c2st_accuracy": Measurement(
                test.accuracy, max(0.0, test.accuracy - half), min(1.0, test.accuracy + half), test.n
            ),
            "jsd_nats": Measurement(jsd, max(0.0, jsd - error), min(math.log(2), jsd + error), test.n, "at least"),
        }


def _memory_measurements(memory: Memory | None, n: int) -> dict[str, Measurement]:
    """The columns of memorisation; 'not defined' where nothing can be said."""
    if memory is None:
        return {metric.key: Measurement(None, n=n) for metric in memory_metrics("", "")}
    ratio, copying, support = memory.distance_ratio, memory.copying, memory.support
    c_t = Measurement(None, n=n) if copying is None else _around(copying.c_t, copying.error, n)
    high = None if support.is_bound else support.high
    return {
        "distance_ratio": Measurement(None, n=n) if ratio is None else Measurement(*ratio, n),
        "copying_z": c_t,
        "authenticity": Measurement(*memory.authenticity, n),
        "support_size": Measurement(
            support.n_items, None if high is None else support.low, high, n, "at least" if support.is_bound else None
        ),
    }


class _FeatureComparison:
    """Two-sample distances to one held-out set in one extractor's features, whose statistics are computed once."""

    def __init__(self, extractor: FeatureExtractor, held_out: np.ndarray, seed: int, few: bool) -> None:
        self.extractor, self.seed, self.few = extractor, seed, few
        self.features = extractor(held_out)
        self.is_large_enough = len(held_out) > K_DENSITY
        if self.is_large_enough:
            self.statistics = gaussian_statistics(self.features)
            self.support_radii = neighbour_radii(self.features, K_SUPPORT)
            self.density_radii = neighbour_radii(self.features, K_DENSITY)

    def measure(self, generated: np.ndarray | None, n: int) -> tuple[dict[str, Measurement], np.ndarray | None]:
        """The columns of this extractor, and which held-out items the samples reach.

        'Not defined' for sets of five items or fewer, and where there are no features.
        """
        key, real = self.extractor.key, self.features
        if generated is None or not self.is_large_enough or n <= K_DENSITY:
            return {metric.key: Measurement(None, n=n) for metric in distance_metrics(self.extractor, "")}, None
        fd = frechet_distance(gaussian_statistics(generated), self.statistics)
        resamples = n_resamples(self.extractor)
        fd_error = bootstrap_error(_frechet, generated, real, n_resamples=resamples, seed=self.seed)
        n_splits = 1 if resamples < N_RESAMPLES else 4
        at_infinity = extrapolated_frechet(generated, real, n_splits=n_splits, seed=self.seed)
        kid, kid_error = kernel_distance(generated, real)
        found = {
            f"fd_{key}": _around(fd, fd_error, n, least=0.0),
            f"fd_infinity_{key}": _around(at_infinity, fd_error, n),
            f"kid_{key}": _around(kid, kid_error, n),
        }
        if not self.extractor.has_neighbourhoods:
            return found, None
        in_real, recalled = supports(real, generated, K_SUPPORT, real_radii=self.support_radii)
        density, covered = density_coverage(real, generated, K_DENSITY, real_radii=self.density_radii)
        found |= {
            f"precision_{key}": share_of(in_real),
            f"recall_{key}": share_of(recalled),
            f"density_{key}": _around(float(density.mean()), float(density.std()) / n**0.5, n, least=0.0),
            f"coverage_{key}": share_of(covered),
        }
        return found, recalled


class _SharpnessComparison:
    """Sharpness beside that of one held-out set, whose features are computed once."""

    def __init__(self, space: ImageSpace, held_out: np.ndarray, seed: int) -> None:
        self.space, self.seed = space, seed
        self.energies, self.powers = gradient_energy(held_out, space), radial_power(held_out, space)

    def measure(self, items: np.ndarray) -> dict[str, Measurement]:
        """Both columns; 'not defined' for sets of five items or fewer, as all distances are."""
        n, space = len(items), self.space
        if min(n, len(self.energies)) <= K_DENSITY:
            return {metric.key: Measurement(None, n=n) for metric in sharpness_metrics("")}

        def distance(x: np.ndarray, y: np.ndarray) -> float:
            return spectral_distance(spectrum(x, space), spectrum(y, space))

        def ratio(x: np.ndarray, y: np.ndarray) -> float:
            return relative_sharpness(x, y, space)

        def measured(statistic: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> Measurement:
            error = bootstrap_error(statistic, x, y, n_resamples=N_RESAMPLES, seed=self.seed)
            return _around(statistic(x, y), error, n, least=0.0)

        return {
            "spectral_distance": measured(distance, radial_power(items, space), self.powers),
            "sharpness": measured(ratio, gradient_energy(items, space), self.energies),
        }


def _around(value: float, error: float, n: int, *, least: float = -np.inf) -> Measurement:
    """A value with its 95 % interval of 1.96 standard errors."""
    return Measurement(value, max(least, value - Z_95 * error), value + Z_95 * error, n)


def share_of(of: np.ndarray) -> Measurement:
    """The share of items that are True, with Wilson's interval."""
    share = float(of.mean())
    return Measurement(share, *wilson_interval(share, len(of)), len(of))


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(gaussian_statistics(x), gaussian_statistics(y))


def _noise(dataset: Dataset, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform levels, or points uniform in the bounding box of the training data."""
    space = dataset.space
    if isinstance(space, ImageSpace):
        return rng.integers(0, space.levels, size=(n, *space.shape), dtype=level_dtype(space.levels))
    points = dataset.train.read()[0]
    return rng.uniform(points.min(axis=0), points.max(axis=0), size=(n, space.dim)).astype(np.float32)


def _blurred(items: np.ndarray, space: Space, rng: np.random.Generator) -> np.ndarray | None:
    """Images under a Gaussian blur of one pixel; points with Gaussian noise of a tenth of their scale; None of a
    palette, whose symbols have no mean."""
    if not isinstance(space, ImageSpace):
        return (items + BLUR / 10 * space.scale * rng.normal(size=items.shape)).astype(np.float32)
    if space.palette is not None or space.levels == 2:
        return None
    from scipy import ndimage  # type: ignore[import-untyped]

    smooth = ndimage.gaussian_filter(items.astype(np.float32), (0, 0, BLUR, BLUR), mode="nearest")
    return smooth.round().clip(0, space.levels - 1).astype(items.dtype)
