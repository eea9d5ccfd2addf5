"""What all autoregressive models of images share: p(x) as a product over sites in raster order.

A model of this kind is a causal network and a head. The network says how the parameters of each site's distribution
follow from the sites before it, the head what that distribution is; scoring is one forward pass, and drawing goes
through the samplers of `triptych.sampling.autoregressive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from triptych.errors import InputError
from triptych.models.base import Batch, Loss, TractableDensity
from triptych.nn.blocks import as_channels, as_levels, level_features, n_inputs
from triptych.nn.causal import CausalLayer
from triptych.objectives.heads import Head
from triptych.sampling.autoregressive import Drawing, Sampler, Warp, draw
from triptych.spaces import ImageSpace

# The most outputs of the network that scoring holds at once, in float32: 256 MiB.
MAX_OUTPUTS = 2**26
# Images times sites that are scored or drawn at once, since the features inside a network grow with them.
MAX_SITES = 2**18

Watch = Callable[[slice, Tensor, range], None]
"""Called while images are drawn, after each turn: which of the images, their levels so far (n, C, H * W) with zeros
where nothing is drawn yet, and the positions row * W + column just decided."""


class AutoregressiveDensity(TractableDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sites in raster order; red, green, blue within a site.

    A final class sets `network` and `head`, whose groups must agree. The network takes `encode(x)`: for each sub-pixel
    one feature, or one a colour of palette images, in groups of one channel.
    """

    space: ImageSpace
    network: CausalLayer
    head: Head

    @property
    def n_inputs(self) -> int:
        """Features of a sub-pixel that the network takes."""
        return n_inputs(self.space)

    @property
    def n_outputs(self) -> int:
        """Numbers that the network gives for an image."""
        return self.space.height * self.space.width * self.head.n_groups * self.head.n_features

    def encode(self, x: Tensor) -> Tensor:
        """Levels, integers, (...), to what the network takes of them, (..., n_inputs), see `level_features`."""
        return level_features(x, self.space, next(self.parameters()).dtype)

    def outputs(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The parameters of every site's distribution, given the sites before it: what the head reads.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W).
            labels: int64, (N,), of a class-conditional model.
        Returns:
            (N, n_groups * n_features, H, W), n_groups and n_features of the head.
        """
        return self.network(as_channels(self.encode(x)), self.condition(labels))

    def site_log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p of each site's sub-pixels given the sites before it, nats, float32, (N, H, W).

        Their sum is log p(x), and a sum over the last sites the log-probability of these given the first.
        Arguments and errors are those of `log_prob`.
        """
        self.space.check(x)
        x = x.to(self.device)
        labels = self.check_labels(len(x), labels, draw=False)
        # Gradients need all outputs at once anyway.
        learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        n_sites = self.space.height * self.space.width
        n_chunk = len(x) if learning else min(MAX_OUTPUTS // self.n_outputs, MAX_SITES // n_sites)
        chunks = torch.arange(len(x), device=x.device).split(max(1, n_chunk))
        return torch.cat(
            [self.head.log_prob(self.outputs(x[i], None if labels is None else labels[i]), x[i]) for i in chunks]
        )

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.site_log_prob(x, labels).flatten(1).sum(1)  # (N,)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        nats_per_image = -self.log_prob(batch.x, labels).mean()
        bits_per_dim = nats_per_image / (self.space.n_dims * math.log(2))
        return Loss(bits_per_dim, {"nats_per_image": nats_per_image.detach(), "bits_per_dim": bits_per_dim.detach()})

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return self.draw(n, labels=labels, generator=generator)

    def draw(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: Generator | None = None,
        sampler: Sampler = "auto",
        warp: Warp = Warp(),  # noqa: B008
        given: Tensor | None = None,
        n_given: int = 0,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draws from p_model, or from p_model given the first sites of each image. Memory is bounded whatever n.

        Arguments:
            n, labels, generator: As in `sample`.
            sampler: How; every sampler draws the same images from the same generator. 'auto' takes the quickest.
            warp: Temperature, top-k and nucleus; with any of them the draws are not from p_model.
            given: Images whose first sites are kept, integers 0 .. levels-1, (n, C, H, W).
            n_given: How many sites are kept, in raster order.
            watch: Told of every turn.
        Returns:
            As `sample`.
        Raises:
            InputError: As `sample`; also if the sampler cannot drive the network, or given images do not fit.
        """
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        if given is not None:
            self.space.check(given, "given images")
            if len(given) != n:
                raise InputError(f"{len(given)} images are given to complete; give {n}, one for each draw.")
            given = given.to(self.device).long()
        elif n_given:
            raise InputError(f"n_given is {n_given}, but no images are given.")
        n_sites = self.space.height * self.space.width
        if not 0 <= n_given <= n_sites:
            raise InputError(f"n_given is {n_given}; it must be 0 .. {n_sites}, the sites of an image.")
        condition = self.condition(labels)
        # The outputs of whole passes must fit, too. One size for all samplers, so that all have the same noise.
        n_chunk = max(1, min(256, MAX_SITES // n_sites, MAX_OUTPUTS // self.n_outputs))
        # Turns are many and small: one look-up each instead of the arithmetic.
        encode = partial(torch.embedding, self.encode(torch.arange(self.space.levels, device=self.device)))
        parts = [torch.zeros((0, *self.space.shape), dtype=torch.int64, device=self.device)]
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, n, n_chunk):
                images = slice(start, min(start + n_chunk, n))
                drawing = Drawing(
                    self.network,
                    self.head,
                    encode,
                    torch.rand((images.stop - start, *self.space.shape), generator=generator, device=self.device),
                    None if condition is None else condition[images],
                    warp,
                    None if given is None else given[images],
                    n_given,
                    None if watch is None else partial(watch, images),
                )
                parts.append(draw(drawing, sampler))
        return as_levels(torch.cat(parts), self.space)  # (n, C, H, W)
