"""Likelihoods sum to one, the KL is the integral it claims to be, the game has the value it should."""

import math

import numpy as np
import pytest
import torch

from triptych.objectives import adversarial, elbo, pixel_likelihoods


def parameters(k: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn((1, 1, k, 1, 1), generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_logistic_mixture_sums_to_one_over_the_levels(levels: int, spread: float) -> None:
    x = torch.arange(levels).reshape(levels, 1, 1, 1)
    log_p = pixel_likelihoods.logistic_mixture_log_prob(
        parameters(15, spread=spread).expand(levels, -1, -1, -1, -1), x, levels
    )
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_logistic_mixture_has_finite_gradients_far_from_the_data() -> None:
    theta = (parameters(15, spread=100.0)).requires_grad_()
    pixel_likelihoods.logistic_mixture_log_prob(theta, torch.full((1, 1, 1, 1), 128), 256).sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("levels", [2, 17])
def test_categorical_sums_to_one_and_agrees_with_its_definition(levels: int) -> None:
    logits = parameters(levels)
    x = torch.arange(levels).reshape(levels, 1, 1, 1)
    log_p = pixel_likelihoods.categorical_log_prob(logits.expand(levels, -1, -1, -1, -1), x)
    torch.testing.assert_close(log_p, logits.flatten().log_softmax(0))


def chi_squared(draws: torch.Tensor, probabilities: torch.Tensor) -> float:
    counts = torch.bincount(draws.flatten(), minlength=len(probabilities)).double()
    expected = probabilities.double() * draws.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_probabilities() -> None:
    n, levels = 40_000, 5
    generator = torch.Generator().manual_seed(1)
    x = torch.arange(levels).reshape(levels, 1, 1, 1)
    logits = parameters(levels, spread=1.0)
    p = pixel_likelihoods.categorical_log_prob(logits.expand(levels, -1, -1, -1, -1), x).exp()
    # 99.9 % quantile of chi-squared with 4 degrees of freedom is 18.5.
    assert chi_squared(pixel_likelihoods.categorical_sample(logits.expand(n, -1, -1, -1, -1), generator), p) < 18.5
    theta = parameters(9, spread=0.7)
    p = pixel_likelihoods.logistic_mixture_log_prob(theta.expand(levels, -1, -1, -1, -1), x, levels).exp()
    draws = pixel_likelihoods.logistic_mixture_sample(theta.expand(n, -1, -1, -1, -1), levels, generator)
    assert chi_squared(draws, p) < 18.5


def test_categorical_mean() -> None:
    logits = parameters(4)
    expected = (logits.flatten().softmax(0) * torch.arange(4)).sum()
    torch.testing.assert_close(pixel_likelihoods.categorical_mean(logits).squeeze(), expected)


@pytest.mark.parametrize(("mu", "log_var"), [(0.0, 0.0), (1.3, -2.0), (-0.4, 1.1)])
def test_gaussian_kl_is_the_integral(mu: float, log_var: float) -> None:
    z = np.linspace(-30, 30, 600_001)
    var = math.exp(log_var)
    log_q = -0.5 * ((z - mu) ** 2 / var + log_var + math.log(2 * math.pi))
    log_p = -0.5 * (z**2 + math.log(2 * math.pi))
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    assert float(elbo.gaussian_kl(torch.tensor(mu), torch.tensor(log_var))) == pytest.approx(integral, abs=1e-5)


def test_the_game_has_value_log_4_where_the_discriminator_cannot_tell() -> None:
    zero = torch.zeros(8)
    assert float(adversarial.discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(adversarial.non_saturating_generator_loss(zero)) == pytest.approx(math.log(2))


def test_game_losses_are_their_formulas() -> None:
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.1])
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    value = d_real.log().mean() + (1 - d_fake).log().mean()
    torch.testing.assert_close(adversarial.discriminator_loss(real, fake), -value)
    torch.testing.assert_close(adversarial.non_saturating_generator_loss(fake), -d_fake.log().mean())


def test_r1_is_the_squared_gradient() -> None:
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def logit(y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(y @ weight)

    step = 1e-6
    numeric = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        numeric += ((logit(x.detach() + shift) - logit(x.detach() - shift)) / (2 * step)).square().mean()
    penalty = adversarial.r1_penalty(logit(x), x)
    assert float(penalty.detach()) == pytest.approx(float(numeric), rel=1e-5)
    assert penalty.requires_grad
