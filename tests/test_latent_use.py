"""Latents at work: codes, reconstructions, interpolations and traversals, in Python and on the command line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stripes
from PIL import Image
from stubs import Untrained
from test_cli import triptych as command
from test_contract import build
from torch import Generator, Tensor

import triptych
from triptych import cli
from triptych.config import DataConfig, TrainConfig
from triptych.data.dataset import Dataset, Split
from triptych.data.pictures import GROUND, to_rgb
from triptych.errors import InputError
from triptych.evaluation.latents import latent_report
from triptych.latent_use import choose_latents, latent_models, lerp, read_ends, read_items, slerp
from triptych.models.base import GenerativeModel, LatentModel
from triptych.models.registry import resolved_options
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.files import write_json, write_weights
from triptych.training.run import run_config

GREY = ImageSpace(1, 8, 8, 4)
PALETTE = ImageSpace(1, 8, 8, 4, ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
SCALE = 8  # screen pixels of a pixel of an 8x8 image, so that the image has 64

Command = Callable[[str], tuple[int, str, str]]
"""Runs a command line: status, output and errors."""


class Shift(Untrained, LatentModel):
    """z = 2 x + 1 + label: every path and every range can be told from the points that come out."""

    def __init__(self, dim: int, n_classes: int = 0) -> None:
        super().__init__(PointSpace(dim), n_classes)
        self.n_latents = dim

    def _of_class(self, n: int, labels: Tensor | None) -> Tensor | float:
        labels = self.check_labels(n, labels, draw=False)
        return 0.0 if labels is None else labels.float()[:, None]

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        mean = 2 * x + 1 + self._of_class(len(x), labels)
        return mean + torch.randn(x.shape, generator=generator) if sample else mean

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return (z - 1 - self._of_class(len(z), labels)) / 2

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return self.decode(torch.randn((n, self.n_latents), generator=generator), labels)


def points(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def save_run(folder: Path, name: str, data: Dataset, n_classes: int = 0, model: GenerativeModel | None = None) -> None:
    """An untrained model, by default a small one, as the run folder of a training on the data."""
    model = model or build(name, data.space, n_classes)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", run_config(name, resolved_options(name, model), n_classes, data, TrainConfig()))
    write_weights(folder / "model.safetensors", model.state_dict())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs on 37 striped images with labels, and on points, and with images to encode."""
    folder = tmp_path_factory.mktemp("runs")
    images, labels = stripes(60, 0)
    np.savez(folder / "images.npz", images=images[:, 0], labels=labels + 3)
    data = triptych.load_data(folder / "images.npz", levels=4)
    for name in ("vae", "autoencoder", "gan", "pixel_cnn"):
        save_run(folder / name, name, data)
    save_run(folder / "classes", "vae", data, 2)
    save_run(folder / "points", "vae", triptych.load_data("moons", limit=50))
    save_run(folder / "line", "vae", triptych.load_data("mixture1d", limit=50))
    save_run(folder / "digits", "vae", triptych.load_data("digits", limit=30))
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "white.png")
    np.save(folder / "plane.npy", points(7, 2))
    return folder


def vae(space: ImageSpace | PointSpace = GREY, n_classes: int = 0) -> LatentModel:
    model = build("vae", space, n_classes)
    assert isinstance(model, LatentModel)
    return model


def cell(picture: Image.Image, row: int, column: int, left: int = 0, top: int = 0) -> np.ndarray:
    """An 8x8 image of a grid that begins at (left, top), both in pixels of images, as RGB."""
    pixels = np.asarray(picture)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    y, x = top + 1 + 9 * row, left + 1 + 9 * column
    return pixels[y : y + 8, x : x + 8]


