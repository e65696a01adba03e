"""Whether the cards of OUT/audit follow from OUT/predictions: tiers, checks that read predictions, and the verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.audits.card import verdict
from rdp_bench.audits.checks import findings
from rdp_bench.audits.checks_of_cells import CHECKS
from rdp_bench.audits.evidence import Cell, Evidence, from_predictions
from rdp_bench.audits.parts import BUDGETS, EPS, EVERY_PART, Subject, least_parts
from rdp_bench.audits.tiers import tiers
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.defended import is_white_box, white_box
from rdp_bench.results import cards
from rdp_bench.specs import CLEAN, show

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

    @property
    def lines(self) -> list[str]:
        """The problems with the card's name."""
        return [f"card {self.name}: {problem}" for problem in self.problems]

    def __str__(self) -> str:
        if self.problems:
            return "\n".join(f"FAIL  {line}" for line in self.lines)
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


def problems_of_cards(out: Path, runs: Mapping[str, Run]) -> list[str]:
    """What `verify_cards` finds wrong, and audits without a card, one line each."""
    return [line for each in verify_cards(out, runs) for line in each.lines] + without_card(out, runs)


_PART = re.compile(rf"(.+-eps\S+-(?:{'|'.join(BUDGETS)}))-(?:{'|'.join(map(re.escape, EVERY_PART))})")


def without_card(out: Path, runs: Mapping[str, Run]) -> list[str]:
    """Audits of which OUT has runs and no card, one line each: they have not finished, or the card was deleted."""
    carded = {name for card in cards.load(out, lambda _: None) for name in card.runs}
    audits = {found[1] for name in runs if (found := _PART.fullmatch(name)) and name not in carded}
    return [
        f"{name}: runs of an audit without its card; repeat its command, or delete these runs"
        for name in sorted(audits)
    ]


def _verified(card: cards.Card, runs: Mapping[str, Run]) -> CardVerified:
    if wrong := list(_of_runs(card, runs)):
        return CardVerified(card.name, tuple(wrong))
    subject = Subject(card.defense, card.target, card.dataset, card.eps, card.budget)
    cells = [cell for name in card.runs for cell in _cells(name.removeprefix(_prefix(card)), runs[name])]
    evidence = Evidence(subject, card.random, tuple(cells))
    computed = {tier.name: tier for tier in tiers(evidence)}
    stored = {tier.name: tier for tier in card.tiers}
    problems = [
        f"tier {name} is {'missing' if name in computed else 'there, and no prediction is of it'}"
        for name in computed.keys() ^ stored.keys()
    ]
    for name in computed.keys() & stored.keys():
        problems += _of_tier(stored[name], computed[name])
    if card.n != (wanted := max((tier.n for tier in computed.values()), default=0)):
        problems.append(f"it says {card.n} images, and the predictions are of {wanted}")
    said = {finding.id: finding for finding in card.findings}
    if (ids := sorted(each.id for each in card.findings)) != (all_ids := sorted(e.id for e in findings(evidence))):
        problems.append(f"its checks are {', '.join(ids)}, and an audit has {', '.join(all_ids)}")
    checks = [check(evidence) for check in CHECKS]
    problems += [
        f"check {now.id} is {_words(said[now.id])}, by the predictions {_words(now)}"
        for now in checks
        if now.id in said and _core(said[now.id]) != _core(now)
    ]
    lost = {f"{cell.where}: {cell.reason}" for cell in evidence.failed}
    if unsaid := lost - set(card.failed):
        problems.append(f"it does not say that a cell has no number: {min(unsaid)}")
    if not problems and card.verdict != (text := verdict(evidence, card.tiers, card.findings, card.names)):
        problems.append(f'its verdict is "{card.verdict}", and its tiers and checks say "{text}"')
    return CardVerified(
        card.name, tuple(sorted(problems)), len(computed) + len(checks), len(card.findings) - len(checks)
    )


def _prefix(card: cards.Card) -> str:
    """What the names of its runs begin with; the part follows."""
    return f"{card.grid}-{card.name}-"


def _of_runs(card: cards.Card, runs: Mapping[str, Run]) -> Iterator[str]:
    """Runs that the card leaves out, invents, or takes from another audit."""
    ours = {name for name in runs if name.startswith(_prefix(card))}
    for name in sorted(ours ^ set(card.runs)):
        if name in ours:
            yield f"it leaves out the run {name}: audit again, or delete this run if it is of an earlier audit"
        else:
            yield f"it reads the run {name}, " + ("of another audit" if name in runs else "which this folder lacks")
    had = {name.removeprefix(_prefix(card)) for name in ours}
    for part in sorted(least_parts(card.defense, random=card.random) - had):
        yield f"it has no part {part}, and every audit has one: audit again"
    attacks = _attacks(card, runs)
    listed = {(each.label, each.eps): (set(each.sources), set(each.parts), each.params) for each in card.attacks}
    if attacks.keys() != listed.keys() or len(listed) < len(card.attacks):
        yield f"it lists {len(card.attacks)} attacks, and its runs have {len(attacks)}, or others"
    for (label, eps), found in attacks.items():
        for what, said, recorded in zip(
            ("sources", "parts", "parameters"), listed.get((label, eps), found), found, strict=True
        ):
            if said != recorded:
                yield f"the {what} of its attack {label} at eps {show(eps)} are {said}, in its runs {recorded}"
    names = {pair for name in ours for pair in runs[name].names.items()}
    if apart := sorted(names ^ card.names.items()):
        yield f"its runs and it do not call {apart[0][0]} the same"
    for name in sorted(ours):
        yield from (f"its run {name} {problem}" for problem in _of_subject(card, runs[name]))


def _attacks(card: cards.Card, runs: Mapping[str, Run]) -> dict[tuple[str, float], tuple[set[str], set[str], Any]]:
    """Sources, parts and parameters of every attack in the runs of a card, by label and eps."""
    found: dict[tuple[str, float], tuple[set[str], set[str], Any]] = {}
    for name in runs:
        if not name.startswith(_prefix(card)):
            continue
        record = runs[name].record
        for cell in runs[name].cells:
            if cell.attack == CLEAN:
                continue
            params = record["attacks"].get(cell.attack, {}).get("resolved", {}).get(show(cell.eps))
            sources, parts, _ = found.setdefault((cell.attack, cell.eps), (set(), set(), params))
            parts.add(name.removeprefix(_prefix(card)))
            random = bool(record["defenses"].get(cell.defense, {}).get("random"))
            white = is_white_box(cell.source)
            sources.add(white_box(cell.source, cell.defense, cell.target, random=random) if white else cell.source)
    return found


def _of_subject(card: cards.Card, run: Run) -> Iterator[str]:
    """In what a run of a card is not of what the card says it is of."""
    if targets := {cell.target for cell in run.cells} - {card.target}:
        yield f"is of the target {min(targets)}, not of {card.target}"
    images = run.record["dataset"].get("label", ""), run.record["dataset"].get("image_size")
    if (label := Subject(card.defense, card.target, images[0], image_size=images[1]).images) != card.dataset:
        yield f"is of the images {label}, not of {card.dataset}"
    if not run.grid.endswith(f"-{EPS}") and (others := {cell.eps for cell in run.cells} - {0.0, card.eps}):
        yield f"is at eps {show(min(others))}, not at {show(card.eps)}"
    said = run.record["defenses"].get(card.defense, {})
    if card.random != said.get("random", card.random):
        yield f"is of a {'random' if said['random'] else 'deterministic'} defense, and the card says that it is not"


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
