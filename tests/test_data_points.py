"""Synthetic points: what they are, and that their density is theirs."""

import numpy as np
import pytest

from triptych.data.load import load_data
from triptych.data.points import POINT_SETS, GaussianMixture
from triptych.errors import InputError
from triptych.spaces import PointSpace

CLASSES = {"ring8": 8, "grid25": 25, "moons": 2, "mixture1d": 3}


@pytest.mark.parametrize("name", POINT_SETS)
def test_splits_labels_and_seed(name: str) -> None:
    data = load_data(name)
    assert [len(split) for split in data.splits.values()] == [10_000, 2_000, 2_000]
    assert data.n_classes == CLASSES[name]
    points, labels = data.train.read()
    assert points.dtype == np.float32
    assert points.shape == (10_000, 1 if name == "mixture1d" else 2)
    assert set(labels.tolist()) == set(range(CLASSES[name]))
    assert isinstance(data.space, PointSpace)
    assert np.allclose(data.space.center, points.mean(axis=0))
    assert data.space.scale == pytest.approx(np.sqrt(points.var(axis=0).mean()), rel=1e-5)
    assert load_data(name).checksum == data.checksum
    other = load_data(name, seed=1)
    assert other.checksum != data.checksum
    assert other.source == {"source": name, "seed": 1}
    assert data.log_density is not None
    assert np.isfinite(data.log_density(points)).all()


@pytest.mark.parametrize("name", POINT_SETS)
def test_density_integrates_to_one(name: str) -> None:
    mixture = POINT_SETS[name]()
    step = mixture.stds.min() / 2  # fine enough for the trapezoidal rule to be all but exact on Gaussians
    low, high = mixture.means.min(axis=0) - 8 * mixture.stds.max(), mixture.means.max(axis=0) + 8 * mixture.stds.max()
    if name == "grid25":  # one cell of the grid stands for all
        low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, len(axes))
    mass = np.exp(mixture.log_density(points)).sum() * step ** len(axes)
    assert mass == pytest.approx(1 / 25 if name == "grid25" else 1, abs=1e-6)


def test_density_is_that_of_the_samples() -> None:
    mixture = POINT_SETS["mixture1d"]()
    points, _ = mixture.sample(200_000, np.random.default_rng(0))
    counts, edges = np.histogram(points, bins=60, range=(-4, 6))
    middles = (edges[1:] + edges[:-1]) / 2
    expected = 200_000 * (edges[1] - edges[0]) * np.exp(mixture.log_density(middles[:, None]))
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max())


def test_shapes_are_as_described() -> None:
    ring, _ = load_data("ring8").train.read()
    assert np.abs(np.linalg.norm(ring, axis=1) - 2).max() < 0.1
    points, labels = load_data("grid25").train.read()
    places = np.rint(points / 2) * 2
    assert np.abs(points - places).max() < 0.3
    assert np.array_equal(labels, (places[:, 1] + 4) / 2 * 5 + (places[:, 0] + 4) / 2)
    points, labels = load_data("moons").train.read()
    centers = np.array([[0, 0], [1, 0.5]])[labels]
    radii = np.linalg.norm(points - centers, axis=1)
    assert radii.mean() == pytest.approx(1, abs=0.02)
    assert radii.std() == pytest.approx(0.1, abs=0.01)


def test_against_the_formula() -> None:
    mixture = GaussianMixture(np.array([0.25, 0.75]), np.array([[0.0], [1.0]]), np.array([1.0, 2.0]), np.arange(2))
    x = np.array([[0.3], [-50.0]])

    def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))

    exact = np.log(0.25 * normal(x[:1, 0], 0, 1) + 0.75 * normal(x[:1, 0], 1, 2))
    assert mixture.log_density(x[:1]) == pytest.approx(exact)
    assert mixture.log_density(x[1:]) == pytest.approx(np.log(0.75 / (2 * np.sqrt(2 * np.pi))) - 51**2 / 8)


def test_wrong_dimension_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs \(N, 2\)"):
        POINT_SETS["ring8"]().log_density(np.zeros((3, 1)))
