"""The GAN: what each phase minimises, the penalty, conditioning, and that rounding hides nothing from the game."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from players import data_of
from torch import Tensor, nn

import triptych
from triptych import parallel
from triptych.data.dataset import Dataset, Split
from triptych.errors import InputError
from triptych.models.adversarial import Rules, Verdict, gamma_for
from triptych.models.base import Batch
from triptych.models.implicit.gan import GAN
from triptych.nn.adversarial import FourierFeatures, standing_statistics, weighted_layers
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.files import read_weights, write_weights


def model_of(space: ImageSpace | PointSpace, n_classes: int = 0, **options: float | str | bool) -> GAN:
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


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (9, 7), (28, 28), (32, 32), (64, 64)])
def test_dcgan_fits_any_size(size: tuple[int, int]) -> None:
    space = ImageSpace(1, *size, 17)
    model = model_of(space, n_classes=3, network="dcgan")
    batch = Batch(data_of(space, 4), torch.arange(4) % 3)
    model.loss(batch, "discriminator").total.backward()
    model.loss(batch, "generator").total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.eval().sample(3).shape == (3, *space.shape)


def test_dcgan_normalises_by_the_batch_but_not_at_its_ends() -> None:
    model = model_of(ImageSpace(3, 32, 32), network="dcgan")
    assert (model.penalty, model.rules.betas, model.discriminator_rate) == ("none", (0.5, 0.999), 1.5e-3)
    called: list[tuple[str, type]] = []
    for player in (model.generator, model.discriminator):
        for module in player.modules():
            if not list(module.children()) and not isinstance(module, nn.Identity):
                module.register_forward_hook(lambda m, i, o: called.append((tuple(i[0].shape[2:]), type(m))))
    y = model.fake(torch.randn(4, 4))
    made, called[:] = list(called), []
    model.judge(y)
    transposed, norm, strided = nn.ConvTranspose2d, parallel.BatchNorm2d, nn.Conv2d
    assert [kind for _, kind in made] == [nn.Linear, *3 * [norm, transposed]]
    assert [kind for _, kind in called] == [strided, strided, norm, strided, norm]
    assert [size for size, kind in called if kind is strided] == [(32, 32), (16, 16), (8, 8)]
    assert [size for size, kind in made if kind is transposed] == [(4, 4), (8, 8), (16, 16)]


@pytest.mark.parametrize("network", ["mlp", "residual", "dcgan"])
def test_spectral_norm_divides_by_the_largest_singular_value(network: str) -> None:
    model = model_of(ImageSpace(1, 9, 8, 17), n_classes=3, network=network, spectral_norm=True).train()
    layers = weighted_layers(*model._judges)
    assert len(layers) >= 4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.discriminator.modules())
    for layer in layers:
        with torch.no_grad():
            layer.get_parameter("parametrizations.weight.original").mul_(3.0)
    y = model.scale(data_of(model.space, 2))  # type: ignore[arg-type]
    for _ in range(150):
        model.judge(y, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        for layer in layers:
            original = layer.get_parameter("parametrizations.weight.original").flatten(1)
            expected = original / torch.linalg.svdvals(original)[0]
            assert isinstance(layer.weight, Tensor)
            torch.testing.assert_close(layer.weight.flatten(1), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"network": "dcgan"}, {"spectral_norm": True, "augment": "adaptive"}])
def test_norms_survive_copies_files_and_modes(options: dict[str, bool | str], tmp_path: Path) -> None:
    space = ImageSpace(1, 8, 8, 17)
    model = model_of(space, **options).train()
    x = data_of(space, 6)
    for _ in range(2):
        model.loss(Batch(x), "discriminator")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    write_weights(tmp_path / "model.safetensors", model.state_dict())
    read = model_of(space, **options)
    with torch.no_grad():
        for parameter in read.parameters():
            parameter += 1
    read.load_state_dict(read_weights(tmp_path / "model.safetensors"))
    model.eval()
    read.eval()
    y, noise = model.scale(x), torch.Generator()
    for other in (copied, read):
        assert torch.equal(other.judge(y).logits, model.judge(y).logits)
        torch.testing.assert_close(other.judge(y).logits[:2], other.judge(y[:2]).logits)
        assert torch.equal(
            other.sample(3, generator=noise.manual_seed(1)), model.sample(3, generator=noise.manual_seed(1))
        )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.loss(Batch(x), "discriminator")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), (
        "evaluation changes nothing"
    )
    assert [p.shape for phase in copied.phases() for p in phase.parameters] == [
        p.shape for phase in model.phases() for p in phase.parameters
    ]


def test_standing_statistics_are_those_of_all_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=0.3), nn.Dropout(0.5))
    norm, x = network[1], torch.randn(60, 1, 4, 4) * 3 + 1
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad(), standing_statistics(network):
        outputs = [network(part) for part in x.split(20)]
        h = network[0](x)
    assert norm.momentum == 0.3
    assert network.training
    assert norm.training
    torch.testing.assert_close(norm.running_mean, h.mean((0, 2, 3)))
    variances = torch.stack([part.var((0, 2, 3)) for part in h.split(20)])
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert all((output == 0).float().mean() < 0.01 for output in outputs), "dropout rests"


def test_settling_a_dcgan_fits_its_running_statistics() -> None:
    model = model_of(ImageSpace(1, 8, 8, 17), n_classes=2, network="dcgan").eval()
    model.settle(0)
    generator: nn.Module = model.generator
    norm, weight = generator.get_submodule("norms.0"), generator.get_parameter("input.weight").detach()
    assert not norm.training
    # The input is four normal draws and the indicator of one of two classes, as often as the other.
    sites = weight.unflatten(0, (-1, 4 * 4 if weight.shape[0] % 16 == 0 else 4))  # (width, sites, 4 + 2)
    second = sites[..., :4].square().sum(-1) + sites[..., 4:].square().mean(-1)
    expected = second.mean(1) - sites[..., 4:].mean((1, 2)).square()
    torch.testing.assert_close(norm.get_buffer("running_var"), expected, rtol=0.1, atol=0)
    other = model_of(ImageSpace(1, 8, 8, 17))
    state = copy.deepcopy(other.state_dict())
    other.settle(0)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_truncated_latents_are_normal_within_the_limit() -> None:
    model = model_of(ImageSpace(1, 8, 8, 256), network="dcgan").eval()
    model.settle(0)
    noise = torch.Generator()
    z = model.draw_latents(50_000, noise.manual_seed(0), truncation=1.0)
    assert float(z.abs().max()) <= 1
    # Variance of a standard normal within -1 .. 1: 1 - 2 phi(1) / (2 Phi(1) - 1).
    assert float(z.var()) == pytest.approx(1 - 2 * 0.2419707 / 0.6826895, abs=0.005)
    assert float(model.draw_latents(50_000, noise.manual_seed(0), truncation=50.0).var()) == pytest.approx(1, abs=0.02)
    first, all_of = (model.sample(64, generator=noise.manual_seed(1), truncation=t) for t in (0.01, None))
    assert float(first.float().std(0).mean()) < float(all_of.float().std(0).mean())
    with pytest.raises(InputError, match="truncation is 0"):
        model.sample(1, truncation=0)


def test_gamma_falls_over_the_burn_in() -> None:
    rules = Rules("hinge", 1, "r1", 2.0, 1e-3, 1e-3, gamma_end=1.0, burn_in=0.5)
    weights = [rules.gamma_at(progress) for progress in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
    assert weights == pytest.approx([2, 1.5 + math.sqrt(2) / 4, 1.5, 1, 1, 1])
    assert Rules("hinge", 1, "r1", 2.0, 1e-3, 1e-3).gamma_at(0.7) == 2
    rules = dataclasses.replace(rules, gamma_end=0.02, gamma_path="geometric")
    assert [rules.gamma_at(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([2, 0.2, 0.02, 0.02])
    with pytest.raises(InputError, match="both are 0 or neither"):
        dataclasses.replace(rules, gamma_end=0.0)
    with pytest.raises(InputError, match="burn_in is 0"):
        Rules("hinge", 1, "r1", 2.0, 1e-3, 1e-3, burn_in=0.0)


@pytest.mark.parametrize(
    "options", [{"network": "dcgan", "augment": "none"}, {"spectral_norm": True, "penalty": "none", "augment": "diff"}]
)
def test_a_short_training_moves_the_weights_and_leaves_them_finite(
    options: dict[str, bool | str], tiny: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = triptych.fit("gan", tiny, out=str(tmp_path / "run"), budget="6steps", hidden=8, verbose=False, **options)
    start = read_weights(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in start.values())
    fresh = GAN(tiny.space, hidden=8, **options).state_dict()  # type: ignore[arg-type]
    assert start.keys() == fresh.keys()
    assert model.sample(2).shape == (2, 1, 8, 8)


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


def test_a_pack_is_judged_together_and_its_items_are_not_mixed_with_others() -> None:
    space = PointSpace(2)
    torch.manual_seed(0)
    model = GAN(space, hidden=8, pack=3)
    y = torch.randn(6, 2)
    logits = model.judge(y).logits
    assert logits.shape == (2,)
    moved = y.clone()
    moved[4] += 1
    changed = (model.judge(moved).logits - logits).abs() > 0
    assert changed.tolist() == [False, True]
    assert model.judge(torch.cat([y, y[:2]])).logits.shape == (2,), "items that fill no pack are left out"
    with pytest.raises(InputError, match="a batch has 2 items"):
        model.judge(y[:2])
    image = GAN(ImageSpace(1, 8, 8, 17), 3, hidden=8, pack=2, conditioning="concatenation")
    loss = image.loss(Batch(data_of(ImageSpace(1, 8, 8, 17), 4), torch.arange(4) % 3), "discriminator")
    assert loss.total.isfinite()
    for options, words in (({"encoder": "bigan"}, "bigan"), ({"n_classes": 2}, "concatenation"), ({"pack": 0}, "pack")):
        with pytest.raises(InputError, match=words):
            GAN(space, **{"pack": 2, **options})  # type: ignore[arg-type]


def test_signs_choose_where_a_point_starts_and_the_rest_moves_it_smoothly() -> None:
    torch.manual_seed(0)
    model = GAN(PointSpace(2), hidden=8, n_latents=5, n_means=8)
    z = model.draw_latents(16_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in model.generator.rest.modules():  # What is left is the mean alone.
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        points, counts = model.fake(z).unique(dim=0, return_counts=True)
        torch.testing.assert_close(points, model.generator.means.unique(dim=0), rtol=0, atol=0)
        assert (counts - 2000).abs().max() < 5 * math.sqrt(2000), "all equally likely"
    model = GAN(PointSpace(2), hidden=8, n_latents=5, n_means=8)
    with torch.no_grad():
        start, end = torch.tensor([0.5, 0.5, 0.5, 1.0, -1.0]), torch.tensor([0.1, 2.0, 0.5, 0.5, 1.0])
        path = torch.lerp(start, end, torch.linspace(0, 1, 1000)[:, None])
        assert model.fake(path).diff(dim=0).norm(dim=1).max() < 0.01, "no sign changes, no jump"
        path[500:, 1] *= -1
        jumps = model.fake(path).diff(dim=0).norm(dim=1)
        assert int(jumps.argmax()) == 499
        assert jumps[499] > 0.1
        assert jumps.sort().values[-2] < 0.01
    model.loss(Batch(torch.randn(64, 2)), "generator").total.backward()
    assert (model.generator.means.grad.abs().sum(1) > 0).all()


def test_means_are_a_power_of_two_and_of_points() -> None:
    assert GAN(PointSpace(2)).n_means == 256
    assert GAN(PointSpace(2), n_latents=4).n_means == 4
    assert GAN(PointSpace(3), n_means=1).n_means == 1
    assert GAN(ImageSpace(1, 8, 8, 17), hidden=8).n_means == 1
    for n_means in (0, 6, 2**17):
        with pytest.raises(InputError, match="n_means"):
            GAN(PointSpace(2), n_means=n_means)
    with pytest.raises(InputError, match="only a generator of points has means"):
        GAN(ImageSpace(1, 8, 8, 17), n_means=4)


def test_points_are_seen_with_waves_of_fixed_directions_from_coarse_to_fine() -> None:
    torch.manual_seed(0)
    layer = FourierFeatures(3, 16)
    y = torch.randn(5, 3)
    seen = layer(y)
    assert seen.shape == (5, layer.n_out)
    torch.testing.assert_close(seen[:, :3], y)
    torch.testing.assert_close(seen[:, 3:19].square() + seen[:, 19:].square(), torch.ones(5, 16))
    frequencies = layer.waves.norm(dim=0)
    assert float(frequencies[0]) == pytest.approx(0.5)
    assert float(frequencies[-1]) == pytest.approx(60)
    assert "waves" in layer.state_dict()
    assert not list(layer.parameters())


def test_gamma_grows_with_the_sites_beyond_32x32() -> None:
    spaces = [PointSpace(2), *(ImageSpace(1, size, size) for size in (8, 28, 32, 64, 128))]
    assert [gamma_for(space) for space in spaces] == [1, 1, 1, 1, 4, 16]
    assert GAN(ImageSpace(3, 64, 64), hidden=2).rules.gamma == 4


def test_r1_and_r2_are_of_the_data_before_what_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ImageSpace(1, 8, 8, 17), penalty="r1_r2")
    batch = Batch(data_of(model.space, 6))  # type: ignore[arg-type]

    def penalties(share: float) -> tuple[float, float]:
        monkeypatch.setattr(model, "view", lambda y, generator: torch.cat([share * y[..., :4], y[..., 4:]], -1))
        terms = model.loss(batch, "discriminator", generator=torch.Generator().manual_seed(0)).terms
        return float(terms["r1"]), float(terms["r2"])

    monkeypatch.setattr(model, "judge_pair", lambda y, z, labels=None: Verdict(y[..., :4].sum((1, 2, 3))))
    assert penalties(1) == pytest.approx((32, 32))
    assert penalties(0.5) == pytest.approx((8, 8))
    assert penalties(0) == pytest.approx((0, 0), abs=1e-6), "what is hidden has no gradient"


def test_the_network_is_chosen_by_the_space() -> None:
    assert [GAN(space).network for space in (PointSpace(2), ImageSpace(1, 8, 8, 17), ImageSpace(1, 16, 16, 256))] == [
        "mlp",
        "residual",
        "dcgan",
    ]


@pytest.mark.parametrize("name", ["gan", "r3_gan", "big_gan"])
def test_few_images_are_augmented_unless_the_user_says_otherwise(name: str, tmp_path: Path) -> None:
    digits = triptych.load_data("digits")

    def augment_of(n: int, **options: str) -> str:
        data = dataclasses.replace(digits, train=Split(*digits.train.read(slice(0, n))))
        out = tmp_path / f"{n}-{'-'.join(options)}"
        model = triptych.fit(name, data, out=out, budget="1steps", hidden=4, validations=0, verbose=False, **options)
        assert triptych.load(out).augment == model.augment, "it is in the run's configuration"
        return str(model.augment)

    assert augment_of(999) == "adaptive"
    assert augment_of(1000) == "none"
    assert augment_of(500, augment="none") == "none"


def test_few_points_are_not_augmented() -> None:
    assert GAN.defaults_for(PointSpace(2), 10) == {}
