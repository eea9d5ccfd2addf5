"""The kernel density, or Parzen window: a Gaussian at every training item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, Estimated, Loss, Phase, TractableDensity
from triptych.models.classical import (
    MAX_ELEMENTS,
    Standardiser,
    log_normaliser,
    own_density,
    sized_by_data,
    squared_distances,
    training_densities,
)
from triptych.spaces import ImageSpace, PointSpace, Space

N_LEFT_OUT = 1000  # Items that the bandwidth is chosen by: each is left out and scored by the others.
MAX_DISTANCES = 2**22  # Distances kept while it is chosen: 32 MiB; with 10,000 items 419 are left out.


class KernelDensity(TractableDensity, Estimated):
    r"""A Gaussian of one width h at every training item, p(x) = (1/n) sum_i N(x; x_i, h^2 I).

    A class-conditional one has the items of each class; the bandwidth h is shared. It learns by heart: h alone is
    estimated, by the likelihood of left-out items, since at the items themselves the likelihood grows without limit as
    h goes to 0. Drawing is ancestral: an item at random, then noise.

    Points are scored exactly. Of images the mean of log p(x + u) over uniform noise u in [0, 1) is a lower bound of
    log P(x), and is typed so; the Gaussians stand in the middle of the images' cells, at x_i + 1/2.

    Arguments:
        space: What one datum is.
        n_classes: Classes, a density for each.
        bandwidth: Standard deviation h of the kernel in data units (levels of images), or 'auto': the best for up to
            1000 items, each scored by all others of its class, on a grid that is refined around its best.
        max_centres: Most training items that are kept, drawn at random from more; by default 10,000, or fewer where
            they would fill more than 64 Mi sub-pixels. Scoring takes time in proportion.
    Raises:
        InputError: If an option is out of range.
    Source:
        Rosenblatt 1956, "Remarks on some nonparametric estimates of a density function"; Parzen 1962, "On estimation of
        a probability density function and mode". Bandwidth: Habbema, Hermans & van den Broek 1974, and Duin 1976
        (likelihood cross-validation). Differs: several dimensions with one bandwidth; a dequantisation bound for images
        (Theis et al. 2016, arXiv:1511.01844, section 3.1).
    """

    supports = (ImageSpace, PointSpace)
    size_option = None
    centres: Tensor
    counts: Tensor
    estimated_bandwidth: Tensor

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        bandwidth: float | Literal["auto"] = "auto",
        max_centres: int | None = None,
    ) -> None:
        standard = Standardiser(space, "kernel_density")
        super().__init__(space, n_classes, kind=standard.kind, n_draws=standard.n_draws)
        self.standard = standard
        if bandwidth != "auto" and not 0 < bandwidth < math.inf:
            raise InputError(f"Option bandwidth of kernel_density is {bandwidth}; it must be positive, or 'auto'.")
        n_densities = max(1, n_classes)
        if max_centres is None:
            max_centres = max(n_densities, min(10_000, 2**26 // space.n_dims))
        if max_centres < n_densities:
            raise InputError(
                f"Option max_centres of kernel_density is {max_centres}; it must be at least {n_densities}"
                f"{', one for each class' if n_classes else ''}."
            )
        self.bandwidth, self.max_centres = bandwidth, max_centres
        # Kept as they came, so that nothing is lost to rounding. Before the estimation each density has one Gaussian,
        # over everything.
        if isinstance(space, ImageSpace):
            dtype = torch.uint8 if space.levels <= 256 else torch.int32
            centre = torch.full((n_densities, *space.shape), space.levels // 2, dtype=dtype)
        else:
            centre = self.standard.shift.expand(n_densities, -1).clone()
        self.register_buffer("centres", centre)  # (n, *space.shape), in data units, sorted by class
        self.register_buffer("counts", torch.ones(n_densities, dtype=torch.int64))
        width = torch.tensor(self.standard.scale if bandwidth == "auto" else float(bandwidth))
        self.register_buffer("estimated_bandwidth", width)  # (), in data units
        sized_by_data(self, centres=0)

    @property
    def max_items(self) -> int:
        return self.max_centres

    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        if len(x) > self.max_centres:
            raise InputError(f"kernel_density got {len(x)} training items; max_centres is {self.max_centres}.")
        x = x.to(self.device)
        which = training_densities(
            labels, len(x), self.n_classes, at_least=1, why="a kernel density needs 1 or more.", device=self.device
        )
        order = which.argsort(stable=True)
        self.centres = x[order].to(self.centres.dtype)
        self.counts.copy_(torch.bincount(which, minlength=len(self.counts)))
        squares = self._left_out_squares(generator)
        if not squares and self.bandwidth == "auto":
            raise InputError(
                "kernel_density has no class of 2 training items or more to choose its bandwidth by; give bandwidth."
            )
        if not squares:
            yield {"bandwidth": float(self.estimated_bandwidth)}
            return
        tried: dict[float, float] = {}
        scale, finest = self.standard.scale, 0.1 if self.standard.is_image else 1e-4 * self.standard.scale
        grid = _grid(tried, 2 * scale, finest) if self.bandwidth == "auto" else iter((float(self.bandwidth),))
        for bandwidth in grid:
            tried[bandwidth] = self._left_out_log_density(squares, bandwidth)
            best = max(tried, key=lambda width: tried[width])
            self.estimated_bandwidth.fill_(best)
            yield {self.standard.term: -tried[best], "bandwidth": best}

    def _left_out_squares(self, generator: Generator) -> list[Tensor]:
        """Squared distances in y of left-out items to the centres of their class, to themselves inf: (n, n_k) each."""
        not_alone = (self.counts > 1).repeat_interleave(self.counts).nonzero().squeeze(1)
        n_queries = min(N_LEFT_OUT, max(1, MAX_DISTANCES // len(self.centres)), len(not_alone))
        queries = not_alone[torch.randperm(len(not_alone), generator=generator)[:n_queries].to(self.device)]
        noise = torch.rand((n_queries, self.space.n_dims), generator=generator).to(self.device)
        first, squares = 0, []
        for label, n_own in enumerate(self.counts.tolist()):
            own = (queries >= first) & (queries < first + n_own)
            if own.any():
                y = self.standard(self.centres[queries[own]], noise[own])
                square = torch.cat([squared_distances(y, centres) for centres in self._centres_of(label, len(y))], 1)
                square.scatter_(1, (queries[own] - first).unsqueeze(1), math.inf)
                squares.append(square)
            first += n_own
        return squares

    def _left_out_log_density(self, squares: list[Tensor], bandwidth: float) -> float:
        """Mean log-density of the left-out items, nats an item, in data units."""
        variance = torch.tensor((bandwidth / self.standard.scale) ** 2, dtype=torch.float64)
        kernels = [(square / (-2 * variance)).logsumexp(1) - math.log(square.shape[1] - 1) for square in squares]
        constant = float(log_normaliser(variance, self.space.n_dims)) + self.standard.log_scale
        return float(torch.cat(kernels).mean()) - constant

    def _centres_of(self, label: int, n_rows: int) -> Iterator[Tensor]:
        """The centres of a class in y, (n, n_dims), some at a time: as many as n_rows vectors can be held against."""
        first = int(self.counts[:label].sum())
        own = self.centres[first : first + int(self.counts[label])]
        for some in own.split(max(1, MAX_ELEMENTS // max(n_rows, self.space.n_dims))):
            yield self.standard(some)

    def _log_density(self, y: Tensor, label: int) -> Tensor:
        """log q(y) under the density of a class: (N, n_dims) -> float64, (N,)."""
        variance = (self.estimated_bandwidth.double() / self.standard.scale).square()
        total = torch.full((len(y),), -math.inf, dtype=torch.float64, device=y.device)
        for centres in self._centres_of(label, len(y)):
            total = torch.logaddexp(total, (squared_distances(y, centres) / (-2 * variance)).logsumexp(1))
        return total - self.counts[label].double().log() - log_normaliser(variance, self.space.n_dims)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.check_labels(len(x), labels, draw=False)
        return self.standard.log_prob(x, labels, self._log_density)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        which = own_density(labels, n, self.device)
        # In float64: float32 has too few steps for every one of many items to have the same chance.
        share = torch.rand(n, generator=generator, device=self.device, dtype=torch.float64)
        counts = self.counts[which]
        first = (self.counts.cumsum(0) - self.counts)[which]
        item = first + (share * counts).long().minimum(counts - 1)
        noise = torch.randn((n, self.space.n_dims), generator=generator, device=self.device)
        return self.standard.inverse(
            self.standard(self.centres[item]) + noise * (self.estimated_bandwidth / self.standard.scale)
        )

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise InputError("kernel_density is estimated from left-out items, not by gradient descent; it has no phases.")


def _grid(tried: dict[float, float], widest: float, finest: float) -> Iterator[float]:
    """Bandwidths to try, down by factors of sqrt 2 until four in a row gain nothing, then ever closer to the best.

    Arguments:
        tried: Those tried so far and their log-likelihoods, kept up to date by the caller.
        widest, finest: Where to begin, and where to end at the latest.
    """

    def best() -> float:
        return max(tried, key=lambda width: tried[width])

    width, step = widest, math.sqrt(2)
    while width >= finest and (not tried or best() < width * step**4.5):
        yield width
        width /= step
    for _ in range(4):  # to within a factor of 2^(1/32), 2 %
        step, middle = math.sqrt(step), best()
        yield middle * step
        yield middle / step
