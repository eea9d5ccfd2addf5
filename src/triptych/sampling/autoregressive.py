"""Exact draws from autoregressive networks: one forward pass a sub-pixel, or wavefronts over the layers' caches.

Both decide each sub-pixel by the same function of its logits and of noise drawn beforehand, so that from the same
noise they draw the same images (but for a sub-pixel whose noise lies within rounding of a step of the distribution
function).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from triptych.nn.causal import CausalLayer


def decide(logits: Tensor, noise: Tensor) -> Tensor:
    """The level whose step of the distribution function the noise falls on: inverse transform sampling.

    Arguments:
        logits: Unnormalised log-probabilities of the levels, (..., K).
        noise: Uniform on [0, 1), (...).
    Returns:
        Levels 0 .. K-1, int64, (...).
    """
    cdf = (logits.float() - logits.amax(-1, keepdim=True)).exp().cumsum(-1)  # (..., K), unnormalised
    threshold = noise.unsqueeze(-1) * cdf[..., -1:]
    # A product that rounds up to the total itself would otherwise fall past the last level.
    return (cdf <= threshold).sum(-1).clamp_max(logits.shape[-1] - 1)


@torch.inference_mode()
def draw_naive(logits: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """Draws images with one full forward pass for each sub-pixel: slow, and plainly right.

    Arguments:
        logits: From levels, int64, (N, C, H, W), to logits, (N, C, K, H, W).
        noise: Uniform on [0, 1), float32, (N, C, H, W).
    Returns:
        Levels, int64, (N, C, H, W).
    """
    _, channels, height, width = noise.shape
    x = torch.zeros(noise.shape, dtype=torch.int64, device=noise.device)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                at = (slice(None), channel, row, column)
                x[at] = decide(logits(x)[:, channel, :, row, column], noise[at])
    return x


@torch.inference_mode()
def draw_wavefront(
    network: CausalLayer, noise: Tensor, encode: Callable[[Tensor], Tensor], condition: Tensor | None = None
) -> Tensor:
    """Draws the images that `draw_naive` draws, each site once and all sites of a wavefront at a time.

    Arguments:
        network: Its groups are the C channels, the K features of an output group are logits.
        noise: Uniform on [0, 1), float32, (N, C, H, W).
        encode: From levels, int64, (...), to the features the network takes of a sub-pixel, (..., C_in / C).
        condition: As the network takes it, (N, n_condition).
    Returns:
        Levels, int64, (N, C, H, W).
    """
    n, channels, height, width = noise.shape
    state = network.start(n, (height, width), condition)
    noise = noise.flatten(2)  # (N, C, H * W)
    x = torch.empty(noise.shape, dtype=torch.int64, device=noise.device)
    for sites in wavefronts(height, width, 1 + network.reach, noise.device):
        context = network.context(state, sites)
        noise_here = noise.index_select(2, sites).unbind(1)  # C of (N, S)
        drawn = []
        for channel in range(channels):
            drawn.append(decide(network.step(state, context, channel), noise_here[channel]))  # (N, S)
            network.write(state, context, encode(drawn[-1]), channel)
        x.index_copy_(2, sites, torch.stack(drawn, 1))
    return x.unflatten(2, (height, width))


def wavefronts(height: int, width: int, skew: int, device: torch.device | None = None) -> Iterator[Tensor]:
    """The sites (row, column) with column + skew * row = 0, 1, 2, ..., as positions row * W + column, int64, (S,).

    A site is in a later wavefront than those left of it and than those in the row above up to skew - 1 to its right.
    """
    for front in range(width + skew * (height - 1)):
        rows = range(max(0, -(-(front - width + 1) // skew)), min(height - 1, front // skew) + 1)
        if rows:
            yield torch.tensor([row * width + front - skew * row for row in rows], device=device)
