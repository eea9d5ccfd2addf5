"""What is measured of each class: a table for each metric, models and references down, classes across."""

from __future__ import annotations

import math

from triptych.evaluation.results import Measurement, Metric, PerClass, Table
from triptych.report.comparison import metric_name
from triptych.report.dots import is_finite
from triptych.report.html import Html, breakable, element, fragment
from triptych.report.table import arranged, error_texts

MOST_CLASSES = 50
"""More classes are not shown."""
PAPER_CLASSES = 14
"""Across a sheet of paper; more go on in tables below."""


def class_tables(per_class: PerClass, table: Table) -> Html | None:
    """The tables, in boxes that scroll by themselves, rows ordered as in the comparison; None where all are empty."""
    panels = {row.name: row.panel for row in arranged(table).rows}
    names = [name for name in panels if name in per_class.rows]
    names += [name for name in per_class.rows if name not in panels]
    parts = []
    for metric in per_class.metrics:
        rows = [name for name in names if any(map(is_finite, per_class.rows[name].get(metric.key, ())))]
        if rows:
            parts.append(_class_table(metric, rows, panels, per_class))
    if not parts:
        return None
    n = len(per_class.classes)
    note = f"The first {MOST_CLASSES} of {n} classes." if n > MOST_CLASSES else None
    return fragment(element("p", note, class_="quiet") if note else None, *parts)


def _class_table(metric: Metric, names: list[str], panels: dict[str, str | None], per_class: PerClass) -> Html:
    classes = per_class.classes[:MOST_CLASSES]
    cells = {name: per_class.rows[name][metric.key][:MOST_CLASSES] for name in names}
    models = [name for name in names if panels.get(name) is not None]
    # Of the models, where there are some: beside noise they would all have one shade.
    values = [cell.value for name in models or names for cell in cells[name] if cell.value is not None]
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    ends = min(finite), max(finite)

    def grid(shown: slice) -> Html:
        corner = element("th", "model", scope="col", class_="name")
        head = element("thead", element("tr", corner, *(element("th", name, scope="col") for name in classes[shown])))
        bodies = []
        for of_models, style in ((True, None), (False, "references")):
            rows = []
            for name in (name for name in names if (panels.get(name) is not None) is of_models):
                title = element("th", element("span", breakable(name)), scope="row", class_="name")
                measured = zip(cells[name][shown], classes[shown], strict=False)
                inside = (_cell(metric, cell, f"{name}, {label}", ends) for cell, label in measured)
                rows.append(element("tr", title, *inside, class_=panels.get(name) or "reference"))
            if rows:
                bodies.append(element("tbody", *rows, class_=style))
        return element("table", head, *bodies, class_="comparison by-class")

    heading = element("h3", metric_name(metric))
    text = element("p", metric.protocol, class_="quiet") if metric.protocol else None
    in_parts = len(classes) > PAPER_CLASSES
    box = element(
        "div",
        grid(slice(None)),
        class_="scroll on-screen" if in_parts else "scroll",
        role="region",
        aria_label=f"Table by class: {metric.title}",
        tabindex=0,
    )
    starts = range(0, len(classes), PAPER_CLASSES) if in_parts else ()
    paper = [grid(slice(start, start + PAPER_CLASSES)) for start in starts]
    return element("section", heading, text, box, element("div", *paper, class_="on-paper") if paper else None)


def _cell(metric: Metric, cell: Measurement, whose: str, ends: tuple[float, float]) -> Html:
    """A value, shaded by where it lies between the ends; its intervals show when one points at it."""
    if cell.value is None:
        return element("td", "–", title=f"{whose}: not defined", class_="undefined")
    text = cell.text(metric.better)
    count = f"n = {cell.n:,}" if cell.n else ""
    tip = f"{whose}: {', '.join(filter(None, (text, *error_texts(cell), count)))}"
    low, high = ends
    style = None
    if math.isfinite(cell.value) and high > low:
        share = min(max((cell.value - low) / (high - low), 0.0), 1.0)
        style = f"--shade: {100 * share:.0f}%"
    return element("td", element("span", text, class_="value"), title=tip, style=style)
