"""PixelCNN: p(x) as a product over sub-pixels, each predicted from the earlier ones by masked convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.errors import InputError
from triptych.models.base import Batch, Loss, Phase, TractableDensity
from triptych.nn.blocks import as_levels
from triptych.nn.causal import CausalSequential, MaskedConv2d, Pointwise, ResidualStack
from triptych.objectives.pixel_likelihoods import categorical_log_prob
from triptych.sampling.autoregressive import draw_wavefront
from triptych.spaces import ImageSpace

# The most logits that scoring holds at once, in float32: 256 MiB.
MAX_LOGITS = 2**26


class PixelCNN(TractableDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sub-pixels in raster order and red, green, blue within a pixel.

    A masked 7x7 convolution, residual blocks of masked 3x3 convolutions, two 1x1 convolutions, and a softmax over the
    levels of each sub-pixel.

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on; 0 for none.
        hidden: Features h inside a block (2h between blocks), a multiple of the number of channels; None for 16 a
            channel, at least 32. The paper has 128 for CIFAR-10, with 15 blocks.
        n_blocks: Residual blocks.
        kernel_size: Side of the first convolution, odd and at least 3.
        dropout: Probability with which a block's inner features are zeroed in training.
    Raises:
        InputError: If an option is out of range, or hidden is not a multiple of the number of channels.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, table 1 (PixelCNN) and fig. 5. Differs:
        Adam instead of RMSProp; dropout; classes, as in van den Oord et al. 2016, arXiv:1606.05328, eq. 3.
    """

    space: ImageSpace

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int | None = None,
        n_blocks: int = 5,
        kernel_size: int = 7,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(space, n_classes)
        channels = space.channels
        hidden = 16 * max(channels, 2) if hidden is None else hidden
        if hidden < 1 or hidden % channels:
            nearest = max(1, round(hidden / channels)) * channels
            raise InputError(
                f"hidden is {hidden}; it must be a multiple of the {channels} channels, such as {nearest}."
            )
        if n_blocks < 1:
            raise InputError(f"n_blocks is {n_blocks}; it must be at least 1.")
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}; it must be odd and at least 3.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; it must be at least 0 and less than 1.")
        self.hidden, self.n_blocks, self.kernel_size, self.dropout = hidden, n_blocks, kernel_size, dropout
        n_inputs = space.levels if space.palette is not None else 1
        self.network = CausalSequential(
            [
                MaskedConv2d(channels * n_inputs, 2 * hidden, kernel_size, "A", channels),
                ResidualStack(hidden, n_blocks, channels, n_condition=n_classes, dropout=dropout),
                Pointwise(nn.ReLU(), channels),
                MaskedConv2d(2 * hidden, 2 * hidden, 1, "B", channels),
                Pointwise(nn.ReLU(), channels),
                MaskedConv2d(2 * hidden, channels * space.levels, 1, "B", channels),
            ]
        )

    def encode(self, x: Tensor) -> Tensor:
        """What the network takes of sub-pixels: levels, integers, (...), to features, (..., 1 or levels)."""
        dtype = next(self.parameters()).dtype
        if self.space.palette is not None:
            return F.one_hot(x.long(), self.space.levels).to(dtype)
        return (x.to(dtype) * (2 / (self.space.levels - 1)) - 1).unsqueeze(-1)

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """What the network takes of labels, int64, (N,): indicator vectors, (N, n_classes)."""
        return None if labels is None else F.one_hot(labels, self.n_classes).to(next(self.parameters()).dtype)

    def logits(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities of every sub-pixel's levels, given the sub-pixels before it.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W).
            labels: int64, (N,), of a class-conditional model.
        Returns:
            (N, C, levels, H, W).
        """
        features = self.encode(x).movedim(-1, 2).flatten(1, 2)  # (N, C * features, H, W)
        return self.network(features, self.condition(labels)).unflatten(1, (self.space.channels, self.space.levels))

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        # Gradients need all logits at once anyway.
        learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        n_chunk = len(x) if learning else MAX_LOGITS // (self.space.n_dims * self.space.levels)
        chunks = torch.arange(len(x), device=x.device).split(max(1, n_chunk))
        return torch.cat(
            [categorical_log_prob(self.logits(x[i], None if labels is None else labels[i]), x[i]) for i in chunks]
        )  # (N,)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=3e-3),)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        nats_per_image = -self.log_prob(batch.x, labels).mean()
        bits_per_dim = nats_per_image / (self.space.n_dims * math.log(2))
        return Loss(bits_per_dim, {"nats_per_image": nats_per_image.detach(), "bits_per_dim": bits_per_dim.detach()})

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        condition = self.condition(labels)
        with torch.autocast(self.device.type, enabled=False):
            parts = [
                draw_wavefront(
                    self.network,
                    torch.rand((len(chunk), *self.space.shape), generator=generator, device=self.device),
                    self.encode,
                    None if condition is None else condition[chunk],
                )
                for chunk in torch.arange(n, device=self.device).split(256)
            ]
        return as_levels(torch.cat(parts), self.space)  # (n, C, H, W)
