"""Samples with a known fault: does the table say which?"""

from collections.abc import Mapping

import numpy as np
import pytest

import triptych
from triptych.data.dataset import Dataset
from triptych.evaluation.evaluate import Evaluation, evaluate_samples
from triptych.evaluation.results import Measurement
from triptych.evaluation.samples import BLURRED, COPIES, NOISE, TRAIN

N = 360


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return triptych.load_data("digits")


@pytest.fixture(scope="module")
def cases(digits: Dataset) -> Evaluation:
    """Each with one fault, made of training and valid items."""
    rng = np.random.default_rng(0)
    items, labels = digits.train.read()
    assert labels is not None

    def of(classes: list[int], weights: list[float] | None = None) -> np.ndarray:
        chosen = rng.choice(classes, size=N, p=weights)
        return np.stack([items[rng.choice(np.flatnonzero(labels == label))] for label in chosen])

    one = items[labels == 3][:1]
    jitter = np.clip(one.astype(int) + rng.integers(-1, 2, size=(N, 1, 8, 8)), 0, 16).astype(np.uint8)
    sets = {
        "one mode": jitter,
        "half the classes": of([0, 1, 2, 3, 4]),
        "shifted balance": of(list(range(10)), [0.46] + 9 * [0.06]),
    }
    return evaluate_samples(sets, digits, discriminator=True)


@pytest.fixture(scope="module")
def cells(cases: Evaluation) -> dict[str, Mapping[str, Measurement]]:
    return {row.name: row.measurements for row in cases.table.rows}


def value(cells: dict[str, Mapping[str, Measurement]], row: str, key: str) -> float:
    found = cells[row][key].value
    assert found is not None
    return found


def interval(cells: dict[str, Mapping[str, Measurement]], row: str, key: str) -> tuple[float, float]:
    found = cells[row][key].whole_interval
    assert found is not None
    return found


def test_a_perfect_model_is_told_from_none_of_the_faults(cells: dict[str, Mapping[str, Measurement]]) -> None:
    for name in cells:
        if name not in (TRAIN, COPIES):
            # Random features hardly know classes, those of the classifier hardly anything else.
            columns = ("kid_random", "kid_classifier")
            assert any(interval(cells, TRAIN, key)[1] < interval(cells, name, key)[0] for key in columns), name
            assert value(cells, TRAIN, "fd_infinity_random") < value(cells, name, "fd_infinity_random"), name
            assert value(cells, TRAIN, "jsd_nats") <= value(cells, name, "jsd_nats"), name
    low, high = interval(cells, TRAIN, "c2st_accuracy")
    assert low < 0.5 < high


def test_mode_collapse_is_precise_and_reaches_little(cells: dict[str, Mapping[str, Measurement]]) -> None:
    assert value(cells, "one mode", "precision_random") > 0.8
    assert value(cells, "one mode", "recall_random") < 0.05
    assert value(cells, "one mode", "coverage_random") < 0.1
    support = cells["one mode"]["support_size"]
    assert support.value is not None
    assert support.value < value(cells, TRAIN, "support_size") / 10


def test_half_the_modes_missing_is_seen_in_recall_and_coverage_and_the_classes(
    cells: dict[str, Mapping[str, Measurement]], cases: Evaluation
) -> None:
    assert value(cells, "half the classes", "precision_random") > 0.8
    assert value(cells, "half the classes", "coverage_random") < 0.7 * value(cells, TRAIN, "coverage_random")
    assert value(cells, "half the classes", "recall_random") < 0.8 * value(cells, TRAIN, "recall_random")
    assert cases.per_class is not None
    shares = [one.value or 0.0 for one in cases.per_class.rows["half the classes"]["share"]]
    assert min(shares[:5]) > 0.1
    assert max(shares[5:]) < 0.05
    recall = [one.value or 0.0 for one in cases.per_class.rows["half the classes"]["recall"]]
    assert np.mean(recall[5:]) < 0.6 * np.mean(recall[:5])


def test_a_shifted_class_balance_is_seen_where_every_mode_is_there(
    cells: dict[str, Mapping[str, Measurement]], cases: Evaluation
) -> None:
    assert value(cells, "shifted balance", "precision_random") > 0.8
    assert value(cells, "shifted balance", "kid_classifier") > 10 * abs(value(cells, TRAIN, "kid_classifier"))
    assert cases.per_class is not None
    share = cases.per_class.rows["shifted balance"]["share"][0]
    assert share.low is not None
    assert share.low > 0.35
    even = cases.per_class.rows[TRAIN]["share"][0]
    assert even.high is not None
    assert even.high < 0.2


def test_noise_and_blur(cells: dict[str, Mapping[str, Measurement]]) -> None:
    assert value(cells, NOISE, "precision_random") == 0
    assert value(cells, NOISE, "recall_random") == 0
    assert value(cells, NOISE, "sharpness") > 1.3
    assert value(cells, NOISE, "jsd_nats") == pytest.approx(np.log(2), abs=0.02)
    assert value(cells, BLURRED, "sharpness") < 0.6
    assert value(cells, BLURRED, "jsd_nats") > 0.5
    assert value(cells, TRAIN, "sharpness") == pytest.approx(1, abs=0.1)


def test_copies_are_told_by_memory_alone(cells: dict[str, Mapping[str, Measurement]], cases: Evaluation) -> None:
    assert interval(cells, COPIES, "kid_random")[0] < interval(cells, TRAIN, "kid_random")[1]
    assert value(cells, COPIES, "precision_random") > 0.8
    assert value(cells, COPIES, "distance_ratio") == 0
    assert value(cells, COPIES, "copying_z") < -5
    assert value(cells, COPIES, "authenticity") == 0
    assert value(cells, TRAIN, "distance_ratio") == pytest.approx(1, abs=0.1)
    assert abs(value(cells, TRAIN, "copying_z")) < 3
    assert value(cells, TRAIN, "authenticity") > 0.4
    assert cases.memory[COPIES] != cases.memory[TRAIN]


def test_the_same_samples_give_the_same_table(tiny: Dataset) -> None:
    items = tiny.valid.read()[0]
    tables = [evaluate_samples({"valid": items}, tiny, extractors=["random"], seed=4).table for _ in range(2)]
    assert tables[0] == tables[1]
