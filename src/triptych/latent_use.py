"""Latents at work: codes of data, reconstructions, paths between two latents, and what one latent does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from triptych.api import choose_split, load, write_arrays
from triptych.completion import SplitName, as_trained, describe_split, positions, read_dataset, read_originals
from triptych.config import DataConfig
from triptych.data.arrays import read_npy, read_npz
from triptych.data.dataset import Split, merged
from triptych.data.decode import EXTENSIONS
from triptych.data.parts import subset
from triptych.data.pictures import image_grid, joined, save_picture, save_points, scale_for
from triptych.drawing import check_file, check_seed, read_labels
from triptych.errors import InputError
from triptych.evaluation.latents import encoded, latent_report
from triptych.evaluation.likelihood import blocks, evaluate_likelihood
from triptych.models.base import ApproximateDensity, GenerativeModel, LatentModel
from triptych.models.registry import find_models, model_class
from triptych.spaces import ImageSpace, PointSpace, Space
from triptych.training.run import read_config

Data = np.ndarray | Tensor | Split
"""Images, integers 0 .. levels-1, (N, C, H, W), or points, (N, dim); or a split, which brings its labels."""

_COLUMNS = 10  # originals in a row of the picture of reconstructions
_PARALLEL = 1e-6  # sine of the angle between two latents below which no great circle joins them


@dataclass(frozen=True, eq=False)
class Chosen:
    """Items of some source, read when they are needed."""

    split: Split
    """The items; labels, where they are known, number the classes that the model was trained on."""
    indices: np.ndarray
    """Position of each in its split or file, int64, (N,)."""
    names: tuple[str, ...]
    """For a person, one each."""
    what: str
    """What they were chosen from."""
    notes: tuple[str, ...] = ()
    """What a person should know of how they were read."""

    def take(self, items: Sequence[int] | None, most: int | None = None) -> Chosen:
        """Some of them, by place, as `positions` says.

        Raises:
            InputError: If there is no such item.
        """
        places = positions(items, len(self.split), self.what, most)
        names = tuple(self.names[place] for place in places)
        return Chosen(subset(self.split, places), self.indices[places], names, self.what, self.notes)


def read_items(
    run: str | Path,
    space: Space,
    source: str | None = None,
    *,
    items: Sequence[int] | None = None,
    most: int | None = None,
    split: SplitName | None = None,
    data: DataConfig = DataConfig(),
) -> Chosen:
    """Finds the items to encode; of a data set none is read yet.

    Arguments:
        run: Run folder of the model.
        space: Of the model.
        source: An image file; an .npy or .npz file without splits, taken in its order; any other source of `load_data`;
            or None for the data of the run.
        items: Which of the split or file, counted from 0; None for the first ones.
        most: How many those are; None for all.
        split: Of a data set; None for test.
        data: How to read, as in `read_originals`.
    Raises:
        InputError: If they cannot be read, are not in the space, or an argument does not apply to the source.
    """
    path = None if source is None else Path(source).expanduser()
    suffix = path.suffix.lower() if path is not None and path.is_file() else ""
    if suffix in EXTENSIONS:
        if not isinstance(space, ImageSpace):
            raise InputError(f"{source} is an image; {run} models {space}.")
        return _of_originals(run, space, str(source), [0], items, split, data)
    trained = read_config(Path(run)).get("class_names", [])
    if path is not None and suffix in (".npy", ".npz"):
        parts = read_npy(path, data.levels) if suffix == ".npy" else read_npz(path, data.levels)
        if "all" in parts.splits and (parts.space is None) != isinstance(space, PointSpace):
            raise InputError(f"{source} holds {parts.space or 'points'}; {run} models {space}.")
        if "all" in parts.splits and isinstance(space, ImageSpace):
            places = range(len(parts.splits["all"]))[:most] if items is None else items
            return _of_originals(run, space, str(source), places, places, split, data)
        if "all" in parts.splits:
            if split is not None or data != DataConfig():
                raise InputError(f"{source} holds points without splits, taken as they are; leave all else out.")
            return _of_split(parts.splits["all"], path.name, str(source), parts.class_names, trained, items, most)
    dataset, notes = read_dataset(run, source, data)
    # Where points lie is measured on each data set, and the model keeps its own measure.
    if dataset.space.shape != space.shape or (isinstance(space, ImageSpace) and dataset.space != space):
        raise InputError(f"{source or 'The data of the run'} holds {dataset.space}; {run} models {space}.")
    name = split or "test"
    what = describe_split(dataset, name)
    return _of_split(choose_split(dataset, name), name, what, dataset.class_names, trained, items, most, notes)


def _of_originals(
    run: str | Path,
    space: ImageSpace,
    source: str,
    places: Sequence[int],
    items: Sequence[int] | None,
    split: SplitName | None,
    data: DataConfig,
) -> Chosen:
    found = read_originals(run, space, source, items=items, split=split, data=data)
    return Chosen(Split(found.images, found.labels), np.array(places, np.int64), found.names, source, found.notes)


def _of_split(
    whole: Split,
    name: str,
    what: str,
    class_names: Sequence[str] | None,
    trained: Sequence[str],
    items: Sequence[int] | None,
    most: int | None,
    notes: tuple[str, ...] = (),
) -> Chosen:
    """Items of a split, with labels as numbers of the model's classes, or none if it does not know them all."""
    numbers = as_trained(np.arange(len(class_names or ())), class_names, trained)
    labels = None if whole.labels is None or numbers is None else numbers[whole.labels]
    n = len(whole)
    chosen = Chosen(Split(whole.items, labels), np.arange(n), tuple(f"{name} {i}" for i in range(n)), what, notes)
    return chosen.take(items, most)


