"""The conditional GAN of images: what is given, what its networks see of it, its score, and what it remembers."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from players import data_of
from torch import Tensor

from triptych.errors import InputError
from triptych.models.base import Batch
from triptych.models.implicit import pix2pix
from triptych.models.implicit.pix2pix import (
    GivenName,
    PatchDiscriminator,
    Pix2Pix,
    UNet,
    assembled,
    colours,
    edges,
    given_map,
    spread_l1,
    wanted,
)
from triptych.objectives.adversarial import OBJECTIVES
from triptych.spaces import ImageSpace

GREY = ImageSpace(1, 8, 8, 17)
COLOUR = ImageSpace(3, 9, 12)
DEEP = ImageSpace(1, 6, 10, 1000)
PALETTE = ImageSpace(1, 7, 6, 4, ((0, 0, 0), (100, 100, 100), (200, 60, 52), (255, 255, 255)))
SPACES = (GREY, COLOUR, DEEP, PALETTE, ImageSpace(1, 9, 14, 2))
GIVENS: tuple[GivenName, ...] = get_args(GivenName)
CASES = [(s, g) for s, g in itertools.product(SPACES, GIVENS) if g != "grey" or s.channels == 3 or s.palette]


def model_of(space: ImageSpace, n_classes: int = 0, **options: Any) -> Pix2Pix:
    """A model whose weights are shaken, so that no block is idle."""
    torch.manual_seed(0)
    model = Pix2Pix(space, n_classes, **{"hidden": 4, "n_latents": 3, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestGiven:
    @pytest.mark.parametrize(("space", "given"), CASES, ids=str)
    def test_maps_have_the_size_of_answers_and_the_range_of_scaled_data(
        self, space: ImageSpace, given: GivenName
    ) -> None:
        x = data_of(space, 3)
        seen = given_map(x, space, given)
        assert seen.dtype == torch.float32
        assert seen.shape[2:] == wanted(x, given).shape[2:]
        assert -1 <= float(seen.min()) < float(seen.max()) <= 1 + 1e-6

    @pytest.mark.parametrize(("space", "given"), CASES, ids=str)
    def test_halves_and_answers_make_the_whole(self, space: ImageSpace, given: GivenName) -> None:
        x, other = data_of(space, 3), data_of(space, 3, seed=1)
        assert torch.equal(assembled(x, wanted(x, given), space, given), x)
        mixed = assembled(x, wanted(other, given), space, given)
        assert (mixed == other).all() == (given in ("edges", "grey"))
        # Of the mixture, the given part is still that of x.
        if given not in ("edges", "grey"):
            assert torch.equal(given_map(mixed, space, given), given_map(x, space, given))
            assert not torch.equal(given_map(other, space, given), given_map(x, space, given))

    def test_a_step_has_an_edge_where_it_is_and_a_flat_image_none(self) -> None:
        x = torch.zeros((2, 1, 6, 8), dtype=torch.uint8)
        x[0, :, :, 4:] = 200
        seen = given_map(x, ImageSpace(1, 6, 8), "edges")
        assert (seen[0, 0] == torch.tensor([-1.0, -1, -1, 1, 1, -1, -1, -1])).all()
        assert (seen[1] == -1).all()

    def test_edges_do_not_depend_on_contrast_or_direction(self) -> None:
        c = torch.rand((4, 3, 9, 9), generator=noise())
        found = edges(c)
        assert 0.1 < float(found.float().mean()) < 0.9
        assert torch.equal(edges(0.5 * c + 0.1), found)
        assert torch.equal(edges(c.mT).mT, found)
        assert torch.equal(edges(1 - c), found)
        assert not edges(0.001 * c).any(), "noise that nobody sees is no edge"

    def test_a_palette_is_seen_by_its_colours(self) -> None:
        assert PALETTE.palette is not None
        order = [2, 0, 3, 1]
        renamed = ImageSpace(1, 7, 6, 4, tuple(PALETTE.palette[order.index(i)] for i in range(4)))
        x = data_of(PALETTE, 3)
        y = torch.tensor(order)[x.long()]
        assert torch.equal(colours(x, PALETTE), colours(y, renamed))
        for given in ("edges", "grey"):
            assert torch.equal(given_map(x, PALETTE, given), given_map(y, renamed, given))

    def test_grey_is_the_luminance(self) -> None:
        x = torch.zeros((3, 3, 2, 2), dtype=torch.uint8)
        x[1], x[2, 1] = 255, 255
        seen = given_map(x, ImageSpace(3, 2, 2), "grey")
        torch.testing.assert_close(seen[:, 0, 0, 0], torch.tensor([-1.0, 1.0, 2 * 0.587 - 1]))

    def test_what_cannot_be_given_is_refused(self) -> None:
        for space, given, word in (
            (ImageSpace(1, 8, 9), "left", "even width"),
            (ImageSpace(1, 8, 9), "right", "9 pixels of width"),
            (ImageSpace(1, 1, 8), "top", "single row"),
            (GREY, "grey", "no colours"),
            (GREY, "bottom", "it must be edges, grey, top, left or right"),
        ):
            with pytest.raises(InputError, match=word):
                model_of(space, given=given)
        for options in ({"n_halvings": 5}, {"spread_weight": -1.0}, {"l1_weight": -1.0}, {"objective": "vague"}):
            with pytest.raises(InputError, match=next(iter(options))):
                model_of(GREY, **options)


class TestNetworks:
    @pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 13), (128, 64), (3, 2), (1, 5)], ids=str)
    def test_a_u_net_answers_in_any_size(self, size: tuple[int, int]) -> None:
        network = UNet(size, 2, 5, 3, hidden=2)
        y = network(torch.randn(2, 2, *size), torch.randn(2, 5))
        assert y.shape == (2, 3, *size)
        assert y.dtype == torch.float32

    def test_several_answers_are_those_of_each_noise(self) -> None:
        network = UNet((7, 9), 1, 4, 1, hidden=3)
        h, condition = torch.randn(2, 1, 7, 9), torch.randn(6, 4)
        together = network(h, condition)
        for part, of_part in zip(together.split(2), condition.split(2), strict=True):
            torch.testing.assert_close(part, network(h, of_part))
        assert not torch.allclose(together[:2], together[2:4])

    @pytest.mark.parametrize(("n_halvings", "width"), [(1, 9), (2, 21), (3, 45), (4, 93)])
    def test_patches_are_as_wide_as_they_are_said_to_be(self, n_halvings: int, width: int) -> None:
        y = torch.randn((1, 1, 120, 120), requires_grad=True)
        network = PatchDiscriminator(1, 1, n_halvings)
        logits = network(y)
        n = round(logits.shape[1] ** 0.5)
        (gradient,) = torch.autograd.grad(logits[0, (n // 2) * n + n // 2], y)
        rows, columns = (gradient[0, 0] != 0).nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == width


class TestAnswers:
    @pytest.mark.parametrize(("space", "given"), CASES, ids=str)
    def test_depend_on_the_given_part_alone_and_keep_halves(self, space: ImageSpace, given: GivenName) -> None:
        model = model_of(space, given=given).eval()
        x = data_of(space, 4)
        y = model.translate(x, generator=noise())
        space.check(y)
        assert y.dtype == x.dtype
        assert torch.equal(model.translate(x, generator=noise()), y)
        assert not torch.equal(model.translate(x, generator=noise(1)), y)
        if given in ("edges", "grey"):
            return
        assert torch.equal(assembled(y, wanted(x, given), space, given), x), "a given half is kept bit for bit"
        other = assembled(x, wanted(data_of(space, 4, seed=2), given), space, given)
        assert torch.equal(model.translate(other, generator=noise()), y)

    def test_are_bounded_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_of(GREY, given="top").eval()
        monkeypatch.setattr(pix2pix, "MAX_ANSWERED", 130)  # two images
        sizes: list[int] = []
        model.generator.register_forward_hook(lambda module, args, y: sizes.append(len(y)))
        x = data_of(GREY, 5)
        y = model.translate(x, generator=noise())
        assert sizes == [2, 2, 1]
        assert torch.equal(y[:, :, :4], x[:, :, :4])
        assert model.translate(x[:0]).shape == (0, *GREY.shape)

    def test_data_and_labels_that_do_not_fit_are_refused(self) -> None:
        model = model_of(GREY, 2).eval()
        with pytest.raises(InputError, match="give labels"):
            model.translate(data_of(GREY, 2))
        with pytest.raises(InputError, match="shape"):
            model.translate(data_of(COLOUR, 2), labels=torch.tensor([0, 1]))
        x = data_of(GREY, 2)
        first, second = (model.translate(x, labels=torch.full((2,), y), generator=noise()) for y in (0, 1))
        assert not torch.equal(first, second)


class TestMemory:
    def test_fills_with_the_first_items_of_the_training_and_keeps_them(self) -> None:
        model = model_of(GREY, 3, given="top")
        model.sample(2, generator=noise())  # of an untrained model, which has seen nothing
        x, labels = data_of(GREY, 300), torch.arange(300) % 3
        model.eval().loss(Batch(x[:9], labels[:9]), "discriminator", generator=noise())
        model.train().loss(Batch(x[:9], labels[:9]), "generator", generator=noise())
        assert (model.seen_labels == -1).all()
        for part, of_part in zip(x.split(100), labels.split(100), strict=True):
            model.train().loss(Batch(part, of_part), "discriminator", generator=noise())
        assert torch.equal(model.seen, x[:256])
        assert torch.equal(model.seen_labels, labels[:256])

    @pytest.mark.parametrize("n_classes", [0, 3])
    def test_samples_have_the_given_part_of_a_training_item_of_their_class(self, n_classes: int) -> None:
        model = model_of(GREY, n_classes, given="top")
        x, labels = data_of(GREY, 20), torch.arange(20) % 2
        model.train().loss(Batch(x, labels if n_classes else None), "discriminator", generator=noise())
        wish = torch.tensor([0, 1, 2] * 10) if n_classes else None
        drawn = model.eval().sample(30, labels=wish, generator=noise())
        same = (drawn[:, None, :, :4] == x[None, :, :, :4]).flatten(2).all(2)  # (30, 20)
        assert (same.sum(1) == 1).all()
        if wish is not None:
            found = labels[same.float().argmax(1)]
            assert torch.equal(found[wish < 2], wish[wish < 2])  # class 2 was never seen: any item will do
        assert len(same.float().argmax(1).unique()) > 5

    def test_is_bounded_for_large_images(self) -> None:
        model = model_of(ImageSpace(3, 128, 128))
        assert model.seen.numel() <= pix2pix.MAX_SEEN_DIMS
        assert len(model.seen) == 85


class TestLoss:
    @pytest.mark.parametrize("objective", list(OBJECTIVES))
    def test_every_objective_reaches_its_player_alone(self, objective: str) -> None:
        model = model_of(GREY, objective=objective)
        batch = Batch(data_of(GREY, 4))
        players = (model.discriminator, model.generator)
        for phase, player, other in zip(("discriminator", "generator"), players, reversed(players), strict=True):
            model.zero_grad(set_to_none=True)
            other.requires_grad_(False)
            model.loss(batch, phase, generator=noise()).total.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in player.parameters())
            assert all(p.grad is None for p in other.parameters())
            other.requires_grad_(True)

    def test_the_discriminators_phase_leaves_no_gradient_in_the_generator(self) -> None:
        model = model_of(GREY)
        model.loss(Batch(data_of(GREY, 4)), "discriminator").total.backward()
        assert all(parameter.grad is None for parameter in model.generator.parameters())

    def test_terms_are_weighed_as_the_options_say(self) -> None:
        batch = Batch(data_of(GREY, 6))
        for gamma in (0.0, 4.0):
            loss = model_of(GREY, gamma=gamma).loss(batch, "discriminator", generator=noise())
            r1 = float(loss.terms.get("r1", torch.zeros(())))
            assert (r1 > 0) == (gamma > 0)
            assert float(loss.total.detach()) == pytest.approx(float(loss.terms["game"]) + gamma / 2 * r1, rel=1e-5)
        for l1_weight, spread_weight in ((10.0, 0.5), (3.0, 0.0), (0.0, 0.5)):
            model = model_of(GREY, l1_weight=l1_weight, spread_weight=spread_weight)
            loss = model.loss(batch, "generator", generator=noise())
            terms = {name: float(value) for name, value in loss.terms.items()}
            assert ("spread" in terms) == (l1_weight > 0 and spread_weight > 0)
            score = terms["l1"] - spread_weight * terms.get("spread", 0.0)
            assert float(loss.total.detach()) == pytest.approx(terms["non_saturating"] + l1_weight * score, rel=1e-5)

    def test_of_an_upper_half_the_distance_is_over_the_rest(self) -> None:
        model, x = model_of(GREY, given="top"), data_of(GREY, 6)
        y = model.scale(x)
        with torch.no_grad():
            answers = model.answer(given_map(x, GREY, "top"), n=2, generator=noise())
        by_hand = [(y - answer)[:, :, 4:].abs().mean() for answer in answers.chunk(2)]
        loss = model.loss(Batch(x), "generator", generator=noise())
        torch.testing.assert_close(loss.terms["l1"], (by_hand[0] + by_hand[1]) / 2)

    def test_half_the_spread_makes_a_proper_score_and_none_asks_for_the_median(self) -> None:
        draws = torch.randn((3, 200_000), generator=noise())
        widths = [0.0, 0.5, 0.8, 1.0, 1.25, 2.0]
        for spread_weight, best in ((0.5, 1.0), (0.0, 0.0)):
            scores = [
                float(spread_l1(draws[0], width * draws[1], width * draws[2], spread_weight)[0]) for width in widths
            ]
            assert widths[scores.index(min(scores))] == best


def trained(x: Tensor, space: ImageSpace, n_steps: int, **options: Any) -> Pix2Pix:
    torch.manual_seed(0)
    model, generator = Pix2Pix(space, hidden=4, n_latents=4, given="left", n_halvings=1, **options).train(), noise()
    phases = model.phases()
    optimizers = [torch.optim.AdamW(phase.parameters, lr=5e-3, betas=phase.betas, fused=True) for phase in phases]
    for _ in range(n_steps):
        batch = Batch(x[torch.randint(len(x), (32,), generator=generator)])
        for phase, optimizer in zip(phases, optimizers, strict=True):
            loss = model.loss(batch, phase.name, generator=generator)
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            optimizer.step()
    return model.eval()


class TestLearning:
    SPACE = ImageSpace(1, 4, 8, 2)

    def test_an_answer_that_is_certain_is_found(self) -> None:
        left = data_of(ImageSpace(1, 4, 4, 2), 512)
        model = trained(torch.cat([left, 1 - left], 3), self.SPACE, 120)
        held_out = data_of(ImageSpace(1, 4, 4, 2), 200, seed=1)
        answers = model.translate(torch.cat([held_out, held_out], 3), generator=noise())[..., 4:]
        assert float((answers == 1 - held_out).float().mean()) > 0.9

    @pytest.mark.parametrize("spread_weight", [0.5, 0.0])
    def test_an_answer_that_is_not_varies_unless_the_l1_distance_stands_alone(self, spread_weight: float) -> None:
        """All black or all white, whatever is given."""
        left = data_of(ImageSpace(1, 4, 4, 2), 512)
        right = torch.randint(2, (512, 1, 1, 1), generator=noise(), dtype=torch.uint8).expand_as(left)
        model = trained(torch.cat([left, right], 3), self.SPACE, 120, spread_weight=spread_weight)
        answers = model.translate(torch.cat([left, left], 3)[:200], generator=noise())[..., 4:].float().mean((1, 2, 3))
        share = float((answers > 0.5).float().mean())
        assert (0.2 < share < 0.8) == (spread_weight > 0)
        assert float(((answers < 0.1) | (answers > 0.9)).float().mean()) > 0.7
