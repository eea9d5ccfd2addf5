"""Nobody is let in: every case of `hostile.py` is refused in one line, or does no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process that carries cases out; it forks one for each, which a process that has trained could not."""
    command = [sys.executable, str(Path(hostile.__file__)), "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


REPEATED = (
    "names: page",
    "names: samples",
    "checkpoint: fork",
    "metrics.jsonl",
    "samples: ",
    "command: ",
    "summary.json: ",
    "score:",
    "complete:",
    "encode:",
)
REPEATED += ("reconstruct:", "interpolate:", "traverse:", "translate:", "probe:", "evaluate:", "report:", "features:")
"""What takes long, or meets another verb with what one has met already."""
MANY = ("config.json", "checkpoint", "names", "model.safetensors", "tar")
"""Kinds with so many cases that every fourth is enough of the quick tests."""


def cases() -> list[object]:
    """All cases; those that can wait are marked slow."""
    many = [name for name in sorted(hostile.CASES) if name.startswith(MANY) and not name.startswith(REPEATED)]
    quick = {name for name in hostile.CASES if not name.startswith((*REPEATED, *MANY))} | set(many[::4])
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in sorted(hostile.CASES)]


@pytest.mark.parametrize("name", cases())
def test_hostile(name: str, server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(name) + "\n")
    server.stdin.flush()
    wrong = json.loads(server.stdout.readline())
    assert not wrong, wrong


def test_there_are_many_and_a_case_can_fail() -> None:
    assert len(hostile.CASES) >= 200
