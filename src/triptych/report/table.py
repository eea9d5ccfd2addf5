"""The table of an evaluation: what may be ranked with what, and the table in a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from triptych.errors import printable
from triptych.evaluation.results import Measurement, Metric, Row, Table, format_value
from triptych.files import write_text

PANELS = ("tractable", "approximate", "implicit")
ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
CSV_FIELDS = (
    *("name", "panel", "metric", "unit", "better", "value", "low", "high", "kind", "measure", "n"),
    *("seeds_n", "seed_error", "seeds"),
)


def arranged(table: Table) -> Table:
    """The same table with its models in the order of the panels and the reference rows last."""
    order = (*PANELS, "samples", None)
    return replace(table, rows=tuple(sorted(table.rows, key=lambda row: order.index(row.panel))))


def best_cells(table: Table) -> set[tuple[int, str]]:
    """Which cells (row number, metric key) are best among the models they can be compared with.

    Values compare within one column, one kind and one measure: an exact value is never ranked against a bound, nor a
    probability against a density. A group of one, or of equal values, has no best. References do not take part.
    """
    best = set()
    for metric in table.metrics:
        groups: dict[tuple[str | None, str | None], list[tuple[float, int]]] = defaultdict(list)
        for number, row in enumerate(table.rows):
            cell = row.measurements.get(metric.key)
            if row.panel is not None and cell is not None and cell.value is not None and math.isfinite(cell.value):
                groups[cell.kind, cell.measure].append((cell.value, number))
        choose = {"lower": min, "higher": max}.get(metric.better)
        for group in groups.values():
            values = [value for value, _ in group]
            if choose is not None and min(values) < max(values):
                best |= {(number, metric.key) for value, number in group if value == choose(values)}
    return best


def measure_text(table: Table, metric: Metric, cell: Measurement) -> str:
    """'probability' or 'density' in a column that holds both, else an empty string."""
    cells = [row.measurements[metric.key] for row in table.rows if metric.key in row.measurements]
    if len({other.measure for other in cells if other.measure and other.value is not None}) < 2:
        return ""
    return {"discrete": "probability", "continuous": "density"}.get(cell.measure or "", "")


def error_texts(cell: Measurement) -> list[str]:
    """The interval over items, `± 0.012`, and that over trainings, `± 0.030 (3 trainings)`, as far as known.

    Trainings that agree to the last digit (parameters, a share of 1) give no interval: it would be 0.
    """
    found = [cell.interval] if cell.interval else []
    if cell.value is not None and cell.seed_error is not None:
        n = f"{len(cell.seeds)} trainings"
        found.append(f"± {format_value(cell.seed_error)} ({n})" if len(set(cell.seeds)) > 1 else f"the same in {n}")
    return found


def reading_notes(table: Table) -> list[str]:
    """How to read the marks that this table uses, a sentence each."""
    known = {metric.key: metric for metric in table.metrics}
    pairs = [(known[key], cell) for row in table.rows for key, cell in row.measurements.items() if key in known]
    cells = [cell for _, cell in pairs]
    defined = [(metric, cell) for metric, cell in pairs if cell.value is not None]
    kinds = {cell.kind for _, cell in defined}
    marks = {cell.text(metric.better)[0] for metric, cell in defined if cell.kind == "lower bound"}
    at_least = list(
        dict.fromkeys(
            metric.title for metric in table.metrics for m, cell in defined if m == metric and cell.kind == "at least"
        )
    )
    notes = []
    if "exact" in kinds:
        notes.append("A likelihood without a mark is exact.")
    if "≤" in marks:
        notes.append("≤ marks a bound: the model's true value is this or lower, by an unknown gap.")
    if "≥" in marks:
        notes.append("≥ marks a bound: the model's true value is this or higher, by an unknown gap.")
    if at_least:
        notes.append(
            f"≥ under {' and '.join(at_least)} marks what could be shown with these items: the quantity itself is"
            " this or more."
        )
    if "estimate" in kinds:
        notes.append("~ marks an estimate: it approaches the true value with more draws, and can err to either side.")
    if any(cell.value is None for cell in cells):
        notes.append(
            "‘Not defined’: the model has no such quantity (one that can only sample gives no item a probability), or"
            " there are too few items to measure it."
        )
    if len({cell.measure for _, cell in defined if cell.measure}) > 1:
        notes.append("A probability (of an integer image) and a density (of real coordinates) are not on one scale.")
    notes += _interval_notes(cells)
    if best_cells(table):
        rule = "Bold is the best model of its column"
        scales: dict[str, set[tuple[str | None, str | None]]] = defaultdict(set)
        for metric, cell in defined:
            scales[metric.key].add((cell.kind, cell.measure))
        mixed = any(len(found) > 1 for found in scales.values())
        notes.append(
            f"{rule} among values of the same kind and measure: exact values, bounds and estimates are not ranked"
            " against each other."
            if mixed
            else f"{rule}."
        )
    return notes


def _interval_notes(cells: list[Measurement]) -> list[str]:
    """What the intervals of these cells are."""
    over_items = any(cell.interval for cell in cells)
    over_trainings = any(cell.seed_error is not None for cell in cells)
    chance = "where two overlap, the order of the models may be chance."
    if not over_trainings:
        return [f"± and ranges are 95 % intervals; {chance}"] if over_items else []
    numbers = "A value with a number of trainings behind it is the mean over them"
    trainings = "95 % interval of that mean over trainings (Student's t)"
    if not over_items:
        return [f"{numbers}; ± is the {trainings}; {chance}"]
    return [
        f"{numbers}. The ± beside the number of trainings is the {trainings}; every other ± or range is a 95 % interval"
        f" over items, for the trainings as they are. Both count: {chance}"
    ]


def print_table(table: Table, console: Console) -> None:
    """Prints the table in the console's width, in several parts where it is too wide: numbers are never cut."""
    table = arranged(table)
    best = best_cells(table)
    names = [Text(printable(row.name), style="italic dim" if row.panel is None else "") for row in table.rows]
    name_width = min(max([5, *(len(name) for name in names)]), max(12, console.width // 3))
    columns = [_Column(metric, table, best, console) for metric in table.metrics]
    parts: list[list[_Column]] = [[]]
    for column in columns:
        taken = name_width + 2 + sum(other.width + 3 for other in parts[-1])
        if parts[-1] and taken + column.width + 3 > console.width:
            parts.append([])
        parts[-1].append(column)
    for part in parts:
        grid = rich.table.Table(
            box=rich.box.HORIZONTALS, padding=(0, 1), pad_edge=True, header_style="", show_edge=False
        )
        grid.add_column("model", width=name_width, overflow="fold", vertical="bottom")
        for column in part:
            grid.add_column(column.header, width=column.width, justify="right", vertical="bottom")
        for number, row in enumerate(table.rows):
            last_model = row.panel is not None and number + 1 < len(table.rows) and table.rows[number + 1].panel is None
            grid.add_row(names[number], *(column.cells[number] for column in part), end_section=last_model)
        console.print(grid)
        console.print()
    notes = " ".join(reading_notes(table))
    console.print(Text(_plain(notes, console), style="dim"))


class _Column:
    """One metric as Rich texts: header lines, one cell a row, and the width that cuts none of them."""

    def __init__(self, metric: Metric, table: Table, best: set[tuple[int, str]], console: Console) -> None:
        unit = " ".join(filter(None, (metric.unit, ARROWS[metric.better])))
        self.header = Text(_plain(f"{metric.title}\n{unit}", console), justify="right")
        self.cells = []
        room = max(24, console.width - max(12, console.width // 3) - 5)
        for number, row in enumerate(table.rows):
            cell = row.measurements.get(metric.key)
            text = Text(style="dim" if row.panel is None else "")
            if cell is not None:
                style = "bold" if (number, metric.key) in best else "dim italic" if cell.value is None else ""
                text.append(_plain(cell.text(metric.better), console), style)
                for detail in filter(None, (*error_texts(cell), measure_text(table, metric, cell))):
                    # A detail that no narrow terminal has room for goes to the next line.
                    last = text.plain.splitlines()[-1]
                    gap = "\n" if len(last) + 1 + len(detail) > room else " "
                    text.append(_plain(gap + detail, console), "dim")
            self.cells.append(text)
        words = [*metric.title.split(), _plain(unit, console)]
        words += [line for text in self.cells for line in text.plain.splitlines()]
        self.width = max(map(len, words))


def _plain(text: str, console: Console) -> str:
    """The text in what the console can show: terminals without Unicode get ASCII signs."""
    if not console.options.ascii_only:
        return text
    for sign, ascii_sign in {"↓": "(lower)", "↑": "(higher)", "±": "+-", "≤": "<=", "≥": ">=", "–": "-"}.items():
        text = text.replace(sign, ascii_sign)
    return text.replace("‘", "'").replace("’", "'")


def write_table(table: Table, folder: Path) -> None:
    """Writes `table.json` (`Table.from_dict` reads it back) and `table.csv` (a line for each row and metric it has).

    A value that is not defined is null in JSON and empty in CSV; values that are not finite are text in JSON, "NaN"
    and "Infinity", which it has no numbers for, and nan and inf in CSV.
    """
    text = json.dumps(table.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "table.json", text + "\n")
    lines = io.StringIO()
    writer = csv.DictWriter(lines, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerows(_csv_line(row, metric) for metric in table.metrics if metric.key in row.measurements)
    write_text(folder / "table.csv", lines.getvalue())


def _no_formula(name: str) -> str:
    """A name that no spreadsheet takes for a formula: one that begins like it gets an apostrophe before it."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _csv_line(row: Row, metric: Metric) -> dict[str, object]:
    cell = row.measurements[metric.key]
    return {
        "name": _no_formula(row.name),
        "panel": row.panel,
        "metric": metric.key,
        "unit": metric.unit,
        "better": metric.better,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "kind": cell.kind,
        "measure": cell.measure,
        "n": cell.n,
        "seeds_n": len(cell.seeds) or None,
        "seed_error": cell.seed_error,
        "seeds": " ".join(map(repr, cell.seeds)),
    }
