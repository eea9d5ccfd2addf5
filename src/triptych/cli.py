"""The command line: one verb a class, the same words as the Python interface.

Nothing heavy is imported until a verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from triptych.config import DataConfig, TrainConfig
from triptych.errors import InputError, TrainingStopped
from triptych.spaces import ImageSpace

if TYPE_CHECKING:
    from triptych.data.dataset import Dataset, Split
    from triptych.models.base import GenerativeModel, Likelihood

N_BRACKET = 16
"""Simulated items that say how far off annealing is."""

Settings = Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")]
Source = Annotated[Positional[str], arg(metavar="SOURCE")]
Run = Annotated[Positional[Path], arg(metavar="RUN")]


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
    conditional: bool = False
    """Condition the model on the class labels."""
    settings: Settings = ()
    """Options of the model (`triptych models MODEL` lists them), as hidden=64 n_blocks=5."""
    train: OmitArgPrefixes[TrainConfig] = TrainConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api
        from triptych.models.registry import model_options

        if self.resume is not None:
            given = Fit(resume=self.resume)
            if self != given:
                raise InputError("--resume takes model, data and settings from the run folder; give nothing else.")
            api.resume(self.resume)
            return
        if self.model is None or self.source is None:
            raise InputError("fit needs a model and a source: triptych fit MODEL SOURCE, or triptych fit --resume RUN.")
        model_options(self.model)  # An unknown name is told before a large set is read.
        options = parse_settings(self.settings)
        data = _load(self.source, self.data)
        api.fit(self.model, data, out=self.out, conditional=self.conditional, **self.train.to_dict(), **options)


@dataclass(frozen=True)
class DrawConfig:
    """How an autoregressive model draws."""

    sampler: Literal["auto", "naive", "raster", "row", "wavefront", "jacobi"] = "auto"
    """Way of drawing: from one seed all draw the same images, and auto takes the quickest."""
    temperature: float = 1.0
    """Divide log-probabilities: below 1 likely levels become likelier. But for 1, draws are not from p(x)."""
    top_k: int = 0
    """Draw from the k likeliest levels of each sub-pixel only. But for 0 (all), draws are not from p(x)."""
    top_p: float = 1.0
    """Draw from the fewest levels that reach probability p together. But for 1 (all), draws are not from p(x)."""


@dataclass(frozen=True)
class Sample:
    """Draw from a trained model: triptych sample runs/vae-digits --n 64 --out samples.png"""

    run_folder: Run
    """Run folder of a trained model."""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """Number of draws."""
    label: int | None = None
    """Class to draw, for a class-conditional model; by default all classes in turn."""
    seed: int = 0
    """Seed of the noise."""
    out: Path = Path("samples.png")
    """Where to write: a .png (a grid, or a plot of points), .npy or .npz (an array), or a folder (a PNG each)."""
    truncation: float | None = None
    """For an adversarial model: largest magnitude of a latent. Smaller ones give more typical and less varied samples,
    which are no draws from p(x)."""
    animate: Path | None = None
    """Where to write an animation of an autoregressive model's drawing: .gif (256 colours), or .png or .apng. It shows
    the first 100 draws at most."""
    draw: OmitArgPrefixes[DrawConfig] = DrawConfig()

    def run(self) -> None:
        from triptych import api

        labels = None if self.label is None else [self.label] * self.n
        api.sample(
            self.run_folder,
            self.n,
            labels=labels,
            seed=self.seed,
            truncation=self.truncation,
            out=self.out,
            animate=self.animate,
            **dataclasses.asdict(self.draw),
        )
        print(f"{self.n} samples -> {self.out}")
        _tell_how(self.draw, self.animate, "p(x)", self.truncation)


@dataclass(frozen=True)
class Complete:
    """Draw the rest of images given their first rows: triptych complete runs/pixel_cnn-digits --items 0,1,2"""

    run_folder: Run
    """Run folder of a trained autoregressive model."""
    source: Annotated[Positional[str | None], arg(metavar="IMAGE")] = None
    """An image file, an .npy or .npz file of integer images, or a data set; by default the data of the run."""
    items: Annotated[str | None, arg(metavar="N,N,...")] = None
    """Which of the images, counted from 0, with commas between; by default the first four."""
    split: Literal["train", "valid", "test", "all"] | None = None
    """Which part of a data set; test by default."""
    keep: str = "top:0.5"
    """What to keep: top:0.5 a share of the rows, to the nearest row; top:4 rows; first:20 sites in raster order."""
    n: Annotated[int, arg(aliases=["-n"])] = 8
    """Completions of each image."""
    label: int | None = None
    """Class of the images, for a class-conditional model; by default their own where the source has it."""
    seed: int = 0
    """Seed of the noise."""
    out: Path = Path("completed.png")
    """Where to write: a .png (each row an image, its kept part, and the completions), or .npz (images and numbers)."""
    animate: Path | None = None
    """Where to write an animation of the drawing: .gif (256 colours), or .png or .apng."""
    draw: OmitArgPrefixes[DrawConfig] = DrawConfig()
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api
        from triptych.completion import complete, read_originals
        from triptych.data.dataset import Split
        from triptych.drawing import check_autoregressive
        from triptych.latent_use import with_label

        model = check_autoregressive(api.load(self.run_folder))
        items = None if self.items is None else parse_items(self.items)
        originals = read_originals(
            self.run_folder, model.space, self.source, items=items, split=self.split, data=self.data
        )
        labelled = with_label(model, Split(originals.images, originals.labels), self.label)
        done = complete(
            model,
            originals.images,
            keep=self.keep,
            n=self.n,
            labels=labelled.labels if model.n_classes else None,
            seed=self.seed,
            out=self.out,
            animate=self.animate,
            **dataclasses.asdict(self.draw),
        )
        _tell_notes(originals.notes)
        print("\n".join(done.describe(originals.names)))
        print(f"{self.n} completions each of {len(originals.images)} images -> {self.out}")
        _tell_how(self.draw, self.animate, "p(rest | kept)")


@dataclass(frozen=True)
class Translate:
    """Answer to part of images: triptych translate runs/pix2pix-digits --items 0,1,2"""

    run_folder: Run
    """Run folder of a trained pix2pix."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """A folder of image files, an image file, an .npy or .npz file, or a data set; by default the data of the run."""
    items: Annotated[str | None, arg(metavar="N,N,...")] = None
    """Which of the images, counted from 0, with commas between; by default all of a folder, else the first four."""
    split: Literal["train", "valid", "test", "all"] | None = None
    """Which part of a data set; test by default."""
    half: bool = False
    """The image files hold nothing but the given half of a pair."""
    n: Annotated[int, arg(aliases=["-n"])] = 4
    """Answers to each image."""
    label: int | None = None
    """Class of the images, for a class-conditional model; by default their own where the source has it."""
    seed: int = 0
    """Seed of the noise."""
    out: Path = Path("translated.png")
    """Where to write: a .png (each row what is given, the answers, the original), .npz, or a folder (a PNG each)."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api
        from triptych.data.dataset import Split
        from triptych.latent_use import with_label
        from triptych.translation import MAX_ROWS, check_translator, read_sources, translate

        model = check_translator(api.load(self.run_folder))
        items = None if self.items is None else parse_items(self.items)
        originals = read_sources(
            self.run_folder, model, self.source, items=items, split=self.split, half=self.half, data=self.data
        )
        labelled = with_label(model, Split(originals.images, originals.labels), self.label)
        labels = labelled.labels if model.n_classes else None
        done = translate(model, originals.images, n=self.n, labels=labels, seed=self.seed, out=self.out)
        _tell_notes(originals.notes)
        print("\n".join(done.describe(originals.names)))
        shown = f" (the first {MAX_ROWS} shown)" if self.out.suffix == ".png" and len(done.images) > MAX_ROWS else ""
        print(f"{self.n} answers each to {len(done.images)} images{shown} -> {self.out}")


