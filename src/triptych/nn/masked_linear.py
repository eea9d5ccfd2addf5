"""Fully connected layers under masks: every unit has a degree, the number of variables it may depend on.

Of D variables in some order, that at place t (0 .. D-1) has degree t + 1 as an input; a hidden unit of degree d sees
whatever has a degree up to d, that is, the first d variables and the units that see no more than these; and the output
that speaks of the variable at place t has degree t, so that it sees the variables before it alone. Degrees are all
that masks are made of, so that one set of weights serves any order of the variables.

Units of degree d are final as soon as the first d variables are known. So drawing computes every unit once, when its
turn comes, from inputs and units that are final too: the whole of it costs the arithmetic of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import parallel


def even_degrees(n_units: int, n_variables: int) -> Tensor:
    """Degrees of a hidden layer's units, ascending and evenly spaced over 1 .. n_variables - 1: int32, (n_units,)."""
    steps = max(1, n_units - 1)
    return (1 + (torch.arange(n_units) * max(0, n_variables - 2) + steps // 2) // steps).int()


class MaskedLinear(nn.Module):
    """A linear layer between groups of features: a group sees the groups of a degree up to its own.

    Arguments:
        n_in: Groups of the input.
        n_out: Groups of the output.
        in_features: Features of each group of the input.
        out_features: Features of each group of the output.
        bias: Whether to add one.
    Source:
        Germain, Gregor, Murray & Larochelle 2015, arXiv:1502.03509, section 4. Differs: masks follow from degrees
        at each use instead of being stored.
    """

    def __init__(self, n_in: int, n_out: int, in_features: int = 1, out_features: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.n_in, self.n_out, self.in_features, self.out_features = n_in, n_out, in_features, out_features
        # PyTorch's bound, by groups: of an indicator vector's features one alone is not zero.
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_out * out_features, n_in * in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out * out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
        """(N, n_in * in_features) to (N, n_out * out_features), for groups of these degrees, (n_in,) and (n_out,)."""
        # As numbers: on the CPU a product with them is quicker than a choice by truth values.
        mask = (in_degrees <= out_degrees.unsqueeze(1)).to(self.weight.dtype)  # (n_out, n_in)
        weight = self.weight.view(self.n_out, self.out_features, self.n_in, self.in_features) * mask[:, None, :, None]
        return F.linear(x, weight.view_as(self.weight), self.bias)

    def sort(self, inputs: Sorting, outputs: Sorting, base: Tensor | None = None) -> SortedLinear:
        """The layer between groups sorted by degree, once for each of M orders.

        Arguments:
            base: What to add to the layer's output, (M, n or 1, n_out * out_features), in the layer's own order.
        """
        blocks = self.weight.view(self.n_out, self.out_features, self.n_in, self.in_features)
        weights = [
            blocks[o][:, :, i].flatten(2).flatten(0, 1) for i, o in zip(inputs.groups, outputs.groups, strict=True)
        ]
        base = self.weight.new_zeros(1, 1, len(self.weight)) if base is None else base
        base = base if self.bias is None else base + self.bias
        return SortedLinear(
            torch.stack(weights),
            outputs.sort(base, self.out_features),
            [n * self.in_features for n in inputs.n_below],
            [n * self.out_features for n in outputs.n_below],
        )


@dataclass(frozen=True)
class Sorting:
    """Groups of features in ascending order of their degrees, in each of M orders alike in how many have which."""

    groups: Tensor
    """The groups in that order, int64, (M, G)."""
    n_below: list[int]
    """How many of them have a degree below 0, 1, .. D + 1."""

    @staticmethod
    def of(degrees: Tensor, n_variables: int) -> Sorting:
        """Of degrees 0 .. D, (M, G)."""
        ordered, groups = degrees.sort(stable=True, dim=1)
        assert (ordered == ordered[:1]).all(), "every order must have as many units of each degree"
        return Sorting(groups, [0, *ordered[0].bincount(minlength=n_variables + 1).cumsum(0).tolist()])

    def sort(self, x: Tensor, n_features: int) -> Tensor:
        """(M or 1, n, G * n_features) in the groups' own order, to sorted."""
        x = x.expand(len(self.groups), -1, -1).unflatten(2, (-1, n_features))
        return x.gather(2, self.groups[:, None, :, None].expand_as(x)).flatten(2)


@dataclass(frozen=True)
class SortedLinear:
    """A masked layer between sorted groups, in M orders: what may be seen is a prefix of the input; no mask is left."""

    weight: Tensor
    """(M, outputs, inputs)."""
    base: Tensor
    """What no input tells, such as the bias: (M, n or 1, outputs)."""
    reads: list[int]
    """Inputs of a degree below 0, 1, .. D + 1."""
    writes: list[int]
    """Outputs of a degree below 0, 1, .. D + 1."""

    def rows(self, degree: int, end: int) -> slice:
        """The outputs of degrees degree .. end - 1."""
        return slice(self.writes[degree], self.writes[end])

    def __call__(self, x: Tensor, degree: int, end: int) -> Tensor:
        """These outputs, (M, n, rows), from the inputs of a degree up to `degree`, a prefix of x, (M, n, inputs)."""
        rows, n_seen = self.rows(degree, end), self.reads[degree + 1]
        return torch.baddbmm(self.base[:, :, rows], x[:, :, :n_seen], self.weight[:, rows, :n_seen].mT)


@dataclass(frozen=True)
class Masks:
    """One order of the variables and one set of connections: all that a network's masks are made of."""

    places: Tensor
    """Place of each variable in the order, a permutation of 0 .. D-1, int32, (D,)."""
    degrees: Tensor
    """Degrees of the hidden units, 1 .. D-1, int32, (n_layers, hidden)."""


class MaskedNetwork(nn.Module):
    """A perceptron that answers for each variable from the variables before it, in an order given at each use.

    A network of one variable has nothing to look at, and so no hidden layers: it is a bias.

    Arguments:
        n_variables: D.
        in_features: Features of a variable.
        out_features: Features of the answer for a variable.
        hidden: Units of each hidden layer.
        n_layers: Hidden layers.
        direct: Connect inputs with outputs directly, too.
        n_condition: Features of the condition, seen by the first hidden layer and by the outputs; 0 for none.
        dropout: Probability with which a hidden unit is zeroed in training.
    Source:
        Germain et al. 2015, arXiv:1502.03509, section 4. Differs: the condition.
    """

    def __init__(
        self,
        n_variables: int,
        in_features: int,
        out_features: int,
        hidden: int,
        n_layers: int,
        *,
        direct: bool = False,
        n_condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_variables, self.in_features, self.out_features = n_variables, in_features, out_features
        if n_variables == 1:
            hidden, n_layers, direct = 0, 0, False
        self.layers = nn.ModuleList(
            MaskedLinear(hidden, hidden) if i else MaskedLinear(n_variables, hidden, in_features)
            for i in range(n_layers)
        )
        # In PyTorch's bounds for a layer of `hidden` units.
        bound = 1 / math.sqrt(max(1, hidden))
        self.bias = nn.Parameter(torch.empty(n_variables * out_features).uniform_(-bound, bound))
        self.out = MaskedLinear(hidden, n_variables, 1, out_features, bias=False) if n_layers else None
        self.direct: MaskedLinear | None = None
        if direct:
            self.direct = MaskedLinear(n_variables, n_variables, in_features, out_features, bias=False)
            nn.init.zeros_(self.direct.weight)
        self.condition_in = nn.Linear(n_condition, hidden, bias=False) if n_condition and n_layers else None
        self.condition_out = nn.Linear(n_condition, n_variables * out_features, bias=False) if n_condition else None
        self.dropout = parallel.Dropout(dropout)

    def forward(self, x: Tensor, masks: Masks, condition: Tensor | None = None) -> Tensor:
        """All variables at once.

        Arguments:
            x: Features of the variables, (N, D, in_features).
            masks: The order, and the connections.
            condition: (N, n_condition), of a network that has one.
        Returns:
            (N, D, out_features), variables in the order of x, whatever that of the masks.
        """
        x = x.flatten(1)  # (N, D * in_features)
        y = self.bias.expand(len(x), -1) if self.condition_out is None else self.bias + self.condition_out(condition)
        h, seen = x, masks.places + 1
        for i, layer in enumerate(self.layers):
            h, seen = layer(h, seen, masks.degrees[i]), masks.degrees[i]
            if i == 0 and self.condition_in is not None:
                h = h + self.condition_in(condition)
            h = self.dropout(h.relu())
        if self.out is not None:
            y = y + self.out(h, seen, masks.places)
        if self.direct is not None:
            y = y + self.direct(x, masks.places + 1, masks.places)
        return y.unflatten(1, (self.n_variables, self.out_features))

    def start(self, masks: Sequence[Masks], n: int, condition: Tensor | None = None) -> Increments:
        """What is needed to draw n items in each of several orders at once, place by place.

        The increments are what `forward` gives in evaluation mode, that is, without dropout, whatever the mode.

        Arguments:
            masks: M orders, with as many hidden units of each degree.
            n: Items in each order.
            condition: (M, n, n_condition), of a network that has one.
        """
        places = torch.stack([one.places for one in masks])  # (M, D)
        variables, outputs = Sorting.of(places + 1, self.n_variables), Sorting.of(places, self.n_variables)
        read, layers = variables, []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, MaskedLinear)
            units = Sorting.of(torch.stack([one.degrees[i] for one in masks]), self.n_variables)
            told = self.condition_in(condition) if i == 0 and self.condition_in is not None else None
            layers.append(layer.sort(read, units, told))
            read = units
        base = self.bias.view(1, 1, -1)
        if self.condition_out is not None:
            base = base + self.condition_out(condition)
        if self.out is not None:
            out = self.out.sort(read, outputs, base)
        else:  # One variable: nothing to read.
            base = base.expand(len(masks), -1, -1)
            out = SortedLinear(base.new_zeros(len(masks), base.shape[2], 0), base, [0, 0, 0], [0, base.shape[2]])
        direct = None if self.direct is None else self.direct.sort(variables, outputs)
        return Increments(n, variables.groups, layers, out, direct, self.in_features, self.out_features)


class Increments:
    """A masked network run place by place, for M orders at once: each unit is computed once.

    For each of `turns`, `step` gives the outputs, and `write` takes the features of the variables drawn from them.

    Arguments:
        n: Items in each order.
        order: Variables in their order, int64, (M, D).
        layers: Hidden layers, each between sorted groups.
        out: From the last hidden layer to the outputs.
        direct: From the inputs to the outputs, or None.
        in_features, out_features: Of a variable.
    """

    def __init__(
        self,
        n: int,
        order: Tensor,
        layers: list[SortedLinear],
        out: SortedLinear,
        direct: SortedLinear | None,
        in_features: int,
        out_features: int,
    ) -> None:
        self.order, self.layers, self.out, self.direct = order, layers, out, direct
        self.in_features, self.out_features = in_features, out_features
        n_orders, n_variables = order.shape
        self.inputs = out.weight.new_zeros(n_orders, n, n_variables * in_features)
        self.units = [layer.weight.new_zeros(n_orders, n, layer.weight.shape[1]) for layer in layers]
        # Variables between which no unit learns anything are independent of each other given those before them.
        starts = [
            place
            for place in range(n_variables)
            if place == 0
            or direct is not None
            or any(layer.writes[place] < layer.writes[place + 1] for layer in layers)
        ]
        self.turns = list(zip(starts, [*starts[1:], n_variables], strict=True))
        """Places first .. end - 1 of variables to be drawn at once."""

    def step(self, first: int, end: int) -> Tensor:
        """The network's outputs for the variables at places first .. end - 1, (M, n, end - first, out_features)."""
        x = self.inputs
        for layer, units in zip(self.layers, self.units, strict=True):
            rows = layer.rows(first, end)
            if rows.start < rows.stop:
                units[:, :, rows] = layer(x, first, end).relu_()
            x = units
        y = self.out(x, first, end)
        if self.direct is not None:
            y = y + self.direct(self.inputs, first, end)
        return y.unflatten(2, (end - first, self.out_features))

    def write(self, first: int, end: int, features: Tensor) -> None:
        """Takes the features of the variables at these places, (M, n, end - first, in_features)."""
        self.inputs[:, :, first * self.in_features : end * self.in_features] = features.flatten(2)
