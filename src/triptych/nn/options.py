"""Checks of the options that many models share. Each raises `InputError` with one line that names the option."""

from __future__ import annotations

import math

from triptych.errors import InputError


def check_counts(**counts: int) -> None:
    """Each option must be at least 1."""
    for option, value in counts.items():
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1.")


def check_dropout(dropout: float) -> None:
    """A probability with which a feature is zeroed: 0 <= dropout < 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; it must be at least 0 and less than 1.")


def check_kernel_size(kernel_size: int) -> None:
    """The side of a kernel with a site in its middle and others around it: odd, at least 3."""
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}; it must be odd and at least 3.")


def check_not_negative(**options: float) -> None:
    """Each option must be finite and not negative."""
    for option, value in options.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{option} is {value}; it must be finite and not negative.")


def hidden_of_channels(hidden: int | None, channels: int) -> int:
    """Features in as many equal groups as there are colour channels; None for 16 a channel, at least 32."""
    if hidden is None:
        return 16 * max(channels, 2)
    if hidden < 1 or hidden % channels:
        nearest = max(1, round(hidden / channels)) * channels
        raise InputError(f"hidden is {hidden}; it must be a multiple of the {channels} channels, such as {nearest}.")
    return hidden
