"""The public binary MNIST, one fixed draw of every pixel, as its text files of zeros and ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from triptych.data.arrays import parts_of_arrays
from triptych.data.parts import Parts
from triptych.data.store import refuse_link_out
from triptych.errors import InputError

SIDE = 28
MAX_IMAGES = 70_000  # of MNIST in all
_FILES = {part: f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")}


def holds_amat(folder: Path) -> bool:
    """Whether a folder holds these files."""
    return (folder / _FILES["train"]).is_file()


def read_amat(folder: Path, levels: int | None = None) -> Parts:
    """Reads `binarized_mnist_train.amat`, `..._valid.amat` and `..._test.amat`: images of 1x28x28 and 2 levels.

    Arguments:
        folder: Where they lie.
        levels: As in `load_data`.
    Raises:
        InputError: If one is missing, is a link out of the folder, or is anything but lines of 784 zeros and ones with
            spaces between.
    Source:
        Larochelle & Murray 2011, The Neural Autoregressive Distribution Estimator. The draw is that of Salakhutdinov &
        Murray 2008.
    """
    images: dict[str, np.ndarray] = {}
    for part, name in _FILES.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{str(path)!r} is missing; the set is {', '.join(_FILES.values())}.")
        refuse_link_out(path, folder.resolve())
        images[part] = _read(path)
    parts = parts_of_arrays(
        images, dict.fromkeys(_FILES), name="binarized_mnist", what=repr(str(folder)), levels=levels
    )
    parts.found.insert(0, f"Text files: {', '.join(_FILES.values())}.")
    return parts


def _read(path: Path) -> np.ndarray:
    """Images of one file, uint8, (N, 28, 28)."""
    n_row = 2 * SIDE * SIDE  # a digit and what follows it, a space or the end of the line
    wrong = f"{str(path)!r} is not lines of {SIDE * SIDE} zeros and ones; get a whole copy."
    if not 0 < (n_bytes := path.stat().st_size) <= MAX_IMAGES * n_row or n_bytes % n_row:
        raise InputError(wrong)
    rows = np.fromfile(path, np.uint8).reshape(-1, n_row)
    bits, between = rows[:, ::2] - ord("0"), rows[:, 1::2]
    if bits.max() > 1 or (between[:, :-1] != ord(" ")).any() or (between[:, -1] != ord("\n")).any():
        raise InputError(wrong)
    return np.ascontiguousarray(bits).reshape(-1, SIDE, SIDE)
