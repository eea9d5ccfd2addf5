"""Images and points from NumPy arrays: in memory, in .npy files (read as needed) and in .npz files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.data.dataset import LARGE_BYTES, PIECE_BYTES, Items, Split, item_bytes, level_dtype, pieces
from triptych.data.levels import level_table, native_levels
from triptych.data.npy import Header, StoredArray, read_header
from triptych.data.parts import Parts, name_labels
from triptych.data.store import FREE_BYTES, MAX_RATIO, count_entries
from triptych.errors import InputError
from triptych.spaces import ImageSpace

MAX_NPZ_ENTRIES = 10_000
_AT_ONCE = 256  # items that are converted together, which takes more memory than they do
Array = np.ndarray | StoredArray
LEAST_STEPS = 1000  # of float32 between the least and the greatest value of a coordinate
MAX_POINT_DIM = 16  # a float array of shape (N, D) with a larger D is more likely flattened images

# Which keys of an .npz hold the items and the labels of each part; at most one of each list may be present.
KEYS = {
    "train": (("train", "x_train", "train_images"), ("train_labels", "y_train")),
    "valid": (
        ("valid", "val", "x_valid", "x_val", "valid_images", "val_images"),
        ("valid_labels", "val_labels", "y_valid", "y_val"),
    ),
    "test": (("test", "x_test", "test_images"), ("test_labels", "y_test")),
    "all": (("images", "x", "data", "arr_0"), ("labels", "y")),
}


def parts_of_arrays(
    arrays: Mapping[str, Array],
    labels: Mapping[str, np.ndarray | None],
    *,
    name: str,
    what: str,
    levels: int | None = None,
    palette: np.ndarray | None = None,
    lazy: bool = False,
) -> Parts:
    """Makes images or points of arrays.

    Arguments:
        arrays: The items of each part.
        labels: The labels of each part, or None.
        name: Name of the data set.
        what: The source, for messages.
        levels: As in `load_data`.
        palette: RGB colours, (K, 3), integers 0 .. 255; the images are then indices into it.
        lazy: Whether images are converted when they are read instead of now.
    Raises:
        InputError: If the arrays are not images or points as `load_data` describes.
    """
    for part, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{what} ({part}) has dtype {array.dtype}; give integers, or floats between 0 and 1.")
        if array.ndim == 0 or 0 in array.shape:
            raise InputError(f"{what} ({part}) has shape {array.shape}: it holds no items.")
    numbered, class_names = name_labels(labels, {part: len(array) for part, array in arrays.items()}, what)
    ranks = {array.ndim for array in arrays.values()}
    if ranks <= {1, 2}:
        if levels is not None or palette is not None:
            raise InputError(f"{what} has no pixels, so levels and a palette mean nothing; leave them out.")
        points = {part: _points(array, f"{what} ({part})", lazy) for part, array in arrays.items()}
        if len({math.prod(array.shape[1:]) for array in arrays.values()}) > 1:
            raise InputError(f"The parts of {what} differ in shape: {_shapes(arrays)}; give points of one dimension.")
        splits = {part: Split(array, numbered[part]) for part, array in points.items()}
        return Parts(name, splits, None, class_names, [f"Points of shape {_shapes(arrays)}."])
    images = _images(arrays, what, levels, palette)
    splits = {
        part: Split(items if lazy else _converted(items), numbered[part]) for part, items in images.items_of.items()
    }
    return Parts(name, splits, images.space, class_names, images.found, images.repaired)


def read_npy(path: Path, levels: int | None = None) -> Parts:
    """Reads an .npy file; images stay in the file and are read as needed.

    Raises:
        InputError: If the file is damaged, or does not hold images or points.
    """
    what = repr(str(path))
    try:
        with path.open("rb") as file:
            shape, dtype, is_by_columns = read_header(file, path.stat().st_size, what)
            if not is_by_columns:
                array: Array = StoredArray(path, file.tell(), shape, dtype)
            elif math.prod(shape) * dtype.itemsize > LARGE_BYTES:
                raise InputError(
                    f"{what} is in Fortran's order; save numpy.ascontiguousarray of it, to be read by item."
                )
            else:
                array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _unreadable(what, error) from None
    return parts_of_arrays({"all": array}, {"all": None}, name=path.stem, what=what, levels=levels, lazy=True)


def read_npz(path: Path, levels: int | None = None) -> Parts:
    """Reads an .npz file, with or without splits of its own; see `load_data` for the keys.

    Raises:
        InputError: If the file is damaged, has more than 10,000 entries, lacks the keys, or does not hold images or
            points.
    """
    what = repr(str(path))
    try:
        with _opened_npz(path) as archive:
            keys = _members(archive)
            chosen = _choose_keys(keys, what)
            used = [key for pair in chosen.values() for key in pair if key] + [key for key in keys if key == "palette"]
            loaded = {key: _read_member(archive, keys[key], f"{what} key {key!r}") for key in used}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _unreadable(what, error) from None
    parts = parts_of_arrays(
        {part: loaded[items] for part, (items, _) in chosen.items()},
        {part: loaded[labels] if labels else None for part, (_, labels) in chosen.items()},
        name=path.stem,
        what=what,
        levels=levels,
        palette=loaded.get("palette"),
    )
    unused = sorted(set(keys) - set(used))
    if unused:
        parts.found.append(f"Keys that were not used: {', '.join(map(repr, unused))}.")
    return parts


def holds_floats(path: Path) -> bool:
    """Whether the items of an .npy file, or of an .npz file without splits, are floats. Only headers are read.

    Raises:
        InputError: If a header claims what cannot be. Damaged files have NumPy and zipfile raise other things.
    """
    what = repr(str(path))
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            return read_header(file, path.stat().st_size, what).dtype.kind == "f"
    with _opened_npz(path) as archive:
        keys = _members(archive)
        return any(_check_member(archive, keys[key], what).dtype.kind == "f" for key in KEYS["all"][0] if key in keys)


def _opened_npz(path: Path) -> zipfile.ZipFile:
    if (n := count_entries(path)) > MAX_NPZ_ENTRIES:
        raise InputError(f"{str(path)!r} has {n} entries; at most {MAX_NPZ_ENTRIES} are read: save fewer arrays in it.")
    return zipfile.ZipFile(path)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz file, by their keys."""
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    return {info.filename[: -len(".npy")]: info for info in members}


