"""The bench of defenses whose truth is known (tests/plugin/faults.py): the audit names each fault, and raises no other.

python -m tests.audit.test_confusion      # prints the table: faults x checks
"""

import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rdp_bench.audits.card import Card
from tests.helpers import audits

TRUTH = {
    "fault/staircase": {"C3.c"},
    "fault/resize": {"C9"},
    "fault/noise": {"C6.b"},
    "fault/sign": {"C5"},
    "fault/detach": {"C4.a"},
    "fault/leak": {"C3.f"},
    "fault/memory": {"C13.b"},
    "fault/secret": {"C3.a"},
    "fault/saturated": {"C3.d"},
}
"""The checks that name the fault of each."""

HONEST = ("fault/identity", "honest/average", "honest/half")

ROOTS = frozenset().union(*TRUTH.values()) - {"C6"}
"""Checks that name one fault: none of them fails for another. C6 is about the size of the budget, too."""


def audited(folder: Path, name: str) -> Card:
    """The card of one of them; the saturated softmax is a target."""
    return audits.card(folder, "none", name) if name == "fault/saturated" else audits.card(folder, name)


def failing(card: Card) -> set[str]:
    return {finding.id for finding in card.findings if finding.status == "FAIL"}


@pytest.mark.parametrize("name", TRUTH)
def test_the_fault_of_each_is_named(name: str, tmp_path: Path) -> None:
    found = failing(audited(tmp_path, name))
    assert found >= TRUTH[name]
    # A defense that gives back whole stored images has no gradient either.
    consequences = {"C3.c"} if name in ("fault/leak", "fault/memory") else set()
    if name in ("fault/resize", "fault/noise"):  # both are luck, and few draws
        consequences = {"C6.b", "C9"}
    assert not found & ROOTS - TRUTH[name] - consequences


@pytest.mark.parametrize("name", HONEST)
def test_nothing_is_raised_on_honest_ones(name: str, tmp_path: Path) -> None:
    assert not failing(audited(tmp_path, name))


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    for name in (*TRUTH, *HONEST):
        with TemporaryDirectory() as folder:
            card = audited(Path(folder), name)
        tiers = ", ".join(f"{tier.name} {tier.accuracy:.0f}" for tier in card.tiers)
        warned = sorted(finding.id for finding in card.findings if finding.status == "WARN")
        sys.stdout.write(f"{name:18} FAIL {sorted(failing(card))} WARN {warned} ({tiers})\n")


if __name__ == "__main__":
    main()
