"""The adversarial game as functions of the discriminator's logits, and the penalties that keep it stable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Minus the value of the game, -E log D(x) - E log(1 - D(G(z))), for D = sigmoid(logits).

    Scalar, nats. At equilibrium, where D = 1/2, it is 2 log 2.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, eq. 1.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)): its gradient does not vanish where the discriminator rejects every sample. Scalar, nats.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """
    return F.softplus(-fake_logits).mean()


def r1_penalty(real_logits: Tensor, x: Tensor) -> Tensor:
    """E ||grad_x D(x)||^2 at real data, in squared logits per squared unit of x. Scalar, differentiable.

    Arguments:
        real_logits: The discriminator's logits at x, (N,).
        x: The real data the logits were computed from, requiring gradient.
    Source:
        Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, eq. 9; the loss adds gamma / 2 times this.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), x, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()
