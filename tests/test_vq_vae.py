"""The VQ-VAE's bound, codebook and gradients against what can be computed exactly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.models.approximate.vq_vae import VQVAE
from triptych.models.base import Batch
from triptych.models.registry import create_model
from triptych.spaces import ImageSpace

TINY = ImageSpace(1, 2, 3, 2)


def shaken(space: ImageSpace, seed: int = 0, *, begun: bool = True, **options: Any) -> VQVAE:
    """A model whose weights are away from their initialisation, with its prior in use or not."""
    torch.manual_seed(seed)
    model = VQVAE(space, **{"hidden": 4, "code_dim": 2, "n_codes": 3, "dropout": 0.0} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.prior_has_begun.fill_(begun)
    return model.eval()


def all_images(space: ImageSpace) -> Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.n_dims))).reshape(-1, *space.shape)


def log_joint(model: VQVAE, label: int | None = None) -> Tensor:
    """log p(x, codes) of all images and all grids of codes, float64, (images, grids)."""
    x, grids = all_images(model.space), all_images(model.code_space)
    y = None if label is None else torch.full((len(grids),), label)
    log_prior = model.log_prior(grids, y)
    outputs = model.decoded(model.entries(grids[:, 0]), y)
    rows = [model.observation.log_prob(outputs, image.expand(len(grids), *image.shape)) for image in x]
    return (torch.stack(rows) + log_prior).double()


def images(n: int, space: ImageSpace, seed: int = 0) -> Tensor:
    return torch.randint(space.levels, (n, *space.shape), generator=torch.Generator().manual_seed(seed))


# ---- the bound


@pytest.mark.parametrize(
    ("begun", "prior"), [(False, "gated_pixel_cnn"), (True, "gated_pixel_cnn"), (True, "pixel_cnn")]
)
@torch.no_grad()
def test_probabilities_of_all_images_and_codes_sum_to_one_and_the_bound_stays_below(begun: bool, prior: str) -> None:
    model = shaken(TINY, begun=begun, prior=prior)
    x = all_images(TINY)
    joint = log_joint(model)  # (64, 9)
    assert float(joint.exp().sum()) == pytest.approx(1, abs=1e-5)
    elbo = model.elbo(x).double()
    assert (elbo <= joint.logsumexp(1) + 1e-6).all()
    assert float(elbo.exp().sum()) < 1
    # Not any lower bound, but the one that belongs to the codes.
    number = model.codes(x).flatten(1) @ torch.tensor([3, 1])
    assert len(number.unique()) > 1
    torch.testing.assert_close(elbo, joint[torch.arange(len(x)), number], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_bound_has_no_noise_and_its_parts_add_up() -> None:
    space = ImageSpace(3, 5, 4, 256)
    model = shaken(space)
    x = images(4, space)
    elbo = model.elbo(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(elbo, model.elbo(x, 7, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(model.log_weights(x, 3), elbo.expand(3, -1))
    torch.testing.assert_close(model.iwae(x, 5), elbo)
    kl = model.kl(x)
    assert kl.shape == (4, 1)
    log_likelihood = model.log_likelihood(x, model.encode(x))
    torch.testing.assert_close(log_likelihood - kl.squeeze(1), elbo)


@torch.no_grad()
def test_samples_follow_the_models_own_distribution() -> None:
    space = ImageSpace(1, 2, 2, 2)
    for begun, label in ((False, None), (True, None), (True, 1)):
        model = shaken(space, 3, begun=begun, n_halvings=0, n_codes=2, n_classes=0 if label is None else 2)
        p = log_joint(model, label).logsumexp(1).exp()
        n = 10_000
        y = None if label is None else torch.full((n,), label)
        draws = model.sample(n, labels=y, generator=torch.Generator().manual_seed(0)).flatten(1).long()
        counts = torch.bincount(draws @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
        # 99.9 % quantile of chi-squared with 15 degrees of freedom is 37.7.
        assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 37.7


@torch.no_grad()
def test_codes_and_latents_are_of_the_nearest_entries() -> None:
    model = shaken(ImageSpace(1, 8, 12, 4), n_codes=7)
    x = images(5, model.space)
    codes, z = model.codes(x), model.encode(x)
    model.code_space.check(codes)
    assert z.shape == (5, model.n_latents)
    vectors = z.unflatten(1, (2, *codes.shape[2:])).movedim(1, -1).flatten(0, 2)  # (sites, D)
    distances = torch.cdist(vectors.double(), model.codebook.double())
    torch.testing.assert_close(distances.gather(1, codes.reshape(-1, 1)).squeeze(1), distances.amin(1))
    # A vector and its entry have the same decoding, and an entry is its own nearest.
    entries = model.entries(codes[:, 0]).flatten(1)
    assert torch.equal(model.decode(z), model.decode(entries))
    noise = torch.Generator()
    draws = [model.draw_given(v, generator=noise.manual_seed(0)) for v in (z, entries)]
    assert torch.equal(*draws)
    model.space.check(draws[0])


@pytest.mark.parametrize(
    ("size", "grid"), [((28, 28), (7, 7)), ((32, 32), (8, 8)), ((64, 48), (8, 6)), ((8, 8), (4, 4)), ((9, 5), (5, 3))]
)
def test_the_grid_of_codes_is_chosen_by_the_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = shaken(ImageSpace(1, *size, 2))
    assert model.code_space.shape == (1, *grid)
    assert model.codes(images(2, model.space)).shape == (2, 1, *grid)
    assert model.sample(2).shape == (2, 1, *size)


# ---- gradients


def test_the_decoders_gradient_reaches_the_encoder_unchanged() -> None:
    model = shaken(ImageSpace(1, 6, 6, 3))
    x = images(3, model.space)
    features = model.features(x).detach().requires_grad_()
    _, entries = model.nearest(features)
    assert torch.equal(entries, model.entries(model.codes(x)[:, 0])), "forward is the entry itself"
    model.observation.log_prob(model.decoded(entries), x).sum().backward()
    assert features.grad is not None
    leaf = entries.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.observation.log_prob(model.decoded(leaf), x).sum(), leaf)
    assert float(gradient.abs().sum()) > 0
    assert torch.equal(features.grad, gradient)
    z = model.encode(x).detach().requires_grad_()
    (gradient_z,) = torch.autograd.grad(model.log_likelihood(x, z).sum(), z)
    assert torch.equal(gradient_z, gradient.flatten(1))


def test_gradients_of_the_decoder_agree_with_finite_differences() -> None:
    model = shaken(ImageSpace(1, 4, 4, 3)).double()
    x = images(2, model.space)
    entries = torch.randn((2, 2, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def reconstruction(e: Tensor) -> Tensor:
        return model.decoded(e).log_softmax(1).gather(1, x).sum()  # in float64, to difference it

    leaf = entries.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reconstruction(leaf), leaf)
    for i in range(0, entries.numel(), 3):
        shift = torch.zeros_like(entries)
        shift.view(-1)[i] = 1e-5
        with torch.no_grad():
            numeric = (reconstruction(entries + shift) - reconstruction(entries - shift)) / 2e-5
        assert float(gradient.flatten()[i]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-8)


def test_the_loss_is_the_reconstruction_and_the_commitment() -> None:
    x = images(6, ImageSpace(1, 6, 6, 3))
    totals = {}
    for commitment in (0.0, 1.0):
        model = shaken(ImageSpace(1, 6, 6, 3), commitment=commitment)
        loss = model.loss(Batch(x), "autoencoder")
        totals[commitment] = float(loss.total.detach())
    z = model.encode(x)
    distance = (z - model.entries(model.codes(x)[:, 0]).flatten(1)).square().mean()
    assert float(loss.terms["squared_distance"]) == pytest.approx(float(distance.detach()), rel=1e-5)
    assert totals[1.0] - totals[0.0] == pytest.approx(float(distance.detach()), rel=1e-4)
    nats = -model.log_likelihood(x, z).mean()
    assert float(loss.terms["reconstruction_nats_per_image"]) == pytest.approx(float(nats.detach()), rel=1e-5)
    assert totals[0.0] == pytest.approx(float(nats.detach()) / 36, rel=1e-5)


def test_each_phase_trains_its_own_parameters() -> None:
    model = shaken(ImageSpace(1, 6, 6, 3), begun=False)
    first, second = model.phases()
    assert (first.stage, second.stage) == (0, 1)
    assert {id(p) for phase in (first, second) for p in phase.parameters} == {id(p) for p in model.parameters()}
    assert not {id(p) for p in first.parameters} & {id(p) for p in second.parameters}
    for phase, other in ((first, second), (second, first)):
        model.zero_grad(set_to_none=True)
        model.loss(Batch(images(4, model.space)), phase.name).total.backward()
        assert all(p.grad is None for p in other.parameters)


# ---- the codebook


def test_the_codebook_follows_the_formula() -> None:
    decay = 0.8
    model = shaken(ImageSpace(1, 6, 6, 3), n_codes=5, codebook_decay=decay, restart_share=0.0).train()
    counts, sums = [0.0] * 5, [torch.zeros(2) for _ in range(5)]
    book = model.codebook.clone()
    for step in range(3):
        x = images(4, model.space, seed=step)
        with torch.no_grad():
            vectors = model.features(x).movedim(1, -1).flatten(0, 2)
        chosen = [int((book - v).square().sum(1).argmin()) for v in vectors]
        model.loss(Batch(x), "autoencoder", generator=torch.Generator())
        for k in range(5):
            own = [v for v, code in zip(vectors, chosen, strict=True) if code == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(own)
            sums[k] = decay * sums[k] + (1 - decay) * (torch.stack(own).sum(0) if own else torch.zeros(2))
            if counts[k] > 0:
                book[k] = sums[k] / counts[k]
        torch.testing.assert_close(model.code_counts, torch.tensor(counts))
        torch.testing.assert_close(model.codebook, book)
    assert len(set(chosen)) > 1


def test_the_codebook_learns_nowhere_else() -> None:
    model = shaken(ImageSpace(1, 6, 6, 3), begun=False)
    x = images(4, model.space)

    def buffers() -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    before = buffers()
    model.eval().loss(Batch(x), "autoencoder")
    model.loss(Batch(x), "prior")
    assert all(torch.equal(before[name], buffer) for name, buffer in buffers().items())
    model.train().loss(Batch(x), "prior")
    changed = {name for name, buffer in buffers().items() if not torch.equal(before[name], buffer)}
    assert changed == {"prior_has_begun"}
    model.loss(Batch(x), "autoencoder")
    assert not torch.equal(before["codebook"], model.codebook)


def test_the_prior_learns_codes_that_dropout_does_not_touch() -> None:
    model = shaken(ImageSpace(1, 8, 8, 4), dropout=0.5, n_codes=16)
    x = images(16, model.space)
    wanted = float(-model.code_density.log_prob(model.codes(x)).mean().detach())
    model.train()
    assert not torch.equal(model.codes(x), model.eval().codes(x)), "dropout moves the codes while the encoder learns"
    model.train().code_density.eval()
    loss = model.loss(Batch(x), "prior")
    assert float(loss.terms["codes_nats_per_image"]) == pytest.approx(wanted, rel=1e-6)
    assert model.encoder.training


def test_restarts_revive_codes_that_nobody_uses() -> None:
    x = images(64, ImageSpace(1, 8, 8, 4))
    used = {}
    for share in (0.0, 0.1):
        model = shaken(ImageSpace(1, 8, 8, 4), n_codes=32, restart_share=share).train()
        with torch.no_grad():
            model.codebook.copy_(1000 + model.codebook)  # Far from every vector: one entry is the nearest of all.
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            loss = model.loss(Batch(x), "autoencoder", generator=generator)
        used[share] = float(loss.terms["codes_used"])
    assert used[0.0] == pytest.approx(1 / 32)
    assert used[0.1] > 0.5
    assert torch.equal(loss.terms["codes_used"] * 32, (loss.terms["codes_used"] * 32).round())
    # A restarted entry has time: it stays where it is, though unused, while its count is above the share.
    assert (model.code_counts >= 0.1 * model.code_counts.mean() * 0.9).all()


def test_restarts_depend_on_the_generator_alone() -> None:
    x = images(8, ImageSpace(1, 6, 6, 3))
    books = []
    for seed in (0, 0, 1):
        model = shaken(ImageSpace(1, 6, 6, 3), n_codes=40).train()
        model.loss(Batch(x), "autoencoder", generator=torch.Generator().manual_seed(seed))
        books.append(model.codebook)
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


@torch.no_grad()
def test_the_usage_of_the_codebook_is_reported() -> None:
    model = shaken(ImageSpace(1, 8, 8, 4), n_codes=6)
    x = images(3, model.space)
    terms = model.loss(Batch(x), "autoencoder").terms
    codes = model.codes(x).flatten().tolist()
    shares = [codes.count(k) / len(codes) for k in set(codes)]
    assert len(shares) > 1
    assert float(terms["codes_used"]) == pytest.approx(len(shares) / 6)
    assert float(terms["perplexity"]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


# ---- options


def test_the_prior_learns_the_codes_that_training_shows_it() -> None:
    model = shaken(ImageSpace(1, 4, 4, 2), begun=False, n_codes=4).train()
    x = images(2, model.space)
    (_, phase) = model.phases()
    optimizer = torch.optim.Adam(phase.parameters, lr=1e-2)
    for _ in range(60):
        loss = model.loss(Batch(x), "prior")
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    model.eval()
    # Two grids, or one where both images have the same codes, are all that there is: log 2 nats or less at best.
    assert float(model.kl(x).mean().detach()) < math.log(2) + 0.5
    drawn = model.code_density.sample(50, generator=torch.Generator().manual_seed(0)).long()
    seen = (drawn[:, None] == model.codes(x)[None]).flatten(2).all(2).any(1)
    assert float(seen.float().mean()) > 0.5


@torch.no_grad()
def test_classes_reach_encoder_decoder_and_prior() -> None:
    model = shaken(ImageSpace(1, 6, 6, 3), n_classes=2)
    x = images(4, model.space)
    zero, one = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert not torch.equal(model.encode(x, zero), model.encode(x, one))
    z = model.encode(x, zero)
    assert not torch.equal(model.log_likelihood(x, z, zero), model.log_likelihood(x, z, one))
    codes = model.codes(x, zero)
    assert not torch.equal(model.log_prior(codes, zero), model.log_prior(codes, one))
    assert float(log_joint(shaken(ImageSpace(1, 2, 2, 2), n_classes=2), 1).exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prior": "vae"}, "prior is 'vae'"),
        ({"prior": "gaussian_mixture"}, "prior is 'gaussian_mixture'"),
        ({"prior": "vq_vae"}, "prior is 'vq_vae'"),
        ({"prior": "gated_pixelcnn"}, "Did you mean 'gated_pixel_cnn'"),
        ({"n_codes": 1}, "n_codes is 1"),
        ({"n_codes": 65537}, "n_codes is 65537"),
        ({"code_dim": 0}, "code_dim is 0"),
        ({"n_halvings": -1}, "n_halvings is -1"),
        ({"commitment": -0.1}, "commitment is -0.1"),
        ({"codebook_decay": 1.0}, "codebook_decay is 1.0"),
        ({"restart_share": 1.5}, "restart_share is 1.5"),
        ({"likelihood": "gaussian"}, "likelihood is 'gaussian'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        create_model("vq_vae", ImageSpace(1, 8, 8, 4), **options)
