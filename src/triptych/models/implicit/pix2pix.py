"""From images to images: a generator that sees part of an image and answers with the whole of it.

References:
    Image-to-Image Translation with Conditional Adversarial Networks, Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004.
    Toward Multimodal Image-to-Image Translation, Zhu et al. 2017, arXiv:1711.11586.
    Strictly Proper Scoring Rules, Prediction, and Estimation, Gneiting & Raftery 2007, JASA 102.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from triptych import parallel
from triptych.errors import InputError
from triptych.models.adversarial import Rules, hide_levels
from triptych.models.base import Batch, GenerativeModel, Loss, Phase, Watched
from triptych.nn.adversarial import resize, squash
from triptych.nn.blocks import ResidualBlock, Scale, pyramid, pyramid_widths, with_condition
from triptych.nn.options import check_counts, check_not_negative
from triptych.objectives.adversarial import OBJECTIVES, ObjectiveName, jsd_bound, zero_centred_penalty
from triptych.spaces import ImageSpace, Space

GivenName = Literal["edges", "grey", "top", "left", "right"]

LUMINANCE = (0.299, 0.587, 0.114)  # Of red, green and blue: ITU-R 601, as Pillow converts colour to grey.
FAINTEST_EDGE = 0.05  # Of the full contrast.
MAX_SEEN = 256  # Training items that are remembered for `sample`, and
MAX_SEEN_DIMS = 2**22  # sub-pixels of all of them together: they are part of the weights' file.
MAX_ANSWERED = (
    2**18
)  # Sites, of all images together, that are answered at once: memory does not grow with their number.


# ---- what is given of an image


def check_given(given: GivenName, space: ImageSpace) -> None:
    """Raises InputError if images of a space have no such part."""
    if given not in get_args(GivenName):
        raise InputError(f"given is {given!r}; it must be {', '.join(get_args(GivenName)[:-1])} or right.")
    if given in ("left", "right") and space.width % 2:
        raise InputError(
            f"given is {given!r}, one of two images side by side, but {space.width} pixels of width have no half;"
            " give --size with an even width."
        )
    if given == "top" and space.height < 2:
        raise InputError("given is 'top', but the images have a single row; take 'edges' or 'left'.")
    if given == "grey" and space.channels != 3 and space.palette is None:
        raise InputError("given is 'grey', but the images have no colours to find; take 'edges', 'top' or 'left'.")


def given_map(x: Tensor, space: ImageSpace, given: GivenName) -> Tensor:
    """What the networks see of the given part of images. It depends on nothing but that part.

    Arguments:
        x: Images, integers 0 .. levels-1, (N, C, H, W).
    Returns:
        float32, in -1 .. 1. 'edges' (1 on an edge, -1 elsewhere) and 'grey': (N, 1, H, W); 'top': the scaled image with
        0 in the place of what is wanted, (N, n_channels, H, W); 'left' and 'right': the half, (N, n_channels, H, W/2).
    """
    if given == "edges":
        return 2 * edges(colours(x, space)).float() - 1
    if given == "grey":
        weights = torch.tensor(LUMINANCE, device=x.device).reshape(3, 1, 1)
        return 2 * (weights * colours(x, space)).sum(1, keepdim=True) - 1
    y = Scale(space)(x)
    if given == "top":
        return F.pad(y[:, :, : n_rows_given(space, given)], (0, 0, 0, space.height - n_rows_given(space, given)))
    left, right = y.chunk(2, dim=3)
    return left if given == "left" else right


def wanted(y: Tensor, given: GivenName) -> Tensor:
    """The part of images, (N, ..., W), that the generator answers with: the other half of a pair, or else all."""
    if given not in ("left", "right"):
        return y
    left, right = y.chunk(2, dim=3)
    return right if given == "left" else left


def assembled(x: Tensor, answer: Tensor, space: ImageSpace, given: GivenName) -> Tensor:
    """Whole images, (N, C, H, W): the answers, and beside them what was given of x, unchanged.

    Arguments:
        answer: Of the size of `wanted(x)`, in the same units as x.
    """
    if given == "left":
        return torch.cat([x.chunk(2, dim=3)[0], answer], 3)
    if given == "right":
        return torch.cat([answer, x.chunk(2, dim=3)[1]], 3)
    n = n_rows_given(space, given)
    return torch.cat([x[:, :, :n], answer[:, :, n:]], 2)


def n_rows_given(space: ImageSpace, given: GivenName) -> int:
    """Rows at the top of an answer that are given with it: those of the upper half, and otherwise none."""
    return space.height // 2 if given == "top" else 0


def colours(x: Tensor, space: ImageSpace) -> Tensor:
    """Integer images as intensities in 0 .. 1, float32, (N, C, H, W), those of a palette as red, green and blue."""
    if space.palette is None:
        return x.float() / (space.levels - 1)
    palette = torch.tensor(space.palette, dtype=torch.float32, device=x.device) / 255
    return palette[x[:, 0].long()].movedim(-1, 1)


def edges(c: Tensor) -> Tensor:
    """Where an image changes quickly: a line drawing, bool, (N, 1, H, W).

    An edge is where the length of Sobel's gradient, the longest of the channels', is above its root mean square over
    the image and above a twentieth of the full contrast. So faint photographs have edges and flat images have none.

    Arguments:
        c: Intensities in 0 .. 1, (N, C, H, W).
    Source:
        Sobel & Feldman 1968, "A 3x3 isotropic gradient operator for image processing"; the threshold is ours.
    """
    c = F.pad(c, (1, 1, 1, 1), mode="replicate")
    down = (c[:, :, :-2] + 2 * c[:, :, 1:-1] + c[:, :, 2:]) / 4  # smoothed over rows, (N, C, H, W + 2)
    across = (c[..., :-2] + 2 * c[..., 1:-1] + c[..., 2:]) / 4  # smoothed over columns, (N, C, H + 2, W)
    gradient = torch.hypot(down[..., 2:] - down[..., :-2], across[:, :, 2:] - across[:, :, :-2])
    strength = gradient.amax(1, keepdim=True)
    usual = strength.square().mean((2, 3), keepdim=True).sqrt()
    return strength > usual.clamp(min=FAINTEST_EDGE)


# ---- the networks


class UNet(nn.Module):
    """An encoder, and a decoder that also sees the encoder's features of its own size.

    Where something is stays known at full size, and what it is can be found at 4x4. The condition, which holds the
    noise, is added to the decoder's features at every size: noise in one place is soon ignored.

    Arguments:
        size: (height, width) of input and output, any.
        n_in: Channels.
        n_condition: Size of the condition.
        n_out: Channels.
        hidden: Channels at full size, doubled at each smaller one, four-fold at most.
    Source:
        Isola et al. 2017, arXiv:1611.07004, section 3.2.1; noise in all layers: Zhu et al. 2017, arXiv:1711.11586,
        section 4 and figure 3, there in the encoder. Differs: no normalisation and no dropout; down to 4x4 only; a
        residual block at each size below the full one.
    """

    def __init__(self, size: tuple[int, int], n_in: int, n_condition: int, n_out: int, hidden: int) -> None:
        super().__init__()
        self.sizes = pyramid(*size)
        widths = pyramid_widths(hidden, len(self.sizes))
        self.input = nn.Conv2d(n_in, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(m, n, 1) for n, m in pairwise(widths))
        self.merge = nn.ModuleList(
            nn.Conv2d(n if i == len(self.down) else 2 * n, n, 3, padding=1) for i, n in enumerate(widths)
        )
        self.condition = nn.ModuleList(nn.Linear(n_condition, n, bias=False) for n in widths)
        self.blocks = nn.ModuleList(ResidualBlock(n) if i else nn.Identity() for i, n in enumerate(widths))
        self.out = nn.Conv2d(widths[0], n_out, 3, padding=1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Scaled images, float32, (K * N, n_out, H, W).

        Arguments:
            h: Maps, (N, n_in, H, W).
            condition: (K * N, n_condition), K for each map: those of all maps, and again of all maps.
        """
        skips = [F.silu(self.input(h))]
        for down in self.down:
            skips.append(F.silu(down(skips[-1])))
        n_each = len(condition) // max(1, len(h))
        if n_each > 1:
            skips = [skip.repeat(n_each, 1, 1, 1) for skip in skips]
        for i in reversed(range(len(skips))):
            below = [] if i == len(self.up) else [resize(self.up[i](h), self.sizes[i])]
            h = self.merge[i](torch.cat([skips[i], *below], 1)) + self.condition[i](condition)[:, :, None, None]
            h = F.silu(self.blocks[i](h))
        return squash(self.out(h).float())


