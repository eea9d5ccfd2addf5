"""Row LSTM and Pixel LSTM: what is their own; `test_autoregressive.py` holds what all autoregressive models share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from incremental import run_incrementally
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.models.tractable import pixel_lstm, row_lstm
from triptych.nn.causal import CausalLayer
from triptych.nn.lstm import RasterLSTM, RowLSTM, RowLSTMStack
from triptych.spaces import ImageSpace


def row_lstm_by_the_equations(layer: RowLSTM, x: Tensor, condition: Tensor | None) -> Tensor:
    """Eq. 3 of the paper site by site and gate by gate, with masks as loops say them: (2h, H, W) of one image."""
    hidden, n_groups = layer.hidden, layer.n_groups
    size = hidden // n_groups
    _, height, width = x.shape
    h = torch.zeros(hidden, height, width, dtype=x.dtype)
    c = torch.zeros_like(h)
    y = torch.zeros_like(x)
    own, expand = layer.own.weight[:, :, 0, 0], layer.expand.weight[:, :, 0, 0]
    zero = torch.zeros(hidden, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            above = [
                h[:, row - 1, near] if row > 0 and 0 <= near < width else zero for near in range(column - 1, column + 2)
            ]
            for feature in range(hidden):
                group, place = divmod(feature, size)
                gates = []
                for gate in range(4):  # o, f, i, g
                    unit = (group * 4 + gate) * size + place
                    z = layer.own.bias[unit] + layer.above.weight[unit] @ torch.cat(above)
                    z = z + own[unit, : 2 * size * (group + 1)] @ x[: 2 * size * (group + 1), row, column]
                    if column > 0:
                        z = z + layer.left.weight[unit] @ x[:, row, column - 1]
                    if layer.condition is not None and condition is not None:
                        z = z + layer.condition.weight[unit] @ condition
                    gates.append(z.tanh() if gate == 3 else z.sigmoid())
                o, f, i, g = gates
                before = c[feature, row - 1, column] if row > 0 else 0
                c[feature, row, column] = f * before + i * g
                h[feature, row, column] = o * c[feature, row, column].tanh()
            for feature in range(2 * hidden):
                seen = size * (feature // (2 * size) + 1)
                y[feature, row, column] = (
                    x[feature, row, column]
                    + layer.expand.bias[feature]
                    + expand[feature, :seen] @ h[:seen, row, column]
                )
    return y


def shaken(module: nn.Module, scale: float = 2.0) -> Any:
    """Weights so large that every part of the layer matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale).add_(0.1 * torch.randn_like(parameter))
    return module.double().eval()


