"""`rdp-bench status`: how far runs are, from the cache alone."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.cli import common
from rdp_bench.errors import DamagedError, UnreadableError, UsageError
from rdp_bench.terminal import printable

if TYPE_CHECKING:
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.executors.board import Board

SHOWN = 20
"""At most so many lines of workers, and of failed jobs."""

RECENT = 5
"""Runs that are shown where none is named."""


@click.command()
@click.argument("what", metavar="[GRID|OUT]", required=False)
@common.cache
def status(what: str | None, cache: Path | None) -> None:
    """Print which jobs of a run are done, running and failed.

    GRID is the name of a grid, OUT the results folder of a run; without either, the last runs are shown. Everything is
    read from the cache: the command works on every machine that sees it, during and after a run, for all executors.

    The exit status is 1 if a job has failed.
    """
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.executors.board import boards

    store = Store(cache, read_only=True)
    found = [(board, about) for board in boards(store) if (about := board.about())]
    if what is not None:
        name = what.removesuffix(".toml").rpartition("/")[2]
        out = Path(what).resolve()
        named = [each for each in found if each[1].get("grid") == name or _is(each[1].get("out"), out)]
        found = named[:1]
    if not found:
        raise UsageError(
            f"{store.root} has no notes of {'a run' if what is None else f'a run of {what}'}; "
            "start one with: rdp-bench run, and name its --cache here"
        )
    failed = [_show(store, board, about) for board, about in found[:RECENT]]
    if any(failed):
        sys.exit(1)


def _is(noted: Any, out: Path) -> bool:
    return isinstance(noted, str) and Path(noted).resolve() == out


def _show(store: "Store", board: "Board", about: dict[str, Any]) -> bool:
    """Print one run; whether a job of it has failed."""
    from rdp_bench.engine.progress import duration

    jobs = about["jobs"]
    left = [int(number) for number, job in jobs.items() if number.isdecimal() and not _done(store, job)]
    failures = {number: note for number, note in board.failures().items() if number in left}
    workers = board.workers()
    busy = {facts.get("number") for facts in workers.values()}
    running = [number for number in left if number in busy and number not in failures]
    counts = {
        "done": len(jobs) - len(left), "running": len(running), "failed": len(failures),
        "waiting": len(left) - len(running) - len(failures),
    }  # fmt: skip
    click.echo(f"{_text(about.get('grid'))}  {_text(about.get('command'))}  {_text(about.get('out'))}")
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")
    click.echo(f"  {len(jobs)} jobs: {said}; {len(workers)} workers")
    for name, facts in sorted(workers.items())[:SHOWN]:
        if "job" not in facts:
            click.echo(f"  worker {_text(name)}: starting")
            continue
        rows = f"images {facts.get('low')} to {facts.get('high')}, {facts.get('images')} stored"
        since = duration(max(0.0, time.time() - float(facts.get("since", time.time()))))
        click.echo(
            f"  worker {_text(name)} on {_text(facts.get('host'))}: {_text(facts.get('job'))}, {rows}, for {since}"
        )
    for note in list(failures.values())[:SHOWN]:
        click.echo(f"  failed: {_text(note.get('job'))}: {_text(note.get('reason'))} ({_text(note.get('worker'))})")
    return bool(failures)


def _done(store: "Store", job: dict[str, Any]) -> bool:
    try:
        return all(store.open(kind, key).complete for kind, key in job["artefacts"])
    except (DamagedError, UnreadableError, KeyError, TypeError, ValueError):
        return False


def _text(value: object) -> str:
    return printable(str(value), lines=False)
