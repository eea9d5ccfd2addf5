"""Does a model only remember? How near its samples are to the training set, beside held-out items, nobody's copies.

Pure functions on features, float64, (N, D), and `TrainingNeighbours`, which computes once what does not depend on the
samples. Distances are Euclidean.

References:
    A Non-Parametric Test to Detect Data-Copying in Generative Models, Meehan, Chaudhuri & Dasgupta 2020,
    arXiv:2004.05675.
    How Faithful is your Synthetic Data?, Alaa et al. 2022, arXiv:2102.08921, section 4.
    Do GANs actually learn the distribution?, Arora & Zhang 2017, arXiv:1706.08224.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from triptych.evaluation.two_sample import squared_distance_blocks, wilson_interval

LEAST_ITEMS = 20
"""Samples, and held-out items, below which nothing is said."""
LEAST_IN_CELL = 10
"""Samples, and held-out items, that a cell needs to take part in C_T."""
MOST_CELLS = 20
LEVEL = 0.01
"""Of the verdict: one new set in a hundred is accused."""
N_RESAMPLES = 200


@dataclass(frozen=True)
class DataCopying:
    """The test of Meehan et al."""

    c_t: float
    """Below 0: samples are nearer to the training set than held-out items are; above: farther."""
    error: float
    """Standard deviation of c_t if samples and held-out items are alike."""
    p_value: float
    """Chance of so low a c_t if they are: small where samples copy."""
    n_cells: int
    """Cells of the training set that took part."""


@dataclass(frozen=True)
class Support:
    """How many different items samples seem to be drawn from."""

    n_items: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end; infinite for a bound."""
    n_pairs: int
    """Near-duplicates among the samples."""
    is_bound: bool
    """Whether no more can be said than 'at least', since the pairs are no more than chance allows."""


@dataclass(frozen=True)
class Memory:
    """What one set of samples owes to the training set."""

    n: int
    """Samples."""
    distance_ratio: tuple[float, float, float] | None
    """Median distance of samples to their nearest training item over that of held-out items, and its 95 % interval: 1
    for new items, 0 for copies. None where the held-out items lie on training items themselves."""
    copying: DataCopying | None
    """None where no cell has items enough."""
    authenticity: tuple[float, float, float]
    """Share of samples farther from their nearest training item than that one is from its own, with Wilson's interval.
    Of new items of the same distribution about a half: measured, 0.50 on Gaussians in 2-D and 0.52 on digits."""
    support: Support
    near: float
    """Share of samples that are as near to a training item as the nearest hundredth of held-out items."""
    near_p_value: float
    """Chance of so many if samples and held-out items are alike."""

    def describe(self, name: str) -> str:
        """Does it only remember? A sentence or two, with the evidence."""
        evidence = f"{self.near:.1%} of its samples are as near to a training item as the nearest 1 % of held-out items"
        if self.distance_ratio is not None:
            evidence += f"; the median distance is {self.distance_ratio[0]:.2f} times theirs"
        if self.copying is not None:
            evidence += f", C_T = {self.copying.c_t:+.1f}"
        nearer = self.copying is not None and self.copying.p_value < LEVEL / 2
        if self.near_p_value < LEVEL / 2:
            answer = "it only remembers" if self.near > 0.5 else "some of its samples are copies"
            return f"{name}: {answer}: {evidence}."
        if nearer:
            return (
                f"{name}: no copies, but its samples keep nearer to the training set than new items would, as those of"
                f" a model do that leaves out what is rare: {evidence}."
            )
        return f"{name}: no sign of remembering: {evidence}."


