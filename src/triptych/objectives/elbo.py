"""The parts of the evidence lower bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, diag exp log_var) || N(0, I)) in closed form.

    Arguments:
        mu, log_var: (N, n_latents).
    Returns:
        Nats per latent, (N, n_latents), at least 0.
    Source:
        Kingma & Welling 2014, arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var)


def gaussian_log_prob(x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mu, diag exp log_var), summed over the last dimension, in nats."""
    return -0.5 * ((x - mu).square() / log_var.exp() + log_var + math.log(2 * math.pi)).sum(-1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over the last dimension, in nats."""
    zero = torch.zeros((), device=z.device)
    return gaussian_log_prob(z, zero, zero)
