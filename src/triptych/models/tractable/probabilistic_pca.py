"""Probabilistic principal component analysis: a Gaussian whose covariance is of low rank, plus round noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, Estimated, Loss, Phase, TractableDensity
from triptych.models.classical import MIN_VARIANCE, Standardiser, own_density, sized_by_data, training_densities
from triptych.spaces import ImageSpace, PointSpace, Space

MAX_AUTO = 256  # Most latent dimensions that 'auto' tries.
LEFT_OUT = 4  # One item in so many scores the numbers of latent dimensions for 'auto'.
MAX_COVARIANCE = 2048  # Dimensions up to which components come from the covariance matrix itself.


class ProbabilisticPCA(TractableDensity, Estimated):
    r"""x = W z + mu + sigma eps with z ~ N(0, I_q) and eps ~ N(0, I_D): p(x) = N(x; mu, W W^T + sigma^2 I).

    The maximum of the likelihood is in closed form: with eigenvalues l_1 >= .. >= l_D of the data's covariance and
    their eigenvectors U, W = U_q (L_q - sigma^2 I)^(1/2), and sigma^2 is the mean of the D - q eigenvalues left over. A
    class-conditional one has a Gaussian for each class.

    Points are scored exactly. Of images the mean of log p(x + u) over uniform noise u in [0, 1) is a lower bound of
    log P(x), and is typed so. A Gaussian's mean log-density depends on the data through their mean and covariance
    alone; so noise adds 1/2 to the one and 1/12 to each variance, and none has to be drawn for the estimation.

    Arguments:
        space: What one datum is.
        n_classes: Classes, a Gaussian for each, all with the same q.
        n_components: Latent dimensions q. D - 1 allow any covariance; more count as D - 1. 'auto': of 0 .. 256 the
            number under which a quarter of the training items, left out of the estimation, are likeliest.
    Raises:
        InputError: If n_components is less than 1.
    Source:
        Tipping & Bishop 1999, "Probabilistic principal component analysis", eqs. 3-8, with the rotation R = I; the
        components by scikit-learn's PCA. Differs: 'auto'; variances are at least 1e-6 of the data's, so that points on
        a plane have a density; a dequantisation bound for images (Theis et al. 2016, arXiv:1511.01844, section 3.1).
    """

    supports = (ImageSpace, PointSpace)
    size_option = "n_components"
    means: Tensor
    axes: Tensor
    variances: Tensor
    noise_variances: Tensor

    def __init__(self, space: Space, n_classes: int = 0, *, n_components: int | Literal["auto"] = "auto") -> None:
        standard = Standardiser(space, "probabilistic_pca")
        super().__init__(space, n_classes, kind=standard.kind, n_draws=standard.n_draws)
        self.standard = standard
        if n_components != "auto" and n_components < 1:
            raise InputError(
                f"Option n_components of probabilistic_pca is {n_components}; it must be at least 1, or 'auto'."
            )
        self.n_components = n_components
        n_densities, dim = max(1, n_classes), space.n_dims
        n_axes = 0 if n_components == "auto" else min(n_components, dim - 1)
        # All in units of y. An eigenvector whose eigenvalue is sigma^2 makes a column of zeros in W.
        self.register_buffer("means", torch.zeros(n_densities, dim))
        self.register_buffer("axes", torch.zeros(n_densities, dim, n_axes))  # U_q, orthonormal columns
        self.register_buffer("variances", torch.ones(n_densities, n_axes))  # l_1 .. l_q
        self.register_buffer("noise_variances", torch.ones(n_densities))  # sigma^2
        sized_by_data(self, axes=2, variances=1)

    @property
    def max_items(self) -> int:
        return self.standard.max_items

    @property
    def loadings(self) -> Tensor:
        """W = U_q (L_q - sigma^2 I)^(1/2) of each class, in standardised units: (n_classes or 1, n_dims, q)."""
        return self.axes * (self.variances - self.noise_variances.unsqueeze(1)).clamp_min(0).sqrt().unsqueeze(1)

    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        which = training_densities(
            labels, len(x), self.n_classes, at_least=2, why="probabilistic_pca needs 2 or more.", device=self.device
        )
        y = self.standard(x).double()
        own = [y[which == label].numpy(force=True) for label in range(len(self.means))]
        dim, most = self.space.n_dims, MAX_AUTO if self.n_components == "auto" else self.n_components
        most = min(most, dim - 1)
        cell, seed = self.standard.noise_variance, int(torch.randint(2**31, (), generator=generator))
        n_axes = most
        if self.n_components == "auto":
            scores = np.zeros(most + 1)
            for items in own:
                order = torch.randperm(len(items), generator=generator).numpy()
                n_out = len(items) // LEFT_OUT
                if n_out:
                    spectrum = _spectrum(items[order[n_out:]], most, cell, seed)
                    off = items[order[:n_out]] - spectrum.mean
                    along = np.square(off @ spectrum.axes).mean(0) + cell
                    total = float(np.square(off).sum(1).mean()) + dim * cell
                    scores += n_out * _mean_log_densities(spectrum, dim, along, total)
            n_axes = int(scores.argmax())
        nats, parts = 0.0, []
        for items in own:
            spectrum = _spectrum(items, most, cell, seed)
            scores = _mean_log_densities(spectrum, dim, spectrum.variances, spectrum.total)
            nats -= len(items) / len(y) * float(scores[n_axes])
            noise_variance = _noise_variances(spectrum, dim)[n_axes]
            variances = spectrum.variances[:n_axes].clip(noise_variance)
            parts.append((spectrum.mean, spectrum.axes[:, :n_axes], variances, noise_variance))
        names = ("means", "axes", "variances", "noise_variances")
        for name, values in zip(names, zip(*parts, strict=True), strict=True):
            self.register_buffer(name, torch.from_numpy(np.stack(values)).to(self.means))
        yield {self.standard.term: nats + self.standard.log_scale, "n_components": float(n_axes)}

    def _log_density(self, y: Tensor, label: int) -> Tensor:
        """log q(y) under the Gaussian of a class: (N, n_dims) -> float64, (N,).

        The inverse and the determinant of W W^T + sigma^2 I are those of q x q matrices (Woodbury's identity), which
        are diagonal here: the part of y - mu along the axes is weighed by the eigenvalues, the rest by sigma^2.
        """
        axes, variances = self.axes[label].double(), self.variances[label].double()
        noise_variance = self.noise_variances[label].double()
        off = y.double() - self.means[label].double()
        along = off @ axes  # (N, q)
        rest = off - along @ axes.T
        square = (along.square() / variances).sum(1) + rest.square().sum(1) / noise_variance
        n_rest = self.space.n_dims - len(variances)
        log_determinant = variances.log().sum() + n_rest * noise_variance.log()
        return -0.5 * (square + log_determinant + self.space.n_dims * math.log(2 * math.pi))

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.check_labels(len(x), labels, draw=False)
        return self.standard.log_prob(x, labels, self._log_density)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        which = own_density(labels, n, self.device)
        z = torch.randn((n, self.variances.shape[1]), generator=generator, device=self.device).to(self.means)
        noise = torch.randn((n, self.space.n_dims), generator=generator, device=self.device)
        y = self.means[which] + self.noise_variances[which].sqrt().unsqueeze(1) * noise
        loadings = self.loadings
        for label in which.unique().tolist():
            own = which == label
            y[own] += z[own] @ loadings[label].T
        return self.standard.inverse(y)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise InputError("probabilistic_pca is estimated in closed form, not by gradient descent; it has no phases.")


class _Spectrum(NamedTuple):
    """Mean and leading eigenvectors and eigenvalues of the covariance of (dequantised) vectors."""

    mean: np.ndarray
    """(D,)."""
    axes: np.ndarray
    """(D, q); zeros where there are fewer items than axes."""
    variances: np.ndarray
    """(q,), descending."""
    total: float
    """Sum of all D eigenvalues."""


def _spectrum(items: np.ndarray, n_axes: int, noise_variance: float, seed: int) -> _Spectrum:
    """The spectrum of vectors, float64, (N, D), to which noise of a variance in each coordinate is added."""
    from sklearn.decomposition import PCA

    n, dim = items.shape
    n_found = min(n_axes, n - 1)
    axes, variances, mean = np.zeros((dim, n_axes)), np.zeros(n_axes), items.mean(0)
    if n_found:
        solver = "covariance_eigh" if dim <= min(n, MAX_COVARIANCE) else "auto"
        with np.errstate(invalid="ignore"):  # Items that are all the same have no shares of variance.
            pca = PCA(n_found, svd_solver=solver, random_state=seed).fit(items)
        axes[:, :n_found] = pca.components_.T
        variances[:n_found] = pca.explained_variance_ * (n - 1) / n  # scikit-learn's is the unbiased one
    total = float(items.var(0).sum())
    return _Spectrum(mean, axes, variances + noise_variance, total + dim * noise_variance)


def _noise_variances(spectrum: _Spectrum, dim: int) -> np.ndarray:
    """sigma^2 for each number 0 .. q of axes, the mean of the eigenvalues left over: (q + 1,)."""
    n_axes = np.arange(len(spectrum.variances) + 1)
    taken = np.concatenate([[0.0], spectrum.variances.cumsum()])
    return ((spectrum.total - taken) / (dim - n_axes)).clip(MIN_VARIANCE)


def _mean_log_densities(spectrum: _Spectrum, dim: int, along: np.ndarray, total: float) -> np.ndarray:
    """Mean log-density of some items under a spectrum's Gaussian, for each number 0 .. q of axes: nats, (q + 1,).

    Arguments:
        along: The items' mean square along each axis, from the spectrum's mean, (q,).
        total: Their mean square distance from it.
    """

    def sums(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], values.cumsum()])

    noise, variances = _noise_variances(spectrum, dim), spectrum.variances.clip(MIN_VARIANCE)
    n_rest = dim - np.arange(len(variances) + 1)
    square = sums(along / variances) + (total - sums(along)) / noise
    return -0.5 * (square + sums(np.log(variances)) + n_rest * np.log(noise) + dim * math.log(2 * math.pi))
