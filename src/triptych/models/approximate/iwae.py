"""The importance-weighted autoencoder, of one or two stochastic layers.

References:
    Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, Tucker et al. 2019, arXiv:1810.04152.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import functional_call

from triptych.errors import InputError
from triptych.models.base import Batch, Loss, Phase
from triptych.models.latents import GaussianLatents, bounded_log_var, latents_of, reparameterised
from triptych.models.observation import LikelihoodName, observation_of
from triptych.nn.blocks import mlp
from triptych.nn.encoders import Decoder, Encoder, NetworkName, hidden_of, network_of
from triptych.nn.options import check_counts, check_dropout, check_not_negative
from triptych.objectives.elbo import gaussian_kl, gaussian_log_prob, standard_normal_log_prob
from triptych.spaces import ImageSpace, PointSpace, Space

Gaussian = tuple[Tensor, Tensor]
"""Mean and log-variance of a diagonal Gaussian, (..., size) each."""


class Draw(NamedTuple):
    """A draw of all layers from q(z|x), K of them for each item."""

    z: list[Tensor]
    """Each layer's, the one next to the data first, (K, N, size)."""
    log_q: Tensor
    """log q(z|x), nats, (K, N)."""


class IWAE(GaussianLatents):
    r"""A VAE trained on log (1/K) sum_k p(x, z_k) / q(z_k|x), which is tighter than the ELBO and tightens with K.

    With two stochastic layers p(x, z) = p(z_2) p(z_1|z_2) p(x|z_1), and q(z|x) = q(z_1|x) q(z_2|z_1), all Gaussians
    diagonal. In the coordinates of the contract z is z_2, then z_1 in units of its prior.

    Arguments:
        space: What one datum is.
        n_classes: Classes that encoder and decoder are conditioned on.
        n_importance: K, draws for each item in training; each costs a pass through the decoder.
        importance_warmup: Share of the training over which their number grows from 1 to K, by the same factor in equal
            times: most is learnt with few draws, in a fraction of the time.
        n_layers: Stochastic layers, 1 or 2.
        n_latents_below: Size of z_1, where there are two layers; None for twice that of z_2.
        n_latents_above: Size of the last layer of z, next to the prior.
        gradient: 'reparameterised', or 'doubly': gradients of the encoder whose signal does not fade as K grows.
        network, hidden, n_blocks, dropout, likelihood, n_mixtures: As of `vae`. Between two stochastic layers lie
            perceptrons of two hidden layers.
    Raises:
        InputError: If an option is out of range, or does not fit the space.
    Source:
        Burda et al. 2016, arXiv:1509.00519, eqs. 8 and 14; Tucker et al. 2019, arXiv:1810.04152, eq. 8. Differs:
        residual convolutions; any number of levels; with two layers the doubly reparameterised gradient takes both as
        one variable.
    """

    supports = (ImageSpace, PointSpace)

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        n_importance: int = 10,
        importance_warmup: float = 0.0,
        n_layers: int = 1,
        n_latents_above: int | None = None,
        n_latents_below: int | None = None,
        gradient: Literal["reparameterised", "doubly"] = "doubly",
        network: NetworkName = "auto",
        hidden: int | None = None,
        n_blocks: int = 1,
        dropout: float = 0.0,
        likelihood: LikelihoodName = "auto",
        n_mixtures: int = 3,
    ) -> None:
        super().__init__(space, n_classes)
        above = latents_of(n_latents_above, space)
        below = 2 * above if n_latents_below is None else n_latents_below
        network = network_of(network, space)
        hidden = hidden_of(hidden, network, space)
        check_counts(n_importance=n_importance, n_latents_above=above, n_latents_below=below, hidden=hidden)
        check_counts(n_blocks=n_blocks, n_mixtures=n_mixtures)
        check_dropout(dropout)
        check_not_negative(importance_warmup=importance_warmup)
        if n_layers not in (1, 2):
            raise InputError(f"n_layers is {n_layers}; it must be 1 or 2.")
        self.observation = observation_of(space, likelihood, n_mixtures)
        self.n_importance, self.importance_warmup = n_importance, importance_warmup
        self.n_layers, self.gradient = n_layers, gradient
        self.n_latents_above, self.n_latents_below = above, below
        self.network, self.hidden, self.n_blocks, self.dropout = network, hidden, n_blocks, dropout
        self.likelihood, self.n_mixtures = likelihood, n_mixtures
        lowest = above if n_layers == 1 else below
        self.n_latents = above if n_layers == 1 else above + below
        self.encoder = Encoder(space, network, n_classes, hidden, n_blocks, dropout, 2 * lowest)
        n_outputs = self.observation.n_outputs
        self.decoder = Decoder(space, network, lowest, n_classes, hidden, n_blocks, dropout, n_outputs)
        # From z_1 to q(z_2|z_1), and from z_2 to p(z_1|z_2).
        units = 2 * below
        self.upwards = mlp(below, units, 2, 2 * above) if n_layers == 2 else None
        self.downwards = mlp(above, units, 2, 2 * below) if n_layers == 2 else None

    # ---- the distributions

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> Gaussian:
        """q(z_1|x) of checked data, float32, (N, size) each."""
        return _gaussian(self.encoder(x.to(self.device), self.condition(labels)))

    def _prior_below(self, z_above: Tensor) -> Gaussian:
        """p(z_1|z_2), (..., n_latents_below) each."""
        assert self.downwards is not None
        return _gaussian(self.downwards(z_above))

    def _draws(self, x: Tensor, n: int, labels: Tensor | None, generator: Generator | None) -> Draw:
        """n draws from q(z|x) for each item, through which gradients flow."""
        mu, log_var = (part.expand(n, *part.shape) for part in self.posterior(x, labels))  # (K, N, size)
        z = [reparameterised(mu, log_var, generator, dim=1)]
        log_q = gaussian_log_prob(z[0], mu, log_var)
        if self.upwards is not None:
            above = _gaussian(self.upwards(z[0]))
            z.append(reparameterised(*above, generator, dim=1))
            log_q = log_q + gaussian_log_prob(z[1], *above)
        return Draw(z, log_q)

    def _draws_with_fixed_density(
        self, x: Tensor, n: int, labels: Tensor | None, generator: Generator | None
    ) -> tuple[Draw, Callable[[Tensor], None]]:
        """As `_draws`, but log q knows the encoder's parameters as constants: they act through z alone.

        Returns:
            The draws, and a function to be told weights, (K, N), before the gradient is taken: it multiplies the
            gradients that reach the encoder through each draw.
        """
        weight: list[Tensor] = []

        def weigh(parameter: Tensor) -> Tensor:
            """Registers the multiplication, on a tensor (K, N, size) that leads to the encoder alone."""
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: gradient * weight[0].unsqueeze(-1))
            return parameter

        # Clones, since a view shared by all draws could not weigh each draw by its own number.
        mu, log_var = (weigh(part.expand(n, *part.shape).clone()) for part in self.posterior(x, labels))
        z = [reparameterised(mu, log_var, generator, dim=1)]
        log_q = gaussian_log_prob(z[0], mu.detach(), log_var.detach())
        if self.upwards is not None:
            # z_2 depends on the encoder through z_1, whose gradient is weighed above, and through the parameters of
            # q(z_2|z_1), which have to be weighed here: the two ways must be apart.
            constants = {name: tensor.detach() for name, tensor in self.upwards.state_dict(keep_vars=True).items()}
            through_z = functional_call(self.upwards, constants, (z[0],))
            through_parameters = weigh(self.upwards(z[0].detach()).float())
            above = _gaussian(through_z + (through_parameters - through_parameters.detach()))
            z.append(reparameterised(*above, generator, dim=1))
            log_q = log_q + gaussian_log_prob(z[1], *_gaussian(through_z))
        return Draw(z, log_q), weight.append

    def _log_joint(self, x: Tensor, z: list[Tensor], labels: Tensor | None) -> Tensor:
        """log p(x, z) for K draws, (K, N, size) each: nats, (K, N)."""
        log_p = standard_normal_log_prob(z[-1])
        if self.downwards is not None:
            log_p = log_p + gaussian_log_prob(z[0], *self._prior_below(z[1]))
        k = len(z[0])
        many = x.to(self.device).repeat(k, *(1,) * (x.ndim - 1))
        outputs = self.decoder(z[0].flatten(0, 1), self.condition(None if labels is None else labels.repeat(k)))
        return log_p + self.observation.log_prob(outputs, many).unflatten(0, (k, -1))

    def _checked(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        self.space.check(x)
        return self.check_labels(len(x), labels, draw=False)

    # ---- the contract

    def log_weights(
        self, x: Tensor, n_samples: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        labels = self._checked(x, labels)
        parts = []
        for _ in range(n_samples):  # One at a time: memory does not grow with their number.
            draw = self._draws(x, 1, labels, generator)
            parts.append(self._log_joint(x, draw.z, labels) - draw.log_q)
        return torch.cat(parts)

    def elbo(
        self, x: Tensor, n_samples: int = 1, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return self.log_weights(x, n_samples, labels=labels, generator=generator).mean(0)

    def kl(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        labels = self._checked(x, labels)
        q_below = self.posterior(x, labels)
        if self.upwards is None:
            return gaussian_kl(*q_below)
        z = reparameterised(*q_below, generator)
        q_above = _gaussian(self.upwards(z))
        p_below = self._prior_below(reparameterised(*q_above, generator))
        # E_q[log q(z_1|x) - log p(z_1|z_2)], with the draw of z_1 that z_2 was drawn for.
        cost_below = gaussian_log_prob(z, *q_below) - gaussian_log_prob(z, *p_below)
        return torch.stack([gaussian_kl(*q_above).sum(1), cost_below], 1)

    def to_layers(self, z: Tensor) -> list[Tensor]:
        """The contract's z, (..., n_latents), as the latents of each layer, the one next to the data first."""
        if self.downwards is None:
            return [z]
        above, standard = z.split([self.n_latents_above, self.n_latents_below], -1)
        mu, log_var = self._prior_below(above)
        return [mu + (0.5 * log_var).exp() * standard, above]

    def encode(
        self, x: Tensor, labels: Tensor | None = None, *, sample: bool = False, generator: Generator | None = None
    ) -> Tensor:
        labels = self._checked(x, labels)
        mu, log_var = self.posterior(x, labels)
        below = reparameterised(mu, log_var, generator) if sample else mu
        if self.upwards is None:
            return below
        mu, log_var = _gaussian(self.upwards(below))
        above = reparameterised(mu, log_var, generator) if sample else mu
        mu, log_var = self._prior_below(above)
        return torch.cat([above, (below - mu) * (-0.5 * log_var).exp()], -1)

    def decoder_output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(self.to_layers(z)[0], self.condition(labels))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("bound", tuple(self.parameters()), learning_rate=2e-3, clip_ratio=2.0),)

    def _n_draws(self, progress: float) -> int:
        """Draws for each item when this share of the training is done."""
        share = min(1.0, progress / self.importance_warmup) if self.importance_warmup > 0 else 1.0
        return max(1, round(self.n_importance**share))

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = self._checked(batch.x, batch.labels if self.n_classes else None)
        n_draws = self._n_draws(batch.progress)
        if self.gradient == "doubly":
            draw, weigh = self._draws_with_fixed_density(batch.x, n_draws, labels, generator)
        else:
            draw, weigh = self._draws(batch.x, n_draws, labels, generator), None
        log_weights = self._log_joint(batch.x, draw.z, labels) - draw.log_q  # (K, N)
        bound = log_weights.logsumexp(0) - torch.tensor(float(n_draws)).log()
        if weigh is not None:
            # The gradient of the bound weighs a draw's by its normalised weight; the encoder's shall have its square.
            weigh(log_weights.detach().softmax(0))
        unit = "nats_per_point" if isinstance(self.space, PointSpace) else "nats_per_image"
        terms = {f"bound_{unit}": -bound.mean(), f"negative_elbo_{unit}": -log_weights.mean()}
        return Loss.of(-bound.mean() / self.space.n_dims, terms)


def _gaussian(parameters: Tensor) -> Gaussian:
    """Mean and bounded log-variance from a network's output, float32."""
    mu, log_var = parameters.float().chunk(2, dim=-1)
    return mu, bounded_log_var(log_var)
