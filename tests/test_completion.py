"""Completing images, animating drawings, and reading what is to be completed."""

from __future__ import annotations

import io
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from rich.console import Console
from test_autoregressive import all_images, model_for

import triptych
from triptych.completion import _holds_floats, n_sites_kept, read_originals
from triptych.config import DataConfig
from triptych.data.animation import MAX_FRAMES, MAX_SHOWN, Frames, save_animation
from triptych.data.dataset import Dataset
from triptych.data.pictures import GROUND, blank_colour, image_grid, read_picture, to_rgb
from triptych.drawing import Bar, draw_images
from triptych.errors import InputError
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.ranks import part_seed
from triptych.sampling.autoregressive import Sampler, Warp
from triptych.spaces import ImageSpace

GREY = ImageSpace(1, 5, 4, 4)
PALETTE = ImageSpace(1, 4, 4, 3, ((0, 0, 0), (120, 144, 180), (250, 0, 0)))
QUICK: dict[str, Any] = {"budget": "3steps", "batch_size": 8, "validations": 1, "verbose": False}


@pytest.fixture(scope="module")
def grey() -> AutoregressiveDensity:
    return model_for("pixel_cnn", GREY)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file of random 6x4 images with labels 3 and 7, 5 levels."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 5, (60, 6, 4)), rng.choice([3, 7], 60)
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels)
    data = triptych.load_data(folder / "images.npz", levels=5)
    options = {"hidden": 4, "n_blocks": 1}
    triptych.fit("pixel_cnn", data, out=folder / "run", conditional=True, **QUICK, **options)
    return folder / "run"


def some_images(space: ImageSpace, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.levels, (n, *space.shape))


def frames_of(path: Path) -> list[np.ndarray]:
    """The frames of an animation, RGB, (H, W, 3)."""
    with Image.open(path) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


