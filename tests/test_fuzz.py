"""Whatever bytes a reader is given, it returns what it promises or raises InputError in one line, and warns of nothing.

`TRIPTYCH_FUZZ=2000` gives each reader that many examples instead of a few; `make fuzz` does.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.cli.words import parse_ends, parse_items, parse_settings, parse_values, split_words
from triptych.completion import n_sites_kept
from triptych.config import Budget, DataConfig, TrainConfig
from triptych.data.dataset import Dataset
from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace, PointSpace, space_to_dict
from triptych.training.checkpoints import read_checkpoint
from triptych.training.files import Records, read_json, read_summary, read_weights, write_json, write_weights
from triptych.training.run import FORMAT, read_run

N_EXAMPLES = int(os.environ.get("TRIPTYCH_FUZZ", "25"))
usual = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=N_EXAMPLES < 100,
)

IMAGES = (np.arange(12 * 64).reshape(12, 8, 8) % 4).astype(np.uint8)
LABELS = np.arange(12) % 2


def arrays(**values: np.ndarray) -> bytes:
    """An .npz file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **values)
    return stream.getvalue()


PICTURES = {kind: hostile.picture(kind, (9, 7), "RGB") for kind in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")}
LABELLED = {**hostile.GOOD, "dataset.json": json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(4)]}).encode()}
SHARD = hostile.tar(*hostile.SAMPLES, ("3.cls", b"1", {}), ("5.png", hostile.PNG, {}), ("5.json", b'{"label": 2}', {}))
IDX = hostile.idx(12, 8, 8, data=IMAGES.tobytes())
VALID: dict[str, bytes] = {
    "images.npy": hostile.saved(IMAGES),
    "floats.npy": hostile.saved(IMAGES / 3),
    "points.npy": hostile.saved(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)),
    "images.npz": arrays(images=IMAGES, labels=LABELS),
    "splits.npz": arrays(train=IMAGES, test=IMAGES[:4], palette=np.eye(4, 3, dtype=np.uint8) * 255),
    "images-idx3-ubyte": IDX,
    "images-idx3-ubyte.gz": zlib.compress(IDX, wbits=31),
    "set.zip": hostile.zipped(LABELLED),
    "stored.zip": hostile.zipped(hostile.GOOD, 0),
    "shard.tar": SHARD,
    "pax.tar": hostile.tar(*hostile.SAMPLES, ("ä" * 120 + ".png", hostile.PNG, {}), form=hostile.tarfile.PAX_FORMAT),
}
"""A source of one file by its name."""

MARKS = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\x7f",
    b"-1",
    b"9" * 30,
    b"NaN",
]
MARKS += [
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\x93NUMPY",
    b"O",
    b"'|O'",
    b"../",
    b"\x1b",
    b"{",
    b"[",
    b"'",
    b"\n",
    b"\x1f\x8b",
]


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with bits flipped, cut, spliced, or with bytes put in or over others; or no such file at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        # Formats have what matters at their ends.
        near = draw(st.sampled_from([min(64, len(content)), min(512, len(content)), len(content)]))
        place = draw(st.integers(0, near))
        place = len(content) - place if draw(st.booleans()) else place
        kind = draw(st.integers(0, 5))
        if kind == 0 and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = draw(st.sampled_from(MARKS) | st.binary(max_size=20))
        elif kind == 3:
            mark = draw(st.sampled_from(MARKS) | st.binary(min_size=1, max_size=8))
            content[place : place + len(mark)] = mark
        elif kind == 4:
            del content[place : place + draw(st.integers(1, 40))]
        else:
            start = draw(st.integers(0, len(content)))
            content[place:place] = content[start : start + draw(st.integers(1, 200))]
    return bytes(content)


