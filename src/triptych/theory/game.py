"""The whole game on a line: p_data, p_G and D over a training, as figure 1 of the first paper draws it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data.points import GaussianMixture
from triptych.files import write_atomically
from triptych.nn.blocks import mlp
from triptych.objectives.adversarial import OBJECTIVES
from triptych.theory.densities import logits_at, sigmoid
from triptych.theory.style import DATA, JUDGE, MODEL, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from PIL import Image

LOW, HIGH = -5.0, 5.0
N_BINS = 200
N_LATENTS = 8001  # Ends of the cells of z, of equal mass.
ARROWS = np.linspace(-2.2, 2.2, 23)
BATCH, HIDDEN, RATE = 256, 32, 5e-3
N_SHOWN = 6  # Moments in the picture.
PAUSE, LAST_PAUSE = 0.1, 2.5  # Seconds.


def data_density() -> GaussianMixture:
    """Two Gaussians of different weight and width."""
    return GaussianMixture(np.array([0.6, 0.4]), np.array([[-1.5], [2.0]]), np.array([0.5, 0.7]), np.arange(2))


@dataclass(frozen=True)
class Moment:
    """The game after a number of steps, over the bins' middles."""

    step: int
    p_model: np.ndarray
    """Density of G(z), a mean over each bin, (N_BINS,)."""
    probability: np.ndarray
    """D, (N_BINS,)."""
    arrows: np.ndarray
    """G(z) at ARROWS."""
    jsd: float
    """Of p_data and p_G, nats."""


@dataclass(frozen=True)
class Game:
    """A training, moment by moment."""

    x: np.ndarray
    """Middles of the bins, (N_BINS,)."""
    p_data: np.ndarray
    """(N_BINS,)."""
    moments: tuple[Moment, ...]

    def numbers(self) -> dict[str, Any]:
        last = self.moments[-1]
        return {
            "step": [moment.step for moment in self.moments],
            "jsd_nats": [moment.jsd for moment in self.moments],
            "mean_distance_of_last_d_from_half": self._mean_at(np.abs(last.probability - 0.5), last),
        }

    def _mean_at(self, values: np.ndarray, moment: Moment) -> float:
        """A mean under (p_data + p_G) / 2."""
        weight = self.p_data + moment.p_model
        return float((weight * values).sum() / weight.sum())

    def describe(self) -> list[str]:
        first, last = self.moments[0], self.moments[-1]
        return [
            f"JSD {first.jsd:.4f} -> {last.jsd:.4f} nats over {last.step} steps; at the end |D - 1/2| is"
            f" {self.numbers()['mean_distance_of_last_d_from_half']:.3f} in the mean"
        ]


class RisingGenerator(nn.Module):
    """G(z) = a + b z + sum_i s_i tanh(w_i (z - c_i)) with b, s and w positive, so that ways from z to x never cross.

    On a line nothing is lost by it: every density is the image of a normal one under a rising function. It begins
    nearly straight.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))
        self.slope = nn.Parameter(torch.full((1,), 0.5))
        self.sizes = nn.Parameter(torch.full((hidden,), -4.0))
        self.steepness = nn.Parameter(torch.full((hidden,), 2.0))
        self.places = nn.Parameter(torch.linspace(-2.5, 2.5, hidden))

    def forward(self, z: Tensor) -> Tensor:
        """(N, 1) -> (N, 1)."""
        bends = torch.tanh(F.softplus(self.steepness) * (z - self.places))  # (N, hidden)
        return self.offset + F.softplus(self.slope) * z + (F.softplus(self.sizes) * bends).sum(1, keepdim=True)


def pushforward(ends: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Density of G(z) over bins, for any continuous G on a line, folded or not.

    The cells between neighbouring z have equal mass, and G is taken to be straight within each: a cell's mass lies
    evenly between its ends. What lies outside the edges counts in the outermost bins.

    Arguments:
        ends: G at the ends of the cells, in order of z, (K + 1,).
        edges: Of equal bins, rising, (B + 1,).
    Returns:
        Mean density of each bin, (B,).
    """
    low, high = np.minimum(ends[:-1], ends[1:]), np.maximum(ends[:-1], ends[1:])
    low, high = np.clip(low, edges[0], edges[-1]), np.clip(high, edges[0], edges[-1])
    width = np.maximum(high - low, 1e-9)
    below = np.clip((edges[:, None] - low) / width, 0, 1).mean(1)  # share of the mass left of each edge, (B + 1,)
    below[-1] = 1.0  # A cell clipped to the last edge has no width.
    return np.diff(below) / np.diff(edges)


def binned_jsd(p: np.ndarray, q: np.ndarray, width: float) -> float:
    """Jensen-Shannon divergence of densities that are constant within bins, nats."""
    m = 0.5 * (p + q)
    parts = [np.where(d > 0, d * np.log(np.maximum(d, 1e-300) / np.maximum(m, 1e-300)), 0.0) for d in (p, q)]
    return float(0.5 * width * (parts[0] + parts[1]).sum())


