"""Arguments as a run can record them: numbers of numpy and torch as Python's, paths as labels."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_plain_values(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called with Python's numbers, texts and lists where its caller gives those of numpy or torch."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*map(plain_value, args), **{name: plain_value(value) for name, value in kwargs.items()})

    return call


def plain_value(value: Any) -> Any:
    """A number or array of numpy or torch, or a list of them, as Python's; others as they are."""
    if type(value) in (list, tuple):
        return type(value)(map(plain_value, value))
    for library, kinds in _KINDS.items():
        home = sys.modules.get(library)  # not imported here: without it, no value is of it
        if any(isinstance(value, getattr(home, kind, ())) for kind in kinds):
            return value.tolist()
    return value


_KINDS = {"numpy": ("generic", "ndarray"), "torch": ("Tensor",)}
"""Classes of numbers, and of arrays of them, by library."""


def path_text(value: Any) -> Any:
    """A path as a text that names the file or folder, and no entry of the same name; other values as they are."""
    if not isinstance(value, PurePath):
        return value
    return str(value) if len(value.parts) > 1 else f"{os.curdir}{os.sep}{value}"
