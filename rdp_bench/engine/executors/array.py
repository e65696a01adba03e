"""Workers without a driver: each takes its share of a plan, then what the others have not begun.

All that they share is the store. A worker claims a portion (rows of a set and their evaluations) before it begins; one
whose worker has died is taken over. Which worker does what changes no result.
"""

import time
from collections.abc import Iterator

from rdp_bench.engine.executors.remote import Remote
from rdp_bench.engine.jobs import JobResult
from rdp_bench.engine.schedule import Refused, Schedule, SerialExecutor
from rdp_bench.engine.tasks import Part, Task, batch_of, distinct, nominal_cost, portions, share, stored
from rdp_bench.errors import RdpBenchError, StorageError


def work(remote: Remote, index: int, count: int) -> int:
    """Do the tasks of worker `index` of `count`; returns the number of portions done.

    Raises:
        StorageError: nothing can be kept.
    """
    plan = remote.worker.plan
    batch = batch_of(plan, remote.worker.batch)
    found = portions(plan, distinct(plan), nominal_cost(plan), count, batch)
    piles = share(found, count)
    order = [portion for shift in range(count) for portion in piles[(index + shift) % count]]
    done = 0
    while True:
        while some := sum(_do(remote, portion) for portion in order):
            done += some
        if not _wait(remote, [portion for portion in order if _left(remote, portion)]):
            return done


def _wait(remote: Remote, portions: list[list[Part]]) -> bool:
    """Whether there may be more to do: another worker has claimed a portion, and then gives no sign of life.

    A worker that does give one after now will do what it has claimed.
    """
    board = remote.board
    seen = {name: facts["time"] for name, facts in board.workers().items()}
    while doubtful := {owner for portion in portions if (owner := board.owner(portion[0].task))}:
        alive = board.workers()
        if any(owner not in alive for owner in doubtful):
            return True
        proven = {owner for owner in doubtful if alive[owner]["time"] != seen.setdefault(owner, alive[owner]["time"])}
        portions = [portion for portion in portions if board.owner(portion[0].task) not in proven]
        if not portions:
            return False
        time.sleep(1.0)
    return bool(portions)  # released, and not done


def _left(remote: Remote, portion: list[Part]) -> list[Part]:
    """What is left of a portion."""
    plan, failed = remote.worker.plan, remote.board.failed_tasks()
    return [
        part
        for part in portion
        if part.task.name not in failed and not stored(plan, part.job, part.task.low, part.task.high)
    ]


def _do(remote: Remote, portion: list[Part]) -> bool:
    """Do a portion; False where nothing is left of it, or another worker has it."""
    board, todo = remote.board, _left(remote, portion)
    if not todo or not board.claim(portion[0].task, remote.name):
        return False
    try:
        for outcome in run(remote, todo):
            for part in todo:
                if part.job is outcome.job and outcome.reason:
                    board.ended(part, remote.name, outcome.reason, ())
    finally:
        board.release(portion[0].task)
    return True


def run(remote: Remote, parts: list[Part]) -> Iterator[JobResult]:
    """Do tasks in their order in this process."""

    def do(task: Task) -> tuple[str, ...]:
        found = remote.work(task, lambda _: None)
        if isinstance(found, Refused):
            raise StorageError(found.why)
        if found.reason:
            raise RdpBenchError(found.reason)
        return found.remarks

    yield from Schedule(parts, in_order=True).run(SerialExecutor(do))
