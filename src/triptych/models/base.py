"""The contract of every model, and what each panel of the triptych adds to it.

The panels are the branches of Goodfellow's taxonomy (NIPS 2016 tutorial, arXiv:1701.00160, fig. 9): an exact density,
a bound on one, or none at all. A class is either abstract (here) or final (one file each): models are composed, never
derived from each other.

Images cross this boundary as integers `0 .. levels - 1`, shape (N, C, H, W); points as float32, (N, dim), in data
units. Scaling and dequantisation live inside the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.errors import InputError
from triptych.models.inversion import InversionSettings, Recognition, invert
from triptych.nn.blocks import Scale
from triptych.spaces import ImageSpace, PointSpace, Space

Kind = Literal["exact", "lower bound", "estimate"]
Measure = Literal["discrete", "continuous"]


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods that say what they are, so that a table never ranks a bound against an exact value unawares."""

    nats: Tensor
    """log p(x) of each item (or its bound or estimate), float32, shape (N,). Higher is better."""
    kind: Kind
    """'lower bound' holds in expectation over the model's own draws."""
    measure: Measure
    """'discrete': a probability of an integer image; 'continuous': a density, in data units."""
    n_samples: int = 1
    """Draws behind each value; 1 for exact values."""


class Batch(NamedTuple):
    """What the trainer hands to `loss`."""

    x: Tensor
    """Images, integers, (N, C, H, W), or points, float32, (N, dim)."""
    labels: Tensor | None = None
    """int64, (N,)."""
    progress: float = 1.0
    """Share of the phase's training that is done, 0 .. 1, for what changes over it."""


class Loss(NamedTuple):
    """What `loss` returns: what to minimise, and its named parts for the log."""

    total: Tensor
    """Scalar, to be differentiated."""
    terms: dict[str, Tensor]
    """Scalars; units and direction in the names (`nats_per_image` is negative log-likelihood, lower is better)."""

    @staticmethod
    def of(total: Tensor, terms: dict[str, Tensor]) -> Loss:
        """A loss whose terms are cut off the graph."""
        return Loss(total, {name: value.detach() for name, value in terms.items()})


@dataclass(frozen=True)
class Phase:
    """Some parameters and how to optimise them; the trainer cycles through the phases of one stage after another.

    A density has one. A GAN has a discriminator (k steps, a fresh batch each) and a generator (1 step). A VQ-VAE has
    two stages of one phase each: its prior is learnt when the codes have settled.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    """All other parameters are frozen during the phase."""
    steps: int = 1
    """Optimiser steps each cycle."""
    learning_rate: float = 1e-3
    """Of Adam, at the start of the schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    weight_decay: float = 0.0
    """Decoupled (AdamW)."""
    clip_norm: float = 1.0
    """Longest gradient, in Euclidean norm; 0 for no limit."""
    clip_ratio: float = 0.0
    """Longest gradient, relative to the running mean of its length, in the place of clip_norm; 0 for no such limit.
    Where few sub-pixels carry most of a likelihood's gradient, its length differs from data set to data set by a factor
    of hundreds, and a limit below the usual length shortens every step by a factor of its own."""
    clip_weights: float = 0.0
    """Largest magnitude of a parameter after each step; 0 for no limit."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate moves over the stage: down to 1 % of its start, or not at all."""
    stage: int = 0
    """Stages follow each other, 0, 1, ...; each begins with the averaged (and by validation chosen) weights of the one
    before, and trains nothing but the parameters of its own phases."""
    stage_share: float = 1.0
    """Size of the stage's part of the budget, relative to those of the other stages. Equal for its phases."""


