"""Attention looks back only, finds what its formula says, and drawing site by site computes what one pass computes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from incremental import run_incrementally
from torch import Tensor

from triptych.errors import InputError
from triptych.models.registry import create_model
from triptych.nn.attention import HEAD_FEATURES, Angles, AttentionBlock, CausalConv2d, SnailNetwork
from triptych.spaces import ImageSpace


def network(n_inputs: int = 2, kernel_size: int = 3, n_condition: int = 0) -> SnailNetwork:
    """Two blocks of two gated blocks each, in float64, with weights so large that each input matters."""
    torch.manual_seed(0)
    layers = SnailNetwork(
        n_inputs,
        5,
        hidden=6,
        n_blocks=2,
        n_layers=2,
        n_heads=2,
        kernel_size=kernel_size,
        n_condition=n_condition,
        dropout=0.5,
    )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(1.5)
    return layers.double().eval()


def influence(jacobian: Tensor) -> Tensor:
    """(C_out, H, W, C_in, H, W) to whether an input site changes an output site: (output sites, input sites)."""
    return (jacobian.abs().amax((0, 3)) > 0).flatten(0, 1).flatten(1, 2)


@pytest.mark.parametrize("sees_own", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_a_causal_convolution_sees_its_kernel_and_nothing_later(kernel_size: int, sees_own: bool) -> None:
    torch.manual_seed(0)
    layer, reach = CausalConv2d(2, 3, kernel_size, sees_own=sees_own).double(), kernel_size // 2
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    sees = influence(torch.autograd.functional.jacobian(layer, x)[0, :, :, :, 0])
    for own in range(30):
        for other in range(30):
            near = abs(own // 6 - other // 6) <= reach and abs(own % 6 - other % 6) <= reach
            assert sees[own, other] == (near and (other < own or (other == own and sees_own)))


def test_every_site_attends_to_all_earlier_sites_and_to_no_other() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(6, 2, n_heads=2).double()
    x, given = torch.randn(1, 6, 3, 4, dtype=torch.float64), torch.randn(1, 12, 2, dtype=torch.float64)
    angles = Angles.of(3, 4, x)
    of_x, of_given = torch.autograd.functional.jacobian(lambda *inputs: block(*inputs, angles), (x, given))
    # A site's features enter through its query; its sub-pixels are what it is to predict.
    assert torch.equal(influence(of_x[0, :, :, :, 0]), torch.ones(12, 12).tril().bool())
    sees_given = of_given[0, :, :, :, 0].abs().amax((0, 4)).flatten(0, 1) > 0  # (output sites, input sites)
    assert torch.equal(sees_given, torch.ones(12, 12).tril(-1).bool())


def test_attention_is_what_its_formula_says() -> None:
    """Against complex numbers, one site and one head at a time."""
    torch.manual_seed(0)
    height, width, n_heads = 3, 5, 2
    block = AttentionBlock(6, 2, n_heads).double()
    x, given = torch.randn(1, 6, height, width, dtype=torch.float64), torch.randn(1, 15, 2, dtype=torch.float64)
    turns = [math.pi / 2 * (2 / 5) ** (i / 3) for i in range(4)]  # down to half a circle over five columns
    with torch.no_grad():
        seen = torch.nn.functional.layer_norm(x[0].flatten(1).t(), (6,))  # (H * W, hidden)
        queries = block.query(seen).view(-1, n_heads, HEAD_FEATURES)
        keys, values = block.key_value(torch.cat([seen, given[0]], 1)).view(-1, 2, n_heads, HEAD_FEATURES).unbind(1)
        expected = []
        for i in range(height * width):
            found = []
            for head in range(n_heads):
                weights, total = [1.0], torch.zeros(HEAD_FEATURES, dtype=torch.float64)  # nothing: exp 0
                for j in range(i):
                    q, k = (torch.complex(*y.chunk(2)) for y in (queries[i, head], keys[j, head]))
                    rows, columns = i // width - j // width, i % width - j % width
                    turned = torch.tensor([rows * turn for turn in turns] + [columns * turn for turn in turns])
                    product = (q * torch.polar(torch.ones(8).double(), turned.double()) * k.conj()).sum().real
                    weights.append(math.exp(product / 4))  # the root of 16 features
                    total += weights[-1] * values[j, head]
                found.append(total / sum(weights))
            expected.append(x[0].flatten(1)[:, i] + block.expand(torch.cat(found)))
        y = block(x, given, Angles.of(height, width, x))
    torch.testing.assert_close(y[0].flatten(1).t(), torch.stack(expected))


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_the_network_has_no_blind_spot(kernel_size: int) -> None:
    layers = network(kernel_size=kernel_size)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    sees = influence(torch.autograd.functional.jacobian(layers, x)[0, :, :, :, 0])
    assert torch.equal(sees, torch.ones(20, 20).tril(-1).bool())


site_by_site = partial(run_incrementally, skew=99, own_first=False, rows=True)


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (6, 1), (1, 1), (2, 9)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_incremental_equals_parallel(shape: tuple[int, int], kernel_size: int) -> None:
    layers = network(3, kernel_size, n_condition=4)
    x, condition = torch.randn(3, 3, *shape).double(), torch.randn(3, 4).double()
    with torch.no_grad():
        expected, unconditional = layers(x, condition), layers(x)
    torch.testing.assert_close(site_by_site(layers, x, condition), expected)
    torch.testing.assert_close(site_by_site(layers, x, None), unconditional)
    assert not torch.allclose(expected, unconditional)
    # Nothing in the caches mixes the images of a batch.
    torch.testing.assert_close(site_by_site(layers, x[1:2], condition[1:2]), expected[1:2])


def test_dropout_is_of_training_alone() -> None:
    layers, x = network(), torch.randn(1, 2, 4, 4).double()
    with torch.no_grad():
        assert torch.equal(layers(x), layers(x))
        layers.train()
        assert not torch.equal(layers(x), layers(x))
        torch.testing.assert_close(site_by_site(layers, x, None), layers.eval()(x))


def test_the_head_follows_the_space() -> None:
    def n_outputs(space: ImageSpace) -> int:
        model = create_model("pixel_snail", space, hidden=4, n_mixtures=3)
        return model.outputs(torch.zeros(1, *space.shape, dtype=torch.uint8)).shape[1]  # type: ignore[attr-defined]

    assert n_outputs(ImageSpace(1, 3, 3, 2)) == 1
    assert n_outputs(ImageSpace(1, 3, 3, 17)) == 17
    assert n_outputs(ImageSpace(1, 3, 3, 256)) == 3 * 3
    assert n_outputs(ImageSpace(3, 3, 3, 2)) == 3 * (1 + 3 + 3 + 3)
    assert n_outputs(ImageSpace(1, 3, 3, 40, ((0, 0, 0),) * 40)) == 40


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": 0},
        {"n_blocks": 0},
        {"n_layers": 0},
        {"n_heads": 0},
        {"kernel_size": 4},
        {"kernel_size": 1},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
        create_model("pixel_snail", ImageSpace(1, 4, 4, 2), **wrong)


def test_wrong_mixtures_are_refused_where_there_is_one() -> None:
    with pytest.raises(InputError, match="n_mixtures is 0"):
        create_model("pixel_snail", ImageSpace(3, 4, 4, 256), n_mixtures=0)
