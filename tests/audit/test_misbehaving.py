"""Defenses that fail, run out of memory or stop the process during an audit; requests that no audit can fulfil."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.audits.parts import BUDGETS
from tests.helpers import audits
from tests.helpers.commands import PLUGIN, cli

SMALL = replace(
    audits.TOY, gradient=("apgd-ce(steps=3)",), doubled=("apgd-ce(steps=6)",), black_box=("square(queries=9)",)
)
FLAGS = (
    "--target", "fault/one", "--source", "fault/two", "--dataset", "fault/photos", "--limit", "6",
    "--plugin", audits.FAULTS, "--plugin", PLUGIN.parent / "misbehaving.py",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))


def card(out: Path) -> dict[str, Any]:
    """The only card, without what differs between two commands."""
    (path,) = (out / "audit").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name not in ("cost", "command", "sha256")}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "ValueError: no such thing"),
        ("nan", "returned NaN"),
        ("size", "returned shape"),
        ("range", "left the range [0, 1]"),
    ],
)
def test_a_defense_that_fails_on_clean_images_ends_its_audit_with_its_name_and_the_step(
    how: str, why: str, tmp_path: Path
) -> None:
    found = cli("audit", f"bad/call(how={how})", *FLAGS, "--out", tmp_path / "out")
    (line,) = [line for line in found.output.splitlines() if line.startswith("error: ")]
    assert found.exit_code == 1
    assert line.startswith(
        f"error: audit of bad/call(how={how}) before fault/one: it fails on clean images (part transfer)"
    )
    assert why in line
    assert not (tmp_path / "out" / "audit").exists()


@pytest.mark.parametrize(("how", "why"), [("raise", "ValueError: no such thing"), ("nan", "NaN"), ("size", "shape")])
def test_a_defense_that_fails_under_attack_has_a_card_that_names_the_step(how: str, why: str, tmp_path: Path) -> None:
    label = f"bad/call(how={how}, attacked=true)"
    found = cli("audit", label, *FLAGS, "--out", tmp_path / "out")
    assert found.exit_code == 1
    made = card(tmp_path / "out")
    names = {tier["name"] for tier in made["tiers"]}
    assert names >= {"clean", "transfer", "black-box"}
    assert "white-box" not in names
    (white,) = [reason for reason in made["failed"] if reason.startswith("white-box: ")]
    assert "apgd-ce(steps=3) by white-box(8): " in white
    assert why in white
    assert f"failed: {white}" in found.output
    assert {each["id"]: each["status"] for each in made["findings"]}["C4.a"] == "FAIL"


def test_one_bad_defense_does_not_cost_the_others_their_cards(tmp_path: Path) -> None:
    found = cli("audit", "bad/call, honest/average", *FLAGS, "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "[1/2] not audited: audit of bad/call before fault/one: it fails on clean images" in found.output
    assert card(tmp_path / "out")["defense"] == "honest/average"
    assert "1 of 2 audits are complete" in found.output


def test_memory_that_runs_out_halves_the_batch_and_changes_no_number(tmp_path: Path) -> None:
    for label, out in (("bad/memory(most=2)", "small"), ("bad/memory(most=100)", "large")):
        found = cli("audit", label, *FLAGS, "--out", tmp_path / out, "--cache", tmp_path / f"cache-{out}")
        assert found.exit_code == 0, found.output
    small, large = card(tmp_path / "small"), card(tmp_path / "large")
    assert small["tiers"] == large["tiers"]
    assert {each["id"]: each["status"] for each in small["findings"]} == {
        each["id"]: each["status"] for each in large["findings"]
    }
    probed = {each["id"]: each["evidence"] for each in small["findings"]}
    assert "of 1 right images" in probed["C3.c"]  # six images, three, one: two in a batch would do


def test_a_stopped_audit_goes_on_where_it_was(tmp_path: Path) -> None:
    mine = f"bad/stop(file={tmp_path / 'stop'})"
    whole = cli("audit", mine, *FLAGS, "--out", tmp_path / "whole", "--cache", tmp_path / "other")
    assert whole.exit_code == 0, whole.output
    (tmp_path / "stop").touch()
    stopped = cli("audit", mine, *FLAGS, "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert "the same command continues from there" in stopped.output
    assert not (tmp_path / "out" / "audit").exists()
    left = cli("audit", mine, *FLAGS, "--out", tmp_path / "out", "--dry-run").output
    (transfer,) = [line for line in left.splitlines() if "-transfer " in line]
    (white,) = [line for line in left.splitlines() if "-white-box " in line]
    assert "0 sets and 0 evaluations to run" in transfer
    assert "1 sets and 1 evaluations to run" in white  # that without the defense was done
    again = cli("audit", mine, *FLAGS, "--out", tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert card(tmp_path / "out") == card(tmp_path / "whole")


def test_an_attack_that_cannot_be_run_says_so_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DLR loss needs three classes; the part that uses it is not the first."""
    plugin = tmp_path / "two.py"
    plugin.write_text(
        "from rdp_bench import dataset, model\nimport numpy as np\n\n\n"
        "class Net:\n    classes = 2\n\n    def __init__(self, name):\n        self.name = name\n\n"
        "    def __call__(self, x, zoom=1.0):\n        return x.mean((2, 3))[:, :2]\n\n"
        "    def record(self):\n        return {}\n\n\n"
        "@model('two/net', source='made up')\ndef net():\n    return Net('two/net')\n\n\n"
        "@model('two/other', source='made up')\ndef other():\n    return Net('two/other')\n\n\n"
        "class Two:\n    name, size, ids, labels, classes = 'two/photos', 16, ('a', 'b'), (0, 1), 2\n\n"
        "    def image(self, index):\n        return np.full((3, 16, 16), 90 * index, np.uint8)\n\n\n"
        "@dataset('two/photos', source='made up')\ndef photos():\n    'Two images of two classes.'\n    return Two()\n"
    )
    monkeypatch.setitem(BUDGETS, "quick", replace(SMALL, gradient=("apgd-dlr(steps=3)",)))
    found = cli(
        "audit", "honest/average", "--plugin", audits.FAULTS, "--plugin", plugin, "--dataset", "two/photos",
        "--target", "two/net", "--source", "two/other", "--out", tmp_path / "out",
    )  # fmt: skip
    assert found.exit_code == 2
    assert "attack 'apgd-dlr(steps=3)'" in found.output
    assert not (tmp_path / "out").exists()
