"""Spaces say what they hold and refuse what does not fit."""

import math

import numpy as np
import pytest
import torch

from triptych.errors import InputError
from triptych.spaces import ImageSpace, PointSpace, space_from_dict, space_to_dict


@pytest.mark.parametrize(
    "space",
    [
        ImageSpace(1, 8, 8, 17),
        ImageSpace(3, 32, 32),
        ImageSpace(1, 4, 4, 2, palette=((0, 0, 0), (255, 0, 9))),
        PointSpace(2, (0.5, 1.0), 2.0),
        PointSpace(1),
    ],
)
def test_a_space_survives_json(space: ImageSpace | PointSpace) -> None:
    assert space_from_dict(space_to_dict(space)) == space


def test_bits_per_dim() -> None:
    assert ImageSpace(1, 2, 2, 4).bits_per_dim(4 * math.log(4)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ImageSpace(0, 8, 8), "channels"),
        (lambda: ImageSpace(1, 8, 8, 1), "levels"),
        (lambda: ImageSpace(3, 8, 8, 2, palette=((0, 0, 0), (1, 1, 1))), "palette"),
        (lambda: ImageSpace(1, 8, 8, 3, palette=((0, 0, 0), (1, 1, 1))), "palette"),
        (lambda: PointSpace(0), "dim"),
        (lambda: PointSpace(2, (1.0,)), "center"),
        (lambda: PointSpace(2, None, 0.0), "scale"),
        (lambda: space_from_dict({"kind": "sound"}), "sound"),
    ],
)
def test_impossible_spaces_are_refused(make, word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.zeros((2, 1, 8, 7), dtype=torch.uint8), "shape"),
        (torch.zeros((2, 1, 8, 8)), "dtype"),
        (torch.full((2, 1, 8, 8), 17), "0 .. 16"),
        (np.full((2, 1, 8, 8), -1), "-1"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, word: str) -> None:
    with pytest.raises(InputError, match=word):
        ImageSpace(1, 8, 8, 17).check(x)


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.zeros((2, 3)), "shape"),
        (torch.zeros((2, 2), dtype=torch.int64), "dtype"),
        (torch.tensor([[0.0, float("nan")]]), "NaN"),
    ],
)
def test_points_that_do_not_fit_are_refused(x: torch.Tensor, word: str) -> None:
    with pytest.raises(InputError, match=word):
        PointSpace(2).check(x)


def test_good_data_passes() -> None:
    ImageSpace(1, 8, 8, 17).check(torch.full((2, 1, 8, 8), 16, dtype=torch.uint8))
    ImageSpace(1, 8, 8, 17).check(np.zeros((0, 1, 8, 8), np.uint8))
    PointSpace(2).check(np.zeros((4, 2), np.float32))
