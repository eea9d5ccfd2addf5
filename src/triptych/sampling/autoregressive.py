"""Exact draws from autoregressive networks, by one forward pass a sub-pixel or by less.

Every sampler decides each sub-pixel by the same function of the network's output and of noise drawn beforehand, so that
from the same noise all of them draw the same images (but for a sub-pixel whose noise lies within rounding of a step of
the distribution function).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.blocks import as_channels
from triptych.nn.causal import CausalLayer
from triptych.objectives.heads import Head, decide

Sampler = Literal["auto", "naive", "raster", "row", "wavefront", "jacobi"]
FEW_ROWS = 32  # Images times sites of a turn, up to which one thread is quicker than two.
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


@dataclass(frozen=True)
class Warp:
    """Changes to each sub-pixel's distribution before it is drawn from. What they draw is no longer p(x)."""

    temperature: float = 1.0
    """Divides the log-probabilities: below 1 likely levels become likelier."""
    top_k: int = 0
    """Draw from the k likeliest levels only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest levels whose probabilities reach p together (nucleus sampling); 1 for all."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature is {self.temperature}; it must be positive and finite.")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be 0 (all levels) or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0, and 1 at most.")

    @property
    def changes(self) -> bool:
        """Whether draws are from anything but p(x)."""
        return self.temperature != 1 or self.top_k > 0 or self.top_p < 1

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the levels, float32, (..., K), to changed ones; -inf for levels that are cut off."""
        # A colder one than 1e-30 gives the likeliest level too; float32 must be able to hold the quotients.
        logits = logits / max(self.temperature, 1e-30)
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(-1, descending=True)
            # A level stays if those likelier than it do not reach p yet; the likeliest always does.
            cut = ordered.cumsum(-1) - ordered >= self.top_p  # in the order of likelihood
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)
        return logits


@dataclass(frozen=True)
class Drawing:
    """Everything a sampler needs to know of the images it is to draw."""

    network: CausalLayer
    head: Head
    encode: Callable[[Tensor], Tensor]
    """From levels, int64, (...), to the features the network takes of a sub-pixel, (..., features)."""
    noise: Tensor
    """What decides each sub-pixel: uniform on [0, 1), float32, (N, C, H, W)."""
    condition: Tensor | None = None
    """As the network takes it, (N, n_condition)."""
    warp: Warp = Warp()
    given: Tensor | None = None
    """Images whose first sites are not drawn but taken as they are, int64, (N, C, H, W)."""
    n_given: int = 0
    """How many sites, in raster order, are given."""
    watch: Callable[[Tensor, range], None] | None = None
    """Called after each turn with the levels so far, (N, C, H * W), and the positions just decided."""

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for levels, (N, C, H, W): (N, n_groups * F, H, W)."""
        return self.network(as_channels(self.encode(x)), self.condition)

    def one_pass(self, x: Tensor) -> Tensor:
        """What the noise decides at every sub-pixel by one forward pass over guessed levels, both int64, (N, C, H, W).

        It leaves an image unchanged if, and only if, that is what every sampler draws (nothing being given).
        """
        return self.head.draw(self.forward(x), self.noise, self.decide)

    def decide(self, outputs: Tensor, earlier: Sequence[Tensor], noise: Tensor) -> Tensor:
        """The level of the next channel of a group, (...), from the group's output, (..., F)."""
        if self.warp.changes:
            return decide(self.warp(self.head.level_logits(outputs, earlier)), noise)
        return self.head.decide(outputs, earlier, noise)


def draw(drawing: Drawing, sampler: Sampler = "auto") -> Tensor:
    """Draws images: int64, (N, C, H, W).

    Raises:
        InputError: If there is no such sampler, or it cannot drive this network.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"There is no sampler {sampler!r}. Samplers: {', '.join(SAMPLERS)}.")
    if sampler == "auto":
        sampler = "wavefront" if math.isfinite(drawing.network.reach) else "row"
    if sampler == "wavefront" and math.isinf(drawing.network.reach):
        raise InputError("sampler wavefront: this network looks at the whole of the row above; use row, or auto.")
    # The products over caches are in float32; so must be the convolutions of whole passes, for equal decisions.
    exact = torch.backends.cudnn.flags(allow_tf32=False)
    with torch.inference_mode(), evaluating(drawing.network), exact:
        if sampler == "naive":
            return draw_naive(drawing)
        if sampler == "jacobi":
            return draw_jacobi(drawing)
        height, width = drawing.noise.shape[2:]
        # Where a wavefront is as wide as the image, it goes site by site.
        fronts = list(wavefronts(height, width, 1 + int(drawing.network.reach) if sampler == "wavefront" else width))
        with one_thread(len(drawing.noise) * max(map(len, fronts))):
            return draw_through_caches(drawing, fronts, by_row=sampler == "row")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within, a network is in evaluation mode; dropout would draw from no distribution that the network describes."""
    in_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def one_thread(n_rows: int) -> Iterator[None]:
    """Within, PyTorch computes on one CPU thread if the products of a turn have few rows.

    They are over before a second thread has woken: one image of PixelCNN takes a tenth longer on two threads.
    """
    n_threads = torch.get_num_threads()
    if n_rows > FEW_ROWS or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def draw_naive(drawing: Drawing) -> Tensor:
    """One full forward pass for each output that is read: slow, and plainly right."""
    _, channels, height, width = drawing.noise.shape
    x = torch.zeros(drawing.noise.shape, dtype=torch.int64, device=drawing.noise.device)
    n_groups = drawing.network.n_groups
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                group, first = (channel, channel) if n_groups > 1 else (0, 0)
                if drawing.given is not None and row * width + column < drawing.n_given:
                    x[:, channel, row, column] = drawing.given[:, channel, row, column]
                    continue
                outputs = drawing.forward(x)[:, :, row, column].chunk(n_groups, 1)[group]
                earlier = x[:, first:channel, row, column].unbind(1)
                x[:, channel, row, column] = drawing.decide(outputs, earlier, drawing.noise[:, channel, row, column])
            if drawing.watch is not None:
                drawing.watch(x.flatten(2), range(row * width + column, row * width + column + 1))
    return x


