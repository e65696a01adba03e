"""The pages: single files that fetch nothing and are readable without scripts. All names are escaped."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rdp_bench.metrics.stats import LEVEL
from rdp_bench.reports import audit_section
from rdp_bench.reports.claims import gain
from rdp_bench.reports.claims.claims import VERDICTS, ClaimResult
from rdp_bench.reports.examples import Examples
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.summary import answer, findings, missing, power, setting, summary_sentences
from rdp_bench.reports.tables.audits import by_setting
from rdp_bench.reports.tables.leaderboard import Leaderboard, as_table, signed
from rdp_bench.reports.tables.table import Table, slug
from rdp_bench.results.cards import Card
from rdp_bench.results.crosscheck import again
from rdp_bench.results.rows import Run, display_name, shown_names
from rdp_bench.specs import show, show_level
from rdp_bench.terminal import counted

_FORMATS = {
    ".csv": "CSV",
    ".tests.csv": "CSV with tests",
    ".tex": "LaTeX",
    ".averages.tex": "LaTeX, averages only",
    ".md": "Markdown",
    ".json": "JSON",
}
"""What links call a file, by its ending."""
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """What the page shows of one run."""

    run: Run
    slug: str
    claim_results: list[ClaimResult]
    boards: list[tuple[Leaderboard, ReportFigure | None]]
    """Each leaderboard, and its figure."""
    tables: list[Table]
    parameters: Table | None
    """The attacks' parameters."""
    figures: list[ReportFigure]
    examples: Examples
    files: Mapping[str, Sequence[str]]
    """The endings of the files in tables/, by the slug of the table."""


@dataclass(frozen=True)
class Audits:
    """What the page shows of audits."""

    cards: Sequence[Card]
    figures: Sequence[ReportFigure]
    tables: Sequence[Table]
    files: Mapping[str, Sequence[str]]
    """The endings of the files in tables/, by the slug of the table, or of the card."""


def page(sections: Sequence[Section], not_run: Sequence[tuple[str, str]] = (), audits: Audits | None = None) -> str:
    """The report: contents, a section per run and per audit, and titles and commands of the grids in `not_run`."""
    views = []
    told: set[int] = set()  # the power of a test, once for each size of a sample
    for section in sections:
        n = int(section.run.record["dataset"]["n"])
        with shown_names(section.run.names):
            boards = [board for board, _ in section.boards]
            views.append({**_view(section), "power": "" if n in told else power(n, boards, section.tables)})
        told.add(n)
    return write("report.html.j2", views=views, not_run=not_run, audits=_audits(audits) if audits else None)


