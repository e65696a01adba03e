"""Tables of errors and of clean accuracy, by hand."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.metrics.significance import Verdict
from rdp_bench.metrics.stats import wilson
from rdp_bench.reports import render
from rdp_bench.reports.formats import latex, markdown
from rdp_bench.reports.summary import findings
from rdp_bench.reports.tables import samples
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.reports.tables.success import success_tables
from rdp_bench.reports.tables.table import AVERAGE, Table, TableCell, clean_tables, error_tables, slug
from rdp_bench.results.rows import CellKey, load
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import NASTY, small


def entry(table: Table, defense: str, column: str, group: int = 0) -> TableCell:
    (line,) = [line for line in table.groups[group].rows if line.defense == defense]
    return line.cells[table.columns.index(column)]


def test_error_table_by_hand(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])
    jpeg = entry(table, "jpeg", "FGSM")

    assert table.columns == ["FGSM", "MI-FGSM", AVERAGE]
    assert [line.defense for line in table.groups[0].rows] == ["none", "jpeg", "rdp"]
    assert [e.value for e in table.cells] == pytest.approx([50, 70, 60, 95, 65, 80, 5, 10, 7.5])
    assert (jpeg.low, jpeg.high) == pytest.approx(tuple(100 * end for end in wilson(19, 20)), abs=1e-3)
    # 9, 1, 9 and 12 images speak against no defense, all on one side: 2 / 2^9 ranks second of four.
    assert jpeg.verdict.significantly_worse
    assert jpeg.verdict.p_none == pytest.approx(3 * 2 / 2**9)
    assert not entry(table, "jpeg", "MI-FGSM").verdict.higher_than_undefended
    assert [e.verdict.best for e in table.groups[0].rows[2].cells] == [True] * 3
    # The averages: 40 answers, but 20 images. jpeg errs 9 - 1 more often, on ten images that differ.
    assert entry(table, "jpeg", AVERAGE).verdict.higher_than_undefended


def test_clean_table_has_the_change_to_no_defense(tmp_path: Path) -> None:
    (table,) = clean_tables(small(tmp_path)[0])
    assert table

    assert [e.value for e in table.cells] == [100, 85, 100]
    assert entry(table, "none", "t").change is None
    change = entry(table, "jpeg", "t").change
    assert change
    assert change[0] == pytest.approx(-15)
    assert change[1] < -15 < change[2] <= 0


def test_a_tie_is_marked_and_the_lowest_is_bold(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wrong = {"none": range(12), "hgd": range(2), "rdp": range(3), "jpeg": range(19)}
    make_run(tmp_path, store, lambda cell_key: wrong[cell_key.defense], attacks=["fgsm"], defenses=wrong)
    (table,) = error_tables(load(tmp_path, store)[0])

    assert entry(table, "hgd", "FGSM").symbols == ""
    assert (entry(table, "rdp", "FGSM").bold, entry(table, "rdp", "FGSM").symbols) == (False, "≈")
    assert (entry(table, "jpeg", "FGSM").bold, entry(table, "jpeg", "FGSM").symbols) == (False, "†")
    assert (entry(table, "hgd", "FGSM").bold, entry(table, "none", "FGSM").bold) == (True, False)
    assert r"\textbf{10.0} " in latex.render(table)
    assert r" 15.0\rlap{$^{\approx}$}" in latex.render(table)  # the mark moves no digit
    assert "| **10.0** |" in markdown.render(table)
    assert "| 15.0≈ |" in markdown.render(table)


def test_the_lowest_is_bold_only_below_no_defense(tmp_path: Path) -> None:
    """HGD saves two of twelve images, which is within chance; RDP is worse."""
    wrong = {"none": range(12), "hgd": range(10), "rdp": range(20)}
    make_run(tmp_path, Store(tmp_path / "s"), lambda p: wrong[p.defense], attacks=["fgsm"], defenses=wrong)
    (table,) = error_tables(load(tmp_path, Store(tmp_path / "s"))[0])

    assert entry(table, "hgd", "FGSM").verdict.best
    assert not any(cell.bold for cell in table.cells)
    assert "Bold" not in table.legend
    assert "†" in table.legend
    assert "≈" not in table.legend


def test_few_images_give_no_verdict(tmp_path: Path) -> None:
    """Nine images, all saved by RDP, would give p = 2/2^9."""
    wrong = {"none": range(9), "jpeg": range(9), "rdp": range(0)}
    for n in (9, 10):
        make_run(
            tmp_path / str(n), Store(tmp_path / "s"), lambda p: wrong[p.defense], attacks=["fgsm"], defenses=wrong, n=n,
            dataset={"name": "d", "n": n, "size": 8, "images": "ab"},
        )  # fmt: skip
    (few,), (enough,) = (error_tables(load(tmp_path / n, Store(tmp_path / "s"))[0]) for n in ("9", "10"))

    assert entry(enough, "rdp", "FGSM").bold
    assert all(cell.verdict == Verdict() for cell in few.cells)
    assert few.legend == ""


def test_a_table_in_a_sentence(tmp_path: Path) -> None:
    defenses, wrong = ("none", "jpeg", "fd", "rdp"), {"none": 15, "jpeg": 2, "fd": 2, "rdp": 12}

    def sentence(name: str, wrong: Mapping[str, int], *targets: str) -> str:
        out, store = tmp_path / name, Store(tmp_path / f"{name}-store")
        make_run(
            out, store, lambda place: range(wrong[place.defense]), attacks=["fgsm"], defenses=defenses, targets=targets
        )
        (run,) = load(out, store)
        kept = [cell.target != "baseline" or cell.defense == "none" for cell in run.cells]
        cells, rows = list(compress(run.cells, kept)), list(compress(run.rows, kept))
        return findings(error_tables(replace(run, cells=cells, rows=rows))[0])

    alike = sentence("a", dict.fromkeys(defenses, 15), "t")
    assert alike.endswith("the error without a defense is 75.0 %; with every defense it is 75.0 %.")
    two = "the error without a defense is 75.0 %; JPEG and FD have the lowest, 10.0 %."
    assert sentence("b", wrong, "t") == f"Crafted on a and under FGSM, {two}"
    assert sentence("c", wrong, "t", "u") == f"Crafted on a and evaluated on u, {two}"
    assert sentence("d", wrong, "t", "baseline") == f"Crafted on a and evaluated on t, {two}"


def test_no_average_over_some_of_the_attacks(tmp_path: Path) -> None:
    gone = CellKey("a", "mi-fgsm", 16.0, "t", "jpeg")
    run, _ = small(tmp_path, states={gone: ("failed", "no weights"), replace(gone, defense="rdp"): ("pending", "")})
    (table,) = error_tables(run)

    assert entry(table, "jpeg", "MI-FGSM") == TableCell("failed", "no weights")
    assert entry(table, "rdp", "MI-FGSM").status == "pending"
    assert entry(table, "jpeg", AVERAGE) == TableCell("failed", "1 of 2 attacks are done")
    assert entry(table, "rdp", AVERAGE) == TableCell("pending", "1 of 2 attacks are done")
    assert entry(table, "none", AVERAGE).value == pytest.approx(60)


def test_targets_and_eps_make_tables_of_their_own(tmp_path: Path) -> None:
    run, _ = small(tmp_path, targets=["t", "u"], eps=[8, 16])
    tables = error_tables(run)

    assert [table.slug for table in tables] == ["table1_t_eps8", "table1_t_eps16", "table1_u_eps8", "table1_u_eps16"]
    assert tables[1].title == "Error under attack: ε = 16, target t"


@pytest.mark.parametrize(
    ("axis", "columns"), [({"targets": ["t", "u"]}, ["t", "u"]), ({"eps": [4, 16]}, ["ε = 4", "ε = 16"])]
)
def test_one_attack_gives_the_columns_to_the_next_axis(
    tmp_path: Path, axis: dict[str, Any], columns: list[str]
) -> None:
    (table,) = error_tables(small(tmp_path, attacks=["fgsm"], **axis)[0])

    assert table.columns == columns


@pytest.mark.usefixtures("blank")
def test_the_papers_numbers_stand_beside_its_cells(tmp_path: Path) -> None:
    five = ["fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"]
    data = {"name": "nips2017", "n": 20, "size": 8, "images": "ab"}
    run, _ = small(tmp_path, dataset=data, sources=["resnet-v2-152"], targets=["incres-v2-ens"], attacks=five)
    table, clean = all_tables(run)

    assert entry(table, "jpeg", "FGSM").paper == 25.5
    assert entry(table, "jpeg", AVERAGE).paper == 40.6
    assert entry(table, "none", "TI-DIM").paper == 49.8
    assert entry(table, "none", AVERAGE).paper is None
    assert entry(clean, "jpeg", "IncRes-v2ens").paper == 97.4
    assert any("1000 images, these over 20" in note for note in table.notes)
    page = render(tmp_path, Store(tmp_path / "store")).read_text("utf-8")
    assert "paper 25.5 (+69.5)" in page  # 95.0 on the 20 images


def test_slugs_are_safe_and_apart() -> None:
    names = ["a/b", "a\\b", "../../etc/passwd", "A", "a", "", ".", "ε", NASTY, "x" * 300, "x" * 301, "a b", "con\0"]
    slugs = [slug(name) for name in names]

    assert len(set(slugs)) == len(slugs)
    assert slug("a-b", "c") != slug("a", "b-c")
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,59}", text) for text in slugs)


def test_success_shows_no_source_that_a_setting_lacks(tmp_path: Path) -> None:
    lost = CellKey.clean("t", "jpeg")
    run, _ = small(tmp_path, sources=["a", "b"], eps=[8, 16], states={lost: ("failed", "no weights")})
    run.record["axes"]["success"] = True

    def there(key: CellKey) -> bool:
        return key.source != "b" or (key.eps == 16 and (key.attack, key.defense) != ("fgsm", "jpeg"))

    kept = [there(cell.key) for cell in run.cells]
    cells, rows = list(compress(run.cells, kept)), list(compress(run.rows, kept))
    tables = success_tables(replace(run, cells=cells, rows=rows))
    assert [[group.source for group in table.groups] for table in tables] == [["a"], ["a", "b"]]
    (line,) = (line for line in tables[1].groups[1].rows if line.defense == "jpeg")
    assert [(entry.status, entry.reason) for entry in line.cells] == [("absent", ""), ("failed", "no weights")]


def test_every_table_says_the_norm_as_results_do(tmp_path: Path) -> None:
    run, _ = small(tmp_path)
    run.record["axes"] |= {"success": True, "norm": "l2", "defense_samples": 2}
    drawn = {(key, name): run.wrong[key] for key in run.wrong if key.defense == "jpeg" for name in ("worst", "vote")}
    run = replace(run, by_aggregation=drawn)
    (draws, _) = samples.tables(run)
    assert [table.measure for table in (*error_tables(run), *success_tables(run), draws)] == [
        "error_l2", "success_l2", "error_l2-draws"
    ]  # fmt: skip
