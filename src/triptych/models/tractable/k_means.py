"""K-means as a density: round Gaussians at the centroids, the hard limit of a Gaussian mixture."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, Estimated, Loss, Phase, TractableDensity
from triptych.models.classical import (
    MIN_VARIANCE,
    Standardiser,
    log_normaliser,
    own_density,
    squared_distances,
    training_densities,
)
from triptych.nn.options import check_counts, check_not_negative
from triptych.spaces import ImageSpace, PointSpace, Space

N_LOGGED = 1000  # Training items, or up to twice as many, that the logged likelihood is a mean over.


class KMeans(TractableDensity, Estimated):
    r"""p(x) = sum_m w_m N(x; mu_m, sigma^2 I): centroids mu_m, the clusters' shares w_m, one variance sigma^2.

    Lloyd's algorithm assigns each item to the nearest centroid, moves each centroid to the mean of its items, and so
    on; the sum of squared distances falls until nothing changes. The variance is the mean of what is left of them in a
    coordinate. A class-conditional one has centroids of its own for each class.

    It is EM for a mixture of round Gaussians of one variance, in the limit of variance 0. EM's assignment is soft,

        P(m | x) = w_m exp(-|x - mu_m|^2 / 2 sigma^2) / sum_k w_k exp(-|x - mu_k|^2 / 2 sigma^2).

    Let mu_m be the centroid nearest to x. For every other one, P(k | x) / P(m | x) = (w_k / w_m) exp(-(|x - mu_k|^2
    - |x - mu_m|^2) / 2 sigma^2), with a positive difference in the exponent, which goes to 0 with sigma whatever the
    shares are: all of P(. | x) falls to the nearest centroid, and EM's E step becomes the assignment. Its M step, the
    mean of the items weighed by P(m | x), becomes the mean of the cluster. At a variance above 0, such as the one here,
    the two differ: K-means' clusters do not overlap, and its Gaussians do.

    Points are scored exactly. Of images the mean of log p(x + u) over uniform noise u in [0, 1) is a lower bound of
    log P(x), and is typed so. The noise moves the means by 1/2 and adds 1/12 to the variance, so that none has to be
    drawn for the estimation.

    Arguments:
        space: What one datum is.
        n_classes: Classes, with centroids for each.
        n_components: Centroids of each class; by default 10 for images and 32 for points.
        n_starts: Times that Lloyd's algorithm runs, each from other centroids (k-means++); the best result is kept.
        max_iterations: Of Lloyd's algorithm, at most, in each start.
        tolerance: A start ends when the sum of squared distances falls by a smaller share of itself.
    Raises:
        InputError: If an option is out of range.
    Source:
        Lloyd 1982, "Least squares quantization in PCM", by scikit-learn's KMeans; Arthur & Vassilvitskii 2007 for the
        start; Bishop 2006, "Pattern Recognition and Machine Learning", section 9.3.2 for the limit. Differs: Gaussians
        around the centroids, with the variance of hard assignments (Celeux & Govaert 1992, classification EM), at least
        1e-6 of the data's; a dequantisation bound for images (Theis et al. 2016, arXiv:1511.01844, section 3.1).
    """

    supports = (ImageSpace, PointSpace)
    size_option = "n_components"
    weights: Tensor
    centroids: Tensor
    variances: Tensor

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_components: int | None = None,
        n_starts: int = 4,
        max_iterations: int = 100,
        tolerance: float = 1e-5,
    ) -> None:
        standard = Standardiser(space, "k_means")
        super().__init__(space, n_classes, kind=standard.kind, n_draws=standard.n_draws)
        self.standard = standard
        n_components = (10 if standard.is_image else 32) if n_components is None else n_components
        check_counts(n_components=n_components, n_starts=n_starts, max_iterations=max_iterations)
        check_not_negative(tolerance=tolerance)
        self.n_components, self.n_starts = n_components, n_starts
        self.max_iterations, self.tolerance = max_iterations, tolerance
        shape = (max(1, n_classes), n_components)
        # Centroids and variances in units of y.
        self.register_buffer("weights", torch.full(shape, 1 / n_components))
        self.register_buffer("centroids", torch.zeros(*shape, space.n_dims))
        self.register_buffer("variances", torch.ones(shape[0]))

    @property
    def max_items(self) -> int:
        return self.standard.max_items

    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        why = f"n_components = {self.n_components} centroids need as many or more."
        which = training_densities(
            labels, len(x), self.n_classes, at_least=self.n_components, why=why, device=self.device
        )
        y = self.standard(x).double()
        own = [y[which == label].numpy(force=True) for label in range(len(self.weights))]
        logged = slice(None, None, max(1, len(x) // N_LOGGED))
        best = np.full(len(own), math.inf)  # Sum of squared distances of the centroids kept so far, in y.
        for _ in range(self.n_starts):
            seed = int(torch.randint(2**31, (), generator=generator))
            centroids: list[np.ndarray | None] = [None] * len(own)
            previous = math.inf
            for _ in range(self.max_iterations):
                sums = np.zeros(len(own))
                # One iteration for every class, so that all of them are usable at every yield.
                for label, items in enumerate(own):
                    moved, assigned, sums[label] = _lloyd_iteration(items, self.n_components, centroids[label], seed)
                    centroids[label] = moved
                    if sums[label] < best[label]:
                        best[label] = sums[label]
                        self._keep(label, moved, assigned, sums[label])
                with torch.no_grad():
                    nats = self.log_prob(x[logged], which[logged] if self.n_classes else None).mean()
                distance = best.sum() / len(y) * self.standard.scale**2
                yield {self.standard.term: -float(nats), "squared_distance": float(distance)}
                if previous - sums.sum() <= self.tolerance * sums.sum():
                    break
                previous = sums.sum()

    def _keep(self, label: int, centroids: np.ndarray, assigned: np.ndarray, sum_of_squares: float) -> None:
        """Makes a density of a class's centroids, (n_components, n_dims), and the clusters of its items, (n,)."""
        self.centroids[label] = torch.from_numpy(centroids)
        self.weights[label] = torch.from_numpy(np.bincount(assigned, minlength=self.n_components) / len(assigned))
        variance = sum_of_squares / (len(assigned) * self.space.n_dims) + self.standard.noise_variance
        self.variances[label] = max(variance, MIN_VARIANCE)

    def assign(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The cluster of each item: the index of its nearest centroid, among those of its class if there are classes.

        This is `GaussianMixture.responsibilities` made hard: its largest entry as the variance goes to 0. The distance
        is Euclidean, of images from the middle of their cell.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
            labels: int64, (N,); required by a class-conditional model.
        Returns:
            0 .. n_components-1, int64, (N,).
        Raises:
            InputError: If x or labels do not fit the model.
        """
        self.space.check(x)
        x = x.to(self.device)
        labels = self.check_labels(len(x), labels, draw=False)
        which = own_density(labels, len(x), self.device)
        clusters = torch.zeros_like(which)
        for label in which.unique().tolist():
            for own in (which == label).nonzero().squeeze(1).split(self.standard.n_rows):
                clusters[own] = squared_distances(self.standard(x[own]), self.centroids[label]).argmin(1)
        return clusters

    def _log_density(self, y: Tensor, label: int) -> Tensor:
        """log q(y) under the mixture of a class: (N, n_dims) -> float64, (N,)."""
        variance = self.variances[label].double()
        exponent = squared_distances(y, self.centroids[label]) / (-2 * variance)  # (N, n_components)
        log_weights = self.weights[label].double().clamp_min(1e-30).log()
        return (exponent + log_weights).logsumexp(1) - log_normaliser(variance, self.space.n_dims)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.check_labels(len(x), labels, draw=False)
        return self.standard.log_prob(x, labels, self._log_density)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        which = own_density(labels, n, self.device)
        # m ~ w_m, then x | m. (multinomial refuses an empty batch.)
        component = torch.multinomial(self.weights[which], 1, generator=generator).squeeze(1) if n else which
        noise = torch.randn((n, self.space.n_dims), generator=generator, device=self.device)
        return self.standard.inverse(
            self.centroids[which, component] + self.variances[which].sqrt().unsqueeze(1) * noise
        )

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise InputError("k_means is estimated by Lloyd's algorithm, not by gradient descent; it has no phases.")


def _lloyd_iteration(
    items: np.ndarray, n_components: int, centroids: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Assigns items, (n, D), to the nearest of centroids, (K, D), and moves these to the means.

    Returns:
        The moved centroids, the items' nearest of them, (n,), and the sum of the squared distances to these.
    """
    from sklearn.cluster import KMeans as Lloyd
    from sklearn.exceptions import ConvergenceWarning

    init = "k-means++" if centroids is None else centroids
    lloyd = Lloyd(n_components, init=init, n_init=1, max_iter=1, tol=0.0, algorithm="lloyd", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Fewer distinct items than centroids: some have none.
        lloyd.fit(items)
    return lloyd.cluster_centers_, lloyd.labels_, float(lloyd.inertia_)
