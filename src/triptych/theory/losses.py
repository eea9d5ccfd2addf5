"""What the generator minimises, and how hard it is pushed, over what the discriminator thinks of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.objectives.adversarial import OBJECTIVES
from triptych.theory.style import COLOURS, new_figure, save, tidy

TITLES = {
    "minimax": "minimax, log(1 − D): saturates",
    "non_saturating": "non-saturating, −log D",
    "least_squares": "least squares, (f − 1)² / 2",
    "wasserstein": "Wasserstein and hinge, −f",
    "relativistic": "relativistic, log(1 + exp(f(x) − f)) at f(x) = −f",
    "maximum_likelihood": "maximum likelihood, −D / (1 − D)",
}
SURE = 0.01
"""A probability of being real with which the discriminator all but rejects a sample."""


@dataclass(frozen=True)
class Losses:
    """A generator's losses of one sample, at a row of the discriminator's logits f of it."""

    logits: np.ndarray
    """f, (N,)."""
    losses: dict[str, np.ndarray]
    """By objective, (N,) each; nats, but for least squares and Wasserstein, whose logits are plain scores."""
    gradients: dict[str, np.ndarray]
    """The loss's derivative with respect to f, by automatic differentiation, (N,) each."""

    def at(self, name: str, probability: float) -> float:
        """The derivative where D(G(z)) has this value."""
        return float(np.interp(np.log(probability) - np.log1p(-probability), self.logits, self.gradients[name]))

    def numbers(self) -> dict[str, Any]:
        places = (SURE, 0.5, 1 - SURE)
        return {
            "probability": list(places),
            "gradient": {name: [self.at(name, place) for place in places] for name in self.gradients},
        }

    def describe(self) -> list[str]:
        pairs = ", ".join(f"{name} {self.at(name, SURE):.2f}" for name in self.gradients)
        return [f"derivative of the generator's loss by the logit where D(G(z)) = {SURE:g}: {pairs}"]


def _maximum_likelihood(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E D / (1 - D) = -E exp f: with D = D* its gradient is that of KL(p_data || p_G).

    Source:
        Goodfellow 2014, arXiv:1412.6515; Goodfellow 2016, arXiv:1701.00160, section 3.2. Differs: without their 1/2.
    """
    return -fake_logits.exp().mean()


def compute(seed: int = 0, *, quick: bool = False) -> Losses:
    """Losses and derivatives; the relativistic ones for a real datum of the opposite logit.

    Arguments:
        seed: Nothing here is random.
        quick: Fewer points.
    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, section 3; figure 16 of Goodfellow 2016, arXiv:1701.00160.
    """
    logits = torch.linspace(-6, 6, 121 if quick else 601, dtype=torch.float64)
    # The hinge game's generator has the loss of the Wasserstein game.
    generators = {str(name): objective.generator for name, objective in OBJECTIVES.items() if name != "hinge"}
    generators["maximum_likelihood"] = _maximum_likelihood
    losses, gradients = {}, {}
    for name, generator in generators.items():
        fake = logits.clone().requires_grad_(True)
        one_by_one = [generator(-f.detach()[None], f[None]) for f in fake]
        (gradient,) = torch.autograd.grad(torch.stack(one_by_one).sum(), fake)
        losses[name] = torch.stack(one_by_one).detach().numpy()
        gradients[name] = gradient.numpy()
    return Losses(logits.numpy(), losses, gradients)


def draw(result: Losses, path: Path) -> None:
    """Losses on the left, derivatives on the right, over D(G(z))."""
    figure = new_figure(12, 5.2)
    left, right = figure.subplots(1, 2)
    probability = 1 / (1 + np.exp(-result.logits))
    styles = ("-", "-", "-", "-", (0, (5, 2)), (0, (1, 1.2)))
    for (name, title), colour, style in zip(TITLES.items(), COLOURS, styles, strict=False):
        for axes, values in ((left, result.losses[name]), (right, result.gradients[name])):
            axes.plot(probability, values, color=colour, linestyle=style, linewidth=1.8, label=title)
    for axes in (left, right):
        axes.axvspan(0, 0.1, color="#000000", alpha=0.05, linewidth=0)
        axes.set_xlim(0, 1)
        axes.axhline(0, color="#999999", linewidth=0.7)
    tidy(left, "loss of the generator", "D(G(z))", "loss of one sample")
    tidy(right, "its derivative with respect to the logit f", "D(G(z))", "d loss / d f")
    left.set_ylim(-5.2, 5.2)
    right.set_ylim(-3.2, 1.2)
    right.text(0.012, 1.12, "D rejects\nG(z)", fontsize=8, va="top")
    for axes in (left, right):
        upper = axes.secondary_xaxis("top", functions=(lambda p: p, lambda p: p))
        marks = np.array([-4, -2, -1, 0, 1, 2, 4])
        upper.set_xticks(1 / (1 + np.exp(-marks)), [f"{mark}".replace("-", "−") for mark in marks], fontsize=8)
        upper.set_xlabel("logit f, with D = 1 / (1 + exp(−f))", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)
