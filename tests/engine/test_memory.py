"""Memory goes back to the system between the phases of a run."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rdp_bench.engine import worker as work
from rdp_bench.engine.jobs import EvaluateJob
from rdp_bench.numerics import memory

PLAN = cast("Any", SimpleNamespace(n=1, device="cpu", precision="float32"))

MEASURE = """
import torch
from rdp_bench.engine.worker import configure_torch
from rdp_bench.numerics.memory import release

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

configure_torch("cpu")
before = resident()
blocks = [torch.ones(2**18) for _ in range(400)]  # 400 MiB
pins = [torch.ones(64) for _ in range(400)]
del blocks
held = resident() - before
release()
print(held, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_freed_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 300  # kept for the next batch
    assert left < 100


def watch(monkeypatch: pytest.MonkeyPatch, done: list[str], held: list[int]) -> None:
    """Note what is returned while the process holds these bytes, one number a question."""
    numbers = iter(held)
    monkeypatch.setattr(memory, "resident", lambda: next(numbers))
    libc = SimpleNamespace(malloc_trim=lambda _: done.append("release"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)


def test_it_is_returned_between_jobs_where_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    watch(monkeypatch, done, [0, work.KEPT + 1, work.KEPT - 1])
    monkeypatch.setattr(work.Worker, "_evaluate", lambda *_: done.append("judge"))
    worker = work.Worker.__new__(work.Worker)
    worker._remarks, worker.plan = [], PLAN
    for _ in range(3):
        worker(cast("Any", EvaluateJob.__new__(EvaluateJob)))
    assert done == ["judge", "release", "judge", "judge"]


def test_a_network_that_needs_as_much_does_not_fault_it_in_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    steps = [(0.0, memory.MOST - 1), (0.1, memory.MOST), (1.0, memory.MOST), (2.0, memory.MOST * 1.4),
             (3.0, memory.MOST * 1.6), (4.0, memory.MOST), (24.0, memory.MOST)]  # fmt: skip
    returned = []
    monkeypatch.setattr(memory, "_returned", -1e9)
    for seconds, held in steps:
        monkeypatch.setattr(memory.time, "monotonic", lambda seconds=seconds: seconds)
        watch(monkeypatch, done, [int(held), int(held)])
        memory.limit()
        returned.append(len(done))
    assert returned == [0, 1, 1, 1, 2, 2, 3]


PHASES = """
from types import SimpleNamespace

import torch
from rdp_bench.engine import worker as work
from rdp_bench.engine.jobs import EvaluateJob
from rdp_bench.numerics import memory

work.configure_torch("cpu")
peaks, pins = [], []

def phase(self, job):
    size = 2 ** (16 + len(peaks))  # larger blocks than any that was freed
    blocks = [torch.ones(size) for _ in range(2**27 // size)]  # 512 MiB
    pins.extend(torch.ones(64) for _ in blocks)
    peaks.append(memory.resident() / 2**20)

work.Worker._evaluate = phase
worker = work.Worker.__new__(work.Worker)
worker._remarks, worker._phase = [], EvaluateJob
worker.plan = SimpleNamespace(n=1, device="cpu", precision="float32")
work.KEPT = 600 << 20
for _ in range(8):
    worker(EvaluateJob.__new__(EvaluateJob))
print(peaks[0], max(peaks))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peaks_of_jobs_do_not_add_up() -> None:
    done = subprocess.run([sys.executable, "-c", PHASES], capture_output=True, text=True, check=True)
    first, largest = map(float, done.stdout.split())
    assert largest < first + 100  # 250 more without the bound
