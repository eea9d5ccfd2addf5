"""Pretrained extractors: weights are read safely, nothing is downloaded, and extractors are found by name."""

import hashlib
import importlib.util
import pickle
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError
from triptych.evaluation.features import AutoencoderFeatures, ClassifierFeatures, Coordinates, RandomConvFeatures
from triptych.evaluation.pretrained import (
    DINO_MODEL,
    INCEPTION_FILE,
    DinoFeatures,
    InceptionFeatures,
    MissingPretrained,
    _read_weights,
    check_extractors,
    find_extractors,
)
from triptych.spaces import ImageSpace, PointSpace

SPACE = ImageSpace(1, 8, 8, 17)
COLOUR = ImageSpace(3, 8, 6)


class SmallInception(nn.Module):
    """Loads its file as torch-fidelity does: with a pickle that can run code."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2048)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 299, 299)
        return self.layer(x.float().mean(dim=(2, 3)))


class SmallViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 384)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 224, 224)
        return self.layer(x.mean(dim=(2, 3)))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small stand-ins for the libraries, with empty caches in a folder of the test: what is tested is our side."""
    fid = ModuleType("torchmetrics.image.fid")
    fid.NoTrainInceptionV3 = SmallInception  # type: ignore[attr-defined]
    timm = ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, num_classes: int, dynamic_img_size: bool) -> nn.Module:
        assert (name, pretrained, num_classes, dynamic_img_size) == (DINO_MODEL, False, 0, True)
        return SmallViT()

    timm.create_model = create_model  # type: ignore[attr-defined]
    hub = ModuleType("huggingface_hub")

    def try_to_load_from_cache(repository: str, name: str) -> str | None:
        file = tmp_path / "hub" / repository.replace("/", "--") / name
        return str(file) if file.exists() else None

    hub.try_to_load_from_cache = try_to_load_from_cache  # type: ignore[attr-defined]
    hub.constants = SimpleNamespace(HF_HUB_CACHE=str(tmp_path / "hub"))  # type: ignore[attr-defined]
    for module in (ModuleType("torch_fidelity"), fid, timm, hub):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


def state(network: str, seed: int = 0) -> dict[str, Tensor]:
    n_features = {"inception": 2048, "dinov2": 384}[network]
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(n_features, 3, generator=generator),
        "layer.bias": torch.randn(n_features, generator=generator),
    }


def some_images(space: ImageSpace, n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, space.levels, size=(n, *space.shape)).astype(np.uint8)


@pytest.mark.parametrize(
    ("extractor", "library", "install"),
    [(InceptionFeatures, "torch_fidelity", "torch-fidelity"), (DinoFeatures, "timm", "timm")],
)
def test_a_missing_library_is_named(
    extractor: Any, library: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(library) is not None:
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(MissingPretrained, match=f"need {install}.*pip install .*{install}") as caught:
        extractor(SPACE)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_looked_for_and_not_downloaded(libraries: Path) -> None:
    with pytest.raises(MissingPretrained, match=f"{INCEPTION_FILE}.*nothing is downloaded.*inception=FILE"):
        InceptionFeatures(SPACE)
    with pytest.raises(MissingPretrained, match=r"hub.*model\.safetensors.*nothing is downloaded.*dinov2=FILE"):
        DinoFeatures(SPACE)
    for extractor in (InceptionFeatures, DinoFeatures):
        with pytest.raises(InputError, match=r"no file 'gone\.pth'"):
            extractor(SPACE, "gone.pth")


def test_weights_in_the_usual_places_are_found(libraries: Path) -> None:
    inception = libraries / "torch" / "checkpoints" / INCEPTION_FILE
    inception.parent.mkdir(parents=True)
    torch.save(state("inception"), inception)
    assert InceptionFeatures(SPACE).name.startswith("inception-v3-fid-")
    dino = libraries / "hub" / f"timm--{DINO_MODEL}" / "model.safetensors"
    dino.parent.mkdir(parents=True)
    save_file(state("dinov2"), dino)
    assert DinoFeatures(SPACE).name.startswith("dinov2-vit-s14-")


def test_names_carry_the_weights(libraries: Path) -> None:
    first, second = libraries / "first.safetensors", libraries / "second.safetensors"
    save_file(state("dinov2"), first)
    save_file(state("dinov2", seed=1), second)
    extractor = DinoFeatures(SPACE, first)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()[:12]
    assert extractor.name == f"dinov2-vit-s14-{digest}"
    assert digest in extractor.description
    assert "bicubic" in extractor.description
    assert DinoFeatures(SPACE, second).name != extractor.name


@pytest.mark.parametrize("network", ["inception", "dinov2"])
def test_images_are_seen_in_rgb(network: str, libraries: Path) -> None:
    """The stand-ins average each channel over the image, so their features are known."""
    file = libraries / "weights.pth"
    weights = state(network)
    torch.save(weights if network == "inception" else weights | {"mask_token": torch.zeros(1, 384)}, file)
    extractor = {"inception": InceptionFeatures, "dinov2": DinoFeatures}[network]

    def expected(rgb: np.ndarray) -> np.ndarray:
        if network == "dinov2":
            rgb = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return rgb @ weights["layer.weight"].double().numpy().T + weights["layer.bias"].double().numpy()

    # One colour each, which no resizing changes.
    colours = np.array([[0, 0, 0], [255, 0, 51], [102, 204, 255]], dtype=np.uint8)
    flat = np.broadcast_to(colours[:, :, None, None], (3, *COLOUR.shape)).copy()
    whole = extractor(COLOUR, file)(flat)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole, expected(colours.astype(float)), rtol=1e-3, atol=1e-2)
    palette = ImageSpace(1, 8, 6, 3, palette=tuple(map(tuple, colours.tolist())))
    indices = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None], (3, 1, 8, 6)).copy()
    np.testing.assert_allclose(extractor(palette, file)(indices), whole, rtol=1e-3, atol=1e-2)
    grey = ImageSpace(1, 8, 6, 6)  # level 5 is white
    greys = expected(np.array([[0.0] * 3, [51.0] * 3, [102.0] * 3]))
    np.testing.assert_allclose(extractor(grey, file)(indices), greys, rtol=1e-3, atol=1e-2)
    with pytest.raises(InputError, match="5 channels"):
        extractor(ImageSpace(5, 8, 8), file)


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_file_of_weights_cannot_run_code(libraries: Path) -> None:
    mark = libraries / "trapped"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works
    mark.unlink()
    for legacy in (False, True):
        file = libraries / "trap.pth"
        torch.save(state("inception") | {"layer.trap": Trap(mark)}, file, _use_new_zipfile_serialization=not legacy)
        for extractor in (InceptionFeatures, DinoFeatures):
            with pytest.raises(InputError, match="cannot be read as plain tensors"):
                extractor(SPACE, file)
    assert not mark.exists()


