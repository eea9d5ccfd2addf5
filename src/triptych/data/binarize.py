"""Binary images from images of more levels: by a threshold, by draws that stay, or by draws fresh for every batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from triptych.data.dataset import Items, Split, Subset, View
from triptych.errors import InputError
from triptych.spaces import ImageSpace, Space

Binarize = Literal["none", "dynamic", "fixed", "threshold"]

BINARIZE: tuple[Binarize, ...] = ("none", "dynamic", "fixed", "threshold")

_PURPOSE = 0xB1  # beside the seed of the data: these numbers are no others that are drawn from it
_CHUNK = 2**16  # sub-pixels whose numbers are made at once; they stay in the processor's cache


@dataclass(frozen=True)
class Binarized(View):
    """Images of two levels, made from images of more as they are read.

    A sub-pixel of intensity x, of 0 .. m = levels - 1, is 1 with probability x / m, independently of all others; or, by
    threshold, where x / m >= 1/2. Reading an item gives the same draw each time, which only `key` and the item's place
    decide. Where `redraws`, `BatchStream` takes the intensities and draws anew for each batch.

    Source:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, footnote 2 of section 5.1, after Salakhutdinov & Murray
        2008 (dynamic), and appendix D (fixed; the public MNIST file of Larochelle & Murray 2011 is another draw than
        this one). Of our own: validation and test items keep one draw, so that repeated evaluations agree.
    """

    items: Items
    """Intensities, integers 0 .. levels-1, (N, C, H, W)."""
    levels: int
    """Of the intensities."""
    how: Binarize
    """Not "none"."""
    places: np.ndarray
    """Place of each item in its source, (N,): it names the item, whatever part or subset is read."""
    key: int
    """Sets this split's draws apart from others, 64 bits; `key_of` makes one."""

    @property
    def redraws(self) -> bool:
        """Whether training batches are drawn anew."""
        return self.how == "dynamic"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        intensities = np.asarray(self.items[index])
        if self.how == "threshold":
            return (intensities >= self.levels // 2).astype(np.uint8)  # the least whole number of at least m / 2
        images = np.empty(intensities.shape, np.uint8)
        n_dims = images[0].size if len(images) else 1
        offsets = np.arange(n_dims, dtype=np.uint64)
        places = self.places[index].astype(np.uint64)[:, None]  # (n, 1)
        flat, flat_images = intensities.reshape(len(images), n_dims), images.reshape(len(images), n_dims)
        step = max(1, _CHUNK // n_dims)
        for start in range(0, len(images), step):
            chunk = slice(start, start + step)
            uniform = splitmix64(self.key, places[chunk] * np.uint64(n_dims) + offsets)
            uniform >>= np.uint64(32)
            uniform *= np.uint64(self.levels - 1)
            uniform >>= np.uint64(32)  # 0 .. m-1, each with probability 1/m to within 2^-32; x of them lie below x
            flat_images[chunk] = uniform < flat[chunk].astype(np.uint64)
        return images


def splitmix64(start: int, index: np.ndarray) -> np.ndarray:
    """Numbers of the SplitMix64 generator, each found from its index alone: uint64, of the shape of `index`.

    Arguments:
        start: Seed, 64 bits.
        index: Which numbers of its sequence, uint64, counted from 0.
    Source:
        Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA, section 3, with the mixing
        constants of Java 8's SplittableRandom (Stafford's variant 13), as in Vigna's splitmix64.c.
    """
    gamma = 0x9E3779B97F4A7C15
    z = index * np.uint64(gamma)
    z += np.uint64((start + gamma) % 2**64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def key_of(seed: int, number: int) -> int:
    """Key of the draws of one split: 64 bits of the data seed and the split's number."""
    return int(np.random.SeedSequence([_PURPOSE, number, seed]).generate_state(1, np.uint64)[0])


def binarize_splits(splits: Mapping[str, Split], levels: int, how: Binarize, seed: int) -> dict[str, Split]:
    """Splits of intensities as splits of binary images.

    Arguments:
        splits: In order; each gets draws of its own. Only the items of train are ever redrawn.
        levels: Of the intensities.
        how: As `load_data` says, but "none".
        seed: Of the data.
    """
    binary = {}
    for number, (name, split) in enumerate(splits.items()):
        places = split.items.positions if isinstance(split.items, Subset) else np.arange(len(split))
        own = "fixed" if how == "dynamic" and name != "train" else how
        binary[name] = Split(Binarized(split.items, levels, own, places, key_of(seed, number)), split.labels)
    return binary


def check_intensities(space: Space | None, name: str) -> ImageSpace:
    """The space of a set, if its images can be binarised.

    Arguments:
        space: None for points.
        name: Of the set, for messages.
    Raises:
        InputError: If the set holds points, palette images or binary images.
    """
    if not isinstance(space, ImageSpace):
        raise InputError(f"binarize applies to images only, and {name!r} holds points; leave it out.")
    if space.palette is not None:
        raise InputError(f"binarize needs intensities, and {name!r} holds indices into a palette; leave it out.")
    if space.levels == 2:
        raise InputError(f"binarize needs intensities, and {name!r} has only 2 levels; leave binarize (or levels) out.")
    return space


def describe_binarize(how: Binarize, levels: int, seed: int) -> str:
    """What was done to the images, a sentence for `Dataset.repaired`."""
    if how == "threshold":
        return (
            f"The {levels} levels became 2 by a threshold at half the highest; likelihoods of such images compare with"
            " nothing in the literature."
        )
    drawn = f"The {levels} levels became 2: each sub-pixel was drawn, 1 with probability intensity / {levels - 1}"
    if how == "dynamic":
        return (
            f"{drawn}. Training batches are drawn anew at every access (Burda et al. 2016); validation, test and"
            f" whatever else reads items have one draw, fixed by seed {seed}."
        )
    return f"{drawn}, once, fixed by seed {seed}; it is not the draw of any published binary set."
