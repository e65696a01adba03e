"""A grid of audits, from `rdp-bench run` or `rdp-bench audit`: its parts, its cards, what is printed."""

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from rdp_bench.api.names import refuse_unknown
from rdp_bench.cli import suite
from rdp_bench.cli.perform import perform, plan_of, report_command
from rdp_bench.errors import RdpBenchError, StorageError, UsageError
from rdp_bench.results.cards import FOLDER

if TYPE_CHECKING:
    from rdp_bench.audits.grid import AuditGrid
    from rdp_bench.audits.parts import Subject
    from rdp_bench.engine.options import RunOptions
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run
    from rdp_bench.results.cards import Card

log = logging.getLogger("rdp_bench")


def run_all(grid: "AuditGrid", options: "RunOptions") -> int:
    """Perform audits, or estimate their time; returns the worst exit status. One that fails does not stop the next.

    Raises:
        UsageError: an audit cannot be planned; nothing has been run then.
    """
    from rdp_bench import plugins
    from rdp_bench.audits.run import planned
    from rdp_bench.engine.executors.kept import keeping

    grid = replace(grid.extend(options.added), plugins=(*options.plugins, *grid.plugins))
    plugins.load(grid.plugins)
    subjects = grid.subjects(options.models_dir)
    parts = [list(grid.parts(subject, options.limit)) for subject in subjects]
    every = [one for each in parts for _, one in each]
    refuse_unknown(every, options.names)
    if options.dry_run:
        status = suite.dry_run(every, options)
        click.echo("not included: the probes of the checks, on a few images each (on all images for flat losses)")
        return status
    plans = [
        planned(subject, lambda one: plan_of(one, options), each) for subject, each in zip(subjects, parts, strict=True)
    ]
    made: set[str] | None = set() if options.fresh else None
    statuses, cards = [], []
    with keeping():
        for number, (subject, each) in enumerate(zip(subjects, plans, strict=True), 1):
            heading = f"[{number}/{len(subjects)}] " if len(subjects) > 1 else ""
            status, card = _one(grid, subject, each, options, made, heading, alone=len(subjects) == 1)
            statuses.append(status)
            cards += [card] if card else []
    if len(subjects) > 1:
        _print_side_by_side(cards, len(subjects), options)
    return max(statuses)


def _one(
    grid: "AuditGrid",
    subject: "Subject",
    plans: "list[tuple[str, Plan]]",
    options: "RunOptions",
    made: set[str] | None,
    heading: str,
    *,
    alone: bool,
) -> "tuple[int, Card | None]":
    """Perform an audit, print its card and write it; its exit status."""
    from rdp_bench.audits.run import PendingError, audit
    from rdp_bench.reports import audits

    def one(plan: "Plan", part: str) -> "Run":
        return perform(plan, options, made, heading + part)

    command = shlex.join(["rdp-bench", *sys.argv[1:]])
    try:
        card = audit(subject, plans, one, command, fresh=made, grid=grid.name)
    except PendingError as error:
        click.echo(str(error), err=True)
        return 0, None
    except (StorageError, BrokenPipeError):
        raise  # nothing after it could be kept, or read
    except RdpBenchError as error:
        if alone:
            raise
        click.echo(f"{heading}not audited: {error}", err=True)
        return 2 if isinstance(error, UsageError) else 1, None
    card, files = audits.write(card, options.out)
    if alone:
        click.echo(audits.text(card))
        click.echo(f"\n{', '.join(str(file) for file in files)}; next: {report_command(options.out, options.cache)}")
    else:
        click.echo(f"{heading}{card.verdict}")
        for reason in card.failed[:5]:
            click.echo(f"failed: {reason}", err=True)
    return int(bool(card.failed)), card


def _print_side_by_side(cards: "Sequence[Card]", asked: int, options: "RunOptions") -> None:
    from rdp_bench.reports.formats.text import render
    from rdp_bench.reports.tables.registry import audit_tables

    for table in audit_tables(cards):
        click.echo(f"\n{render(table)}")
    said = f"{len(cards)} of {asked} audits are complete; cards in {options.out / FOLDER}"
    click.echo(f"\n{said}; next: {report_command(options.out, options.cache)}")
