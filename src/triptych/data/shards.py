"""WebDataset shards: samples in uncompressed tar files, found by an index and read by their place."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
import tarfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from triptych.data import store
from triptych.data.dataset import LARGE_BYTES
from triptych.data.decode import EXTENSIONS, Crop, Recipe, UnreadableImage
from triptych.data.folder import PARTS, Order, Progress, images_of
from triptych.data.parts import Parts, name_labels
from triptych.data.store import Store, check_file, is_hidden, walk
from triptych.errors import InputError, counted

MAX_SHARDS = 100_000
MAX_BRACES = 16
MAX_LABEL_BYTES = 2**20  # of a .json, which may hold a caption and more
MAX_NAME_BYTES = 2**16
_BLOCK = 512
_OPEN_SHARDS = 256

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}
_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?(?![a-z])", re.I)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(source: Path) -> tuple[Path, list[Path]] | None:
    """The folder of a set of shards, and the shards in order of their names; None if the source is something else.

    Arguments:
        source: A tar file, a folder that holds tar files and no images, or a path with braces, as
            `train-{000000..000146}.tar` or `{train,val}-{00..09}.tar`, that is no file itself.
    Raises:
        InputError: If a shard of a path with braces is missing, the braces make no sense, or a shard in a folder is a
            link out of it or no regular file.
    """
    text = str(source)
    if source.is_file():
        return (source.parent, [source]) if _is_tar(source.name) else None
    if source.is_dir():
        found = []
        for folder, _, files in walk(source):
            for name in files:
                if PurePosixPath(name).suffix.lower() in EXTENSIONS:
                    return None
                if _is_tar(name):
                    found.append(path := folder / name)
                    check_file(path, source.resolve())
        return (source, sorted(found)) if found else None
    if "{" not in text:
        return None
    if text.count("{") > MAX_BRACES:
        raise InputError(f"A path has {text.count('{')} braces ({text[:50]!r}...); give one with at most {MAX_BRACES}.")
    names = set(itertools.islice(_expanded(text, text), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise InputError(f"{text!r} names more than {MAX_SHARDS} shards; give fewer.")
    paths = sorted(map(Path, names))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{text!r} names {len(paths)} shards, of which {len(missing)} are not there: {missing[0]}.")
    root = Path(text[: text.index("{")] + "x").parent
    return root, paths


def _is_tar(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _expanded(text: str, whole: str) -> Iterator[str]:
    """All strings that a text with braces stands for."""
    match = _BRACES.search(text)
    if match is None:
        if "{" in text or "}" in text:
            raise InputError(f"{whole!r} has a brace without its partner; write train-{{000..146}}.tar.")
        yield text
        return
    words = match[1].split(",")
    if numbers := _RANGE.fullmatch(match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MAX_SHARDS:
            raise InputError(
                f"{whole!r} runs from {first} to {last}; give at most {MAX_SHARDS} shards, in rising order."
            )
        words = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif len(words) == 1:
        raise InputError(f"{whole!r} has {match[0]!r}; write a range, {{000..146}}, or a list, {{train,val}}.")
    if "{" in text[: match.start()] or "}" in text[: match.start()]:
        raise InputError(f"{whole!r} has braces within braces; name the shards by two patterns beside each other.")
    for word in words:
        for rest in _expanded(text[match.end() :], whole):
            yield text[: match.start()] + word + rest


def read_shards(
    path: Path,
    root: Path,
    shards: Sequence[Path],
    *,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
    levels: int | None = None,
    grey: bool = False,
    skip_bad: bool = False,
    memory_limit: int = LARGE_BYTES,
    progress: Progress | None = None,
) -> Parts:
    """Reads WebDataset shards: decodes every image once, to check it and to learn what the set is.

    Arguments:
        path: The source as it was given.
        root, shards: As of `find_shards`.
        size, crop, levels, grey, skip_bad, memory_limit, progress: As in `read_images`.
    Raises:
        InputError: If a shard or a label is of no use, or the images are not; `load_data` says when.
    """
    what = repr(str(path))
    tars = TarStore(root, shards)
    if not len(tars.names):
        raise InputError(f"{what} holds no samples with an image; name the images KEY.png, KEY.jpg, ...")
    found = [f"{counted(len(shards), 'shard')}."]
    if tars.n_without_image:
        found.append(f"Passed over: {counted(tars.n_without_image, 'sample')} without an image.")
    labels = np.frombuffer(tars.labels, np.int32)
    n_missing, numbered, class_names = int((labels < 0).sum()), None, None
    if n_missing == 0:
        given, class_names = name_labels({"all": labels}, {"all": len(labels)}, what)
        numbered = given["all"]
        found.append('The labels are those of .cls files, or of "label" in .json files.')
    elif n_missing < len(labels):
        without = f'No label (a number in .cls, or "label" in .json): {counted(n_missing, "sample")}'
        found.append(f"{without}; so the set has none.")
    order = Order(_parts_of(tars, what), numbered, class_names, found)
    return images_of(
        tars,
        order,
        Recipe(size, crop, grey),
        name=path.stem if path.is_file() else root.resolve().name,
        what=what,
        levels=levels,
        skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress,
    )


def _parts_of(tars: TarStore, what: str) -> np.ndarray:
    """Place in PARTS of each sample, int8, (N,), by the names of shards, or of the folders that they lie in."""
    named = []
    for shard in tars.shards:
        match = _SPLIT.match(shard.relative_to(tars.root).parts[0])
        named.append(match[1].lower().replace("val", "valid") if match else "all")
    if not ("train" in named and {"valid", "test"} & set(named)):
        named = ["all"] * len(named)
    elif "all" in named:
        stranger = tars.shards[named.index("all")].relative_to(tars.root)
        raise InputError(f"{what} has {str(stranger)!r} beside shards named train and others; name it like them.")
    return np.repeat(np.array([PARTS.index(part) for part in named], np.int8), np.diff(tars.starts))


class TarStore(Store):
    """Images of WebDataset shards, found by one pass over the headers and read by shard, offset and size.

    Files of one sample follow each other and share their key, the path up to the first dot of its last part:
    `KEY.png` (or another image), with `KEY.cls` (a whole number as text) or `KEY.json` (`{"label": 3}`) as its label.
    An item takes 24 bytes of memory and the length of its key. Shards stay open, up to 256 of them.

    Arguments:
        root: Folder that names in messages are relative to.
        shards: Tar files, uncompressed.
    Raises:
        InputError: If a shard is compressed, cut short, damaged or made to do harm (links, devices, paths that lead out
            of it), if a sample is scattered or has two images, or a label is no whole number.
    """

    def __init__(self, root: Path, shards: Sequence[Path]) -> None:
        self.root, self.shards = root, list(shards)
        self.offsets, self.sizes, self.labels = array("Q"), array("I"), array("i")
        """Of each item; -1 is no label."""
        self.starts = [0]
        """First item of each shard, and the number of items."""
        self.names: _Names = _Names([shard.relative_to(root).as_posix() for shard in shards], self.starts)
        self.n_without_image = 0
        for shard in self.shards:
            self._index(shard)
            self.starts.append(len(self.offsets))
        self._files: dict[int, int] = {}
        self._closing = weakref.finalize(self, _close, self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_closing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._closing = weakref.finalize(self, _close, self._files)

    def item(self, position: int) -> bytes:
        """Bytes of an image.

        Raises:
            UnreadableImage: If the shard cannot be read, or ends before it.
        """
        size, offset, shard = self.sizes[position], self.offsets[position], _shard_of(position, self.starts)
        try:
            file = self._files.get(shard)
            is_kept = file is not None
            if file is None:
                file = os.open(self.shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                # Of two threads that open the same shard, one keeps its file.
                is_kept = len(self._files) < _OPEN_SHARDS and self._files.setdefault(shard, file) == file
            try:
                data = os.pread(file, size, offset)
            finally:
                if not is_kept:
                    os.close(file)
        except OSError as error:
            raise UnreadableImage(error.strerror or type(error).__name__) from None
        if len(data) < size:
            raise UnreadableImage("the shard has become shorter")
        return data

    def _index(self, shard: Path) -> None:
        """Adds the samples of a shard."""
        what = repr(str(shard))
        sample, key = _Sample(), None
        hashes = array("q")
        try:
            with shard.open("rb", buffering=2**14) as file:
                for entry in _entries(file, what):
                    if entry.key != key:
                        self._add(sample, key, hashes)
                        sample, key = _Sample(), entry.key
                    sample.take(entry, file, what)
                self._add(sample, key, hashes)
                _refuse_scattered(hashes, file, what)
        except OSError as error:
            raise InputError(
                f"{what} cannot be read ({error.strerror or error}); mend that, or leave it out."
            ) from None

    def _add(self, sample: _Sample, key: str | None, hashes: array[int]) -> None:
        if key is None:
            return
        hashes.append(hash(key))
        if sample.image is None:
            self.n_without_image += 1
            return
        self.offsets.append(sample.image.offset)
        self.sizes.append(sample.image.size)
        self.labels.append(-1 if sample.label is None else sample.label)
        self.names.append(key)


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
    files.clear()


def _shard_of(position: int, starts: list[int]) -> int:
    return bisect.bisect_right(starts, position) - 1


class _Names(Sequence[str]):
    """Shard and key of each item, put together when asked for."""

    def __init__(self, shards: list[str], starts: list[int]) -> None:
        self.shards, self.starts = shards, starts
        self.keys, self.ends = bytearray(), array("Q")
        """All keys, one after the other, and where each ends."""

    def append(self, key: str) -> None:
        self.keys += key.encode(errors="surrogateescape")
        self.ends.append(len(self.keys))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self.ends):
            raise IndexError(position)
        key = self.keys[self.ends[position - 1] if position else 0 : self.ends[position]]
        return f"{self.shards[_shard_of(position, self.starts)]}/{key.decode(errors='replace')}"


class _Header(NamedTuple):
    """What counts of a header of a tar."""

    name: str
    size: int
    type: bytes


def _plain(header: bytes) -> _Header | None:
    """A header of the usual kind, some five times as fast as `tarfile` reads any; None for others and damaged ones."""
    if header[156] not in b"0\0" or header[345] or header[124] & 0x80:
        return None
    try:
        if int(header[148:156].strip(b" \0"), 8) != 256 + sum(header[:148]) + sum(header[156:]):
            return None
        name = header[: header.index(0, 0, 101)].decode("ascii")
        size = int(header[124:136].strip(b" \0"), 8)
    except ValueError:
        return None
    return None if name.endswith("/") else _Header(name, size, b"0")


class _Entry(NamedTuple):
    """A regular file of a tar."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The path up to the first dot of its last part."""
        return self.name[: self._dot]

    @property
    def kind(self) -> str:
        """What follows that dot."""
        return self.name[self._dot + 1 :].lower()

    @property
    def _dot(self) -> int:
        dot = self.name.find(".", self.name.rfind("/") + 1)
        return len(self.name) if dot < 0 else dot


