"""Calls of entries that users write: they get copies, their output is checked, and errors name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rdp_bench.errors import RdpBenchError
from rdp_bench.protocols import Classifier
from rdp_bench.user_reads import noting_unkeyed

_GIVE_LOGITS = ("stochastic_logits", "taken")
_TAKE_IMAGES = (*_GIVE_LOGITS, "features", "logits_and_aux")
"""Optional methods of `protocols.Classifier` whose first argument is images."""


@contextmanager
def naming_entry(what: str) -> Iterator[None]:
    """Around a call of an entry: what it raises becomes an `RdpBenchError` that begins with `what`.

    Running out of memory passes through: the engine answers it with smaller batches.
    """
    try:
        yield
    except RdpBenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RdpBenchError(f"{what}: {type(error).__name__}: {error}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


class CheckedClassifier:
    """A user's classifier as the engine calls it: on a copy of the images, its logits checked; see `Classifier`."""

    def __init__(self, inner: Classifier, name: str) -> None:
        self._inner = inner
        self.name = name
        self.classes = int(inner.classes)

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]`.

        Raises:
            RdpBenchError: the classifier raised, or returned something else.
        """
        with naming_entry(f"model '{self.name}'"), noting_unkeyed(f"model '{self.name}'"):
            output = self._inner(x.clone(), zoom)
        return checked_logits(output, len(x), self.classes, f"model '{self.name}'")

    def record(self) -> dict[str, Any]:
        """The classifier's own."""
        return self._inner.record()

    def __getattr__(self, attribute: str) -> Any:
        if "_inner" not in self.__dict__:  # while it is being copied
            raise AttributeError(attribute)
        found = getattr(self._inner, attribute)
        return self._on_copies(attribute, found) if attribute in _TAKE_IMAGES else found

    def _on_copies(self, attribute: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with naming_entry(f"model '{self.name}'"), noting_unkeyed(f"model '{self.name}'"):
                output = method(x.clone(), *args, **kwargs)
            if attribute in _GIVE_LOGITS:
                return checked_logits(output, len(x), self.classes, f"{attribute} of model '{self.name}'")
            return output

        return call


def checked_logits(output: Any, n: int, classes: int, what: str) -> Tensor:
    """The logits `[n, classes]` in a classifier's output.

    A tuple, list or dict and an object with `logits` (Hugging Face's ModelOutput) are taken for their logits, the first
    element of a sequence.

    Raises:
        RdpBenchError: there are no logits of this shape; it begins with `what`.
    """
    found = output
    if isinstance(found, dict) and "logits" in found:
        found = found["logits"]
    elif not isinstance(found, Tensor) and hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise RdpBenchError(f"{what} returned {type(output).__name__}, expected logits: a float tensor [n, classes]")
    if found.shape != (n, classes):
        hint = ""
        if found.ndim == 1:
            hint = "; return the logits, not their argmax"
        elif found.ndim == 2 and len(found) == n:
            hint = f"; its outputs are {found.shape[1]} classes, it says classes = {classes}"
        raise RdpBenchError(f"{what} returned shape {list(found.shape)}, expected logits {[n, classes]}{hint}")
    if not found.is_floating_point():
        raise RdpBenchError(f"{what} returned {found.dtype}, expected float logits")
    return found
