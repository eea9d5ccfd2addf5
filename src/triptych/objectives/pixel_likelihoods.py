"""Likelihoods of integer images given a network's output: each sums to 1 over the levels of a sub-pixel.

Every function takes the network's raw parameters with the images, computes in float32 whatever the precision of the
network, and answers in nats per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def categorical_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x) under one softmax over the levels for each sub-pixel.

    Arguments:
        logits: (N, C, levels, H, W), any float dtype.
        x: Images, integers 0 .. levels-1, (N, C, H, W).
    Returns:
        Nats per image, float32, (N,).
    """
    return categorical_log_probs(logits, x).flatten(1).sum(1)


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


def categorical_sample(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """Draws a level for each sub-pixel. Arguments as `categorical_log_prob`; returns int64, (N, C, H, W)."""
    # The Gumbel-max trick: exact, and one draw of noise however many levels there are.
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_min_(1e-20)
    return (logits.float() - (-noise.log()).log()).argmax(2)


def categorical_mean(logits: Tensor) -> Tensor:
    """Mean level of each sub-pixel, float32, (N, C, H, W)."""
    levels = torch.arange(logits.shape[2], device=logits.device, dtype=torch.float32)
    return torch.einsum("nckhw,k->nchw", logits.float().softmax(2), levels)


def split_logistic_parameters(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts a network's output (N, C, 3 M, H, W) into mixture logits, means and log-scales of (N, C, M, H, W), float32.

    Means and scales are on the scale where the levels run from -1 to 1. Log-scales are kept within -7 .. 7, so that one
    level's likelihood cannot grow without bound through ever finer scales and no mass underflows.
    """
    mixture_logits, means, log_scales = parameters.float().chunk(3, dim=2)
    return mixture_logits, means, log_scales.clamp(-7.0, 7.0)


def logistic_mixture_log_prob(parameters: Tensor, x: Tensor, levels: int) -> Tensor:
    """log p(x) under a mixture of discretised logistics for each sub-pixel.

    A level's probability is the mass the logistics put within half a level of it; the lowest and the highest level
    take the tails, so that the levels sum to 1.

    Arguments:
        parameters: Mixture logits, means and log-scales of M components, (N, C, 3 M, H, W).
        x: Images, integers 0 .. levels-1, (N, C, H, W).
        levels: Number of levels, at least 2.
    Returns:
        Nats per image, float32, (N,).
    Source:
        Salimans et al. 2017 (PixelCNN++), arXiv:1701.05517, eq. 2. Differs: sub-pixels are independent given the
        parameters (the latent of a VAE carries what the channels share); the mass between the two edges is computed
        in log-space instead of being replaced by the density where it is small.
    """
    mixture_logits, means, log_scales = split_logistic_parameters(parameters)  # (N, C, M, H, W)
    log_mass = logistic_log_mass(x.unsqueeze(2), means, log_scales, levels)
    return (mixture_logits.log_softmax(2) + log_mass).logsumexp(2).flatten(1).sum(1)


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


def logistic_mixture_sample(parameters: Tensor, levels: int, generator: Generator | None = None) -> Tensor:
    """Draws a level for each sub-pixel. Arguments as `logistic_mixture_log_prob`; returns int64, (N, C, H, W)."""
    mixture_logits, means, log_scales = split_logistic_parameters(parameters)
    component = categorical_sample(mixture_logits, generator).unsqueeze(2)  # (N, C, 1, H, W)
    mean, log_scale = means.gather(2, component).squeeze(2), log_scales.gather(2, component).squeeze(2)
    u = torch.rand(mean.shape, generator=generator, device=mean.device).clamp_(1e-6, 1 - 1e-6)
    value = mean + log_scale.exp() * torch.logit(u)
    return ((value + 1) * ((levels - 1) / 2)).round().clamp_(0, levels - 1).long()


def logistic_mixture_mean(parameters: Tensor, levels: int) -> Tensor:
    """Mean of the mixture on the scale of the levels, clamped to their range, float32, (N, C, H, W)."""
    mixture_logits, means, _ = split_logistic_parameters(parameters)
    mean = (mixture_logits.softmax(2) * means.clamp(-1, 1)).sum(2)
    return (mean + 1) * ((levels - 1) / 2)
