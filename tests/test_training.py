"""One loop for all: budgets, phases, checkpoints, resume, and what happens when things go wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import triptych
from triptych.config import Budget, DataConfig, TrainConfig
from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError, TrainingStopped
from triptych.files import write_atomically
from triptych.models.base import GenerativeModel
from triptych.models.registry import create_model
from triptych.training import files
from triptych.training.checkpoints import Checkpoints, read_checkpoint
from triptych.training.run import first_difference
from triptych.training.stream import BatchStream
from triptych.training.trainer import Summary, Trainer

SMALL: dict[str, dict[str, Any]] = {
    "pixel_cnn": {"hidden": 8, "n_blocks": 1, "kernel_size": 3},
    "vae": {"hidden": 8, "n_latents": 4, "dropout": 0.2},
    "gan": {"hidden": 8, "critic_steps": 2},
    "vq_vae": {"hidden": 4, "n_codes": 5},
    "gaussian_mixture": {"n_components": 3},
}


def trainer(name: str, data: Dataset, folder: Path, *, n_classes: int = 0, **settings: Any) -> Trainer:
    config = TrainConfig(**{"budget": "24steps", "validations": 4, "log_every": 5, "batch_size": 16, **settings})
    torch.manual_seed(config.seed)
    return Trainer(create_model(name, data.space, n_classes=n_classes, **SMALL[name]), data, config, folder)


def latest(folder: Path) -> dict[str, Any]:
    return Checkpoints(folder, 1).read()[0]


def records(folder: Path) -> list[dict[str, Any]]:
    return files.Records.read(folder / "metrics.jsonl")


def without_clock(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "elapsed_seconds"} for record in items]


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "unit", "amount"),
        [
            ("90s", "seconds", 90),
            ("10m", "seconds", 600),
            ("1.5h", "seconds", 5400),
            ("5000", "steps", 5000),
            ("5000steps", "steps", 5000),
            ("1step", "steps", 1),
            ("200kimages", "images", 200_000),
            ("3_000 images", "images", 3000),
        ],
    )
    def test_is_read(self, text: str, unit: str, amount: float) -> None:
        assert Budget.parse(text) == Budget(unit, amount)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "text", ["0", "0s", "-5s", "", "s", "ten minutes", "1e9999s", "5 apples", "0.5steps", "3km", "1..2s"]
    )
    def test_is_refused_in_one_line(self, text: str) -> None:
        with pytest.raises(InputError, match="Budget") as error:
            Budget.parse(text)
        assert "\n" not in str(error.value)

    def test_ends_the_training(self, tiny: Dataset, tmp_path: Path) -> None:
        summary = trainer("vae", tiny, tmp_path / "a", budget="7steps").fit()
        assert (summary.steps, summary.n_images_seen, summary.reason) == (7, 7 * 16, "budget")
        summary = trainer("gan", tiny, tmp_path / "b", budget="96images").fit()
        assert (summary.steps, summary.n_images_seen) == (2, 96)  # a cycle is 3 batches of 16
        began = time.perf_counter()
        summary = trainer("vae", tiny, tmp_path / "c", budget="1s").fit()
        assert 1 <= summary.seconds <= time.perf_counter() - began < 6


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"budget": "0"}, "Budget"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"batch_size": "32"}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"tensorboard": 1}, "tensorboard"),
        ({"device": "tpu"}, "device"),
        ({"precision": "16"}, "precision"),
        ({"checkpoint_every": "3images"}, "checkpoint_every"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        TrainConfig(**settings)


def test_data_size_is_read() -> None:
    assert DataConfig(size="32").to_arguments()["size"] == (32, 32)
    assert DataConfig(size="20x30").to_arguments()["size"] == (20, 30)
    with pytest.raises(InputError, match="--size"):
        DataConfig(size="big").to_arguments()


class TestStream:
    def stream(self, n: int = 10, batch: int = 4, position: int = 0, items: Any = None, seed: int = 1) -> BatchStream:
        data = np.arange(n, dtype=np.float32)[:, None] if items is None else items
        split = Split(data, np.arange(n))
        return BatchStream(split, batch, seed=seed, device=torch.device("cpu"), use_labels=True, position=position)

    def test_every_epoch_holds_every_item_once(self) -> None:
        stream = self.stream()
        drawn = torch.cat([stream.next().x for _ in range(10)]).flatten().tolist()
        for epoch in range(4):
            assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
        assert drawn[:10] != drawn[10:20]

    def test_labels_stay_with_their_items(self) -> None:
        batch = self.stream().next()
        assert batch.labels is not None
        assert batch.x.flatten().tolist() == batch.labels.tolist()

    def test_goes_on_from_any_position(self) -> None:
        stream = self.stream()
        for _ in range(3):
            stream.next()
        resumed = self.stream(position=stream.position)
        for _ in range(5):
            assert torch.equal(stream.next().x, resumed.next().x)

    def test_a_batch_larger_than_the_set_spans_epochs(self) -> None:
        assert sorted(self.stream(n=3, batch=7).next().x.flatten().tolist())[:1] == [0]
        assert len(self.stream(n=3, batch=7).next().x) == 7

    def test_lazy_items_give_the_same_batches(self) -> None:
        class Lazy:
            def __len__(self) -> int:
                return 10

            def __getitem__(self, index: np.ndarray) -> np.ndarray:
                return index.astype(np.float32)[:, None]

        eager, lazy = self.stream(), self.stream(items=Lazy())
        for _ in range(4):
            assert torch.equal(eager.next().x, lazy.next().x)

    def test_seeds_differ(self) -> None:
        assert not torch.equal(self.stream(seed=1).next().x, self.stream(seed=2).next().x)


@pytest.mark.parametrize("name", SMALL)
class TestEveryModel:
    def test_run_folder_is_whole(self, name: str, tiny: Dataset, tmp_path: Path) -> None:
        run = trainer(name, tiny, tmp_path)
        summary = run.fit()
        assert summary.steps > 0
        state = files.read_weights(tmp_path / "model.safetensors")
        assert all(torch.equal(state[key], value) for key, value in run.ema.state_dict().items())
        lines = records(tmp_path)
        assert lines[-1]["event"] == "finished"
        assert all(line["elapsed_seconds"] >= 0 and line["step"] >= 0 for line in lines)
        films = [line["file"] for line in lines if line.get("event") == "samples"]
        assert films
        for film in films:
            tiny.space.check(np.load(tmp_path / film))
            assert (tmp_path / film).with_suffix(".png").stat().st_size > 100
        if name != "gan":
            nlls = [line["valid/nll_nats_per_image"] for line in lines if "valid/nll_nats_per_image" in line]
            assert summary.best_nll == min(nlls)
            assert run.validation_nll(run.ema) == pytest.approx(summary.best_nll, rel=1e-6)
        assert not list(tmp_path.rglob("*.tmp"))

    def test_the_same_seed_gives_the_same_weights(self, name: str, tiny: Dataset, tmp_path: Path) -> None:
        states = []
        for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
            run = trainer(name, tiny, tmp_path / folder, seed=seed)
            run.fit()
            states.append(torch.cat([t.flatten().float() for t in run.ema.state_dict().values()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])
        assert without_clock(records(tmp_path / "a")) == without_clock(records(tmp_path / "b"))

    def test_points_and_labels(self, name: str, tiny_points: Dataset, tmp_path: Path) -> None:
        if name in ("pixel_cnn", "vq_vae"):
            return
        torch.manual_seed(0)
        options = {key: value for key, value in SMALL[name].items() if key != "dropout"}
        model = create_model(name, tiny_points.space, n_classes=2, **options)
        run = Trainer(model, tiny_points, TrainConfig(budget="10steps", validations=2), tmp_path)
        run.fit()
        assert run.ema.sample(3, labels=torch.tensor([0, 1, 0])).isfinite().all()
        assert list((tmp_path / "samples").glob("*.png"))


def stop_at(run: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the loop die without a word after so many steps, as a killed process would."""
    cycle = run._cycle

    def dying(*arguments: Any, **more: Any) -> Any:
        if run.step == step:
            raise ZeroDivisionError
        return cycle(*arguments, **more)

    monkeypatch.setattr(run, "_cycle", dying)


