"""Tables of errors and clean accuracy, independent of the output format: groups of rows of cells, as in the paper."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.metrics.significance import Verdict, compare_defenses
from rdp_bench.results.rows import CellKey, Run, display_name, given_name, paper_metadata, paper_value
from rdp_bench.specs import CLEAN, UNDEFENDED, show
from rdp_bench.terminal import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

AVERAGE = "Average"
SEEN = "‡"
"""Marks attacks similar to those that the target was trained against."""
BOLD = "Bold"
LEGEND = {
    BOLD: "the best value of its column, where it is significantly better than no defense",
    "≈": "not significantly different from the best value",
    "†": "significantly worse than no defense",
    "°": "worse than no defense, but not significantly",
    SEEN: "the target was trained against similar attacks",
}
"""What marks mean."""


@dataclass(frozen=True)
class TableCell:
    """One number of a table with its interval, comparisons and tests; `value` is None unless `status` is "done".

    `text` is printed instead of the value, where that is not a number with one decimal.
    """

    status: str = "absent"  # done, failed, pending, absent (the grid has no such cell)
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    paper: float | None = None
    change: tuple[float, float, float] | None = None  # to no defense, with its interval; clean tables only
    verdict: Verdict = field(default_factory=Verdict)
    text: str = ""

    @property
    def shown(self) -> str | None:
        """What tables print of it; None where there is nothing."""
        return self.text or (None if self.value is None else f"{self.value:.1f}")

    @property
    def bold(self) -> bool:
        """Whether it is the best of its column, and significantly better than no defense."""
        return self.verdict.best and self.verdict.significantly_lower

    @property
    def symbols(self) -> str:
        """≈ not significantly different from the best; † significantly worse than no defense; ° worse, in tendency."""
        return "≈" * self.verdict.tied + (
            "†" if self.verdict.significantly_worse else "°" * self.verdict.higher_than_undefended
        )


@dataclass(frozen=True)
class Row:
    """A defense's row; `defense` is its label, `aggregation` how its draws are aggregated where rows differ in that."""

    defense: str
    cells: list[TableCell]
    aggregation: str = ""
    title: str = ""
    """What the row is, where that is no defense."""

    @property
    def name(self) -> str:
        return self.title or ", ".join(filter(None, (display_name(self.defense), self.aggregation)))

    @property
    def label(self) -> str:
        """For CSV files: the label, or the name that the run gives it."""
        return self.title or ", ".join(filter(None, (given_name(self.defense), self.aggregation)))


@dataclass(frozen=True)
class Group:
    """The rows of one source; `source` is "-" for clean images."""

    source: str
    rows: list[Row]

    @property
    def name(self) -> str:
        return "" if self.source == "-" else display_name(self.source)

    @property
    def label(self) -> str:
        """For CSV files: the source, or the name that the run gives it."""
        return given_name(self.source)


@dataclass(frozen=True)
class Table:
    """A table. `slug` is safe as a file name and as an HTML id; `keys` name the columns in CSV files."""

    slug: str
    title: str
    caption: str
    metric: str
    columns: list[str]
    groups: list[Group]
    notes: list[str]
    measure: str = ""
    """The metric in results.csv, if it is another one: error_l2."""
    keys: tuple[str, ...] = ()
    head: str = "Defense"
    """What a row is."""
    remarks: tuple[str, ...] = ()
    """Of each row a sentence, which stands below it in the page."""
    across: str = "attack"
    """What a column is, but for an average: attack, target or eps."""

    @property
    def average(self) -> bool:
        return self.columns[-1] == AVERAGE

    @property
    def cells(self) -> list[TableCell]:
        return [entry for group in self.groups for line in group.rows for entry in line.cells]

    @property
    def legend(self) -> str:
        """What its marks mean; empty if it has none."""
        marks = {mark for entry in self.cells for mark in entry.symbols}
        marks |= {SEEN for column in self.columns if column.endswith(SEEN)}
        marks |= {BOLD for entry in self.cells if entry.bold}
        said = [f"{mark}{':' * (mark == BOLD)} {text}." for mark, text in LEGEND.items() if mark in marks]
        return " ".join(said)

    @property
    def done(self) -> int:
        """How many cells have a number."""
        return sum(entry.value is not None for entry in self.cells)


def slug(*parts: str) -> str:
    """A file name and HTML id for any names; different parts give different names.

    >>> slug("table1", "effnet-lite2", "eps16")
    'table1_effnet-lite2_eps16'
    >>> slug("../<b>") == slug("../<i>")
    False
    """
    return "_".join(map(_safe, parts))


