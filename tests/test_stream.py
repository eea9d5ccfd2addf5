"""The stream of training batches: shared by processes, read ahead, resumed anywhere."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_folder import GREY, encode, write
from test_data_shards import tar

from triptych.data.binarize import binarize_splits
from triptych.data.dataset import Split
from triptych.data.folder import read_images
from triptych.data.load import load_data
from triptych.data.shards import read_shards
from triptych.errors import InputError
from triptych.training.stream import BatchStream

N = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 1, 4, 5), dtype=np.uint8)
LABELS = np.arange(N)


class Reader:
    """Items that are read, and remember which were, and by which thread."""

    def __init__(self, items: np.ndarray = IMAGES) -> None:
        self.items = items
        self.read: list[list[int]] = []
        self.threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        self.read.append(index.tolist())
        self.threads.add(threading.current_thread())
        return self.items[index]


def dynamic(items: np.ndarray | Reader) -> Split:
    return binarize_splits({"train": Split(items, LABELS)}, 256, "dynamic", 0)["train"]


SPLITS: dict[str, Callable[[], Split]] = {
    "in memory": lambda: Split(IMAGES, LABELS),
    "read": lambda: Split(Reader(), LABELS),
    "in memory, redrawn": lambda: dynamic(IMAGES),
    "read, redrawn": lambda: dynamic(Reader()),
}


def stream(split: Split, batch_size: int = 8, seed: int = 3, **options: int) -> BatchStream:
    device = torch.device("cpu")
    return BatchStream(split, batch_size, seed=seed, device=device, use_labels=True, **options)  # type: ignore[arg-type]


def batches(source: BatchStream, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The next n batches as one, items and labels."""
    found = [source.next() for _ in range(n)]
    return torch.cat([b.x for b in found]), torch.cat([b.labels for b in found if b.labels is not None])


def same(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", SPLITS)
class TestEverySource:
    @pytest.mark.parametrize("world", [2, 4, 8])
    def test_ranks_get_the_rows_of_the_batch_of_one(self, kind: str, world: int) -> None:
        alone = stream(SPLITS[kind]())
        ranks = [stream(SPLITS[kind](), rank=rank, world=world) for rank in range(world)]
        for _ in range(7):  # over three borders of epochs
            items, labels = batches(alone, 1)
            parts = [batches(rank, 1) for rank in ranks]
            assert same((items, labels), (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])))
            assert {rank.position for rank in ranks} == {alone.position}

    def test_goes_on_from_a_position_on_another_number_of_ranks(self, kind: str) -> None:
        expected = batches(stream(SPLITS[kind]()), 6)
        ranks = [stream(SPLITS[kind](), rank=rank, world=2) for rank in range(2)]
        for _ in range(3):
            for rank in ranks:
                rank.next()
        more = [stream(SPLITS[kind](), rank=rank, world=4, position=ranks[0].position) for rank in range(4)]
        for i in range(3, 6):
            x = torch.cat([rank.next().x for rank in more])
            assert torch.equal(x, expected[0][8 * i : 8 * i + 8])

    def test_position_may_be_set_at_any_time(self, kind: str) -> None:
        items, labels = batches(stream(SPLITS[kind]()), 10)
        source = stream(SPLITS[kind]())
        for i in (0, 1, 2, 7, 8, 2, 3, 9, 0):
            source.position = 8 * i
            assert same(batches(source, 1), (items[8 * i : 8 * i + 8], labels[8 * i : 8 * i + 8]))
            assert source.position == 8 * i + 8

    def test_reading_ahead_changes_nothing(self, kind: str) -> None:
        assert same(batches(stream(SPLITS[kind]()), 9), batches(stream(SPLITS[kind](), read_ahead=False), 9))


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size is 8; it must be a multiple of the 3 processes"):
        stream(SPLITS["read"](), world=3)


