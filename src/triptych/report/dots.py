"""A figure for every metric: the rows of the table as dots on one axis, with their intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.report.comparison import metric_name
from triptych.report.groups import grouped
from triptych.report.html import Html, element, fragment
from triptych.report.plot import LETTER, Plot
from triptych.report.table import arranged

WIDTH = 404
"""Of a figure, CSS pixels: a third of the page."""
ROW = 17
"""Height of a row, CSS pixels."""
MOST_LETTERS = 26
"""Longer names are cut."""
VALUES = 68
"""Room for the values, CSS pixels."""
SHARES = r"(precision|recall|coverage)_.*|authenticity|c2st_accuracy"
"""Keys of shares, whose axis is always 0 to 1, so that figures compare."""
LOG_FROM = 100.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
FAR = 1.5
"""References that lie farther from the models than this, in ranges of the models, are not let onto a linear axis."""


def metric_figures(table: Table) -> Html | None:
    """Small multiples of all metrics that have a value, by group; None where there are none."""
    table = arranged(table)
    parts = []
    for title, metrics in grouped(table.metrics):
        figures = [figure for metric in metrics if (figure := metric_figure(metric, table.rows)) is not None]
        if figures:
            heading = element("h3", title or "Other")
            parts.append(element("section", heading, element("div", *figures, class_="dot-plots")))
    return fragment(*parts) if parts else None


def metric_figure(metric: Metric, rows: Sequence[Row]) -> Html | None:
    """One metric as dots, the rows that it does not apply to left out; None where no row has a finite value."""
    shown = [(row, row.measurements[metric.key]) for row in rows if metric.key in row.measurements]
    models = [cell for row, cell in shown if row.panel is not None]
    references = [cell for row, cell in shown if row.panel is None]
    axis = axis_of(metric, models, references)
    if axis is None:
        return None
    x_range, log = axis
    names = [row.name if len(row.name) <= MOST_LETTERS else row.name[: MOST_LETTERS - 1] + "…" for row, _ in shown]
    texts = ["" if cell.value is None else cell.text(metric.better) for _, cell in shown]
    left = round(12 + LETTER * max(map(len, names)))
    plot = Plot(
        x_range,
        (0.6 - len(shown), 0.6),
        size=(WIDTH - left - VALUES, ROW * len(shown)),
        x_log=log,
        rows=list(zip(names, texts, strict=True)),
        left=left,
        right=VALUES,
    )
    for cell in references:
        if is_finite(cell):
            plot.line(np.full(2, cell.value), np.array([1.0, -float(len(shown))]), "guide")
    for number, (row, cell) in enumerate(shown):
        _dot(plot, -float(number), metric, cell, f"s0 {row.panel}" if row.panel is not None else "plain")
    values = "; ".join(f"{row.name} {cell.text(metric.better)}" for row, cell in shown)
    caption = element("figcaption", metric_name(metric, short=True))
    scale = ", logarithmic axis" if log else ""
    return element("figure", caption, plot.svg(f"{metric.title}{scale}: {values}"))


def _dot(plot: Plot, y: float, metric: Metric, cell: Measurement, style: str) -> None:
    """One row: interval, dot, and the arrow of a bound; at the frame's edge an arrow for what lies beyond it."""
    low, high = plot.x_range
    if cell.value is None:
        plot.text(6, plot.place(np.array([low]), np.array([y]))[0, 1] + 3.8, "not defined", "tick absent")
        return
    if not is_finite(cell):
        return
    ends = cell.whole_interval
    if ends is not None and all(map(math.isfinite, ends)):
        plot.line(np.array(metric.possible(ends)), np.full(2, y), f"{style} range")
    mark = cell.text(metric.better)[0]
    if not low <= cell.value <= high:
        plot.arrow(cell.value, y, -1 if cell.value < low else 1, style)
        return
    if mark in "≤≥":
        plot.arrow(cell.value, y, -1 if mark == "≤" else 1, style)
    plot.circles(np.array([cell.value]), np.array([y]), style if mark == "~" else f"{style} filled", radius=3.4)


def is_finite(cell: Measurement) -> bool:
    """Whether there is a value to draw."""
    return cell.value is not None and math.isfinite(cell.value)


def axis_of(
    metric: Metric, models: Sequence[Measurement], references: Sequence[Measurement] = ()
) -> tuple[tuple[float, float], bool] | None:
    """Ends of the axis of a metric, and whether it is logarithmic; None where there is no finite value.

    A linear axis need not reach to references that are far from all models, nor a logarithmic one to values of no sign.
    """
    if re.fullmatch(SHARES, metric.key):
        return ((-0.04, 1.04), False) if any(map(is_finite, (*models, *references))) else None
    cells = [cell for cell in (*models, *references) if is_finite(cell)]
    if not cells:
        return None
    if is_wide(cells):
        values = _values(cells)
        smallest = values[values > 0].min()
        ends = _ends(cells, metric)
        low, high = math.log10(max(ends.min(), smallest / 3)), math.log10(ends.max())
        margin = 0.08 * (high - low)
        return (10 ** (low - margin), 10 ** (high + margin)), True
    inner = _ends([cell for cell in models if is_finite(cell)] or cells, metric)
    span = inner.max() - inner.min()
    far = FAR * span if span > 0 else math.inf
    near = [cell for cell in references if is_finite(cell)]
    near = [c for c in near if inner.min() - far <= _values([c])[0] <= inner.max() + far]
    ends = np.concatenate([inner, _ends(near, metric)])
    low, high = float(ends.min()), float(ends.max())
    margin = 0.08 * (high - low) if high - low > 1e-9 * max(abs(low), abs(high)) else 0.5 * (abs(high) or 1.0)
    return (low - margin, high + margin), False


def is_wide(cells: Sequence[Measurement]) -> bool:
    """Whether finite values belong on a logarithmic axis: the positive ones span more than two decades, and the others
    differ from 0 by no more than chance."""
    positive = [cell.value for cell in cells if cell.value is not None and cell.value > 0]
    if not positive or max(positive) <= LOG_FROM * min(positive):
        return False
    others = [cell for cell in cells if cell.value is not None and cell.value <= 0]
    return all(cell.value == 0 or ((ends := cell.whole_interval) is not None and ends[1] > 0) for cell in others)


def _values(cells: Sequence[Measurement]) -> np.ndarray:
    return np.array([cell.value for cell in cells if cell.value is not None])


def _ends(cells: Sequence[Measurement], metric: Metric) -> np.ndarray:
    """Values and the ends of their intervals, as far as they are finite."""
    ends = [end for cell in cells if (whole := cell.whole_interval) for end in metric.possible(whole)]
    found = np.concatenate([_values(cells), np.array(ends, dtype=np.float64)])
    return found[np.isfinite(found)]