@dataclass(frozen=True)
class Encode:
    """Write the latents of data: triptych encode runs/vae-digits digits --out codes.npz"""

    run_folder: Run
    """Run folder of a trained model with an encoder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """An image file, an .npy or .npz file, or a data set; by default the data of the run."""
    items: Annotated[str | None, arg(metavar="N,N,...")] = None
    """Which of the items, counted from 0, with commas between; by default all."""
    split: Literal["train", "valid", "test", "all"] | None = None
    """Which part of a data set; test by default."""
    label: int | None = None
    """Class of the items, for a class-conditional model; by default their own where the source has it."""
    sample: bool = False
    """Write draws from q(z|x) instead of its means."""
    seed: int = 0
    """Seed of these draws."""
    out: Path = Path("codes.npz")
    """Where to write: an .npz file."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api, latent_use

        model = latent_use.check_encoder(api.load(self.run_folder))
        latent_use.check_codes_file(self.out)
        items = None if self.items is None else parse_items(self.items)
        chosen = latent_use.read_items(
            self.run_folder, model.space, self.source, items=items, split=self.split, data=self.data
        )
        split = latent_use.with_label(model, chosen.split, self.label)
        z = latent_use.encode(model, split, sample=self.sample, seed=self.seed, out=self.out, indices=chosen.indices)
        _tell_notes(chosen.notes)
        print(f"{len(z):,} {'draws' if self.sample else 'means'} of {model.n_latents} latents -> {self.out}")


