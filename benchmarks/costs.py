"""What every model costs at several resolutions: time, memory and disk, as `triptych fit --dry-run` finds them.

    OMP_NUM_THREADS=1 python benchmarks/costs.py [--models vae,gan] [--sides 8,16,32,64] [--batch-size 32] [--limit 240]

Each case is estimated in a process of its own, on random RGB images of 256 levels, with default settings; one that
takes longer than `--limit` seconds is left out. Memory is the most that the process held, PyTorch itself (some 0.35
GiB) included. Prints a table a quantity: images a second, GiB, MiB on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np

import triptych
from triptych.models.registry import find_models


def measure(model: str, side: int, batch_size: int) -> dict[str, float]:
    """One case, in this process."""
    images = np.random.default_rng(0).integers(0, 256, (1500, side, side, 3), dtype=np.uint8)
    cost = triptych.estimate(model, images, batch_size=batch_size)
    if cost is None:
        return {}
    return {
        "images/s": batch_size / cost.seconds_per_step,
        "GiB": cost.memory_bytes / 2**30,
        "MiB on disk": cost.disk_bytes / 2**20,
        "parameters": cost.n_parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(find_models()))
    parser.add_argument("--sides", default="8,16,32,64")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=float, default=240.0)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.models, int(args.sides), args.batch_size)))
        return
    sides = args.sides.split(",")
    tables: dict[str, list[str]] = {}
    for model in args.models.split(","):
        found: dict[str, list[str]] = {}
        for place, side in enumerate(sides):
            command = [sys.executable, __file__, "--measure", "--models", model, "--sides", side]
            command += ["--batch-size", str(args.batch_size)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
            except subprocess.TimeoutExpired:
                break  # Larger ones take longer.
            if done.returncode:
                raise SystemExit(done.stderr)
            for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault(key, ["-"] * len(sides))[place] = f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
        print(model, found, file=sys.stderr, flush=True)
        for key, values in found.items():
            tables.setdefault(key, []).append(f"| {model} | {' | '.join(values)} |")
    for key, rows in tables.items():
        print(f"\n| {key} | {' | '.join(f'{side}x{side}' for side in sides)} |\n|---{'|---' * len(sides)}|")
        print("\n".join(rows))


if __name__ == "__main__":
    main()
