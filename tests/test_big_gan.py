"""BigGAN: conditional batch statistics, the split latent, projection, attention, spectral norms, orthogonality."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from players import data_of, shake
from torch import Tensor, nn

import triptych
from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models.adversarial import N_SETTLING
from triptych.models.base import Batch
from triptych.models.implicit.big_gan import BigGAN, _Attention, _ConditionalNorm
from triptych.nn.adversarial import learnt_weight, orthogonality_penalty, weighted_layers
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.files import read_weights


def model_of(space: ImageSpace, n_classes: int = 0, *, shaken: bool = False, **options: float) -> BigGAN:
    torch.manual_seed(0)
    model = BigGAN(space, n_classes, **{"hidden": 8, "n_latents": 8, **options})  # type: ignore[arg-type]
    if shaken:  # so that attention, which starts at zero, says something
        shake(model)
    return model


def test_gains_and_biases_of_the_batch_statistics_are_the_conditions() -> None:
    torch.manual_seed(0)
    layer = _ConditionalNorm(3, 2)
    h = torch.randn(6, 3, 4, 4) * 5 + 2
    condition = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(3, 1)
    y = layer(h, condition)
    mean, deviation = h.mean((0, 2, 3)), h.std((0, 2, 3), correction=0)
    for i in range(6):
        gain, bias = 1 + layer.gain.weight[:, i % 2], layer.bias.weight[:, i % 2]
        expected = gain[:, None, None] * (h[i] - mean[:, None, None]) / deviation[:, None, None] + bias[:, None, None]
        torch.testing.assert_close(y[i], expected, rtol=1e-4, atol=1e-4)
    layer.eval()
    torch.testing.assert_close(layer(h, condition)[:1], layer(h[:1], condition[:1]))
    torch.testing.assert_close(layer.norm.get_buffer("running_mean"), 0.1 * mean)


def test_each_part_of_z_reaches_its_block_and_those_after() -> None:
    model = model_of(ImageSpace(1, 28, 28), 3, shaken=True, n_latents=10).eval()
    assert model.generator.parts == [3, 3, 2, 2]
    outputs: list[Tensor] = []
    for block in model.generator.blocks:
        block.register_forward_hook(lambda m, i, o: outputs.append(o))
    z, labels = torch.randn(2, 10), torch.tensor([0, 1])

    def blocks_of(z: Tensor, labels: Tensor) -> list[Tensor]:
        outputs.clear()
        with torch.no_grad():
            model.fake(z, labels)
        return list(outputs)

    before = blocks_of(z, labels)
    for part, first in enumerate((0, 3, 6, 8)):
        changed = z.clone()
        changed[:, first] += 1
        moved = [not torch.equal(a, b) for a, b in zip(blocks_of(changed, labels), before, strict=True)]
        assert moved == [block >= part - 1 for block in range(3)]
    assert all(not torch.equal(a, b) for a, b in zip(blocks_of(z, labels.flip(0)), before, strict=True))


def test_the_class_enters_the_logits_by_a_projection() -> None:
    space = ImageSpace(1, 8, 8, 17)
    model = model_of(space, 3, shaken=True).eval()
    y = model.scale(data_of(space, 4))
    features: list[Tensor] = []
    model.discriminator.verdict.register_forward_hook(lambda m, i, o: features.append(i[0]))
    with torch.no_grad():
        for label in range(3):
            logits = model.judge(y, torch.full((4,), label)).logits
            assert model.discriminator.embedding is not None
            weight = model.discriminator.verdict.weight[0] + model.discriminator.embedding.weight[label]
            torch.testing.assert_close(logits, features[-1] @ weight)


def test_attention_is_a_mean_of_pooled_values_by_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention = _Attention(8)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(attention(x), x), "it starts as the identity"
    nn.init.constant_(attention.gamma, 0.7)
    y = attention(x)
    maps = [layer.weight[:, :, 0, 0] for layer in (attention.query, attention.key, attention.value, attention.expand)]
    query, key, value, expand = maps
    for n in range(2):
        sites = x[n].flatten(1).T  # (16, 8)
        pooled = [
            (sites @ weight.T).T.unflatten(1, (2, 2, 2, 2)).amax((2, 4)).flatten(1).T  # (4, features)
            for weight in (key, value)
        ]
        for site in range(16):
            weights = (pooled[0] @ (query @ sites[site])).softmax(0)
            expected = sites[site] + 0.7 * expand @ (weights @ pooled[1])
            torch.testing.assert_close(y[n].flatten(1)[:, site], expected)


def test_attention_stands_at_half_the_images_size() -> None:
    seen: list[tuple[int, ...]] = []
    for size in ((28, 28), (9, 7), (64, 64)):
        model = model_of(ImageSpace(1, *size))
        for player in (model.generator, model.discriminator):
            player.attention.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[2:])))
        model.judge(model.fake(torch.randn(2, 8)))
    assert seen == [(14, 14), (14, 14), (5, 4), (5, 4), (32, 32), (32, 32)]


def test_all_weights_of_both_players_but_the_shared_embedding_have_unit_spectral_norm() -> None:
    space = ImageSpace(1, 9, 8, 17)
    model = model_of(space, 3, shaken=True).train()
    batch = Batch(data_of(space, 4), torch.arange(4) % 3)
    for _ in range(60):
        model.loss(batch, "discriminator")
    layers = [layer for layer in weighted_layers(model) if layer is not model.generator.embedding]
    assert len(layers) == len(weighted_layers(model)) - 1
    for layer in layers:
        assert isinstance(layer.weight, Tensor)
        assert float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) == pytest.approx(1, abs=0.02)


def test_the_orthogonality_penalty_counts_products_of_different_rows() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))  # W W^T = [[2, 1], [1, 1]]
    assert float(orthogonality_penalty([layer, layer]).detach()) == pytest.approx(4)
    nn.init.orthogonal_(layer.weight, 3.0)
    assert float(orthogonality_penalty([layer]).detach()) == pytest.approx(0, abs=1e-9)


def test_it_starts_orthogonal_and_the_generator_pays_for_leaving_it() -> None:
    space = ImageSpace(1, 8, 8, 17)
    model = model_of(space, 3)
    for layer in weighted_layers(model):
        rows = learnt_weight(layer).detach().flatten(1)
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    batch = Batch(data_of(space, 4), torch.arange(4) % 3)
    totals = {}
    for orthogonal in (0.0, 0.5):
        model = model_of(space, 3, shaken=True, orthogonal=orthogonal)
        loss = model.loss(batch, "generator", generator=torch.Generator().manual_seed(0))
        assert ("orthogonal" in loss.terms) == (orthogonal > 0)
        totals[orthogonal] = float(loss.total.detach())
    layers = [layer for layer in weighted_layers(model.generator) if layer is not model.generator.embedding]
    penalty = float(orthogonality_penalty(layers).detach())
    assert penalty > 0
    assert totals[0.5] == pytest.approx(totals[0.0] + 0.5 * penalty, rel=1e-4)


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
        BigGAN(PointSpace(2))  # type: ignore[arg-type]
    for option, value in (("hidden", 0), ("n_latents", 1), ("orthogonal", -1), ("critic_steps", 0)):
        with pytest.raises(InputError, match=option):
            model_of(ImageSpace(1, 8, 8), **{option: value})


def test_a_short_training_moves_the_weights_and_leaves_them_finite(tiny: Dataset, tmp_path: Path) -> None:
    model = triptych.fit(
        "big_gan", tiny, conditional=True, out=str(tmp_path / "run"), budget="6steps", hidden=4, verbose=False
    )
    trained = read_weights(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert all(float(tensor) != 0 for name, tensor in trained.items() if name.endswith("attention.gamma"))
    norms = [tensor for name, tensor in trained.items() if name.endswith("num_batches_tracked")]
    assert [int(tensor) for tensor in norms] == [N_SETTLING] * len(norms), "statistics of the final weights alone"
    copied, noise = copy.deepcopy(model), torch.Generator()
    labels = torch.tensor([0, 1, 1])
    draws = [m.sample(3, labels=labels, generator=noise.manual_seed(0)) for m in (copied, model)]
    assert torch.equal(*draws)
