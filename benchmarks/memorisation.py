"""Who copies, and who is accused of it: memorisation of samples whose origin is known, and the level of the test.

    python benchmarks/memorisation.py path/to/mnist --repetitions 200

Prints, for digits (and for MNIST, if it is given) in the features of random convolutions and for two moons in their
coordinates, what each set of samples comes to; then the share of repetitions without any copying in which C_T is
significant at 5 %, and in which the verdict accuses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import triptych
from triptych.data.dataset import Dataset
from triptych.evaluation.features import Coordinates, RandomConvFeatures
from triptych.evaluation.memorisation import Memory, TrainingNeighbours
from triptych.evaluation.results import format_value
from triptych.spaces import ImageSpace


def shifted(images: np.ndarray) -> np.ndarray:
    """A pixel to the right."""
    return np.roll(images, 1, axis=3)


def sets_of(data: Dataset, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Samples by where they come from: as many as held-out items, but no more new ones than the valid split has."""
    n = len(data.test)
    train, (new, labels) = data.train.read()[0], data.valid.read()
    new = new[:n]
    copies = train[rng.integers(len(train), size=n)]
    yield "new items", new
    if labels is not None:
        yield "new items of one class", new[labels[:n] == 1]
    yield "copies", copies
    for share in (0.1, 0.3):
        is_copy = (np.arange(len(new)) < share * len(new)).reshape(-1, *[1] * (new.ndim - 1))
        yield f"{share:.0%} copies", np.where(is_copy, copies[: len(new)], new)
    if isinstance(data.space, ImageSpace):
        levels = data.space.levels
        noise = (rng.random(copies.shape) < 0.05) * (levels // 16)
        noisy = np.clip(copies.astype(np.int64) + noise, 0, levels - 1)
        yield "copies, 5 % of their pixels a little lighter", noisy.astype(copies.dtype)
        yield "copies, a pixel to the right", shifted(copies)
        if data.space.n_dims <= 100:
            flat = train.reshape(len(train), -1).astype(np.float64)
            mixture = GaussianMixture(20, reg_covar=levels / 16, random_state=0).fit(flat)
            drawn = mixture.sample(n)[0].round().clip(0, levels - 1).astype(train.dtype)
            yield "Gaussian mixture, 20 components", drawn.reshape(n, *data.space.shape)
        return
    widths = np.geomspace(0.01, 1, 13)
    fitting = max(widths, key=lambda width: KernelDensity(bandwidth=width).fit(train).score(new))
    for width in (1e-4, fitting):
        drawn = copies + width * rng.normal(size=copies.shape)
        yield f"kernel density of width {width:.2g}", drawn.astype(np.float32)
    mixture = GaussianMixture(20, random_state=0).fit(train)
    yield "Gaussian mixture, 20 components", mixture.sample(n)[0].astype(np.float32)


def line(name: str, found: Memory | None) -> str:
    if found is None:
        return f"| {name} | | | | | | | too few |"
    ratio = "" if found.distance_ratio is None else format_value(found.distance_ratio[0])
    c_t = "" if found.copying is None else f"{found.copying.c_t:+.1f}"
    support = ("≥ " if found.support.is_bound else "") + format_value(round(found.support.n_items))
    answer = found.describe("").split(": ")[1]
    near = f"{100 * found.near:.1f} %"
    return f"| {name} | {found.n:,} | {ratio} | {c_t} | {found.authenticity[0]:.2f} | {near} | {support} | {answer} |"


def level(features: np.ndarray, sizes: tuple[int, int, int], n: int) -> tuple[float, float]:
    """Shares of random divisions in which C_T is significant, and in which the verdict accuses."""
    significant = accused = 0
    for seed in range(n):
        order = np.random.default_rng(seed).permutation(len(features))
        train, held_out, new = np.split(features[order[: sum(sizes)]], np.cumsum(sizes)[:2])
        found = TrainingNeighbours(train, held_out, seed=seed).measure(new)
        assert found is not None
        significant += found.copying is not None and found.copying.p_value < 0.05
        accused += "no sign" not in found.describe("")
    return significant / n, accused / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    levels = []
    for source in ("digits", "moons", *arguments.sources):
        data = triptych.load_data(source)
        space = data.space
        features = RandomConvFeatures(space) if isinstance(space, ImageSpace) else Coordinates(space)
        memory = TrainingNeighbours(features(data.train.read()[0]), features(data.test.read()[0]))
        print(f"\n{data.name}, {len(data.train):,} training and {len(data.test):,} held-out items\n")
        print("| samples | n | distance ratio | C_T | authenticity | close | support | does it only remember? |")
        print(f"|{'---|' * 8}")
        for name, samples in sets_of(data, np.random.default_rng(0)):
            print(line(name, memory.measure(features(samples))), flush=True)
        everything = np.concatenate([features(split.read()[0]) for split in data.splits.values()])
        for sizes in ((1000, 390, 390), (1500, 140, 140)):
            levels.append((data.name, sizes, *level(everything, sizes, arguments.repetitions)))
    print("\n| new items of | train, held-out, samples | C_T significant at 5 % | accused |\n|---|---|---|---|")
    for name, sizes, significant, accused in levels:
        print(f"| {name} | {', '.join(f'{n:,}' for n in sizes)} | {significant:.1%} | {accused:.1%} |")


if __name__ == "__main__":
    main()
