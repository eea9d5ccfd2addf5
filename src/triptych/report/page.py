"""The report: one HTML file that lays the three panels side by side and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

from triptych.evaluation.neighbours import Neighbours
from triptych.files import write_text
from triptych.report.classes import class_tables
from triptych.report.comparison import comparison, metric_name, value_cell
from triptych.report.content import PanelContent, ReportContent
from triptych.report.curves import learning_curves
from triptych.report.dots import metric_figures
from triptych.report.figures import Painter, neighbour_table, painter_for
from triptych.report.groups import key_metrics
from triptych.report.html import Html, element, fragment
from triptych.report.table import PANELS, best_cells
from triptych.report.trade_off import trade_off_figures

KNOWS = {
    "tractable": fragment("exact ", element("i", "p"), "(", element("i", "x"), ")"),
    "approximate": fragment("a bound on ", element("i", "p"), "(", element("i", "x"), ")"),
    "implicit": fragment("no ", element("i", "p"), "(", element("i", "x"), "), only samples"),
}
HOW_TO_READ = (
    "Each panel is a family of models, by what it knows of the probability p(x) of an item. Look at the samples beside"
    " the held-out data first, then at the numbers: an arrow says which way is better."
)
NOT_SUPPORTED = "Not supported:"
"""How a verdict begins that says what the numbers do not show."""
LONG = frozenset({"numbers", "figures", "classes", "learning"})
"""Sections that need not stay on one sheet of paper."""
N_KEY_NUMBERS = 6
N_FRAMES = 8


def write_report(content: ReportContent, path: Path) -> None:
    """Writes the whole report as one HTML file, atomically. The same content gives the same bytes.

    The file holds its style, its script and its pictures, and forbids the browser any request.
    """
    write_text(path, "<!doctype html>\n" + document(content) + "\n")


def document(content: ReportContent) -> Html:
    """The page as markup."""
    painter = painter_for(content)
    sections = [
        section
        for section in (
            _verdicts(content),
            _numbers(content),
            _figures(content),
            _trade_offs(content),
            _classes(content),
            _learning(content),
            _over_time(content, painter),
            _reconstructions(content, painter),
            _neighbours(content, painter),
            _how(content),
        )
        if section is not None
    ]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in sections]
    body = element(
        "main",
        _header(content, links),
        _triptych(content, painter),
        *(_section(anchor, title, inside) for anchor, title, inside in sections),
    )
    return element("html", _head(content), element("body", body, _script()), lang="en")


Section = tuple[str, str, Html]
"""Anchor, title, content."""


def _head(content: ReportContent) -> Html:
    digest = base64.b64encode(hashlib.sha256(_asset("report.js").encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
        f" script-src 'sha256-{digest}'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{content.title} | Triptych"),
        element("link", rel="icon", href="data:,"),
        element("style", Html(_asset("style.css"))),
    )


def _asset(name: str) -> str:
    return files("triptych.report").joinpath(name).read_text("utf-8").strip()


def _script() -> Html:
    return element("script", Html(_asset("report.js")))


def _section(anchor: str, title: str, inside: Html) -> Html:
    heading = element("h2", title, id=anchor)
    return element("section", heading, inside, aria_labelledby=anchor, class_="long" if anchor in LONG else None)


def _header(content: ReportContent, links: list[Html]) -> Html:
    name, colon, models = content.title.partition(": ")
    title = element("h1", name, colon, element("span", models) if models else None)
    return element(
        "header",
        element("p", "Triptych", class_="eyebrow"),
        title,
        element("p", HOW_TO_READ, class_="lead"),
        _pairs(content.data, "data-facts") if content.data else None,
        element("nav", *links, aria_label="Sections") if links else None,
    )


def _pairs(pairs: dict[str, str] | Iterable[tuple[str | Html, str | Html]], style: str) -> Html:
    """A list of names and their values."""
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in items), class_=style)


def _triptych(content: ReportContent, painter: Painter) -> Html:
    """The panels in order, each with its models, under the held-out data that they are to match."""
    present = [name for name in PANELS if any(panel.panel == name for panel in content.panels)]
    absent = [name for name in PANELS if name not in present]
    columns = [_panel(name, content, painter) for name in present]
    strip = painter.held_out(content.held_out) if len(content.held_out) else None
    real = None
    if strip is not None:
        caption = element(
            "figcaption", element("b", "Held out"), " Real items for comparison; no model was trained on them."
        )
        real = element("figure", caption, strip, class_="held-out")
    missing = None
    if absent:
        names = " or ".join([", ".join(absent[:-1]), absent[-1]] if len(absent) > 1 else absent)
        missing = element("p", f"No {names} model was compared.", class_="quiet")
    heading = element("h2", "The three panels", id="panels", class_="unseen")
    wings = element("div", *columns, class_=f"wings columns-{len(columns)}")
    return element("section", heading, real, wings, missing, aria_labelledby="panels", class_="triptych")


def _panel(name: str, content: ReportContent, painter: Painter) -> Html:
    models = [_model(panel, content, painter) for panel in content.panels if panel.panel == name]
    knows = element("p", KNOWS[name], class_="knows")
    heading = element("div", element("h3", name.capitalize()), knows, class_="panel-head")
    return element(
        "section", heading, element("div", *models, class_=f"models models-{len(models)}"), class_=f"panel {name}"
    )


def _model(panel: PanelContent, content: ReportContent, painter: Painter) -> Html:
    """One model of the triptych: its name, samples, key numbers and facts."""
    best = best_cells(content.table)
    numbers = []
    for number, row in enumerate(content.table.rows):
        if (row.name, row.panel) == (panel.name, panel.panel):
            measured = [metric for metric in content.table.metrics if metric.key in row.measurements]
            numbers += [
                (metric_name(metric), value_cell(metric, row.measurements[metric.key], (number, metric.key) in best))
                for metric in key_metrics(measured, N_KEY_NUMBERS)
            ]
    drawing = painter.samples(panel.samples, f"Samples of {panel.title}")
    picture = element("figure", drawing, element("figcaption", "Samples"))
    facts = _pairs(panel.facts, "facts") if panel.facts else None
    text = element("div", _pairs(numbers, "key-numbers") if numbers else None, facts)
    heading = element("h4", panel.title, " ", element("code", panel.name))
    return element("article", heading, element("div", picture, text, class_="model-body"), class_="model")


def _by_model(content: ReportContent, draw: Callable[[PanelContent], Html | str]) -> Html:
    """A figure for each model, in the columns of the triptych; a string stands for what a model lacks, and why."""
    figures = []
    for panel in sorted(content.panels, key=lambda panel: PANELS.index(panel.panel)):
        drawn = draw(panel)
        inside = drawn if isinstance(drawn, Html) else element("p", drawn, class_="quiet")
        caption = element("figcaption", panel.title, _distinct(panel, content))
        figures.append(element("figure", caption, inside, class_=panel.panel))
    return element("div", *figures, class_=f"by-model columns-{min(3, len(figures))}")


def _distinct(panel: PanelContent, content: ReportContent) -> Html | None:
    """The model's name, where several models share a title."""
    twins = sum(other.title == panel.title for other in content.panels)
    return fragment(" ", element("code", panel.name)) if twins > 1 else None


