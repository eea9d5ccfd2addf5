"""What an evaluation returns: values that carry their unit, direction, interval, kind and sample count."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from triptych.models.base import Kind, Measure


@dataclass(frozen=True)
class Metric:
    """What a column of the table measures."""

    key: str
    """Column name in JSON and CSV, with the unit in it: 'bits_per_dim', 'fd_random'."""
    title: str
    """Column title for people: 'FD (random features)'."""
    unit: str
    """'bits/dim', 'nats', 'images/s', or '' for a pure number."""
    better: Literal["lower", "higher", "neither"]
    """Direction."""
    protocol: str
    """How it is measured, in a sentence or two: estimator, features, sample counts, interval, source."""


@dataclass(frozen=True)
class Measurement:
    """One value of one metric."""

    value: float | None
    """None: not defined for this row (a likelihood of a GAN)."""
    low: float | None = None
    """Lower end of the 95 % interval, None where there is none."""
    high: float | None = None
    """Upper end."""
    n: int = 0
    """Items behind the value."""
    kind: Kind | None = None
    """For likelihoods: exact, a lower bound (of log p, so an upper bound of bits/dim), or an estimate."""
    measure: Measure | None = None
    """For likelihoods: probability of an integer image, or density in data units."""

    def text(self, better: Literal["lower", "higher", "neither"]) -> str:
        """`1.234`, `≤ 1.234` or `≥ 1.234` (a lower bound of log p: an upper one where lower is better), `~ 1.234` (an
        estimate), or `not defined`."""
        if self.value is None:
            return "not defined"
        bound = "≥ " if better == "higher" else "≤ "
        return {"lower bound": bound, "estimate": "~ "}.get(self.kind or "", "") + format_value(self.value)

    @property
    def interval(self) -> str:
        """`± 0.012`, or both ends of an interval that lies unevenly about the value; empty where there is none."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        below, above = self.value - self.low, self.high - self.value
        if min(below, above) >= 0 and max(below, above) <= 1.2 * min(below, above):
            return f"± {format_value((self.high - self.low) / 2)}"
        return f"{format_value(self.low)} – {format_value(self.high)}"


@dataclass(frozen=True)
class Row:
    """One row of the table: a model, or a reference that gives the numbers meaning."""

    name: str
    """Model name, or 'train vs held-out', 'noise'."""
    panel: str | None
    """'tractable', 'approximate', 'implicit'; None for a reference row."""
    measurements: dict[str, Measurement] = field(default_factory=dict)
    """By Metric.key; a missing key prints as an empty cell (does not apply to this row)."""


@dataclass(frozen=True)
class Table:
    """Metrics are the columns, models and references the rows."""

    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `table.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Table:
        """Reads what `to_dict` wrote."""
        return cls(
            tuple(Metric(**metric) for metric in values["metrics"]),
            tuple(
                Row(row["name"], row["panel"], {key: Measurement(**m) for key, m in row["measurements"].items()})
                for row in values["rows"]
            ),
        )


def format_value(value: float) -> str:
    """Four significant digits, without an exponent where people do not need one."""
    if value != value:
        return "nan"
    magnitude = abs(value)
    if magnitude >= 1000:
        return f"{value:,.0f}"
    if magnitude >= 100:
        return f"{value:.1f}"
    if magnitude >= 10:
        return f"{value:.2f}"
    if magnitude >= 0.01 or magnitude == 0:
        return f"{value:.3f}"
    return f"{value:.2g}"
