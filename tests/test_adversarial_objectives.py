"""The adversarial objectives: formulae in probabilities, optima on discrete distributions, penalties in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from torch import Tensor

from triptych.objectives.adversarial import (
    OBJECTIVES,
    ObjectiveName,
    between,
    discriminator_loss,
    hinge_discriminator_loss,
    jsd_bound,
    least_squares_discriminator_loss,
    minimax_generator_loss,
    one_centred_penalty,
    relativistic_discriminator_loss,
    wasserstein_critic_loss,
    zero_centred_penalty,
)

COUNTS = (
    (torch.tensor([5, 0, 3, 2, 2, 0]), torch.tensor([1, 4, 3, 0, 3, 1])),
    (torch.tensor([6, 2, 2, 1, 1, 0]), torch.tensor([1, 2, 2, 5, 1, 1])),
    (torch.tensor([2, 2, 2, 2, 2, 2]), torch.tensor([2, 2, 2, 2, 2, 2])),
)
"""How often each of six values occurs among twelve data, and among twelve samples."""


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


# The losses of one real datum with logit r and one generated datum with logit f, in probabilities where there are any.
DISCRIMINATOR: dict[ObjectiveName, Callable[[float, float], float]] = {
    "minimax": lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
    "non_saturating": lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
    "least_squares": lambda r, f: ((r - 1) ** 2 + f**2) / 2,
    "wasserstein": lambda r, f: f - r,
    "hinge": lambda r, f: max(0, 1 - r) + max(0, 1 + f),
    "relativistic": lambda r, f: -math.log(sigmoid(r - f)),
}
GENERATOR: dict[ObjectiveName, Callable[[float, float], float]] = {
    "minimax": lambda r, f: math.log(1 - sigmoid(f)),
    "non_saturating": lambda r, f: -math.log(sigmoid(f)),
    "least_squares": lambda r, f: (f - 1) ** 2 / 2,
    "wasserstein": lambda r, f: -f,
    "hinge": lambda r, f: -f,
    "relativistic": lambda r, f: -math.log(sigmoid(f - r)),
}
# Derivatives of the generator's losses by f, worked out by hand.
SLOPE: dict[ObjectiveName, Callable[[float, float], float]] = {
    "minimax": lambda r, f: -sigmoid(f),
    "non_saturating": lambda r, f: -(1 - sigmoid(f)),
    "least_squares": lambda r, f: f - 1,
    "wasserstein": lambda r, f: -1,
    "hinge": lambda r, f: -1,
    "relativistic": lambda r, f: -(1 - sigmoid(f - r)),
}


def logits_of(seed: int, n: int = 7) -> tuple[Tensor, Tensor]:
    """Real and fake logits, float64, none of them at the hinges."""
    noise = torch.Generator().manual_seed(seed)
    real, fake = (3 * torch.randn(n, generator=noise, dtype=torch.float64) for _ in range(2))
    assert min(float((real - 1).abs().min()), float((fake + 1).abs().min())) > 1e-3
    return real, fake


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_their_gradients_are_the_formulae(name: ObjectiveName) -> None:
    objective = OBJECTIVES[name]
    real, fake = logits_of(0)
    pairs = list(zip(real.tolist(), fake.tolist(), strict=True))
    for loss, formula in ((objective.discriminator, DISCRIMINATOR[name]), (objective.generator, GENERATOR[name])):
        assert float(loss(real, fake)) == pytest.approx(np.mean([formula(r, f) for r, f in pairs]), rel=1e-12)
        inputs = (real.clone().requires_grad_(True), fake.clone().requires_grad_(True))
        needed = inputs if loss is objective.discriminator or objective.pairs else (inputs[1],)
        call = loss if len(needed) == 2 else lambda f: objective.generator(f.new_empty(0), f)
        assert torch.autograd.gradcheck(call, needed)
    fake.requires_grad_(True)
    (slope,) = torch.autograd.grad(objective.generator(real, fake), fake)
    np.testing.assert_allclose(slope * len(fake), [SLOPE[name](r, f) for r, f in pairs], rtol=1e-12)


def test_logits_of_any_size_give_finite_losses_and_gradients() -> None:
    for name, objective in OBJECTIVES.items():
        for scale in (-1e4, 1e4):
            real, fake = torch.full((3,), -scale).requires_grad_(True), torch.full((3,), scale).requires_grad_(True)
            total = objective.discriminator(real, fake) + objective.generator(real, fake)
            gradients = torch.autograd.grad(total, (real, fake))
            assert torch.isfinite(torch.stack([total, *(g.sum() for g in gradients)])).all(), name


def test_at_equilibrium_the_game_is_worth_minus_log_4() -> None:
    half = torch.zeros(5, dtype=torch.float64)  # D = 1/2
    assert float(-discriminator_loss(half, half)) == pytest.approx(-math.log(4), abs=1e-15)
    assert float(minimax_generator_loss(half)) == pytest.approx(-math.log(2), abs=1e-15)
    assert float(relativistic_discriminator_loss(half, half)) == pytest.approx(math.log(2), abs=1e-15)


def test_only_the_non_saturating_loss_pushes_a_generator_whose_samples_are_rejected() -> None:
    for name, push in (("minimax", 0.0), ("non_saturating", 1.0), ("relativistic", 1.0)):
        fake = torch.full((4,), -20.0, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(OBJECTIVES[name].generator(-fake.detach(), fake), fake)
        assert float(-slope.sum()) == pytest.approx(push, abs=1e-8)


class Discrete:
    """Data and samples as often as the counts say, so that a batch's mean is an expectation exactly."""

    def __init__(self, n_real: Tensor, n_fake: Tensor) -> None:
        atoms = torch.arange(len(n_real))
        self.real, self.fake = atoms.repeat_interleave(n_real), atoms.repeat_interleave(n_fake)
        self.p, self.q = n_real.double() / n_real.sum(), n_fake.double() / n_fake.sum()
        self.jsd = float(jensenshannon(self.p, self.q) ** 2)  # SciPy's is the root, in nats.

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> float:
        """A loss for the logit of each value, (6,)."""
        return float(loss(logits[self.real], logits[self.fake]))

    def best(self) -> Tensor:
        """The logits of D* = p / (p + q); where one is 0, far out instead of infinite."""
        return (self.p.log() - self.q.log()).clamp(-60, 60)


