"""Verbs that draw: sample, complete, translate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from triptych.cli.words import (
    Run,
    parse_items,
    say,
    tell_notes,
)
from triptych.config import DataConfig
from triptych.errors import counted


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
        say(f"{counted(self.n, 'sample')} -> {self.out}")
        tell_how(self.draw, self.animate, "p(x)", self.truncation)


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
        tell_notes(originals.notes)
        say("\n".join(done.describe(originals.names)))
        say(f"{self.n} completions each of {len(originals.images)} images -> {self.out}")
        tell_how(self.draw, self.animate, "p(rest | kept)")


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
        tell_notes(originals.notes)
        say("\n".join(done.describe(originals.names)))
        shown = f" (the first {MAX_ROWS} shown)" if self.out.suffix == ".png" and len(done.images) > MAX_ROWS else ""
        say(f"{self.n} answers each to {len(done.images)} images{shown} -> {self.out}")


def tell_how(draw: DrawConfig, animate: Path | None, of: str, truncation: float | None = None) -> None:
    """Prints where the animation is, and that warped draws are not from the distribution."""
    from triptych.drawing import describe_warp
    from triptych.sampling.autoregressive import Warp

    if animate is not None:
        say(f"animation -> {animate}")
    if comment := describe_warp(Warp(draw.temperature, draw.top_k, draw.top_p), of, truncation=truncation):
        say(comment)
