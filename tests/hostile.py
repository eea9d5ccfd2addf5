"""Hostile and broken input: what each case writes, the command that meets it, and what must come of it.

`python tests/hostile.py` runs all the cases, each in a process of its own, and says what they took at most;
`tests/test_hostile.py` runs them as tests. `python tests/hostile.py NAME ...` runs some, with all they print.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
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
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
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
    """Of the processor."""
    n_bytes: int
    """By how much the process grew at most."""


def run_in_child(command: list[str], cwd: Path, seconds: int = MAX_SECONDS) -> Result:
    """Runs the command in a forked process, which is killed when it waits too long, or at 6 GiB of addresses."""
    from triptych import cli

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        telling, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                signal.alarm(6 * seconds)  # of the clock, while other programs run; what counts are its own seconds
                n_pages, n_held, *_ = map(int, Path("/proc/self/statm").read_text().split())
                os.write(told, str(n_held).encode())  # A forked process begins with much of what its parent holds.
                limit = n_pages * resource.getpagesize() + 6 * 2**30
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                os.setsid()  # Nothing that a case does reaches the terminal.
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
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
        out.seek(0)
        err.seek(0)
        os.close(told)
        held = int(os.read(telling, 100) or 0) * resource.getpagesize()
        os.close(telling)
        return Result(
            os.waitstatus_to_exitcode(status),
            out.read().decode("utf-8", "replace"),
            err.read().decode("utf-8", "replace"),
            usage.ru_utime + usage.ru_stime,
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
    lines = [line for line in result.err.strip("\n").split("\n") if not line.startswith("measuring ")]
    assert len(lines) == 1, f"{len(lines)} lines"
    assert lines[0].startswith("triptych: "), "no message"
    assert one.says in lines[0], f"it does not say {one.says!r}"
    assert len(lines[0]) < 2000, "a message without an end"
    # The lock that a training holds stays behind, and a folder that was made and taken away changes the one around it.
    differ = {name for name in {*before, *after} if before.get(name) != after.get(name) and "run.lock" not in name}
    changed = sorted(name for name in differ if (before.get(name) or (0,))[:2] != (after.get(name) or (0,))[:2])
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
file("overflow.npy", npy_like("(4294967296, 4294967296, 16)"), "claims the shape (4294967296, 4294967296, 16)")
file("negative.npy", npy_like("(-1, 8, 8)", data=bytes(64)), "claims the shape (-1, 8, 8)")
file("two-negatives.npy", npy_like("(-2, -4, 8)", data=bytes(64)), "claims the shape (-2, -4, 8)")
file("zero.npy", saved(np.zeros((0, 8, 8), np.uint8)), "it holds no items")
file("zero-width.npy", saved(np.zeros((8, 8, 0), np.uint8)), "it holds no items")
file("shape-float.npy", npy_like("(4.0, 8, 8)", data=bytes(256)), "damaged header")
file("shape-int.npy", npy_like("4", data=bytes(4)), "damaged header")
for shape in (f"({2**70}, 0)", f"(0, {2**70})", "(True, 8, 8)", f"({2**40}, {2**40}, 0)"):
    odd = npy_like(shape, data=bytes(64))
    file("shape.npy", odd, f"claims the shape {shape}", key=f"shape.npy: {shape}")
    file("shape.npz", zipped({"images.npy": odd}), f"key 'images' claims the shape {shape}", key=f"shape.npz: {shape}")
    file("y.npz", zipped({"x.npy": saved(np.zeros(9)), "y.npy": odd}), "'y' claims", key=f"npz: labels of {shape}")
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
file("points-far-off.npy", saved(1e5 + np.linspace(0, 1e-3, 60).reshape(30, 2)), "tells apart in")
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
    archive = zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("images.npy", "w", force_zip64=True) as member:
        member.write(npy_like(f"({size // 64}, 8, 8)"))
        for _ in range(size // 2**24):
            member.write(bytes(2**24))
    return words("data show bomb.npz")


file("many.npz", zipped({f"{number}.npy": b"" for number in range(10_001)}), "has 10001 entries; at most 10000")


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
file("full-idx3-ubyte.gz", gzip.compress(idx(2**17, 32, 32) + bytes(2**27)), "bytes of data in a file of")
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


LINK = "is a link out of the folder"


def link_out(key: str, name: str, others: dict[str, bytes], template: str = SHOW) -> None:
    """Adds a case of a folder, named `set`, in which a file is a link out, of which nothing is to be told."""

    def build(folder: Path) -> list[str]:
        (folder / "set").mkdir()
        for other, content in others.items():
            (folder / "set" / other).write_bytes(content)
        (folder / "secret").write_bytes(b"SECRET" * 99)
        (folder / "set" / name).symlink_to("../secret")
        return words(template, "set")

    put(f"{key}: a link out of the folder", f"{name}' {LINK}", build)


LINKED = idx(9, 2, 2, data=bytes(36))
link_out("idx: images", "train-images-idx3-ubyte", {})
link_out("idx: labels", "train-labels-idx1-ubyte", {"train-images-idx3-ubyte": LINKED})
link_out(
    "idx: labels of one file",
    "train-labels-idx1-ubyte",
    {"train-images-idx3-ubyte": LINKED},
    "data show set/train-images-idx3-ubyte",
)


# --- the text files of binary MNIST, and CIFAR's archive --------------------------------------------------------------

AMAT = [f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")]
for key, content in (
    ("text", b"hello"),
    ("a pickle", PICKLE),
    ("a number above 1", b"2 " * 783 + b"2\n"),
    ("commas", b"1," * 783 + b"1\n"),
    ("no end of line", b"1 " * 784),
    ("nothing", b""),
):
    files(f"amat: {key}", dict.fromkeys(AMAT, content), "is not lines of 784 zeros and ones")
files("amat: a part missing", {AMAT[0]: b"1 " * 783 + b"1\n"}, "binarized_mnist_valid.amat' is missing")


@case("amat: of a gibibyte and a half", "is not lines of 784 zeros and ones")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    for name in AMAT:
        with open(folder / "set" / name, "wb") as sparse:
            sparse.truncate(1568 * 2**20)
    return words("data show set")


for number, part in enumerate(AMAT):
    link_out(f"amat: part {number}", part, dict.fromkeys(AMAT[:number], b"1 " * 783 + b"1\n"))
CIFAR = "cifar-10-binary.tar.gz"
BATCH = "data_batch_1.bin"
for key, content, says in (
    ("text", b"hello", "cannot be read"),
    ("a bomb", gzip.compress(bytes(2**28)), "lacks data_batch_1.bin"),
    ("a device", gzip.compress(tar((BATCH, None, {"type": tarfile.CHRTYPE}))), "is not one file of 30730000 bytes"),
    (
        "a link",
        gzip.compress(tar((BATCH, None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}))),
        "is not one file of 30730000 bytes",
    ),
    ("a batch cut short", gzip.compress(tar_header(BATCH, 30_730_000) + bytes(1024)), "cannot be read"),
    ("a batch of a pickle", gzip.compress(tar((BATCH, PICKLE, {}))), "is not one file of 30730000 bytes"),
    ("a size below 0", gzip.compress(tar_header(BATCH, -5) + bytes(1024)), "is not one file of 30730000 bytes"),
    ("a name of 2 GiB", gzip.compress(tar_header("././@LongLink", 2**31, b"L") + bytes(2**24)), "cannot be read"),
    (
        "holes that are no numbers",
        gzip.compress(
            tar_header("pax", 512, b"x")
            + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.map=a,b,c,d".ljust(512, b"\0")
            + tar(("x", b"", {}))
        ),
        "cannot be read",
    ),
):
    file(CIFAR, content, says, key=f"cifar: {key}")


link_out("cifar", CIFAR, {})


@case("cifar: a pipe", f"{CIFAR}' is not a regular file")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    os.mkfifo(folder / "set" / CIFAR)
    return words("data show set")


@case("cifar: a folder", f"{CIFAR}' is not a regular file")
def _(folder: Path) -> list[str]:
    (folder / "set" / CIFAR).mkdir(parents=True)
    return words("data show set")


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


@case("images: a JPEG of 400 passes over 64 megapixels", "a JPEG of 406 scans")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    stream = io.BytesIO()
    Image.new("L", (8000, 8000)).save(stream, "jpeg", progressive=True)
    content = stream.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    (folder / "set" / "bad.jpg").write_bytes(content[:-2] + scan * 400 + content[-2:])
    return words("data show set")


@case("images: 64 megapixels that are transparent", "is 8000x8000")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(PNG)
    Image.new("LA", (8000, 8000), (1, 2)).save(folder / "set" / "b.png", compress_level=1)
    return words("data show set")


@case("images: 300 folders in each other", "in more than 200 folders")
def _(folder: Path) -> list[str]:
    deep = folder / "set" / "/".join("a" * 300)
    deep.mkdir(parents=True)
    (deep / "a.png").write_bytes(PNG)
    return words("data show set")


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


@case("dataset.json: of 600 MiB", "has 629145600 bytes; at most 16777216 are read")
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
    archive = zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.png", "w") as member:
        for _ in range(25):
            member.write(bytes(2**24))
    return words("data show set.zip")


@case("dataset.json: 15 MiB of maps", 'must be ["path", number from 0]')
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    for name, content in GOOD.items():
        (folder / "set" / name).write_bytes(content)
    (folder / "set" / "dataset.json").write_bytes(b'{"labels": [{}' + b",{}" * (5 * 2**20) + b"]}")
    return words("data show set")


@case("zip: dataset.json that unpacks to 15 MiB of brackets", "is not readable as JSON")
def _(folder: Path) -> list[str]:
    (folder / "set.zip").write_bytes(zipped({**GOOD, "dataset.json": b"[" * (15 * 2**20)}))
    return words("data show set.zip")


@case("zip: dataset.json that unpacks to 60 MiB of brackets", "at most 16777216 are read")
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


@case("zip: a million entries", "share their bytes: refused as a zip bomb")
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


@case("zip: a thousand files in the same bytes", "share their bytes: refused as a zip bomb")
def _(folder: Path) -> list[str]:
    inner = bytes(2**24)
    packed = zlib.compress(inner, 9)[2:-4]
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), len(inner), 8, 0)
    content, length, total, entries = header + b"0000.png" + packed, len(packed), len(inner), []
    for number in range(1, 1000):  # each file begins with the header of the one before, as bytes that are not packed
        entries.append((length, total))
        length, total = length + len(header) + 8 + 5, total + len(header) + 8
        outer = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, length, total, 8, 0) + b"%04d.png" % number
        quoted = len(header) + 8
        content = outer + struct.pack("<BHH", 0, quoted, quoted ^ 0xFFFF) + content
    entries.append((length, total))
    directory, place = b"", 0
    for number, (length, total) in reversed(list(enumerate(entries))):
        fields = (20, 20, 0, 8, 0, 0, 0, length, total, 8, 0, 0, 0, 0, 0, place)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + b"%04d.png" % number
        place += len(header) + 8 + 5
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1000, 1000, len(directory), len(content), 0)
    (folder / "set.zip").write_bytes(content + directory + end)
    return words("data show set.zip")


file("long.zip", zipped({"a/" * 30_000 + "a.png": PNG}), "a name of 60005 letters", key="zip: a name of 60,000 letters")


# --- WebDataset shards ------------------------------------------------------------------------------------------------

SAMPLES = tuple((f"{number}.png", PNG, {}) for number in range(4))
for key, entry, says in (
    ("a symbolic link", ("x.png", None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), "holds 'x.png', a link"),
    ("a hard link", ("x.png", None, {"type": tarfile.LNKTYPE, "linkname": "0.png"}), "holds 'x.png', a link"),
    ("a device", ("x.png", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}), "holds 'x.png', a device"),
    ("a disk", ("x.png", None, {"type": tarfile.BLKTYPE}), "holds 'x.png', a device"),
    ("a pipe", ("x.png", None, {"type": tarfile.FIFOTYPE}), "holds 'x.png', a pipe"),
    ("an entry of unknown kind", ("x.png", b"", {"type": b"Z"}), "an entry of unknown kind"),
    ("an absolute path", ("/etc/x.png", PNG, {}), OUT),
    ("a parent", ("../x.png", PNG, {}), OUT),
    ("backslashes", ("..\\x.png", PNG, {}), OUT),
    ("a label that is text", ("x.cls", b"three", {}), "holds 'three'; it must be a whole number from 0"),
    ("a label with escapes", ("x.cls", ESCAPES.encode(), {}), "it must be a whole number from 0"),
    ("a label below 0", ("x.cls", b"-1", {}), "holds '-1'"),
    ("a label of 10^9 digits", ("x.cls", b"9" * 2**20, {}), "it must be a whole number from 0"),
    ("a label of 2^31", ("x.cls", b"2147483648", {}), "it must be a whole number from 0"),
    ("a label not in ASCII", ("x.cls", b"\xff\xff", {}), "cannot be read as a label"),
    ("a large label", ("x.json", b" " * (2**20 + 1), {}), "more than a label should"),
    ("a JSON of brackets", ("x.json", b"[" * 100_000, {}), "cannot be read as a label"),
    ("a JSON of a huge number", ("x.json", b'{"label": ' + b"9" * 9999 + b"}", {}), "cannot be read as a label"),
    ("a JSON pickle", ("x.json", PICKLE, {}), "cannot be read as a label"),
    ("a JSON with a label of 10^20", ("x.json", b'{"label": 100000000000000000000}', {}), "whole number from 0"),
    ("two images of a sample", ("3.jpg", PNG, {}), "two images of the one sample '3'"),
    ("a scattered sample", ("0.txt", b"", {}), "apart from other files of that sample"),
    ("a pickle as image", ("x.png", PICKLE, {}), "'evil.tar/x' (not an image of a known format)"),
):
    file("evil.tar", tar(*SAMPLES, entry), says, key=f"tar: {key}")
WHOLE = tar(*SAMPLES)
for key, content, says in (
    ("cut short", WHOLE[:1200], "it was cut short"),
    ("cut in a header", WHOLE[: 1024 + 100], "it was cut short"),
    ("a size of 8 GiB", tar_header("x.png", 8 * 2**30), "it was cut short"),
    ("a size of 2^80", tar_header("x.png", 2**80), "it was cut short"),
    ("a size below 0", tar_header("x.png", -5), "it was cut short"),
    ("a name of 1 GiB", tar_header("././@LongLink", 2**30, b"L") + bytes(1024), "it was cut short"),
    ("a name of 1 MiB", tar_header("././@LongLink", 2**20, b"L") + bytes(2**21), "has a name or header of 1048576"),
    ("a header of 1 MiB", tar_header("pax", 2**20, b"x") + bytes(2**21), "has a name or header of 1048576"),
    (
        "a damaged extended header",
        tar_header("pax", 512, b"x") + b"9999 path=x\n".ljust(512, b"\0") + WHOLE,
        "has a damaged header",
    ),
    (
        "an extended header that counts 0",
        tar_header("pax", 512, b"x") + b"0 path=x\n".ljust(512, b"\0") + WHOLE,
        "has a damaged header",
    ),
    ("an extended path out", tar_header("pax", 20, b"x") + b"20 path=../../x.png\n".ljust(512, b"\0") + WHOLE, OUT),
    (
        "an extended size",
        tar_header("pax", 512, b"x") + b"20 size=99999999999\n".ljust(512, b"\0") + WHOLE,
        "with holes or of huge size",
    ),
    ("a file with holes", tar_header("x.png", 0, b"S") + WHOLE, "a file with holes"),
    ("a flipped bit in a header", WHOLE[:1030] + bytes([WHOLE[1030] ^ 1]) + WHOLE[1031:], "is damaged after"),
    ("an image of 513 MiB", tar_header("x.png", 513 * 2**20), "it was cut short"),
    ("no tar", b"x" * 5000, "is no tar file"),
    ("a pickle", PICKLE, "is no tar file"),
    ("nothing", b"", "is empty"),
    ("gzip", gzip.compress(WHOLE), "is compressed"),
    ("bzip2", b"BZh9" + bytes(600), "is compressed"),
    ("zstd", b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed"),
    ("two joined", WHOLE + WHOLE, "goes on after its end"),
    ("no image", tar(("a.txt", b"", {})), "holds no samples with an image"),
):
    file("evil.tar", content, says, key=f"tar: {key}")
file("evil.tar.gz", gzip.compress(bytes(2**26)), "is compressed", key="tar: a bomb of gzip")
put(
    "tar: braces of a billion shards",
    "at most 100000 shards",
    lambda folder: words("fit vae {}", "a-{0..999999999}.tar"),
)
put("tar: braces of a trillion shards", "shards", lambda folder: words("fit vae {}", "{0..999999}-{0..999999}.tar"))
put("tar: 80 braces", "A path has 80 braces", lambda folder: words("data show {}", "a{0..1}/" * 80 + "x.tar"))
put("tar: braces of shards that are not there", "not there", lambda folder: words("data show {}", "{00000..99999}.tar"))
put("tar: braces within braces", "braces within braces", lambda folder: words("fit vae {}", "{a,{b,c}}.tar"))
put("tar: braces down", "in rising order", lambda folder: words("data show {}", "{9..1}.tar"))


@case("tar: a sparse file of a terabyte", "it was cut short")
def _(folder: Path) -> list[str]:
    with open(folder / "evil.tar", "wb") as sparse:
        sparse.write(tar_header("x.png", 2**41))
        sparse.truncate(2**40)
    return words("data show evil.tar")


@case("tar: an image of 513 MiB that is there", "more than an image should")
def _(folder: Path) -> list[str]:
    with open(folder / "evil.tar", "wb") as sparse:
        sparse.write(tar_header("x.png", 513 * 2**20))
        sparse.truncate(2**30)
    return words("data show evil.tar")


@case("tar: a link out of a folder of shards", "is a link out of the folder")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "a.tar").write_bytes(WHOLE)
    (folder / "set" / "a.tar").symlink_to("../a.tar")
    return words("data show set")


@case("tar: a pipe in a folder of shards", "b.tar' is not a regular file")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.tar").write_bytes(WHOLE)
    os.mkfifo(folder / "set" / "b.tar")
    return words("data show set")


@case("tar: a link to nothing in a folder of shards", "a.tar' is not a regular file")
def _(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    (folder / "set" / "a.tar").symlink_to("b.tar")
    return words("data show set")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """A checkpoint whose checksum holds: anybody can write one."""
    import hashlib

    return content + b"sha256:" + hashlib.sha256(content).digest()


def torch_saved(value: Any) -> bytes:
    """A file of torch.save, pickles and all."""
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def checkpoint(
    key: str, change: Callable[[bytes], bytes], says: str, hows: tuple[str, ...] = ("resume", "fork")
) -> None:
    """Adds cases of a run that stopped half-way, whose checkpoints are changed."""
    for how in hows:

        def build(folder: Path, how: str = how) -> list[str]:
            run = copy_run(folder, "vae")
            (run / "summary.json").unlink()
            for path in (run / "checkpoints").iterdir():
                path.write_bytes(change(path.read_bytes()))
            return words(f"fit --{how} vae" + " --out new" * (how == "fork"))

        put(f"checkpoint: {how}, {key}", says, build)


DAMAGED = "is damaged (its checksum does not hold)"
checkpoint("a pickle", lambda content: PICKLE, DAMAGED)
checkpoint(
    "a pickle with a true checksum", lambda content: sealed(PICKLE), "is damaged (not in the format of torch.save"
)
checkpoint(
    "an object in torch's format",
    lambda content: sealed(torch_saved(Malice())),
    "holds more than tensors and plain values",
)
checkpoint(
    "an object among values",
    lambda content: sealed(torch_saved({"step": 1, "model": Malice()})),
    "holds more than tensors and plain values",
)
checkpoint("a flipped bit", lambda content: content[:999] + bytes([content[999] ^ 1]) + content[1000:], DAMAGED)
checkpoint("cut", lambda content: content[:-1], DAMAGED)
checkpoint("nothing", lambda content: b"", DAMAGED)
checkpoint("a checksum alone", lambda content: sealed(b""), "is damaged")
checkpoint("a list", lambda content: sealed(torch_saved([1, 2])), "no checkpoint")
checkpoint("a number", lambda content: sealed(torch_saved(3)), "no checkpoint")
checkpoint("an empty map", lambda content: sealed(torch_saved({})), "fit")
checkpoint("text for a step", lambda content: sealed(torch_saved({"step": "one"})), "fit")


def reshaped(content: bytes) -> bytes:
    """A checkpoint in which a weight has another shape."""
    import torch

    values = torch.load(io.BytesIO(content), weights_only=True)
    for state in values.values():
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor) and value.ndim > 1:
                state[name] = value[:1, :1].clone()
    return sealed(torch_saved(values))


checkpoint("weights of other shapes", reshaped, "fit")


class Room:
    """What has its reader take memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (3 * 2**30,)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A change of what a checkpoint holds."""

    def apply(content: bytes) -> bytes:
        import torch

        values = torch.load(io.BytesIO(content), weights_only=True)
        change(values)
        return sealed(torch_saved(values))

    return apply


def repacked(content: bytes) -> bytes:
    """A checkpoint of 64 MiB of zeros, deflated."""
    import torch

    with zipfile.ZipFile(io.BytesIO(torch_saved({"step": 1, "model": {"a": torch.zeros(2**24)}}))) as archive:
        return sealed(zipped({name: archive.read(name) for name in archive.namelist()}))


def short_moments(values: dict[str, Any]) -> None:
    """Makes the moments of all weights vectors of one number."""
    for state in values["optimizers"]:
        for moments in state["state"].values():
            moments["exp_avg"] = moments["exp_avg"].flatten()[:1].clone()


def long_weights(values: dict[str, Any]) -> None:
    """Makes a weight of one number claim a tebibyte."""
    import torch

    values["model"]["more"] = torch.zeros(1).expand(2**38)


checkpoint("an array of 3 GiB", lambda content: sealed(torch_saved({"step": 1, "a": Room()})), "holds a bytearray")
checkpoint("an array of 3 GiB, old format", lambda content: sealed(pickle.dumps(Room(), 2)), "holds a bytearray")
checkpoint("deflated", repacked, "it is compressed")
checkpoint("a tensor that claims a tebibyte", edited(long_weights), "a tensor is longer than what it holds")
# A fused step would write beyond the end of these.
checkpoint(
    "of another run",
    edited(lambda values: values["settings"]["train"].update(seed="x" * 10**6)),
    "is not of the run in config.json: train.seed was 'xxx",
    ("resume",),
)
checkpoint("moments of other shapes", edited(short_moments), "not shaped like it")
for name, to in (
    ("step", None),
    ("step", "one"),
    ("step", -1),
    ("step", 2**70),
    ("position", "x"),
    ("seconds", "x"),
    ("seconds", float("nan")),
    ("stage", (99, 0.0, 0)),
    ("stage", ("x", 0.0, 0)),
    ("best", 3),
    ("best", {"score": 1.0, "step": 1, "state": {}}),
    ("findings", [3]),
    ("sums", {"a": "x"}),
    ("latest", [1]),
    ("optimizers", []),
    ("ended", 3),
    ("metrics_bytes", -1),
    ("noise", None),
    ("global_noise", (3, [])),
    ("settings", None),
    ("settings", ["x"]),
):

    def build(folder: Path, name: str = name, to: Any = to) -> list[str]:
        run = copy_run(folder, "vae")
        (run / "summary.json").unlink()
        for path in (run / "checkpoints").iterdir():
            path.write_bytes(edited(lambda values: values.update({name: to}))(path.read_bytes()))
        return words("fit --resume vae")

    put(f"checkpoint: {name} = {str(to)[:30]}", "vae/checkpoints does not fit the run", build)


# --- what is no plain file in a run folder ----------------------------------------------------------------------------


def endless(path: Path) -> None:
    """A link to what never ends."""
    path.symlink_to("/dev/zero")


def hollow(path: Path) -> None:
    """A file of 30 GiB that takes no room."""
    with open(path, "wb") as sparse:
        sparse.truncate(30 * 2**30)


def elsewhere(path: Path) -> None:
    """A link to a file beside the run folder."""
    (path.parent.parent / "precious").write_text("precious\n" * 99)
    path.symlink_to("../precious")


def replaced(name: str, make: Callable[[Path], object], says: str, template: str) -> None:
    """Adds a case of a run in which a file, or the latest checkpoint, is no file."""

    def build(folder: Path) -> list[str]:
        run = copy_run(folder, "vae")
        if "--resume" in template:
            (run / "summary.json").unlink()
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if name.endswith(".pt"):
            shutil.rmtree(path.parent)
            path.parent.mkdir()
        make(path)
        return words(template, "vae")

    put(f"{name}: {make.__name__}, {template.split(' {')[0]}", says, build)


SAMPLE, RESUME = "sample {}", "fit --resume {}"
REPORT = "report {} --out page --features random --no-discriminator"
for name, template in (("config.json", SAMPLE), ("summary.json", REPORT)):
    replaced(name, os.mkfifo, f"{name} is missing", template)
    replaced(name, endless, f"{name} is missing", template)
    replaced(name, os.mkdir, f"{name} is missing", template)
    replaced(name, hollow, f"{name} has more than 16 MiB", template)
replaced("metrics.jsonl", hollow, "metrics.jsonl has more than 256 MiB", REPORT)
for template in (REPORT, "evaluate {}"):
    replaced("summary.json", lambda path: None, "the training has not ended", template)
for name in ("metrics.jsonl", "run.lock", "checkpoints", "samples", "config.json", "model.safetensors"):
    replaced(name, elsewhere, f"vae/{name} is ", RESUME)
replaced("run.lock", os.mkfifo, "run.lock is neither a file nor a folder", RESUME)
for make, says in ((os.mkfifo, "it is no file"), (endless, "it is no file"), (os.mkdir, "it is no file")):
    replaced("checkpoints/step-00000002.pt", make, says, RESUME)
replaced("checkpoints/step-00000002.pt", hollow, "its checksum does not hold", RESUME)


# --- weights ----------------------------------------------------------------------------------------------------------

WEIGHTS = "model.safetensors"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
for key, content, says in (
    ("a pickle", PICKLE, "is damaged"),
    ("torch's format", torch_saved({"a": 1}), "is damaged"),
    ("nothing", b"", "is damaged"),
    ("seven bytes", bytes(7), "is damaged"),
    ("a header of 2^63 bytes", safetensors(b"{}", length=2**63), "is damaged"),
    ("a header of 100 MB that is not there", safetensors(b"{}", length=10**8), "is damaged"),
    ("a header of 0 bytes", safetensors(b""), "is damaged"),
    ("a header that is no JSON", safetensors(b"{" * 50), "is damaged"),
    ("a header of brackets", safetensors(b"[" * 100_000), "is damaged"),
    ("a header not in UTF-8", safetensors(b"\xff" * 9), "is damaged"),
    ("a header that is a list", safetensors(b"[]"), "is damaged"),
    ("offsets that overlap", safetensors({"a": ONE, "b": ONE}, bytes(4)), "is damaged"),
    ("offsets beyond the file", safetensors({"a": {**ONE, "data_offsets": [0, 2**40]}}, bytes(4)), "is damaged"),
    ("offsets backwards", safetensors({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)), "is damaged"),
    ("a hole", safetensors({"a": {**ONE, "data_offsets": [8, 12]}}, bytes(12)), "is damaged"),
    ("a shape of terabytes", safetensors({"a": {**ONE, "shape": [2**40]}}, bytes(4)), "is damaged"),
    ("a shape that overflows", safetensors({"a": {**ONE, "shape": [2**62, 16]}}, bytes(4)), "is damaged"),
    ("a shape below 0", safetensors({"a": {**ONE, "shape": [-1]}}, bytes(4)), "is damaged"),
    ("an unknown dtype", safetensors({"a": {**ONE, "dtype": "O"}}, bytes(4)), "is damaged"),
    (
        "metadata that are no texts",
        safetensors({"__metadata__": {"sha256": {"a": 1}}, "a": ONE}, bytes(4)),
        "is damaged",
    ),
    (
        "a wrong checksum",
        safetensors({"__metadata__": {"sha256": "0" * 64}, "a": ONE}, bytes(4)),
        "is damaged (its checksum does not hold)",
    ),
    ("other names", safetensors({ESCAPES: ONE}, bytes(4)), "does not fit config.json"),
    ("no tensors", safetensors({}), "does not fit config.json"),
):
    in_run(key, WEIGHTS, content, says)


def weights(key: str, change: Callable[[bytes], bytes], says: str, template: str = "sample {}") -> None:
    """Adds a case of a run whose weights are changed."""

    def build(folder: Path) -> list[str]:
        path = copy_run(folder, "vae") / WEIGHTS
        path.write_bytes(change(path.read_bytes()))
        return words(template, "vae")

    put(f"{WEIGHTS}: {key}", says, build)


def altered(change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> Callable[[bytes], bytes]:
    """A change of the tensors in a file of weights, whose checksum is made anew."""
    import hashlib

    from safetensors.torch import load, save

    def apply(content: bytes) -> bytes:
        state = load(content)
        change(state)
        data = save(state)
        digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
        return save(state, {"sha256": digest}) if seal else data

    return apply


def to_nan(state: dict[str, Any]) -> None:
    """Makes all floats NaN."""
    for value in state.values():
        if value.is_floating_point():
            value.fill_(np.nan)


def to_other(state: dict[str, Any]) -> None:
    """Makes all tensors vectors."""
    for name in state:
        state[name] = state[name].flatten()[:1].clone()


weights(
    "a flipped bit",
    lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "is damaged (its checksum does not hold)",
)
weights("cut", lambda content: content[:-1], "is damaged")
weights("a byte more", lambda content: content + b"x", "is damaged")
weights("other shapes", altered(to_other), "does not fit config.json")
weights("NaN", altered(to_nan), "holds NaN or infinity in")
weights("NaN, from elsewhere", altered(to_nan, seal=False), "holds NaN or infinity in", "evaluate {}")


def filled(value: float) -> Callable[[dict[str, Any]], None]:
    """Makes all floats one number."""

    def change(state: dict[str, Any]) -> None:
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.fill_(value)

    return change


weights("infinity", altered(filled(np.inf)), "holds NaN or infinity in")
MANY = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(100_000))
in_run("100,000 tensors", WEIGHTS, safetensors(b"{" + MANY + b"}"), "is damaged (a header of")
EIGHT = {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}
in_run("numbers of 8 bits", WEIGHTS, safetensors({"a": EIGHT}, bytes(8)), "is damaged")
for value in (0.0, -1.0, 1e38):

    def build(folder: Path, value: float = value) -> list[str]:
        path = copy_run(folder, "gaussian_mixture") / WEIGHTS
        path.write_bytes(altered(filled(value))(path.read_bytes()))
        return words("sample gaussian_mixture")

    put(f"{WEIGHTS}: a mixture of {value}", "holds no distribution", build)


@case(f"{WEIGHTS}: a folder", "is missing")
def _(folder: Path) -> list[str]:
    path = copy_run(folder, "vae") / WEIGHTS
    path.unlink()
    path.mkdir()
    return words("sample vae")


@case(f"{WEIGHTS}: a pipe", "is missing")
def _(folder: Path) -> list[str]:
    path = copy_run(folder, "vae") / WEIGHTS
    path.unlink()
    os.mkfifo(path)
    return words("sample vae")


@case(f"{WEIGHTS}: a hole of 50 GiB", "is damaged")
def _(folder: Path) -> list[str]:
    path = copy_run(folder, "vae") / WEIGHTS
    with open(path, "r+b") as sparse:
        sparse.truncate(50 * 2**30)
    return words("sample vae")


# --- config.json ------------------------------------------------------------------------------------------------------

CONFIG = "config.json"
for key, content, says in (
    ("a pickle", PICKLE, "is not readable as JSON"),
    ("nothing", "", "is not readable as JSON"),
    ("brackets", "[" * 100_000, "is not readable as JSON"),
    ("maps in maps", '{"a":' * 50_000 + "1" + "}" * 50_000, "is not readable as JSON"),
    ("a huge number", "9" * 5000, "is not readable as JSON"),
    ("not UTF-8", b"\xff\xfe{}", "is not readable as JSON"),
    ("a list", "[]", "vae/config.json is not the configuration of a run"),
    ("null", "null", "vae/config.json is not the configuration of a run"),
    ("a text", '"vae"', "vae/config.json is not the configuration of a run"),
    ("an empty map", "{}", "vae/config.json is not the configuration of a run"),
):
    in_run(key, CONFIG, content, says)
for verb in (
    "fit --resume {}",
    "fit --fork {}",
    "score {} digits",
    "evaluate {}",
    "report {} --out page",
    "encode {}",
    "reconstruct {}",
    "interpolate {}",
    "traverse {}",
    "probe {}",
    "complete {}",
    "translate {}",
):
    in_run(f"a list, {verb}", CONFIG, "[1]", "vae/config.json is not the configuration of a run", verb)


def setting(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value in config.json."""

    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return change