@pytest.mark.parametrize("counts", COUNTS)
def test_the_best_discriminators_value_is_twice_the_jsd_less_log_4(counts: tuple[Tensor, Tensor]) -> None:
    game = Discrete(*counts)
    best = game.loss(discriminator_loss, game.best())
    assert -best == pytest.approx(-math.log(4) + 2 * game.jsd, abs=1e-12)
    noise = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.3, 3.0):
        other = game.best() + scale * torch.randn(6, generator=noise, dtype=torch.float64)
        assert game.loss(discriminator_loss, other) > best


@pytest.mark.parametrize("counts", COUNTS)
def test_other_objectives_reach_their_own_divergences(counts: tuple[Tensor, Tensor]) -> None:
    game = Discrete(*counts)
    p, q = game.p, game.q
    total = p + q
    optima = (
        # Mao et al. 2017, eq. 5 with a = 0, b = 1.
        (least_squares_discriminator_loss, p / total, float((p * q / total).sum()) / 2),
        # Lim & Ye 2017, section 3: 2 - 2 TV.
        (hinge_discriminator_loss, torch.sign(p - q), 2 * float(torch.minimum(p, q).sum())),
    )
    noise = torch.Generator().manual_seed(0)
    for loss, best, divergence in optima:
        assert game.loss(loss, best) == pytest.approx(divergence, abs=1e-12)
        for scale in (0.01, 0.3, 3.0):
            other = best + scale * torch.randn(6, generator=noise, dtype=torch.float64)
            assert game.loss(loss, other) >= divergence - 1e-12


