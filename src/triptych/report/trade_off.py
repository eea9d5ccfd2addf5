"""Quality against cost: which models does no other one beat in both?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triptych.evaluation.results import Measurement, Metric, Table, format_value
from triptych.report.content import TradeOff
from triptych.report.dots import axis_of, is_finite
from triptych.report.html import Html, element
from triptych.report.plot import LETTER, Plot, legend

SIZE = (350, 260)
"""Of the frame, CSS pixels."""
KINDS = {"exact": "exact values", "lower bound": "bounds", "estimate": "estimates", "at least": "bounds"}
MEASURES = {"discrete": "probabilities", "continuous": "densities"}
STYLES = ("front", "front dashed", "front dotted")
HEIGHT = 13
"""Of a line of text, CSS pixels."""
REACH = 6
"""Of a dot from its middle, CSS pixels, with some air."""


Line = tuple[tuple[float, float], tuple[float, float]]
"""Both ends of an upright or level line."""


@dataclass(frozen=True)
class Point:
    """A model in the figure."""

    name: str
    panel: str
    cost: float
    """Less is better, positive."""
    quality: Measurement
    """With a finite value."""


@dataclass(frozen=True)
class Front:
    """Models that can be compared with each other, and those of them that none of the others beats in both."""

    title: str
    """'exact values', 'bounds', ...; empty where the metric has no kinds."""
    best: tuple[Point, ...]
    """The cheapest first."""
    beaten: tuple[Point, ...]


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which points no other one beats: as small in every coordinate, and smaller in one.

    Arguments:
        points: (N, D), finite; less is better.
    Returns:
        Booleans, (N,). Of equal points, all or none are in the front.
    """
    no_worse = np.all(points[:, None] <= points[None], axis=2)  # (N, N): is the first one as good as the second?
    better = np.any(points[:, None] < points[None], axis=2)
    beaten: np.ndarray = np.any(no_worse & better, axis=0)
    return ~beaten


def points_of(table: Table, quality: Metric, cost: Metric) -> tuple[list[Point], list[str]]:
    """The models of the table that have both numbers, and the names of the others.

    A cost of which more is better (items a second) turns into its inverse (seconds an item).
    """
    points, left_out = [], []
    for row in table.rows:
        if row.panel is None:
            continue
        value, price = row.measurements.get(quality.key), row.measurements.get(cost.key)
        amount = price.value if price is not None and price.value is not None else math.nan
        amount = 1 / amount if cost.better == "higher" and amount > 0 else amount
        if value is None or not is_finite(value) or not (math.isfinite(amount) and amount > 0):
            left_out.append(row.name)
        else:
            points.append(Point(row.name, row.panel, amount, value))
    return points, left_out


def fronts(points: Sequence[Point], quality: Metric) -> list[Front]:
    """A front for each kind and measure of the quality, since only values of one kind and measure compare."""
    groups: dict[tuple[str | None, str | None], list[Point]] = {}
    for point in points:
        groups.setdefault((point.quality.kind, point.quality.measure), []).append(point)
    several_measures = len({measure for _, measure in groups}) > 1
    sign = -1.0 if quality.better == "higher" else 1.0
    found = []
    for (kind, measure), members in groups.items():
        words = [KINDS.get(kind or "", ""), MEASURES.get(measure or "", "") if several_measures else ""]
        is_best = pareto_front(np.array([[point.cost, sign * (point.quality.value or 0.0)] for point in members]))
        best = sorted((p for p, keep in zip(members, is_best, strict=True) if keep), key=lambda point: point.cost)
        beaten = tuple(p for p, keep in zip(members, is_best, strict=True) if not keep)
        found.append(Front(" of ".join(filter(None, words)), tuple(best), beaten))
    return found


def trade_off_figures(table: Table, trade_offs: Sequence[TradeOff]) -> Html | None:
    """A figure for each trade-off that two models or more can be placed in; None where there is none."""
    metrics = {metric.key: metric for metric in table.metrics}
    known = [(metrics[t.quality], metrics[t.cost]) for t in trade_offs if t.quality in metrics and t.cost in metrics]
    figures = [figure for pair in known if (figure := _figure(table, *pair)) is not None]
    return element("div", *figures, class_="trade-offs") if figures else None


