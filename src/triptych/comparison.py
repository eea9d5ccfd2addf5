"""Several models under one budget, measured together and laid side by side."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych import api
from triptych.config import TrainConfig
from triptych.consoles import lasting_console
from triptych.data.dataset import Dataset
from triptych.errors import InputError, TrainingInterrupted, TrainingStopped, nearest_name, printable
from triptych.evaluation.columns import likelihood_keys
from triptych.evaluation.evaluate import HELD_OUT, Evaluation, check_counts
from triptych.evaluation.pretrained import check_extractors
from triptych.evaluation.results import Table
from triptych.evaluation.verdicts import verdicts
from triptych.models.base import Estimated, GenerativeModel
from triptych.models.registry import check_options, find_models, model_class
from triptych.report.content import PanelContent, ReportContent, TradeOff
from triptych.report.page import write_report
from triptych.report.table import print_table, write_table
from triptych.sizing import options_of_size
from triptych.spaces import ImageSpace, Space, space_from_dict
from triptych.training.files import Records, read_json, read_summary
from triptych.training.progress import duration
from triptych.training.run import environment, read_config

SHOWN = 64
"""Samples of each model on the page."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` and `compare_runs` return."""

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
    seeds: int = 1,
    parameters: int | None = None,
    conditional: bool = False,
    n_importance: int = 64,
    n_samples: int | None = None,
    extractors: Sequence[str] | None = None,
    discriminator: bool = True,
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
        seeds: Trainings of each model, with the seeds `seed`, `seed + 1`, ...; the table has their means, and how far
            they differ.
        parameters: Choose the width of each model so that it has about as many parameters (see `options_of_size`).
        conditional: Condition the models on the data's class labels.
        n_importance, n_samples, extractors, discriminator: As of `triptych.evaluation.evaluate.evaluate`.
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
    names = list(models)
    if not names:
        raise InputError("compare needs at least one model.")
    if len(set(names)) < len(names):
        raise InputError(f"models: {max(names, key=names.count)!r} is named twice; name each model once.")
    chosen = {name: dict((options or {}).get(name, {})) for name in names}
    if unused := [name for name in options or {} if name not in chosen]:
        raise InputError(f"options are for {unused[0]!r}, which is not compared; the models are {', '.join(names)}.")
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; train each model at least once.")
    check_counts(n_importance, n_samples)
    for key in train:
        if key not in api.TRAIN_FIELDS:
            raise InputError(f"There is no training setting {key!r}.{nearest_name(key, api.TRAIN_FIELDS)}")
    config = TrainConfig(**train)
    config.check_alone("compare")
    n_classes = data.n_classes if conditional else 0
    for name in names:
        check_options(name, chosen[name])
    for name in names:  # Whatever would stop a later model stops the comparison now, before hours of training.
        api.create_model(name, data.space, n_classes=n_classes, **chosen[name])
    check_extractors(extractors or (), data)
    console = lasting_console(quiet=not verbose)
    if parameters is not None:
        for name in names:
            sized = options_of_size(name, data, parameters, n_classes=n_classes, **chosen[name])
            chosen[name] |= sized.options
            console.print(sized.describe(name), markup=False, highlight=False, soft_wrap=True)
    wanted = Path("runs") / f"compare-{data.name}"
    folder = api.folder_of_several(out, wanted, resume=resume, what="comparison")
    runs: list[Path] = []
    stopped: dict[str, str] = {}
    for seed in range(config.seed, config.seed + seeds):
        for name in names:
            alone, among = Path(name), Path(f"seed-{seed}") / name
            run, other = (alone, among) if seeds == 1 else (among, alone)
            # Trainings are added to one, or one is looked at alone: what is there already is not trained again.
            if resume and seed == config.seed and not _is_begun(folder / run) and _is_begun(folder / other):
                run = other
            settings = {**config.to_dict(), "seed": seed, **chosen[name]}
            try:
                api.fit_one_of_several(
                    name, data, folder, str(run), resume=resume, conditional=conditional, verbose=verbose, **settings
                )
                runs.append(folder / run)
            except TrainingInterrupted:
                raise
            except TrainingStopped as stop:  # One model that diverges does not cost the others their row.
                which = name if seeds == 1 else f"{name} (seed {seed})"
                stopped[which] = str(stop)
                console.print(f"{which} stopped: {stop}", markup=False, highlight=False, soft_wrap=True)
    if not runs:
        raise TrainingStopped(" ".join(stopped.values()))
    comparison = compare_runs(
        runs,
        data,
        out=folder,
        n_importance=n_importance,
        n_samples=n_samples,
        extractors=extractors,
        discriminator=discriminator,
        seed=config.seed,
        device=config.device,
        command=command
        or _python_command(
            data,
            names,
            config,
            seeds=(seeds, 1),
            parameters=(parameters, None),
            conditional=(conditional, False),
            n_importance=(n_importance, 64),
            n_samples=(n_samples, None),
            extractors=(extractors, None),
            discriminator=(discriminator, True),
            options=(options or None, None),
        ),
        notes=tuple(f"{name} is missing: its training stopped. {why}" for name, why in stopped.items()),
        verbose=verbose,
    )
    if stopped:
        raise TrainingStopped(f"{', '.join(stopped)} stopped; the others are in {folder}. {' '.join(stopped.values())}")
    return comparison


