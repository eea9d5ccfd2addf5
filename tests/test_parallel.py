"""Several processes that share each batch train as one does with all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from ranks import tell_parts, train, train_all
from torch import nn

import triptych
from triptych import ImageSpace, InputError, parallel
from triptych.config import TrainConfig
from triptych.models.registry import create_model, find_models, model_options
from triptych.nn.adversarial import packed
from triptych.training.checkpoints import Checkpoints
from triptych.training.devices import start
from triptych.training.files import Records, read_weights

RANKS = Path(__file__).with_name("ranks.py")
SMALL: dict[str, Any] = {"hidden": 8, "n_blocks": 1, "n_layers": 1, "n_components": 3, "n_latents": 4, "n_codes": 5}


def case(model: str, name: str = "", **more: Any) -> dict[str, Any]:
    options = {key: value for key, value in SMALL.items() if key in model_options(model)}
    options |= more.pop("options", {})
    return {"name": name or model, "model": model, "n_classes": 2, "options": options} | more


# Every model, and what is not computed item by item.
CASES = [
    *(case(name) for name in find_models()),
    case("gan", "batch normalisation", options={"network": "dcgan", "penalty": "none"}),
    case("gan", "gradient penalty", options={"objective": "wasserstein", "penalty": "gradient"}),
    case("gan", "adaptive augmentation", options={"augment": "adaptive"}),
    case("gan", "packs", n_classes=0, options={"pack": 2}),
    case("gan", "pairs", options={"objective": "relativistic", "penalty": "r1_r2", "encoder": "bigan"}),
    case("vae", "free bits", options={"free_bits": 0.5}),
    case("iwae", "many draws", options={"n_layers": 2, "n_importance": 3}),
    case("vae", "points", source="ring8", n_classes=0),
    case("gan", "modes", source="ring8", n_classes=0, settings={"batch_size": 32}),
]


def torchrun(
    n: int, cases: list[dict[str, Any]], folder: Path, *, timeout: float = 240, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Trains the cases on n processes that torchrun begins."""
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return subprocess.run(
        [*command, "--max-restarts", str(restarts), str(RANKS), str(folder / "cases.json"), str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout,
        # With a shared store PyTorch's restarts find the addresses of processes that are dead (its issue 135712).
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def assert_close(one: Path, many: Path, tolerance: float) -> None:
    """The saved weights, averages and records of two trainings are equal but for rounding."""
    a, b = read_weights(one / "model.safetensors"), read_weights(many / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].double(), b[name].double(), rtol=tolerance, atol=tolerance, msg=name)
    records = [Records.read(folder / "metrics.jsonl") for folder in (one, many)]
    assert len(records[0]) == len(records[1]) > 0
    for first, second in zip(*records, strict=True):
        assert first.keys() == second.keys()
        for key in first.keys() - {"elapsed_seconds"}:
            close = pytest.approx(first[key], rel=1e-3, abs=1e-3) if isinstance(first[key], float) else first[key]
            assert second[key] == close, key


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of all cases, trained on one process and on several."""
    root = tmp_path_factory.mktemp("ranks")
    for each in CASES:
        train(each, root / "one")
    done = together(request.param, train_all, CASES, root / "many")
    assert done.returncode == 0, done.stderr
    return root / "one", root / "many"


@pytest.mark.parametrize("name", [each["name"] for each in CASES])
def test_several_processes_are_as_one(name: str, trained: tuple[Path, Path]) -> None:
    one, many = (folder / name for folder in trained)
    assert_close(one, many, 2e-5)
    if Checkpoints(one, 1).paths():
        a, b = (Checkpoints(folder, 1).read()[0] for folder in (one, many))
        assert a["position"] == b["position"]
        assert torch.equal(a["noise"], b["noise"]), "the generators have drawn as much"


@pytest.mark.parametrize("name", list(find_models()))
def test_no_layer_sees_a_part_of_the_batch_alone(name: str) -> None:
    """A new model takes dropout and batch normalisation from `triptych.parallel`."""
    for layer in create_model(name, ImageSpace(1, 8, 8, 4), n_classes=2).modules():
        own = isinstance(layer, parallel.Dropout | parallel.BatchNorm2d)
        assert own or not isinstance(layer, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm), layer


class TestCutWeights:
    """Fully sharded: each process holds a part of all weights, averages and moments."""

    def test_trains_as_one_process_and_goes_on_as_one(self, tmp_path: Path) -> None:
        names = ("vae", "ladder_vae", "vq_vae", "made", "gated_pixel_cnn", "autoencoder")
        settings = {"strategy": "fsdp", "budget": "8steps", "checkpoint_every": "3steps"}
        cases = [case(name, settings=settings) for name in names]
        for each in cases:
            train(each, tmp_path / "one")
        done = together(2, train_all, cases, tmp_path / "many")
        assert done.returncode == 0, done.stderr
        for each in cases:
            folders = tmp_path / "one" / each["name"], tmp_path / "many" / each["name"]
            assert_close(*folders, 2e-5)
            # What the processes saved is whole, and one alone goes on with it.
            last, before = Checkpoints(folders[1], 1).paths()
            assert (last.stem, before.stem) == ("step-00000008", "step-00000006")
            last.unlink()
            train(each, tmp_path / "many")
            assert_close(*folders, 2e-5)

    def test_goes_on_from_what_one_process_saved(self, tmp_path: Path) -> None:
        each = case("vae", settings={"strategy": "fsdp", "budget": "8steps", "checkpoint_every": "3steps"})
        train(each, tmp_path / "one")
        train(each, tmp_path / "many")
        (tmp_path / "many" / "vae" / "checkpoints" / "step-00000008.pt").unlink()
        assert together(2, train_all, [each], tmp_path / "many").returncode == 0
        assert_close(tmp_path / "one" / "vae", tmp_path / "many" / "vae", 2e-5)

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's scheduling")
    def test_ends_with_its_threads_behind(self, tmp_path: Path) -> None:
        """A thread that lets go of a tensor after Python's end would abort the process; unguarded it did in 7 of 20."""
        each = case("vae", settings={"strategy": "fsdp", "budget": "2steps"}, starved=True)
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(own)})
        try:
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                try:
                    for attempt in range(4):
                        done = torchrun(2, [each], tmp_path / str(attempt))
                        assert done.returncode == 0, done.stderr
                finally:
                    busy.kill()
        finally:
            os.sched_setaffinity(0, own)

    def test_each_process_holds_its_part(self, tmp_path: Path) -> None:
        done = together(2, tell_parts, tmp_path)
        assert done.returncode == 0, done.stderr
        for rank in range(2):
            held, in_use = json.loads((tmp_path / f"{rank}.json").read_text())
            assert held == pytest.approx(0.5, abs=0.02)
            assert in_use == 1

    @pytest.mark.parametrize("name", ["gan", "pix2pix", "gaussian_mixture"])
    def test_is_refused_where_it_cannot_be(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"strategy is 'fsdp'.*use ddp"):
            train(case(name, settings={"strategy": "fsdp"}), tmp_path)


