"""What the tests of adversarial models share."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.models.adversarial import AdversarialModel
from triptych.spaces import ImageSpace


def data_of(space: ImageSpace, n: int, seed: int = 0) -> Tensor:
    """Random images, the same for the same seed."""
    drawn = torch.randint(space.levels, (n, *space.shape), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8 if space.levels <= 256 else torch.int32)


def shake(model: AdversarialModel) -> None:
    """Moves all parameters, so that what starts at zero says something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
