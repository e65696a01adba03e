"""`rdp-bench verify`: whether the numbers and claims of a results folder follow from its predictions."""

import sys
from pathlib import Path

import click

from rdp_bench.cli.common import DEFAULT_OUT


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=DEFAULT_OUT)
def verify(out: Path) -> None:
    """Verify the results folder OUT, by default rdp-bench-out, without a cache.

    Every number of results.csv is computed again from OUT/predictions, the predictions are compared with the run
    record, and all hashes are checked. So are the cards of audits, except for checks that need the networks, and every
    claim of a claims.json. A line per run and card; the exit status is 1 if a run, a card or a claim fails. The folder
    `report` is not read; write it again with rdp-bench report.
    """
    from rdp_bench.audits.verify import verify_cards, without_card
    from rdp_bench.results import verify as verifying

    found = list(verifying.verify(out))
    for each in found:
        click.echo(str(each))
    claims = verifying.verify_claims(out, found)
    if claims:
        click.echo(str(claims))
    failed = sum(bool(each.problems) for each in found)
    runs = {each.grid: each.run for each in found if each.run}
    cards = list(verify_cards(out, runs))
    for card in cards:
        click.echo(str(card))
    for unfinished in without_card(out, runs):
        click.echo(f"note  {unfinished}")
    click.echo(f"{len(found) - failed} of {len(found)} runs pass")
    if cards:
        click.echo(f"{sum(not card.problems for card in cards)} of {len(cards)} cards of audits pass")
    if failed or any(card.problems for card in cards) or (claims and claims.problems):
        sys.exit(1)
