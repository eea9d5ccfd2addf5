"""One loop for every model: the phases in turn, each with its own optimiser, stage after stage, under one budget.

The loop alone owns optimisers, freezing, the moving average, precision, devices, the log and the checkpoints.
"""

from __future__ import annotations

import copy
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from triptych import parallel
from triptych.config import Budget, TrainConfig
from triptych.data.dataset import Dataset
from triptych.data.pictures import save_items
from triptych.errors import DataChanged, InputError, TrainingInterrupted, TrainingStopped, counted
from triptych.files import is_temporary
from triptych.models.base import (
    ApproximateDensity,
    Batch,
    Completed,
    Estimated,
    GenerativeModel,
    ImplicitDensity,
    Loss,
    Phase,
    TractableDensity,
    Watched,
)
from triptych.spaces import PointSpace
from triptych.training import sharding
from triptych.training.checkpoints import Checkpoints, check_kinds
from triptych.training.cost import Cost
from triptych.training.devices import check_batch, precision_of, start
from triptych.training.files import NoRecords, Records, write_weights
from triptych.training.gradients import GradientMean
from triptych.training.lock import RunLock
from triptych.training.progress import TrainingProgress, duration
from triptych.training.run import first_difference
from triptych.training.stream import BatchStream
from triptych.training.watch import Watch

FILM_AT = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the budget after which samples are drawn; training shows most of its change early."""
FILM_ITEMS = 16
MOST_SKIPPED = 50
"""Steps that may be skipped one after the other, their gradients not being finite, until training has diverged."""
VALIDATED = 128
"""Validation items scored at a time; with several processes each takes some of these parts."""
NORM_DECAY = 0.95
"""Of the running mean of a gradient's length."""
Value = TypeVar("Value")
EndReason = Literal["budget", "no improvement", "converged"]
CHECKPOINT_FORMAT = 7


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
    lost_steps: int = 0
    """Steps that were done twice, since the process died after its last checkpoint."""

    def describe(self) -> str:
        """In a line."""
        said = f"{counted(self.steps, 'step')} in {duration(self.seconds)}"
        if self.reason != "budget":
            said += f" ({self.reason})"
        if self.best_step is None:
            return said
        said += f"; the weights kept are those of step {self.best_step:,}"
        if self.best_nll is not None:
            return f"{said}, at {self.best_nll:.4g} nats a validation item"
        return f"{said}, whose samples were nearest to the validation items"


def stages_of(phases: tuple[Phase, ...]) -> list[float]:
    """The share of the budget that each stage of some phases has."""
    sizes = {phase.stage: phase.stage_share for phase in phases}
    return [sizes[stage] / sum(sizes.values()) for stage in sorted(sizes)]


