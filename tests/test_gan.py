"""The GAN: what each phase minimises, the penalty, conditioning, and that rounding hides nothing from the game."""

from __future__ import annotations

import math

import pytest
import torch

from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.implicit.gan import GAN
from triptych.spaces import ImageSpace, PointSpace


def model_of(space: ImageSpace | PointSpace, n_classes: int = 0, **options: float) -> GAN:
    torch.manual_seed(0)
    return GAN(space, n_classes, hidden=8, n_latents=4, **options)  # type: ignore[arg-type]


def test_a_blind_discriminator_pays_log_4_and_its_generator_log_2() -> None:
    model = model_of(ImageSpace(1, 8, 8, 17))
    torch.nn.init.zeros_(model.verdict.weight)
    torch.nn.init.zeros_(model.verdict.bias)
    batch = Batch(torch.randint(17, (8, 1, 8, 8)))
    assert float(model.loss(batch, "discriminator").total.detach()) == pytest.approx(2 * math.log(2))
    assert float(model.loss(batch, "generator").total.detach()) == pytest.approx(math.log(2))


def test_the_penalty_is_weighed_by_gamma() -> None:
    batch = Batch(torch.randint(17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0)))
    losses = {}
    for gamma in (0.0, 1.0, 5.0):
        model = model_of(ImageSpace(1, 8, 8, 17), gamma=gamma)
        loss = model.loss(batch, "discriminator", generator=torch.Generator().manual_seed(0))
        losses[gamma] = float(loss.total.detach()), {key: float(value) for key, value in loss.terms.items()}
    assert "r1" not in losses[0.0][1]
    penalty = losses[1.0][1]["r1"]
    assert penalty > 0
    for gamma in (1.0, 5.0):
        assert losses[gamma][0] == pytest.approx(losses[0.0][0] + gamma / 2 * penalty, rel=1e-4)


def test_the_discriminators_phase_leaves_no_gradient_in_the_generator() -> None:
    model = model_of(ImageSpace(3, 9, 8))
    model.loss(Batch(torch.randint(256, (4, 3, 9, 8))), "discriminator").total.backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert all(parameter.grad is not None for parameter in model.discriminator.parameters())


def test_phases_have_k_critic_steps_and_cover_both_players() -> None:
    discriminator, generator = model_of(ImageSpace(1, 8, 8), critic_steps=5).phases()
    assert (discriminator.name, discriminator.steps, generator.name, generator.steps) == (
        "discriminator",
        5,
        "generator",
        1,
    )
    assert not {id(p) for p in discriminator.parameters} & {id(p) for p in generator.parameters}


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_scaling_and_rounding(levels: int) -> None:
    model = model_of(ImageSpace(1, 8, 8, levels))
    x = torch.randint(levels, (4, 1, 8, 8), dtype=torch.uint8 if levels <= 256 else torch.int32)
    y = model.scale(x)
    assert -1 <= float(y.min()) <= float(y.max()) <= 1
    assert torch.equal(model.scale.inverse(y), x)
    noisy = model.view(y, torch.Generator().manual_seed(0))
    assert float((noisy - y).abs().max()) <= min(1 / (levels - 1), 1 / 16) + 1e-6
    assert torch.equal(model.scale.inverse(y + 0.9 * (noisy - y)), x), "the noise stays within a level"


def test_generate_is_what_sample_draws() -> None:
    model = model_of(ImageSpace(1, 8, 8, 17)).eval()
    z = torch.randn((6, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(model.generate(z), model.sample(6, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 7), (28, 28), (32, 32)])
def test_any_size_can_be_drawn_and_judged(size: tuple[int, int]) -> None:
    space = ImageSpace(3, *size, 256)
    model = model_of(space)
    x = model.sample(2)
    assert x.shape == (2, *space.shape)
    assert model.judge(model.scale(x)).logits.shape == (2,)


@pytest.mark.parametrize("option", ["n_latents", "hidden", "critic_steps", "gamma"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=option):
        GAN(ImageSpace(1, 8, 8), **{option: -1})
    if option != "gamma":
        with pytest.raises(InputError, match=option):
            GAN(ImageSpace(1, 8, 8), **{option: 0})


@pytest.mark.slow
def test_a_gaussian_is_learnt() -> None:
    from triptych.data.dataset import Dataset, Split

    points = torch.randn((4000, 2), generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.3]) + 5
    split = Split(points.numpy())
    data = Dataset("gaussian", PointSpace(2, (5.0, 5.0), 0.75), split, split, split)
    import tempfile

    import triptych

    with tempfile.TemporaryDirectory() as folder:
        model = triptych.fit("gan", data, out=f"{folder}/run", budget="1500steps", verbose=False)
    drawn = model.sample(4000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), points.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(drawn.std(0), points.std(0), rtol=0.3, atol=0.05)
