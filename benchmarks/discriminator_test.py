"""Does the discriminator's test keep its word: a bound below the true divergence, near it, and an exact level?

    python benchmarks/discriminator_test.py [--seeds 5] [--repetitions 200] [--threads 1] [--only pairs null power]

Prints three Markdown tables.

pairs: ten pairs of distributions whose Jensen-Shannon divergence is computed by integration or enumeration. By pair the
true value, what was measured at seed 0 (20,000 points or 10,000 images of each set, default settings), its 95 %
interval, and over all seeds the mean of the bound as a share of the truth (least and largest), and how often the lower
end of the interval lies above the truth.

null: false alarms at a level of 5 % where both sets come from one distribution, on points and on images, and the share
of accuracies outside their null interval.

power: the share of alarms where the sets differ a little.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from triptych.data.load import load_data
from triptych.evaluation.discriminator import TwoSampleTest, classifier_two_sample_test
from triptych.spaces import ImageSpace, PointSpace, Space

Draw = Callable[[int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two distributions and their divergence in nats."""

    name: str
    space: Space
    p: Draw
    q: Draw
    jsd: float


def divergence(p: np.ndarray, q: np.ndarray, cell: float = 1.0) -> float:
    """Jensen-Shannon divergence in nats of two densities on one grid whose cells have this size, or probabilities."""
    m = (p + q) / 2

    def kl(a: np.ndarray) -> float:
        inside = a > 0
        return float((a[inside] * np.log(a[inside] / m[inside])).sum() * cell)

    return (kl(p) + kl(q)) / 2