@pytest.mark.parametrize("name", ["pixel_cnn", "vae", "gan", "vq_vae"])
def test_a_killed_run_goes_on_bit_for_bit(
    name: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"n_classes": 2, "checkpoint_every": "7steps", "patience": 0}
    whole = trainer(name, tiny, tmp_path / "whole", **settings)
    end = whole.fit()
    for died_at in (0, 9, 20):  # after the checkpoints of steps 0, 7 and 14
        killed = trainer(name, tiny, tmp_path / "killed", **settings)
        stop_at(killed, died_at, monkeypatch)
        with pytest.raises(ZeroDivisionError):
            killed.fit(resume=(tmp_path / "killed" / "checkpoints").exists())
    torch.manual_seed(99)  # Nothing may hang on the state of the new process.
    resumed = trainer(name, tiny, tmp_path / "killed", **settings)
    torch.rand(3)
    summary = resumed.fit(resume=True)
    assert (summary.steps, summary.n_images_seen, summary.best_nll) == (end.steps, end.n_images_seen, end.best_nll)
    for part in ("model", "ema"):
        states = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert without_clock(records(tmp_path / "whole")) == without_clock(records(tmp_path / "killed"))


def test_stages_follow_each_other_and_leave_each_other_alone(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer("vq_vae", tiny, tmp_path, budget="30steps", warmup_steps=3, log_every=1)
    first, second = (set(map(id, phase.parameters)) for phase in run.phases)
    start = {key: value.clone() for key, value in run.model.state_dict().items()}
    middle: dict[str, torch.Tensor] = {}
    best: dict[str, torch.Tensor] = {}
    begin = run._next_stage

    def watched(progress: float) -> None:
        assert run.best is not None
        best.update({key: value.clone() for key, value in run.best["state"].items()})
        for name, parameter in run.model.named_parameters():
            assert torch.equal(parameter, start[name]) == (id(parameter) not in first), name
        begin(progress)
        middle.update({key: value.clone() for key, value in run.model.state_dict().items()})

    monkeypatch.setattr(run, "_next_stage", watched)
    run.fit()
    assert middle.keys() == best.keys() == start.keys()
    assert all(torch.equal(middle[key], best[key]) for key in best), "a stage begins with what the last one would leave"
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, middle[name]) == (id(parameter) not in second), name
    for name, value in run.ema.named_parameters():
        if id(run.model.get_parameter(name)) in first:
            assert torch.equal(value, middle[name]), name
    shares = [phase.stage_share for phase in run.phases]
    boundary = 30 * shares[0] / sum(shares)
    lines = [line for line in records(tmp_path) if "learning_rate/autoencoder" in line or "learning_rate/prior" in line]
    rates = {
        name: [line["step"] for line in lines if f"learning_rate/{name}" in line] for name in ("autoencoder", "prior")
    }
    assert max(rates["autoencoder"]) < min(rates["prior"])
    assert abs(max(rates["autoencoder"]) - boundary) <= 1
    risen = [line["learning_rate/prior"] for line in lines if "learning_rate/prior" in line]
    assert risen[0] < risen[2] > risen[-1], "each stage has a schedule of its own"


