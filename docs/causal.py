"""Draws docs/images/causal.png: what masks hide, what networks see, and in what order sites are drawn.

    python docs/causal.py

Every panel is computed from the layers and the sampler themselves.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.registry import create_model
from triptych.nn.causal import MaskedConv2d
from triptych.sampling.autoregressive import wavefronts
from triptych.spaces import ImageSpace

mpl.use("Agg")
from matplotlib import pyplot as plt

SEEN, HIDDEN, OWN = "#4c78a8", "#eceef1", "#e45756"


def grid(axes: Axes, values: np.ndarray, colours: list[str], title: str) -> None:
    """A field of squares, coloured by an integer each."""
    axes.pcolormesh(values[::-1], cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, edgecolors="w", lw=1)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=9)


def receptive_field(name: str, **options: int) -> np.ndarray:
    """Sites that the network's output in the middle of a 15x15 image depends on: 1 where it does, 2 at its own site."""
    torch.manual_seed(0)
    model = create_model(name, ImageSpace(1, 15, 15, 2), dropout=0.0, **options)
    assert isinstance(model, AutoregressiveDensity)
    x = torch.randn(1, 1, 15, 15, requires_grad=True)
    model.network(x)[0, :, 9, 7].sum().backward()
    assert x.grad is not None
    seen = (x.grad[0, 0] != 0).int().numpy()
    seen[9, 7] = 2
    return seen


def main() -> None:
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.8), layout="constrained")
    first, inner = MaskedConv2d(1, 1, 7, "A").mask[0, 0].int().numpy(), MaskedConv2d(3, 3, 3, "B", 3).mask
    first[3, 3] = 2
    grid(axes[0, 0], first, [HIDDEN, SEEN, OWN], "mask A, 7x7: the first layer\nsees sites before its own")
    centre = inner[:, :, 1, 1].int().numpy()
    grid(axes[0, 1], centre, [HIDDEN, SEEN], "mask B at its own site:\noutput (rows) from input (columns)")
    for i, channel in enumerate("RGB"):
        axes[0, 1].text(-0.15, 2.5 - i, channel, ha="right", va="center", fontsize=9)
        axes[0, 1].text(i + 0.5, -0.1, channel, ha="center", va="top", fontsize=9)
    height, width, skew = 6, 8, 2
    turn = np.zeros((height, width), dtype=int)
    for number, sites in enumerate(wavefronts(height, width, skew)):
        turn.flat[list(sites)] = number
    axes[0, 2].pcolormesh(turn[::-1], cmap="Blues", vmin=-6, vmax=turn.max() + 8, edgecolors="w", lw=1)
    for row, column in np.ndindex(height, width):
        axes[0, 2].text(column + 0.5, height - row - 0.5, turn[row, column], ha="center", va="center", fontsize=8)
    axes[0, 2].set_aspect("equal")
    axes[0, 2].axis("off")
    title = f"wavefronts of 3x3 layers (reach 1):\n{turn.max() + 1} turns for {height * width} sites"
    axes[0, 2].set_title(title, fontsize=9)
    fields = {
        "pixel_cnn": {"hidden": 4, "n_blocks": 3, "kernel_size": 3},
        "gated_pixel_cnn": {"hidden": 4, "n_layers": 6, "kernel_size": 3},
        "row_lstm": {"hidden": 4, "n_layers": 1, "kernel_size": 3},
    }
    words = {
        "pixel_cnn": "PixelCNN, 3x3 kernels:\na blind spot to the right",
        "gated_pixel_cnn": "Gated PixelCNN, two stacks:\nno blind spot",
        "row_lstm": "Row LSTM, one layer:\na triangle that reaches the top",
    }
    for axis, (name, options) in zip(axes[1], fields.items(), strict=True):
        grid(axis, receptive_field(name, **options), [HIDDEN, SEEN, OWN], words[name])
    figure.savefig(Path(__file__).parent / "images" / "causal.png", dpi=140)


if __name__ == "__main__":
    main()
