"""The network of PixelSNAIL: causal convolutions, good at what is near, and causal attention, which finds what is far.

Convolutions alone see far sites only through many layers, and attention alone must learn what near means. All channels
of a site are predicted at once, so there is one group, and drawing goes site by site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.nn.causal import CausalLayer
from triptych.nn.options import check_counts, check_dropout, check_kernel_size

INNER_KERNEL = 3
"""Side of the kernels of all convolutions but the first."""
HEAD_FEATURES = 16
"""Features of the keys, and of the values, of each head."""


class Angles(NamedTuple):
    """Cosines and sines of the angles by which the features of each site's queries and keys are turned."""

    cos: Tensor
    """(H * W, HEAD_FEATURES / 2)."""
    sin: Tensor
    """(H * W, HEAD_FEATURES / 2)."""

    @staticmethod
    def of(height: int, width: int, like: Tensor) -> Angles:
        """Half of the pairs of features are turned by the row, half by the column.

        From pair to pair the turn slows down, from a quarter of a circle a site to half a circle from edge to edge.
        """
        slowing = torch.linspace(0, 1, HEAD_FEATURES // 4, device=like.device, dtype=like.dtype)
        turns = math.pi / 2 * (2 / max(2, height, width)) ** slowing
        sites = torch.arange(height * width, device=like.device)
        rows, columns = sites // width, sites % width
        angles = torch.cat([rows[:, None] * turns, columns[:, None] * turns], 1)  # (H * W, HEAD_FEATURES / 2)
        return Angles(angles.cos(), angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        """(..., H * W, HEAD_FEATURES) to the same: each pair (a, b) as a + ib times exp(i angle)."""
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1).to(x.dtype)


def normalised(x: Tensor) -> Tensor:
    """Brings the features of each site to mean 0 and variance 1, (N, hidden, H, W) to the same."""
    # The mean of a site's features alone: nothing passes from site to site, as it would in most other normalisations.
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class CausalConv2d(nn.Module):
    """A convolution that sees the rows above and, in its own row, the sites up to its own, or before it.

    Arguments:
        kernel_size: Odd side of the square kernel, of which the rows from the middle upwards are used.
        sees_own: Whether a site sees itself.
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, sees_own: bool) -> None:
        super().__init__()
        middle = kernel_size // 2
        self.kernel_size = kernel_size
        mask = torch.ones(middle + 1, kernel_size)
        mask[middle, middle + sees_own :] = 0
        convolution = nn.Conv2d(in_channels, out_channels, (middle + 1, kernel_size))
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        with torch.no_grad():
            self.weight *= (mask.numel() / mask.sum()) ** 0.5  # PyTorch's own initialisation, of the taps in use
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W)."""
        # Padded below, too, and cut: quicker than to pad a copy of the input above alone.
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.kernel_size // 2)[:, :, : x.shape[2]]

    def left_weight(self) -> Tensor:
        """The taps left of the site, (k // 2 * C_in, C_out); rows by tap from left to right, then by input."""
        middle = self.kernel_size // 2
        return self.weight[:, :, middle, :middle].permute(2, 1, 0).flatten(0, 1).contiguous()

    def own_weight(self) -> Tensor:
        """The tap of the site itself, (C_in, C_out)."""
        middle = self.kernel_size // 2
        return self.weight[:, :, middle, middle].t().contiguous()


class GatedBlock(nn.Module):
    """x + 1x1 (a * sigmoid(b)), where a causal 3x3 convolution of x, normalised, gives a and b.

    Arguments:
        hidden: Features of x, of a and of b.
        n_condition: Features of the condition, a bias of a and b; 0 for none.
        dropout: Probability with which a gated feature is zeroed in training.
    Source:
        Chen et al. 2018, arXiv:1712.09763, the residual block. Differs: one convolution of 5 taps instead of two of 4,
        gated at once; its inputs are normalised (Ba, Kiros & Hinton 2016, arXiv:1607.06450) instead of passing an ELU,
        which learns faster; the condition.
    """

    def __init__(self, hidden: int, n_condition: int, dropout: float) -> None:
        super().__init__()
        self.look = CausalConv2d(hidden, 2 * hidden, INNER_KERNEL, sees_own=True)
        self.expand = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.condition = nn.Linear(n_condition, 2 * hidden, bias=False) if n_condition else None
        self.dropout = parallel.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(N, hidden, H, W) to the same."""
        y = self.look(normalised(x))  # (N, 2 * hidden, H, W)
        if self.condition is not None and condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        return x + self.expand(self.dropout(F.glu(y, 1)))


class AttentionBlock(nn.Module):
    """x + what each site takes from all earlier ones: a mean of their values, weighted by queries and keys.

    Keys and values speak of a site's features and of the sub-pixels at the site itself, which the features do not know.
    So a site must not attend to itself. In their place it has one key and one value of zeros, which let it attend to
    nothing, as the first site must.

    Arguments:
        hidden: Features of x.
        n_inputs: Features of a site's sub-pixels.
        n_heads: Each has its own queries, keys and values, of `HEAD_FEATURES` features.
    Source:
        Chen et al. 2018, arXiv:1712.09763, the attention block. Differs: positions enter through rotations of
        queries and keys (Su et al. 2021, arXiv:2104.09864, by row and by column) instead of as coordinates among their
        inputs; queries, keys and values are linear in x, normalised; the zeros; several heads.
    """

    def __init__(self, hidden: int, n_inputs: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        features = n_heads * HEAD_FEATURES
        self.query = nn.Linear(hidden, features)
        self.key_value = nn.Linear(hidden + n_inputs, 2 * features)
        self.expand = nn.Linear(features, hidden, bias=False)

    def forward(self, x: Tensor, given: Tensor, angles: Angles) -> Tensor:
        """Features (N, hidden, H, W) and sub-pixels (N, H * W, n_inputs) to features (N, hidden, H, W)."""
        seen = normalised(x).movedim(1, -1).flatten(1, 2)  # (N, H * W, hidden)
        projected = self.query(seen), *self.key_value(torch.cat([seen, given], -1)).chunk(2, -1)
        queries, keys, values = (y.unflatten(-1, (self.n_heads, HEAD_FEATURES)).transpose(1, 2) for y in projected)
        # What is one place later in the order than its own site is strictly earlier for every site that may see it.
        found = F.scaled_dot_product_attention(  # (N, n_heads, H * W, HEAD_FEATURES)
            angles.turn(queries), F.pad(angles.turn(keys), (0, 0, 1, -1)), F.pad(values, (0, 0, 1, -1)), is_causal=True
        )
        y = self.expand(found.transpose(1, 2).flatten(2))  # (N, H * W, hidden)
        return x + y.unflatten(1, x.shape[2:]).movedim(-1, 1)

    def query_weight(self) -> tuple[Tensor, Tensor]:
        """Bias (2d,) and weight (hidden, 2d) of queries and of queries turned by a right angle, d = n_heads features.

        Scaled as attention scales products of queries and keys.
        """
        scale = HEAD_FEATURES**-0.5
        weight, bias = (torch.cat([y, self._right_angle(y)]) * scale for y in (self.query.weight, self.query.bias))
        return bias, weight.t().contiguous()

    def key_value_weight(self) -> tuple[Tensor, Tensor]:
        """Bias (3d,) and weight (hidden + n_inputs, 3d) of keys, of keys turned by a right angle, and of values."""
        bias, weight = (
            torch.cat([keys, self._right_angle(keys), values])
            for keys, values in (y.chunk(2) for y in (self.key_value.bias, self.key_value.weight))
        )
        return bias, weight.t().contiguous()

    def _right_angle(self, x: Tensor) -> Tensor:
        """Weights or biases of queries or keys, (d, ...), to what gives these turned by a right angle."""
        a, b = x.unflatten(0, (self.n_heads, 2, HEAD_FEATURES // 2)).unbind(1)
        return torch.stack([-b, a], 1).flatten(0, 2)


class SnailNetwork(CausalLayer):
    """A strictly causal convolution, blocks of gated convolutions each followed by attention, and two 1x1 convolutions.

    Arguments:
        n_inputs: Features of a site's sub-pixels, of all channels together.
        n_outputs: Features of the output.
        hidden: Features between the layers.
        n_blocks: Attention blocks.
        n_layers: Gated blocks before each of them.
        kernel_size: Side of the first convolution, odd and at least 3.
    Raises:
        InputError: If an option is out of range.
    Source:
        Chen et al. 2018, arXiv:1712.09763, the architecture. Differs: as the blocks do; the first convolution is a wide
        one; skip connections from block to block alone.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        hidden: int,
        n_blocks: int,
        n_layers: int,
        n_heads: int,
        kernel_size: int,
        n_condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(1)
        check_counts(hidden=hidden, n_blocks=n_blocks, n_layers=n_layers, n_heads=n_heads)
        check_kernel_size(kernel_size)
        check_dropout(dropout)
        self.first = CausalConv2d(n_inputs, hidden, kernel_size, sees_own=False)
        self.gated = nn.ModuleList(GatedBlock(hidden, n_condition, dropout) for _ in range(n_blocks * n_layers))
        self.attention = nn.ModuleList(AttentionBlock(hidden, n_inputs, n_heads) for _ in range(n_blocks))
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, n_outputs, 1)
        branches = [block.expand.weight for block in self._gated()]
        branches += [block.expand.weight for block in self._attention()]
        with torch.no_grad():
            for weight in branches:
                weight /= len(branches) ** 0.5  # so that a deep network starts no wilder than a flat one

    @property
    def reach(self) -> float:
        return math.inf

    def _gated(self) -> list[GatedBlock]:
        return list(self.gated)  # type: ignore[arg-type]

    def _attention(self) -> list[AttentionBlock]:
        return list(self.attention)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        given = x.movedim(1, -1).flatten(1, 2)  # (N, H * W, n_inputs)
        angles = Angles.of(x.shape[2], x.shape[3], self.first.weight)
        # Features last in memory: 1x1 convolutions are then products, and attention needs no copies.
        y = self.first(x).contiguous(memory_format=torch.channels_last)  # (N, hidden, H, W)
        n_layers = len(self.gated) // len(self.attention)
        for layer, gated in enumerate(self._gated()):
            y = gated(y, condition)
            if (layer + 1) % n_layers == 0:
                y = self._attention()[layer // n_layers](y, given, angles)
        return self.last(F.elu(self.mix(normalised(y))))

    @dataclass
    class State:
        """What drawing keeps. L gated blocks, A attention blocks, h features, k the first kernel, p = k // 2, heads d
        wide together. Rows have as many zeros at either end as a kernel reaches past them."""

        image: Tensor
        """Sub-pixels drawn so far, zero elsewhere and in p rows above, (N, p + H, p + W + p, n_inputs)."""
        above: Tensor
        """Inputs of the gated blocks' convolutions in the row above, (L, N, 1 + W + 1, h)."""
        here: Tensor
        """Those in the row at hand, zero where nothing is drawn yet."""
        first_by_row: Tensor
        """What the first convolution makes of the rows above, for the row at hand, (N, W, h)."""
        gates_by_row: Tensor
        """What those of the gated blocks make of the row above, with biases and conditions, (L, N, W, 2h)."""
        keys: Tensor
        """Zero, then the turned keys of each site, (A, N * n_heads, HEAD_FEATURES, 1 + H * W)."""
        values: Tensor
        """Zero, then the values of each site, (A, N * n_heads, 1 + H * W, HEAD_FEATURES)."""
        seen: Tensor
        """What keys and values of the site at hand are made of, (A, N, h + n_inputs)."""
        bias: Tensor
        """Of the gated blocks' convolutions, with the condition's, (L, N or 1, 1, 2h)."""
        weights: SnailNetwork.Weights

    @dataclass(frozen=True)
    class Weights:
        """Weights in the form that drawing needs, letters as above."""

        first_above: Tensor
        """The first convolution's rows above, (h, n_inputs, p, k)."""
        first_left: Tensor
        """Its taps left of a site, (p * n_inputs, h)."""
        above: Tensor
        """The gated blocks' three taps in the row above, (L, 3h, 2h)."""
        left: Tensor
        """Their tap left of a site, (L, h, 2h)."""
        gated: list[tuple[Tensor, Tensor]]
        """Of each of them: the tap of the site itself, (h, 2h), and `expand`, (h, h)."""
        attention: list[tuple[Tensor, Tensor, Tensor]]
        """Of each attention block: `query_weight`, and `expand`, (d, h)."""
        key_value: tuple[Tensor, Tensor]
        """`key_value_weight` of all of them, (A, 1, 3d) and (A, h + n_inputs, 3d)."""
        output: list[tuple[Tensor | None, Tensor]]
        """Bias and weight of the last two convolutions, (h,) and (h, h), (n_outputs,) and (n_outputs, h)."""
        angles: Angles
        """For all features of all heads, (H * W, d)."""

    @dataclass(frozen=True)
    class Context:
        """What drawing keeps for one site."""

        site: int
        """row * W + column."""
        y: Tensor
        """The output of the first convolution, (N, h)."""
        gates: Tensor
        """The outputs of the gated blocks' convolutions as far as earlier sites tell, (L, N, 2h)."""

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        height, width = shape
        gated, attention = self._gated(), self._attention()
        hidden, n_inputs = self.first.weight.shape[:2]
        n_heads, pad, like = attention[0].n_heads, self.first.kernel_size // 2, self.first.weight
        angles = Angles.of(height, width, like)
        bias = torch.stack([block.look.bias for block in gated])[:, None]  # (L, 1, 2h)
        if condition is not None and gated[0].condition is not None:
            bias = bias + torch.stack([block.condition(condition) for block in gated if block.condition is not None])
        key_value_bias, key_value = (
            torch.stack(of_all) for of_all in zip(*(block.key_value_weight() for block in attention), strict=True)
        )
        weights = self.Weights(
            self.first.weight[:, :, :pad].contiguous(),
            self.first.left_weight(),
            torch.stack([block.look.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1) for block in gated]),
            torch.stack([block.look.left_weight() for block in gated]),
            [(block.look.own_weight(), block.expand.weight.flatten(1).t().contiguous()) for block in gated],
            [(*block.query_weight(), block.expand.weight.t().contiguous()) for block in attention],
            (key_value_bias[:, None], key_value),
            [(layer.bias, layer.weight.flatten(1)) for layer in (self.mix, self.last)],
            Angles(angles.cos.repeat(1, 2 * n_heads), angles.sin.repeat(1, 2 * n_heads)),
        )
        return self.State(
            image=like.new_zeros(n, pad + height, width + 2 * pad, n_inputs),
            above=like.new_zeros(len(gated), n, width + 2, hidden),
            here=like.new_zeros(len(gated), n, width + 2, hidden),
            first_by_row=like.new_empty(n, width, hidden),
            gates_by_row=like.new_empty(len(gated), n, width, 2 * hidden),
            keys=like.new_zeros(len(attention), n * n_heads, HEAD_FEATURES, 1 + height * width),
            values=like.new_zeros(len(attention), n * n_heads, 1 + height * width, HEAD_FEATURES),
            seen=like.new_empty(len(attention), n, hidden + n_inputs),
            bias=bias[:, :, None],
            weights=weights,
        )

    def _begin_row(self, state: State, row: int) -> None:
        """All that depends on the rows above through convolutions, for all columns at once."""
        weights, pad = state.weights, self.first.kernel_size // 2
        rows = state.image[:, row : row + pad].movedim(-1, 1)  # (N, n_inputs, p, p + W + p)
        state.first_by_row = F.conv2d(rows, weights.first_above, self.first.bias).squeeze(2).transpose(1, 2)
        state.above, state.here = state.here, state.above  # What is left in `here` is not looked at until overwritten.
        n_layers, n, width, _ = state.gates_by_row.shape
        three = state.above.unfold(2, 3, 1).transpose(-1, -2)  # (L, N, W, 3, h)
        gates = torch.bmm(three.reshape(n_layers, n * width, -1), weights.above)  # (L, N * W, 2h)
        torch.add(gates.unflatten(1, (n, width)), state.bias, out=state.gates_by_row)

    def context(self, state: State, sites: range) -> Context:
        weights, pad, width = state.weights, self.first.kernel_size // 2, state.gates_by_row.shape[2]
        site = sites[0]
        row, column = divmod(site, width)
        if column == 0:  # Sites come one by one in raster order, whoever drives.
            self._begin_row(state, row)
        left = state.image[:, pad + row, column : column + pad].flatten(1)  # (N, p * n_inputs)
        y = torch.addmm(state.first_by_row[:, column], left, weights.first_left)
        gates = torch.baddbmm(state.gates_by_row[:, :, column], state.here[:, :, column], weights.left)
        return self.Context(site, y, gates)

    def step(self, state: State, context: Context, group: int) -> Tensor:
        y, site, weights = context.y, context.site, state.weights
        n, hidden = y.shape
        cos, sin = (part[site] for part in weights.angles)
        n_layers = len(weights.gated) // len(weights.attention)
        looked = []
        for layer, ((own, expand), gates) in enumerate(zip(weights.gated, context.gates.unbind(), strict=True)):
            looked.append(F.layer_norm(y, y.shape[1:]))
            y = torch.addmm(y, F.glu(gates.addmm_(looked[-1], own)), expand)
            if (layer + 1) % n_layers == 0:
                block = layer // n_layers
                bias, query, expand = weights.attention[block]
                seen = F.layer_norm(y, y.shape[1:])
                state.seen[block, :, :hidden] = seen
                plain, turned = torch.addmm(bias, seen, query).chunk(2, 1)
                queries = torch.addcmul(plain * cos, turned, sin).view(-1, 1, HEAD_FEATURES)  # (N * n_heads, 1, ...)
                shares = torch.bmm(queries, state.keys[block, :, :, : site + 1]).softmax(2)  # (N * n_heads, 1, T)
                found = torch.bmm(shares, state.values[block, :, : site + 1])  # (N * n_heads, 1, HEAD_FEATURES)
                y = torch.addmm(y, found.view(n, -1), expand)
        state.here[:, :, 1 + site % state.gates_by_row.shape[2]] = torch.stack(looked)
        (mix_bias, mix), (last_bias, last) = weights.output
        y = F.linear(F.elu(F.linear(F.layer_norm(y, y.shape[1:]), mix, mix_bias)), last, last_bias)
        return y.unsqueeze(1)  # (N, 1, n_outputs)

    def write(self, state: State, context: Context, x: Tensor, group: int) -> None:
        site, weights, pad = context.site, state.weights, self.first.kernel_size // 2
        row, column = divmod(site, state.gates_by_row.shape[2])
        state.image[:, pad + row, pad + column] = x[:, 0]
        state.seen[:, :, -x.shape[2] :] = x[:, 0]
        plain, turned, values = torch.baddbmm(weights.key_value[0], state.seen, weights.key_value[1]).chunk(3, 2)
        keys = torch.addcmul(plain * weights.angles.cos[site], turned, weights.angles.sin[site])  # (A, N, d)
        state.keys[:, :, :, 1 + site] = keys.reshape(len(keys), -1, HEAD_FEATURES)
        state.values[:, :, 1 + site] = values.reshape(len(keys), -1, HEAD_FEATURES)
