"""What a source hands over, and how it becomes a data set: splits, classes, checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from triptych.data.binarize import Binarize, Binarized, binarize_splits, check_intensities, describe_binarize
from triptych.data.dataset import Dataset, Split, Subset, checksum_of, is_large, point_space_of, split_positions
from triptych.errors import InputError, printable
from triptych.spaces import Space


@dataclass(frozen=True)
class Parts:
    """The items of a source, in the source's own parts."""

    name: str
    """Short name of the data set."""
    splits: dict[str, Split]
    """Either {"all"}, or "train" with any of "valid" and "test"."""
    space: Space | None
    """None for points: their space is measured on the training part, once that is known."""
    class_names: tuple[str, ...] | None = None
    """Names of the labels' values."""
    found: list[str] = field(default_factory=list)
    """What the source held, a sentence each."""
    repaired: list[str] = field(default_factory=list)
    """What was changed on reading, a sentence each."""
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    """True log-density, where it is known."""
    digests: np.ndarray | None = None
    """`item_digest` of each item that the splits are subsets of, zeros where unknown; None if they are read at no cost
    or all are unknown."""


def name_labels(
    labels: Mapping[str, np.ndarray | None], lengths: Mapping[str, int], what: str
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...] | None]:
    """Checks labels given as numbers and renumbers them 0, 1, ... in rising order over all parts.

    Arguments:
        labels: By part, whole numbers from 0, shape (N,) or (N, 1); None where a part has none.
        lengths: Items of each part.
        what: The source, for messages.
    Returns:
        Labels by part, int64, (N,), and the class names: the numbers that were found.
    Raises:
        InputError: If labels are not such numbers, are missing for some parts, or are not one for each item.
    """
    given = {part: values for part, values in labels.items() if values is not None}
    if not given:
        return dict.fromkeys(lengths), None
    for part in lengths:
        if part not in given:
            raise InputError(f"{what} has labels for {', '.join(given)} but not for {part}; give them for all or none.")
    checked = {}
    for part, values in given.items():
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise InputError(f"The labels of {what} have shape {values.shape}; give one number an item, shape (N,).")
        if len(values) != lengths[part]:
            raise InputError(f"{what} has {len(values)} labels for {lengths[part]} items; give one for each.")
        if values.dtype.kind not in "biu" and not (
            values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all()
        ):
            raise InputError(f"The labels of {what} have dtype {values.dtype}; give whole numbers 0, 1, ...")
        if len(values) and not (values.min() >= 0 and values.max() < 2**31):
            raise InputError(f"The labels of {what} are {values.min()} .. {values.max()}; give whole numbers 0, 1, ...")
        checked[part] = values.astype(np.int64)
    classes = np.unique(np.concatenate(list(checked.values())))
    numbered: dict[str, np.ndarray | None] = {part: np.searchsorted(classes, v) for part, v in checked.items()}
    return numbered, tuple(str(number) for number in classes)


def subset(split: Split, positions: np.ndarray) -> Split:
    """The items of a split at some positions, without copying them; of a subset, a subset of the same items."""
    labels = None if split.labels is None else split.labels[positions]
    if isinstance(split.items, Subset):
        return Split(Subset(split.items.items, split.items.positions[positions]), labels)
    return Split(Subset(split.items, positions), labels)


def dataset_of(
    parts: Parts,
    source: dict[str, Any],
    *,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    limit: int | None,
    binarize: Binarize,
) -> Dataset:
    """Completes the splits of a source as `load_data` says, and makes the data set.

    Raises:
        InputError: If a split comes out empty, or the images cannot be binarised.
    """
    splits, found, repaired = dict(parts.splits), list(parts.found), list(parts.repaired)
    space = parts.space
    if "all" in splits:
        whole = splits.pop("all")
        valid, test, train = split_positions(len(whole), [valid_fraction, test_fraction], seed)
        splits = {"train": subset(whole, train), "valid": subset(whole, valid), "test": subset(whole, test)}
        found.append(
            f"The source has no splits of its own: {valid_fraction:g} of it became valid and {test_fraction:g} test,"
            f" at random with seed {seed}."
        )
    else:
        own = ", ".join(splits)
        found.append(f"The source's own splits are used: {own}.")
        for missing, fraction in (("valid", valid_fraction), ("test", test_fraction)):
            if missing not in splits:
                taken, kept = split_positions(len(splits["train"]), [fraction], seed)
                splits[missing], splits["train"] = subset(splits["train"], taken), subset(splits["train"], kept)
                found.append(f"{fraction:g} of train became {missing}, at random with seed {seed}.")
    if limit is not None:
        for number, (name, split) in enumerate(splits.items()):
            if len(split) > limit:
                # A generator for each split, so that the choice in one does not hang on the size of another.
                order = np.random.Generator(np.random.PCG64([seed, number])).permutation(len(split))
                splits[name] = subset(split, np.sort(order[:limit]))
                found.append(f"{name} was cut from {len(split)} to {limit} items, at random with seed {seed}.")
    ordered = {name: splits[name] for name in ("train", "valid", "test")}
    for name, split in ordered.items():
        if len(split) == 0:  # before measuring a space on it
            raise InputError(f"The {name} split of {parts.name!r} is empty; give more items or another split.")
    measured = ordered
    remark: str = "" if binarize == "none" else binarize
    if binarize != "none":
        intensities = check_intensities(space, parts.name)
        space = replace(intensities, levels=2)
        ordered = binarize_splits(ordered, intensities.levels, binarize, seed)
        repaired.append(describe_binarize(binarize, intensities.levels, seed))
        if is_large(*measured.values()):  # what decides the draws, in place of what is drawn
            remark += f" {intensities.levels} levels, {_draws_of(ordered)}"
        else:
            measured = ordered
    return Dataset(
        name=printable(parts.name),
        space=space or point_space_of(ordered["train"].items),
        **ordered,
        class_names=parts.class_names,
        checksum=checksum_of(*measured.values(), remark=remark, digests=parts.digests),
        found=tuple(found),
        repaired=tuple(repaired),
        source=source,
        log_density=parts.log_density,
    )


def _draws_of(binary: Mapping[str, Split]) -> str:
    """SHA-256 over what decides the draws of binarised items: key and places of each split."""
    digest = hashlib.sha256()
    for split in binary.values():
        if isinstance(split.items, Binarized):
            digest.update(f"{split.items.key} ".encode())
            digest.update(np.ascontiguousarray(split.items.places, dtype=np.int64).data)
    return digest.hexdigest()
