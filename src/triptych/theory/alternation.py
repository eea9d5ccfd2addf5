"""The alternating algorithm: with the best discriminator each time, a small step of the generator lowers the JSD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.objectives.adversarial import minimax_generator_loss
from triptych.theory.densities import sigmoid
from triptych.theory.style import DATA, JUDGE, MODEL, new_figure, save, tidy

DATA_MEAN, DATA_STD = 2.0, 0.8
FIRST_MEAN, FIRST_STD = -1.0, 1.4
N_LATENTS = 4000  # Quantiles of z, in whose place a sum is an expectation.
SMALL, LARGE = 0.5, 4.0


@dataclass(frozen=True)
class Descent:
    """A generator's path, G(z) = mean + std z, with D* computed anew before each of its steps."""

    rate: float
    """Step size of plain gradient descent on mean and log std."""
    mean: np.ndarray
    """(T + 1,)."""
    std: np.ndarray
    """(T + 1,)."""
    jsd: np.ndarray
    """Of p_data and p_G by integration, nats, (T + 1,)."""
    gradient_error: float
    """Largest difference between the gradient of E log(1 - D*(G(z))), D* held fixed, and that of 2 JSD, relative to
    the length of the latter."""

    def shown(self) -> list[int]:
        """Steps that tell the story: the first three, where the JSD is down to a half and a tenth, and the last."""
        fallen = [int((self.jsd <= share * self.jsd[0]).argmax()) for share in (0.5, 0.1)]
        return sorted({0, 1, 2, *fallen, len(self.jsd) - 1})

    @property
    def rises(self) -> int:
        """Steps after which the JSD was higher than before."""
        return int((np.diff(self.jsd) > 0).sum())


@dataclass(frozen=True)
class Alternation:
    """The algorithm with a small and with too large a step."""

    small: Descent
    large: Descent

    def numbers(self) -> dict[str, Any]:
        return {
            name: {
                "step_size": descent.rate,
                "jsd_nats": descent.jsd.tolist(),
                "rises": descent.rises,
                "gradient_error": descent.gradient_error,
                "mean": float(descent.mean[-1]),
                "std": float(descent.std[-1]),
            }
            for name, descent in (("small", self.small), ("large", self.large))
        }

    def describe(self) -> list[str]:
        return [
            f"steps of {descent.rate:g}: JSD {descent.jsd[0]:.4f} -> {descent.jsd[-1]:.2g} nats over"
            f" {len(descent.jsd) - 1} steps, {descent.rises} of which raise it; gradients of loss and 2 JSD differ"
            f" by {descent.gradient_error:.1g} at most"
            for descent in (self.small, self.large)
        ]


