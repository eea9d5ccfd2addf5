"""The theory, computed: each figure's numbers say what the theorem says, and the figures are written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data.points import GaussianMixture, mixture1d, moons
from triptych.errors import InputError
from triptych.theory import FIGURES, alternation, demonstrate, likelihood, losses
from triptych.theory.alternation import Alternation
from triptych.theory.densities import entropy, gaussian, grid_around, jsd, kl, moved, value
from triptych.theory.discriminator import Contest, Discriminators, contest
from triptych.theory.game import Game, RisingGenerator, binned_jsd, pushforward
from triptych.theory.likelihood import MaximumLikelihood
from triptych.theory.losses import Losses
from triptych.theory.value import Values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("theory") / "figures"


@pytest.fixture(scope="module")
def shown(folder: Path) -> dict[str, object]:
    """All figures, in their quick versions."""
    return dict(demonstrate(folder, quick=True, verbose=False))


def test_integrals_agree_with_closed_forms() -> None:
    p, q = gaussian(1.0, 0.5), gaussian(-0.5, 2.0)
    grid = grid_around(p, q, n=4001)
    log_p, log_q = p.log_density(grid.points), q.log_density(grid.points)
    assert entropy(log_p, grid) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), abs=1e-9)
    expected = math.log(2.0 / 0.5) + (0.25 + 1.5**2) / (2 * 4.0) - 0.5
    assert kl(log_p, log_q, grid) == pytest.approx(expected, abs=1e-9)
    assert jsd(log_p, log_p, grid) == pytest.approx(0, abs=1e-12)
    far = grid_around(p, moved(p, 30.0), n=8001)
    assert jsd(p.log_density(far.points), moved(p, 30.0).log_density(far.points), far) == pytest.approx(math.log(2))
    plane = moons(40)
    cells = grid_around(plane, n=160, margin=6.0)
    assert cells.integral(np.exp(plane.log_density(cells.points))) == pytest.approx(1, abs=1e-6)


def test_the_trained_discriminator_comes_near_the_best_one(shown: dict[str, object]) -> None:
    found = shown["discriminator"]
    assert isinstance(found, Discriminators)
    for part, mean, largest in ((found.line, 0.03, 0.12), (found.plane, 0.12, 0.6)):
        assert part.mean_deviation < mean
        blind = part.grid.integral(np.exp(part.log_mixture) * np.abs(part.optimal - 0.5))
        assert part.mean_deviation < 0.3 * blind
        assert part.mean_deviation < part.largest_deviation < largest
        n = part.numbers()
        assert n["value_optimal_nats"] == pytest.approx(n["minus_2_log_2_plus_2_jsd_nats"], abs=1e-6)
        # V(D*) - V(D) is the KL from Bernoulli(D*) to Bernoulli(D), over p_data + p_G.
        logits, best = part.log_p - part.log_q, part.optimal
        of_real = np.logaddexp(0, -part.logits) - np.logaddexp(0, -logits)  # log D* - log D
        of_fake = np.logaddexp(0, part.logits) - np.logaddexp(0, logits)
        apart = best * of_real + (1 - best) * of_fake
        lost = part.grid.integral((np.exp(part.log_p) + np.exp(part.log_q)) * apart)
        assert 0 < lost == pytest.approx(n["value_optimal_nats"] - n["value_trained_nats"], abs=1e-9)
    assert found.line.numbers()["value_trained_nats"] > found.line.numbers()["value_optimal_nats"] - 0.02


def test_the_deviation_is_weighed_by_the_mixture() -> None:
    p, q = mixture1d(), gaussian(0.0, 2.0)
    grid = grid_around(p, q, n=2001)
    log_p, log_q = p.log_density(grid.points), q.log_density(grid.points)
    x = grid.axes[0]
    # Wrong by all that D* leaves to 1, but only where hardly anything lies: it does not count.
    far_off = np.where(np.abs(x) > 9, 60.0, log_p - log_q)
    beyond = Contest("", grid, log_p, log_q, far_off)
    assert beyond.deviation.max() > 0.9
    assert beyond.largest_deviation == pytest.approx(0, abs=1e-12)
    assert beyond.mean_deviation < 1e-4
    # Wrong by 1/2 - D* everywhere: the mean is the total variation's half.
    blind = Contest("", grid, log_p, log_q, np.zeros(len(x)))
    variation = grid.integral(np.abs(np.exp(log_p) - np.exp(log_q))) / 2
    assert blind.mean_deviation == pytest.approx(variation / 2, abs=1e-9)


def test_the_value_is_minus_2_log_2_plus_2_jsd(shown: dict[str, object]) -> None:
    found = shown["value"]
    assert isinstance(found, Values)
    np.testing.assert_allclose(found.optimal, found.identity, atol=1e-9)
    assert found.identity[0] == pytest.approx(-2 * math.log(2), abs=1e-9), "where p_G is p_data"
    assert (found.trained <= found.optimal + 1e-9).all(), "no discriminator beats D*"
    np.testing.assert_allclose(found.trained[:2], found.identity[:2], atol=0.02)
    np.testing.assert_allclose(found.trained[2], found.identity[2], atol=0.15)  # Sharper, and the training is short.
    assert (found.history[1:, 0] < found.history[1:, -1] - 0.2).all(), "training raises the value"


def test_losses_saturate_where_they_should() -> None:
    found = losses.compute(quick=True)
    assert isinstance(found, Losses)
    for place in (0.05, 0.5, 0.9):
        slopes = {
            "minimax": -place,
            "non_saturating": place - 1,
            "least_squares": math.log(place / (1 - place)) - 1,
            "wasserstein": -1,
            "relativistic": -((1 - place) ** 2) / (place**2 + (1 - place) ** 2),  # -(1 - sigmoid(2 f))
            "maximum_likelihood": -place / (1 - place),
        }
        assert set(slopes) == set(found.gradients)
        for name, slope in slopes.items():
            assert found.at(name, place) == pytest.approx(slope, abs=0.01), name
    # The gradients are the losses' slopes.
    for name, loss in found.losses.items():
        slope = np.gradient(loss, found.logits)
        if name == "relativistic":
            continue  # The real datum's logit moves along with the fake one's, but counts as fixed in the gradient.
        inner = np.abs(found.logits) < 3
        np.testing.assert_allclose(slope[inner], found.gradients[name][inner], atol=0.02 * np.exp(3))


def test_the_likeliest_model_is_the_nearest(shown: dict[str, object]) -> None:
    found = shown["likelihood"]
    assert isinstance(found, MaximumLikelihood)
    mean, width, em = found.families
    for family in (mean, width):
        step = family.parameters[1] - family.parameters[0]
        assert abs(family.most_likely - family.nearest) < 1.5 * step
        inner = family.parameters[1:-1]
        assert family.nearest in inner, "the best one is not at an end"
    # Method of moments: the nearest Gaussian has the mean and the variance of the density.
    data = found.data
    centre = float((data.weights * data.means[:, 0]).sum())
    variance = float((data.weights * (data.stds**2 + (data.means[:, 0] - centre) ** 2)).sum())
    assert mean.nearest == pytest.approx(centre, abs=0.08)
    assert width.nearest == pytest.approx(math.sqrt(variance), abs=0.06)
    assert em.most_likely == em.nearest == likelihood.N_EM
    assert (np.diff(em.log_likelihood) > 0).all()
    assert em.divergence[-1] < 0.01 * em.divergence[0]
    for family in found.families:
        assert (np.abs(family.gap) < 4.5 * family.standard_error + 1e-6).all()


def test_em_finds_the_mean_and_width_of_one_gaussian_in_a_step() -> None:
    x = np.random.default_rng(0).normal(3, 2, (500, 1))
    fitted = likelihood.em_step(GaussianMixture(np.ones(1), np.zeros((1, 1)), np.ones(1), np.zeros(1, np.int64)), x)
    assert float(fitted.means[0, 0]) == pytest.approx(x.mean())
    assert float(fitted.stds[0]) == pytest.approx(x.std())


def test_small_steps_lower_the_jsd_each_time_and_large_ones_do_not(shown: dict[str, object]) -> None:
    found = shown["alternation"]
    assert isinstance(found, Alternation)
    assert found.small.rises == 0
    assert (np.diff(found.small.jsd) < 0).all()
    assert found.small.jsd[-1] < 0.1 * found.small.jsd[0]
    assert found.large.rises > 0
    assert max(found.small.gradient_error, found.large.gradient_error) < 2e-3
    assert found.small.shown()[0] == 0
    assert found.small.shown()[-1] == len(found.small.jsd) - 1


def test_the_two_ways_to_the_jsd_agree() -> None:
    for mean, std in ((-1.0, 1.4), (2.0, 0.8), (5.0, 40.0)):
        p, q = gaussian(alternation.DATA_MEAN, alternation.DATA_STD), gaussian(mean, std)
        grid = grid_around(p, q, n=20001, margin=10.0)
        other = float(alternation.divergence(torch.tensor([mean, math.log(std)], dtype=torch.float64)))
        assert other == pytest.approx(jsd(p.log_density(grid.points), q.log_density(grid.points), grid), abs=1e-5)
        points = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
        logits = alternation.optimal_logits(mean, math.log(std))(points).numpy()
        x = points.numpy()[:, None]
        np.testing.assert_allclose(logits, p.log_density(x) - q.log_density(x), atol=1e-9)


def test_the_game_brings_the_samples_to_the_data(shown: dict[str, object]) -> None:
    found = shown["game"]
    assert isinstance(found, Game)
    first, last = found.moments[0], found.moments[-1]
    assert last.jsd < 0.5 * first.jsd
    width = found.x[1] - found.x[0]
    for moment in found.moments:
        assert width * moment.p_model.sum() == pytest.approx(1, abs=1e-9)
        assert (np.diff(moment.arrows) > 0).all(), "the ways never cross"
        assert ((moment.probability > 0) & (moment.probability < 1)).all()


def test_densities_of_mapped_normals() -> None:
    ends = torch.special.ndtri((torch.arange(4001, dtype=torch.float64) + 0.5) / 4001).numpy()
    edges = np.linspace(-6, 8, 141)
    x = 0.5 * (edges[1:] + edges[:-1])[:, None]
    straight = np.exp(gaussian(1.0, 1.5).log_density(x))
    np.testing.assert_allclose(pushforward(1.0 + 1.5 * ends, edges), straight, atol=1e-3)
    np.testing.assert_allclose(pushforward(1.0 - 1.5 * ends, edges), straight, atol=1e-3)
    # Folded: |z| has twice the normal's density on its half of the line.
    half = np.where(x[:, 0] > 0, 2 * np.exp(gaussian(0.0, 1.0).log_density(x)), 0)
    np.testing.assert_allclose(pushforward(np.abs(ends), edges), half, atol=5e-3)
    # What lies beyond counts at the ends, and all mass is there.
    beyond = pushforward(ends + 100, edges)
    assert beyond[-1] * (edges[1] - edges[0]) == pytest.approx(1)
    assert binned_jsd(straight, beyond, 0.1) == pytest.approx(math.log(2), abs=1e-3)
    torch.manual_seed(0)
    network = RisingGenerator(8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=2)
    assert (torch.diff(network(torch.linspace(-4, 4, 500)[:, None]).squeeze(1)) > 0).all()


def test_everything_is_written(shown: dict[str, object], folder: Path) -> None:
    assert list(shown) == list(FIGURES)
    assert {path.name for path in folder.iterdir()} == {"theory.json", "game.gif", *(f"{n}.png" for n in FIGURES)}
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 1000
    found = shown["game"]
    assert isinstance(found, Game)
    with Image.open(folder / "game.gif") as animation:
        assert getattr(animation, "n_frames", 1) == len(found.moments)
    told = json.loads((folder / "theory.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert list(told["figures"]) == list(FIGURES)
    assert told["seed"] == 0
    assert told["quick"] is True


def test_the_seed_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(seed: int) -> np.ndarray:
        return contest("", mixture1d(), gaussian(0, 2), n_steps=20, hidden=8, seed=seed, n=50).logits

    before = torch.random.get_rng_state()
    assert np.array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is left alone"
    shown = demonstrate(tmp_path, only=["losses"], quick=True)
    assert list(shown) == ["losses"]
    assert {path.name for path in tmp_path.iterdir()} == {"losses.png", "theory.json"}
    assert "losses.png" in capsys.readouterr().out


def test_what_cannot_be_done_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lossses.*Did you mean 'losses'"):
        demonstrate(tmp_path / "t", only=["lossses"])
    with pytest.raises(InputError, match="seed is -1"):
        demonstrate(tmp_path / "t", seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        demonstrate(tmp_path / "file")
    assert not (tmp_path / "t").exists()


def test_the_value_of_a_blind_discriminator_is_minus_log_4() -> None:
    p, q = mixture1d(), gaussian(0.0, 2.0)
    grid = grid_around(p, q, n=2001)
    log_p, log_q = p.log_density(grid.points), q.log_density(grid.points)
    assert value(log_p, log_q, np.zeros(len(log_p)), grid) == pytest.approx(-math.log(4), abs=1e-9)
    assert value(log_p, log_q, np.full(len(log_p), 800.0), grid) == pytest.approx(-800, abs=1e-6), "no overflow"
