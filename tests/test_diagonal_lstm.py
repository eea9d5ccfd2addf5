"""The Diagonal BiLSTM against a loop over pixels, and what is its own in drawing; the rest is in the shared tests."""

from __future__ import annotations

import pytest
import torch
from incremental import run_incrementally
from torch import Tensor

from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.registry import create_model, model_options
from triptych.models.tractable.diagonal_bilstm import DiagonalBiLSTM as Model
from triptych.nn.diagonal_lstm import DiagonalBiLSTM, DiagonalBiLSTMStack, Diagonals
from triptych.spaces import ImageSpace

SHAPES = [(4, 5), (3, 3), (6, 2), (2, 7), (1, 4), (5, 1), (1, 1)]


def pixel_by_pixel(layer: DiagonalBiLSTM, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Equation 3 of the paper at one site after another, in either direction."""
    n, _, height, width = x.shape
    inputs = layer.input_to_state(x)  # (N, 8h, H, W)
    if layer.condition is not None:
        inputs = inputs + layer.condition(condition)[:, :, None, None]
    inputs = inputs.unflatten(1, (layer.n_groups, 2, 4, -1))  # (N, G, 2, 4, h / G, H, W)
    zero = x.new_zeros(n, layer.hidden)
    y = x.new_zeros(n, layer.hidden, height, width)
    for direction, columns in enumerate([range(width), range(width - 1, -1, -1)]):
        beside = -1 if direction == 0 else 1
        from_beside, from_above = layer.state_to_state[direction]  # (h, 4h)
        h: dict[tuple[int, int], Tensor] = {}
        c: dict[tuple[int, int], Tensor] = {}
        for row in range(height):
            for column in columns:
                states = h.get((row, column + beside), zero) @ from_beside + h.get((row - 1, column), zero) @ from_above
                gates = [
                    inputs[:, :, direction, gate, :, row, column].flatten(1) + states.chunk(4, 1)[gate]
                    for gate in range(4)
                ]
                o, f, i, g = gates[0].sigmoid(), gates[1].sigmoid(), gates[2].sigmoid(), gates[3].tanh()
                c[row, column] = f * c.get((row, column + beside), zero) + i * g
                h[row, column] = o * c[row, column].tanh()
        for (row, column), state in h.items():
            if direction == 0:
                y[:, :, row, column] += state
            elif row + 1 < height:
                y[:, :, row + 1, column] += state
    return x + layer.expand(y)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_a_loop_over_pixels(shape: tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    layers = DiagonalBiLSTMStack(2 * groups, 2, groups, n_condition=4).double()
    x = torch.randn(3, 4 * groups, *shape, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected = x
    for layer in layers.layers:
        assert isinstance(layer, DiagonalBiLSTM)
        expected = pixel_by_pixel(layer, expected, condition)
    y = layers(x, condition)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(y)
    of = [x, condition, *layers.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y, of, weights), torch.autograd.grad(expected, of, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    # Without a condition, too, whose biases then have no rows of their own.
    x_alone = x.detach()
    for layer in layers.layers:
        x_alone = pixel_by_pixel(layer, x_alone, torch.zeros_like(condition))  # type: ignore[arg-type]
    torch.testing.assert_close(layers(x.detach()), x_alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_layer_sees_the_whole_past_and_nothing_else(groups: int) -> None:
    torch.manual_seed(0)
    layer = DiagonalBiLSTMStack(groups, 1, groups).double()
    n_sites = 4 * 5
    x = torch.randn(1, 2 * groups, 4, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, x)[0, :, :, :, 0]  # (2G, H, W, 2G, H, W)
    influence = jacobian.abs().unflatten(0, (groups, 2)).unflatten(4, (groups, 2)).sum((1, 5))  # (G, H, W, G, H, W)
    influence = influence.permute(1, 2, 0, 4, 5, 3).reshape(n_sites, groups, n_sites, groups)
    earlier = torch.ones(n_sites, n_sites).tril(-1).bool()[:, None, :, None]
    own = torch.eye(n_sites).bool()[:, None, :, None] & torch.ones(groups, groups).tril().bool()[None, :, None]
    assert torch.equal(influence > 0, (earlier | own).expand_as(influence))


@pytest.mark.parametrize("shape", SHAPES)
def test_diagonals_hold_every_site_once_and_its_neighbours(shape: tuple[int, int]) -> None:
    height, width = shape
    diagonals = Diagonals.of(shape, torch.device("cpu"))
    everywhere = [(row, column) for row in range(height) for column in range(width)]
    assert diagonals.order[diagonals.from_left].tolist() == list(range(height * width))
    assert diagonals.order[diagonals.from_right].tolist() == list(range(height * width))
    assert sorted(torch.cat([diagonals.from_left, diagonals.from_right]).tolist()) == list(range(2 * height * width))
    assert len(diagonals.turns) == height + width - 1
    before: tuple[list[tuple[int, int]], ...] = [], []
    parts = diagonals.split(diagonals.order[:, None, None])
    for number, (turn, part) in enumerate(zip(diagonals.turns, parts, strict=True)):
        now = tuple([everywhere[site] for site in scan] for scan in part.flatten(1).tolist())
        for sites, sites_before, step in zip(now, before, (-1, 1), strict=True):
            first_column = 0 if step == -1 else width - 1
            assert {row + abs(column - first_column) for row, column in sites} == {number}
            edged = [None, *sites_before, None]
            above_all, beside_all = (edged[turn.skip + i : turn.skip + i + turn.n_sites] for i in (0, 1))
            for (row, column), above, beside in zip(sites, above_all, beside_all, strict=True):
                assert beside == ((row, column + step) if column != first_column else None)
                assert above == ((row - 1, column) if row else None)
        before = now


@pytest.mark.parametrize("tell_rows", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_incremental_equals_parallel(shape: tuple[int, int], groups: int, tell_rows: bool) -> None:
    torch.manual_seed(1)
    layers = DiagonalBiLSTMStack(2 * groups, 3, groups, n_condition=5, dropout=0.5).eval()
    x, condition = torch.randn(3, 4 * groups, *shape), torch.randn(3, 5)

    def run(x: Tensor, condition: Tensor | None) -> Tensor:
        return run_incrementally(layers, x, condition, skew=shape[1], own_first=True, rows=tell_rows)

    with torch.inference_mode():
        expected = layers(x, condition)
        torch.testing.assert_close(run(x, condition), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(x[1:2], condition[1:2]), expected[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(x, None), layers(x), rtol=1e-4, atol=1e-5)


def test_gradients_reach_through_seven_layers_and_along_a_row() -> None:
    torch.manual_seed(0)
    layers = DiagonalBiLSTMStack(16, 7)
    x = torch.randn(4, 32, 28, 28, requires_grad=True)
    y = layers(x)
    y.square().mean().backward()
    norms = [layer.state_to_state.grad.norm().item() for layer in layers.layers]  # type: ignore[union-attr]
    assert min(norms) > 0.1 * max(norms)
    # Along a row the cells carry it over twenty-seven steps: the forget gates begin open.
    (of_last,) = torch.autograd.grad(layers(x)[:, :, -1, -1].sum(), x)
    assert of_last[:, :, -1, 0].abs().amax() > 1e-5


def test_under_autocast_the_recurrence_keeps_its_precision() -> None:
    torch.manual_seed(0)
    layer = DiagonalBiLSTMStack(8, 1)
    x = torch.randn(2, 16, 2, 200).bfloat16().float()
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    # The rounding of one product, however long the row.
    torch.testing.assert_close(rounded, plain, rtol=0.01, atol=0.02)
    model = Model(ImageSpace(3, 5, 6, 8), n_classes=2, hidden=6, n_layers=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(Batch(torch.randint(8, (4, 3, 5, 6)), torch.tensor([0, 1, 0, 1])), "density")
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="hidden is 32; it must be a multiple of the 3 channels, such as 33"):
        Model(ImageSpace(3, 4, 4), hidden=32)
    for options in ({"n_layers": 0}, {"kernel_size": 4}, {"kernel_size": 1}, {"dropout": 1.0}, {"hidden": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            Model(ImageSpace(1, 4, 4), **options)  # type: ignore[arg-type]


def test_the_registry_knows_it() -> None:
    assert "n_layers" in model_options("diagonal_bilstm")
    assert isinstance(create_model("diagonal_bilstm", ImageSpace(3, 4, 4, 8), n_layers=1), Model)
