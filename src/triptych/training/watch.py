"""What is seen of an adversarial training while it runs: how far its samples are from the data, and what is amiss.

A game has no loss that falls: neither player's says how good the samples are. So now and then some are drawn and laid
beside the validation items. `Watch` measures, and `diagnose` says what the measurements mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from triptych.data.dataset import Dataset, Split, Subset
from triptych.evaluation.features import Coordinates, FeatureExtractor, RandomConvFeatures
from triptych.evaluation.neighbours import nearest_neighbours
from triptych.evaluation.two_sample import (
    density_coverage,
    frechet_distance,
    gaussian_statistics,
    mean_distance,
    multiscale_mmd,
    precision_recall,
)
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.files import is_number

Trouble = Literal["mode collapse", "missing modes", "divergence", "a discriminator that has won", "memorising"]

COLLAPSED_DIVERSITY = 0.4
"""Mean distance of two samples over that of two data, below which all samples count as much the same."""
MISSING_COVERAGE = 0.5
"""Share of the data with a sample in their neighbourhood, over what as many data would have, that means missing modes,
where the samples are otherwise near the data."""
DIVERGED = 4.0
"""Distance over the best so far that counts as lost, if it is also ..."""
UNLEARNT = 0.05
"""... this share of the first look's. A best distance can be 0, and all others lie above it."""
WON_BOUND = 0.95 * math.log(2)
"""Nats of the Jensen-Shannon divergence, at most log 2, that the discriminator can prove."""
COPYING = 0.2
"""Share of samples that are suspiciously near to a training item; 0 is expected."""
MIN_ITEMS = 20
"""Fewer items to compare with say nothing."""
N_COPIES_SOUGHT = 256
MAX_SEARCHED = 10_000
"""Training items among which copies are sought."""


@dataclass(frozen=True)
class Look:
    """What one look at the samples measured, as numbers that need no scale of their own where possible."""

    step: int
    progress: float
    """Share of the training that was done."""
    distance: float
    """Of samples and validation items: squared Fréchet distance in random features; of points, the maximum mean
    discrepancies under kernels from a standard deviation of the data to a 64th of it."""
    diversity: float
    """Mean feature distance of two samples, over that of two validation items."""
    coverage: float
    """Share of validation items that have a sample nearer than their fifth neighbour, over what as many training items
    have."""
    precision: float
    """Share of samples with a validation item as near as validation items are to each other."""
    copies: float | None
    """Share of samples nearer to a training item than 99 of 100 validation items are, over the share of validation
    items that are so (of which ties make more than one in a hundred); None for points."""
    jsd_bound: float | None
    """What the discriminator proves of the Jensen-Shannon divergence, nats; None if its outputs are not known."""


@dataclass(frozen=True)
class Finding:
    """Something that goes wrong."""

    trouble: Trouble
    evidence: str
    remedy: str

    def describe(self) -> str:
        return f"{self.trouble}: {self.evidence}. {self.remedy}"


def diagnose(looks: Sequence[Look]) -> list[Finding]:
    """What the looks at a training so far, in their order, say is going wrong at the last of them."""
    now = looks[-1]
    best = min(looks, key=lambda look: look.distance)
    found = []
    lost_at = max(DIVERGED * best.distance, UNLEARNT * looks[0].distance)
    lost = [look.distance > lost_at for look in looks[-2:]]
    # What the first looks see is an untrained generator; only who had learnt something can lose it.
    if len(looks) > 2 and all(lost) and best.distance < 0.5 * looks[0].distance:
        found.append(
            Finding(
                "divergence",
                f"the distance of samples to the data was {best.distance:.3g} at step {best.step:,} and is"
                f" {now.distance:.3g}",
                "Train with a lower --learning-rate or a larger gamma.",
            )
        )
    # A generator that has learnt little shows little variety too.
    has_begun = now.progress >= 0.1
    if has_begun and now.diversity < COLLAPSED_DIVERSITY:
        found.append(
            Finding(
                "mode collapse",
                f"two samples differ by {now.diversity:.0%} of what two data differ by",
                "Take --set objective=relativistic penalty=r1_r2, a larger gamma or batch.",
            )
        )
    elif has_begun and now.coverage < MISSING_COVERAGE and now.precision > 0.7:
        found.append(
            Finding(
                "missing modes",
                f"{now.precision:.0%} of the samples are near data, but they reach only {now.coverage:.0%} of the data"
                " that as many data would",
                "Take --set objective=relativistic penalty=r1_r2, a larger batch or a longer training.",
            )
        )
    recent = looks[-4:]
    proven = [look.jsd_bound for look in recent if look.jsd_bound is not None]
    if len(proven) == 4 and min(proven) > WON_BOUND and best not in recent:
        found.append(
            Finding(
                "a discriminator that has won",
                f"it tells samples from data with {now.jsd_bound:.3f} of at most {math.log(2):.3f} nats, and the"
                f" samples have not come nearer to the data since step {best.step:,}",
                "Take a larger gamma, --set objective=relativistic, fewer critic_steps or --set augment=adaptive.",
            )
        )
    if now.copies is not None and now.copies > COPYING:
        found.append(
            Finding(
                "memorising",
                f"{now.copies:.0%} of the samples are nearer to a training item than 99 % of held-out items are",
                "Stop earlier, take a smaller hidden, --set augment=adaptive, or more data.",
            )
        )
    return found


