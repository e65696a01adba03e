"""Run records are written and read by one schema."""

import json
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.errors import UsageError
from rdp_bench.results.record import FORMAT, CellResult, read_run, write_record, write_run
from rdp_bench.specs import CellKey
from tests.helpers.report_fixture import make_run

CELL = CellResult("a", "fgsm", 16.0, "t", "jpeg", "done", eval_key="e1", seconds=1.5)


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    """A record that fits, without its cells."""
    record = make_run(tmp_path, Store(tmp_path / "store"), lambda _: (), attacks=["fgsm"], defenses=["none"])
    return {name: value for name, value in record.items() if name != "cells"}


def test_what_is_written_is_read(tmp_path: Path, written: dict[str, Any]) -> None:
    path = tmp_path / f"{written['grid']}.json"
    failed = CellResult("-", "clean", 0.0, "t", "none", "failed", reason="out of memory")
    write_run(path, written, [CELL, failed])
    found = read_run(path)
    assert found.cells == [CELL, failed]
    assert found.header == written
    assert found.cells[0].key == CellKey("a", "fgsm", 16.0, "t", "jpeg")


def test_a_cell_result_is_not_a_key() -> None:
    """It would be found in no dictionary of keys: `key` is."""
    assert CELL.key != CELL
    assert {CELL.key: 1}.get(CELL) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cells": [{"source": "a"}]}, r"the field '\w+' of 'cells\[0\]' is missing"),
        ({"warnings": "none"}, "'warnings' is a list, found 'none'"),
        ({"seed": "0"}, "'seed' is a whole number, found '0'"),
        ({"dataset": {"name": "x", "n": 1.5, "size": 8, "images": ""}}, "'dataset.n' is a whole number, found 1.5"),
        ({"sead": 0}, "unknown field 'sead' of run record. Did you mean 'seed'?"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(
    tmp_path: Path, written: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "mine.json"
    write_record(path, {**written, "cells": [], **change})
    with pytest.raises(UsageError, match=rf"mine\.json is not a run record \(.*{says}") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


def test_a_state_that_no_cell_has_is_refused(tmp_path: Path, written: dict[str, Any]) -> None:
    path = tmp_path / "mine.json"
    write_run(path, written, [CELL])
    content = json.loads(path.read_text())
    del content["sha256"]
    content["cells"][0]["status"] = "fine"
    write_record(path, content)
    with pytest.raises(UsageError, match=r"'cells\[0\]\.status' .*'fine'"):
        read_run(path)


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path, written: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the record of run table1: 'seconds' is a number, found 'many'"):
        write_run(tmp_path / "mine.json", {**written, "seconds": "many"}, [])
    assert not (tmp_path / "mine.json").exists()


def test_another_format_is_refused(tmp_path: Path, written: dict[str, Any]) -> None:
    write_record(tmp_path / "mine.json", {**written, "format": FORMAT + 1, "cells": []})
    with pytest.raises(UsageError, match=f"format {FORMAT + 1}, this version reads {FORMAT}; run the grid again"):
        read_run(tmp_path / "mine.json")
