"""Arrays in .npy files: their headers, read with care, and rows read as they are asked for."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from triptych.errors import DataChanged, InputError


class Header(NamedTuple):
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_by_columns: bool
    """In Fortran's order: no item lies in one piece."""


def read_header(stream: IO[bytes], size: int, what: str) -> Header:
    """Reads the header of an array, of a file or member of `size` bytes, and nothing else.

    Raises:
        InputError: If it holds Python objects, or claims a shape that cannot be or more than `size` bytes hold.
        ValueError: If the header is damaged.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{what} is in version {version} of NumPy's format; save a plain array of numbers.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, is_by_columns, dtype = read(stream)
    except Exception as error:  # NumPy parses the header as Python, and a damaged one makes the parser raise anything
        raise ValueError(f"damaged header: {error}") from None
    if dtype.hasobject:
        raise InputError(f"{what} holds Python objects, which would have to run code to load; save numbers instead.")
    # NumPy fails on True for a size, and on sizes that overflow though another is 0.
    n_most = math.prod(n or 1 for n in shape) * max(1, dtype.itemsize)
    if any(type(n) is not int or n < 0 for n in shape) or n_most >= 2**63:
        raise InputError(f"{what} claims the shape {shape}; get a whole copy.")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size - stream.tell():
        raise InputError(f"{what} claims {claimed} bytes of data but holds {size - stream.tell()}; get a whole copy.")
    return Header(shape, dtype, is_by_columns)


class StoredArray:
    """An array that stays in its .npy file; rows are read as they are asked for, also from several threads at once.

    A memory map would do the same, but the process would die of a file that becomes shorter, and what has been read
    would count as its memory.

    Arguments:
        path: The file, not in Fortran's order.
        offset: Where the array begins, in bytes.
        shape, dtype: As its header says.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self.ndim = len(shape)
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.state = _state(os.stat(path))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Rows at some positions, or of a slice.

        Raises:
            DataChanged: If the file has been written to since it was opened first, or cannot be read.
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        rows = np.empty((len(index), *self.shape[1:]), self.dtype)
        if not rows.size:
            return rows
        if index.min() < 0 or index.max() >= len(self):
            raise IndexError(f"rows {index.min()} .. {index.max()} of {len(self)}")
        n_bytes, content = rows[0].nbytes, rows.reshape(-1).view(np.uint8)
        # Rows that follow each other are read at once.
        starts = np.flatnonzero(np.diff(index, prepend=-2) != 1).tolist()
        what = repr(str(self.path))
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _state(os.fstat(file.fileno())) != self.state:
                    raise DataChanged(f"{what} has been written to since it was first read; restore it.")
                for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
                    file.seek(self.offset + int(index[start]) * n_bytes)
                    _fill(file, content[start * n_bytes : stop * n_bytes], what)
        except OSError as error:
            raise DataChanged(f"{what} cannot be read any more ({error.strerror or error}); restore it.") from None
        return rows


def _fill(file: IO[bytes], room: np.ndarray, what: str) -> None:
    while len(room):
        n = file.readinto(room)  # type: ignore[attr-defined]
        if not n:
            raise DataChanged(f"{what} has become shorter since it was first read; restore it.")
        room = room[n:]


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