class GenerativeModel(nn.Module, ABC):
    """Every panel: draws from p_model, and a loss for each of its training phases.

    A final class takes its options as keyword-only arguments, and stores each under its own name (None resolved): run
    folders keep them from there.

    Arguments:
        space: What one datum is.
        n_classes: Number of classes the model is conditioned on; 0 for none.
    """

    supports: ClassVar[tuple[type[Space], ...]] = (ImageSpace,)
    """Spaces the model can be built for."""
    panel: ClassVar[str]
    """'tractable', 'approximate' or 'implicit'."""
    size_option: ClassVar[str | None] = "hidden"
    """The option that sets how many parameters there are, the more the larger; None where the data do."""

    def __init__(self, space: Space, n_classes: int = 0) -> None:
        super().__init__()
        if not isinstance(space, self.supports):
            kinds = " or ".join("images" if kind is ImageSpace else "points" for kind in self.supports)
            raise InputError(f"{type(self).__name__} models {kinds}; it cannot be built for {space}.")
        if n_classes < 0:
            raise InputError(f"n_classes is {n_classes}; it must be 0 (unconditional) or more.")
        self.space = space
        self.n_classes = n_classes

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and so where `sample` draws."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def measure(self) -> Measure:
        """What a likelihood of this model is a likelihood of."""
        return "continuous" if isinstance(self.space, PointSpace) else "discrete"

    @abstractmethod
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws from p_model.

        Arguments:
            n: Number of draws.
            labels: int64, (n,). A class-conditional model without them draws labels uniformly.
            generator: Source of all randomness, on the model's device; None for PyTorch's own.
        Returns:
            Images (uint8, or int32 past 256 levels, (n, C, H, W)) or points (float32, (n, dim)), in data units.
        Raises:
            InputError: If labels are given to an unconditional model, or are out of range or of another length.
        """

    @classmethod
    def defaults_for(cls, space: Space, n_items: int) -> dict[str, Any]:
        """Defaults of options that depend on the number of training items, by name; `triptych.fit` knows it."""
        return {}

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What the trainer optimises, in turn. Every trainable parameter is in at least one phase."""

    @abstractmethod
    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        """The loss of one phase on one batch. Computes no gradient of the parameters itself.

        Arguments:
            batch: Data; labels are ignored by an unconditional model.
            phase: Name of one of `phases()`.
            generator: Source of all randomness but dropout's.
        """

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """What a network takes of labels, int64, (N,): indicator vectors, (N, n_classes), in the parameters' dtype."""
        return None if labels is None else F.one_hot(labels, self.n_classes).to(next(self.parameters()).dtype)

    def check_labels(
        self, n: int, labels: Tensor | None, *, draw: bool, generator: Generator | None = None
    ) -> Tensor | None:
        """Labels fit for `n` items of this model: None if it is unconditional, else int64 of shape (n,).

        Arguments:
            draw: Draw missing labels uniformly (for sampling) instead of refusing (for scoring).
        Raises:
            InputError: As `sample` says.
        """
        name = type(self).__name__
        if self.n_classes == 0:
            if labels is not None:
                raise InputError(f"This {name} is not class-conditional; do not give labels.")
            return None
        if labels is None:
            if not draw:
                raise InputError(f"This {name} is class-conditional; give labels 0 .. {self.n_classes - 1}.")
            return torch.randint(self.n_classes, (n,), generator=generator, device=self.device)
        labels = torch.as_tensor(labels, dtype=torch.int64, device=self.device)
        if labels.shape != (n,):
            raise InputError(f"labels have shape {tuple(labels.shape)}; {n} items need ({n},).")
        if n and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            raise InputError(
                f"labels are {int(labels.min())} .. {int(labels.max())}; they must be 0 .. {self.n_classes - 1}."
            )
        return labels


class TractableDensity(GenerativeModel):
    """Knows log p(x).

    Arguments:
        kind: 'lower bound' where a continuous density scores dequantised images.
        n_draws: Draws of noise behind each value of a bound.
    """

    panel = "tractable"

    def __init__(self, space: Space, n_classes: int = 0, *, kind: Kind = "exact", n_draws: int = 1) -> None:
        super().__init__(space, n_classes)
        self.kind: Kind = kind
        self.n_draws = n_draws

    @abstractmethod
    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | label) of a class-conditional model.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
            labels: int64, (N,); required by a class-conditional model.
        Returns:
            Nats per item, float32, (N,). Higher is better. `self.kind` says whether exact.
        Raises:
            InputError: If x or labels do not fit the model.
        """


class LatentModel(GenerativeModel):
    """Has a decoder from a latent z, and a way back to it: an encoder, or an optimisation over z."""

    panel = "approximate"
    n_latents: int
    """Size of z."""
    has_normal_prior: ClassVar[bool] = True
    """Whether z is standard normal under the model: interpolation is then spherical, and p(x) can be annealed."""

    @abstractmethod
    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        """The latent of data: a mean of q(z|x), or a draw from it, float32, (N, n_latents).

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
            labels: int64, (N,); required by a class-conditional model.
            sample: Draw instead of taking the mean. Where the encoder is deterministic both are the same.
        Raises:
            InputError: If x or labels do not fit the model.
        """

    @abstractmethod
    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean of p(x|z), in data units and dtype (images: rounded to the nearest level), (N, *space.shape)."""