def read(reader: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a reader returns; None if it refuses, in one line. Anything else that it does fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return reader(*arguments, **options)
        except InputError as error:
            message = str(error)
    assert message
    assert "\n" not in message
    return None


def read_source(name: str, content: bytes, **options: Any) -> None:
    """Reads a source of one file, and every item of the set that it gives."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        source = folder / name if name in VALID else folder
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = read(load_data, source, **options)
            if data is not None:
                check(data)
    finally:
        shutil.rmtree(folder)


def check(data: Dataset) -> None:
    """A data set must keep what it promises."""
    for split in data.splits.values():
        items, labels = split.read()
        assert len(items) == len(split) > 0
        if isinstance(data.space, ImageSpace):
            data.space.check(items)
        else:
            data.space.check(items)
            assert items.dtype == np.float32
        if labels is not None:
            assert labels.min() >= 0
            assert labels.max() < data.n_classes


@pytest.mark.parametrize("name", list(VALID))
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(VALID[name])
    check(load_data(tmp_path / name))


@pytest.mark.parametrize("name", list(VALID))
def test_sources_of_one_file(name: str) -> None:
    @usual
    @given(st.data())
    def run(data: st.DataObject) -> None:
        read_source(name, data.draw(mutated(VALID[name])))

    run()


@pytest.mark.parametrize("kind", list(PICTURES))
def test_pictures(kind: str) -> None:
    @usual
    @given(st.data())
    def run(data: st.DataObject) -> None:
        content = data.draw(mutated(PICTURES[kind]))
        folder = Path(tempfile.mkdtemp())
        try:
            for number in range(3):
                (folder / f"{number}.{kind}").write_bytes(PICTURES[kind])
            (folder / f"x.{kind}").write_bytes(content)
            found = read(load_data, folder, size=8, skip_bad=data.draw(st.booleans()))
            if found is not None:
                check(found)
        finally:
            shutil.rmtree(folder)

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@usual
@given(st.one_of(mutated(LABELLED["dataset.json"]), JSON.map(lambda value: json.dumps({"labels": value}).encode())))
def test_dataset_json(content: bytes) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for name in hostile.GOOD:
            (folder / name).write_bytes(hostile.PNG)
        (folder / "dataset.json").write_bytes(content)
        found = read(load_data, folder)
        if found is not None:
            check(found)
    finally:
        shutil.rmtree(folder)


SPACE = ImageSpace(1, 8, 8, 4)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has trained."""
    folder = tmp_path_factory.mktemp("run")
    model = create_model("vae", SPACE, hidden=4, n_latents=2)
    write_weights(folder / "model.safetensors", model.state_dict())
    options = {"hidden": 4, "n_latents": 2}
    source = {"source": "digits"}
    config = {"format": FORMAT, "model": "vae", "options": options, "space": space_to_dict(SPACE), "n_classes": 0}
    config |= {"class_names": [], "train": TrainConfig().to_dict(), "data": {"source": source, "checksum": "0"}}
    config["environment"] = {}
    write_json(folder / "config.json", config)
    summary = {"steps": 1, "n_images_seen": 8, "n_parameters": 9, "seconds": 1.5, "reason": "budget", "findings": ["a"]}
    write_json(folder / "summary.json", summary)
    assert read_run(folder)[1]["model"] == "vae"
    return folder


def with_file(folder: Path, name: str, content: bytes, reader: Callable[[Path], Any]) -> Any:
    """What a reader gives of a run folder in which one file is replaced."""
    kept = (folder / name).read_bytes() if (folder / name).exists() else None
    try:
        (folder / name).write_bytes(content)
        return read(reader, folder)
    finally:
        if kept is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(kept)


def test_weights(run_folder: Path) -> None:
    valid = (run_folder / "model.safetensors").read_bytes()

    @usual
    @given(mutated(valid))
    def run(content: bytes) -> None:
        with_file(run_folder, "model.safetensors", content, read_run)
        state = with_file(run_folder, "other.safetensors", content, lambda f: read_weights(f / "other.safetensors"))
        assert state is None or all(isinstance(value, torch.Tensor) for value in state.values())

    run()


def test_config(run_folder: Path) -> None:
    values = json.loads((run_folder / "config.json").read_text())
    paths = [(key,) for key in values] + [(part, key) for part in ("space", "options", "data") for key in values[part]]

    @usual
    @given(st.data())
    def run(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            content = data.draw(mutated(json.dumps(values).encode()))
        else:
            changed = json.loads(json.dumps(values))
            *parents, last = data.draw(st.sampled_from(paths))
            place = changed
            for parent in parents:
                place = place[parent]
            place[last] = data.draw(JSON)
            content = json.dumps(changed).encode()
        with_file(run_folder, "config.json", content, read_run)

    run()


def test_summary(run_folder: Path) -> None:
    values = json.loads((run_folder / "summary.json").read_text())

    @usual
    @given(st.data())
    def run(data: st.DataObject) -> None:
        changed = {**values, data.draw(st.sampled_from(list(values))): data.draw(JSON)}
        content = data.draw(st.just(json.dumps(changed).encode()) | mutated(json.dumps(values).encode()))
        found = with_file(run_folder, "summary.json", content, read_summary)
        if found is not None:
            assert f"{found['seconds']:.3f} {found['steps']:,} {'; '.join(found['findings'])}".strip()

    run()


@usual
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=40), max_size=5))
def test_records(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        for record in read(Records.read, path):
            assert record["step"] + record["elapsed_seconds"] is not None
        path.rename(Path(folder) / "x.json")
        read(read_json, Path(folder) / "x.json")


def test_checkpoints() -> None:
    stream = io.BytesIO()
    torch.save({"step": 3, "model": {"a": torch.zeros(3)}, "format": 1}, stream)

    @usual
    @given(mutated(stream.getvalue()), st.booleans())
    def run(content: bytes, is_sealed: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step-00000003.pt"
            path.write_bytes(hostile.sealed(content) if is_sealed else content)
            values = read(read_checkpoint, path)
            assert values is None or isinstance(values, dict)

    run()


WORDS = st.text(max_size=30) | st.text("0123456789.,:=ksmhx-_+eE()[]{}'\"\\ntopimages", max_size=30)


@usual
@given(WORDS)
def test_words(text: str) -> None:
    budget = read(Budget.parse, text)
    assert budget is None or (budget.amount > 0 and budget.amount < float("inf"))
    read(parse_settings, [f"key={text}"])
    read(split_words, [text])
    read(parse_values, text)
    items = read(parse_items, text)
    assert items is None or all(item >= 0 for item in items)
    read(parse_ends, text)
    kept = read(n_sites_kept, text, SPACE)
    assert kept is None or 0 < kept < 64
    read(lambda: DataConfig(size=text).to_arguments())
    read(lambda: TrainConfig(budget=text))
    read(lambda: TrainConfig(checkpoint_every=text))


@usual
@given(JSON)
def test_arguments_of_any_kind(value: Any) -> None:
    for name in ("size", "crop", "levels", "binarize", "valid_fraction", "test_fraction", "seed", "limit"):
        found = read(
            load_data,
            "moons" if name in ("seed", "limit", "valid_fraction", "test_fraction") else IMAGES,
            **{name: value},
        )
        assert found is None or isinstance(found.space, ImageSpace | PointSpace)
    for name in ("budget", "seed", "batch_size", "learning_rate", "ema_decay", "device", "precision", "keep"):
        read(lambda name=name: TrainConfig(**{name: value}))
    for name in ("channels", "height", "width", "levels", "palette"):
        read(lambda name=name: ImageSpace(**{"channels": 1, "height": 8, "width": 8, "levels": 4, name: value}))
    for name in ("dim", "center", "scale"):
        read(lambda name=name: PointSpace(**{"dim": 2, name: value}))
