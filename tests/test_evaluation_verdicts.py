"""The table in words: only what the intervals allow."""

from triptych.evaluation.columns import discriminator_metrics, likelihood_metrics
from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.evaluation.verdicts import verdicts
from triptych.models.base import Kind
from triptych.spaces import ImageSpace

SPACE = ImageSpace(1, 8, 8, 17)
NLL = likelihood_metrics(SPACE, "test", 8, approximate=True)
KID = Metric("kid_random", "KID (random features)", "", "lower", "")


def nats(value: float, half: float, kind: Kind = "exact", seeds: tuple[float, ...] = ()) -> dict[str, Measurement]:
    return {"nll_nats_per_image": Measurement(value, value - half, value + half, 9, kind, "discrete", seeds)}


def near(value: float, half: float) -> dict[str, Measurement]:
    return {"kid_random": Measurement(value, value - half, value + half, 9)}


def told(accuracy: float, half: float = 0.05) -> dict[str, Measurement]:
    return {"c2st_accuracy": Measurement(accuracy, accuracy - half, accuracy + half, 9)}


def table(*rows: Row) -> Table:
    return Table((*NLL, KID, *discriminator_metrics("test")), rows)


REFERENCES = (Row("train vs held-out", None, near(0.0, 0.1)), Row("noise", None, near(9.0, 0.1)))


def test_a_difference_beyond_the_intervals_is_a_difference() -> None:
    found = verdicts(table(Row("a", "tractable", nats(80, 1)), Row("b", "tractable", nats(83, 1))), SPACE)
    assert any(
        "a has the lowest exact negative log-likelihood, 80.00" in s and "more than chance" in s
        for s in found["tractable"]
    )
    found = verdicts(table(Row("a", "tractable", nats(80, 1)), Row("b", "tractable", nats(81, 1))), SPACE)
    assert any("overlaps that of b: the order may be chance" in s for s in found["tractable"])


def test_trainings_that_differ_widen_the_interval() -> None:
    rows = (
        Row("a", "tractable", nats(80, 0.1, seeds=(77, 80, 83))),
        Row("b", "tractable", nats(81, 0.1, seeds=(81, 81, 81))),
    )
    found = verdicts(table(*rows), SPACE)["tractable"]
    assert any("overlaps that of b" in s for s in found)
    assert not any("This is one of each" in s for s in found)
    alone = verdicts(table(Row("a", "tractable", nats(80, 0.1))), SPACE)["tractable"]
    assert any("This is one of each" in s for s in alone)


def test_kinds_are_ranked_by_themselves() -> None:
    rows = (Row("mixture", "tractable", nats(70, 1, "lower bound")), Row("a", "tractable", nats(80, 1)))
    found = verdicts(table(*rows), SPACE)["tractable"]
    assert any("Of mixture, the bound on the negative log-likelihood is 70.00" in s for s in found)
    assert any("Of a, the exact negative log-likelihood is 80.00" in s for s in found)
    assert any("a ranking across kinds" in s for s in found)
    assert any("a ranking of bounds against exact values" in s for s in found)


def test_samples_stand_between_perfect_and_noise() -> None:
    rows = (Row("gan", "implicit", near(0.05, 0.1) | told(0.52)), Row("bad", "implicit", near(5, 0.1) | told(0.99)))
    found = verdicts(table(*rows, *REFERENCES), SPACE, {"gan": "gan: it only remembers."})["implicit"]
    assert "gan: it only remembers." in found
    assert any("A perfect model would get 0.000, noise gets 9.000; gan cannot be told from perfect" in s for s in found)
    assert any(
        "gan 52 %, bad 99 %" in s and s.endswith("about gan it may be guessing, as far as the intervals say.")
        for s in found
    )
    assert any(s.startswith("Not supported: any statement on how probable") for s in found)


def test_trainings_that_differ_are_no_sign_of_a_perfect_model() -> None:
    """Two of them: half of the interval is 12.7 standard errors."""

    def distance(*seeds: float) -> dict[str, Measurement]:
        mean = sum(seeds) / len(seeds)
        return {"kid_random": Measurement(mean, mean - 0.1, mean + 0.1, 500, seeds=seeds)}

    wide, good, bad = (
        Row("wide", "implicit", distance(1, 2)),
        Row("good", "implicit", distance(-0.05, 0.05)),
        Row("bad", "implicit", distance(5, 5.01)),
    )

    def said(*rows: Row) -> str:
        found = verdicts(table(*rows, *REFERENCES), SPACE)["implicit"]
        return next(s for s in found if s.startswith("A perfect model")).partition("; ")[2]

    nothing = "of wide it says nothing, since the trainings differ so much."
    assert said(wide) == nothing
    assert said(wide, good, bad) == f"good cannot be told from perfect by it; {nothing}"
    assert said(wide, bad) == f"each of the other models can be told from perfect by it; {nothing}"
    assert said(bad) == "each of these models can be told from perfect by it."


def test_without_intervals_nothing_is_beyond_chance() -> None:
    one = {"nll_nats_per_image": Measurement(80.0, n=1, kind="exact", measure="discrete")}
    other = {"nll_nats_per_image": Measurement(81.0, n=1, kind="exact", measure="discrete")}
    found = verdicts(table(Row("a", "tractable", one), Row("b", "tractable", other)), SPACE)["tractable"]
    assert any(s.endswith("the next, b, has 81.00. Without intervals the order may be chance.") for s in found)
    assert not any("by more than chance" in s for s in found)


def test_what_is_not_finite_has_no_rank() -> None:
    for odd in (float("nan"), float("inf"), float("-inf")):
        endless = {"nll_nats_per_image": Measurement(odd, n=9, kind="exact", measure="discrete")}
        rows = [Row("odd", "tractable", endless | {"kid_random": Measurement(odd)})]
        rows += [Row("a", "tractable", nats(80, 1) | near(1, 0.1)), Row("b", "tractable", nats(90, 1) | near(2, 0.1))]
        found = verdicts(table(*rows, *REFERENCES), SPACE)["tractable"]
        assert any(s.startswith("a has the lowest exact negative log-likelihood, 80.00") for s in found)
        assert any(s.startswith("Without a place: odd") for s in found)
        assert any(s.startswith("a has the samples nearest to the data") for s in found)


def test_a_distance_that_noise_passes_says_so() -> None:
    blind = (Row("train vs held-out", None, near(0.0, 0.1)), Row("noise", None, near(0.05, 0.1)))
    found = verdicts(table(Row("gan", "implicit", near(0.1, 0.1)), *blind), SPACE)["implicit"]
    assert any(s.endswith("gan cannot be told from perfect by it, but neither can noise.") for s in found)
    found = verdicts(table(Row("gan", "implicit", near(1, 0.1)), *blind), SPACE)["implicit"]
    assert any(s.endswith("each of these models can be told from perfect by it, though noise cannot.") for s in found)


def test_what_is_not_defined_is_left_out() -> None:
    rows = (Row("gan", "implicit", {"nll_nats_per_image": Measurement(None), "kid_random": Measurement(None)}),)
    found = verdicts(table(*rows, *REFERENCES), SPACE)["implicit"]
    assert not any("KID" in s or "negative log-likelihood" in s for s in found)
    assert verdicts(table(*REFERENCES), SPACE) == {}
