"""One loop for every model: the phases in turn, each with its own optimiser, stage after stage, under one budget.

The loop alone owns optimisers, freezing, the moving average, precision, devices, the log and the checkpoints.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from triptych.config import Budget, TrainConfig
from triptych.data.dataset import Dataset
from triptych.data.pictures import save_items
from triptych.errors import InputError, TrainingInterrupted, TrainingStopped
from triptych.models.base import (
    ApproximateDensity,
    Completed,
    Estimated,
    GenerativeModel,
    ImplicitDensity,
    Phase,
    TractableDensity,
    Watched,
)
from triptych.spaces import PointSpace
from triptych.training.files import Records, read_checkpoint, write_checkpoint, write_weights
from triptych.training.progress import TrainingProgress, duration
from triptych.training.stream import BatchStream
from triptych.training.watch import Watch

FILM_AT = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the budget after which samples are drawn; training shows most of its change early."""
FILM_ITEMS = 16
MOST_SKIPPED = 50
"""Steps that may be skipped one after the other, their gradients not being finite, until training has diverged."""
NORM_DECAY = 0.95
"""Of the running mean of a gradient's length."""
EndReason = Literal["budget", "no improvement", "converged"]
CHECKPOINT_FORMAT = 4


@dataclass(frozen=True)
class Summary:
    """How a training ended."""

    reason: EndReason
    steps: int
    """Cycles through the phases (EM iterations of an estimated model)."""
    n_images_seen: int
    seconds: float
    """Wall-clock seconds, validation and sample grids included."""
    best_step: int | None = None
    """Step of the saved weights, where validation chose them."""
    best_nll: float | None = None
    """Negative log-likelihood (or bound) on the validation items at that step, nats per item."""
    best_distance: float | None = None
    """Of samples and validation items at that step, where there is no likelihood: see `watch.Look`."""
    findings: tuple[str, ...] = ()
    """What went wrong with an adversarial training, and when."""


@dataclass(frozen=True)
class Cost:
    """What a run will take, from a few trial steps."""

    seconds_per_step: float
    memory_bytes: int
    disk_bytes: int
    n_parameters: int

    images_per_step: int
    """Training items of all phases of a step."""

    def describe(self, budget: Budget) -> str:
        """The estimate for a budget, in a sentence."""
        if budget.unit == "seconds":
            plan = f"about {max(1, budget.amount / self.seconds_per_step):,.0f} steps in {duration(budget.amount)}"
        else:
            steps = budget.amount if budget.unit == "steps" else budget.amount / self.images_per_step
            plan = f"about {duration(steps * self.seconds_per_step)} for {steps:,.0f} steps"
        return (
            f"{self.n_parameters:,} parameters; {plan} ({self.seconds_per_step * 1000:.3g} ms a step of"
            f" {self.images_per_step} items), {self.memory_bytes / 2**30:.1f} GiB of memory,"
            f" {self.disk_bytes / 2**20:.0f} MiB on disk"
        )


def stages_of(phases: tuple[Phase, ...]) -> list[float]:
    """The share of the budget that each stage of some phases has."""
    sizes = {phase.stage: phase.stage_share for phase in phases}
    return [sizes[stage] / sum(sizes.values()) for stage in sorted(sizes)]


