"""The card of an audited defense: tiers, checks and the verdict, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rdp_bench.audits.checks import FAIL, Finding, findings
from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.tiers import Tier, headline, tiers

FORMAT = 1
"""Of the JSON."""


@dataclass(frozen=True)
class Card:
    """What an audit says."""

    defense: str
    target: str
    dataset: str
    eps: float
    budget: str
    random: bool
    verdict: str
    tiers: tuple[Tier, ...]
    findings: tuple[Finding, ...]
    attacks: tuple[Mapping[str, Any], ...]
    """Each attack's label with its resolved parameters."""
    cost: Mapping[str, float]
    """Gradients per image, and minutes."""
    command: str
    failed: tuple[str, ...] = ()
    """Cells without a number, and why."""

    def to_json(self) -> str:
        """The card as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def card_of(
    evidence: Evidence,
    *,
    attacks: Sequence[Mapping[str, Any]] = (),
    cost: Mapping[str, float] | None = None,
    command: str = "",
) -> Card:
    """The card of an audit's evidence."""
    subject = evidence.subject
    found, said = tiers(evidence), findings(evidence)
    return Card(
        subject.defense, subject.target, subject.dataset, subject.eps, subject.budget, evidence.random,
        verdict(evidence, found, said), tuple(found), tuple(said), tuple(attacks), dict(cost or {}), command,
        tuple(f"{cell.part}: {cell}: {cell.reason}" for cell in evidence.failed),
    )  # fmt: skip


def verdict(evidence: Evidence, found: Sequence[Tier], said: Sequence[Finding]) -> str:
    """The audit in one sentence, or two where the attacks cannot be believed."""
    subject, worst = evidence.subject, headline(found)
    if worst is None:
        return f"No attack on {subject.defense} was measured: nothing can be said of it."
    who = {
        "transfer": "an attacker who knows neither defense nor target",
        "grey-box": "an attacker who knows the target and guesses at the defense",
        "black-box": "an attacker who sees the outputs alone",
        "white-box": f"an attacker who knows {subject.defense}",
        "fixed": f"an attacker who knows {subject.defense} and its noise",
    }[worst.name]  # fmt: skip
    text = f"At eps {subject.eps:g} {who} leaves {worst.low:.0f} to {worst.high:.0f} % of images right"
    transfer = next((tier for tier in found if tier.name == "transfer"), None)
    if transfer is not None and transfer.low > worst.high:
        text += f"; transfer numbers ({transfer.accuracy:.0f} %) say nothing about its robustness"
    if incomplete := [tier for tier in found if tier.failed]:
        parts = ", ".join(f"{len(tier.failed)} of the {tier.name} tier" for tier in incomplete)
        text += f". Planned attacks have no number: {parts}"
    if faults := [finding for finding in said if finding.status == FAIL]:
        names = ", ".join(f"{finding.id} {finding.title}" for finding in faults[:3])
        text += f". The true number is lower or unknown: {len(faults)} checks fail ({names})"
    return text + "."
