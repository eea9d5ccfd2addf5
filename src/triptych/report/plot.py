"""Axes drawn as inline SVG: the colours come from the page's style, so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from triptych.report.html import Html, element, fragment

LETTER = 5.9
"""Width of an average letter of names and numbers, CSS pixels."""

FLUSH = 12
"""How near to the right end of an axis a number ends at its tick, CSS pixels."""


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within the range, about `n` of them."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, n: int = 4) -> list[float]:
    """Numbers for a logarithmic axis, 0 < low < high, about `n` of them: powers of ten; of a short range also 2 and 5
    times those, or 3 times; of a very short one round numbers."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    for factors in ((1, 2, 5), (1, 3)):
        fine = [factor * 10.0**exponent for exponent in range(first - 1, last + 1) for factor in factors]
        inside = [value for value in fine if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]
        if 2 <= len(inside) <= n + 1:
            return inside
    if last <= first:
        return ticks(low, high, n)
    return [10.0**exponent for exponent in range(first, last + 1, max(1, math.ceil((last - first) / n)))]


def tick_text(value: float) -> str:
    """`12,000`, `0.25`, `−3`, `2e−07`, `1.5e+06`: at most seven signs, for the room beside an axis."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}".replace("-", "−")
    return f"{round(value, 6):,}".removesuffix(".0").replace("-", "−")


class Plot:
    """Axes with ticks, over which lines and points are drawn; what lies outside the ranges is cut at the frame.

    Arguments:
        x_range: Left and right end, left < right.
        y_range: Bottom and top, bottom < top.
        size: Width and height of the frame in CSS pixels, without the labels.
        x_label: Below the axis; empty for none.
        y_label: Above the axis, upright, so that it needs no turned head.
        frame: Draw axes, ticks and labels.
        x_log, y_log: A logarithmic axis; its range is positive.
        rows: In place of the numbers of a vertical axis, names at y = 0, -1, -2, ... and what to print at the right of
            each.
        left, right: Room beside the frame for numbers or names, CSS pixels.
    """

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        size: tuple[int, int],
        x_label: str = "",
        y_label: str = "",
        frame: bool = True,
        x_log: bool = False,
        y_log: bool = False,
        rows: Sequence[tuple[str, str]] = (),
        left: int = 44,
        right: int = 10,
    ) -> None:
        self.x_range, self.y_range, self.size = x_range, y_range, size
        self.x_label, self.y_label, self.frame = x_label, y_label, frame
        self.x_log, self.y_log, self.rows, self.left, self.right = x_log, y_log, rows, left, right
        self.marks: list[Html] = []

    def place(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Data coordinates to pixels of the frame, (N, 2); NaN stays, values far outside are drawn in."""
        width, height = self.size
        px = _share(xs, self.x_range, self.x_log) * width
        py = (1 - _share(ys, self.y_range, self.y_log)) * height
        return np.clip(np.stack([px, py], 1), -9 * max(self.size), 9 * max(self.size))

    def line(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """A line through the points in order, broken where a value is not finite."""
        path, pen_up = [], True
        known = np.isfinite(xs) & np.isfinite(ys)
        for (x, y), is_known in zip(self.place(xs, ys), known, strict=True):
            if not is_known:
                pen_up = True
                continue
            path.append(f"{'M' if pen_up else 'L'}{x:.1f} {y:.1f}")
            pen_up = False
        self.marks.append(element("path", d="".join(path), class_=f"line {style}"))

    def area(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """The area between the line and the bottom of the frame."""
        height = self.size[1]
        points = self.place(xs, ys)
        body = "".join(f"L{x:.1f} {y:.1f}" for x, y in points)
        path = f"M{points[0, 0]:.1f} {height}{body}L{points[-1, 0]:.1f} {height}Z"
        self.marks.append(element("path", d=path, class_=f"area {style}"))

    def dots(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """Many small points, as one path of dots without length: a tenth of the bytes of circles."""
        inside = self._inside(xs, ys)
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in self.place(xs[inside], ys[inside]))
        self.marks.append(element("path", d=path, class_=f"dots {style}"))

    def circles(self, xs: np.ndarray, ys: np.ndarray, style: str, *, radius: float = 2.6, tip: str = "") -> None:
        """A few points, hollow unless the style is `filled`; `tip` is shown when one points at them."""
        inside = self._inside(xs, ys)
        title = element("title", tip) if tip else None
        for x, y in self.place(xs[inside], ys[inside]):
            circle = element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", class_=f"circle {style}")
            self.marks.append(circle)

    def arrow(self, x: float, y: float, direction: int, style: str, *, length: float = 15) -> None:
        """An arrow from a point to the left (direction -1) or to the right (1); at a point outside of the frame, one at
        the frame's edge that points out of it."""
        ((px, py),) = self.place(np.array([x]), np.array([y]))
        tail = min(max(px, 0.0), float(self.size[0]))
        if tail != px:
            tail -= direction * (length + 1)
        head = f"M{tail:.1f} {py:.1f}h{direction * length:g}m{-direction * 4} -3l{direction * 4} 3l{-direction * 4} 3"
        self.marks.append(element("path", d=head, class_=f"line {style}"))

    def text(self, px: float, py: float, text: str, style: str) -> None:
        """Words at a pixel of the frame."""
        self.marks.append(element("text", text, x=f"{px:.1f}", y=f"{py:.1f}", class_=style))

    def _inside(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Which points the frame holds (NaN: not)."""
        (left, right), (bottom, top) = self.x_range, self.y_range
        return (xs >= left) & (xs <= right) & (ys >= bottom) & (ys <= top)

    def svg(self, alt: str) -> Html:
        """The drawing; `alt` describes it to who cannot see it."""
        width, height = self.size
        if not self.frame:
            body = element("svg", *self.marks, width=width, height=height)
            return element("svg", body, viewBox=f"0 0 {width} {height}", width=width, role="img", aria_label=alt)
        left, right = self.left, self.right
        top, below = (22 if self.y_label else 8), (40 if self.x_label else 22)
        whole = f"0 0 {left + width + right} {top + height + below}"
        body = element("svg", *self.marks, width=width, height=height)
        content = element("g", *self._axes(), body, *self._labels(left), transform=f"translate({left} {top})")
        return element("svg", content, viewBox=whole, width=left + width + right, role="img", aria_label=alt)

    def _axes(self) -> Iterable[Html]:
        """Hair lines at the ticks of y or the rows, small strokes at the ticks of x, and their numbers or names."""
        width, height = self.size
        if self.rows:
            y_texts = [(-float(number), name) for number, (name, _) in enumerate(self.rows)]
        else:
            y_texts = [(y, tick_text(y)) for y in (log_ticks if self.y_log else ticks)(*self.y_range)]
        places = self.place(np.full(len(y_texts), self.x_range[0]), np.array([y for y, _ in y_texts]))[:, 1]
        for (_, text), y in zip(y_texts, places, strict=True):
            yield element("path", d=f"M0 {y:.1f}H{width}", class_="hair")
            yield element("text", text, x=-6, y=f"{y + 3.8:.1f}", class_="tick end")
        for (_, text), y in zip(self.rows, places, strict=False):
            yield element("text", text, x=width + self.right, y=f"{y + 3.8:.1f}", class_="tick end")
        yield element("path", d=f"M0 {height}H{width}", class_="axis")
        for n in (4, 3, 2):
            values = (log_ticks if self.x_log else ticks)(*self.x_range, n=n)
            places = self.place(np.array(values), np.full(len(values), self.y_range[0]))[:, 0]
            widths = LETTER * np.array([len(tick_text(value)) for value in values])
            middles = np.where(places > width - FLUSH, places - widths / 2, places)
            if (np.diff(middles) >= (widths[1:] + widths[:-1]) / 2 + 9).all():
                break
        for value, x in zip(values, places, strict=True):
            yield element("path", d=f"M{x:.1f} {height}v4", class_="axis")
            # The outermost numbers are set flush with the frame: centred, they would stick out of the drawing.
            place = "end" if x > width - FLUSH else "middle"
            yield element("text", tick_text(value), x=f"{x:.1f}", y=height + 17, class_=f"tick {place}")

    def _labels(self, left: int) -> Iterable[Html]:
        width, height = self.size
        if self.y_label:
            yield element("text", self.y_label, x=-left, y=-10, class_="label")
        if self.x_label:
            yield element("text", self.x_label, x=width, y=height + 34, class_="label end")


def _share(values: np.ndarray, ends: tuple[float, float], log: bool) -> np.ndarray:
    """Where values lie between the ends of an axis, as 0 .. 1."""
    low, high = ends
    values = np.asarray(values, dtype=np.float64)
    if log:
        # What is not positive lies far to the left of every logarithmic axis.
        return (np.log10(np.maximum(values, 1e-300)) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return (values - low) / (high - low)


def legend(*entries: tuple[str, str]) -> Html:
    """What the marks mean: (style, text) pairs, as a list that wraps on narrow screens."""
    items = []
    for style, text in entries:
        filled = "area" in style.split()
        shape = element("circle", cx=10, cy=5, r="2.6", class_=f"circle {style}") if "valid" in style.split() else None
        if "dots" in style.split():
            line = element("path", d="M10 5h0", class_=style)
        else:
            line = element(
                "path", d="M1 0H19V10H1Z" if filled else "M1 5H19", class_=style if filled else f"line {style}"
            )
        swatch = element("svg", line, shape, viewBox="0 0 20 10", width=20, height=10, aria_hidden="true")
        items.append(element("li", swatch, text))
    return element("ul", *items, class_="legend") if items else fragment()