def choose_device(name: str) -> torch.device:
    """The device of a setting 'auto', 'cpu' or 'cuda'.

    Raises:
        InputError: If cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' but PyTorch sees no CUDA device; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next step instead of handing it back to the system.

    A step on the CPU allocates and frees the same buffers again and again. With glibc's defaults each of some 100 KB is
    mapped, cleared page by page and unmapped every time, which took a sixth of PixelCNN's step on the digits.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; musl has none
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: map only blocks from 32 MiB, the most it allows
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: keep up to 1 GiB at the top of the heap


class Trainer:
    """Trains one model on one data set in one folder.

    Arguments:
        model: Untrained, on the CPU.
        dataset: Its `train` split is learnt, its `valid` split chooses.
        config: How.
        folder: Run folder; metrics.jsonl, checkpoint.pt, model.safetensors and samples/ are written there.
        console: Where to show progress; None for silence.
    """

    def __init__(
        self,
        model: GenerativeModel,
        dataset: Dataset,
        config: TrainConfig,
        folder: Path,
        console: Console | None = None,
    ) -> None:
        self.dataset, self.config, self.folder, self.console = dataset, config, folder, console
        if config.tensorboard and find_spec("tensorboard") is None:
            raise InputError("--tensorboard needs the package tensorboard: pip install 'triptych[tensorboard]'.")
        self.budget = Budget.parse(config.budget)
        self.checkpoint_every = Budget.parse(config.checkpoint_every)
        device = choose_device(config.device)
        keep_freed_memory()
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.precision = "32" if config.precision == "32" or (config.precision == "auto" and not has_bf16) else "bf16"
        precision: Literal["32-true", "bf16-mixed"] = "32-true" if self.precision == "32" else "bf16-mixed"
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what it does at every start
        self.fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
        self.fabric.launch()
        self.model = model.to(self.fabric.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.phases = self.model.phases()
        self.stages = stages_of(self.phases)
        self.stage = 0
        self.stage_began, self.stage_first_step = 0.0, 0
        """Share of the budget, and step, at which the stage began."""
        self.stream = self._new_stream()
        self.noise = torch.Generator(self.fabric.device).manual_seed(config.seed)
        self.step, self.seconds_before = 0, 0.0
        self.start_time = self.checkpoint_time = time.perf_counter()
        self.pause_until = 0.0
        self.best: dict[str, Any] | None = None
        self.waited = 0
        self.n_validations = self.n_films = 0
        self.last_checkpoint_step = 0
        self.sums: dict[str, Any] = {}
        """Sums of the terms since the last record in metrics.jsonl, over `since` steps."""
        self.since = 0
        self.metrics_bytes = 0
        self.gradient_norms: dict[str, float] = {}
        """Running mean of each phase's gradient, in Euclidean norm, where steps are clipped relative to it."""
        self.n_skipped = 0
        """Steps not taken, one after the other, since their gradient was not finite."""
        self.interrupted = False
        self.ended: EndReason | None = None
        """Why the run that is resumed had already ended, if it had."""
        self.n_validation_items = min(config.validation_items, len(dataset.valid))
        is_watched = isinstance(model, Watched) and config.validations > 0
        is_watched = is_watched and Watch.fits(dataset, self.n_validation_items)
        self.watch = Watch(dataset, self.n_validation_items, config.seed) if is_watched else None
        self.latest: dict[str, float] = {}
        """Latest means of the terms."""
        self.rate_factor, self.rise_from = 1.0, 0
        """What the learning rates are multiplied by, and the step from which they rise: a rollback changes both."""
        self.findings: list[str] = []

    # ---- what a step is

    def _new_stream(self) -> BatchStream:
        return BatchStream(
            self.dataset.train,
            self.config.batch_size or (256 if isinstance(self.dataset.space, PointSpace) else 32),
            seed=self.config.seed,
            device=self.fabric.device,
            use_labels=self.model.n_classes > 0,
        )

    def _optimizer(self, phase: Phase) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            phase.parameters,
            lr=self.config.learning_rate or phase.learning_rate,
            betas=phase.betas,
            weight_decay=phase.weight_decay,
            fused=True,
        )

    def _cycle(
        self,
        model: Any,
        phases: tuple[Phase, ...],
        optimizers: list[Any],
        stream: BatchStream,
        noise: torch.Generator,
        *,
        stage: int,
        progress: float,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Every phase of a stage once: the algorithm itself. Returns the terms to log, and the sum of all losses."""
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.fabric.device)
        for phase, optimizer in zip(phases, optimizers, strict=True):
            if phase.stage != stage:
                continue
            if len(phases) > 1:
                model.requires_grad_(False)
                for parameter in phase.parameters:
                    parameter.requires_grad_(True)
            for _ in range(phase.steps):
                # Fabric applies its precision to `forward` alone, unless a strategy wraps the model.
                with self.fabric.autocast():
                    loss = model.loss(stream.next()._replace(progress=progress), phase.name, generator=noise)
                optimizer.zero_grad(set_to_none=True)
                self.fabric.backward(loss.total)
                if self._clip(phase, terms):
                    optimizer.step()
                    total += loss.total.detach()
                    if phase.clip_weights:
                        with torch.no_grad():
                            torch._foreach_clamp_min_(phase.parameters, -phase.clip_weights)
                            torch._foreach_clamp_max_(phase.parameters, phase.clip_weights)
            terms |= {f"{phase.name}/{name}": value for name, value in loss.terms.items()}
        return terms, total

    def _clip(self, phase: Phase, terms: dict[str, Tensor]) -> bool:
        """Shortens the gradient of a phase to its limit, and logs its length; False if its step is not to be taken.

        Raises:
            TrainingStopped: If too many steps in a row were not.
        """
        limit = phase.clip_norm if self.config.clip_norm is None else self.config.clip_norm
        norm = torch.nn.utils.get_total_norm([p.grad for p in phase.parameters if p.grad is not None])
        if self.config.clip_norm is None and phase.clip_ratio:
            length = float(norm)
            is_finite = math.isfinite(length)
            terms[f"skipped/{phase.name}"] = torch.tensor(float(not is_finite))
            self.n_skipped = 0 if is_finite else self.n_skipped + 1
            if self.n_skipped >= MOST_SKIPPED:
                raise self._diverged("The gradient", f"has not been finite for {MOST_SKIPPED} steps")
            if not is_finite:
                return False
            usual = self.gradient_norms.get(phase.name, length)  # The first gradient says what is usual.
            limit = phase.clip_ratio * usual
            self.gradient_norms[phase.name] = NORM_DECAY * usual + (1 - NORM_DECAY) * min(length, limit)
        if limit:
            torch.nn.utils.clip_grads_with_norm_(phase.parameters, limit, norm)
        terms[f"gradient_norm/{phase.name}"] = norm
        return True

    def _set_learning_rates(self, optimizers: list[Any], progress: float) -> dict[str, float]:
        """Arguments: the progress of the stage."""
        rates = {}
        first = max(self.stage_first_step, self.rise_from)
        rise = min(1.0, (self.step - first + 1) / max(1, self.config.warmup_steps))
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        for phase, optimizer in zip(self.phases, optimizers, strict=True):
            if phase.stage != self.stage:
                continue
            start = self.config.learning_rate or phase.learning_rate
            rates[f"learning_rate/{phase.name}"] = rate = (
                start * self.rate_factor * rise * (fall if phase.schedule == "cosine" else 1.0)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rates

    def _update_ema(self) -> None:
        if self.config.ema_decay == 0:
            return  # `_averaged` copies the weights when they are wanted.
        # The decay rises with the steps, or the first weights would weigh on a short training to its end.
        step = self.step - self.stage_first_step
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema_parameters, self._parameters, 1 - decay)

    def _averaged(self) -> GenerativeModel:
        """The model with averaged weights, its buffers up to date."""
        with torch.no_grad():
            if self.config.ema_decay == 0:
                torch._foreach_copy_(self._ema_parameters, self._parameters)
            for average, current in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                average.copy_(current)
        return self.ema

    def _drawing(self) -> GenerativeModel:
        """The averaged model, ready to be drawn from."""
        model = self._averaged()
        if isinstance(model, ImplicitDensity):
            model.settle(self.config.seed)
        return model

    # ---- what it will cost

    def estimate_cost(self, trial_steps: int = 2) -> Cost:
        """Time, memory and disk of the run, from trial steps on a copy of the model; changes nothing of the run."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        usual = self.gradient_norms.copy()
        with torch.random.fork_rng():
            copied = copy.deepcopy(self.model).train()
            phases = copied.phases()
            optimizers = [self._optimizer(phase) for phase in phases]
            stream, noise = self._new_stream(), torch.Generator(self.fabric.device).manual_seed(0)
            seconds = images_per_step = 0.0
            for stage, share in enumerate(self.stages):
                # The first one allocates and warms up.
                self._cycle(copied, phases, optimizers, stream, noise, stage=stage, progress=0.5)
                self._synchronize()
                start, position = time.perf_counter(), stream.position
                for _ in range(trial_steps):
                    self._cycle(copied, phases, optimizers, stream, noise, stage=stage, progress=0.5)
                self._synchronize()
                seconds += share * (time.perf_counter() - start) / trial_steps
                images_per_step += share * (stream.position - position) / trial_steps
        self.gradient_norms, self.n_skipped = usual, 0
        if self.fabric.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        # Checkpoint: weights, their average, the best ones and Adam's two moments; and model.safetensors.
        return Cost(seconds, memory, 6 * 4 * n_parameters, n_parameters, round(images_per_step))

    def _synchronize(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    # ---- the run

    def fit(self, *, resume: bool = False) -> Summary:
        """Trains until the budget is spent, or validation stops improving; leaves the chosen weights in `self.ema`.

        Arguments:
            resume: Go on from checkpoint.pt instead of starting anew.
        Raises:
            TrainingStopped: If a loss is no longer finite, or on Ctrl-C; the last good checkpoint stands.
            InputError: If there is no usable checkpoint to resume from.
        """
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, Estimated):
            return self._estimate(self.model)
        wrapped, optimizers = self._set_up()
        if resume:
            self._restore(optimizers)
        records = self._records()
        self.start_time = self.checkpoint_time = time.perf_counter()
        try:
            with TrainingProgress(self.folder.name, self.console, self._progress()) as bar, self._catch_signals():
                if not resume:
                    self._size_validation()  # Before the first checkpoint, which remembers it.
                    self._film(records, 0.0)
                    self._save(optimizers, records)
                    self.start_time = time.perf_counter()  # What comes before the first step is not of the budget.
                reason = self.ended or self._loop(wrapped, optimizers, records, bar)
            self._save(optimizers, records, reason)
            summary = self._finish(reason)
            self._film(records, 1.0, self.ema)
            records.append({**self._where(), "event": "finished", "reason": reason, "best_step": summary.best_step})
            records.flush()
        finally:
            records.close()
            self.model.requires_grad_(True)
        return summary

    def _set_up(self) -> tuple[Any, list[Any]]:
        """The model and an optimiser for each phase, as Fabric wraps them."""
        wrapped, *optimizers = self.fabric.setup(self.model.train(), *(self._optimizer(phase) for phase in self.phases))
        wrapped.mark_forward_method("loss")
        self._parameters: list[Tensor] = [*self.model.parameters()]
        self._ema_parameters: list[Tensor] = [*self.ema.parameters()]
        return wrapped, optimizers

    def _records(self) -> Records:
        path = self.folder / "metrics.jsonl"
        return Records(path, self.metrics_bytes, tensorboard=self.config.tensorboard, first_step=self.step)

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM let the running step end and be saved; a second one takes effect at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: object) -> None:
            self.interrupted = True
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()

    def _loop(self, wrapped: Any, optimizers: list[Any], records: Records, bar: TrainingProgress) -> EndReason:
        while (progress := self._progress()) < 1 or self.step == 0:
            stage_progress = self._stage_progress(progress)
            if stage_progress >= 1 and self.stage + 1 < len(self.stages):
                self._next_stage(progress)
                stage_progress = 0.0
            rates = self._set_learning_rates(optimizers, stage_progress)
            terms, total = self._cycle(
                wrapped,
                self.phases,
                optimizers,
                self.stream,
                self.noise,
                stage=self.stage,
                progress=stage_progress,
            )
            self.step += 1
            self._update_ema()
            self.sums["total"] = self.sums.get("total", 0.0) + total
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.since += 1
            progress = self._progress()
            validate, film = self._validation_due(progress), self._film_due(progress)
            if self.step % self.config.log_every == 0 or validate or film or progress >= 1:
                try:
                    means = self._means()
                except TrainingStopped as stopped:
                    if not self._roll_back(optimizers, records, str(stopped)):
                        raise
                    self.sums, self.since = {}, 0
                    continue
                self.latest = means
                records.append({**self._where(), **means, **rates})
                losses = {k: v for k, v in means.items() if not k.startswith(("gradient_norm/", "skipped/"))}
                bar.update(progress, self.step, losses)
                self.sums, self.since = {}, 0
            if film:
                self._film(records, progress)
            if validate and self.watch is not None:
                self._look(self.watch, optimizers, records, progress)
            elif validate and not self._validate(records, progress):
                if self.stage + 1 == len(self.stages):
                    return "no improvement"
                self._next_stage(progress)
            if self._checkpoint_due():
                self._save(optimizers, records)
            if self.interrupted:
                self._save(optimizers, records)
                raise TrainingInterrupted(
                    f"Interrupted after step {self.step}, which is saved. Go on with --resume {self.folder}"
                )
        return "budget"

    def _stage_progress(self, progress: float) -> float:
        """Share of the running stage's part of the budget that is used, at most 1."""
        end = sum(self.stages[: self.stage + 1])
        return min(1.0, (progress - self.stage_began) / max(1e-9, end - self.stage_began))

    def _next_stage(self, progress: float) -> None:
        """Begins the next stage with the weights that this one would have left; it also gets what budget is left."""
        state = self.best["state"] if self.best else self._averaged().state_dict()
        self.model.load_state_dict(state)
        self.ema.load_state_dict(state)
        self.best, self.waited = None, 0
        self.stage, self.stage_began, self.stage_first_step = self.stage + 1, progress, self.step

    def _means(self) -> dict[str, float]:
        """Means of the terms since the last record.

        Raises:
            TrainingStopped: If one is not finite.
        """
        means = {name: float(value) / max(1, self.since) for name, value in self.sums.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value) and name != "total"]
        if bad or not math.isfinite(means.pop("total", 0.0)):
            raise self._diverged(bad[0] if bad else "The loss")
        return means

    def _diverged(self, what: str, how: str = "is no longer finite") -> TrainingStopped:
        return TrainingStopped(
            f"{what} {how} at step {self.step}; the last good checkpoint, of step"
            f" {self.last_checkpoint_step}, stands in {self.folder}. Train again with a lower --learning-rate."
        )

    def _where(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "n_images_seen": self.stream.position,
            "elapsed_seconds": round(self._seconds(), 3),
        }

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.start_time

    def _progress(self) -> float:
        return self.budget.progress(seconds=self._seconds(), steps=self.step, images=self.stream.position)

    # ---- what happens now and then

    def _has_likelihood(self) -> bool:
        return isinstance(self.model, TractableDensity | ApproximateDensity)

    def _validation_due(self, progress: float) -> bool:
        if not self.config.validations or not (self._has_likelihood() or self.watch):
            return False
        if self.watch and self.stage > 0:
            return False  # What follows a game, an encoder, does not change its samples.
        if progress >= 1:
            return True
        on_time = progress >= (self.n_validations + 1) / self.config.validations
        return on_time and (self.budget.unit != "seconds" or self._seconds() >= self.pause_until)

    def _film_due(self, progress: float) -> bool:
        on_time = self.n_films < len(FILM_AT) and progress >= FILM_AT[self.n_films]
        return on_time and (self.budget.unit != "seconds" or self._seconds() >= self.pause_until)

    def _checkpoint_due(self) -> bool:
        if self.checkpoint_every.unit == "steps":
            return self.step - self.last_checkpoint_step >= self.checkpoint_every.amount
        return time.perf_counter() - self.checkpoint_time >= self.checkpoint_every.amount

    def _spent(self, start: float) -> None:
        """Under a clock, work beside the training may take an eighth of the time: the next must wait."""
        self.pause_until = max(self.pause_until, self._seconds() + 7 * (time.perf_counter() - start))

    def _film(self, records: Records, progress: float, model: GenerativeModel | None = None) -> None:
        """Draws samples, with the same noise each time, and saves them as picture and array.

        Arguments:
            model: By default the averaged one.
        """
        start = time.perf_counter()
        model = self._drawing() if model is None else model
        while self.n_films < len(FILM_AT) and progress >= FILM_AT[self.n_films]:
            self.n_films += 1
        noise = torch.Generator(self.fabric.device).manual_seed(self.config.seed + 1)
        labels = torch.arange(FILM_ITEMS, device=self.fabric.device) % model.n_classes if model.n_classes else None
        with torch.no_grad(), self.fabric.autocast():
            items = model.sample(FILM_ITEMS, labels=labels, generator=noise).cpu().numpy()
        stem = self.folder / "samples" / f"step-{self.step:08d}"
        np.save(stem.with_suffix(".npy"), items)
        save_items(items, self.dataset.space, stem.with_suffix(".png"))
        records.append({**self._where(), "event": "samples", "file": f"samples/{stem.name}.npy"})
        self._spent(start)

    def _validate(self, records: Records, progress: float) -> bool:
        """Scores the validation items with the averaged weights and keeps the best; False when it is time to end."""
        start = time.perf_counter()
        self._count_validations(progress)
        nll = self.validation_nll(self._averaged())
        if not math.isfinite(nll):
            raise self._diverged("The validation likelihood")
        self._record_validation(records, nll)
        self._keep_best(nll)
        self._spent(start)
        return not (self.config.patience and self.waited >= self.config.patience)

    def _count_validations(self, progress: float) -> None:
        n = self.config.validations
        while self.n_validations < n and progress >= (self.n_validations + 1) / n:
            self.n_validations += 1

    def _keep_best(self, score: float) -> None:
        """Remembers the averaged weights if no score was lower."""
        if self.best is None or score < self.best["score"]:
            state = {name: tensor.clone() for name, tensor in self.ema.state_dict().items()}
            self.best, self.waited = {"score": score, "step": self.step, "state": state}, 0
        else:
            self.waited += 1

    def _look(self, watch: Watch, optimizers: list[Any], records: Records, progress: float) -> None:
        """Lays samples of the averaged weights beside the validation items, tells what is amiss and keeps the best."""
        start = time.perf_counter()
        self._count_validations(progress)
        noise = torch.Generator(self.fabric.device).manual_seed(self.config.seed)
        model = self._drawing()
        assert isinstance(model, Watched)
        x, y = self._on_device(watch.items, watch.labels)
        with torch.no_grad(), self.fabric.autocast():
            items = model.drawn_beside(x, y, generator=noise).cpu().numpy()
        look = watch.look(items, self.step, progress, self.latest)
        measured = {f"samples/{name}": getattr(look, name) for name in ("diversity", "coverage", "precision", "copies")}
        if look.copies is None:
            del measured["samples/copies"]
        records.append({**self._where(), f"valid/{watch.name}": look.distance, **measured})
        self._keep_best(look.distance)
        for finding in watch.news():
            self._tell(records, finding.describe())
            if finding.trouble == "divergence":
                self._roll_back(optimizers, records, finding.evidence)
        self._spent(start)

    def _tell(self, records: Records, what: str) -> None:
        """Reports something that goes wrong: on the console, in the log and in the summary."""
        self.findings.append(f"Step {self.step:,}: {what}")
        records.append({**self._where(), "event": "finding", "finding": what})
        if self.console is not None:
            self.console.print(f"{self.folder.name}, step {self.step}: {what}", markup=False, soft_wrap=True)

    def _roll_back(self, optimizers: list[Any], records: Records, why: str) -> bool:
        """Goes back to the best weights of a game, to go on with half the learning rate; False if that is used up."""
        if self.watch is None or self.best is None or self.rate_factor <= 0.5**self.config.rollbacks:
            return False
        self.model.load_state_dict(self.best["state"])
        self.ema.load_state_dict(self.best["state"])
        for optimizer in optimizers:
            optimizer.state.clear()
        self.rate_factor, self.rise_from = self.rate_factor / 2, self.step
        self.gradient_norms = {}
        self.watch.forget_after(self.best["step"])
        self._tell(records, f"rolled back to step {self.best['step']:,} and half the learning rate ({why})")
        return True

    def _size_validation(self) -> None:
        """Under a clock, takes so few validation items that five validations need an eighth of the budget at most."""
        if self.budget.unit != "seconds" or not self._has_likelihood() or not self.config.validations:
            return
        wanted, self.n_validation_items = self.n_validation_items, min(self.n_validation_items, 16)
        start = time.perf_counter()
        self.validation_nll(self._averaged())
        seconds = (time.perf_counter() - start) / self.n_validation_items
        self.n_validation_items = max(self.n_validation_items, min(wanted, int(self.budget.amount / 40 / seconds)))

    def _record_validation(self, records: Records, nll: float) -> None:
        unit = "nats_per_image" if self.ema.measure == "discrete" else "nats_per_point"
        records.append({**self._where(), f"valid/nll_{unit}": nll})

    def _on_device(self, items: np.ndarray, labels: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
        """Items and, where the model is conditional, their classes."""
        x = torch.from_numpy(items).to(self.fabric.device)
        return x, None if labels is None or not self.model.n_classes else torch.from_numpy(labels).to(x.device)

    @torch.no_grad()
    def validation_nll(self, model: GenerativeModel) -> float:
        """Mean negative log-likelihood, or negative bound, of the validation items, in nats per item.

        The items and the noise are the same every time, so that values compare.
        """
        split = self.dataset.valid
        chosen = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(split))
        chosen = np.sort(chosen[: self.n_validation_items])
        noise = torch.Generator(self.fabric.device).manual_seed(self.config.seed)
        total = 0.0
        for start in range(0, len(chosen), 256):
            items, labels = split.read(chosen[start : start + 256])
            x, y = self._on_device(items, labels)
            with self.fabric.autocast():
                if isinstance(model, ApproximateDensity):
                    if model.n_importance == 1:  # The ELBO, which may have its KL in closed form.
                        nats = model.elbo(x, labels=y, generator=noise)
                    else:
                        nats = model.iwae(x, model.n_importance, labels=y, generator=noise)
                elif isinstance(model, TractableDensity):
                    nats = model.log_prob(x, y)
                else:
                    raise TypeError(f"{type(model).__name__} has no likelihood to validate.")
            total -= float(nats.double().sum())
        return total / len(chosen)

    # ---- checkpoints

    def _save(self, optimizers: list[Any], records: Records, ended: EndReason | None = None) -> None:
        # The last good checkpoint must stand.
        if any(not math.isfinite(float(value)) for value in self.sums.values()):
            raise self._diverged("The loss")
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.parameters()):
            raise self._diverged("A weight")
        write_checkpoint(
            self.folder / "checkpoint.pt",
            {
                "format": CHECKPOINT_FORMAT,
                "ended": ended,
                "step": self.step,
                "stage": (self.stage, self.stage_began, self.stage_first_step),
                "position": self.stream.position,
                "seconds": self._seconds(),
                "model": self.model.state_dict(),
                "ema": self._averaged().state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "noise": self.noise.get_state(),
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else [],
                "best": self.best,
                "waited": self.waited,
                "gradient_norms": self.gradient_norms,
                "watch": self.watch.state() if self.watch else None,
                "latest": self.latest,
                "rate_factor": self.rate_factor,
                "rise_from": self.rise_from,
                "findings": self.findings,
                "n_validations": self.n_validations,
                "n_films": self.n_films,
                "n_validation_items": self.n_validation_items,
                "sums": self.sums,
                "since": self.since,
                "metrics_bytes": records.flush(),
            },
        )
        self.last_checkpoint_step, self.checkpoint_time = self.step, time.perf_counter()
        write_weights(self.folder / "model.safetensors", self.best["state"] if self.best else self.ema.state_dict())

    def _restore(self, optimizers: list[Any]) -> None:
        path = self.folder / "checkpoint.pt"
        saved = read_checkpoint(path)
        try:
            if saved["format"] != CHECKPOINT_FORMAT:
                raise InputError(f"{path} has format {saved['format']}; this version reads {CHECKPOINT_FORMAT}.")
            self.step, self.stream.position, self.seconds_before = saved["step"], saved["position"], saved["seconds"]
            self.stage, self.stage_began, self.stage_first_step = saved["stage"]
            self.model.load_state_dict(saved["model"])
            self.ema.load_state_dict(saved["ema"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.noise.set_state(saved["noise"])
            torch.set_rng_state(saved["torch_rng"])
            if saved["cuda_rng"]:
                torch.cuda.set_rng_state_all(saved["cuda_rng"])
            self.best, self.waited, self.ended = saved["best"], saved["waited"], saved["ended"]
            self.gradient_norms, self.latest = saved["gradient_norms"], saved["latest"]
            self.rate_factor, self.rise_from = saved["rate_factor"], saved["rise_from"]
            self.findings = saved["findings"]
            if self.watch:
                self.watch.restore(saved["watch"])
            self.n_validations, self.n_films = saved["n_validations"], saved["n_films"]
            self.n_validation_items = saved["n_validation_items"]
            self.sums, self.since, self.metrics_bytes = saved["sums"], saved["since"], saved["metrics_bytes"]
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} does not fit the run ({str(error).splitlines()[0]}); train anew.") from None
        self.last_checkpoint_step = self.step
        self.start_time = time.perf_counter()

    def _finish(self, reason: EndReason) -> Summary:
        if self.best is None:
            self._drawing()
        else:  # What a look chose had been made ready, too.
            self.ema.load_state_dict(self.best["state"])
        if isinstance(self.ema, Completed):
            items, labels = self._training_items(self.ema.max_items)
            self.ema.complete(items, labels, generator=torch.Generator().manual_seed(self.config.seed))
        if self.best is None or isinstance(self.ema, Completed):  # Else `_save` has written them.
            write_weights(self.folder / "model.safetensors", self.ema.state_dict())
        # A game's choice is among the looks: `best` is of the last stage, which may be an encoder's.
        look = min(self.watch.looks, key=lambda look: look.distance) if self.watch and self.watch.looks else None
        return Summary(
            reason,
            self.step,
            self.stream.position,
            self._seconds(),
            best_step=look.step if look else self.best["step"] if self.best else None,
            best_nll=self.best["score"] if self.best and not self.watch else None,
            best_distance=look.distance if look else None,
            findings=tuple(self.findings),
        )

    def _training_items(self, most: int) -> tuple[Tensor, Tensor | None]:
        """Training items and labels, a fixed random subset if there are more than `most`."""
        split = self.dataset.train
        order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(split))
        items, labels = split.read(np.sort(order[:most]))
        return torch.from_numpy(items), None if labels is None else torch.from_numpy(labels)

    # ---- models that an algorithm of their own estimates

    def _estimate(self, model: Any) -> Summary:
        """Runs the model's own algorithm on the training data until it converges or the budget is spent."""
        x, y = self._training_items(model.max_items)
        records = self._records()
        self.start_time = time.perf_counter()
        reason: EndReason = "converged"
        model.cpu()
        try:
            with TrainingProgress(self.folder.name, self.console) as bar:
                for terms in model.estimate(x, y, generator=torch.Generator().manual_seed(self.config.seed)):
                    self.step += 1
                    self.stream.position += len(x)
                    progress = self._progress()
                    records.append({**self._where(), **{f"estimation/{name}": value for name, value in terms.items()}})
                    bar.update(progress, self.step, terms)
                    if progress >= 1:
                        reason = "budget"
                        break
            self.ema.load_state_dict(model.state_dict())
            nll = self.validation_nll(self.ema)
            self._record_validation(records, nll)
            self._film(records, 1.0, self.ema)
            records.append({**self._where(), "event": "finished", "reason": reason, "best_step": self.step})
            records.flush()
        finally:
            records.close()
        write_weights(self.folder / "model.safetensors", self.ema.state_dict())
        return Summary(reason, self.step, self.stream.position, self._seconds(), self.step, nll)
