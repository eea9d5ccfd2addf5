"""Masks let nothing through but the past, and drawing step by step computes what one forward pass computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from incremental import run_incrementally
from torch import Tensor

from triptych.errors import InputError
from triptych.nn.causal import CausalSequential, MaskedConv2d, Pointwise, ResidualStack
from triptych.objectives.heads import decide
from triptych.sampling.autoregressive import wavefronts

LEVELS = 3


def network(channels: int, kernel_size: int, n_condition: int = 0) -> CausalSequential:
    """A small network with every kind of layer, and weights large enough that each input matters."""
    torch.manual_seed(0)
    layers = CausalSequential(
        [
            MaskedConv2d(2 * channels, 8 * channels, kernel_size, "A", channels),
            ResidualStack(4 * channels, 2, channels, n_condition=n_condition, dropout=0.5),
            Pointwise(torch.nn.functional.elu, channels),
            MaskedConv2d(8 * channels, 2 * channels, 3, "B", channels),
            Pointwise(torch.nn.functional.elu, channels),
            MaskedConv2d(2 * channels, LEVELS * channels, 1, "B", channels),
        ]
    ).eval()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layers


def in_order(y: Tensor, channels: int) -> Tensor:
    """(N, C * features, H, W) to (N, sub-pixels in the order of drawing, features)."""
    return y.unflatten(1, (channels, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def inside_a_row(n_dims: int, n_row: int) -> Tensor:
    """Of the pairs (i, i + 1) of sub-pixels, those that lie in one row."""
    return torch.arange(1, n_dims) % n_row != 0


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_flipping_a_sub_pixel_changes_later_outputs_only(channels: int, kernel_size: int) -> None:
    layers, shape = network(channels, kernel_size), (2 * channels, 4, 5)
    n_dims = channels * 20
    x = torch.randn(shape)
    flipped = x.expand(n_dims, *shape).clone()
    order = in_order(torch.arange(x.numel()).view(1, *shape), channels)[0]  # (sub-pixels, 2), positions in x
    flipped.flatten(1).scatter_(1, order, torch.randn(n_dims, 2))
    with torch.no_grad():
        # One image a pass: an image's place in a batch can change the order of summation, and so the last bits.
        before, after = layers(x[None]), [layers(image[None]) for image in flipped]
    changed = torch.stack([(in_order(y, channels) != in_order(before, channels)).any(-1)[0] for y in after])
    # Row i says which outputs the flip of sub-pixel i changed: none up to i itself, bit for bit.
    assert not changed.tril().any()
    # Each sub-pixel is seen by the very next one of its row: the receptive field is not empty.
    assert changed.diagonal(1)[inside_a_row(n_dims, 5 * channels)].all()


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_jacobian_is_strictly_triangular(channels: int, kernel_size: int) -> None:
    layers = network(channels, kernel_size).double()
    x = torch.randn(1, 2 * channels, 3, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layers, x)[0, :, :, :, 0]  # (C_out, H, W, C_in, H, W)
    rows = in_order(jacobian.flatten(3).movedim(3, 0), channels)  # (inputs, sub-pixels, LEVELS)
    both = in_order(rows.permute(1, 2, 0).flatten(0, 1).unflatten(1, (2 * channels, 3, 4)), channels)
    influence = both.abs().amax(-1).unflatten(0, (12 * channels, LEVELS)).amax(1)  # (output, input) sub-pixels
    assert not influence.triu().any()
    assert (influence.diagonal(-1)[inside_a_row(12 * channels, 4 * channels)] > 0).all()


@pytest.mark.parametrize(
    ("mask_type", "centre"), [("A", [[0, 0, 0], [1, 0, 0], [1, 1, 0]]), ("B", [[1, 0, 0], [1, 1, 0], [1, 1, 1]])]
)
def test_the_mask_of_the_centre_orders_the_channels(mask_type: str, centre: list[list[int]]) -> None:
    layer = MaskedConv2d(6, 9, 3, mask_type, 3)  # type: ignore[arg-type]
    assert layer.mask[::3, ::2, 1, 1].tolist() == centre
    assert (layer.mask[:, :, 0] == 1).all()
    assert (layer.mask[:, :, 1, 0] == 1).all()
    assert not layer.mask[:, :, 1, 2].any()
    assert not layer.mask[:, :, 2].any()


LAYERS = {
    "A7": lambda groups: MaskedConv2d(2 * groups, 4 * groups, 7, "A", groups),
    "A3": lambda groups: MaskedConv2d(groups, 2 * groups, 3, "A", groups),
    "B5": lambda groups: MaskedConv2d(2 * groups, 4 * groups, 5, "B", groups),
    "B1": lambda groups: MaskedConv2d(4 * groups, 2 * groups, 1, "B", groups),
    "stack": lambda groups: ResidualStack(2 * groups, 3, groups, n_condition=5, dropout=0.5),
    "pointwise": lambda groups: Pointwise(torch.tanh, groups),
    "network": lambda groups: network(groups, 7, n_condition=5),
}
N_INPUTS = {"A7": 2, "A3": 1, "B5": 2, "B1": 4, "stack": 4, "pointwise": 2, "network": 2}


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (6, 1), (2, 9)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_incremental_equals_parallel(name: str, groups: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name](groups).eval()
    x, condition = torch.randn(3, N_INPUTS[name] * groups, *shape), torch.randn(3, 5)
    with torch.no_grad():
        expected = layer(x, condition)
    skew, own_first = 1 + int(layer.reach), not name.startswith(("A", "network"))
    torch.testing.assert_close(
        run_incrementally(layer, x, condition, skew=skew, own_first=own_first), expected, rtol=1e-4, atol=1e-5
    )
    # Nothing in the caches mixes the images of a batch.
    alone = run_incrementally(layer, x[1:2], condition[1:2], skew=skew, own_first=own_first)
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-4, atol=1e-5)


def test_the_condition_matters_and_may_be_absent() -> None:
    layers, x = network(1, 3, n_condition=4), torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        assert not torch.equal(layers(x, torch.zeros(2, 4)), layers(x, torch.ones(2, 4)))
        torch.testing.assert_close(layers(x, torch.zeros(2, 4)), layers(x))


def test_reach_of_a_container_is_its_largest() -> None:
    assert network(1, 7).reach == 3
    assert network(3, 1).reach == 1
    assert MaskedConv2d(1, 1, 1, "B").reach == 0


@pytest.mark.parametrize("skew", [1, 2, 4])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 3), (5, 1), (3, 2)])
def test_wavefronts_draw_every_site_once_and_after_what_it_sees(height: int, width: int, skew: int) -> None:
    when = {site: time for time, sites in enumerate(wavefronts(height, width, skew)) for site in sites}
    assert sorted(when) == list(range(height * width))
    assert sum(len(sites) for sites in wavefronts(height, width, skew)) == height * width
    for sites in wavefronts(height, width, skew):  # evenly spaced, in rows and in columns
        places = [divmod(site, width) for site in sites]
        assert len({(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(places)}) <= 1
    for row in range(height):
        for column in range(width):
            seen = [(up, column + right) for up in range(row) for right in range(-width, (skew - 1) * (row - up) + 1)]
            seen += [(row, left) for left in range(column)]
            inside = [r * width + c for r, c in seen if 0 <= c < width]
            assert all(when[site] < when[row * width + column] for site in inside)


def test_decide_inverts_the_distribution_function() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    noise = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    assert decide(logits.expand(6, 3), noise).tolist() == [0, 0, 1, 1, 2, 2]
    # An impossible level is never drawn, at either end.
    assert decide(
        torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(2, 3), torch.tensor([0.0, 1 - 2**-24])
    ).tolist() == [1, 1]


def test_channels_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(InputError, match="out_channels is 8; it must be a multiple of 3"):
        MaskedConv2d(3, 8, 3, "B", 3)
    with pytest.raises(InputError, match="kernel_size is 4; it must be odd"):
        MaskedConv2d(3, 9, 4, "B", 3)
