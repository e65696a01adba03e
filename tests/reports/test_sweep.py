"""The figure over several eps: its numbers are the run's."""

import csv
import io
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.reports.figures.sweep import _spread, sweep
from rdp_bench.results.rows import load
from rdp_bench.specs import UNDEFENDED
from tests.helpers.paths import TESTS
from tests.helpers.reports import small

PLUGIN = TESTS / "plugin" / "tiny.py"
GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm", "i-fgsm"]
defenses = ["none", "tiny/round"]
eps = [1, 4, 16]
[profile.embedded]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(GRID)
    args = ["run", "--grid", str(tmp_path / "tiny.toml"), "--plugin", str(PLUGIN), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, args).exit_code == 0
    return tmp_path / "out"


def test_points_are_the_results_as_accuracy(out: Path, tmp_path: Path) -> None:
    (run,) = load(out, Store(tmp_path / "cache"))
    made = sweep(run)
    assert made is not None
    points = list(csv.DictReader(io.StringIO(made.csv)))
    with (out / "results.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["attack"] != "clean"]
    assert len(points) == len(cells) == 2 * 2 * 3
    for cell in cells:
        (point,) = [p for p in points if all(float(p[k]) == float(cell[k]) if k == "eps" else p[k] == cell[k]
                                             for k in ("attack", "defense", "eps"))]  # fmt: skip
        assert float(point["accuracy"]) == pytest.approx(100 - float(cell["value"]), abs=1e-3)
        assert float(point["ci_low"]) == pytest.approx(100 - float(cell["ci_high"]), abs=1e-3)
        assert float(point["ci_high"]) == pytest.approx(100 - float(cell["ci_low"]), abs=1e-3)
    assert {kind: content[:4] for kind, content in made.saved.items()} == {
        "svg": b"<?xm", "pdf": b"%PDF", "png": b"\x89PNG",
    }  # fmt: skip
    text = made.saved["svg"].decode()
    assert "MI-FGSM" not in text
    assert text.count("No defense (") == 1


def test_mean_and_population_deviation_stand_behind_the_name() -> None:
    values = [10.0, 20.0, 60.0]
    points: list[dict[str, str | float]] = [{"defense": "a", "accuracy": v} for v in values]
    assert _spread([*points, {"defense": "b", "accuracy": 99.0}], "a", 3) == f"(30.0 ± {np.sqrt(1400 / 3):.1f})"


def test_one_eps_makes_no_sweep(out: Path, tmp_path: Path) -> None:
    args = ["run", "--grid", str(tmp_path / "tiny.toml"), "--plugin", str(PLUGIN), "--eps", "4"]
    assert CliRunner().invoke(main, [*args, "--out", str(tmp_path / "one")]).exit_code == 0
    (run,) = load(tmp_path / "one", Store(tmp_path / "cache"))
    assert sweep(run) is None


def test_the_report_holds_figure_and_numbers(out: Path) -> None:
    assert CliRunner().invoke(main, ["report", "--out", str(out)]).exit_code == 0
    figures = out / "report" / "figures"
    assert {f"tiny_sweep.{kind}" for kind in ("svg", "png", "pdf", "csv")} <= {path.name for path in figures.iterdir()}
    assert "mean and standard deviation over all attacks" in (out / "report" / "index.html").read_text()


def test_a_defense_that_lacks_cells_has_no_mean() -> None:
    points: list[dict[str, str | float]] = [{"defense": "a", "accuracy": 90.0}]
    assert _spread(points, "a", 2) == "(1 of 2 cells)"


def test_the_means_leave_out_targets_without_defenses(tmp_path: Path) -> None:
    """A baseline has the undefended row alone, whose mean would be over other cells than those of the defenses."""
    run, _ = small(tmp_path, targets=["t", "baseline"], eps=[8, 16])
    kept = [cell.target == "t" or cell.defense == UNDEFENDED for cell in run.cells]
    cells, rows = list(compress(run.cells, kept)), list(compress(run.rows, kept))
    made = sweep(replace(run, cells=cells, rows=rows))
    assert made
    text = made.saved["svg"].decode()
    assert "of 8 cells" not in text
    assert "JPEG (20.0 ± 15.0)" in text  # FGSM leaves 5 %, MI-FGSM 35 %
