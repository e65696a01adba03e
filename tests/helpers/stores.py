"""What two caches hold, for comparisons bit by bit."""

from hashlib import sha256
from pathlib import Path

from rdp_bench.cache.store import Store

TIMES = {"seconds"}
"""Arrays that are measured, and not computed."""


def contents(cache: Path) -> dict[tuple[str, str, int, int, str], str]:
    """The hash of every array of every shard, except times: by kind, key, rows and name."""
    store = Store(cache)
    found = {}
    for kind, key in store.everything():
        artefact = store.open(kind, key)
        for low, high, _ in artefact.shards():
            for name, array in artefact.read(low, high).items():
                if name not in TIMES:
                    found[kind, key, low, high, name] = sha256(array.tobytes()).hexdigest()
    return found
