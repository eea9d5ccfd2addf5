"""From x back to z: what a generator answers for p(z|x).

Two ways. An optimisation looks for the latent whose generated datum is nearest to x, item by item: slow, and it needs
nothing but the generator. A recognition network answers at once; it is learnt from the generator's own pairs
afterwards, or plays the adversarial game beside the generator.

References:
    Inverting the Generator of a Generative Adversarial Network, Creswell & Bharath 2018, arXiv:1611.05644.
    Precise Recovery of Latent Vectors from Generative Adversarial Networks, Lipton & Tripathi 2017, arXiv:1702.04782.
    Adversarial Feature Learning, Donahue, Krähenbühl & Darrell 2017, arXiv:1605.09782.
    Adversarially Learned Inference, Dumoulin et al. 2017, arXiv:1606.00704.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.errors import InputError
from triptych.nn.blocks import mlp
from triptych.nn.encoders import Encoder, NetworkName, hidden_of, network_of
from triptych.nn.options import check_counts, check_not_negative
from triptych.objectives.adversarial import OBJECTIVES, ObjectiveName
from triptych.spaces import Space

_SPREAD = 2.0  # Lengths of 99.5 % of normal draws are less than this from their mean.

EncoderName = Literal["none", "after", "bigan"]
"""No recognition network; one learnt after the game from the generator's own pairs; one that plays the game."""

ScaledGenerator = Callable[[Tensor, Tensor | None], Tensor]
"""(z, (N, n_latents), and labels, (N,), or None) -> scaled data, (N, n_channels, ...), differentiable."""


@dataclass(frozen=True)
class InversionSettings:
    """How thoroughly to look for a latent. The work is n_starts * n_steps passes through the generator and back.

    Raises:
        InputError: If one is out of range.
    """

    n_starts: int = 4
    """Latents from which each item is approached; the best answer counts."""
    n_candidates: int = 256
    """Random latents, the same for all items, of which those are starts whose data are nearest to the item."""
    n_steps: int = 200
    """Steps of Adam."""
    learning_rate: float = 0.5
    """Of Adam at the start; it falls to 0 in a cosine. Latents have unit scale."""
    prior: Literal["length", "normal"] = "length"
    """What of the prior is asked of z: the density of the 'length' of a normal draw, which is near the root of
    n_latents, or that of the 'normal' itself, which is highest at 0, where hardly a draw ever is."""
    prior_weight: float = 0.01
    """Weight of its negative logarithm beside the squared error: twice the variance of the noise under which z is the
    likeliest."""
    max_rows: int = 1024
    """Latents at once: starts times items."""

    def __post_init__(self) -> None:
        check_counts(
            n_starts=self.n_starts, n_candidates=self.n_candidates, n_steps=self.n_steps, max_rows=self.max_rows
        )
        if self.n_candidates < self.n_starts:
            raise InputError(f"n_candidates is {self.n_candidates}; it must be at least n_starts, {self.n_starts}.")
        check_not_negative(learning_rate=self.learning_rate, prior_weight=self.prior_weight)
        if self.prior not in ("length", "normal"):
            raise InputError(f"prior is {self.prior!r}; it must be length or normal.")


class Inversion(NamedTuple):
    """What `invert` found."""

    z: Tensor
    """(N, n_latents), float32."""
    squared_error: Tensor
    """||G(z) - y||^2 of each item, summed over its dimensions, in squared units of scaled data, float32, (N,)."""
    objective: Tensor
    """What was minimised: the squared error and the weighted prior, float32, (N,)."""


