"""Likelihoods of whole splits: exact sums, bounds, streaming, labels, and values that are not finite."""

import math

import numpy as np
import pytest
import torch
from stubs import Untrained, UntrainedApproximate, UntrainedImplicit
from torch import Generator, Tensor

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation import likelihood as likelihood_module
from triptych.evaluation.likelihood import describe_non_finite, evaluate_likelihood, streamed_iwae, summarise
from triptych.models.base import Likelihood, TractableDensity
from triptych.spaces import ImageSpace, PointSpace, Space

SPACE = ImageSpace(1, 2, 3, 4)
ITEMS = np.random.default_rng(0).integers(0, 4, size=(23, 1, 2, 3)).astype(np.uint8)
LABELS = np.arange(23) % 3


class Factorial(Untrained, TractableDensity):
    """Every sub-pixel is level l with probability proportional to l + 1 + label."""

    def probabilities(self, label: int) -> np.ndarray:
        weights = np.arange(1, 5) + label
        return weights / weights.sum()

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        labels = self.check_labels(len(x), labels, draw=False)
        table = torch.tensor(np.stack([np.log(self.probabilities(label)) for label in range(3)]), dtype=torch.float32)
        rows = table[torch.zeros(len(x), dtype=torch.int64) if labels is None else labels]
        return rows.gather(1, x.flatten(1).long()).sum(1)


class GaussianLatent(UntrainedApproximate):
    """p(z) = N(0, 1), p(x|z) = N(z, 1), q(z|x) = N(x/2 + 0.3, 1/2): a little off the posterior N(x/2, 1/2)."""

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        x = x[:, 0]
        noise = torch.stack([torch.randn(len(x), generator=generator) for _ in range(n_samples)])
        z = x / 2 + 0.3 + noise * 0.5**0.5
        log_q = -(noise**2) / 2 - 0.5 * math.log(2 * math.pi * 0.5)
        return -(z**2) / 2 - (x - z) ** 2 / 2 - math.log(2 * math.pi) - log_q


def expected(model: Factorial, labels: np.ndarray) -> list[float]:
    return [float(np.log(model.probabilities(c)[item]).sum()) for item, c in zip(ITEMS, labels, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_exact_over_the_whole_split_in_order(batch_size: int) -> None:
    model = Factorial(SPACE).train()
    found = evaluate_likelihood(model, Split(ITEMS, LABELS), batch_size=batch_size)
    assert found is not None
    assert (found.kind, found.measure, found.n_samples) == ("exact", "discrete", 1)
    np.testing.assert_allclose(found.nats, expected(model, np.zeros(23, dtype=int)), rtol=1e-5)
    assert model.training


def test_conditional_models_are_given_the_labels() -> None:
    model = Factorial(SPACE, n_classes=3)
    found = evaluate_likelihood(model, Split(ITEMS, LABELS), batch_size=4)
    assert found is not None
    np.testing.assert_allclose(found.nats, expected(model, LABELS), rtol=1e-5)
    with pytest.raises(InputError, match="class-conditional"):
        evaluate_likelihood(model, Split(ITEMS))


def test_kind_is_the_models_own() -> None:
    found = evaluate_likelihood(Factorial(SPACE, kind="lower bound"), Split(ITEMS))
    assert found is not None
    assert found.kind == "lower bound"


def test_an_implicit_density_has_none() -> None:
    assert evaluate_likelihood(UntrainedImplicit(SPACE), Split(ITEMS)) is None


def test_large_images_go_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_module, "_MAX_SITES", 13)  # two images of 2x3 pixels
    sizes = []

    class Watched(Factorial):
        def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            sizes.append(len(x))
            return super().log_prob(x, labels)

    found = evaluate_likelihood(Watched(SPACE), Split(ITEMS))
    assert found is not None
    assert sizes == [2] * 11 + [1]
    assert len(found.nats) == 23


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_streamed_iwae_is_the_whole_sum_with_the_same_noise(chunk: int) -> None:
    model = GaussianLatent(PointSpace(1))
    x = torch.linspace(-2, 2, 5)[:, None]
    whole = model.iwae(x, 7, generator=Generator().manual_seed(0))
    streamed = streamed_iwae(model, x, 7, chunk=chunk, generator=Generator().manual_seed(0))
    torch.testing.assert_close(streamed.float(), whole, rtol=1e-6, atol=1e-6)


def test_bounds_rise_to_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[ELBO] < E[IWAE_K] < log p, known here in closed form; K is streamed in chunks."""
    monkeypatch.setattr(likelihood_module, "_MAX_SITES", 4096)
    model = GaussianLatent(PointSpace(1))
    points = np.random.default_rng(0).normal(0, 2**0.5, size=(2000, 1)).astype(np.float32)
    truth = float((-(points**2) / 4 - 0.5 * math.log(4 * math.pi)).mean())
    elbo, loose, tight = (evaluate_likelihood(model, Split(points), n_importance=k) for k in (0, 5, 200))
    assert elbo is not None
    assert loose is not None
    assert tight is not None
    assert [found.n_samples for found in (elbo, loose, tight)] == [1, 5, 200]
    assert {found.kind for found in (elbo, loose, tight)} == {"lower bound"}
    means = [float(found.nats.mean()) for found in (elbo, loose, tight)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(truth - 0.3**2, abs=0.03)  # KL(q || posterior) = 0.3^2 / (2 * 1/2)
    assert means[2] == pytest.approx(truth, abs=0.005)


def test_the_seed_fixes_the_draws() -> None:
    model, split = GaussianLatent(PointSpace(1)), Split(np.ones((9, 1), dtype=np.float32))
    first, again, other = (evaluate_likelihood(model, split, n_importance=3, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.nats, again.nats)
    assert not torch.equal(first.nats, other.nats)


def test_summary_of_images() -> None:
    nats = torch.tensor([-1.0, -2.0, -6.0])
    found = summarise(Likelihood(nats, "lower bound", "discrete", 5), SPACE)
    assert list(found) == ["nll_nats_per_image", "bits_per_dim"]
    nll, bits = found.values()
    assert nll.value == pytest.approx(3.0)
    error = np.std([1, 2, 6], ddof=1) / 3**0.5
    assert nll.high == pytest.approx(3 + 1.959964 * error)
    assert nll.low == pytest.approx(3 - 1.959964 * error, abs=1e-6)
    assert (nll.n, nll.kind, nll.measure) == (3, "lower bound", "discrete")
    assert bits.value == pytest.approx(3 / (6 * math.log(2)))
    assert bits.text("lower").startswith("≤ ")


def test_summary_of_points() -> None:
    space: Space = PointSpace(2)
    found = summarise(Likelihood(torch.tensor([0.5]), "exact", "continuous"), space)
    assert list(found) == ["nll_nats_per_point"]
    assert found["nll_nats_per_point"].value == -0.5
    assert found["nll_nats_per_point"].interval == ""


def test_values_that_are_not_finite_are_counted_and_not_averaged_away() -> None:
    nats = torch.tensor([-1.0, math.nan, -math.inf, -2.0])
    found = summarise(Likelihood(nats, "exact", "discrete"), SPACE)["nll_nats_per_image"]
    assert found.value is not None
    assert math.isnan(found.value)
    assert found.low is None
    assert describe_non_finite(Likelihood(nats, "exact", "discrete")) == (
        "2 of 4 values are not finite (1 NaN, 1 infinite)"
    )
    impossible = Likelihood(nats[2:], "exact", "discrete")
    assert summarise(impossible, SPACE)["nll_nats_per_image"].value == math.inf
    assert describe_non_finite(Likelihood(nats[:1], "exact", "discrete")) is None
