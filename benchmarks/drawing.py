"""What drawing costs: the samplers of autoregressive models over one forward pass of the same batch.

    python benchmarks/drawing.py --models pixel_cnn gated_pixel_cnn --batches 1 16 64

Each ratio divides by the fastest forward pass found for that batch in this run, whole or in chunks of 8 images. The
naive sampler makes a forward pass for each output that is read, so its ratio is their number by definition. The images
are checked against their noise by one forward pass.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.registry import create_model
from triptych.sampling.autoregressive import SAMPLERS, Drawing
from triptych.spaces import ImageSpace

SPACES = {"grey": ImageSpace(1, 28, 28, 256), "binary": ImageSpace(1, 28, 28, 2), "rgb": ImageSpace(3, 32, 32, 256)}
# Sizes of the literature where it has one, else a model's own defaults.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "pixel_cnn": lambda channels: {"hidden": 32 if channels == 1 else 48, "n_blocks": 7},
    "gated_pixel_cnn": lambda channels: {"hidden": 64 if channels == 1 else 96, "n_layers": 8},
}


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["pixel_cnn", "gated_pixel_cnn"])
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["grey"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64], help="images drawn at once")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=["auto"])
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of so many draws counts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    titles = f"{'model':<18}{'space':<8}{'sampler':<11}{'batch':>5}{'forward ms':>12}{'draw ms':>10}"
    print(f"{titles}{'naive':>7}{'cost':>7}{'agrees':>10}{'peak MiB':>10}")
    for name in args.models:
        for title in args.spaces:
            space = SPACES[title]
            torch.manual_seed(0)
            model = create_model(name, space, **OPTIONS.get(name, lambda channels: {})(space.channels)).eval()
            assert isinstance(model, AutoregressiveDensity)
            for sampler in args.samplers:
                for n in args.batches:
                    measure(model, (name, title, sampler, n), args.repeats)


def measure(model: AutoregressiveDensity, row: tuple[str, str, Any, int], repeats: int) -> None:
    """Prints the costs of one batch."""
    name, title, sampler, n = row
    x = model.draw(n, sampler=sampler, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(n, *model.space.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        forward = min(
            fastest(lambda: [model.outputs(part) for part in x.split(size)], 4 * repeats)  # noqa: B023
            for size in {n, min(n, 8)}
        )
        draw = fastest(lambda: model.draw(n, sampler=sampler), repeats)
        parts = zip(noise.split(8), x.split(8), strict=True)
        drawings = ((Drawing(model.network, model.head, model.encode, u), y.long()) for u, y in parts)
        agrees = torch.cat([drawing.one_pass(y) == y for drawing, y in drawings]).double().mean()
    n_naive = model.space.height * model.space.width * model.head.n_groups
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:<18}{title:<8}{sampler:<11}{n:>5}{forward * 1e3:>12.1f}{draw * 1e3:>10.1f}{n_naive:>7}"
        f"{draw / forward:>7.1f}{agrees:>10.3%}{peak:>10.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
