"""Finds the models: every file in a panel's folder is one model, and its name is the model's name."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError, nearest_name
from triptych.spaces import Space

if TYPE_CHECKING:
    from torch import Tensor

    from triptych.models.base import GenerativeModel

PANELS = ("tractable", "approximate", "implicit")
MAX_PARAMETERS = 2**31
"""Of a model, and its buffers: those here are small, and more do not fit where they are trained."""
MAX_LAYERS = 10_000


def find_models(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Model names and their panels, read off the file names alone: no model is imported.

    Raises:
        RuntimeError: If two files have the same name.
    """
    found: dict[str, str] = {}
    for panel in PANELS:
        for file in sorted((folder / panel).glob("[a-z]*.py")):
            if file.stem in found:
                raise RuntimeError(
                    f"Two models are named {file.stem!r}: one in {found[file.stem]}/ and one in {panel}/."
                )
            found[file.stem] = panel
    return found


@cache
def model_class(name: str) -> type[GenerativeModel]:
    """The class that models/<panel>/<name>.py defines.

    Raises:
        InputError: If no model has this name.
    """
    from triptych.models.base import GenerativeModel

    models = find_models()
    if name not in models:
        raise InputError(f"There is no model {name!r}.{nearest_name(name, models)} Models: {', '.join(models)}.")
    module = importlib.import_module(f"triptych.models.{models[name]}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, GenerativeModel) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RuntimeError(f"{module.__file__} must define exactly one model class; it defines {len(classes)}.")
    return classes[0]


def model_options(name: str) -> dict[str, tuple[Any, Any]]:
    """The keyword options of a model: name -> (annotated type, default)."""
    cls = model_class(name)
    hints = typing.get_type_hints(cls.__init__)
    return {
        key: (hints.get(key, Any), parameter.default)
        for key, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def resolved_options(name: str, model: GenerativeModel) -> dict[str, Any]:
    """Every option of a model with the value it has come to, so that the model can be made again as it is.

    A model stores each option under its own name, with what a default of None stands for filled in.
    """
    return {key: getattr(model, key) for key in model_options(name)}


def check_options(name: str, options: Iterable[str]) -> None:
    """Raises InputError if a model has no option of one of these names."""
    known = model_options(name)
    for key in options:
        if key not in known:
            raise InputError(
                f"{name} has no option {key!r}.{nearest_name(key, known)} Options: {', '.join(known) or 'none'}."
            )


def create_model(name: str, space: Space, *, n_classes: int = 0, **options: Any) -> GenerativeModel:
    """An untrained model.

    Arguments:
        name: One of `list_models()`.
        space: What one datum is.
        n_classes: Classes to condition on; 0 for none.
        options: The model's own keyword options.
    Raises:
        InputError: If the model or an option is unknown, or does not fit.
    """
    import torch

    cls = model_class(name)
    check_options(name, options)
    known = model_options(name)
    for key, value in options.items():
        expected = known[key][0]
        if not _fits(value, expected):
            raise InputError(f"Option {key} of {name} is {value!r}; it must be {_say(expected)}.")
    said = ", ".join([f"{key}={value!r}" for key, value in options.items()] + [f"n_classes={n_classes}", str(space)])
    what = f"{cls.__name__} with {said}"
    with _counting(what):
        # Tensors without content cost nothing, so that absurd options are told before memory is taken for them.
        try:
            with torch.device("meta"), _without_content():
                cls(space, n_classes, **options)
        except TooLarge:
            raise
        except Exception as error:  # What is wrong otherwise, or needs a tensor's content, is told when it is made.
            if "overflow" in str(error).lower():
                raise TooLarge(f"{what} is too large; give smaller options.") from None
        return cls(space, n_classes, **options)


def _without_content() -> contextlib.AbstractContextManager[object]:
    """Within it nothing is done that only changes a tensor's content: on `meta` that took seconds for nothing."""
    import torch
    from torch.overrides import TorchFunctionMode

    skipped = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.functional.normalize)

    class WithoutContent(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", "") == "torch.nn.init" or func in skipped:
                return kwargs.get("out", [*args, *kwargs.values()][0])
            return func(*args, **kwargs)

    return WithoutContent()


class TooLarge(InputError):
    """A model of more parameters than it may have."""


_LIMIT = contextvars.ContextVar("limit", default=MAX_PARAMETERS)


@contextlib.contextmanager
def at_most(n_parameters: int) -> Iterator[None]:
    """Within it `create_model` refuses models of more parameters and buffers, some more allowed, before they are made.

    Raises:
        TooLarge: From `create_model`.
    """
    token = _LIMIT.set(2 * n_parameters + 2**16)
    try:
        yield
    finally:
        _LIMIT.reset(token)


@contextlib.contextmanager
def _counting(what: str) -> Iterator[None]:
    """Within it modules are counted as they are made, and no more than those of one model, twice made, are allowed.

    Raises:
        TooLarge: From what makes more.
    """
    from torch.nn.modules import module

    n_left, n_modules = 2 * _LIMIT.get(), 0

    def count(parent: Any, name: str, tensor: Tensor | None) -> None:
        nonlocal n_left
        n_left -= 0 if tensor is None else tensor.numel()
        if n_left < 0:
            raise TooLarge(f"{what} has more than {_LIMIT.get():,} parameters; give smaller options.")

    def count_module(parent: Any, name: str, child: Any) -> None:
        nonlocal n_modules
        n_modules += 1
        if n_modules > MAX_LAYERS:
            raise TooLarge(f"{what} has more than {MAX_LAYERS:,} layers; give smaller options.")

    hooks = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
        module.register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value is of an option's annotated type; an int passes for a float, a bool for nothing but a bool."""
    if expected is Any:
        return True
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(expected))
    if origin is typing.Literal:
        return value in typing.get_args(expected)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else origin or expected)


def _say(expected: Any) -> str:
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    return getattr(expected, "__name__", str(expected))
