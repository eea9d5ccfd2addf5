"""Grids of images and plots of points, as pictures for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.spaces import ImageSpace, Space

_BACKGROUND = (232, 232, 232)  # light, yet told from a white image
_LEAST_CELL = 32


def to_rgb(images: np.ndarray, space: ImageSpace) -> np.ndarray:
    """Colours of images for the screen.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W).
        space: Their space.
    Returns:
        uint8, (N, H, W, 3). Level 0 is black and the highest white, or palettes are looked up.
    Raises:
        InputError: If the images are not of this space.
    """
    space.check(images)
    if space.palette is not None:
        return np.array(space.palette, dtype=np.uint8)[images[:, 0]]
    bytes_of_level = (np.arange(space.levels, dtype=np.int64) * 255 * 2 + space.levels - 1) // (2 * (space.levels - 1))
    colours = bytes_of_level.astype(np.uint8)[images].transpose(0, 2, 3, 1)
    if space.channels not in (1, 3):
        raise InputError(f"Images of {space.channels} channels cannot be shown; only of 1 and 3.")
    return np.repeat(colours, 3, axis=3) if space.channels == 1 else colours


def image_grid(
    images: np.ndarray, space: ImageSpace, n_columns: int, *, padding: int = 1, scale: int | None = None
) -> Image.Image:
    """Lays images out in rows on a light ground, each pixel a square of `scale` screen pixels.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W). Cells past the last image stay empty.
        space: Their space.
        n_columns: Images in a row.
        padding: Space around each image, in its own pixels.
        scale: Screen pixels per pixel. By default the least that makes an image 32 wide and high.
    Returns:
        An RGB picture, ((H + padding) * rows + padding) * scale high and likewise wide.
    Raises:
        InputError: If the images are not of this space, or n_columns is less than 1.
    """
    if n_columns < 1 or padding < 0 or (scale is not None and scale < 1):
        raise InputError("n_columns and scale must be at least 1, and padding at least 0.")
    colours = to_rgb(images, space)
    height, width = space.height, space.width
    if scale is None:
        scale = max(1, math.ceil(_LEAST_CELL / min(height, width)))
    n_rows = max(1, math.ceil(len(colours) / n_columns))
    canvas = np.full(
        ((height + padding) * n_rows + padding, (width + padding) * n_columns + padding, 3), _BACKGROUND, np.uint8
    )
    for number, image in enumerate(colours):
        row, column = divmod(number, n_columns)
        top, left = padding + row * (height + padding), padding + column * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1))


def save_items(items: np.ndarray, space: Space, path: Path) -> None:
    """Writes a PNG of items: images in a nearly square grid, points as a plot.

    Arguments:
        items: Images, integers 0 .. levels-1, (N, C, H, W), or points, (N, dim).
        space: Their space.
        path: File to write.
    Raises:
        InputError: If the images are not of this space.
    """
    if isinstance(space, ImageSpace):
        image_grid(items, space, max(1, math.ceil(math.sqrt(len(items))))).save(path, format="PNG")
    else:
        save_points(items, path)


def save_points(
    points: np.ndarray,
    path: Path,
    *,
    labels: np.ndarray | None = None,
    log_density: Callable[[np.ndarray], np.ndarray] | None = None,
    title: str = "",
) -> None:
    """Writes a PNG: a scatter of the first two coordinates, or a histogram of points on a line.

    Arguments:
        points: (N, dim). Those that are not finite are left out and counted in the title.
        path: File to write.
        labels: Classes that colour the scatter, (N,).
        log_density: True log-density, drawn over the histogram.
        title: Text above.
    """
    # Imported here: it takes half a second, and images do not need it. Figure draws off screen, without pyplot's state.
    from matplotlib.figure import Figure

    n, dim = points.shape
    finite = np.isfinite(points).all(axis=1)
    points = points[finite]
    if len(points) < n:
        title = f"{title} ({n - len(points)} of {n} points are not finite)".strip()
    figure = Figure(figsize=(6, 6 if dim > 1 else 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if dim == 1:
        axes.hist(points[:, 0], bins=100, density=len(points) > 0, color="#9db8d9", label=f"{len(points)} points")
        if log_density is not None and len(points):
            line = np.linspace(points.min(), points.max(), 1000)
            axes.plot(line, np.exp(log_density(line[:, None])), color="#b03a2e", label="true density")
        axes.set(xlabel="x", ylabel="density")
        axes.legend(frameon=False)
    else:
        colours = np.zeros(len(points)) if labels is None else labels[finite]
        axes.scatter(points[:, 0], points[:, 1], s=4, c=colours, cmap="turbo", linewidths=0, alpha=0.7)
        axes.set(xlabel="x1", ylabel="x2" if dim == 2 else f"x2 (of {dim})", aspect="equal")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, format="png")
