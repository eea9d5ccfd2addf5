"""Folders and zips of images: modes, sizes, splits, classes, and the two ways of keeping them."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from triptych.data.dataset import checksum_of
from triptych.data.folder import ImageFiles, read_images
from triptych.data.load import load_data
from triptych.spaces import ImageSpace

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 7), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, suffix: str = ".png", **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(stream, Image.registered_extensions()[suffix], **options)
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Writes a folder, or a zip if the name says so."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return root
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def copies(content: bytes, n: int = 3, suffix: str = ".png") -> dict[str, bytes]:
    return {f"{i}{suffix}": content for i in range(n)}


def only(path: Path, **options) -> tuple[np.ndarray, "object"]:
    """The one image of a set of copies, and the set."""
    data = load_data(path, **options)
    images = data.train.read()[0]
    assert all(np.array_equal(images[0], split.read()[0][0]) for split in data.splits.values())
    return images[0], data


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff", ".ppm", ".webp"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    image, data = only(write(tmp_path, copies(encode(COLOUR, suffix.lower(), **options), suffix=suffix)))
    assert np.array_equal(image, COLOUR.transpose(2, 0, 1))
    assert data.space == ImageSpace(3, 6, 7)
    assert data.class_names is None
    assert not data.repaired


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg(tmp_path: Path, suffix: str) -> None:
    content = encode(COLOUR, suffix.lower())
    image, _ = only(write(tmp_path, copies(content, suffix=suffix)))
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1))


def transparent(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([COLOUR, np.full((6, 7), alpha, np.uint8)]))


ONE_BIT = Image.fromarray(GREY > 127)
SIXTEEN = (GREY.astype(np.uint16) << 8) + 77
GREY_PALETTE = Image.fromarray(GREY).convert("P")
COLOUR_PALETTE = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
CMYK = Image.fromarray(COLOUR).convert("CMYK")


@pytest.mark.parametrize(
    ("content", "suffix", "expected", "levels", "note"),
    [
        (encode(GREY), ".png", GREY, 256, None),
        (encode(GREY, ".ppm"), ".pgm", GREY, 256, None),
        (encode(ONE_BIT), ".png", GREY > 127, 2, None),
        (encode(np.dstack([GREY] * 3)), ".png", GREY, 256, "equal in every pixel"),
        (encode(np.dstack([GREY] * 3), ".jpg"), ".jpg", None, 256, "equal in every pixel"),
        (encode(GREY_PALETTE), ".png", GREY, 256, None),
        (encode(GREY_PALETTE, ".gif"), ".gif", GREY, 256, None),
        (encode(COLOUR_PALETTE), ".png", np.asarray(COLOUR_PALETTE.convert("RGB")), 256, None),
        (encode(transparent(255)), ".png", COLOUR, 256, None),
        (encode(transparent(0)), ".png", np.full((6, 7), 255), 256, "laid over white"),
        (encode(Image.fromarray(GREY).convert("LA")), ".png", GREY, 256, None),
        (encode(CMYK, ".tif"), ".tif", np.asarray(CMYK.convert("RGB")), 256, "converted to RGB from CMYK"),
        (encode(SIXTEEN), ".png", GREY, 256, "16-bit grey"),
        (encode(SIXTEEN, ".tif"), ".tif", GREY, 256, "16-bit grey"),
        (b"P5 7 6 65535 " + SIXTEEN.astype(">u2").tobytes(), ".pgm", GREY, 256, "16-bit grey"),
        (
            encode(GREY_PALETTE, ".gif", save_all=True, append_images=[GREY_PALETTE.transpose(0)]),
            ".gif",
            GREY,
            256,
            "the first was used",
        ),
    ],
)
def test_modes(tmp_path: Path, content: bytes, suffix: str, expected: np.ndarray, levels: int, note: str) -> None:
    image, data = only(write(tmp_path, copies(content, suffix=suffix)))
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(content)))[..., 0]
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert data.space == ImageSpace(len(expected), 6, 7, levels)
    assert np.array_equal(image, expected)
    assert (note in " ".join(data.repaired)) if note else not data.repaired


def test_transparent_palette_and_colour_key(tmp_path: Path) -> None:
    keyed = Image.fromarray(np.full((6, 7, 3), (10, 20, 30), np.uint8))
    image, data = only(write(tmp_path, copies(encode(keyed, transparency=(10, 20, 30)))))
    assert (image == 255).all()
    assert "laid over white" in data.repaired[0]


def test_a_mixed_set_is_rgb(tmp_path: Path) -> None:
    files = {"0.png": encode(GREY), "1.png": encode(COLOUR), "2.png": encode(GREY), "3.png": encode(ONE_BIT)}
    data = load_data(write(tmp_path, files))
    assert data.space == ImageSpace(3, 6, 7)
    images = {image.tobytes() for split in data.splits.values() for image in split.read()[0]}
    assert images == {a.tobytes() for a in (np.stack([GREY] * 3), COLOUR.transpose(2, 0, 1))} | {
        np.stack([(GREY > 127) * np.uint8(255)] * 3).tobytes()
    }


def test_grey_and_levels(tmp_path: Path) -> None:
    path = write(tmp_path, copies(encode(COLOUR)))
    image, data = only(path, grey=True, levels=16)
    assert np.array_equal(image[0], np.asarray(Image.fromarray(COLOUR).convert("L")) // 16)
    assert data.space == ImageSpace(1, 6, 7, 16)
    assert "Colour was converted to grey" in data.repaired[0]
    assert data.repaired[1] == "The 256 levels were brought to 16."
    image, data = only(path, levels=1024)
    assert image.dtype == np.int32
    assert np.array_equal(image, np.rint(COLOUR.transpose(2, 0, 1) * (1023 / 255)))


def test_black_and_white_in_eight_bits_is_told(tmp_path: Path) -> None:
    _, data = only(write(tmp_path, copies(encode((GREY > 127) * np.uint8(255)))))
    assert data.space.levels == 256
    assert any("--levels 2" in sentence for sentence in data.found)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(COLOUR, suffix, exif=exif)
    image, _ = only(write(tmp_path, copies(content, suffix=suffix)))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encode(COLOUR, exif=exif)))))
    assert np.array_equal(image, upright.transpose(2, 0, 1))


def test_sizes(tmp_path: Path) -> None:
    left, right = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    wide = np.concatenate([left, right, right, left], axis=1)  # 8x32
    path = write(tmp_path, copies(encode(wide)))
    image, data = only(path, size=4)
    assert image.shape == (1, 4, 4)
    assert (image >= 199).all()  # the middle; Lanczos sees a little of what is cut off
    assert data.source == {"source": str(tmp_path), "size": [4, 4]}
    assert "3 images: brought to the size asked for, 4x4 (crop: center), from 8x32" in data.repaired[0]
    image, _ = only(path, size=16, crop="pad")
    assert (image[:, :6] == 0).all()
    assert (image[:, 10:] == 0).all()
    assert (image[:, 6:10, 6:10] > 190).all()
    image, _ = only(path, size=(4, 6), crop="none")
    assert image.shape == (1, 4, 6)
    assert (image[:, :, 0] < 20).all()
    assert (image[:, :, 3] > 180).all()
    image, _ = only(path, size=(16, 16))
    assert image.shape == (1, 16, 16)
    square = write(tmp_path / "b", copies(encode(GREY)))
    image, data = only(square, size=(6, 7))
    assert np.array_equal(image[0], GREY)
    assert not data.repaired


def test_reducing_does_not_alias(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image, _ = only(write(tmp_path, copies(encode(checks))), size=8)
    assert np.abs(image.astype(int) - 127).max() <= 8


def test_one_bit_images_that_are_resized_are_grey(tmp_path: Path) -> None:
    _, data = only(write(tmp_path, copies(encode(ONE_BIT))), size=3)
    assert data.space.levels == 256


def numbered(n: int) -> np.ndarray:
    return np.full((2, 2), n, np.uint8)


@pytest.mark.parametrize("root", ["set", "set.zip"])
@pytest.mark.parametrize("wrapper", ["", "deep/er/"])
def test_class_folders(tmp_path: Path, root: str, wrapper: str) -> None:
    files = {f"{wrapper}{label}/x/{i}.png": encode(numbered(10 * label + i)) for label in (2, 10, 0) for i in range(4)}
    files |= {f"{wrapper}notes.txt": b"hello", ".hidden.png": b"", f"{wrapper}2/.DS_Store": b"", "__MACOSX/a.png": b""}
    data = load_data(write(tmp_path / root, files))
    assert data.name == "set"
    assert data.class_names == ("0", "2", "10")
    for split in data.splits.values():
        images, labels = split.read()
        values = images[:, 0, 0, 0]
        assert np.array_equal(labels, np.select([values >= 100, values >= 20], [2, 1], 0))
    assert any("1 other files" in sentence for sentence in data.found)


@pytest.mark.parametrize("root", ["set", "set.zip"])
@pytest.mark.parametrize("valid", [None, "valid", "val"])
@pytest.mark.parametrize("classes", [("cat", "dog"), ("",), ("images",)])
def test_split_folders(tmp_path: Path, root: str, valid: str | None, classes: tuple[str, ...]) -> None:
    files = {}
    for i, part in enumerate(["train", "test"] + ([valid] if valid else [])):
        for j, label in enumerate(classes):
            for k in range(4):
                files[str(Path(part, label, f"{k}.png"))] = encode(numbered(100 * i + 10 * j + k))
    data = load_data(write(tmp_path / root, files))
    assert data.class_names == (("cat", "dog") if len(classes) == 2 else None)
    hundreds = {name: set(split.read()[0].ravel().tolist()) for name, split in data.splits.items()}
    assert {value // 100 for value in hundreds["train"]} == {0}
    assert {value // 100 for value in hundreds["test"]} == {1}
    assert {value // 100 for value in hundreds["valid"]} == {2 if valid else 0}
    assert not hundreds["train"] & hundreds["valid"]


def test_images_beside_class_folders_have_no_labels(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, {"a/0.png": encode(GREY), "b/0.png": encode(GREY), "c.png": encode(GREY)}))
    assert data.class_names is None
    assert any("Outside any class folder: 1 image;" in sentence for sentence in data.found)


@pytest.mark.parametrize("wrapper", ["", "top/"])
def test_stylegan_labels(tmp_path: Path, wrapper: str) -> None:
    files = {f"{wrapper}00000/{i}.png": encode(numbered(i)) for i in range(9)}
    labels = {"labels": [[f"00000/{i}.png", i % 2 * 5] for i in range(9)]}
    data = load_data(write(tmp_path / "a.zip", files | {f"{wrapper}dataset.json": json.dumps(labels).encode()}))
    assert data.class_names == ("0", "5")
    images, numbers = data.train.read()
    assert np.array_equal(numbers, images[:, 0, 0, 0] % 2)
    unlabelled = load_data(write(tmp_path / "b.zip", files | {f"{wrapper}dataset.json": b'{"labels": null}'}))
    assert unlabelled.class_names is None


@pytest.fixture(params=["set", "set.zip"])
def varied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    files = {f"{'ab'[i % 2]}/{i}.png": encode(RNG.integers(0, 256, (5 + i, 9, 3), dtype=np.uint8)) for i in range(12)}
    return write(tmp_path / request.param, files | {"b/12.png": encode(GREY), "a/bad.png": b"bad"})


@pytest.mark.parametrize("options", [{}, {"grey": True}, {"levels": 8}, {"levels": 300, "crop": "pad"}])
def test_large_sets_are_the_same_read_from_the_files(varied: Path, options: dict) -> None:
    options = {"size": (4, 4), "skip_bad": True, **options}
    held, read = read_images(varied, **options), read_images(varied, memory_limit=10, **options)
    assert held.space == read.space
    assert held.repaired == read.repaired
    assert any("read from the files as needed" in sentence for sentence in read.found)
    assert checksum_of(held.splits["all"]) == checksum_of(read.splits["all"])
    lazy = read.splits["all"].items.items
    assert isinstance(lazy, ImageFiles)
    images, labels = held.splits["all"].read(np.array([7, 0, 3]))
    again, numbers = pickle.loads(pickle.dumps(read.splits["all"])).read(np.array([7, 0, 3]))
    assert np.array_equal(images, again)
    assert images.dtype == again.dtype
    assert np.array_equal(labels, numbers)
    assert lazy[np.arange(0)].shape == (0, *read.space.shape)


def test_a_folder_and_its_zip_are_equal(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": encode(numbered(i)) for label in "ab" for i in range(9)}
    sets = [load_data(write(tmp_path / name, files)) for name in ("set", "set.zip")]
    assert sets[0].checksum == sets[1].checksum


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_data(write(tmp_path, copies(encode(GREY))), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(0, 3), (3, 3)]