NOT = "vae/config.json is not the configuration of a run"
for path, to, says in (
    (("format",), 99, "has format 99"),
    (("format",), None, "has format None"),
    (("format",), {"a": []}, "has format {'a': []}"),
    (("model",), "../x", "There is no model '../x'"),
    (("model",), "os", "There is no model 'os'"),
    (("model",), "__init__", "There is no model '__init__'"),
    (("model",), "vae\n" + ESCAPES, "There is no model"),
    (("model",), "", "There is no model ''"),
    (("model",), "a" * 10**6, "There is no model"),
    (("model",), ["vae"], NOT),
    (("model",), {"a": 1}, NOT),
    (("model",), None, NOT),
    (("options",), [], NOT),
    (("options",), {"__class__": 1}, "vae has no option '__class__'"),
    (("options",), {"space": 1}, NOT),
    (("options",), {"n_classes": 1}, NOT),
    (("options", "hidden"), "big", "Option hidden of vae is 'big'"),
    (("options", "hidden"), -1, "hidden"),
    (("options", "hidden"), 0, "hidden"),
    (("options", "hidden"), 10**9, "hidden"),
    (("options", "hidden"), 10**30, "hidden"),
    (("options", "hidden"), 100_000, "does not fit config.json"),
    (("options", "hidden"), 1e30, "hidden"),
    (("options", "hidden"), float("nan"), "hidden"),
    (("options", "hidden"), [8], "hidden"),
    (("options", "n_latents"), 10**7, "n_latents"),
    (("space",), None, NOT),
    (("space",), [], NOT),
    (("space",), {}, NOT),
    (("space", "kind"), "cube", "kind 'cube' is unknown"),
    (("space", "kind"), ["image"], "is unknown"),
    (("space", "height"), -8, "height"),
    (("space", "height"), 10**9, "vae/"),
    (("space", "height"), 10**18, "vae/"),
    (("space", "height"), 8.0, "height"),
    (("space", "height"), "8", "height"),
    (("space", "height"), float("nan"), "height"),
    (("space", "height"), None, "height"),
    (("space", "channels"), 2**40, "vae/"),
    (("space", "levels"), 10**9, "levels"),
    (("space", "levels"), 2.5, "levels"),
    (("space", "levels"), None, "levels"),
    (("space", "palette"), 3, "palette"),
    (("space", "palette"), [[0, 0, 0]] * 3, "palette"),
    (("space", "palette"), ["ab", "cd"], "palette"),
    (("space", "palette"), [[0, 0, 999], [0, 0, float("nan")]], "palette"),
    (("space", "more"), 1, NOT),
    (("n_classes",), -1, "n_classes"),
    (("n_classes",), 10**9, "vae/"),
    (("n_classes",), 10**18, "vae/"),
    (("n_classes",), "2", "n_classes"),
    (("n_classes",), 1.5, "n_classes"),
    (("n_classes",), float("inf"), "n_classes"),
):
    config(f"{'.'.join(path)} = {str(to)[:40]!r}", setting(*path, to=to), says)
