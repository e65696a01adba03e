"""Whether the cards of OUT/audit follow from OUT/predictions: tiers, checks that read predictions, and the verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.audits.card import verdict
from rdp_bench.audits.checks_of_cells import CHECKS
from rdp_bench.audits.evidence import Cell, Evidence, from_predictions
from rdp_bench.audits.parts import Subject
from rdp_bench.audits.tiers import tiers
from rdp_bench.errors import RdpBenchError
from rdp_bench.results import cards

if TYPE_CHECKING:
    from rdp_bench.results.rows import Run


@dataclass(frozen=True)
class CardVerified:
    """What was found about one card: `problems` is empty if all agrees."""

    name: str
    problems: tuple[str, ...]
    numbers: int = 0
    """Tiers and checks that were computed again."""
    probes: int = 0
    """Checks that need the networks: they were not computed again."""

    def __str__(self) -> str:
        if self.problems:
            return "\n".join(f"FAIL  card {self.name}: {problem}" for problem in self.problems)
        return (
            f"pass  card {self.name}: {self.numbers} tiers and checks follow from predictions; {self.probes} checks "
            "need the networks and were not computed again"
        )


def verify_cards(out: Path, runs: Mapping[str, Run]) -> Iterator[CardVerified]:
    """Compute every card of OUT/audit again, as far as predictions give it.

    Args:
        out: the results folder.
        runs: its runs by grid, as `results.verify` read them.
    """
    unread: list[str] = []
    found = cards.load(out, unread.append)
    for problem in unread:
        yield CardVerified("unread", (problem,))
    for card in found:
        try:
            yield _verified(card, runs)
        except RdpBenchError as error:
            yield CardVerified(card.name, (str(error),))


def _verified(card: cards.Card, runs: Mapping[str, Run]) -> CardVerified:
    if missing := [name for name in card.runs if name not in runs]:
        return CardVerified(card.name, (f"it reads the run {missing[0]}, which this folder does not have",))
    subject = Subject(card.defense, card.target, card.dataset, card.eps, card.budget)
    cells = [cell for name in card.runs for cell in _cells(name.removeprefix(f"{card.grid}-{card.name}-"), runs[name])]
    evidence = Evidence(subject, card.random, tuple(cells))
    computed = {tier.name: tier for tier in tiers(evidence)}
    stored = {tier.name: tier for tier in card.tiers}
    problems = [
        f"tier {name} is {'missing' if name in computed else 'there, and no prediction is of it'}"
        for name in computed.keys() ^ stored.keys()
    ]
    for name in computed.keys() & stored.keys():
        problems += _of_tier(stored[name], computed[name])
    said = {finding.id: finding for finding in card.findings}
    checks = [check(evidence) for check in CHECKS]
    problems += [
        f"check {now.id} is {_words(said[now.id]) if now.id in said else 'missing'}, by the predictions {_words(now)}"
        for now in checks
        if now.id not in said or _core(said[now.id]) != _core(now)
    ]
    if not problems and card.verdict != (wanted := verdict(evidence, card.tiers, card.findings)):
        problems.append(f'its verdict is "{card.verdict}", and its tiers and checks say "{wanted}"')
    return CardVerified(
        card.name, tuple(sorted(problems)), len(computed) + len(checks), len(card.findings) - len(checks)
    )


def _cells(part: str, run: Run) -> Iterator[Cell]:
    """The cells of one part, from the predictions of its run."""
    for cell in run.cells:
        facts = (part, cell.source, cell.attack, cell.eps, cell.defense)
        if cell.status != "done" or run.stored is None:
            yield Cell(*facts, reason=cell.reason)
            continue
        arrays = run.stored.evaluated(cell)
        yield from_predictions(*facts, arrays["predicted"], arrays["label"])


def _of_tier(stored: cards.Tier, computed: cards.Tier) -> Iterator[str]:
    for field in fields(computed):
        here, there = getattr(stored, field.name), getattr(computed, field.name)
        if isinstance(here, float) and isinstance(there, float) and math.isclose(here, there, abs_tol=1e-9):
            continue
        if here != there:
            yield f"tier {computed.name}: {field.name} is {here!r}, by the predictions {there!r}"


def _core(finding: cards.Finding) -> tuple[str, list[str]]:
    """What must be equal: the status and the numbers. Another version may use other words."""
    return finding.status, re.findall(r"\d+(?:\.\d+)?", finding.evidence)


def _words(finding: cards.Finding) -> str:
    return f"{finding.status} ({finding.evidence})"
