"""MNIST's IDX files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from triptych.data.load import load_data
from triptych.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 5), dtype=np.uint8)
LABELS = (np.arange(30) % 3).astype(np.uint8)


def idx(array: np.ndarray, claim: tuple[int, ...] | None = None, dtype: int = 8) -> bytes:
    shape = claim or array.shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, dtype, len(shape), *shape) + array.tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_folder(tmp_path: Path, packed: str, dot: str) -> None:
    write(tmp_path / f"train-images{dot}idx3-ubyte{packed}", idx(IMAGES[:20]))
    write(tmp_path / f"train-labels{dot}idx1-ubyte{packed}", idx(LABELS[:20]))
    write(tmp_path / f"t10k-images{dot}idx3-ubyte{packed}", idx(IMAGES[20:]))
    write(tmp_path / f"t10k-labels{dot}idx1-ubyte{packed}", idx(LABELS[20:]))
    data = load_data(tmp_path)
    images, labels = data.test.read()
    assert np.array_equal(images[:, 0], IMAGES[20:])
    assert np.array_equal(labels, LABELS[20:])
    assert [len(split) for split in data.splits.values()] == [18, 2, 10]
    assert data.class_names == ("0", "1", "2")
    assert data.name == tmp_path.name


def test_one_file_with_and_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz", idx(IMAGES))
    data = load_data(path)
    assert sum(map(len, data.splits.values())) == 30
    assert data.class_names is None
    write(tmp_path / "emnist-letters-train-labels-idx1-ubyte", idx(LABELS + 1))
    assert load_data(path).class_names == ("1", "2", "3")
    assert load_data(tmp_path).class_names == ("1", "2", "3")
    assert load_data(path, levels=2).space.levels == 2
    assert load_data(write(tmp_path / "mine.idx", idx(IMAGES))).checksum == data.checksum


def test_packed_and_unpacked_side_by_side(tmp_path: Path) -> None:
    for packed in ("", ".gz"):
        write(tmp_path / f"train-images-idx3-ubyte{packed}", idx(IMAGES))
    assert sum(map(len, load_data(tmp_path).splits.values())) == 30


BAD = {
    "empty": (b"", "is not an IDX file"),
    "magic": (b"\x01\x02\x03\x04" + bytes(20), "is not an IDX file"),
    "dtype": (idx(IMAGES, dtype=0x0D), "only unsigned bytes"),
    "no axes": (b"\0\0\x08\0", "claims 0 axes"),
    "many axes": (b"\0\0\x08\xff" + bytes(2000), "claims 255 axes"),
    "short header": (b"\0\0\x08\x03\0\0", "claims 3 axes and has 2 bytes"),
    "short": (idx(IMAGES[:-1], claim=IMAGES.shape), "claims 600 bytes"),
    "long": (idx(IMAGES) + b"x", "holds more"),
    "overclaim": (idx(IMAGES, claim=(2**32 - 1, 2**32 - 1, 2**32 - 1)), "get a whole copy"),
    "labels": (idx(LABELS), "give the images file"),
    "no items": (idx(IMAGES[:0]), "holds no items"),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_files(tmp_path: Path, packed: str, bad: str) -> None:
    content, says = BAD[bad]
    path = write(tmp_path / f"train-images-idx3-ubyte{packed}", content)
    with pytest.raises(InputError, match=says) as caught:
        load_data(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gz(tmp_path: Path) -> None:
    path = write(tmp_path / "train-images-idx3-ubyte.gz", idx(IMAGES))
    content = path.read_bytes()
    for damaged in (content[:-20], content[:30] + bytes(30) + content[60:], content[:3]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="get a whole copy"):
            load_data(path)


def test_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, 100, 1024, 1024)
    path.write_bytes(gzip.compress(header + bytes(100 * 2**20)))
    with pytest.raises(InputError, match="claims 104857600 bytes"):
        load_data(path)


def test_what_unpacks_to_200_times_its_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.data.idx.FREE_BYTES", 1000)
    rows = RNG.integers(0, 256, (100, 1, 60), dtype=np.uint8)
    images = np.concatenate([rows, np.zeros((100, 99, 60), np.uint8)], axis=1)
    assert len(load_data(write(tmp_path / "a-images-idx3-ubyte.gz", idx(images))).train) == 80
    path = write(tmp_path / "b-images-idx3-ubyte.gz", idx(np.zeros_like(images)))
    with pytest.raises(InputError, match=r"claims 600000 bytes .* of \d+; get a whole copy, or unpack it"):
        load_data(path)
    path = write(tmp_path / "b-images-idx3-ubyte", idx(np.zeros_like(images)))
    assert len(load_data(path).train) == 80


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", idx(IMAGES))
    write(tmp_path / "train-labels-idx1-ubyte", idx(LABELS[:5]))
    with pytest.raises(InputError, match="5 labels for 30 items"):
        load_data(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte", idx(LABELS))
    write(tmp_path / "t10k-images-idx3-ubyte", idx(IMAGES))
    with pytest.raises(InputError, match="labels for train but not for test"):
        load_data(tmp_path)
    write(tmp_path / "letters-train-images-idx3-ubyte", idx(IMAGES))
    with pytest.raises(InputError, match="several sets"):
        load_data(tmp_path)
