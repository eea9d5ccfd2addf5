"""What the verbs share: kinds of arguments, reading of settings and items, and what is told besides the result."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from triptych.config import DataConfig
from triptych.errors import InputError, one_line, printable

if TYPE_CHECKING:
    from triptych.data.dataset import Dataset

Settings = Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")]
Source = Annotated[Positional[str], arg(metavar="SOURCE")]
Run = Annotated[Positional[Path], arg(metavar="RUN")]


def split_words(settings: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """Reads KEY=TEXT words.

    Raises:
        InputError: If a word has no `=`, or a key is set twice.
    """
    texts: dict[str, str] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"{flag} {word!r}: write KEY=VALUE.")
        if key in texts:
            raise InputError(f"{flag} {key} is given twice.")
        texts[key] = text
    return texts


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads KEY=VALUE words; a value is a Python literal (64, 0.1, True) or else a word.

    Raises:
        InputError: As of `split_words`.
    """
    return {key: _literal(text) for key, text in split_words(settings).items()}


def parse_values(text: str) -> list[Any]:
    """Reads 0.1,1,word: values with commas between, none of which has one."""
    return [_literal(part) for part in text.split(",") if part]


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd numbers and strings, which become words
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last of what is nested too deeply
        return text


def parse_items(text: str, flag: str = "--items") -> list[int]:
    """Reads 0,1,2.

    Raises:
        InputError: If it is anything else.
    """
    if not re.fullmatch(r"[0-9]{1,15}(,[0-9]{1,15})*", text):
        raise InputError(f"{flag} is {text!r}; give numbers from 0 with commas between, as 0,1,2.")
    return [int(number) for number in text.split(",")]


def parse_ends(text: str) -> list[int | str]:
    """Reads numbers of items and names of files, with commas between; a file whose name has commas is one."""
    words = [text] if Path(text).is_file() else text.split(",")
    return [int(word) if re.fullmatch(r"[0-9]{1,15}", word) else word for word in words]


def tell_notes(notes: Sequence[str]) -> None:
    """Prints what a person should know besides the result."""
    for note in notes:
        print(f"triptych: {one_line(note)}", file=sys.stderr)


def say(text: str) -> None:
    """Prints lines of text, with whatever would steer the terminal in the names that they hold made visible."""
    for line in text.split("\n"):
        print(printable(line))


def load_source(source: str, config: DataConfig) -> Dataset:
    from triptych.data.load import load_data

    return load_data(source, **config.to_arguments())
