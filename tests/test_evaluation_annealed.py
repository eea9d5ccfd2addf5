"""Annealed importance sampling against models whose log p(x) is known, and the bracket against the truth it holds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from stubs import UntrainedApproximate
from torch import Generator, Tensor, nn

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.annealed import AnnealedSettings, Bracket, ais, bracket, evaluate_annealed, schedule
from triptych.models.approximate.vae import VAE
from triptych.spaces import ImageSpace, PointSpace


class LinearGaussian(UntrainedApproximate):
    """z ~ N(0, I_2), x|z ~ N(W z + b_label, s^2 I_3); q(z|x) is the posterior, moved and widened.

    Keeps what it drew and how many latents it was given at most, for the tests to look at.
    """

    n_latents = 2

    def __init__(self, n_classes: int = 0, noise: float = 0.5) -> None:
        super().__init__(PointSpace(3), n_classes)
        self.noise = noise
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]]))
        self.bias = nn.Parameter(torch.arange(3.0 * max(1, n_classes)).reshape(-1, 3))
        self.drawn: list[Tensor] = []
        self.most_rows = 0

    def offset(self, n: int, labels: Tensor | None) -> Tensor:
        return self.bias[torch.zeros(n, dtype=torch.int64) if labels is None else labels]

    def exact_log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        weight = self.weight.detach().double()
        covariance = weight @ weight.T + self.noise**2 * torch.eye(3, dtype=torch.float64)
        centred = x.double() - self.offset(len(x), labels).detach().double()
        return torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(centred)

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        self.most_rows = max(self.most_rows, len(z))
        mean = z @ self.weight.T + self.offset(len(z), labels)
        return torch.distributions.Normal(mean, self.noise).log_prob(x).sum(1)

    def draw_given(self, z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        mean = self.decode(z, labels)
        self.drawn.append(mean + self.noise * torch.randn(mean.shape, generator=generator))
        return self.drawn[-1]

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return z @ self.weight.T + self.offset(len(z), labels)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return self.draw_given(torch.randn((n, 2), generator=generator), labels, generator=generator)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, (N, 2), and covariance, (2, 2), of q(z|x)."""
        covariance = torch.linalg.inv(torch.eye(2) + self.weight.T @ self.weight / self.noise**2)
        mean = (x - self.bias[0]) @ self.weight @ covariance / self.noise**2
        return mean + 0.2, 1.5 * covariance

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        mean, covariance = self.posterior(x)
        noise = torch.randn(mean.shape, generator=generator) if sample else torch.zeros_like(mean)
        return mean + noise @ torch.linalg.cholesky(covariance).T

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        q = torch.distributions.MultivariateNormal(*self.posterior(x))
        rows = []
        for _ in range(n_samples):
            z = self.encode(x, sample=True, generator=generator)
            log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
            rows.append(self.log_likelihood(x, z) + log_prior - q.log_prob(z))
        return torch.stack(rows)


class Walled(LinearGaussian):
    """The same, but no x can come from a z beyond a wall: p(x|z) = 0 there."""

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.where(z[:, 0] < 0.2, super().log_likelihood(x, z, labels), -math.inf)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def data(model: LinearGaussian, n: int, seed: int = 5) -> Tensor:
    with torch.no_grad():
        return model.sample(n, generator=seeded(seed))


def test_the_schedule_rises_from_0_to_1_and_is_symmetric() -> None:
    betas = torch.tensor(schedule(50), dtype=torch.float64)
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 51)
    rises = betas.diff()
    assert (rises > 0).all()
    torch.testing.assert_close(rises, rises.flip(0))
    assert rises[0] < rises[25] / 10
    assert schedule(1) == [0.0, 1.0]


def test_ais_finds_the_exact_value() -> None:
    model = LinearGaussian()
    x = data(model, 24)
    found = ais(model, x, settings=AnnealedSettings(150, 16, 5), generator=seeded())
    assert (found.shape, found.dtype) == ((24,), torch.float64)
    error = found - model.exact_log_prob(x)
    assert abs(float(error.mean())) < 0.05
    assert float(error.abs().max()) < 0.6


