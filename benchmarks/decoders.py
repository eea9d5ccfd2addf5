"""Log-likelihoods of decoders: annealed importance sampling and the Parzen window on continuous MNIST.

    python benchmarks/decoders.py path/to/mnist --budget 7000steps --out runs/decoders

A pixel is (level + uniform noise) / 256, a real number from 0 to 1. Every model is a decoder f of a standard normal z
and Gaussian noise of one standard deviation sigma, x ~ N(f(z), sigma^2 I). For each model validation items choose the
sigma of the best annealed estimate. All values are nats per image in these units, higher is better. The bracket is of
images that the model itself draws: its gap is in expectation no less than what annealing misses on them. Test images
can be harder, for GANs by far; there only more --temperatures tell. The bound with importance weights is of the same
density as the annealed value, with the encoder that was trained. The Parzen window puts Gaussians around means f(z),
and is quick enough for 1,000 test images.
Runs that are finished in --out are read, not run again; beside each is a picture of its means.

Source of the experiment:
    On the Quantitative Analysis of Decoder-Based Generative Models, Wu, Burda, Salakhutdinov & Grosse 2017,
    arXiv:1611.04273, section 5. Differs: short trainings; perceptrons of SiLU units; GANs with R1; of annealing fewer
    temperatures, chains and items.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Generator, Tensor

import triptych
from triptych.config import TrainConfig
from triptych.data.dataset import Dataset, Split, checksum_of, point_space_of
from triptych.data.parts import subset
from triptych.data.pictures import save_items
from triptych.evaluation.annealed import AnnealedSettings, bracket
from triptych.evaluation.implicit import FixedNoise, evaluate_observed, evaluate_parzen, observed
from triptych.evaluation.likelihood import evaluate_likelihood
from triptych.models.approximate.vae import VAE
from triptych.models.base import Batch, GenerativeModel, ImplicitDensity, LatentModel, Loss, Phase
from triptych.models.implicit.gan import GAN
from triptych.models.observation import Observation
from triptych.models.registry import resolved_options
from triptych.spaces import ImageSpace, PointSpace, Space
from triptych.training.files import write_json
from triptych.training.run import run_config
from triptych.training.trainer import Trainer


@dataclass(frozen=True)
class Published:
    """Nats per image in the paper; None where it has none."""

    annealed: float
    parzen: float | None = None
    importance_weighted: float | None = None


PAPER = {
    "vae-50": Published(991.4, 351.2, 826.3),
    "vae-10": Published(705.4, 408.7),
    "gan-50": Published(627.3),
    "gan-10": Published(328.8),
}
TRAINING_NOISE = 0.1
"""Standard deviation under which the VAEs are trained, pixels from 0 to 1."""
N_PARZEN_SAMPLES, N_PARZEN_VALID, N_PARZEN_ITEMS = 10_000, 1000, 1000


class OneNoise(Observation):
    """A Gaussian of one fixed standard deviation, in data units, around the means of a decoder that gives variances
    too: these stay unused, so that a run is read back as any other."""

    def __init__(self, space: PointSpace, sigma: float) -> None:
        self.noise, self.dim, self.n_outputs = FixedNoise(space, sigma / space.scale), space.dim, 2 * space.dim

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return self.noise.log_prob(outputs[:, : self.dim], x)

    def draw(self, outputs: Tensor, generator: Generator | None = None) -> Tensor:
        return self.noise.draw(outputs[:, : self.dim], generator)

    def mean(self, outputs: Tensor) -> Tensor:
        return self.noise.mean(outputs[:, : self.dim])


class PixelMeans(ImplicitDensity):
    """A decoder alone: z to the means of pixels from 0 to 1, (N, pixels), whatever it was trained as."""

    supports = (PointSpace,)

    def __init__(self, model: LatentModel, n_pixels: int, mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__(PointSpace(n_pixels))
        self.model, self.n_latents, self.mean = model.requires_grad_(False), model.n_latents, mean

    @staticmethod
    def of(model: GenerativeModel) -> PixelMeans:
        """Of a VAE of points that are pixels already, or of a GAN of images."""
        if isinstance(model, VAE) and isinstance(model.space, PointSpace):
            return PixelMeans(model, model.space.dim, model.decode)
        assert isinstance(model, GAN)
        assert isinstance(model.space, ImageSpace)
        gan, last = model, model.space.levels - 1

        def mean(z: Tensor) -> Tensor:
            levels = (gan.fake(z).flatten(1) + 1) * (last / 2)
            return (levels + 0.5) / (last + 1)  # In the middle of what a level is spread over.

        return PixelMeans(model, model.space.n_dims, mean)

    def fake(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.mean(z)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.fake(z)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return self.generate(torch.randn((n, self.n_latents), generator=generator, device=self.device))

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        raise NotImplementedError("The decoder has been trained already.")


def continuous(images: Dataset, seed: int) -> Dataset:
    """Grey images as points: each pixel a draw, uniform over its level's part of 0 .. 1."""
    assert isinstance(images.space, ImageSpace)
    levels, rng = images.space.levels, np.random.Generator(np.random.PCG64(seed))
    splits = {}
    for name, split in images.splits.items():
        x = split.read()[0].reshape(len(split), -1)
        splits[name] = Split(((x + rng.random(x.shape, dtype=np.float32)) / levels).astype(np.float32))
    train, valid, test = splits["train"], splits["valid"], splits["test"]
    space = point_space_of(train.read()[0])
    checksum = checksum_of(train, valid, test)
    return Dataset(f"continuous {images.name}", space, train, valid, test, checksum=checksum)


