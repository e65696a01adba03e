"""Verdicts on the paper's claims: predictions made by hand, whose tests are worked out by hand."""

import csv
import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.cache.store import Store
from rdp_bench.reports.claims import claims, gain
from rdp_bench.reports.claims.claim_tests import _RULES, _by_deviation, evaluate_claims
from rdp_bench.reports.claims.claims import FAILS, HOLDS, OPEN, TIE, Finding
from rdp_bench.reports.claims.gain import notes
from rdp_bench.results.record import write_record, write_run
from rdp_bench.results.rows import CellKey, Run, load
from tests.helpers.report_fixture import make_run

BPDA = "bpda(nrp, a)"
BEHIND = {"a": {"members": ["a"]}, BPDA: {"members": ["a"], "attacked_defense": {"mode": "bpda"}}}


def made(
    out: Path, wrong: Callable[[CellKey], Iterable[int]], drop: Callable[[CellKey], bool] | None = None, **more: Any
) -> Run:
    """A run of `make_run`, without the cells that `drop` names."""
    store = Store(out / "store")
    record = make_run(out, store, wrong, samples=1, **more)
    if drop:
        record["cells"] = [cell for cell in record["cells"] if not drop(CellKey.of(cell))]
        write_record(out / "runs" / f"{record['grid']}.json", record)
    return load(out, store)[0]


def ask(run: Run, claim: str) -> list[Finding]:
    (found,) = [answer.findings for answer in evaluate_claims(run) if answer.claim.id == claim]
    return found


def by_defense(**wrong: int) -> Callable[[CellKey], range]:
    """So many of the first images wrong under attack, none without."""
    return lambda cell_key: range(0 if cell_key.attack == "clean" else wrong[cell_key.defense])


@pytest.mark.parametrize(
    ("wrong", "verdict", "rival", "p"),
    [
        # 10 and 7 images speak for RDP, none against: 2/2^10 and 2/2^7, Holm doubles the smaller alone.
        ({"nrp": 10, "jpeg": 7, "rdp": 0}, HOLDS, "JPEG", 2 / 2**7),
        # 5 do not suffice: 2/2^5.
        ({"nrp": 10, "jpeg": 5, "rdp": 0}, TIE, "JPEG", 2 / 2**5),
        # Lowest of all, but another is as low.
        ({"nrp": 10, "jpeg": 3, "rdp": 3}, TIE, "JPEG", 1.0),
        # JPEG is ahead on 10 images, and no tie with NRP makes up for it.
        ({"nrp": 10, "jpeg": 0, "rdp": 10}, FAILS, "JPEG", 2 * 2 / 2**10),
    ],
)
def test_lowest_error(tmp_path: Path, wrong: dict[str, int], verdict: str, rival: str, p: float) -> None:
    defenses = ["none", *wrong]
    run = made(tmp_path, by_defense(none=20, **wrong), attacks=["fgsm"], defenses=defenses)
    (found,) = ask(run, "lowest")

    assert (found.verdict, found.rival, found.test) == (verdict, rival, "McNemar")
    assert found.p == pytest.approx(p)
    assert (found.value, found.other) == (5 * wrong["rdp"], 5 * wrong["jpeg"])
    assert found.where == {"eps": "16", "target": "t"}
    assert "not in this run: FD" in found.note


def test_averages_are_tested_by_each_images_sum(tmp_path: Path) -> None:
    """NRP is wrong on three images under both attacks and on a fourth under one: 2, 2, 2, 1, all one way: 2/2^4."""
    wrong = {("nrp", "fgsm"): range(4), ("nrp", "dim"): range(3)}
    run = made(
        tmp_path, lambda p: wrong.get((p.defense, p.attack), ()), attacks=["fgsm", "dim"],
        defenses=["none", "nrp", "rdp"],
    )  # fmt: skip
    (found,) = ask(run, "beats-nrp")

    assert (found.verdict, found.test, found.value, found.other) == (TIE, "sign-flip", 0, 17.5)
    assert found.p == pytest.approx(2 / 2**4)


