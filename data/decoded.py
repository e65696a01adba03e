"""Batches of a data set's images, each image decoded once and not once per job.

Few images are kept in memory. Many are written, decoded, into one file of the cache:

    CACHE/decoded/3f2a....u8     the pixels of every image, in order; the name is a hash of the images' hashes

Every image that is read from the file is compared with its hash, so an image that is not written yet, half written or
damaged is decoded again. Several processes may use one file.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from rdp_bench.cache.store import DECODED
from rdp_bench.data._labelled import Images
from rdp_bench.data.image_hashes import batch
from rdp_bench.keys import hash_many, hash_pixels
from rdp_bench.protocols import Dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

IN_MEMORY = 128 << 20
"""Bytes of decoded images that are kept in memory; a data set with more uses a file."""


class DecodedImages:
    """The images of a data set as they were hashed. Several threads may call it.

    Args:
        dataset: the data set.
        image_hashes: pixel hashes of all of its images.
        cache: folder of this machine's cache; None: no file is written.
    """

    def __init__(self, dataset: Dataset, image_hashes: Sequence[str], cache: Path | None) -> None:
        self.dataset = dataset
        self.image_hashes = image_hashes
        self._cache = cache
        self._stride = 3 * dataset.size**2
        self._last: deque[tuple[tuple[int, int], NDArray[np.uint8]]] = deque(maxlen=2)  # this batch and the next
        self._lock = Lock()
        self._known = bytearray(len(image_hashes))
        """Of the images in memory, 1 for those that are there."""

    @property
    def in_threads(self) -> bool:
        """Whether another thread may read images: the reader of a plugin may not be made for that."""
        return isinstance(self.dataset, Images)

    def batch(self, low: int, high: int) -> NDArray[np.uint8]:
        """Images `low..high` as uint8 `[k, 3, size, size]`; not to be written into.

        Raises:
            BadImageError: an image cannot be read, or its pixels changed since they were hashed.
        """
        with self._lock:
            return self._batch(low, high)

    def _batch(self, low: int, high: int) -> NDArray[np.uint8]:
        if self._stride * len(self.image_hashes) <= IN_MEMORY:
            if not all(self._known[low:high]):
                self._memory[low:high] = batch(self.dataset, low, high, self.image_hashes)
                self._known[low:high] = bytes([1]) * (high - low)
            return self._memory[low:high]
        for rows, images in self._last:
            if rows == (low, high):
                return images
        found = self._read(low, high)
        if high - low > 1:  # a batch, which several jobs' steps ask for in turn; not one that an attack mixes in
            self._last.append(((low, high), found))
        return found

    @cached_property
    def _memory(self) -> NDArray[np.uint8]:
        import numpy as np

        return np.empty((len(self.image_hashes), 3, self.dataset.size, self.dataset.size), np.uint8)

    def _read(self, low: int, high: int) -> NDArray[np.uint8]:
        import numpy as np

        if self._file is None:
            return batch(self.dataset, low, high, self.image_hashes)
        images = np.zeros((high - low, 3, self.dataset.size, self.dataset.size), np.uint8)
        try:
            self._file.seek(low * self._stride)
            self._file.readinto(images.data.cast("B"))  # type: ignore[attr-defined]
        except OSError as error:
            log.info("%s cannot be read (%s); images are decoded again", self._path, error)
        absent = [i for i in range(low, high) if hash_pixels(images[i - low]) != self.image_hashes[i]]
        for _, run in groupby(enumerate(absent), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            first, last = numbers[0], numbers[-1] + 1
            found = batch(self.dataset, first, last, self.image_hashes)
            images[first - low : last - low] = found
            self._write(first, found)
        return images

    def _write(self, first: int, images: NDArray[np.uint8]) -> None:
        if self._file is None:
            return
        try:
            self._file.seek(first * self._stride)
            self._file.write(images.tobytes())
        except OSError as error:
            log.info("%s cannot be written (%s); images are decoded for every job", self._path, error)
            self._file.close()
            self.__dict__["_file"] = None

    @property
    def _path(self) -> Path | None:
        if self._cache is None:
            return None
        return self._cache / "decoded" / f"{hash_many([str(self.dataset.size), *self.image_hashes])}{DECODED}"

    @cached_property
    def _file(self) -> BinaryIO | None:
        """The file, open for reading and writing; None where it cannot be, or would not fit on the disk."""
        path, size = self._path, self._stride * len(self.image_hashes)
        if path is None:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and shutil.disk_usage(path.parent).free < 1.5 * size:
                log.info("no room for %d MB of decoded images; they are decoded for every job", size >> 20)
                return None
            path.open("ab").close()
            file: BinaryIO = path.open("r+b", buffering=0)
            file.truncate(max(size, path.stat().st_size))
            return file
        except OSError as error:
            log.info("%s cannot be used (%s); images are decoded for every job", path, error)
            return None
