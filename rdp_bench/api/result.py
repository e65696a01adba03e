"""What `evaluate` and `load_results` return: runs with their numbers, as tables, figures and files."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.cache.files import write_atomic_by
from rdp_bench.errors import UsageError
from rdp_bench.keys import hash_file
from rdp_bench.results.rows import Run, load, select_runs, shown_names
from rdp_bench.specs import show_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from rdp_bench.cache.store import Store
    from rdp_bench.reports.tables.table import Table


class Text(str):
    """A text that a notebook shows line by line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Result:
    """The numbers of one or several runs.

    Attributes:
        runs: the runs, each with its record, its rows and which images were classified wrongly.
        folder: the results folder that they were read from.
        store: the cache, used where the folder lacks predictions, and for images.
    """

    runs: Sequence[Run]
    folder: Path
    store: "Store"
    _keep: Any = field(default=None, repr=False, compare=False)
    """The temporary folder, which exists as long as this object."""
    _records: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Hash of the record of each run, by its name in the folder, when this was read."""

    def _refuse_changed(self) -> None:
        """Raise UsageError if another run has taken the place of one of these in the folder."""
        for name, content in self._records.items():
            path = self.folder / "runs" / f"{name}.json"
            if not path.is_file() or hash_file(path) != content:
                raise UsageError(
                    f"{path} is of a later run than this result; give each run a folder of its own: out=..."
                )

    @property
    def failed(self) -> dict[str, str]:
        """Why cells failed, by "source attack eps -> defense -> target"; of several runs, by "grid: source ..."."""
        return {
            f"{run.grid + ': ' if len(self.runs) > 1 else ''}{row['source']} {row['attack']} "
            f"eps {show_level(float(row['eps']))} -> {row['defense']} -> {row['target']}": row["reason"]
            for run in self.runs
            for row in run.rows
            if row["status"] != "done"
        }

    def to_dataframe(self) -> "DataFrame":
        """The rows and columns of results.csv: one row per cell, followed by those of its other metrics.

        Returns:
            * `grid`, `dataset`, `n`: the run, its data set and its number of images.
            * `source`, `attack`, `eps`, `defense`, `target`: the cell, as labels; `source` is "-" and `attack` is
              "clean" for clean images. `eps` is in /255 (L2 runs: the norm).
            * `metric`: "error" under attack or "accuracy" on clean images. Where a run asks for them, "success" and
              "targeted_success" of attacks (`n` is the number of images that count), "error_worst" and "error_vote" of
              several samples of a defense, and the quality of purified images, such as "psnr", with the target "-".
            * `value`, `ci_low`, `ci_high`: percent, with the 95 % interval; NaN where `status` is not "done", or where
              no image counts.
            * `paper`: the paper's number in the same metric, or NaN.
            * `status`, `reason`: "done", or "pending" or "failed" with the reason.
            * `adv_key`, `eval_key`: the cache keys of images and predictions.
            * `seconds`: duration of the evaluation of the cell.
        """
        import pandas as pd

        from rdp_bench.results.lines import frame

        return pd.concat(map(frame, self.runs), ignore_index=True)

    def table(self, *, intervals: bool = True) -> Text:
        """The tables as plain text.

        Args:
            intervals: print the 95 % interval after each value.

        Returns:
            Error in percent under attack (lower is better) by source, defense and attack, then accuracy on clean
            images. `*` marks the values that a report prints in bold.
        """
        from rdp_bench.reports.formats import text

        return self._joined(lambda table: text.render(table, intervals=intervals))

    def leaderboard(self) -> Text:
        """The defenses of each run by their mean error, one block per target, as plain text.

        Returns:
            Mean error with its 95 % interval, change against no defense with its paired test, the attack with the
            highest error, accuracy on clean images, and time per image. Empty if no cell under attack exists.
        """
        from rdp_bench.reports.formats import text
        from rdp_bench.reports.tables.leaderboard import as_table, leaderboards

        return self._by_run(lambda run: (text.render(as_table(board), intervals=False) for board in leaderboards(run)))

    def latex(self) -> Text:
        """The tables as LaTeX `table` environments, for a document that uses booktabs."""
        from rdp_bench.reports.formats import latex

        return self._joined(latex.render)

    def markdown(self) -> Text:
        """The tables as Markdown."""
        from rdp_bench.reports.formats import markdown

        return self._joined(markdown.render)

    def plot(self) -> "Figure":
        """The error of every defense with its 95 % interval, a panel per target, budget and source.

        Returns:
            A matplotlib figure; the error is the average over attacks where there are several. Dashed: no defense.

        Raises:
            UsageError: no cell under attack is done.
        """
        from rdp_bench.api.plot import dots
        from rdp_bench.reports.tables.registry import all_tables

        return dots(
            (run.names, table)
            for run in self.runs
            for table in all_tables(run)
            if table.metric == "error" and table.done
        )

    def report(self, out: str | Path) -> Path:
        """Write the report of these runs: OUT/report with a page, tables and figures, and OUT/results.csv.

        Args:
            out: a results folder; runs of other grids that it holds stay and are reported too.

        Returns:
            The path of the page, OUT/report/index.html.

        Raises:
            StorageError: `out` cannot be written to.
        """
        from rdp_bench import reports
        from rdp_bench.results.lines import every_row
        from rdp_bench.results.prediction_file import tidy
        from rdp_bench.results.rows import write_results

        self._refuse_changed()
        out = Path(out)
        if out.resolve() != self.folder.resolve():
            for run in self.runs:
                file = run.stored.file.path if run.stored and run.stored.file else None
                if file:
                    _copy(file, out / file.parent.name / file.name)
                _copy(self.folder / "runs" / f"{run.grid}.json", out / "runs" / f"{run.grid}.json")
                tidy(out, run.grid, run.record["predictions"]["sha256"] if file else None)
            write_results(out, [line for run in self.runs for line in every_row(run)])
        return reports.render(out, self.store)

    def compare(self, other: "Result | str | Path", out: str | Path) -> Path:
        """Compare these runs with those of another results folder, cell by cell: OUT/report/compare.html and .csv.

        Args:
            other: a result, or a results folder.
            out: folder whose `report` folder is written.

        Returns:
            The path of the page. Differences are `other` minus this one, with intervals and paired tests.

        Raises:
            UsageError: the two have no grid in common. RdpBenchError: no cell of both has predictions.
        """
        from rdp_bench.reports.compare import render

        for each in (self, other):
            if isinstance(each, Result):
                each._refuse_changed()
        folder = other.folder if isinstance(other, Result) else Path(other)
        page, _ = render((self.folder, folder), self.store, Path(out), [run.grid for run in self.runs])
        return page

    def _joined(self, render: "Callable[[Table], str]") -> Text:
        from rdp_bench.reports.tables.registry import all_tables

        return self._by_run(lambda run: map(render, all_tables(run)))

    def _by_run(self, parts: Callable[[Run], Iterable[str]]) -> Text:
        """The parts of each run, with the names that this run gives its labels."""
        found: list[str] = []
        for run in self.runs:
            with shown_names(run.names):
                found += parts(run)
        return Text("\n".join(found))

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The tables, for a notebook."""
        from html import escape

        return f"<pre>{escape(self.table())}</pre>"


def _copy(source: Path, to: Path) -> None:
    """Copy a file so that a reader sees all of it or nothing."""
    with source.open("rb") as file:
        write_atomic_by(to, partial(shutil.copyfileobj, file))


def read(folder: Path, store: "Store", only: Sequence[str] = (), keep: Any = None) -> Result:
    """The runs of a results folder, those of the grids in `only` if given."""
    folder = folder.resolve()
    runs = select_runs(load(folder, store), only)
    records = {run.grid: folder / "runs" / f"{run.grid}.json" for run in runs}
    return Result(
        runs, folder, store, keep, {name: hash_file(path) for name, path in records.items() if path.is_file()}
    )
