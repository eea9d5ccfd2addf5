"""Writing a file whole or not at all: after a crash at any moment there is the old file or the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, fsyncs and renames it into place; the folder must exist."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # A file of our own: a link that somebody put there would lead the writing into another file.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is durable only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_temporary(path: Path) -> bool:
    """Whether a path is one of those that `write_atomically` leaves when the process is killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically. What UTF-8 cannot hold (odd bytes of a file name) becomes a question mark."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "replace")))