def nearest(x: np.ndarray, y: np.ndarray, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Position in y of the item nearest to each of x, int64, (N,), and the distance, (N,); exactly 0 for copies.

    Arguments:
        x, y: Features, (N, D) and (M, D).
        same: x and y are one set: an item is not its own neighbour.
    """
    positions = np.empty(len(x), dtype=np.int64)
    for rows, distances in squared_distance_blocks(x, y):
        if same:
            distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        positions[rows] = distances.argmin(axis=1)
    # Anew, since the difference of squares leaves a rounding error in the place of 0.
    return positions, np.linalg.norm(x - y[positions], axis=1)


def distance_ratio(samples: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> tuple[float, float, float] | None:
    """Median of the samples' distances over that of the held-out items', with its 95 % bootstrap interval.

    Arguments:
        samples, held_out: Distances to the nearest training item, (N,) and (M,).
    Returns:
        None if the held-out median is 0.
    """
    median = float(np.median(held_out))
    if median == 0:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    ratios = []
    for _ in range(N_RESAMPLES):
        below = float(np.median(held_out[rng.integers(len(held_out), size=len(held_out))]))
        above = float(np.median(samples[rng.integers(len(samples), size=len(samples))]))
        ratios.append(above / below if below else np.inf)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(np.median(samples)) / median
    return value, min(value, float(low)), max(value, float(high))


def data_copying(
    samples: np.ndarray, held_out: np.ndarray, sample_cells: np.ndarray, held_out_cells: np.ndarray
) -> DataCopying | None:
    """C_T: in each cell of the training set the Mann-Whitney z of samples' distances against held-out items',
    averaged with the shares of held-out items as weights.

    Arguments:
        samples, held_out: Distances to the nearest training item, (N,) and (M,).
        sample_cells, held_out_cells: The cell of each, int64.
    Returns:
        None if no cell has ten of both.
    Source:
        Meehan et al. 2020, section 3, with its convention that copying is negative. The p-value takes each z for
        standard normal: so distributed are they if samples and held-out items are alike.
    """
    weights, scores = [], []
    for cell in np.unique(held_out_cells):
        ours, theirs = samples[sample_cells == cell], held_out[held_out_cells == cell]
        if min(len(ours), len(theirs)) < LEAST_IN_CELL:
            continue
        weights.append(len(theirs) / len(held_out))
        scores.append(_mann_whitney_z(ours, theirs))
    if not weights:
        return None
    w = np.array(weights)
    c_t, error = float(w @ np.array(scores) / w.sum()), float(np.linalg.norm(w) / w.sum())
    return DataCopying(c_t, error, float(stats.norm.cdf(c_t / error)), len(w))


def _mann_whitney_z(x: np.ndarray, y: np.ndarray) -> float:
    """How much larger the values of x are than those of y, in standard deviations under equality; ties count half."""
    n, m = len(x), len(y)
    pooled = np.concatenate([x, y])
    u = float(stats.rankdata(pooled)[:n].sum()) - n * (n + 1) / 2
    _, ties = np.unique(pooled, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3.0 - ties).sum()) / (total * (total - 1)))
    return 0.0 if variance <= 0 else (u - n * m / 2) / math.sqrt(variance)


def support_size(samples: np.ndarray, held_out: np.ndarray) -> Support:
    """The birthday paradox: of draws from N equally likely items, n(n-1)/2N pairs are the same.

    A pair counts as the same if it is as near as the nearest pair among equally many held-out items. Where these have
    exact duplicates, the nearest are at distance 0, and all of them count against the samples' own.

    Arguments:
        samples, held_out: Features, (N, D) and (M, D); the first min(N, M) of each are taken.
    Source:
        Arora & Zhang 2017, section 3. Differs: a number decides what is a duplicate, not a person; the number of pairs
        has an exact Poisson interval (Garwood 1936).
    """
    n = min(len(samples), len(held_out))
    samples, held_out = samples[:n], held_out[:n]
    threshold = float(nearest(held_out, held_out, same=True)[1].min()) ** 2
    chance, n_pairs = (_pairs_within(z, threshold) for z in (held_out, samples))
    every = n * (n - 1) / 2
    low, high = _poisson_interval(n_pairs)
    if low <= _poisson_interval(chance)[1]:
        least = every / float(stats.chi2.ppf(0.95, 2 * n_pairs + 2) / 2)
        return Support(least, least, math.inf, n_pairs, is_bound=True)
    return Support(every / n_pairs, every / high, every / low, n_pairs, is_bound=False)


def _pairs_within(x: np.ndarray, threshold: float) -> int:
    """Pairs of different items at a squared distance of at most `threshold`, but for rounding."""
    slack = 1e-12 * float((x**2).sum(axis=1).max())
    found = sum(int((distances <= threshold + slack).sum()) for _, distances in squared_distance_blocks(x, x))
    return (found - len(x)) // 2


def _poisson_interval(count: int) -> tuple[float, float]:
    """95 % interval of the mean of a Poisson count."""
    low = 0.0 if count == 0 else float(stats.chi2.ppf(0.025, 2 * count) / 2)
    return low, float(stats.chi2.ppf(0.975, 2 * count + 2) / 2)


class TrainingNeighbours:
    """The training set beside held-out items, once for many sets of samples.

    Arguments:
        train: Features of training items, (T, D).
        held_out: Features of held-out items, (M, D).
        seed: Of cells and bootstrap.
    """

    def __init__(self, train: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> None:
        from sklearn.cluster import KMeans

        self.train, self.held_out, self.seed = train, held_out, seed
        self.distances = nearest(held_out, train)[1]
        self._own = np.full(len(train), np.nan)  # of a training item to its nearest other one, when it is needed
        n_cells = max(1, min(MOST_CELLS, len(held_out) // 50, len(np.unique(train, axis=0))))
        few = train[np.random.Generator(np.random.PCG64(seed)).permutation(len(train))[:10_000]]
        self._centres = KMeans(n_cells, n_init=1, random_state=seed).fit(few).cluster_centers_
        self._cells = nearest(held_out, self._centres)[0]

    def measure(self, samples: np.ndarray) -> Memory | None:
        """Memory of samples with features (N, D); None for fewer than twenty of them, of held-out or training items."""
        if min(len(samples), len(self.held_out), len(self.train)) < LEAST_ITEMS:
            return None
        positions, distances = nearest(samples, self.train)
        n, m = len(distances), len(self.distances)
        authentic = float((distances > self._own_distances(positions)).mean())
        # As near as the k nearest held-out items: of alike ones, the number is beta-binomial.
        k = max(1, m // 100)
        limit = np.sort(self.distances)[k - 1]
        n_near = int((distances <= limit).sum()) if limit > 0 else int((distances < limit).sum())
        return Memory(
            n,
            distance_ratio(distances, self.distances, seed=self.seed),
            data_copying(distances, self.distances, nearest(samples, self._centres)[0], self._cells),
            (authentic, *wilson_interval(authentic, n)),
            support_size(samples, self.held_out),
            n_near / n,
            float(stats.betabinom.sf(n_near - 1, n, k, m - k + 1)),
        )

    def _own_distances(self, positions: np.ndarray) -> np.ndarray:
        """Distance of training items to their nearest other one."""
        wanted = np.unique(positions)
        missing = wanted[np.isnan(self._own[wanted])]
        for some in np.array_split(missing, max(1, len(missing) // 1024)):
            best = np.full(len(some), np.inf)
            for rows, distances in squared_distance_blocks(self.train[some], self.train):
                distances[np.arange(len(distances)), some[rows]] = np.inf
                which = distances.argmin(axis=1)
                best[rows] = np.linalg.norm(self.train[some[rows]] - self.train[which], axis=1)
            self._own[some] = best
        found: np.ndarray = self._own[positions]
        return found