def test_the_best_lipschitz_critic_finds_the_wasserstein_distance() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0, 1, 40), rng.normal(1, 2, 40)
    # The best critic on a line rises where less of the data than of the samples lies to the left, and falls elsewhere.
    x = np.sort(np.concatenate([real, fake]))
    behind = (real[None] <= x[:-1, None]).mean(1) - (fake[None] <= x[:-1, None]).mean(1)
    critic = np.concatenate([[0], np.cumsum(-np.sign(behind) * np.diff(x))])
    scores = [torch.from_numpy(np.interp(points, x, critic)) for points in (real, fake)]
    assert -float(wasserstein_critic_loss(*scores)) == pytest.approx(wasserstein_distance(real, fake), rel=1e-12)


def test_no_relativistic_discriminator_does_better_than_chance_on_equal_distributions() -> None:
    noise = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.1, 2.0):
        scores = scale * torch.randn(9, generator=noise, dtype=torch.float64)
        every_pair = relativistic_discriminator_loss(scores.repeat_interleave(9), scores.repeat(9))
        assert float(every_pair) >= math.log(2) - 1e-12


@pytest.mark.parametrize("counts", COUNTS)
def test_jsd_bound_is_a_bound_whatever_the_discriminator(counts: tuple[Tensor, Tensor]) -> None:
    game = Discrete(*counts)
    noise = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 10.0):
        for _ in range(20):
            logits = scale * torch.randn(6, generator=noise, dtype=torch.float64)
            assert game.loss(jsd_bound, logits) <= game.jsd + 1e-12
    assert game.loss(jsd_bound, game.best()) <= game.jsd + 1e-12


@pytest.mark.parametrize("counts", COUNTS)
def test_jsd_bound_of_the_best_discriminator_is_the_divergence(counts: tuple[Tensor, Tensor]) -> None:
    game = Discrete(*counts)
    assert game.loss(jsd_bound, game.best()) == pytest.approx(game.jsd, abs=1e-12)


def test_jsd_bound_is_tight_for_the_best_discriminator_and_blind_to_the_scores_zero() -> None:
    half = torch.tensor([5, 3, 2, 1, 1])
    game = Discrete(half, half.flip(0))  # A mirror image: D*'s logits of data and of samples lie about 0.
    assert 0.1 < game.jsd < math.log(2)
    assert game.loss(jsd_bound, game.best()) == pytest.approx(game.jsd, abs=1e-12)
    assert game.loss(jsd_bound, game.best() + 3.0) == pytest.approx(game.jsd, abs=1e-12)


def test_penalties_of_a_linear_function_are_those_of_its_slope() -> None:
    a = torch.tensor([3.0, -1.0, 2.0], requires_grad=True)
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    length = float(a.detach().norm())
    zero, one = zero_centred_penalty(x @ a, x), one_centred_penalty(x @ a, x)
    assert float(zero.detach()) == pytest.approx(length**2, rel=1e-6)
    assert float(one.detach()) == pytest.approx((length - 1) ** 2, rel=1e-6)
    # What a training follows: d |a|^2 / da = 2 a, and d (|a| - 1)^2 / da = 2 (|a| - 1) a / |a|.
    torch.testing.assert_close(torch.autograd.grad(zero, a)[0], 2 * a.detach())
    torch.testing.assert_close(torch.autograd.grad(one, a)[0], 2 * (length - 1) / length * a.detach())


