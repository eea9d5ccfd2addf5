"""p(x) of a generator: noise around its output and Parzen windows, against densities that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from stubs import Untrained
from torch import Generator, Tensor, nn

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.annealed import AnnealedSettings, ais, bracket, evaluate_annealed
from triptych.evaluation.implicit import (
    FixedNoise,
    climb,
    evaluate_observed,
    evaluate_parzen,
    observed,
    parzen_log_density,
)
from triptych.evaluation.likelihood import summarise
from triptych.models.base import ImplicitDensity
from triptych.models.implicit.gan import GAN
from triptych.nn.blocks import Scale
from triptych.spaces import ImageSpace, PointSpace, Space

PALETTE = ImageSpace(1, 2, 2, 3, palette=((0, 0, 0), (255, 0, 0), (255, 255, 255)))
QUICK = AnnealedSettings(40, 8, 4, n_pilot=30)


class LinearGenerator(Untrained, ImplicitDensity):
    """Scaled data W z + b_label."""

    def __init__(self, space: Space, weight: Tensor, n_classes: int = 0) -> None:
        super().__init__(space, n_classes)
        self.n_latents = weight.shape[1]
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, max(1, n_classes))[:, None].expand(-1, len(weight)).clone())
        self.most_rows = 0

    def offset(self, n: int, labels: Tensor | None) -> Tensor:
        return self.bias[torch.zeros(n, dtype=torch.int64) if labels is None else labels]

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.most_rows = max(self.most_rows, len(z))
        y = z @ self.weight.T + self.offset(len(z), labels)
        return y if isinstance(self.space, PointSpace) else y.reshape(-1, *self.space.shape)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return Scale(self.space).inverse(self.fake(z, labels))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        with torch.no_grad():
            return self.generate(torch.randn((n, self.n_latents), generator=generator), labels)

    def exact_log_prob(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log p of points under noise of scale sigma, in data units, float64."""
        assert isinstance(self.space, PointSpace)
        weight = self.weight.detach().double()
        dim = len(weight)
        covariance = weight @ weight.T + sigma**2 * torch.eye(dim, dtype=torch.float64)
        centred = Scale(self.space)(x).double() - self.offset(len(x), labels).detach().double()
        density = torch.distributions.MultivariateNormal(torch.zeros(dim, dtype=torch.float64), covariance)
        return density.log_prob(centred) - dim * math.log(self.space.scale)


def linear_points(n_classes: int = 0) -> LinearGenerator:
    weight = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]])
    return LinearGenerator(PointSpace(3, (1.0, 2.0, 3.0), 2.0), weight, n_classes)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@torch.no_grad()
def drawn(model: LinearGenerator, sigma: float, n: int, labels: Tensor | None = None, seed: int = 5) -> Tensor:
    noise = seeded(seed)
    z = torch.randn((n, model.n_latents), generator=noise)
    return observed(model, sigma).draw_given(z, labels, generator=noise)


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).reshape(-1, *space.shape)


@pytest.mark.parametrize("space", [ImageSpace(1, 2, 2, 3), ImageSpace(1, 1, 3, 2), PALETTE], ids=str)
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_noise_around_an_image_sums_to_one_and_is_what_is_drawn(space: ImageSpace, sigma: float) -> None:
    noise = FixedNoise(space, sigma)
    outputs = 0.8 * torch.randn((1, noise.n_outputs, space.height, space.width), generator=seeded())
    x = all_images(space)
    p = noise.log_prob(outputs.expand(len(x), -1, -1, -1), x).double().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    n = 20_000
    draws = noise.draw(outputs.expand(n, -1, -1, -1), seeded(1))
    space.check(draws)
    place = (draws.flatten(1).long() * space.levels ** torch.arange(space.n_dims).flip(0)).sum(1)
    found = torch.bincount(place, minlength=len(x)).double() / n
    assert float((found - p).abs().max()) < 5 * math.sqrt(0.25 / n)


def test_the_scale_is_a_standard_deviation() -> None:
    points, images = PointSpace(1, (3.0,), 2.0), ImageSpace(1, 1, 1, 4001)
    for space, unit in ((points, 2.0), (images, 2000.0)):
        outputs = torch.zeros((20_000, *space.shape))
        draws = FixedNoise(space, 0.05).draw(outputs, seeded()).double()
        assert float(draws.std()) == pytest.approx(0.05 * unit, rel=0.03)
        assert float(draws.mean()) == pytest.approx(3.0 if space is points else 2000.0, abs=0.005 * unit)


def test_annealing_finds_the_density_of_a_linear_generator() -> None:
    model = linear_points()
    x = drawn(model, 0.5, 16)
    found = ais(observed(model, 0.5), x, settings=AnnealedSettings(100, 16, 5), generator=seeded())
    error = found - model.exact_log_prob(x, 0.5)
    assert abs(float(error.mean())) < 0.08
    assert float(error.abs().max()) < 0.8


