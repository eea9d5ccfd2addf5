"""Causal layers: one protocol for the whole image at once (training, scoring) and for drawing site by site.

The order of an autoregressive model is raster order over sites (row, then column) and, within a site, the order of its
colour channels. Features are split into as many equal groups as there are channels, in that order: group g of a site
may depend on all earlier sites and, at its own site, on channels up to g (before g, in a network's first layer).

Drawing goes by wavefronts: sets of sites none of which depends on another, so that they are drawn at once. A layer's
cache holds its inputs at all sites of earlier wavefronts. A network that looks at the whole of the row above has
wavefronts of one site each, and is told when a row begins. For each wavefront,

    layer.row(state, row)                           # only in raster order, where the first site of a row comes next
    context = layer.context(state, sites)           # all that depends on earlier sites, for every group at once
    for group in range(layer.n_groups):
        y = layer.step(state, context, group)       # the layer's output; needs the inputs its mask lets it see
        layer.write(state, context, x, group)       # the layer's own input of this group

and a container writes the inputs of its inner layers as they become known. A layer that sees its own site (type B)
has `write` called before `step`; the first layer of a network (type A) after it, since its input is what was drawn.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.errors import InputError


class CausalLayer(nn.Module, ABC):
    """A layer of an autoregressive network over images, to be run in parallel or incrementally, with equal results.

    The incremental methods run under `torch.inference_mode()` and compute what `forward` does in evaluation mode, that
    is, without dropout, whatever the layer's mode. States and contexts are the layer's own; whoever drives it only
    hands them back.

    Arguments:
        n_groups: Colour channels of a site, and so groups of features.
    """

    def __init__(self, n_groups: int) -> None:
        super().__init__()
        self.n_groups = n_groups

    @property
    @abstractmethod
    def reach(self) -> float:
        """How many columns to the right a layer looks for each row it looks up: 1 for a 3x3 convolution.

        `math.inf` for a layer that looks at the whole of the row above, or at sites in no fixed place.
        """

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The whole image at once.

        Arguments:
            x: (N, C_in, H, W).
            condition: What the image is conditioned on, (N, n_condition), or None.
        Returns:
            (N, C_out, H, W).
        """

    @abstractmethod
    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> Any:
        """Caches for drawing n images of (H, W) sites, and the weights in the form that drawing needs."""

    def row(self, state: Any, row: int) -> None:
        """Told in raster order before the first site of each row: all sites of the rows above are in the caches.

        A layer may compute here, for the whole row at once, what depends on those alone. One with a finite reach
        cannot count on it, since wavefronts cross the rows.
        """

    @abstractmethod
    def context(self, state: Any, sites: range) -> Any:
        """All that depends on strictly earlier sites, for every group.

        Arguments:
            sites: Positions row * W + column of S sites independent of each other, evenly spaced in rows and columns.
        """

    @abstractmethod
    def step(self, state: Any, context: Any, group: int) -> Tensor:
        """The layer's output of one group at the context's sites, (N, S, C_out / n_groups).

        To be called once for each group, in order: it may complete the context in place.
        """

    @abstractmethod
    def write(self, state: Any, context: Any, x: Tensor, group: int) -> None:
        """Takes the layer's input of one group at the context's sites, (N, S, C_in / n_groups)."""


