"""The card of an audited defense: tiers, checks and the verdict, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rdp_bench.audits.checks import FAIL, Finding, findings
from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.tiers import Tier, failed_attacks, headline, tiers
from rdp_bench.results.cards import Card
from rdp_bench.results.rows import named
from rdp_bench.specs import UNDEFENDED, plain, show_level

__all__ = ["Card", "card_of", "verdict"]


NOT_OF_THE_NUMBER = ("C1", "C6.b", "C9")
"""Checks whose failure says nothing against the headline: it is no better than nothing, resists attacks without EOT
only, or owes to luck what the tier of fixed noise leaves out."""


def card_of(evidence: Evidence, *, unmeasured: Sequence[str] = (), **more: Any) -> Card:
    """The card of an audit's evidence.

    Args:
        evidence: what the runs and the probes found.
        unmeasured: probes without a number, and why.
        more: further fields of the card.
    """
    subject = evidence.subject
    found, said = tiers(evidence), findings(evidence)
    failed = (*(f"{cell.where}: {cell.reason}" for cell in evidence.failed), *unmeasured)
    return Card(
        subject.defense, subject.target, subject.images, max((tier.n for tier in found), default=0), subject.eps,
        subject.budget, evidence.random, verdict(evidence, found, said, more.get("names", {})), tuple(found),
        tuple(said), failed=failed, **more,
    )  # fmt: skip


def verdict(evidence: Evidence, found: Sequence[Tier], said: Sequence[Finding], names: Mapping[str, str]) -> str:
    """The audit in one sentence, or two where the attacks cannot be believed; `names`: how reports write labels."""
    subject, worst = evidence.subject, headline(found)
    defense = named(subject.defense, names)
    what = "the target" if plain(subject.defense) == UNDEFENDED else defense
    if worst is None:
        return f"No attack on {what} was measured: nothing can be said of it."
    who = {
        "transfer": "an attacker who knows neither defense nor target",
        "blind": "an attacker who knows the target alone",
        "grey-box": "an attacker who knows the target and guesses at the defense",
        "black-box": "an attacker who sees the outputs alone",
        "white-box": f"an attacker who knows {what}",
        "fixed": f"an attacker who knows {defense} and its noise",
    }[worst.name]  # fmt: skip
    text = f"At eps {show_level(subject.eps)} {who} leaves {worst.low:.0f} to {worst.high:.0f} % of images right"
    transfer = next((tier for tier in found if tier.name == "transfer"), None)
    if transfer is not None and transfer.low > worst.high:
        text += f"; transfer numbers ({transfer.accuracy:.0f} %) say nothing about its robustness"
    if parts := [f"{len(lost)} of the {name} tier" for name, lost in failed_attacks(evidence).items()]:
        text += f". Planned attacks have no number: {', '.join(parts)}"
    clean = next((tier for tier in found if tier.name == "clean"), None)
    if clean is not None and clean.accuracy == 0:
        text += ". No clean image is right either: there was nothing to attack"
    faults = [finding for finding in said if finding.status == FAIL]
    doubts = [finding for finding in faults if finding.id not in NOT_OF_THE_NUMBER]
    if faults:
        which = ", ".join(f"{finding.id} {finding.title}" for finding in (doubts or faults)[:3])
        count = len(doubts or faults)
        fail = "1 check fails" if count == 1 else f"{count} checks fail"
        doubted = bool(doubts) and worst.accuracy > 0  # below nothing there is nothing
        text += f". The true number is lower or unknown: {fail} ({which})" if doubted else f". {fail} ({which})"
    return text + "."
