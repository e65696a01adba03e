"""What a page shows of one audit: the numbers of its bars, its checks by status, its attacks and costs as text."""

from typing import Any

from rdp_bench.budgets import LINF, show_eps
from rdp_bench.reports.tables.table import slug
from rdp_bench.results.cards import AttackFacts, Card, Status, Tier
from rdp_bench.results.rows import display_name
from rdp_bench.specs import show_level
from rdp_bench.terminal import counted

WIDTH, LINE, TALL, GAP = 420.0, 15.0, 12.0, 14.0
"""Of the drawing of tiers: its width, the height of a line of text, of a bar, and of what is between two tiers."""
_INSET = 8.0
"""Left and right of the axis."""

_MARKS: dict[Status, tuple[str, str]] = {
    "FAIL": ("no", "✗"), "WARN": ("tie", "!"), "PASS": ("yes", "✓"), "n/a": ("open", "–"),
}  # fmt: skip
"""Class and sign of each status, the worst first."""


def view(card: Card) -> dict[str, Any]:
    """The values of the template `audit.html.j2`."""
    return {
        "id": slug("audit", card.name),
        "card": card,
        "title": f"{display_name(card.defense)} in front of {display_name(card.target)}",
        "over": f"audit · {counted(card.n, 'image')} of {card.dataset} · "
        f"ε = {show_eps(card.eps, LINF)} · budget {card.budget}",
        "drawing": _drawing(card),
        "tally": [(*_MARKS[status], f"{len(card.of(status))} {status}") for status in _MARKS if card.of(status)],
        "checks": [(*_MARKS[status], finding) for status in _MARKS for finding in card.of(status) if status != "n/a"],
        "not_applicable": card.of("n/a"),
        "attacks": [(f"{attack.label}, ε = {show_level(attack.eps)}", _facts(attack)) for attack in card.attacks],
        "cost": cost(card),
    }


def cost(card: Card) -> str:
    """What an audit took, in a sentence; empty where nobody knows."""
    if card.cost is None:
        return ""
    found = card.cost
    text = f"At most {found.gradients:,.0f} gradients per image; {found.minutes:.1f} minutes"
    if found.cached:
        text += f", with {found.cached} of {found.jobs} jobs from the cache"
    return f"{text}."


def _facts(attack: AttackFacts) -> dict[str, Any]:
    return {
        "on": "; ".join(attack.sources),
        "part": ", ".join(attack.parts),
        "gradients per image": f"{attack.gradients:,.0f}",
        **attack.params,
    }


def _drawing(card: Card) -> dict[str, Any]:
    """Places of the bars, in units of the drawing."""
    long = WIDTH - 2 * _INSET

    def x(percent: float) -> float:
        return round(_INSET + long * percent / 100, 1)

    bars: list[dict[str, Any]] = []
    y = 0.0
    for tier in card.tiers:
        bar = _bar(tier, x)
        top = (2 if bar["knows"] else 1) * LINE + 4
        bars.append(bar | {"y": y, "top": top})
        y += top + TALL + GAP
    return {
        "width": WIDTH, "height": y + 22, "axis": y, "bars": bars, "left": x(0), "tall": TALL,
        "ticks": [(x(tick), tick) for tick in (0, 25, 50, 75, 100)],
        "bare": any(bar["bare"] is not None for bar in bars),
    }  # fmt: skip


def _bar(tier: Tier, x: Any) -> dict[str, Any]:
    bare = None if tier.undefended is None else x(tier.undefended)
    name, _, knows = (tier.title or tier.name).partition(": ")
    return {
        "tier": tier, "name": name, "knows": knows, "long": round(x(tier.accuracy) - x(0), 1), "low": x(tier.low),
        "high": x(tier.high), "bare": bare,
    }  # fmt: skip
