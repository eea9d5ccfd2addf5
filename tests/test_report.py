"""The report page, its drawings, and the table in its three forms."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from triptych.evaluation import columns
from triptych.evaluation.results import Measurement, Metric, PerClass, Row, Table
from triptych.report.classes import class_tables
from triptych.report.content import Neighbours, PanelContent, ReportContent, TradeOff
from triptych.report.curves import learning_curves, series_of, smoothed, split_unit
from triptych.report.dots import axis_of, metric_figure
from triptych.report.groups import group_of, grouped, key_metrics
from triptych.report.html import VOID, element
from triptych.report.page import document, write_report
from triptych.report.plot import log_ticks, tick_text, ticks
from triptych.report.table import (
    CSV_FIELDS,
    arranged,
    best_cells,
    error_texts,
    print_table,
    reading_notes,
    write_table,
)
from triptych.report.trade_off import fronts, pareto_front, place_names, points_of
from triptych.spaces import ImageSpace, PointSpace, Space

NLL = Metric(
    "bits_per_dim", "Negative log-likelihood", "bits/dim", "lower", "Mean over the test split, arXiv:1601.06759."
)
FD = Metric("fd_random", "FD (random features)", "", "lower", "Fréchet distance of random features.")
SPEED = Metric("images_per_second", "Sampling speed", "images/s", "higher", "Batches of 64.")
PANEL_OF = {"tractable": "pixel_cnn", "approximate": "vae", "implicit": "gan"}


class Page(HTMLParser):
    """Reads a page, failing on tags that do not balance; collects elements, text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def example_table() -> Table:
    return Table(
        (NLL, FD, SPEED),
        (
            Row("noise", None, {"bits_per_dim": Measurement(4.09, kind="exact", measure="discrete")}),
            Row(
                "gan",
                "implicit",
                {
                    "bits_per_dim": Measurement(None),
                    "fd_random": Measurement(6.0, 5.5, 6.5, 500),
                    "images_per_second": Measurement(9e4),
                },
            ),
            Row(
                "vae",
                "approximate",
                {
                    "bits_per_dim": Measurement(1.2, 1.1, 1.3, 300, "lower bound", "discrete"),
                    "fd_random": Measurement(9.0, 8.0, 10.5, 500),
                    "images_per_second": Measurement(4e4),
                },
            ),
            Row(
                "pixel_cnn",
                "tractable",
                {
                    "bits_per_dim": Measurement(1.8, 1.7, 1.9, 300, "exact", "discrete"),
                    "fd_random": Measurement(math.nan),
                },
            ),
        ),
    )


