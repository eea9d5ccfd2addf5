"""The autoencoder: from the linear one, which is PCA, to the convolutional one.

References:
    Auto-association by multilayer perceptrons and singular value decomposition, Bourlard & Kamp 1988.
    Reducing the dimensionality of data with neural networks, Hinton & Salakhutdinov 2006.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from triptych.models.base import Batch, Completed, LatentModel, Loss, Phase
from triptych.models.latents import MAX_DRAWN, latents_of
from triptych.models.tractable.gaussian_mixture import GaussianMixture
from triptych.nn.blocks import Scale
from triptych.nn.encoders import Decoder, Encoder, NetworkName, hidden_of, network_of
from triptych.nn.options import check_counts, check_dropout
from triptych.spaces import ImageSpace, PointSpace, Space

MAX_CODES = 10_000  # Codes that the density is fitted to.
CODE_NOISE = 1e-3  # Variance added to every direction of the standardised codes: a code that never varies has one too.


class Autoencoder(LatentModel, Completed):
    r"""Data through a narrow code and back, with the least squared error. Has no density of its own.

    With `network='linear'` the code spans the subspace of the first principal components: the squared error has no
    other minimum (Baldi & Hornik 1989). What the code's distribution is, training never asks; so drawing goes through
    a mixture of Gaussians that is fitted to the training items' codes afterwards, and p(x) stays undefined.

    Arguments:
        space: What one datum is.
        n_classes: Classes that encoder, decoder and the density of the codes are conditioned on.
        n_latents: Size of the code.
        network: 'linear'; 'sigmoid', a linear map and a sigmoid to the code and a linear map back; 'deep', perceptrons;
            'convolutional', with ReLUs (images only); 'auto' takes the convolutional one for images, else the deep one.
        hidden: Units of each hidden layer ('deep'), or channels at full size ('convolutional').
        n_blocks: Convolutions at each image size, or one less than the hidden layers.
        dropout: Share of units (channels) dropped while training.
        n_components: Gaussians of the density of the codes, of each class.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks". Differs: no
        pretraining; Adam; drawing through a density of the codes, as in Ghosh et al. 2020, arXiv:1903.12436, section 4.
    """

    supports = (ImageSpace, PointSpace)
    has_normal_prior = False
    code_center: Tensor
    code_scale: Tensor

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_latents: int | None = None,
        network: Literal["auto", "linear", "sigmoid", "deep", "convolutional"] = "auto",
        hidden: int | None = None,
        n_blocks: int = 1,
        dropout: float = 0.0,
        n_components: int = 10,
    ) -> None:
        super().__init__(space, n_classes)
        if network == "auto":
            network = "convolutional" if isinstance(space, ImageSpace) else "deep"
        kinds: dict[str, NetworkName] = {"sigmoid": "linear", "linear": "linear", "deep": "mlp"}
        kind = network_of(kinds.get(network, "convolutional"), space)
        n_latents, hidden = latents_of(n_latents, space), hidden_of(hidden, kind, space)
        check_counts(n_latents=n_latents, hidden=hidden, n_blocks=n_blocks, n_components=n_components)
        check_dropout(dropout)
        self.n_latents, self.network, self.hidden, self.n_blocks = n_latents, network, hidden, n_blocks
        self.dropout, self.n_components = dropout, n_components
        self.scale = Scale(space)
        self.encoder = Encoder(space, kind, n_classes, hidden, n_blocks, dropout, n_latents)
        n_outputs = self.scale.n_channels
        self.decoder = Decoder(space, kind, n_latents, n_classes, hidden, n_blocks, dropout, n_outputs)
        self.density = GaussianMixture(
            PointSpace(n_latents), n_classes, n_components=n_components, regularization=CODE_NOISE
        )
        """Of the standardised codes; before it is fitted a standard normal."""
        self.register_buffer("code_center", torch.zeros(n_latents))
        self.register_buffer("code_scale", torch.ones(n_latents))

    def code(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The code of checked data, float32, (N, n_latents)."""
        z = self.encoder(x.to(self.device), self.condition(labels)).float()
        return z.sigmoid() if self.network == "sigmoid" else z

    def reconstruction(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data from codes, float32, (N, n_channels, H, W) or (N, dim)."""
        return self.decoder(z, self.condition(labels)).float()

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        self.space.check(x)
        return self.code(x, self.check_labels(len(x), labels, draw=False))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale.inverse(self.reconstruction(z, self.check_labels(len(z), labels, draw=False)))

    @property
    def max_items(self) -> int:
        return MAX_CODES

    @torch.no_grad()
    def complete(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> None:
        own = labels if self.n_classes else None
        parts = torch.arange(len(x)).split(MAX_DRAWN)
        z = torch.cat([self.encode(x[i], None if own is None else own[i]).cpu() for i in parts])
        self.code_center.copy_(z.mean(0))
        self.code_scale.copy_(z.std(0, correction=0).clamp_min(1e-6))
        z = (z - self.code_center.cpu()) / self.code_scale.cpu()
        # EM wants as many items as components, in each class.
        sizes = [len(x)] if own is None else own.unique(return_counts=True)[1].tolist()
        copies = -(-self.n_components // min(sizes))
        own = None if own is None else own.repeat(copies)
        for _ in self.density.cpu().estimate(z.repeat(copies, 1), own, generator=generator):
            pass
        self.density.to(self.device)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        z = self.density.sample(n, labels=labels, generator=generator) * self.code_scale + self.code_center
        if self.network == "sigmoid":
            z = z.clamp(0, 1)
        chunks = torch.arange(n, device=z.device).split(MAX_DRAWN)
        return torch.cat([self.decode(z[i], None if labels is None else labels[i]) for i in chunks])

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("reconstruction", tuple(self.parameters()), learning_rate=2e-3),)

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        self.space.check(batch.x)
        labels = self.check_labels(len(batch.x), batch.labels if self.n_classes else None, draw=False)
        error = F.mse_loss(self.reconstruction(self.code(batch.x, labels), labels), self.scale(batch.x))
        return Loss(error, {"mean_squared_error": error.detach()})
