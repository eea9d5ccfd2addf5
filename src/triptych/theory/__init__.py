"""The theory of the adversarial game, computed: each file is a figure, with the numbers behind it.

    discriminator   the best discriminator is D* = p_data / (p_data + p_G)
    value           its value is -2 log 2 + 2 JSD
    losses          the generator's losses and gradients over D(G(z))
    likelihood      maximum likelihood is minimum KL
    alternation     G0, D0*, G1, D1*, ...: the JSD falls at every step, if it is small enough
    game            p_data, p_G and D over a training

Each has `compute`, which returns the numbers, and `draw`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from triptych.errors import InputError, nearest_name
from triptych.files import write_text
from triptych.theory import alternation, discriminator, game, likelihood, losses, value


class Result(Protocol):
    """What a figure shows."""

    def numbers(self) -> dict[str, Any]:
        """The numbers, as JSON holds them."""

    def describe(self) -> list[str]:
        """The chief ones in a few lines."""


FIGURES: dict[str, Any] = {
    "discriminator": discriminator,
    "value": value,
    "losses": losses,
    "likelihood": likelihood,
    "alternation": alternation,
    "game": game,
}
"""The modules, each with `compute(seed, *, quick)` and `draw(result, path)`."""


def demonstrate(
    out: str | Path = "theory", *, only: Sequence[str] = (), seed: int = 0, quick: bool = False, verbose: bool = True
) -> dict[str, Result]:
    """Computes the figures and writes them, a PNG each, with theory.json, and game.gif for the game.

    Arguments:
        out: Folder, made if it is not there.
        only: Names of FIGURES; by default all. theory.json then holds only these.
        seed: Of the networks' first weights and of the samples.
        quick: Shorter trainings and coarser grids: the discriminator in the plane is visibly off.
        verbose: Print the chief numbers.
    Returns:
        What each figure shows, by name.
    Raises:
        InputError: If a name is unknown, the seed is negative or the folder is a file.
    """
    out = Path(out)
    for name in only:
        if name not in FIGURES:
            raise InputError(
                f"There is no figure {name!r}; choose from {', '.join(FIGURES)}.{nearest_name(name, FIGURES)}"
            )
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder.")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    with _one_thread():
        for name, figure in FIGURES.items():
            if only and name not in only:
                continue
            result = figure.compute(seed, quick=quick)
            figure.draw(result, out / f"{name}.png")
            if isinstance(result, game.Game):
                game.animate(result, out / "game.gif")
            results[name] = result
            if verbose:
                print("\n".join([f"{name} -> {out / f'{name}.png'}", *(f"  {line}" for line in result.describe())]))
    numbers = {name: result.numbers() for name, result in results.items()}
    write_text(out / "theory.json", json.dumps({"seed": seed, "quick": quick, "figures": numbers}, indent=1) + "\n")
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: networks this small wait for a second longer than it works, and sums keep their order."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