@dataclass(frozen=True)
class Reconstruct:
    """Encode items and decode them again: triptych reconstruct runs/vae-digits --items 0,1,2"""

    run_folder: Run
    """Run folder of a trained model with an encoder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """An image file, an .npy or .npz file, or a data set; by default the data of the run."""
    items: Annotated[str | None, arg(metavar="N,N,...")] = None
    """Which of the items, counted from 0, with commas between; by default the first ten."""
    split: Literal["train", "valid", "test", "all"] | None = None
    """Which part of a data set; test by default."""
    label: int | None = None
    """Class of the items, for a class-conditional model; by default their own where the source has it."""
    seed: int = 0
    """Seed of the draws behind the bound of log p(x)."""
    out: Path = Path("reconstructed.png")
    """Where to write: a .png (rows of originals, each with their reconstructions below), or .npz (arrays)."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api, latent_use

        model = latent_use.check_encoder(api.load(self.run_folder))
        latent_use.check_out(self.out, model.space)
        items = None if self.items is None else parse_items(self.items)
        chosen = latent_use.read_items(
            self.run_folder, model.space, self.source, items=items, most=10, split=self.split, data=self.data
        )
        split = latent_use.with_label(model, chosen.split, self.label)
        done = latent_use.reconstruct(model, split, seed=self.seed, out=self.out)
        _tell_notes(chosen.notes)
        print("\n".join(done.describe(chosen.names)))
        print(f"{len(done.items)} reconstructions -> {self.out}")


