"""LSTM layers of autoregressive networks: over the rows of an image, and over its sub-pixels in raster order.

Both are layers of the protocol that `triptych.nn.causal` describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.nn.causal import CausalLayer, MaskedConv2d, SiteCache


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: gates before their activations, o, f, i and g, (..., 4, F), and c, (..., F), to (h, c)."""
    o, f, i = gates[..., :3, :].sigmoid().unbind(-2)
    c = torch.addcmul(f * c, i, gates[..., 3, :].tanh())
    return o * c.tanh(), c


class RowLSTM(nn.Module):
    r"""A residual LSTM layer whose steps are the rows of an image and whose products are convolutions along them.

    With x_r row r of the input, K_is a masked and K_ss a plain convolution of size 3 along the row,

        o, f, i = sigmoid(K_ss * h_{r-1} + K_is * x_r),   g = tanh(the same)
        c_r = f c_{r-1} + i g
        h_r = o tanh(c_r)

    and the output is x + (1x1 convolution of h), masked by groups as K_is is. Above the first row h and c are zero. The
    features of the gates lie group by group, and in a group o, f, i, g.

    Arguments:
        hidden: h; the layer's input and output have 2h features. Divisible by n_groups.
        n_condition: Features of the condition, which is added as a bias to the gates; 0 for none.
        dropout: Probability with which a feature of h is zeroed in training on its way to the output. The next row
            sees it nevertheless.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, eq. 3 and fig. 5 (right). Differs: the forget
        gates' bias starts at 1, so that rows are not forgotten before anything is learned; a condition; dropout, as
        small data sets need.
    """

    def __init__(self, hidden: int, n_groups: int, n_condition: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.n_groups = n_groups
        # K_is, cut where its mask changes: the site itself, of which a group sees the groups up to its own, and the
        # site to the left, of which it sees all. The site to the right is masked, and not stored.
        self.own = MaskedConv2d(2 * hidden, 4 * hidden, 1, "B", n_groups)
        self.left = nn.Linear(2 * hidden, 4 * hidden, bias=False)
        # K_ss as a matrix: the sites left above, above and right above, all of them past, whatever the group.
        self.above = nn.Linear(3 * hidden, 4 * hidden, bias=False)
        self.expand = MaskedConv2d(hidden, 2 * hidden, 1, "B", n_groups)
        self.condition = nn.Linear(n_condition, 4 * hidden, bias=False) if n_condition else None
        self.dropout = parallel.Dropout(dropout, dim=1)
        with torch.no_grad():
            self.own.bias.view(n_groups, 4, hidden // n_groups)[:, 1] = 1.0

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Rows first: (H, N, W, 2h) to (H, N, W, 2h)."""
        _, n, width, _ = x.shape
        groups = self.n_groups, 4, self.hidden // self.n_groups
        left = F.pad(x[:, :, :-1], (0, 0, 1, 0))
        weight = torch.cat([self.left.weight, (self.own.weight * self.own.mask).flatten(1)], 1)
        from_input = F.linear(torch.cat([left, x], -1), weight, self.own.bias)  # (H, N, W, 4h)
        if self.condition is not None and condition is not None:
            from_input = from_input + self.condition(condition)[:, None]
        h, c = x.new_zeros(n, width, self.hidden), x.new_zeros(n, width, self.n_groups, self.hidden // self.n_groups)
        rows = []
        for row in from_input.unbind():
            padded = F.pad(h, (0, 0, 1, 1))
            above = torch.cat([padded[:, :-2], h, padded[:, 2:]], -1)  # (N, W, 3h)
            h, c = lstm_cell((row + self.above(above)).unflatten(-1, groups), c)
            h = h.flatten(2)  # (N, W, h)
            rows.append(h)
        expand = (self.expand.weight * self.expand.mask).flatten(1)
        return x + F.linear(self.dropout(torch.stack(rows)), expand, self.expand.bias)

    def earlier_weight(self) -> Tensor:
        """What the gates take of earlier sites: x to the left, h left above, above and right above, (5h, 4h)."""
        return torch.cat([self.left.weight, self.above.weight], 1).t().contiguous()


class RowLSTMStack(CausalLayer):
    """Row LSTM layers one after another.

    One layer of the protocol rather than a sequence, for the reason `ResidualStack` gives: what all layers take of
    earlier sites is looked up and multiplied with one batched product before the chain of layers
    begins. The rows of an image need not be drawn one by one: a site needs no more of the row above than its right
    neighbour there, so that wavefronts cross the rows.

    Arguments:
        hidden: h; input and output have 2h features. Divisible by n_groups.
        n_layers: Number of layers, at least 1.
        n_condition, dropout: As in `RowLSTM`.
    """

    def __init__(
        self, hidden: int, n_layers: int, n_groups: int = 1, *, n_condition: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(n_groups)
        self.hidden = hidden
        self.layers = nn.ModuleList(RowLSTM(hidden, n_groups, n_condition, dropout) for _ in range(n_layers))

    @property
    def reach(self) -> float:
        return 1

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.permute(2, 0, 3, 1).contiguous()  # (H, N, W, 2h): each row in one piece
        for layer in self.layers:
            x = layer(x, condition)
        return x.permute(1, 3, 0, 2)  # (N, 2h, H, W)

    @dataclass(frozen=True)
    class State:
        """What drawing keeps for all wavefronts. L is the number of layers."""

        cache: SiteCache
        """Of each layer and site the input x, h and c side by side, (L, N, P, 4h)."""
        earlier: Tensor
        """`earlier_weight()` of each layer, (L, 5h, 4h)."""
        bias: Tensor
        """Biases of the gates with the condition's, (L, N or 1, 1, 4h)."""
        products: list[list[tuple[Tensor, Tensor, Tensor]]]
        """Of each group and layer: weights of `own` and `expand`, bias of `expand`."""

    @dataclass(frozen=True)
    class Context:
        """What drawing keeps for one wavefront; the buffers are completed in place, group by group."""

        sites: range
        x: list[Tensor]
        """The stack's input of the group at hand, (N * S, 2h / n_groups)."""
        gates: Tensor
        """Before activation, begun with what they take of earlier sites, (L, N * S, n_groups, 4, h / n_groups)."""
        above: Tensor
        """c of the site above, (L, N * S, h)."""
        blocks: Tensor
        """The sites' x, h and c for the cache, (L, N * S, 4h)."""

    def _layers(self) -> list[RowLSTM]:
        return list(self.layers)  # type: ignore[arg-type]

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        layers = self._layers()
        like = layers[0].left.weight
        bias = torch.stack([layer.own.bias for layer in layers])[:, None]  # (L, 1, 4h)
        if condition is not None and layers[0].condition is not None:
            bias = bias + torch.stack([layer.condition(condition) for layer in layers if layer.condition is not None])
        return self.State(
            cache=SiteCache((len(layers), n), 4 * self.hidden, 3, shape, like),
            earlier=torch.stack([layer.earlier_weight() for layer in layers]),
            bias=bias[:, :, None],
            products=[
                [
                    (
                        layer.own.centre_weight(group),
                        layer.expand.centre_weight(group),
                        layer.expand.bias.chunk(self.n_groups)[group],
                    )
                    for layer in layers
                ]
                for group in range(self.n_groups)
            ],
        )

    def context(self, state: State, sites: range) -> Context:
        n_layers, n, _, _ = state.cache.buffer.shape
        n_sites, hidden = len(sites), self.hidden
        n_rows = n * n_sites
        x = state.cache.neighbours(sites, 0, 1, 1)[..., : 2 * hidden]  # (L, N, S, 1, 2h)
        h = state.cache.neighbours(sites, 1, 1, 3)[..., 2 * hidden : 3 * hidden]  # (L, N, S, 3, h)
        c = state.cache.neighbours(sites, 1, 0, 1)[..., 3 * hidden :]  # (L, N, S, 1, h)
        seen = torch.cat([x.flatten(3), h.flatten(3)], 3).view(n_layers, n_rows, 5 * hidden)
        bias = state.bias.expand(n_layers, n, n_sites, 4 * hidden).reshape(n_layers, n_rows, 4 * hidden)
        gates = torch.baddbmm(bias, seen, state.earlier)
        return self.Context(
            sites,
            [],
            gates.unflatten(2, (self.n_groups, 4, hidden // self.n_groups)),
            c.reshape(n_layers, n_rows, hidden),
            gates.new_empty(n_layers, n_rows, 4 * hidden),
        )

    def step(self, state: State, context: Context, group: int) -> Tensor:
        x = context.x.pop()  # (N * S, 2h / n_groups)
        size = self.hidden // self.n_groups
        begin, end = group * size, (group + 1) * size  # the group's features of h and c
        xs, hs, cs = context.blocks.split([2 * self.hidden, self.hidden, self.hidden], 2)
        for layer, (from_own, expand, expand_bias) in enumerate(state.products[group]):
            xs[layer, :, 2 * begin : 2 * end] = x
            gates = context.gates[layer, :, group]  # (N * S, 4, h / n_groups)
            gates = torch.addmm(gates.flatten(1), xs[layer, :, : 2 * end], from_own).view_as(gates)
            hs[layer, :, begin:end], cs[layer, :, begin:end] = lstm_cell(gates, context.above[layer, :, begin:end])
            x = torch.addmm(x, hs[layer, :, :end], expand).add_(expand_bias)
        if group == self.n_groups - 1:
            state.cache.write(context.sites, context.blocks.unflatten(1, (-1, len(context.sites))))
        return x.unflatten(0, (-1, len(context.sites)))  # (N, S, 2h / n_groups)

    def write(self, state: State, context: Context, x: Tensor, group: int) -> None:
        context.x.append(x.flatten(0, 1))


class RasterLSTM(CausalLayer):
    """LSTM layers over the sub-pixels of an image as one sequence: raster order, and channel by channel within a site.

    The first layer of a network: at each step it takes the sub-pixel before, and learned vectors for the row, the
    column and the channel of the sub-pixel that is to be predicted.

    Arguments:
        n_inputs: Features of a sub-pixel.
        hidden: Features of the layers' states, and of the output for each channel.
        n_layers: LSTM layers, at least 1.
        shape: Height and width of the images.
        n_groups: Channels.
        n_condition: Features of the condition, which enters at each step as the place does; 0 for none.
        dropout: Probability with which an output of each layer is zeroed in training on its way up.
    """

    def __init__(
        self,
        n_inputs: int,
        hidden: int,
        n_layers: int,
        shape: tuple[int, int],
        n_groups: int = 1,
        *,
        n_condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(n_groups)
        self.embed = nn.Linear(n_inputs, hidden, bias=False)
        self.rows, self.columns, self.channels = (nn.Embedding(n, hidden) for n in (*shape, n_groups))
        self.condition = nn.Linear(n_condition, hidden, bias=False) if n_condition else None
        self.lstm = nn.LSTM(hidden, hidden, n_layers)
        self.dropout = parallel.Dropout(dropout, dim=1)
        with torch.no_grad():
            for layer in range(n_layers):  # PyTorch's order of gates is i, f, g, o, and it has their bias twice.
                getattr(self.lstm, f"bias_ih_l{layer}")[hidden : 2 * hidden] = 1.0
                getattr(self.lstm, f"bias_hh_l{layer}")[hidden : 2 * hidden] = 0.0

    @property
    def reach(self) -> float:
        return math.inf

    def places(self) -> Tensor:
        """What each step takes of its place, in the order of the sequence: (H * W * n_groups, hidden)."""
        rows, columns = self.rows.weight[:, None, None], self.columns.weight[:, None]
        return (rows + columns + self.channels.weight).flatten(0, 2)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        height, width = x.shape[2:]
        sequence = x.unflatten(1, (self.n_groups, -1)).permute(3, 4, 1, 0, 2).flatten(0, 2)  # (T, N, n_inputs)
        before = F.pad(sequence[:-1], (0, 0, 0, 0, 1, 0))
        u = self.embed(before) + self.places()[:, None]  # (T, N, hidden)
        if self.condition is not None and condition is not None:
            u = u + self.condition(condition)
        return self._layers(u).unflatten(0, (height, width, self.n_groups)).permute(3, 2, 4, 0, 1).flatten(1, 2)

    def _layers(self, u: Tensor) -> Tensor:
        """The LSTM's layers with dropout between them and above: (T, N, hidden) to the same."""
        if not self.training or self.dropout.p == 0:
            return self.lstm(u)[0]
        # One at a time: PyTorch's own dropout would be of a process's part of the batch, not of all of it.
        for weights in self.lstm.all_weights:
            zero = u.new_zeros(1, u.shape[1], u.shape[2])
            u = self.dropout(torch.lstm(u, (zero, zero), list(weights), True, 1, 0.0, True, False, False)[0])
        return u

    @dataclass
    class State:
        """What drawing carries from one sub-pixel to the next."""

        places: Tensor
        """`places()`, site by site, (H * W, n_groups, hidden)."""
        bias: Tensor
        """The condition's part of each step's input, (N or 1, hidden)."""
        embed: Tensor
        """(n_inputs, hidden)."""
        last: Tensor
        """Features of the sub-pixel before, (N, n_inputs)."""
        memory: list[tuple[Tensor, Tensor]]
        """h and c of each layer, each (N, hidden)."""

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        places = self.places().unflatten(0, (-1, self.n_groups))
        bias = places.new_zeros(1, self.lstm.hidden_size)
        if condition is not None and self.condition is not None:
            bias = self.condition(condition)
        memory = places.new_zeros(n, self.lstm.hidden_size)
        last = places.new_zeros(n, self.embed.in_features)
        return self.State(places, bias, self.embed.weight.t(), last, [(memory, memory)] * self.lstm.num_layers)

    def context(self, state: State, sites: range) -> Tensor:
        """The places of the site's sub-pixels, (1, n_groups, hidden): sites come one at a time, in raster order."""
        return state.places[sites[0]].unsqueeze(0)

    def step(self, state: State, context: Tensor, group: int) -> Tensor:
        y = torch.addmm(state.bias, state.last, state.embed).add_(context[:, group])  # (N, hidden)
        for layer, weights in enumerate(self.lstm.all_weights):
            y, c = torch.lstm_cell(y, state.memory[layer], *weights)
            state.memory[layer] = y, c
        return y.unsqueeze(1)  # (N, 1, hidden)

    def write(self, state: State, context: Tensor, x: Tensor, group: int) -> None:
        state.last = x.squeeze(1)
