"""Completing images: the rest of each drawn from p(rest | kept), exactly, given its first rows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from triptych.api import choose_split, data_of, load, write_arrays
from triptych.config import DataConfig
from triptych.data.animation import MAX_SHOWN, Frames, check_suffix, save_animation
from triptych.data.arrays import holds_floats, read_npy, read_npz
from triptych.data.dataset import Dataset, level_dtype
from triptych.data.decode import EXTENSIONS
from triptych.data.load import load_data
from triptych.data.parts import Parts
from triptych.data.pictures import image_grid, joined, read_picture, save_picture, scale_for
from triptych.drawing import (
    Bar,
    check_autoregressive,
    check_file,
    check_seed,
    describe_warp,
    draw_images,
    read_labels,
)
from triptych.errors import InputError
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import GenerativeModel
from triptych.sampling.autoregressive import Sampler, Warp
from triptych.spaces import ImageSpace
from triptych.training.run import read_config

SplitName = Literal["train", "valid", "test", "all"]


@dataclass(frozen=True, eq=False)
class Completions:
    """Completed images, and how likely the model finds what was drawn."""

    images: np.ndarray
    """n completions of each of N images, in data units, (N, n, C, H, W)."""
    log_prob_nats: np.ndarray
    """log p(rest | kept) of each completion under the model, exact, nats, float32, (N, n). Higher is better."""
    original_log_prob_nats: np.ndarray
    """The same of the rest of each image that was given, (N,)."""
    n_given: int
    """Sites kept of each image, in raster order."""

    @property
    def n_rest(self) -> int:
        """Sub-pixels of the rest of an image."""
        *_, channels, height, width = self.images.shape
        return channels * (height * width - self.n_given)

    def bits_per_dim(self, log_prob_nats: np.ndarray) -> np.ndarray:
        """Converts log p(rest | kept), nats, to bits per sub-pixel of the rest. Lower is better."""
        return -log_prob_nats / (self.n_rest * math.log(2))

    def describe(self, names: Sequence[str]) -> list[str]:
        """Lines of plain text: log p(rest | kept) of each original and of its completions.

        Arguments:
            names: Of the originals, one each.
        """
        kept = f"{self.n_given} of {self.images[0, 0, 0].size} sites kept"
        which = ["original", *(f"completion {i + 1}" for i in range(self.images.shape[1]))]
        labels = [f"{name}  {column}" for name in names for column in which]
        width = max(len(kept), *map(len, labels))
        nats = np.concatenate([self.original_log_prob_nats[:, None], self.log_prob_nats], 1).ravel()
        lines = [f"{kept:{width}}  log p(rest | kept), nats  bits/dim"]
        for label, value, bits in zip(labels, nats, self.bits_per_dim(nats), strict=True):
            lines.append(f"{label:{width}}  {value:24.2f}  {bits:8.3f}")
        return lines


def complete(
    model: GenerativeModel | str | Path,
    images: np.ndarray | torch.Tensor,
    *,
    keep: str = "top:0.5",
    n: int = 8,
    labels: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    sampler: Sampler = "auto",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    out: str | Path | None = None,
    animate: str | Path | None = None,
    verbose: bool = True,
) -> Completions:
    """Keeps the first sites of images and draws the rest from p(rest | kept) of an autoregressive model or run.

    Arguments:
        images: Integers 0 .. levels-1, (N, C, H, W), of the model's space.
        keep: What is kept: 'top:0.5' a share of the rows (to the nearest row), 'top:4' rows, 'first:20' sites in
            raster order. Other parts cannot be kept exactly, since the model draws in raster order.
        n: Completions of each image.
        labels: Class of each image, (N,), for a class-conditional model.
        seed, sampler, temperature, top_k, top_p: As in `sample`. Log-probabilities are those of the model as it is.
        out: .png file for a picture (each row an image, its kept part, and the completions), or .npz file.
        animate: .gif (256 colours) or .png or .apng file for an animation of the drawing; of many images the first.
        verbose: Show a bar on a terminal if drawing takes more than a second.
    Raises:
        InputError: If the model is not autoregressive, an argument does not fit it, or a file cannot be written.
    """
    model = check_autoregressive(model if isinstance(model, GenerativeModel) else load(model))
    if n < 1:
        raise InputError(f"n is {n}; draw at least 1 completion.")
    check_seed(seed)
    given = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    space = model.space
    space.check(given)
    if not len(given):
        raise InputError("There are no images to complete; give at least 1.")
    given = given.astype(level_dtype(space.levels))
    n_given = n_sites_kept(keep, space)
    of_images = model.check_labels(len(given), read_labels(labels), draw=False)
    of_draws = None if of_images is None else of_images.repeat_interleave(n)
    warp = Warp(temperature, top_k, top_p)
    comment = describe_warp(warp, "p(rest | kept)")
    out, animate = (None if path is None else Path(path) for path in (out, animate))
    if out is not None:
        if out.suffix.lower() not in (".png", ".npz"):
            raise InputError(f"{out}: write completions to a .png or .npz file.")
        check_file(out)
    if animate is not None:
        check_suffix(animate)
        check_file(animate, [out])

    kept = (np.arange(space.height * space.width) < n_given).reshape(space.height, space.width)
    n_shown = min(n, MAX_SHOWN)  # of each image in the animation
    frames = None
    if animate is not None:
        shown = given[: max(1, MAX_SHOWN // n)].repeat(n_shown, axis=0)
        frames = Frames(shown, np.broadcast_to(kept, shown[:, 0].shape))
    model.eval()
    with Bar(verbose) as bar:
        drawn = draw_images(
            model,
            len(given) * n,
            labels=of_draws,
            seed=seed,
            sampler=sampler,
            warp=warp,
            given=given.repeat(n, axis=0),
            n_given=n_given,
            frames=frames,
            bar=bar,
        )
    completions = Completions(
        drawn.reshape(len(given), n, *space.shape),
        _log_prob_of_rest(model, drawn, of_draws, n_given).reshape(len(given), n),
        _log_prob_of_rest(model, given, of_images, n_given),
        n_given,
    )
    grid = partial(_grid, given=given, kept=kept, space=space)
    if out is not None and out.suffix.lower() == ".png":
        whole = np.ones(drawn[:, 0].shape, np.bool_)
        save_picture(grid(drawn, whole, n=n, scale=scale_for(space)), out, comment)
    elif out is not None:
        arrays = {
            "images": completions.images,
            "log_prob_nats": completions.log_prob_nats,
            "original": given,
            "original_log_prob_nats": completions.original_log_prob_nats,
            "n_given": np.array(n_given),
        }
        write_arrays(out, arrays | ({} if of_images is None else {"labels": of_images.cpu().numpy()}), comment)
    if animate is not None and frames is not None:
        save_animation(frames, partial(grid, n=n_shown, scale=1), space, animate, comment)
    return completions


@torch.no_grad()
def _log_prob_of_rest(
    model: AutoregressiveDensity, images: np.ndarray, labels: torch.Tensor | None, n_given: int
) -> np.ndarray:
    """log p(sites from n_given on | the sites before) of each image, nats, float32, (N,)."""
    sites = model.site_log_prob(torch.as_tensor(images, device=model.device), labels)  # (N, H, W)
    return sites.flatten(1)[:, n_given:].double().sum(1).float().cpu().numpy()


def _grid(
    completions: np.ndarray,
    drawn: np.ndarray,
    *,
    given: np.ndarray,
    kept: np.ndarray,
    space: ImageSpace,
    n: int,
    scale: int,
) -> Image.Image:
    """A picture whose rows are an image, its kept part, and its completions.

    Arguments:
        completions: n of each of the first images, (N' * n, C, H, W).
        drawn: Their sites that are there, bool, (N' * n, H, W).
        given: The images, (N, C, H, W), N at least N'.
        kept: Sites that are kept, bool, (H, W).
    """
    n_rows = len(completions) // n
    both = given[:n_rows].repeat(2, axis=0)
    parts_shown = np.tile(np.stack([np.ones_like(kept), kept]), (n_rows, 1, 1))
    left = image_grid(both, space, 2, scale=scale, drawn=parts_shown)
    right = image_grid(completions, space, n, scale=scale, drawn=drawn)
    return joined([left, right], space, scale)


def n_sites_kept(keep: str, space: ImageSpace) -> int:
    """How many sites, in raster order, `keep` of `complete` keeps of each image.

    Raises:
        InputError: If it cannot be read, keeps nothing or everything, or is no beginning in raster order.
    """
    n_sites = space.height * space.width
    forms = "give top:0.5 (a share of the rows), top:4 (rows) or first:20 (sites in raster order)"
    kind, _, amount = keep.partition(":")
    share, whole = re.fullmatch(r"\d{0,9}\.\d{1,9}|\d{1,9}\.", amount), re.fullmatch(r"\d{1,9}", amount)
    if kind == "top" and share:
        kept = int(float(amount) * space.height + 0.5) * space.width
    elif kind == "top" and whole:
        kept = int(amount) * space.width
    elif kind == "first" and whole:
        kept = int(amount)
    elif kind in _NOT_FIRST or Path(keep).suffix.lower() in EXTENSIONS:
        raise InputError(
            f"keep is {keep!r}, but the model draws in raster order, row by row from the top, so that only a top part"
            f" can be kept exactly; {forms}."
        )
    else:
        raise InputError(f"keep is {keep!r}; {forms}.")
    if not 0 < kept < n_sites:
        raise InputError(
            f"keep is {keep!r}: {kept} of an image's {n_sites} sites; keep at least 1 and leave at least 1 to draw."
        )
    return kept


_NOT_FIRST = ("left", "right", "bottom", "center", "centre", "middle", "box", "border", "mask", "random", "last")


@dataclass(frozen=True)
class Originals:
    """Images to complete, and where they are from."""

    images: np.ndarray
    """(N, C, H, W), in the model's space."""
    labels: np.ndarray | None
    """int64, (N,)."""
    names: tuple[str, ...]
    """For a person, one each."""
    notes: tuple[str, ...] = ()
    """What a person should know of how they were read."""


def read_originals(
    run: str | Path,
    space: ImageSpace,
    source: str | None = None,
    *,
    items: Sequence[int] | None = None,
    split: SplitName | None = None,
    data: DataConfig = DataConfig(),
) -> Originals:
    """Reads images to complete.

    Arguments:
        run: Run folder of the model.
        space: Of the model.
        source: An image file; an .npy or .npz file of integer images without splits, taken in its order; any other
            source of `load_data`; or None for the data of the run.
        items: Which of the split or file, counted from 0; None for the first four.
        split: Of a data set; None for test.
        data: How to read: `size` and `crop` of an image file, `levels` of arrays, anything of a data set.
    Raises:
        InputError: If they cannot be read, are not in the space, or an argument does not apply to the source.
    """
    config = read_config(Path(run))
    class_names = config.get("class_names", [])
    if source is None:
        _refuse(data, (), "the data of the run, which are read as for its training")
        return _of_split(data_of(config, run), class_names, items, split)
    path = Path(source).expanduser()
    suffix = path.suffix.lower() if path.is_file() else ""
    if suffix in EXTENSIONS:
        _refuse(data, ("size", "crop"), "one image, which is brought to the model's levels and colours")
        if items is not None or split is not None:
            raise InputError(f"{source} is one image; leave items and split out.")
        image, changes = read_picture(path, space, size=data.to_arguments()["size"], crop=data.crop)
        return Originals(image, None, (path.name,), tuple(f"{source}: {change}" for change in changes))
    if suffix in (".npy", ".npz"):
        # Floats have no levels of their own; integers must be the model's unless levels says to convert them.
        levels = space.levels if data.levels is None and _holds_floats(path) else data.levels
        parts = read_npy(path, levels) if suffix == ".npy" else read_npz(path, levels)
        if "all" in parts.splits:
            _refuse(data, ("levels",), f"{source}, whose images are taken as they are")
            if split is not None:
                raise InputError(f"{source} has no splits; leave split out.")
            return _of_file(path, parts, space, class_names, items)
    dataset, notes = read_dataset(run, source, data)
    if dataset.space != space:
        raise InputError(f"{source} holds {dataset.space}; {run} models {space}.")
    return _of_split(dataset, class_names, items, split, notes)


def read_dataset(run: str | Path, source: str | None, data: DataConfig) -> tuple[Dataset, tuple[str, ...]]:
    """The data of a run, or another data set with a note for the person if it is not that of the training.

    Raises:
        InputError: If it cannot be read, or how to read the data of the run is given.
    """
    config = read_config(Path(run))
    if source is None:
        if data != DataConfig():
            raise InputError("The data of the run is read as for its training; leave out how to, or name a source.")
        return data_of(config, run), ()
    dataset = load_data(source, **data.to_arguments())
    if dataset.checksum == config["data"]["checksum"]:
        return dataset, ()
    return dataset, (f"{source} is not the data set (or split) of the training: these items may have been trained on",)


def _refuse(data: DataConfig, allowed: Sequence[str], what: str) -> None:
    """Raises InputError if a setting is given that is not allowed for a source."""
    for field in dataclasses.fields(data):
        if field.name not in allowed and getattr(data, field.name) != field.default:
            raise InputError(f"{field.name} does not apply to {what}; leave it out.")


def _holds_floats(path: Path) -> bool:
    """Whether the images of an .npy or .npz file are floats; False if it cannot be read, which others tell of."""
    try:
        return holds_floats(path)
    except Exception:
        return False


def _of_split(
    dataset: Dataset,
    class_names: Sequence[str],
    items: Sequence[int] | None,
    split: SplitName | None,
    notes: tuple[str, ...] = (),
) -> Originals:
    name = split or "test"
    whole = choose_split(dataset, name)
    chosen = positions(items, len(whole), describe_split(dataset, name), most=4)
    images, labels = whole.read(chosen)
    names = tuple(f"{name} {position}" for position in chosen)
    return Originals(images, as_trained(labels, dataset.class_names, class_names), names, notes)


def _of_file(
    path: Path, parts: Parts, space: ImageSpace, class_names: Sequence[str], items: Sequence[int] | None
) -> Originals:
    """Some of the images of an .npy or .npz file that has no splits."""
    if parts.space is None:
        raise InputError(f"{path} holds points; give images, integers 0 .. {space.levels - 1}.")
    if parts.space.shape != space.shape or parts.space.palette not in (None, space.palette):
        raise InputError(f"{path} holds {parts.space}; the model is of {space}.")
    whole = parts.splits["all"]
    chosen = positions(items, len(whole), str(path), most=4)
    images, labels = whole.read(chosen)
    if images.max() >= space.levels:
        remedy = "" if space.palette else f"; give --levels {space.levels} to bring them to its levels"
        raise InputError(
            f"{path} holds values up to {images.max()} and the model has levels 0 .. {space.levels - 1}{remedy}."
        )
    names = tuple(f"{path.name} {position}" for position in chosen)
    notes = tuple(f"{path}: {note}" for note in parts.repaired)
    return Originals(images, as_trained(labels, parts.class_names, class_names), names, notes)


def describe_split(dataset: Dataset, name: SplitName) -> str:
    """What items of a split are chosen from, for messages."""
    return dataset.name if name == "all" else f"the {name} split of {dataset.name}"


def positions(items: Sequence[int] | None, n: int, what: str, most: int | None = None) -> np.ndarray:
    """Positions asked for among n items, int64, counted from 0, or without any the first ones.

    Arguments:
        what: The items, for the message.
        most: How many the first ones are; None for all.
    Raises:
        InputError: If there is no such item.
    """
    if items is None:
        return np.arange(n)[:most]
    for position in items:
        if not 0 <= position < n:
            raise InputError(f"There is no item {position} in {what}, which has {n}; count from 0.")
    return np.array(items, dtype=np.int64)


def as_trained(
    labels: np.ndarray | None, class_names: Sequence[str] | None, trained: Sequence[str]
) -> np.ndarray | None:
    """Labels as numbers of the classes that the model was trained on; None if it does not know them all."""
    names = [] if labels is None or class_names is None else [class_names[label] for label in labels]
    if not names or not set(names) <= set(trained):
        return None
    return np.array([trained.index(name) for name in names], dtype=np.int64)
