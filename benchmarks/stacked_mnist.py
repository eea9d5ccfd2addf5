"""Stacked MNIST: of the 1,000 triples of digits in the colour channels, how many does a GAN draw?

    python benchmarks/stacked_mnist.py path/to/mnist --games default non_saturating --budget 20m --out runs/stacked

A mode counts as found if one of the samples is classified as it, channel by channel, by a classifier that is trained
here on the single digits; its accuracy is stated. The divergence is KL(modes of the samples || modes of as many real
images), nats, as the classifier sees both. Runs that are finished in --out are read, not run again.

Source of the experiment:
    Unrolled Generative Adversarial Networks, Metz et al. 2017, arXiv:1611.02163, section 3.3.2; number of samples:
    PacGAN, Lin et al. 2018, arXiv:1712.04086, section 4.1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import triptych
from triptych.evaluation.features import ClassifierFeatures

N_TRAIN, N_SAMPLES, N_MODES = 128_000, 26_000, 1000
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("gan", {}),
    "minimax": ("gan", {"objective": "minimax", "penalty": "none"}),
    "non_saturating": ("gan", {"objective": "non_saturating", "penalty": "none"}),
    "least_squares": ("gan", {"objective": "least_squares", "penalty": "none"}),
    "wasserstein+gradient": ("gan", {"objective": "wasserstein", "penalty": "gradient"}),
    "hinge": ("gan", {"objective": "hinge", "penalty": "none"}),
    "relativistic+r1_r2": ("gan", {"objective": "relativistic", "penalty": "r1_r2"}),
    "dcgan": ("gan", {"network": "dcgan"}),
    "r3_gan": ("r3_gan", {}),
}


def stacked(digits: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Three random digits in the colour channels: (n, 3, H, W) of grey ones (N, 1, H, W)."""
    chosen = np.random.default_rng(seed).integers(len(digits), size=(n, 3))
    return digits[chosen, 0]


def modes_of(images: np.ndarray, classifier: ClassifierFeatures) -> np.ndarray:
    """How many images are seen as each triple, int64, (1000,)."""
    digits = classifier.classify(images.reshape(-1, 1, *images.shape[2:])).reshape(-1, 3)
    return np.bincount(digits @ np.array([100, 10, 1]), minlength=N_MODES)


def kl(counts: np.ndarray, reference: np.ndarray) -> float:
    """KL(counts || reference) of two histograms, nats; the reference is smoothed by one half."""
    p, q = counts / counts.sum(), (reference + 0.5) / (reference + 0.5).sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="MNIST")
    parser.add_argument("--games", nargs="+", default=["default", "non_saturating"], choices=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    mnist = triptych.load_data(arguments.source)
    classifier = ClassifierFeatures.train(mnist)
    data = triptych.load_data(stacked(mnist.train.read()[0], N_TRAIN, 0))
    real = modes_of(stacked(mnist.test.read()[0], N_SAMPLES, 1), classifier)
    again = modes_of(stacked(mnist.train.read()[0], N_SAMPLES, 2), classifier)
    print(f"Classifier of single digits: {classifier.accuracy:.2%} of the test digits right.\n")
    print(f"| game | modes of 1,000 | KL (nats) | minutes |\n|{'---|' * 4}")
    print(f"| training digits | {(again > 0).sum()} | {kl(again, real):.3f} | |", flush=True)
    for game in arguments.games:
        name, options = MODELS[game]
        found, divergences, minutes = [], [], []
        for seed in arguments.seeds:
            out = arguments.out / f"{game.replace(' ', '-')}-{seed}"
            model = triptych.fit(
                name,
                data,
                out=out,
                resume=out.is_dir(),
                budget=arguments.budget,
                seed=seed,
                precision=arguments.precision,
                **options,
            )
            minutes.append(json.loads((out / "summary.json").read_text())["seconds"] / 60)
            counts = modes_of(triptych.sample(model, N_SAMPLES, seed=1000 + seed), classifier)
            found.append(int((counts > 0).sum()))
            divergences.append(kl(counts, real))
        spread = f" ± {statistics.stdev(divergences):.3f}" if len(divergences) > 1 else ""
        print(
            f"| {game} | {' '.join(map(str, found))} | {statistics.mean(divergences):.3f}{spread} |"
            f" {max(minutes):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
