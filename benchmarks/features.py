"""Do the features see what they should? Fréchet distances of real and of spoiled items, and the classifier's accuracy.

python benchmarks/features.py digits path/to/mnist path/to/cifar10.zip
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from PIL import Image, ImageFilter

import triptych
from triptych.evaluation.features import ClassifierFeatures, RandomConvFeatures
from triptych.evaluation.two_sample import frechet_distance, gaussian_statistics


def blurred(items: np.ndarray) -> np.ndarray:
    """Every channel under a Gaussian blur of one pixel."""
    flat = items.reshape(-1, *items.shape[2:])
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in flat]).reshape(items.shape)


def half_blank(items: np.ndarray) -> np.ndarray:
    """The lower half at level 0."""
    spoiled = items.copy()
    spoiled[:, :, items.shape[2] // 2 :] = 0
    return spoiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for source in arguments.sources:
        data = triptych.load_data(source)
        rng = np.random.default_rng(0)
        held_out = data.test.read()[0]
        n = len(held_out)
        train = data.train.read(np.sort(rng.permutation(len(data.train))[:n]))[0]
        noise = rng.integers(0, data.space.levels, held_out.shape).astype(held_out.dtype)
        start = time.perf_counter()
        classifier = ClassifierFeatures.train(data)
        seconds = time.perf_counter() - start
        sets = {
            "train vs held-out": train,
            "blurred": blurred(held_out),
            "half blank": half_blank(held_out),
            "noise": noise,
        }
        print(f"{data.name}, {n} items; classifier {classifier.accuracy:.1%} in {seconds:.0f} s", flush=True)
        for features in (RandomConvFeatures(data.space), classifier):
            start = time.perf_counter()
            reference = gaussian_statistics(features(held_out))
            found = {name: frechet_distance(gaussian_statistics(features(x)), reference) for name, x in sets.items()}
            values = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
            print(f"  FD ({features.key} features): {values}; {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
