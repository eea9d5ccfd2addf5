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

from triptych.errors import InputError
from triptych.evaluation.two_sample import squared_distance_blocks, wilson_interval

LEAST_ITEMS = 20
"""Samples, and held-out items, below which nothing is said."""
LEAST_IN_CELL = 10
"""Samples, and held-out items, that a cell needs to take part in C_T."""
MOST_CELLS = 20
LEVEL = 0.01
"""Of the verdict: one new set in a hundred is accused."""
N_RESAMPLES = 200
CLOSE = 2 / 3
"""A copy lies at most this far from its training item, in units of that one's distance to its nearest other one."""
FEW_COPIES = 0.05
"""Of the samples: up to so many close ones more than among held-out items are no copies. Some kinds of items lie closer
together than others, and a model that makes more of them is no copier: of MNIST's ones 2.6 % are close."""


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

    @property
    def z(self) -> float:
        """c_t in units of its error: standard normal if samples and held-out items are alike."""
        return self.c_t / self.error

    @property
    def p_value_farther(self) -> float:
        """Chance of so high a c_t if they are: small where samples lie farther off than new items, as an underfitted
        model's do."""
        return float(stats.norm.sf(self.z))


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
    n_train: int
    """Training items."""
    distance_ratio: tuple[float, float, float] | None
    """Median distance of samples to their nearest training item over that of held-out items, and its 95 % interval: 1
    for new items, 0 for copies. None where the held-out items lie on training items themselves."""
    copying: DataCopying | None
    """None where no cell has items enough."""
    authenticity: tuple[float, float, float]
    """Share of samples farther from their nearest training item than that one is from its own, with Wilson's interval.
    Of new items about a half, as measured: 0.39 on two moons, 0.58 on digits, 0.61 on MNIST."""
    authenticity_held_out: float
    """The same of the held-out items."""
    support: Support
    near: float
    """Share of samples that are as close to a training item as the closest hundredth of held-out items that are not
    training items themselves, or, where most samples are, as two thirds of that item's distance to its nearest other
    one. What is close is told in units of that distance, and is two thirds of it at most."""
    near_held_out: float
    """Share of held-out items that are so close."""
    near_p_value: float
    """Chance of so many samples if samples and held-out items are alike."""

    def describe(self, name: str) -> str:
        """Does it only remember? A sentence or two, with the evidence."""
        evidence = (
            f"{100 * self.near:.1f} % of its samples are as close to a training item as"
            f" {100 * self.near_held_out:.1f} % of held-out items are"
        )
        if self.distance_ratio is not None:
            ratio = self.distance_ratio[0]
            evidence += f"; the median distance is {f'{ratio:.2f}' if ratio < 1e4 else f'{ratio:.2g}'} times theirs"
        if self.copying is not None:
            evidence += f", C_T = {self.copying.c_t:+.1f}"
            if self.copying.p_value_farther < LEVEL / 2:
                evidence += " (farther from the training set than new items would be)"
        if not self.support.is_bound:
            evidence += f"; its samples are as alike as if drawn from some {self.support.n_items:,.0f} different items"
            if self.support.low <= self.n_train:
                evidence += f", and the training set has {self.n_train:,}"
        if self.distance_ratio is None:
            return (
                f"{name}: nothing can be said of remembering, since most held-out items are training items themselves;"
                " take out what the splits share."
            )
        nearer = self.copying is not None and self.copying.p_value < LEVEL / 2
        closer = self.near_p_value < LEVEL / 2
        copies = "hardly any copies" if closer else "no copies"
        if closer and self.near - self.near_held_out > FEW_COPIES:
            most = _are_most(self.near, self.near_held_out)
            answer = "it only remembers" if most else "some of its samples are copies"
        elif nearer:
            answer = (
                f"{copies}, but its samples keep nearer to the training set than new items would, as those of a model"
                " do that leaves out what is rare"
            )
        elif not self.support.is_bound:
            answer = f"{copies} of training items, but more of its samples are alike than of as many data"
        elif closer:
            answer = f"{copies}, though a little more of its samples are close to training items than chance allows"
        else:
            answer = "no sign of remembering"
        return f"{name}: {answer}: {evidence}."


