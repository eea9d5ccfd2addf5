"""The columns of the table: what each number is, its unit and direction, and how it is measured."""

from __future__ import annotations

import math

from triptych.evaluation.features import FeatureExtractor
from triptych.evaluation.results import Metric
from triptych.spaces import ImageSpace, Space

K_SUPPORT = 3
"""Neighbours that a ball of precision and recall reaches to (Kynkäänniemi et al. 2019 use 3)."""
K_DENSITY = 5
"""Neighbours that a ball of density and coverage reaches to (Naeem et al. 2020 use 5)."""
N_RESAMPLES, N_RESAMPLES_WIDE, WIDE = 100, 20, 512
"""Of the bootstrap behind the intervals of the Fréchet distance and of sharpness; of more features than WIDE, where one
Fréchet distance takes seconds, fewer."""
FEW_ITEMS = 2000
"""Held-out items below which the kernel distance, which has no bias, stands before Fréchet's."""
SAMPLE_BATCH = 256
"""Most items drawn at once."""


def n_resamples(extractor: FeatureExtractor) -> int:
    """Of the bootstrap of a Fréchet distance in these features."""
    return N_RESAMPLES_WIDE if extractor.n_features > WIDE else N_RESAMPLES


def item_of(space: Space) -> str:
    """'image' or 'point'."""
    return "image" if isinstance(space, ImageSpace) else "point"


def likelihood_keys(space: Space) -> tuple[str, ...]:
    return ("nll_nats_per_image", "bits_per_dim") if isinstance(space, ImageSpace) else ("nll_nats_per_point",)


def likelihood_metrics(space: Space, split: str, n_importance: int, *, approximate: bool) -> list[Metric]:
    """Negative log-likelihoods; with the ELBO beside the tighter bound of approximate densities, if there are such."""
    item, images = item_of(space), isinstance(space, ImageSpace)
    bound = (
        f"the importance-weighted bound with {n_importance} draws (Burda et al. 2016)"
        if n_importance
        else "the ELBO with one draw (Kingma & Welling 2014)"
    )
    protocol = (
        f"Mean of -log p(x) over the whole {split} split, ± 1.96 standard errors over items: exact without a sign, "
        "'<=' where only a lower bound of log p is known"
        + (f"; approximate densities: {bound}" if approximate else "")
        + (
            ". Probability of the integer levels; densities of real numbers are scored on levels with uniform noise "
            "added, which bounds it (Theis et al. 2016)."
            if images
            else ". Density in data units."
        )
    )
    metrics = [Metric(f"nll_nats_per_{item}", "NLL", f"nats/{item}", "lower", protocol)]
    if isinstance(space, ImageSpace):
        in_bits = f"NLL / ({space.n_dims} sub-pixels × ln 2). " + protocol
        metrics.append(Metric("bits_per_dim", "Bits per dimension", "bits/dim", "lower", in_bits))
    if approximate and n_importance > 0:
        protocol = (
            f"Mean of -ELBO over the whole {split} split, one draw of z per item, ± 1.96 standard errors over items "
            "(Kingma & Welling 2014). Looser than the NLL column's bound; the gap shows how far the encoder is from "
            "the true posterior."
        )
        metrics.append(Metric(f"negative_elbo_nats_per_{item}", "-ELBO", f"nats/{item}", "lower", protocol))
    return metrics


def distance_metrics(extractor: FeatureExtractor, split: str, *, few: bool = False) -> list[Metric]:
    """Two-sample distances in an extractor's features; `few` items put the unbiased one first."""
    key = extractor.key
    title = f"({key} features)" if key != "coordinates" else "(coordinates)"
    sets = f"n samples against the whole {split} split, on {extractor.description}."
    frechet = [
        Metric(
            f"fd_{key}",
            f"FD {title}",
            "",
            "lower",
            f"Squared Fréchet distance between Gaussians fitted to features (Heusel et al. 2017): {sets} Interval: "
            f"± 1.96 standard deviations over {n_resamples(extractor)} bootstrap resamples of both sets. Biased up"
            "wards at small n: compare with the reference row.",
            least=0.0,
        ),
        Metric(
            f"fd_infinity_{key}",
            f"FD∞ {title}",
            "",
            "lower",
            "The same, extrapolated to infinitely many items (after Chong & Forsyth 2020): twice the distance of all "
            f"items minus that of halves, which frees it of the bias in 1/n; {sets} Interval as of FD.",
        ),
    ]
    kernel = Metric(
        f"kid_{key}",
        f"KID {title}",
        "",
        "lower",
        f"Unbiased squared MMD with kernel (x·y/D + 1)^3 over all pairs (Bińkowski et al. 2018): {sets} "
        "Interval: ± 1.96 jackknife standard errors, on the wide side near 0.",
    )
    metrics = [kernel, *frechet] if few else [*frechet, kernel]
    if not extractor.has_neighbourhoods:
        return metrics
    blind = "Where noise scores well too, the features are blind to it."
    return [
        *metrics,
        Metric(
            f"precision_{key}",
            f"Precision {title}",
            "",
            "higher",
            f"Share of samples within the held-out items' {K_SUPPORT}-nearest-neighbour balls (Kynkäänniemi et al. "
            f"2019): {sets} Interval: Wilson 95 % over samples, with the balls as they are. {blind}",
            least=0.0,
            most=1.0,
        ),
        Metric(
            f"recall_{key}",
            f"Recall {title}",
            "",
            "higher",
            f"Share of held-out items within the samples' {K_SUPPORT}-nearest-neighbour balls (Kynkäänniemi et al. "
            f"2019): {sets} Interval: Wilson 95 % over held-out items, with the balls as they are. Compare equal "
            f"n only. {blind}",
            least=0.0,
            most=1.0,
        ),
        Metric(
            f"density_{key}",
            f"Density {title}",
            "",
            "neither",
            f"Mean number of held-out items' {K_DENSITY}-nearest-neighbour balls that hold a sample, over {K_DENSITY} "
            f"(Naeem et al. 2020): {sets} Best at about 1: below, samples lie off the data; above, they crowd in the "
            f"midst of them. Interval: ± 1.96 standard errors over samples. {blind}",
            least=0.0,
        ),
        Metric(
            f"coverage_{key}",
            f"Coverage {title}",
            "",
            "higher",
            f"Share of held-out items whose {K_DENSITY}-nearest-neighbour ball holds a sample (Naeem et al. 2020): "
            f"{sets} About {1 - 2**-K_DENSITY:.2f} for a perfect model. Interval: Wilson 95 % over held-out items. "
            "Compare equal n only.",
            least=0.0,
            most=1.0,
        ),
    ]


