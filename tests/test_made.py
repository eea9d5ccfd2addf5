"""MADE: every order is a normalised density that sees the past alone, and drawing by increments is exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from triptych.data.points import read_points
from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.tractable import made
from triptych.models.tractable.made import MADE, draw, draw_naive
from triptych.nn.masked_linear import MaskedLinear, Sorting, even_degrees
from triptych.objectives.heads import Bernoulli, LogisticMixture, Softmax
from triptych.spaces import ImageSpace, PointSpace, Space

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
SPACES: dict[str, Space] = {
    "binary": ImageSpace(1, 3, 4, 2),
    "grey, few levels": ImageSpace(1, 4, 3, 5),
    "grey, 1000 levels": ImageSpace(1, 3, 3, 1000),
    "rgb": ImageSpace(3, 2, 3, 5),
    "rgb row": ImageSpace(3, 1, 4, 256),
    "column": ImageSpace(1, 5, 1, 2),
    "one pixel": ImageSpace(1, 1, 1, 3),
    "palette": ImageSpace(1, 3, 3, 4, PALETTE),
    "1-D points": PointSpace(1, (0.5,), 0.2),
    "4-D points": PointSpace(4, (1.0, -2.0, 0.0, 9.0), 3.0),
}


def model_for(space: Space, n_classes: int = 0, **options: Any) -> MADE:
    """A small model whose random weights are large enough to make its distribution far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MADE(space, n_classes, **({"hidden": 14, "n_orders": 3, "n_mixtures": 3} | options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter)).mul_(1.5)
    return model


def data_for(space: Space, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(space, ImageSpace):
        return torch.randint(space.levels, (n, *space.shape), generator=generator)
    return torch.randn((n, space.dim), generator=generator) * space.scale + torch.tensor(space.center)


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).view(-1, *space.shape)


def labels_for(n_classes: int, n: int) -> Tensor | None:
    return torch.arange(n) % n_classes if n_classes else None


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class TestMasks:
    def test_degrees_are_even_and_reach_from_end_to_end(self) -> None:
        assert even_degrees(8, 5).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
        assert even_degrees(3, 10).tolist() == [1, 5, 9]
        assert even_degrees(1, 10).tolist() == [1]
        assert even_degrees(4, 2).tolist() == [1, 1, 1, 1]
        for n_units, n_variables in ((512, 784), (100, 64), (5, 3)):
            degrees = even_degrees(n_units, n_variables)
            assert degrees[0] == 1
            assert degrees[-1] == n_variables - 1
            assert degrees.unique_consecutive(return_counts=True)[1].float().std() <= 1

    def test_a_layer_sorted_by_degree_needs_no_mask(self) -> None:
        torch.manual_seed(0)
        layer = MaskedLinear(5, 7, 2, 3)
        inputs, outputs = torch.tensor([3, 1, 5, 2, 4]), torch.tensor([4, 0, 1, 1, 3, 2, 2])
        x = torch.randn(6, 10)
        expected = layer(x, inputs, outputs).view(6, 7, 3)
        # Two orders at once, the second that of the mirrored inputs.
        sorted_in = Sorting.of(torch.stack([inputs, inputs.flip(0)]), 5)
        sorted_out = Sorting.of(torch.stack([outputs, outputs]), 5)
        assert sorted_in.groups.tolist() == [[1, 3, 0, 4, 2], [3, 1, 4, 0, 2]]
        assert sorted_in.n_below == [0, 0, 1, 2, 3, 4, 5]
        parts = layer.sort(sorted_in, sorted_out)
        mirrored = layer(x, inputs.flip(0), outputs).view(6, 7, 3)
        sorted_x = sorted_in.sort(x.expand(2, -1, -1), 2)
        for degree in range(5):
            rows = parts(sorted_x, degree, degree + 1).view(2, 6, -1, 3)
            torch.testing.assert_close(rows[0], expected[:, outputs == degree])
            torch.testing.assert_close(rows[1], mirrored[:, outputs == degree])

    def test_orders_are_permutations_of_their_own_that_no_seed_changes(self) -> None:
        space = ImageSpace(3, 4, 5)
        torch.manual_seed(0)
        model = MADE(space, hidden=20, n_orders=5)
        torch.manual_seed(1)
        again = MADE(space, hidden=20, n_orders=5)
        assert torch.equal(model.places, again.places)
        assert torch.equal(model.degrees, again.degrees)
        assert model.places[0].tolist() == list(range(60)), "the first order is raster order"
        assert len({tuple(places.tolist()) for places in model.places}) == 5
        assert (model.places.sort(1).values == torch.arange(60)).all()
        assert (model.degrees.sort(-1).values == even_degrees(20, 60)).all()
        assert {"places", "degrees"} <= set(model.state_dict()), "weights mean nothing under other masks"

    def test_raster_order_goes_by_pixels_and_then_by_colours(self) -> None:
        space = ImageSpace(3, 2, 2, 200)
        x = torch.arange(12).view(2, 2, 3).permute(2, 0, 1)[None]  # channel c of pixel i has level 3 i + c
        model = model_for(space)
        assert model.to_variables(x).tolist() == [list(range(12))]
        assert torch.equal(model.from_variables(model.to_variables(x)), x.byte())


