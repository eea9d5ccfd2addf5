"""Folders and zips that must be refused, in one line, without harm."""

import json
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from test_data_folder import COLOUR, GREY, copies, encode, write

from triptych.data import store
from triptych.data.folder import read_images
from triptych.data.load import load_data
from triptych.errors import InputError

PNG = encode(COLOUR)
GOOD = copies(PNG, 4)


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG written by hand: what Pillow cannot write, or a header that claims more than follows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff() -> bytes:
    """A little-endian TIFF of one pixel with 16 bits for each of red, green and blue."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6), (339, 3, 1, 1)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head += struct.pack("<I", 0)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(6)


@pytest.mark.parametrize("root", ["set", "set.zip"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.txt": b""}, "holds no images, only 1 other files"),
        ({".hidden.png": PNG}, "holds no images; give"),
        ({"a.png": PNG, "b.png": encode(GREY[:3])}, "'a.png' is 6x7 and 'b.png' is 3x7 .*give --size"),
        ({**GOOD, "bad.png": b"text"}, "1 of 5 files in .*'bad.png' .not an image.*--skip-bad"),
        ({**GOOD, "bad.png": PNG[:-30]}, "'bad.png'.*--skip-bad"),
        ({**GOOD, "bad.png": b""}, "'bad.png'.*--skip-bad"),
        ({**GOOD, "bad.jpg": encode(np.tile(COLOUR, (9, 9, 1)), ".jpg")[:1500]}, "'bad.jpg'.*--skip-bad"),
        ({**GOOD, "bad.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n"}, "'bad.png'.*--skip-bad"),
        ({f"{i}.png": b"" for i in range(9)}, "9 of 9 files .*'4.png' .*and 4 more"),
        ({"line\nbreak.png": b""}, r"'line\\nbreak.png'"),
        ({"deep.png": png(1, 1, 16, 2, bytes(7))}, "'deep.png' has more than 8 bits a colour"),
        ({"deep.png": png(1, 1, 16, 6, bytes(9))}, "more than 8 bits a colour"),
        ({"deep.png": png(1, 1, 16, 4, bytes(5))}, "more than 8 bits a colour"),
        ({"deep.ppm": b"P6 1 1 65535 " + bytes(6)}, "more than 8 bits a colour"),
        ({"deep.ppm": b"P3 1 1 1023 1 2 3 "}, "more than 8 bits a colour"),
        ({"deep.tif": deep_tiff()}, "more than 8 bits a colour"),
        ({"f.tif": encode(Image.fromarray(np.zeros((2, 2), np.float32)), ".tif")}, "'f.tif' has 32-bit pixels"),
        ({"i.tif": encode(Image.fromarray(np.zeros((2, 2), np.int32)), ".tif")}, "'i.tif' has 32-bit pixels"),
        ({"big.png": png(10_000, 10_000, 8, 0)}, "'big.png' has more than 64 megapixels"),
        ({"big.png": png(60_000, 60_000, 8, 0)}, "'big.png' has more than 64 megapixels"),
        ({"big.png": png(8_001, 8_000, 8, 0)}, "'big.png' has more than 64 megapixels"),
        ({"train/a.png": PNG, "test/a.png": PNG, "more/a.png": PNG}, "'more' beside its folders"),
        ({"train/a.png": PNG, "test/a.png": PNG, "a.png": PNG}, "'a.png' beside its folders"),
        ({"train/a.png": PNG, "valid/a.png": PNG, "val/a.png": PNG}, "keep one"),
        ({"train/a.png": PNG, "test/a.png": PNG}, "The train split .* is empty"),
        ({"a.png": PNG, "b.png": PNG}, "The train split .* is empty"),
    ],
)
def test_refused(tmp_path: Path, root: str, files: dict[str, bytes], says: str) -> None:
    path = write(tmp_path / root, files)
    before = sorted(tmp_path.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of the tests, where a warning is no error
        with pytest.raises(InputError, match=says) as caught:
            load_data(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images; give"):
        load_data(tmp_path)


@pytest.mark.parametrize("root", ["set", "set.zip"])
def test_skip_bad_leaves_out_and_counts(tmp_path: Path, root: str) -> None:
    path = write(tmp_path / root, {**GOOD, "2.5.png": b"text", "bad.png": PNG[:-30]})
    data = load_data(path, skip_bad=True)
    assert sum(map(len, data.splits.values())) == 4
    assert "Left out as unreadable: 2 files, '2.5.png'" in data.repaired[0]
    assert data.source["skip_bad"] is True
    assert data.checksum == load_data(write(tmp_path / f"good-{root}", GOOD)).checksum
    with pytest.raises(InputError, match="None of the 2 files"):
        load_data(write(tmp_path / f"bad-{root}", {"a.png": b"", "b.png": b""}), skip_bad=True)


def test_skip_bad_with_no_train_left(tmp_path: Path) -> None:
    path = write(tmp_path, {"train/a.png": b"", "test/a.png": PNG})
    with pytest.raises(InputError, match="None of the images in the train folder"):
        load_data(path, skip_bad=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\xfa", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", r'must be \{"labels"'),
        (b"{}", r'must be \{"labels"'),
        (b'{"labels": 3}', "must be a list"),
        (b'{"labels": [3]}', "entry 0"),
        (b'{"labels": [["0.png", 1], ["1.png", -1]]}', "entry 1"),
        (b'{"labels": [["0.png", 1.5]]}', "entry 0"),
        (b'{"labels": [["0.png", true]]}', "entry 0"),
        (b'{"labels": [["0.png", [0, 1]]]}', "entry 0"),
        (b'{"labels": [["0.png", 1000000000000]]}', "entry 0"),
        (b'{"labels": [["0.png", 1], ["0.png", 1]]}', "two labels"),
        (b'{"labels": [["../0.png", 1]]}', "not among the images"),
        (json.dumps({"labels": [[f"{i}.png", 0] for i in range(3)]}).encode(), "no label for '3.png'"),
    ],
)
def test_bad_label_files(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_data(write(tmp_path, {**GOOD, "dataset.json": content}))
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "C:/a.png", "..\\a.png", "../note.txt"])
def test_paths_out_of_a_zip_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads out of it"):
        load_data(write(tmp_path / "a.zip", {**GOOD, name: PNG}))


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", PNG)
    with pytest.raises(InputError, match=r"'a\.png' twice"):
        load_data(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_labels_may_have_so_many_bytes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("triptych.data.folder.MAX_LABELS_BYTES", 200)
    monkeypatch.setattr("triptych.data.folder.LABEL_BYTES", 50)
    labels = json.dumps({"labels": [[image, 1] for image in GOOD]}).encode()
    most = len(GOOD) * 50 + sum(len(image) + 2 for image in GOOD)
    for spaces, fits in ((most - len(labels), True), (most - len(labels) + 1, False)):
        (tmp_path / str(fits)).mkdir()
        path = write(tmp_path / str(fits) / name, {**GOOD, "dataset.json": labels + b" " * spaces})
        if fits:
            assert load_data(path).class_names == ("1",)
        else:
            with pytest.raises(
                InputError, match=rf"dataset\.json' of .* has {most + 1} bytes; at most {most} are read"
            ):
                load_data(path)


def test_zip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.png", bytes(65 * 2**20))
    with pytest.raises(InputError, match="zip bomb"):
        load_data(tmp_path / "a.zip")
    monkeypatch.setattr(store, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="zip bomb"):
        load_data(write(tmp_path / "b.zip", GOOD))
    with pytest.raises(InputError, match="more than an image should"):
        load_data(write(tmp_path / "b", GOOD))
    monkeypatch.setattr(store, "MAX_ZIP_ENTRIES", 3)
    with pytest.raises(InputError, match="has 4 entries; at most 3"):
        load_data(tmp_path / "b.zip")


def test_damaged_zips(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", GOOD)
    content = path.read_bytes()
    for damaged in (b"", b"PK", b"text", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a readable zip"):
            load_data(path)
    place = content.index(PNG)
    path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
    with pytest.raises(InputError, match=r"1 of 4 files .*Bad CRC"):
        load_data(path)


def test_encrypted_zip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is encrypted"):
        load_data(path)


def test_links(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", GOOD)
    path = write(tmp_path / "set", GOOD)
    (path / "inside.png").symlink_to(path / "0.png")
    assert sum(map(len, load_data(path).splits.values())) == 5
    (tmp_path / "link").symlink_to(path)
    assert load_data(tmp_path / "link").checksum == load_data(path).checksum
    (path / "out.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    with pytest.raises(InputError, match=r"out\.png' is a link out of the folder"):
        load_data(path)
    (path / "out.png").unlink()
    (path / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="more' is a link to a folder"):
        load_data(path)


def test_broken_link_and_pipe_are_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    os.mkfifo(path / "pipe.png")
    (path / "nowhere.png").symlink_to(path / "missing")
    with pytest.raises(InputError, match=r"2 of 6 files .*No such file.*not a regular file"):
        load_data(path)


@pytest.mark.parametrize("change", [b"bad", encode(GREY[:3]), None])
def test_files_that_change_after_the_first_reading(tmp_path: Path, change: bytes | None) -> None:
    path = write(tmp_path, copies(encode(GREY)))
    split = read_images(path, memory_limit=1).splits["all"]
    (path / "1.png").write_bytes(PNG if change is None else change)
    with pytest.raises(InputError, match=r"'1.png' (has changed|cannot be read any more)"):
        split.read()


def test_pillow_keeps_its_settings(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    load_data(write(tmp_path, GOOD))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
