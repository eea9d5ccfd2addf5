"""What models of the adversarial game share: its rules, the losses of its phases, drawing, and a way back from x to z.

References:
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
    Adversarial Feature Learning, Donahue, Krähenbühl & Darrell 2017, arXiv:1605.09782.
    Conditional Image Synthesis with Auxiliary Classifier GANs, Odena, Olah & Shlens 2017, arXiv:1610.09585.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.models.base import Batch, ImplicitDensity, Loss, Phase
from triptych.models.inversion import EncoderName, pair_loss, recognition_errors
from triptych.models.latents import MAX_DRAWN
from triptych.nn.adversarial import has_batch_norm, standing_statistics
from triptych.nn.augment import Augmentation
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
from triptych.spaces import ImageSpace, Space

PenaltyName = Literal["none", "r1", "r2", "r1_r2", "gradient"]

FINEST_NOISE = 1 / 8  # Width of the dequantisation noise at most, where data runs from -1 to 1.
HAVE_ZERO = ("minimax", "non_saturating", "hinge")  # Objectives whose logits are positive for what is judged real.
FEW_IMAGES = 1000  # Fewer are augmented by default.
N_SETTLING = 2  # Batches of `MAX_DRAWN` that the running statistics of a batch normalisation are taken of.


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
    gamma_end: float | None = None
    """Where gamma goes over the first `burn_in` of training; None for a gamma that stays."""
    burn_in: float = 1.0
    gamma_path: Literal["cosine", "geometric"] = "cosine"
    """How it goes there; 'geometric' falls by the same factor in equal times."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        if self.penalty not in ("none", "r1", "r2", "r1_r2", "gradient"):
            raise InputError(f"penalty is {self.penalty!r}; it must be none, r1, r2, r1_r2 or gradient.")
        check_counts(critic_steps=self.critic_steps)
        check_not_negative(gamma=self.gamma, clip_weights=self.clip_weights)
        check_not_negative(discriminator_rate=self.discriminator_rate, generator_rate=self.generator_rate)
        if self.gamma_end is not None:
            check_not_negative(gamma_end=self.gamma_end)
            if self.gamma_path == "geometric" and (self.gamma == 0) != (self.gamma_end == 0):
                raise InputError(
                    f"gamma is {self.gamma} and gamma_end {self.gamma_end}; it falls by factors: both are 0 or neither."
                )
        if not 0 < self.burn_in <= 1:
            raise InputError(f"burn_in is {self.burn_in}; it must be above 0 and at most 1.")

    def gamma_at(self, progress: float) -> float:
        """Weight of the penalty when a share of training is done, 0 .. 1."""
        if self.gamma_end is None:
            return self.gamma
        done = min(1.0, progress / self.burn_in)
        if self.gamma_path == "geometric":
            return self.gamma ** (1 - done) * self.gamma_end**done
        left = 0.5 * (1 + math.cos(math.pi * done))
        return self.gamma_end + left * (self.gamma - self.gamma_end)


def gamma_for(space: Space) -> float:
    """The default weight of R1 and R2: 1 up to 32x32 sites and for points, and in proportion to the sites beyond.

    Where an image of the same things has more sites, each says less of them, and the squared gradient at all of them
    together falls with their number. The rule of StyleGAN2-ADA is in proportion, too (Karras et al. 2020,
    arXiv:2006.06676, appendix); R3GAN has 0.05 to 1 at 32x32, 1 to 2 at 64x64 and 150 at 256x256 (Huang et al. 2024,
    arXiv:2501.05441, appendix), where this has 1, 4 and 64. Short trainings on the digits with 0.02 to 3 and on MNIST
    with 1 to 10 chose 1: below 0.3 some collapsed. `triptych sweep` tries others.
    """
    return max(1.0, space.height * space.width / 1024) if isinstance(space, ImageSpace) else 1.0


