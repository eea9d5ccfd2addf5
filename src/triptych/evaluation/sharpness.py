"""How sharp images are: the energy of their gradients and their power at every spatial frequency.

Blur takes power from the high frequencies and noise adds some there, so both are read beside held-out images. Pure
functions, features -> statistics -> metric, in float64; features of an image depend on this image alone. They need
images of ordered levels, 8x8 or larger.

Lower contrast lowers gradient energy and power as well, at all frequencies alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import numpy as np

from triptych.errors import InputError
from triptych.spaces import ImageSpace, Space

MIN_SIZE = 8
"""Fewest rows and columns: below, there are too few frequencies to tell a blur from a change of content."""

_BLOCK_ENTRIES = 1 << 20  # sub-pixels of one block: 16 MiB as complex numbers


def has_sharpness(space: Space) -> TypeGuard[ImageSpace]:
    """Whether items of a space can be blurred: images of ordered levels (no palette), 8x8 or larger."""
    return isinstance(space, ImageSpace) and space.palette is None and min(space.height, space.width) >= MIN_SIZE


def gradient_energy(images: np.ndarray, space: ImageSpace) -> np.ndarray:
    """Mean squared difference of neighbours along rows plus that along columns, with levels scaled to 0 .. 1.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W).
    Returns:
        Of each image, mean over its channels, float64, (N,), 0 .. 2. Low where blurred; pixel noise makes it high.
    Raises:
        InputError: If the space has no sharpness, or the images are not of this space.
    Source:
        Subbarao, Choi & Nikzad 1993, Focusing techniques (energy of the image gradient). Differs: a mean instead of a
        sum, and not divided by an image's squared brightness, which would let dark images decide the mean of a set.
    """
    energies = [
        (np.diff(x, axis=2) ** 2).mean(axis=(1, 2, 3)) + (np.diff(x, axis=3) ** 2).mean(axis=(1, 2, 3))
        for x in _blocks(images, space)
    ]
    return np.concatenate([np.empty(0), *energies])


def radial_power(images: np.ndarray, space: ImageSpace) -> np.ndarray:
    r"""Power spectrum of each image, averaged over rings of equal spatial frequency and over channels.

    Under a Hann window and with its mean under that window removed. Without a window the step from one edge of the
    image to the other, which the Fourier transform takes for neighbours, spreads over all frequencies and hides a
    blur. Ring k = 1, 2, .. holds the frequencies within half a step of k / min(H, W) cycles per pixel; the last rings
    hold the corners of the frequency plane, up to 0.71 cycles per pixel, where checkerboard artefacts lie. Frequencies
    below the first ring (of images longer than wide, or wider than long) belong to it.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W).
    Returns:
        float64, (N, n_frequencies), levels scaled to 0 .. 1. White noise of variance v has power v in every
        ring, but for the first, which the mean takes a part of.
    Raises:
        InputError: As `gradient_energy` says.
    Source:
        Durall, Keuper & Keuper 2020, arXiv:2003.01826 (azimuthal integration). Differs: means over rings instead of
        sums, a window, and no division by the power at frequency 0.
    """
    height, width = space.height, space.width
    step = min(height, width)
    window = np.outer(_hann(height), _hann(width))
    ring = np.rint(step * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))).astype(np.int64).reshape(-1)
    ring[1:] = ring[1:].clip(min=1)  # all but frequency 0, which is the mean
    n_rings = int(ring.max())
    order = np.argsort(ring, kind="stable")[1:]
    starts = np.searchsorted(ring[order], np.arange(1, n_rings + 1))  # no ring is empty: radii lie less than 1 apart
    sizes = np.bincount(ring)[1:]
    parts = [np.empty((0, n_rings))]
    for x in _blocks(images, space):
        mean = (x * window).sum(axis=(2, 3), keepdims=True) / window.sum()
        power = (np.abs(np.fft.fft2((x - mean) * window)) ** 2).mean(axis=1) / (window**2).sum()  # (n, H, W)
        parts.append(np.add.reduceat(power.reshape(len(x), -1)[:, order], starts, axis=1) / sizes)
    return np.concatenate(parts)


def spectrum(power: np.ndarray, space: ImageSpace) -> np.ndarray:
    """Log power spectrum of a set of images: log10 of the mean of their powers, not below `faintest`.

    The mean comes before the logarithm: constant images in a set would decide a mean of logarithms on their own.

    Arguments:
        power: Of each image, (N, n_frequencies), as `radial_power` gives.
    Returns:
        Decades, (n_frequencies,), from the lowest frequency to the highest.
    Raises:
        InputError: If there are no images.
    """
    return np.asarray(np.log10(np.maximum(_mean(power), faintest(space))))


def spectral_distance(samples: np.ndarray, held_out: np.ndarray) -> float:
    """Root mean square difference of two log power spectra over all their frequencies.

    Arguments:
        samples, held_out: Spectra, (n_frequencies,), as `spectrum` gives.
    Returns:
        Decades: 0 for the same power at every scale, 0.3 for twice or half of it throughout. Lower is better.
    """
    return float(np.sqrt(((samples - held_out) ** 2).mean()))


def relative_sharpness(samples: np.ndarray, held_out: np.ndarray, space: ImageSpace) -> float:
    """Mean gradient energy of samples as a multiple of that of held-out images, neither counted below `faintest`.

    Arguments:
        samples, held_out: Of each image, (N,) and (M,), as `gradient_energy` gives.
    Returns:
        1 for equal sharpness; below 1 samples are blurred (or pale), above 1 they are noisy (or harsh).
    Raises:
        InputError: If there are no images on a side.
    """
    floor = faintest(space)
    return max(float(_mean(samples)), floor) / max(float(_mean(held_out)), floor)


def faintest(space: ImageSpace) -> float:
    """About the mean power of an image in which one sub-pixel is one level off: the floor of power and energy.

    Sets with less are constant or nearly so; the floor keeps their logarithms and ratios finite.
    """
    return 1 / ((space.levels - 1) ** 2 * space.n_dims)


def _blocks(images: np.ndarray, space: ImageSpace) -> Iterator[np.ndarray]:
    """The images in float64, scaled to 0 .. 1, (block, C, H, W), block after block."""
    if not has_sharpness(space):
        raise InputError(
            f"Sharpness needs images of {MIN_SIZE}x{MIN_SIZE} or more without a palette; this space is {space}."
        )
    space.check(images)
    size = max(1, _BLOCK_ENTRIES // space.n_dims)
    for start in range(0, len(images), size):
        yield images[start : start + size].astype(np.float64) / (space.levels - 1)


def _hann(n: int) -> np.ndarray:
    """Hann window about the middle of n pixels, in which every pixel has some weight, (n,)."""
    window: np.ndarray = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
    return window


def _mean(features: np.ndarray) -> np.ndarray:
    if len(features) == 0:
        raise InputError("A set has no images; sharpness needs at least 1.")
    return np.asarray(features.mean(axis=0))