def test_each_target_has_its_verdict_and_holm_runs_over_both(tmp_path: Path) -> None:
    wrong = {("nrp", "t"): 9, ("nrp", "u"): 6}
    run = made(
        tmp_path, lambda p: range(wrong.get((p.defense, p.target), 0) if p.attack != "clean" else 0),
        attacks=["fgsm"], targets=["t", "u"], sources=["a", "b"], defenses=["none", "nrp", "rdp"],
    )  # fmt: skip
    found = ask(run, "beats-nrp")

    # Two sources: 9 and 6 images, each counted twice, all one way.
    assert [f.setting for f in found] == ["t, all 2 sources", "u, all 2 sources"]
    assert [f.p for f in found] == pytest.approx([2 * 2 / 2**9, 2 / 2**6])
    assert [f.verdict for f in found] == [HOLDS, HOLDS]
    assert [f.setting for f in ask(run, "lowest-by-source")] == ["t, from a", "t, from b", "u, from a", "u, from b"]


def test_what_is_missing_keeps_the_verdict_open_unless_it_is_lost_already(tmp_path: Path) -> None:
    pending = {CellKey("a", "fgsm", 16.0, "t", "nrp"): ("pending", "")}
    more: dict[str, Any] = {"attacks": ["fgsm"], "defenses": ["none", "nrp", "jpeg", "rdp"], "states": pending}
    (ahead,) = ask(made(tmp_path / "1", by_defense(none=20, jpeg=12, rdp=0, nrp=0), **more), "lowest")
    (behind,) = ask(made(tmp_path / "2", by_defense(none=20, jpeg=0, rdp=12, nrp=0), **more), "lowest")

    assert (ahead.verdict, behind.verdict) == (OPEN, FAILS)
    assert "NRP is not done" in ahead.note
    (nobody,) = ask(made(tmp_path / "3", by_defense(none=20, jpeg=0), defenses=["none", "jpeg"]), "lowest")
    assert (nobody.verdict, nobody.note) == (OPEN, "this run has no cells with RDP")


def test_the_row_that_the_paper_lacks(tmp_path: Path) -> None:
    """JPEG errs on 8 images more than no defense, RDP on 10 fewer."""
    run = made(tmp_path, by_defense(none=10, jpeg=18, rdp=0), attacks=["fgsm"], defenses=["none", "jpeg", "rdp"])
    (found,) = ask(run, "all-help")

    assert (found.verdict, found.subject, found.rival) == (FAILS, "No defense", "JPEG")
    assert found.p == pytest.approx(2 / 2**8)  # Holm: 2/2^10 twice, 2/2^8 once


@pytest.mark.parametrize(
    ("n", "lost", "verdict", "p"),
    # 8 of 500 are told from none (p .008), but their interval, .7 to 2.9 points, holds the point that is allowed.
    [(500, 8, TIE, 2 / 2**8), (20, 3, TIE, 0.25), (20, 8, FAILS, 2 / 2**8), (400, 0, HOLDS, 1.0), (200, 0, TIE, 1.0)],
)
def test_clean_accuracy_is_kept_only_if_the_whole_interval_says_so(
    tmp_path: Path, n: int, lost: int, verdict: str, p: float
) -> None:
    """With no image lost of n the interval still ends at z^2 / (n + z^2): 1.9 points at 200, 0.95 at 400."""
    run = made(tmp_path, lambda p: range(lost) if p.defense == "rdp" else (), n=n, attacks=["fgsm"])
    (found,) = ask(run, "clean")

    assert (found.verdict, found.p) == (verdict, pytest.approx(p))
    assert (found.value, found.other) == (100 - 100 * lost / n, 100)


def test_several_draws_are_no_mcnemar_test(tmp_path: Path) -> None:
    run = made(tmp_path, lambda p: range(8) if p.defense == "rdp" else (), attacks=["fgsm"])
    assert ask(run, "clean")[0].test == "McNemar"
    run.record["axes"]["defense_samples"] = 10  # each image counts how many of ten draws were wrong
    (found,) = ask(run, "clean")
    assert (found.test, found.p) == ("sign-flip", pytest.approx(2 / 2**8))