def test_ctrl_c_ends_the_step_and_saves_it(tiny: Dataset, tmp_path: Path) -> None:
    run = trainer("vae", tiny, tmp_path, budget="100000steps")
    before = signal.getsignal(signal.SIGINT)

    def press() -> None:
        while run.step < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(TrainingStopped, match="--resume"):
        run.fit()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    saved = latest(tmp_path)
    assert saved["step"] == run.step >= 5
    assert saved["position"] == saved["step"] * 16


def test_a_loss_that_is_not_finite_stops_with_a_word_and_the_last_good_checkpoint(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer("vae", tiny, tmp_path, budget="40steps", checkpoint_every="4steps", log_every=10)
    cycle = run._cycle

    def poisoned(*arguments: Any, **more: Any) -> Any:
        terms, total = cycle(*arguments, **more)
        if run.step == 17:
            with torch.no_grad():
                next(run.model.parameters()).fill_(math.nan)
        return terms, total

    monkeypatch.setattr(run, "_cycle", poisoned)
    with pytest.raises(TrainingStopped, match=r"no longer finite at step 20.*learning-rate") as error:
        run.fit()
    assert "\n" not in str(error.value)
    saved = latest(tmp_path)
    assert saved["step"] == 16
    assert f"step {saved['step']}" in str(error.value)
    assert all(value.isfinite().all() for part in ("model", "ema") for value in saved[part].values())
    assert all(value.isfinite().all() for value in files.read_weights(tmp_path / "model.safetensors").values())


@pytest.mark.parametrize("what", ["validation", "weights"])
def test_nothing_that_is_not_finite_is_kept_as_a_result(
    what: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "validation":
        run = trainer("vae", tiny, tmp_path)
        monkeypatch.setattr(run, "validation_nll", lambda model: math.nan)
    else:
        run = trainer("gan", tiny, tmp_path, budget="1steps", learning_rate=1e38, warmup_steps=0)
    with pytest.raises(TrainingStopped, match="no longer finite"):
        run.fit()
    assert all(value.isfinite().all() for value in files.read_weights(tmp_path / "model.safetensors").values())
    assert latest(tmp_path)["step"] == 0


def test_the_smallest_budget_trains_a_step(tiny: Dataset, tmp_path: Path) -> None:
    assert trainer("vae", tiny, tmp_path, budget="0.000001s").fit().steps == 1


def test_under_a_clock_validation_keeps_to_its_share(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer("vae", tiny, tmp_path, budget="2s", validations=40)
    log_prob = type(run.model).elbo

    def slow(model: Any, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        time.sleep(0.01 * len(x))  # all 30 items would take 0.3 s, six times an eighth of the budget over five
        return log_prob(model, x, *rest, **more)

    monkeypatch.setattr(type(run.model), "elbo", slow)
    run.fit()
    assert run.n_validation_items == 16
    assert latest(tmp_path)["n_validation_items"] == 16


def test_a_run_that_ended_does_not_train_on(tiny: Dataset, tmp_path: Path) -> None:
    ended = trainer("vae", tiny, tmp_path, patience=1, learning_rate=1e-12, validations=20).fit()
    assert ended.reason == "no improvement"
    again = trainer("vae", tiny, tmp_path, patience=1, learning_rate=1e-12, validations=20).fit(resume=True)
    assert (again.reason, again.steps, again.best_nll) == (ended.reason, ended.steps, ended.best_nll)


def test_data_in_memory_is_indexed_there() -> None:
    from triptych.data.load import load_data

    data = load_data("digits")
    stream = BatchStream(data.train, 4, seed=0, device=torch.device("cpu"), use_labels=False)
    assert stream.items is not None
    assert torch.equal(stream.items, torch.from_numpy(data.train.read()[0]))


def test_validation_that_does_not_improve_ends_early_with_the_best_weights(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer("vae", tiny, tmp_path, budget="100steps", validations=50, patience=3)
    values = iter([5.0, 4.0, 4.5, 4.2, 4.1, 1.0])
    weights: list[torch.Tensor] = []

    def fake(model: GenerativeModel) -> float:
        weights.append(next(model.parameters()).clone())
        return next(values)

    monkeypatch.setattr(run, "validation_nll", fake)
    summary = run.fit()
    assert (summary.reason, summary.best_nll, summary.best_step, summary.steps) == ("no improvement", 4.0, 4, 10)
    assert torch.equal(next(run.ema.parameters()), weights[1])


def test_phases_train_only_their_own_parameters(tiny: Dataset, tmp_path: Path) -> None:
    run = trainer("gan", tiny, tmp_path, clip_norm=0.0)
    seen: list[list[bool]] = []
    optimizer_of = run._optimizer

    def watched(phase: Any) -> torch.optim.AdamW:
        optimizer = optimizer_of(phase)
        players = run.model.generator, run.model.discriminator
        optimizer.register_step_pre_hook(lambda *_: seen.append([next(p.parameters()).requires_grad for p in players]))
        return optimizer

    run._optimizer = watched  # type: ignore[method-assign]
    run.fit()
    discriminator, generator = [False, True], [True, False]
    assert seen == [discriminator, discriminator, generator] * 24


def test_the_cost_is_estimated_without_touching_the_run(tiny: Dataset, tmp_path: Path) -> None:
    run = trainer("pixel_cnn", tiny, tmp_path / "a")
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    state = torch.get_rng_state()
    cost = run.estimate_cost()
    assert cost.seconds_per_step > 0
    assert cost.memory_bytes > 2**20
    assert cost.n_parameters == sum(p.numel() for p in run.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert run.stream.position == 0
    assert "steps" in cost.describe(run.budget)
    assert not (tmp_path / "a").exists()
    run.fit()
    disk = sum(file.stat().st_size for file in (tmp_path / "a").rglob("*") if file.is_file())
    # The estimate has room for the checkpoint that is written before another goes.
    assert 0.6 * cost.disk_bytes < disk < cost.disk_bytes


def test_gradients_are_clipped(tiny: Dataset, tmp_path: Path) -> None:
    free = trainer("vae", tiny, tmp_path / "free", clip_norm=0.0, budget="5steps")
    free.fit()
    logged = [line[key] for line in records(tmp_path / "free") for key in line if key.startswith("gradient_norm")]
    assert logged
    assert min(logged) > 1e-3, "as long as they are"
    clipped = trainer("vae", tiny, tmp_path / "clipped", clip_norm=1e-6, budget="5steps")
    norms: list[float] = []
    make = clipped._optimizer

    def watched(phase: Any) -> Any:
        optimizer = make(phase)
        optimizer.register_step_pre_hook(
            lambda opt, *_: norms.append(
                math.sqrt(sum(float(p.grad.square().sum()) for g in opt.param_groups for p in g["params"]))
            )
        )
        return optimizer

    clipped._optimizer = watched  # type: ignore[method-assign]
    clipped.fit()
    assert len(norms) == 5
    assert max(norms) <= 1.01e-6


@pytest.mark.parametrize("name", ["pixel_cnn", "vae", "gan"])
def test_bf16_trains_float32_weights(name: str, tiny: Dataset, tmp_path: Path) -> None:
    run = trainer(name, tiny, tmp_path, precision="bf16")
    run.fit()
    assert {tensor.dtype for tensor in run.model.state_dict().values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in run.ema.state_dict().values())
    exact = trainer(name, tiny, tmp_path / "32", precision="32")
    exact.fit()

    def training_losses(folder: Path) -> list[float]:
        return [v for r in records(folder) for k, v in r.items() if "nats" in k and not k.startswith("valid")]

    losses = training_losses(tmp_path), training_losses(tmp_path / "32")
    assert losses[0] != losses[1], "bf16 must change something"
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.2)


def test_cuda_is_refused_where_there_is_none(tiny: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    with pytest.raises(InputError, match="cuda"):
        trainer("vae", tiny, tmp_path, device="cuda")


def test_tensorboard_is_written_or_asked_for(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.training.devices.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"triptych\[tensorboard\]"):
        trainer("vae", tiny, tmp_path / "without", tensorboard=True)
    assert not (tmp_path / "without").exists()
    monkeypatch.setattr("triptych.training.devices.find_spec", lambda name: "found")
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int) -> None:
            assert folder == tmp_path / "with" / "tensorboard"
            assert purge_step == 0

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    trainer("vae", tiny, tmp_path / "with", tensorboard=True).fit()
    assert written.pop() == ("closed", 0.0, 0)
    lines = records(tmp_path / "with")
    numbers = [(k, v, line["step"]) for line in lines for k, v in line.items() if isinstance(v, float)]
    assert written == numbers


class TestFiles:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        files.write_json(path, {"a": 1})
        with pytest.raises(TypeError):
            files.write_json(path, {"a": object()})

        def half(temporary: Path) -> None:
            temporary.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, half)
        assert files.read_json(path) == {"a": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["value.json"]

    def test_a_link_in_the_temporary_files_place_is_not_followed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("secrets.token_hex", lambda _: "known")
        (tmp_path / "mine").write_text("mine")
        (tmp_path / ".value.json.known.tmp").symlink_to(tmp_path / "mine")
        with pytest.raises(FileExistsError):
            files.write_json(tmp_path / "value.json", {})
        assert (tmp_path / "mine").read_text() == "mine"
        assert not (tmp_path / "value.json").exists()

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
    def test_damaged_files_are_told(self, content: bytes, tmp_path: Path) -> None:
        for name, read in (
            ("config.json", files.read_json),
            ("model.safetensors", files.read_weights),
            ("step-00000003.pt", read_checkpoint),
        ):
            path = tmp_path / name
            with pytest.raises(InputError, match=name):
                read(path)
            path.write_bytes(content)
            with pytest.raises(InputError, match=name) as error:
                read(path)
            assert "\n" not in str(error.value)

    def test_torn_last_line_of_the_records_is_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(json.dumps({"step": 1, "elapsed_seconds": 0.5}) + "\n" + '{"step": 2, "lo')
        assert files.Records.read(path) == [{"step": 1, "elapsed_seconds": 0.5}]

    def test_of_a_long_file_some_records_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text("[" + "{}," * 50_000 + "{}]\n" + json.dumps({"step": 3, "elapsed_seconds": 3}) + "\n")
        assert files.Records.read(path) == [{"step": 3, "elapsed_seconds": 3}]
        records = [{"step": i, "elapsed_seconds": i} | ({"event": "samples"} if i % 10 == 1 else {}) for i in range(99)]
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
        assert files.Records.read(path) == records
        monkeypatch.setattr(files, "MAX_PARSED_BYTES", path.stat().st_size // 4)
        monkeypatch.setattr(files, "MAX_EVENTS", 5)
        found = [record["step"] for record in files.Records.read(path)]
        assert found == sorted({*range(0, 99, 5), 1, 11, 21, 31, 41})

    def test_complex_weights_are_refused(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="complex numbers in 'a'"):
            files.read_weights(tmp_path / "model.safetensors")


def test_first_difference_names_the_field() -> None:
    saved = {"train": {"seed": 0, "batch_size": 64}, "model": "vae"}
    assert first_difference(saved, saved) is None
    assert first_difference(saved, {"train": {"seed": 0, "batch_size": 32}, "model": "vae"}) == (
        "train.batch_size was 64 and is now 32"
    )
    assert first_difference({"size": [8, 8]}, {"size": (8, 8)}) is None
    assert first_difference({"a": 1}, {}) == "a was 1 and is now None"


def test_a_gradient_is_shortened_relative_to_its_usual_length(tiny: Dataset, tmp_path: Path) -> None:
    run = trainer("vae", tiny, tmp_path / "run", budget="1steps", validations=0)
    (phase,) = (dataclasses.replace(phase, clip_ratio=2.0) for phase in run.phases)

    def clipped(length: float) -> float:
        for parameter in phase.parameters:
            parameter.grad = torch.zeros_like(parameter)
        phase.parameters[0].grad.view(-1)[0] = length
        terms: dict[str, torch.Tensor] = {}
        assert run._clip(phase, terms)
        assert float(terms["gradient_norm/bound"]) == pytest.approx(length), "logged as it was"
        return float(phase.parameters[0].grad.norm())

    assert clipped(300.0) == pytest.approx(300.0), "the first one says what is usual"
    assert clipped(100.0) == pytest.approx(100.0)
    usual = 0.95 * 300 + 0.05 * 100
    assert run.gradient_norms == {"bound": pytest.approx(usual)}
    assert clipped(1e6) == pytest.approx(2 * usual, rel=1e-4)
    assert run.gradient_norms == {"bound": pytest.approx(0.95 * usual + 0.05 * 2 * usual)}, "an outlier counts as cut"


def test_steps_whose_gradient_is_not_finite_are_not_taken_and_too_many_of_them_end_the_training(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(*args: object, **kwargs: object) -> torch.Tensor:
        return torch.tensor(torch.inf)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", infinite)
    run = trainer("vae", tiny, tmp_path / "few", budget="10steps", validations=0, log_every=1)
    start = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
    run.fit()
    assert all(torch.equal(parameter, start[name]) for name, parameter in run.model.named_parameters())
    assert [line["skipped/bound"] for line in records(tmp_path / "few") if "skipped/bound" in line] == [1.0] * 10
    run = trainer("vae", tiny, tmp_path / "many", budget="200steps", validations=0)
    with pytest.raises(TrainingStopped, match=r"gradient has not been finite for 50 steps.*learning-rate"):
        run.fit()
    monkeypatch.undo()
    run = trainer("vae", tiny, tmp_path / "none", budget="10steps", validations=0, log_every=1)
    run.fit()
    assert [line["skipped/bound"] for line in records(tmp_path / "none") if "skipped/bound" in line] == [0.0] * 10


def test_the_end_is_told_in_a_line(tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    triptych.fit("vae", tiny, out=tmp_path / "vae", budget="4steps", batch_size=8, validations=2, hidden=8)
    nll = json.loads((tmp_path / "vae" / "summary.json").read_text())["best_nll"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'vae'}: 4 steps in 0 s; the weights kept are those of step ")
    assert last.endswith(f", at {nll:.4g} nats a validation item")
    ends = {
        Summary("no improvement", 1, 8, 65.0): "1 step in 1 min 05 s (no improvement)",
        Summary(
            "budget", 9, 8, 1.0, 5, best_distance=0.1
        ): "9 steps in 1 s; the weights kept are those of step 5, whose samples were nearest to the validation items",
    }
    for summary, words in ends.items():
        assert summary.describe() == words


def test_weights_are_clamped_after_each_step_of_a_phase_that_says_so(tiny: Dataset, tmp_path: Path) -> None:
    run = trainer("gan", tiny, tmp_path / "run", budget="3steps", validations=0, ema_decay=0.0)
    run.phases = tuple(
        dataclasses.replace(phase, clip_weights=0.01 if phase.name == "discriminator" else 0.0) for phase in run.phases
    )
    run.fit()
    discriminator, generator = (
        max(float(p.detach().abs().max()) for p in phase.parameters) for phase in run.model.phases()
    )
    assert discriminator == pytest.approx(0.01)
    assert generator > 0.05
