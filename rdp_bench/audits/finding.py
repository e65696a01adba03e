"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL", "n/a"]

PASS: Status = "PASS"  # noqa: S105 - of a check
WARN: Status = "WARN"
FAIL: Status = "FAIL"
NA: Status = "n/a"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    id: str
    """C1 to C13, with a letter of its own after a point where a check has several parts."""
    title: str
    status: Status
    evidence: str
    """The number behind it; for `n/a`, what is missing."""
    meaning: str = ""
    advice: str = ""


def missing(id_: str, title: str, what: str) -> Finding:
    """A check that does not apply, or lacks what it reads."""
    return Finding(id_, title, NA, what)
