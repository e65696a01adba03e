"""The cross-check of a paper-profile run: arithmetic on synthetic predictions, and a run that prints it."""

import csv
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rdp_bench.cli.main import main
from rdp_bench.engine import grid
from rdp_bench.models.card import KnownAccuracy, cards
from rdp_bench.results import crosscheck
from rdp_bench.results.crosscheck import Rate, check_clean, check_rate, rates
from rdp_bench.results.record import sealed
from rdp_bench.results.rows import paper_metadata
from rdp_bench.results.verify import verify
from tests.helpers.commands import cli
from tests.helpers.paths import ROOT

PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"
RATE = Rate("inc-v3", "fgsm", "inc-v4", 16.0, 40.0, 100.0)


def predictions(right: int, n: int = 1000) -> dict[str, Any]:
    """Labels of `n` images, of which the first `right` are found."""
    label = np.arange(n, dtype=np.int32) % 7
    return {"label": label, "predicted": np.where(np.arange(n) < right, label, label + 1).astype(np.int32)}


# --- the published numbers ---


def test_the_published_numbers() -> None:
    found = {(rate.attack, rate.target): rate.wrong for rate in rates()}
    assert found == {
        ("fgsm", "inc-v4"): 37.4, ("fgsm", "resnet-v2-152"): 33.0, ("fgsm", "incres-v2"): 33.9,
        ("fgsm", "incres-v2-ens"): 8.2, ("mi-fgsm", "inc-v4"): 55.1, ("mi-fgsm", "resnet-v2-152"): 42.8,
        ("mi-fgsm", "incres-v2"): 51.7, ("mi-fgsm", "incres-v2-ens"): 11.2,
    }  # fmt: skip
    assert {(rate.source, rate.eps) for rate in rates()} == {("inc-v3", 16.0)}
    known = {name: card.known_accuracy("nips2017", 1000) for name, card in cards().items()}
    assert {name: value for name, value in known.items() if value and name in paper_metadata()["names"]} == {
        "inc-v3": 96.2, "inc-v4": 97.4, "resnet-v2-101": 96.3, "resnet-v2-152": 95.8, "incres-v2": 99.8,
        "incres-v2-ens": 97.6,
    }  # fmt: skip


def test_table1_has_all_it_takes() -> None:
    """The paper's five sources and its target, and every network that a rate is known for."""
    axes = grid.load("table1", "paper", {})[0].axes
    assert axes.sources == ("inc-v3", "inc-v4", "resnet-v2-101", "resnet-v2-152", "ensemble")
    assert axes.ensembles["ensemble"] == tuple(paper_metadata()["ensemble"]) == axes.sources[:4]
    with (ROOT / "data" / "paper" / "table1.csv").open() as file:
        assert {line["source"] for line in csv.DictReader(file)} == set(axes.sources)
    here = {*axes.sources, *axes.targets, *axes.checks}
    for rate in rates():
        assert rate.source in axes.sources
        assert rate.attack in axes.attacks
        assert rate.eps in axes.eps
        assert rate.target in here
        assert rate.target in cards()
    assert axes.defenses[0] == "none"


# --- arithmetic ---


@pytest.mark.parametrize(
    ("right", "n", "passed"),
    [
        (962, 1000, True), (957, 1000, True), (956, 1000, False), (967, 1000, True), (968, 1000, False),
        (0, 1000, False),
        # Of 100 images 96 has the interval 90.2 to 98.4.
        (96, 100, True), (100, 100, True), (80, 100, False),
    ],
)  # fmt: skip
def test_clean(right: int, n: int, passed: bool) -> None:
    found = check_clean("inc-v3", 96.2, 1000, predictions(right, n))
    assert found.passed is passed
    start = "pass " if passed else "FAIL "
    assert str(found) == f"{start}accuracy of inc-v3: {100 * right / n:.1f} % of {n} images, published 96.2 %"