def test_crafting_through_a_defense_is_held_against_plain_crafting(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "grid": "table3",
        "attacks": ["ti-dim"],
        "sources": ["a", BPDA],
        "defenses": ["none", "rdp"],
    }
    wrong = {"a": 4, BPDA: 12}
    run = made(tmp_path, lambda p: range(wrong.get(p.source, 0)), **more)
    assert ask(run, "grey-box")[0].verdict == OPEN  # its record does not say what it crafts through

    store = Store(tmp_path / "store")
    record = {**run.record, "sources": BEHIND}
    write_run(tmp_path / "runs" / f"{record['grid']}.json", record, run.cells)
    (found,) = ask(load(tmp_path, store)[0], "grey-box")
    assert (found.verdict, found.value, found.other) == (FAILS, 40, 80)  # 8 images, 40 points, 7 allowed
    assert found.p == pytest.approx(2 / 2**8)
    assert found.setting == "t, from bpda(nrp, a)"


def test_white_box_has_the_network_beside_for_a_rival(tmp_path: Path) -> None:
    """The network beside the target has undefended cells alone; it is no setting of its own."""
    wrong = {("t", "none"): 20, ("t", "rdp(dynamic=true)"): 4, ("u", "none"): 9}
    run = made(
        tmp_path, lambda p: range(wrong.get((p.target, p.defense), 0) if p.attack != "clean" else 0),
        lambda p: p.target == "u" and p.defense != "none", grid="table4", attacks=["pgd-targeted"],
        sources=["white-box"], targets=["t", "u"], defenses=["none", "rdp(dynamic=true)"],
    )  # fmt: skip
    none, beside, nrp = ask(run, "white-box-dynamic")

    assert (none.verdict, none.rival, none.value, none.other) == (HOLDS, "No defense", 80, 0)
    assert (beside.verdict, beside.rival, beside.value, beside.other) == (TIE, "u", 80, 55)
    assert beside.p == pytest.approx(2 / 2**5)
    assert (nrp.verdict, nrp.note) == (OPEN, "NRP(dynamic=true) is not in this run")


def test_smallest_deviation_over_eps(tmp_path: Path) -> None:
    wrong = {("rdp", 1.0): 8, ("rdp", 16.0): 10, ("nrp", 1.0): 0, ("nrp", 16.0): 18}
    run = made(
        tmp_path, lambda p: range(wrong.get((p.defense, p.eps), 0)), grid="figure4", attacks=["fgsm"], eps=[1, 16],
        defenses=["none", "nrp", "rdp"],
    )  # fmt: skip
    (found,) = ask(run, "steady-over-eps")

    assert (found.verdict, found.value, found.other) == (HOLDS, pytest.approx(5), pytest.approx(45))
    assert found.setting == "t, from a, 2 ε"
    assert "without HGD" not in found.note  # one rival: the row names it
    (mean,) = ask(run, "mean-over-eps")
    assert (mean.verdict, mean.value, mean.other) == (TIE, pytest.approx(55), pytest.approx(55))


def test_p_of_a_deviation_is_that_of_every_swap(tmp_path: Path) -> None:
    """All 2^8 ways to swap the two defenses' answers, counted one by one."""
    wrong = {("rdp", 1.0): (0, 5), ("rdp", 16.0): (1, 2), ("nrp", 1.0): (3,), ("nrp", 16.0): (0, 2, 4, 6, 7)}
    run = made(
        tmp_path, lambda p: wrong.get((p.defense, p.eps), ()), n=8, attacks=["fgsm"], eps=[1, 16],
        defenses=["nrp", "rdp"],
    )  # fmt: skip
    mine, theirs = ([CellKey("a", "fgsm", eps, "t", name) for eps in (1.0, 16.0)] for name in ("rdp", "nrp"))
    pairs = np.array([[run.wrong[p] for p in mine], [run.wrong[p] for p in theirs]], float)  # [defense, eps, n]

    def spread(values: Any) -> float:
        deviations = [np.std(defense.mean(1)) for defense in values]
        return float(deviations[0] - deviations[1])

    seen = abs(spread(pairs))
    swapped = []
    for pattern in itertools.product((False, True), repeat=8):
        values = pairs.copy()
        values[:, :, pattern] = pairs[::-1][:, :, pattern]
        swapped.append(abs(spread(values)) >= seen - 1e-12)
    exact = float(np.mean(swapped))

    assert 0.05 < exact < 0.95
    assert _by_deviation(run, "NRP", mine, theirs).p == pytest.approx(exact, abs=0.035)