def _verdicts(content: ReportContent) -> Section | None:
    """What the numbers say of each panel, and what they do not."""
    panels = [(name, content.verdicts[name]) for name in (*PANELS, "samples") if content.verdicts.get(name)]
    if not panels:
        return None
    figures = []
    for name, sentences in panels:
        items = []
        for sentence in sentences:
            sentence = sentence.replace(" %", "\u00a0%")
            rest = sentence.removeprefix(NOT_SUPPORTED)
            is_limit = rest != sentence
            text = fragment(element("b", NOT_SUPPORTED), rest) if is_limit else sentence
            items.append(element("li", text, class_="limit" if is_limit else None))
        heading = element("h3", name.capitalize())
        figures.append(element("section", heading, element("ul", *items, class_="sentences"), class_=name))
    n_columns = len(figures) if len(figures) <= 3 else 2
    return "support", "What the numbers support", element("div", *figures, class_=f"verdicts columns-{n_columns}")


def _numbers(content: ReportContent) -> Section | None:
    if not content.table.metrics:
        return None
    return "numbers", "The numbers", comparison(content.table)


def _figures(content: ReportContent) -> Section | None:
    figures = metric_figures(content.table)
    if figures is None:
        return None
    intro = (
        "Each row of the table as a dot, with a line for its 95 % interval over items and, where there are several,"
        " trainings. References are grey, and faint lines lead up from them. An arrow from a dot is a bound: the true"
        " value lies that way. A hollow dot is an estimate. An arrow without a dot points to a value off the axis."
    )
    return "figures", "Figures of every metric", fragment(element("p", intro, class_="intro"), figures)


def _trade_offs(content: ReportContent) -> Section | None:
    figures = trade_off_figures(content.table, content.trade_offs)
    if figures is None:
        return None
    intro = (
        "Quality against cost, which is logarithmic. Filled: no other model of the same kind of value is at least as"
        " good and as cheap; a stepped line joins these. Thin lines are 95 % intervals of quality; a model whose"
        " interval crosses the stepped line may belong to it."
    )
    return "trade-offs", "Quality against cost", fragment(element("p", intro, class_="intro"), figures)


def _classes(content: ReportContent) -> Section | None:
    tables = class_tables(content.per_class, content.table) if content.per_class is not None else None
    if tables is None:
        return None
    intro = (
        "The stronger the shade of a cell, the larger its value, from the models' smallest to their largest. Point at a"
        " cell for its interval."
    )
    return "classes", "Class by class", fragment(element("p", intro, class_="intro"), tables)


