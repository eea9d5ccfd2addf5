"""Drawing as a person wants it: block by block, in little more memory than the images take, by all processes that are
there, with a bar on a terminal and an animation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor

from triptych import ranks
from triptych.consoles import lasting_console
from triptych.data.animation import Frames
from triptych.data.dataset import level_dtype
from triptych.errors import InputError
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import GenerativeModel
from triptych.models.registry import find_models, model_class
from triptych.sampling.autoregressive import Sampler, Warp
from triptych.spaces import ImageSpace

BLOCK = 256
"""Images asked of a model at a time; of images up to 32x32 it draws as many at once anyway."""


def draw_images(
    model: AutoregressiveDensity,
    n: int,
    *,
    labels: Tensor | None,
    seed: int,
    sampler: Sampler = "auto",
    warp: Warp,
    given: np.ndarray | None = None,
    n_given: int = 0,
    frames: Frames | None = None,
    bar: Bar | None = None,
) -> np.ndarray:
    """Draws images block by block, by all processes that are `ranks.together`.

    Arguments:
        labels, sampler, warp, given, n_given: As in `AutoregressiveDensity.draw`.
        seed: Of the noise.
        frames: Told of every turn of the first images.
        bar: Told of every turn of this process.
    Returns:
        uint8, or int32 past 256 levels, (n, C, H, W).
    """

    def draw(block: slice, generator: Generator) -> Tensor:
        turns = _Turns(block.start, n, model.space.height * model.space.width, sampler, frames, bar)
        return model.draw(
            block.stop - block.start,
            labels=None if labels is None else labels[block],
            generator=generator,
            sampler=sampler,
            warp=warp,
            given=None if given is None else torch.as_tensor(given[block], device=model.device),
            n_given=n_given,
            watch=turns.watch if turns.wanted else None,
        )

    return draw_blocks(n, model, draw, seed=seed)


def draw_blocks(n: int, model: GenerativeModel, draw: Callable[[slice, Generator], Tensor], *, seed: int) -> np.ndarray:
    """Draws n items in blocks, each from noise of its own, by all processes that are `ranks.together`.

    Arguments:
        draw: Draws the items of a block on the model's device.
        seed: Of the noise.
    Returns:
        (n, *space.shape), in data units.
    """

    space = model.space

    def block(number: int) -> np.ndarray:
        generator = Generator(model.device).manual_seed(ranks.part_seed(seed, number))
        start = number * BLOCK
        drawn = draw(slice(start, min(start + BLOCK, n)), generator).cpu().numpy()
        return drawn.astype(level_dtype(space.levels), copy=False) if isinstance(space, ImageSpace) else drawn

    return np.concatenate(ranks.in_parts(math.ceil(n / BLOCK), block))


class _Turns:
    """Follows the turns of one block for the animation and the bar."""

    def __init__(
        self, start: int, n: int, n_sites: int, sampler: Sampler, frames: Frames | None, bar: Bar | None
    ) -> None:
        self.start, self.n, self.n_sites, self.sampler = start, n, n_sites, sampler
        self.frames = frames if frames is not None and start < frames.n else None
        self.bar = bar if bar is not None and bar.is_shown else None
        self.first, self.n_decided = -1, 0
        self.before: Tensor | None = None

    @property
    def wanted(self) -> bool:
        """Whether anyone looks."""
        return self.frames is not None or self.bar is not None

    def watch(self, images: slice, levels: Tensor, sites: range) -> None:
        """Takes a turn; arguments as `triptych.models.autoregressive.Watch` says."""
        first = self.start + images.start
        if self.frames is not None and first < self.frames.n:
            shown = levels[: self.frames.n - first, :, list(sites)]
            self.frames.turn(first, shown.cpu().numpy(), np.asarray(sites))
        if self.bar is None:
            return
        if first != self.first:  # the next images of the block
            self.first, self.n_decided, self.before = first, 0, None
        self.n_decided += len(sites)
        if self.bar.is_due:
            share = self._settled(levels) if self.sampler == "jacobi" else self.n_decided / self.n_sites
            self.bar.update((first + share * len(levels)) / self.n)

    def _settled(self, levels: Tensor) -> float:
        """The share of sites known to be final: what a pass leaves as it was up to some site stays so for ever."""
        before, self.before = self.before, levels.clone()
        if before is None:
            return 0.0
        same = (levels == before).all(1).cumprod(1)  # (N, H * W): 1 up to the first site that changed
        return float(same.float().mean())


class Bar:
    """A bar on a terminal once a drawing has taken a second; nothing elsewhere.

    Arguments:
        verbose: False for nothing anywhere.
        console: Where to show it; by default standard error.
        delay: Seconds before it appears.
    """

    def __init__(self, verbose: bool = True, console: Console | None = None, delay: float = 1.0) -> None:
        console = console or lasting_console(stderr=True)
        self.is_shown = verbose and console.is_terminal and ranks.is_first()
        self.bar = Progress(
            TextColumn("drawing"),
            BarColumn(20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not self.is_shown,
        )
        self.next = time.perf_counter() + delay

    def __enter__(self) -> Bar:
        self.task = self.bar.add_task("drawing", total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    @property
    def is_due(self) -> bool:
        """Whether it is time to show something new."""
        return self.is_shown and time.perf_counter() >= self.next

    def update(self, share: float) -> None:
        """Shows the share that is drawn."""
        self.bar.start()  # does nothing the second time
        self.bar.update(self.task, completed=share)
        self.next = time.perf_counter() + 0.1


def describe_warp(warp: Warp, of: str = "p(x)", *, truncation: float | None = None) -> str:
    """What a warp, or truncated latents, do to draws, in words for a person; empty if nothing is changed."""
    parts = {"temperature": warp.temperature, "top_k": warp.top_k, "top_p": warp.top_p}
    changed = [f"{key} {value}" for key, value in parts.items() if value != getattr(Warp(), key)]
    changed += [] if truncation is None else [f"truncation {truncation}"]
    if not changed:
        return ""
    return f"{', '.join(changed)}: these are not draws from {of}"


def autoregressive_models() -> list[str]:
    """Names of the models that draw site by site."""
    return [name for name in find_models() if issubclass(model_class(name), AutoregressiveDensity)]


def check_autoregressive(model: GenerativeModel) -> AutoregressiveDensity:
    """The model, if it can complete images; InputError with the names of those that can if not."""
    if not isinstance(model, AutoregressiveDensity):
        raise InputError(
            f"{type(model).__name__} cannot complete images; autoregressive models can:"
            f" {', '.join(autoregressive_models())}."
        )
    return model


def check_seed(seed: int) -> None:
    """Raises InputError unless PyTorch takes the seed."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; it must be between 0 and 2^63 - 1.")


def read_labels(labels: Sequence[int] | np.ndarray | Tensor | None) -> Tensor | None:
    """Labels that a person gives as a tensor, int64; InputError unless they are whole numbers."""
    if labels is None:
        return None
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.size and (array.dtype.kind not in "iu" or int(array.max()) >= 2**63):
        first = array.ravel().tolist()[0]
        raise InputError(f"labels begin with {first!r}; they must be whole numbers, the classes counted from 0.")
    return torch.as_tensor(array.astype(np.int64))


def check_file(path: Path, others: Sequence[Path | None] = ()) -> None:
    """Refuses a file that cannot be written, before anything is drawn for it.

    Arguments:
        path: The file.
        others: What is written besides.
    Raises:
        InputError: If it is a folder, lies in none, is another's too, or may not be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {str(path.parent)!r} does not exist.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} may not be written; give another path or mend its rights.")
    if any(other is not None and other.resolve() == path.resolve() for other in others):
        raise InputError(f"{path} is to be written twice; give two files.")
