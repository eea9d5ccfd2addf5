"""Measures models side by side: one table, in which every value says what it is and how sure it is."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from triptych import ranks
from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError, counted
from triptych.evaluation.columns import (
    SAMPLE_BATCH,
    cost_metrics,
    likelihood_keys,
    likelihood_metrics,
    speed_metric,
)
from triptych.evaluation.features import FeatureExtractor
from triptych.evaluation.latents import describe, latent_report
from triptych.evaluation.likelihood import (
    describe_non_finite,
    evaluate_likelihood,
    evaluation_mode,
    read_batch,
    summarise,
)
from triptych.evaluation.neighbours import Neighbours
from triptych.evaluation.pretrained import find_extractors
from triptych.evaluation.results import Measurement, Metric, PerClass, Row, Table, TrainingCost, averaged
from triptych.evaluation.samples import (
    BLURRED,
    COPIES,
    N_SHOWN,
    NOISE,
    TRAIN,
    Progress,
    SampleMeasures,
    SampleResult,
    share_of,
)
from triptych.models.base import (
    ApproximateDensity,
    GenerativeModel,
    ImplicitDensity,
    LatentModel,
    Likelihood,
    TractableDensity,
)
from triptych.spaces import ImageSpace, PointSpace, Space

HELD_OUT, TRUE = "held-out", "true density"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` and `evaluate_samples` return."""

    table: Table
    """Models in the order given, then references that give the numbers meaning."""
    samples: dict[str, np.ndarray]
    """By row: the draws behind the table, (n, *space.shape), in random order of their labels; of several trainings the
    first one's."""
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]]
    """By model with an encoder: held-out items and their reconstructions, (M, *space.shape) each."""
    neighbours: dict[str, Neighbours]
    """By row: some samples beside their nearest training items; under 'held-out' the same of held-out items."""
    neighbours_in_features: dict[str, Neighbours]
    """The same by distances in the first extractor's features, for images."""
    notes: tuple[str, ...]
    """What a reader must know to read the table rightly, a sentence each."""
    memory: dict[str, str] = dataclasses.field(default_factory=dict)
    """By row: does it only remember? A sentence or two, with the evidence; of several trainings for each of them."""
    per_class: PerClass | None = None
    """Where the data have labels."""


@dataclass
class _Found:
    """What is known of one training of a model."""

    measurements: dict[str, Measurement]
    sample: SampleResult
    likelihood: Likelihood | None = None


