"""Row LSTM: p(x) as a product over sub-pixels, predicted by LSTMs that read the image row by row."""

from __future__ import annotations

import torch

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.causal import CausalSequential, MaskedConv2d, Pointwise
from triptych.nn.lstm import RowLSTMStack
from triptych.nn.options import check_counts, check_dropout, check_kernel_size, hidden_of_channels
from triptych.objectives.heads import head_of_channels
from triptych.spaces import ImageSpace


class RowLSTM(AutoregressiveDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sub-pixels in raster order and red, green, blue within a pixel.

    The PixelRNN whose states flow down the image: a masked 7x7 convolution, residual LSTM layers whose steps are the
    rows, two 1x1 convolutions, and a softmax over the levels of each sub-pixel (one logit where there are two). A state
    takes three states of the row above, so that a layer sees a triangle that widens by a column on either side with
    each row up.

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on; 0 for none.
        hidden: Features h of an LSTM's states (2h between layers), a multiple of the number of channels; None for 16 a
            channel, at least 32. The paper has 128 for CIFAR-10.
        n_layers: LSTM layers. The paper has 12 for CIFAR-10.
        kernel_size: Side of the first convolution, odd and at least 3.
        dropout: Probability with which a feature of a layer's states is zeroed in training on its way to the next
            layer.
    Raises:
        InputError: If an option is out of range, or hidden is not a multiple of the number of channels.
    Source:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759, sections 3.1 and 3.3 to 3.5, and table 1 (Row
        LSTM). Differs: Adam instead of RMSProp; forget gates that start open; dropout; classes, as in van den Oord
        et al. 2016, arXiv:1606.05328, eq. 3.
    """

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int | None = None,
        n_layers: int = 3,
        kernel_size: int = 7,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(space, n_classes)
        channels = space.channels
        hidden = hidden_of_channels(hidden, channels)
        check_counts(n_layers=n_layers)
        check_kernel_size(kernel_size)
        check_dropout(dropout)
        self.hidden, self.n_layers, self.kernel_size, self.dropout = hidden, n_layers, kernel_size, dropout
        self.head = head_of_channels(space)
        self.network = CausalSequential(
            [
                MaskedConv2d(channels * self.n_inputs, 2 * hidden, kernel_size, "A", channels),
                RowLSTMStack(hidden, n_layers, channels, n_condition=n_classes, dropout=dropout),
                Pointwise(torch.relu, channels),
                MaskedConv2d(2 * hidden, 2 * hidden, 1, "B", channels),
                Pointwise(torch.relu, channels),
                MaskedConv2d(2 * hidden, channels * self.head.n_features, 1, "B", channels),
            ]
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=3e-3),)
