"""Where image files lie: a folder or a zip, listed with care and read one file at a time; `shards` has tars."""

from __future__ import annotations

import lzma
import os
import stat
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from triptych.data.decode import EXTENSIONS, UnreadableImage
from triptych.errors import InputError

MAX_FILE_BYTES = 512 * 2**20
MAX_ZIP_ENTRIES = 2_000_000
MAX_RATIO = 200
"""How much what is packed may grow as it is unpacked, past `FREE_BYTES`."""
FREE_BYTES = 64 * 2**20
"""Up to so many bytes it may grow as it likes."""
MAX_NAME_LETTERS = 4096
MAX_DEPTH = 200


class Store(ABC):
    """Image files in a fixed order, read by their place in it, also from several threads at once."""

    names: Sequence[str]
    """What to call each image file in messages."""

    @abstractmethod
    def item(self, position: int) -> bytes:
        """Bytes of an image file.

        Raises:
            UnreadableImage: If it cannot be read.
        """


class NamedStore(Store):
    """Image files by name, and the names of what else lies beside them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Image files, paths with '/' relative to the root, sorted."""
        self.others: list[str] = []
        """Other files, hidden ones left out."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Bytes of a file.

        Raises:
            UnreadableImage: If it cannot be read.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """How many bytes reading a file gives; 0 if it cannot be read."""

    def item(self, position: int) -> bytes:
        """Bytes of an image file."""
        return self.read(self.names[position])

    def _list(self, name: str) -> None:
        (self.names if os.path.splitext(name)[1].lower() in EXTENSIONS else self.others).append(name)


def is_hidden(part: str) -> bool:
    """Whether a file or folder is passed over by its name."""
    return (part.startswith(".") and part != ".") or part == "__MACOSX"


def leads_within(link: Path, real_root: Path) -> bool:
    """Whether a link leads to a place within a folder; one that leads to itself leads nowhere."""
    try:
        return link.resolve().is_relative_to(real_root)
    except (OSError, RuntimeError):
        return False


def refuse_link_out(path: Path, real_root: Path) -> None:
    """Raises InputError if a file of a folder is a link that leads out of it; where it leads is not opened."""
    if path.is_symlink() and not leads_within(path, real_root):
        raise InputError(f"{str(path)!r} is a link out of the folder; put the file itself in its place.")


def check_file(path: Path, real_root: Path) -> None:
    """Raises InputError if what was found in a folder is a link that leads out of it, or no regular file."""
    refuse_link_out(path, real_root)
    if not path.is_file():  # a pipe would wait for ever
        raise InputError(f"{str(path)!r} is not a regular file; take it out of the folder.")


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below a root, itself first: its path, its subfolders and its files, but for what is hidden.

    Raises:
        InputError: If a folder cannot be read, or folders lie in each other without an end.
    """

    def stop(error: OSError) -> None:
        raise InputError(f"{str(error.filename)!r} cannot be read ({error.strerror}); change its permissions.")

    for folder, subfolders, files in os.walk(root, onerror=stop):
        path = Path(folder)
        if len(path.parts) - len(root.parts) > MAX_DEPTH:
            raise InputError(f"{str(root)!r} holds folders in more than {MAX_DEPTH} folders; flatten it.")
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield path, subfolders, [name for name in files if not is_hidden(name)]


class FolderStore(NamedStore):
    """A folder, with all its subfolders.

    Raises:
        InputError: If a link leads out of the folder or to a folder, or a folder or file cannot be read.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        real_root = root.resolve()
        for folder, subfolders, files in walk(root):
            for name in subfolders:
                if (link := folder / name).is_symlink():
                    raise InputError(f"{str(link)!r} is a link to a folder; put the folder itself in its place.")
            for name in files:
                refuse_link_out(path := folder / name, real_root)
                self._list(path.relative_to(root).as_posix())
        self.names.sort()

    def read(self, name: str) -> bytes:
        """Bytes of a file.

        Raises:
            UnreadableImage: If it cannot be read.
            InputError: If it is larger than 512 MiB.
        """
        path = self.root / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
                raise UnreadableImage("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise InputError(f"{str(path)!r} has {status.st_size} bytes, more than an image should; remove it.")
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror or type(error).__name__) from None

    def size(self, name: str) -> int:
        """Bytes of a file, counted."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return 0


def count_entries(path: Path) -> int:
    """Entries in the directory at a zip's end, counted without reading them: each takes half a kilobyte once read."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 2**16 - 100))
        tail = file.read()
        # The end is looked for as zipfile looks for it: what it holds may be made to look like an end too.
        has_no_comment = tail[-22:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")
        end = len(tail) - 22 if has_no_comment else tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 16:
            return 0
        n_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
        if end >= 76 and tail[end - 76 :].startswith(b"PK\6\6") and tail[end - 20 :].startswith(b"PK\6\7"):  # large
            n_bytes = int.from_bytes(tail[end - 36 : end - 28], "little")
        file.seek(max(0, length - n_bytes - 2**16 - 100))
        n, kept = 0, b""
        while piece := file.read(2**20):
            n += (kept + piece).count(b"PK\1\2")
            kept = piece[-3:]
        return n


class ZipStore(NamedStore):
    """A zip archive. It stays open, and is opened anew in another process.

    Raises:
        InputError: If the archive is damaged, encrypted, or made to do harm: paths that lead out of it, or members that
            unpack to absurd sizes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        self._lock = threading.Lock()
        what = repr(str(path))
        try:
            if (n := count_entries(path)) > MAX_ZIP_ENTRIES:
                raise InputError(f"{what} has {n} entries; at most {MAX_ZIP_ENTRIES} are read: cut it in several.")
            members = self._open().infolist()
        except InputError:
            raise
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(
                f"{what} is not a readable zip ({' '.join(str(error).split())}); get a whole copy."
            ) from None
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise InputError(f"{what} holds files that share their bytes: refused as a zip bomb.")
        for member in members:
            name = member.filename
            if len(name) > MAX_NAME_LETTERS:
                raise InputError(f"{what} holds {name[:80]!r}..., a name of {len(name)} letters; shorten it.")
            parts = name.replace("\\", "/").split("/")
            if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
                raise InputError(f"{what} holds {name!r}, a path that leads out of it; make the zip anew without it.")
            if member.is_dir() or any(map(is_hidden, parts)):
                continue
            if member.flag_bits & 1:
                raise InputError(f"{what} is encrypted ({name!r}); unpack it with its password first.")
            size, packed = member.file_size, member.compress_size
            if size > MAX_FILE_BYTES or (size > FREE_BYTES and size > MAX_RATIO * packed):
                raise InputError(f"{what} holds {name!r}, {packed} bytes that unpack to {size}: refused as a zip bomb.")
            self._list(name)
        self.names.sort()
        for before, name in zip(self.names, self.names[1:], strict=False):
            if before == name:
                raise InputError(f"{what} holds {name!r} twice; make the zip anew with one of them.")

    def _open(self) -> zipfile.ZipFile:
        # A forked process shares the file's position with its parent, so it needs a handle of its own.
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_archive", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _archive=None, _lock=threading.Lock())

    def read(self, name: str) -> bytes:
        """Bytes of a member, at most as many as the archive's directory says.

        Raises:
            UnreadableImage: If it is damaged.
        """
        try:
            with self._lock:  # a ZipFile's count of its readers is safe in one thread only
                return self._open().read(name)
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from None

    def size(self, name: str) -> int:
        """Bytes of a member once unpacked, as the archive's directory says."""
        try:
            return self._open().getinfo(name).file_size
        except (OSError, zipfile.BadZipFile):
            return 0
