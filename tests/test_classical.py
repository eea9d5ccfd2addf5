"""The classical densities against scikit-learn, PyTorch's distributions, integrals and enumeration."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.models import classical
from triptych.models.base import Batch, Estimated, TractableDensity
from triptych.models.registry import create_model
from triptych.models.tractable import kernel_density
from triptych.models.tractable.gaussian_mixture import GaussianMixture
from triptych.models.tractable.k_means import KMeans
from triptych.models.tractable.kernel_density import KernelDensity
from triptych.models.tractable.probabilistic_pca import ProbabilisticPCA
from triptych.spaces import ImageSpace, PointSpace, Space
from triptych.training.files import read_weights, write_weights

NAMES = ("gaussian_mixture", "kernel_density", "probabilistic_pca", "k_means")
FEW: dict[str, dict[str, Any]] = {"gaussian_mixture": {"n_components": 2}, "k_means": {"n_components": 2}}
CENTER, SCALE = (13.0, 9.0), 2.0
PLANE = PointSpace(2, CENTER, SCALE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(model: Estimated, x: Tensor, labels: Tensor | None = None, seed: int = 0) -> list[dict[str, float]]:
    """Runs the model's algorithm to its end; returns the terms of every iteration."""
    return list(model.estimate(x, labels, generator=seeded(seed)))