for path, to, says, template in (
    (("data",), None, NOT, "evaluate {}"),
    (("data",), [], NOT, "fit --fork {}"),
    (("data", "source"), "digits", NOT, "evaluate {}"),
    (("data", "source"), {}, "was trained on arrays in memory", "evaluate {}"),
    (("data", "source", "source"), 3, NOT, "evaluate {}"),
    (("data", "source", "source"), None, NOT, "probe {}"),
    (("data", "source", "source"), ["digits"], NOT, "encode {}"),
    (("data", "source", "source"), "/etc", "'/etc", "reconstruct {}"),
    (("data", "source", "source"), "/dev/zero", "is neither a file nor a folder", "traverse {}"),
    (("data", "source", "source"), "no\0such", "is no source of data", "traverse {}"),
    (("data", "source", "source"), "~nobody-here/x", "~nobody-here/x", "traverse {}"),
    (("data", "source", "source"), "http://localhost/x.npy", "There is no file or folder", "traverse {}"),
    (("data", "source", "source"), "a" * 5000, "aaa", "traverse {}"),
    (("data", "source", "progress"), "print", NOT, "evaluate {}"),
    (("data", "source", "exec"), "x", NOT, "evaluate {}"),
    (("data", "source", "limit"), "all", "limit is 'all'", "report {} --out page"),
    (("data", "source", "seed"), [1], "seed is [1]", "encode {}"),
    (("data", "source", "size"), [8, 8, 8], "size is [8, 8, 8]", "encode {}"),
    (("data", "source", "levels"), 1e300, "levels is 1e+300", "encode {}"),
    (("data", "source", "crop"), ["x"], "crop is ['x']", "encode {}"),
    (("data", "source", "binarize"), {"a": 1}, "binarize is {'a': 1}", "encode {}"),
    (("data", "source", "valid_fraction"), "x", "valid_fraction is 'x'", "encode {}"),
    (("data", "source", "test_fraction"), float("nan"), "test_fraction is nan", "encode {}"),
    (("data", "checksum"), "0", "are no longer what", "evaluate {}"),
    (("data", "checksum"), None, NOT, "evaluate {}"),
    (("data", "checksum"), None, NOT, "report {} --out page"),
    (("environment",), [], NOT, "fit --resume {}"),
    (("environment",), None, NOT, "fit --resume {}"),
    (("forked_from",), 5, NOT, "fit --resume {}"),
    (("forked_from",), ["/etc"], NOT, "score {} digits"),
    (("options",), {"space": 1}, "vae has no option 'space'", "fit --resume {}"),
    (("options",), {"out": "x"}, "vae has no option 'out'", "fit --resume {}"),
    (("options",), {"resume": True}, "vae has no option 'resume'", "fit --resume {}"),
    (("options",), {"fork": "/etc"}, "vae has no option 'fork'", "fit --fork {}"),
    (("options",), {"budget": "9h"}, "vae has no option 'budget'", "fit --fork {}"),
    (("train",), {}, NOT, "report {} --out page"),
    (("train", "budget"), [], "budget is []", "report {} --out page"),
    (("train", "validation_items"), None, "validation_items is None", "report {} --out page"),
    (("train", "seed"), True, "seed is True", "report {} --out page"),
    (("train", "strategy"), "x", "strategy is 'x'", "fit --resume {}"),
    (("train",), None, NOT, "fit --resume {}"),
    (("train",), [], NOT, "fit --resume {}"),
    (("train", "budget"), 3, "budget is 3", "fit --resume {}"),
    (("train", "budget"), "1e999steps", "Budget '1e999steps'", "fit --resume {}"),
    (("train", "seed"), 2**70, "seed is", "fit --resume {}"),
    (("train", "seed"), "0; rm -rf /", "seed is '0; rm -rf /'", "fit --resume {}"),
    (("train", "learning_rate"), float("nan"), "learning_rate is nan", "fit --resume {}"),
    (("train", "device"), "/dev/sda", "device is '/dev/sda'", "fit --resume {}"),
    (("train", "evil"), 1, "evil", "fit --resume {}"),
    (("n_classes",), None, NOT, "fit --resume {}"),
    (("class_names",), 3, NOT, "encode {}"),
    (("class_names",), [1, {}], NOT, "encode {}"),
):
    config(f"{'.'.join(path)} = {str(to)[:40]!r}, {template}", setting(*path, to=to), says, template)
