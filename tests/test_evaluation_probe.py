"""What codes are worth for classification: constructed encoders whose answer is known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stubs import Untrained
from torch import Generator, Tensor, nn

from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError
from triptych.evaluation import probe as module
from triptych.evaluation.probe import (
    C_GRID,
    Accuracy,
    OverDraws,
    Part,
    ProbeResult,
    balanced_order,
    describe,
    feature_scales,
    finetuned_accuracy,
    label_counts,
    pca_features,
    probe,
    purity,
    raw_features,
)
from triptych.models.base import GenerativeModel, ImplicitDensity, LatentModel
from triptych.models.inversion import Recognition
from triptych.models.registry import create_model, find_models, model_class
from triptych.spaces import ImageSpace, PointSpace, Space

N_ITEMS = {"train": 240, "valid": 90, "test": 300}


class Coded(Untrained, LatentModel):
    """Codes are a given function of the data."""

    def __init__(self, space: Space, code: Callable[[Tensor], Tensor], n_latents: int, n_classes: int = 0) -> None:
        super().__init__(space, n_classes)
        self.code, self.n_latents = code, n_latents

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        return self.code(x)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Recording(Coded):
    """A linear encoder that notes its weights and the items' numbers whenever it is trained."""

    seen: ClassVar[list[tuple[Tensor, frozenset[int]]]] = []

    def __init__(self, space: Space) -> None:
        super().__init__(space, self.linear, 3)
        self.layer = nn.Linear(2, 3)

    def linear(self, x: Tensor) -> Tensor:
        return self.layer((x - x.new_tensor([300.0, 1.0])) / x.new_tensor([200.0, 1.0]))

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        if self.training and len(x) > 2:  # Two items only ask whether there is a gradient.
            self.seen.append((self.layer.weight.detach().clone(), frozenset(x[:, 0].int().tolist())))
        return self.linear(x)


def never(seed: int) -> GenerativeModel:
    raise AssertionError("no fresh model is needed")


@pytest.fixture
def one_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quicker linear probes, where they are not what is tested."""
    monkeypatch.setattr(module, "C_GRID", (1.0,))


@pytest.fixture(scope="module")
def numbered() -> Dataset:
    """Points (number, class) of 3 classes; numbers differ over all splits."""
    splits, start = [], 0
    for n in N_ITEMS.values():
        numbers = np.arange(start, start + n)
        labels = np.random.default_rng(n).permutation(numbers % 3)
        splits.append(Split(np.stack([numbers, labels], 1).astype(np.float32), labels))
        start += n
    return Dataset("numbered", PointSpace(2, (300.0, 1.0), 100.0), *splits, ("a", "b", "c"))


def one_hot(x: Tensor) -> Tensor:
    return F.one_hot(x[:, 1].long(), 3).float()


def accuracies(result: ProbeResult, method: str) -> dict[int, OverDraws]:
    return {row.n_labels: row.accuracy for row in result.accuracies if row.method == method}


def test_codes_that_are_the_classes_are_perfect(numbered: Dataset) -> None:
    told: list[str] = []
    model = Coded(numbered.space, one_hot, 3)
    result = probe(model, never, numbered, n_labels=(3, 30), n_draws=2, progress=told.append)
    codes, pca, raw = result.clusterings
    assert [row.features for row in result.clusterings] == ["codes", "pca", "raw"]
    assert (codes.n_features, pca.n_features, raw.n_features) == (3, 2, 2)
    assert codes.purity.values == codes.adjusted_rand.values == (1.0, 1.0)
    assert raw.purity.mean < 0.6  # The numbers drown the classes.
    found = accuracies(result, "linear_codes")
    assert {n: row.values for n, row in found.items()} == {3: (1.0, 1.0), 30: (1.0, 1.0), 240: (1.0,)}
    assert (result.n_train, result.n_valid, result.n_test, result.n_classes) == (240, 90, 300, 3)
    assert result.majority == pytest.approx(1 / 3)
    assert "encoding" in told
    # The codes depend on no weights, so there is nothing to fine-tune, and it is said.
    assert {row.method for row in result.accuracies} == {"linear_codes", "linear_pca", "linear_raw"}
    assert any("Fine-tuning is left out" in note for note in result.notes)


def test_codes_that_know_nothing_are_at_chance(numbered: Dataset) -> None:
    table = torch.randn(sum(N_ITEMS.values()), 8, generator=Generator().manual_seed(0))
    model = Coded(numbered.space, lambda x: table[x[:, 0].long()], 8)
    result = probe(model, never, numbered, n_labels=(60,), n_draws=5, finetune_steps=0)
    found = accuracies(result, "linear_codes")[60]
    assert found.half_width is not None
    assert abs(found.mean - 1 / 3) < found.half_width < 0.05
    codes = result.clusterings[0]
    assert codes.purity.mean < 0.45
    assert abs(codes.adjusted_rand.mean) < 0.02
    assert not result.notes


def templates() -> Dataset:
    """4x4 images of 3 templates under much noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(2, 14, size=(3, 1, 4, 4))
    splits = []
    for n in (150, 60, 90):
        labels = rng.integers(0, 3, n)
        noise = rng.normal(size=(n, 1, 4, 4)) * 8
        splits.append(Split((patterns[labels] + noise).round().clip(0, 15).astype(np.uint8), labels))
    return Dataset("templates", ImageSpace(1, 4, 4, 16), *splits, ("a", "b", "c"))