def test_a_grid_of_ones_own_has_no_claims_of_the_paper(tmp_path: Path) -> None:
    defenses = ["none", "nrp", "rdp"]
    of_paper = made(tmp_path / "1", by_defense(none=20, nrp=10, rdp=0), defenses=defenses)
    own = made(tmp_path / "2", by_defense(none=20, nrp=10, rdp=0), grid="mine", defenses=defenses)

    assert {answer.claim.id for answer in evaluate_claims(of_paper)} >= {"lowest", "beats-nrp"}
    assert evaluate_claims(own) == []


@pytest.mark.parametrize(("n", "judged"), [(9, False), (10, True)])
def test_few_images_judge_no_claim(tmp_path: Path, n: int, judged: bool) -> None:
    data = {"name": "d", "n": n, "size": 8, "images": "ab"}
    run = made(
        tmp_path, by_defense(none=9, nrp=9, rdp=0), n=n, dataset=data, defenses=["none", "nrp", "rdp"]
    )  # fmt: skip

    assert bool(evaluate_claims(run)) is judged


def test_sheet_has_a_line_a_verdict(tmp_path: Path) -> None:
    run = made(tmp_path, by_defense(none=20, nrp=10, rdp=0), attacks=["fgsm"], defenses=["none", "nrp", "rdp"])
    found = evaluate_claims(run)
    lines = list(csv.DictReader(io.StringIO(claims.claims_csv(run, found))))

    assert len(lines) == sum(len(answer.findings) for answer in found)
    (line,) = [line for line in lines if line["claim"] == "beats-nrp"]
    assert [line[name] for name in ("source", "target", "verdict", "value", "other", "difference", "n")] == [
        "all", "t", "holds", "0.0000", "50.0000", "-50.0000", "20",
    ]  # fmt: skip
    assert float(line["p"]) == pytest.approx(2 / 2**10, rel=1e-4)


# --- the claims are the paper's ---


def printed(table: str) -> list[dict[str, str]]:
    text = files("rdp_bench.data").joinpath("paper", f"{table}.csv").read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_the_claims_are_true_of_the_printed_numbers() -> None:
    """A claim that the paper's own table does not bear out would be our invention."""
    error: dict[tuple[str, str, str], float] = {}
    for row in printed("table1"):
        error[row["defense"], row["source"], row["attack"]] = float(row["value"])
    names, sources, attacks = (list(dict.fromkeys(key[i] for key in error)) for i in range(3))
    mean = {(d, s): np.mean([error[d, s, a] for a in attacks]) for d in names for s in sources}

    assert all(min(names, key=lambda d, s=s: mean[d, s]) == "rdp" for s in sources)  # type: ignore[misc]
    assert all(min(names, key=lambda d, s=s: error[d, s, "fgsm"]) == "hgd" for s in sources)  # type: ignore[misc]
    assert np.mean([mean["nrp", s] - mean["rdp", s] for s in sources]) == pytest.approx(3.6, abs=0.05)
    asked = {claim.id: claim for claim in claims.claims()}
    assert {asked["lowest"].subject, *asked["lowest"].against} == set(names)
    assert {claim.rule for claim in asked.values()} <= set(_RULES)
    assert len(asked) == len(claims.claims())


def test_relative_gain_is_the_papers() -> None:
    """From its own printed table: 78.0 and 70.2 % by column, 74 over all eight."""
    cells = {(row["source"], row["defense"], row["target"]): float(row["value"]) for row in printed("table3")}
    targets = [target for source, defense, target in cells if defense == "none"]
    before = np.array([cells["resnet-v2-152", "none", target] for target in targets])
    columns = [np.array([cells[s, "rdp", t] for t in targets]) for s in ("resnet-v2-152", "bpda(nrp,resnet-v2-152)")]
    gains = [gain.relative(before, after) for after in columns]

    assert [round(float(column.mean()), 1) for column in gains] == [gain.PRINTED["plain"], gain.PRINTED["bpda"]]
    (claim,) = [claim for claim in claims.claims() if claim.rule == "gain"]
    assert round(float(np.mean(gains))) == claim.percent


