"""The endless sequence of training batches: a function of seed and position, so that it can be resumed anywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from triptych.data.dataset import Split, in_memory
from triptych.models.base import Batch

IN_MEMORY_BYTES = 2**31


class BatchStream:
    """Epoch after epoch of a split in a fresh random order, cut into full batches across the epochs' borders.

    Arguments:
        split: The training data. Arrays up to 2 GiB are put on the device whole; others are read batch by batch.
        batch_size: Items a batch.
        seed: Seed of the order.
        device: Where batches go.
        use_labels: Hand out labels.
        position: Items already handed out.
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int, device: torch.device, use_labels: bool, position: int = 0
    ) -> None:
        self.split, self.batch_size, self.seed, self.device, self.position = split, batch_size, seed, device, position
        array = in_memory(split.items, IN_MEMORY_BYTES)
        self.items = None if array is None else torch.from_numpy(array).to(device)
        self.labels = torch.from_numpy(split.labels).to(device) if use_labels and split.labels is not None else None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.split))
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order

    def next(self) -> Batch:
        """The batch at the current position."""
        parts, missing = [], self.batch_size
        while missing:
            epoch, offset = divmod(self.position, len(self.split))
            part = self._order_of(epoch)[offset : offset + missing]
            parts.append(part)
            self.position += len(part)
            missing -= len(part)
        index = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.items is None:
            x = torch.from_numpy(self.split.read(index.numpy())[0]).to(self.device, non_blocking=True)
            index = index.to(self.device)
        else:
            index = index.to(self.device)
            x = self.items[index]
        return Batch(x, None if self.labels is None else self.labels[index])
