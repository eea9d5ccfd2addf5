"""Whether the codes of a model serve another task: K-means, linear probes and fine-tuning against plain baselines.

Three questions, each beside an answer that needs no deep model. Do the classes form clusters in the codes? Can a linear
classifier read the class off them, given few labels? Is the trained encoder a better start for a classifier than a
fresh one? Using q(z|x) as features for few labels is M1 of Kingma et al. 2014, arXiv:1406.5298, section 2.1.

Memory is bounded: at most 20,000 items of each split, fewer where these have more than 2^26 sub-pixels.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError
from triptych.evaluation.latents import encoded
from triptych.evaluation.likelihood import blocks
from triptych.models.base import GenerativeModel, LatentModel
from triptych.spaces import ImageSpace, Space

Features = Literal["codes", "pca", "raw"]
"""Means of q(z|x); as many principal components; sub-pixels scaled to 0 .. 1 (palettes in RGB), or coordinates."""
Method = Literal["linear_codes", "linear_pca", "linear_raw", "fine_tuned", "from_scratch"]
"""Logistic regression on one of the features; the encoder with a linear layer on top, from trained or fresh weights."""
Progress = Callable[[str], None]

N_STARTS = 5
"""Of each run of K-means, of which the one of least squared distance to the training codes counts."""
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the penalty that the logistic regression chooses from."""
LEARNING_RATE = 1e-3
"""Of the fine-tuning, at its highest."""
BATCH_SIZE = 64
"""Labelled items of a step of the fine-tuning; all of them if there are fewer."""
N_LOOKS = 5
"""Looks at the valid split during the fine-tuning."""

_MAX_ITEMS = 20_000
_MAX_ENTRIES = 1 << 26  # sub-pixels of one split: 256 MiB in float32
_MAX_LOOKED_AT = 2_000  # valid items of one look
_MAX_ITERATIONS = 300  # of the logistic regression


@dataclass(frozen=True)
class OverDraws:
    """One quantity, measured once a draw (of labels, starts or weights)."""

    values: tuple[float, ...]
    """In the order of the draws."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean, Student's t over the draws: t s / sqrt(n); None for a single draw."""
        n = len(self.values)
        if n < 2:
            return None
        from scipy import stats  # type: ignore[import-untyped]

        return float(stats.t.ppf(0.975, n - 1) * np.std(self.values, ddof=1) / math.sqrt(n))


@dataclass(frozen=True)
class Clustering:
    """How well K-means finds the classes in some features; one value for each of several runs."""

    features: Features
    n_features: int
    purity: OverDraws
    """Share of test items in the most frequent class of their cluster, 0 .. 1. Higher is better."""
    adjusted_rand: OverDraws
    """Adjusted Rand index of clusters and classes on the test items: 1 if they agree, 0 on average by chance."""


