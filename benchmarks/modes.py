"""Modes that a GAN finds on the ring of 8 and the grid of 25 Gaussians, over several seeds and objectives.

    python benchmarks/modes.py --data ring8 grid25 --games default minimax non_saturating --seeds 10 --out runs/modes

A mode counts as found if a tenth of its fair share of the 2,500 samples lies within three standard deviations of it;
of data 98.9 % lie within three of one. Runs that are finished in --out are read, not run again.
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
from triptych.cli.words import parse_settings
from triptych.data.points import POINT_SETS, GaussianMixture

N_SAMPLES = 2500
PLAIN: dict[str, Any] = {"penalty": "none", "n_means": 1, "discriminator_rate": 3e-3, "generator_rate": 3e-3}
GAMES: dict[str, dict[str, Any]] = {
    "default": {},
    # A generator without means, no penalty unless it is named, rates as plain games bear them; but with the Fourier
    # features that all discriminators of points have.
    "minimax": {"objective": "minimax", **PLAIN},
    "non_saturating": {"objective": "non_saturating", **PLAIN},
    "non_saturating+r1": {"objective": "non_saturating", **PLAIN, "penalty": "r1", "gamma": 0.1},
    "least_squares": {"objective": "least_squares", **PLAIN},
    "wasserstein": {"objective": "wasserstein", **PLAIN, "clip_weights": 0.01, "critic_steps": 5},
    "wasserstein+gradient": {"objective": "wasserstein", **PLAIN, "penalty": "gradient", "critic_steps": 5},
    "hinge": {"objective": "hinge", **PLAIN},
    "relativistic+r1_r2": {"objective": "relativistic", **PLAIN, "penalty": "r1_r2", "gamma": 0.1},
}


def modes_found(samples: np.ndarray, truth: GaussianMixture) -> tuple[int, float]:
    """Modes found, and the share of samples within three standard deviations of the nearest."""
    distances = np.sqrt(((samples[:, None] - truth.means) ** 2).sum(2)) / truth.stds  # (N, K)
    nearest, near = distances.argmin(1), distances.min(1) <= 3
    counts = np.bincount(nearest[near], minlength=len(truth.means))
    return int((counts >= 0.1 * truth.weights * len(samples)).sum()), float(near.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["ring8", "grid25"], choices=["ring8", "grid25"])
    parser.add_argument("--games", nargs="+", default=["default", "minimax", "non_saturating"], choices=list(GAMES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", default="8000steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="options of the model for all games, as gamma=0.1")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = parse_settings(arguments.set)
    print(f"| data | game | modes found in each seed | all found in | within 3 sigma | seconds |\n|{'---|' * 6}")
    for name in arguments.data:
        truth = POINT_SETS[name]()
        data = triptych.load_data(name)
        for game in arguments.games:
            found, near, seconds = [], [], []
            for seed in range(arguments.seeds):
                out = arguments.out / f"{name}-{game}-{seed}"
                settings = {**GAMES[game], **options, "budget": arguments.budget, "seed": seed, "verbose": False}
                model = triptych.fit("gan", data, out=out, resume=out.is_dir(), **settings)
                seconds.append(json.loads((out / "summary.json").read_text())["seconds"])
                n, share = modes_found(triptych.sample(model, N_SAMPLES, seed=1000 + seed), truth)
                found.append(n)
                near.append(100 * share)
            k = len(truth.means)
            spread = statistics.stdev(near) if len(near) > 1 else 0.0
            print(
                f"| {name} | {game} | {' '.join(map(str, found))} of {k} | {found.count(k)} of {len(found)} |"
                f" {statistics.mean(near):.1f} ± {spread:.1f} % (least {min(near):.1f}) | {max(seconds):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
