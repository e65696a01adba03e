"""Content-addressed folders of arrays: atomic, resumable, verified on every read.

    ROOT/rdp-bench-cache.json                        marks ROOT as a cache, with its format
    ROOT/adv/3f/3f2a.../record.json                  every fact that the key is made of, readable
    ROOT/adv/3f/3f2a.../000000-000020.safetensors    images 0..19, written when that batch is done
    ROOT/adv/3f/3f2a.../remark-<hash>.txt            what a reader of them must know, where there is anything

A shard is written whole or not at all, so a killed run loses at most one batch and two runs may work on one artefact.
The shards of a finished artefact are merged into few files (`merged`). A batch that is damaged, or that does not belong
where it is, is deleted when it is read, and the next run makes it again.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator
from hashlib import sha256

from rdp_bench.cache.artefact import Artefact
from rdp_bench.cache.batches import MERGED_FORMAT
from rdp_bench.cache.files import Location, children, exclusive_lock, read_file, write_atomic
from rdp_bench.cache.kinds import KINDS
from rdp_bench.cache.locations import default_root, local_folder, locate
from rdp_bench.cache.shard import SHARD_FORMAT
from rdp_bench.cache.stored import REMARK, SHARD, Loan
from rdp_bench.cache.url import UrlPath
from rdp_bench.cache.user import user_cache
from rdp_bench.errors import DamagedError, UnreadableError, UsageError
from rdp_bench.keys import Record, canonical_json, diff_records, key_of

__all__ = [
    "DECODED", "FORMAT", "KINDS", "MARKER", "Artefact", "Location", "Store", "default_root", "exclusive_lock", "locate",
    "user_cache", "write_atomic",
]  # fmt: skip

log = logging.getLogger(__name__)

FORMAT = MERGED_FORMAT
"""The newest format of a cache that this version reads and writes. A cache has it once it holds a merged file."""

MARKER = "rdp-bench-cache.json"
"""The file that proves a folder to be a cache: only such a folder is pruned."""

STALE = 86400.0
"""Seconds after which a temporary file is what a killed run left."""

_HEX = re.compile(r"[0-9a-f]+")
_TEMPORARY = re.compile(
    r"\.(?:record\.json|remark-[0-9a-f]{16}\.txt|rdp-bench-cache\.json|[0-9a-f]{16,64}\.json|\d{6,}-\d{6,}\.safetensors)\.[0-9a-f]{8}\.tmp"
)
DECODED = ".u8"
"""Ending of a file of decoded images; see `data.decoded`."""

_CACHE = "cache of rdp-bench"


class Store:
    """All artefacts under one folder.

    `made_by` is written into every new shard. A `read_only` store writes and deletes nothing; shards that it would have
    copied from other runs are read where they are.

    Raises:
        UsageError: the folder is a cache of a newer format, or an object store does not answer.
        UnreadableError: the system could not read its marker.
    """

    def __init__(self, root: Location | None = None, *, read_only: bool = False) -> None:
        self.root = root or default_root()
        if isinstance(self.root, UrlPath):
            self.root.probe()
        self.local = local_folder(self.root)
        """Where what belongs to this machine alone is kept: the root itself, unless that is a URL."""
        self.read_only = read_only
        self.made_by: Record = {}
        self.rejected: set[Location] = set()
        """Shards that failed their check and could not be deleted."""
        self.rejected_rows: dict[Location, list[tuple[int, int]]] = {}
        """Batches of merged files that failed their check and could not be deleted."""
        self.lent: dict[str, Loan] = {}
        """By key, rows that a read-only store reads from other runs, where another would have copied them."""
        self.recorded: set[tuple[str, str]] = set()
        """Kind and key of artefacts at a URL whose records this process found whole: each is asked for once."""
        found = self._format()
        if found is not None and found > FORMAT:
            raise UsageError(
                f"{self.root} is a cache of format {found}, this version knows {FORMAT}; update rdp-bench, "
                "or name another --cache"
            )

    def artefact(self, kind: str, record: Record, n: int) -> Artefact:
        """The artefact of `record` (which may not exist yet)."""
        return Artefact(self, kind, key_of(record), record, n)

    def folder(self, kind: str, key: str) -> Location:
        return self.root / kind / key[:2] / key

    def open(self, kind: str, key: str) -> Artefact:
        """A stored artefact by its key.

        Raises:
            DamagedError: it does not exist, or its record does not match its key.
            UnreadableError: the system could not read the record.
        """
        if not isinstance(key, str) or len(key) != 64 or not _HEX.fullmatch(key):
            raise DamagedError(f"{str(key)[:80]!r} is not the key of an artefact; run the grid again")
        if key in self.lent:
            return Artefact(self, kind, key, self.lent[key].record, self.lent[key].n)
        folder = self.folder(kind, key)
        path = folder / "record.json"
        try:
            record = json.loads(read_file(path))
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
            for head, key in self._folders(self.root / kind):
                if len(key) == 64 and _HEX.fullmatch(key) and head == key[:2]:
                    yield kind, key

    @staticmethod
    def _folders(root: Location) -> list[tuple[str, str]]:
        """The folders two levels below `root`, as (parent, name)."""
        if isinstance(root, UrlPath):
            inside = (path.url.removeprefix(f"{root.url}/").split("/") for path in root.files())
            return sorted({(parts[0], parts[1]) for parts in inside if len(parts) == 3})
        folders = (path for path in root.glob("??/*") if path.is_dir() and not path.is_symlink())
        return sorted((path.parent.name, path.name) for path in folders)

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

    def reject(self, path: Location, why: object) -> None:
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

    def mark(self, *, merged: bool = False) -> None:
        """Mark the folder as a cache. One of an earlier version keeps its format until it holds a `merged` file.

        Raises:
            StorageError: it cannot be written to.
        """
        found = self._format()
        if found is None or (merged and found < FORMAT):
            content = {"what": _CACHE, "format": FORMAT, "sha256": _marker_hash(FORMAT)}
            write_atomic(self.root / MARKER, json.dumps(content).encode())

    @property
    def marked(self) -> bool:
        """Whether the folder is proven to be a cache that this version can read."""
        return self._format() in (SHARD_FORMAT, MERGED_FORMAT)

    def _format(self) -> int | None:
        """The format that the marker names; None where there is no marker, or a damaged one."""
        try:
            content = json.loads(read_file(self.root / MARKER))
            found = content["format"]
            return found if content["sha256"] == _marker_hash(found) and type(found) is int else None
        except (DamagedError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def delete(self, kind: str, key: str) -> int:
        """Remove the files of one artefact, and its folder if it is then empty; returns the bytes they held."""
        self.recorded.discard((kind, key))
        folder = self.folder(kind, key)
        size = 0
        for path in children(folder):
            named = path.name == "record.json" or REMARK.fullmatch(path.name)
            if named or SHARD.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name):
                size += path.lstat().st_size
                path.unlink(missing_ok=True)
        for emptied in (folder, folder.parent):
            with contextlib.suppress(OSError):
                emptied.rmdir()
        return size

    def leftovers(self) -> list[Location]:
        """Temporary files of this package that killed runs left more than a day ago."""
        folders = [self.root, self.root / "lists", self.root / "pixels"]
        folders += [self.folder(kind, key) for kind, key in self.everything()]
        found = []
        for folder in folders:
            with contextlib.suppress(OSError):
                found += [
                    path
                    for path in children(folder)
                    if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < time.time() - STALE
                ]
        return found

    def image_lists(self) -> list[Location]:
        """What the cache knows of images: the lists of runs, and of this machine pixel hashes and decoded images."""
        places = {self.root / "lists": (64, ".json"), self.local / "pixels": (16, ".json")}
        places[self.local / "decoded"] = (64, DECODED)
        return [
            path
            for folder, (count, ending) in places.items()
            for path in sorted(children(folder))
            if len(path.stem) == count and _HEX.fullmatch(path.stem) and path.name == path.stem + ending
        ]


def _marker_hash(number: object) -> str:
    return sha256(f"{_CACHE}, format {number}".encode()).hexdigest()
