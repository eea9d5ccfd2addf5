"""The Python interface; the command line says the same words."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from rich.markup import escape

from triptych import ranks
from triptych.config import TrainConfig
from triptych.consoles import lasting_console
from triptych.data.animation import MAX_SHOWN, Frames, check_suffix, save_animation
from triptych.data.dataset import Dataset, Split, level_dtype, merged
from triptych.data.load import IN_MEMORY, load_data
from triptych.data.pictures import columns_for, image_grid, png_comment, save_items, to_rgb
from triptych.drawing import (
    Bar,
    autoregressive_models,
    check_file,
    check_seed,
    describe_warp,
    draw_blocks,
    draw_images,
    read_labels,
)
from triptych.errors import InputError, TrainingInterrupted, nearest_name, printable
from triptych.evaluation.evaluate import Evaluation
from triptych.evaluation.evaluate import evaluate as evaluate_models
from triptych.evaluation.evaluate import evaluate_samples as evaluate_given
from triptych.evaluation.likelihood import evaluate_likelihood
from triptych.evaluation.results import TrainingCost
from triptych.files import is_temporary, write_atomically, write_text
from triptych.models.adversarial import AdversarialModel
from triptych.models.autoregressive import AutoregressiveDensity
from triptych.models.base import GenerativeModel, Likelihood
from triptych.models.registry import (
    PANELS,
    check_options,
    create_model,
    find_models,
    model_class,
    model_options,
    resolved_options,
)
from triptych.sampling.autoregressive import Sampler, Warp
from triptych.spaces import ImageSpace, PointSpace
from triptych.training.cost import Cost
from triptych.training.files import read_summary, write_json
from triptych.training.lock import RunLock
from triptych.training.memory import within_memory
from triptych.training.run import check_same, decisive, other_hardware, read_config, read_run, run_config

__all__ = [
    "create_model",
    "estimate",
    "evaluate",
    "evaluate_samples",
    "fit",
    "fork",
    "list_models",
    "load",
    "load_data",
    "resume",
    "sample",
    "score",
]

TRAIN_FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))
MAX_DRAWN = 10_000_000
_READ_AGAIN = inspect.signature(load_data).parameters.keys() - {"labels", "progress"}


def list_models(panel: str | None = None) -> list[str]:
    """Names of all models, or of one panel's ('tractable', 'approximate', 'implicit').

    Raises:
        InputError: If there is no such panel.
    """
    if panel is not None and panel not in PANELS:
        raise InputError(f"There is no panel {panel!r}.{nearest_name(panel, PANELS)} Panels: {', '.join(PANELS)}.")
    return [name for name, its_panel in find_models().items() if panel in (None, its_panel)]


def load(run: str | Path) -> GenerativeModel:
    """The trained model of a run folder, in evaluation mode on the CPU. Runs no code from the folder.

    Raises:
        InputError: If the folder is missing, incomplete or damaged.
    """
    return read_run(run)[0]


def fit(
    model: str,
    data: Dataset | str | Path | np.ndarray,
    *,
    out: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    fork: str | Path | None = None,
    conditional: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> GenerativeModel:
    """Trains a model and leaves a run folder.

    Arguments:
        model: One of `list_models()`.
        data: A data set, or whatever `load_data` reads.
        out: Run folder; by default the first free of `runs/<model>-<data>`, `runs/<model>-<data>-2`, ...
        resume: Go on from the latest checkpoint in `out`, with the same settings and data; with 'auto' only if one was
            begun there, so that the same call begins a run and goes on with it.
        fork: Begin with the weights, their averages and the optimisers' state of this run's latest checkpoint; steps,
            schedule, noise and order of the data are those of a new run.
        conditional: Condition the model on the data's class labels.
        verbose: Show the estimate of time and memory, and the progress.
        settings: Training settings (the fields of `triptych.config.TrainConfig`: `budget`, `seed`, `batch_size`, ...)
            and the model's own options, by name; the model's `defaults_for` the number of items where none is given.
    Returns:
        The trained model, in evaluation mode on the CPU: the averaged weights, those that scored best on the
        validation split where the model has a likelihood.
    Raises:
        InputError: If a name or a value is wrong, `out` is taken or being trained, or a resumed run differs in a
            setting, the data or a version.
        TrainingStopped: If a loss is no longer finite, a file cannot be written, data that are read as needed have
            changed, there is not memory enough, or on Ctrl-C or SIGTERM.
    """
    from triptych.training.devices import start  # Lightning Fabric takes seconds to import.
    from triptych.training.trainer import Trainer

    train, options = split_settings(model, settings)
    data = data if isinstance(data, Dataset) else load_data(data)
    n_classes = classes_of(data, conditional=conditional)
    if (resume and out is None) or (resume is True and fork is not None):
        raise InputError("resume needs the run folder to go on from: give out, and no fork.")
    if resume == "auto":  # Several processes ask before any of them writes: see `start`.
        resume = (Path(str(out)) / "config.json").is_file()
    # Weights are drawn from the global generator, which is the caller's own outside.
    with torch.random.fork_rng(), _within_memory(model, data, train):
        torch.manual_seed(train.seed)
        options = {**model_class(model).defaults_for(data.space, len(data.train)), **options}
        network = create_model(model, data.space, n_classes=n_classes, **options)
        config = run_config(model, resolved_options(model, network), n_classes, data, train)
        fabric = start(train)
        console = lasting_console() if verbose and fabric.is_global_zero else None
        origin = None if fork is None else Path(fork)
        if resume:
            folder = Path(str(out))
            saved = read_config(folder)
            if "forked_from" in saved:
                config["forked_from"] = saved["forked_from"]
            is_finished = (folder / "summary.json").is_file()
            check_same(saved, config, folder, same_versions=not is_finished)
            if is_finished:
                if console:
                    ended = read_summary(folder)["reason"]
                    console.print(
                        printable(f"{folder} is finished ({ended}); nothing to do."), markup=False, highlight=False
                    )
                return load(folder)
            origin = Path(saved["forked_from"]) if "forked_from" in saved else None
            if console and (elsewhere := other_hardware(saved, config)):
                console.print(printable(elsewhere), markup=False, highlight=False, soft_wrap=True)
        with ExitStack() as held:
            lock = None
            if fabric.is_global_zero:
                if not resume:
                    folder = new_folder(out, Path("runs") / f"{model}-{data.name}")
                    if origin is not None:
                        config["forked_from"] = str(origin.resolve())
                lock = held.enter_context(RunLock(folder))
            elif not resume:
                folder = Path(out or "runs")  # The first process alone knows the name, and alone needs it.
            trainer = Trainer(network, data, train, folder, console, fabric, lock, decisive(config))
            if console:
                console.print(
                    printable(f"{model} on {data.name} ({data.space}) -> {folder}"), markup=False, highlight=False
                )
            if network.phases() and not resume and verbose:
                cost = trainer.estimate_cost().describe(trainer.budget)
                if console:
                    console.print(cost, markup=False, highlight=False, soft_wrap=True)
            # A run that was stopped before its first checkpoint begins anew.
            goes_on = resume and bool(trainer.checkpoints.paths())
            if origin is not None and not goes_on:
                trainer.begin_with(origin)
            if lock is not None and not resume:
                trainer.check_folder()
                if is_taken(folder):  # Who was quicker has let go of it by now.
                    raise InputError(f"{folder} is not empty; give another --out, or --resume {folder}.")
                write_json(folder / "config.json", config)
            summary = trainer.fit(resume=goes_on)
            if lock is not None:
                trainer.check_folder()
                tensors = [*network.parameters()] or [*network.state_dict().values()]
                n_parameters = sum(tensor.numel() for tensor in tensors)
                write_json(folder / "summary.json", {**dataclasses.asdict(summary), "n_parameters": n_parameters})
                if console:
                    ended = f"{folder}: {summary.describe()}"
                    console.print(printable(ended), markup=False, highlight=False, soft_wrap=True)
    return trainer.ema.cpu()


def estimate(
    model: str, data: Dataset | str | Path | np.ndarray, *, conditional: bool = False, **settings: Any
) -> Cost | None:
    """What a `fit` with the same arguments would take, from a few trial steps; writes nothing.

    Returns:
        Time, memory and disk; None for a model that an algorithm of its own estimates, which has no steps to try.
    Raises:
        InputError: As of `fit`.
        TrainingStopped: If there is not memory enough.
    """
    from triptych.training.devices import start
    from triptych.training.trainer import Trainer

    train, options = split_settings(model, settings)
    data = data if isinstance(data, Dataset) else load_data(data)
    with torch.random.fork_rng(), _within_memory(model, data, train):
        torch.manual_seed(train.seed)
        options = {**model_class(model).defaults_for(data.space, len(data.train)), **options}
        network = create_model(model, data.space, n_classes=classes_of(data, conditional=conditional), **options)
        trainer = Trainer(network, data, train, Path(), None, start(train))
        return trainer.estimate_cost() if network.phases() else None


def _within_memory(model: str, data: Dataset, train: TrainConfig) -> AbstractContextManager[None]:
    from triptych.training.devices import choose_device, processes_wanted

    return within_memory(f"{model} on {data.space}", choose_device(train.device), processes_wanted(train)[0])


def split_settings(model: str, settings: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Training settings, and the model's own options.

    Raises:
        InputError: If one is neither, or a training setting is out of range.
    """
    known = model_options(model)
    options = {key: value for key, value in settings.items() if key not in TRAIN_FIELDS}
    for key in options:
        if key not in known:
            words = [*known, *TRAIN_FIELDS]
            raise InputError(
                f"{model} has no option {key!r}, nor is it a training setting.{nearest_name(key, words)} Options of"
                f" {model}: {', '.join(known) or 'none'}. Training settings: {', '.join(TRAIN_FIELDS)}."
            )
    return TrainConfig(**{key: value for key, value in settings.items() if key in TRAIN_FIELDS}), options


