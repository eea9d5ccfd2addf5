"""A fresh discriminator, trained to tell data from samples: how often it is right, and what its loss says.

The loss of any discriminator bounds the Jensen-Shannon divergence from below, and the better the discriminator, the
nearer the bound: the very measure that a GAN is trained by, taken after training, on items that nobody has learnt from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from triptych.errors import InputError, counted
from triptych.evaluation.features import _Classifier, _n_channels, _one_cycle, _scaled
from triptych.evaluation.two_sample import Z_95
from triptych.spaces import ImageSpace, PointSpace, Space

LEAST_ITEMS = 40
"""Items that each of the two sets needs."""

_FEW = 2000  # items of a set: the best weights come early, so half the steps or less are enough
_MOST_VALID = 750  # items of each set
_N_LOOKS = 25  # at the valid part, while training
_PATIENCE = 8  # looks without an improvement before training stops
_N_PERMUTATIONS = 1999
_BATCH_SIZE = 512  # of evaluation alone
_FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

_Prepare = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class TwoSampleTest:
    """What a fresh discriminator says of two sets, measured on items that it has not learnt from."""

    accuracy: float
    """Share of test items that it puts into the right set, when it calls the half with the larger logits real: 1/2 for
    equal distributions."""
    null_low: float
    """Lower end of the interval that holds the accuracy of equal distributions in 95 of 100 tests."""
    null_high: float
    """Upper end."""
    p_value: float
    """Chance of so low a cross-entropy, or a lower one, if the distributions are equal: a permutation test, whose level
    is exact. At least 1/2000. It sees more than the accuracy does, so it can be small where the accuracy is inside its
    null interval."""
    cross_entropy: float
    """Of the test items, nats, the two sets weighing the same: ln 2 for a discriminator that knows nothing."""
    jsd_bound: float
    """ln 2 - cross_entropy, in nats: in expectation a lower bound of the Jensen-Shannon divergence. As measured it can
    be below 0."""
    jsd_low: float
    """Lower end of its 95 % interval over test items: the divergence is not smaller, but for chance."""
    jsd_high: float
    """Upper end, ln 2 at most: of what this discriminator can reach, not of the divergence."""
    n: int
    """Test items, of both sets together."""


def classifier_two_sample_test(
    real: np.ndarray,
    generated: np.ndarray,
    space: Space,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> TwoSampleTest:
    """Trains a fresh discriminator on some of the items and measures it on the others.

    As many items are taken from each set as the smaller one has, at random. The discriminator learns from about half
    (images: a small convolutional network; points: a network on standardised coordinates and their Fourier features).
    A smaller part, 750 of each set at most, chooses its best weights and calibrates its logits. The others test it.

    Of the optimal discriminator D* the mean loss is ln 2 - JSD(data, model), and of any
    other it is larger: so ln 2 minus the loss on new items bounds the divergence from below.

    Under equal distributions the test items could change sets without anybody noticing. The p-value counts how many of
    1,999 such changes, and the sets as they are, yield a cross-entropy so low. The accuracy calls those items real
    whose logits are in the upper half (equal ones by chance), not those above 0: a discriminator that has learnt little
    calls nearly all items the same.

    Arguments:
        real: Data, images of integers (N, C, H, W) or points (N, dim): held-out ones, if the model may have learnt
            others by heart.
        generated: Samples, the same, (M, ...).
        space: Of both. Palette images are seen in their colours.
        seed: Of all randomness: who learns and who tests, the weights, the batches, the permutations.
        max_steps: Most steps, 64 images or 128 points of each set in a step. Training stops earlier when the valid
            part has not gained for a third of them. By default 600 for images and 2,000 for points, and 150 and 500
            where a set has fewer than 2,000 items: on one core about a minute for 10,000 images of 32x32, seconds for
            small sets.
        device: Where the discriminator trains.
    Raises:
        InputError: If items do not fit the space, a set has fewer than 40, or max_steps is less than 1.
    Source:
        Lopez-Paz & Oquab 2017, arXiv:1610.06545, section 3 (the test, and accuracy ~ N(1/2, 1/(4n)) under the null);
        Goodfellow et al. 2014, arXiv:1406.2661, eq. 4-6 (at D* the game's value is -2 ln 2 + 2 JSD; their value is -2
        times this cross-entropy). Differs: the p-value permutes the mean logits (Cheng & Cloninger 2022,
        arXiv:1909.11298).
    """
    for name, items in (("real", real), ("generated", generated)):
        space.check(items, name)
        if len(items) < LEAST_ITEMS:
            raise InputError(
                f"{name} has {counted(len(items), 'item')}; the classifier test needs at least {LEAST_ITEMS}."
            )
    n = min(len(real), len(generated))
    if max_steps is None:
        max_steps = _default_steps(space, n)
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
    device = torch.device(device)
    # A stream of its own: the items may have been drawn with the same seed, and who learns must not depend on them.
    rng = np.random.Generator(np.random.PCG64([seed, 2017]))
    real, generated = (items[rng.permutation(len(items))[:n]] for items in (real, generated))
    n_seen = round(0.6 * n)
    discriminate = _train((real[:n_seen], generated[:n_seen]), space, rng, max_steps, device)
    return _measure(discriminate(real[n_seen:]), discriminate(generated[n_seen:]), rng)


def _default_steps(space: Space, n: int) -> int:
    if isinstance(space, PointSpace):
        return 500 if n < _FEW else 2000
    return 150 if n < _FEW else 600


def _train(
    items: tuple[np.ndarray, np.ndarray],
    space: Space,
    rng: np.random.Generator,
    max_steps: int,
    device: torch.device,
) -> Callable[[np.ndarray], np.ndarray]:
    """A discriminator of two sets of equal size: a function from items to calibrated logits, float64, (N,)."""
    n_valid = min(len(items[0]) // 5, _MOST_VALID)
    valid = tuple(part[:n_valid] for part in items)
    train = tuple(part[n_valid:] for part in items)
    network: nn.Module
    prepare: _Prepare
    generator = Generator().manual_seed(int(rng.integers(2**63)))  # on the CPU, so that every device starts the same
    if isinstance(space, ImageSpace):
        image_space = space
        network = _ImageDiscriminator(image_space, generator)

        def prepare(x: np.ndarray) -> Tensor:
            return _scaled(x, image_space, device)
    else:
        network = _PointDiscriminator(space.dim, generator)
        prepare = _standardisation(train[0], train[1], device)
    network.to(device)
    # The last weights jump about; their running mean is what is chosen and tested.
    average = copy.deepcopy(network).eval()
    learning_rate = 3e-3 if isinstance(space, ImageSpace) else 1e-3
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle((step + 0.5) / max_steps))
    n_train = len(train[0])
    batch = min(64 if isinstance(space, ImageSpace) else 128, n_train)  # of each set
    look_every = max(1, max_steps // _N_LOOKS)
    orders = [np.empty(0, dtype=np.int64)] * 2
    best_loss, best_logits, best_state, n_worse = math.inf, [np.empty(0)] * 2, average.state_dict(), 0
    for step in range(1, max_steps + 1):
        if len(orders[0]) < batch:
            orders = [rng.permutation(n_train) for _ in train]
        x = np.concatenate([part[order[:batch]] for part, order in zip(train, orders, strict=True)])
        orders = [order[batch:] for order in orders]
        logits = network(prepare(x))  # (2 batch,), the real ones first
        loss = (F.softplus(-logits[:batch]).mean() + F.softplus(logits[batch:]).mean()) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.97, step / (step + 4)))
        if step % look_every == 0 or step == max_steps:
            on_valid = [_logits(average, prepare, part) for part in valid]
            valid_loss = _losses(*on_valid).mean()
            if valid_loss < best_loss:
                best_loss, best_logits, n_worse = valid_loss, on_valid, 0
                best_state = copy.deepcopy(average.state_dict())
            else:
                n_worse += 1
                if n_worse == _PATIENCE:
                    break
    average.load_state_dict(best_state)
    slope, shift = _calibration(*best_logits)
    return lambda x: slope * _logits(average, prepare, x) + shift


def _measure(of_real: np.ndarray, of_generated: np.ndarray, rng: np.random.Generator) -> TwoSampleTest:
    """What the logits of real and of generated test items say, (m,) and (m,)."""
    m = len(of_real)
    logits = np.concatenate([of_real, of_generated])  # (2m,)
    ranked = np.lexsort((rng.random(2 * m), logits))
    n_real_above = int((ranked[m:] < m).sum())  # hypergeometric if the distributions are equal
    half_width = Z_95 / math.sqrt(4 * (2 * m - 1))
    # Given all logits, the cross-entropy depends on their sum over the real items alone.
    slack = 1e-9 * float(np.abs(logits).sum())  # sums of equal terms are equal, but for rounding
    n_as_large = int((_permuted_sums(logits, m, rng) >= of_real.sum() - slack).sum())
    losses = _losses(of_real, of_generated)
    cross_entropy = float(losses.mean())
    error = math.sqrt(float(losses.var(axis=1, ddof=1).sum()) / m) / 2
    bound = math.log(2) - cross_entropy
    return TwoSampleTest(
        accuracy=n_real_above / m,
        null_low=0.5 - half_width,
        null_high=0.5 + half_width,
        p_value=(1 + n_as_large) / (1 + _N_PERMUTATIONS),
        cross_entropy=cross_entropy,
        jsd_bound=bound,
        jsd_low=bound - Z_95 * error,
        jsd_high=min(bound + Z_95 * error, math.log(2)),
        n=2 * m,
    )


def _permuted_sums(values: np.ndarray, n_chosen: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over n_chosen of the values, drawn at random without replacement, (_N_PERMUTATIONS,)."""
    chosen = np.zeros(len(values))
    chosen[:n_chosen] = 1
    sums = np.empty(_N_PERMUTATIONS)
    rows = max(1, (1 << 22) // len(values))
    for start in range(0, _N_PERMUTATIONS, rows):
        n_rows = min(rows, _N_PERMUTATIONS - start)
        sums[start : start + n_rows] = rng.permuted(np.tile(chosen, (n_rows, 1)), axis=1) @ values
    return sums


def _losses(of_real: np.ndarray, of_generated: np.ndarray) -> np.ndarray:
    """Cross-entropy of each item in nats, from logits (N,) and (N,): (2, N)."""
    return np.logaddexp(0, np.stack([-of_real, of_generated]))


def _calibration(of_real: np.ndarray, of_generated: np.ndarray) -> tuple[float, float]:
    """Slope (positive) and shift of the logits with the lowest cross-entropy on these, (N,) and (N,).

    A normal prior on ln slope and shift, which is worth a few items, holds them near 0 where items are few or the two
    sets do not overlap.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    def energy(parameters: np.ndarray) -> float:
        slope, shift = math.exp(parameters[0]), parameters[1]
        fit = _losses(slope * of_real + shift, slope * of_generated + shift).sum()
        return float(fit + 0.5 * (parameters[0] ** 2 + (2 * parameters[1]) ** 2))

    log_slope, shift = minimize(energy, np.zeros(2), method="L-BFGS-B", bounds=[(-7, 3), (-5, 5)]).x
    return math.exp(log_slope), float(shift)


@torch.no_grad()
def _logits(network: nn.Module, prepare: _Prepare, items: np.ndarray) -> np.ndarray:
    """Of items (N, ...), float64, (N,)."""
    parts = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
    return np.concatenate([network(prepare(part)).double().cpu().numpy() for part in parts])


def _standardisation(real: np.ndarray, generated: np.ndarray, device: torch.device) -> _Prepare:
    """From points to float32 standardised by the real ones in each coordinate, cut off far outside."""
    reference = real.astype(np.float64)
    center, scale = reference.mean(axis=0), reference.std(axis=0)
    # A coordinate that never varies in the data has no scale of its own.
    distance = np.abs(generated.astype(np.float64) - center).mean(axis=0)
    scale = np.where(scale > 0, scale, np.where(distance > 0, distance, 1.0))

    def prepare(x: np.ndarray) -> Tensor:
        standardised = ((x.astype(np.float64) - center) / scale).clip(-10, 10)
        return torch.tensor(standardised, dtype=torch.float32, device=device)

    return prepare


class _ImageDiscriminator(nn.Module):
    """The convolutional classifier of the features, and beside it a linear function of the pixels.

    The classifier normalises each image and sees places roughly; the linear part sees brightness and every place.
    """

    def __init__(self, space: ImageSpace, generator: Generator) -> None:
        super().__init__()
        n_inputs = _n_channels(space) * space.height * space.width
        self.convolutional = _Classifier(space, 1, generator)
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(n_inputs, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.shrink = 2 / math.sqrt(n_inputs)  # else every step would move the logit by more, the larger the images are

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.convolutional(x) + self.linear(self.shrink * x.flatten(1))
        return logits[:, 0]


class _PointDiscriminator(nn.Module):
    """Coordinates and random Fourier features of many frequencies, then two hidden layers.

    Source:
        Tancik et al. 2020, arXiv:2006.10739, section 4 (the features).
    """

    def __init__(self, dim: int, generator: Generator) -> None:
        super().__init__()
        n_each, width = 24, 128
        waves = torch.randn(len(_FREQUENCIES), dim, n_each, generator=generator)
        self.waves: Tensor
        # In many dimensions a phase is a sum of many terms: its size stays that of one.
        frequencies = torch.tensor(_FREQUENCIES)[:, None, None]
        self.register_buffer("waves", (waves * frequencies / math.sqrt(dim)).transpose(0, 1).flatten(1))
        # Large slow waves and small quick ones: what is smooth is learnt first.
        self.sizes: Tensor
        self.register_buffer("sizes", torch.tensor(_FREQUENCIES).clamp(min=1).rsqrt().repeat_interleave(n_each))
        with torch.random.fork_rng(devices=[]):
            self.layers = nn.Sequential(
                nn.Linear(dim + 2 * self.waves.shape[1], width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        head = self.layers[-1]
        assert isinstance(head, nn.Linear)  # for the type checker
        nn.init.zeros_(head.weight)  # start from equal probabilities

    def forward(self, x: Tensor) -> Tensor:
        phases = x @ self.waves  # (N, 24 * frequencies)
        features = torch.cat([x, self.sizes * phases.sin(), self.sizes * phases.cos()], dim=1)
        logits: Tensor = self.layers(features)
        return logits[:, 0]
