"""Runs a causal layer as drawing does, on inputs that are known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.nn.causal import CausalLayer
from triptych.sampling.autoregressive import wavefronts


def run_incrementally(
    layer: CausalLayer, x: Tensor, condition: Tensor | None = None, *, skew: int, own_first: bool, rows: bool = False
) -> Tensor:
    """The layer's output, wavefront by wavefront.

    Arguments:
        x: (N, C_in, H, W).
        skew: Of the wavefronts; the image's width or more for raster order.
        own_first: The layer sees its own site (mask B), and is told of it before it is asked.
        rows: Tell the layer of every row's beginning.
    """
    n, _, height, width = x.shape
    inputs = x.unflatten(1, (layer.n_groups, -1)).flatten(3)  # (N, G, features, H * W)
    outputs: list[Tensor] = []
    order: list[int] = []
    with torch.inference_mode():
        state = layer.start(n, (height, width), condition)
        for sites in wavefronts(height, width, skew):
            if rows and sites[0] % width == 0:
                layer.row(state, sites[0] // width)
            context = layer.context(state, sites)
            y = []
            for group in range(layer.n_groups):
                own = inputs[:, group, :, list(sites)].transpose(1, 2)  # (N, S, features)
                if own_first:
                    layer.write(state, context, own, group)
                y.append(layer.step(state, context, group).clone())  # it may lie in memory that the next turn uses
                if not own_first:
                    layer.write(state, context, own, group)
            outputs.append(torch.cat(y, 2))
            order += sites
    return torch.cat(outputs, 1)[:, torch.tensor(order).argsort()].transpose(1, 2).unflatten(2, (height, width))
