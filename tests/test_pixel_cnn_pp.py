"""PixelCNN++: shifted convolutions see the past alone at every resolution, and drawing computes what forward does.

What holds of every autoregressive model is tested in test_autoregressive.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from incremental import run_incrementally
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.models.tractable.pixel_cnn_pp import PixelCNNpp
from triptych.nn.shifted import Lower, Resolution, ShiftedConv2d, ShiftedConvTranspose2d, ShiftedNetwork, concat_elu
from triptych.objectives.heads import Bernoulli, LogisticMixture, Softmax
from triptych.spaces import ImageSpace

SIZES = [(5, 7), (7, 5), (1, 9), (9, 1), (6, 8), (1, 1), (2, 3)]


def network(n_resolutions: int, n_blocks: int = 1, n_condition: int = 0, n_inputs: int = 2) -> ShiftedNetwork:
    """A small network, with weights large enough that each input matters."""
    torch.manual_seed(0)
    layers = ShiftedNetwork(n_inputs, 5, 3, n_blocks, n_resolutions, n_condition=n_condition, dropout=0.5).eval()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(1.7)
    return layers


def influence(function: nn.Module, x: Tensor) -> Tensor:
    """Whether an input site can change an output site: (sites of the output, sites of the input), by the Jacobian."""
    jacobian = torch.autograd.functional.jacobian(function, x)[0, :, :, :, 0]  # (C_out, H', W', C_in, H, W)
    return (jacobian.abs().amax((0, 3)) > 0).flatten(2).flatten(0, 1)


def sites(height: int, width: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(height), range(width)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("layer", "sees"),
    [
        (
            lambda: ShiftedConv2d(2, 3, "down"),
            lambda r, c: [(r - 1, c - 1), (r - 1, c), (r - 1, c + 1), (r, c - 1), (r, c), (r, c + 1)],
        ),
        (lambda: ShiftedConv2d(2, 3, "down_right"), lambda r, c: [(r - 1, c - 1), (r - 1, c), (r, c - 1), (r, c)]),
        (
            lambda: ShiftedConv2d(2, 3, "down", (2, 3), shift=(1, 0)),
            lambda r, c: [(r - i, c + j) for i in (1, 2) for j in (-1, 0, 1)],
        ),
        (lambda: ShiftedConv2d(2, 3, "down", (1, 3), shift=(1, 0)), lambda r, c: [(r - 1, c + j) for j in (-1, 0, 1)]),
        (lambda: ShiftedConv2d(2, 3, "down_right", (2, 1), shift=(0, 1)), lambda r, c: [(r - 1, c - 1), (r, c - 1)]),
        (
            lambda: ShiftedConv2d(2, 3, "down", stride=2),
            lambda r, c: [(2 * r - i, 2 * c + j) for i in (0, 1) for j in (-1, 0, 1)],
        ),
        (
            lambda: ShiftedConv2d(2, 3, "down_right", stride=2),
            lambda r, c: [(2 * r - i, 2 * c - j) for i in (0, 1) for j in (0, 1)],
        ),
    ],
    ids=["down", "down_right", "rows above", "row above", "column left", "down by 2", "down_right by 2"],
)
def test_a_shifted_convolution_sees_its_own_taps_and_no_others(layer, sees, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    convolution = layer().double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    y = convolution(x)
    halved = convolution.stride == 2
    assert y.shape[2:] == tuple(-(-side // 2) if halved else side for side in size)
    seen = influence(convolution, x)
    for i, (r, c) in enumerate(sites(*y.shape[2:])):
        assert {site for site, does in zip(sites(*size), seen[i], strict=True) if does} == set(sees(r, c)) & set(
            sites(*size)
        )


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("direction", ["down", "down_right"])
def test_a_transposed_convolution_takes_from_the_site_that_stands_for_its_own(
    direction: str, size: tuple[int, int]
) -> None:
    layer = ShiftedConvTranspose2d(2, 3, direction).double()  # type: ignore[arg-type]
    low = tuple(-(-side // 2) for side in size)
    x = torch.randn(1, 2, *low, dtype=torch.float64)
    assert layer(x, size).shape == (1, 3, *size)

    class Grow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layer(x, size)

    seen = influence(Grow(), x)
    for i, (r, c) in enumerate(sites(*size)):
        beside = c % 2 if direction == "down" else 0  # half a column on, at an odd column of the centred kernel
        expected = {(r // 2, c // 2 + j) for j in range(beside + 1)} & set(sites(*low))
        assert {site for site, does in zip(sites(*low), seen[i], strict=True) if does} == expected


@pytest.mark.parametrize(
    ("size", "n_resolutions"), [*itertools.product(SIZES[:-2], (1, 2, 3)), ((9, 6), 4), ((1, 1), 1)]
)
def test_the_jacobian_is_strictly_triangular_at_every_resolution(size: tuple[int, int], n_resolutions: int) -> None:
    seen = influence(network(n_resolutions).double(), torch.randn(1, 2, *size, dtype=torch.float64))
    assert not seen.triu().any()
    # No blind spot: a site sees all before it that its receptive field reaches; the nearest ones in any case.
    for i, (r, c) in enumerate(sites(*size)):
        for near in [(r, c - 1), (r - 1, c - 1), (r - 1, c), (r - 1, c + 1)]:
            if near in sites(*size):
                assert seen[i, near[0] * size[1] + near[1]]


def test_lower_resolutions_widen_the_view() -> None:
    n_seen = []
    for n_resolutions in (1, 2, 3):
        x = torch.randn(1, 2, 28, 28, dtype=torch.float64, requires_grad=True)
        network(n_resolutions).double()(x)[0, :, -1, -1].abs().sum().backward()
        assert x.grad is not None
        n_seen.append(int((x.grad.abs().amax(1) > 0).sum()))
    assert n_seen[0] < n_seen[1] < n_seen[2]


@pytest.mark.parametrize("row", [0, 1, 2, 3, 4])
def test_flips_change_later_outputs_only_bit_for_bit(row: int) -> None:
    layers, x = network(3, n_blocks=2), torch.randn(1, 2, 5, 7)
    with torch.no_grad():
        before = layers(x).flatten(2)
        for column in range(7):
            flipped = x.clone()
            flipped[:, :, row, column] *= -3
            changed = (layers(flipped).flatten(2) != before).any(1)[0]
            place = row * 7 + column
            assert not changed[: place + 1].any()
            assert place == 34 or changed[place + 1 :].any()


@pytest.mark.parametrize("told_of_rows", [False, True])
@pytest.mark.parametrize(("size", "n_resolutions"), [*zip(SIZES, (3, 4, 3, 2, 3, 1, 2), strict=True), ((11, 13), 4)])
def test_incremental_equals_parallel(size: tuple[int, int], n_resolutions: int, told_of_rows: bool) -> None:
    layers = network(n_resolutions, n_blocks=2, n_condition=4).double()
    x, condition = torch.randn(3, 2, *size, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = layers(x, condition)

    def run(x: Tensor, condition: Tensor) -> Tensor:
        return run_incrementally(layers, x, condition, skew=size[1], own_first=False, rows=told_of_rows)

    torch.testing.assert_close(run(x, condition), expected, rtol=1e-9, atol=1e-10)
    # Nothing in the caches mixes the images of a batch.
    torch.testing.assert_close(run(x[1:2], condition[1:2]), expected[1:2], rtol=1e-9, atol=1e-10)


def test_padding_can_be_told_from_data() -> None:
    """An image of zeros is not taken for what lies beyond it."""
    layers = network(1)
    with torch.no_grad():
        y = layers(torch.zeros(1, 2, 12, 12))[0]
    assert (y[:, 0, 0] - y[:, 11, 6]).abs().max() > 1e-3
    assert (y[:, 11, 0] - y[:, 11, 6]).abs().max() > 1e-3


def test_the_structure_is_that_of_the_paper() -> None:
    space = ImageSpace(3, 32, 32, 256)
    model = PixelCNNpp(space, hidden=4, n_blocks=2)
    sizes = []
    part: Resolution | None = model.network.resolution
    while part is not None:
        sizes.append((len(part.above), len(part.left), len(part.above_back), len(part.left_back)))
        part = part.lower.resolution if isinstance(part.lower, Lower) else None
    assert sizes == [(2, 2, 3, 3), (2, 2, 3, 3), (2, 2, 2, 2)], "one more block on the way back, but at the lowest"
    # Per mixture component: a weight, three means, three scales, three coefficients.
    assert model.network.output.out_channels == 10 * 10
    assert isinstance(model.head, LogisticMixture)


def test_a_gated_block_is_the_papers() -> None:
    block = network(1, n_condition=4).resolution.left_back[0]
    x, above, skipped, condition = (
        torch.randn(2, 5, 4, 6),
        torch.randn(2, 5, 4, 6),
        torch.randn(2, 5, 4, 6),
        torch.randn(2, 4),
    )

    def reference(x: Tensor) -> Tensor:
        seen = torch.cat([F.elu(above), F.elu(-above), F.elu(skipped), F.elu(-skipped)], 1)
        joined = torch.cat([shortcut.weight for shortcut in block.shortcuts], 1)  # type: ignore[union-attr]
        y = block.first(torch.cat([F.elu(x), F.elu(-x)], 1)) + F.conv2d(seen, joined)  # type: ignore[operator]
        y = block.second(torch.cat([F.elu(y), F.elu(-y)], 1))  # type: ignore[operator]
        a, b = (y + (condition @ block.condition.weight.t())[:, :, None, None]).chunk(2, 1)  # type: ignore[union-attr]
        return x + a * torch.sigmoid(b)

    torch.testing.assert_close(
        block(x, concat_elu(x), [concat_elu(above), concat_elu(skipped)], condition), reference(x)
    )


@pytest.mark.parametrize(
    ("size", "n_resolutions"),
    [((1, 1), 1), ((2, 2), 1), ((1, 3), 2), ((4, 4), 2), ((5, 4), 3), ((8, 8), 3), ((32, 32), 3), ((1, 64), 3)],
)
def test_the_number_of_resolutions_follows_the_size(size: tuple[int, int], n_resolutions: int) -> None:
    assert PixelCNNpp(ImageSpace(1, *size, 2), hidden=2).n_resolutions == n_resolutions


def test_the_head_follows_the_space() -> None:
    heads = {
        Bernoulli: ImageSpace(1, 4, 4, 2),
        Softmax: ImageSpace(1, 4, 4, 17),
        LogisticMixture: ImageSpace(1, 4, 4, 256),
    }
    for head, space in heads.items():
        assert isinstance(PixelCNNpp(space, hidden=2).head, head)
    assert isinstance(PixelCNNpp(ImageSpace(3, 4, 4, 2), hidden=2, n_mixtures=4).head, LogisticMixture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden is 0; it must be at least 1"),
        ({"n_blocks": 0}, "n_blocks is 0; it must be at least 1"),
        ({"n_mixtures": 0}, "n_mixtures is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and less than 1"),
        ({"n_resolutions": 0}, "n_resolutions is 0; .* it must be 1 .. 4"),
        ({"n_resolutions": 5}, "n_resolutions is 5; .* it must be 1 .. 4"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PixelCNNpp(ImageSpace(1, 8, 7, 2), **options)  # type: ignore[arg-type]


def test_it_learns_what_lies_rows_above() -> None:
    """The lower half of each image repeats the upper, which is nothing but coins."""
    torch.manual_seed(0)
    model = PixelCNNpp(ImageSpace(1, 6, 3, 2), hidden=10, n_resolutions=2, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)

    def images(n: int) -> Tensor:
        return torch.randint(2, (n, 1, 3, 3)).repeat(1, 1, 2, 1)

    for _ in range(60):
        loss = -model.log_prob(images(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        upper, lower = model.site_log_prob(images(64)).flatten(1).mean(0).unflatten(0, (2, 9)).sum(1)
    assert upper == pytest.approx(-9 * 0.6931, abs=0.3)
    assert lower > -0.3
    drawn = model.eval().sample(32, generator=torch.Generator().manual_seed(0))
    assert (drawn[:, :, :3] == drawn[:, :, 3:]).float().mean() > 0.97
