"""Hostile and broken input: what each case writes, the command that meets it, and what must come of it.

`python tests/hostile.py` runs all the cases, each in a process of its own, and says what they took at most;
`tests/test_hostile.py` runs them as tests. `python tests/hostile.py NAME ...` runs some, with all they print.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import stat
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_SECONDS = 10
MAX_BYTES = 2**30
MARKER = "CODE-HAS-RUN"
"""What the code in these files would leave behind."""
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
"""What would change a terminal's title, wipe it and colour it."""
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"

Build = Callable[[Path], list[str]]
Check = Callable[[Path, str, str], None]


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    name: str
    build: Build
    """Writes the files into an empty folder, which is where the command runs, and returns the command's words."""
    says: str
    """What the one line on standard error must hold; of a case that is neutralised, what the output must."""
    check: Check | None = None
    """Where the input is neutralised and not refused: looks at the folder, standard output and standard error."""


CASES: dict[str, Case] = {}


def case(name: str, says: str, check: Check | None = None) -> Callable[[Build], Build]:
    """Adds a case, of the function that it decorates."""

    def add(build: Build) -> Build:
        put(name, says, build, check)
        return build

    return add


def put(name: str, says: str, build: Build, check: Check | None = None) -> None:
    """Adds a case."""
    if name in CASES:
        raise ValueError(f"two cases are named {name!r}")
    CASES[name] = Case(name, build, says, check)


# --- what the cases are made of ---------------------------------------------------------------------------------------

BASE = Path()
"""Where `prepare` has trained the models that cases copy."""
SHOW = "data show {}"
SMALL = "--budget 2steps --batch-size 8 --validations 1"


def words(template: str, *values: object) -> list[str]:
    """The words of a command; a value stays one word, whatever it holds."""
    rest = list(values)
    return [str(rest.pop(0)) if word == "{}" else word for word in template.split()]


def file(name: str, content: bytes | str, says: str, template: str = SHOW, key: str = "") -> None:
    """Adds a case of one file; its name is the case's, unless the case has a key."""

    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return words(template, name)

    put(key or f"file {name}", says, build)


def files(key: str, contents: dict[str, bytes], says: str, template: str = SHOW) -> None:
    """Adds a case of a folder of files, named `set`."""

    def build(folder: Path) -> list[str]:
        for name, content in contents.items():
            (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "set" / name).write_bytes(content)
        return words(template, "set")

    put(key, says, build)


class Malice:
    """What a pickle that runs code is made of: reading it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


PICKLE = pickle.dumps(Malice())


def picture(kind: str = "png", size: tuple[int, int] = (8, 8), mode: str = "L", **options: Any) -> bytes:
    """A valid image file of noise; `size` is (width, height)."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, {"jpg": "jpeg", "tif": "tiff", "pgm": "ppm"}.get(kind, kind), **options)
    return stream.getvalue()


