"""The generative adversarial network, with any objective, penalty and conditioning.

References:
    Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
    Conditional Generative Adversarial Nets, Mirza & Osindero 2014, arXiv:1411.1784.
    Which Training Methods for GANs do actually Converge?, Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406.
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks, Radford, Metz &
        Chintala 2016, arXiv:1511.06434.
    Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, arXiv:1802.05957.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal

from torch import Tensor, nn

from triptych.errors import InputError
from triptych.models.adversarial import AdversarialModel, PenaltyName, Rules, Verdict, gamma_for
from triptych.models.inversion import EncoderName, PairVerdict, Recognition
from triptych.nn.adversarial import (
    FourierFeatures,
    PlayerName,
    discriminator_network,
    generator_network,
    normalise_spectrally,
    packed,
    player_of,
    weighted_layers,
)
from triptych.nn.augment import AugmentName, augmentation_of
from triptych.nn.blocks import with_condition
from triptych.nn.options import check_counts
from triptych.objectives.adversarial import ObjectiveName
from triptych.spaces import ImageSpace, PointSpace, Space

BURN_IN = 0.8  # Share of training over which gamma falls, where it does.

Conditioning = Literal["projection", "concatenation", "auxiliary"]


class GAN(AdversarialModel):
    """Two players of any networks, by any objective.

    Arguments:
        space: What one datum is.
        n_classes: Classes that both players are conditioned on.
        objective: 'minimax' (the generator's loss saturates), 'non_saturating', 'least_squares', 'wasserstein',
            'hinge' or 'relativistic' (paired). By default 'relativistic' for points, else 'non_saturating'.
        penalty: On the gradients of the discriminator: 'r1' at real data, 'r2' at generated ones, 'r1_r2' at both,
            'gradient' (WGAN-GP) between them, 'none'. By default 'r1_r2' for points, else 'r1', and 'none' for 'dcgan',
            where the batch's normalisation makes the logits of all items depend on each.
        gamma: Its weight.
        gamma_end: Where gamma falls to over the training; by default it stays, but for points with 'r1_r2'.
        pack: Data that the discriminator judges together, so that it sees their variety. Labels then need
            conditioning='concatenation'.
        clip_weights: Largest weight of the discriminator, as in the first Wasserstein GAN (0.01 there); 0 for no limit.
        critic_steps: Discriminator steps, a fresh batch each, to one generator step.
        network: 'mlp', 'residual' or 'dcgan' (strided convolutions, batch normalisation); 'auto' takes a perceptron for
            points, residual convolutions for images of fewer than 256 sub-pixels and 'dcgan' for others.
        spectral_norm: Whether each weight of the discriminator is divided by its largest singular value. It takes the
            place of batch normalisation there.
        conditioning: How the discriminator sees labels: by a 'projection' of its features, by 'concatenation' to the
            data, or not at all, but with an 'auxiliary' classifier. The generator has them beside its latent.
        n_latents: Size of z.
        n_means: For points: learnt means, one of which the signs of the first log2(n_means) latents choose for the
            generator to start from, so that it can jump; a power of two. By default 256 for points (fewer
            for fewer than 10 latents); 1 for none.
        hidden: Channels of the convolutions at half the image's size (doubled at smaller ones, four-fold at most), or
            units a layer of a perceptron.
        augment: Changes to what the discriminator sees: 'diff' (colour, translation, cutout), 'adaptive' (the same,
            as often as keeps the discriminator from being too sure of real images) or 'none'.
        discriminator_rate, generator_rate: Learning rates of Adam, if --learning-rate does not set both.
        encoder: A network from data to latents: 'after', learnt from generated pairs when the game is over, in a fifth
            of the training; 'bigan', which plays it with the generator, while the discriminator judges pairs of data
            and latents. With 'none' latents of data are found by an optimisation for each item.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1; concatenation: Mirza & Osindero 2014, arXiv:1411.1784;
        auxiliary classifier: Odena et al. 2017, arXiv:1610.09585; projection: Miyato & Koyama 2018, arXiv:1802.05637.
        Network 'dcgan' and its optimiser: Radford et al. 2016, arXiv:1511.06434; spectral normalisation: Miyato et al.
        2018, arXiv:1802.05957; packing: Lin et al. 2018, arXiv:1712.04086. Differs: residual convolutions without
        normalisation; higher learning rates.
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        objective: ObjectiveName | None = None,
        penalty: PenaltyName | None = None,
        gamma: float | None = None,
        gamma_end: float | None = None,
        pack: int = 1,
        clip_weights: float = 0.0,
        critic_steps: int = 1,
        network: PlayerName = "auto",
        spectral_norm: bool = False,
        conditioning: Conditioning = "projection",
        n_latents: int | None = None,
        n_means: int | None = None,
        hidden: int | None = None,
        augment: AugmentName = "none",
        discriminator_rate: float | None = None,
        generator_rate: float | None = None,
        encoder: EncoderName = "none",
    ) -> None:
        super().__init__(space, n_classes)
        is_point = isinstance(space, PointSpace)
        network = player_of(network, space)
        if objective is None:
            objective = "relativistic" if is_point else "non_saturating"
        if penalty is None:
            penalty = "none" if network == "dcgan" else "r1_r2" if is_point else "r1"
        self.n_latents = n_latents if n_latents is not None else 8 * space.n_dims if is_point else 64
        if n_means is None:  # Beside the signs, at least two latents for the shape of a mode.
            n_means = min(256, 2 ** max(self.n_latents - 2, 0)) if is_point else 1
        if hidden is None:
            widths = {"mlp": 128 if is_point else 256, "dcgan": 24, "residual": 32 if space.n_dims < 256 else 16}
            hidden = widths[network]
        if gamma is None:
            gamma = 10.0 if penalty == "gradient" else gamma_for(space)
        # Sharp modes need a steep discriminator at the end, a wide view of them a flat one at the start.
        if gamma_end is None:
            gamma_end = gamma / 100 if is_point and penalty == "r1_r2" else gamma
        # In minutes of training DCGAN's 2e-4 learns little; more than 1.5e-3 is better on MNIST, worse on CIFAR-10.
        rate = 4e-3 if is_point else 1.5e-3 if network == "dcgan" else 2e-3
        discriminator_rate = rate if discriminator_rate is None else discriminator_rate
        generator_rate = rate if generator_rate is None else generator_rate
        check_counts(n_latents=self.n_latents, n_means=n_means, hidden=hidden, pack=pack)
        if n_means > 1 and not is_point:
            raise InputError(f"n_means is {n_means}; only a generator of points has means: leave it out.")
        if n_means.bit_count() != 1 or n_means > 2**self.n_latents:
            raise InputError(
                f"n_means is {n_means}; it must be a power of two, at most 2^n_latents (n_latents is {self.n_latents})."
            )
        if conditioning not in ("projection", "concatenation", "auxiliary"):
            raise InputError(f"conditioning is {conditioning!r}; it must be projection, concatenation or auxiliary.")
        if encoder not in ("none", "after", "bigan"):
            raise InputError(f"encoder is {encoder!r}; it must be none, after or bigan.")
        if pack > 1 and encoder == "bigan":
            raise InputError(f"pack is {pack}; with encoder='bigan' pairs are judged one by one: leave it out.")
        if pack > 1 and n_classes and conditioning != "concatenation":
            raise InputError(f"pack is {pack}; with labels it needs conditioning='concatenation'.")
        self.rules = Rules(
            objective=objective,
            critic_steps=critic_steps,
            penalty=penalty,
            gamma=gamma,
            gamma_end=gamma_end,
            burn_in=BURN_IN,
            gamma_path="geometric",
            discriminator_rate=discriminator_rate,
            generator_rate=generator_rate,
            betas=(0.5, 0.999) if network == "dcgan" else (0.0, 0.99),
            clip_weights=clip_weights,
        )
        self.objective, self.penalty, self.gamma, self.clip_weights = objective, penalty, gamma, clip_weights
        self.critic_steps, self.network, self.conditioning, self.hidden = critic_steps, network, conditioning, hidden
        self.gamma_end, self.pack, self.n_means = gamma_end, pack, n_means
        self.discriminator_rate, self.generator_rate = discriminator_rate, generator_rate
        self.spectral_norm, self.augment = spectral_norm, augment
        self.augmentation = augmentation_of(augment, space)

        n_channels = self.scale.n_channels
        self.generator = generator_network(network, space, self.n_latents + n_classes, n_channels, hidden, n_means)
        self.waves = FourierFeatures(n_channels) if is_point else None
        n_seen = n_channels if self.waves is None else self.waves.n_out
        n_seen = pack * (n_seen + (n_classes if conditioning == "concatenation" else 0))
        self.discriminator, n_features = discriminator_network(
            network, space, n_seen, hidden, batch_norm=not spectral_norm
        )
        # Differences of logits, which are all that the relativistic loss knows, have no bias.
        self.verdict = nn.Linear(n_features, 1, bias=objective != "relativistic")
        self.class_verdict: nn.Module | None = None
        if n_classes and conditioning == "projection":
            self.class_verdict = nn.Embedding(n_classes, n_features)
        elif n_classes and conditioning == "auxiliary":
            self.class_verdict = nn.Linear(n_features, n_classes)
        self.encoder = encoder
        self.recognition = None if encoder == "none" else Recognition(space, n_classes, self.n_latents)
        self.pair_verdict = PairVerdict(n_features, self.n_latents) if encoder == "bigan" else None
        if spectral_norm:
            normalise_spectrally(weighted_layers(*self._judges))

    def judge(self, y: Tensor, labels: Tensor | None = None) -> Verdict:
        return self.judge_pair(y, None, labels)

    def judge_pair(self, y: Tensor, z: Tensor | None, labels: Tensor | None = None) -> Verdict:
        seen = y if self.waves is None else self.waves(y)
        seen = with_condition(seen, self.condition(labels)) if self._concatenates else seen
        features = self.discriminator(packed(seen, self.pack))
        logits = self.verdict(features).squeeze(1)
        if self.pair_verdict is not None and z is not None:
            logits = logits + self.pair_verdict(features, z)
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

    @property
    def _judges(self) -> list[nn.Module]:
        return [
            self.discriminator,
            self.verdict,
            *(part for part in (self.class_verdict, self.pair_verdict) if part is not None),
        ]

    def players(self) -> tuple[Iterable[nn.Parameter], Iterable[nn.Parameter]]:
        return chain.from_iterable(module.parameters() for module in self._judges), self.generator.parameters()
