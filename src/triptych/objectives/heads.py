"""Heads: what a causal network's output at a site says about the sub-pixels of that site.

A head joins pure functions: the log-probability of given levels (training, scoring), the distribution over the levels
of the next channel, and its inverse distribution function (drawing). It has no parameters of its own.

The outputs of a network come in groups. With one group a channel (`n_groups` = C), a group's output speaks of its
channel alone, and the network itself lets it see the channels before it. With one group a site (`n_groups` = 1), the
head carries the dependence between the channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.objectives.pixel_likelihoods import bernoulli_log_probs, categorical_log_probs, logistic_log_mass
from triptych.spaces import ImageSpace


def decide(logits: Tensor, noise: Tensor) -> Tensor:
    """The level whose step of the distribution function the noise falls on: inverse transform sampling.

    Arguments:
        logits: Unnormalised log-probabilities of the levels, (..., K).
        noise: Uniform on [0, 1), (...).
    Returns:
        Levels 0 .. K-1, int64, (...).
    """
    cdf = logits.softmax(-1, dtype=torch.float32).cumsum(-1)  # (..., K); ends near 1
    threshold = noise.unsqueeze(-1) * cdf.narrow(-1, logits.shape[-1] - 1, 1)
    # A product that rounds up to the total itself would otherwise fall past the last level.
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1).clamp_max_(logits.shape[-1] - 1)


@dataclass(frozen=True)
class Head(ABC):
    """A distribution over the sub-pixels of a site, given a network's output."""

    channels: int
    """C."""
    levels: int

    @property
    @abstractmethod
    def n_groups(self) -> int:
        """Groups of the network's output: C, one for each channel, or 1, for all channels of a site together."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Features of each group, F."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each site's sub-pixels together, given the sites before it.

        Arguments:
            outputs: Of the network, (N, n_groups * F, H, W), any float dtype.
            x: Images, integers 0 .. levels-1, (N, C, H, W).
        Returns:
            Nats, float32, (N, H, W).
        """

    @abstractmethod
    def level_logits(self, outputs: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Unnormalised log-probabilities of the levels of a group's next channel.

        Arguments:
            outputs: Of one group, (..., F).
            earlier: Levels of the channels of this group that come before, each integers, (...).
        Returns:
            Float32, (..., levels).
        """

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Mean level of each sub-pixel.

        Arguments:
            outputs: Of the network, (N, n_groups * F, H, W), any float dtype.
        Returns:
            Float32, (N, C, H, W).
        """

    def draw(
        self, outputs: Tensor, noise: Tensor, decide: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor] | None = None
    ) -> Tensor:
        """The levels of all sub-pixels that belong to noise, where sites do not depend on each other.

        Arguments:
            outputs: Of the network, (N, n_groups * F, H, W).
            noise: Uniform on [0, 1), (N, C, H, W).
            decide: What decides in place of `self.decide`, if anything does.
        Returns:
            Integers 0 .. levels-1, int64, (N, C, H, W).
        """
        groups = outputs.unflatten(1, (self.n_groups, -1)).movedim(2, -1)  # (N, G, H, W, F)
        levels: list[Tensor] = []
        for channel in range(self.channels):
            group, first = divmod(channel, self.channels // self.n_groups)
            levels.append((decide or self.decide)(groups[:, group], levels[channel - first :], noise[:, channel]))
        return torch.stack(levels, 1)

    @abstractmethod
    def decide(self, outputs: Tensor, earlier: Sequence[Tensor], noise: Tensor) -> Tensor:
        """The level of a group's next channel that belongs to noise: the inverse of its distribution function.

        Arguments:
            outputs, earlier: As in `level_logits`.
            noise: Uniform on [0, 1), (...).
        Returns:
            Integers 0 .. levels-1, int64, (...).
        """


@dataclass(frozen=True)
class Softmax(Head):
    """A softmax over the levels of each sub-pixel, which knows no order of the levels: any space, palettes too."""

    @property
    def n_groups(self) -> int:
        return self.channels

    @property
    def n_features(self) -> int:
        return self.levels

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return categorical_log_probs(outputs.unflatten(1, (self.channels, self.levels)), x).sum(1)

    def level_logits(self, outputs: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        return outputs.float()

    def mean(self, outputs: Tensor) -> Tensor:
        levels = torch.arange(self.levels, device=outputs.device, dtype=torch.float32)
        probabilities = outputs.float().unflatten(1, (self.channels, self.levels)).softmax(2)
        return torch.einsum("nckhw,k->nchw", probabilities, levels)

    def decide(self, outputs: Tensor, earlier: Sequence[Tensor], noise: Tensor) -> Tensor:
        return decide(outputs, noise)


@dataclass(frozen=True)
class Bernoulli(Head):
    """One logit for each sub-pixel of a binary image: log p(1) - log p(0)."""

    @property
    def n_groups(self) -> int:
        return self.channels

    @property
    def n_features(self) -> int:
        return 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return bernoulli_log_probs(outputs, x).sum(1)

    def level_logits(self, outputs: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.zeros_like(outputs), outputs], -1).float()

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid()

    def decide(self, outputs: Tensor, earlier: Sequence[Tensor], noise: Tensor) -> Tensor:
        return (noise >= torch.sigmoid(-outputs.float()).squeeze(-1)).long()


@dataclass(frozen=True)
class LogisticMixture(Head):
    """A mixture of discretised logistics over all channels of a site: sub-pixels share the component, and a channel's
    mean is shifted by the channels before it.

    Source:
        Salimans et al. 2017 (PixelCNN++), arXiv:1701.05517, sections 2.1 and 2.2. Differs: the mass of a level is
        computed in log-space instead of being replaced by the density where it is small.
    """

    n_mixtures: int = 10

    def __post_init__(self) -> None:
        if self.n_mixtures < 1:
            raise InputError(f"n_mixtures is {self.n_mixtures}; it must be at least 1.")

    @property
    def n_groups(self) -> int:
        return 1

    @property
    def n_features(self) -> int:
        """M mixture logits, and for each channel M means, M log-scales and M coefficients of each channel before."""
        return self.n_mixtures * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)

    def _components(self, outputs: Tensor, earlier: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights given the earlier channels, unnormalised, and means and log-scales of the next: (..., M)."""
        parts = outputs.float().unflatten(-1, (-1, self.n_mixtures)).unbind(-2)  # each (..., M)
        logits, means = parts[0], parts[1 : 1 + self.channels]
        log_scales, coefficients = parts[1 + self.channels : 1 + 2 * self.channels], parts[1 + 2 * self.channels :]
        scaled = [x.unsqueeze(-1) * (2 / (self.levels - 1)) - 1 for x in earlier]
        for channel in range(len(earlier) + 1):
            mean = means[channel]
            first = channel * (channel - 1) // 2
            for before in range(channel):
                mean = mean + coefficients[first + before].tanh() * scaled[before]
            # Kept within bounds so that no likelihood grows without limit through ever finer scales.
            log_scale = log_scales[channel].clamp(-7.0, 7.0)
            if channel < len(earlier):
                logits = logits + logistic_log_mass(earlier[channel].unsqueeze(-1), mean, log_scale, self.levels)
        return logits, mean, log_scale

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        *earlier, last = x.unbind(1)
        outputs = outputs.movedim(1, -1)
        logits, mean, log_scale = self._components(outputs, earlier)  # (N, H, W, M)
        joint = logits + logistic_log_mass(last.unsqueeze(-1), mean, log_scale, self.levels)
        return joint.logsumexp(-1) - outputs[..., : self.n_mixtures].float().logsumexp(-1)

    def level_logits(self, outputs: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        logits, mean, log_scale = (part.unsqueeze(-2) for part in self._components(outputs, earlier))  # (..., 1, M)
        levels = torch.arange(self.levels, device=outputs.device).unsqueeze(-1)  # (levels, 1)
        return (logits + logistic_log_mass(levels, mean, log_scale, self.levels)).logsumexp(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """As of every head, but of the continuous mixture, its means kept to the range of the levels; each channel's
        given the means of the channels before."""
        parts = outputs.float().unflatten(1, (-1, self.n_mixtures)).unbind(1)  # each (N, M, H, W)
        weights, coefficients = parts[0].softmax(1), parts[1 + 2 * self.channels :]
        means: list[Tensor] = []  # of each component, (N, M, H, W)
        for channel in range(self.channels):
            mean = parts[1 + channel]
            for before in range(channel):
                mean = mean + coefficients[channel * (channel - 1) // 2 + before].tanh() * means[before]
            means.append(mean.clamp(-1, 1))
        mixed = torch.stack([(weights * mean).sum(1) for mean in means], 1)  # (N, C, H, W)
        return (mixed + 1) * ((self.levels - 1) / 2)

    def decide(self, outputs: Tensor, earlier: Sequence[Tensor], noise: Tensor) -> Tensor:
        logits, mean, log_scale = self._components(outputs, earlier)
        weights, inverse_scale = logits.softmax(-1), (-log_scale).exp()
        # The distribution function of a mixture is at hand for each level, in no need of the others. So the level is
        # searched for, by fifteen edges at a time: two rounds for 256 levels, where bisection takes eight small ones.
        weights, mean, inverse_scale = weights.unsqueeze(-2), mean.unsqueeze(-2), inverse_scale.unsqueeze(-2)
        marks = torch.arange(1, 16, device=noise.device)
        low, block = torch.zeros_like(noise, dtype=torch.int64), 1
        while block * 16 < self.levels:
            block *= 16
        while block:
            last = low.unsqueeze(-1) + marks * block - 1  # the levels before each mark, (..., 15)
            edges = (2 * last.float() + 1) / (self.levels - 1) - 1  # half a level above them
            cdf = (weights * torch.sigmoid((edges.unsqueeze(-1) - mean) * inverse_scale)).sum(-1)
            low = low + block * (cdf <= noise.unsqueeze(-1)).sum(-1)
            block //= 16
        return low.clamp_max(self.levels - 1)  # which takes the upper tail


def head_of_channels(space: ImageSpace) -> Head:
    """The head of a network whose output has a group for each channel: Bernoulli for two levels, else a softmax."""
    return (Bernoulli if space.levels == 2 else Softmax)(space.channels, space.levels)


def head_of_sites(space: ImageSpace, n_mixtures: int = 10) -> Head:
    """The head of a network whose output has one group: where a site has one channel of up to 32 levels or of palette
    colours as `head_of_channels`, else a mixture of `n_mixtures` discretised logistics."""
    if space.channels == 1 and (space.levels <= 32 or space.palette is not None):
        return head_of_channels(space)
    return LogisticMixture(space.channels, space.levels, n_mixtures)
