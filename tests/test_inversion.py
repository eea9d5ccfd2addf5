"""From x back to z: the optimisation against a closed form, and networks that learn the way back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, LatentModel
from triptych.models.implicit.gan import GAN
from triptych.models.inversion import (
    Inversion,
    InversionSettings,
    PairVerdict,
    Recognition,
    invert,
    of_usual_length,
    pair_loss,
    recognition_errors,
)
from triptych.models.registry import model_options
from triptych.objectives.adversarial import OBJECTIVES, ObjectiveName
from triptych.spaces import ImageSpace, PointSpace, Space

GREY = ImageSpace(1, 8, 8, 17)
SPACES: dict[str, Space] = {
    "grey": GREY,
    "binary": ImageSpace(1, 5, 6, 2),
    "colours": ImageSpace(3, 8, 8, 256),
    "palette": ImageSpace(1, 4, 4, 3, palette=((0, 0, 0), (255, 0, 0), (255, 255, 255))),
    "points": PointSpace(2, (1.0, -2.0), 3.0),
}
needs_encoder = pytest.mark.skipif("encoder" not in model_options("gan"), reason="gan has no option encoder")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gan(space: Space = GREY, n_classes: int = 0, **options: Any) -> GAN:
    """A small one in evaluation mode, whose labels matter; few steps of inversion."""
    torch.manual_seed(0)
    model = GAN(space, n_classes, **{"n_latents": 4, "hidden": 8} | options).eval()
    model.inversion = InversionSettings(n_starts=2, n_steps=10)
    return model


class Linear:
    """y = W z + b_label, which remembers how many latents it was given at most."""

    def __init__(self, dim: int = 6, n_latents: int = 3, n_classes: int = 1) -> None:
        self.weight = torch.randn((dim, n_latents), generator=seeded(1))
        self.bias = torch.randn((n_classes, dim), generator=seeded(2))
        self.most_rows = 0

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.most_rows = max(self.most_rows, len(z))
        return z @ self.weight.T + self.bias[torch.zeros(len(z), dtype=torch.int64) if labels is None else labels]

    def ridge(self, y: Tensor, labels: Tensor | None, weight: float) -> Tensor:
        """argmin |W z + b - y|^2 + weight |z|^2 / 2."""
        bias = self.bias[torch.zeros(len(y), dtype=torch.int64) if labels is None else labels]
        gram = self.weight.T @ self.weight + weight / 2 * torch.eye(self.weight.shape[1])
        return torch.linalg.solve(gram, self.weight.T @ (y - bias).T).T


@pytest.mark.parametrize("prior_weight", [0.0, 0.1, 5.0])
def test_of_a_linear_generator_it_is_ridge_regression(prior_weight: float) -> None:
    linear = Linear()
    y = torch.randn((7, 6), generator=seeded(3))
    settings = InversionSettings(2, 200, prior="normal", prior_weight=prior_weight)
    found = invert(linear, y, n_latents=3, settings=settings, generator=seeded())
    wanted = linear.ridge(y, None, prior_weight)
    torch.testing.assert_close(found.z, wanted, rtol=0, atol=5e-3)
    squared_error = (linear(wanted) - y).square().sum(1)
    torch.testing.assert_close(found.squared_error, squared_error, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        found.objective, squared_error + prior_weight / 2 * wanted.square().sum(1), rtol=0, atol=1e-3
    )


def test_classes_go_with_their_items() -> None:
    linear = Linear(n_classes=3)
    y, labels = torch.randn((7, 6), generator=seeded(3)), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    settings = InversionSettings(3, 200, prior="normal", max_rows=6)
    found = invert(linear, y, labels, n_latents=3, settings=settings, generator=seeded())
    torch.testing.assert_close(found.z, linear.ridge(y, labels, 0.01), rtol=0, atol=1e-3)


def test_an_item_alone_and_in_chunks_has_the_same_latent_in_bounded_memory() -> None:
    linear = Linear()
    y = torch.randn((7, 6), generator=seeded(3))

    def found(items: Tensor, max_rows: int) -> Inversion:
        settings = InversionSettings(2, n_candidates=4, n_steps=40, max_rows=max_rows)
        return invert(linear, items, n_latents=3, settings=settings, generator=seeded())

    whole = found(y, 1024)
    assert linear.most_rows == 14
    linear.most_rows = 0
    for part, together in zip(found(y, 6), whole, strict=True):
        torch.testing.assert_close(part, together)
    assert linear.most_rows == 6
    torch.testing.assert_close(found(y[3:4], 1).z, whole.z[3:4])
    assert torch.equal(found(y, 1024).z, whole.z), "the same generator, the same answer"
    assert found(y[:0], 4).z.shape == (0, 3)


def test_the_best_of_several_starts_counts() -> None:
    # From the left and from the right different valleys, the left one deeper.
    def valleys(z: Tensor, labels: Tensor | None) -> Tensor:
        return (z - 1.2).square() * (z + 1.0).square() + 0.5 * z

    y = torch.tensor([[-3.0]])
    settings = InversionSettings(learning_rate=0.05, prior="normal", prior_weight=0.0)
    ends = {
        start: float(invert(valleys, y, n_latents=1, start=torch.tensor([[start]]), settings=settings).objective)
        for start in (-2.0, 2.0)
    }
    assert ends[-2.0] < ends[2.0] - 0.5
    for seed in range(2):
        many = InversionSettings(n_starts=12, learning_rate=0.05, prior="normal", prior_weight=0.0)
        best = invert(valleys, y, n_latents=1, settings=many, generator=seeded(seed))
        assert float(best.objective) == pytest.approx(ends[-2.0], abs=1e-3)


def test_a_start_is_drawn_where_the_data_are_near() -> None:
    """A generator of 16 islands, of which the signs of four latents choose one: gradients lead to none of them."""

    def islands(z: Tensor, labels: Tensor | None) -> Tensor:
        return torch.cat([10.0 * (z[:, :4] > 0), z[:, 4:]], 1)

    z = torch.randn((40, 6), generator=seeded(1))
    found = invert(islands, islands(z, None), n_latents=6, generator=seeded())
    assert found.squared_error.max() < 0.01
    assert torch.equal(found.z[:, :4] > 0, z[:, :4] > 0)
    few = InversionSettings(n_starts=1, n_candidates=1)
    assert invert(islands, islands(z, None), n_latents=6, settings=few, generator=seeded()).squared_error.max() > 50

    def classes(z: Tensor, labels: Tensor | None) -> Tensor:
        return islands(z, None) * (1 - 2 * labels[:, None])  # type: ignore[index]

    labels = torch.arange(40) % 2
    settings = InversionSettings(n_starts=1)
    found = invert(classes, classes(z, labels), labels, n_latents=6, settings=settings, generator=seeded())
    assert found.squared_error.max() < 0.01
    with pytest.raises(InputError, match="n_candidates is 3"):
        InversionSettings(n_candidates=3)


def test_latents_keep_the_length_of_draws_where_the_generator_does_not_care() -> None:
    def direction(z: Tensor, labels: Tensor | None) -> Tensor:
        return z / z.norm(dim=1, keepdim=True)

    z = torch.randn((5, 40), generator=seeded(1))
    found = invert(direction, direction(z, None), n_latents=40, generator=seeded())
    torch.testing.assert_close(found.z.norm(dim=1), torch.full((5,), math.sqrt(39)), rtol=0, atol=0.2)
    assert float(F.cosine_similarity(found.z, z).min()) > 0.99
    lengths = of_usual_length(torch.randn((4000, 40), generator=seeded(2)) * torch.linspace(0.01, 3, 4000)[:, None])
    assert float(lengths.norm(dim=1).min()) == pytest.approx(math.sqrt(39.5) - 2, abs=1e-4)
    assert float(lengths.norm(dim=1).max()) == pytest.approx(math.sqrt(39.5) + 2, abs=1e-4)
    for n in (1, 2, 64):
        draws = torch.randn((4000, n), generator=seeded(3))
        assert float((of_usual_length(draws) == draws).all(1).float().mean()) > 0.97


@pytest.mark.parametrize("name", ["grey", "colours", "points"])
@pytest.mark.parametrize("n_classes", [0, 3])
def test_the_latent_of_a_sample_makes_it_again(name: str, n_classes: int) -> None:
    space = SPACES[name]
    model = gan(space, n_classes)
    labels = torch.arange(4) % n_classes if n_classes else None
    z = torch.randn((4, 4), generator=seeded(1))
    with torch.no_grad():
        y = model.fake(z, labels)
    settings = InversionSettings(n_starts=4, n_steps=100, prior_weight=1e-5)
    found = invert(model.fake, y, labels, n_latents=4, settings=settings, generator=seeded())
    spread = (y - y.mean(0)).square().flatten(1).sum(1).mean()
    assert float(found.squared_error.max()) < 0.02 * float(spread)
    if isinstance(space, ImageSpace):  # Of two coordinates four latents cannot be known.
        assert float(F.cosine_similarity(found.z, z).median()) > 0.98


@pytest.mark.parametrize("name", SPACES)
def test_every_implicit_model_has_latents(name: str) -> None:
    space = SPACES[name]
    model = gan(space)
    assert isinstance(model, LatentModel)
    assert (model.panel, model.has_normal_prior) == ("implicit", True)
    x = model.sample(3, generator=seeded())
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    with torch.no_grad():
        z = model.encode(x)
        assert (z.shape, z.dtype, z.requires_grad) == ((3, 4), torch.float32, False)
        space.check(model.decode(z))
        assert torch.equal(model.decode(z), model.generate(z))
        assert torch.equal(model.encode(x), z)
        assert not torch.equal(model.encode(x, generator=seeded(7)), z)
        torch.testing.assert_close(model.encode(x[1:2]), z[1:2], rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(InputError, match="shape"):
        model.encode(torch.zeros(2, 7, 7))


def test_encode_needs_the_labels_of_a_conditional_model() -> None:
    model = gan(n_classes=2)
    x = model.sample(2, generator=seeded())
    first, second = (model.encode(x, torch.full((2,), label)) for label in (0, 1))
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match="give labels"):
        model.encode(x)


def test_encode_under_autocast_is_done_in_full_precision() -> None:
    model = gan()
    x = model.sample(3, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model.encode(x)
    assert torch.equal(z, model.encode(x))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("n_classes", [0, 3])
def test_a_recognition_network_of_any_space(name: str, n_classes: int) -> None:
    model = gan(SPACES[name], n_classes)
    network = Recognition(model.space, n_classes, 4, hidden=8)
    x = model.sample(3, generator=seeded())
    labels = torch.arange(3) if n_classes else None
    z = network(model.scale(x), labels)
    assert (z.shape, z.dtype) == ((3, 4), torch.float32)
    model.recognition = network
    assert torch.equal(model.encode(x, labels), z)
    assert model.encode(x, labels).requires_grad, "a probe can fine-tune it"
    if n_classes:
        assert not torch.equal(model.encode(x, (labels + 1) % 3), z)


def test_recognition_is_learnt_from_pairs_and_data() -> None:
    linear = Linear(dim=2, n_latents=2)
    network = Recognition(PointSpace(2), 0, 2, hidden=32)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    noise = seeded()
    real = linear(torch.randn((256, 2), generator=noise))
    first = recognition_errors(network, linear, real, torch.randn((256, 2), generator=noise))
    for _ in range(200):
        errors = recognition_errors(network, linear, real, torch.randn((128, 2), generator=noise))
        optimiser.zero_grad()
        (errors.latent + errors.reconstruction).backward()
        optimiser.step()
    assert all((now < 0.1 * before).item() for now, before in zip(errors, first, strict=True))
    # Its answer is a better start than a draw.
    settings = InversionSettings(n_starts=1, n_steps=5, learning_rate=0.05, prior="normal")
    drawn = invert(linear, real, n_latents=2, settings=settings, generator=noise)
    begun = invert(linear, real, n_latents=2, settings=settings, start=network(real))
    assert float(begun.squared_error.mean()) < 0.2 * float(drawn.squared_error.mean())


def test_the_generator_is_not_taught_by_its_own_pairs() -> None:
    weight = torch.eye(2, requires_grad=True)
    network = Recognition(PointSpace(2), 0, 2, hidden=8)
    errors = recognition_errors(network, lambda z, labels: z @ weight, torch.ones(4, 2), torch.randn(4, 2))
    assert torch.autograd.grad(errors.latent, weight, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(errors.reconstruction, weight)[0].abs().sum() > 0
    shown: list[Tensor] = []

    def show(y: Tensor) -> Tensor:
        shown.append(y)
        return y.round()

    z = torch.tensor([[0.2, 0.9]])
    rounded = recognition_errors(network, lambda z, labels: z, torch.ones(1, 2), z, show=show)
    assert torch.equal(shown[0], z)
    torch.testing.assert_close(rounded.latent, (network(torch.tensor([[0.0, 1.0]])) - z).square().mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_generator_and_encoder_have_mirrored_losses(objective: ObjectiveName) -> None:
    undecided = 0.5 if objective == "least_squares" else 0.0
    real, fake = torch.randn((2, 9), generator=seeded())
    loss = pair_loss(objective, real, fake)
    # Exchanging the pairs and mirroring all logits leaves the game as it is.
    torch.testing.assert_close(pair_loss(objective, 2 * undecided - fake, 2 * undecided - real), loss)
    real.requires_grad_()
    fake.requires_grad_()
    of_real, of_fake = torch.autograd.grad(pair_loss(objective, real, fake), (real, fake))
    assert (of_real > 0).all() or objective == "least_squares"
    assert (of_fake < 0).all() or objective == "least_squares"
    if objective == "least_squares":
        torch.testing.assert_close(loss, 0.5 * ((fake - 1).square().mean() + real.square().mean()).detach())
    if objective == "non_saturating":
        torch.testing.assert_close(loss, (F.softplus(-fake).mean() + F.softplus(real).mean()).detach())


def test_a_verdict_on_pairs_sees_both() -> None:
    verdict = PairVerdict(5, 3, hidden=8)
    features, z = torch.randn((4, 5), generator=seeded()), torch.randn((4, 3), generator=seeded(1))
    logits = verdict(features, z)
    assert logits.shape == (4,)
    assert not torch.equal(verdict(features, z + 1), logits)
    assert not torch.equal(verdict(features + 1, z), logits)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_starts": 0}, "n_starts"),
        ({"n_steps": -1}, "n_steps"),
        ({"max_rows": 0}, "max_rows"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"prior_weight": -0.1}, "prior_weight"),
        ({"prior": "laplace"}, "prior is 'laplace'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        InversionSettings(**settings)


@needs_encoder
class TestEncodersOfAGAN:
    @pytest.mark.parametrize("n_classes", [0, 3])
    @pytest.mark.parametrize("conditioning", ["projection", "concatenation", "auxiliary"])
    @pytest.mark.parametrize("encoder", ["after", "bigan"])
    def test_every_part_learns(self, encoder: str, conditioning: str, n_classes: int) -> None:
        model = gan(SPACES["points"], n_classes, encoder=encoder, conditioning=conditioning).train()
        batch = Batch(torch.randn((6, 2)), torch.arange(6) % n_classes if n_classes else None)
        reached: dict[str, set[int]] = {}
        for phase in model.phases():
            model.zero_grad(set_to_none=True)
            model.loss(batch, phase.name, generator=seeded()).total.backward()
            reached[phase.name] = {id(p) for p in phase.parameters if p.grad is not None and p.grad.abs().sum() > 0}
        assert set.union(*reached.values()) == {id(parameter) for parameter in model.parameters()}
        assert model.recognition is not None
        learner = "recognition" if encoder == "after" else "generator"
        assert {id(parameter) for parameter in model.recognition.parameters()} <= reached[learner]

    def test_after_is_a_second_stage_that_leaves_the_game_as_it_was(self) -> None:
        plain, model = gan(), gan(encoder="after")
        game, again = plain.phases(), model.phases()
        assert [phase.name for phase in again] == ["discriminator", "generator", "recognition"]
        assert [phase.stage for phase in again] == [0, 0, 1]
        model.load_state_dict(plain.state_dict(), strict=False)
        batch = Batch(torch.randint(17, (4, 1, 8, 8), generator=seeded()))
        for phase in game:
            losses = [float(m.loss(batch, phase.name, generator=seeded()).total.detach()) for m in (plain, model)]
            assert losses[0] == losses[1]

    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("penalty", ["none", "r1_r2", "gradient"])
    def test_pairs_are_judged_under_every_rule(self, objective: str, penalty: str) -> None:
        model = gan(encoder="bigan", objective=objective, penalty=penalty)
        batch = Batch(torch.randint(17, (4, 1, 8, 8), generator=seeded()))
        for phase in ("discriminator", "generator"):
            first, again = (model.loss(batch, phase, generator=seeded(3)).total.detach() for _ in "ab")
            assert first.isfinite()
            assert torch.equal(first, again)

    def test_the_discriminator_tells_swapped_pairs(self) -> None:
        model = gan(encoder="bigan")
        y, z = torch.randn((4, 1, 8, 8), generator=seeded()), torch.randn((4, 4), generator=seeded(1))
        assert not torch.equal(model.judge_pair(y, z).logits, model.judge_pair(y, z.flip(0)).logits)
        assert torch.equal(model.judge_pair(y, None).logits, model.judge(y).logits)

    def test_the_encoders_phase_leaves_the_discriminator_alone(self) -> None:
        model = gan(encoder="bigan")
        model.loss(Batch(torch.randint(17, (4, 1, 8, 8))), "discriminator").total.backward()
        assert model.recognition is not None
        assert all(parameter.grad is None for parameter in model.recognition.parameters())

    def test_an_unknown_encoder_is_refused(self) -> None:
        with pytest.raises(InputError, match="encoder is 'vae'"):
            gan(encoder="vae")

    @pytest.mark.parametrize("encoder", ["after", "bigan"])
    def test_points_are_recognised_after_a_training(self, encoder: str) -> None:
        model = gan(PointSpace(1), n_latents=1, hidden=32, network="mlp", encoder=encoder).train()
        noise = seeded()
        optimisers = {
            phase.name: torch.optim.Adam(phase.parameters, phase.learning_rate, phase.betas) for phase in model.phases()
        }
        stages = sorted({phase.stage for phase in model.phases()})
        for stage in stages:
            for _ in range(200):
                for phase in (phase for phase in model.phases() if phase.stage == stage):
                    batch = Batch(torch.randn((64, 1), generator=noise))
                    optimisers[phase.name].zero_grad()
                    model.zero_grad()
                    model.loss(batch, phase.name, generator=noise).total.backward()
                    optimisers[phase.name].step()
        x = torch.linspace(-1, 1, 21)[:, None]
        with torch.no_grad():
            again = model.eval().decode(model.encode(x))
        assert float(torch.corrcoef(torch.stack([x, again]).squeeze(2))[0, 1]) > 0.9
