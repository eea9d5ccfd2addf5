"""Every autoregressive model is a normalised density that sees the past alone, and every sampler draws from it.

A new model is tested the day its file is added; a line in `SMALL` keeps it small.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from triptych.errors import InputError
from triptych.models import autoregressive, registry
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import Batch
from triptych.sampling.autoregressive import SAMPLERS, Drawing, Sampler, Warp
from triptych.spaces import ImageSpace

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
SPACES = {
    "grey": ImageSpace(1, 5, 7, 4),
    "binary": ImageSpace(1, 6, 4, 2),
    "rgb": ImageSpace(3, 4, 3, 5),
    "rgb row": ImageSpace(3, 1, 6, 256),
    "column": ImageSpace(1, 6, 1, 2),
    "palette": ImageSpace(1, 4, 5, 4, PALETTE),
}
SMALL: dict[str, dict[str, Any]] = {
    "diagonal_bilstm": {"hidden": 6, "n_layers": 2},
    "gated_pixel_cnn": {"hidden": 24, "n_layers": 3},
    "pixel_cnn": {"hidden": 12, "n_blocks": 1},
    "pixel_cnn_pp": {"hidden": 4, "n_blocks": 1, "n_resolutions": 2, "n_mixtures": 3},
    "row_lstm": {"hidden": 6, "n_layers": 2},
    "pixel_lstm": {"hidden": 8, "n_layers": 2},
    "pixel_snail": {"hidden": 6, "n_blocks": 1, "n_layers": 2, "n_heads": 2, "n_mixtures": 3},
}
MODELS = [name for name in registry.find_models() if issubclass(registry.model_class(name), AutoregressiveDensity)]


def model_for(name: str, space: ImageSpace, n_classes: int = 0, **options: Any) -> AutoregressiveDensity:
    """A small model whose random weights make its distribution far from uniform, and as far from certain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.create_model(name, space, n_classes=n_classes, **(SMALL.get(name, {}) | options)).eval()
        assert isinstance(model, AutoregressiveDensity)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter)).mul_(2.5)
            labels = torch.zeros(64, dtype=torch.int64) if n_classes else None
            for _ in range(6):
                nats = -model.log_prob(model.sample(64, labels=labels), labels).mean() / space.n_dims
                if nats > 0.6 * math.log(space.levels):
                    break
                for parameter in model.parameters():
                    parameter.mul_(0.8)
    return model


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).view(-1, *space.shape)