config("PointSpace.dim = 10^9", setting("space", "dim", to=10**9), "PointSpace.center has 2", run="gaussian_mixture")
config("PointSpace.center = text", setting("space", "center", to="ab"), "center", run="gaussian_mixture")
config("PointSpace.center = NaN", setting("space", "center", to=[float("nan")] * 2), "center", run="gaussian_mixture")
config("PointSpace.scale = Infinity", setting("space", "scale", to=float("inf")), "scale", run="gaussian_mixture")
config("PointSpace.scale = 0", setting("space", "scale", to=0), "scale", run="gaussian_mixture")
config("PointSpace.scale = text", setting("space", "scale", to="1"), "scale", run="gaussian_mixture")
config("n_blocks = 10^9", setting("options", "n_blocks", to=10**9), "pixel_cnn/", run="pixel_cnn")
config("n_blocks = 10^5", setting("options", "n_blocks", to=10**5), "pixel_cnn/", run="pixel_cnn")
config("n_components = 10^12", setting("options", "n_components", to=10**12), "n_components", run="gaussian_mixture")


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page holds that could run."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.odd: list[str] = []
        """Handlers, addresses and elements that no page of ours has."""
        self.in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_script = tag == "script"
        if tag in ("iframe", "object", "embed", "base", "form", "input", "applet"):
            self.odd.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href", "action") and not (value or "").startswith(("data:image/", "data:,", "#"))
            ):
                self.odd.append(f"{tag} {name}={(value or '')[:60]}")

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts.append(data)


