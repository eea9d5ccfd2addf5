"""What the training loop costs over a plain PyTorch loop of the same network, batch and optimiser.

Both loops run in turn, in blocks of steps, in one process; each pair of blocks gives a ratio of times, and their median
is printed with an interval. Both loops are made anew several times over. They are measured bare (forward, backward,
Adam) and with what the loop does by default on top, written by hand in the plain loop: gradient clipping and a moving
average of the weights.

    python benchmarks/training_loop.py --models pixel_cnn vae gan --data digits
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import triptych
from triptych.config import Budget, TrainConfig
from triptych.data.dataset import Dataset
from triptych.models.base import Batch, GenerativeModel
from triptych.training.files import Records
from triptych.training.progress import TrainingProgress
from triptych.training.trainer import FILM_AT, Trainer

BATCH_SIZE = 32
Loop = Callable[[int], object]
"""Runs so many steps of a training."""


def plain_loop(model: GenerativeModel, data: Dataset, same_work: bool) -> Loop:
    """A hand-written loop over the model's phases; returns a function that runs so many cycles of it."""
    x = torch.from_numpy(data.train.read()[0])
    phases = model.phases()
    optimizers = [torch.optim.AdamW(p.parameters, lr=p.learning_rate, betas=p.betas, fused=True) for p in phases]
    average = copy.deepcopy(model).requires_grad_(False)
    order, position = torch.randperm(len(x)), 0

    def run(n_cycles: int) -> None:
        nonlocal order, position
        for _ in range(n_cycles):
            for phase, optimizer in zip(phases, optimizers, strict=True):
                if len(phases) > 1:
                    model.requires_grad_(False)
                    for parameter in phase.parameters:
                        parameter.requires_grad_(True)
                for _ in range(phase.steps):
                    if position + BATCH_SIZE > len(x):
                        order, position = torch.randperm(len(x)), 0
                    batch = x[order[position : position + BATCH_SIZE]]
                    position += BATCH_SIZE
                    loss = model.loss(Batch(batch), phase.name)
                    optimizer.zero_grad(set_to_none=True)
                    loss.total.backward()
                    if same_work and phase.clip_norm:
                        torch.nn.utils.clip_grad_norm_(phase.parameters, phase.clip_norm)
                    optimizer.step()
            if same_work:
                with torch.no_grad():
                    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 0.001)

    return run


def our_loop(model: GenerativeModel, data: Dataset, folder: Path, bare: bool) -> Loop:
    """The trainer's own loop, a block at a time; validations, grids and checkpoints are off."""
    settings: dict[str, Any] = {"clip_norm": 0.0, "ema_decay": 0.0} if bare else {}
    config = TrainConfig(budget="1steps", validations=0, checkpoint_every="1000000steps", **settings)
    trainer = Trainer(model, data, config, folder)
    wrapped, optimizers = trainer._set_up()
    trainer.n_films = len(FILM_AT)
    records, bar = Records(folder / "metrics.jsonl"), TrainingProgress("", None)

    def run(n_cycles: int) -> None:
        trainer.budget = Budget("steps", trainer.step + n_cycles)
        trainer._loop(wrapped, optimizers, records, bar)

    return run


def ratios_of(name: str, data: Dataset, bare: bool, rounds: int, pairs: int, steps: int) -> list[float]:
    """Times of our loop over the plain one's, for pairs of blocks that follow each other.

    Where a network's memory comes to lie changes its speed by some percent, so every round makes both anew.
    """
    ratios = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(number)
            model = triptych.create_model(name, data.space)
            loops: dict[str, Loop] = {}
            for loop in sorted(("plain", "ours"), reverse=number % 2 == 0):
                own = copy.deepcopy(model)
                loops[loop] = (
                    plain_loop(own, data, same_work=not bare)
                    if loop == "plain"
                    else our_loop(own, data, Path(folder), bare)
                )
            for run in loops.values():
                run(steps)
            ratios += time_pairs(loops["ours"], loops["plain"], pairs, steps)
    return ratios


def time_pairs(ours: Loop, other: Loop, pairs: int, steps: int) -> list[float]:
    """Times of so many steps of our loop over the other's, pair by pair, in which the two begin in turn."""
    ratios = []
    for pair in range(pairs):
        seconds = {}
        for run in (ours, other) if pair % 2 else (other, ours):
            start = time.perf_counter()
            run(steps)
            seconds[run] = time.perf_counter() - start
        ratios.append(seconds[ours] / seconds[other])
    return ratios


def describe(ratios: Sequence[float], other: str, pairs: str = "pairs") -> str:
    """The median of ratios, with its 95 % interval by ranks (binomial, normal approximation)."""
    ratios = sorted(ratios)
    middle, spread = len(ratios) / 2, 0.98 * len(ratios) ** 0.5
    low, high = ratios[max(0, int(middle - spread))], ratios[min(len(ratios) - 1, int(middle + spread))]
    return (
        f"{statistics.median(ratios):.3f} of {other}'s time"
        f" (95 % interval of the median {low:.3f} .. {high:.3f}, {len(ratios)} {pairs})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pixel_cnn", "vae", "gan"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rounds", type=int, default=10, help="times that both loops are made anew")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of blocks in a round")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = triptych.load_data(arguments.data)
    for name in arguments.models:
        for bare in (True, False):
            ratios = ratios_of(name, data, bare, arguments.rounds, arguments.pairs, arguments.steps)
            how = "bare" if bare else "with clipping and averaging"
            print(f"{name} on {data.name}, {how}: {describe(ratios, 'the plain loop')}", flush=True)


if __name__ == "__main__":
    main()
