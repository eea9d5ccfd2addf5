"""Several models under one budget, measured together and laid side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from triptych import api
from triptych.config import TrainConfig
from triptych.data.dataset import Dataset
from triptych.errors import InputError, TrainingInterrupted, TrainingStopped, nearest_name
from triptych.evaluation.evaluate import HELD_OUT, Evaluation
from triptych.evaluation.results import Table
from triptych.models.base import GenerativeModel
from triptych.models.registry import find_models, model_class
from triptych.report.content import PanelContent, ReportContent
from triptych.report.page import write_report
from triptych.report.table import print_table, write_table
from triptych.spaces import ImageSpace
from triptych.training.files import Records, read_json
from triptych.training.progress import duration
from triptych.training.run import environment

SHOWN = 64
"""Samples of each model on the page."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns."""

    table: Table
    models: dict[str, GenerativeModel]
    """The trained models, in evaluation mode on the CPU."""
    folder: Path
    """Where the runs, table.json, table.csv and report.html are."""


def compare(
    data: Dataset | str | Path | np.ndarray,
    models: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    conditional: bool = False,
    n_importance: int = 64,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    command: str = "",
    verbose: bool = True,
    **train: Any,
) -> Comparison:
    """Trains models one after the other under the same budget, measures them on the held-out split and writes a report.

    Arguments:
        data: A data set, or whatever `load_data` reads.
        models: Names of models, each once; by default pixel_cnn, vae and gan, or for points gaussian_mixture, vae and
            gan.
        out: Folder for everything; by default the first free of `runs/compare-<data>`, ...
        resume: Go on with the comparison in `out`: finished models are kept, an interrupted one continues.
        conditional: Condition the models on the data's class labels.
        n_importance: Samples of the importance-weighted bound; 0 for the ELBO alone.
        options: Options of each model, by its name.
        command: The command that repeats the comparison, for the report.
        verbose: Show progress and the table.
        train: Training settings, the same for every model (fields of `triptych.config.TrainConfig`).
    Raises:
        InputError: If a name or value is wrong, or `out` is taken.
        TrainingStopped: On Ctrl-C; or, after the report of the others, if a training could not go on.
    """
    data = data if isinstance(data, Dataset) else api.load_data(data)
    if models is None:
        models = ("pixel_cnn" if isinstance(data.space, ImageSpace) else "gaussian_mixture", "vae", "gan")
    names, options = list(models), options or {}
    if not names:
        raise InputError("compare needs at least one model.")
    if len(set(names)) < len(names):
        raise InputError(f"models: {max(names, key=names.count)!r} is named twice; name each model once.")
    for key in train:
        if key not in api.TRAIN_FIELDS:
            raise InputError(f"There is no training setting {key!r}.{nearest_name(key, api.TRAIN_FIELDS)}")
    config = TrainConfig(**train)
    for name in names:  # Whatever would stop a later model stops the comparison now, before hours of training.
        api.create_model(name, data.space, n_classes=data.n_classes if conditional else 0, **options.get(name, {}))
    wanted = Path("runs") / f"compare-{data.name}"
    folder = api.folder_of_several(out, wanted, resume=resume, what="comparison")
    console = Console(quiet=not verbose)
    trained: dict[str, GenerativeModel] = {}
    stopped: dict[str, str] = {}
    for name in names:
        try:
            trained[name] = api.fit_one_of_several(
                name,
                data,
                folder,
                name,
                resume=resume,
                conditional=conditional,
                verbose=verbose,
                **config.to_dict(),
                **options.get(name, {}),
            )
        except TrainingInterrupted:
            raise
        except TrainingStopped as stop:  # One model that diverges does not cost the others their row.
            stopped[name] = str(stop)
            console.print(f"{name} stopped: {stop}", markup=False, highlight=False, soft_wrap=True)
    if not trained:
        raise TrainingStopped(" ".join(stopped.values()))
    evaluation = api.measure(
        trained, data, n_importance=n_importance, seed=config.seed, verbose=verbose, device=config.device
    )
    notes = tuple(f"{name} is missing: its training stopped. {why}" for name, why in stopped.items())
    evaluation = dataclasses.replace(evaluation, notes=(*notes, *evaluation.notes))
    command = command or _python_command(data, names, config)
    content = _content(evaluation, data, folder, config, command)
    write_table(evaluation.table, folder)
    write_report(content, folder / "report.html")
    print_table(evaluation.table, console)
    console.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise TrainingStopped(f"{', '.join(stopped)} stopped; the others are in {folder}. {' '.join(stopped.values())}")
    return Comparison(evaluation.table, trained, folder)