def test_the_pca_baseline_is_that_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import adjusted_rand_score
    from sklearn.metrics.cluster import contingency_matrix

    data = templates()
    model = Coded(data.space, lambda x: x.flatten(1)[:, :2].float(), 2)
    result = probe(model, never, data, n_labels=(), n_draws=1, finetune_steps=0)
    images = [split.read()[0].reshape(len(split), -1) / 15 for split in data.splits.values()]
    labels = [np.asarray(split.labels) for split in data.splits.values()]
    pca = PCA(2, svd_solver="full").fit(images[0])
    train, valid, test = (pca.transform(rows) for rows in images)
    best, expected = -1.0, -1.0
    for scale in (train.std(0), np.sqrt(train.var(0).mean())):
        for c in C_GRID:
            fitted = LogisticRegression(C=c, max_iter=1000).fit(train / scale, labels[0])
            if (score := fitted.score(valid / scale, labels[1])) > best:
                best, expected = score, fitted.score(test / scale, labels[2])
    assert accuracies(result, "linear_pca")[150].values == (pytest.approx(expected),)
    clusters = KMeans(3, n_init=20, random_state=0).fit(train).predict(test)
    found = result.clusterings[1]
    assert found.purity.mean == pytest.approx(contingency_matrix(labels[2], clusters).max(0).sum() / len(test))
    assert found.adjusted_rand.mean == pytest.approx(adjusted_rand_score(labels[2], clusters))
    assert max(expected, found.purity.mean) < 1
    ours = pca_features([raw_features(split.read()[0], data.space) for split in data.splits.values()], 2, 0)
    for rows, reference in zip(ours, (train, valid, test), strict=True):
        np.testing.assert_allclose(np.abs(rows), np.abs(reference), atol=1e-5)


@pytest.mark.usefixtures("one_c")
def test_labels_are_drawn_evenly_from_train_and_are_the_same_for_both_encoders(numbered: Dataset) -> None:
    Recording.seen.clear()
    torch.manual_seed(0)
    model = Recording(numbered.space)
    result = probe(
        model, lambda seed: Recording(numbered.space), numbered, n_labels=(7, 30), n_draws=2, finetune_steps=1
    )
    assert result.n_labels == (7, 30, 240)
    # Of each draw: 7, 30 and all labels, for the trained and then the fresh encoder; one step each.
    assert len(Recording.seen) == 2 * 3 * 2
    classes = np.asarray(numbered.train.labels)
    drawn = []
    for start in (0, 6):
        (trained, few), (fresh, few_too), (_, more), (fresh_too, more_too), *_ = Recording.seen[start : start + 6]
        assert few == few_too
        assert more == more_too
        assert few < more < frozenset(range(240)), "from train, and within each other"
        assert torch.equal(trained, model.layer.weight)
        assert not torch.equal(fresh, trained)
        assert torch.equal(fresh, fresh_too)
        assert sorted(np.bincount(classes[list(few)])) == [2, 2, 3]
        assert sorted(np.bincount(classes[list(more)])) == [10, 10, 10]
        drawn.append((few, fresh))
    assert drawn[0][0] != drawn[1][0]
    assert not torch.equal(drawn[0][1], drawn[1][1])
    for method in ("fine_tuned", "from_scratch"):
        assert {n: len(row.values) for n, row in accuracies(result, method).items()} == {7: 2, 30: 2, 240: 2}


