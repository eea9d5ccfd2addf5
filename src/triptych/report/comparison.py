"""The table of the page: the same content and ranking as in the terminal, as HTML."""

from __future__ import annotations

import math

from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.report.html import Html, element, fragment
from triptych.report.table import ARROWS, arranged, best_cells, measure_text, reading_notes

DIRECTION = {"lower": "lower is better", "higher": "higher is better", "neither": "no better direction"}
KIND = {"exact": "exact", "lower bound": "bound", "estimate": "estimate"}


def comparison(table: Table) -> Html:
    """The table in a box that scrolls by itself on narrow screens, and the notes on reading it."""
    table = arranged(table)
    best = best_cells(table)
    corner = element("th", "model", scope="col", class_="name")
    head = element("thead", element("tr", corner, *(_header(metric) for metric in table.metrics)))
    bodies = []
    for of_models, style in ((True, "ranked"), (False, "references")):
        rows = [_row(n, row, table, best) for n, row in enumerate(table.rows) if (row.panel is not None) is of_models]
        if rows:
            bodies.append(element("tbody", *rows, class_=style))
    grid = element("table", head, *bodies, class_="comparison sortable")
    box = element("div", grid, class_="scroll", role="region", aria_label="Table of results", tabindex=0)
    notes = element("ul", *(element("li", note) for note in reading_notes(table)), class_="notes")
    return fragment(box, notes)


def metric_name(metric: Metric) -> Html:
    """Title, unit and direction of a metric."""
    arrow = element("abbr", ARROWS[metric.better], title=DIRECTION[metric.better]) if ARROWS[metric.better] else None
    unit = (
        element("small", metric.unit, " " if metric.unit and arrow else None, arrow) if metric.unit or arrow else None
    )
    return fragment(metric.title, " ", unit)


def value_cell(metric: Metric, cell: Measurement, is_best: bool) -> Html:
    """Value with its mark, and its interval."""
    interval = cell.interval
    style = "undefined" if cell.value is None else "value best" if is_best else "value"
    value = element("span", cell.text(metric.better), class_=style)
    return fragment(value, element("small", interval, class_="interval") if interval else None)


def _header(metric: Metric) -> Html:
    return element("th", metric_name(metric), scope="col", data_better=metric.better)


def _row(number: int, row: Row, table: Table, best: set[tuple[int, str]]) -> Html:
    cells = [element("th", element("span", row.name), scope="row", class_="name")]
    for metric in table.metrics:
        cell = row.measurements.get(metric.key)
        if cell is None:
            cells.append(element("td"))
            continue
        words = [KIND.get(cell.kind or ""), measure_text(table, metric, cell)]
        word = ", ".join(filter(None, words)) if cell.value is not None else ""
        value = value_cell(metric, cell, (number, metric.key) in best)
        content = fragment(value, element("small", word, class_="kind") if word else None)
        # Sorting keeps kinds and measures apart: `data-group` comes before the value.
        cells.append(
            element(
                "td",
                content,
                data_value=cell.value if cell.value is not None and math.isfinite(cell.value) else None,
                data_group=f"{cell.measure}/{cell.kind}",
            )
        )
    return element("tr", *cells, class_=row.panel or "reference")
