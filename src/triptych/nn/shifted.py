"""Convolutions shifted so that they see what comes earlier in raster order, and no mask is needed.

A network of them has two streams of features: one sees the rows above a site ('above', of 'down'-shifted kernels), the
other these and the sites to the left in the site's own row ('left', of 'down_right'-shifted kernels). Both keep their
meaning at lower resolutions: there, a site (i, j) stands for the sites (2i, 2j) .. (2i + 1, 2j + 1), and knows what the
first of them may know. It is therefore no secret to the other three.

In drawing, the stream of the rows above is computed for a whole row at once, before the row's first site. Of the
other stream, a site needs the taps of its own row alone, since what the row above adds to a row is computed for all its
sites at once too. Lower resolutions have their turn at every other site of every other row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel
from triptych.nn.causal import CausalLayer

Direction = Literal["down", "down_right"]


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, (N, C, H, W) to (N, 2C, H, W)."""
    return F.elu(torch.cat([x, -x], 1))


class ShiftedConv2d(nn.Module):
    """A convolution whose kernel ends in the row of its site: in the site's column if 'down_right'; 'down' is centred.

    Beyond the image are zeros. With a stride of 2, output (i, j) belongs to site (2i, 2j); odd sizes are rounded up.

    Arguments:
        kernel_size: Height and width; by default 2 x 3 for 'down' and 2 x 2 for 'down_right'.
        shift: Rows up and columns to the left by which the kernel is moved. A network's first layer needs one, since
            its input is what is predicted.
    Source:
        Salimans et al. 2017, arXiv:1701.05517, section 2.3 and fig. 2, as in the authors' code. Differs: a first
        layer's output where its whole kernel is beyond the image is the bias instead of zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        direction: Direction,
        kernel_size: tuple[int, int] | None = None,
        stride: int = 1,
        shift: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        height, width = kernel_size or (2, 3 if direction == "down" else 2)
        convolution = nn.Conv2d(in_channels, out_channels, (height, width))
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias  # PyTorch's own initialisation
        self.stride = stride
        up, left = shift
        before, after = (width // 2, width // 2) if direction == "down" else (width - 1 + left, -left)
        self.padding = (before, after, height - 1 + up, -up)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W), or half of H and W."""
        return F.conv2d(F.pad(x, self.padding), self.weight, self.bias, self.stride)

    def taps(self) -> Tensor:
        """A matrix for each row of the kernel, (height, width * C_in, C_out)."""
        return self.weight.permute(2, 3, 1, 0).flatten(1, 2)


