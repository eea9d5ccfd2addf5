"""Likelihoods of integer images given a network's output: each sums to 1 over the levels of a sub-pixel.

Every function takes the network's raw parameters with the images, computes in float32 whatever the precision of the
network, and answers in nats per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def categorical_log_probs(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x_i) of each sub-pixel under its softmax, nats, float32, (N, C, H, W); arguments as above."""
    n, c, k, h, w = logits.shape
    nats = F.cross_entropy(logits.float().reshape(n * c, k, h, w), x.reshape(n * c, h, w).long(), reduction="none")
    return -nats.view(n, c, h, w)


def bernoulli_log_probs(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x_i) of each sub-pixel of a binary image.

    Arguments:
        logits: log p(1) - log p(0), (N, C, H, W), any float dtype.
        x: Images, integers 0 or 1, (N, C, H, W).
    Returns:
        Nats, float32, (N, C, H, W).
    """
    return -F.binary_cross_entropy_with_logits(logits.float(), x.float(), reduction="none")


def logistic_log_mass(x: Tensor, means: Tensor, log_scales: Tensor, levels: int) -> Tensor:
    """Log of the mass that a logistic distribution puts on a level; the edge levels take the tails.

    Arguments:
        x: Integers 0 .. levels-1, of a shape that broadcasts with the others.
        means, log_scales: On the scale where the levels run from -1 to 1, float32.
    Returns:
        Nats, float32, of the broadcast shape; over all levels the masses sum to 1.
    """
    half_level = 1.0 / (levels - 1)
    centred = x.float() * (2 * half_level) - 1 - means
    inverse_scale = (-log_scales).exp()
    upper = (centred + half_level) * inverse_scale
    lower = (centred - half_level) * inverse_scale
    # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b)), exact and stable for b > a.
    inner = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    return torch.where(x == 0, F.logsigmoid(upper), torch.where(x == levels - 1, F.logsigmoid(-lower), inner))