@dataclass(frozen=True)
class Interpolate:
    """Decode the way from one latent to another: triptych interpolate runs/vae-digits 0,1 2,3"""

    run_folder: Run
    """Run folder of a trained model with an encoder, or of a GAN."""
    a: Annotated[Positional[str | None], arg(metavar="A")] = None
    """Where to begin: items of the test data, counted from 0, with commas between, or an image file."""
    b: Annotated[Positional[str | None], arg(metavar="B")] = None
    """Where to end: as many. Without A and B both ends are drawn from the prior."""
    steps: int = 8
    """Items on each way, ends included."""
    n: Annotated[int | None, arg(aliases=["-n"])] = None
    """Ways between latents drawn from the prior; 4 by default."""
    label: int | None = None
    """Class to decode, for a class-conditional model; by default that of A and B, or all classes in turn."""
    seed: int = 0
    """Seed of latents drawn from the prior."""
    source: str | None = None
    """The data that A and B count in, if it is no longer where the run found it, or other data."""
    out: Path = Path("between.png")
    """Where to write: a .png (each way a row, between its items), or .npz (arrays)."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api, latent_use

        model = api.load(self.run_folder)
        latent_use.check_out(self.out, model.space)
        n = 4 if self.n is None else self.n
        notes: tuple[str, ...] = ()
        first = last = None
        if self.a is not None:
            if self.b is None or self.n is not None:
                raise InputError("Give A and B to go from item to item, or only --n to draw both ends from the prior.")
            latent_use.check_encoder(model)
            first, last, notes = latent_use.read_ends(
                self.run_folder,
                model.space,
                parse_ends(self.a),
                parse_ends(self.b),
                source=self.source,
                data=self.data,
            )
            n = len(first)
        elif self.source is not None or self.data != DataConfig():
            raise InputError("Latents drawn from the prior need no data: leave --source and how to read it out.")
        labels = None if self.label is None else [self.label] * n
        done = latent_use.interpolate(
            model, first, last, n=n, labels=labels, steps=self.steps, seed=self.seed, out=self.out
        )
        _tell_notes(notes)
        why = "z is standard normal under the model" if done.path == "spherical" else "z has no normal prior"
        print(f"{done.path} interpolation: {why}")
        print(f"{n} x {self.steps} items between {'latents drawn' if first is None else 'items'} -> {self.out}")


@dataclass(frozen=True)
class Traverse:
    """Decode latents of which one or two vary: triptych traverse runs/vae-digits --dims 3,7"""

    run_folder: Run
    """Run folder of a trained model with an encoder."""
    dims: Annotated[str | None, arg(metavar="D[,D]")] = None
    """One or two latents, counted from 0: the first varies from left to right, the second from top to bottom. By
    default the two (one with --labels all) that carry most of the test data."""
    item: int | None = None
    """Item of the test data, counted from 0, at whose mean the other latents stay; by default at 0."""
    steps: int = 9
    """Values of each latent."""
    extent: Annotated[float, arg(name="range", metavar="R")] = 3.0
    """The latents vary from -R to R, in their own units: standard deviations of a normal prior."""
    label: Annotated[int | Literal["all"] | None, arg(aliases=["--labels"])] = None
    """Class to decode, for a class-conditional model; by default the item's own. With all, each class is a row."""
    seed: int = 0
    """Seed of the choice of items by which the latents are chosen."""
    source: str | None = None
    """The data, if it is no longer where the run found it, or other data."""
    out: Path = Path("traverse.png")
    """Where to write: a .png (a grid), or .npz (arrays)."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych import api, latent_use

        model = latent_use.check_encoder(api.load(self.run_folder))
        latent_use.check_out(self.out, model.space)
        dims = None if self.dims is None else parse_items(self.dims, "--dims")
        if dims is not None:
            latent_use.check_dims(model, dims)
        item = None
        notes: tuple[str, ...] = ()
        why = ""
        if self.item is not None or dims is None:
            data = latent_use.read_items(self.run_folder, model.space, self.source, data=self.data)
            item = None if self.item is None else data.take([self.item]).split
            notes = data.notes
            if dims is None:
                labelled = data.split
                if labelled.labels is None:
                    label = None if self.label == "all" else self.label
                    labelled = latent_use.with_label(model, labelled, label)
                n = min(model.n_latents, 1 if self.label == "all" else 2)
                dims, why = latent_use.choose_latents(model, labelled, n, seed=self.seed)
        elif self.source is not None or self.data != DataConfig():
            raise InputError("With --dims and without --item no data is read: leave --source and how to read it out.")
        done = latent_use.traverse(
            model, dims, item, label=self.label, steps=self.steps, extent=self.extent, out=self.out
        )
        _tell_notes(notes)
        if why:
            print(why)
        for dim, way in zip(dims, ("left to right", "top to bottom"), strict=False):
            print(f"latent {dim}: {-self.extent:g} .. {self.extent:g} from {way}")
        rows, columns = done.items.shape[:2]
        print(f"{rows} x {columns} items -> {self.out}")


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
        if isinstance(data.space, ImageSpace) and data.space != model.space:
            raise InputError(f"{self.source} holds {data.space}; {self.run_folder} models {model.space}.")
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise InputError(f"--out {self.out} is no file that can be written; give another.")
        if self.split != "all":
            _tell_notes(notes)
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
            print(f"{key}  {value.text('lower')} {value.interval}  ({value.kind}, {value.measure}, n = {value.n:,})")
        if isinstance(model, ApproximateDensity) and isinstance(model.space, ImageSpace):
            bits = -float(likelihood.nats.double().mean()) / math.log(2)
            how = " (bits back)" if model.has_normal_prior else ""  # A code without choice has nothing to give back.
            print(f"as a code{how}: {bits:,.1f} bits per image on average")
        if self.out is not None:
            api.write_scores(likelihood, self.out)
            print(f"{len(likelihood.nats):,} values -> {self.out}")

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
            print(found.describe(model.space))
            target, likelihood = observed(model, found.sigma), found.likelihood
        else:
            raise InputError(f"--annealed is for models with latents; {type(model).__name__} has none.")
        generator = torch.Generator(model.device).manual_seed(1)
        n = min(len(split), N_BRACKET)
        gap = bracket(target, n, settings=settings, generator=generator).gap
        print(f"On {n} items drawn from the model annealing misses {gap:.2f} nats at most (mean).")
        return likelihood

    def _parzen(self, model: GenerativeModel, valid: Split, split: Split) -> Likelihood:
        """Scores by a kernel density of the model's samples, and tells why not to trust it."""
        from triptych.evaluation.implicit import PARZEN_WARNING, evaluate_parzen
        from triptych.models.base import ImplicitDensity

        if not isinstance(model, ImplicitDensity):
            raise InputError(f"--parzen is for models without a likelihood; {type(model).__name__} has one.")
        found = evaluate_parzen(model, valid, split, n_samples=self.parzen)
        unit = "where levels run from 0 to 1" if isinstance(model.space, ImageSpace) else "in units of the data's scale"
        print(f"{float(found.unit_nats.mean()):.1f} nats {unit}; bandwidth {found.bandwidth:.3g} of these")
        print(PARZEN_WARNING)
        return found.likelihood


