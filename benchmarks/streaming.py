"""What reading the next batch ahead gains where the data are not held in memory, and what it costs where they are.

Batches are read from a folder of PNGs, from shards of them, from an .npy file and from memory, beside a step that
computes: products of matrices, as many as take the time that is asked for. Streams with and without reading ahead run
in turn, in blocks of batches, in one process; each pair of blocks gives a ratio of throughputs, and their median is
printed. Files lie in the system's cache, so that decoding is what is measured, not the disk. Give as many cores as
there are threads, and one for reading.

    taskset -c 0,1 python benchmarks/streaming.py --size 64 --batch 64
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from triptych.data.arrays import read_npy
from triptych.data.dataset import Split
from triptych.data.folder import read_images
from triptych.data.shards import read_shards
from triptych.training.stream import BatchStream


def write_sets(root: Path, n: int, size: int) -> dict[str, Split]:
    """The same smooth images of some noise, RGB, in all kinds of sources."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in small])
    images ^= rng.integers(0, 4, images.shape, dtype=np.uint8)
    (root / "set").mkdir()
    with tarfile.open(root / "set.tar", "w") as archive:
        for i, image in enumerate(images):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            content = stream.getvalue()
            (root / "set" / f"{i:06d}.png").write_bytes(content)
            info = tarfile.TarInfo(f"{i:06d}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    np.save(root / "set.npy", images)
    return {
        "folder": read_images(root / "set", memory_limit=0).splits["all"],
        "shards": read_shards(root / "set.tar", root, [root / "set.tar"], memory_limit=0).splits["all"],
        "npy": read_npy(root / "set.npy").splits["all"],
        "memory": Split(images.transpose(0, 3, 1, 2).copy()),
    }


class Step:
    """A computation of some seconds on one thread, outside of Python."""

    def __init__(self, seconds: float) -> None:
        self.x = torch.randn(256, 256)
        self.n = 0
        if seconds > 0:
            self.n = 20
            self()
            start = time.perf_counter()
            self()
            self.n = max(1, round(self.n * seconds / (time.perf_counter() - start)))

    def __call__(self) -> None:
        for _ in range(self.n):
            self.x = torch.mm(self.x, self.x).clamp_(-1, 1)


def throughput(stream: BatchStream, step: Step, n: int) -> float:
    """Images a second over n batches."""
    start = time.perf_counter()
    for _ in range(n):
        stream.next()
        step()
    return n * stream.batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--steps", type=float, nargs="+", default=[0.0, 0.02, 0.05], help="seconds of computing a batch"
    )
    parser.add_argument("--pairs", type=int, default=15, help="pairs of blocks")
    parser.add_argument("--batches", type=int, default=10, help="batches in a block")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        for name, split in write_sets(Path(folder), arguments.items, arguments.size).items():
            for seconds in arguments.steps:
                step = Step(seconds)
                streams = {
                    ahead: BatchStream(
                        split, arguments.batch, seed=0, device=device, use_labels=False, read_ahead=ahead
                    )
                    for ahead in (True, False)
                }
                for stream in streams.values():
                    throughput(stream, step, arguments.batches)
                found: dict[bool, list[float]] = {True: [], False: []}
                for pair in range(arguments.pairs):
                    for ahead in (True, False) if pair % 2 else (False, True):
                        found[ahead].append(throughput(streams[ahead], step, arguments.batches))
                for stream in streams.values():
                    stream.close()
                ratios = [a / b for a, b in zip(found[True], found[False], strict=True)]
                speeds = " and ".join(f"{statistics.median(found[ahead]):.0f}" for ahead in (True, False))
                low, high = np.quantile(ratios, [0.1, 0.9])
                print(
                    f"{name}, step {1000 * seconds:.0f} ms: {speeds} images/s with and without reading ahead,"
                    f" {statistics.median(ratios):.2f} times (10 to 90 % of {len(ratios)} pairs: {low:.2f} to"
                    f" {high:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