class ApproximateDensity(LatentModel):
    """Knows a lower bound of log p(x), through a latent z and an approximate posterior q(z|x).

    With several stochastic layers, z is all of them, one after the other, in coordinates in which the prior is standard
    normal: a layer with p(z_l | above) = N(mu, sigma^2) enters as (z_l - mu) / sigma.
    """

    n_importance: int = 1
    """Draws of the importance-weighted bound that training maximises, and by which validation chooses."""

    @abstractmethod
    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Monte Carlo estimate of E_q[log p(x|z)] - KL(q(z|x) || p(z)), a lower bound of log p(x).

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
            n_samples: Draws of z per item.
            labels: int64, (N,); required by a class-conditional model.
        Returns:
            Nats per item, float32, (N,). Higher is better.
        Raises:
            InputError: If x or labels do not fit the model.
        """

    @abstractmethod
    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z ~ q(z|x): log importance weights.

        Returns:
            Nats, float32, (n_samples, N).
        """

    @abstractmethod
    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """What each part of z costs: KL(q || p) of each latent, or of each stochastic layer where there are several.

        Returns:
            Nats, float32, (N, parts); their sum is the KL of the bound (given one draw of the layers above).
        """

    @abstractmethod
    def draw_given(self, z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """A draw from p(x|z), in data units and dtype, (N, *space.shape)."""

    @abstractmethod
    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x|z) for given latents, (N, n_latents); differentiable with respect to z.

        Returns:
            Nats, float32, (N,).
        """

    def iwae(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Importance-weighted bound log (1/K) sum_k p(x, z_k) / q(z_k|x); tighter as K = n_samples grows.

        Returns:
            Nats per item, float32, (N,). E[ELBO] <= E[IWAE_K] <= log p(x).
        Source:
            Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, eq. 8.
        """
        log_weights = self.log_weights(x, n_samples, labels=labels, generator=generator)
        return log_weights.logsumexp(0) - torch.tensor(float(n_samples)).log()


class Completed(ABC):
    """A model that gradient descent leaves incomplete: something is fitted to the training data at the end."""

    @abstractmethod
    def complete(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> None:
        """Fits the rest, into buffers; called once, with the final weights.

        Arguments:
            x: Training items on the CPU, at most `max_items` of them.
            labels: int64, (N,), or None.
        """

    @property
    @abstractmethod
    def max_items(self) -> int:
        """The most training items to be handed over; the trainer draws a subset beyond."""


class Watched(ABC):
    """A model without a likelihood, whose samples are laid beside validation items while it is trained."""

    @abstractmethod
    def drawn_beside(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Tensor:
        """As many samples as there are validation items x, (N, *space.shape), like them.

        Arguments:
            labels: Classes of x, int64, (N,); None for an unconditional model.
        """


class ImplicitDensity(LatentModel, Watched):
    """Knows no likelihood at all: it turns a latent, a draw from a standard normal, into a sample.

    The way back is an optimisation over z, or a recognition network where the model has one.
    """

    panel = "implicit"
    inversion: InversionSettings
    """How `encode` looks for a latent."""
    recognition: Recognition | None
    """Answers `encode` at once, where there is one."""

    def __init__(self, space: Space, n_classes: int = 0) -> None:
        super().__init__(space, n_classes)
        self.inversion = InversionSettings()
        self.recognition = None

    def drawn_beside(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Tensor:
        """Samples that know nothing of x, of any classes."""
        return self.sample(len(x), generator=generator)

    def settle(self, seed: int) -> None:
        """Fits to averaged weights what averaging leaves behind, as running statistics; by default nothing."""

    @abstractmethod
    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data G(z), floats, (N, n_channels, ...), before rounding; differentiable. Labels are checked."""

    @abstractmethod
    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The sample that belongs to a latent z, (N, n_latents), in data units and dtype, (N, *space.shape)."""

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """`generate`: given z nothing is left to chance."""
        return self.generate(z, labels)

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        """The latent of data: the recognition network's answer, or else that of `models.inversion.invert`.

        Arguments:
            sample: Without effect: either answer is a single latent, and no distribution of latents.
            generator: Of the inversion's starts; None for starts that are always the same.
        """
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        y = Scale(self.space).to(self.device)(x.to(self.device))
        if self.recognition is not None:
            return self.recognition(y, labels)
        if generator is None:
            generator = Generator(self.device).manual_seed(0)
        found = invert(self.fake, y, labels, n_latents=self.n_latents, settings=self.inversion, generator=generator)
        return found.z


class Estimated(ABC):
    """A model whose parameters an algorithm of its own estimates (EM, SVD) instead of gradient descent.

    `phases()` of such a model is empty; the trainer runs `estimate` instead.
    """

    @abstractmethod
    def estimate(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Iterator[dict[str, float]]:
        """Runs the algorithm on the training data, yielding the terms to log after each iteration.

        The model is usable at every yield, so that a budget can end the estimation there.

        Arguments:
            x: Training items, at most `max_items` of them.
            labels: int64, (N,), or None.
        """

    @property
    @abstractmethod
    def max_items(self) -> int:
        """The most training items the algorithm takes at once in bounded memory; the trainer draws a subset beyond."""
