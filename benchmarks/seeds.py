"""The same comparison over several seeds: mean and spread of every column, as a Markdown table.

    python benchmarks/seeds.py digits --models pixel_cnn,vae,gan --budget 60s --seeds 0 1 2 --out runs/seeds-digits

Comparisons that are already finished in --out are read, not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import triptych
from triptych.cli.words import parse_settings
from triptych.evaluation.results import Table, format_value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--models", default="pixel_cnn,vae,gan")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--importance-samples", type=int, default=64)
    parser.add_argument("--set", nargs="*", default=[], help="options of a model, as gan.network=dcgan")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = triptych.load_data(arguments.source)
    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_settings(arguments.set).items():
        model, _, option = key.partition(".")
        options.setdefault(model, {})[option] = value
    tables = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        if not (folder / "table.json").is_file():
            triptych.compare(
                data,
                arguments.models.split(","),
                out=folder,
                resume=folder.is_dir(),
                budget=arguments.budget,
                seed=seed,
                n_importance=arguments.importance_samples,
                options=options,
            )
        tables.append(Table.from_dict(json.loads((folder / "table.json").read_text())))
    metrics = tables[0].metrics
    print(f"\nMean ± standard deviation over {len(tables)} seeds.\n")
    print("| | " + " | ".join(f"{m.title} ({m.unit})" if m.unit else m.title for m in metrics) + " |")
    print("|---|" + "---|" * len(metrics))
    for row in tables[0].rows:
        cells = []
        for metric in metrics:
            found = [t for table in tables for t in table.rows if t.name == row.name]
            values = [r.measurements[metric.key] for r in found if metric.key in r.measurements]
            numbers = [m.value for m in values if m.value is not None]
            if not values:
                cells.append("")
            elif not numbers:
                cells.append("not defined")
            else:
                mark = "<= " if values[0].kind == "lower bound" else ""
                spread = f" ± {format_value(statistics.stdev(numbers))}" if len(numbers) > 1 else ""
                cells.append(f"{mark}{format_value(statistics.mean(numbers))}{spread}")
        print(f"| {row.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
