"""load_data: names, arguments, splits, and what a data set remembers."""

import json
from pathlib import Path

import numpy as np
import pytest

from triptych.data.dataset import split_positions
from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.spaces import ImageSpace

SHARED = Path(__file__).parents[2] / "shared" / "data"

IMAGES = np.arange(40 * 4 * 4, dtype=np.uint8).reshape(40, 4, 4)


def test_digits_are_scikit_learns_with_its_test_part() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_data("digits")
    bunch = load_digits()
    _, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0)
    images, labels = data.test.read()
    assert np.array_equal(images[:, 0], bunch.images[test])
    assert np.array_equal(labels, bunch.target[test])
    assert data.space == ImageSpace(1, 8, 8, 17)
    assert images.dtype == np.uint8
    assert (len(data.train), len(data.valid), len(data.test)) == (1293, 144, 360)
    assert data.class_names == tuple("0123456789")
    assert data.source == {"source": "digits"}
    assert load_data("digits").checksum == data.checksum
    assert load_data("digits", seed=1).checksum != data.checksum


def test_digits_in_two_levels() -> None:
    data = load_data("digits", levels=2)
    full = load_data("digits")
    assert data.space == ImageSpace(1, 8, 8, 2)
    assert np.array_equal(data.train.read()[0], full.train.read()[0] > 8)
    assert data.repaired


def test_a_source_without_splits_is_cut_by_seed() -> None:
    data = load_data(IMAGES, labels=np.arange(40) % 3, valid_fraction=0.2, test_fraction=0.25, seed=3)
    valid, test, train = split_positions(40, [0.2, 0.25], 3)
    for split, positions in ((data.train, train), (data.valid, valid), (data.test, test)):
        images, labels = split.read()
        assert np.array_equal(images[:, 0], IMAGES[positions])
        assert np.array_equal(labels, positions % 3)
    assert data.source == {"source": "<arrays>", "valid_fraction": 0.2, "test_fraction": 0.25, "seed": 3}
    assert any("0.2 of it became valid and 0.25 test" in sentence for sentence in data.found)


def test_train_and_test_leave_valid_to_be_carved_from_train(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=IMAGES[:30], test=IMAGES[30:])
    data = load_data(tmp_path / "a.npz", valid_fraction=0.2)
    taken, kept = split_positions(30, [0.2], 0)
    assert np.array_equal(data.valid.read()[0][:, 0], IMAGES[taken])
    assert np.array_equal(data.train.read()[0][:, 0], IMAGES[kept])
    assert np.array_equal(data.test.read()[0][:, 0], IMAGES[30:])
    assert any("0.2 of train became valid" in sentence for sentence in data.found)


def test_limit_draws_from_each_split() -> None:
    data = load_data("digits", limit=50)
    full = load_data("digits")
    assert [len(split) for split in data.splits.values()] == [50, 50, 50]
    assert data.source == {"source": "digits", "limit": 50}
    assert sum("was cut from" in sentence for sentence in data.found) == 3
    whole = {image.tobytes() for image in full.train.read()[0]}
    assert all(image.tobytes() in whole for image in data.train.read()[0])
    assert load_data("digits", limit=50).checksum == data.checksum
    assert len(load_data("digits", limit=10**6).train) == len(full.train)


def test_source_reads_the_same_set_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    monkeypatch.chdir(tmp_path)
    data = load_data("a.npy", levels=4, limit=9, seed=5)
    monkeypatch.chdir("/")
    again = json.loads(json.dumps(data.source))
    assert again == {"source": str(tmp_path / "a.npy"), "levels": 4, "limit": 9, "seed": 5}
    assert load_data(**again).checksum == data.checksum


