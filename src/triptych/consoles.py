"""Where people read what is being done: hours of work do not hang on who reads."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any, cast

from rich.console import Console


class LastingStream:
    """A standard stream whose reader may go away (a pipe's end, a terminal, a full disk): what follows is lost, and
    the work is not.

    Arguments:
        stream: What is written to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self._is_lost = stream, False

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, what: str, *arguments: str) -> None:
        if self._is_lost:
            return
        try:
            getattr(self.stream, what)(*arguments)
        except OSError:
            self._is_lost = True
            # What is left in the stream's buffer must have somewhere to go, or leaving Python would fail.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:  # isatty, encoding, ..
        return getattr(self.stream, name)


def lasting_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that writes to a `LastingStream`."""
    stream = sys.stderr if stderr else sys.stdout
    if stream is None:  # The process was begun without.
        return Console(stderr=stderr, quiet=True)
    return Console(file=cast(Any, LastingStream(stream)), stderr=stderr, quiet=quiet)