def enlarged(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """A picture with each pixel repeated to fill a frame."""
    pixels = np.asarray(picture.convert("RGB"))
    scale = shape[0] // pixels.shape[0]
    pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    assert pixels.shape == shape
    return pixels


class TestComplete:
    @pytest.mark.parametrize("keep", ["top:0.5", "top:1", "first:7", "first:14"])
    def test_keeps_the_kept_part_and_draws_the_rest(self, keep: str, grey: AutoregressiveDensity) -> None:
        images = some_images(GREY, 3)
        done = triptych.complete(grey, images, keep=keep, n=6, seed=1)
        assert done.images.shape == (3, 6, 1, 5, 4)
        assert done.n_given == n_sites_kept(keep, GREY)
        flat = done.images.reshape(3, 6, -1)
        assert np.array_equal(flat[..., : done.n_given], images.reshape(3, 1, -1)[..., : done.n_given].repeat(6, 1))
        assert len(np.unique(flat[0], axis=0)) > 1
        again = triptych.complete(grey, torch.from_numpy(images), keep=keep, n=6, seed=1)
        assert np.array_equal(again.images, done.images)
        assert np.array_equal(again.log_prob_nats, done.log_prob_nats)
        assert not np.array_equal(triptych.complete(grey, images, keep=keep, n=6, seed=2).images, done.images)

    @pytest.mark.parametrize("n_classes", [0, 2])
    @pytest.mark.parametrize("space", [ImageSpace(1, 2, 3, 3), ImageSpace(3, 2, 1, 3)], ids=str)
    def test_log_probabilities_are_those_of_the_joint_over_the_marginal(
        self, space: ImageSpace, n_classes: int
    ) -> None:
        model, x = model_for("pixel_cnn", space, n_classes), all_images(space)
        labels = [1, 0] if n_classes else None
        images, n_given = some_images(space, 2), space.width
        done = triptych.complete(model, images, keep="top:1", n=5, labels=labels)
        for i, image in enumerate(images):
            of_class = torch.full((len(x),), labels[i]) if labels else None
            with torch.no_grad():
                joint = model.log_prob(x, of_class).double()
            fits = (x.flatten(2)[:, :, :n_given] == torch.from_numpy(image).flatten(1)[:, :n_given]).all(2).all(1)
            log_marginal = joint[fits].logsumexp(0)
            drawn = [*done.images[i], image]
            found = [*done.log_prob_nats[i], done.original_log_prob_nats[i]]
            for y, nats in zip(drawn, found, strict=True):
                (place,) = (x == torch.from_numpy(y.astype(np.int64))).flatten(1).all(1).nonzero()
                assert nats == pytest.approx((joint[place] - log_marginal).item(), abs=1e-4)
        n_rest = space.n_dims - n_given * space.channels
        assert done.bits_per_dim(np.array([-n_rest * math.log(2)])) == pytest.approx([1.0])

    def test_every_sampler_draws_the_same_and_a_warp_does_not(self, grey: AutoregressiveDensity) -> None:
        images = some_images(GREY, 2)
        naive = triptych.complete(grey, images, n=4, sampler="naive")
        samplers: tuple[Sampler, ...] = ("auto", "raster", "row", "wavefront", "jacobi")
        for sampler in samplers:
            assert np.array_equal(triptych.complete(grey, images, n=4, sampler=sampler).images, naive.images)
        likely = triptych.complete(grey, images, n=4, temperature=0.1)
        assert likely.log_prob_nats.mean() > naive.log_prob_nats.mean()

    def test_files_hold_what_is_returned(self, grey: AutoregressiveDensity, tmp_path: Path) -> None:
        images = some_images(GREY, 2)
        done = triptych.complete(grey, images, n=3, out=tmp_path / "done.npz", top_k=2)
        with np.load(tmp_path / "done.npz") as file:
            assert np.array_equal(file["images"], done.images)
            assert np.array_equal(file["log_prob_nats"], done.log_prob_nats)
            assert np.array_equal(file["original"], images)
            assert np.array_equal(file["original_log_prob_nats"], done.original_log_prob_nats)
            assert file["n_given"] == done.n_given == 12  # half of 5 rows, to the nearest row
            assert file["comment"] == "top_k 2: these are not draws from p(rest | kept)"
        assert np.array_equal(triptych.complete(grey, images, n=3, out=tmp_path / "a.png", top_k=2).images, done.images)
        with Image.open(tmp_path / "a.png") as picture:
            assert "top_k 2" in picture.info["Comment"]
            pixels = np.asarray(picture)
        scale = 16  # the shorter side fills 64 pixels
        corner = pixels[scale : 6 * scale : scale, scale : 5 * scale : scale]
        assert np.array_equal(corner, to_rgb(images[:1], GREY)[0])
        kept = pixels[scale : 6 * scale : scale, 6 * scale : 10 * scale : scale]
        assert np.array_equal(kept[:3], corner[:3])
        assert (kept[3:] == blank_colour(GREY)).all()
        last = pixels[7 * scale : 12 * scale : scale, -5 * scale : -scale : scale]
        assert np.array_equal(last, to_rgb(done.images[1, 2:], GREY)[0])
        triptych.complete(grey, images, n=3, out=tmp_path / "exact.png")
        with Image.open(tmp_path / "exact.png") as picture:
            assert "Comment" not in picture.info

    def test_lines_tell_each_value(self, grey: AutoregressiveDensity) -> None:
        done = triptych.complete(grey, some_images(GREY, 2), n=2)
        lines = done.describe(["a", "long name"])
        assert len(lines) == 1 + 2 * 3
        assert "12 of 20 sites kept" in lines[0]
        assert lines[1].split()[:2] == ["a", "original"]
        assert lines[-1].split()[-2:] == [
            f"{done.log_prob_nats[1, 1]:.2f}",
            f"{done.bits_per_dim(done.log_prob_nats)[1, 1]:.3f}",
        ]

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"n": 0}, "at least 1"),
            ({"seed": -1}, "seed"),
            ({"keep": "left:0.5"}, "raster order"),
            ({"keep": "mask.png"}, "raster order"),
            ({"keep": "half"}, "top:0.5"),
            ({"keep": "top:-1"}, "top:0.5"),
            ({"keep": "top:5"}, "20 of an image's 20"),
            ({"keep": "top:1.0"}, "20 of an image's 20"),
            ({"keep": "top:0.01"}, "0 of an image's 20"),
            ({"keep": "first:0"}, "0 of an image's 20"),
            ({"labels": [0, 1]}, "not class-conditional"),
            ({"temperature": 0.0}, "temperature"),
            ({"sampler": "fast"}, "no sampler"),
            ({"images": np.zeros((0, 1, 5, 4), int)}, "no images"),
            ({"images": np.zeros((2, 1, 4, 5), int)}, "shape"),
            ({"images": np.full((2, 1, 5, 4), 4)}, "values 4 .. 4"),
            ({"images": np.zeros((2, 1, 5, 4))}, "integers"),
            ({"out": "a.jpg"}, ".png or .npz"),
            ({"out": "no/a.png"}, "does not exist"),
            ({"animate": "a.mp4"}, ".gif"),
            ({"out": "a.png", "animate": "a.png"}, "twice"),
        ],
    )
    def test_refuses(
        self,
        arguments: dict[str, Any],
        word: str,
        grey: AutoregressiveDensity,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=word) as error:
            triptych.complete(grey, **({"images": some_images(GREY, 2)} | arguments))
        assert "\n" not in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_class_conditional_models_need_labels(self) -> None:
        model = model_for("pixel_cnn", GREY, 2)
        with pytest.raises(InputError, match="give labels"):
            triptych.complete(model, some_images(GREY, 2))
        with pytest.raises(InputError, match="labels are"):
            triptych.complete(model, some_images(GREY, 2), labels=[0, 2])
        of = [triptych.complete(model, some_images(GREY, 1), labels=[label], n=16).log_prob_nats for label in (0, 1)]
        assert not np.allclose(*of)

    @pytest.mark.parametrize("name", ["gan", "vae"])
    def test_other_models_are_refused_with_those_that_can(self, name: str) -> None:
        model = triptych.create_model(name, GREY)
        with pytest.raises(InputError, match=r"cannot complete images; .*pixel_cnn"):
            triptych.complete(model, some_images(GREY, 1))


