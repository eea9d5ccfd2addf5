"""Columns of the table in groups, by what they measure, and the few that say most of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from triptych.evaluation.results import Metric

GROUPS = {
    "Likelihood": r"nll_.*|bits_per_dim|negative_elbo_.*",
    "Samples: sharpness": r"spectral_distance|sharpness",
    "Discriminator": r"c2st_.*|jsd_.*",
    "Memorisation": r"distance_ratio|copying_z|authenticity|support_size",
    "Cost": r"samples_per_second|training_.*|n_parameters",
}
"""Title of a group, and the keys of its columns."""
OF_SAMPLES = r"(?:fd_infinity|fd|kid|precision|recall|density|coverage)_(.+)"
"""Keys of what is measured in features, whose name is the end."""
ASPECTS = (
    r"bits_per_dim",
    r"nll_.*",
    r"fd_.*|kid_.*",
    r"recall_.*",
    r"coverage_.*",
    r"jsd_.*",
    r"copying_z",
    r"distance_ratio",
    r"samples_per_second",
)
"""What to know of a model first; of each the first column in the table that has such a key."""
ELSE_ASPECTS = {r"nll_.*": r"bits_per_dim", r"coverage_.*": r"recall_.*", r"distance_ratio": r"copying_z"}
"""Aspects that are not needed where the table has another one."""

Group = tuple[str, tuple[Metric, ...]]
"""Its title, empty for columns of no group, and its columns."""


def group_of(metric: Metric) -> str:
    """'Likelihood', 'Samples: random features', ..., or an empty string for a column of no group."""
    if found := re.fullmatch(OF_SAMPLES, metric.key):
        return f"Samples: {found[1]}" + (" features" if found[1] != "coordinates" else "")
    return next((title for title, keys in GROUPS.items() if re.fullmatch(keys, metric.key)), "")


def short_title(metric: Metric) -> str:
    """The title where the group says the features: 'FD' of 'FD (random features)'."""
    return metric.title.partition(" (")[0] if re.fullmatch(OF_SAMPLES, metric.key) else metric.title


def grouped(metrics: Sequence[Metric]) -> list[Group]:
    """The metrics by group, groups in the order in which they appear, so that each stands in one piece."""
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(group_of(metric), []).append(metric)
    return [(title, tuple(members)) for title, members in groups.items()]


def key_metrics(metrics: Sequence[Metric], n: int) -> list[Metric]:
    """At most `n` of the metrics, in their order: one of each aspect, then the first of the rest."""

    def of(aspect: str) -> Metric | None:
        return next((metric for metric in metrics if re.fullmatch(aspect, metric.key)), None)

    chosen = [of(aspect) for aspect in ASPECTS if aspect not in ELSE_ASPECTS or of(ELSE_ASPECTS[aspect]) is None]
    rest = [metric for metric in metrics if metric not in chosen]
    first = [metric for metric in (*chosen, *rest) if metric is not None][:n]
    return [metric for metric in metrics if metric in first]
