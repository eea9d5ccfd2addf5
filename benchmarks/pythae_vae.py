"""A step of training a VAE here over one by pythae's trainer, with the same network, batch and data.

Both train turn by turn in one process, an epoch each; every pair of epochs gives a ratio, and their median is printed
with an interval. pythae (Chadebec et al. 2022, arXiv:2206.08309) is installed on demand into build/peers, and the
benchmark is skipped if it cannot be.

    python benchmarks/pythae_vae.py --networks mlp residual
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.config import Budget, TrainConfig
from triptych.data.load import load_data
from triptych.models.approximate.vae import VAE
from triptych.training.files import Records
from triptych.training.progress import TrainingProgress
from triptych.training.trainer import FILM_AT, Trainer

PEERS = Path(__file__).parent.parent / "build" / "peers"
PACKAGES = ["pythae==0.1.2", "cloudpickle", "imageio", "pydantic", "pydantic-core", "annotated-types"]
PACKAGES += ["typing-inspection", "tqdm"]
BATCH_SIZE = 32


def has_pythae() -> bool:
    """Whether pythae can be imported, after installing it if need be."""
    sys.path.insert(0, str(PEERS))
    if not (PEERS / "pythae").is_dir():
        # Without dependencies: they would bring another PyTorch.
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS), *PACKAGES]
        subprocess.run(command, check=False, capture_output=True)
    try:
        import pythae  # noqa: F401
    except ImportError:
        return False
    return True


def their_loop(model: VAE, x: Tensor, folder: Path) -> Callable[[], object]:
    """pythae's trainer on our encoder and decoder; returns a function that runs an epoch."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as TheirVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.encoder

        def forward(self, x: Tensor) -> Any:
            mu, log_var = self.network(x).chunk(2, 1)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).sigmoid())

    config = VAEConfig(input_dim=tuple(x.shape[1:]), latent_dim=model.n_latents, reconstruction_loss="bce")
    settings = BaseTrainerConfig(
        output_dir=str(folder), num_epochs=1, per_device_train_batch_size=BATCH_SIZE, learning_rate=1e-3, no_cuda=True
    )
    data = BaseDataset(x.float(), torch.zeros(len(x)))
    trainer = BaseTrainer(TheirVAE(config, Encoder(), Decoder()), data, None, settings)
    trainer.prepare_training()
    return lambda: trainer.train_step(1)


def our_loop(model: VAE, data: Any, folder: Path) -> Callable[[], object]:
    """The trainer's own loop as by default, but for validations, grids and checkpoints; an epoch a call."""
    config = TrainConfig(budget="1steps", batch_size=BATCH_SIZE, validations=0, checkpoint_every="1000000steps")
    trainer = Trainer(model, data, config, folder)
    wrapped, optimizers = trainer._set_up()
    trainer.n_films = len(FILM_AT)
    records, bar = Records(folder / "metrics.jsonl"), TrainingProgress("", None)
    n_steps = len(data.train) // BATCH_SIZE

    def run() -> None:
        trainer.budget = Budget("steps", trainer.step + n_steps)
        trainer._loop(wrapped, optimizers, records, bar)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mlp", "residual"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not has_pythae():
        print("pythae cannot be installed here: skipped.")
        return
    logging.disable(logging.INFO)
    torch.set_num_threads(arguments.threads)
    images = (np.random.default_rng(0).random((800, 1, 28, 28)) < 0.2).astype(np.uint8)
    data = load_data(images, levels=2)
    for network in arguments.networks:
        torch.manual_seed(0)
        model = VAE(data.space, n_latents=16, network=network)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            n = len(data.train) // BATCH_SIZE * BATCH_SIZE
            x = torch.from_numpy(data.train.read(np.arange(n))[0])
            loops = {
                "theirs": their_loop(copy.deepcopy(model), x, Path(folder)),
                "ours": our_loop(copy.deepcopy(model), data, Path(folder)),
            }
            ratios = []
            for pair in range(arguments.pairs + 1):
                seconds = {}
                for loop in sorted(loops, reverse=pair % 2 == 0):
                    start = time.perf_counter()
                    with contextlib.redirect_stderr(io.StringIO()):
                        loops[loop]()
                    seconds[loop] = time.perf_counter() - start
                ratios.append(seconds["ours"] / seconds["theirs"])
        ratios = sorted(ratios[1:])  # the first pair warms up
        middle, spread = len(ratios) / 2, 0.98 * len(ratios) ** 0.5
        low, high = ratios[max(0, int(middle - spread))], ratios[min(len(ratios) - 1, int(middle + spread))]
        print(
            f"{network}: {statistics.median(ratios):.3f} of pythae's time"
            f" (95 % interval of the median {low:.3f} .. {high:.3f}, {len(ratios)} pairs of {n // BATCH_SIZE} steps)",
            flush=True,
        )


if __name__ == "__main__":
    main()
