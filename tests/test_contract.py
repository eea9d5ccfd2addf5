"""What every registered model promises: a new one is tested the day its file is added."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.config import TrainConfig
from triptych.errors import InputError
from triptych.models import registry
from triptych.models.base import (
    ApproximateDensity,
    Batch,
    Completed,
    Estimated,
    GenerativeModel,
    ImplicitDensity,
    LatentModel,
    Likelihood,
    TractableDensity,
)
from triptych.models.implicit.pix2pix import Pix2Pix
from triptych.spaces import ImageSpace, PointSpace, Space
from triptych.training.files import read_weights, write_weights

SPACES: dict[str, Space] = {
    "grey 8x8, 17 levels": ImageSpace(1, 8, 8, 17),
    "binary 9x12": ImageSpace(1, 9, 12, 2),
    "RGB 8x10, 256 levels": ImageSpace(3, 8, 10, 256),
    "palette 8x8": ImageSpace(1, 8, 8, 5, palette=((0, 0, 0), (9, 9, 9), (255, 0, 0), (0, 255, 0), (0, 0, 255))),
    "2-D points": PointSpace(2, (1.0, -2.0), 3.0),
    "1-D points": PointSpace(1, (0.5,), 0.2),
}
SMALL: dict[str, Any] = {"hidden": 12, "n_blocks": 1, "n_layers": 1, "n_components": 3, "n_latents": 4}
MODELS = registry.find_models()


def supported() -> list[Any]:
    cases = []
    for name in MODELS:
        for title, space in SPACES.items():
            for n_classes in (0, 3):
                try:
                    registry.create_model(name, space, n_classes=n_classes)
                except InputError:
                    continue  # test_unsupported_spaces_are_refused looks at these.
                cases.append(pytest.param(name, space, n_classes, id=f"{name}, {title}, {n_classes} classes"))
    return cases


def build(name: str, space: Space, n_classes: int = 0, seed: int = 0) -> GenerativeModel:
    """A small model whose weights are shaken, so that no output is blank by initialisation."""
    options = {key: value for key, value in SMALL.items() if key in registry.model_options(name)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = registry.create_model(name, space, n_classes=n_classes, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    if isinstance(model, Estimated):
        for _ in model.estimate(data(space, 60), labels(n_classes, 60), generator=torch.Generator().manual_seed(0)):
            pass
    if isinstance(model, Completed):
        model.complete(data(space, 60), labels(n_classes, 60), generator=torch.Generator().manual_seed(0))
    return model.eval()


def data(space: Space, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(space, ImageSpace):
        dtype = torch.uint8 if space.levels <= 256 else torch.int32
        return torch.randint(space.levels, (n, *space.shape), generator=generator).to(dtype)
    return torch.randn((n, space.dim), generator=generator) * space.scale + torch.tensor(space.center)


def labels(n_classes: int, n: int) -> Tensor | None:
    return torch.arange(n) % n_classes if n_classes else None


def scores(model: GenerativeModel, x: Tensor, y: Tensor | None) -> Tensor | None:
    """Log-likelihood or bound with the same noise for the same position, or some number of the code where a model has
    neither; None for an implicit model."""
    with torch.no_grad():
        if isinstance(model, TractableDensity):
            return model.log_prob(x, y)
        if isinstance(model, ApproximateDensity):
            return model.elbo(x, labels=y, generator=torch.Generator().manual_seed(0))
        if isinstance(model, LatentModel) and not isinstance(model, ImplicitDensity):
            return -1 - model.encode(x, y).square().sum(1)
    return None


@pytest.mark.parametrize(("name", "space", "n_classes"), supported())
class TestEveryModel:
    def test_is_of_its_panel(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        panels = {"tractable": TractableDensity, "approximate": LatentModel, "implicit": (ImplicitDensity, Pix2Pix)}
        assert isinstance(model, panels[MODELS[name]])
        assert model.panel == MODELS[name]
        if isinstance(model, ImplicitDensity):
            assert not any(hasattr(model, method) for method in ("log_prob", "elbo", "log_weights"))

    def test_stored_options_make_the_same_model(self, name: str, space: Space, n_classes: int) -> None:
        given = {key: value for key, value in SMALL.items() if key in registry.model_options(name)}
        for options in ({}, given):
            model = registry.create_model(name, space, n_classes=n_classes, **options)
            resolved = registry.resolved_options(name, model)
            assert None not in resolved.values()
            assert {key: resolved[key] for key in options} == options
            json.dumps(resolved)
            again = registry.create_model(name, space, n_classes=n_classes, **resolved)
            shapes, shapes_again = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, again))
            assert shapes == shapes_again
            assert registry.resolved_options(name, again) == resolved

    def test_draws_fit_the_space(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        x = model.sample(5)
        space.check(x)
        assert x.shape == (5, *space.shape)
        wanted = torch.float32
        if isinstance(space, ImageSpace):
            wanted = torch.uint8 if space.levels <= 256 else torch.int32
        assert x.dtype == wanted
        assert not x.requires_grad
        assert model.sample(0).shape == (0, *space.shape)
        assert not model.training

    def test_draws_depend_on_the_generator_alone(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        y = labels(n_classes, 6)

        def draw(seed: int) -> Tensor:
            return model.sample(6, labels=y, generator=torch.Generator().manual_seed(seed))

        before = torch.get_rng_state()
        first, again, other = draw(1), draw(1), draw(2)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(before, torch.get_rng_state())

    def test_every_parameter_learns_in_some_phase(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes).train()
        batch = Batch(data(space, 8), labels(n_classes, 8))
        reached = set()
        for phase in model.phases():
            model.zero_grad(set_to_none=True)
            loss = model.loss(batch, phase.name, generator=torch.Generator().manual_seed(0))
            assert loss.total.shape == ()
            assert loss.total.isfinite()
            assert all(term.shape == () and not term.requires_grad for term in loss.terms.values())
            assert all(p.grad is None for p in model.parameters()), "loss must not call backward"
            loss.total.backward()
            reached |= {id(p) for p in phase.parameters if p.grad is not None and p.grad.abs().sum() > 0}
        missed = [key for key, parameter in model.named_parameters() if id(parameter) not in reached]
        assert not missed

    def test_loss_depends_on_the_generator_alone(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        batch = Batch(data(space, 8), labels(n_classes, 8))
        for phase in model.phases():
            first, again = (
                model.loss(batch, phase.name, generator=torch.Generator().manual_seed(3)).total.detach() for _ in "ab"
            )
            assert torch.equal(first, again)

    def test_scores_are_finite_nats_per_item(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        nats = scores(model, data(space, 4), labels(n_classes, 4))
        if nats is None:
            return
        assert nats.shape == (4,)
        assert nats.dtype == torch.float32
        assert nats.isfinite().all()
        if isinstance(space, ImageSpace):
            assert (nats < 0).all(), "a probability of an image is below 1"

    def test_a_score_does_not_depend_on_the_batch(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        x, y = data(space, 6), labels(n_classes, 6)
        if isinstance(model, ApproximateDensity):
            with torch.no_grad():  # The noise is of a batch; what the networks make of an item must not be.
                whole = model.encode(x, y)
                single = torch.cat([model.encode(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(6)])
        else:
            whole_or_none = scores(model, x, y)
            if whole_or_none is None:
                return
            whole = whole_or_none
            parts = [scores(model, x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(6)]
            single = torch.cat([part for part in parts if part is not None])
        torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)

    def test_weights_survive_a_file(self, name: str, space: Space, n_classes: int, tmp_path: Path) -> None:
        model, other = build(name, space, n_classes), build(name, space, n_classes, seed=5)
        write_weights(tmp_path / "model.safetensors", model.state_dict())
        other.load_state_dict(read_weights(tmp_path / "model.safetensors"))
        y = labels(n_classes, 4)
        draws = [m.sample(4, labels=y, generator=torch.Generator().manual_seed(0)) for m in (model, other)]
        assert torch.equal(*draws)
        x = data(space, 4)
        nats = scores(model, x, y)
        if nats is not None:
            assert torch.equal(nats, scores(other, x, y))

    def test_labels(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        if n_classes == 0:
            with pytest.raises(InputError, match="not class-conditional"):
                model.sample(2, labels=torch.zeros(2, dtype=torch.int64))
            return
        noise = torch.Generator()
        draws = [model.sample(8, labels=torch.full((8,), y), generator=noise.manual_seed(0)).float() for y in (0, 1)]
        assert not torch.equal(draws[0], draws[1]), "the label must matter to draws"
        for wrong in (torch.full((2,), n_classes), torch.full((2,), -1), torch.zeros(3, dtype=torch.int64)):
            with pytest.raises(InputError, match="labels"):
                model.sample(2, labels=wrong)
        x = data(space, 2)
        first, second = (scores(model, x, torch.full((2,), y)) for y in (0, 1))
        if first is not None:
            assert not torch.equal(first, second), "the label must matter to scores"
            with pytest.raises(InputError, match="give labels"):
                scores(model, x, None)

    def test_data_of_another_space_is_refused(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        if isinstance(model, ImplicitDensity | Pix2Pix):
            return
        y = labels(n_classes, 2)
        with pytest.raises(InputError, match="shape"):
            scores(model, torch.zeros((2, 7, 7)), y)
        x = data(space, 2).double()
        x[0] = float("nan")
        with pytest.raises(InputError, match=r"dtype|NaN"):
            scores(model, x, y)

    def test_a_bound_tightens(self, name: str, space: Space, n_classes: int) -> None:
        model = build(name, space, n_classes)
        if not isinstance(model, ApproximateDensity):
            return
        x, y = data(space, 4), labels(n_classes, 4)
        noise = torch.Generator()
        with torch.no_grad():
            elbo = model.elbo(x, 100, labels=y, generator=noise.manual_seed(0)).mean()
            weights = model.log_weights(x, 100, labels=y, generator=noise.manual_seed(1))
            iwae = model.iwae(x, 100, labels=y, generator=noise.manual_seed(2)).mean()
            z = model.encode(x, y)
            assert model.decode(z, y).shape == x.shape
            space.check(model.decode(z, y))
        assert iwae >= elbo - 1e-3
        error = float(weights.std(0).mean()) * (2 / 100) ** 0.5
        assert float(weights.mean()) == pytest.approx(float(elbo), abs=6 * error + 0.1), "both estimate the same bound"


def test_unsupported_spaces_are_refused_with_a_word() -> None:
    with pytest.raises(InputError, match="images"):
        registry.create_model("pixel_cnn", PointSpace(2))
    with pytest.raises(InputError, match="palette"):
        registry.create_model("gaussian_mixture", SPACES["palette 8x8"])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    space = SPACES["grey 8x8, 17 levels"]
    with pytest.raises(InputError, match="Did you mean 'pixel_cnn'"):
        registry.create_model("pixelcnn", space)
    with pytest.raises(InputError, match="Did you mean 'n_latents'"):
        registry.create_model("vae", space, n_latent=3)
    with pytest.raises(InputError, match="must be"):
        registry.create_model("vae", space, n_latents="many")
    with pytest.raises(InputError, match="at least 1"):
        registry.create_model("vae", space, n_latents=0)


def test_no_option_has_the_name_of_a_training_setting() -> None:
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in MODELS:
        assert not settings & set(registry.model_options(name))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for panel in registry.PANELS:
        (tmp_path / panel).mkdir()
    (tmp_path / "tractable" / "twin.py").touch()
    (tmp_path / "implicit" / "twin.py").touch()
    with pytest.raises(RuntimeError, match="twin"):
        registry.find_models(tmp_path)


def test_likelihood_says_what_it_is() -> None:
    likelihood = Likelihood(torch.zeros(3), "lower bound", "discrete", 5)
    assert (likelihood.kind, likelihood.measure, likelihood.n_samples) == ("lower bound", "discrete", 5)