def read_ends(
    run: str | Path,
    space: Space,
    a: Sequence[int | str],
    b: Sequence[int | str],
    *,
    source: str | None = None,
    data: DataConfig = DataConfig(),
) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads items to interpolate between: the beginnings, the ends, and what a person should know.

    Arguments:
        run, space: As in `read_items`.
        a: Numbers of test items, counted from 0, or names of image files.
        b: Likewise.
        source: The data that the numbers count in; None for the data of the run.
        data: How to read that source, or, without one, image files.
    Raises:
        InputError: As `read_items` says, or if a name is no image file.
    """
    numbers = [word for word in (*a, *b) if isinstance(word, int)]
    files = [word for word in (*a, *b) if isinstance(word, str)]
    for file in files:
        if Path(file).suffix.lower() not in EXTENSIONS or not Path(file).expanduser().is_file():
            raise InputError(f"{file!r} is no number of an item and no image file; give one of these.")
    if source is not None and not numbers:
        raise InputError("No item is given by its number, so that no source is read; leave it out.")
    found = []
    if numbers:
        of_numbers = DataConfig() if files and source is None else data
        found.append(read_items(run, space, source, items=numbers, data=of_numbers))
    of_files = data if source is None else DataConfig()
    found += [read_items(run, space, file, data=of_files) for file in files]
    pool = {word: place for place, word in enumerate([*numbers, *files])}
    items, labels = merged(*(chosen.split for chosen in found)).read()
    sides = []
    for side in (a, b):
        places = [pool[word] for word in side]
        sides.append(Split(items[places], None if labels is None else labels[places]))
    return sides[0], sides[1], tuple(note for chosen in found for note in chosen.notes)


def latent_models() -> list[str]:
    """Names of the models with an encoder."""
    return [name for name in find_models() if issubclass(model_class(name), LatentModel)]


def check_encoder(model: GenerativeModel) -> LatentModel:
    """The model, if it has an encoder; InputError with the names of those that have if not."""
    if not isinstance(model, LatentModel):
        raise InputError(f"{type(model).__name__} has no encoder; these models have: {', '.join(latent_models())}.")
    return model


def check_out(out: str | Path, space: Space) -> None:
    """Refuses a file for a picture (.png) or arrays (.npz) before anything is computed for it.

    Raises:
        InputError: If it is neither, cannot be written, or is a picture of points on a line.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".npz"):
        raise InputError(f"{path}: give a .png file for a picture or an .npz file for arrays.")
    if path.suffix.lower() == ".png" and isinstance(space, PointSpace) and space.dim == 1:
        raise InputError(f"{path}: points on a line have no picture here; give an .npz file.")
    check_file(path)


def check_codes_file(out: str | Path) -> None:
    """Raises InputError unless codes can be written to the file."""
    if Path(out).suffix.lower() != ".npz":
        raise InputError(f"{out}: codes are written to an .npz file.")
    check_file(Path(out))


