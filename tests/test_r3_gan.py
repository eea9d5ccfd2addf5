"""R3GAN: its blocks and their start, the game it plays, its schedule, and shapes of any size."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from players import data_of, shake
from torch import Tensor, nn

import triptych
from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.implicit.r3_gan import R3GAN, _Block
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.files import read_weights


def model_of(space: ImageSpace, n_classes: int = 0, *, shaken: bool = False, **options: float) -> R3GAN:
    torch.manual_seed(0)
    model = R3GAN(space, n_classes, **{"hidden": 8, "n_latents": 4, **options})  # type: ignore[arg-type]
    if shaken:  # so that the branches, which start at zero, say something
        shake(model)
    return model


def test_a_block_is_an_inverted_grouped_bottleneck_that_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    block = _Block(64, n_branches=4)
    x = torch.randn(2, 64, 5, 5)
    assert torch.equal(block(x), x)
    assert (block.mix.in_channels, block.mix.groups) == (128, 8)
    # Fixup, for the three layers of each of four branches: gain * 4^(-1/4).
    for layer, n_inputs in ((block.expand, 64), (block.mix, 16 * 9)):
        expected = math.sqrt(2 / 1.04) * 4**-0.25 / math.sqrt(n_inputs)
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)
    nn.init.normal_(block.project.weight)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1
    seen = (block(changed) - block(x))[0].abs().amax(0) > 0
    assert seen[:2, :2].all()
    assert int(seen.sum()) == 4, "one 3x3 convolution, of the neighbours alone"


def test_there_is_no_normalisation_and_no_bias_at_the_ends() -> None:
    model = model_of(ImageSpace(1, 28, 28), 3)
    kinds = {type(module) for module in model.modules() if not list(module.children())}
    assert kinds <= {nn.Conv2d, nn.Linear, nn.Embedding, nn.Identity} | {type(model.scale)}
    assert model.discriminator.out.bias is None
    assert model.generator.out.bias is None
    assert [blocks[0].expand.in_channels for blocks in model.discriminator.blocks] == [8, 16, 32, 64]  # type: ignore[index, union-attr]


def test_images_and_logits_start_at_unit_scale_however_deep() -> None:
    for n_blocks in (1, 3):
        model = model_of(ImageSpace(1, 32, 32), hidden=16, n_latents=64, n_blocks=n_blocks)
        with torch.no_grad():
            y = model.fake(model.draw_latents(64))
            assert 0.2 < float(y.square().mean().sqrt()) < 2
            assert 0.05 < float(model.judge(torch.randn(64, 1, 32, 32)).logits.square().mean().sqrt()) < 3


def test_the_class_enters_the_logits_by_a_projection() -> None:
    model = model_of(ImageSpace(1, 8, 8, 17), 3, shaken=True)
    y = model.scale(data_of(ImageSpace(1, 8, 8, 17), 4))
    features: list[Tensor] = []
    model.discriminator.out.register_forward_hook(lambda m, i, o: features.append(o))
    with torch.no_grad():
        for label in range(3):
            logits = model.judge(y, torch.full((4,), label)).logits
            assert model.discriminator.embedding is not None
            torch.testing.assert_close(logits, features[-1] @ model.discriminator.embedding.weight[label])


def test_the_discriminators_loss_is_the_papers_and_gamma_falls() -> None:
    space = ImageSpace(1, 8, 8, 17)
    model = model_of(space, shaken=True, gamma=0.8, burn_in=0.5)
    assert (model.gamma_end, model.rules.objective) == (pytest.approx(0.08), "relativistic")

    def loss(progress: float) -> tuple[float, dict[str, float]]:
        batch = Batch(data_of(space, 8), progress=progress)
        total, terms = model.loss(batch, "discriminator", generator=torch.Generator().manual_seed(0))
        return float(total.detach()), {key: float(value) for key, value in terms.items()}

    for progress, gamma in ((0.0, 0.8), (0.25, 0.44), (0.5, 0.08), (1.0, 0.08)):
        total, terms = loss(progress)
        assert terms["r1"] > 0
        assert terms["r2"] > 0
        assert total == pytest.approx(terms["game"] + gamma / 2 * (terms["r1"] + terms["r2"]), rel=1e-5)


def test_a_blind_discriminator_pays_log_2_and_so_does_the_generator() -> None:
    model = model_of(ImageSpace(1, 8, 8, 17))
    nn.init.zeros_(model.discriminator.out.weight)
    batch = Batch(data_of(ImageSpace(1, 8, 8, 17), 4))
    for phase in ("discriminator", "generator"):
        assert float(model.loss(batch, phase).total.detach()) == pytest.approx(math.log(2))


def test_it_runs_in_bfloat16() -> None:
    space = ImageSpace(1, 9, 8, 17)
    model = model_of(space, 2, shaken=True)
    batch = Batch(data_of(space, 4), torch.arange(4) % 2)
    with torch.autocast("cpu", torch.bfloat16):
        for phase in ("discriminator", "generator"):
            model.loss(batch, phase).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="models images"):
        R3GAN(PointSpace(2))  # type: ignore[arg-type]
    for option in ("hidden", "n_blocks", "burn_in"):
        with pytest.raises(InputError, match=option):
            model_of(ImageSpace(1, 8, 8), **{option: 0})
    with pytest.raises(InputError, match="gamma_end"):
        model_of(ImageSpace(1, 8, 8), gamma_end=-1)


def test_a_short_training_moves_the_weights_and_leaves_them_finite(tiny: Dataset, tmp_path: Path) -> None:
    model = triptych.fit("r3_gan", tiny, out=str(tmp_path / "run"), budget="6steps", hidden=4, verbose=False)
    trained = read_weights(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())
    # The last convolutions of all branches start at zero.
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if name.endswith("project.weight"))
    copied = copy.deepcopy(model)
    noise = torch.Generator()
    assert torch.equal(
        copied.sample(3, generator=noise.manual_seed(0)), model.sample(3, generator=noise.manual_seed(0))
    )
