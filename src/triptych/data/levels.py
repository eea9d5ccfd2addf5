"""Integer levels: how many a set of images has, and how it is brought to another number of them."""

from __future__ import annotations

import operator

import numpy as np

from triptych.data.dataset import level_dtype
from triptych.errors import InputError


def level_table(n_from: int, n_to: int) -> np.ndarray:
    """For each of `n_from` levels the one of `n_to` it becomes, shape (n_from,), in the dtype images are stored in.

    Fewer levels are bins of equal width (256 to 32 keeps the upper five bits); more are spread evenly, black to black
    and white to white.
    """
    values = np.arange(n_from, dtype=np.int64)
    if n_to <= n_from:
        values = values * n_to // n_from
    else:
        values = (values * (n_to - 1) * 2 + (n_from - 1)) // (2 * (n_from - 1))  # rounded to the nearest
    return values.astype(level_dtype(n_to))


def native_levels(max_value: int, dtype: np.dtype) -> int:
    """Levels that an integer array with this largest value is taken to have.

    Returns:
        2 up to a largest value of 1; 256 for uint8 and up to 255; else the next power of two.
    """
    if max_value <= 1:
        return 2
    if dtype == np.uint8 or max_value < 256:
        return 256
    return 1 << max_value.bit_length()


def check_levels(levels: int | None) -> int | None:
    """`levels` as an int, or InputError unless it is None or between 2 and 65536."""
    if levels is None:
        return None
    try:
        levels = operator.index(levels)
    except TypeError:
        raise InputError(f"levels is {levels!r}; it must be a whole number.") from None
    if not 2 <= levels <= 65536:
        raise InputError(f"levels is {levels}; it must be between 2 and 65536.")
    return levels
