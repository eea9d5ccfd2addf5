"""What the latents carry: constructed posteriors with a known KL and a known number of active units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stubs import UntrainedApproximate
from torch import Generator, Tensor

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.latents import LatentReport, describe, latent_report
from triptych.models.approximate.vae import VAE
from triptych.objectives.elbo import gaussian_kl
from triptych.spaces import ImageSpace, PointSpace

POINTS = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32) + 100  # Far off: variances must not cancel.


class Copying(UntrainedApproximate):
    """q(z|x) = N(gains * x_0, variances): each latent copies the first coordinate with a gain of its own."""

    def __init__(self, gains: list[float], variances: list[float], n_classes: int = 0) -> None:
        super().__init__(PointSpace(2), n_classes)
        self.n_latents = len(gains)
        self.gains, self.log_var = torch.tensor(gains), torch.tensor(variances).log()
        self.n_seen: list[int] = []

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        assert not self.training
        self.check_labels(len(x), labels, draw=False)
        self.n_seen.append(len(x))
        return x[:, :1] * self.gains

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return gaussian_kl(self.encode(x, labels), self.log_var.expand(len(x), -1))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_half_of_the_latents_active_with_the_exact_kl(batch_size: int) -> None:
    variances = [0.5, 0.1, 1.0, 1.0]
    model = Copying([1.0, 0.2, 0.0, 0.01], variances).train()
    report = latent_report(model, Split(POINTS), batch_size=batch_size)
    assert (report.n_active, report.n_latents, report.n_items) == (2, 4, 60)
    gains, square = np.array([1.0, 0.2, 0.0, 0.01]), (POINTS[:, :1].astype(float) ** 2)
    expected = 0.5 * ((gains**2 * square).mean(0) + np.array(variances) - 1 - np.log(variances))
    np.testing.assert_allclose(report.kl, expected, rtol=1e-5, atol=1e-7)
    assert report.kl.dtype == torch.float64
    assert report.total_kl == pytest.approx(expected.sum(), rel=1e-5)
    assert report.warning is None
    assert model.training


@pytest.mark.parametrize(("share", "active"), [(0.9, 0), (1.1, 1)])
def test_a_latent_is_active_if_its_mean_has_a_variance_over_a_hundredth(share: float, active: int) -> None:
    gain = math.sqrt(share * 0.01 / float(POINTS[:, 0].astype(float).var(ddof=1)))
    assert latent_report(Copying([gain], [0.5]), Split(POINTS), batch_size=7).n_active == active


def test_a_collapsed_posterior_is_said_to_be_one() -> None:
    report = latent_report(Copying([0.0, 0.0], [1.0, 1.0]), Split(POINTS))
    assert (report.n_active, report.total_kl) == (0, 0.0)
    assert report.warning is not None
    assert "none of 2 latents" in report.warning
    for remedy in ("beta", "warm-up", "free bits", "weaker decoder"):
        assert remedy in report.warning
    assert describe(report)[-1] == report.warning


def test_warnings_by_kind() -> None:
    def warning(kl: float, n_active: int, n_latents: int = 20) -> str:
        return LatentReport(torch.full((n_latents,), kl / n_latents), n_active, n_latents, 100).warning or ""

    assert "none" in warning(3.0, 0)
    assert "0.040 nats in all" in warning(0.04, 20)
    assert warning(0.06, 20) == ""
    assert "Only 1 of 20" in warning(3.0, 1)
    assert warning(3.0, 2) == ""
    assert "diverged" in warning(math.nan, 20)


def test_a_vae_that_ignores_its_data_has_collapsed_and_one_that_does_not_has_not() -> None:
    torch.manual_seed(0)
    space = ImageSpace(1, 4, 4, 2)
    split = Split(np.random.default_rng(0).integers(0, 2, size=(50, 1, 4, 4)).astype(np.uint8))
    model = VAE(space, n_latents=3, hidden=4)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    used = latent_report(model, split)
    with torch.no_grad():
        expected = model.kl(torch.tensor(np.asarray(split.items))).double().mean(0)
    torch.testing.assert_close(used.kl, expected)
    assert (used.n_active, used.warning) == (3, None)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    idle = latent_report(model, split)
    assert (idle.n_active, idle.total_kl) == (0, 0.0)
    assert idle.warning is not None


def test_some_items_of_a_large_split_are_drawn_by_the_seed() -> None:
    model = Copying([1.0], [0.5])
    report = latent_report(model, Split(POINTS), max_items=20, batch_size=8, seed=1)
    assert report.n_items == 20
    assert max(model.n_seen) == 8
    assert torch.equal(report.kl, latent_report(model, Split(POINTS), max_items=20, batch_size=8, seed=1).kl)
    assert not torch.equal(report.kl, latent_report(model, Split(POINTS), max_items=20, seed=2).kl)


def test_conditional_models_are_given_the_labels() -> None:
    model = Copying([1.0], [0.5], n_classes=2)
    assert latent_report(model, Split(POINTS, np.arange(60) % 2)).n_active == 1
    with pytest.raises(InputError, match="class-conditional"):
        latent_report(model, Split(POINTS))


def test_too_few_items_are_refused() -> None:
    model = Copying([1.0], [0.5])
    with pytest.raises(InputError, match="There are 1 items"):
        latent_report(model, Split(POINTS[:1]))
    with pytest.raises(InputError, match="batch_size is 0"):
        latent_report(model, Split(POINTS), batch_size=0)


def test_the_lines_for_the_terminal() -> None:
    by_latent = LatentReport(torch.tensor([0.25, 2.0, 0.0]), 2, 3, 50)
    assert describe(by_latent) == [
        "latents: 2 of 3 active, KL 2.25 nats per item (mean of 50)",
        "dearest latents, nats: 2.00, 0.25, 0.00",
    ]
    by_layer = LatentReport(torch.tensor([0.25, 2.0]), 30, 32, 50)
    assert describe(by_layer)[1] == "layers in order, nats: 0.25, 2.00"
    many = LatentReport(torch.arange(10.0), 10, 10, 50)
    assert describe(many)[1].endswith("4.00, 3.00, 2.00, and 2 more")
    assert len(describe(LatentReport(torch.ones(1), 1, 1, 50))) == 1
