"""PixelCNN is a normalised density, and its sampler draws from it."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.registry import create_model, model_options
from triptych.models.tractable import pixel_cnn
from triptych.models.tractable.pixel_cnn import PixelCNN
from triptych.sampling.autoregressive import decide, draw_naive
from triptych.spaces import ImageSpace

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
SPACES = {
    "grey": ImageSpace(1, 5, 7, 4),
    "rgb": ImageSpace(3, 4, 3, 5),
    "rgb row": ImageSpace(3, 1, 6, 256),
    "column": ImageSpace(1, 6, 1, 2),
    "palette": ImageSpace(1, 4, 5, 4, PALETTE),
}


def model_for(space: ImageSpace, n_classes: int = 0, **options: float) -> PixelCNN:
    """A small model whose random weights are large enough to make its distribution far from uniform."""
    torch.manual_seed(0)
    model = PixelCNN(space, n_classes, **({"hidden": 6, "n_blocks": 2} | options)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)
    return model


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).view(-1, *space.shape)


@pytest.mark.parametrize(
    "space",
    [
        ImageSpace(1, 3, 3, 2),
        ImageSpace(3, 1, 2, 2),
        ImageSpace(3, 2, 1, 3),
        ImageSpace(1, 2, 3, 3),
        ImageSpace(1, 2, 2, 4, PALETTE),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_classes", [0, 2])
def test_probabilities_of_all_images_sum_to_one(space: ImageSpace, n_classes: int) -> None:
    model, x = model_for(space, n_classes), all_images(space)
    sums = []
    with torch.no_grad():
        for label in range(max(1, n_classes)):
            labels = torch.full((len(x),), label) if n_classes else None
            log_prob = model.log_prob(x, labels)
            assert log_prob.std() > 0.5
            sums.append(log_prob.double().exp().sum().item())
    assert sums == pytest.approx([1] * len(sums), abs=1e-5)


def test_classes_have_distributions_of_their_own() -> None:
    model, x = model_for(ImageSpace(1, 2, 2, 3), 2), all_images(ImageSpace(1, 2, 2, 3))
    with torch.no_grad():
        of_0, of_1 = (model.log_prob(x, torch.full((len(x),), label)) for label in (0, 1))
    assert (of_0 - of_1).abs().max() > 0.1


@pytest.mark.parametrize("n_classes", [0, 3])
@pytest.mark.parametrize("name", SPACES)
def test_wavefronts_draw_the_naive_samplers_image(name: str, n_classes: int) -> None:
    space = SPACES[name]
    model = model_for(space, n_classes)
    labels = torch.tensor([0, 2, 1, 2]) if n_classes else None
    x = model.sample(4, labels=labels, generator=torch.Generator().manual_seed(3))
    noise = torch.rand(4, *space.shape, generator=torch.Generator().manual_seed(3))
    space.check(x)
    assert x.dtype == torch.uint8
    assert len(x.unique()) > 1
    assert torch.equal(draw_naive(lambda x: model.logits(x, labels), noise), x.long())
    # One forward pass proves the same: each sub-pixel is what its noise decides, given the sub-pixels before it.
    with torch.no_grad():
        assert torch.equal(decide(model.logits(x, labels).movedim(2, -1), noise), x.long())


@pytest.mark.parametrize("name", SPACES)
def test_drawing_one_image_leaves_the_weights_alone(name: str) -> None:
    model = model_for(SPACES[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = model.sample(1, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    noise = torch.rand(1, *SPACES[name].shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_naive(model.logits, noise), x.long())


@pytest.mark.slow
@pytest.mark.parametrize("space", [ImageSpace(1, 28, 28, 256), ImageSpace(3, 32, 32, 256)], ids=str)
def test_large_draws_pass_the_one_forward_check(space: ImageSpace) -> None:
    torch.manual_seed(0)
    model = PixelCNN(space).eval()
    x = model.sample(4, generator=torch.Generator().manual_seed(3))
    noise = torch.rand(4, *space.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        same = decide(model.logits(x).movedim(2, -1), noise) == x.long()
    # Rounding may move a step of the distribution function past a sub-pixel's noise now and then.
    assert (~same).sum() <= 1e-4 * x.numel()


@pytest.mark.parametrize("space", [ImageSpace(1, 2, 2, 3), ImageSpace(3, 1, 2, 2)], ids=str)
def test_frequencies_of_draws_agree_with_log_prob(space: ImageSpace) -> None:
    model, x = model_for(space), all_images(space)
    n = 20_000
    drawn = model.sample(n, generator=torch.Generator().manual_seed(0))
    place = space.levels ** torch.arange(space.n_dims - 1, -1, -1)
    observed = (drawn.long().flatten(1) * place).sum(1).bincount(minlength=len(x)).double()
    with torch.no_grad():
        expected = n * model.log_prob(x).double().exp()
    rare = expected < 5  # pooled, as the chi-squared approximation needs
    observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    statistic = ((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum().item()
    assert stats.chi2.sf(statistic, len(expected) - 1) > 0.001


def test_draws_are_chunked_and_depend_on_the_generator_alone() -> None:
    model = model_for(ImageSpace(1, 2, 2, 4))
    first, again, other = (model.sample(300, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (300, 1, 2, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert model.sample(0).shape == (0, 1, 2, 2)


def test_a_conditional_model_draws_missing_labels() -> None:
    model = model_for(ImageSpace(1, 2, 2, 4), 3)
    assert model.sample(5, generator=torch.Generator().manual_seed(0)).shape == (5, 1, 2, 2)


def test_more_than_256_levels() -> None:
    model = model_for(ImageSpace(1, 2, 2, 1000))
    x = model.sample(8, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.int32
    assert x.max() > 255
    assert model.log_prob(x).shape == (8,)


def test_dropout_is_off_in_drawing_and_the_mode_is_restored() -> None:
    model = model_for(ImageSpace(1, 4, 4, 4), dropout=0.5)
    expected = model.sample(6, generator=torch.Generator().manual_seed(0))
    model.train()
    assert torch.equal(model.sample(6, generator=torch.Generator().manual_seed(0)), expected)
    assert model.training
    with torch.no_grad():
        assert not torch.equal(model.log_prob(expected), model.log_prob(expected))
        model.eval()
        assert torch.equal(model.log_prob(expected), model.log_prob(expected))


def test_scores_do_not_depend_on_chunks_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for(SPACES["rgb"], 2)
    x, labels = model.sample(5, labels=torch.tensor([0, 1, 1, 0, 1])), torch.tensor([0, 1, 1, 0, 1])
    whole = model.log_prob(x, labels)
    assert whole.requires_grad
    monkeypatch.setattr(pixel_cnn, "MAX_LOGITS", 2 * 36 * 5)
    with torch.no_grad():
        torch.testing.assert_close(model.log_prob(x, labels), whole.detach())


def test_bfloat16_stays_near_float32() -> None:
    model = PixelCNN(ImageSpace(3, 8, 8, 256), hidden=24, n_blocks=3).eval()
    x = torch.randint(256, (4, 3, 8, 8))
    with torch.no_grad():
        exact = model.log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.log_prob(x)
            drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(drawn, model.sample(2, generator=torch.Generator().manual_seed(0)))
    assert rounded.dtype == torch.float32
    # Eight bits of mantissa: a thousandth of a nat a sub-pixel.
    torch.testing.assert_close(rounded, exact, atol=1e-3 * 192, rtol=0)


def test_loss_is_in_bits_per_dim() -> None:
    space = SPACES["rgb"]
    model = model_for(space)
    x = model.sample(6, generator=torch.Generator().manual_seed(0))
    (phase,) = model.phases()
    loss = model.loss(Batch(x, torch.zeros(6, dtype=torch.int64)), phase.name)  # labels are ignored
    assert {id(p) for p in phase.parameters} == {id(p) for p in model.parameters()}
    assert loss.terms["nats_per_image"].item() == pytest.approx(-model.log_prob(x).mean().item())
    assert loss.total.item() == pytest.approx(space.bits_per_dim(loss.terms["nats_per_image"].item()))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="hidden is 32; it must be a multiple of the 3 channels, such as 33"):
        PixelCNN(ImageSpace(3, 4, 4), hidden=32)
    for options in ({"n_blocks": 0}, {"kernel_size": 4}, {"kernel_size": 1}, {"dropout": 1.0}, {"hidden": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            PixelCNN(ImageSpace(1, 4, 4), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        model_for(ImageSpace(1, 4, 4)).log_prob(torch.zeros(2, 1, 4, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="give labels"):
        model_for(ImageSpace(1, 4, 4), 2).log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.int64))


def test_the_registry_knows_it() -> None:
    assert "hidden" in model_options("pixel_cnn")
    assert isinstance(create_model("pixel_cnn", ImageSpace(3, 4, 4, 8), n_blocks=1), PixelCNN)
