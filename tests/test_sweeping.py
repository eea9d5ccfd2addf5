"""Sweeps: every combination is trained, the best is named, and a second call goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from triptych import cli
from triptych.cli.words import parse_values
from triptych.data.dataset import Dataset
from triptych.errors import InputError, TrainingStopped
from triptych.sweeping import combine, sweep


def test_every_combination_is_there_once() -> None:
    assert combine({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    for over, words in (({}, "name a setting"), ({"a": []}, "no values"), ({"a": [1, 1]}, "twice")):
        with pytest.raises(InputError, match=words):
            combine(over)  # type: ignore[arg-type]


def test_values_are_literals_or_words() -> None:
    assert parse_values("0.1,1,none") == [0.1, 1, "none"]
    assert parse_values("0.1,1") == [0.1, 1]
    assert parse_values("64") == [64]
    assert parse_values("r1_r2") == ["r1_r2"]


def test_a_broken_setting_is_the_worst_and_a_good_one_the_best(tiny: Dataset, tmp_path: Path) -> None:
    """With a rate of one millionth a model learns nothing."""
    found = sweep(
        "vae",
        tiny,
        {"learning_rate": [1e-6, 3e-3], "n_latents": [2]},
        out=tmp_path / "sweep",
        budget="60steps",
        validations=3,
        verbose=False,
    )
    assert [trial.settings["learning_rate"] for trial in found.trials] == [3e-3, 1e-6]
    assert found.measure == "validation nats per item"
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["score"] for trial in saved["trials"]] == [trial.score for trial in found.trials]
    weights = tmp_path / "sweep" / found.trials[0].run / "model.safetensors"
    before = weights.stat().st_mtime_ns
    settings = {"out": tmp_path / "sweep", "budget": "60steps", "validations": 3, "verbose": False}
    over = {"learning_rate": [1e-6, 3e-3], "n_latents": [2]}
    assert sweep("vae", tiny, over, resume=True, **settings) == found  # type: ignore[arg-type]
    assert weights.stat().st_mtime_ns == before, "nothing is trained again"
    with pytest.raises(InputError, match="not empty"):
        sweep("vae", tiny, over, **settings)  # type: ignore[arg-type]


def test_a_gan_is_ranked_by_its_distance_and_a_training_that_stops_comes_last(tmp_path: Path) -> None:
    found = sweep(
        "gan",
        "ring8",
        {"learning_rate": [1e-3, 1e30]},
        out=tmp_path / "sweep",
        budget="12steps",
        validations=2,
        log_every=1,
        hidden=8,
        rollbacks=0,
        verbose=False,
    )
    assert found.measure == "distance of samples to the validation items"
    assert [trial.settings["learning_rate"] for trial in found.trials] == [1e-3, 1e30]
    best, worst = found.trials
    assert best.score is not None
    assert worst.score is None
    assert worst.findings


def test_what_cannot_be_swept_is_refused_before_anything_is_trained(tiny: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    cases = (
        ({"over": {"hiden": [1]}}, "no option 'hiden'"),
        ({"over": {"learning_rate": [0.1, -1]}}, "learning_rate is -1"),
        ({"over": {"n_latents": [2, 0]}}, "n_latents"),
        ({"over": {"n_latents": [2]}, "n_latents": 3}, "both set and swept"),
        ({"over": {"n_latents": [2]}, "resume": True, "out": None}, "give --out"),
    )
    for settings, words in cases:
        with pytest.raises(InputError, match=words):
            sweep("vae", tiny, **{"out": out, "verbose": False, **settings})  # type: ignore[arg-type]
    assert not out.exists()


def test_nothing_to_rank_by_is_told(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation score"):
        sweep("vae", tiny, {"n_latents": [2]}, out=tmp_path / "sweep", budget="2steps", validations=0, verbose=False)


def test_if_every_training_stops_so_does_the_sweep(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise TrainingStopped("The loss is no longer finite.")

    monkeypatch.setattr("triptych.api.fit", stop)
    with pytest.raises(TrainingStopped, match="no longer finite"):
        sweep("vae", tiny, {"n_latents": [2, 3]}, out=tmp_path / "sweep", verbose=False)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(17, size=(120, 1, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    words = ["sweep", "vae", str(tmp_path / "images.npy"), "--levels", "17", "--budget", "4steps"]
    words += ["--over", "n_latents=2,3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["triptych", *words])
    cli.main()
    told = capsys.readouterr().out
    assert "n_latents=2" in told
    assert "n_latents=3" in told
    assert (tmp_path / "out" / "sweep.json").is_file()


def test_training_settings_are_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--set", "budget=5steps", "--over", "gamma=1"], "write --budget"),
        (["--learning-rate", "0.1", "--over", "learning_rate=0.1,0.2"], "both set and swept"),
    ):
        monkeypatch.setattr(sys, "argv", ["triptych", "sweep", "gan", "ring8", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