class ShiftedConvTranspose2d(nn.Module):
    """The transpose of a shifted convolution with a stride of 2: from one resolution to the next higher.

    Site (r, c) takes from the row r // 2, and there from the column c // 2 ('down_right') or the columns that are at
    most half a column away ('down').

    Source:
        As `ShiftedConv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, direction: Direction) -> None:
        super().__init__()
        self.beside = 1 if direction == "down" else 0  # columns of the kernel on either side of the first it reaches
        convolution = nn.ConvTranspose2d(in_channels, out_channels, (2, 2 + self.beside), 2)
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, *size), which is 2H x 2W or less by one."""
        beside = (0, self.beside)
        y = F.conv_transpose2d(x, self.weight, self.bias, 2, padding=beside, output_padding=beside)
        return y[:, :, : size[0], : size[1]]

    def taps(self) -> Tensor:
        """As a matrix to the kernel's taps, row by row, (C_in, height * width * C_out)."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)


class GatedBlock(nn.Module):
    """x + a * sigmoid(b), where a and b are made of two shifted convolutions of x, of shortcuts and of the condition.

    Whoever calls it gives activations (`concat_elu`) beside features, since most activations have several readers.

    Arguments:
        n_shortcuts: Other features that are added to the first convolution, through 1x1 convolutions.
        n_condition: Features of the condition, which is added to a and b; 0 for none.
        dropout: Probability with which a feature between the convolutions is zeroed in training.
    Source:
        Salimans et al. 2017, arXiv:1701.05517, sections 2.3 to 2.5, `gated_resnet` of the authors' code.
    """

    def __init__(
        self, hidden: int, direction: Direction, n_shortcuts: int, n_condition: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = ShiftedConv2d(2 * hidden, hidden, direction)
        self.shortcuts = nn.ModuleList(nn.Conv2d(2 * hidden, hidden, 1, bias=False) for _ in range(n_shortcuts))
        self.second = ShiftedConv2d(2 * hidden, 2 * hidden, direction)
        self.condition = nn.Linear(n_condition, 2 * hidden, bias=False) if n_condition else None
        self.dropout = parallel.Dropout(dropout)

    def forward(self, x: Tensor, active: Tensor, shortcuts: Sequence[Tensor], condition: Tensor | None) -> Tensor:
        """The block's output, (N, h, H, W).

        Arguments:
            x: (N, h, H, W).
            active: `concat_elu(x)`.
            shortcuts: Activations, (N, 2h, H, W) each.
            condition: (N, n_condition), or None.
        """
        y = self.first(active)
        for shortcut, other in zip(self.shortcuts, shortcuts, strict=True):
            y = y + shortcut(other)
        y = self.second(self.dropout(concat_elu(y)))  # (N, 2h, H, W)
        if self.condition is not None and condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        return x + F.glu(y, 1)


@dataclass(frozen=True)
class RowOfTaps:
    """L equal shifted convolutions at work on one row of sites in drawing.

    What the row above adds to the outputs is computed by `begin` for all sites and convolutions at once; the row's own
    taps are added to it in place.
    """

    inputs: Tensor
    """Inputs of the row as far as they are known, else of the row above; zeros beside it; (L or more, N, P, C_in)."""
    windows: Tensor
    """A view of `inputs`: what a kernel of each site sees of the row, (L or more, N, W, width * C_in)."""
    begun: Tensor
    """Outputs as far as they are known, (L, N, W, C_out), or W / 2 rounded up, with a stride of 2."""
    bias: Tensor
    """(L, 1 or N, 1, C_out)."""
    above: Tensor
    """The kernels' upper rows, (L, width * C_in, C_out)."""
    own: tuple[Tensor, ...]
    """The kernels' lower rows, L of (width * C_in, C_out)."""
    width: int
    """W of the inputs."""

    @staticmethod
    def of(convolutions: Sequence[ShiftedConv2d], n: int, width: int, bias: Tensor, n_spare: int = 0) -> RowOfTaps:
        """Caches for n images of rows of `width` sites.

        Arguments:
            convolutions: Of equal shape, two rows high.
            bias: (L, 1 or N, C_out).
            n_spare: Inputs to be kept beside those of the convolutions.
        """
        like = convolutions[0]
        out_channels, in_channels, _, columns = like.weight.shape
        n_positions = like.padding[0] + width + like.padding[1]
        taps = torch.stack([convolution.taps() for convolution in convolutions])  # (L, 2, width * C_in, C_out)
        inputs = like.weight.new_zeros(len(taps) + n_spare, n, n_positions, in_channels)
        size = (len(inputs), n, -(-width // like.stride), columns * in_channels)
        apart = (*inputs.stride()[:2], like.stride * in_channels, 1)
        begun = inputs.new_empty(len(taps), *size[1:3], out_channels)
        above, own = taps.unbind(1)
        return RowOfTaps(
            inputs=inputs,
            windows=inputs.as_strided(size, apart),
            begun=begun,
            bias=bias.unsqueeze(2),
            above=above.contiguous(),
            own=own.contiguous().unbind(),
            width=width,
        )

    @property
    def features(self) -> Tensor:
        """Inputs without the zeros beside them, (L or more, N, W, C_in)."""
        return self.inputs[:, :, 1 : 1 + self.width]

    def places(self, i: int) -> Tensor:
        """Where `concat_elu` of some features belongs to become the i-th inputs, (N, W, 2, C_in / 2)."""
        return self.features[i].unflatten(2, (2, -1))

    def begin(self) -> None:
        """A new row: its row above is complete."""
        self.begun.copy_(self.bias)
        seen = self.windows[: len(self.begun)].flatten(1, 2)  # (L, N * W, width * C_in)
        self.begun.flatten(1, 2).baddbmm_(seen, self.above)


class Slot(NamedTuple):
    """Where a gated block works in drawing: views of the caches at M = N sites of one column, or N * W of one row.

    Features of sites are (N, 1, h) there or (N, W, 1, h), and their activations the same with 2 in place of 1.
    """

    active: Tensor
    """Where the activations of the block's input belong."""
    seen: Tensor
    """What the first convolution sees of the row, (N, width * 2h) or (N, W, width * 2h)."""
    weight: Tensor
    """Its weights for it, (width * 2h, h)."""
    y: Tensor
    """Its output as far as it is known, (M, h)."""
    features: Tensor
    """The same as features of sites."""
    gate_active: Tensor
    """As `active`, and so on, of the second convolution."""
    gate_seen: Tensor
    gate_weight: Tensor
    gate_y: Tensor
    """(M, 2h)."""
    gates: Tensor

    @staticmethod
    def of_row(first: RowOfTaps, second: RowOfTaps, i: int) -> Slot:
        """For the i-th block, at all sites of a row."""
        parts = (
            part
            for taps in (first, second)
            for part in (
                taps.places(i),
                taps.windows[i],
                taps.own[i],
                taps.begun[i].flatten(0, 1),
                taps.begun[i].unsqueeze(2),
            )
        )
        return Slot(*parts)

    @staticmethod
    def of_columns(first: RowOfTaps, second: RowOfTaps, i: int) -> list[Slot]:
        """For the i-th block, at each column."""
        width = first.begun.shape[2]
        parts = (
            part
            for taps in (first, second)
            for part in (
                taps.places(i).unbind(1),
                taps.windows[i].unbind(1),
                [taps.own[i]] * width,
                taps.begun[i].unbind(1),
                taps.begun[i].unsqueeze(2).unbind(1),
            )
        )
        return [Slot(*of_column) for of_column in zip(*parts, strict=True)]

    def run(self, x: Tensor, signs: Tensor) -> Tensor:
        """The block's output for its input, both features of sites."""
        active, seen, weight, y, features, gate_active, gate_seen, gate_weight, gate_y, gates = self
        is_row = seen.dim() == 3
        activate(x, signs, active)
        y.addmm_(seen.flatten(0, 1) if is_row else seen, weight)
        activate(features, signs, gate_active)
        gate_y.addmm_(gate_seen.flatten(0, 1) if is_row else gate_seen, gate_weight)
        return F.glu(gates).add_(x)


def activate(x: Tensor, signs: Tensor, out: Tensor) -> None:
    """`concat_elu` of features of sites, (.., 1, h), into a place of (.., 2, h); signs are [[1], [-1]]."""
    F.elu_(torch.mul(x, signs, out=out))


class Resolution(nn.Module):
    """Gated blocks of both streams at one resolution, on the way down to lower ones and on the way back from them.

    Arguments:
        hidden: Features h of a stream.
        n_blocks: Blocks of a stream on the way down. On the way back there is one for each of the features (the input's
            and each block's output) that shortcuts lead from, but for the last at the lowest resolution.
        n_lower: Resolutions below this one.
        n_condition, dropout: As in `GatedBlock`.
    Source:
        Salimans et al. 2017, arXiv:1701.05517, sections 2.3 and 2.4, fig. 2.
    """

    def __init__(self, hidden: int, n_blocks: int, n_lower: int, *, n_condition: int = 0, dropout: float = 0.0) -> None:
        super().__init__()

        def blocks(n: int, direction: Direction, n_shortcuts: int) -> nn.ModuleList:
            return nn.ModuleList(GatedBlock(hidden, direction, n_shortcuts, n_condition, dropout) for _ in range(n))

        n_back = n_blocks + (n_lower > 0)
        self.hidden = hidden
        self.above, self.above_back = blocks(n_blocks, "down", 0), blocks(n_back, "down", 1)
        self.left, self.left_back = blocks(n_blocks, "down_right", 1), blocks(n_back, "down_right", 2)
        self.lower: Lower | None = None
        if n_lower:
            self.lower = Lower(Resolution(hidden, n_blocks, n_lower - 1, n_condition=n_condition, dropout=dropout))

    def forward(self, above: Tensor, left: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams, (N, h, H, W) each, to the same."""
        above_seen, left_seen = [concat_elu(above)], []
        for above_block, left_block in zip(self.above, self.left, strict=True):
            left_seen.append(concat_elu(left))
            above = above_block(above, above_seen[-1], (), condition)
            above_seen.append(concat_elu(above))
            left = left_block(left, left_seen[-1], above_seen[-1:], condition)
        if self.lower is None:
            active = above_seen.pop()
        else:
            left_seen.append(concat_elu(left))
            above, left = self.lower(above, left, condition)
            active = concat_elu(above)
        for above_block, left_block in zip(self.above_back, self.left_back, strict=True):
            above = above_block(above, active, [above_seen.pop()], condition)
            active = concat_elu(above)
            left = left_block(left, concat_elu(left), [active, left_seen.pop()], condition)
        return above, left

    @dataclass(frozen=True)
    class State:
        """What drawing keeps.

        The blocks of a stream stand in this order: those on the way back, last one first, then those on the way down.
        So the features that shortcuts lead from stand in the order of their readers. D is the number of blocks on the
        way back, L that of all. What the last block on the way down gives is activated and kept beside the blocks'
        inputs, as inputs L; what the last one on the way back gives, in the stream above alone, as inputs L + 1.
        """

        taps: tuple[RowOfTaps, ...]
        """First and second convolutions of the stream above, then of the stream on the left."""
        signs: Tensor
        """[[1], [-1]]."""
        above: tuple[list[Slot], list[Slot]]
        """The blocks of the stream above on the way down and back, in the order they run."""
        above_spare: tuple[Tensor, Tensor]
        """Places of the inputs L and L + 1 of the stream above, (N, W, 2, h)."""
        left: list[tuple[list[Slot], list[Slot]]]
        """As `above`, of each column's site."""
        left_spare: tuple[Tensor, ...]
        """As `above_spare`, of the inputs L at each column, (N, 2, h)."""
        above_to_above: tuple[Tensor, Tensor, Tensor]
        """Shortcuts: what they see of a row, (D, N, W, 2h); weights, (D, 2h, h); what they add to, (D, N * W, h)."""
        above_to_left: tuple[Tensor, Tensor, Tensor]
        """As `above_to_above`, of all L blocks."""
        next_above: Tensor
        """What each block on the left sees of the stream above: the inputs that follow its counterpart's, (L)."""
        left_to_left: list[tuple[Tensor, Tensor, Tensor]]
        """As `above_to_above`, at each column: (D, N, 2h), (D, 2h, h), (D, N, h)."""
        lower: Lower.State | None

    def start(self, n: int, size: tuple[int, int], condition: Tensor | None) -> State:
        """Caches for n images of (H, W) sites at this resolution."""
        n_back, n_all, width = len(self.above_back), len(self.above_back) + len(self.above), size[1]
        above, left = _last_first(self.above_back, self.above), _last_first(self.left_back, self.left)
        (first, second), (left_first, left_second) = (
            _taps(above, n, width, condition, n_spare=2),
            _taps(left, n, width, condition, n_spare=1),
        )

        def in_turn(slots: Sequence[Slot]) -> tuple[list[Slot], list[Slot]]:
            return list(slots[n_back:]), list(slots[:n_back])[::-1]

        columns = zip(*[Slot.of_columns(left_first, left_second, i) for i in range(n_all)], strict=True)
        skipped = slice(n_back, 2 * n_back)
        skip_weights = _shortcut_weights(left[:n_back], 1)
        across = torch.cat([_shortcut_weights(left[:n_back], 0), _shortcut_weights(left[n_back:], 0)])
        next_above = [n_all + 1, *range(n_back - 1), *range(n_back + 1, n_all + 1)]
        return self.State(
            (first, second, left_first, left_second),
            first.inputs.new_tensor([[1.0], [-1.0]]),
            in_turn([Slot.of_row(first, second, i) for i in range(n_all)]),
            (first.places(n_all), first.places(n_all + 1)),
            [in_turn(slots) for slots in columns],
            left_first.places(n_all).unbind(1),
            (first.features[skipped], _shortcut_weights(above[:n_back], 0), first.begun[:n_back].flatten(1, 2)),
            (first.features, across, left_first.begun.flatten(1, 2)),
            torch.tensor(next_above, device=across.device),
            [
                (seen, skip_weights, y)
                for seen, y in zip(
                    left_first.features[skipped].unbind(2), left_first.begun[:n_back].unbind(2), strict=True
                )
            ],
            None if self.lower is None else self.lower.start(n, size, condition),
        )

    def row(self, state: State, row: int, above: Tensor) -> Tensor:
        """A new row: the stream above, and what it and the row above add to the stream on the left.

        Arguments:
            above: The stream above at the row's sites, (N, W, 1, h); all sites of the rows above must be done.
        Returns:
            What it becomes, (N, W, 1, h).
        """
        for taps in state.taps:
            taps.begin()
        down, back = state.above
        for slot in down:
            above = slot.run(above, state.signs)
        activate(above, state.signs, state.above_spare[0])
        seen, weights, y = state.above_to_above
        y.baddbmm_(seen.flatten(1, 2), weights)
        if self.lower is not None and state.lower is not None:
            above = self.lower.row(state.lower, row, above)
        for slot in back:
            above = slot.run(above, state.signs)
        activate(above, state.signs, state.above_spare[1])
        seen, weights, y = state.above_to_left
        y.baddbmm_(seen.index_select(0, state.next_above).flatten(1, 2), weights)
        return above

    def site(self, state: State, row: int, column: int, left: Tensor) -> Tensor:
        """What becomes of the stream on the left at the next site of the row, (N, 1, h) to the same."""
        down, back = state.left[column]
        for slot in down:
            left = slot.run(left, state.signs)
        if self.lower is not None and state.lower is not None:
            activate(left, state.signs, state.left_spare[column])
            left = self.lower.site(state.lower, row, column, left)
        seen, weights, y = state.left_to_left[column]
        y.baddbmm_(seen, weights)
        for slot in back:
            left = slot.run(left, state.signs)
        return left


def _last_first(back: nn.ModuleList, down: nn.ModuleList) -> list[GatedBlock]:
    """The blocks of a stream in the order of `Resolution.State`."""
    return [block for block in [*reversed(back), *down] if isinstance(block, GatedBlock)]


def _taps(
    blocks: Sequence[GatedBlock], n: int, width: int, condition: Tensor | None, n_spare: int
) -> tuple[RowOfTaps, RowOfTaps]:
    """Caches of the first and of the second convolutions of blocks."""
    firsts, seconds = [block.first for block in blocks], [block.second for block in blocks]
    bias = torch.stack([convolution.bias for convolution in firsts]).unsqueeze(1)  # (L, 1, h)
    gate_bias = torch.stack([convolution.bias for convolution in seconds]).unsqueeze(1)  # (L, 1, 2h)
    if condition is not None:
        gate_bias = gate_bias + torch.stack([b.condition(condition) for b in blocks if b.condition is not None])
    return RowOfTaps.of(firsts, n, width, bias, n_spare), RowOfTaps.of(seconds, n, width, gate_bias)


def _shortcut_weights(blocks: Sequence[GatedBlock], which: int) -> Tensor:
    """Of one of each block's shortcuts, (blocks, 2h, h)."""
    matrices = [block.shortcuts[which].get_parameter("weight").flatten(1).t() for block in blocks]
    return torch.stack(matrices)


class Lower(nn.Module):
    """The next lower resolution, half as high and half as wide, and the ways to it and back.

    Arguments:
        resolution: With lower ones inside it, if any.
    """

    def __init__(self, resolution: Resolution) -> None:
        super().__init__()
        hidden = resolution.hidden
        self.shrink_above = ShiftedConv2d(hidden, hidden, "down", stride=2)
        self.shrink_left = ShiftedConv2d(hidden, hidden, "down_right", stride=2)
        self.resolution = resolution
        self.grow_above = ShiftedConvTranspose2d(hidden, hidden, "down")
        self.grow_left = ShiftedConvTranspose2d(hidden, hidden, "down_right")

    def forward(self, above: Tensor, left: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams at the higher resolution, (N, h, H, W) each, to the same."""
        size = (above.shape[2], above.shape[3])
        above, left = self.resolution(self.shrink_above(above), self.shrink_left(left), condition)
        return self.grow_above(above, size), self.grow_left(left, size)

    @dataclass(frozen=True)
    class State:
        """What drawing keeps. W and the sites are those of the higher resolution unless something else is said."""

        shrink: tuple[RowOfTaps, RowOfTaps]
        """Of the stream above and of the one on the left."""
        left_places: tuple[Tensor, ...]
        """For each column where its features belong in `shrink`, (N, 1, h)."""
        left_shrink: list[tuple[Tensor, Tensor, Tensor]]
        """For each column of the lower resolution what its convolution sees of the row, (N, 2h), and the output as far
        as it is known, (N, h), also as (N, 1, h)."""
        above_grown: list[Tensor]
        """The stream above at two rows, 2 of (N, W, 1, h)."""
        left_grown: list[Tensor]
        """For each column of the lower resolution what it gives to four sites, (N, 4, h)."""
        grow_left: tuple[Tensor, Tensor]
        """Weights and bias, (h, 4h) and (4h)."""
        resolution: Resolution.State

    def start(self, n: int, size: tuple[int, int], condition: Tensor | None) -> State:
        """Caches for n images of (H, W) sites at the higher resolution."""
        below = (-(-size[0] // 2), -(-size[1] // 2))
        shrink = RowOfTaps.of([self.shrink_above], n, size[1], self.shrink_above.bias[None, None])
        left = RowOfTaps.of([self.shrink_left], n, size[1], self.shrink_left.bias[None, None])
        begun, weight = left.begun[0], self.grow_left.taps()
        unknown = weight.new_zeros(0)  # every one is replaced before it is read
        return self.State(
            (shrink, left),
            left.features[0].unsqueeze(2).unbind(1),
            list(zip(left.windows[0].unbind(1), begun.unbind(1), begun.unsqueeze(2).unbind(1), strict=True)),
            [unknown] * 2,
            [unknown] * below[1],
            (weight, self.grow_left.bias.repeat(4)),
            self.resolution.start(n, below, condition),
        )

    def row(self, state: State, row: int, above: Tensor) -> Tensor:
        """As `Resolution.row`."""
        taps, left_taps = state.shrink
        begins = row % 2 == 0
        if begins:
            taps.begin()
            left_taps.begin()
        taps.features[0] = above.squeeze(2)
        if begins:
            begun = taps.begun[0]  # (N, W / 2, h)
            begun.flatten(0, 1).addmm_(taps.windows[0].flatten(0, 1), taps.own[0])
            low = self.resolution.row(state.resolution, row // 2, begun.unsqueeze(2))  # (N, W / 2, 1, h)
            grown = self.grow_above(low.permute(0, 3, 2, 1), (2, above.shape[1]))  # (N, h, 2, W)
            state.above_grown[:] = grown.permute(2, 0, 3, 1).contiguous().unsqueeze(3).unbind()
        return state.above_grown[row % 2]

    def site(self, state: State, row: int, column: int, left: Tensor) -> Tensor:
        """As `Resolution.site`."""
        state.left_places[column].copy_(left)
        if row % 2 == 0 and column % 2 == 0:
            seen, y, low = state.left_shrink[column // 2]
            y.addmm_(seen, state.shrink[1].own[0])
            low = self.resolution.site(state.resolution, row // 2, column // 2, low)
            weight, bias = state.grow_left
            state.left_grown[column // 2] = torch.addmm(bias, low.squeeze(1), weight).unflatten(1, (4, -1))
        return state.left_grown[column // 2].narrow(1, 2 * (row % 2) + column % 2, 1)


class ShiftedNetwork(CausalLayer):
    """Two streams of gated blocks over several resolutions, of which the stream on the left gives the output.

    Arguments:
        n_inputs: Features of a site that come in; a constant is put beside them, as beyond the image all is zero.
        n_outputs: Features of a site that come out.
        n_resolutions: The image's and those of half, a quarter, ... of its height and width.
        hidden, n_blocks, n_condition, dropout: As in `Resolution`.
    Source:
        Salimans et al. 2017, arXiv:1701.05517, fig. 2. Drawing: Ramachandran et al. 2017, arXiv:1704.06001.
    """

    def __init__(
        self,
        n_inputs: int,
        hidden: int,
        n_outputs: int,
        n_blocks: int,
        n_resolutions: int,
        *,
        n_condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(1)
        self.rows_above = ShiftedConv2d(n_inputs + 1, hidden, "down", (2, 3), shift=(1, 0))
        self.row_above = ShiftedConv2d(n_inputs + 1, hidden, "down", (1, 3), shift=(1, 0))
        self.column_left = ShiftedConv2d(n_inputs + 1, hidden, "down_right", (2, 1), shift=(0, 1))
        self.resolution = Resolution(hidden, n_blocks, n_resolutions - 1, n_condition=n_condition, dropout=dropout)
        self.output = nn.Conv2d(hidden, n_outputs, 1)

    @property
    def reach(self) -> float:
        return math.inf

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1).contiguous(memory_format=torch.channels_last)
        _, left = self.resolution(self.rows_above(x), self.row_above(x) + self.column_left(x), condition)
        return self.output(F.elu(left))

    @dataclass
    class State:
        """What drawing keeps."""

        x: Tensor
        """The last two complete rows and the current one with a column of zeros on either side, (N, 3, W + 2, C_in)."""
        row: int
        """The row that has begun, -1 at first."""
        rows_above: Tensor
        """Weights of this layer, (2 * 3 * C_in, h)."""
        row_above: Tensor
        """Weights for the row above, of `row_above` and `column_left` together, (3 * C_in, h)."""
        bias: Tensor
        """Theirs, (h)."""
        column_left: Tensor
        """Weights for the site on the left, (C_in, h)."""
        left: Tensor
        """The stream on the left at the row's sites as far as rows above tell, (N, W, h)."""
        output: tuple[Tensor, Tensor]
        """Weights and bias of the last layer, (h, C_out) and (C_out)."""
        resolution: Resolution.State

    def start(self, n: int, shape: tuple[int, int], condition: Tensor | None = None) -> State:
        (above_row,), (upper, lower) = self.row_above.taps(), self.column_left.taps()
        above_row = above_row + F.pad(upper, (0, 0, 0, len(above_row) - len(upper)))  # its upper tap is on the left
        x = upper.new_zeros(n, 3, shape[1] + 2, len(upper))
        x[:, 2, 1:-1, -1] = 1
        return self.State(
            x,
            -1,
            self.rows_above.taps().flatten(0, 1),
            above_row,
            self.row_above.bias + self.column_left.bias,
            lower,
            x.new_empty(n, shape[1], upper.shape[1]),
            (self.output.weight.flatten(1).t().contiguous(), self.output.get_parameter("bias")),
            self.resolution.start(n, shape, condition),
        )

    def row(self, state: State, row: int) -> None:
        n, _, length, in_channels = state.x.shape
        if row:
            state.x[:, :2] = state.x[:, 1:].clone()
        size, apart = (n, 2, length - 2, 3 * in_channels), state.x.stride()
        seen = state.x.as_strided(size, apart).transpose(1, 2)  # (N, W, 2, 3 * C_in)
        above = torch.addmm(self.rows_above.bias, seen.reshape(-1, 6 * in_channels), state.rows_above)
        self.resolution.row(state.resolution, row, above.view(n, length - 2, 1, -1))
        state.left = torch.addmm(state.bias, seen[:, :, 1].flatten(0, 1), state.row_above).view(n, length - 2, -1)
        state.row = row

    def context(self, state: State, sites: range) -> list[Any]:
        assert len(sites) == 1, "one site a turn, as the reach says"
        row, column = divmod(sites[0], state.left.shape[1])
        if row != state.row:  # the sampler does not tell of rows
            self.row(state, row)
        left = torch.addmm(state.left[:, column], state.x[:, 2, column], state.column_left).unsqueeze(1)  # (N, 1, h)
        left = F.elu_(self.resolution.site(state.resolution, row, column, left)).squeeze(1)
        weight, bias = state.output
        return [torch.addmm(bias, left, weight).unsqueeze(1), column]  # (N, 1, C_out)

    def step(self, state: State, context: list[Any], group: int) -> Tensor:
        return context[0]

    def write(self, state: State, context: list[Any], x: Tensor, group: int) -> None:
        state.x[:, 2, context[1] + 1, :-1] = x.squeeze(1)
