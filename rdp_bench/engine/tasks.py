"""Jobs cut into tasks: rows of images of one job, as plain data that any worker understands.

Rows are cut at multiples of the batch size only, so that every batch holds the images that it holds in a run of one
process. A *portion* is what one worker can do without waiting for another: rows of an adversarial set, and the
evaluations of these rows.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job
from rdp_bench.engine.plan import Plan
from rdp_bench.keys import key_of

BATCH = {"cpu": 20, "cuda": 128}
"""Images at once by kind of device, where the user names no number. On a GPU the most: `batch_memory` finds how many.
Every size that it finds divides this, so tasks that begin at its multiples hold the batches of a run in one process."""

PARTS_PER_WORKER = 4
"""Work is cut so finely that each worker gets about so many tasks: enough for all to end at about the same time."""

FORWARD, PURIFICATION = 0.4, 0.5
"""What a prediction and a purification cost, in gradients."""

Cost = Callable[[Job], float]
"""Estimated cost per image, mostly in seconds."""


def nominal_cost(plan: Plan) -> Cost:
    """Costs in gradients of one network, equal on all machines: shares of a plan must not depend on measurements."""

    def cost(job: Job) -> float:
        if isinstance(job, CraftJob):
            source = plan.sources[job.source]
            samples = source.attacked_defense.samples if source.attacked_defense else 1
            return float(plan.attacks[job.attack].value.gradients(job.eps) * samples * max(1, len(source.members)))
        looks = plan.defenses[job.defense].value.passes * job.defense_samples
        return looks * (PURIFICATION + FORWARD * len(job.evals))

    return cost


@dataclass(frozen=True)
class Task:
    """Rows `low..high` of a job; `number` is the place of the job in `numbered`."""

    number: int
    key: str
    low: int
    high: int

    @property
    def name(self) -> str:
        """Unique within a plan, and usable as the name of a file."""
        return f"{self.number}-{self.key[:12]}-{self.low}-{self.high}"


@dataclass(frozen=True)
class Part:
    """A task, the job that it belongs to, and its estimated cost."""

    task: Task
    job: Job
    cost: float = 0.0


def batch_of(plan: Plan, batch: int | None) -> int:
    """Images at once in a run of `plan`; `batch` is what the user asked for."""
    return batch or BATCH[plan.device.partition(":")[0]]


def numbered(plan: Plan) -> list[Job]:
    """Every job of a plan; the number of a job is its place here."""
    return [*plan.jobs, *plan.clean_checks]


def whole(jobs: Iterable[Job], n: int = 1) -> list[Part]:
    """One task a job, each of all `n` images."""
    return [Part(Task(number, job.key, 0, n), job) for number, job in enumerate(jobs)]


def distinct(plan: Plan) -> list[int]:
    """Numbers of the jobs of a plan; what two of them would both make, the first makes."""
    made: set[str] = set()
    found = []
    for number, job in enumerate(numbered(plan)):
        keys = {job.key} if isinstance(job, CraftJob) else {key_of(record) for record in job.measurements}
        if not keys <= made:
            found.append(number)
        made |= keys
    return found


def lacking(plan: Plan) -> list[int]:
    """Those of `distinct` whose results are not all in the store."""
    jobs = numbered(plan)
    return [number for number in distinct(plan) if not plan.done(jobs[number])]


def split(plan: Plan, numbers: Sequence[int], cost: Cost, workers: int, batch: int) -> list[Part]:
    """The jobs of these numbers as tasks, those that are long cut by rows so that `workers` can share them."""
    jobs = numbered(plan)
    total = sum(cost(jobs[number]) * plan.n for number in numbers)
    parts = []
    for number in numbers:
        job = jobs[number]
        for low, high in _cut(plan.n, cost(job) * plan.n, total, workers, batch):
            parts.append(Part(Task(number, job.key, low, high), job, cost(job) * (high - low)))
    return parts


def portions(plan: Plan, numbers: Sequence[int], cost: Cost, workers: int, batch: int) -> list[list[Part]]:
    """The jobs of these numbers as portions; a portion crafts and evaluates a set, or rows of it.

    They depend on the plan, `cost`, `workers` and `batch` alone, not on what is stored or done.
    """
    jobs = numbered(plan)
    groups: dict[str, list[int]] = {}
    for number in numbers:
        job = jobs[number]
        craft = job if isinstance(job, CraftJob) else job.craft
        groups.setdefault(craft.key if craft else f"clean {number}", []).append(number)
    seconds = {group: plan.n * sum(cost(jobs[number]) for number in members) for group, members in groups.items()}
    total = sum(seconds.values())
    found = []
    for group, members in groups.items():
        for low, high in _cut(plan.n, seconds[group], total, workers, batch):
            found.append(
                [
                    Part(Task(number, jobs[number].key, low, high), jobs[number], cost(jobs[number]) * (high - low))
                    for number in members
                ]
            )
    return found


def share(found: Sequence[list[Part]], count: int) -> list[list[list[Part]]]:
    """Distribute portions to `count` workers: the longest first, each to the worker with the lowest total so far."""
    piles: list[list[int]] = [[] for _ in range(count)]
    loads = [(0.0, pile) for pile in range(count)]
    costs = [sum(part.cost for part in portion) for portion in found]
    for number in sorted(range(len(found)), key=lambda number: (-costs[number], number)):
        load, pile = heapq.heappop(loads)
        piles[pile].append(number)
        heapq.heappush(loads, (load + costs[number], pile))
    return [[found[number] for number in sorted(pile)] for pile in piles]


def _cut(n: int, seconds: float, total: float, workers: int, batch: int) -> list[tuple[int, int]]:
    """Rows of a job of `seconds` out of `total`: about equal ranges that begin at multiples of `batch`."""
    batches = -(-n // batch)
    wanted = seconds / total * workers * PARTS_PER_WORKER if total else 1.0
    count = 1 if workers == 1 else max(1, min(batches, round(wanted)))
    edges = [batches * i // count * batch for i in range(count)] + [n]
    return list(pairwise(edges))


def stored(plan: Plan, job: Job, low: int, high: int) -> bool:
    """Whether the store holds everything that `job` makes of these rows."""
    for record in job.records:
        artefact = plan.artefact(record)
        if any(a < high and low < b for a, b in artefact.missing(artefact.n or 1)):
            return False
    return True


def needs(job: Job) -> str | None:
    """The key of the adversarial set that a job reads."""
    return job.craft.key if isinstance(job, EvaluateJob) and job.craft else None


def family(job: Job) -> str:
    """Jobs of one family use the same networks; a worker that has them loaded goes on with them."""
    if isinstance(job, CraftJob):
        return f"craft {job.source}"
    return f"evaluate {job.defense} {' '.join(label for label, _ in job.evals)}"
