"""The endless sequence of training batches: a function of seed and position, so that it can be resumed anywhere."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych.data.binarize import Binarized
from triptych.data.dataset import Items, Split, in_memory
from triptych.errors import InputError
from triptych.models.base import Batch

IN_MEMORY_BYTES = 2**31

_DRAWS = 0xD2  # beside the seed of the training: these numbers are no others that are drawn from it


class _Ahead(NamedTuple):
    """A batch that is being read before it is asked for."""

    position: int
    rows: Tensor
    """Positions in the split."""
    items: Future[Tensor]


class BatchStream:
    """Epoch after epoch of a split in a fresh random order, cut into full batches across the epochs' borders.

    Items that are binarised dynamically are drawn anew for each batch, as a function of seed and position. What is not
    held in memory is read by a thread, a batch ahead; the thread ends with the stream, or when that is closed.

    Several processes share each batch: each gets its own rows of the batch that one alone would get, so that a training
    goes on from a position on any number of them.

    Arguments:
        split: The training data. Arrays up to 2 GiB are put on the device whole; others are read batch by batch.
        batch_size: Items a batch, of all processes together.
        seed: Seed of the order, and of dynamic binarisation.
        device: Where batches go.
        use_labels: Hand out labels.
        position: Items already handed out, of all processes together; may be set at any time.
        rank, world: Which process this is, and how many share the batches.
        read_ahead: Whether to read the next batch before it is asked for.
    Raises:
        InputError: If the processes cannot have equal shares of a batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        use_labels: bool,
        position: int = 0,
        rank: int = 0,
        world: int = 1,
        read_ahead: bool = True,
    ) -> None:
        if batch_size % world:
            raise InputError(
                f"batch_size is {batch_size}; it must be a multiple of the {world} processes that share it."
            )
        self.own = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        """Rows of a batch that are this process's."""
        self.split, self.batch_size, self.seed, self.device, self.position = split, batch_size, seed, device, position
        redrawn = split.items if isinstance(split.items, Binarized) and split.items.redraws else None
        self.source: Items = split.items if redrawn is None else redrawn.items
        self.max_intensity = 0 if redrawn is None else redrawn.levels - 1
        """Highest level of the intensities that batches are drawn from; 0 if they are taken as they are."""
        self.noise = torch.Generator(device)
        array = in_memory(self.source, IN_MEMORY_BYTES)
        self.items = None if array is None else torch.from_numpy(array).to(device)
        self.labels = torch.from_numpy(split.labels).to(device) if use_labels and split.labels is not None else None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)
        self._reader = ThreadPoolExecutor(1, "triptych-read") if self.items is None and read_ahead else None
        self._ahead: _Ahead | None = None

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.split))
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order

    def _draw(self, intensities: Tensor, position: int) -> Tensor:
        """Binary images, uint8, drawn from intensities of a batch that begins at a position."""
        state = np.random.SeedSequence([_DRAWS, self.seed, position]).generate_state(1, np.uint64)
        self.noise.manual_seed(int(state[0]))
        # Uniform over 0 .. max_intensity - 1, of which x values lie below an intensity x.
        uniform = torch.randint(
            self.max_intensity,
            (self.batch_size, *intensities.shape[1:]),
            generator=self.noise,
            dtype=intensities.dtype,
            device=intensities.device,
        )
        return (uniform[self.own] < intensities).to(torch.uint8)

    def _rows(self, position: int) -> Tensor:
        """Positions in the split of this process's rows of the batch that begins at a position."""
        parts, missing = [], self.batch_size
        while missing:
            epoch, offset = divmod(position, len(self.split))
            part = self._order_of(epoch)[offset : offset + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[self.own]

    def _read(self, position: int) -> tuple[Tensor, Tensor]:
        """Positions in the split, and items as they are read, of this process's rows of a batch; begins the next."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.position == position:
            index, items = ahead.rows, ahead.items.result()
        else:
            index = self._rows(position)
            items = _read_items(self.source, index.numpy())
        if self._reader is not None:
            following = position + self.batch_size
            rows = self._rows(following)
            self._ahead = _Ahead(following, rows, self._reader.submit(_read_items, self.source, rows.numpy()))
        return index, items

    def next(self) -> Batch:
        """The batch at the current position."""
        start = self.position
        if self.items is None:
            index, items = self._read(start)
            x = items.to(self.device, non_blocking=True)
            index = index.to(self.device)
        else:
            index = self._rows(start).to(self.device)
            x = self.items[index]
        if self.max_intensity:
            x = self._draw(x, start)
        self.position = start + self.batch_size
        return Batch(x, None if self.labels is None else self.labels[index])

    def close(self) -> None:
        """Ends the thread that reads ahead, and reading ahead."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
        self._reader = self._ahead = None


def _read_items(source: Items, index: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(source[index]))
