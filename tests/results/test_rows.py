"""Rows of results.csv, the paper's numbers, and the paired comparisons, all by hand."""

import csv
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench import plugins
from rdp_bench.cache.store import Store
from rdp_bench.errors import UsageError
from rdp_bench.metrics.significance import Verdict, compare_defenses
from rdp_bench.metrics.stats import wilson
from rdp_bench.registry import attack, defense
from rdp_bench.results.lines import frame
from rdp_bench.results.record import CellResult, write_record
from rdp_bench.results.rows import (
    COLUMNS,
    CellKey,
    display_name,
    load,
    paper_metadata,
    paper_value,
    row,
    write_results,
)
from tests.helpers.paths import TESTS
from tests.helpers.report_fixture import make_run

PAPER = TESTS.parent / "data" / "paper"

RUN: dict[str, Any] = {
    "grid": "table1",
    "dataset": {"name": "nips2017", "n": 10},
    "sources": {
        "inc-v3": {"members": ["inc-v3"]},
        "ensemble": {"members": ["inc-v3", "inc-v4", "resnet-v2-101", "resnet-v2-152"]},
    },
}
CELL = CellResult(
    "inc-v3", "dim", 16.0, "incres-v2-ens", "r&p", "done", adv_key="a1", sample_key="c3", eval_key="b2", seconds=2.0
)
LABEL = np.arange(10, dtype=np.int32)
THREE_WRONG = np.where(LABEL < 3, 999, LABEL).astype(np.int32)