def test_the_weights_are_unbiased_in_both_directions() -> None:
    # However few the temperatures: E[exp(forward)] = p(x), and E[exp(-reverse)] = 1 / p(x). Much noise in x, since the
    # reverse weights have long tails otherwise, and their mean says little.
    model = LinearGaussian(noise=1.5)
    settings = AnnealedSettings(n_temperatures=6, n_chains=1, n_leapfrog=3, n_pilot=20)
    x = data(model, 1).expand(6000, 3)
    forward = ais(model, x, settings=settings, generator=seeded())
    mean, error = mean_and_error((forward - model.exact_log_prob(x)).exp())
    assert error < 0.01
    assert abs(mean - 1) < 3 * error
    model.drawn.clear()
    found = bracket(model, 6000, settings=settings, generator=seeded(1), batch_size=6000)
    mean, error = mean_and_error((model.exact_log_prob(torch.cat(model.drawn)) - found.upper).exp())
    assert error < 0.02
    assert abs(mean - 1) < 3 * error


@torch.no_grad()
def test_every_bound_is_below_the_next_and_annealing_is_above_them() -> None:
    model = LinearGaussian().eval()
    x = data(model, 300)
    exact = model.exact_log_prob(x)
    bounds = [
        model.elbo(x, generator=seeded()).double(),
        *(model.iwae(x, k, generator=seeded()).double() for k in (2, 8, 64)),
        ais(model, x, settings=AnnealedSettings(80, 32, 4), generator=seeded()),
    ]
    short = [mean_and_error(bound - exact) for bound in bounds]
    for (low, low_error), (high, high_error) in itertools.pairwise(short[:4]):
        assert low < high - 2 * math.hypot(low_error, high_error)
    assert short[3][0] < 3 * short[3][1]
    assert short[2][0] < short[4][0] < 3 * short[4][1]  # Above IWAE_8, not above the truth.


def test_the_truth_is_inside_the_bracket_and_more_temperatures_close_it() -> None:
    gaps = []
    for n_temperatures in (4, 20, 100):
        model = LinearGaussian()
        settings = AnnealedSettings(n_temperatures, n_chains=8, n_leapfrog=4, n_pilot=50)
        found = bracket(model, 150, settings=settings, generator=seeded(), batch_size=100)
        assert found.lower.shape == found.upper.shape == (150,)
        exact = model.exact_log_prob(torch.cat(model.drawn))
        below, below_error = mean_and_error(exact - found.lower)
        above, above_error = mean_and_error(found.upper - exact)
        if n_temperatures < 100:  # Far enough from the truth to tell the sides apart.
            assert below > 3 * below_error
            assert above > 3 * above_error
        assert below > -3 * below_error
        assert above > -3 * above_error
        assert found.gap == pytest.approx(below + above)
        gaps.append(found.gap)
    assert gaps[0] > 1.5 * gaps[1] > 3 * gaps[2]
    assert gaps[2] < 0.15


@torch.no_grad()
def test_latents_that_cannot_be_are_never_visited() -> None:
    model = Walled(noise=1.0).eval()
    x = data(model, 12)
    side = torch.linspace(-7, 7, 351, dtype=torch.float64)
    z = torch.cartesian_prod(side, side).float()
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + 2 * math.log(14 / 350)
    exact = torch.stack([(model.log_likelihood(row.expand(len(z), 3), z) + log_prior).logsumexp(0) for row in x])
    found = ais(model, x, settings=AnnealedSettings(120, 32, 4), generator=seeded())
    assert float((found - exact).abs().max()) < 0.5
    assert abs(float((found - exact).mean())) < 0.1


