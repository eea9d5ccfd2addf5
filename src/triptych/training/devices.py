"""Where a training runs: one process or many, on CPUs or GPUs, in what arithmetic."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import re
import signal
import sys
import time
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from triptych.config import Budget, TrainConfig
from triptych.errors import InputError
from triptych.parallel import speaking

_FIRST = "TRIPTYCH_FIRST_PROCESS"
"""Where the processes that Fabric begins find the number of the one they belong to."""
_PATIENCE = 10.0
"""Seconds that these stay for the first one to end, at most: it may be the one that waits."""


def choose_device(name: str) -> torch.device:
    """The device of a setting 'auto', 'cpu' or 'cuda'.

    Raises:
        InputError: If cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' but PyTorch sees no CUDA device; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(config: TrainConfig) -> Literal["32", "bf16"]:
    """The arithmetic of the network: `auto` is bf16 on a GPU that has it."""
    device = choose_device(config.device)
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "32" if config.precision == "32" or (config.precision == "auto" and not has_bf16) else "bf16"


def processes_wanted(config: TrainConfig) -> tuple[int, int]:
    """Processes on this machine, and machines: as torchrun has begun them, else as the settings say.

    Raises:
        InputError: If both say something, and not the same.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config.devices, config.nodes
    here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    wanted = config.devices, config.nodes
    begun = here, all_of_them // here
    if wanted not in ((1, 1), begun):
        raise InputError(
            f"torchrun has begun {begun[0]} processes on each of {begun[1]} machines, and --devices {wanted[0]} --nodes"
            f" {wanted[1]} says otherwise; leave the flags out."
        )
    return begun


def check_machine(config: TrainConfig) -> None:
    """Raises InputError if this machine lacks what a training needs: its devices, or a package."""
    device = choose_device(config.device)
    here, machines = processes_wanted(config)
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"devices is {here} but PyTorch sees {torch.cuda.device_count()} GPUs; give at most as many.")
    if config.batch_size is not None:
        check_batch(config.batch_size, here * machines * config.accumulate)
    if config.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install 'triptych[tensorboard]'.")


def check_batch(batch_size: int, n_shares: int) -> None:
    """Raises InputError if a batch cannot be cut into equal shares."""
    if batch_size % n_shares:
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of {n_shares}, the processes times --accumulate, which"
            " share each batch."
        )


def start(config: TrainConfig) -> Fabric:
    """The processes of a training, this one among them; the others are begun if torchrun has not done so.

    What is begun is the command that runs, once for each further device: it comes to this place as well.

    Raises:
        InputError: As of `check_machine`.
    """
    check_machine(config)
    keep_freed_memory()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what it does at every start
    here, machines = processes_wanted(config)
    strategy: Any = "auto" if here * machines == 1 else DDPStrategy(timeout=_timeout(config))
    precision: Literal["32-true", "bf16-mixed"] = "32-true" if precision_of(config) == "32" else "bf16-mixed"
    fabric = Fabric(
        accelerator=choose_device(config.device).type,
        devices=here,
        num_nodes=machines,
        strategy=strategy,
        precision=precision,
    )
    if here > 1:
        _tie_to_first()
    with speaking():
        fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_part)
    return fabric


def _timeout(config: TrainConfig) -> timedelta:
    """How long a process waits for another: where an algorithm of its own estimates a model, for all of the budget."""
    budget = Budget.parse(config.budget)
    return default_pg_timeout + timedelta(seconds=budget.amount if budget.unit == "seconds" else 0)


def is_first() -> bool:
    """Whether this process is the one that speaks, of those that train together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _tie_to_first() -> None:
    """Has a process that Fabric has begun end with the first one, which began it, and not before that.

    Fabric kills the first one once another has ended with an error, though it may yet have to say what is wrong.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("LOCAL_RANK", "0")) == 0:
        os.environ[_FIRST] = str(os.getpid())
        return
    if _FIRST not in os.environ:  # Another program has begun them all.
        return
    first = int(os.environ[_FIRST])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: what the system sends when the first has ended
    if os.getppid() != first:  # It has ended already.
        os._exit(1)
    atexit.register(_leave_after, first)


def _leave_after(first: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while os.getppid() == first and time.monotonic() < deadline:
        time.sleep(0.01)


def _part() -> None:
    """Ends the exchange between the processes; without, its threads would bring the process down as it exits.

    Something may still know of the exchange and keep its threads (a model that was cut; caches of DTensor). Then one
    may be about to let go of a tensor: for that it needs Python, and without it aborts the process. Linux tells.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        deadline = time.monotonic() + 10
        time.sleep(0.001)
        while any(map(_is_at_work, Path("/proc/self/task").glob("*"))) and time.monotonic() < deadline:
            time.sleep(0.001)


def _is_at_work(thread: Path) -> bool:
    """Whether a thread is one of an exchange, and does not sleep."""
    try:
        name, state = re.findall(r"\((.*)\) (.)", (thread / "stat").read_text())[0]
    except OSError:  # It has ended.
        return False
    return "gloo" in name and state != "S"


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next step instead of handing it back to the system.

    A step on the CPU allocates and frees the same buffers again and again. With glibc's defaults each of some 100 KB is
    mapped, cleared page by page and unmapped every time, which took a sixth of PixelCNN's step on the digits.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; musl has none
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: map only blocks from 32 MiB, the most it allows
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: keep up to 1 GiB at the top of the heap
