"""Leaderboards by hand: which cells their numbers are over, tests, order, and the figure beside them."""

import csv
import io
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdp_bench.cache.store import Store
from rdp_bench.metrics.stats import mcnemar
from rdp_bench.reports import published
from rdp_bench.reports.figures.tradeoff import Box, placed, tradeoff
from rdp_bench.reports.summary import answer, power
from rdp_bench.reports.tables.leaderboard import COLUMNS, Leaderboard, as_table, leaderboards, sheet
from rdp_bench.reports.tables.table import percent
from rdp_bench.results.record import write_record
from rdp_bench.results.rows import CellKey, Run, load, shown_names
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import small


def run_of(out: Path, wrong: dict[tuple[str, ...], int], **more: Any) -> Run:
    """So many of the first images wrong, by (defense, attack) or (defense,); none in cells that `wrong` leaves out."""
    make_run(
        out, Store(out / "store"), lambda p: range(wrong.get((p.defense, p.attack), wrong.get((p.defense,), 0))),
        samples=1, **more,
    )  # fmt: skip
    return load(out, Store(out / "store"))[0]


def by_name(board: Leaderboard) -> dict[str, Any]:
    return {each.defense: each for each in board.standings}


WRONG = {
    ("none", "fgsm"): 10, ("none", "dim"): 20, ("jpeg", "fgsm"): 12, ("jpeg", "dim"): 16, ("rdp", "fgsm"): 2,
    ("rdp", "dim"): 6, ("none", "clean"): 0, ("jpeg", "clean"): 1, ("rdp", "clean"): 3,
}  # fmt: skip


def test_by_hand(tmp_path: Path) -> None:
    """None 10 and 20 of 20, JPEG 12 and 16, RDP 2 and 6, each the first images."""
    (board,) = leaderboards(run_of(tmp_path, WRONG, attacks=["fgsm", "dim"]))
    rdp, jpeg, none = board.standings

    assert [each.defense for each in board.standings] == ["rdp", "jpeg", "none"]
    assert [each.mean.value for each in board.standings] == pytest.approx([20, 70, 75])
    assert [each.clean for each in board.standings] == pytest.approx([85, 95, 100])
    assert [(each.worst, each.worst_attack) for each in board.standings] == [(30, "dim"), (80, "dim"), (100, "dim")]
    assert rdp.mean.change[0] == pytest.approx(-55)
    assert rdp.mean.change[1] < -55 < rdp.mean.change[2] < 0
    # RDP saves both attacks on images 7 to 10, one on 3 to 6 and 11 to 20... all one way: 2 of 2^m patterns.
    difference = sum((np.arange(20) < 10, np.arange(20) < 20)) - sum((np.arange(20) < 2, np.arange(20) < 6))
    m = int((difference != 0).sum())
    assert rdp.mean.verdict.p_none == pytest.approx(2 * 2 / 2**m, rel=1e-6)
    # JPEG saves four under DIM and loses two under FGSM: all 2^6 patterns.
    signs = itertools.product((1, -1), repeat=6)
    p = np.mean([abs(sum(pattern)) >= 2 for pattern in signs])
    assert jpeg.mean.verdict.p_none == pytest.approx(p)
    assert (rdp.test, jpeg.test, none.test) == ("lower", "no difference shown", "")
    assert (rdp.mean.bold, jpeg.mean.bold, none.mean.bold) == (True, False, False)
    assert rdp.ms == pytest.approx(75)  # the fixture's 1.5 s for 20 images


def test_a_single_cell_is_mcnemars_test(tmp_path: Path) -> None:
    wrong = {("none",): 8, ("rdp",): 1}
    (board,) = leaderboards(run_of(tmp_path, wrong, attacks=["fgsm"], defenses=["none", "rdp"], clean=False))

    assert by_name(board)["rdp"].mean.verdict.p_none == pytest.approx(mcnemar(7, 0))
    assert by_name(board)["rdp"].clean is None


def test_a_higher_error_is_said(tmp_path: Path) -> None:
    (board,) = leaderboards(run_of(tmp_path, {("none",): 5, ("jpeg",): 18, ("rdp",): 5}, attacks=["fgsm"]))

    assert {name: each.test for name, each in by_name(board).items()} == {
        "none": "", "jpeg": "higher", "rdp": "no difference shown",
    }  # fmt: skip
    none = "None of 2 defenses has a significantly lower mean error than no defense (25.0 %)."
    assert answer(board) == f"{none} JPEG has a significantly higher one."


def test_the_answer_says_what_the_lowest_error_costs(tmp_path: Path) -> None:
    """A defense that destroys images has the lowest error where every attack succeeds."""
    (board,) = leaderboards(run_of(tmp_path / "a", WRONG, attacks=["fgsm", "dim"]))
    assert answer(board).endswith(" On clean images, accuracy is 85.0 % behind RDP and 100.0 % without a defense.")
    (without,) = leaderboards(run_of(tmp_path / "b", WRONG, attacks=["fgsm", "dim"], clean=False))
    assert "RDP has the lowest, 20.0 %" in answer(without)
    assert "clean" not in answer(without)


