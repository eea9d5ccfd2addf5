"""What the classical densities share: data of unit scale, dequantised images, a density of its own for each class.

The classical densities (Gaussian mixture, kernel density, probabilistic PCA, K-means) are densities of real vectors,
estimated by an algorithm of their own. They are composed of what is here, and differ in the algorithm and the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.errors import InputError, counted
from triptych.models.base import Kind
from triptych.nn.blocks import as_levels
from triptych.spaces import ImageSpace, PointSpace, Space

N_NOISE = 8  # Draws of dequantisation noise behind an image's bound.
MAX_ROWS = 2**12  # Vectors that a density scores at once,
MAX_ELEMENTS = 2**22  # and the most elements of the larger tensors in that: 32 MiB in float64.
MIN_VARIANCE = 1e-6  # Of points, relative to the data's: what keeps a density finite where points coincide.


class Standardiser(nn.Module):
    r"""Between data and y: flat vectors, centred and of unit scale, on which a density q(y) is estimated and scored.

    Points are scored exactly. An integer image x is scored through its dequantised version x + u, u uniform in
    [0, 1): E_u log p(x + u) is a lower bound of log P(x), the mass p puts on the unit cell at x. The mean is over fixed
    draws of u, so that the bound is a function of the image alone; the error that these draws leave is then the same
    way for all images. On the digits, other draws move the mean over the test images by 0.02 (K-means) to 0.6 nats
    (probabilistic PCA; standard deviations over 20 sets of draws).

    Arguments:
        space: What one datum is.
        name: Of the model, for messages.
    Raises:
        InputError: If the space is one of palette images.
    Source:
        Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """

    shift: Tensor
    noise: Tensor

    def __init__(self, space: Space, name: str) -> None:
        super().__init__()
        if isinstance(space, ImageSpace) and space.palette is not None:
            raise InputError(f"{name} needs levels with an order; a palette has none. Use pixel_cnn.")
        self.space = space
        self.scale: float
        """Data units in a unit of y."""
        if isinstance(space, PointSpace):
            shift, self.scale = torch.tensor(space.center or (0.0,) * space.dim), space.scale
        else:
            shift, self.scale = torch.full((space.n_dims,), space.levels / 2), space.levels / 4
        self.register_buffer("shift", shift, persistent=False)
        # The noise that scores must not be the noise that an estimation has seen, which comes from the training's seed:
        # a stream that no small seed gives.
        generator = torch.Generator().manual_seed(3_141_592_653)
        noise = torch.rand((N_NOISE, space.n_dims), generator=generator) if self.is_image else torch.zeros(1, 1)
        self.register_buffer("noise", noise, persistent=False)

    @property
    def is_image(self) -> bool:
        """Whether data are dequantised."""
        return isinstance(self.space, ImageSpace)

    @property
    def kind(self) -> Kind:
        """What `log_prob` gives."""
        return "lower bound" if self.is_image else "exact"

    @property
    def n_draws(self) -> int:
        """Draws of noise behind each value of `log_prob`."""
        return len(self.noise)

    @property
    def log_scale(self) -> float:
        """Nats by which the log-density of y exceeds the log-density in data units."""
        return self.space.n_dims * math.log(self.scale)

    @property
    def noise_variance(self) -> float:
        """Variance of the dequantisation noise in a coordinate of y; 0 for points."""
        return 1 / 12 / self.scale**2 if self.is_image else 0.0

    @property
    def max_items(self) -> int:
        """So many items that a float32 copy of them stays below 256 MiB."""
        return max(1000, 2**26 // self.space.n_dims)

    @property
    def n_rows(self) -> int:
        """Vectors y that are worked on at once."""
        return max(1, min(MAX_ROWS, MAX_ELEMENTS // self.space.n_dims))

    @property
    def term(self) -> str:
        """Name under which a negative log-likelihood in data units is logged."""
        return "nats_per_image" if self.is_image else "nats_per_point"

    def forward(self, x: Tensor, noise: Tensor | float = 0.5) -> Tensor:
        """Data, (N, *space.shape) -> y, float32, (N, n_dims).

        Arguments:
            noise: In [0, 1), added to images: a number or (N, n_dims). By default the middle of an image's cell.
        """
        flat = x.flatten(1).to(self.shift)
        return ((flat + noise if self.is_image else flat) - self.shift) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        """y, (N, n_dims) -> data, (N, *space.shape): images are rounded down into their cell."""
        x = (y.float() * self.scale + self.shift.float()).reshape(-1, *self.space.shape)
        return as_levels(x.floor(), self.space) if isinstance(self.space, ImageSpace) else x

    def log_prob(self, x: Tensor, labels: Tensor | None, log_density: Callable[[Tensor, int], Tensor]) -> Tensor:
        """log p(x), exact for points and a bound for images, in bounded memory.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
            labels: int64, (N,), of a class-conditional model.
            log_density: log q(y) under the density of one class (0 of an unconditional model): (n, n_dims) -> (n,).
        Returns:
            Nats per item, in data units, float32, (N,).
        Raises:
            InputError: If x is not of this space.
        """
        self.space.check(x)
        x = x.to(self.shift.device)
        nats = torch.zeros(len(x), device=x.device)
        n_rows = max(1, self.n_rows // self.n_draws)
        which = own_density(labels, len(x), x.device)
        for label in which.unique().tolist():
            for own in (which == label).nonzero().squeeze(1).split(n_rows):
                noisy = self.noise.expand(len(own), -1, -1).flatten(0, 1)  # (n * n_draws, n_dims)
                y = self(x[own].repeat_interleave(self.n_draws, 0), noisy)
                drawn = log_density(y, label).unflatten(0, (len(own), self.n_draws))
                nats = nats.index_copy(0, own, (drawn.mean(1) - self.log_scale).float())
        return nats


def own_density(labels: Tensor | None, n: int, device: torch.device) -> Tensor:
    """Which of a model's densities each of n items has, int64, (n,): its label's, or the only one, 0."""
    return torch.zeros(n, dtype=torch.int64, device=device) if labels is None else labels


def training_densities(
    labels: Tensor | None, n: int, n_classes: int, *, at_least: int, why: str, device: torch.device
) -> Tensor:
    """Which of a model's densities each of n training items belongs to, int64, (n,).

    Arguments:
        labels: int64, (n,); ignored where n_classes is 0.
        at_least: Items that each density needs.
        why: It needs them: the end of a message.
    Raises:
        InputError: If a class has fewer items.
    """
    which = own_density(labels.to(device) if labels is not None and n_classes else None, n, device)
    for label, n_own in enumerate(torch.bincount(which, minlength=max(1, n_classes)).tolist()):
        if n_own < at_least:
            what = f"class {label} has" if n_classes else "the training split has"
            raise InputError(f"{what} {counted(n_own, 'item')}; {why}")
    return which


def squared_distances(y: Tensor, centres: Tensor) -> Tensor:
    """|y_i - c_j|^2 of vectors (N, D) and (M, D): float64, (N, M).

    By one product of matrices, in float64: in float32 the expanded square loses digits where Gaussians are narrow and
    far from the origin.
    """
    y, centres = y.double(), centres.double()
    inner = torch.addmm(centres.square().sum(1), y, centres.T, alpha=-2)
    return (inner + y.square().sum(1, keepdim=True)).clamp_min(0)


def log_normaliser(variance: Tensor, dim: int) -> Tensor:
    """Log of the integral of exp(-|y|^2 / 2v) over `dim` dimensions, for variances v, (...): float64, (...)."""
    return 0.5 * dim * (2 * math.pi * variance.double()).log()


def sized_by_data(model: nn.Module, **axes: int) -> None:
    """Lets buffers of a model have, along one axis each, the size that a file says: the data decide it.

    Arguments:
        axes: Name of a buffer = the axis.
    """
    model.register_load_state_dict_pre_hook(partial(_resize, axes))


def _resize(axes: dict[str, int], model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, axis in axes.items():
        buffer, given = model.get_buffer(name), state.get(prefix + name)
        if given is not None and given.ndim == buffer.ndim:
            shape = [*buffer.shape]
            shape[axis] = given.shape[axis]
            model.register_buffer(name, buffer.new_empty(shape))