def test_fine_tuning_profits_from_a_good_start_and_leaves_the_model_alone(tiny_points: Dataset) -> None:
    """An encoder that turns nearly all of its input away needs more steps than one that does not."""

    def narrow(gain: float) -> GenerativeModel:
        model = create_model("vae", tiny_points.space, hidden=8, n_latents=2, network="linear")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= gain
        return model.eval().requires_grad_(False)

    torch.manual_seed(0)
    model = narrow(3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    settings = {"n_labels": (), "n_draws": 2, "finetune_steps": 40}
    result = probe(model, lambda seed: narrow(0.0), tiny_points, **settings)
    again = probe(model, lambda seed: narrow(0.0), tiny_points, **settings)
    assert accuracies(result, "fine_tuned")[200].mean == 1.0
    assert accuracies(result, "from_scratch")[200].mean < 0.7, "no gradient passes where all weights are zero"
    assert result == again
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Fading(Coded):
    """Codes are the classes during the first 25 steps of a training, and nothing from then on."""

    steps: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__(space, one_hot, 3)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.tensor(0))

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        self.steps += self.training
        return one_hot(x) * self.gain * (self.steps <= 25)


@pytest.mark.parametrize(("n_steps", "kept"), [(50, 20), (24, 24), (3, 3)])
def test_early_stopping_keeps_the_last_of_the_best_weights(numbered: Dataset, n_steps: int, kept: int) -> None:
    network = Fading(numbered.space)
    train, valid, test = (Part(np.asarray(s.items), np.asarray(s.labels)) for s in numbered.splits.values())
    assert finetuned_accuracy(network, 3, train, valid, test, n_steps=n_steps, seed=0) == 1.0
    assert int(network.steps) == kept


@pytest.mark.parametrize("name", [n for n in find_models() if issubclass(model_class(n), LatentModel)])
def test_every_encoder_can_be_fine_tuned(name: str, tiny: Dataset) -> None:
    torch.manual_seed(0)
    model = create_model(name, tiny.space)
    assert isinstance(model, LatentModel)
    if isinstance(model, ImplicitDensity):
        model.recognition = Recognition(tiny.space, 0, model.n_latents)  # An optimisation has nothing to tune.
    train, valid, test = (Part(*split.read(np.arange(30))) for split in tiny.splits.values())  # type: ignore[arg-type]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    # The linear layer starts at zero: only from the second step on do gradients pass through it.
    assert 0 <= finetuned_accuracy(model, 2, train, valid, test, n_steps=2, seed=0) <= 1
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_order_of_labels_is_balanced_at_every_length() -> None:
    labels = np.repeat([0, 1, 3], [50, 5, 20])
    order = balanced_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(75))
    for n in range(1, 76):
        counts = np.bincount(labels[order[:n]], minlength=4)[[0, 1, 3]]
        full = counts == [50, 5, 20]
        open_counts = counts[~full]
        if len(open_counts):
            assert open_counts.max() - open_counts.min() <= 1
            assert counts[full].max(initial=0) <= open_counts.max() + 1
    first = {tuple(balanced_order(labels, np.random.default_rng(seed))[:3]) for seed in range(20)}
    assert len({labels[list(positions)].tolist().index(0) for positions in first}) == 3, "classes in random order"
    assert len(first) == 20