def read(name: str) -> list[dict[str, str]]:
    with (PAPER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- rows ---


def test_an_attacked_cell_is_the_error_over_all_images() -> None:
    got = row(RUN, CELL, THREE_WRONG, LABEL)

    assert tuple(got) == COLUMNS
    assert (got["metric"], got["value"], got["n"], got["eps"]) == ("error", "30.0000", 10, "16")
    np.testing.assert_allclose(
        [float(got["ci_low"]), float(got["ci_high"])], np.multiply(100, wilson(3, 10)), atol=1e-4
    )


def test_a_clean_cell_is_the_accuracy() -> None:
    cell = replace(CELL, source="-", attack="clean", eps=0.0, adv_key=None, defense="jpeg")
    got = row(RUN, cell, THREE_WRONG, LABEL)

    assert (got["metric"], got["value"], got["adv_key"], got["paper"]) == ("accuracy", "70.0000", "", "97.4")


@pytest.mark.parametrize("status", ["failed", "pending"])
def test_a_cell_that_is_not_done_has_a_reason_and_no_number(status: str) -> None:
    got = row(RUN, replace(CELL, status=status, reason="no\nweights"), None, None)

    assert (got["value"], got["ci_low"], got["ci_high"]) == ("", "", "")
    assert (got["status"], got["reason"]) == (status, "no weights")


@pytest.mark.parametrize("have", [0, 9])
def test_done_without_all_predictions_is_failed(have: int) -> None:
    got = row(RUN, CELL, THREE_WRONG[:have] if have else None, LABEL[:have] if have else None)

    assert (got["status"], got["value"]) == ("failed", "")
    assert f"{have} of 10 predictions" in got["reason"]


# --- the paper's numbers ---


def test_printed_is_the_paper_for_the_same_cell_only() -> None:
    here = CellKey("inc-v3", "dim", 16.0, "incres-v2-ens", "r&p")

    assert paper_value(RUN, here, "error") == 17.9
    assert paper_value(RUN, replace(here, eps=8.0), "error") is None
    assert paper_value(RUN, replace(here, defense="r&p(passes=30)"), "error") is None
    assert paper_value(RUN, replace(here, target="effnet-lite2"), "error") is None
    assert paper_value({**RUN, "dataset": {"name": "photos20", "n": 20}}, here, "error") is None


def test_the_papers_ensemble_is_its_four_sources() -> None:
    cell_key = CellKey("ensemble", "ti-dim", 16.0, "incres-v2-ens", "rdp")
    other = {**RUN, "sources": {"ensemble": {"members": ["inc-v3", "inc-v4"]}}}
    named = "ensemble(resnet-v2-152,inc-v4,inc-v3,resnet-v2-101)"
    spelled = {**RUN, "sources": {named: {"members": list(reversed(paper_metadata()["ensemble"]))}}}

    assert paper_value(RUN, cell_key, "error") == 26.2
    assert paper_value(other, cell_key, "error") is None
    assert paper_value(spelled, replace(cell_key, source=named), "error") == 26.2


def test_the_only_undefended_number_of_table_1_comes_from_table_3() -> None:
    bare = CellKey("resnet-v2-152", "ti-dim", 16.0, "incres-v2-ens", "none")

    assert paper_value(RUN, bare, "error") == 49.8
    assert paper_value(RUN, replace(bare, attack="dim"), "error") is None


def test_a_cell_of_two_tables_is_read_from_the_runs_own() -> None:
    both = CellKey("resnet-v2-152", "ti-dim", 16.0, "incres-v2-ens", "rdp")

    assert paper_value(RUN, both, "error") == 19.9
    assert paper_value({**RUN, "grid": "table3"}, both, "error") == pytest.approx(19.2)


def test_all_fifty_printed_averages_recompute() -> None:
    rows = defaultdict(list)
    for line in read("table1"):
        rows[line["source"], line["defense"]].append(float(line["value"]))
    averages = {(line["source"], line["defense"]): float(line["value"]) for line in read("table1-averages")}

    assert len(rows) == len(averages) == 50
    assert {len(values) for values in rows.values()} == {5}
    for key, values in rows.items():
        assert abs(np.mean(values) - averages[key]) <= 0.05 + 1e-9, key


def test_known_numbers_of_the_paper() -> None:
    clean = {line["defense"]: line["value"] for line in read("table2")}

    assert clean["none"] == "97.60"
    assert [name for name, value in clean.items() if float(value) > 97.6] == ["sr", "rdp"]
    # The abstract's 61.7 and 14.9 are two averages of its last block.
    averages = {(line["source"], line["defense"]): line["value"] for line in read("table1-averages")}
    assert (averages["ensemble", "sr"], averages["ensemble", "rdp"]) == ("61.7", "14.9")
    # "74 %": the mean relative gain of the eight defended cells of Table 3.
    three = {(line["defense"], line["source"], line["target"]): float(line["value"]) for line in read("table3")}
    exact = [key for key in three if key[1].startswith("exact")]
    # Its column through NRP stands beside both ways to differentiate NRP.
    assert [three.pop(key) for key in exact] == [v for key, v in three.items() if key[1].startswith("bpda")]
    bare = {target: value for (defense, _, target), value in three.items() if defense == "none"}
    gains = [value / bare[target] - 1 for (defense, _, target), value in three.items() if defense == "rdp"]
    assert len(gains) == 8
    assert round(100 * np.mean(gains)) == 74
    assert len(read("table4")) == 8


def test_no_cell_is_printed_twice_and_every_table_is_described() -> None:
    for path in PAPER.glob("*.csv"):
        lines = read(path.stem)
        keys = [tuple(line[name] for name in ("defense", "source", "attack", "target", "eps")) for line in lines]
        assert len(set(keys)) == len(keys)
        assert {line["table"] for line in lines} <= set(paper_metadata()["tables"])
        assert all(re.fullmatch(r"[a-z0-9&(),=:_.-]+", text) for key in keys for text in key)


def test_pretty_keeps_what_it_does_not_know() -> None:
    assert display_name("r&p") == "R&P"
    assert display_name("ensemble(a,b)") == "Ensemble(a, b)"
    assert display_name("<script>") == "<script>"


# --- results.csv ---


def test_results_keep_other_grids_that_have_a_record(tmp_path: Path) -> None:
    first = row(RUN, CELL, THREE_WRONG, LABEL)
    write_record(tmp_path / "runs" / "mine.json", {"grid": "mine"})
    write_results(tmp_path, [first, {**first, "grid": "mine"}, {**first, "grid": "nobody's"}])
    write_results(tmp_path, [{**first, "value": "5.0000", "reason": 'a, "b"'}])
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))

    assert [(line["grid"], line["value"]) for line in lines] == [("mine", "30.0000"), ("table1", "5.0000")]
    assert lines[1]["reason"] == 'a, "b"'
    assert tuple(lines[0]) == COLUMNS


def test_a_strangers_results_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("mine,too\n1,2\n")

    with pytest.raises(UsageError, match="other columns"):
        write_results(tmp_path, [row(RUN, CELL, THREE_WRONG, LABEL)])
    assert path.read_text() == "mine,too\n1,2\n"


def test_the_run_pays_for_no_library_it_does_not_need() -> None:
    code = "import sys, rdp_bench.results.rows; "
    code += "print(*sys.modules.keys() & {'numpy', 'pandas', 'torch', 'matplotlib', 're'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["re"]  # which shows that the question can be answered with yes


# --- load ---


def test_load_gives_rows_and_who_was_wrong(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, lambda cell_key: range(4) if cell_key.defense == "jpeg" else ())
    (run,) = load(tmp_path, store)
    cell_key = CellKey("a", "fgsm", 16.0, "t", "jpeg")
    found = frame(run)
    line = found.query("attack == 'fgsm' and defense == 'jpeg'").iloc[0]

    assert list(found.columns) == list(COLUMNS)
    assert run.wrong[cell_key].tolist() == [True] * 4 + [False] * 16
    assert line["value"] == 20
    assert np.isnan(line["paper"])