def page_is_clean(folder: Path, out: str, err: str) -> None:
    """Nothing in a written page runs but the script that we ship, and it names nothing outside of itself."""
    import triptych.report

    ours = (Path(triptych.report.__file__).parent / "report.js").read_text()
    (written,) = folder.rglob("report.html")
    page = Page()
    page.feed(written.read_text())
    assert not page.odd, f"the page holds {page.odd}"
    assert all(script.strip() in ours for script in page.scripts), "the page holds a script that is not ours"
    for table in folder.rglob("table.csv"):
        for line in csv.reader(table.read_text().splitlines()):
            assert not any(re.match(r"[=+@\t]|-(?![\d.]|inf)", cell) for cell in line), f"a formula in {line}"


# --- the rest of a run folder -----------------------------------------------------------------------------------------

for key, content, says in (
    ("a pickle", PICKLE, "is not readable as JSON"),
    ("a list", "[]", "summary.json is not the end of a training"),
    ("null", "null", "summary.json is not the end of a training"),
    ("an empty map", "{}", "summary.json is not the end of a training"),
    ("brackets", "[" * 100_000, "is not readable as JSON"),
    ("a huge number", '{"seconds": ' + "9" * 5000 + "}", "is not readable as JSON"),
):
    in_run(key, "summary.json", content, says, REPORT)
    if key in ("a list", "null"):
        in_run(f"{key}, evaluate", "summary.json", content, says, "evaluate {}")
for name, to in (
    ("seconds", "long"),
    ("seconds", float("nan")),
    ("seconds", float("inf")),
    ("seconds", None),
    ("steps", "1"),
    ("steps", None),
    ("n_images_seen", [1]),
    ("n_parameters", {}),
    ("n_parameters", None),
    ("findings", 3),
    ("findings", [3]),
    ("best_step", "x"),
    ("reason", 3),
    ("reason", None),
):

    def build(folder: Path, name: str = name, to: Any = to) -> list[str]:
        edit_json(copy_run(folder, "vae") / "summary.json", setting(name, to=to))
        return words(REPORT, "vae")

    put(f"summary.json: {name} = {to}", "summary.json is not the end of a training", build)
for key, record in (
    ("a list", "[1]"),
    ("a number", "3"),
    ("null", "null"),
    ("no step", '{"elapsed_seconds": 1}'),
    ("text for a step", '{"step": "x", "elapsed_seconds": 1, "a/b": 2}'),
    ("NaN", '{"step": NaN, "elapsed_seconds": Infinity, "train/loss": NaN}'),
    ("10^400", '{"step": 1' + "0" * 400 + ', "elapsed_seconds": 1, "train/loss": 2}'),
    ("brackets", "[" * 100_000),
    ("a huge number", "9" * 5000),
    ("a name with markup", json.dumps({"step": 1, "elapsed_seconds": 1.0, f"valid/{SCRIPT}": 2.0})),
    ("a loss of text", '{"step": 1, "elapsed_seconds": 1, "train/loss": "high"}'),
    ("a loss of 10^308", '{"step": 1, "elapsed_seconds": 1, "train/loss": 1e308, "valid/nll": -1e308}'),
    ("samples of /etc/passwd", '{"event": "samples", "step": 1, "elapsed_seconds": 1, "file": "/etc/passwd"}'),
    ("samples out of the folder", '{"event": "samples", "step": 1, "elapsed_seconds": 1, "file": "../x.npy"}'),
    ("samples of a number", '{"event": "samples", "step": 1, "elapsed_seconds": 1, "file": 3}'),
    ("samples of no file", '{"event": "samples", "step": 1, "elapsed_seconds": 1}'),
    ("samples of no time", '{"event": "samples", "step": 1, "file": "samples/0.npy"}'),
    ("a line of maps", "[" + "{}," * 5_000_000 + "{}]"),
    ("lines of nothing", "{\n" * 30_000_000),
    ("the shortest records", '{"step":1,"elapsed_seconds":1}\n' * 1_500_000),
    ("a time below 0", '{"step": 3, "elapsed_seconds": -5, "train/loss": 2}'),
    ("10^299 steps", '{"step": 1e299, "elapsed_seconds": 1e299, "train/loss": 2}'),
    (
        "5000 curves",
        "\n".join(f'{{"step": {i}, "elapsed_seconds": {i}, "x{i}/loss{i}": 3}}' for i in range(5000)),
    ),
):

    def build(folder: Path, record: str = record) -> list[str]:
        np.save(folder / "x.npy", np.zeros((4, 1, 8, 8), np.uint8))
        with open(copy_run(folder, "vae") / "metrics.jsonl", "a") as log:
            log.write(record + "\n")
        return words(REPORT, "vae")

    put(f"metrics.jsonl: {key}", "Report: page/report.html", build, page_is_clean)
