"""WebDataset shards: samples, labels, splits, reading by place, and tars that must be refused."""

import bz2
import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_data_folder import COLOUR, GREY, encode, write

from triptych.cli import main
from triptych.data import shards, store
from triptych.data.load import load_data
from triptych.data.shards import TarStore, find_shards, read_shards
from triptych.errors import InputError

PNG = encode(GREY)
GOOD = {f"{i:03d}.png": encode(np.roll(GREY, i)) for i in range(9)}


def tar(
    path: Path,
    files: dict[str, bytes],
    form: int = tarfile.USTAR_FORMAT,
    change: Callable[[tarfile.TarInfo], None] | None = None,
) -> Path:
    """Writes a tar, with the header of its last file changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for i, (name, content) in enumerate(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None and i == len(files) - 1:
                change(info)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def labelled(n: int, first: int = 0) -> dict[str, bytes]:
    files = {}
    for i in range(first, first + n):
        files |= {f"{i:03d}.cls": b"%d\n" % (i % 3 + 5), f"{i:03d}.png": encode(np.roll(GREY, i))}
    return files


class TestReading:
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_one_tar_is_the_set_of_its_images(self, tmp_path: Path, form: int) -> None:
        data = load_data(tar(tmp_path / "a.tar", GOOD, form))
        assert data.checksum == load_data(write(tmp_path / "a", GOOD)).checksum
        assert data.name == "a"
        assert data.class_names is None
        assert load_data(**data.source).checksum == data.checksum

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("stem", ["short/", "a" * 80 + "/" + "b" * 90 + "/", "é/"])
    def test_names_of_any_kind(self, tmp_path: Path, form: int, stem: str) -> None:
        path = tar(tmp_path / "a.tar", {f"{stem}{name}": content for name, content in labelled(4).items()}, form)
        tars = TarStore(tmp_path, [path])
        assert list(tars.names) == [f"a.tar/{stem}{i:03d}" for i in range(4)]
        assert list(tars.labels) == [5, 6, 7, 5]
        assert tars.item(2) == encode(np.roll(GREY, 2))

    def test_several_are_one_set_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for i in (2, 0, 1):
            tar(tmp_path / f"set-{i:02d}.tar", labelled(4, 4 * i))
        (tmp_path / "README.txt").write_text("hello")
        tar(tmp_path / ".hidden.tar", {})
        data = load_data(tmp_path)
        assert data.class_names == ("5", "6", "7")
        assert load_data(tmp_path / "set-{00..02}.tar").checksum == data.checksum
        assert load_data(f"{tmp_path}/set-0{{2,1,0}}.tar").checksum == data.checksum
        assert load_data(tar(tmp_path / "more" / "all.tar", labelled(12))).checksum == data.checksum
        assert "3 shards." in data.found

    def test_a_pattern_is_found_again_from_another_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tar(tmp_path / "a-0.tar", labelled(5))
        tar(tmp_path / "a-1.tar", labelled(5))  # the same keys in another shard are other samples
        monkeypatch.chdir(tmp_path)
        data = load_data("a-{0..1}.tar")
        monkeypatch.chdir("/")
        assert load_data(**data.source).checksum == data.checksum
        assert data.name == tmp_path.name

    @pytest.mark.parametrize(
        "names",
        [
            ["train-0.tar", "train-1.tar", "val-0.tar", "test-0.tar"],
            ["train/0.tar", "train/1.tar", "valid/0.tar", "test/0.tar"],
            ["Training_0.tar", "Training_1.tar", "validation_0.tar", "test.tar"],
        ],
    )
    def test_names_of_shards_and_folders_are_splits(self, tmp_path: Path, names: list[str]) -> None:
        for i, name in enumerate(names):
            tar(tmp_path / name, labelled(i + 1, 10 * i))
        data = load_data(tmp_path)
        assert [len(split) for split in data.splits.values()] == [3, 3, 4]
        (tmp_path / names[2]).rename(tmp_path / "trained.tar")
        with pytest.raises(InputError, match=r"'trained\.tar' beside shards named train"):
            load_data(tmp_path)

    def test_one_kind_of_split_is_cut(self, tmp_path: Path) -> None:
        tar(tmp_path / "train-0.tar", labelled(10))
        assert [len(split) for split in load_data(tmp_path).splits.values()] == [8, 1, 1]

    def test_labels_of_json_beside_other_things(self, tmp_path: Path) -> None:
        files = {}
        for i in range(6):
            about = {"caption": "a cat", "label": i % 2}
            files |= {f"{i}.json": json.dumps(about).encode(), f"{i}.png": PNG, f"{i}.txt": b"a cat"}
        data = load_data(tar(tmp_path / "a.tar", files | {"6.txt": b"nothing"}))
        assert data.class_names == ("0", "1")
        assert "Passed over: 1 sample without an image." in data.found
        files |= {"7.json": b'{"label": "cat"}', "7.png": PNG}
        data = load_data(tar(tmp_path / "a.tar", files))
        assert data.class_names is None
        assert any('No label (a number in .cls, or "label" in .json): 1 sample;' in line for line in data.found)

    def test_images_of_a_folder_win_over_a_tar_beside_them(self, tmp_path: Path) -> None:
        write(tmp_path, GOOD)
        tar(tmp_path / "backup.tar", labelled(20))
        assert sum(map(len, load_data(tmp_path).splits.values())) == 9

    def test_options_apply(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar", {**GOOD, "bad.png": b"text", "odd.png": encode(COLOUR[:3])})
        with pytest.raises(InputError, match=r"'a\.tar/odd' is 3x7 .*give --size"):
            load_data(path, skip_bad=True)
        with pytest.raises(InputError, match=r"1 of 11 files .*'a\.tar/bad' .not an image.*--skip-bad"):
            load_data(path, size=4)
        data = load_data(path, size=4, skip_bad=True, grey=True, levels=16, limit=2)
        assert data.space.shape == (1, 4, 4)
        assert [len(split) for split in data.splits.values()] == [2, 1, 1]

    def test_read_on_access_it_is_the_same(self, tmp_path: Path) -> None:
        root, paths = find_shards(tar(tmp_path / "a.tar", labelled(9))) or (tmp_path, [])
        held, read = (read_shards(paths[0], root, paths, memory_limit=n).splits["all"] for n in (2**30, 0))
        index = np.array([3, 8, 3, 0])
        assert np.array_equal(held.read(index)[0], read.read(index)[0])
        assert np.array_equal(pickle.loads(pickle.dumps(read.items))[index], held.read(index)[0])

    def test_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tar(tmp_path / "shards" / "set-0.tar", labelled(20))
        monkeypatch.chdir(tmp_path)
        command = ["triptych", "fit", "vae", "shards/", "--budget", "2steps", "--batch-size", "4"]
        monkeypatch.setattr(sys, "argv", command)
        main()
        assert (tmp_path / "runs" / "vae-shards" / "summary.json").is_file()


class TestStore:
    def test_many_shards_are_read_by_several_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "_OPEN_SHARDS", 3)
        paths = [tar(tmp_path / f"{i}.tar", {f"{i}-{j}.png": b"%d %d" % (i, j) for j in range(5)}) for i in range(8)]
        tars = TarStore(tmp_path, paths)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        wrong = []

        def read() -> None:
            for position in np.random.default_rng().integers(0, 40, 500).tolist():
                if tars.item(position) != b"%d %d" % divmod(position, 5):
                    wrong.append(position)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before + 3
            del tars
            assert len(os.listdir("/proc/self/fd")) == before

    def test_memory_of_an_item_is_small(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar", {f"{i:06d}.png": b"" for i in range(2000)})
        tars = TarStore(tmp_path, [path])
        held = [tars.offsets, tars.sizes, tars.labels, tars.names.ends]
        assert sum(column.itemsize for column in held) == 24
        assert len(tars.names.keys) == 6 * 2000

    @pytest.mark.parametrize("change", ["shorter", "gone", "other"])
    def test_shards_that_change_after_the_first_reading(self, tmp_path: Path, change: str) -> None:
        path = tar(tmp_path / "a.tar", GOOD)
        split = read_shards(path, tmp_path, [path], memory_limit=0).splits["all"]
        if change == "shorter":
            os.truncate(path, 700)
        elif change == "gone":
            path.unlink()
            split = pickle.loads(pickle.dumps(split))  # an open file stays readable
        else:
            tar(path, {f"{i:03d}.png": b"x" * len(c) for i, c in enumerate(GOOD.values())})
        with pytest.raises(InputError, match=r"'a\.tar/\d+' cannot be read any more"):
            split.read()


def refused(path: Path, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)
    assert path.name.split("{")[0] in str(caught.value)


class TestRefused:
    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ({}, "no samples with an image"),
            ({"a.txt": b""}, "no samples with an image"),
            ({**GOOD, "x.left.png": PNG, "x.right.png": PNG}, "'x.left.png' and 'x.right.png', two images"),
            ({**GOOD, "000.cls": b"1"}, r"'000\.cls' apart .*--sort=name"),
            ({**GOOD, "../x.png": PNG}, "leads out of it"),
            ({**GOOD, "/etc/x.png": PNG}, "leads out of it"),
            ({**GOOD, "C:/x.png": PNG}, "leads out of it"),
            ({**GOOD, "a\\..\\x.png": PNG}, "leads out of it"),
            ({"x.cls": b"", "x.png": PNG}, r"'x\.cls' .*'nothing'; it must be a whole number"),
            ({"x.cls": b"cat", "x.png": PNG}, "'cat'; it must be a whole number"),
            ({"x.cls": b"-1", "x.png": PNG}, "'-1'; it must be a whole number"),
            ({"x.cls": b"1.5", "x.png": PNG}, "'1.5'; it must be a whole number"),
            ({"x.cls": b"9999999999", "x.png": PNG}, "'9999999999'; it must be"),
            ({"x.cls": b"\xff", "x.png": PNG}, "cannot be read as a label"),
            ({"x.cls": bytes(2**20 + 1), "x.png": PNG}, "more than a label should"),
            ({"x.json": b"{", "x.png": PNG}, "cannot be read as a label"),
            ({"x.json": b"[" * 100_000, "x.png": PNG}, "cannot be read as a label"),
            ({"x.json": b'{"label": -3}', "x.png": PNG}, "'-3'; it must be"),
            ({"x.cls": b"1", "x.json": b'{"label": 2}', "x.png": PNG}, "labels 1 and 2"),
        ],
    )
    def test_contents(self, tmp_path: Path, files: dict[str, bytes], says: str) -> None:
        refused(tar(tmp_path / "a.tar", files), says)

    def test_a_name_twice(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar", {"a.png": PNG, "b.png": PNG})
        content = path.read_bytes().replace(b"b.png", b"a.png")
        path.write_bytes(content)
        refused(path, "damaged after 1 entries")  # the checksum of the header
        with tarfile.open(path, "w") as archive:
            for name in ("a.png", "b.png", "a.png"):
                archive.addfile(tarfile.TarInfo(name))
        refused(path, r"'a\.png' apart from other files of that sample, or twice")
        with tarfile.open(path, "w") as archive:
            for name in ("a.png", "a.png"):
                archive.addfile(tarfile.TarInfo(name))
        refused(path, r"'a\.png' and 'a\.png', two images")

    @pytest.mark.parametrize(
        ("kind", "says"),
        [
            (tarfile.SYMTYPE, "'008.png', a link; .*--dereference"),
            (tarfile.LNKTYPE, "'008.png', a link; .*--hard-dereference"),
            (tarfile.CHRTYPE, "a device"),
            (tarfile.BLKTYPE, "a device"),
            (tarfile.FIFOTYPE, "a pipe"),
            (tarfile.GNUTYPE_SPARSE, "a file with holes; .*without --sparse"),
            (b"Z", "an entry of unknown kind"),
        ],
    )
    def test_entries_that_are_no_files(self, tmp_path: Path, kind: bytes, says: str) -> None:
        def change(info: tarfile.TarInfo) -> None:
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

        refused(tar(tmp_path / "a.tar", GOOD, change=change), says)

    @pytest.mark.parametrize("headers", [{"GNU.sparse.major": "1"}, {"size": "99999999999"}])
    def test_extended_headers(self, tmp_path: Path, headers: dict[str, str]) -> None:
        def change(info: tarfile.TarInfo) -> None:
            info.pax_headers = headers

        refused(tar(tmp_path / "a.tar", GOOD, tarfile.PAX_FORMAT, change), "with holes or of huge size")

    @pytest.mark.parametrize("size", [2**33, 2**62, -5])
    def test_absurd_sizes(self, tmp_path: Path, size: int) -> None:
        path = tar(tmp_path / "a.tar", GOOD)
        info = tarfile.TarInfo("a.png")
        info.size = size
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + path.read_bytes())
        refused(path, "ends too early")

    def test_a_huge_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "MAX_FILE_BYTES", 10)
        refused(tar(tmp_path / "a.tar", GOOD), "more than an image should")

    def test_huge_names(self, tmp_path: Path) -> None:
        refused(tar(tmp_path / "a.tar", {"a" * 70_000: b""}, tarfile.GNU_FORMAT), "a name or header of 70001 bytes")

    @pytest.mark.parametrize(
        ("pack", "name", "tool"),
        [
            (gzip.compress, "a.tar.gz", "gunzip"),
            (gzip.compress, "a.tar", "gunzip"),
            (bz2.compress, "a.tar.bz2", "bunzip2"),
        ],
    )
    def test_compressed(self, tmp_path: Path, pack: Callable[[bytes], bytes], name: str, tool: str) -> None:
        content = tar(tmp_path / "good", GOOD).read_bytes()
        (tmp_path / "good").unlink()
        (tmp_path / name).write_bytes(pack(content))
        refused(tmp_path / name, f"compressed; .*unpack it with {tool}")
        with pytest.raises(InputError, match="compressed"):
            load_data(tmp_path)

    def test_cut_short_at_every_block(self, tmp_path: Path) -> None:
        """Also between two samples, where nothing but the missing end says so."""
        path = tar(tmp_path / "a.tar", labelled(5))
        content = path.read_bytes()
        end = 512 * 20  # five samples of two headers, a label and an image of one block each
        assert content[end - 512 : end].strip(b"\0")
        assert not content[end:].strip(b"\0")
        for length in range(0, end + 1, 256):
            path.write_bytes(content[:length])
            refused(path, "is empty|is no tar|ends too early|damaged")

    def test_other_files_and_joined_tars(self, tmp_path: Path) -> None:
        content = tar(tmp_path / "a.tar", labelled(5)).read_bytes()
        for other in (b"text", b"text" * 1000, content + content):
            (tmp_path / "a.tar").write_bytes(other)
            refused(tmp_path / "a.tar", "is no tar file|goes on after its end")

    def test_any_flipped_byte_of_headers(self, tmp_path: Path) -> None:
        """Whatever damage hits, nothing but an InputError comes of it."""
        path = tar(tmp_path / "a.tar", labelled(5), tarfile.PAX_FORMAT)
        content = bytearray(path.read_bytes())
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(content) // 3, 150).tolist():
            damaged = bytearray(content)
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            with suppress(InputError):
                load_data(path)

    @pytest.mark.parametrize(
        ("pattern", "says"),
        [
            ("a-{0..2}.tar", "names 3 shards, of which 2 are not there: .*a-1.tar"),
            ("a-{2..0}.tar", "in rising order"),
            ("a-{0..9999999}.tar", "at most 100000 shards"),
            ("a-{0..1.tar", "without its partner"),
            ("a-{0}.tar", "write a range"),
            ("{a-{0..1},b}.tar", "braces within braces"),
        ],
    )
    def test_patterns(self, tmp_path: Path, pattern: str, says: str) -> None:
        tar(tmp_path / "a-0.tar", GOOD)
        with pytest.raises(InputError, match=says) as caught:
            load_data(tmp_path / pattern)
        assert "\n" not in str(caught.value)