class Room:
    """Unpickled, it takes a gibibyte."""

    def __reduce__(self) -> Any:
        return bytearray, (2**30,)


def test_a_file_of_weights_cannot_take_more_memory_than_it_has_bytes(libraries: Path) -> None:
    for legacy in (False, True):
        file = libraries / "greedy.pth"
        torch.save(state("inception") | {"more": Room()}, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match="it holds a bytearray"):
            InceptionFeatures(SPACE, file)
    torch.save(state("inception"), libraries / "plain.pth")
    with zipfile.ZipFile(libraries / "plain.pth") as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(libraries / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name, content in members.items():
            deflated.writestr(name, content)
        deflated.writestr(next(iter(members)).partition("/")[0] + "/data/99", bytes(2**24))
    with pytest.raises(InputError, match="it is compressed"):
        InceptionFeatures(SPACE, libraries / "deflated.pth")


def test_weights_of_both_formats_are_read(libraries: Path) -> None:
    for legacy in (False, True):
        torch.save(state("inception"), libraries / "weights.pth", _use_new_zipfile_serialization=not legacy)
        read, _ = _read_weights(libraries / "weights.pth", "inception")
        assert read.keys() == state("inception").keys()
        assert all(torch.equal(tensor, read[name]) for name, tensor in state("inception").items())


def test_other_files_are_refused(libraries: Path) -> None:
    save_file(state("inception"), libraries / "inception.safetensors")
    torch.save([torch.zeros(3)], libraries / "list.pth")
    torch.save({"epoch": 3}, libraries / "numbers.pth")
    (libraries / "text.pth").write_text("not weights")
    (libraries / "text.safetensors").write_text("not weights")
    (libraries / "empty.pth").touch()
    with pytest.raises(InputError, match="does not hold the weights of 'dinov2'"):
        DinoFeatures(SPACE, libraries / "inception.safetensors")
    for name in ("list.pth", "numbers.pth"):
        with pytest.raises(InputError, match="no state_dict"):
            InceptionFeatures(SPACE, libraries / name)
    for name in ("text.pth", "text.safetensors", "empty.pth"):
        with pytest.raises(InputError, match="cannot be read as plain tensors") as caught:
            InceptionFeatures(SPACE, libraries / name)
        assert "\n" not in str(caught.value)


def inception_weights() -> dict[str, Tensor]:
    """Random ones through which images stay different: the default ones would shrink them to nothing."""
    fid = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:  # the library loads weights at once; here there are none yet
        patch.setattr(fid, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fid.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fid.FeatureExtractorInceptionV3("random", ["2048"])
    return {k: v * 6**0.5 if k.endswith("conv.weight") else v for k, v in network.state_dict().items()}


def dino_weights() -> dict[str, Tensor]:
    timm = pytest.importorskip("timm")
    weights = timm.create_model(DINO_MODEL, pretrained=False, num_classes=0).state_dict()
    weights = {k: torch.ones_like(v) if k.endswith("gamma") else v for k, v in weights.items()}
    return {k: 3 * v if v.ndim == 2 else v for k, v in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize("space", [SPACE, ImageSpace(3, 40, 24)], ids=str)
@pytest.mark.parametrize(
    ("extractor", "weights"), [(InceptionFeatures, inception_weights), (DinoFeatures, dino_weights)]
)
def test_the_real_networks_run(extractor: Any, weights: Any, space: ImageSpace, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(weights(), file)
    state_before = torch.get_rng_state()
    made = extractor(space, file)
    assert torch.equal(torch.get_rng_state(), state_before)
    items = some_images(space, 4)
    whole = made(items)
    assert whole.shape == (4, made.n_features)
    deviation = whole.std(axis=0).mean()
    assert deviation > 0.01 * np.abs(whole).mean()
    np.testing.assert_allclose(np.concatenate([made(items[:1]), made(items[1:])]), whole, atol=1e-3 * deviation)


@pytest.mark.slow
def test_inception_is_torch_fidelity_s_own(tmp_path: Path) -> None:
    """Images of 299x299 are not resized, so that the features are those of the library's own extractor."""
    fid = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    file = tmp_path / "weights.pth"
    torch.save(inception_weights(), file)
    space = ImageSpace(3, 299, 299)
    items = some_images(space, 2)
    own = fid.FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(file))
    expected = own(torch.from_numpy(items))[0].double().numpy()
    np.testing.assert_allclose(InceptionFeatures(space, file)(items), expected, atol=1e-3 * expected.std(axis=0).mean())


@pytest.mark.slow
def test_dinov2_is_timm_s_own(tmp_path: Path) -> None:
    """timm interpolates the positions when it loads the weights for another size; here each batch does."""
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.safetensors"
    save_file(dino_weights(), file)
    overlay = {"file": str(file)}
    own = timm.create_model(
        DINO_MODEL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=224
    ).eval()
    mean, deviation = (torch.tensor(own.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    space = ImageSpace(3, 224, 224)
    items = some_images(space, 2)
    with torch.no_grad():
        expected = own((torch.from_numpy(items) / 255 - mean) / deviation).double().numpy()
    np.testing.assert_allclose(DinoFeatures(space, file)(items), expected, atol=1e-3 * expected.std(axis=0).mean())


def small_set(labels: bool = True) -> Dataset:
    items = some_images(SPACE, 12)
    split = Split(items, np.arange(12) % 2 if labels else None)
    return Dataset("small", SPACE, split, split, split, ("even", "odd") if labels else None)


def points() -> Dataset:
    split = Split(np.zeros((5, 2), dtype=np.float32))
    return Dataset("points", PointSpace(2), split, split, split)


def found(names: list[str], dataset: Dataset, seed: int = 0) -> tuple[list[Any], tuple[str, ...], list[str]]:
    told: list[str] = []
    extractors, notes = find_extractors(names, dataset, seed=seed, device="cpu", tell=told.append)
    return list(extractors), notes, told


def test_extractors_are_found_in_order(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (ClassifierFeatures, AutoencoderFeatures):
        train = cls.train
        monkeypatch.setattr(cls, "train", lambda data, train=train, **options: train(data, max_steps=2, **options))
    save_file(state("dinov2"), libraries / "d.safetensors")
    dino = f"dinov2={libraries / 'd.safetensors'}"
    extractors, notes, told = found(["autoencoder", "random", dino, "classifier"], small_set())
    assert [type(e) for e in extractors] == [AutoencoderFeatures, RandomConvFeatures, DinoFeatures, ClassifierFeatures]
    assert [e.key for e in extractors] == ["autoencoder", "random", "dinov2", "classifier"]
    assert notes == ()
    assert len(told) == 3
    items = small_set().test.read()[0]
    again, other = found(["autoencoder"], small_set())[0], found(["autoencoder"], small_set(), seed=1)[0]
    np.testing.assert_array_equal(again[0](items), extractors[0](items))
    assert not np.allclose(other[0](items), extractors[0](items))
    assert [type(e) for e in found(["coordinates"], points())[0]] == [Coordinates]


def test_missing_pretrained_extractors_become_notes(libraries: Path) -> None:
    extractors, notes, _ = found(["inception", "random", "dinov2"], small_set())
    assert [e.key for e in extractors] == ["random"]
    assert [note.split(":")[0] for note in notes] == ["There are no inception features", "There are no dinov2 features"]


def test_a_library_that_cannot_be_imported_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    extractors, notes, _ = found(["dinov2"], small_set())
    assert extractors == []
    assert "pip install timm" in notes[0]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["randm"], "no 'randm'. Did you mean 'random'"),
        (["random", "random"], "'random' is named twice"),
        (["inception", "inception=x.pth"], "'inception' is named twice"),
        (["random=x.pth"], "no file of weights"),
        (["dinov2=gone.pth"], "no file 'gone.pth'"),
        (["dinov2="], "write 'dinov2=FILE'"),
        (["coordinates"], "for points"),
        (["classifier"], "needs labels.*'autoencoder'"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_anything_is_trained(names: list[str], match: str) -> None:
    bare = small_set(labels=False)
    with pytest.raises(InputError, match=match):
        check_extractors(names, bare)
    with pytest.raises(InputError, match=match):
        found(["autoencoder", *names], bare)


@pytest.mark.parametrize("name", ["random", "classifier", "autoencoder", "inception", "dinov2"])
def test_features_of_images_do_not_fit_points(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is for images.*'coordinates'"):
        check_extractors([name], points())
