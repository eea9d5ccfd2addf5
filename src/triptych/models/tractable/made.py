"""MADE: p(x) as a product over variables in any order, by one fully connected network under masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.models.base import Batch, Loss, Phase, TractableDensity
from triptych.nn.blocks import as_levels, level_features, n_inputs
from triptych.nn.masked_linear import MaskedNetwork, Masks, even_degrees
from triptych.nn.options import check_counts, check_dropout
from triptych.objectives.heads import Head, LogisticMixture, decide, head_of_sites
from triptych.spaces import ImageSpace, PointSpace, Space

# The most numbers that scoring and drawing hold at once, float32: 256 MiB.
MAX_NUMBERS = 2**26
# The most weights between inputs and outputs that a model has unless it is told to.
MAX_DIRECT = 2**21
# Of the orders and connections; any seed would do, but it must not be the training's.
MASKS_SEED = 150_203_509


class MADE(TractableDensity):
    r"""p(x) = (1/M) sum_m p_m(x), p_m(x) a product over the variables in the m-th of M orders; one network for all.

    The variables are the sub-pixels of an image, C * H * W of them, or the coordinates of a point. Each is predicted
    from those before it: p_m(x) = prod_t p(x_o(t) | x_o(1) .. x_o(t-1)) for an order o. The first order is raster
    order (row, column, then red, green, blue); the others are random, with random connections, and fixed.

    Every p_m is normalised, and so their mean is a normalised density itself, whose logarithm `log_prob` gives exactly
    and from which `sample` draws: first an order, then the variables in this order. (A mean of logits or of
    log-probabilities would be no density.) Training draws an order at each step; the mean of -log p_m(x) over the
    orders is an upper bound of -log p(x).

    A sub-pixel of two levels has a logit, one of up to 32 levels or of palette colours a softmax, any other a mixture
    of discretised logistics. A coordinate has a mixture of Gaussians; its density is exact, in data units.

    Arguments:
        space: Images or points.
        n_classes: Classes to condition on; 0 for none.
        hidden: Units of each hidden layer; None for 512 (images) or 128 (points).
        n_layers: Hidden layers. (Data of one variable have none, as nothing comes before it.)
        n_orders: M, the number of forward passes of a score; None for 8 (images) or 1 (points).
        n_mixtures: Logistics of a sub-pixel or Gaussians of a coordinate; None for 5 (images) or 16 (points).
        direct: Also connect inputs with outputs directly; None to do so for up to 2 million such weights.
        dropout: Probability with which a hidden unit is zeroed in training; None for 0.2 (images) or 0 (points).
    Raises:
        InputError: If an option is out of range.
    Source:
        Germain, Gregor, Murray & Larochelle 2015, arXiv:1502.03509, section 4. Differs: the degrees of
        hidden units are evenly spaced instead of drawn, so that none is missing, and permuted for each further order;
        Adam and dropout; levels beyond two, points (as in MAF, Papamakarios et al. 2017, arXiv:1705.07057, its
        "MADE MoG") and classes.
    """

    supports = (ImageSpace, PointSpace)
    places: Tensor
    degrees: Tensor
    center: Tensor

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        hidden: int | None = None,
        n_layers: int = 2,
        n_orders: int | None = None,
        n_mixtures: int | None = None,
        direct: bool | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, n_classes)
        is_image = isinstance(space, ImageSpace)
        hidden = (512 if is_image else 128) if hidden is None else hidden
        n_orders = (8 if is_image else 1) if n_orders is None else n_orders
        n_mixtures = (5 if is_image else 16) if n_mixtures is None else n_mixtures
        dropout = (0.2 if is_image else 0.0) if dropout is None else dropout
        check_counts(hidden=hidden, n_layers=n_layers, n_orders=n_orders, n_mixtures=n_mixtures)
        check_dropout(dropout)
        self.head: Head | CoordinateMixture = CoordinateMixture(n_mixtures)
        in_features = 1
        if isinstance(space, ImageSpace):
            self.head = head_of_sites(replace(space, channels=1), n_mixtures)  # a sub-pixel is a site of its own
            in_features = n_inputs(space)
        else:
            self.register_buffer("center", torch.tensor(space.center or (0.0,) * space.dim), persistent=False)
        if direct is None:
            direct = space.n_dims**2 * in_features * self.head.n_features <= MAX_DIRECT
        self.hidden, self.n_layers, self.n_orders, self.n_mixtures = hidden, n_layers, n_orders, n_mixtures
        self.direct, self.dropout = direct, dropout
        self.network = MaskedNetwork(
            space.n_dims,
            in_features,
            self.head.n_features,
            hidden,
            n_layers,
            direct=direct,
            n_condition=n_classes,
            dropout=dropout,
        )
        if isinstance(self.head, LogisticMixture | CoordinateMixture):
            self._spread_components(1.0 if is_image else 2.0)
        # In the file of weights, which mean nothing under other masks.
        generator = torch.Generator().manual_seed(MASKS_SEED)
        places = torch.arange(space.n_dims).repeat(n_orders, 1)
        degrees = even_degrees(hidden, space.n_dims).repeat(n_orders, n_layers, 1)
        for order in range(1, n_orders):
            places[order] = torch.randperm(space.n_dims, generator=generator)
            for layer in range(n_layers):
                degrees[order, layer] = degrees[order, layer, torch.randperm(hidden, generator=generator)]
        self.register_buffer("places", places.int())  # (M, D)
        self.register_buffer("degrees", degrees.int())  # (M, n_layers, hidden)

    @torch.no_grad()
    def _spread_components(self, reach: float) -> None:
        """Components that start in one place tend to stay together: lets their means cover -reach .. reach."""
        logits, means, log_scales = self.network.bias.view(-1, 3, self.n_mixtures).unbind(1)  # (D, M) each
        logits.zero_()
        means.copy_(reach * (2 * torch.arange(self.n_mixtures) + 1 - self.n_mixtures) / self.n_mixtures)
        log_scales.fill_(math.log(2 * reach / self.n_mixtures))

    # ---- data as variables, and what the network reads and says of them

    def to_variables(self, x: Tensor) -> Tensor:
        """Data to levels, int64, or to coordinates in units of the space's scale, float32: (N, D), in raster order."""
        x = x.to(self.device)
        if isinstance(self.space, PointSpace):
            return ((x - self.center) / self.space.scale).float()
        return x.long().movedim(1, -1).flatten(1)

    def from_variables(self, variables: Tensor) -> Tensor:
        """The inverse of `to_variables`, in the dtype of data."""
        if isinstance(self.space, PointSpace):
            return (variables * self.space.scale + self.center).float()
        channels, height, width = self.space.shape
        return as_levels(variables.unflatten(1, (height, width, channels)).movedim(-1, 1), self.space)

    def encode(self, variables: Tensor) -> Tensor:
        """Variables, (...), to what the network takes of them, (..., features)."""
        dtype = self.network.bias.dtype
        if isinstance(self.space, PointSpace):
            return variables.to(dtype).unsqueeze(-1)
        return level_features(variables, self.space, dtype)

    def masks(self, order: int | Tensor) -> Masks:
        """The masks of one order, 0 .. n_orders - 1."""
        index = torch.as_tensor(order, device=self.device).view(1)
        # Other ways of indexing by a tensor make the host wait for a GPU.
        return Masks(self.places.index_select(0, index)[0], self.degrees.index_select(0, index)[0])

    def decide(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """The variables, (...), that the network's outputs for them, (..., F), and noise, (..., 1 or 2), decide."""
        if isinstance(self.head, CoordinateMixture):
            return self.head.decide(outputs, noise)
        return self.head.decide(outputs, [], noise[..., 0])

    # ---- the contract

    def order_log_prob(self, x: Tensor, order: int | Tensor, labels: Tensor | None = None) -> Tensor:
        """log p_m(x) for one order m, nats, float32, (N,); otherwise as `log_prob`, but for the checks."""
        variables = self.to_variables(x)
        outputs = self.network(self.encode(variables), self.masks(order), self.condition(labels))  # (N, D, F)
        if isinstance(self.head, CoordinateMixture):
            return self.head.log_prob(outputs, variables).sum(1) - self._log_unit
        sites = outputs.movedim(-1, 1).unsqueeze(2), variables[:, None, None]  # (N, F, 1, D) and (N, 1, 1, D)
        return self.head.log_prob(*sites).flatten(1).sum(1)

    @property
    def _log_unit(self) -> float:
        """Nats by which the log-density of standardised points exceeds that in data units."""
        return self.space.dim * math.log(self.space.scale) if isinstance(self.space, PointSpace) else 0.0

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        # Gradients need everything at once anyway.
        learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        chunks = torch.arange(len(x), device=x.device).split(len(x) or 1 if learning else self._n_chunk())
        nats = [
            torch.stack(
                [self.order_log_prob(x[i], m, None if labels is None else labels[i]) for m in range(self.n_orders)]
            ).logsumexp(0)
            for i in chunks
        ]
        return torch.cat(nats) - math.log(self.n_orders)

    def _n_chunk(self) -> int:
        """How many items may be scored or drawn at once."""
        network = self.network
        n_numbers = self.space.n_dims * (network.in_features + network.out_features) + self.n_layers * self.hidden
        return max(1, MAX_NUMBERS // n_numbers)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        self.space.check(batch.x)
        labels = self.check_labels(len(batch.x), batch.labels if self.n_classes else None, draw=False)
        order = torch.randint(self.n_orders, (1,), generator=generator, device=self.device)
        nats = -self.order_log_prob(batch.x, order, labels).mean()
        bits_per_dim = nats / (self.space.n_dims * math.log(2))
        bound = "bound_" if self.n_orders > 1 else ""
        if isinstance(self.space, PointSpace):
            return Loss(bits_per_dim, {f"{bound}nats_per_point": nats.detach()})
        terms = {f"{bound}nats_per_image": nats.detach(), f"{bound}bits_per_dim": bits_per_dim.detach()}
        return Loss(bits_per_dim, terms)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        orders = torch.randint(self.n_orders, (n,), generator=generator, device=self.device)
        parts = [self.to_variables(torch.zeros(0, *self.space.shape))]
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for start in range(0, n, self._n_chunk()):
                items = slice(start, min(n, start + self._n_chunk()))
                noise = self.noise(items.stop - start, generator)
                parts.append(draw(self, orders[items], noise, None if labels is None else labels[items]))
        return self.from_variables(torch.cat(parts))

    def noise(self, n: int, generator: Generator | None = None) -> Tensor:
        """What decides each variable of n items: uniform on [0, 1), and for points also normal, (n, D, 1 or 2)."""
        shape = (n, self.space.n_dims)
        parts = [torch.rand(shape, generator=generator, device=self.device)]
        if isinstance(self.space, PointSpace):
            parts.append(torch.randn(shape, generator=generator, device=self.device))
        return torch.stack(parts, -1)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=3e-3),)