@pytest.mark.parametrize(
    ("keep", "shape", "n"),
    [
        ("top:0.5", (7, 3), 4 * 3),  # to the nearest row, halves up
        ("top:.29", (100, 2), 29 * 2),
        ("top:2", (7, 3), 6),
        ("top:1.", (2, 3), None),
        ("first:4", (1, 5), 4),
        ("top:0.5", (1, 5), None),
        ("top:9999999999", (7, 3), None),
        ("first:", (7, 3), None),
        (":3", (7, 3), None),
        ("", (7, 3), None),
    ],
)
def test_keep_is_rows_or_sites(keep: str, shape: tuple[int, int], n: int | None) -> None:
    space = ImageSpace(1, *shape, 2)
    if n is None:
        with pytest.raises(InputError, match="keep is"):
            n_sites_kept(keep, space)
    else:
        assert n_sites_kept(keep, space) == n


class TestAnimation:
    @pytest.mark.parametrize("suffix", [".gif", ".apng", ".png"])
    @pytest.mark.parametrize("sampler", ["auto", "naive", "jacobi"])
    def test_of_samples_begins_blank_and_ends_with_them(self, sampler: Sampler, suffix: str, tmp_path: Path) -> None:
        for space in (GREY, PALETTE):
            model, path = model_for("pixel_cnn", space), tmp_path / f"a{suffix}"
            items = triptych.sample(model, 5, sampler=sampler, animate=path, top_p=0.9)
            frames = frames_of(path)
            assert np.array_equal(frames[-1], enlarged(image_grid(items, space, 3, scale=1), frames[-1].shape))
            blank, ground = blank_colour(space), (frames[0] == GROUND).all(-1)
            assert ((frames[0] == blank).all(-1) | ground).all()
            assert blank not in {tuple(colour) for colour in to_rgb(items, space).reshape(-1, 3)}
            per_site = (frames[0].shape[0] // (2 * space.height + 3)) ** 2
            n_blank = [int((frame == blank).all(-1).sum()) // per_site for frame in frames]
            assert n_blank[0] == 5 * space.height * space.width
            assert n_blank == sorted(n_blank, reverse=True)
            assert n_blank[-1] == 0
            if sampler == "jacobi":
                assert n_blank[1] == 0, "the whole picture settles"
                assert len(frames) > 2
            if sampler == "naive":
                assert n_blank == list(range(n_blank[0], -1, -5)), "one site a turn of each of five"
            with Image.open(path) as animation:
                assert animation.info["loop"] == 0
                animation.seek(animation.n_frames - 1)
                assert animation.info["duration"] == 3000

    def test_of_completions_ends_with_them(self, grey: AutoregressiveDensity, tmp_path: Path) -> None:
        images = some_images(GREY, 2)
        for name in ("a.gif", "a.apng"):
            triptych.complete(grey, images, n=3, keep="first:10", out=tmp_path / "a.png", animate=tmp_path / name)
            frames = frames_of(tmp_path / name)
            with Image.open(tmp_path / "a.png") as picture:
                whole = picture.resize((picture.width // 16, picture.height // 16), Image.Resampling.NEAREST)
            assert np.array_equal(frames[-1], enlarged(whole, frames[-1].shape))
            per_site = (frames[0].shape[0] // 13) ** 2
            n_blank = [int((frame == blank_colour(GREY)).all(-1).sum()) / per_site for frame in frames]
            assert n_blank[0] == 2 * 4 * 10  # of two images, the kept part and three completions
            assert n_blank[-1] == 2 * 10

    @pytest.mark.parametrize("n_turns", [1, 59, 120, 121, 784, 3000])
    def test_frames_are_evenly_spaced_whatever_the_number_of_turns(self, n_turns: int) -> None:
        frames = Frames(np.zeros((1, 1, 1, n_turns), np.uint8), np.zeros((1, 1, n_turns), np.bool_))
        for turn in range(n_turns):
            frames.turn(0, np.ones((1, 1, 1), np.uint8), np.array([turn]))
            frames.turn(0, np.ones((1, 1, 1), np.uint8), np.array([turn]))  # nothing new
        n_drawn = np.array([int(drawn.sum()) for _, drawn in frames.states])
        assert n_drawn[0] == 0
        assert n_drawn[-1] == n_turns
        assert min(n_turns, MAX_FRAMES // 2) <= len(n_drawn) <= MAX_FRAMES + 1
        steps = np.diff(n_drawn)
        assert set(steps[:-1]) <= {steps[0]}
        assert steps[-1] <= steps[0]

    def test_colours_past_256_are_exact_in_apng_and_near_in_gif(self, tmp_path: Path) -> None:
        space = ImageSpace(3, 20, 20, 256)
        images = np.indices((20, 20)).sum(0)[None, None] * 6 + np.arange(3).reshape(1, 3, 1, 1) * 5
        images = images + some_images(ImageSpace(3, 20, 20, 8), 1)
        assert len(np.unique(to_rgb(images, space).reshape(-1, 3), axis=0)) > 256
        frames = Frames(np.zeros_like(images), np.zeros((1, 20, 20), np.bool_))
        for row in range(20):
            sites = np.arange(20 * row, 20 * row + 20)
            frames.turn(0, images.reshape(1, 3, -1)[:, :, sites], sites)
        expected = None
        for name, error in (("a.apng", 0), ("a.gif", 24)):
            save_animation(
                frames, lambda x, drawn: image_grid(x, space, 1, scale=1, drawn=drawn), space, tmp_path / name
            )
            found = frames_of(tmp_path / name)
            expected = enlarged(image_grid(images, space, 1, scale=1), found[-1].shape).astype(int)
            assert np.abs(found[-1] - expected).max() <= error
            assert {tuple(colour) for colour in found[0].reshape(-1, 3)} == {GROUND, blank_colour(space)}

    def test_of_many_images_the_first_are_shown(self, tmp_path: Path) -> None:
        space = ImageSpace(1, 2, 2, 2)
        items = triptych.sample(model_for("pixel_cnn", space), 300, animate=tmp_path / "a.gif")
        last = frames_of(tmp_path / "a.gif")[-1]
        assert np.array_equal(last, enlarged(image_grid(items[:MAX_SHOWN], space, 10, scale=1), last.shape))
        done = triptych.complete(
            model_for("pixel_cnn", space), items[:2], n=150, keep="first:3", animate=tmp_path / "b.gif"
        )
        assert done.images.shape == (2, 150, 1, 2, 2)
        last = frames_of(tmp_path / "b.gif")[-1]
        right = enlarged(image_grid(done.images[0, :MAX_SHOWN], space, MAX_SHOWN, scale=1), (*last.shape[:1], 602, 3))
        assert np.array_equal(last[:, -602:], right)

    def test_the_blank_colour_is_no_colour_of_the_data(self) -> None:
        assert blank_colour(GREY) == blank_colour(ImageSpace(3, 1, 1, 256))
        assert len(set(blank_colour(GREY))) == 3, "no grey"
        palette = PALETTE.palette
        assert palette is not None
        distances = [math.dist(blank_colour(PALETTE), colour) for colour in palette]
        assert min(distances) > 64


class TestDrawing:
    def test_each_block_is_drawn_from_noise_of_its_own(self) -> None:
        model = model_for("pixel_cnn", ImageSpace(1, 2, 3, 4), 3)
        labels = torch.arange(700) % 3
        drawn = draw_images(model, 700, labels=labels, seed=5, warp=Warp())
        for number, start in enumerate(range(0, 700, 256)):
            of_block = labels[start : start + 256]
            noise = torch.Generator().manual_seed(part_seed(5, number))
            alone = model.draw(len(of_block), labels=of_block, generator=noise)
            assert np.array_equal(drawn[start : start + 256], alone.numpy())
        assert not np.array_equal(drawn[:256], drawn[256:512])

    @pytest.mark.parametrize("sampler", ["auto", "naive", "jacobi"])
    def test_a_terminal_sees_a_bar_and_nothing_else_does(
        self, sampler: Sampler, grey: AutoregressiveDensity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for is_terminal in (True, False):
            shares: list[float] = []
            console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
            bar = Bar(console=console, delay=0.0)
            update = bar.update

            def listening(share: float, shares: list[float] = shares, bar: Bar = bar, update: Any = update) -> None:
                shares.append(share)
                update(share)
                bar.next = 0.0

            monkeypatch.setattr(bar, "update", listening)
            with bar:
                draw_images(grey, 300, labels=None, seed=0, sampler=sampler, warp=Warp(), bar=bar)
            assert isinstance(console.file, io.StringIO)
            text = console.file.getvalue()
            if is_terminal:
                assert "drawing" in text
                assert 0 <= shares[0] < 0.6
                assert shares[-1] == pytest.approx(1)
                assert shares == sorted(shares)
            else:
                assert not text
                assert not shares
        quick = Console(file=io.StringIO(), force_terminal=True)
        with Bar(console=quick) as bar:
            draw_images(grey, 2, labels=None, seed=0, sampler=sampler, warp=Warp(), bar=bar)
        assert isinstance(quick.file, io.StringIO)
        assert "drawing" not in quick.file.getvalue(), "what takes less than a second needs no bar"


class TestOriginals:
    def test_of_the_runs_own_data(self, run: Path) -> None:
        model = triptych.load(run)
        data = triptych.load_data(run.parent / "images.npz", levels=5)
        for split, name in ((None, "test"), ("train", "train")):
            found = read_originals(run, model.space, items=[2, 0], split=split)
            images, labels = data.splits[name].read(np.array([2, 0]))
            assert np.array_equal(found.images, images)
            assert labels is not None
            assert np.array_equal(found.labels, labels)
            assert found.names == (f"{name} 2", f"{name} 0")
            assert not found.notes
        assert len(read_originals(run, model.space).images) == 4
        with pytest.raises(InputError, match="There is no item 6 in the test split of images, which has 6"):
            read_originals(run, model.space, items=[6])
        with pytest.raises(InputError, match="levels does not apply to the data of the run"):
            read_originals(run, model.space, data=DataConfig(levels=5))

    def test_of_arrays_in_their_order(self, run: Path, tmp_path: Path) -> None:
        space = triptych.load(run).space
        images = np.random.default_rng(1).integers(0, 5, (3, 6, 4))
        np.save(tmp_path / "a.npy", images)
        found = read_originals(run, space, str(tmp_path / "a.npy"))
        assert np.array_equal(found.images[:, 0], images)
        assert found.labels is None
        assert found.names == ("a.npy 0", "a.npy 1", "a.npy 2")
        # Labels keep the meaning that they had in training: 7 is the second class.
        np.savez(tmp_path / "b.npz", images=images, labels=[7, 7, 7])
        found = read_originals(run, space, str(tmp_path / "b.npz"), items=[1])
        assert np.array_equal(found.labels, [1])
        np.savez(tmp_path / "b.npz", images=images, labels=[7, 8, 7])
        assert read_originals(run, space, str(tmp_path / "b.npz")).labels is None
        np.save(tmp_path / "float.npy", images / 4)
        found = read_originals(run, space, str(tmp_path / "float.npy"))
        assert np.array_equal(found.images[:, 0], images)
        np.save(tmp_path / "bright.npy", (images * 60).astype(np.uint8))
        with pytest.raises(InputError, match=r"values up to 240 .* levels 0 .. 4; give --levels 5"):
            read_originals(run, space, str(tmp_path / "bright.npy"))
        found = read_originals(run, space, str(tmp_path / "bright.npy"), data=DataConfig(levels=5))
        assert np.array_equal(found.images[:, 0], images * 60 * 5 // 256)
        assert "256 levels to 5" in found.notes[0]

    def test_arrays_are_told_from_floats_by_their_headers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for dtype, expected in ((np.uint8, False), (np.float16, True), (np.float64, True)):
            many = np.zeros((2**12, 32, 32), dtype)
            np.save(tmp_path / "a.npy", many)
            np.savez_compressed(tmp_path / "a.npz", x=many)
            for name in ("a.npy", "a.npz"):
                tracemalloc.start()
                assert _holds_floats(tmp_path / name) == expected
                assert tracemalloc.get_traced_memory()[1] < 2**21
                tracemalloc.stop()
        monkeypatch.setattr("triptych.data.arrays.MAX_NPZ_ENTRIES", 0)
        assert not _holds_floats(tmp_path / "a.npz")

    def test_of_image_files(self, run: Path, tmp_path: Path) -> None:
        space, path = triptych.load(run).space, tmp_path / "a.png"
        items = triptych.sample(run, 2, out=tmp_path / "drawn")
        for number, item in enumerate(items):  # what was drawn and written is read back
            image, notes = read_picture(tmp_path / "drawn" / f"{number:06d}.png", ImageSpace(1, 6, 4, 5))
            assert np.array_equal(image[0], item)
            assert notes == ["256 levels brought to 5"]
        colours = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).save(path)
        with pytest.raises(InputError, match=r"12x8 .* 6x4; give --size 6x4"):
            read_originals(run, space, str(path))
        found = read_originals(run, space, str(path), data=DataConfig(size="6x4"))
        assert found.images.shape == (1, 1, 6, 4)
        assert found.names == ("a.png",)
        assert any("grey" in note for note in found.notes)
        for arguments, word in (
            ({"items": [0]}, "one image"),
            ({"split": "test"}, "one image"),
            ({"data": DataConfig(levels=5)}, "levels does not apply"),
        ):
            with pytest.raises(InputError, match=word):
                read_originals(run, space, str(path), **arguments)  # type: ignore[arg-type]
        path.write_bytes(b"\x89PNG no more")
        with pytest.raises(InputError, match=r"a\.png' cannot be read"):
            read_originals(run, space, str(path))

    def test_pictures_are_brought_to_colours_and_palettes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        grey = np.array([[0, 100], [200, 255]], np.uint8)
        Image.fromarray(grey).save(path)
        image, notes = read_picture(path, ImageSpace(3, 2, 2, 256))
        assert np.array_equal(image[0], np.stack([grey] * 3))
        assert not notes
        image, _ = read_picture(path, ImageSpace(1, 2, 2, 2))
        assert image.ravel().tolist() == [0, 0, 1, 1]
        space = ImageSpace(1, 2, 2, 3, ((0, 0, 0), (120, 144, 180), (250, 0, 0)))
        assert space.palette is not None
        Image.fromarray(np.array(space.palette, np.uint8)[[[2, 0], [1, 1]]]).save(path)
        image, notes = read_picture(path, space)
        assert image.ravel().tolist() == [2, 0, 1, 1]
        assert not notes
        Image.fromarray(grey).save(path)
        image, notes = read_picture(path, space)
        assert image.ravel().tolist() == [0, 1, 1, 1]
        assert notes == ["3 of 4 pixels were given the nearest colour of the palette"]

    def test_of_other_data(self, run: Path, tiny: Dataset, tmp_path: Path) -> None:
        space = triptych.load(run).space
        with pytest.raises(InputError, match="digits holds 8x8 grey images"):
            read_originals(run, space, "digits")
        with pytest.raises(InputError, match="no file or folder"):
            read_originals(run, space, str(tmp_path / "none.png"))
        np.savez(tmp_path / "split.npz", train=np.zeros((3, 6, 4), int), test=np.ones((2, 6, 4), int))
        found = read_originals(run, space, str(tmp_path / "split.npz"), data=DataConfig(levels=5))
        assert (found.images == 1).all()
        assert len(found.images) == 2
        assert "may have been trained on" in found.notes[0]
