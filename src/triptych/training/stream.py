"""The endless sequence of training batches: a function of seed and position, so that it can be resumed anywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from triptych.data.binarize import Binarized
from triptych.data.dataset import Items, Split, in_memory
from triptych.models.base import Batch

IN_MEMORY_BYTES = 2**31

_DRAWS = 0xD2  # beside the seed of the training: these numbers are no others that are drawn from it


class BatchStream:
    """Epoch after epoch of a split in a fresh random order, cut into full batches across the epochs' borders.

    Items that are binarised dynamically are drawn anew for each batch, as a function of seed and position.

    Arguments:
        split: The training data. Arrays up to 2 GiB are put on the device whole; others are read batch by batch.
        batch_size: Items a batch.
        seed: Seed of the order, and of dynamic binarisation.
        device: Where batches go.
        use_labels: Hand out labels.
        position: Items already handed out.
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int, device: torch.device, use_labels: bool, position: int = 0
    ) -> None:
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
            intensities.shape,
            generator=self.noise,
            dtype=intensities.dtype,
            device=intensities.device,
        )
        return (uniform < intensities).to(torch.uint8)

    def next(self) -> Batch:
        """The batch at the current position."""
        start = self.position
        parts, missing = [], self.batch_size
        while missing:
            epoch, offset = divmod(self.position, len(self.split))
            part = self._order_of(epoch)[offset : offset + missing]
            parts.append(part)
            self.position += len(part)
            missing -= len(part)
        index = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.items is None:
            x = torch.from_numpy(np.asarray(self.source[index.numpy()])).to(self.device, non_blocking=True)
            index = index.to(self.device)
        else:
            index = index.to(self.device)
            x = self.items[index]
        if self.max_intensity:
            x = self._draw(x, start)
        return Batch(x, None if self.labels is None else self.labels[index])
