"""The table of the page: the same content and ranking as in the terminal, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.report.groups import Group, grouped, short_title
from triptych.report.html import Html, breakable, element, fragment
from triptych.report.table import ARROWS, arranged, best_cells, error_texts, measure_text, reading_notes

DIRECTION = {"lower": "lower is better", "higher": "higher is better", "neither": "no better direction"}
KIND = {"exact": "exact", "lower bound": "bound", "at least": "bound", "estimate": "estimate"}
MANY = 12
"""Columns above which cells are set closer."""


def comparison(table: Table) -> Html:
    """The table in a box that scrolls by itself on narrow screens, and the notes on reading it.

    A table of many columns is printed as one for each group, since paper does not scroll.
    """
    table = arranged(table)
    best = best_cells(table)
    groups = grouped(table.metrics)
    many = len(table.metrics) > MANY
    grid = _grid(table, groups, best, f"comparison sortable{' many' if many else ''}")
    box = element("div", grid, class_="scroll", role="region", aria_label="Table of results", tabindex=0)
    if many:
        parts = (_grid(table, [group], best, "comparison") for group in groups)
        box = fragment(element("div", box, class_="on-screen"), element("div", *parts, class_="on-paper"))
    notes = element("ul", *(element("li", note) for note in reading_notes(table)), class_="notes")
    return fragment(box, notes)


def _grid(table: Table, groups: Sequence[Group], best: set[tuple[int, str]], style: str) -> Html:
    """The columns of these groups, under their titles."""
    metrics = [metric for _, members in groups for metric in members]
    first = {members[0].key for title, members in groups if title}
    corner = element("th", "model", scope="col", class_="name")
    heads = [element("tr", corner, *(_header(metric, metric.key in first) for metric in metrics))]
    if any(title for title, _ in groups):
        heads.insert(0, element("tr", element("td", class_="name"), *(_group(*group) for group in groups)))
    bodies = []
    for of_models, name in ((True, "ranked"), (False, "references")):
        chosen = [(n, row) for n, row in enumerate(table.rows) if (row.panel is not None) is of_models]
        rows = [_row(n, row, table, metrics, best, first) for n, row in chosen]
        if rows:
            bodies.append(element("tbody", *rows, class_=name))
    return element("table", element("thead", *heads), *bodies, class_=style)


def metric_name(metric: Metric, *, short: bool = False) -> Html:
    """Title (the short one under the title of a group), unit and direction of a metric."""
    arrow = element("abbr", ARROWS[metric.better], title=DIRECTION[metric.better]) if ARROWS[metric.better] else None
    unit = (
        element("small", metric.unit, " " if metric.unit and arrow else None, arrow) if metric.unit or arrow else None
    )
    # An arrow alone stays on the line of the last word.
    return fragment(short_title(metric) if short else metric.title, " " if metric.unit else "\u00a0", unit)


def value_cell(metric: Metric, cell: Measurement, is_best: bool) -> Html:
    """Value with its mark, and its intervals."""
    style = "undefined" if cell.value is None else "value best" if is_best else "value"
    value = element("span", cell.text(metric.better), class_=style)
    return fragment(value, *(element("small", text, class_="interval") for text in error_texts(cell)))


def _group(title: str, members: tuple[Metric, ...]) -> Html:
    """The title of a group over its columns; a column of no group has an empty cell there."""
    if not title:
        return element("td", colspan=len(members))
    return element("th", element("span", title), scope="colgroup", colspan=len(members), class_="group")


def _header(metric: Metric, is_first: bool) -> Html:
    return element(
        "th",
        metric_name(metric, short=True),
        scope="col",
        data_better=metric.better,
        class_="first" if is_first else None,
    )


def _row(
    number: int, row: Row, table: Table, metrics: Sequence[Metric], best: set[tuple[int, str]], first: set[str]
) -> Html:
    """One row; columns that begin a group, `first`, stand apart from the one before."""
    cells = [element("th", element("span", breakable(row.name)), scope="row", class_="name")]
    for metric in metrics:
        cell = row.measurements.get(metric.key)
        if cell is None:
            cells.append(element("td", class_="first" if metric.key in first else None))
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
                class_="first" if metric.key in first else None,
            )
        )
    return element("tr", *cells, class_=row.panel or "reference")
