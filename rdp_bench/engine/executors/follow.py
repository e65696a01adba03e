"""Watches workers that have no driver: what they have done is seen in the store, what failed in their notes."""

import time
from collections.abc import Iterator

from rdp_bench.engine.executors import Array
from rdp_bench.engine.executors.board import Board
from rdp_bench.engine.jobs import CraftJob, Job, JobResult
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.schedule import KEPT, Report
from rdp_bench.engine.tasks import numbered
from rdp_bench.errors import RdpBenchError

POLL = 2.0
"""Seconds between two looks."""

GRACE = 2
"""Looks after the last worker has ended: a network's file system shows its results late."""


def follow(
    plan: Plan, numbers: list[int], board: Board, array: Array, what: str, report: Report | None = None
) -> Iterator[JobResult]:
    """Report each job of these numbers as it ends.

    Raises:
        RdpBenchError: the workers have ended, and jobs are neither done nor failed.
    """
    jobs = numbered(plan)
    left = {number: missing(plan, jobs[number]) for number in numbers}
    since, grace = time.time(), GRACE
    while left:
        alive = array.alive()
        failed = board.failures()
        for number, before in list(left.items()):
            job = jobs[number]
            now = missing(plan, job)
            if report and now < before:
                report(job, before - now)
            left[number] = now
            if not now and plan.done(job):
                del left[number]
                yield JobResult(job)
            elif number in failed:
                del left[number]
                yield JobResult(job, str(failed[number].get("reason")))
        if not left:
            return
        if not alive:
            grace -= 1
        if grace < 0:
            reasons = "; ".join(dict.fromkeys(board.refusals(since)))
            raise RdpBenchError(
                f"{what} has ended and {len(left)} jobs are not done{f': {reasons}' if reasons else ''}; its output is "
                f"in {array.log()}. {KEPT}"
            )
        time.sleep(POLL)


def missing(plan: Plan, job: Job) -> int:
    """Images of `job` that are not in the store."""
    records = [job.record] if isinstance(job, CraftJob) else job.measurements
    ranges = [plan.artefact(record).missing(plan.n) for record in records]
    return max(sum(high - low for low, high in some) for some in ranges)
