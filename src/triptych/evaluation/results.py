"""What an evaluation returns: values that carry their unit, direction, interval, kind and sample count."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from triptych.models.base import Kind, Measure

T_95 = (
    *(12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814),
    *(2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596),
)
"""Student's t at 97.5 % for 1 to 20 degrees of freedom; for more the last one, which is wide by 6 % at most."""


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
    least: float | None = None
    """Lower end of what it can be; None where there is none."""
    most: float | None = None
    """Upper end."""

    def possible(self, ends: tuple[float, float]) -> tuple[float, float]:
        """An interval, without what the metric cannot be: one over trainings knows nothing of that."""
        low, high = ends
        if self.least is not None:
            low, high = max(low, self.least), max(high, self.least)
        if self.most is not None:
            low, high = min(low, self.most), min(high, self.most)
        return low, high


@dataclass(frozen=True)
class Measurement:
    """One value of one metric."""

    value: float | None
    """None: not defined for this row (a likelihood of a GAN)."""
    low: float | None = None
    """Lower end of the 95 % interval over items, None where there is none."""
    high: float | None = None
    """Upper end."""
    n: int = 0
    """Items behind the value."""
    kind: Kind | Literal["at least"] | None = None
    """For likelihoods: exact, a lower bound (of log p, so an upper bound of bits/dim), or an estimate. 'at least':
    whatever is measured is this or more."""
    measure: Measure | None = None
    """For likelihoods: probability of an integer image, or density in data units."""
    seeds: tuple[float, ...] = ()
    """Where `value` is a mean over trainings: the value of each."""

    def text(self, better: Literal["lower", "higher", "neither"]) -> str:
        """`1.234`, `≤ 1.234` or `≥ 1.234` (a lower bound of log p: an upper one where lower is better), `~ 1.234` (an
        estimate), or `not defined`."""
        if self.value is None:
            return "not defined"
        bound = "≥ " if better == "higher" else "≤ "
        marks = {"lower bound": bound, "estimate": "~ ", "at least": "≥ "}
        return marks.get(self.kind or "", "") + format_value(self.value)

    @property
    def interval(self) -> str:
        """`± 0.012`, or both ends of an interval that lies unevenly about the value; empty where there is none."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        below, above = self.value - self.low, self.high - self.value
        if min(below, above) >= 0 and max(below, above) <= 1.2 * min(below, above):
            return f"± {format_value((self.high - self.low) / 2)}"
        return f"{format_value(self.low)} – {format_value(self.high)}"

    @property
    def seed_error(self) -> float | None:
        """Half of the 95 % interval over trainings (Student's t); None where there are less than two, or one of them
        has no finite value."""
        if len(self.seeds) < 2 or not all(map(math.isfinite, self.seeds)):
            return None
        t = T_95[min(len(self.seeds) - 1, len(T_95)) - 1]
        return t * statistics.stdev(self.seeds) / math.sqrt(len(self.seeds))

    @property
    def whole_interval(self) -> tuple[float, float] | None:
        """Both ends of an interval that covers items and trainings, as independent errors; None where there is neither.

        Two rows whose intervals do not overlap differ by more than chance.
        """
        if self.value is None:
            return None
        seeds = self.seed_error
        if self.low is None or self.high is None:
            return None if seeds is None else (self.value - seeds, self.value + seeds)
        below, above = max(0.0, self.value - self.low), max(0.0, self.high - self.value)
        return self.value - math.hypot(below, seeds or 0.0), self.value + math.hypot(above, seeds or 0.0)


def averaged(trainings: Sequence[Mapping[str, Measurement]]) -> dict[str, Measurement]:
    """Means over several trainings of one model, by key; of a single one, its own measurements.

    A mean is not defined where one of the values is not. The interval over items is as wide as those of the trainings
    on average: all saw the same held-out items, so it does not shrink with their number.
    """
    if len(trainings) == 1:
        return dict(trainings[0])
    found = {}
    for key in trainings[0]:
        several = [training[key] for training in trainings if key in training]
        values = [one.value for one in several]
        first = several[0]
        if any(value is None for value in values):
            found[key] = Measurement(None, n=first.n)
            continue
        numbers = [value for value in values if value is not None]
        mean = statistics.fmean(numbers)
        low = high = None
        lows, highs = [one.low for one in several], [one.high for one in several]
        if all(end is not None for end in (*lows, *highs)):
            low = mean - statistics.fmean(v - e for v, e in zip(numbers, lows, strict=True) if e is not None)
            high = mean + statistics.fmean(e - v for v, e in zip(numbers, highs, strict=True) if e is not None)
        # A mean of some that are 'at least' is one, too.
        kind = "at least" if any(one.kind == "at least" for one in several) else first.kind
        found[key] = Measurement(mean, low, high, first.n, kind, first.measure, tuple(numbers))
    return found


@dataclass(frozen=True)
class TrainingCost:
    """What the training of a model took."""

    seconds: float
    n_items: int
    """Training items seen, each as often as it was."""
    n_parameters: int

    def measurements(self) -> dict[str, Measurement]:
        """The columns of cost."""
        return {
            "training_seconds": Measurement(self.seconds),
            "training_items": Measurement(float(self.n_items)),
            "n_parameters": Measurement(float(self.n_parameters)),
        }


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
        """Plain values for `table.json`; those that are not finite, which JSON cannot write, as text: 'NaN',
        'Infinity', '-Infinity'."""
        values = asdict(self)
        for row in values["rows"]:
            for cell in row["measurements"].values():
                cell |= {key: _written(cell[key]) for key in ("value", "low", "high")}
                cell["seeds"] = tuple(map(_written, cell["seeds"]))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Table:
        """Reads what `to_dict` wrote."""

        def measurement(values: dict[str, Any]) -> Measurement:
            numbers = {key: float(values[key]) for key in ("value", "low", "high") if values.get(key) is not None}
            return Measurement(**{**values, **numbers, "seeds": tuple(map(float, values.get("seeds", ())))})

        return cls(
            tuple(Metric(**metric) for metric in values["metrics"]),
            tuple(
                Row(row["name"], row["panel"], {key: measurement(m) for key, m in row["measurements"].items()})
                for row in values["rows"]
            ),
        )


@dataclass(frozen=True)
class PerClass:
    """What is measured of each class by itself."""

    classes: tuple[str, ...]
    """Names."""
    metrics: tuple[Metric, ...]
    rows: dict[str, dict[str, tuple[Measurement, ...]]]
    """By the name of a row, then by Metric.key: a measurement of each class."""


def _written(value: float | None) -> float | str | None:
    """A number as JSON can hold it; `float` reads it back."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def format_value(value: float) -> str:
    """Four significant digits, without an exponent where people do not need one."""
    if value != value:
        return "nan"
    magnitude = abs(value)
    if 1e12 <= magnitude < math.inf:
        return f"{value:.3e}"
    if magnitude >= 1000:
        return f"{value:,.0f}"
    if magnitude >= 100:
        return f"{value:.1f}"
    if magnitude >= 10:
        return f"{value:.2f}"
    if magnitude >= 0.01 or magnitude == 0:
        return f"{value:.3f}"
    return f"{value:.2g}"