def _learning(content: ReportContent) -> Section | None:
    drawings = {id(panel): learning_curves(panel.curves, panel.title) for panel in content.panels}
    if not any(drawings.values()):
        return None
    intro = "Every model on its own axes: losses of different families are different quantities."
    figures = _by_model(content, lambda p: fragment(*drawings[id(p)]) if drawings[id(p)] else "No curve was recorded.")
    return "learning", "Learning", fragment(element("p", intro, class_="intro"), figures)


def _over_time(content: ReportContent, painter: Painter) -> Section | None:
    if not any(panel.film for panel in content.panels):
        return None
    intro = "The same noise at each moment of training, so that only the model changes from row to row."

    def draw(panel: PanelContent) -> Html | str:
        if not panel.film:
            return "No samples were kept during training."
        last = len(panel.film) - 1
        n = min(len(panel.film), N_FRAMES)
        chosen = sorted({round(i * last / max(n - 1, 1)) for i in range(n)})
        frames = []
        for seconds, items in (panel.film[i] for i in chosen):
            time = f"{seconds:,.0f} s" if seconds >= 9.5 or seconds == 0 else f"{seconds:.1f} s"
            picture = painter.frame(items, f"Samples of {panel.title} after {time}")
            frames.append(element("li", element("span", time), picture))
        return element("ol", *frames, class_=f"film {painter.film_style}")

    return "over-time", "Samples over training", fragment(element("p", intro, class_="intro"), _by_model(content, draw))


def _reconstructions(content: ReportContent, painter: Painter) -> Section | None:
    if all(panel.reconstructions is None for panel in content.panels):
        return None
    intro = "Held-out items, and below each its reconstruction from the model's latent code."
    lacking = {
        "tractable": "None: this family has no encoder.",
        "approximate": "None were made.",
        "implicit": "None: no encoder was learnt (encoder='after' or 'bigan').",
    }

    def draw(panel: PanelContent) -> Html | str:
        if panel.reconstructions is None:
            return lacking[panel.panel]
        return painter.pairs(*panel.reconstructions, f"Held-out items above their reconstructions by {panel.title}")

    figures = _by_model(content, draw)
    return "reconstructions", "Reconstructions", fragment(element("p", intro, class_="intro"), figures)


def _neighbours(content: ReportContent, painter: Painter) -> Section | None:
    if all(panel.neighbours is None for panel in content.panels):
        return None
    intro = (
        f"Each sample beside the training items nearest to it, with {painter.distance}. A copy is the same item twice,"
        " at a distance near 0 and far below the next one; a sample that only resembles its neighbours is new."
    )

    def tables(pixels: Neighbours | None, features: Neighbours | None, what: str) -> Html | str:
        if pixels is None:
            return "Not computed."
        table = neighbour_table(pixels, painter, what)
        if features is None:
            return table
        title = element("p", "In features, where a shifted copy is near too:", class_="quiet")
        return fragment(table, title, neighbour_table(features, painter, what))

    def draw(panel: PanelContent) -> Html | str:
        return tables(panel.neighbours, panel.neighbours_in_features, "sample")

    parts = [element("p", intro, class_="intro"), _by_model(content, draw)]
    pixels, features = content.held_out_neighbours, content.held_out_neighbours_in_features
    figures = [
        element("figure", element("figcaption", caption), neighbour_table(neighbours, painter, "held out"))
        for caption, neighbours in (("Held-out items, which nobody copied", pixels), ("The same in features", features))
        if neighbours is not None
    ]
    if figures:
        parts.append(element("div", *figures, class_="by-model columns-3"))
    return "neighbours", "Nearest training items", fragment(*parts)


def _how(content: ReportContent) -> Section | None:
    """Protocol, notes, metrics, environment and the command: what another person needs to repeat it."""
    blocks = []
    for title, sentences in (("Protocol", content.protocol), ("Notes", content.notes)):
        if sentences:
            items = element("ul", *(element("li", sentence) for sentence in sentences), class_="sentences")
            blocks.append(element("div", element("h3", title), items))
    if content.environment:
        blocks.append(element("div", element("h3", "Environment"), _pairs(content.environment, "facts")))
    metrics = [(metric_name(metric), metric.protocol) for metric in content.table.metrics if metric.protocol]
    if metrics:
        blocks.append(
            element("div", element("h3", "How each number is measured"), _pairs(metrics, "protocols"), class_="wide")
        )
    if content.command:
        code = element("pre", element("code", content.command), tabindex=0)
        block = element("div", code, class_="command")
        blocks.append(element("div", element("h3", "Repeat it"), block, class_="wide"))
    return ("method", "How it was done", element("div", *blocks, class_="method")) if blocks else None
