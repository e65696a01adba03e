"""The page: one file, nothing fetched, readable without scripts. Names reach it only through autoescape."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdp_bench.reports.exhibit import AVERAGE, LEGEND, Exhibit
from rdp_bench.reports.strip import Examples
from rdp_bench.specs import show
from rdp_bench.stats import LEVEL
from rdp_bench.table import UNDEFENDED, Run, pretty

_TEMPLATES = Path(__file__).parent / "templates"

_PROFILES = {
    "embedded": "It ran the embedded profile, a small stand-in: models and photos that install with the package, "
    "far from the paper's networks and its 1000 images. Its numbers show that everything works and how the "
    "methods compare here; they neither confirm nor contradict the paper's.",
    "paper": "It ran the paper profile, as near to the paper's setting as public weights allow. A printed number "
    "stands only beside the very cell it was printed for.",
    "custom": "It ran a setting of its own, neither the embedded stand-in nor the paper's.",
}


@dataclass(frozen=True)
class Section:
    """All that the page says about one run."""

    run: Run
    slug: str
    exhibits: list[Exhibit]
    figures: list[tuple[str, str]]  # caption, inline SVG
    examples: Examples


def page(sections: Sequence[Section]) -> str:
    """The whole document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "pretty": pretty, "one": _one, "signed": _signed, "p": _p, "flat": flat, "plain": _plain, "minutes": _minutes,
        "tight": _tight,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(
        views=[_view(section) for section in sections],
        legend=LEGEND,
        level=round(100 * LEVEL),
        style=_TEMPLATES.joinpath("report.css").read_text("utf-8"),
        script=_TEMPLATES.joinpath("report.js").read_text("utf-8"),
    )


def _view(section: Section) -> dict[str, Any]:
    run = section.run
    return {
        "id": section.slug,
        "record": run.record,
        "title": run.record.get("title") or run.grid,
        "reading": reading(run, section.exhibits),
        "exhibits": section.exhibits,
        "figures": section.figures,
        "examples": section.examples,
        "cells": run.rows,
        "accounts": accounts(run),
    }


def reading(run: Run, tables: Sequence[Exhibit]) -> list[str]:
    """The run in sentences: what it is, how far it got, and what its tables say."""
    record = run.record
    attacks = [attack for attack in run.axis("attacks") if attack != "clean"]
    sources = [source for source in run.axis("sources") if source != "-"]
    defenses = [name for name in run.axis("defenses") if name != UNDEFENDED]
    count = {status: sum(row["status"] == status for row in run.rows) for status in ("done", "pending", "failed")}
    total = len(run.rows)
    first = (
        f"{_count(len(attacks), 'attack')} crafted on {_count(len(sources), 'source')} against "
        f"{_count(len(run.axis('targets')), 'target')} behind {_count(len(defenses), 'defense')}, "
        f"on {record['dataset']['n']} images of {record['dataset']['name']}."
    )
    sentences = [first[0].upper() + first[1:], _PROFILES.get(str(record.get("profile")), _PROFILES["custom"])]
    if count["done"] == total:
        sentences.append(f"All {total} cells are done.")
    else:
        others = [f"{count[status]} {status}" for status in ("failed", "pending") if count[status]]
        sentences.append(
            f"This report is partial: of {total} cells {count['done']} are done, {' and '.join(others)}. "
            "Averages stand only where every attack of a row is done."
        )
    for table in tables:
        sentences += _findings(table)
    return sentences


def _findings(table: Exhibit) -> list[str]:
    """What the last column of an attacked table says about its last group (the strongest source, as a rule)."""
    if table.metric != "error" or not table.groups:
        return []
    group, column = table.groups[-1], table.columns[-1]
    entries = {line.defense: line.entries[-1] for line in group.lines if line.entries[-1].value is not None}
    best = [name for name, entry in entries.items() if entry.verdict.best]
    if not best:
        return []
    tied = sum(entry.verdict.tied for entry in entries.values())
    where = "on average over the attacks" if column == AVERAGE else f"under {column}"
    text = f"{table.title}: crafted on {group.name}, {where}, "
    if UNDEFENDED in entries:
        text += f"the undefended target errs on {_one(entries[UNDEFENDED].value)} %; "
    text += f"{' and '.join(map(pretty, best))} {'has' if len(best) == 1 else 'have'} the lowest error, "
    text += f"{_one(entries[best[0]].value)} %"
    text += f", and {_count(tied, 'other')} cannot be told from it." if tied else "."
    worse = sum(entry.verdict.worse for entry in table.entries)
    if worse:
        text += f" {_count(worse, 'number')} of this table {'is' if worse == 1 else 'are'} worse than no defense."
    return [text]


def accounts(run: Run) -> list[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """Models, sources, attacks and defenses with every resolved parameter: (kind, [(label, summary, facts)])."""
    kinds = []
    for kind in ("attacks", "defenses", "sources", "models"):
        things = []
        for label, card in (run.record.get(kind) or {}).items():
            facts = flat({name: value for name, value in card.items() if name not in ("summary", "resolved")})
            # An attack's parameters are resolved per eps.
            facts |= flat(card.get("resolved") or {}, "ε " if kind == "attacks" else "")
            things.append((label, str(card.get("summary", "")), facts))
        if things:
            kinds.append((kind.capitalize(), things))
    return kinds


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
            lines[f"{path}{name}"] = _plain(value)
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return show(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(_plain, value))
    return json.dumps(value, ensure_ascii=False)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _one(value: float | str | None) -> str:
    return f"{float(value):.1f}" if value is not None and value != "" else ""


def _signed(value: float) -> str:
    return "±0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")


def _tight(text: str) -> str:
    """No line break inside "ε = 16" and "47.0 %"."""
    return text.replace("ε = ", "ε\u00a0=\u00a0").replace(" %", "\u00a0%")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _minutes(seconds: Any) -> str:
    seconds = float(seconds or 0)
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