def draw_through_caches(drawing: Drawing, fronts: Sequence[range], *, by_row: bool) -> Tensor:
    """Each site once, a wavefront at a time.

    Arguments:
        fronts: All sites in an order in which each is ready. 'raster' and 'row' go site by site.
        by_row: Let the layers compute at the start of each row what depends on the rows above alone.
    """
    n, channels, height, width = drawing.noise.shape
    network, device = drawing.network, drawing.noise.device
    state = network.start(n, (height, width), drawing.condition)
    # In the order of drawing, so that a turn reads a slice of the noise: indexing takes longer than some layers do.
    order = torch.tensor([site for sites in fronts for site in sites], device=device)
    noise = drawing.noise.flatten(2).index_select(2, order).split([len(sites) for sites in fronts], 2)
    given = None if drawing.given is None else drawing.given.flatten(2)
    is_given = torch.arange(height * width, device=device) < drawing.n_given
    x = torch.zeros((n, channels, height * width), dtype=torch.int64, device=device)
    turns: list[Tensor] = []  # levels drawn, each (N, C, S)
    per_group = channels // network.n_groups
    for sites, noise_here in zip(fronts, noise, strict=True):
        if by_row and sites[0] % width == 0:
            network.row(state, sites[0] // width)
        context = network.context(state, sites)
        here = slice(sites[0], sites[-1] + 1, sites.step)
        uniform = noise_here.unbind(1)  # C of (N, S)
        drawn: list[Tensor] = []
        for group in range(network.n_groups):
            outputs = network.step(state, context, group)  # (N, S, F)
            first = len(drawn)
            for channel in range(first, first + per_group):
                level = drawing.decide(outputs, drawn[first:], uniform[channel])  # (N, S)
                if given is not None and sites[0] < drawing.n_given:
                    level = torch.where(is_given[here], given[:, channel, here], level)
                drawn.append(level)
            features = [drawing.encode(level) for level in drawn[first:]]  # each (N, S, features)
            network.write(state, context, features[0] if per_group == 1 else torch.cat(features, -1), group)
        turns.append(torch.stack(drawn, 1))
        if drawing.watch is not None:
            x[:, :, here] = turns[-1]
            drawing.watch(x, sites)
    x[:, :, order] = torch.cat(turns, 2)
    return x.unflatten(2, (height, width))


def draw_jacobi(drawing: Drawing) -> Tensor:
    """Decides all sub-pixels at once from a guess, again and again, until the image is what its own output decides.

    That image is unique, and what the naive sampler draws: by induction, after i passes at least the first i
    sub-pixels are final. The number of passes depends on how strongly the sub-pixels hang together.

    Source:
        Song, Meng, Liao & Ermon 2021, arXiv:2002.03629, algorithm 1, applied to sampling as in section 4.3.
    """
    n, _, height, width = drawing.noise.shape
    x = torch.zeros(drawing.noise.shape, dtype=torch.int64, device=drawing.noise.device)
    is_given = torch.zeros((height * width,), dtype=torch.bool, device=x.device)
    if drawing.given is not None:
        is_given[: drawing.n_given] = True
        x = torch.where(is_given.view(height, width), drawing.given, x)
    open_images = torch.arange(n, device=x.device)
    for _ in range(x[0].numel() + 1 if n else 0):  # as many at most, if rounding does not differ from pass to pass
        if not len(open_images):
            break
        now = x[open_images]
        condition = None if drawing.condition is None else drawing.condition[open_images]
        decided = replace(drawing, noise=drawing.noise[open_images], condition=condition).one_pass(now)
        then = torch.where(is_given.view(height, width), now, decided)
        x[open_images] = then
        if drawing.watch is not None:
            drawing.watch(x.flatten(2), range(height * width))
        open_images = open_images[(then != now).flatten(1).any(1)]
    return x


def wavefronts(height: int, width: int, skew: int) -> Iterator[range]:
    """The sites (row, column) with column + skew * row = 0, 1, 2, ..., as positions row * W + column.

    A site is in a later wavefront than those left of it and than those in the row above up to skew - 1 to its right.
    With a skew of at least the width every wavefront is one site, in raster order.
    """
    skew = min(skew, width)  # Two rows meet in a wavefront only if skew < width.
    for front in range(width + skew * (height - 1)):
        first, last = max(0, -(-(front - width + 1) // skew)), min(height - 1, front // skew)
        step = max(1, width - skew)
        start = first * width + front - skew * first
        yield range(start, start + (last - first) * step + 1, step)
