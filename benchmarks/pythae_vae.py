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
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_loop import BATCH_SIZE, Loop, describe, our_loop, time_pairs

from triptych.data.load import load_data
from triptych.models.approximate.vae import VAE

PEERS = Path(__file__).parent.parent / "build" / "peers"
PACKAGES = ["pythae==0.1.2", "cloudpickle", "imageio", "pydantic", "pydantic-core", "annotated-types"]
PACKAGES += ["typing-inspection", "tqdm"]


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


def their_loop(model: VAE, x: Tensor, folder: Path) -> Loop:
    """pythae's trainer on our encoder and decoder; returns a function that runs an epoch, however many its steps."""
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
    return lambda steps: trainer.train_step(1)


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
        silence = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            steps = len(data.train) // BATCH_SIZE
            x = torch.from_numpy(data.train.read(np.arange(steps * BATCH_SIZE))[0])
            theirs = their_loop(copy.deepcopy(model), x, Path(folder))
            ours = our_loop(copy.deepcopy(model), data, Path(folder), bare=False)
            _, *ratios = time_pairs(ours, theirs, arguments.pairs + 1, steps)  # the first pair warms up
        print(f"{network}: {describe(ratios, 'pythae', f'pairs of {steps} steps')}", flush=True)


if __name__ == "__main__":
    main()
