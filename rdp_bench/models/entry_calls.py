"""Calls of users' entries: inputs are copies, outputs are checked, and errors name the entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdp_bench import torch_settings
from rdp_bench.errors import RdpBenchError
from rdp_bench.protocols import (
    AuxiliaryLogits,
    Chained,
    Classifier,
    Defense,
    Features,
    GatheredLogits,
    StochasticLogits,
)
from rdp_bench.user_reads import noting_unkeyed

if TYPE_CHECKING:
    from rdp_bench.rng import ImageRng


def written_elsewhere(defense: Defense) -> bool:
    """Whether a defense, or a part of it, is code of a user."""
    if isinstance(defense, Chained):
        return any(map(written_elsewhere, defense.parts))
    module = type(defense).__module__
    return module.partition(".")[0] != "rdp_bench" or module == "rdp_bench.api.wrap"


@contextmanager
def naming_entry(what: str) -> Iterator[None]:
    """Turn the errors of a call of an entry into an `RdpBenchError` that starts with `what`.

    Out-of-memory errors pass through, because the engine retries with smaller batches. Settings of the process that
    the call changed are an error too, and are restored: they would change the numbers of others.
    """
    before = torch_settings.read()
    try:
        yield
        if changed := torch_settings.restore(before):
            raise RdpBenchError(
                f"{what} changed {' and '.join(changed)} of this process, which would change other results; let it "
                "restore what it sets"
            )
    except (RdpBenchError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # `sys.exit()` in an entry ends no run
        if is_out_of_memory(error):
            raise
        raise RdpBenchError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        torch_settings.restore(before)


_MEMORY_RAN_OUT = (
    "not enough memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # no workspace of cuDNN fits, or nothing supports it
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, so that a smaller batch may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _MEMORY_RAN_OUT)


def not_even_one(device: str, error: BaseException) -> RdpBenchError:
    """The error where one image is too much; it quotes the device's, which may have meant something else."""
    return RdpBenchError(f"out of memory on {device} even with one image: {str(error).partition(chr(10))[0]}")


def device_failed(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, leaves the GPU unusable for the rest of this process.

    After an illegal access, a failed assertion on the device or a memory fault, every later call fails.
    """
    kinds: Any = getattr(torch, "AcceleratorError", ())
    while error is not None:
        if (isinstance(error, kinds) or "CUDA error: " in str(error)) and not is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


class CheckedClassifier:
    """A user's classifier, called on a copy of the images and with its logits checked; see `Classifier`."""

    def __init__(self, inner: Classifier, name: str) -> None:
        self._inner: Any = inner
        self.name = name
        self.classes = int(inner.classes)

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, classes]`.

        Raises:
            RdpBenchError: the classifier raised an error, or returned anything else.
        """
        with naming_entry(f"model '{self.name}'"), noting_unkeyed(f"model '{self.name}'"):
            output = self._inner(x.clone(), zoom)
        return checked_logits(output, len(x), self.classes, f"model '{self.name}'")

    def record(self) -> dict[str, Any]:
        """Return the record of the classifier."""
        record: dict[str, Any] = self._inner.record()
        return record

    def __getattr__(self, attribute: str) -> Any:
        if "_inner" not in self.__dict__ or attribute in _ABILITIES:  # while it is copied; what has a class below
            raise AttributeError(attribute)
        return getattr(self._inner, attribute)

    def _call(self, method: Callable[..., Any], x: Tensor, *args: Any) -> Any:
        with naming_entry(f"model '{self.name}'"), noting_unkeyed(f"model '{self.name}'"):
            return method(x.clone(), *args)

    def _logits(self, output: Any, x: Tensor, method: str) -> Tensor:
        return checked_logits(output, len(x), self.classes, f"{method} of model '{self.name}'")


class _Auxiliary(CheckedClassifier):
    def logits_and_aux(self, x: Tensor, zoom: float = 1.0) -> tuple[Tensor, Tensor]:
        main, aux = self._call(self._inner.logits_and_aux, x, zoom)
        return self._logits(main, x, "logits_and_aux"), self._logits(aux, x, "logits_and_aux")


class _Gathered(CheckedClassifier):
    def logits_of_gathered(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
        return self._logits(self._call(self._inner.logits_of_gathered, x, rows, columns, zoom), x, "logits_of_gathered")


class _Features(CheckedClassifier):
    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        found: list[Tensor] = self._call(self._inner.features, x, levels, zoom)
        return found


class _Stochastic(CheckedClassifier):
    def stochastic_logits(self, x: Tensor, rng: ImageRng, zoom: float = 1.0) -> Tensor:
        return self._logits(self._call(self._inner.stochastic_logits, x, rng, zoom), x, "stochastic_logits")


_ABILITIES: dict[str, tuple[type, type[CheckedClassifier]]] = {
    "logits_and_aux": (AuxiliaryLogits, _Auxiliary),
    "logits_of_gathered": (GatheredLogits, _Gathered),
    "features": (Features, _Features),
    "stochastic_logits": (StochasticLogits, _Stochastic),
}
"""Optional methods of classifiers -> their protocol, and the class that calls and checks them."""


def checked(inner: Classifier, name: str) -> CheckedClassifier:
    """A user's classifier as the engine calls it, with the optional abilities that it has."""
    bases = tuple(kind for ability, kind in _ABILITIES.values() if isinstance(inner, ability))
    kind: type[CheckedClassifier] = type("CheckedClassifier", bases, {}) if bases else CheckedClassifier
    return kind(inner, name)


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


def checked_images(purified: Any, x: Tensor, what: str, *, bounded: bool = True) -> Tensor:
    """Return a defense's output for `x` `[n, 3, h, w]`, or raise an error that starts with `what`.

    Raises:
        RdpBenchError: it is no tensor, has another shape than `[n, 3, s, s]`, a pixel that is not finite or, with
            `bounded`, one outside of [0, 1].
    """
    if not isinstance(purified, Tensor):
        raise RdpBenchError(f"{what} returned {type(purified).__name__}, not a tensor")
    if purified.ndim != 4 or purified.shape[:2] != x.shape[:2] or purified.shape[2] != purified.shape[3]:
        raise RdpBenchError(f"{what} returned shape {list(purified.shape)} for {list(x.shape)}")
    low, high = purified.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise RdpBenchError(f"{what} returned NaN or infinite pixels")
    if bounded and (float(low) < -1e-4 or float(high) > 1 + 1e-4):
        raise RdpBenchError(f"{what} left the range [0, 1]")
    return purified
