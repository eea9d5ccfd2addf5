"""Distances between two sets of features: pure functions, features -> statistics -> metric, float64 throughout.

Every function takes whole sets, shape (N, D), so that no value depends on a batch size. Rows of the larger
computations go block by block: memory grows with N, not with N squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from triptych.errors import InputError, counted

Z_95 = 1.959963984540054
"""Standard deviations either side of the mean that hold 95 % of a Gaussian."""

_BLOCK_ENTRIES = 1 << 23  # entries of one block of a distance or kernel matrix: 64 MiB in float64


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D).

    Raises:
        InputError: If there are fewer than two items, or a feature is not finite.
    """
    features = _as_features(features, at_least=2)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance between two Gaussians.

    $$ \|\mu_a - \mu_b\|^2 + \operatorname{tr} \Sigma_a + \operatorname{tr} \Sigma_b
       - 2 \operatorname{tr} (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2} $$

    The last trace is the sum of the singular values of A^{1/2} B^{1/2}: real and not negative by construction, and
    exact for covariances of deficient rank, where a matrix square root of the product AB is neither.

    Arguments:
        a, b: (mean (D,), covariance (D, D)), as `gaussian_statistics` gives.
    Returns:
        Squared units of the features; 0 for equal Gaussians up to rounding.
    Source:
        Dowson & Landau 1982 (the formula); Heusel et al. 2017, arXiv:1706.08500, eq. 6 (its use on features).
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    cross = np.linalg.svd(_sqrt_psd(cov_a) @ _sqrt_psd(cov_b), compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def extrapolated_frechet(x: np.ndarray, y: np.ndarray, *, n_splits: int = 4, seed: int = 0) -> float:
    """The squared Fréchet distance that infinitely many items would give, FD-infinity: free of the bias in 1/N.

    The distance of n items is too large by about c/n. Halves of both sets have twice that bias, so twice the distance
    of all minus that of halves has none. It can fall below 0 by chance.

    Arguments:
        x, y: Features, (N, D) and (M, D), at least 4 each.
        n_splits: Random divisions into halves, whose four distances are averaged.
        seed: Of the divisions.
    Source:
        Chong & Forsyth 2020, arXiv:1911.07023, section 3. Differs: two sizes that use every item, instead of a line
        through random subsets of fifteen sizes; both sets shrink, since both are finite.
    """
    x, y = _as_features(x, at_least=4), _as_features(y, at_least=4)
    rng = np.random.Generator(np.random.PCG64(seed))
    halves = []
    for _ in range(n_splits):
        parts_x, parts_y = (np.array_split(z[rng.permutation(len(z))], 2) for z in (x, y))
        of_x, of_y = ([gaussian_statistics(part) for part in parts] for parts in (parts_x, parts_y))
        halves += [frechet_distance(a, b) for a in of_x for b in of_y]
    return 2 * frechet_distance(gaussian_statistics(x), gaussian_statistics(y)) - float(np.mean(halves))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Kernel distance: unbiased squared MMD under the kernel (x·y / D + 1)^3, over all pairs of items.

    The standard error is the delete-one jackknife's over the items of both sets. It needs no random draws and errs on
    the wide side: nearly right where the sets differ, up to sqrt(2) too wide where they do not (Efron & Stein 1981,
    theorem 2).

    Arguments:
        x: Features, (N, D), N >= 3.
        y: Features, (M, D), M >= 3.
    Returns:
        (value, standard error). The value can be negative: it is 0 in expectation for equal distributions.
    Source:
        Bińkowski et al. 2018, arXiv:1801.01401, sec. 4. Differs: all pairs at once instead of the mean over random
        subsets, which is the same expectation with less variance.
    """
    x, y = _as_features(x, at_least=3), _as_features(y, at_least=3)
    n, m = len(x), len(y)
    within_x = _kernel_sums(x, x)[0] - _kernel_diagonal(x)  # (N,): sum over j != i
    within_y = _kernel_sums(y, y)[0] - _kernel_diagonal(y)  # (M,)
    across_x, across_y = _kernel_sums(x, y)  # (N,), (M,)
    sum_x, sum_y, sum_across = within_x.sum(), within_y.sum(), across_x.sum()
    term_x, term_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))

    def jackknife_variance(own: np.ndarray, total: float, others: float, across: np.ndarray, n_others: int) -> float:
        n_own = len(own)
        without = (total - 2 * own) / ((n_own - 1) * (n_own - 2)) + others  # (n_own,)
        without -= 2 * (sum_across - across) / ((n_own - 1) * n_others)
        with np.errstate(over="ignore"):  # An interval without end is told as that.
            return float((n_own - 1) * without.var())

    variance = jackknife_variance(within_x, sum_x, term_y, across_x, m)
    variance += jackknife_variance(within_y, sum_y, term_x, across_y, n)
    return float(term_x + term_y - 2 * sum_across / (n * m)), math.sqrt(variance)


def neighbour_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each item to its k-th nearest other item, (N,).

    Raises:
        InputError: If there are not more than k items.
    """
    features = _as_features(features, at_least=k + 1)
    radii = np.empty(len(features))
    for rows, distances in squared_distance_blocks(features, features):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = 0.0  # itself, without rounding
        radii[rows] = np.partition(distances, k, axis=1)[:, k]
    return radii


def supports(
    real: np.ndarray, generated: np.ndarray, k: int = 3, *, real_radii: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which generated items lie in the support of the real ones, (M,), and which real ones in that of the generated,
    (N,), bool: improved precision and recall, item by item.

    A set's support is the union of the balls around its items that reach to their k-th nearest neighbour.

    Arguments:
        real: Features of data, (N, D), N > k.
        generated: Features of samples, (M, D), M > k.
        k: Neighbours that a ball reaches to.
        real_radii: `neighbour_radii(real, k)`, when it is known from an earlier call.
    Source:
        Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1-2.
    """
    real, generated = _as_features(real, at_least=k + 1), _as_features(generated, at_least=k + 1)
    if real_radii is None:
        real_radii = neighbour_radii(real, k)
    generated_radii = neighbour_radii(generated, k)
    in_real = np.zeros(len(generated), dtype=bool)
    in_generated = np.zeros(len(real), dtype=bool)
    for rows, distances in squared_distance_blocks(real, generated, less_rounding=True):
        in_real |= (distances <= real_radii[rows, None]).any(axis=0)
        in_generated[rows] = (distances <= generated_radii).any(axis=1)
    return in_real, in_generated


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = 3, *, real_radii: np.ndarray | None = None
) -> tuple[float, float]:
    """Improved precision (are samples like the data?) and recall (do samples reach all of the data?).

    Precision is the share of generated items inside the real support, recall the share of real items inside the
    generated one; see `supports` for the arguments.

    Returns:
        (precision, recall), each 0 .. 1, higher is better. Recall depends on M: compare equal sizes only.
    Source:
        Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1-2.
    """
    in_real, in_generated = supports(real, generated, k, real_radii=real_radii)
    return float(in_real.mean()), float(in_generated.mean())


def density_coverage(
    real: np.ndarray, generated: np.ndarray, k: int = 5, *, real_radii: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Density of each generated item, (M,), and whether each real one is covered, (N,); their means are the metrics.

    An item's density is the number of real items whose balls (to their k-th nearest neighbour) hold it, over k. A real
    item is covered if its ball holds a generated one. Balls around generated items, which outliers inflate, play no
    part.

    Arguments:
        real: Features of data, (N, D), N > k.
        generated: Features of samples, (M, D). Coverage grows with M: compare equal sizes only.
        k: Neighbours that a ball reaches to.
        real_radii: `neighbour_radii(real, k)`, when it is known from an earlier call.
    Returns:
        Of draws from one distribution, N = M, the means are about 1 and 1 - 2^-k. Density is not bounded by 1.
    Source:
        Naeem et al. 2020, arXiv:2002.09797, eq. 5-6.
    """
    real, generated = _as_features(real, at_least=k + 1), _as_features(generated, at_least=1)
    if real_radii is None:
        real_radii = neighbour_radii(real, k)
    density = np.zeros(len(generated))
    covered = np.zeros(len(real), dtype=bool)
    for rows, distances in squared_distance_blocks(real, generated, less_rounding=True):
        inside = distances <= real_radii[rows, None]
        density += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
    return density / k, covered


def mean_distance(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """Mean Euclidean distance of an item of x, (N, D), and one of y, (M, D); of two different ones of x if y is None.

    Raises:
        InputError: If there are not items enough.
    """
    x = _as_features(x, at_least=2 if y is None else 1)
    other = x if y is None else _as_features(y, at_least=1)
    total = sum(float(np.sqrt(block).sum()) for _, block in squared_distance_blocks(x, other))
    # An item's distance to itself is 0 but for rounding.
    return total / (len(x) * (len(x) - 1 if y is None else len(other)))


def multiscale_mmd(x: np.ndarray, reference: np.ndarray, widths: Sequence[float] = (1, 1 / 4, 1 / 16, 1 / 64)) -> float:
    """Squared maximum mean discrepancies of features (N, D) and (M, D) under Gaussian kernels of several widths, each
    over what the reference's own mean kernel can be told to be, summed; clipped at 0.

    The wide kernels see where the mass lies, the narrow ones how sharp the modes are, to which Fréchet's and the energy
    distance are blind. Unbiased before it is clipped: near 0 for equal distributions. Where x has none of the
    reference's structure at some width, that width adds 1 at least; where the reference has none that its items could
    show, next to nothing.

    Arguments:
        widths: Standard deviations of the kernels, in units of the features.
    Raises:
        InputError: If one of the sets has less than two items.
    Source:
        Gretton et al. 2012, Journal of Machine Learning Research 13, eq. 3; several kernels: Li, Swersky & Zemel 2015,
        arXiv:1502.02761, section 3.
    """
    x, reference = _as_features(x, at_least=2), _as_features(reference, at_least=2)

    def sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = np.zeros(len(widths))
        for _, block in squared_distance_blocks(a, b):
            total += [np.exp(block / (-2 * width**2)).sum() for width in widths]
        return total

    n, m = len(x), len(reference)
    # Of two different items of one set: the kernel of an item with itself is 1.
    own = (sums(reference, reference) - m) / (m * (m - 1))
    of_x = (sums(x, x) - n) / (n * (n - 1))
    across = sums(x, reference) / (n * m)
    return max(0.0, float(((of_x + own - 2 * across) / (own + 1 / m)).sum()))


def bootstrap_error(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    *,
    n_resamples: int = 100,
    seed: int = 0,
) -> float:
    """Standard deviation of `statistic(x, y)` when the items of both sets are drawn again with replacement.

    Use it as value ± 1.96 deviations, not through percentiles: a resample holds fewer different items, so a statistic
    with a bias in 1/N (the Fréchet distance) is larger on every resample, and the percentiles can miss the value.

    Source:
        Efron 1979, sec. 2.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    values = [
        statistic(x[rng.integers(len(x), size=len(x))], y[rng.integers(len(y), size=len(y))])
        for _ in range(n_resamples)
    ]
    return float(np.std(values, ddof=1))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent items; it stays inside 0 .. 1 and has a width at 0 and 1 too.

    Raises:
        InputError: If there are no items.
    Source:
        Wilson 1927.
    """
    if n < 1:
        raise InputError("A share of no items has no interval; give one item at least.")
    z2 = Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(share * (1 - share) * z2 / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    # Rounding must not put the share itself outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _as_features(features: np.ndarray, at_least: int) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise InputError(f"Features have shape {features.shape}; they must be (N, D).")
    if len(features) < at_least:
        raise InputError(
            f"A set of features has {counted(len(features), 'item')}; this metric needs at least {at_least}."
        )
    if not np.isfinite(features).all():
        raise InputError("A set of features holds values that are not finite; leave those items out.")
    return features


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ENTRIES // n_columns)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def squared_distance_blocks(
    x: np.ndarray, y: np.ndarray, *, less_rounding: bool = False
) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances of a block of x's rows to all of y, (block, M), block after block.

    Arguments:
        x, y: Features, float64, (N, D) and (M, D).
        less_rounding: Take from each distance what rounding may have added to it, so that equal items lie in a ball of
            radius 0. It goes with the two items: one that lies far off makes none but its own distances vague.
    """
    if len(x) == 0:
        return
    # The difference of squares loses what the distance from the origin takes: items far from 0 would all be alike.
    # A median of a few rows, since one far item must not move it.
    centre = np.median(x[:: max(1, len(x) // 256)], axis=0)
    y = y - centre
    y_norms = (y**2).sum(axis=1)
    scale = 1 - 1e-12 if less_rounding else 1.0
    for rows in _row_blocks(len(x), len(y)):
        x_rows = x[rows] - centre
        distances = x_rows @ y.T
        distances *= -2
        distances += scale * (x_rows**2).sum(axis=1)[:, None]
        distances += scale * y_norms
        yield rows, np.maximum(distances, 0.0, out=distances)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel matrix over y (N,) and over x (M,)."""
    over_y, over_x = np.empty(len(x)), np.zeros(len(y))
    for rows in _row_blocks(len(x), len(y)):
        kernel = x[rows] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        kernel *= kernel * kernel
        over_y[rows] = kernel.sum(axis=1)
        over_x += kernel.sum(axis=0)
    return over_y, over_x


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    diagonal: np.ndarray = ((x**2).sum(axis=1) / x.shape[1] + 1) ** 3
    return diagonal
