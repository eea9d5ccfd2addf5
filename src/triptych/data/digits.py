"""The 8x8 handwritten digits that scikit-learn carries with it: real images, offline."""

from __future__ import annotations

import numpy as np

from triptych.data.dataset import Split
from triptych.data.levels import level_table
from triptych.data.parts import Parts
from triptych.spaces import ImageSpace


def read_digits(levels: int | None = None) -> Parts:
    """1797 digits of 8x8 pixels, levels 0 .. 16, cut into train and test as scikit-learn's users do.

    Arguments:
        levels: Levels to reduce or spread the 17 to.
    Source:
        Test part of the Optical Recognition of Handwritten Digits set, Alpaydin & Kaynak 1998, UCI repository.
    """
    # Imported here: scikit-learn takes a second to import, and nothing else in the data layer needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0)
    repaired = []
    if levels is not None and levels != 17:
        images = level_table(17, levels)[images]
        repaired.append(f"The 17 levels were brought to {levels}.")
    return Parts(
        name="digits",
        splits={"train": Split(images[train], labels[train]), "test": Split(images[test], labels[test])},
        space=ImageSpace(1, 8, 8, levels or 17),
        class_names=tuple(str(number) for number in bunch.target_names),
        found=["1797 handwritten digits; test is scikit-learn's train_test_split(test_size=0.2, random_state=0)."],
        repaired=repaired,
    )
