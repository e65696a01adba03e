"""Audits side by side: of each defense the tiers, the worst of them, and the checks that fail."""

from collections.abc import Sequence

from rdp_bench import csvtext
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, slug
from rdp_bench.results.cards import Card, Tier
from rdp_bench.results.rows import display_name
from rdp_bench.specs import show, show_level
from rdp_bench.terminal import counted

SHOWN = {"clean": "Clean", "transfer": "Transfer", "white-box": "White-box"}
"""Tiers that have a column of their own."""

Setting = tuple[str, int, float, str]
"""Data set, images, eps and budget."""

COLUMNS = (
    "defense", "target", "dataset", "n", "eps", "budget",
    *(f"{tier}{part}" for tier in SHOWN for part in ("", "_low", "_high")),
    "worst_tier", "worst", "worst_low", "worst_high", "failed_checks", "verdict",
)  # fmt: skip


def by_setting(cards: Sequence[Card]) -> dict[Setting, list[Card]]:
    """The cards whose numbers may be compared: of equal images, eps and budget."""
    found: dict[Setting, list[Card]] = {}
    for card in cards:
        found.setdefault((card.dataset, card.n, card.eps, card.budget), []).append(card)
    return found


def setting_name(setting: Setting) -> str:
    """A setting in words."""
    dataset, n, eps, budget = setting
    return f"{counted(n, 'image')} of {dataset}, ε = {show_level(eps)}, budget {budget}"


def side_by_side(cards: Sequence[Card]) -> list[Table]:
    """A table for each setting; a row for each defense and target."""
    found = []
    for setting, here in by_setting(cards).items():
        groups = [Group("-", [Row(card.defense, _cells(card)) for card in here])]
        where = setting_name(setting)
        found.append(
            Table(
                slug("audits", *map(str, setting)),
                f"Audits: {where}",
                "Accuracy in percent that attackers leave, for each image under the worst attack of a tier, on "
                f"{where}. The worst tier has the lowest accuracy; its 95 % interval follows. A check that fails says "
                "that these numbers are too high or unknown; C1, C6.b and C9 that they are worth less than they seem.",
                "audit",
                ["Target", *SHOWN.values(), "Worst tier", "FAIL"],
                groups,
                [],
                keys=("target", *SHOWN, "worst", "failed_checks"),
                remarks=tuple(card.verdict for card in here),
            )
        )
    return found


def sheet(cards: Sequence[Card], table: Table) -> str:
    """The table as tidy CSV: every number with its interval, and the verdict."""
    rows = []
    for setting, here in by_setting(cards).items():
        if slug("audits", *map(str, setting)) != table.slug:
            continue
        for card in here:
            row = {
                "defense": card.defense, "target": card.target, "dataset": card.dataset, "n": card.n,
                "eps": show(card.eps), "budget": card.budget, "verdict": card.verdict,
                "failed_checks": " ".join(finding.id for finding in card.of("FAIL")),
            }  # fmt: skip
            for name in SHOWN:
                row |= _numbers(name, card.tier(name))
            worst = card.headline
            row |= {"worst_tier": worst.name if worst else "", **_numbers("worst", worst)}
            rows.append(row)
    return csvtext.records(COLUMNS, rows)


def _numbers(name: str, tier: Tier | None) -> dict[str, str]:
    values = (tier.accuracy, tier.low, tier.high) if tier else (None, None, None)
    texts = ["" if value is None else f"{value:.4f}" for value in values]
    return dict(zip((name, f"{name}_low", f"{name}_high"), texts, strict=True))


def _cells(card: Card) -> list[TableCell]:
    worst = card.headline
    failed = ", ".join(finding.id for finding in card.of("FAIL"))
    return [
        TableCell("done", text=display_name(card.target)),
        *(_cell(card.tier(name)) for name in SHOWN),
        TableCell("done", text=f"{worst.name} {worst.accuracy:.1f} ({worst.low:.1f}–{worst.high:.1f})")
        if worst
        else TableCell("failed", "no attack was measured"),
        TableCell("done", text=failed or "none"),
    ]


def _cell(tier: Tier | None) -> TableCell:
    if tier is None:
        return TableCell("failed", "not measured")
    return TableCell("done", "", tier.accuracy, tier.low, tier.high)