def _safe(text: str) -> str:
    """a-z, 0-9, dots and dashes; other texts are reduced to these, and their hash is appended."""
    safe = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:48]
    return safe if text and safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def error_tables(run: Run) -> list[Table]:
    """Table 1 for each target and eps: rows are defenses by source, columns attacks and their average.

    A run of a single attack has its targets, or its eps, as columns instead.
    """
    cells = [cell.key for cell in run.cells if cell.attack != CLEAN]
    axes: dict[str, list[Any]] = {
        "attack": run.attacks,
        "target": run.axis("targets"),
        "eps": sorted({cell_key.eps for cell_key in cells}),
    }
    across = next((name for name, values in axes.items() if len(values) > 1), "attack")
    fixed = [name for name in axes if name != across]
    tables = []
    for values in product(*(axes[name] for name in fixed)):
        here = dict(zip(fixed, values, strict=True))
        if any(all(getattr(cell_key, name) == value for name, value in here.items()) for cell_key in cells):
            tables.append(_error_table(run, here, across, axes[across]))
    return tables


def _error_table(run: Run, here: dict[str, Any], across: str, axis: list[Any]) -> Table:
    sources = [source for source in run.axis("sources") if source != "-"]
    defenses = _defenses(run)
    average = across == "attack" and len(axis) > 1

    def place(source: str, value: Any, defense: str) -> CellKey:
        return CellKey(source=source, defense=defense, **{across: value}, **here)

    columns = [[place(source, value, defense) for defense in defenses] for source in sources for value in axis]
    entries = _table_cells(run, columns)
    rows = {(source, name): [place(source, value, name) for value in axis] for source in sources for name in defenses}
    means = _averages(run, rows, entries) if average else {}
    groups = []
    for source in sources:
        lines = []
        for name in defenses:
            line = [entries[cell] for cell in rows[source, name]]
            if any(entry.status != "absent" for entry in line):
                lines.append(Row(name, line + ([means[source, name]] if average else [])))
        if lines:
            groups.append(Group(source, lines))
    where = ", ".join(_heading(run, name, value) for name, value in reversed(here.items()))
    every = "all " * (run.record["dataset"]["n"] > 1)
    return Table(
        slug(run.grid, *(eps_slug(run, value) if name == "eps" else str(value) for name, value in here.items())),
        f"Error under attack: {where}",
        " ".join(
            [
                f"Error in percent over {every}{_images(run)}; lower is better. Setting: {where}.",
                *_training(run, here, across, axis),
            ]
        ),
        "error",
        [
            (display_name(value) if across == "target" else _heading(run, across, value))
            + (SEEN if _seen(run, {**here, across: value}) else "")
            for value in axis
        ]
        + ([AVERAGE] if average else []),
        groups,
        _notes(run, run.grid, groups),
        "" if run.norm == LINF else f"error_{run.norm}",
        (*(eps_slug(run, value) if across == "eps" else given_name(value) for value in axis), *["average"] * average),
        across=across,
    )


def clean_tables(run: Run) -> list[Table]:
    """Table 2: accuracy without an attack, by defense and target; none for a run without clean cells."""
    places = [cell.key for cell in run.cells if cell.attack == CLEAN]
    targets = [target for target in run.axis("targets") if any(cell_key.target == target for cell_key in places)]
    if not places:
        return []
    columns = [[CellKey.clean(target, name) for name in _defenses(run)] for target in targets]
    entries = _table_cells(run, columns)
    rows = [[entries[column[i]] for column in columns] for i in range(len(_defenses(run)))]
    lines = [Row(name, row) for name, row in zip(_defenses(run), rows, strict=True)]
    groups = [Group("-", [line for line in lines if any(entry.status != "absent" for entry in line.cells)])]
    table = Table(
        slug(run.grid, "clean"),
        "Accuracy on clean images",
        f"Top-1 accuracy in percent on {_images(run)} without an attack; higher is better.",
        "accuracy",
        [display_name(target) for target in targets],
        groups,
        _notes(run, "table2", groups),
        keys=tuple(map(given_name, targets)),
    )
    return [table]


def _seen(run: Run, here: dict[str, Any]) -> bool:
    """Whether the target was trained against attacks like this one."""
    return here["attack"] in run.record["models"].get(here["target"], {}).get("seen", ())


def _training(run: Run, here: dict[str, Any], across: str, axis: list[Any]) -> list[str]:
    """Sentences that say which attacks the targets of a table were trained against."""
    against = {
        target: run.record["models"].get(target, {}).get("trained_against")
        for target in (axis if across == "target" else [here["target"]])
    }
    return [f"{display_name(target)} was trained against {how}." for target, how in against.items() if how]


def setting(run: Run, target: str, eps: float) -> str:
    """A target and eps in words."""
    return ", ".join(_heading(run, axis, value) for axis, value in (("eps", eps), ("target", target)))


def eps_slug(run: Run, eps: float) -> str:
    """An eps as a part of slugs."""
    return f"{'' if run.norm == LINF else f'{run.norm}-'}eps{show(eps)}"


def _heading(run: Run, axis: str, value: Any) -> str:
    return (
        f"ε = {run.eps(value)}"
        if axis == "eps"
        else f"target {display_name(value)}"
        if axis == "target"
        else display_name(value)
    )