def invert(
    generate: ScaledGenerator,
    y: Tensor,
    labels: Tensor | None = None,
    *,
    n_latents: int,
    start: Tensor | None = None,
    settings: InversionSettings | None = None,
    generator: Generator | None = None,
) -> Inversion:
    r"""The latents z whose data G(z) are nearest to y: argmin_z ||G(z) - y||^2 - w log p(z).

    Starts are chosen among draws that are the same for all items, and Adam treats every coordinate by itself. So an
    item's answer does not depend on which others it came with, but for rounding. A latent that the data do not change
    with, or by jumps alone, stays as it was drawn. No gradient leaves the function, and none reaches the generator's
    parameters.

    Arguments:
        generate: G. Runs in float32, autocast or not.
        y: Scaled data, (N, n_channels, ...).
        labels: int64, (N,), handed on to `generate` row by row; None for an unconditional one.
        n_latents: Size of z.
        start: Where to begin, (N, n_latents), such as an encoder's answer; None for the n_starts draws from the prior
            whose data are nearest.
        settings: None for the defaults.
        generator: Of the draws, on the device of y; None for PyTorch's own.
    Source:
        Creswell & Bharath 2018, arXiv:1611.05644, algorithm 1 and section III (the prior); the squared error: Lipton &
        Tripathi 2017, arXiv:1702.04782, section 3. Differs: Adam with a falling rate; several starts, from draws
        whose data are near; the prior of the latent's length in the place of stochastic clipping.
    """
    settings = settings or InversionSettings()
    found = []
    with torch.autocast(y.device.type, enabled=False):
        if start is None:
            candidates = torch.randn((settings.n_candidates, n_latents), generator=generator, device=y.device)
            starts = _nearest_starts(generate, y.float(), labels, candidates, settings.n_starts)
        else:
            starts = start.detach().float()[None]
        size = max(1, settings.max_rows // len(starts))
        for first in range(0, max(len(y), 1), size):
            part = slice(first, first + size)
            own = None if labels is None else labels[part]
            found.append(_invert(generate, y[part].float(), own, starts[:, part], settings))
    return Inversion(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def _nearest_starts(
    generate: ScaledGenerator, y: Tensor, labels: Tensor | None, candidates: Tensor, n_starts: int
) -> Tensor:
    """Of latents (K, n_latents), those whose data with an item's label are nearest to it: (n_starts, N, n_latents)."""
    nearest = torch.empty(len(y), n_starts, dtype=torch.int64, device=y.device)
    classes = [None] if labels is None else list(labels.unique())
    for label in classes:
        own = None if label is None else label.expand(len(candidates))
        drawn = generate(candidates, own).float().flatten(1)
        rows = slice(None) if labels is None else labels == label
        nearest[rows] = torch.cdist(y[rows].flatten(1), drawn).topk(n_starts, largest=False).indices
    return candidates[nearest].transpose(0, 1)


def _invert(
    generate: ScaledGenerator, y: Tensor, labels: Tensor | None, starts: Tensor, settings: InversionSettings
) -> Inversion:
    """`invert` of as many items as fit into memory; starts are (n_starts, N, n_latents)."""
    n_starts, n, n_latents = starts.shape
    target = y.repeat(n_starts, *(1,) * (y.ndim - 1))  # row s * N + i is item i from start s
    own = None if labels is None else labels.repeat(n_starts)

    def errors(z: Tensor) -> Tensor:
        return (generate(z, own).float() - target).square().flatten(1).sum(1)

    z = starts.reshape(n_starts * n, n_latents)
    mean, square = torch.zeros_like(z), torch.zeros_like(z)  # of the gradient
    for step in range(settings.n_steps):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(errors(z).sum(), z)
            (prior,) = torch.autograd.grad(_negative_log_prior(z, settings.prior).sum(), z)
        # A latent whose sign alone counts has no gradient; the prior would take it to where its sign is chance.
        gradient = torch.where(gradient == 0, 0.0, gradient + settings.prior_weight * prior)
        rate = settings.learning_rate * (1 + math.cos(math.pi * step / settings.n_steps)) / 2
        z = _adam_step(z.detach(), gradient, mean, square, step, rate)
        if settings.prior == "length":
            z = of_usual_length(z)
    z = z.detach()
    with torch.no_grad():
        squared_error = errors(z).reshape(n_starts, n)
        prior = _negative_log_prior(z, settings.prior).reshape(n_starts, n)
    objective = squared_error + settings.prior_weight * prior
    best = objective.nan_to_num(math.inf).argmin(0)  # (N,)
    item = torch.arange(n, device=y.device)
    return Inversion(z.reshape(n_starts, n, n_latents)[best, item], squared_error[best, item], objective[best, item])


def _adam_step(z: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float) -> Tensor:
    """Latents after a step of Adam, whose running moments of the gradient are changed in place.

    Written out, since the first use of PyTorch's own imports its compiler: ten times as long as a small inversion.

    Arguments:
        step: Steps before this one.
    Source:
        Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    first, second = 0.9, 0.999
    mean.lerp_(gradient, 1 - first)
    square.lerp_(gradient.square(), 1 - second)
    spread = (square / (1 - second ** (step + 1))).sqrt() + 1e-8
    return z - rate * mean / (1 - first ** (step + 1)) / spread


def of_usual_length(z: Tensor) -> Tensor:
    """The latents of a length that draws from a standard normal have that are nearest to z, (N, n_latents).

    Many generators do not care for the length of z. Then Adam's steps only ever add to it, until they turn z no more;
    and a network that is to guess z says next to 0 where it cannot know.
    """
    usual = math.sqrt(max(z.shape[1] - 0.5, 0.5))  # The mean of a chi distribution, whose variance is 1/2 at most.
    length = z.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return z * (length.clamp(max(usual - _SPREAD, 0.0), usual + _SPREAD) / length)


def _negative_log_prior(z: Tensor, prior: Literal["length", "normal"]) -> Tensor:
    """-log p but for a constant, nats, (N,): of z, standard normal, or of its length, which has a chi distribution."""
    squares = z.square().sum(1)
    if prior == "normal":
        return squares / 2
    return squares / 2 - (z.shape[1] - 1) / 2 * (squares + 1e-12).log()


class Recognition(nn.Module):
    """A network from scaled data to latents of a usual length, E(y).

    Arguments:
        space: What one datum is.
        n_classes: Classes that it is told; 0 for none.
        n_latents: Size of z.
        network: Of `nn.encoders.Encoder`; 'auto' takes residual convolutions for images, a perceptron for points.
        hidden: Units a layer, or channels at full size.
        n_blocks: As of `nn.encoders.Encoder`.
    """

    def __init__(
        self,
        space: Space,
        n_classes: int,
        n_latents: int,
        *,
        network: NetworkName = "auto",
        hidden: int | None = None,
        n_blocks: int = 1,
    ) -> None:
        super().__init__()
        network = network_of(network, space)
        hidden = hidden_of(hidden, network, space)
        check_counts(n_latents=n_latents, hidden=hidden, n_blocks=n_blocks)
        self.n_classes = n_classes
        self.encoder = Encoder(space, network, n_classes, hidden, n_blocks, 0.0, n_latents)

    def forward(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data, (N, n_channels, ...), and labels, int64, (N,) -> z, float32, (N, n_latents)."""
        condition = None if labels is None else F.one_hot(labels, self.n_classes)
        return of_usual_length(self.encoder.of_scaled(y, condition).float())


class PairVerdict(nn.Module):
    """What a discriminator of pairs adds to its verdict: logits of features of y together with z.

    Arguments:
        n_features: Of y.
        n_latents: Of z.
        hidden: Units of its two layers.
    Source:
        Donahue et al. 2017, arXiv:1605.09782, figure 1: the data go through layers of their own, then join the latent.
    """

    def __init__(self, n_features: int, n_latents: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = mlp(n_features + n_latents, hidden, 1, hidden)
        self.verdict = nn.Linear(hidden, 1, bias=False)  # The verdict on the data has one.

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        """(N, n_features) and (N, n_latents) -> logits, (N,)."""
        h = F.silu(self.layers(torch.cat([features, z.to(features.dtype)], 1)))
        return self.verdict(h).squeeze(1)


class RecognitionErrors(NamedTuple):
    """What a recognition network that is learnt after the game gets wrong; scalars, to be minimised together."""

    latent: Tensor
    """Mean squared error of z from its own generated datum, of each latent; about 2 where nothing is recognised."""
    reconstruction: Tensor
    """Mean squared error of real data through the recognition network and back, of each dimension of scaled data."""


def recognition_errors(
    recognise: ScaledGenerator,
    generate: ScaledGenerator,
    y: Tensor,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    show: Callable[[Tensor], Tensor] = lambda y: y,
) -> RecognitionErrors:
    """The errors of a recognition network on latents it can be told the truth about, and on real data.

    Arguments:
        recognise: E: scaled data and labels -> z.
        generate: G: z and labels -> scaled data. Gradients flow through it, not into latents of its own pairs.
        y: Real scaled data, (N, n_channels, ...).
        z: Draws from the prior, (N, n_latents).
        labels: int64, (N,), of both.
        show: What generated data go through before they are recognised, such as noise.
    Source:
        Latent regression: Donahue et al. 2017, arXiv:1605.09782, section 4 (the baseline "latent regressor"). The
        reconstruction: Zhu et al. 2016, arXiv:1609.03552, section 3.1 (projection by a feedforward network). Differs:
        their sum, and squared errors of the data instead of features.
    """
    with torch.no_grad():
        fake = generate(z, labels)
    latent = (recognise(show(fake), labels) - z).square().mean()
    again = generate(recognise(y, labels), labels)
    return RecognitionErrors(latent, (again.float() - y).square().mean())


def pair_loss(objective: ObjectiveName, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What generator and encoder minimise together when a discriminator judges pairs (x, E(x)) and (G(z), z).

    The generator's loss of the game for the pairs (G(z), z), and for the pairs (x, E(x)) the same loss with real and
    generated exchanged: its mirror image about the point where the logits say nothing.

    Arguments:
        real_logits: Of (x, E(x)), (N,).
        fake_logits: Of (G(z), z), (N,).
    Source:
        Donahue et al. 2017, arXiv:1605.09782, section 3.4 (the exchanged labels, for both parts at once).
    """
    generator = OBJECTIVES[objective].generator
    undecided = 0.5 if objective == "least_squares" else 0.0
    mirrored = generator(2 * undecided - fake_logits, 2 * undecided - real_logits)
    return generator(real_logits, fake_logits) + mirrored