def draw(space: Space, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if isinstance(space, ImageSpace):
        return rng.integers(0, space.levels, (n, *space.shape)).astype(np.uint8)
    return rng.normal(size=(n, space.dim)).astype(np.float32)


def example_curves(terms: tuple[str, ...], n: int = 200) -> tuple[dict[str, Any], ...]:
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for i in range(n):
        record: dict[str, Any] = {
            "step": 10 * i,
            "elapsed_seconds": 0.5 * i,
            "learning_rate/main": 1e-3,
            "skipped/main": 0.0,
        }
        for term in terms:
            if not term.startswith("valid/") or i % 20 == 0:
                record[term] = 100 * math.exp(-i / 20) + rng.random()
        records.append(record)
    return tuple(records)


def example_panel(space: Space, panel: str, name: str | None = None) -> PanelContent:
    terms = {
        "tractable": ("likelihood/nats_per_image", "likelihood/bits_per_dim", "valid/nll_nats_per_image"),
        "approximate": ("bound/bound_nats_per_image", "bound/kl_nats_per_image", "valid/nll_nats_per_image"),
        "implicit": ("discriminator/game_nats", "discriminator/logit_real", "generator/non_saturating_nats"),
    }[panel]
    name = name or PANEL_OF[panel]
    return PanelContent(
        name=name,
        title=name.title().replace("_", ""),
        panel=panel,
        samples=draw(space, 70),
        film=tuple((t, draw(space, 8)) for t in (0.0, 1.5, 30.0)),
        curves=example_curves(terms),
        reconstructions=(draw(space, 10), draw(space, 10, 1)) if panel == "approximate" else None,
        neighbours=Neighbours(
            draw(space, 3), draw(space, 15).reshape(3, 5, *space.shape), np.arange(15.0).reshape(3, 5)
        ),
        facts={"parameters": "1,234"},
    )


def example(space: Space, panels: tuple[str, ...] = ("tractable", "approximate", "implicit")) -> ReportContent:
    return ReportContent(
        title="digits: pixel_cnn, vae, gan",
        space=space,
        table=example_table(),
        panels=tuple(example_panel(space, panel) for panel in panels),
        held_out=draw(space, 64),
        data={"source": "digits", "classes": "0 .. 9"},
        command="triptych compare digits pixel_cnn vae gan --seed 0",
        environment={"torch": "2.13.0"},
        protocol=("One seed.",),
        notes=("A note.",),
    )


GREY = ImageSpace(1, 8, 8, 17)
SPACES = {
    "grey": GREY,
    "rgb": ImageSpace(3, 32, 32),
    "palette": ImageSpace(1, 16, 12, 3, ((255, 255, 255), (0, 0, 0), (200, 40, 40))),
    "large": ImageSpace(1, 130, 90, 2),
    "points 1-D": PointSpace(1),
    "points 2-D": PointSpace(2, (0.5, 0.5), 2.0),
    "points 5-D": PointSpace(5),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_page_is_whole_and_asks_for_nothing(space: Space) -> None:
    text = document(example(space))
    page = Page(text)
    for _, attributes in page.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert all("alt" in image for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") or not svg.get("viewbox") for svg in page.all("svg"))
    anchors = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(anchors) == len(set(anchors))
    assert {link["href"] for link in page.all("a")} <= {f"#{anchor}" for anchor in anchors}
    assert page.all("html")[0]["lang"] == "en"
    for title in ("The numbers", "Learning", "Samples over training", "Reconstructions", "Nearest training items"):
        assert title in page.text


def test_page_of_digits_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)[:, None]
    content = example(GREY)
    panels = tuple(
        replace(
            panel,
            samples=images[i * 100 :][:100],
            film=tuple((float(t), images[t : t + 10]) for t in range(20)),
            curves=panel.curves * 10,
            neighbours=Neighbours(images[:8], images[:40].reshape(8, 5, *GREY.shape), np.zeros((8, 5))),
        )
        for i, panel in enumerate(content.panels)
    )
    content = replace(content, panels=panels, held_out=images[1000:1200])
    (tmp_path / "deep").mkdir()
    write_report(content, tmp_path / "deep" / "report.html")
    write_report(content, tmp_path / "again.html")
    first = (tmp_path / "deep" / "report.html").read_bytes()
    assert first == (tmp_path / "again.html").read_bytes()
    assert len(first) < 1_500_000
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    assert "0, copy" in first.decode()


def test_everything_from_outside_is_escaped() -> None:
    evil = '<script>alert("1")</script>&\'"'
    content = example(GREY)
    panel = replace(
        content.panels[0], name=evil, title=evil, facts={evil: evil}, curves=example_curves((f"{evil}/{evil}_nats",))
    )
    metric = Metric("m", evil, evil, "higher", evil)
    content = replace(
        content,
        title=evil,
        panels=(panel,),
        table=Table((metric,), (Row(evil, "tractable", {"m": Measurement(1.0)}),)),
        data={evil: evil},
        environment={evil: evil},
        command=evil,
        protocol=(evil,),
        notes=(evil, "undecodable \udcff"),
    )
    text = document(content)
    page = Page(text)
    assert len(page.all("script")) == 1  # The page's own.
    assert text.count("<script") == 1
    assert page.text.count("alert(") >= 12
    assert element("p", "a < b", title='"') == '<p title="&quot;">a &lt; b</p>'
    assert element("p", "a\x1b[31m\tb\nc", title="\x9b") == '<p title="\ufffd">a\ufffd[31m\tb\nc</p>'


def test_undecodable_names_are_written(tmp_path: Path) -> None:
    write_report(replace(example(GREY), title="\udcff.png"), tmp_path / "report.html")
    assert "<title>?.png" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "panels",
    [
        ("implicit",),
        ("tractable", "implicit"),
        ("tractable",) * 3,
        ("implicit", "tractable", "approximate", "implicit", "approximate"),
    ],
    ids=["one", "a panel missing", "three of a kind", "five"],
)
def test_models_are_grouped_by_panel(panels: tuple[str, ...]) -> None:
    content = example(GREY, panels)
    content = replace(content, panels=tuple(replace(p, name=f"{p.name}_{i}") for i, p in enumerate(content.panels)))
    page = Page(document(content))
    shown = [a["class"].split()[1] for a in page.all("section") if (a.get("class") or "").startswith("panel ")]
    assert shown == [name for name in PANEL_OF if name in panels]
    assert len([a for a in page.all("article") if a.get("class") == "model"]) == len(panels)
    assert ("was compared" in page.text) == (len(set(panels)) < 3)


def test_missing_pieces_leave_no_empty_sections() -> None:
    content = example(GREY)
    bare = tuple(PanelContent(p.name, p.title, p.panel, p.samples[:0]) for p in content.panels)
    page = Page(document(ReportContent("digits", GREY, Table((), ()), bare, content.held_out[:0])))
    assert not page.all("nav")
    assert not page.all("img")
    one = replace(content, panels=(content.panels[1], *bare[::2]))
    text = Page(document(one)).text
    assert text.count("None: this family has no encoder.") == 1
    assert text.count("None: no encoder was learnt") == 1
    assert text.count("No curve was recorded.") == 2


def test_points_outside_the_frame_are_counted() -> None:
    content = example(PointSpace(2))
    panel = replace(content.panels[2], samples=np.full((10, 2), np.nan, np.float32))
    panel.samples[:7] = 1e9
    assert "10 of 10 samples lie outside the frame." in document(replace(content, panels=(panel,)))


def test_units_come_from_the_names_of_terms() -> None:
    assert split_unit("kl_nats_per_image") == ("kl", "nats/image")
    assert split_unit("nats_per_image") == ("", "nats/image")
    assert split_unit("bits_per_dim") == ("", "bits/dim")
    assert split_unit("game_nats") == ("game", "nats")
    assert split_unit("logit_real") == ("logit real", "")


def test_terms_of_one_unit_share_axes() -> None:
    records = example_curves(
        ("d/game_nats", "g/non_saturating_nats", "d/logit_real", "d/logit_fake", "d/r1", "valid/fd_random")
    )
    assert [s.axes for s in series_of(records)] == ["nats", "nats", "logit", "logit", "r1", "fd random"]
    drawings = learning_curves(records, "GAN")
    assert len(drawings) == 4
    assert "d game" in drawings[0]
    assert "g non saturating" in drawings[0]


def test_the_same_curve_in_another_unit_is_drawn_once() -> None:
    drawings = learning_curves(
        example_curves(("main/nats_per_image", "main/bits_per_dim", "valid/nll_nats_per_image")), "PixelCNN"
    )
    assert len(drawings) == 1
    assert "validation" in drawings[0]


def test_curves_with_values_that_are_not_finite() -> None:
    records = [
        {"step": i, "elapsed_seconds": float(i), "main/a_loss": float(i), "main/b_score": math.nan} for i in range(50)
    ]
    records[7]["main/a_loss"], records[8]["main/a_loss"] = math.nan, math.inf
    drawing, empty = learning_curves(tuple(records), "GAN")
    assert "2 of the values are not finite and left out." in drawing
    assert "nan" not in drawing.lower()
    assert "inf" not in drawing
    assert len(re.findall("M", re.search(r'd="([^"]*)" class="line s0"', drawing)[1])) == 2  # Broken once.
    assert "50 of the values" in empty


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 1e12])
def test_flat_and_short_curves_are_drawn(value: float) -> None:
    for n in (1, 2, 100):
        records = tuple({"step": i, "elapsed_seconds": float(i), "main/loss": value} for i in range(n))
        assert len(learning_curves(records, "VAE")) == 1