def _python_command(data: Dataset, names: list[str], config: TrainConfig) -> str:
    source = data.source.get("source", data.name)
    return f"triptych.compare({source!r}, {names!r}, budget={config.budget!r}, seed={config.seed})"


def _content(evaluation: Evaluation, data: Dataset, folder: Path, config: TrainConfig, command: str) -> ReportContent:
    """Gathers what the page shows from the evaluation and the run folders."""
    names = list(evaluation.samples)
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    facts = {"Source": str(data.source.get("source", data.name)), "Space": str(data.space), "Items": sizes}
    if data.class_names:
        facts["Classes"] = f"{data.n_classes}: {', '.join(data.class_names[:12])}{', …' if data.n_classes > 12 else ''}"
    if data.repaired:
        facts["Repaired"] = " ".join(data.repaired)
    facts["Checksum"] = data.checksum
    # Spread evenly: the splits of class folders are sorted by class.
    held_out = data.test.read(np.linspace(0, len(data.test) - 1, min(SHOWN, len(data.test))).astype(np.int64))[0]
    return ReportContent(
        title=f"{data.name}: {', '.join(names)}",
        space=data.space,
        table=evaluation.table,
        panels=tuple(_panel(name, evaluation, folder / name) for name in names),
        held_out=held_out,
        held_out_neighbours=evaluation.neighbours.get(HELD_OUT),
        held_out_neighbours_in_features=evaluation.neighbours_in_features.get(HELD_OUT),
        data=facts,
        command=command,
        environment=environment(),
        protocol=_protocol(config, data),
        notes=evaluation.notes,
    )


def _panel(name: str, evaluation: Evaluation, run: Path) -> PanelContent:
    config, summary = read_json(run / "config.json"), read_json(run / "summary.json")
    records = Records.read(run / "metrics.jsonl")
    film = [
        (record["elapsed_seconds"], np.load(run / record["file"], allow_pickle=False))
        for record in records
        if record.get("event") == "samples"
    ]
    facts = {
        "Parameters": f"{summary['n_parameters']:,}",
        "Training": f"{duration(summary['seconds'])}, {summary['steps']:,} steps, {summary['n_images_seen']:,} items",
        "Ended by": summary["reason"],
    }
    if config["options"]:
        facts["Options"] = ", ".join(f"{key}={value!r}" for key, value in config["options"].items())
    if summary["best_step"] is not None:
        facts["Weights"] = f"of step {summary['best_step']:,}, best on validation"
    if summary["findings"]:
        facts["What went wrong"] = "; ".join(summary["findings"])
    return PanelContent(
        name=name,
        title=model_class(name).__name__,
        panel=find_models()[name],
        samples=evaluation.samples[name][:SHOWN],
        film=tuple(film),
        curves=tuple(record for record in records if "event" not in record),
        reconstructions=evaluation.reconstructions.get(name),
        neighbours=evaluation.neighbours.get(name),
        neighbours_in_features=evaluation.neighbours_in_features.get(name),
        facts=facts,
    )


def _protocol(config: TrainConfig, data: Dataset) -> tuple[str, ...]:
    defaults = TrainConfig()
    changed = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if value != getattr(defaults, key) and key not in ("budget", "seed")
    }
    return (
        f"Every model had the same budget, {config.budget}, seed {config.seed}, one after the other on this machine.",
        *((f"Settings that differ from the defaults: {changed}.",) if changed else ()),
        "Weights are moving averages over the training; those that scored best on at most"
        f" {config.validation_items:,} validation items were taken: by likelihood, or, where a model has none, by the"
        " distance of its samples to them.",
        f"Everything in the table is measured on the whole held-out split of {len(data.test):,} items, looked at once.",
    )