for key, content in (
    ("a pickle", PICKLE),
    ("objects", OBJECTS),
    ("terabytes", npy_like("(1000000, 1, 1000, 1000)")),
    ("nothing", b""),
    ("another shape", saved(np.zeros((4, 9), np.uint8))),
    ("levels out of range", saved(np.full((4, 1, 8, 8), 99, np.uint8))),
    ("a scalar", saved(np.array(1))),
    ("words", saved(np.array(["a"]))),
    ("NaN", saved(np.full((4, 1, 8, 8), np.nan))),
):

    def build(folder: Path, content: bytes = content) -> list[str]:
        for path in (copy_run(folder, "vae") / "samples").glob("*.npy"):
            path.write_bytes(content)
        return words(REPORT, "vae")

    put(f"samples: {key}", "samples/", build)


def long_film(path: Path) -> None:
    """Samples of 3 GiB that take no room on the disk."""
    path.write_bytes(npy_like("(50000000, 1, 8, 8)"))
    os.truncate(path, path.stat().st_size + 50_000_000 * 64)


def linked_film(path: Path) -> None:
    """A link to samples elsewhere."""
    np.save(path.parents[2] / "x.npy", np.full((4, 1, 8, 8), 99, np.uint8))
    path.symlink_to(path.parents[2] / "x.npy")


for make_film in (long_film, linked_film):

    def build(folder: Path, make_film: Callable[[Path], None] = make_film) -> list[str]:
        for path in (copy_run(folder, "vae") / "samples").glob("*.npy"):
            path.unlink()
            make_film(path)
        return words(REPORT, "vae")

    put(f"samples: {make_film.__name__}", "Report: page/report.html", build, page_is_clean)


# --- names that reach the console, the page and the table -------------------------------------------------------------


def has_run(*names: str) -> Check:
    """Looks for files that must have been written, whole."""

    def check(folder: Path, out: str, err: str) -> None:
        for name in names:
            assert (folder / name).is_file(), f"{name} is missing"

    return check


for key, name in (
    ("escapes", ESCAPES.replace("/", "")),
    ("right to left", "\u202egnp.exe"),
    ("C1 controls", "\x9b31mred"),
):
    # A name of a folder is a class, whose name is shown.
    def build(folder: Path, name: str = name) -> list[str]:
        for label in (name, "plain"):
            (folder / "set" / label).mkdir(parents=True)
            for number in range(4):
                (folder / "set" / label / f"{number}.png").write_bytes(PNG)
        return words("data show set")

    put(f"names: class with {key}", "classes   2", build, has_run("data-set.png"))

    def build_source(folder: Path, name: str = name) -> list[str]:
        np.save(folder / f"{name}.npy", np.arange(512).reshape(8, 8, 8) % 4)
        return words("data show {} --out x.png", f"{name}.npy")

    put(f"names: source with {key}", "8x8 grey images", build_source, has_run("x.png"))

    def build_bad(folder: Path, name: str = name) -> list[str]:
        (folder / "set").mkdir()
        (folder / "set" / f"{name}.png").write_bytes(b"")
        return words("data show set")

    put(f"names: bad image with {key}", "1 of 1 files in 'set' cannot be read", build_bad)
    put(
        f"names: missing source with {key}",
        "is neither a known set",
        lambda folder, name=name: words("fit vae {}", name),
    )
    put(f"names: missing run with {key}", "There is no run folder", lambda folder, name=name: words("sample {}", name))
    put(
        f"names: option with {key}",
        "has no option",
        lambda folder, name=name: words("fit vae digits --set {}", f"{name}=1"),
    )
    put(f"names: budget with {key}", "Budget", lambda folder, name=name: words("fit vae digits --budget {}", name))
    put(f"names: flag with {key}", "nrecognized", lambda folder, name=name: words("fit vae digits {}", f"--{name}"))
    put(f"names: model with {key}", "There is no model", lambda folder, name=name: words("models {}", name))

    def build_out(folder: Path, name: str = name) -> list[str]:
        copy_run(folder, "vae")
        return words("sample vae --n 4 --out {}", f"{name}.png")

    put(f"names: --out with {key}", "4 samples -> ", build_out, lambda folder, out, err: None)

    def build_run(folder: Path, name: str = name) -> list[str]:
        return words(f"fit vae {{}} --set hidden=8 --out {{}} {SMALL}", BASE / "images.npz", name)

    put(f"names: run folder with {key}", "parameters", build_run, lambda folder, out, err: None)


@case("names: classes that are not UTF-8, or have lines", "plain\\nitem...", has_run("data-set.png"))
def _(folder: Path) -> list[str]:
    for label in (b"\xff\xfe", b"plain\nitems: 9"):
        place = os.path.join(os.fsencode(folder), b"set", label)
        os.makedirs(place)
        for number in range(8):
            with open(os.path.join(place, b"%d.png" % number), "wb") as out:
                out.write(PNG)
    return words("data show set")


@case("names: page of a run whose settings are markup", "Report: page/report.html", page_is_clean)
def _(folder: Path) -> list[str]:
    def change(values: dict[str, Any]) -> None:
        values["environment"] = {SCRIPT: SCRIPT, "system": 3, "python": [SCRIPT]}
        values["data"]["name"], values["class_names"] = SCRIPT, [SCRIPT]

    edit_json(copy_run(folder, "vae") / "config.json", change)
    return words(REPORT, "vae")


@case("names: page of a run whose budget is markup", "config.json is not the configuration of a run (train: Budget")
def _(folder: Path) -> list[str]:
    edit_json(copy_run(folder, "vae") / "config.json", lambda values: values["train"].update(budget=SCRIPT))
    return words(REPORT, "vae")


for key, name in (("no number", "$\\frac{$"), ("a macro", "$\\input{/etc/passwd}$"), ("percent", "100%s %d {0}")):

    def build(folder: Path, name: str = name) -> list[str]:
        (folder / "in").mkdir()
        np.save(folder / "in" / (name.replace("/", "") + ".npy"), np.random.default_rng(0).normal(size=(30, 2)))
        return words("data show {} --out x.png", "in/" + name.replace("/", "") + ".npy")

    put(f"names: points whose name is TeX with {key}", "2-D points", build, has_run("x.png"))
for key, name in (
    ("markup", "<script>alert(1)<x img src=x onerror=alert(2)>"),
    ("quotes", "\"' onmouseover='alert(1)' x=\""),
    ("the end of a script", "<x script>-->]]>"),
    ("a formula", "=1+2"),
    ("an at sign", "@SUM(1)"),
    ("a plus", "+1+2"),
    ("a minus", "-1+2"),
    ("a rich tag", "[red]x[link=http:x]"),
):

    def build(folder: Path, name: str = name) -> list[str]:
        given = np.random.default_rng(1).integers(0, 2, (20, 8, 8)).astype(np.uint8)
        for label in (name.replace("/", ""), "plain"):
            (folder / "set" / label).mkdir(parents=True)
            for number, image in enumerate(given):
                Image.fromarray(image * 255).convert("1").save(folder / "set" / label / f"{number}.png")
        copied = folder / name.replace("/", "")
        shutil.copytree(BASE / "vae", copied)
        shutil.copytree(BASE / "gan", folder / "gan")
        for run in (copied, folder / "gan"):
            edit_json(run / "config.json", setting("data", "checksum", to="0"))
            edit_json(run / "summary.json", setting("findings", to=[name]))
        twin = folder / "twin"
        shutil.copytree(copied, twin)
        return words(
            "report {} gan twin --source set --out page --features random --no-discriminator",
            "./" + copied.name,
        )

    put(f"names: page with {key}", "Report: page/report.html", build, page_is_clean)

    def build_samples(folder: Path, name: str = name) -> list[str]:
        np.save(folder / f"{name}.npy", np.random.default_rng(1).integers(0, 2, (20, 1, 8, 8)).astype(np.uint8))
        return words(
            "evaluate --samples {} --reference {} --features random --no-discriminator",
            f"./{name}.npy",
            BASE / "images.npz",
        )

    put(f"names: samples with {key}", "", build_samples, lambda folder, out, err: None)


# --- points and arrays for other verbs --------------------------------------------------------------------------------

