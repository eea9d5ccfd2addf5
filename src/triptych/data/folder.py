"""Folders and zips of image files."""

from __future__ import annotations

import json
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.data.dataset import DIGEST_BYTES, LARGE_BYTES, Items, Split, item_digest
from triptych.data.decode import RESIZED, Crop, Picture, Recipe, UnreadableImage, decode
from triptych.data.levels import level_table
from triptych.data.parts import Parts, name_labels, subset
from triptych.data.store import FolderStore, NamedStore, Store, ZipStore
from triptych.errors import DataChanged, InputError, counted
from triptych.spaces import ImageSpace

Progress = Callable[[int, int], None]
"""Called with the number of files read so far and of all files."""

_SPLIT_FOLDERS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}
LABELS_FILE = "dataset.json"
MAX_LABELS_BYTES = 2**24
"""Of that file, unless the set has so many images that `LABEL_BYTES` for each, besides its name, are more."""
LABEL_BYTES = 100


def read_images(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
    levels: int | None = None,
    grey: bool = False,
    skip_bad: bool = False,
    memory_limit: int = LARGE_BYTES,
    progress: Progress | None = None,
) -> Parts:
    """Reads a folder or a zip of images: decodes every file once, to check it and to learn what the set is.

    Arguments:
        path: The folder or the zip.
        size, crop, levels, grey, skip_bad: As in `load_data`; `size` is (height, width).
        memory_limit: Bytes of decoded images that are kept in memory. A larger set is decoded again at each access,
            with the same result.
        progress: Called now and then while files are read.
    Raises:
        InputError: If there are no images, or some cannot be used; `load_data` says when.
    """
    store: NamedStore = FolderStore(path) if path.is_dir() else ZipStore(path)
    what = repr(str(path))
    if not store.names:
        others = f", only {len(store.others)} other files" if store.others else ""
        raise InputError(f"{what} holds no images{others}; give a folder or a zip of PNG, JPEG, ... files.")
    order = _arrange(store, what)
    if n_others := sum(Path(name).name != LABELS_FILE for name in store.others):
        order.found.append(f"{n_others} other files were passed over.")
    return images_of(
        store,
        order,
        Recipe(size, crop, grey),
        name=path.resolve().name if path.is_dir() else path.stem,
        what=what,
        levels=levels,
        skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress,
    )


def images_of(
    store: Store,
    order: Order,
    recipe: Recipe,
    *,
    name: str,
    what: str,
    levels: int | None,
    skip_bad: bool,
    memory_limit: int,
    progress: Progress | None,
) -> Parts:
    """Decodes every image of a store once and makes a set of them.

    Arguments:
        order: Part and class of each.
        name: Of the set.
        what: The source, for messages.
        levels, skip_bad, memory_limit, progress: As in `read_images`.
    Raises:
        InputError: As in `read_images`.
    """
    scan = _scan(store, what, recipe, levels, skip_bad, memory_limit, progress)
    kept = np.array(scan.kept)
    native = scan.native_levels
    levels = levels or native
    table = level_table(256, levels)  # one-bit pixels are decoded as 0 and 255
    space = ImageSpace(scan.channels, *scan.size, levels)
    items: Items = ImageFiles(store, kept, recipe, space, table, scan.digests)
    if scan.pixels is not None:
        items = _look_up(table, scan.pixels)

    whole = Split(items, None if order.labels is None else order.labels[kept])
    part_of = order.parts[kept]
    splits = {part: subset(whole, np.flatnonzero(part_of == i)) for i, part in enumerate(PARTS)}
    splits = {part: split for part, split in splits.items() if len(split)}
    if "all" not in splits and "train" not in splits:
        raise InputError(f"None of the images in the train folder of {what} can be read.")

    found = [f"{len(store.names)} image files, {_counted(scan.modes)}.", *order.found]
    if scan.pixels is None:
        found.append(f"Decoded, they are larger than {memory_limit} bytes, so they are read from the files as needed.")
    if scan.extremes_only and space.levels == 256:
        found.append("Every value is 0 or 255: --levels 2 makes the images binary.")
    repaired = scan.repaired(recipe)
    if levels != native:
        repaired.append(f"The {native} levels were brought to {levels}.")
    return Parts(name, splits, space, order.class_names, found, repaired, digests=scan.digests)


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded when they are read."""

    store: Store
    positions: np.ndarray
    """Of each image in the store, (N,)."""
    recipe: Recipe
    space: ImageSpace
    table: np.ndarray
    """Level that each value 0 .. 255 becomes."""
    digests: np.ndarray | None = None
    """`item_digest` of each image, (N, 16), zeros where it is not known: others are not taken."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        images = np.empty((len(index), *self.space.shape), self.table.dtype)
        for place, number in enumerate(np.asarray(index).tolist()):
            position = self.positions[number]
            name = self.store.names[position]
            try:
                pixels = decode(self.store.item(position), name, self.recipe).pixels
            except UnreadableImage as error:
                raise DataChanged(f"{name!r} cannot be read any more ({error}); restore it.") from None
            is_same = pixels.shape[1:] == self.space.shape[1:] and pixels.shape[0] <= self.space.channels
            if is_same:
                images[place] = self.table[pixels]  # a grey image in a colour set is repeated over the channels
                is_same = self.digests is None or _agree(images[place], self.digests[number])
            if not is_same:
                raise DataChanged(f"{name!r} has changed since it was first read; restore it.")
        return images