class CausalSequential(CausalLayer):
    """Layers one after another.

    The container's reach is the largest of its layers', not their sum: every layer finds its own inputs at earlier
    wavefronts complete in its own cache, however far those had looked in turn.
    """

    def __init__(self, layers: Sequence[CausalLayer]) -> None:
        super().__init__(layers[0].n_groups)
        self.layers = nn.ModuleList(layers)

    @property
    def reach(self) -> float:
        return max(layer.reach for layer in self._layers())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, condition)
        return x

    State = list[tuple[CausalLayer, Any]]
    """The layers with their states: asking the module for its layers at every turn takes longer than some of them."""

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        return [(layer, layer.start(n, shape, condition)) for layer in self._layers()]

    def row(self, state: State, row: int) -> None:
        for layer, part in state:
            layer.row(part, row)

    def context(self, state: State, sites: range) -> list[Any]:
        return [layer.context(part, sites) for layer, part in state]

    def step(self, state: State, context: list[Any], group: int) -> Tensor:
        layer, part = state[0]
        x = layer.step(part, context[0], group)
        for (layer, part), ready in zip(state[1:], context[1:], strict=True):
            layer.write(part, ready, x, group)
            x = layer.step(part, ready, group)
        return x

    def write(self, state: State, context: list[Any], x: Tensor, group: int) -> None:
        layer, part = state[0]
        layer.write(part, context[0], x, group)

    def _layers(self) -> list[CausalLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class Pointwise(CausalLayer):
    """A function of each feature alone, such as an activation.

    Arguments:
        function: Called on tensors of any shape.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], n_groups: int) -> None:
        super().__init__(n_groups)
        self.function = function

    @property
    def reach(self) -> float:
        return 0

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.function(x)

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> None:
        return None

    def context(self, state: None, sites: range) -> dict[int, Tensor]:
        return {}

    def step(self, state: None, context: dict[int, Tensor], group: int) -> Tensor:
        return self.function(context[group])

    def write(self, state: None, context: dict[int, Tensor], x: Tensor, group: int) -> None:
        context[group] = x


class SiteCache:
    """Features of the sites drawn so far, and of the earlier neighbours that a k x k kernel looks at.

    The features lie in a buffer padded with zeros, k // 2 columns on either side and as many rows above; nothing below
    a site is ever looked at. Evenly spaced sites are a strided view of it, so that no index tensor is needed.

    Arguments:
        leading: Sizes before that of the sites, such as (N,) or (layers, N).
        n_features: C.
        like: Gives dtype and device.
    """

    def __init__(
        self, leading: tuple[int, ...], n_features: int, kernel_size: int, shape: tuple[int, int], like: Tensor
    ) -> None:
        height, self.width = shape
        self.pad = kernel_size // 2
        self.row_length = self.width + 2 * self.pad
        self.buffer = like.new_zeros(*leading, (height + self.pad) * self.row_length, n_features)
        self.leading, self.n_features = leading, n_features
        *self.strides, self.along, _ = self.buffer.stride()

    def neighbours(self, sites: range, up: int, left: int, n: int) -> Tensor:
        """A view of n neighbours of each site, side by side `up` rows above, from `left` columns to the left.

        Returns:
            (..., S, n, C).
        """
        along, n_sites, row = self.along, len(sites), sites.start // self.width
        # Each row of the buffer is 2 * pad columns longer than one of sites.
        first = sites.start + (row + self.pad - up) * 2 * self.pad + (self.pad - up) * self.width + self.pad - left
        spacing = sites.step + 2 * self.pad * (sites[1] // self.width - row) if n_sites > 1 else 0
        return self.buffer.as_strided(
            (*self.leading, n_sites, n, self.n_features), (*self.strides, spacing * along, along, 1), first * along
        )

    def earlier(self, sites: range) -> Tensor:
        """Features of each site's earlier neighbours in the order of the kernel's taps, (..., S, T, C)."""
        rows = [self.neighbours(sites, up, self.pad, 2 * self.pad + 1) for up in range(self.pad, 0, -1)]
        return torch.cat([*rows, self.neighbours(sites, 0, self.pad, self.pad)], -2)

    def write(self, sites: range, x: Tensor) -> None:
        """Keeps the sites' own features, (..., S, C)."""
        self.neighbours(sites, 0, 0, 1).squeeze(-2).copy_(x)


class MaskedConv2d(CausalLayer):
    """A convolution that sees earlier sites and, at its own site, earlier channels (A) or up to its own (B).

    Arguments:
        in_channels: Divisible by n_groups, as is out_channels.
        kernel_size: Odd side of the kernel.
        mask_type: 'A' for the first layer of a network, which must not see what it predicts; 'B' for the others.
    Raises:
        InputError: If a number of channels is not divisible by n_groups, or the kernel's side is even.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, section 3.4 and fig. 2.
    """

    mask: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, mask_type: Literal["A", "B"], n_groups: int = 1
    ) -> None:
        super().__init__(n_groups)
        for name, value in {"in_channels": in_channels, "out_channels": out_channels}.items():
            if value < 1 or value % n_groups:
                raise InputError(f"{name} is {value}; it must be a multiple of {n_groups}, one group for each channel.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}; it must be odd.")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.mask_type = mask_type
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size)
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias  # PyTorch's own initialisation
        self.register_buffer("mask", self._mask(), persistent=False)

    def initialise(self, gain: float) -> None:
        """Draws weights under which outputs have `gain` times the mean square of the inputs, and biases of 0.

        A gain of 2 makes up for a ReLU at the inputs. PyTorch's own initialisation knows nothing of the mask.

        Source:
            He et al. 2015, arXiv:1502.01852, eq. 10.
        """
        n_seen = float(self.mask.sum()) / self.out_channels  # of the inputs' taps, by an output on average
        with torch.no_grad():
            self.weight.normal_(0, math.sqrt(gain / n_seen))
            self.bias.zero_()

    def _mask(self) -> Tensor:
        """1 for the taps the convolution may see, (C_out, C_in, k, k)."""
        middle = self.kernel_size // 2
        mask = torch.ones(self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        mask[:, :, middle, middle:] = 0
        mask[:, :, middle + 1 :] = 0
        for group in range(self.n_groups):
            mask[self._outputs(group), : self._n_seen(group), middle, middle] = 1
        return mask

    def _outputs(self, group: int) -> slice:
        """The output channels of a group."""
        size = self.out_channels // self.n_groups
        return slice(group * size, (group + 1) * size)

    def _inputs(self, group: int) -> slice:
        """The input channels of a group."""
        size = self.in_channels // self.n_groups
        return slice(group * size, (group + 1) * size)

    def _n_seen(self, group: int) -> int:
        """How many input channels of its own site an output group sees."""
        return (group + (self.mask_type == "B")) * (self.in_channels // self.n_groups)

    @property
    def reach(self) -> float:
        return self.kernel_size // 2

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.kernel_size // 2)

    def earlier_weight(self) -> Tensor:
        """The taps of earlier sites as a matrix, (T * C_in, C_out); rows as `SiteCache.earlier` has them, then C_in."""
        n_taps = self.kernel_size**2 // 2
        weight = self.weight.flatten(2)[:, :, :n_taps]  # (C_out, C_in, T)
        return weight.permute(2, 1, 0).reshape(n_taps * self.in_channels, self.out_channels).contiguous()

    def centre_weight(self, group: int) -> Tensor:
        """What an output group sees of its own site, (C_in seen, C_out / n_groups)."""
        middle = self.kernel_size // 2
        return self.weight[self._outputs(group), : self._n_seen(group), middle, middle].t().contiguous()

    @dataclass(frozen=True)
    class State:
        """What drawing keeps for all wavefronts."""

        cache: SiteCache | None
        """Inputs at earlier sites, (N, P, C_in); None for a 1x1 convolution, which looks at none."""
        earlier: Tensor
        """`earlier_weight()`."""
        own: list[tuple[slice, Tensor, Tensor]]
        """Of each group: where its outputs are, their bias, and `centre_weight()`."""

    @dataclass(frozen=True)
    class Context:
        """What drawing keeps for one wavefront."""

        sites: range
        y: Tensor | None
        """The output as far as earlier sites tell, (N * S, C_out); None for a 1x1 convolution."""
        x: list[Tensor]
        """The inputs at the sites as far as they are known, each (N, S, C_in / n_groups)."""

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        looks_back = self.kernel_size > 1
        cache = SiteCache((n,), self.in_channels, self.kernel_size, shape, self.weight) if looks_back else None
        outputs = [self._outputs(group) for group in range(self.n_groups)]
        own = [(part, self.bias[part], self.centre_weight(group)) for group, part in enumerate(outputs)]
        return self.State(cache, self.earlier_weight(), own)

    def context(self, state: State, sites: range) -> Context:
        if state.cache is None:
            return self.Context(sites, None, [])
        seen = state.cache.earlier(sites).view(-1, len(state.earlier))  # (N * S, T * C_in)
        return self.Context(sites, torch.addmm(self.bias, seen, state.earlier), [])

    def step(self, state: State, context: Context, group: int) -> Tensor:
        part, bias, centre = state.own[group]
        y = bias if context.y is None else context.y[:, part]
        if len(centre):
            seen = context.x[0] if group == 0 else torch.cat(context.x[: group + (self.mask_type == "B")], -1)
            y = torch.addmm(y, seen.flatten(0, 1), centre)
        return y.view(-1, len(context.sites), y.shape[1])  # (N, S, C_out / n_groups)

    def write(self, state: State, context: Context, x: Tensor, group: int) -> None:
        context.x.append(x)
        if group == self.n_groups - 1 and state.cache is not None:
            state.cache.write(context.sites, x if group == 0 else torch.cat(context.x, -1))


class ResidualBlock(nn.Module):
    """x + (1x1 to 2h) ReLU (3x3, h) ReLU (1x1 to h) ReLU x, all convolutions of type B.

    Arguments:
        hidden: h; the block's input and output have 2h features.
        n_condition: Features of the condition, which is added as a bias to the 3x3 convolution; 0 for none.
        dropout: Probability with which a feature after the 3x3 convolution is zeroed in training.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, fig. 5 (left). Differs: a condition, as
        in van den Oord et al. 2016, arXiv:1606.05328, eq. 3; dropout, as small data sets need.
    """

    def __init__(self, hidden: int, n_groups: int, n_condition: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.reduce = MaskedConv2d(2 * hidden, hidden, 1, "B", n_groups)
        self.look = MaskedConv2d(hidden, hidden, 3, "B", n_groups)
        self.expand = MaskedConv2d(hidden, 2 * hidden, 1, "B", n_groups)
        self.condition = nn.Linear(n_condition, hidden, bias=False) if n_condition else None
        self.dropout = parallel.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = self.look(self.reduce(x.relu()).relu())  # (N, h, H, W)
        if self.condition is not None and condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        return x + self.expand(self.dropout(y.relu()))  # (N, 2h, H, W)


class ResidualStack(CausalLayer):
    """Residual blocks one after another.

    One layer of the protocol rather than a sequence of blocks, because the blocks' earlier taps all have one shape:
    drawing looks them up for all blocks at once, and takes one batched product, before the chain of blocks begins.

    Arguments:
        hidden: h; input and output have 2h features. Divisible by n_groups.
        n_blocks: Number of blocks, at least 1.
        n_condition, dropout: As in `ResidualBlock`.
    """

    def __init__(
        self, hidden: int, n_blocks: int, n_groups: int = 1, *, n_condition: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(n_groups)
        self.hidden = hidden
        self.blocks = nn.ModuleList(ResidualBlock(hidden, n_groups, n_condition, dropout) for _ in range(n_blocks))
        for block in self._blocks():
            block.reduce.initialise(2)
            block.look.initialise(2)
            block.expand.initialise(2 / n_blocks)  # so that a deep stack starts no wilder than a flat one

    @property
    def reach(self) -> float:
        return 1

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # 1x1 convolutions are then products: twice as fast on CPU
        for block in self.blocks:
            x = block(x, condition)
        return x

    @dataclass(frozen=True)
    class State:
        """What drawing keeps for all wavefronts. L is the number of blocks."""

        cache: SiteCache
        """Inputs of the 3x3 convolutions at earlier sites, (L, N, P, h)."""
        earlier: Tensor
        """Their earlier taps, (L, T * h, h)."""
        bias: Tensor
        """Their biases with the condition's, (L, N or 1, 1, h)."""
        reduce_bias: Tensor
        """Biases of `reduce`, (L, 1, h)."""
        products: list[list[tuple[Tensor, ...]]]
        """Of each group and block: least inputs and weights of `reduce`, weights of `look` and `expand`."""
        last_bias: list[Tensor]
        """Of each group: what is still to be added to the last block's output, (2h / n_groups,)."""
        buffers: dict[int, ResidualStack.Buffers]
        """By the number of sites: wavefronts of one size use the same memory."""

    @dataclass(frozen=True)
    class Buffers:
        """Memory for one wavefront, completed in place, group by group."""

        bias: Tensor
        """`State.bias` for every row, (L, N * S, h)."""
        look: Tensor
        """Inputs of `look`, begun with the biases of `reduce`, (L, N * S, h)."""
        narrow: Tensor
        """Inputs of `expand`, begun with the outputs of `look` as far as earlier sites tell, (L, N * S, h)."""
        views: list[list[tuple[Tensor, ...]]]
        """Of each group and block: own and seen features of the inputs of `reduce`, of `look` and of `narrow`."""

    @dataclass(frozen=True)
    class Context:
        """What drawing keeps for one wavefront."""

        sites: range
        x: list[Tensor]
        """The stack's input of the group at hand, (N * S, 2h / n_groups)."""
        buffers: ResidualStack.Buffers

    def _blocks(self) -> list[ResidualBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        blocks = self._blocks()
        like = blocks[0].look.weight
        bias = torch.stack([block.look.bias for block in blocks])[:, None]  # (L, 1, h)
        if condition is not None and blocks[0].condition is not None:
            bias = bias + torch.stack([block.condition(condition) for block in blocks if block.condition is not None])
        # The biases of `expand` are left out of the running sum x, and so add up: with b their sum so far, what
        # `reduce` reads is relu(x + b) = max(x, -b) + b. One call the less in each block.
        products: list[list[tuple[Tensor, ...]]] = [[] for _ in range(self.n_groups)]
        reduce_bias = []
        left_out = like.new_zeros(2 * self.hidden)
        for block in blocks:
            weight = (block.reduce.weight * block.reduce.mask).flatten(1)  # (h, 2h)
            reduce_bias.append(torch.addmv(block.reduce.bias, weight, left_out))
            for group, least in enumerate((-left_out).chunk(self.n_groups)):
                weights = (layer.centre_weight(group) for layer in (block.reduce, block.look, block.expand))
                products[group].append((least, *weights))
            left_out = left_out + block.expand.bias
        cache = SiteCache((len(blocks), n), self.hidden, 3, shape, like)
        earlier = torch.stack([block.look.earlier_weight() for block in blocks])
        last_bias = list(left_out.chunk(self.n_groups))
        return self.State(cache, earlier, bias[:, :, None], torch.stack(reduce_bias)[:, None], products, last_bias, {})

    def _memory_for(self, state: State, n_sites: int) -> Buffers:
        if n_sites not in state.buffers:
            n_blocks, n, _, hidden = state.cache.buffer.shape
            bias = state.bias.expand(n_blocks, n, n_sites, hidden).reshape(n_blocks, n * n_sites, hidden)
            wide = bias.new_empty(n_blocks, n * n_sites, 2 * hidden)
            look, narrow = torch.empty_like(bias), torch.empty_like(bias)
            views = [
                list(zip(*(part for x in (wide, look, narrow) for part in self._own_and_seen(x, group)), strict=True))
                for group in range(self.n_groups)
            ]
            state.buffers[n_sites] = self.Buffers(bias, look, narrow, views)
        return state.buffers[n_sites]

    def context(self, state: State, sites: range) -> Context:
        buffers = self._memory_for(state, len(sites))
        n_blocks, n_rows, _ = buffers.bias.shape
        seen = state.cache.earlier(sites).view(n_blocks, n_rows, state.earlier.shape[1])
        torch.baddbmm(buffers.bias, seen, state.earlier, out=buffers.narrow)
        buffers.look.copy_(state.reduce_bias)
        return self.Context(sites, [], buffers)

    def step(self, state: State, context: Context, group: int) -> Tensor:
        x = context.x.pop().clone()  # (N * S, 2h / n_groups)
        for (least, reduce, centre, expand), (wide, wide_seen, look, look_seen, narrow, narrow_seen) in zip(
            state.products[group], context.buffers.views[group], strict=True
        ):
            torch.maximum(x, least, out=wide)
            look.addmm_(wide_seen, reduce).relu_()
            narrow.addmm_(look_seen, centre).relu_()
            x.addmm_(narrow_seen, expand)
        n_sites = len(context.sites)
        if group == self.n_groups - 1:
            state.cache.write(context.sites, context.buffers.look.unflatten(1, (-1, n_sites)))
        return (x + state.last_bias[group]).view(-1, n_sites, x.shape[1])  # (N, S, 2h / n_groups)

    def _own_and_seen(self, buffer: Tensor, group: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Views of a buffer, (L, N * S, features), for each block: a group's features, and those up to it."""
        if self.n_groups == 1:
            views = buffer.unbind()
            return views, views
        size = buffer.shape[2] // self.n_groups
        return buffer.narrow(2, group * size, size).unbind(), buffer.narrow(2, 0, (group + 1) * size).unbind()

    def write(self, state: State, context: Context, x: Tensor, group: int) -> None:
        context.x.append(x.flatten(0, 1))
