"""Features of networks that others have trained, and finding extractors by name.

Nothing is downloaded, and no file can run code: weights are read once, as plain tensors, from a file that the user
names or that another program has left in its library's usual folder.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.data.dataset import Dataset
from triptych.errors import InputError, nearest_name
from triptych.evaluation.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    Coordinates,
    FeatureExtractor,
    RandomConvFeatures,
    in_batches,
)
from triptych.pickles import read_plain
from triptych.spaces import ImageSpace, PointSpace

EXTRACTORS = ("random", "classifier", "autoencoder", "inception", "dinov2", "coordinates")
"""Names that `find_extractors` knows."""

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
DINO_MODEL = "vit_small_patch14_dinov2.lvd142m"

_PRETRAINED = ("inception", "dinov2")
_BATCH_SIZE = 32  # images of some 300x300, with all the activations that they have
_RESIZED = "images resized to {0}x{0} by antialiased bicubic interpolation of PyTorch"


class MissingPretrained(InputError):
    """A library or a file of weights is not on this machine. The message says which, and how to get it."""


class InceptionFeatures:
    """The last pooled layer of the Inception network that the Fréchet Inception Distance is defined with.

    Inception has learnt the classes of ImageNet: far from photographs its distances mean less. Values differ from
    published ones by the resizer. With fewer than some 10,000 images a distance of 2048 features is strongly biased:
    compare equal sizes only.

    Arguments:
        space: Grey images are repeated to three channels, palette images seen in their colours, and all are stretched
            to a square.
        weights: A file with torch-fidelity's weights of this network, .safetensors or of `torch.save`; by default
            the one that torch-fidelity keeps in the checkpoints folder of torch.hub.
        device: Where the network runs.
    Raises:
        MissingPretrained: If torchmetrics, torch-fidelity or the default file is missing.
        InputError: If the file that was named is missing, or does not hold plain tensors of this network.
    Source:
        Heusel et al. 2017, arXiv:1706.08500, sec. 3. The resizer: Parmar, Zhang & Zhu 2022, arXiv:2104.11222, sec. 3.
    """

    key = "inception"
    has_neighbourhoods = True
    n_features = 2048

    def __init__(
        self, space: ImageSpace, weights: str | Path | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        _check_channels(space)
        self.space, self.device = space, torch.device(device)
        install = "pip install torchmetrics torch-fidelity"
        _library("torch_fidelity", "Inception features", install)  # which torchmetrics needs, and names less clearly
        fid = _library("torchmetrics.image.fid", "Inception features", install)
        file = _weights_file("inception", weights, [Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE])
        state, digest = _read_weights(file, "inception")
        # torch-fidelity unpickles whatever its file holds: it is given tensors that are known to be only that.
        plain = io.BytesIO()
        torch.save(state, plain)
        plain.seek(0)
        with torch.random.fork_rng(devices=[]):
            try:
                network = fid.NoTrainInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain)
            except RuntimeError as error:
                raise _other_network(file, "inception", error) from error
        self._network: nn.Module = network.requires_grad_(False).to(self.device)
        self.name = f"inception-v3-fid-{digest}"
        self.description = (
            f"{self.n_features} features of the last pooled layer of the Inception network of FID, "
            f"{_RESIZED.format(299)} ({self.name}; weights of SHA-256 {digest}...)"
        )

    @torch.no_grad()
    def __call__(self, items: np.ndarray) -> np.ndarray:
        return in_batches(self._features, items, self.space, self.device, _BATCH_SIZE)

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self._network(_resized(x, 299).round().to(torch.uint8))
        return features


class DinoFeatures:
    """The class token of DINOv2 (ViT-S/14): features learnt from photographs without labels.

    Features for photographs that do not depend on the classes of ImageNet. Published values use the larger ViT-L/14
    and cannot be compared with these.

    Arguments:
        space: Grey images are repeated to three channels, palette images seen in their colours, and all are stretched
            to a square.
        weights: A file with the weights of `vit_small_patch14_dinov2.lvd142m`, of timm or of the original authors,
            .safetensors or of `torch.save`; by default the one in the cache of the Hugging Face hub.
        device: Where the network runs.
    Raises:
        MissingPretrained: If timm or the default file is missing.
        InputError: If the file that was named is missing, or does not hold plain tensors of this network.
    Source:
        Oquab et al. 2023, arXiv:2304.07193. For distances: Stein et al. 2023, arXiv:2306.04675 (ViT-L/14).
    """

    key = "dinov2"
    has_neighbourhoods = True
    n_features = 384

    def __init__(
        self, space: ImageSpace, weights: str | Path | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        _check_channels(space)
        self.space, self.device = space, torch.device(device)
        timm = _library("timm", "DINOv2 features", "pip install timm")
        file = _weights_file("dinov2", weights, [] if weights is not None else _hub_files(f"timm/{DINO_MODEL}"))
        state, digest = _read_weights(file, "dinov2")
        state.pop("mask_token", None)  # the original file has it, for a training that is over
        with torch.random.fork_rng(devices=[]):
            # The weights are for images of 518x518; positions are interpolated for smaller ones.
            network: nn.Module = timm.create_model(DINO_MODEL, pretrained=False, num_classes=0, dynamic_img_size=True)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise _other_network(file, "dinov2", error) from error
        self._network = network.requires_grad_(False).eval().to(self.device)
        # Mean and deviation of ImageNet's channels, by which the network was trained to see images.
        self._mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).view(3, 1, 1) * 255
        self._deviation = torch.tensor([0.229, 0.224, 0.225], device=self.device).view(3, 1, 1) * 255
        self.name = f"dinov2-vit-s14-{digest}"
        self.description = (
            f"{self.n_features} features, the class token of DINOv2 (ViT-S/14), {_RESIZED.format(224)} "
            f"({self.name}; weights of SHA-256 {digest}...)"
        )

    @torch.no_grad()
    def __call__(self, items: np.ndarray) -> np.ndarray:
        return in_batches(self._features, items, self.space, self.device, _BATCH_SIZE)

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self._network((_resized(x, 224) - self._mean) / self._deviation)
        return features


def find_extractors(
    names: Sequence[str],
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device | str,
    tell: Callable[[str], None],
) -> tuple[tuple[FeatureExtractor, ...], tuple[str, ...]]:
    """Makes extractors, training those that are to be trained on the data.

    Arguments:
        names: Of `EXTRACTORS`; 'inception=FILE' and 'dinov2=FILE' name a file of weights.
        dataset: What 'classifier' and 'autoencoder' are trained on.
        seed: Of these trainings. 'random' has the weights of seed 0 always: a yardstick must not change.
        device: Where the networks train and run.
        tell: Told of what takes long, a short line each time.
    Returns:
        The extractors in the order of their names, without pretrained ones whose library or weights are not on this
        machine; and a sentence about each of these.
    Raises:
        InputError: As `check_extractors`, or if a file does not hold the weights that it is named for.
    """
    chosen = check_extractors(names, dataset)
    made: dict[str, FeatureExtractor] = {}
    notes: list[str] = []
    # What can fail comes before what takes long.
    for key in sorted(chosen, key=lambda key: key not in _PRETRAINED):
        try:
            made[key] = _make(key, chosen[key], dataset, seed, device, tell)
        except MissingPretrained as error:
            notes.append(f"There are no {key} features: {error}")
    return tuple(made[key] for key in chosen if key in made), tuple(notes)


def check_extractors(names: Sequence[str], dataset: Dataset) -> dict[str, Path | None]:
    """What `find_extractors` would refuse is refused at once: nothing is imported, loaded or trained.

    Returns:
        Names without files, in order, each with the file of weights that was named for it.
    Raises:
        InputError: If a name is unknown, named twice or does not fit the data, or a file that is named is missing.
    """
    found: dict[str, Path | None] = {}
    for name in names:
        key, has_file, file = name.partition("=")
        if key not in EXTRACTORS:
            raise InputError(
                f"extractors: there is no {key!r}.{nearest_name(key, EXTRACTORS)} Extractors: {', '.join(EXTRACTORS)}."
            )
        if key in found:
            raise InputError(f"extractors: {key!r} is named twice; name each once.")
        if has_file and key not in _PRETRAINED:
            raise InputError(f"extractors: {name!r}: {key!r} has no file of weights; write {key!r} alone.")
        if has_file and not Path(file).is_file():
            raise InputError(f"extractors: {name!r}: there is no file {file!r}; write '{key}=FILE'.")
        _check_fits(key, dataset)
        found[key] = Path(file) if has_file else None
    return found


def _check_fits(key: str, dataset: Dataset) -> None:
    is_points = isinstance(dataset.space, PointSpace)
    if is_points != (key == "coordinates"):
        only = "points" if key == "coordinates" else "images"
        instead = "'coordinates'" if is_points else "'random'"
        raise InputError(
            f"extractors: {key!r} is for {only}; {dataset.name!r} holds {dataset.space}. Take {instead} instead."
        )
    has_labels = dataset.n_classes >= 2 and all(split.labels is not None for split in dataset.splits.values())
    if key == "classifier" and not has_labels:
        raise InputError(
            f"extractors: 'classifier' needs labels of two or more classes; {dataset.name!r} has none. "
            "Take 'autoencoder' instead."
        )


def _make(
    key: str,
    weights: Path | None,
    dataset: Dataset,
    seed: int,
    device: torch.device | str,
    tell: Callable[[str], None],
) -> FeatureExtractor:
    space = dataset.space
    if isinstance(space, PointSpace):
        return Coordinates(space)
    if key == "classifier":
        tell("training the classifier for features")
        return ClassifierFeatures.train(dataset, seed=seed, device=device)
    if key == "autoencoder":
        tell("training the autoencoder for features")
        return AutoencoderFeatures.train(dataset, seed=seed, device=device)
    if key == "random":
        return RandomConvFeatures(space, device=device)
    tell(f"loading the network of {key} features")
    return (InceptionFeatures if key == "inception" else DinoFeatures)(space, weights, device=device)


def _check_channels(space: ImageSpace) -> None:
    if space.channels not in (1, 3):
        raise InputError(f"space has {space.channels} channels; pretrained features need grey, palette or RGB images.")


def _resized(x: Tensor, size: int) -> Tensor:
    """Images (N, 1 or 3, H, W) in -1 .. 1 as (N, 3, size, size) in 0 .. 255."""
    x = ((x + 1) * 127.5).expand(-1, 3, -1, -1)
    # Bicubic interpolation overshoots at edges.
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 255)


def _library(name: str, what: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another version of PyTorch
        library = name.split(".")[0].replace("_", "-")
        raise MissingPretrained(f"{what} need {library}, which cannot be imported ({error}): {install}.") from error


def _weights_file(key: str, given: str | Path | None, places: Sequence[Path]) -> Path:
    """The file that was given, else the first that exists of its usual places."""
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"weights: there is no file {str(given)!r}; give a file with the weights of {key!r}.")
        return Path(given)
    for place in places:
        if place.is_file():
            return place
    raise MissingPretrained(
        f"no weights at {' or '.join(map(str, places))}, and nothing is downloaded; put the file there, or name one "
        f"as '{key}=FILE'."
    )


def _hub_files(repository: str) -> list[Path]:
    """Where the cache of the Hugging Face hub has the weights of a repository, or where it would have them."""
    hub = _library("huggingface_hub", "DINOv2 features", "pip install huggingface_hub")
    names = ("model.safetensors", "pytorch_model.bin")
    cached = [hub.try_to_load_from_cache(repository, name) for name in names]  # looks at the disk only
    found = [Path(file) for file in cached if isinstance(file, str)]
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / "main"
    return found or [folder / names[0]]


def _read_weights(file: Path, key: str) -> tuple[dict[str, Tensor], str]:
    """Named tensors, and the first 12 hex digits of the file's SHA-256. Nothing in the file is run."""
    content = file.read_bytes()  # once: what is hashed is what is loaded
    state: Any
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load

            state = load(content)
        else:
            state = read_plain(io.BytesIO(content))
    except Exception as error:  # a damaged or foreign file fails in a dozen ways
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words are advice to run the code
            line = "it holds something else"
        raise InputError(
            f"{file} cannot be read as plain tensors ({line}); give the weights of {key!r} as .safetensors, or as "
            "torch.save writes a state_dict."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} holds no state_dict of tensors; give the weights of {key!r}.")
    return dict(state), hashlib.sha256(content).hexdigest()[:12]


def _other_network(file: Path, key: str, error: RuntimeError) -> InputError:
    lines = [line.strip() for line in str(error).splitlines()[1:2]] or [str(error)]
    return InputError(f"{file} does not hold the weights of {key!r} ({lines[0][:200]}); give the file of that network.")