def test_purity_of_the_example_of_the_book() -> None:
    """Manning et al., figure 16.4: clusters of 5 + 1, 1 + 4 + 1 and 2 + 3 items."""
    clusters = np.repeat([0, 1, 2], [6, 6, 5])
    classes = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 2, 0, 0, 2, 2, 2])
    assert purity(clusters, classes) == pytest.approx(12 / 17)
    assert purity(classes, classes) == 1.0
    assert purity(np.zeros(17, dtype=int), classes) == pytest.approx(8 / 17)


def test_numbers_of_labels_that_do_not_fit_are_mended_and_told() -> None:
    assert label_counts((10, 100, 1000), 10, 5000) == ((10, 100, 1000, 5000), [])
    counts, notes = label_counts((10, 100, 1000), 25, 500)
    assert counts == (25, 100, 500)
    assert notes == [
        "10 labels are raised to 25, one a class.",
        "1000 labels are left out: there are 500 training items, and all are measured anyway.",
    ]
    assert label_counts((), 2, 9) == ((9,), [])
    assert label_counts((1, 2), 2, 2)[0] == (2,)
    with pytest.raises(InputError, match="n_labels holds 0"):
        label_counts((0, 10), 2, 100)


def test_the_interval_is_students() -> None:
    assert OverDraws((1.0, 2.0, 3.0)).mean == 2.0
    assert OverDraws((1.0, 2.0, 3.0)).half_width == pytest.approx(4.302653 / math.sqrt(3))
    assert OverDraws((1.0,)).half_width is None


def test_scales() -> None:
    features = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 10.0, 0.0] + 0.3
    each, whole = feature_scales(features.astype(np.float32))
    np.testing.assert_allclose(each[:2], features[:, :2].std(0), rtol=1e-5)
    assert each[2] == 1.0
    np.testing.assert_allclose(whole, np.full(3, math.sqrt(features.var(0).mean())), rtol=1e-5)
    assert np.array_equal(feature_scales(np.full((5, 2), 0.1))[1], [1.0, 1.0])


