"""The command line: every verb, and one clear line with status 2 for every wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triptych import cli
from triptych.errors import InputError

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
    out = ok("score", "run", source, "--out", "scores.csv")
    assert "exact" in out
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 6
    assert "n = 60" in ok("score", "run", source, "--split", "all")
    table = json.loads(ok("evaluate", "run", "--json"))
    assert table["rows"][0]["name"] == "pixel_cnn"
    out = ok("compare", source, "--models", "vae,gan", "--set", "vae.hidden=8", "gan.hidden=8", *SMALL)
    assert "not defined" in out
    assert Path("runs/compare-images/report.html").is_file()
    assert "triptych compare" in Path("runs/compare-images/report.html").read_text()


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
        ("compare digits --models", "at least one model"),
        ("compare digits --modles vae", "triptych compare --help"),
        ("compare digits --models vae,vae --budget 1steps", "twice"),
        ("compare digits --models vae,gann", "Did you mean 'gan'"),
        ("compare digits --models vae --set gan.hidden=3", "gan.hidden"),
        ("compare digits --models vae --set vae.hiden=3", "Did you mean 'hidden'"),
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


def test_settings_are_python_literals_or_words() -> None:
    assert cli.parse_settings(["a=1", "b=0.5", "c=True", "d=full", "e=x=y"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "full",
        "e": "x=y",
    }
    with pytest.raises(InputError, match="KEY=VALUE"):
        cli.parse_settings(["=3"])


def test_help_names_every_verb_and_exits_clean() -> None:
    def output(flag: str) -> str:
        command = [sys.executable, "-m", "triptych", flag]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert all(verb in output("--help") for verb in cli.VERBS)
    assert output("--version").startswith("triptych ")
