"""The mixture of Gaussians, estimated by expectation-maximisation.

References:
    Maximum Likelihood from Incomplete Data via the EM Algorithm, Dempster, Laird & Rubin 1977.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, Estimated, Loss, Phase, TractableDensity
from triptych.models.classical import Standardiser, own_density, training_densities
from triptych.nn.options import check_counts, check_not_negative
from triptych.spaces import ImageSpace, PointSpace, Space

N_COPIES = 4  # Dequantised copies of each training image, where they fit: the noise is part of what is estimated.


class GaussianMixture(TractableDensity, Estimated):
    """A mixture of Gaussians by EM, p(x) = sum_m P(m) N(x; mu_m, Sigma_m); exact on points, a bound on images.

    A class-conditional one has a mixture for each class.

    Points are scored exactly. An integer image x is scored through its dequantised version x + u, u uniform in
    [0, 1): the mean of log p(x + u) is a lower bound of log P(x), and is typed so.

    Arguments:
        space: What one datum is.
        n_classes: Classes, a mixture for each.
        n_components: Gaussians in each mixture; by default 10 for images and 32 for points.
        covariance: 'full', 'diag', or 'auto': full up to 256 dimensions.
        max_iterations: EM iterations at most, for each class.
        tolerance: EM ends when the mean log-likelihood gains less, in nats per dimension.
        regularization: Variance added to every direction, relative to the data's; by default 3e-3 for images (the best
            of 1e-4 .. 8e-2 on the digits' validation part) and 1e-6 for points.
    Raises:
        InputError: If an option is out of range.
    Source:
        Dempster et al. 1977, by scikit-learn's GaussianMixture. The dequantisation bound: Theis et al. 2016,
        arXiv:1511.01844, section 3.1.
    """

    supports = (ImageSpace, PointSpace)
    size_option = "n_components"
    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_components: int | None = None,
        covariance: Literal["auto", "full", "diag"] = "auto",
        max_iterations: int = 100,
        tolerance: float = 1e-5,
        regularization: float | None = None,
    ) -> None:
        standard = Standardiser(space, "gaussian_mixture")
        super().__init__(space, n_classes, kind=standard.kind, n_draws=standard.n_draws)
        self.standard = standard
        n_components = (10 if standard.is_image else 32) if n_components is None else n_components
        self.regularization = (3e-3 if standard.is_image else 1e-6) if regularization is None else regularization
        check_not_negative(regularization=self.regularization, tolerance=tolerance)
        check_counts(n_components=n_components, max_iterations=max_iterations)
        dim, n_mixtures = space.n_dims, max(1, n_classes)
        self.covariance = covariance if covariance != "auto" else "full" if dim <= 256 else "diag"
        self.n_components, self.max_iterations, self.tolerance = n_components, max_iterations, tolerance
        shape = (n_mixtures, n_components)
        self.register_buffer("weights", torch.full(shape, 1 / n_components))
        self.register_buffer("means", torch.zeros(*shape, dim))
        covariance_shape = (dim, dim) if self.covariance == "full" else (dim,)
        # In float64: rounded to float32, the covariance of points near a plane of many dimensions need not be one.
        self.register_buffer("covariances", torch.ones(*shape, *covariance_shape, dtype=torch.float64))
        if self.covariance == "full":
            self.covariances.copy_(torch.eye(dim))

    @property
    def max_items(self) -> int:
        return self.standard.max_items

    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as EM

        why = f"n_components = {self.n_components} Gaussians need as many or more."
        which = training_densities(
            labels, len(x), self.n_classes, at_least=self.n_components, why=why, device=self.device
        )
        if self.standard.is_image:
            copies = max(1, min(N_COPIES, self.max_items // len(x)))
            x, which = x.repeat(copies, 1, 1, 1), which.repeat(copies)
        y = self.standard(x, torch.rand((len(x), self.space.n_dims), generator=generator).to(self.device))
        # In float64: EM breaks down on narrow clusters in float32.
        own = [y[which == label].double().numpy(force=True) for label in range(len(self.weights))]
        seed = int(torch.randint(2**31, (), generator=generator))
        mixtures = [
            EM(
                self.n_components,
                covariance_type=self.covariance,
                reg_covar=self.regularization,
                max_iter=1,
                warm_start=True,
                init_params="k-means++" if len(items) > 20000 else "kmeans",
                random_state=seed,
            )
            for items in own
        ]
        previous = -math.inf
        for _ in range(self.max_iterations):
            # One iteration of every class's mixture, so that all of them are usable at every yield.
            for label, (em, items) in enumerate(zip(mixtures, own, strict=True)):
                with warnings.catch_warnings():
                    # One iteration at a time never "converges"; the tolerance below decides.
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    try:
                        em.fit(items)
                    except ValueError as error:
                        advice = "use fewer n_components or a larger regularization"
                        raise InputError(
                            f"gaussian_mixture: EM broke down ({str(error)[:60]} ...); {advice}."
                        ) from None
                self.weights[label] = torch.from_numpy(np.asarray(em.weights_))
                self.means[label] = torch.from_numpy(np.asarray(em.means_))
                self.covariances[label] = torch.from_numpy(np.asarray(em.covariances_))
            mean = sum(em.lower_bound_ * len(items) for em, items in zip(mixtures, own, strict=True)) / len(y)
            yield {self.standard.term: -float(mean) + self.standard.log_scale}
            if mean - previous < self.tolerance * self.space.n_dims:
                break
            previous = mean

    def _log_components(self, y: Tensor, label: int) -> Tensor:
        """log P(m) + log N(y; mu_m, Sigma_m) for the mixture of a class: float64, (N, n_components), nats."""
        parameters = (self.weights[label], self.means[label], self.covariances[label])
        # In float64: float32 loses digits where components are narrow and far from the origin.
        weights, means, covariances = (parameter.double() for parameter in parameters)
        y = y.double()
        constant = weights.clamp_min(1e-30).log() - 0.5 * y.shape[1] * math.log(2 * math.pi)  # (M,)
        if self.covariance == "diag":
            precision = 1 / covariances  # (M, D)
            square = y.square() @ precision.T - 2 * y @ (means * precision).T  # (N, M)
            square = square + (means.square() * precision).sum(1)
            return constant - 0.5 * (square + covariances.log().sum(1))
        factor = torch.linalg.cholesky(covariances)  # (M, D, D)
        parts = []
        for mean, lower in zip(means, factor, strict=True):
            white = torch.linalg.solve_triangular(lower, (y - mean).T, upper=False)  # (D, N)
            parts.append(-0.5 * white.square().sum(0) - lower.diagonal().log().sum())
        return constant + torch.stack(parts, dim=1)

    def responsibilities(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """P(m | x), the soft assignment of the E step; of images, at the middle of their cell.

        Arguments and errors are those of `log_prob`.
        Returns:
            Probabilities, float32, (N, n_components); each row sums to 1.
        Source:
            Dempster et al. 1977, section 4.3.
        """
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        y, which = self.standard(x), own_density(labels, len(x), self.device)
        result = self.weights.new_zeros(len(x), self.n_components)
        for label in which.unique().tolist():
            own = which == label
            result[own] = self._log_components(y[own], label).to(result).softmax(1)
        return result.float()

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.check_labels(len(x), labels, draw=False)
        return self.standard.log_prob(x, labels, lambda y, label: self._log_components(y, label).logsumexp(1))

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        which = own_density(labels, n, self.device)
        # m ~ P(m), then x | m. (multinomial refuses an empty batch.)
        component = torch.multinomial(self.weights[which], 1, generator=generator).squeeze(1) if n else which
        noise = torch.randn((n, self.space.n_dims), generator=generator, device=self.device).double()
        y = self.means[which, component].double()
        if self.covariance == "diag":
            y = y + self.covariances[which, component].sqrt() * noise
        else:
            factor = torch.linalg.cholesky(self.covariances.double())
            for k, m in torch.stack([which, component], 1).unique(dim=0).tolist():
                own = (which == k) & (component == m)
                y[own] += noise[own] @ factor[k, m].T
        return self.standard.inverse(y)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise InputError("gaussian_mixture is estimated by EM, not by gradient descent; it has no phases.")