def test_first_values_do_not_flatten_the_rest() -> None:
    records = tuple(
        {"step": i, "elapsed_seconds": float(i), "main/loss": 1e6 if i < 3 else 2 - i / 1000} for i in range(1000)
    )
    (drawing,) = learning_curves(records, "VAE")
    assert "cut at the frame" in drawing
    assert "1.5" in drawing


def test_smoothing_keeps_constants_and_ends() -> None:
    np.testing.assert_allclose(smoothed(np.full(500, 3.0)), 3.0)
    values = np.arange(400.0)
    values[10] = np.nan
    assert np.isfinite(smoothed(values)).all()
    np.testing.assert_array_equal(smoothed(np.arange(10.0)), np.arange(10.0))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 240) == [0, 50, 100, 150, 200]
    assert ticks(-0.13, 0.11) == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert [tick_text(v) for v in (12000.0, 0.25, -3.0, 0.0, 2e-7, 1.5e6)] == [
        "12,000",
        "0.25",
        "−3",
        "0",
        "2e−07",
        "1.5e+06",
    ]


def test_best_is_never_across_kinds_or_measures() -> None:
    table = arranged(example_table())
    assert [row.name for row in table.rows] == ["pixel_cnn", "vae", "gan", "noise"]
    # The bound 1.2 stands alone beside the exact 1.8, and NaN takes no part.
    assert best_cells(table) == {(2, "fd_random"), (2, "images_per_second")}
    exact = Row("made", "tractable", {"bits_per_dim": Measurement(1.7, kind="exact", measure="discrete")})
    density = Row("kde", "tractable", {"bits_per_dim": Measurement(0.1, kind="exact", measure="continuous")})
    wider = arranged(replace(table, rows=(*table.rows, exact, density)))
    assert {wider.rows[n].name for n, key in best_cells(wider) if key == "bits_per_dim"} == {"made"}
    assert any("not on one scale" in note for note in reading_notes(wider))
    assert any("not ranked against each other" in note for note in reading_notes(table))
    equal = Table((FD,), tuple(Row(n, "implicit", {"fd_random": Measurement(1.0)}) for n in "ab"))
    assert not best_cells(equal)


