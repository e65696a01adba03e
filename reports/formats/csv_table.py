"""Exhibits as CSV: a sheet in the table's own shape, and one line a number with its interval and tests."""

from collections.abc import Iterable, Sequence

from rdp_bench import csvtext
from rdp_bench.reports.tables.table import Table

FLAGS = {
    "best": "best",
    "tied": "tied",
    "lower_than_none": "significantly_lower",
    "worse_than_none": "significantly_worse",
}
"""Columns, and what they say of a `Verdict`."""
TEST_COLUMNS = (
    "source", "defense", "column", "metric", "value", "ci_low", "ci_high", "paper", "difference", "p_none", "p_best",
    *FLAGS, "status", "reason",
)  # fmt: skip


def shape(table: Table) -> str:
    """The table as printed: source, defense, then a column each; empty where there is nothing."""
    head = ["source", table.head.lower(), *(table.keys or table.columns)]
    return csvtext.rows(
        head,
        (
            [group.label, line.label, *(entry.text or _number(entry.value) for entry in line.cells)]
            for group in table.groups
            for line in group.rows
        ),
    )


def tests(table: Table) -> str:
    """Every number with its interval, the paper's, Holm-adjusted p-values and what follows from them."""

    def lines() -> Iterable[Sequence[str]]:
        for group in table.groups:
            for line in group.rows:
                for column, entry in zip(table.keys or table.columns, line.cells, strict=True):
                    both = entry.value is not None and entry.paper is not None
                    verdict = entry.verdict
                    yield (
                        group.label, line.label, column, table.measure or table.metric,
                        *map(_number, (entry.value, entry.low, entry.high, entry.paper)),
                        _number(entry.value - entry.paper if both else None),  # type: ignore[operator]
                        *("" if p is None else f"{p:.6g}" for p in (verdict.p_none, verdict.p_best)),
                        *(str(getattr(verdict, name)).lower() for name in FLAGS.values()),
                        entry.status, entry.reason,
                    )  # fmt: skip

    return csvtext.rows(TEST_COLUMNS, lines())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