def test_equal_data_have_equal_checksums_wherever_read_from(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", images=IMAGES)
    sets = [load_data(source) for source in (IMAGES, tmp_path / "a.npy", str(tmp_path / "b.npz"))]
    assert len({data.checksum for data in sets}) == 1


def test_a_set_in_memory_does_not_change_with_the_users_array() -> None:
    images = IMAGES.copy()
    data = load_data(images)
    before = data.train.read()[0]
    images[:] = 0
    assert np.array_equal(data.train.read()[0], before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"source": "digit"}, r"'digit' is neither a known set.*Did you mean 'digits'\?"),
        ({"source": "rng8"}, "Did you mean 'ring8'"),
        ({"source": "zzz/a.npy"}, "There is no file or folder 'zzz/a.npy'"),
        ({"source": ""}, "'' is no source"),
        ({"source": "a\0b"}, "is no source"),
        ({"source": "<arrays>"}, "pass the same array again"),
        ({"source": "/dev/null"}, "neither a file nor a folder"),
        ({"source": "digits", "size": 4}, "size applies to folders and zips of images only, not to 'digits'"),
        ({"source": "digits", "crop": "pad"}, "crop applies"),
        ({"source": "digits", "grey": True}, "grey applies"),
        ({"source": "ring8", "levels": 4}, "levels applies to images only"),
        ({"source": IMAGES, "skip_bad": True}, "skip_bad applies"),
        ({"source": "digits", "labels": np.zeros(3)}, "labels go with an array"),
        ({"source": "digits", "crop": "centre"}, "crop is 'centre'"),
        ({"source": "digits", "levels": 1}, "levels is 1"),
        ({"source": "digits", "levels": 2.5}, "levels is 2.5"),
        ({"source": "digits", "size": 0}, "size is 0"),
        ({"source": "digits", "size": (4, 4, 4)}, "give one number, or height and width"),
        ({"source": "digits", "size": "4"}, "size is '4'"),
        ({"source": "digits", "size": 10**5}, "megapixels"),
        ({"source": "digits", "valid_fraction": 0}, "valid_fraction is 0"),
        ({"source": "digits", "test_fraction": float("nan")}, "test_fraction is nan"),
        ({"source": "digits", "valid_fraction": 0.5, "test_fraction": 0.5}, "together"),
        ({"source": "digits", "seed": -1}, "seed is -1"),
        ({"source": "digits", "limit": 0}, "limit is 0"),
        ({"source": IMAGES[:2]}, "The train split of 'arrays' is empty"),
        ({"source": np.zeros((2, 2))}, "The train split of 'arrays' is empty"),
        ({"source": IMAGES, "labels": np.zeros(3, int)}, "3 labels for 40 items"),
        ({"source": IMAGES, "labels": np.full(40, -1)}, "-1 .. -1"),
        ({"source": IMAGES, "labels": np.full(40, 0.5)}, "whole numbers"),
        ({"source": IMAGES, "labels": np.full(40, np.nan)}, "whole numbers"),
        ({"source": IMAGES, "labels": ["a"] * 40}, "whole numbers"),
        ({"source": IMAGES, "labels": np.zeros((40, 3), int)}, r"shape \(40, 3\)"),
    ],
)
def test_bad_arguments_are_one_line(arguments: dict, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_data(**arguments)
    assert "\n" not in str(caught.value)


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="Did you mean 'pictures'"):
        load_data(tmp_path / "picture")


@pytest.mark.parametrize(("name", "says"), [("a.png", "is one image"), ("a.txt", "of no known kind")])
def test_other_files_are_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=says):
        load_data(tmp_path / name)


def test_labels_are_renumbered_and_named() -> None:
    data = load_data(IMAGES, labels=np.where(np.arange(40) % 2, 7, 12)[:, None])
    assert data.class_names == ("7", "12")
    images, labels = data.train.read()
    positions = images[:, 0, 0, 0] // 16  # IMAGES counts up
    assert np.array_equal(labels, 1 - positions % 2)
    assert labels.dtype == np.int64


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_real_sets() -> None:
    mnist = load_data(SHARED / "mnist")
    assert mnist.space == ImageSpace(1, 28, 28)
    assert [len(split) for split in mnist.splits.values()] == [54000, 6000, 10000]
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    binary = load_data(SHARED / "binarized_mnist.npz", limit=100)
    assert binary.space == ImageSpace(1, 28, 28, 2)
    cifar = load_data(SHARED / "cifar10_jpeg_test.zip")
    assert cifar.space == ImageSpace(3, 32, 32)
    assert cifar.n_classes == 10
    assert sum(np.bincount(split.labels) for split in cifar.splits.values()).tolist() == [1000] * 10
