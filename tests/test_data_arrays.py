"""Arrays in memory, .npy and .npz."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from triptych.data.levels import level_table, native_levels
from triptych.data.load import load_data
from triptych.data.npy import StoredArray
from triptych.data.store import count_entries
from triptych.errors import InputError
from triptych.spaces import ImageSpace, PointSpace

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 5, 6), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)


def all_items(data) -> np.ndarray:
    """The items of all splits in a canonical order, to compare with the source whatever the splits."""
    items = np.concatenate([split.read()[0] for split in data.splits.values()])
    return items[np.lexsort(items.reshape(len(items), -1).T)]


def sorted_items(items: np.ndarray) -> np.ndarray:
    return items[np.lexsort(items.reshape(len(items), -1).T)]


@pytest.mark.parametrize("how", ["memory", "npy", "npz"])
@pytest.mark.parametrize(
    ("array", "expected", "space"),
    [
        (GREY, GREY[:, None], ImageSpace(1, 5, 6)),
        (GREY[:, None], GREY[:, None], ImageSpace(1, 5, 6)),
        (GREY[..., None], GREY[:, None], ImageSpace(1, 5, 6)),
        (RGB, RGB.transpose(0, 3, 1, 2), ImageSpace(3, 5, 6)),
        (np.asfortranarray(RGB), RGB.transpose(0, 3, 1, 2), ImageSpace(3, 5, 6)),
        (RGB.transpose(0, 3, 1, 2), RGB.transpose(0, 3, 1, 2), ImageSpace(3, 5, 6)),
        (RGB[:, :3], RGB[:, :3], ImageSpace(3, 6, 3)),  # ambiguous: the second axis is the channels
        (GREY > 99, (GREY > 99)[:, None], ImageSpace(1, 5, 6, 2)),
        (GREY // 128, (GREY // 128)[:, None], ImageSpace(1, 5, 6, 2)),
        (GREY.astype(">i8"), GREY[:, None], ImageSpace(1, 5, 6, 256)),
        (GREY.astype(np.uint16) * 16, GREY[:, None].astype(np.int32) * 16, ImageSpace(1, 5, 6, 4096)),
        (GREY.astype(np.float32) / np.float32(255), GREY[:, None], ImageSpace(1, 5, 6, 256)),
        ((GREY > 99).astype(np.float16), (GREY > 99)[:, None], ImageSpace(1, 5, 6, 2)),
    ],
)
def test_images(tmp_path: Path, how: str, array: np.ndarray, expected: np.ndarray, space: ImageSpace) -> None:
    source: np.ndarray | Path = array
    if how == "npy":
        source = tmp_path / "a.npy"
        np.save(source, array)
    elif how == "npz":
        source = tmp_path / "a.npz"
        np.savez_compressed(source, images=array)
    data = load_data(source)
    assert data.space == space
    items = all_items(data)
    assert items.dtype == (np.uint8 if space.levels <= 256 else np.int32)
    assert np.array_equal(items, sorted_items(expected.astype(items.dtype)))
    data.space.check(items)


def test_explicit_levels() -> None:
    small = GREY % 8
    declared = load_data(small, levels=8)
    assert declared.space.levels == 8
    assert np.array_equal(all_items(declared), sorted_items(small[:, None]))
    assert not declared.repaired
    reduced = load_data(GREY, levels=32)
    assert np.array_equal(all_items(reduced), sorted_items((GREY // 8)[:, None]))
    assert reduced.repaired == ("Values were brought from 256 levels to 32.",)
    assert any("--levels" in sentence for sentence in load_data(GREY).found)
    rounded = load_data(GREY / 255, levels=5)
    assert np.array_equal(all_items(rounded), sorted_items(np.rint(GREY[:, None] / 255 * 4).astype(np.uint8)))
    assert "by at most 0.1" in rounded.repaired[0]


def test_level_tables() -> None:
    assert level_table(256, 256).tolist() == list(range(256))
    assert np.bincount(level_table(256, 32)).tolist() == [8] * 32
    assert level_table(2, 256).tolist() == [0, 255]
    assert level_table(17, 256).tolist() == np.rint(np.arange(17) * 255 / 16).tolist()
    assert level_table(256, 1024).dtype == np.int32
    assert [native_levels(m, np.dtype(np.int64)) for m in (0, 1, 2, 255, 256, 65535)] == [2, 2, 256, 256, 512, 65536]


@pytest.mark.parametrize(
    "keys",
    [
        ("train", "train_labels", "valid", "valid_labels", "test", "test_labels"),
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ],
)
def test_npz_with_splits(tmp_path: Path, keys: tuple[str, ...]) -> None:
    labels = np.arange(20) % 4
    values = (GREY[:12], labels[:12], GREY[12:16], labels[12:16], GREY[16:], labels[16:, None])
    np.savez(tmp_path / "a.npz", **dict(zip(keys, values, strict=True)), extra=np.zeros(3))
    data = load_data(tmp_path / "a.npz")
    for split, part in ((data.train, slice(12)), (data.valid, slice(12, 16)), (data.test, slice(16, 20))):
        images, numbers = split.read()
        assert np.array_equal(images[:, 0], GREY[part])
        assert np.array_equal(numbers, labels[part])
    assert any("'extra'" in sentence for sentence in data.found)
    assert any("own splits" in sentence for sentence in data.found)


def test_levels_are_decided_over_all_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=GREY[:10] % 2, test=GREY[10:])
    assert load_data(tmp_path / "a.npz").space.levels == 256


def test_palette(tmp_path: Path) -> None:
    palette = RNG.integers(0, 256, (7, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=GREY % 7, palette=palette)
    data = load_data(tmp_path / "a.npz")
    assert data.space == ImageSpace(1, 5, 6, 7, tuple(map(tuple, palette.tolist())))


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 2), (50, 16)])
def test_points(shape: tuple[int, ...]) -> None:
    points = RNG.normal(3, 2, shape)
    data = load_data(points, labels=np.arange(50) % 2)
    train, _ = data.train.read()
    assert isinstance(data.space, PointSpace)
    assert train.dtype == np.float32
    assert train.shape[1:] == (data.space.dim,) == (shape[1] if len(shape) == 2 else 1,)
    assert np.allclose(data.space.center, train.mean(axis=0))
    assert np.array_equal(all_items(data), sorted_items(points.reshape(50, -1).astype(np.float32)))


BAD = {
    "nan": (np.where(GREY[0, 0, 0] == GREY, np.nan, 0.5), "holds NaN"),
    "range": (GREY.astype(float), r"values 0 .. 255; give integers from 0, or floats between 0 and 1"),
    "infinite": (np.full((9, 4, 4), np.inf), "values inf"),
    "negative float": (np.full((9, 4, 4), -0.5), "values -0.5"),
    "negative": (GREY.astype(int) - 1, "values -1"),
    "too many levels": (GREY.astype(int) * 300, "at most 65536 levels"),
    "object": (np.array([None] * 9), "dtype object"),
    "text": (np.array(["a"] * 9), "dtype <U1"),
    "complex": (np.zeros((9, 4, 4), complex), "dtype complex128"),
    "empty": (np.zeros((0, 4, 4)), "holds no items"),
    "scalar": (np.array(1.0), "holds no items"),
    "flat": (np.zeros((9, 784)), r"reshape it to \(N, H, W\)"),
    "integer points": (np.zeros((9, 2), int), "for points give floats"),
    "channels": (np.zeros((9, 4, 4, 2)), "1 or 3 channels"),
    "axes": (np.zeros((9, 4, 4, 4, 3)), "1 or 3 channels"),
    "nan points": (np.full((9, 2), np.nan), "NaN, infinite"),
    "huge points": (np.full((9, 2), 1e300), "too large"),
}


@pytest.mark.parametrize("how", ["memory", "npy", "npz"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_arrays_are_refused(tmp_path: Path, how: str, bad: str) -> None:
    array, says = BAD[bad]
    source: np.ndarray | Path = array
    if how != "memory":
        source = tmp_path / f"a.{how}"
        np.save(source, array) if how == "npy" else np.savez(source, images=array)
        if array.dtype.hasobject:
            says = "Python objects"
    with pytest.raises(InputError, match=says) as caught:
        load_data(source)
    assert "\n" not in str(caught.value)
    assert how == "memory" or str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": GREY, "b": GREY}, "holds 'a', 'b'; name the items"),
        ({"test": GREY}, "holds 'test'; name"),
        ({"images": GREY, "x": GREY}, "both 'images' and 'x'"),
        ({"images": GREY, "train": GREY}, "beside splits"),
        ({"train": GREY, "train_labels": np.arange(20), "test": GREY}, "labels for train but not for test"),
        ({"images": GREY, "y": np.arange(3)}, "3 labels for 20 items"),
        ({"train": GREY, "test_labels": np.arange(3)}, "no 'test' to go with"),
        ({"train": GREY, "test": GREY[:, 1:]}, "differ in shape"),
        ({"train": np.zeros((9, 2)), "test": np.zeros((9, 3))}, "differ in shape"),
        ({"train": GREY, "test": np.zeros((9, 2))}, "images are"),
        ({"train": GREY, "test": GREY / 255}, "all as integers or all as floats"),
        ({"images": GREY, "palette": np.zeros((7, 3), np.uint8)}, "palette of 7 colours"),
        ({"images": RGB % 2, "palette": np.zeros((7, 3), np.uint8)}, "palette of 7 colours"),
        ({"images": GREY % 7, "palette": np.zeros((7, 4), np.uint8)}, "palette of .* shape"),
        ({"images": GREY % 7, "palette": np.full((7, 3), 256)}, "values 0 .. 255"),
        ({"images": np.zeros((9, 2)), "palette": np.zeros((7, 3), np.uint8)}, "palette mean nothing"),
    ],
)
def test_bad_npz_keys_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=says):
        load_data(tmp_path / "a.npz")


def test_palette_and_levels_must_agree(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY % 7, palette=np.zeros((7, 3), np.uint8))
    with pytest.raises(InputError, match="levels is 4 but the palette"):
        load_data(tmp_path / "a.npz", levels=4)


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def overclaiming(n: int) -> bytes:
    """A header that claims n images of 20."""
    return npy_bytes(GREY).replace(b"(20, 5, 6)", b"(%d, 5, 6)" % n).replace(b" " * (len(str(n)) - 2) + b"\n", b"\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"not numpy", "cannot be read"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (npy_bytes(GREY)[:40], "cannot be read"),
        (npy_bytes(GREY).replace(b"{'descr'", b"\x18'descr'"), "damaged header"),
        (npy_bytes(GREY).replace(b"(20, 5, 6)", b"(-9, 5, 6)"), "claims the shape"),
        (npy_bytes(GREY)[:-1], "claims 600 bytes of data but holds 599"),
        (overclaiming(10**12), "claims 30000000000000 bytes"),
    ],
)
@pytest.mark.parametrize("how", ["npy", "npz"])
def test_damaged_files(tmp_path: Path, content: bytes, says: str, how: str) -> None:
    path = tmp_path / f"a.{how}"
    if how == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
    with pytest.raises(InputError, match=says):
        load_data(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="cannot be read as a NumPy file"):
        load_data(path)
    np.savez_compressed(path, images=GREY)
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a NumPy file"):
        load_data(path)
    np.savez_compressed(path, images=np.zeros((70, 1024, 1024), np.uint8))
    with pytest.raises(InputError, match="zip bomb"):
        load_data(path)


def test_npz_of_many_entries_is_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.arange(20), more=GREY)
    assert len(load_data(tmp_path / "a.npz").train) == 16
    monkeypatch.setattr("triptych.data.arrays.MAX_NPZ_ENTRIES", 2)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(InputError, match=r"has 3 entries; at most 2 are read: save fewer"):
        load_data(tmp_path / "a.npz")


@pytest.mark.parametrize("place", [4, 16])
def test_entries_are_counted_though_the_end_of_the_zip_looks_like_two(tmp_path: Path, place: int) -> None:
    """The disks and the offset of the directory may hold what an end begins with."""
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.arange(20))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end + place : end + place + 4] = b"PK\5\6"
    (tmp_path / "a.npz").write_bytes(content)
    assert count_entries(tmp_path / "a.npz") == 2
    false_end = b"PK\6\6" + bytes(72)  # of a large zip; what leads to it is missing, so that zipfile passes it over
    content = content[:end] + false_end + content[end:]
    (tmp_path / "a.npz").write_bytes(content)
    assert count_entries(tmp_path / "a.npz") == 2


def test_npy_is_read_as_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RGB)
    items = load_data(tmp_path / "a.npy").train.items
    assert isinstance(items.items.array, StoredArray)  # type: ignore[attr-defined]