def fit_vae(data: Dataset, out: Path, train: TrainConfig, n_latents: int, hidden: int) -> GenerativeModel:
    """As `triptych.fit`, with noise of one fixed scale in place of the learnt ones; a finished run is read."""
    if (out / "summary.json").is_file():
        return triptych.load(out)
    assert isinstance(data.space, PointSpace)
    with torch.random.fork_rng():
        torch.manual_seed(train.seed)
        network = VAE(data.space, network="mlp", n_latents=n_latents, hidden=hidden, n_blocks=2)
        network.observation = OneNoise(data.space, TRAINING_NOISE)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", run_config("vae", resolved_options("vae", network), 0, data, train))
        trainer = Trainer(network, data, train, out, Console())
        summary = trainer.fit(resume=(out / "checkpoint.pt").is_file())
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    write_json(out / "summary.json", {**asdict(summary), "n_parameters": n_parameters})
    return triptych.load(out)


def importance_weighted(vae: VAE, sigma: float, split: Split, n_draws: int, seed: int) -> Tensor:
    """The bound under noise of another scale than in training, which the VAE then keeps: nats per image, (N,)."""
    assert isinstance(vae.space, PointSpace)
    vae.observation = OneNoise(vae.space, sigma)
    likelihood = evaluate_likelihood(vae, split, n_importance=n_draws, seed=seed)
    assert likelihood is not None
    return likelihood.nats


def save_means(decoder: PixelMeans, space: Space, path: Path, seed: int) -> None:
    """A grid of 64 means as images of the space."""
    assert isinstance(space, ImageSpace)
    means = decoder.sample(64, generator=Generator().manual_seed(seed)).reshape(-1, *space.shape)
    levels = (means * space.levels).floor().clamp(0, space.levels - 1).to(torch.uint8)
    save_items(levels.numpy(), space, path)


def spread(nats: Tensor) -> str:
    """Mean and its standard error over items."""
    return f"{float(nats.double().mean()):.1f} ± {float(nats.double().std()) / math.sqrt(len(nats)):.1f}"


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="MNIST")
    parser.add_argument("--models", nargs="+", default=list(PAPER), choices=list(PAPER))
    parser.add_argument("--budget", default="7000steps", help="of each training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=512, help="units a layer; the paper has 1024")
    parser.add_argument("--items", type=int, default=32, help="test images")
    parser.add_argument("--valid-items", type=int, default=8, help="validation images that choose sigma")
    parser.add_argument("--simulated", type=int, default=16, help="images of the bracket")
    parser.add_argument("--temperatures", type=int, default=500)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--leapfrog", type=int, default=5)
    parser.add_argument("--importance-samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seed: int = arguments.seed
    settings = AnnealedSettings(arguments.temperatures, arguments.chains, arguments.leapfrog)
    train = TrainConfig(budget=arguments.budget, batch_size=arguments.batch_size, seed=seed, validations=10)

    mnist = triptych.load_data(arguments.source)
    points = continuous(mnist, seed)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(points.test))
    test = subset(points.test, np.sort(order[: arguments.items]))
    more = subset(points.test, np.sort(order[:N_PARZEN_ITEMS]))

    rows: list[str] = []
    annealed_means: dict[str, float] = {}
    parzen_means: dict[str, float] = {}
    for name in arguments.models:
        family, _, n_latents = name.partition("-")
        out = arguments.out / name
        if family == "vae":
            model = fit_vae(points, out, train, int(n_latents), arguments.hidden)
        else:
            model = triptych.fit(
                "gan",
                mnist,
                out=out,
                resume=out.is_dir(),
                network="mlp",
                n_latents=int(n_latents),
                hidden=arguments.hidden,
                **asdict(train),
            )
        decoder = PixelMeans.of(model)
        save_means(decoder, mnist.space, arguments.out / f"{name}.png", seed)

        start = time.perf_counter()
        found = evaluate_observed(
            decoder, points.valid, test, settings=settings, n_valid=arguments.valid_items, seed=seed, progress=print
        )
        sides = bracket(
            observed(decoder, found.sigma),
            arguments.simulated,
            settings=settings,
            generator=Generator().manual_seed(seed + 1),
        )
        bound = None
        if isinstance(model, VAE):
            bound = importance_weighted(model, found.sigma, test, arguments.importance_samples, seed)
        parzen = evaluate_parzen(
            decoder, points.valid, more, n_samples=N_PARZEN_SAMPLES, n_valid=N_PARZEN_VALID, seed=seed
        )
        annealed, paper = found.likelihood.nats, PAPER[name]
        annealed_means[name] = float(annealed.double().mean())
        parzen_means[name] = float(parzen.unit_nats.double().mean())
        rows.append(
            f"| {name} | {spread(annealed)} | {sides.gap:.1f} | {'' if bound is None else spread(bound)} |"
            f" {spread(parzen.unit_nats)} | {found.sigma:.3g} | {paper.annealed} | {shown(paper.importance_weighted)} |"
            f" {shown(paper.parzen)} | {(time.perf_counter() - start) / 60:.0f} |"
        )
        print(rows[-1], flush=True)

    columns = ["model", "AIS", "gap of the bracket", "IWAE bound", "Parzen", "sigma"]
    columns += ["AIS of the paper", "IWAE of the paper", "Parzen of the paper", "minutes of measuring"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print("\n".join(rows))
    for what, mean in (("AIS", annealed_means), ("Parzen", parzen_means)):
        print(f"\nBy {what}: {' > '.join(sorted(mean, key=mean.__getitem__, reverse=True))}.")


if __name__ == "__main__":
    main()
