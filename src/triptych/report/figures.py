"""Drawings of data items: images as embedded pictures, points as plots. The page asks either for the same things."""

from __future__ import annotations

import base64
import io
import math
from typing import Protocol

import numpy as np
from PIL import Image

from triptych.data.pictures import image_grid
from triptych.evaluation.neighbours import Neighbours
from triptych.report.content import ReportContent
from triptych.report.html import Html, element, fragment
from triptych.report.plot import Plot, legend
from triptych.spaces import ImageSpace, PointSpace

COLUMN = 404
"""Width of one panel on a wide screen, CSS pixels; narrower screens shrink what is in it."""
PAGE = 1292
"""Width of the page at its widest, CSS pixels; style.css has the same number."""
FRAME = 350
"""Width within the axes of a plot that fills one column."""
STRIP_GAP = 5
"""Between the held-out items, CSS pixels."""


class Painter(Protocol):
    """Draws items of one space. Styles take the panel's colour from the element around the drawing."""

    film_style: str
    """How frames are laid out: 'rows', or 'tiles'."""
    distance: str
    """What distances between items are."""

    def samples(self, items: np.ndarray, alt: str) -> Html:
        """A model's samples, filling one column."""

    def held_out(self, items: np.ndarray) -> Html | None:
        """Held-out items to lay under all panels; None where `samples` shows them already."""

    def frame(self, items: np.ndarray, alt: str) -> Html:
        """Samples at one moment of training."""

    def pairs(self, originals: np.ndarray, reconstructions: np.ndarray, alt: str) -> Html:
        """Items with their reconstructions."""

    def item(self, item: np.ndarray, alt: str) -> Html:
        """One item in a list."""


def painter_for(content: ReportContent) -> Painter:
    """The painter for the content's space."""
    if isinstance(content.space, ImageSpace):
        return ImagePainter(content.space)
    return PointPainter(content.space, content)


