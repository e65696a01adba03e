"""`rdp-bench cache`: list, verify and prune the cache."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rdp_bench.cache import copies
from rdp_bench.cache.files import Location, children
from rdp_bench.cache.store import DECODED, MARKER, Artefact, Store
from rdp_bench.cache.url import UrlPath
from rdp_bench.cli import common
from rdp_bench.errors import DamagedError, RdpBenchError, UnreadableError, UsageError


@click.group("cache")
def cache_() -> None:
    """List, verify and prune the cache."""


@cache_.command("ls")
@common.cache
def cache_ls(cache: Location | None) -> None:
    """List the stored artefacts, newest last."""
    store = Store(cache)
    total = 0
    for kind, key in store.everything():
        size = 0
        with contextlib.suppress(OSError):  # another process may be pruning it
            size = sum(path.lstat().st_size for path in children(store.folder(kind, key)))
        total += size
        try:
            record = store.open(kind, key).record
        except RdpBenchError as error:
            click.echo(f"{kind:6} {key[:12]}  no record ({error})")
            continue
        about: Any = record.get("attack", record.get("defense", {}))
        click.echo(f"{kind:6} {key[:12]}  {record.get('n', 0):5} images  {size / 1e6:8.2f} MB  {_about(about)}")
    for path in store.image_lists():
        if path.name.endswith(DECODED):
            total += (size := path.lstat().st_size)
            click.echo(f"images {path.name[:12]}  decoded             {size / 1e6:8.2f} MB")
    click.echo(f"{total / 1e6:.1f} MB in {store.root}")


def _about(part: dict[str, Any]) -> str:
    details = [f"{k}={v}" for k, v in part.get("params", {}).items()]
    return " ".join([str(part.get("id", "")), *details])[:90]


@cache_.command("verify")
@common.cache
def cache_verify(cache: Location | None) -> None:
    """Verify the hash of every stored file.

    Damaged batches, lists and indexes are deleted; the next run computes them again.
    """
    store = Store(cache)
    _proven(store)
    everything = list(store.everything())
    found = [line for kind, key in everything for line in _faults(store, kind, key)]
    found += _faults_of_lists(store)
    _sweep(store)
    for line in found:
        click.echo(line)
    damaged = sum(line.startswith("damaged") for line in found)
    unread = f", {len(found) - damaged} could not be read" if len(found) > damaged else ""
    click.echo(f"{len(everything)} artefacts checked, {damaged} damaged{unread}")
    if found:
        sys.exit(1)


def _faults(store: Store, kind: str, key: str) -> Iterator[str]:
    """What is wrong with an artefact, in lines. Its damaged shards are deleted.

    The shards hold the key themselves, so they are checked without the record. Where some are whole, a damaged record
    is left for the next run to write again.
    """
    artefact, damaged = Artefact(store, kind, key, {}, sys.maxsize), ""
    try:
        artefact = store.open(kind, key)
    except UnreadableError as error:
        yield f"cannot be read: {error}"
    except DamagedError as error:
        damaged = str(error)
    try:
        for path, why in [*artefact.failing()]:
            if isinstance(why, UnreadableError):
                yield f"cannot be read: {why}"
                continue
            artefact.reject(path, why)
            kept = path in store.rejected or path in store.rejected_rows
            yield f"damaged, {'could not be deleted' if kept else 'deleted'}: {why}"
        if lost := artefact.damaged_remarks():
            store.delete(kind, key)
            yield f"damaged, deleted with the rows that it is about: {lost[0]}: a remark of another text"
        elif damaged and artefact.shards():
            yield f"damaged, the next run of its grid writes it again: {damaged}"
        elif damaged:
            store.delete(kind, key)
            yield f"damaged, deleted: {damaged}"
    except OSError as error:
        yield f"{store.folder(kind, key)}: {error.strerror or error}"


def _faults_of_lists(store: Store) -> Iterator[str]:
    """What is wrong with the lists of runs' images and the indexes of pixel hashes. Damaged ones are deleted.

    A file of decoded images may have gaps; each image of it is checked when it is read.
    """
    from rdp_bench.data.image_hashes import read_index
    from rdp_bench.engine.prefix_reuse import read_list

    for path in store.image_lists():
        try:
            if path.parent.name == "lists":
                read_list(path)
            elif isinstance(path, Path) and not path.name.endswith(DECODED):
                read_index(path)
        except OSError as error:
            yield f"cannot be read: {path} ({error.strerror or error})"
        except ValueError as error:
            why = f"{path} ({error})"
            store.reject(path, why)
            yield f"damaged, {'could not be deleted' if path in store.rejected else 'deleted'}: {why}"


def _proven(store: Store) -> None:
    """Refuse a folder that no run has marked as a cache: what lies in it may be somebody else's."""
    if not isinstance(store.root, UrlPath) and not store.root.is_dir():
        raise UsageError(f"--cache {store.root}: no such folder")
    if not store.marked:
        raise UsageError(
            f"--cache {store.root} is not proven to be a cache of rdp-bench ({MARKER} is not in it, or is damaged); "
            "nothing was deleted. A run with this cache writes that file; delete a cache of an older version by hand"
        )


def _sweep(store: Store) -> None:
    """Delete what killed runs left behind."""
    for path in store.leftovers():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@cache_.command("prune")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Delete artefacts older than DAYS days.",
)
@click.option("--all", "everything", is_flag=True, help="Delete everything.")
@common.cache
def cache_prune(older_than: float | None, everything: bool, cache: Location | None) -> None:
    """Delete stored artefacts, and temporary files of killed runs.

    Only files that rdp-bench wrote are deleted, and only in a folder that a run has marked as its cache.
    """
    if older_than is not None and everything:
        raise UsageError("--all deletes everything, and --older-than DAYS only what is older; use one of them")
    if older_than is not None and math.isnan(older_than):
        raise UsageError("--older-than nan: expected a number of days")
    if older_than is None and not everything:
        raise UsageError("say what to delete: --older-than DAYS or --all")
    from rdp_bench.engine import rates
    from rdp_bench.engine.executors import board

    store = Store(cache)
    _proven(store)
    limit = time.time() - (older_than or 0) * 86400
    freed = count = 0
    for kind, key in list(store.everything()):
        folder = store.folder(kind, key)
        files = children(folder)
        if not isinstance(folder, UrlPath):
            files.append(folder)
        newest = max((path.lstat().st_mtime for path in files), default=0.0)
        if everything or newest < limit:
            freed += store.delete(kind, key)
            count += 1
    for path in store.image_lists():
        if everything or (path.name.endswith(DECODED) and path.lstat().st_mtime < limit):
            freed += path.lstat().st_size if path.name.endswith(DECODED) else 0
            path.unlink(missing_ok=True)
    if everything:
        board.sweep(store, 0.0)
        with contextlib.suppress(OSError):
            (store.local / rates.FILE).unlink(missing_ok=True)
        if isinstance(store.root, UrlPath):
            copies.shrink(0)
    _sweep(store)
    click.echo(f"{count} artefacts deleted, {freed / 1e6:.1f} MB freed")