def write(template: str, **values: Any) -> str:
    """A page from one of the templates."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "pretty": display_name, "one": _one, "signed": signed, "p": _p, "flat": flat, "plain": plain,
        "counted": counted,
        "level": lambda eps: show_level(float(eps)),
        "minutes": _minutes,
        "tight": _tight,
    }  # fmt: skip
    environment.globals["named"] = _named
    return environment.get_template(template).render(
        level=round(100 * LEVEL),
        style=_TEMPLATES.joinpath("report.css").read_text("utf-8"),
        script=_TEMPLATES.joinpath("report.js").read_text("utf-8"),
        **values,
    )


def _named(names: Mapping[str, str], caller: Callable[[], str]) -> str:
    """What a `call` block of a template gives where these names hold."""
    with shown_names(names):
        return caller()


def _view(section: Section) -> dict[str, Any]:
    run, name = section.run, section.slug
    checks = _checks(run)
    view = {
        "id": name,
        "record": run.record,
        "title": run.record.get("title") or run.grid,
        "summary": summary_sentences(run),
        "caveat": setting(run),
        "checks": checks,
        "checked": _checked(checks),
        "failed_checks": any(check["passed"] is False for check in checks),
        "boards": [
            {
                "board": board,
                "answer": answer(board),
                "legend": as_table(board).legend,
                "figure": figure and _drawing(run.grid, figure),
                "links": _links(f"tables/{board.slug}", section.files[board.slug]),
            }
            for board, figure in section.boards
        ],
        "claim_results": section.claim_results,
        "claim_links": _links(f"tables/{slug(run.grid, 'claims')}", [".csv"]),
        "tally": _tally(section.claim_results),
        "tables": section.tables,
        "findings": [findings(table) for table in section.tables],
        "parameters": section.parameters,
        "links": {name: _links(f"tables/{name}", endings) for name, endings in section.files.items()},
        "gains": gain.notes(run),
        "figures_first": run.grid.startswith("figure") or bool(run.record.get("figures")),
        "drawings": [_drawing(run.grid, figure) for figure in section.figures],
        "examples": section.examples,
        "missing": missing(run),
        "done": sum(row["status"] == "done" for row in run.rows),
        "cells": run.rows,
        "accounts": accounts(run),
        "made": " to ".join(dict.fromkeys(run.made_between or ("unknown",))),
    }
    return view | {"contents": _contents(view)}


def _audits(found: Audits) -> dict[str, Any]:
    """The values of `audits.html.j2`."""
    views = [audit_section.view(card) for card in found.cards]
    for view in views:
        view["links"] = _links(f"tables/{view['id']}", found.files[view["id"]])
    drawings = [_drawing("audits", figure) for figure in found.figures]
    ids: dict[str, list[str]] = {}
    for table, here in zip(found.tables, by_setting(found.cards).values(), strict=False):
        ids[table.slug] = [slug("audit", card.name) for card in here]
    return {
        "views": views, "drawings": drawings, "tables": found.tables, "ids": ids,
        "links": {table.slug: _links(f"tables/{table.slug}", found.files[table.slug]) for table in found.tables},
        "contents": [
            *((drawing["id"], drawing["title"]) for drawing in drawings),
            *((table.slug, table.title) for table in found.tables),
            *((view["id"], view["title"]) for view in views),
        ],
    }  # fmt: skip


def _contents(view: dict[str, Any]) -> list[tuple[str, str]]:
    """Id and title of each part of a run's section, in order."""
    name = view["id"]
    tables = [(table.slug, table.title) for table in view["tables"]]
    drawings = [(drawing["id"], drawing["title"]) for drawing in view["drawings"]]
    return [
        *([(f"{name}-warnings", "Warnings")] if view["record"]["warnings"] else []),
        *((each["board"].slug, f"Leaderboard: {each['board'].where}") for each in view["boards"]),
        *([(f"{name}-checks", "Cross-check")] if view["checks"] else []),
        *([(f"{name}-claims", "The paper's claims")] if view["claim_results"] else []),
        *(drawings + tables if view["figures_first"] else tables + drawings),
        *([(view["parameters"].slug, view["parameters"].title)] if view["parameters"] else []),
        (f"{name}-examples", "Examples"),
        *([(f"{name}-missing", "Missing results")] if view["missing"] else []),
        (f"{name}-details", "Details"),
    ]


def _drawing(grid: str, figure: ReportFigure) -> dict[str, Any]:
    title, _, rest = figure.caption.partition(". ")
    title = title.rstrip(".")
    name = f"{slug(grid)}-{slug(figure.name)}"
    # Two drawings of the same marker give it the same id.
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", figure.inline)
    svg = svg.replace("<svg ", f'<svg aria-label="{escape(title)}" ', 1)
    links = _links(f"figures/{slug(grid, figure.name)}", [f".{ending}" for ending in figure.files])
    return {"id": name, "title": title, "caption": rest, "svg": svg, "links": links}


def _links(path: str, endings: Sequence[str]) -> list[tuple[str, str]]:
    """Names and addresses of files beside the page."""
    return [(_FORMATS.get(ending, ending[1:].upper()), path + ending) for ending in endings]