def test_nothing_measured_neither_passes_nor_fails() -> None:
    assert str(check_clean("inc-v3", 96.2, 1000, None)) == "-    accuracy of inc-v3: not measured, published 96.2 %"
    for clean, attacked in ((None, predictions(5)), (predictions(5), None)):
        found = check_rate(RATE, clean, attacked)
        assert found.passed is None
        assert str(found) == "-    fgsm from inc-v3, eps 16, on inc-v4: not measured, published 40.0 %"
    found = check_rate(RATE, predictions(0), predictions(0))
    assert found.passed is None
    assert found.text.endswith("on inc-v4: no image is right without an attack, published 40.0 %")


@pytest.mark.parametrize(
    ("clean", "attacked", "passed"),
    [
        (1000, 600, True),
        # 5 points of slack, and about 3 for 1000 images: 40.0 may be measured as 32.1 to 48.0.
        (1000, 679, True), (1000, 680, False), (1000, 520, True), (1000, 519, False),
        # Half the images are right to begin with: 40 % of them are taken.
        (500, 300, True), (500, 100, False),
        (1000, 1000, False), (900, 1000, False), (1000, 0, False),
    ],
)  # fmt: skip
def test_rates(clean: int, attacked: int, passed: bool) -> None:
    found = check_rate(RATE, predictions(clean), predictions(attacked))
    taken = max(0.0, 100 * (clean - attacked) / clean)
    assert found.passed is passed
    assert found.text.endswith(f"on inc-v4: takes {taken:.1f} % of {clean} right answers, published 40.0 %")


def test_few_images_are_given_their_interval() -> None:
    assert check_rate(RATE, predictions(10, 10), predictions(8, 10)).passed
    assert not check_rate(RATE, predictions(100, 100), predictions(80, 100)).passed


def test_published_rates_leave_out_what_was_wrong_anyway() -> None:
    assert replace(RATE, wrong=33.0, accuracy=97.5).attack_success_rate == pytest.approx(100 * (1 - 67 / 97.5))
    assert replace(RATE, wrong=2.5, accuracy=97.5).attack_success_rate == pytest.approx(0)


# --- a run ---

GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [16]
[profile.paper]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one"]
checks = ["tiny/two"]
[profile.embedded]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one"]
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid whose data set passes for NIPS-2017; every rate of tiny/two is known to be 0."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(crosscheck, "DATASET", "tiny/noise")
    known = tuple(Rate("tiny/one", "fgsm", target, 16.0, 0.0, 100.0) for target in ("tiny/one", "tiny/two", "tiny/no"))
    monkeypatch.setattr(crosscheck, "rates", lambda: (*known, replace(known[0], attack="dim")))
    path = tmp_path / "tiny.toml"
    path.write_text(GRID)
    return path


def run(path: Path, *args: str) -> tuple[str, dict[str, Any]]:
    flags = ["--grid", str(path), "--plugin", str(PLUGIN), "--out", str(path.parent / "out"), *args]
    found = CliRunner().invoke(main, ["run", *flags])
    assert found.exit_code == 0, found.output
    record: dict[str, Any] = json.loads((path.parent / "out" / "runs" / "tiny.json").read_text())
    return found.stdout, record


def test_a_paper_run_prints_its_cross_check_first(tiny: Path) -> None:
    shown, record = run(tiny, "--profile", "paper")
    lines = shown.splitlines()
    assert lines[1].startswith("networks and attacks against others' numbers")
    assert lines[2].startswith("FAIL fgsm from tiny/one, eps 16, on tiny/one: takes 100.0 % of 12 right answers")
    assert "fgsm from tiny/one, eps 16, on tiny/two: takes " in lines[3]  # no target of the grid, measured all the same
    assert lines[5].startswith("accuracy % of tiny/one")
    assert "tiny/two" not in "".join(lines[4:])
    assert [check["text"] for check in record["checks"]] == [line[5:] for line in lines[2:4]]
    assert any(text.startswith("cross-check failed: fgsm from tiny/one") for text in record["warnings"])
    again, _ = run(tiny, "--profile", "paper")
    assert again == shown  # from the cache alone