class ImagePainter:
    """Pictures at one file pixel a data pixel, enlarged by the browser: small files, crisp squares."""

    film_style = "rows"
    distance = "Euclidean distances of pixels scaled to 0 .. 1"

    def __init__(self, space: ImageSpace) -> None:
        self.space = space
        self.n_columns, self.zoom = self._layout()

    def _layout(self) -> tuple[int, int]:
        """Columns of the samples' grid and its whole-number zoom: the most that fill the column's width."""
        options = []
        for n_columns in range(9, 2, -1):
            native = n_columns * (self.space.width + 1) - 1
            zoom = max(1, COLUMN // native)
            options.append((min(zoom * native / COLUMN, 1.0), n_columns, zoom))
        _, n_columns, zoom = next((o for o in options if o[0] >= 0.95), max(options))
        return n_columns, zoom

    def samples(self, items: np.ndarray, alt: str) -> Html:
        n_rows = max(1, round(self.n_columns * self.space.width / self.space.height))
        if len(items) > self.n_columns:
            n_rows = min(n_rows, len(items) // self.n_columns)  # A last row that is not full would look cut off.
        return self._grid(items[: self.n_columns * n_rows], self.n_columns, self.zoom, alt)

    def held_out(self, items: np.ndarray) -> Html | None:
        # Two full rows on the widest page; the style hides what would begin another row on any screen.
        n_tiles = 2 * math.ceil(PAGE / (self.zoom * self.space.width + STRIP_GAP))
        tiles = (self._grid(item[None], 1, self.zoom, "") for item in items[:n_tiles])
        size = f"--tile-height: {self.zoom * self.space.height}px; --tile-width: {self.zoom * self.space.width}px"
        return element(
            "div",
            *tiles,
            class_="strip",
            role="img",
            aria_label="Held-out items",
            style=f"{size}; --strip-gap: {STRIP_GAP}px",
        )

    def frame(self, items: np.ndarray, alt: str) -> Html:
        n = max(1, min(len(items), self.n_columns))
        zoom = max(1, (COLUMN - 52) // (n * (self.space.width + 1) - 1))
        return self._grid(items[:n], n, zoom, alt)

    def pairs(self, originals: np.ndarray, reconstructions: np.ndarray, alt: str) -> Html:
        n, rows = self.n_columns, []
        for start in range(0, min(len(originals), 4 * n), n):
            both = np.concatenate([originals[start : start + n], reconstructions[start : start + n]])
            if len(both) == 2 * n or start == 0:  # A last row that is not full would stand out of line.
                rows.append(self._grid(both, len(both) // 2, self.zoom, alt))
        return element("div", *rows, class_="pairs")

    def item(self, item: np.ndarray, alt: str) -> Html:
        return self._grid(item[None], 1, max(1, 52 // self.space.width), alt)

    def _grid(self, items: np.ndarray, n_columns: int, zoom: int, alt: str) -> Html:
        if not len(items):
            return element("p", "None.", class_="quiet")
        image = self._on_page(image_grid(items, self.space, n_columns, padding=1, scale=1), len(items), n_columns)
        file = io.BytesIO()
        image.save(file, "PNG")
        source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        width, height = zoom * image.width, zoom * image.height
        return element("img", src=source, alt=alt, width=width, height=height, class_="pixels" if zoom > 1 else None)

    def _on_page(self, grid: Image.Image, n: int, n_columns: int) -> Image.Image:
        """The grid without its border, to be flush with the text, and with gaps that let the page show through."""
        cell_height, cell_width = self.space.height + 1, self.space.width + 1
        row = np.arange(grid.height - 2) // cell_height
        column = np.arange(grid.width - 2) // cell_width
        filled = row[:, None] * n_columns + column < n
        filled[self.space.height :: cell_height] = False
        filled[:, self.space.width :: cell_width] = False
        grid = grid.crop((1, 1, grid.width - 1, grid.height - 1))
        grid.putalpha(Image.fromarray(np.where(filled, 255, 0).astype(np.uint8)))
        return grid.convert("LA") if self.space.channels == 1 and self.space.palette is None else grid


class PointPainter:
    """Scatter plots of the first two coordinates, or histograms of a single one, all over the same axes."""

    film_style = "tiles"
    distance = "Euclidean distances in data units"

    def __init__(self, space: PointSpace, content: ReportContent) -> None:
        self.space = space
        self.data = content.held_out[:1000] if len(content.held_out) else np.zeros((1, space.dim))
        shown = self.data[:, :2].astype(np.float64)
        middle = (shown.min(0) + shown.max(0)) / 2
        half = 0.58 * float((shown.max(0) - shown.min(0)).max()) or space.scale
        self.ranges = [(float(m - half), float(m + half)) for m in middle]
        self.edges = np.linspace(*self.ranges[0], 49)
        tallest = float(self._histogram(self.data).max())
        heights = [float(self._histogram(panel.samples).max()) for panel in content.panels]
        # A collapsed model's spike is cut, else it would flatten everybody else's histogram.
        self.top = 1.08 * max(tallest, min(max(heights, default=0.0), 2 * tallest))

    def _histogram(self, items: np.ndarray) -> np.ndarray:
        """Density of the first coordinate in each bin; items outside the frame count in the total."""
        counts, _ = np.histogram(items[:, 0], self.edges)
        return counts / (max(len(items), 1) * (self.edges[1] - self.edges[0]))

    def _plot(self, items: np.ndarray, alt: str, size: tuple[int, int], *, framed: bool) -> Html:
        if self.space.dim == 1:
            plot = Plot(self.ranges[0], (0.0, self.top), size=size, frame=framed, x_label="x", y_label="density")
            steps = np.repeat(self.edges, 2)[1:-1]
            plot.area(steps, np.repeat(self._histogram(self.data), 2), "data")
            plot.line(steps, np.repeat(self._histogram(items), 2), "s0")
        else:
            plot = Plot(*self.ranges, size=size, frame=framed, x_label="x₁", y_label="x₂")
            plot.dots(self.data[:, 0], self.data[:, 1], "data")
            plot.dots(items[:1000, 0], items[:1000, 1], "s0")
        return plot.svg(alt)

    def samples(self, items: np.ndarray, alt: str) -> Html:
        if not len(items):
            return element("p", "None.", class_="quiet")
        size = (FRAME, 220) if self.space.dim == 1 else (FRAME, FRAME)
        key = legend(
            ("area data" if self.space.dim == 1 else "dots data", "held out"),
            ("s0" if self.space.dim == 1 else "dots s0", "samples"),
        )
        return fragment(self._plot(items, alt, size, framed=True), key, self._outside(items))

    def _outside(self, items: np.ndarray) -> Html | None:
        """Says how much the frame does not show."""
        shown = items[:, :2]
        low, high = np.array(self.ranges[: self.space.dim]).T
        n_outside = int((~((shown >= low) & (shown <= high)).all(1)).sum())
        notes = [f"{n_outside:,} of {len(items):,} samples lie outside the frame."] if n_outside else []
        if self.space.dim > 2:
            notes.append(f"The first two of {self.space.dim} coordinates.")
        return element("p", " ".join(notes), class_="quiet") if notes else None

    def held_out(self, items: np.ndarray) -> Html | None:
        return None

    def frame(self, items: np.ndarray, alt: str) -> Html:
        return self._plot(items, alt, (122, 80) if self.space.dim == 1 else (122, 122), framed=False)

    def pairs(self, originals: np.ndarray, reconstructions: np.ndarray, alt: str) -> Html:
        before, after = originals[:300], reconstructions[:300]
        if self.space.dim == 1:
            plot = Plot(self.ranges[0], self.ranges[0], size=(260, 260), x_label="held out", y_label="reconstruction")
            plot.line(np.array(self.ranges[0]), np.array(self.ranges[0]), "ink raw")
            plot.dots(before[:, 0], after[:, 0], "s0")
            return plot.svg(alt)
        plot = Plot(*self.ranges, size=(FRAME, FRAME), x_label="x₁", y_label="x₂")
        for a, b in zip(before, after, strict=True):
            plot.line(np.array([a[0], b[0]]), np.array([a[1], b[1]]), "ink raw")
        plot.dots(before[:, 0], before[:, 1], "data")
        plot.dots(after[:, 0], after[:, 1], "s0")
        return fragment(plot.svg(alt), legend(("dots data", "held out"), ("dots s0", "its reconstruction")))

    def item(self, item: np.ndarray, alt: str) -> Html:
        numbers = ", ".join(f"{value:.3g}" for value in item[:4])
        return element("span", f"({numbers}{', …' if len(item) > 4 else ''})", class_="point")


def neighbour_table(
    neighbours: Neighbours, painter: Painter, what: str = "sample", n_queries: int = 6, n_nearest: int = 4
) -> Html:
    """Samples (`what` else) beside their nearest training items, with the distance under each."""
    n_nearest = min(n_nearest, neighbours.nearest.shape[1])
    ranks = ["nearest", *(f"{rank}{'nd' if rank == 2 else 'rd' if rank == 3 else 'th'}" for rank in range(2, 9))]
    head = element("tr", *(element("th", text, scope="col") for text in (what, *ranks[:n_nearest])))
    rows = []
    for number, query in enumerate(neighbours.queries[:n_queries]):
        cells = [element("th", painter.item(query, f"{what} {number + 1}"), scope="row")]
        for rank in range(n_nearest):
            distance = float(neighbours.distances[number, rank])
            picture = painter.item(neighbours.nearest[number, rank], f"{ranks[rank]} training item")
            copy = distance == 0
            text = element("small", "0, copy" if copy else f"{distance:.2f}", class_="copy" if copy else None)
            cells.append(element("td", picture, text))
        rows.append(element("tr", *cells))
    return element("table", element("thead", head), element("tbody", *rows), class_="neighbours")