class PatchDiscriminator(nn.Module):
    """Judges every patch of an image on its own: convolutions, and a logit at each site of the last one's map.

    The patches are 9, 21, 45, 93 pixels wide and high, by the number of halvings.

    Source:
        Isola et al. 2017, arXiv:1611.07004, section 3.2.2 and appendix 6.1.2. Differs: no normalisation, a 3x3
        convolution between the strided ones.
    """

    def __init__(self, n_in: int, hidden: int, n_halvings: int) -> None:
        super().__init__()
        widths = pyramid_widths(2 * hidden, n_halvings)
        layers: list[nn.Module] = [nn.Conv2d(n_in, widths[0], 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
        for n, m in pairwise(widths):
            layers += [nn.Conv2d(n, n, 3, padding=1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(n, m, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        """(N, n_in, H, W) -> logits of being real, a row an image, (N, patches)."""
        return self.layers(y).flatten(1)


# ---- the model


def spread_l1(y: Tensor, first: Tensor, second: Tensor, spread_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """E|y - a| - spread_weight E|a - a'|, of which a and a' are two answers to the same question; and both terms.

    With the L1 distance alone the best answer is the median of all right ones, always the same. Half the distance
    between two answers makes it the continuous ranked probability score, a proper score: its least value is that of
    answers whose every sub-pixel is distributed as in the data.

    Returns:
        Three scalars, means over all entries: the score, the L1 distance, the distance between the answers.
    Source:
        Gneiting & Raftery 2007, JASA 102, eq. 21; the L1 distance: Isola et al. 2017, arXiv:1611.07004, eq. 3.
    """
    l1 = ((y - first).abs().mean() + (y - second).abs().mean()) / 2
    spread = (first - second).abs().mean()
    return l1 - spread_weight * spread, l1, spread


class Pix2Pix(GenerativeModel, Watched):
    """From part of an image to the whole: edges, grey, the upper half, or one of two images side by side.

    Its data are whole images, of which it takes the given part itself. A sample does not come from a latent alone, but
    from one and a given part; so this is no `ImplicitDensity`.

    Arguments:
        space: What one datum is; images.
        n_classes: Classes that both players are conditioned on.
        given: What is given of an image: its 'edges', its luminance ('grey'), its 'top' half, or of two images side by
            side in one file the 'left' or 'right' one. Halves are in the answer unchanged.
        objective: As of `gan`, of each patch.
        gamma: Weight of the R1 penalty.
        l1_weight: Weight of the L1 distance of answers to the image, both in -1 .. 1, mean over sub-pixels.
        spread_weight: Part of the distance between two answers that is taken off the L1 distance. 0 is pix2pix, whose
            answers hardly differ; at 0.5 every sub-pixel may be as uncertain as in the data; above, they overdo it.
        n_latents: Size of the noise.
        hidden: Channels at full size, doubled at each smaller one, four-fold at most.
        n_halvings: Strided convolutions of the discriminator; its patches are 9, 21, 45 or 93 pixels wide. By default
            2, and 3 for images above 48 pixels.
        discriminator_rate, generator_rate: Learning rates of Adam, if --learning-rate does not set both.
    Raises:
        InputError: If an option is out of range, or images of this space have no such part.
    Source:
        Isola et al. 2017, arXiv:1611.07004. Differs: an R1 penalty in the place of batch normalisation, noise at each
        size of the decoder instead of dropout, and two answers in the L1 term (see `spread_l1`).
    """

    panel = "implicit"
    seen: Tensor
    """Images that training has begun with, of which `sample` takes the given parts; (n, C, H, W)."""
    seen_labels: Tensor
    """Their classes, 0 without classes; -1 where there is no image yet; int64, (n,)."""

    def __init__(
        self,
        space: Space,
        n_classes: int = 0,
        *,
        given: GivenName = "edges",
        objective: ObjectiveName = "non_saturating",
        gamma: float = 1.0,
        l1_weight: float = 10.0,
        spread_weight: float = 0.5,
        n_latents: int = 16,
        hidden: int = 16,
        n_halvings: int | None = None,
        discriminator_rate: float = 1e-3,
        generator_rate: float = 1e-3,
    ) -> None:
        super().__init__(space, n_classes)
        assert isinstance(space, ImageSpace)
        self.images = space
        check_given(given, space)
        check_counts(n_latents=n_latents, hidden=hidden)
        check_not_negative(l1_weight=l1_weight, spread_weight=spread_weight)
        height, width = space.height, space.width // 2 if given in ("left", "right") else space.width
        n_halvings = n_halvings if n_halvings is not None else 3 if max(height, width) > 48 else 2
        if not 1 <= n_halvings <= 4:
            raise InputError(f"n_halvings is {n_halvings}; it must be 1 .. 4.")
        self.rules = Rules(
            objective=objective,
            critic_steps=1,
            penalty="r1",
            gamma=gamma,
            discriminator_rate=discriminator_rate,
            generator_rate=generator_rate,
        )
        self.given, self.objective, self.gamma, self.hidden = given, objective, gamma, hidden
        self.l1_weight, self.spread_weight = l1_weight, spread_weight
        self.n_latents, self.n_halvings = n_latents, n_halvings
        self.discriminator_rate, self.generator_rate = discriminator_rate, generator_rate

        self.scale = Scale(space)
        n_channels = self.scale.n_channels
        n_given = 1 if given in ("edges", "grey") else n_channels
        self.generator = UNet((height, width), n_given, n_latents + n_classes, n_channels, hidden)
        self.discriminator = PatchDiscriminator(n_given + n_channels + n_classes, hidden, n_halvings)
        n_seen = max(1, min(MAX_SEEN, MAX_SEEN_DIMS // space.n_dims))
        dtype = torch.uint8 if space.levels <= 256 else torch.int32
        self.register_buffer("seen", torch.zeros((n_seen, *space.shape), dtype=dtype))
        self.register_buffer("seen_labels", torch.full((n_seen,), -1))

    # ---- answers

    def answer(
        self, given: Tensor, labels: Tensor | None = None, *, n: int = 1, generator: Generator | None = None
    ) -> Tensor:
        """The generator's answers to what is given, each with noise of its own; differentiable.

        Arguments:
            given: As of `given_map`, (N, ...).
            labels: int64, (N,); required by a class-conditional model.
            n: Answers to each: one to all, then another to all.
        Returns:
            Scaled, float32, of the size of `wanted`, with the rows that were given, (n * N, n_channels, ...).
        """
        z = parallel.randn((n, len(given), self.n_latents), generator=generator, device=given.device, dim=1).flatten(
            0, 1
        )
        condition = self.condition(None if labels is None else labels.repeat(n))
        y = self.generator(given, with_condition(z, condition))
        n_rows = n_rows_given(self.images, self.given)
        return torch.cat([given[:, :, :n_rows].repeat(n, 1, 1, 1), y[:, :, n_rows:]], 2) if n_rows else y

    @torch.no_grad()
    def translate(self, x: Tensor, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """A whole image for the given part of each image; of x, nothing else is looked at.

        Arguments:
            x: Images, integers 0 .. levels-1, (N, C, H, W).
            labels: int64, (N,); required by a class-conditional model.
        Returns:
            Like x. A given half is in it unchanged.
        Raises:
            InputError: If x or labels do not fit the model.
        """
        self.space.check(x)
        labels = self.check_labels(len(x), labels, draw=False)
        x = x.to(self.device, self.seen.dtype)
        size = max(1, MAX_ANSWERED // (self.images.height * self.images.width))
        parts = []
        for start in range(0, max(len(x), 1), size):
            part, of_part = x[start : start + size], None if labels is None else labels[start : start + size]
            y = self.answer(given_map(part, self.images, self.given), of_part, generator=generator)
            parts.append(assembled(part, self.scale.inverse(y), self.images, self.given))
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Answers to the given parts of training items, of those that training began with; of level 0 before it.

        Arguments:
            labels: As of the contract. The items are of these classes, where there are such among them.
        """
        labels = self.check_labels(n, labels, draw=True, generator=generator)
        fits = (self.seen_labels >= 0).expand(n, -1)
        if labels is not None:
            of_class = self.seen_labels == labels.unsqueeze(1)
            fits = torch.where(of_class.any(1, keepdim=True), of_class, fits)
        chances = torch.where(fits.any(1, keepdim=True), fits, True).float()
        places = torch.multinomial(chances, 1, generator=generator).squeeze(1) if n else chances.new_empty(0).long()
        return self.translate(self.seen[places], labels=labels, generator=generator)

    def drawn_beside(self, x: Tensor, labels: Tensor | None, *, generator: Generator) -> Tensor:
        """Answers to the given parts of x."""
        return self.translate(x, labels=labels, generator=generator)

    # ---- the game

    def phases(self) -> tuple[Phase, ...]:
        rules = self.rules
        return tuple(
            Phase(name, tuple(network.parameters()), learning_rate=rate, betas=rules.betas, clip_norm=0)
            for name, network, rate in (
                ("discriminator", self.discriminator, rules.discriminator_rate),
                ("generator", self.generator, rules.generator_rate),
            )
        )

    def loss(self, batch: Batch, phase: str, *, generator: Generator | None = None) -> Loss:
        labels = batch.labels if self.n_classes else None
        given = given_map(batch.x, self.images, self.given)
        y = wanted(self.scale(batch.x), self.given)
        if phase == "generator":
            return self._generator_loss(given, y, labels, generator)
        if self.training:
            self._remember(parallel.gathered(batch.x), None if labels is None else parallel.gathered(labels))
        return self._discriminator_loss(given, y, labels, generator)

    def judge(self, given: Tensor, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of (given, answer) being real, a row an image, (N, patches)."""
        return self.discriminator(with_condition(torch.cat([given, y], 1), self.condition(labels)))

    def _generator_loss(self, given: Tensor, y: Tensor, labels: Tensor | None, generator: Generator | None) -> Loss:
        objective = OBJECTIVES[self.rules.objective]
        has_spread = self.l1_weight > 0 and self.spread_weight > 0
        answers = self.answer(given, labels, n=2 if has_spread else 1, generator=generator)
        first, second = answers[: len(y)], answers[-len(y) :]
        fake_logits = self.judge(given, hide_levels(first, self.images, generator), labels)
        real_logits = fake_logits.new_empty(0)
        if objective.pairs:
            with torch.no_grad():
                real_logits = self.judge(given, hide_levels(y, self.images, generator), labels)
        game = objective.generator(real_logits, fake_logits)
        n = n_rows_given(self.images, self.given)
        score, l1, spread = spread_l1(y[:, :, n:], first[:, :, n:], second[:, :, n:], self.spread_weight)
        terms = {self.rules.objective: game, "l1": l1, **({"spread": spread} if has_spread else {})}
        return Loss.of(game + self.l1_weight * score, terms)

    def _discriminator_loss(self, given: Tensor, y: Tensor, labels: Tensor | None, generator: Generator | None) -> Loss:
        gamma = self.rules.gamma
        y_real = hide_levels(y, self.images, generator).requires_grad_(gamma > 0)
        with torch.no_grad():
            y_fake = hide_levels(self.answer(given, labels, generator=generator), self.images, generator)
        real, fake = self.judge(given, y_real, labels), self.judge(given, y_fake, labels)
        game = OBJECTIVES[self.rules.objective].discriminator(real, fake)
        total = game
        terms = {"game": game, "logit_real": real.mean(), "logit_fake": fake.mean()}
        terms["jsd_bound_nats"] = jsd_bound(real.detach(), fake.detach())
        if gamma:
            # Of the mean over patches, and with respect to what the generator can change.
            terms["r1"] = zero_centred_penalty(real.mean(1), y_real)
            total = total + 0.5 * gamma * terms["r1"]
        return Loss.of(total, terms)

    @torch.no_grad()
    def _remember(self, x: Tensor, labels: Tensor | None) -> None:
        """Fills the empty places of `seen` with items of a batch."""
        start = int((self.seen_labels >= 0).sum())
        x = x[: len(self.seen) - start]
        self.seen[start : start + len(x)] = x.to(self.seen.dtype)
        self.seen_labels[start : start + len(x)] = 0 if labels is None else labels[: len(x)]
