"""Animations of images being drawn, as GIF or APNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.data.pictures import GROUND, blank_colour, nearest_colours, png_comment
from triptych.errors import InputError
from triptych.files import write_atomically
from triptych.spaces import ImageSpace

SUFFIXES = (".gif", ".png", ".apng")
MAX_SHOWN = 100
"""Pictures that an animation shows at most."""
MAX_FRAMES = 120

_WIDTH = 640  # screen pixels that a frame is scaled up to, about
_MAX_SCALE = 32
_SECONDS = 6.0  # for the drawing, whatever its number of frames
_FIRST_PAUSE, _LAST_PAUSE = 0.6, 3.0
_GIF_COLOURS = 256


class Frames:
    """What images look like while they are drawn: the start, evenly spaced turns, and the end.

    A turn that changes nothing one sees (a site that was given, the last pass of the Jacobi sampler) is no turn here.
    Of more than 120 turns every second, fourth, ... is kept, so that there are 60 to 120 frames however many they are.

    Arguments:
        images: Levels at the start, (n, C, H, W); those of sites not drawn do not matter.
        drawn: Sites that are there from the start, bool, (n, H, W).
    """

    def __init__(self, images: np.ndarray, drawn: np.ndarray) -> None:
        self.n = len(images)
        self._images, self._drawn = images.copy(), drawn.copy()
        self._n_turns, self._every = 0, 1
        self._kept = [self._now()]

    def _now(self) -> tuple[np.ndarray, np.ndarray]:
        return self._images.copy(), self._drawn.copy()

    def turn(self, first: int, levels: np.ndarray, sites: np.ndarray) -> None:
        """Takes what a turn has decided.

        Arguments:
            first: Which of the images the first of `levels` is.
            levels: (n', C, S).
            sites: Positions row * W + column, (S,).
        """
        images = self._images.reshape(self.n, levels.shape[1], -1)[first : first + len(levels)]  # views
        drawn = self._drawn.reshape(self.n, -1)[first : first + len(levels)]
        if drawn[:, sites].all() and np.array_equal(images[:, :, sites], levels):
            return
        images[:, :, sites] = levels
        drawn[:, sites] = True
        self._n_turns += 1
        if self._n_turns % self._every == 0:
            self._kept.append(self._now())
            if len(self._kept) > MAX_FRAMES:
                self._kept, self._every = self._kept[::2], 2 * self._every

    @property
    def states(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Levels (n, C, H, W) and the sites that are drawn (n, H, W) of each frame, from the start to the end."""
        return self._kept if self._n_turns % self._every == 0 else [*self._kept, self._now()]


def save_animation(
    frames: Frames,
    render: Callable[[np.ndarray, np.ndarray], Image.Image],
    space: ImageSpace,
    path: Path,
    comment: str = "",
) -> None:
    """Writes an animation that takes about six seconds, rests on its last frame, and begins anew.

    Arguments:
        frames: What was drawn.
        render: From levels and the sites drawn of a frame to its picture, a pixel for a pixel.
        space: Of the images.
        path: A .gif, .png or .apng file. A GIF has 256 colours: if there are more, the nearest of a choice of them.
        comment: For the metadata.
    Raises:
        InputError: If the suffix is another.
    """
    check_suffix(path)
    is_gif = path.suffix.lower() == ".gif"
    states = frames.states
    pictures = [np.asarray(render(*state)) for state in states]
    indexed = _with_one_palette(pictures, [GROUND, blank_colour(space)], forced=is_gif)
    scale = max(1, min(_MAX_SCALE, _WIDTH // max(indexed[0].size)))
    size = (indexed[0].width * scale, indexed[0].height * scale)
    first, *rest = (picture.resize(size, Image.Resampling.NEAREST) for picture in indexed)
    # GIF counts hundredths of a second.
    turn = round(min(0.5, max(0.03, _SECONDS / len(states))), 2)
    seconds = [_FIRST_PAUSE, *[turn] * (len(states) - 2), _LAST_PAUSE]
    noted: dict[str, Any] = {"comment": comment.encode()} if comment and is_gif else {"pnginfo": png_comment(comment)}
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary,
            format="GIF" if is_gif else "PNG",
            save_all=True,
            append_images=rest,
            duration=[round(1000 * pause) for pause in seconds[: len(states)]],
            loop=0,
            **noted,
        ),
    )


def check_suffix(path: Path) -> None:
    """Raises InputError unless an animation can be written to a file of this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: write an animation to a .gif, .png or .apng file.")


def _with_one_palette(
    pictures: Sequence[np.ndarray], plain: Sequence[tuple[int, int, int]], *, forced: bool
) -> list[Image.Image]:
    """RGB pictures with one palette for all if 256 colours suffice or it must be, else as they are.

    One palette keeps a colour the same from frame to frame.

    Arguments:
        pictures: uint8, (H, W, 3).
        plain: Colours that stay what they are.
        forced: Choose 256 colours if there are more.
    """
    packed = [picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1]) for picture in pictures]  # each (H, W)
    found = np.unique(np.concatenate([np.unique(picture) for picture in packed]))
    if len(found) > _GIF_COLOURS and not forced:
        return [Image.fromarray(picture) for picture in pictures]
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], 1).astype(np.uint8)
    palette, places = colours, np.arange(len(found))
    if len(found) > _GIF_COLOURS:
        # Chosen by the last frame, which one looks at longest.
        chosen = Image.fromarray(pictures[-1]).quantize(_GIF_COLOURS - len(plain), dither=Image.Dither.NONE)
        palette = np.array([*plain, *np.reshape(chosen.getpalette() or [], (-1, 3))], dtype=np.uint8)
        places = nearest_colours(colours, palette)
    indexed = []
    for picture in packed:
        image = Image.fromarray(places[np.searchsorted(found, picture)].astype(np.uint8))
        image.putpalette(palette.tobytes())
        indexed.append(image)
    return indexed