def classes_of(data: Dataset, *, conditional: bool) -> int:
    """Classes that a model of some data is to be conditioned on, 0 for none.

    Raises:
        InputError: If it is to be, but there are none.
    """
    if conditional and not data.n_classes:
        raise InputError(f"conditional: {data.name!r} has no labels to condition on.")
    return data.n_classes if conditional else 0


def resume(run: str | Path, *, verbose: bool = True) -> GenerativeModel:
    """Goes on with the training of a run folder, with the settings and the data it was begun with.

    Raises:
        InputError: If the folder is incomplete, or the data is no longer what it was.
    """
    config = read_config(Path(run))
    try:
        model, conditional = config["model"], config["n_classes"] > 0
        check_options(model, config["options"])
        settings = {**config["train"], **config["options"]}
        moved = f"give the command that began the run, with where they are now, --out {run} and --auto-resume"
        data = data_of(config, run, moved)
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}/config.json is not the configuration of a run ({error!r}).") from None
    return fit(model, data, out=run, resume=True, conditional=conditional, verbose=verbose, **settings)


def fork(
    run: str | Path,
    data: Dataset | str | Path | np.ndarray | None = None,
    *,
    out: str | Path | None = None,
    verbose: bool = True,
    **settings: Any,
) -> GenerativeModel:
    """Begins a new run with the weights of another one: its model and options, on its data if no other is given.

    Arguments:
        run: Run folder to begin with; it is not changed.
        data: What to learn, of the same space.
        out: As of `fit`.
        settings: Training settings, which are not taken from `run`, and options of the model that differ.
    Returns:
        As of `fit`.
    Raises:
        InputError, TrainingStopped: As of `fit`; InputError also if the weights do not fit.
    """
    config = read_config(Path(run))
    try:
        model, conditional = config["model"], config["n_classes"] > 0
        check_options(model, config["options"])
        options = {**config["options"], **settings}
        data = data_of(config, run, "give them, behind the model") if data is None else data
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}/config.json is not the configuration of a run ({error!r}).") from None
    return fit(model, data, out=out, fork=run, conditional=conditional, verbose=verbose, **options)


