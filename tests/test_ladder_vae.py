"""The ladder VAE's bounds against enumeration, and its layers against the definition of z."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.evaluation.annealed import AnnealedSettings, ais
from triptych.models.approximate.ladder_vae import LadderVAE, StochasticLayer
from triptych.models.base import Batch
from triptych.spaces import ImageSpace, PointSpace


def shaken(space: ImageSpace, n_classes: int = 0, *, seed: int = 0, amount: float = 0.2, **options: Any) -> LadderVAE:
    """A small model whose weights are away from their initialisation."""
    torch.manual_seed(seed)
    model = LadderVAE(space, n_classes, **({"hidden": 4, "n_blocks": 1, "latent_channels": 2} | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape)
        for layer in layers(model):
            # A posterior that is wider than the prior here and there, but never far from it: else the weights have such
            # tails that no number of draws is enough.
            layer.posterior_of.weight *= 0.3
            layer.posterior_of.bias.copy_(torch.tensor([0.3, 0.3]).repeat_interleave(len(layer.posterior_of.bias) // 2))
    return model.eval()


def layers(model: LadderVAE) -> list[StochasticLayer]:
    return [step for step in model.way_down if isinstance(step, StochasticLayer)]


def noise(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def images(space: ImageSpace, n: int, seed: int = 0) -> Tensor:
    return torch.randint(space.levels, (n, *space.shape), generator=noise(seed))


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).reshape(-1, *space.shape)


def probabilities_from_the_prior(model: LadderVAE, x: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """p(x) of each image as the mean of p(x|z) over n draws from the prior, and its standard error, float64."""
    z = torch.randn((n, model.n_latents), generator=noise(seed))
    outputs = model.decoder_output(z)
    values = (
        torch.stack([model.observation.log_prob(outputs, item.expand(n, *item.shape)) for item in x]).double().exp()
    )
    return values.mean(1), values.std(1) / math.sqrt(n)


@pytest.mark.parametrize(
    ("space", "n_layers"), [(ImageSpace(1, 2, 2, 2), 1), (ImageSpace(1, 2, 2, 2), 2), (ImageSpace(1, 5, 1, 2), 1)]
)
@torch.no_grad()
def test_bounds_are_below_log_p_and_reach_it(space: ImageSpace, n_layers: int) -> None:
    """5x1 has latents of two sizes, 3x1 and 1x1."""
    model = shaken(space, latent_channels=1, n_layers=n_layers, amount=0.3, seed=2)
    x = all_images(space)
    p, error = probabilities_from_the_prior(model, x, 40_000)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert float((error / p).max()) < 0.04
    log_p = p.log().float()
    many = x.repeat(200, 1, 1, 1)  # of each image, in one batch: quicker than as many draws in a row
    elbo = model.elbo(many, generator=noise(1)).view(200, -1).mean(0)
    iwae_5 = model.iwae(many, 5, generator=noise(2)).view(200, -1).mean(0)
    iwae_2000 = model.log_weights(many, 10, generator=noise(3)).view(2000, -1).logsumexp(0) - math.log(2000)
    assert elbo.mean() < iwae_5.mean() < log_p.mean()
    assert log_p.mean() - elbo.mean() > 0.05, "the bounds must have something to bridge"
    torch.testing.assert_close(iwae_2000, log_p, atol=0.2, rtol=0)
    assert float(iwae_2000.mean()) == pytest.approx(float(log_p.mean()), abs=0.03)


def test_annealing_in_the_coordinates_of_z_finds_log_p() -> None:
    space = ImageSpace(1, 2, 2, 2)
    model = shaken(space, latent_channels=1, amount=0.3, seed=2)
    x = all_images(space)
    with torch.no_grad():
        p, _ = probabilities_from_the_prior(model, x, 40_000)
    settings = AnnealedSettings(n_temperatures=20, n_chains=100, n_leapfrog=3, n_pilot=10)
    annealed = ais(model, x, settings=settings, generator=noise())
    torch.testing.assert_close(annealed, p.log(), atol=0.15, rtol=0)
    assert float(annealed.mean()) == pytest.approx(float(p.log().mean()), abs=0.03)


@torch.no_grad()
def test_samples_follow_the_models_own_distribution() -> None:
    space = ImageSpace(1, 2, 2, 2)
    model = shaken(space, seed=3, amount=0.4)
    p, _ = probabilities_from_the_prior(model, all_images(space), 50_000)
    n = 5_000
    draws = model.sample(n, generator=noise()).flatten(1).long()
    counts = torch.bincount(draws @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    # 99.9 % quantile of chi-squared with 15 degrees of freedom is 37.7; p itself is off by a tenth of these counts.
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 37.7 * 1.1


@torch.no_grad()
def test_the_kl_in_closed_form_is_the_expectation_it_stands_for() -> None:
    space = ImageSpace(1, 6, 5, 3)
    model = shaken(space)
    x = images(space, 3)
    many = x.repeat(300, 1, 1, 1)
    analytic = model.elbo(many, 2, generator=noise(1)).view(300, -1).mean(0)
    sampled = model.log_weights(many, 2, generator=noise(2)).view(600, -1)
    error = sampled.std(0) / 600**0.5
    assert ((analytic - sampled.mean(0)).abs() < 5 * 2**0.5 * error).all()
    assert (error < 1).all()


@pytest.mark.parametrize("n_classes", [0, 3])
@torch.no_grad()
def test_one_noise_gives_one_z_by_every_way(n_classes: int) -> None:
    space = ImageSpace(3, 9, 6, 4)
    model = shaken(space, n_classes, n_layers=2)
    x = images(space, 4)
    labels = torch.tensor([0, 1, 2, 1]) if n_classes else None
    z = model.encode(x, labels, sample=True, generator=noise(5))
    kl = model.kl(x, labels=labels, generator=noise(5))
    assert z.shape == (4, model.n_latents)
    assert kl.shape == (4, 6)
    assert (kl > 0).all()
    reconstruction = model.log_likelihood(x, z, labels)
    torch.testing.assert_close(model.elbo(x, labels=labels, generator=noise(5)), reconstruction - kl.sum(1))
    # Five draws in a row are those of five calls, whose noise goes on.
    generator = noise(5)
    singles = torch.stack([model.log_weights(x, 1, labels=labels, generator=generator)[0] for _ in range(5)])
    torch.testing.assert_close(model.log_weights(x, 5, labels=labels, generator=noise(5)), singles)
    assert not torch.equal(z, model.encode(x, labels, sample=True, generator=noise(6)))
    assert torch.equal(model.encode(x, labels), model.encode(x, labels))


@torch.no_grad()
def test_z_is_top_first_and_in_units_of_the_prior() -> None:
    """Each layer's z is taken apart by hand and brought back."""
    space = ImageSpace(1, 8, 8, 2)
    model = shaken(space, n_layers=1)
    assert model.shapes == [(2, 1, 1), (2, 4, 4)]
    assert model.n_latents == 2 + 32
    top, below = layers(model)
    seen: dict[StochasticLayer, tuple[Tensor, Tensor]] = {}

    def record(layer: Any, inputs: Any, output: Tensor) -> None:
        seen[layer] = (inputs[0], output)

    for layer in (top, below):
        layer.register_forward_hook(record)
    z = torch.randn((3, model.n_latents), generator=noise())
    model.decoder_output(z)
    for layer, eps in ((top, z[:, :2].reshape(3, 2, 1, 1)), (below, z[:, 2:].reshape(3, 2, 4, 4))):
        h, output = seen[layer]
        state = torch.nn.functional.silu(layer.look(torch.nn.functional.silu(h)))
        mu, log_var = layer.prior(state).chunk(2, 1)
        assert mu.abs().max() > 0.05
        value = mu + (2 * torch.tanh(log_var / 4)).exp() * eps
        torch.testing.assert_close(output, h + layer.write(torch.cat([state, value], 1)))
    # What is above does not depend on what is below; the other way round it does.
    changed = z.clone()
    changed[:, 2:] += 1
    before = seen[below][0]
    model.decoder_output(changed)
    torch.testing.assert_close(seen[below][0], before)
    changed[:, :2] += 1
    model.decoder_output(changed)
    assert not torch.allclose(seen[below][0], before)


