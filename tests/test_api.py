"""The Python interface, used as a person would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from triptych import ImageSpace, InputError, PointSpace
from triptych.data.dataset import Dataset
from triptych.models.base import TractableDensity
from triptych.sampling.autoregressive import SAMPLERS
from triptych.training.checkpoints import Checkpoints
from triptych.training.trainer import CHECKPOINT_FORMAT

QUICK: dict[str, Any] = {"budget": "4steps", "batch_size": 8, "validations": 2, "verbose": False}
LIGHT: dict[str, Any] = {"extractors": ["random"], "discriminator": False}
NET: dict[str, Any] = {"hidden": 8, "n_blocks": 1}


@pytest.fixture
def run(tiny: Dataset, tmp_path: Path) -> Path:
    """A run folder of a small PixelCNN."""
    triptych.fit("pixel_cnn", tiny, out=tmp_path / "run", **QUICK, **NET)
    return tmp_path / "run"


def test_fit_gives_a_model_and_load_the_same(tiny: Dataset, tmp_path: Path) -> None:
    model = triptych.fit("pixel_cnn", tiny, out=tmp_path / "run", **QUICK, **NET)
    assert isinstance(model, TractableDensity)
    assert not model.training
    x = torch.from_numpy(np.asarray(tiny.test.read()[0]))
    loaded = triptych.load(tmp_path / "run")
    assert isinstance(loaded, TractableDensity)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x), loaded.log_prob(x))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"] == "pixel_cnn"
    assert config["options"] == {**NET, "kernel_size": 7, "dropout": 0.2}
    assert config["data"]["checksum"] == tiny.checksum
    assert config["train"]["budget"] == "4steps"
    assert {"torch", "python", "processor"} <= set(config["environment"])
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.lock",
        "samples",
        "summary.json",
    }


def test_fit_does_not_disturb_the_callers_generator(tiny: Dataset, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    triptych.fit("vae", tiny, out=tmp_path / "run", **QUICK, hidden=8)
    assert torch.equal(before, torch.get_rng_state())


def test_default_folders_do_not_collide(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        triptych.fit("vae", tiny, **QUICK, hidden=8)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["vae-tiny", "vae-tiny-2"]


def test_arrays_are_data(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 2, (60, 9, 8))
    model = triptych.fit("vae", images, out=tmp_path / "run", **QUICK, hidden=8)
    assert model.space == triptych.ImageSpace(1, 9, 8, 2)


@pytest.mark.parametrize(
    ("model", "settings", "word"),
    [
        ("pixelcnn", {}, "Did you mean 'pixel_cnn'"),
        ("vae", {"n_latent": 3}, "Did you mean 'n_latents'"),
        ("vae", {"bugdet": "3s"}, "Did you mean 'budget'"),
        ("vae", {"budget": "0"}, "Budget"),
        ("vae", {"n_latents": "x"}, "n_latents"),
        ("vae", {"resume": True}, "run folder"),
    ],
)
def test_fit_refuses_before_anything_is_written(
    model: str, settings: dict[str, Any], word: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=word) as error:
        triptych.fit(model, tiny, **{**QUICK, **settings})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_fit_refuses_a_taken_folder_and_labels_that_are_not_there(tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        triptych.fit("vae", tiny, out=tmp_path, **QUICK)
    with pytest.raises(InputError, match="no labels"):
        triptych.fit("vae", np.zeros((30, 8, 8), np.uint8), out=tmp_path / "run", conditional=True, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


class TestResume:
    def test_goes_on_from_the_folder_alone(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        whole = triptych.fit("vae", "digits", out=tmp_path / "whole", **QUICK, hidden=8)
        triptych.fit("vae", "digits", out=folder, **QUICK, hidden=8)
        (folder / "summary.json").unlink()  # as if it had been killed at the very end
        (folder / "model.safetensors").unlink()
        resumed = triptych.resume(folder, verbose=False)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_finished_run_is_left_as_it_is(self, run: Path, tiny: Dataset) -> None:
        before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
        triptych.fit("pixel_cnn", tiny, out=run, resume=True, **QUICK, **NET)
        assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"batch_size": 4}, "train.batch_size was 8 and is now 4"),
            ({"seed": 7}, "train.seed was 0 and is now 7"),
            ({"hidden": 4}, "options.hidden was 8 and is now 4"),
            ({"conditional": True}, "n_classes was 0 and is now 2"),
        ],
    )
    def test_refuses_other_settings(self, change: dict[str, Any], word: str, run: Path, tiny: Dataset) -> None:
        with pytest.raises(InputError, match=word):
            triptych.fit("pixel_cnn", tiny, out=run, resume=True, **{**QUICK, **NET, **change})

    def test_refuses_other_data_and_models(self, run: Path, tiny: Dataset) -> None:
        other = triptych.load_data(np.asarray(tiny.train.items)[:, 0] % 4, levels=4)
        with pytest.raises(InputError, match=r"data\.checksum"):
            triptych.fit("pixel_cnn", other, out=run, resume=True, **QUICK, **NET)
        with pytest.raises(InputError, match="model was 'pixel_cnn' and is now 'vae'"):
            triptych.fit("vae", tiny, out=run, resume=True, **QUICK, **NET)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_run_is_told_by_its_missing_file(name: str, run: Path) -> None:
    (run / name).unlink()
    with pytest.raises(InputError, match=name):
        triptych.load(run)


def test_a_run_that_is_none_is_told(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        triptych.load(tmp_path / "nothing")
    (run / "config.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        triptych.load(run)
    (run / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not the configuration"):
        triptych.load(run)


class TestSample:
    def test_writes_what_the_suffix_says(self, run: Path, tmp_path: Path) -> None:
        items = triptych.sample(run, 5, seed=1, out=tmp_path / "s.npz")
        assert items.shape == (5, 1, 8, 8)
        assert np.array_equal(np.load(tmp_path / "s.npz")["images"], items)
        assert np.array_equal(triptych.sample(run, 5, seed=1), items)
        assert not np.array_equal(triptych.sample(run, 5, seed=2), items)
        triptych.sample(run, 5, seed=1, out=tmp_path / "s.npy")
        assert np.array_equal(np.load(tmp_path / "s.npy"), items)
        triptych.sample(run, 5, out=tmp_path / "s.png")
        with Image.open(tmp_path / "s.png") as picture:
            assert picture.width > 3 * 32
        triptych.sample(run, 5, seed=1, out=tmp_path / "pngs")
        assert len(list((tmp_path / "pngs").glob("*.png"))) == 5
        with Image.open(tmp_path / "pngs" / "000000.png") as picture:  # 4 levels over 0 .. 255
            assert np.array_equal(np.asarray(picture)[..., 0], items[0, 0] * 85)

    @pytest.mark.parametrize(
        ("n", "out", "word"), [(0, None, "at least 1"), (2, "a.jpg", ".png"), (2, "no/such/a.png", "does not exist")]
    )
    def test_refuses(self, n: int, out: str | None, word: str, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=word):
            triptych.sample(run, n, out=None if out is None else tmp_path / out)

    def test_labels(self, tiny: Dataset, tmp_path: Path) -> None:
        model = triptych.fit("vae", tiny, out=tmp_path / "run", conditional=True, **QUICK, hidden=8)
        assert model.n_classes == 2
        assert triptych.sample(model, 4).shape == (4, 1, 8, 8)
        assert triptych.sample(model, 2, labels=[1, 1]).shape == (2, 1, 8, 8)
        with pytest.raises(InputError, match="labels"):
            triptych.sample(model, 2, labels=[5, 1])

    def test_every_sampler_draws_the_same(self, run: Path) -> None:
        items = triptych.sample(run, 5, seed=1)
        for sampler in SAMPLERS:
            assert np.array_equal(triptych.sample(run, 5, seed=1, sampler=sampler), items), sampler
        assert not np.array_equal(triptych.sample(run, 5, seed=1, temperature=0.2), items)
        likeliest = triptych.sample(run, 5, top_k=1)
        assert np.array_equal(likeliest, np.repeat(likeliest[:1], 5, axis=0))
        assert np.array_equal(triptych.sample(run, 5, top_p=1e-9), likeliest)

    def test_files_say_that_warped_draws_are_not_from_the_model(self, run: Path, tmp_path: Path) -> None:
        note = "temperature 0.5, top_p 0.9: these are not draws from p(x)"
        for warp, expected in (({"temperature": 0.5, "top_p": 0.9}, note), ({}, None)):
            for name in ("s.png", "s.npz", f"pngs{len(warp)}", "s.gif"):
                where = {"animate": tmp_path / name} if name == "s.gif" else {"out": tmp_path / name}
                triptych.sample(run, 2, **warp, **where)
            with np.load(tmp_path / "s.npz") as file:
                assert set(file) == {"images", *(["comment"] if expected else [])}
                assert expected is None or file["comment"] == expected
            for name in ("s.png", f"pngs{len(warp)}/000001.png"):
                with Image.open(tmp_path / name) as picture:
                    assert picture.info.get("Comment") == expected
            with Image.open(tmp_path / "s.gif") as picture:
                assert picture.info.get("comment") == (expected.encode() if expected else None)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("sampler", "row"), ("temperature", 0.5), ("top_k", 3), ("top_p", 0.9), ("animate", "a.gif")],
    )
    def test_other_models_take_no_options_of_drawing(
        self, option: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name, space in (("gan", ImageSpace(1, 8, 8, 4)), ("gaussian_mixture", PointSpace(2))):
            model = triptych.create_model(name, space)
            with pytest.raises(InputError, match=rf"leave out {option}, .*pixel_cnn"):
                triptych.sample(model, 2, out="s.png", **{option: value})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"sampler": "fast"}, "no sampler"),
            ({"temperature": 0}, "temperature"),
            ({"top_k": -1}, "top_k"),
            ({"top_p": 1.5}, "top_p"),
            ({"animate": "a.mp4"}, ".gif"),
            ({"animate": "no/a.gif"}, "does not exist"),
            ({"animate": "a.png", "out": "./a.png"}, "twice"),
            ({"labels": [0, 1]}, "not class-conditional"),
            ({"seed": -1}, "seed"),
            ({"labels": [0.5, 1]}, "labels begin with 0.5; they must be whole numbers"),
            ({"labels": ["cat", "dog"]}, "'cat'"),
            ({"labels": [10**30] * 2}, "whole numbers"),
        ],
    )
    def test_refuses_options(
        self, options: dict[str, Any], word: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(InputError, match=word):
            triptych.sample(run, 2, **({"out": "s.png"} | options))
        assert not list(Path().iterdir())

    def test_a_file_that_may_not_be_written_is_told_before_drawing(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(InputError, match="may not be written"):
            triptych.sample(run, 2, out=tmp_path / "s.png")
        with pytest.raises(InputError, match="may not be written"):
            triptych.sample(run, 2, animate=tmp_path / "s.gif")


def test_score_is_typed(run: Path, tiny: Dataset, tmp_path: Path) -> None:
    exact = triptych.score(run, tiny.test)
    assert (exact.kind, exact.measure, exact.nats.shape) == ("exact", "discrete", (37,))
    vae = triptych.fit("vae", tiny, out=tmp_path / "vae", **QUICK, hidden=8)
    bound = triptych.score(vae, np.asarray(tiny.test.items))
    assert bound.kind == "lower bound"
    assert triptych.score(vae, tiny.test, n_importance=8).n_samples == 8
    gan = triptych.fit("gan", tiny, out=tmp_path / "gan", **QUICK, hidden=8)
    with pytest.raises(InputError, match="no likelihood"):
        triptych.score(gan, tiny.test)
    with pytest.raises(InputError, match="shape"):
        triptych.score(run, np.zeros((2, 1, 7, 7), np.uint8))


def test_evaluate_runs(run: Path, tiny: Dataset, tmp_path: Path) -> None:
    triptych.fit("vae", tiny, out=tmp_path / "vae", **QUICK, hidden=8)
    table = triptych.evaluate([run, tmp_path / "vae"], tiny, n_importance=4, verbose=False, **LIGHT).table
    rows = {row.name: row.measurements for row in table.rows}
    assert list(rows) == ["pixel_cnn", "vae", "train vs held-out", "blurred", "copies of the training set", "noise"]
    assert rows["pixel_cnn"]["bits_per_dim"].kind == "exact"
    assert rows["vae"]["bits_per_dim"].kind == "lower bound"
    assert rows["pixel_cnn"]["bits_per_dim"].n == 37
    with pytest.raises(InputError, match="arrays in memory"):
        triptych.evaluate([run], verbose=False)
    with pytest.raises(InputError, match="at least one"):
        triptych.evaluate([], tiny)
    with pytest.raises(InputError, match="holds 2-D points"):
        triptych.evaluate([run], "ring8", verbose=False)


def test_compare_leaves_everything_and_resumes(tiny: Dataset, tmp_path: Path) -> None:
    out, names = tmp_path / "all", ["pixel_cnn", "vae", "gan"]
    options = {"pixel_cnn": NET, "vae": {"hidden": 8}, "gan": {"hidden": 8}}
    settings: dict[str, Any] = {**QUICK, **LIGHT, "n_importance": 2, "options": options}
    result = triptych.compare(tiny, names, out=out, **settings)
    assert {path.name for path in out.iterdir()} == {*names, "table.json", "table.csv", "report.html"}
    assert list(result.models) == names
    page = (out / "report.html").read_text()
    assert "PixelCNN" in page
    assert tiny.checksum in page
    table = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in table["rows"]][:3] == ["pixel_cnn", "vae", "gan"]
    gan = next(row for row in table["rows"] if row["name"] == "gan")
    assert gan["measurements"]["bits_per_dim"]["value"] is None
    with pytest.raises(InputError, match="not empty"):
        triptych.compare(tiny, names, out=out, **settings)
    weights = (out / "vae" / "model.safetensors").read_bytes()
    (out / "gan" / "summary.json").unlink()
    again = triptych.compare(tiny, names, out=out, resume=True, **settings)
    assert (out / "vae" / "model.safetensors").read_bytes() == weights
    for first, second in zip(result.models["gan"].parameters(), again.models["gan"].parameters(), strict=True):
        assert torch.equal(first, second)


def test_runs_of_two_comparisons_are_measured_together(tiny: Dataset, tmp_path: Path) -> None:
    for folder in ("a", "b"):  # The same seed twice is no second training, but another run.
        triptych.fit("vae", tiny, out=tmp_path / folder / "vae", **QUICK, hidden=8)
    light: dict[str, Any] = {**LIGHT, "n_importance": 2, "verbose": False}
    runs = [tmp_path / "a" / "vae", tmp_path / "b" / "vae"]
    found = triptych.evaluate(runs, tiny, **light)
    assert [row.name for row in found.table.rows][:2] == ["a-vae", "b-vae"]
    assert next(row.name for row in triptych.evaluate(runs[0], tiny, **light).table.rows) == "vae"
    with pytest.raises(InputError, match="are the same run"):
        triptych.evaluate([runs[0], tmp_path / "b" / ".." / "a" / "vae"], tiny, **light)


def test_samples_may_be_tensors_or_lists_but_not_two(tiny: Dataset, tmp_path: Path) -> None:
    items = np.asarray(tiny.train.items)[:30]
    given: dict[str, Any] = {"tensor": torch.from_numpy(items), "array": items}
    found = triptych.evaluate_samples(given, tiny, verbose=False, **LIGHT)
    tensor, array = (row.measurements["fd_random"].value for row in found.table.rows[:2])
    assert tensor == array
    np.savez(tmp_path / "two.npz", images=items[:2])
    with pytest.raises(InputError, match="too few samples"):
        triptych.evaluate_samples({"two": tmp_path / "two.npz"}, tiny, verbose=False)


def test_one_model_that_diverges_does_not_cost_the_others_their_row(tiny: Dataset, tmp_path: Path) -> None:
    wild: dict[str, Any] = {**QUICK, "learning_rate": 1e38, "warmup_steps": 0}
    options = {"gaussian_mixture": {"n_components": 2}}
    with pytest.raises(triptych.TrainingStopped, match=r"gan stopped; the others are in"):
        triptych.compare(tiny, ["gan", "gaussian_mixture"], out=tmp_path / "all", options=options, **LIGHT, **wild)
    table = json.loads((tmp_path / "all" / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == [
        "gaussian_mixture",
        "train vs held-out",
        "blurred",
        "copies of the training set",
        "noise",
    ]
    assert "gan is missing" in (tmp_path / "all" / "report.html").read_text()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(run: Path, tiny: Dataset) -> None:
    before = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    for file in ("model.safetensors", "summary.json", "metrics.jsonl"):
        (run / file).unlink()
    triptych.fit("pixel_cnn", tiny, out=run, resume=True, **QUICK, **NET)
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"train": {"batch_size": "x"}, "options": {}, "model": "vae"}'])
def test_a_damaged_config_is_told_on_resume(content: str, run: Path) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(InputError, match="not the configuration"):
        triptych.resume(run, verbose=False)


def test_a_checkpoint_of_something_else_is_told(run: Path, tiny: Dataset) -> None:
    (run / "summary.json").unlink()
    begun = {"format": CHECKPOINT_FORMAT, "step": 0, "position": 0, "seconds": 0.0, "stage": (0, 0.0, 0), "model": {}}
    for content in ([1, 2], {"format": CHECKPOINT_FORMAT}, begun):
        Checkpoints(run, 1).write(100, content)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"does not fit the run|is no checkpoint"):
            triptych.fit("pixel_cnn", tiny, out=run, resume=True, **QUICK, **NET)


def test_points_may_be_float64_and_models_are_frozen(tiny_points: Dataset, tmp_path: Path) -> None:
    triptych.fit("vae", tiny_points, out=tmp_path / "run", **QUICK, hidden=8)
    model = triptych.load(tmp_path / "run")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert triptych.score(model, np.random.default_rng(0).normal(size=(5, 2))).nats.shape == (5,)


def test_loading_does_not_disturb_the_callers_generator(run: Path) -> None:
    before = torch.get_rng_state()
    triptych.load(run)
    assert torch.equal(before, torch.get_rng_state())


def test_other_splits_are_measured_with_a_word(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 2, (80, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    first, other = (triptych.load_data(tmp_path / "images.npy", seed=seed) for seed in (0, 1))
    triptych.fit("vae", first, out=tmp_path / "run", **QUICK, hidden=8)
    for data, told in ((first, False), (other, True)):
        notes = triptych.evaluate([tmp_path / "run"], data, verbose=False, **LIGHT).notes
        assert any("not the data set" in note for note in notes) == told


def test_compare_points(tiny_points: Dataset, tmp_path: Path) -> None:
    result = triptych.compare(
        tiny_points,
        ["gaussian_mixture", "vae", "gan"],
        out=tmp_path / "all",
        conditional=True,
        n_importance=2,
        discriminator=False,
        options={"gaussian_mixture": {"n_components": 2}},
        **QUICK,
    )
    rows = {row.name: row.measurements for row in result.table.rows}
    assert rows["gaussian_mixture"]["nll_nats_per_point"].measure == "continuous"
    assert rows["gan"]["nll_nats_per_point"].value is None


@pytest.mark.parametrize(
    ("models", "options", "word"),
    [
        ([], {}, "at least one"),
        (["vae", "vae"], {}, "twice"),
        (["vae", "gann"], {}, "Did you mean 'gan'"),
        (["vae"], {"vae": {"hiden": 3}}, "Did you mean 'hidden'"),
    ],
)
def test_compare_refuses_before_training(
    models: list[str], options: dict[str, Any], word: str, tiny: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=word):
        triptych.compare(tiny, models, out=tmp_path / "all", options=options, **QUICK)
    assert not (tmp_path / "all").exists()


def test_models_are_listed() -> None:
    assert {"pixel_cnn", "vae", "gan", "gaussian_mixture"} <= set(triptych.list_models())
    assert triptych.list_models("implicit") == ["big_gan", "gan", "pix2pix", "r3_gan"]
    model = triptych.create_model("pixel_cnn", triptych.ImageSpace(channels=1, height=28, width=28, levels=2))
    assert model.space.n_dims == 784
