"""Maximum likelihood is minimum KL: the mean log-likelihood of data, plus their entropy, is -KL(p_data || p_model)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.points import GaussianMixture, mixture1d
from triptych.theory.densities import entropy, gaussian, grid_around, kl
from triptych.theory.style import DATA, MODEL, new_figure, save, tidy

N_EM = 15
"""Iterations of EM: it is nearly there, and has not begun to fit the luck of the samples."""


@dataclass(frozen=True)
class Family:
    """A row of models, each measured in two ways."""

    title: str
    label: str
    """What the parameter is."""
    parameters: np.ndarray
    """(M,), in order."""
    log_likelihood: np.ndarray
    """Mean log p_model of the samples, nats, (M,)."""
    standard_error: np.ndarray
    """Of that mean plus the entropy, as an estimate of -KL, nats, (M,)."""
    divergence: np.ndarray
    """KL(p_data || p_model), by integration, nats, (M,)."""
    entropy: float
    """Of p_data, by integration, nats."""

    @property
    def most_likely(self) -> float:
        """The parameter at which the samples' likelihood is highest."""
        return float(self.parameters[self.log_likelihood.argmax()])

    @property
    def nearest(self) -> float:
        """The parameter at which the KL is lowest."""
        return float(self.parameters[self.divergence.argmin()])

    @property
    def gap(self) -> np.ndarray:
        """Mean log-likelihood plus entropy plus KL, nats, (M,): 0 but for the luck of the samples."""
        return self.log_likelihood + self.entropy + self.divergence


@dataclass(frozen=True)
class MaximumLikelihood:
    """Three families of models for one density."""

    families: tuple[Family, ...]
    n_samples: int
    data: GaussianMixture
    fits: tuple[tuple[str, GaussianMixture], ...]
    """The likeliest single Gaussian, and the last iterate of EM."""

    def numbers(self) -> dict[str, Any]:
        return {"n_samples": self.n_samples, "entropy_nats": self.families[0].entropy} | {
            family.title: {
                "most_likely": family.most_likely,
                "nearest": family.nearest,
                "log_likelihood_plus_entropy_nats": float(family.log_likelihood.max()) + family.entropy,
                "minus_kl_nats": -float(family.divergence.min()),
                "largest_gap_nats": float(np.abs(family.gap).max()),
                "largest_gap_standard_errors": float(np.abs(family.gap / family.standard_error).max()),
            }
            for family in self.families
        }

    def describe(self) -> list[str]:
        return [
            f"{family.title}: likelihood highest at {family.most_likely:g}, KL lowest at {family.nearest:g};"
            f" mean log p + entropy {family.log_likelihood.max() + family.entropy:.4f}, -KL"
            f" {-family.divergence.min():.4f} nats"
            for family in self.families
        ]


def measure(
    title: str, label: str, parameters: Iterable[float], models: Sequence[GaussianMixture], x: np.ndarray
) -> Family:
    """Both measures of models of `mixture1d`, given samples of it, (N, 1)."""
    data = mixture1d()
    log_p = data.log_density(x)
    log_likelihood, error, divergence = [], [], []
    for model in models:
        log_q = model.log_density(x)
        grid = grid_around(data, model, n=4001)
        log_likelihood.append(log_q.mean())
        error.append(log_q.std(ddof=1) / math.sqrt(len(log_p)))
        divergence.append(kl(data.log_density(grid.points), model.log_density(grid.points), grid))
    grid = grid_around(data, n=4001)
    h = entropy(data.log_density(grid.points), grid)
    return Family(
        title,
        label,
        np.array(list(parameters), float),
        np.array(log_likelihood),
        np.array(error),
        np.array(divergence),
        h,
    )


