"""Learning curves: the records of a run as one small drawing for each unit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.report.html import Html, element
from triptych.report.plot import Plot, legend

NOT_LOSSES = frozenset({"learning_rate", "gradient_norm", "skipped"})
MAX_POINTS = 400
"""Points of a raw line; more would only be bytes at this size."""
SMOOTHING = 40
"""The smooth line averages over the values divided by this."""
UNITLESS = frozenset({"loss", "logit", "score", "penalty", "accuracy", "probability"})
"""Quantities without a unit: terms that have one of these words share axes."""
MAX_SERIES = 200
"""Curves of a run, of which none has a tenth."""
N_STYLES = 4
"""Line styles that style.css has."""


@dataclass(frozen=True)
class Series:
    """One term of the log over time."""

    source: str
    """Phase, or 'valid'."""
    name: str
    """Term without its unit: 'kl', or empty where the term is only a unit."""
    axes: str
    """Label of the vertical axis, which terms of one unit share."""
    seconds: np.ndarray
    values: np.ndarray


def split_unit(term: str) -> tuple[str, str]:
    """Name and unit of a term: `kl_nats_per_image` -> ('kl', 'nats/image'), `bits_per_dim` -> ('', 'bits/dim')."""
    found = re.fullmatch(r"(?:(?P<name>.*)_)?(?P<unit>nats|bits|[a-z]+_per_[a-z]+)", term)
    if not found:
        return term.replace("_", " "), ""
    return (found["name"] or "").replace("_", " "), found["unit"].replace("_per_", "/")


def series_of(records: Iterable[dict[str, Any]]) -> list[Series]:
    """The losses in the records of metrics.jsonl, training terms first, else in the order in which they appear."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            source, slash, term = key.partition("/")
            if slash and source not in NOT_LOSSES and isinstance(value, int | float):
                points[source, term].append((float(record["elapsed_seconds"]), float(value)))
    all_series: list[Series] = []
    named: set[tuple[str, str]] = set()
    for (source, term), pairs in sorted(points.items(), key=lambda item: item[0][0] == "valid"):
        name, unit = split_unit(term)
        if (source, name) in named:  # The same quantity in another unit (nats per image, bits/dim) is the same curve.
            continue
        named.add((source, name))
        kind = next((word for word in name.split(" ") if word in UNITLESS), name)
        seconds, values = np.array(pairs).T
        all_series.append(Series(source, name, unit or kind, seconds, values))
    return all_series[:MAX_SERIES]


def learning_curves(records: tuple[dict[str, Any], ...], title: str) -> list[Html]:
    """One drawing for each unit among a model's losses, with its legend; empty if there are none."""
    groups: dict[str, list[Series]] = defaultdict(list)
    for series in series_of(records):
        groups[series.axes].append(series)
    n_steps = max((int(record["step"]) for record in records), default=0)
    heights = [190] + [100] * len(groups)  # The first terms are what is optimised; the rest are for diagnosis.
    return [_drawing(*group, n_steps, title, height) for group, height in zip(groups.items(), heights, strict=False)]


def _drawing(axes: str, group: list[Series], n_steps: int, title: str, height: int) -> Html:
    finite = [(s, np.isfinite(s.values)) for s in group]
    shown = [(s, keep) for s, keep in finite if keep.any()]
    missing = sum(int((~keep).sum()) for _, keep in finite)
    notes = [f"{missing:,} of the values are not finite and left out."] if missing else []
    if not shown:
        return element("p", f"{axes}: {notes[0]}", class_="quiet")
    last = max(float(s.seconds.max()) for s, _ in shown)
    y_range, is_cut = _y_range(shown, last)
    if is_cut:
        notes.append("The first, far larger values are cut at the frame.")
    plot = Plot(
        (0.0, 1.015 * last or 1.0),
        y_range,
        size=(350, height),
        y_label=axes,
        x_label=f"seconds of training ({n_steps:,} steps)",
    )
    styles = _styles(group)
    entries = []
    for s, keep in shown:
        style = styles[s.source, s.name]
        if s.source == "valid":
            plot.line(s.seconds, s.values, style)
            if keep.sum() <= 60:
                plot.circles(s.seconds, s.values, style)
        else:
            smooth = smoothed(s.values)
            thin = _thinned(len(s.values))
            if len(s.values) >= 2 * SMOOTHING:
                plot.line(s.seconds[thin], s.values[thin], f"{style} raw")
            plot.line(s.seconds[thin], smooth[thin], style)
        entries.append((style, _series_label(s, group)))
    drawing = plot.svg(f"{title}: {axes} over {last:,.0f} seconds of training")
    note = element("p", " ".join(notes), class_="quiet") if notes else None
    key = legend(*entries) if [text for _, text in entries] != [axes] else None
    return element("div", drawing, key, note, class_="curve")


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fortieth of the values (at the ends: over what there is), NaN left out."""
    half = len(values) // (2 * SMOOTHING)
    keep = np.isfinite(values)
    if half == 0:
        return np.where(keep, values, np.nan)
    total = np.concatenate([[0.0], np.cumsum(np.where(keep, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(keep)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)


def _thinned(n: int) -> np.ndarray:
    """Positions of at most MAX_POINTS of n values, evenly, both ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_POINTS)).round().astype(int))


def _y_range(shown: list[tuple[Series, np.ndarray]], last: float) -> tuple[tuple[float, float], bool]:
    """The range that shows learning after its first moments, and whether that cuts values off.

    An untrained model's loss can be a hundred times the trained one's; with it in the frame, the rest is a flat line.
    """
    later, every = [], []
    for s, keep in shown:
        values, seconds = s.values[keep], s.seconds[keep]
        after = values[seconds >= 0.04 * last]
        part = after if len(after) else values
        later.append(part if s.source == "valid" else np.percentile(part, [0.5, 99.5]))
        every.append(values)
    low, high = float(np.concatenate(later).min()), float(np.concatenate(later).max())
    lowest, highest = float(np.concatenate(every).min()), float(np.concatenate(every).max())
    if highest - lowest < 1.6 * (high - low):
        low, high = lowest, highest
    flat = high - low <= 1e-6 * abs(high)
    margin = 0.5 * (abs(high) or 1.0) if flat else 0.06 * (high - low)
    return (low - margin, high + margin), highest > high + margin or lowest < low - margin


def _styles(group: list[Series]) -> dict[tuple[str, str], str]:
    """A style for each line; validation takes the colour of the training term of its name, with points on it."""
    styles: dict[tuple[str, str], str] = {}
    for number, s in enumerate(s for s in group if s.source != "valid"):
        styles[s.source, s.name] = f"s{number % N_STYLES}"
    by_name = {name: style for (_, name), style in styles.items()}
    validation = [s for s in group if s.source == "valid"]
    for number, s in enumerate((s for s in validation if s.name not in by_name), len(by_name)):
        by_name[s.name] = f"s{number % N_STYLES}" if len(validation) > 1 else "s0"
    return styles | {(s.source, s.name): f"valid {by_name[s.name]}" for s in validation}


def _series_label(series: Series, group: list[Series]) -> str:
    """'discriminator loss', 'kl', 'validation'."""
    if series.source == "valid":
        alone = sum(s.source == "valid" for s in group) == 1
        return "validation" if alone else f"validation, {series.name or series.axes}"
    several = len({s.source for s in group if s.source != "valid"}) > 1
    if not series.name:
        return series.source
    return f"{series.source} {series.name}" if several and series.source not in series.name.split(" ") else series.name