def log_normal(x: Tensor, mean: Tensor | float, log_std: Tensor | float) -> Tensor:
    """log N(x; mean, std), nats."""
    log_std = torch.as_tensor(log_std, dtype=x.dtype)
    return -0.5 * ((x - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


def optimal_logits(mean: float, log_std: float) -> Callable[[Tensor], Tensor]:
    """D* against a fixed generator, as a function of x: log p_data(x) - log p_G(x)."""
    return lambda x: log_normal(x, DATA_MEAN, math.log(DATA_STD)) - log_normal(x, mean, log_std)


def divergence(parameters: Tensor) -> Tensor:
    """JSD(p_data, p_G) by integration, differentiable in mean and log std: scalar, nats."""
    u = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    share = torch.exp(log_normal(u, 0.0, 0.0)) * (u[1] - u[0])
    total = parameters.new_zeros(())
    # Each KL on a grid of its own density, so that one width may be a hundred times the other.
    for mean, log_std in ((DATA_MEAN, math.log(DATA_STD)), (parameters[0], parameters[1])):
        x = mean + torch.as_tensor(log_std, dtype=u.dtype).exp() * u
        log_p = log_normal(x, DATA_MEAN, math.log(DATA_STD))
        log_q = log_normal(x, parameters[0], parameters[1])
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        total = total + (share * (log_normal(x, mean, log_std) - log_m)).sum()
    return 0.5 * total


def descend(rate: float, n_steps: int) -> Descent:
    """Alternates: D is set to D*, and the generator takes one step down E log(1 - D(G(z))) with D held fixed.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1 and proposition 2. Differs: D* is exact, and the
        expectation over z a sum over its quantiles, so that nothing is random.
    """
    quantiles = (torch.arange(N_LATENTS, dtype=torch.float64) + 0.5) / N_LATENTS
    z = torch.special.ndtri(quantiles)
    parameters = torch.tensor([FIRST_MEAN, math.log(FIRST_STD)], dtype=torch.float64, requires_grad=True)
    path, divergences, errors = [parameters.detach().clone()], [], []
    for _ in range(n_steps):
        logits = optimal_logits(*parameters.tolist())
        loss = minimax_generator_loss(logits(parameters[0] + parameters[1].exp() * z))
        (step,) = torch.autograd.grad(loss, parameters)
        now = divergence(parameters)  # nats
        (true,) = torch.autograd.grad(2 * now, parameters)
        divergences.append(float(now.detach()))
        # Where the JSD is nearly 0, so is its gradient: only the sum over quantiles would be measured there.
        if float(true.norm()) > 0.05:
            errors.append(float((step - true).norm() / true.norm()))
        with torch.no_grad():
            parameters -= rate * step
        path.append(parameters.detach().clone())
    divergences.append(float(divergence(parameters).detach()))
    walked = torch.stack(path).numpy()
    return Descent(rate, walked[:, 0], np.exp(walked[:, 1]), np.array(divergences), max(errors, default=0.0))


def compute(seed: int = 0, *, quick: bool = False) -> Alternation:
    """Both descents.

    Arguments:
        seed: Nothing here is random.
        quick: Fewer steps.
    """
    n_steps = 25 if quick else 40
    return Alternation(descend(SMALL, n_steps), descend(LARGE, n_steps))


def draw(result: Alternation, path: Path) -> None:
    """The small steps' generators, each with its best discriminator; the JSD over the steps of both descents."""
    figure = new_figure(12, 9.2)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.1, 1))[:, 0]
    shown = result.small.shown()
    panels = above.subplots(2, 3, sharex=True, sharey=True)
    x = torch.linspace(-5.5, 5.5, 600, dtype=torch.float64)
    density = log_normal(x, DATA_MEAN, math.log(DATA_STD)).exp().numpy()
    for axes, t in zip(panels.flat, shown, strict=False):
        mean, log_std = float(result.small.mean[t]), math.log(result.small.std[t])
        axes.fill_between(x, density, color=DATA, alpha=0.25, linewidth=0, label="$p_{data}$")
        axes.plot(x, log_normal(x, mean, log_std).exp(), color=MODEL, label="$p_G$")
        tidy(axes, f"$G_{{{t}}}$ and $D^*_{{{t}}}$: JSD {result.small.jsd[t]:.3f} nats", "x", "density")
        axes.set_ylim(0, 0.62)
        right = axes.twinx()
        d = sigmoid(optimal_logits(mean, log_std)(x).numpy())
        right.plot(x, d, color=JUDGE, linewidth=1, linestyle=(0, (4, 2)), label="$D^*$ (right)")
        right.set_ylim(0, 1.24)  # So that the probability's 1 is at the density's 1/2.
        right.set_yticks([0, 0.5, 1])
        right.spines[["top"]].set_visible(False)
        axes.label_outer()
        axes.set_xlim(-5.5, 5.5)
        if axes in panels[:, -1]:
            right.set_ylabel("$D^*(x)$")
        if t == shown[0]:
            handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
            axes.legend(handles=handles, frameon=False, loc="upper left", fontsize=9)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    axes = below.subplots()
    for descent, colour, marker in ((result.small, JUDGE, "o"), (result.large, "#CC79A7", "s")):
        label = f"steps of {descent.rate:g}: {descent.rises} of {len(descent.jsd) - 1} raise the JSD"
        axes.plot(descent.jsd, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label)
    for t in shown:
        axes.plot(t, result.small.jsd[t], "o", markersize=9, markerfacecolor="none", color=JUDGE)
    axes.axhline(math.log(2), color="#777777", linewidth=0.8, linestyle=":")
    axes.text(0, math.log(2) - 0.012, "log 2: no overlap", va="top", fontsize=9)
    tidy(axes, "the generator takes one step, then D is D* again; circles: pictures above", "steps of G", "JSD (nats)")
    axes.set_ylim(-0.02, 0.74)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
    save(figure, path)
