"""Calls in a script that has changed torch's settings: their numbers are those of a run."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_usual_settings(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called with torch's defaults, whatever its caller has set; see `torch_settings.usual`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch" not in sys.modules:  # nothing can have been set
            return function(*args, **kwargs)
        from rdp_bench import torch_settings

        with torch_settings.usual():
            return function(*args, **kwargs)

    return call
