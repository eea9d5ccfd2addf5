"""What the numbers of a table support, and what they do not, in words: a few sentences for each panel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from triptych.evaluation.columns import likelihood_keys
from triptych.evaluation.results import Measurement, Metric, Row, Table, format_value
from triptych.evaluation.samples import NOISE, TRAIN
from triptych.spaces import Space

KINDS = {"exact": "exact", "lower bound": "bound on the", "estimate": "estimated"}


def verdicts(table: Table, space: Space, memory: Mapping[str, str] | None = None) -> dict[str, tuple[str, ...]]:
    """Sentences by panel, in the order of the table.

    A difference counts if intervals over items and trainings do not overlap: that is stricter than a test of the
    difference, and needs no more than the table shows.

    Arguments:
        memory: By row, whether it only remembers.
    """
    panels = dict.fromkeys(row.panel for row in table.rows if row.panel is not None)
    return {panel: tuple(_sentences(panel, table, space, memory or {})) for panel in panels}


def _sentences(panel: str, table: Table, space: Space, memory: Mapping[str, str]) -> list[str]:
    rows = [row for row in table.rows if row.panel == panel]
    metrics = {metric.key: metric for metric in table.metrics}
    found = []
    likelihood = metrics.get(likelihood_keys(space)[0])
    if likelihood is not None:
        found += _likelihood(rows, likelihood)
    found += _samples(rows, table)
    found += [memory[row.name] for row in rows if row.name in memory]
    if panel == "implicit" and likelihood is not None:
        found.append(
            "Not supported: any statement on how probable held-out items are under these models, which have no"
            " likelihood; what they leave out shows in recall and coverage alone."
        )
    if not any(cell.seeds for row in rows for cell in row.measurements.values()):
        found.append(
            "Not supported: that another training would come out the same. This is one of each; --seeds trains several."
        )
    return found


def _likelihood(rows: list[Row], metric: Metric) -> list[str]:
    """The best likelihood of each kind and measure, and whether it is the best beyond chance."""
    groups: dict[tuple[str | None, str | None], list[Row]] = {}
    for row in rows:
        cell = row.measurements.get(metric.key)
        if cell is not None and cell.value is not None and math.isfinite(cell.value):
            groups.setdefault((cell.kind, cell.measure), []).append(row)
    found = []
    for (kind, _), members in groups.items():
        what = f"{KINDS.get(kind or '', '')} negative log-likelihood".strip()
        found.append(_best(members, metric, f"the lowest {what}", f"the {what} is"))
        if kind == "lower bound":
            found.append(
                "Not supported: a ranking of bounds against exact values; a model's true value lies below its bound, by"
                " a gap that the table does not know."
            )
    endless = [row.name for row in rows if (cell := row.measurements.get(metric.key)) and _is_endless(cell)]
    if endless:
        found.append(
            f"Without a place: {', '.join(endless)}, whose {metric.title} is not finite; the notes count the items."
        )
    if len(groups) > 1:
        found.append("Not supported: a ranking across kinds or measures of likelihood; each is ranked by itself.")
    return found


def _best(rows: list[Row], metric: Metric, superlative: str, alone: str) -> str:
    """Which row is best in a column, and whether the next one is beaten by more than the intervals."""
    cells = {row.name: row.measurements[metric.key] for row in rows}
    ranked = sorted(cells, key=lambda name: cells[name].value or 0.0, reverse=metric.better == "higher")
    first = ranked[0]
    unit = f" {metric.unit}" if metric.unit else ""
    if len(ranked) == 1:
        return f"Of {first}, {alone} {_text(cells[first])}{unit}."
    tied = [name for name in ranked[1:] if _overlap(cells[first], cells[name])]
    second = ranked[1]
    rest = f"; the next, {second}, has {_text(cells[second])}."
    if any(cell.whole_interval is None for cell in cells.values()):
        return (
            f"{first} has {superlative}, {_text(cells[first])}{unit}{rest} Without intervals the order may be chance."
        )
    if not tied:
        return f"{first} has {superlative}, {_text(cells[first])}{unit}, by more than chance{rest}"
    among = " and ".join([", ".join(tied[:-1]), tied[-1]] if len(tied) > 1 else tied)
    return (
        f"{first} has {superlative}, {_text(cells[first])}{unit}, but its interval overlaps that of {among}: the order"
        " may be chance."
    )


def _samples(rows: list[Row], table: Table) -> list[str]:
    """How far samples are from data, beside what a perfect model would get and what noise gets."""
    metrics = {metric.key: metric for metric in table.metrics}
    distance = next((m for m in table.metrics if m.key.startswith(("kid_", "fd_infinity_"))), None)
    if distance is None:
        return []
    members = [
        row
        for row in rows
        if (cell := row.measurements.get(distance.key)) and cell.value is not None and math.isfinite(cell.value)
    ]
    if not members:
        return []
    by_name = {row.name: row.measurements for row in table.rows}
    found = [_best(members, distance, f"the samples nearest to the data by {distance.title}", f"{distance.title} is")]
    perfect = by_name.get(TRAIN, {}).get(distance.key)
    noise = by_name.get(NOISE, {}).get(distance.key)
    if perfect is not None and noise is not None:
        near = {row.name: cell for row in members if _overlap(cell := row.measurements[distance.key], perfect)}
        reached = [name for name, cell in near.items() if _overlap(dataclasses.replace(cell, seeds=()), perfect)]
        # That two trainings differ, which makes an interval wide, is no sign of being perfect.
        unsure = [name for name in near if name not in reached]
        too = _overlap(noise, perfect)
        parts = [f"A perfect model would get {_text(perfect)}, noise gets {_text(noise)}"]
        if reached:
            parts.append(f"{', '.join(reached)} cannot be told from perfect by it{', but neither can noise' * too}")
        elif len(unsure) < len(members):
            which = "the other" if unsure else "these"
            parts.append(f"each of {which} models can be told from perfect by it{', though noise cannot' * too}")
        elif too:
            parts.append("noise cannot be told from perfect by it")
        if unsure:
            parts.append(f"of {', '.join(unsure)} it says nothing, since the trainings differ so much")
        found.append("; ".join(parts) + ".")
    told = metrics.get("c2st_accuracy")
    if told is not None:
        cells = {row.name: row.measurements[told.key] for row in members if told.key in row.measurements}
        known = {name: cell for name, cell in cells.items() if cell.value is not None}
        if known:
            listed = ", ".join(f"{name} {100 * (cell.value or 0):.0f} %" for name, cell in known.items())
            ends = {name: cell.whole_interval for name, cell in known.items()}
            fooled = [name for name, interval in ends.items() if interval is not None and interval[0] <= 0.5]
            found.append(
                f"A fresh discriminator is right about new samples in: {listed} (guessing: 50 %)"
                + (f"; about {', '.join(fooled)} it may be guessing, as far as the intervals say." if fooled else ".")
            )
    return found


def _is_endless(cell: Measurement) -> bool:
    """Whether a value is infinite or NaN, as with one item of probability zero."""
    return cell.value is not None and not math.isfinite(cell.value)


def _text(cell: Measurement) -> str:
    return "undefined" if cell.value is None else format_value(cell.value)


def _overlap(a: Measurement, b: Measurement) -> bool:
    """Whether two values may be equal, as far as their intervals say; without any, only equal ones are."""
    first, second = a.whole_interval, b.whole_interval
    if first is None or second is None:
        return a.value == b.value
    return first[0] <= second[1] and second[0] <= first[1]
