"""Reading and writing beside the computation: nothing finished is lost, errors arrive, no thread stays."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdp_bench.cache.artefact import Artefact
from rdp_bench.engine.overlap import WAITING, Reader, Writer
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.schedule import run_here
from rdp_bench.engine.tasks import numbered
from rdp_bench.engine.worker import Worker
from rdp_bench.errors import RdpBenchError, StorageError
from tests.helpers.plans import new_process, plan

SIZE = 16  # of the networks in tests/plugin/tiny.py
PATIENCE = 60.0  # seconds until a test that would wait for ever fails


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Plan]:
    with new_process():
        yield plan(tmp_path, attacks=("tiny/sleepy",), defenses=("none", "tiny/round"), limit=8)


def left() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(("writer", "reader"))]


# --- alone ---


def test_the_caller_goes_on_while_a_batch_is_written() -> None:
    gate = threading.Event()
    stored: list[int] = []

    def write() -> None:
        assert gate.wait(PATIENCE)

    with Writer(stored.append) as writer:
        for images in range(1, WAITING + 1):
            writer.put(write, images)
        assert stored == []
        gate.set()
        writer.flush()
        assert stored == [*range(1, WAITING + 1)]
    assert left() == []


def test_who_computes_faster_waits() -> None:
    gate, full, told = threading.Event(), threading.Event(), []

    def write() -> None:
        assert gate.wait(PATIENCE)

    def compute() -> None:
        with Writer(lambda _: None) as writer:
            for number in range(1, WAITING + 3):
                writer.put(write, 1)
                told.append(number)
                if number == WAITING:
                    full.set()

    thread = threading.Thread(target=compute)
    thread.start()
    assert full.wait(PATIENCE)
    thread.join(0.05)  # one that did not wait would go on now
    told.append(0)  # the gate opens
    gate.set()
    thread.join(PATIENCE)
    assert told == [*range(1, WAITING + 1), 0, WAITING + 1, WAITING + 2]


def test_what_writing_raises_arrives() -> None:
    gate = threading.Event()
    done: list[int] = []
    written: list[int] = []

    def fail() -> None:
        assert gate.wait(PATIENCE)
        raise StorageError("disk full")

    def both() -> None:
        with Writer(done.append) as writer:
            writer.put(fail, 1)
            writer.put(partial(written.append, 2), 2)
            gate.set()
            writer.flush()

    def at_the_end() -> None:
        with Writer(done.append) as writer:
            writer.put(fail, 1)

    for block in (both, at_the_end):
        with pytest.raises(StorageError, match="disk full"):
            block()
    assert written == [2]  # the other batch is kept
    assert done == []
    assert left() == []


def test_an_interrupted_block_writes_what_was_handed_over(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    written: list[int] = []
    stored: list[int] = []

    def write(number: int) -> None:
        assert gate.wait(PATIENCE)
        if number == 0:
            raise OSError("no space")
        written.append(number)

    def interrupted() -> None:
        with Writer(stored.append) as writer:
            for number in range(WAITING):
                writer.put(partial(write, number), number)
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written == [*range(1, WAITING)]
    assert stored == []
    assert "a finished batch is not stored: no space" in caplog.text
    assert left() == []


def test_rows_are_read_before_they_are_asked_for() -> None:
    where: dict[tuple[int, int], str] = {}
    begun = threading.Event()

    def read(low: int, high: int) -> str:
        where[low, high] = threading.current_thread().name
        if low == 2:
            begun.set()
        if low == 8 and where[low, high].startswith("reader"):
            raise ValueError("damaged")
        return f"{low}-{high}"

    with Reader(read, read) as reader:
        assert reader.get(0, 2, (2, 4)) == "0-2"
        assert begun.wait(PATIENCE)  # nobody has asked yet
        assert reader.get(2, 4, (4, 6)) == "2-4"
        assert reader.get(5, 6, (6, 8)) == "5-6"  # other rows than expected
        assert reader.get(6, 8, (8, 9)) == "6-8"
        assert reader.get(8, 9, (9, 9)) == "8-9"  # again, where it can be repaired
    caller = threading.current_thread().name
    assert {rows for rows, name in where.items() if name == caller} == {(0, 2), (5, 6), (8, 9)}
    assert left() == []


# --- in a run ---


def stored(made: Plan) -> dict[str, dict[str, Any]]:
    artefacts: dict[str, dict[str, Any]] = {}
    for job in numbered(made):
        for record in job.records:
            artefact = made.artefact(record)
            artefacts[artefact.key] = artefact.read()
    return artefacts


def test_what_is_reported_is_stored(made: Plan) -> None:
    """A kill at any moment loses nothing that was counted as done."""
    counted: dict[int, int] = {}

    def report(job: Any, images: int) -> None:
        counted[id(job)] = counted.get(id(job), 0) + images
        for record in job.records:
            artefact = made.artefact(record)
            if artefact.n == made.n:
                assert sum(b - a for a, b in artefact.missing(2)) <= made.n - counted[id(job)]

    worker = Worker(made, batch=2, report=report)
    ends = list(run_here(numbered(made), worker))
    assert [end.reason for end in ends] == [""] * len(ends)
    assert set(counted.values()) <= {made.n, 0}
    assert made.n in counted.values()
    assert left() == []


@pytest.mark.parametrize("kind", ["adv", "eval"])
def test_an_error_in_the_writer_fails_the_job_with_its_reason(
    made: Plan, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write = Artefact.write

    def broken(self: Artefact, low: int, high: int, arrays: Any) -> None:
        if self.kind == kind and low == 2:
            raise RdpBenchError("these rows are cursed")
        write(self, low, high, arrays)

    monkeypatch.setattr(Artefact, "write", broken)
    jobs = numbered(made)
    reasons = {str(end.job): end.reason for end in run_here(jobs, Worker(made, batch=2))}
    failed = [reason for reason in reasons.values() if reason]
    assert failed
    assert all("these rows are cursed" in reason for reason in failed)
    monkeypatch.setattr(Artefact, "write", write)
    assert not any(end.reason for end in run_here(jobs, Worker(made, batch=2)))


def test_a_full_disk_ends_the_run(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(Artefact, "write", broken)
    with pytest.raises(StorageError, match="no space left"):
        list(run_here(numbered(made), Worker(made, batch=2)))
    assert left() == []


def test_ctrl_c_keeps_every_finished_batch(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, calls = threading.Event(), []
    write = Artefact.write

    def late(self: Artefact, low: int, high: int, arrays: Any) -> None:
        assert gate.wait(PATIENCE)
        write(self, low, high, arrays)

    def interrupted(self: Any, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == WAITING + 1:
            gate.set()
            raise KeyboardInterrupt
        return attack(self, *arguments)

    attack = made.attacks["tiny/sleepy"].value.__class__.__call__
    monkeypatch.setattr(made.attacks["tiny/sleepy"].value.__class__, "__call__", interrupted)
    monkeypatch.setattr(Artefact, "write", late)
    craft = next(job for job in numbered(made) if not hasattr(job, "craft"))
    with pytest.raises(KeyboardInterrupt):
        Worker(made, batch=2)(craft)
    artefact = made.artefact(craft.record)
    assert [rows[:2] for rows in artefact.shards()] == [(2 * i, 2 * i + 2) for i in range(WAITING)]
    assert left() == []


def test_the_order_of_threads_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of files, which are read ahead, against all of it in one thread."""
    folder = tmp_path / "images"
    for number in range(6):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    found, read = [], []
    get = Reader.get

    def noted(self: Any, low: int, high: int, then: Any = None) -> Any:
        read.append((self._ahead is not None, self._next is not None))
        return get(self, low, high, then)

    monkeypatch.setattr(Reader, "get", noted)
    for alone in (False, True):
        if alone:
            monkeypatch.setattr("rdp_bench.data.decoded.DecodedImages.in_threads", False)
        with new_process():
            made = plan(
                tmp_path / str(alone), dataset=str(folder), attacks=("tiny/sleepy",), defenses=("tiny/dither",), limit=6
            )
            ends = list(run_here(numbered(made), Worker(made, batch=2)))
            assert [end.reason for end in ends] == [""] * len(ends)
            found.append(stored(made))
    assert (True, True) in read
    assert (False, True) not in read
    one, two = found
    assert one.keys() == two.keys()
    for key, arrays in one.items():
        for name, array in arrays.items():
            if name != "seconds":
                np.testing.assert_array_equal(array, two[key][name])
