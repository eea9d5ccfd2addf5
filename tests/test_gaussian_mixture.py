"""The Gaussian mixture against scikit-learn's own scores, integrals and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from triptych.errors import InputError
from triptych.models.tractable.gaussian_mixture import GaussianMixture
from triptych.spaces import ImageSpace, PointSpace


def estimated(model: GaussianMixture, x: torch.Tensor, labels: torch.Tensor | None = None) -> list[float]:
    """Runs EM to its end; returns the negative log-likelihood after each iteration."""
    terms = model.estimate(x, labels, generator=torch.Generator().manual_seed(0))
    return [value for term in terms for value in term.values()]


def blobs(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (n, 1), generator=generator)
    return torch.randn((n, 2), generator=generator) * (0.2 + 0.1 * which) + which * torch.tensor([[3.0, -1.0]]) + 10


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_em_never_loses_likelihood_and_log_prob_is_scikit_learns(covariance: str) -> None:
    from sklearn.mixture import GaussianMixture as Reference

    x = blobs(500)
    model = GaussianMixture(PointSpace(2, (13.0, 9.0), 2.0), n_components=3, covariance=covariance)  # type: ignore[arg-type]
    curve = estimated(model, x)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(curve))
    reference = Reference(3, covariance_type=covariance)
    y = (x.numpy() - [13.0, 9.0]) / 2.0
    reference.weights_, reference.means_ = model.weights[0].numpy(), model.means[0].numpy()
    covariances = model.covariances[0].numpy()
    reference.precisions_cholesky_ = (
        np.linalg.inv(np.linalg.cholesky(covariances)).transpose(0, 2, 1) if covariance == "full" else covariances**-0.5
    )
    expected = reference.score_samples(y) - 2 * math.log(2.0)
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert -float(model.log_prob(x).mean()) == pytest.approx(curve[-1], abs=0.05)
    np.testing.assert_allclose(model.responsibilities(x).numpy(), reference.predict_proba(y), rtol=1e-3, atol=1e-4)


def test_the_density_integrates_to_one_and_recovers_the_modes() -> None:
    model = GaussianMixture(PointSpace(2, (13.0, 9.0), 2.0), n_components=3)
    estimated(model, blobs(2000))
    axis = torch.linspace(-2, 26, 561)
    grid = torch.cartesian_prod(axis, axis - 4)
    assert float(model.log_prob(grid).exp().sum()) * 0.05**2 == pytest.approx(1, abs=0.01)
    assert sorted(round(float(w), 1) for w in model.weights[0]) == [0.3, 0.3, 0.3]
    draws = model.sample(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), blobs(2000).mean(0), rtol=0.02, atol=0.1)


def test_the_bound_on_images_is_one() -> None:
    # If log p(x + u) averaged over u never exceeds log P(x), the exponentials of the bound sum to at most 1.
    space = ImageSpace(1, 2, 2, 3)
    x = torch.randint(3, (200, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    model = GaussianMixture(space, n_components=2)
    assert model.kind == "lower bound"
    estimated(model, x)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    total = float(model.log_prob(everything).double().exp().sum())
    assert 0.3 < total <= 1.001


def test_images_without_any_variety_get_no_probability_above_one() -> None:
    # The noise that scores must not be the noise that EM has seen: with few images in many dimensions EM fits it.
    x = torch.zeros((40, 1, 8, 8), dtype=torch.uint8)
    model = GaussianMixture(ImageSpace(1, 8, 8))
    estimated(model, x)
    assert (model.log_prob(x) < 0).all()
    assert model.n_draws == 8


def test_narrow_components_far_from_the_origin_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((600, 2), generator=generator) * 0.002 + torch.arange(600)[:, None] % 30 * 0.3
    models = [GaussianMixture(PointSpace(2), n_components=30, covariance=kind) for kind in ("full", "diag")]  # type: ignore[arg-type]
    estimated(models[1], x)
    full, diag = models
    full.weights.copy_(diag.weights)
    full.means.copy_(diag.means)
    full.covariances.copy_(torch.diag_embed(diag.covariances))
    torch.testing.assert_close(full.log_prob(x), diag.log_prob(x), rtol=1e-3, atol=5e-3)


def test_points_near_a_plane_of_many_dimensions_have_a_density() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((400, 3), generator=generator) @ torch.randn((3, 150), generator=generator)
    model = GaussianMixture(PointSpace(150, scale=float(x.std())), n_components=2)
    *_, terms = model.estimate(x, None, generator=generator)
    # The logged value is that of the last E step, the score that of the M step after it, which can only be better.
    nll = -float(model.log_prob(x).mean())
    assert terms["nats_per_point"] - 1 < nll < terms["nats_per_point"] + 0.01
    assert float(model.sample(100, generator=generator).std()) == pytest.approx(float(x.std()), rel=0.2)


def test_every_class_is_usable_after_the_first_iteration() -> None:
    x = torch.cat([blobs(300), blobs(300, seed=1) + 100])
    labels = torch.arange(600) // 300
    model = GaussianMixture(PointSpace(2, (63.0, 59.0), 50.0), 2, n_components=3)
    next(iter(model.estimate(x, labels, generator=torch.Generator().manual_seed(0))))
    assert model.sample(20, labels=torch.ones(20, dtype=torch.int64)).min() > 90
    assert model.sample(20, labels=torch.zeros(20, dtype=torch.int64)).max() < 60


def test_classes_have_mixtures_of_their_own() -> None:
    x = torch.cat([blobs(300), blobs(300, seed=1) + 100])
    labels = torch.arange(600) // 300
    model = GaussianMixture(PointSpace(2, (63.0, 59.0), 50.0), 2, n_components=3)
    estimated(model, x, labels)
    right, wrong = model.log_prob(x, labels), model.log_prob(x, 1 - labels)
    assert (right > wrong).all()
    drawn = model.sample(50, labels=torch.ones(50, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    assert (drawn > 90).all()


def test_too_few_items_are_told() -> None:
    model = GaussianMixture(PointSpace(2), 2, n_components=5)
    with pytest.raises(InputError, match="class 1 has 3 items"):
        estimated(model, blobs(13), torch.tensor([0] * 10 + [1] * 3))
