"""Batches found by memory, on a device whose memory the tests make up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdp_bench.cache.artefact import Artefact
from rdp_bench.engine import batch_memory
from rdp_bench.engine import worker as work
from rdp_bench.engine.batch_memory import PROBED, FoundBatches, largest
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.schedule import run_here
from rdp_bench.engine.tasks import BATCH, numbered
from rdp_bench.engine.worker import Worker
from tests.helpers.plans import new_process, plan


class Made:
    """So many bytes an image beside `fixed` ones; more images than fit are out of memory."""

    def __init__(self, free: int, each: int, fixed: int = 0) -> None:
        self.bytes, self.each, self.fixed, self.asked = free, each, fixed, 0

    def used_by(self, work: Callable[[], object]) -> int:
        self.asked += 1
        self.images = PROBED
        work()
        return self.fixed + self.images * self.each

    def free(self) -> int:
        return self.bytes

    def compute(self, images: int) -> None:
        self.images = images
        if self.fixed + images * self.each > self.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("free", "each", "fixed", "size"),
    [
        (10**9, 1000, 0, BATCH["cuda"]),
        (100 * 1000, 1000, 0, 64),  # 80 would fit; 64 is the power of two below
        (80 * 1000, 1000, 0, 64),
        (79 * 1000, 1000, 0, 32),
        (100 * 1000, 1000, 8000, 32),  # what is needed once counts as if each image needed it
        (9 * 1000, 1000, 0, 4),
        (5 * 1000, 1000, 0, 4),  # eight do not fit: four are tried, and 4 images of 1000 in .8 of 5000
        (1000, 1000, 0, 1),
    ],
)
def test_sizes_are_powers_of_two_that_fit(free: int, each: int, fixed: int, size: int) -> None:
    memory = Made(free, each, fixed)
    assert FoundBatches(memory).size("work", memory.compute) == size


def test_sizes_divide_what_tasks_are_cut_by() -> None:
    found = {largest(free, 800, PROBED, BATCH["cuda"]) for free in range(0, 20_000, 50)}
    assert found == {1, 2, 4, 8, 16, 32, 64, 128}
    assert all(BATCH["cuda"] % size == 0 for size in found)


def test_a_kind_of_work_is_measured_once_and_keeps_what_fitted() -> None:
    memory = Made(10**9, 1000)
    batches = FoundBatches(memory)
    assert [batches.size(work, memory.compute) for work in ("a", "a", "b")] == [128, 128, 128]
    assert memory.asked == 2
    assert batches.keep("a", 52) == 32  # half of a batch of 104, on the grid
    assert [batches.size(work, memory.compute) for work in ("a", "b")] == [32, 128]


def test_an_image_that_does_not_fit_is_left_to_the_batch_and_other_errors_are_raised() -> None:
    memory = Made(500, 1000)
    assert FoundBatches(memory).size("work", memory.compute) == 1
    with pytest.raises(RuntimeError, match="broken"):
        FoundBatches(memory).size("work", lambda _: (_ for _ in ()).throw(RuntimeError("broken")))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Plan]:
    with new_process():
        yield plan(tmp_path, attacks=("tiny/sleepy", "fgsm"), defenses=("none", "tiny/dither"), limit=12)


def run(made: Plan, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[int, int]]]:
    """Do all jobs; returns the rows of every batch that was written, by kind."""
    written: dict[str, set[tuple[int, int]]] = {}
    write = Artefact.write

    def noted(self: Artefact, low: int, high: int, arrays: Any) -> None:
        written.setdefault(self.kind, set()).add((low, high))
        write(self, low, high, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Artefact, "write", noted)
        ends = list(run_here(numbered(made), worker))
    assert [end.reason for end in ends] == [""] * len(ends)
    return written


def results(made: Plan) -> dict[str, Any]:
    found = {}
    for job in numbered(made):
        for record in job.records:
            for name, array in made.artefact(record).read().items():
                if name != "seconds":
                    found[f"{made.artefact(record).key} {name}"] = array
    return found


def test_a_run_with_found_batches(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches begin at multiples of the size, what was computed to find it is thrown away, results are the same."""
    worker = Worker(made)
    memory = Made(9000, 1000)  # four at once: eight fit, but into more than .8 of it
    looked: list[int] = []

    def compute(make: Callable[[int], object]) -> Callable[[int], object]:
        def limited(images: int) -> object:
            looked.append(images)
            memory.compute(images)
            return make(images)

        return limited

    passes: list[tuple[int, int]] = []

    def together(images: int, at_once: int, _: str) -> int:
        passes.append((images, at_once))
        return 1

    monkeypatch.setattr(work, "together", together)
    batches = FoundBatches(memory)
    size = batches.size
    monkeypatch.setattr(batches, "size", lambda name, make: size(name, compute(make)))
    worker.batches = batches
    written = run(made, worker, monkeypatch)
    assert written["adv"] == written["eval"] == {(0, 4), (4, 8), (8, 12)}
    assert (
        looked == [1, 8] * 5
    )  # one image first, to load what is loaded once; two attacks, two defenses, and clean accuracy
    assert memory.asked == 5
    assert set(passes) == {(1, 1), (8, 8), (4, 4)}  # while the size is looked for, passes are not put together
    with new_process():
        other = plan(tmp_path / "2", attacks=("tiny/sleepy", "fgsm"), defenses=("none", "tiny/dither"), limit=12)
        assert run(other, Worker(other, batch=5), monkeypatch)["adv"] == {(0, 5), (5, 10), (10, 12)}
        found, expected = results(made), results(other)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_memory_that_runs_out_later_halves_the_size(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(made)
    worker.batches = FoundBatches(Made(10**9, 1000), most=8)
    attack = made.attacks["tiny/sleepy"].value.__class__
    call = attack.__call__

    def limited(self: Any, source: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x) == 8 and called:
            raise torch.OutOfMemoryError("CUDA out of memory")
        called.append(1)
        return call(self, source, x, *rest)

    called: list[int] = []  # the first call finds the size
    monkeypatch.setattr(attack, "__call__", limited)
    jobs = [job for job in numbered(made) if getattr(job, "attack", "") == "tiny/sleepy"]
    worker(jobs[0])
    assert [rows[:2] for rows in made.artefact(jobs[0].record).shards()] == [(0, 4), (4, 8), (8, 12)]
    assert worker.batches._found == {"tiny/sleepy on tiny/one": 4}


def test_who_names_a_size_gets_it(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "FROM", 4)
    monkeypatch.setattr("rdp_bench.engine.worker.FROM", 4)
    assert Worker(made).batches is None  # a CPU
    object.__setattr__(made, "device", "cuda")
    monkeypatch.setattr("rdp_bench.engine.worker.describe", lambda _: {})
    assert Worker(made, batch=4).batches is None
    assert Worker(made).batches is not None
    monkeypatch.setattr("rdp_bench.engine.worker.FROM", 12)
    assert Worker(made).batches is None  # one batch
