"""What `triptych data show` tells and draws."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data.load import load_data
from triptych.data.pictures import image_grid, save_items, to_rgb
from triptych.data.show import describe, draw
from triptych.errors import InputError
from triptych.spaces import ImageSpace, PointSpace

RNG = np.random.default_rng(0)


def test_describe_tells_all() -> None:
    data = load_data("digits", levels=4)
    text = "\n".join(describe(data))
    for part in (
        "digits",
        "8x8 grey images, 4 levels",
        "1797: train 1293, valid 144, test 360",
        "0 .. 3",
        "classes   10",
    ):
        assert part in text
    for part in (data.checksum, *data.found, *data.repaired):
        assert part in text
    assert text.count("####") >= 10


def test_describe_of_points_and_of_many_classes() -> None:
    assert any("entropy" in line for line in describe(load_data("moons")))
    lines = describe(load_data(np.zeros((500, 2, 2), int), labels=np.arange(500) % 50))
    assert "          ... and 10 more" in lines


def test_grid_places_every_pixel() -> None:
    space = ImageSpace(3, 2, 3)
    images = RNG.integers(0, 256, (5, 3, 2, 3))
    grid = np.asarray(image_grid(images, space, 3, scale=4))
    assert grid.shape == ((2 * 3 + 1) * 4, (3 * 4 + 1) * 4, 3)
    small = grid[::4, ::4]
    assert np.array_equal(small.repeat(4, 0).repeat(4, 1), grid)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        cell = small[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert np.array_equal(cell, image.transpose(1, 2, 0))
    assert (small[0] == small[0, 0]).all()
    assert (small[4:6, 9:12] == small[0, 0]).all()  # the empty sixth cell


@pytest.mark.parametrize(("side", "scale"), [(8, 4), (28, 2), (32, 1), (20, 2), (1, 32), (300, 1)])
def test_small_images_are_enlarged(side: int, scale: int) -> None:
    grid = image_grid(np.zeros((1, 1, side, side), int), ImageSpace(1, side, side), 1)
    assert grid.size == ((side + 2) * scale,) * 2


def test_colours_of_levels_and_palettes() -> None:
    levels = np.arange(4).reshape(1, 1, 2, 2)
    assert to_rgb(levels, ImageSpace(1, 2, 2, 4))[0, ..., 0].ravel().tolist() == [0, 85, 170, 255]
    palette = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
    assert to_rgb(levels, ImageSpace(1, 2, 2, 4, palette))[0].reshape(4, 3).tolist() == [list(c) for c in palette]
    wide = to_rgb(np.full((1, 1, 1, 1), 65535), ImageSpace(1, 1, 1, 65536))
    assert wide.ravel().tolist() == [255] * 3


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((1, 1, 3, 3), int), {}),
        (np.full((1, 1, 2, 2), 9), {}),
        (np.zeros((1, 1, 2, 2), int), {"n_columns": 0}),
        (np.zeros((1, 1, 2, 2), int), {"scale": 0}),
        (np.zeros((1, 1, 2, 2), int), {"padding": -1}),
    ],
)
def test_bad_grids(images: np.ndarray, options: dict) -> None:
    with pytest.raises(InputError):
        image_grid(images, ImageSpace(1, 2, 2, 4), **{"n_columns": 2, **options})


def test_images_of_two_channels_cannot_be_shown() -> None:
    with pytest.raises(InputError, match="2 channels"):
        to_rgb(np.zeros((1, 2, 2, 2), int), ImageSpace(2, 2, 2))


@pytest.mark.parametrize("source", ["digits", "ring8", "mixture1d", "grey", "rgb", "many classes", "points", "5-D"])
def test_draw(tmp_path: Path, source: str) -> None:
    made = {
        "grey": (np.zeros((9, 4, 4), int), None),
        "rgb": (np.zeros((9, 4, 4, 3), int), np.arange(9) % 2),
        "many classes": (np.zeros((500, 4, 4), int), np.arange(500) % 50),
        "points": (RNG.normal(size=(50, 1)), None),
        "5-D": (RNG.normal(size=(50, 5)), None),
    }
    array, labels = made.get(source, (source, None))
    path = tmp_path / "a.png"
    draw(load_data(array, labels=labels), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 30


def test_draw_lays_out_classes_by_row(tmp_path: Path) -> None:
    images = np.arange(40).reshape(40, 1, 1).repeat(32, 1).repeat(32, 2)
    data = load_data(images, labels=np.arange(40) % 2)
    draw(data, tmp_path / "a.png", n=8)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (4 * 33 + 1, 2 * 34)
        pixels = np.asarray(picture)[..., 0]
    assert (pixels[17, 17::33] % 2 == 0).all()
    assert (pixels[51, 17::33] % 2 == 1).all()


@pytest.mark.parametrize(
    ("name", "n", "says"), [("no/a.png", 4, "There is no folder"), ("", 4, "cannot be written"), ("a.png", 0, "n is 0")]
)
def test_draw_refuses(tmp_path: Path, name: str, n: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        draw(load_data("ring8"), tmp_path / name, n)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n_finite", [0, 1, 20])
def test_points_of_a_model_that_diverged_are_drawn(tmp_path: Path, dim: int, n_finite: int) -> None:
    points = np.full((20, dim), np.nan, np.float32)
    points[:n_finite] = RNG.normal(size=(n_finite, dim))
    save_items(points, PointSpace(dim), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("n", [0, 1, 10])
def test_images_are_saved_in_a_square(tmp_path: Path, n: int) -> None:
    save_items(np.zeros((n, 1, 32, 32), int), ImageSpace(1, 32, 32), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == {0: (34, 34), 1: (34, 34), 10: (4 * 33 + 1, 3 * 33 + 1)}[n]
