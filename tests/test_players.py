"""What holds of both players of every adversarial model of images, at any size."""

from __future__ import annotations

import pytest
import torch
from players import data_of, shake

from triptych.models.adversarial import AdversarialModel
from triptych.models.base import Batch
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace

OPTIONS = {"big_gan": {"hidden": 4, "n_latents": 8}, "r3_gan": {"hidden": 4, "n_latents": 4}}


@pytest.mark.parametrize("size", [(3, 2), (8, 8), (9, 7), (28, 28), (32, 32), (64, 64)])
@pytest.mark.parametrize("n_classes", [0, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_any_size_is_drawn_and_judged_and_every_parameter_learns(
    name: str, n_classes: int, size: tuple[int, int]
) -> None:
    space = ImageSpace(3, *size, 256)
    torch.manual_seed(0)
    model = create_model(name, space, n_classes=n_classes, **OPTIONS[name])
    assert isinstance(model, AdversarialModel)
    shake(model)
    batch = Batch(data_of(space, 4), torch.arange(4) % 3)
    model.loss(batch, "discriminator").total.backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    judges, _ = model.players()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in judges)
    model.loss(batch, "generator").total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.eval().sample(2).shape == (2, *space.shape)