def compare_runs(
    runs: Sequence[str | Path] | str | Path,
    data: Dataset | str | Path | None = None,
    *,
    out: str | Path,
    n_importance: int = 64,
    n_samples: int | None = None,
    extractors: Sequence[str] | None = None,
    discriminator: bool = True,
    seed: int | None = None,
    device: str = "auto",
    command: str = "",
    notes: tuple[str, ...] = (),
    verbose: bool = True,
) -> Comparison:
    """Measures the models of finished runs and writes table.json, table.csv and report.html; trains nothing.

    Runs that differ in nothing but their seed are trainings of one model, and make one row.

    Arguments:
        runs: Run folders of models trained on the same data, or folders of several, as of a comparison.
        data: The data, if it is no longer where the runs found it.
        out: Folder for the table and the page.
        n_importance, n_samples, extractors, discriminator: As of `triptych.evaluation.evaluate.evaluate`.
        seed: Of all draws; by default the lowest of the trainings, as `compare` has it.
        device: 'auto', 'cpu' or 'cuda'.
        command: The command that repeats this, for the page.
        notes: What else a reader must know.
        verbose: Show progress and the table.
    Raises:
        InputError: If a run is incomplete, or the runs were trained on different data.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is no folder; give another --out.")
    folders = [folder for run in runs for folder in _runs_in(Path(run))]
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None):
        raise InputError(f"{twice} is given twice; give each run once.")
    if seed is None:
        seed = min((_seed_of(folder) for folder in folders), default=0)
    notes += tuple(
        f"{folder} is missing: its training did not finish." for run in runs for folder in _unfinished_in(Path(run))
    )
    evaluation, groups, dataset = api.evaluate_runs(
        folders,
        data,
        n_importance=n_importance,
        n_samples=n_samples,
        extractors=extractors,
        discriminator=discriminator,
        seed=seed,
        device=device,
        verbose=verbose,
    )
    evaluation = dataclasses.replace(evaluation, notes=(*notes, *evaluation.notes))
    protocol = _protocol(groups, dataset, seed, complete=not notes)
    content = _content(evaluation, dataset, groups, command or _report_command(runs, out), protocol)
    out.mkdir(parents=True, exist_ok=True)
    write_table(evaluation.table, out)
    write_report(content, out / "report.html")
    console = lasting_console(quiet=not verbose)
    print_table(evaluation.table, console)
    console.print(printable(f"Report: {out / 'report.html'}"), markup=False, highlight=False, soft_wrap=True)
    return Comparison(evaluation.table, {name: api.load(several[0]) for name, several in groups.items()}, out)


def _is_begun(run: Path) -> bool:
    return (run / "config.json").is_file()


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, if it is a run; else the finished runs in it, and in its folders of seeds."""
    if _is_begun(folder) or not folder.is_dir():
        return [folder]
    found = _folders_with("summary.json", folder)
    if not found:
        raise InputError(f"{folder} holds no finished run; give run folders, or the folder of a comparison.")
    return found


