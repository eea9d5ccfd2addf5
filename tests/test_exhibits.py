"""The exhibits: what they are to show, they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.exhibits import holes


def test_reconstruction_alone_leaves_holes_between_the_codes(tmp_path: Path) -> None:
    data = load_data("digits", limit=300)
    without, with_kl = holes(data, out=tmp_path / "holes.png", budget="120steps", verbose=False)
    assert np.median(without.sigma) < 0.6 * np.median(with_kl.sigma)
    assert without.distance > 1.5 * with_kl.distance
    with Image.open(tmp_path / "holes.png") as picture:
        assert picture.size[0] > 1000
    assert {path.name for path in (tmp_path / "holes").iterdir()} == {"with-kl", "without-kl"}


def test_what_cannot_be_drawn_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="about images"):
        holes(load_data("moons"), out=tmp_path / "holes.png")
    with pytest.raises(InputError, match=r"holes\.jpg"):
        holes(load_data("digits"), out=tmp_path / "holes.jpg")
    assert not list(tmp_path.iterdir())