def test_the_bracket_holds_the_truth_of_what_the_generator_draws() -> None:
    gaps = []
    for n_temperatures in (4, 60):
        model = linear_points()
        settings = AnnealedSettings(n_temperatures, n_chains=8, n_leapfrog=4, n_pilot=30)
        found = bracket(observed(model, 0.5), 100, settings=settings, generator=seeded())
        # The first thing that the generator of the bracket draws are the latents and the noise of the data.
        noise = seeded()
        z = torch.randn((64, 2), generator=noise)
        with torch.no_grad():
            x = observed(model, 0.5).draw_given(z, None, generator=noise)
        exact = model.exact_log_prob(x, 0.5)
        below, above = exact - found.lower[:64], found.upper[:64] - exact
        for side in (below, above):
            assert float(side.mean()) > -3 * float(side.std()) / 8
        gaps.append(found.gap)
    assert gaps[0] > 3 * gaps[1] > 0


def test_images_of_a_generator_against_an_integral() -> None:
    space = ImageSpace(1, 2, 2, 2)
    model = LinearGenerator(space, torch.tensor([[1.0], [-0.5], [0.3], [0.8]]))
    density = observed(model, 0.7)
    x = all_images(space).to(torch.uint8)
    z = torch.linspace(-8, 8, 2001)[:, None]
    log_prior = -0.5 * z.squeeze(1).square() - 0.5 * math.log(2 * math.pi) + math.log(16 / 2000)
    with torch.no_grad():
        rows = [density.log_likelihood(image.expand(len(z), 1, 2, 2), z) + log_prior for image in x]
    exact = torch.stack(rows).logsumexp(1)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-3)
    settings = AnnealedSettings(60, 64, 4, n_pilot=30)
    found = evaluate_annealed(density, Split(x.numpy()), settings=settings)
    assert (found.kind, found.measure, found.n_samples) == ("estimate", "discrete", 64)
    assert float((found.nats - exact).abs().max()) < 0.15
    assert abs(float((found.nats - exact).mean())) < 0.03
    assert summarise(found, space)["nll_nats_per_image"].kind == "estimate"


def test_validation_items_choose_the_noise_that_the_data_have() -> None:
    model = linear_points().train()
    x = drawn(model, 0.3, 60)
    lines: list[str] = []
    valid, test = Split(x[:40].numpy()), Split(x[40:].numpy())
    settings = AnnealedSettings(30, 4, 3, n_pilot=20)
    found = evaluate_observed(model, valid, test, settings=settings, n_valid=40, progress=lines.append)
    best = max(np.geomspace(0.05, 2, 200), key=lambda sigma: float(model.exact_log_prob(x[:40], sigma).mean()))
    assert abs(math.log(found.sigma / best)) < math.log(2) / 4 + 0.05
    assert found.tried[found.sigma] == max(found.tried.values())
    assert f"{found.sigma:.3g}" in found.describe(model.space)
    assert "40 validation items" in found.describe(model.space)
    assert float((found.likelihood.nats - model.exact_log_prob(x[40:], found.sigma)).mean().abs()) < 0.5
    assert sum(line.startswith("sigma ") for line in lines) == len(found.tried)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    given = evaluate_observed(model, valid, test, sigma=0.3, settings=settings)
    assert (given.sigma, given.tried) == (0.3, {})


def test_the_search_climbs_to_a_peak_and_stays_within_bounds() -> None:
    for peak in (0.011, 0.25, 1.7):
        tried: dict[float, float] = {}
        found = climb(lambda sigma, peak=peak: -(math.log(sigma / peak) ** 2), tried)  # type: ignore[misc]
        assert abs(math.log2(found / peak)) <= 0.25
        assert len(tried) < 16
    tried = {}
    assert climb(lambda sigma: -sigma, tried) == pytest.approx(1 / 256)
    assert climb(lambda sigma: math.nan, {}) == 0.25


def test_conditional_generators_are_given_the_labels() -> None:
    model = linear_points(n_classes=3)
    labels = torch.arange(9) % 3
    x = drawn(model, 0.5, 9, labels)
    split = Split(x.numpy(), labels.numpy())
    found = evaluate_observed(model, split, split, sigma=0.5, settings=QUICK).likelihood
    assert float((found.nats - model.exact_log_prob(x, 0.5, labels)).abs().max()) < 1
    for evaluate in (evaluate_observed, evaluate_parzen):
        with pytest.raises(InputError, match="class-conditional"):
            evaluate(model, Split(x.numpy()), Split(x.numpy()))


