"""Calls in a script that has changed torch's settings, or that has threads: their numbers are those of a run."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from rdp_bench.user_reads import working_for

P = ParamSpec("P")
R = TypeVar("R")


def in_usual_settings(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called with torch's defaults, whatever its caller has set; see `torch_settings.usual`.

    One call at a time: the registries, in which the objects of a call stand by name, and torch's settings belong to all
    threads. A call of another thread waits.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turn():
            if "torch" not in sys.modules:  # nothing can have been set
                return function(*args, **kwargs)
            from rdp_bench import torch_settings

            with torch_settings.usual():
                return function(*args, **kwargs)

    return call


_lock = threading.RLock()
_holder: list[int] = []
"""The thread whose turn it is, once for every call within a call."""


@contextmanager
def _turn() -> Iterator[None]:
    if _holder and working_for() == _holder[0]:  # this thread or, which the call waits for, one that its code started
        yield
        return
    with _lock:
        _holder.append(threading.get_ident())
        try:
            yield
        finally:
            _holder.pop()
