"""A run in words: what it ran, how far it got, what its tables show, what is missing and how to get it."""

import math
import shlex
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

from rdp_bench.metrics.significance import FEWEST
from rdp_bench.metrics.stats import LEVEL
from rdp_bench.reports.claims.claims import claims
from rdp_bench.reports.tables.leaderboard import HIGHER, LOWER, NO_DIFFERENCE, UNTESTED, Leaderboard
from rdp_bench.reports.tables.table import AVERAGE, SEEN, Table
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import UNDEFENDED, show_level
from rdp_bench.terminal import counted, listed

PROFILES = {
    "embedded": "The embedded profile is a small substitute for the paper's setting: networks that install with the "
    "package and, unless a run names other images, 20 photos instead of the paper's 1000 images. Its numbers show that "
    "everything works and how the methods compare here; they neither confirm nor contradict the paper's.",
    "paper": "The paper profile is as close to the paper's setting as public weights allow. A number of the paper is "
    "shown only next to the cell that it was printed for.",
}
"""What the profiles of built-in grids are."""


def setting(run: Run) -> str:
    """How the setting of a run relates to the paper's."""
    built_in = f"{run.grid}.toml" in {file.name for file in files("rdp_bench.data").joinpath("grids").iterdir()}
    custom = "A custom setting, not the paper's."
    return PROFILES.get(str(run.record.get("profile")), custom) if built_in else custom


# Flags that the command for another grid takes from the command of this run.
_KEPT = (
    "--profile",
    "--dataset",
    "--limit",
    "--image-size",
    "--models-dir",
    "--device",
    "--seed",
    "--out",
    "--cache",
    "--plugin",
)


def summary_sentences(run: Run) -> list[str]:
    """What ran, and how far it got."""
    attacks = run.attacks
    sources = [source for source in run.axis("sources") if source != "-"]
    defenses = [name for name in run.axis("defenses") if name != UNDEFENDED]
    count = {status: sum(row["status"] == status for row in run.rows) for status in ("done", "pending", "failed")}
    total = len(run.rows)
    on = "elsewhere" if sources == ["elsewhere"] else f"on {counted(len(sources), 'source')}"
    crafted = f"{counted(len(attacks), 'attack')} crafted {on}, evaluated on "
    first = (
        f"{crafted if attacks else ''}{counted(len(run.axis('targets')), 'target')} with "
        f"{counted(len(defenses), 'defense')}, on {counted(run.record['dataset']['n'], 'image')}."
    )
    if count["done"] == total:
        return [first, f"All {total} cells are done."]
    others = [f"{count[status]} {status}" for status in ("failed", "pending") if count[status]]
    partial = f"This report is partial: {count['done']} of {total} cells are done, {' and '.join(others)}."
    return [first, partial, "Averages are shown only where every attack of a row is done."]


_AT = {"attack": "and under", "target": "and evaluated on", "eps": "at"}


def findings(table: Table) -> str:
    """The result in the last column of an error table with defenses, for its last source (as a rule the strongest)."""
    if table.metric != "error" or not table.groups:
        return ""
    group = table.groups[-1]
    # A baseline has no defense, and may be the last column.
    defended = [i for i in range(len(table.columns)) if any(row.cells[i].verdict.best for row in group.rows)]
    if not defended:
        return ""
    column = table.columns[defended[-1]]
    entries = {row.defense: row.cells[defended[-1]] for row in group.rows}
    entries = {name: entry for name, entry in entries.items() if entry.value is not None}
    best = [name for name, entry in entries.items() if entry.verdict.best]
    tied = sum(entry.verdict.tied for entry in entries.values())
    where = "and averaged over the attacks" if column == AVERAGE else f"{_AT[table.across]} {column.removesuffix(SEEN)}"
    text = f"Crafted on {group.name} {where}, "
    if UNDEFENDED in entries:
        text += f"the error without a defense is {entries[UNDEFENDED].value:.1f} %; "
    least = f"{entries[best[0]].value:.1f} %"
    if len(best) == len(entries) - (UNDEFENDED in entries):
        text += f"with every defense it is {least}."
    else:
        names = listed([display_name(name) for name in best])
        text += f"{names} {'has' if len(best) == 1 else 'have'} the lowest, {least}"
        if tied:
            text += f"; {counted(tied, 'other defense')} {'is' if tied == 1 else 'are'} not significantly different"
        text += "."
    worse = sum(entry.verdict.significantly_worse for entry in table.cells)
    if worse:
        are = "number in this table is" if worse == 1 else "numbers in this table are"
        text += f" {worse} {are} significantly worse than without a defense."
    return text


