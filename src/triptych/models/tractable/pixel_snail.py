"""PixelSNAIL: p(x) as a product over sites, each predicted from the earlier ones by convolutions and attention."""

from __future__ import annotations

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Phase
from triptych.nn.attention import SnailNetwork
from triptych.objectives.heads import head_of_sites
from triptych.spaces import ImageSpace


class PixelSNAIL(AutoregressiveDensity):
    r"""log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}), sites in raster order, all channels of a site at once.

    Gated causal convolutions see what is near; between them, causal attention lets every site look up any earlier one.

    Arguments:
        space: Images; the levels of palette images enter as indicator vectors, others scaled to [-1, 1].
        n_classes: Classes to condition on; 0 for none.
        hidden: Features between the layers; the convolutions inside the gates have twice as many.
        n_blocks: Attention blocks. Their time grows with the square of the number of sites.
        n_layers: Gated residual blocks before each attention block.
        n_heads: Heads of each attention block, of 16 features each.
        kernel_size: Side of the first convolution, odd and at least 3.
        dropout: Probability with which a gated feature is zeroed in training.
        n_mixtures: Logistics of a site, where the head is a mixture of them: several channels, or more than 32 levels
            that are no palette's.
    Raises:
        InputError: If an option is out of range.
    Source:
        Chen, Mishra, Rohaninejad & Abbeel 2018, arXiv:1712.09763. Differs: one gated convolution a residual block,
        normalised features, rotary positions in attention, classes, as `triptych.nn.attention` says block by block.
    """

    def __init__(
        self,
        space: ImageSpace,
        n_classes: int = 0,
        *,
        hidden: int = 32,
        n_blocks: int = 2,
        n_layers: int = 3,
        n_heads: int = 1,
        kernel_size: int = 7,
        dropout: float = 0.2,
        n_mixtures: int = 10,
    ) -> None:
        super().__init__(space, n_classes)
        self.hidden, self.n_blocks, self.n_layers, self.n_heads = hidden, n_blocks, n_layers, n_heads
        self.kernel_size, self.dropout, self.n_mixtures = kernel_size, dropout, n_mixtures
        self.head = head_of_sites(space, n_mixtures)
        self.network = SnailNetwork(
            space.channels * self.n_inputs,
            self.head.n_features,
            hidden=hidden,
            n_blocks=n_blocks,
            n_layers=n_layers,
            n_heads=n_heads,
            kernel_size=kernel_size,
            n_condition=n_classes,
            dropout=dropout,
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("density", tuple(self.parameters()), learning_rate=8e-3),)
