"""Fuzzing of the readers, guided by coverage, with atheris: `python tests/fuzz_readers.py --seconds 60 shard.tar`.

Without a name those that parse in Python share the seconds. Each starts from a valid file; what it may do is what
`tests/test_fuzz.py` says. Atheris is no dependency: `pip install atheris`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def readers() -> dict[str, tuple[bytes, Callable[[bytes], None]]]:
    """By name: a valid file, and what reads one."""
    import io

    import test_fuzz
    import torch

    from triptych.config import Budget
    from triptych.training.checkpoints import read_checkpoint
    from triptych.training.files import read_json, read_weights

    def of_file(reader: Callable[[Path], object]) -> Callable[[bytes], None]:
        def run(content: bytes) -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "file"
                path.write_bytes(content)
                test_fuzz.read(reader, path)

        return run

    def of_source(name: str) -> Callable[[bytes], None]:
        return lambda content: test_fuzz.read_source(name, content)

    found = {name: (valid, of_source(name)) for name, valid in test_fuzz.VALID.items()}
    for kind, picture in test_fuzz.PICTURES.items():
        found[f"x.{kind}"] = picture, lambda content, kind=kind: test_fuzz.read_source(f"x.{kind}", content)
    stream = io.BytesIO()
    torch.save({"step": 3, "model": {"a": torch.zeros(3)}}, stream)
    sealed = test_fuzz.hostile.sealed
    found["checkpoint"] = stream.getvalue(), lambda content: of_file(read_checkpoint)(sealed(content))
    found["weights"] = test_fuzz.hostile.safetensors({"a": test_fuzz.hostile.ONE}, bytes(4)), of_file(read_weights)
    found["json"] = b'{"a": [1, 2.5, null]}', of_file(read_json)
    words = b"10kimages", lambda content: test_fuzz.read(Budget.parse, content.decode("utf-8", "replace"))
    return {**found, "budget": words}


def fuzz(name: str, seconds: int) -> None:
    """Fuzzes one reader for some seconds; does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["triptych.data", "triptych.training", "zipfile", "tarfile", "PIL"]):
        valid, run = readers()[name]
    corpus = Path(tempfile.mkdtemp())
    (corpus / "valid").write_bytes(valid)
    arguments = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, f"-artifact_prefix={corpus}/", str(corpus)], run)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes the reader that is named, or the usual ones one after the other; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", nargs="?", help="by default the most important ones")
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("There is no atheris here, so nothing was fuzzed with it: pip install atheris.")
        return 0
    if given.reader is not None:
        fuzz(given.reader, given.seconds)
    names = ["images.npy", "images.npz", "images-idx3-ubyte", "set.zip", "shard.tar", "pax.tar", "checkpoint", "budget"]
    failed = []
    for name in names:
        command = [sys.executable, __file__, name, "--seconds", str(max(1, given.seconds // len(names)))]
        done = subprocess.run(command, capture_output=True, text=True)
        n_runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        verdict = f"FAILED ({done.returncode})" if done.returncode else "sound"
        print(f"{name:24}{n_runs[0] if n_runs else '?':>10} inputs  {verdict}", flush=True)
        if done.returncode:
            failed.append(name)
            print((done.stdout + done.stderr)[-3000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
