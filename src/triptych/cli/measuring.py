"""Verbs that measure: score, evaluate, report, probe; and that carry out what the lecture says: exhibit, theory."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from triptych.cli.words import (
    Run,
    Source,
    load_source,
    parse_items,
    say,
    tell_notes,
)
from triptych.config import DataConfig, MeasureConfig, TrainConfig
from triptych.errors import InputError, counted
from triptych.spaces import ImageSpace

if TYPE_CHECKING:
    from triptych.data.dataset import Split
    from triptych.evaluation.evaluate import Evaluation
    from triptych.models.base import GenerativeModel, Likelihood

N_BRACKET = 16
"""Simulated items that say how far off annealing is."""


@dataclass(frozen=True)
class Score:
    """Log-likelihood of data under a trained model: triptych score runs/pixel_cnn-digits digits"""

    run_folder: Run
    """Run folder of a trained model."""
    source: Source
    """Data to score."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """Which part of the source."""
    importance_samples: int = 0
    """For a model with a bound: samples of the tighter importance-weighted bound; 0 for the ELBO."""
    annealed: int = 0
    """For a model with a bound: temperatures of annealed importance sampling, which can be tighter still and takes far
    longer; with --limit for fewer items. An implicit model gets a likelihood by it, with noise around its samples. 0
    for none."""
    chains: int = 8
    """Chains of each item in annealing."""
    parzen: int = 0
    """For an implicit model: samples of the Parzen window that its likelihood used to be estimated with; 0 for none."""
    out: Path | None = None
    """CSV file for the value of each item."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api
        from triptych.completion import read_dataset
        from triptych.evaluation.likelihood import summarise
        from triptych.models.base import ApproximateDensity

        model = api.load(self.run_folder)
        data, notes = read_dataset(self.run_folder, self.source, self.data)
        is_points = not isinstance(data.space, ImageSpace)  # which may lie elsewhere than those of the training
        if data.space.shape != model.space.shape or not (is_points or data.space == model.space):
            raise InputError(f"{self.source} holds {data.space}; {self.run_folder} models {model.space}.")
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise InputError(f"--out {self.out} is no file that can be written; give another.")
        if self.split != "all":
            tell_notes(notes)
        split = api.choose_split(data, self.split)
        if self.annealed and self.parzen:
            raise InputError("--annealed and --parzen are two estimates; ask for one of them.")
        if self.annealed:
            likelihood = self._anneal(model, data.valid, split)
        elif self.parzen:
            likelihood = self._parzen(model, data.valid, split)
        else:
            likelihood = api.score(model, split, n_importance=self.importance_samples)
        for key, value in summarise(likelihood, model.space).items():
            say(f"{key}  {value.text('lower')} {value.interval}  ({value.kind}, {value.measure}, n = {value.n:,})")
        if isinstance(model, ApproximateDensity) and isinstance(model.space, ImageSpace):
            bits = -float(likelihood.nats.double().mean()) / math.log(2)
            how = " (bits back)" if model.has_normal_prior else ""  # A code without choice has nothing to give back.
            say(f"as a code{how}: {bits:,.1f} bits per image on average")
        if self.out is not None:
            api.write_scores(likelihood, self.out)
            say(f"{len(likelihood.nats):,} values -> {self.out}")

    def _anneal(self, model: GenerativeModel, valid: Split, split: Split) -> Likelihood:
        """Scores by annealing, and tells how far off it can be by what it misses on data of the model's own."""
        import torch

        from triptych.evaluation.annealed import AnnealedSettings, LatentDensity, bracket, evaluate_annealed
        from triptych.evaluation.implicit import evaluate_observed, observed
        from triptych.models.base import ApproximateDensity, ImplicitDensity

        settings = AnnealedSettings(n_temperatures=self.annealed, n_chains=self.chains, n_leapfrog=5)
        target: ApproximateDensity | LatentDensity
        if isinstance(model, ApproximateDensity):
            target, likelihood = model, evaluate_annealed(model, split, settings=settings)
        elif isinstance(model, ImplicitDensity):
            found = evaluate_observed(model, valid, split, settings=settings)
            say(found.describe(model.space))
            target, likelihood = observed(model, found.sigma), found.likelihood
        else:
            raise InputError(f"--annealed is for models with latents; {type(model).__name__} has none.")
        generator = torch.Generator(model.device).manual_seed(1)
        n = min(len(split), N_BRACKET)
        gap = bracket(target, n, settings=settings, generator=generator).gap
        say(f"On {counted(n, 'item')} drawn from the model annealing misses {gap:.2f} nats at most (mean).")
        return likelihood

    def _parzen(self, model: GenerativeModel, valid: Split, split: Split) -> Likelihood:
        """Scores by a kernel density of the model's samples, and tells why not to trust it."""
        from triptych.evaluation.implicit import PARZEN_WARNING, evaluate_parzen
        from triptych.models.base import ImplicitDensity

        if not isinstance(model, ImplicitDensity):
            raise InputError(f"--parzen is for models without a likelihood; {type(model).__name__} has one.")
        found = evaluate_parzen(model, valid, split, n_samples=self.parzen)
        unit = "where levels run from 0 to 1" if isinstance(model.space, ImageSpace) else "in units of the data's scale"
        say(f"{float(found.unit_nats.mean()):.1f} nats {unit}; bandwidth {found.bandwidth:.3g} of these")
        say(PARZEN_WARNING)
        return found.likelihood


