"""Verbs that use the latents of a model: encode, reconstruct, interpolate, traverse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from triptych.cli.words import (
    Run,
    parse_ends,
    parse_items,
    say,
    tell_notes,
)
from triptych.config import DataConfig
from triptych.errors import InputError


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
        tell_notes(chosen.notes)
        say(f"{len(z):,} {'draws' if self.sample else 'means'} of {model.n_latents} latents -> {self.out}")


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
        tell_notes(chosen.notes)
        say("\n".join(done.describe(chosen.names)))
        say(f"{len(done.items)} reconstructions -> {self.out}")


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
        tell_notes(notes)
        why = "z is standard normal under the model" if done.path == "spherical" else "z has no normal prior"
        say(f"{done.path} interpolation: {why}")
        say(f"{n} x {self.steps} items between {'latents drawn' if first is None else 'items'} -> {self.out}")


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
        tell_notes(notes)
        if why:
            say(why)
        for dim, way in zip(dims, ("left to right", "top to bottom"), strict=False):
            say(f"latent {dim}: {-self.extent:g} .. {self.extent:g} from {way}")
        rows, columns = done.items.shape[:2]
        say(f"{rows} x {columns} items -> {self.out}")