@dataclass(frozen=True)
class Accuracy:
    """Share of test items that a classifier gets right, given some labels."""

    method: Method
    n_features: int
    """Inputs of the linear layer."""
    n_labels: int
    """Labelled training items; those of all of them are the same in each draw."""
    accuracy: OverDraws
    """0 .. 1, higher is better. A single value where draws would be the same: the linear probe on all labels."""


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` returns."""

    model: str
    """Its class."""
    data: str
    is_images: bool
    n_classes: int
    n_train: int
    """Training items, of which labels are drawn."""
    n_valid: int
    n_test: int
    majority: float
    """Share of the most frequent class among the test items: the accuracy of a constant guess."""
    n_labels: tuple[int, ...]
    """Numbers of labels, ascending; the last is n_train."""
    n_draws: int
    finetune_steps: int
    seed: int
    clusterings: tuple[Clustering, ...]
    accuracies: tuple[Accuracy, ...]
    """By method, then by n_labels."""
    notes: tuple[str, ...]
    """What was done otherwise than asked, a sentence each."""

    @property
    def gains(self) -> dict[int, OverDraws]:
        """By number of labels: accuracy of the fine-tuned encoder less that from scratch, draw by draw.

        Both have the same labels in each draw, so that their difference is surer than either.
        """
        tuned, scratch = (
            {row.n_labels: row.accuracy.values for row in self.accuracies if row.method == method}
            for method in ("fine_tuned", "from_scratch")
        )
        return {n: OverDraws(tuple(a - b for a, b in zip(tuned[n], scratch[n], strict=True))) for n in tuned}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; each quantity with its values, mean and half width of the 95 % interval."""

        def plain(value: Any) -> Any:
            if isinstance(value, OverDraws):
                return {"values": list(value.values), "mean": value.mean, "half_width": value.half_width}
            if isinstance(value, dict):
                return {str(key): plain(part) for key, part in value.items()}
            if isinstance(value, tuple):
                return [plain(part) for part in value]
            if isinstance(value, Clustering | Accuracy):
                return plain(vars(value))
            return value

        return {**plain(vars(self)), "gains": plain(self.gains)}


@dataclass(frozen=True)
class Part:
    """Labelled items of a split, in random order."""

    items: np.ndarray
    """In data units, (N, *space.shape)."""
    labels: np.ndarray
    """int64, (N,)."""

    def __len__(self) -> int:
        return len(self.items)

    def at(self, index: np.ndarray | slice) -> Part:
        """Some of them."""
        return Part(self.items[index], self.labels[index])


def probe(
    model: GenerativeModel,
    fresh: Callable[[int], GenerativeModel],
    dataset: Dataset,
    *,
    n_labels: Sequence[int] = (10, 100, 1000),
    n_draws: int = 5,
    seed: int = 0,
    finetune_steps: int = 200,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Measures what the codes of a trained model are worth for classification.

    - K-means: as many clusters as classes, fitted to the training items' features without labels; purity and adjusted
      Rand index on the test items. `n_draws` runs, each the best of 5 starts by the training items' squared distance.
    - Linear probe: logistic regression on features centred and scaled by all training items, each feature by itself or
      all alike (`feature_scales`); this and C from 0.001 .. 10 are chosen by accuracy on the valid split.
    - Fine-tuning: `finetuned_accuracy` of the trained encoder, and of one from scratch, on the same labels in the same
      order.

    PCA is fitted to all training items, without labels. Each draw orders the training items class by class in turn, so
    that the first n of them are as balanced as the classes' sizes allow, and the labels of a small number are among
    those of a larger one. All methods have the same draws, and all choose by the whole labelled valid split: so
    accuracies with few labels compare methods, and are higher than a user with these few labels alone could reach.

    Arguments:
        model: An unconditional model with an encoder. It is copied and stays as it is.
        fresh: Makes an untrained model of the same class and options. It is called once a draw with a seed, which
            PyTorch's own generator has been set to.
        dataset: Of the model's space, with labels in each split.
        n_labels: How many labels are drawn. Less than one a class is raised to one a class; as many as there are
            training items or more is left out, since all of them are always measured too. The result has a note of
            either.
        n_draws: Draws of labels (with all labels: of fresh weights and the order of the batches), at least 1; intervals
            need 2.
        seed: Of all randomness.
        finetune_steps: 0 for no fine-tuning.
        device: Where the networks run; None for where the model is.
        progress: Told what is being done, a short line each time.
    Raises:
        InputError: If the model has no encoder, is class-conditional or of another space, or its codes are not finite;
            if labels are missing; if an argument is out of range; if `fresh` makes another kind of model.
    Source:
        Linear probes: Alain & Bengio 2016, arXiv:1610.01644. Purity: Manning, Raghavan & Schütze 2008, Introduction to
        Information Retrieval, section 16.3. Adjusted Rand index: Hubert & Arabie 1985. Few labels on the latents of a
        VAE: Kingma et al. 2014, arXiv:1406.5298, section 2.1 (M1). Differs: logistic regression on the means instead of
        a (transductive) SVM on draws.
    """
    model = _checked(model, dataset)
    if n_draws < 1 or finetune_steps < 0 or seed < 0:
        raise InputError(
            f"n_draws is {n_draws}, finetune_steps {finetune_steps} and seed {seed}; give at least 1, 0 and 0."
        )
    tell = progress or (lambda line: None)
    space = dataset.space
    tell("reading the items")
    train, valid, test = (_part(split, space, seed) for split in dataset.splits.values())
    n_least = len(np.unique(train.labels))
    if n_least < 2 or len(train) < dataset.n_classes:
        raise InputError(
            f"The train split of {dataset.name!r} has {len(train)} items of {n_least} classes; the probe needs 2"
            f" classes, and an item for each of {dataset.n_classes} clusters."
        )
    counts, notes = label_counts(n_labels, n_least, len(train))
    if n_least < dataset.n_classes:
        notes.append(f"{dataset.n_classes - n_least} of {dataset.n_classes} classes have no training items.")
    for name, part in zip(dataset.splits, (train, valid, test), strict=True):
        if len(part) < len(dataset.splits[name]):
            notes.append(f"{len(part)} of {len(dataset.splits[name])} {name} items are used, drawn at random.")
    orders = [balanced_order(train.labels, np.random.default_rng([seed, draw])) for draw in range(n_draws)]

    coder = copy.deepcopy(model).to(model.device if device is None else torch.device(device)).eval()
    tell("encoding")
    codes = [encoded(coder, Split(part.items), seed=seed) for part in (train, valid, test)]
    if not all(np.isfinite(z).all() for z in codes):
        raise InputError(f"The codes of this {type(model).__name__} are not finite: train it again, more slowly.")
    raw = [raw_features(part.items, space) for part in (train, valid, test)]
    tell("PCA")
    sets: dict[Features, list[np.ndarray]] = {
        "codes": codes,
        "pca": pca_features(raw, coder.n_latents, seed),
        "raw": raw,
    }
    clusterings, accuracies = [], []
    methods: dict[Features, Method] = {"codes": "linear_codes", "pca": "linear_pca", "raw": "linear_raw"}
    for name, features in sets.items():
        tell(f"K-means on {name}")
        clusterings.append(_clustering(name, features[0], features[2], test.labels, dataset.n_classes, n_draws, seed))
        accuracies += _linear_probes(methods[name], features, (train, valid, test), counts, orders, tell)
    if finetune_steps:
        tuned, note = _fine_tunings(
            coder, fresh, (train, valid, test), dataset.n_classes, counts, orders, finetune_steps, seed, tell
        )
        accuracies += tuned
        notes += [note] if note else []
    return ProbeResult(
        model=type(model).__name__,
        data=dataset.name,
        is_images=isinstance(space, ImageSpace),
        n_classes=dataset.n_classes,
        n_train=len(train),
        n_valid=len(valid),
        n_test=len(test),
        majority=float(np.bincount(test.labels).max() / len(test)),
        n_labels=counts,
        n_draws=n_draws,
        finetune_steps=finetune_steps,
        seed=seed,
        clusterings=tuple(clusterings),
        accuracies=tuple(accuracies),
        notes=tuple(notes),
    )


def describe(result: ProbeResult) -> list[str]:
    """Aligned lines for the terminal."""
    raw = "raw pixels" if result.is_images else "coordinates"
    of_features: dict[Features, str] = {"codes": "codes", "pca": "PCA", "raw": raw}
    of_methods: dict[Method, str] = {
        "linear_codes": "linear probe, codes",
        "linear_pca": "linear probe, PCA",
        "linear_raw": f"linear probe, {raw}",
        "fine_tuned": "encoder, fine-tuned",
        "from_scratch": "encoder, from scratch",
    }
    header = [f"{n} labels" for n in result.n_labels[:-1]] + [f"all {result.n_labels[-1]}"]
    probes = [["test accuracy, %", "features", *header]]
    for method in get_args(Method):
        own = [row for row in result.accuracies if row.method == method]
        if own:
            values = [_text(row.accuracy, 100, 1) for row in own]
            probes.append([of_methods[method], str(own[0].n_features), *values])
    if result.gains:
        probes.append(["gain of the trained start", "", *(_text(gain, 100, 1) for gain in result.gains.values())])
    clusters = [[f"K-means, {result.n_classes} clusters", "features", "purity, %", "adjusted Rand"]]
    for row in result.clusterings:
        values = [_text(row.purity, 100, 1), _text(row.adjusted_rand, 1, 3)]
        clusters.append([of_features[row.features], str(row.n_features), *values])
    lines = [
        f"{result.model} on {result.data}: {result.n_train} training items, {result.n_valid} for choosing,"
        f" {result.n_test} for testing; the most frequent class is {100 * result.majority:.1f} % of these",
        "",
        *_aligned(clusters),
        "",
        *_aligned(probes),
        "",
    ]
    if result.n_draws > 1:
        lines.append(
            f"±: 95 % interval of the mean, Student's t over {result.n_draws} draws of starts, labels and weights,"
            " on the same test items"
        )
    return lines + list(result.notes)


# ---- parts of it


def purity(clusters: np.ndarray, classes: np.ndarray) -> float:
    """Share of items in the most frequent class of their cluster, 0 .. 1. More clusters never lower it.

    Arguments:
        clusters: Integers from 0, (N,).
        classes: Integers from 0, (N,).
    Source:
        Manning, Raghavan & Schütze 2008, section 16.3, eq. 16.1.
    """
    table = np.zeros((int(clusters.max()) + 1, int(classes.max()) + 1), dtype=np.int64)
    np.add.at(table, (clusters, classes), 1)
    return float(table.max(axis=1).sum() / len(classes))


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All positions in a random order whose first n, for each n, are as balanced as the classes' sizes allow.

    Until a class runs out, each round takes one item of each class, in random order.

    Arguments:
        labels: int64, (N,).
    Returns:
        Positions, int64, (N,).
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    rounds = np.arange(len(labels)) - np.repeat(starts, sizes)
    order: np.ndarray = by_class[np.lexsort((rng.random(len(labels)), rounds))]
    return order


def label_counts(n_labels: Sequence[int], n_least: int, n_train: int) -> tuple[tuple[int, ...], list[str]]:
    """The numbers of labels that are measured, ascending, of which the last is n_train; and what differs, in words.

    Arguments:
        n_labels: Those asked for.
        n_least: Classes: fewer labels cannot hold one of each.
    Raises:
        InputError: If one is not positive.
    """
    counts, notes = {n_train}, []
    for n in sorted(set(n_labels)):
        if n < 1:
            raise InputError(f"n_labels holds {n}; give numbers of at least 1.")
        if n >= n_train:
            notes.append(f"{n} labels are left out: there are {n_train} training items, and all are measured anyway.")
        elif n < n_least:
            notes.append(f"{n} labels are raised to {n_least}, one a class.")
            counts.add(n_least)
        else:
            counts.add(n)
    return tuple(sorted(counts)), notes


def raw_features(items: np.ndarray, space: Space) -> np.ndarray:
    """Items as rows, float32, (N, D): sub-pixels scaled to 0 .. 1, palettes in RGB; points standardised as a whole."""
    if not isinstance(space, ImageSpace):
        center = np.zeros(space.dim) if space.center is None else np.asarray(space.center)
        return ((items - center) / space.scale).astype(np.float32)
    if space.palette is not None:
        colours: np.ndarray = (np.asarray(space.palette) / 255).astype(np.float32)
        return colours[items].reshape(len(items), -1)
    return (items.reshape(len(items), -1) / np.float32(space.levels - 1)).astype(np.float32)


def pca_features(raw: Sequence[np.ndarray], n_features: int, seed: int) -> list[np.ndarray]:
    """Principal components of sets of rows (N, D), all by the axes of the first set.

    Arguments:
        n_features: Components; fewer where the first set has fewer rows or columns.
        seed: Of the solver, which is a random one for large sets.
    """
    from sklearn.decomposition import PCA

    pca = PCA(min(n_features, *raw[0].shape), random_state=seed % 2**32)
    with np.errstate(invalid="ignore"):  # Items that are all the same have no shares of variance.
        pca.fit(raw[0])
    return [pca.transform(rows) for rows in raw]


def feature_scales(features: np.ndarray) -> list[np.ndarray]:
    """What features are divided by before a linear probe, float64, (D,) each: their own standard deviations, or one.

    The one is the root of their mean variance. It keeps what the sizes of principal components or codes say, which a
    division by each one's own deviation throws away; with few labels that can cost more than ten points of accuracy.

    Arguments:
        features: (N, D).
    """
    variances = features.var(0, dtype=np.float64)
    scales = [np.sqrt(variances), np.sqrt(np.broadcast_to(variances.mean(), variances.shape))]
    # What is constant up to rounding stays so.
    return [np.where(scale > 1e-6 * scales[1], scale, 1.0) for scale in scales]


def linear_accuracy(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    scales: Sequence[np.ndarray],
) -> float:
    """Test accuracy of logistic regression, with the scale and the C that are best on valid (of equals the first).

    Arguments:
        train, valid, test: Centred features, float64, (N, D), and classes, (N,).
        scales: Candidates of what to divide the features by, (D,) each.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    best, accuracy = -1.0, 0.0
    for scale in scales:
        rows, chosen_by, reported = (features / scale for features, _ in (train, valid, test))
        for c in C_GRID:
            classifier = LogisticRegression(C=c, max_iter=_MAX_ITERATIONS)
            with warnings.catch_warnings():
                # Stopped early, a large C acts as a somewhat smaller one; the valid split judges it as it is.
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(rows, train[1])
            on_valid = float(np.mean(classifier.predict(chosen_by) == valid[1]))
            if on_valid > best:
                best, accuracy = on_valid, float(np.mean(classifier.predict(reported) == test[1]))
    return accuracy


def finetuned_accuracy(
    network: LatentModel, n_classes: int, train: Part, valid: Part, test: Part, *, n_steps: int, seed: int
) -> float:
    """Test accuracy of an encoder with a linear layer on its mean code, all weights trained on labelled items.

    The recipe is the same whatever the encoder's weights: cross-entropy; the linear layer starts at zero; AdamW with
    PyTorch's betas and weight decay 0.01; the learning rate rises to 1e-3 over the first tenth of the steps and falls
    in a cosine to 0; batches of 64, reshuffled when all items have been seen; dropout as the model has it. Early
    stopping: of five looks at (at most 2000 of) the valid items, evenly over the steps, the best gives the weights; of
    equals the last.

    Arguments:
        network: Is trained in place.
        n_steps: Of the optimiser, at least 1.
        seed: Of batches, and dropout through PyTorch's own generator, which is put back afterwards.
    Returns:
        Share of the test items.
    """
    device = network.device
    batches = _batches(len(train), min(BATCH_SIZE, len(train)), np.random.default_rng(seed))
    looked_at = valid.at(slice(0, _MAX_LOOKED_AT))
    looks = {math.ceil(n_steps * (look + 1) / N_LOOKS) for look in range(N_LOOKS)}
    with _seeded(seed, device), torch.enable_grad():
        classifier = _Classifier(network, n_classes).to(device).requires_grad_(True)
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_cosine((step + 0.5) / n_steps))
        best, best_state = -1.0, classifier.state_dict()
        for step in range(1, n_steps + 1):
            batch = train.at(next(batches))
            classifier.train()
            logits = classifier(torch.as_tensor(batch.items, device=device))
            loss = F.cross_entropy(logits, torch.as_tensor(batch.labels, device=device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step in looks:
                accuracy = _accuracy(classifier, looked_at)
                if accuracy >= best:  # the later of equals has the lower learning rate behind it
                    best = accuracy
                    best_state = {name: value.clone() for name, value in classifier.state_dict().items()}
        classifier.load_state_dict(best_state)
        return _accuracy(classifier, test)


class _Classifier(nn.Module):
    """A linear layer on the mean code of a model."""

    def __init__(self, encoder: LatentModel, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.n_latents, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Items in data units, (N, *space.shape) -> logits, (N, n_classes)."""
        logits: Tensor = self.head(self.encoder.encode(x))
        return logits


@torch.no_grad()
def _accuracy(classifier: _Classifier, part: Part) -> float:
    classifier.eval()
    n_right = 0
    for block in blocks(len(part), classifier.encoder.space):
        x = torch.as_tensor(part.items[block], device=classifier.encoder.device)
        n_right += int((classifier(x).argmax(1).cpu().numpy() == part.labels[block]).sum())
    return n_right / len(part)


def _checked(model: GenerativeModel, dataset: Dataset) -> LatentModel:
    """The model; InputError if it cannot be probed on this data."""
    name = type(model).__name__
    if not isinstance(model, LatentModel):
        raise InputError(f"{name} has no encoder, so it has no codes to probe; give a model of latents, as a vae.")
    if model.n_classes:
        raise InputError(
            f"This {name} is class-conditional: its encoder is told the label that the probe asks for. Give a model"
            " trained without --conditional."
        )
    own, space = model.space, dataset.space
    same = type(own) is type(space) and own.shape == space.shape
    if isinstance(own, ImageSpace) and isinstance(space, ImageSpace):
        same = own == space
    if not same:
        raise InputError(f"{name} models {own}; {dataset.name!r} holds {space}. Give data of the model's space.")
    if dataset.n_classes < 2 or any(split.labels is None for split in dataset.splits.values()):
        raise InputError(
            f"{dataset.name!r} has {dataset.n_classes} classes; the probe needs labels of 2 or more in each split."
        )
    return model


def _part(split: Split, space: Space, seed: int) -> Part:
    """The items of a split in random order, at most as many as memory is meant for."""
    n_entries = space.n_dims * (3 if isinstance(space, ImageSpace) and space.palette is not None else 1)
    n = min(len(split), _MAX_ITEMS, max(1, _MAX_ENTRIES // n_entries))
    items, labels = split.read(np.random.default_rng(seed).permutation(len(split))[:n])
    assert labels is not None  # `_checked` has refused the others
    items = items if isinstance(space, ImageSpace) else items.astype(np.float32)
    space.check(items)
    return Part(items, labels)


def _clustering(
    name: Features, train: np.ndarray, test: np.ndarray, classes: np.ndarray, k: int, n_draws: int, seed: int
) -> Clustering:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score

    purities, rands = [], []
    for draw in range(n_draws):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # Fewer distinct codes than classes: purity tells.
            clusters = KMeans(k, n_init=N_STARTS, random_state=_seed_of(seed, draw)).fit(train).predict(test)
        purities.append(purity(clusters, classes))
        rands.append(float(adjusted_rand_score(classes, clusters)))
    return Clustering(name, train.shape[1], OverDraws(tuple(purities)), OverDraws(tuple(rands)))


def _linear_probes(
    method: Method,
    features: Sequence[np.ndarray],
    parts: Sequence[Part],
    counts: Sequence[int],
    orders: Sequence[np.ndarray],
    tell: Progress,
) -> list[Accuracy]:
    """One row for each number of labels."""
    train, valid, test = parts
    scales, mean = feature_scales(features[0]), features[0].mean(0, dtype=np.float64)
    choose, report = (features[1] - mean, valid.labels), (features[2] - mean, test.labels)
    found = []
    for n in counts:
        tell(f"{method}: {n} labels")
        values = []
        # All labels in another order are the same labels, and the optimum is one.
        for order in orders[:1] if n == len(train) else orders:
            labelled = (features[0][order[:n]] - mean, train.labels[order[:n]])
            values.append(linear_accuracy(labelled, choose, report, scales))
        found.append(Accuracy(method, features[0].shape[1], n, OverDraws(tuple(values))))
    return found


def _fine_tunings(
    coder: LatentModel,
    fresh: Callable[[int], GenerativeModel],
    parts: Sequence[Part],
    n_classes: int,
    counts: Sequence[int],
    orders: Sequence[np.ndarray],
    n_steps: int,
    seed: int,
    tell: Progress,
) -> tuple[list[Accuracy], str | None]:
    """A row for each start and number of labels; or none, and a sentence that says why."""
    train, valid, test = parts
    if not _passes_gradients(coder, train.items[:2]):
        return [], f"Fine-tuning is left out: no gradient reaches the weights of {type(coder).__name__} from its codes."
    starts: dict[Method, dict[int, list[float]]] = {
        "fine_tuned": {n: [] for n in counts},
        "from_scratch": {n: [] for n in counts},
    }
    for draw, order in enumerate(orders):
        own_seed = _seed_of(seed, draw)
        with _seeded(own_seed, coder.device):
            scratch = fresh(own_seed)
        if (
            not isinstance(scratch, LatentModel)
            or type(scratch) is not type(coder)
            or scratch.n_latents != coder.n_latents
        ):
            raise InputError(
                f"fresh made a {type(scratch).__name__}; it must make an untrained {type(coder).__name__} of"
                f" {coder.n_latents} latents."
            )
        scratch = scratch.to(coder.device)
        for n in counts:
            labelled = train.at(order[:n])
            encoders: dict[Method, LatentModel] = {"fine_tuned": coder, "from_scratch": scratch}
            for method, start in encoders.items():
                tell(f"{method}: {n} labels, draw {draw + 1} of {len(orders)}")
                network = copy.deepcopy(start)
                value = finetuned_accuracy(network, n_classes, labelled, valid, test, n_steps=n_steps, seed=own_seed)
                starts[method][n].append(value)
    return [
        Accuracy(method, coder.n_latents, n, OverDraws(tuple(values)))
        for method, by_count in starts.items()
        for n, values in by_count.items()
    ], None


def _passes_gradients(coder: LatentModel, items: np.ndarray) -> bool:
    """Whether codes are differentiable in some weight; loaded models are frozen, so a copy is asked."""
    network = copy.deepcopy(coder).requires_grad_(True).train()
    with _seeded(0, coder.device), torch.enable_grad():
        return network.encode(torch.as_tensor(items, device=coder.device)).requires_grad


def _seed_of(seed: int, draw: int) -> int:
    """A seed of a draw that scikit-learn and PyTorch both take."""
    return int(np.random.default_rng([seed, draw]).integers(2**31))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's own generators set to a seed, and put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Positions among n items for ever, always full batches, reshuffled when all have been given out."""
    order = np.empty(0, dtype=np.int64)
    while True:
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(n)])
        yield order[:size]
        order = order[size:]


def _warm_cosine(progress: float) -> float:
    """Share of the learning rate at a share of the steps."""
    return progress / 0.1 if progress < 0.1 else (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) / 2


def _text(value: OverDraws, scale: float, n_digits: int) -> str:
    """`97.2 ± 0.8`, or the value alone where there is no interval."""
    text = f"{scale * value.mean:.{n_digits}f}"
    return text if value.half_width is None else f"{text} ± {scale * value.half_width:.{n_digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
