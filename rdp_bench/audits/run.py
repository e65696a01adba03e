"""An audit from its subject to its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rdp_bench.audits.card import Card, card_of
from rdp_bench.audits.evidence import Cell, Evidence, cells_of
from rdp_bench.audits.measured import Measured, Probing
from rdp_bench.audits.parts import WHITE_BOX, Subject, grids
from rdp_bench.audits.training_images import overlap
from rdp_bench.engine.class_counts import ClassesError
from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.tasks import nominal_cost
from rdp_bench.errors import RdpBenchError
from rdp_bench.results.cards import FOLDER, AttackFacts, Cost, name_of
from rdp_bench.specs import CLEAN

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

Perform = Callable[["Plan", str], "Run"]
"""Does what a plan still lacks; gets the plan and a heading."""


class PendingError(RdpBenchError):
    """Cells are still to be computed elsewhere, so that there is no card yet."""


def parts_of(subject: Subject, grid: str = FOLDER) -> Iterator[tuple[str, Grid]]:
    """The parts of an audit: name and grid. Grids of different audits have different names.

    Raises:
        UsageError: an unknown name.
    """
    name = name_of(subject.defense, subject.target, subject.images, subject.eps, subject.budget)
    for part, made in grids(subject):
        yield part, replace(made, name=f"{grid}-{name}-{part}")


def planned(
    subject: Subject, plan_of: Callable[[Grid], Plan], parts: Sequence[tuple[str, Grid]] | None = None
) -> list[tuple[str, Plan]]:
    """The plans of all parts: whatever is misspelled or has no backward pass is refused before anything runs.

    Raises:
        UsageError, BadModelError, BadImageError: as `make_plan`.
    """
    try:
        return [(part, plan_of(grid)) for part, grid in parts or parts_of(subject)]
    except ClassesError as error:
        if subject.sources:
            raise
        named = ", ".join(subject.surrogates)
        raise ClassesError(f"{error}; transfer attacks are crafted on {named} unless --source names others") from error


def audit(
    subject: Subject,
    plans: list[tuple[str, Plan]],
    perform: Perform,
    command: str,
    *,
    fresh: set[str] | None = None,
    **more: Any,
) -> Card:
    """Perform the parts in order, measure the probes, and read them.

    Args:
        subject: what is audited.
        plans: of `planned`.
        perform: does the jobs of a part.
        command: how the audit was asked for.
        fresh: keys that `--fresh` has computed again so far; None: use what the cache holds.
        more: further fields of the card.

    Raises:
        RdpBenchError: the defense fails on clean images: its name, the step and the reason.
        PendingError: other workers have not done their share yet.
    """
    begin = time.perf_counter()
    work = _Work(plans, fresh is not None)
    for number, (part, plan) in enumerate(plans, 1):
        run = perform(plan, f"[{number}/{len(plans)}] ")
        _refuse_broken(subject, run, part)
        work.add(part, run)
    if work.pending:
        raise PendingError(
            f"audit of {subject.defense}: {work.pending} cells are not done yet; the same command, when the other "
            "workers have ended, reads their results"
        )
    (white,) = [plan for part, plan in plans if part == WHITE_BOX]
    probes = Probing(subject, white).measure(fresh=fresh)
    more_numbers = {"models": work.models, "photographs": overlap(subject.made, white)}
    evidence = Evidence(subject, subject.random, tuple(work.cells), {**probes.numbers, **more_numbers})
    return card_of(
        evidence, unmeasured=probes.problems, attacks=work.attacks(), command=command,
        cost=work.cost(probes, (time.perf_counter() - begin) / 60),
        runs=tuple(plan.grid.name for _, plan in plans), names=work.names, **more,
    )  # fmt: skip


@dataclass
class _Work:
    """What the runs of an audit gave, and what they took."""

    plans: Sequence[tuple[str, Plan]]
    again: bool
    """Everything is computed, whatever the cache holds."""
    cells: list[Cell] = field(default_factory=list)
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """How reports write labels."""
    pending: int = 0
    _cached: int = 0

    def __post_init__(self) -> None:
        if not self.again:
            self._cached = sum(plan.done(job) for plan, job in self._jobs())

    def _jobs(self) -> Iterator[tuple[Plan, Job]]:
        """The jobs of all parts, each once."""
        seen: set[str] = set()
        for _, plan in self.plans:
            for job in plan.jobs:
                if job.key not in seen:
                    seen.add(job.key)
                    yield plan, job

    def add(self, part: str, run: Run) -> None:
        """A part that was performed."""
        self.models |= _accuracies(run)
        self.cells += cells_of(part, run)
        self.names |= run.record.get("names", {})
        self.pending += sum(cell.status == "pending" for cell in run.cells.values())

    def attacks(self) -> tuple[AttackFacts, ...]:
        """Every attack of every part."""
        found: dict[tuple[str, float], AttackFacts] = {}
        for part, plan in self.plans:
            for job in (job for job in plan.jobs if isinstance(job, CraftJob)):
                made = plan.attacks[job.attack].value
                here = AttackFacts(
                    job.attack, job.eps, (job.source,), (part,), nominal_cost(plan)(job), made.resolved(job.eps)
                )
                before = found.get((job.attack, job.eps), here)
                found[job.attack, job.eps] = replace(
                    before,
                    sources=tuple(dict.fromkeys((*before.sources, job.source))),
                    parts=tuple(dict.fromkeys((*before.parts, part))),
                    gradients=max(before.gradients, here.gradients),
                )
        return tuple(found.values())

    def cost(self, probes: Measured, minutes: float) -> Cost:
        """What the audit took."""
        jobs = list(self._jobs())
        gradients = sum(nominal_cost(plan)(job) for plan, job in jobs if isinstance(job, CraftJob))
        total = len(jobs) + probes.asked
        return Cost(gradients, minutes, total, self._cached + probes.cached)


def _refuse_broken(subject: Subject, run: Run, part: str) -> None:
    """Raises `RdpBenchError` where the audited defense fails on clean images: no attack would say more."""
    for cell in run.cells.values():
        if cell.status == "failed" and cell.attack == CLEAN and cell.defense == subject.defense:
            where = f"audit of {subject.defense} before {subject.target}"
            raise RdpBenchError(f"{where}: it fails on clean images (part {part}): {cell.reason}")


def _accuracies(run: Run) -> dict[str, dict[str, float]]:
    """The measured and the published clean accuracy, in percent, of every model of a run that has both."""
    found = {}
    for label, facts in run.record.get("models", {}).items():
        known = run.plan.models[label].card.known_accuracy(run.plan.dataset.name, run.plan.n)
        if known is not None and facts.get("measured_accuracy") is not None:
            found[label] = {"measured": facts["measured_accuracy"], "known": known}
    return found
