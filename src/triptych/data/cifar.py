"""CIFAR-10 and CIFAR-100 in their binary version: the archive as it was published, unpacked in passing."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from triptych.data.arrays import parts_of_arrays
from triptych.data.parts import Parts
from triptych.data.store import check_file
from triptych.errors import InputError

SHAPE = (3, 32, 32)
N_PIXELS = 3 * 32 * 32
MAX_OTHER_BYTES = 2**22
"""All that an archive may hold besides the files of images: names of classes, a page for readers, headers."""
_ARCHIVE = re.compile(r"cifar-(100?)-binary.*\.tar\.gz", re.I)


@dataclass(frozen=True)
class Layout:
    """What an archive holds."""

    n_classes: int
    n_labels: int
    """Bytes of labels before each image; the last one counts."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    """File of the classes' names, one a line."""
    n_images: dict[str, int]
    """Images in each file."""


# Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, and the page of the archives.
LAYOUTS = {
    "10": Layout(
        10,
        1,
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        {**{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000},
    ),
    # A coarse label (of 20), then a fine one.
    "100": Layout(
        100, 2, ("train.bin",), ("test.bin",), "fine_label_names.txt", {"train.bin": 50_000, "test.bin": 10_000}
    ),
}


def find_cifar(path: Path) -> Path | None:
    """The archive that a path is, or that lies alone in a folder; None if there is none.

    Raises:
        InputError: If that in a folder is a link out of it, or no regular file.
    """
    if path.is_dir():
        found = [file for file in path.iterdir() if _ARCHIVE.fullmatch(file.name)]
        if len(found) != 1:
            return None
        check_file(found[0], path.resolve())
        return found[0]
    return path if _ARCHIVE.fullmatch(path.name) and path.is_file() else None


def read_cifar(path: Path, levels: int | None = None) -> Parts:
    """Reads an archive: train and test, images of 3x32x32, and labels.

    Nothing is unpacked onto the disk, and no more is read than such an archive can hold.

    Arguments:
        path: `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`.
        levels: As in `load_data`.
    Raises:
        InputError: If the archive is damaged, lacks a file, or a file has another size than it must.
    """
    match = _ARCHIVE.fullmatch(path.name)
    if match is None:
        raise InputError(f"{str(path)!r} is not named like an archive of CIFAR; keep the name it was published by.")
    layout, what = LAYOUTS[match[1]], repr(str(path))
    try:
        with gzip.open(path) as unpacked:
            files, names = _members(unpacked, layout, what)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} cannot be read ({reason}); get a whole copy.") from None
    if missing := [name for name in layout.n_images if name not in files]:
        raise InputError(f"{what} lacks {missing[0]}; get a whole copy.")
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray | None] = {}
    for part, own in (("train", layout.train), ("test", layout.test)):
        rows = np.concatenate([files.pop(name) for name in own])  # (N, labels and pixels)
        numbers = rows[:, layout.n_labels - 1]
        if numbers.max() >= layout.n_classes:
            raise InputError(f"{what} has a label {numbers.max()} of {layout.n_classes} classes; get a whole copy.")
        images[part], labels[part] = rows[:, layout.n_labels :].reshape(-1, *SHAPE), numbers
    parts = parts_of_arrays(images, labels, name=f"cifar{match[1]}", what=what, levels=levels)
    if len(names) == layout.n_classes and parts.class_names:
        parts = replace(parts, class_names=tuple(names[int(number)] for number in parts.class_names))
    parts.found.insert(0, f"CIFAR-{match[1]}, binary version: {path.name}.")
    return parts


def _members(unpacked: IO[bytes] | gzip.GzipFile, layout: Layout, what: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The files of images, as uint8 of shape (N, labels and pixels), and the names of the classes."""
    n_row = layout.n_labels + N_PIXELS
    most = n_row * sum(layout.n_images.values()) + MAX_OTHER_BYTES
    files: dict[str, np.ndarray] = {}
    names: list[str] = []
    limited = _Limited(unpacked, most)
    with tarfile.open(fileobj=limited, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            name = PurePosixPath(member.name).name
            expected = layout.n_images.get(name, 0) * n_row
            if not expected and name != layout.names:
                continue
            if not member.isreg() or name in files or (member.size != expected if expected else member.size > 4096):
                size = f"{expected} bytes" if expected else "a few names"
                raise InputError(f"{what} holds {member.name!r}, which is not one file of {size}; get a whole copy.")
            stream = archive.extractfile(member)
            assert stream is not None  # of a regular file
            content = stream.read(member.size)
            if not expected:
                names = content.decode("utf-8", "replace").split()
                continue
            if len(content) != expected:
                raise InputError(f"{what} ends within {member.name!r}; get a whole copy.")
            files[name] = np.frombuffer(content, np.uint8).reshape(-1, n_row)
    while limited.read(2**20):  # gzip's own checksum stands at the end.
        pass
    return files, names


class _Limited:
    """A stream that ends after so many bytes: what a header claims can take no more memory than that."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, n_bytes: int) -> None:
        self.stream, self.left = stream, n_bytes

    def read(self, n_bytes: int) -> bytes:
        piece = self.stream.read(min(n_bytes, self.left))
        self.left -= len(piece)
        return piece
