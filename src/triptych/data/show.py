"""Tells and draws what is in a data set, for `triptych data show`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.data.dataset import Dataset
from triptych.data.pictures import image_grid, save_points
from triptych.errors import InputError, printable
from triptych.spaces import ImageSpace

_N_CLASSES_TOLD = 40
_N_CLASSES_DRAWN = 32
_N_POINTS_DRAWN = 4000
_N_RANGED = 1024


def describe(dataset: Dataset) -> list[str]:
    """Lines of plain text: name, space, items of each split and class, range, checksum, what was found and repaired."""
    total = sum(map(len, dataset.splits.values()))
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    lines = [f"name      {dataset.name}", f"space     {dataset.space}", f"items     {total}: {sizes}"]
    few = dataset.train.read(slice(_N_RANGED))[0]
    lines.append(f"values    {few.min():.6g} .. {few.max():.6g} in the first {len(few)} of train")
    if dataset.log_density is not None:
        points = dataset.test.read()[0]
        lines.append(f"entropy   {-dataset.log_density(points).mean():.4f} nats a point (of the true density, on test)")
    if dataset.class_names:
        lines.append(f"classes   {dataset.n_classes}")
        lines += _histogram(dataset)
    lines.append(f"checksum  {dataset.checksum}")
    lines += [f"found     {sentence}" for sentence in dataset.found]
    lines += [f"repaired  {sentence}" for sentence in dataset.repaired]
    return lines


def _histogram(dataset: Dataset) -> list[str]:
    """A line for each class: items in each split, and a bar for train."""
    names = dataset.class_names or ()
    counts = {
        name: np.bincount(split.labels, minlength=len(names))
        for name, split in dataset.splits.items()
        if split.labels is not None
    }
    longest = max(1, int(counts["train"].max()))
    shown = names[:_N_CLASSES_TOLD]
    width = min(24, max(map(len, shown)))
    lines = []
    for i, name in enumerate(shown):
        bar = "#" * math.ceil(20 * counts["train"][i] / longest)
        numbers = "  ".join(f"{split} {count[i]:6d}" for split, count in counts.items())
        lines.append(f"          {_short(name, width):{width}}  {numbers}  {bar}".rstrip())
    if len(names) > len(shown):
        lines.append(f"          ... and {len(names) - len(shown)} more")
    return lines


def _short(name: str, width: int) -> str:
    name = printable(name)
    return name if len(name) <= width else name[: width - 3] + "..."


def draw(dataset: Dataset, path: str | Path, n: int = 64) -> None:
    """Writes a PNG of training data.

    Images: a grid of about n, one row for each class (of the first 32) if there are labels. Points: a scatter of the
    first two coordinates, coloured by class, or a histogram with the true density if it is known.

    Arguments:
        dataset: The data set.
        path: File to write.
        n: Images to draw, at least 1; fewer if they are large. Points are drawn all, up to 4000.
    Raises:
        InputError: If the file cannot be written or n is not positive.
    """
    if n < 1:
        raise InputError(f"n is {n}; it must be at least 1.")
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into; make it first.")
    try:
        if isinstance(dataset.space, ImageSpace):
            _grid(dataset, dataset.space, n).save(path, format="PNG")
        else:
            points, labels = dataset.train.read(slice(_N_POINTS_DRAWN))
            title = f"{dataset.name}: {dataset.space}"
            save_points(points, path, labels=labels, log_density=dataset.log_density, title=title)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error.strerror or error}).") from None


def _grid(dataset: Dataset, space: ImageSpace, n: int) -> Image.Image:
    widest = max(1, 4096 // (space.width + 1))  # columns that a screen can still show
    labels = dataset.train.labels
    if labels is None:
        n = min(n, len(dataset.train))
        n_columns = min(math.ceil(math.sqrt(n)), widest)
        n_rows = min(math.ceil(n / n_columns), max(1, 4096 // (space.height + 1)))
        images = dataset.train.read(slice(min(n, n_columns * n_rows)))[0]
        return image_grid(images, space, n_columns)
    n_rows = min(dataset.n_classes, _N_CLASSES_DRAWN)
    n_columns = min(max(1, n // n_rows), widest, int(np.bincount(labels).max()))
    rows = []
    for label in range(n_rows):
        images = dataset.train.read(np.flatnonzero(labels == label)[:n_columns])[0]
        rows.append(image_grid(images, space, n_columns))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture
