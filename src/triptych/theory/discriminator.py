"""The best discriminator is D* = p_data / (p_data + p_G): a trained one, which sees samples only, comes near it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.points import GaussianMixture, mixture1d, moons
from triptych.theory.densities import (
    Grid,
    gaussian,
    grid_around,
    jsd,
    logits_at,
    sigmoid,
    train_discriminator,
    value,
)
from triptych.theory.style import DATA, JUDGE, MODEL, new_figure, save, tidy

MASS = 0.99
"""Share of (p_data + p_G) / 2 within which the largest deviation is sought: beyond it nobody has seen a sample."""


@dataclass(frozen=True)
class Contest:
    """A discriminator trained against a fixed generator, on a grid."""

    title: str
    grid: Grid
    log_p: np.ndarray
    """log p_data at the grid's points, nats, (N,)."""
    log_q: np.ndarray
    """log p_G, nats, (N,)."""
    logits: np.ndarray
    """Of the trained discriminator, (N,)."""

    @property
    def optimal(self) -> np.ndarray:
        """D*, (N,)."""
        return sigmoid(self.log_p - self.log_q)

    @property
    def deviation(self) -> np.ndarray:
        """|D - D*|, (N,)."""
        return np.abs(sigmoid(self.logits) - self.optimal)

    @property
    def mean_deviation(self) -> float:
        """The mean of |D - D*| under (p_data + p_G) / 2."""
        return self.grid.integral(np.exp(self.log_mixture) * self.deviation)

    @property
    def largest_deviation(self) -> float:
        """The largest |D - D*| among the densest points that hold 99 % of (p_data + p_G) / 2."""
        order = np.argsort(-self.log_mixture)
        held = np.cumsum(np.exp(self.log_mixture[order]))
        n = int(np.searchsorted(held, MASS * held[-1])) + 1
        return float(self.deviation[order[:n]].max())

    @property
    def log_mixture(self) -> np.ndarray:
        """log (p_data + p_G) / 2, (N,)."""
        return np.logaddexp(self.log_p, self.log_q) - math.log(2)

    def numbers(self) -> dict[str, float]:
        """The deviations (D is a probability), and the values in nats."""
        return {
            "mean_deviation": self.mean_deviation,
            "largest_deviation": self.largest_deviation,
            "value_trained_nats": value(self.log_p, self.log_q, self.logits, self.grid),
            "value_optimal_nats": value(self.log_p, self.log_q, self.log_p - self.log_q, self.grid),
            "minus_2_log_2_plus_2_jsd_nats": -2 * math.log(2) + 2 * jsd(self.log_p, self.log_q, self.grid),
        }


@dataclass(frozen=True)
class Discriminators:
    """On a line and in the plane."""

    line: Contest
    plane: Contest

    def numbers(self) -> dict[str, Any]:
        return {"line": self.line.numbers(), "plane": self.plane.numbers()}

    def describe(self) -> list[str]:
        lines = []
        for contest in (self.line, self.plane):
            n = contest.numbers()
            lines.append(
                f"{contest.title}: |D - D*| {n['mean_deviation']:.4f} in the mean, {n['largest_deviation']:.4f} at most"
                f" ({MASS:.0%} of the mass); value of D {n['value_trained_nats']:.4f}, of D*"
                f" {n['value_optimal_nats']:.4f} nats"
            )
        return lines


def contest(
    title: str, data: GaussianMixture, model: GaussianMixture, *, n_steps: int, hidden: int, seed: int, n: int
) -> Contest:
    """Trains a discriminator and holds it against D* on a grid of n points a side."""
    network = train_discriminator(data, model, n_steps=n_steps, hidden=hidden, seed=seed)
    grid = grid_around(data, model, n=n, margin=6.0)
    points = grid.points
    return Contest(title, grid, data.log_density(points), model.log_density(points), logits_at(network, points))


def compute(seed: int = 0, *, quick: bool = False) -> Discriminators:
    """Trains both discriminators.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, proposition 1.
    """
    n_steps = 400 if quick else 3000
    n = 150 if quick else 320
    line = contest(
        "on a line", mixture1d(), gaussian(0.0, 2.0), n_steps=n_steps, hidden=48, seed=seed, n=500 if quick else 2000
    )
    # Arcs of 100 Gaussians, 0.03 apart against noise of 0.1: still without visible seams, and quick to integrate.
    plane = contest("in the plane", moons(100), gaussian((0.5, 0.25), 0.8), n_steps=n_steps, hidden=64, seed=seed, n=n)
    return Discriminators(line, plane)


def draw(result: Discriminators, path: Path) -> None:
    """The two densities and both discriminators on the line; D*, D and their difference in the plane."""
    figure = new_figure(12, 8)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    line, plane = result.line, result.plane
    x = line.grid.axes[0]
    left, right = above.subplots(1, 2)
    for log_density, colour, label in ((line.log_p, DATA, "$p_{data}$"), (line.log_q, MODEL, "$p_G$, fixed")):
        left.fill_between(x, np.exp(log_density), color=colour, alpha=0.15, linewidth=0)
        left.plot(x, np.exp(log_density), color=colour, label=label)
    tidy(left, "two densities on a line", "x", "density")
    right.plot(x, line.optimal, color="#b8b8b8", linewidth=6, label="$D^* = p_{data} / (p_{data} + p_G)$")
    right.plot(x, sigmoid(line.logits), color=JUDGE, linewidth=1.3, label="D, trained on samples")
    title = f"|D − D*|: mean {line.mean_deviation:.3f}, largest {line.largest_deviation:.3f}"
    tidy(right, title, "x", "probability that x is real")
    for axes in (left, right):
        axes.set_xlim(-6, 7)
        axes.set_ylim(0, None)
    right.set_ylim(-0.02, 1.02)
    left.legend(frameon=False)
    # Room beside the curves: D* is near 0 between -4 and -3 only.
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    a, b = plane.grid.axes
    shape = (len(a), len(b))
    panels = below.subplots(1, 3)
    shown = ((plane.optimal, "$D^*$"), (sigmoid(plane.logits), "D, trained on samples"))
    for axes, (values, title) in zip(panels, shown, strict=False):
        image = axes.pcolormesh(a, b, values.reshape(shape).T, cmap="RdBu", vmin=0, vmax=1, rasterized=True)
        tidy(axes, title, "$x_1$", "$x_2$")
    below.colorbar(image, ax=panels[:2], label="probability that x is real", shrink=0.85)
    image = panels[2].pcolormesh(a, b, plane.deviation.reshape(shape).T, cmap="magma_r", vmin=0, rasterized=True)
    tidy(panels[2], f"|D − D*|: mean {plane.mean_deviation:.3f}, largest {plane.largest_deviation:.3f}", "$x_1$", "$x_2$")
    below.colorbar(image, ax=panels[2], label="|D − D*|", shrink=0.85)
    for axes in panels:
        axes.contour(a, b, np.exp(plane.log_p).reshape(shape).T, levels=[0.05], colors=DATA, linewidths=1.2)
        axes.contour(a, b, np.exp(plane.log_q).reshape(shape).T, levels=[0.02], colors=MODEL, linewidths=1.2)
        axes.set_xlim(-2.2, 3.2)
        axes.set_ylim(-2.3, 2.8)
        axes.set_aspect("equal")
    save(figure, path)