def nearest(x: np.ndarray, y: np.ndarray, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Position in y of the item nearest to each of x, int64, (N,), and the distance, (N,); exactly 0 for copies.

    Arguments:
        x, y: Features, float64, (N, D) and (M, D).
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
    # No interpolation: where the held-out median is nearly 0, some ratios are infinite.
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
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


def near_copies(samples: np.ndarray, held_out: np.ndarray) -> tuple[float, float, float]:
    """How many samples are as close to a training item as the closest hundredth of held-out items, and at most `CLOSE`.

    Distances alone would take noisy copies in sparse places for new items, and items of dense places for copies. Held-
    out items that are training items themselves set no limit: next to them, copies with small changes would be new.
    Next to those that nearly are, they still might be: where most samples are within `CLOSE`, this is the limit.

    Arguments:
        samples, held_out: Distance to the nearest training item, over that one's to its nearest other one, (N,), (M,).
    Returns:
        The share of samples; that of held-out items; and the chance of so many samples if both are alike. Their number
        is beta-binomial where a held-out item sets the limit; elsewhere, and with ties, the test is Fisher's.
    """
    n, m = len(samples), len(held_out)
    new = np.sort(held_out[held_out > 0])
    k = max(1, len(new) // 100)
    limit = min(float(new[k - 1]), CLOSE) if len(new) else 0.0

    def shares(limit: float) -> tuple[float, float]:
        return float((samples <= limit).mean()), float((held_out <= limit).mean())

    if _are_most(*shares(CLOSE)) and not _are_most(*shares(limit)):
        limit = CLOSE
    near, theirs = int((samples <= limit).sum()), int((held_out <= limit).sum())
    is_order = limit < CLOSE and int((held_out == limit).sum()) == 1
    law = stats.betabinom(n, theirs, m - theirs + 1) if is_order else stats.hypergeom(n + m, near + theirs, n)
    return near / n, theirs / m, float(law.sf(near - 1))


def _are_most(near: float, near_held_out: float) -> bool:
    """Whether most samples are close. Where held-out items are close as well, what they are not counts."""
    return near > (1 + near_held_out) / 2


def _mann_whitney_z(x: np.ndarray, y: np.ndarray) -> float:
    """How much larger the values of x are than those of y, in standard deviations under equality; ties count half."""
    n, m = len(x), len(y)
    pooled = np.concatenate([x, y])
    u = float(stats.rankdata(pooled)[:n].sum()) - n * (n + 1) / 2
    _, ties = np.unique(pooled, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3.0 - ties).sum()) / (total * (total - 1)))
    return 0.0 if variance <= 0 else (u - n * m / 2) / math.sqrt(variance)


def authenticity(distances: np.ndarray, own: np.ndarray) -> tuple[float, float, float]:
    """Share of samples farther from their nearest training item than that one is from its own, with its 95 % interval.

    Of new items of the same distribution it is about a half, but not exactly (see `Memory`): compare with held-out
    items. Of copies it is 0.

    Arguments:
        distances: Of each sample to its nearest training item, (N,).
        own: Of that training item to its nearest other one, (N,).
    Source:
        Alaa et al. 2022, section 4.
    """
    share = float((distances > own).mean())
    return share, *wilson_interval(share, len(distances))


