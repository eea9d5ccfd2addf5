"""One image file to integers: every colour mode, orientation and size, and nothing unsafe or silently lossy."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from triptych.errors import InputError

Crop = Literal["center", "none", "pad"]

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"},
)
# Pillow's names. Listing them keeps out formats that run other programs or that nobody asked for.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_SCANS = 100  # of a JPEG of that many pixels
_SCAN = b"\xff\xda"
_ROWS = 256  # that are laid over white at once

# Notes on what was done to an image.
ROTATED = "turned upright as EXIF says"
FIRST_FRAME = "of several frames or pages, the first was used"
OVER_WHITE = "transparent, laid over white"
FROM_16_BIT = "16-bit grey, reduced to 256 levels (value >> 8)"
RESIZED = "brought to the size asked for"


class UnreadableImage(Exception):
    """A damaged file, or one that is not an image."""


@dataclass(frozen=True)
class Recipe:
    """How every image of a set is read."""

    size: tuple[int, int] | None = None
    """(height, width) to bring images to; None leaves them."""
    crop: Crop = "center"
    """How, as in `load_data`."""
    grey: bool = False
    """Whether to convert to grey."""


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels: np.ndarray
    """uint8, (1, H, W) if red, green and blue are equal everywhere, else (3, H, W)."""
    found_size: tuple[int, int]
    """(height, width) before resizing, upright."""
    mode: str
    """Pillow's name of the mode it was stored in."""
    notes: tuple[str, ...]
    """What was done to it."""

    @property
    def one_bit(self) -> bool:
        """Whether every pixel is 0 or 255 because it was stored as one bit."""
        return self.mode == "1" and RESIZED not in self.notes


def decode(data: bytes, name: str, recipe: Recipe) -> Picture:
    """Decodes an image file.

    Arguments:
        data: The file's bytes.
        name: Its name, for messages.
        recipe: Size and colour wanted.
    Raises:
        UnreadableImage: If it is damaged or not an image.
        InputError: If it is an image that is refused: larger than 64 megapixels, of more than 8 bits a colour, or too
            long and thin to be brought to the size wanted.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name)
            n_scans = _scans(image, data)
            if n_scans * image.width * image.height > MAX_SCANS * MAX_PIXELS:
                raise UnreadableImage(f"a JPEG of {n_scans} scans")
            _refuse_deep_colour(image, data, name)
            return _picture(image, name, recipe)
    except (InputError, UnreadableImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image of a known format") from None
    except Exception as error:  # damaged files make Pillow raise nearly everything: OSError, struct.error, KeyError
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from None


def _scans(image: Image.Image, data: bytes) -> int:
    """Scans of a JPEG, or of JPEGs within a TIFF: each is a pass over all pixels, and takes but a few bytes."""
    if image.format != "TIFF":
        return data.count(_SCAN) if data.startswith(b"\xff\xd8") else 0  # Pillow calls some JPEGs MPO
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(259) not in (6, 7):  # Compression
        return 0
    starts = tags.get(273) or tags.get(324) or ()  # of strips or tiles, each a JPEG of its part of the pixels
    sizes = tags.get(279) or tags.get(325) or ()
    if tags[259] == 6 or len(starts) != len(sizes) or len(sizes) < 2 or 0 in sizes or sum(sizes) > len(data):
        return data.count(_SCAN)
    return max(data.count(_SCAN, start, start + size) for start, size in zip(starts, sizes, strict=True))


def _too_large(name: str) -> InputError:
    return InputError(f"{name!r} has more than {MAX_PIXELS // 10**6} megapixels; scale it down or remove it.")


def _refuse_deep_colour(image: Image.Image, data: bytes, name: str) -> None:
    """Refuses what Pillow would reduce to 8 bits without a word, and what has no scale (32 bits, floats)."""
    deep = False
    if image.format == "PNG":
        deep = data[24] == 16 and data[25] != 0  # bit depth and colour type in the IHDR chunk; type 0 is grey
    elif image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]  # BitsPerSample
        deep = len(bits) > 1 and max(bits) > 8
    elif image.format == "PPM" and image.mode == "RGB":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        deep = isinstance(arguments, tuple) and int(arguments[1]) > 255  # the header's largest value
    if deep:
        raise InputError(f"{name!r} has more than 8 bits a colour; convert it to 8 bits first.")
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise InputError(f"{name!r} has 32-bit pixels, whose white is unknown; convert it to 8 bits first.")


def _picture(image: Image.Image, name: str, recipe: Recipe) -> Picture:
    mode, notes = image.mode, []
    if getattr(image, "is_animated", False):
        notes.append(FIRST_FRAME)
        image.seek(0)
    image.load()
    turned = _upright(image)
    if turned is not image:
        notes.append(ROTATED)
    image = turned
    found_size = (image.height, image.width)
    if mode.startswith("I"):
        # Pillow gives 16-bit PGM as mode I, spread to 0 .. 65535.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        notes.append(FROM_16_BIT)
    elif image.has_transparency_data:
        image, is_seen = _over_white(image)
        notes += [OVER_WHITE] * is_seen
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        if image.mode != "P":  # looking colours up loses nothing
            notes.append(f"converted to RGB from {mode}")
        image = image.convert("RGB")
    if recipe.grey:
        image = image.convert("L")
    if recipe.size is not None and found_size != recipe.size:
        notes.append(RESIZED)
        try:
            image = _resized(image, recipe.size, recipe.crop)
        except MemoryError:  # a filter over millions of pixels
            found, wanted = (f"{height}x{width}" for height, width in (found_size, recipe.size))
            raise InputError(
                f"{name!r} is {found} (height x width), which there is not enough memory to bring to {wanted}; cut it"
                " to other proportions or remove it."
            ) from None
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        red, green, blue = pixels.transpose(2, 0, 1)
        grey = np.array_equal(red, green) and np.array_equal(red, blue)
        pixels = red[None] if grey else pixels.transpose(2, 0, 1)
    else:
        pixels = pixels[None]
    return Picture(pixels, found_size, mode, tuple(notes))


def _over_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image without its transparency, laid over white; and whether there was any."""
    flat, is_seen = Image.new("RGB", image.size), False
    for top in range(0, image.height, _ROWS):  # large images would take a gibibyte at once
        layer = image.crop((0, top, image.width, min(top + _ROWS, image.height))).convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            is_seen = True
            layer = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        flat.paste(layer.convert("RGB"), (0, top))
    return flat, is_seen


# How an image is turned upright, by EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _resized(image: Image.Image, size: tuple[int, int], crop: Crop) -> Image.Image:
    """Brings an image to (height, width); see `load_data` for the three ways."""
    height, width = size
    scales = (width / image.width, height / image.height)
    if crop == "pad":
        scale = min(scales)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        padded = Image.new(image.mode, (width, height))  # black
        corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
        padded.paste(image.resize(inner, _filter(scale)), corner)
        return padded
    if crop == "none":
        return image.resize((width, height), _filter(min(scales)))
    scale = max(scales)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return image.resize((width, height), _filter(scale), box=box)


def _filter(scale: float) -> Image.Resampling:
    # Both look at all pixels under an output pixel when reducing, so nothing aliases; Lanczos is the sharper there.
    return Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
