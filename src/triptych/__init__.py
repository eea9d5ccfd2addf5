"""Triptych: the three families of deep generative models, trained, measured and laid side by side.

Names are imported when first used, so that `import triptych` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.api import (
        create_model,
        estimate,
        evaluate,
        evaluate_samples,
        fit,
        fork,
        list_models,
        load,
        load_data,
        resume,
        sample,
        score,
    )
    from triptych.comparison import compare, compare_runs
    from triptych.completion import complete
    from triptych.data.download import download_data
    from triptych.errors import InputError, TrainingStopped
    from triptych.latent_use import encode, interpolate, reconstruct, traverse
    from triptych.spaces import ImageSpace, PointSpace
    from triptych.sweeping import sweep
    from triptych.translation import translate

__version__ = "0.1.0"

__all__ = [
    "ImageSpace",
    "InputError",
    "PointSpace",
    "TrainingStopped",
    "compare",
    "compare_runs",
    "complete",
    "create_model",
    "download_data",
    "encode",
    "estimate",
    "evaluate",
    "evaluate_samples",
    "fit",
    "fork",
    "interpolate",
    "list_models",
    "load",
    "load_data",
    "reconstruct",
    "resume",
    "sample",
    "score",
    "sweep",
    "translate",
    "traverse",
]

_HOME = {
    "ImageSpace": "triptych.spaces",
    "PointSpace": "triptych.spaces",
    "InputError": "triptych.errors",
    "TrainingStopped": "triptych.errors",
    "compare": "triptych.comparison",
    "compare_runs": "triptych.comparison",
    "complete": "triptych.completion",
    "download_data": "triptych.data.download",
    "encode": "triptych.latent_use",
    "interpolate": "triptych.latent_use",
    "reconstruct": "triptych.latent_use",
    "traverse": "triptych.latent_use",
    "sweep": "triptych.sweeping",
    "translate": "triptych.translation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'triptych' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME.get(name, "triptych.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