def data_of(config: Mapping[str, Any], run: str | Path, moved: str = "give the data themselves (--source)") -> Dataset:
    """The data set a run was trained on, read again from where it was.

    Arguments:
        moved: What to do if it is elsewhere now.
    Raises:
        InputError: If it cannot be read again, or is no longer the same.
    """
    source = config["data"]["source"]
    if source.get("source", IN_MEMORY) == IN_MEMORY:
        raise InputError(f"{run} was trained on arrays in memory; give the data.")
    if unknown := next((key for key in source if key not in _READ_AGAIN), None):
        raise InputError(f"{run}/config.json is not the configuration of a run (data.source has {unknown!r}).")
    try:
        data = load_data(**source)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}. These are the data of {run}: if they are elsewhere, {moved}."
        ) from None
    if data.checksum != config["data"]["checksum"]:
        raise InputError(
            f"The data at {source['source']!r} are no longer what {run} was trained on; restore them, or if what it was"
            f" trained on is elsewhere, {moved}."
        )
    return data


def folder_of_several(out: str | Path | None, wanted: Path, *, resume: bool, what: str) -> Path:
    """Where several trainings go that belong together: `out`, or the first free of `wanted`, `wanted-2`, ...

    Arguments:
        resume: Whether they go on in `out`.
        what: What they are, for the message: 'comparison'.
    Raises:
        InputError: If `out` is taken, or not given where they are to go on.
    """
    if resume and out is None:
        raise InputError(f"resume needs the folder of the {what}: give --out.")
    folder = Path(out) if out is not None else free_folder(wanted)
    if not resume and is_taken(folder):
        raise InputError(f"{folder} is not empty; give another --out, or --resume to go on with it.")
    return folder


