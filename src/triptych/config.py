"""Settings of a training run. The docstring under each field is its help on the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from triptych.errors import InputError

MAX_BATCH = 2**20
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, by steps, or by training items seen."""

    unit: Literal["seconds", "steps", "images"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `90s`, `10m`, `1.5h`, `5000` or `5000steps`, `200000images` or `200kimages`.

        Raises:
            InputError: If the text is none of these, or the amount is not positive.
        """
        match = re.fullmatch(r"\s*(-?[\d_.]+)\s*(k?)(s|m|h|steps?|images?|)\s*", str(text))
        advice = "Give seconds (90s), minutes (10m), hours (2h), steps (5000steps) or images (200kimages)."
        try:
            amount = float(match[1]) if match else math.nan
        except ValueError:
            amount = math.nan
        if not match or not math.isfinite(amount) or (match[2] and match[3] in _SECONDS):
            raise InputError(f"Budget {text!r} cannot be read. {advice}")
        amount *= 1000 if match[2] else 1
        unit: Literal["seconds", "steps", "images"] = "steps"
        if match[3] in _SECONDS:
            unit, amount = "seconds", amount * _SECONDS[match[3]]
        elif match[3].startswith("image"):
            unit = "images"
        if amount <= 0 or (unit != "seconds" and amount < 1):
            raise InputError(f"Budget {text!r} leaves nothing to train with. {advice}")
        return cls(unit, amount)

    def progress(self, *, seconds: float, steps: int, images: int) -> float:
        """Share of the budget used, 0 at the start; 1 or more when it is spent."""
        return {"seconds": seconds, "steps": steps, "images": images}[self.unit] / self.amount

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    budget: str = "60s"
    """Training budget: seconds (90s), minutes (10m), hours (2h), steps (5000steps) or images (200kimages). A step is
    one cycle through the model's phases. With a budget in seconds no two runs are quite the same; steps and images are
    repeated exactly on one machine."""
    seed: int = 0
    """Seed of the weights, the order of the data and all noise."""
    batch_size: int | None = None
    """Items in each batch; by default 32 images, which learn most per second on a CPU (a GPU has room for 128 and
    more), or 256 points, which cost hardly more than one."""
    learning_rate: float | None = None
    """Learning rate of every phase; by default each phase's own."""
    clip_norm: float | None = None
    """Longest gradient of every phase, in Euclidean norm, 0 for no limit; by default each phase's own."""
    ema_decay: float = 0.995
    """Decay of the moving average of the weights, which is what is evaluated and saved; 0 for none."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the network; auto is bf16 on a GPU that has it, else float32. Weights are float32 always."""
    devices: int = 1
    """Processes on this machine that share each batch: one for each GPU, or on the CPU as many as you like. torchrun
    starts them too, and then knows how many."""
    nodes: int = 1
    """Machines that share each batch, each with as many devices."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share: ddp, each holds all weights; fsdp, each holds a part of weights, averages, gradients
    and moments, for models that outgrow a GPU (not for adversarial ones)."""
    accumulate: int = 1
    """Pieces in which a process works through its part of each batch, to save memory; the weights are the same but for
    rounding (with batch normalisation, a codebook or adaptive augmentation a piece counts as a batch)."""
    validations: int = 40
    """Validations over the budget, evenly spaced (fewer if they would take more than an eighth of the time)."""
    validation_items: int = 1000
    """Validation items for each, at most: a fixed random subset."""
    patience: int = 12
    """Validations without a better likelihood that end the training early; 0 for never."""
    rollbacks: int = 2
    """Times that an adversarial training which diverges goes back to its best weights, and on with half the learning
    rate; 0 for never."""
    checkpoint_every: str = "60s"
    """Time between checkpoints, or steps (500steps)."""
    keep: int = 2
    """Checkpoints to keep, the latest ones; if the last is damaged, a resumed run goes on from the one before."""
    log_every: int = 20
    """Steps between records in metrics.jsonl."""
    tensorboard: bool = False
    """Write the numbers of metrics.jsonl for TensorBoard too, in tensorboard/ of the run folder."""

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {"int": int, "float": int | float, "bool": bool, "str": str}
        for setting in dataclasses.fields(self):
            kind, _, optional = str(setting.type).partition(" | ")
            value = getattr(self, setting.name)
            fits = isinstance(value, kinds.get(kind, str)) and (kind == "bool" or not isinstance(value, bool))
            if not fits and not (optional and value is None):
                raise InputError(f"{setting.name} is {value!r}; it must be of type {kind}.")
        Budget.parse(self.budget)
        if Budget.parse(self.checkpoint_every).unit == "images":
            raise InputError(f"checkpoint_every is {self.checkpoint_every!r}; give seconds (60s) or steps (500steps).")
        at_least = {"batch_size": 1, "log_every": 1, "validation_items": 1, "validations": 0, "patience": 0}
        at_least |= {"warmup_steps": 0, "seed": 0, "rollbacks": 0, "keep": 1}
        at_least |= {"devices": 1, "nodes": 1, "accumulate": 1}
        for field, least in at_least.items():
            if (value := getattr(self, field)) is not None and value < least:
                raise InputError(f"{field} is {value}; it must be at least {least}.")
        if self.batch_size is not None and self.batch_size > MAX_BATCH:
            raise InputError(f"batch_size is {self.batch_size}; it must be at most {MAX_BATCH}.")
        if self.seed >= 2**63:
            raise InputError(f"seed is {self.seed}; it must be below 2^63.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be positive and finite.")
        if self.clip_norm is not None and not self.clip_norm >= 0:
            raise InputError(f"clip_norm is {self.clip_norm}; it must be 0 (no limit) or positive.")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1.")
        words = {"device": ("auto", "cpu", "cuda"), "precision": ("auto", "32", "bf16"), "strategy": ("ddp", "fsdp")}
        for field, allowed in words.items():
            if getattr(self, field) not in allowed:
                raise InputError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return dataclasses.asdict(self)

    def check_alone(self, what: str) -> None:
        """Raises InputError if several processes are wanted where each training is to have one."""
        if self.devices * self.nodes > 1:
            raise InputError(
                f"{what} trains in one process; leave --devices and --nodes out, or train with fit and lay the runs"
                " side by side with report."
            )


@dataclass(frozen=True)
class DataConfig:
    """How to read the data."""

    size: str | None = None
    """Size to bring images of mixed (or other) sizes to: 32, or 32x48 (height x width)."""
    crop: Literal["center", "pad", "none"] = "center"
    """With --size: cut the longer side, pad the shorter one with black, or change the proportions."""
    levels: int | None = None
    """Values a sub-pixel can take; by default as found (256, or 2 for 1-bit images)."""
    grey: bool = False
    """Turn colour images grey."""
    binarize: Literal["none", "dynamic", "fixed", "threshold"] = "none"
    """Make binary images of grey or colour ones: each sub-pixel is 1 with its intensity as probability, drawn anew for
    every training batch (dynamic) or once (fixed); or where it is at least half (threshold)."""
    skip_bad: bool = False
    """Skip unreadable files and count them, instead of refusing the set."""
    valid_fraction: float = 0.1
    """Share of the items kept for validation, where the source has no validation split."""
    test_fraction: float = 0.1
    """Share of the items kept for testing, where the source has no test split."""
    data_seed: int = 0
    """Seed of the splits, and of the draws that binarize keeps."""
    limit: int | None = None
    """Items of each split at most, chosen at random."""

    def to_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `load_data`.

        Raises:
            InputError: If the size cannot be read.
        """
        values = dataclasses.asdict(self)
        if self.size is not None:
            match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", self.size)
            if not match:
                raise InputError(f"--size is {self.size!r}; give 32, or 32x48 (height x width).")
            values["size"] = (int(match[1]), int(match[2] or match[1]))
        values["seed"] = values.pop("data_seed")
        return values


@dataclass(frozen=True)
class MeasureConfig:
    """How to measure."""

    importance_samples: int = 64
    """Samples of the importance-weighted bound of models that have one; 0 for none."""
    n_samples: int | None = None
    """Samples of each model; by default, and at most, as many as there are held-out items."""
    features: str | None = None
    """Features of the two-sample distances, with commas between: random, classifier, autoencoder, and with weights that
    you have inception or dinov2 (or inception=FILE, dinov2=FILE); in the first ones copies are looked for too. By
    default random,classifier, or random,autoencoder where there are no labels."""
    no_discriminator: bool = False
    """Train no discriminator on samples against data, which takes most of the time of measuring."""

    def to_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `evaluate` and `compare`.

        Raises:
            InputError: If no features are named.
        """
        words = [word.strip() for word in (self.features or "").split(",")]
        extractors = None if self.features is None else [word for word in words if word]
        if extractors is not None and not extractors:
            raise InputError("--features names none; give for example random,classifier.")
        return {
            "n_importance": self.importance_samples,
            "n_samples": self.n_samples,
            "extractors": extractors,
            "discriminator": not self.no_discriminator,
        }
