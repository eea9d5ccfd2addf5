"""Nothing is lost: checkpoints that know when they are damaged, full disks, and one training a folder."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chaos import differences

import triptych
from triptych import InputError, TrainingStopped
from triptych.data.dataset import Dataset
from triptych.training.checkpoints import Checkpoints, read_checkpoint
from triptych.training.files import read_json, read_weights
from triptych.training.lock import RunLock
from triptych.training.trainer import Trainer

FIT: dict[str, Any] = {"budget": "12steps", "batch_size": 8, "validations": 2, "log_every": 3, "hidden": 8}
FIT |= {"checkpoint_every": "4steps", "verbose": False}


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def flip_a_bit(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def truncate(path: Path, at: float) -> None:
    os.truncate(path, int(at * path.stat().st_size))


class TestCheckpoints:
    def test_the_latest_are_kept(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, 3)
        for step in range(0, 50, 10):
            checkpoints.write(step, {"step": step, "weights": torch.ones(3)})
        assert steps_of(tmp_path) == [20, 30, 40]
        values, damaged = checkpoints.read()
        assert values["step"] == 40
        assert torch.equal(values["weights"], torch.ones(3))
        assert damaged == []

    def test_torch_reads_them_too(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path, 1).write(7, {"weights": torch.arange(5)})
        (path,) = (tmp_path / "checkpoints").iterdir()
        assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(5))

    @pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("damage", [flip_a_bit, truncate])
    def test_a_damaged_one_is_passed_over_with_a_word(self, damage: Any, at: float, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, 2)
        for step in (10, 20):
            checkpoints.write(step, {"step": step, "weights": torch.rand(1000)})
        latest = tmp_path / "checkpoints" / "step-00000020.pt"
        if damage is truncate and at == 1.0:
            at = 1 - 1 / latest.stat().st_size  # one byte
        damage(latest, at)
        values, damaged = checkpoints.read()
        assert values["step"] == 10
        assert len(damaged) == 1
        assert "step-00000020.pt is damaged" in damaged[0]
        # What comes after the sound one takes the damaged one's place.
        checkpoints.write(15, {"step": 15})
        assert steps_of(tmp_path) == [10, 15]

    def test_none_sound_is_an_error(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, 1)
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.read()
        checkpoints.write(3, {"step": 3})
        truncate(tmp_path / "checkpoints" / "step-00000003.pt", 0.5)
        with pytest.raises(InputError, match=r"step-00000003\.pt is damaged.*no other is left"):
            checkpoints.read()

    def test_runs_no_code(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {tmp_path / 'owned'}",)

        Checkpoints(tmp_path, 1).write(1, {"model": Evil()})  # with a checksum that holds
        with pytest.raises(InputError, match="damaged"):
            read_checkpoint(tmp_path / "checkpoints" / "step-00000001.pt")
        assert not (tmp_path / "owned").exists()


def test_flipped_bits_in_the_weights_are_seen(tiny: Dataset, tmp_path: Path) -> None:
    triptych.fit("vae", tiny, out=tmp_path / "run", **FIT)
    weights = tmp_path / "run" / "model.safetensors"
    flip_a_bit(weights, 0.9)
    with pytest.raises(InputError, match="checksum"):
        read_weights(weights)
    with pytest.raises(InputError, match="checksum"):
        triptych.load(tmp_path / "run")


class Killed(BaseException):
    pass


def killed_after(step: int, monkeypatch: pytest.MonkeyPatch, tiny: Dataset, folder: Path, **settings: Any) -> None:
    """A run that dies after a step, without a word, as SIGKILL would have it."""
    note = RunLock.steps_done

    def dying(lock: RunLock, now: int) -> None:
        note(lock, now)
        if now == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLock, "steps_done", dying)
        with pytest.raises(Killed):
            triptych.fit("vae", tiny, out=folder, **{**FIT, **settings})


class TestResume:
    def test_falls_back_and_counts_what_is_lost(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        triptych.fit("vae", tiny, out=tmp_path / "whole", **FIT)
        run = tmp_path / "run"
        killed_after(10, monkeypatch, tiny, run)
        assert steps_of(run) == [4, 8]
        flip_a_bit(run / "checkpoints" / "step-00000008.pt", 0.5)
        triptych.fit("vae", tiny, out=run, resume=True, **{**FIT, "verbose": True})
        said = capsys.readouterr().out
        assert "step-00000008.pt is damaged" in said
        assert "Going on after step 4; 6 steps after it, lost, will be done again." in said
        assert read_json(run / "summary.json")["lost_steps"] == 6
        assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    def test_every_loss_counts(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = tmp_path / "run"
        killed_after(6, monkeypatch, tiny, run)
        killed_after(7, monkeypatch, tiny, run, resume=True)  # 2 lost, then 3
        triptych.fit("vae", tiny, out=run, resume=True, **FIT)
        assert read_json(run / "summary.json")["lost_steps"] == 5

    def test_tells_of_another_number_of_threads(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        killed_after(5, monkeypatch, tiny, run)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        killed_after(6, monkeypatch, tiny, run, resume=True, verbose=True)
        said = capsys.readouterr().out
        assert re.search(r"^Begun on .* threads; on .*, 77 threads the last digits of sums differ", said, re.M)
        monkeypatch.undo()
        triptych.fit("vae", tiny, out=run, resume=True, **{**FIT, "verbose": True})
        assert "Begun on" not in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["triptych", "torch", "numpy"])
    def test_refuses_another_version(
        self, name: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = tmp_path / "run"
        killed_after(5, monkeypatch, tiny, run)
        config = read_json(run / "config.json")
        config["environment"][name] = "0.0.1"
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=rf"environment\.{name} was '0\.0\.1'.*--fork"):
            triptych.fit("vae", tiny, out=run, resume=True, **FIT)

    def test_sweeps_up_what_a_killed_writer_left(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = tmp_path / "run"
        killed_after(5, monkeypatch, tiny, run)
        (run / "checkpoints" / ".step-00000008.pt.123.tmp").write_bytes(b"half")
        triptych.fit("vae", tiny, out=run, resume=True, **FIT)
        assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def test_auto_resume_begins_and_goes_on(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triptych.fit("vae", tiny, out=tmp_path / "whole", **FIT)
    run = tmp_path / "run"
    for step in (3, 7):
        killed_after(step, monkeypatch, tiny, run, resume="auto")
    for _ in range(2):  # The second time there is nothing to do.
        triptych.fit("vae", tiny, out=run, resume="auto", **FIT)
        assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="give out"):
        triptych.fit("vae", tiny, resume="auto", **FIT)


class TestFork:
    def test_begins_with_the_weights_of_another_run(self, tiny: Dataset, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        triptych.fit("vae", tiny, out=first, **FIT)
        before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
        settings = {**FIT, "budget": "1steps", "learning_rate": 1e-12, "ema_decay": 0.0}
        triptych.fit("vae", tiny, out=second, fork=first, **settings)
        saved = Checkpoints(first, 1).read()[0]["model"]
        forked = Checkpoints(second, 1).read()[0]
        assert forked["step"] == 1
        for name, value in forked["model"].items():
            assert torch.allclose(value, saved[name], atol=1e-9), name
        # Adam's moments came too: its count of steps goes on.
        counts = {float(state["step"]) for state in forked["optimizers"][0]["state"].values()}
        assert counts == {13.0}
        assert read_json(second / "config.json")["forked_from"] == str(first)
        assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before

    def test_takes_model_options_and_data_from_the_run(self, tmp_path: Path) -> None:
        triptych.fit("vae", "ring8", out=tmp_path / "first", **FIT)
        triptych.fork(tmp_path / "first", out=tmp_path / "second", budget="2steps", verbose=False)
        config = read_json(tmp_path / "second" / "config.json")
        assert (config["model"], config["options"]["hidden"], config["data"]["name"]) == ("vae", 8, "ring8")
        assert config["train"]["budget"] == "2steps"

    def test_a_killed_fork_goes_on(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = tmp_path / "first"
        triptych.fit("vae", tiny, out=first, **FIT)
        triptych.fit("vae", tiny, out=tmp_path / "whole", fork=first, **FIT)
        for step in (2, 6):  # before the second checkpoint, and after it
            run = tmp_path / f"run-{step}"
            killed_after(step, monkeypatch, tiny, run, fork=first)
            if step == 2:
                shutil.rmtree(run / "checkpoints")  # as if it had died before the first
            triptych.fit("vae", tiny, out=run, resume=True, **FIT)
            assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    def test_refuses_what_does_not_fit_and_leaves_nothing(self, tiny: Dataset, tmp_path: Path) -> None:
        triptych.fit("vae", tiny, out=tmp_path / "first", **FIT)
        with pytest.raises(InputError, match="do not fit"):
            triptych.fit("vae", tiny, out=tmp_path / "second", fork=tmp_path / "first", **{**FIT, "hidden": 4})
        assert not (tmp_path / "second").exists()
        estimated = {**FIT, "n_components": 2}
        del estimated["hidden"]
        triptych.fit("gaussian_mixture", tiny, out=tmp_path / "mixture", **estimated)
        with pytest.raises(InputError, match="no checkpoint"):
            triptych.fit("gaussian_mixture", tiny, out=tmp_path / "b", fork=tmp_path / "mixture", **estimated)
        with pytest.raises(InputError, match="no fork"):
            triptych.fit("vae", tiny, out=tmp_path / "first", fork=tmp_path / "first", resume=True, **FIT)


class TestLock:
    def test_two_runs_in_one_folder_are_refused(self, tiny: Dataset, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        with RunLock(run), pytest.raises(InputError, match=f"is being trained by process {os.getpid()} on"):
            triptych.fit("vae", tiny, out=run, **FIT)
        triptych.fit("vae", tiny, out=run, **FIT)  # A lock that is let go of binds nobody.

    def test_survives_a_crash_of_its_holder(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from triptych.training.lock import RunLock\n"
            "lock = RunLock(Path(sys.argv[1])); lock.steps_done(41); print('held', flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on"):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        with RunLock(tmp_path) as lock:
            assert lock.last_step == 41

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"1 2 3\n", b"-1 4\nx", b"\0" * 100])
    def test_odd_contents_do_no_harm(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / RunLock.NAME).write_bytes(content)
        with RunLock(tmp_path) as lock:
            assert (lock.last_step, lock.n_lost) == (0, 0)

    def test_names_are_not_taken_twice(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            triptych.fit("vae", tiny, **FIT)
        assert sorted(path.name for path in Path("runs").iterdir()) == ["vae-tiny", "vae-tiny-2"]


class TestSignals:
    """Of the command, in a process of its own."""

    def run(self, folder: Path, model: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "triptych", "fit", model, "digits", "--budget", "100000steps", "--out"]
        return subprocess.Popen(
            [*command, str(folder), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for_steps(self, folder: Path, process: subprocess.Popen[str]) -> None:
        for _ in range(600):
            numbers = (folder / "run.lock").read_text().split() if (folder / "run.lock").exists() else []
            if numbers and int(numbers[0]) > 1:
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        raise AssertionError("no step in a minute")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_step_is_finished_and_saved(self, number: signal.Signals, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with self.run(run, "vae", "--set", "hidden=4") as process:
            self.wait_for_steps(run, process)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "Traceback" not in said
        step = Checkpoints(run, 1).read()[0]["step"]
        assert f"Interrupted after step {step}, which is saved. Go on with --resume {run}" in said
        with RunLock(run) as lock:
            assert lock.last_step == step

    def test_a_second_one_stops_at_once(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        # A step of this takes far longer than the pause between the signals.
        with self.run(run, "vae", "--set", "hidden=4", "--batch-size", "12000") as process:
            self.wait_for_steps(run, process)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM


class TestReaderGone:
    """Whoever reads what the command prints may go away: the training goes on."""

    def test_at_the_end_of_a_pipe(self, tmp_path: Path) -> None:
        fit = [sys.executable, "-m", "triptych", "fit", "vae", "digits", "--budget", "60steps", "--set", "hidden=4"]
        line = f"{shlex.join([*fit, '--out', str(tmp_path / 'run')])} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("vae on digits")
        assert done.stdout.count("\n") == 1
        assert triptych.load(tmp_path / "run") is not None

    def test_of_the_help(self) -> None:
        line = f"{shlex.join([sys.executable, '-m', 'triptych', 'fit', '--help'])} | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_in_a_terminal_that_is_closed(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        ours, theirs = os.openpty()
        fit = [sys.executable, "-m", "triptych", "fit", "vae", "digits", "--budget", "100000steps", "--set", "hidden=4"]
        with subprocess.Popen(
            [*fit, "--out", str(run)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # The tests may run under nohup.
        ) as process:
            try:
                os.close(theirs)
                TestSignals().wait_for_steps(run, process)
                os.close(ours)
                os.killpg(process.pid, signal.SIGHUP)
                os.killpg(process.pid, signal.SIGHUP)  # The shell sends it, and so does the system.
                assert process.wait(timeout=60) == 3
            finally:
                process.kill()
        with RunLock(run) as lock:
            assert lock.last_step == Checkpoints(run, 1).read()[0]["step"]

    def test_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Dataset) -> None:
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            triptych.fit("vae", tiny, out=tmp_path / "run", **{**FIT, "verbose": True})
            monkeypatch.undo()
        assert (tmp_path / "run" / "summary.json").is_file()


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a full disk; the system's error is another, the way of it the same."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


class TestFullDisk:
    def test_is_told_as_such_wherever_the_disk_ends(self, tmp_path: Path) -> None:
        values = {"a": torch.zeros(300), "b": [torch.ones(40_000), "text"]}
        checkpoints = Checkpoints(tmp_path, 2)
        checkpoints.write(0, values)
        whole = checkpoints.paths()[0].stat().st_size
        for n_bytes in (0, 100, 1_000, 3_000, whole // 2, whole - 40_000, whole - 2_000, whole - 100, whole - 1):
            with disk_of(n_bytes), pytest.raises(OSError, match="File too large"):
                checkpoints.write(1, values)
        assert steps_of(tmp_path) == [0]

    def test_stops_in_a_line_and_the_last_checkpoint_stands(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        triptych.fit("vae", tiny, out=tmp_path / "whole", **FIT)
        run, write = tmp_path / "run", Checkpoints.write

        def full_at_eight(checkpoints: Checkpoints, step: int, values: dict[str, Any]) -> None:
            if step < 8:
                return write(checkpoints, step, values)
            with disk_of(20_000):
                return write(checkpoints, step, values)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", full_at_eight)
            with pytest.raises(TrainingStopped, match=r"too large.*after step 8.*of step 4, stands.*--resume") as told:
                triptych.fit("vae", tiny, out=run, **FIT)
        assert "\n" not in str(told.value)
        assert steps_of(run) == [0, 4]
        assert not list(run.rglob("*.tmp"))
        triptych.fit("vae", tiny, out=run, resume=True, **FIT)
        assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("place", ["checkpoints", "samples", "metrics"])
    def test_wherever_it_hits(self, place: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: Any, **more: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the/file")

        target = {
            "checkpoints": "triptych.training.checkpoints.write_atomically",
            "samples": "triptych.training.trainer.save_items",
            "metrics": "triptych.training.files.Records.append",
        }[place]
        monkeypatch.setattr(target, full)
        with pytest.raises(TrainingStopped, match="the/file: No space left on device"):
            triptych.fit("vae", tiny, out=tmp_path / "run", **FIT)


GONE = r"was removed, moved or replaced; nothing more is written, after step \d+\. If it was moved, go on with --resume"


class TestLostFolder:
    """A training writes into the folder it began in, or not at all."""

    @pytest.mark.parametrize("while_saving", [False, True])
    def test_removed(self, while_saving: bool, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = tmp_path / "run"
        at_eight(monkeypatch, while_saving, lambda: shutil.rmtree(run))
        with pytest.raises(TrainingStopped, match=GONE):
            triptych.fit("vae", tiny, out=run, **FIT)
        assert not run.exists()

    @pytest.mark.parametrize("while_saving", [False, True])
    def test_moved_and_another_run_in_its_place(
        self, while_saving: bool, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, moved = tmp_path / "run", tmp_path / "moved"
        triptych.fit("vae", tiny, out=tmp_path / "whole", **FIT)
        triptych.fit("vae", tiny, out=tmp_path / "other", **FIT | {"seed": 5, "checkpoint_every": "6steps"})
        files = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}

        def exchange() -> None:
            run.rename(moved)
            (tmp_path / "other").rename(run)

        at_eight(monkeypatch, while_saving, exchange)
        with pytest.raises(TrainingStopped, match=GONE):
            triptych.fit("vae", tiny, out=run, **FIT)
        monkeypatch.undo()
        run.rename(tmp_path / "other")
        assert files == {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
        triptych.fit("vae", tiny, out=moved, resume=True, **FIT)
        assert differences(tmp_path / "whole", moved) == []

    def test_before_the_first_step(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who fails as it begins takes nothing away from who began there meanwhile."""
        run = tmp_path / "run"

        def exchange(trainer: Trainer) -> None:
            run.rename(tmp_path / "moved")
            run.mkdir()
            (run / RunLock.NAME).touch()
            check(trainer)

        check = Trainer.check_folder
        monkeypatch.setattr(Trainer, "check_folder", exchange)
        with pytest.raises(TrainingStopped, match="nothing more is written, after step 0"):
            triptych.fit("vae", tiny, out=run, **FIT)
        assert [path.name for path in run.iterdir()] == [RunLock.NAME]


