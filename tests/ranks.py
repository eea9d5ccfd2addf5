"""Trains models on as many processes as torchrun begins; `test_parallel` holds the results against one process's.

torchrun --nproc-per-node 2 tests/ranks.py CASES.json FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from triptych import ImageSpace, load_data
from triptych.config import TrainConfig
from triptych.data.dataset import Dataset
from triptych.models.registry import create_model
from triptych.training import sharding
from triptych.training.devices import start
from triptych.training.trainer import Trainer


def striped(n: int = 160) -> Dataset:
    """Striped images, 8x8, 4 levels, two classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    wave = (np.arange(8)[None] + rng.integers(0, 2, (n, 1))) // 2 % 2 * 3
    images = np.where(labels[:, None, None] == 0, wave[:, None, :], wave[:, :, None])
    noisy = np.where(rng.random((n, 8, 8)) < 0.05, rng.integers(0, 4, (n, 8, 8)), images)
    return load_data(noisy.astype(np.uint8), labels=labels, levels=4)


def train(case: dict[str, Any], folder: Path, **more: Any) -> None:
    """A short training as a case says: its model, options, classes, data and settings."""
    data = load_data(case["source"]) if "source" in case else striped()
    settings = {"budget": "6steps", "batch_size": 16, "validations": 2, "log_every": 3, "warmup_steps": 2}
    config = TrainConfig(**{**settings, **case.get("settings", {}), **more})
    fabric = start(config)
    sharding.LEAST_WEIGHTS = 1  # so that every block is one by itself
    torch.manual_seed(config.seed)
    model = create_model(case["model"], data.space, n_classes=case.get("n_classes", 0), **case.get("options", {}))
    trainer = Trainer(model, data, config, folder / case["name"], None, fabric)
    first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if "die" in case and first_time and fabric.global_rank == case["die"]["rank"]:
        update = trainer._update_ema

        def dying() -> None:
            if trainer.step == case["die"]["step"]:
                os.kill(os.getpid(), signal.SIGKILL)
            update()

        trainer._update_ema = dying  # type: ignore[method-assign]
    if case.get("starved"):
        starve_exchange()
    trainer.fit(resume=bool(trainer.checkpoints.paths()))


def starve_exchange() -> None:
    """Lets the threads that send and receive run only when a processor has nothing else to do."""
    for thread in Path("/proc/self/task").iterdir():
        if "gloo_runloop" in (thread / "comm").read_text():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def tell_parts(folder: Path) -> None:
    """Writes the share of a VAE's weights that this process holds, and has while it uses them, to RANK.json."""
    fabric = start(TrainConfig(device="cpu", strategy="fsdp"))
    model = create_model("vae", ImageSpace(1, 8, 8, 4))
    n_weights = sum(p.numel() for p in model.parameters())
    model = sharding.shard(model, fabric.device)
    held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    with sharding.whole(model):
        n_whole = sum(p.numel() for p in model.parameters() if not sharding.is_part(p))
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps([held / n_weights, n_whole / n_weights]))


def train_all(cases: list[dict[str, Any]], folder: Path) -> None:
    """One training after the other."""
    for case in cases:
        train(case, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