@dataclass(frozen=True)
class Evaluate:
    """Measure trained models on the held-out split: triptych evaluate runs/vae-digits runs/gan-digits"""

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Run folders of models trained on the same data."""
    source: str | None = None
    """The data, if it is no longer where the runs found it."""
    importance_samples: int = 64
    """Samples of the importance-weighted bound of models that have one; 0 for none."""
    seed: int = 0
    """Seed of all draws."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        from triptych import api

        table = api.evaluate(
            self.run_folders, self.source, n_importance=self.importance_samples, seed=self.seed, verbose=not self.json
        ).table
        if self.json:
            print(json.dumps(table.to_dict(), indent=2, ensure_ascii=False))
        else:
            from rich.console import Console

            from triptych.report.table import print_table

            print_table(table, Console())


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
    importance_samples: int = 64
    """Samples of the importance-weighted bound of models that have one; 0 for none."""
    settings: Settings = ()
    """Options of a model, as vae.n_latents=8 gan.gamma=0.5."""
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
            _load(self.source, self.data),
            names,
            out=self.out,
            resume=self.resume,
            conditional=self.conditional,
            n_importance=self.importance_samples,
            options=options,
            command=shlex.join(["triptych", *sys.argv[1:]]),
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
        over = {key: parse_values(text) for key, text in split_settings(self.over, "--over").items()}
        shared = self.train.to_dict()
        found = sweep(
            self.model,
            _load(self.source, self.data),
            over,
            out=self.out,
            resume=self.resume,
            conditional=self.conditional,
            **{key: value for key, value in shared.items() if key not in over},
            **parse_settings(self.settings),
        )
        print(f"Ranked by {found.measure}, lower is better:")
        print("\n".join(trial.describe() for trial in found.trials))
        print(f"numbers -> {found.folder / 'sweep.json'}")


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
        print(json.dumps(found.to_dict(), indent=2) if self.json else "\n".join(describe(found)))


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

        for codes in holes(_load(self.source, self.data), out=self.out, **self.train.to_dict()):
            print(codes.describe())
        print(f"figure -> {self.out}")


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
        print(f"figures and theory.json -> {self.out}")


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
                print(f"{name:18}{panel:13}{summary}")
            return
        print(inspect.getdoc(model_class(self.model)))
        defaults = ", ".join(f"{key}={value[1]!r}" for key, value in model_options(self.model).items())
        print(f"\nOptions for --set, with their defaults (None: chosen by the data): {defaults}")


