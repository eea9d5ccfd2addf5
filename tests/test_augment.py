"""Augmentation for discriminators: what it changes and what it keeps, its gradients, and the strength that adapts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.implicit.gan import GAN
from triptych.nn.augment import ADAPTIVE_IMAGES, TARGET, Augmentation, augmentation_of
from triptych.objectives.adversarial import ObjectiveName
from triptych.spaces import ImageSpace, PointSpace

PALETTE = ((0, 0, 0), (9, 9, 9), (255, 0, 0))
SPACES = {
    "grey": ImageSpace(1, 12, 16, 17),
    "RGB": ImageSpace(3, 9, 7),
    "binary": ImageSpace(1, 12, 16, 2),
    "palette": ImageSpace(1, 12, 16, 3, palette=PALETTE),
}


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_data(space: ImageSpace, n: int) -> Tensor:
    """Scaled images of a space, (n, n_channels, H, W)."""
    model = GAN(space, hidden=4, n_latents=2)
    return model.scale(torch.randint(space.levels, (n, *space.shape), generator=noise()).to(torch.uint8))


@pytest.mark.parametrize("name", SPACES)
def test_it_is_affine_in_the_image_with_true_gradients(name: str) -> None:
    augmentation = Augmentation(SPACES[name], adaptive=False)
    y = random_data(SPACES[name], 3).double()
    changed = augmentation(y, noise(1))
    assert changed.shape == y.shape
    assert not torch.equal(changed, y)
    assert torch.equal(changed, augmentation(y, noise(1)))
    direction = torch.randn(y.shape, generator=noise(2), dtype=y.dtype)
    _, slope = torch.autograd.functional.jvp(lambda x: augmentation(x, noise(1)), y, direction)
    torch.testing.assert_close(augmentation(y + direction, noise(1)) - changed, slope)


def test_nothing_changes_at_probability_zero() -> None:
    augmentation = augmentation_of("adaptive", SPACES["RGB"])
    assert augmentation is not None
    y = random_data(SPACES["RGB"], 4)
    torch.testing.assert_close(augmentation(y, noise()), y)


def test_each_image_is_chosen_with_probability_p() -> None:
    augmentation = Augmentation(SPACES["binary"], adaptive=True)
    augmentation.p.fill_(0.3)
    cut = augmentation._cut(torch.ones(4000, 1, 12, 16), noise()) == 0
    assert float(cut.flatten(1).any(1).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_translation_moves_whole_images_by_an_eighth_at_most() -> None:
    augmentation = Augmentation(ImageSpace(1, 16, 24, 2), adaptive=False)
    y = torch.zeros(500, 1, 16, 24)
    y[:, :, 8, 12] = 1
    sites = augmentation._moved(y, noise()).nonzero()
    assert len(sites) == 500, "the site is never lost this far from the border"
    assert sorted(set(sites[:, 2].tolist())) == [6, 7, 8, 9, 10]
    assert sorted(set(sites[:, 3].tolist())) == [9, 10, 11, 12, 13, 14, 15]
    filled = augmentation._moved(torch.ones(500, 1, 16, 24), noise())
    assert set(filled.unique().tolist()) == {0.0, 1.0}, "zeros come in"


def test_cutout_is_a_rectangle_half_as_high_and_wide() -> None:
    augmentation = Augmentation(ImageSpace(1, 8, 12, 2), adaptive=False)
    cut = augmentation._cut(torch.ones(300, 1, 8, 12), noise())[:, 0] == 0  # (N, H, W)
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])
    assert int(rows.sum(1).max()) == 4
    assert int(columns.sum(1).max()) == 6
    assert int(rows.sum(1).min()) == 2, "the centre is on the image"


def test_colour_is_an_affine_map_of_grey_levels_and_keeps_the_hues_average() -> None:
    grey = Augmentation(SPACES["grey"], adaptive=False)
    y = random_data(SPACES["grey"], 200)
    changed = grey._recoloured(y, noise())
    contrast = changed.std((1, 2, 3)) / y.std((1, 2, 3))
    assert 0.5 <= float(contrast.min()) < 0.6
    assert 1.4 < float(contrast.max()) <= 1.5 + 1e-5
    shift = changed.mean((1, 2, 3)) - y.mean((1, 2, 3))
    assert 0.4 < float(shift.abs().max()) <= 0.5
    correlation = ((y - y.mean((1, 2, 3), True)) * changed).mean((1, 2, 3)) / (
        y.std((1, 2, 3), correction=0) * changed.std((1, 2, 3), correction=0)
    )
    torch.testing.assert_close(correlation, torch.ones(200))
    colours = Augmentation(SPACES["RGB"], adaptive=False)
    flat = torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1, 1).expand(200, 3, 9, 7)
    spread = colours._recoloured(flat, noise())
    shares = (spread[:, 0] - spread[:, 2]) / (spread[:, 0] - spread[:, 1])
    torch.testing.assert_close(shares, torch.full_like(shares, 2.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["binary", "palette"])
def test_levels_without_an_order_between_them_keep_their_colours(name: str) -> None:
    y = random_data(SPACES[name], 50)
    changed = Augmentation(SPACES[name], adaptive=False)(y, noise())
    assert set(changed.unique().tolist()) == {*y.unique().tolist(), 0.0}


def test_the_strength_follows_the_sign_of_real_logits() -> None:
    augmentation = Augmentation(SPACES["grey"], adaptive=True)
    batch, steps = 500, ADAPTIVE_IMAGES // 500
    strengths = []
    for _ in range(steps + 10):
        augmentation.adapt(torch.ones(batch))
        strengths.append(float(augmentation.p))
    assert strengths[-1] == 1
    assert 0.4 < strengths[steps // 2] < 0.5, "it rises by the images seen, once the running mean is past the target"
    mixed = torch.cat([torch.ones(60), -torch.ones(40)])  # mean sign 0.2, below the target
    assert float(mixed.sign().mean()) < TARGET
    for _ in range(100):
        augmentation.adapt(mixed)
    assert float(augmentation.p) < 1
    for _ in range(2 * steps):
        augmentation.adapt(-torch.ones(batch))
    assert float(augmentation.p) == 0


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="augment is 'mirror'"):
        augmentation_of("mirror", SPACES["grey"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="points have 'none'"):
        GAN(PointSpace(2), augment="diff")
    assert augmentation_of("none", PointSpace(2)) is None


def model_of(augment: str, objective: ObjectiveName = "non_saturating") -> GAN:
    torch.manual_seed(0)
    return GAN(SPACES["grey"], hidden=4, n_latents=2, objective=objective, augment=augment)  # type: ignore[arg-type]


def test_the_generator_learns_through_it() -> None:
    batch = Batch(torch.randint(17, (4, *SPACES["grey"].shape), generator=noise()))
    gradients = {}
    for augment in ("none", "diff"):
        model = model_of(augment)
        model.loss(batch, "generator", generator=noise(1)).total.backward()
        gradients[augment] = [parameter.grad for parameter in model.generator.parameters()]
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[augment])
    assert not all(map(torch.equal, gradients["none"], gradients["diff"]))


def test_real_and_generated_images_are_changed_alike() -> None:
    model = model_of("diff")
    y = random_data(SPACES["grey"], 4)
    assert model.augmentation is not None
    width = 1 / 8  # levels of 17
    expected = model.augmentation(y + width * (torch.rand(y.shape, generator=(g := noise(3))) - 0.5), g)
    torch.testing.assert_close(model.view(y, noise(3)), expected)


def test_the_strength_moves_in_training_alone_and_is_kept() -> None:
    model = model_of("adaptive")
    batch = Batch(torch.randint(17, (64, *SPACES["grey"].shape), generator=noise()))
    torch.nn.init.constant_(model.verdict.bias, 1e3)
    loss = model.eval().loss(batch, "discriminator", generator=noise())
    assert float(loss.terms["augment_p"]) == 0
    for _ in range(8):
        model.train().loss(batch, "discriminator", generator=noise())
    assert float(model.augmentation.p) > 0  # type: ignore[union-attr]
    other = model_of("adaptive")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.augmentation.p, model.augmentation.p)  # type: ignore[union-attr]


@pytest.mark.parametrize("objective", ["wasserstein", "relativistic", "least_squares"])
def test_scores_without_a_zero_are_centred(objective: ObjectiveName) -> None:
    batch = Batch(torch.randint(17, (16, *SPACES["grey"].shape), generator=noise()))
    signs = []
    for bias in (0.0, 1e3):
        model = model_of("adaptive", objective)
        model.verdict.bias = torch.nn.Parameter(torch.tensor([bias]))  # The relativistic game has none of its own.
        torch.nn.init.constant_(model.verdict.weight, 10.0)  # differences that stand out from the rounding of 1000
        model.train().loss(batch, "discriminator", generator=noise())
        signs.append(float(model.augmentation.sign))  # type: ignore[union-attr]
    assert signs[0] == pytest.approx(signs[1], abs=0.05)