def _checks(run: Run) -> list[dict[str, Any]]:
    """The lines of the cross-check in the record, and whether each was computed again from the run's predictions."""
    said, wanted = run.record.get("checks") or [], again(run)
    kept = [one.kept and one.agrees(**line) for one, line in zip(wanted, said, strict=False)]
    return [{**line, "kept": len(said) == len(wanted) and kept[at]} for at, line in enumerate(said)]


def _checked(checks: Sequence[dict[str, Any]]) -> str:
    """The result of the cross-check in a sentence."""
    count = Counter(check["passed"] for check in checks)
    words = {True: ("agrees", "agree"), False: ("does not", "do not"), None: ("was not measured", "were not measured")}
    told = ", ".join(f"{count[kind]} {word[count[kind] > 1]}" for kind, word in words.items() if count[kind])
    doubt = " Do not trust the numbers below until that is explained." if count[False] else ""
    lost = sum(not check["kept"] for check in checks)
    said = f" {lost} of these are what the run recorded; they do not follow from the predictions here." if lost else ""
    return f"Of {len(checks)} published numbers for these networks, {told}.{said}{doubt}"


def _tally(results: Sequence[ClaimResult]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.count)
    return {verdict: total[verdict] for verdict in VERDICTS if total[verdict]}


def accounts(run: Run) -> list[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """Models, sources, attacks and defenses with every resolved parameter: (kind, [(label, summary, facts)])."""
    kinds = []
    for kind in ("attacks", "defenses", "sources", "models"):
        things = []
        for label, card in (run.record.get(kind) or {}).items():
            kept = {name: value for name, value in card.items() if name not in ("summary", "resolved")}
            facts = flat({name: value for name, value in kept.items() if value not in (None, "", "-", [], {})})
            resolved = card.get("resolved") or {}
            facts |= _per_eps(resolved) if kind == "attacks" else flat(resolved)
            things.append((label, str(card.get("summary", "")), facts))
        if things:
            kinds.append((kind.capitalize(), things))
    return kinds


def _per_eps(resolved: dict[str, Any]) -> dict[str, str]:
    """Parameters of an attack, which are resolved per eps; those that do not depend on it once.

    >>> _per_eps({"8": {"steps": 10, "alpha": 1}, "16": {"steps": 10, "alpha": 1.6}})
    {'steps': '10', 'alpha at ε = 8': '1', 'alpha at ε = 16': '1.6'}
    """
    found = {eps: flat(parameters) for eps, parameters in resolved.items()}
    lines: dict[str, str] = {}
    for name in dict.fromkeys(name for parameters in found.values() for name in parameters):
        values = {eps: parameters.get(name, "–") for eps, parameters in found.items()}
        if len(set(values.values())) == 1:
            lines[name] = next(iter(values.values()))
        else:
            lines |= {f"{name} at ε = {show_level(float(eps))}": value for eps, value in values.items()}
    return lines


def flat(record: dict[str, Any], path: str = "") -> dict[str, str]:
    """A nested record as dotted names.

    >>> flat({"16": {"steps": 10, "decay": 1.0}})
    {'16.steps': '10', '16.decay': '1'}
    """
    lines: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, dict) and value:
            lines |= flat(value, f"{path}{name}.")
        else:
            lines[f"{path}{name}"] = plain(value)
    return lines


def plain(value: Any) -> str:
    """A value of a record as text."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return show(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(plain, value))
    return json.dumps(value, ensure_ascii=False)


def _one(value: float | str | None) -> str:
    return f"{float(value):.1f}" if value is not None and value != "" else ""


def _tight(text: str) -> str:
    """No line break inside "ε = 16" and "47.0 %"."""
    return text.replace("ε = ", "ε\u00a0=\u00a0").replace(" %", "\u00a0%")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _minutes(seconds: Any) -> str:
    seconds = float(seconds or 0)
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
