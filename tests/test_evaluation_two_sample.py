"""Two-sample distances against closed forms, naive loops and independent implementations."""

import math

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.evaluation import two_sample
from triptych.evaluation.two_sample import (
    bootstrap_error,
    density_coverage,
    extrapolated_frechet,
    frechet_distance,
    gaussian_statistics,
    kernel_distance,
    mean_distance,
    neighbour_radii,
    precision_recall,
    wilson_interval,
)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_gaussian_statistics_are_numpys() -> None:
    x = draw(0, 50, 7) + 3
    mean, cov = gaussian_statistics(x)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(cov, np.cov(x, rowvar=False), rtol=1e-12)


def test_frechet_closed_form_of_commuting_covariances() -> None:
    a = np.array([1.0, 4.0, 9.0]), np.diag([1.0, 4.0, 9.0])
    b = np.array([0.0, 4.0, 11.0]), np.diag([4.0, 1.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 0 + 4 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0) ** 2, rel=1e-12)


def test_frechet_matches_the_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    for seed, n in ((0, 200), (1, 2000)):
        a = gaussian_statistics(draw(seed, n, 16) @ draw(seed + 10, 16, 16))
        b = gaussian_statistics(draw(seed + 20, n, 16) + 0.3)
        root = linalg.sqrtm(a[1] @ b[1]).real
        expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_matches_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    torch = pytest.importorskip("torch")
    a, b = gaussian_statistics(draw(0, 100, 8)), gaussian_statistics(2 * draw(1, 100, 8) + 1)
    expected = float(fid._compute_fid(*(torch.tensor(value) for value in (*a, *b))))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_deficient_rank_is_zero_to_itself_and_symmetric() -> None:
    a = gaussian_statistics(draw(0, 5, 40))  # rank 4 of 40
    b = gaussian_statistics(draw(1, 8, 40))
    assert abs(frechet_distance(a, a)) < 1e-10
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    constant = gaussian_statistics(np.ones((4, 40)))
    assert frechet_distance(a, constant) == pytest.approx(((a[0] - 1) ** 2).sum() + np.trace(a[1]), rel=1e-12)


def test_kernel_distance_is_the_naive_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "_BLOCK_ENTRIES", 50)  # several blocks, the last one smaller
    x, y = draw(0, 23, 5), 1.5 * draw(1, 17, 5) + 0.2

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 5 + 1) ** 3)

    def naive(x: np.ndarray, y: np.ndarray) -> float:
        n, m = len(x), len(y)
        within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)

    value, error = kernel_distance(x, y)
    assert value == pytest.approx(naive(x, y), rel=1e-10)
    # The jackknife from its definition: leave every item out once.
    left_x = np.array([naive(np.delete(x, i, axis=0), y) for i in range(len(x))])
    left_y = np.array([naive(x, np.delete(y, i, axis=0)) for i in range(len(y))])
    variance = sum((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum() for left in (left_x, left_y))
    assert error == pytest.approx(variance**0.5, rel=1e-8)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_is_unbiased_and_its_error_is_not_too_small(shift: float) -> None:
    rng = np.random.default_rng(0)
    results = np.array([kernel_distance(rng.normal(size=(60, 4)), rng.normal(shift, size=(60, 4))) for _ in range(300)])
    spread = results[:, 0].std()
    if shift == 0:
        assert abs(results[:, 0].mean()) < 3 * spread / 300**0.5
    assert 0.9 * spread < np.sqrt((results[:, 1] ** 2).mean()) < 1.8 * spread


def test_radii_leave_the_item_itself_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "_BLOCK_ENTRIES", 8)
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(neighbour_radii(x, 1), [1, 1, 4, 16])
    np.testing.assert_allclose(neighbour_radii(x, 2), [9, 4, 9, 36])


def test_precision_and_recall_by_hand() -> None:
    real = np.array([[0.0], [1.0], [10.0], [11.0]])
    generated = np.array([[0.5], [0.6], [5.0]])
    # Real balls of radius 1 hold 0.5 and 0.6, not 5. Generated balls: 0.1 around 0.5 and 0.6, 4.4 around 5.
    assert precision_recall(real, generated, k=1) == (pytest.approx(2 / 3), pytest.approx(1 / 4))


def test_mode_collapse_is_precise_without_recall_and_the_order_of_arguments_counts() -> None:
    real = np.concatenate([draw(0, 300, 8) - 10, draw(1, 300, 8) + 10])
    collapsed = draw(2, 600, 8) + 10
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.75
    assert recall == pytest.approx(0.5, abs=0.1)
    assert precision_recall(collapsed, real) == (recall, precision)


def test_one_repeated_item_of_the_data_is_precise_without_recall() -> None:
    real = draw(0, 200, 8)
    precision, recall = precision_recall(real, np.repeat(real[:1], 200, axis=0))
    assert (precision, recall) == (1.0, 1 / 200)


