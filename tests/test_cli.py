"""The command line: every verb, and one clear line with status 2 for every wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from triptych import api, cli
from triptych.cli.drawing import DrawConfig
from triptych.cli.words import parse_settings
from triptych.errors import InputError
from triptych.sampling.autoregressive import SAMPLERS

SMALL = ["--budget", "3steps", "--batch-size", "8", "--validations", "1"]


def triptych(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Runs the command in this process: status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["triptych", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of small images."""
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (60, 8, 8)).astype(np.uint8))
    return path


def test_the_verbs_one_after_the_other(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def ok(*arguments: str) -> str:
        code, out, err = triptych(list(arguments), capsys, monkeypatch)
        assert code == 0, err
        return out

    source = str(images)
    assert "8x8" in ok("data", "show", source, "--out", "data.png")
    assert Path("data.png").stat().st_size > 100
    assert "pixel_cnn" in ok("models")
    assert "n_latents" in ok("models", "vae")
    out = ok("fit", "pixel_cnn", source, "--out", "run", "--set", "hidden=8", "n_blocks=1", *SMALL)
    assert "parameters" in out
    assert json.loads(Path("run/config.json").read_text())["options"]["hidden"] == 8
    assert "nothing to do" in ok("fit", "--resume", "run")
    assert "samples.png" in ok("sample", "run", "-n", "4")
    assert Path("samples.png").is_file()
    out = ok("sample", "run", "-n", "4", "--sampler", "jacobi", "--temperature", "0.5", "--animate", "drawing.gif")
    assert "drawing.gif" in out
    assert "temperature 0.5: these are not draws from p(x)" in out
    with Image.open("drawing.gif") as animation:
        assert animation.n_frames > 1
    assert "not draws" not in ok("sample", "run", "-n", "4")
    out = ok("complete", "run", "--items", "0,2", "-n", "3", "--animate", "completing.apng")
    assert "32 of 64 sites kept" in out
    assert len([line for line in out.splitlines() if "test 2  completion" in line]) == 3
    assert Path("completed.png").is_file()
    assert Path("completing.apng").is_file()
    again = ok("complete", "run", "--items", "0,2", "-n", "3", "--out", "completed.npz")
    assert again.splitlines()[:9] == out.splitlines()[:9]
    assert np.load("completed.npz")["images"].shape == (2, 3, 1, 8, 8)
    ok("sample", "run", "-n", "1", "--out", "one")
    out = ok("complete", "run", "one/000000.png", "--keep", "first:5", "--top-k", "1")
    assert "5 of 64 sites kept" in out
    assert "top_k 1: these are not draws from p(rest | kept)" in out
    assert "images.npy 59" in ok("complete", "run", source, "--items", "59", "-n", "1")
    out = ok("score", "run", source, "--out", "scores.csv")
    assert "exact" in out
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 6
    assert "n = 60" in ok("score", "run", source, "--split", "all")
    table = json.loads(ok("evaluate", "run", "--json"))
    assert table["rows"][0]["name"] == "pixel_cnn"
    assert table["memory"].keys() <= {row["name"] for row in table["rows"]}
    ok("sample", "run", "--n", "40", "--out", "mine.npz")
    light = ["--features", "random", "--no-discriminator"]
    odd = "mine\x7f\xa0\u2028\U000e0001"
    Path("mine.npz").rename(f"{odd}.npz")
    table = json.loads(ok("evaluate", "--samples", f"{odd}.npz", "--reference", source, "--json", *light))
    assert table["rows"][0]["name"] == odd
    assert table["rows"][0]["measurements"]["kid_random"]["n"] == 6
    out = ok("compare", source, "--models", "vae,gan", "--set", "vae.hidden=8", "gan.hidden=8", *light, *SMALL)
    assert "not defined" in out
    assert Path("runs/compare-images/report.html").is_file()
    assert "triptych compare" in Path("runs/compare-images/report.html").read_text()
    Path("runs/compare-images/report.html").unlink()
    assert "Report: runs/compare-images/report.html" in ok("report", "runs/compare-images", *light)
    assert "triptych report" in Path("runs/compare-images/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("fit", "fit MODEL SOURCE"),
        ("fit vae", "fit MODEL SOURCE"),
        ("fit pixelcnn digits", "Did you mean 'pixel_cnn'"),
        ("fit vae digit", "Did you mean 'digits'"),
        ("fit vae no/such/folder", "no/such/folder"),
        ("fit vae digits --budget 0", "Budget"),
        ("fit vae digits --budget soon", "Budget"),
        ("fit vae digits --bugdet 3s", "Did you mean --budget"),
        ("fit vae digits --seed x", "seed"),
        ("fit vae digits --set hiden=3", "Did you mean 'hidden'"),
        ("fit vae digits --set seed=3", "seed is no option of a model but a setting of the training; give --seed."),
        ("fit vae digits --set checkpoint_every=9s", "give --checkpoint-every."),
        ("fit vae digits --set out=x", "vae has no option 'out'"),
        ("fit vae digits --set verbose=False", "vae has no option 'verbose'"),
        ("fit vae digits --set hidden", "KEY=VALUE"),
        ("fit vae digits --set hidden=8 hidden=9", "twice"),
        ("fit vae digits --set hidden=big", "hidden"),
        ("fit vae digits --precision 8", "precision"),
        ("fit pixel_cnn ring8", "images"),
        ("fit vae digits --limit 0", "limit"),
        ("fit vae digits --size huge", "--size"),
        ("fit --resume no/run", "no/run"),
        ("fit vae --resume no/run", "nothing else"),
        ("sample", "RUN"),
        ("sample no/run", "no/run"),
        ("score no/run digits", "no/run"),
        ("evaluate", "at least one run"),
        ("evaluate no/run", "no/run"),
        ("evaluate --samples no/folder --reference digits", "no/folder"),
        ("evaluate --samples no/folder", "give both"),
        ("evaluate --reference digits", "give both"),
        ("evaluate run --samples a --reference digits", "one or the other"),
        ("evaluate --samples a --reference digits --n-samples 3", "--n-samples"),
        ("evaluate --samples a a --reference digits", "given twice"),
        ("evaluate no/run --grey", "--reference"),
        ("report no/run --out x", "no/run"),
        ("report", "at least one run"),
        ("report a b", "--out"),
        ("compare digits --seeds 0 --budget 1steps", "at least once"),
        ("compare digits --parameters 5 --budget 1steps", "cannot have some 5 parameters"),
        ("compare digits --features rondom --budget 1steps", "Did you mean 'random'"),
        ("compare digits --features , --budget 1steps", "--features"),
        ("compare digits --models", "at least one model"),
        ("compare digits --modles vae", "triptych compare --help"),
        ("compare digits --models vae,vae --budget 1steps", "twice"),
        ("compare digits --models vae,gann", "Did you mean 'gan'"),
        ("compare digits --models vae --set gan.hidden=3", "gan.hidden"),
        ("compare digits --models vae --set vae.hiden=3", "Did you mean 'hidden'"),
        ("compare digits --models vae --set vae.space=3", "vae has no option 'space'"),
        ("sweep vae digits --over strategy=x,y", "strategy is 'x'; it must be one of ddp, fsdp"),
        ("models vaee", "Did you mean 'vae'"),
        ("fit vae digits --seed 99999999999999999999999", "seed"),
        ("fit vae digits --budget 1steps --out /dev/null/run", "/dev/null"),
        ("data draw digits", "show"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_wrong_input_gets_one_line_and_status_2(
    arguments: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = triptych(arguments.split(), capsys, monkeypatch)
    assert code == 2
    assert word in err
    assert len(err.strip().splitlines()) == 1
    assert "dummy" not in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of a PixelCNN with two classes and of a GAN, and pictures to complete."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 4, (30, 8, 8)).astype(np.uint8), labels=np.arange(30) % 2)
    data = api.load_data(folder / "images.npz", levels=4)
    settings = {"budget": "2steps", "batch_size": 4, "validations": 1, "verbose": False, "hidden": 4}
    api.fit("pixel_cnn", data, out=folder / "pixel_cnn", conditional=True, n_blocks=1, **settings)
    api.fit("gan", data, out=folder / "gan", **settings)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "right.png")
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(folder / "small.png")
    np.save(folder / "bright.npy", np.full((3, 8, 8), 200, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("sample RUNS/gan --temperature 0.5", "leave out temperature"),
        ("sample RUNS/gan --truncation 0", "truncation is 0"),
        ("evaluate RUNS/gan --seed -1", "seed"),
        ("evaluate RUNS/gan --n-samples 0", "n_samples"),
        ("report RUNS --seed -1", "seed"),
        ("report RUNS/gan", "--out"),
        ("report RUNS/gan RUNS/gan --out x", "twice"),
        ("report RUNS --out RUNS/bright.npy", "is no folder"),
        ("evaluate --samples RUNS/small.png --reference RUNS/images.npz", "small.png"),
        ("sample RUNS/pixel_cnn --truncation 0.5", "leave out truncation, which"),
        ("sample RUNS/gan --animate a.gif", "leave out animate"),
        ("sample RUNS/pixel_cnn --sampler fast", "sampler"),
        ("sample RUNS/pixel_cnn --temperature -1", "temperature"),
        ("sample RUNS/pixel_cnn --top-p 2", "top_p"),
        ("sample RUNS/pixel_cnn --animate a.mp4", ".gif"),
        ("sample RUNS/pixel_cnn --animate samples.png", "twice"),
        ("sample RUNS/pixel_cnn --label 2", "labels are 2 .. 2"),
        ("sample RUNS/pixel_cnn -n -3", "at least 1"),
        ("sample RUNS/pixel_cnn --out /dev/null/a.png", "/dev/null"),
        ("complete", "RUN"),
        ("complete no/run", "no/run"),
        ("complete RUNS/gan", "cannot complete images"),
        ("complete RUNS/pixel_cnn --items 99", "no item 99"),
        ("complete RUNS/pixel_cnn --items 1-3", "0,1,2"),
        ("complete RUNS/pixel_cnn --keep left:0.5", "raster order"),
        ("complete RUNS/pixel_cnn --keep all", "top:0.5"),
        ("complete RUNS/pixel_cnn --keep top:8", "64 of an image's 64"),
        ("complete RUNS/pixel_cnn --keep top:0.01", "0 of an image's 64"),
        ("complete RUNS/pixel_cnn -n 0", "at least 1"),
        ("complete RUNS/pixel_cnn --label 7", "labels are 7 .. 7"),
        ("complete RUNS/pixel_cnn --out a.jpg", ".png or .npz"),
        ("complete RUNS/pixel_cnn --out no/a.png", "does not exist"),
        ("complete RUNS/pixel_cnn --out RUNS", "RUNS"),
        ("complete RUNS/pixel_cnn --animate a.mp4", ".gif"),
        ("complete RUNS/pixel_cnn --seed -1", "seed"),
        ("complete RUNS/pixel_cnn --levels 4", "levels does not apply"),
        ("complete RUNS/pixel_cnn RUNS/right.png", "give --label 0 .. 1"),
        ("complete RUNS/pixel_cnn RUNS/small.png --label 0", "give --size 8x8"),
        ("complete RUNS/pixel_cnn RUNS/none.png", "none.png"),
        ("complete RUNS/pixel_cnn RUNS/bright.npy", "give --levels 4"),
        ("complete RUNS/pixel_cnn digits", "17 levels"),
    ],
)
def test_wrong_drawings_get_one_line_and_status_2(
    arguments: str,
    word: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = triptych(arguments.replace("RUNS", str(runs)).split(), capsys, monkeypatch)
    assert code == 2
    assert word.replace("RUNS", str(runs)) in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_the_samplers_of_the_command_are_all_there_are() -> None:
    assert get_args(get_type_hints(DrawConfig)["sampler"]) == SAMPLERS


@pytest.mark.parametrize("policy", [None, "active"])
def test_threads_wait_asleep_where_the_user_has_not_said_how(policy: str | None) -> None:
    """GNU's OpenMP reads its settings when PyTorch loads it: they must be there before."""
    code = (
        "import os, sys; from triptych.cli import main; assert 'torch' not in sys.modules; sys.argv[1:] = ['models'];"
        " main(); assert 'torch' in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'), file=sys.stderr)"
    )
    known = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = known if policy is None else known | {"OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.split()[-1] == ("5000" if policy is None else "None"), done.stderr


def test_settings_are_python_literals_or_words() -> None:
    assert parse_settings(["a=1", "b=0.5", "c=True", "d=full", "e=x=y"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "full",
        "e": "x=y",
    }
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_settings(["=3"])


def test_help_names_every_verb_and_exits_clean() -> None:
    def output(flag: str) -> str:
        command = [sys.executable, "-m", "triptych", flag]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert all(verb in output("--help") for verb in cli.VERBS)
    assert output("--version").startswith("triptych ")


def test_a_repeated_set_keeps_all_its_settings() -> None:
    words = ["fit", "vae", "digits", "--set", "hidden=8", "--budget", "5s", "--set=n_latents=2", "--set", "beta=1"]
    assert cli.parse(words).settings == ("hidden=8", "n_latents=2", "beta=1")
    assert cli.parse(words).train.budget == "5s"
    assert cli.parse(["fit", "vae", "digits", "--set", "hidden=8"]).settings == ("hidden=8",)
