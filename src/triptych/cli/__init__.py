"""The command line: one verb a class, the same words as the Python interface.

Nothing heavy is imported until a verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from triptych.cli.drawing import Complete, Sample, Translate
from triptych.cli.latents import Encode, Interpolate, Reconstruct, Traverse
from triptych.cli.measuring import Evaluate, Exhibit, Probe, Report, Score, Theory
from triptych.cli.training import Compare, Data, Fit, Models, Sweep
from triptych.consoles import LastingStream
from triptych.errors import InputError, TrainingInterrupted, TrainingStopped, one_line

VERBS: dict[str, type] = {
    "fit": Fit,
    "sample": Sample,
    "complete": Complete,
    "translate": Translate,
    "encode": Encode,
    "reconstruct": Reconstruct,
    "interpolate": Interpolate,
    "traverse": Traverse,
    "score": Score,
    "evaluate": Evaluate,
    "compare": Compare,
    "report": Report,
    "sweep": Sweep,
    "probe": Probe,
    "exhibit": Exhibit,
    "theory": Theory,
    "models": Models,
    "data": Data,
}


def _one_line(box: str, verb: str) -> str:
    """The message in the box that tyro prints for a wrong command line of a verb, as one line."""
    lines = [line.strip("│╭╮╰╯ ─") for line in box.splitlines()]
    title, *lines = [line if line else "" for line in lines]
    message = " ".join(line for line in lines[: lines.index("") if "" in lines else None]) or title
    meant = lines[lines.index("Perhaps you meant:") + 1 :] if "Perhaps you meant:" in lines else []
    if meant and meant[0].split():
        message += f". Did you mean {meant[0].split()[0]}?"
    message = re.sub(r"Error parsing \S*dummy\S*: ", "", message)  # tyro's own name for a whole group of settings
    return f"{message.rstrip('.')}. See triptych {verb}--help".replace("?.", "?")


def gather(arguments: Sequence[str], flag: str) -> list[str]:
    """The command line with the values of a repeated flag behind its first place; the parser keeps the last alone."""
    kept: list[str] = []
    values: list[str] = []
    place, into = None, kept
    for word in arguments:
        if word == flag or word.startswith(f"{flag}="):
            place = len(kept) if place is None else place
            into = values
            values += [word.removeprefix(f"{flag}=")] * (word != flag)
            continue
        if word.startswith("--"):
            into = kept
        into.append(word)
    return kept if place is None else [*kept[:place], flag, *values, *kept[place:]]


def parse(arguments: Sequence[str]) -> Any:
    """The verb that a command line asks for; leaves with status 2 and one line if it is wrong."""
    box = io.StringIO()
    verb: Any = tyro.extras.subcommand_cli_from_dict
    try:
        with contextlib.redirect_stderr(box):
            return verb(
                VERBS,
                prog="triptych",
                config=(tyro.conf.FlagCreatePairsOff,),
                args=gather(gather(gather(arguments, "--set"), "--over"), "--samples"),
                description="Train, measure and compare the three families of deep generative models on your own data.",
            )
    except SystemExit as stop:
        if stop.code:
            verb_name = f"{arguments[0]} " if arguments and arguments[0] in VERBS else ""
            _tell(one_line(_one_line(box.getvalue(), verb_name)))
        raise


def main() -> None:
    """Entry point of the `triptych` command. Exit codes: 0 done, 2 wrong input, 3 training stopped."""
    if sys.argv[1:] == ["--version"]:
        from triptych import __version__

        print(f"triptych {__version__}")
        return
    _share_cores()
    try:
        _run(parse(sys.argv[1:]))
    except InputError as error:
        _tell(one_line(error))
        raise SystemExit(2) from None
    except TrainingStopped as error:
        if not (isinstance(error, TrainingInterrupted) and _is_another()):
            _tell(one_line(error))
        raise SystemExit(3) from None
    except KeyboardInterrupt:
        _tell("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:  # The reader of our output (head, less) has gone.
        sys.stderr.close()
        raise SystemExit(0) from None
    except (OSError, MemoryError) as error:
        _tell(one_line(_say(error)))
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        _tell("There is not enough memory; use a smaller model or batch.")
        raise SystemExit(2) from None


def _share_cores() -> None:
    """Has PyTorch's threads wait for each other awake for a tenth of a millisecond or so, and then asleep.

    By default they stay awake for milliseconds: where other work shares a core, each of the hundreds of waits in a step
    takes a turn of the scheduler, and the step a hundred times as long. GNU's OpenMP reads this when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _tell(line: str) -> None:
    """What went wrong, to whoever still reads; the exit code says it too."""
    if sys.stderr is not None:
        stream = LastingStream(sys.stderr)
        stream.write(f"triptych: {line}\n")
        stream.flush()


def _is_another() -> bool:
    """Whether this is one of several processes that train together, and not the first."""
    from triptych.training.devices import is_first

    return not is_first()


def _run(verb: Any) -> None:
    """Carries a verb out; under torchrun by all its processes, of which the first one writes and prints."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or isinstance(verb, Fit):  # a training sees to its processes itself
        verb.run()
        return
    if not isinstance(verb, Sample | Score | Evaluate):
        raise InputError("torchrun is for fit, sample, score and evaluate; run this verb without it.")
    from triptych import ranks

    with ranks.together(), contextlib.ExitStack() as silent:
        if not ranks.is_first():
            silent.enter_context(contextlib.redirect_stdout(silent.enter_context(open(os.devnull, "w"))))
        verb.run()


def _say(error: OSError | MemoryError) -> str:
    """What the system refused, as one line."""
    if isinstance(error, MemoryError):
        return "There is not enough memory; use a smaller model or batch."
    return f"{error.filename or 'A file'}: {error.strerror or error}; give another path or mend its rights."
