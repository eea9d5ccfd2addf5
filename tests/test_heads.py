"""Heads are normalised distributions, and deciding inverts them."""

from __future__ import annotations

import itertools

import pytest
import torch

from triptych.objectives.heads import Bernoulli, Head, LogisticMixture, Softmax, decide, head_of_channels, head_of_sites
from triptych.spaces import ImageSpace

HEADS: list[Head] = [
    Softmax(1, 5),
    Softmax(3, 3),
    Bernoulli(1, 2),
    Bernoulli(3, 2),
    LogisticMixture(1, 2, 2),
    LogisticMixture(1, 11, 3),
    LogisticMixture(2, 7, 2),
    LogisticMixture(3, 5, 4),
]


def outputs_for(head: Head, n: int = 1) -> torch.Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(n, head.n_groups * head.n_features, 1, 1)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_probabilities_of_all_sites_sum_to_one(head: Head) -> None:
    x = torch.tensor(list(itertools.product(range(head.levels), repeat=head.channels)))[:, :, None, None]
    log_prob = head.log_prob(outputs_for(head).expand(len(x), -1, -1, -1), x)
    assert log_prob.shape == (len(x), 1, 1)
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_chain_of_channels_gives_the_joint(head: Head) -> None:
    n = 6
    outputs = outputs_for(head, n)
    x = torch.randint(head.levels, (n, head.channels, 1, 1), generator=torch.Generator().manual_seed(1))
    total = torch.zeros(n, 1, 1)
    groups = outputs.unflatten(1, (head.n_groups, -1)).movedim(2, -1)
    for channel in range(head.channels):
        group, first = (channel, channel) if head.n_groups > 1 else (0, 0)
        logits = head.level_logits(groups[:, group], [x[:, c] for c in range(first, channel)])
        assert logits.shape == (n, 1, 1, head.levels)
        total += logits.log_softmax(-1).gather(-1, x[:, channel, ..., None]).squeeze(-1)
    torch.testing.assert_close(total, head.log_prob(outputs, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "head", [*HEADS, LogisticMixture(1, 256, 10), LogisticMixture(1, 17, 3), LogisticMixture(3, 1000, 5)], ids=str
)
def test_deciding_inverts_the_distribution_function(head: Head) -> None:
    n = 2000
    outputs = outputs_for(head)[0, : head.n_features, 0, 0].expand(n, -1)
    noise = (torch.arange(n) + 0.5) / n
    earlier = [torch.full((n,), head.levels // 2)] * (head.channels // head.n_groups - 1)
    by_table = decide(head.level_logits(outputs, earlier), noise)
    levels = head.decide(outputs, earlier, noise)
    assert levels.dtype == torch.int64
    assert ((levels >= 0) & (levels < head.levels)).all()
    assert (levels != by_table).float().mean() <= 1e-3, "but for rounding at a step"
    assert (levels.diff() >= 0).all()
    for edge in (0.0, 1 - 2**-24):
        assert head.decide(outputs[:1], [x[:1] for x in earlier], torch.tensor([edge])).item() in range(head.levels)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_draws_of_whole_sites_follow_the_probabilities(head: Head) -> None:
    n = 40_000
    outputs = outputs_for(head)
    x = torch.tensor(list(itertools.product(range(head.levels), repeat=head.channels)))
    p = head.log_prob(outputs.expand(len(x), -1, -1, -1), x[:, :, None, None]).flatten().double().exp()
    noise = torch.rand((n, head.channels, 1, 1), generator=torch.Generator().manual_seed(2))
    draws = head.draw(outputs.expand(n, -1, -1, -1), noise).flatten(1)
    place = head.levels ** torch.arange(head.channels).flip(0)
    counts = torch.bincount((draws * place).sum(1), minlength=len(x)).double()
    likely = p * n >= 5  # where chi-squared holds
    statistic = float(((counts - n * p) ** 2 / (n * p))[likely].sum())
    degrees = int(likely.sum())
    assert statistic < degrees + 4.5 * (2 * degrees) ** 0.5 + 6  # beyond the 99.9 % quantile


@pytest.mark.parametrize("head", [head for head in HEADS if not isinstance(head, LogisticMixture)], ids=str)
def test_the_mean_is_that_of_the_levels(head: Head) -> None:
    outputs = outputs_for(head, 3)
    groups = outputs.unflatten(1, (head.n_groups, -1)).movedim(2, -1)
    levels = torch.arange(head.levels).float()
    expected = torch.stack(
        [(head.level_logits(groups[:, c], []).softmax(-1) * levels).sum(-1) for c in range(head.channels)], 1
    )
    torch.testing.assert_close(head.mean(outputs), expected)


def test_the_mean_of_fine_logistics_is_that_of_the_levels() -> None:
    head = LogisticMixture(3, 256, 2)
    outputs = 0.3 * torch.randn(1, head.n_features, 1, 1, generator=torch.Generator().manual_seed(0))
    outputs[:, head.n_mixtures * 4 : head.n_mixtures * 7] -= 4  # narrow, so that no mass lies beyond the levels
    noise = torch.rand((20_000, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    drawn = head.draw(outputs.expand(len(noise), -1, -1, -1), noise).double().mean(0)
    torch.testing.assert_close(head.mean(outputs)[0].double(), drawn, rtol=0, atol=1.0)


def test_narrow_logistics_far_from_every_level_keep_finite_gradients() -> None:
    head = LogisticMixture(3, 256, 2)
    outputs = torch.full((1, head.n_features, 1, 1), -50.0, requires_grad=True)
    log_prob = head.log_prob(outputs, torch.tensor([0, 128, 255]).view(1, 3, 1, 1))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_heads_fit_the_space() -> None:
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    assert head_of_channels(ImageSpace(3, 2, 2, 2)) == Bernoulli(3, 2)
    assert head_of_channels(ImageSpace(1, 2, 2, 256)) == Softmax(1, 256)
    assert head_of_sites(ImageSpace(1, 2, 2, 17)) == Softmax(1, 17)
    assert head_of_sites(ImageSpace(1, 2, 2, 3, palette)) == Softmax(1, 3)
    assert head_of_sites(ImageSpace(1, 2, 2, 256), 5) == LogisticMixture(1, 256, 5)
    assert head_of_sites(ImageSpace(3, 2, 2, 2)) == LogisticMixture(3, 2, 10)