class TestPieces:
    def test_accumulated_gradients_are_those_of_the_whole_batch(self, tmp_path: Path) -> None:
        for name in ("vae", "pixel_cnn", "gan", "pix2pix"):
            train(case(name), tmp_path / "whole")
            train(case(name), tmp_path / "pieces", accumulate=4)
            assert_close(tmp_path / "whole" / name, tmp_path / "pieces" / name, 2e-5)


class TestProcesses:
    def test_resumes_on_another_number_of_them(self, tmp_path: Path) -> None:
        """Eight steps on one and on to the end on two are twelve on one, in records that span the change, too."""
        cases = [case(name, settings={"budget": "12steps", "checkpoint_every": "4steps"}) for name in ("vae", "gan")]
        for each in cases:
            train(each, tmp_path / "one")
            name = each["name"]
            train(each, tmp_path / "many", budget="12steps")
            checkpoints = sorted((tmp_path / "many" / name / "checkpoints").iterdir())
            assert [path.stem for path in checkpoints] == ["step-00000008", "step-00000012"]
            checkpoints[1].unlink()  # as if it had died there
        assert together(2, train_all, cases, tmp_path / "many").returncode == 0
        for each in cases:
            assert_close(tmp_path / "one" / each["name"], tmp_path / "many" / each["name"], 2e-5)

    def test_a_rank_that_dies_ends_the_run(self, tmp_path: Path) -> None:
        dying = case("vae", settings={"budget": "100000steps"}, die={"rank": 1, "step": 5})
        began = time.perf_counter()
        done = together(2, train_all, [dying], tmp_path / "many")
        assert done.returncode != 0
        assert time.perf_counter() - began < 60
        # What it left can be gone on with.
        settings = {"budget": "12steps", "checkpoint_every": "4steps"}
        left = case("vae", settings=settings)
        train(left, tmp_path / "one")
        dying = {**left, "die": {"rank": 1, "step": 5}}
        assert together(2, train_all, [dying], tmp_path / "half").returncode != 0
        train(left, tmp_path / "half")
        assert_close(tmp_path / "one" / "vae", tmp_path / "half" / "vae", 2e-5)

    def test_torchrun_restarts_what_died(self, tmp_path: Path) -> None:
        settings = {"budget": "12steps", "checkpoint_every": "4steps"}
        train(case("vae", settings=settings), tmp_path / "one")
        dying = case("vae", settings=settings, die={"rank": 0, "step": 5})
        assert torchrun(2, [dying], tmp_path / "many", restarts=1).returncode == 0
        assert_close(tmp_path / "one" / "vae", tmp_path / "many" / "vae", 2e-5)

    @pytest.mark.parametrize("begun_by", ["torchrun", pytest.param("devices", marks=pytest.mark.slow)])
    def test_the_command_runs(self, begun_by: str, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"budget": "8steps", "batch_size": 16, "hidden": 4}
        triptych.fit("vae", "digits", out=tmp_path / "one", verbose=False, **settings)
        words = ["-m", "triptych", "fit", "vae", "digits", "--budget", "8steps", "--batch-size", "16"]
        words += ["--set", "hidden=4", "--out", str(tmp_path / "two")]
        if begun_by == "torchrun":
            words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
        else:
            words += ["--devices", "2"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("vae on digits") == 1, "one process alone speaks"
        assert_close(tmp_path / "one", tmp_path / "two", 2e-5)
        assert (tmp_path / "two" / "summary.json").is_file()

    def test_processes_that_do_not_share_a_batch_evenly_are_refused(self, tmp_path: Path) -> None:
        for settings in ({"devices": 3, "batch_size": 16}, {"accumulate": 5, "batch_size": 16}):
            with pytest.raises(InputError, match="batch_size is 16; it must be a multiple of"):
                start(TrainConfig(**settings))
        with pytest.raises(InputError, match="batch_size is 32; it must be a multiple of 5"):
            triptych.fit("vae", "digits", out=tmp_path / "run", budget="2steps", accumulate=5, verbose=False)
        with (
            parallel.sharing(0, 2, 2),
            pytest.raises(InputError, match=r"pack is 3, but each of the 2 shares .* 8 items"),
        ):
            packed(torch.zeros(8, 1), 3)
        assert packed(torch.zeros(8, 1), 3).shape == (2, 3)

    def test_trainings_one_after_the_other_have_one_each(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="compare trains in one process"):
            triptych.compare("digits", ["vae"], out=tmp_path / "out", devices=2)
        with pytest.raises(InputError, match="sweep trains in one process"):
            triptych.sweep("vae", "digits", {"devices": [1, 2]}, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    @pytest.mark.parametrize("moment", ["as they begin", "in training"])
    def test_what_the_first_process_began_ends_with_it(self, moment: str, tmp_path: Path) -> None:
        first = self._begin(tmp_path / "run")
        self._wait_until(lambda: len(self._of(tmp_path)) == 2)
        if moment == "in training":
            self._wait_until(lambda: self._steps(tmp_path / "run") > 3)
        first.kill()
        first.communicate()
        self._wait_until(lambda: not self._of(tmp_path))

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_an_interruption_is_saved_and_told_once(self, tmp_path: Path) -> None:
        """As Ctrl-C has it, which all processes get. The first one takes longer to write than it takes to look."""
        slow = "import time, triptych.training.checkpoints as c\nwrite = c.Checkpoints.write\n"
        slow += "def slowly(self, step, values):\n    time.sleep(7 * (step > 0))\n    write(self, step, values)\n"
        slow += "c.Checkpoints.write = slowly\nfrom triptych.cli import main\nmain()\n"
        (tmp_path / "slow.py").write_text(slow)
        first = self._begin(tmp_path / "run", [str(tmp_path / "slow.py")])
        self._wait_until(lambda: self._steps(tmp_path / "run") > 3)
        os.killpg(first.pid, signal.SIGINT)
        _, said = first.communicate(timeout=60)
        assert first.returncode == 3, said
        assert said.count("Interrupted after step") == 1
        step = Checkpoints(tmp_path / "run", 1).read()[0]["step"]
        assert f"Interrupted after step {step}, which is saved" in said
        self._wait_until(lambda: not self._of(tmp_path))

    def _begin(self, out: Path, program: Sequence[str] = ("-m", "triptych")) -> subprocess.Popen[str]:
        """A training by two processes, begun by the first of them."""
        words = ["fit", "vae", "digits", "--budget", "100000steps", "--checkpoint-every", "1h", "--devices", "2"]
        words += ["--set", "hidden=4", "--validations", "0", "--out", str(out)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *program, *words], env=env, start_new_session=True, stderr=subprocess.PIPE, text=True
        )

    def _of(self, folder: Path) -> list[str]:
        """Processes that have a folder among their arguments."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(folder) in path.read_text():
                    found.append(path.parent.name)
        return found

    def _steps(self, run: Path) -> int:
        lock = run / "run.lock"
        return int(lock.read_text()[:15] or 0) if lock.is_file() else 0

    def _wait_until(self, happens: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not happens():
            assert time.monotonic() < deadline
            time.sleep(0.05)
