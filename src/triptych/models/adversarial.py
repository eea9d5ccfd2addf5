"""What models of the adversarial game share: its rules, the losses of its phases, drawing, and a way back from x to z.

References:
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
    Adversarial Feature Learning, Donahue, Krähenbühl & Darrell 2017, arXiv:1605.09782.
    Conditional Image Synthesis with Auxiliary Classifier GANs, Odena, Olah & Shlens 2017, arXiv:1610.09585.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych.errors import InputError
from triptych.models.base import Batch, ImplicitDensity, Loss, Phase
from triptych.nn.blocks import Scale
from triptych.nn.options import check_counts, check_not_negative
from triptych.objectives.adversarial import (
    OBJECTIVES,
    ObjectiveName,
    between,
    jsd_bound,
    one_centred_penalty,
    zero_centred_penalty,
)
from triptych.spaces import ImageSpace, PointSpace, Space

PenaltyName = Literal["none", "r1", "r2", "r1_r2", "gradient"]

FINEST_NOISE = 1 / 8  # Width of the dequantisation noise at most, where data runs from -1 to 1.
MAX_DRAWN = 256  # Items that a generator draws at once: memory does not grow with the number asked for.


@dataclass(frozen=True)
class Rules:
    """How the game is played, whatever the networks.

    Raises:
        InputError: If one is out of range.
    """

    objective: ObjectiveName
    critic_steps: int
    """Discriminator steps, a fresh batch each, to one generator step."""
    penalty: PenaltyName
    """'r1' at real data, 'r2' at generated ones, 'r1_r2' at both (gamma / 2 times the squared gradient each), or
    'gradient', gamma times (norm - 1)^2 between real and generated data."""
    gamma: float
    discriminator_rate: float
    """Learning rate of Adam."""
    generator_rate: float
    betas: tuple[float, float] = (0.0, 0.99)
    clip_weights: float = 0.0
    """Largest weight of the discriminator, 0 for no limit."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        if self.penalty not in ("none", "r1", "r2", "r1_r2", "gradient"):
            raise InputError(f"penalty is {self.penalty!r}; it must be none, r1, r2, r1_r2 or gradient.")
        check_counts(critic_steps=self.critic_steps)
        check_not_negative(gamma=self.gamma, clip_weights=self.clip_weights)
        check_not_negative(discriminator_rate=self.discriminator_rate, generator_rate=self.generator_rate)


class Verdict(NamedTuple):
    """What a discriminator says of data."""

    logits: Tensor
    """Of being real, (N,)."""
    class_logits: Tensor | None = None
    """Of the classes, from an auxiliary classifier, (N, n_classes)."""