def support_size(samples: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> Support:
    """The birthday paradox: of draws from N equally likely items, n(n-1)/2N pairs are the same.

    A pair counts as the same if it is as near as the nearest pair among equally many held-out items that are not the
    same. Where these have exact duplicates, all of them count against the samples' own. It is an estimate
    if the samples have more such pairs than the held-out items: beyond both intervals, and by more than two and a half
    standard deviations.

    Arguments:
        samples, held_out: Features, (N, D) and (M, D); of the larger set min(N, M) take part.
        seed: Of that choice.
    Source:
        Arora & Zhang 2017, section 3. Differs: a number decides what is a duplicate, not a person; the number of pairs
        has an exact Poisson interval (Garwood 1936).
    """
    n = min(len(samples), len(held_out))
    # At random: a split sorted by class would show the pairs of its first classes.
    rng = np.random.Generator(np.random.PCG64(seed))
    samples, held_out = (z if len(z) == n else z[np.sort(rng.permutation(len(z))[:n])] for z in (samples, held_out))
    apart = nearest(held_out, held_out, same=True)[1]
    threshold = float(apart[apart > 0].min()) ** 2 if (apart > 0).any() else 0.0
    chance, chance_variance = _pairs_within(held_out, threshold)
    n_pairs, variance = _pairs_within(samples, threshold)
    every = n * (n - 1) / 2
    low, high = _poisson_interval(n_pairs)
    if low <= _poisson_interval(chance)[1] or n_pairs - chance <= 2.5 * math.sqrt(chance_variance + variance):
        least = every / float(stats.chi2.ppf(0.95, 2 * n_pairs + 2) / 2)
        return Support(least, least, math.inf, n_pairs, is_bound=True)
    return Support(every / n_pairs, every / high, every / low, n_pairs, is_bound=False)


def _pairs_within(x: np.ndarray, threshold: float) -> tuple[int, float]:
    """Pairs of different items at a squared distance of at most `threshold`, but for rounding, and the variance of
    their number. It is that of a U-statistic, Poisson's or more: where some items are common, pairs share items."""
    partners = np.empty(len(x), dtype=np.int64)  # of each item
    for rows, distances in squared_distance_blocks(x, x, less_rounding=True):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        partners[rows] = (distances <= threshold).sum(axis=1)
    n_pairs = int(partners.sum()) // 2
    return n_pairs, max(n_pairs, len(x) * float(partners.var()) - n_pairs)


def _poisson_interval(count: int) -> tuple[float, float]:
    """95 % interval of the mean of a Poisson count."""
    low = 0.0 if count == 0 else float(stats.chi2.ppf(0.025, 2 * count) / 2)
    return low, float(stats.chi2.ppf(0.975, 2 * count + 2) / 2)


class TrainingNeighbours:
    """The training set beside held-out items, once for many sets of samples.

    Arguments:
        train: Features of training items, (T, D).
        held_out: Features of held-out items, (M, D).
        seed: Of cells, bootstrap, and which items take part where only some do.
    Raises:
        InputError: If one of the sets is empty or not finite, or they differ in D.
    """

    def __init__(self, train: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> None:
        from sklearn.cluster import KMeans

        self.train = _checked("train", train)
        self.held_out = _checked("held_out", held_out, self.train.shape[1])
        if min(len(self.train), len(self.held_out)) == 0:
            raise InputError(f"{'held_out' if len(self.train) else 'train'} holds no items; give one at least.")
        self.seed = seed
        self._positions, self.distances = nearest(self.held_out, self.train)
        self._own = np.full(len(self.train), np.nan)  # of a training item to its nearest other one, when it is needed
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(self.train))
        few = self.train[order[:10_000]]
        n_cells = max(1, min(MOST_CELLS, len(self.held_out) // 50, len(np.unique(few, axis=0))))
        self._centres = KMeans(n_cells, n_init=1, random_state=seed % 2**32).fit(few).cluster_centers_
        self._cells = nearest(self.held_out, self._centres)[0]

    def measure(self, samples: np.ndarray) -> Memory | None:
        """Memory of samples with features (N, D); None for fewer than twenty of them, of held-out or training items.

        Raises:
            InputError: If the samples are not finite, or of another D.
        """
        samples = _checked("samples", samples, self.train.shape[1])
        if min(len(samples), len(self.held_out), len(self.train)) < LEAST_ITEMS:
            return None
        positions, distances = nearest(samples, self.train)
        own, theirs = self._own_distances(positions), self._own_distances(self._positions)
        # Of training items that are in the set twice, the distance to the other one says nothing.
        usual = float(np.median(theirs[theirs > 0])) if (theirs > 0).any() else 1.0
        own_scale, their_scale = (np.where(of > 0, of, usual) for of in (own, theirs))
        return Memory(
            len(samples),
            len(self.train),
            distance_ratio(distances, self.distances, seed=self.seed),
            data_copying(distances, self.distances, nearest(samples, self._centres)[0], self._cells),
            authenticity(distances, own),
            authenticity(self.distances, theirs)[0],
            support_size(samples, self.held_out, seed=self.seed),
            *near_copies(distances / own_scale, self.distances / their_scale),
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


def measure_memory(train: np.ndarray, held_out: np.ndarray, samples: np.ndarray, *, seed: int = 0) -> Memory | None:
    """`TrainingNeighbours(train, held_out).measure(samples)`, for a single set of samples."""
    return TrainingNeighbours(train, held_out, seed=seed).measure(samples)


def _checked(name: str, features: np.ndarray, dim: int | None = None) -> np.ndarray:
    # In float32 rounding would choose other neighbours than the copied items.
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        wanted = "(N, D)" if dim is None else f"(N, {dim}), as the training set has"
        raise InputError(f"{name} has shape {features.shape}; it must be {wanted}.")
    if not np.isfinite(features).all():
        raise InputError(f"{name} holds values that are not finite; leave those items out.")
    return features
