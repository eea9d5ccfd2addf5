"""The whole table: rows, columns, kinds, references, and what models are given."""

import json
import math

import numpy as np
import pytest
import torch
from stubs import Untrained, UntrainedApproximate, UntrainedImplicit
from torch import Generator, Tensor

import triptych
from triptych.data.dataset import Dataset, Split, point_space_of
from triptych.errors import InputError
from triptych.evaluation import samples
from triptych.evaluation.discriminator import TwoSampleTest
from triptych.evaluation.evaluate import Evaluation, evaluate, evaluate_samples
from triptych.evaluation.features import ClassifierFeatures, RandomConvFeatures
from triptych.evaluation.results import Metric, Table, TrainingCost, format_value
from triptych.evaluation.verdicts import verdicts
from triptych.models.base import TractableDensity
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace, PointSpace

N_TEST = 301  # no multiple of a batch


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Small, and sorted by class, as class folders are."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    items, labels = found.images.astype(np.uint8)[order, None], found.target.astype(np.int64)[order]
    parts = []
    for part in np.split(np.arange(900), [500, 900 - N_TEST]):
        part = part[np.argsort(labels[part], kind="stable")]
        parts.append(Split(items[part], labels[part]))
    return Dataset("digits", ImageSpace(1, 8, 8, 17), *parts, tuple("0123456789"))


class Copier(UntrainedImplicit):
    """Draws training items; of the wanted class, when conditional."""

    def __init__(self, dataset: Dataset, n_classes: int = 0) -> None:
        super().__init__(dataset.space, n_classes)
        items, labels = dataset.train.read()
        self.items = torch.tensor(items)
        self.classes = None if labels is None else torch.tensor(labels)
        self.given: list[Tensor] = []

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        assert not self.training
        if self.n_classes == 0:
            assert labels is None
            return self.items[torch.randint(len(self.items), (n,), generator=generator)]
        assert labels is not None
        assert self.classes is not None
        self.given.append(labels)
        return torch.stack([self.items[int((self.classes == label).nonzero()[0])] for label in labels])


class Uniform(Untrained, TractableDensity):
    """Uniform levels."""

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        assert isinstance(self.space, ImageSpace)
        return torch.full((len(x),), -self.space.n_dims * math.log(self.space.levels))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return torch.randint(17, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)


class Broken(Uniform):
    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        nats = super().log_prob(x)
        nats[0] = math.nan
        return nats


class Bounded(UntrainedApproximate):
    """A bound that tightens with every draw, and a perfect reconstruction."""

    has_normal_prior = False

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return torch.full((len(x),), -100.0)

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return torch.full((n_samples, len(x)), -90.0)

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        return x.flatten(1).float()

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return z.view(-1, *self.space.shape).to(torch.uint8)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return torch.zeros(n, *self.space.shape, dtype=torch.uint8)


@pytest.fixture(scope="module")
def found(digits: Dataset) -> Evaluation:
    models = {"uniform": Uniform(digits.space), "bounded": Bounded(digits.space), "copier": Copier(digits)}
    assert isinstance(digits.space, ImageSpace)
    return evaluate(models, digits, n_importance=8, extractors=[RandomConvFeatures(digits.space)], discriminator=False)


def test_rows_and_columns(found: Evaluation) -> None:
    assert [(row.name, row.panel) for row in found.table.rows] == [
        ("uniform", "tractable"),
        ("bounded", "approximate"),
        ("copier", "implicit"),
        ("train vs held-out", None),
        ("blurred", None),
        ("copies of the training set", None),
        ("noise", None),
    ]
    keys = [metric.key for metric in found.table.metrics]
    assert keys == [
        "nll_nats_per_image",
        "bits_per_dim",
        "negative_elbo_nats_per_image",
        "kid_random",
        "fd_random",
        "fd_infinity_random",
        "precision_random",
        "recall_random",
        "density_random",
        "coverage_random",
        "spectral_distance",
        "sharpness",
        "distance_ratio",
        "copying_z",
        "authenticity",
        "support_size",
        "samples_per_second",
    ]
    assert all(metric.protocol.endswith(".") for metric in found.table.metrics)
    assert all(set(row.measurements) <= set(keys) for row in found.table.rows)
    assert Table.from_dict(json.loads(json.dumps(found.table.to_dict()))) == found.table