class _Sample:
    """What is known of a sample so far."""

    image: _Entry | None = None
    label: int | None = None
    """Of the .cls file, or else of the .json file."""

    def take(self, entry: _Entry, file: IO[bytes], what: str) -> None:
        """Adds a file of the sample."""
        kind = entry.kind
        if f".{kind.rpartition('.')[2]}" in EXTENSIONS:
            if self.image is not None:
                raise InputError(
                    f"{what} holds {self.image.name!r} and {entry.name!r}, two images of the one sample {entry.key!r}"
                    " (its name ends at the first dot); keep one, or rename them."
                )
            if entry.size > store.MAX_FILE_BYTES:
                raise InputError(
                    f"{what} holds {entry.name!r} of {entry.size} bytes, more than an image should; leave it out."
                )
            self.image = entry
        elif kind in ("cls", "json"):
            label = _label_of(entry, kind, file, what)
            if label is None:
                return
            if self.label is not None and self.label != label:
                raise InputError(
                    f"{what} gives the sample {entry.key!r} the labels {self.label} and {label}; keep one of them."
                )
            self.label = label


def _label_of(entry: _Entry, kind: str, file: IO[bytes], what: str) -> int | None:
    """The whole number in a .cls file, or in "label" of a .json file, which may hold something else."""
    if entry.size > MAX_LABEL_BYTES:
        raise InputError(f"{what} holds {entry.name!r} of {entry.size} bytes, more than a label should; leave it out.")
    file.seek(entry.offset)
    content = file.read(entry.size)
    label: Any
    try:
        if kind == "cls":
            text = content.decode("ascii").strip()
            label = int(text) if re.fullmatch(r"\d{1,10}", text) else text or "nothing"
        else:
            found = json.loads(content)
            label = found.get("label") if isinstance(found, dict) else None
            if type(label) is not int:
                return None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{entry.name!r} in {what} cannot be read as a label ({reason}); mend it.") from None
    if not (type(label) is int and 0 <= label < 2**31):
        raise InputError(f"{entry.name!r} in {what} holds {str(label)[:40]!r}; it must be a whole number from 0.")
    return label


