"""Reading of shards, of one batch or of many: a damaged batch of a merged file costs that batch alone."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import IO, TYPE_CHECKING

from rdp_bench.cache.batches import (
    MERGED_FORMAT,
    NO_TIME,
    RAW,
    Batch,
    Column,
    batch_of,
    index_hash,
    iso,
    merged_misfit,
    values,
)
from rdp_bench.cache.files import Location
from rdp_bench.cache.shard import Packed, Place, parsing, read_header, read_shard
from rdp_bench.errors import DamagedError
from rdp_bench.keys import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]


class DamagedBatchesError(DamagedError):
    """Some batches of a merged file differ from what was written; the others are whole."""

    def __init__(self, message: str, rows: Sequence[tuple[int, int]]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Merged:
    """An open merged file that belongs where it is; its batches are checked as they are read."""

    path: Location
    file: IO[bytes]
    place: Place
    arrays: Record
    makers: list[Record]
    edges: list[int]
    hashes: bytes
    made_by: list[tuple[int, int]]  # index of the maker, and time, of each batch
    ends: dict[str, list[int]]  # per array, where its batches end in its column
    begins: dict[str, int]  # per array, where its column begins in the file

    @staticmethod
    def open(path: Location, file: IO[bytes], opened: tuple[Record, Record, int], place: Place) -> "Merged":
        """The file whose header, index of tensors and beginning of data `shard.read_header` read.

        Raises:
            DamagedError: it is damaged, or belongs elsewhere.
        """
        import numpy as np

        header, tensors, begin = opened
        if why := merged_misfit(header, place):
            raise DamagedError(f"{path}: {why}")
        names = sorted(header["arrays"])
        with parsing(path):

            def content(name: str) -> bytes:
                low, high = (int(end) for end in tensors[name]["data_offsets"])
                if not 0 <= low <= high < 1 << 40:
                    raise DamagedError(f"{path}: its index points beyond the file")
                return _take(file, begin + low, begin + high)

            found = {name: content(name) for name in ("edges", "hashes", "made", *(f"ends {name}" for name in names))}
            if (
                index_hash({name: np.frombuffer(part, np.uint8) for name, part in found.items()}, names)
                != header["index"]
            ):
                raise DamagedError(f"{path}: its index does not have the hash it was written with")
            numbers = {name: np.frombuffer(part, np.int64).tolist() for name, part in found.items() if name != "hashes"}
            edges, made = numbers["edges"], numbers["made"]
            count = len(edges) - 1
            ends = {name: numbers[f"ends {name}"] for name in names}
            lists = [edges, *ends.values()]
            if (
                (edges[0], edges[-1], len(found["hashes"]), len(made)) != (place.low, place.high, 32 * count, 2 * count)
                or any(len(each) != len(edges) or sorted(each) != each for each in lists)
                or not all(0 <= maker < len(header["makers"]) for maker in made[::2])
            ):
                raise DamagedError(f"{path}: its index is not one of rows {place.low} to {place.high}")
            begins = {name: begin + int(tensors[f"array {name}"]["data_offsets"][0]) for name in names}
            pairs = list(zip(made[::2], made[1::2], strict=True))
            return Merged(
                path, file, place, header["arrays"], header["makers"], edges, found["hashes"], pairs, ends, begins
            )

    def read(self, low: int, high: int) -> "Arrays":
        """Rows `low..high` of every array.

        Raises:
            DamagedBatchesError: batches among them are damaged.
        """
        with parsing(self.path):
            return self._rows(low, high)

    def _rows(self, low: int, high: int) -> "Arrays":
        import numpy as np

        first, last = self._batches(low, high)
        columns = {name: self._column(name, first, last) for name in self.arrays}
        self._compare(columns, first, last)
        rows = self.edges[last] - self.edges[first]
        a, b = low - self.edges[first], high - self.edges[first]
        out: Arrays = {}
        for name, about in self.arrays.items():
            tail = about["shape"][1:]
            if about["codec"] == RAW:
                out[name] = values(columns[name], about["dtype"], [rows, *tail], True, name)[a:b]
                continue
            parts = [
                values(part, about["dtype"], [self.edges[i + 1] - self.edges[i], *tail], False, f"{self.path}: {name}")
                for i, part in enumerate(self._parts(columns[name], name, first, last), first)
            ]
            out[name] = (parts[0] if len(parts) == 1 else np.concatenate(parts))[a:b]
        return out

    def check(self) -> None:
        """Compare every hash.

        Raises:
            DamagedBatchesError: some differ.
        """
        last = len(self.edges) - 1
        self._compare({name: self._column(name, 0, last) for name in self.arrays}, 0, last)

    def batches(self, low: int, high: int) -> Iterator[Batch]:
        """Every batch with rows in `low..high`, whole.

        Raises:
            DamagedBatchesError: the next one is damaged.
        """
        first, last = self._batches(low, high)
        for i in range(first, last):
            columns = {name: self._column(name, i, i + 1) for name in self.arrays}
            self._compare(columns, i, i + 1)
            yield Batch(
                self.edges[i],
                self.edges[i + 1],
                {
                    name: Column(about["dtype"], tuple(about["shape"][1:]), about["codec"] == RAW, columns[name])
                    for name, about in self.arrays.items()
                },
                self._made(i),
            )

    def spans(self) -> list[tuple[int, int]]:
        """The rows of every batch."""
        return list(pairwise(self.edges))

    def made(self, low: int, high: int) -> list[Record]:
        """What made the batches with rows in `low..high`: the first and the last of each maker."""
        found: list[Record] = []
        first, last = self._batches(max(low, self.place.low), min(high, self.place.high))
        for number in range(len(self.makers)):
            own = [i for i in range(first, last) if self.made_by[i][0] == number]
            own.sort(key=lambda i: self.made_by[i][1])
            found += [self._made(i) for i in dict.fromkeys((own[0], own[-1]))] if own else []
        return found

    def _made(self, i: int) -> Record:
        maker, time = self.made_by[i]
        known = self.makers[maker]
        return known if time == NO_TIME else {**known, "time": iso(time)}

    def _batches(self, low: int, high: int) -> tuple[int, int]:
        return bisect_right(self.edges, low) - 1, bisect_left(self.edges, high)

    def _column(self, name: str, first: int, last: int) -> bytes:
        ends, begin = self.ends[name], self.begins[name]
        return _take(self.file, begin + ends[first], begin + ends[last])

    def _parts(self, column: bytes, name: str, first: int, last: int) -> Iterator[memoryview]:
        ends, view = self.ends[name], memoryview(column)
        for i in range(first, last):
            yield view[ends[i] - ends[first] : ends[i + 1] - ends[first]]

    def _compare(self, columns: dict[str, bytes], first: int, last: int) -> None:
        whole = (first, last) == (0, len(self.edges) - 1)
        if whole and all(sha256(columns[name]).hexdigest() == self.arrays[name]["sha256"] for name in columns):
            return
        names = sorted(self.arrays)
        parts = zip(*(self._parts(columns[name], name, first, last) for name in names), strict=True)
        bad = []
        for i, pieces in enumerate(parts, first):
            digest = sha256()
            for piece in pieces:
                digest.update(piece)
            if digest.digest() != self.hashes[32 * i : 32 * i + 32]:
                bad.append((self.edges[i], self.edges[i + 1]))
        if bad:
            rows = ", ".join(f"{a} to {b}" for a, b in bad[:3]) + (", ..." if len(bad) > 3 else "")
            raise DamagedBatchesError(f"{self.path}: images {rows} do not have the hash they were written with", bad)


@dataclass(frozen=True)
class Single:
    """An open shard of one batch that belongs where it is; its arrays are checked as they are read."""

    place: Place
    header: Record
    packed: Packed

    @property
    def arrays(self) -> Record:
        return self.packed.arrays

    def read(self, low: int, high: int) -> "Arrays":
        """Rows `low..high` of every array.

        Raises:
            DamagedError: they do not have their hash.
        """
        plain = self.packed.plain()
        if (low, high) == (self.place.low, self.place.high):
            return plain
        return {name: array[low - self.place.low : high - self.place.low] for name, array in plain.items()}

    def check(self) -> None:
        """Compare every hash; raises `DamagedError` if one differs."""
        self.packed.check()

    def batches(self, low: int, high: int) -> Iterator[Batch]:  # noqa: ARG002 - as of a merged file
        """The one batch; raises `DamagedError` if it is damaged."""
        yield batch_of(self.place.low, self.place.high, self.packed, self.header["made"])

    def spans(self) -> list[tuple[int, int]]:
        """The rows of the one batch."""
        return [(self.place.low, self.place.high)]

    def made(self, low: int, high: int) -> list[Record]:  # noqa: ARG002 - as of a merged file
        """What made the batch."""
        return [self.header["made"]]


OpenShard = Single | Merged


def open_shard(path: Location, file: IO[bytes], place: Place) -> OpenShard:
    """The shard in an open file, of one batch or of many.

    Raises:
        DamagedError: it is damaged, or belongs elsewhere.
    """
    opened = read_header(path, file)
    if opened[0].get("format") == MERGED_FORMAT:
        return Merged.open(path, file, opened, place)
    file.seek(0)
    return Single(place, *read_shard(path, file.read(), opened[0], place))


def _take(file: IO[bytes], begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)