class AdversarialModel(ImplicitDensity):
    """A generator and a discriminator, by any rules. A final class builds both, and says what they answer.

    Images that are integers can be told from a network's floats by their values alone. So the discriminator sees both
    with the same uniform noise, one level wide (an eighth of the range at most); the generator's best answer is then
    an integer image.
    """

    rules: Rules

    def __init__(self, space: Space, n_classes: int = 0) -> None:
        super().__init__(space, n_classes)
        self.scale = Scale(space)

    @abstractmethod
    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data G(z), floats, (N, n_channels, ...): what the discriminator judges, before rounding."""

    @abstractmethod
    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        """The discriminator on scaled data, (N, n_channels, ...)."""

    @abstractmethod
    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        """Parameters of the discriminator, and of the generator."""

    def view(self, y: Tensor, generator: Generator | None) -> Tensor:
        """Real or generated data as the discriminator is shown them: with the noise that hides which are integers."""
        if isinstance(self.space, PointSpace):
            return y
        assert isinstance(self.space, ImageSpace)
        width = min(2 / (self.space.levels - 1), FINEST_NOISE)
        return y + width * (torch.rand(y.shape, generator=generator, device=y.device) - 0.5)

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draws from the prior, a standard normal, (n, n_latents)."""
        return torch.randn((n, self.n_latents), generator=generator, device=self.device)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale.inverse(self.fake(z, self.check_labels(len(z), labels, draw=False)))

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), MAX_DRAWN):
            z = self.draw_latents(min(MAX_DRAWN, n - start), generator)
            parts.append(self.generate(z, None if labels is None else labels[start : start + MAX_DRAWN]))
        return torch.cat(parts)

    def phases(self) -> tuple[Phase, ...]:
        rules, (judges, makers) = self.rules, self.players()
        return (
            Phase(
                "discriminator",
                tuple(judges),
                rules.critic_steps,
                learning_rate=rules.discriminator_rate,
                betas=rules.betas,
                clip_norm=0,
                clip_weights=rules.clip_weights,
            ),
            Phase("generator", tuple(makers), learning_rate=rules.generator_rate, betas=rules.betas, clip_norm=0),
        )

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        z = self.draw_latents(len(batch.x), generator)
        if phase == "generator":
            return self._generator_loss(batch.x, z, labels, generator)
        return self._discriminator_loss(batch.x, z, labels, generator)

    def _generator_loss(self, x: Tensor, z: Tensor, labels: Tensor | None, generator: Generator | None) -> Loss:
        objective = OBJECTIVES[self.rules.objective]
        fake = self.judge(self.view(self.fake(z, labels), generator), labels)
        real_logits = fake.logits.new_empty(0)
        if objective.pairs:
            with torch.no_grad():
                real_logits = self.judge(self.view(self.scale(x), generator), labels).logits
        game = objective.generator(real_logits, fake.logits)
        total = game
        terms: dict[str, Tensor] = {self.rules.objective: game}
        if fake.class_logits is not None and labels is not None:
            terms["class_nats_fake"] = F.cross_entropy(fake.class_logits, labels)
            total = total + terms["class_nats_fake"]
        return _loss(total, terms)

    def _discriminator_loss(self, x: Tensor, z: Tensor, labels: Tensor | None, generator: Generator | None) -> Loss:
        rules = self.rules
        on_real = rules.penalty in ("r1", "r1_r2") and rules.gamma > 0
        on_fake = rules.penalty in ("r2", "r1_r2") and rules.gamma > 0
        y_real = self.view(self.scale(x), generator).requires_grad_(on_real)
        with torch.no_grad():
            y_fake = self.view(self.fake(z, labels), generator)
        y_fake.requires_grad_(on_fake)
        real, fake = self.judge(y_real, labels), self.judge(y_fake, labels)
        game = OBJECTIVES[rules.objective].discriminator(real.logits, fake.logits)
        total = game
        terms = {
            "game": game,
            "logit_real": real.logits.mean(),
            "logit_fake": fake.logits.mean(),
            "jsd_bound_nats": jsd_bound(real.logits.detach(), fake.logits.detach()),
        }
        if on_real:
            terms["r1"] = zero_centred_penalty(real.logits, y_real)
            total = total + 0.5 * rules.gamma * terms["r1"]
        if on_fake:
            terms["r2"] = zero_centred_penalty(fake.logits, y_fake)
            total = total + 0.5 * rules.gamma * terms["r2"]
        if rules.penalty == "gradient" and rules.gamma > 0:
            y = between(y_real, y_fake, generator)
            terms["gradient_penalty"] = one_centred_penalty(self.judge(y, labels).logits, y)
            total = total + rules.gamma * terms["gradient_penalty"]
        if real.class_logits is not None and fake.class_logits is not None and labels is not None:
            terms["class_nats_real"] = F.cross_entropy(real.class_logits, labels)
            total = total + terms["class_nats_real"] + F.cross_entropy(fake.class_logits, labels)
        return _loss(total, terms)


def _loss(total: Tensor, terms: dict[str, Tensor]) -> Loss:
    return Loss(total, {name: value.detach() for name, value in terms.items()})