def test_likelihoods_say_what_they_are(found: Evaluation) -> None:
    uniform, bounded, copier, *_, noise = (row.measurements for row in found.table.rows)
    assert uniform["bits_per_dim"].value == pytest.approx(math.log2(17), rel=1e-5)
    assert uniform["bits_per_dim"].kind == "exact"
    assert uniform["bits_per_dim"].n == N_TEST
    assert noise["bits_per_dim"].value == pytest.approx(math.log2(17))
    assert bounded["nll_nats_per_image"].text("lower") == "≤ 90.00"
    assert bounded["negative_elbo_nats_per_image"].text("lower") == "≤ 100.0"
    assert "negative_elbo_nats_per_image" not in uniform
    assert copier["bits_per_dim"].text("lower") == "not defined"


def test_distances_rank_the_rows(found: Evaluation) -> None:
    uniform, _, copier, train, *_, noise = (row.measurements for row in found.table.rows)
    assert noise["fd_random"].value > 20 * train["fd_random"].value  # type: ignore[operator]
    assert noise["kid_random"].value > 20 * abs(train["kid_random"].value)  # type: ignore[operator, arg-type]
    assert uniform["fd_random"].value == pytest.approx(noise["fd_random"].value, rel=0.1)
    assert copier["fd_random"].value < 3 * train["fd_random"].value  # type: ignore[operator]
    assert (noise["precision_random"].value, noise["recall_random"].value) == (0, 0)
    assert train["precision_random"].value > 0.7  # type: ignore[operator]
    for measurements in (uniform, copier, train, noise):
        for key in ("fd_random", "kid_random", "precision_random", "recall_random", "spectral_distance", "sharpness"):
            measured = measurements[key]
            assert measured.low is not None
            assert measured.high is not None
            assert measured.low <= measured.value <= measured.high  # type: ignore[operator]
            assert measured.n == N_TEST


def test_sharpness_stands_beside_the_held_out_images(found: Evaluation) -> None:
    uniform, constant, copier, train, *_, noise = (row.measurements for row in found.table.rows)
    for real in (copier, train):
        assert real["sharpness"].low < 1 < real["sharpness"].high  # type: ignore[operator]
    assert train["spectral_distance"].value < 0.1  # type: ignore[operator]
    for spoiled in (uniform, noise):
        assert spoiled["sharpness"].low > 1.2  # type: ignore[operator]
        assert spoiled["spectral_distance"].low > 5 * train["spectral_distance"].value  # type: ignore[operator]
    assert 0 < constant["sharpness"].value < 0.01  # type: ignore[operator]
    assert constant["spectral_distance"].value > 1  # type: ignore[operator]
    better = {metric.key: metric.better for metric in found.table.metrics}
    assert (better["spectral_distance"], better["sharpness"]) == ("lower", "neither")


def test_a_discriminator_that_is_worse_than_guessing_still_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    found = TwoSampleTest(0.4, 0.3, 0.7, 0.9, 0.8, -0.11, -0.17, -0.05, 60)
    monkeypatch.setattr(samples, "classifier_two_sample_test", lambda *_, **__: found)
    data = triptych.load_data("digits")
    measures = samples.SampleMeasures(data, "test", [], discriminator=True, seed=0, device="cpu", tell=lambda _: None)
    cell = measures.measure("it", data.valid.read()[0]).measurements["jsd_nats"]
    assert (cell.value, cell.low, cell.high) == (0, 0, pytest.approx(0.06))


