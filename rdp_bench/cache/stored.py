"""What there is of an artefact: which rows are stored in which file, and their arrays, checked on every read."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rdp_bench.cache.batches import Batch, grouped, serialized_batches
from rdp_bench.cache.files import Location, opened, read_file, write_atomic
from rdp_bench.cache.kinds import UNLIKE
from rdp_bench.cache.merged import DamagedBatchesError, OpenShard, open_shard
from rdp_bench.cache.shard import Place
from rdp_bench.cache.url import UrlPath
from rdp_bench.errors import DamagedError, RdpBenchError, UnreadableError
from rdp_bench.keys import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

log = logging.getLogger(__name__)

T = TypeVar("T")

SHARD = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")

REMARK = re.compile(r"remark-([0-9a-f]{16})\.txt")
"""A file beside the shards with what a reader of their results must know, named by the hash of its text."""

MERGED_BYTES = 32 << 20
"""Up to so many bytes are merged into one file: a damaged batch rewrites one file, and a reader holds one in memory."""


class Home(Protocol):
    """What an artefact needs of its store; see `store.Store`."""

    read_only: bool
    made_by: Record
    rejected: set[Location]
    rejected_rows: dict[Location, list[tuple[int, int]]]
    lent: "dict[str, Loan]"
    recorded: set[tuple[str, str]]

    def folder(self, kind: str, key: str) -> Location: ...
    def mark(self, *, merged: bool = False) -> None: ...
    def reject(self, path: Location, why: object) -> None: ...


@dataclass
class Loan:
    """Rows of an artefact that are read from others, which have them in the same places."""

    record: Record
    """Of the artefact that lacks them."""
    n: int
    rows: "list[tuple[int, int, StoredRows]]" = field(default_factory=list)
    """First, past-the-last, and the artefact that has them."""


def remark_name(text: bytes) -> str:
    """How the file of a remark is called."""
    return f"remark-{sha256(text).hexdigest()[:16]}.txt"


@dataclass(frozen=True)
class StoredRows:
    """The arrays of one record, one row per image, in shards of consecutive images."""

    store: Home
    kind: str
    key: str
    record: Record
    n: int

    @property
    def folder(self) -> Location:
        return self.store.folder(self.kind, self.key)

    # --- what there is ---

    def shards(self) -> list[tuple[int, int, Location]]:
        """What is stored, as (first, past-the-last, file); a file may hold several batches, or be listed in parts."""
        found: list[tuple[int, int, Location]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            named = ((SHARD.fullmatch(path.name), path) for path in self.folder.iterdir())
            found = [(int(match[1]), int(match[2]), path) for match, path in named if match]
        rejected, parts = self.store.rejected, self.store.rejected_rows
        if rejected or parts:
            found = [
                (low, high, path)
                for first, last, path in found
                if path not in rejected
                for low, high in gaps(parts.get(path, []), first, last)
            ]
        return sorted(found)

    def batches(self) -> Iterator[tuple[int, int]]:
        """The rows of every stored batch, those of other artefacts last.

        Raises:
            DamagedError, UnreadableError: a file cannot be opened as a shard.
        """
        for low, high, path in self.shards():
            for first, last in self.use(path, lambda shard: shard.spans()):
                if low <= first and last <= high:
                    yield first, last
        for low, high, _ in self.lent:
            yield low, high

    def has_shard(self, low: int, high: int) -> bool:
        """Whether a file holds exactly these rows, or all rows of the artefact."""
        return self._holder(low, high) is not None

    def _holder(self, low: int, high: int) -> Location | None:
        if isinstance(self.folder, UrlPath):  # one request instead of two
            listed = {(first, last): path for first, last, path in self.shards()}
            return listed.get((low, high)) or listed.get((0, self.n))
        for path in dict.fromkeys((self._path(low, high), self._path(0, self.n))):
            if path.exists() and path not in self.store.rejected and path not in self.store.rejected_rows:
                return path
        return None

    def _path(self, low: int, high: int) -> Location:
        return self.folder / f"{low:06d}-{high:06d}.safetensors"

    def missing(self, batch: int) -> list[tuple[int, int]]:
        """Ranges that are not stored yet, cut at multiples of `batch` even where their neighbours are stored."""
        stored = [shard[:2] for shard in self.shards()] + [loan[:2] for loan in self.lent]
        ranges = []
        for low, high in gaps([rows for rows in stored if rows[1] <= self.n], 0, self.n):
            edges = [low, *range(low - low % batch + batch, high, batch), high]
            ranges += list(pairwise(edges))
        return ranges

    @property
    def lent(self) -> "list[tuple[int, int, StoredRows]]":
        """Rows that are read from other artefacts, as (first, past-the-last, artefact)."""
        loan = self.store.lent.get(self.key)
        return loan.rows if loan else []

    # --- writing ---

    def put_batches(self, batches: list[Batch]) -> Location:
        """Store consecutive batches as one file."""
        path = self._path(batches[0].low, batches[-1].high)
        content = serialized_batches(self.kind, self.key, self.n, batches)
        self.store.mark(merged=True)
        self.keep(path, content)
        return path

    def keep(self, path: Location, content: bytes) -> None:
        """Write a file, which is then no longer one that is ignored."""
        write_atomic(path, content)
        self.store.rejected.discard(path)
        self.store.rejected_rows.pop(path, None)

    # --- reading ---

    def read(self, low: int = 0, high: int | None = None) -> "Arrays":
        """Rows `low..high` of every array. A batch that fails its check is deleted, so that a run makes it again.

        Raises:
            DamagedError: rows are missing, or were in a batch that failed its check.
            UnreadableError: the system could not read a file; nothing is deleted.
        """
        high = self.n if high is None else high
        for _ in range(3):
            found, problems, gone = self._read(low, high)
            if found is not None:
                return found
            if not gone:
                break  # else another run merged or deleted files between listing and reading
        raise DamagedError("; ".join(problems))

    def _read(self, low: int, high: int) -> "tuple[Arrays | None, list[str], bool]":
        """The rows, or why there are none, and whether files were gone that were there when they were listed."""
        import numpy as np

        # What a run reads: one batch as it was written, or everything. An object store is asked once, for its listing.
        holder = None if isinstance(self.folder, UrlPath) else self._holder(low, high)
        wanted: list[tuple[int, int, Location | StoredRows]] = [(*rows_of(holder), holder)] if holder else []
        if not holder:
            wanted = [each for each in (*self.shards(), *self.lent) if each[0] < high and low < each[1]]
        out: dict[str, Any] = {}
        have = np.zeros(high - low, bool)
        problems: list[str] = []
        gone = False
        for first, last, path in wanted:
            a, b = max(first, low), min(last, high)
            if have[a - low : b - low].all():
                continue
            try:
                if isinstance(path, StoredRows):
                    plain = path.read(a, b)
                else:
                    plain = self.use(path, lambda shard, a=a, b=b: shard.read(a, b))  # type: ignore[misc]
                if out and any(not _alike(out[name], plain.get(name)) for name in {*out, *plain}):
                    raise DamagedError(f"{path}: its arrays are not like those of the shards before it")
            except DamagedError as error:
                gone = gone or isinstance(error.__cause__, FileNotFoundError)
                if isinstance(path, StoredRows):
                    self.lent.remove((first, last, path))
                else:
                    self.reject(path, error)
                problems.append(str(error))
                continue
            if (a, b) == (low, high):
                return plain, [], False
            for name, array in plain.items():
                if name not in out:
                    out[name] = np.empty((high - low, *array.shape[1:]), array.dtype)
                out[name][a - low : b - low] = array
            have[a - low : b - low] = True
        if have.all():
            return out, [], False
        lost = f"{self.folder}: {int((~have).sum())} of {high - low} images are missing; run again"
        return None, [*problems, lost], gone

    def made(self, low: int = 0, high: int | None = None) -> list[Record]:
        """What made the batches with rows in `low..high`: versions, device, threads, time.

        Of a merged file, the first and the last of each maker.

        Files whose header fails its check are left out.
        """
        found: list[Record] = []
        end = self.n if high is None else high
        for first, last, path in self.shards():
            if first < end and low < last:
                with contextlib.suppress(RdpBenchError):
                    found += self.use(path, lambda shard: shard.made(low, end))
        for first, last, owner in self.lent:
            found += owner.made(first, last)
        return found

    def remarks(self) -> list[str]:
        """What a reader of these rows must know, as those who made them said."""
        lost = "a remark on these results is damaged; compute them again (--fresh)"
        own = [f"{path}: {lost}" if text is None else text for path, text in self._remark_files()]
        return list(dict.fromkeys([*own, *(text for _, _, owner in self.lent for text in owner.remarks())]))

    def damaged_remarks(self) -> list[Location]:
        """Files of remarks whose text is lost."""
        return [path for path, text in self._remark_files() if text is None]

    def _remark_files(self) -> list[tuple[Location, str | None]]:
        """The files of remarks with their texts; None where a text is not that of its name."""
        found: list[tuple[Location, str | None]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(path for path in self.folder.iterdir() if REMARK.fullmatch(path.name)):
                with contextlib.suppress(RdpBenchError):  # unreadable: the rows beside it say so
                    data = read_file(path)
                    text = data.decode("utf-8", "replace")
                    found.append((path, text if path.name == remark_name(text.encode()) else None))
        return found

    def failing(self) -> Iterator[tuple[Location, DamagedError | UnreadableError]]:
        """Every file that is damaged (in whole or in part), does not belong here, or cannot be read, and why."""
        like: Record | None = None

        def outline(shard: OpenShard) -> Record:
            shard.check()
            return {name: [about["dtype"], about["shape"][1:]] for name, about in shard.arrays.items()}

        for path in dict.fromkeys(path for _, _, path in self.shards()):
            try:
                found = self.use(path, outline)
                like = like or found
                if found != like and self.kind not in UNLIKE:
                    raise DamagedError(f"{path}: its arrays are not like those of the shards before it")
            except (DamagedError, UnreadableError) as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # merged by another run
                    yield path, error

    def drop_damaged(self) -> list[Location]:
        """Delete the batches that fail their check, so that a run makes them again; returns the files they were in."""
        broken = []
        for path, error in [*self.failing()]:
            if isinstance(error, DamagedError):
                self.reject(path, error)
                broken.append(path)
            else:
                log.warning("%s", error)
        return broken

    def reject(self, path: Location, error: DamagedError) -> None:
        """Delete what `error` says of a file: the whole, or its damaged batches. Where that cannot be, ignore it."""
        if isinstance(error.__cause__, FileNotFoundError):
            return
        if not isinstance(error, DamagedBatchesError):
            self.store.reject(path, error)
            return
        if self.store.read_only:
            log.warning("%s; they would be deleted and made again", error)
            self.store.rejected_rows.setdefault(path, []).extend(error.rows)
            return
        try:
            low, high = rows_of(path)
            for a, b in gaps(list(error.rows), low, high):
                with self.opened(path) as shard:
                    for group in grouped(shard.batches(a, b), MERGED_BYTES):
                        self.put_batches(group)
            path.unlink(missing_ok=True)
            log.warning("%s; deleted, the next run makes them again", error)
        except (RdpBenchError, OSError) as problem:
            log.warning("%s; they cannot be deleted (%s) and are ignored", error, problem)
            self.store.rejected_rows.setdefault(path, []).extend(error.rows)

    @contextlib.contextmanager
    def opened(self, path: Location) -> Iterator[OpenShard]:
        with opened(path) as file:
            yield open_shard(path, file, Place(self.kind, self.key, *rows_of(path), self.n))

    def use(self, path: Location, do: Callable[[OpenShard], T]) -> T:
        """What `do` makes of a shard; where the local copy of a remote one is damaged, it is fetched again."""
        try:
            with self.opened(path) as shard:
                return do(shard)
        except DamagedError:
            if not (isinstance(path, UrlPath) and path.forget_copy()):
                raise
        with self.opened(path) as shard:
            return do(shard)


def rows_of(path: Location) -> tuple[int, int]:
    """The rows in the name of a shard."""
    match = SHARD.fullmatch(path.name)
    assert match
    return int(match[1]), int(match[2])


def gaps(rows: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """What of `low..high` no range of `rows` covers.

    >>> gaps([(2, 4), (3, 5), (9, 20)], 0, 12)
    [(0, 2), (5, 9)]
    """
    found, at = [], low
    for first, last in sorted(rows):
        if first >= last:
            continue
        if first > at:
            found.append((at, min(first, high)))
        at = max(at, last)
        if at >= high:
            break
    if at < high:
        found.append((at, high))
    return found


def _alike(first: Any, second: Any) -> bool:
    """Whether two arrays differ in nothing but their values and their number of images."""
    return second is not None and first.dtype == second.dtype and first.shape[1:] == second.shape[1:]
