"""The stacks of the Gated PixelCNN see all that is earlier within their reach and nothing else, at once or step by
step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from incremental import run_incrementally
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.models.tractable.gated_pixel_cnn import GatedPixelCNN
from triptych.nn.causal import CausalLayer, CausalSequential, MaskedConv2d, Pointwise
from triptych.nn.gated import Gate, GatedLayer, GatedStacks, RowConv2d
from triptych.spaces import ImageSpace


def stacks(groups: int = 1, n_layers: int = 3, kernel_size: int = 5, n_condition: int = 0) -> GatedStacks:
    """Small stacks with weights large enough that each input matters, and dropout to be left out in evaluation."""
    torch.manual_seed(0)
    network = GatedStacks(
        2 * groups, 4 * groups, 3 * groups, n_layers, kernel_size, groups, n_condition=n_condition, dropout=0.5
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def seen_from_the_middle(network: CausalLayer, size: int) -> Tensor:
    """Which sites of a square image the output at the site in its middle depends on, bool, (size, size)."""
    x = torch.randn(9, 2, size, size, dtype=torch.float64, requires_grad=True)  # in one image alone a ReLU may be shut
    network.double()(x)[:, :, size // 2, size // 2].square().sum().backward()
    assert x.grad is not None
    return x.grad.abs().sum((0, 1)) > 0


class TestReceptiveField:
    @pytest.mark.parametrize(("n_layers", "kernel_size"), [(1, 3), (1, 7), (2, 5), (4, 3)])
    def test_has_no_blind_spot(self, n_layers: int, kernel_size: int) -> None:
        reach = kernel_size // 2 + n_layers - 1
        middle = reach + 1
        expected = torch.zeros(2 * middle + 1, 2 * middle + 1, dtype=torch.bool)
        expected[1:middle, 1:-1] = True  # the rows above, as far to the right as to the left
        expected[middle, 1:middle] = True
        seen = seen_from_the_middle(stacks(1, n_layers, kernel_size), 2 * middle + 1)
        assert torch.equal(seen, expected)

    def test_of_masked_convolutions_has_one(self) -> None:
        """The contrast: as many layers with the same kernels, masked, miss a wedge to the right of the site."""
        torch.manual_seed(0)
        layers: list[CausalLayer] = [MaskedConv2d(2, 8, 3, "A")]
        for _ in range(3):
            layers += [Pointwise(torch.tanh, 1), MaskedConv2d(8, 8, 3, "B")]
        masked = seen_from_the_middle(CausalSequential(layers), 11)
        gated = seen_from_the_middle(stacks(1, 4, 3), 11)
        assert not (masked & ~gated).any()
        missed = (gated & ~masked).nonzero().tolist()
        assert [4, 7] in missed, "one row up, two columns to the right"
        assert all(column > 5 for _, column in missed)

    def test_the_stack_above_knows_nothing_of_its_own_row(self) -> None:
        torch.manual_seed(0)
        first = GatedLayer(2, 4, 5, 1, is_first=True)
        second = GatedLayer(4, 4, 3, 1)
        x = torch.randn(1, 2, 6, 5)

        def above(x: Tensor) -> Tensor:
            y, row, _ = first(x, x, None)
            return second(y, row, None)[0]

        jacobian = torch.autograd.functional.jacobian(above, x)  # (1, 4, 6, 5, 1, 2, 6, 5)
        influence = jacobian.abs().sum((0, 1, 3, 4, 5, 7))  # (row of the output, row of the input)
        assert not influence.triu().any()
        assert (influence.diagonal(-1) > 0).all()


class TestRowConvolution:
    @pytest.mark.parametrize(
        ("mask_type", "own"), [("A", [[0, 0, 0], [1, 0, 0], [1, 1, 0]]), ("B", [[1, 0, 0], [1, 1, 0], [1, 1, 1]])]
    )
    def test_orders_the_channels_at_its_own_site_alone(self, mask_type: Any, own: list[list[int]]) -> None:
        layer = RowConv2d(6, 12, 2, mask_type, 3, parts=(1, 2))
        assert layer.mask is not None
        assert (layer.mask[..., :2] == 1).all()
        seen = layer.mask[:, :, 0, 2].unflatten(0, (2, 3, 2)).unflatten(3, (3, 2))  # (part, group, 2, group, 2)
        for part in seen:
            for features in part.unbind(1):
                assert features[..., 0].tolist() == features[..., 1].tolist() == own

    @pytest.mark.parametrize(("mask_type", "n_taps"), [("A", 3), ("B", 4)])
    def test_computes_no_tap_that_is_never_seen(self, mask_type: Any, n_taps: int) -> None:
        layer = RowConv2d(2, 4, 3, mask_type, 1)
        assert layer.mask is None
        assert layer.weight.shape == (4, 2, 1, n_taps)
        assert layer(torch.randn(2, 2, 3, 5)).shape == (2, 4, 3, 5)
        assert layer(torch.randn(2, 2, 3, 1)).shape == (2, 4, 3, 1)

    @pytest.mark.parametrize("mask_type", ["A", "B"])
    @pytest.mark.parametrize("groups", [1, 3])
    @pytest.mark.parametrize("parts", [(1, 1), (1, 2), (2, 1)])
    def test_its_matrices_compute_what_it_computes(self, mask_type: Any, groups: int, parts: tuple[int, int]) -> None:
        if mask_type == "A" and parts[0] > 1:
            return  # No layer of the kind: only the last layers have inputs in parts.
        torch.manual_seed(0)
        layer = RowConv2d(4 * groups, 6 * groups, 2, mask_type, groups, parts=parts)
        x = torch.randn(3, 4 * groups, 1, 5)
        with torch.no_grad():
            y = layer(x)[:, :, 0]  # (3, C_out, 5)
        assert layer.bias is not None
        for group in range(groups):
            matrix, outputs = layer.matrix(group), layer.outputs(group)
            for column in range(2, 5):
                sites = x[:, :, 0, column - 2 : column + 1].transpose(1, 2).flatten(1)  # (3, taps * C_in)
                mine = sites[:, : len(matrix)] @ matrix + layer.bias[outputs]
                torch.testing.assert_close(mine, y[:, outputs, column])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gate_is_a_tanh_times_a_sigmoid(dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 2 * 3 * 8).view(1, 6, 2, 4)[:, torch.tensor([0, 3, 1, 4, 2, 5])]
    precise = x.double().requires_grad_()
    a, b = precise.chunk(2, 1)
    expected = a.tanh() * b.sigmoid()
    mine = x.to(dtype).requires_grad_()
    y = Gate(3).to(dtype)(mine)
    assert y.dtype == dtype
    tolerance = {"rtol": 0.02, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(y, expected.to(dtype), **tolerance)
    y.float().sum().backward()
    expected.sum().backward()
    assert mine.grad is not None
    assert precise.grad is not None
    torch.testing.assert_close(mine.grad, precise.grad.to(dtype), **tolerance)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_condition_enters_the_gates_of_both_stacks(groups: int) -> None:
    network, x = stacks(groups, n_condition=2), torch.randn(1, 2 * groups, 4, 4)
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for stack, rows in (("horizontal_condition", slice(0, 4)), ("vertical_condition", slice(0, 4))):
        silent = stacks(groups, n_condition=2)
        for layer in silent.layers:
            for name in {"horizontal_condition", "vertical_condition"} - {stack}:
                linear = getattr(layer, name)
                if linear is not None:
                    nn.init.zeros_(linear.weight)
        with torch.no_grad():
            assert ((silent(x, one) - silent(x, other))[:, :, rows].abs().amax((1, 3)) > 1e-4).all()
    with torch.no_grad():
        torch.testing.assert_close(network(x, torch.zeros(1, 2)), network(x))


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (6, 1), (2, 9)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("n_layers", "kernel_size"), [(1, 3), (3, 7), (2, 5)])
def test_incremental_equals_parallel(n_layers: int, kernel_size: int, groups: int, shape: tuple[int, int]) -> None:
    network = stacks(groups, n_layers, kernel_size, n_condition=5)
    x, given = torch.randn(3, 2 * groups, *shape), torch.randn(3, 5)
    for condition in (None, given):
        with torch.no_grad():
            expected = network(x, condition)
        for told_of_rows in (True, False):
            found = run_incrementally(network, x, condition, skew=shape[1], own_first=False, rows=told_of_rows)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Nothing in the buffers mixes the images of a batch.
    alone = run_incrementally(network, x[1:2], given[1:2], skew=shape[1], own_first=False, rows=True)
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-4, atol=1e-5)


def tensors_in(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for item in part:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from tensors_in(getattr(part, field.name))


def test_what_drawing_keeps_does_not_grow_with_the_rows() -> None:
    def n_bytes(n: int, shape: tuple[int, int]) -> int:
        with torch.inference_mode():
            network = stacks(3)
            kept = {t.untyped_storage().data_ptr(): t for t in tensors_in(network.start(n, shape))}
        own = {t.data_ptr() for t in network.parameters()}
        return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)

    assert n_bytes(2, (50, 6)) == n_bytes(2, (5, 6))
    images = [n_bytes(n, (5, 6)) for n in (1, 2, 3)]
    assert images[2] - images[1] == images[1] - images[0] > 0


def test_the_network_looks_at_the_whole_of_the_rows_above() -> None:
    assert math.isinf(stacks().reach)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 16}, "hidden is 16; it must be a multiple of the 3 channels, such as 15"),
        ({"hidden": 0}, "hidden is 0"),
        ({"n_layers": 0}, "n_layers is 0; it must be at least 1"),
        ({"kernel_size": 4}, "kernel_size is 4; it must be odd and at least 3"),
        ({"kernel_size": 1}, "kernel_size is 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and less than 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GatedPixelCNN(ImageSpace(3, 4, 4), **options)


def test_features_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(InputError, match="features is 8; it must be a multiple of 3"):
        GatedStacks(3, 8, 9, 2, 3, 3)