def _unfinished_in(folder: Path) -> list[Path]:
    """What `_runs_in` leaves out: runs that were begun."""
    if _is_begun(folder):
        return []
    finished = _folders_with("summary.json", folder)
    return [run for run in _folders_with("config.json", folder) if run not in finished]


def _folders_with(file: str, folder: Path) -> list[Path]:
    """Folders in a comparison's folder that hold a file: by seed, and of one seed as the table there has them."""
    order = _order_in(folder)

    def place(run: Path) -> tuple[int, int, Path]:
        number = run.parent.name.removeprefix("seed-")
        seed = int(number) if run.parent != folder and number.isdecimal() else -1
        return seed, order.get(run.name, len(order)), run

    return sorted(
        {path.parent for pattern in ("*", "seed-*/*") for path in folder.glob(f"{pattern}/{file}")}, key=place
    )


def _order_in(folder: Path) -> dict[str, int]:
    """Places of the rows of a comparison's table by their names; empty where there is no table."""
    try:
        rows = read_json(folder / "table.json")["rows"]
        return {row["name"]: place for place, row in enumerate(rows)}
    except (InputError, KeyError, TypeError):
        return {}


def _seed_of(run: Path) -> int:
    """The seed of a training; 0 of what is no run, which measuring refuses."""
    try:
        seed = read_config(run)["train"]["seed"]
    except (InputError, KeyError, TypeError):
        return 0
    return seed if isinstance(seed, int) else 0


def _python_command(data: Dataset, names: list[str], config: TrainConfig, **others: tuple[Any, Any]) -> str:
    """The call that repeats a comparison; of the other arguments, each with its default, those that differ from it."""
    given = {"budget": config.budget, "seed": config.seed}
    given |= {key: value for key, (value, usual) in others.items() if value != usual}
    given |= {key: value for key, value in config.to_dict().items() if value != getattr(TrainConfig(), key)}
    read = ", ".join(f"{key}={value!r}" for key, value in data.source.items())
    source = repr(data.source.get("source", data.name)) if len(data.source) < 2 else f"triptych.load_data({read})"
    return f"triptych.compare({source}, {names!r}, {', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _report_command(runs: Sequence[str | Path], out: Path) -> str:
    return shlex.join(["triptych", "report", *map(str, runs), "--out", str(out)])


def _content(
    evaluation: Evaluation, data: Dataset, groups: Mapping[str, Sequence[Path]], command: str, protocol: tuple[str, ...]
) -> ReportContent:
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
        panels=tuple(_panel(name, evaluation, groups[name]) for name in names),
        held_out=held_out,
        held_out_neighbours=evaluation.neighbours.get(HELD_OUT),
        held_out_neighbours_in_features=evaluation.neighbours_in_features.get(HELD_OUT),
        data=facts,
        command=command,
        environment=environment(),
        protocol=protocol,
        notes=evaluation.notes,
        verdicts=verdicts(evaluation.table, data.space, evaluation.memory),
        per_class=evaluation.per_class,
        trade_offs=_trade_offs(evaluation.table, data),
    )


def _trade_offs(table: Table, data: Dataset) -> tuple[TradeOff, ...]:
    """Quality of samples, and likelihood, against the cost of training and of drawing."""
    keys = [metric.key for metric in table.metrics]
    distance = next((key for key in keys if key.startswith("fd_")), None)
    likelihood = next((key for key in reversed(likelihood_keys(data.space)) if key in keys), None)
    costs = [key for key in ("training_seconds", "samples_per_second") if key in keys]
    return tuple(TradeOff(quality, cost) for quality in (distance, likelihood) if quality for cost in costs)


