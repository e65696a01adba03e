"""`rdp-bench results`: published runs, what they measured, and whether it follows from their predictions."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rdp_bench.errors import UsageError
from rdp_bench.terminal import printable

if TYPE_CHECKING:
    from rdp_bench.reports.published import PublishedRun

SHIPPED = Path("docs", "results", "runs")
"""Where published runs are in a checkout."""

_HEAD = ("name", "grid", "images", "date", "version", "target", "attackers", "defenses", "lowest mean error, %",
         "no defense, %", "claims", "verified")  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, metavar="[FOLDER|NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON list, with claims.")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each run and target.")
def results(names: tuple[str, ...], as_json: bool, as_csv: bool) -> None:
    """List published runs: those in docs/results/runs of a checkout, or the results folders given as FOLDER.

    Each run and target has one line: the defense with the lowest mean error and its 95 % interval, the error without a
    defense and how the two compare in a paired test, and whether all numbers and claims follow from the predictions.
    For a single NAME or FOLDER, its claims and the commands that repeat it are printed, too. The exit status is 1 if a
    folder is not verified.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv are two formats; use one")
    from rdp_bench.reports import published

    found = _found(names)
    if as_json:
        click.echo(json.dumps(published.as_json(found), indent=1))
    elif as_csv:
        from rdp_bench import csvtext

        lines = [line for run in found for line in run.lines]
        click.echo(csvtext.records(published.COLUMNS, lines), nl=False)
    elif not found:
        click.echo(f"there are no published runs in {SHIPPED} yet; docs/results/submitting.md says how to add one")
    else:
        for line in _table(found):
            click.echo(line)
        if len(names) == 1:
            for line in _details(found[0]):
                click.echo(line)
    broken = [run for run in found if run.problems]
    for run in broken:
        more = f" (and {len(run.problems) - 1} more: rdp-bench verify)" if len(run.problems) > 1 else ""
        click.echo(f"{_clean(run.name)} is not verified: {_clean(run.problems[0])}{more}", err=True)
    if broken:
        sys.exit(1)


def _found(names: Sequence[str]) -> "list[PublishedRun]":
    """The folders that are named, or all that ship."""
    from rdp_bench.audits.verify import problems_of_cards
    from rdp_bench.reports import published

    folder = _shipped_folder()
    if not names:
        if folder is None:
            raise UsageError(
                "published runs are in docs/results/runs of the repository, which is neither the current folder nor "
                "where this package was imported from; name results folders"
            )
        return published.shipped(folder, problems_of_cards)
    known = {path.name for path in published.folders(folder)} if folder else set()
    paths = [folder / name if folder and name in known else _existing(name, known) for name in names]
    return [published.read_folder(path, problems_of_cards) for path in paths]


def _existing(name: str, known: set[str]) -> Path:
    if not Path(name).exists():
        ships = f"; published here: {', '.join(sorted(known))}" if known else ""
        raise UsageError(f"{name} is neither a folder nor a published run{ships}")
    return Path(name)


def _shipped_folder() -> Path | None:
    """docs/results/runs of the current folder, or of the checkout that this package was imported from."""
    for root in (Path(), Path(__file__).resolve().parents[2]):
        if (root / SHIPPED.parent).is_dir():  # without a published run, git has no folder `runs`
            return root / SHIPPED
    return None


def _table(found: "Sequence[PublishedRun]") -> Iterator[str]:
    from rdp_bench.reports.published import best_in_words, claims_in_words, none_in_words

    rows: list[tuple[str, ...]] = [_HEAD]
    for run in found:
        for line in run.lines:
            attackers = f"{line['attackers']}, {line['eps']}" if line["attackers"] else "none"
            facts = (line[name] for name in ("grid", "images", "date", "version", "target"))
            words = (best_in_words(line), none_in_words(line), claims_in_words(line))
            cells = (run.name, *facts, attackers, line["defenses"], *words, line["verified"])
            rows.append(tuple(_clean(str(cell)) for cell in cells))
        if not run.lines:
            rows.append((_clean(run.name), *["-"] * (len(_HEAD) - 2), "no" if run.problems else "yes"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _details(run: "PublishedRun") -> Iterator[str]:
    """Title, authors, claims and commands."""
    from rdp_bench.reports.published import repeat_commands

    if run.submission is not None:
        yield from ("", f"{_clean(run.title)} ({_clean(', '.join(run.submission.authors))})")
        yield from map(_clean, run.submission.links)
        yield from ("", "claims")
        for each in run.claims:
            state = "holds" if not each.problem else "FAILS"
            yield _clean(f"  {state}  {each.claim.says} {each.problem or each.found}")
        yield from ("", "as its authors ran it")
        yield from (f"  {_clean(command)}" for command in run.submission.commands)
    if commands := list(repeat_commands(run, run.folder)):
        yield from ("", "to repeat it and compare every prediction")
        yield from (f"  {_clean(command)}" for command in commands)


def _clean(text: str) -> str:
    return printable(text, lines=False)