@dataclass(frozen=True)
class Data:
    """Show what a source holds and what was repaired, and draw it: triptych data show digits"""

    action: Positional[Literal["show"]]
    """What to do."""
    source: Source
    """Data to show."""
    out: Path | None = None
    """PNG file for a picture of the training data; by default data-NAME.png."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()

    def run(self) -> None:
        from triptych.data.show import describe, draw

        dataset = _load(self.source, self.data)
        print("\n".join(describe(dataset)))
        out = self.out or Path(f"data-{dataset.name}.png")
        draw(dataset, out)
        print(f"picture   {out}")


VERBS: dict[str, type] = {
    "fit": Fit,
    "sample": Sample,
    "complete": Complete,
    "translate": Translate,
    "encode": Encode,
    "reconstruct": Reconstruct,
    "interpolate": Interpolate,
    "traverse": Traverse,
    "score": Score,
    "evaluate": Evaluate,
    "compare": Compare,
    "sweep": Sweep,
    "probe": Probe,
    "exhibit": Exhibit,
    "theory": Theory,
    "models": Models,
    "data": Data,
}


def split_settings(settings: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """Reads KEY=TEXT words.

    Raises:
        InputError: If a word has no `=`, or a key is set twice.
    """
    texts: dict[str, str] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"{flag} {word!r}: write KEY=VALUE.")
        if key in texts:
            raise InputError(f"{flag} {key} is given twice.")
        texts[key] = text
    return texts


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads KEY=VALUE words; a value is a Python literal (64, 0.1, True) or else a word.

    Raises:
        InputError: As of `split_settings`.
    """
    return {key: _literal(text) for key, text in split_settings(settings).items()}


def parse_values(text: str) -> list[Any]:
    """Reads 0.1,1,word; a bracket keeps the commas within."""
    whole = _literal(text)
    if isinstance(whole, tuple):
        return list(whole)
    return [_literal(part) for part in text.split(",") if part] if isinstance(whole, str) else [whole]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_items(text: str, flag: str = "--items") -> list[int]:
    """Reads 0,1,2.

    Raises:
        InputError: If it is anything else.
    """
    if not re.fullmatch(r"\d{1,15}(,\d{1,15})*", text):
        raise InputError(f"{flag} is {text!r}; give numbers from 0 with commas between, as 0,1,2.")
    return [int(number) for number in text.split(",")]


def parse_ends(text: str) -> list[int | str]:
    """Reads numbers of items and names of files, with commas between; a file whose name has commas is one."""
    words = [text] if Path(text).is_file() else text.split(",")
    return [int(word) if re.fullmatch(r"[0-9]{1,15}", word) else word for word in words]


