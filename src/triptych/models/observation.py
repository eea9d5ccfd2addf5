"""What a decoder's output says of the data: p(x|z), normalised over the levels of images, or a density of points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.nn.blocks import Scale, as_levels
from triptych.objectives.elbo import gaussian_log_prob
from triptych.objectives.heads import Bernoulli, Head, LogisticMixture, Softmax, head_of_sites
from triptych.spaces import ImageSpace, PointSpace, Space

LikelihoodName = Literal["auto", "bernoulli", "categorical", "logistic", "gaussian"]


class Observation(ABC):
    """p(x|z) given a decoder's output for z. Has no parameters of its own.

    Outputs are (N, n_outputs, H, W) for images and (N, n_outputs) for points, in any float dtype.
    """

    n_outputs: int
    """Numbers that the decoder gives for each site, or for a point."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """log p(x|z): nats, float32, (N,); of points in data units."""

    @abstractmethod
    def draw(self, outputs: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw from p(x|z), in data units and dtype, (N, *space.shape)."""

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """The mean of p(x|z), in data units and dtype; of colours, which have none, the likeliest."""


class PixelObservation(Observation):
    """Sites that are independent given z, each with the distribution of a head."""

    def __init__(self, space: ImageSpace, head: Head) -> None:
        self.space, self.head = space, head
        self.n_outputs = head.n_groups * head.n_features

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return self.head.log_prob(outputs, x).flatten(1).sum(1)

    def draw(self, outputs: Tensor, generator: Generator | None = None) -> Tensor:
        noise = torch.rand((len(outputs), *self.space.shape), generator=generator, device=outputs.device)
        return as_levels(self.head.draw(outputs, noise), self.space)

    def mean(self, outputs: Tensor) -> Tensor:
        if self.space.palette:
            return as_levels(outputs.unflatten(1, (self.space.channels, -1)).argmax(2), self.space)
        return as_levels(self.head.mean(outputs), self.space)


class PointObservation(Observation):
    """Independent Gaussians with learned variances, in units of the space's scale."""

    def __init__(self, space: PointSpace) -> None:
        self.scale = Scale(space)
        self.space = space
        self.n_outputs = 2 * space.dim

    def _gaussian(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        # A floor of 1e-3 of the data's scale: without one, a point the decoder hits exactly has unbounded density.
        mu, log_var = outputs.float().chunk(2, dim=1)
        return mu, log_var.clamp(-13.8, 8.0)

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        mu, log_var = self._gaussian(outputs)
        # The Jacobian of the standardisation brings the density back to data units.
        return gaussian_log_prob(self.scale.to(x.device)(x), mu, log_var) - self.space.dim * math.log(self.space.scale)

    def draw(self, outputs: Tensor, generator: Generator | None = None) -> Tensor:
        mu, log_var = self._gaussian(outputs)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        return self.scale.to(mu.device).inverse(mu + (0.5 * log_var).exp() * noise)

    def mean(self, outputs: Tensor) -> Tensor:
        return self.scale.to(outputs.device).inverse(self._gaussian(outputs)[0])


def observation_of(space: Space, likelihood: LikelihoodName = "auto", n_mixtures: int = 5) -> Observation:
    """The distribution of data of a space.

    Arguments:
        likelihood: 'bernoulli' for images of two levels; 'categorical', a softmax over the levels of each sub-pixel;
            'logistic', a mixture of discretised logistics with learned scales, which lets green see red, and blue both
            (Salimans et al. 2017, arXiv:1701.05517, sections 2.1 and 2.2); 'gaussian' for points. 'auto' takes the
            Bernoulli for two levels, the softmax for up to 32 levels of one channel and for palettes, else logistics.
        n_mixtures: Logistics of a site.
    Raises:
        InputError: If the likelihood does not fit the space.
    """
    if isinstance(space, PointSpace):
        if likelihood not in ("auto", "gaussian"):
            raise InputError(f"likelihood is {likelihood!r}, which does not fit {space}; leave it out.")
        return PointObservation(space)
    if likelihood == "gaussian" or (likelihood == "bernoulli" and space.levels != 2):
        raise InputError(f"likelihood is {likelihood!r}, which does not fit {space}; leave it out.")
    if likelihood == "logistic" and space.palette is not None:
        raise InputError("likelihood is 'logistic', but the colours of a palette have no order; leave it out.")
    heads: dict[str, Head] = {
        "auto": head_of_sites(space, n_mixtures),
        "bernoulli": Bernoulli(space.channels, space.levels),
        "categorical": Softmax(space.channels, space.levels),
        "logistic": LogisticMixture(space.channels, space.levels, n_mixtures),
    }
    return PixelObservation(space, heads[likelihood])