def fit_one_of_several(
    model: str, data: Dataset, folder: Path, name: str, *, resume: bool, **settings: Any
) -> GenerativeModel:
    """Trains one of several models, in `folder / name`; if it was begun there and they are to go on, so does it.

    Raises:
        TrainingInterrupted: On Ctrl-C, with how to go on with all of them.
        InputError, TrainingStopped: As of `fit`.
    """
    begun = resume and (folder / name / "config.json").is_file()
    try:
        return fit(model, data, out=folder / name, resume=begun, **settings)
    except TrainingInterrupted:
        raise TrainingInterrupted(
            f"Interrupted; what is done is kept. Go on with the same command, --out {folder} and --resume."
        ) from None


def new_folder(out: str | Path | None, wanted: Path) -> Path:
    """Makes the folder of a run: `out`, or the first of `wanted`, `wanted-2`, ... that nothing else has taken.

    Raises:
        InputError: If `out` is not empty.
    """
    if out is not None:
        folder = Path(out)
        if is_taken(folder):
            raise InputError(f"{folder} is not empty; give another --out, or --resume {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    while True:
        folder = free_folder(wanted)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:  # by another process, just now
            continue
        return folder


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def sample(
    model: GenerativeModel | str | Path,
    n: int,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    sampler: Sampler = "auto",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    truncation: float | None = None,
    out: str | Path | None = None,
    animate: str | Path | None = None,
    verbose: bool = True,
) -> np.ndarray:
    """Draws from a model or run.

    Arguments:
        labels: Class of each draw, for a class-conditional model; by default all classes in turn.
        seed: The same seed gives the same draws on the same machine.
        sampler: How an autoregressive model draws: 'naive', 'raster', 'row', 'wavefront' or 'jacobi', which from the
            same seed all draw the same images; 'auto' takes the quickest.
        temperature: Of an autoregressive model: divides the log-probabilities of each sub-pixel's levels. With any
            but 1, the draws are not from p(x), and files of them say so (as a comment in PNG, GIF and .npz files).
        top_k: Likewise: draw from the k likeliest levels only; 0 for all.
        top_p: Likewise: draw from the fewest levels whose probabilities reach p together; 1 for all.
        truncation: Of an adversarial model: the largest magnitude of a latent (Brock et al. 2019, arXiv:1809.11096).
            Smaller ones give more typical and less varied samples, which files of them say likewise.
        out: File or folder to write too: .png (a grid, or a plot of points), .npy or .npz, or a folder (a PNG each).
        animate: .gif (256 colours) or .png or .apng file for an animation of an autoregressive model's drawing; of
            more than 100 images the first 100.
        verbose: Show a bar on a terminal if an autoregressive model takes more than a second.
    Returns:
        (n, *space.shape), in data units. Several processes that are `triptych.ranks.together` share the drawing, and
        the first of them writes.
    Raises:
        InputError: If n is not positive, labels or options do not fit the model, or a file cannot be written.
    """
    model = model if isinstance(model, GenerativeModel) else load(model)
    if not 1 <= n <= MAX_DRAWN:
        raise InputError(f"n is {n}; draw at least 1 and at most {MAX_DRAWN:,}.")
    check_seed(seed)
    warp = Warp(temperature, top_k, top_p)
    comment = describe_warp(warp, truncation=truncation)
    if truncation is not None and not isinstance(model, AdversarialModel):
        able = [name for name in find_models() if issubclass(model_class(name), AdversarialModel)]
        raise InputError(
            f"{type(model).__name__} has no latents to truncate: leave out truncation, which {', '.join(able)} take."
        )
    out, animate = (None if path is None else Path(path) for path in (out, animate))
    write = None if out is None else _writer(out, model, comment)
    if animate is not None:
        check_suffix(animate)
        check_file(animate, [out])
    if labels is None and model.n_classes:
        labels = np.arange(n) % model.n_classes
    given = read_labels(labels)
    model.eval()
    frames = None
    if isinstance(model, AutoregressiveDensity):
        given = model.check_labels(n, given, draw=False)
        if animate is not None:
            nothing = np.zeros((min(n, MAX_SHOWN), *model.space.shape), level_dtype(model.space.levels))
            frames = Frames(nothing, np.zeros(nothing[:, 0].shape, np.bool_))
        with Bar(verbose) as bar:
            items = draw_images(model, n, labels=given, seed=seed, sampler=sampler, warp=warp, frames=frames, bar=bar)
    else:
        _refuse_options_of_drawing(model, sampler, warp, animate)

        def draw(block: slice, generator: torch.Generator) -> torch.Tensor:
            of_block, count = None if given is None else given[block], block.stop - block.start
            if isinstance(model, AdversarialModel):
                return model.sample(count, labels=of_block, generator=generator, truncation=truncation)
            return model.sample(count, labels=of_block, generator=generator)

        items = draw_blocks(n, model, draw, seed=seed)
    if not ranks.is_first():
        return items
    if write is not None:
        write(items)
    if animate is not None and frames is not None and isinstance(model.space, ImageSpace):
        grid = partial(image_grid, space=model.space, n_columns=columns_for(frames.n), scale=1)
        save_animation(frames, lambda images, drawn: grid(images, drawn=drawn), model.space, animate, comment)
    return items


def _refuse_options_of_drawing(model: GenerativeModel, sampler: Sampler, warp: Warp, animate: Path | None) -> None:
    """Raises InputError if something is set that only autoregressive models take."""
    options = {"sampler": sampler != "auto", "animate": animate is not None}
    options |= {key: getattr(warp, key) != default for key, default in dataclasses.asdict(Warp()).items()}
    if wrong := [key for key, is_set in options.items() if is_set]:
        raise InputError(
            f"{type(model).__name__} does not draw site by site: leave out {', '.join(wrong)}, which autoregressive"
            f" models take ({', '.join(autoregressive_models())})."
        )


def _writer(out: Path, model: GenerativeModel, comment: str) -> Callable[[np.ndarray], None]:
    """How to write items to `out`, refused before anything is drawn if it cannot be done."""
    suffix = out.suffix.lower()
    if suffix not in (".png", ".npy", ".npz", ""):
        raise InputError(f"{out}: write samples to a .png, .npy or .npz file, or to a folder.")
    if suffix and out.is_dir():
        raise InputError(f"{out} is a folder; give a file, or a folder without a suffix.")
    if suffix == "" and not isinstance(model.space, ImageSpace):
        raise InputError(f"{out}: points are written to a .png, .npy or .npz file.")
    if suffix == "" and is_taken(out):
        raise InputError(f"{out} is not an empty folder; give another one.")
    if not out.is_dir():
        check_file(out)

    def write(items: np.ndarray) -> None:
        if suffix == ".png":
            save_items(items, model.space, out, comment)
        elif suffix == ".npy":
            _write_open(out, lambda file: np.save(file, items))
        elif suffix == ".npz":
            write_arrays(out, {"images": items}, comment)
        elif isinstance(model.space, ImageSpace):
            out.mkdir(exist_ok=True)
            for number in range(len(items)):
                (picture,) = to_rgb(items[number : number + 1], model.space)
                Image.fromarray(picture).save(out / f"{number:06d}.png", pnginfo=png_comment(comment))

    return write


def write_arrays(out: Path, arrays: Mapping[str, np.ndarray], comment: str) -> None:
    """Writes a compressed .npz file, atomically, with a comment under the key 'comment' if it is not empty."""
    content: dict[str, Any] = {**arrays, **({"comment": np.array(comment)} if comment else {})}
    _write_open(out, lambda file: np.savez_compressed(file, **content))


def _write_open(out: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes atomically through an open file: given a name, NumPy would add a suffix to it."""

    def write_to(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            write(file)

    write_atomically(out, write_to)


def is_taken(folder: Path) -> bool:
    """Whether something is there that a new run must not write over."""
    if not folder.is_dir():
        return folder.exists()
    # What a process leaves that is killed as it begins is nothing.
    return any(path.name != RunLock.NAME and not is_temporary(path) for path in folder.iterdir())


def score(
    model: GenerativeModel | str | Path,
    items: np.ndarray | torch.Tensor | Split,
    labels: np.ndarray | None = None,
    *,
    n_importance: int = 0,
    seed: int = 0,
) -> Likelihood:
    """Log-likelihood of items under a model or run, typed as exact or bound.

    Arguments:
        items: Images, integers 0 .. levels-1, (N, C, H, W), or points, (N, dim); or a split of a data set.
        labels: Class of each item, for a class-conditional model.
        n_importance: For a model with a bound: importance samples (IWAE); 0 for the ELBO.
    Raises:
        InputError: If the model has no likelihood (use a tractable or approximate model), or items do not fit.
    """
    model = model if isinstance(model, GenerativeModel) else load(model)
    if not isinstance(items, Split):
        items = Split(np.asarray(items), None if labels is None else np.asarray(labels, dtype=np.int64))
    likelihood = evaluate_likelihood(model, items, n_importance=n_importance, seed=seed)
    if likelihood is None:
        raise InputError(
            f"{type(model).__name__} has no likelihood: it can only sample. Score with a tractable or approximate one."
        )
    return likelihood


def choose_split(data: Dataset, name: Literal["train", "valid", "test", "all"]) -> Split:
    """A split by name; 'all' is the three of them, one after the other."""
    return merged(*data.splits.values()) if name == "all" else data.splits[name]


def write_scores(likelihood: Likelihood, out: str | Path) -> None:
    """Writes a CSV file with the log-likelihood of each item, in nats, and what kind it is."""
    if not ranks.is_first():
        return
    lines = ["item,log_likelihood_nats,kind,measure"]
    lines += [f"{i},{nats!r},{likelihood.kind},{likelihood.measure}" for i, nats in enumerate(likelihood.nats.tolist())]
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {str(out.parent)!r} does not exist.")
    write_text(out, "\n".join(lines) + "\n")


def evaluate(
    runs: str | Path | Sequence[str | Path],
    data: Dataset | str | Path | None = None,
    *,
    n_importance: int = 64,
    n_samples: int | None = None,
    extractors: Sequence[str] | None = None,
    discriminator: bool = True,
    seed: int = 0,
    verbose: bool = True,
) -> Evaluation:
    """Measures the models of some runs on the held-out split of their data, beside the reference rows.

    Runs that differ in nothing but their seed are trainings of one model, and make one row.

    Arguments:
        runs: Run folders of models trained on the same data, or one.
        data: The data, if it is no longer where the runs found it.
        n_importance, n_samples, extractors, discriminator, seed: As of `triptych.evaluation.evaluate.evaluate`.
        verbose: Say what is being measured.
    Raises:
        InputError: If a run is incomplete, or the runs were trained on different data.
    """
    return evaluate_runs(
        [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)],
        data,
        n_importance=n_importance,
        n_samples=n_samples,
        extractors=extractors,
        discriminator=discriminator,
        seed=seed,
        device="auto",
        verbose=verbose,
    )[0]


def evaluate_runs(
    runs: Sequence[Path],
    data: Dataset | str | Path | None = None,
    *,
    device: str,
    verbose: bool,
    **settings: Any,
) -> tuple[Evaluation, dict[str, list[Path]], Dataset]:
    """`evaluate`, and the run folders behind each row, and the data.

    Arguments:
        device: Where to measure: 'auto', 'cpu' or 'cuda'.
        settings: Of `triptych.evaluation.evaluate.evaluate`.
    Raises:
        InputError: As of `evaluate`.
    """
    from triptych.training.devices import choose_device

    if not runs:
        raise InputError("evaluate needs at least one run folder.")
    loaded: dict[Path, tuple[GenerativeModel, dict[str, Any]]] = {}
    known: dict[Path, Path] = {}
    for run in runs:
        if (same := known.setdefault(run.resolve(), run)) is not run or run in loaded:
            twice = f"{run} is given twice" if run == same else f"{run} and {same} are the same run"
            raise InputError(f"{twice}; give each run once.")
        loaded[run] = read_run(run)
    first, *others = loaded
    config = loaded[first][1]
    for other in others:
        if loaded[other][1]["data"]["checksum"] != config["data"]["checksum"]:
            raise InputError(f"{first} and {other} were trained on different data; evaluate them one by one.")
    groups = _trainings_of({run: config for run, (_, config) in loaded.items()})
    if data is None:
        data = data_of(config, first)
    dataset = data if isinstance(data, Dataset) else load_data(data)
    space = loaded[first][0].space
    if isinstance(dataset.space, PointSpace) != isinstance(space, PointSpace) or (
        isinstance(space, ImageSpace) and dataset.space != space
    ):
        raise InputError(f"{dataset.name!r} holds {dataset.space}; {first} models {space}.")
    where = choose_device(device)
    for model, _ in loaded.values():
        model.to(where)
    models = {name: [loaded[run][0] for run in several] for name, several in groups.items()}
    costs = {name: [_cost_of(run) for run in several] for name, several in groups.items()}
    with telling(verbose) as tell:
        found = evaluate_models(models, dataset, costs=costs, device=where, progress=tell, **settings)
    if dataset.checksum != config["data"]["checksum"]:
        note = "This is not the data set, or not the split of it, that the models were trained on: held-out items may"
        found = dataclasses.replace(found, notes=(*found.notes, f"{note} have been among their training items."))
    return found, groups, dataset


def _trainings_of(configs: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Runs by the name of their row: those of one model whose settings differ in the seed alone stand together."""
    rows: list[tuple[dict[str, Any], list[Path]]] = []
    for run, config in configs.items():
        same = {key: config[key] for key in ("model", "options", "n_classes")}
        same["train"] = {key: value for key, value in config["train"].items() if key != "seed"}
        # The same seed twice is no second training of the same model, but another run to stand beside it.
        for known, several in rows:
            seeds = [configs[other]["train"].get("seed") for other in several]
            if known == same and config["train"].get("seed") not in seeds:
                several.append(run)
                break
        else:
            rows.append((same, [run]))
    named: dict[str, list[Path]] = {}
    for same, several in rows:
        alone = sum(other["model"] == same["model"] for other, _ in rows) == 1
        named[same["model"] if alone else _short_name(several[0], [run for _, (run, *_) in rows])] = several
    return named


def _short_name(run: Path, others: Sequence[Path]) -> str:
    """As many of the last folders of a run's path as tell it from the others' paths."""
    parts = run.resolve().parts
    for n in range(1, len(parts)):
        if sum(other.resolve().parts[-n:] == parts[-n:] for other in others) == 1:
            return "-".join(parts[-n:])
    return str(run)


def _cost_of(run: Path) -> TrainingCost:
    summary = read_summary(run)
    return TrainingCost(summary["seconds"], summary["n_images_seen"], summary["n_parameters"])


def evaluate_samples(
    samples: Mapping[str, np.ndarray | torch.Tensor | str | Path],
    reference: Dataset | str | Path | np.ndarray,
    *,
    extractors: Sequence[str] | None = None,
    discriminator: bool = True,
    seed: int = 0,
    verbose: bool = True,
) -> Evaluation:
    """Measures samples that anybody made against data: every column but likelihood and speed.

    Arguments:
        samples: By the name of their row: arrays or tensors in the reference's units, (n, *space.shape), or whatever
            `load_data` reads (a folder or zip of images, an npz file), of the reference's size and channels.
        reference: Data, or whatever `load_data` reads. The test split is what samples are compared with, the training
            split is what they may be copies of.
        extractors, discriminator, seed: As of `triptych.evaluation.evaluate.evaluate`.
        verbose: Say what is being measured.
    Raises:
        InputError: If samples cannot be read, or are not of the reference's space.
    """
    from triptych.training.devices import choose_device

    if not samples:
        raise InputError("evaluate_samples needs at least one set of samples.")
    data = reference if isinstance(reference, Dataset) else load_data(reference)
    sets = {
        name: _read_samples(items, data) if isinstance(items, str | Path) else np.asarray(torch.as_tensor(items).cpu())
        for name, items in samples.items()
    }
    with telling(verbose) as tell:
        return evaluate_given(
            sets,
            data,
            extractors=extractors,
            discriminator=discriminator,
            seed=seed,
            device=choose_device("auto"),
            progress=tell,
        )


def _read_samples(source: str | Path, data: Dataset) -> np.ndarray:
    """All items of a source, in the units of some data.

    Raises:
        InputError: If they are not of the data's size or kind.
    """
    ours = data.space
    levels = ours.levels if isinstance(ours, ImageSpace) and ours.palette is None else None
    try:
        found = load_data(source, levels=levels)
    except InputError as error:
        if "split of" not in str(error):
            raise
        raise InputError(f"{source} holds too few samples to say anything of; give at least 6.") from None
    items, theirs = merged(*found.splits.values()).read()[0], found.space
    advice = "give samples of as many coordinates."
    if isinstance(ours, ImageSpace):
        advice = "give samples of the same size, channels and levels, or read the reference with --size, --grey or"
        advice += " --levels to make it so."
    refusal = InputError(f"{source} holds {theirs}, the reference {data.name!r} {ours}; {advice}")
    if type(theirs) is not type(ours) or theirs.shape[1:] != ours.shape[1:]:
        raise refusal
    if not isinstance(ours, ImageSpace) or not isinstance(theirs, ImageSpace):
        if theirs.shape != ours.shape:
            raise refusal
        return items
    if ours.palette is not None:
        return _palette_indices(items, theirs, ours, refusal)
    if theirs.palette is not None:
        raise refusal
    if theirs.channels == 3 and ours.channels == 1 and (items == items[:, :1]).all():
        return items[:, :1]  # Grey pictures that were written in colour.
    if theirs.shape != ours.shape:
        raise refusal
    return items


def _palette_indices(items: np.ndarray, theirs: ImageSpace, ours: ImageSpace, refusal: InputError) -> np.ndarray:
    """Indices into our palette, of indices into the same one or of colour images that hold its colours alone."""
    if theirs.palette == ours.palette and theirs.levels == ours.levels:
        return items
    if theirs.palette is not None:
        raise InputError(
            f"{refusal.args[0].partition(';')[0]}, and their palettes differ; give samples in the reference's palette,"
            " or as colour images of its colours alone."
        )
    if theirs.shape[0] != 3 or theirs.levels != 256:
        raise refusal
    palette = {tuple(colour): index for index, colour in reversed([*enumerate(ours.palette or ())])}
    colours, where = np.unique(items.transpose(0, 2, 3, 1).reshape(-1, 3), axis=0, return_inverse=True)
    if any(tuple(colour) not in palette for colour in colours.tolist()):
        raise refusal
    indices = np.array([palette[tuple(colour)] for colour in colours.tolist()], level_dtype(ours.levels))
    return indices[where].reshape(len(items), 1, *items.shape[2:])


@contextmanager
def telling(verbose: bool) -> Iterator[Callable[[str], None] | None]:
    """A function that shows what is being measured, or None for silence.

    On a terminal one line follows the work; elsewhere only a new subject (what stands before a colon) is told.
    """
    console = lasting_console(stderr=True)
    if not verbose or not ranks.is_first():
        yield None
    elif console.is_terminal:
        with console.status("measuring") as status:
            yield lambda text: status.update(f"measuring {escape(text)}")
    else:
        last = ""

        def tell(text: str) -> None:
            nonlocal last
            subject = text.partition(":")[0]
            if subject != last:
                console.print(f"measuring {subject}", markup=False, highlight=False, soft_wrap=True)
            last = subject

        yield tell
