"""`verify` computes cards of audits again: an edited number, status or verdict is found in spite of its checksum."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.audits.parts import BUDGETS
from rdp_bench.audits.verify import problems_of_cards
from rdp_bench.reports import published
from rdp_bench.results.record import sealed
from tests.helpers import audits
from tests.helpers.commands import cli

FLAGS = ("--target", "fault/one", "--source", "fault/two", "--dataset", "fault/photos", "--plugin", audits.FAULTS)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BUDGETS, "quick", audits.TOY)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The results folder of one audit."""
    made = tmp_path / "out"
    done = cli("audit", "honest/average", *FLAGS, "--limit", "4", "--out", made)
    assert done.exit_code == 0, done.output
    return made


def card(out: Path) -> Path:
    (path,) = (out / "audit").glob("*.json")
    return path


def edit(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a card, and give it a checksum that fits."""
    record = json.loads(card(out).read_text())
    del record["sha256"]
    change(record)
    card(out).write_text(sealed(record))


def tier(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in record["tiers"] if each["name"] == name)
    return found


def test_a_card_as_it_was_written_passes(out: Path) -> None:
    found = cli("verify", out)
    assert found.exit_code == 0, found.output
    (line,) = [each for each in found.output.splitlines() if each.startswith("pass  card ")]
    assert "tiers and checks follow from predictions" in line
    assert "1 of 1 cards of audits pass" in found.output


def test_a_deleted_card_is_missed(out: Path) -> None:
    """An audit that was stopped looks the same, so `verify` notes it; a published folder must not have it."""
    name = card(out).stem
    card(out).unlink()
    found = cli("verify", out)
    assert found.exit_code == 0, found.output
    (note,) = [line for line in found.output.splitlines() if line.startswith("note  ")]
    assert f"audit-{name}: runs of an audit without its card" in note
    assert any("without its card" in problem for problem in published.read_folder(out, problems_of_cards).problems)


def test_published_audits_are_one_line_of_their_worst_attackers(out: Path) -> None:
    """Not one line for each part; a second defense, of which more is left, is the best."""
    assert cli("audit", "none", *FLAGS, "--limit", "4", "--out", out).exit_code == 0
    found = published.read_folder(out, problems_of_cards)
    assert not found.problems
    assert found.runs == []
    (line,) = found.lines
    (path,) = (out / "audit").glob("honest-average*.json")
    record = json.loads(path.read_text())
    lowest = min(each["accuracy"] for each in record["tiers"] if each["name"] != "clean")
    assert (line["grid"], line["defenses"], line["best"]) == ("audit", 1, "honest/average")
    assert (line["mean_error"], line["attackers"]) == (pytest.approx(100 - lowest), "worst of the audit (quick)")
    assert "report --compare" in cli("results", out).output


def raise_accuracy(record: dict[str, Any]) -> None:
    tier(record, "white-box")["accuracy"] += 25.0


def drop_tier(record: dict[str, Any]) -> None:
    record["tiers"] = [each for each in record["tiers"] if each["name"] != "black-box"]


def pass_check(record: dict[str, Any]) -> None:
    check = next(each for each in record["findings"] if each["id"] == "C12")
    assert check["status"] == "WARN"
    check["status"] = "PASS"


def drop_check(record: dict[str, Any]) -> None:
    record["findings"] = [each for each in record["findings"] if each["id"] != "C12"]


def say_robust(record: dict[str, Any]) -> None:
    record["verdict"] = "honest/average is robust."


def drop_probe_check(record: dict[str, Any]) -> None:
    record["findings"] = [each for each in record["findings"] if each["id"] != "C3.a"]


def repeat_check(record: dict[str, Any]) -> None:
    record["findings"].append(record["findings"][0])


def more_images(record: dict[str, Any]) -> None:
    record["n"] = 500


def other_run(record: dict[str, Any]) -> None:
    record["runs"] = [*record["runs"], "another-run"]


def drop_run(record: dict[str, Any]) -> None:
    """The attack at the doubled budget."""
    record["runs"] = [name for name in record["runs"] if not name.endswith("-doubled")]


def drop_attack(record: dict[str, Any]) -> None:
    record["attacks"] = [each for each in record["attacks"] if each["label"] != "fgsm"]


def of_attack(label: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Another statement on an attack of the card."""

    def change(record: dict[str, Any]) -> None:
        attack = next(each for each in record["attacks"] if each["label"] == label)
        attack.update(values)

    return change


def more_steps(record: dict[str, Any]) -> None:
    attack = next(each for each in record["attacks"] if each["params"].get("steps"))
    attack["params"]["steps"] = 10_000


def repeat_attack(record: dict[str, Any]) -> None:
    record["attacks"].append(record["attacks"][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_steps, "the parameters of its attack "),
        (of_attack("fgsm", params={}), "the parameters of its attack fgsm at eps 4 are {}, in its runs {'norm': "),
        (
            of_attack("fgsm", parts=["white-box"]),
            "the parts of its attack fgsm at eps 4 are {'white-box'}, in its runs",
        ),
        (
            of_attack("fgsm", sources=["fault/one"]),
            "the sources of its attack fgsm at eps 4 are {'fault/one'}, in its ",
        ),
        (repeat_attack, "it lists 8 attacks, and its runs have 7, or others"),
        (lambda record: record.update(random=True), "is of a deterministic defense, and the card says that it is not"),
        (
            lambda record: record.update(names={"fault/one": "Ours"}),
            "its runs and it do not call fault/one the same",
        ),
        (drop_attack, "it lists 6 attacks, and its runs have 7, or others"),
        (raise_accuracy, "tier white-box: accuracy is "),
        (drop_tier, "tier black-box is missing"),
        (pass_check, "check C12 is PASS ("),
        (drop_check, "its checks are C1, C10, C11, C13.a,"),
        (say_robust, 'its verdict is "honest/average is robust."'),
        (drop_probe_check, "its checks are C1, C10, C11, C12, C13.a, C13.b, C2, C3.b,"),
        (repeat_check, "its checks are C1, C1, "),
        (more_images, "it says 500 images, and the predictions are of 4"),
        (drop_run, "it leaves out the run audit-honest-average-"),
        (other_run, "it reads the run another-run, which this folder lacks"),
    ],
)
def test_an_edited_card_fails(out: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    edit(out, change)
    found = cli("verify", out)
    assert found.exit_code == 1
    assert said in found.output
    assert "0 of 1 cards of audits pass" in found.output


def test_a_card_without_a_part_fails_although_its_folder_agrees(out: Path) -> None:
    """Whoever removes the part with the failing check removes the check as well."""
    (run,) = (out / "runs").glob("*-eps.json")
    name = run.stem
    for path in (run, *(out / "predictions").glob(f"{name}.*")):
        path.unlink()
    lines = (out / "results.csv").read_text().splitlines(keepends=True)
    (out / "results.csv").write_text("".join(line for line in lines if not line.startswith(f"{name},")))

    def without(record: dict[str, Any]) -> None:
        record["runs"] = [each for each in record["runs"] if each != name]

    edit(out, without)
    found = cli("verify", out)
    assert found.exit_code == 1
    assert "it has no part eps, and every audit has one: audit again" in found.output


def test_a_cell_without_a_number_is_named(tmp_path: Path) -> None:
    made = tmp_path / "out"
    assert cli("audit", "fault/root", *FLAGS, "--limit", "4", "--out", made).exit_code == 1
    record = json.loads(card(made).read_text())
    assert any("NaN" in each for each in record["failed"])
    edit(made, lambda record: record.update(failed=[]))
    found = cli("verify", made)
    assert found.exit_code == 1
    assert "it does not say that a cell has no number: " in found.output


def test_a_folder_with_an_edited_card_is_not_listed_as_verified(out: Path) -> None:
    """Nor one whose cards nobody computes again."""
    fine = cli("results", out)
    assert fine.exit_code == 0, fine.output
    edit(out, raise_accuracy)
    found = cli("results", out)
    assert found.exit_code == 1
    assert "is not verified: card honest-average-" in found.output
    (problem,) = published.read_folder(out).problems
    assert "it was not computed again" in problem
