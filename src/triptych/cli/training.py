"""Verbs that train: fit, compare, sweep; and what there is to train, models and data."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from triptych.cli.words import (
    Settings,
    Source,
    load_source,
    parse_settings,
    parse_values,
    say,
    split_words,
)
from triptych.config import Budget, DataConfig, MeasureConfig, TrainConfig
from triptych.errors import InputError


def _options_of(model: str, settings: Settings) -> dict[str, Any]:
    """The options that `--set` gives a model.

    Raises:
        InputError: If it has no such option.
    """
    from triptych.models.registry import check_options

    options = parse_settings(settings)
    if flag := next((field.name for field in fields(TrainConfig) if field.name in options), None):
        raise InputError(
            f"{flag} is no option of a model but a setting of the training; give --{flag.replace('_', '-')}."
        )
    check_options(model, options)
    return options


@dataclass(frozen=True)
class Fit:
    """Train a model and leave a run folder: triptych fit vae digits --budget 60s"""

    model: Annotated[Positional[str | None], arg(metavar="MODEL")] = None
    """One of `triptych models`."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """What to learn: digits, ring8, grid25, moons, mixture1d, or a folder, zip, npz, npy or IDX file."""
    out: Path | None = None
    """Run folder; by default runs/MODEL-SOURCE."""
    resume: Path | None = None
    """Go on with this run folder, with the settings and data it was begun with."""
    auto_resume: bool = False
    """Go on with --out if a run was begun there, and begin it otherwise: for schedulers, which repeat a command."""
    fork: Path | None = None
    """Begin a new run with the weights of this one: its model and options, its data unless a source is given."""
    dry_run: bool = False
    """Say what the training would take in time, memory and disk, after a few trial steps; write nothing."""
    conditional: bool = False
    """Condition the model on the class labels."""
    settings: Settings = ()
    """Options of the model (`triptych models MODEL` lists them), as hidden=64 n_blocks=5."""
    train: OmitArgPrefixes[TrainConfig] = TrainConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api

        if self.resume is not None:
            given = Fit(resume=self.resume)
            if self != given:
                raise InputError("--resume takes model, data and settings from the run folder; give nothing else.")
            api.resume(self.resume)
            return
        if self.fork is not None:
            self._fork(self.fork)
            return
        if self.model is None or self.source is None:
            raise InputError(
                "fit needs a model and a source: triptych fit MODEL SOURCE, or a run to --resume or to --fork."
            )
        options = _options_of(self.model, self.settings)  # A wrong one is told before a large set is read.
        data = load_source(self.source, self.data)
        if self.dry_run:
            found = api.estimate(self.model, data, conditional=self.conditional, **self.train.to_dict(), **options)
            what = f"{self.model} on {data.name}"
            none = "an algorithm of its own estimates it, until it converges: there are no steps to try."
            from triptych.training.devices import is_first

            if is_first():  # Several processes try the steps together; one tells.
                say(f"{what}: {found.describe(Budget.parse(self.train.budget)) if found else none}")
            return
        resume: Literal["auto", False] = "auto" if self.auto_resume else False
        api.fit(
            self.model,
            data,
            out=self.out,
            resume=resume,
            conditional=self.conditional,
            **self.train.to_dict(),
            **options,
        )

    def _fork(self, run: Path) -> None:
        from triptych import api
        from triptych.training.run import read_config

        model = read_config(run).get("model")
        if self.model not in (None, model) or self.conditional:
            raise InputError(f"--fork {run} takes the model from there, {model}; give no other, and no --conditional.")
        if self.source is None and self.data != DataConfig():
            raise InputError(f"--fork {run} takes the data from the run; give the source whose settings these are.")
        data = None if self.source is None else load_source(self.source, self.data)
        api.fork(run, data, out=self.out, **self.train.to_dict(), **_options_of(model, self.settings))


@dataclass(frozen=True)
class Compare:
    """Train several models under one budget, measure them and lay them side by side: triptych compare digits"""

    source: Source
    """What to learn: digits, ring8, grid25, moons, mixture1d, or a folder, zip, npz, npy or IDX file."""
    models: Annotated[tuple[str, ...] | None, arg(metavar="MODEL,MODEL,...")] = None
    """Models, with commas or spaces between; by default pixel_cnn,vae,gan, or for points gaussian_mixture,vae,gan."""
    out: Path | None = None
    """Folder for the runs, table.json, table.csv and report.html; by default runs/compare-SOURCE."""
    resume: bool = False
    """Go on with the comparison in --out: finished models are kept, an interrupted one continues."""
    conditional: bool = False
    """Condition the models on the class labels."""
    seeds: int = 1
    """Trainings of each model, with the seeds --seed, --seed + 1, ...: the table has means, and how far they differ."""
    parameters: int | None = None
    """Bring every model to about as many parameters, by its width; without it each has its default one."""
    settings: Settings = ()
    """Options of a model, as vae.n_latents=8 gan.gamma=0.5."""
    measure: OmitArgPrefixes[MeasureConfig] = MeasureConfig()
    train: OmitArgPrefixes[TrainConfig] = TrainConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych.comparison import compare
        from triptych.models.registry import model_options

        names = self.names
        for name in names or ():
            model_options(name)
        options: dict[str, dict[str, Any]] = {}
        for key, value in parse_settings(self.settings).items():
            model, dot, option = key.partition(".")
            if not dot or (names is not None and model not in names):
                raise InputError(f"--set {key}={value}: write MODEL.OPTION=VALUE, MODEL one of those compared.")
            options.setdefault(model, {})[option] = value
        compare(
            load_source(self.source, self.data),
            names,
            out=self.out,
            resume=self.resume,
            conditional=self.conditional,
            seeds=self.seeds,
            parameters=self.parameters,
            options=options,
            command=shlex.join(["triptych", *sys.argv[1:]]),
            **self.measure.to_arguments(),
            **self.train.to_dict(),
        )

    @property
    def names(self) -> list[str] | None:
        """The models, however they were separated; None for the default ones."""
        return None if self.models is None else [name for word in self.models for name in word.split(",") if name]


@dataclass(frozen=True)
class Sweep:
    """Try settings in short trainings and rank them: triptych sweep gan digits --over gamma=0.1,1,10 --budget 30s"""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """One of `triptych models`."""
    source: Source
    """What to learn: digits, ring8, grid25, moons, mixture1d, or a folder, zip, npz, npy or IDX file."""
    over: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE,VALUE,...")]
    """Settings to vary, of the model or of the training, each with the values to try; every combination is trained."""
    out: Path | None = None
    """Folder for the runs and sweep.json; by default runs/sweep-MODEL-SOURCE."""
    resume: bool = False
    """Go on with the sweep in --out: finished trainings are kept, an interrupted one continues."""
    conditional: bool = False
    """Condition the model on the class labels."""
    settings: Settings = ()
    """Options of the model that all trainings share, as hidden=64."""
    train: OmitArgPrefixes[TrainConfig] = TrainConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych.models.registry import model_options
        from triptych.sweeping import sweep

        model_options(self.model)
        over = {key: parse_values(text) for key, text in split_words(self.over, "--over").items()}
        fixed = parse_settings(self.settings)
        usual = TrainConfig().to_dict()
        given = {key: value for key, value in self.train.to_dict().items() if value != usual[key]}
        if wrong := next((key for key in fixed if key in usual), None):
            raise InputError(f"--set {wrong}: it is a setting of the training; write --{wrong.replace('_', '-')}.")
        found = sweep(
            self.model,
            load_source(self.source, self.data),
            over,
            out=self.out,
            resume=self.resume,
            conditional=self.conditional,
            **given,
            **fixed,
        )
        say(f"Ranked by {found.measure}, lower is better:")
        say("\n".join(trial.describe() for trial in found.trials))
        say(f"numbers -> {found.folder / 'sweep.json'}")


@dataclass(frozen=True)
class Models:
    """List the models, or the options of one: triptych models vae"""

    model: Annotated[Positional[str | None], arg(metavar="MODEL")] = None
    """Model to describe."""

    def run(self) -> None:
        import inspect

        from triptych.models.registry import find_models, model_class, model_options

        if self.model is None:
            for name, panel in find_models().items():
                summary = (inspect.getdoc(model_class(name)) or "").splitlines()[0]
                say(f"{name:18}{panel:13}{summary}")
            return
        say(inspect.getdoc(model_class(self.model)) or "")
        defaults = ", ".join(f"{key}={value[1]!r}" for key, value in model_options(self.model).items())
        say(f"\nOptions for --set, with their defaults (None: chosen by the data): {defaults}")


@dataclass(frozen=True)
class Data:
    """Show what a source holds and what was repaired, and draw it: triptych data show digits; or fetch a known set"""

    action: Positional[Literal["show", "download"]]
    """show: describe the data and draw them. download: fetch a known set, so that its name is a source."""
    source: Source
    """Data to show; or what to download: mnist, fashion_mnist, cifar10, cifar100, binarized_mnist."""
    out: Path | None = None
    """With show: PNG file for a picture of the training data; by default data-NAME.png."""
    to: Path | None = None
    """With download: folder to make the set's folder in; by default $TRIPTYCH_HOME or ~/.cache/triptych."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        if self.action == "download":
            self._download()
            return
        if self.to is not None:
            raise InputError("--to is where data download puts a set; data show takes --out.")
        from triptych.data.show import describe, draw

        dataset = load_source(self.source, self.data)
        say("\n".join(describe(dataset)))
        out = self.out or Path(f"data-{dataset.name}.png")
        draw(dataset, out)
        say(f"picture   {out}")

    def _download(self) -> None:
        from triptych.data.download import cache_folder, download_data

        if self.out is not None or self.data != DataConfig():
            raise InputError("data download takes --to and nothing else; settings of reading go with what reads it.")
        on_terminal = sys.stderr.isatty()
        try:
            folder = download_data(self.source, self.to, progress=_tell_progress if on_terminal else None)
        finally:
            if on_terminal:
                print(file=sys.stderr)
        how = "" if folder.parent == cache_folder() else f"; give this path, or set TRIPTYCH_HOME={folder.parent}"
        say(f"{self.source} -> {folder}{how}")


def _tell_progress(file: str, n_here: int, n_bytes: int) -> None:
    """A line on a terminal, written over and over."""
    line = f"{file}: {n_here / 2**20:.1f} of {n_bytes / 2**20:.1f} MiB"
    print(f"\r{line:60}", end="", file=sys.stderr, flush=True)
