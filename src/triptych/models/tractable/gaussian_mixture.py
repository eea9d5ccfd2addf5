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
from triptych.nn.blocks import as_levels
from triptych.spaces import ImageSpace, PointSpace, Space

N_NOISE = 8  # Draws of dequantisation noise behind an image's bound.
N_COPIES = 4  # Dequantised copies of each training image, where they fit: the noise is part of what is estimated.


class GaussianMixture(TractableDensity, Estimated):
    """A mixture of Gaussians by EM, p(x) = sum_m P(m) N(x; mu_m, Sigma_m); exact on points, a bound on images.

    A class-conditional one has a mixture for each class.

    Points are scored exactly. An integer image x is scored through its dequantised version x + u, u uniform in
    [0, 1): E_u log p(x + u) is a lower bound of log P(x), the mass p puts on the unit cell at x, and is typed so.

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
    weights: Tensor
    means: Tensor
    covariances: Tensor
    noise: Tensor
    shift: Tensor

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
        is_image = isinstance(space, ImageSpace)
        super().__init__(
            space, n_classes, kind="lower bound" if is_image else "exact", n_draws=N_NOISE if is_image else 1
        )
        if isinstance(space, ImageSpace) and space.palette is not None:
            raise InputError("gaussian_mixture needs levels with an order; a palette has none. Use pixel_cnn.")
        n_components = (10 if is_image else 32) if n_components is None else n_components
        self.regularization = (3e-3 if is_image else 1e-6) if regularization is None else regularization
        if not (self.regularization >= 0 and tolerance >= 0):
            raise InputError("Options regularization and tolerance of gaussian_mixture must not be negative.")
        for option, value in {"n_components": n_components, "max_iterations": max_iterations}.items():
            if value < 1:
                raise InputError(f"Option {option} of gaussian_mixture is {value}; it must be at least 1.")
        dim, n_mixtures = space.n_dims, max(1, n_classes)
        self.covariance = covariance if covariance != "auto" else "full" if dim <= 256 else "diag"
        self.n_components, self.max_iterations, self.tolerance = n_components, max_iterations, tolerance
        # The model works on y, centred data of unit scale; `_log_unit` brings densities back to data units.
        if isinstance(space, ImageSpace):
            shift, self.unit = torch.full((dim,), space.levels / 2), space.levels / 4
        else:
            shift, self.unit = torch.tensor(space.center or (0.0,) * dim), space.scale
        self.register_buffer("shift", shift, persistent=False)
        shape = (n_mixtures, n_components)
        self.register_buffer("weights", torch.full(shape, 1 / n_components))
        self.register_buffer("means", torch.zeros(*shape, dim))
        covariance_shape = (dim, dim) if self.covariance == "full" else (dim,)
        self.register_buffer("covariances", torch.ones(*shape, *covariance_shape))
        if self.covariance == "full":
            self.covariances.copy_(torch.eye(dim))
        # Fixed noise makes the bound a function of the image alone. It must not be the noise that EM has seen, which
        # comes from the training's seed: a stream that no small seed gives.
        noise = torch.rand((N_NOISE, dim), generator=torch.Generator().manual_seed(3_141_592_653))
        self.register_buffer("noise", noise, persistent=False)

    @property
    def max_items(self) -> int:
        """So many that a float32 copy of the data stays below 256 MiB."""
        return max(1000, 2**26 // self.space.n_dims)

    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as EM

        which = torch.zeros(len(x), dtype=torch.int64) if labels is None or not self.n_classes else labels
        for label, n in enumerate(torch.bincount(which, minlength=len(self.weights)).tolist()):
            if n < self.n_components:
                what = f"class {label} has" if self.n_classes else "the training split has"
                raise InputError(
                    f"{what} {n} items; n_components = {self.n_components} Gaussians need as many or more."
                )
        if isinstance(self.space, ImageSpace):
            copies = max(1, min(N_COPIES, self.max_items // len(x)))
            x, which = x.repeat(copies, 1, 1, 1), which.repeat(copies)
        y = self._dequantise(x, torch.rand((len(x), self.space.n_dims), generator=generator))
        # In float64: EM breaks down on narrow clusters in float32.
        own = [y[which == label].double().numpy() for label in range(len(self.weights))]
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
        unit = "nats_per_image" if isinstance(self.space, ImageSpace) else "nats_per_point"
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
            yield {unit: -float(mean) + self._log_unit}
            if mean - previous < self.tolerance * self.space.n_dims:
                break
            previous = mean

    @property
    def _log_unit(self) -> float:
        """Nats by which a density of y exceeds the density in data units."""
        return self.space.n_dims * math.log(self.unit)

    def _dequantise(self, x: Tensor, noise: Tensor) -> Tensor:
        """Data -> y, (N, n_dims), float32; `noise` in [0, 1) of the same shape is added to images."""
        flat = x.flatten(1).float()
        if isinstance(self.space, ImageSpace):
            flat = flat + noise
        return (flat - self.shift) / self.unit

    def _log_components(self, y: Tensor) -> Tensor:
        """log P(m) + log N(y; mu_m, Sigma_m) for every class's mixture: (N, n_mixtures, n_components), nats."""
        dim = y.shape[1]
        constant = self.weights.clamp_min(1e-30).log() - 0.5 * dim * math.log(2 * math.pi)  # (K, M)
        if self.covariance == "diag":
            # In float64: the expanded square loses digits where components are narrow and far from the origin.
            y, precision = y.double(), 1 / self.covariances.double()  # (K, M, D)
            square = y.square() @ precision.flatten(0, 1).T
            square = square - 2 * y @ (self.means * precision).flatten(0, 1).T
            square = square.unflatten(1, constant.shape) + (self.means.double().square() * precision).sum(-1)
            return (constant - 0.5 * (square + self.covariances.log().sum(-1))).float()
        factor = torch.linalg.cholesky(self.covariances)  # (K, M, D, D)
        parts = []
        for mean, lower in zip(self.means.flatten(0, 1), factor.flatten(0, 1), strict=True):
            white = torch.linalg.solve_triangular(lower, (y - mean).T, upper=False)  # (D, N)
            parts.append(-0.5 * white.square().sum(0) - lower.diagonal().log().sum())
        return constant + torch.stack(parts, dim=1).unflatten(1, constant.shape)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        which = torch.zeros(len(x), dtype=torch.int64, device=self.device) if labels is None else labels
        x = x.to(self.device)
        noises = self.noise if isinstance(self.space, ImageSpace) else self.noise[:1]
        nats = [self._log_components(self._dequantise(x, u)).logsumexp(2) for u in noises]
        mean = torch.stack(nats).mean(0)  # (N, n_mixtures)
        return mean.gather(1, which.unsqueeze(1)).squeeze(1) - self._log_unit

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        weights = self.weights[:1].expand(n, -1) if labels is None else self.weights[labels]
        which = torch.zeros(n, dtype=torch.int64, device=self.device) if labels is None else labels
        # m ~ P(m), then x | m. (multinomial refuses an empty batch.)
        component = torch.multinomial(weights, 1, generator=generator).squeeze(1) if n else which
        noise = torch.randn((n, self.space.n_dims), generator=generator, device=self.device)
        y = self.means[which, component]
        if self.covariance == "diag":
            y = y + self.covariances[which, component].sqrt() * noise
        else:
            factor = torch.linalg.cholesky(self.covariances)
            for k, m in torch.stack([which, component], 1).unique(dim=0).tolist():
                own = (which == k) & (component == m)
                y[own] += noise[own] @ factor[k, m].T
        x = (y * self.unit + self.shift).reshape(n, *self.space.shape)
        return as_levels(x.floor(), self.space) if isinstance(self.space, ImageSpace) else x

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise InputError("gaussian_mixture is estimated by EM, not by gradient descent; it has no phases.")
