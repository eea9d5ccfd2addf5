"""The KL is the integral it claims to be, the game has the value it should."""

import math

import numpy as np
import pytest
import torch

from triptych.objectives import adversarial, elbo


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
    penalty = adversarial.zero_centred_penalty(logit(x), x)
    assert float(penalty.detach()) == pytest.approx(float(numeric), rel=1e-5)
    assert penalty.requires_grad
