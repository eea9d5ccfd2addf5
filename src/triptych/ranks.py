"""Drawing and measuring by the processes that torchrun has begun, which are numbered by their rank.

Work is cut into parts that do not hang on each other: each draws from noise of its own (`part_seed`). So what comes out
is the same whoever works on a part, and however many there are. On one process the functions here cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch

from triptych.parallel import speaking

Part = TypeVar("Part")

_together = False


def begun() -> int:
    """Processes that torchrun has begun, this one among them; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextmanager
def together() -> Iterator[None]:
    """Within, all processes do the same calls, and share the parts of each among them.

    A call that only some of them make would wait for ever; so outside of it each process is alone.
    """
    global _together
    if begun() == 1:
        yield
        return
    if torch.cuda.is_available():  # "cuda" without a number is this one from here on.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with speaking():
        # One may work for hours while the others wait.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    _together = True
    try:
        yield
    finally:
        _together = False
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not _together or torch.distributed.get_rank() == 0


def in_parts(n_parts: int, work: Callable[[int], Part]) -> list[Part]:
    """work(0), ..., work(n_parts - 1): each process does every so manieth part, and gets the others' from them.

    Raises:
        TrainingStopped: If another process has gone.
    """
    if not _together:
        return [work(part) for part in range(n_parts)]
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = {part: work(part) for part in range(rank, n_parts, count)}
    found: list[Any] = [None] * count
    with speaking():
        torch.distributed.all_gather_object(found, own)
    return [found[part % count][part] for part in range(n_parts)]


def part_seed(seed: int, part: int) -> int:
    """Seed of the noise of one part; of the first one it is the seed itself."""
    if part == 0:
        return seed
    return int(np.random.SeedSequence((seed, part)).generate_state(1, np.uint64)[0] >> np.uint64(1))
