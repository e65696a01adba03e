"""`rdp-bench show`: the tables of a results folder in the terminal."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from rdp_bench.cache.files import Location
from rdp_bench.cli import common
from rdp_bench.errors import UsageError
from rdp_bench.terminal import counted


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=common.DEFAULT_OUT)
@click.option("--only", multiple=True, metavar="GRID", help="Only these grids; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of all cells.")
@click.option("--csv", "as_csv", is_flag=True, help="All cells, with the columns of results.csv.")
@click.option("--intervals/--no-intervals", default=True, help="Print the 95 % interval after each value.")
@common.cache
def show(
    out: Path, only: tuple[str, ...], as_json: bool, as_csv: bool, intervals: bool, cache: Location | None
) -> None:
    """Print the leaderboard and the tables of the results folder OUT, by default rdp-bench-out.

    A * marks the values that a report prints in bold. The exit status is 1 if a computed result cannot be read.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv are two formats; use one")
    from rdp_bench.api import load_results

    result = load_results(out, only=only, cache=cache)
    rows = [row for run in result.runs for row in run.rows]
    if as_csv:
        from rdp_bench import csvtext
        from rdp_bench.results.rows import COLUMNS

        click.echo(csvtext.records(COLUMNS, rows), nl=False)
    elif as_json:
        click.echo(json.dumps([_typed(row) for row in rows], indent=1))
    else:
        for run in result.runs:
            about = run.record["dataset"]
            click.echo(f"{run.record.get('title') or run.grid}: {counted(about['n'], 'image')} of {about['name']}\n")
        if board := result.leaderboard():
            click.echo(board)
        click.echo(result.table(intervals=intervals), nl=False)
        if result.failed:
            first = ": ".join(next(iter(result.failed.items())))
            click.echo(f"{len(result.failed)} cells have no number; the first: {first}", err=True)
    if any(run.unread for run in result.runs):
        click.echo("some results that the run record lists as done could not be read; run the grid again", err=True)
        sys.exit(1)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row with numbers as numbers, and null where there is none."""
    numbers = ("eps", "value", "ci_low", "ci_high", "paper", "seconds")
    return {name: (float(value) if value != "" else None) if name in numbers else value for name, value in row.items()}
