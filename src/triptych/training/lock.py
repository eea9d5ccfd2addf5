"""One training in a run folder at a time, and how far it had come when it died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

from triptych.errors import InputError

_N_NUMBERS = 32
"""Bytes of the first line, two numbers."""


class RunLock:
    """Holds a run folder, until it is closed or the process ends, however it ends.

    The system holds the lock, not the file: `run.lock` stays behind and binds nobody. In it stand the number of
    steps done, which a killed process could not tell otherwise, and who holds the folder.

    Arguments:
        folder: The run folder, which must exist.
    Raises:
        InputError: If another process, or another training of this one, holds it, or if it holds links.
    """

    NAME = "run.lock"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in folder.iterdir():
            if path.is_symlink():  # A training appends to its files, and would do so to any file they lead to.
                raise InputError(f"{path} is a link; put what it leads to in its place, or train into another folder.")
            if not (path.is_file() or path.is_dir()):
                raise InputError(f"{path} is neither a file nor a folder; remove it.")
        self.file = os.open(folder / self.NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._read()[2] or "another process"
            os.close(self.file)
            raise InputError(
                f"{folder} is being trained by {holder}; wait until it ends, or give another --out."
            ) from None
        if not self.holds():  # Who held it until now has just removed it.
            os.close(self.file)
            raise InputError(f"{folder} was removed just now; start again.")
        self.last_step, self.n_lost, _ = self._read()
        """Steps that were done when the folder was last let go of; and those of them, over all deaths, done again."""
        self._write(self.last_step)
        own = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        os.pwrite(self.file, own, _N_NUMBERS)
        os.ftruncate(self.file, _N_NUMBERS + len(own))

    def _read(self) -> tuple[int, int, str]:
        """The steps done, those lost, and who holds the folder; zeros if the file is not as we write it."""
        numbers, _, holder = os.pread(self.file, 4096, 0).decode("utf-8", "replace").partition("\n")
        words = numbers.split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return 0, 0, ""
        return int(words[0]), int(words[1]), holder.strip()

    def _write(self, step: int) -> None:
        os.pwrite(self.file, b"%15d %15d\n" % (step, self.n_lost), 0)

    def holds(self) -> bool:
        """Whether the folder's path still leads to the folder that is held, in which alone its holder may write."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.file), os.stat(self.folder / self.NAME))
        return False

    def steps_done(self, step: int) -> None:
        """Notes how many steps are done; costs a microsecond."""
        self._write(step)

    def lose(self, n_steps: int) -> None:
        """Notes that some steps are to be done again."""
        self.n_lost += n_steps
        self._write(self.last_step - n_steps)

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self.file)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with_config = (self.folder / "config.json").exists()
        if error is not None and not with_config and self.holds():  # Nothing was begun: nothing stays.
            with contextlib.suppress(OSError):
                (self.folder / self.NAME).unlink()
                self.folder.rmdir()
        self.close()
