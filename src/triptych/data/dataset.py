"""A data set: integer images or real points, labels, fixed splits and a checksum, all numpy."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from triptych.errors import InputError
from triptych.spaces import PointSpace, Space

PIECE_BYTES = 2**24
"""What passes over a whole set read at once."""
LARGE_BYTES = 2**30
"""Sets of more bytes than this may be larger than memory, and have their checksum taken item by item."""
DIGEST_BYTES = 16


class Items(Protocol):
    """What a split holds its data in: an array, or a reader of files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The items at an array of positions, shape (len(index), *space.shape), in that order."""
        ...


class View(ABC):
    """Other items, chosen or changed as they are read."""

    items: Items

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...


class Subset(View):
    """Some positions of other items, read only when asked for."""

    def __init__(self, items: Items, positions: np.ndarray) -> None:
        self.items, self.positions = items, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.items[self.positions[index]]


@dataclass(frozen=True)
class Split:
    """One of train, valid and test."""

    items: Items
    """Images, integers (uint8, or int32 past 256 levels), shape (N, C, H, W); or points, float32, (N, dim)."""
    labels: np.ndarray | None = None
    """Class of each item, int64, shape (N,)."""

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.items):
            raise InputError(f"There are {len(self.labels)} labels for {len(self.items)} items; give one for each.")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: np.ndarray | slice | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Items and labels at an array of positions (all when None, in order)."""
        if index is None or isinstance(index, slice):
            index = np.arange(len(self))[index or slice(None)]
        return np.asarray(self.items[index]), None if self.labels is None else self.labels[index]


class Joined:
    """Several items one after the other, read only when asked for."""

    def __init__(self, *parts: Items) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        which = np.searchsorted(self.starts, index, side="right") - 1
        read = {part: self.parts[part][index[which == part] - self.starts[part]] for part in np.unique(which)}
        first = next(iter(read.values()), self.parts[0][np.arange(0)])
        items = np.empty((len(index), *first.shape[1:]), first.dtype)
        for part, values in read.items():
            items[which == part] = values
        return items


