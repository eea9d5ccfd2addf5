"""Short trainings over a few settings, to choose those of a long one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych import api
from triptych.data.dataset import Dataset
from triptych.errors import InputError, TrainingInterrupted, TrainingStopped
from triptych.training.files import read_summary, write_json


@dataclass(frozen=True)
class Trial:
    """One short training."""

    settings: dict[str, Any]
    """What was varied, and to which values."""
    run: str
    """Name of its folder, in the sweep's."""
    score: float | None
    """The lowest validation score: nats per item, or for a GAN the distance of its samples. None if it stopped."""
    findings: tuple[str, ...] = ()
    """What went wrong."""

    def describe(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.settings.items())
        score = "stopped" if self.score is None else f"{self.score:.4g}"
        return f"{score:>10}  {words}" + (f"  ({len(self.findings)} findings)" if self.findings else "")


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns."""

    measure: str
    """What the scores are."""
    trials: tuple[Trial, ...]
    """The best first."""
    folder: Path
    """Where the runs and sweep.json are."""


def sweep(
    model: str,
    data: Dataset | str | Path | np.ndarray,
    over: Mapping[str, Sequence[Any]],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    conditional: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Sweep:
    """Trains a model with every combination of some settings, each for the same small budget, and ranks them.

    They are ranked by what chooses weights in a training: the validation likelihood or bound, or the distance between
    a GAN's samples and the validation items. What is best after a short training need not be after a long one: leave
    settings that trade speed for quality, as learning rates, to be judged with care.

    Arguments:
        model: One of `list_models()`.
        data: A data set, or whatever `load_data` reads.
        over: Values to try of each setting: options of the model, or training settings.
        out: Folder for the runs and sweep.json; by default the first free of `runs/sweep-<model>-<data>`, ...
        resume: Go on with the sweep in `out`: finished trainings are read, an interrupted one continues.
        conditional: As of `fit`, like all other settings.
    Raises:
        InputError: If a name or a value is wrong, `out` is taken, or nothing is there to rank by.
        TrainingStopped: On Ctrl-C; or if no training could go on to its end.
    """
    data = data if isinstance(data, Dataset) else api.load_data(data)
    combinations = combine(over)
    for key in over:
        if key in settings:
            raise InputError(f"{key} is both set and swept over; leave one out.")
    for changed in combinations:  # Whatever would stop a later training stops the sweep now.
        train, options = api.split_settings(model, {**settings, **changed})
        train.check_alone("sweep")
        api.create_model(model, data.space, n_classes=api.classes_of(data, conditional=conditional), **options)
    wanted = Path("runs") / f"sweep-{model}-{data.name}"
    folder = api.folder_of_several(out, wanted, resume=resume, what="sweep")
    trials, measure = [], ""
    for changed in combinations:
        name = ",".join(f"{key}={value}" for key, value in changed.items()).replace("/", "_")
        run = folder / name
        try:
            api.fit_one_of_several(
                model,
                data,
                folder,
                name,
                resume=resume,
                conditional=conditional,
                verbose=verbose,
                **settings,
                **changed,
            )
        except TrainingInterrupted:
            raise
        except TrainingStopped as stop:
            trials.append(Trial(changed, name, None, (str(stop),)))
            continue
        summary = read_summary(run)
        has_nll = summary["best_nll"] is not None
        score = summary["best_nll"] if has_nll else summary["best_distance"]
        if score is None:
            raise InputError(
                f"{model} on {data.name!r} has no validation score to rank by: it has neither a likelihood nor a game"
                " that is watched, its validation split is too small, or validations is 0."
            )
        measure = "validation nats per item" if has_nll else "distance of samples to the validation items"
        trials.append(Trial(changed, name, score, tuple(summary["findings"])))
    if not measure:
        raise TrainingStopped(f"Every training stopped. {' '.join(trials[0].findings)}")
    ranked = tuple(sorted(trials, key=lambda trial: (trial.score is None, trial.score)))
    found = Sweep(measure, ranked, folder)
    write_json(
        folder / "sweep.json",
        {
            "model": model,
            "data": data.name,
            "measure": measure,
            "conditional": conditional,
            "settings": settings,
            "trials": [dataclasses.asdict(trial) for trial in ranked],
        },
    )
    return found


def combine(over: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value of each setting.

    Raises:
        InputError: If there is nothing to vary, or a value is there twice.
    """
    for key, values in over.items():
        if not values:
            raise InputError(f"over: {key} has no values to try.")
        if len({repr(value) for value in values}) < len(values):
            raise InputError(f"over: {key} has a value twice.")
    if not over:
        raise InputError("over: name a setting and the values to try, as gamma=0.1,1,10.")
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
