"""The tables of a report, in its order. A new kind of table is a function from a run and a line here."""

from collections.abc import Callable, Sequence

from rdp_bench.reports.tables import audits, quality_and_cost, samples, success, table
from rdp_bench.reports.tables.table import Table
from rdp_bench.results.cards import Card
from rdp_bench.results.rows import Run

TABLES: dict[str, Callable[[Run], list[Table]]] = {
    "errors": table.error_tables,
    "clean": table.clean_tables,
    "success": success.success_tables,
    "targeted": success.targeted_tables,
    "samples": samples.tables,
    "quality and cost": quality_and_cost.tables,
}

OF_AUDITS: dict[str, Callable[[Sequence[Card]], list[Table]]] = {"side by side": audits.side_by_side}
"""The tables of audits."""


def all_tables(run: Run) -> list[Table]:
    """Every table of a run; a kind that the run has nothing of makes none."""
    return [each for make in TABLES.values() for each in make(run)]


def audit_tables(cards: Sequence[Card]) -> list[Table]:
    """Every table of audits."""
    return [each for make in OF_AUDITS.values() for each in make(cards)]
