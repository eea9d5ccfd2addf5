"""The adversarial game as functions of the two players' logits, and the penalties that keep it stable.

A discriminator's logits are log D - log (1 - D) of the probability D that a datum is real; a critic's (Wasserstein) and
a relativistic discriminator's are scores that mean nothing but by their differences. All losses are scalars, means over
the batch, to be minimised by the player they are named after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych import parallel

ObjectiveName = Literal["minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic"]


@dataclass(frozen=True)
class Objective:
    """What each player minimises, given logits of real and of generated data, (N,) each."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """Of (real logits, fake logits)."""
    generator: Callable[[Tensor, Tensor], Tensor]
    """Of (real logits, fake logits). Most ignore the former, and then an empty tensor will do."""
    pairs: bool = False
    """Whether real and generated data are compared in pairs, so that both players need both logits."""


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Minus the value of the game, -E log D(x) - E log(1 - D(G(z))), in nats. At equilibrium, D = 1/2, it is 2 log 2.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, eq. 1.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def minimax_generator_loss(fake_logits: Tensor) -> Tensor:
    """E log(1 - D(G(z))), in nats: what the game says. It saturates: its gradient vanishes as D rejects the samples.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, eq. 1.
    """
    return -F.softplus(fake_logits).mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)), in nats: its gradient does not vanish where the discriminator rejects every sample.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """
    return F.softplus(-fake_logits).mean()


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 E (D(x) - 1)^2 + 1/2 E D(G(z))^2, where D is the logit itself.

    Source:
        Mao et al. 2017, arXiv:1611.04076, eq. 9.
    """
    return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())


def least_squares_generator_loss(fake_logits: Tensor) -> Tensor:
    """1/2 E (D(G(z)) - 1)^2, where D is the logit itself.

    Source:
        Mao et al. 2017, arXiv:1611.04076, eq. 9.
    """
    return 0.5 * (fake_logits - 1).square().mean()


def wasserstein_critic_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E f(G(z)) - E f(x): minus the Wasserstein-1 distance, if f is the best 1-Lipschitz critic.

    Source:
        Arjovsky, Chintala & Bottou 2017, arXiv:1701.07875, eq. 2.
    """
    return fake_logits.mean() - real_logits.mean()


def wasserstein_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E f(G(z)); the generator's loss of the hinge game too (Lim & Ye 2017, arXiv:1705.02894)."""
    return -fake_logits.mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))), where D is the logit itself.

    Source:
        Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957, eq. 16.
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E softplus(-(D(x) - D(G(z)))), in nats, over pairs of a real and a generated datum. At equilibrium log 2.

    Source:
        Jolicoeur-Martineau 2018, arXiv:1807.00734, section 4; its paired form is what Huang et al. 2024 (R3GAN),
        arXiv:2501.05441, section 2.1 has.
    """
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E softplus(-(D(G(z)) - D(x))): the discriminator's loss with the players' parts exchanged."""
    return F.softplus(real_logits - fake_logits).mean()


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "minimax": Objective(discriminator_loss, lambda real, fake: minimax_generator_loss(fake)),
    "non_saturating": Objective(discriminator_loss, lambda real, fake: non_saturating_generator_loss(fake)),
    "least_squares": Objective(least_squares_discriminator_loss, lambda real, fake: least_squares_generator_loss(fake)),
    "wasserstein": Objective(wasserstein_critic_loss, lambda real, fake: wasserstein_generator_loss(fake)),
    "hinge": Objective(hinge_discriminator_loss, lambda real, fake: wasserstein_generator_loss(fake)),
    "relativistic": Objective(relativistic_discriminator_loss, relativistic_generator_loss, pairs=True),
}


def zero_centred_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """E ||grad_x D(x)||^2, in squared logits per squared unit of x; differentiable. R1 at real data, R2 at generated.

    Arguments:
        logits: The discriminator's logits at x, (N,).
        x: The data the logits were computed from, requiring gradient. The mean is over these, also where each logit
            judges several.
    Source:
        Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, eqs. 9 and 10; the loss adds gamma / 2 times this.
    """
    return _input_gradients(logits, x).square().sum(1).mean()


def one_centred_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """E (||grad_x D(x)|| - 1)^2; differentiable. The gradient penalty of WGAN-GP, at points between real and generated.

    Arguments:
        logits: The critic's, (N // m,), where each judges a pack of m data, whose gradient then is that of the pack.
        x: The data the logits were computed from, requiring gradient, (N, ...).
    Source:
        Gulrajani et al. 2017, arXiv:1704.00028, eq. 3; the loss adds lambda times this.
    """
    # The root has no gradient at 0.
    gradients = _input_gradients(logits, x)
    n_packed = len(x) // len(logits) * len(logits)
    norms = gradients[:n_packed].reshape(len(logits), -1).square().sum(1).add(1e-12).sqrt()
    return (norms - 1).square().mean()


def between(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A point of each line between a real and a generated datum, uniformly drawn, (N, ...), requiring gradient.

    Source:
        Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.
    """
    shape = (len(real), *(1,) * (real.ndim - 1))
    share = parallel.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    return torch.lerp(fake.detach(), real.detach(), share).requires_grad_(True)


def _input_gradients(logits: Tensor, x: Tensor) -> Tensor:
    """Gradient of each logit with respect to its own datum, float32, (N, n_dims)."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.float().flatten(1)


def jsd_bound(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """A lower bound of the Jensen-Shannon divergence of data and samples, in nats: scalar, at most log 2.

    log 2 + (E log D(x) + E log(1 - D(G(z)))) / 2 for any D, with equality for the best one. Scores may have no zero of
    their own (a relativistic discriminator's, a critic's): they are also moved so that their two means lie about it.
    The larger of the two bounds counts.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, theorem 1.
    """
    middle = parallel.mean(real_logits.mean() + fake_logits.mean()) / 2
    losses = (
        discriminator_loss(real_logits, fake_logits),
        discriminator_loss(real_logits - middle, fake_logits - middle),
    )
    return math.log(2) - 0.5 * parallel.mean(torch.stack(losses)).min()
