"""The files of a run folder: settings, weights and records; the checkpoints have a file of their own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from triptych.errors import InputError
from triptych.files import write_atomically, write_text


def write_json(path: Path, values: Any) -> None:
    """Writes plain values as JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
        InputError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing; {path.parent} is not a complete run folder.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); restore it or train again.") from None


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors, atomically, with a checksum of their bytes in the file's metadata."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    # The digest is of the data alone, which does not change as the header gets the digest.
    digest = hashlib.sha256(_data_of(safetensors.torch.save(state))).hexdigest()
    content = safetensors.torch.save(state, metadata={"sha256": digest})
    # Not save_file, which leaves a file that only its owner can read.
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _data_of(content: bytes) -> memoryview:
    """What follows the header of a safetensors file."""
    return memoryview(content)[8 + int.from_bytes(content[:8], "little") :]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; runs no code from it.

    Raises:
        InputError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; {path.parent} is not a complete run folder.")
    try:
        content = path.read_bytes()
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # safetensors raises its own type, and OSError for short files
        raise InputError(f"{path} is damaged ({error}); restore it or train again.") from None
    # Files from elsewhere have no checksum.
    digest = header.get("__metadata__", {}).get("sha256")
    if digest is not None and digest != hashlib.sha256(_data_of(content)).hexdigest():
        raise InputError(f"{path} is damaged (its checksum does not hold); restore it or train again.")
    return state


class Records:
    """metrics.jsonl: one JSON object a line, appended as training goes.

    Arguments:
        path: The file.
        keep_bytes: Length to cut an existing file to, so that a resumed run repeats no record; 0 starts anew.
        tensorboard: Write the numbers for TensorBoard too, in a folder beside the file.
        first_step: With tensorboard: what an earlier run wrote from this step on is void.
    """

    def __init__(self, path: Path, keep_bytes: int = 0, *, tensorboard: bool = False, first_step: int = 0) -> None:
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(path.parent / "tensorboard", purge_step=first_step)
        self.file = open(path, "ab")  # noqa: SIM115 - lives as long as the training
        self.file.truncate(min(keep_bytes, path.stat().st_size))
        self.file.seek(0, os.SEEK_END)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record."""
        self.file.write((json.dumps(record) + "\n").encode())
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, record["step"])

    def flush(self) -> int:
        """Makes all records durable and returns the file's length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Closes the files."""
        self.file.close()
        if self.writer is not None:
            self.writer.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All whole records of a file (a line torn by a crash is dropped)."""
        if not path.is_file():
            return []
        records = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records


class NoRecords:
    """What stands for `Records` where another process writes."""

    def append(self, record: dict[str, Any]) -> None:
        """Drops a record."""

    def flush(self) -> int:
        """There is nothing to write."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""
