"""Axes drawn as inline SVG: the colours come from the page's style, so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from triptych.report.html import Html, element, fragment


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within the range, about `n` of them."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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
    ) -> None:
        self.x_range, self.y_range, self.size = x_range, y_range, size
        self.x_label, self.y_label, self.frame = x_label, y_label, frame
        self.marks: list[Html] = []

    def _place(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Data coordinates to pixels of the frame, (N, 2); NaN stays, values far outside are drawn in."""
        (left, right), (bottom, top), (width, height) = self.x_range, self.y_range, self.size
        px = (np.asarray(xs, dtype=np.float64) - left) / (right - left) * width
        py = (top - np.asarray(ys, dtype=np.float64)) / (top - bottom) * height
        return np.clip(np.stack([px, py], 1), -9 * max(self.size), 9 * max(self.size))

    def line(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """A line through the points in order, broken where a value is not finite."""
        path, pen_up = [], True
        known = np.isfinite(xs) & np.isfinite(ys)
        for (x, y), is_known in zip(self._place(xs, ys), known, strict=True):
            if not is_known:
                pen_up = True
                continue
            path.append(f"{'M' if pen_up else 'L'}{x:.1f} {y:.1f}")
            pen_up = False
        self.marks.append(element("path", d="".join(path), class_=f"line {style}"))

    def area(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """The area between the line and the bottom of the frame."""
        height = self.size[1]
        points = self._place(xs, ys)
        body = "".join(f"L{x:.1f} {y:.1f}" for x, y in points)
        path = f"M{points[0, 0]:.1f} {height}{body}L{points[-1, 0]:.1f} {height}Z"
        self.marks.append(element("path", d=path, class_=f"area {style}"))

    def dots(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """Many small points, as one path of dots without length: a tenth of the bytes of circles."""
        inside = self._inside(xs, ys)
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in self._place(xs[inside], ys[inside]))
        self.marks.append(element("path", d=path, class_=f"dots {style}"))

    def circles(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """A few hollow points."""
        inside = self._inside(xs, ys)
        for x, y in self._place(xs[inside], ys[inside]):
            self.marks.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.6", class_=f"circle {style}"))

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
        y_texts = [(y, tick_text(y)) for y in ticks(*self.y_range)]
        left, right = 44, 10  # The same for all plots, so that they line up.
        top, below = (22 if self.y_label else 8), (40 if self.x_label else 22)
        whole = f"0 0 {left + width + right} {top + height + below}"
        body = element("svg", *self.marks, width=width, height=height)
        content = element("g", *self._axes(y_texts), body, *self._labels(left), transform=f"translate({left} {top})")
        return element("svg", content, viewBox=whole, width=left + width + right, role="img", aria_label=alt)

    def _axes(self, y_texts: Iterable[tuple[float, str]]) -> Iterable[Html]:
        """Hair lines at the ticks of y, small strokes at those of x, and their numbers."""
        width, height = self.size
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        for value, text in y_texts:
            y = (y_high - value) / (y_high - y_low) * height
            yield element("path", d=f"M0 {y:.1f}H{width}", class_="hair")
            yield element("text", text, x=-6, y=f"{y + 3.8:.1f}", class_="tick end")
        yield element("path", d=f"M0 {height}H{width}", class_="axis")
        for value in ticks(x_low, x_high, n=4):
            x = (value - x_low) / (x_high - x_low) * width
            yield element("path", d=f"M{x:.1f} {height}v4", class_="axis")
            # The outermost numbers are set flush with the frame: centred, they would stick out of the drawing.
            place = "end" if x > width - 12 else "middle"
            yield element("text", tick_text(value), x=f"{x:.1f}", y=height + 17, class_=f"tick {place}")

    def _labels(self, left: int) -> Iterable[Html]:
        width, height = self.size
        if self.y_label:
            yield element("text", self.y_label, x=-left, y=-10, class_="label")
        if self.x_label:
            yield element("text", self.x_label, x=width, y=height + 34, class_="label end")


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