def test_numbers_are_written_short() -> None:
    written = (0.0, 0.0123, 0.5, 12.3456, 123.456, 1234567.0, 1.5e38, float("inf"))
    expected = ["0.000", "0.012", "0.500", "12.35", "123.5", "1,234,567", "1.500e+38", "inf"]
    assert [format_value(value) for value in written] == expected
    assert Metric("a", "A", "", "lower", "", least=0.0).possible((-3.0, 4.0)) == (0, 4)
    assert Metric("a", "A", "", "lower", "", most=1.0).possible((-3.0, 4.0)) == (-3, 1)


def test_no_sharpness_without_ordered_levels_or_enough_pixels() -> None:
    rng = np.random.default_rng(0)
    colours = tuple((level, level, level) for level in range(4))
    for space in (ImageSpace(1, 8, 8, 4, colours), ImageSpace(1, 7, 8, 4)):
        splits = [Split(rng.integers(0, 4, (20, *space.shape), dtype=np.uint8)) for _ in range(3)]
        found = evaluate({}, Dataset("small", space, *splits), extractors=[], discriminator=False)
        assert not {"spectral_distance", "sharpness"} & {metric.key for metric in found.table.metrics}
        assert all(not {"spectral_distance", "sharpness"} & set(row.measurements) for row in found.table.rows)


def test_samples_reconstructions_and_neighbours(found: Evaluation, digits: Dataset) -> None:
    assert {name: len(items) for name, items in found.samples.items()} == dict.fromkeys(
        ("uniform", "bounded", "copier"), N_TEST
    )
    assert list(found.reconstructions) == ["bounded"]
    np.testing.assert_array_equal(*found.reconstructions["bounded"])
    memorised = found.neighbours["copier"]
    np.testing.assert_array_equal(memorised.distances[:, 0], 0)
    np.testing.assert_array_equal(memorised.nearest[:, 0], memorised.queries)
    assert found.neighbours["uniform"].distances.min() > 1
    assert found.neighbours["held-out"].distances.min() > 0
    in_features = found.neighbours_in_features
    references = ["train vs held-out", "blurred", "copies of the training set", "noise"]
    assert list(in_features) == ["uniform", "bounded", "copier", *references, "held-out"]
    np.testing.assert_array_equal(in_features["copier"].distances[:, 0], 0)
    assert np.median(in_features["uniform"].distances[:, 0]) > 2 * np.median(in_features["held-out"].distances[:, 0])
    speed = found.table.rows[2].measurements["samples_per_second"]
    assert speed.value is not None
    assert speed.value > 0
    assert any("2,000" in note for note in found.notes)


def test_conditional_models_draw_the_held_out_labels_in_random_order(digits: Dataset) -> None:
    model = Copier(digits, n_classes=10).train()
    found = evaluate({"copier": model}, digits, extractors=[], discriminator=False)
    held_out = digits.test.labels
    assert held_out is not None
    drawn = torch.cat(model.given)[:N_TEST].numpy()
    np.testing.assert_array_equal(np.sort(drawn), np.sort(held_out))
    assert len(set(drawn[:16])) > 3
    assert any("log p(x | label)" in note for note in found.notes)
    assert model.training


def test_fewer_samples_and_the_valid_split(digits: Dataset) -> None:
    assert isinstance(digits.space, ImageSpace)
    extractors = [RandomConvFeatures(digits.space)]
    models = {"uniform": Uniform(digits.space)}
    lines: list[str] = []
    found = evaluate(
        models, digits, split="valid", n_samples=20, extractors=extractors, discriminator=False, progress=lines.append
    )
    row = found.table.rows[0].measurements
    assert len(found.samples["uniform"]) == row["fd_random"].n == row["precision_random"].n == 20
    assert row["recall_random"].n == row["bits_per_dim"].n == len(digits.valid)
    assert "valid split" in found.table.metrics[0].protocol
    assert any("uniform" in line for line in lines)
    few = evaluate(models, digits, n_samples=2, extractors=extractors, discriminator=False)
    for key in ("fd_random", "spectral_distance", "sharpness"):
        assert few.table.rows[0].measurements[key].text("lower") == "not defined"


