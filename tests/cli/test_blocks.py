"""The table in the terminal, as it is completed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rdp_bench.cli.blocks import Blocks
from rdp_bench.specs import CellKey
from tests.helpers import plans


@pytest.fixture
def running(tmp_path: Path) -> Any:
    plan = plans.plan(tmp_path, sources=("tiny/one", "tiny/two"), attacks=("fgsm", "i-fgsm"), defenses=("none", "jpeg"))
    cells = list(plan.grid.cells())
    return SimpleNamespace(
        plan=plan,
        record={},
        cells={cell: SimpleNamespace(status="pending") for cell in cells},
        rows={cell: {"value": "", "status": "pending"} for cell in cells},
    )


def finish(running: Any, source: str, status: str = "done") -> None:
    for number, cell in enumerate(each for each in running.cells if each.source == source):
        running.cells[cell].status = status
        running.rows[cell] = {"value": str(10.0 * number) if status == "done" else "", "status": status}


CLEAN = CellKey.clean("t", "d").source


def test_a_block_is_printed_when_its_last_cell_is_there(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = Blocks(running.plan)
    blocks(running)
    assert capsys.readouterr().out == ""
    finish(running, CLEAN)
    blocks(running)
    assert capsys.readouterr().out == ("\naccuracy % of tiny/two on clean images\nnone        0.0\njpeg       10.0\n")
    finish(running, "tiny/two")
    blocks(running)
    assert capsys.readouterr().out == ""  # its turn comes after that of tiny/one
    finish(running, "tiny/one", "failed")
    blocks(running)
    assert capsys.readouterr().out == (
        "\nerror % of tiny/two, crafted on tiny/one, eps 8\n           fgsm     i-fgsm\n"
        "none     failed     failed\njpeg     failed     failed\n"
        "\nerror % of tiny/two, crafted on tiny/two, eps 8\n           fgsm     i-fgsm\n"
        "none        0.0       20.0\njpeg       10.0       30.0\n"
    )
    blocks.finish(running)
    assert capsys.readouterr().out == ""


def test_an_interrupted_run_prints_what_it_has(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = Blocks(running.plan)
    finish(running, CLEAN)
    blocks.finish(running)
    shown = capsys.readouterr().out
    assert shown.index("accuracy %") < shown.index("crafted on tiny/one") < shown.index("crafted on tiny/two")
    assert shown.count("pending") == 8


def test_given_names_are_printed(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    running.record["names"] = {"jpeg": "Mine, at last", "i-fgsm": "Ten steps"}
    finish(running, "tiny/one")
    Blocks(running.plan).finish(running)
    shown = capsys.readouterr().out
    assert "                    fgsm  Ten steps\nnone                 0.0       20.0\n" in shown
    assert "\nMine, at last       10.0       30.0\n" in shown


def test_wide_letters_take_two_columns(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    running.record["names"] = {"jpeg": "净化", "i-fgsm": "十步十步十步"}
    finish(running, "tiny/one")
    Blocks(running.plan).finish(running)
    shown = capsys.readouterr().out
    assert "           fgsm 十步十步十步\nnone        0.0         20.0\n净化       10.0         30.0\n" in shown
