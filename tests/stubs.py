"""Models without what a model needs and a test does not."""

from __future__ import annotations

from torch import Generator, Tensor

from triptych.models.base import ApproximateDensity, Batch, GenerativeModel, ImplicitDensity, Loss, Phase
from triptych.spaces import ImageSpace, PointSpace


class Untrained(GenerativeModel):
    """Of any space; does not draw and cannot be trained."""

    supports = (ImageSpace, PointSpace)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        raise NotImplementedError

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise NotImplementedError


class UntrainedImplicit(Untrained, ImplicitDensity):
    n_latents = 1

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class UntrainedApproximate(Untrained, ApproximateDensity):
    """Its ELBO is the mean of the log weights."""

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        raise NotImplementedError

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return self.log_weights(x, n_samples, labels=labels, generator=generator).mean(0)

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        raise NotImplementedError

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        raise NotImplementedError

    def draw_given(self, z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError
