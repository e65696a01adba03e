"""A card as Markdown, LaTeX, HTML and text, and its files in OUT/audit."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rdp_bench.audits.card import Card
from rdp_bench.audits.checks import FAIL, NA, PASS, WARN, Finding
from rdp_bench.audits.parts import slug
from rdp_bench.audits.tiers import NAMES, Tier
from rdp_bench.cache.store import write_atomic

COLOURS = {PASS: "#2a7", WARN: "#b80", FAIL: "#c33", NA: "#888"}


def _undefended(tier: Tier) -> str:
    return "" if tier.undefended is None else f"{tier.undefended:.1f}"


def markdown(card: Card) -> str:
    """The verdict, the tiers and the checks, as tables."""
    lines = [
        f"# Audit of {card.defense} before {card.target}", "", card.verdict, "",
        f"{card.dataset}, eps {card.eps:g}, budget {card.budget}.", "",
        "| tier | right % | 95 % | always right % | by vote % | undefended % | n |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {NAMES[tier.name]} | {tier.accuracy:.1f} | {tier.low:.1f} to {tier.high:.1f} | {tier.worst:.1f} | "
        f"{tier.vote:.1f} | {_undefended(tier)} | {tier.n} |"
        for tier in card.tiers
    ]
    lines += ["", "| check | | evidence | meaning | what to do |", "|---|---|---|---|---|"]
    for each in card.findings:
        cells = [f"{each.id} {each.title}", each.status, each.evidence, each.meaning, each.advice]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    if card.failed:
        lines += ["", "Failed cells:", "", *(f"* {reason}" for reason in card.failed)]
    if card.attacks:
        lines += ["", "Attacks:", "", *(f"* `{each['label']}`: {each['params']}" for each in card.attacks)]
    if card.cost:
        lines += [
            "",
            f"Cost: at most {card.cost['gradients']:.0f} gradients per image, {card.cost['minutes']:.1f} minutes.",
        ]
    if card.command:
        lines += ["", f"    {card.command}"]
    return "\n".join(lines) + "\n"


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
})  # fmt: skip


def latex(card: Card) -> str:
    """The tiers as a `table` with booktabs; the verdict is its caption."""
    rows = [
        f"{tier.name} & {tier.accuracy:.1f} & {tier.low:.1f}--{tier.high:.1f} & {tier.worst:.1f} & {tier.vote:.1f} & "
        f"{_undefended(tier) or '--'} \\\\"
        for tier in card.tiers
    ]
    return "\n".join([
        r"\begin{table}", rf"\caption{{{card.verdict.translate(_TEX)}}}", r"\centering", r"\begin{tabular}{lrrrrr}",
        r"\toprule", r"Tier & Right \% & 95\,\% & Always & Vote & Undefended \\", r"\midrule", *rows, r"\bottomrule",
        r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def html(card: Card) -> str:
    """A page of its own: tiers as bars with intervals, checks as a list."""
    bars = "".join(_bar(tier) for tier in card.tiers)
    checks = "".join(map(_check, card.findings))
    attacks = "".join(
        f"<li><code>{escape(str(one['label']))}</code> {escape(str(one['params']))}</li>" for one in card.attacks
    )
    title = escape(f"Audit of {card.defense} before {card.target}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}</style>"
        f"<h1>{title}</h1><p><b>{escape(card.verdict)}</b></p>"
        f"<p>{escape(card.dataset)}, eps {card.eps:g}, budget {escape(card.budget)}</p>"
        f"<h2>Tiers</h2>{bars}<h2>Checks</h2><ul>{checks}</ul><h2>Attacks</h2><ul>{attacks}</ul>"
        f"<pre>{escape(card.command)}</pre></html>\n"
    )


def _check(finding: Finding) -> str:
    head = (
        f'<b style="color:{COLOURS[finding.status]}">{finding.status}</b> <b>{finding.id} {escape(finding.title)}</b>'
    )
    more = "".join(f" {escape(text)}." for text in (finding.meaning, finding.advice) if text)
    return f"<li>{head}: {escape(finding.evidence)}.{more}</li>"


def _bar(tier: Tier) -> str:
    """Accuracy as a bar of 500 units, its interval as a line, the undefended accuracy as a mark."""
    scale = 5.0
    mark = ""
    if tier.undefended is not None:
        mark = f'<rect x="{tier.undefended * scale:.1f}" y="0" width="2" height="24" fill="#c33"/>'
    return (
        f"<p>{escape(NAMES[tier.name])}: {tier.accuracy:.1f} % ({tier.low:.1f} to {tier.high:.1f})<br>"
        f'<svg width="510" height="24" role="img" aria-label="{tier.accuracy:.1f} %">'
        f'<rect x="0" y="4" width="{tier.accuracy * scale:.1f}" height="16" fill="#47a"/>'
        f'<line x1="{tier.low * scale:.1f}" x2="{tier.high * scale:.1f}" y1="12" y2="12" stroke="#000"/>'
        f"{mark}</svg></p>"
    )


def text(card: Card) -> str:
    """The card for a terminal."""
    lines = ["", f"{'tier':12}{'right %':>9}{'95 %':>16}{'always':>9}{'vote':>8}{'undefended':>12}"]
    for tier in card.tiers:
        interval = f"{tier.low:.1f} to {tier.high:.1f}"
        lines.append(
            f"{tier.name:12}{tier.accuracy:9.1f}{interval:>16}{tier.worst:9.1f}{tier.vote:8.1f}{_undefended(tier):>12}"
        )
    lines.append("")
    for each in card.findings:
        lines.append(f"{each.status:5}{each.id:6}{each.title}: {each.evidence}")
        lines += [f"{'':11}{part}" for part in (each.meaning, each.advice) if part]
    return "\n".join([*lines, "", card.verdict])


def write(card: Card, out: Path) -> list[Path]:
    """Write the card to OUT/audit as JSON, Markdown, LaTeX and HTML; returns the files."""
    folder = out / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{slug(card.defense)}-{slug(card.target)}-eps{card.eps:g}-{card.budget}"
    texts = {
        "json": card.to_json(), "md": markdown(card), "tex": latex(card), "html": html(card),
    }  # fmt: skip
    files = []
    for suffix, text in texts.items():
        path = folder / f"{name}.{suffix}"
        write_atomic(path, text.encode())
        files.append(path)
    return files
