"""The files of a run folder: settings, weights, checkpoints and records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
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
    """Writes tensors as safetensors, atomically."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    # Not save_file, which leaves a file that only its owner can read.
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(state)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; runs no code from it.

    Raises:
        InputError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; {path.parent} is not a complete run folder.")
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own type, and OSError for short files
        raise InputError(f"{path} is damaged ({error}); restore it or train again.") from None


def write_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values, atomically."""
    write_atomically(path, lambda temporary: torch.save(values, temporary))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; only tensors and plain values are unpickled, no code runs.

    Raises:
        InputError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; there is nothing to resume in {path.parent}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError on damage
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged ({first}); restore it or train again.") from None


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
