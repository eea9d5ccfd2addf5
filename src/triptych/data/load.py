"""`load_data`: any source to a data set."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.amat import holds_amat, read_amat
from triptych.data.arrays import parts_of_arrays, read_npy, read_npz
from triptych.data.binarize import BINARIZE, Binarize
from triptych.data.cifar import find_cifar, read_cifar
from triptych.data.dataset import Dataset
from triptych.data.decode import EXTENSIONS, MAX_PIXELS, Crop
from triptych.data.digits import read_digits
from triptych.data.download import SETS, find_downloaded
from triptych.data.folder import Progress, read_images
from triptych.data.idx import holds_idx, is_idx_name, read_idx
from triptych.data.levels import check_levels
from triptych.data.parts import Parts, dataset_of
from triptych.data.points import POINT_SETS, read_points
from triptych.data.shards import find_shards, read_shards
from triptych.errors import InputError, nearest_name

KNOWN_NAMES = ("digits", *POINT_SETS)
"""Sources that need no file."""

_NAMES = (*KNOWN_NAMES, *SETS)

IN_MEMORY = "<arrays>"
"""`Dataset.source["source"]` of arrays that were passed in memory."""


def load_data(
    source: str | Path | np.ndarray,
    *,
    size: int | tuple[int, int] | None = None,
    crop: Crop = "center",
    levels: int | None = None,
    grey: bool = False,
    binarize: Binarize = "none",
    labels: np.ndarray | None = None,
    skip_bad: bool = False,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Reads a set of images or points, checks all of it, and cuts it into train, valid and test.

    The same arguments give the same data set, with the same checksum, on every machine.

    Arguments:
        source: One of

            - `"digits"`: 1797 handwritten digits, 8x8, 17 levels (from scikit-learn), with a test part of their own;
            - `"ring8"`, `"grid25"`, `"moons"` (2-D) or `"mixture1d"` (1-D): 10000, 2000 and 2000 points drawn with
              `seed` from a mixture of Gaussians whose density is known. A known name wins over a file of that name;
              write `./digits` for the file;
            - `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"cifar100"` or `"binarized_mnist"`, once `download_data` has
              fetched it; nothing is fetched here. Also the path of CIFAR's binary archive, or a folder with
              `binarized_mnist_train.amat` and its like;
            - a folder or a .zip of images (PNG, JPEG, BMP, GIF, WebP, TIFF, PPM, PGM; of several frames the first).
              All must have one size, or give `size`. The set is grey if all its images are, else RGB; palettes are
              looked up, transparency is laid over white, EXIF orientation applied, 16-bit grey reduced to 8 bits;
              colours of more than 8 bits are refused. Top folders named train and test (and valid or val) are the
              splits; below that, folders are the classes, unless a StyleGAN dataset.json gives labels. Sets that
              exceed 1 GiB decoded are decoded again on access;
            - WebDataset shards, uncompressed: a .tar file, a folder of them, or a path with braces,
              `train-{000..146}.tar`. Samples are `KEY.png` (or another image), with `KEY.cls` (a whole number) or
              `KEY.json` (`{"label": 3}`) as label. Shards, or folders of them, whose names begin with train and test
              (and valid or val) are the splits. Else as folders of images;
            - MNIST's IDX files, .gz or not: a folder (`train-images-idx3-ubyte`, `t10k-...`) or one file of images.
              Labels files beside them are read too;
            - an .npy file or a NumPy array: images (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels (the
              second axis is taken for the channels if both could be), integers from 0 or floats between 0 and 1; or
              points, floats (N,) or (N, D) with D up to 16. An .npy file is read as needed, not held in memory;
            - an .npz file: `train` (with any of `valid`, `test`) or `images`, each an array as above. Labels are
              `train_labels`, ..., `labels`; a `palette`, (K, 3), makes images of one channel indices into it. Also
              taken: `x_train`, `y_train`, ...; `train_images`, ...; `x`, `data` or `arr_0` with `y`.
        size: Height and width to bring images to, or one number for both. Only for image files.
        crop: How `size` is reached: "center" scales the shorter side and cuts the longer one at both ends, "pad"
            scales the longer side and fills with black, "none" scales both sides as needed. Lanczos filter for
            reducing, bicubic for enlarging.
        levels: Levels of a sub-pixel, 2 .. 65536. By default: image files have 256 (2 if all are one-bit); digits
            17; floats 256 (2 if all are 0 or 1); integers 2 up to a largest value of 1, 256 for uint8 and up to 255,
            else the next power of two. Floats are rounded to the levels asked for. Integer arrays and IDX files whose
            values all are below `levels` are taken as they are; all else is brought from its own number of levels to
            this one, in bins of equal width when reducing.
        grey: Convert colour to grey (ITU-R 601). Only for image files.
        binarize: Makes images of two levels of images of more. With m = levels - 1,

            - "dynamic": a sub-pixel of intensity x is 1 with probability x / m. Training batches are drawn anew at
              every access (Burda et al. 2016, arXiv:1509.00519); what reads items otherwise (validation, test,
              neighbours, features) gets one draw, fixed by `seed` and the item's place in the source;
            - "fixed": that one draw everywhere;
            - "threshold": 1 where x / m is at least 1/2. Likelihoods of such images compare with nothing in the
              literature.
        labels: Class of each item, whole numbers from 0, (N,). Only for an array passed in memory.
        skip_bad: Leave out image files that cannot be decoded, instead of refusing the set.
        valid_fraction: Share that becomes valid, between 0 and 1: of the whole where the source has no splits, of
            train where it has train and test. Unused where the source has a valid part.
        test_fraction: Share that becomes test, likewise; unused where the source has a test part. Every part gets at
            least one item.
        seed: Fixes the splits, the choice of `limit`, and the draws of synthetic points and of binary images.
        limit: At most this many items in each split, chosen at random. Files beyond it are still checked.
        progress: Called with (files read, files) now and then while image files are read.
    Returns:
        Images as integers 0 .. levels-1, (N, C, H, W), or points as float32, (N, dim). Labels are renumbered 0, 1, ...
        in rising order of number, or of folder name; `class_names` keeps what they were. `found` and `repaired` tell
        what the source held and what was changed; `source` holds the arguments that were not left at their defaults.
    Raises:
        InputError: If the source is unknown, missing, damaged or of no use, or an argument does not apply to it.
    """
    size = _check_size(size)
    if crop not in ("center", "none", "pad"):
        raise InputError(f"crop is {crop!r}; it must be 'center', 'none' or 'pad'.")
    levels = check_levels(levels)
    if binarize not in BINARIZE:
        raise InputError(f"binarize is {binarize!r}; it must be one of {', '.join(map(repr, BINARIZE))}.")
    for argument, fraction in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
        if not (isinstance(fraction, int | float) and 0 < fraction < 1):
            raise InputError(f"{argument} is {fraction!r}; it must be between 0 and 1.")
    if valid_fraction + test_fraction >= 1:
        raise InputError("valid_fraction and test_fraction together are 1 or more; leave something to train on.")
    seed = _whole("seed", seed, 0)
    limit = None if limit is None else _whole("limit", limit, 1)

    for_files = {"size": size is not None, "crop": crop != "center", "grey": grey, "skip_bad": skip_bad}
    if isinstance(source, np.ndarray):
        _refuse(for_files, "an array")
        parts = parts_of_arrays({"all": source}, {"all": _labels(labels)}, name="arrays", what="array", levels=levels)
        name = IN_MEMORY
    else:
        if labels is not None:
            raise InputError("labels go with an array in memory only; put those of files in the files.")
        name = os.fspath(source)
        if isinstance(source, str) and source in KNOWN_NAMES:
            _refuse(for_files | {"levels": levels is not None and source != "digits"}, repr(source))
            parts = read_digits(levels) if source == "digits" else read_points(source, seed)
        elif isinstance(source, str) and source in SETS:
            _refuse(for_files, repr(source))
            parts = _read_other(find_downloaded(source), levels)
        else:
            path, shards = _existing(source)
            name = os.path.abspath(path)  # so that the set is found again from another folder
            options: dict[str, Any] = {"size": size, "crop": crop, "levels": levels, "grey": grey, "skip_bad": skip_bad}
            if shards is not None:
                parts = read_shards(path, *shards, **options, progress=progress)
            elif _holds_pictures(path):
                parts = read_images(path, **options, progress=progress)
            else:
                _refuse(for_files, repr(str(path)))
                parts = _read_other(path, levels)

    arguments: dict[str, tuple[Any, Any]] = {  # value, default
        "size": (list(size) if size else None, None),
        "crop": (crop, "center"),
        "levels": (levels, None),
        "grey": (bool(grey), False),
        "skip_bad": (bool(skip_bad), False),
        "binarize": (binarize, "none"),
        "valid_fraction": (float(valid_fraction), 0.1),
        "test_fraction": (float(test_fraction), 0.1),
        "seed": (seed, 0),
        "limit": (limit, None),
    }
    again = {argument: value for argument, (value, default) in arguments.items() if value != default}
    return dataset_of(
        parts,
        {"source": name, **again},
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        seed=seed,
        limit=limit,
        binarize=binarize,
    )


