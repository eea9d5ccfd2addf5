"""The autoencoder: the linear one is PCA, codes have a density only afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.config import TrainConfig
from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.models.approximate.autoencoder import Autoencoder
from triptych.models.base import ApproximateDensity, Batch, TractableDensity
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.trainer import Trainer


def test_the_linear_one_spans_the_principal_subspace() -> None:
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(0)
    basis = torch.randn((4, 36), generator=generator) * torch.tensor([[8.0], [6.0], [4.0], [1.0]])
    x = torch.randn((400, 4), generator=generator) @ basis + 128 + torch.randn((400, 36), generator=generator)
    x = x.round().clamp(0, 255).to(torch.uint8).view(-1, 1, 6, 6)
    torch.manual_seed(0)
    model = Autoencoder(ImageSpace(1, 6, 6, 256), n_latents=3, network="linear")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=400, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(Batch(x), "reconstruction").total
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        z = torch.randn((50, 3), generator=generator)
        spanned = (model.reconstruction(z) - model.reconstruction(torch.zeros(1, 3))).flatten(1).numpy()
    axes = PCA(3).fit(x.flatten(1).numpy()).components_  # (3, 36), orthonormal rows
    inside = spanned @ axes.T @ axes
    assert np.linalg.norm(spanned - inside) < 0.02 * np.linalg.norm(spanned)


def test_has_no_density_and_says_so() -> None:
    model = Autoencoder(ImageSpace(1, 4, 4, 3))
    assert not isinstance(model, ApproximateDensity | TractableDensity)
    assert not model.has_normal_prior


@pytest.mark.parametrize("network", ["linear", "sigmoid", "deep", "convolutional"])
def test_training_leaves_a_density_of_the_codes(network: str, tmp_path: Path) -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    model = Autoencoder(data.space, n_latents=4, hidden=8, network=network, n_components=3)  # type: ignore[arg-type]
    trainer = Trainer(model, data, TrainConfig(budget="30steps"), tmp_path)
    trainer.fit()
    trained = trainer.ema
    assert isinstance(trained, Autoencoder)
    with torch.no_grad():
        codes = trained.encode(torch.from_numpy(data.train.read()[0]))
        drawn = trained.density.sample(2000, generator=torch.Generator().manual_seed(0))
        drawn = drawn * trained.code_scale + trained.code_center
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.2 * float(codes.std(0).max()))
    torch.testing.assert_close(drawn.std(0), codes.std(0), rtol=0.2, atol=1e-3)
    if network == "sigmoid":
        assert bool(((codes >= 0) & (codes <= 1)).all())
    again = Autoencoder(data.space, n_latents=4, hidden=8, network=network, n_components=3)  # type: ignore[arg-type]
    from safetensors.torch import load_file

    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again.eval()
    same = (m.sample(8, generator=torch.Generator().manual_seed(1)) for m in (trained, again))
    torch.testing.assert_close(*same)


def test_classes_with_fewer_items_than_components_are_no_error() -> None:
    model = Autoencoder(PointSpace(2), n_classes=2, n_latents=1, n_components=10).eval()
    x, labels = torch.randn(9, 2), torch.tensor([0] * 7 + [1] * 2)
    model.complete(x, labels, generator=torch.Generator().manual_seed(0))
    assert model.sample(6, labels=torch.arange(6) % 2).isfinite().all()


def test_points_are_not_convolved() -> None:
    with pytest.raises(InputError, match="network"):
        Autoencoder(PointSpace(2), network="convolutional")