def draw(model: MADE, orders: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """Draws variables, each item's in an order of its own, computing each unit of the network once.

    Arguments:
        orders: The order of each item, int64, (n,).
        noise: As `MADE.noise` gives, (n, D, 1 or 2).
        labels: int64, (n,), of a class-conditional model.
    Returns:
        Variables, (n, D).
    """
    variables = model.to_variables(torch.zeros(len(noise), *model.space.shape))
    condition = model.condition(labels)
    # Each order takes a copy of the weights, sorted.
    n_at_once = max(1, MAX_NUMBERS // sum(parameter.numel() for parameter in model.parameters()))
    present_orders = orders.unique()
    for start in range(0, len(present_orders), n_at_once):
        present = present_orders[start : start + n_at_once]
        # Orders with fewer items than others draw the first item anew, to no use.
        own = [(orders == order).nonzero().flatten() for order in present]
        items = pad_sequence(own, batch_first=True)  # (M, n)
        wanted = pad_sequence([torch.ones_like(some, dtype=torch.bool) for some in own], batch_first=True)
        increments = model.network.start(
            [model.masks(order) for order in present], items.shape[1], None if condition is None else condition[items]
        )
        order = increments.order.unsqueeze(1)  # (M, 1, D)
        in_order = noise[items].gather(2, order.unsqueeze(3).expand(-1, *items.shape[1:], *noise.shape[1:]))
        drawn = []
        for first, end in increments.turns:
            drawn.append(model.decide(increments.step(first, end), in_order[:, :, first:end]))
            increments.write(first, end, model.encode(drawn[-1]))
        values = torch.cat(drawn, 2)  # (M, n, D)
        variables[items[wanted]] = torch.empty_like(values).scatter_(2, order.expand_as(values), values)[wanted]
    return variables


def draw_naive(model: MADE, order: int, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """What `draw` draws in one order, by a forward pass for each variable: slow, and plainly right.

    For a model in `eval` mode; arguments as of `draw`.
    """
    masks, condition = model.masks(order), model.condition(labels)
    variables = model.to_variables(torch.zeros(len(noise), *model.space.shape))
    for variable in masks.places.argsort().tolist():
        outputs = model.network(model.encode(variables), masks, condition)
        variables[:, variable] = model.decide(outputs[:, variable], noise[:, variable])
    return variables


@dataclass(frozen=True)
class CoordinateMixture:
    """A mixture of Gaussians for each coordinate of a point, in units of the space's scale."""

    n_mixtures: int

    @property
    def n_features(self) -> int:
        """M mixture logits, means and log-scales."""
        return 3 * self.n_mixtures

    def _components(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log-scales of the components, float32, (..., M) each."""
        logits, means, log_scales = outputs.float().chunk(3, -1)
        # A floor of 1e-3 of the data's scale: without one, a component on a single point has unbounded density.
        return logits, means, log_scales.clamp(-7.0, 7.0)

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Log-density of coordinates (...), given the network's outputs for them, (..., 3 M): nats, float32, (...)."""
        logits, means, log_scales = self._components(outputs)
        z = (x.unsqueeze(-1) - means) * (-log_scales).exp()
        log_normal = -0.5 * (z.square() + math.log(2 * math.pi)) - log_scales
        return (logits.log_softmax(-1) + log_normal).logsumexp(-1)

    def decide(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """The coordinates, (...), that belong to a uniform number, for the component, and a normal one, (..., 2)."""
        logits, means, log_scales = self._components(outputs)
        component = decide(logits, noise[..., 0]).unsqueeze(-1)
        mean, log_scale = (part.gather(-1, component).squeeze(-1) for part in (means, log_scales))
        return mean + log_scale.exp() * noise[..., 1]
