"""What is seen of an adversarial training: planted troubles are named, a healthy training is not accused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.config import TrainConfig
from triptych.data.dataset import Dataset, Split
from triptych.data.load import load_data
from triptych.errors import TrainingStopped
from triptych.models.implicit.pix2pix import Pix2Pix
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace
from triptych.training.checkpoints import Checkpoints
from triptych.training.trainer import Trainer
from triptych.training.watch import Look, Watch, diagnose

RNG = np.random.Generator(np.random.PCG64(0))
HEALTHY = Look(
    step=100,
    progress=0.5,
    distance=0.1,
    diversity=0.95,
    coverage=0.9,
    precision=0.8,
    copies=0.0,
    jsd_bound=0.2,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def ring() -> Dataset:
    return load_data("ring8")


def course(*changes: dict[str, float]) -> list[Look]:
    """Looks at a training that begins far from the data and improves, with the last ones changed."""
    looks = [replace(HEALTHY, step=i * 100, progress=i / 10, distance=1 / (1 + i)) for i in range(8)]
    return looks[: 8 - len(changes)] + [
        replace(look, **change) for look, change in zip(looks[8 - len(changes) :], changes, strict=True)
    ]


def troubles(looks: list[Look]) -> list[str]:
    return [finding.trouble for finding in diagnose(looks)]


class TestDiagnosis:
    def test_a_healthy_training_is_not_accused(self) -> None:
        looks = course()
        assert all(troubles(looks[: i + 1]) == [] for i in range(len(looks)))

    def test_divergence_takes_two_looks_far_from_the_best(self) -> None:
        assert troubles(course({"distance": 0.9}, {"distance": 0.95})) == ["divergence"]
        assert troubles(course({"distance": 0.9})) == []
        assert troubles(course({"distance": 0.9}, {"distance": 0.2})) == []

    def test_a_distance_that_was_once_0_by_chance_is_not_lost_at_the_next_look(self) -> None:
        assert troubles(course({"distance": 0.0}, {"distance": 0.002}, {"distance": 0.01})) == []
        assert troubles(course({"distance": 0.0}, {"distance": 0.5}, {"distance": 0.6})) == ["divergence"]

    def test_a_generator_that_has_learnt_nothing_yet_has_not_diverged(self) -> None:
        looks = [replace(HEALTHY, step=i, distance=d) for i, d in enumerate((1.0, 0.8, 5.0, 6.0))]
        assert troubles(looks) == []

    def test_samples_that_are_all_alike_are_a_collapse(self) -> None:
        assert troubles(course({"diversity": 0.1})) == ["mode collapse"]
        assert troubles([replace(HEALTHY, progress=0.01, diversity=0.1)]) == [], "at the start all are alike"

    def test_good_samples_that_leave_data_out_are_missing_modes(self) -> None:
        assert troubles(course({"coverage": 0.3})) == ["missing modes"]
        assert troubles(course({"coverage": 0.3, "precision": 0.2})) == [], "bad samples reach no data either"

    def test_a_discriminator_wins_when_it_knows_all_and_the_generator_learns_no_more(self) -> None:
        won = {"jsd_bound": 0.99 * math.log(2), "distance": 0.5}
        assert troubles(course(won, won, won, won)) == ["a discriminator that has won"]
        assert troubles(course(won, won, won, {**won, "distance": 0.01})) == [], "the samples come nearer still"
        assert troubles(course(won, won, won, {**won, "jsd_bound": 0.5})) == []

    def test_copies_are_memorising(self) -> None:
        assert troubles(course({"copies": 0.5})) == ["memorising"]
        assert troubles(course({"copies": 0.02})) == []

    def test_a_finding_has_evidence_and_a_remedy(self) -> None:
        (finding,) = diagnose(course({"diversity": 0.1}))
        assert finding.describe().startswith(
            "mode collapse: two samples differ by 10% of what two data differ by. Take"
        )


def looked(dataset: Dataset, items: np.ndarray) -> list[str]:
    """Troubles of a training whose samples these are, halfway."""
    watch = Watch(dataset, 1000)
    watch.look(items, 100, 0.5, {})
    return [finding.trouble for finding in watch.news()]


class TestPlantedGenerators:
    """Samples that are made, not drawn: the measurements see what was planted."""

    def test_held_out_data_are_healthy(self, digits: Dataset, ring: Dataset) -> None:
        for dataset in (digits, ring):
            assert looked(dataset, dataset.test.read()[0]) == []

    def test_one_digit_over_and_over_is_a_collapse(self, digits: Dataset) -> None:
        one = digits.test.read(np.zeros(200, dtype=int))[0]
        noise = RNG.integers(0, 2, one.shape)
        assert looked(digits, np.minimum(one + noise, 16).astype(np.uint8)) == ["mode collapse"]

    def test_one_mode_of_eight_is_a_collapse_and_four_are_missing(self, ring: Dataset) -> None:
        points = ring.test.read()[0]
        angle = np.arctan2(points[:, 1], points[:, 0])
        assert looked(ring, points[np.abs(angle - math.pi / 2) < 0.3]) == ["mode collapse"]
        assert looked(ring, points[points[:, 0] < -0.5]) == ["missing modes"]

    def test_copies_of_the_training_set_are_memorising(self, digits: Dataset) -> None:
        assert looked(digits, digits.train.read(np.arange(300))[0]) == ["memorising"]

    def test_tiny_images_that_are_all_known_are_not_memorising(self) -> None:
        def split(n: int) -> Split:
            return Split(RNG.integers(0, 2, (n, 1, 2, 2)).astype(np.uint8))

        dataset = Dataset("tiny", ImageSpace(1, 2, 2, 2), split(500), split(100), split(100))
        assert looked(dataset, dataset.test.read()[0]) == []

    def test_distances_rank_data_before_half_the_modes_before_noise(self, ring: Dataset, digits: Dataset) -> None:
        points = ring.test.read()[0]
        half, noise = points[points[:, 0] > 0], 5 * RNG.normal(size=points.shape).astype(np.float32)
        images = digits.test.read()[0]
        for dataset, sets in ((ring, (points, half, noise)), (digits, (images, images[:20].repeat(9, 0), 16 - images))):
            watch = Watch(dataset, 1000)
            distances = [watch.look(items, 0, 0.5, {}).distance for items in sets]
            assert distances == sorted(distances)


def trainer(dataset: Dataset, folder: Path, options: dict[str, object] | None = None, **settings: object) -> Trainer:
    config = TrainConfig(**{"budget": "20steps", "validations": 4, "log_every": 1, **settings})  # type: ignore[arg-type]
    torch.manual_seed(0)
    return Trainer(create_model("gan", dataset.space, hidden=8, **(options or {})), dataset, config, folder)


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind]


class TestInTheTrainer:
    def test_the_weights_nearest_to_the_data_are_kept(self, ring: Dataset, tmp_path: Path) -> None:
        run = trainer(ring, tmp_path)
        summary = run.fit()
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        distances = {line["step"]: line["valid/mmd"] for line in lines if "valid/mmd" in line}
        assert len(distances) == 4
        assert summary.best_step == min(distances, key=distances.__getitem__)
        assert summary.best_distance == min(distances.values())
        assert summary.best_nll is None
        assert all(
            line[f"gradient_norm/{player}"] > 0
            for line in lines
            if "learning_rate/generator" in line
            for player in ("discriminator", "generator")
        )
        assert all("samples/coverage" in line for line in lines if "valid/mmd" in line)

    def test_batch_statistics_of_the_averaged_weights_are_their_own_in_each_look(
        self, digits: Dataset, tmp_path: Path
    ) -> None:
        run = trainer(digits, tmp_path, {"network": "dcgan"}, budget="30steps")
        summary = run.fit()
        noise = torch.Generator().manual_seed(run.config.seed)
        items = run.ema.sample(run.n_validation_items, generator=noise).numpy()
        assert run.watch is not None
        assert run.watch.look(items, 99, 1.0, {}).distance == pytest.approx(summary.best_distance, rel=1e-6)

    @pytest.mark.parametrize("n_classes", [0, 10])
    def test_translations_are_laid_beside_the_images_whose_parts_are_given(
        self, digits: Dataset, tmp_path: Path, n_classes: int
    ) -> None:
        model = create_model("pix2pix", digits.space, n_classes=n_classes, hidden=8, given="top")
        run = Trainer(model, digits, TrainConfig(budget="12steps", validations=3), tmp_path)
        summary = run.fit()
        assert isinstance(run.ema, Pix2Pix)
        assert run.watch is not None
        x, y = torch.from_numpy(run.watch.items), torch.from_numpy(run.watch.labels)
        noise = torch.Generator().manual_seed(run.config.seed)
        drawn = run.ema.translate(x, labels=y if n_classes else None, generator=noise).numpy()
        assert (drawn[:, :, :4] == run.watch.items[:, :, :4]).all()
        assert run.watch.look(drawn, 99, 1.0, {}).distance == pytest.approx(summary.best_distance, rel=1e-6)
        assert summary.best_step in [look.step for look in run.watch.looks]

    def test_an_encoder_after_the_game_leaves_its_choice(self, ring: Dataset, tmp_path: Path) -> None:
        run = trainer(ring, tmp_path, {"encoder": "after"}, budget="40steps")
        summary = run.fit()
        assert run.stage == 1
        assert run.watch is not None
        assert summary.best_distance == min(look.distance for look in run.watch.looks)
        assert summary.best_step in [look.step for look in run.watch.looks]

    def test_a_divergence_is_rolled_back_with_half_the_rate_as_often_as_allowed(
        self, ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Looks say that the training was good at first and is lost from then on."""
        real, distances = Watch.look, iter([1.0, 0.1, *[0.9] * 20])

        def look(self: Watch, *args: object) -> Look:
            real(self, *args)  # type: ignore[arg-type]
            self.looks[-1] = replace(self.looks[-1], distance=next(distances))
            return self.looks[-1]

        monkeypatch.setattr(Watch, "look", look)
        run = trainer(ring, tmp_path, validations=10, rollbacks=2, warmup_steps=0)
        summary = run.fit()
        told = [str(event["finding"]) for event in events(tmp_path, "finding")]
        back = [line for line in told if line.startswith("rolled back to step 4")]
        assert len(back) == 2, told
        assert run.rate_factor == 0.25
        assert len(summary.findings) == len(told)
        assert summary.best_step == 4
        assert summary.best_distance == 0.1

    def test_a_game_whose_loss_is_not_finite_goes_back_to_its_best_weights(
        self, ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def poisoned(run: Trainer, n: int) -> None:
            real = run._cycle

            def cycle(*args: object, **kwargs: object) -> object:
                terms, total = real(*args, **kwargs)  # type: ignore[arg-type]
                return (terms, total * math.nan if n <= run.step < n + 1 else total)

            monkeypatch.setattr(run, "_cycle", cycle)

        run = trainer(ring, tmp_path / "back", validations=10)
        poisoned(run, 11)
        summary = run.fit()
        assert summary.reason == "budget"
        assert any("rolled back" in finding and "finite" in finding for finding in summary.findings)
        run = trainer(ring, tmp_path / "never", validations=10, rollbacks=0)
        poisoned(run, 11)
        with pytest.raises(TrainingStopped, match="no longer finite"):
            run.fit()

    def test_a_game_whose_samples_are_not_finite_goes_back_to_its_best_weights(
        self, ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def poisoned(run: Trainer) -> None:
            real = run.ema.drawn_beside

            def drawn(*args: object, **kwargs: object) -> torch.Tensor:
                items = real(*args, **kwargs)
                return items * math.inf if 10 < run.step < 15 else items

            monkeypatch.setattr(run.ema, "drawn_beside", drawn)

        run = trainer(ring, tmp_path / "back", validations=10)
        poisoned(run)
        summary = run.fit()
        assert summary.reason == "budget"
        assert any(
            "rolled back" in finding and "A sample is no longer finite" in finding for finding in summary.findings
        )
        run = trainer(ring, tmp_path / "never", validations=10, rollbacks=0)
        poisoned(run)
        with pytest.raises(TrainingStopped, match="A sample is no longer finite at step 12"):
            run.fit()

    def test_what_was_seen_is_in_the_checkpoint(self, ring: Dataset, tmp_path: Path) -> None:
        run = trainer(ring, tmp_path)
        run.fit()
        assert run.watch is not None
        saved = Checkpoints(tmp_path, 1).read()[0]["watch"]
        again = Watch(ring, 1000)
        again.restore(saved)
        assert again.looks == run.watch.looks

    def test_too_few_items_are_not_watched(self, tmp_path: Path) -> None:
        points = Split(RNG.normal(size=(12, 2)).astype(np.float32))
        run = trainer(Dataset("few", load_data("ring8").space, points, points, points), tmp_path)
        assert run.watch is None
        assert run.fit().best_distance is None