def test_a_vae_of_tiny_images_against_an_integral() -> None:
    torch.manual_seed(0)
    space = ImageSpace(1, 2, 2, 2)
    model = VAE(space, n_latents=1, hidden=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    x = torch.tensor(list(itertools.product((0, 1), repeat=4)), dtype=torch.uint8).reshape(-1, 1, 2, 2)
    z = torch.linspace(-8, 8, 2001)[:, None]
    log_prior = -0.5 * z.squeeze(1).square() - 0.5 * math.log(2 * math.pi) + math.log(16 / 2000)
    with torch.no_grad():
        rows = [model.log_likelihood(image.expand(len(z), 1, 2, 2), z) + log_prior for image in x]
    exact = torch.stack(rows).logsumexp(1)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-3)
    found = ais(model, x, settings=AnnealedSettings(40, 16, 3, n_pilot=40), generator=seeded())
    assert float((found - exact).abs().max()) < 0.15
    assert abs(float((found - exact).mean())) < 0.03
    simulated = bracket(model, 60, settings=AnnealedSettings(40, 16, 3, n_pilot=40), generator=seeded())
    assert abs(simulated.gap) < 0.05


def test_a_whole_split_in_order_in_bounded_memory() -> None:
    model = LinearGaussian().train()
    x = data(model, 11)
    settings = AnnealedSettings(40, 8, 4, n_pilot=30)
    lines: list[str] = []
    split = Split(x.numpy())
    found = evaluate_annealed(model, split, settings=settings, seed=3, batch_size=4, progress=lines.append)
    assert (found.kind, found.measure, found.n_samples) == ("lower bound", "continuous", 8)
    assert (found.nats.dtype, found.nats.shape) == (torch.float32, (11,))
    assert float((found.nats - model.exact_log_prob(x)).abs().max()) < 1
    assert model.most_rows == 4 * 8
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(lines) == 30
    assert lines[-1] == "items 9-11 of 11: annealing, 40 of 40 temperatures"
    again = evaluate_annealed(model, split, settings=settings, seed=3, batch_size=4)
    assert torch.equal(again.nats, found.nats)
    other = evaluate_annealed(model, split, settings=settings, seed=4, batch_size=4)
    assert not torch.equal(other.nats, found.nats)


def test_conditional_models_are_given_the_labels() -> None:
    model = LinearGaussian(n_classes=3)
    labels = torch.arange(9) % 3
    with torch.no_grad():
        x = model.sample(9, labels=labels, generator=seeded())
    settings = AnnealedSettings(40, 8, 4, n_pilot=30)
    found = evaluate_annealed(model, Split(x.numpy(), labels.numpy()), settings=settings, batch_size=4)
    assert float((found.nats - model.exact_log_prob(x, labels)).abs().max()) < 1
    with pytest.raises(InputError, match="class-conditional"):
        evaluate_annealed(model, Split(x.numpy()), settings=settings)
    model.drawn.clear()
    simulated = bracket(model, 9, labels=labels, settings=settings, generator=seeded(), batch_size=4)
    exact = model.exact_log_prob(torch.cat(model.drawn), labels)
    assert float((simulated.lower - exact).abs().max()) < 1
    assert float((simulated.upper - exact).abs().max()) < 1


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    model = LinearGaussian()
    with pytest.raises(InputError, match="n_temperatures is 0"):
        AnnealedSettings(n_temperatures=0)
    with pytest.raises(InputError, match="n is 0"):
        bracket(model, 0)
    with pytest.raises(InputError, match="shape"):
        ais(model, torch.zeros(2, 5))
    with pytest.raises(InputError, match="0 items"):
        evaluate_annealed(model, Split(np.zeros((0, 3), np.float32)))

    class Discrete(LinearGaussian):
        has_normal_prior = False

    for refused in (lambda: ais(Discrete(), torch.zeros(2, 3)), lambda: bracket(Discrete(), 2)):
        with pytest.raises(InputError, match="prior of Discrete is not standard normal"):
            refused()


def test_the_gap_is_a_mean_over_items() -> None:
    assert Bracket(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -0.5])).gap == pytest.approx(0.75)