def blobs(n: int, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    which = torch.randint(3, (n, 1), generator=generator)
    return torch.randn((n, 2), generator=generator) * (0.2 + 0.1 * which) + which * torch.tensor([[3.0, -1.0]]) + 10


def patterns(n: int, levels: int = 3, shape: tuple[int, int, int] = (1, 2, 2), seed: int = 0) -> Tensor:
    """Images whose sub-pixels depend on each other."""
    generator = seeded(seed)
    base = torch.rand((n, 1, 1, 1), generator=generator) + 0.3 * torch.rand((n, *shape), generator=generator)
    return (base / 1.3 * levels).long().clamp(0, levels - 1).to(torch.uint8 if levels <= 256 else torch.int32)


def fitted(name: str, space: Space, x: Tensor) -> TractableDensity:
    model = create_model(name, space, **FEW.get(name, {}))
    assert isinstance(model, TractableDensity)
    assert isinstance(model, Estimated)
    estimate(model, x)
    return model


# ---- what all have in common


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_on_images_is_one(name: str) -> None:
    # If log p(x + u) averaged over u never exceeds log P(x), the exponentials of the bound sum to at most 1.
    space = ImageSpace(1, 2, 2, 3)
    model = fitted(name, space, patterns(300))
    assert (model.kind, model.n_draws) == ("lower bound", 8)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    total = float(model.log_prob(everything).double().exp().sum())
    assert 0.3 < total <= 1.001
    # Each image by itself: the bound holds in expectation over the noise, so many draws of it stand for all; and the
    # mass of a cell is the share of draws in it.
    model.standard.noise = torch.rand((1000, 4), generator=seeded())
    drawn = model.sample(20_000, generator=seeded()).flatten(1).long()
    share = (drawn @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81) / 20_000
    excess = model.log_prob(everything).exp() - share
    assert (excess < 5 * (share / 20_000).sqrt() + 5e-4).all()
    assert (excess > -0.1).all(), "and it is not far from it"


@pytest.mark.parametrize("name", NAMES)
def test_the_density_of_points_is_exact_and_integrates_to_one(name: str) -> None:
    model = fitted(name, PLANE, blobs(500))
    assert (model.kind, model.n_draws, model.measure) == ("exact", 1, "continuous")
    cells = torch.cartesian_prod(torch.arange(-2, 28, 0.08), torch.arange(0, 18, 0.08))
    p = model.log_prob(cells).exp().double()
    assert float(p.sum()) * 0.08**2 == pytest.approx(1, abs=0.002)
    # Draws have the density's moments.
    mean = (p.unsqueeze(1) * cells).sum(0) / p.sum()
    variance = (p.unsqueeze(1) * (cells - mean) ** 2).sum(0) / p.sum()
    drawn = model.sample(20_000, generator=seeded()).double()
    error = (variance / 20_000).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.06, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_any_variety_get_no_probability_above_one(name: str) -> None:
    x = torch.zeros((40, 1, 8, 8), dtype=torch.uint8)
    assert (fitted(name, ImageSpace(1, 8, 8), x).log_prob(x) < 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "space", [ImageSpace(1, 1, 1, 65536), ImageSpace(3, 1, 7, 2), ImageSpace(1, 5, 1, 256), ImageSpace(3, 3, 5, 1000)]
)
def test_images_of_any_size_and_levels(name: str, space: ImageSpace) -> None:
    x = patterns(50, space.levels, space.shape)
    model = fitted(name, space, x)
    assert (model.log_prob(x) < 0).all()
    assert model.log_prob(x[:0]).shape == (0,)
    space.check(model.sample(9, generator=seeded()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", [PLANE, ImageSpace(1, 2, 2, 3)])
def test_float64_gives_the_same_values(name: str, space: Space) -> None:
    x = blobs(60) if isinstance(space, PointSpace) else patterns(60)
    model = fitted(name, space, x)
    nats, drawn = model.log_prob(x), model.sample(9, generator=seeded())
    model.double()
    assert model.log_prob(x).dtype == torch.float32
    torch.testing.assert_close(model.log_prob(x), nats, rtol=1e-5, atol=1e-4)
    again = model.sample(9, generator=seeded())
    assert again.dtype == drawn.dtype
    torch.testing.assert_close(again, drawn, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_in_small_pieces_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = patterns(80), torch.arange(80) % 3
    model = create_model(name, ImageSpace(1, 2, 2, 3), n_classes=3, **FEW.get(name, {}))
    assert isinstance(model, TractableDensity)
    assert isinstance(model, Estimated)
    estimate(model, x, labels)
    nats = model.log_prob(x, labels)
    monkeypatch.setattr(classical, "MAX_ROWS", 24)
    monkeypatch.setattr(kernel_density, "MAX_ELEMENTS", 100)
    torch.testing.assert_close(model.log_prob(x, labels), nats, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_nothing_for_gradient_descent(name: str) -> None:
    model = create_model(name, PLANE)
    assert model.phases() == ()
    with pytest.raises(InputError, match="no phases"):
        model.loss(Batch(blobs(3)), "density")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kernel_density", {"bandwidth": 0.0}, "bandwidth of kernel_density is 0.0"),
        ("kernel_density", {"bandwidth": math.nan}, "bandwidth of kernel_density is nan"),
        ("kernel_density", {"bandwidth": "wide"}, "bandwidth of kernel_density is 'wide'"),
        ("kernel_density", {"max_centres": 2}, "max_centres of kernel_density is 2; it must be at least 3, one for"),
        ("probabilistic_pca", {"n_components": 0}, "n_components of probabilistic_pca is 0"),
        ("k_means", {"n_components": 0}, "n_components is 0"),
        ("k_means", {"n_starts": 0}, "n_starts is 0"),
        ("k_means", {"max_iterations": 0}, "max_iterations is 0"),
        ("k_means", {"tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_wrong_options_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model(name, PLANE, n_classes=3, **options)


@pytest.mark.parametrize(
    ("name", "n_second", "message"),
    [
        ("kernel_density", 0, "class 1 has 0 items"),
        ("probabilistic_pca", 1, "class 1 has 1 item;"),
        ("k_means", 4, "class 1 has 4 items; n_components = 5"),
    ],
)
def test_too_few_items_are_told(name: str, n_second: int, message: str) -> None:
    options = {"n_components": 5} if name == "k_means" else {}
    model = create_model(name, PLANE, n_classes=2, **options)
    assert isinstance(model, Estimated)
    labels = torch.tensor([0] * 10 + [1] * n_second)
    with pytest.raises(InputError, match=message):
        estimate(model, blobs(len(labels)), labels)


def test_maximum_likelihood_is_minimum_divergence() -> None:
    # E_p[log q] = E_p[log p] - KL(p || q): of models q, the one of the highest held-out likelihood is the nearest to p.
    data = load_data("mixture1d")
    assert data.log_density is not None
    train, test = (torch.from_numpy(split.read()[0]) for split in (data.train, data.test))
    cells = torch.arange(-9, 12, 0.002).unsqueeze(1)
    log_p = torch.from_numpy(data.log_density(cells.numpy()))
    p = log_p.exp() * 0.002
    negative_entropy = float((p * log_p).sum())
    held_out, divergences = [], []
    for n_components in (1, 2, 3):
        model = GaussianMixture(data.space, n_components=n_components)
        estimate(model, train)
        divergence = float((p * (log_p - model.log_prob(cells))).sum())
        nats = model.log_prob(test).double()
        n = len(nats)
        assert abs(float(nats.mean()) + divergence - negative_entropy) < 4 * float(nats.std()) / math.sqrt(n)
        # The same, item by item against the true density, which takes most of the sampling error away.
        excess = nats - torch.from_numpy(data.log_density(test.numpy()))
        assert abs(float(excess.mean()) + divergence) < 4 * float(excess.std()) / math.sqrt(n)
        held_out.append(float(nats.mean()))
        divergences.append(divergence)
    assert sorted(held_out) == held_out
    assert sorted(divergences, reverse=True) == divergences
    assert 0 <= divergences[-1] < 0.005 < 0.1 < divergences[0]


# ---- kernel density


def test_the_kernel_density_is_scikit_learns() -> None:
    from sklearn.neighbors import KernelDensity as Reference

    train, test = blobs(300), blobs(40, seed=1)
    model = KernelDensity(PLANE)
    estimate(model, train)
    reference = Reference(bandwidth=float(model.estimated_bandwidth)).fit(train.double().numpy())
    np.testing.assert_allclose(model.log_prob(test).numpy(), reference.score_samples(test.numpy()), rtol=1e-5)


def test_the_kernel_density_of_images_stands_in_the_middle_of_their_cells() -> None:
    from sklearn.neighbors import KernelDensity as Reference

    train, test = patterns(60), patterns(20, seed=1)
    model = KernelDensity(ImageSpace(1, 2, 2, 3), bandwidth=0.4)
    estimate(model, train)
    reference = Reference(bandwidth=0.4).fit(train.flatten(1).numpy() + 0.5)
    noise = model.standard.noise.numpy()
    expected = [reference.score_samples(noise + x).mean() for x in test.flatten(1).numpy()]
    np.testing.assert_allclose(model.log_prob(test).numpy(), expected, rtol=1e-5)


def test_the_bandwidth_is_the_best_for_left_out_items() -> None:
    from sklearn.neighbors import KernelDensity as Reference

    x = blobs(40)
    model = KernelDensity(PLANE)
    terms = estimate(model, x)

    def left_out(bandwidth: float) -> float:
        keep = ~np.eye(len(x), dtype=bool)
        items = x.double().numpy()
        fits = [Reference(bandwidth=bandwidth).fit(items[row]) for row in keep]
        return float(np.mean([fit.score(items[i : i + 1]) for i, fit in enumerate(fits)]))

    chosen = left_out(float(model.estimated_bandwidth))
    assert terms[-1]["bandwidth"] == pytest.approx(float(model.estimated_bandwidth))
    assert -terms[-1]["nats_per_point"] == pytest.approx(chosen, abs=1e-4)
    others = [left_out(width) for width in np.geomspace(0.05, 8, 30)]
    assert max(others) - 0.002 < chosen
    assert min(others) < chosen - 1
    assert all(after["nats_per_point"] <= before["nats_per_point"] for before, after in itertools.pairwise(terms))


def test_images_are_left_out_with_noise_of_their_own() -> None:
    # The bandwidth must suit held-out images: it has to be near the best for them, by the score that counts.
    train, test = patterns(300, 8, (1, 3, 3)), patterns(300, 8, (1, 3, 3), seed=1)
    space = ImageSpace(1, 3, 3, 8)
    model = KernelDensity(space)
    estimate(model, train)
    scores = []
    for bandwidth in np.geomspace(0.1, 4, 30).tolist():
        other = KernelDensity(space, bandwidth=bandwidth)
        estimate(other, train)
        scores.append(float(other.log_prob(test).mean()))
    assert max(scores) - 0.05 < float(model.log_prob(test).mean())


def test_a_narrow_kernel_draws_the_items_of_the_class_all_as_often() -> None:
    x = torch.arange(12).reshape(12, 1, 1, 1).to(torch.uint8)
    labels = torch.tensor([0, 1, 1] * 4)
    model = KernelDensity(ImageSpace(1, 1, 1, 12), 2, bandwidth=0.01)
    estimate(model, x, labels)
    for label, n_own in ((0, 4), (1, 8)):
        drawn = model.sample(8000, labels=torch.full((8000,), label), generator=seeded()).flatten().long()
        share = drawn.bincount(minlength=12) / 8000
        expected = (labels == label) / n_own
        torch.testing.assert_close(share, expected, rtol=0.0, atol=5 * math.sqrt(0.25 / 8000))
        assert (share[labels != label] == 0).all()


def test_a_kernel_density_says_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="give bandwidth"):
        estimate(KernelDensity(PLANE, 2), blobs(2), torch.tensor([0, 1]))
    model = KernelDensity(PLANE, 2, bandwidth=0.5)
    assert estimate(model, blobs(2), torch.tensor([0, 1])) == [{"bandwidth": 0.5}]
    expected = -math.log(2 * math.pi * 0.25)
    assert model.log_prob(blobs(2), torch.tensor([0, 1])).tolist() == pytest.approx([expected] * 2, abs=1e-5)
    with pytest.raises(InputError, match="max_centres is 5"):
        estimate(KernelDensity(PLANE, max_centres=5), blobs(6))
    assert KernelDensity(PLANE, max_centres=5).max_items == 5


@pytest.mark.parametrize("name", ["kernel_density", "probabilistic_pca"])
def test_a_new_model_takes_the_sizes_that_a_file_says(name: str, tmp_path: Path) -> None:
    space, x = ImageSpace(1, 2, 2, 3), patterns(60)
    model = fitted(name, space, x)
    write_weights(tmp_path / "model.safetensors", model.state_dict())
    state = read_weights(tmp_path / "model.safetensors")
    for new in (create_model(name, space), copy.deepcopy(create_model(name, space))):
        new.load_state_dict(state)
        assert isinstance(new, TractableDensity)
        assert torch.equal(new.log_prob(x), model.log_prob(x))
        assert torch.equal(new.sample(9, generator=seeded()), model.sample(9, generator=seeded()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        create_model(name, ImageSpace(1, 2, 3, 3)).load_state_dict(state)


# ---- probabilistic PCA


def correlated(n: int, dim: int = 6, rank: int = 2, noise: float = 0.3, seed: int = 0) -> Tensor:
    generator = seeded(9)
    loadings = torch.randn((dim, rank), generator=generator) * 1.5
    mean = torch.randn(dim, generator=generator) * 5
    generator = seeded(seed + 100)
    z = torch.randn((n, rank), generator=generator)
    return z @ loadings.T + mean + noise * torch.randn((n, dim), generator=generator)


SIX = PointSpace(6, (1.0, -2.0, 0.0, 3.0, 4.0, 0.5), 1.7)


def test_probabilistic_pca_is_a_gaussian_of_low_rank_covariance() -> None:
    model = ProbabilisticPCA(SIX, n_components=2)
    estimate(model, correlated(300))
    x = correlated(50, seed=1)
    mean = model.means[0] * SIX.scale + torch.tensor(SIX.center)
    noise = model.noise_variances.expand(6) * SIX.scale**2
    reference = LowRankMultivariateNormal(mean, model.loadings[0] * SIX.scale, noise)
    torch.testing.assert_close(model.log_prob(x), reference.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_the_closed_form_is_scikit_learns(n_components: int) -> None:
    from sklearn.decomposition import PCA

    x, n = correlated(200), 200
    model = ProbabilisticPCA(SIX, n_components=n_components)
    (terms,) = estimate(model, x)
    pca = PCA(n_components, svd_solver="full").fit(x.double().numpy())
    # Maximum likelihood divides by n, scikit-learn by n - 1.
    pca.explained_variance_ *= (n - 1) / n
    pca.noise_variance_ *= (n - 1) / n
    test = correlated(50, seed=1)
    expected = pca.score_samples(test.double().numpy())
    np.testing.assert_allclose(model.log_prob(test).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert -terms["nats_per_point"] == pytest.approx(float(model.log_prob(x).double().mean()), abs=1e-4)


def test_the_closed_form_is_the_maximum_of_the_likelihood() -> None:
    x = correlated(200)
    model = ProbabilisticPCA(SIX, n_components=2)
    estimate(model, x)
    y = model.standard(x).double()
    mean, noise = model.means[0].double(), model.noise_variances[0].double()
    parameters = [mean, model.loadings[0].double(), noise.log()]

    def mean_log_density(parameters: list[Tensor]) -> Tensor:
        mean, loadings, log_noise = parameters
        covariance = loadings @ loadings.T + log_noise.exp() * torch.eye(6, dtype=torch.float64)
        return MultivariateNormal(mean, covariance).log_prob(y).mean()

    for parameter in parameters:
        parameter.requires_grad_()
    best = mean_log_density(parameters)
    for gradient in torch.autograd.grad(best, parameters):
        assert gradient.abs().max() < 1e-5
    generator = seeded()
    for size in (0.01, 0.1, 1.0):
        for _ in range(10):
            others = [p + size * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
            assert mean_log_density(others) < best


def test_dequantisation_noise_adds_a_twelfth_to_each_variance() -> None:
    # D - 1 components are any covariance, so it must be exactly that of the images and the noise; more change nothing.
    x = patterns(400, 5)
    flat = x.flatten(1).double()
    expected = flat.T.cov(correction=0) + torch.eye(4) / 12
    for n_components in (3, 4, 100):
        model = ProbabilisticPCA(ImageSpace(1, 2, 2, 5), n_components=n_components)
        estimate(model, x)
        covariance = model.loadings[0] @ model.loadings[0].T + model.noise_variances[0] * torch.eye(4)
        torch.testing.assert_close(covariance.double() * model.standard.scale**2, expected, rtol=1e-5, atol=1e-5)
        mean = model.means[0] * model.standard.scale + model.standard.shift
        torch.testing.assert_close(mean.double(), flat.mean(0) + 0.5, rtol=1e-5, atol=1e-5)


def test_draws_have_the_covariance() -> None:
    model = ProbabilisticPCA(SIX, 2, n_components=2)
    x = torch.cat([correlated(300), -2 * correlated(300)])
    estimate(model, x, torch.arange(600) // 300)
    for label in (0, 1):
        drawn = model.sample(50_000, labels=torch.full((50_000,), label), generator=seeded())
        covariance = model.loadings[label] @ model.loadings[label].T + model.noise_variances[label] * torch.eye(6)
        y = (drawn - torch.tensor(SIX.center)) / SIX.scale
        size = float(covariance.diagonal().max())
        torch.testing.assert_close(y.T.cov(), covariance, rtol=0.0, atol=0.03 * size)
        torch.testing.assert_close(y.mean(0), model.means[label], rtol=0.0, atol=0.03 * math.sqrt(size))


def test_auto_finds_the_number_of_components() -> None:
    model = ProbabilisticPCA(SIX)
    (terms,) = estimate(model, correlated(2000))
    assert terms["n_components"] == 2
    assert model.loadings.shape == (1, 6, 2)
    (terms,) = estimate(ProbabilisticPCA(SIX), torch.randn((2000, 6), generator=seeded()))
    assert terms["n_components"] <= 1
    # Chosen by left-out items: the score of each number is what scikit-learn's PCA of the others gives them.
    line = PointSpace(1)
    (terms,) = estimate(ProbabilisticPCA(line), torch.randn((50, 1), generator=seeded()))
    assert terms["n_components"] == 0


def test_left_out_scores_are_those_of_fitted_models() -> None:
    from sklearn.decomposition import PCA

    from triptych.models.tractable.probabilistic_pca import _mean_log_densities, _spectrum

    x, out = correlated(60).double().numpy(), correlated(20, seed=1).double().numpy()
    spectrum = _spectrum(x, 5, 0.0, 0)
    off = out - spectrum.mean
    along, total = np.square(off @ spectrum.axes).mean(0), float(np.square(off).sum(1).mean())
    scores = _mean_log_densities(spectrum, 6, along, total)
    for q in (1, 3, 5):
        pca = PCA(q, svd_solver="full").fit(x)
        pca.explained_variance_ *= 59 / 60
        pca.noise_variance_ *= 59 / 60
        assert scores[q] == pytest.approx(pca.score(out), abs=1e-6)
    alone = Normal(torch.from_numpy(spectrum.mean), math.sqrt(spectrum.total / 6))
    assert scores[0] == pytest.approx(float(alone.log_prob(torch.from_numpy(out)).sum(1).mean()), abs=1e-6)


def test_points_on_a_line_and_more_dimensions_than_items_have_a_density() -> None:
    t = torch.randn((100, 1), generator=seeded())
    for n_components in ("auto", 1, 2):
        model = ProbabilisticPCA(PointSpace(3), n_components=n_components)  # type: ignore[arg-type]
        estimate(model, t * torch.tensor([1.0, 2.0, -1.0]))
        assert model.log_prob(t * torch.tensor([1.0, 2.0, -1.0])).isfinite().all()
        assert model.log_prob(t * torch.tensor([1.0, 2.0, 1.0])).isfinite().all()
    x, test = patterns(12, 17, (1, 8, 8)), patterns(30, 17, (1, 8, 8), seed=1)
    for n_components in ("auto", 30):
        wide = ProbabilisticPCA(ImageSpace(1, 8, 8, 17), n_components=n_components)  # type: ignore[arg-type]
        estimate(wide, x)
        assert wide.log_prob(test).isfinite().all()
        assert (wide.log_prob(x) < 0).all()


# ---- K-means


def test_lloyds_algorithm_ends_where_nothing_moves() -> None:
    from sklearn.cluster import KMeans as Reference

    x = blobs(400)
    model = KMeans(PLANE, n_components=5, tolerance=0.0)
    terms = estimate(model, x)
    distances = [term["squared_distance"] for term in terms]
    assert all(after <= before for before, after in itertools.pairwise(distances))
    centroids = model.centroids[0] * SCALE + torch.tensor(CENTER)
    clusters = model.assign(x)
    squared = (x.unsqueeze(1) - centroids).square().sum(2)
    assert torch.equal(clusters, squared.argmin(1))
    for m in range(5):
        torch.testing.assert_close(centroids[m], x[clusters == m].mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.weights[0], clusters.bincount(minlength=5) / 400)
    assert distances[-1] == pytest.approx(float(squared.min(1).values.mean()), rel=1e-4)
    assert float(model.variances[0]) * SCALE**2 == pytest.approx(distances[-1] / 2, rel=1e-4)
    reference = Reference(5, n_init=20, random_state=0).fit(x.numpy())
    assert distances[-1] == pytest.approx(reference.inertia_ / 400, rel=0.03)


def test_the_density_of_k_means_is_a_mixture_of_round_gaussians() -> None:
    model = KMeans(PLANE, n_components=4)
    estimate(model, blobs(300))
    components = Normal(model.centroids[0] * SCALE + torch.tensor(CENTER), model.variances[0].sqrt() * SCALE)
    reference = MixtureSameFamily(Categorical(model.weights[0]), Independent(components, 1))
    x = blobs(50, seed=1)
    torch.testing.assert_close(model.log_prob(x), reference.log_prob(x), rtol=1e-4, atol=1e-4)


def test_images_add_the_variance_of_the_noise() -> None:
    x = patterns(200)
    model = KMeans(ImageSpace(1, 2, 2, 3), n_components=3)
    last = estimate(model, x)[-1]
    assert float(model.variances[0]) * model.standard.scale**2 == pytest.approx(last["squared_distance"] / 4 + 1 / 12)


def test_the_hard_limit_of_a_gaussian_mixture() -> None:
    x = blobs(400)
    model = KMeans(PLANE, 2, n_components=4)
    labels = torch.arange(400) % 2
    estimate(model, x, labels)
    soft = GaussianMixture(PLANE, 2, n_components=4, covariance="diag")
    soft.means.copy_(model.centroids)
    soft.weights.copy_(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.1, 0.8]]))  # The limit knows no shares.
    clusters = model.assign(x, labels)
    agreement, softness = [], []
    for variance in (1.0, 1e-2, 1e-4, 1e-8):
        soft.covariances.fill_(variance)
        responsibilities = soft.responsibilities(x, labels)
        torch.testing.assert_close(responsibilities.sum(1), torch.ones(400))
        agreement.append(float((responsibilities.argmax(1) == clusters).float().mean()))
        softness.append(float((1 - responsibilities.max(1).values).mean()))
    assert agreement[0] < 0.9
    assert agreement[-1] == 1
    assert softness == sorted(softness, reverse=True)
    assert softness[0] > 0.05
    assert softness[-1] < 1e-6


def test_every_start_leaves_the_best_so_far() -> None:
    data = load_data("grid25")
    x = torch.from_numpy(data.train.read()[0])[:2000]
    model = KMeans(data.space, n_components=25, n_starts=6)
    kept = []
    for terms in model.estimate(x, None, generator=seeded(3)):
        assert isinstance(data.space, PointSpace)
        centroids = model.centroids[0] * data.space.scale + torch.tensor(data.space.center)
        kept.append(terms["squared_distance"])
        assert kept[-1] == pytest.approx(float(torch.cdist(x, centroids).square().min(1).values.mean()), rel=1e-3)
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.02, "each of the 25 Gaussians has its centroid"


def test_fewer_distinct_items_than_centroids() -> None:
    x = torch.tensor([[12.0, 9.0], [14.0, 9.0]]).repeat(10, 1)
    model = KMeans(PLANE, n_components=5)
    estimate(model, x)
    assert model.log_prob(x).isfinite().all()
    assert len(model.assign(x).unique()) == 2
    torch.testing.assert_close(model.sample(9, generator=seeded())[:, 1], torch.full((9,), 9.0), rtol=0.0, atol=0.05)
