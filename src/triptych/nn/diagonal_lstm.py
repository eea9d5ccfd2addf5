"""The Diagonal BiLSTM: two LSTMs over an image that scan it diagonal by diagonal and see all that came before.

A cell's states come from the sites to its left and above it, so that all sites of one diagonal (row + column = j) are
independent of each other: one step of the scan takes them all, and an image has H + W - 1 steps. This is the paper's
skewed map, whose rows are offset by one column each, without the padding that the offset leaves: sites are kept in the
order of the diagonals, and a step works on a slice. The scan from right to left is the same scan of the mirrored image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.nn.causal import CausalLayer, MaskedConv2d
from triptych.nn.lstm import lstm_cell


class Turn(NamedTuple):
    """One diagonal; its sites are counted from the top right to the bottom left."""

    n_sites: int
    skip: int
    """1 where the row at the top has come to its end, else 0: the left neighbour of a diagonal's site k is site
    k + skip of the diagonal before, and its neighbour above the site before that one."""


@dataclass(frozen=True)
class Diagonals:
    """The order of both scans: by diagonals, then the scan from the left before the one from the right, then by rows.

    So each diagonal is in one piece, (2, sites, ...), without padding. S = H * W sites make 2 S positions.
    """

    turns: tuple[Turn, ...]
    order: Tensor
    """The site (row * W + column) of each position, int64, (2 S,)."""
    from_left: Tensor
    """The position of each site in the scan from the left, int64, (S,)."""
    from_right: Tensor
    """The position of each site in the scan from the right, int64, (S,)."""
    width: int
    """W."""

    @staticmethod
    def of(shape: tuple[int, int], device: torch.device) -> Diagonals:
        height, width = shape
        turns: list[Turn] = []
        for diagonal in range(height + width - 1):
            first, last = max(0, diagonal - width + 1), min(diagonal, height - 1)
            turns.append(Turn(last - first + 1, int(first > 0)))
        rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        from_left = 2 * (rows + columns) * height + rows  # in the right order, but not yet without gaps
        from_right = 2 * (rows + width - 1 - columns) * height + height + rows
        order = torch.cat([from_left.flatten(), from_right.flatten()]).argsort()  # (2 S,)
        left_positions, right_positions = order.argsort().chunk(2)
        return Diagonals(tuple(turns), order % (height * width), left_positions, right_positions, width)

    def split(self, x: Tensor) -> list[Tensor]:
        """Views of x, (2 S, N, features): of each diagonal, (2, sites, N, features)."""
        parts = x.split([2 * turn.n_sites for turn in self.turns])
        return [part.unflatten(0, (2, -1)) for part in parts]


def scan(x: Tensor, bias: Tensor, weight: Tensor, diagonals: Diagonals) -> Tensor:
    """Runs both scans at once.

    o, f, i = sigmoid, g = tanh of (bias + weight [x, h_left, h_above]);
    c = f c_left + i g;  h = o tanh(c); states outside of the image are 0.

    Arguments:
        x: Inputs in the order of the diagonals, (2 S, N, C).
        bias: Of the gates, in the order o, f, i, g, (2, N or 1, 4h).
        weight: From the input, the state on the left (or right), and the state above, (2, C + 2h, 4h).
    Returns:
        h in the order of the diagonals, (2 S, N, h).
    """
    n, hidden = x.shape[1], weight.shape[2] // 4
    h = c = x.new_zeros(2, 0, n, hidden)  # of the diagonal before
    states: list[Tensor] = []
    for (n_sites, skip), inputs in zip(diagonals.turns, diagonals.split(x), strict=True):
        # An empty site before the first and after the last stands for the outside of the image.
        h, c = F.pad(h, (0, 0, 0, 0, 1, 1)), F.pad(c, (0, 0, 0, 0, 1, 1))
        above, left = slice(skip, skip + n_sites), slice(skip + 1, skip + 1 + n_sites)
        seen = torch.cat([inputs, h[:, left], h[:, above]], -1)  # (2, sites, N, C + 2h)
        gates = torch.bmm(seen.flatten(1, 2), weight).unflatten(1, (n_sites, n)) + bias[:, None]
        h, c = lstm_cell(gates.unflatten(-1, (4, hidden)), c[:, left])  # (2, sites, N, h) each
        states.append(h.flatten(0, 1))
    return torch.cat(states)


class DiagonalBiLSTM(nn.Module):
    """One layer: x + (1x1 to 2h)(LSTM from the left + LSTM from the right, a row later).

    Arguments:
        hidden: h, features of a state; the layer's input and output have 2h. Divisible by n_groups.
        n_condition: Features of the condition, which is added as a bias to the gates; 0 for none.
        dropout: Probability with which a feature of the LSTMs' output is zeroed in training.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, sections 3.2 and 3.3, eq. 3, figs. 3 and 5
        (right), table 1. Differs: a condition, as in van den Oord et al. 2016, arXiv:1606.05328, eq. 3; dropout, as
        small data sets need; the biases of the forget gates begin at 1.
    """

    def __init__(self, hidden: int, n_groups: int = 1, n_condition: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.n_groups = hidden, n_groups
        # Output features in the order: group, direction, gate, feature of the group.
        self.input_to_state = MaskedConv2d(2 * hidden, 8 * hidden, 1, "B", n_groups)
        bound = (2 * hidden) ** -0.5
        # Of the neighbours on the left (or right) and above. No mask: what has been at those sites is all in the past.
        self.state_to_state = nn.Parameter(torch.empty(2, 2, hidden, 4 * hidden).uniform_(-bound, bound))
        self.condition = nn.Linear(n_condition, 8 * hidden, bias=False) if n_condition else None
        self.expand = MaskedConv2d(hidden, 2 * hidden, 1, "B", n_groups)
        self.dropout = parallel.Dropout(dropout, dim=1)
        with torch.no_grad():  # A forget gate that is open lets gradients through from the beginning.
            self.input_to_state.bias.view(n_groups, 2, 4, -1)[:, :, 1] = 1

    def _in_order(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From the features of `input_to_state`'s output, (..., 8h), to those of the gates.

        Returns:
            For the scan from the left and the one from the right, in the order gate, group, feature, (..., 4h).
        """
        x = x.unflatten(-1, (self.n_groups, 2, 4, -1)).movedim(-4, -2)  # (..., 2, 4, G, h / G)
        return x[..., 0, :, :, :].flatten(-3), x[..., 1, :, :, :].flatten(-3)

    def input_weight(self) -> Tensor:
        """From the layer's input to the gates of either scan, (2, 2h, 4h)."""
        weight = self.input_to_state.weight * self.input_to_state.mask  # (8h, 2h, 1, 1)
        return torch.stack(self._in_order(weight.flatten(1).t()))

    def gate_bias(self, condition: Tensor | None) -> Tensor:
        """Biases of the gates of either scan, (2, N or 1, 4h)."""
        bias = self.input_to_state.bias[None]  # (1, 8h)
        if self.condition is not None and condition is not None:
            bias = bias + self.condition(condition)  # (N, 8h)
        return torch.stack(self._in_order(bias))

    def forward(self, x: Tensor, diagonals: Diagonals, condition: Tensor | None = None) -> Tensor:
        """The whole image at once.

        Arguments:
            x: Sites in raster order, (S, N, 2h).
            condition: (N, n_condition), or None.
        Returns:
            Of the same order and shape.
        """
        weight = torch.cat([self.input_weight(), self.state_to_state.flatten(1, 2)], 1)  # (2, 4h, 4h)
        with torch.autocast(x.device.type, enabled=False):  # Rounding errors would grow along the scan.
            inputs = x.to(weight.dtype).index_select(0, diagonals.order)
            h = scan(inputs, self.gate_bias(condition), weight, diagonals)  # (2 S, N, h)
        # What the scan from the right gives at a site has seen all of the site's row, and is told to the row below.
        from_right = h.index_select(0, diagonals.from_right[: -diagonals.width])
        y = h.index_select(0, diagonals.from_left) + F.pad(from_right, (0, 0, 0, 0, diagonals.width, 0))
        return x + F.linear(self.dropout(y), (self.expand.weight * self.expand.mask).flatten(1), self.expand.bias)