def _tell_notes(notes: Sequence[str]) -> None:
    """Prints what a person should know besides the result."""
    for note in notes:
        print(f"triptych: {note}", file=sys.stderr)


def _tell_how(draw: DrawConfig, animate: Path | None, of: str, truncation: float | None = None) -> None:
    """Prints where the animation is, and that warped draws are not from the distribution."""
    from triptych.drawing import describe_warp
    from triptych.sampling.autoregressive import Warp

    if animate is not None:
        print(f"animation -> {animate}")
    if comment := describe_warp(Warp(draw.temperature, draw.top_k, draw.top_p), of, truncation=truncation):
        print(comment)


def _load(source: str, config: DataConfig) -> Dataset:
    from triptych.data.load import load_data

    return load_data(source, **config.to_arguments())


def _one_line(box: str, verb: str) -> str:
    """The message in the box that tyro prints for a wrong command line of a verb, as one line."""
    lines = [line.strip("│╭╮╰╯ ─") for line in box.splitlines()]
    title, *lines = [line if line else "" for line in lines]
    message = " ".join(line for line in lines[: lines.index("") if "" in lines else None]) or title
    if "Perhaps you meant:" in lines:
        message += f". Did you mean {lines[lines.index('Perhaps you meant:') + 1].split()[0]}?"
    message = re.sub(r"Error parsing \S*dummy\S*: ", "", message)  # tyro's own name for a whole group of settings
    return f"{message.rstrip('.')}. See triptych {verb}--help".replace("?.", "?")


def gather(arguments: Sequence[str], flag: str) -> list[str]:
    """The command line with the values of a repeated flag behind its first place; the parser keeps the last alone."""
    kept: list[str] = []
    values: list[str] = []
    place, into = None, kept
    for word in arguments:
        if word == flag or word.startswith(f"{flag}="):
            place = len(kept) if place is None else place
            into = values
            values += [word.removeprefix(f"{flag}=")] * (word != flag)
            continue
        if word.startswith("--"):
            into = kept
        into.append(word)
    return kept if place is None else [*kept[:place], flag, *values, *kept[place:]]


def parse(arguments: Sequence[str]) -> Any:
    """The verb that a command line asks for; leaves with status 2 and one line if it is wrong."""
    box = io.StringIO()
    verb: Any = tyro.extras.subcommand_cli_from_dict
    try:
        with contextlib.redirect_stderr(box):
            return verb(
                VERBS,
                prog="triptych",
                config=(tyro.conf.FlagCreatePairsOff,),
                args=gather(gather(arguments, "--set"), "--over"),
                description="Train, measure and compare the three families of deep generative models on your own data.",
            )
    except SystemExit as stop:
        if stop.code:
            verb_name = f"{arguments[0]} " if arguments and arguments[0] in VERBS else ""
            print(f"triptych: {_one_line(box.getvalue(), verb_name)}", file=sys.stderr)
        raise


def main() -> None:
    """Entry point of the `triptych` command. Exit codes: 0 done, 2 wrong input, 3 training stopped."""
    if sys.argv[1:] == ["--version"]:
        from triptych import __version__

        print(f"triptych {__version__}")
        return
    verb = parse(sys.argv[1:])
    try:
        verb.run()
    except InputError as error:
        print(f"triptych: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        print(f"triptych: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except KeyboardInterrupt:
        print("triptych: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # The reader of our output (head, less) has gone.
        sys.stderr.close()
        raise SystemExit(0) from None
    except (OSError, MemoryError) as error:
        print(f"triptych: {_say(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        print("triptych: There is not enough memory; use a smaller model or batch.", file=sys.stderr)
        raise SystemExit(2) from None


def _say(error: OSError | MemoryError) -> str:
    """What the system refused, as one line."""
    if isinstance(error, MemoryError):
        return "There is not enough memory; use a smaller model or batch."
    return f"{error.filename or 'A file'}: {error.strerror or error}; give another path or mend its rights."


if __name__ == "__main__":
    main()
