"""What one datum is: an image of integer levels, or a point of real coordinates.

A model is built for a space and checks what it is given against it. The module imports nothing heavy, so that the
command line and the data sources can use it without waiting for PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from triptych.errors import InputError

MAX_DIMS = 192_000_000
"""Sub-pixels of the largest image that is read: 64 megapixels in colour."""


@dataclass(frozen=True)
class ImageSpace:
    """Images of shape (channels, height, width) whose entries are integers `0 .. levels - 1`.

    Palette images are the same thing with one channel whose levels are the colours of the palette: symbols without an
    order.
    """

    channels: int
    """1 (grey or palette) or 3 (red, green, blue)."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    levels: int = 256
    """Number of values a sub-pixel can take, at least 2."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """RGB colour (0 .. 255) of each level, for palette images."""

    def __post_init__(self) -> None:
        for field in ("channels", "height", "width", "levels"):
            _check_whole(f"ImageSpace.{field}", getattr(self, field))
        if self.n_dims > MAX_DIMS:
            raise InputError(f"ImageSpace.shape is {self.shape}; at most {MAX_DIMS} sub-pixels can be modelled.")
        if not 2 <= self.levels <= 65536:
            raise InputError(f"ImageSpace.levels is {self.levels}; it must be between 2 and 65536.")
        if self.palette is not None:
            if self.channels != 1:
                raise InputError(f"A palette image has one channel, not {self.channels}.")
            if not isinstance(self.palette, tuple) or not all(_is_colour(colour) for colour in self.palette):
                raise InputError("ImageSpace.palette holds something else than colours; give triples of 0 .. 255.")
            if len(self.palette) != self.levels:
                raise InputError(f"The palette has {len(self.palette)} colours but ImageSpace.levels is {self.levels}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.channels, self.height, self.width)

    @property
    def n_dims(self) -> int:
        """Number of sub-pixels in one image."""
        return self.channels * self.height * self.width

    def bits_per_dim(self, nats: float) -> float:
        """Converts nats per image (of a discrete log-likelihood or its negative) to bits per sub-pixel."""
        return nats / (self.n_dims * math.log(2))

    def check(self, x: Any, what: str = "images") -> None:
        """Raises InputError unless `x` (tensor or array) is a batch of shape (N, C, H, W), integers in range."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"{what} have shape {tuple(x.shape)}; this space needs (N, {', '.join(map(str, self.shape))})."
            )
        if "int" not in str(x.dtype):
            raise InputError(f"{what} have dtype {x.dtype}; give integers 0 .. {self.levels - 1}.")
        if len(x) and (int(x.min()) < 0 or int(x.max()) >= self.levels):
            raise InputError(
                f"{what} have values {int(x.min())} .. {int(x.max())}; this space needs 0 .. {self.levels - 1}."
            )

    def __str__(self) -> str:
        kind = "palette" if self.palette else {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels}-channel")
        return f"{self.height}x{self.width} {kind} images, {self.levels} levels"


@dataclass(frozen=True)
class PointSpace:
    """Points of `dim` real coordinates; `center` and `scale` say where the data lie, as `levels` does for images.

    Models standardise with `center` and `scale` inside, and answer in data units.
    """

    dim: int
    """Coordinates of one point."""
    center: tuple[float, ...] | None = None
    """Mean of each coordinate over the training data; None stands for zeros."""
    scale: float = 1.0
    """Root mean square distance of a coordinate from its mean over the training data, one for all coordinates."""

    def __post_init__(self) -> None:
        _check_whole("PointSpace.dim", self.dim)
        if self.center is not None and not isinstance(self.center, tuple):
            raise InputError(f"PointSpace.center is {self.center!r}; it must be a tuple of numbers.")
        if self.center is not None and len(self.center) != self.dim:
            raise InputError(f"PointSpace.center has {len(self.center)} coordinates; dim is {self.dim}.")
        if self.center is not None and not all(isinstance(c, int | float) and math.isfinite(c) for c in self.center):
            raise InputError(f"PointSpace.center is {self.center}; it must be finite numbers.")
        if not (isinstance(self.scale, int | float) and self.scale > 0 and math.isfinite(self.scale)):
            raise InputError(f"PointSpace.scale is {self.scale!r}; it must be positive and finite.")

    @property
    def shape(self) -> tuple[int]:
        """(dim,)."""
        return (self.dim,)

    @property
    def n_dims(self) -> int:
        """Coordinates of one point."""
        return self.dim

    def check(self, x: Any, what: str = "points") -> None:
        """Raises InputError unless `x` (tensor or array) is a batch of shape (N, dim) of finite floats."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"{what} have shape {tuple(x.shape)}; this space needs (N, {self.dim}).")
        if "float" not in str(x.dtype):
            raise InputError(f"{what} have dtype {x.dtype}; give floats.")
        if len(x) and not (math.isfinite(float(x.min())) and math.isfinite(float(x.max()))):
            raise InputError(f"{what} hold NaN or infinite values; remove them.")

    def __str__(self) -> str:
        return f"{self.dim}-D points"


Space = ImageSpace | PointSpace


def _check_whole(field: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{field} is {value!r}; it must be a whole number, at least 1.")


def _is_colour(colour: Any) -> bool:
    return isinstance(colour, tuple) and len(colour) == 3 and all(type(c) is int and 0 <= c <= 255 for c in colour)


def space_to_dict(space: Space) -> dict[str, Any]:
    """The space as plain values for a JSON file; `space_from_dict` reads it back."""
    return {"kind": "image" if isinstance(space, ImageSpace) else "point", **asdict(space)}


def space_from_dict(values: dict[str, Any]) -> Space:
    """Reads what `space_to_dict` wrote."""
    values = dict(values)
    kind = values.pop("kind")
    if kind == "image":
        if isinstance(values.get("palette"), list):
            values["palette"] = tuple(tuple(c) if isinstance(c, list) else c for c in values["palette"])
        return ImageSpace(**values)
    if kind == "point":
        if isinstance(values.get("center"), list):
            values["center"] = tuple(values["center"])
        return PointSpace(**values)
    raise InputError(f"A space of kind {kind!r} is unknown; it must be 'image' or 'point'.")