def _agree(image: np.ndarray, digest: np.ndarray) -> bool:
    """Whether an image has a digest, where that is known."""
    return not digest.any() or bool((item_digest(image) == digest).all())


@dataclass
class _Scan:
    """What one pass over all files found."""

    kept: array[int] = field(default_factory=lambda: array("q"))
    """Positions of the readable files."""
    bad: list[str] = field(default_factory=list)
    """Names of the others, with the reason."""
    pixels: np.ndarray | None = None
    """uint8, (N, C, H, W), of the readable files; None if they exceed the memory limit."""
    digests: np.ndarray | None = None
    """Then `item_digest` of each as `ImageFiles` gives it, (N, 16); zeros of those read before it was known how."""
    size: tuple[int, int] = (0, 0)
    channels: int = 1
    modes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    all_one_bit: bool = True
    extremes_only: bool = True

    @property
    def native_levels(self) -> int:
        """Levels of the images so far, where none are asked for."""
        return 2 if self.all_one_bit else 256

    def add(self, position: int, picture: Picture) -> None:
        self.kept.append(position)
        self.modes[picture.mode] += 1
        self.notes.update(picture.notes)
        if len(self.sizes) < 1000:  # enough to tell of
            self.sizes.add(picture.found_size)
        self.all_one_bit = self.all_one_bit and picture.one_bit
        # (value + 1) mod 256 is at most 1 for 0 and 255 alone
        self.extremes_only = self.extremes_only and bool(((picture.pixels + np.uint8(1)) <= 1).all())

    def repaired(self, recipe: Recipe) -> list[str]:
        """What was done to images, a sentence each."""
        lines = []
        if self.bad:
            lines.append(f"Left out as unreadable: {counted(len(self.bad), 'file')}, {', '.join(self.bad[:5])}.")
        for note, count in sorted(self.notes.items()):
            sentence = f"{counted(count, 'image')}: {note}"
            if note == RESIZED and recipe.size is not None:
                low, high = min(self.sizes), max(self.sizes)
                sentence += f", {_by(recipe.size)} (crop: {recipe.crop}), from {_by(low)}"
                sentence += f" .. {_by(high)}" if high != low else ""
            lines.append(sentence + ".")
        coloured = sum(count for mode, count in self.modes.items() if mode not in _GREY_MODES)
        if coloured and recipe.grey:
            lines.append("Colour was converted to grey (0.299 red + 0.587 green + 0.114 blue).")
        elif coloured and self.channels == 1:
            lines.append("Red, green and blue are equal in every pixel of every image: one channel was kept.")
        return lines


_GREY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I", "P"}  # P, a palette of greys, is as good as grey