@dataclass(frozen=True)
class Mixture:
    """Round Gaussians: weights (K,), means (K, dim), standard deviations (K,)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def __call__(self, n: int, rng: np.random.Generator) -> np.ndarray:
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = rng.standard_normal((n, self.means.shape[1]))
        return (self.means[component] + self.stds[component, None] * noise).astype(np.float32)

    def density(self, x: np.ndarray) -> np.ndarray:
        """Of points (N, dim): (N,)."""
        found = np.zeros(len(x))
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            squared = ((x - mean) ** 2).sum(axis=1) / std**2
            found += weight * np.exp(-squared / 2) / (std * math.sqrt(2 * math.pi)) ** x.shape[1]
        return found


def mixture(means: object, std: object, weights: object = None) -> Mixture:
    places = np.asarray(means, dtype=np.float64)
    places = places[:, None] if places.ndim == 1 else places
    shares = np.full(len(places), 1 / len(places)) if weights is None else np.asarray(weights, dtype=np.float64)
    return Mixture(shares, places, np.broadcast_to(np.asarray(std, dtype=np.float64), len(places)))


def line_pair(name: str, p: Mixture, q: Mixture) -> Pair:
    x = np.linspace(-20, 20, 400_001)
    return Pair(name, PointSpace(1), p, q, divergence(p.density(x[:, None]), q.density(x[:, None]), x[1] - x[0]))


def plane_pair(name: str, p: Mixture, q: Mixture, reach: float, n_cells: int = 1500) -> Pair:
    x = (np.arange(n_cells) + 0.5) * (2 * reach / n_cells) - reach
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    return Pair(name, PointSpace(2), p, q, divergence(p.density(grid), q.density(grid), (2 * reach / n_cells) ** 2))


def independent_pixels(side: int, p_on: float, q_on: float) -> Pair:
    """Binary images whose pixels are on independently: the number of pixels on is all that matters, and binomial."""
    n_pixels = side * side
    k = np.arange(n_pixels + 1)
    log_ways = np.array([math.lgamma(n_pixels + 1) - math.lgamma(i + 1) - math.lgamma(n_pixels - i + 1) for i in k])

    def binomial(on: float) -> np.ndarray:
        return np.exp(log_ways + k * math.log(on) + (n_pixels - k) * math.log(1 - on))

    def drawing(on: float) -> Draw:
        return lambda n, rng: (rng.random((n, 1, side, side)) < on).astype(np.uint8)

    name = f"{side}x{side} images, pixels on with {p_on} or {q_on}"
    space = ImageSpace(1, side, side, 2)
    return Pair(name, space, drawing(p_on), drawing(q_on), divergence(binomial(p_on), binomial(q_on)))


def enumerated_images(side: int, coupling: float) -> Pair:
    """All binary images of this size: neighbours like to be equal (an Ising model), or pixels are independent."""
    n_pixels = side * side
    images = (np.arange(2**n_pixels)[:, None] >> np.arange(n_pixels) & 1).reshape(-1, 1, side, side).astype(np.uint8)
    spins = 2.0 * images - 1
    energy = (spins[..., 1:] * spins[..., :-1]).sum(axis=(1, 2, 3)) + (spins[..., 1:, :] * spins[..., :-1, :]).sum(
        axis=(1, 2, 3)
    )
    p = np.exp(coupling * energy)
    p /= p.sum()
    q = np.full(len(images), 1 / len(images))

    def drawing(probabilities: np.ndarray) -> Draw:
        return lambda n, rng: images[rng.choice(len(images), size=n, p=probabilities)]

    name = f"{side}x{side} images, neighbours alike or independent"
    return Pair(name, ImageSpace(1, side, side, 2), drawing(p), drawing(q), divergence(p, q))


def pairs() -> Iterator[Pair]:
    """Ten pairs, from a divergence of about 0.02 to about 0.65 nats."""
    yield line_pair("Gaussians 0.4 apart", mixture([0], 1), mixture([0.4], 1))
    yield line_pair("Gaussians 4 apart", mixture([0], 1), mixture([4], 1))
    yield line_pair("Gaussians of widths 1 and 2", mixture([0], 1), mixture([0], 2))
    yield line_pair("two modes or one", mixture([-1.5, 1.5], 0.5), mixture([0], 1.58))
    angle = 2 * math.pi * np.arange(8) / 8
    ring = np.stack([2 * np.cos(angle), 2 * np.sin(angle)], axis=1)
    yield plane_pair("ring of eight, and blurred by half", mixture(ring, 0.1), mixture(ring, 0.15), 3.2)
    grid = np.stack(np.meshgrid(np.arange(-4, 5, 2), np.arange(-4, 5, 2)), axis=-1).reshape(-1, 2)
    yield plane_pair("grid of 25, and 5 modes missing", mixture(grid, 0.1), mixture(grid[5:], 0.1), 5, 2000)
    yield plane_pair(
        "ring of eight, and turned by half a mode", mixture(ring, 0.3), mixture(ring @ _turn(math.pi / 8), 0.3), 4
    )
    yield enumerated_images(3, 0.35)
    yield independent_pixels(8, 0.5, 0.6)
    yield independent_pixels(16, 0.5, 0.54)


def _turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def measure(pair: Pair, n: int, seed: int, **settings: object) -> TwoSampleTest:
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    return classifier_two_sample_test(pair.p(n, rng), pair.q(n, rng), pair.space, seed=seed, **settings)  # type: ignore[arg-type]


def tell_pairs(n_seeds: int, shrink: int) -> None:
    print(f"| pair | true JSD | bound | 95 % interval | share | share, {n_seeds} seeds | low above true | seconds |")
    print(f"|{'---|' * 8}")
    n_near = n_above = 0
    for pair in pairs():
        n = (20_000 if isinstance(pair.space, PointSpace) else 10_000) // shrink
        start = time.perf_counter()
        found = [measure(pair, n, seed) for seed in range(n_seeds)]
        seconds = (time.perf_counter() - start) / n_seeds
        first, shares = found[0], [each.jsd_bound / pair.jsd for each in found]
        above = sum(each.jsd_low > pair.jsd for each in found)
        n_near += 0.85 <= shares[0] <= 1.15
        n_above += above
        print(
            f"| {pair.name} | {pair.jsd:.4f} | {first.jsd_bound:.4f} | {first.jsd_low:.4f} – {first.jsd_high:.4f}"
            f" | {shares[0]:.2f} | {np.mean(shares):.2f} ({min(shares):.2f} – {max(shares):.2f})"
            f" | {above} of {n_seeds} | {seconds:.0f} |",
            flush=True,
        )
    print(f"\nAt seed 0 within 15 % of the truth: {n_near} of 10. Low above true: {n_above} of {10 * n_seeds}.\n")


def alarms(
    draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], space: Space, n: int, steps: int
) -> None:
    start = time.perf_counter()
    found = []
    for seed in range(n):
        real, generated = draw(np.random.Generator(np.random.PCG64([seed, 2])))
        found.append(classifier_two_sample_test(real, generated, space, seed=seed, max_steps=steps))
    rejected = np.mean([each.p_value <= 0.05 for each in found])
    outside = np.mean([not each.null_low <= each.accuracy <= each.null_high for each in found])
    seconds = (time.perf_counter() - start) / n
    print(f" {n} | {100 * rejected:.1f} % | {100 * outside:.1f} % | {seconds:.1f} |", flush=True)


HEADER = f"repetitions | alarms at 5 % | accuracy outside its null interval | seconds each |\n|{'---|' * 6}"


def tell_null(n: int) -> None:
    print(f"| equal distributions | steps | {HEADER}")
    for size, steps in ((100, 150), (2000, 150)):
        print(f"| 2-D Gaussian, {size} points each | {steps} |", end="")
        alarms(lambda rng, size=size: _shifted(size, 0, rng), PointSpace(2), n, steps)  # type: ignore[misc]
    print("| digits in two random halves, 898 each | 25 |", end="")
    alarms(_digits, ImageSpace(1, 8, 8, 17), n, 25)


def tell_power(n: int) -> None:
    print(f"\n| different distributions | steps | {HEADER}")
    for size, shift in ((40, 1.0), (100, 0.5), (100, 1.0), (1000, 0.2)):
        print(f"| 2-D Gaussians {shift} apart, {size} points each | 300 |", end="")
        alarms(lambda rng, size=size, shift=shift: _shifted(size, shift, rng), PointSpace(2), n, 300)  # type: ignore[misc]


def _shifted(size: int, shift: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = rng.standard_normal((2, size, 2)).astype(np.float32)
    points[1, :, 0] += shift
    return points[0], points[1]


def _digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    data = load_data("digits")
    items = np.concatenate([split.read()[0] for split in data.splits.values()])
    items = items[rng.permutation(len(items))]
    return items[: len(items) // 2], items[len(items) // 2 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of each pair")
    parser.add_argument("--repetitions", type=int, default=200, help="of each row of null and power")
    parser.add_argument("--shrink", type=int, default=1, help="divides the sizes of the pairs' sets")
    parser.add_argument("--only", nargs="+", choices=("pairs", "null", "power"), default=("pairs", "null", "power"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if "pairs" in arguments.only:
        tell_pairs(arguments.seeds, arguments.shrink)
    if "null" in arguments.only:
        tell_null(arguments.repetitions)
    if "power" in arguments.only:
        tell_power(arguments.repetitions)


if __name__ == "__main__":
    main()
