"""PixelCNN: p(x) as a product over sub-pixels, each predicted from the earlier ones by masked convolutions."""

from __future__ import annotations

import torch

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.causal import CausalSequential, MaskedConv2d, Pointwise, ResidualStack
from triptych.nn.options import check_counts, check_dropout, check_kernel_size, hidden_of_channels
from triptych.objectives.heads import head_of_channels
from triptych.spaces import ImageSpace


class PixelCNN(AutoregressiveDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sub-pixels in raster order and red, green, blue within a pixel.

    A masked 7x7 convolution, residual blocks of masked 3x3 convolutions, two 1x1 convolutions, and a softmax over the
    levels of each sub-pixel (one logit where there are two).

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
        Adam instead of RMSProp; dropout; an initialisation that keeps the variance (He et al. 2015, arXiv:1502.01852,
        eq. 10); classes, as in van den Oord et al. 2016, arXiv:1606.05328, eq. 3.
    """

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
        hidden = hidden_of_channels(hidden, channels)
        check_counts(n_blocks=n_blocks)
        check_kernel_size(kernel_size)
        check_dropout(dropout)
        self.hidden, self.n_blocks, self.kernel_size, self.dropout = hidden, n_blocks, kernel_size, dropout
        self.head = head_of_channels(space)
        first = MaskedConv2d(channels * self.n_inputs, 2 * hidden, kernel_size, "A", channels)
        mix = MaskedConv2d(2 * hidden, 2 * hidden, 1, "B", channels)
        first.initialise(1)
        mix.initialise(2)
        self.network = CausalSequential(
            [
                first,
                ResidualStack(hidden, n_blocks, channels, n_condition=n_classes, dropout=dropout),
                Pointwise(torch.relu, channels),
                mix,
                Pointwise(torch.relu, channels),
                MaskedConv2d(2 * hidden, channels * self.head.n_features, 1, "B", channels),
            ]
        )

    def phases(self) -> tuple[Phase, ...]:
        # On binarised MNIST 2e-3 stands still at 88 nats, where this rate goes on to below 84.
        return (Phase("density", tuple(self.parameters()), learning_rate=6e-3),)