def test_raw_features_by_space() -> None:
    grey = np.array([[[[0, 4], [2, 1]]]], dtype=np.uint8)
    np.testing.assert_allclose(raw_features(grey, ImageSpace(1, 2, 2, 5)), [[0, 1, 0.5, 0.25]])
    palette = ImageSpace(1, 1, 2, 2, ((255, 0, 51), (0, 0, 0)))
    np.testing.assert_allclose(raw_features(np.array([[[[1, 0]]]]), palette), [[0, 0, 0, 1, 0, 0.2]])
    points = np.array([[3.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(raw_features(points, PointSpace(2, (1.0, 1.0), 2.0)), [[1, 2]])


@pytest.mark.usefixtures("one_c")
def test_memory_is_bounded(numbered: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def code(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return one_hot(x)

    model = Coded(numbered.space, code, 3)
    settings = {"n_labels": (), "n_draws": 1, "finetune_steps": 0}
    probe(model, never, numbered, **settings)
    assert max(sizes) == 256  # of 300
    monkeypatch.setattr(module, "_MAX_ITEMS", 100)
    monkeypatch.setattr(module, "_MAX_ENTRIES", 120)
    result = probe(model, never, numbered, **settings)
    assert (result.n_train, result.n_valid, result.n_test) == (60, 60, 60)
    assert "60 of 240 train items are used, drawn at random." in result.notes


@pytest.mark.usefixtures("one_c")
def test_lines_and_json(numbered: Dataset) -> None:
    model = Coded(numbered.space, one_hot, 3)
    result = probe(model, never, numbered, n_labels=(30,), n_draws=2, finetune_steps=0)
    assert result.gains == {}
    tuned = Accuracy("fine_tuned", 3, 30, OverDraws((0.5, 0.75)))
    scratch = Accuracy("from_scratch", 3, 30, OverDraws((0.25, 0.5)))
    rows = [dataclasses.replace(row, n_labels=n) for row in (tuned, scratch) for n in (30, 240)]
    result = dataclasses.replace(result, accuracies=(*result.accuracies, *rows))
    lines = describe(result)
    assert lines[0].startswith("Coded on numbered: 240 training items, 90 for choosing, 300 for testing")
    assert lines[0].endswith("33.3 % of these")
    table = [line for line in lines if line.startswith(("test accuracy", "linear probe", "encoder"))]
    assert [line.split("  ")[0] for line in table] == [
        "test accuracy, %",
        "linear probe, codes",
        "linear probe, PCA",
        "linear probe, coordinates",
        "encoder, fine-tuned",
        "encoder, from scratch",
    ]
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["linear", "probe,", "codes", "3", "100.0", "±", "0.0", "100.0"]
    half = 100 * 12.7062 * 0.25 / math.sqrt(2) / math.sqrt(2)
    assert table[4].split()[2:] == ["3", "62.5", "±", f"{half:.1f}", "62.5", "±", f"{half:.1f}"]
    # Each draw gains as much, though both rows are uncertain.
    assert result.gains[30].values == (0.25, 0.25)
    (gain,) = (line for line in lines if line.startswith("gain of the trained start"))
    assert gain.split()[-6:] == ["25.0", "±", "0.0", "25.0", "±", "0.0"]
    assert "Student's t over 2 draws" in lines[-1]
    values = json.loads(json.dumps(result.to_dict()))
    assert values["n_labels"] == [30, 240]
    assert values["clusterings"][0]["purity"] == {"values": [1.0, 1.0], "mean": 1.0, "half_width": 0.0}
    assert values["accuracies"][0]["method"] == "linear_codes"
    assert values["accuracies"][1]["accuracy"]["half_width"] is None
    assert values["gains"]["240"]["mean"] == 0.25


def test_what_cannot_be_probed_is_refused(numbered: Dataset, tiny: Dataset) -> None:
    model = Coded(numbered.space, one_hot, 3)

    def refused(match: str, model: GenerativeModel = model, data: Dataset = numbered, **settings: object) -> None:
        with pytest.raises(InputError, match=match):
            probe(model, never, data, **{"finetune_steps": 0, **settings})  # type: ignore[arg-type]

    refused("PixelCNN has no encoder", create_model("pixel_cnn", tiny.space, hidden=4), tiny)
    refused("class-conditional", Coded(numbered.space, one_hot, 3, n_classes=3))
    refused("models 2-D points", data=tiny)
    refused("models 8x8 grey images, 5 levels", Coded(ImageSpace(1, 8, 8, 5), one_hot, 3), tiny)
    refused("has 0 classes", data=dataclasses.replace(numbered, class_names=None))
    unlabelled = Split(numbered.test.items)
    refused("in each split", data=dataclasses.replace(numbered, test=unlabelled))
    one_class = Split(np.asarray(numbered.train.items), np.zeros(240, dtype=np.int64))
    refused("240 items of 1 classes", data=dataclasses.replace(numbered, train=one_class))
    refused("n_labels holds -1", n_labels=(-1,))
    refused("n_draws is 0", n_draws=0)
    refused("finetune_steps -1", finetune_steps=-1)
    refused("not finite", Coded(numbered.space, lambda x: one_hot(x) / 0, 3))
    with pytest.raises(InputError, match="fresh made a Coded; it must make an untrained Recording of 3 latents"):
        probe(Recording(numbered.space), lambda seed: model, numbered, n_labels=(), n_draws=1)


@pytest.mark.usefixtures("one_c")
def test_few_labels_of_many_classes_are_one_a_class(numbered: Dataset) -> None:
    model = Coded(numbered.space, one_hot, 3)
    settings = {"n_labels": (1,), "n_draws": 1, "finetune_steps": 0}
    result = probe(model, never, dataclasses.replace(numbered, class_names=("a", "b", "c", "d")), **settings)
    assert result.n_labels == (3, 240)
    assert result.notes == ("1 labels are raised to 3, one a class.", "1 of 4 classes have no training items.")
    assert accuracies(result, "linear_codes")[3].values == (1.0,)
