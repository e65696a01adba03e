"""A record that was edited and sealed again: what the keys of its predictions contradict is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.results.lines import every_row
from rdp_bench.results.record import sealed
from rdp_bench.results.rows import load_run, write_results
from rdp_bench.results.verify import verify
from tests.helpers.paths import ROOT

Record = dict[str, Any]


def cells(record: Record, **values: Any) -> list[Record]:
    return [cell for cell in record["cells"] if all(cell[name] == value for name, value in values.items())]


def clean_for_attacked(record: Record) -> None:
    """RDP's error under FGSM becomes its error on clean images."""
    for cell in cells(record, attack="fgsm", defense="rdp"):
        (clean,) = cells(record, attack="clean", defense="rdp", target=cell["target"])
        cell |= {"adv_key": None, "eval_key": clean["eval_key"]}


def a_weaker_attack(record: Record) -> None:
    """RDP under SINI-TIDIM has the numbers that it has under FGSM."""
    for cell in cells(record, attack="sini-tidim", defense="rdp"):
        (other,) = cells(record, attack="fgsm", defense="rdp", target=cell["target"])
        cell |= {"adv_key": other["adv_key"], "eval_key": other["eval_key"], "seconds": other["seconds"]}


def swapped_labels(record: Record) -> None:
    names = {"fgsm": "sini-tidim", "sini-tidim": "fgsm"}
    for cell in record["cells"]:
        cell["attack"] = names.get(cell["attack"], cell["attack"])


def more_steps(record: Record) -> None:
    record["attacks"]["mi-fgsm"]["resolved"]["16"]["steps"] = 1000


def no_baseline(record: Record) -> None:
    kept = [cell for cell in record["cells"] if cell["defense"] != "none" or cell["attack"] == "clean"]
    record["cells"] = kept


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (clean_for_attacked, "whether it has one"),
        (a_weaker_attack, "its cells are of 2 adversarial sets"),
        (swapped_labels, "of the attack"),
        (more_steps, "steps of the attack 10, recorded 1000"),
        (no_baseline, "the predictions of 10 cells are there, and the record has no such cells"),
    ],
)
def test_an_edited_record_contradicts_its_predictions(
    edit: Callable[[Record], None], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ROOT / "docs" / "results" / "runs" / "photos20-table1", out)
    path = out / "runs" / "table1.json"
    assert [each.problems for each in verify(out)] == [()]
    record = json.loads(path.read_text())
    edit(record)
    del record["sha256"]
    path.write_text(sealed(record))
    run = load_run(path, None)
    if not run.unread:
        (out / "results.csv").unlink()
        write_results(out, every_row(run))
    (found,) = verify(out)
    assert any(says in problem for problem in found.problems), found.problems[:3]