def hide_levels(y: Tensor, space: ImageSpace, generator: Generator | None) -> Tensor:
    """Scaled images, real or generated, with the noise that hides which are integers."""
    width = min(2 / (space.levels - 1), FINEST_NOISE)
    return y + width * (parallel.rand(y.shape, generator=generator, device=y.device) - 0.5)


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
    generator: nn.Module

    def __init__(self, space: Space, n_classes: int = 0) -> None:
        super().__init__(space, n_classes)
        self.scale = Scale(space)
        self.augmentation: Augmentation | None = None
        self.encoder: EncoderName = "none"
        """How `recognition`, which a final class makes, is learnt: 'after' the game, or in it ('bigan')."""

    @classmethod
    def defaults_for(cls, space: Space, n_items: int) -> dict[str, Any]:
        """Few images are augmented as soon as the discriminator knows them by heart (Karras et al. 2020,
        arXiv:2006.06676). On 500 of MNIST it won every game without."""
        return {"augment": "adaptive"} if isinstance(space, ImageSpace) and n_items < FEW_IMAGES else {}

    @abstractmethod
    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled data G(z), floats, (N, n_channels, ...): what the discriminator judges, before rounding."""

    @abstractmethod
    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        """The discriminator on scaled data, (N, n_channels, ...)."""

    def judge_pair(self, y: Tensor, z: Tensor | None, labels: Tensor | None = None) -> Verdict:
        """The discriminator on pairs of scaled data and latents. One that judges none says what it does of the data."""
        return self.judge(y, labels)

    def recognised(self, y: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """The latents that make pairs of real scaled data, (N, n_latents); None where no pairs are judged."""
        return None if self.encoder != "bigan" or self.recognition is None else self.recognition(y, labels)

    @abstractmethod
    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        """Parameters of the discriminator, and of the generator."""

    def view(self, y: Tensor, generator: Generator | None) -> Tensor:
        """Real or generated data as the discriminator is shown them: with the noise that hides which are integers, and
        augmented."""
        if isinstance(self.space, ImageSpace):
            y = hide_levels(y, self.space, generator)
        return y if self.augmentation is None else self.augmentation(y, generator)

    def generator_penalty(self) -> dict[str, Tensor]:
        """What the generator pays besides the game: terms that are added to its loss, by name."""
        return {}

    def draw_latents(self, n: int, generator: Generator | None = None, truncation: float | None = None) -> Tensor:
        """Draws from the prior, a standard normal, (n, n_latents).

        Arguments:
            truncation: Largest magnitude of a latent, above 0; smaller ones give more typical and less varied samples.
                None for no limit.
        Raises:
            InputError: If truncation is not above 0.
        Source:
            Truncation: Brock, Donahue & Simonyan 2019, arXiv:1809.11096, section 3.1. Differs: by the quantile function
            instead of drawing again what lies outside, which gives the same distribution.
        """
        if truncation is None:
            return parallel.randn((n, self.n_latents), generator=generator, device=self.device)
        if not truncation > 0:
            raise InputError(f"truncation is {truncation}; it must be above 0.")
        uniform = torch.rand((n, self.n_latents), generator=generator, device=self.device)
        z = math.sqrt(2) * torch.erfinv((2 * uniform - 1) * math.erf(truncation / math.sqrt(2)))
        return z.clamp(-truncation, truncation)  # rounding

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale.inverse(self.fake(z, self.check_labels(len(z), labels, draw=False)))

    @torch.no_grad()
    def settle(self, seed: int) -> None:
        """Fits the running statistics of the generator's batch normalisation to its weights: `standing_statistics`."""
        if not has_batch_norm(self.generator):
            return
        noise = torch.Generator(self.device).manual_seed(seed)
        with standing_statistics(self.generator):
            for _ in range(N_SETTLING):
                z = self.draw_latents(MAX_DRAWN, noise)
                self.fake(z, self.check_labels(MAX_DRAWN, None, draw=True, generator=noise))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: Generator | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """As of the contract; truncation as of `draw_latents`."""
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        parts = []
        for start in range(0, max(n, 1), MAX_DRAWN):
            z = self.draw_latents(min(MAX_DRAWN, n - start), generator, truncation)
            parts.append(self.generate(z, None if labels is None else labels[start : start + MAX_DRAWN]))
        return torch.cat(parts)

    def phases(self) -> tuple[Phase, ...]:
        rules, (judges, makers) = self.rules, self.players()
        own = () if self.recognition is None else tuple(self.recognition.parameters())
        game = (
            Phase(
                "discriminator",
                tuple(judges),
                rules.critic_steps,
                learning_rate=rules.discriminator_rate,
                betas=rules.betas,
                clip_norm=0,
                clip_weights=rules.clip_weights,
            ),
            Phase(
                "generator",
                (*makers, *(own if self.encoder == "bigan" else ())),
                learning_rate=rules.generator_rate,
                betas=rules.betas,
                clip_norm=0,
            ),
        )
        if self.encoder != "after":
            return game
        return (*game, Phase("recognition", own, learning_rate=2e-3, stage=1, stage_share=0.25))

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        z = self.draw_latents(len(batch.x), generator)
        if phase == "recognition":
            return self._recognition_loss(batch.x, z, labels)
        if phase == "generator":
            return self._generator_loss(batch.x, z, labels, generator)
        return self._discriminator_loss(batch.x, z, labels, self.rules.gamma_at(batch.progress), generator)

    def _recognition_loss(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Loss:
        assert self.recognition is not None

        def as_data(y: Tensor) -> Tensor:
            """Generated data as `encode` gets them: rounded."""
            return self.scale(self.scale.inverse(y))

        errors = recognition_errors(self.recognition, self.fake, self.scale(x), z, labels, show=as_data)
        terms = {"squared_error_z": errors.latent, "squared_error_x": errors.reconstruction}
        return Loss.of(errors.latent + errors.reconstruction, terms)

    def _generator_loss(self, x: Tensor, z: Tensor, labels: Tensor | None, generator: Generator | None) -> Loss:
        objective = OBJECTIVES[self.rules.objective]
        plays = self.encoder == "bigan"  # The encoder, on the generator's side.
        fake = self.judge_pair(self.view(self.fake(z, labels), generator), z, labels)
        real_logits = fake.logits.new_empty(0)
        if objective.pairs or plays:
            with torch.set_grad_enabled(plays and torch.is_grad_enabled()):
                y = self.scale(x)
                real_logits = self.judge_pair(self.view(y, generator), self.recognised(y, labels), labels).logits
        if plays:
            game = pair_loss(self.rules.objective, real_logits, fake.logits)
        else:
            game = objective.generator(real_logits, fake.logits)
        total = game
        terms: dict[str, Tensor] = {self.rules.objective: game}
        if fake.class_logits is not None and labels is not None:
            terms["class_nats_fake"] = F.cross_entropy(fake.class_logits, labels)
            total = total + terms["class_nats_fake"]
        penalties = self.generator_penalty()
        for penalty in penalties.values():
            total = total + penalty
        terms |= penalties
        return Loss.of(total, terms)

    def _discriminator_loss(
        self, x: Tensor, z: Tensor, labels: Tensor | None, gamma: float, generator: Generator | None
    ) -> Loss:
        rules = self.rules
        on_real = rules.penalty in ("r1", "r1_r2") and gamma > 0
        on_fake = rules.penalty in ("r2", "r1_r2") and gamma > 0
        with torch.no_grad():
            y_fake, y_real = self.fake(z, labels), self.scale(x)
            z_real = self.recognised(y_real, labels)
        # R1 and R2 are of the data themselves, as in StyleGAN2-ADA: what an augmentation hides has no gradient.
        y_real.requires_grad_(on_real)
        y_fake.requires_grad_(on_fake)
        seen_fake, seen_real = self.view(y_fake, generator), self.view(y_real, generator)
        real, fake = self.judge_pair(seen_real, z_real, labels), self.judge_pair(seen_fake, z, labels)
        game = OBJECTIVES[rules.objective].discriminator(real.logits, fake.logits)
        total = game
        terms = {
            "game": game,
            "logit_real": real.logits.mean(),
            "logit_fake": fake.logits.mean(),
            "jsd_bound_nats": jsd_bound(real.logits.detach(), fake.logits.detach()),
        }
        if self.augmentation is not None and self.augmentation.adaptive:
            if self.training:
                middle = (
                    0.0 if rules.objective in HAVE_ZERO else parallel.mean(real.logits.mean() + fake.logits.mean()) / 2
                )
                self.augmentation.adapt(real.logits - middle)
            terms["augment_p"] = self.augmentation.p.clone()
        if on_real:
            terms["r1"] = zero_centred_penalty(real.logits, y_real)
            total = total + 0.5 * gamma * terms["r1"]
        if on_fake:
            terms["r2"] = zero_centred_penalty(fake.logits, y_fake)
            total = total + 0.5 * gamma * terms["r2"]
        if rules.penalty == "gradient" and gamma > 0:
            y = between(seen_real, seen_fake, generator)
            z_between = None if z_real is None else between(z_real, z, generator)
            terms["gradient_penalty"] = one_centred_penalty(self.judge_pair(y, z_between, labels).logits, y)
            total = total + gamma * terms["gradient_penalty"]
        if real.class_logits is not None and fake.class_logits is not None and labels is not None:
            terms["class_nats_real"] = F.cross_entropy(real.class_logits, labels)
            total = total + terms["class_nats_real"] + F.cross_entropy(fake.class_logits, labels)
        return Loss.of(total, terms)
