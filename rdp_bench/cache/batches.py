"""Batches as a merged file stores them, and the file that they make together.

A merged file is a safetensors file whose metadata is a header and its sha256, as in a shard. Arrays are stored as
columns: values as they are where an image has few bytes, otherwise one zstd frame per batch. An index says where
batches begin, the hash of each batch over all columns, and what made it. The hash of the index is in the header.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from rdp_bench.cache.kinds import misshapen
from rdp_bench.cache.shard import Packed, Place, compressed, decompressed, serialized
from rdp_bench.keys import Record, canonical_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

MERGED_FORMAT = 3
"""Bump it when this version would misread a merged file of another one."""

RAW_UP_TO = 1024
"""Bytes of an image in an array up to which its values are stored as they are: frames would be larger, and slower."""

RAW, ZSTD = "raw", "zstd"
NO_TIME = -1


@dataclass(frozen=True)
class Column:
    """One array of a batch: `content` holds its values, or one zstd frame of them."""

    dtype: str
    tail: tuple[int, ...]  # the shape after the images
    raw: bool
    content: bytes


@dataclass(frozen=True)
class Batch:
    """Rows `low..high` of an artefact, checked, as they are stored in a merged file."""

    low: int
    high: int
    columns: dict[str, Column]
    made: Record

    @property
    def size(self) -> int:
        return sum(len(column.content) for column in self.columns.values())

    @property
    def form(self) -> Record:
        """What batches of one file have in common."""
        return {name: (column.dtype, column.tail, column.raw) for name, column in self.columns.items()}

    def cut(self, low: int, high: int) -> "Batch":
        """Those of its rows that are in `low..high`."""
        if low <= self.low and self.high <= high:
            return self
        a, b = max(low, self.low), min(high, self.high)
        plain = {
            name: values(column.content, column.dtype, [self.high - self.low, *column.tail], column.raw, name)
            for name, column in self.columns.items()
        }
        part = {name: array[a - self.low : b - self.low] for name, array in plain.items()}
        return batch_of(a, b, compressed(part), self.made)


def batch_of(low: int, high: int, packed: Packed, made: Record) -> Batch:
    """The batch of a shard.

    Raises:
        DamagedError: its arrays do not have their hashes.
    """
    packed.check()
    plain: Arrays | None = None
    columns = {}
    for name, about in packed.arrays.items():
        dtype, tail = about["dtype"], tuple(about["shape"][1:])
        if raw := _row_bytes(dtype, tail) <= RAW_UP_TO:
            plain = packed.plain() if plain is None else plain
        content = plain[name].tobytes() if raw and plain is not None else packed.blobs[name].tobytes()
        columns[name] = Column(dtype, tail, raw, content)
    return Batch(low, high, columns, made)


def serialized_batches(kind: str, key: str, n: int, batches: Sequence[Batch]) -> bytes:
    """A merged file of consecutive batches of one form.

    Raises:
        ValueError: they are not consecutive, or not of one form, or do not belong to the artefact.
    """
    import numpy as np

    first, last = batches[0], batches[-1]
    if any(a.high != b.low or a.form != b.form for a, b in pairwise(batches)):
        raise ValueError(f"{kind} {key[:12]}: batches from {first.low} to {last.high} do not follow each other")
    names = sorted(first.columns)
    makers: dict[str, int] = {}
    made = []
    for batch in batches:
        time, rest = _time(batch.made)
        made.append((makers.setdefault(canonical_json(rest), len(makers)), time))
    tensors: Arrays = {
        "edges": np.array([batch.low for batch in batches] + [last.high], np.int64),
        "hashes": np.frombuffer(b"".join(_digest(batch, names) for batch in batches), np.uint8),
        "made": np.array(made, np.int64),
    }
    arrays: Record = {}
    for name in names:
        parts = [batch.columns[name] for batch in batches]
        content = b"".join(part.content for part in parts)
        tensors[f"ends {name}"] = np.cumsum([0, *(len(part.content) for part in parts)], dtype=np.int64)
        tensors[f"array {name}"] = np.frombuffer(content, np.uint8)
        arrays[name] = {
            "dtype": parts[0].dtype,
            "shape": [last.high - first.low, *parts[0].tail],
            "sha256": sha256(content).hexdigest(),
            "codec": RAW if parts[0].raw else ZSTD,
        }
    header = {
        "format": MERGED_FORMAT,
        "kind": kind,
        "key": key,
        "rows": [first.low, last.high],
        "arrays": arrays,
        "makers": [json.loads(maker) for maker in makers],
        "index": index_hash(tensors, names),
    }
    if why := merged_misfit(header, Place(kind, key, first.low, last.high, n)):
        raise ValueError(f"{kind} {key[:12]}, images {first.low} to {last.high}: {why}")
    return serialized(header, tensors)


def grouped(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Consecutive batches of one form, in groups of up to `most` bytes."""
    group: list[Batch] = []
    size = 0
    for batch in batches:
        if group and (size + batch.size > most or group[-1].high != batch.low or group[-1].form != batch.form):
            yield group
            group, size = [], 0
        group.append(batch)
        size += batch.size
    if group:
        yield group


def merged_misfit(header: Record, place: Place) -> str:
    """Why a merged file with this header does not belong in `place`; empty if it does."""
    if why := place.misfit(header, MERGED_FORMAT):
        return why
    makers, arrays = header.get("makers"), header.get("arrays")
    if not isinstance(makers, list) or not all(isinstance(maker, dict) for maker in makers):
        return "it does not say what made it"
    if why := misshapen(place.kind, arrays, place.high - place.low, frozenset({"codec"})):
        return why
    assert isinstance(arrays, dict)
    if any(about["codec"] not in (RAW, ZSTD) for about in arrays.values()):
        return "its arrays are stored in a way that is not known"
    return ""


def values(content: Any, dtype: str, shape: list[int], raw: bool, what: str) -> "NDArray[np.generic]":
    """An array from `content`, its values (`raw`) or one zstd frame of them; raises as `shard.decompressed`."""
    import numpy as np

    if not raw:
        return decompressed(content, dtype, shape, what)
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _row_bytes(dtype: str, tail: Sequence[int]) -> int:
    import numpy as np

    return int(np.dtype(dtype).itemsize) * prod(tail)


def _digest(batch: Batch, names: Sequence[str]) -> bytes:
    digest = sha256()
    for name in names:
        digest.update(batch.columns[name].content)
    return digest.digest()


def index_hash(tensors: "Arrays", names: Sequence[str]) -> str:
    """The hash of everything in a merged file that says where its batches are and what made them."""
    digest = sha256()
    for name in ("edges", "hashes", "made", *(f"ends {name}" for name in names)):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _time(made: Record) -> tuple[int, Record]:
    """Seconds since 1970 at which a batch was made, and the rest of what is known of it."""
    try:
        time = int(datetime.fromisoformat(made["time"]).timestamp())
        if iso(time) == made["time"]:
            return time, {name: value for name, value in made.items() if name != "time"}
    except (KeyError, TypeError, ValueError):
        pass
    return NO_TIME, made


def iso(time: int) -> str:
    """A time in seconds since 1970 as headers write it."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
