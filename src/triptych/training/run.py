"""A run folder: what was trained, on what, how; and reading it back."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import triptych
from triptych.config import TrainConfig
from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models.base import GenerativeModel
from triptych.models.registry import TooLarge, at_most, create_model
from triptych.spaces import space_from_dict, space_to_dict
from triptych.training.files import read_json, read_weights

FORMAT = 1
MAX_CLASSES = 2**20
COMPARED = ("format", "model", "options", "space", "n_classes", "train", "data", "forked_from")
"""Parts of config.json that a resumed run must share with the one it goes on from."""
VERSIONS = ("triptych", "torch", "numpy")
"""What computes the weights: another version of one of these may give others."""


def run_config(
    model: str, options: Mapping[str, Any], n_classes: int, data: Dataset, train: TrainConfig
) -> dict[str, Any]:
    """What config.json holds: everything that decides the result, and what else a reader wants to know."""
    return {
        "format": FORMAT,
        "model": model,
        "options": dict(options),
        "space": space_to_dict(data.space),
        "n_classes": n_classes,
        "class_names": list(data.class_names or ()),
        "train": train.to_dict(),
        "data": {
            "name": data.name,
            "source": data.source,
            "checksum": data.checksum,
            **{f"n_{name}": len(split) for name, split in data.splits.items()},
        },
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Versions and hardware, in the order a reader wants them."""
    facts = {"triptych": triptych.__version__, "python": platform.python_version()}
    facts |= {name: metadata.version(name) for name in ("torch", "numpy", "lightning-fabric", "scikit-learn")}
    facts["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    facts["processor"] = f"{_processor()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        facts["git commit"] = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # No git, or not a clone: an installed package.
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def first_difference(saved: Any, given: Any, path: str = "") -> str | None:
    """Names the first field in which two configurations differ, with both values; None if they are equal."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in [*given, *(key for key in saved if key not in given)]:
            found = first_difference(saved.get(key), given.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    if isinstance(saved, list | tuple) and isinstance(given, list | tuple):
        saved, given = list(saved), list(given)
    return None if saved == given else f"{path} was {saved!r} and is now {given!r}"


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the weights, but for versions."""
    part = {key: config.get(key) for key in COMPARED}
    # The checksum says whether the data is the same; where it was read from may change.
    part["data"] = {key: value for key, value in config.get("data", {}).items() if key not in ("source", "name")}
    # These change neither the weights nor what is recorded of them, or by rounding alone.
    free = ("device", "devices", "nodes", "strategy", "accumulate", "checkpoint_every", "keep", "tensorboard")
    part["train"] = {key: value for key, value in config.get("train", {}).items() if key not in free}
    return part


def _versions(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config.get("environment", {}).get(name) for name in VERSIONS}


def check_same(saved: Mapping[str, Any], given: Mapping[str, Any], folder: Path, *, same_versions: bool = True) -> None:
    """Refuses to resume a run with another configuration or other data, or under other versions.

    Arguments:
        same_versions: Compare versions too; a run that is finished computes nothing more.
    Raises:
        InputError: Naming the first field that differs.
    """
    pairs = [(decisive(saved), decisive(given))]
    if same_versions:
        pairs += [({"environment": _versions(saved)}, {"environment": _versions(given)})]
    difference = next(filter(None, (first_difference(*pair) for pair in pairs)), None)
    if difference:
        raise InputError(
            f"{folder} cannot be resumed: {difference}. Give the same again, or begin a new run with its weights:"
            f" --fork {folder}"
        )


def other_hardware(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """A sentence if a run goes on elsewhere than it began, or with another number of threads; empty if not."""
    for part in ("processor", "gpu"):
        before, now = (config["environment"].get(part, "none") for config in (saved, given))
        if before != now:
            return f"Begun on {before}; on {now} the last digits of sums differ, so the result may be another one."
    return ""


def read_config(folder: Path) -> Any:
    """config.json of a run folder.

    Raises:
        InputError: If it is missing or unreadable.
    """
    runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if runs and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a run but holds some: {', '.join(runs)}. Give {folder / runs[0]}, for example."
        )
    config = read_json(folder / "config.json")
    if wrong := _wrong_in(config):
        raise InputError(
            f"{folder}/config.json is not the configuration of a run ({wrong}); restore it or train again."
        )
    return config


def _wrong_in(config: Any) -> str:
    """Which of the parts of config.json that every reader counts on is no such thing; empty if all are."""
    if not isinstance(config, dict):
        return f"it is {type(config).__name__}, no map"
    if config.get("format") != FORMAT:  # Only that much is known of those of other versions.
        return f"it has format {config.get('format')}; this version reads {FORMAT}"
    kinds = {"model": str, "options": dict, "space": dict, "n_classes": int, "class_names": list, "train": dict}
    for key, kind in (kinds | {"data": dict}).items():
        if not isinstance(config.get(key), kind):
            return f"{key} is {config.get(key)!r}"
    if not 0 <= config["n_classes"] <= MAX_CLASSES:
        return f"n_classes is {config['n_classes']}"
    if not all(isinstance(name, str) for name in config["class_names"]):
        return f"class_names is {config['class_names']!r}"
    if not isinstance(config.get("environment"), dict):
        return f"environment is {config.get('environment')!r}"
    if not isinstance(config.get("forked_from", ""), str):
        return f"forked_from is {config['forked_from']!r}"
    if not isinstance(config["data"].get("checksum"), str):
        return f"data.checksum is {config['data'].get('checksum')!r}"
    if lacking := next((field for field in ("budget", "seed", "validation_items") if field not in config["train"]), ""):
        return f"train has no {lacking}"
    try:
        TrainConfig(**config["train"])
    except (InputError, TypeError) as error:  # a value that does not fit; a field that there is none of
        return f"train: {error}"
    source = config["data"].get("source")
    if not isinstance(source, dict) or not isinstance(source.get("source", ""), str):
        return f"data.source is {source!r}"
    return ""


def read_run(folder: Path | str) -> tuple[GenerativeModel, dict[str, Any]]:
    """The trained model of a run folder, in evaluation mode, frozen, on the CPU; and its config.json.

    Raises:
        InputError: If the folder is missing or incomplete, or was written by another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no run folder {str(folder)!r}.")
    config = read_config(folder)
    state = read_weights(folder / "model.safetensors")
    try:
        # Weights are drawn only to be replaced, and never more than there are in the file.
        with torch.random.fork_rng(), at_most(sum(tensor.numel() for tensor in state.values())):
            space = space_from_dict(config["space"])
            model = create_model(config["model"], space, n_classes=config["n_classes"], **config["options"])
    except TooLarge as error:
        raise InputError(f"{folder}/model.safetensors does not fit config.json: {error}") from None
    except InputError as error:
        raise InputError(f"{folder}/config.json is of no use: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # what no option is checked for
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"{folder}/config.json is not the configuration of a run ({first}).") from None
    model.requires_grad_(False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"{folder}/model.safetensors does not fit config.json: {first}") from None
    model.eval()
    if not model.phases():  # Parameters of distributions, which not any numbers can be; the others take all.
        labels = torch.arange(model.n_classes) if model.n_classes else None
        try:
            model.sample(max(1, model.n_classes), labels=labels, generator=torch.Generator().manual_seed(0))
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            raise InputError(f"{folder}/model.safetensors holds no distribution ({first}); train again.") from None
    return model, config
