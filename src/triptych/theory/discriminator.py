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
from triptych.theory.style import DATA, JUDGE, MODEL, between_players, new_figure, save, tidy

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
    n_steps = 600 if quick else 3000
    n = 120 if quick else 320
    line = contest(
        "on a line", mixture1d(), gaussian(0.0, 2.0), n_steps=n_steps, hidden=32, seed=seed, n=500 if quick else 2000
    )
    # Arcs of 100 Gaussians, 0.03 apart against noise of 0.1: still without visible seams, and quick to integrate.
    plane = contest("in the plane", moons(100), gaussian((0.5, 0.25), 0.8), n_steps=n_steps, hidden=48, seed=seed, n=n)
    return Discriminators(line, plane)


def draw(result: Discriminators, path: Path) -> None:
    """The two densities and both discriminators on the line; D*, D and their difference in the plane."""
    figure = new_figure(12, 8)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.1))[:, 0]
    line, plane = result.line, result.plane
    x = line.grid.axes[0]
    left, right = above.subplots(1, 2)
    for log_density, colour, label in ((line.log_p, DATA, "$p_{data}$"), (line.log_q, MODEL, "$p_G$, fixed")):
        left.fill_between(x, np.exp(log_density), color=colour, alpha=0.15, linewidth=0)
        left.plot(x, np.exp(log_density), color=colour, label=label)
    tidy(left, "two densities on a line", "x", "density")
    right.plot(x, line.optimal, color="#b8b8b8", linewidth=6, label="$D^* = p_{data} / (p_{data} + p_G)$")
    right.plot(x, sigmoid(line.logits), color=JUDGE, linewidth=1.3, label="D, trained on samples")
    tidy(right, _deviation(line), "x", "probability that x is real")
    for axes in (left, right):
        axes.set_xlim(-6, 7)
        axes.set_ylim(0, None)
    right.set_ylim(-0.02, 1.02)
    left.legend(frameon=False)
    right.legend(frameon=False, loc="upper right")  # The curves stay below 0.8.

    a, b = plane.grid.axes
    shape = (len(a), len(b))
    panels = below.subplots(1, 3)
    shown = (
        (plane.optimal, "$D^*$ in the plane", between_players(), 1.0),
        (sigmoid(plane.logits), "D, trained on samples", between_players(), 1.0),
        (plane.deviation, _deviation(plane), "Greys", None),
    )
    for axes, (values, title, colours, top) in zip(panels, shown, strict=True):
        image = axes.pcolormesh(a, b, values.reshape(shape).T, cmap=colours, vmin=0, vmax=top, rasterized=True)
        label = "|D − D*|" if top is None else "probability that x is real"
        below.colorbar(image, ax=axes, label=label, location="bottom", shrink=0.75)
        # Contours of the densities, at a tenth of the highest value.
        outlines = ((plane.log_p, DATA, "-", "$p_{data}$"), (plane.log_q, JUDGE, "--", "$p_G$"))
        for log_density, colour, style, name in outlines:
            height = np.exp(log_density).reshape(shape).T
            axes.contour(a, b, height, levels=[0.1 * height.max()], colors=colour, linestyles=style, linewidths=1.2)
            axes.plot([], [], color=colour, linestyle=style, linewidth=1.2, label=f"{name}, a tenth of its peak")
        axes.set_xlim(-1.9, 2.9)
        axes.set_ylim(-1.7, 2.9)
        axes.set_aspect("equal")
        tidy(axes, title, "$x_1$", "$x_2$")
    panels[2].legend(frameon=False, loc="upper right", fontsize=8)
    save(figure, path)


def _deviation(contest: Contest) -> str:
    mean, largest = contest.mean_deviation, contest.largest_deviation
    return f"|D − D*|: mean {mean:.3f},\nlargest {largest:.3f} (in {MASS:.0%} of the mass)"
