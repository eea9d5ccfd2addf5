"""Synthetic points whose density is known exactly: every set is a mixture of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from triptych.data.dataset import Split
from triptych.data.parts import Parts
from triptych.errors import InputError

N_ITEMS = {"train": 10_000, "valid": 2_000, "test": 2_000}


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of round Gaussians in `dim` dimensions."""

    weights: np.ndarray
    """Probability of each component, (K,), sum 1."""
    means: np.ndarray
    """(K, dim)."""
    stds: np.ndarray
    """Standard deviation of a coordinate in each component, (K,)."""
    classes: np.ndarray
    """Class that each component belongs to, int64, (K,)."""

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws points, float32, (n, dim), and their classes, int64, (n,)."""
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = rng.standard_normal((n, self.means.shape[1]))
        points = self.means[component] + self.stds[component, None] * noise
        return points.astype(np.float32), self.classes[component]

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Log-density in nats of points (N, dim): float64, (N,).

        Raises:
            InputError: If the points have another dimension.
        """
        x = np.asarray(x, dtype=np.float64)
        dim = self.means.shape[1]
        if x.ndim != 2 or x.shape[1] != dim:
            raise InputError(f"points have shape {x.shape}; this density needs (N, {dim}).")
        log_norm = np.log(self.weights) - dim * (np.log(self.stds) + 0.5 * math.log(2 * math.pi))
        result = np.empty(len(x))
        for start in range(0, len(x), 2048):  # bounds memory: a chunk against all components at once
            chunk = slice(start, start + 2048)
            squared = ((x[chunk, None] - self.means) ** 2).sum(axis=2)  # (n, K)
            terms = log_norm - 0.5 * squared / self.stds**2
            top = terms.max(axis=1)
            result[chunk] = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
        return result


def _equal(means: np.ndarray, std: float, classes: np.ndarray) -> GaussianMixture:
    k = len(means)
    return GaussianMixture(np.full(k, 1 / k), means, np.full(k, std), classes)


def ring8() -> GaussianMixture:
    """Eight Gaussians of standard deviation 0.02 on a circle of radius 2; the class is the place on the circle.

    Source:
        Metz et al. 2017, arXiv:1611.02163, appendix A: the test for mode collapse.
    """
    angle = 2 * math.pi * np.arange(8) / 8
    return _equal(2 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.02, np.arange(8))


def grid25() -> GaussianMixture:
    """Gaussians of standard deviation 0.05 on a 5x5 grid with spacing 2 in [-4, 4]; the class is the place, by rows."""
    rows, columns = np.mgrid[-4:5:2, -4:5:2]
    return _equal(np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64), 0.05, np.arange(25))


def moons(n_per_arc: int = 500) -> GaussianMixture:
    """Two interleaved half circles with noise of standard deviation 0.1; the class is the arc.

    The arcs are rows of Gaussians so close (0.006, against noise of 0.1) that they look continuous, so that points and
    density belong to the same distribution exactly.
    """
    angle = math.pi * (np.arange(n_per_arc) + 0.5) / n_per_arc
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    return _equal(np.concatenate([upper, lower]), 0.1, np.repeat(np.arange(2), n_per_arc))


def mixture1d() -> GaussianMixture:
    """Three Gaussians on a line, of different weights and widths; the class is the component."""
    return GaussianMixture(
        weights=np.array([0.5, 0.3, 0.2]),
        means=np.array([[-2.0], [0.5], [3.0]]),
        stds=np.array([0.5, 0.2, 1.0]),
        classes=np.arange(3),
    )


POINT_SETS = {"ring8": ring8, "grid25": grid25, "moons": moons, "mixture1d": mixture1d}


def read_points(name: str, seed: int = 0) -> Parts:
    """Draws the three splits of a synthetic set: 10000, 2000 and 2000 points.

    Arguments:
        name: One of POINT_SETS.
        seed: The same seed draws the same points.
    """
    mixture = POINT_SETS[name]()
    rng = np.random.Generator(np.random.PCG64(seed))
    class_names = tuple(str(number) for number in np.unique(mixture.classes))
    if name == "moons":
        class_names = ("upper", "lower")
    elif name == "grid25":
        class_names = tuple(f"({x:.0f}, {y:.0f})" for x, y in mixture.means)
    return Parts(
        name=name,
        splits={split: Split(*mixture.sample(n, rng)) for split, n in N_ITEMS.items()},
        space=None,
        class_names=class_names,
        found=[f"Drawn with seed {seed} from a mixture of {len(mixture.means)} Gaussians, whose density is known."],
        log_density=mixture.log_density,
    )
