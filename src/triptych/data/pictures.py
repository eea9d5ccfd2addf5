"""Images and points as pictures for people, and a person's picture as an image of a space."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych.data.decode import Crop, Recipe, UnreadableImage, decode
from triptych.data.levels import level_table
from triptych.data.store import MAX_FILE_BYTES
from triptych.errors import InputError
from triptych.files import write_atomically
from triptych.spaces import ImageSpace, Space

GROUND = (232, 232, 232)
"""Colour between images: light, yet told from a white one."""
_BLANK = (120, 144, 180)  # no grey, so that it is told from every grey image
_FAR = 64  # colours this far apart (Euclidean distance in RGB) are told from each other


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


def blank_colour(space: ImageSpace) -> tuple[int, int, int]:
    """The colour of sites that hold nothing yet: a quiet blue, or another colour if a palette has one near it."""
    if space.palette is None:
        return _BLANK
    steps = np.arange(8) * 255 // 7
    mesh = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    candidates = np.concatenate([[_BLANK], mesh])
    palette = np.array(space.palette)
    nearest = palette[nearest_colours(candidates, palette)]
    distances = ((candidates - nearest) ** 2).sum(1)
    best = 0 if distances[0] >= _FAR**2 else int(distances.argmax())
    red, green, blue = candidates[best].tolist()
    return red, green, blue


def nearest_colours(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The place in a palette of the colour nearest to each, the first of equals.

    Arguments:
        colours: Integers 0 .. 255, (N, 3).
        palette: Integers 0 .. 255, (K, 3).
    Returns:
        int64, (N,).
    """
    places = np.empty(len(colours), dtype=np.int64)
    n_chunk = max(1, 2**22 // len(palette))
    for start in range(0, len(colours), n_chunk):
        part = colours[start : start + n_chunk, None].astype(np.int32)
        places[start : start + n_chunk] = ((part - palette.astype(np.int32)) ** 2).sum(-1).argmin(1)
    return places


def image_grid(
    images: np.ndarray,
    space: ImageSpace,
    n_columns: int,
    *,
    padding: int = 1,
    scale: int | None = None,
    drawn: np.ndarray | None = None,
) -> Image.Image:
    """Lays images out in rows on a light ground, each pixel a square of `scale` screen pixels.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W). Cells past the last image stay empty.
        space: Their space.
        n_columns: Images in a row.
        padding: Space around each image, in its own pixels.
        scale: Screen pixels per pixel. By default the least that makes an image 32 wide and high.
        drawn: Which sites to show, bool, (N, H, W), the others in `blank_colour(space)`; by default all.
    Returns:
        An RGB picture, ((H + padding) * rows + padding) * scale high and likewise wide.
    Raises:
        InputError: If the images are not of this space, or n_columns is less than 1.
    """
    if n_columns < 1 or padding < 0 or (scale is not None and scale < 1):
        raise InputError("n_columns and scale must be at least 1, and padding at least 0.")
    space.check(images)
    height, width = space.height, space.width
    if scale is None:
        scale = scale_for(space, 32)
    n_rows = max(1, math.ceil(len(images) / n_columns))
    canvas = np.full(
        ((height + padding) * n_rows + padding, (width + padding) * n_columns + padding, 3), GROUND, np.uint8
    )
    for start in range(0, len(images), 256):  # colours take three times the memory of levels, or more
        colours = to_rgb(images[start : start + 256], space)
        if drawn is not None:
            colours[~drawn[start : start + 256]] = blank_colour(space)
        for number, image in enumerate(colours, start):
            row, column = divmod(number, n_columns)
            top, left = padding + row * (height + padding), padding + column * (width + padding)
            canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1))


def scale_for(space: ImageSpace, least: int = 64) -> int:
    """Screen pixels per pixel: the fewest that make an image `least` wide and high."""
    return max(1, math.ceil(least / min(space.height, space.width)))