def test_results_repeat(digits: Dataset) -> None:
    runs = [
        evaluate({"copier": Copier(digits)}, digits, n_samples=50, extractors=[], discriminator=False, seed=seed)
        for seed in (0, 0, 1)
    ]
    drawn = [run.samples["copier"] for run in runs]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_values_that_are_not_finite_are_noted(digits: Dataset) -> None:
    found = evaluate({"broken": Broken(digits.space)}, digits, n_samples=10, extractors=[], discriminator=False)
    value = found.table.rows[0].measurements["bits_per_dim"].value
    assert value is not None
    assert math.isnan(value)
    assert any("broken" in note and "2 of 301 values are not finite" in note for note in found.notes)


def test_labels_bring_the_classifier(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ClassifierFeatures.train
    monkeypatch.setattr(ClassifierFeatures, "train", lambda dataset, **given: train(dataset, **given, max_steps=60))
    found = evaluate({}, digits, discriminator=False)
    assert [metric.key for metric in found.table.metrics if metric.key.startswith("fd_")] == [
        "fd_random",
        "fd_infinity_random",
        "fd_classifier",
        "fd_infinity_classifier",
    ]
    held_out, *_, noise = (row.measurements["fd_classifier"].value for row in found.table.rows)
    assert held_out is not None
    assert noise is not None
    assert noise > 3 * held_out


class Gaussian(Untrained, TractableDensity):
    """N(0, I) in the plane."""

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return -(x**2).sum(1) / 2 - math.log(2 * math.pi)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return torch.randn(n, 2, generator=generator)


class Diverged(UntrainedImplicit):
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return torch.full((n, 2), math.nan)


def test_points() -> None:
    points = np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
    splits = [Split(part) for part in np.split(points, [500, 600])]
    space = point_space_of(points[:500])
    dataset = Dataset(
        "plane", space, *splits, log_density=lambda x: -(x**2).sum(axis=1) / 2 - np.log(2 * np.pi).astype(x.dtype)
    )
    found = evaluate({"gaussian": Gaussian(PointSpace(2)), "diverged": Diverged(space)}, dataset, discriminator=False)
    rows = {row.name: row.measurements for row in found.table.rows}
    assert list(rows) == [
        "gaussian",
        "diverged",
        "train vs held-out",
        "blurred",
        "copies of the training set",
        "noise",
        "true density",
    ]
    truth = rows["true density"]["nll_nats_per_point"]
    assert (truth.kind, truth.measure) == ("exact", "continuous")
    assert truth.value == pytest.approx(rows["gaussian"]["nll_nats_per_point"].value, rel=1e-5)
    assert rows["noise"]["fd_coordinates"].value > 5 * rows["gaussian"]["fd_coordinates"].value  # type: ignore[operator]
    assert rows["diverged"]["fd_coordinates"].text("lower") == "not defined"
    assert "diverged" not in found.neighbours
    assert any("diverged" in note and "not finite" in note for note in found.notes)
    keys = [metric.key for metric in found.table.metrics]
    assert keys[0] == "nll_nats_per_point"
    assert not {"spectral_distance", "sharpness"} & set(keys)


def test_wrong_arguments(digits: Dataset) -> None:
    model = Uniform(digits.space)
    with pytest.raises(InputError, match="split"):
        evaluate({"uniform": model}, digits, split="train")
    with pytest.raises(InputError, match="n_samples"):
        evaluate({"uniform": model}, digits, n_samples=0)
    with pytest.raises(InputError, match="reference"):
        evaluate({"noise": model}, digits)
    with pytest.raises(InputError, match="holds"):
        evaluate({"uniform": Uniform(ImageSpace(1, 8, 8, 16))}, digits)


def test_every_seed_of_a_training_can_measure(digits: Dataset) -> None:
    found = evaluate({}, digits, extractors=["random"], discriminator=False, seed=2**63 - 1)
    assert found.table.rows[0].measurements["copying_z"].value is not None
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match="seed is"):
            evaluate({}, digits, extractors=["random"], discriminator=False, seed=seed)


