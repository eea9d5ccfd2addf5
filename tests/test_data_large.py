"""Sets larger than memory: the same checksum by a cheaper way, and bounded memory over the whole path."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_folder import COLOUR, GREY, encode, write
from test_data_shards import tar

from triptych.data import arrays, dataset, folder, npy, shards
from triptych.data.arrays import ArrayPoints, read_npy
from triptych.data.binarize import BINARIZE
from triptych.data.dataset import Split, checksum_of, pieces, point_space_of
from triptych.data.load import load_data
from triptych.errors import DataChanged, InputError


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set counts as larger than memory."""
    read_images, read_shards = folder.read_images, shards.read_shards
    monkeypatch.setattr(dataset, "LARGE_BYTES", 0)
    monkeypatch.setattr(arrays, "LARGE_BYTES", 0)
    monkeypatch.setattr("triptych.data.load.read_images", lambda path, **o: read_images(path, memory_limit=0, **o))
    monkeypatch.setattr("triptych.data.load.read_shards", lambda *of, **o: read_shards(*of, memory_limit=0, **o))


def one_bit(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 2, GREY.shape, dtype=np.uint8)
    return encode(Image.fromarray(255 * pixels).convert("1"))


GREYS = {f"{i}.png": encode(np.roll(GREY, i)) for i in range(9)}
MIXED = {**GREYS, "95.png": encode(COLOUR)}
BITS = {f"{i}.png": one_bit(i) for i in range(9)}


class TestChecksum:
    @pytest.mark.parametrize("files", [GREYS, MIXED, BITS, {**BITS, "95.png": encode(GREY)}])
    @pytest.mark.parametrize("options", [{}, {"levels": 4}, {"levels": 1000}, {"limit": 3}, {"size": 4}])
    def test_is_that_of_the_same_arrays(
        self, large: None, tmp_path: Path, files: dict[str, bytes], options: dict[str, int]
    ) -> None:
        data = load_data(write(tmp_path / "set", files), **options)
        read = [Split(split.read()[0], split.labels) for split in data.splits.values()]
        assert data.checksum == checksum_of(*read)

    @pytest.mark.parametrize("last", [encode(COLOUR), encode(GREY)])
    def test_decodes_each_file_once_and_few_twice(
        self, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes
    ) -> None:
        """Those before the first colour image, or before the first that is not one-bit, are decoded again."""
        decoded: list[str] = []
        decode = folder.decode

        def counted(data: bytes, name: str, *rest: object) -> object:
            decoded.append(name)
            return decode(data, name, *rest)

        monkeypatch.setattr(folder, "decode", counted)
        load_data(write(tmp_path / "alike", GREYS))
        assert len(decoded) == 9
        decoded.clear()
        load_data(write(tmp_path / "set", {**GREYS, "0.png": one_bit(1), "1.png": last}))
        assert sorted(decoded) == sorted(["0.png", *(f"{i}.png" for i in range(9))])

    def test_is_another_for_another_item_label_split_or_draw(self, large: None, tmp_path: Path) -> None:
        path = write(tmp_path / "set", {f"{i % 2}/{name}": content for i, (name, content) in enumerate(GREYS.items())})
        data = load_data(path)
        sums = {load_data(path, binarize=how, seed=seed).checksum for how in BINARIZE for seed in (0, 1)}
        sums.add(checksum_of(*(replace(split, labels=None) for split in data.splits.values())))
        sums.add(checksum_of(data.valid, data.train, data.test))
        write(path, {"0/0.png": encode(GREY + np.uint8(1))})
        sums.add(load_data(path).checksum)
        assert len(sums) == 2 * len(BINARIZE) + 3
        assert load_data(path, binarize="dynamic").checksum == load_data(path, binarize="dynamic").checksum

    def test_is_the_same_in_pieces_of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2100, 1, 3, 3), dtype=np.uint8)
        split = Split(images, np.arange(2100))
        whole = checksum_of(split)
        monkeypatch.setattr(dataset, "PIECE_BYTES", 100)
        assert checksum_of(split) == whole
        assert np.concatenate(list(pieces(images))).tolist() == list(range(2100))
        assert max(map(len, pieces(images))) == 11