def test_marks_follow_the_direction_of_the_metric() -> None:
    bound = Measurement(1.2, 1.1, 1.3, 300, "lower bound", "discrete")
    assert bound.text("lower") == "≤ 1.200"
    assert bound.text("higher") == "≥ 1.200"
    assert replace(bound, kind="estimate").text("lower") == "~ 1.200"
    assert replace(bound, value=None).text("lower") == "not defined"
    assert bound.interval == "± 0.100"
    assert replace(bound, low=0.1).interval == "0.100 – 1.300"
    assert replace(bound, value=None).interval == ""


def test_table_on_the_page() -> None:
    page = Page(document(example(GREY)))
    (table,) = [a for a in page.all("table") if "comparison" in (a["class"] or "")]
    assert table
    bodies = [a["class"] for a in page.all("tbody") if a.get("class")]
    assert bodies == ["ranked", "references"]
    for text in ("not defined", "≤ 1.200", "exact", "bound", "± 0.100", "lower is better"):
        assert text in document(example(GREY))
    sortable = [a for a in page.all("td") if "data-group" in a]
    assert all(math.isfinite(float(a["data-value"])) for a in sortable if "data-value" in a)


@pytest.mark.parametrize("width", [100, 80, 40])
def test_terminal_table_never_cuts_a_number(width: int) -> None:
    table = example_table()
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    print_table(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    for number in ("1.800 ± 0.100", "≤ 1.200 ± 0.100", "8.000 – 10.50", "not defined", "90,000", "4.090"):
        assert number in text
    assert text.index("gan") < text.index("noise")


def test_terminal_without_unicode_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_table(example_table(), Console(file=file, width=100))
    file.flush()
    assert b"<= 1.200 +- 0.100" in file.buffer.getvalue()  # type: ignore[attr-defined]


def test_table_files(tmp_path: Path) -> None:
    table = example_table()
    rows = tuple(
        replace(row, measurements={k: m for k, m in row.measurements.items() if m.value == m.value})
        for row in table.rows
    )
    table = replace(table, rows=rows)
    write_table(table, tmp_path)
    assert Table.from_dict(json.loads((tmp_path / "table.json").read_text("utf-8"))) == table
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(CSV_FIELDS)
    assert len(lines) == sum(len(row.measurements) for row in rows)
    by_cell = {(line["name"], line["metric"]): line for line in lines}
    assert by_cell["gan", "bits_per_dim"]["value"] == ""
    assert by_cell["noise", "bits_per_dim"]["panel"] == ""
    vae = by_cell["vae", "bits_per_dim"]
    assert (float(vae["value"]), vae["kind"], vae["measure"], vae["n"]) == (1.2, "lower bound", "discrete", "300")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.json"]


def test_what_is_no_loss_has_no_curve() -> None:
    record = {"elapsed_seconds": 1.0, "bound/kl_nats": 2.0, "skipped/bound": 0.0, "gradient_norm/bound": 3.0}
    assert [series.name for series in series_of([record | {"learning_rate/bound": 1e-3}])] == ["kl"]


def cell(value: float | None, **more: Any) -> Measurement:
    return Measurement(value, **more)


def seeded(*values: float, kind: Any = None, error: float | None = 0.1) -> Measurement:
    """A mean over trainings, with an interval over items."""
    mean = sum(values) / len(values)
    low, high = (None, None) if error is None else (mean - error, mean + error)
    return Measurement(mean, low, high, 300, kind, "discrete" if kind else None, values)


def seeds_table() -> Table:
    rows = (
        Row("ours", "samples", {"fd_random": Measurement(7.0, 6.5, 7.5, 300)}),
        Row(
            "vae", "approximate", {"bits_per_dim": seeded(1.0, 1.2, 1.4, kind="lower bound"), "fd_random": seeded(8, 9)}
        ),
        Row("pixel_cnn", "tractable", {"bits_per_dim": seeded(1.1, 1.1, 1.1, kind="exact")}),
        Row("noise", None, {"fd_random": Measurement(90.0)}),
    )
    return Table((NLL, FD), rows)


def test_cells_of_several_trainings_show_both_intervals() -> None:
    table = seeds_table()
    both = seeded(1.0, 1.2, 1.4)
    # t = 4.303 with 2 degrees of freedom, over a standard deviation of 0.2 and 3 values.
    assert error_texts(both) == ["± 0.100", "± 0.497 (3 trainings)"]
    assert error_texts(seeded(1.0, 1.2, 1.4, error=None)) == ["± 0.497 (3 trainings)"]
    assert error_texts(seeded(1.2, 1.2, error=None)) == ["the same in 2 trainings"]
    assert error_texts(Measurement(1.0, 0.9, 1.1)) == ["± 0.100"]
    assert error_texts(Measurement(None)) == []
    page = document(replace(example(GREY), table=table))
    assert "± 0.497 (3 trainings)" in page
    for width, together in ((120, True), (40, False)):
        console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
        print_table(table, console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert all(len(line) <= width for line in text.splitlines())
        assert "≤ 1.200" in text
        assert "± 0.497 (3 trainings)" in text
        assert ("≤ 1.200 ± 0.100 ± 0.497 (3 trainings)" in text) is together


def test_notes_tell_the_two_intervals_apart() -> None:
    (note,) = [note for note in reading_notes(seeds_table()) if "±" in note]
    assert "over trainings (Student's t)" in note
    assert "over items" in note
    only = Table((FD,), (Row("vae", "approximate", {"fd_random": seeded(8, 9, error=None)}),))
    (note,) = [note for note in reading_notes(only) if "±" in note]
    assert "over trainings" in note
    assert "over items" not in note
    assert not any("training" in note for note in reading_notes(example_table()))


def test_what_is_at_least_this_is_no_bound_of_a_likelihood() -> None:
    jsd = Metric("jsd_nats", "JSD", "nats", "lower", "")
    log_likelihood = Metric("log_p", "Log-likelihood", "nats", "higher", "")
    row = Row("vae", "approximate", {"jsd_nats": cell(0.3, kind="at least")})
    (note,) = [note for note in reading_notes(Table((jsd,), (row,))) if "≥" in note]
    assert "JSD" in note
    assert "true value" not in note
    bound = Row("vae", "approximate", {**row.measurements, "log_p": cell(-80.0, kind="lower bound")})
    notes = reading_notes(Table((jsd, log_likelihood), (bound,)))
    assert sum("≥" in note for note in notes) == 2
    assert sum("true value is this or higher" in note for note in notes) == 1
    assert ">bound<" in document(replace(example(GREY), table=Table((jsd,), (row,))))


def test_kinds_of_different_columns_are_not_mixed() -> None:
    jsd = Metric("jsd_nats", "JSD", "nats", "lower", "")
    rows = tuple(
        Row(name, "tractable", {"jsd_nats": cell(x, kind="at least"), "bits_per_dim": cell(x, kind="exact")})
        for name, x in (("a", 0.1), ("b", 0.2))
    )
    assert "Bold is the best model of its column." in reading_notes(Table((NLL, jsd), rows))


def test_samples_that_somebody_brought_stand_between_models_and_references(tmp_path: Path) -> None:
    table = seeds_table()
    assert [row.name for row in arranged(table).rows] == ["pixel_cnn", "vae", "ours", "noise"]
    write_table(table, tmp_path)
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = {(line["name"], line["metric"]): line for line in csv.DictReader(file)}
    assert lines["ours", "fd_random"]["panel"] == "samples"
    assert lines["ours", "fd_random"]["seeds_n"] == lines["ours", "fd_random"]["seeds"] == ""
    vae = lines["vae", "bits_per_dim"]
    assert [float(value) for value in vae["seeds"].split(" ")] == [1.0, 1.2, 1.4]
    assert vae["seeds_n"] == "3"
    assert float(vae["seed_error"]) == pytest.approx(4.30265 * 0.2 / math.sqrt(3))
    text = document(replace(example(GREY), table=table, verdicts={"samples": ("Far from the data.",)}))
    assert text.index("pixel_<wbr>cnn") < text.rindex('class="samples"')
    assert "Far from the data." in text


def test_verdicts_stand_under_their_panel() -> None:
    verdicts = {"implicit": ("gan has 61 %.", "Not supported: a likelihood."), "tractable": ("Exact.",)}
    text = Page(document(replace(example(GREY), verdicts=verdicts))).text
    part = text[text.rindex("What the numbers support") : text.rindex("The numbers")]
    order = [part.index(word) for word in ("Tractable", "Exact.", "Implicit", "gan has 61\u00a0%.", "a likelihood.")]
    assert order == sorted(order)
    assert "What the numbers support" not in document(example(GREY))


def many_metrics() -> tuple[Metric, ...]:
    keys = (
        *("nll_nats_per_image", "bits_per_dim", "fd_random", "fd_infinity_random", "recall_random", "fd_my_own"),
        *("sharpness", "jsd_nats", "c2st_accuracy", "copying_z", "distance_ratio", "samples_per_second", "else"),
    )
    return tuple(Metric(key, f"{key.upper()} (x features)", "", "lower", "") for key in keys)


def test_columns_are_grouped_by_what_they_measure() -> None:
    metrics = many_metrics()
    groups = {title: [metric.key for metric in members] for title, members in grouped(metrics)}
    assert groups == {
        "Likelihood": ["nll_nats_per_image", "bits_per_dim"],
        "Samples: random features": ["fd_random", "fd_infinity_random", "recall_random"],
        "Samples: my_own features": ["fd_my_own"],
        "Samples: sharpness": ["sharpness"],
        "Discriminator": ["jsd_nats", "c2st_accuracy"],
        "Memorisation": ["copying_z", "distance_ratio"],
        "Cost": ["samples_per_second"],
        "": ["else"],
    }
    assert [metric.key for metric in key_metrics(metrics, 6)] == [
        *("bits_per_dim", "fd_random", "recall_random", "jsd_nats", "copying_z", "samples_per_second")
    ]
    assert [metric.key for metric in key_metrics(metrics[2:5], 6)] == [
        "fd_random",
        "fd_infinity_random",
        "recall_random",
    ]


def test_every_known_column_has_a_group() -> None:
    extractor: Any = SimpleNamespace(key="dino", description="", has_neighbourhoods=True, n_features=8)
    for space in (GREY, PointSpace(2)):
        for metric in (
            *columns.likelihood_metrics(space, "test", 5, approximate=True),
            *columns.distance_metrics(extractor, "test"),
            *columns.sharpness_metrics("test"),
            *columns.discriminator_metrics("test"),
            *columns.memory_metrics("dino", "test"),
            columns.speed_metric(space),
            *columns.cost_metrics(space),
        ):
            assert group_of(metric), metric.key


def test_a_wide_table_has_group_headers_and_is_printed_in_parts() -> None:
    metrics = many_metrics()
    values = {metric.key: cell(float(number)) for number, metric in enumerate(metrics)}
    rows = (Row("a", "implicit", values), Row("b", "implicit", values))
    page = Page(document(replace(example(GREY), table=Table(metrics, rows))))
    spans = [a for a in page.all("th") if a.get("scope") == "colgroup"]
    assert [int(a["colspan"] or 0) for a in spans[:3]] == [2, 3, 1]
    tables = [a["class"] or "" for a in page.all("table") if "comparison" in (a.get("class") or "")]
    assert tables == ["comparison sortable many", *["comparison"] * len(grouped(metrics))]
    headers = [a for a in page.all("th") if a.get("data-better")]
    assert len(headers) == 2 * len(metrics)
    shown = [float(a["data-value"] or "nan") for a in page.all("td") if "data-value" in a]
    expected = [float(metrics.index(metric)) for _, members in grouped(metrics) for metric in members]
    assert shown[: 2 * len(metrics)] == [*expected, *expected]


def test_axes_are_logarithmic_where_values_span_decades() -> None:
    def axis(key: str, *values: float, references: tuple[float, ...] = ()) -> Any:
        return axis_of(Metric(key, key, "", "lower", ""), [cell(v) for v in values], [cell(v) for v in references])

    assert axis("fd_random", 1.0, 20.0)[1] is False
    (low, high), log = axis("fd_random", 1.0, 2000.0)
    assert log
    assert 0 < low < 1 < 2000 < high
    assert axis("recall_random", 0.001, 0.9) == ((-0.04, 1.04), False)
    assert axis("copying_z", -3.0, 0.01, 400.0)[1] is False  # Below 0 by what may be more than chance.
    near = [Measurement(-0.01, -0.05, 0.03), cell(0.01), cell(40.0)]
    assert axis_of(Metric("kid_random", "KID", "", "lower", ""), near)[1] is True  # type: ignore[index]
    # Over two trainings an interval reaches below what a distance can be.
    wide = [Measurement(5.0, 4.0, 6.0, seeds=(4.0, 6.0))]
    (low, high), log = axis_of(Metric("fd_random", "FD", "", "lower", "", least=0.0), wide)  # type: ignore[misc]
    assert not log
    assert -2 < low < 0
    assert high > 17
    (low, high), log = axis("copying_z", -1.0, 2.0, references=(3.0, -80.0))
    assert low < -1 < 3 < high < 10  # The far reference is not let in.
    assert low > -80
    assert axis("fd_random", math.nan) is None
    (low, high), log = axis("fd_random", 5.0)
    assert low < 5 < high


def test_ticks_of_logarithmic_axes() -> None:
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(1e-9, 1e3, 3) == pytest.approx([1e-9, 1e-5, 1e-1, 1e3])
    assert log_ticks(15, 400) == pytest.approx([20, 50, 100, 200])
    assert log_ticks(31, 44) == [35, 40]
    for low, high in ((0.013, 0.017), (3e-5, 8e4), (0.9, 1.1), (90.0, 1100.0)):
        found = log_ticks(low, high)
        assert len(found) >= 2
        assert all(low * (1 - 1e-8) <= value <= high * (1 + 1e-8) for value in found)


def test_a_figure_has_a_dot_for_every_value() -> None:
    rows = (
        Row("pixel_cnn", "tractable", {"bits_per_dim": Measurement(1.8, 1.7, 1.9, 300, "exact")}),
        Row("vae", "approximate", {"bits_per_dim": Measurement(1.2, kind="lower bound")}),
        Row("ais", "approximate", {"bits_per_dim": Measurement(1.4, kind="estimate")}),
        Row("gan", "implicit", {"bits_per_dim": Measurement(None)}),
        Row("broken", "implicit", {"bits_per_dim": Measurement(math.nan)}),
        Row("no likelihood", None, {}),
        Row("noise", None, {"bits_per_dim": Measurement(40.0)}),
    )
    figure = metric_figure(NLL, rows)
    assert figure is not None
    Page(figure)
    assert figure.count("<circle") == 3
    assert figure.count("filled") == 2  # An estimate is hollow.
    assert len(re.findall(r'd="[^"]*h-15m4 -3l-4 3l4 3"', figure)) == 1  # The bound's, to the left.
    assert len(re.findall(r'd="[^"]*h15m-4 -3l4 3l-4 3"', figure)) == 1  # Noise, off the axis to the right.
    assert figure.count(" range") == 1
    assert ">not defined<" in figure
    assert "no likelihood" not in figure
    assert 'aria-label="Negative log-likelihood: pixel_cnn 1.800; vae ≤ 1.200; ais ~ 1.400; gan not defined;' in figure
    assert metric_figure(NLL, rows[3:6]) is None
    text = document(example(GREY))
    assert text.count('class="dot-plots"') == 3  # Likelihood, samples, and a column that no group knows.


def test_the_front_holds_what_no_other_point_beats() -> None:
    points = np.array([[1, 5], [2, 2], [5, 1], [3, 3], [2, 2], [1, 6], [9, 1.0]])
    assert pareto_front(points).tolist() == [True, True, True, False, True, False, False]
    rng = np.random.Generator(np.random.PCG64(0))
    cloud = rng.random((60, 2))
    front = pareto_front(cloud)
    for point, is_best in zip(cloud, front, strict=True):
        beaten = any((other <= point).all() and (other < point).any() for other in cloud)
        assert is_best == (not beaten)


def trade_table() -> Table:
    time = Metric("training_seconds", "Training", "s", "lower", "")
    speed = Metric("samples_per_second", "Speed", "images/s", "higher", "")

    def row(name: str, panel: str, kind: Any, nll: float | None, seconds: float, rate: float) -> Row:
        likelihood = Measurement(nll, kind=kind, measure="discrete" if kind else None)
        return Row(name, panel, {"bits_per_dim": likelihood, time.key: cell(seconds), speed.key: cell(rate)})

    rows = (
        row("quick", "tractable", "exact", 2.0, 10.0, 500.0),
        row("good", "tractable", "exact", 1.0, 100.0, 5.0),
        row("bad", "tractable", "exact", 2.5, 200.0, 100.0),
        row("bound", "approximate", "lower bound", 3.0, 300.0, 900.0),
        row("gan", "implicit", None, None, 5.0, 1000.0),
        Row("noise", None, {"bits_per_dim": cell(0.0), "training_seconds": cell(1.0)}),
    )
    return Table((NLL, time, speed), rows)


def test_each_kind_of_likelihood_has_its_own_front() -> None:
    table = trade_table()
    points, left_out = points_of(table, NLL, table.metrics[1])
    assert left_out == ["gan"]
    exact, bounds = fronts(points, NLL)
    assert (exact.title, bounds.title) == ("exact values", "bounds")
    assert [point.name for point in exact.best] == ["quick", "good"]
    assert [point.name for point in exact.beaten] == ["bad"]
    assert [point.name for point in bounds.best] == ["bound"]
    higher = fronts(points, replace(NLL, better="higher"))[0]
    assert [point.name for point in higher.best] == ["quick", "bad"]
    points, _ = points_of(table, NLL, table.metrics[2])
    assert [point.cost for point in points] == pytest.approx([1 / 500, 1 / 5, 1 / 100, 1 / 900])


def test_trade_offs_on_the_page() -> None:
    trade_offs = tuple(TradeOff("bits_per_dim", cost) for cost in ("training_seconds", "samples_per_second", "absent"))
    content = replace(example(GREY), table=trade_table(), trade_offs=trade_offs)
    text = document(content)
    page = Page(text)
    part = text[text.index('class="trade-offs"') :]
    part = part[: part.index("</section>")]
    assert part.count("<figure") == 2
    assert part.count("filled") == 6  # quick, good and bound in both.
    assert part.count('class="line front"') == 2
    assert "Of the exact values: no other model is both as good and as cheap as quick and good." in page.text
    assert "Of the bounds: bound alone." in page.text
    assert "Without gan: not both numbers are known." in page.text
    assert "speed (s/image)" in part
    assert "≤ bound" in part
    assert "Quality against cost" not in document(replace(content, trade_offs=trade_offs[2:]))


def test_names_of_points_do_not_cover_each_other() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    points = np.concatenate([rng.uniform(20, 300, (8, 2)) * [1, 0.8], [[340.0, 5.0], [343.0, 9.0]]])
    widths = np.full(10, 60.0)
    corners = place_names(points, widths, (350, 260), np.empty((0, 2, 2)))
    boxes = np.concatenate([corners, corners + np.array([60.0, 13.0])], axis=1)
    for i, one in enumerate(boxes):
        assert one[:2].min() >= -2  # A name is a little less high than its line.
        assert one[2] <= 350
        for other in boxes[:i]:
            assert min(one[2], other[2]) <= max(one[0], other[0]) or min(one[3], other[3]) <= max(one[1], other[1])
        for x, y in points:
            assert not (one[0] < x < one[2] and one[1] < y < one[3])
    alone = place_names(points[:1], widths[:1], (350, 260), np.empty((0, 2, 2)))
    level = np.array([[[0.0, points[0, 1]], [350.0, points[0, 1]]]])
    moved = place_names(points[:1], widths[:1], (350, 260), level)
    assert alone[0, 0] > points[0, 0]  # At the right, unless a line runs there.
    assert not moved[0, 1] < points[0, 1] < moved[0, 1] + 13


def per_class(n: int) -> PerClass:
    metric = Metric("recall", "Recall", "", "higher", "Share.")
    rows = {
        "noise": tuple(Measurement(9.0, n=10) for _ in range(n)),
        "vae": tuple(
            Measurement(None) if i == 1 else Measurement(i / n, i / n - 0.1, i / n + 0.1, 10) for i in range(n)
        ),
    }
    return PerClass(tuple(f"kind {i}" for i in range(n)), (metric,), {k: {"recall": v} for k, v in rows.items()})


def test_classes_have_a_table_of_their_own() -> None:
    tables = class_tables(per_class(4), example_table())
    assert tables is not None
    page = Page(tables)
    assert page.text.index("vae") < page.text.index("noise")
    assert "vae, kind 2: 0.500, ± 0.100, n = 10" in [a.get("title") for a in page.all("td")]
    assert "vae, kind 1: not defined" in [a.get("title") for a in page.all("td")]
    shades = [a["style"] for a in page.all("td") if a.get("style")]
    assert shades == ["--shade: 0%", "--shade: 67%", "--shade: 100%", *["--shade: 100%"] * 4]  # Noise is beyond.
    assert "classes." not in page.text
    many = Page(class_tables(per_class(120), example_table()) or "")
    assert "The first 50 of 120 classes." in many.text
    # One table on the screen; on paper four of at most 14 classes, each with the names of the models.
    assert [a["class"] for a in many.all("div")] == ["scroll on-screen", "on-paper"]
    assert len([a for a in many.all("th") if a.get("scope") == "col"]) == (1 + 50) + (4 + 50)
    nothing = replace(per_class(2), rows={"vae": {"recall": (Measurement(None),) * 2}})
    assert class_tables(nothing, example_table()) is None
    assert "Class by class" in document(replace(example(GREY), per_class=per_class(4)))
    assert "Class by class" not in document(replace(example(GREY), per_class=nothing))


def test_new_sections_are_the_same_every_time() -> None:
    trade_offs = (TradeOff("bits_per_dim", "training_seconds"),)
    content = replace(example(GREY), table=trade_table(), trade_offs=trade_offs, per_class=per_class(12))
    assert document(content) == document(content)
