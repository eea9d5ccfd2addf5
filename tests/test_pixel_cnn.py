"""PixelCNN: what is its own; `test_autoregressive.py` holds what it shares with all autoregressive models."""

from __future__ import annotations

import pytest
import torch

from triptych.errors import InputError
from triptych.models.registry import create_model, model_options
from triptych.models.tractable.pixel_cnn import PixelCNN
from triptych.spaces import ImageSpace


def test_more_than_256_levels() -> None:
    model = PixelCNN(ImageSpace(1, 2, 2, 1000), hidden=6, n_blocks=2)
    x = model.sample(8, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.int32
    assert x.max() > 255
    assert model.log_prob(x).shape == (8,)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="hidden is 32; it must be a multiple of the 3 channels, such as 33"):
        PixelCNN(ImageSpace(3, 4, 4), hidden=32)
    for options in ({"n_blocks": 0}, {"kernel_size": 4}, {"kernel_size": 1}, {"dropout": 1.0}, {"hidden": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            PixelCNN(ImageSpace(1, 4, 4), **options)  # type: ignore[arg-type]


def test_the_registry_knows_it() -> None:
    assert "hidden" in model_options("pixel_cnn")
    assert isinstance(create_model("pixel_cnn", ImageSpace(3, 4, 4, 8), n_blocks=1), PixelCNN)
