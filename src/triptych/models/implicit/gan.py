"""The generative adversarial network, with any objective, penalty and conditioning.

References:
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
    Conditional Generative Adversarial Nets, Mirza & Osindero 2014, arXiv:1411.1784.
    Which Training Methods for GANs do actually Converge?, Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal

from torch import Tensor, nn

from triptych.errors import InputError
from triptych.models.adversarial import AdversarialModel, PenaltyName, Rules, Verdict
from triptych.nn.adversarial import PlayerName, discriminator_network, generator_network, player_of
from triptych.nn.blocks import with_condition
from triptych.nn.options import check_counts
from triptych.objectives.adversarial import ObjectiveName
from triptych.spaces import ImageSpace, PointSpace, Space

Conditioning = Literal["projection", "concatenation", "auxiliary"]


class GAN(AdversarialModel):
    """Two players of any networks, by any objective.

    Arguments:
        space: What one datum is.
        n_classes: Classes that both players are conditioned on.
        objective: 'minimax' (the generator's loss saturates), 'non_saturating', 'least_squares', 'wasserstein',
            'hinge' or 'relativistic' (paired).
        penalty: On the gradients of the discriminator: 'r1' at real data, 'r2' at generated ones, 'r1_r2' at both,
            'gradient' (WGAN-GP) between them, 'none'.
        gamma: Its weight.
        clip_weights: Largest weight of the discriminator, as in the first Wasserstein GAN (0.01 there); 0 for no limit.
        critic_steps: Discriminator steps, a fresh batch each, to one generator step.
        network: 'mlp' or 'residual'; 'auto' takes residual convolutions for images, a perceptron for points.
        conditioning: How the discriminator sees labels: by a 'projection' of its features, by 'concatenation' to the
            data, or not at all, but with an 'auxiliary' classifier. The generator has them beside its latent.
        n_latents: Size of z.
        hidden: Channels of the convolutions at half the image's size (doubled at smaller ones, four-fold at most), or
            units a layer of a perceptron.
        discriminator_rate, generator_rate: Learning rates of Adam, if --learning-rate does not set both.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1; concatenation: Mirza & Osindero 2014, arXiv:1411.1784;
        auxiliary classifier: Odena et al. 2017, arXiv:1610.09585; projection: Miyato & Koyama 2018, arXiv:1802.05637.
        Differs: residual convolutions without normalisation.
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        objective: ObjectiveName = "non_saturating",
        penalty: PenaltyName = "r1",
        gamma: float | None = None,
        clip_weights: float = 0.0,
        critic_steps: int = 1,
        network: PlayerName = "auto",
        conditioning: Conditioning = "projection",
        n_latents: int | None = None,
        hidden: int | None = None,
        discriminator_rate: float | None = None,
        generator_rate: float | None = None,
    ) -> None:
        super().__init__(space, n_classes)
        is_point = isinstance(space, PointSpace)
        network = player_of(network, space)
        self.n_latents = n_latents if n_latents is not None else 8 * space.n_dims if is_point else 64
        if hidden is None:
            hidden = 128 if is_point else 256 if network == "mlp" else 32 if space.n_dims < 256 else 16
        # Chosen by short trainings on the digits (0.02 to 3: below 0.3 some runs collapsed) and on MNIST (1 to 10).
        gamma = gamma if gamma is not None else 10.0 if penalty == "gradient" else 0.1 if is_point else 1.0
        rate = 3e-3 if is_point else 2e-3
        discriminator_rate = rate if discriminator_rate is None else discriminator_rate
        generator_rate = rate if generator_rate is None else generator_rate
        check_counts(n_latents=self.n_latents, hidden=hidden)
        if conditioning not in ("projection", "concatenation", "auxiliary"):
            raise InputError(f"conditioning is {conditioning!r}; it must be projection, concatenation or auxiliary.")
        self.rules = Rules(
            objective=objective,
            critic_steps=critic_steps,
            penalty=penalty,
            gamma=gamma,
            discriminator_rate=discriminator_rate,
            generator_rate=generator_rate,
            clip_weights=clip_weights,
        )
        self.objective, self.penalty, self.gamma, self.clip_weights = objective, penalty, gamma, clip_weights
        self.critic_steps, self.network, self.conditioning, self.hidden = critic_steps, network, conditioning, hidden
        self.discriminator_rate, self.generator_rate = discriminator_rate, generator_rate

        n_channels = self.scale.n_channels
        self.generator = generator_network(network, space, self.n_latents + n_classes, n_channels, hidden)
        n_seen = n_channels + (n_classes if conditioning == "concatenation" else 0)
        self.discriminator, n_features = discriminator_network(network, space, n_seen, hidden)
        self.verdict = nn.Linear(n_features, 1)
        self.class_verdict: nn.Module | None = None
        if n_classes and conditioning == "projection":
            self.class_verdict = nn.Embedding(n_classes, n_features)
        elif n_classes and conditioning == "auxiliary":
            self.class_verdict = nn.Linear(n_features, n_classes)

    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        features = self.discriminator(with_condition(y, self.condition(labels)) if self._concatenates else y)
        logits = self.verdict(features).squeeze(1)
        if self.class_verdict is None:
            return Verdict(logits)
        if self.conditioning == "auxiliary":
            return Verdict(logits, self.class_verdict(features))
        return Verdict(logits + (self.class_verdict(labels) * features).sum(1))

    @property
    def _concatenates(self) -> bool:
        return self.n_classes > 0 and self.conditioning == "concatenation"

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.generator(with_condition(z, self.condition(labels)))

    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        judges = [self.discriminator, self.verdict, *([self.class_verdict] if self.class_verdict else [])]
        return chain.from_iterable(module.parameters() for module in judges), self.generator.parameters()
