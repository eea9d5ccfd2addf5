"""What the latents of a model carry: the cost of each part, which of them vary with the data, and whether none does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.likelihood import blocks, evaluation_mode, read_batch
from triptych.models.base import ApproximateDensity, LatentModel
from triptych.spaces import PointSpace

_ACTIVE = 0.01  # Variance of the posterior mean over the data above which a latent is in use.
_COLLAPSED = 0.05  # Nats of KL below which z says nothing about x.
_FEW = 0.1  # Share of active latents below which most of z is idle.
_N_SHOWN = 8  # Parts in a line for the terminal.
_REMEDY = "Try a lower beta, a warm-up of the KL, free bits, or a weaker decoder."


@dataclass(frozen=True)
class LatentReport:
    """What the latents carry over some items."""

    kl: Tensor
    """KL(q || p) of each part of z (a latent, or a stochastic layer), mean over items, nats, float64, (parts,)."""
    n_active: int
    """Latents whose posterior mean varies over the items by more than 0.01."""
    n_latents: int
    """Size of z."""
    n_items: int
    """Items behind all of it."""

    @property
    def total_kl(self) -> float:
        """KL of the bound, mean over items, nats: at most what z knows of x."""
        return float(self.kl.sum())

    @property
    def warning(self) -> str | None:
        """One sentence if the posterior has collapsed, wholly or for the most part, with what to try; else None."""
        if not math.isfinite(self.total_kl):
            return f"The KL of the latents is {self.total_kl}: the training has diverged; try a lower learning rate."
        if self.n_active == 0:
            return f"The posterior has collapsed: none of {self.n_latents} latents varies with the data. {_REMEDY}"
        if self.total_kl < _COLLAPSED:
            return f"The posterior has collapsed: the latents carry {self.total_kl:.3f} nats in all. {_REMEDY}"
        if self.n_active < _FEW * self.n_latents:
            return f"Only {self.n_active} of {self.n_latents} latents vary with the data. {_REMEDY}"
        return None


@torch.no_grad()
def encoded(model: LatentModel, split: Split, *, sample: bool = False, seed: int = 0) -> np.ndarray:
    """Latents of items, float32, (N, n_latents), by batches: means of q(z|x), or draws from it.

    Arguments:
        seed: Of the draws, and of encoders that draw on the way to a mean.
    Raises:
        InputError: If the items or labels do not fit the model.
    """
    generator = Generator(model.device).manual_seed(seed)
    z = np.empty((len(split), model.n_latents), np.float32)
    for block in blocks(len(split), model.space):
        x, labels = read_batch(model, split, block)
        x = x.float() if isinstance(model.space, PointSpace) and x.is_floating_point() else x
        z[block] = model.encode(x, labels, sample=sample, generator=generator).float().cpu().numpy()
    return z


@torch.no_grad()
def latent_report(
    model: ApproximateDensity, split: Split, *, max_items: int = 2000, batch_size: int = 256, seed: int = 0
) -> LatentReport:
    """The cost of the latents, and how many of them the model uses.

    Arguments:
        model: On any device; runs in evaluation mode. Class-conditional models are given the split's labels.
        max_items: Items to look at, drawn at random from a larger split; at least 2.
        batch_size: Items at once.
        seed: Of the choice of items, and of the draws of models whose layers depend on draws of other layers.
    Raises:
        InputError: If there are fewer than 2 items, or they do not fit the model.
    Source:
        Active units: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5: Var_x(E_q[z|x]) > 0.01.
    """
    n = min(len(split), max_items)
    if n < 2 or batch_size < 1:
        raise InputError(f"There are {n} items to look at and batch_size is {batch_size}; give at least 2 and 1.")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:n])
    device = model.device
    generator = Generator(device).manual_seed(seed)
    kl = torch.zeros((), dtype=torch.float64, device=device)
    mean = torch.zeros(model.n_latents, dtype=torch.float64, device=device)
    spread = torch.zeros(model.n_latents, dtype=torch.float64, device=device)
    with evaluation_mode(model):
        for start in range(0, n, batch_size):
            x, labels = read_batch(model, split, chosen[start : start + batch_size])
            kl = kl + model.kl(x, labels=labels, generator=generator).double().sum(0)
            z = model.encode(x, labels, generator=generator).double()
            # Chan's update: squares about a running mean, where a sum of squares would cancel.
            shift = z.mean(0) - mean
            spread += (z - z.mean(0)).square().sum(0) + shift.square() * start * len(z) / (start + len(z))
            mean += shift * len(z) / (start + len(z))
    n_active = int((spread / (n - 1) > _ACTIVE).sum())
    return LatentReport((kl / n).cpu(), n_active, model.n_latents, n)


def describe(report: LatentReport) -> list[str]:
    """Lines for the terminal: the totals, the dearest parts, and the warning if there is one."""
    lines = [
        f"latents: {report.n_active} of {report.n_latents} active, KL {report.total_kl:.2f} nats per item"
        f" (mean of {report.n_items})"
    ]
    if len(report.kl) == report.n_latents:
        kind, values = "dearest latents", report.kl.sort(descending=True).values
    else:
        kind, values = "layers in order", report.kl
    if len(values) > 1:
        shown = ", ".join(f"{float(value):.2f}" for value in values[:_N_SHOWN])
        rest = f", and {len(values) - _N_SHOWN} more" if len(values) > _N_SHOWN else ""
        lines.append(f"{kind}, nats: {shown}{rest}")
    return lines if report.warning is None else [*lines, report.warning]