def with_label(model: GenerativeModel, split: Split, label: int | None) -> Split:
    """The items with the labels that the model needs: their own, or one class for all.

    Raises:
        InputError: If a class-conditional model is left without labels, or the label does not fit the model.
    """
    if label is not None:
        labels = model.check_labels(len(split), torch.full((len(split),), label), draw=False)
        return Split(split.items, None if labels is None else labels.cpu().numpy())
    if model.n_classes and split.labels is None:
        raise InputError(f"This model is class-conditional; give --label 0 .. {model.n_classes - 1}.")
    return split


def encode(
    model: GenerativeModel | str | Path,
    items: Data,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    sample: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Latents of items under a model or run, in no more memory than they and one batch take.

    Arguments:
        items: Images, integers 0 .. levels-1, (N, C, H, W), or points, (N, dim); or a split, with its labels.
        labels: Class of each item, (N,), for a class-conditional model.
        sample: Draws from q(z|x) instead of its means.
        seed: Of the draws.
        out: .npz file for `z`, `labels` if there are any, and `indices`.
        indices: Position of each item in its source, (N,), for the file; 0 .. N-1 by default.
    Returns:
        float32, (N, n_latents).
    Raises:
        InputError: If the model has no encoder, items or labels do not fit it, or the file cannot be written.
    """
    model = check_encoder(_loaded(model))
    check_seed(seed)
    if out is not None:
        check_codes_file(out)
    split = _as_split(model, items, labels)
    indices = np.arange(len(split)) if indices is None else np.asarray(indices)
    if indices.shape != (len(split),):
        raise InputError(f"indices have shape {indices.shape}; {len(split)} items need ({len(split)},).")
    z = encoded(model, split, sample=sample, seed=seed)
    if out is not None:
        arrays = {"z": z, "indices": indices, **({} if split.labels is None else {"labels": split.labels})}
        write_arrays(Path(out), arrays, "z: draws from q(z|x)" if sample else "z: means of q(z|x)")
    return z


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Items and what a model makes of their latents' means."""

    items: np.ndarray
    """The originals, in data units, (N, *space.shape)."""
    reconstructed: np.ndarray
    """The mean of p(x|z) at the mean of q(z|x), in data units, (N, *space.shape)."""
    errors: np.ndarray
    """Mean squared error of each item, float64, (N,), in squared levels or data units; of palette images, whose levels
    have no order, the share of pixels that differ. Lower is better."""
    error_name: str
    """What `errors` are, with the unit."""
    bound_nats: np.ndarray | None
    """A lower bound of log p(x), one draw of z each, float32, (N,); None if the model has none. Higher is better."""

    def describe(self, names: Sequence[str]) -> list[str]:
        """Lines of plain text: each item's error and bound, and their means.

        Arguments:
            names: Of the items, one each.
        """
        labels = [*names, f"mean of {len(names)}"]
        columns = {self.error_name: [f"{value:.4g}" for value in (*self.errors, self.errors.mean())]}
        if self.bound_nats is not None:
            bounds = self.bound_nats.astype(np.float64)
            columns["lower bound of log p(x), nats"] = [f"{value:.2f}" for value in (*bounds, bounds.mean())]
        width = max(map(len, labels))
        lines = [" ".join([" " * width, *(f" {title}" for title in columns)])]
        for row, label in enumerate(labels):
            values = [f" {column[row]:>{len(title)}}" for title, column in columns.items()]
            lines.append(" ".join([f"{label:{width}}", *values]))
        return lines


def reconstruct(
    model: GenerativeModel | str | Path,
    items: Data,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
) -> Reconstructions:
    """Encodes items and decodes the means of their latents.

    Arguments:
        items, labels: As in `encode`.
        seed: Of the draws behind the bound.
        out: .png file for a picture (rows of originals, each with a row of their reconstructions below), or .npz file.
    Raises:
        InputError: If the model has no encoder, items or labels do not fit it, or the file cannot be written.
    """
    model = check_encoder(_loaded(model))
    space = model.space
    check_seed(seed)
    if out is not None:
        check_out(out, space)
    split = _as_split(model, items, labels)
    originals = _read(space, split, slice(None))
    reconstructed = _decoded(model, encoded(model, split), split.labels if model.n_classes else None)
    likelihood = evaluate_likelihood(model, Split(originals, split.labels), seed=seed)
    errors, error_name = _errors(originals, reconstructed, space)
    bound = None if likelihood is None else likelihood.nats.numpy()
    done = Reconstructions(originals, reconstructed, errors, error_name, bound)
    if out is not None:
        arrays = {"originals": originals, "reconstructed": reconstructed, "errors": errors}
        arrays |= {} if bound is None else {"bound_nats": bound}
        arrays |= {} if split.labels is None else {"labels": split.labels}
        which = np.repeat([0, 1], len(originals))  # colours of originals and of reconstructions
        _write(
            Path(out),
            space,
            arrays,
            lambda images: _picture_of_pairs(originals, reconstructed, images),
            np.concatenate([originals, reconstructed]),
            which,
            f"errors: {error_name}",
        )
    return done


def _errors(originals: np.ndarray, reconstructed: np.ndarray, space: Space) -> tuple[np.ndarray, str]:
    """What `Reconstructions.errors` and `error_name` say."""
    axes = tuple(range(1, originals.ndim))
    if isinstance(space, ImageSpace) and space.palette is not None:
        return (originals != reconstructed).mean(axes, dtype=np.float64), "share of pixels that differ"
    unit = "levels^2" if isinstance(space, ImageSpace) else "data units^2"
    pairs = zip(originals, reconstructed, strict=True)  # one at a time: float64 takes eight times the memory of bytes
    return np.array([np.square(a.astype(np.float64) - b).mean() for a, b in pairs]), f"mean squared error, {unit}"


@dataclass(frozen=True, eq=False)
class Interpolations:
    """Paths from one latent to another, decoded."""

    items: np.ndarray
    """What lies on the path of each pair, ends included, in data units, (N, steps, *space.shape)."""
    z: np.ndarray
    """Its latents, float32, (N, steps, n_latents)."""
    path: Literal["spherical", "linear"]
    """'spherical' where z is standard normal under the model."""
    originals: np.ndarray | None
    """The items whose latents are the ends, (N, 2, *space.shape); None between latents drawn from the prior."""


def interpolate(
    model: GenerativeModel | str | Path,
    a: Data | None = None,
    b: Data | None = None,
    *,
    n: int = 4,
    labels: Sequence[int] | np.ndarray | None = None,
    steps: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
) -> Interpolations:
    """Decodes the paths between the latents of items, or between latents drawn from the prior.

    The path is spherical where z is standard normal under the model, else straight: points half-way on a line are
    shorter than draws from a normal of many dimensions ever are.

    Arguments:
        a: Where the paths begin, as `items` of `encode`; None to draw both ends from the prior.
        b: Where they end, as many.
        n: Paths between latents drawn from the prior; not used with a and b.
        labels: Class in which each pair is decoded, (N,), of a class-conditional model, and encoded where an item has
            no label of its own. By default the class that both of a pair have, or all classes in turn for the prior.
        steps: Items on each path, ends included.
        seed: Of latents drawn from the prior.
        out: .png file for a picture (a path a row, between its originals), or .npz file.
    Raises:
        InputError: If the model cannot do it, an argument does not fit it, or the file cannot be written.
    Source:
        Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; White 2016, arXiv:1609.04468,
        section 2.1. Differs: where two latents have the same or the opposite direction, the path is straight.
    """
    model = _loaded(model)
    space = model.space
    check_seed(seed)
    if steps < 2:
        raise InputError(f"steps is {steps}; a path has 2 at least, its ends.")
    if out is not None:
        check_out(out, space)
    given = read_labels(labels)
    originals = None
    if a is None and b is None:
        coder, ends, of_pairs = _ends_from_prior(model, n, given, seed)
    elif a is None or b is None:
        raise InputError("A path needs two ends: give a and b, or neither to draw both from the prior.")
    else:
        coder = check_encoder(model)
        ends, of_pairs, originals = _ends_from_items(coder, a, b, given)
    is_spherical = not isinstance(coder, LatentModel) or coder.has_normal_prior
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    z = (slerp if is_spherical else lerp)(ends[0].double(), ends[1].double(), share).float().numpy()
    n_paths = len(z)
    of_items = None if of_pairs is None else of_pairs.repeat(steps)
    items = _decoded(coder, z.reshape(n_paths * steps, -1), of_items).reshape(n_paths, steps, *space.shape)
    done = Interpolations(items, z, "spherical" if is_spherical else "linear", originals)
    if out is not None:
        arrays = {"images": items, "z": z}
        arrays |= {} if originals is None else {"originals": originals}
        arrays |= {} if of_pairs is None else {"labels": of_pairs}
        _write(
            Path(out),
            space,
            arrays,
            lambda images: _picture_of_paths(items, originals, images),
            items.reshape(-1, *space.shape),
            np.repeat(np.arange(n_paths), steps),
            f"{done.path} interpolation",
        )
    return done


def _ends_from_prior(
    model: GenerativeModel, n: int, labels: Tensor | None, seed: int
) -> tuple[LatentModel, Tensor, np.ndarray | None]:
    """The model, two latents for each of n paths, (2, n, n_latents), and the paths' classes."""
    if not isinstance(model, LatentModel):
        raise InputError(f"{type(model).__name__} has no latents; these models have: {', '.join(latent_models())}.")
    if not model.has_normal_prior:
        raise InputError(f"The latents of {type(model).__name__} have no normal prior to draw from; give two items.")
    if n < 1:
        raise InputError(f"n is {n}; draw at least 1 pair.")
    if labels is None and model.n_classes:
        labels = torch.arange(n) % model.n_classes
    labels = model.check_labels(n, labels, draw=False)
    ends = torch.randn((2, n, model.n_latents), generator=Generator().manual_seed(seed))
    return model, ends, None if labels is None else labels.cpu().numpy()


def _ends_from_items(
    model: LatentModel, a: Data, b: Data, labels: Tensor | None
) -> tuple[Tensor, np.ndarray | None, np.ndarray]:
    """Latents of the ends, (2, N, n_latents), the pairs' classes, and the items, (N, 2, *space.shape)."""
    splits = [_as_split(model, data, None) for data in (a, b)]
    if len(splits[0]) != len(splits[1]):
        raise InputError(f"There are {len(splits[0])} beginnings and {len(splits[1])} ends; give as many of both.")
    if labels is not None:
        model.check_labels(len(splits[0]), labels, draw=False)
    of_pairs = None if labels is None else labels.numpy()
    splits = [Split(split.items, of_pairs if split.labels is None else split.labels) for split in splits]
    if model.n_classes and of_pairs is None:
        first, last = (split.labels for split in splits)
        if first is None or last is None:
            raise InputError(f"This model is class-conditional; give a label 0 .. {model.n_classes - 1}.")
        if (first != last).any():
            place = int(np.flatnonzero(first != last)[0])
            raise InputError(
                f"The ends of path {place} are of classes {first[place]} and {last[place]}; give two items of one"
                " class, or the label to decode the path in."
            )
        of_pairs = first
    ends = torch.from_numpy(np.stack([encoded(model, split) for split in splits]))
    return ends, of_pairs, np.stack([_read(model.space, split, slice(None)) for split in splits], 1)


def lerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Straight paths: (1 - t) a + t b.

    Arguments:
        a: Beginnings, (N, D).
        b: Ends, (N, D).
        share: t of each step, 0 .. 1, (T,).
    Returns:
        (N, T, D).
    """
    t = share[:, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Spherical paths: sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between a and b.

    Arguments and shapes as in `lerp`; straight where sin(w) is all but 0, which it always is if D is 1.

    Source:
        Shoemake 1985, section 3.3; White 2016, arXiv:1609.04468, section 2.1.
    """
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosine = ((a * b).sum(1) / lengths.clamp_min(torch.finfo(a.dtype).tiny)).clamp(-1, 1)
    angle = cosine.acos()[:, None]  # (N, 1)
    sine = angle.sin()
    curved = (sine > _PARALLEL) & (lengths[:, None] > 0)
    safe = torch.where(curved, sine, 1.0)
    of_a = torch.where(curved, ((1 - share) * angle).sin() / safe, 1 - share)  # (N, T)
    of_b = torch.where(curved, (share * angle).sin() / safe, share.expand_as(of_a))
    return of_a[..., None] * a[:, None] + of_b[..., None] * b[:, None]


@dataclass(frozen=True, eq=False)
class Traversal:
    """What a model decodes as one or two latents run over a range."""

    items: np.ndarray
    """In data units, (rows, steps, *space.shape): the first latent runs along a row, the second or the class down."""
    z: np.ndarray
    """The latents, float32, (rows, steps, n_latents)."""
    labels: np.ndarray | None
    """Class of each row, int64, (rows,), of a class-conditional model."""


def traverse(
    model: GenerativeModel | str | Path,
    dims: Sequence[int],
    item: Data | None = None,
    *,
    label: int | Literal["all"] | None = None,
    steps: int = 9,
    extent: float = 3.0,
    out: str | Path | None = None,
) -> Traversal:
    """Decodes latents of which one or two vary from -extent to extent and the others stay.

    Arguments:
        dims: The latents that vary, counted from 0: the first from left to right, the second from top to bottom.
        item: One item, as `items` of `encode`, at whose mean the others stay; None for 0.
        label: Class of a class-conditional model; by default the item's own. 'all', with one latent, for a row each.
        steps: Values of each latent, evenly spaced, ends included.
        extent: Largest value of the latents, in their own units: standard deviations of a normal prior.
        out: .png file for a picture, or .npz file.
    Raises:
        InputError: If the model has no encoder, an argument does not fit it, or the file cannot be written.
    """
    model = check_encoder(_loaded(model))
    space = model.space
    if steps < 2:
        raise InputError(f"steps is {steps}; a range has 2 at least, its ends.")
    if not (extent > 0 and math.isfinite(extent)):
        raise InputError(f"range is {extent}; give a positive number.")
    check_dims(model, dims)
    if label == "all" and not model.n_classes:
        raise InputError(f"This {type(model).__name__} is not class-conditional; leave label out.")
    if label == "all" and len(dims) > 1:
        raise InputError(f"The rows cannot be all classes and latent {dims[1]} too; give one latent or one label.")
    if out is not None:
        check_out(out, space)
    base = np.zeros((1, model.n_latents), np.float32)
    own: int | None = None
    if item is not None:
        split = _as_split(model, item, None)
        if len(split) != 1:
            raise InputError(f"There are {len(split)} items; give 1 to stay at.")
        if split.labels is None and model.n_classes and label == "all":
            raise InputError(
                "The item has no label to encode it with; give one with a label, or one label for the rows."
            )
        split = split if split.labels is not None else with_label(model, split, None if label == "all" else label)
        own = int(split.labels[0]) if split.labels is not None and model.n_classes else None
        base = encoded(model, split)
    values = np.linspace(-extent, extent, steps, dtype=np.float32)
    n_rows = steps if len(dims) == 2 else model.n_classes if label == "all" else 1
    z = np.tile(base, (n_rows, steps, 1))
    z[:, :, dims[0]] = values
    if len(dims) == 2:
        z[:, :, dims[1]] = values[:, None]
    wanted = list(range(n_rows)) if label == "all" else [own if label is None else label] * n_rows
    given = None if wanted[0] is None else torch.tensor(wanted)
    checked = model.check_labels(n_rows, given, draw=False)
    labels = None if checked is None else checked.cpu().numpy()
    of_items = None if labels is None else labels.repeat(steps)
    items = _decoded(model, z.reshape(n_rows * steps, -1), of_items).reshape(n_rows, steps, *space.shape)
    done = Traversal(items, z, labels)
    if out is not None:
        arrays = {"images": items, "z": z, "dims": np.array(dims), **({} if labels is None else {"labels": labels})}
        flat = items.reshape(-1, *space.shape)
        _write(
            Path(out),
            space,
            arrays,
            lambda images: image_grid(flat, images, steps, scale=scale_for(images)),
            flat,
            np.repeat(np.arange(n_rows), steps),
            f"latents {', '.join(map(str, dims))} from {-extent:g} to {extent:g}",
        )
    return done


def check_dims(model: LatentModel, dims: Sequence[int]) -> None:
    """Raises InputError unless dims are one or two different latents of the model."""
    if not 1 <= len(dims) <= 2:
        raise InputError(f"dims are {len(dims)} latents; give one or two.")
    for dim in dims:
        if not 0 <= dim < model.n_latents:
            raise InputError(f"There is no latent {dim}; this model has 0 .. {model.n_latents - 1}.")
    if len(set(dims)) < len(dims):
        raise InputError(f"Latent {dims[0]} is given twice; give two different ones, or one.")


def choose_latents(
    model: LatentModel, split: Split, n: int, *, max_items: int = 1000, seed: int = 0
) -> tuple[list[int], str]:
    """The latents that carry most of the data.

    Arguments:
        split: Items to look at, two at least; of more than max_items a random choice.
        n: How many latents.
        seed: Of the choice of items.
    Returns:
        The latents of the largest mean KL(q || p), or, if the model does not know it of each latent or has none, of the
        largest variance of encoded means; and a sentence that says so, with the values.
    Raises:
        InputError: If there are too few items, or they do not fit the model.
    """
    check_seed(seed)
    values, what = None, "mean KL in nats"
    if isinstance(model, ApproximateDensity):
        kl = latent_report(model, split, max_items=max_items, seed=seed).kl
        values = kl.numpy() if len(kl) == model.n_latents else None
    if values is None:
        what = "variance of encoded means"
        places = np.sort(np.random.default_rng(seed).permutation(len(split))[:max_items])
        values = encoded(model, subset(split, places), seed=seed).astype(np.float64).var(0)
    dims = np.argsort(-values, kind="stable")[:n].tolist()
    shown = ", ".join(f"{dim} ({values[dim]:.3g})" for dim in dims)
    return dims, f"latents of the largest {what}: {shown}"


def _loaded(model: GenerativeModel | str | Path) -> GenerativeModel:
    return (model if isinstance(model, GenerativeModel) else load(model)).eval()


def _as_split(model: LatentModel, items: Data, labels: Sequence[int] | np.ndarray | None) -> Split:
    """Items with labels; InputError if there are none, or as `with_label` and `read_labels` say."""
    given = read_labels(labels)
    if given is not None:
        model.check_labels(len(items), given, draw=False)
    own = items.labels if isinstance(items, Split) else None
    rows = items.items if isinstance(items, Split) else items
    rows = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
    split = Split(rows, own if given is None else given.numpy())
    if not len(split):
        raise InputError("There are no items; give at least 1.")
    return split


def _read(space: Space, split: Split, part: slice) -> np.ndarray:
    """Some items in data units and dtype, checked."""
    items, _ = split.read(part)
    items = items.astype(np.float32) if isinstance(space, PointSpace) and items.dtype.kind == "f" else items
    space.check(items)
    return items


@torch.no_grad()
def _decoded(model: LatentModel, z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """What the latents (N, n_latents) stand for, in data units, (N, *space.shape)."""
    parts = []
    for block in blocks(len(z), model.space):
        own = None if labels is None else torch.as_tensor(labels[block], device=model.device)
        parts.append(model.decode(torch.as_tensor(z[block], device=model.device), own).cpu().numpy())
    return np.concatenate(parts)


def _picture_of_pairs(originals: np.ndarray, reconstructed: np.ndarray, space: ImageSpace) -> Image.Image:
    """Strips of originals, each above their reconstructions."""
    strips = []
    for start in range(0, len(originals), _COLUMNS):
        pair = [images[start : start + _COLUMNS] for images in (originals, reconstructed)]
        strips.append(image_grid(np.concatenate(pair), space, len(pair[0]), scale=scale_for(space)))
    return joined(strips, space, scale_for(space), down=True)


def _picture_of_paths(items: np.ndarray, originals: np.ndarray | None, space: ImageSpace) -> Image.Image:
    """A path a row; where the ends are items, those left and right of it."""
    paths = image_grid(items.reshape(-1, *space.shape), space, items.shape[1], scale=scale_for(space))
    if originals is None:
        return paths
    left, right = (image_grid(originals[:, end], space, 1, scale=scale_for(space)) for end in (0, 1))
    return joined([left, paths, right], space, scale_for(space))


def _write(
    out: Path,
    space: Space,
    arrays: dict[str, np.ndarray],
    draw: Callable[[ImageSpace], Image.Image],
    points: np.ndarray,
    groups: np.ndarray,
    comment: str,
) -> None:
    """Writes arrays (.npz), a picture of images, or a plot of points, (N, dim), with a colour a group, (N,)."""
    if out.suffix.lower() == ".npz":
        write_arrays(out, arrays, comment)
    elif isinstance(space, ImageSpace):
        save_picture(draw(space), out, comment)
    else:
        save_points(points, out, labels=groups, title=comment)
