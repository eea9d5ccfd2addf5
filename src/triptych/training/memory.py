"""One line for what does not fit into memory, before the system ends the process without a word."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from triptych.errors import TrainingStopped

_GROUPS = Path("/sys/fs/cgroup")


def free_memory(proc: Path = Path("/proc"), groups: Path = _GROUPS) -> int | None:
    """Bytes that this process may still take: the machine's, or those of the control groups (containers) it is in.

    Arguments:
        proc: Where Linux tells of itself and of this process.
        groups: Where it tells of control groups, of either version.
    Returns:
        None where nothing tells.
    """
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        free = sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
    except (OSError, LookupError, ValueError):
        return None
    for line in memberships:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # the limits of all of them hold
            if folder == root.parent:
                break
            with contextlib.suppress(OSError, ValueError):  # none here, or 'max'
                limit = int((folder / names[0]).read_text())
                used = int((folder / names[1]).read_text())
                stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                free = min(free, limit - used + int(stat.get(names[2], 0)))
    return max(0, free)


@contextlib.contextmanager
def within_memory(what: str, device: torch.device, n_processes: int = 1) -> Iterator[None]:
    """Within it an array for which there is no memory is refused, by the system's limit for this process.

    Linux gives out more memory than it has, and ends who then uses it.

    Arguments:
        what: What is tried, for the message.
        device: Where; on GPUs PyTorch itself tells of a lack.
        n_processes: Of this machine, that share what is free.
    Raises:
        TrainingStopped: If something does not fit.
    """
    free = free_memory() if device.type == "cpu" else None
    if free is not None:
        free //= n_processes
    with _limited(free):
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not _is_lack(error):
                raise
            size = "there is" if free is None else f"the {free / 2**30:.1f} GiB that are free"
            raise TrainingStopped(
                f"{what} does not fit into memory: it takes more than {size}. Give a smaller batch_size, --accumulate"
                " to take batches in pieces, images of fewer pixels (--size), or smaller options of the model."
            ) from None


def _is_lack(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def _limited(n_bytes: int | None) -> Iterator[None]:
    """Within it the process can allocate so many bytes more; where that cannot be set, as many as it can."""
    if n_bytes is None or sys.platform != "linux":
        yield
        return
    import resource

    used = _allocated()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min(limit for limit in (used + n_bytes, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _allocated() -> int:
    """Bytes that the system counts against the limit."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
