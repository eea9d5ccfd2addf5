"""Several trainings of several models, finished runs measured again, and samples that somebody else made."""

from __future__ import annotations

import html
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import triptych
from triptych import InputError
from triptych.data.dataset import Dataset
from triptych.evaluation.results import Table

QUICK: dict[str, Any] = {"budget": "4steps", "batch_size": 8, "validations": 2, "verbose": False}
LIGHT: dict[str, Any] = {"extractors": ["random"], "discriminator": False, "n_importance": 2}
SIZES: dict[str, dict[str, Any]] = {"pixel_cnn": {"hidden": 8, "n_blocks": 1}, "vae": {"hidden": 8}}


def table_of(folder: Path) -> Table:
    return Table.from_dict(json.loads((folder / "table.json").read_text()))


@pytest.fixture(scope="module")
def seeds(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two models with two trainings each."""
    out = tmp_path_factory.mktemp("runs") / "all"
    triptych.compare(tiny, ["vae", "pixel_cnn"], out=out, seeds=2, seed=3, options=SIZES, **LIGHT, **QUICK)
    return out


def test_several_seeds_are_trainings_of_one_row(seeds: Path, tiny: Dataset) -> None:
    assert {path.name for path in seeds.iterdir()} == {"seed-3", "seed-4", "table.json", "table.csv", "report.html"}
    row = next(row for row in table_of(seeds).rows if row.name == "vae")
    nll = row.measurements["nll_nats_per_image"]
    assert len(nll.seeds) == 2
    assert nll.seeds[0] != nll.seeds[1]
    assert nll.value == pytest.approx(np.mean(nll.seeds))
    for seed, value in zip((3, 4), nll.seeds, strict=True):
        run = seeds / f"seed-{seed}" / "vae"
        assert json.loads((run / "config.json").read_text())["train"]["seed"] == seed
        alone = triptych.evaluate([run], tiny, seed=3, verbose=False, **LIGHT).table.rows[0]
        assert alone.measurements["nll_nats_per_image"].value == pytest.approx(value)
    page = (seeds / "report.html").read_text()
    assert "2; samples, curves and these facts are of the first" in page
    assert "with seed 3, 4" in page
    assert "seeds=2" in page


def test_a_report_is_written_again_without_training(seeds: Path, tiny: Dataset, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in seeds.rglob("*") if path.is_file()}
    again = triptych.compare_runs(seeds, tiny, out=tmp_path / "again", verbose=False, **LIGHT)
    assert {path: path.stat().st_mtime_ns for path in seeds.rglob("*") if path.is_file()} == before
    for first, second in zip(table_of(seeds).rows, again.table.rows, strict=True):
        assert first.name == second.name
        for key, cell in first.measurements.items():
            if key != "samples_per_second":
                assert second.measurements[key] == cell, key
    with pytest.raises(InputError, match="no finished run"):
        triptych.compare_runs([tmp_path], tiny, out=tmp_path / "x", **LIGHT)
    with pytest.raises(InputError, match="given twice"):
        triptych.compare_runs([seeds, seeds / "seed-3" / "vae"], tiny, out=tmp_path / "x", verbose=False, **LIGHT)
    with pytest.raises(InputError, match="is no folder"):
        triptych.compare_runs(seeds, tiny, out=seeds / "table.json", **LIGHT)
    (tmp_path / "link").symlink_to(seeds / "seed-3" / "vae")
    runs = [seeds / "seed-3" / "vae", tmp_path / "link"]
    with pytest.raises(InputError, match="given twice"):
        triptych.compare_runs(runs, tiny, out=tmp_path / "x", verbose=False, **LIGHT)


def test_what_a_report_lacks_is_told(seeds: Path, tiny: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(seeds, folder)
    (folder / "seed-4" / "vae" / "summary.json").unlink()
    shutil.rmtree(folder / "seed-3" / "vae" / "samples")
    triptych.compare_runs([folder], tiny, out=folder, verbose=False, **LIGHT)
    page = (folder / "report.html").read_text()
    assert f"{folder / 'seed-4' / 'vae'} is missing: its training did not finish." in page
    assert "none left out" in (seeds / "report.html").read_text()
    assert "none left out" not in page
    assert "No samples were kept during training." in page


def test_seeds_stand_in_the_order_of_their_numbers(seeds: Path, tiny: Dataset, tmp_path: Path) -> None:
    for seed, number in ((3, 9), (4, 10)):
        shutil.copytree(seeds / f"seed-{seed}" / "vae", tmp_path / "all" / f"seed-{number}" / "vae")
    again = triptych.compare_runs([tmp_path / "all"], tiny, out=tmp_path / "x", seed=3, verbose=False, **LIGHT)
    cells = [table.rows[0].measurements["training_seconds"].seeds for table in (again.table,)]
    wanted = next(row for row in table_of(seeds).rows if row.name == "vae").measurements["training_seconds"].seeds
    assert cells == [wanted]


def test_trainings_are_added_to_a_comparison_of_one_seed(tiny: Dataset, tmp_path: Path) -> None:
    settings = {"out": tmp_path / "all", "seed": 3, "options": {"vae": SIZES["vae"]}, **LIGHT, **QUICK}
    triptych.compare(tiny, ["vae"], **settings)
    weights = (tmp_path / "all" / "vae" / "model.safetensors").read_bytes()
    triptych.compare(tiny, ["vae"], seeds=2, resume=True, **settings)
    assert (tmp_path / "all" / "vae" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "all" / "seed-3").exists()
    (row,) = (row for row in table_of(tmp_path / "all").rows if row.panel)
    assert len(row.measurements["nll_nats_per_image"].seeds) == 2
    again = triptych.compare_runs([tmp_path / "all"], tiny, out=tmp_path / "again", verbose=False, **LIGHT)
    assert again.table.rows[0].measurements["fd_random"] == row.measurements["fd_random"]


def test_what_estimated_models_are_spared_is_said(tiny: Dataset, tmp_path: Path, seeds: Path) -> None:
    settings = {**QUICK, "budget": "8images", "options": {"vae": SIZES["vae"]}}
    result = triptych.compare(tiny, ["vae", "k_means"], out=tmp_path / "all", **LIGHT, **settings)
    seen = {row.name: row.measurements["training_items"].value for row in result.table.rows[:2]}
    assert seen == {"vae": 8, "k_means": 100}
    assert "a choice by validation: k_means. One such" in (tmp_path / "all" / "report.html").read_text()
    assert "Estimated from all" not in (seeds / "report.html").read_text()


def test_the_page_has_the_call_that_repeats_it(seeds: Path) -> None:
    page = html.unescape((seeds / "report.html").read_text())
    call = "triptych.compare('tiny', ['vae', 'pixel_cnn'], budget='4steps', seed=3, seeds=2, n_importance=2,"
    assert call in page
    for part in ("extractors=['random']", "discriminator=False", f"options={SIZES!r}", "batch_size=8"):
        assert part in page


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(tiny: Dataset, tmp_path: Path) -> None:
    for name, hidden in (("small", 8), ("large", 12)):
        triptych.fit("vae", tiny, out=tmp_path / name, hidden=hidden, **QUICK)
    found = triptych.evaluate([tmp_path / "small", tmp_path / "large"], tiny, verbose=False, **LIGHT)
    assert [row.name for row in found.table.rows[:2]] == ["small", "large"]
    assert found.table.rows[0].measurements["nll_nats_per_image"].seeds == ()
    assert found.table.rows[0].measurements["training_items"].value == 32


def test_models_of_equal_size(tiny: Dataset, tmp_path: Path) -> None:
    result = triptych.compare(tiny, ["pixel_cnn", "vae"], out=tmp_path / "all", parameters=20_000, **LIGHT, **QUICK)
    for row in result.table.rows[:2]:
        n = row.measurements["n_parameters"].value
        assert n is not None
        assert 15_000 < n < 25_000
    with pytest.raises(InputError, match=r"leave out --set vae\.hidden"):
        triptych.compare(tiny, ["vae"], out=tmp_path / "x", parameters=20_000, options={"vae": {"hidden": 4}}, **QUICK)
    assert not (tmp_path / "x").exists()


def test_wrong_comparisons_leave_nothing(tiny: Dataset, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seeds": 0}, "at least once"),
        ({"extractors": ["klassifier"]}, "Did you mean 'classifier'"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_importance": -1}, "n_importance is -1"),
        ({"options": {"gan": {"hidden": 4}}}, "'gan', which is not compared"),
    ]
    for wrong, word in cases:
        with pytest.raises(InputError, match=word):
            triptych.compare(tiny, ["vae"], out=tmp_path / "x", **wrong, **QUICK)
        assert not (tmp_path / "x").exists()


def written(folder: Path, images: np.ndarray) -> Path:
    """A folder of PNG files."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0)).save(folder / f"{number:03d}.png")
    return folder


def test_samples_on_another_scale_are_told_of(tiny: Dataset) -> None:
    given = tiny.test.read()[0]
    samples = {"right": given, "dark": given // 4}
    found = triptych.evaluate_samples(samples, tiny, extractors=["random"], discriminator=False, verbose=False)
    said = [note for note in found.notes if "another scale" in note]
    assert len(said) == 1
    assert said[0].startswith("dark: these samples use 1 level, 0 to 0 of 0 .. 3, and as many training items use 4")


def test_samples_that_are_held_out_items_are_told_of(tiny: Dataset) -> None:
    held_out = tiny.test.read()[0]
    samples = {"taken": held_out, "other": tiny.valid.read()[0]}
    found = triptych.evaluate_samples(samples, tiny, extractors=["random"], discriminator=False, verbose=False)
    said = [note for note in found.notes if "exactly items of the test split" in note]
    assert len(said) == 1
    assert said[0].startswith(f"taken: {len(held_out)} of {len(held_out)} samples")


def test_samples_of_another_tool_in_every_form(tiny: Dataset, tmp_path: Path) -> None:
    items = tiny.valid.read()[0]
    pictures = (items[:, 0].astype(int) * 85).astype(np.uint8)  # 4 levels
    folder = written(tmp_path / "folder", pictures)
    colour = written(tmp_path / "colour", np.repeat(pictures[:, None], 3, axis=1))
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
    np.savez(tmp_path / "arrays.npz", images=items)
    sources = [folder, colour, tmp_path / "packed.zip", tmp_path / "arrays.npz"]
    samples: dict[str, Any] = {path.stem: path for path in sources} | {"array": items}
    light = {"extractors": ["random"], "discriminator": False, "verbose": False}
    found = triptych.evaluate_samples(samples, tiny, **light)
    rows = {row.name: row for row in found.table.rows}
    assert {rows[name].panel for name in samples} == {"samples"}
    # The splits of a source are in random order, and its distances do not depend on it but for rounding.
    for name in samples:
        for key in ("kid_random", "fd_random", "precision_random", "recall_random", "sharpness", "distance_ratio"):
            expected = rows["array"].measurements[key].value
            assert rows[name].measurements[key].value == pytest.approx(expected, rel=1e-6, abs=1e-9), (name, key)
    assert not any(metric.key.startswith(("nll", "bits", "samples_per")) for metric in found.table.metrics)
    assert any("30 samples against 37 held-out items" in note for note in found.notes)
    assert "array" in found.memory


def test_samples_of_another_kind_are_refused(tiny: Dataset, tiny_points: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    larger = written(tmp_path / "larger", rng.integers(0, 256, (20, 9, 8), dtype=np.uint8))
    colour = written(tmp_path / "colour", rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8))
    for source in (larger, colour):
        with pytest.raises(InputError, match=r"give samples of the same size, channels and levels"):
            triptych.evaluate_samples({"them": source}, tiny, verbose=False)
    np.save(tmp_path / "points.npy", rng.normal(size=(40, 3)).astype(np.float32))
    with pytest.raises(InputError, match="the reference 'blobs'"):
        triptych.evaluate_samples({"them": tmp_path / "points.npy"}, tiny_points, verbose=False)
    with pytest.raises(InputError, match="at least one set"):
        triptych.evaluate_samples({}, tiny)
    with pytest.raises(InputError, match="them has no samples"):
        triptych.evaluate_samples({"them": tiny.valid.read()[0][:0]}, tiny, verbose=False)
    with pytest.raises(InputError, match="names a reference row"):
        triptych.evaluate_samples({"noise": tiny.valid.read()[0]}, tiny, verbose=False)


def test_samples_in_the_colours_of_a_palette(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = np.array([[0, 0, 0], [250, 10, 10], [10, 250, 10]], np.uint8)
    indices = rng.integers(0, 3, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=indices, palette=palette)
    data = triptych.load_data(tmp_path / "data.npz")
    folder = written(tmp_path / "folder", palette[indices[:20]].transpose(0, 3, 1, 2))
    light = {"extractors": ["random"], "discriminator": False, "verbose": False}
    found = triptych.evaluate_samples({"folder": folder}, data, **light)
    assert len(found.samples["folder"]) == len(data.test) == 6
    assert set(map(bytes, found.samples["folder"])) <= set(map(bytes, indices[:20]))
    np.savez(tmp_path / "theirs.npz", images=indices, palette=palette[::-1])
    with pytest.raises(InputError, match="their palettes differ; give samples in the reference's palette"):
        triptych.evaluate_samples({"theirs": tmp_path / "theirs.npz"}, data, **light)
    other = written(tmp_path / "other", np.full((20, 3, 8, 8), 77, np.uint8))
    with pytest.raises(InputError, match="the same size, channels"):
        triptych.evaluate_samples({"other": other}, data, **light)
