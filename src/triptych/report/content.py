"""Everything the report page shows, as plain values and arrays: the page knows nothing of models or training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from triptych.evaluation.neighbours import Neighbours
from triptych.evaluation.results import PerClass, Table
from triptych.spaces import Space


@dataclass(frozen=True)
class PanelContent:
    """One model of the comparison."""

    name: str
    """Model name, `pixel_cnn`."""
    title: str
    """The class's name, `PixelCNN`."""
    panel: str
    """'tractable', 'approximate', 'implicit'."""
    samples: np.ndarray
    """(N, *space.shape), data units."""
    film: tuple[tuple[float, np.ndarray], ...] = ()
    """Samples over training time: (seconds of training, items (M, *space.shape)), in order; same noise throughout."""
    curves: tuple[dict[str, Any], ...] = ()
    """Records of metrics.jsonl; every one has `step` and `elapsed_seconds`; losses are under `<phase>/<term>`,
    validation under `valid/<term>`, and the rest (`learning_rate/<phase>`, `n_images_seen`, ...) by name."""
    reconstructions: tuple[np.ndarray, np.ndarray] | None = None
    """Held-out items and their reconstructions, (M, *space.shape) each; None where the model has none."""
    neighbours: Neighbours | None = None
    neighbours_in_features: Neighbours | None = None
    facts: dict[str, str] = field(default_factory=dict)
    """What else to print of the model, in order: parameters, training time, steps, options."""


@dataclass(frozen=True)
class TradeOff:
    """A figure of quality against cost: which models does no other beat in both?"""

    quality: str
    """Metric.key of the vertical axis, 'fd_random'."""
    cost: str
    """Metric.key of the horizontal axis, 'training_seconds'; less is better, logarithmic."""


@dataclass(frozen=True)
class ReportContent:
    """The whole page."""

    title: str
    """'digits: pixel_cnn, vae, gan'."""
    space: Space
    table: Table
    panels: tuple[PanelContent, ...]
    held_out: np.ndarray
    """Held-out items to lay beside the samples, (N, *space.shape)."""
    held_out_neighbours: Neighbours | None = None
    """Held-out items beside their nearest training items: what a model that copies nothing shows."""
    held_out_neighbours_in_features: Neighbours | None = None
    data: dict[str, str] = field(default_factory=dict)
    """Facts of the data set, in order: source, items of each split, classes, checksum, what was repaired."""
    command: str = ""
    """The command that repeats the comparison."""
    environment: dict[str, str] = field(default_factory=dict)
    """Hardware and versions, in order."""
    protocol: tuple[str, ...] = ()
    """How it was done, a sentence each: budget, seed, selection, splits."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the table rightly, a sentence each."""
    verdicts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By panel: what the numbers support and what they do not, a sentence each."""
    per_class: PerClass | None = None
    trade_offs: tuple[TradeOff, ...] = ()