def _figure(table: Table, quality: Metric, cost: Metric) -> Html | None:
    points, left_out = points_of(table, quality, cost)
    if len(points) < 2:
        return None
    axis = axis_of(quality, [point.quality for point in points])
    assert axis is not None  # Every point's value is finite.
    y_range, y_log = axis
    costs = [point.cost for point in points]
    widen = (max(costs) / min(costs)) ** 0.1 if max(costs) > min(costs) else 2.0
    unit = _cost_unit(cost)
    arrow = {"higher": " ↑", "lower": " ↓"}.get(quality.better, "")
    plot = Plot(
        # Under equal budgets most models stand at the right end: room for their names.
        (min(costs) / widen, max(costs) * widen**2.5),
        y_range,
        size=SIZE,
        x_label=f"{cost.title}{', ' if unit else ''}{unit} ↓",
        y_label=f"{quality.title}{', ' if quality.unit else ''}{quality.unit}{arrow}",
        x_log=True,
        y_log=y_log,
    )
    groups = fronts(points, quality)
    bad = y_range[0] if quality.better == "higher" else y_range[1]
    entries = []
    lines: list[Line] = [_interval(point, quality) for point in points]
    for group, style in zip(groups, STYLES * len(groups), strict=False):
        if len(group.best) + len(group.beaten) > 1:
            lines += _steps(plot, group.best, bad, style)
            entries.append((style, f"front of {group.title}" if group.title else "front"))
    for group in groups:
        for point in (*group.beaten, *group.best):
            _point(plot, point, quality, unit, is_best=point in group.best)
    _names(plot, points, quality, lines)
    caption = element("figcaption", f"{quality.title} against {_cost_title(cost)}")
    sentences = _sentences(groups, left_out)
    alt = f"{quality.title} against {_cost_title(cost)}, logarithmic. {sentences}"
    key = legend(*entries) if len(entries) > 1 else None
    return element("figure", caption, plot.svg(alt), key, element("p", sentences, class_="quiet"))


def _cost_unit(cost: Metric) -> str:
    """The unit; of an inverted one, 's/image' for 'images/s'."""
    if cost.better != "higher":
        return cost.unit
    items, slash, time = cost.unit.rpartition("/")
    return f"{time}/{items.removesuffix('s')}" if slash else f"1/{cost.unit}" if cost.unit else "inverse"


def _cost_title(cost: Metric) -> str:
    unit = _cost_unit(cost)
    return f"{cost.title.lower()} ({unit})" if unit else cost.title.lower()


def _steps(plot: Plot, best: Sequence[Point], bad: float, style: str) -> list[Line]:
    """The line below which nothing has been reached: from the cheapest point to the bad end, and on to the right."""
    xs = np.repeat([*(point.cost for point in best), plot.x_range[1]], 2)[:-1]
    ys = np.repeat([bad, *(point.quality.value or 0.0 for point in best)], 2)[1:]
    plot.line(xs, ys, style)
    return [((x, y), (to_x, to_y)) for x, y, to_x, to_y in zip(xs, ys, xs[1:], ys[1:], strict=False)]


def _interval(point: Point, quality: Metric) -> Line:
    """The line of a point's interval; without any, the point."""
    value = point.quality.value or 0.0
    ends = point.quality.whole_interval
    low, high = quality.possible(ends) if ends is not None and all(map(math.isfinite, ends)) else (value, value)
    return (point.cost, low), (point.cost, high)


def _point(plot: Plot, point: Point, quality: Metric, unit: str, *, is_best: bool) -> None:
    at = np.array([point.cost]), np.array([point.quality.value or 0.0])
    (_, low), (_, high) = _interval(point, quality)
    if low < high:
        plot.line(np.full(2, point.cost), np.array([low, high]), f"s0 {point.panel} range")
    value = f"{point.quality.text(quality.better)} {quality.unit}".strip()
    tip = f"{point.name}: {value} at {format_value(point.cost)} {unit}".strip()
    plot.circles(*at, f"s0 {point.panel}{' filled' if is_best else ''}", radius=4, tip=tip)