def test_a_gan_is_scored_in_bounded_memory() -> None:
    torch.manual_seed(0)
    model = GAN(ImageSpace(1, 8, 8, 17), n_latents=4, hidden=4).eval()
    x = model.sample(5, generator=seeded()).numpy()
    settings = AnnealedSettings(5, 2, 2, n_pilot=5)
    found = evaluate_observed(model, Split(x), Split(x), sigma=0.3, settings=settings, batch_size=2).likelihood
    assert found.nats.shape == (5,)
    assert found.nats.isfinite().all()
    assert (found.nats < 0).all()


def test_a_parzen_window_converges_on_a_line() -> None:
    model = LinearGenerator(PointSpace(1, (-1.0,), 3.0), torch.tensor([[0.8]]))
    x = model.sample(900, generator=seeded(3))
    mean, scale = -1.0 + 3.0 * float(model.bias.detach()), 3.0 * 0.8
    exact = torch.distributions.Normal(mean, scale).log_prob(x.double()).squeeze(1)
    valid, test = Split(x[:400].numpy()), Split(x[400:].numpy())
    errors = []
    for n in (20, 200, 4000):
        found = evaluate_parzen(model, valid, test, n_samples=n, seed=1)
        # The median, since an item beyond all samples costs as many nats as the bandwidth is narrow.
        errors.append(float((found.likelihood.nats - exact[400:]).abs().median()))
        assert found.likelihood.kind == "estimate"
        assert found.likelihood.measure == "continuous"
        assert found.likelihood.n_samples == found.n_samples == n
        torch.testing.assert_close(found.likelihood.nats, found.unit_nats - math.log(3.0))
        assert found.tried[found.bandwidth] == max(found.tried.values())
    assert errors[2] < min(errors[:2]) / 2
    assert errors[2] < 0.03
    assert float((found.likelihood.nats - exact[400:]).mean()) == pytest.approx(0, abs=0.01)
    again = evaluate_parzen(model, valid, test, n_samples=4000, seed=1)
    assert torch.equal(again.likelihood.nats, found.likelihood.nats)


def test_a_parzen_window_of_images_is_the_papers_in_unit_range() -> None:
    space = ImageSpace(1, 2, 2, 5)
    model = LinearGenerator(space, 0.5 * torch.randn((4, 3), generator=seeded()))
    x = model.sample(30, generator=seeded(1))
    found = evaluate_parzen(model, Split(x[:20].numpy()), Split(x[20:].numpy()), n_samples=50, seed=7)
    centres = model.sample(50, generator=seeded(7)).flatten(1).double() / 4
    y = x[20:].flatten(1).double() / 4
    kernels = torch.distributions.Normal(centres[None], found.bandwidth).log_prob(y[:, None]).sum(2)
    torch.testing.assert_close(found.unit_nats.double(), kernels.logsumexp(1) - math.log(50), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.likelihood.nats, found.unit_nats - 4 * math.log(4))


def test_parzen_of_classes_has_the_samples_of_each() -> None:
    model = linear_points(n_classes=3)
    labels = torch.arange(90) % 3
    x = model.sample(90, labels=labels, generator=seeded(1))
    split = Split(x.numpy(), labels.numpy())
    found = evaluate_parzen(model, split, split, n_samples=300)
    wrong = evaluate_parzen(model, split, Split(x.numpy(), (labels.numpy() + 1) % 3), n_samples=300)
    assert float(found.likelihood.nats.mean()) > float(wrong.likelihood.nats.mean()) + 1


def test_chunks_of_centres_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    y, centres = torch.randn((7, 3), generator=seeded()), torch.randn((40, 3), generator=seeded(1))
    whole = parzen_log_density(y, centres, [0.1, 1.0])
    monkeypatch.setattr("triptych.evaluation.implicit.MAX_ELEMENTS", 12)
    torch.testing.assert_close(parzen_log_density(y, centres, [0.1, 1.0]), whole)


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    model = linear_points()
    split, none = Split(np.zeros((2, 3), np.float32)), Split(np.zeros((0, 3), np.float32))
    for sigma in (0.0, math.nan, -1.0):
        with pytest.raises(InputError, match="sigma is"):
            observed(model, sigma)
    with pytest.raises(InputError, match="0 validation items"):
        evaluate_observed(model, none, split)
    for arguments in ((none, split), (split, none)):
        with pytest.raises(InputError, match="must be at least"):
            evaluate_parzen(model, *arguments)
    with pytest.raises(InputError, match="n_samples is 0"):
        evaluate_parzen(model, split, split, n_samples=0)
    colours = LinearGenerator(PALETTE, torch.ones((12, 1)))
    pictures = Split(np.zeros((2, 1, 2, 2), np.uint8))
    with pytest.raises(InputError, match="palette"):
        evaluate_parzen(colours, pictures, pictures)
