"""Trains, kills, resumes, samples, completes and evaluates in one process for long, and watches what it holds.

    python tests/soak.py --minutes 30

Each round takes a model of another panel: a training that a signal ends and that is resumed, one that is killed in a
process of its own and resumed in this one, draws, a score and a comparison of both. Prints a line a round and at the
end, as JSON, the growth of the resident memory after a fifth of the time, open files, threads and child processes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from chaos import child, small_set

import triptych
from triptych.models.registry import model_options

MODELS = ("vae", "gan", "pixel_cnn", "gaussian_mixture", "vq_vae", "made")
SMALL: dict[str, Any] = {"hidden": 8, "n_blocks": 1, "n_components": 3, "n_latents": 4, "n_codes": 5}
TRAIN: dict[str, Any] = {"budget": "60steps", "batch_size": 16, "validations": 3, "patience": 0, "verbose": False}
TRAIN |= {"checkpoint_every": "10steps"}
TOLERATED = 0.05


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def children() -> int:
    """Processes that this one has begun and that still are there."""
    tasks = Path("/proc/self/task")
    return sum(len((task / "children").read_text().split()) for task in tasks.iterdir())


def round_of(name: str, root: Path, rng: random.Random) -> None:
    """One round with one model."""
    data = small_set()
    options = {key: value for key, value in SMALL.items() if key in model_options(name)}

    def train(folder: Path) -> None:
        triptych.fit(name, data, out=folder, resume="auto", **TRAIN, **options)

    # Ended by a signal, and resumed.
    timer = threading.Timer(rng.uniform(0.02, 0.5), os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # for one that comes before or after the training
    timer.start()
    with contextlib.suppress(triptych.TrainingStopped):
        train(root / "a")
    timer.join()
    signal.signal(signal.SIGTERM, before)
    train(root / "a")
    # Killed elsewhere, and resumed here.
    pid = child(lambda: train(root / "b"))
    time.sleep(rng.uniform(0.02, 0.5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    train(root / "b")
    model = triptych.load(root / "a")
    triptych.sample(model, 32, out=root / "samples.png", verbose=False)
    triptych.evaluate([root / "a"], data, n_importance=2, n_samples=30, discriminator=True, verbose=False)
    shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, began, warm = random.Random(args.seed), time.monotonic(), None
    end, n_rounds, first = began + 60 * args.minutes, 0, None
    last: list[int] = []
    while time.monotonic() < end:
        for name in MODELS:
            with tempfile.TemporaryDirectory() as scratch:
                round_of(name, Path(scratch) / "runs", rng)
        n_rounds += 1
        gc.collect()
        held = {
            "minutes": round((time.monotonic() - began) / 60, 1),
            "mib": round(resident() / 2**20, 1),
            "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": children(),
        }
        print(json.dumps(held), flush=True)
        if warm is None and time.monotonic() > began + 12 * args.minutes:
            warm, first = resident(), held
        last = [*last[-4:], resident()]
    if warm is None or first is None:
        raise SystemExit("There was no time for a second round; give more --minutes.")
    growth = sorted(last)[len(last) // 2] / warm - 1
    print(json.dumps({"rounds": n_rounds, "growth": round(growth, 4), "first": first, "last": held}))
    leaks = [key for key in ("files", "threads", "children") if held[key] > first[key]]
    if growth > TOLERATED or leaks:
        raise SystemExit(f"Memory grew by {growth:.1%}; more than at first: {', '.join(leaks) or 'nothing'}.")


if __name__ == "__main__":
    sys.exit(main())
