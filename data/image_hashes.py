"""Hashes of the pixels of a data set, and batches of its images.

Cache keys identify images by the hash of their prepared pixels. Decoding 1000 images takes seconds, so the hashes are
stored in one index per data set and size:

    CACHE/pixels/3f2a....json     file -> its size, times and inode, and the hash of its pixels

An entry is valid only while all of these facts of its file are unchanged. The index contains a checksum, and the
versions of the decoder are part of its name. At every use, one randomly chosen image of the index is decoded and
compared. An index that fails any of these checks is computed again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rdp_bench.cache.store import write_atomic
from rdp_bench.data._images import decoder
from rdp_bench.data._labelled import Images
from rdp_bench.errors import BadImageError, RdpBenchError
from rdp_bench.keys import hash_many, hash_pixels, key_of
from rdp_bench.protocols import Dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

T = TypeVar("T")
Entries = dict[str, tuple[list[int], str]]
"""Absolute path -> ([size, mtime_ns, ctime_ns, inode], hash of the prepared pixels)."""

INDEX_VERSION = 1
"""Increase it when `_images.prepare` gives different pixels or the format of the index changes."""


def hash_images(dataset: Dataset, cache: Path | None = None, *, write: bool = True) -> list[str]:
    """Return `hash_pixels` of every image of a data set, in order.

    Args:
        dataset: the data set.
        cache: folder of the cache; images whose files are unchanged since they were hashed are not decoded.
        write: whether new hashes are added to the cache.

    Raises:
        BadImageError: an image cannot be read; the message names its file.
    """
    if cache is None or not isinstance(dataset, Images):
        return list(_each(dataset, range(len(dataset.ids)), lambda i: hash_pixels(_image(dataset, i))))
    settings = {
        "version": INDEX_VERSION,
        "origin": str(dataset.origin.absolute()),
        "size": dataset.size,
        "decoder": decoder(),
    }
    file = cache / "pixels" / f"{key_of(settings)[:16]}.json"
    # The state of a file is read before its pixels: a file that changes in between does not match its entry.
    paths = [str(path.absolute()) for path in dataset.paths]
    states = {path: _state(Path(path)) for path in paths}
    old = _read(file, settings)
    known = {path: entry for path, entry in old.items() if states.get(path) == entry[0]}
    if known:
        probe = secrets.choice([i for i, path in enumerate(paths) if path in known])
        if hash_pixels(_image(dataset, probe)) != known[paths[probe]][1]:
            log.warning("%s: the stored hash of %s is wrong; all images are read again", file, paths[probe])
            old, known = {}, {}
    todo = [i for i, path in enumerate(paths) if path not in known]
    if todo:
        log.info("reading %d images of %s", len(todo), dataset.name)
        hashes = _each(dataset, todo, lambda i: hash_pixels(_image(dataset, i)))
        fresh = {paths[i]: (states[paths[i]], found) for i, found in zip(todo, hashes, strict=True)}
        known |= fresh
        if write:
            _write(file, settings, old | fresh)
    return [known[path][1] for path in paths]


def digest(image_hashes: Sequence[str], labels: Sequence[int]) -> str:
    """Return one sha256 of all pixels and labels, in order; `image_hashes` comes from `hash_images`."""
    return hash_many([*image_hashes, *map(str, labels)])


def repeated(dataset: Dataset, image_hashes: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of ids (image, earlier image) with the same pixels, for a warning."""
    first: dict[str, str] = {}
    return [
        (id_, first[hashed])
        for id_, hashed in zip(dataset.ids, image_hashes, strict=True)
        if first.setdefault(hashed, id_) != id_
    ]


def batch(dataset: Dataset, low: int, high: int, image_hashes: Sequence[str] | None = None) -> NDArray[np.uint8]:
    """Return images `low..high` (exclusive) as uint8 `[high - low, 3, size, size]`.

    Args:
        dataset: the data set.
        low: index of the first image.
        high: index after the last image.
        image_hashes: pixel hashes of the whole data set. The images are compared with them, so that nothing is computed
            on pixels other than those in the key.

    Raises:
        IndexError: the range exceeds the data set.
        BadImageError: an image cannot be read, or its pixels changed since they were hashed.
    """
    import numpy as np

    if not 0 <= low <= high <= len(dataset.ids):
        raise IndexError(f"dataset '{dataset.name}' has {len(dataset.ids)} images, asked for {low}..{high}")
    out = np.empty((high - low, 3, dataset.size, dataset.size), np.uint8)
    for row, image in enumerate(_each(dataset, range(low, high), lambda i: _image(dataset, i))):
        if image_hashes is not None and hash_pixels(image) != image_hashes[low + row]:
            image_id = dataset.ids[low + row]
            raise BadImageError(f"dataset '{dataset.name}': image '{image_id}' changed since the run began; run again")
        out[row] = image
    return out


def _image(dataset: Dataset, index: int) -> NDArray[np.uint8]:
    image = dataset.image(index)
    if image.shape != (3, dataset.size, dataset.size) or image.dtype.name != "uint8":
        raise BadImageError(
            f"dataset '{dataset.name}': image '{dataset.ids[index]}' should be uint8 "
            f"{[3, dataset.size, dataset.size]}, is {image.dtype} {list(image.shape)}"
        )
    return image


def _each(dataset: Dataset, indices: Sequence[int], read: Callable[[int], T]) -> Iterator[T]:
    # Pillow and hashlib release the interpreter's lock. The reader of a plugin may not be thread-safe.
    if not isinstance(dataset, Images) or len(indices) < 2:
        yield from map(read, indices)
        return
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1, len(indices))) as pool:
        yield from pool.map(read, indices)


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def read_index(file: Path) -> tuple[dict[str, Any], Entries]:
    """The settings and entries of an index in the cache.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what a run wrote.
    """
    content = json.loads(file.read_bytes())
    try:
        settings, entries = content["settings"], content["entries"]
        if content["sha256"] != _checksum(settings, entries):
            raise ValueError("its checksum is wrong")
        return settings, {path: (state, found) for path, (state, found) in entries.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not an index ({error})") from error


def _read(file: Path, settings: dict[str, Any]) -> Entries:
    try:
        found, entries = read_index(file)
        if found != settings:
            raise ValueError("it belongs to other settings")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s: not usable (%s); all images are read again", file, error)
        return {}
    return entries


def _write(file: Path, settings: dict[str, Any], entries: Entries) -> None:
    content = {"settings": settings, "entries": entries, "sha256": _checksum(settings, entries)}
    try:
        write_atomic(file, json.dumps(content).encode())
    except RdpBenchError as error:
        log.warning("%s; every run will read all images", error)


def _checksum(settings: object, entries: object) -> str:
    return sha256(json.dumps([settings, entries], sort_keys=True).encode()).hexdigest()