@pytest.mark.usefixtures("no_grad")
class TestDensity:
    @pytest.mark.parametrize("n_classes", [0, 2])
    @pytest.mark.parametrize(
        "space",
        [
            ImageSpace(1, 3, 3, 2),
            ImageSpace(3, 1, 2, 2),
            ImageSpace(3, 2, 1, 3),
            ImageSpace(1, 2, 2, 4, PALETTE),
            ImageSpace(1, 1, 2, 40),
            ImageSpace(1, 1, 1, 300),
            ImageSpace(1, 1, 1, 2),
        ],
        ids=str,
    )
    def test_probabilities_of_all_images_sum_to_one(self, space: ImageSpace, n_classes: int) -> None:
        model, x = model_for(space, n_classes, direct=True), all_images(space)
        for label in range(max(1, n_classes)):
            labels = torch.full((len(x),), label) if n_classes else None
            single = torch.stack([model.order_log_prob(x, order, labels) for order in range(3)]).double()
            mixture = model.log_prob(x, labels).double()
            assert single.exp().sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
            assert mixture.exp().sum().item() == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(mixture.exp(), single.exp().mean(0), rtol=1e-4, atol=1e-9)
            if space.n_dims > 1:
                assert single.std(0).max() > 0.1, "the orders must not be one distribution"
        if n_classes:
            other = model.log_prob(x, torch.zeros(len(x), dtype=torch.int64))
            assert (other - mixture).abs().max() > 0.05, "the classes must not be one distribution"

    @pytest.mark.parametrize("n_classes", [0, 2])
    def test_densities_of_points_integrate_to_one_in_data_units(self, n_classes: int) -> None:
        line, plane = PointSpace(1, (0.5,), 0.2), PointSpace(2, (1.0, -2.0), 3.0)
        axis = torch.linspace(-16, 16, 801)  # in units of the scale
        step = 32 / 800
        for space in (line, plane):
            model = model_for(space, n_classes, n_orders=2)
            # Components neither too narrow nor too wide for the grid.
            model.network.bias.view(space.dim, 3, 3)[:, 2].clamp_(-0.5, 0.0)
            for layer in (model.network.out, model.network.direct, model.network.condition_out):
                if layer is not None:
                    layer.weight.mul_(0.4)
            grid = torch.cartesian_prod(*[axis] * space.dim).view(-1, space.dim)
            x = grid * space.scale + torch.tensor(space.center)
            labels = torch.full((len(x),), 1) if n_classes else None
            for nats in (model.order_log_prob(x, 1, labels), model.log_prob(x, labels)):
                assert nats.double().exp().sum().item() * (step * space.scale) ** space.dim == pytest.approx(
                    1, abs=1e-3
                )

    def test_a_density_of_points_is_bounded(self) -> None:
        model = model_for(PointSpace(2, (0.0, 0.0), 2.0), direct=True)
        model.network.bias.view(2, 3, 3)[:, 2] = -1000.0
        x = model.sample(50, generator=torch.Generator().manual_seed(0))
        # At most the density of two Gaussians of standard deviation exp(-7) times the scale at their means.
        bound = 2 * (7 - math.log(2.0) - 0.5 * math.log(2 * math.pi))
        nats = model.log_prob(x)
        assert nats.isfinite().all()
        assert (nats <= bound + 1e-4).all()
        assert model.order_log_prob(x, 0).max() > 0.7 * bound, "the floor must be what holds it"

    @pytest.mark.parametrize("title", ["grey, few levels", "rgb", "palette", "4-D points"])
    def test_flipping_a_variable_changes_later_outputs_only(self, title: str) -> None:
        space = SPACES[title]
        model = model_for(space, direct=title == "palette", n_layers=3, hidden=250)
        v = model.to_variables(data_for(space, 1))
        n_dims, seen = space.n_dims, []
        for order in range(3):
            masks = model.masks(order)
            before = model.network(model.encode(v), masks)[0]
            for i in range(n_dims):
                flipped = v.clone()
                flipped[0, i] = (
                    (flipped[0, i] + 1) % space.levels if isinstance(space, ImageSpace) else flipped[0, i] + 1
                )
                changed = (model.network(model.encode(flipped), masks)[0] != before).any(-1)  # bit for bit
                assert not changed[masks.places <= masks.places[i]].any()
                if masks.places[i] < n_dims - 1:
                    seen.append(changed[masks.places == masks.places[i] + 1].item())
        assert np.mean(seen) > 0.9, "the next variable must see it, but for units that are off"

    @pytest.mark.parametrize("direct", [False, True])
    def test_the_jacobian_is_strictly_triangular_in_every_order(self, direct: bool) -> None:
        model = model_for(ImageSpace(3, 2, 3, 3), direct=direct, hidden=60).double()
        x = torch.randn(1, 18, 1, dtype=torch.float64)
        for order in range(3):
            masks = model.masks(order)
            with torch.enable_grad():
                jacobian = torch.autograd.functional.jacobian(lambda x, masks=masks: model.network(x, masks), x)
            influence = jacobian[0, :, :, 0, :, 0].abs().amax(1)  # (outputs, inputs)
            sees = masks.places[:, None] > masks.places
            assert not influence[~sees].any()
            assert (influence[sees] > 0).float().mean() > 0.95, "almost every variable before is seen"

    def test_float32_agrees_with_float64_and_bfloat16(self) -> None:
        for title in ("rgb", "grey, 1000 levels", "palette", "4-D points"):
            space = SPACES[title]
            model = model_for(space, direct=False)
            x = data_for(space, 8)
            single = model.log_prob(x)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.log_prob(x)
                under_autocast = model.sample(5, generator=torch.Generator().manual_seed(0))
            assert torch.equal(under_autocast, model.sample(5, generator=torch.Generator().manual_seed(0)))
            double = model.double().log_prob(x)
            assert single.dtype == rounded.dtype == double.dtype == torch.float32
            torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-3)
            # Eight bits of mantissa under weights far larger than trained ones.
            torch.testing.assert_close(rounded, single, rtol=0.05, atol=0.1)
            space.check(model.sample(3))

    def test_scores_and_draws_do_not_depend_on_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for title in ("rgb", "4-D points"):
            model = model_for(SPACES[title], 2)
            labels = torch.tensor([0, 1, 1, 0, 1])
            x = data_for(SPACES[title], 5)
            with torch.enable_grad():
                whole = model.log_prob(x, labels)
            assert whole.requires_grad
            monkeypatch.setattr(made, "MAX_NUMBERS", 1)
            torch.testing.assert_close(model.log_prob(x, labels), whole.detach(), rtol=1e-5, atol=1e-5)
            assert model.sample(5, labels=labels).shape == x.shape
            monkeypatch.undo()
            assert model.log_prob(x[:0], labels[:0]).shape == (0,)

    def test_the_loss_is_an_order_drawn_by_the_generator(self) -> None:
        space = ImageSpace(1, 3, 3, 3)
        model, x = model_for(space), data_for(space, 6)
        (phase,) = model.phases()
        singles = [-model.order_log_prob(x, order).mean().item() for order in range(3)]
        seen = set()
        for seed in range(20):
            loss = model.loss(Batch(x, None), phase.name, generator=torch.Generator().manual_seed(seed))
            nats = loss.terms["bound_nats_per_image"].item()
            assert loss.total.item() == pytest.approx(space.bits_per_dim(nats), rel=1e-5)
            seen.add(min(range(3), key=lambda order: abs(singles[order] - nats)))
            assert min(abs(single - nats) for single in singles) < 1e-4
        assert seen == {0, 1, 2}
        assert -model.log_prob(x).mean().item() <= sum(singles) / 3, "the mean over orders is an upper bound"
        alone = model_for(space, n_orders=1)
        exact = alone.loss(Batch(x, None), phase.name).terms["nats_per_image"].item()
        assert exact == pytest.approx(-alone.log_prob(x).mean().item(), rel=1e-5)


