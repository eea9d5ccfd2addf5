"""Kills trainings and holds what is left against trainings that nobody killed: `python tests/chaos.py --kills 50`.

Two kinds of death: SIGKILL at random moments, once or several times in a run, over all models; and, for one model, at
every single call that makes a file durable, before it and after it. Each run is then resumed to its end, and weights,
averages, optimisers, metrics and samples must be identical to the last bit. Runs are forked from this process, which
has imported everything, so that the moments fall into the training and not into imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import triptych
import triptych.files
from triptych.data.dataset import Dataset
from triptych.models.registry import find_models, model_options
from triptych.training import trainer  # noqa: F401 - imports Lightning Fabric before the first fork
from triptych.training.checkpoints import Checkpoints
from triptych.training.files import Records, read_json

SMALL: dict[str, Any] = {"hidden": 8, "n_blocks": 1, "n_layers": 1, "n_components": 3, "n_latents": 4, "n_codes": 5}
TRAIN: dict[str, Any] = {"budget": "48steps", "batch_size": 8, "validations": 6, "log_every": 5, "patience": 0}
TRAIN |= {"checkpoint_every": "7steps", "validation_items": 20}
FREE = {"elapsed_seconds", "seconds", "metrics_bytes", "lost_steps", "environment"}
"""Fields that tell the time, and so are never the same twice; the count of what was lost, and the place."""


def small_set() -> Dataset:
    """Striped images, 8x8, 4 levels, two classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    wave = (np.arange(8)[None] + rng.integers(0, 2, (120, 1))) // 2 % 2 * 3
    images = np.where(labels[:, None, None] == 0, wave[:, None, :], wave[:, :, None])
    noisy = np.where(rng.random((120, 8, 8)) < 0.05, rng.integers(0, 4, (120, 8, 8)), images)
    return triptych.load_data(noisy.astype(np.uint8), labels=labels, levels=4)


def child(work: Callable[[], object]) -> int:
    """Does some work in a forked process; returns its process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def train(name: str, data: Dataset, folder: Path) -> None:
    """Begins or resumes a run, as far as it has come."""
    options = {key: value for key, value in SMALL.items() if key in model_options(name)}
    begun = (folder / "config.json").is_file()
    conditional = sum(map(ord, name)) % 2 == 0  # some of the models, always the same
    triptych.fit(name, data, out=folder, resume=begun, conditional=conditional, verbose=False, **TRAIN, **options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a.keys() - FREE)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b)


def differences(whole: Path, killed: Path) -> list[str]:
    """Files in which a run that was killed and resumed differs from one that was not."""
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    found = sorted(str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file())
    wrong = sorted(set(names) ^ set(found))
    for name in set(names) & set(found) - {"run.lock"}:
        a, b = whole / name, killed / name
        if name.startswith("checkpoints"):
            continue  # Read below, with their checksums.
        if name.endswith(".jsonl"):
            equal = same(Records.read(a), Records.read(b))
        elif name.endswith(".json"):
            equal = same(read_json(a), read_json(b))
        else:
            equal = a.read_bytes() == b.read_bytes()
        wrong += [name] * (not equal)
    if Checkpoints(whole, 2).paths():
        saved = [Checkpoints(run, 2).read() for run in (whole, killed)]
        wrong += ["the last checkpoint"] * (not same(saved[0], saved[1]))
    return wrong


def finish(name: str, data: Dataset, folder: Path) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child(lambda: train(name, data, folder)), 0)[1]) == 0


def kill_at_random(name: str, data: Dataset, folder: Path, seconds: float, n_kills: int, rng: random.Random) -> int:
    """Begins a run and kills it up to so many times within the time it takes; returns how often it died."""
    died = 0
    for _ in range(n_kills):
        pid = child(lambda: train(name, data, folder))
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        died += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return died


def kill_at_write(name: str, data: Dataset, folder: Path, number: int) -> bool:
    """Begins a run that dies at one of its writes: at call number // 2 of fsync or rename, before or after it.

    Returns:
        Whether it died; False if it does not write so often.
    """
    calls = 0

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: Any) -> object:
            nonlocal calls
            calls += 1
            if calls == number // 2 + 1 and number % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments)
            if calls == number // 2 + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return count

    def work() -> None:
        os.replace, os.fsync = deadly(os.replace), deadly(os.fsync)  # type: ignore[assignment]
        train(name, data, folder)

    return os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1]) == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random moments, at least")
    parser.add_argument("--models", default="", help="with commas between; all by default")
    parser.add_argument("--every-write", default="", metavar="MODEL", help="kill this one at each of its writes too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # A pool of threads would not survive the fork.
    rng = random.Random(args.seed)
    names = [name for name in args.models.split(",") if name] or list(find_models())
    data, began = small_set(), time.perf_counter()
    n_died = n_runs = n_identical = 0
    with tempfile.TemporaryDirectory() as scratch:
        root, seconds = Path(scratch), {}

        def judge(what: str, name: str, folder: Path) -> None:
            nonlocal n_runs, n_identical
            n_runs += 1
            sound = finish(name, data, folder)
            wrong = differences(root / name, folder) if sound else ["it cannot be resumed"]
            n_identical += not wrong
            if wrong:
                print(f"{what}: differs in {', '.join(wrong)}")
            shutil.rmtree(folder)

        def begin(name: str) -> None:
            if name not in seconds:
                start = time.perf_counter()
                if not finish(name, data, root / name):
                    raise SystemExit(f"{name} does not train.")
                seconds[name] = time.perf_counter() - start

        while n_died < args.kills:
            for name in names:
                begin(name)
                folder, n_kills = root / "killed", rng.choice((1, 1, 2, 3))
                died = kill_at_random(name, data, folder, seconds[name], n_kills, rng)
                if folder.exists():  # else it died before it had begun
                    judge(f"{name}, killed {died} times", name, folder)
                n_died += died
                if n_died >= args.kills:
                    break
        n_writes = 0
        if args.every_write:
            begin(args.every_write)
            while kill_at_write(args.every_write, data, root / "killed", n_writes):
                if (root / "killed").exists():
                    judge(f"{args.every_write}, killed at write {n_writes / 2:g}", args.every_write, root / "killed")
                n_writes += 1
        result = {"models": len(names), "kills at random": n_died, "kills at a write": n_writes, "runs": n_runs}
        print(json.dumps(result | {"identical": n_identical, "seconds": round(time.perf_counter() - began)}))
    if n_identical < n_runs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
