"""Content-addressed folders of arrays: atomic, resumable, verified on every read.

    ROOT/adv/3f/3f2a.../record.json                  what it is, readable
    ROOT/adv/3f/3f2a.../000000-000020.safetensors    images 0..19, written when that batch is done

A shard is written under a temporary name and renamed, and carries the sha256 of its own content. So a
killed run loses at most one batch, two runs may work on one artefact, and a flipped bit is found.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import DamagedError, StorageError
from rdp_bench.keys import Record, canonical, explain, key_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

log = logging.getLogger(__name__)

_SHARD = re.compile(r"(\d{6})-(\d{6})\.safetensors")
_COMPRESSION_LEVEL = 1


def default_root() -> Path:
    """Where artefacts live unless told otherwise: $RDP_BENCH_CACHE, else the user's cache folder."""
    if given := os.environ.get("RDP_BENCH_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else user_cache()) / "rdp-bench"


def user_cache() -> Path:
    """The user's cache folder; a folder here, with a warning, where the user has no home (many containers)."""
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        here = Path(".cache").absolute()
        _say_once(f"this user has no home folder; files are cached in {here}. Set HOME, or name a folder with --cache")
        return here


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free space, or name another folder"
        ) from error
    finally:
        # Gone already after the rename; left over where the disk filled up.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Among the processes that say so of the same `folder`, where the system can lock one."""
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


@dataclass(frozen=True)
class Artefact:
    """The arrays of one record, one row an image, in shards of consecutive images."""

    folder: Path
    key: str
    record: Record
    n: int

    def shards(self) -> list[tuple[int, int, Path]]:
        """What is on disk, as (first, past-the-last, file)."""
        found: list[tuple[int, int, Path]] = []
        with contextlib.suppress(FileNotFoundError):
            named = ((_SHARD.fullmatch(path.name), path) for path in self.folder.iterdir())
            found = [(int(match[1]), int(match[2]), path) for match, path in named if match]
        return sorted(found)

    def missing(self, batch: int) -> list[tuple[int, int]]:
        """Ranges still to do, cut at multiples of `batch` whatever is done already."""
        have = [False] * self.n
        for low, high, _ in self.shards():
            have[low:high] = [True] * (min(high, self.n) - low)
        ranges: list[tuple[int, int]] = []
        for i, done in enumerate(have):
            if done:
                continue
            if ranges and ranges[-1][1] == i and i % batch:
                ranges[-1] = (ranges[-1][0], i + 1)
            else:
                ranges.append((i, i + 1))
        return ranges

    @property
    def complete(self) -> bool:
        """Whether every image is there (its content is checked when it is read), and the record."""
        return not self.missing(self.n or 1) and self._described

    def write(self, low: int, high: int, arrays: "Mapping[str, NDArray[Any]]") -> None:
        """Store rows `low..high` of every array (first axis: images); atomic."""
        self.describe()
        write_atomic(self.folder / f"{low:06d}-{high:06d}.safetensors", _pack(arrays))

    def take_over(self, other: "Artefact") -> int:
        """Link the shards of `other`, whose first rows are this one's, that this one lacks; returns how many."""
        missing = self.missing(self.n or 1)
        wanted = [path for low, high, path in other.shards() if any(a < high and low < b for a, b in missing)]
        if wanted:
            self.describe()
        for path in wanted:
            link = self.folder / path.name
            try:
                link.hardlink_to(path)
            except (FileExistsError, FileNotFoundError):
                continue  # another run was faster, or pruned it: then it is made again
            except OSError:  # a file system without links
                write_atomic(link, path.read_bytes())
        return len(wanted)

    def read(self, low: int = 0, high: int | None = None) -> "Arrays":
        """Rows `low..high` of every array, each shard checked against its hash.

        Raises:
            DamagedError: a shard is damaged, or rows are missing.
        """
        import numpy as np

        high = self.n if high is None else high
        out: dict[str, Any] = {}
        have = np.zeros(high - low, bool)
        shards = self.shards()
        for first, last, path in shards:
            if (first, last) == (low, high):
                return _unpack(path, last - first)  # what a run reads: one batch, as it was written
        for first, last, path in shards:
            if last <= low or first >= high:
                continue
            a, b = max(first, low), min(last, high)
            for name, array in _unpack(path, last - first).items():
                if name not in out:
                    out[name] = np.empty((high - low, *array.shape[1:]), array.dtype)
                out[name][a - low : b - low] = array[a - first : b - first]
            have[a - low : b - low] = True
        if not have.all():
            raise DamagedError(f"{self.folder}: {int((~have).sum())} of {high - low} images are not there; run again")
        return out

    def describe(self) -> None:
        """Write the record beside the shards, unless it is there and whole."""
        if not self._described:
            text = json.dumps(self.record, indent=1, sort_keys=True)
            write_atomic(self.folder / "record.json", text.encode())

    @property
    def _described(self) -> bool:
        try:
            return bool(key_of(json.loads((self.folder / "record.json").read_text())) == self.key)
        except (OSError, ValueError, TypeError):
            return False

    def heal(self) -> list[Path]:
        """Delete the shards that fail their check, so that a run makes them again; returns them."""
        broken = []
        for first, last, path in self.shards():
            try:
                _unpack(path, last - first)
            except DamagedError as error:
                log.warning("%s; deleted, it will be made again", error)
                path.unlink(missing_ok=True)
                broken.append(path)
        return broken