def _refuse_scattered(hashes: array[int], file: IO[bytes], what: str) -> None:
    """Raises InputError if two of a shard's samples have one key, of which the hashes are given."""
    if len(np.unique(np.frombuffer(hashes, np.int64))) == len(hashes):
        return
    seen, last = set(), None
    file.seek(0)
    for entry in _entries(file, what):
        if entry.key != last and entry.key in seen:
            raise InputError(
                f"{what} holds {entry.name!r} apart from other files of that sample, or twice; files of a sample must"
                " follow each other: make the tar anew, with --sort=name."
            )
        seen.add(last := entry.key)


def _entries(file: IO[bytes], what: str) -> Iterator[_Entry]:
    """The regular files of a tar, hidden ones left out.

    Raises:
        InputError: If it is no whole, uncompressed tar, or holds anything else than files and folders.
    """
    length = os.fstat(file.fileno()).st_size
    start = file.read(8)
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"{what} is compressed; its samples are read by their place, so unpack it with {tool}.")
    if length == 0:
        raise InputError(f"{what} is empty; get a whole copy.")
    cut = InputError(f"{what} ends too early: it was cut short; get a whole copy.")
    offset, long_name, n_entries = 0, "", 0
    while True:
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise cut if n_entries else InputError(f"{what} is no tar file; get a whole copy.")
        if not header.strip(b"\0"):
            break
        info = _plain(header)
        if info is None:
            try:
                full = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                where = f"damaged after {n_entries} entries ({error})" if n_entries else "no tar file"
                raise InputError(f"{what} is {where}; get a whole copy.") from None
            info = _Header(full.name, full.size, full.type)
        n_entries += 1
        has_content = info.type not in _WITHOUT_CONTENT
        data, size = offset + _BLOCK, info.size if has_content else 0
        if size < 0 or data + size > length:
            raise cut
        offset = data + -(-size // _BLOCK) * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if size > MAX_NAME_BYTES:
                raise InputError(f"{what} has a name or header of {size} bytes; make the tar anew.")
            content = file.read(size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                long_name = _extended_name(content, what) or long_name
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        name, long_name = long_name or info.name, ""
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
            raise InputError(f"{what} holds {name!r}, a path that leads out of it; make the tar anew without it.")
        if info.type == tarfile.DIRTYPE:
            continue
        if info.type not in tarfile.REGULAR_TYPES or info.type == tarfile.GNUTYPE_SPARSE:
            kind, remedy = _REFUSED.get(info.type, ("an entry of unknown kind", "without it"))
            raise InputError(f"{what} holds {name!r}, {kind}; make the tar anew {remedy}.")
        name = "/".join(part for part in parts if part != ".")
        if not any(map(is_hidden, parts)):
            yield _Entry(name, data, size)
    if file.read(2**20).strip(b"\0"):
        raise InputError(
            f"{what} goes on after its end, as tars do that were joined; join them with tar --concatenate."
        )


_WITHOUT_CONTENT = {
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
}
_REFUSED = {
    tarfile.LNKTYPE: ("a link", "with --hard-dereference"),
    tarfile.SYMTYPE: ("a link", "with --dereference"),
    tarfile.CHRTYPE: ("a device", "without it"),
    tarfile.BLKTYPE: ("a device", "without it"),
    tarfile.FIFOTYPE: ("a pipe", "without it"),
    tarfile.GNUTYPE_SPARSE: ("a file with holes", "without --sparse"),
}


def _extended_name(content: bytes, what: str) -> str:
    """The path of a pax header; empty if it gives none.

    Raises:
        InputError: If it is damaged, or gives a size or holes, which only very large files need.
    """
    name = ""
    while content.strip(b"\0"):
        match = re.match(rb"(\d{1,6}) ([^=]+)=", content)
        if match is None or not match.end() < int(match[1]) <= len(content):
            raise InputError(f"{what} has a damaged header; get a whole copy.")
        value, key = content[match.end() : int(match[1]) - 1], match[2]
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise InputError(f"{what} holds a file with holes or of huge size; make the tar anew without --sparse.")
        content = content[int(match[1]) :]
    return name