def test_penalties_of_images_and_of_a_flat_discriminator() -> None:
    x = torch.randn((4, 2, 3, 3), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    norms = x.detach().flatten(1).norm(dim=1)
    logits = 0.5 * x.square().flatten(1).sum(1)  # its gradient at x is x
    assert float(zero_centred_penalty(logits, x).detach()) == pytest.approx(float(norms.square().mean()), rel=1e-6)
    logits = 0.5 * x.square().flatten(1).sum(1)
    assert float(one_centred_penalty(logits, x).detach()) == pytest.approx(float((norms - 1).square().mean()), rel=1e-6)
    a = torch.zeros(18, requires_grad=True)
    penalty = one_centred_penalty(x.flatten(1) @ a, x)
    assert float(penalty.detach()) == pytest.approx(1.0, abs=1e-5)
    assert torch.isfinite(torch.autograd.grad(penalty, a)[0]).all(), "the root has no gradient at 0"


@pytest.mark.parametrize("penalty", [zero_centred_penalty, one_centred_penalty])
def test_penalties_reach_the_parameters_as_finite_differences_say(penalty: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    x = torch.randn((6, 3), dtype=torch.float64)

    def value() -> Tensor:
        at = x.clone().requires_grad_(True)
        return penalty(network(at).squeeze(1), at)

    # Of the gradient by x itself, by finite differences of the logits.
    step = 1e-5
    with torch.no_grad():
        moves = step * torch.eye(3, dtype=torch.float64)
        slopes = torch.stack([(network(x + m) - network(x - m)).squeeze(1) / (2 * step) for m in moves], 1)
    squares = slopes.square().sum(1)
    expected = squares.mean() if penalty is zero_centred_penalty else (squares.sqrt() - 1).square().mean()
    assert float(value().detach()) == pytest.approx(float(expected), rel=1e-5)

    # And of the penalty by each weight. The last bias does not move the slopes.
    weights = list(network.parameters())[:-1]
    for weight, gradient in zip(weights, torch.autograd.grad(value(), weights), strict=True):
        assert float(gradient.abs().max()) > 1e-4
        for i in range(weight.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.view(-1)[i] += sign * 1e-3
                values.append(float(value().detach()))
                with torch.no_grad():
                    weight.view(-1)[i] -= sign * 1e-3
            # The penalties are float32, so a difference of 2e-3 resolves some 1e-4 of a slope.
            assert float(gradient.view(-1)[i]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3, abs=5e-4)


def test_between_lies_on_the_line_from_real_to_fake() -> None:
    noise = torch.Generator().manual_seed(0)
    real = torch.randn((200, 2, 4, 4), generator=noise, requires_grad=True)
    fake = torch.randn((200, 2, 4, 4), generator=noise, requires_grad=True)
    middle = between(real, fake, torch.Generator().manual_seed(7))
    way = (real - fake).detach().flatten(1)
    moved = (middle - fake).detach().flatten(1)
    share = (moved * way).sum(1) / way.square().sum(1)
    torch.testing.assert_close(moved, share[:, None] * way, rtol=0, atol=1e-5)
    assert 0 <= float(share.min()) < 0.05
    assert 0.95 < float(share.max()) <= 1
    assert float(share.mean()) == pytest.approx(0.5, abs=0.08)
    assert middle.is_leaf, "the players get no gradient through the points"
    assert middle.requires_grad
    assert torch.equal(middle, between(real, fake, torch.Generator().manual_seed(7)))
    assert not torch.equal(middle, between(real, fake, torch.Generator().manual_seed(8)))


def test_the_gradient_penalty_of_packs_is_of_the_packs_gradient() -> None:
    """A linear critic of unit gradient on packs of three pairs has no penalty; the seventh item is in no pack."""
    weight = torch.nn.functional.normalize(torch.randn(6, generator=torch.Generator().manual_seed(0)), dim=0)
    x = torch.randn(7, 2, requires_grad=True)
    logits = x[:6].reshape(2, 6) @ weight
    assert float(one_centred_penalty(logits, x).detach()) == pytest.approx(0, abs=1e-6)
    assert float(one_centred_penalty(3 * logits, x).detach()) == pytest.approx(4, rel=1e-5)
