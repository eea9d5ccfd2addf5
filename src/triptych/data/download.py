"""Well-known sets, fetched from their published addresses into a folder of this machine, and only when asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from triptych.errors import InputError, nearest_name

Progress = Callable[[str, int, int], object]
"""Called with a file's name, the bytes that are here, and all its bytes."""

SCHEMES = ("https",)
"""What addresses, and redirects from them, may begin with; the tests' own server has no certificate."""
SILENCE_SECONDS = 30.0
"""A server that sends nothing for so long is given up."""
PACE_SECONDS, PACE_BYTES = 60.0, 2**16
"""So is one that sends fewer bytes than this in that time."""
N_TRIES = 3
"""Connections to one address that bring less than `ADVANCE_BYTES` each, before the next address is tried."""
ADVANCE_BYTES = 2**20
WAIT_SECONDS = 1.0
"""Before the second try; doubled for each one after it."""
_PIECE = 2**16
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be others a moment later."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as it was published."""

    name: str
    n_bytes: int
    sha256: str
    urls: tuple[str, ...]
    """Where it lies, in the order to try."""


def _files(folders: tuple[str, ...], *files: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(*file, tuple(folder + file[0] for folder in folders)) for file in files)


# Sizes and SHA-256 are those of TensorFlow Datasets, url_checksums/NAME.txt; a second source is named at each set.
SETS: dict[str, tuple[RemoteFile, ...]] = {
    # SHA-256 also in torchvision's prototype datasets; torchvision names the second address.
    "mnist": _files(
        ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    # SHA-256 also in torchvision's prototype datasets. Bucket and repository are the authors'; the address that is
    # mostly given for the bucket has no https.
    "fashion_mnist": _files(
        (
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        ("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    # SHA-256 also in MLDatasets.jl and GoMLX. The first address redirects to the second.
    "cifar10": _files(
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        ("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ),
    # SHA-256 also in MLDatasets.jl and GoMLX.
    "cifar100": _files(
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        ("cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    ),
    # The public fixed draw (Larochelle & Murray 2011). Images of another copy, written as this text, have these sums.
    "binarized_mnist": _files(
        ("https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",),
        ("binarized_mnist_train.amat", 78400000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        ("binarized_mnist_valid.amat", 15680000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        ("binarized_mnist_test.amat", 15680000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    ),
}
"""What can be fetched, by name."""


def cache_folder() -> Path:
    """Where sets are kept: `TRIPTYCH_HOME`, else `~/.cache/triptych`.

    Raises:
        InputError: If there is no home folder either.
    """
    return _folder(os.environ.get("TRIPTYCH_HOME") or "~/.cache/triptych", "set TRIPTYCH_HOME to a folder")


def _folder(text: str | Path, else_do: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # of an unknown user
        raise InputError(f"There is no home folder for {str(text)!r}; {else_do}.") from None


def find_downloaded(name: str) -> Path:
    """The folder of a set that was downloaded into `cache_folder`.

    Raises:
        InputError: If it is not there, with the command that fetches it.
    """
    folder = cache_folder() / name
    files = SETS[name]
    if all(os.path.isfile(folder / file.name) and _size(folder / file.name) == file.n_bytes for file in files):
        return folder
    beside = f" For the one in this folder write ./{name}." if Path(name).exists() else ""
    size = _amount(sum(file.n_bytes for file in files))
    raise InputError(f"{name} is not here; triptych data download {name} fetches it ({size}).{beside}")


def download_data(name: str, to: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """Fetches a well-known set from where it is published, and checks the SHA-256 of every file.

    `load_data(name)` reads it from then on. Nothing else in Triptych uses the network. What is here already and whole
    is not fetched again, and what was cut short is gone on with. A file has its name only when it is whole.

    Arguments:
        name: One of "mnist", "fashion_mnist", "cifar10", "cifar100" and "binarized_mnist".
        to: Folder to make the set's folder in; by default that of the environment variable TRIPTYCH_HOME, or
            ~/.cache/triptych, where `load_data` looks. Elsewhere, give `load_data` the path that is returned.
        progress: Called with a file's name, the bytes that are here and all its bytes, again and again.
    Returns:
        The set's folder.
    Raises:
        InputError: If there is no such set, an address does not answer or sends something else, there is no room, or
            another process is fetching the set.
    """
    if name not in SETS:
        raise InputError(f"{name!r} cannot be downloaded; these can: {', '.join(SETS)}.{nearest_name(name, SETS)}")
    folder = (cache_folder() if to is None else _folder(to, "give the whole path with --to")) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, name):
            for file in SETS[name]:
                _fetch(file, folder, progress or (lambda *_: None))
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}); give another folder with --to."
        ) from None
    return folder


@contextlib.contextmanager
def _held(folder: Path, name: str) -> Iterator[None]:
    """Keeps other processes from fetching into a folder; the system lets go of it when this one ends, however it ends.

    The lock file stays, since one that is removed could be held twice.
    """
    lock = os.open(folder / ".download.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 4096, 0).decode("utf-8", "replace").strip() or "another process"
            raise InputError(f"{name} is being downloaded into {folder} by {holder}; wait until it ends.") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


class _Cut(Exception):
    """A transfer ended early; another try may go on with it."""


class _Unusable(Exception):
    """An address is of no use for a file."""


def _fetch(file: RemoteFile, folder: Path, progress: Progress) -> None:
    """Sees that a whole file is in a folder.

    Raises:
        InputError: If no address has it, or there is no room.
        OSError: If the folder cannot be written.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    if part.is_symlink():  # Writing would follow it.
        part.unlink()
    if path.is_file() and _sha256(path) == file.sha256:
        progress(file.name, file.n_bytes, file.n_bytes)
        return
    free = shutil.disk_usage(folder).free
    if free < file.n_bytes - _size(part):
        raise InputError(
            f"{folder} has {_amount(free)} left and {file.name} takes {_amount(file.n_bytes)}; make room, or give"
            " another folder with --to."
        )
    problems = []
    for url in file.urls:
        try:
            _fetch_from(url, file, part, progress)
        except _Unusable as problem:
            problems.append(f"{urlsplit(url).netloc} {problem}")
            continue
        os.replace(part, path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)  # The rename is durable only now.
        finally:
            os.close(directory)
        return
    kept = f" The {_amount(_size(part))} that came are kept." if _size(part) else ""
    raise InputError(f"{file.name} could not be fetched: {'; '.join(problems)}. Try again later.{kept}")


def _fetch_from(url: str, file: RemoteFile, part: Path, progress: Progress) -> None:
    """Completes a part from an address, with several connections if need be, and checks it.

    A part may stem from another day or another address. Should the whole have another checksum, it is fetched once more
    from its beginning, which a comparison of entity tags (If-Range) could not settle across addresses.

    Raises:
        _Unusable: If that fails.
    """
    n_tries, anew = 0, False
    while True:
        had = _size(part)
        try:
            began_with = _receive(url, file, part, progress) if had != file.n_bytes else had
        except _Cut as cut:
            n_tries = 1 if _size(part) - had >= ADVANCE_BYTES else n_tries + 1
            if n_tries == N_TRIES:
                raise _Unusable(str(cut)) from None
            time.sleep(WAIT_SECONDS * 2 ** (n_tries - 1))
            continue
        if _sha256(part) == file.sha256:
            return
        part.unlink()
        if began_with == 0 or anew:
            raise _Unusable("sends something else (its checksum is not the published one); it was removed")
        anew = True


def _receive(url: str, file: RemoteFile, part: Path, progress: Progress) -> int:
    """Goes on with a part by one connection, to the end.

    Returns:
        The bytes of the part that were kept; 0 if the server began anew.
    Raises:
        _Cut: If it ended early.
        _Unusable: If the server has no such file.
    """
    if urlsplit(url).scheme not in SCHEMES:
        raise _Unusable(f"is not reached by {SCHEMES[0]}")
    had = _size(part)
    headers = {"User-Agent": "triptych", "Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        with _talking():
            answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=SILENCE_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and had:  # The server's file ends before our part does.
            part.unlink()
            raise _Cut("has a shorter file") from None
        if error.code in _PASSING:
            raise _Cut(f"answers with status {error.code}") from None
        raise _Unusable(f"answers with status {error.code}") from None
    with answer:
        start = _start_of(answer, had, file)
        _copy(answer, part, start, file, progress)
    return start


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Turns what goes wrong in a connection, but for answers that are errors, into `_Cut`."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _Cut(f"sends nothing for {SILENCE_SECONDS:g} seconds") from None
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise _Cut(f"cannot be reached ({' '.join(told.split())})") from None


def _start_of(answer: Any, had: int, file: RemoteFile) -> int:
    """The place in the file that an answer begins at: `had`, or 0 if the server does not send parts.

    Raises:
        _Unusable: If the answer is not (the rest of) a file of the right size.
    """
    total: str | None = answer.headers.get("Content-Length")
    start = 0
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != had:
            raise _Unusable("answers with another part of the file than was asked for")
        start, total = had, None if match[2] == "*" else match[2]
    elif answer.status != 200:
        raise _Unusable(f"answers with status {answer.status}")
    if total is not None and total != str(file.n_bytes):
        raise _Unusable(f"has a file of {total} bytes, not of {file.n_bytes}")
    return start


def _copy(answer: Any, part: Path, start: int, file: RemoteFile, progress: Progress) -> None:
    """Writes what an answer brings into a part from a place on, never past the size of the file.

    Raises:
        _Cut: If the answer ends early or is too slow; what came is kept.
        _Unusable: If it goes on past the end; the part is removed.
        InputError: If the disk is full; the part is removed.
    """
    n = start
    began, began_at = time.monotonic(), n
    with open(part, "r+b" if part.exists() else "w+b", buffering=0) as stream:
        stream.truncate(start)
        stream.seek(start)
        while True:
            with _talking():
                piece = answer.read1(min(_PIECE, file.n_bytes - n + 1))
            if not piece:
                break
            if n + len(piece) > file.n_bytes:
                part.unlink()
                raise _Unusable(f"sends more than the {file.n_bytes} bytes of the file; it was removed")
            with _room(part, file):
                rest = memoryview(piece)
                while rest:
                    rest = rest[stream.write(rest) :]
            n += len(piece)
            progress(file.name, n, file.n_bytes)
            if time.monotonic() - began > PACE_SECONDS:
                if n - began_at < PACE_BYTES and n < file.n_bytes:
                    raise _Cut(f"sent {n - began_at} bytes in {PACE_SECONDS:g} seconds")
                began, began_at = time.monotonic(), n
        with _room(part, file):
            os.fsync(stream.fileno())
    if n < file.n_bytes:
        raise _Cut(f"ended after {n} of {file.n_bytes} bytes")


@contextlib.contextmanager
def _room(part: Path, file: RemoteFile) -> Iterator[None]:
    """Removes a part that its disk has no room for.

    Raises:
        InputError: Then.
    """
    try:
        yield
    except OSError as error:
        part.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        told = "there is no room for it" if full else error.strerror
        raise InputError(
            f"{part} cannot be written ({told}); {file.name} takes {_amount(file.n_bytes)}. Make room, or give another"
            " folder with --to."
        ) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses as safe as the first; never to files of this machine."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        target = urljoin(req.full_url, headers.get("Location", ""))
        if urlsplit(target).scheme not in SCHEMES:
            fp.close()
            raise _Unusable(f"redirects to {urlsplit(target).scheme}:, which is not followed")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """What opens addresses: urllib's, less its handlers of files, FTP and data URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _amount(n_bytes: int) -> str:
    """In words: 11 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.{int(n_bytes < 10 * scale)}f} {unit}"
    return f"{n_bytes} bytes"
