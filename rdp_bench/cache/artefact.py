"""An artefact: the arrays of one record, written batch by batch, merged when they are complete."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rdp_bench.cache.batches import Batch, grouped
from rdp_bench.cache.files import Location, read_file, write_atomic
from rdp_bench.cache.merged import DamagedBatchesError, OpenShard, Single
from rdp_bench.cache.shard import Packed, Place, compressed, serialized, shard_header
from rdp_bench.cache.stored import MERGED_BYTES, Loan, StoredRows, remark_name
from rdp_bench.cache.url import UrlPath
from rdp_bench.errors import DamagedError, RdpBenchError, StorageError, UnreadableError
from rdp_bench.keys import Record, key_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

MERGE_FROM = 8
"""Files of a complete artefact from which they are merged."""


@dataclass(frozen=True)
class Artefact(StoredRows):
    """The arrays of one record, one row per image, in shards of consecutive images."""

    @property
    def complete(self) -> bool:
        """Whether every image is there (its content is checked when it is read), and the record."""
        return not self.missing(self.n or 1) and (self._record_written or bool(self.lent))

    def still_missing(self, batch: int, rows: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
        """`missing`, each range looked for again before it is handed out: another run may make the same artefact.

        Of the images `rows` (first, past-the-last) only, where they are given.
        """
        todo, before = within_rows(self.missing(batch), rows), None
        while todo:
            if before is not None and not self.has_shard(*before):  # another run completed and merged them all
                todo = [each for each in within_rows(self.missing(batch), rows) if each[0] >= before[1]]
                before = None
                continue
            low, high = todo.pop(0)
            if not self.has_shard(low, high):
                yield low, high
                before = low, high

    def write(self, low: int, high: int, arrays: "Mapping[str, NDArray[Any]]") -> None:
        """Store rows `low..high` of every array (first axis: images); atomic.

        Raises:
            StorageError: the cache cannot be written to.
            ValueError: the arrays are not those of this kind, or the rows not those of this artefact.
        """
        made = {**self.store.made_by, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._put(low, high, compressed(arrays), made)

    def _put(self, low: int, high: int, packed: Packed, made: Record) -> None:
        header = shard_header(Place(self.kind, self.key, low, high, self.n), packed, made)
        self.write_record()
        self.keep(self._path(low, high), serialized(header, packed.blobs))

    def add_remarks(self, remarks: Iterable[str]) -> None:
        """Keep what a reader of these rows must know, beside what was kept before; a later run says it again.

        Raises:
            StorageError: the cache cannot be written to.
        """
        if remarks and not self.store.read_only:
            known = set(self.remarks())
            for text in dict.fromkeys(remarks):
                if text not in known:
                    write_atomic(self.folder / remark_name(text.encode()), text.encode())

    def write_record(self) -> None:
        """Write the record beside the shards, unless it is there and whole."""
        if not self._record_written:
            self.store.mark()
            text = json.dumps(self.record, indent=1, sort_keys=True)
            write_atomic(self.folder / "record.json", text.encode())

    @property
    def _record_written(self) -> bool:
        if (self.kind, self.key) in self.store.recorded:
            return True
        try:
            found = bool(key_of(json.loads(read_file(self.folder / "record.json"))) == self.key)
        except (RdpBenchError, ValueError, TypeError, RecursionError):
            return False
        if found and isinstance(self.folder, UrlPath):
            self.store.recorded.add((self.kind, self.key))
        return found

    def merge(self) -> None:
        """Put the batches of a complete artefact into few files, unless they are few already.

        Merged files are written first and then the shards in them deleted, so a reader and a killed run find every
        batch at every moment. What cannot be read or written is left as it is.
        """
        shards = self.shards()
        overlap = sum(high - low for low, high, _ in shards) > self.n
        if self.store.read_only or not (len(shards) >= MERGE_FROM or overlap) or not self.complete:
            return
        kept = set()
        try:
            for group in grouped(self._consecutive(shards), MERGED_BYTES):
                path = self._path(group[0].low, group[-1].high)
                if len(group) == 1 and path.exists():
                    kept.add(path)
                else:
                    kept.add(self.put_batches(group))
            for path in {path for _, _, path in shards} - kept:
                path.unlink(missing_ok=True)
        except _Damage as damage:
            self.reject(damage.path, damage.error)
        except (UnreadableError, StorageError, OSError) as error:
            log.info("%s is not merged: %s", self.folder, error)

    def _consecutive(self, shards: list[tuple[int, int, Location]]) -> Iterator[Batch]:
        """Every row once, in order, in whole batches where that is possible."""
        at = 0
        for low, high, path in sorted(shards, key=lambda shard: (shard[0], -shard[1])):
            if high <= at:
                continue
            try:
                with self.opened(path) as shard:
                    for batch in shard.batches(max(low, at), high):
                        part = batch.cut(max(low, at), high)
                        at = part.high
                        yield part
            except DamagedError as error:
                raise _Damage(path, error) from error

    def copy_shards_of(self, other: "Artefact") -> int:
        """Copy the batches of `other`, whose first rows are this one's, that this one lacks; returns how many.

        Each is checked first, then written with this key in its header. One that is longer than this artefact is cut.
        """
        missing = self.missing(self.n or 1)
        count = 0
        for low, high, path in other.shards():
            if not any(a < high and low < b for a, b in missing):
                continue
            try:
                count += other.use(path, partial(self._take_over, other, low, high, missing))
            except DamagedError as error:
                other.reject(path, error)
                if isinstance(error, DamagedBatchesError):  # the others of its batches are whole
                    return count + self.copy_shards_of(other)
            except UnreadableError as error:
                log.warning("%s", error)
        if count:
            self.add_remarks(other.remarks())
        return count

    def _take_over(
        self, other: "Artefact", low: int, high: int, missing: list[tuple[int, int]], shard: OpenShard
    ) -> int:
        """Store what `missing` asks of rows `low..high` of another artefact's shard; returns how many batches."""
        end = min(high, self.n)

        def asked(a: int, b: int) -> bool:
            return any(first < b and a < last for first, last in missing)

        if self.store.read_only:
            shard.check()
            spans = [(max(a, low), min(b, end)) for a, b in shard.spans() if a < end and low < b]
            lent = [(a, b, other) for a, b in spans if asked(a, b)]
            self.store.lent.setdefault(self.key, Loan(self.record, self.n)).rows.extend(lent)
            return len(lent)
        if isinstance(shard, Single):
            shard.check()
            packed = shard.packed
            if end < high:
                packed = compressed(shard.read(low, end))
            self._put(low, end, packed, shard.header["made"])
            return 1
        count = 0
        batches = (batch.cut(low, end) for batch in shard.batches(low, end) if asked(batch.low, min(batch.high, end)))
        self.write_record()
        for group in grouped(batches, MERGED_BYTES):
            self.put_batches(group)
            count += len(group)
        return count


class _Damage(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, path: Location, error: DamagedError) -> None:
        super().__init__(str(error))
        self.path, self.error = path, error


def within_rows(ranges: Iterable[tuple[int, int]], rows: tuple[int, int] | None) -> list[tuple[int, int]]:
    """`ranges` of images cut to `rows` (first, past-the-last), without those outside of it; all where it is None."""
    if rows is None:
        return list(ranges)
    first, last = rows
    return [(max(a, first), min(b, last)) for a, b in ranges if a < last and first < b]
