"""From images to images: the given part of each, several answers to it, and how they compare with the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from triptych.api import is_taken, load, write_arrays
from triptych.completion import Originals, SplitName, positions, read_originals
from triptych.config import DataConfig
from triptych.data.dataset import level_dtype
from triptych.data.decode import EXTENSIONS
from triptych.data.pictures import image_grid, joined, read_picture, save_picture, scale_for, to_rgb
from triptych.data.store import refuse_link_out
from triptych.drawing import check_file, check_seed, read_labels
from triptych.errors import InputError
from triptych.models.base import GenerativeModel
from triptych.models.implicit.pix2pix import Pix2Pix, assembled, given_map, wanted
from triptych.spaces import ImageSpace

MAX_ROWS = 32
"""Images shown in a picture."""


@dataclass(frozen=True, eq=False)
class Translations:
    """Answers to the given parts of images."""

    images: np.ndarray
    """n answers to each of N images, in data units, (N, n, C, H, W)."""
    originals: np.ndarray | None
    """The images, (N, C, H, W); None if there was nothing but their given halves."""
    errors: np.ndarray | None
    """Mean difference of each answer from its original, over what was wanted, float64, (N, n): in levels, or of palette
    images, whose levels have no order, the share of pixels that differ. None without originals."""
    spread: np.ndarray | None
    """The same between two answers to an image, float64, (N,); None for a single one. Of answers that are as uncertain
    as the truth, `errors` and `spread` have the same mean."""
    unit: str
    """Of both."""

    def describe(self, names: Sequence[str]) -> list[str]:
        """Lines of plain text: how far the answers to each image are from it, and from each other.

        Arguments:
            names: Of the originals, one each.
        """
        columns = {}
        if self.errors is not None:
            columns[f"from the original, {self.unit}"] = self.errors.mean(1)
        if self.spread is not None:
            columns["from each other"] = self.spread
        if not columns:
            return []
        labels = [*names, f"mean of {len(names)}"]
        width = max(map(len, labels))
        lines = [" ".join([" " * width, *(f" {title}" for title in columns)])]
        for row, label in enumerate(labels):
            values = [
                f" {(column[row] if row < len(column) else column.mean()):>{len(title)}.4g}"
                for title, column in columns.items()
            ]
            lines.append(" ".join([f"{label:{width}}", *values]))
        return lines


def translate(
    model: GenerativeModel | str | Path,
    images: np.ndarray | torch.Tensor,
    *,
    n: int = 4,
    labels: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Translations:
    """Answers of a conditional model or run (`pix2pix`) to the given part of images.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W), of the model's space; or, where a half is given, those halves.
        n: Answers to each image.
        labels: Class of each image, (N,), for a class-conditional model.
        seed: Of the noise.
        out: .png file for a picture (each row what is given, the answers, and the original; 32 images at most), .npz
            file, or a folder (a PNG an answer).
    Raises:
        InputError: If the model is another, an argument does not fit it, or a file cannot be written.
    """
    model = check_translator(model if isinstance(model, GenerativeModel) else load(model))
    if n < 1:
        raise InputError(f"n is {n}; draw at least 1 answer.")
    check_seed(seed)
    space, whole = model.images, True
    x = torch.as_tensor(images)
    if model.given in ("left", "right") and x.shape[1:] == (space.channels, space.height, space.width // 2):
        half_space(space).check(x)
        x, whole = torch.cat([x, x], 3), False  # The other half is not looked at.
    space.check(x)
    if not len(x):
        raise InputError("There are no images to translate; give at least 1.")
    of_images = model.check_labels(len(x), read_labels(labels), draw=False)
    out = None if out is None else Path(out)
    if out is not None:
        check_out(out)

    model.eval()
    answers = model.translate(
        x.repeat_interleave(n, dim=0),
        labels=None if of_images is None else of_images.repeat_interleave(n),
        generator=torch.Generator(model.device).manual_seed(seed),
    )
    drawn = answers.cpu().numpy().reshape(len(x), n, *space.shape)
    originals = x.cpu().numpy().astype(level_dtype(space.levels))
    sites = wanted_sites(model)
    done = Translations(
        drawn,
        originals if whole else None,
        _difference(drawn, originals[:, None], space, sites) if whole else None,
        _difference(drawn[:, 1:], drawn[:, :-1], space, sites).mean(1) if n > 1 else None,
        f"levels of {space.levels - 1}" if space.palette is None else "share of pixels",
    )
    if out is not None and out.suffix.lower() == ".png":
        save_picture(_grid(model, originals[:MAX_ROWS], drawn[:MAX_ROWS], whole=whole), out)
    elif out is not None and out.suffix.lower() == ".npz":
        arrays = {"images": drawn, **({"original": originals} if whole else {})}
        write_arrays(out, arrays | ({} if of_images is None else {"labels": of_images.cpu().numpy()}), "")
    elif out is not None:
        out.mkdir(exist_ok=True)
        for number, of_image in enumerate(drawn):
            for place, picture in enumerate(to_rgb(of_image, space)):
                Image.fromarray(picture).save(out / f"{number:06d}-{place}.png")
    return done


def check_translator(model: GenerativeModel) -> Pix2Pix:
    """The model, if it answers to part of an image; InputError if not."""
    if not isinstance(model, Pix2Pix):
        raise InputError(f"{type(model).__name__} does not translate images; pix2pix does.")
    return model


def check_out(out: Path) -> None:
    """Raises InputError unless answers can be written there: a .png or .npz file, or a new or empty folder."""
    suffix = out.suffix.lower()
    if suffix not in (".png", ".npz", ""):
        raise InputError(f"{out}: write answers to a .png or .npz file, or to a folder.")
    if suffix == "" and is_taken(out):
        raise InputError(f"{out} is not an empty folder; give another one.")
    if not (suffix == "" and out.is_dir()):
        check_file(out)


def half_space(space: ImageSpace) -> ImageSpace:
    """The space of one of two images side by side."""
    return ImageSpace(space.channels, space.height, space.width // 2, space.levels, space.palette)


def wanted_sites(model: Pix2Pix) -> np.ndarray:
    """Which sites of an answer are the model's own, and not those that were given, bool, (H, W)."""
    x = torch.zeros((1, 1, model.images.height, model.images.width), dtype=torch.bool)
    return assembled(x, wanted(~x, model.given), model.images, model.given)[0, 0].numpy()


