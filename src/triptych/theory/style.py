"""How the figures look: colours that stay apart for colour-blind readers too, and writing a figure to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from triptych.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe & Ito's palette. Data, model and discriminator have one colour each in all figures.
DATA, MODEL, JUDGE = "#0072B2", "#D55E00", "#1a1a1a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1a1a1a")
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, drawn off screen; width and height in inches."""
    # Imported here: it takes half a second, and the computations do without it.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def between_players() -> Colormap:
    """Colours of a discriminator's probability: the model's at 0, white at 1/2, the data's at 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("players", [MODEL, "#ffffff", DATA])


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels and no box."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
