"""Calls of users' entries: inputs are copies, outputs are checked, and errors name the entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rdp_bench.errors import RdpBenchError
from rdp_bench.protocols import Classifier

_GIVE_LOGITS = ("stochastic_logits", "logits_of_gathered")
_TAKE_IMAGES = (*_GIVE_LOGITS, "features", "logits_and_aux")
"""Optional methods of `protocols.Classifier` whose first argument is a batch of images."""


@contextmanager
def naming_entry(what: str) -> Iterator[None]:
    """Turn the errors of a call of an entry into an `RdpBenchError` that starts with `what`.

    Out-of-memory errors pass through, because the engine retries with smaller batches.
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
    """Return whether an error means that memory ran out, so that a smaller batch may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


class CheckedClassifier:
    """A user's classifier, called on a copy of the images and with its logits checked; see `Classifier`."""

    def __init__(self, inner: Classifier, name: str) -> None:
        self._inner = inner
        self.name = name
        self.classes = int(inner.classes)

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, classes]`.

        Raises:
            RdpBenchError: the classifier raised an error, or returned anything else.
        """
        with naming_entry(f"model '{self.name}'"):
            output = self._inner(x.clone(), zoom)
        return checked_logits(output, len(x), self.classes, f"model '{self.name}'")

    def record(self) -> dict[str, Any]:
        """Return the record of the classifier."""
        return self._inner.record()

    def __getattr__(self, attribute: str) -> Any:
        if "_inner" not in self.__dict__:  # while it is being copied
            raise AttributeError(attribute)
        found = getattr(self._inner, attribute)
        return self._on_copies(attribute, found) if attribute in _TAKE_IMAGES else found

    def _on_copies(self, attribute: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with naming_entry(f"model '{self.name}'"):
                output = method(x.clone(), *args, **kwargs)
            if attribute in _GIVE_LOGITS:
                return checked_logits(output, len(x), self.classes, f"{attribute} of model '{self.name}'")
            return output

        return call


def checked_logits(output: Any, n: int, classes: int, what: str) -> Tensor:
    """Return the logits `[n, classes]` in a classifier's output.

    Args:
        output: a tensor, a tuple or list whose first element is the logits, a dict with the key `logits`, or an object
            with the attribute `logits` (Hugging Face's ModelOutput).
        n: number of images.
        classes: number of classes.
        what: the classifier's name, for errors.

    Raises:
        RdpBenchError: the output contains no float logits of this shape.
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