def _unreadable(what: str, error: BaseException) -> InputError:
    if isinstance(error, InputError):  # a ValueError too, but already in the user's words
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{what} cannot be read as a NumPy file ({reason}); write it again with numpy.save or savez.")


def _choose_keys(keys: Mapping[str, object], what: str) -> dict[str, tuple[str, str | None]]:
    """For each part that is present, the key of its items and that of its labels."""
    chosen: dict[str, tuple[str, str | None]] = {}
    for part, (item_keys, label_keys) in KEYS.items():
        items, labels = [k for k in item_keys if k in keys], [k for k in label_keys if k in keys]
        for several in (items, labels):
            if len(several) > 1:
                raise InputError(f"{what} holds both {several[0]!r} and {several[1]!r}; keep one of them.")
        if items:
            chosen[part] = (items[0], labels[0] if labels else None)
        elif labels:
            raise InputError(f"{what} holds the labels {labels[0]!r} but no {item_keys[0]!r} to go with them; add it.")
    if "all" in chosen and len(chosen) > 1:
        raise InputError(f"{what} holds {chosen['all'][0]!r} beside splits; keep one or the other.")
    if "all" not in chosen and "train" not in chosen:
        held = ", ".join(map(repr, list(keys)[:10])) or "nothing"
        raise InputError(f"{what} holds {held}; name the items 'images', or 'train', 'valid' and 'test'.")
    return chosen


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> Header:
    """The header of a member of an .npz file.

    Raises:
        InputError: As `read_header`, and if it is encrypted or a zip bomb.
    """
    if info.flag_bits & 1:
        raise InputError(f"{what} is encrypted; save it without a password.")
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        raise InputError(f"{what} unpacks to {info.file_size} bytes from {info.compress_size}: refused as a zip bomb.")
    with archive.open(info) as stream:
        return read_header(stream, info.file_size, what)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> np.ndarray:
    _check_member(archive, info, what)
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@dataclass(frozen=True)
class ArrayPoints:
    """Points of an array, brought to float32, (N, D), when they are read."""

    array: Array
    """(N,) or (N, D) floats."""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.array[index].astype(np.float32).reshape(len(index), math.prod(self.array.shape[1:]))