@dataclass(frozen=True)
class Evaluate:
    """Measure trained models, or anybody's samples, beside held-out data: triptych evaluate runs/vae-digits

    Samples that another tool made: triptych evaluate --samples my/samples --reference digits
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")] = ()
    """Run folders of models trained on the same data."""
    source: str | None = None
    """The data, if it is no longer where the runs found it."""
    samples: Annotated[tuple[Path, ...], arg(metavar="FOLDER")] = ()
    """In the place of runs, samples: folders or zips of images, or npz or npy files, each a row."""
    reference: Annotated[str | None, arg(metavar="SOURCE")] = None
    """With --samples: the data to compare them with. Its test split is what they are compared with, its training split
    what they may be copies of."""
    seed: int = 0
    """Seed of all draws."""
    json: bool = False
    """Print JSON instead of a table."""
    measure: OmitArgPrefixes[MeasureConfig] = MeasureConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        evaluation = self._measure_samples() if self.samples or self.reference else self._measure_runs()
        if self.json:
            facts = {"notes": evaluation.notes, "memory": evaluation.memory}
            # Of what JSON leaves as it is, only this would be made visible for the terminal, and be JSON no more.
            say(json.dumps(evaluation.table.to_dict() | facts, indent=2).replace("\x7f", "\\u007f"))
            return
        from triptych.consoles import lasting_console
        from triptych.report.table import print_table

        print_table(evaluation.table, lasting_console())
        for line in (*evaluation.memory.values(), *evaluation.notes):
            say(line)

    def _measure_runs(self) -> Evaluation:
        from triptych import api

        if self.data != DataConfig():
            raise InputError("Runs remember how their data were read; settings of the data go with --reference.")
        return api.evaluate(
            self.run_folders, self.source, seed=self.seed, verbose=not self.json, **self.measure.to_arguments()
        )

    def _measure_samples(self) -> Evaluation:
        from triptych import api

        if self.run_folders or self.source:
            raise InputError("--samples and --reference go without run folders and --source; measure one or the other.")
        if not self.samples or self.reference is None:
            raise InputError("--samples and --reference go together: give both.")
        given = self.measure.to_arguments()
        for name in ("n_importance", "n_samples"):
            if given.pop(name) != getattr(MeasureConfig(), {"n_importance": "importance_samples"}.get(name, name)):
                raise InputError("--importance-samples and --n-samples are for models; samples are what they are.")
        stems = [path.stem for path in self.samples]
        names = [str(path) if stems.count(path.stem) > 1 else path.stem for path in self.samples]
        if len(set(names)) < len(names):
            raise InputError(f"--samples {max(names, key=names.count)} is given twice; give each once.")
        return api.evaluate_samples(
            dict(zip(names, self.samples, strict=True)),
            load_source(self.reference, self.data),
            seed=self.seed,
            verbose=not self.json,
            **given,
        )


@dataclass(frozen=True)
class Report:
    """Write the report of finished trainings, without training: triptych report runs/compare-digits --out report"""

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Run folders of models trained on the same data, or the folder of a comparison. Those that differ in their seed
    alone make one row."""
    out: Path | None = None
    """Folder for table.json, table.csv and report.html; by default that of the comparison, if one is given."""
    source: str | None = None
    """The data, if it is no longer where the runs found it."""
    seed: int | None = None
    """Seed of all draws; by default the lowest of the trainings, which a comparison takes too."""
    measure: OmitArgPrefixes[MeasureConfig] = MeasureConfig()

    def run(self) -> None:
        from triptych.comparison import compare_runs

        if not self.run_folders:
            raise InputError("report needs at least one run folder.")
        out = self.out
        if out is None:
            first = self.run_folders[0]
            if len(self.run_folders) > 1 or (first / "config.json").is_file():
                raise InputError("report needs --out, a folder to write to.")
            out = first
        compare_runs(
            self.run_folders,
            self.source,
            out=out,
            seed=self.seed,
            command=shlex.join(["triptych", *sys.argv[1:]]),
            **self.measure.to_arguments(),
        )