def _scan(
    store: Store,
    what: str,
    recipe: Recipe,
    levels: int | None,
    skip_bad: bool,
    memory_limit: int,
    progress: Progress | None,
) -> _Scan:
    scan = _Scan()
    n, first = len(store.names), ""
    buffer: np.ndarray | None = None
    fits = True
    digests = np.empty((0, DIGEST_BYTES), np.uint8)
    digested = (0, 0)  # channels and levels that they are of
    with _quiet_pillow():
        for position, name in enumerate(store.names):
            if progress is not None and position % 100 == 0:
                progress(position, n)
            try:
                picture = decode(store.item(position), name, recipe)
            except UnreadableImage as error:
                scan.bad.append(f"{name!r} ({error})" if len(scan.bad) < 5 else name)
                continue
            channels, *size = picture.pixels.shape
            if not scan.kept:
                first, scan.size = name, (size[0], size[1])
            elif tuple(size) != scan.size:
                raise InputError(
                    f"{first!r} is {_by(scan.size)} and {name!r} is {_by((size[0], size[1]))} (height x width);"
                    " give --size to bring all images to one size."
                )
            if buffer is None or channels > buffer.shape[1]:
                scan.channels = channels
                fits = n * channels * size[0] * size[1] <= memory_limit
                buffer = _widened(buffer, (n if fits else 0, channels, size[0], size[1]), len(scan.kept))
            if fits:
                buffer[len(scan.kept)] = picture.pixels
            scan.add(position, picture)
            if not fits:
                now = (scan.channels, levels or scan.native_levels)
                if now != digested:
                    digested, table = now, level_table(256, now[1])
                    digests = np.zeros((n, DIGEST_BYTES), np.uint8)
                image = np.broadcast_to(table[picture.pixels], (scan.channels, *scan.size))
                digests[len(scan.kept) - 1] = item_digest(image)
    if scan.bad and not skip_bad:
        more = f" and {len(scan.bad) - 5} more" if len(scan.bad) > 5 else ""
        raise InputError(
            f"{len(scan.bad)} of {n} files in {what} cannot be read: {', '.join(scan.bad[:5])}{more};"
            " replace them, or give --skip-bad to leave them out."
        )
    if buffer is None:
        raise InputError(f"None of the {n} files in {what} can be read: {', '.join(scan.bad[:5])}.")
    if progress is not None:
        progress(n, n)
    scan.pixels = buffer[: len(scan.kept)] if fits else None
    scan.digests = None if fits else digests[: len(scan.kept)]
    return scan


def _widened(buffer: np.ndarray | None, shape: tuple[int, int, int, int], n_filled: int) -> np.ndarray:
    """Room for a set that has turned out to need it, with the images so far (grey ones repeated over the channels)."""
    room = np.empty(shape, np.uint8)
    if buffer is not None and len(room):
        room[:n_filled] = buffer[:n_filled]
    return room


def _look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """`table[pixels]`; in place where the dtype allows, as the set may fill much of memory."""
    result = pixels if table.dtype == np.uint8 else np.empty(pixels.shape, table.dtype)
    for start in range(0, len(pixels), 1024):
        result[start : start + 1024] = table[pixels[start : start + 1024]]
    return result


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's warning of huge images is an error here, and its remarks on odd metadata are not shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


PARTS = ("train", "valid", "test", "all")


@dataclass(frozen=True)
class Order:
    """Which part and which class each image belongs to."""

    parts: np.ndarray
    """Place in PARTS, int8, (N,)."""
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    found: list[str]
    """What was seen on the way, a sentence each."""


