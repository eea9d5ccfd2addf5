"""Densities known in closed form, and integrals over them: what the figures hold trained networks against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from triptych.data.points import GaussianMixture
from triptych.nn.blocks import mlp
from triptych.objectives.adversarial import discriminator_loss


def gaussian(mean: float | tuple[float, ...], std: float) -> GaussianMixture:
    """A round Gaussian; `std` is that of a coordinate."""
    return GaussianMixture(np.ones(1), np.atleast_2d(np.asarray(mean, float)), np.full(1, std), np.zeros(1, np.int64))


def moved(density: GaussianMixture, shift: float) -> GaussianMixture:
    """The same density elsewhere: `shift` is added to every coordinate."""
    return GaussianMixture(density.weights, density.means + shift, density.stds, density.classes)


@dataclass(frozen=True)
class Grid:
    """Points in the middle of equal cells, so dense and so far out that a sum over them is an integral."""

    axes: tuple[np.ndarray, ...]
    """Coordinates along each dimension."""

    @property
    def points(self) -> np.ndarray:
        """(N, dim), the last coordinate varying fastest."""
        return np.stack([part.ravel() for part in np.meshgrid(*self.axes, indexing="ij")], 1)

    def integral(self, values: np.ndarray) -> float:
        """The integral of a function given at the points, (N,)."""
        volume = np.prod([axis[1] - axis[0] for axis in self.axes])
        return float(np.sum(values, dtype=np.float64) * volume)


def grid_around(*densities: GaussianMixture, n: int, margin: float = 8.0) -> Grid:
    """A grid of n points a side, from `margin` standard deviations below all components to as many above."""
    low = np.min([(d.means - margin * d.stds[:, None]).min(0) for d in densities], 0)
    high = np.max([(d.means + margin * d.stds[:, None]).max(0) for d in densities], 0)
    return Grid(tuple(np.linspace(a, b, n) for a, b in zip(low, high, strict=True)))


def entropy(log_p: np.ndarray, grid: Grid) -> float:
    """Differential entropy, -E_p log p, in nats."""
    return -grid.integral(np.exp(log_p) * log_p)


def kl(log_p: np.ndarray, log_q: np.ndarray, grid: Grid) -> float:
    """KL(p || q) in nats, of log-densities at the grid's points, (N,) each."""
    return grid.integral(np.exp(log_p) * (log_p - log_q))


def jsd(log_p: np.ndarray, log_q: np.ndarray, grid: Grid) -> float:
    """Jensen-Shannon divergence in nats, at most log 2: the mean of the KLs from p and from q to their mixture."""
    log_m = np.logaddexp(log_p, log_q) - np.log(2)
    return 0.5 * (kl(log_p, log_m, grid) + kl(log_q, log_m, grid))


def value(log_p: np.ndarray, log_q: np.ndarray, logits: np.ndarray, grid: Grid) -> float:
    """The game's value for a discriminator with these logits, E_p log D + E_q log(1 - D), in nats.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, eq. 3.
    """
    log_d, log_not_d = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    return grid.integral(np.exp(log_p) * log_d + np.exp(log_q) * log_not_d)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """D of its logits; neither end overflows."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def train_discriminator(
    data: GaussianMixture,
    model: GaussianMixture,
    *,
    n_steps: int,
    hidden: int,
    seed: int,
    batch: int = 256,
    each: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A perceptron trained on fresh draws to tell data from a fixed model's; it sees samples only, no density.

    Arguments:
        n_steps: Of Adam; the learning rate falls from 1e-2 to 0 along a half cosine, so that the draws' noise averages
            out.
        hidden: Units of each of the three layers.
        batch: Draws of each kind a step.
        each: Called with the number of steps done, from 0 on, and the network.
    Returns:
        A network from points, float32, (N, dim), to logits, (N, 1).
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp(data.means.shape[1], hidden, 3, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    for step in range(n_steps):
        if each is not None:
            each(step, network)
        both = np.concatenate([data.sample(batch, rng)[0], model.sample(batch, rng)[0]])
        logits = network(torch.from_numpy(both)).squeeze(1)
        optimiser.zero_grad()
        discriminator_loss(logits[:batch], logits[batch:]).backward()
        optimiser.step()
        schedule.step()
    if each is not None:
        each(n_steps, network)
    return network


@torch.no_grad()
def logits_at(network: nn.Module, points: np.ndarray) -> np.ndarray:
    """A discriminator's logits at points (N, dim): float64, (N,)."""
    parts = torch.from_numpy(points.astype(np.float32)).split(1 << 15)  # bounds memory
    return torch.cat([network(part).squeeze(1) for part in parts]).double().numpy()
