"""The errors a user can cause or meet; the command line prints each as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_LETTERS = 1000  # of a message; a name can be as long as a file


class InputError(ValueError):
    """Something the user gave cannot be used. The message names it and says what to do (exit code 2)."""


class DataChanged(InputError):
    """Data that are read as needed are no longer what they were when they were first read."""


class TrainingStopped(RuntimeError):
    """Training could not go on; the message names the last good checkpoint (exit code 3)."""


class TrainingInterrupted(TrainingStopped):
    """The user, or the system, asked the training to stop; its last step is saved."""


def printable(text: str) -> str:
    """The text with everything but letters, signs and blanks as Python writes it: no name can steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: object) -> str:
    """An error as one line that a person can read, whatever names it holds."""
    text = printable(str(error))
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS // 2]} ... {text[-_MOST_LETTERS // 2 :]}"


def counted(n: int, what: str) -> str:
    """`"1 sample"`, `"1,797 samples"`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def nearest_name(word: str, names: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the name nearest to `word`, or an empty string if none is near."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
