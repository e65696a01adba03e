"""Workers that stay between the runs of one command, with the networks that they have loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_releases: list[Callable[[], None]] | None = None


@contextmanager
def keeping() -> Iterator[None]:
    """Inside this block, an executor that can keep its workers does; they end with the block."""
    global _releases
    if _releases is not None:
        yield
        return
    _releases = []
    try:
        yield
    finally:
        releases, _releases = _releases, None
        for release in releases:
            release()


def wanted(release: Callable[[], None]) -> bool:
    """Whether workers are to stay; `release` then ends them, once the block ends."""
    if _releases is None:
        return False
    if release not in _releases:
        _releases.append(release)
    return True
