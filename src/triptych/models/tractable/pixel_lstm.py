"""Pixel LSTM: an image as one sequence of sub-pixels, each predicted by an LSTM from all before it."""

from __future__ import annotations

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.causal import CausalSequential, MaskedConv2d
from triptych.nn.lstm import RasterLSTM
from triptych.nn.options import check_counts, check_dropout
from triptych.objectives.heads import head_of_channels
from triptych.spaces import ImageSpace


class PixelLSTM(AutoregressiveDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sub-pixels in raster order and red, green, blue within a pixel.

    The simplest recurrent network of images: an LSTM walks along the rows, one step a sub-pixel, and all that it knows
    of those before is in its state. It takes the sub-pixel before, and learned vectors for the row, the column and the
    channel it has come to. A linear map of its output gives a softmax over the levels (one logit where there are two).

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on; 0 for none.
        hidden: Features of an LSTM's states.
        n_layers: LSTM layers.
        dropout: Probability with which an output of a layer is zeroed in training on its way up.
    Raises:
        InputError: If an option is out of range.
    Source:
        No one paper's. LSTMs over the pixels of images: Theis & Bethge 2015, arXiv:1506.03478, whose LSTMs are
        two-dimensional; the softmax over the levels: van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759,
        section 2.2. This is the plain LSTM of sequences, as in models of text.
    """

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int = 64,
        n_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(space, n_classes)
        check_counts(hidden=hidden, n_layers=n_layers)
        check_dropout(dropout)
        self.hidden, self.n_layers, self.dropout = hidden, n_layers, dropout
        self.head = head_of_channels(space)
        channels = space.channels
        self.network = CausalSequential(
            [
                RasterLSTM(
                    self.n_inputs,
                    hidden,
                    n_layers,
                    (space.height, space.width),
                    channels,
                    n_condition=n_classes,
                    dropout=dropout,
                ),
                MaskedConv2d(channels * hidden, channels * self.head.n_features, 1, "B", channels),
            ]
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=3e-3),)