def chi_squared(observed: Tensor, expected: Tensor) -> float:
    """The p-value of counts, rare outcomes pooled as the approximation needs."""
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    statistic = ((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum().item()
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def drawn(model: AutoregressiveDensity, n: int, seed: int = 3, **arguments: Any) -> Tensor:
    return model.draw(n, generator=torch.Generator().manual_seed(seed), **arguments)


def in_order(outputs: Tensor, n_groups: int) -> Tensor:
    """(N, G * F, H, W) to (N, outputs in the order of drawing, F)."""
    return outputs.unflatten(1, (n_groups, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


@pytest.mark.parametrize("name", MODELS)
class TestDensity:
    @pytest.mark.parametrize("n_classes", [0, 2])
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
    def test_probabilities_of_all_images_sum_to_one(self, name: str, space: ImageSpace, n_classes: int) -> None:
        model, x = model_for(name, space, n_classes), all_images(space)
        sums = []
        with torch.no_grad():
            for label in range(max(1, n_classes)):
                labels = torch.full((len(x),), label) if n_classes else None
                log_prob = model.log_prob(x, labels)
                assert log_prob.std() > 0.3
                sums.append(log_prob.double().exp().sum().item())
        assert sums == pytest.approx([1] * len(sums), abs=1e-5)

    def test_classes_have_distributions_of_their_own(self, name: str) -> None:
        model, x = model_for(name, ImageSpace(1, 2, 2, 3), 2), all_images(ImageSpace(1, 2, 2, 3))
        with torch.no_grad():
            of_0, of_1 = (model.log_prob(x, torch.full((len(x),), label)) for label in (0, 1))
        assert (of_0 - of_1).abs().max() > 0.05

    @pytest.mark.parametrize("title", ["grey", "rgb", "palette"])
    def test_flipping_a_sub_pixel_changes_later_outputs_only(self, name: str, title: str) -> None:
        space = SPACES[title]
        model, n_groups = model_for(name, space), model_for(name, space).head.n_groups
        x = torch.randint(space.levels, space.shape, generator=torch.Generator().manual_seed(0))
        flipped = x.expand(space.n_dims, *space.shape).clone()
        order = torch.arange(space.n_dims).view(space.channels, -1).t().flatten()  # site by site, then channels
        places = torch.arange(space.n_dims), order
        flipped.flatten(1)[places] = (flipped.flatten(1)[places] + 1) % space.levels
        with torch.no_grad():
            # One image a pass: an image's place in a batch can change the order of summation, and so the last bits.
            before = in_order(model.outputs(x[None]), n_groups)
            changed = torch.cat([(in_order(model.outputs(y[None]), n_groups) != before).any(-1) for y in flipped])
        # Row i says which outputs the flip of sub-pixel i changed: none up to its own, bit for bit.
        reads = torch.arange(changed.shape[1]).repeat_interleave(space.channels // n_groups)  # each sub-pixel's output
        assert not changed[torch.arange(changed.shape[1])[None] <= reads[:, None]].any()
        # Each sub-pixel of a row is seen by the output that follows it: the receptive field is not empty.
        n_row = space.width * n_groups
        followed = [i for i, own in enumerate(reads.tolist()) if (own + 1) % n_row]
        assert changed[followed, reads[followed] + 1].all()

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_jacobian_is_strictly_triangular(self, name: str, channels: int) -> None:
        space = ImageSpace(channels, 3, 4, 3)
        model = model_for(name, space).double()
        n_groups = model.head.n_groups
        x = torch.randn(1, channels, 3, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: model.network(x, None), x)[0, :, :, :, 0]
        by_input = jacobian.permute(4, 5, 3, 0, 1, 2).flatten(0, 2)  # (inputs in the order of drawing, G * F, H, W)
        influence = in_order(by_input, n_groups).abs().amax(-1)  # (inputs, outputs in the order of drawing)
        reads = torch.arange(influence.shape[1]).repeat_interleave(channels // n_groups)
        assert not influence[torch.arange(influence.shape[1])[None] <= reads[:, None]].any()
        assert influence[: -channels * 4].amax(1).min() > 0, "every input above the last row is seen by some output"

    def test_float32_agrees_with_float64_and_bfloat16(self, name: str) -> None:
        model = model_for(name, ImageSpace(3, 6, 6, 16))
        x = torch.randint(16, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            single = model.log_prob(x)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.log_prob(x)
                under_autocast = drawn(model, 2)
            assert torch.equal(under_autocast, drawn(model, 2))
            double = model.double().log_prob(x)
        assert rounded.dtype == single.dtype == torch.float32
        torch.testing.assert_close(single, double.float(), rtol=1e-5, atol=1e-3)
        # Eight bits of mantissa: some hundredths of a nat a sub-pixel, under weights far larger than trained ones.
        torch.testing.assert_close(rounded, single, rtol=0.03, atol=0)

    def test_scores_do_not_depend_on_chunks_or_gradients(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_for(name, SPACES["rgb"], 2)
        labels = torch.tensor([0, 1, 1, 0, 1])
        x = drawn(model, 5, labels=labels)
        whole = model.log_prob(x, labels)
        assert whole.requires_grad
        monkeypatch.setattr(autoregressive, "MAX_OUTPUTS", 1)
        with torch.no_grad():
            torch.testing.assert_close(model.log_prob(x, labels), whole.detach(), rtol=1e-5, atol=1e-4)

    def test_loss_is_in_bits_per_dim(self, name: str) -> None:
        space = SPACES["rgb"]
        model = model_for(name, space)
        x = drawn(model, 6)
        (phase,) = model.phases()
        loss = model.loss(Batch(x, torch.zeros(6, dtype=torch.int64)), phase.name)  # labels are ignored
        assert loss.terms["nats_per_image"].item() == pytest.approx(-model.log_prob(x).mean().item(), rel=1e-5)
        assert loss.total.item() == pytest.approx(space.bits_per_dim(loss.terms["nats_per_image"].item()))


@pytest.mark.parametrize("name", MODELS)
class TestDrawing:
    @pytest.mark.parametrize("n_classes", [0, 3])
    @pytest.mark.parametrize("title", SPACES)
    def test_every_sampler_draws_the_naive_samplers_image(self, name: str, title: str, n_classes: int) -> None:
        model = model_for(name, SPACES[title], n_classes)
        labels = torch.tensor([0, 2, 1, 2]) if n_classes else None
        naive = drawn(model, 4, labels=labels, sampler="naive")
        model.space.check(naive)
        assert len(naive.unique()) > 1
        assert torch.equal(drawn(model, 4, labels=labels), naive)
        # One forward pass proves the same: each sub-pixel is what its noise decides, given the sub-pixels before it.
        # It is what the last turn of the Jacobi sampler does.
        for sampler in samplers_of(model):
            assert torch.equal(drawn(model, 4, labels=labels, sampler=sampler), naive), sampler
        assert torch.equal(drawn(model, 1, sampler="naive"), drawn(model, 1))

    def test_every_step_gives_what_one_forward_pass_gives(self, name: str) -> None:
        """The outputs themselves agree, turn by turn, not only what is drawn from them."""
        model = model_for(name, ImageSpace(3, 4, 5, 4), 2)
        labels = torch.tensor([1, 0])
        x = drawn(model, 2, labels=labels)
        head, seen = model.head, []

        @dataclasses.dataclass(frozen=True)
        class Listening(type(head)):  # type: ignore[misc]
            def decide(self, outputs: Tensor, earlier: Any, noise: Tensor) -> Tensor:
                if not earlier:
                    seen.append(outputs)
                return super().decide(outputs, earlier, noise)

        model.head = Listening(**{field.name: getattr(head, field.name) for field in dataclasses.fields(head)})
        with torch.no_grad():
            expected = in_order(model.outputs(x, labels), head.n_groups)
        for sampler in ("raster", "row"):
            seen.clear()
            assert torch.equal(drawn(model, 2, labels=labels, sampler=sampler), x)
            torch.testing.assert_close(torch.cat(seen, 1), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("title", ["grey", "rgb"])
    def test_given_sites_are_kept_and_the_rest_follows_from_them(self, name: str, title: str) -> None:
        space = SPACES[title]
        model = model_for(name, space)
        given, n_given = drawn(model, 3, seed=9), space.width + 1
        kept = torch.arange(space.height * space.width) < n_given
        naive = drawn(model, 3, given=given, n_given=n_given, sampler="naive")
        assert torch.equal(naive.flatten(2)[:, :, kept], given.flatten(2)[:, :, kept])
        assert not torch.equal(naive, given)
        for sampler in samplers_of(model):
            assert torch.equal(drawn(model, 3, given=given, n_given=n_given, sampler=sampler), naive), sampler
        # With the noise that drew them, nothing changes.
        assert torch.equal(drawn(model, 3, seed=9, given=given, n_given=n_given), given)
        assert torch.equal(drawn(model, 3, given=given, n_given=space.height * space.width), given)

    def test_completions_follow_the_conditional_distribution(self, name: str) -> None:
        space = ImageSpace(1, 2, 2, 3)
        model, x = model_for(name, space), all_images(space)
        n, given = 5000, torch.tensor([[[[2, 0], [0, 0]]]])
        completed = drawn(model, n, given=given.expand(n, -1, -1, -1), n_given=2)
        fits = (x[:, 0, 0] == given[0, 0, 0]).all(1)
        with torch.no_grad():
            joint = model.log_prob(x[fits]).double().exp()
            rest = model.site_log_prob(x[fits]).flatten(1)[:, 2:].sum(1).double().exp()
        torch.testing.assert_close(rest, joint / joint.sum(), rtol=1e-4, atol=1e-6)
        counts = (completed.long().flatten(1)[:, 2:] * torch.tensor([3, 1])).sum(1).bincount(minlength=9).double()
        assert chi_squared(counts, n * rest) > 0.001

    @pytest.mark.parametrize("space", [ImageSpace(1, 2, 2, 3), ImageSpace(3, 1, 2, 2)], ids=str)
    def test_frequencies_of_draws_agree_with_log_prob(self, name: str, space: ImageSpace) -> None:
        model, x = model_for(name, space), all_images(space)
        n = 20_000
        place = space.levels ** torch.arange(space.n_dims - 1, -1, -1)
        observed = (drawn(model, n, seed=0).long().flatten(1) * place).sum(1).bincount(minlength=len(x)).double()
        with torch.no_grad():
            assert chi_squared(observed, n * model.log_prob(x).double().exp()) > 0.001

    @pytest.mark.parametrize("warp", [Warp(temperature=0.3), Warp(top_k=2), Warp(top_p=0.6)], ids=str)
    def test_warped_draws_are_the_same_from_every_sampler_and_likelier(self, name: str, warp: Warp) -> None:
        model = model_for(name, ImageSpace(1, 4, 4, 5))
        warped, plain = drawn(model, 64, warp=warp), drawn(model, 64)
        assert torch.equal(drawn(model, 64, warp=warp, sampler="naive"), warped)
        with torch.no_grad():
            assert model.log_prob(warped).mean() > model.log_prob(plain).mean()

    def test_draws_do_not_change_the_model_or_its_mode(self, name: str) -> None:
        model = model_for(name, SPACES["grey"])
        before = {key: value.clone() for key, value in model.state_dict().items()}
        expected = drawn(model, 6)
        model.train()
        assert torch.equal(drawn(model, 6), expected), "dropout is off in drawing"
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_no_sampler_draws_with_dropout(self, name: str) -> None:
        model = model_for(name, ImageSpace(1, 3, 3, 4), dropout=0.5)
        expected = drawn(model, 6)
        model.train()
        frozen = next(module for module in model.modules() if not list(module.children())).eval()
        for sampler in samplers_of(model, naive=True):
            assert torch.equal(drawn(model, 6, sampler=sampler), expected), sampler
        assert [module for module in model.modules() if not module.training] == [frozen]

    def test_draws_come_in_chunks(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_for(name, ImageSpace(1, 2, 2, 4))
        monkeypatch.setattr(autoregressive, "MAX_SITES", 12)
        seen: list[tuple[slice, Tensor, range]] = []
        x = drawn(model, 8, watch=lambda *turn: seen.append((turn[0], turn[1].clone(), turn[2])))
        assert x.shape == (8, 1, 2, 2)
        assert {(images.start, images.stop) for images, _, _ in seen} == {(0, 3), (3, 6), (6, 8)}
        for images in (slice(0, 3), slice(6, 8)):
            turns = [(levels, sites) for of, levels, sites in seen if of == images]
            assert torch.equal(turns[-1][0].view(-1, 1, 2, 2), x[images].long())
            assert sorted(site for _, sites in turns for site in sites) == [0, 1, 2, 3]

    @pytest.mark.slow
    @pytest.mark.parametrize("space", [ImageSpace(1, 28, 28, 256), ImageSpace(3, 32, 32, 256)], ids=str)
    def test_large_draws_pass_the_one_forward_check(self, name: str, space: ImageSpace) -> None:
        torch.manual_seed(0)
        model = registry.create_model(name, space).eval()
        assert isinstance(model, AutoregressiveDensity)
        x = drawn(model, 4)
        noise = torch.rand(4, *space.shape, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            decided = Drawing(model.network, model.head, model.encode, noise).one_pass(x.long())
        n_wrong = int((decided != x).sum())
        # Rounding may move a step of the distribution function past a sub-pixel's noise now and then.
        assert n_wrong <= 1e-4 * x.numel()


def samplers_of(model: AutoregressiveDensity, naive: bool = False) -> list[Sampler]:
    """All samplers that can drive a model, with or without the naive one."""
    return [
        sampler
        for sampler in SAMPLERS
        if (naive or sampler != "naive") and (sampler != "wavefront" or math.isfinite(model.network.reach))
    ]


def test_wrong_requests_are_refused() -> None:
    model = model_for("pixel_cnn", ImageSpace(1, 2, 2, 4))
    with pytest.raises(InputError, match="no sampler 'fast'"):
        model.draw(1, sampler="fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 images are given to complete; give 1"):
        model.draw(1, given=torch.zeros(2, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="n_given is 5"):
        model.draw(1, given=torch.zeros(1, 1, 2, 2, dtype=torch.int64), n_given=5)
    with pytest.raises(InputError, match="no images are given"):
        model.draw(1, n_given=1)
    for wrong in ({"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": math.inf}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Warp(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        model.log_prob(torch.zeros(2, 1, 4, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="give labels"):
        model_for("pixel_cnn", ImageSpace(1, 4, 4), 2).log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.int64))


def test_a_warp_keeps_the_levels_it_says() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert Warp(top_k=2)(logits).isfinite().tolist() == [False, True, True, False]
    assert Warp(top_p=0.65)(logits).isfinite().tolist() == [False, True, True, False]
    assert Warp(top_p=0.75)(logits).isfinite().tolist() == [False, True, True, True]
    assert Warp(top_p=0.01)(logits).isfinite().tolist() == [False, True, False, False]
    torch.testing.assert_close(Warp(temperature=0.5)(logits).softmax(0), torch.tensor([1.0, 16, 9, 4]) / 30)
    assert Warp(temperature=1e-300)(1e4 * logits).softmax(0).tolist() == [0, 1, 0, 0]
    assert not Warp().changes
    assert Warp(top_k=1).changes


def test_drawing_leaves_the_number_of_threads_as_it_was() -> None:
    model = registry.create_model("pixel_cnn", ImageSpace(1, 3, 3, 2), hidden=4, n_blocks=1)
    assert isinstance(model, AutoregressiveDensity)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    try:
        model.draw(1, watch=lambda images, levels, sites: seen.append(torch.get_num_threads()))
        model.draw(40, watch=lambda images, levels, sites: seen.append(torch.get_num_threads()))

        def fail(images: slice, levels: Tensor, sites: range) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            model.draw(1, watch=fail)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen[0] == 1
    assert seen[-1] == 2
