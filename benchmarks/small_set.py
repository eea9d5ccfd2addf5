"""GANs on few images, with and without augmentation inside the discriminator: which diverge or learn them by heart?

    python benchmarks/small_set.py path/to/mnist --augment none diff adaptive --seeds 5 --budget 3m --out runs/few

The distance is that of the watch (squared Fréchet distance in random features, of samples and validation items): the
least of the training, and the last. A training has diverged if the last is more than four times the least, or if the
watch has named a divergence. Runs that are finished in --out are read, not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import torch

import triptych
from triptych.data.dataset import Split
from triptych.errors import TrainingInterrupted, TrainingStopped
from triptych.training.files import Records
from triptych.training.watch import DIVERGED


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--n", type=int, default=500, help="training images")
    parser.add_argument("--model", default="gan")
    parser.add_argument("--augment", nargs="+", default=["none", "diff", "adaptive"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whole = triptych.load_data(arguments.source)
    chosen = np.sort(np.random.default_rng(0).permutation(len(whole.train))[: arguments.n])
    data = dataclasses.replace(whole, train=Split(*whole.train.read(chosen)))
    print(f"| augment | least distance | last distance | diverged | other findings | copies |\n|{'---|' * 6}")
    for augment in arguments.augment:
        least, last, diverged, others, copies = [], [], 0, set(), []
        for seed in range(arguments.seeds):
            out = arguments.out / f"{augment}-{seed}"
            settings = {"budget": arguments.budget, "precision": arguments.precision, "augment": augment, "seed": seed}
            try:
                triptych.fit(arguments.model, data, out=out, resume=out.is_dir(), rollbacks=0, **settings)
            except TrainingInterrupted:
                raise
            except TrainingStopped:  # A loss that is no longer finite.
                diverged += 1
                continue
            looks = [line for line in Records.read(out / "metrics.jsonl") if "valid/fd_random" in line]
            distances = [line["valid/fd_random"] for line in looks]
            findings = [text.partition(": ")[2] for text in json.loads((out / "summary.json").read_text())["findings"]]
            least.append(min(distances))
            last.append(distances[-1])
            copies.append(100 * looks[-1]["samples/copies"])
            diverged += distances[-1] > DIVERGED * min(distances) or any(f.startswith("divergence") for f in findings)
            others |= {text.partition(":")[0] for text in findings} - {"divergence"}
        print(
            f"| {augment} | {spread(least)} | {spread(last)} | {diverged} of {arguments.seeds} |"
            f" {', '.join(sorted(others)) or 'none'} | {spread(copies)} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
