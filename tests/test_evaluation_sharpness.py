"""Gradient energy and power spectra: values worked out by hand, and what blur, noise and contrast do to them."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from triptych.errors import InputError
from triptych.evaluation import sharpness as module
from triptych.evaluation.sharpness import (
    faintest,
    gradient_energy,
    has_sharpness,
    radial_power,
    relative_sharpness,
    spectral_distance,
    spectrum,
)
from triptych.spaces import ImageSpace, PointSpace, Space

GREY = ImageSpace(1, 16, 16)
RGB = ImageSpace(3, 16, 20)


def scenes(n: int, space: ImageSpace, seed: int = 0) -> np.ndarray:
    """Bright rectangles on dark ground: edges in every image, 0 .. 255."""
    rng = np.random.default_rng(seed)
    images = np.full((n, *space.shape), 40, dtype=np.uint8)
    for image in images:
        top, left = rng.integers(0, space.height - 4), rng.integers(0, space.width - 4)
        height, width = rng.integers(3, space.height // 2, size=2)
        image[:, top : top + height, left : left + width] = rng.integers(120, 256, size=(space.channels, 1, 1))
    return images


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    flat = images.reshape(-1, *images.shape[2:])
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in flat]).reshape(images.shape)


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(scale=sigma, size=images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def measured(samples: np.ndarray, held_out: np.ndarray, space: ImageSpace) -> tuple[float, float]:
    """(spectral distance, sharpness)."""
    spectra = [spectrum(radial_power(x, space), space) for x in (samples, held_out)]
    energies = [gradient_energy(x, space) for x in (samples, held_out)]
    return spectral_distance(spectra[0], spectra[1]), relative_sharpness(energies[0], energies[1], space)


def test_gradient_energy_by_hand() -> None:
    space = ImageSpace(1, 8, 10, 5)
    rows, columns = np.indices((8, 10))
    stripes, checkers = columns % 2 * 4, (rows + columns) % 2 * 4
    ramp, corner = rows // 2, (rows + columns == 0) * 3
    images = np.stack([stripes, checkers, ramp, corner, np.full((8, 10), 2)])[:, None].astype(np.uint8)
    expected = [1, 2, 3 / 7 / 16, (1 / (7 * 10) + 1 / (8 * 9)) * 9 / 16, 0]
    np.testing.assert_allclose(gradient_energy(images, space), expected, rtol=1e-12)
    two_channels = np.concatenate([images[:1], images[1:2]], axis=1)
    np.testing.assert_allclose(gradient_energy(two_channels, ImageSpace(2, 8, 10, 5)), [1.5], rtol=1e-12)


def test_radial_power_is_its_definition() -> None:
    """Against the Fourier sum written out, ring by ring; so long that frequencies below the first ring join it."""
    space = ImageSpace(3, 9, 22, 256)
    images = np.random.default_rng(0).integers(0, 256, size=(2, *space.shape), dtype=np.uint8)
    y, x = np.indices((9, 22))
    window = (np.sin(np.pi * (y + 0.5) / 9) * np.sin(np.pi * (x + 0.5) / 22)) ** 2
    rings: dict[int, list[np.ndarray]] = {}
    for i in range(-4, 5):
        for j in range(-11, 11):
            if (i, j) == (0, 0):
                continue
            wave = np.exp(-2j * np.pi * (i * y / 9 + j * x / 22))
            levels = images / 255
            centred = levels - (levels * window).sum((2, 3), keepdims=True) / window.sum()
            power = abs((centred * window * wave).sum((2, 3))) ** 2 / (window**2).sum()  # (2, 3)
            rings.setdefault(max(1, round(9 * math.hypot(i / 9, j / 22))), []).append(power.mean(1))
    expected = np.stack([np.mean(rings[k], axis=0) for k in range(1, max(rings) + 1)], axis=1)
    np.testing.assert_allclose(radial_power(images, space), expected, rtol=1e-9)


@pytest.mark.parametrize(("height", "width", "n_frequencies"), [(8, 8, 6), (28, 28, 20), (32, 32, 23), (8, 100, 6)])
def test_number_of_frequencies(height: int, width: int, n_frequencies: int) -> None:
    space = ImageSpace(1, height, width)
    assert radial_power(np.zeros((2, *space.shape), dtype=np.uint8), space).shape == (2, n_frequencies)


def test_white_noise_has_its_variance_in_every_ring() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(4000, *GREY.shape), dtype=np.uint8)
    variance = (256**2 - 1) / 12 / 255**2
    # The lowest frequencies lose some power with the mean.
    np.testing.assert_allclose(radial_power(images, GREY).mean(axis=0)[1:], variance, rtol=0.03)


def test_a_wave_lies_in_its_ring_and_checkers_in_the_last() -> None:
    rows, columns = np.indices((32, 32))
    space = ImageSpace(1, 32, 32)
    wave = np.rint(127.5 + 127 * np.cos(2 * np.pi * 6 * columns / 32))
    images = np.stack([wave, (rows + columns) % 2 * 255])[:, None].astype(np.uint8)
    power = radial_power(images, space)
    assert power.argmax(axis=1).tolist() == [5, power.shape[1] - 1]
    # A Hann window spreads a wave over two neighbours, no further.
    far = np.abs(np.arange(power.shape[1]) - 5) > 2
    assert power[0, far].max() < 1e-3 * power[0].max()


def test_the_window_hides_the_step_between_opposite_edges() -> None:
    """A smooth ramp has no power at high frequencies, although its left edge is dark and its right edge bright."""
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8) * 17, (1, *GREY.shape))
    power = radial_power(ramp, GREY)[0]
    assert power[5:].max() < 1e-4 * power[0]


@pytest.mark.parametrize("space", [GREY, RGB], ids=str)
def test_equal_sets_are_at_0_and_1(space: ImageSpace) -> None:
    images = scenes(50, space)
    assert measured(images, images, space) == (0, 1)
    distance, ratio = measured(images[::-1], images, space)
    assert distance < 1e-12
    assert ratio == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("space", [GREY, RGB], ids=str)
def test_blur_lowers_sharpness_and_moves_the_spectrum_with_its_radius(space: ImageSpace) -> None:
    held_out, images = scenes(300, space, seed=0), scenes(300, space, seed=1)
    found = [measured(images, held_out, space)]
    found += [measured(blurred(images, radius), held_out, space) for radius in (0.5, 0.75, 1, 1.5, 2)]
    distances, ratios = np.transpose(found)
    assert (np.diff(distances) > 0.05).all()
    assert (np.diff(ratios) < -0.05 * ratios[:-1]).all()
    assert distances[0] < 0.1
    assert ratios[0] == pytest.approx(1, abs=0.15)
    assert ratios[3] < 0.5


def test_blur_takes_most_from_the_highest_frequencies() -> None:
    images = scenes(300, GREY)
    lost = spectrum(radial_power(images, GREY), GREY) - spectrum(radial_power(blurred(images, 1), GREY), GREY)
    half = len(lost) // 2
    assert lost[half:].min() > lost[:half].max()


def test_noise_raises_sharpness() -> None:
    images = scenes(300, GREY)
    distances, ratios = np.transpose([measured(noisy(images, sigma), images, GREY) for sigma in (2, 8, 32)])
    assert ratios[0] > 1
    assert (np.diff(ratios) > 0).all()
    assert (np.diff(distances) > 0).all()
    assert distances[0] > 0


def test_the_spectrum_sees_what_balances_in_the_energy() -> None:
    images = scenes(300, GREY)
    blurry = blurred(images, 1.5)
    wanted, own = gradient_energy(images, GREY).mean(), gradient_energy(blurry, GREY).mean()
    distance, ratio = measured(noisy(blurry, 255 * math.sqrt((wanted - own) / 4)), images, GREY)
    assert ratio == pytest.approx(1, abs=0.1)
    assert distance > 0.3


def test_contrast_moves_all_frequencies_alike() -> None:
    held_out = scenes(100, GREY) // 2
    distance, ratio = measured(held_out * 2, held_out, GREY)
    assert distance == pytest.approx(2 * math.log10(2), rel=1e-9)
    assert ratio == pytest.approx(4, rel=1e-9)


def test_constant_images_stop_at_the_floor() -> None:
    images, constant = scenes(50, GREY), np.full((50, *GREY.shape), 77, dtype=np.uint8)
    assert faintest(GREY) == pytest.approx(1 / (255**2 * 256))
    np.testing.assert_allclose(spectrum(radial_power(constant, GREY), GREY), math.log10(faintest(GREY)))
    assert measured(constant, constant, GREY) == (0, 1)
    distance, ratio = measured(constant, images, GREY)
    assert 2 < distance < 8
    assert ratio == pytest.approx(faintest(GREY) / gradient_energy(images, GREY).mean())
    assert measured(images, constant, GREY) == pytest.approx((distance, 1 / ratio))


def test_two_levels() -> None:
    space = ImageSpace(1, 16, 16, 2)
    images = (scenes(100, GREY) > 100).astype(np.uint8)
    full = images * np.uint8(255)
    np.testing.assert_allclose(gradient_energy(images, space), gradient_energy(full, GREY), rtol=1e-12)
    np.testing.assert_allclose(radial_power(images, space), radial_power(full, GREY), rtol=1e-9)


def test_many_levels_do_not_overflow() -> None:
    space = ImageSpace(1, 8, 8, 65536)
    images = np.zeros((1, 1, 8, 8), dtype=np.int32)
    images[..., 1::2] = 65535
    np.testing.assert_allclose(gradient_energy(images, space), [1])


def test_features_depend_on_no_batch_and_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(23, RGB)
    order = np.random.default_rng(0).permutation(23)
    for features in (gradient_energy, radial_power):
        whole = features(images, RGB)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_BLOCK_ENTRIES", 5 * RGB.n_dims)
            np.testing.assert_allclose(features(images, RGB), whole, rtol=1e-12, atol=1e-18)
        np.testing.assert_allclose(features(images[order], RGB), whole[order], rtol=1e-12, atol=1e-18)
        np.testing.assert_allclose(features(images[7:8], RGB)[0], whole[7], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize(
    ("space", "has"),
    [
        (GREY, True),
        (RGB, True),
        (ImageSpace(1, 8, 8, 2), True),
        (ImageSpace(1, 7, 30), False),
        (ImageSpace(1, 8, 8, 2, ((0, 0, 0), (255, 255, 255))), False),
        (PointSpace(2), False),
    ],
    ids=str,
)
def test_which_spaces_have_sharpness(space: Space, has: bool) -> None:
    assert has_sharpness(space) == has
    if not has and isinstance(space, ImageSpace):
        for features in (gradient_energy, radial_power):
            with pytest.raises(InputError, match="this space is"):
                features(np.zeros((2, *space.shape), dtype=np.uint8), space)


def test_wrong_sets() -> None:
    with pytest.raises(InputError, match="shape"):
        gradient_energy(scenes(2, RGB), GREY)
    nothing = np.zeros((0, *GREY.shape), dtype=np.uint8)
    with pytest.raises(InputError, match="no images"):
        spectrum(radial_power(nothing, GREY), GREY)
    with pytest.raises(InputError, match="no images"):
        relative_sharpness(gradient_energy(nothing, GREY), np.ones(1), GREY)


def test_a_set_is_not_decided_by_its_constant_images() -> None:
    """One blank among a hundred takes a hundredth of the power, not decades of a mean logarithm."""
    images = scenes(100, GREY)
    with_blank = images.copy()
    with_blank[0] = 0
    assert measured(with_blank, images, GREY)[0] < 0.02
