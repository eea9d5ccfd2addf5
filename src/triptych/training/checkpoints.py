"""The checkpoints of a run: each whole or not there at all, the latest few kept, a damaged one passed over."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.files import write_atomically
from triptych.pickles import read_plain
from triptych.training.files import is_number

SEAL = b"sha256:"
"""What stands before the digest at the end of a checkpoint; `torch.load` takes no notice of either."""
_N_DIGEST = hashlib.sha256().digest_size
_CHUNK = 2**22
_COUNTS = [
    *("step", "position", "waited", "rise_from", "since", "metrics_bytes"),
    *("n_validations", "n_films", "n_validation_items"),
]
_NUMBERS = ("seconds", "rate_factor")
_NAMED_NUMBERS = ("gradient_norms", "latest")


class Checkpoints:
    """The checkpoints of a run folder: `checkpoints/step-00000700.pt` and the like.

    Arguments:
        run: The run folder.
        keep: How many to keep, the latest ones.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.folder, self.keep = run, run / "checkpoints", keep

    def paths(self) -> list[Path]:
        """The files there are, the latest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes tensors and plain values as the checkpoint of a step, and removes those no longer kept.

        Raises:
            OSError: If it cannot be written; the earlier ones stand.
        """
        self.folder.mkdir(exist_ok=True)  # not the run folder, which may have been removed
        path = self.folder / f"step-{step:08d}.pt"
        write_atomically(path, lambda temporary: _write_sealed(temporary, values))
        # One of a later step is of a future that did not come: it was damaged, or the run went on from before it.
        kept = [other for other in self.paths() if other <= path][: self.keep]
        for other in self.paths():
            if other not in kept:
                other.unlink(missing_ok=True)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The latest sound checkpoint, and a sentence on each later one that is damaged. No code runs from the files.

        Raises:
            InputError: If there is none.
        """
        damaged: list[str] = []
        for path in self.paths():
            try:
                values = read_checkpoint(path)
            except InputError as error:
                damaged.append(str(error))
                continue
            return values, damaged
        if damaged:
            raise InputError(f"{damaged[0].rstrip('.')}; no other is left in {self.folder}. Train anew.")
        raise InputError(f"{self.folder} holds no checkpoint; there is nothing to go on from in {self.run}.")


class _Sealing:
    """A file that what is written to it is digested on the way, and that remembers what it could not write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(path: Path, values: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        sealing = _Sealing(file)
        try:
            torch.save(values, sealing)  # type: ignore[arg-type]  # all it needs of a file is write and flush
        except RuntimeError:  # what its writer says when it is closed too early
            if sealing.error is not None:
                raise sealing.error from None
            raise
        file.write(SEAL + sealing.digest.digest())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint whose checksum holds; only tensors and plain values are unpickled, no code runs.

    Raises:
        InputError: If it is missing, damaged, or no checkpoint.
    """
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise InputError(f"{path} is damaged (it is no file).")
        if not _is_sound(path):
            raise InputError(f"{path} is damaged (its checksum does not hold).")
        with open(path, "rb") as file:
            values = read_plain(file)
        if not isinstance(values, dict):
            raise InputError(f"{path} is damaged (it is no checkpoint).")
        for tensor in _tensors(values):
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError("a tensor is longer than what it holds")
        return values
    except InputError:
        raise
    except pickle.UnpicklingError:  # torch's own words are advice to run the code
        raise InputError(f"{path} is damaged (it holds more than tensors and plain values).") from None
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError on what it cannot read
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged ({first}).") from None


def _tensors(values: Any) -> Iterator[Tensor]:
    """All the tensors within plain values, which may hold each other in a circle."""
    left, seen = [values], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def _names_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(number, int | float | Tensor) for name, number in value.items()
    )


def check_kinds(values: dict[str, Any]) -> None:
    """Refuses a checkpoint whose plain values are not what the loop reckons with.

    Raises:
        KeyError: If one is missing.
        ValueError: Naming the first that is something else.
    """
    wrong = [name for name in _COUNTS if not (type(values[name]) is int and 0 <= values[name] < 2**63)]
    wrong += [name for name in _NUMBERS if not is_number(values[name])]
    wrong += [name for name in _NAMED_NUMBERS if not _names_numbers(values[name])]
    sums = values["sums"]
    if not isinstance(sums, list) or not sums or not all(map(_names_numbers, sums)):
        wrong.append("sums")
    wrong += ["stage"] * (len(values["stage"]) != 3 or not all(map(is_number, values["stage"])))
    findings, best = values["findings"], values["best"]
    if not isinstance(findings, list) or not all(isinstance(finding, str) for finding in findings):
        wrong.append("findings")
    is_best = isinstance(best, dict) and is_number(best["score"]) and type(best["step"]) is int
    if not (best is None or is_best):
        wrong.append("best")
    wrong += ["settings"] * (not isinstance(values["settings"], dict))
    if not isinstance(values["optimizers"], list) or not all(isinstance(of, dict) for of in values["optimizers"]):
        wrong.append("optimizers")
    if not (values["ended"] is None or isinstance(values["ended"], str)):
        wrong.append("ended")
    if wrong:
        raise ValueError(f"{wrong[0]} is {str(values[wrong[0]])[:80]}")


def _is_sound(path: Path) -> bool:
    """Whether a file ends in the digest of what stands before: torch itself reads flipped bits without a word."""
    n_seal = len(SEAL) + _N_DIGEST
    digest, left = hashlib.sha256(), path.stat().st_size - n_seal
    with open(path, "rb") as file:
        file.seek(max(0, left))
        if not file.read().startswith(SEAL):  # which spares reading what is long and empty
            return False
        file.seek(0)
        while left > 0 and (piece := file.read(min(_CHUNK, left))):
            digest.update(piece)
            left -= len(piece)
        return left == 0 and file.read() == SEAL + digest.digest()
