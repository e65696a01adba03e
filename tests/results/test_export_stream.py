"""Exported predictions are written as they come: few rows are in memory, and a failure leaves the old file."""

import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import csvtext
from rdp_bench.errors import StorageError
from rdp_bench.results import export

ROW = {"grid": "g", "dataset": "d", "source": "s", "attack": "=a", "eps": 8.0, "defense": "none", "target": "t",
       "index": 0, "id": "é, \"1\"",
       "label": 3, "predicted": 4, "margin": 0.5, "correct": 0, "draw": 0, "norm": "linf"}  # fmt: skip


def rows(count: int) -> Iterator[dict[str, Any]]:
    for index in range(count):
        yield {**ROW, "index": index, "id": f"{ROW['id']} {index}"}


@pytest.mark.parametrize("count", [0, 1, 25])
def test_parts_are_the_text_of_the_whole(count: int) -> None:
    assert "".join(csvtext.chunks(export.COLUMNS, rows(count), 10)) == csvtext.records(export.COLUMNS, rows(count))


@pytest.mark.parametrize("parquet", [False, True])
def test_memory_does_not_grow_with_rows(parquet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_predictions", lambda run, _: rows(run))
    monkeypatch.setattr(export, "ROW_GROUP", 1000)

    def peak(count: int) -> int:
        tracemalloc.start()
        runs: Any = [type("Run", (int,), {"grid": "g"})(count)]
        assert export._write_predictions(tmp_path, runs, {}, parquet) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # imports
    assert peak(30_000) < 3 * peak(10_000) / 2


def test_parquet_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import read_table

    monkeypatch.setattr(export, "ROW_GROUP", 2)
    file = BytesIO()
    export._write_parquet(rows(5), file)
    assert read_table(BytesIO(file.getvalue())).to_pylist() == list(rows(5))


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any, _: object) -> Iterator[dict[str, Any]]:
        yield from rows(2)
        raise StorageError("gone")

    (tmp_path / "predictions.csv").write_text("old")
    monkeypatch.setattr(export, "_predictions", broken)
    with pytest.raises(StorageError, match="gone"):
        export._write_predictions(tmp_path, [type("Run", (), {"grid": "g"})()], {}, False)  # type: ignore[list-item]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    assert (tmp_path / "predictions.csv").read_text() == "old"