def _difference(a: np.ndarray, b: np.ndarray, space: ImageSpace, sites: np.ndarray) -> np.ndarray:
    """Mean difference of images, (..., C, H, W), over some sites, as of `Translations.errors`, float64, (...)."""
    a, b = a[..., sites], b[..., sites]
    difference = a != b if space.palette is not None else np.abs(a.astype(np.int64) - b.astype(np.int64))
    return difference.mean((-2, -1), dtype=np.float64)


def _grid(model: Pix2Pix, originals: np.ndarray, answers: np.ndarray, *, whole: bool) -> Image.Image:
    """A picture whose rows are what is given, the answers to it, and the original where it is known.

    Arguments:
        originals: (N, C, H, W).
        answers: (N, n, C, H, W).
    """
    space = model.images
    scale = scale_for(space)
    sites = wanted_sites(model)
    if sites.all():
        levels = (given_map(torch.from_numpy(originals), space, model.given) + 1) * 127.5
        shades = ImageSpace(1, space.height, space.width, 256)
        left = image_grid(levels.round().to(torch.uint8).numpy(), shades, 1, scale=scale)
    else:
        known = np.broadcast_to(~sites, (len(originals), *sites.shape))
        left = image_grid(originals, space, 1, scale=scale, drawn=known)
    middle = image_grid(answers.reshape(-1, *space.shape), space, answers.shape[1], scale=scale)
    right = [image_grid(originals, space, 1, scale=scale)] if whole else []
    return joined([left, middle, *right], space, scale)


def read_sources(
    run: str | Path,
    model: Pix2Pix,
    source: str | None = None,
    *,
    items: Sequence[int] | None = None,
    split: SplitName | None = None,
    half: bool = False,
    data: DataConfig = DataConfig(),
) -> Originals:
    """Reads images to translate.

    Arguments:
        run: Run folder of the model.
        source: A folder with image files, in the order of their names; or what `read_originals` takes.
        items: Which of them, counted from 0; None for all files of a folder, and for the first four otherwise.
        split: Of a data set; None for test.
        half: The image files hold nothing but the given half.
        data: How to read: `size` and `crop` of image files; all else as in `read_originals`.
    Raises:
        InputError: If they cannot be read, are links out of the folder, are not in the space, or an argument does not
            apply to the source.
    """
    space = model.images
    if half and model.given not in ("left", "right"):
        raise InputError(f"half is for models of which a left or right half is given; of this one it is {model.given}.")
    path = None if source is None else Path(source).expanduser()
    files: list[Path] = []
    if path is not None and split is None:
        found = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
        files = [file for file in found if file.suffix.lower() in EXTENSIONS and file.is_file()]
        if path.is_dir():
            for file in files:
                refuse_link_out(file, path.resolve())
    if path is None or not files or (path.is_file() and not half):
        if half:
            raise InputError("half is for image files; name one, or a folder of them.")
        return read_originals(run, space, source, items=items, split=split, data=data)
    if data != DataConfig(size=data.size, crop=data.crop):
        raise InputError(
            f"{source} holds image files, which are brought to the model's levels and colours: give --size and --crop"
            " only."
        )
    chosen = [files[place] for place in positions(items, len(files), f"the folder {source}")]
    images: list[np.ndarray] = []
    counts: Counter[str] = Counter()
    for file in chosen:
        read_as = half_space(space) if half else space
        image, changes = read_picture(file, read_as, size=data.to_arguments()["size"], crop=data.crop)
        images.append(image)
        counts.update(changes)
    notes = tuple(f"{source}: {change} ({count} of {len(chosen)} files)" for change, count in counts.items())
    return Originals(np.concatenate(images), None, tuple(file.name for file in chosen), notes)
