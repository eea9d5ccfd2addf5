"""What the game is worth: against a fixed generator the best discriminator's value is -2 log 2 + 2 JSD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from triptych.data.points import mixture1d
from triptych.theory.densities import grid_around, jsd, logits_at, moved, train_discriminator, value
from triptych.theory.style import COLOURS, JUDGE, new_figure, save, tidy

SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.5, 8.0)
N_CURVE = 89  # Shifts at which the curve of the identity is computed.


@dataclass(frozen=True)
class Values:
    """Values of the game, in nats, for p_G a copy of p_data moved by each of the shifts."""

    shifts: np.ndarray
    """In units of x, (S,)."""
    identity: np.ndarray
    """-2 log 2 + 2 JSD(p_data, p_G), from the two KL divergences to the mixture, (S,)."""
    optimal: np.ndarray
    """Of D*, by integration, (S,)."""
    trained: np.ndarray
    """Of a discriminator trained on samples, by integration, (S,)."""
    steps: np.ndarray
    """Steps of training at which its value was taken, (T,)."""
    history: np.ndarray
    """The value there, (S, T)."""
    curve: tuple[np.ndarray, np.ndarray]
    """More shifts, and -2 log 2 + 2 JSD there."""

    def numbers(self) -> dict[str, Any]:
        return {
            "shift": self.shifts.tolist(),
            "minus_2_log_2_plus_2_jsd_nats": self.identity.tolist(),
            "value_optimal_nats": self.optimal.tolist(),
            "value_trained_nats": self.trained.tolist(),
        }

    def describe(self) -> list[str]:
        rows = zip(self.shifts, self.identity, self.optimal, self.trained, strict=True)
        return [
            f"p_G moved by {shift:g}: -2 log 2 + 2 JSD = {identity:.6f}, value of D* {optimal:.6f}, of the trained D"
            f" {trained:.6f} nats"
            for shift, identity, optimal, trained in rows
        ]


def compute(seed: int = 0, *, quick: bool = False) -> Values:
    """Trains a discriminator for each shift, and integrates.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, theorem 1.
    """
    data, n_steps, n = mixture1d(), 250 if quick else 1200, 4001
    shifts = np.array(SHIFTS[::2] if quick else SHIFTS)
    often = 10 if quick else 20
    identity, optimal, histories = [], [], []
    for shift in shifts:
        model = moved(data, float(shift))
        grid = grid_around(data, model, n=n)
        log_p, log_q = data.log_density(grid.points), model.log_density(grid.points)
        identity.append(-2 * math.log(2) + 2 * jsd(log_p, log_q, grid))
        optimal.append(value(log_p, log_q, log_p - log_q, grid))
        history: list[tuple[int, float]] = []

        def take(step: int, network: nn.Module) -> None:
            if step % often == 0 or step == n_steps:
                history.append((step, value(log_p, log_q, logits_at(network, grid.points), grid)))  # noqa: B023

        train_discriminator(data, model, n_steps=n_steps, hidden=32, seed=seed, each=take)
        histories.append(history)
    line = np.linspace(0, 1.1 * shifts[-1], N_CURVE)
    curve = []
    for shift in line:
        model = moved(data, float(shift))
        grid = grid_around(data, model, n=n)
        divergence = jsd(data.log_density(grid.points), model.log_density(grid.points), grid)
        curve.append(-2 * math.log(2) + 2 * divergence)
    values = np.array(histories)  # (S, T, 2)
    return Values(
        shifts=shifts,
        identity=np.array(identity),
        optimal=np.array(optimal),
        trained=values[:, -1, 1],
        steps=values[0, :, 0],
        history=values[:, :, 1],
        curve=(line, np.array(curve)),
    )


def draw(result: Values, path: Path) -> None:
    """The value over the training of each discriminator, and over the shift at the end."""
    figure = new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    for i, shift in reversed(list(enumerate(result.shifts))):  # The highest first, as the lines lie.
        left.axhline(result.identity[i], color=COLOURS[i], linestyle=(0, (4, 3)), linewidth=1)
        left.plot(result.steps, result.history[i], color=COLOURS[i], linewidth=1.4, label=f"{shift:g}")
    tidy(left, "value of D while it is trained; dashed: −2 log 2 + 2 JSD", "steps", "value of the game (nats)")
    left.legend(title="$p_G$ moved by", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    left.set_ylim(-1.53, 0.12)
    right.plot(*result.curve, color="#b8b8b8", linewidth=6, label="−2 log 2 + 2 JSD")
    right.plot(result.shifts, result.optimal, "+", color=COLOURS[1], markersize=13, label="D*, by integration")
    right.plot(result.shifts, result.trained, "o", color=JUDGE, markersize=4.5, label="D, trained on samples")
    for level, text, above in ((-2 * math.log(2), "−2 log 2: $p_G = p_{data}$", False), (0.0, "0: no overlap", True)):
        right.axhline(level, color="#777777", linewidth=0.8, linestyle=":")
        right.text(
            0.98,
            level + 0.015 if above else level - 0.025,
            text,
            ha="right",
            va="bottom" if above else "top",
            fontsize=9,
            transform=right.get_yaxis_transform(),
        )
    tidy(
        right,
        "value of the game after the training",
        "how far $p_G$ is moved from $p_{data}$ (units of x)",
        "value of the game (nats)",
    )
    right.set_ylim(-1.53, 0.12)
    right.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.15))
    save(figure, path)
