"""Claims and signs of life."""

from pathlib import Path

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.engine.executors import board as boards
from rdp_bench.engine.executors.board import Board, Heart
from rdp_bench.engine.jobs import CraftJob
from rdp_bench.engine.tasks import Part, Task

TASK = Task(0, "ab" * 32, 0, 4)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(Store(tmp_path), "12" * 32)


def test_one_worker_gets_a_task(board: Board) -> None:
    board.beat("one", {})
    board.beat("two", {})
    assert board.claim(TASK, "one")
    assert not board.claim(TASK, "two")
    assert board.claim(TASK, "one")  # again, after a requeue
    board.release(TASK)
    assert board.claim(TASK, "two")


def test_a_task_of_a_silent_worker_is_taken_over(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.beat("one", {})
    assert board.claim(TASK, "one")
    now = boards.time.time()
    monkeypatch.setattr(boards.time, "time", lambda: now + boards.EXPIRES + 1)
    board.beat("two", {})
    assert list(board.workers()) == ["two"]
    assert board.claim(TASK, "two")
    assert not board.claim(TASK, "one")


def test_a_claim_that_was_half_written_counts_as_none(board: Board) -> None:
    path = board.folder / "claims" / f"{TASK.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert board.claim(TASK, "two")


def test_a_worker_says_what_it_does_and_leaves(board: Board) -> None:
    heart = Heart(board, "one")
    job = CraftJob(TASK.key, {}, "net", "fgsm", 8.0)
    with heart.beating():
        heart.doing(job, TASK)
        assert board.workers()["one"]["job"] == "fgsm on net"
    assert board.workers() == {}


def test_a_failure_is_noted_until_the_task_succeeds(board: Board) -> None:
    part = Part(TASK, CraftJob(TASK.key, {}, "net", "fgsm", 8.0))
    board.ended(part, "one", "broken", ("a remark",))
    assert board.failures()[0]["reason"] == "broken"
    assert board.failed_tasks() == {TASK.name}
    board.ended(part, "two", "", ())
    assert board.failures() == {}
    assert board.remarks() == ["a remark"]


def test_notes_of_long_ago_are_deleted(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.keep("run.json", {"time": boards.time.time() - boards.KEPT - 1, "jobs": {}})
    board.refuse("one", "no torch")
    boards.sweep(board.store)
    assert not board.folder.exists()
    board.keep("run.json", {"time": boards.time.time() - boards.KEPT + 60, "jobs": {}})
    boards.sweep(board.store)
    assert board.about()
