"""Workers without a driver: what they leave to each other, and what they take over."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rdp_bench.engine.executors import array
from rdp_bench.engine.executors import board as boards
from rdp_bench.engine.executors.board import Board
from rdp_bench.engine.executors.remote import Remote
from rdp_bench.engine.executors.spec import spec_of
from rdp_bench.engine.tasks import distinct, lacking, nominal_cost, portions
from tests.helpers.plans import new_process, plan


class Clock:
    """Seconds pass when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.begin, self.passed = time.time(), 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.begin + self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(boards, "time", made)
    monkeypatch.setattr(array, "time", SimpleNamespace(sleep=made.sleep))
    return made


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Remote]:
    monkeypatch.chdir(Path.cwd())
    with new_process():
        made = plan(tmp_path)
        spec = spec_of(made, limit=4, batch_size=2, models_dir=None)
        Board(made.store, spec.plan).begin(made, {})
        found = Remote(spec, "slurm-1-0")
        yield found
        found.close()


def claimed(remote: Remote) -> None:
    """Another worker, of another machine, has begun the set."""
    made = remote.worker.plan
    found = portions(made, distinct(made), nominal_cost(made), 2, 2)
    remote.board.beat("slurm-1-1", {"host": "far", "pid": 1})
    for portion in found:
        if "fgsm" in str(portion[0].job):
            assert remote.board.claim(portion[0].task, "slurm-1-1")


def left(remote: Remote) -> set[str]:
    jobs = [*remote.worker.plan.jobs, *remote.worker.plan.clean_checks]
    return {str(jobs[number]) for number in lacking(remote.worker.plan)}


OF_THE_SET = {"fgsm on tiny/one", "none against fgsm on tiny/one at eps 8"}


def test_a_worker_alone_does_the_shares_of_all(remote: Remote) -> None:
    assert array.work(remote, 0, 2) > 1
    assert left(remote) == set()


def test_what_a_live_worker_has_claimed_is_left_to_it(remote: Remote, clock: Clock) -> None:
    claimed(remote)
    clock.on_sleep = lambda: remote.board.beat("slurm-1-1", {"host": "far", "pid": 1})
    array.work(remote, 0, 2)
    assert left(remote) == OF_THE_SET
    assert clock.passed < boards.EXPIRES


def test_what_a_dead_worker_has_claimed_is_taken_over(remote: Remote, clock: Clock) -> None:
    """It had given a sign of life a moment ago, so the others wait until it is due for the next ones."""
    claimed(remote)
    clock.on_sleep = lambda: remote.board.beat("slurm-1-0", {})
    array.work(remote, 0, 2)
    assert left(remote) == set()
    assert clock.passed >= boards.EXPIRES


def test_what_failed_is_not_tried_again_by_the_next(remote: Remote) -> None:
    made = remote.worker.plan
    found = portions(made, distinct(made), nominal_cost(made), 2, 2)
    for portion in found:
        for part in portion:
            if str(part.job) in OF_THE_SET:
                remote.board.ended(part, "slurm-1-1", "broken", ())
    array.work(remote, 0, 2)
    assert left(remote) == OF_THE_SET