PNG = picture()
GOOD = {f"{number}.png": PNG for number in range(4)}


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes = b"", *, depth: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG by hand: a header that claims what it likes, chunks, and compressed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped(contents: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip, with the names as they are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return stream.getvalue()


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy file with a header of one's own."""
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npy_like(shape: str, descr: str = "'|u1'", fortran: str = "False", data: bytes = b"") -> bytes:
    """An .npy file whose header claims what it likes."""
    return npy(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}", data)


def saved(array: Any, **options: Any) -> bytes:
    """An .npy file of an array."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def idx(*sizes: int, data: bytes = b"", kind: int = 8) -> bytes:
    """An IDX file whose header claims what it likes."""
    return bytes([0, 0, kind, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes) + data


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of weights by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tar(*entries: tuple[str, bytes | None, dict[str, Any]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar; an entry without content may be a link, a device or a folder, as its fields say."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content, fields in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header of a tar that claims any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder: kind, size and time of change."""
    found = {}
    for place, subfolders, names in os.walk(folder):
        for name in [*subfolders, *names]:
            status = os.lstat(os.path.join(place, name))
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[os.path.relpath(os.path.join(place, name), folder)] = (status.st_mode, size, status.st_mtime_ns)
    return found


# --- runs ----------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Trains the models that cases copy; in a process of its own, since training and forking do not go together."""
    global BASE
    BASE = folder
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    np.savez(folder / "images.npz", images=rng.integers(0, 2, (60, 8, 8)).astype(np.uint8), labels=labels)
    np.save(folder / "points.npy", rng.normal(size=(80, 2)))
    for name, source, options in (
        ("pixel_cnn", "images.npz", ["hidden=8", "n_blocks=1"]),
        ("vae", "images.npz", ["hidden=8"]),
        ("gan", "images.npz", ["hidden=8"]),
        ("pix2pix", "images.npz", ["hidden=8"]),
        ("gaussian_mixture", "points.npy", []),
    ):
        given = ["--set", *options] if options else []
        command = [*words("fit {} {} --out {}", name, folder / source, folder / name), *given, *SMALL.split()]
        result = run_in_child(command, folder, 60)
        if result.code:
            raise SystemExit(f"{name} could not be trained:\n{result.err}")


def copy_run(folder: Path, name: str) -> Path:
    """A copy of a trained run in a folder."""
    shutil.copytree(BASE / name, folder / name)
    return folder / name


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file; what `change` returns is its new content, if that is anything."""
    values = json.loads(path.read_text())
    result = change(values)
    path.write_text(json.dumps(values if result is None else result))


def config(
    key: str, change: Callable[[dict[str, Any]], Any], says: str, template: str = "sample {}", run: str = "vae"
) -> None:
    """Adds a case of a run whose config.json was changed."""

    def build(folder: Path) -> list[str]:
        edit_json(copy_run(folder, run) / "config.json", change)
        return words(template, *[run] * template.split().count("{}"))

    put(f"config.json: {key}", says, build)


def in_run(key: str, name: str, content: bytes | str, says: str, template: str = "sample {}", run: str = "vae") -> None:
    """Adds a case of a run in which a file is replaced."""

    def build(folder: Path) -> list[str]:
        path = copy_run(folder, run) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return words(template, run)

    put(f"{name}: {key}", says, build)


# --- carrying a case out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float
    n_bytes: int
    """By how much the process grew at most."""


def run_in_child(command: list[str], cwd: Path, seconds: int = MAX_SECONDS) -> Result:
    """Runs the command in a forked process, which is killed after some seconds or at 6 GiB of addresses."""
    from triptych import cli

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                signal.alarm(seconds)
                n_pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = n_pages * resource.getpagesize() + 6 * 2**30
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                warnings.simplefilter("default")
                os.chdir(cwd)
                sys.argv = ["triptych", *command]
                try:
                    cli.main()
                    code = 0
                except SystemExit as stop:
                    code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        took = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        # A forked process begins with what its parent holds.
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        return Result(
            os.waitstatus_to_exitcode(status),
            out.read().decode("utf-8", "replace"),
            err.read().decode("utf-8", "replace"),
            took,
            max(0, usage.ru_maxrss * 1024 - held),
        )


def carry_out(one: Case) -> tuple[Result, str]:
    """Runs a case in a fresh folder: what it did, and what is wrong with that, which should be nothing."""
    whole = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder = whole / "here"
    folder.mkdir()
    try:
        command = one.build(folder)
        before = listing(whole)
        result = run_in_child(command, folder)
        after = listing(whole)
        try:
            judge(one, whole, result, before, after)
        except AssertionError as error:
            return result, f"{error}\n  command: {command}\n  out: {result.out[-600:]!r}\n  err: {result.err[-1500:]!r}"
        return result, ""
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def judge(one: Case, whole: Path, result: Result, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises AssertionError unless a case was refused, or neutralised where it may be."""
    assert not any(MARKER in name for name in after), "code from a file has run"
    assert "Traceback" not in result.err, "a traceback"
    assert result.seconds < MAX_SECONDS, f"it took {result.seconds:.1f} s"
    assert result.n_bytes < MAX_BYTES, f"it took {result.n_bytes / 2**20:.0f} MiB"
    for stream in (result.out, result.err):
        odd = sorted({letter for letter in stream if not letter.isprintable() and letter not in "\n\t"})
        assert not odd, f"control characters are printed: {odd}"
    if one.check is not None:
        assert result.code == 0, f"exit code {result.code}"
        assert one.says in result.out + result.err, f"it does not say {one.says!r}"
        one.check(whole / "here", result.out, result.err)
        return
    assert result.code == 2, f"exit code {result.code}"
    lines = result.err.strip("\n").split("\n")
    assert len(lines) == 1, f"{len(lines)} lines"
    assert lines[0].startswith("triptych: "), "no message"
    assert one.says in lines[0], f"it does not say {one.says!r}"
    assert len(lines[0]) < 2000, "a message without an end"
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    assert not changed, f"changed: {changed}"


# --- arrays: .npy and .npz --------------------------------------------------------------------------------------------

OBJECTS = saved(np.array([Malice(), 1], dtype=object), allow_pickle=True)
file("pickle.npy", PICKLE, "cannot be read as a NumPy file (the magic string")
file("objects.npy", OBJECTS, "holds Python objects")
file("fit-objects.npy", OBJECTS, "holds Python objects", "fit vae {}")
file("compare-objects.npy", OBJECTS, "holds Python objects", "compare {} --models vae")
file("sweep-objects.npy", OBJECTS, "holds Python objects", "sweep vae {} --over hidden=4,8")
file("exhibit-objects.npy", OBJECTS, "holds Python objects", "exhibit holes {}")
file("reference-objects.npy", OBJECTS, "holds Python objects", "evaluate --samples x --reference {}")
file("empty.npy", b"", "cannot be read as a NumPy file")
file("magic-only.npy", b"\x93NUMPY", "cannot be read as a NumPy file")
file("version.npy", npy("{}", version=(9, 9)), "is in version (9, 9)")
file("version-3.npy", npy_like("(4, 8, 8)").replace(b"\x01\x00", b"\x03\x00", 1), "is in version (3, 0)")
file("header-code.npy", npy(f"__import__('os').mkdir('{MARKER}')"), "damaged header")
file("header-lambda.npy", npy("{'descr': (lambda: 1)(), 'fortran_order': False, 'shape': (1,)}"), "damaged header")
file("header-missing-key.npy", npy("{'descr': '|u1', 'shape': (4, 8, 8)}"), "damaged header")
file("header-extra-key.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), 'x': 1}"), "damaged header")
file("header-list.npy", npy("[1, 2, 3]"), "damaged header")
file("header-nested.npy", npy("(" * 5000 + ")" * 5000), "damaged header")
file("header-nul.npy", npy("{'descr': '|u1\0', 'fortran_order': False, 'shape': (1,)}"), "damaged header")
file("header-long.npy", npy("{" + " " * 100_000 + "}", version=(2, 0)), "damaged header")
file("header-claims-4gib.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "cannot be read as a NumPy file")
file("terabytes.npy", npy_like("(1000000, 1000, 1000)"), "claims 1000000000000 bytes of data but holds 0")
file("overflow.npy", npy_like("(4294967296, 4294967296, 16)"), "bytes of data but holds 0")
file("negative.npy", npy_like("(-1, 8, 8)", data=bytes(64)), "claims the shape (-1, 8, 8)")
file("two-negatives.npy", npy_like("(-2, -4, 8)", data=bytes(64)), "claims the shape (-2, -4, 8)")
file("zero.npy", saved(np.zeros((0, 8, 8), np.uint8)), "it holds no items")
file("zero-width.npy", saved(np.zeros((8, 8, 0), np.uint8)), "it holds no items")
file("shape-float.npy", npy_like("(4.0, 8, 8)", data=bytes(256)), "damaged header")
file("shape-int.npy", npy_like("4", data=bytes(4)), "damaged header")
file("cut.npy", saved(np.zeros((9, 8, 8), np.uint8))[:-1], "claims 576 bytes of data but holds 575")
file("scalar.npy", saved(np.array(3)), "it holds no items")
file("one-axis-integers.npy", saved(np.arange(9)), "for points give floats")
file("five-axes.npy", saved(np.zeros((2, 2, 2, 2, 2), np.uint8)), "images are (N, H, W)")
file("two-channels.npy", saved(np.zeros((4, 2, 8, 8), np.uint8)), "with 1 or 3 channels")
file("64-axes.npy", saved(np.zeros((1,) * 64, np.uint8)), "images are (N, H, W)")
file("words.npy", saved(np.array(["a", "b"])), "has dtype <U1")
file("bytes.npy", saved(np.array([b"a", b"b"])), "has dtype |S1")
file("structured.npy", saved(np.zeros(4, [("a", "u1"), ("b", "f4")])), "has dtype [('a', 'u1'), ('b', '<f4')]")
file("hidden-objects.npy", npy_like("(4,)", "[('a', 'u1'), ('b', '|O')]", data=bytes(36)), "holds Python objects")
file("complex.npy", saved(np.zeros((4, 8, 8), complex)), "has dtype complex128")
file("dates.npy", saved(np.zeros((4, 8, 8), "datetime64[s]")), "has dtype datetime64[s]")
file("spans.npy", saved(np.zeros((4, 8, 8), "timedelta64[s]")), "has dtype timedelta64[s]")
file("void.npy", saved(np.zeros((4, 8, 8), "V7")), "has dtype |V7")
file("no-bytes.npy", npy_like("(1000000000000,)", "'|V0'"), "has dtype |V0")
file("no-letters.npy", npy_like("(1000000000000,)", "'<U0'"), "has dtype <U0")
file("subarray.npy", npy_like("(4,)", "('u1', (1000000, 1000000))"), "cannot be read as a NumPy file")
file("negative-values.npy", saved(np.full((4, 8, 8), -1, np.int8)), "has values -1 .. -1")
file("huge-values.npy", saved(np.full((4, 8, 8), 2**63, np.uint64)), "has values up to 9223372036854775808")
file("big-values.npy", saved(np.full((4, 8, 8), 70_000)), "has values up to 70000")
file("nan.npy", saved(np.full((4, 8, 8), np.nan)), "holds NaN")
file("inf.npy", saved(np.full((4, 8, 8), np.inf)), "has values inf .. inf")
file("above-one.npy", saved(np.full((4, 8, 8), 1.5)), "has values 1.5 .. 1.5")
file("nan-half.npy", saved(np.full((4, 8, 8), np.nan, np.float16)), "holds NaN")
file("one-item.npy", saved(np.zeros((1, 8, 8), np.uint8)), "is empty; give more items")
file("points-nan.npy", saved(np.array([[0.0, np.nan]] * 9)), "holds NaN, infinite or too large values")
file("points-inf.npy", saved(np.array([[0.0, -np.inf]] * 9)), "holds NaN, infinite or too large values")
file("points-large.npy", saved(np.full((9, 2), 1e300)), "holds NaN, infinite or too large values")
file("points-longdouble.npy", saved(np.full((9, 2), np.inf, np.longdouble)), "holds NaN, infinite or too large values")
file("points-wide.npy", saved(np.zeros((9, 17))), "too wide for points")
file("points-no-axis.npy", saved(np.zeros((9, 0))), "it holds no items")
file("points-integers.npy", saved(np.zeros((9, 2), int)), "for points give floats")
file("points-levels.npy", saved(np.zeros((9, 2))), "has no pixels", "data show {} --levels 4")
file("points-grey.npy", saved(np.zeros((9, 2))), "grey applies to", "data show {} --grey")
file("text.npz", b"hello", "cannot be read as a NumPy file")
file("empty.npz", zipped({}), "holds nothing; name the items 'images'")
file("pickle.npz", PICKLE, "cannot be read as a NumPy file")
file("pickled-member.npz", zipped({"images.npy": PICKLE}), "cannot be read as a NumPy file")
file("object-member.npz", zipped({"images.npy": OBJECTS}), "key 'images' holds Python objects")
file(
    "object-labels.npz",
    zipped({"images.npy": saved(np.zeros((4, 8, 8), np.uint8)), "labels.npy": OBJECTS}),
    "key 'labels' holds Python objects",
)
file(
    "object-palette.npz",
    zipped({"images.npy": saved(np.zeros((4, 8, 8), np.uint8)), "palette.npy": OBJECTS}),
    "key 'palette' holds Python objects",
)
file("unknown-keys.npz", zipped({"a.npy": PNG, ESCAPES + ".npy": PNG}), "name the items 'images'")
file("terabytes.npz", zipped({"images.npy": npy_like("(1000000, 1000, 1000)")}), "claims 1000000000000 bytes")
file("both.npz", zipped({"images.npy": PNG, "x.npy": PNG}), "holds both 'images' and 'x'")
file("labels-alone.npz", zipped({"labels.npy": PNG}), "holds the labels 'labels' but no 'images'")
file("twice.npz", zipped({"images.npy": PNG, "x": PNG}).replace(b"x", b"x"), "cannot be read as a NumPy file")
for dtype, values, says in (
    (float, [np.nan] * 9, "The labels of"),
    (float, [0.5] * 9, "The labels of"),
    (int, [-1] * 9, "are -1 .. -1"),
    (int, [2**40] * 9, "are 1099511627776"),
    (int, [0] * 8, "has 8 labels for 9 items"),
    ("U1", ["a"] * 9, "have dtype <U1"),
    (complex, [1j] * 9, "have dtype complex128"),
    (int, [[[0]]] * 9, "have shape (9, 1, 1)"),
):
    many = zipped({"images.npy": saved(np.zeros((9, 8, 8), np.uint8)), "labels.npy": saved(np.array(values, dtype))})
    file("labels.npz", many, says, key=f"labels.npz: {np.array(values, dtype).dtype} {values[0]}")
for palette, says in (
    (np.zeros((4, 4), np.uint8), "give uint8, shape (K, 3)"),
    (np.zeros((0, 3), np.uint8), "must be 2 .. 65536 colours"),
    (np.full((4, 3), 256), "must be 2 .. 65536 colours"),
    (np.full((4, 3), -1), "must be 2 .. 65536 colours"),
    (np.full((4, 3), np.nan), "give uint8, shape (K, 3)"),
    (np.zeros((2, 3), np.uint8), "has a palette of 2 colours"),
):
    many = zipped({"images.npy": saved(np.full((9, 8, 8), 3, np.uint8)), "palette.npy": saved(palette)})
    file("palette.npz", many, says, key=f"palette.npz: {palette.shape} {palette.dtype} {palette.ravel()[:1]}")


@case("npz: a bomb of zeros", "refused as a zip bomb")
def _(folder: Path) -> list[str]:
    size = 2**29
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(npy_like(f"({size // 64}, 8, 8)"))
            for _ in range(size // 2**24):
                member.write(bytes(2**24))
    return words("data show bomb.npz")


@case("npz: two names for one bomb that the header hides", "cannot be read as a NumPy file")
def _(folder: Path) -> list[str]:
    content = zipped({"images.npy": npy_like("(4, 8, 8)", data=bytes(2**26))})
    place = content.index(b"PK\x01\x02") + 24  # the size in the directory, which is a lie
    (folder / "lie.npz").write_bytes(content[:place] + struct.pack("<I", 400) + content[place + 4 :])
    return words("data show lie.npz")


@case("npz: encrypted", "is encrypted; save it without a password")
def _(folder: Path) -> list[str]:
    content = bytearray(zipped({"images.npy": saved(np.zeros((4, 8, 8), np.uint8))}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (folder / "locked.npz").write_bytes(content)
    return words("data show locked.npz")


@case("npz: unknown compression", "cannot be read as a NumPy file")
def _(folder: Path) -> list[str]:
    content = bytearray(zipped({"images.npy": saved(np.zeros((4, 8, 8), np.uint8))}))
    content[content.index(b"PK\x01\x02") + 10] = 97
    content[8] = 97
    (folder / "odd.npz").write_bytes(content)
    return words("data show odd.npz")


@case("npz: a flipped bit", "cannot be read as a NumPy file (Bad CRC-32")
def _(folder: Path) -> list[str]:
    content = bytearray(zipped({"images.npy": saved(np.zeros((4, 8, 8), np.uint8))}, zipfile.ZIP_STORED))
    content[300] ^= 1
    (folder / "flipped.npz").write_bytes(content)
    return words("data show flipped.npz")


# --- IDX --------------------------------------------------------------------------------------------------------------

file("terabytes-idx3-ubyte", idx(2**31, 2**10, 2**10), "claims 2251799813685248 bytes")
file("most-idx4-ubyte", idx(*[2**32 - 1] * 4), "bytes of data in a file of 20")
file("floats-idx3-ubyte", idx(4, 8, 8, data=bytes(1024), kind=0x0D), "holds IDX type 0x0d")
file("magic-idx3-ubyte", b"\1\2\3\4" * 9, "is not an IDX file")
file("empty-idx3-ubyte", b"", "is not an IDX file")
file("short-idx3-ubyte", b"\0\0\x08", "is not an IDX file")
file("no-axes-idx3-ubyte", b"\0\0\x08\0", "claims 0 axes")
file("255-axes-idx3-ubyte", b"\0\0\x08\xff" + bytes(1020), "claims 255 axes")
file("no-sizes-idx3-ubyte", b"\0\0\x08\3" + bytes(4), "claims 3 axes and has 4 bytes of sizes")
file("zero-idx3-ubyte", idx(0, 8, 8), "it holds no items")
file("zero-height-idx3-ubyte", idx(2**31, 0, 8), "it holds no items")
file("cut-idx3-ubyte", idx(9, 8, 8, data=bytes(570)), "claims 576 bytes of data")
file("more-idx3-ubyte", idx(9, 8, 8, data=bytes(600)), "claims 576 bytes of data but holds more")
file("labels-idx1-ubyte", idx(9, data=bytes(9)), "holds an array of 1 axes, not images")
file("pickle-idx3-ubyte", PICKLE, "is not an IDX file")
file("score-idx3-ubyte", idx(2**31, 8, 8), "claims 137438953472 bytes", "fit pixel_cnn {}")
file("bomb-idx3-ubyte.gz", gzip.compress(idx(2**20, 32, 32) + bytes(2**27)), "bytes of data in a file of")
file("more-idx3-ubyte.gz", gzip.compress(idx(4, 8, 8) + bytes(2**28)), "claims 256 bytes of data but holds more")
file("near-idx3-ubyte.gz", gzip.compress(idx(2**10, 2**8, 2**8) + bytes(2**20)), "claims 67108864 bytes of data")
file("cut-idx3-ubyte.gz", gzip.compress(idx(4, 8, 8, data=bytes(256)))[:-12], "cannot be read")
file("crc-idx3-ubyte.gz", gzip.compress(idx(4, 8, 8, data=bytes(256)))[:-8] + bytes(8), "cannot be read (CRC check")
file("magic-idx3-ubyte.gz", b"\x1f\x8b" + bytes(40), "cannot be read")
file("noise-idx3-ubyte.gz", gzip.compress(b"")[:10] + b"\xff" * 50, "cannot be read")
file("twice-idx3-ubyte.gz", gzip.compress(gzip.compress(idx(4, 8, 8, data=bytes(256)))), "is not an IDX file")
files("idx: two sets", {"a-train-images-idx3-ubyte": b"", "b-train-images-idx3-ubyte": b""}, "holds several sets")
files("idx: no training part", {"test-images-idx3-ubyte": b"", "val-images-idx3-ubyte": b""}, "has no train-images")
files(
    "idx: labels of another length",
    {"train-images-idx3-ubyte": idx(9, 2, 2, data=bytes(36)), "train-labels-idx1-ubyte": idx(8, data=bytes(8))},
    "has 8 labels for 9 items",
)
files(
    "idx: labels with terabytes",
    {"train-images-idx3-ubyte": idx(9, 2, 2, data=bytes(36)), "train-labels-idx1-ubyte": idx(2**32 - 1)},
    "claims 4294967295 bytes",
)
files(
    "idx: labels in a pickle",
    {"train-images-idx3-ubyte": idx(9, 2, 2, data=bytes(36)), "train-labels-idx1-ubyte": PICKLE},
    "train-labels-idx1-ubyte' is not an IDX file",
)


# --- image files ------------------------------------------------------------------------------------------------------


def bmp(width: int, height: int) -> bytes:
    """A BMP that claims a size."""
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def gif(width: int, height: int) -> bytes:
    """A GIF that claims a size."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"", following: int = 0) -> bytes:
    """A TIFF with the tags given: number, type, count, value."""
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + struct.pack("<I", following) + data


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF of one grey channel that claims a size."""
    tags = {256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1)}
    tags |= {262: (262, 3, 1, 1), 273: (273, 4, 1, 200), 278: (278, 4, 1, height), 279: (279, 4, 1, width * height)}
    tags |= {tag[0]: tag for tag in more}
    content = tiff(*(tags[number] for number in sorted(tags)), following=following)
    return content.ljust(200, b"\0") + bytes(min(width * height, 4096))


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    content = bytearray(picture("jpg"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    """A WebP of the extended kind that claims a canvas."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + picture("webp", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = "has more than 64 megapixels"
for kind, content, says in (
    ("png", png(60_000, 60_000), HUGE),
    ("bmp", bmp(60_000, 60_000), HUGE),
    ("gif", gif(60_000, 60_000), HUGE),
    ("tif", grey_tiff(60_000, 60_000), HUGE),
    ("jpg", jpeg(60_000, 60_000), HUGE),
    ("webp", webp(16_000, 16_000), "'bad.webp'"),
    ("ppm", b"P6 60000 60000 255\n", HUGE),
    ("pgm", b"P5 60000 60000 255\n", HUGE),
):
    files(f"images: 60,000 x 60,000 {kind}", {**GOOD, f"bad.{kind}": content}, says)
for kind in ("png", "bmp", "gif", "tif", "jpg", "webp", "ppm", "pgm"):
    whole = picture(kind, (32, 32), "L" if kind == "pgm" else "RGB")
    files(f"images: {kind} cut in half", {**GOOD, f"bad.{kind}": whole[: len(whole) // 2]}, f"'bad.{kind}'")
    files(f"images: {kind} cut in its header", {**GOOD, f"bad.{kind}": whole[:11]}, f"'bad.{kind}'")
BAD = "1 of 5 files in 'set' cannot be read: 'bad.png'"
for key, content in (
    ("width 0", png(0, 8)),
    ("height 0", png(8, 0)),
    ("bit depth 3", png(8, 8, zlib.compress(bytes(72)), depth=3)),
    ("colour type 7", png(8, 8, zlib.compress(bytes(72)), colour=7)),
    ("no palette", png(8, 8, zlib.compress(bytes(72)), colour=3)),
    ("no data", png(8, 8, b"")),
    ("data that are no deflate", png(8, 8, b"\xff" * 99)),
    (
        "an iTXt bomb",
        png(8, 8, zlib.compress(bytes(72)), before=chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2**28)))),
    ),
    ("a zTXt bomb", png(8, 8, zlib.compress(bytes(72)), before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**28))))),
    ("an ICC bomb", png(8, 8, zlib.compress(bytes(72)), before=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28))))),
    ("a chunk of 2 GiB", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(50)),
    ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n"),
    ("a pickle", PICKLE),
    ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
    ("PDF", b"%PDF-1.4\n" + bytes(100)),
    ("an icon", b"\0\0\1\0\1\0\x08\x08" + bytes(100)),
    ("nothing", b""),
):
    files(f"images: png with {key}", {**GOOD, "bad.png": content}, BAD)
files("images: tiff of unknown compression", {**GOOD, "bad.tif": grey_tiff(8, 8, (259, 3, 1, 999))}, "'bad.tif'")
files("images: tiff with a tag of 4 GiB", {**GOOD, "bad.tif": grey_tiff(8, 8, (258, 3, 2**31, 8))}, "'bad.tif'")
files("images: tiff with width 0", {**GOOD, "bad.tif": grey_tiff(0, 8)}, "'bad.tif'")
files("images: tiff without tags", {**GOOD, "bad.tif": tiff()}, "'bad.tif'")
files(
    "images: tiff with a strip beyond the file", {**GOOD, "bad.tif": grey_tiff(8, 8, (273, 4, 1, 2**31))}, "'bad.tif'"
)
files("images: bmp of negative width", {**GOOD, "bad.bmp": bmp(-8, 8)}, "'bad.bmp'")
files(
    "images: gif with a code of 200 bits",
    {**GOOD, "bad.gif": gif(8, 8).replace(b"\x02\x02\x44", b"\xc8\x02\x44")},
    "'bad.gif'",
)
files("images: ppm of text that never ends", {**GOOD, "bad.ppm": b"P6 " + b"9" * 100_000}, "'bad.ppm'")
files("images: ppm of negative size", {**GOOD, "bad.ppm": b"P6 -8 -8 255\n" + bytes(300)}, "'bad.ppm'")
files("images: ppm with largest value 0", {**GOOD, "bad.ppm": b"P6 8 8 0\n" + bytes(192)}, "'bad.ppm'")
files("images: jpeg of other kind", {**GOOD, "bad.jpg": jpeg(65_535, 1)}, "'bad.jpg'")
files("images: only a script", {"a.py": b"import os", "setup.sh": b"rm -rf /"}, "holds no images, only 2 other files")
files("images: nothing", {"x/y/z/.hidden.png": PNG}, "holds no images")
files("images: sizes differ", {**GOOD, "z.png": picture(size=(9, 8))}, "give --size")
files(
    "images: of one file a set of all sizes",
    {**GOOD, "z.png": png(8, 8, zlib.compress(bytes(72)), depth=16, colour=2)},
    "has more than 8 bits a colour",
)


@case("images: a link out of the folder", "is a link out of the folder")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "secret.png").write_bytes(PNG)
    (folder / "set" / "a.png").symlink_to("../secret.png")
    return words("data show set")


@case("images: a link to /etc/passwd", "is a link out of the folder")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").symlink_to("/etc/passwd")
    return words("fit vae set")


@case("images: a link to a folder", "is a link to a folder")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(PNG)
    (folder / "set" / "b").symlink_to("/etc")
    return words("data show set")


@case("images: a folder that links to itself", "is a link to a folder")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(PNG)
    (folder / "set" / "b").symlink_to(".")
    return words("data show set")


@case("images: a link to itself", "a.png'")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").symlink_to("a.png")
    return words("data show set")


@case("images: a link out in a folder of splits", "is a link out of the folder")
def _(folder: Path) -> list[str]:
    for name in ("train/a", "test/b"):
        (folder / "set" / name).parent.mkdir(parents=True)
        (folder / "set" / f"{name}.png").write_bytes(PNG)
    (folder / "set/train/c.png").symlink_to("/dev/zero")
    return words("data show set")


@case("images: a pipe", "'b.png' (not a regular file)")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(PNG)
    os.mkfifo(folder / "set" / "b.png")
    return words("data show set")


@case("images: a file of 600 MiB", "more than an image should")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    with open(folder / "set" / "a.png", "wb") as sparse:
        sparse.truncate(600 * 2**20)
    return words("data show set")


@case("source: a device", "is neither a file nor a folder")
def _(folder: Path) -> list[str]:
    return words("data show /dev/zero")


@case("source: a pipe", "is neither a file nor a folder")
def _(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.npy")
    return words("data show pipe.npy")


# --- dataset.json -----------------------------------------------------------------------------------------------------

for key, content, says in (
    ("deep", b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not readable as JSON"),
    ("not UTF-8", b"\xff\xfe\xfa", "is not readable as JSON"),
    ("a pickle", PICKLE, "is not readable as JSON"),
    ("a huge number", b'{"labels": [["0.png", ' + b"9" * 5000 + b"]]}", "is not readable as JSON"),
    ("a label of 10^30", b'{"labels": [["0.png", ' + b"9" * 30 + b"]]}", 'must be ["path", number from 0]'),
    ("NaN", b'{"labels": [["0.png", NaN]]}', 'must be ["path", number from 0]'),
    ("Infinity", b'{"labels": [["0.png", -Infinity]]}', 'must be ["path", number from 0]'),
    ("true", b'{"labels": [["0.png", true]]}', 'must be ["path", number from 0]'),
    ("a negative label", b'{"labels": [["0.png", -1]]}', 'must be ["path", number from 0]'),
    ("text for a label", b'{"labels": [["0.png", "1"]]}', 'must be ["path", number from 0]'),
    ("a map", b'{"labels": {"0.png": 1}}', '"labels" must be a list'),
    ("a list", b"[1, 2]", 'must be {"labels"'),
    ("a number", b"3", 'must be {"labels"'),
    ("an entry of three", b'{"labels": [["0.png", 1, 2]]}', 'must be ["path", number from 0]'),
    ("a path out", b'{"labels": [["../../etc/passwd", 1]]}', "which is not among the images"),
    ("one label twice", b'{"labels": [["0.png", 1], ["0.png", 1]]}', "two labels"),
    ("too few labels", b'{"labels": [["0.png", 1]]}', "has no label for '1.png'"),
    ("escapes", json.dumps({"labels": [[ESCAPES, 1]]}).encode(), "which is not among the images"),
    ("a surrogate", b'{"labels": [["\\ud800.png", 1]]}', "which is not among the images"),
    ("nothing", b"", "is not readable as JSON"),
    ("500 KiB of one string", b'{"labels": [["' + b"a" * 500_000 + b'", 1]]}', "which is not among the images"),
):
    files(f"dataset.json: {key}", {**GOOD, "dataset.json": content}, says)


@case("dataset.json: of 600 MiB", "more than an image should")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    for name, content in GOOD.items():
        (folder / "set" / name).write_bytes(content)
    with open(folder / "set" / "dataset.json", "wb") as sparse:
        sparse.truncate(600 * 2**20)
    return words("data show set")


@case("dataset.json: a pipe", "is not readable as JSON (not a regular file)")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    for name, content in GOOD.items():
        (folder / "set" / name).write_bytes(content)
    os.mkfifo(folder / "set" / "dataset.json")
    return words("data show set")


# --- zips -------------------------------------------------------------------------------------------------------------

OUT = "a path that leads out of it"
for key, name in (
    ("a parent", "../a.png"),
    ("a parent within", "b/../../a.png"),
    ("an absolute path", "/etc/a.png"),
    ("backslashes", "..\\..\\a.png"),
    ("a drive", "C:\\windows\\a.png"),
    ("a network path", "\\\\host\\a.png"),
):
    file("set.zip", zipped({**GOOD, name: PNG}), OUT, key=f"zip: {key}")
file("nested.zip", zipped({"inner.zip": zipped(GOOD)}), "holds no images, only 1 other files")
file("text.zip", b"no zip", "is not a readable zip")
file("pickle.zip", PICKLE, "is not a readable zip")
file("empty.zip", b"", "is not a readable zip")
file("nothing.zip", zipped({}), "holds no images")
file("cut.zip", zipped(GOOD)[:-30], "is not a readable zip")
file("directory-lost.zip", zipped(GOOD).replace(b"PK\x01\x02", b"PK\x09\x09", 1), "is not a readable zip")
file(
    "lzma.zip",
    zipped({**GOOD, "9.png": PNG}, zipfile.ZIP_LZMA).replace(b"\x09\x04\x05\x00", b"\x09\x04\x05\xff"),
    "files in 'lzma.zip' cannot be read",
)
file("bz2.zip", zipped({"a.png": PNG}, zipfile.ZIP_BZIP2).replace(b"1AY&SY", b"1AY&SZ"), "cannot be read")
file("crc.zip", zipped(GOOD, zipfile.ZIP_STORED).replace(PNG[-20:], PNG[-20:-1] + b"\0", 1), "Bad CRC-32")
file("json.zip", zipped({**GOOD, "dataset.json": b'{"labels": ' + b"[" * 99_999}), "is not readable as JSON")


@case("zip: a link as an entry", "cannot be read: 'link.png' (not an image of a known format)")
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return words("data show set.zip")


@case("zip: an image that unpacks to 10 GiB", "refused as a zip bomb")
def _(folder: Path) -> list[str]:
    content = zipped({**GOOD, "a.png": bytes(10**6)})
    place = content.rindex(b"PK\x01\x02") + 24
    (folder / "set.zip").write_bytes(content[:place] + struct.pack("<I", 2**32 - 2) + content[place + 4 :])
    return words("data show set.zip")


@case("zip: an image that unpacks to 400 MiB", "refused as a zip bomb")
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.png", "w") as member:
            for _ in range(25):
                member.write(bytes(2**24))
    return words("data show set.zip")


@case("zip: dataset.json that unpacks to 60 MiB of brackets", "is not readable as JSON")
def _(folder: Path) -> list[str]:
    (folder / "set.zip").write_bytes(zipped({**GOOD, "dataset.json": b"[" * (60 * 2**20)}))
    return words("data show set.zip")


@case("zip: encrypted", "is encrypted ('0.png')")
def _(folder: Path) -> list[str]:
    content = bytearray(zipped(GOOD))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (folder / "set.zip").write_bytes(content)
    return words("data show set.zip")


@case("zip: one name twice", "holds '0.png' twice")
def _(folder: Path) -> list[str]:
    (folder / "set.zip").write_bytes(zipped({**GOOD, "z.png": PNG}).replace(b"z.png", b"0.png"))
    return words("data show set.zip")


@case("zip: a million entries", "holds '' twice")
def _(folder: Path) -> list[str]:
    n, entry = 1_000_000, zipped({"a.png": PNG})
    start = entry.index(b"PK\x01\x02")
    directory = entry[start : entry.index(b"PK\x05\x06")]
    with open(folder / "set.zip", "wb") as out:
        out.write(entry[:start] + directory * n)
        out.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, len(directory) * n, start))
        out.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory) * n, 1))
        out.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0))
    return words("data show set.zip")


@case("zip: overlapping entries", "cannot be read: 'a.png'")
def _(folder: Path) -> list[str]:
    content = zipped({"a.png": PNG, "b.png": PNG}, zipfile.ZIP_STORED)
    second = content.rindex(b"PK\x01\x02")
    first = content.index(b"PK\x01\x02")
    # Both entries of the directory lead to the first file, whose size is that of the two.
    both = bytearray(content)
    both[first + 20 : first + 28] = struct.pack("<II", len(PNG) * 2, len(PNG) * 2)
    both[18:26] = struct.pack("<II", len(PNG) * 2, len(PNG) * 2)
    assert second > first
    (folder / "set.zip").write_bytes(both)
    return words("data show set.zip")


# --- main -------------------------------------------------------------------------------------------------------------


def start(folder: Path) -> None:
    """Imports what the verbs do, so that no case pays for it, and trains the models."""
    import lightning_fabric  # noqa: F401

    import triptych.comparison
    import triptych.completion
    import triptych.data.show
    import triptych.sweeping
    import triptych.training.trainer
    import triptych.translation  # noqa: F401

    prepare(folder)


def serve(folder: Path) -> None:
    """Carries out the cases whose names are read, and answers each with what is wrong."""
    answers = os.fdopen(os.dup(1), "w")
    start(folder)
    for line in sys.stdin:
        answers.write(json.dumps(carry_out(CASES[json.loads(line)])[1]) + "\n")
        answers.flush()


def main(names: list[str]) -> int:
    """Runs all the cases, or those whose names hold one of the words given; 1 if something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        if names == ["--serve"]:
            serve(Path(folder))
            return 0
        start(Path(folder))
        chosen = [one for one in CASES.values() if not names or any(name in one.name for name in names)]
        results, n_wrong, began = [], 0, time.monotonic()
        for one in chosen:
            result, wrong = carry_out(one)
            results.append((one, result))
            if wrong:
                n_wrong += 1
                print(f"{one.name}: {wrong}", flush=True)
            elif names:
                print(f"{one.name}: {result.err.strip() or result.out.strip()}")
        largest = max(results, key=lambda pair: pair[1].n_bytes)
        longest = max(results, key=lambda pair: pair[1].seconds)
        print(
            f"{len(chosen) - n_wrong} of {len(chosen)} refused or neutralised in {time.monotonic() - began:.0f} s; most"
            f" memory {largest[1].n_bytes / 2**20:.0f} MiB ({largest[0].name}); longest {longest[1].seconds:.1f} s"
            f" ({longest[0].name})"
        )
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
