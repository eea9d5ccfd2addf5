"""Small data sets that many tests share."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.data.dataset import Dataset, Split, checksum_of, point_space_of
from triptych.spaces import ImageSpace


def stripes(n: int, seed: int, levels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """8x8 images of upright (class 0) or level (class 1) stripes with a little noise: (n, 1, 8, 8), (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    phase = rng.integers(0, 2, n)
    wave = (np.arange(8)[None, :] + phase[:, None]) // 2 % 2 * (levels - 1)  # (n, 8)
    images = np.where(labels[:, None, None] == 0, wave[:, None, :], wave[:, :, None])
    flipped = rng.random(images.shape) < 0.05
    images = np.where(flipped, rng.integers(0, levels, images.shape), images)
    return images[:, None].astype(np.uint8), labels


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """Striped images, 8x8, 4 levels, 2 classes; 100, 30 and 37 items."""
    splits = [Split(*stripes(n, seed)) for seed, n in enumerate((100, 30, 37))]
    return Dataset("tiny", ImageSpace(1, 8, 8, 4), *splits, ("upright", "level"), checksum_of(*splits))


@pytest.fixture(scope="session")
def tiny_points() -> Dataset:
    """Two Gaussian blobs in the plane."""
    splits = []
    for seed, n in enumerate((200, 50, 60)):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, n)
        points = (rng.normal(size=(n, 2)) * 0.1 + labels[:, None] * 2 + 5).astype(np.float32)
        splits.append(Split(points, labels))
    return Dataset("blobs", point_space_of(np.asarray(splits[0].items)), *splits, ("low", "high"), checksum_of(*splits))
