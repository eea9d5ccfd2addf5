"""Functions that several processes carry out together, as if torchrun had begun them.

torchrun imports everything anew in each process; these are forked from one that has imported it. What torchrun itself
does (its agent, restarts, the processes' exits) is tested with torchrun.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["triptych.api", "triptych.training.trainer", "triptych.evaluation.evaluate", "ranks"])


class Done(NamedTuple):
    """What the processes have left: the first exit code that is not 0, and all that they have printed."""

    returncode: int
    stdout: str
    stderr: str


def together(n: int, work: Callable[..., object], *arguments: Any, timeout: float = 240) -> Done:
    """Has n processes call an importable function, and waits for their ends.

    When one has failed, the others have 30 s to end by themselves.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _CONTEXT.Process(target=_rank, args=(rank, n, port, Path(folder), work, arguments)) for rank in range(n)
        ]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + timeout
        while any(rank.exitcode is None for rank in ranks) and time.monotonic() < deadline:
            time.sleep(0.02)
            if any(rank.exitcode for rank in ranks):
                deadline = min(deadline, time.monotonic() + 30)
        hung = [rank.pid for rank in ranks if rank.exitcode is None]
        for rank in ranks:
            rank.kill()
            rank.join()
        outputs = [
            "".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{end}"))) for end in ("out", "err")
        ]
    assert not hung, f"processes {hung} do not end:\n{outputs[1]}"
    return Done(next((rank.exitcode for rank in ranks if rank.exitcode), 0), *outputs)


def _rank(rank: int, n: int, port: int, folder: Path, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    for end, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{rank}.{end}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(n),
        LOCAL_WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    torch.set_num_threads(1)
    work(*arguments)


def command(words: list[str]) -> None:
    """The command of Triptych."""
    from triptych.cli import main

    sys.argv[1:] = words
    main()