def _names(plot: Plot, points: Sequence[Point], quality: Metric, lines: Sequence[Line]) -> None:
    """The points' names, with the mark of a bound or an estimate, off each other and off the lines."""
    marks = [point.quality.text(quality.better)[:2] for point in points]
    names = [f"{mark if mark[0] in '≤≥~' else ''}{p.name}" for mark, p in zip(marks, points, strict=True)]
    costs = np.array([point.cost for point in points])
    values = np.array([point.quality.value or 0.0 for point in points])
    ends = np.array(lines)  # (M, 2, 2)
    ends = plot.place(ends[..., 0].ravel(), ends[..., 1].ravel()).reshape(-1, 2, 2)
    widths = np.array([LETTER * len(name) for name in names])
    corners = place_names(plot.place(costs, values), widths, SIZE, ends)
    for (x, y), name in zip(corners, names, strict=True):
        plot.text(x, y + HEIGHT - 3, name, "tick name-of-point")


def place_names(points: np.ndarray, widths: np.ndarray, size: tuple[int, int], lines: np.ndarray) -> np.ndarray:
    """Where names stand beside their points, so that they cover each other, points, lines and the frame's edge least.

    Arguments:
        points: Middles of the dots, (N, 2), pixels of the frame, y downwards.
        widths: Of the names, pixels, (N,).
        size: Width and height of the frame.
        lines: Ends of upright or level lines, (M, 2, 2), pixels.
    Returns:
        Upper left corners of the names, (N, 2).
    """
    n, gap = len(points), REACH + 2.0
    # Right, left, above, below, the corners between, and the same once more farther off.
    sides = np.array([[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [1, 1], [-1, -1], [-1, 1]], dtype=np.float64)
    boxes = np.empty((n, 16, 4))  # Left, top, right, bottom of every place that a name may have.
    for number, ((x, y), width) in enumerate(zip(points, widths, strict=True)):
        for place, (across, down) in enumerate([*sides, *sides]):
            far = 1.0 if place < 8 else 2.2
            reach = gap if down == 0 else 0.7 * gap
            left = x + across * (reach * far) - width * (0.0, 0.5, 1.0)[int(1 - across)]
            middle = y + down * (0.5 * HEIGHT + (0.7 if across else 0.9) * gap * far)
            boxes[number, place] = left, middle - HEIGHT / 2, left + width, middle + HEIGHT / 2
    dots = np.concatenate([points - REACH, points + REACH], axis=1)
    drawn = np.concatenate([lines.min(axis=1) - 1, lines.max(axis=1) + 1], axis=1)  # (M, 4)
    fixed = np.zeros((n, 16))
    for number in range(n):
        others = np.delete(dots, number, axis=0)
        for place, box in enumerate(boxes[number]):
            covered = 3 * _overlap(box, others).sum() + _overlap(box, drawn).sum()
            fixed[number, place] = covered + 5 * _outside(box, size)
    fixed += np.arange(16) * 1.0 + np.where(np.arange(16) < 8, 0.0, 30.0)  # The first places are the nicest.
    chosen = fixed.argmin(axis=1)
    for _ in range(4):  # In turn, each name takes the best place that the others leave.
        for number in range(n):
            taken = np.delete(boxes[np.arange(n), chosen], number, axis=0)
            crossed = np.array([_overlap(box, taken).sum() for box in boxes[number]])
            chosen[number] = int((fixed[number] + 4 * crossed).argmin())
    return boxes[np.arange(n), chosen, :2]


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas that a box, (4,), shares with others, (N, 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.maximum(width, 0.0) * np.maximum(height, 0.0)


def _outside(box: np.ndarray, size: tuple[int, int]) -> float:
    """Area of a box that lies outside of the frame."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return float(area - _overlap(box, np.array([[0.0, 0.0, *size]]))[0])


def _sentences(groups: Sequence[Front], left_out: Sequence[str]) -> str:
    """Names the fronts, and who is missing."""
    found = []
    for group in groups:
        of = f"Of the {group.title}: " if group.title else ""
        best = [point.name for point in group.best]
        if not group.beaten and len(best) == 1:
            found.append(f"{of}{best[0]} alone.")
        else:
            no_other = "no other model is both as good and as cheap as "
            found.append(f"{of}{no_other if of else no_other.capitalize()}{_listed(best)}.")
    if left_out:
        found.append(f"Without {_listed(left_out)}: not both numbers are known.")
    return " ".join(found)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
