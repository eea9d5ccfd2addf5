"""Feature extractors: every kind of image, independence of batches, and what they tell apart."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from triptych.data.dataset import Dataset, Split, level_dtype
from triptych.errors import InputError
from triptych.evaluation import features as features_module
from triptych.evaluation.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    Coordinates,
    FeatureExtractor,
    RandomConvFeatures,
    seen_space,
)
from triptych.evaluation.two_sample import frechet_distance, gaussian_statistics, precision_recall
from triptych.spaces import ImageSpace, PointSpace

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    items, labels = found.images.astype(np.uint8)[order, None], found.target.astype(np.int64)[order]
    train, valid, test = (Split(items[part], labels[part]) for part in np.split(np.arange(1797), [1257, 1437]))
    return Dataset("digits", ImageSpace(1, 8, 8, 17), train, valid, test, tuple("0123456789"))


def blurred(items: np.ndarray) -> np.ndarray:
    padded = np.pad(items.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16).round().astype(items.dtype)


def half_blank(items: np.ndarray) -> np.ndarray:
    items = items.copy()
    items[:, :, items.shape[2] // 2 :] = 0
    return items


SPACES = [
    ImageSpace(1, 8, 8, 2),
    ImageSpace(1, 28, 28),
    ImageSpace(3, 32, 32),
    ImageSpace(1, 20, 20, 3, palette=((0, 0, 0), (255, 0, 0), (250, 250, 250))),
    ImageSpace(1, 9, 70, 65536),
    ImageSpace(3, 3, 1, 5),
    ImageSpace(1, 1, 1, 2),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_features_of_any_space(space: ImageSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(0, space.levels, size=(11, *space.shape)).astype(level_dtype(space.levels))
    extractor = RandomConvFeatures(space)
    whole = extractor(items)
    assert whole.shape == (11, extractor.n_features)
    assert extractor.n_features <= 128
    assert whole.dtype == np.float64
    assert np.isfinite(whole).all()
    monkeypatch.setattr(features_module, "_BATCH_SIZE", 3)
    np.testing.assert_allclose(RandomConvFeatures(space)(items), whole, rtol=1e-4, atol=1e-6)


def test_random_features_are_fixed() -> None:
    """The golden values hold the extractor to its version: whoever changes them changes the name too."""
    items = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    state = torch.get_rng_state()
    extractor = RandomConvFeatures(ImageSpace(1, 8, 8, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert extractor.name == "random-conv-v1-seed0"
    np.testing.assert_allclose(extractor(items)[0, [0, 8, 20, 40, 95]], GOLDEN, rtol=1e-4)
    assert not np.allclose(RandomConvFeatures(ImageSpace(1, 8, 8, 64), seed=1)(items), extractor(items))


GOLDEN = [0.088169, 0.552265, 0.035663, 0.222871, 0.272647]


def test_palette_images_are_seen_in_their_colours() -> None:
    """Two indices of equal colour are the same picture."""
    colours = ((10, 20, 30), (200, 100, 50), (10, 20, 30))
    items = np.random.default_rng(0).integers(0, 2, size=(4, 1, 8, 8)).astype(np.uint8)
    extractor = RandomConvFeatures(ImageSpace(1, 8, 8, 3, palette=colours))
    np.testing.assert_array_equal(extractor(items), extractor(np.where(items == 0, 2, items).astype(np.uint8)))


def test_wrong_images_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        RandomConvFeatures(ImageSpace(1, 8, 8))(np.zeros((2, 1, 9, 8), dtype=np.uint8))


def ranking(
    train: np.ndarray, held_out: np.ndarray, space: ImageSpace, extractor: FeatureExtractor
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    reference = gaussian_statistics(extractor(held_out))
    noise = rng.integers(0, space.levels, size=held_out.shape).astype(held_out.dtype)
    sets = {"held-out": train, "blurred": blurred(train), "noise": noise, "half": half_blank(train)}
    return {name: frechet_distance(gaussian_statistics(extractor(items)), reference) for name, items in sets.items()}


def test_random_features_rank_digits(digits: Dataset) -> None:
    assert isinstance(digits.space, ImageSpace)
    fd = ranking(digits.train.read()[0][:360], digits.test.read()[0], digits.space, RandomConvFeatures(digits.space))
    assert 10 * fd["held-out"] < fd["blurred"] < fd["noise"]
    assert fd["half"] > 10 * fd["held-out"]


def test_random_features_rank_mnist() -> None:
    file = MNIST / "t10k-images-idx3-ubyte.gz"
    if not file.exists():
        pytest.skip("MNIST is not on this machine")
    items = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    items = items[np.random.default_rng(0).permutation(len(items))[:4000]]
    space = ImageSpace(1, 28, 28)
    fd = ranking(items[:2000], items[2000:], space, RandomConvFeatures(space))
    assert 10 * fd["held-out"] < fd["blurred"] < fd["noise"]
    assert fd["half"] > 10 * fd["held-out"]


def test_classifier_features(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    extractor = ClassifierFeatures.train(digits, max_steps=120)
    assert torch.equal(torch.get_rng_state(), state)
    assert extractor.accuracy > 0.95
    assert f"{100 * extractor.accuracy:.1f} %" in extractor.description
    items = digits.test.read()[0][:50]
    whole = extractor(items)
    assert whole.shape == (50, extractor.n_features)
    assert whole.dtype == np.float64
    monkeypatch.setattr(features_module, "_BATCH_SIZE", 7)
    np.testing.assert_allclose(extractor(items), whole, atol=1e-4)


def test_classifier_training_repeats(digits: Dataset) -> None:
    items = digits.test.read()[0][:5]
    first, second = (ClassifierFeatures.train(digits, max_steps=5)(items) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(ClassifierFeatures.train(digits, max_steps=5, seed=1)(items), first)


@pytest.mark.slow
def test_classifier_of_digits_is_good_by_default(digits: Dataset) -> None:
    assert ClassifierFeatures.train(digits).accuracy >= 0.97


def test_classifier_needs_labels_and_images(digits: Dataset) -> None:
    bare = Split(digits.train.items)
    with pytest.raises(InputError, match="labels"):
        ClassifierFeatures.train(Dataset("bare", digits.space, bare, bare, bare))
    points = Split(np.zeros((5, 2), dtype=np.float32), np.zeros(5, dtype=np.int64))
    with pytest.raises(InputError, match="images"):
        ClassifierFeatures.train(Dataset("points", PointSpace(2), points, points, points, ("a", "b")))


def images_of(space: ImageSpace, n: int = 11) -> Dataset:
    rng = np.random.default_rng(0)
    items = rng.integers(0, space.levels, size=(n, *space.shape)).astype(level_dtype(space.levels))
    split = Split(items)
    return Dataset("random", space, split, split, split)


@pytest.mark.parametrize("space", [*SPACES, ImageSpace(3, 128, 96), ImageSpace(1, 40, 40, 2)], ids=str)
def test_autoencoder_features_of_any_space(space: ImageSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = images_of(space)
    extractor = AutoencoderFeatures.train(dataset, max_steps=2)
    items = dataset.train.read()[0]
    whole = extractor(items)
    assert whole.shape == (11, extractor.n_features)
    assert extractor.n_features <= 68
    assert whole.dtype == np.float64
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=1e-4)
    assert whole.std(axis=0).max() == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(features_module, "_BATCH_SIZE", 3)
    np.testing.assert_allclose(extractor(items), whole, atol=1e-3)


def test_autoencoder_training_repeats_and_leaves_random_state_alone(digits: Dataset) -> None:
    items = digits.test.read()[0][:5]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (AutoencoderFeatures.train(digits, max_steps=5)(items) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(AutoencoderFeatures.train(digits, max_steps=5, seed=1)(items), first)


def test_autoencoder_features_rank_digits(digits: Dataset) -> None:
    assert isinstance(digits.space, ImageSpace)
    extractor = AutoencoderFeatures.train(digits)
    variance = (digits.train.read()[0] / 8).var(axis=0).mean()
    assert extractor.error < 0.3 * variance
    train, held_out = digits.train.read()[0][:360], digits.test.read()[0]
    fd = ranking(train, held_out, digits.space, extractor)
    assert 4 * fd["held-out"] < fd["blurred"] < fd["noise"]
    assert fd["half"] > 10 * fd["held-out"]
    noise = np.random.default_rng(0).integers(0, 17, size=held_out.shape).astype(np.uint8)
    precision, recall = precision_recall(extractor(held_out), extractor(noise))
    assert precision < 0.2
    assert recall == 0
    precision, recall = precision_recall(extractor(held_out), extractor(train))
    assert min(precision, recall) > 0.8


def test_autoencoder_keeps_the_best_look(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training far past its best yields is not its end."""
    errors = []
    measure = features_module._mean_squared_error

    def worse_and_worse(*args: Any) -> float:
        errors.append(measure(*args) if not errors else errors[-1] + 1)
        return errors[-1]

    monkeypatch.setattr(features_module, "_mean_squared_error", worse_and_worse)
    extractor = AutoencoderFeatures.train(digits, max_steps=10)
    assert len(errors) == 5
    assert extractor.error == errors[0]
    items = digits.valid.read()[0]
    monkeypatch.undo()
    assert measure(extractor._network, items, digits.space, torch.device("cpu")) == pytest.approx(errors[0], rel=1e-4)