def test_other_runs_have_none(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, record = run(tiny, "--profile", "embedded")
    assert "others' numbers" not in shown
    assert record["checks"] == []
    monkeypatch.setattr(crosscheck, "DATASET", "nips2017")
    shown, _ = run(tiny, "--profile", "paper")
    assert "others' numbers" not in shown


def verified(out: Path, edit: Callable[[list[dict[str, Any]]], object] = lambda checks: None) -> str:
    """What verify says of the run once the lines of its cross-check were edited."""
    record = out / "runs" / "tiny.json"
    raw = json.loads(record.read_text())
    del raw["sha256"]
    edit(raw["checks"])
    record.write_text(sealed(raw))
    (found,) = verify(out)
    return str(found)


def test_a_cross_check_is_computed_again(tiny: Path) -> None:
    """The predictions of tiny/two, which is no target, are in the cache alone."""
    run(tiny, "--profile", "paper")
    out = tiny.parent / "out"
    assert verified(out).endswith("; predictions of 1 line of the cross-check are not here")
    page = cli("report", "--out", out)
    assert page.exit_code == 0
    text = (out / "report" / "index.html").read_text()
    assert "1 of these are what the run recorded" in text
    assert text.count("(as recorded)") == 1
    first, second = json.loads((out / "runs" / "tiny.json").read_text())["checks"]
    for edit, says in (
        (lambda checks: checks[0].update(passed=True), f"FAIL  tiny: its cross-check says '{first['text']}'"),
        (lambda checks: checks[0].update(passed=False, text=first["text"].replace("100.0", "0.0")), "its cells give"),
        (lambda checks: checks[0].update(first), "pass  tiny"),
        (lambda checks: checks[1].update(text="tiny/two: 99.9 % of 50,000 images, published 99.9 %"), "its cells give"),
        (lambda checks: checks[1].update(text=second["text"].replace("published 0.0", "published 1.0")), "cells give"),
        (lambda checks: checks[1].update(second), "pass  tiny"),
        (lambda checks: checks.pop(), "its cross-check has 1 lines, 2 by its models and attacks"),
    ):
        assert says in verified(out, edit), says


def test_a_cross_check_of_another_run_is_made_up(tiny: Path) -> None:
    run(tiny, "--profile", "embedded")
    out = tiny.parent / "out"
    assert verified(out).startswith("pass")
    said = verified(out, lambda checks: checks.append({"passed": True, "text": "tiny/one: 99.9 %, published 99.9 %"}))
    assert "its cross-check has 1 lines, 0 by its models and attacks" in said


def test_accuracies_of_cards_are_computed_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table of built-in models, not by what the record says of a model."""
    row = {"dataset": "tiny/noise", "n": 12, "percent": 100.0}
    known = {"tiny/one": {"accuracy": [row, {**row, "dataset": "other"}]}}
    monkeypatch.setattr(crosscheck, "built_in_models", lambda: known)
    run(tiny, "--profile", "paper", "--attack", "tiny/sleepy")
    line = {"passed": True, "text": "accuracy of tiny/one: 100.0 % of 12 images, published 100.0 %"}
    out = tiny.parent / "out"
    assert verified(out, lambda checks: checks.append(line)).startswith("pass")
    assert "its cells give" in verified(out, lambda checks: checks[0].update(text=line["text"].replace("12", "1000")))


def test_accuracies_of_cards_are_checked_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.models.zoo import PluginModelRef

    row = KnownAccuracy("tiny/noise", n=12, percent=100.0)
    card = replace(cards()["inc-v3"], accuracy=(row, replace(row, dataset="another", percent=1.0)))
    monkeypatch.setattr(PluginModelRef, "card", property(lambda self: replace(card, name=self.name)))
    shown, _ = run(tiny, "--profile", "paper", "--attack", "tiny/sleepy")
    assert shown.splitlines()[2] == "pass accuracy of tiny/one: 100.0 % of 12 images, published 100.0 %"
    assert shown.splitlines()[3].startswith("FAIL accuracy of tiny/two")
    assert shown.splitlines()[4] == ""


def test_the_file_says_where_its_numbers_are_from() -> None:
    text = (ROOT / "data" / "crosscheck.toml").read_text()
    assert "ylhz/tf_to_pytorch_model" in text
    assert set(tomllib.loads(text)) == {"source", "eps", "slack", "rates", "accuracy"}
