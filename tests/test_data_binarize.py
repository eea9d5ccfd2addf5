"""Binarisation: by threshold, by draws that stay, and by draws that are fresh in every training batch."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.config import DataConfig
from triptych.data.binarize import BINARIZE, Binarized, splitmix64
from triptych.data.dataset import Dataset, Split, in_memory, merged
from triptych.data.load import load_data
from triptych.data.show import describe, draw
from triptych.errors import InputError
from triptych.spaces import ImageSpace
from triptych.training.stream import BatchStream

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
DRAWN = ("dynamic", "fixed")
needs_mnist = pytest.mark.skipif(not MNIST.exists(), reason="the shared data are not here")


@cache
def mnist(how: Any = "none") -> Dataset:
    return load_data(MNIST, binarize=how)


def stream(split: Split, batch: int = 16, *, position: int = 0, seed: int = 1) -> BatchStream:
    return BatchStream(split, batch, seed=seed, device=torch.device("cpu"), use_labels=False, position=position)


def batches(of: BatchStream, n: int) -> torch.Tensor:
    return torch.cat([of.next().x for _ in range(n)])


def chi_square(mean: np.ndarray, p: np.ndarray, n: int) -> float:
    """Standard score of the squared errors of means of n draws with probabilities p; about N(0, 1) if p is right."""
    assert np.array_equal(mean[p == 0], p[p == 0])
    assert np.array_equal(mean[p == 1], p[p == 1])
    open_ = (p > 0) & (p < 1)
    variance = (p * (1 - p))[open_]
    squares = (mean - p)[open_] ** 2 / (variance / n)
    # Kurtosis of a Bernoulli variable: (1 - 6 v) / v, over n of the mean.
    return float((squares - 1).sum() / np.sqrt((2 + (1 - 6 * variance) / (variance * n)).sum()))


def test_numbers_are_those_of_splitmix64() -> None:
    # The first five of seed 1234567, as published with implementations of Vigna's splitmix64.c.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, np.arange(5, dtype=np.uint64)).tolist() == known
    assert splitmix64(1234567, np.array([3, 0], dtype=np.uint64)).tolist() == [known[3], known[0]]
    assert splitmix64(2**64 - 1, np.array([0], dtype=np.uint64)).dtype == np.uint64


@pytest.mark.parametrize("levels", [3, 17, 256, 1000])
def test_fixed_draws_by_whole_numbers_in_python(levels: int) -> None:
    intensities = np.random.default_rng(0).integers(0, levels, (5, 1, 2, 3)).astype(np.int32)
    places, key = np.array([7, 2**33, 0, 4, 59999]), 2**64 - 12345
    items = Binarized(intensities, levels, "fixed", places, key)
    mask = 2**64 - 1
    for image, place, result in zip(intensities, places, items[np.arange(5)], strict=True):
        for offset, (x, drawn) in enumerate(zip(image.ravel(), result.ravel(), strict=True)):
            z = (key + 0x9E3779B97F4A7C15 * (int(place) * 6 + offset + 1)) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            z ^= z >> 31
            assert drawn == ((z >> 32) * (levels - 1) >> 32 < x)


@pytest.mark.parametrize("how", ["dynamic", "fixed", "threshold"])
def test_the_set_is_binary(how: Any) -> None:
    full, data = load_data("digits"), load_data("digits", binarize=how)
    assert data.space == ImageSpace(1, 8, 8, 2)
    for name, split in data.splits.items():
        images, labels = split.read()
        data.space.check(images)
        assert images.dtype == np.uint8
        intensities, same = full.splits[name].read()
        assert labels is not None
        assert same is not None
        assert np.array_equal(labels, same)
        assert (images[intensities == 0] == 0).all()
        assert (images[intensities == 16] == 1).all()
        assert isinstance(split.items, Binarized)
        assert split.items.redraws == (how == "dynamic" and name == "train")
        assert np.array_equal(split.read()[0], images)
    assert data.source == {"source": "digits", "binarize": how}
    assert load_data(**json.loads(json.dumps(data.source))).checksum == data.checksum


def test_every_setting_has_a_checksum_of_its_own() -> None:
    # All draws of black and white alone are the same images; what training makes of them still differs in name.
    black_and_white = np.tile(np.array([[[0, 255], [255, 0]]], np.uint8), (30, 1, 1))
    for source in ("digits", black_and_white):
        assert len({load_data(source, binarize=how).checksum for how in BINARIZE}) == 4
    assert load_data("digits", binarize="fixed", seed=1).checksum != load_data("digits", binarize="fixed").checksum


def test_draws_and_checksums_are_the_same_on_every_machine() -> None:
    images = np.arange(12 * 2 * 3, dtype=np.uint8).reshape(12, 2, 3) * 3
    data = load_data(images, binarize="fixed", seed=5)
    bits = "".join(map(str, data.train.read()[0].ravel()))
    assert (hex(int(bits, 2)), data.checksum[:16]) == ("0x588d235f0f", "84bed6fea4a6c20c")


def test_threshold_is_at_half() -> None:
    for levels in (3, 4, 17, 256):
        images = np.arange(levels).repeat(4).reshape(-1, 2, 2)
        data = load_data(images, levels=levels, binarize="threshold")
        full = load_data(images, levels=levels)
        expected = full.train.read()[0] / (levels - 1) >= 0.5
        assert np.array_equal(data.train.read()[0], expected)
        assert torch.equal(*(batches(stream(split, 4), 5) for split in (data.train, Split(expected.astype(np.uint8)))))
    assert any("nothing in the literature" in sentence for sentence in data.repaired)


@pytest.mark.parametrize("how", DRAWN)
def test_a_draw_hangs_on_the_items_own_place_alone(how: Any) -> None:
    data = load_data("digits", binarize=how)
    whole = data.train.read()[0]
    some = np.array([5, 1200, 5, 0])
    assert np.array_equal(data.train.read(some)[0], whole[some])
    assert np.array_equal(data.train.read(np.array([1200]))[0], whole[[1200]])
    assert data.train.read(np.arange(0))[0].shape == (0, 1, 8, 8)
    # An item keeps its draw under --limit, and in other shares of the splits.
    by_image = {}
    for image, drawn in zip(load_data("digits").train.read()[0], whole, strict=True):
        by_image[image.tobytes()] = drawn
    limited = load_data("digits", limit=40)
    for image, drawn in zip(
        limited.train.read()[0], load_data("digits", binarize=how, limit=40).train.read()[0], strict=True
    ):
        assert np.array_equal(by_image[image.tobytes()], drawn)
    joined = merged(*data.splits.values()).read()[0]
    assert np.array_equal(joined, np.concatenate([split.read()[0] for split in data.splits.values()]))


def test_equal_items_have_draws_of_their_own() -> None:
    data = load_data(np.full((3000, 4, 4), 64, np.uint8), binarize="fixed")
    drawn = [split.read()[0].reshape(-1, 16) for split in data.splits.values()]
    for bits in drawn:
        n = len(bits)
        assert abs(chi_square(bits.mean(axis=0), np.full(16, 64 / 255), n)) < 5
        correlation = np.corrcoef(bits.T)[np.triu_indices(16, 1)]
        assert np.abs(correlation).max() < 5 / np.sqrt(n)
        neighbours = np.corrcoef(bits[1:].ravel(), bits[:-1].ravel())[0, 1]
        assert abs(neighbours) < 5 / np.sqrt(bits.size)
    a, b = drawn[1], drawn[2]
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_valid_and_test_are_equal_under_fixed_and_dynamic() -> None:
    fixed, dynamic = (load_data("digits", binarize=how) for how in ("fixed", "dynamic"))
    for name in fixed.splits:
        assert np.array_equal(fixed.splits[name].read()[0], dynamic.splits[name].read()[0])


@pytest.mark.parametrize("kind", ["npy", "npz", "folder"])
@pytest.mark.parametrize("how", ["dynamic", "fixed", "threshold"])
def test_every_source_of_images(kind: str, how: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, images)
    elif kind == "npz":
        np.savez(path, images=images)
    else:
        path = tmp_path / "a"
        path.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(path / f"{number:02}.png")
    data, memory = load_data(path, binarize=how, limit=9), load_data(images, binarize=how, limit=9)
    assert data.space == ImageSpace(3, 5, 4, 2)
    assert data.checksum == memory.checksum
    ours, theirs = stream(data.train, 7), stream(memory.train, 7)
    assert (ours.items is None) == (kind == "npy")
    assert theirs.items is not None
    assert torch.equal(batches(ours, 4), batches(theirs, 4))


class TestStream:
    def test_epochs_differ_and_batches_are_binary(self) -> None:
        data = load_data("digits", binarize="dynamic")
        n = len(data.train)
        source = stream(data.train, n)
        orders = [np.random.Generator(np.random.PCG64([1, epoch])).permutation(n) for epoch in (0, 1)]
        epochs = [source.next().x[torch.from_numpy(np.argsort(order))] for order in orders]
        intensities = load_data("digits").train.read()[0]
        for images in epochs:
            data.space.check(images)
            assert images.dtype == torch.uint8
            assert (images.numpy()[intensities == 0] == 0).all()
            assert (images.numpy()[intensities == 16] == 1).all()
        p = intensities / 16
        differ = float((epochs[0] != epochs[1]).double().mean())
        assert differ == pytest.approx(2 * (p * (1 - p)).mean(), rel=0.03)
        assert not np.array_equal(epochs[0].numpy(), data.train.read()[0])

    def test_goes_on_from_any_position(self) -> None:
        data = load_data("digits", binarize="dynamic")
        source = stream(data.train, 100)
        batches(source, 15)  # past the end of an epoch
        assert torch.equal(batches(stream(data.train, 100, position=source.position), 3), batches(source, 3))

    def test_two_streams_agree_and_seeds_differ(self) -> None:
        train = load_data("digits", binarize="dynamic").train
        assert torch.equal(batches(stream(train), 5), batches(stream(train), 5))
        items = Binarized(np.full((9, 1, 8, 8), 128, np.uint8), 256, "dynamic", np.arange(9), 0)
        drawn = [batches(stream(Split(items), seed=seed), 1) for seed in (1, 2)]  # equal items: order plays no part
        assert not torch.equal(*drawn)

    def test_fixed_items_are_taken_as_they_are_read(self) -> None:
        data = load_data("digits", binarize="fixed")
        assert in_memory(data.train.items, 2**20) is not None
        assert torch.equal(batches(stream(data.train), 9), batches(stream(Split(data.train.read()[0])), 9))

    @pytest.mark.parametrize("levels", [3, 17, 256, 4096])
    def test_mean_of_many_draws_is_the_intensity(self, levels: int) -> None:
        values: Any = np.linspace(0, levels - 1, 40).round().astype(np.uint8 if levels <= 256 else np.int32)
        items = Binarized(values.reshape(1, 1, 5, 8).repeat(1000, 0), levels, "dynamic", np.arange(1000), 0)
        n = 20_000
        mean = batches(stream(Split(items), 1000), n // 1000).double().mean(dim=0).numpy()
        assert abs(chi_square(mean.ravel(), values / (levels - 1), n)) < 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"source": "digits", "binarize": "static"}, "binarize is 'static'; it must be one of 'none', 'dynamic'"),
        ({"source": "digits", "binarize": None}, "binarize is None"),
        ({"source": "ring8", "binarize": "fixed"}, "binarize applies to images only, and 'ring8' holds points"),
        ({"source": "digits", "levels": 2, "binarize": "fixed"}, "'digits' has only 2 levels"),
        ({"source": np.ones((30, 2, 2), bool), "binarize": "dynamic"}, "'arrays' has only 2 levels"),
    ],
)
def test_what_cannot_be_binarised_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_data(**arguments)
    assert "\n" not in str(caught.value)


def test_palettes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(36).reshape(9, 2, 2) % 4, palette=np.arange(12).reshape(4, 3))
    with pytest.raises(InputError, match="'a' holds indices into a palette"):
        load_data(tmp_path / "a.npz", binarize="threshold")


@pytest.mark.parametrize("how", ["dynamic", "fixed", "threshold"])
def test_show_tells_and_draws_it(how: Any, tmp_path: Path) -> None:
    data = load_data("digits", binarize=how, seed=3)
    lines = describe(data)
    assert any("8x8 grey images, 2 levels" in line for line in lines)
    assert any("values    0 .. 1" in line for line in lines)
    assert any(("The 17 levels became 2" in line) and ("seed 3" in line) == (how != "threshold") for line in lines)
    assert any("drawn anew at every access" in line for line in lines) == (how == "dynamic")
    draw(data, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        values = np.asarray(picture.convert("L"))
    assert {0, 255} <= set(np.unique(values).tolist())


def test_the_command_line_has_it() -> None:
    assert DataConfig().to_arguments()["binarize"] == "none"
    assert load_data("digits", **DataConfig(binarize="fixed").to_arguments()).space == ImageSpace(1, 8, 8, 2)


@needs_mnist
class TestMNIST:
    def test_entropy_of_the_noise(self) -> None:
        p = mnist().test.read()[0].reshape(-1, 784) / 255
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = -np.nan_to_num(p * np.log(p)) - np.nan_to_num((1 - p) * np.log1p(-p))
        assert nats.sum(axis=1).mean() == pytest.approx(45.5, abs=1.0)
        # The log-probability of the draws under the intensities is minus that entropy, if they are drawn right.
        drawn = mnist("dynamic").test.read()[0].reshape(-1, 784)
        with np.errstate(divide="ignore"):
            log_prob = np.where(drawn == 1, np.log(p), np.log1p(-p)).sum(axis=1)
        error = (log_prob + nats.sum(axis=1)).std() / np.sqrt(len(p))
        assert abs(log_prob.mean() + nats.sum(axis=1).mean()) < 5 * error

    def test_mean_of_fresh_draws(self) -> None:
        few = mnist("dynamic").train.items
        assert isinstance(few, Binarized)
        index = np.arange(50)
        items = Binarized(few.items[index], few.levels, few.how, index, few.key)
        source, n, total = stream(Split(items), 50), 600, torch.zeros(50, 1, 28, 28)
        for epoch in range(n):
            order = np.random.Generator(np.random.PCG64([1, epoch])).permutation(50)
            total[torch.from_numpy(order)] += source.next().x
        p = mnist().train.read(index)[0] / 255
        assert abs(chi_square(total.numpy() / n, p, n)) < 5

    def test_reads_as_fixed_and_alone_as_with_others(self) -> None:
        train = mnist("dynamic").train
        whole = train.read()[0]
        for place in (0, 1, 31_415, len(train) - 1):
            assert np.array_equal(train.read(np.array([place]))[0][0], whole[place])
        p = mnist().train.read(slice(5000))[0] / 255
        error = np.sqrt((p * (1 - p)).sum()) / p.size
        assert abs(whole[:5000].mean(dtype=np.float64) - p.mean()) < 5 * error

    def test_streams_resume(self) -> None:
        train = mnist("dynamic").train
        source = stream(train, 64, position=len(train) - 100)
        first = batches(source, 4)
        assert torch.equal(batches(stream(train, 64, position=len(train) - 100), 4), first)
        assert torch.equal(batches(stream(train, 64, position=source.position), 2), batches(source, 2))