def _holds_pictures(path: Path) -> bool:
    """Whether a path is a folder or zip of image files."""
    try:
        if find_cifar(path) is not None:
            return False
        return path.suffix.lower() == ".zip" if path.is_file() else not holds_idx(path) and not holds_amat(path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); change its permissions.") from None


def _read_other(path: Path, levels: int | None) -> Parts:
    suffix = path.suffix.lower()
    if (archive := find_cifar(path)) is not None:
        return read_cifar(archive, levels)
    if path.is_dir() and holds_amat(path):
        return read_amat(path, levels)
    if path.is_dir() or is_idx_name(path.name):
        return read_idx(path, levels)
    if suffix == ".npy":
        return read_npy(path, levels)
    if suffix == ".npz":
        return read_npz(path, levels)
    if suffix in EXTENSIONS:
        raise InputError(f"{str(path)!r} is one image; give the folder that holds the images.")
    raise InputError(
        f"{str(path)!r} is of no known kind; give a folder or .zip of images, .tar shards, an .npy or .npz file, or IDX"
        " files."
    )


def _existing(source: str | Path) -> tuple[Path, tuple[Path, list[Path]] | None]:
    """The path if it is a file, a folder or a pattern, and its shards, if it has some, as `find_shards` gives them.

    Raises:
        InputError: With the nearest known name or neighbour.
    """
    text = os.fspath(source)
    if text == IN_MEMORY:
        raise InputError("This set was passed as an array in memory; pass the same array again.")
    if not text or "\0" in text:
        raise InputError(f"{text!r} is no source of data; give a known name ({', '.join(_NAMES)}) or a path.")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text!r} is in the home of a user who is not known here; give the whole path.") from None
    try:
        shards = None if find_cifar(path) is not None else find_shards(path)
        if shards is not None or path.is_file() or path.is_dir():
            return path, shards
        if path.exists():
            raise InputError(f"{text!r} is neither a file nor a folder.")
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:
        raise InputError(f"{text!r} cannot be read ({error.strerror}).") from None
    if path.parent != Path():
        hint = nearest_name(path.name, neighbours)
        raise InputError(f"There is no file or folder {text!r}.{hint}")
    hint = nearest_name(text, [*_NAMES, *neighbours])
    raise InputError(f"{text!r} is neither a known set ({', '.join(_NAMES)}) nor a file or folder.{hint}")


def _refuse(arguments: dict[str, bool], what: str) -> None:
    for argument, given in arguments.items():
        if given:
            where = "images" if argument == "levels" else "folders and zips of images"
            raise InputError(f"{argument} applies to {where} only, not to {what}; leave it out.")


def _check_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    if len(pair) != 2:
        raise InputError(f"size is {size!r}; give one number, or height and width.")
    height, width = (_whole("size", value, 1) for value in pair)
    if height * width > MAX_PIXELS:
        raise InputError(f"size is {height}x{width}; at most {MAX_PIXELS // 10**6} megapixels can be used.")
    return height, width


def _whole(argument: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{argument} is {value!r}; it must be a whole number, at least {least}.")
    return number


def _labels(labels: Any) -> np.ndarray | None:
    return None if labels is None else np.asarray(labels)
