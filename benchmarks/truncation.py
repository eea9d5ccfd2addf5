"""The trade-off that truncating the latents of a GAN makes: fidelity for variety, as a table and a plot.

    python benchmarks/truncation.py runs/big_gan-mnist --truncations 0.1 0.25 0.5 1 2 --out truncation.png

Each row compares as many samples as there are held-out items (4,000 at most) with them, in the features of a classifier
of the labels, or in random ones where there are none; `none` is the prior as it is.

Source of the experiment:
    Large Scale GAN Training for High Fidelity Natural Image Synthesis, Brock, Donahue & Simonyan 2019,
    arXiv:1809.11096, section 3.1 and appendix D.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import triptych
from triptych.api import data_of
from triptych.evaluation.features import ClassifierFeatures, FeatureExtractor, RandomConvFeatures
from triptych.evaluation.two_sample import frechet_distance, gaussian_statistics, mean_distance, precision_recall
from triptych.spaces import ImageSpace
from triptych.training.run import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--truncations", nargs="+", type=float, default=[0.1, 0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("truncation.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, config = read_run(arguments.run)
    data = data_of(config, arguments.run)
    if not isinstance(data.space, ImageSpace):
        parser.error("truncation is measured on images")
    extractor: FeatureExtractor = (
        ClassifierFeatures.train(data) if data.n_classes > 1 else RandomConvFeatures(data.space)
    )
    held_out = extractor(data.test.read(slice(0, arguments.n))[0])
    reference, spread = gaussian_statistics(held_out), mean_distance(held_out)
    print(f"{extractor.description}; {len(held_out)} held-out items\n")
    print(f"| truncation | FD | precision | recall | diversity |\n|{'---|' * 5}")
    curve = []
    for limit in [*sorted(arguments.truncations), None]:
        features = extractor(triptych.sample(model, len(held_out), truncation=limit, verbose=False))
        precision, recall = precision_recall(held_out, features)
        distance = frechet_distance(gaussian_statistics(features), reference)
        diversity = mean_distance(features) / spread
        curve.append((precision, recall, distance, "none" if limit is None else f"{limit:g}"))
        print(f"| {curve[-1][3]} | {distance:.4g} | {precision:.3f} | {recall:.3f} | {diversity:.3f} |", flush=True)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    precisions, recalls, distances, names = zip(*curve, strict=True)
    left.plot(recalls, precisions, "o-")
    left.set(xlabel="recall", ylabel="precision", title="fidelity against variety")
    right.plot(range(len(names)), distances, "o-")
    right.set_xticks(range(len(names)), names)
    right.set(xlabel="truncation", ylabel="FD", yscale="log", title="Fréchet distance to held-out images")
    left.margins(0.15)
    last = -1.0
    for x, y, name in zip(recalls, precisions, names, strict=True):
        if abs(x - last) > 0.02:  # Names of points that lie on each other cannot be read.
            left.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points")
            last = x
    figure.savefig(arguments.out, dpi=120)
    print(f"\nplot -> {arguments.out}")


if __name__ == "__main__":
    main()