def test_far_noise_has_neither_and_equal_sets_have_both() -> None:
    real = draw(0, 200, 8)
    assert precision_recall(real, 0.1 * draw(1, 200, 8) + 100) == (0.0, 0.0)
    assert precision_recall(real, real[::-1]) == (1.0, 1.0)
    # Repeated data have balls of radius 0, which still hold their equals.
    repeated = np.repeat(real + 1 / 3, 5, axis=0)
    assert precision_recall(repeated, repeated[::-1]) == (1.0, 1.0)


def test_precision_and_recall_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = draw(0, 101, 4), draw(1, 67, 4) + 0.3
    whole = precision_recall(real, generated)
    monkeypatch.setattr(two_sample, "_BLOCK_ENTRIES", 300)
    assert precision_recall(real, generated) == whole
    assert precision_recall(real, generated, real_radii=neighbour_radii(real, 3)) == whole


@pytest.mark.slow
def test_precision_and_recall_of_two_gaussian_draws() -> None:
    """The self-test of Naeem et al. 2020's own code: d = 1000, n = 10000, k = 5 gives .477 and .471."""
    rng = np.random.default_rng(0)
    precision, recall = precision_recall(rng.normal(size=(10000, 1000)), rng.normal(size=(10000, 1000)), k=5)
    assert precision == pytest.approx(0.477, abs=0.03)
    assert recall == pytest.approx(0.471, abs=0.03)


def test_bootstrap_error_of_a_mean() -> None:
    x, y = draw(0, 400, 1), 2 * draw(1, 100, 1)
    error = bootstrap_error(lambda a, b: float(a.mean() - b.mean()), x, y, n_resamples=400)
    assert error == pytest.approx((x.var() / 400 + y.var() / 100) ** 0.5, rel=0.15)
    assert error == bootstrap_error(lambda a, b: float(a.mean() - b.mean()), x, y, n_resamples=400)


