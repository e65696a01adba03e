"""What can go wrong, in words: what was asked, what was found, what to do next."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class RdpBenchError(Exception):
    """Base of every error this package raises on purpose; the command line prints it bare."""


class UsageError(RdpBenchError):
    """The request itself is wrong (unknown name, bad value, missing file): exit status 2."""


class DamagedError(RdpBenchError):
    """A stored file is not what was written."""


class UnreadableError(RdpBenchError):
    """The system could not read a stored file (an I/O error, no permission): it may be whole, so it is not deleted."""


class StorageError(RdpBenchError):
    """The cache or the output folder cannot be written: nothing more could be kept, so a run stops."""


class FetchError(RdpBenchError):
    """Something from the web that did not come, or is not what it should be."""


class BadModelError(UsageError):
    """Weights that are missing, refused, or do not fit their architecture."""


class BadImageError(UsageError):
    """An image or a dataset that cannot be read as asked."""


MANY = 60
"""Names that an error still lists one by one."""

NEAREST = 5


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Around a call of an entry's code: whatever it raises becomes a `UsageError` that begins with `what`."""
    try:
        yield
    except RdpBenchError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from error


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that is not there, with the nearest one that is.

    >>> print(unknown_name("attack", "mi-fgms", ["fgsm", "mi-fgsm"]))
    unknown attack 'mi-fgms'. Did you mean 'mi-fgsm'? Known: fgsm, mi-fgsm
    >>> print(unknown_name("run", "table1", [], "Runs lie in out/runs"))
    unknown run 'table1'. Runs lie in out/runs
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=NEAREST)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = f"Known: {', '.join(names)}" if names else ""
    if len(names) > MANY:
        near = near or get_close_matches(name, names, n=NEAREST, cutoff=0.3)
        listed = f"{len(names)} are known, the nearest: {', '.join(near)}" if near else f"{len(names)} are known"
    rest = ". ".join(filter(None, (listed, hint)))
    return UsageError(f"unknown {kind} '{name}'.{guess}{' ' + rest if rest else ''}")
