"""What drawing costs: the naive sampler and the wavefront sampler over one forward pass of the same batch.

    python benchmarks/drawing.py --batches 1 16 64

Each ratio divides by the fastest forward pass found for that batch in this run, whole or in chunks of 8 images. The
naive sampler makes one forward pass for each sub-pixel, so its ratio is the number of sub-pixels by definition; the
wavefront sampler's image is checked against its noise by one forward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.tractable.pixel_cnn import PixelCNN
from triptych.spaces import ImageSpace

SPACES = {"grey": ImageSpace(1, 28, 28, 256), "binary": ImageSpace(1, 28, 28, 2), "rgb": ImageSpace(3, 32, 32, 256)}


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def decided(model: AutoregressiveDensity, x: Tensor, noise: Tensor) -> Tensor:
    """What the noise decides at each sub-pixel of images, given the sub-pixels before it, by one forward pass."""
    head, levels = model.head, x.long().unbind(1)
    outputs = model.outputs(x).unflatten(1, (head.n_groups, -1)).movedim(2, -1)  # (N, G, H, W, F)
    result = []
    for channel in range(len(levels)):
        group, first = divmod(channel, len(levels) // head.n_groups)
        result.append(head.decide(outputs[:, group], levels[channel - first : channel], noise[:, channel]))
    return torch.stack(result, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["grey", "rgb"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64], help="images drawn at once")
    parser.add_argument("--hidden", type=int, nargs=2, default=[32, 48], help="features h: of one channel, of three")
    parser.add_argument("--n-blocks", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many draws counts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{'space':<34}{'batch':>6}{'forward ms':>12}{'draw ms':>10}{'naive':>8}{'wavefront':>11}{'agrees':>9}")
    for name in args.spaces:
        space = SPACES[name]
        model = PixelCNN(space, hidden=args.hidden[space.channels == 3], n_blocks=args.n_blocks).eval()
        for n in args.batches:
            x = model.sample(n, generator=torch.Generator().manual_seed(0))
            noise = torch.rand(n, *space.shape, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                forward = min(
                    fastest(lambda: [model.outputs(part) for part in x.split(size)], 5 * args.repeats)  # noqa: B023
                    for size in {n, min(n, 8)}
                )
                draw = fastest(lambda: model.sample(n), args.repeats)  # noqa: B023
                parts = zip(noise.split(8), x.split(8), strict=True)
                agrees = torch.cat([decided(model, y, u) == y for u, y in parts])
            print(
                f"{space!s:<34}{n:>6}{forward * 1e3:>12.1f}{draw * 1e3:>10.1f}{space.n_dims:>8}"
                f"{draw / forward:>11.1f}{agrees.double().mean():>9.3%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