def test_wilson_interval() -> None:
    assert wilson_interval(0.5, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson_interval(0.0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson_interval(1.0, 10)[1] >= 1.0


def test_a_share_of_no_items_has_no_interval() -> None:
    with pytest.raises(InputError, match="no items has no interval"):
        wilson_interval(0.0, 0)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        gaussian_statistics(draw(0, 1, 3))
    with pytest.raises(InputError, match="at least 3"):
        kernel_distance(draw(0, 2, 3), draw(0, 9, 3))
    with pytest.raises(InputError, match="at least 4"):
        precision_recall(draw(0, 9, 3), draw(0, 3, 3))
    with pytest.raises(InputError, match="must be"):
        gaussian_statistics(draw(0, 9))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    """Their distances would be NaN, and the shares of precision and recall look like numbers."""
    wrong = draw(0, 20, 3)
    wrong[7, 1] = value
    for measure in (kernel_distance, precision_recall, density_coverage, extrapolated_frechet):
        for x, y in ((wrong, draw(1, 20, 3)), (draw(1, 20, 3), wrong)):
            with pytest.raises(InputError, match="not finite"):
                measure(x, y)
    with pytest.raises(InputError, match="not finite"):
        gaussian_statistics(wrong)


def test_density_and_coverage_of_equal_distributions_and_of_half_of_them() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    x, y = rng.normal(size=(2, 1000, 3))
    density, covered = density_coverage(x, y)
    assert density.mean() == pytest.approx(1, abs=0.1)
    assert covered.mean() == pytest.approx(1 - 2**-5, abs=0.02)
    assert density_coverage(x, y[y[:, 0] > 0])[1].mean() == pytest.approx(0.5, abs=0.06)
    density, covered = density_coverage(x, y + 100)
    assert density.max() == 0
    assert not covered.any()


def test_density_and_coverage_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.array([[0.0], [1.0], [3.0], [10.0]])
    generated = np.array([[0.5], [2.0], [30.0]])
    # Balls to the 2nd neighbour: 3, 2, 3, 9. 0.5 lies in three, 2 in all four, 30 in none.
    for entries in (1 << 20, 3):
        monkeypatch.setattr(two_sample, "_BLOCK_ENTRIES", entries)
        density, covered = density_coverage(real, generated, k=2)
        np.testing.assert_allclose(density, [3 / 2, 4 / 2, 0])
        assert covered.tolist() == [True, True, True, True]
    assert density_coverage(real, generated[2:], k=2)[1].tolist() == [False] * 4


def test_copies_are_dense_and_cover_in_spite_of_rounding() -> None:
    real = np.repeat(draw(0, 20, 60) * 1e3 + 7, 7, axis=0)
    density, covered = density_coverage(real, real[::-1], k=5)
    assert covered.all()
    assert density.min() >= 7 / 5


def test_one_far_item_changes_no_share_by_more_than_its_own() -> None:
    x, y = draw(0, 500, 3), draw(1, 500, 3) + 0.5
    expected = precision_recall(x, y)
    density, covered = density_coverage(x, y)
    for far in (1e6, 1e12):
        # On the side where its own ball, which reaches to its neighbours, holds none of the other set's items.
        for real, generated in ((with_far(x, -far), y), (x, with_far(y, far))):
            assert precision_recall(real, generated) == pytest.approx(expected, abs=0.01)
            density_too, covered_too = density_coverage(real, generated)
            assert density_too.mean() == pytest.approx(density.mean(), abs=0.02)
            assert covered_too.mean() == pytest.approx(covered.mean(), abs=0.01)


def with_far(x: np.ndarray, far: float) -> np.ndarray:
    return np.concatenate([x[:-1], np.full((1, x.shape[1]), far)])


def test_where_the_origin_is_does_not_matter() -> None:
    x, y = draw(0, 400, 3), draw(1, 300, 3) + 0.5
    shift = 2.0**17  # exact, for what has a few bits after the point
    x, y = (np.round(z * 2**20) / 2**20 for z in (x, y))
    assert precision_recall(x + shift, y + shift) == precision_recall(x, y)
    for moved, still in zip(density_coverage(x + shift, y + shift), density_coverage(x, y), strict=True):
        np.testing.assert_array_equal(moved, still)
    assert precision_recall(1e-7 * x + 1e3, 1e-7 * y + 1e3) == pytest.approx(precision_recall(x, y), abs=0.01)
    assert mean_distance(x + shift, y + shift) == pytest.approx(mean_distance(x, y), rel=1e-12)
    assert precision_recall(x + shift, x + shift) == (1, 1)


def test_the_extrapolated_frechet_distance_has_no_bias_where_the_plain_one_has() -> None:
    rng = np.random.default_rng(0)
    plain, extrapolated = [], []
    for seed in range(40):
        x, y = rng.normal(size=(150, 12)), rng.normal(0.1, 1.0, size=(150, 12))
        plain.append(frechet_distance(gaussian_statistics(x), gaussian_statistics(y)))
        extrapolated.append(extrapolated_frechet(x, y, seed=seed))
    true = 12 * 0.1**2
    error = np.std(extrapolated) / math.sqrt(40)
    assert np.mean(plain) > true + 0.3
    assert abs(np.mean(extrapolated) - true) < 3 * error + 0.1 * (np.mean(plain) - true)
    with pytest.raises(InputError, match="at least 4"):
        extrapolated_frechet(draw(0, 3, 2), draw(1, 9, 2))


def test_kernel_distance_matches_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    torch = pytest.importorskip("torch")
    x, y = draw(0, 60, 8), 1.3 * draw(1, 60, 8) + 0.5
    expected = float(kid.poly_mmd(torch.tensor(x), torch.tensor(y), degree=3, gamma=None, coef=1.0))
    assert kernel_distance(x, y)[0] == pytest.approx(expected, abs=1e-6)


def test_mean_distance_is_that_of_the_pairs() -> None:
    rng = np.random.Generator(np.random.PCG64(6))
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    own = [np.linalg.norm(x[i] - x[j]) for i in range(7) for j in range(7) if i != j]
    across = [np.linalg.norm(a - b) for a in x for b in y]
    assert two_sample.mean_distance(x) == pytest.approx(np.mean(own), rel=1e-6)
    assert two_sample.mean_distance(x, y) == pytest.approx(np.mean(across), rel=1e-12)
    with pytest.raises(InputError):
        two_sample.mean_distance(x[:1])


def test_multiscale_mmd_of_two_normal_distributions_is_the_integral() -> None:
    """Of N(0, 1) and N(1, 1): E k(x, y) a normal density of variance 2 + w^2, times w sqrt 2 pi."""
    rng = np.random.Generator(np.random.PCG64(7))
    x, y = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 1)) + 1

    def kernel(difference: float, width: float) -> float:
        return width / math.sqrt(2 + width**2) * math.exp(-(difference**2) / (2 * (2 + width**2)))

    for widths in ((1.0,), (0.25,), (1.0, 0.25)):
        expected = sum(
            (2 * kernel(0, width) - 2 * kernel(1, width)) / (kernel(0, width) + 1 / 4000) for width in widths
        )
        assert two_sample.multiscale_mmd(x, y, widths) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_multiscale_mmd_is_near_0_for_equal_distributions_and_large_for_others(dim: int) -> None:
    rng = np.random.Generator(np.random.PCG64(9))
    x, y = rng.normal(size=(2, 1000, dim))
    equal = two_sample.multiscale_mmd(x, y)
    assert equal < 0.1
    assert two_sample.multiscale_mmd(x + 10, y) > max(1, 8 * equal)
    assert two_sample.multiscale_mmd(0 * x, y) > 10
    with pytest.raises(InputError):
        two_sample.multiscale_mmd(x[:1], y)


def test_multiscale_mmd_sees_how_sharp_modes_are() -> None:
    rng = np.random.Generator(np.random.PCG64(8))

    def ring(n_modes: int, width: float) -> np.ndarray:
        angles = rng.integers(n_modes, size=1000) * 2 * np.pi / 8
        return np.stack([np.cos(angles), np.sin(angles)], 1) + width * rng.normal(size=(1000, 2))

    data = ring(8, 0.02)
    again, seven, blurred = (two_sample.multiscale_mmd(ring(*how), data) for how in ((8, 0.02), (7, 0.02), (8, 0.15)))
    assert again < seven / 3
    assert seven < blurred / 3
