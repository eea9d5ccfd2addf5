"""Gated PixelCNN: two stacks of gated convolutions, one for the rows above and one for the row at hand."""

from __future__ import annotations

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.gated import GatedStacks
from triptych.nn.options import check_counts, check_dropout, check_kernel_size, hidden_of_channels
from triptych.objectives.heads import head_of_channels
from triptych.spaces import ImageSpace


class GatedPixelCNN(AutoregressiveDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sub-pixels in raster order and red, green, blue within a pixel.

    A vertical stack of convolutions sees all rows above, a horizontal one the row to the left and what the vertical one
    says of the site; so no earlier sub-pixel within the receptive field is missed. Each unit is a tanh times a gate. A
    softmax over the levels of each sub-pixel (one logit where there are two) reads the horizontal stack.

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on, by biases inside the gates of both stacks; 0 for none.
        hidden: Features p of each stack, a multiple of the number of channels; None for 16 a channel, at least 32. The
            gates take twice as many.
        n_layers: Gated layers.
        kernel_size: Side of the first layer's kernel, odd and at least 3; the others' is 3.
        dropout: Probability with which a gated feature of the horizontal stack is zeroed in training.
    Raises:
        InputError: If an option is out of range, or hidden is not a multiple of the number of channels.
    Source:
        van den Oord et al. 2016, arXiv:1606.05328, sections 2.1 to 2.3, fig. 2 and eq. 2 to 4. Differs: Adam instead
        of RMSProp; dropout; skip connections from all layers to the output.
    """

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int | None = None,
        n_layers: int = 6,
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
        self.network = GatedStacks(
            channels * self.n_inputs,
            hidden,
            channels * self.head.n_features,
            n_layers,
            kernel_size,
            channels,
            n_condition=n_classes,
            dropout=dropout,
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=3e-3),)
