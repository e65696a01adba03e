"""Two runs side by side: cells that both have, what differs between their records, what only one has."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.metrics.stats import wilson
from rdp_bench.reports.compare import APART, PAIRED, Comparison, Pair, compare, comparison_csv, newcombe
from rdp_bench.results.rows import CellKey, display_name, load
from tests.helpers.commands import PLUGIN as TINY
from tests.helpers.report_fixture import make_run

FGSM = CellKey("a", "fgsm", 16.0, "t", "rdp")
JPEG = replace(FGSM, defense="jpeg")
CLEAN = CellKey("-", "clean", 0.0, "t", "rdp")


def two(tmp_path: Path, a: dict[CellKey, int], b: dict[CellKey, int], **more: Any) -> Comparison:
    """So many of the first images wrong in A and in B; B has results of its own where it says how many."""
    store = Store(tmp_path / "store")
    make_run(tmp_path / "A", store, lambda p: range(a.get(p, 0)), samples=1)
    make_run(tmp_path / "B", store, lambda p: range(b.get(p, 0)), samples=1, apart=b, **more)
    (first,), (second,) = load(tmp_path / "A", store), load(tmp_path / "B", store)
    return compare(first, second)


def of(found: Comparison, cell_key: CellKey) -> Pair:
    (pair,) = [pair for pair in found.pairs if pair.place == cell_key]
    return pair


def test_the_same_images_are_compared_one_by_one(tmp_path: Path) -> None:
    """RDP errs on ten more images in B, JPEG on two fewer; RDP loses one clean image."""
    found = two(tmp_path, {JPEG: 4}, {FGSM: 10, JPEG: 2, CLEAN: 1})
    rdp, jpeg, clean = of(found, FGSM), of(found, JPEG), of(found, CLEAN)

    assert found.test == PAIRED
    assert (rdp.values, rdp.difference, rdp.differs) == ((0, 50), 50, True)
    assert rdp.p == pytest.approx(3 * 2 / 2**10)  # three cells were tested
    assert (jpeg.difference, jpeg.p, jpeg.differs) == (-10, 1.0, False)  # 2 * 2/2^2 = 1
    assert (clean.metric, clean.values, clean.difference) == ("accuracy", (100, 95), pytest.approx(-5))
    assert found.pairs[0] == rdp
    assert rdp.low is not None
    assert rdp.high is not None
    assert rdp.low < 50 < rdp.high


def test_one_stored_result_is_no_test(tmp_path: Path) -> None:
    found = two(tmp_path, {JPEG: 4}, {FGSM: 10})
    jpeg = of(found, JPEG)

    assert (jpeg.same, jpeg.difference, jpeg.p) == (True, 0, None)
    assert sum(pair.same for pair in found.pairs) == len(found.pairs) - 1
    assert of(found, FGSM).p == pytest.approx(2 / 2**10)


def test_other_images_are_never_paired(tmp_path: Path) -> None:
    data = {"name": "photos20", "n": 20, "size": 8, "images": "ef" * 32}
    found = two(tmp_path, {JPEG: 4}, {FGSM: 10, JPEG: 2}, dataset=data)
    rdp, jpeg = of(found, FGSM), of(found, JPEG)

    assert found.test == APART
    assert (rdp.p, rdp.differs, jpeg.differs) == (None, True, False)
    none, half = wilson(0, 20), wilson(10, 20)
    assert rdp.low == pytest.approx(50 - 100 * ((0.5 - half[0]) ** 2 + none[1] ** 2) ** 0.5, abs=1e-3)
    assert rdp.high == pytest.approx(50 + 100 * (half[1] - 0.5), abs=1e-3)
    assert ("dataset.images", "ab" * 32, "ef" * 32) in found.records


def test_newcombe_as_published() -> None:
    """56 of 70 against 48 of 80: Newcombe 1998, table II (a), method 10."""
    low, high = newcombe((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))

    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_what_differs_between_the_records(tmp_path: Path) -> None:
    found = two(tmp_path, {}, {FGSM: 1}, seed=7, defenses=["none", "rdp", "mine"])
    names = {name for name, _, _ in found.records}
    assert names == {"seed", "axes.defenses"}  # not `mine`: A has no such defense

    again = two(tmp_path / "2", {}, {}, environment={"rdp_bench": "0.2.0"}, started="later", command="other")
    assert again.records == [
        ("environment.rdp_bench", "0.1.0", "0.2.0"), ("environment.python", "3.11.7", "–"),
        ("environment.device", "cpu", "–"),
    ]  # fmt: skip


def test_cells_of_one_run_alone(tmp_path: Path) -> None:
    found = two(tmp_path, {}, {}, attacks=["fgsm", "dim"])

    assert {cell_key.attack for cell_key in found.only[0]} == {"mi-fgsm"}
    assert {cell_key.attack for cell_key in found.only[1]} == {"dim"}
    lines = list(csv.DictReader(io.StringIO(comparison_csv([found]))))
    assert len(lines) == len(found.pairs) + 6
    assert sorted(line["status_b"] for line in lines if line["attack"] == "mi-fgsm") == ["absent"] * 3


def test_a_cell_that_one_run_lacks_is_said_not_compared(tmp_path: Path) -> None:
    found = two(tmp_path, {}, {JPEG: 1}, states={FGSM: ("failed", "out of memory")})
    rdp = of(found, FGSM)

    assert (rdp.status, rdp.values, rdp.difference) == (("done", "failed"), (0, None), None)
    assert of(found, JPEG).p == 1.0


def test_names_are_as_the_runs_give_them(tmp_path: Path) -> None:
    """On the page and in the sheet; other pages of the same process are not changed."""
    two(tmp_path, {}, {FGSM: 10}, names={"rdp": "Ours"})
    args = ["report", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "store"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "B")])

    assert done.exit_code == 0, done.output
    text, sheet = (Path(done.stdout.strip()).with_suffix(end).read_text("utf-8") for end in (".html", ".csv"))
    assert "<td>Ours</td>" in text
    assert "<td>RDP</td>" not in text
    assert {line["defense"] for line in csv.DictReader(io.StringIO(sheet))} == {"none", "jpeg", "Ours"}
    assert display_name("rdp") == "RDP"


def test_what_could_not_be_compared_is_named(tmp_path: Path) -> None:
    """One cell failed, and of another the predictions are gone."""
    found = two(tmp_path, {}, {JPEG: 1}, states={FGSM: ("failed", "out of memory")})
    store = Store(tmp_path / "store")
    (run,) = load(tmp_path / "A", store)
    (gone,) = [cell for cell in run.cells if cell.key == CLEAN]
    store.delete("eval", gone.eval_key or "")
    args = ["report", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "store"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "B")])
    text = Path(done.stdout.strip()).read_text("utf-8")

    assert of(found, FGSM).gap == "B: failed"
    assert done.exit_code == 0
    assert "7 of 9 cells of both runs were compared; 2 were not, the first: " in done.stderr
    assert "2 could not be compared" in text
    assert "FGSM from a, ε\u00a0=\u00a016, RDP, t: B: failed" in text
    assert "clean, RDP, t: A: predictions cannot be read" in text
    lines = list(csv.DictReader(io.StringIO(Path(done.stdout.strip()).with_suffix(".csv").read_text("utf-8"))))
    assert sum(line["reason"] != "" for line in lines) == 2


def test_nothing_to_compare_is_a_failure(tmp_path: Path) -> None:
    two(tmp_path, {}, {})
    args = ["report", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "elsewhere"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "B")])

    assert done.exit_code not in (0, 2)
    assert "0 of 9 cells of both runs could be compared" in done.output
    assert "the first: clean, No defense, t (A: predictions cannot be read" in done.output
    assert not (tmp_path / "out").exists()


def test_command_writes_page_and_sheet(tmp_path: Path) -> None:
    two(tmp_path, {}, {FGSM: 10}, note="<script>")
    args = ["report", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "store"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "B")])

    assert done.exit_code == 0, done.output
    page = Path(done.stdout.strip())
    assert page == tmp_path / "out" / "report" / "compare.html"
    text = page.read_text("utf-8")
    assert (
        "9 cells are in both, 9 could be compared; 8 of them use the same stored result. 1 differs significantly."
        in text
    )
    assert (page.parent / "compare.csv").read_text().startswith("grid,source,attack")
    nothing = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "none")])
    assert nothing.exit_code == 2
    assert "holds no run" in nothing.output


def test_a_grid_that_neither_has(tmp_path: Path) -> None:
    two(tmp_path, {}, {})
    args = ["report", "--to", str(tmp_path / "to"), "--cache", str(tmp_path / "store"), "--only", "table1", "--only"]
    done = CliRunner().invoke(main, [*args, "tabel1", "--compare", str(tmp_path / "A"), str(tmp_path / "B")])
    assert done.exit_code == 2
    assert "tabel1" in done.output
    assert not (tmp_path / "to").exists()


def test_no_grid_in_common(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(tmp_path / "A", store, lambda p: (), samples=1)
    make_run(tmp_path / "B", store, lambda p: (), samples=1, grid="table3")
    args = ["report", "--out", str(tmp_path), "--cache", str(tmp_path / "store"), "--compare"]
    done = CliRunner().invoke(main, [*args, str(tmp_path / "A"), str(tmp_path / "B")])

    assert done.exit_code == 2
    assert "A holds table1" in done.output
    assert "B holds table3" in done.output


def test_a_part_of_the_images_is_paired_with_the_same_images_of_the_whole(tmp_path: Path) -> None:
    """All numbers are then of these images alone, computed here from the predictions of the runs themselves."""
    flags = ("--plugin", str(TINY), "--dataset", "tiny/noise", "--source", "tiny/one", "--target", "tiny/two",
             "--attack", "fgsm", "--cache", str(tmp_path / "store"))  # fmt: skip
    folders = tmp_path / "A", tmp_path / "B"
    for folder, more in zip(
        folders, (("--defense", "none,tiny/round", "--limit", "3"), ("--defense", "none,tiny/round,jpeg")), strict=True
    ):
        done = CliRunner().invoke(main, ["run", "table1", *flags, *more, "--out", str(folder)])
        assert done.exit_code == 0, done.output
    a, b = (load(folder, Store(tmp_path / "none"))[0] for folder in folders)
    assert len(b.wrong[next(iter(b.wrong))]) > 3
    found = compare(a, b)

    assert (found.test, found.images) == (PAIRED, 3)
    assert found.compared == len(a.cells) == 4
    for pair in found.pairs:
        sign = 1 if pair.metric == "error" else -1
        assert pair.difference == 0.0  # the results of an image do not depend on the others
        wrong = 100 * float(b.wrong[pair.place][:3].mean())
        assert pair.values[1] == pytest.approx(wrong if sign > 0 else 100 - wrong)
    (line, *_) = csv.DictReader(io.StringIO(comparison_csv([found])))
    assert (line["test"], line["images"]) == ("paired", "3")
    done = CliRunner().invoke(main, ["report", "--to", str(tmp_path / "to"), "--compare", *map(str, folders)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "to" / "compare.html").read_text("utf-8")
    assert "All numbers below are of the 3 images that both used" in " ".join(page.split())