def test_a_lower_error_that_may_be_chance_is_not_denied(tmp_path: Path) -> None:
    """RDP is lower in the table beside the sentence."""
    (board,) = leaderboards(run_of(tmp_path, {("none",): 5, ("jpeg",): 5, ("rdp",): 3}, attacks=["fgsm"]))

    assert by_name(board)["rdp"].mean.value == pytest.approx(15)
    assert by_name(board)["rdp"].test == "no difference shown"
    assert answer(board) == "None of 2 defenses has a significantly lower mean error than no defense (25.0 %)."


def test_no_mean_over_fewer_cells(tmp_path: Path) -> None:
    """RDP lacks one of two cells, on which it would have had the lowest mean."""
    gone = {CellKey("a", "dim", 16.0, "t", "rdp"): ("failed", "out of memory")}
    (board,) = leaderboards(run_of(tmp_path, WRONG, attacks=["fgsm", "dim"], states=gone))
    rdp = board.standings[-1]

    assert [each.defense for each in board.standings] == ["jpeg", "none", "rdp"]
    assert (rdp.mean.value, rdp.worst, rdp.done, rdp.test, rdp.clean) == (None, None, 1, "", 85)
    assert by_name(board)["jpeg"].mean.value == pytest.approx(70)
    assert as_table(board).groups[0].rows[-1].cells[0].shown == "1 of 2 cells"


def test_a_board_a_target_at_the_largest_eps(tmp_path: Path) -> None:
    """Errors at ε = 8 are others; a target without defenses is a baseline, not a question."""
    store, out = Store(tmp_path / "store"), tmp_path
    record = make_run(
        out, store, lambda p: range(int(p.eps)), eps=[8, 16], targets=["t", "u", "base"], sources=["a", "b"], samples=1
    )
    record["cells"] = [c for c in record["cells"] if c["target"] != "base" or c["defense"] == "none"]
    write_record(out / "runs" / f"{record['grid']}.json", record)
    boards = leaderboards(load(out, store)[0])

    assert [(board.target, board.eps, len(board.cells)) for board in boards] == [("t", 16, 4), ("u", 16, 4)]
    assert {each.mean.value for board in boards for each in board.standings} == {80}
    assert "ε = 16, the largest of the run" in boards[0].what
    assert [board.slug for board in boards] == ["table1_leaderboard_t_eps16", "table1_leaderboard_u_eps16"]


def test_white_box_attacks_have_a_board_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(
        tmp_path,
        store,
        lambda p: range(20 if p.source == "white-box(5)" else 4),
        sources=["a", "white-box(5)"],
        samples=1,
    )
    transfer, white_box = leaderboards(load(tmp_path, store)[0])

    assert {each.mean.value for each in transfer.standings} == {20}
    assert {each.mean.value for each in white_box.standings} == {100}
    assert (transfer.where, white_box.where) == ("ε = 16, target t", "ε = 16, target t, white-box attacks")


def test_few_images_are_not_tested(tmp_path: Path) -> None:
    data = {"name": "d", "n": 9, "size": 8, "images": "ab"}
    (board,) = leaderboards(run_of(tmp_path, {("none",): 9, ("jpeg",): 9}, n=9, dataset=data))

    assert {each.test for each in board.standings} == {"", "not tested"}
    assert not any(each.mean.bold or each.mean.symbols for each in board.standings)
    assert "too few images" in answer(board)
    assert power(9, [board], []).startswith("There are no verdicts on 9 images: below 10")


def test_power_is_the_least_number_of_images_that_a_test_can_find() -> None:
    """By McNemar's test: 2^(1 - k) at most 0.05."""
    least = next(k for k in range(1, 99) if mcnemar(k, 0) <= 0.05)
    assert mcnemar(least - 1, 0) > 0.05
    assert f"at least {least} of them (in one cell, {100 * least / 40:.1f} points)" in power(40, [], [])


def test_power_after_holm(tmp_path: Path) -> None:
    """The smallest of two p-values is doubled."""
    (board,) = leaderboards(run_of(tmp_path, WRONG, attacks=["fgsm", "dim"]))
    least = next(k for k in range(1, 99) if 2 * mcnemar(k, 0) <= 0.05)
    assert f"with Holm's correction, {least} for 2 comparisons" in power(20, [board], [])


def test_cost_as_measured_is_preferred(tmp_path: Path) -> None:
    cost = {"target": "t", "forward_ms": 10.0, "defenses": {"rdp": {"ratio": 2.5}}}
    run = run_of(tmp_path, {})
    (board,) = leaderboards(replace(run, record={**run.record, "cost": cost}))
    assert (by_name(board)["rdp"].ms, by_name(board)["jpeg"].ms) == (25, pytest.approx(75))
    (other,) = leaderboards(replace(run, record={**run.record, "cost": {**cost, "target": "another"}}))
    assert by_name(other)["rdp"].ms == pytest.approx(75)


