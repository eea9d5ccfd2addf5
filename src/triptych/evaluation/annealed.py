"""Annealed importance sampling of log p(x), and the bracket that says how far off it can be.

The ELBO, and the importance-weighted bound at any affordable number of draws, can lie many nats below log p(x) where
q(z|x) fits the posterior badly. Annealing does not use q at all: it walks from the prior to the posterior through

    p_beta(z) proportional to p(z) p(x|z)^beta,    0 = beta_0 < beta_1 < ... < beta_T = 1,

and the weights that it collects on the way are an unbiased estimate of p(x). All it asks of a model is a standard
normal z and p(x|z), so that a generator with an observation model around it can be annealed too
(`evaluation/implicit.py`).

References:
    Annealed Importance Sampling, Neal 2001, Statistics and Computing 11, arXiv:physics/9803008.
    Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani & Adams 2015,
    arXiv:1511.02543.
    On the Quantitative Analysis of Decoder-Based Generative Models, Wu, Burda, Salakhutdinov & Grosse 2017,
    arXiv:1611.04273.
    MCMC Using Hamiltonian Dynamics, Neal 2011, arXiv:1206.1901.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from triptych import ranks
from triptych.data.dataset import Split
from triptych.errors import InputError
from triptych.evaluation.likelihood import evaluation_mode, read_batch
from triptych.models.base import ApproximateDensity, Kind, LatentModel, Likelihood

_SHARPNESS = 4.0  # Of the schedule's sigmoid, as both papers have it.
_ACCEPTANCE = 0.65  # Share of accepted proposals at which Hamiltonian chains go furthest (arXiv:1206.1901, sec. 4.4).
_FIRST_STEP = 0.5  # Leapfrog step in which the preliminary run starts; the prior has unit scale.
_GAIN = 0.5  # Nats that log(step) moves for an acceptance that is off by 1.
_JITTER = 0.2  # Steps vary by this share, so that no trajectory is as long as an orbit.


@dataclass(frozen=True)
class AnnealedSettings:
    """How thoroughly to anneal. The work is n_chains * n_leapfrog * (n_temperatures + n_pilot) decodings per item."""

    n_temperatures: int = 1000
    """Steps T from prior to posterior. The bound tightens as it grows, and nothing else closes a wide bracket."""
    n_chains: int = 16
    """Independent chains of each item."""
    n_leapfrog: int = 10
    """Leapfrog steps of a Hamiltonian proposal."""
    n_pilot: int = 100
    """Steps from prior to posterior of the preliminary run that finds the length of the leapfrog steps."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise InputError(f"AnnealedSettings.{field.name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Bracket:
    """log p(x) of simulated data, from both sides."""

    lower: Tensor
    """Nats of each item, float64, (n,): at most log p(x) in expectation."""
    upper: Tensor
    """Nats of each item, float64, (n,): at least log p(x) in expectation."""

    @property
    def gap(self) -> float:
        """Mean of upper - lower, in nats: in expectation no less than what annealing misses on simulated data."""
        return float((self.upper - self.lower).mean())


class LogLikelihood(Protocol):
    """log p(x|z), nats, (N,), as `ApproximateDensity.log_likelihood` has it: differentiable with respect to z."""

    def __call__(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor: ...


class DrawGiven(Protocol):
    """A draw from p(x|z), (N, *space.shape), as `ApproximateDensity.draw_given` has it."""

    def __call__(self, z: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class LatentDensity:
    """p(x), the integral of p(x|z) over a standard normal z: all that annealing asks of a model.

    Raises:
        InputError: If the prior of the model is not standard normal.
    """

    model: LatentModel
    """What has the latents, the space and the classes."""
    log_likelihood: LogLikelihood
    draw_given: DrawGiven
    kind: Kind
    """What an annealed log p(x) is as a statement about the model: a 'lower bound' where p(x|z) is the model's own, an
    'estimate' where p(x|z) was put there to have one."""

    def __post_init__(self) -> None:
        if not self.model.has_normal_prior:
            raise InputError(
                f"The prior of {type(self.model).__name__} is not standard normal, so p(x) cannot be annealed;"
                " use the importance-weighted bound."
            )

    @staticmethod
    def of(model: ApproximateDensity | LatentDensity) -> LatentDensity:
        """The density of a model with a p(x|z) of its own; a density itself as it is."""
        if isinstance(model, LatentDensity):
            return model
        return LatentDensity(model, model.log_likelihood, model.draw_given, "lower bound")


def schedule(n_temperatures: int) -> list[float]:
    """beta_0 = 0 .. beta_T = 1, sigmoidal in t: dense at both ends, where p_beta changes fastest.

    Source:
        Grosse et al. 2015, arXiv:1511.02543, section 6.2.
    """
    t = torch.linspace(-_SHARPNESS, _SHARPNESS, n_temperatures + 1, dtype=torch.float64).sigmoid()
    return [float(beta) for beta in (t - t[0]) / (t[-1] - t[0])]


def ais(
    model: ApproximateDensity | LatentDensity,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    settings: AnnealedSettings | None = None,
    generator: Generator | None = None,
    progress: Callable[[str], None] | None = None,
) -> Tensor:
    """Annealed importance sampling of log p(x), or of log p(x | label).

    The mean weight of the chains is an unbiased estimate of p(x), so its logarithm is at most log p(x) in expectation.
    The lengths of the leapfrog steps come from a preliminary run on noise of its own and are fixed thereafter: adapted
    in the measured run they would depend on the chain's past, and the estimate would be biased.

    Arguments:
        model: Of a standard normal prior, or a density made of one. Runs in evaluation mode, on its own device.
        x: Images, integers 0 .. levels-1, (N, C, H, W), or points, float, (N, dim).
        labels: int64, (N,); required by a class-conditional model.
        settings: None for the defaults. N * n_chains latents are decoded at once.
        generator: Source of all randomness, on the model's device; None for PyTorch's own.
        progress: Told how far the chains are, a short line at each tenth.
    Returns:
        Nats per item, float64, (N,): a lower bound in expectation. Higher is better.
    Raises:
        InputError: If x or labels do not fit the model, or its prior is not standard normal.
    Source:
        Neal 2001, arXiv:physics/9803008, section 2; Hamiltonian transitions as in Wu et al. 2017, arXiv:1611.04273.
        Differs: steps from a preliminary run; each proposal's step is jittered by a fifth.
    """
    settings = settings or AnnealedSettings()
    density = LatentDensity.of(model)
    network = density.model
    network.space.check(x)
    labels = network.check_labels(len(x), labels, draw=False)
    with evaluation_mode(network):
        target = _Target.of(density, x, labels, settings.n_chains)
        steps = _tuned_steps(target, settings, generator)
        z = torch.randn((len(target.x), network.n_latents), generator=generator, device=network.device)
        betas = schedule(settings.n_temperatures)
        return _log_mean_weight(target, z, betas, steps, settings.n_leapfrog, generator, progress)


def bracket(
    model: ApproximateDensity | LatentDensity,
    n: int,
    *,
    labels: Tensor | None = None,
    settings: AnnealedSettings | None = None,
    generator: Generator | None = None,
    batch_size: int = 64,
) -> Bracket:
    """Bidirectional Monte Carlo: log p(x) from below and above on data that the model itself draws.

    With z ~ p(z) and x ~ p(x|z), z is an exact draw from the posterior of x. Chains that start there and are annealed
    back to the prior estimate 1 / p(x) without bias, and minus its logarithm is at least log p(x) in expectation. So
    the gap bounds the error of `ais` with the same settings on such data. It says nothing certain of other data, which
    the model may find harder.

    Arguments:
        n: Number of items to draw.
        labels: int64, (n,). A class-conditional model without them draws labels uniformly.
        settings: None for the defaults.
        generator: Source of all randomness, on the model's device; None for PyTorch's own.
        batch_size: Items at once; batch_size * n_chains latents are decoded at once.
    Raises:
        InputError: If n or batch_size is not positive, labels do not fit, or the prior is not standard normal.
    Source:
        Grosse et al. 2015, arXiv:1511.02543. Differs: all reverse chains of an item start from its one
        posterior draw; each is unbiased by itself, so their mean is.
    """
    settings = settings or AnnealedSettings()
    density = LatentDensity.of(model)
    network = density.model
    if n < 1 or batch_size < 1:
        raise InputError(f"n is {n} and batch_size {batch_size}; both must be at least 1.")
    labels = network.check_labels(n, labels, draw=True, generator=generator)
    betas = schedule(settings.n_temperatures)
    lower, upper = [], []
    device = network.device
    with evaluation_mode(network):
        for start in range(0, n, batch_size):
            some = None if labels is None else labels[start : start + batch_size]
            truth = torch.randn((min(batch_size, n - start), network.n_latents), generator=generator, device=device)
            with torch.no_grad():
                x = density.draw_given(truth, some, generator=generator)
            target = _Target.of(density, x, some, settings.n_chains)
            steps = _tuned_steps(target, settings, generator)
            z = torch.randn((len(target.x), network.n_latents), generator=generator, device=device)
            lower.append(_log_mean_weight(target, z, betas, steps, settings.n_leapfrog, generator))
            # The same chain backwards, with the same transitions, is annealing from the posterior to the prior.
            z = truth.repeat_interleave(settings.n_chains, 0)
            back = _log_mean_weight(target, z, betas[::-1], steps.flip(0), settings.n_leapfrog, generator)
            upper.append(-back)
    return Bracket(torch.cat(lower), torch.cat(upper))


def evaluate_annealed(
    model: ApproximateDensity | LatentDensity,
    split: Split,
    *,
    settings: AnnealedSettings | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> Likelihood:
    """`ais` of every item of a split, in its order; processes that are `ranks.together` share the work.

    Arguments:
        model: On any device, or a density made of one. Class-conditional models are given the split's labels: log p(x |
            label).
        settings: None for the defaults.
        seed: Of all draws.
        batch_size: Items at once; batch_size * n_chains latents are decoded at once.
        progress: Told how far the chains are, a short line at each tenth.
    Returns:
        Nats per item on the CPU, (len(split),): a lower bound in expectation, typed as the density says.
    Raises:
        InputError: If the items or labels do not fit the model, or its prior is not standard normal.
    """
    settings = settings or AnnealedSettings()
    if len(split) == 0 or batch_size < 1:
        raise InputError(f"The split has {len(split)} items and batch_size is {batch_size}; both must be at least 1.")
    density = LatentDensity.of(model)
    network = density.model

    def annealed(number: int) -> Tensor:
        start = number * batch_size
        x, labels = read_batch(network, split, slice(start, start + batch_size))
        tell = None if progress is None else _prefixed(progress, f"items {start + 1}-{start + len(x)} of {len(split)}")
        generator = Generator(network.device).manual_seed(ranks.part_seed(seed, number))
        return ais(density, x, labels, settings=settings, generator=generator, progress=tell).float().cpu()

    parts = ranks.in_parts(math.ceil(len(split) / batch_size), annealed)
    return Likelihood(torch.cat(parts), density.kind, network.measure, settings.n_chains)


class _State(NamedTuple):
    """Where chains are, and what is known there."""

    z: Tensor
    """(rows, n_latents)."""
    log_p: Tensor
    """log p(x|z), float64, (rows,)."""
    gradient: Tensor
    """Of log p(x|z) with respect to z, (rows, n_latents)."""


@dataclass(frozen=True)
class _Target:
    """p(x|z) of some items, each repeated for its chains: row i * n_chains + k is chain k of item i."""

    density: LatentDensity
    x: Tensor
    labels: Tensor | None
    n_chains: int

    @staticmethod
    def of(density: LatentDensity, x: Tensor, labels: Tensor | None, n_chains: int) -> _Target:
        x = x.to(density.model.device).repeat_interleave(n_chains, 0)
        return _Target(density, x, None if labels is None else labels.repeat_interleave(n_chains, 0), n_chains)

    def at(self, z: Tensor) -> _State:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = self.density.log_likelihood(self.x, z, self.labels)
            (gradient,) = torch.autograd.grad(log_p.sum(), z)
        return _State(z.detach(), log_p.detach().double(), gradient)

    def move(
        self, state: _State, beta: float, step: Tensor, n_leapfrog: int, generator: Generator | None
    ) -> tuple[_State, Tensor]:
        """A Hamiltonian transition that leaves p_beta as it is, and each item's mean probability of acceptance, (N,).

        Arguments:
            step: Length of a leapfrog step for each item, (N,).
        Source:
            Neal 2011, arXiv:1206.1901, section 3 and, for the jitter, section 4.2. It is reversible, because momenta
            and jitter are drawn anew and do not depend on the state.
        """
        rows, device = len(self.x), state.z.device
        noise = torch.rand(rows, generator=generator, device=device)
        step = step.repeat_interleave(self.n_chains) * (1 + _JITTER * (2 * noise - 1))
        step = step.to(state.z.dtype)[:, None]  # (rows, 1)
        start = torch.randn(state.z.shape, generator=generator, device=device, dtype=state.z.dtype)
        momentum = start + step / 2 * (beta * state.gradient - state.z)
        proposal = state
        for i in range(n_leapfrog):
            proposal = self.at(proposal.z + step * momentum)
            kick = step if i < n_leapfrog - 1 else step / 2
            momentum = momentum + kick * (beta * proposal.gradient - proposal.z)
        log_ratio = _log_joint(proposal, momentum, beta) - _log_joint(state, start, beta)
        # A trajectory that diverged has a ratio of NaN: it compares false, and is refused.
        accept = torch.rand(rows, generator=generator, device=device).log() < log_ratio
        z = torch.where(accept[:, None], proposal.z, state.z)
        gradient = torch.where(accept[:, None], proposal.gradient, state.gradient)
        acceptance = log_ratio.nan_to_num(-math.inf, math.inf, -math.inf).clamp(max=0).exp()
        moved = _State(z, torch.where(accept, proposal.log_p, state.log_p), gradient)
        return moved, acceptance.unflatten(0, (-1, self.n_chains)).mean(1)


def _log_joint(state: _State, momentum: Tensor, beta: float) -> Tensor:
    """Log-density of latents and momenta but for a constant, float64, (rows,)."""
    kinetic = (state.z.double().square() + momentum.double().square()).sum(1) / 2
    return beta * state.log_p - kinetic


def _tuned_steps(target: _Target, settings: AnnealedSettings, generator: Generator | None) -> Tensor:
    """Leapfrog steps of each item at beta_1 .. beta_{T-1}, float64, (T - 1, N).

    A preliminary run over fewer temperatures follows the step that accepts 65 % of an item's proposals, stochastic
    approximation with a constant gain; between its temperatures the logarithm is interpolated.
    """
    n_items, device = len(target.x) // target.n_chains, target.x.device
    log_step = torch.full((n_items,), math.log(_FIRST_STEP), dtype=torch.float64, device=device)
    z = torch.randn((len(target.x), target.density.model.n_latents), generator=generator, device=device)
    state, found = target.at(z), []
    for beta in schedule(settings.n_pilot)[1:]:
        state, acceptance = target.move(state, beta, log_step.exp(), settings.n_leapfrog, generator)
        log_step = log_step + _GAIN * (acceptance - _ACCEPTANCE)
        found.append(log_step)
    pilot = torch.stack(found)  # (n_pilot, N), at t / T = 1 / n_pilot, 2 / n_pilot, .. 1
    share = torch.arange(1, settings.n_temperatures, dtype=torch.float64, device=device) / settings.n_temperatures
    place = (share * settings.n_pilot - 1).clamp(min=0)
    low = place.long()
    high = (low + 1).clamp(max=settings.n_pilot - 1)
    return torch.lerp(pilot[low], pilot[high], (place - low)[:, None]).exp()


def _log_mean_weight(
    target: _Target,
    z: Tensor,
    betas: Sequence[float],
    steps: Tensor,
    n_leapfrog: int,
    generator: Generator | None,
    progress: Callable[[str], None] | None = None,
) -> Tensor:
    """Log of the mean importance weight of each item's chains, annealed along betas, float64, (N,).

    Arguments:
        z: Draws from p_beta at the first beta, (rows, n_latents).
        steps: Leapfrog steps at all betas but the first and the last, (len(betas) - 2, N).
    Source:
        Neal 2001, arXiv:physics/9803008, section 2. After the last weight no transition is needed.
    """
    state = target.at(z)
    log_weight = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    n = len(betas) - 1
    for t, (beta, following) in enumerate(pairwise(betas)):
        log_weight += (following - beta) * state.log_p
        if t < n - 1:
            state, _ = target.move(state, following, steps[t], n_leapfrog, generator)
        if progress is not None and (t + 1) * 10 // n > t * 10 // n:
            progress(f"annealing, {t + 1} of {n} temperatures")
    return log_weight.unflatten(0, (-1, target.n_chains)).logsumexp(1) - math.log(target.n_chains)


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda line: progress(f"{prefix}: {line}")