class DiagonalBiLSTMStack(CausalLayer):
    """Layers of `DiagonalBiLSTM` one after another.

    One layer of the protocol, because drawing then scans the row above from the right for all layers at once: their
    inputs in that row are all known.

    Arguments:
        hidden: h; input and output have 2h features. Divisible by n_groups.
        n_layers: At least 1.
        n_condition, dropout: As in `DiagonalBiLSTM`.
    """

    def __init__(
        self, hidden: int, n_layers: int, n_groups: int = 1, *, n_condition: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(n_groups)
        self.hidden = hidden
        self.layers = nn.ModuleList(DiagonalBiLSTM(hidden, n_groups, n_condition, dropout) for _ in range(n_layers))

    @property
    def reach(self) -> float:
        return math.inf

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        height, width = x.shape[2:]
        diagonals = Diagonals.of((height, width), x.device)
        x = x.flatten(2).permute(2, 0, 1).contiguous()  # (S, N, 2h)
        for layer in self.layers:
            x = layer(x, diagonals, condition)
        x = x.transpose(0, 1).contiguous()  # (N, S, 2h)
        return x.transpose(1, 2).unflatten(2, (height, width))  # channels last, as 1x1 convolutions like it

    @dataclass
    class State:
        """What drawing keeps. L is the number of layers; 'left' and 'right' say where a scan begins.

        Features of the scan from the left are in the order group, gate, feature, so that a group's gates are together.
        """

        ready: int
        """The row for which `waiting` and `told` hold; -1 for none."""
        x: Tensor
        """Inputs of each layer, and the output of the last, in the row at hand, (W, L + 1, N, 2h)."""
        left_h: Tensor
        """States of the scan from the left in the row at hand; ahead of the site, in the row above, (W, L, N, h)."""
        left_c: Tensor
        """Its cells at the site on the left, (L, N, h)."""
        right_h: Tensor
        """States of the scan from the right in the row above, (W, L, N, h)."""
        waiting: Tensor
        """Gates of the scan from the left in the row at hand, as far as the row above tells, (W, L, N, 4h)."""
        told: Tensor
        """The layers' outputs in the row at hand, as far as the scan from the right tells, (W, L, N, 2h)."""
        left_bias: Tensor
        """(L, N or 1, 4h)."""
        right_bias: Tensor
        """(L, N or 1, 4h)."""
        left_weights: tuple[Tensor, Tensor]
        """From the states on the left and above to the gates of the scan from the left, (L, h, 4h)."""
        right_weights: tuple[Tensor, Tensor, Tensor]
        """From the inputs, and the states on the right and above, to the gates of the other scan, (L, 2h or h, 4h)."""
        expand: tuple[Tensor, Tensor]
        """Weights and biases of `expand`, (L, h, 2h) and (L, 1, 2h)."""
        products: list[list[tuple[Tensor, Tensor]]]
        """Of each group and layer: weights of the gates' inputs and of `expand`, as far as the masks let through."""

    @dataclass(frozen=True)
    class Context:
        """What drawing keeps for one site."""

        column: int
        gates: Tensor
        """Gates of the scan from the left, completed in place group by group, (L, N, 4h)."""

    def _layers(self) -> list[DiagonalBiLSTM]:
        return list(self.layers)  # type: ignore[arg-type]

    def _by_group(self, x: Tensor) -> Tensor:
        """From the order gate, group, feature to group, gate, feature; (..., 4h)."""
        return x.unflatten(-1, (4, self.n_groups, -1)).transpose(-3, -2).flatten(-3)

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        layers, hidden, width = self._layers(), self.hidden, shape[1]
        like, n_layers, n_groups = layers[0].state_to_state, len(layers), self.n_groups
        left_bias, right_bias = torch.stack([layer.gate_bias(condition) for layer in layers], 1)  # (L, N or 1, 4h)
        left_input, right_input = torch.stack([layer.input_weight() for layer in layers], 1)  # (L, 2h, 4h)
        left_input = self._by_group(left_input)
        states = torch.stack([layer.state_to_state for layer in layers])  # (L, 2, 2, h, 4h)
        left_weight, left_above = (self._by_group(states[:, 0, i]).contiguous() for i in (0, 1))
        expand = torch.stack([(layer.expand.weight * layer.expand.mask).flatten(1).t() for layer in layers])
        products = []
        for group in range(n_groups):
            gates = slice(group * 4 * hidden // n_groups, (group + 1) * 4 * hidden // n_groups)
            seen = (group + 1) * hidden // n_groups
            inputs = left_input[:, : 2 * seen, gates].contiguous()
            outputs = expand[:, :seen].chunk(n_groups, 2)[group].contiguous()
            products.append(list(zip(inputs, outputs, strict=True)))
        return self.State(
            ready=-1,
            x=like.new_zeros(width, n_layers + 1, n, 2 * hidden),
            left_h=like.new_zeros(width, n_layers, n, hidden),
            left_c=like.new_zeros(n_layers, n, hidden),
            right_h=like.new_zeros(width, n_layers, n, hidden),
            waiting=like.new_zeros(width, n_layers, n, 4 * hidden),
            told=like.new_zeros(width, n_layers, n, 2 * hidden),
            left_bias=self._by_group(left_bias),
            right_bias=right_bias,
            left_weights=(left_weight, left_above),
            right_weights=(right_input, states[:, 1, 0].contiguous(), states[:, 1, 1].contiguous()),
            expand=(expand, torch.stack([layer.expand.bias for layer in layers])[:, None]),
            products=products,
        )

    def row(self, state: State, row: int) -> None:
        """Scans the row above from the right, in all layers at once, and brings both scans' news to this row."""
        state.ready = row
        n_columns = len(state.x)

        def per_layer(x: Tensor) -> Tensor:  # (W, L, N, features) to (L, W * N, features)
            return x.transpose(0, 1).flatten(1, 2)

        def per_site(x: Tensor) -> Tensor:  # and back
            return x.unflatten(1, (n_columns, -1)).transpose(0, 1)

        weight, bias = state.expand
        if row > 0:
            right_input, right_weight, above_weight = state.right_weights
            gates = torch.bmm(per_layer(state.x[:, :-1]), right_input).baddbmm_(per_layer(state.right_h), above_weight)
            # Into a buffer whose sites are each in one piece, as the products below need them.
            gates = torch.add(per_site(gates), state.right_bias, out=torch.empty_like(state.waiting))  # (W, L, N, 4h)
            c = torch.zeros_like(state.left_c)
            for column in reversed(range(n_columns)):
                if column < n_columns - 1:
                    gates[column].baddbmm_(state.right_h[column + 1], right_weight)
                cell(gates[column], c, state.right_h[column])
            state.told.copy_(per_site(torch.baddbmm(bias, per_layer(state.right_h), weight)))
        else:
            state.told.copy_(bias)
        above = torch.bmm(per_layer(state.left_h), state.left_weights[1])  # nothing in the first row: states are 0
        torch.add(per_site(above), state.left_bias, out=state.waiting)
        state.left_c.zero_()

    def context(self, state: State, sites: range) -> Context:
        row, column = divmod(sites[0], len(state.x))
        if state.ready != row:  # a sampler that goes site by site may not know of rows
            self.row(state, row)
        gates = state.waiting[column]
        if column:
            gates.baddbmm_(state.left_h[column - 1], state.left_weights[0])
        return self.Context(column, gates)

    def step(self, state: State, context: Context, group: int) -> Tensor:
        # (L + 1, N, 2h), (L, N, h), (L, N, 2h)
        x, h, told = (part[context.column] for part in (state.x, state.left_h, state.told))
        size = self.hidden // self.n_groups
        seen = (group + 1) * size
        part = slice(group * size, seen)
        wide = slice(2 * part.start, 2 * part.stop)
        gates, c = context.gates[:, :, 4 * part.start : 4 * part.stop], state.left_c[:, :, part]
        for layer, (inputs, outputs) in enumerate(state.products[group]):
            own = gates[layer]
            own.addmm_(x[layer, :, : 2 * seen], inputs)
            cell(own, c[layer], h[layer, :, part])
            y = torch.add(x[layer, :, wide], told[layer, :, wide], out=x[layer + 1, :, wide])
            y.addmm_(h[layer, :, :seen], outputs)
        return y[:, None]  # (N, 1, 2h / n_groups)

    def write(self, state: State, context: Context, x: Tensor, group: int) -> None:
        size = 2 * self.hidden // self.n_groups
        state.x[context.column, 0, :, group * size : (group + 1) * size] = x.flatten(0, 1)


def cell(gates: Tensor, c: Tensor, h: Tensor) -> None:
    """One LSTM cell, in place.

    Arguments:
        gates: Before their nonlinearities, in the order o, f, i, g, (..., 4h). Overwritten.
        c: Of the site before, (..., h); becomes this site's.
        h: Takes the state, (..., h).
    """
    size = c.shape[-1]
    o, f, i = gates[..., : 3 * size].sigmoid_().chunk(3, -1)
    g = gates[..., 3 * size :].tanh_()
    c.mul_(f).addcmul_(i, g)
    torch.tanh(c, out=h).mul_(o)