class TestPaths:
    def test_a_sphere_is_followed_at_even_speed(self) -> None:
        a, b = (torch.from_numpy(points(20, 6, seed)).double() for seed in (0, 1))
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        path = slerp(a, b, torch.linspace(0, 1, 5, dtype=torch.float64))
        assert path.shape == (20, 5, 6)
        torch.testing.assert_close(path[:, 0], a)
        torch.testing.assert_close(path[:, -1], b)
        torch.testing.assert_close(path.norm(dim=2), torch.ones(20, 5, dtype=torch.float64))
        angles = (path[:, 1:] * path[:, :-1]).sum(2).acos()
        whole = (a * b).sum(1).acos()
        torch.testing.assert_close(angles, (whole / 4)[:, None].expand(-1, 4))

    def test_right_angles_of_different_lengths(self) -> None:
        half = slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([0.5]))
        torch.testing.assert_close(half, torch.tensor([[[2.0, 4.0]]]) * math.sqrt(0.5))

    def test_parallel_opposite_and_zero_latents_go_straight(self) -> None:
        a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
        b = torch.tensor([[2.0, 4.0], [-1.0, -2.0], [3.0, 1.0], [1.0, 2.0]])
        share = torch.tensor([0.0, 0.25, 1.0])
        straight = a[:, None] + share[:, None] * (b - a)[:, None]
        torch.testing.assert_close(slerp(a, b, share), straight)
        torch.testing.assert_close(lerp(a, b, share), straight)
        one = slerp(torch.tensor([[-1.5]]), torch.tensor([[0.5]]), share)
        torch.testing.assert_close(one, torch.tensor([[[-1.5], [-1.0], [0.5]]]))