def evaluate(
    models: Mapping[str, GenerativeModel | Sequence[GenerativeModel]],
    dataset: Dataset,
    *,
    split: str = "test",
    n_importance: int = 64,
    n_samples: int | None = None,
    extractors: Sequence[FeatureExtractor | str] | None = None,
    discriminator: bool = True,
    costs: Mapping[str, Sequence[TrainingCost]] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """Likelihood, two-sample distances, memorisation and speed of models on the whole of a held-out split.

    Arguments:
        models: By the name of their row: a model, or several trainings of one, whose mean the row is. Each runs on the
            device that it is on, in evaluation mode.
        dataset: Of the space the models were built for.
        split: 'test', or 'valid' while something is still being chosen.
        n_importance: Draws K of the importance-weighted bound of approximate densities; 0 for the ELBO alone.
        n_samples: Draws of each model, at most as many as the split has items (that many when None).
        extractors: Features of the two-sample distances, or their names (see `find_extractors`); the first one's are
            those in which copies are looked for, too. By default random convolutions, and a classifier where the data
            have labels, else an autoencoder; for points their coordinates.
        discriminator: Whether to train a fresh discriminator for each row, which takes most of the time.
        costs: By the name of the row, what each training took: columns of their own.
        seed: Of all randomness: draws, bounds, references, resampling, the trained extractors. The same for every
            model.
        device: Where the extractors and discriminators run.
        progress: Told what is being done, a short line each time.
    Raises:
        InputError: If a model is of another space, a name is that of a reference, or an argument is out of range.
    """
    check_counts(n_importance, n_samples)
    trainings = {name: [given] if isinstance(given, GenerativeModel) else list(given) for name, given in models.items()}
    for name, several in trainings.items():
        if not several:
            raise InputError(f"{name} has no trained model to measure.")
        for model in several:
            if not _same_shape(model.space, dataset.space):
                raise InputError(f"{name} models {model.space}; {dataset.name!r} holds {dataset.space}.")
    measures, notes = _prepare(list(trainings), dataset, split, extractors, discriminator, seed, device, progress)
    space, held_out, tell = dataset.space, dataset.splits[split], measures.tell
    n = len(held_out) if n_samples is None else min(n_samples, len(held_out))
    samples: dict[str, np.ndarray] = {}
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    drawn_by: list[tuple[str, str, np.ndarray, Likelihood | None, dict[str, Measurement]]] = []
    for name, several in trainings.items():
        for number, model in enumerate(several):
            who = name if len(several) == 1 else f"{name} {number + 1}"
            with evaluation_mode(model):
                tell(f"{who}: likelihood")
                likelihood = evaluate_likelihood(model, held_out, n_importance=n_importance, seed=seed)
                measurements = _likelihoods(who, model, likelihood, held_out, n_importance, seed, notes)
                drawn, speed = _draw(who, model, held_out.labels, n, seed, tell)
                # Without a recognition network every item would be looked for by hundreds of steps.
                is_slow = isinstance(model, ImplicitDensity) and model.recognition is None
                if number == 0 and isinstance(model, LatentModel) and not is_slow:
                    reconstructions[name] = _reconstruct(model, held_out)
                if isinstance(model, ApproximateDensity):
                    notes += [f"{who}: {line}" for line in _latents(model, held_out, measurements, seed)]
            if not np.isfinite(drawn).all():
                notes.append(f"{who}: samples are not finite, so their distances are not defined.")
            measurements["samples_per_second"] = speed
            if costs is not None and name in costs:
                measurements |= costs[name][number].measurements()
            drawn_by.append((name, who, drawn, likelihood, measurements))
            samples.setdefault(name, drawn)
    found: dict[str, list[_Found]] = {}
    results = ranks.in_parts(len(drawn_by), lambda place: measures.measure(*drawn_by[place][1:3]))
    for (name, _, _, likelihood, measurements), sample in zip(drawn_by, results, strict=True):
        found.setdefault(name, []).append(_Found(measurements | sample.measurements, sample, likelihood))
    rows = [
        Row(name, trainings[name][0].panel, averaged([one.measurements for one in several]))
        for name, several in found.items()
    ]
    if any(model.n_classes for several in trainings.values() for model in several):
        notes.append(
            "Class-conditional models score log p(x | label) with the held-out labels, which can on average be up to "
            "log(number of classes) nats better than log p(x), and are drawn with these labels."
        )
    approximate = any(isinstance(several[0], ApproximateDensity) for several in trainings.values())
    has_density = approximate or any(isinstance(several[0], TractableDensity) for several in trainings.values())
    metrics = []
    if has_density or isinstance(space, ImageSpace):
        metrics += likelihood_metrics(space, split, n_importance, approximate=approximate)
    metrics += [*measures.metrics(), speed_metric(space), *(cost_metrics(space) if costs else ())]
    return _finish(measures, metrics, rows, found, samples, reconstructions, notes, n)


def evaluate_samples(
    sets: Mapping[str, np.ndarray],
    dataset: Dataset,
    *,
    split: str = "test",
    extractors: Sequence[FeatureExtractor | str] | None = None,
    discriminator: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """The same columns of samples that anybody made, without a model: no likelihood, and no speed.

    Arguments:
        sets: By the name of their row, samples in the data's units, (n, *space.shape); of more than the split has items
            as many are taken at random, since several columns depend on n. The reference rows have as many items as
            the largest set.
        dataset, split, extractors, discriminator, seed, device, progress: As of `evaluate`.
    Raises:
        InputError: If samples are not of the data's space, or a name is that of a reference.
    """
    for name, items in sets.items():
        dataset.space.check(items, name)
        if len(items) == 0:
            raise InputError(f"{name} has no samples; give one at least.")
    measures, notes = _prepare(list(sets), dataset, split, extractors, discriminator, seed, device, progress)
    n = len(dataset.splits[split])
    samples, found, rows = {}, {}, []
    for name, items in sets.items():
        # At random: samples of a conditional model are often sorted by class.
        rng = np.random.Generator(np.random.PCG64(seed))
        samples[name] = items if len(items) <= n else items[np.sort(rng.permutation(len(items))[:n])]
        if len(items) > n:
            notes.append(
                f"{name}: of {len(items):,} samples {n:,}, chosen at random, are measured: as many as held-out items."
            )
        elif len(items) < n:
            notes.append(
                f"{name}: {counted(len(items), 'sample')} against {n:,} held-out items; recall and coverage grow with"
                " the number of samples, so compare them with equally many only."
            )
        notes += _levels_note(name, samples[name], dataset)
        notes += _held_out_note(name, samples[name], dataset, split)
    names = list(samples)
    results = ranks.in_parts(len(names), lambda place: measures.measure(names[place], samples[names[place]]))
    for name, sample in zip(names, results, strict=True):
        found[name] = [_Found(sample.measurements, sample)]
        rows.append(Row(name, SAMPLES, sample.measurements))
    most = max((len(items) for items in samples.values()), default=n)
    return _finish(measures, measures.metrics(), rows, found, samples, {}, notes, most)


def _levels_note(name: str, items: np.ndarray, dataset: Dataset) -> list[str]:
    """A sentence if samples use far fewer levels than the data: they may have been written in other units."""
    space = dataset.space
    if not isinstance(space, ImageSpace) or space.palette is not None or space.levels == 2:
        return []
    n = min(len(items), len(dataset.train), 1000)
    theirs, ours = np.unique(items[:n]), np.unique(dataset.train.read(slice(n))[0])
    if 2 * len(theirs) >= len(ours):
        return []
    return [
        f"{name}: these samples use {counted(len(theirs), 'level')}, {theirs[0]} to {theirs[-1]} of 0 .."
        f" {space.levels - 1}, and as many training items use {counted(len(ours), 'level')}, {ours[0]} to {ours[-1]}."
        " If they were written on another scale, every column measures that: write them on the scale of the data."
    ]


def _held_out_note(name: str, items: np.ndarray, dataset: Dataset, split: str) -> list[str]:
    """A sentence if samples are the held-out items: no column would show that nothing has been made."""
    held_out = dataset.splits[split].read()[0]
    # Of simple items some come again by chance: no more often than among as many training items.
    usual = dataset.train.read(np.arange(min(len(held_out), len(dataset.train))))[0]
    n, expected = (
        sum(map({item.tobytes() for item in among}.__contains__, map(bytes, items.astype(among.dtype, copy=False))))
        for among in (held_out, usual)
    )
    if n <= max(len(items) // 100, 2 * expected):
        return []
    return [
        f"{name}: {n:,} of {counted(len(items), 'sample')} are exactly items of the {split} split. If they were taken"
        " from there, not drawn, every column calls them good and none means anything."
    ]


def check_counts(n_importance: int, n_samples: int | None) -> None:
    """Raises InputError if numbers of draws are out of range."""
    if n_importance < 0:
        raise InputError(f"n_importance is {n_importance}; give at least 0, which is the ELBO alone.")
    if n_samples is not None and n_samples < 1:
        raise InputError(f"n_samples is {n_samples}; it must be at least 1.")


SAMPLES = "samples"
"""In the place of a panel: nothing is known but the samples."""


def _prepare(
    names: Sequence[str],
    dataset: Dataset,
    split: str,
    extractors: Sequence[FeatureExtractor | str] | None,
    discriminator: bool,
    seed: int,
    device: torch.device | str,
    progress: Progress | None,
) -> tuple[SampleMeasures, list[str]]:
    """What all rows are measured with, and what there is to note so far."""
    if split not in ("valid", "test"):
        raise InputError(f"split is {split!r}; evaluate on 'test' or 'valid'.")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; it must be between 0 and 2^63 - 1.")
    for name in names:
        if name in (TRAIN, BLURRED, COPIES, NOISE, TRUE, HELD_OUT):
            raise InputError(f"{name!r} names a reference row; call yours something else: rename its file or folder.")
    tell = progress or (lambda line: None)
    if extractors is None:
        extractors = _default_extractors(dataset)
    notes: list[str] = []
    chosen: list[FeatureExtractor] = []
    for extractor in extractors:
        if isinstance(extractor, str):
            made, missing = find_extractors([extractor], dataset, seed=seed, device=device, tell=tell)
            chosen += made
            notes += missing
        else:
            chosen.append(extractor)
    if twice := [e.key for e in chosen if [other.key for other in chosen].count(e.key) > 1]:
        raise InputError(f"extractors: {twice[0]!r} is named twice; name each once.")
    measures = SampleMeasures(dataset, split, chosen, discriminator=discriminator, seed=seed, device=device, tell=tell)
    return measures, notes


def _finish(
    measures: SampleMeasures,
    metrics: Sequence[Metric],
    rows: list[Row],
    found: Mapping[str, list[_Found]],
    samples: dict[str, np.ndarray],
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]],
    notes: list[str],
    n: int,
) -> Evaluation:
    """The whole, with the reference rows."""
    dataset, space = measures.dataset, measures.space
    references = measures.references(n)
    has_likelihoods = any(metric.key in likelihood_keys(space) for metric in metrics)
    for name, sample in references.items():
        measurements = sample.measurements
        if name == NOISE and has_likelihoods:
            measurements = _noise_likelihood(space, len(measures.held_out)) | measurements
        rows.append(Row(name, None, measurements))
    if dataset.log_density is not None and has_likelihoods:
        nats = torch.tensor(dataset.log_density(measures.held_out))
        rows.append(Row(TRUE, None, summarise(Likelihood(nats, "exact", "continuous"), space)))
    first = {name: several[0].sample for name, several in found.items()} | references
    shown = first | {HELD_OUT: measures.show_held_out()}
    every = {name: [one.sample for one in several] for name, several in found.items()}
    every |= {name: [sample] for name, sample in references.items() if name != NOISE}
    memory = {}
    for name, several in every.items():  # Each training by itself: one of them may copy, and the others not.
        whose = [name] if len(several) == 1 else [f"{name} {number + 1}" for number in range(len(several))]
        said = [one.memory.describe(who) for who, one in zip(whose, several, strict=True) if one.memory]
        if said:
            memory[name] = " ".join(said)
    return Evaluation(
        Table(tuple(metrics), tuple(rows)),
        samples,
        reconstructions,
        {name: sample.neighbours for name, sample in shown.items() if sample.neighbours is not None},
        {name: sample.neighbours_in_features for name, sample in shown.items() if sample.neighbours_in_features},
        (*notes, *measures.notes()),
        memory,
        _per_class(measures, found, references, metrics),
    )


def _per_class(
    measures: SampleMeasures,
    found: Mapping[str, list[_Found]],
    references: Mapping[str, SampleResult],
    metrics: Sequence[Metric],
) -> PerClass | None:
    """Likelihood, recall and share of samples by class; None where the held-out items have no labels."""
    dataset = measures.dataset
    labels = dataset.splits[measures.split].labels
    if labels is None or dataset.n_classes < 2:
        return None
    classes = [labels == label for label in range(dataset.n_classes)]
    nll = next((metric for metric in metrics if metric.key in likelihood_keys(measures.space)), None)

    def of(one: _Found) -> dict[str, Measurement]:
        """By key and class, flat."""
        values: dict[str, Measurement] = {}
        for number, members in enumerate(classes):
            if one.sample.class_counts is not None:  # Of samples: whether or not an item of the class was held out.
                counts = one.sample.class_counts
                values[f"share {number}"] = share_of(np.arange(counts.sum()) < counts[number])
            if not members.any():
                continue
            if one.likelihood is not None and nll is not None:
                own = dataclasses.replace(one.likelihood, nats=one.likelihood.nats[torch.tensor(members)])
                values[f"{nll.key} {number}"] = summarise(own, measures.space)[nll.key]
            if one.sample.recalled is not None:
                values[f"recall {number}"] = share_of(one.sample.recalled[members])
        return values

    rows = {}
    everything = {**found, **{name: [_Found({}, sample)] for name, sample in references.items()}}
    for name, several in everything.items():
        values = averaged([of(one) for one in several])
        keys = dict.fromkeys(key.rpartition(" ")[0] for key in values)
        rows[name] = {
            key: tuple(values.get(f"{key} {number}", Measurement(None)) for number in range(len(classes)))
            for key in keys
        }
    present = {key for row in rows.values() for key in row}
    extractor = measures.extractors[0].key if measures.extractors else ""
    known = (
        *([nll] if nll is not None else []),
        Metric(
            "recall",
            f"Recall ({extractor} features)",
            "",
            "higher",
            "Share of the class's held-out items that lie in the samples' support; as the column of that name.",
        ),
        Metric(
            "share",
            "Share of the samples",
            "",
            "neither",
            f"Share of the samples that the classifier sees in the class; the row '{TRAIN}' shows that of the data.",
        ),
    )
    names = dataset.class_names or tuple(map(str, range(dataset.n_classes)))
    return PerClass(tuple(names), tuple(metric for metric in known if metric.key in present), rows)


def _default_extractors(dataset: Dataset) -> tuple[str, ...]:
    if isinstance(dataset.space, PointSpace):
        return ("coordinates",)
    has_labels = dataset.n_classes > 1 and all(split.labels is not None for split in dataset.splits.values())
    return ("random", "classifier" if has_labels else "autoencoder")


def _same_shape(a: Space, b: Space) -> bool:
    """Whether items of one space can be scored by a model of the other (points: whatever their centre)."""
    if isinstance(a, ImageSpace) and isinstance(b, ImageSpace):
        return (a.shape, a.levels, a.palette) == (b.shape, b.levels, b.palette)
    return type(a) is type(b) and a.shape == b.shape


def _likelihoods(
    name: str,
    model: GenerativeModel,
    likelihood: Likelihood | None,
    held_out: Split,
    n_importance: int,
    seed: int,
    notes: list[str],
) -> dict[str, Measurement]:
    """The tightest value in the likelihood columns, and the ELBO beside it where that is not the tightest."""
    if likelihood is None:
        return {key: Measurement(None, n=len(held_out)) for key in likelihood_keys(model.space)}
    found = summarise(likelihood, model.space)
    trouble = describe_non_finite(likelihood)
    if trouble is not None:
        notes.append(f"{name}: of the held-out log-likelihoods, {trouble}, and so is their mean.")
    if isinstance(model, ApproximateDensity) and n_importance > 0:
        elbo = evaluate_likelihood(model, held_out, seed=seed)
        assert elbo is not None
        unit = likelihood_keys(model.space)[0]
        found[unit.replace("nll", "negative_elbo")] = summarise(elbo, model.space)[unit]
    return found


def _latents(
    model: ApproximateDensity, held_out: Split, measurements: Mapping[str, Measurement], seed: int
) -> list[str]:
    """What is to be known of a bound: how much the importance weights tighten it, and what the latents carry."""
    nll, *_ = likelihood_keys(model.space)
    bound, elbo = (measurements.get(key) for key in (nll, nll.replace("nll", "negative_elbo")))
    lines = []
    if bound is not None and elbo is not None and bound.value is not None and elbo.value is not None:
        gap = elbo.value - bound.value
        if gap > 0:
            lines.append(f"the ELBO is {gap:.2f} nats looser than the importance-weighted bound.")
        elif gap < 0:
            lines.append(
                f"the ELBO, of one draw an item, came out {-gap:.2f} nats tighter than the importance-weighted bound,"
                " which on average it is not: that is chance."
            )
    if model.has_normal_prior and len(held_out) > 1:
        lines += describe(latent_report(model, held_out, seed=seed))
    return lines


@torch.no_grad()
def _draw(
    name: str, model: GenerativeModel, labels: np.ndarray | None, n: int, seed: int, tell: Progress
) -> tuple[np.ndarray, Measurement]:
    """n draws in batches, and the median speed of a full batch; fast models draw the first batch again to time it."""
    conditions = None
    if model.n_classes > 0 and labels is not None:
        # In random order: splits of class folders are sorted by class, and the first draws are what is shown.
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))[:n]
        conditions = torch.tensor(labels[order], device=model.device)

    def batch(start: int, generator: Generator) -> tuple[np.ndarray, float]:
        size = min(SAMPLE_BATCH, n - start)
        chosen = None if conditions is None else conditions[start : start + size]
        began = time.perf_counter()
        drawn = model.sample(size, labels=chosen, generator=generator).cpu().numpy()  # .cpu() waits for the device
        return drawn, time.perf_counter() - began

    def part(number: int) -> tuple[np.ndarray, float]:
        tell(f"{name}: {number * SAMPLE_BATCH} of {n} samples drawn")
        return batch(number * SAMPLE_BATCH, Generator(model.device).manual_seed(ranks.part_seed(seed, number)))

    parts = ranks.in_parts(math.ceil(n / SAMPLE_BATCH), part)
    full = min(SAMPLE_BATCH, n)
    seconds = [took for drawn, took in parts if len(drawn) == full]
    while sum(seconds) < 0.5 and len(seconds) < 20:
        seconds.append(part(0)[1])
    return np.concatenate([drawn for drawn, _ in parts]), Measurement(full / float(np.median(seconds)), n=full)


@torch.no_grad()
def _reconstruct(model: LatentModel, held_out: Split) -> tuple[np.ndarray, np.ndarray]:
    """Items spread evenly over the split (which may be sorted by class), and the decoded means of their posteriors."""
    index = np.linspace(0, len(held_out) - 1, min(N_SHOWN, len(held_out))).round().astype(np.int64)
    x, labels = read_batch(model, held_out, index)
    return x.cpu().numpy(), model.decode(model.encode(x, labels), labels).cpu().numpy()


def _noise_likelihood(space: Space, n: int) -> dict[str, Measurement]:
    """What uniform levels cost: any model of images should do better."""
    if not isinstance(space, ImageSpace):
        return {}
    nats = space.n_dims * math.log(space.levels)
    values = {"nll_nats_per_image": nats, "bits_per_dim": space.bits_per_dim(nats)}
    return {key: Measurement(value, n=n, kind="exact", measure="discrete") for key, value in values.items()}