def at_eight(monkeypatch: pytest.MonkeyPatch, while_saving: bool, what: Callable[[], object]) -> None:
    """Has something happen once after the eighth step, or while its checkpoint is being written."""
    note, save = RunLock.steps_done, torch.save

    def after_a_step(lock: RunLock, step: int) -> None:
        note(lock, step)
        if step == 8:
            what()

    def in_a_save(values: Any, *arguments: Any) -> None:
        save(values, *arguments)
        if values["step"] == 8:
            what()

    if while_saving:
        monkeypatch.setattr(torch, "save", in_a_save)
    else:
        monkeypatch.setattr(RunLock, "steps_done", after_a_step)


class TestForeignCheckpoint:
    """A checkpoint is gone on from only under the settings it was written under."""

    def test_edited_configuration(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = tmp_path / "run"
        killed_after(9, monkeypatch, tiny, run)
        edited = read_json(run / "config.json")
        edited["train"]["seed"] = 3
        (run / "config.json").write_text(json.dumps(edited))
        expected = r"step 8 is not of the run in config.json: train.seed was 0 and is now 3\. Restore.*--fork"
        with pytest.raises(InputError, match=expected):
            triptych.fit("vae", tiny, out=run, resume=True, **FIT | {"seed": 3})
        edited["train"] |= {"seed": 0, "keep": 5}  # which decides nothing
        (run / "config.json").write_text(json.dumps(edited))
        triptych.fit("vae", tiny, out=run, resume=True, **FIT | {"keep": 5})
        triptych.fit("vae", tiny, out=tmp_path / "whole", **FIT)
        assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    def test_of_another_run(self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = tmp_path / "run"
        killed_after(5, monkeypatch, tiny, run)
        triptych.fit("vae", tiny, out=tmp_path / "other", **FIT | {"learning_rate": 1e-5})
        shutil.copy(tmp_path / "other" / "checkpoints" / "step-00000008.pt", run / "checkpoints")
        with pytest.raises(InputError, match=r"step 8 is not of the run.*train\.learning_rate was 1e-05 and is now"):
            triptych.fit("vae", tiny, out=run, resume=True, **FIT)

    def test_a_fork_is_not_what_it_was_forked_from(self, tiny: Dataset, tmp_path: Path) -> None:
        run = tmp_path / "fork"
        triptych.fit("vae", tiny, out=tmp_path / "first", **FIT)
        triptych.fit("vae", tiny, out=run, fork=tmp_path / "first", **FIT)
        (run / "summary.json").unlink()
        triptych.fit("vae", tiny, out=run, resume=True, **FIT)
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(tmp_path / "first" / "checkpoints", run / "checkpoints")
        with pytest.raises(InputError, match="forked_from was None and is now"):
            triptych.fit("vae", tiny, out=run, resume=True, **FIT)


def test_ended_before_the_end_was_noted(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step's checkpoint is there, and that the training has ended is not: nothing is left to be trained."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    triptych.fit("vae", tiny, out=whole, **FIT)
    write = Checkpoints.write

    def write_and_die(self: Checkpoints, step: int, values: dict[str, Any]) -> None:
        if values["ended"] is not None:
            raise ConnectionAbortedError("dead")
        write(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", write_and_die)
        with pytest.raises(TrainingStopped, match="dead"):
            triptych.fit("vae", tiny, out=killed, **FIT)
    assert steps_of(killed)[-1] == 12
    triptych.fit("vae", tiny, out=killed, resume=True, **FIT)
    assert differences(whole, killed) == []


def test_chaos_in_short() -> None:
    """`make chaos` is the long form: every model, 50 deaths at random moments, and one at every write."""
    short = ["--kills", "4", "--models", "vae,gan,made,vq_vae"]
    script = Path(__file__).with_name("chaos.py")
    done = subprocess.run([sys.executable, str(script), *short], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills at random"] >= 4
    assert result["identical"] == result["runs"] > 0


class TestDataThatChange:
    def test_stop_the_training_in_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of images that are read as needed."""
        images, run = tmp_path / "images.npy", tmp_path / "run"
        settings: dict[str, Any] = FIT | {"budget": "40steps"}
        pixels = np.random.default_rng(0).integers(0, 4, (64, 8, 8), dtype=np.uint8)
        np.save(images, pixels)
        triptych.fit("vae", triptych.load_data(images), out=tmp_path / "whole", **settings)
        note = RunLock.steps_done

        def cut(lock: RunLock, step: int) -> None:
            note(lock, step)
            if step == 10:
                os.truncate(images, 1000)

        monkeypatch.setattr(RunLock, "steps_done", cut)
        expected = r"After step 1[01]: '.*images\.npy' .*restore it\. The last good checkpoint, of step 8, .*--resume"
        with pytest.raises(TrainingStopped, match=expected):
            triptych.fit("vae", triptych.load_data(images), out=run, **settings)
        monkeypatch.undo()
        with pytest.raises(
            InputError, match=r"images\.npy.*These are the data of .*run.*--out .*run and --auto-resume"
        ):
            triptych.resume(run, verbose=False)
        images.unlink()
        with pytest.raises(InputError, match=r"no file or folder.*These are the data of .*run.*--auto-resume"):
            triptych.resume(run, verbose=False)
        np.save(images, 3 - pixels)
        with pytest.raises(
            InputError, match=r"are no longer what .*run was trained on; restore them, or .*--auto-resume"
        ):
            triptych.resume(run, verbose=False)
        np.save(tmp_path / "moved.npy", pixels)
        triptych.fit("vae", triptych.load_data(tmp_path / "moved.npy"), out=run, resume="auto", **settings)
        assert differences(tmp_path / "whole", run) == []