class TestEncode:
    def test_means_in_blocks_are_those_of_one_call(self) -> None:
        model, x = Shift(3, 4), points(600, 3)
        labels = np.arange(600) % 4
        z = triptych.encode(model, x, labels)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, 2 * x + 1 + labels[:, None], rtol=1e-6)
        assert np.array_equal(triptych.encode(model, Split(x, labels)), z)
        assert np.array_equal(triptych.encode(model, torch.from_numpy(x).double(), labels), z)

    def test_large_images_are_encoded_few_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, images = vae(), stripes(20, 0)[0]
        z, sizes, encode = triptych.encode(model, images), [], model.encode

        def listening(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            sizes.append(len(x))
            return encode(x, *rest, **options)

        monkeypatch.setattr(model, "encode", listening)
        monkeypatch.setattr("triptych.evaluation.likelihood._MAX_SITES", 8 * 64 + 3)
        np.testing.assert_allclose(triptych.encode(model, images), z, atol=1e-5)
        assert sizes == [8, 8, 4]

    def test_draws_follow_the_seed_and_spread_as_q_does(self) -> None:
        x = np.zeros((2000, 1), np.float32)
        draws = triptych.encode(Shift(1), x, sample=True, seed=3)
        assert np.array_equal(draws, triptych.encode(Shift(1), x, sample=True, seed=3))
        assert not np.array_equal(draws, triptych.encode(Shift(1), x, sample=True, seed=4))
        assert draws.mean() == pytest.approx(1, abs=0.1)
        assert draws.std() == pytest.approx(1, abs=0.1)
        assert len(np.unique(draws)) > 1990, "no block repeats another's noise"

    def test_the_file_holds_codes_labels_and_places(self, tmp_path: Path) -> None:
        x, labels = points(5, 2), np.array([1, 0, 1, 1, 0])
        z = triptych.encode(Shift(2), x, labels=None, out=tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as file:
            assert set(file) == {"z", "indices", "comment"}
            assert np.array_equal(file["z"], z)
            assert file["indices"].tolist() == [0, 1, 2, 3, 4]
        triptych.encode(Shift(2), Split(x, labels), out=tmp_path / "a.npz", indices=np.arange(5) * 2, sample=True)
        with np.load(tmp_path / "a.npz") as file:
            assert file["labels"].tolist() == labels.tolist()
            assert file["indices"].tolist() == [0, 2, 4, 6, 8]
            assert "draws" in str(file["comment"])

    @pytest.mark.parametrize("name", latent_models())
    @pytest.mark.parametrize("n_classes", [0, 2])
    def test_every_model_with_an_encoder_can_be_put_to_use(self, name: str, n_classes: int, tmp_path: Path) -> None:
        model, (images, labels) = build(name, GREY, n_classes), stripes(6, 0)
        assert isinstance(model, LatentModel)
        split = Split(images, labels if n_classes else None)
        z = triptych.encode(model, split)
        assert z.shape == (6, model.n_latents)
        done = triptych.reconstruct(model, split, out=tmp_path / "r.png")
        of_class = torch.from_numpy(labels) if n_classes else None
        with torch.no_grad():
            again = model.decode(torch.from_numpy(z), of_class).numpy()
        assert np.array_equal(done.reconstructed, again)
        ends = [Split(images[i], labels[i] if n_classes else None) for i in (slice(0, 2), slice(2, 4))]
        between = triptych.interpolate(model, *ends, labels=[0, 1] if n_classes else None, steps=3)
        assert between.items.shape == (2, 3, 1, 8, 8)
        assert between.path == ("spherical" if model.has_normal_prior else "linear")
        dims, why = choose_latents(model, split, 2)
        assert all(str(dim) in why for dim in dims)
        assert triptych.traverse(model, dims, label=0 if n_classes else None, steps=2).items.shape == (2, 2, 1, 8, 8)


class TestReconstruct:
    def test_errors_and_bound_are_those_of_the_items(self) -> None:
        model, (images, labels) = vae(n_classes=2), stripes(5, 0)
        done = triptych.reconstruct(model, images, labels, seed=2)
        assert np.array_equal(done.items, images)
        errors = [
            ((a.astype(int) - b.astype(int)) ** 2).mean() for a, b in zip(images, done.reconstructed, strict=True)
        ]
        np.testing.assert_allclose(done.errors, errors)
        assert min(errors) > 0
        assert done.bound_nats is not None
        np.testing.assert_allclose(done.bound_nats, triptych.score(model, images, labels, seed=2).nats)
        assert not np.allclose(done.bound_nats, triptych.reconstruct(model, images, labels, seed=3).bound_nats)
        lines = done.describe(list("abcde"))
        assert "levels^2" in lines[0]
        assert "nats" in lines[0]
        assert len(lines) == 1 + 5 + 1
        assert lines[-1].split()[-2:] == [f"{np.mean(errors):.4g}", f"{done.bound_nats.mean(dtype=float):.2f}"]

    def test_without_a_bound_there_is_none(self) -> None:
        done = triptych.reconstruct(Shift(2), points(3, 2))
        assert done.bound_nats is None
        assert "nats" not in done.describe(["a", "b", "c"])[0]
        np.testing.assert_allclose(done.errors, 0, atol=1e-12)
        assert done.error_name == "mean squared error, data units^2"

    def test_palettes_are_compared_by_equality(self) -> None:
        images = stripes(3, 0)[0]
        done = triptych.reconstruct(vae(PALETTE), images)
        assert done.error_name == "share of pixels that differ"
        np.testing.assert_allclose(done.errors, (done.reconstructed != images).reshape(3, -1).mean(1))

    def test_the_picture_has_each_original_above_its_reconstruction(self, tmp_path: Path) -> None:
        images = stripes(13, 0)[0]
        done = triptych.reconstruct(vae(), images, out=tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            for number in range(13):
                strip, column = divmod(number, 10)
                top = strip * (2 * 9 + 1 + 1)  # a strip is two rows of cells and its frame; a gap of one pixel follows
                assert np.array_equal(cell(picture, 0, column, top=top), to_rgb(images[[number]], GREY)[0])
                below = to_rgb(done.reconstructed[[number]], GREY)[0]
                assert np.array_equal(cell(picture, 1, column, top=top), below)
            assert (cell(picture, 0, 3, top=20) == GROUND).all()
        triptych.reconstruct(vae(), images, out=tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as file:
            assert np.array_equal(file["originals"], images)
            assert np.array_equal(file["reconstructed"], done.reconstructed)
            assert np.array_equal(file["errors"], done.errors)
            assert np.array_equal(file["bound_nats"], done.bound_nats)


class TestInterpolate:
    def test_paths_join_the_items_over_the_sphere_of_latents(self) -> None:
        a, b = points(3, 4, 0), points(3, 4, 1)
        done = triptych.interpolate(Shift(4), a, b, steps=5)
        assert done.path == "spherical"
        np.testing.assert_allclose(done.items[:, 0], a, atol=1e-6)
        np.testing.assert_allclose(done.items[:, -1], b, atol=1e-6)
        assert done.originals is not None
        assert np.array_equal(done.originals, np.stack([a, b], 1))
        ends = [torch.from_numpy(2 * x + 1).double() for x in (a, b)]
        expected = slerp(ends[0], ends[1], torch.linspace(0, 1, 5, dtype=torch.float64))
        np.testing.assert_allclose(done.z, expected, atol=1e-5)
        np.testing.assert_allclose(done.items, (done.z - 1) / 2, atol=1e-6)
        assert not np.allclose(done.items[:, 2], (a + b) / 2, atol=0.05), "half-way is not the mean"

    def test_without_a_normal_prior_they_are_straight(self) -> None:
        model = build("autoencoder", GREY)
        images = stripes(4, 0)[0]
        done = triptych.interpolate(model, images[:2], images[2:], steps=3)
        assert done.path == "linear"
        np.testing.assert_allclose(done.z[:, 1], (done.z[:, 0] + done.z[:, 2]) / 2, atol=1e-6)
        with pytest.raises(InputError, match="no normal prior to draw from; give two items"):
            triptych.interpolate(model, n=2)

    @pytest.mark.parametrize("name", ["gan", "vae"])
    def test_between_draws_from_the_prior(self, name: str) -> None:
        model = build(name, GREY)
        done = triptych.interpolate(model, n=300, steps=3, seed=1)
        assert done.items.shape == (300, 3, 1, 8, 8)
        assert done.originals is None
        ends = done.z[:, [0, 2]]
        assert ends.mean() == pytest.approx(0, abs=0.1)
        assert ends.std() == pytest.approx(1, abs=0.1)
        decode = model.generate if name == "gan" else model.decode
        assert np.array_equal(done.items[7], decode(torch.from_numpy(done.z[7])).detach().numpy())
        assert np.array_equal(done.z, triptych.interpolate(model, n=300, steps=3, seed=1).z)
        assert not np.array_equal(done.z, triptych.interpolate(model, n=300, steps=3, seed=2).z)

    def test_classes_are_those_of_both_ends_or_the_one_given(self) -> None:
        model, x = Shift(2, 3), points(2, 2)
        ends = [Split(x[[i]], np.array([i])) for i in (0, 1)]
        with pytest.raises(InputError, match="path 0 are of classes 0 and 1"):
            triptych.interpolate(model, *ends)
        done = triptych.interpolate(model, *ends, labels=[2], steps=2)
        # Encoded with their own labels, decoded as class 2.
        np.testing.assert_allclose(done.items[0], x + np.array([[0], [1]]) / 2 - 1, atol=1e-6)
        same = triptych.interpolate(model, ends[1], ends[1], steps=2)
        np.testing.assert_allclose(same.items[0], x[[1, 1]], atol=1e-6)
        unlabelled = triptych.interpolate(model, x[:1], x[1:], labels=[2], steps=2)
        np.testing.assert_allclose(unlabelled.items[0], x, atol=1e-6)
        with pytest.raises(InputError, match="give a label 0"):
            triptych.interpolate(model, x[:1], x[1:])
        prior = triptych.interpolate(model, n=4, steps=2)
        classes = np.array([0, 1, 2, 0])[:, None, None]
        np.testing.assert_allclose(prior.items, (prior.z - 1 - classes) / 2, atol=1e-6)

    def test_the_picture_has_a_path_a_row_between_its_items(self, tmp_path: Path) -> None:
        images = stripes(4, 0)[0]
        done = triptych.interpolate(vae(), images[:2], images[2:], steps=3, out=tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.info["Comment"] == "spherical interpolation"
            assert picture.size == ((10 + 1 + 28 + 1 + 10) * SCALE, 19 * SCALE)
            for row in range(2):
                assert np.array_equal(cell(picture, row, 0), to_rgb(images[[row]], GREY)[0])
                assert np.array_equal(cell(picture, row, 0, left=40), to_rgb(images[[row + 2]], GREY)[0])
                for step in range(3):
                    assert np.array_equal(cell(picture, row, step, left=11), to_rgb(done.items[row], GREY)[step])
        triptych.interpolate(vae(), images[:2], images[2:], steps=3, out=tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as file:
            assert set(file) == {"images", "z", "originals", "comment"}
            assert np.array_equal(file["images"], done.items)


class TestTraverse:
    def test_two_latents_run_over_the_range_and_the_others_stay(self) -> None:
        item = points(1, 4)
        done = triptych.traverse(Shift(4), [2, 0], item, steps=5, extent=2.0)
        assert done.z.shape == (5, 5, 4)
        values = np.linspace(-2, 2, 5)
        np.testing.assert_allclose(done.z[..., 2], np.tile(values, (5, 1)), err_msg="from left to right")
        np.testing.assert_allclose(done.z[..., 0], np.tile(values, (5, 1)).T, err_msg="from top to bottom")
        others = np.broadcast_to((2 * item + 1)[0, [1, 3]], (5, 5, 2))
        np.testing.assert_allclose(done.z[..., [1, 3]], others, rtol=1e-6)
        np.testing.assert_allclose(done.items, (done.z - 1) / 2, atol=1e-6)
        assert (triptych.traverse(Shift(4), [2, 0]).z[..., [1, 3]] == 0).all()
        assert triptych.traverse(Shift(4), [1], item).z.shape == (1, 9, 4)

    def test_all_classes_are_a_row_each(self) -> None:
        model, item = Shift(2, 3), Split(points(1, 2), np.array([1]))
        done = triptych.traverse(model, [0], item, label="all", steps=4)
        assert done.items.shape == (3, 4, 2)
        assert done.labels is not None
        assert done.labels.tolist() == [0, 1, 2]
        own = np.asarray(item.items)[0, 1]
        for label in range(3):  # encoded as class 1, decoded as each
            np.testing.assert_allclose(done.items[label, :, 1], own + (1 - label) / 2, atol=1e-6)
        kept = triptych.traverse(model, [0], item, steps=4)
        np.testing.assert_allclose(kept.items[0, :, 1], own, atol=1e-6)
        other = triptych.traverse(model, [0], item, label=0, steps=4)
        np.testing.assert_allclose(other.items[0, :, 1], own + 0.5, atol=1e-6)
        with pytest.raises(InputError, match="give labels 0"):
            triptych.traverse(model, [0])
        with pytest.raises(InputError, match="no label to encode"):
            triptych.traverse(model, [0], points(1, 2), label="all")
        with pytest.raises(InputError, match="all classes and latent 1 too"):
            triptych.traverse(model, [0, 1], item, label="all")

    def test_the_picture_and_the_file_hold_the_grid(self, tmp_path: Path) -> None:
        model = vae()
        done = triptych.traverse(model, [1, 3], steps=3, out=tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.info["Comment"] == "latents 1, 3 from -3 to 3"
            for row in range(3):
                for column in range(3):
                    assert np.array_equal(cell(picture, row, column), to_rgb(done.items[row], GREY)[column])
        triptych.traverse(model, [1, 3], steps=3, out=tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as file:
            assert np.array_equal(file["images"], done.items)
            assert file["dims"].tolist() == [1, 3]

    def test_the_latents_that_carry_most_are_chosen(self) -> None:
        model, split = vae(), Split(stripes(40, 0)[0])
        kl = latent_report(model, split).kl  # type: ignore[arg-type]
        dims, why = choose_latents(model, split, 2)
        assert dims == kl.argsort(descending=True)[:2].tolist()
        assert "KL" in why
        spread = points(300, 3) * np.array([1.0, 5.0, 3.0], np.float32)
        dims, why = choose_latents(Shift(3), Split(spread), 2, max_items=200)
        assert dims == [1, 2]
        assert "variance" in why


class TestItems:
    def test_of_the_runs_own_data_and_others(self, runs: Path) -> None:
        data = triptych.load_data(runs / "images.npz", levels=4)
        for split, name in ((None, "test"), ("train", "train")):
            found = read_items(runs / "vae", GREY, split=split)  # type: ignore[arg-type]
            images, labels = data.splits[name].read()
            assert np.array_equal(found.split.read()[0], images)
            assert np.array_equal(found.split.labels, labels)
            assert found.indices.tolist() == list(range(len(images)))
        found = read_items(runs / "vae", GREY, items=[3, 1], split="all")
        assert np.array_equal(found.split.read()[0], data.train.read(np.array([3, 1]))[0])
        assert found.names == ("all 3", "all 1")
        assert len(read_items(runs / "vae", GREY, most=4).names) == 4
        with pytest.raises(InputError, match="no item 6 in the test split of images, which has 6"):
            read_items(runs / "vae", GREY, items=[6])
        with pytest.raises(InputError, match="holds 8x8 grey images, 17 levels"):
            read_items(runs / "vae", GREY, "digits")
        with pytest.raises(InputError, match="read as for its training"):
            read_items(runs / "vae", GREY, data=DataConfig(limit=3))

    def test_labels_keep_the_meaning_of_the_training(self, runs: Path, tmp_path: Path) -> None:
        images = np.zeros((6, 8, 8), np.uint8)
        np.savez(tmp_path / "a.npz", train=images, train_labels=[4] * 6, test=images, test_labels=[4] * 6)
        found = read_items(runs / "vae", GREY, str(tmp_path / "a.npz"), data=DataConfig(levels=4))
        assert found.split.labels is not None
        assert found.split.labels.tolist() == [1] * 6
        assert "may have been trained on" in found.notes[0]
        np.savez(tmp_path / "a.npz", train=images, train_labels=[4] * 6, test=images, test_labels=[5] * 6)
        assert read_items(runs / "vae", GREY, str(tmp_path / "a.npz"), data=DataConfig(levels=4)).split.labels is None

    def test_of_files_in_their_order(self, runs: Path) -> None:
        with np.load(runs / "images.npz") as file:
            found = read_items(runs / "vae", GREY, str(runs / "images.npz"))
            assert np.array_equal(found.split.read()[0][:, 0], file["images"])
            assert np.array_equal(found.split.labels, file["labels"] - 3)
        assert read_items(runs / "vae", GREY, str(runs / "images.npz"), items=[5]).indices.tolist() == [5]
        assert len(read_items(runs / "vae", GREY, str(runs / "images.npz"), most=7).split) == 7
        plane = PointSpace(2)
        found = read_items(runs / "points", plane, str(runs / "plane.npy"), items=[6, 2])
        assert np.array_equal(found.split.read()[0], points(7, 2)[[6, 2]])
        for source, space, word in (
            ("white.png", plane, "is an image"),
            ("images.npz", plane, "holds 8x8 grey"),
            ("plane.npy", GREY, "holds points"),
        ):
            with pytest.raises(InputError, match=word):
                read_items(runs / "points", space, str(runs / source))  # type: ignore[arg-type]

    def test_ends_are_numbers_and_files(self, runs: Path) -> None:
        white = str(runs / "white.png")
        test = triptych.load_data(runs / "images.npz", levels=4).test.read()[0]
        a, b, notes = read_ends(runs / "vae", GREY, [2, white], [white, 2])
        assert np.array_equal(a.items, [test[2], np.full((1, 8, 8), 3)])
        assert np.array_equal(b.items, np.asarray(a.items)[::-1])
        assert a.labels is None, "the file has none"
        assert "256 levels" in notes[0]
        a, b, _ = read_ends(runs / "vae", GREY, [1], [5], source=str(runs / "images.npz"))
        assert np.array_equal(np.asarray(a.items)[:, 0], np.load(runs / "images.npz")["images"][[1]])
        assert a.labels is not None


@pytest.fixture
def run_command(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command line in an empty folder; in it RUNS stands for the folder of runs."""
    monkeypatch.chdir(tmp_path)
    return lambda line: command(shlex.split(line.replace("RUNS", str(runs))), capsys, monkeypatch)


@pytest.mark.parametrize(
    ("line", "words", "made"),
    [
        ("encode RUNS/vae", "6 means of 4 latents", "codes.npz"),
        ("encode RUNS/vae RUNS/images.npz --items 3,9 --sample --seed 2", "2 draws of 4", "codes.npz"),
        ("encode RUNS/classes RUNS/white.png --label 1 --out a.npz", "1 means", "a.npz"),
        ("encode RUNS/points RUNS/plane.npy", "7 means", "codes.npz"),
        ("reconstruct RUNS/vae", "mean of 6", "reconstructed.png"),
        ("reconstruct RUNS/points moons --limit 20 --out a.png", "data units^2", "a.png"),
        ("reconstruct RUNS/line --items 1 --out a.npz", "test 1", "a.npz"),
        ("interpolate RUNS/vae 0,1,2 3,4,5", "spherical interpolation", "between.png"),
        ("interpolate RUNS/vae 0 RUNS/white.png --steps 3 --out a.npz", "1 x 3 items between items", "a.npz"),
        ("interpolate RUNS/autoencoder 0 1", "linear interpolation", "between.png"),
        ("interpolate RUNS/gan -n 3 --seed 1", "3 x 8 items between latents drawn", "between.png"),
        ("interpolate RUNS/classes 0 1 --label 0", "spherical", "between.png"),
        ("interpolate RUNS/points 0,1 2,3", "2 x 8", "between.png"),
        ("traverse RUNS/vae", "largest mean KL", "traverse.png"),
        ("traverse RUNS/vae --dims 3 --item 2 --range 1.5", "latent 3: -1.5 .. 1.5 from left to right", "traverse.png"),
        ("traverse RUNS/autoencoder --out a.npz", "largest variance", "a.npz"),
        ("traverse RUNS/classes --dims 1 --labels all", "2 x 9 items", "traverse.png"),
        ("traverse RUNS/classes --item 1", "9 x 9 items", "traverse.png"),
        ("traverse RUNS/points --dims 0,1", "9 x 9 items", "traverse.png"),
    ],
)
def test_the_verbs_do_what_they_say(line: str, words: str, made: str, run_command: Command, tmp_path: Path) -> None:
    code, out, err = run_command(line)
    assert code == 0, err
    assert words in out
    assert out.splitlines()[-1].endswith(f"-> {made}")
    assert [path.name for path in tmp_path.iterdir()] == [made]
    if made.endswith(".png"):
        with Image.open(made) as picture:
            assert min(picture.size) >= 64
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("encode", "RUN"),
        ("encode no/run", "no/run"),
        ("encode RUNS/pixel_cnn", "PixelCNN has no encoder; these models have: autoencoder"),
        ("encode RUNS/vae --out a.png", ".npz"),
        ("encode RUNS/vae --out no/a.npz", "does not exist"),
        ("encode RUNS/vae --items 6", "no item 6"),
        ("encode RUNS/vae --items x", "--items is 'x'"),
        ("encode RUNS/vae --seed -1", "seed"),
        ("encode RUNS/vae --label 1", "not class-conditional"),
        ("encode RUNS/vae digits", "17 levels"),
        ("encode RUNS/vae RUNS/images.npz --split test", "leave split out"),
        ("encode RUNS/classes RUNS/white.png", "give --label 0 .. 1"),
        ("encode RUNS/classes --label 2", "labels are 2 .. 2"),
        ("reconstruct RUNS/pixel_cnn", "no encoder"),
        ("reconstruct RUNS/vae --out a.jpg", ".png"),
        ("reconstruct RUNS/vae --out RUNS", "give a .png"),
        ("reconstruct RUNS/vae --items 0,60", "no item 60"),
        ("reconstruct RUNS/line", "points on a line"),
        ("reconstruct RUNS/points RUNS/white.png", "is an image"),
        ("interpolate RUNS/pixel_cnn", "has no latents"),
        ("interpolate RUNS/autoencoder", "give two items"),
        ("interpolate RUNS/vae 0", "Give A and B"),
        ("interpolate RUNS/vae 0 1 --n 3", "only --n"),
        ("interpolate RUNS/vae --n 0", "at least 1"),
        ("interpolate RUNS/vae --source digits", "leave --source"),
        ("interpolate RUNS/vae 0,1 2", "2 beginnings and 1 ends"),
        ("interpolate RUNS/vae 0 6", "no item 6"),
        ("interpolate RUNS/vae 0 six", "'six' is no number"),
        ("interpolate RUNS/vae 0, 1", "'' is no number"),
        ("interpolate RUNS/vae 0 1 --steps 1", "steps is 1"),
        ("interpolate RUNS/vae 0 1 --out a.gif", ".png"),
        ("interpolate RUNS/vae 0 1 --size 8", "read as for its training"),
        ("interpolate RUNS/vae RUNS/white.png RUNS/white.png --source digits", "no source is read"),
        ("interpolate RUNS/classes 0 RUNS/white.png", "give a label"),
        ("interpolate RUNS/classes --label 5", "labels are 5 .. 5"),
        ("traverse RUNS/pixel_cnn", "no encoder"),
        ("traverse RUNS/vae --dims 4", "no latent 4; this model has 0 .. 3"),
        ("traverse RUNS/vae --dims 1,1", "twice"),
        ("traverse RUNS/vae --dims 1,2,3", "one or two"),
        ("traverse RUNS/vae --dims -1", "--dims"),
        ("traverse RUNS/vae --item 6", "no item 6"),
        ("traverse RUNS/vae --dims 1 --steps 0", "steps is 0"),
        ("traverse RUNS/vae --dims 1 --range 0", "range is 0"),
        ("traverse RUNS/vae --dims 1 --labels all", "not class-conditional"),
        ("traverse RUNS/vae --dims 1 --label 0", "not class-conditional"),
        ("traverse RUNS/vae --dims 1 --limit 3", "no data is read"),
        ("traverse RUNS/vae --seed -1", "seed"),
        ("traverse RUNS/classes --dims 1", "give labels 0 .. 1"),
        ("traverse RUNS/classes --dims 0,1 --labels all", "give one latent"),
        ("traverse RUNS/classes --dims 0 --labels each", "label"),
    ],
)
def test_wrong_input_gets_one_line_and_status_2(line: str, word: str, run_command: Command, tmp_path: Path) -> None:
    code, out, err = run_command(line)
    assert code == 2, out
    assert word in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_codes_of_a_command_are_those_of_the_model(runs: Path, run_command: Command) -> None:
    assert run_command("encode RUNS/classes --split train --items 5,2")[0] == 0
    x, y = triptych.load_data(runs / "images.npz", levels=4).train.read(np.array([5, 2]))
    model = triptych.load(runs / "classes")
    assert isinstance(model, LatentModel)
    with np.load("codes.npz") as file:
        expected = model.encode(torch.from_numpy(x), None if y is None else torch.from_numpy(y))
        np.testing.assert_allclose(file["z"], expected.numpy(), atol=1e-6)
        assert np.array_equal(file["labels"], y)
        assert file["indices"].tolist() == [5, 2]


def test_the_commands_of_the_page_run(run_command: Command) -> None:
    text = (Path(__file__).parent.parent / "docs" / "latents.md").read_text(encoding="utf-8")
    lines = re.findall(r"^triptych (.*)$", "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)), re.M)
    assert {line.split()[0] for line in lines} == {"fit", "encode", "reconstruct", "interpolate", "traverse"}
    data = triptych.load_data("digits")
    for line in lines:
        words = shlex.split(line)
        if words[0] == "fit":
            verb = cli.parse(words)
            folder = verb.out or Path("runs") / f"{verb.model}-digits"
            n_classes = data.n_classes if verb.conditional else 0
            model = triptych.create_model(verb.model, data.space, n_classes=n_classes)
            save_run(folder, verb.model, data, n_classes, model)
            continue
        code, _, err = run_command(line)
        assert code == 0, f"{line}\n{err}"
    names: dict[str, Any] = {}
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(compile(example, "latents.md", "exec"), names)
    assert names["z"].shape == (len(names["data"].test), 16)
