"""Errors. Messages say what was asked, what was found, and what to do next."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class RdpBenchError(Exception):
    """Base of all errors that this package raises on purpose; the command line prints them without a traceback."""


class UsageError(RdpBenchError):
    """An invalid request (unknown name, bad value, missing file): exit status 2."""


class DamagedError(RdpBenchError):
    """A stored file differs from what was written."""


class UnreadableError(RdpBenchError):
    """A stored file cannot be read (I/O error, permissions). It may be intact, so it is not deleted."""


class StorageError(RdpBenchError):
    """The cache or the output folder cannot be written; the run stops."""


class FetchError(RdpBenchError):
    """A download failed, or has other content than expected."""


class BadModelError(UsageError):
    """Weights are missing, refused, or do not fit their architecture."""


class BadImageError(UsageError):
    """An image or a data set cannot be read as requested."""


def no_gradient(source: str) -> RdpBenchError:
    """The error of an attack whose source gives it no gradient."""
    return RdpBenchError(
        f"source '{source}': its outputs have no gradient with respect to the images, as after detach() or no_grad(); "
        "attack it through bpda(...), or use square or spsa, which need none"
    )


MANY = 60
"""Up to this many names, an error lists all of them."""

NEAREST = 5


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Around a call of an entry's code: any exception becomes a `UsageError` that begins with `what`."""
    try:
        yield
    except (RdpBenchError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # `sys.exit()` in an entry ends no run
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from error


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UsageError:
    """The error for an unknown name, with the nearest known one.

    >>> print(unknown_name("attack", "mi-fgms", ["fgsm", "mi-fgsm"]))
    unknown attack 'mi-fgms'. Did you mean 'mi-fgsm'? Known: fgsm, mi-fgsm
    >>> print(unknown_name("run", "table1", [], "The runs are in out/runs"))
    unknown run 'table1'. The runs are in out/runs
    >>> print(unknown_name("parameter of defense 'jpeg'", "qualty", ["quality"]))
    unknown parameter 'qualty' of defense 'jpeg'. Did you mean 'quality'? Known: quality
    """
    kind, of, owner = kind.partition(" of ")
    names = sorted(known)
    near = get_close_matches(name, names, n=NEAREST)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = f"Known: {', '.join(names)}" if names else ""
    if len(names) > MANY:
        near = near or get_close_matches(name, names, n=NEAREST, cutoff=0.3)
        listed = f"{len(names)} are known, the nearest: {', '.join(near)}" if near else f"{len(names)} are known"
    rest = ". ".join(filter(None, (listed, hint)))
    return UsageError(f"unknown {kind} '{name}'{of}{owner}.{guess}{' ' + rest if rest else ''}")