def test_sheet_has_plain_heads_and_given_names(tmp_path: Path) -> None:
    run = run_of(tmp_path, WRONG, attacks=["fgsm", "dim"], names={"rdp": "Ours", "dim": "=1+1"})
    with shown_names(run.names):
        (board,) = leaderboards(run)
        lines = list(csv.DictReader(io.StringIO(sheet(board))))
        assert "Ours has the lowest, 20.0 %" in answer(board)

    assert all(re.fullmatch(r"[a-z_]+", column) for column in COLUMNS)
    assert tuple(lines[0]) == COLUMNS
    assert [line["defense"] for line in lines] == ["Ours", "jpeg", "none"]
    assert (lines[0]["mean_error"], lines[0]["change"], lines[0]["test"]) == ("20.0000", "-55.0000", "lower")
    assert lines[0]["worst_attack"] == "'=1+1"  # no formula


# --- the figure ------------------------------------------------------------------------------------------


def test_labels_keep_apart() -> None:
    """Eleven names on and around few spots, drawn at random."""
    rng, names = np.random.default_rng(0), ["No defense", "ComDefend", "RDP", "JPEG", "R&P", "HGD", "NRP", "TVM", "FD"]
    size = (2.75, 2.5)
    for crowd in (0.15, 0.4, 1.0):
        for _ in range(20):
            spots = [(float(x), float(y)) for x, y in rng.uniform(0.15, 0.15 + crowd * 2.1, (len(names), 2))]
            boxes = placed(names, spots, size)
            assert all(not box.outside(*size) for box in boxes)
            if crowd > 0.15:  # there is room
                covered = [a.overlap(b) for i, a in enumerate(boxes) for b in boxes[:i]]
                assert max(covered) == 0


def test_overlap_by_hand() -> None:
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 3)) == 1
    assert Box(0, 0, 1, 1).overlap(Box(1, 0, 2, 1)) == 0


def test_figure_has_a_point_a_defense(tmp_path: Path) -> None:
    wrong = WRONG | {("nrp", "fgsm"): 2, ("nrp", "dim"): 6, ("nrp", "clean"): 3}
    (board,) = leaderboards(run_of(tmp_path, wrong, attacks=["fgsm", "dim"], defenses=["none", "jpeg", "rdp", "nrp"]))
    figure = tradeoff(board)
    assert figure
    assert figure.csv
    lines = {line["defense"]: line for line in csv.DictReader(io.StringIO(figure.csv))}

    assert (lines["rdp"]["clean_accuracy"], lines["rdp"]["mean_error"]) == ("85.0", "20.0")
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", figure.inline)
    assert {"No defense", "JPEG", "RDP, NRP"} <= set(texts)  # two share a point
    assert Image.open(io.BytesIO(figure.saved["png"])).width > 300
    assert tradeoff(board).saved == figure.saved  # type: ignore[union-attr]


def test_no_figure_without_clean_cells(tmp_path: Path) -> None:
    (board,) = leaderboards(run_of(tmp_path, WRONG, attacks=["fgsm", "dim"], clean=False))
    assert tradeoff(board) is None


def test_time_is_of_one_draw_of_each_defense(tmp_path: Path) -> None:
    """1.5 s for 20 images: of one draw 75 ms, of ten 7.5 ms."""
    run = run_of(tmp_path, {})
    cells = [replace(cell, defense_samples=10 if cell.defense == "rdp" else 1) for cell in run.cells]
    axes = {**run.record["axes"], "defense_samples": 10}
    (board,) = leaderboards(replace(run, cells=cells, record={**run.record, "axes": axes}))
    assert {name: each.ms for name, each in by_name(board).items()} == pytest.approx(
        {"none": 75, "jpeg": 75, "rdp": 7.5}
    )  # fmt: skip


def test_attacks_through_a_defense_are_not_called_transfer(tmp_path: Path) -> None:
    plain = {"a": {"members": ["a"]}}
    through = {"bpda(rdp, a)": {"members": ["a"], "attacked_defense": {"mode": "bpda"}}}
    for found, kind in ((plain, "transfer"), (plain | through, "transfer and through a defense")):
        run = run_of(tmp_path / kind[-3:], {}, sources=list(found))
        run = replace(run, record={**run.record, "sources": found})
        assert [line["attackers"] for line in published._lines(run)] == [kind]


def test_equal_numbers_are_printed_alike() -> None:
    """7 of 2000: as a cell of results.csv, and as a mean over two of them."""
    assert f"{percent(np.mean([7 / 2000, 7 / 2000])):.1f}" == f"{float('0.3500'):.1f}"
    assert f"{100 * np.mean([7 / 2000, 7 / 2000]):.1f}" != f"{float('0.3500'):.1f}"


def test_the_sheet_names_another_norm(tmp_path: Path) -> None:
    run, _ = small(tmp_path)
    run.record["axes"]["norm"] = "l2"
    assert [line["eps"] for line in csv.DictReader(io.StringIO(sheet(leaderboards(run)[0])))] == ["16 (L2)"] * 3
