"""Two runs of one plan at the same time: neither loses what the other finished."""

import csv
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine import worker
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.run import Run
from tests.helpers.plans import new_process, plan


@pytest.fixture
def made(tmp_path: Path) -> Any:
    with new_process():
        yield plan(tmp_path, defenses=("none", "tiny/round"))


def finish(made: Plan, out: Path) -> None:
    """What another process does: everything."""
    other = Run(made, out, "other")
    other.execute(other.start(), worker.Worker(made, batch=2))


def statuses(out: Path) -> set[str]:
    with (out / "results.csv").open() as file:
        return {row["status"] for row in csv.DictReader(file)}


def test_cells_that_another_run_finishes_while_this_one_starts_are_read(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was empty when it was read and complete when the jobs were listed: the cells stayed pending."""
    real, calls = Run.refresh, []

    def refresh(run: Run, cells: Any) -> None:
        real(run, cells)
        calls.append(run)
        if len(calls) == 1:
            finish(made, tmp_path / "other")

    monkeypatch.setattr(Run, "refresh", refresh)
    running = Run(made, tmp_path / "out", "this")
    assert running.start() == []
    assert {cell.status for cell in running.cells.values()} == {"done"}
    assert statuses(tmp_path / "out") == {"done"}


def test_a_batch_that_another_run_made_meanwhile_is_not_made_again(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Run(made, tmp_path / "out", "this")
    jobs = running.start()
    crafted: list[tuple[int, int]] = []
    real = worker.Worker._retry_smaller_batches

    def spy(self: worker.Worker, make: Any, low: int, high: int) -> Any:
        crafted.append((low, high))
        if len(crafted) == 1:
            monkeypatch.setattr(worker.Worker, "_retry_smaller_batches", real)
            finish(made, tmp_path / "other")
            monkeypatch.setattr(worker.Worker, "_retry_smaller_batches", spy)
        return real(self, make, low, high)

    monkeypatch.setattr(worker.Worker, "_retry_smaller_batches", spy)
    running.execute(jobs, worker.Worker(made, batch=2))
    assert statuses(tmp_path / "out") == {"done"}
    assert crafted == [(0, 2)]
