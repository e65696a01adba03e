"""`rdp-bench cache`: look after stored sets and predictions."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import click

from rdp_bench.errors import DamagedError, UsageError
from rdp_bench.store import Store

option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of cached sets and predictions.  [default: $RDP_BENCH_CACHE or the user's cache folder]",
)


@click.group("cache")
def cache_() -> None:
    """Look after cached sets and predictions."""


@cache_.command("ls")
@option
def cache_ls(cache: Path | None) -> None:
    """List what is stored, newest last."""
    store = Store(cache)
    total = 0
    for kind, key in store.everything():
        folder = store.folder(kind, key)
        size = sum(path.stat().st_size for path in folder.iterdir())
        total += size
        try:
            record = store.open(kind, key).record
        except DamagedError:
            click.echo(f"{kind:6} {key[:12]}  damaged record; run: rdp-bench cache verify")
            continue
        about: Any = record.get("attack", record.get("defense", {}))
        click.echo(f"{kind:6} {key[:12]}  {record.get('n', 0):5} images  {size / 1e6:8.2f} MB  {_about(about)}")
    click.echo(f"{total / 1e6:.1f} MB in {store.root}")


def _about(part: dict[str, Any]) -> str:
    details = [f"{k}={v}" for k, v in part.get("params", {}).items()]
    return " ".join([str(part.get("id", "")), *details])[:90]


@cache_.command("verify")
@option
def cache_verify(cache: Path | None) -> None:
    """Check every stored byte; damaged batches are deleted and made again by the next run."""
    store = Store(cache)
    _there(store)
    broken = count = 0
    for kind, key in store.everything():
        count += 1
        try:
            bad = [str(path) for path in store.open(kind, key).heal()]
        except DamagedError as error:
            bad = [str(error)]
            store.delete(kind, key)
        for what in bad:
            click.echo(f"damaged, deleted: {what}")
        broken += len(bad)
    click.echo(f"{count} artefacts checked, {broken} damaged")
    if broken:
        sys.exit(1)


def _there(store: Store) -> None:
    if not store.root.is_dir():
        raise UsageError(f"--cache {store.root}: no such folder")


@cache_.command("prune")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Delete what was written more than DAYS days ago.",
)
@click.option("--all", "everything", is_flag=True, help="Delete everything.")
@option
def cache_prune(older_than: float | None, everything: bool, cache: Path | None) -> None:
    """Delete stored sets and predictions, and what killed runs left behind."""
    if (older_than is None or math.isnan(older_than)) and not everything:
        raise UsageError("say what to delete: --older-than DAYS or --all")
    store = Store(cache)
    _there(store)
    limit = time.time() - (older_than or 0) * 86400
    freed = count = 0
    for kind, key in list(store.everything()):
        folder = store.folder(kind, key)
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        if everything or newest < limit:
            freed += store.delete(kind, key)
            count += 1
    if everything:
        for path in (*store.root.glob("pixels/*.json"), *store.root.glob("lists/*.json")):  # what is known of images
            path.unlink()
    for path in store.root.rglob("*.tmp"):
        if path.stat().st_mtime < time.time() - 3600:
            path.unlink()
    click.echo(f"{count} artefacts deleted, {freed / 1e6:.1f} MB freed")
