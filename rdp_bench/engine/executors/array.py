"""Workers without a driver: each takes its share of a plan, then what the others have not begun.

All that they share is the store. A worker claims a portion (rows of a set and their evaluations) before it begins; one
whose worker has died is taken over. Which worker does what changes no result.
"""

from collections.abc import Iterator

from rdp_bench.engine.executors.remote import Remote
from rdp_bench.engine.jobs import JobResult
from rdp_bench.engine.progress import Costs
from rdp_bench.engine.schedule import Refused, Schedule, SerialExecutor
from rdp_bench.engine.tasks import Part, Task, batch_of, distinct, portions, share, stored
from rdp_bench.errors import RdpBenchError, StorageError


def work(remote: Remote, index: int, count: int) -> int:
    """Be worker `index` of `count`; returns how many portions it did.

    Raises:
        StorageError: nothing can be kept.
    """
    plan = remote.worker.plan
    batch = batch_of(plan, remote.worker.batch)
    found = portions(plan, distinct(plan), Costs(plan).each, count, batch)
    piles = share(found, count)
    order = [portion for shift in range(count) for portion in piles[(index + shift) % count]]
    done = 0
    while some := sum(_do(remote, portion) for portion in order):
        done += some
    return done


def _do(remote: Remote, portion: list[Part]) -> bool:
    """Do a portion; False where nothing is left of it, or another worker has it."""
    board, plan = remote.board, remote.worker.plan
    failed = board.failed_tasks()
    todo = [
        part
        for part in portion
        if part.task.name not in failed and not stored(plan, part.job, part.task.low, part.task.high)
    ]
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
