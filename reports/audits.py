"""The card of an audit as text, Markdown, LaTeX and a page of its own; its files in OUT/audit."""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

from rdp_bench.cache.store import write_atomic
from rdp_bench.errors import UsageError
from rdp_bench.reports import page
from rdp_bench.reports.audit_section import cost, view
from rdp_bench.reports.formats import latex as tex
from rdp_bench.reports.formats.markdown import escape
from rdp_bench.results import cards
from rdp_bench.results.cards import Card, Tier
from rdp_bench.results.rows import display_name, forget, shown_names
from rdp_bench.specs import show_level
from rdp_bench.terminal import counted, printable

log = logging.getLogger(__name__)


def write(card: Card, out: Path) -> tuple[Card, list[Path]]:
    """Write OUT/audit/NAME.json, .md, .tex and .html; returns the card as it was written, and the files.

    Where everything came from the cache, the card keeps what the audit took when it was computed.

    Raises:
        StorageError: they cannot be written.
    """
    path = out / cards.FOLDER / f"{card.name}.json"
    if before := _before(path):
        if not card.says_the_same(before):
            if (before.n, before.command) != (card.n, card.command):  # else it was edited, or failed before
                log.warning(
                    "%s: replaces the audit of %s by `%s`, which had other numbers, by one of %s; choose another --out",
                    path, _images(before), printable(before.command, lines=False), _images(card),
                )  # fmt: skip
        elif card.cost and card.cost.cached == card.cost.jobs:
            card = replace(card, cost=before.cost)
        _forget_parts(before, card, out)
    files = [cards.write(card, out)]
    for ending, content in contents(card).items():
        files.append(path.with_suffix(f".{ending}"))
        write_atomic(files[-1], content.encode())
    return card, files


def _forget_parts(before: Card, card: Card, out: Path) -> None:
    """Delete the runs of parts that this audit no longer has, such as those of a defense that was random before."""
    gone = {run for run in before.runs if run.startswith(f"{card.grid}-{card.name}-")} - {*card.runs}
    for path in sorted((out / "runs").glob("*.json")):  # a card is a file: it may say anything
        if path.stem in gone:
            forget(out, path.stem)
            log.warning("%s: deleted, because this audit no longer has this part", path)


def _before(path: Path) -> Card | None:
    """The card that is there; None where there is none, or none that can be read."""
    with contextlib.suppress(UsageError):
        return cards.read(path) if path.is_file() else None
    return None


def contents(card: Card) -> dict[str, str]:
    """The card in each format, by ending."""
    with shown_names(card.names):
        return {"md": markdown(card), "tex": latex(card), "html": page.write("card.html.j2", view=view(card))}


def heading(card: Card) -> str:
    """What was audited."""
    return f"Audit of {display_name(card.defense)} in front of {display_name(card.target)}"


def _images(card: Card) -> str:
    return counted(card.n, "image")


def markdown(card: Card) -> str:
    """The verdict, the tiers and the checks, as tables."""
    lines = [
        f"# {escape(heading(card))}", "", escape(card.verdict), "",
        f"{escape(card.dataset)}, {_images(card)}, eps {show_level(card.eps)}, budget {escape(card.budget)}.", "",
        "| tier | right % | 95 % | always right % | by vote % | undefended % | n |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {escape(tier.title or tier.name)} | {tier.accuracy:.1f} | {tier.low:.1f} to {tier.high:.1f} | "
        f"{tier.worst:.1f} | {tier.vote:.1f} | {_undefended(tier)} | {tier.n} |"
        for tier in card.tiers
    ]
    lines += ["", "| check | | evidence | meaning | what to do |", "|---|---|---|---|---|"]
    for each in card.findings:
        lines.append(_row(f"{each.id} {each.title}", each.status, each.evidence, each.meaning, each.advice))
    if card.failed:
        lines += ["", "Failed:", "", *(f"* {escape(reason)}" for reason in card.failed)]
    if card.attacks:
        lines += ["", "| attack | eps | part | on | gradients per image | parameters |", "|---|---|---|---|---|---|"]
        for attack in card.attacks:
            params = ", ".join(f"{name} {value}" for name, value in page.flat(attack.params).items())
            lines.append(
                _row(
                    attack.label, show_level(attack.eps), ", ".join(attack.parts), "; ".join(attack.sources),
                    f"{attack.gradients:.0f}", params,
                )
            )  # fmt: skip
    if card.cost:
        lines += ["", f"Cost: {escape(cost(card))}"]
    if card.command:
        lines += ["", f"    {printable(card.command, lines=False)}"]
    return "\n".join(lines) + "\n"


def latex(card: Card) -> str:
    """The tiers as a `table` with booktabs; its caption is the setting and the verdict."""
    rows = [
        f"{tex.escape(tier.name)} & {tier.accuracy:.1f} & {tier.low:.1f}--{tier.high:.1f} & {tier.worst:.1f} & "
        f"{tier.vote:.1f} & {_undefended(tier) or '--'} \\\\"
        for tier in card.tiers
    ]
    where = f"{heading(card)}: {_images(card)} of {card.dataset}, ε = {show_level(card.eps)}, budget {card.budget}."
    columns = "Percent of all images that are right with the defense and, in the last column, without it."
    body = "\n".join([
        r"\begin{table}", r"\centering", r"\small",
        rf"\caption{{{tex.escape(f'{where} {card.verdict} {columns}')}}}", rf"\label{{tab:audit-{card.name}}}",
        r"\smallskip",
        r"\setlength{\tabcolsep}{4pt}", r"\begin{tabular}{@{}lrrrrr@{}}", r"\toprule",
        r"Tier & Right & 95\,\% interval & Always & Vote & None \\",
        r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
    return "\n".join([*tex.preamble(body), body])


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
        lines += [f"{'':11}{more}" for more in (each.meaning, each.advice) if more]
    lines += ["", *(f"failed: {reason}" for reason in card.failed), card.verdict]
    if card.cost:
        lines += ["", cost(card)]
    return "\n".join(printable(line, lines=False) for line in lines)


def _undefended(tier: Tier) -> str:
    return "" if tier.undefended is None else f"{tier.undefended:.1f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(escape, cells))} |"
