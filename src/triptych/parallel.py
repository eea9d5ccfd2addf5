"""What lets a loss on several processes be that of one: rows of the whole batch's noise, and sums over the whole batch.

Of a batch of B items each of N processes has B / N, in the order of the processes. All draw the noise of all B items,
from generators in the same state, and each keeps the rows of its own items: noise is cheap beside a network, and so
neither the weights nor the generators depend on N. What a loss does not compute item by item, as the statistics of a
batch, it sums over the processes with the functions here. On one process all of them are what their names say, and cost
nothing.

Only a training shares batches (`sharing`); sampling and scoring are each process's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from triptych.errors import TrainingStopped


@dataclass(frozen=True)
class _Share:
    """Which part of a batch this process works on."""

    index: int = 0
    count: int = 1
    """Parts of the batch: of all processes, and all pieces that each works through one after the other."""
    n_processes: int = 1


_share = _Share()


@contextmanager
def sharing(index: int, count: int, n_processes: int) -> Iterator[None]:
    """Within, losses are of part `index` of `count` equal parts of a batch, and as many processes as given work on it
    at the same time."""
    global _share
    before, _share = _share, _Share(index, count, n_processes)
    try:
        yield
    finally:
        _share = before


def shares() -> int:
    """In how many equal parts the batch is cut, of which a loss sees one."""
    return _share.count


def own_part(x: Tensor, dim: int = 0) -> Tensor:
    """The rows of this process, of something that is there for the whole batch."""
    size = x.shape[dim] // _share.count
    return x if _share.count == 1 else x.narrow(dim, _share.index * size, size)


def _whole(shape: Sequence[int], dim: int) -> list[int]:
    return [size * (_share.count if place == dim % len(shape) else 1) for place, size in enumerate(shape)]


def rand(
    shape: Sequence[int],
    *,
    generator: Generator | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    dim: int = 0,
) -> Tensor:
    """As `torch.rand`, of a tensor that has its items in dimension `dim`."""
    return own_part(torch.rand(_whole(shape, dim), generator=generator, device=device, dtype=dtype), dim)


def randn(
    shape: Sequence[int],
    *,
    generator: Generator | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    dim: int = 0,
) -> Tensor:
    """As `torch.randn`, of a tensor that has its items in dimension `dim`."""
    return own_part(torch.randn(_whole(shape, dim), generator=generator, device=device, dtype=dtype), dim)


class Dropout(nn.Dropout):
    """As `nn.Dropout`, of features that have their items in dimension `dim`."""

    def __init__(self, p: float, dim: int = 0) -> None:
        super().__init__(p)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        if _share.count == 1 or not self.training or self.p == 0:
            return super().forward(x)
        return x * self._mask(x, x.shape)

    def _mask(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Own rows of the numbers that PyTorch's dropout would draw for the whole batch."""
        # They are drawn in the order in which elements lie in memory.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        whole = _whole(shape, self.dim)
        mask = torch.empty([whole[place] for place in order], dtype=x.dtype, device=x.device)
        mask = mask.permute([order.index(place) for place in range(x.ndim)])
        return own_part(mask.bernoulli_(1 - self.p), self.dim) / (1 - self.p)


class Dropout2d(Dropout):
    """As `nn.Dropout2d`: whole maps of (N, C, H, W) are zeroed."""

    def forward(self, x: Tensor) -> Tensor:
        if _share.count == 1 or not self.training or self.p == 0:
            return nn.functional.dropout2d(x, self.p, self.training)
        return x * self._mask(x, (*x.shape[:2], 1, 1))


# ---- over the processes


def _reduced(x: Tensor) -> Tensor:
    """The sum over the processes, as a new tensor; no gradient.

    Raises:
        TrainingStopped: If another process has gone.
    """
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(_share.n_processes)]
    with speaking():  # These are small, and gathering takes half the round trips of reducing.
        torch.distributed.all_gather(parts, x)
    return torch.stack(parts).sum(0)


@contextmanager
def speaking() -> Iterator[None]:
    """Within, processes exchange something; if one of them has gone, that is told in a line."""
    try:
        yield
    except RuntimeError as error:  # also torch.distributed's own errors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingStopped(
            f"Another process of this training has ended or cannot be reached ({first}); see what it said. The last"
            " good checkpoint stands."
        ) from None


class _Sum(torch.autograd.Function):
    """The sum over the processes, of which each takes a part of the gradient from all."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _reduced(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient.contiguous())


def total(x: Tensor) -> Tensor:
    """The sum over the processes of what each has of the same shape; differentiable, also twice.

    A loss of it, averaged over the processes, has the gradient of the one loss.
    """
    return x if _share.n_processes == 1 else _Sum.apply(x)


def mean(x: Tensor) -> Tensor:
    """The mean over the processes of means that each has taken over its items; differentiable, as `total`."""
    return x if _share.n_processes == 1 else _Sum.apply(x) / _share.n_processes


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, (N, ...), in the order of their items; no gradient."""
    if _share.n_processes == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_share.n_processes)]
    with speaking():
        torch.distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def process() -> tuple[int, int]:
    """Which process this is of those that share the batch, and how many they are."""
    pieces = _share.count // _share.n_processes
    return _share.index // pieces, _share.n_processes


class BatchNorm2d(nn.BatchNorm2d):
    """As `nn.BatchNorm2d`; in training its statistics are of all processes' items.

    PyTorch's SyncBatchNorm is for CUDA alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _share.n_processes == 1:
            return super().forward(x)
        place, count = process()
        n = x.numel() // x.shape[1] * count
        y = x.float()
        # All processes' means and squares about them, in one exchange (Chan, Golub & LeVeque 1979, eq. 2.1).
        own = torch.stack([y.mean((0, 2, 3)), (y - y.mean((0, 2, 3), keepdim=True)).square().mean((0, 2, 3))])
        before, after = own.new_zeros(place, *own.shape), own.new_zeros(count - place - 1, *own.shape)
        centres, squares = total(torch.cat([before, own[None], after])).unbind(1)
        centre = centres.mean(0)
        variance = (squares + (centres - centre).square()).mean(0)
        y = y - centre[:, None, None]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(centre, share)
                self.running_var.lerp_(variance * (n / max(1, n - 1)), share)
        y = y * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)
