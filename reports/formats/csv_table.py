"""Exhibits as CSV: a sheet in the table's own shape, and one line a number with its interval and tests."""

from collections.abc import Iterable, Sequence

from rdp_bench import csvtext
from rdp_bench.reports.tables.table import Table

TEST_COLUMNS = (
    "source", "defense", "column", "metric", "value", "ci_low", "ci_high", "paper", "difference", "p_none", "p_best",
    "best", "tied", "worse_than_none", "status", "reason",
)  # fmt: skip


def shape(table: Table) -> str:
    """The table as printed: source, defense, then a column each; empty where there is no number."""
    head = ["source", "defense", *table.columns]
    return csvtext.rows(
        head,
        (
            [group.label, line.label, *(_number(entry.value) for entry in line.cells)]
            for group in table.groups
            for line in group.rows
        ),
    )


def tests(table: Table) -> str:
    """Every number with its interval, the paper's, Holm-adjusted p-values and what follows from them."""

    def lines() -> Iterable[Sequence[str]]:
        for group in table.groups:
            for line in group.rows:
                for column, entry in zip(table.columns, line.cells, strict=True):
                    both = entry.value is not None and entry.paper is not None
                    verdict = entry.verdict
                    yield (
                        group.label, line.label, column, table.measure or table.metric,
                        *map(_number, (entry.value, entry.low, entry.high, entry.paper)),
                        _number(entry.value - entry.paper if both else None),  # type: ignore[operator]
                        *("" if p is None else f"{p:.6g}" for p in (verdict.p_none, verdict.p_best)),
                        *(str(flag).lower() for flag in (verdict.best, verdict.tied, verdict.significantly_worse)),
                        entry.status, entry.reason,
                    )  # fmt: skip

    return csvtext.rows(TEST_COLUMNS, lines())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
