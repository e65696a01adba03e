"""Copies of remote shards on this machine, so that each is fetched once.

    USER'S CACHE/rdp-bench-copies/3f2a...    one object of a store, as it was when it had this size and tag

A copy is named by its object's URL, tag and size, so that a copy of an object that was replaced is never read. What is
read from it is checked like the shard itself; the store deletes a copy that fails. The folder is bounded: the copies
that were not read for the longest time are deleted.
"""

import contextlib
import io
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple

from rdp_bench.cache.user import user_cache

LIMIT = 20 * 10**9
"""Bytes that copies may take in all."""

_since_check = LIMIT
"""Bytes copied by this process since the folder's size was last measured."""


class Copy(NamedTuple):
    """Which object, and in which state."""

    url: str
    state: str

    @property
    def path(self) -> Path:
        name = sha256(f"{self.url}\n{self.state}".encode()).hexdigest()
        return folder() / name[:2] / name


def folder() -> Path:
    """Where copies are."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else user_cache()) / "rdp-bench-copies"


def opened(copy: Copy, fetch: Callable[[], bytes]) -> IO[bytes]:
    """The copy, opened for reading; `fetch` gets the object's bytes where there is none.

    Where this machine has no room for copies, the bytes are read from memory.
    """
    path = copy.path
    with contextlib.suppress(OSError):
        file = path.open("rb")
        os.utime(path)  # it was used
        return file
    content = fetch()
    with contextlib.suppress(OSError):
        _keep(path, content)
    return io.BytesIO(content)


def forget(copy: Copy) -> bool:
    """Delete a copy; whether there was one."""
    with contextlib.suppress(OSError):
        copy.path.unlink()
        return True
    return False


def _keep(path: Path, content: bytes) -> None:
    global _since_check
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _since_check += len(content)
    if _since_check > LIMIT // 20:
        _since_check = 0
        shrink(LIMIT)


def shrink(limit: int) -> int:
    """Delete the copies that were not read for the longest time until `limit` bytes are left; returns how many."""
    found = []
    for path in folder().glob("??/*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    total, count = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total, count = total - size, count + 1
    return count
