"""Translating images: what is read, what is answered, and what the picture and the numbers say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from triptych.config import DataConfig
from triptych.data.pictures import blank_colour, to_rgb
from triptych.errors import InputError
from triptych.models.implicit.pix2pix import Pix2Pix
from triptych.spaces import ImageSpace
from triptych.translation import MAX_ROWS, check_translator, read_sources, translate, wanted_sites

SPACE = ImageSpace(1, 6, 8, 5)
PALETTE = ImageSpace(1, 4, 4, 3, ((0, 0, 0), (120, 144, 180), (250, 0, 0)))


def model_of(space: ImageSpace = SPACE, n_classes: int = 0, **options: Any) -> Pix2Pix:
    torch.manual_seed(0)
    model = Pix2Pix(space, n_classes, **{"hidden": 2, "n_latents": 3, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images_of(space: ImageSpace, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.levels, (n, *space.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file of random 6x8 images with labels 3 and 7, 5 levels, of which the left half is given."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 5, (60, 6, 8)), rng.choice([3, 7], 60)
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels)
    data = triptych.load_data(folder / "images.npz", levels=5)
    options: dict[str, Any] = {"given": "left", "hidden": 2, "n_latents": 2, "budget": "3steps", "batch_size": 8}
    triptych.fit("pix2pix", data, out=folder / "run", conditional=True, verbose=False, **options)
    return folder / "run"


class TestTranslate:
    def test_answers_keep_what_is_given_and_follow_the_seed(self) -> None:
        model, images = model_of(given="left"), images_of(SPACE, 3)
        done = translate(model, images, n=4, seed=1)
        assert done.images.shape == (3, 4, *SPACE.shape)
        assert done.images.dtype == np.uint8
        assert (done.images[..., :4] == images[:, None, :, :, :4]).all()
        assert len(np.unique(done.images[0].reshape(4, -1), axis=0)) > 1
        assert done.originals is not None
        assert np.array_equal(done.originals, images)
        again = translate(model, torch.from_numpy(images), n=4, seed=1)
        assert np.array_equal(again.images, done.images)
        assert not np.array_equal(translate(model, images, n=4, seed=2).images, done.images)

    @pytest.mark.parametrize(("space", "given"), [(SPACE, "right"), (SPACE, "top"), (SPACE, "edges"), (PALETTE, "top")])
    def test_numbers_are_those_of_what_was_wanted(self, space: ImageSpace, given: str) -> None:
        model, images = model_of(space, given=given), images_of(space, 3)
        done = translate(model, images, n=3)
        parts: dict[str, Any] = {
            "right": np.s_[..., :4],
            "top": np.s_[..., space.height // 2 :, :],
            "edges": np.s_[...],
        }
        part = parts[given]

        def difference(a: np.ndarray, b: np.ndarray) -> float:
            a, b = a[part].astype(int), b[part].astype(int)
            return float((a != b).mean() if space.palette else np.abs(a - b).mean())

        assert done.errors is not None
        assert done.spread is not None
        for i, image in enumerate(images):
            assert done.errors[i] == pytest.approx([difference(answer, image) for answer in done.images[i]])
            pairs = [difference(done.images[i, k], done.images[i, k + 1]) for k in (0, 1)]
            assert done.spread[i] == pytest.approx(np.mean(pairs))
        lines = done.describe(["a", "b", "c"])
        assert ("levels of 4" if space is SPACE else "share of pixels") in lines[0]
        assert lines[-1].startswith("mean of 3")
        assert float(lines[-1].split()[-2]) == pytest.approx(done.errors.mean(), rel=1e-3)
        assert float(lines[1].split()[-1]) == pytest.approx(done.spread[0], rel=1e-3)
        assert translate(model, images, n=1).spread is None

    def test_halves_alone_are_answered_as_those_of_whole_images(self) -> None:
        images = images_of(SPACE, 3)
        for given, part in (("left", np.s_[..., :4]), ("right", np.s_[..., 4:])):
            model = model_of(given=given)
            whole, half = translate(model, images, n=2), translate(model, images[part], n=2)
            assert np.array_equal(half.images, whole.images)
            assert half.originals is None
            assert half.errors is None
            assert half.spread is not None
            assert len(half.describe(["a", "b", "c"])) == 5
            assert not translate(model, images[part], n=1).describe(["a", "b", "c"])
        with pytest.raises(InputError, match="shape"):
            translate(model_of(given="top"), images[..., :4])
        with pytest.raises(InputError, match=r"0 \.\. 4"):
            translate(model_of(given="left"), images[..., :4] + 3)

    def test_labels_are_those_of_the_images(self) -> None:
        model, images = model_of(n_classes=2), images_of(SPACE, 2)
        first = translate(model, images, n=2, labels=[0, 1])
        other = translate(model, images, n=2, labels=[0, 0])
        assert np.array_equal(first.images[0], other.images[0])
        assert not np.array_equal(first.images[1], other.images[1])
        with pytest.raises(InputError, match="give labels"):
            translate(model, images)

    def test_what_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        model, images = model_of(), images_of(SPACE, 2)
        with pytest.raises(InputError, match="VAE does not translate images; pix2pix does"):
            check_translator(triptych.create_model("vae", SPACE))
        refused: tuple[tuple[dict[str, Any], str], ...] = (
            ({"n": 0}, "n is 0"),
            ({"seed": -1}, "seed is -1"),
            ({"out": tmp_path / "a.txt"}, "write answers"),
            ({"out": tmp_path / "none" / "a.png"}, "does not exist"),
            ({"out": tmp_path}, "not an empty folder"),
        )
        (tmp_path / "there").touch()
        for arguments, word in refused:
            with pytest.raises(InputError, match=word):
                translate(model, images, **arguments)
        with pytest.raises(InputError, match="no images"):
            translate(model, images[:0])

    def test_sites_that_are_wanted(self) -> None:
        for given, n in (("left", 24), ("right", 24), ("top", 24), ("edges", 48)):
            assert wanted_sites(model_of(given=given)).sum() == n
        assert not wanted_sites(model_of(given="left"))[:, :4].any()
        assert not wanted_sites(model_of(given="top"))[:3].any()


class TestFiles:
    def test_arrays(self, tmp_path: Path) -> None:
        images = images_of(SPACE, 2)
        done = translate(model_of(n_classes=2), images, n=3, labels=[1, 0], out=tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as found:
            assert sorted(found) == ["images", "labels", "original"]
            assert np.array_equal(found["images"], done.images)
            assert np.array_equal(found["original"], images)
            assert found["labels"].tolist() == [1, 0]
        translate(model_of(given="left"), images[..., :4], out=tmp_path / "half.npz")
        with np.load(tmp_path / "half.npz") as found:
            assert sorted(found) == ["images"]

    def test_a_folder_has_a_file_for_each_answer(self, tmp_path: Path) -> None:
        done = translate(model_of(), images_of(SPACE, 2), n=3, out=tmp_path / "new")
        names = [f"{i:06d}-{k}.png" for i in (0, 1) for k in (0, 1, 2)]
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
        with Image.open(tmp_path / "new" / "000001-2.png") as picture:
            assert np.array_equal(np.asarray(picture), to_rgb(done.images[1, 2:], SPACE)[0])

    @pytest.mark.parametrize("given", ["left", "edges"])
    def test_a_picture_has_what_is_given_the_answers_and_the_original(self, given: str, tmp_path: Path) -> None:
        model, images = model_of(given=given), images_of(SPACE, 2)
        done = translate(model, images, n=3, out=tmp_path / "a.png")
        scale = 11  # 64 / 6, rounded up
        with Image.open(tmp_path / "a.png") as picture:
            pixels = np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale]
        assert pixels.shape == (2 * 7 + 1, 10 + 1 + 28 + 1 + 10, 3)
        # Cells are padded by one pixel, and the three parts lie one pixel apart.
        columns = {"given": 1, **{f"answer {k}": 12 + 9 * k for k in range(3)}, "original": 41}
        for i, image in enumerate(images):
            rows = slice(1 + 7 * i, 7 + 7 * i)
            cells = {name: pixels[rows, first : first + 8] for name, first in columns.items()}
            assert np.array_equal(cells["original"], to_rgb(image[None], SPACE)[0])
            for k in range(3):
                assert np.array_equal(cells[f"answer {k}"], to_rgb(done.images[i, k : k + 1], SPACE)[0])
            if given == "left":
                assert np.array_equal(cells["given"][:, :4], to_rgb(image[None], SPACE)[0][:, :4])
                assert (cells["given"][:, 4:] == blank_colour(SPACE)).all()
            else:
                assert set(np.unique(cells["given"])) == {0, 255}

    def test_a_picture_of_many_images_is_cut(self, tmp_path: Path) -> None:
        translate(model_of(), images_of(SPACE, MAX_ROWS + 3), n=1, out=tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.height == (MAX_ROWS * 7 + 1) * 11


class TestSources:
    def test_of_a_run_by_its_name(self, run: Path, tmp_path: Path) -> None:
        model = check_translator(triptych.load(run))
        found = read_sources(run, model)
        assert found.names == ("test 0", "test 1", "test 2", "test 3")
        done = translate(run, found.images, n=2, labels=found.labels, out=tmp_path / "a.png")
        assert np.array_equal(done.images[:, 0, :, :, :4], found.images[..., :4])
        assert read_sources(run, model, items=[2, 0], split="train").names == ("train 2", "train 0")
        with pytest.raises(InputError, match="half is for image files"):
            read_sources(run, model, half=True)

    def test_of_image_files(self, run: Path, tmp_path: Path) -> None:
        model = check_translator(triptych.load(run))
        images = images_of(SPACE, 3)
        for i, picture in enumerate(to_rgb(images, SPACE)):
            Image.fromarray(picture).save(tmp_path / f"{2 - i}.png")
        (tmp_path / "note.txt").touch()
        found = read_sources(run, model, str(tmp_path))
        assert found.names == ("0.png", "1.png", "2.png")
        assert np.array_equal(found.images, images[::-1])
        assert found.notes == (f"{tmp_path}: 256 levels brought to 5 (3 of 3 files)",)
        assert np.array_equal(read_sources(run, model, str(tmp_path), items=[2]).images, images[:1])
        assert np.array_equal(read_sources(run, model, str(tmp_path / "1.png")).images, images[1:2])
        with pytest.raises(InputError, match="no item 3 in the folder"):
            read_sources(run, model, str(tmp_path), items=[3])
        with pytest.raises(InputError, match=r"6x8 .* 6x4"):
            read_sources(run, model, str(tmp_path), half=True)
        with pytest.raises(InputError, match="--size and --crop only"):
            read_sources(run, model, str(tmp_path), data=DataConfig(levels=5))
        halves = read_sources(run, model, str(tmp_path), half=True, data=DataConfig(size="6x4", crop="none"))
        assert halves.images.shape == (3, 1, 6, 4)
        assert halves.notes[-1].endswith("files)")
        single = read_sources(run, model, str(tmp_path / "1.png"), half=True, data=DataConfig(size="6x4", crop="none"))
        assert np.array_equal(single.images, halves.images[1:2])

    def test_a_link_out_of_a_folder_is_refused(self, run: Path, tmp_path: Path) -> None:
        model = check_translator(triptych.load(run))
        for number, picture in enumerate(to_rgb(images_of(SPACE, 2), SPACE)):
            Image.fromarray(picture).save(tmp_path / f"{number}.png")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "0.png").symlink_to(tmp_path / "0.png")
        with pytest.raises(InputError, match=r"set/0\.png' is a link out of the folder"):
            read_sources(run, model, str(tmp_path / "set"))
        (tmp_path / "set" / "0.png").unlink()
        (tmp_path / "1.png").rename(tmp_path / "set" / "1.png")
        (tmp_path / "set" / "0.png").symlink_to("1.png")
        assert read_sources(run, model, str(tmp_path / "set")).names == ("0.png", "1.png")

    def test_of_a_data_set_in_a_folder(self, run: Path, tmp_path: Path) -> None:
        model = check_translator(triptych.load(run))
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i, picture in enumerate(to_rgb(images_of(SPACE, 6, seed=ord(name)), SPACE)):
                Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
        found = read_sources(run, model, str(tmp_path), split="all", data=DataConfig(levels=5))
        assert found.names == ("all 0", "all 1", "all 2", "all 3")
        with pytest.raises(InputError, match="no file or folder"):
            read_sources(run, model, str(tmp_path / "none"))
        with pytest.raises(InputError, match="half is for models"):
            read_sources(run, model_of(given="top"), str(tmp_path), half=True)
