"""How near the estimate that `triptych fit --dry-run` prints comes to what then happens.

    OMP_NUM_THREADS=1 python benchmarks/estimates.py digits ring8 [path/to/mnist ...] [--models pixel_cnn,vae,gan]

For each model and source: the estimate, in a process of its own; then the training, in another, for as many steps as
are foretold to take `--seconds`, and 50 at least. Time is from the first step to the end, memory the most that the
process held, disk the run folder with room for one more checkpoint. Prints foretold over measured; 1 is right.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triptych
from triptych.config import Budget


def peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def foretell(model: str, source: str, seconds: float) -> dict[str, Any]:
    """The estimate, for a budget of steps that takes so many seconds."""
    cost = triptych.estimate(model, source, budget="1000steps")
    assert cost is not None
    steps = max(50, int((seconds - cost.seconds_beside) / cost.seconds_per_step))
    budget = f"{steps}steps"
    foretold = cost.seconds(Budget.parse(budget))
    return {"budget": budget, "seconds": foretold, "memory": cost.memory_bytes, "disk": cost.disk_bytes}


def train(model: str, source: str, budget: str) -> dict[str, Any]:
    """What the training took."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        triptych.fit(model, source, out=run, budget=budget, patience=0, verbose=False)
        seconds = json.loads((run / "summary.json").read_text())["seconds"]
        sizes = [path.stat().st_size for path in run.rglob("*") if path.is_file()]
        checkpoint = max(path.stat().st_size for path in (run / "checkpoints").iterdir())
    return {"seconds": seconds, "memory": peak(), "disk": sum(sizes) + checkpoint}


def apart(*arguments: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--models", default="pixel_cnn,vae,gan")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--foretell", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.foretell:
        print(json.dumps(foretell(args.models, args.sources[0], args.seconds)))
        return
    if args.train:
        print(json.dumps(train(args.models, args.sources[0], args.train)))
        return
    print("| source | model | steps | seconds | foretold / measured: time | memory | disk |")
    print("|---" * 7 + "|")
    for source in args.sources:
        for model in args.models.split(","):
            if source in ("ring8", "grid25", "moons") and model == "pixel_cnn":
                continue
            told = apart(source, "--models", model, "--seconds", str(args.seconds), "--foretell")
            took = apart(source, "--models", model, "--train", told["budget"])
            ratios = " | ".join(f"{told[key] / took[key]:.2f}" for key in ("seconds", "memory", "disk"))
            steps = told["budget"].removesuffix("steps")
            print(f"| {Path(source).name} | {model} | {steps} | {took['seconds']:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
