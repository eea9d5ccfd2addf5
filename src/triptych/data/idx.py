"""MNIST's IDX files, compressed or not: one file, or a folder of them."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from triptych.data.arrays import parts_of_arrays
from triptych.data.parts import Parts
from triptych.data.store import FREE_BYTES, MAX_RATIO, refuse_link_out
from triptych.errors import InputError

# <set>-images-idx3-ubyte[.gz]; torchvision and others write a dot before idx.
_IMAGES = re.compile(r"(?P<set>.+)-images(?P<rest>[-.]idx[34]-ubyte(\.gz)?)", re.IGNORECASE)
_FILE = re.compile(r".*[-.]idx\d?(-ubyte)?(\.gz)?", re.IGNORECASE)
_PARTS = {"train": "train", "t10k": "test", "test": "test", "valid": "valid", "val": "valid"}
_CHUNK = 2**24


def is_idx_name(name: str) -> bool:
    """Whether a file of this name is an IDX file."""
    return _FILE.fullmatch(name) is not None


def read_idx(path: Path, levels: int | None = None) -> Parts:
    """Reads an IDX file of images (and its labels file, if it lies beside), or a folder of such files.

    Arguments:
        path: A file, or a folder with `train-images-idx3-ubyte[.gz]` and the like.
        levels: As in `load_data`.
    Raises:
        InputError: If a file is damaged, one that was found is a link out of its folder, or the files do not belong
            together.
    """
    files = _find(path) if path.is_dir() else {"all": path}
    images, labels = {}, {}
    for part, file in files.items():
        images[part] = read_idx_array(file)
        if images[part].ndim not in (3, 4):
            raise InputError(
                f"{str(file)!r} holds an array of {images[part].ndim} axes, not images; give the images file."
            )
        beside = _labels_of(file)
        labels[part] = read_idx_array(beside) if beside else None
    what = repr(str(path))
    name = path.resolve().name.split("-images")[0].removesuffix(".gz")
    parts = parts_of_arrays(images, labels, name=name, what=what, levels=levels)
    parts.found.insert(0, f"IDX files: {', '.join(file.name for file in files.values())}.")
    return parts


def read_idx_array(path: Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes: uint8, in the shape its header says.

    Raises:
        InputError: If the header is not IDX's, or the file holds more or fewer bytes than it says.
    """
    what = repr(str(path))
    n_file = path.stat().st_size
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=plain) as unpacked:
                    return _read_array(unpacked, what, n_file, packed)
            return _read_array(plain, what, n_file, packed)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} cannot be read ({reason}); get a whole copy.") from None


def _read_array(stream: IO[bytes] | gzip.GzipFile, what: str, n_file: int, packed: bool) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(f"{what} is not an IDX file: it begins with {magic!r}; give the file as it was published.")
    if magic[2] != 8:
        raise InputError(f"{what} holds IDX type 0x{magic[2]:02x}; only unsigned bytes (0x08) are read.")
    n_dims = magic[3]
    header = stream.read(4 * n_dims)
    if not 1 <= n_dims <= 4 or len(header) < 4 * n_dims:
        raise InputError(f"{what} claims {n_dims} axes and has {len(header)} bytes of sizes; get a whole copy.")
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    n_claimed = math.prod(shape)
    n_possible = max(MAX_RATIO * n_file, FREE_BYTES) if packed else n_file
    if n_claimed > n_possible:
        remedy = "get a whole copy, or unpack it" if packed else "get a whole copy"
        raise InputError(f"{what} claims {n_claimed} bytes of data in a file of {n_file}; {remedy}.")
    data = bytearray()
    while len(data) <= n_claimed:  # grows with what is there, not with what the header claims; stops 1 byte past it
        piece = stream.read(min(_CHUNK, n_claimed + 1 - len(data)))
        if not piece:
            break
        data += piece
    if len(data) != n_claimed:
        held = f"only {len(data)}" if len(data) < n_claimed else "more"
        raise InputError(f"{what} claims {n_claimed} bytes of data but holds {held}; get a whole copy.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds IDX files of images."""
    return any(_IMAGES.fullmatch(file.name) for file in folder.iterdir() if file.is_file())


def _find(folder: Path) -> dict[str, Path]:
    """The images file of each part of the one set in a folder."""
    files: dict[str, Path] = {}
    sets = set()
    for file in sorted(folder.iterdir()):
        match = _IMAGES.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        refuse_link_out(file, folder.resolve())
        family, _, part = match["set"].rpartition("-")  # 'emnist-letters', 'train'
        if part.lower() not in _PARTS:
            family, part = match["set"], "train"
        sets.add(family)
        # Sorted, so that the file without .gz comes first where both are there, as torchvision leaves them.
        files.setdefault(_PARTS[part.lower()], file)
    if len(sets) > 1:
        raise InputError(f"{str(folder)!r} holds several sets ({', '.join(sorted(sets))}); give a folder with one.")
    if len(files) > 1 and "train" not in files:
        raise InputError(f"{str(folder)!r} has no train-images-idx3-ubyte; add it, or give one file.")
    if len(files) == 1:
        return {"all": next(iter(files.values()))}
    return {part: files[part] for part in ("train", "valid", "test") if part in files}


def _labels_of(images: Path) -> Path | None:
    """The labels file that lies beside an images file, if any."""
    match = _IMAGES.fullmatch(images.name)
    if match is None:
        return None
    rest = re.sub("idx[34]", "idx1", match["rest"], flags=re.IGNORECASE).removesuffix(".gz")
    names = [f"{match['set']}-labels{rest}{packed}" for packed in ("", ".gz")]
    labels = next((images.with_name(name) for name in names if images.with_name(name).is_file()), None)
    if labels is not None:
        refuse_link_out(labels, images.parent.resolve())
    return labels