def test_missing_and_damaged_predictions_are_failed_rows(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record = make_run(tmp_path, store, lambda place: ())
    gone, hurt = record["cells"][3], record["cells"][4]
    store.delete("eval", gone["eval_key"])
    (shard,) = store.folder("eval", hurt["eval_key"]).glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3] + b"xyz")
    (run,) = load(tmp_path, store)
    states = [(line["status"], line["value"]) for line in run.rows]

    assert states.count(("failed", "")) == 2
    assert states[3] == states[4] == ("failed", "")
    assert "run the grid again" in run.rows[3]["reason"]
    assert CellKey.of(hurt) not in run.wrong


def test_nothing_to_load_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rdp-bench run"):
        load(tmp_path, Store(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "cells": [{}]}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "odd.json").write_text(text)

    with pytest.raises(UsageError, match=r"odd\.json"):
        load(tmp_path, Store(tmp_path))


# --- comparisons ---


def errors(*wrong: int, n: int = 20) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.isin(np.arange(n), wrong).astype(np.int64)


def test_verdicts_of_one_column_by_hand() -> None:
    (got,) = compare_defenses(
        [{"none": errors(*range(10)), "jpeg": errors(*range(19)), "rdp": errors(0), "hgd": errors(1, 2)}]
    )

    # Nine images against none each: 2 / 2^9; hgd two of ten and none of its own: 2 / 2^8. Holm: x 3, x 2, x 1.
    assert got["jpeg"].p_none == pytest.approx(3 * 2 / 2**9)
    assert got["rdp"].p_none == pytest.approx(3 * 2 / 2**9)
    assert got["hgd"].p_none == pytest.approx(3 * 2 / 2**9)  # 2 / 2^8, raised to those before it
    # Against rdp: jpeg 18 to 0, hgd 2 to 1.
    assert got["jpeg"].p_best == pytest.approx(2 * 2 / 2**18)
    assert got["hgd"].p_best == 1
    assert got["none"] == Verdict()
    assert (got["rdp"].best, got["rdp"].tied) == (True, False)
    assert (got["hgd"].best, got["hgd"].tied) == (False, True)
    assert (got["jpeg"].higher_than_undefended, got["jpeg"].significantly_worse, got["jpeg"].tied) == (
        True,
        True,
        False,
    )


def test_a_higher_error_within_chance_is_above_but_not_worse() -> None:
    (got,) = compare_defenses([{"none": errors(0, 1), "jpeg": errors(0, 1, 2), "rdp": errors(0)}])

    assert (got["jpeg"].higher_than_undefended, got["jpeg"].significantly_worse) == (True, False)
    assert got["rdp"].higher_than_undefended is False


def test_equal_errors_are_both_best() -> None:
    (got,) = compare_defenses([{"jpeg": errors(0), "rdp": errors(1), "fd": errors(*range(15))}])

    assert [name for name in got if got[name].best] == ["jpeg", "rdp"]
    assert got["jpeg"].p_none is None


def test_one_defense_alone_wins_nothing() -> None:
    (got,) = compare_defenses([{"none": errors(0, 1), "rdp": errors(0)}])

    assert not got["rdp"].best


def test_holm_runs_over_all_columns_of_the_table() -> None:
    column = {"none": errors(*range(10)), "jpeg": errors(*range(4)), "rdp": errors(*range(3))}
    (alone,) = compare_defenses([column])
    together = compare_defenses([column] * 5)

    assert together[0]["rdp"].p_none == pytest.approx(5 * alone["rdp"].p_none)  # type: ignore[operator]


def test_hgd_3_2_and_rdp_3_8_are_a_tie_where_the_images_say_so() -> None:
    n = 1000
    (got,) = compare_defenses(
        [{"hgd": errors(*range(32), n=n), "rdp": errors(*range(20, 58), n=n), "sr": errors(*range(280), n=n)}]
    )

    assert (got["hgd"].best, got["rdp"].tied, got["sr"].tied) == (True, True, False)


def test_an_average_is_compared_by_the_sums_of_its_images() -> None:
    # rdp saves three errors on each of five images: 2 of 32 sign patterns are as extreme.
    (got,) = compare_defenses([{"none": 3 * errors(*range(5)), "rdp": errors(), "fd": 3 * errors(*range(5))}])

    assert got["rdp"].p_none == pytest.approx(2 * 2 / 32)


def test_built_in_attacks_and_defenses_are_written_as_their_papers_write_them() -> None:
    """Each by a name of its own. A new entry without one is written as its label."""
    plugins.load()
    names = paper_metadata()["names"]
    for kind, count in ((attack, 30), (defense, 25)):
        shown = [names[label] for label in kind.entries if label in names]
        assert len(set(shown)) == len(shown) >= count
    assert display_name("vmi-fgsm") == "VMI-FGSM"
    assert display_name("dds(sigma=.5) >> jpeg") == "DDS(sigma=.5) >> JPEG"