@torch.no_grad()
def test_the_posterior_of_a_layer_sees_what_was_drawn_above() -> None:
    space = ImageSpace(1, 8, 8, 2)
    model = shaken(space, n_layers=1)
    x = images(space, 200)[:1].expand(200, -1, -1, -1)
    kl = model.kl(x, generator=noise())
    torch.testing.assert_close(kl[:, 0], kl[:1, 0].expand(200))
    assert kl[:, 1].std() > 0.01


def test_gradients_reach_given_latents() -> None:
    """As annealing needs them; compared with differences in float32, hence the wide steps."""
    space = ImageSpace(1, 4, 4, 2)
    model = shaken(space)
    x = images(space, 2)
    z = torch.randn((2, model.n_latents), generator=noise(), requires_grad=True)
    (gradient,) = torch.autograd.grad(model.log_likelihood(x, z).sum(), z)
    with torch.no_grad():
        for i in range(model.n_latents):
            step = torch.zeros_like(z)
            step[:, i] = 0.02
            numeric = (model.log_likelihood(x, z + step) - model.log_likelihood(x, z - step)) / 0.04
            torch.testing.assert_close(gradient[:, i], numeric, atol=0.01, rtol=0.02)


@pytest.mark.parametrize(
    "space",
    [
        ImageSpace(1, 1, 1, 2),
        ImageSpace(3, 1, 1, 65536),
        ImageSpace(1, 7, 1, 65536),
        ImageSpace(3, 3, 13, 256),
        ImageSpace(1, 3, 2, 3, palette=((0, 0, 0), (255, 0, 0), (0, 255, 0))),
    ],
    ids=str,
)
def test_images_of_any_size_and_depth(space: ImageSpace) -> None:
    model = shaken(space, 2)
    x, labels = images(space, 3), torch.tensor([0, 1, 1])
    batch = Batch(x, labels)
    model.loss(batch, "bound", generator=noise()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert model.elbo(x, labels=labels, generator=noise()).isfinite().all()
        space.check(model.sample(3, labels=labels, generator=noise()))
        space.check(model.decode(model.encode(x, labels), labels))


@torch.no_grad()
def test_a_bound_in_bfloat16_is_near_the_bound() -> None:
    space = ImageSpace(1, 8, 8, 2)
    model = shaken(space, amount=0.1)
    x = images(space, 16)
    exact = model.elbo(x, generator=noise())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.elbo(x, generator=noise())
        assert model.encode(x).dtype == torch.float32
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=1.0, rtol=0.01)