@pytest.mark.parametrize("n_condition", [0, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_row_lstm_computes_the_papers_equations(groups: int, n_condition: int) -> None:
    torch.manual_seed(0)
    stack = shaken(RowLSTMStack(2 * groups, 2, groups, n_condition=n_condition, dropout=0.5))
    x = torch.randn(2, 4 * groups, 4, 5, dtype=torch.float64)
    condition = torch.randn(2, n_condition, dtype=torch.float64) if n_condition else None
    with torch.no_grad():
        expected = x
        for layer in stack.layers:
            conditions = condition if condition is not None else [None, None]
            expected = torch.stack(
                [row_lstm_by_the_equations(layer, image, c) for image, c in zip(expected, conditions, strict=True)]
            )
        torch.testing.assert_close(stack(x, condition), expected)
    assert (expected - x).std() > 0.3


def test_a_row_lstm_state_sees_a_triangle() -> None:
    """One layer: a column more on either side with each row up; on its own row itself and its left neighbour."""
    torch.manual_seed(0)
    stack = shaken(RowLSTMStack(2, 1))
    x = torch.randn(1, 4, 4, 9, dtype=torch.float64, requires_grad=True)
    stack(x)[0, :, 3, 4].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(0) > 0  # (4, 9)
    # A row's states take their own input and that to the left of it, hence one column more on the left.
    for row in range(4):
        up = 3 - row
        assert seen[row].nonzero().flatten().tolist() == list(range(max(0, 4 - up - 1), 4 + up + 1))


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (6, 1), (2, 9)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("n_condition", [0, 2])
class TestIncremental:
    def test_row_lstm(self, groups: int, shape: tuple[int, int], n_condition: int) -> None:
        torch.manual_seed(1)
        layer = shaken(RowLSTMStack(2 * groups, 3, groups, n_condition=n_condition, dropout=0.5))
        x = torch.randn(3, 4 * groups, *shape, dtype=torch.float64)
        condition = torch.randn(3, n_condition, dtype=torch.float64) if n_condition else None
        with torch.no_grad():
            expected = layer(x, condition)
        # Its own wavefronts, those of a network that looks further, and raster order.
        for skew in (1 + int(layer.reach), 4, shape[1]):
            torch.testing.assert_close(run_incrementally(layer, x, condition, skew=skew, own_first=True), expected)

    def test_raster_lstm(self, groups: int, shape: tuple[int, int], n_condition: int) -> None:
        torch.manual_seed(1)
        layer = shaken(RasterLSTM(2, 5, 2, shape, groups, n_condition=n_condition, dropout=0.5), 1.5)
        x = torch.randn(3, 2 * groups, *shape, dtype=torch.float64)
        condition = torch.randn(3, n_condition, dtype=torch.float64) if n_condition else None
        with torch.no_grad():
            expected = layer(x, condition)
        torch.testing.assert_close(run_incrementally(layer, x, condition, skew=shape[1], own_first=False), expected)


def raster_lstm_by_the_equations(layer: RasterLSTM, x: Tensor) -> Tensor:
    """One image, (C * n_inputs, H, W), sub-pixel by sub-pixel: (C * hidden, H, W)."""
    weights, hidden = layer.lstm.all_weights, layer.lstm.hidden_size
    _, height, width = x.shape
    h = [torch.zeros(hidden, dtype=x.dtype) for _ in weights]
    c = [torch.zeros(hidden, dtype=x.dtype) for _ in weights]
    last = torch.zeros(layer.embed.in_features, dtype=x.dtype)
    y = torch.zeros(layer.n_groups, hidden, height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            for channel in range(layer.n_groups):
                u = layer.embed.weight @ last
                u = u + layer.rows.weight[row] + layer.columns.weight[column] + layer.channels.weight[channel]
                for k, (from_input, from_state, bias, more_bias) in enumerate(weights):
                    i, f, g, o = (from_input @ u + from_state @ h[k] + bias + more_bias).chunk(4)
                    c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
                    u = h[k] = o.sigmoid() * c[k].tanh()
                y[channel, :, row, column] = u
                last = x.unflatten(0, (layer.n_groups, -1))[channel, :, row, column]
    return y.flatten(0, 1)


@pytest.mark.parametrize("groups", [1, 3])
def test_raster_lstm_computes_an_lstm_in_raster_order(groups: int) -> None:
    torch.manual_seed(0)
    layer = shaken(RasterLSTM(2, 4, 2, (3, 4), groups), 1.5)
    x = torch.randn(2 * groups, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[None])[0], raster_lstm_by_the_equations(layer, x))


def test_forget_gates_start_open() -> None:
    row = RowLSTM(6, 3)
    bias = row.own.bias.view(3, 4, 2)
    assert (bias[:, 1] == 1).all()
    assert bias[:, [0, 2, 3]].abs().max() < 1
    raster = RasterLSTM(1, 5, 2, (2, 2))
    for _, _, bias, more_bias in raster.lstm.all_weights:
        assert ((bias + more_bias)[5:10] == 1).all()
        assert (bias + more_bias)[:5].abs().max() < 1


@pytest.mark.parametrize("stack", [RowLSTMStack(4, 2, dropout=0.5), RasterLSTM(4, 4, 1, (3, 3), dropout=0.5)], ids=type)
def test_dropout_is_of_training_alone(stack: CausalLayer) -> None:
    n_inputs = 8 if isinstance(stack, RowLSTMStack) else 4
    x = torch.randn(2, n_inputs, 3, 3)
    with torch.no_grad():
        assert not torch.equal(stack.train()(x), stack(x))
        assert torch.equal(stack.eval()(x), stack(x))


def test_palettes_and_many_levels() -> None:
    palette = tuple((i, i, i) for i in range(167))
    for space in (ImageSpace(1, 4, 5, 167, palette), ImageSpace(1, 2, 2, 1000)):
        for model in (pixel_lstm.PixelLSTM(space, hidden=6), row_lstm.RowLSTM(space, hidden=6, n_layers=1)):
            x = model.sample(8, generator=torch.Generator().manual_seed(0))
            space.check(x)
            assert x.max() > 100
            assert model.log_prob(x).shape == (8,)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="hidden is 32; it must be a multiple of the 3 channels, such as 33"):
        row_lstm.RowLSTM(ImageSpace(3, 4, 4), hidden=32)
    for options in ({"n_layers": 0}, {"kernel_size": 4}, {"kernel_size": 1}, {"dropout": 1.0}, {"hidden": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            row_lstm.RowLSTM(ImageSpace(1, 4, 4), **options)  # type: ignore[arg-type]
    for options in ({"n_layers": 0}, {"dropout": -0.1}, {"hidden": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            pixel_lstm.PixelLSTM(ImageSpace(1, 4, 4), **options)  # type: ignore[arg-type]


def test_samplers() -> None:
    assert row_lstm.RowLSTM(ImageSpace(1, 4, 4)).network.reach == 3
    assert row_lstm.RowLSTM(ImageSpace(1, 4, 4), kernel_size=3).network.reach == 1
    model = pixel_lstm.PixelLSTM(ImageSpace(1, 2, 2))
    with pytest.raises(InputError, match="whole of the row above"):
        model.draw(1, sampler="wavefront")
