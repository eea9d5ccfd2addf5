"""Maps from items to feature vectors, in which the distances between data and samples are measured.

A distance is named after its extractor ('FD (random features)'), because values of different extractors have nothing
to do with each other. None of these needs a download.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace, PointSpace

if TYPE_CHECKING:
    from triptych.models.approximate.autoencoder import Autoencoder

_BATCH_SIZE = 256


class FeatureExtractor(Protocol):
    """What the two-sample metrics ask of an extractor."""

    key: str
    """Suffix of the columns that use it: 'random' makes 'fd_random'."""
    name: str
    """Which one it is, with a version: values of equal names can be compared."""
    description: str
    """A sentence for the protocol of a column."""
    n_features: int
    """Length of a feature vector."""
    has_neighbourhoods: bool
    """Whether near features mean like items off the data too, as precision and recall presume."""

    def __call__(self, items: np.ndarray) -> np.ndarray:
        """Features of items (N, *space.shape), float64, (N, n_features). Each depends on its own item alone."""
        ...


class RandomConvFeatures:
    """Convolutions with random weights that never change: a fixed yardstick for images of any size and kind.

    Each stage convolves (3x3, 16 channels, ReLU) and halves the resolution. The features are the mean of every
    stage's channels, which see texture and sharpness, and the last stage on a 2x2 grid, which sees the layout. Half of
    the first filters have zero mean: flat brightness would drown fine detail otherwise. Features are few (80 to 128),
    so that some hundred images determine their covariance.

    Arguments:
        space: Images from 2x2 up; palette images are seen in their colours.
        seed: Of the weights. Distances with different seeds are on different scales.
    Source:
        Naeem et al. 2020, arXiv:2002.09797, sec. 4 (random embeddings for data far from ImageNet). Differs: a small
        network of several scales instead of VGG16.
    """

    key = "random"
    has_neighbourhoods = True

    def __init__(self, space: ImageSpace, seed: int = 0, *, device: torch.device | str = "cpu") -> None:
        self.space, self.device = space, torch.device(device)
        width = 16
        # Down to about 2x2 (8x8: 2 stages, 28x28: 3, 32x32 and more: 4).
        n_stages = min(4, max(1, min(space.height, space.width).bit_length() - 2))
        generator = Generator().manual_seed(seed)  # on the CPU, so that every device has the same weights
        self._stages: list[tuple[Tensor, Tensor]] = []
        n_in = _n_channels(space)
        for stage in range(n_stages):
            weight = torch.randn(width, n_in, 3, 3, generator=generator) * math.sqrt(2 / (9 * n_in))
            bias = 0.3 * torch.randn(width, generator=generator)
            if stage == 0:
                detail = slice(0, width // 2)
                weight[detail] -= weight[detail].mean(dim=(2, 3), keepdim=True)
                bias[detail] = 0
            self._stages.append((weight.to(self.device), bias.to(self.device)))
            n_in = width
        self.n_features = width * (n_stages + 4)
        self.name = f"random-conv-v1-seed{seed}"
        self.description = (
            f"{self.n_features} features of a {n_stages}-stage convolutional network with fixed random weights "
            f"({self.name}; after Naeem et al. 2020)"
        )

    @torch.no_grad()
    def __call__(self, items: np.ndarray) -> np.ndarray:
        return in_batches(self._features, items, self.space, self.device)

    def _features(self, x: Tensor) -> Tensor:
        features = []
        for weight, bias in self._stages:
            x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias))  # (N, 16, h, w)
            features.append(x.mean(dim=(2, 3)))
            x = F.avg_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))  # (N, 16, h/2, w/2)
        features.append(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return torch.cat(features, dim=1)


class ClassifierFeatures:
    """The last hidden layer of a small classifier of the data set's own labels: features that know what matters in it.

    Made by `train`. Values depend on the training of this classifier: compare rows of one table, not of two. What the
    labels do not need it may not see: noise can fall among the data, so read precision and recall beside the noise row.

    Arguments:
        accuracy: Share of the test split that the classifier gets right.
    """

    key = "classifier"
    # A classifier maps noise among the classes: measured, noise has recall 1.0 on digits and precision 0.9 on CIFAR-10.
    has_neighbourhoods = False

    def __init__(self, space: ImageSpace, network: _Classifier, accuracy: float, device: torch.device | str) -> None:
        self.space, self.device, self.accuracy = space, torch.device(device), accuracy
        self._network = network.eval()
        self.n_features = network.n_features
        self.name = "classifier-v1"
        self.description = (
            f"{self.n_features} features of the last hidden layer of a convolutional classifier trained on the train "
            f"split's labels and selected on the valid split ({self.name}; test accuracy {100 * accuracy:.1f} %)"
        )

    @classmethod
    def train(
        cls, dataset: Dataset, *, seed: int = 0, max_steps: int | None = None, device: torch.device | str = "cpu"
    ) -> ClassifierFeatures:
        """Trains on batches of 128, keeping the best of five looks at the valid split.

        The effort is counted in steps, not seconds, so that a run repeats.

        Arguments:
            seed: Of the weights and the order of the data.
            max_steps: By default 300 for fewer than 10,000 training images and 800 for more: seconds to about a
                minute on two cores at sizes up to 32x32.
            device: Where the classifier trains and stays.
        Raises:
            InputError: If the data are no images, have no labels in some split, or have less than two classes.
        """
        if max_steps is None:
            max_steps = 300 if len(dataset.train) < 10_000 else 800
        if max_steps < 1:
            raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
        if not isinstance(dataset.space, ImageSpace):
            raise InputError(f"Classifier features need images; {dataset.name!r} holds {dataset.space}.")
        if dataset.n_classes < 2 or any(split.labels is None for split in dataset.splits.values()):
            raise InputError(f"Classifier features need labels of two or more classes; {dataset.name!r} has none.")
        device = torch.device(device)
        space, train = dataset.space, dataset.train
        network = _Classifier(space, dataset.n_classes, Generator().manual_seed(seed)).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle((step + 0.5) / max_steps))
        rng = np.random.Generator(np.random.PCG64(seed))
        order = np.empty(0, dtype=np.int64)
        best_accuracy, best_state = -1.0, network.state_dict()
        for step in range(1, max_steps + 1):
            if len(order) == 0:
                order = rng.permutation(len(train))
            index, order = order[:128], order[128:]
            items, labels = train.read(index)
            loss = F.cross_entropy(network(_scaled(items, space, device)), torch.as_tensor(labels, device=device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % max(1, max_steps // 5) == 0 or step == max_steps:
                accuracy = _accuracy(network, dataset.valid, space, device)
                if accuracy >= best_accuracy:  # the later of two equals has the lower learning rate behind it
                    best_accuracy = accuracy
                    best_state = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(best_state)
        return cls(space, network, _accuracy(network, dataset.test, space, device), device)

    @torch.no_grad()
    def __call__(self, items: np.ndarray) -> np.ndarray:
        return in_batches(self._network.features, items, self.space, self.device)

    @torch.no_grad()
    def classify(self, items: np.ndarray) -> np.ndarray:
        """The likeliest class of images (N, *space.shape): int64, (N,)."""
        return in_batches(self._network, items, self.space, self.device).argmax(1)


class AutoencoderFeatures:
    """The code of a small autoencoder of the data, and how well it restores each quarter of an image: needs no labels.

    Made by `train`. The code says which image of the data's kind an image is most like, the errors how far off that
    kind it lies: noise has an ordinary code and a large error. Each feature is standardised. Values depend on the
    training of this autoencoder: compare rows of one table, not of two.

    Arguments:
        network: A trained autoencoder of the images as this extractor sees them (see `seen_space`).
        center: Mean of each feature over training items, (n_features,).
        scale: Standard deviation of each, (n_features,), positive.
        error: Mean squared error on the valid split, with levels scaled to -1 .. 1.
    """

    key = "autoencoder"
    # Measured with uniform noise: precision 0.05 on digits, 0 on MNIST, but 1.0 on CIFAR-10 (0.5, 0 and 1.0 by the
    # code alone), where the wide balls of richly textured photographs reach it. Recall is 0 on all three.
    has_neighbourhoods = False
    name = "autoencoder-v1"

    def __init__(
        self,
        space: ImageSpace,
        network: Autoencoder,
        center: np.ndarray,
        scale: np.ndarray,
        error: float,
        device: torch.device | str,
    ) -> None:
        self.space, self.device, self.error = space, torch.device(device), error
        self._network, self._center, self._scale = network.eval(), center, scale
        self._seen_space = seen_space(space)
        self.n_features = len(center)
        self.description = (
            f"{self.n_features} features: the {network.n_latents} codes of an autoencoder trained on the train split "
            f"and selected on the valid split, and the log squared error of each quarter of the image, standardised "
            f"({self.name}; mean squared error {error:.3g} on the valid split, of levels scaled to -1 .. 1)"
        )

    @classmethod
    def train(
        cls, dataset: Dataset, *, seed: int = 0, max_steps: int | None = None, device: torch.device | str = "cpu"
    ) -> AutoencoderFeatures:
        """Trains on batches of 128, keeping the best of five looks at the valid split.

        The effort is counted in steps, not seconds, so that a run repeats.

        Arguments:
            seed: Of the weights and the order of the data.
            max_steps: By default 300 for fewer than 10,000 training images, which more steps would learn by heart, and
                1000 for more: on one core some 25 seconds at sizes up to 32x32, a minute and more at 128x128.
            device: Where the autoencoder trains and stays.
        Raises:
            InputError: If the data are no images, or max_steps is less than 1.
        """
        if max_steps is None:
            max_steps = 300 if len(dataset.train) < 10_000 else 1000
        if max_steps < 1:
            raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
        if not isinstance(dataset.space, ImageSpace):
            raise InputError(f"Autoencoder features need images; {dataset.name!r} holds {dataset.space}.")
        device = torch.device(device)
        space, train = dataset.space, dataset.train
        rng = np.random.Generator(np.random.PCG64(seed))
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from PyTorch's own generator
            torch.default_generator.manual_seed(seed)
            # Perceptrons: in ten times the time, convolutions restored MNIST far worse (error 0.22, not 0.06).
            network = cast("Autoencoder", create_model("autoencoder", seen_space(space), network="deep")).to(device)
        (phase,) = network.phases()
        optimiser = torch.optim.Adam(phase.parameters, lr=phase.learning_rate, betas=phase.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle((step + 0.5) / max_steps))
        valid = _some(dataset.valid, rng)
        order = np.empty(0, dtype=np.int64)
        best_error, best_state = math.inf, network.state_dict()
        for step in range(1, max_steps + 1):
            if len(order) == 0:
                order = rng.permutation(len(train))
            index, order = order[:128], order[128:]
            loss = network.loss(Batch(_seen(train.read(index)[0], space, device)), phase.name).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % max(1, max_steps // 5) == 0 or step == max_steps:
                error = _mean_squared_error(network, valid, space, device)
                if error <= best_error:
                    best_error = error
                    best_state = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(best_state)
        features = _raw_features(network, _some(train, rng), space, device)
        deviation = features.std(axis=0)
        # A code that hardly moves on the data would turn any other image into an outlier.
        floor = 0.01 * deviation.max() or 1.0
        return cls(space, network, features.mean(axis=0), np.maximum(deviation, floor), best_error, device)

    def __call__(self, items: np.ndarray) -> np.ndarray:
        self.space.check(items)
        standardised: np.ndarray = (
            _raw_features(self._network, items, self.space, self.device) - self._center
        ) / self._scale
        return standardised


class Coordinates:
    """Points as their own features, standardised with the centre and scale of the training data."""

    key = "coordinates"
    has_neighbourhoods = True
    name = "coordinates-v1"

    def __init__(self, space: PointSpace) -> None:
        self.space = space
        self.n_features = space.dim
        self.description = f"the {space.dim} coordinates, standardised by the training data ({self.name})"

    def __call__(self, items: np.ndarray) -> np.ndarray:
        center = np.zeros(self.space.dim) if self.space.center is None else np.asarray(self.space.center)
        standardised: np.ndarray = (np.asarray(items, dtype=np.float64) - center) / self.space.scale
        return standardised


class _Classifier(nn.Module):
    """Three convolutional stages, then mean and 2x2 maxima. Normalises each image by itself: no batch statistics."""

    n_features = 64

    def __init__(self, space: ImageSpace, n_classes: int, generator: Generator) -> None:
        super().__init__()
        n_in = _n_channels(space)
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from PyTorch's own generator: leave it
            for stage, width in enumerate((32, 64, 128)):
                # Large images are halved at once: a full-resolution stage would cost more than all others.
                stride = 1 if stage == 0 and min(space.height, space.width) < 16 else 2
                layers += [nn.Conv2d(n_in, width, 3, stride, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
                if stage > 0:
                    layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
                n_in = width
            self.body = nn.Sequential(*layers)
            self.hidden = nn.Linear(5 * n_in, self.n_features)
            self.head = nn.Linear(self.n_features, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None  # for the type checker: all layers here have one
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)  # start from equal probabilities

    def features(self, x: Tensor) -> Tensor:
        x = self.body(x)  # (N, 128, h/4, w/4), or h/8 of large images
        pooled = torch.cat([x.mean(dim=(2, 3)), F.adaptive_max_pool2d(x, 2).flatten(1)], dim=1)  # (N, 640)
        # Of unit variance, each by itself: without, some images far from the others decide a distance on their own.
        return F.layer_norm(self.hidden(pooled), (self.n_features,))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def seen_space(space: ImageSpace) -> ImageSpace:
    """Images as an autoencoder of features sees them: palettes in their colours, large ones shrunk to 32 at most."""
    factor = math.ceil(max(space.height, space.width) / 32)
    if factor == 1 and space.palette is None:
        return space
    return ImageSpace(_n_channels(space), math.ceil(space.height / factor), math.ceil(space.width / factor))


def _seen(items: np.ndarray, space: ImageSpace, device: torch.device) -> Tensor:
    """Images (N, *space.shape) as integers of `seen_space(space)`."""
    seen = seen_space(space)
    if seen == space:
        return torch.tensor(items, device=device)
    levels = (_scaled(items, space, device) + 1) * 127.5  # (N, C, H, W)
    return F.adaptive_avg_pool2d(levels, (seen.height, seen.width)).round().to(torch.uint8)


def _some(split: Split, rng: np.random.Generator, at_most: int = 5000) -> np.ndarray:
    return split.read(np.sort(rng.permutation(len(split))[:at_most]))[0]


@torch.no_grad()
def _mean_squared_error(network: Autoencoder, items: np.ndarray, space: ImageSpace, device: torch.device) -> float:
    total = 0.0
    for start in range(0, len(items), _BATCH_SIZE):
        x = _seen(items[start : start + _BATCH_SIZE], space, device)
        total += len(x) * float(network.loss(Batch(x), "reconstruction").total)
    return total / len(items)


@torch.no_grad()
def _raw_features(network: Autoencoder, items: np.ndarray, space: ImageSpace, device: torch.device) -> np.ndarray:
    """Codes, and log squared errors of the quarters, float64, (N, n_latents + 4)."""
    parts = []
    for start in range(0, len(items), _BATCH_SIZE):
        x = _seen(items[start : start + _BATCH_SIZE], space, device)
        z = network.code(x)
        errors = (network.reconstruction(z) - network.scale(x)) ** 2  # (N, C, H, W)
        quarters = F.adaptive_avg_pool2d(errors.mean(dim=1, keepdim=True), 2).flatten(1)  # (N, 4)
        # A hundredth of half the range is as good as no error: blank corners would have errors of any magnitude.
        parts.append(torch.cat([z, (quarters + 1e-4).log()], dim=1).double().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, network.n_latents + 4))


def _one_cycle(progress: float) -> float:
    """Share of the learning rate: up in a line over the first fifth of the training, then down in a cosine to 0."""
    return progress / 0.2 if progress < 0.2 else (1 + math.cos(math.pi * min(1.0, (progress - 0.2) / 0.8))) / 2


def _n_channels(space: ImageSpace) -> int:
    return 3 if space.palette is not None else space.channels


def _scaled(items: np.ndarray, space: ImageSpace, device: torch.device) -> Tensor:
    """Images (N, C, H, W) as float32 in -1 .. 1; palette images in RGB, (N, 3, H, W)."""
    if space.palette is not None:
        colours = np.asarray(space.palette, dtype=np.float32)  # (levels, 3)
        return torch.tensor(colours[items[:, 0]].transpose(0, 3, 1, 2) / 127.5 - 1, device=device)
    return torch.tensor(items.astype(np.float32) * (2 / (space.levels - 1)) - 1, device=device)


def in_batches(
    features: _Function, items: np.ndarray, space: ImageSpace, device: torch.device, batch_size: int | None = None
) -> np.ndarray:
    """Applies a function of images, float32 in -1 .. 1, (n, C, H, W), palette images in RGB, to some at a time.

    Raises:
        InputError: If the items are not of this space.
    """
    space.check(items)
    size = batch_size or _BATCH_SIZE
    parts = [
        features(_scaled(items[start : start + size], space, device)).double().cpu().numpy()
        for start in range(0, len(items), size)
    ]
    return np.concatenate(parts)


class _Function(Protocol):
    def __call__(self, x: Tensor, /) -> Tensor: ...


@torch.no_grad()
def _accuracy(network: _Classifier, split: Split, space: ImageSpace, device: torch.device) -> float:
    n_right = 0
    for start in range(0, len(split), _BATCH_SIZE):
        items, labels = split.read(slice(start, start + _BATCH_SIZE))
        n_right += int((network(_scaled(items, space, device)).argmax(1).cpu().numpy() == labels).sum())
    return n_right / len(split)