def em_step(model: GaussianMixture, x: np.ndarray) -> GaussianMixture:
    """One iteration of expectation maximisation on points of a line, (N, 1).

    Source:
        Dempster, Laird & Rubin 1977, JRSS B 39; for mixtures as Bishop 2006, eqs. 9.23 to 9.26.
    """
    parts = np.log(model.weights) - np.log(model.stds) - 0.5 * ((x - model.means[:, 0]) / model.stds) ** 2  # (N, K)
    share = np.exp(parts - np.logaddexp.reduce(parts, axis=1, keepdims=True))
    n = share.sum(0)
    means = (share * x).sum(0) / n
    stds = np.sqrt((share * (x - means) ** 2).sum(0) / n)
    return GaussianMixture(n / len(x), means[:, None], stds, model.classes)


def compute(seed: int = 0, *, quick: bool = False) -> MaximumLikelihood:
    """Draws samples of `mixture1d` and measures models of them: Gaussians of many means and widths, and EM's iterates.

    Source:
        Goodfellow 2016, arXiv:1701.00160, section 2.1.
    """
    data = mixture1d()
    n_samples = 4000 if quick else 20000
    x = data.sample(n_samples, np.random.default_rng(seed))[0].astype(np.float64)
    n = 41 if quick else 121
    # The likeliest Gaussian has the mean and the width of the data, here of p_data itself.
    mean = float((data.weights * data.means[:, 0]).sum())
    std = math.sqrt(float((data.weights * (data.stds**2 + data.means[:, 0] ** 2)).sum()) - mean**2)
    means, stds = np.linspace(mean - 3, mean + 3, n), np.linspace(0.6 * std, 2.2 * std, n)
    model = GaussianMixture(np.full(3, 1 / 3), np.array([[-1.0], [0.0], [1.0]]), np.ones(3), np.arange(3))
    iterates = [model]
    for _ in range(N_EM):
        iterates.append(em_step(iterates[-1], x))
    families = (
        measure("mean of a Gaussian", "mean", means, [gaussian(m, std) for m in means], x),
        measure("width of a Gaussian", "standard deviation", stds, [gaussian(mean, s) for s in stds], x),
        measure("EM on three Gaussians", "iteration", range(len(iterates)), iterates, x),
    )
    fits = (
        ("the likeliest Gaussian", gaussian(families[0].most_likely, families[1].most_likely)),
        ("EM's last iterate", iterates[-1]),
    )
    return MaximumLikelihood(families, n_samples, data, fits)


def draw(result: MaximumLikelihood, path: Path) -> None:
    """The density and its fits; for each family both measures and where they are best."""
    figure = new_figure(12, 7.6)
    top, *panels = figure.subplots(2, 2).ravel()
    x = np.linspace(-6, 7, 800)[:, None]
    density = np.exp(result.data.log_density(x))
    top.fill_between(x[:, 0], density, color=DATA, alpha=0.2, linewidth=0)
    top.plot(x[:, 0], density, color=DATA, label="$p_{data}$")
    for (title, model), style in zip(result.fits, ("-", (0, (3, 2))), strict=True):
        top.plot(x[:, 0], np.exp(model.log_density(x)), color=MODEL, linestyle=style, label=title)
    tidy(top, "a density and models of it", "x", "density")
    top.set_ylim(0, None)
    top.legend(frameon=False)
    for axes, family in zip(panels, result.families, strict=True):
        axes.plot(family.parameters, -family.divergence, color="#b8b8b8", linewidth=6, label="−KL, by integration")
        axes.plot(
            family.parameters,
            family.log_likelihood + family.entropy,
            color=MODEL,
            linewidth=1.5,
            label=f"mean log $p_{{model}}$ of {result.n_samples:,} samples + entropy",
        )
        axes.axvline(family.nearest, color="#999999", linewidth=2.5, label="where the KL is lowest")
        axes.axvline(
            family.most_likely,
            color=MODEL,
            linestyle=(0, (3, 3)),
            linewidth=1.2,
            label="where the likelihood is highest",
        )
        title = f"{family.title}: KL lowest at {family.nearest:.3g}, likelihood highest at {family.most_likely:.3g}"
        tidy(axes, title.replace("-", "−"), family.label, "nats")
    panels[2].legend(frameon=False, loc="lower right", bbox_to_anchor=(0.95, 0), fontsize=9)
    save(figure, path)
