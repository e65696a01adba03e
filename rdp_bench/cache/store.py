"""Content-addressed folders of arrays: atomic, resumable, verified on every read.

    ROOT/rdp-bench-cache.json                        marks ROOT as a cache, with its format
    ROOT/adv/3f/3f2a.../record.json                  every fact that the key is made of, readable
    ROOT/adv/3f/3f2a.../000000-000020.safetensors    images 0..19, written when that batch is done

A shard is written under a temporary name and renamed, so a killed run loses at most one batch and two runs may work
on one artefact. Its header holds the artefact's key and kind, its rows, the name, dtype, shape and sha256 of every
array, and what made it (versions, device, time); the header has a sha256 too. A shard that is damaged, or that does
not belong where it lies, is deleted when it is read, and the next run makes it again.
"""

import contextlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import DamagedError, RdpBenchError, StorageError, UnreadableError, UsageError
from rdp_bench.keys import Record, canonical_json, diff_records, key_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

log = logging.getLogger(__name__)

FORMAT = 2
"""Of shards and of the cache folder. Bump it when this version would misread what another one wrote."""

MARKER = "rdp-bench-cache.json"
"""The file that proves a folder to be a cache: only such a folder is pruned."""

STALE = 86400.0
"""Seconds after which a temporary file is what a killed run left."""


@dataclass(frozen=True)
class ArraySpec:
    """What a kind declares of one array.

    `axes` follow the first one, which is images: a number is a size, equal names are equal sizes, and an axis whose
    name ends in "?" may be absent.
    """

    dtypes: tuple[str, ...]
    axes: tuple[int | str, ...] = ()
    optional: bool = False


ANY = "*"
"""Declares arrays of any names, at least one."""

KINDS: dict[str, dict[str, ArraySpec]] = {
    "adv": {"delta": ArraySpec(("int8", "int16"), (3, "size", "size"))},
    "eval": {
        "predicted": ArraySpec(("int32",), ("draws?",)),
        "label": ArraySpec(("int32",)),
        "margin": ArraySpec(("float32",), ("draws?",)),
        "seconds": ArraySpec(("float32",)),
    },
    # One array per measurement, which the record names; see `metrics.measurements`.
    "image_quality": {ANY: ArraySpec(("float32",))},
    "sample": {"purified": ArraySpec(("uint8",), (3, "size", "size"))},
    # One photograph per shard, of a training: its pixels, or why it could not be read.
    "photos": {
        "pixels": ArraySpec(("uint8",), (3, "height", "width"), optional=True),
        "refused": ArraySpec(("uint8",), ("bytes",), optional=True),
    },
}
"""Every kind of artefact and its arrays; a shard that holds anything else is damaged."""

_SHARD = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")
_HEX = re.compile(r"[0-9a-f]+")
_TEMPORARY = re.compile(
    r"\.(?:record\.json|rdp-bench-cache\.json|[0-9a-f]{16,64}\.json|\d{6,}-\d{6,}\.safetensors)\.[0-9a-f]{8}\.tmp"
)
_CACHE = "cache of rdp-bench"
_COMPRESSION_LEVEL = 1
_LONGEST_HEADER = 1 << 20


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