def _arrange(store: NamedStore, what: str) -> Order:
    """Finds splits and classes in folder names and in dataset.json.

    Raises:
        InputError: If split folders stand beside others, or dataset.json is not as it should be.
    """
    found = []
    wrapper = _wrapper(store.names)
    if wrapper:
        found.append(f"All images lie in {wrapper.rstrip('/')!r}.")
    paths = [name[len(wrapper) :].split("/") for name in store.names]
    tops = {path[0] for path in paths if len(path) > 1}
    parts = np.full(len(paths), PARTS.index("all"), np.int8)
    if "train" in tops and tops & {"test", "valid", "val"}:
        strangers = sorted(tops - set(_SPLIT_FOLDERS)) + [path[0] for path in paths if len(path) == 1][:1]
        if strangers:
            raise InputError(f"{what} has {strangers[0]!r} beside its folders train and test; move it out or into one.")
        if {"valid", "val"} <= tops:
            raise InputError(f"{what} has both a folder valid and a folder val; keep one.")
        parts = np.array([PARTS.index(_SPLIT_FOLDERS[path[0]]) for path in paths], np.int8)
        paths = [path[1:] for path in paths]
    others = {name for name in store.others if name.endswith(LABELS_FILE)}
    label_files = [wrapper[:end] + LABELS_FILE for end in _ends(wrapper)]
    label_file = next((name for name in label_files if name in others), None)
    if label_file is not None:
        given = _labels_from_json(store, label_file, f"{label_file!r} of {what}")
        if given is None:
            return Order(parts, None, None, [*found, f"{label_file!r} gives no labels."])
        numbered, class_names = name_labels({"all": given}, {"all": len(paths)}, what)
        found.append(f"The labels are those of {label_file!r}.")
        return Order(parts, numbered["all"], class_names, found)
    n_loose = sum(len(path) == 1 for path in paths)
    if n_loose:
        if n_loose < len(paths):
            found.append(f"Outside any class folder: {counted(n_loose, 'image')}; so the set has no labels.")
        return Order(parts, None, None, found)
    classes = sorted({path[0] for path in paths}, key=_natural)
    if len(classes) == 1:  # train/images/..., test/images/...
        found.append(f"All images lie in folders named {classes[0]!r}, so the set has no labels.")
        return Order(parts, None, None, found)
    number = {name: i for i, name in enumerate(classes)}
    found.append("The labels are the names of folders.")
    return Order(parts, np.array([number[path[0]] for path in paths], dtype=np.int64), tuple(classes), found)


def _wrapper(names: list[str]) -> str:
    """The folder, with its slash, that all images lie in: a zip often holds one; it says nothing about them."""
    wrapper = ""
    while True:
        rest = names[0][len(wrapper) :]
        top, slash, _ = rest.partition("/")
        if not slash or not all(name.startswith(wrapper + top + "/") for name in names):
            return wrapper
        wrapper += top + "/"


def _ends(wrapper: str) -> list[int]:
    """Lengths of the prefixes of `a/b/` that are folders: 0 (the root), 2, 4."""
    return [0] + [i + 1 for i, letter in enumerate(wrapper) if letter == "/"]


def _natural(name: str) -> tuple[int, int, str]:
    """Sorts folders named by numbers as numbers, before the others."""
    return (0, int(name), name) if name.isascii() and name.isdigit() and len(name) < 19 else (1, 0, name)


def _labels_from_json(store: NamedStore, label_file: str, what: str) -> np.ndarray | None:
    """Labels, int64, (N,), in the order of `store.names`; None if the file says there are none."""
    n_bytes = store.size(label_file)  # read as JSON, a byte may take thirty
    most = max(MAX_LABELS_BYTES, sum(len(json.dumps(name)) + LABEL_BYTES for name in store.names))
    if n_bytes > most:
        raise InputError(f"{what} has {n_bytes} bytes; at most {most} are read: leave nothing in it but labels.")
    try:
        content = json.loads(store.read(label_file))
    except (UnreadableImage, ValueError, RecursionError) as error:
        raise InputError(f"{what} is not readable as JSON ({' '.join(str(error).split())}); mend it.") from None
    if not isinstance(content, dict) or "labels" not in content:
        raise InputError(f'{what} must be {{"labels": [["path", 3], ...]}}.')
    entries = content["labels"]
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise InputError(f'{what}: "labels" must be a list of ["path", number] pairs, or null.')
    folder = label_file[: -len(LABELS_FILE)]
    labels: dict[str, int] = {}
    for i, entry in enumerate(entries):
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int
        if not good or not 0 <= entry[1] < 2**31:
            raise InputError(
                f'{what}: entry {i} of "labels" is {str(entry)[:80]!r}; it must be ["path", number from 0].'
            )
        name = folder + entry[0]
        if name in labels:
            raise InputError(f"{what} gives {entry[0]!r} two labels; keep one.")
        labels[name] = entry[1]
    images = set(store.names)
    for name in labels:
        if name not in images:
            raise InputError(f"{what} labels {name!r}, which is not among the images; remove the entry.")
    for name in store.names:
        if name not in labels:
            raise InputError(f"{what} has no label for {name!r}; add it, or remove the image.")
    return np.array([labels[name] for name in store.names], dtype=np.int64)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _counted(modes: Counter[str]) -> str:
    return ", ".join(f"{count} of mode {mode}" for mode, count in modes.most_common())
