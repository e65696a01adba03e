"""Two runs of a folder, of which one calls JPEG "FD" and the other has FD: every table has the names of its own run."""

import csv
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from rdp_bench.api.result import Result, read
from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.errors import UsageError
from rdp_bench.reports import render
from rdp_bench.results.rows import common_names
from tests.helpers.report_fixture import make_run

NAMED, USUAL = "table1", "table3"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of both runs; its cache is `store` beside it."""
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    make_run(out, store, lambda p: (), grid=NAMED, defenses=("none", "jpeg"), samples=1, names={"jpeg": "FD"})
    make_run(out, store, lambda p: range(8), grid=USUAL, defenses=("none", "jpeg", "fd"), samples=1)
    return out


@pytest.fixture
def result(out: Path) -> Result:
    return read(out, Store(out.parent / "store"))


def names(text: str) -> list[str]:
    """The first words of the lines that begin with one of the three names."""
    return [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0] in ("FD", "JPEG")]


def test_the_tables_of_a_result(result: Result) -> None:
    assert sorted(names(result.leaderboard())) == ["FD", "FD", "JPEG"]
    assert sorted(names(result.table())) == ["FD", "FD", "FD", "FD", "JPEG", "JPEG"]  # errors and accuracy


def test_the_panels_of_the_figure(result: Result) -> None:
    shown = [[text.get_text() for text in ax.get_yticklabels()] for ax in result.plot().axes]
    assert shown == [["No defense", "FD"], ["No defense", "JPEG", "FD"]]


def test_the_page(out: Path) -> None:
    page = render(out, Store(out.parent / "store")).read_text("utf-8")
    first, second = page.index(f'<section id="{NAMED}">'), page.index(f'<section id="{USUAL}">')
    assert first < second
    rows = [re.findall(r'<th scope="row">(FD|JPEG)</th>', part) for part in (page[first:second], page[second:])]
    assert set(rows[0]) == {"FD"}
    assert rows[1].count("JPEG") == rows[1].count("FD") > 0


def test_a_comparison(out: Path) -> None:
    args = ["report", "--to", str(out.parent / "to"), "--cache", str(out.parent / "store"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(out), str(out)])
    assert done.exit_code == 0, done.output
    sheet = list(csv.DictReader(io.StringIO((out.parent / "to" / "compare.csv").read_text("utf-8"))))
    assert {line["defense"] for line in sheet if line["grid"] == NAMED} == {"none", "FD"}
    assert {line["defense"] for line in sheet if line["grid"] == USUAL} == {"none", "jpeg", "fd"}
    page = (out.parent / "to" / "compare.html").read_text("utf-8")
    assert "JPEG" not in page[: page.index('<section id="grid-1">')]


def test_a_record_under_another_name_is_refused(out: Path) -> None:
    """Else it would be a second run of its grid, and their files would overwrite each other."""
    (out / "runs" / f"{USUAL}.json").rename(out / "runs" / "mine.json")
    with pytest.raises(UsageError, match=f"mine.json is the record of {USUAL}; name the file {USUAL}.json again"):
        read(out, Store(out.parent / "store"))
    checked = CliRunner().invoke(main, ["results", str(out)])
    assert checked.exit_code == 1
    assert f"mine.json is the record of {USUAL}" in checked.output


def test_a_name_that_another_label_is_written_as_is_none() -> None:
    assert common_names({"jpeg": "FD"}, beside=["jpeg", "fd"]) == {}
    assert common_names({"jpeg": "FD"}, {"fd": "Other"}, beside=["jpeg", "fd"]) == {"jpeg": "FD", "fd": "Other"}
    assert common_names({"jpeg": "A"}, {"jpeg": "B"}) == {}
    assert common_names({"jpeg": "A"}, {"fd": "A"}) == {}
    both = {"jpeg": "A", "fgsm": "A"}  # a defense and an attack of one run
    assert common_names(both) == common_names(both, {"jpeg": "A"}) == both


def test_cells_without_a_number_are_counted_in_every_run(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    for grid in (NAMED, USUAL):
        record = make_run(out, store, lambda p: (), grid=grid, samples=1)
        for path in (tmp_path / "store").rglob("*.safetensors"):
            path.unlink()
    found = read(out, store)
    assert len(found.failed) == 2 * len(record["cells"])
    assert all(key.startswith((f"{NAMED}: ", f"{USUAL}: ")) for key in found.failed)


def test_a_report_elsewhere_has_the_rows_of_the_predictions(out: Path, result: Result, tmp_path: Path) -> None:
    """Whatever results.csv says, or where there is none."""
    (out / "results.csv").write_text("grid,value\ntable1,12.0\n")
    result.report(tmp_path / "to")
    rows = list(csv.DictReader((tmp_path / "to" / "results.csv").open()))
    assert {row["value"] for row in rows if row["grid"] == NAMED} == {"0.0000", "100.0000"}
    (out / "results.csv").unlink()
    result.report(tmp_path / "again")
    assert (tmp_path / "again" / "results.csv").read_bytes() == (tmp_path / "to" / "results.csv").read_bytes()


@pytest.mark.parametrize("name", ["a$b_$c", "$\\foo$"])
def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    make_run(out, store, lambda p: (), samples=1, names={"jpeg": name})
    figure = read(out, store).plot()
    assert name in [text.get_text() for text in figure.axes[0].get_yticklabels()]
    figure.savefig(io.BytesIO(), format="png")