ODD_ARRAYS = {
    "objects": (OBJECTS, "holds Python objects"),
    "a pickle": (PICKLE, "cannot be read as a NumPy file"),
    "a scalar": (saved(np.array(1)), "it holds no items"),
    "words": (saved(np.array(["a"])), "has dtype <U1"),
    "a structure": (saved(np.zeros(3, [("a", "u1")])), "has dtype"),
    "NaN": (saved(np.full((9, 8, 8), np.nan)), "holds NaN"),
    "terabytes": (npy_like("(1000000, 1000, 1000)"), "claims 1000000000000 bytes"),
    "levels out of range": (saved(np.full((30, 8, 8), 77, np.uint8)), "levels"),
    "another size": (saved(np.zeros((30, 9, 9), np.uint8)), "9x9"),
    "points": (saved(np.random.default_rng(0).normal(size=(30, 2))), "points"),
}
for verb, run in (
    ("score {run} {}", "pixel_cnn"),
    ("complete {run} {}", "pixel_cnn"),
    ("encode {run} {}", "vae"),
    ("reconstruct {run} {}", "vae"),
    ("interpolate {run} 0 1 --source {}", "vae"),
    ("traverse {run} --source {}", "vae"),
    ("translate {run} {}", "pix2pix"),
    ("probe {run} {}", "vae"),
    ("evaluate {run} --source {}", "gan"),
    ("report {run} --source {} --out page", "gan"),
):
    for key, (content, says) in ODD_ARRAYS.items():

        def build(folder: Path, content: bytes = content, verb: str = verb, run: str = run) -> list[str]:
            copy_run(folder, run)
            (folder / "odd.npy").write_bytes(content)
            return words(verb.replace("{run}", run), "odd.npy")

        which = "no pixels" if key == "points" and verb.startswith(("complete", "translate")) else says
        put(f"{verb.split()[0]}: an array of {key}", which, build)
for key, (content, says) in ODD_ARRAYS.items():
    if key == "levels out of range":  # Samples are brought to the levels of what they are compared with.
        continue

    def build(folder: Path, content: bytes = content) -> list[str]:
        (folder / "odd.npy").write_bytes(content)
        return words(
            "evaluate --samples odd.npy --reference {} --features random --no-discriminator", BASE / "images.npz"
        )

    put(f"evaluate --samples: an array of {key}", "no pixels" if key == "points" else says, build)
for verb, run in (("score", "pixel_cnn"), ("complete", "pixel_cnn"), ("encode", "vae"), ("translate", "pix2pix")):
    for key, name, content, says in (
        ("a picture of 60,000 x 60,000", "x.png", png(60_000, 60_000), "x.png"),
        ("a picture cut short", "x.jpg", picture("jpg")[:200], "x.jpg"),
        ("a picture that is a pickle", "x.gif", PICKLE, "x.gif"),
        ("an npz of objects", "x.npz", zipped({"images.npy": OBJECTS}), "holds Python objects"),
        ("an npz bomb", "x.npz", zipped({"images.npy": npy_like("(1048576, 8, 16)") + bytes(2**27)}), "zip bomb"),
        ("a zip that leads out", "x.zip", zipped({"../x.png": PNG}), OUT),
        ("a tar with a device", "x.tar", tar(("x.png", None, {"type": tarfile.CHRTYPE})), "a device"),
    ):

        def build(
            folder: Path, name: str = name, content: bytes = content, verb: str = verb, run: str = run
        ) -> list[str]:
            copy_run(folder, run)
            (folder / name).write_bytes(content)
            return words(f"{verb} {run} {{}}", name)

        put(
            f"{verb}: {key}", "is one image" if verb == "score" and name in ("x.png", "x.jpg", "x.gif") else says, build
        )
for key, content, says in (
    ("NaN", np.full((30, 2), np.nan), "holds NaN, infinite or too large values"),
    ("infinity", np.full((30, 2), np.inf), "holds NaN, infinite or too large values"),
    ("far off", 1e9 + np.linspace(0, 1, 60).reshape(30, 2), "subtract its mean"),
    ("other dimension", np.zeros((30, 3)), "3-D points"),
    ("images", np.zeros((30, 8, 8), np.uint8), "images"),
    ("one coordinate", np.zeros(30), "1-D points"),
):

    def build(folder: Path, content: np.ndarray = content) -> list[str]:
        copy_run(folder, "gaussian_mixture")
        np.save(folder / "odd.npy", content)
        return words("score gaussian_mixture odd.npy")

    put(f"score: points with {key}", says, build)
for key, array in (
    ("big-endian", np.arange(60 * 64).reshape(60, 8, 8).astype(">u2") % 4),
    ("in Fortran's order", np.asfortranarray(np.arange(60 * 64).reshape(60, 8, 8) % 4)),
    ("of truth values", np.arange(60 * 64).reshape(60, 8, 8) % 2 == 0),
    ("of half floats", (np.arange(60 * 64).reshape(60, 8, 8) % 2).astype(np.float16)),
    ("of long doubles", (np.arange(60 * 64).reshape(60, 8, 8) % 2).astype(np.longdouble)),
    ("of big-endian points", np.random.default_rng(0).normal(size=(60, 2)).astype(">f8")),
    ("of points near the largest float", np.random.default_rng(0).normal(size=(60, 2)) * 1e38),
    ("of tiny points", np.random.default_rng(0).normal(size=(60, 2)) * 1e-40),
    ("of equal points", np.ones((60, 2))),
):

    def build(folder: Path, array: np.ndarray = array) -> list[str]:
        np.save(folder / "odd.npy", array)
        return words("data show odd.npy --out x.png")

    put(f"data show: an array {key} is read", "items     60", build, has_run("x.png"))
for key, content in (("a pickle", PICKLE), ("objects", torch_saved(Malice())), ("text", b"hello"), ("nothing", b"")):
    for name in ("inception", "dinov2"):

        def build(folder: Path, content: bytes = content, name: str = name) -> list[str]:
            copy_run(folder, "gan")
            (folder / "w.pth").write_bytes(content)
            return words("evaluate gan --no-discriminator --features {}", f"random,{name}=w.pth")

        def code_has_not_run(folder: Path, out: str, err: str) -> None:
            """The library is not here: the features are left out, and the file is not opened."""

        put(f"features: {name} from {key}", f"There are no {name} features", build, code_has_not_run)
put(
    "features: weights that are not there",
    "there is no file 'w.pth'",
    lambda folder: words("evaluate {} --features inception=w.pth", BASE / "gan"),
)
put(
    "features: weights of random",
    "has no file of weights",
    lambda folder: words("evaluate {} --features random=/etc/passwd", BASE / "gan"),
)
put(
    "features: unknown",
    "there is no 'os.system'",
    lambda folder: words("evaluate {} --features os.system", BASE / "gan"),
)


# --- the command line -------------------------------------------------------------------------------------------------

