"""The importance-weighted bound of one and two layers against what can be computed exactly, and its gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.models.approximate.iwae import IWAE
from triptych.models.base import Batch
from triptych.spaces import ImageSpace, PointSpace

SPACE = ImageSpace(1, 2, 2, 2)


def shaken(seed: int = 0, **options: Any) -> IWAE:
    torch.manual_seed(seed)
    model = IWAE(SPACE, n_latents_above=1, n_latents_below=2, hidden=4, network="mlp", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def all_images() -> Tensor:
    return torch.tensor(list(itertools.product(range(2), repeat=4))).reshape(-1, 1, 2, 2)


def prior_estimate(model: IWAE, x: Tensor, n: int = 50_000) -> Tensor:
    """log p(x) by averaging p(x|z) over draws from the prior."""
    z = torch.randn((n, model.n_latents), generator=torch.Generator().manual_seed(5))
    outputs = model.decoder_output(z)
    rows = [model.observation.log_prob(outputs, image.expand(n, *image.shape)) for image in x]
    return torch.stack(rows).logsumexp(1) - math.log(n)


@pytest.mark.parametrize("n_layers", [1, 2])
@torch.no_grad()
def test_bounds_tighten_towards_the_exact_value(n_layers: int) -> None:
    model = shaken(n_layers=n_layers)
    x = all_images()
    exact = prior_estimate(model, x)
    assert float(exact.double().exp().sum()) == pytest.approx(1, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    elbo = model.elbo(x, 800, generator=generator).mean()
    iwae_5 = torch.stack([model.iwae(x, 5, generator=generator) for _ in range(150)]).mean()
    iwae = model.iwae(x, 3000, generator=generator).mean()
    assert elbo < iwae_5 < exact.mean() + 0.01
    assert float(iwae) == pytest.approx(float(exact.mean()), abs=0.02)


@pytest.mark.parametrize("n_layers", [1, 2])
@torch.no_grad()
def test_coordinates_of_the_contract_lead_back_to_the_layers(n_layers: int) -> None:
    model = shaken(n_layers=n_layers)
    x = all_images()
    z = model.encode(x, sample=True, generator=torch.Generator().manual_seed(2))
    draw = model._draws(x, 1, None, torch.Generator().manual_seed(2))
    for layer, own in zip(model.to_layers(z), draw.z, strict=True):
        torch.testing.assert_close(layer, own[0])
    # log p(x, z) = log N(z; 0, I) + log p(x|z) - log |dz_1 / dz|: here only the part of the data is compared.
    joint = model._log_joint(x, draw.z, None)[0]
    inner = joint - model.log_likelihood(x, z)
    assert inner.isfinite().all()
    if n_layers == 1:
        torch.testing.assert_close(inner, -0.5 * (z.square() + math.log(2 * math.pi)).sum(1))


@pytest.mark.parametrize("n_layers", [1, 2])
@torch.no_grad()
def test_the_cost_of_the_layers_is_the_kl_of_the_bound(n_layers: int) -> None:
    model = shaken(n_layers=n_layers)
    x = all_images()
    generator = torch.Generator().manual_seed(0)
    kl = torch.stack([model.kl(x, generator=generator).sum(1) for _ in range(1000)]).mean(0)
    draws = [model._draws(x, 1, None, generator) for _ in range(1000)]
    reconstruction = torch.stack([model.observation.log_prob(model.decoder(d.z[0][0]), x) for d in draws]).mean(0)
    elbo = model.elbo(x, 1000, generator=generator)
    torch.testing.assert_close(reconstruction - kl, elbo, rtol=0, atol=0.2)
    assert model.kl(x).shape == (16, 1 if n_layers == 1 else 2)


def gradients(model: IWAE, x: Tensor, seed: int) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(Batch(x), "bound", generator=torch.Generator().manual_seed(seed)).total.backward()
    return {name: p.grad.flatten().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("n_layers", [1, 2])
def test_doubly_reparameterised_gradients_have_the_same_mean_and_less_noise(n_layers: int) -> None:
    x = all_images()[[1, 6, 11]]
    n = 500
    found = {}
    for gradient in ("reparameterised", "doubly"):
        model = shaken(n_layers=n_layers, n_importance=8, gradient=gradient)
        rows = [gradients(model, x, seed) for seed in range(n)]
        found[gradient] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert found["doubly"].keys() == found["reparameterised"].keys()
    noise = {"reparameterised": 0.0, "doubly": 0.0}
    for name, plain in found["reparameterised"].items():
        doubly = found["doubly"][name]
        error = (plain.var(0) / n + doubly.var(0) / n).sqrt()
        assert ((plain.mean(0) - doubly.mean(0)).abs() < 5.5 * error + 1e-5).all(), name
        if name.startswith(("encoder", "upwards")):
            noise["reparameterised"] += float(plain.var(0).sum())
            noise["doubly"] += float(doubly.var(0).sum())
    assert noise["doubly"] < 0.8 * noise["reparameterised"]


@pytest.mark.parametrize("n_layers", [1, 2])
def test_gradients_under_bf16_are_those_of_float32(n_layers: int) -> None:
    model = shaken(n_layers=n_layers, n_importance=4)
    x = all_images()
    exact = gradients(model, x, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(Batch(x), "bound", generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    loss.total.backward()
    for name, parameter in model.named_parameters():
        if name in exact:
            assert parameter.grad is not None
            difference = (parameter.grad.flatten() - exact[name]).norm()
            assert difference < 0.1 * exact[name].norm() + 1e-3, name


def test_one_draw_is_the_vae() -> None:
    model = shaken(n_importance=1, gradient="reparameterised")
    x = all_images()
    loss = model.loss(Batch(x), "bound", generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        elbo = model.elbo(x, generator=torch.Generator().manual_seed(3))
    assert float(loss.total.detach()) * SPACE.n_dims == pytest.approx(-float(elbo.mean()), rel=1e-5)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="n_layers is 3"):
        IWAE(SPACE, n_layers=3)
    with pytest.raises(InputError, match="n_importance is 0"):
        IWAE(SPACE, n_importance=0)
    with pytest.raises(InputError, match="network"):
        IWAE(PointSpace(2), network="residual")


def test_draws_grow_by_the_same_factor_in_equal_times_up_to_the_share_of_the_warm_up() -> None:
    model = IWAE(ImageSpace(1, 4, 4, 2), n_importance=49, importance_warmup=0.5, hidden=4, n_latents_above=2)
    assert [model._n_draws(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [1, 7, 49, 49]
    assert IWAE(ImageSpace(1, 4, 4, 2), n_importance=5, hidden=4, n_latents_above=2)._n_draws(0.0) == 5