class TestPoints:
    def test_a_large_file_is_measured_in_pieces(
        self, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = np.random.default_rng(0).normal(5, 2, (1000, 3))
        np.save(tmp_path / "a.npy", points)
        whole = point_space_of(points.astype(np.float32))
        monkeypatch.setattr(dataset, "PIECE_BYTES", 100)
        lazy = read_npy(tmp_path / "a.npy").splits["all"].items
        assert isinstance(lazy, ArrayPoints)
        assert point_space_of(lazy).center == pytest.approx(whole.center)
        assert point_space_of(lazy).scale == pytest.approx(whole.scale)
        data = load_data(tmp_path / "a.npy")
        assert data.train.read()[0].dtype == np.float32
        assert sorted(np.concatenate([s.read()[0] for s in data.splits.values()])[:, 0]) == sorted(
            points[:, 0].astype(np.float32)
        )

    @pytest.mark.parametrize("bad", [np.nan, 1e300])
    def test_bad_values_are_found(self, large: None, tmp_path: Path, bad: float) -> None:
        np.save(tmp_path / "a.npy", np.array([1.0, 2.0, bad, 3.0]))
        with pytest.raises(InputError, match="NaN, infinite or too large"):
            load_data(tmp_path / "a.npy")


def test_changes_in_a_private_memory_map_stay(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 4, 4), np.uint8))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped[:] = 7
    assert load_data(mapped).train.read()[0].min() == 7
    assert mapped.min() == 7


PEAK = """
import sys
import numpy as np
from triptych.data import dataset, load, folder
{imports}

def peak():
    # ru_maxrss counts the memory of the process that started this one, too.
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

dataset.LARGE_BYTES = 2**22
before = peak()
data = load.load_data(sys.argv[1], **{options})
n = 0
for split in data.splits.values():
    for start in range(0, len(split), 16):
        n += len(split.read(np.arange(start, min(start + 16, len(split))))[0])
print(n, peak() - before)
"""


def peak_bytes(path: Path, imports: str = "", **options: object) -> tuple[int, int]:
    """Items read, and how much memory a process of its own needed to load a set and read all of it."""
    program = PEAK.format(options=options, imports=imports)
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    n, n_bytes = map(int, done.stdout.split())
    return n, n_bytes


SMALL_LIMIT = """
from functools import partial
load.read_images = partial(load.read_images, memory_limit=2**22)
"""


def write_images(path: Path) -> None:
    write(path, {f"{i:04d}.png": encode(np.full((512, 512, 3), (i, 0, 255 - i), np.uint8)) for i in range(200)})


def write_floats(path: Path) -> None:
    images = np.lib.format.open_memmap(path, "w+", np.float32, (400, 3, 200, 200))
    images[:] = np.linspace(0, 1, 200, dtype=np.float32)