class Trainer:
    """Trains one model on one data set in one folder.

    Arguments:
        model: Untrained, on the CPU.
        dataset: Its `train` split is learnt, its `valid` split chooses.
        config: How.
        folder: Run folder; metrics.jsonl, model.safetensors, checkpoints/ and samples/ are written there.
        console: Where to show progress; None for silence.
        fabric: Processes and devices, as `devices.start` makes them; by default it is called.
        lock: Of the run folder, if another process could want it; in it every step is noted.
        settings: Plain values that decide the weights: checkpoints written under others are not gone on from.

    Several processes each work on a part of every batch (see `triptych.parallel`), step together and decide alike:
    where one could measure something else than another, as of the time, the first one's value holds. It alone writes.
    """

    def __init__(
        self,
        model: GenerativeModel,
        dataset: Dataset,
        config: TrainConfig,
        folder: Path,
        console: Console | None = None,
        fabric: Fabric | None = None,
        lock: RunLock | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.fabric = start(config) if fabric is None else fabric
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.is_writer = self.rank == 0
        self.dataset, self.config, self.folder = dataset, config, folder
        self.console = console if self.is_writer else None
        self.budget = Budget.parse(config.budget)
        self.checkpoint_every = Budget.parse(config.checkpoint_every)
        self.checkpoints = Checkpoints(folder, config.keep)
        self.precision = precision_of(config)
        if config.strategy == "fsdp" and isinstance(model, Watched | Estimated):
            raise InputError(
                f"strategy is 'fsdp', which {type(model).__name__} cannot take: it is for likelihoods that gradients"
                " learn; use ddp."
            )
        self.is_cut = config.strategy == "fsdp" and self.world > 1
        self.uncut = copy.deepcopy(model) if self.is_cut else model
        """The model before its weights were cut over the processes: what the training ends with."""
        self.ema = self._on_processes(copy.deepcopy(model).eval().requires_grad_(False))
        self.model = self._on_processes(model)
        self.phases = self.model.phases()
        self.stages = stages_of(self.phases)
        self.stage = 0
        self.stage_began, self.stage_first_step = 0.0, 0
        """Share of the budget, and step, at which the stage began."""
        self.stream = self._new_stream()
        self.noise = torch.Generator(self.fabric.device).manual_seed(config.seed)
        self.step, self.seconds_before = 0, 0.0
        self.start_time = time.perf_counter()
        self.checkpoint_time = self.pause_until = 0.0
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
        self.gradient_means: dict[int, GradientMean] = {}
        self.n_skipped = 0
        """Steps not taken, one after the other, since their gradient was not finite."""
        self.signalled = self.interrupted = False
        """Whether this process is asked to stop; and whether all are to, which is known a step later."""
        self.asked: list[tuple[Tensor, Any]] = []
        self.agreed_seconds = 0.0
        """With several processes: the first one's clock, when they last agreed."""
        self.lock, self.settings = lock, settings or {}
        self.inherited: list[dict[str, Any]] | None = None
        """States of the optimisers of another run, to begin with."""
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
        batch_size = self.config.batch_size or (256 if isinstance(self.dataset.space, PointSpace) else 32)
        check_batch(batch_size, self.world * self.config.accumulate)
        return BatchStream(
            self.dataset.train,
            batch_size,
            seed=self.config.seed,
            device=self.fabric.device,
            use_labels=self.model.n_classes > 0,
            rank=self.rank,
            world=self.world,
        )

    def _on_processes(self, model: GenerativeModel) -> GenerativeModel:
        """A model on this process's device: the whole of it, or its part of the weights."""
        device = self.fabric.device
        return sharding.shard(model, device) if self.is_cut else model.to(device)

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
                optimizer.zero_grad(set_to_none=True)
                batch = stream.next()._replace(progress=progress)
                loss = self._accumulate(model, phase, batch, noise)
                if self._clip(phase, terms):
                    optimizer.step()
                    total += loss.total
                    if phase.clip_weights:
                        with torch.no_grad():
                            torch._foreach_clamp_min_(phase.parameters, -phase.clip_weights)
                            torch._foreach_clamp_max_(phase.parameters, phase.clip_weights)
            terms |= {f"{phase.name}/{name}": value for name, value in loss.terms.items()}
        return terms, total

    def _accumulate(self, model: Any, phase: Phase, batch: Batch, noise: torch.Generator) -> Loss:
        """Adds the gradient of a phase's loss on this process's part of a batch, piece by piece; the loss's values."""
        pieces = self.config.accumulate
        x = batch.x.chunk(pieces)
        y = [None] * pieces if batch.labels is None else batch.labels.chunk(pieces)
        # Every piece draws the noise of the whole batch, from the same states, and takes its own rows.
        states = (noise.get_state(), self._global_states()) if pieces > 1 else None
        total = torch.zeros((), device=self.fabric.device)
        terms: dict[str, Tensor] = {}
        for i in range(pieces):
            if states is not None:
                noise.set_state(states[0])
                self._set_global_states(states[1])
            part = batch._replace(x=x[i], labels=y[i])
            averaging = (
                self._gradient_mean(phase).of_this_pass()
                if self.world > 1 and i == pieces - 1 and not self.is_cut
                else nullcontext()
            )
            with (
                parallel.sharing(self.rank * pieces + i, self.world * pieces, self.world),
                # Fabric applies its precision to `forward` alone, unless a strategy wraps the model.
                self.fabric.autocast(),
                averaging,
            ):
                loss = model.loss(part, phase.name, generator=noise)
                self.fabric.backward(loss.total / pieces)
            if pieces == 1:
                return Loss(loss.total.detach(), loss.terms)
            total += loss.total.detach() / pieces
            for name, value in loss.terms.items():
                terms[name] = terms[name] + value / pieces if name in terms else value / pieces
        return Loss(total, terms)

    def _gradient_mean(self, phase: Phase) -> GradientMean:
        """What averages a phase's gradients over the processes; made when the phase first runs."""
        key = id(phase.parameters[0])
        if key not in self.gradient_means:
            self.gradient_means[key] = GradientMean(phase.parameters, self.world)
        return self.gradient_means[key]

    def _global_states(self) -> tuple[Tensor, list[Tensor]]:
        """States of PyTorch's own generators, which dropout draws from."""
        return torch.get_rng_state(), torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else []

    def _set_global_states(self, states: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(states[0])
        if states[1]:
            torch.cuda.set_rng_state_all(states[1])

    def _clip(self, phase: Phase, terms: dict[str, Tensor]) -> bool:
        """Shortens the gradient of a phase to its limit, and logs its length; False if its step is not to be taken.

        Raises:
            TrainingStopped: If too many steps in a row were not.
        """
        limit = phase.clip_norm if self.config.clip_norm is None else self.config.clip_norm
        norm = sharding.together(
            torch.nn.utils.get_total_norm([p.grad for p in phase.parameters if p.grad is not None])
        )
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

    def begin_with(self, run: Path) -> None:
        """Takes over what another run has learnt: its latest weights, their averages and its optimisers' moments.

        Raises:
            InputError: If it has no usable checkpoint, or one of another model.
        """
        saved, damaged = Checkpoints(run, 1).read()
        for what in damaged:
            self._say(f"{what.rstrip('.')}; the one before it is taken.")
        try:
            sharding.load_weights(self.model, saved["model"])
            sharding.load_weights(self.ema, saved["ema"])
            for phase, state in zip(self.phases, saved["optimizers"], strict=True):
                sharding.check_moments(list(phase.parameters), state)
            self.inherited, step = saved["optimizers"], saved["step"]
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[-1].strip()
            raise InputError(f"The weights of {run} do not fit ({first}); give the same space and options.") from None
        self._say(f"Beginning with the weights that {run} had after step {step}.")

    # ---- what it will cost

    def estimate_cost(self) -> Cost:
        """Time, memory and disk of the run, from trial steps on a copy of the model; changes nothing of the run."""
        usual = self.gradient_norms.copy()
        with torch.random.fork_rng():
            copied = self._on_processes(copy.deepcopy(self.uncut)).train()
            phases = copied.phases()
            optimizers = [self._optimizer(phase) for phase in phases]
            stream, noise = self._new_stream(), torch.Generator(self.fabric.device).manual_seed(0)
            seconds = images_per_step = 0.0
            for stage, share in enumerate(self.stages):
                # The first one allocates and warms up.
                self._cycle(copied, phases, optimizers, stream, noise, stage=stage, progress=0.5)
                seconds_of_stage, images = self._timed_steps(copied, phases, optimizers, stream, noise, stage)
                seconds += share * seconds_of_stage
                images_per_step += share * images
            beside = self._seconds_beside(copied.eval())
        # Neither what the copy's gradients were nor what averaged them is of the run.
        self.gradient_norms, self.n_skipped, self.gradient_means = usual, 0, {}
        if self.fabric.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        n_parameters = sum(p.numel() for p in self.model.parameters())
        return Cost(
            self._from_first(seconds),
            self._from_first(beside),
            memory,
            self._disk(),
            n_parameters,
            round(images_per_step),
        )

    def _timed_steps(
        self,
        model: GenerativeModel,
        phases: tuple[Phase, ...],
        optimizers: list[Any],
        stream: BatchStream,
        noise: torch.Generator,
        stage: int,
    ) -> tuple[float, float]:
        """Seconds and items of a step, over as many as take a second, but two at least and a hundred at most."""
        weights: list[Tensor] = [*model.parameters()]
        averages = [weight.detach().clone() for weight in weights]
        self._synchronize()
        start, position, steps, spent = time.perf_counter(), stream.position, 0, 0.0
        while steps < 2 or (spent < 1 and steps < 100):
            self._cycle(model, phases, optimizers, stream, noise, stage=stage, progress=0.5)
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 0.1)
            self._synchronize()
            steps += 1
            spent = self._from_first(time.perf_counter() - start)
        return spent / steps, (stream.position - position) / steps

    def _seconds_beside(self, model: GenerativeModel) -> float:
        """What all validations and sample grids of a run take together: one of each is tried, on few items."""
        n_validations: float = self.config.validations
        if self.budget.unit == "steps":
            n_validations = min(n_validations, self.budget.amount)
        n_wanted, seconds = self.n_validation_items, 0.0
        if self._has_likelihood() and n_validations:
            # Whole parts, or fewer items: what a part costs does not grow with its items in proportion.
            self.n_validation_items = n_tried = min(n_wanted, VALIDATED * self.world)
            self.validation_nll(model)  # The first one allocates and warms up.
            start = time.perf_counter()
            self.validation_nll(model)
            self.n_validation_items = n_wanted
            seconds += (time.perf_counter() - start) * math.ceil(n_wanted / n_tried) * n_validations
        elif isinstance(model, Watched) and self.watch is not None:
            start = time.perf_counter()
            x, y = self._on_device(self.watch.items, self.watch.labels)
            with torch.no_grad(), self.fabric.autocast():
                items = model.drawn_beside(x, y, generator=torch.Generator(x.device).manual_seed(0)).cpu().numpy()
            copy.deepcopy(self.watch).look(items, 0, 0.0, {})
            seconds += (time.perf_counter() - start) * n_validations
        start = time.perf_counter()
        with sharding.whole(model):
            if self.is_writer:
                self._draw_film(model)
        return seconds + (time.perf_counter() - start) * (len(FILM_AT) + 1)

    def _disk(self) -> int:
        """Bytes of the run folder at its end, and of the checkpoint that is written before another goes."""
        state = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        moments = 2 * 4 * sum(p.numel() for phase in self.phases for p in phase.parameters)
        has_best = self.config.validations > 0 and (self._has_likelihood() or self.watch is not None)
        film = FILM_ITEMS * self.dataset.space.n_dims * (4 if isinstance(self.dataset.space, PointSpace) else 1)
        grids = (len(FILM_AT) + 1) * (2 * film + 2**12)  # the array, and a picture of about its size
        return (self.config.keep + 1) * ((2 + has_best) * state + moments) + state + grids

    def _synchronize(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    # ---- the run

    def fit(self, *, resume: bool = False) -> Summary:
        """Trains until the budget is spent, or validation stops improving; leaves the chosen weights in `self.ema`.

        Arguments:
            resume: Go on from the latest sound checkpoint instead of starting anew.
        Raises:
            TrainingStopped: If a loss is no longer finite, a file cannot be written, data that are read as needed have
                changed, or on Ctrl-C or SIGTERM; the last good checkpoint stands.
            InputError: If there is no usable checkpoint to resume from.
        """
        if self.is_writer:
            self.check_folder()
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            for path in filter(is_temporary, self.folder.rglob("*")):
                path.unlink(missing_ok=True)
        try:
            if isinstance(self.model, Estimated):
                return self._estimate(self.model)
            return self._train(resume)
        except OSError as error:
            raise self._cannot_write(error) from None
        except DataChanged as error:
            raise TrainingStopped(f"After step {self.step}: {error} {self._what_stands()}") from None

    def _train(self, resume: bool) -> Summary:
        wrapped, optimizers = self._set_up()
        if resume:
            self._restore(optimizers)
        elif self.inherited is not None:
            for optimizer, state in zip(optimizers, self.inherited, strict=True):
                sharding.load_optimizer(optimizer, state)
            self.inherited = None
        records = self._records()
        self.start_time = time.perf_counter()
        self._agree()
        self.checkpoint_time = self._seconds()
        try:
            with TrainingProgress(self.folder.name, self.console, self._progress()) as bar, self._catch_signals():
                if not resume:
                    self._size_validation()  # Before the first checkpoint, which remembers it.
                    self._film(records, 0.0)
                    self._save(optimizers, records)
                    self.start_time = time.perf_counter()  # What comes before the first step is not of the budget.
                    self.checkpoint_time = 0.0
                    self._agree()
                reason = self.ended or self._loop(wrapped, optimizers, records, bar)
            self._save(optimizers, records, reason)
            summary = self._finish(reason)
            self._film(records, 1.0, self.ema)
            records.append({**self._where(), "event": "finished", "reason": reason, "best_step": summary.best_step})
            records.flush()
        finally:
            records.close()
            self.model.requires_grad_(True)
        while self.gradient_means:
            self.gradient_means.popitem()[1].close()
        return summary

    def _set_up(self) -> tuple[Any, list[Any]]:
        """The model in training mode, and an optimiser for each phase."""
        optimizers = [self._optimizer(phase) for phase in self.phases]
        self._parameters: list[Tensor] = [*self.model.parameters()]
        self._ema_parameters: list[Tensor] = [*self.ema.parameters()]
        if self.world > 1:  # The same seed gives the same weights, but on another kind of processor not quite.
            for network in (self.model, self.ema):
                for tensor in network.state_dict().values():
                    if not sharding.is_part(tensor):
                        with parallel.speaking():
                            torch.distributed.broadcast(tensor, 0)
        return self.model.train(), optimizers

    def _records(self) -> Records | NoRecords:
        if not self.is_writer:
            return NoRecords()
        path = self.folder / "metrics.jsonl"
        return Records(path, self.metrics_bytes, tensorboard=self.config.tensorboard, first_step=self.step)

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM let the running step end and be saved; a second one takes effect at once.

        SIGHUP, of a terminal that is closed, as well, unless it is ignored (`nohup`); it can come twice by itself.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        if before[signal.SIGHUP] == signal.SIG_IGN:
            del before[signal.SIGHUP]

        def stop(number: int, frame: object) -> None:
            self.signalled = True
            restore(*(set(before) - {signal.SIGHUP}))
            if self.console is not None:
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, b"\nFinishing the step and saving it; a second signal stops at once.\n")

        def restore(*numbers: signal.Signals) -> None:
            for number in numbers:
                signal.signal(number, before[number])

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore(*before)

    def _loop(
        self, wrapped: Any, optimizers: list[Any], records: Records | NoRecords, bar: TrainingProgress
    ) -> EndReason:
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
            if self.lock is not None:
                self.lock.steps_done(self.step)
            self._update_ema()
            self.sums["total"] = self.sums.get("total", 0.0) + total
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.since += 1
            self._agree(at_once=False)
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
        sharding.load_weights(self.model, state)
        sharding.load_weights(self.ema, state)
        self.best, self.waited = None, 0
        self.stage, self.stage_began, self.stage_first_step = self.stage + 1, progress, self.step

    def _means(self) -> dict[str, float]:
        """Means of the terms since the last record.

        Raises:
            TrainingStopped: If one is not finite.
        """
        sums = self.sums
        if self.world > 1:
            values = torch.stack(
                [torch.as_tensor(value, device=self.fabric.device).double() for value in sums.values()]
            )
            with parallel.speaking():
                torch.distributed.all_reduce(values)
            sums = dict(zip(sums, (values / self.world).tolist(), strict=True))
        means = {name: float(value) / max(1, self.since) for name, value in sums.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value) and name != "total"]
        if bad or not math.isfinite(means.pop("total", 0.0)):
            raise self._diverged(bad[0] if bad else "The loss")
        return means

    def _diverged(self, what: str, how: str = "is no longer finite") -> TrainingStopped:
        return TrainingStopped(
            f"{what} {how} at step {self.step}; the last good checkpoint, of step"
            f" {self.last_checkpoint_step}, stands in {self.folder}. Train again with a lower --learning-rate."
        )

    def check_folder(self) -> None:
        """Before each writing by path: where the run folder was, another training may have begun in another folder.

        Raises:
            TrainingStopped: If the folder was moved, removed or replaced.
        """
        if self.lock is not None and not self.lock.holds():
            raise TrainingStopped(
                f"{self.folder} was removed, moved or replaced; nothing more is written, after step {self.step}. If it"
                " was moved, go on with --resume and where it is now; otherwise train anew."
            )

    def _cannot_write(self, error: OSError) -> TrainingStopped:
        what = f"{error.filename or self.folder}: {error.strerror or error}, after step {self.step}"
        try:
            self.check_folder()
        except TrainingStopped as gone:
            return gone
        return TrainingStopped(f"{what}; make room, or mend its rights. {self._what_stands()}")

    def _what_stands(self) -> str:
        """What is left of a training that stops, and how to go on with it."""
        if not self.checkpoints.paths():
            return "Nothing is saved yet: then train anew."
        return (
            f"The last good checkpoint, of step {self.last_checkpoint_step}, stands: then go on with"
            f" --resume {self.folder}"
        )

    def _say(self, what: str) -> None:
        if self.console is not None:
            self.console.print(what, markup=False, highlight=False, soft_wrap=True)

    def _where(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "n_images_seen": self.stream.position,
            "elapsed_seconds": round(self._seconds(), 3),
        }

    def _seconds(self) -> float:
        if self.world > 1:
            return self.agreed_seconds
        return self.seconds_before + time.perf_counter() - self.start_time

    def _agree(self, *, at_once: bool = True) -> None:
        """Takes the time from the first process, and stops if any is to stop.

        Arguments:
            at_once: Wait for what is asked now; otherwise for what was asked before, which has come by now.
        """
        if self.world == 1:
            self.interrupted = self.signalled
            return
        seconds = self.seconds_before + time.perf_counter() - self.start_time
        news = torch.tensor([seconds if self.is_writer else 0.0, float(self.signalled)], dtype=torch.float64)
        news = news.to(self.fabric.device)
        with parallel.speaking():
            asked = [*self.asked, (news, torch.distributed.all_reduce(news, async_op=True))]
            # The first time there is nothing from before.
            answered = asked if at_once else asked[:-1]
            self.asked = [] if at_once else asked[-1:]
            for _, work in answered:
                work.wait()
        if answered:
            seconds, stops = answered[-1][0].tolist()
            self.agreed_seconds, self.interrupted = seconds, stops > 0

    def _from_first(self, value: Value) -> Value:
        """The first process's value, on all."""
        if self.world == 1:
            return value
        values = [value]
        with parallel.speaking():
            torch.distributed.broadcast_object_list(values, 0, device=self.fabric.device)
        return values[0]

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
        return self._seconds() - self.checkpoint_time >= self.checkpoint_every.amount

    def _spent(self, start: float) -> None:
        """Under a clock, work beside the training may take an eighth of the time: the next must wait."""
        self._agree()
        self.pause_until = max(self.pause_until, self._seconds() + 7 * (self._seconds() - start))

    def _film(self, records: Records | NoRecords, progress: float, model: GenerativeModel | None = None) -> None:
        """Draws samples, with the same noise each time, and saves them as picture and array.

        Arguments:
            model: By default the averaged one.
        """
        start = self._seconds()
        model = self._drawing() if model is None else model
        while self.n_films < len(FILM_AT) and progress >= FILM_AT[self.n_films]:
            self.n_films += 1
        with sharding.whole(model):
            items = self._draw_film(model) if self.is_writer else None
        if items is None:
            self._spent(start)
            return
        self.check_folder()
        stem = self.folder / "samples" / f"step-{self.step:08d}"
        np.save(stem.with_suffix(".npy"), items)
        save_items(items, self.dataset.space, stem.with_suffix(".png"))
        records.append({**self._where(), "event": "samples", "file": f"samples/{stem.name}.npy"})
        self._spent(start)

    def _draw_film(self, model: GenerativeModel) -> np.ndarray:
        noise = torch.Generator(self.fabric.device).manual_seed(self.config.seed + 1)
        labels = torch.arange(FILM_ITEMS, device=self.fabric.device) % model.n_classes if model.n_classes else None
        with torch.no_grad(), self.fabric.autocast():
            return model.sample(FILM_ITEMS, labels=labels, generator=noise).cpu().numpy()

    def _validate(self, records: Records | NoRecords, progress: float) -> bool:
        """Scores the validation items with the averaged weights and keeps the best; False when it is time to end."""
        start = self._seconds()
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

    def _look(self, watch: Watch, optimizers: list[Any], records: Records | NoRecords, progress: float) -> None:
        """Lays samples of the averaged weights beside the validation items, tells what is amiss and keeps the best."""
        start = self._seconds()
        self._count_validations(progress)
        noise = torch.Generator(self.fabric.device).manual_seed(self.config.seed)
        model = self._drawing()
        assert isinstance(model, Watched)
        x, y = self._on_device(watch.items, watch.labels)
        look = None
        if self.is_writer:
            with torch.no_grad(), self.fabric.autocast():
                items = model.drawn_beside(x, y, generator=noise).cpu().numpy()
            if np.isfinite(items).all():
                look = watch.look(items, self.step, progress, self.latest)
        look = self._from_first(look)
        if look is None:
            stopped = self._diverged("A sample")
            if not self._roll_back(optimizers, records, str(stopped)):
                raise stopped
            return
        if not self.is_writer:
            watch.looks.append(look)
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

    def _tell(self, records: Records | NoRecords, what: str) -> None:
        """Reports something that goes wrong: on the console, in the log and in the summary."""
        self.findings.append(f"Step {self.step:,}: {what}")
        records.append({**self._where(), "event": "finding", "finding": what})
        self._say(f"{self.folder.name}, step {self.step}: {what}")

    def _roll_back(self, optimizers: list[Any], records: Records | NoRecords, why: str) -> bool:
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
        fitting = max(self.n_validation_items, min(wanted, int(self.budget.amount / 40 / seconds)))
        self.n_validation_items = self._from_first(fitting)

    def _record_validation(self, records: Records | NoRecords, nll: float) -> None:
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
        noise = torch.Generator(self.fabric.device)
        starts = list(range(0, len(chosen), VALIDATED))
        totals = torch.zeros(len(starts), dtype=torch.float64)
        with sharding.whole(model):
            for place in range(self.rank, len(starts), self.world):
                start = starts[place]
                items, labels = split.read(chosen[start : start + VALIDATED])
                noise.manual_seed(self.config.seed + start)  # so that no chunk's hangs on another, nor on who scores it
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
                totals[place] = -nats.double().sum()
        if self.world > 1:
            totals = totals.to(self.fabric.device)
            with parallel.speaking():
                torch.distributed.all_reduce(totals)
        return float(totals.sum()) / len(chosen)

    # ---- checkpoints

    def _save(self, optimizers: list[Any], records: Records | NoRecords, ended: EndReason | None = None) -> None:
        # The last good checkpoint must stand.
        sums = self._sums_of_all()
        if any(not math.isfinite(float(value)) for one in sums for value in one.values()):
            raise self._diverged("The loss")
        if not all(bool(sharding.together(tensor.isfinite().all())) for tensor in self.model.parameters()):
            raise self._diverged("A weight")
        averaged = self._averaged()
        # Putting parts together takes all processes.
        state = {
            "model": sharding.full(self.model.state_dict()),
            "ema": sharding.full(averaged.state_dict()),
            # The settings are of the config and the schedule, and a step sets them.
            "optimizers": [{"state": sharding.full(optimizer.state_dict()["state"])} for optimizer in optimizers],
            "best": sharding.full(self.best),
        }
        failure: OSError | TrainingStopped | None = None
        if self.is_writer:
            try:
                self._write(state, sums, records, ended)
            except (OSError, TrainingStopped) as error:
                failure = error
        # Others wait, or they might leave for good, and all be ended, while the first one writes.
        if self._from_first(failure is not None):
            raise failure or TrainingStopped("The first process cannot write a checkpoint, and says why.")
        self.last_checkpoint_step, self.checkpoint_time = self.step, self._seconds()

    def _write(
        self,
        state: dict[str, Any],
        sums: list[dict[str, Any]],
        records: Records | NoRecords,
        ended: EndReason | None,
    ) -> None:
        """Writes a checkpoint, and the weights that a reader of the run is to see.

        Raises:
            OSError: If one of them cannot be written.
            TrainingStopped: If the folder is gone.
        """
        self.check_folder()
        self.checkpoints.write(
            self.step,
            {
                "format": CHECKPOINT_FORMAT,
                "settings": dict(self.settings),
                "ended": ended,
                "step": self.step,
                "stage": (self.stage, self.stage_began, self.stage_first_step),
                "position": self.stream.position,
                "seconds": self._seconds(),
                **state,
                "noise": self.noise.get_state(),
                "global_noise": self._global_states(),
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
                "sums": sums,
                "since": self.since,
                "metrics_bytes": records.flush(),
            },
        )
        write_weights(self.folder / "model.safetensors", state["best"]["state"] if self.best else state["ema"])

    def _sums_of_all(self) -> list[dict[str, Any]]:
        """The sums of the terms of every process, in order."""
        if self.world == 1 or not self.sums:
            return [self.sums] * self.world
        own = {name: torch.as_tensor(value) for name, value in self.sums.items()}
        values = torch.stack([value.to(self.fabric.device).double() for value in own.values()])
        gathered = [torch.empty_like(values) for _ in range(self.world)]
        with parallel.speaking():
            torch.distributed.all_gather(gathered, values)
        return [
            {name: value.to(tensor) for (name, tensor), value in zip(own.items(), of_one, strict=True)}
            for of_one in gathered
        ]

    def _restore(self, optimizers: list[Any]) -> None:
        saved, damaged = self.checkpoints.read()
        path = self.checkpoints.folder
        try:
            if saved["format"] != CHECKPOINT_FORMAT:
                raise InputError(
                    f"{path} has format {saved['format']}; this version reads {CHECKPOINT_FORMAT}. Begin a new run with"
                    f" its weights: --fork {self.folder}"
                )
            check_kinds(saved)
            if difference := first_difference(saved["settings"], self.settings):
                raise InputError(
                    f"{path}: step {saved['step']} is not of the run in config.json: {difference}. Restore what was"
                    f" changed, or begin a new run with these weights: --fork {self.folder}"
                )
            self.step, self.stream.position, self.seconds_before = saved["step"], saved["position"], saved["seconds"]
            self.stage, self.stage_began, self.stage_first_step = saved["stage"]
            self.stages[self.stage]
            sharding.load_weights(self.model, saved["model"])
            sharding.load_weights(self.ema, saved["ema"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                sharding.load_optimizer(optimizer, state)
            self.noise.set_state(saved["noise"])
            self._set_global_states(saved["global_noise"])
            self.best, self.waited, self.ended = saved["best"], saved["waited"], saved["ended"]
            if self.best is not None:
                sharding.check_fits(self.ema, self.best["state"])
            self.gradient_norms, self.latest = saved["gradient_norms"], saved["latest"]
            self.rate_factor, self.rise_from = saved["rate_factor"], saved["rise_from"]
            self.findings = saved["findings"]
            if self.watch:
                self.watch.restore(saved["watch"])
            self.n_validations, self.n_films = saved["n_validations"], saved["n_films"]
            self.n_validation_items = saved["n_validation_items"]
            self.since, self.metrics_bytes = saved["since"], saved["metrics_bytes"]
            sums = saved["sums"]  # of every process; of others than now, all take the mean
            self.sums = {name: sum(one[name] for one in sums) / len(sums) for name in sums[0]}
            if len(sums) == self.world:
                self.sums = sums[self.rank]
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} does not fit the run ({str(error).splitlines()[0]}); train anew.") from None
        self.last_checkpoint_step = self.step
        self.start_time = time.perf_counter()
        for what in damaged:
            self._say(f"{what.rstrip('.')}; the one before it is taken.")
        lost = max(0, self.lock.last_step - self.step) if self.lock is not None else 0
        if self.lock is not None:
            self.lock.lose(lost)
        if self.ended is None:
            steps = f"; {counted(lost, 'step')} after it, lost, will be done again" if lost else ""
            self._say(f"Going on after step {self.step}{steps}.")

    def _finish(self, reason: EndReason) -> Summary:
        if self.best is None:
            self._drawing()
        else:  # What a look chose had been made ready, too.
            sharding.load_weights(self.ema, self.best["state"])
        if self.is_cut:
            self.uncut.load_state_dict(sharding.full(self.ema.state_dict()))
            self.ema = self.uncut.to(self.fabric.device).eval()
        if isinstance(self.ema, Completed):
            items, labels = self._training_items(self.ema.max_items)
            self.ema.complete(items, labels, generator=torch.Generator().manual_seed(self.config.seed))
        if self.is_writer and (self.best is None or isinstance(self.ema, Completed)):  # Else `_save` has written them.
            self.check_folder()
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
            lost_steps=self.lock.n_lost if self.lock is not None else 0,
        )

    def _training_items(self, most: int) -> tuple[Tensor, Tensor | None]:
        """Training items and labels, a fixed random subset if there are more than `most`."""
        split = self.dataset.train
        order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(split))
        items, labels = split.read(np.sort(order[:most]))
        return torch.from_numpy(items), None if labels is None else torch.from_numpy(labels)

    # ---- models that an algorithm of their own estimates

    def _estimate(self, model: Any) -> Summary:
        """Runs the model's own algorithm on the training data until it converges or the budget is spent.

        The first process alone does so; the others wait for what it finds.
        """
        records = self._records()
        reason: EndReason = "converged"
        model.cpu()
        try:
            if self.is_writer:
                reason = self._run_estimation(model, records)
            found = self._from_first((model.state_dict(), reason, self.step, self.stream.position))
            self.ema.load_state_dict(found[0])
            _, reason, self.step, self.stream.position = found
            self._agree()
            nll = self.validation_nll(self.ema)
            self._record_validation(records, nll)
            self._film(records, 1.0, self.ema)
            records.append({**self._where(), "event": "finished", "reason": reason, "best_step": self.step})
            records.flush()
        finally:
            records.close()
        if self.is_writer:
            self.check_folder()
            write_weights(self.folder / "model.safetensors", self.ema.state_dict())
        return Summary(reason, self.step, self.stream.position, self._seconds(), self.step, nll)

    def _run_estimation(self, model: Any, records: Records | NoRecords) -> EndReason:
        x, y = self._training_items(model.max_items)
        self.start_time = time.perf_counter()
        with TrainingProgress(self.folder.name, self.console) as bar, self._catch_signals():
            for terms in model.estimate(x, y, generator=torch.Generator().manual_seed(self.config.seed)):
                self.step += 1
                self.stream.position += len(x)
                self.agreed_seconds = time.perf_counter() - self.start_time
                progress = self._progress()
                records.append({**self._where(), **{f"estimation/{name}": value for name, value in terms.items()}})
                bar.update(progress, self.step, terms)
                if progress >= 1:
                    return "budget"
                if self.signalled:
                    raise TrainingInterrupted(
                        f"Interrupted in iteration {self.step}. An estimation is not saved part way: --resume"
                        f" {self.folder} begins it again."
                    )
        return "converged"