@pytest.mark.usefixtures("no_grad")
class TestDrawing:
    @pytest.mark.parametrize("n_classes", [0, 3])
    @pytest.mark.parametrize("title", SPACES)
    def test_increments_draw_what_a_forward_pass_for_each_variable_draws(self, title: str, n_classes: int) -> None:
        space = SPACES[title]
        for n_layers, hidden, direct in ((1, 5, False), (2, 30, True), (3, 14, False)):
            model = model_for(space, n_classes, n_layers=n_layers, hidden=hidden, direct=direct)
            orders = torch.tensor([0, 2, 1, 2, 2, 0])  # all at once, and not as many of each
            noise = model.noise(6, torch.Generator().manual_seed(1))
            labels = labels_for(n_classes, 6)
            quick = draw(model, orders, noise, labels)
            for order in range(3):
                own = orders == order
                naive = draw_naive(model, order, noise[own], None if labels is None else labels[own])
                # Coordinates agree within rounding, levels at all.
                torch.testing.assert_close(quick[own], naive, rtol=1e-4, atol=1e-5)
            assert len(quick.unique()) > 1

    def test_every_weight_that_is_not_masked_is_used_once(self) -> None:
        """The whole drawing multiplies each weight under the masks once: half of one forward pass."""
        model = model_for(ImageSpace(1, 5, 6, 2), hidden=50, n_layers=3, direct=True)
        masks = model.masks(1)
        increments = model.network.start([masks], 1)
        used = 0
        for first, end in increments.turns:
            for layer in (*increments.layers, increments.out, increments.direct):
                assert layer is not None
                rows = layer.rows(first, end)
                used += (rows.stop - rows.start) * layer.reads[first + 1]
        seen = [(masks.places + 1, masks.degrees[0]), (masks.degrees[0], masks.degrees[1])]
        seen += [(masks.degrees[1], masks.degrees[2]), (masks.degrees[2], masks.places)]
        seen += [(masks.places + 1, masks.places)]
        assert used == sum(int((below <= above[:, None]).sum()) for below, above in seen)

    def test_variables_between_which_no_unit_learns_anything_are_drawn_at_once(self) -> None:
        few = model_for(ImageSpace(1, 6, 6, 2), hidden=4, direct=False)
        assert [first for first, _ in few.network.start([few.masks(0)], 1).turns] == [0, 1, 12, 24, 35]
        direct = model_for(ImageSpace(1, 6, 6, 2), hidden=4, direct=True)
        assert len(direct.network.start([direct.masks(0)], 1).turns) == 36

    @pytest.mark.parametrize(
        "space", [ImageSpace(1, 2, 2, 3), ImageSpace(3, 1, 2, 2), ImageSpace(1, 1, 2, 4, PALETTE)], ids=str
    )
    def test_frequencies_of_draws_agree_with_log_prob(self, space: ImageSpace) -> None:
        model, x, n = model_for(space), all_images(space), 20_000
        drawn = model.sample(n, generator=torch.Generator().manual_seed(0)).long().flatten(1)
        place = space.levels ** torch.arange(space.n_dims - 1, -1, -1)
        observed = (drawn * place).sum(1).bincount(minlength=len(x)).double()
        expected = n * model.log_prob(x).double().exp()
        rare = expected < 5
        observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
        expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
        statistic = ((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum().item()
        assert stats.chi2.sf(statistic, len(expected) - 1) > 0.001

    def test_draws_of_points_follow_the_density(self) -> None:
        space = PointSpace(2, (1.0, -2.0), 3.0)
        model = model_for(space, n_orders=2)
        x = model.sample(20_000, generator=torch.Generator().manual_seed(0))
        # Each coordinate's distribution function, by integrals over a grid of the density, against that of the draws.
        axis = torch.linspace(-12, 12, 801)
        grid = torch.cartesian_prod(axis, axis) * space.scale + torch.tensor(space.center)
        mass = model.log_prob(grid).double().exp().view(801, 801)
        assert mass.sum().item() * (space.scale * 24 / 800) ** 2 == pytest.approx(1, abs=0.02)
        for i in range(2):
            cdf = mass.sum(1 - i).cumsum(0) / mass.sum()
            edges = (axis + 12 / 800) * space.scale + torch.tensor(space.center)[i]
            observed = torch.searchsorted(x[:, i].contiguous().sort().values, edges) / len(x)
            assert (observed - cdf).abs().max() < 0.02  # 99.9 % of Kolmogorov-Smirnov's statistics are below 0.0138

    def test_draws_come_from_all_orders_in_any_mode(self) -> None:
        model = model_for(ImageSpace(1, 4, 4, 3), dropout=0.5)
        expected = model.sample(9, generator=torch.Generator().manual_seed(0))
        model.train()
        assert torch.equal(model.sample(9, generator=torch.Generator().manual_seed(0)), expected), "no dropout"
        assert model.training
        generator = torch.Generator().manual_seed(0)
        orders = torch.randint(3, (9,), generator=generator)
        assert len(orders.unique()) == 3
        noise = model.noise(9, generator)
        for order in range(3):
            drawn = draw_naive(model.eval(), order, noise[orders == order])
            assert torch.equal(model.from_variables(drawn), expected[orders == order])


def test_it_learns_the_density_of_the_moons() -> None:
    parts = read_points("moons")
    x = torch.from_numpy(np.asarray(parts.splits["train"].items))
    centre = tuple(x.mean(0).tolist())
    space = PointSpace(2, centre, float((x - x.mean(0)).square().mean().sqrt()))
    torch.manual_seed(0)
    model = MADE(space, hidden=32, n_mixtures=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 400)
        batch = x[torch.randint(len(x), (256,), generator=generator)]
        optimizer.zero_grad()
        model.loss(Batch(batch, None), "density", generator=generator).total.backward()
        optimizer.step()
    test = np.asarray(parts.splits["test"].items)
    with torch.no_grad():
        gap = parts.log_density(test).mean() - model.log_prob(torch.from_numpy(test)).mean().item()
    # A Gaussian of the same covariance is 0.9 nats short of the true density.
    assert -0.02 < gap < 0.15


def test_the_head_fits_the_space() -> None:
    assert isinstance(MADE(ImageSpace(3, 2, 2, 2), hidden=4).head, Bernoulli)
    assert isinstance(MADE(ImageSpace(3, 2, 2, 32), hidden=4).head, Softmax)
    assert isinstance(MADE(ImageSpace(3, 2, 2, 33), hidden=4).head, LogisticMixture)
    colours = tuple((i, i, i) for i in range(40))
    assert isinstance(MADE(ImageSpace(1, 2, 2, 40, colours), hidden=4).head, Softmax)


def test_direct_connections_are_made_where_they_are_few() -> None:
    assert MADE(ImageSpace(1, 28, 28, 2), hidden=4).direct
    assert not MADE(ImageSpace(1, 28, 28, 256), hidden=4).direct


def test_options_are_checked() -> None:
    for option, value in {"hidden": 0, "n_layers": 0, "n_orders": 0, "n_mixtures": 0, "dropout": 1.0}.items():
        with pytest.raises(InputError, match=f"{option} is {value}; it must be at least"):
            MADE(ImageSpace(1, 4, 4), **{option: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dropout is -1; it must"):
        MADE(PointSpace(2), dropout=-1)