LONG = "9" * 5000
DEEP = "(" * 3000 + ")" * 3000
FIT = "fit vae digits --budget 1steps"
for template, value, says in (
    ("fit vae digits --budget {}", "", "Budget ''"),
    ("fit vae digits --budget {}", "nan", "Budget 'nan'"),
    ("fit vae digits --budget {}", "-5s", "Budget '-5s'"),
    ("fit vae digits --budget {}", "1e9s", "Budget '1e9s'"),
    ("fit vae digits --budget {}", "0.5steps", "leaves nothing to train with"),
    ("fit vae digits --budget {}", "0images", "leaves nothing to train with"),
    ("fit vae digits --budget {}", "٣s٣", "Budget"),
    ("fit vae digits --budget {}", "5 parsecs", "Budget '5 parsecs'"),
    ("fit vae digits --budget {}", "__import__('os').system('x')", "Budget"),
    ("fit vae digits --budget {}", LONG + "s", "Budget"),
    ("fit vae digits --budget {}", "1.2.3s", "Budget '1.2.3s'"),
    ("fit vae digits --budget {}", "_s", "Budget '_s'"),
    (FIT + " --seed {}", "-1", "seed is -1"),
    (FIT + " --seed {}", str(2**63), "must be below 2^63"),
    (FIT + " --seed {}", LONG, "seed"),
    (FIT + " --seed {}", "1.5", "seed"),
    (FIT + " --seed {}", "nan", "seed"),
    (FIT + " --batch-size {}", "0", "batch_size is 0"),
    (FIT + " --batch-size {}", "1000000000000", "batch_size"),
    (FIT + " --batch-size {}", str(2**70), "batch_size"),
    (FIT + " --learning-rate {}", "nan", "learning_rate is nan"),
    (FIT + " --learning-rate {}", "inf", "learning_rate is inf"),
    (FIT + " --learning-rate {}", "-1", "learning_rate is -1"),
    (FIT + " --clip-norm {}", "nan", "clip_norm is nan"),
    (FIT + " --ema-decay {}", "1", "ema_decay is 1"),
    (FIT + " --ema-decay {}", "nan", "ema_decay is nan"),
    (FIT + " --warmup-steps {}", "-1", "warmup_steps is -1"),
    (FIT + " --validations {}", "-1", "validations is -1"),
    (FIT + " --checkpoint-every {}", "3images", "checkpoint_every"),
    (FIT + " --checkpoint-every {}", "", "Budget ''"),
    (FIT + " --device {}", "/dev/sda", "device"),
    (FIT + " --precision {}", "8", "precision"),
    (FIT + " --devices {}", "0", "devices is 0"),
    (FIT + " --keep {}", "0", "keep is 0"),
    (FIT + " --size {}", "0", "size is 0"),
    (FIT + " --size {}", "8x8x8", "--size is '8x8x8'"),
    (FIT + " --size {}", "-8", "size"),
    (FIT + " --size {}", "٣٢", "--size is '٣٢'"),
    (FIT + " --size {}", "99999999x99999999", "at most 64 megapixels"),
    (FIT + " --size {}", LONG, "size"),
    (FIT + " --levels {}", "1", "levels is 1"),
    (FIT + " --levels {}", "65537", "levels is 65537"),
    (FIT + " --levels {}", "1e3", "levels"),
    (FIT + " --levels {}", LONG, "levels"),
    (FIT + " --valid-fraction {}", "nan", "valid_fraction is nan"),
    (FIT + " --valid-fraction {}", "1", "valid_fraction is 1"),
    (FIT + " --test-fraction {}", "-0.5", "test_fraction is -0.5"),
    (FIT + " --data-seed {}", "-1", "seed is -1"),
    (FIT + " --limit {}", "0", "limit is 0"),
    (FIT + " --binarize {}", "maybe", "binarize"),
    (FIT + " --set {}", "hidden", "write KEY=VALUE"),
    (FIT + " --set {}", "=3", "write KEY=VALUE"),
    (FIT + " --set {}", "hidden=", "hidden of vae is ''"),
    (FIT + " --set {}", "hidden=None.__class__", "Option hidden of vae"),
    (FIT + " --set {}", "hidden=__import__('os').mkdir('x')", "Option hidden of vae"),
    (FIT + " --set {}", f"hidden={DEEP}", "Option hidden of vae"),
    (FIT + " --set {}", f"hidden={LONG}", "Option hidden of vae"),
    (FIT + " --set {}", "hidden=1000000000", "hidden=1000000000"),
    (FIT + " --set {}", "hidden=100000000000000000000", "hidden=1000000000000"),
    (FIT + " --set {}", "hidden=1e999", "Option hidden of vae is inf"),
    (FIT + " --set {}", "hidden=-5", "hidden"),
    (FIT + " --set {}", "hidden='\\d'", "Option hidden of vae"),
    (FIT + " --set {}", "hidden=1if 1else 2", "Option hidden of vae"),
    (FIT + " --set {}", "hidden=[1]*9", "Option hidden of vae"),
    (FIT + " --set {}", "__init__=3", "has no option '__init__'"),
    ("fit pixel_cnn digits --set {}", "n_blocks=1000000000", "n_blocks=1000000000"),
    ("fit vq_vae digits --set {}", "n_codes=1000000000000", "n_codes"),
    ("fit gaussian_mixture moons --set {}", "n_components=1000000000000", "n_components"),
    ("fit {} digits", "", "There is no model ''"),
    ("fit {} digits", "../../etc/passwd", "There is no model '../../etc/passwd'"),
    ("fit {} digits", "v" * 100_000, "There is no model"),
    ("fit vae {}", "", "is no source of data"),
    ("fit vae {}", "a\0b", "is no source of data"),
    ("fit vae {}", "a" * 100_000, "File name too long"),
    ("fit vae {}", "https://example.com/x.zip", "There is no file or folder"),
    ("fit vae {}", "~nobody-here/x", "home of a user"),
    ("fit vae {}", "\udcff\udcfe", "is neither a known set"),
    ("fit vae digits --budget 1steps --out {}", "/dev/null", "/dev/null"),
    ("fit vae digits --budget 1steps --out {}", "/proc/x", "/proc/x"),
    ("fit vae digits --budget 1steps --out {}", "a" * 300, "File name too long"),
    ("data show digits --out {}", "/dev/full", "/dev/full"),
    ("data show digits --out {}", "no/where/x.png", "There is no folder"),
    ("sample {}", "", "config.json"),
    ("sample {}", "/dev/null", "There is no run folder"),
    ("sample {}", "/etc", "config.json is missing"),
    ("sample {}", "a\0b", "There is no run folder"),
    ("sample {}", "a" * 5000, "File name too long"),
    ("sample VAE --n {}", "0", "n is 0"),
    ("sample VAE --n {}", "-1", "n is -1"),
    ("sample VAE --n {}", "1000000000000", "n is 1000000000000"),
    ("sample VAE --n {}", LONG, "n"),
    ("sample VAE --seed {}", "-1", "seed is -1"),
    ("sample VAE --seed {}", str(2**70), "seed is"),
    ("sample VAE --label {}", "1", "label"),
    ("sample VAE --truncation {}", "nan", "truncation"),
    ("sample GAN --truncation {}", "nan", "truncation is nan"),
    ("sample GAN --truncation {}", "-1", "truncation is -1"),
    ("sample CNN --temperature {}", "nan", "temperature is nan"),
    ("sample CNN --temperature {}", "0", "temperature is 0"),
    ("sample CNN --temperature {}", "inf", "temperature is inf"),
    ("sample CNN --top-p {}", "nan", "top_p is nan"),
    ("sample CNN --top-k {}", "-1", "top_k is -1"),
    ("sample CNN --animate {}", "x.exe", "x.exe"),
    ("sample CNN --out {}", "/dev/null/x.png", "/dev/null"),
    ("complete CNN --keep {}", "top:nan", "keep is 'top:nan'"),
    ("complete CNN --keep {}", "top:" + LONG, "keep is"),
    ("complete CNN --items {}", "9" * 15, "There is no item 999999999999999"),
    ("complete CNN --items {}", "0,,1", "--items is '0,,1'"),
    ("complete CNN --n {}", "0", "n is 0"),
    ("complete CNN --n {}", "1000000000000", "There is not enough memory"),
    ("score CNN digits --levels {}", "-1", "levels is -1"),
    ("encode VAE --items {}", "5000", "There is no item 5000"),
    ("interpolate VAE 0 1 --steps {}", "1000000000000", "There is not enough memory"),
    ("interpolate VAE 0 1 --steps {}", "0", "steps is 0"),
    ("interpolate VAE 0 {}", "../../etc/passwd", "../../etc/passwd"),
    ("interpolate VAE --n {}", "1000000000000", "There is not enough memory"),
    ("traverse VAE --dims {}", "0,1,2", "dims"),
    ("traverse VAE --dims {}", "9999999", "9999999"),
    ("traverse VAE --dims 0 --range {}", "nan", "range"),
    ("traverse VAE --dims 0 --range {}", "inf", "range"),
    ("traverse VAE --dims 0 --steps {}", "1000000000000", "There is not enough memory"),
    ("probe VAE --labels {}", "nan", "--labels is 'nan'"),
    ("probe VAE --labels {}", "0", "0"),
    ("probe VAE --draws {}", "0", "draws"),
    ("probe VAE --draws {}", "-1", "draws"),
    ("probe VAE --finetune-steps {}", "-1", "finetune_steps"),
    ("evaluate VAE --n-samples {}", "-1", "n_samples"),
    ("evaluate VAE --importance-samples {}", "-1", "n_importance"),
    ("evaluate VAE --features {}", ",", "--features names none"),
    ("evaluate VAE --seed {}", "-1", "seed is -1"),
    ("report VAE --out page --seed {}", "-5", "seed is -5"),
    ("report VAE --out {}", "/dev/null", "is no folder"),
    ("compare digits --models {}", ",", "at least one model"),
    ("compare digits --models {}", "vae,vae", "is named twice"),
    ("compare digits --models vae --seeds {}", "0", "seeds is 0"),
    ("compare digits --models vae --parameters {}", "-1", "parameters"),
    ("compare digits --models vae --parameters {}", "1000000000000000", "parameters"),
    ("sweep vae digits --over {}", "hidden", "write KEY=VALUE"),
    ("sweep vae digits --over {}", "hidden=", "hidden"),
    ("sweep vae digits --over {}", "seed=nan", "seed"),
    ("theory --only {}", "../x", "../x"),
    ("theory --seed {}", "-1", "seed"),
    ("models {}", "registry", "There is no model 'registry'"),
    ("{}", "explode", "explode"),
    ("{}", "", "Unrecognized options"),
    ("{}", "--config=/etc/passwd", "--config"),
    ("{}", "@/etc/passwd", "/etc/passwd"),
):

    def build(folder: Path, template: str = template, value: str = value) -> list[str]:
        runs = {"VAE": "vae", "GAN": "gan", "CNN": "pixel_cnn"}
        return [runs_in(folder, runs[word]) if word in runs else word for word in words(template, value)]

    put(f"command: {template.replace('{}', value[:30] or 'nothing')!r}", says, build)


def runs_in(folder: Path, name: str) -> str:
    """A run that nothing is to be written into."""
    return str(copy_run(folder, name).relative_to(folder))


# --- main -------------------------------------------------------------------------------------------------------------


def start(folder: Path) -> None:
    """Imports what the verbs do, so that no case pays for it, and trains the models."""
    import lightning_fabric  # noqa: F401
    import torch

    import triptych.comparison
    import triptych.completion
    import triptych.data.show
    import triptych.sweeping
    import triptych.training.trainer
    import triptych.translation  # noqa: F401

    torch.set_num_threads(1)
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