class Store:
    """All artefacts under one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def artefact(self, kind: str, record: Record, n: int) -> Artefact:
        """The artefact of `record` (which may not exist yet)."""
        key = key_of(record)
        return Artefact(self.folder(kind, key), key, record, n)

    def folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def open(self, kind: str, key: str) -> Artefact:
        """A stored artefact by its key.

        Raises:
            DamagedError: it is not there, or its record is not the one its key was made from.
        """
        folder = self.folder(kind, key)
        try:
            record = json.loads((folder / "record.json").read_text())
            found = key_of(record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"{folder}: no readable record ({error}); run the grid again") from error
        if found != key:
            raise DamagedError(f"{folder}: its record does not hash to its key; delete the folder and run again")
        return Artefact(folder, key, record, int(record["n"]))

    def everything(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of every stored artefact, whether its record is there or not."""
        for folder in sorted(self.root.glob("*/??/*")):
            if folder.is_dir() and len(folder.name) == 64:  # in hexadecimal, what SHA-256 gives
                yield folder.parent.parent.name, folder.name

    def nearest(self, kind: str, record: Record) -> list[str]:
        """Why `record` missed: its differences from the stored record that is most like it."""
        best: list[str] | None = None
        for found, key in self.everything():
            if found != kind:
                continue
            with contextlib.suppress(DamagedError):
                lines = explain(json.loads(canonical(record)), json.loads(canonical(self.open(kind, key).record)))
                if best is None or len(lines) < len(best):
                    best = lines
        return best or []

    def delete(self, kind: str, key: str) -> int:
        """Remove one artefact; returns the bytes it held."""
        folder = self.folder(kind, key)
        size = sum(path.stat().st_size for path in folder.iterdir())
        shutil.rmtree(folder)
        return size


def _pack(arrays: "Mapping[str, NDArray[Any]]") -> bytes:
    import numpy as np
    import zstandard
    from safetensors.numpy import save

    blobs, meta = {}, {}
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array).tobytes()
        packed = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL).compress(plain)
        blobs[name] = np.frombuffer(packed, np.uint8)
        meta[name] = json.dumps({"shape": array.shape, "dtype": array.dtype.str, "sha256": sha256(packed).hexdigest()})
    return save(blobs, meta)


def _unpack(path: Path, rows: int) -> "Arrays":
    import numpy as np
    import zstandard
    from safetensors import SafetensorError, safe_open

    try:
        out: dict[str, Any] = {}
        with safe_open(path, "numpy") as file, ThreadPoolExecutor(1) as beside:
            for name, text in (file.metadata() or {}).items():
                meta = json.loads(text)
                packed = file.get_tensor(name)
                # Both free the interpreter lock: checking takes no time of its own where there are two cores.
                digest = beside.submit(sha256, packed)
                plain = zstandard.ZstdDecompressor().decompress(packed)
                if digest.result().hexdigest() != meta["sha256"]:
                    raise DamagedError(f"{path}: '{name}' does not have the hash it was written with")
                out[name] = np.frombuffer(plain, np.dtype(meta["dtype"])).reshape(tuple(meta["shape"]))
    except (SafetensorError, zstandard.ZstdError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from error
    if not out or any(len(array) != rows for array in out.values()):
        raise DamagedError(f"{path}: does not hold {rows} images")
    return out
