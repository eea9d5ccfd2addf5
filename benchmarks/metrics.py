"""What measuring costs: all metrics but the trained discriminator, of 10,000 images against 10,000 held-out ones.

    python benchmarks/metrics.py path/to/cifar10_jpeg_train.zip --features random classifier --threads 2

Prints the seconds of each step and the most memory that the process ever held. The data are read with a fifth of them
as test split, so that 50,000 images leave 10,000 to compare with and 35,000 to look for copies in; the samples are
training images, as many. Reference rows are not among the steps: each costs as much as the samples again.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import triptych
from triptych.evaluation.pretrained import find_extractors
from triptych.evaluation.samples import SampleMeasures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--features", nargs="+", default=["random"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=10_000, help="images of each set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = triptych.load_data(arguments.source, test_fraction=0.2)
    if min(len(data.test), len(data.train)) < arguments.n:
        parser.error(f"{arguments.source} leaves {len(data.test):,} test images; {arguments.n:,} are needed")
    items = data.train.read(slice(0, arguments.n))[0]
    steps: list[tuple[str, float]] = []
    began = time.perf_counter()

    def tell(line: str) -> None:
        steps.append((line, time.perf_counter() - began))

    extractors, _ = find_extractors(arguments.features, data, seed=arguments.seed, device="cpu", tell=tell)
    tell("held-out features and statistics")
    measures = SampleMeasures(
        data, "test", extractors, discriminator=False, seed=arguments.seed, device="cpu", tell=tell
    )
    ready = time.perf_counter()
    found = measures.measure("samples", items).measurements
    done = time.perf_counter()
    ends = [*(start for _, start in steps[1:]), done - began]
    print(f"\n{arguments.n:,} samples, {len(data.test):,} held-out and {len(data.train):,} training images\n")
    print("| step | seconds |\n|---|---|")
    for (line, start), end in zip(steps, ends, strict=True):
        print(f"| {line} | {end - start:.1f} |")
    print(f"| **once, whatever the number of sets** | {ready - began:.1f} |")
    print(f"| **each set of samples** | {done - ready:.1f} |")
    print(f"| **together** | {done - began:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{len(found)} metrics; {peak:.2f} GiB at most, the data among them.")


if __name__ == "__main__":
    main()