def _panel(name: str, evaluation: Evaluation, runs: Sequence[Path]) -> PanelContent:
    run = runs[0]
    config, summary = read_config(run), read_summary(run)
    records = Records.read(run / "metrics.jsonl")
    space = space_from_dict(config["space"])
    shown = [record for record in records if record.get("event") == "samples"]
    film = [(record["elapsed_seconds"], _drawn(run, record, space)) for record in shown if _is_drawn(run, record)]
    facts = {
        "Parameters": f"{summary['n_parameters']:,}",
        "Training": f"{duration(summary['seconds'])}, {summary['steps']:,} steps, {summary['n_images_seen']:,} items",
        "Ended by": summary["reason"],
    }
    if len(runs) > 1:
        facts["Trainings"] = f"{len(runs)}; samples, curves and these facts are of the first, {run}"
    if config["options"]:
        facts["Options"] = ", ".join(f"{key}={value!r}" for key, value in config["options"].items())
    if summary["best_step"] is not None:
        facts["Weights"] = f"of step {summary['best_step']:,}, best on validation"
    if summary["findings"]:
        facts["What went wrong"] = "; ".join(summary["findings"])
    return PanelContent(
        name=name,
        title=model_class(config["model"]).__name__,
        panel=find_models()[config["model"]],
        samples=evaluation.samples[name][:SHOWN],
        film=tuple(film),
        curves=tuple(record for record in records if "event" not in record),
        reconstructions=evaluation.reconstructions.get(name),
        neighbours=evaluation.neighbours.get(name),
        neighbours_in_features=evaluation.neighbours_in_features.get(name),
        facts=facts,
    )


def _is_drawn(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether a record of samples names a file that is there, in the run's own folder of samples."""
    file = record.get("file")
    if not isinstance(file, str) or Path(file).parent != Path("samples"):
        return False
    return (run / file).is_file() and not any(path.is_symlink() for path in (run / "samples", run / file))


def _drawn(run: Path, record: Mapping[str, Any], space: Space) -> np.ndarray:
    """The samples of a record.

    Raises:
        InputError: If the file holds something else.
    """
    path = run / record["file"]
    try:
        samples = np.load(path, mmap_mode="r", allow_pickle=False)[:SHOWN]
        space.check(samples, "samples")
        return np.array(samples)
    except Exception as error:  # a damaged file makes NumPy raise nearly anything
        raise InputError(f"{path} does not hold samples of the run ({error}); remove it.") from None


def _protocol(groups: Mapping[str, Sequence[Path]], data: Dataset, seed: int, *, complete: bool) -> tuple[str, ...]:
    """How it was done, a sentence each; where it is not complete, the notes say what is missing."""
    configs = {name: [read_config(run)["train"] for run in runs] for name, runs in groups.items()}
    every = [train for several in configs.values() for train in several]
    budgets = list(dict.fromkeys(train["budget"] for train in every))
    seeds = {name: ", ".join(str(train["seed"]) for train in several) for name, several in configs.items()}
    same = len(set(seeds.values())) == 1
    which = f"with seed {seeds[next(iter(seeds))]}" if same else "; ".join(f"{n}: seed {s}" for n, s in seeds.items())
    protocol = [
        f"Every training had the same budget, {budgets[0]}, {which}."
        if len(budgets) == 1
        else "The trainings had different budgets, so their values do not compare: "
        + "; ".join(f"{name} {several[0]['budget']}" for name, several in configs.items())
        + "."
    ]
    defaults = dataclasses.asdict(TrainConfig())
    changed = {
        key: train[key]
        for train in every
        for key in defaults
        if key in train and train[key] != defaults[key] and key not in ("budget", "seed")
    }
    if changed:
        protocol.append(f"Settings that differ from the defaults: {changed}.")
    items = max(train["validation_items"] for train in every)
    estimated = [
        name for name, several in groups.items() if issubclass(model_class(read_config(several[0])["model"]), Estimated)
    ]
    if max(map(len, configs.values())) > 1:
        protocol.append(
            f"Rows are means over trainings with different seeds{', none left out' if complete else ''}. The first"
            " interval is over items; the second one, with its number of trainings, over these (Student's t)."
        )
    return (
        *protocol,
        "Weights are moving averages over the training; those that scored best on at most"
        f" {items:,} validation items were taken: by likelihood, or, where a model has none, by the"
        " distance of its samples to them.",
        *(
            [
                "Estimated from all training items at once, without averages or a choice by validation:"
                f" {', '.join(estimated)}. One such iteration is the least that a budget buys, however small it is."
            ]
            if estimated
            else []
        ),
        f"Everything in the table is measured on the whole held-out split of {len(data.test):,} items, looked at once;"
        f" all draws have the seed {seed}.",
    )
