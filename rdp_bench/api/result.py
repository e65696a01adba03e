"""What `evaluate` and `load_results` return: runs with their numbers, as tables, figures and files."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.results.rows import Run, load, select_runs, shown_names

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
        store: the cache that holds their predictions.
    """

    runs: Sequence[Run]
    folder: Path
    store: "Store"
    _keep: Any = field(default=None, repr=False, compare=False)
    """The temporary folder, which exists as long as this object."""

    @property
    def failed(self) -> dict[str, str]:
        """Why cells failed, by "source attack eps -> defense -> target"."""
        return {
            f"{row['source']} {row['attack']} eps {row['eps']} -> {row['defense']} -> {row['target']}": row["reason"]
            for run in self.runs
            for row in run.rows
            if row["status"] != "done"
        }

    def to_dataframe(self) -> "DataFrame":
        """One row per cell, with the columns of results.csv.

        Returns:
            `value`, `ci_low` and `ci_high` are in percent: `metric` says whether of errors under attack or of accuracy
            on clean images. They are NaN where `status` is not "done". `eps` is in /255 (L2 runs: the norm).
        """
        import pandas as pd

        return pd.concat([run.frame for run in self.runs], ignore_index=True)

    def table(self, *, intervals: bool = True) -> Text:
        """The tables as plain text.

        Args:
            intervals: print the 95 % interval behind each value.

        Returns:
            Error in percent under attack (lower is better) by source, defense and attack, then accuracy on clean
            images. `*` marks what a report prints bold.
        """
        from rdp_bench.reports.formats import text

        return self._joined(lambda table: text.render(table, intervals=intervals))

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

        with shown_names(*(run.names for run in self.runs)):
            return dots([table for table in self._tables() if table.metric == "error" and table.done])

    def report(self, out: str | Path) -> Path:
        """Write the report of these runs: OUT/report with a page, tables and figures, and OUT/results.csv.

        Args:
            out: a results folder; runs of other grids that it holds stay and are reported too.

        Returns:
            The path of the page, OUT/report/index.html.

        Raises:
            UsageError: `out` cannot be written to.
        """
        from rdp_bench import csvtext, reports
        from rdp_bench.results.rows import write_results

        out = Path(out)
        if out.resolve() != self.folder.resolve():
            names = {run.grid for run in self.runs}
            (out / "runs").mkdir(parents=True, exist_ok=True)
            for name in names:
                source, to = (folder / "runs" / f"{name}.json" for folder in (self.folder, out))
                part = to.with_suffix(".part")
                shutil.copyfile(source, part)
                part.replace(to)
            _, lines = csvtext.read((self.folder / "results.csv").read_text("utf-8"))
            write_results(out, [line for line in lines if line["grid"] in names])
        return reports.render(out, self.store)

    def _joined(self, render: "Callable[[Table], str]") -> Text:
        with shown_names(*(run.names for run in self.runs)):
            return Text("\n".join(map(render, self._tables())))

    def _tables(self) -> "list[Table]":
        from rdp_bench.reports.tables.registry import all_tables

        return [table for run in self.runs for table in all_tables(run)]

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The tables, for a notebook."""
        from html import escape

        return f"<pre>{escape(self.table())}</pre>"


def read(folder: Path, store: "Store", only: Sequence[str] = (), keep: Any = None) -> Result:
    """The runs of a results folder, those of the grids in `only` if given."""
    return Result(select_runs(load(folder, store), only), folder, store, keep)