def _points(array: Array, what: str, lazy: bool) -> Items:
    """(N,) or (N, D) floats as float32, (N, D); in memory, unless that may be too small for them."""
    if array.ndim == 2 and array.shape[1] > MAX_POINT_DIM:
        raise InputError(
            f"{what} has shape {array.shape}: too wide for points (at most {MAX_POINT_DIM} coordinates);"
            " for images, reshape it to (N, H, W)."
        )
    if array.dtype.kind != "f":
        raise InputError(
            f"{what} has shape {array.shape} and dtype {array.dtype}; for points give floats,"
            " for images reshape to (N, H, W)."
        )
    points = ArrayPoints(array)
    with np.errstate(over="ignore"):
        if not all(np.isfinite(points[index]).all() for index in pieces(points)):
            raise InputError(f"{what} holds NaN, infinite or too large values; remove them.")
        _check_resolution(array, what)
        return points if lazy and len(points) * item_bytes(points) > LARGE_BYTES else points[np.arange(len(points))]


def _check_resolution(array: Array, what: str) -> None:
    """Raises InputError if float32 would leave a coordinate few different values: everything would fit it perfectly."""
    width = math.prod(array.shape[1:])
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for piece in _chunks(array):
        rows = piece.reshape(len(piece), width)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    spread, step = high - low, np.maximum(abs(low), abs(high)) * float(np.finfo(np.float32).eps)
    if (coarse := np.flatnonzero((spread > 0) & (spread < LEAST_STEPS * step))).size:
        i = int(coarse[0])
        raise InputError(
            f"{what}: coordinate {i} lies in {low[i]:.9g} .. {high[i]:.9g}, which single precision tells apart in"
            f" {math.ceil(spread[i] / step[i]):,} steps only; subtract its mean, or another constant, first."
        )


