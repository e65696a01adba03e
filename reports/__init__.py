"""Reports: OUT/runs and the store -> OUT/report (a page, tables in four formats, figures in three)."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.errors import RdpBenchError

if TYPE_CHECKING:
    from rdp_bench.cache.store import Store
    from rdp_bench.reports.page import Audits, Section
    from rdp_bench.results.cards import Card
    from rdp_bench.results.rows import Run

FEW = 3
"""Runs on a page that leave room for all examples of each."""


def render(
    out: Path,
    store: "Store",
    only: Sequence[str] | None = None,
    complain: Callable[[str], None] | None = None,
    to: Path | None = None,
) -> Path:
    """Write OUT/report, or `to`, from the runs and audits of OUT, those in `only` if given; the path of the page.

    The runs that an audit consists of have no section of their own, unless `only` names them. `complain` is called once
    for each run of which something that it calls done could not be read, and for each card that cannot be read.

    Raises:
        UsageError: there is no run, a grid of `only` has none, or a record cannot be read.
        RdpBenchError: runs say that cells are done, and the store holds the predictions of none; nothing is written.
    """
    from rdp_bench.reports import page as html
    from rdp_bench.reports import summary
    from rdp_bench.results import cards
    from rdp_bench.results.rows import load, lost, select_runs, shown_names

    found = cards.load(out, complain)
    runs = summary.in_order(load(out, store)) if not found or any((out / "runs").glob("*.json")) else []
    if only:
        found = [card for card in found if card.grid in only]
        rest = [name for name in only if name not in {card.grid for card in found}]
        shown = select_runs(runs, rest) if rest else []
    else:
        parts = {name for card in found for name in card.runs}
        shown = [run for run in runs if run.grid not in parts]
    folder = to or out / "report"
    _require_predictions(shown, out, store, folder)
    pen = _Pen(folder)
    sections = []
    for run in shown:
        with shown_names(run.names):
            sections.append(_section(pen, run, store, len(shown) > FEW))
    with shown_names(*(card.names for card in found), beside=[card.defense for card in found]):
        audits = _audits(pen, found) if found else None
        page = pen.write("index.html", html.page(sections, summary.grids_not_run(runs), audits).encode())
    pen.tidy(keep=bool(only))
    for run in shown:
        if run.unread and complain:
            complain(lost(run))
    return page


def _require_predictions(runs: "Sequence[Run]", out: Path, store: "Store", folder: Path) -> None:
    """Refuse to replace a report by one without a single number."""
    done = sum(cell.status == "done" for run in runs for cell in run.cells)
    if done and not any(run.wrong for run in runs):
        raise RdpBenchError(
            f"none of the {done} finished cells in {out} has readable predictions, neither in OUT/predictions nor "
            f"in the cache {store.root}; name the cache that the run used with --cache, or run again. "
            f"{folder} was not changed"
        )


class _Pen:
    """Writes a report's files, and knows those of the previous report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list = folder / ".written.json"
        self._names: set[str] = set()

    def write(self, name: str, content: bytes) -> Path:
        from rdp_bench.cache.store import write_atomic

        self._names.add(name)
        write_atomic(self.folder / name, content)
        return self.folder / name

    def tidy(self, *, keep: bool) -> None:
        """Delete files of the previous report that this one did not write; `keep`: leave them."""
        try:
            before = [str(name) for name in json.loads(self._list.read_text())]
        except (OSError, ValueError, TypeError):
            before = []
        left = {name for name in before if re.fullmatch(r"(tables|figures)/\w[\w.-]*", name)} - self._names
        if keep:
            self._names |= left
        else:
            for name in left:
                (self.folder / name).unlink(missing_ok=True)
        self.write(self._list.name, json.dumps(sorted(self._names)).encode())


def _section(pen: _Pen, run: "Run", store: "Store", crowded: bool) -> "Section":
    """Write a run's tables and figures; what the page needs of it."""
    from rdp_bench.reports import examples
    from rdp_bench.reports.claims import claims
    from rdp_bench.reports.claims.claim_tests import evaluate_claims
    from rdp_bench.reports.figures.registry import draw_figures
    from rdp_bench.reports.figures.tradeoff import tradeoff
    from rdp_bench.reports.formats import files
    from rdp_bench.reports.page import Section
    from rdp_bench.reports.tables.leaderboard import leaderboards
    from rdp_bench.reports.tables.parameters import parameters
    from rdp_bench.reports.tables.registry import all_tables
    from rdp_bench.reports.tables.table import slug

    found = evaluate_claims(run)
    if found:
        pen.write(f"tables/{slug(run.grid, 'claims')}.csv", claims.claims_csv(run, found).encode())
    written = {}

    def write(name: str, contents: dict[str, bytes]) -> None:
        written[name] = list(contents)
        for ending, content in contents.items():
            pen.write(f"tables/{name}{ending}", content)

    chosen = bool(run.record.get("figures"))  # then the grid says what is drawn
    boards = [(board, None if chosen else tradeoff(board)) for board in leaderboards(run)]
    for board, _ in boards:
        write(board.slug, files.of_leaderboard(board))
    tables, more = all_tables(run), parameters(run)
    for table in [*tables, *([more] if more else [])]:
        write(table.slug, files.of_table(table))
    drawn = draw_figures(run, store, tables)
    for figure in [*(figure for _, figure in boards if figure), *drawn]:
        for ending, content in figure.files.items():
            pen.write(f"figures/{slug(run.grid, figure.name)}.{ending}", content)
    shown = examples.examples(run, store, crowded)
    return Section(run, slug(run.grid), found, boards, tables, more, drawn, shown, written)


def _audits(pen: _Pen, found: "Sequence[Card]") -> "Audits":
    """Write the tables, figures and cards of audits; what the page needs of them."""
    from rdp_bench.reports.audits import contents
    from rdp_bench.reports.figures.registry import draw_audits
    from rdp_bench.reports.formats import files
    from rdp_bench.reports.page import Audits
    from rdp_bench.reports.tables.audits import sheet
    from rdp_bench.reports.tables.registry import audit_tables
    from rdp_bench.reports.tables.table import slug
    from rdp_bench.results import cards

    written = {}

    def write(name: str, made: dict[str, bytes]) -> None:
        written[name] = list(made)
        for ending, content in made.items():
            pen.write(f"tables/{name}{ending}", content)

    for card in found:
        texts = {**contents(card), "json": cards.to_json(card)}
        write(slug("audit", card.name), {f".{ending}": text.encode() for ending, text in texts.items()})
    tables = audit_tables(found)
    for table in tables:
        made = files.of_table(table)
        made.pop(".tests.csv", None)
        write(table.slug, {**made, ".csv": sheet(found, table).encode()})
    drawn = draw_audits(found)
    for figure in drawn:
        for ending, content in figure.files.items():
            pen.write(f"figures/{slug('audits', figure.name)}.{ending}", content)
    return Audits(found, drawn, tables, written)