def test_the_gap_and_the_latents_of_a_bound_are_told(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = create_model("vae", digits.space, n_latents=3, hidden=4)
    found = evaluate({"vae": model}, digits, n_importance=4, n_samples=20, extractors=[], discriminator=False)
    assert any("nats looser than the importance-weighted bound" in note for note in found.notes)
    assert any(note.startswith("vae: latents: ") for note in found.notes)
    assert any("collapsed" in note for note in found.notes), "an untrained encoder says nothing of x"


def test_several_trainings_are_one_row_with_their_mean(digits: Dataset) -> None:
    class Fixed(Uniform):
        def __init__(self, nats: float) -> None:
            super().__init__(digits.space)
            self.nats = nats

        def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.full((len(x),), -self.nats)

    costs = {"fixed": [TrainingCost(seconds, 100, 7) for seconds in (1.0, 2.0, 6.0)]}
    models = {"fixed": [Fixed(100.0), Fixed(110.0), Fixed(150.0)]}
    found = evaluate(models, digits, n_samples=60, extractors=["random"], discriminator=False, costs=costs)
    row = found.table.rows[0]
    nll = row.measurements["nll_nats_per_image"]
    assert (nll.value, nll.seeds) == (pytest.approx(120), (100.0, 110.0, 150.0))
    # Student's t with two degrees of freedom.
    assert nll.seed_error == pytest.approx(4.30265 * 26.457513 / 3**0.5, rel=1e-5)
    assert nll.whole_interval == (pytest.approx(120 - nll.seed_error), pytest.approx(120 + nll.seed_error))
    assert row.measurements["training_seconds"].value == pytest.approx(3)
    alone = evaluate({"fixed": models["fixed"][0]}, digits, n_samples=60, extractors=["random"], discriminator=False)
    # All three draw the same noise, so their mean is the first one's.
    assert row.measurements["kid_random"].value == pytest.approx(alone.table.rows[0].measurements["kid_random"].value)
    assert np.array_equal(found.samples["fixed"], alone.samples["fixed"])
    assert found.per_class is not None
    assert [one.value for one in found.per_class.rows["fixed"]["nll_nats_per_image"]] == [pytest.approx(120)] * 10
    with pytest.raises(InputError, match="no trained model"):
        evaluate({"fixed": []}, digits)


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_a_training_without_a_finite_likelihood_does_not_stop_the_others(digits: Dataset, odd: float) -> None:
    class Fixed(Uniform):
        def __init__(self, nats: float) -> None:
            super().__init__(digits.space)
            self.nats = nats

        def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.full((len(x),), -self.nats)

    models = {"fixed": [Fixed(100.0), Fixed(odd)], "other": Fixed(120.0)}
    found = evaluate(models, digits, n_samples=30, extractors=["random"], discriminator=False)
    nll = found.table.rows[0].measurements["nll_nats_per_image"]
    assert nll.value is not None
    assert not math.isfinite(nll.value)
    assert (nll.seed_error, nll.whole_interval) == (None, None)
    assert any("fixed 2: of the held-out log-likelihoods, 301 of 301 values are not finite" in n for n in found.notes)
    # JSON has no such numbers: they are text there, and come back as they were.
    written = json.dumps(found.table.to_dict(), allow_nan=False)
    again = Table.from_dict(json.loads(written)).rows[0].measurements["nll_nats_per_image"]
    assert again.value == pytest.approx(nll.value, nan_ok=True)
    assert again.seeds == pytest.approx(nll.seeds, nan_ok=True)
    said = verdicts(found.table, digits.space)["tractable"]
    assert any(line.startswith("Of other, the exact negative log-likelihood is 120.0") for line in said)
    assert any(line.startswith("Without a place: fixed, whose NLL is not finite") for line in said)


def test_whether_it_remembers_is_told_of_every_training(digits: Dataset) -> None:
    models = {"copier": [Copier(digits), Uniform(digits.space)]}
    found = evaluate(models, digits, extractors=["random"], discriminator=False)
    assert "copier 1: it only remembers" in found.memory["copier"]
    assert "copier 2: no sign of remembering" in found.memory["copier"]


def test_an_elbo_that_chance_puts_below_its_bound_is_not_called_looser(digits: Dataset) -> None:
    class Lucky(Bounded):
        def elbo(
            self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
        ) -> Tensor:
            return torch.full((len(x),), -88.0)

    found = evaluate({"lucky": Lucky(digits.space)}, digits, n_samples=6, extractors=[], discriminator=False)
    assert any("came out 2.00 nats tighter" in note and "chance" in note for note in found.notes)


def test_reference_rows_have_as_many_items_as_there_are_samples(digits: Dataset) -> None:
    light = {"extractors": ["random"], "discriminator": False}
    given = digits.train.read()[0]
    found = evaluate_samples({"few": given[:50], "fewer": given[:40]}, digits, **light)
    by_name = {row.name: row.measurements for row in found.table.rows}
    for name in ("few", "train vs held-out", "blurred", "copies of the training set", "noise"):
        assert by_name[name]["fd_random"].n == 50
        assert by_name[name]["authenticity"].n == 50, name
    assert by_name["fewer"]["fd_random"].n == 40
    # More than held-out items: some of them at random, since many tools write them class by class.
    many = evaluate_samples({"many": given}, digits, **light)
    assert len(many.samples["many"]) == N_TEST
    assert not np.array_equal(many.samples["many"], given[:N_TEST])
    assert any("of 500 samples 301, chosen at random, are measured" in note for note in many.notes)


def test_labels_of_some_splits_alone_bring_no_classifier(digits: Dataset) -> None:
    train, valid, test = (split.read() for split in digits.splits.values())
    splits = Split(train[0], train[1]), Split(valid[0][:40]), Split(test[0][:40])
    data = Dataset("partly labelled", digits.space, *splits, digits.class_names)
    keys = [metric.key for metric in evaluate({}, data, discriminator=False).table.metrics]
    assert "fd_autoencoder" in keys
    assert "fd_classifier" not in keys


def test_shares_of_classes_that_are_not_held_out(digits: Dataset) -> None:
    items, labels = digits.test.read()
    assert labels is not None
    zeros = labels == 0
    test = Split(items[~zeros], labels[~zeros])
    data = Dataset("no zeros held out", digits.space, digits.train, digits.valid, test, digits.class_names)
    found = evaluate_samples({"zeros": items[zeros]}, data, extractors=["random", "classifier"], discriminator=False)
    assert found.per_class is not None
    row = found.per_class.rows["zeros"]
    assert row["recall"][0].value is None
    shares = [cell.value or 0.0 for cell in row["share"]]
    assert shares[0] > 0.8
    assert sum(shares) == pytest.approx(1)


def test_too_few_items_for_any_distance_are_told_once(digits: Dataset) -> None:
    few = Split(digits.test.read()[0][:3])
    data = Dataset("few", digits.space, digits.train, digits.valid, few)
    found = evaluate({"uniform": Uniform(digits.space)}, data, extractors=["random"])
    assert found.notes == ("3 held-out items are too few to compare samples with: it takes 6.",)
    assert found.table.rows[0].measurements["kid_random"].value is None


def test_extractors_by_name_are_each_wanted_once(digits: Dataset) -> None:
    with pytest.raises(InputError, match="twice"):
        evaluate({}, digits, extractors=["random", "random"], discriminator=False)
    with pytest.raises(InputError, match="Did you mean 'random'"):
        evaluate({}, digits, extractors=["rondom"], discriminator=False)


def test_palettes_have_no_blurred_row() -> None:
    rng = np.random.default_rng(0)
    space = ImageSpace(1, 8, 8, 4, tuple((level, 0, level) for level in range(4)))
    splits = [Split(rng.integers(0, 4, (30, 1, 8, 8), dtype=np.uint8)) for _ in range(3)]
    found = evaluate({}, Dataset("small", space, *splits), extractors=["random"], discriminator=False)
    assert [row.name for row in found.table.rows] == ["train vs held-out", "copies of the training set", "noise"]