@dataclass(frozen=True)
class ArrayImages:
    """Images of an array, brought to (N, C, H, W) and to levels when they are read."""

    array: Array
    """(N, H, W), (N, H, W, C) or (N, C, H, W)."""
    channels_last: bool
    """Whether the last axis is the channels."""
    levels: int
    """Levels after conversion."""
    table: np.ndarray | None
    """Level each integer becomes; None if they stay."""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        some = min(_AT_ONCE, max(1, 2**20 // (self.array.nbytes // len(self.array))))
        images = np.empty((len(index), *self._few(index[:0]).shape[1:]), level_dtype(self.levels))
        for start in range(0, len(index), some):
            images[start : start + some] = self._few(index[start : start + some])
        return images

    def _few(self, index: np.ndarray) -> np.ndarray:
        x = np.asarray(self.array[index])
        if x.ndim == 3:
            x = x[:, None]
        elif self.channels_last:
            x = x.transpose(0, 3, 1, 2)
        if x.dtype.kind == "f":
            x = np.rint(x.astype(np.float64) * (self.levels - 1))
        if self.table is not None:
            x = self.table[x]
        return x


@dataclass(frozen=True)
class _Images:
    items_of: dict[str, ArrayImages]
    space: ImageSpace
    found: list[str]
    repaired: list[str]


def _images(arrays: Mapping[str, Array], what: str, levels: int | None, palette: np.ndarray | None) -> _Images:
    """Decides layout and levels over all parts together, reading every value once."""
    found, repaired = [f"An array of shape {_shapes(arrays)}, {_dtypes(arrays)}."], []
    layouts = {part: _layout(array, f"{what} ({part})") for part, array in arrays.items()}
    if len({shape for shape, _ in layouts.values()}) > 1:
        raise InputError(f"The parts of {what} differ in shape: {_shapes(arrays)}; give images of one size.")
    (channels, height, width), _ = next(iter(layouts.values()))
    if any(a.ndim == 4 and a.shape[1] in (1, 3) and a.shape[3] in (1, 3) for a in arrays.values()):
        found.append("Both the second and the last axis could be the channels; the second was taken.")
    kinds = {"float" if array.dtype.kind == "f" else "integer" for array in arrays.values()}
    if len(kinds) > 1:
        raise InputError(f"The parts of {what} are {_dtypes(arrays)}; give all as integers or all as floats.")
    ranges = {part: _range(array) for part, array in arrays.items()}
    for part, (low, high) in ranges.items():
        if math.isnan(low) or math.isnan(high):
            raise InputError(f"{what} ({part}) holds NaN; remove the images that have it.")
        if low < 0 or (kinds == {"float"} and high > 1):
            raise InputError(
                f"{what} ({part}) has values {low:g} .. {high:g}; give integers from 0, or floats between 0 and 1."
            )
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    colours, table = None, None
    if palette is not None:
        colours = _palette(palette, what)
        if kinds == {"float"} or channels != 1 or high >= len(colours):
            raise InputError(
                f"{what} has a palette of {len(colours)} colours, so its images must be one channel of integers"
                f" 0 .. {len(colours) - 1}; they are {channels} channels of {low:g} .. {high:g}."
            )
        if levels not in (None, len(colours)):
            raise InputError(f"levels is {levels} but the palette of {what} has {len(colours)} colours; leave it out.")
        levels = len(colours)
        found.append(f"Values {low:g} .. {high:g} are indices into a palette of {levels} colours.")
    elif kinds == {"float"}:
        if levels is None:
            binary = all(bool(((x == 0) | (x == 1)).all()) for array in arrays.values() for x in _chunks(array))
            levels = 2 if binary else 256
        change = max(
            float(np.abs(x - np.rint(x * (levels - 1)) / (levels - 1)).max())
            for array in arrays.values()
            for x in (chunk.astype(np.float64) for chunk in _chunks(array, 2**21))
        )
        found.append(f"Floats {low:g} .. {high:g}, read as {levels} levels; --levels N changes that.")
        if change > 0:
            repaired.append(f"Floats were rounded to {levels} levels between 0 and 1, by at most {change:.2g}.")
    else:
        dtype = max((array.dtype for array in arrays.values()), key=lambda dtype: dtype.itemsize)
        native = native_levels(int(high), dtype)
        if native > 65536:
            raise InputError(f"{what} has values up to {int(high)}; at most 65536 levels (0 .. 65535) can be modelled.")
        if levels is not None and high >= levels:
            table = level_table(native, levels)
            repaired.append(f"Values were brought from {native} levels to {levels}.")
        levels = levels or native
        found.append(f"Values {int(low)} .. {int(high)}, read as {levels} levels; --levels N changes that.")
    space = ImageSpace(channels, height, width, levels, colours)
    items = {part: ArrayImages(array, layouts[part][1], levels, table) for part, array in arrays.items()}
    return _Images(items, space, found, repaired)


def _layout(array: Array, what: str) -> tuple[tuple[int, int, int], bool]:
    """(channels, height, width), and whether the channels are the last axis."""
    if array.ndim == 3:
        return (1, array.shape[1], array.shape[2]), False
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return (array.shape[1], array.shape[2], array.shape[3]), False
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return (array.shape[3], array.shape[1], array.shape[2]), True
    raise InputError(
        f"{what} has shape {array.shape}; images are (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels."
    )


def _chunks(array: Array, n_bytes: int = PIECE_BYTES) -> Iterator[np.ndarray]:
    """The array in pieces of so many bytes, so that one in a file is never held whole."""
    n = max(1, n_bytes // (array.nbytes // len(array)))
    for start in range(0, len(array), n):
        yield np.asarray(array[start : start + n])


def _range(array: Array) -> tuple[float, float]:
    """Smallest and largest value; NaN if there is any."""
    pairs = [(chunk.min(), chunk.max()) for chunk in _chunks(array)]
    # numpy's min passes a NaN on, Python's would lose it
    return float(np.min([low for low, _ in pairs])), float(np.max([high for _, high in pairs]))


def _converted(images: ArrayImages) -> np.ndarray:
    """All the images in one array, converted a chunk at a time; a copy, so that later changes outside do no harm."""
    first = images[np.arange(1)]
    result = np.empty((len(images), *first.shape[1:]), first.dtype)
    for start in range(0, len(images), 4096):
        index = np.arange(start, min(start + 4096, len(images)))
        result[index] = images[index]
    return result


def _palette(palette: np.ndarray, what: str) -> tuple[tuple[int, int, int], ...]:
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype.kind not in "iu":
        raise InputError(
            f"The palette of {what} has shape {palette.shape} and dtype {palette.dtype}; give uint8, shape (K, 3)."
        )
    if not 2 <= len(palette) <= 65536 or palette.min() < 0 or palette.max() > 255:
        raise InputError(f"The palette of {what} must be 2 .. 65536 colours of values 0 .. 255.")
    return tuple((int(r), int(g), int(b)) for r, g, b in palette)


def _shapes(arrays: Mapping[str, Array]) -> str:
    if set(arrays) == {"all"}:
        return str(arrays["all"].shape)
    return ", ".join(f"{part} {array.shape}" for part, array in arrays.items())


def _dtypes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(dict.fromkeys(str(array.dtype) for array in arrays.values()))
