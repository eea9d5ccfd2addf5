"""The VAE's bound and decoder against what can be computed exactly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.models.approximate.vae import VAE
from triptych.spaces import ImageSpace, PointSpace


def shaken(space: ImageSpace | PointSpace, seed: int = 0, **options: Any) -> VAE:
    """A model whose weights are away from their initialisation."""
    torch.manual_seed(seed)
    model = VAE(space, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).reshape(-1, *space.shape)


def exact_log_prob(model: VAE, x: Tensor) -> Tensor:
    """log p(x) of a model with one latent, by integrating over z on a fine grid."""
    z = torch.linspace(-8, 8, 1001)[:, None]
    log_prior = -0.5 * z.squeeze(1).square() - 0.5 * math.log(2 * math.pi) + math.log(16 / 1000)
    outputs = model.decoder_output(z)
    rows = [model.observation.log_prob(outputs, image.expand(len(z), *image.shape)) + log_prior for image in x]
    return torch.stack(rows).logsumexp(1)


@pytest.mark.parametrize(
    ("levels", "likelihood"), [(2, "bernoulli"), (2, "categorical"), (2, "logistic"), (3, "logistic")]
)
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_and_bounds_stay_below(levels: int, likelihood: str) -> None:
    space = ImageSpace(1, 2, 3, levels)
    model = shaken(space, n_latents=1, hidden=4, likelihood=likelihood)
    last = model.encoder.layers[-1]
    # A posterior wider than the prior: importance sampling then converges, and the ELBO is far below.
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.0, 1.0]))
    x = all_images(space)
    log_p = exact_log_prob(model, x)
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    elbo = model.elbo(x, 400, generator=generator)
    iwae_5 = torch.stack([model.iwae(x, 5, generator=generator) for _ in range(80)]).mean(0)
    iwae_2000 = model.iwae(x, 2000, generator=generator)
    # Averages over all images: their Monte Carlo error is far below the gaps that are compared.
    assert elbo.mean() < iwae_5.mean() < log_p.mean()
    assert float(iwae_2000.mean()) == pytest.approx(float(log_p.mean()), abs=0.01)


@torch.no_grad()
def test_the_kl_in_closed_form_is_the_expectation_it_stands_for() -> None:
    model = shaken(ImageSpace(1, 4, 4, 3), n_latents=2, hidden=4)
    x = torch.randint(3, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    analytic = model.elbo(x, 3000, generator=generator)
    sampled = model.log_weights(x, 3000, generator=generator)
    error = sampled.std(0) / 3000**0.5
    assert ((analytic - sampled.mean(0)).abs() < 5 * error + 0.05).all()


@torch.no_grad()
def test_samples_follow_the_models_own_distribution() -> None:
    space = ImageSpace(1, 2, 2, 2)
    model = shaken(space, seed=3, n_latents=1, hidden=4)
    p = exact_log_prob(model, all_images(space)).double().exp()
    n = 40_000
    draws = model.sample(n, generator=torch.Generator().manual_seed(0)).flatten(1).long()
    counts = torch.bincount(draws @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    # 99.9 % quantile of chi-squared with 15 degrees of freedom is 37.7.
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 37.7


@torch.no_grad()
def test_the_density_of_points_integrates_to_one_in_data_units() -> None:
    model = shaken(PointSpace(1, (3.0,), 0.25), n_latents=1, hidden=8)
    x = torch.linspace(-40, 46, 6001)[:, None]
    z = torch.linspace(-8, 8, 801)[:, None]
    outputs = model.decoder_output(z)
    log_prior = -0.5 * z.squeeze(1).square() - 0.5 * math.log(2 * math.pi) + math.log(16 / 800)
    density = torch.zeros(len(x))
    for output, weight in zip(outputs, log_prior, strict=True):
        density += (model.observation.log_prob(output.expand(len(x), -1), x) + weight).exp()
    assert float(torch.trapezoid(density, x.squeeze(1))) == pytest.approx(1, abs=0.02)


def test_reparameterised_gradients_agree_with_finite_differences() -> None:
    model = shaken(ImageSpace(1, 4, 4, 3), n_latents=2, hidden=4).double()
    model.encoder.scale.float()
    x = torch.randint(3, (4, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((4, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mu = torch.randn((4, 2), generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()

    def reconstruction(mean: Tensor) -> Tensor:
        logits = model.decoder_output(mean + 0.5 * noise).log_softmax(1)  # in float64, to difference it
        return logits.gather(1, x).sum()

    (gradient,) = torch.autograd.grad(reconstruction(mu), mu)
    step = 1e-5
    for i in range(2):
        shift = torch.zeros_like(mu)
        shift[0, i] = step
        numeric = (reconstruction(mu + shift) - reconstruction(mu - shift)) / (2 * step)
        assert float(gradient[0, i]) == pytest.approx(float(numeric.detach()), rel=1e-5)


def test_beta_weighs_the_kl_in_the_loss_alone() -> None:
    from triptych.models.base import Batch

    space = ImageSpace(1, 4, 4, 3)
    x = torch.randint(3, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    totals, bounds = [], []
    for beta in (0.0, 1.0, 3.0):
        model = shaken(space, n_latents=2, hidden=4, beta=beta)
        loss = model.loss(Batch(x), "bound", generator=torch.Generator().manual_seed(0))
        totals.append(float(loss.total.detach()) * space.n_dims)
        bounds.append(float(loss.terms["bound_nats_per_image"]))
        kl = float(loss.terms["kl_nats_per_image"])
    assert bounds[0] == pytest.approx(bounds[2])
    assert totals[1] == pytest.approx(bounds[1], rel=1e-5)
    assert totals[2] - totals[0] == pytest.approx(3 * kl, rel=1e-4)


def test_a_likelihood_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="likelihood"):
        VAE(PointSpace(2), likelihood="categorical")
    with pytest.raises(InputError, match="likelihood"):
        VAE(ImageSpace(1, 8, 8), likelihood="gaussian")