def test_autoencoder_sees_palettes_in_colours_and_large_images_small() -> None:
    colours = ((10, 20, 30), (200, 100, 50), (10, 20, 30))
    space = ImageSpace(1, 8, 8, 3, palette=colours)
    extractor = AutoencoderFeatures.train(images_of(space), max_steps=2)
    items = np.random.default_rng(0).integers(0, 2, size=(4, 1, 8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(extractor(items), extractor(np.where(items == 0, 2, items).astype(np.uint8)))
    assert seen_space(space) == ImageSpace(3, 8, 8)
    assert seen_space(ImageSpace(3, 128, 64)) == ImageSpace(3, 32, 16)
    assert seen_space(ImageSpace(1, 33, 2, 2)) == ImageSpace(1, 17, 1)
    assert seen_space(ImageSpace(1, 28, 28, 2)) == ImageSpace(1, 28, 28, 2)


def test_autoencoder_of_equal_images_has_finite_features() -> None:
    split = Split(np.full((3, 1, 8, 8), 5, dtype=np.uint8))
    extractor = AutoencoderFeatures.train(Dataset("equal", ImageSpace(1, 8, 8, 17), split, split, split), max_steps=2)
    assert np.isfinite(extractor(np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8), dtype=np.uint8))).all()


def test_autoencoder_needs_images_and_steps(digits: Dataset) -> None:
    points = Split(np.zeros((5, 2), dtype=np.float32))
    with pytest.raises(InputError, match="images"):
        AutoencoderFeatures.train(Dataset("points", PointSpace(2), points, points, points))
    with pytest.raises(InputError, match="max_steps is 0"):
        AutoencoderFeatures.train(digits, max_steps=0)
    with pytest.raises(InputError, match="shape"):
        AutoencoderFeatures.train(digits, max_steps=1)(np.zeros((2, 1, 9, 8), dtype=np.uint8))


@pytest.mark.slow
def test_autoencoder_features_rank_mnist() -> None:
    from triptych.data.load import load_data

    if not MNIST.exists():
        pytest.skip("MNIST is not on this machine")
    dataset = load_data(MNIST, limit=12_000)
    assert isinstance(dataset.space, ImageSpace)
    extractor = AutoencoderFeatures.train(dataset, max_steps=500)
    train, held_out = dataset.train.read(slice(0, 1000))[0], dataset.test.read(slice(0, 1000))[0]
    fd = ranking(train, held_out, dataset.space, extractor)
    assert 2 * fd["held-out"] < fd["blurred"] < fd["noise"]
    assert fd["half"] > 5 * fd["held-out"]


def test_coordinates_are_standardised() -> None:
    extractor = Coordinates(PointSpace(2, (1.0, -1.0), 2.0))
    np.testing.assert_array_equal(extractor(np.array([[3.0, -1.0]], dtype=np.float32)), [[1.0, 0.0]])
    np.testing.assert_array_equal(Coordinates(PointSpace(1))(np.array([[3.0]])), [[3.0]])
