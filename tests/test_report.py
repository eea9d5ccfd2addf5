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
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from triptych.evaluation.results import Measurement, Metric, Row, Table
from triptych.report.content import Neighbours, PanelContent, ReportContent
from triptych.report.curves import learning_curves, series_of, smoothed, split_unit
from triptych.report.html import VOID, element
from triptych.report.page import document, write_report
from triptych.report.plot import tick_text, ticks
from triptych.report.table import (
    CSV_FIELDS,
    arranged,
    best_cells,
    print_table,
    reading_notes,
    write_table,
)
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