def in_memory(items: Items, limit: int) -> np.ndarray | None:
    """The items as one array if what they are made of lies in memory and takes at most `limit` bytes, else None."""
    source = items
    while isinstance(source, View):
        source = source.items
    if not isinstance(source, np.ndarray) or isinstance(source, np.memmap):
        return None
    n_bytes = len(items) * (source.nbytes // max(1, len(source)))
    return None if n_bytes > limit else items[np.arange(len(items))]


def merged(*splits: Split) -> Split:
    """Several splits as one, in order."""
    labels = [split.labels for split in splits if split.labels is not None]
    whole = np.concatenate(labels) if len(labels) == len(splits) else None
    return Split(Joined(*(split.items for split in splits)), whole)


@dataclass(frozen=True)
class Dataset:
    """Three splits of one space. Made by `triptych.load_data`."""

    name: str
    """Short name for folders and titles."""
    space: Space
    train: Split
    valid: Split
    """For choosing: early stopping, the best weights."""
    test: Split
    """For reporting, once."""
    class_names: tuple[str, ...] | None = None
    """Names of the labels' values 0, 1, ...; None if there are no labels."""
    checksum: str = ""
    """SHA-256 over items and labels of the three splits, and over how they were binarised if they were; equal for equal
    data, wherever it was read from. `checksum_of` makes it."""
    found: tuple[str, ...] = ()
    """What the source held, a sentence each, for `triptych data show`."""
    repaired: tuple[str, ...] = ()
    """What was changed on reading, a sentence each."""
    source: dict[str, Any] = field(default_factory=dict)
    """Arguments of `load_data` that read this set again."""
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    """True log-density (nats) at points of shape (N, dim), where it is known (synthetic points)."""

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if len(split) == 0:
                raise InputError(
                    f"The {name} split of {self.name!r} is empty; give more items (3 at least), or other splits."
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in order."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names) if self.class_names else 0


def split_positions(n: int, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Cuts 0 .. n-1 at random into parts of the given fractions (the last part takes the rest), each part sorted.

    Arguments:
        n: Number of items.
        fractions: Share of each part but the last; every part gets at least one item if n allows.
        seed: The same seed gives the same parts, on every machine.
    """
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    parts, start = [], 0
    for fraction in fractions:
        size = max(1, round(n * fraction))
        parts.append(np.sort(order[start : start + size]))
        start += size
    parts.append(np.sort(order[start:]))
    return parts


def item_bytes(items: Items) -> int:
    """Bytes of one item, without reading any."""
    none = items[np.arange(0)]
    return math.prod(none.shape[1:]) * none.dtype.itemsize


def pieces(items: Items, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Positions start .. stop-1 (by default all) in runs of items that take about 16 MiB, one item at least."""
    stop = len(items) if stop is None else stop
    step = max(1, PIECE_BYTES // max(1, item_bytes(items)))
    for first in range(start, stop, step):
        yield np.arange(first, min(first + step, stop))


def is_large(*splits: Split) -> bool:
    """Whether a set may be larger than memory."""
    return sum(len(split) * item_bytes(split.items) for split in splits) > LARGE_BYTES


def checksum_of(*splits: Split, remark: str = "", digests: np.ndarray | None = None) -> str:
    """SHA-256 over shape, dtype and bytes of items and labels, a few items in memory at a time.

    Where `is_large` says so, it is taken over a digest of each item, so that items which had to be decoded to be
    checked need not be decoded again.

    Arguments:
        remark: What else decides a training on the data and is not to be seen in the items.
        digests: `item_digest` of each item that the splits are subsets of, uint8, (n, 16), where known; else zeros.
    """
    result = hashlib.sha256(remark.encode())
    by_item = is_large(*splits)
    for split in splits:
        none = split.items[np.arange(0)]
        kind = f"{none.shape[1:]} {none.dtype.str}"
        if by_item:
            result.update(f"{kind} by item".encode())
            for index in pieces(split.items):
                result.update(_digests(split.items, index, digests).data)
            if split.labels is not None:
                result.update(np.ascontiguousarray(split.labels, dtype=np.int64).data)
        else:
            for start in range(0, len(split), 1024):
                stop = min(start + 1024, len(split))
                result.update(kind.encode())
                for index in pieces(split.items, start, stop):
                    result.update(np.ascontiguousarray(split.items[index]).data)
                if split.labels is not None:
                    result.update(np.ascontiguousarray(split.labels[start:stop], dtype=np.int64).data)
        result.update(b"|")
    return result.hexdigest()


def item_digest(item: np.ndarray) -> np.ndarray:
    """BLAKE2b over the bytes of an item, uint8, (16,)."""
    digest = hashlib.blake2b(np.ascontiguousarray(item).data, digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(digest, np.uint8)


def _digests(items: Items, index: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Digests of the items at some positions, (n, 16); only those that are not known are read."""
    if known is not None and isinstance(items, Subset):
        digests = known[items.positions[index]]
    else:
        digests = np.zeros((len(index), DIGEST_BYTES), np.uint8)
    missing = np.flatnonzero(~digests.any(axis=1))
    if len(missing):
        for place, item in zip(missing, items[index[missing]], strict=True):
            digests[place] = item_digest(item)
    return digests


def point_space_of(points: Items) -> PointSpace:
    """The space of points (N, dim) with `center` and `scale` measured on them (the training part)."""
    n = len(points)
    if n * item_bytes(points) <= 4 * PIECE_BYTES:
        whole = np.asarray(points[np.arange(n)])
        center = whole.mean(axis=0, dtype=np.float64)
        scale = float(np.sqrt(((whole - center) ** 2).mean(dtype=np.float64)))
    else:
        center = np.sum([points[index].sum(axis=0, dtype=np.float64) for index in pieces(points)], axis=0) / n
        squares = [((points[index] - center) ** 2).sum(dtype=np.float64) for index in pieces(points)]
        scale = math.sqrt(math.fsum(squares) / (n * len(center)))
    return PointSpace(len(center), tuple(float(c) for c in center), scale or 1.0)


def level_dtype(levels: int) -> type[np.uint8] | type[np.int32]:
    """The dtype that images of so many levels are stored in."""
    return np.uint8 if levels <= 256 else np.int32
