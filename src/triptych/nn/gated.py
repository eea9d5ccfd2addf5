"""The two stacks of the Gated PixelCNN: one sees all rows above, the other the row at hand, and neither has a blind
spot. Drawing computes the first once a row, for all columns, and only the second site by site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.nn.causal import CausalLayer

INNER_KERNEL = 3
"""Side of the kernels of all layers but the first."""


class Gate(nn.Module):
    """tanh(a) * sigmoid(b) of features [a, b], (N, 2p, H, W), to (N, p, H, W).

    Source:
        van den Oord et al. 2016, arXiv:1606.05328, eq. 2. Differs: tanh(a) = 1 - 2 sigmoid(-2a), since the one is
        several times slower than the other on CPUs.
    """

    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        scale = torch.cat([torch.full((features,), -2.0), torch.ones(features)])
        self.register_buffer("scale", scale, persistent=False)  # (2p,)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):  # 1 - 2 sigmoid(-2a) keeps few bits where a is small.
            a, b = x.chunk(2, 1)
            return a.tanh() * b.sigmoid()
        a, b = (x * self.scale[:, None, None]).sigmoid_().chunk(2, 1)
        return torch.addcmul(b, a, b, value=-2)


class RowConv2d(nn.Module):
    """A convolution along the row: some sites to the left and, as far as its mask lets it, the site itself.

    Features of several parts have the groups of channels in each part.

    Arguments:
        n_left: How many sites to the left it sees; 0 for a 1x1 convolution.
        mask_type: At its own site it sees the channels before (A), or up to its own (B).
        parts: Of the inputs and of the outputs; inputs are divisible by their parts times n_groups, outputs too.
    Source:
        van den Oord et al. 2016, arXiv:1606.05328, section 2.2. Taps that no output sees are left out.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_left: int,
        mask_type: Literal["A", "B"],
        n_groups: int,
        *,
        parts: tuple[int, int] = (1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.n_left, self.n_groups, self.parts = n_left, n_groups, parts
        self.sees_own = mask_type == "B" or n_groups > 1
        convolution = nn.Conv2d(in_channels, out_channels, (1, n_left + self.sees_own), bias=bias)
        self.weight, self.bias = convolution.weight, convolution.bias
        mask = None
        if n_groups > 1:
            mask = torch.ones_like(self.weight, requires_grad=False)
            own, other = self._groups(out_channels, parts[1])[:, None], self._groups(in_channels, parts[0])
            mask[:, :, 0, n_left] = other < own if mask_type == "A" else other <= own
        self.register_buffer("mask", mask, persistent=False)
        self.n_seen = [  # inputs at the site itself: all that come before the first that the group does not see
            in_channels * self.sees_own if parts[0] > 1 else (group + (mask_type == "B")) * (in_channels // n_groups)
            for group in range(n_groups)
        ]

    def _groups(self, channels: int, parts: int) -> Tensor:
        """The group of each feature, (channels,)."""
        size = channels // (parts * self.n_groups)
        return torch.arange(self.n_groups).repeat_interleave(size).repeat(parts)

    def forward(self, x: Tensor) -> Tensor:
        if self.n_left:
            x = F.pad(x, (self.n_left, 0 if self.sees_own else -1))  # (N, C_in, H, n_left + W or one less)
        return F.conv2d(x, self.weight if self.mask is None else self.weight * self.mask, self.bias)

    def outputs(self, group: int) -> Tensor:
        """The output features of a group, int64, (C_out / n_groups,)."""
        return (self._groups(self.weight.shape[0], self.parts[1]) == group).nonzero().flatten().to(self.weight.device)

    def matrix(self, group: int) -> Tensor:
        """What a group makes of the sites from the left to its own, one after the other: (inputs, C_out / n_groups).

        The inputs end with the last one at the site itself that the group sees.
        """
        weight = self.weight if self.mask is None else self.weight * self.mask  # (C_out, C_in, 1, taps)
        rows = weight[self.outputs(group)].flatten(2).permute(2, 1, 0).flatten(0, 1)  # (taps * C_in, outputs)
        return rows[: self.n_left * self.weight.shape[1] + self.n_seen[group]].contiguous()


class GatedLayer(nn.Module):
    """A layer of both stacks: the gated convolution of each, and what the one tells the other.

    Arguments:
        in_channels: Features of the layer's inputs, in n_groups groups.
        features: p, of its outputs; the gates take 2p.
        n_condition: Features of the condition, a bias inside the gates; 0 for none.
        is_first: The first layer of a network: the stack above sees strictly earlier rows, that of the row strictly
            earlier sub-pixels, and there is no residual connection.
        is_last: The last layer: its stacks end, only its gate is read.
    Source:
        van den Oord et al. 2016, arXiv:1606.05328, fig. 2 and eq. 4.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        kernel_size: int,
        n_groups: int,
        *,
        n_condition: int = 0,
        dropout: float = 0.0,
        is_first: bool = False,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.reach, self.is_first = reach, is_first
        self.vertical = nn.Conv2d(in_channels, 2 * features, (reach + (not is_first), kernel_size), padding=(0, reach))
        self.down = nn.Conv2d(2 * features, 2 * features, 1)
        mask_type: Literal["A", "B"] = "A" if is_first else "B"
        self.horizontal = RowConv2d(in_channels, 2 * features, reach, mask_type, n_groups, parts=(1, 2), bias=False)
        self.gate = Gate(features)
        self.dropout = parallel.Dropout(dropout)
        self.horizontal_condition = nn.Linear(n_condition, 2 * features, bias=False) if n_condition else None
        # Where the stacks end, nothing would read these.
        self.vertical_condition = (
            nn.Linear(n_condition, 2 * features, bias=False) if n_condition and not is_last else None
        )
        self.residual = None if is_last else RowConv2d(features, features, 0, "B", n_groups, bias=False)

    def forward(self, above: Tensor, row: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The next layer's inputs of the stack above and of the row's, and the gated features: each (N, p, H, W).

        The stack above of a row knows of strictly earlier rows; so the first layer's convolution lies a row higher.
        """
        y = self.vertical(F.pad(above, (0, 0, self.reach, -1 if self.is_first else 0)))  # (N, 2p, H, W)
        y = y.contiguous(memory_format=torch.channels_last)
        z = self.down(y).add_(self.horizontal(row))
        if condition is not None and self.horizontal_condition is not None:
            z = z.add_(self.horizontal_condition(condition)[:, :, None, None])
        gated = self.dropout(self.gate(z))
        if self.residual is None:
            return above, row, gated
        if condition is not None and self.vertical_condition is not None:
            y = y + self.vertical_condition(condition)[:, :, None, None]
        step = self.residual(gated)
        return self.gate(y), step if self.is_first else step.add_(row), gated


class Link(NamedTuple):
    """What drawing does at one layer for one group of one column, N images at a time; q is p / n_groups."""

    seen: Tensor
    """Inputs from the left to the site itself, (N, inputs)."""
    weight: Tensor
    """(inputs, 2q)."""
    y: Tensor
    """What enters the gate, begun with what the rows above say, (N, 2q)."""
    a: Tensor
    b: Tensor
    """The halves of y, (N, q)."""
    gated: Tensor
    """Where the gate's output goes, (N, q)."""
    gated_seen: Tensor
    """The gate's outputs up to this group, (N, features)."""
    residual: Tensor
    """(features, q)."""
    x: Tensor
    """The layer's input of the group, (N, q)."""
    following: Tensor
    """Where the next layer's input of the group goes, (N, q)."""


class GatedStacks(CausalLayer):
    """Gated layers from pixels to features, skip connections from each to the output, and two 1x1 convolutions there.

    One layer of the protocol rather than a sequence: drawing computes the stack above for all layers when a row begins,
    and then takes each site through the layers of the row's stack with four operations a layer.

    Arguments:
        in_channels, out_channels: Divisible by n_groups, as is features.
        features: p, of both stacks.
        n_layers: Gated layers, at least 1.
        kernel_size: Side of the first layer's kernel, odd, at least 3; the others' is 3.
        n_condition: Features of the condition, which biases the gates of both stacks; 0 for none.
        dropout: Probability with which a gated feature of the row's stack is zeroed in training.
    Raises:
        InputError: If a number of channels is not divisible by n_groups.
    Source:
        van den Oord et al. 2016, arXiv:1606.05328, section 2 and fig. 2; the skip connections are those of van den
        Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        out_channels: int,
        n_layers: int,
        kernel_size: int,
        n_groups: int = 1,
        *,
        n_condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(n_groups)
        sizes = {"in_channels": in_channels, "features": features, "out_channels": out_channels}
        for name, value in sizes.items():
            if value < 1 or value % n_groups:
                raise InputError(f"{name} is {value}; it must be a multiple of {n_groups}, one group for each channel.")
        self.features = features
        self.layers = nn.ModuleList(
            GatedLayer(
                features if layer else in_channels,
                features,
                INNER_KERNEL if layer else kernel_size,
                n_groups,
                n_condition=n_condition,
                dropout=dropout,
                is_first=layer == 0,
                is_last=layer == n_layers - 1,
            )
            for layer in range(n_layers)
        )
        # The sum of the layers' skip connections, as one product.
        self.skip = RowConv2d(n_layers * features, features, 0, "B", n_groups, parts=(n_layers, 1))
        self.widen = RowConv2d(features, features, 0, "B", n_groups)
        self.output = RowConv2d(features, out_channels, 0, "B", n_groups)
        # PyTorch's own initialisation takes two thirds of the variance at each layer, and gates so small learn slowly.
        # It stays at the output, so that the first predictions are not too sure.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | RowConv2d) and module is not self.output:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")

    @property
    def reach(self) -> float:
        return math.inf

    def _layers(self) -> list[GatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # 1x1 convolutions are then products: twice as fast on CPU
        above, row, skipped = x, x, []
        for layer in self._layers():
            above, row, gated = layer(above, row, condition)
            skipped.append(gated)
        x = self.skip(torch.cat(skipped, 1)).relu_()  # (N, p, H, W)
        return self.output(self.widen(x).relu_())

    class Above(NamedTuple):
        """What drawing needs of a layer's stack above; its features are scaled as the gate takes them."""

        x: Tensor
        """The layer's input in the rows it looks at, zeros on either side, (N, C_in, rows, W + k - 1)."""
        weight: Tensor
        bias: Tensor
        down: Tensor
        """(2p, 2p)."""
        down_bias: Tensor
        condition: Tensor | None
        """What the condition adds inside this gate, (N, 1, 2p)."""
        row_condition: Tensor | None
        """What it adds inside the gate of the row's stack, (N, 1, 2p)."""
        y: Tensor
        """What the row's stack is told, group by group, (N, W, 2p)."""
        following: Tensor
        """Where the next layer's input in this row goes, (N, W, p)."""

    @dataclass(frozen=True)
    class Column:
        """What drawing needs of a column, prepared once for all rows."""

        chains: list[list[Link]]
        """Of each group and layer."""
        pixel: list[Tensor]
        """Where each group of the network's input goes, (N, 1, C_in / n_groups)."""

    @dataclass
    class State:
        """What drawing keeps. Sites come in raster order, so that it need not be told which one is next."""

        above: list[GatedStacks.Above]
        columns: list[GatedStacks.Column]
        pixels: Tensor
        """The network's inputs in the rows above, (N, rows, W + k - 1, C_in)."""
        row_pixels: Tensor
        """Those of the row at hand, (N, W, C_in)."""
        rows: Tensor
        """Inputs of the other layers' stacks above in the last row and in this one, (L - 1, N, 2, W + 2, p)."""
        gated: Tensor
        """Gated features of a site, (N, L * p)."""
        ends: list[list[tuple[Tensor, Tensor, Tensor]]]
        """Of each group and each convolution at the output: its inputs, (N, inputs), weight and bias."""
        hidden: list[list[Tensor]]
        """Of each group, where the outputs of these convolutions but the last go, (N, p / n_groups)."""
        row: int = -1
        """The row that the stack above is computed for."""

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        layers, p, width = self._layers(), self.features, shape[1]
        like = self.skip.weight
        first = layers[0]
        in_channels = first.vertical.in_channels
        pixels = like.new_zeros(n, first.reach, width + 2 * first.reach, in_channels)
        rows = like.new_zeros(len(layers) - 1, n, 2, width + 2, p)
        told = like.new_zeros(len(layers), n, width, 2 * p)
        lefts = [like.new_zeros(n, first.reach + width, in_channels)]
        lefts += [like.new_zeros(n, 1 + width, p) for _ in layers[1:]]
        gated = like.new_zeros(n, len(layers) * p)
        above = self._above(pixels, rows, told, condition)
        columns = self._columns(lefts, told, gated)
        hidden = like.new_zeros(2, n, p)
        ends: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for group in range(self.n_groups):
            ends.append([])
            for convolution, x in ((self.skip, gated), (self.widen, hidden[0]), (self.output, hidden[1])):
                assert convolution.bias is not None
                bias = convolution.bias[convolution.outputs(group)]
                ends[-1].append((x[:, : convolution.n_seen[group]], convolution.matrix(group), bias))
        return self.State(
            above,
            columns,
            pixels,
            lefts[0][:, first.reach :],
            rows,
            gated,
            ends,
            [list(part.unbind()) for part in hidden.chunk(self.n_groups, 2)],
        )

    def _above(self, pixels: Tensor, rows: Tensor, told: Tensor, condition: Tensor | None) -> list[Above]:
        """The stack above of each layer."""
        result = []
        for index, layer in enumerate(self._layers()):
            scale = layer.gate.scale
            order = torch.cat([layer.horizontal.outputs(group) for group in range(self.n_groups)])
            x = rows[index - 1] if index else pixels  # (N, rows, W + k - 1, C_in)
            assert layer.vertical.bias is not None
            assert layer.down.bias is not None
            down = layer.down.weight.flatten(1) * scale[:, None] / scale  # (2p, 2p)
            of_above, of_row = (
                None if condition is None or linear is None else (linear(condition) * scale)[:, None]
                for linear in (layer.vertical_condition, layer.horizontal_condition)
            )
            following = rows[index, :, 1, 1:-1] if index < len(rows) else rows.new_empty(0)
            result.append(
                self.Above(
                    x.permute(0, 3, 1, 2),
                    # Laid out as the inputs are, or it would be laid out anew for each row.
                    (layer.vertical.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last),
                    layer.vertical.bias * scale,
                    down[order].t().contiguous(),
                    (layer.down.bias * scale)[order],
                    of_above,
                    None if of_row is None else of_row[:, :, order],
                    told[index],
                    following,
                )
            )
        return result

    def _columns(self, lefts: Sequence[Tensor], told: Tensor, gated: Tensor) -> list[Column]:
        """Views of the buffers, and weights, in the order in which each column needs them."""
        n, width = told.shape[1:3]
        q = self.features // self.n_groups
        nothing = gated.new_zeros(n, q)
        chains: list[list[list[Link]]] = [[[] for _ in range(self.n_groups)] for _ in range(width)]
        for group in range(self.n_groups):
            own = slice(q * group, q * (group + 1))
            x = (nothing,) * width
            following = x
            for index, layer in enumerate(self._layers()):
                scale = layer.gate.scale[layer.horizontal.outputs(group)]
                weight = layer.horizontal.matrix(group) * scale
                residual = nothing if layer.residual is None else layer.residual.matrix(group)
                # A window for each column, and then a few without all their sites.
                seen = lefts[index].flatten(1).unfold(1, len(weight), lefts[index].shape[2]).unbind(1)[:width]
                y = told[index, :, :, 2 * q * group : 2 * q * (group + 1)]
                if index + 1 < len(lefts):
                    following = lefts[index + 1][:, 1:, own].unbind(1)
                columns = zip(seen, y.unbind(1), *(half.unbind(1) for half in y.chunk(2, 2)), x, following, strict=True)
                of_layer = gated.unflatten(1, (len(lefts), self.features))[:, index]  # (N, p)
                of_group, up_to_group = of_layer[:, own], of_layer[:, : own.stop]
                for chain, (left, all_y, a, b, here, there) in zip(chains, columns, strict=True):
                    chain[group].append(Link(left, weight, all_y, a, b, of_group, up_to_group, residual, here, there))
                x = following
        pixels = [part.split(1, 1)[-width:] for part in lefts[0].chunk(self.n_groups, 2)]
        return [self.Column(*parts) for parts in zip(chains, map(list, zip(*pixels, strict=True)), strict=True)]

    def row(self, state: State, row: int) -> None:
        if row:
            state.pixels[:, :-1] = state.pixels[:, 1:].clone()
            pad = (state.pixels.shape[2] - state.row_pixels.shape[1]) // 2
            state.pixels[:, -1, pad : pad + state.row_pixels.shape[1]] = state.row_pixels
            state.rows[:, :, 0] = state.rows[:, :, 1]
        for layer in state.above:
            y = F.conv2d(layer.x, layer.weight, layer.bias).permute(0, 2, 3, 1).flatten(0, 2)  # (N * W, 2p)
            torch.addmm(layer.down_bias, y, layer.down, out=layer.y.view_as(y))
            if layer.row_condition is not None:
                layer.y.add_(layer.row_condition)
            if len(layer.following):
                y = y.unflatten(0, layer.y.shape[:2])  # (N, W, 2p)
                if layer.condition is not None:
                    y.add_(layer.condition)
                a, b = y.sigmoid_().chunk(2, 2)
                torch.addcmul(b, a, b, value=-2, out=layer.following)
        state.row = row

    def context(self, state: State, sites: range) -> Column:
        row, column = divmod(sites[0], len(state.columns))
        if row != state.row:
            self.row(state, row)
        return state.columns[column]

    def step(self, state: State, context: Column, group: int) -> Tensor:
        *inner, last = context.chains[group]
        for seen, weight, y, a, b, gated, gated_seen, residual, x, following in inner:
            y.addmm_(seen, weight).sigmoid_()
            torch.addcmul(b, a, b, value=-2, out=gated)
            torch.addmm(x, gated_seen, residual, out=following)
        last.y.addmm_(last.seen, last.weight).sigmoid_()
        torch.addcmul(last.b, last.a, last.b, value=-2, out=last.gated)
        *hidden, (seen, weight, bias) = state.ends[group]
        for (before, matrix, offset), after in zip(hidden, state.hidden[group], strict=True):
            torch.addmm(offset, before, matrix, out=after).relu_()
        return torch.addmm(bias, seen, weight).unsqueeze(1)  # (N, 1, C_out / n_groups)

    def write(self, state: State, context: Column, x: Tensor, group: int) -> None:
        context.pixel[group].copy_(x)