def test_relative_gain_of_a_run(tmp_path: Path) -> None:
    """Of 20 images, t and u are right on 10 and 8; with RDP on 18 and 16, crafted through NRP on 15 and 12."""
    right = {
        ("a", "none", "t"): 10, ("a", "none", "u"): 8, ("a", "rdp", "t"): 18, ("a", "rdp", "u"): 16,
        (BPDA, "rdp", "t"): 15, (BPDA, "rdp", "u"): 12,
    }  # fmt: skip
    more: dict[str, Any] = {"grid": "table3", "attacks": ["ti-dim"], "targets": ["t", "u"], "defenses": ["none", "rdp"]}
    run = made(
        tmp_path, lambda p: range(right.get((p.source, p.defense, p.target), 20), 20), sources=["a", BPDA], **more
    )
    run.record["sources"] = BEHIND
    found = gain.gain(run, "ti-dim", 16.0, "rdp", ["a", BPDA])

    assert isinstance(found, gain.Gain)
    np.testing.assert_allclose(found.by_cell, [[80, 100], [50, 50]])
    assert found.mean == pytest.approx(70)
    assert found.low < 70 < found.high
    (note,) = gain.notes(run)
    assert "a 90.0 %; bpda(nrp, a) 50.0 %; a and bpda(nrp, a) together 70.0 %" in note
    assert [f.verdict for f in ask(run, "gain")] == [TIE]


def test_a_gain_is_over_the_targets_that_have_the_defense(tmp_path: Path) -> None:
    """A baseline beside them has no cell with a defense, so none of its cells is missing."""
    run = made(
        tmp_path, by_defense(none=10, rdp=5), lambda p: (p.target, p.defense) == ("baseline", "rdp"), grid="table3",
        attacks=["ti-dim"], targets=["t", "baseline"], defenses=["none", "rdp"],
    )  # fmt: skip
    found = gain.gain(run, "ti-dim", 16.0, "rdp", ["a"])
    assert isinstance(found, gain.Gain)
    assert found.by_cell.tolist() == [[50.0]]


def test_a_gain_over_almost_nothing_has_no_upper_end(tmp_path: Path) -> None:
    """Right on one image of 20: of the resamples, .95^20 = 36 % lack it, and there nothing can be divided by."""
    right = {"none": 1, "rdp": 8}
    run = made(
        tmp_path, lambda p: range(right[p.defense], 20), grid="table3", attacks=["ti-dim"], defenses=["none", "rdp"]
    )
    run.record["sources"] = BEHIND
    found = gain.gain(run, "ti-dim", 16.0, "rdp", ["a"])

    assert isinstance(found, gain.Gain)
    assert found.interval.endswith(" to ∞")
    assert found.low < 700


def test_no_gain_over_nothing(tmp_path: Path) -> None:
    run = made(tmp_path, by_defense(none=20, rdp=3), grid="table3", attacks=["ti-dim"], defenses=["none", "rdp"])

    assert "right on no image" in str(gain.gain(run, "ti-dim", 16.0, "rdp", ["a"]))
    assert gain.notes(run) == []


def test_who_is_better_is_not_called_worse(tmp_path: Path) -> None:
    """No defense is to be the worst; JPEG and NRP are worse than it on fifteen images."""
    run = made(tmp_path, by_defense(none=2, jpeg=17, nrp=17, rdp=0), attacks=["fgsm"],
               defenses=["none", "jpeg", "nrp", "rdp"])  # fmt: skip
    (found,) = ask(run, "all-help")
    assert found.verdict == FAILS
    assert "significantly better than JPEG, NRP" in found.note
    assert "significantly worse" not in found.note


def test_one_rival_of_ten_is_said_to_be_one(tmp_path: Path) -> None:
    run = made(tmp_path, by_defense(none=20, jpeg=15, rdp=0), attacks=["fgsm"], defenses=["none", "jpeg", "rdp"])
    (found,) = ask(run, "lowest")
    assert found.verdict == HOLDS
    assert "not in this run: FD" in found.note


def test_the_papers_gains_stand_beside_its_own_cells_alone(tmp_path: Path) -> None:
    more = {"attacks": ["ti-dim"], "sources": ["a", BPDA], "defenses": ["none", "rdp"]}
    for grid, printed in (("table3", True), ("mine", False)):
        run = made(tmp_path / grid, by_defense(none=10, rdp=5), grid=grid, **more)
        run = replace(run, record={**run.record, "sources": BEHIND})
        assert any("The paper reports 78.0 %" in sentence for sentence in notes(run)) == printed
