"""The discriminator's test: what is known exactly, the level, the power, and the bound against known divergences."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.evaluation.discriminator import LEAST_ITEMS, _calibration, _measure, classifier_two_sample_test
from triptych.spaces import ImageSpace, PointSpace

LINE, PLANE, DIGITS = PointSpace(1), PointSpace(2), ImageSpace(1, 8, 8, 17)


def gaussian(n: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, dim)) + shift).astype(np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    data = load_data("digits")
    return np.concatenate([split.read()[0] for split in data.splits.values()])


def test_measures_what_logits_say() -> None:
    of_real, of_generated = np.array([2.0, 1.0, -1.0]), np.array([0.0, -2.0, -3.0])
    found = _measure(of_real, of_generated, generator())
    losses = [-math.log(1 / (1 + math.exp(-t))) for t in (2.0, 1.0, -1.0, 0.0, 2.0, 3.0)]
    assert found.n == 6
    assert found.accuracy == pytest.approx(2 / 3)  # of the upper half, 2, 1 and 0, two are real
    assert found.cross_entropy == pytest.approx(np.mean(losses))
    assert found.jsd_bound == pytest.approx(math.log(2) - np.mean(losses))
    error = math.sqrt(np.var(losses[:3], ddof=1) / 3 + np.var(losses[3:], ddof=1) / 3) / 2
    assert found.jsd_bound - found.jsd_low == pytest.approx(1.96 * error, rel=1e-3)
    # Of the 20 ways to choose three logits, {2, 1, 0} has the larger sum, and {2, 1, -1} this one: p is 2/20.
    assert found.p_value == pytest.approx(0.1, abs=0.03)


def test_logits_all_equal_are_no_evidence() -> None:
    found = _measure(np.full(50, 0.1), np.full(50, 0.1), generator())
    assert found.p_value == 1.0
    assert found.null_low <= found.accuracy <= found.null_high


def test_null_interval_is_that_of_the_accuracy() -> None:
    rng = generator(1)
    found = [_measure(rng.standard_normal(40), rng.standard_normal(40), rng) for _ in range(300)]
    accuracies = np.array([each.accuracy for each in found])
    assert found[0].null_high - 0.5 == pytest.approx(1.96 * accuracies.std(), rel=0.15)
    assert found[0].null_high - 0.5 == pytest.approx(1.96 / math.sqrt(4 * 80), rel=0.02)
    assert 0.02 <= np.mean([each.p_value <= 0.05 for each in found]) <= 0.08


def test_calibration_undoes_a_scale_and_a_shift() -> None:
    rng = generator(2)
    of_real, of_generated = rng.normal(1, math.sqrt(2), 4000), rng.normal(-1, math.sqrt(2), 4000)
    slope, shift = _calibration(5 * of_real + 2, 5 * of_generated + 2)  # the log-ratio of these Gaussians is x itself
    assert slope == pytest.approx(0.2, rel=0.1)
    assert shift == pytest.approx(-0.4, abs=0.1)


def test_disjoint_supports_reach_ln_2() -> None:
    found = classifier_two_sample_test(gaussian(500, 2, 0), gaussian(500, 2, 1, shift=20), PLANE, max_steps=150)
    assert found.accuracy == 1.0
    assert found.jsd_bound == pytest.approx(math.log(2), abs=0.02)
    assert found.jsd_high <= math.log(2)
    assert found.p_value == 1 / 2000
    assert found.n == 400


def test_repeats_and_leaves_global_randomness_alone(digits: np.ndarray) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    for items, space in ((gaussian(120, 2, 0), PLANE), (digits[:120], DIGITS)):
        first, again, other = (
            classifier_two_sample_test(items[:60], items[60:], space, seed=seed, max_steps=4) for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index] # noqa: NPY002


def test_takes_as_many_of_each_set(digits: np.ndarray) -> None:
    found = classifier_two_sample_test(gaussian(300, 1, 0), gaussian(50, 1, 1), LINE, max_steps=3)
    assert found.n == 40
    assert classifier_two_sample_test(digits[:40], digits[40:90], DIGITS, max_steps=2).n == 32


def test_palettes_are_seen_in_their_colours() -> None:
    # Levels 1 and 2 have one colour: images that differ in them alone are the same to look at.
    space = ImageSpace(1, 5, 6, 3, palette=((0, 0, 0), (200, 10, 10), (200, 10, 10)))
    rng = generator()
    real = rng.integers(0, 2, size=(100, 1, 5, 6)).astype(np.uint8)
    same = np.where(real == 1, 2, 0).astype(np.uint8)
    as_seen = classifier_two_sample_test(real, same, space, max_steps=10)
    assert as_seen == classifier_two_sample_test(real, real, space, max_steps=10)
    grey = classifier_two_sample_test(real, same, ImageSpace(1, 5, 6, 3), max_steps=30)
    assert grey.p_value <= 0.01


def test_sees_a_difference_in_brightness(digits: np.ndarray) -> None:
    # Normalisation takes the brightness of an image away; the linear part sees it.
    halves = np.random.default_rng(0).permutation(digits)[:600].clip(max=14)
    found = classifier_two_sample_test(halves[:300], halves[300:] + 2, DIGITS, max_steps=40)
    assert found.p_value <= 0.001
    assert found.jsd_bound > 0.3


def test_level_and_power_on_points() -> None:
    def alarms(shift: float) -> float:
        found = [
            classifier_two_sample_test(
                gaussian(60, 2, 2 * seed), gaussian(60, 2, 2 * seed + 1, shift), PLANE, seed=seed, max_steps=30
            )
            for seed in range(12)
        ]
        return float(np.mean([each.p_value <= 0.05 for each in found]))

    assert alarms(0.0) <= 3 / 12  # more have a chance of 0.2 %
    assert alarms(1.0) >= 9 / 12


def test_a_missing_mode_is_seen() -> None:
    rng = generator(3)
    means = np.array([-4.0, 0.0, 4.0])
    real = (rng.choice(means, (600, 1)) + 0.2 * rng.standard_normal((600, 1))).astype(np.float32)
    generated = (rng.choice(means[:2], (600, 1)) + 0.2 * rng.standard_normal((600, 1))).astype(np.float32)
    found = classifier_two_sample_test(real, generated, LINE, max_steps=150)
    # 1/3 against 0, and twice 1/3 against 1/2: in nats
    truth = (math.log(2) / 3 + 2 / 3 * math.log(0.8) + math.log(1.2)) / 2
    assert found.p_value <= 0.001
    assert found.jsd_low <= truth
    assert found.jsd_bound >= 0.5 * truth


def test_refusals(digits: np.ndarray) -> None:
    few = gaussian(LEAST_ITEMS - 1, 2, 0)
    with pytest.raises(InputError, match="generated has 39 items; the classifier test needs at least 40"):
        classifier_two_sample_test(gaussian(100, 2, 0), few, PLANE)
    with pytest.raises(InputError, match="max_steps is 0; it must be at least 1"):
        classifier_two_sample_test(gaussian(100, 2, 0), gaussian(100, 2, 1), PLANE, max_steps=0)
    with pytest.raises(InputError, match="real have shape"):
        classifier_two_sample_test(gaussian(100, 3, 0), gaussian(100, 2, 1), PLANE)
    with pytest.raises(InputError, match="generated hold NaN or infinite values"):
        classifier_two_sample_test(gaussian(100, 2, 0), np.full((100, 2), np.nan, dtype=np.float32), PLANE)
    with pytest.raises(InputError, match="generated have dtype float64"):
        classifier_two_sample_test(digits[:100], digits[:100] / 16, DIGITS)


def test_trains_on_the_device_that_it_is_given() -> None:
    with pytest.raises(RuntimeError):
        classifier_two_sample_test(gaussian(60, 2, 0), gaussian(60, 2, 1), PLANE, max_steps=1, device="no-such-device")
    with pytest.raises((RuntimeError, NotImplementedError)):  # 'meta' holds shapes without values: nothing comes back
        classifier_two_sample_test(gaussian(60, 2, 0), gaussian(60, 2, 1), PLANE, max_steps=1, device="meta")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import discriminator_test

    yield discriminator_test
    sys.modules.pop("discriminator_test")


@pytest.mark.slow
def test_bounds_of_ten_known_divergences(benchmark) -> None:  # type: ignore[no-untyped-def]
    shares = []
    for pair in benchmark.pairs():
        found = benchmark.measure(pair, 20_000 if isinstance(pair.space, PointSpace) else 10_000, seed=0)
        assert found.jsd_low <= pair.jsd, pair.name
        assert found.p_value == 1 / 2000
        shares.append(found.jsd_bound / pair.jsd)
    assert len(shares) == 10
    assert sum(0.85 <= share <= 1.15 for share in shares) >= 8, shares


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["points", "images"])
def test_level_over_200_repetitions(kind: str, digits: np.ndarray) -> None:
    n_alarms = 0
    for seed in range(200):
        items = gaussian(200, 2, seed) if kind == "points" else np.random.default_rng(seed).permutation(digits)
        half, space = len(items) // 2, PLANE if kind == "points" else DIGITS
        found = classifier_two_sample_test(items[:half], items[half:], space, seed=seed, max_steps=10)
        n_alarms += found.p_value <= 0.05
    assert 4 <= n_alarms <= 16
