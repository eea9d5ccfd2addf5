"""Random changes to what a discriminator sees, real and generated alike, so that it cannot learn few images by heart.

They are differentiable, so that the generator learns through them.

References:
    Differentiable Augmentation for Data-Efficient GAN Training, Zhao et al. 2020, arXiv:2006.10738.
    Training Generative Adversarial Networks with Limited Data, Karras et al. 2020, arXiv:2006.06676.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.spaces import ImageSpace, Space

AugmentName = Literal["none", "diff", "adaptive"]

TARGET = 0.6
"""Mean sign of the logits of real images that the adaptive strength is steered to."""
ADAPTIVE_IMAGES = 100_000
"""Real images over which the adaptive strength can move from 0 to 1."""


class Augmentation(nn.Module):
    """Colour, translation and cutout of scaled images, each kind applied to an image with probability p.

    Brightness, saturation and contrast change RGB images, brightness and contrast grey ones. Binary and palette images
    have no colours between theirs, and keep them. What is moved in or cut out is 0, the middle of the range, which no
    image's border is: so a generator cannot pass off a shifted image for a whole one.

    Arguments:
        space: Images.
        adaptive: Whether p is steered by `adapt`, from 0; otherwise it is 1.
    Source:
        Zhao et al. 2020, arXiv:2006.10738, section 3.2 and its three policies; p: Karras et al. 2020, arXiv:2006.06676,
        section 3. Differs: the adaptive p is that of these three policies, not of the larger pipeline there.
    """

    p: Tensor
    """Probability of each change, a buffer, so that checkpoints hold it; float32, ()."""
    sign: Tensor
    """Running mean of the sign of real logits, -1 .. 1; float32, ()."""

    def __init__(self, space: ImageSpace, *, adaptive: bool) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.has_saturation = space.channels == 3
        self.has_colour = space.palette is None and space.levels > 2
        self.register_buffer("p", torch.tensor(0.0 if adaptive else 1.0))
        self.register_buffer("sign", torch.tensor(0.0))

    def forward(self, y: Tensor, generator: Generator | None = None) -> Tensor:
        """Scaled images, (N, n_channels, H, W), in -1 .. 1, to the same, changed."""
        if self.has_colour:
            y = self._recoloured(y, generator)
        return self._cut(self._moved(y, generator), generator)

    def _uniform(self, y: Tensor, generator: Generator | None) -> Tensor:
        """One number in 0 .. 1 an image, (N, 1, 1, 1)."""
        return parallel.rand((len(y), 1, 1, 1), generator=generator, device=y.device)

    def _chosen(self, y: Tensor, generator: Generator | None) -> Tensor:
        """1 for the images to be changed, 0 for the others, (N, 1, 1, 1)."""
        return (self._uniform(y, generator) < self.p).to(y.dtype)

    def _recoloured(self, y: Tensor, generator: Generator | None) -> Tensor:
        y = y + self._chosen(y, generator) * (self._uniform(y, generator) - 0.5)
        if self.has_saturation:
            factor = 1 + self._chosen(y, generator) * (2 * self._uniform(y, generator) - 1)
            grey = y.mean(1, keepdim=True)
            y = grey + factor * (y - grey)
        factor = 1 + self._chosen(y, generator) * (self._uniform(y, generator) - 0.5)
        mean = y.mean((1, 2, 3), keepdim=True)
        return mean + factor * (y - mean)

    def _moved(self, y: Tensor, generator: Generator | None) -> Tensor:
        """By an eighth of each side at most, in whole sites."""
        chosen = self._chosen(y, generator)
        for dim in (2, 3):
            size = y.shape[dim]
            most = int(size / 8 + 0.5)
            shift = ((2 * most + 1) * self._uniform(y, generator)).floor().clamp(max=2 * most) - most
            shape = (1, 1, size, 1) if dim == 2 else (1, 1, 1, size)
            source = torch.arange(size, device=y.device).view(shape) + (chosen * shift).long()
            inside = (source >= 0) & (source < size)
            y = y.gather(dim, source.clamp(0, size - 1).expand_as(y)) * inside.to(y.dtype)
        return y

    def _cut(self, y: Tensor, generator: Generator | None) -> Tensor:
        """A rectangle half as high and wide as the image, its centre anywhere on it."""
        cut = self._chosen(y, generator) > 0
        for dim in (2, 3):
            size = y.shape[dim]
            length = int(size / 2 + 0.5)
            centres = size + 1 - length % 2
            centre = (centres * self._uniform(y, generator)).floor().clamp(max=centres - 1)
            shape = (1, 1, size, 1) if dim == 2 else (1, 1, 1, size)
            offset = torch.arange(size, device=y.device).view(shape) - (centre - length // 2)
            cut = cut & (offset >= 0) & (offset < length)
        return y * (~cut).to(y.dtype)

    @torch.no_grad()
    def adapt(self, real_logits: Tensor) -> None:
        """Moves p up where the discriminator is too sure of real images, else down.

        Arguments:
            real_logits: Of real images, changed as they were, with their zero between real and generated; (N,).
        Source:
            Karras et al. 2020, arXiv:2006.06676, eq. 1, r_t, and section 3.1. Differs: p moves each step, by the sign
            of a running mean of some four batches, and runs from 0 to 1 in 100,000 images instead of 500,000, since
            trainings here are shorter.
        """
        self.sign.lerp_(parallel.mean(real_logits.float().sign().mean()), 0.25)
        n_images = len(real_logits) * parallel.process()[1]
        self.p.add_((self.sign - TARGET).sign() * (n_images / ADAPTIVE_IMAGES)).clamp_(0, 1)


def augmentation_of(augment: AugmentName, space: Space) -> Augmentation | None:
    """What an option 'none', 'diff' (DiffAugment) or 'adaptive' (the same, its strength steered) asks for.

    Raises:
        InputError: If there is no such option, or points are to be augmented.
    """
    if augment not in ("none", "diff", "adaptive"):
        raise InputError(f"augment is {augment!r}; it must be none, diff or adaptive.")
    if augment == "none":
        return None
    if not isinstance(space, ImageSpace):
        raise InputError(f"augment is {augment!r}, which is for images; points have 'none'.")
    return Augmentation(space, adaptive=augment == "adaptive")
