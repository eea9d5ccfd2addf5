"""What does not fit into memory is refused in a line."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import triptych
from triptych.errors import TrainingStopped
from triptych.training import memory
from triptych.training.memory import free_memory, within_memory

CPU = torch.device("cpu")
MIB = 2**20
LARGE = 2**34
"""More than what the C library may have kept of this process's former arrays, which is no further memory."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process may take")


def machine(folder: Path, membership: str) -> Path:
    """A /proc of a machine with 8 GiB free and 1 GiB to swap to, in these control groups."""
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nSwapFree: 1048576 kB\n")
    (folder / "self" / "cgroup").write_text(membership)
    return folder


def group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    """A control group; what is cached is counted as used, and given back when needed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nfile 3\n")


class TestFreeMemory:
    def test_of_a_machine(self, tmp_path: Path) -> None:
        assert free_memory(machine(tmp_path / "proc", "0::/\n"), tmp_path / "none") == 9 * 2**30

    def test_of_a_container(self, tmp_path: Path) -> None:
        proc = machine(tmp_path / "proc", "0::/a/b\n")
        group(tmp_path / "cgroup" / "a" / "b", 2, "max", 100 * MIB, 0)
        group(tmp_path / "cgroup" / "a", 2, str(300 * MIB), 200 * MIB, 50 * MIB)
        assert free_memory(proc, tmp_path / "cgroup") == 150 * MIB

    def test_of_a_container_of_the_first_version(self, tmp_path: Path) -> None:
        proc = machine(tmp_path / "proc", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n")
        group(tmp_path / "cgroup" / "memory" / "x", 1, str(64 * MIB), 60 * MIB, 0)
        group(tmp_path / "cgroup" / "memory", 1, "9223372036854771712", 2**40, 0)
        assert free_memory(proc, tmp_path / "cgroup") == 4 * MIB

    def test_of_a_container_that_sees_itself_as_the_root(self, tmp_path: Path) -> None:
        proc = machine(tmp_path / "proc", "0::/docker/0123\n")
        group(tmp_path / "cgroup", 2, str(64 * MIB), 80 * MIB, 0)
        assert free_memory(proc, tmp_path / "cgroup") == 0

    def test_is_unknown_elsewhere(self, tmp_path: Path) -> None:
        assert free_memory(tmp_path) is None

    @linux
    def test_of_this_machine(self) -> None:
        assert 0 < (free_memory() or 0) < 2**50


@linux
@pytest.mark.parametrize("make", [lambda n: torch.empty(n, dtype=torch.uint8), lambda n: np.empty(n, np.uint8)])
def test_a_large_array_is_refused(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    assert callable(make)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "free_memory", lambda: 300 * MIB)
    with within_memory("vae on digits", CPU):
        assert len(make(100 * MIB)) == 100 * MIB
    with (
        pytest.raises(TrainingStopped, match=r"^vae on digits does not fit .* more than the 0\.3 GiB that are free"),
        within_memory("vae on digits", CPU),
    ):
        make(LARGE)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with pytest.raises(TrainingStopped, match=r"0\.1 GiB"), within_memory("vae on digits", CPU, 4):
        make(LARGE)


def test_other_errors_are_passed_on() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), within_memory("vae on digits", CPU):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_a_lack_on_a_gpu_is_told() -> None:
    with pytest.raises(TrainingStopped, match="than there is"), within_memory("vae on digits", torch.device("cuda")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@linux
def test_a_training_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 40 * MIB)
    images = np.zeros((600, 32, 32), np.uint8)
    images[::2] = 255
    with pytest.raises(TrainingStopped, match="pixel_cnn on 32x32 grey images, 256 levels does not fit into memory"):
        triptych.fit("pixel_cnn", images, out=tmp_path / "run", budget="1steps", batch_size=512)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingStopped, match="does not fit into memory"):
        triptych.estimate("pixel_cnn", images, budget="1steps", batch_size=512)


@linux
def test_a_model_that_does_not_fit_does_not_cost_the_others_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([40 * MIB])
    monkeypatch.setattr(memory, "free_memory", lambda: next(free, 2**40))
    settings = {"budget": "2steps", "batch_size": 256, "n_samples": 50, "extractors": ["random"]}
    images = np.random.default_rng(0).integers(0, 256, (600, 32, 32), dtype=np.uint8)
    with pytest.raises(TrainingStopped, match=r"^pixel_cnn stopped; the others are in .*does not fit into memory"):
        triptych.compare(
            images, ["pixel_cnn", "vae"], out=tmp_path / "out", discriminator=False, verbose=False, **settings
        )
    table = (tmp_path / "out" / "table.csv").read_text()
    assert "vae" in table
    assert "pixel_cnn" not in table
