"""The training items nearest to samples: what a model that copies its data shows at a glance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.features import FeatureExtractor
from triptych.spaces import ImageSpace, Space


@dataclass(frozen=True)
class Neighbours:
    """Samples beside the training items nearest to them."""

    queries: np.ndarray
    """(M, *space.shape): samples."""
    nearest: np.ndarray
    """(M, K, *space.shape): the K nearest training items of each, nearest first."""
    distances: np.ndarray
    """(M, K): Euclidean distances, on data scaled to 0 .. 1 (images) or data units (points), or of features."""


def nearest_neighbours(
    queries: np.ndarray, split: Split, space: Space, *, k: int = 3, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Exact nearest neighbours in Euclidean distance, reading the split `chunk` items at a time.

    Distances between images are computed on their integer levels (palette images: on RGB colours), which float64
    holds exactly, so that a copy is at distance 0 and equal distances are ordered by position.

    Arguments:
        queries: Items, (M, *space.shape).
        split: Where to look.
        k: Neighbours of each query; all items if the split has fewer.
    Returns:
        Positions in the split, int64, and distances, float64, each (M, k), nearest first. Images are scaled to
        0 .. 1 first, points stay in data units.
    Raises:
        InputError: If k is not positive, or the queries are not of this space.
    """
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 neighbour.")
    space.check(queries, "queries")
    flat = _coordinates(queries, space)  # (M, D)
    norms = (flat**2).sum(axis=1)[:, None]
    best = np.empty((len(queries), 0))
    positions = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(split), chunk):
        index = np.arange(start, min(start + chunk, len(split)))
        items = _coordinates(split.read(index)[0], space)  # (chunk, D)
        squared = norms - 2 * (flat @ items.T) + (items**2).sum(axis=1)
        best = np.concatenate([best, squared], axis=1)
        positions = np.concatenate([positions, np.broadcast_to(index, squared.shape)], axis=1)
        # Stable, and earlier positions stand first: ties go to the lowest position.
        order = np.argsort(best, axis=1, kind="stable")[:, :k]
        best, positions = np.take_along_axis(best, order, axis=1), np.take_along_axis(positions, order, axis=1)
    return positions, np.sqrt(best.clip(min=0.0)) * _unit(space)


def show_neighbours(queries: np.ndarray, split: Split, space: Space, *, k: int = 3) -> Neighbours:
    """The queries with their k nearest items of the split, read out."""
    positions, distances = nearest_neighbours(queries, split, space, k=k)
    nearest = split.read(positions.reshape(-1))[0]
    return Neighbours(queries, nearest.reshape(*positions.shape, *space.shape), distances)


class FeatureSearch:
    """Finds the training items nearest to samples in features, where a copy that is shifted by a pixel is still near.

    Arguments:
        split: Where to look: at most `most` of its items, drawn at random.
        seed: Of that choice.
    """

    def __init__(self, extractor: FeatureExtractor, split: Split, *, most: int = 100_000, seed: int = 0) -> None:
        self.extractor, self.split = extractor, split
        rng = np.random.Generator(np.random.PCG64(seed))
        self.positions = np.sort(rng.permutation(len(split))[:most])
        features = [extractor(split.read(part)[0]) for part in np.array_split(self.positions, -(-len(self) // 4096))]
        self.features = np.concatenate(features)  # (len(self), D)
        self.norms = (self.features**2).sum(axis=1)

    def __len__(self) -> int:
        return len(self.positions)

    def show(self, queries: np.ndarray, *, k: int = 3) -> Neighbours:
        """Samples with their k nearest items in features, read out."""
        features = self.extractor(queries)  # (M, D)
        squared = (features**2).sum(axis=1)[:, None] - 2 * (features @ self.features.T) + self.norms
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]  # (M, k)
        nearest = self.split.read(self.positions[order.reshape(-1)])[0]
        # Anew, since the difference of squares leaves a rounding error in the place of 0.
        distances = np.linalg.norm(self.features[order] - features[:, None], axis=2)
        return Neighbours(queries, nearest.reshape(*order.shape, *queries.shape[1:]), distances)


def _coordinates(items: np.ndarray, space: Space) -> np.ndarray:
    """Items as float64 rows: integer levels or colours of images; centred points, where rounding is least."""
    if isinstance(space, ImageSpace):
        if space.palette is not None:
            items = np.asarray(space.palette)[items]
    elif space.center is not None:
        items = items - np.asarray(space.center, dtype=np.float64)
    return items.reshape(len(items), -1).astype(np.float64)


def _unit(space: Space) -> float:
    """Size of one step of `_coordinates` in the units that distances are told in."""
    if not isinstance(space, ImageSpace):
        return 1.0
    return 1 / 255 if space.palette is not None else 1 / (space.levels - 1)
