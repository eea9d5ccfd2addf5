"""What several processes that share each batch gain: throughput on 1, 2 and 4 of them, in one run.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [--models vae,pixel_cnn,gan] [--processes 1,2] [--rounds 5]

Each process computes with one thread. `--batch-size` is the whole batch's, the same however many share it.
The rounds alternate between the numbers of processes, since machines are noisy, and the ratios are of medians.
Efficiency is the throughput over that of one process and over the number of processes: 1 if nothing were lost. It needs
as many free cores as processes. "Apart" is the same for processes that run side by side, each on its part of a batch,
and exchange nothing: what the machine itself leaves of it. It also prints what a step sends, and a process's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from triptych import load_data
from triptych.config import TrainConfig
from triptych.models.registry import create_model
from triptych.training.devices import start
from triptych.training.trainer import Trainer

WARM_UP = 5


def measure(name: str, side: int, batch_size: int, steps: int) -> None:
    """In each process: trains, together and apart, and in the first one prints images a second and memory as JSON."""
    torch.set_num_threads(1)
    data = load_data(np.random.default_rng(0).integers(0, 256, (512, side, side, 3), dtype=np.uint8))
    budget = f"{steps + WARM_UP}steps"
    config = TrainConfig(budget=budget, batch_size=batch_size, validations=0, log_every=10**6, patience=0)
    fabric = start(config)
    speed, trainer = throughput(create_model(name, data.space), data, config, fabric, steps)
    found = {
        "images_per_second": speed,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "sent_mib": sum(p.numel() for phase in trainer.phases for p in phase.parameters) * 4 / 2**20,
    }
    if fabric.world_size > 1:
        config = replace(config, batch_size=batch_size // fabric.world_size)
        alone = Fabric(accelerator="cpu", devices=1)
        speed, _ = throughput(create_model(name, data.space), data, config, alone, steps)
        speeds = fabric.all_gather(torch.tensor(speed))
        found["apart"] = float(speeds.sum())
    if fabric.is_global_zero:
        print(json.dumps(found))


def throughput(model: Any, data: Any, config: TrainConfig, fabric: Fabric, steps: int) -> tuple[float, Trainer]:
    """Images a second of the processes that share a training, and the training."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, data, config, Path(folder), None, fabric)
        model, optimizers = trainer._set_up()
        for step in range(steps + WARM_UP):
            if step == WARM_UP:
                began = time.perf_counter()
            trainer._cycle(model, trainer.phases, optimizers, trainer.stream, trainer.noise, stage=0, progress=0.5)
            trainer._agree(at_once=False)
        seconds = time.perf_counter() - began
    return trainer.stream.position * steps / (steps + WARM_UP) / seconds, trainer


def run(n: int, arguments: list[str]) -> dict[str, float]:
    """One measurement on n processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), __file__]
    done = subprocess.run(
        [*command, "--measure", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vae")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.models, args.side, args.batch_size, args.steps)
        return
    counts = [int(n) for n in args.processes.split(",")]
    for name in args.models.split(","):
        sizes = ["--side", str(args.side), "--batch-size", str(args.batch_size), "--steps", str(args.steps)]
        found: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
        for _ in range(args.rounds):
            for n in counts:
                found[n].append(run(n, ["--models", name, *sizes]))
        usual = {n: statistics.median(one["images_per_second"] for one in found[n]) for n in counts}
        for n in counts:
            speeds = [one["images_per_second"] for one in found[n]]
            ideal = usual[counts[0]] * n / counts[0]
            apart = [one["apart"] for one in found[n] if "apart" in one]
            told = f" (apart {statistics.median(apart) / ideal:.2f})" if apart else ""
            print(
                f"{name}, {args.side}x{args.side}, batch {args.batch_size}, {n} processes: {usual[n]:.1f} images/s"
                f" ({min(speeds):.1f} to {max(speeds):.1f}), efficiency"
                f" {usual[n] / ideal:.2f}{told}, {found[n][-1]['mib']:.0f} MiB a process,"
                f" {found[n][-1]['sent_mib']:.1f} MiB sent a step"
            )


if __name__ == "__main__":
    main()