@dataclass(frozen=True)
class Artefact:
    """The arrays of one record, one row per image, in shards of consecutive images."""

    store: "Store"
    kind: str
    key: str
    record: Record
    n: int

    @property
    def folder(self) -> Path:
        return self.store.folder(self.kind, self.key)

    def shards(self) -> list[tuple[int, int, Path]]:
        """What is on disk, as (first, past-the-last, file)."""
        found: list[tuple[int, int, Path]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            named = ((_SHARD.fullmatch(path.name), path) for path in self.folder.iterdir())
            found = [(int(match[1]), int(match[2]), path) for match, path in named if match]
        return sorted(shard for shard in found if shard[2] not in self.store.rejected)

    def has_shard(self, low: int, high: int) -> bool:
        """Whether exactly these rows are on disk as a shard."""
        path = self._path(low, high)
        return path not in self.store.rejected and path.exists()

    def _path(self, low: int, high: int) -> Path:
        return self.folder / f"{low:06d}-{high:06d}.safetensors"

    def missing(self, batch: int) -> list[tuple[int, int]]:
        """Ranges that are not stored yet, cut at multiples of `batch` even where their neighbours are stored."""
        have = [False] * self.n
        for low, high in [shard[:2] for shard in self.shards()] + self.store.lent.get(self.key, []):
            if low < high <= self.n:
                have[low:high] = [True] * (high - low)
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
        return not self.missing(self.n or 1) and (self._record_written or self.key in self.store.lent)

    def write(self, low: int, high: int, arrays: "Mapping[str, NDArray[Any]]") -> None:
        """Store rows `low..high` of every array (first axis: images); atomic.

        Raises:
            StorageError: the cache cannot be written to.
            ValueError: the arrays are not those of this kind, or the rows not those of this artefact.
        """
        made = {**self.store.made_by, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._put(low, high, _compressed(arrays), made)

    def _put(self, low: int, high: int, packed: "_Packed", made: Record) -> None:
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "key": self.key,
            "rows": [low, high],
            "arrays": packed.arrays,
            "made": made,
        }
        if why := self._misfit(header, low, high):
            raise ValueError(f"{self.kind} {self.key[:12]}, images {low} to {high}: {why}")
        self.write_record()
        path = self._path(low, high)
        write_atomic(path, _serialized(header, packed))
        self.store.rejected.discard(path)

    def copy_shards_of(self, other: "Artefact") -> int:
        """Copy the shards of `other`, whose first rows are this one's, that this one lacks; returns how many.

        Each is checked first, then written with this key in its header. One that is longer than this artefact is cut.
        """
        missing = self.missing(self.n or 1)
        count = 0
        for low, high, path in other.shards():
            end = min(high, self.n)
            if not any(a < end and low < b for a, b in missing):
                continue
            try:
                header, packed = other._open(path, low, high)
                if end == high:
                    packed.check()
                else:
                    packed = _compressed({name: array[: end - low] for name, array in packed.plain().items()})
            except DamagedError as error:
                self.store.reject(path, error)
                continue
            except UnreadableError as error:
                log.warning("%s", error)
                continue
            if self.store.read_only:
                self.store.lent.setdefault(self.key, []).append((low, end))
            else:
                self._put(low, end, packed, header["made"])
            count += 1
        return count

    def read(self, low: int = 0, high: int | None = None) -> "Arrays":
        """Rows `low..high` of every array. A shard that fails its check is deleted, so that a run makes it again.

        Raises:
            DamagedError: rows are missing, or were in a shard that failed its check.
            UnreadableError: the system could not read a file; nothing is deleted.
        """
        import numpy as np

        high = self.n if high is None else high
        out: dict[str, Any] = {}
        have = np.zeros(high - low, bool)
        if self.has_shard(low, high):  # what a run reads: one batch, as it was written
            wanted = [(low, high, self._path(low, high))]
        else:
            wanted = [shard for shard in self.shards() if shard[0] < high and low < shard[1]]
        problems: list[str] = []
        for first, last, path in wanted:
            try:
                plain = self._open(path, first, last)[1].plain()
                if out and any(not _alike(out[name], plain.get(name)) for name in {*out, *plain}):
                    raise DamagedError(f"{path}: its arrays are not like those of the shards before it")
            except DamagedError as error:
                self.store.reject(path, error)
                problems.append(str(error))
                continue
            if (first, last) == (low, high):
                return plain
            a, b = max(first, low), min(last, high)
            for name, array in plain.items():
                if name not in out:
                    out[name] = np.empty((high - low, *array.shape[1:]), array.dtype)
                out[name][a - low : b - low] = array[a - first : b - first]
            have[a - low : b - low] = True
        if not have.all():
            lost = f"{self.folder}: {int((~have).sum())} of {high - low} images are missing; run again"
            raise DamagedError("; ".join([*problems, lost]))
        return out

    def write_record(self) -> None:
        """Write the record beside the shards, unless it is there and whole."""
        if not self._record_written:
            self.store.mark()
            text = json.dumps(self.record, indent=1, sort_keys=True)
            write_atomic(self.folder / "record.json", text.encode())

    @property
    def _record_written(self) -> bool:
        try:
            return bool(key_of(json.loads((self.folder / "record.json").read_bytes())) == self.key)
        except (OSError, ValueError, TypeError, RecursionError):
            return False

    def failing(self) -> Iterator[tuple[Path, DamagedError | UnreadableError]]:
        """Every shard that is damaged, does not belong here, or cannot be read, and why."""
        like: Record | None = None
        for first, last, path in self.shards():
            try:
                _, packed = self._open(path, first, last)
                packed.check()
                outline = {name: [about["dtype"], about["shape"][1:]] for name, about in packed.arrays.items()}
                like = like or outline
                if outline != like:
                    raise DamagedError(f"{path}: its arrays are not like those of the shards before it")
            except (DamagedError, UnreadableError) as error:
                yield path, error

    def drop_damaged(self) -> list[Path]:
        """Delete the shards that fail their check, so that a run makes them again; returns them."""
        broken = []
        for path, error in [*self.failing()]:
            if isinstance(error, DamagedError):
                self.store.reject(path, error)
                broken.append(path)
            else:
                log.warning("%s", error)
        return broken

    def made(self) -> list[Record]:
        """What made each shard: versions, device, threads, time. Shards whose header fails its check are left out."""
        found = []
        for low, high, path in self.shards():
            with contextlib.suppress(RdpBenchError):
                header = _header(path, _read(path, header_only=True))
                if not self._misfit(header, low, high):
                    found.append(header["made"])
        return found

    def _open(self, path: Path, low: int, high: int) -> "tuple[Record, _Packed]":
        """Header and compressed arrays of a shard that belongs here; the arrays' hashes are not checked yet.

        Raises:
            DamagedError: the shard is damaged, or belongs elsewhere.
            UnreadableError: the system could not read it.
        """
        from safetensors.numpy import load

        data = _read(path)
        header = _header(path, data)
        if why := self._misfit(header, low, high):
            raise DamagedError(f"{path}: {why}")
        with _parsing(path):
            blobs = load(data)
        if {*blobs} != {*header["arrays"]} or any(blob.dtype.name != "uint8" for blob in blobs.values()):
            raise DamagedError(f"{path}: does not hold the arrays that its header names")
        return header, _Packed(path, header["arrays"], blobs)

    def _misfit(self, header: Record, low: int, high: int) -> str:
        """Why a shard with this header does not belong here as rows `low..high`; empty if it does."""
        wanted = {"format": FORMAT, "kind": self.kind, "key": self.key, "rows": [low, high]}
        for name, value in wanted.items():
            if header.get(name) != value:
                return f"its {name} is {str(header.get(name))[:80]}, not {value}"
        if not 0 <= low < high <= self.n:
            return f"images {low} to {high} are not among the {self.n} of this artefact"
        if not isinstance(header.get("made"), dict):
            return "it does not say what made it"
        return _misshapen(self.kind, header.get("arrays"), high - low)


class Store:
    """All artefacts under one folder.

    `made_by` is written into every new shard. A `read_only` store writes and deletes nothing; shards that it would have
    copied from other runs count as stored.

    Raises:
        UsageError: the folder is a cache of a newer format.
        UnreadableError: the system could not read its marker.
    """

    def __init__(self, root: Path | None = None, *, read_only: bool = False) -> None:
        self.root = root or default_root()
        self.read_only = read_only
        self.made_by: Record = {}
        self.rejected: set[Path] = set()
        """Shards that failed their check and could not be deleted."""
        self.lent: dict[str, list[tuple[int, int]]] = {}
        """By key, rows that a read-only store would have copied from other runs."""
        found = self._format()
        if found is not None and found > FORMAT:
            raise UsageError(
                f"{self.root} is a cache of format {found}, this version knows {FORMAT}; update rdp-bench, "
                "or name another --cache"
            )

    def artefact(self, kind: str, record: Record, n: int) -> Artefact:
        """The artefact of `record` (which may not exist yet)."""
        return Artefact(self, kind, key_of(record), record, n)

    def folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def open(self, kind: str, key: str) -> Artefact:
        """A stored artefact by its key.

        Raises:
            DamagedError: it does not exist, or its record does not match its key.
            UnreadableError: the system could not read the record.
        """
        if not isinstance(key, str) or len(key) != 64 or not _HEX.fullmatch(key):
            raise DamagedError(f"{str(key)[:80]!r} is not the key of an artefact; run the grid again")
        folder = self.folder(kind, key)
        path = folder / "record.json"
        try:
            record = json.loads(_read(path))
            found = key_of(record)
        except (DamagedError, ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"{folder}: no readable record ({error}); run the grid again") from error
        if found != key:
            raise DamagedError(f"{folder}: its record does not hash to its key; run the grid again")
        n = record.get("n") if isinstance(record, dict) else None
        if not isinstance(n, int) or record.get("kind", kind) != kind:
            raise DamagedError(f"{folder}: its record is not one of kind {kind}; run the grid again")
        return Artefact(self, kind, key, record, n)

    def everything(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of every stored artefact, whether its record is there or not."""
        for kind in sorted(KINDS):
            for folder in sorted((self.root / kind).glob("??/*")):
                key = folder.name
                named = len(key) == 64 and _HEX.fullmatch(key) and folder.parent.name == key[:2]
                if named and folder.is_dir() and not folder.is_symlink():
                    yield kind, key

    def closest_record_diff(self, kind: str, record: Record) -> list[str]:
        """Why `record` missed: its differences from the stored record that is most like it."""
        best: list[str] | None = None
        for found, key in self.everything():
            if found != kind:
                continue
            with contextlib.suppress(DamagedError, UnreadableError):
                lines = diff_records(
                    json.loads(canonical_json(record)), json.loads(canonical_json(self.open(kind, key).record))
                )
                if best is None or len(lines) < len(best):
                    best = lines
        return best or []

    def reject(self, path: Path, why: object) -> None:
        """Delete a file whose content failed its check; where that cannot be, ignore it from now on."""
        if self.read_only:
            log.warning("%s; it would be deleted and made again", why)
            self.rejected.add(path)
            return
        try:
            path.unlink(missing_ok=True)
            log.warning("%s; deleted, the next run makes it again", why)
        except OSError as error:
            log.warning("%s; it cannot be deleted (%s) and is ignored", why, error.strerror or error)
            self.rejected.add(path)

    # --- the folder itself ---

    def mark(self) -> None:
        """Mark the folder as a cache.

        Raises:
            StorageError: it cannot be written to.
        """
        if not self.marked:
            content = {"what": _CACHE, "format": FORMAT, "sha256": _marker_hash(FORMAT)}
            write_atomic(self.root / MARKER, json.dumps(content).encode())

    @property
    def marked(self) -> bool:
        """Whether the folder is proven to be a cache of this format."""
        return self._format() == FORMAT

    def _format(self) -> int | None:
        """The format that the marker names; None where there is no marker, or a damaged one."""
        try:
            content = json.loads(_read(self.root / MARKER))
            found = content["format"]
            return found if content["sha256"] == _marker_hash(found) and type(found) is int else None
        except (DamagedError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def delete(self, kind: str, key: str) -> int:
        """Remove the files of one artefact, and its folder if it is then empty; returns the bytes they held."""
        folder = self.folder(kind, key)
        size = 0
        for path in sorted(folder.iterdir()):
            if path.name == "record.json" or _SHARD.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name):
                size += path.lstat().st_size
                path.unlink(missing_ok=True)
        for emptied in (folder, folder.parent):
            with contextlib.suppress(OSError):
                emptied.rmdir()
        return size

    def leftovers(self) -> list[Path]:
        """Temporary files of this package that killed runs left more than a day ago."""
        folders = [self.root, self.root / "lists", self.root / "pixels"]
        folders += [self.folder(kind, key) for kind, key in self.everything()]
        found = []
        for folder in folders:
            with contextlib.suppress(OSError):
                found += [
                    path
                    for path in sorted(folder.iterdir())
                    if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < time.time() - STALE
                ]
        return found

    def image_lists(self) -> list[Path]:
        """What the cache knows of images: the lists of runs, and indexes of pixel hashes."""
        digits = {"lists": 64, "pixels": 16}
        return [
            path
            for name, count in digits.items()
            for path in sorted((self.root / name).glob("*.json"))
            if len(path.stem) == count and _HEX.fullmatch(path.stem)
        ]


# --- shards: a safetensors file of zstd frames whose metadata is a header and its sha256 -------------------


@dataclass(frozen=True)
class _Packed:
    """Compressed arrays of one shard, and what its header says of them."""

    path: Path | None
    arrays: Record  # name -> dtype, shape, sha256 of the compressed bytes
    blobs: "Mapping[str, NDArray[np.uint8]]"

    def check(self) -> None:
        """Compare every hash.

        Raises:
            DamagedError: one differs.
        """
        for name, blob in self.blobs.items():
            self._compare(name, sha256(blob.data).hexdigest())

    def _compare(self, name: str, digest: str) -> None:
        if digest != self.arrays[name]["sha256"]:
            raise DamagedError(f"{self.path}: '{name}' does not have the hash it was written with")

    def plain(self) -> "Arrays":
        """The arrays, checked and decompressed.

        Raises:
            DamagedError: one does not have its hash, dtype or shape.
        """
        import numpy as np
        import zstandard

        out: Arrays = {}
        with ThreadPoolExecutor(1) as beside:
            for name, blob in self.blobs.items():
                about = self.arrays[name]
                # Both free the interpreter lock: checking takes no time of its own where there are two cores.
                digest = beside.submit(sha256, blob.data)
                dtype = np.dtype(about["dtype"]).newbyteorder("<")
                try:
                    size = zstandard.get_frame_parameters(blob.data).content_size
                    if size != dtype.itemsize * np.prod(about["shape"], dtype=object):
                        raise DamagedError(f"{self.path}: '{name}' holds {size} bytes, not an array {about['shape']}")
                    content = zstandard.ZstdDecompressor().decompress(blob.data)
                except zstandard.ZstdError as error:
                    raise DamagedError(f"{self.path}: '{name}' cannot be decompressed ({error})") from error
                self._compare(name, digest.result().hexdigest())
                out[name] = np.frombuffer(content, dtype).reshape(about["shape"])
        return out


def _marker_hash(number: object) -> str:
    return sha256(f"{_CACHE}, format {number}".encode()).hexdigest()


def _compressed(arrays: "Mapping[str, NDArray[Any]]") -> _Packed:
    import numpy as np
    import zstandard

    blobs, described = {}, {}
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        packed = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL).compress(plain)
        blobs[name] = np.frombuffer(packed, np.uint8)
        digest = sha256(packed).hexdigest()
        described[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}
    return _Packed(None, described, blobs)


def _serialized(header: Record, packed: _Packed) -> bytes:
    from safetensors.numpy import save

    text = canonical_json(header)
    return save(dict(packed.blobs), {"header": text, "sha256": sha256(text.encode()).hexdigest()})


def _read(path: Path, *, header_only: bool = False) -> bytes:
    """A file's bytes, or those up to the end of a shard's header.

    Raises:
        DamagedError: there is no such file.
        UnreadableError: the system could not read it.
    """
    try:
        with path.open("rb") as file:
            if not header_only:
                return file.read()
            length = file.read(8)
            return length + file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise UnreadableError(
            f"{path}: cannot be read ({error.strerror or error}); try again, and delete the file if that persists"
        ) from error


@contextlib.contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Whatever a parser makes of garbage is damage; of what is damaged, no more is known."""
    try:
        yield
    except (DamagedError, MemoryError):
        raise
    except Exception as error:
        raise DamagedError(f"{path}: is not a shard ({type(error).__name__}: {str(error)[:200]})") from error


def _header(path: Path, data: bytes) -> Record:
    """The header of a shard, once it has the hash it was written with."""
    with _parsing(path):
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(len(data) - 8, _LONGEST_HEADER):
            raise DamagedError(f"{path}: is not a shard (no header)")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text = metadata["header"]
        if sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise DamagedError(f"{path}: its header does not have the hash it was written with")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise DamagedError(f"{path}: its header is not a record")
        return header


def _misshapen(kind: str, arrays: Any, rows: int) -> str:
    """Why `arrays` (name -> dtype, shape) are not those that `kind` declares for `rows` images; empty if they are."""
    specs = KINDS.get(kind)
    if specs is None:
        return f"there is no kind '{kind}'"
    if ANY in specs and isinstance(arrays, dict):
        specs = dict.fromkeys(arrays, specs[ANY])
    required = {name for name, spec in specs.items() if not spec.optional}
    if not isinstance(arrays, dict) or not arrays or not required <= {*arrays} <= {*specs}:
        return f"its arrays are {', '.join(map(str, arrays or ())) or 'none'}, not {', '.join(specs)}"
    sizes: dict[str, int] = {}
    for name, about in arrays.items():
        if not isinstance(about, dict) or {*about} != {"dtype", "shape", "sha256"}:
            return f"'{name}' is not described by dtype, shape and sha256"
        spec, dtype, shape = specs[name], about["dtype"], about["shape"]
        if dtype not in spec.dtypes:
            return f"'{name}' is {str(dtype)[:20]}, not {' or '.join(spec.dtypes)}"
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            return f"'{name}' has no shape"
        axes = [axis for axis in spec.axes if len(shape) == 1 + len(spec.axes) or not str(axis).endswith("?")]
        absent = [axis for axis in spec.axes if axis not in axes]
        if len(shape) != 1 + len(axes) or shape[0] != rows:
            return f"'{name}' has shape {shape} for {rows} images"
        found = [*zip(axes, shape[1:], strict=True), *((axis, 0) for axis in absent)]
        for axis, size in found:
            if size != (axis if isinstance(axis, int) else sizes.setdefault(axis, size)):
                return f"'{name}' has shape {shape}, expected {list(spec.axes)} after the images"
    return ""


def _alike(first: Any, second: Any) -> bool:
    """Whether two arrays differ in nothing but their values and their number of images."""
    return second is not None and first.dtype == second.dtype and first.shape[1:] == second.shape[1:]