def compute(seed: int = 0, *, quick: bool = False) -> Game:
    """Trains a generator and a discriminator in turn, a step each, and keeps what happens.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, figure 1 and algorithm 1 with the non-saturating loss. Differs: Adam
        takes the steps.
    """
    n_steps, n_moments = (300, 8) if quick else (1200, 48)
    data = data_density()
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        makes, judges = RisingGenerator(HIDDEN), mlp(1, HIDDEN, 3, 1)
    make_step = torch.optim.Adam(makes.parameters(), lr=RATE, betas=(0.0, 0.99))
    judge_step = torch.optim.Adam(judges.parameters(), lr=RATE, betas=(0.0, 0.99))
    objective = OBJECTIVES["non_saturating"]

    edges = np.linspace(LOW, HIGH, N_BINS + 1)
    x = 0.5 * (edges[1:] + edges[:-1])
    p_data = np.exp(data.log_density(x[:, None]))
    ends = torch.special.ndtri((torch.arange(N_LATENTS, dtype=torch.float64) + 0.5) / N_LATENTS).numpy()

    def moment(step: int) -> Moment:
        p_model = pushforward(logits_at(makes, ends[:, None]), edges)
        probability = sigmoid(logits_at(judges, x[:, None]))
        divergence = binned_jsd(p_data, p_model, edges[1] - edges[0])
        return Moment(step, p_model, probability, logits_at(makes, ARROWS[:, None]), divergence)

    # Most happens early.
    due = set(np.round(n_steps * np.linspace(0, 1, n_moments) ** 2).astype(int).tolist())
    moments = [moment(0)]
    for step in range(1, n_steps + 1):
        real = torch.from_numpy(data.sample(BATCH, rng)[0])
        with torch.no_grad():
            fake = makes(torch.randn((BATCH, 1), generator=noise))
        real_logits, fake_logits = judges(real).squeeze(1), judges(fake).squeeze(1)
        judge_step.zero_grad()
        objective.discriminator(real_logits, fake_logits).backward()
        judge_step.step()

        fake_logits = judges(makes(torch.randn((BATCH, 1), generator=noise))).squeeze(1)
        make_step.zero_grad()
        objective.generator(real_logits.detach(), fake_logits).backward()
        make_step.step()
        if step in due:
            moments.append(moment(step))
    return Game(x, p_data, tuple(moments))


def _show(game: Game, moment: Moment, upper: Axes, lower: Axes, *, legend: bool) -> None:
    """One moment: the densities and D above, the way from z to x below."""
    from matplotlib.collections import LineCollection

    upper.fill_between(game.x, game.p_data, color=DATA, alpha=0.25, linewidth=0, label="$p_{data}$")
    upper.plot(game.x, moment.p_model, color=MODEL, linewidth=1.6, label="$p_G$")
    right = upper.twinx()
    right.plot(game.x, moment.probability, color=JUDGE, linestyle=(0, (4, 2)), linewidth=1.2, label="D (right)")
    optimal = game.p_data / np.maximum(game.p_data + moment.p_model, 1e-12)
    seen = game.p_data + moment.p_model > 5e-3  # Elsewhere nobody puts anything, and D* is a ratio of two zeros.
    right.plot(game.x, np.where(seen, optimal, np.nan), color="#888888", linewidth=1, label="$D^*$ (right)")
    right.set_ylim(0, 1.25)
    right.set_yticks([0, 0.5, 1])
    right.spines["top"].set_visible(False)
    tidy(upper, f"step {moment.step}: JSD {moment.jsd:.3f} nats", "", "density")
    upper.set_ylim(0, 0.85)
    upper.set_xlim(LOW, HIGH)
    upper.tick_params(labelbottom=False)
    if legend:
        handles = [*upper.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        upper.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="upper center", columnspacing=1)
    ways = [((z, 0.0), (x, 1.0)) for z, x in zip(ARROWS, moment.arrows, strict=True)]
    lower.add_collection(LineCollection(ways, colors=MODEL, linewidths=0.8, alpha=0.8))
    lower.plot(moment.arrows, np.ones_like(ARROWS), "^", color=MODEL, markersize=3.5, clip_on=True)
    lower.set_xlim(LOW, HIGH)
    lower.set_ylim(0, 1.08)
    lower.set_yticks([0, 1], ["z", "x"])
    lower.tick_params(axis="y", length=0)
    lower.spines[["left", "right"]].set_visible(False)


def _panel(figure: FigureBase, game: Game, moment: Moment, *, legend: bool) -> None:
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1))
    _show(game, moment, upper, lower, legend=legend)


def draw(result: Game, path: Path) -> None:
    """A few moments, evenly spaced among those kept."""
    figure = new_figure(13, 8)
    chosen = np.linspace(0, len(result.moments) - 1, N_SHOWN).round().astype(int)
    for i, (part, number) in enumerate(zip(figure.subfigures(2, 3, squeeze=False).flat, chosen, strict=True)):
        _panel(part, result, result.moments[number], legend=i == 0)
    save(figure, path)


def animate(result: Game, path: Path) -> None:
    """All moments as a GIF that rests on its last one and begins anew."""
    from PIL import Image

    frames = [_frame(result, moment) for moment in result.moments]
    # One palette for all, from a frame in the middle, that has all colours: no colour changes from frame to frame.
    # Maximum coverage keeps white white, which the median cut does not.
    palette = frames[len(frames) // 2].quantize(128, method=Image.Quantize.MAXCOVERAGE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [round(1000 * PAUSE)] * len(rest) + [round(1000 * LAST_PAUSE)]
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )


def _frame(result: Game, moment: Moment) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = new_figure(5.8, 4.2)
    _panel(figure, result, moment, legend=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