def joined(pictures: Sequence[Image.Image], space: ImageSpace, scale: int, *, down: bool = False) -> Image.Image:
    """Grids of images of that scale beside or below each other, with an eighth of an image's width between."""
    gap = scale * max(1, space.width // 8)
    widths, heights = [picture.width for picture in pictures], [picture.height for picture in pictures]
    room = gap * (len(pictures) - 1)
    size = (max(widths), sum(heights) + room) if down else (sum(widths) + room, max(heights))
    whole = Image.new("RGB", size, GROUND)
    place = 0
    for picture in pictures:
        whole.paste(picture, (0, place) if down else (place, 0))
        place += gap + (picture.height if down else picture.width)
    return whole


def columns_for(n: int) -> int:
    """Columns of a nearly square grid of n images."""
    return max(1, math.ceil(math.sqrt(n)))


def save_picture(picture: Image.Image, path: Path, comment: str = "") -> None:
    """Writes a PNG, atomically, with a comment in its metadata if it is not empty."""
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=png_comment(comment)))


def png_comment(comment: str) -> PngInfo | None:
    """PNG metadata under the keyword that the format reserves for comments; None without one."""
    if not comment:
        return None
    info = PngInfo()
    info.add_text("Comment", comment)
    return info


def save_items(items: np.ndarray, space: Space, path: Path, comment: str = "") -> None:
    """Writes a PNG of items: images in a nearly square grid, points as a plot.

    Arguments:
        items: Images, integers 0 .. levels-1, (N, C, H, W), or points, (N, dim).
        space: Their space.
        path: File to write.
        comment: For the metadata of a grid of images.
    Raises:
        InputError: If the images are not of this space.
    """
    if isinstance(space, ImageSpace):
        save_picture(image_grid(items, space, columns_for(len(items))), path, comment)
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
        path: File to write, atomically.
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
    axes.set_title(title.replace("$", r"\$"), fontsize=10)  # a name is no formula
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def read_picture(
    path: Path, space: ImageSpace, *, size: tuple[int, int] | None = None, crop: Crop = "center"
) -> tuple[np.ndarray, list[str]]:
    """Reads one image file as an image of a space.

    Levels are reduced or spread as `load_data` does; grey is repeated over colour channels, and colour converted to
    grey (ITU-R 601) or to the nearest colour of a palette.

    Arguments:
        path: A PNG, JPEG, BMP, GIF, WebP, TIFF, PPM or PGM file.
        space: The space to bring it to.
        size: (height, width) to bring it to first; None leaves it.
        crop: How, as in `load_data`.
    Returns:
        The image, (1, C, H, W), and what was changed on the way, a phrase each.
    Raises:
        InputError: If the file cannot be read, or is not of the space's size.
    """
    what = repr(str(path))
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{what} has more than {MAX_FILE_BYTES // 2**20} MiB, more than an image should.")
    content = path.read_bytes()
    grey = space.channels == 1 and space.palette is None
    try:
        # Pillow's warning of huge images is an error, and its remarks on odd metadata are not shown.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = decode(content, path.name, Recipe(size, crop))
            coloured = len(picture.pixels) > 1
            if coloured and grey:
                picture = decode(content, path.name, Recipe(size, crop, grey=True))
    except UnreadableImage as error:
        raise InputError(f"{what} cannot be read ({error}).") from None
    height, width = picture.pixels.shape[1:]
    if (height, width) != (space.height, space.width):
        wanted = f"{space.height}x{space.width}"
        raise InputError(
            f"{what} is {height}x{width} (height x width) and the model's images are {wanted};"
            f" give --size {wanted} to bring it to their size."
        )
    notes = [*picture.notes, *(["colour converted to grey"] if coloured and grey else [])]
    if space.palette is not None:
        colours = np.broadcast_to(picture.pixels, (3, height, width)).reshape(3, -1).T
        palette = np.array(space.palette)
        places = nearest_colours(colours, palette)
        n_changed = int((palette[places] != colours).any(1).sum())
        if n_changed:
            notes.append(f"{n_changed} of {len(places)} pixels were given the nearest colour of the palette")
        return places.reshape(1, 1, height, width), notes
    levels = level_table(256, space.levels)[picture.pixels]
    if space.levels < 256 and not (space.levels == 2 and picture.one_bit):
        notes.append(f"256 levels brought to {space.levels}")
    return np.broadcast_to(levels, (1, *space.shape)).copy(), notes