@dataclass(frozen=True)
class Probe:
    """Are the codes good for other tasks? Clusters, linear probes, fine-tuning: triptych probe runs/vae-digits"""

    run_folder: Run
    """Run folder of a trained unconditional model with an encoder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """Labelled data; by default the data of the run."""
    labels: Annotated[str, arg(metavar="N,N,...")] = "10,100,1000"
    """Numbers of labels to learn from, with commas between."""
    draws: int = 5
    """Draws of these labels."""
    finetune_steps: int = 200
    """Steps of fine-tuning, and of the same network from scratch; 0 for neither."""
    seed: int = 0
    """Seed of all draws."""
    json: bool = False
    """Print JSON instead of tables."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api
        from triptych.completion import read_dataset
        from triptych.evaluation.probe import describe, probe
        from triptych.models.registry import create_model
        from triptych.training.run import read_run

        model, config = read_run(self.run_folder)
        data, _ = read_dataset(self.run_folder, self.source, self.data)
        with api.telling(not self.json) as tell:
            found = probe(
                model,
                lambda seed: create_model(config["model"], model.space, **config["options"]),
                data,
                n_labels=tuple(parse_items(self.labels, "--labels")),
                n_draws=self.draws,
                finetune_steps=self.finetune_steps,
                seed=self.seed,
                progress=tell,
            )
        say(json.dumps(found.to_dict(), indent=2) if self.json else "\n".join(describe(found)))


@dataclass(frozen=True)
class Exhibit:
    """Carry out a thought experiment of the lecture and draw it: triptych exhibit holes digits"""

    name: Positional[Literal["holes"]]
    """holes: a VAE of two latents trained on reconstruction alone, beside one with the KL."""
    source: Source = "digits"
    """Images to learn."""
    out: Path = Path("holes.png")
    """PNG file for the figure; the runs go into a folder of its name."""
    train: OmitArgPrefixes[TrainConfig] = TrainConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych.exhibits import holes

        for codes in holes(load_source(self.source, self.data), out=self.out, **self.train.to_dict()):
            say(codes.describe())
        say(f"figure -> {self.out}")


@dataclass(frozen=True)
class Theory:
    """Compute what the theory of GANs says, and draw it: triptych theory --out theory"""

    out: Path = Path("theory")
    """Folder for the figures (PNG, and a GIF of a training) and theory.json, the numbers behind them."""
    only: Annotated[str | None, arg(metavar="NAME,NAME")] = None
    """Figures to compute, with commas between: discriminator, value, losses, likelihood, alternation, game."""
    seed: int = 0
    """Seed of the first weights and of the samples."""
    quick: bool = False
    """Shorter trainings and coarser grids."""

    def run(self) -> None:
        from triptych.theory import demonstrate

        names = [] if self.only is None else [name.strip() for name in self.only.split(",")]
        demonstrate(self.out, only=names, seed=self.seed, quick=self.quick)
        say(f"figures and theory.json -> {self.out}")