def sharpness_metrics(split: str) -> list[Metric]:
    sets = f"n samples against the whole {split} split"
    interval = f"Interval: ± 1.96 standard deviations over {N_RESAMPLES} bootstrap resamples of both sets."
    return [
        Metric(
            "spectral_distance",
            "Spectral distance",
            "decades",
            "lower",
            "Root mean square difference of log10 power spectra over all spatial frequencies (radial means under a "
            f"Hann window, after Durall et al. 2020): {sets}. 0 is the same sharpness at every scale; blur and noise "
            f"both raise it, and so does wrong contrast. {interval} Biased upwards at small n: compare with the "
            "reference row.",
            least=0.0,
        ),
        Metric(
            "sharpness",
            "Sharpness",
            "held-out = 1",
            "neither",
            "Mean gradient energy (squared differences of neighbouring pixels, Subbarao et al. 1993) as a multiple of "
            f"that of held-out images: {sets}. Best at 1: below, samples are blurred or pale; above, noisy or harsh. "
            f"Blur and noise can balance; the spectral distance then shows both. {interval}",
            least=0.0,
        ),
    ]


def discriminator_metrics(split: str) -> list[Metric]:
    how = (
        f"A fresh discriminator learns to tell samples from the {split} split, as many of each, and is asked about "
        "items that it has not seen"
    )
    return [
        Metric(
            "c2st_accuracy",
            "Discriminator's accuracy",
            "",
            "lower",
            f"{how} (classifier two-sample test, Lopez-Paz & Oquab 2017; n in the cell). A half: it cannot tell them "
            "apart. Interval: where the accuracy of guessing lies in 95 % of the cases, shifted to the value: one that "
            "holds a half is no evidence of a difference.",
            least=0.0,
            most=1.0,
        ),
        Metric(
            "jsd_nats",
            "JSD by a discriminator",
            "nats",
            "lower",
            f"{how}: ln 2 minus its cross-entropy, a lower bound of the Jensen-Shannon divergence of samples and data "
            "(Goodfellow et al. 2014, eq. 4-6), from 0 (the same) to 0.693 (nothing in common). Interval: ± 1.96 "
            "standard errors over these items.",
            least=0.0,
            most=math.log(2),
        ),
    ]


def memory_metrics(key: str, split: str) -> list[Metric]:
    """How near samples are to the training set; `key` names the features."""
    where = f"in {key} features" if key != "coordinates" else "of the coordinates"
    return [
        Metric(
            "distance_ratio",
            "Distance to train",
            "held-out = 1",
            "neither",
            f"Median distance ({where}) of samples to their nearest training item, over that of the {split} split's "
            "items. Best at 1: near 0, samples are copies; above, they lie off the data. Interval: bootstrap over "
            "samples and items.",
            least=0.0,
        ),
        Metric(
            "copying_z",
            "C_T",
            "mean z",
            "neither",
            f"Whether samples are nearer to the training set than {split} items are ({where}): the Mann-Whitney z of "
            "Meehan et al. 2020, averaged over cells of the training set. Best at 0: an interval below it says that "
            "samples are nearer than new items would be, as copies are, one above it that they lie farther off. "
            "Interval: ± 1.96 standard deviations of a mean of so many z.",
        ),
        Metric(
            "authenticity",
            "Authenticity",
            "",
            "neither",
            "Share of samples that are farther from their nearest training item than that one is from its own nearest "
            f"({where}; Alaa et al. 2022). Fresh data have about a half (the reference row says how much), copies 0. "
            "Interval: Wilson 95 %.",
            least=0.0,
            most=1.0,
        ),
        Metric(
            "support_size",
            "Support",
            "items",
            "higher",
            "As if drawn from how many different items, by the birthday paradox (Arora & Zhang 2017). Copies and "
            "collapse make it small, and so does blur, which brings samples nearer to each other. It follows from "
            f"the number of pairs of samples nearer to each other ({where}) than the nearest pair of as many {split} "
            "items; ≥ where there are no more than chance allows. Interval: exact Poisson 95 %.",
            least=0.0,
        ),
    ]


def speed_metric(space: Space) -> Metric:
    protocol = (
        f"Median speed of drawing one batch of up to {SAMPLE_BATCH} (n in the cell), on the device the model was on, "
        "including the copy to main memory."
    )
    return Metric("samples_per_second", "Speed", f"{item_of(space)}s/s", "higher", protocol, least=0.0)


def cost_metrics(space: Space) -> list[Metric]:
    item = item_of(space)
    seen = f"Training {item}s seen, each as often as it was."
    return [
        Metric("training_seconds", "Training", "s", "lower", "Time of the training, with its validations.", least=0.0),
        Metric("training_items", "Seen", f"{item}s", "neither", seen, least=0.0),
        Metric("n_parameters", "Parameters", "", "neither", "Numbers that the model consists of.", least=0.0),
    ]