def answer(board: Leaderboard) -> str:
    """Which defenses help, in a sentence or two."""
    complete = [each for each in board.standings if each.mean.value is not None]
    bare = next((each for each in complete if each.defense == UNDEFENDED), None)
    rivals = [each for each in complete if each.defense != UNDEFENDED]
    if not rivals:
        return "No defense is complete yet." if len(board.standings) > 1 else ""
    if bare is None:
        there = any(each.defense == UNDEFENDED for each in board.standings)
        return f"The run has no {'complete row' if there else 'cells'} without a defense to compare with."
    if all(each.test == UNTESTED for each in rivals):
        return f"The mean error without a defense is {bare.mean.value:.1f} %. There are too few images for a verdict."
    kinds = {test: [each.name for each in rivals if each.test == test] for test in (LOWER, HIGHER, NO_DIFFERENCE)}
    lowest = [each for each in rivals if each.mean.bold]
    tied = [each.name for each in rivals if each.mean.verdict.tied]
    lower = len(kinds[LOWER])
    complete_ = "complete " if len(complete) < len(board.standings) else ""
    who = (
        f"All {lower} {complete_}defenses"
        if lower == len(rivals) > 1
        else f"{lower or 'None'} of {counted(len(rivals), f'{complete_}defense')}"
    )
    have = "has" if lower < 2 else "have"
    text = f"{who} {have} a significantly lower mean error than no defense ({bare.mean.value:.1f} %)"
    if lowest:
        names = listed([each.name for each in lowest])
        text += f"; {names} {'has' if len(lowest) == 1 else 'have'} the lowest, {lowest[0].mean.value:.1f} %"
        if tied:
            text += f", not significantly different from {_few(tied)}"
    text += "."
    if kinds[HIGHER]:
        text += f" {_few(kinds[HIGHER])} {'has' if len(kinds[HIGHER]) == 1 else 'have'} a significantly higher one."
    if len(lowest) == 1 and lowest[0].clean is not None and bare.clean is not None:
        # A defense that destroys images has the lowest error where every attack succeeds.
        text += (
            f" On clean images, accuracy is {lowest[0].clean:.1f} % behind {lowest[0].name} and {bare.clean:.1f} % "
            "without a defense."
        )
    return text


def _few(names: Sequence[str]) -> str:
    """Names, or how many there are."""
    return listed(names) if len(names) <= 4 else f"{len(names)} others"


def power(n: int, boards: Sequence[Leaderboard], tables: Sequence[Table]) -> str:
    """What differences a sample of n images can show at all.

    Two defenses that differ on k images, all in one direction, have p = 2^(1 - k), by McNemar's test and by the
    sign-flip test. Holm's correction multiplies the smallest of m such values by m.
    """

    def least(comparisons: int) -> int:
        return math.ceil(1 - math.log2((1 - LEVEL) / comparisons))

    if n < FEWEST:
        return (
            f"There are no verdicts on {counted(n, 'image')}: below {FEWEST}, no number is marked and no claim judged, "
            f"as a paired test can be significant only if two defenses differ on at least {least(1)} images."
        )
    rivals = max((len(board.standings) - 1 for board in boards), default=0)
    cells = max((sum(cell.verdict.p_none is not None for cell in table.cells) for table in tables), default=0)
    text = (
        f"Power: on {n} images, a paired test can be significant only if two defenses differ on at least {least(1)} of "
        f"them (in one cell, {100 * least(1) / n:.1f} points)"
    )
    corrected = [f"{least(m)} for {m}" for m in dict.fromkeys((rivals, cells)) if m > 1]
    return f"{text}; with Holm's correction, {' and '.join(corrected)} comparisons." if corrected else f"{text}."


def missing(run: Run) -> list[dict[str, Any]]:
    """Cells without a number by status and reason (count, reason, which), then the paper's defenses not in the run."""
    groups: dict[tuple[str, str], list[CellKey]] = {}
    for row in run.rows:
        if row["status"] != "done":
            groups.setdefault((row["status"], row["reason"]), []).append(CellKey.of(row))
    gaps: list[dict[str, Any]] = []
    for (status, reason), places in sorted(groups.items()):
        what = f"{'cell' if len(places) == 1 else 'cells'} {status}: {reason or 'not run yet'}"
        gaps.append({"count": len(places), "reason": what, "which": _which(run, places)})
    asked = [claim for claim in claims() if run.grid in claim.grids]
    names = dict.fromkeys(name for claim in asked for name in (claim.subject, *claim.against) if "*" not in name)
    if left_out := [name for name in names if name not in run.axis("defenses")]:
        reason = f"defenses of the paper that this run lacks: {', '.join(map(display_name, left_out))}"
        gaps.append(
            {
                "count": len(left_out),
                "reason": reason,
                "which": "Not requested, or not available here; rdp-bench doctor says what each needs.",
            }
        )
    return gaps


def _which(run: Run, places: list[CellKey]) -> str:
    """The values that the cells have on each axis, for axes on which they do not have all of the run's values."""
    parts = []
    for axis in ("source", "attack", "eps", "defense", "target"):
        here = list(dict.fromkeys(getattr(cell_key, axis) for cell_key in places))
        every = {getattr(CellKey.of(row), axis) for row in run.rows}
        if set(here) != every:
            shown = (show_level(value) if axis == "eps" else display_name(value) for value in here)
            parts.append(f"{axis} {', '.join(shown)}")
    return "; ".join(parts)


def grids_not_run(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Grids of the paper that no run is of: title and command; none beside runs of other grids alone."""
    folder, have = files("rdp_bench.data").joinpath("grids"), {run.grid for run in runs}
    if not have & set(_paper_grids()):
        return []
    flags = _flags(str(runs[-1].record["command"]))
    return [
        (
            str(tomllib.loads(folder.joinpath(f"{name}.toml").read_text("utf-8"))["title"]),
            shlex.join(["rdp-bench", "run", "--grid", name, *flags]),
        )
        for name in _paper_grids()
        if name not in have
    ]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """In the paper's order; other grids follow by name."""
    known = _paper_grids()
    return sorted(runs, key=lambda run: known.index(run.grid) if run.grid in known else len(known))


def _paper_grids() -> list[str]:
    text = files("rdp_bench.data").joinpath("grids", "paper.toml").read_text("utf-8")
    return list(tomllib.loads(text)["grids"])


def _flags(command: str) -> list[str]:
    """The flags of `_KEPT` that a command has, with their values."""
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return [part for flag, value in pairwise(words) if flag in _KEPT for part in (flag, value)]