class Watch:
    """Looks at the samples of a model of one data set.

    Arguments:
        n_items: Samples, and validation items, compared in each look; at most.
        seed: Of the choice of items.
    """

    def __init__(self, dataset: Dataset, n_items: int, seed: int = 0) -> None:
        self.space = dataset.space
        rng = np.random.Generator(np.random.PCG64(seed))

        def some(split: Any, most: int) -> np.ndarray:
            return np.sort(rng.permutation(len(split))[:most])

        chosen = some(dataset.valid, n_items)
        held_out, self.labels = dataset.valid.read(chosen)
        train, _ = dataset.train.read(some(dataset.train, len(held_out)))
        self.items = held_out
        """What samples are laid beside, (N, *space.shape)."""
        self.name = "mmd" if isinstance(self.space, PointSpace) else "fd_random"
        self._extractor: FeatureExtractor = (
            Coordinates(self.space) if isinstance(self.space, PointSpace) else RandomConvFeatures(self.space)
        )
        self._features = self._extractor(held_out)
        self._statistics = gaussian_statistics(self._features)
        self._spread = max(mean_distance(self._features), 1e-12)
        of_train = self._extractor(train)
        self._coverage = max(_coverage(self._features, of_train), 1e-12)
        self._searched = None
        if isinstance(self.space, ImageSpace):
            where = some(dataset.train, MAX_SEARCHED)
            self._searched = Split(Subset(dataset.train.items, where))
            self._share_searched = len(where) / len(dataset.train)
            _, distances = nearest_neighbours(held_out[:N_COPIES_SOUGHT], self._searched, self.space, k=1)
            self._near = float(np.quantile(distances, 0.01))
            self._near_anyway = float((distances <= self._near).mean())
        self.looks: list[Look] = []
        self.active: set[str] = set()

    @staticmethod
    def fits(dataset: Dataset, n_items: int) -> bool:
        """Whether there are items enough, and images large enough, to be compared."""
        space = dataset.space
        is_large = isinstance(space, PointSpace) or min(space.height, space.width) >= 2
        return is_large and min(len(dataset.valid), n_items) >= MIN_ITEMS

    def look(self, items: np.ndarray, step: int, progress: float, terms: Mapping[str, float]) -> Look:
        """Measures samples, at least two; the look is remembered.

        Arguments:
            items: Samples, (N, *space.shape).
            terms: Latest means of the losses' terms, by '<phase>/<term>'.
        """
        features = self._extractor(items)
        if isinstance(self.space, PointSpace):
            distance = multiscale_mmd(features, self._features)
        else:
            distance = frechet_distance(gaussian_statistics(features), self._statistics)
        copies = None
        if self._searched is not None:
            _, distances = nearest_neighbours(items[:N_COPIES_SOUGHT], self._searched, self.space, k=1)
            # Over what held-out items are: of tiny images many are as near as that, and all may be known.
            excess = float((distances <= self._near).mean()) - self._near_anyway
            copies = max(0.0, excess / max(1 - self._near_anyway, 1e-12) / self._share_searched)
        bounds = [value for name, value in terms.items() if name.endswith("/jsd_bound_nats")]
        self.looks.append(
            Look(
                step=step,
                progress=progress,
                distance=distance,
                diversity=mean_distance(features) / self._spread,
                coverage=_coverage(self._features, features) / self._coverage,
                precision=precision_recall(self._features, features)[0],
                copies=copies,
                jsd_bound=bounds[0] if bounds else None,
            )
        )
        return self.looks[-1]

    def news(self) -> list[Finding]:
        """What is going wrong that was not at the look before."""
        found = diagnose(self.looks)
        new = [finding for finding in found if finding.trouble not in self.active]
        self.active = {finding.trouble for finding in found}
        return new

    def forget_after(self, step: int) -> None:
        """Forgets the looks after a step that the training has gone back to."""
        self.looks = [look for look in self.looks if look.step <= step]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"looks": [asdict(look) for look in self.looks], "active": sorted(self.active)}

    def restore(self, state: Mapping[str, Any]) -> None:
        if not all(value is None or is_number(value) for look in state["looks"] for value in look.values()):
            raise ValueError("a look at the samples is no numbers")
        self.looks = [Look(**look) for look in state["looks"]]
        self.active = set(state["active"])


def _coverage(real: np.ndarray, generated: np.ndarray) -> float:
    return float(density_coverage(real, generated)[1].mean())
