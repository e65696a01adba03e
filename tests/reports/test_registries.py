"""The registries of figures and tables: adding one is one line, and grids, reports and files follow."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from rdp_bench.engine import grid
from rdp_bench.errors import UsageError
from rdp_bench.reports import render
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.registry import FIGURES, FigureKind
from rdp_bench.reports.tables.registry import TABLES
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell
from rdp_bench.results.rows import Run
from tests.helpers.paths import ROOT
from tests.helpers.reports import small


def toy_figure(run: Run) -> ReportFigure:
    """A figure without a drawing."""
    saved = {"svg": b'<svg width="9pt" height="9pt" viewBox="0 0 9 9"></svg>', "png": b"", "pdf": b""}
    return ReportFigure("toy", f"A toy figure. It shows nothing of {run.grid}.", saved)


def toy_tables(run: Run) -> list[Table]:
    """A table of one number."""
    groups = [Group("-", [Row("none", [TableCell("done", "", 4.0)])])]
    return [Table(f"{run.grid}_toy", "A toy table", "One number.", "toy", ["four"], groups, [])]


def axes(name: str) -> str:
    return (
        f'[axes]\nfigures = ["{name}"]\nattacks = ["fgsm"]\ndefenses = ["none"]\neps = [16]\n'
        'dataset = "photos20"\nsources = ["effnet-lite0"]\ntargets = ["effnet-lite2"]\n'
    )


def test_one_line_adds_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("rdp_bench.reports.figures.toy")
    module.toy_figure = toy_figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "g.toml").write_text(axes("toy"))
    with pytest.raises(UsageError, match="unknown figure 'toy' of grid g"):
        grid.load(str(tmp_path / "g.toml"), "embedded", {})
    monkeypatch.setitem(FIGURES, "toy", FigureKind("toy:toy_figure", "run"))
    assert grid.load(str(tmp_path / "g.toml"), "embedded", {})[0].axes.figures == ("toy",)
    _, store = small(tmp_path, figures=["toy"])
    page = render(tmp_path, store).read_text()
    assert "It shows nothing of table1." in page
    assert [path.name for path in (tmp_path / "report" / "figures").glob("*.svg")] == ["table1_toy.svg"]


def test_one_line_adds_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: None) -> None:
    monkeypatch.setitem(TABLES, "toy", toy_tables)
    _, store = small(tmp_path)
    page = render(tmp_path, store).read_text()
    assert "A toy table" in page
    written = sorted(path.name for path in (tmp_path / "report" / "tables").glob("table1_toy*"))
    assert written == [f"table1_toy{ending}" for ending in (".csv", ".md", ".pdf", ".tests.csv", ".tex")]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_function(name: str) -> None:
    module, _, function = FIGURES[name].function.partition(":")
    path = Path(find_spec(f"rdp_bench.reports.figures.{module}").origin)  # type: ignore[union-attr,arg-type]
    assert f"def {function}(" in path.read_text()


def test_the_usual_figures_show_no_pictures() -> None:
    """Every report draws them, also of runs that keep no images."""
    assert not [name for name, kind in FIGURES.items() if kind.usual and kind.pictures]


def test_the_names_of_figures_cost_nothing() -> None:
    code = (
        "import sys, rdp_bench.engine.grid; "
        "print({'torch', 'numpy', 'matplotlib', 'pandas', 'seaborn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