@pytest.mark.parametrize("make", [lambda items: Split(items, LABELS), dynamic])
def test_only_own_rows_are_read(make: Callable[[Reader], Split]) -> None:
    readers = [Reader() for _ in range(5)]
    streams = [stream(make(readers[rank]), rank=rank, world=4) for rank in range(4)]
    streams.append(stream(make(readers[4])))
    for source in streams:
        batches(source, 3)
        source.close()
    whole = readers[4].read
    for i in range(3):
        assert [place for rank in range(4) for place in readers[rank].read[i]] == whole[i]
    assert {len(rows) for reader in readers[:4] for rows in reader.read} == {2}


def test_files_are_read_ahead_with_the_same_batches(tmp_path: Path) -> None:
    files = {f"{i:02d}.png": encode(np.roll(GREY, i)) for i in range(N)}
    images = write(tmp_path / "set", files)
    shard = tar(tmp_path / "a.tar", files)
    np.save(tmp_path / "a.npy", np.stack([np.roll(GREY, i) for i in range(N)]))
    held = batches(stream(Split(read_images(images).splits["all"].items, LABELS), seed=1), 9)
    read = [
        read_images(images, memory_limit=0),
        read_images(write(tmp_path / "set.zip", files), memory_limit=0),
        read_shards(shard, tmp_path, [shard], memory_limit=0),
    ]
    for parts in read:
        source = stream(Split(parts.splits["all"].items, LABELS), seed=1)
        assert source.items is None
        assert same(batches(source, 9), held)
    data = load_data(tmp_path / "a.npy")
    ahead = BatchStream(data.train, 4, seed=1, device=torch.device("cpu"), use_labels=False)
    plain = BatchStream(data.train, 4, seed=1, device=torch.device("cpu"), use_labels=False, read_ahead=False)
    assert ahead.items is None
    assert all(torch.equal(ahead.next().x, plain.next().x) for _ in range(9))


class TestThread:
    def test_the_next_batch_is_read_meanwhile(self) -> None:
        reader = Reader()
        source = stream(Split(reader, LABELS))
        source.next()
        for n in range(2, 6):
            deadline = time.monotonic() + 10
            while len(reader.read) < n:  # without asking for it
                assert time.monotonic() < deadline
                time.sleep(0.001)
            source.next()
        source.close()
        assert len(reader.threads) == 2
        assert len(reader.read) <= 6

    def test_an_error_is_raised_where_its_batch_is_asked_for(self) -> None:
        class Broken(Reader):
            broken = True

            def __getitem__(self, index: np.ndarray) -> np.ndarray:
                if len(self.read) == 2 and self.broken:
                    raise InputError("'7.png' cannot be read any more.")
                return super().__getitem__(index)

        reader = Broken()
        source = stream(Split(reader, LABELS))
        expected = batches(stream(SPLITS["read"]()), 3)
        batches(source, 2)
        for _ in range(2):
            with pytest.raises(InputError, match="cannot be read any more"):
                source.next()
        reader.broken = False
        assert torch.equal(source.next().x, expected[0][16:24])

    def test_ends_with_the_stream(self) -> None:
        def reading() -> set[threading.Thread]:
            return {thread for thread in threading.enumerate() if thread.name.startswith("triptych-read")}

        gc.collect()
        before = reading()
        closed, dropped, held = (stream(SPLITS[kind]()) for kind in ("read", "read", "in memory"))
        for source in (closed, dropped, held):
            source.next()
        assert len(reading() - before) == 2
        closed.close()
        closed.close()
        assert len(reading() - before) == 1
        assert same(batches(closed, 2), batches(stream(SPLITS["read"](), position=8, read_ahead=False), 2))
        del dropped, source
        deadline = time.monotonic() + 10
        while reading() - before:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def test_validation_may_read_the_same_zip_meanwhile(self, tmp_path: Path) -> None:
        files = {f"{i:02d}.png": encode(np.roll(GREY, i)) for i in range(N)}
        split = read_images(write(tmp_path / "set.zip", files), memory_limit=0).splits["all"]
        expected = split.read()[0]
        source = stream(Split(split.items, LABELS))
        for _ in range(30):
            batch = source.next()
            assert np.array_equal(split.read()[0], expected)
            assert batch.labels is not None
            assert np.array_equal(batch.x.numpy(), expected[batch.labels.numpy()])
