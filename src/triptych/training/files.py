"""The files of a run folder: settings, weights and records; the checkpoints have a file of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from triptych.errors import InputError
from triptych.files import write_atomically, write_text

MAX_JSON_BYTES = 2**24
MAX_RECORD_BYTES = 2**28
MAX_LINE_BYTES = 2**16
MAX_PARSED_BYTES = 2**24
"""Of longer records some are passed over: a curve shows no more, and what is read takes memory."""
MAX_EVENTS = 10_000
MAX_LINES = 2**22
MAX_HEADER_BYTES = 2**22
"""Of a file of weights; a tensor takes some hundred."""


def write_json(path: Path, values: Any) -> None:
    """Writes plain values as JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _check_size(path: Path, most: int) -> None:
    """Refuses what has no end to read to: a pipe would wait for ever, and a device fill the memory.

    Raises:
        InputError: If the path is no file, or one of more bytes than such a file has.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; {path.parent} is not a complete run folder.")
    if path.stat().st_size > most:
        raise InputError(f"{path} has more than {most // 2**20} MiB; no run writes such a file. Restore it.")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
        InputError: If the file is missing, absurdly large, or is not JSON.
    """
    _check_size(path, MAX_JSON_BYTES)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of a thousand digits; nested deeply
        raise InputError(f"{path} is not readable as JSON ({error}); restore it or train again.") from None


SUMMARY_NUMBERS = ("steps", "n_images_seen", "n_parameters", "seconds")
SUMMARY_OR_NONE = ("best_step", "best_nll", "best_distance")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run folder: how its training ended.

    Raises:
        InputError: If it is missing, unreadable or something else.
    """
    path = run / "summary.json"
    if not path.exists() and (run / "config.json").is_file():
        raise InputError(
            f"{path} is missing: the training has not ended. Wait for it, or go on with triptych fit --resume {run}"
        )
    summary = read_json(path)
    if not isinstance(summary, dict):
        raise InputError(f"{path} is not the end of a training; restore it or train again.")
    wrong = [key for key in SUMMARY_NUMBERS if not is_number(summary.get(key))]
    wrong += [key for key in SUMMARY_OR_NONE if not (summary.get(key) is None or is_number(summary[key]))]
    findings = summary.get("findings")
    if not isinstance(findings, list) or not all(isinstance(finding, str) for finding in findings):
        wrong.append("findings")
    if not isinstance(summary.get("reason"), str):
        wrong.append("reason")
    if wrong:
        raise InputError(
            f"{path} is not the end of a training ({wrong[0]} is {summary.get(wrong[0])!r}); restore it or train again."
        )
    return summary


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number that can be reckoned with: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


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
    _check_size(path, sys.maxsize)
    try:
        with path.open("rb") as file:
            if (n_header := int.from_bytes(file.read(8), "little")) > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {n_header} bytes")
        with safetensors.safe_open(path, "pt"):  # checks the header against the file's length before anything is read
            content = path.read_bytes()
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + n_header])
        if complex_ := next((name for name, tensor in state.items() if tensor.is_complex()), None):
            raise ValueError(f"complex numbers in {complex_!r}")
        wrong = next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)
    except Exception as error:  # safetensors raises its own type, and OSError for short files
        raise InputError(f"{path} is damaged ({error}); restore it or train again.") from None
    # Files from elsewhere have no checksum.
    digest = header.get("__metadata__", {}).get("sha256")
    if digest is not None and digest != hashlib.sha256(_data_of(content)).hexdigest():
        raise InputError(f"{path} is damaged (its checksum does not hold); restore it or train again.")
    if wrong is not None:
        raise InputError(f"{path} holds NaN or infinity in {wrong!r}; restore it or train again.")
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
        """The whole records of a file: a line torn by a crash is dropped, and what is no record or no number.

        Of a file of more than MAX_PARSED_BYTES every other, third, ... record is read, and the first MAX_EVENTS events;
        of none more than MAX_LINES lines.
        """
        if not path.is_file():
            return []
        _check_size(path, MAX_RECORD_BYTES)
        records: list[dict[str, Any]] = []
        stride = 1 + path.stat().st_size // MAX_PARSED_BYTES
        n_events = 0
        with path.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES), b"")):
                if number == MAX_LINES:
                    break
                if len(line) < len('{"step":1}'):
                    continue
                if number % stride:
                    if b'"event"' not in line or n_events == MAX_EVENTS:
                        continue
                    n_events += 1
                with contextlib.suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if (
                        isinstance(record, dict)
                        and is_number(record.get("step"))
                        and is_number(record.get("elapsed_seconds"))
                        and min(record["step"], record["elapsed_seconds"]) >= 0
                    ):
                        is_event = isinstance(record.get("event"), str)
                        records.append({key: value for key, value in record.items() if is_event or is_number(value)})
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
