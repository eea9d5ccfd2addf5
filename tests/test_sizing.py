"""Models of about as many parameters."""

import numpy as np
import pytest

import triptych
from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models.registry import create_model
from triptych.sizing import options_of_size


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return triptych.load_data("digits", limit=200)


@pytest.mark.parametrize("name", ["pixel_cnn", "made", "vae", "gan", "gaussian_mixture", "row_lstm"])
def test_every_model_comes_near_the_number(digits: Dataset, name: str) -> None:
    found = options_of_size(name, digits, 60_000)
    ((option, width),) = found.options.items()
    assert abs(found.n_parameters - 60_000) < 12_000
    model = create_model(name, digits.space, **found.options)
    tensors = [*model.parameters()] or [*model.state_dict().values()]
    assert sum(tensor.numel() for tensor in tensors) == found.n_parameters
    assert f"{option}={width}" in found.describe(name)


def test_it_is_the_nearest_width(digits: Dataset) -> None:
    found = options_of_size("made", digits, 50_000)
    width = found.options["hidden"]

    def count(width: int) -> int:
        return sum(p.numel() for p in create_model("made", digits.space, hidden=width).parameters())

    errors = {w: abs(count(w) - 50_000) for w in range(max(1, width - 3), width + 4)}
    assert min(errors, key=lambda w: (errors[w], w)) == width


def test_other_options_stay_and_the_width_cannot_be_given(digits: Dataset) -> None:
    deep = options_of_size("pixel_cnn", digits, 60_000, n_blocks=2).options["hidden"]
    shallow = options_of_size("pixel_cnn", digits, 60_000, n_blocks=8).options["hidden"]
    assert deep > shallow
    with pytest.raises(InputError, match=r"leave out --set pixel_cnn\.hidden"):
        options_of_size("pixel_cnn", digits, 60_000, hidden=8)


def test_what_cannot_be_is_refused_or_said(digits: Dataset) -> None:
    assert options_of_size("kernel_density", digits, 1000).describe("kernel_density").startswith("kernel_density keeps")
    with pytest.raises(InputError, match="at least 1"):
        options_of_size("vae", digits, 0)
    with pytest.raises(InputError, match="cannot have some 3 parameters: the nearest is"):
        options_of_size("pixel_cnn", digits, 3)
    with pytest.raises(InputError, match="leave vq_vae out"):  # Its prior has a size of its own.
        options_of_size("vq_vae", digits, 60_000)


def test_there_are_no_more_components_than_training_items(digits: Dataset) -> None:
    n = len(digits.train)
    assert options_of_size("k_means", digits, 65 * (n + 20)).options == {"n_components": n}
    with pytest.raises(InputError, match=f"the nearest is .* at n_components={n}"):
        options_of_size("k_means", digits, 65 * 4 * n)
    assert digits.train.labels is not None
    fewest = int(np.bincount(digits.train.labels).min())
    found = options_of_size("k_means", digits, 10 * 65 * (fewest + 2), n_classes=10)
    assert found.options == {"n_components": fewest}
