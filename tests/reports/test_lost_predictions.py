"""Reports and comparisons without predictions: an error, never "no difference" or an empty report."""

import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from rdp_bench.cache.store import Store
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.report_fixture import make_run

GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["fgsm"]
sources = ["tiny/one"]
defenses = ["none"]
targets = ["tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "usual"))
    (tmp_path / "tiny.toml").write_text(GRID)
    return tmp_path / "tiny.toml"


def run(grid: Path, *flags: object) -> Result:
    found = cli("run", "--grid", grid, "--plugin", PLUGIN, *flags)
    assert found.exit_code == 0, found.output
    return found


def hint(found: Result) -> list[str]:
    return shlex.split(found.stdout.strip().splitlines()[-1].partition("next: ")[2])


def test_the_command_to_type_next_names_the_runs_cache(grid: Path) -> None:
    out, cache = grid.parent / "my out", grid.parent / "other cache"
    words = hint(run(grid, "--out", out, "--cache", cache))
    assert words == ["rdp-bench", "report", "--out", str(out), "--cache", str(cache)]
    assert cli(*words[1:]).exit_code == 0
    assert hint(run(grid, "--out", out)) == ["rdp-bench", "report", "--out", str(out)]


def test_so_does_a_list_of_grids(grid: Path) -> None:
    suite = grid.with_name("suite.toml")
    suite.write_text('title = "One"\ngrids = ["tiny.toml"]')
    words = hint(run(suite, "--out", grid.parent / "out", "--cache", grid.parent / "c"))
    assert words[-2:] == ["--cache", str(grid.parent / "c")]


def test_a_report_without_a_number_does_not_replace_a_good_one(grid: Path) -> None:
    out, cache = grid.parent / "out", grid.parent / "other"
    run(grid, "--out", out, "--cache", cache)
    assert cli("report", "--out", out, "--cache", cache).exit_code == 0
    before = {path: path.read_bytes() for path in (out / "report").rglob("*") if path.is_file()}
    shutil.rmtree(out / "predictions")
    found = cli("report", "--out", out)
    assert found.exit_code == 1
    assert found.stderr.startswith("error: none of the 2 finished cells in")
    assert found.stderr.count("\n") == 1
    assert "--cache" in found.stderr
    assert {path: path.read_bytes() for path in (out / "report").rglob("*") if path.is_file()} == before


def test_a_comparison_without_predictions_fails(tmp_path: Path) -> None:
    for name in ("A", "B"):
        make_run(tmp_path / name, Store(tmp_path / "store"), lambda p: (), samples=1)
    args = ["report", "--out", tmp_path / "out", "--compare", tmp_path / "A", tmp_path / "B", "--cache"]
    found = cli(*args, tmp_path / "elsewhere")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: 0 of 9 cells of both runs could be compared")
    assert str(tmp_path / "elsewhere") in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_comparison_says_how_many_cells_it_compared(tmp_path: Path) -> None:
    from rdp_bench.results.rows import CellKey

    store, lost = Store(tmp_path / "store"), CellKey("a", "fgsm", 16.0, "t", "rdp")
    make_run(tmp_path / "A", store, lambda p: (), samples=1)
    record = make_run(tmp_path / "B", store, lambda p: (), samples=1, apart=[lost])
    key = next(cell["eval_key"] for cell in record["cells"] if CellKey.of(cell) == lost)
    store.delete("eval", key)
    args = ["report", "--out", tmp_path / "out", "--compare", tmp_path / "A", tmp_path / "B", "--cache"]
    found = cli(*args, tmp_path / "store")
    assert found.exit_code == 0
    assert "8 of 9 cells of both runs were compared" in found.stderr
    page = (tmp_path / "out" / "report" / "compare.html").read_text()
    assert "9 cells are in both, 8 could be compared" in page
