"""What two caches hold, for comparisons bit by bit; in how many files, does not matter."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from rdp_bench.cache.store import Artefact, Store
from rdp_bench.errors import DamagedError

TIMES = {"seconds"}
"""Arrays that are measured, and not computed."""

Row = tuple[str, str, int]
"""Kind and key of an artefact, and an image of it."""


def rows(cache: Path) -> set[Row]:
    """Every image of every artefact that is stored."""
    return {(artefact.kind, artefact.key, row) for artefact, row in _stored(cache)}


def contents(cache: Path) -> dict[tuple[Row, str], str]:
    """The hash of every array of every image, except times: by row and name."""
    found = {}
    for artefact, row in _stored(cache):
        for name, array in artefact.read(row, row + 1).items():
            if name not in TIMES:
                place = (artefact.kind, artefact.key, row)
                found[place, name] = sha256(array.tobytes()).hexdigest()
    return found


def _stored(cache: Path) -> Iterator[tuple[Artefact, int]]:
    store = Store(cache)
    for kind, key in store.everything():
        try:
            artefact = store.open(kind, key)
        except DamagedError:
            continue  # another process is about to write its record
        missing = {row for low, high in artefact.missing(artefact.n) for row in range(low, high)}
        yield from ((artefact, row) for row in range(artefact.n) if row not in missing)
