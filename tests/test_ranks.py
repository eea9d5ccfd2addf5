"""What several processes draw and measure is what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import command, together

import triptych
from triptych import ranks

MODELS = {
    "vae": {"hidden": 8, "n_latents": 4},
    "gan": {"hidden": 8, "n_latents": 4},
    "pixel_cnn": {"hidden": 8, "n_blocks": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each panel."""
    root = tmp_path_factory.mktemp("runs")
    for name, options in MODELS.items():
        triptych.fit(name, "digits", out=root / name, budget="3steps", validations=1, verbose=False, **options)
    return root


def told(n: int, *words: str | Path) -> str:
    """What a command prints that n processes carry out."""
    done = together(n, command, [str(word) for word in words])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MODELS)
def test_draws_do_not_hang_on_the_number_of_processes(name: str, runs: Path, tmp_path: Path) -> None:
    n = 600  # three blocks, the last of them not full
    alone = triptych.sample(runs / name, n, seed=3, verbose=False)
    said = told(2, "sample", runs / name, "-n", str(n), "--seed", "3", "--out", tmp_path / "two.npy")
    assert said.count("600 samples") == 1, "the first process alone prints"
    assert np.array_equal(np.load(tmp_path / "two.npy"), alone)
    halves = alone[:256], alone[256:512]
    assert not np.array_equal(*halves), "each block has noise of its own"


def test_scores_do_not_hang_on_the_number_of_processes(runs: Path, tmp_path: Path) -> None:
    words = ("score", runs / "vae", "digits", "--importance-samples", "3")
    told(1, *words, "--out", tmp_path / "1.csv")
    told(3, *words, "--out", tmp_path / "3.csv")
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "3.csv").read_text()
    assert len((tmp_path / "1.csv").read_text().splitlines()) == 361


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("--features", "random", "--no-discriminator"), id="distances"),
        pytest.param((), id="everything", marks=pytest.mark.slow),
    ],
)
def test_tables_do_not_hang_on_the_number_of_processes(settings: tuple[str, ...], runs: Path) -> None:
    words = ("evaluate", runs / "vae", runs / "gan", "--n-samples", "100", "--importance-samples", "2", "--json")
    one, two = (json.loads(told(n, *words, *settings)) for n in (1, 2))
    for table in (one, two):
        for row in table["rows"]:
            row["measurements"].pop("samples_per_second", None)
    assert one == two


def test_verbs_that_one_process_does_say_so() -> None:
    done = together(1, command, ["models"])
    assert done.returncode == 2
    assert "torchrun is for fit, sample, score and evaluate" in done.stderr


@pytest.mark.slow
def test_torchrun_draws(runs: Path, tmp_path: Path) -> None:
    # torchrun would take --n for one of its own options, abbreviated.
    words = ["sample", str(runs / "vae"), "-n", "600", "--out", str(tmp_path / "two.npy")]
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "triptych"]
    done = subprocess.run([*begin, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "two.npy"), triptych.sample(runs / "vae", 600, verbose=False))


def test_alone_parts_are_done_in_order() -> None:
    assert ranks.in_parts(4, lambda part: part * part) == [0, 1, 4, 9]
    assert ranks.is_first()


def test_parts_have_noise_of_their_own() -> None:
    seeds = {ranks.part_seed(seed, part) for seed in range(50) for part in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert ranks.part_seed(7, 0) == 7, "what one block draws is what a plain generator of that seed draws"
