"""Models of about as many parameters: the width at which each has the number wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models.registry import MAX_PARAMETERS, create_model, model_class

MOST = 1 << 14
"""The largest width that is tried."""


@dataclass(frozen=True)
class Sized:
    """A model brought to a size."""

    options: dict[str, Any]
    """The option that does it; empty where the model has no such option."""
    n_parameters: int
    wanted: int

    def describe(self, name: str) -> str:
        if not self.options:
            return f"{name} keeps its size: it has no width, its parameters follow from the data."
        ((option, value),) = self.options.items()
        return f"{name}: {option}={value}, {self.n_parameters:,} parameters ({self.wanted:,} wanted)"


def options_of_size(name: str, data: Dataset, n_parameters: int, *, n_classes: int = 0, **options: Any) -> Sized:
    """The model's width at which its number of parameters is nearest to the wanted one.

    Arguments:
        name: Model; its class says which option is its width (`size_option`).
        data: The data it is to learn.
        n_parameters: Wanted.
        n_classes: Of a class-conditional model.
        options: Other options, which stay.
    Raises:
        InputError: If the width is among the options, or no width comes within a factor of 2.
    """
    if not 1 <= n_parameters <= MAX_PARAMETERS:
        raise InputError(f"parameters is {n_parameters}; it must be at least 1 and at most {MAX_PARAMETERS:,}.")
    option = model_class(name).size_option
    if option is None:
        return Sized({}, 0, n_parameters)
    if option in options:
        raise InputError(f"parameters chooses {name}'s {option}; leave out --set {name}.{option}.")
    counts: dict[int, int | None] = {}

    def count(width: int) -> int | None:
        """Parameters at a width; None where the model cannot have it."""
        if width not in counts:
            try:
                with torch.random.fork_rng():
                    model = create_model(name, data.space, n_classes=n_classes, **options, **{option: width})
                counts[width] = sum(
                    tensor.numel() for tensor in [*model.parameters()] or [*model.state_dict().values()]
                )
            except InputError:
                counts[width] = None
        return counts[width]

    # Classical models refuse more components than items, but not before they are trained.
    most = min(MOST, _fewest_items(data, n_classes)) if option == "n_components" else MOST
    low, high = 1, 1
    while high < most and (count(high) or 0) < n_parameters:
        low, high = high, min(2 * high, most)
    count(high)
    while high - low > 1:
        middle = (low + high) // 2
        # A width that cannot be had (a divisor of something) says nothing: the next one may.
        near = next((w for w in range(middle, high) if count(w) is not None), None)
        if near is None or (counts[near] or 0) >= n_parameters:
            high = middle
        else:
            low = near
    possible = {width: found for width, found in counts.items() if found}
    if not possible:
        raise InputError(f"{name} has no {option} that can be chosen for {n_parameters:,} parameters.")
    best = min(possible, key=lambda width: (abs(possible[width] - n_parameters), width))
    if not n_parameters / 2 <= possible[best] <= 2 * n_parameters:
        raise InputError(
            f"{name} cannot have some {n_parameters:,} parameters: the nearest is {possible[best]:,}, at"
            f" {option}={best}. Ask for another number, or leave {name} out."
        )
    return Sized({option: best}, possible[best], n_parameters)


def _fewest_items(data: Dataset, n_classes: int) -> int:
    """Training items of the class that has fewest; of a model without classes all of them."""
    labels = data.train.labels
    if n_classes == 0 or labels is None:
        return len(data.train)
    return int(np.bincount(labels, minlength=n_classes).min())
