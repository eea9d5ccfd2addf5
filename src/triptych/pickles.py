"""Reading what `torch.save` wrote, where nobody knows who wrote it: no code runs, and memory is bounded by the file."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from typing import IO, Any

import torch

_N_PICKLES = 5
"""Of the format of before torch 1.6: a magic number, a version, the system, the values, the names of the storages."""


def read_plain(file: IO[bytes]) -> Any:
    """Tensors (on the CPU) and plain values from a file of `torch.save`, of today's format or that before torch 1.6.

    Raises:
        ValueError: If reading would take more memory than the file has bytes: torch unpacks what is compressed, and
            makes arrays as long as a pickle says.
        pickle.UnpicklingError: If it holds anything else, which would have to run code.
        Exception: Of many kinds, if it is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_zip = file.read(4) == b"PK\3\4"  # as torch tells them apart
    file.seek(0)
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:
                raise ValueError("it is compressed")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _refuse_arrays(io.BytesIO(archive.read(member)))
    else:
        for _ in range(_N_PICKLES):
            _refuse_arrays(file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pickle's version, before it is refused
        return torch.load(file, map_location="cpu", weights_only=True)


def _refuse_arrays(pickled: IO[bytes]) -> None:
    try:
        names = {str(argument) for operation, argument, _ in pickletools.genops(pickled) if operation.name == "GLOBAL"}
    except ValueError:
        raise ValueError("not in the format of torch.save") from None
    if any("bytearray" in name for name in names):
        raise ValueError("it holds a bytearray")
