"""Files of the cache and of results: written whole or not at all; what a read may find, told apart."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from rdp_bench.cache.url import UrlPath
from rdp_bench.errors import DamagedError, StorageError, UnreadableError

Location = Path | UrlPath
"""A file or folder of a store: on this machine, or in an object store."""


def write_atomic(path: Location, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    with writing(path):
        if isinstance(path, UrlPath):
            path.put(content)
        else:
            _replace(path, lambda file: file.write(content))


def write_atomic_by(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` write a file that is too large to hold; a reader sees the old file or the whole new one.

    Raises:
        StorageError: as `write_atomic`.
    """
    with writing(path):
        _replace(path, write)


@contextlib.contextmanager
def writing(path: Location) -> Iterator[None]:
    """Errors of writing `path` name it.

    Raises:
        StorageError: for every `OSError` inside.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free space, or name another folder"
        ) from error


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # Gone already after the rename; left over where the disk filled up.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Exclusive lock between processes on `folder`; does nothing where the system cannot lock a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network's file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def opened(path: Location) -> Iterator[IO[bytes]]:
    """A file to be read; errors while it is read are told apart too.

    Raises:
        DamagedError: there is no such file.
        UnreadableError: the system could not read it.
    """
    try:
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    except OSError as error:
        raise UnreadableError(
            f"{path}: cannot be read ({error.strerror or error}); try again, and delete the file if that persists"
        ) from error


def read_file(path: Location) -> bytes:
    """A file's bytes; raises as `opened`."""
    with opened(path) as file:
        return file.read()


def children(folder: Location) -> list[Location]:
    """What is directly in a folder, by name; nothing where there is no such folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []
