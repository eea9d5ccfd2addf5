"""Nearest neighbours against a naive search."""

import numpy as np
import pytest

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.features import RandomConvFeatures
from triptych.evaluation.neighbours import FeatureSearch, nearest_neighbours, show_neighbours
from triptych.spaces import ImageSpace, PointSpace


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_neighbours_are_the_naive_ones(chunk: int) -> None:
    rng = np.random.default_rng(0)
    space = ImageSpace(3, 4, 4, 200)
    items = rng.integers(0, 200, size=(50, 3, 4, 4)).astype(np.uint8)
    queries = rng.integers(0, 200, size=(6, 3, 4, 4)).astype(np.uint8)
    positions, distances = nearest_neighbours(queries, Split(items), space, k=4, chunk=chunk)
    naive = np.sqrt((((queries[:, None].astype(float) - items[None]) / 199) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_array_equal(positions, np.argsort(naive, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(distances, np.sort(naive, axis=1)[:, :4], rtol=1e-12)


def test_a_copy_is_at_distance_zero_and_ties_go_to_the_lowest_position() -> None:
    items = np.random.default_rng(0).integers(0, 65536, size=(9, 1, 8, 8)).astype(np.int32)
    items[7] = items[2]
    space = ImageSpace(1, 8, 8, 65536)
    positions, distances = nearest_neighbours(items[[7, 4]], Split(items), space, k=2, chunk=3)
    assert positions[:, 0].tolist() == [2, 4]
    assert positions[0, 1] == 7
    np.testing.assert_array_equal(distances[:, 0], 0)


def test_palette_images_are_compared_by_colour() -> None:
    """Index 1 is next to index 0 but its colour is far; index 2's colour is near."""
    space = ImageSpace(1, 1, 1, 3, palette=((0, 0, 0), (255, 255, 255), (0, 0, 51)))
    items = np.array([1, 2], dtype=np.uint8).reshape(2, 1, 1, 1)
    positions, distances = nearest_neighbours(np.zeros((1, 1, 1, 1), dtype=np.uint8), Split(items), space, k=2)
    assert positions.tolist() == [[1, 0]]
    np.testing.assert_allclose(distances, [[0.2, 3**0.5]])


def test_points_far_from_the_origin() -> None:
    space = PointSpace(2, (1e4, -1e4), 1.0)
    items = np.random.default_rng(0).normal((1e4, -1e4), size=(40, 2)).astype(np.float32)
    shown = show_neighbours(items[:5], Split(items), space, k=2)
    np.testing.assert_array_equal(shown.nearest[:, 0], items[:5])
    np.testing.assert_allclose(shown.distances[:, 0], 0, atol=1e-6)
    expected = np.linalg.norm(shown.nearest[:, 1].astype(float) - items[:5], axis=1)
    np.testing.assert_allclose(shown.distances[:, 1], expected, rtol=1e-6)


def test_fewer_items_than_neighbours_and_wrong_arguments() -> None:
    items = np.zeros((2, 1, 2, 2), dtype=np.uint8)
    space = ImageSpace(1, 2, 2, 2)
    shown = show_neighbours(items[:1], Split(items), space, k=5)
    assert shown.nearest.shape == (1, 2, 1, 2, 2)
    with pytest.raises(InputError, match="at least 1"):
        nearest_neighbours(items, Split(items), space, k=0)
    with pytest.raises(InputError, match="queries"):
        nearest_neighbours(items[:, 0], Split(items), space)


def test_neighbours_in_features_are_the_naive_ones_and_a_shifted_copy_is_nearer_than_in_pixels() -> None:
    rng = np.random.default_rng(0)
    space = ImageSpace(1, 16, 16, 256)
    # Strokes on black, which a shift by a pixel moves off themselves.
    items = np.where(rng.random((60, 1, 16, 16)) < 0.1, 255, 0).astype(np.uint8)
    extractor = RandomConvFeatures(space)
    search = FeatureSearch(extractor, Split(items))
    shifted = np.roll(items[[5, 40]], 1, axis=3)
    shown = search.show(np.concatenate([items[[7]], shifted]), k=4)
    features, queries = extractor(items), extractor(shown.queries)
    naive = np.linalg.norm(queries[:, None] - features[None], axis=2)
    np.testing.assert_array_equal(shown.nearest, items[np.argsort(naive, axis=1, kind="stable")[:, :4]])
    np.testing.assert_allclose(shown.distances, np.sort(naive, axis=1)[:, :4], atol=1e-9)
    assert shown.distances[0, 0] == 0
    np.testing.assert_array_equal(shown.nearest[1:, 0], items[[5, 40]])
    in_pixels = show_neighbours(shifted, Split(items), space, k=1)
    assert (in_pixels.nearest[:, 0] != items[[5, 40]]).any(), "where pixels alone can be misled"


def test_features_are_searched_among_some_items_of_a_large_set() -> None:
    items = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    search = FeatureSearch(RandomConvFeatures(ImageSpace(1, 8, 8)), Split(items), most=20)
    assert len(search) == 20
    np.testing.assert_array_equal(search.show(items[search.positions[:3]], k=1).distances, 0)
