"""`rdp-bench results`, and published folders: read-only, moved, broken, hostile."""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.cli import results as cli_results
from rdp_bench.reports import published, published_page
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.results import prediction_file
from rdp_bench.results.record import write_record
from rdp_bench.results.rows import load
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.damage import flip
from tests.helpers.grid_runs import GridRuns, read_rows
from tests.helpers.report_fixture import make_run

GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["fgsm", "mi-fgsm"]
sources = ["tiny/one"]
defenses = ["none", "tiny/dither", "tiny/round"]
targets = ["tiny/two", "tiny/one"]
"""
ROUND = {"attack": "*", "target": "tiny/two", "defense": "tiny/round"}


def error(rows: list[dict[str, Any]], target: str, defense: str) -> float:
    """The mean error over the two attacks, from results.csv."""
    found = [float(row["value"]) for row in rows
             if (row["metric"], row["target"], row["defense"]) == ("error", target, defense)]  # fmt: skip
    assert len(found) == 2
    return sum(found) / 2


def claim(out: Path, **changes: Any) -> None:
    """Write claims.json: that rounding has the error that results.csv says."""
    one = {"says": "Rounding | <b>helps</b>.", "grid": "toy", "cells": ROUND, "compare": "equal",
           "value": round(error(read_rows(out), "tiny/two", "tiny/round"), 1)}  # fmt: skip
    about = {"format": 1, "title": "A [toy](x) <script>", "authors": ["A. Author"], "claims": [one],
             "commands": ["rdp-bench run toy.toml"], "links": ["https://example.org"], **changes}  # fmt: skip
    write_atomic(out / "claims.json", json.dumps(about).encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with claims, in a folder with its cache."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        runs = GridRuns.make(folder, patch, GRID, name="toy")
        runs.done()
    claim(runs.out)
    return runs.out


@pytest.fixture
def shipped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, now the current folder, with the run `toy-1` and no cache; docs/results/runs."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs" / "results" / "runs"
    shutil.copytree(made, folder / "toy-1")
    return folder


def only(folder: Path) -> published.PublishedRun:
    (found,) = published.shipped(folder)
    return found


# --- what is listed --------------------------------------------------------------------------------------


def test_a_line_for_each_run_and_target(shipped: Path) -> None:
    found = cli("results", "--csv")
    assert found.exit_code == 0, found.output
    lines = list(csv.DictReader(io.StringIO(found.output)))
    assert tuple(lines[0]) == published.COLUMNS
    assert [line["target"] for line in lines] == ["tiny/two", "tiny/one"]
    rows = read_rows(shipped / "toy-1")
    for line in lines:
        errors = {name: error(rows, line["target"], name) for name in ("tiny/dither", "tiny/round")}
        lowest = [name for name in errors if errors[name] == min(errors.values())]
        assert line["best"] == ("" if len(lowest) == len(errors) else "; ".join(lowest))
        assert float(line["mean_error"]) == pytest.approx(min(errors.values()), abs=1e-3)
        assert float(line["none_error"]) == pytest.approx(error(rows, line["target"], "none"), abs=1e-3)
        assert float(line["ci_low"]) <= float(line["mean_error"]) <= float(line["ci_high"])
    record = json.loads((shipped / "toy-1" / "runs" / "toy.json").read_text())
    facts = {"name": "toy-1", "grid": "toy", "dataset": "tiny/noise", "images": "12", "defenses": "2", "eps": "16",
             "date": record["finished"][:10], "version": record["environment"]["rdp-bench"],
             "attackers": "transfer", "claims_hold": "1", "claims": "1", "verified": "yes"}  # fmt: skip
    assert {name: lines[0][name] for name in facts} == facts


@pytest.mark.parametrize(
    ("defenses", "says"), [(("none", "jpeg", "fd"), "all 25.0"), (("none", "jpeg", "fd", "rdp"), "JPEG, FD 25.0")]
)
def test_defenses_that_share_the_lowest_error_are_all_named(
    tmp_path: Path, defenses: tuple[str, ...], says: str
) -> None:
    store, errors = Store(tmp_path / "store"), {"none": 10, "jpeg": 5, "fd": 5, "rdp": 8}
    make_run(tmp_path / "out", store, lambda p: range(errors[p.defense]), defenses=defenses, samples=1)
    (run,) = load(tmp_path / "out", store)
    (line,) = (published._of_board(run, board) for board in leaderboards(run))
    assert published.best_in_words(line).startswith(f"{says} (")


def test_the_table_and_the_details(shipped: Path) -> None:
    table = cli("results").output.splitlines()
    assert len(table) == 3
    assert table[1].startswith("toy-1  toy")
    assert table[1].endswith("1 of 1  yes")
    lines = cli("results", "toy-1").output.splitlines()
    assert lines[: len(table)] == table
    assert "A [toy](x) <script> (A. Author)" in lines
    (told,) = [line for line in lines if line.startswith("  holds  Rounding")]
    assert f"{error(read_rows(shipped / 'toy-1'), 'tiny/two', 'tiny/round'):.1f} % (" in told
    assert "  rdp-bench run toy.toml" in lines
    repeat = "rdp-bench run --from docs/results/runs/toy-1/runs/toy.json --plugin PATH/tiny.py --out again"
    assert repeat in lines[-1]


def test_json_has_the_claims(shipped: Path) -> None:
    (found,) = json.loads(cli("results", "--json").output)
    assert (found["name"], found["verified"], found["problems"]) == ("toy-1", True, [])
    assert found["claims"][0]["holds"] is True
    assert [line["target"] for line in found["runs"]] == ["tiny/two", "tiny/one"]
    assert cli("results", "--json", "--csv").exit_code == 2


def test_any_folder_without_claims_is_listed_when_it_is_named(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped / "toy-1", tmp_path / "mine")
    (tmp_path / "mine" / "claims.json").unlink()
    found = cli("results", "mine", "toy-1")
    assert found.exit_code == 0, found.output
    assert [line.split()[0] for line in found.output.splitlines()] == ["name", "mine", "mine", "toy-1", "toy-1"]
    assert "claims\n" not in found.output  # details are of one folder
    shutil.move(tmp_path / "mine", shipped / "mine")
    found = cli("results")  # of those that ship, it is part
    assert (found.exit_code, "mine is not verified: it has no claims.json" in found.stderr) == (1, True)


def test_nothing_is_published_yet(shipped: Path) -> None:
    shutil.rmtree(shipped)
    found = cli("results")
    assert (found.exit_code, found.output.startswith("there are no published runs in docs/results/runs yet")) == (
        0,
        True,
    )
    assert json.loads(cli("results", "--json").output) == []
    assert published_page.render(published.shipped(shipped), shipped, "# X").startswith("# X\n\nThere are none yet")


def test_an_installed_package_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "photos20-table1" in cli("results", "--csv").output  # of the checkout that the package is imported from
    monkeypatch.setattr(cli_results, "__file__", str(tmp_path / "lib" / "rdp_bench" / "cli" / "results.py"))
    found = cli("results")
    assert found.exit_code == 2
    assert "published runs are in docs/results/runs of the repository" in found.stderr


def test_a_name_that_is_none(shipped: Path) -> None:
    found = cli("results", "../toy")
    assert found.exit_code == 2
    assert "../toy is neither a folder nor a published run; published here: toy-1" in found.stderr


# --- what is refused -------------------------------------------------------------------------------------


def test_a_broken_folder_shows_no_number_and_hides_no_other(shipped: Path) -> None:
    shutil.copytree(shipped / "toy-1", shipped / "broken")
    (file,) = (shipped / "broken" / "predictions").iterdir()
    flip(file, 4 * file.stat().st_size)
    found = cli("results")
    assert found.exit_code == 1
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["broken", "toy-1", "toy-1"]
    assert (set(rows[0][1:-1]), rows[0][-1]) == ({"-"}, "no")
    (line,) = found.stderr.splitlines()
    assert line.startswith("broken is not verified: toy: ")


def test_a_number_that_was_edited_is_not_shown(shipped: Path) -> None:
    path = shipped / "toy-1" / "results.csv"
    value = read_rows(shipped / "toy-1")[-1]["value"]
    path.write_text(path.read_text().replace(value, "0.0000"))
    run = only(shipped)
    assert not run.lines
    assert "by the run" in run.problems[0]
    assert cli("verify", shipped / "toy-1").exit_code == 1


def test_a_false_claim_is_told_and_never_shown_as_holding(shipped: Path) -> None:
    claim(shipped / "toy-1", claims=[{"says": "It is perfect.", "grid": "toy", "cells": ROUND, "compare": "at most",
                                      "value": 0}])  # fmt: skip
    found = cli("verify", shipped / "toy-1")
    assert found.exit_code == 1
    assert 'FAIL  claims.json: claim 1, "It is perfect.": claimed at most 0, found ' in found.output
    assert "pass  toy" in found.output
    listed = cli("results", "toy-1")
    assert listed.exit_code == 1
    assert "0 of 1  no" in listed.stdout
    assert "FAILS  It is perfect." in listed.stdout
    assert "It is perfect. Computed" not in published_page.render([only(shipped)], shipped, "")


def test_claims_without_predictions_do_not_hold(shipped: Path) -> None:
    (file,) = (shipped / "toy-1" / "predictions").iterdir()
    file.unlink()
    found = cli("verify", shipped / "toy-1")
    assert 'FAIL  claims.json: claim 1, "Rounding' in found.output
    assert "does not exist" in found.output


def test_a_broken_claims_file_is_one_line(shipped: Path) -> None:
    (shipped / "toy-1" / "claims.json").write_text('{"format": 1, "title": 3}')
    found = cli("verify", shipped / "toy-1")
    assert found.exit_code == 1
    assert [line[:5] for line in found.output.splitlines()] == ["pass ", "FAIL ", "1 of "]
    assert "'title' is a text, found 3" in found.output


def add(shipped: Path, name: str, content: bytes = b"x") -> None:
    (shipped / "toy-1" / name).parent.mkdir(exist_ok=True)
    (shipped / "toy-1" / name).write_bytes(content)


@pytest.mark.parametrize(
    "name", ["photo.png", "report/index.html", "runs/x.py", "predictions/toy.safetensors", ".hidden", "runs/a b.json"]
)
def test_other_files_do_not_ship(shipped: Path, name: str) -> None:
    add(shipped, name)
    assert only(shipped).problems == [f"{name} does not belong to a published folder; remove it"]


def test_links_do_not_ship(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"title": "secret"}')
    (shipped / "toy-1" / "claims.json").unlink()
    (shipped / "toy-1" / "claims.json").symlink_to(tmp_path / "secret.json")
    assert only(shipped).problems == ["claims.json is a link; a published folder contains its files"]
    (tmp_path / "secret.json").unlink()
    assert len(only(shipped).problems) == 1


@pytest.mark.parametrize("name", ["Toy", "a b", "x.y", "<b>", "-a", "é", "a" * 61])
def test_names_are_plain(shipped: Path, name: str) -> None:
    (shipped / "toy-1").rename(shipped / name)
    run = only(shipped)
    assert "its name is not made of" in run.problems[0]
    assert "<b>" not in published_page.render([run], shipped, "")


def test_sizes_are_limited(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in (shipped / "toy-1").rglob("*") if path.is_file())
    monkeypatch.setattr(published, "LARGEST_RUN", size)
    assert not only(shipped).problems
    monkeypatch.setattr(published, "LARGEST_RUN", size - 1)
    assert only(shipped).problems[0].startswith("it has 0.0 MB, at most 0 MB ship")
    monkeypatch.setattr(published, "LARGEST_RUN", size)
    shutil.copytree(shipped / "toy-1", shipped / "toy-2")
    monkeypatch.setattr(published, "LARGEST_ALL", 2 * size - 1)
    first, second = published.shipped(shipped)
    assert (first.problems, second.problems[0][:11]) == ([], "all folders")


def test_a_folder_of_any_origin_is_read_up_to_a_size(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_LARGEST_READ", 100)
    assert "MB are read" in published.read_folder(shipped / "toy-1").problems[0]
    monkeypatch.undo()
    monkeypatch.setattr(published, "_MOST_LOOKS", 12 * 18 - 1)
    assert "has 216 predictions, at most 215 are read" in published.read_folder(shipped / "toy-1").problems[0]


def forge(out: Path, **changes: Any) -> None:
    """Write the record again with a right checksum, as somebody with this code could."""
    content = json.loads((out / "runs" / "toy.json").read_text())
    del content["sha256"]
    write_record(out / "runs" / "toy.json", {**content, **changes})


def test_a_record_cannot_name_another_file(shipped: Path) -> None:
    forge(shipped / "toy-1", grid="../../```\n<script>")
    found = cli("results")
    assert found.exit_code == 1
    assert len(found.stderr.splitlines()) == 1
    assert "is the record of ../../```\\n<script>" in found.stderr


def test_a_record_that_breaks_a_reader_is_one_line(shipped: Path) -> None:
    """Its checksum is right, and what it says of cost is no table."""
    shutil.copytree(shipped / "toy-1", shipped / "odd")
    forge(shipped / "odd", cost={"defenses": 3})
    found = cli("results")
    assert found.exit_code == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("odd is not verified: it cannot be read (AttributeError: ")
    assert [row.split()[0] for row in found.stdout.splitlines()] == ["name", "odd", "toy-1", "toy-1"]


def test_a_frame_that_would_fill_the_memory_is_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_file, "_LARGEST", 10)
    assert "is too large" in only(shipped).problems[0]


def test_the_list_loads_neither_torch_nor_pandas(shipped: Path) -> None:
    code = (
        "import sys; from rdp_bench.cli.main import main; main(['results'], standalone_mode=False); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "toy-1" in found.stdout
    assert not {"torch", "pandas", "matplotlib"} & set(found.stdout.split())


def test_texts_are_neither_markup_nor_commands(shipped: Path) -> None:
    """Title and claim are escaped; names of plugins from the record are no part of a code block."""
    record = json.loads((shipped / "toy-1" / "runs" / "toy.json").read_text())
    request = {**record["request"], "plugins": [{"name": "a\n```\n<img>.py", "sha256": "ab"}]}
    forge(shipped / "toy-1", request=request, finished="<b>2026-01-01")
    run = only(shipped)
    assert not run.problems
    page = published_page.render([run], Path("docs/results/runs"), "# Published runs")
    assert "<script>" not in page
    assert "<img>" not in page
    assert "<b>" not in page
    assert r"A \[toy\](x) &lt;script&gt; (A. Author)." in page
    assert r"* Rounding \| &lt;b&gt;helps&lt;/b&gt;. Computed: " in page
    assert page.count("```") == 2
    assert "--plugin PATH/PLUGIN.py" in page
    version = record["environment"]["rdp-bench"]  # what is no date is left out
    assert f"\ntoy: 12 images of tiny/noise, 2 defenses, rdp-bench {version}.\n" in page
    assert page.count("\n| [toy-1](#toy-1) | toy | 12 | tiny/two | transfer, ε = 16 | ") == 1
    assert page.count("\n|  |  |  | tiny/one | transfer, ε = 16 | ") == 1


# --- read-only and moved ---------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, str]:
    """The hash of every file, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def read_only(shipped: Path) -> Path:
    """The published folder, which nobody but root may write to."""
    folder = shipped / "toy-1"
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def test_a_read_only_folder_can_be_used(read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into it, which holds for root as well; the cache is another."""
    monkeypatch.setattr(drawing, "save", lambda figure: {"svg": b"<svg></svg>", "pdf": b"", "png": b""})
    before = state(read_only)
    record = read_only / "runs" / "toy.json"
    for command in (["verify", read_only], ["show", read_only], ["results", read_only]):
        found = cli(*command)
        assert found.exit_code == 0, (command, found.output)
    found = cli("report", "--out", read_only, "--to", tmp_path / "page")
    assert found.exit_code == 0, found.output
    value = error(read_rows(read_only), "tiny/two", "tiny/round")
    assert f"{value:.1f}" in (tmp_path / "page" / "index.html").read_text()
    again = cli("run", "--from", record, "--plugin", PLUGIN, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert f"18 of 18 cells agree with {record} on every image" in again.stdout
    compared = cli("report", "--compare", read_only, tmp_path / "again", "--to", tmp_path / "both")
    assert compared.exit_code == 0, compared.output
    assert "18 of 18 cells of both runs were compared" in compared.stderr
    assert (tmp_path / "both" / "compare.csv").is_file()
    assert state(read_only) == before