def write_bytes(path: Path) -> None:
    np.lib.format.open_memmap(path, "w+", np.uint8, (3000, 256, 256))[:, :5] = 255


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("name", "make", "n"),
    [
        ("set", write_images, 200),
        ("set.zip", write_images, 200),
        ("f.npy", write_floats, 400),
        ("b.npy", write_bytes, 3000),
    ],
)
@pytest.mark.parametrize("options", [{}, {"binarize": "dynamic"}, {"limit": 50}])
def test_memory_is_bounded(tmp_path: Path, name: str, make: Callable[[Path], None], n: int, options: dict) -> None:
    """Each set is of 157 MB or more, read."""
    path = tmp_path / name
    make(path)
    read, n_bytes = peak_bytes(path, "" if name.endswith(".npy") else SMALL_LIMIT, **options)
    assert read == (n if "limit" not in options else 50 + min(50, n // 10) * 2)
    assert n_bytes < 100e6


class TestChanged:
    """What is read as needed must be what it was when it was first read."""

    @pytest.mark.parametrize("where", ["set", "set.zip", "set.tar"])
    def test_an_image_that_another_one_replaces(self, large: None, tmp_path: Path, where: str) -> None:
        def put(seed: int) -> None:
            noise = np.random.default_rng(seed).integers(0, 256, (9, 64, 64), dtype=np.uint8)
            files = {f"{i}.png": encode(image) for i, image in enumerate(noise)}
            tar(path, files) if path.suffix == ".tar" else write(path, files)

        path = tmp_path / where
        put(0)
        items = load_data(path).train.items
        assert items[np.arange(5)].shape == (5, 1, 64, 64)
        put(1)
        with pytest.raises(
            DataChanged, match=r"(has changed since it was first read|cannot be read any more .*); restore"
        ):
            items[np.arange(5)]

    def test_an_image_that_is_gone(self, large: None, tmp_path: Path) -> None:
        items = load_data(write(tmp_path / "set", GREYS)).train.items
        for path in (tmp_path / "set").iterdir():
            path.unlink()
        with pytest.raises(
            DataChanged, match=r"png' cannot be read any more \(No such file or directory\); restore it"
        ):
            items[np.arange(5)]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda path: os.truncate(path, 200), "written to"),
            (lambda path: np.save(path, 1 + RAMP), "written to"),
            (Path.unlink, r"cannot be read any more \(No such file or directory\)"),
        ],
    )
    def test_an_array(self, tmp_path: Path, change: Callable[[Path], None], says: str) -> None:
        path = tmp_path / "a.npy"
        np.save(path, RAMP)
        items = load_data(path).train.items
        assert len(items[np.arange(40)]) == 40
        change(path)
        with pytest.raises(DataChanged, match=f"a.npy' .*{says}.*; restore it"):
            items[np.arange(40)]

    def test_an_array_that_becomes_shorter_as_it_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.npy"
        np.save(path, RAMP)
        items = load_data(path).train.items
        os.truncate(path, 300)
        monkeypatch.setattr(npy, "_state", lambda status: items.items.array.state)
        with pytest.raises(DataChanged, match="has become shorter"):
            items[np.arange(40)]


RAMP = np.arange(60 * 64, dtype=np.uint8).reshape(60, 8, 8)


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4", ">f8", "?", "f2"])
@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 2, 3)])
def test_rows_of_a_file_are_those_of_the_array(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 9).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    with open(tmp_path / "a.npy", "rb") as file:
        header = npy.read_header(file, 10**6, "a")
        stored = npy.StoredArray(tmp_path / "a.npy", file.tell(), header.shape, header.dtype)
    assert (len(stored), stored.nbytes, stored.ndim, stored.dtype) == (7, array.nbytes, array.ndim, array.dtype)
    for index in ([], [0], [6], [3, 4, 5], [5, 4, 3], [2, 2, 0, 1, 2, 6, 6], [0, 2, 4]):
        assert (stored[np.array(index, np.int64)] == array[index]).all()
    for part in (slice(None), slice(2, 5), slice(5, 99), slice(3, 3)):
        assert (stored[part] == array[part]).all()
    for outside in ([7], [-1]):
        with pytest.raises(IndexError):
            stored[np.array(outside)]


def test_columns_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(RAMP))
    assert {tuple(x.ravel()) for x in load_data(tmp_path / "a.npy").train.read()[0]} <= {tuple(x.ravel()) for x in RAMP}
    monkeypatch.setattr(arrays, "LARGE_BYTES", 0)
    with pytest.raises(InputError, match=r"a\.npy' is in Fortran's order; save numpy\.ascontiguousarray of it"):
        load_data(tmp_path / "a.npy")
