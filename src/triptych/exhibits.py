"""Thought experiments of a lecture, carried out: two short trainings and a figure that shows what they teach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych import api
from triptych.data.dataset import Dataset
from triptych.data.pictures import image_grid
from triptych.errors import InputError
from triptych.evaluation.likelihood import evaluate_likelihood, summarise
from triptych.files import write_atomically
from triptych.models.approximate.vae import VAE
from triptych.spaces import ImageSpace

N_SHOWN = 1500  # Items whose codes are drawn.
N_GRID = 15  # Decoded images along each side of the map.
MARGIN = 0.06  # Of the map beyond the outermost codes.


@dataclass(frozen=True)
class Codes:
    """What one of the two models makes of the held-out items."""

    title: str
    mu: np.ndarray
    """Means of q(z|x), (N, 2)."""
    sigma: np.ndarray
    """Standard deviations of q(z|x), (N, 2)."""
    bound: float
    """Mean of -ELBO, nats per image."""
    distance: float
    """Median over the places of the map between the outermost codes of the distance to the nearest code, in units of
    that code's sigma: above 2 or so a place belongs to no code."""

    def describe(self) -> str:
        """The numbers in a line."""
        return (
            f"{self.title}: median sigma {np.median(self.sigma):.3f}; -ELBO {self.bound:.1f} nats per image; a place"
            f" between the codes is {self.distance:.1f} sigma from the nearest one (median)"
        )


def holes(
    data: Dataset, *, out: str | Path = "holes.png", runs: str | Path | None = None, verbose: bool = True, **train: Any
) -> tuple[Codes, Codes]:
    """What becomes of a VAE with two latents if reconstruction is all it is trained for, beside one with the KL.

    Without the KL nothing keeps sigma from going to 0: every item gets a point of its own, and what lies between the
    points is never decoded in training, and stands for nothing. With the KL the codes spread until they fill the prior.

    Arguments:
        data: Images.
        out: PNG file for the figure.
        runs: Folder for the two runs; by default beside the figure, under its name.
        train: Settings of the trainings, as `budget="60s"`.
    Returns:
        The numbers behind the figure, without and with the KL.
    Raises:
        InputError: If the data are points, or the figure cannot be written.
    """
    space, out = data.space, Path(out)
    if not isinstance(space, ImageSpace):
        raise InputError(f"{data.name!r} holds {space}; the exhibit is about images.")
    if out.suffix.lower() != ".png" or out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out} is no .png file that can be written; give another.")
    folder = Path(runs) if runs is not None else out.with_suffix("")
    found = []
    for title, name, beta in (("reconstruction alone", "without-kl", 0.0), ("with the KL", "with-kl", 1.0)):
        model = api.fit("vae", data, out=folder / name, n_latents=2, beta=beta, verbose=verbose, **train)
        assert isinstance(model, VAE)
        found.append((model, codes_of(model, data, title)))
    (_, without), (_, with_kl) = found
    write_atomically(out, lambda path: _draw([(model, space, data.test.labels, codes) for model, codes in found], path))
    return without, with_kl


@torch.no_grad()
def codes_of(model: VAE, data: Dataset, title: str) -> Codes:
    """Means and standard deviations of q(z|x) on the test split, and how far apart they lie."""
    items = data.test.read(np.arange(min(N_SHOWN, len(data.test))))[0]
    mu, log_var = (part.numpy() for part in model.posterior(torch.from_numpy(items)))
    sigma = np.exp(0.5 * log_var)
    low, high = np.quantile(mu, 0.02, axis=0), np.quantile(mu, 0.98, axis=0)
    places = np.random.default_rng(0).uniform(low, high, (400, 2))
    apart = np.sqrt((((places[:, None] - mu) / sigma) ** 2).sum(2)).min(1)  # (places,)
    likelihood = evaluate_likelihood(model, data.test)
    assert likelihood is not None
    bound = summarise(likelihood, model.space)["nll_nats_per_image"].value
    assert bound is not None
    return Codes(title, mu, sigma, bound, float(np.median(apart)))


def _draw(panels: list[tuple[VAE, ImageSpace, np.ndarray | None, Codes]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.collections import EllipseCollection

    figure, axes = plt.subplots(len(panels), 3, figsize=(13, 4.3 * len(panels)), layout="constrained")
    for (model, space, labels, codes), (left, middle, right) in zip(panels, axes, strict=True):
        low, high = codes.mu.min(0), codes.mu.max(0)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        classes = np.zeros(len(codes.mu), int) if labels is None else labels[: len(codes.mu)]
        colours = plt.get_cmap("tab10")(classes % 10)
        # Two standard deviations to either side: where q(z|x) has most of its mass.
        ellipses = EllipseCollection(
            4 * codes.sigma[:, 0],
            4 * codes.sigma[:, 1],
            np.zeros(len(codes.mu)),
            units="xy",
            offsets=codes.mu,
            offset_transform=left.transData,
            facecolors=colours * [1, 1, 1, 0.12],
            edgecolors="none",
        )
        left.add_collection(ellipses)
        left.scatter(*codes.mu.T, s=3, c=colours, linewidths=0)
        left.set_title(f"{codes.title}: q(z|x), mean and two sigma", fontsize=10)
        left.set_xlim(low[0], high[0])
        left.set_ylim(low[1], high[1])
        left.set_xlabel("$z_1$")
        left.set_ylabel("$z_2$")
        across, up = (np.linspace(low[i], high[i], N_GRID) for i in (0, 1))
        places = np.stack([np.tile(across, N_GRID), np.repeat(up[::-1], N_GRID)], 1).astype(np.float32)
        with torch.no_grad():
            decoded = model.decode(torch.from_numpy(places)).numpy()
        picture = np.asarray(image_grid(decoded, space, N_GRID))
        middle.imshow(picture, extent=(low[0], high[0], low[1], high[1]), interpolation="nearest")
        middle.set_aspect("auto")
        middle.set_title("decoded over the same plane", fontsize=10)
        middle.set_xlabel("$z_1$")
        right.hist(np.log10(codes.sigma).ravel(), bins=np.linspace(-2.2, 0.4, 53), color="#4c78a8")
        right.set_title(f"sigma; median {np.median(codes.sigma):.3f}; -ELBO {codes.bound:.0f} nats", fontsize=10)
        right.set_xlabel("$\\log_{10}$ sigma")
        right.set_ylabel("latents")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
