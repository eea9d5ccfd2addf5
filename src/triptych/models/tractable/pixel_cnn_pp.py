"""PixelCNN++: all channels of a site at once, by two streams of shifted convolutions over several resolutions."""

from __future__ import annotations

from triptych.errors import InputError
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.options import check_counts, check_dropout
from triptych.nn.shifted import ShiftedNetwork
from triptych.objectives.heads import head_of_sites
from triptych.spaces import ImageSpace


class PixelCNNpp(AutoregressiveDensity):
    r"""log p(x) = sum_s log p(x_s | x_1 .. x_{s-1}), sites in raster order, all channels of a site at once.

    Two streams of gated residual blocks: one sees the rows above a site, the other these and the sites on the left in
    its own row. Both go down through lower resolutions and back, with shortcuts from the way down to the way back. A
    site's distribution is a mixture of discretised logistics, in which each channel's mean depends on the channels
    before it; a softmax (one logit for two levels) where a site has one channel of up to 32 levels or of palette
    colours.

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on; 0 for none.
        hidden: Features of each stream. The paper has 160 for CIFAR-10.
        n_blocks: Gated blocks of each stream at each resolution on the way down; on the way back there is one more but
            at the lowest resolution. The paper has 5.
        n_resolutions: How many, each of half the height and width of the one before, rounded up. None for the paper's
            3, or as many as leave the lowest at least 2 sites high or wide.
        dropout: Probability with which a feature between a block's convolutions is zeroed in training.
        n_mixtures: Logistics in the mixture, where there is one.
    Raises:
        InputError: If an option is out of range.
    Source:
        Salimans, Karpathy, Chen & Kingma 2017, arXiv:1701.05517, section 2. Differs: plain weights, PyTorch's
        initialisation, instead of weight normalisation with an initialisation from data; a softmax for few levels.
    """

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int = 24,
        n_blocks: int = 1,
        n_resolutions: int | None = None,
        dropout: float = 0.3,
        n_mixtures: int = 10,
    ) -> None:
        super().__init__(space, n_classes)
        side = max(space.height, space.width)
        most = 1 + (side - 1).bit_length()  # at the last of them an image is a single site
        if n_resolutions is None:
            n_resolutions = max(1, min(3, most - 1))
        if not 1 <= n_resolutions <= most:
            raise InputError(f"n_resolutions is {n_resolutions}; for {space} it must be 1 .. {most}.")
        check_counts(hidden=hidden, n_blocks=n_blocks, n_mixtures=n_mixtures)
        check_dropout(dropout)
        self.hidden, self.n_blocks, self.n_resolutions = hidden, n_blocks, n_resolutions
        self.dropout, self.n_mixtures = dropout, n_mixtures
        self.head = head_of_sites(space, n_mixtures)
        self.network = ShiftedNetwork(
            space.channels * self.n_inputs,
            hidden,
            self.head.n_features,
            n_blocks,
            n_resolutions,
            n_condition=n_classes,
            dropout=dropout,
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=5e-3),)