def test_weights_of_the_kl_act_on_the_loss_alone() -> None:
    space = ImageSpace(1, 6, 6, 2)
    x = images(space, 8)

    def loss(progress: float = 1.0, **options: Any) -> tuple[float, float, float]:
        found = shaken(space, **options).loss(Batch(x, progress=progress), "bound", generator=noise())
        bound, kl = (float(found.terms[f"{name}_nats_per_image"]) for name in ("bound", "kl"))
        return float(found.total.detach()) * space.n_dims, bound, kl

    total, bound, kl = loss()
    assert total == pytest.approx(bound, rel=1e-5)
    for options, extra in (
        ({"beta": 3.0}, 2 * kl),
        ({"beta": 0.0}, -kl),
        ({"kl_warmup": 0.5, "progress": 0.25}, -0.5 * kl),
        ({"kl_warmup": 0.5, "progress": 0.75}, 0.0),
    ):
        other, same, _ = loss(**options)
        assert same == pytest.approx(bound, rel=1e-5)
        assert other == pytest.approx(bound + extra, rel=1e-4)
    per_layer = shaken(space).kl(x, generator=noise()).mean(0).detach()
    threshold = float(per_layer.mean())
    other, same, _ = loss(free_bits=threshold)
    assert same == pytest.approx(bound, rel=1e-5)
    assert other == pytest.approx(bound - kl + float(per_layer.clamp_min(threshold).sum()), rel=1e-4)
    assert float(per_layer.min()) < threshold


def test_every_layer_has_a_say_in_an_untrained_model() -> None:
    """Weights that read z start at unit gain: a change of any layer's z moves the outputs."""
    torch.manual_seed(0)
    model = LadderVAE(ImageSpace(1, 28, 28, 2)).eval()
    z = torch.randn((2, model.n_latents), generator=noise())
    with torch.no_grad():
        outputs = model.decoder_output(z)
        start = 0
        for shape in model.shapes:
            end = start + math.prod(shape)
            other = z.clone()
            other[:, start:end] = torch.randn((2, end - start), generator=noise(1))
            assert (model.decoder_output(other) - outputs).abs().mean() > 0.02 * outputs.std()
            start = end


def test_what_does_not_fit_is_refused() -> None:
    space = ImageSpace(1, 4, 4, 4)
    for options, word in (
        ({"hidden": 0}, "hidden"),
        ({"n_layers": 0}, "n_layers"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"dropout": 1.0}, "dropout"),
        ({"free_bits": -1.0}, "free_bits"),
        ({"kl_warmup": math.inf}, "kl_warmup"),
        ({"likelihood": "bernoulli"}, "likelihood"),
        ({"likelihood": "gaussian"}, "likelihood"),
    ):
        with pytest.raises(InputError, match=word):
            LadderVAE(space, **options)
    with pytest.raises(InputError, match="images"):
        LadderVAE(PointSpace(2))  # type: ignore[arg-type]
