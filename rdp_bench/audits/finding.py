"""What a check says: how its results are written."""

from rdp_bench.results.cards import Finding, Status

__all__ = ["FAIL", "NA", "PASS", "WARN", "Finding", "Status", "missing"]

PASS: Status = "PASS"  # noqa: S105 - of a check
WARN: Status = "WARN"
FAIL: Status = "FAIL"
NA: Status = "n/a"


def missing(id_: str, title: str, what: str) -> Finding:
    """A check that does not apply, or lacks what it reads."""
    return Finding(id_, title, NA, what)