def _defenses(run: Run) -> list[str]:
    return sorted(run.axis("defenses"), key=lambda name: name != UNDEFENDED)


def _images(run: Run) -> str:
    return f"{counted(run.record['dataset']['n'], 'image')} of {run.record['dataset']['name']}"


def _table_cells(run: Run, columns: list[list[CellKey]]) -> dict[CellKey, TableCell]:
    """Table cells of single cells of the run, compared within their columns."""
    done = [{p.defense: run.errors(p) for p in column if p in run.wrong} for column in columns]
    entries: dict[CellKey, TableCell] = {}
    for column, errors, verdicts in zip(columns, done, compare_defenses(done), strict=True):
        for cell_key in column:
            row = run.lines.get(cell_key)
            if row is None or row["status"] != "done":
                entries[cell_key] = replace(not_done(run, [cell_key]), paper=_number(row["paper"]) if row else None)
            else:
                change = None
                if cell_key.attack == CLEAN and cell_key.defense != UNDEFENDED and UNDEFENDED in errors:
                    gain = (errors[UNDEFENDED] - errors[cell_key.defense]) / run.defense_samples
                    least, most = stats.mean_interval(gain, least=-1)
                    change = (100 * float(gain.mean()), 100 * least, 100 * most)
                value, low, high, number = (_number(row[name]) for name in ("value", "ci_low", "ci_high", "paper"))
                entries[cell_key] = TableCell("done", "", value, low, high, number, change, verdicts[cell_key.defense])
    return entries


def not_done(run: Run, places: Sequence[CellKey]) -> TableCell:
    """What stands in place of a number that needs these cells: why the first that failed did, else what is missing."""
    lines = [run.lines.get(cell_key, {"status": "absent", "reason": ""}) for cell_key in places]
    for status in ("failed", "pending"):
        for line in lines:
            if line["status"] == status:
                return TableCell(status, line["reason"] or "not run yet")
    return TableCell()


def _averages(
    run: Run, rows: dict[tuple[str, str], list[CellKey]], cells: dict[CellKey, TableCell]
) -> dict[tuple[str, str], TableCell]:
    """Means over the attacks by (source, defense), compared within the source; no value where an attack is missing."""
    columns: dict[str, dict[str, Counts]] = {source: {} for source, _ in rows}
    entries: dict[tuple[str, str], TableCell] = {}
    for (source, name), places in rows.items():
        have = [run.errors(cell_key) for cell_key in places if cell_key in run.wrong]
        if len(have) == len(places):
            columns[source][name] = np.sum(have, axis=0)
        else:
            states = {cells[cell_key].status for cell_key in places}
            status = next(status for status in ("failed", "pending", "absent") if status in states)
            entries[source, name] = TableCell(status, f"{len(have)} of {len(places)} attacks are done")
    for (source, column), verdicts in zip(columns.items(), compare_defenses(list(columns.values())), strict=True):
        for name, errors in column.items():
            places = rows[source, name]
            share = errors / (run.defense_samples * len(places))
            low, high = stats.mean_interval(share)
            entries[source, name] = TableCell(
                "done", "", percent(share.mean()), 100 * low, 100 * high,
                _paper_average(run, places) if all(cells[each].paper is not None for each in places) else None, None,
                verdicts[name],
            )  # fmt: skip
    return entries


def percent(share: "float | np.floating[Any]") -> float:
    """A share in percent, to the four decimals of a cell's: equal shares are printed alike wherever they stand.

    >>> percent(7 / 2000), float("0.3500")
    (0.35, 0.35)
    """
    return round(100 * float(share), 4)


def _paper_average(run: Run, places: list[CellKey]) -> float | None:
    """The paper's average, if it is over exactly these cells."""
    five = 5
    if len(places) != five or any(paper_value(run.record, cell_key, "error") is None for cell_key in places):
        return None
    return paper_value(run.record, replace(places[0], attack="average"), "error")


def _number(text: str) -> float | None:
    return float(text) if text else None


def _notes(run: Run, printed_in: str, groups: Iterable[Group]) -> list[str]:
    """Where the paper's numbers come from, and how they differ from those beside them."""
    if not any(entry.paper is not None for group in groups for line in group.rows for entry in line.cells):
        return []
    tables = paper_metadata()["tables"]
    alike = [each for each in tables.values() if each["dataset"] == run.record["dataset"]["name"]]
    table = tables.get(printed_in) or ({"n": alike[0]["n"]} if alike else {})
    notes = [
        f"The paper's numbers are from {paper_metadata()['authors']}, “{paper_metadata()['title']}”.",
        *table.get("notes", []),
    ]
    n = int(run.record["dataset"]["n"])
    if table.get("n", n) != n:
        notes.append(f"The paper's numbers are over {table['n']} images, these over {n} of them.")
    return notes
