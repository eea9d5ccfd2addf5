"""What the tests of adversarial models share."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.models.adversarial import AdversarialModel
from triptych.models.base import Batch
from triptych.spaces import ImageSpace

SIZES = [(3, 2), (8, 8), (9, 7), (28, 28), (32, 32), (64, 64)]


def data_of(space: ImageSpace, n: int, seed: int = 0) -> Tensor:
    """Random images, the same for the same seed."""
    drawn = torch.randint(space.levels, (n, *space.shape), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8 if space.levels <= 256 else torch.int32)


def shake(model: AdversarialModel) -> None:
    """Moves all parameters, so that what starts at zero says something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def check_players(model: AdversarialModel, space: ImageSpace) -> None:
    """Each player's loss moves it alone, every parameter of it; samples have the space's shape."""
    batch = Batch(data_of(space, 4), torch.arange(4) % 3)
    model.loss(batch, "discriminator").total.backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    judges, _ = model.players()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in judges)
    model.loss(batch, "generator").total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.eval().sample(2).shape == (2, *space.shape)
